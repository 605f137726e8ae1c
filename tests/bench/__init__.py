"""How fast, and how much memory: `make bench`, or `python -m tests.bench --help`."""
