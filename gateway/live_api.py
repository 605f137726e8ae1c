"""The operators' API of live events: what happens now, as Server-Sent Events, to readers who may be slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
from litestar import Litestar, Request, get
from litestar.params import FromQuery
from litestar.response import Stream

from gateway.services import Given, OperatorError, known
from schemas.logs import logger

STREAMS_MAX = 16
STREAM_QUEUE_MAX = 1_000
"""Events kept for a reader that is too slow; beyond it they are counted instead."""
HEARTBEAT_S = 15.0

log = logger()


LIVE_FIELDS = frozenset(
    (
        "at",
        "kind",
        "target",
        "connector",
        "resource",
        "resource_kind",
        "event_id",
        "generation",
        "fence",
        "delivery",
        "attempt",
        "change",
        "changed",
        "result",
        "code",
        "attribute",
        "ms",
        "steps",
        "worker",
        "actor",
    )
)
"""What of a live event gets through: ids, counts, and names of attributes. Never a document, a message or an identity."""


@get("/events/stream")
async def stream_events(
    services: Given, request: Request[Any, Any, Any], target: FromQuery[str | None] = None
) -> Stream:
    """Events and outcomes as they happen, as Server-Sent Events, until the caller hangs up."""
    if target is not None:
        known(services, target)
    if not services.dispatcher.bus.connected():
        raise OperatorError(503, "NATS cannot be reached, so there are no live events now.")
    streams: set[asyncio.Task[None]] = request.app.state.streams
    if len(streams) >= STREAMS_MAX:
        raise OperatorError(429, f"{STREAMS_MAX} live streams are open already; close one.")
    feed = _Feed(target)
    task = asyncio.create_task(feed.pump(services.live_events()))
    streams.add(task)
    task.add_done_callback(streams.discard)
    task.add_done_callback(_log_failure)
    return Stream(_frames(feed, task), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (exc := task.exception()) is not None:
        log.warning("operators.stream_failed", error=type(exc).__name__)


def end_streams(app: Litestar) -> None:
    """End every live stream of this listener; called when it shuts down, which would wait for their readers otherwise."""
    for task in list(app.state.streams):
        task.cancel()


class _Feed:
    """Between the gateway's feed and one reader, who may be slow: neither waits for the reader nor grows without bound."""

    def __init__(self, target: str | None) -> None:
        self._target = target
        self._queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(STREAM_QUEUE_MAX + 1)
        self._skipped = 0

    async def pump(self, events: AsyncIterator[Mapping[str, Any]]) -> None:
        """Take what comes until the feed ends or this task is cancelled."""
        try:
            async for event in events:
                if self._target is not None and event.get("target") != self._target:
                    continue
                if self._queue.qsize() >= STREAM_QUEUE_MAX:
                    self._skipped += 1
                    continue
                if self._skipped:
                    self._queue.put_nowait({"kind": "skipped", "count": self._skipped})
                    self._skipped = 0
                    if self._queue.qsize() >= STREAM_QUEUE_MAX:
                        self._skipped = 1
                        continue
                self._queue.put_nowait({name: value for name, value in event.items() if name in LIVE_FIELDS})
        finally:
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()
            if not self._queue.full():
                self._queue.put_nowait(None)

    async def next(self, wait_s: float) -> dict[str, Any] | None:
        """The next event; None when the feed has ended.

        Raises:
            TimeoutError: nothing came in time.
        """
        async with asyncio.timeout(wait_s):
            return await self._queue.get()


async def _frames(feed: _Feed, task: asyncio.Task[None]) -> AsyncIterator[bytes]:
    try:
        yield b": open\n\n"  # headers go out at once, before anything happens
        while True:
            try:
                event = await feed.next(HEARTBEAT_S)
            except TimeoutError:
                yield b": still here\n\n"
                continue
            if event is None:
                return
            yield b"data: " + msgspec.json.encode(event) + b"\n\n"
    finally:
        task.cancel()
