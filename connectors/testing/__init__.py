"""For authors of connectors: the promises every connector keeps, parts for emulators, and a worked example to start from."""
