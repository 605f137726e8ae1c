"""Running everything: local stack, demo, emulators, container files."""
