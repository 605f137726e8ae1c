"""The process that runs connectors: takes events from NATS, applies them, reports outcomes."""
