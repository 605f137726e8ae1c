"""Named places where a test may end a process at once, as a power cut would (architecture rule A12).

`PROVGATE_CRASH_AT=W4` or `W4:3` for the third time; only with `PROVGATE_TEST_BUILD=1`. Which places there are says the package
that has them: `workers/crashpoints.py`, `gateway/crashpoints.py`.
"""

from __future__ import annotations

import os

EXIT_CODE = 137


class CrashPoints:
    """The places of one process. Armed when it is made, so never by what the environment becomes later.

    Args:
        points: their names; a name that is not among them arms nothing here.
    """

    def __init__(self, points: tuple[str, ...]) -> None:
        self._point, self._left = "", 0
        if os.environ.get("PROVGATE_TEST_BUILD") == "1":
            point, _, times = os.environ.get("PROVGATE_CRASH_AT", "").partition(":")
            if point in points:
                self._point, self._left = point, int(times or "1")

    def reached(self, point: str) -> None:
        """Ends the process without any clean-up when this point is armed and has been reached often enough."""
        if point != self._point:
            return
        self._left -= 1
        if self._left == 0:
            os._exit(EXIT_CODE)
