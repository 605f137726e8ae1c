"""Deterministic simulation of the engine: the product's own code over simulated broker, workers and vendor."""
