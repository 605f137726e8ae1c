"""Requests nobody wrote by hand, against a gateway of their own: `python -m tests.fuzz 100000 --seed 1`."""
