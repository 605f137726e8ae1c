"""What tests of the real engine on a real store put in the place of NATS and of the time, and the store they begin with."""

from __future__ import annotations

import asyncio
import functools
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from gateway.bus import Message, ProbeReply, Published
from gateway.lifecycle import Row
from gateway.store import Store

STREAM = "stream-1"
NOON = 1_767_225_600.0


class WallClock:
    """The real time."""

    def now(self) -> float:
        """See `dispatch.Clock`."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """See `dispatch.Clock`."""
        await asyncio.sleep(seconds)


class HandClock:
    """Time passes when a test says so; nobody sleeps."""

    def __init__(self) -> None:
        self.time = NOON

    def now(self) -> float:
        """See `dispatch.Clock`."""
        return self.time

    async def sleep(self, seconds: float) -> None:
        """See `dispatch.Clock`."""
        await asyncio.sleep(0)


class HeldBus:
    """A bus that keeps one message per resource until a test takes it, and whose streams never change.

    Attributes:
        up: whether NATS is there.
        said: what a worker answers to a probe; None: nobody answers.
        known: whether it can tell about its streams.
        sent: what was published and not taken yet, by resource.
    """

    def __init__(self, *, known: bool = True) -> None:
        self.up = True
        self.said: ProbeReply | None = ProbeReply(ok=True)
        self.known = known
        self.sent: dict[str, Message] = {}

    def connected(self) -> bool:
        """See `Bus`."""
        return self.up

    async def publish(self, message: Message) -> Published:
        """See `Bus`."""
        self.sent[message.resource] = message
        return Published.STORED

    async def holds(self, target: str, kind: str, resource: str) -> bool | None:
        """See `Bus`."""
        return resource in self.sent

    async def outcomes_end(self) -> tuple[str, int] | None:
        """See `Bus`."""
        return (STREAM, 0) if self.known else None

    async def outcomes_folded(self) -> tuple[str, int] | None:
        """See `Bus`."""
        return (STREAM, 0) if self.known else None

    async def streams(self) -> dict[str, str] | None:
        """See `Bus`."""
        return {"PROV_WORK": STREAM} if self.known else None

    async def probe(self, target: str) -> ProbeReply | None:
        """See `Bus`."""
        return self.said

    def announce_settled(self, resource: str) -> None:
        """Nobody listens."""

    def announce_dead(self, row: Row) -> None:
        """Nobody listens."""


class Background:
    """What the engine starts by itself."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Start something."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def quiet(self, *, failing: bool = True) -> None:
        """Wait until nothing runs any more; what failed fails the caller, unless it says otherwise."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=not failing)

    async def end(self) -> None:
        """Stop whatever runs."""
        for task in self._tasks:
            task.cancel()
        await self.quiet(failing=False)


@functools.cache
def blank_store() -> bytes:
    """A SQLite store with its tables and nothing in it: the migrations take a second, and are not what is tested here."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "blank.sqlite3"
        asyncio.run(_made(path))
        return path.read_bytes()


async def _made(path: Path) -> None:
    await Store.open(path).close()


async def write_blank_store(path: Path) -> None:
    """Put a blank store there."""
    made = await asyncio.to_thread(blank_store)
    path.write_bytes(made)  # noqa: ASYNC240 a moment, in a test
