"""The whole system as processes, as `provgate demo` starts it: what callers, operators and products see of it."""
