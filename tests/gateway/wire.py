"""HTTP/1.1 as bytes: sends what no decent client would send, and judges what comes back.

`Wire` keeps one connection; `judge` says in a word what is wrong with an answer of the SCIM listener, or "".
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import msgspec
from msgspec import Struct

ANSWER_WAIT_S = 10.0
PART_BYTES = 65_536
ERROR = "urn:ietf:params:scim:api:messages:2.0:Error"
SCIM = "application/scim+json"


class Shot(Struct, frozen=True, kw_only=True):
    """One request.

    Args:
        kind: what it belongs to, for the counts.
        aims: what it attacks, in a word.
        raw: the whole request as it goes out on a connection of its own; empty: made from the rest.
        answers_max: how many answers `raw` may get; each further one is somebody else's.
        silent: nothing at all may come back, because the request never ends.
    """

    kind: str
    aims: str = ""
    method: bytes = b"GET"
    path: bytes = b"/"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes | None = None
    raw: bytes = b""
    answers_max: int = 1
    silent: bool = False

    def wire(self, token: str, host: bytes = b"127.0.0.1") -> bytes:
        """The bytes; `{token}` in a header or in `raw` stands for the token."""
        held = token.encode()
        if self.raw:
            return self.raw.replace(b"{token}", held)
        names = {name.lower() for name, _ in self.headers}
        lines = [self.method + b" " + self.path + b" HTTP/1.1"]
        if b"host" not in names:
            lines.append(b"Host: " + host)
        if b"authorization" not in names:
            lines.append(b"Authorization: Bearer " + held)
        if self.body is not None:
            if b"content-type" not in names:
                lines.append(b"Content-Type: application/scim+json")
            if b"content-length" not in names and b"transfer-encoding" not in names:
                lines.append(b"Content-Length: %d" % len(self.body))
        lines += [name + b": " + value.replace(b"{token}", held) for name, value in self.headers if value is not None]
        return b"\r\n".join(lines) + b"\r\n\r\n" + (self.body or b"")


class Heard(Struct):
    """One answer. `problem` says why there is none."""

    status: int = 0
    headers: dict[str, str] = {}
    body: bytes = b""
    took_s: float = 0.0
    problem: str = ""


class Wire:
    """One connection, opened anew whenever it was closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, data: bytes, *, head: bool = False, wait_s: float = ANSWER_WAIT_S) -> Heard:
        """Send one request and read its answer; what was closed under our hands is tried once more."""
        started = time.perf_counter()
        for fresh in (self._streams is None, True):
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            try:
                async with asyncio.timeout(wait_s):
                    writer.write(data)
                    heard = await read_answer(reader, head=head)
            except TimeoutError:
                await self.close()
                return Heard(problem="hang", took_s=time.perf_counter() - started)
            except (ConnectionError, asyncio.IncompleteReadError, ValueError) as error:
                await self.close()
                if fresh:
                    problem = f"no answer: {type(error).__name__}"
                    return Heard(problem=problem, took_s=time.perf_counter() - started)
                continue
            heard.took_s = time.perf_counter() - started
            if heard.headers.get("connection", "").lower() == "close":
                await self.close()
            return heard
        raise AssertionError("unreachable")

    async def alone(self, data: bytes, *, quiet_s: float = 0.3, wait_s: float = ANSWER_WAIT_S) -> list[Heard]:
        """Send bytes on a connection of their own and read every answer, until it closes or falls silent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        heard: list[Heard] = []
        started = time.perf_counter()
        try:
            writer.write(data)
            with contextlib.suppress(TimeoutError, ConnectionError, asyncio.IncompleteReadError):
                while True:
                    async with asyncio.timeout(quiet_s if heard else wait_s):
                        answer = await read_answer(reader, head=False)
                    answer.took_s = time.perf_counter() - started
                    heard.append(answer)
            return heard
        finally:
            writer.close()

    async def close(self) -> None:
        """End the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def read_answer(reader: asyncio.StreamReader, *, head: bool) -> Heard:
    """One answer, by its length; our server never sends chunks.

    Raises:
        IncompleteReadError: the connection ended first.
        ValueError: this is no answer.
    """
    top = await reader.readuntil(b"\r\n\r\n")
    first, *lines = top[:-4].split(b"\r\n")
    status = int(first.split(b" ", 2)[1])
    if status == 100:
        return await read_answer(reader, head=head)
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()
    length = int(headers.get("content-length", "0"))
    bodiless = head or status in (204, 304)
    body = await reader.readexactly(length) if length and not bodiless else b""
    return Heard(status, headers, body)


def judge(heard: Heard, *, head: bool = False, token_endpoint: bool = False) -> str:
    """What is wrong with an answer, "" when nothing is: 5xx, no answer, an error that is none of SCIM (RFC 7644 section 3.12)."""
    if heard.problem:
        return heard.problem
    if heard.status >= 500:
        return f"{heard.status}"
    if head or heard.status in (202, 204, 304):
        return "a body where none may be" if heard.body else ""
    media_type = heard.headers.get("content-type", "").partition(";")[0]
    try:
        document: Any = msgspec.json.decode(heard.body)
    except msgspec.DecodeError:
        return "no JSON"
    if not isinstance(document, dict):
        return "no object"
    if heard.status < 400:
        return "" if media_type in (SCIM, "application/json") else f"media type {media_type}"
    if token_endpoint and media_type == "application/json":
        return "" if isinstance(document.get("error"), str) else "no OAuth error"
    if media_type != SCIM:
        return f"media type {media_type}"
    if document.get("schemas") != [ERROR] or document.get("status") != str(heard.status) or not document.get("detail"):
        return "no SCIM error"
    return ""
