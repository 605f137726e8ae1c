"""Named places where a test may end the process at once, as a power cut would (architecture rule A12).

W1 before the event is decoded          W5 after the outcome is confirmed, before the ack
W2 before permission is asked           W6 after the ack
W3 before the connector's first step    W7 before each call to the product
W4 after its last, before the outcome   W8 ownership lost, before the report of what was done

`PROVGATE_CRASH_AT=W4` or `W4:3` for the third time; only with `PROVGATE_TEST_BUILD=1`.
"""

from __future__ import annotations

import os

EXIT_CODE = 137
POINTS = ("W1", "W2", "W3", "W4", "W5", "W6", "W7", "W8")


def _armed() -> tuple[str, int]:
    if os.environ.get("PROVGATE_TEST_BUILD") != "1":
        return "", 0
    point, _, times = os.environ.get("PROVGATE_CRASH_AT", "").partition(":")
    return (point, int(times or "1")) if point in POINTS else ("", 0)


_point, _left = _armed()


def reached(point: str) -> None:
    """Ends the process without any clean-up when this point is armed and has been reached often enough."""
    global _left
    if point != _point:
        return
    _left -= 1
    if _left == 0:
        os._exit(EXIT_CODE)
