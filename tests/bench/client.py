"""The least an HTTP client can do: prepared requests, one after the other on every connection, and the time each took."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import httptools
from msgspec import Struct

ANSWER_WAIT_S = 30.0


class Run(Struct):
    """What one run measured: seconds per request in order of completion, and answers by unexpected status."""

    connections: int
    elapsed_s: float
    latencies: list[float]
    unexpected: dict[int, int]

    @property
    def per_s(self) -> float:
        return len(self.latencies) / self.elapsed_s


def request(port: int, method: str, path: str, token: str = "", body: bytes | None = None) -> bytes:
    """One HTTP/1.1 request as it goes over the wire."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    if token:
        head += f"Authorization: Bearer {token}\r\n"
    if body is not None:
        head += f"Content-Type: application/scim+json; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + (body or b"")


async def drive(
    port: int,
    requests: Sequence[bytes],
    connections: int,
    expected: int,
    *,
    until_s: float | None = None,
    looks_right: Callable[[bytes], bool] = lambda body: True,
    on_answer: Callable[[], None] = lambda: None,
) -> Run:
    """Send every request once, or all of them in circles until `until_s` seconds are over.

    Args:
        expected: the status every answer should have.
        looks_right: whether a body is what it should be; others count as status 0.

    Raises:
        ConnectionError: the server closed a connection.
        TimeoutError: an answer took longer than ANSWER_WAIT_S.
    """
    waiting = iter(requests) if until_s is None else itertools.cycle(requests)
    lanes = await connect(port, connections)
    latencies: list[float] = []
    unexpected: dict[int, int] = {}
    started = time.perf_counter()
    deadline = None if until_s is None else started + until_s

    async def run(lane: Lane) -> None:
        for wire in waiting:
            sent = time.perf_counter()
            if deadline is not None and sent >= deadline:
                return
            status, body = await lane.ask(wire)
            latencies.append(time.perf_counter() - sent)
            if status != expected or not looks_right(body):
                shown = status if status != expected else 0
                unexpected[shown] = unexpected.get(shown, 0) + 1
            on_answer()

    try:
        async with asyncio.TaskGroup() as group:
            for lane in lanes:
                group.create_task(run(lane))
        elapsed_s = time.perf_counter() - started
    finally:
        for lane in lanes:
            lane.close()
    return Run(connections, elapsed_s, latencies, unexpected)


async def connect(port: int, connections: int) -> list[Lane]:
    """So many open connections; whoever asked closes them."""
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Lane, "127.0.0.1", port))[1] for _ in range(connections)]


class Lane(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None
        self._body: list[bytes] = []
        self._transport: Any = None

    def ask(self, wire: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send; the future brings status and body."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        self._waiting = waiting
        bound = loop.call_later(ANSWER_WAIT_S, partial(self._fail, TimeoutError("no answer")))
        waiting.add_done_callback(lambda _: bound.cancel())
        self._transport.write(wire)
        return waiting

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionResetError("the server closed the connection"))

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body, self._body = b"".join(self._body), []
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result((self._parser.get_status_code(), body))

    def _fail(self, error: OSError) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)
