"""How fast a target may be called, and what is remembered about it: the product's rate limit and its names."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from schemas.errors import Blocked, ConnectorError, RateLimited
from schemas.logs import logger
from schemas.specs import RateLimit
from workers.delivery import NotOurs

MARGIN_S = 0.05
"""Calls spaced correctly may bunch up on their way; this much is added to the product's own interval."""
LOOK_EVERY_S = 1.0
"""A waiting call looks at the current share at least this often."""
REFRESH_EVERY_S = 60.0
"""A name nobody knows makes the worker ask the product for its names at most this often."""
RELOAD_AFTER_FAILURE_S = 5.0
"""The same after a load that failed: a new credential shall not have to wait a minute."""

NAMES_MAX = 10_000
"""Names of one kind that are remembered."""

Names = Mapping[str, Sequence[Mapping[str, Any] | str]]


class CallLimit:
    """This worker's part of a product's rate limit: at most so many calls in *any* interval, bursts included.

    The limit belongs to the target, not to a worker. Workers do not talk to each other about single calls; each takes the
    n-th part when n live workers serve the target. Waiting callers go in order of arrival.

    Args:
        limit: the product's own limit, or None when it names none.
        clock: monotonic seconds.
    """

    def __init__(self, limit: RateLimit | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._turn = asyncio.Lock()
        self._starts: deque[float] = deque(maxlen=limit.calls if limit else 1)
        self._calls, self._per_s = 0, 0.0
        self.share_among(1)

    def share_among(self, workers: int) -> None:
        """Take the part that is ours when so many live workers serve the target; counts at once, also for waiting calls."""
        if self._limit is None:
            return
        workers = max(1, workers)
        self._calls = max(1, self._limit.calls // workers)
        slower = max(1.0, workers / self._limit.calls)  # more workers than calls: one call each in a longer interval
        self._per_s = self._limit.per_s * slower + MARGIN_S

    async def wait(self) -> None:
        """Return when one more call may start."""
        if self._limit is None:
            return
        async with self._turn:
            while len(self._starts) >= self._calls:
                ahead_s = self._starts[-self._calls] + self._per_s - self._clock()
                if ahead_s <= 0:
                    break
                await asyncio.sleep(min(ahead_s, LOOK_EVERY_S))
            self._starts.append(self._clock())


class NameCache:
    """Roles, teams and groups of a product by name, loaded when somebody misses one (`workers/delivery.py`, Names).

    Args:
        load: the connector's `load_directory`, or None when the product has no such call.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        load: Callable[[], Awaitable[dict[str, list[dict[str, Any]]]]] | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._clock = clock
        self._names: Names = {}
        self._loads = 0
        self._next_at: float | None = None
        self._failure: ConnectorError | None = None
        self._turn = asyncio.Lock()

    def names(self, kind: str) -> Sequence[Mapping[str, Any] | str]:
        """All known names of a kind; empty when unknown."""
        return self._names.get(kind, ())

    def forgive(self) -> None:
        """The product is known to answer again: the next miss may load at once after a failed load."""
        if self._failure is not None:
            self._failure = self._next_at = None

    async def refresh(self, *, now: bool = False) -> bool:
        """Load the names anew; deliveries that miss a name at the same time share one load.

        Args:
            now: an operator asks: do it whenever the last load was.

        Returns:
            False when the product has no such call, or the names are younger than REFRESH_EVERY_S.

        Raises:
            ConnectorError: the load failed, now or a moment ago; without names nobody can say that a name does not exist. When
                there are names of an earlier load, everybody else goes on with those, and only who misses one is `Blocked`.
            NotOurs: the delivery that asked is over.
        """
        if self._load is None:
            return False
        loads_before = self._loads
        async with self._turn:
            if self._loads > loads_before:
                return True
            if not now and self._next_at is not None and self._clock() < self._next_at:
                if self._failure is not None:
                    raise self._failure.with_traceback(None)
                return False
            try:
                self._names = _bounded(await self._load())
            except NotOurs:
                raise
            except ConnectorError as exc:
                self._failure = self._only_the_asking(exc)
                self._next_at = self._clock() + RELOAD_AFTER_FAILURE_S
                if self._failure is exc:
                    raise
                raise self._failure from exc
            self._failure = None
            self._loads += 1
            self._next_at = self._clock() + REFRESH_EVERY_S
            return True

    def _only_the_asking(self, exc: ConnectorError) -> ConnectorError:
        """A failure that must not stop the whole target once there are names: one mistyped role would be enough for that."""
        if not self._loads or isinstance(exc, RateLimited):
            return exc
        return Blocked(
            f"A name that is not known here could not be looked up: {exc.message}",
            on="the product's names",
            code=exc.code,
        )


def _bounded(names: Names) -> Names:
    """At most NAMES_MAX of a kind."""
    for kind, entries in names.items():
        if len(entries) > NAMES_MAX:
            logger().warning("names.too_many", kind=kind, count=len(entries), kept=NAMES_MAX)
    return {kind: entries[:NAMES_MAX] for kind, entries in names.items()}
