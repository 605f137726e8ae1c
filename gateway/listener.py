"""The HTTP server of both listeners: uvicorn, with bounds on what a connection may hold before a request is whole.

uvicorn's parser takes headers of any length at any pace, and forgets its own timer at the first byte of a request. Here a
connection that is silent, or sends a byte at a time, ends within a named bound; nobody holds more connections than its share.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import resource
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.limits import Sources
from gateway.messages import MEDIA_TYPE, ScimError, unavailable
from schemas.config import LimitSettings
from schemas.errors import ConfigurationError
from schemas.logs import logger

SHUTDOWN_S = 10
BACKLOG_MAX = 1_024
REQUEST_LINE_EXTRA_BYTES = 1_024
"""Method, version, and what stands between and behind headers, beside the bounds of address and headers themselves."""
FULL_RETRY_AFTER_S = 5
REFUSE_WAIT_S = 2.0
"""How long a refused caller may take to read why."""
GRACE_S = 0.05
"""After a machine slept, timers run before what arrived meanwhile is read: nothing ends before it was looked for once more."""
FILES_BESIDE = 256
"""Open files beside connections: store, bus, logs, libraries."""

log = logger()


class Connections:
    """Open connections of one listener, in total and by source.

    Args:
        limits: the bounds.
        sources: proxies of ours share no bound of a source.
    """

    def __init__(self, limits: LimitSettings, sources: Sources) -> None:
        self._max = limits.connections_max
        self._per_source_max = limits.connections_per_source_max
        self._sources = sources
        self._open: Counter[str] = Counter()
        self._total = 0

    def __len__(self) -> int:
        """How many are open."""
        return self._total

    def enter(self, peer: str) -> str:
        """Count one connection; what is wrong with it, or "" when it may stay. One that stays has to `leave`."""
        if self._total >= self._max:
            return f"There are more than {self._max:,} connections"
        if self._open[peer] >= self._per_source_max and not self._sources.is_trusted(peer):
            return f"There are more than {self._per_source_max:,} connections from this address"
        self._open[peer] += 1
        self._total += 1
        return ""

    def leave(self, peer: str) -> None:
        """A connection that was counted has ended."""
        self._total -= 1
        self._open[peer] -= 1
        if not self._open[peer]:
            del self._open[peer]


class BoundedConnection(HttpToolsProtocol):
    """One connection.

    One timer covers the silence after connecting, headers that do not end, and what trickles in after an answer; it is set only
    when a read leaves a request unfinished, so an ordinary request never touches it.

    Args:
        limits: the bounds.
        connections: those of the listener.
        uvicorns: what uvicorn gives.
    """

    def __init__(self, limits: LimitSettings, connections: Connections, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._limits = limits
        self._counted = connections
        self._peer: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._graced = False
        self._in_head = False
        self._heads = 0
        self._head_bytes = 0
        self._head_bytes_max = limits.header_bytes_max + limits.url_bytes_max + REQUEST_LINE_EXTRA_BYTES

    # ---- what asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it; one too many is told so and closed."""
        super().connection_made(transport)
        peer = self.client[0] if self.client else ""
        problem = self._counted.enter(peer)
        if problem:
            log.warning("listener.full", detail=problem, connections=len(self._counted))
            self._refuse(unavailable(problem, FULL_RETRY_AFTER_S))
            return
        self._peer = peer
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give its place to the next."""
        if self._peer is not None:
            self._counted.leave(self._peer)
            self._peer = None
        self._disarm()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def pause_writing(self) -> None:
        """The caller reads slower than we answer; it is not waited for without end."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self._limits.idle_wait_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It read on."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parse, and start the clock when this was not the end of what has to come."""
        if self.transport.is_closing():
            return
        began_before, heads = self._in_head, self._heads
        super().data_received(data)
        if self._in_head:
            if began_before and heads == self._heads:  # else what was read ends one head and begins another
                self._head_bytes += len(data)
                if self._head_bytes > self._head_bytes_max:
                    self._refuse(self._too_long())
                    return
            if self._timer is None:
                self._arm()
        elif self._timer is None and self.timeout_keep_alive_task is None and self._is_idle():
            self._arm()  # the rest of a body nobody reads, or empty lines before a request

    # ---- what the parser calls

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head = True
        self._heads += 1
        self._graced = False
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its headers are whole."""
        self._in_head = False
        if self._timer is not None:
            self._disarm()
        super().on_headers_complete()

    # ---- ends

    def timeout_keep_alive_handler(self) -> None:
        """Rested too long; a caller that does not read its answer is not waited for either."""
        if not self._graced:
            self._graced = True
            self.timeout_keep_alive_task = self.loop.call_later(GRACE_S, self.timeout_keep_alive_handler)
        elif self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets SCIM's answer, too, and a line in the log like every other request."""
        log.info("listener.refused", status=400, cause="no_http")
        self._refuse(ScimError(400, "This is not a valid HTTP request.", "invalidSyntax"))

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _arm(self) -> None:
        self._graced = False
        self._timer = self.loop.call_later(self._limits.header_wait_s, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if not self._graced:
            self._graced = True
            self._timer = self.loop.call_later(GRACE_S, self._too_slow)
        elif not self._is_idle():
            self._arm()  # a request is in work, and the next one stands behind it; the first has a bound of its own
        elif self._in_head:
            wait_s = self._limits.header_wait_s
            self._refuse(ScimError(408, f"The headers did not arrive within {wait_s:g} s."))
        else:
            self.transport.close()

    def _too_long(self) -> ScimError:
        if not self.headers and len(self.url) > self._limits.url_bytes_max:
            return address_too_long(self._limits.url_bytes_max)
        return headers_too_large(self._limits.header_bytes_max)

    def _refuse(self, error: ScimError) -> None:
        """Answer without an application and close; where the answer would be taken for another request's, cut off instead."""
        if not self._is_idle():
            # a body that is none ends the request it belongs to, and nobody has answered that one yet
            if self.cycle.response_started or not self.cycle.more_body or self.pipeline:
                self.transport.abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._in_head = False
        self._disarm()
        self._unset_keepalive_if_required()
        body = error.to_bytes()
        head = f"HTTP/1.1 {error.status} {error.status}\r\n"
        head += "".join(f"{name.lower()}: {value}\r\n" for name, value in error.headers.items())
        head += f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode("latin-1") + body)
        self.transport.close()
        self.loop.call_later(REFUSE_WAIT_S, self.transport.abort)


def address_too_long(limit: int) -> ScimError:
    """414 (RFC 9110 section 15.5.15)."""
    return ScimError(414, f"The address is longer than the limit of {limit:,} bytes.")


def headers_too_large(limit: int) -> ScimError:
    """431 (RFC 6585 section 5)."""
    return ScimError(431, f"The headers are larger than the limit of {limit:,} bytes.")


class HttpServer(uvicorn.Server):
    """A uvicorn server that leaves signals to the process and listens on a socket that is bound already.

    Args:
        app: the ASGI application.
        listener: bound, not listening yet; see `listen`.
        limits: bounds on connections and on the time a request may take to arrive.
        sources: knows our proxies.
    """

    def __init__(self, app: Any, listener: socket.socket, limits: LimitSettings, sources: Sources) -> None:
        self.connections = Connections(limits, sources)
        made: Callable[..., asyncio.Protocol] = functools.partial(BoundedConnection, limits, self.connections)
        super().__init__(
            uvicorn.Config(
                app,
                loop="none",
                http=cast(type[asyncio.Protocol], made),
                ws="none",
                lifespan="off",
                access_log=False,
                log_level="error",  # its warning for whatever is no HTTP is no line of our log: no JSON, no time
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=SHUTDOWN_S,
                timeout_keep_alive=cast(int, limits.idle_wait_s),
                backlog=BACKLOG_MAX,
            )
        )
        self.listener = listener

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process, not to one of its two listeners."""
        yield

    async def serve_here(self) -> None:
        """Serve until told to stop."""
        await self.serve(sockets=[self.listener])


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        ConfigurationError: the address is not ours, or taken.
    """
    try:
        family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(
            family, socket.SOCK_STREAM, socket.IPPROTO_TCP
        )  # else answers wait for Nagle on asyncio
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as exc:
        raise ConfigurationError(f"{host}:{port}", [f"cannot listen: {exc.strerror or exc}"]) from exc
    listener.setblocking(False)
    return listener


def allow_open_files(limits: LimitSettings, listeners: int = 2) -> None:
    """Let this process hold as many files as its connections may become; a system that does not allow it is noted."""
    wanted = listeners * limits.connections_max + FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    if raised < wanted:
        log.warning("listener.files", allowed=raised, wanted=wanted, setting="gateway.limits.connections_max")
