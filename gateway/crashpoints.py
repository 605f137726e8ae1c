"""The gateway's places where a test may end it; see `schemas/crashpoints.py`.

G1 a write is in the transaction, before its commit     G4 an outcome is in the transaction, before its commit
G2 after that commit, before its event is published     G5 after that commit, before anybody hears of it and before its ack
G3 the event is in the stream, before that is recorded  G6 the sweeper has an event to publish again, before it does
"""

from __future__ import annotations

from schemas.crashpoints import CrashPoints

POINTS = ("G1", "G2", "G3", "G4", "G5", "G6")

reached = CrashPoints(POINTS).reached
