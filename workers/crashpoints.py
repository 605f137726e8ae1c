"""The worker's places where a test may end it; see `schemas/crashpoints.py`.

W1 before the event is decoded          W5 after the outcome is confirmed, before the ack
W2 before permission is asked           W6 after the ack
W3 before the connector's first step    W7 before each call to the product
W4 after its last, before the outcome   W8 ownership lost, before the report of what was done
"""

from __future__ import annotations

from schemas.crashpoints import CrashPoints

POINTS = ("W1", "W2", "W3", "W4", "W5", "W6", "W7", "W8")

reached = CrashPoints(POINTS).reached
