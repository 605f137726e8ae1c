"""Shapes shared by every part: resources, events, states, errors, topology, configuration. Imports nothing of ours."""
