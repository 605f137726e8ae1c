"""The one way out to a product, against real servers on 127.0.0.1 that answer, hang, cut and lie."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import ipaddress
import socket
import ssl
import struct
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from connectors.contract import Delivery, Endpoint, VendorResponse
from connectors.http import (
    BODY_BYTES_CEILING,
    BODY_BYTES_MAX,
    MEANING,
    RETRY_AFTER_MAX_S,
    TEXT_CHARS_MAX,
    Basic,
    Bearer,
    ClientCredentials,
    ForbiddenAddress,
    HttpClient,
    Pace,
    PublicResolver,
    address_problem,
    clean,
    error_of,
    is_allowed_address,
    retry_after,
)
from schemas.config import Secret
from schemas.errors import (
    ConfigurationError,
    Conflict,
    ConnectorBug,
    Gone,
    Misconfigured,
    RateLimited,
    Rejected,
    Unavailable,
)
from schemas.logs import register_secret
from schemas.specs import RateLimit

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    """A product that answers every call with `answer`."""
    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def raw_serving(
    converse: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A product that speaks (or does not speak) on the bare connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await converse(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def request_head(reader: asyncio.StreamReader) -> bytes:
    """The first line and headers of a request, and its body when it names a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            await reader.readexactly(int(line.split(b":")[1]))
    return head


@contextlib.asynccontextmanager
async def client(url: str, **options: Any) -> AsyncIterator[HttpClient]:
    """A client of the emulated product."""
    http = HttpClient(url, product="Product", allow_loopback=True, **options)
    try:
        yield http
    finally:
        await http.close()


def answering(status: int, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    """The same answer every time."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        return (
            web.json_response(body, status=status, headers=headers)
            if body is not None
            else web.Response(status=status, headers=headers)
        )

    return answer


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def refused(http: HttpClient, method: str = "POST", path: str = "/Users", **options: Any) -> Any:
    """The error of a call that must fail."""
    with pytest.raises((Rejected, Gone, Misconfigured, RateLimited, Unavailable)) as caught:
        await http.request(method, path, **options)
    return caught.value


# What a call says and records -----------------------------------------------------------------------------------------


async def test_path_parts_and_query_travel_encoded_and_only_the_template_is_recorded() -> None:
    """S9, P9: a vendor id cannot leave its place in the path, and steps carry no values."""
    seen: list[str] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request.raw_path)
        return web.json_response({"ok": True})

    ctx = Delivery()
    async with serving(answer) as url, client(url) as http:
        await http.request(
            "GET", "/Users/{id}", ctx=ctx, parts={"id": "a/../b?c#d"}, query={"filter": 'userName eq "a+b@example.com"'}
        )
    assert seen == ["/Users/a%2F..%2Fb%3Fc%23d?filter=userName%20eq%20%22a%2Bb%40example.com%22"]
    (step,) = ctx.steps
    assert (step.method, step.path, step.status, step.error) == ("GET", "/Users/{id}", 200, "")


async def test_the_idempotency_key_of_a_call_is_in_its_step() -> None:
    """An attempt's steps carry the idempotency key."""
    ctx = Delivery()
    async with serving(answering(201, {"id": "1"})) as url, client(url) as http:
        await http.request("POST", "/Users", ctx=ctx, json={}, headers={"Idempotency-Key": "E-1:create"})
    assert ctx.steps[0].key == "E-1:create"


async def test_the_trace_of_a_delivery_goes_along_with_its_calls_and_with_no_other() -> None:
    """W3C Trace Context: what Entra's request began is one trace as far as the product."""
    seen: list[str | None] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request.headers.get("traceparent"))
        return web.json_response({})

    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with serving(answer) as url, client(url) as http:
        await http.request("GET", "/Users", ctx=Delivery(traceparent=trace), headers={"Accept": "application/json"})
        await http.request("GET", "/Users", ctx=Delivery())
        await http.request("GET", "/Users")
    assert seen == [trace, None, None]


@pytest.mark.parametrize("bad", ["", ".", ".."])
async def test_an_id_that_would_change_the_path_is_never_sent(bad: str) -> None:
    """S9: encoded paths; dots alone survive encoding and would climb."""
    async with client("http://127.0.0.1:1") as http:
        with pytest.raises(ConnectorBug):
            await http.request("DELETE", "/Users/{id}", parts={"id": bad})


async def test_an_empty_answer_is_a_body_of_none() -> None:
    """Contract: VendorResponse.body is None when empty."""
    async with serving(answering(204)) as url, client(url) as http:
        assert (await http.request("DELETE", "/Users/{id}", parts={"id": "1"})).body is None


async def test_an_expected_status_is_an_answer() -> None:
    """Contract: statuses in `expect` come back to the connector with their body."""
    async with serving(answering(409, {"userId": "u-1"})) as url, client(url) as http:
        answer = await http.request("POST", "/v1/users", json={}, expect=(409,))
    assert (answer.status, answer.body) == (409, {"userId": "u-1"})


# What a status means --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", sorted(MEANING))
async def test_each_listed_status_raises_the_error_of_the_table(status: int) -> None:
    """One table decides."""
    async with serving(answering(status, {"detail": "no"})) as url, client(url) as http:
        error = await refused(http, "PUT", "/Users/{id}", parts={"id": "1"}, json={})
    assert (type(error), error.code) == MEANING[status]
    assert str(error).startswith(f"Product answered {status} to PUT /Users/{{id}}: no")


@pytest.mark.parametrize(
    ("status", "kind"), [(302, Misconfigured), (418, Rejected), (507, Unavailable)], ids=["redirect", "4xx", "5xx"]
)
async def test_statuses_that_are_not_listed_follow_their_class(status: int, kind: type[Exception]) -> None:
    """Vendor page 0.4: other 4xx are permanent; S9: a redirect is a wrong address."""
    async with serving(answering(status, {}, {"Location": "http://127.0.0.1:1/"})) as url, client(url) as http:
        error = await refused(http)
    assert type(error) is kind


async def test_a_redirect_is_not_followed() -> None:
    """S9: no redirects, or a product could send our credentials elsewhere."""
    calls = 0

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with serving(answer) as url, client(url) as http:
        await refused(http, "GET")
    assert calls == 1


async def test_not_found_on_a_path_without_an_id_is_a_wrong_address() -> None:
    """A wrong base URL must not look like accounts that are gone."""
    async with serving(answering(404, {})) as url, client(url) as http:
        error = await refused(http, "GET", "/Users")
    assert isinstance(error, Misconfigured)
    assert error.code == "wrong_address"


async def test_a_gateway_timeout_on_a_write_is_ambiguous_and_on_a_read_is_not() -> None:
    """504 says that our request was sent on and nobody knows what became of it."""
    async with serving(answering(504, {})) as url, client(url) as http:
        assert (await refused(http, "POST", json={})).ambiguous
        assert not (await refused(http, "GET")).ambiguous


NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("999999", RETRY_AFTER_MAX_S),
        ("Fri, 20 Nov 2026 12:00:30 GMT", 30.0),
        ("Fri, 20 Nov 2026 11:00:00 GMT", 0.0),
        ("Sat, 21 Nov 2026 12:00:00 GMT", RETRY_AFTER_MAX_S),
        ("Friday, 20-Nov-26 12:00:30 GMT", 30.0),
        ("Fri Nov 20 12:00:30 2026", 30.0),
        ("9" * 400, RETRY_AFTER_MAX_S),
        ("\uff15", None),
        ("7, 8", None),
        ("1e3", None),
        ("nan", None),
        ("inf", None),
        ("Fri, 31 Feb 2026 00:00:00 GMT", None),
        ("Fri, 20 Nov 2026 12:00:30 +9999", None),
        ("(" * 8_000, None),
        ("soon", None),
        ("-5", None),
        ("", None),
        ("99999999999999999999 Jan 2026 00:00:00 GMT", None),
        ("Wed, 21 Oct 99999 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_read_in_both_forms_and_capped(text: str, seconds: float | None) -> None:
    """RFC 9110 section 10.2.3; A11: capped by configuration."""
    assert retry_after({"retry-after": text}, now=NOW) == seconds


async def test_a_429_names_its_wait_or_the_limits_own_interval() -> None:
    """Talkdesk 1.4: on 429 wait Retry-After, or a second when there is none."""
    async with serving(answering(429, {}, {"Retry-After": "17"})) as url, client(url) as http:
        assert (await refused(http)).retry_after_s == 17.0
    async with (
        serving(answering(429, {})) as url,
        client(url, rate_limit=RateLimit(calls=100, per_s=1.0)) as http,
    ):
        assert (await refused(http)).retry_after_s == 1.0


# Nothing secret or personal -------------------------------------------------------------------------------------------


def test_a_vendors_text_is_cut_and_loses_numbers_addresses_and_tokens() -> None:
    """A10, S9, S11."""
    said = clean(
        "User +44 7400 123456\u202e\n(ann.lee@example.com) used Bearer abc123xyz on 2026-03-31 for role 'Agent'"
    )
    assert said == "User [number] ([address]) used Bearer [redacted] on 2026-03-31 for role 'Agent'"
    assert len(clean("word " * 1000)) == TEXT_CHARS_MAX
    assert clean("x" * 40) == "[…]"
    assert clean({"a": 1}) == ""
    assert clean("no /users/ann%40example.com, 447\u2011400_123\u2013456") == "no [address], [number]"
    assert clean("\x1b[31m<b>\u2028\x00") == "[31m<b>"
    register_secret("Half-A-Secret-42")
    assert clean(" " * 1_590 + "Half-A-Secret-42") == "[redacted]", "cut in two it would not be recognised"


async def test_an_error_never_shows_the_credential_even_when_the_product_repeats_it(tmp_path: Path) -> None:
    """P9: no secrets in errors."""
    file = tmp_path / "token"
    file.write_text("short-secret")
    file.chmod(0o600)
    async with (
        serving(answering(400, {"message": "token short-secret is not allowed"})) as url,
        client(url, auth=Bearer(Secret(file=str(file)))) as http,
    ):
        error = await refused(http)
    assert "short-secret" not in str(error)
    assert "is not allowed" in str(error)


def test_the_text_of_a_nested_error_object_is_found() -> None:
    """Talkdesk answers SCIM details, TeleMessage messages, token hosts error descriptions."""
    answer = VendorResponse(status=400, body={"error": {"message": "no such role"}}, headers={})
    assert "no such role" in str(error_of("P", "POST", "/x", answer))


# Lost answers ---------------------------------------------------------------------------------------------------------


async def test_a_refused_connection_is_not_ambiguous() -> None:
    """Refused before anything was sent is transient."""
    ctx = Delivery()
    async with client(f"http://127.0.0.1:{free_port()}") as http:
        error = await refused(http, ctx=ctx, json={})
    assert (error.code, error.ambiguous) == ("unreachable", False)
    assert (ctx.steps[0].status, ctx.steps[0].error) == (0, "unreachable")


async def test_a_connection_cut_after_the_request_is_ambiguous_for_a_write_only() -> None:
    """Reset after send, look before writing again."""

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with raw_serving(cut) as url, client(url) as http:
        assert (await refused(http, "POST", json={})).ambiguous
        assert (await refused(http, "PUT", json={})).ambiguous
        assert not (await refused(http, "GET")).ambiguous


async def test_no_answer_within_the_limit_is_ambiguous_for_a_write() -> None:
    """R7: no call lasts longer than its limit, whatever the product does."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        await reader.read()

    async with raw_serving(hang) as url, client(url, call_s=0.2) as http:
        started = time.monotonic()
        error = await refused(http, "POST", json={})
        assert time.monotonic() - started < 5.0
    assert (error.code, error.ambiguous) == ("timeout", True)


async def test_a_body_that_never_ends_meets_the_same_limit() -> None:
    """R7: the limit covers the last byte, not the first."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 1000\r\n\r\n{")
        await reader.read()

    async with raw_serving(drip) as url, client(url, call_s=0.2) as http:
        error = await refused(http, "POST", json={})
    assert (error.code, error.ambiguous) == ("timeout", True)


@pytest.mark.parametrize("body", [b'{"id": "u-', b"<html></html>", b"\xff\xfe", b"[" * 100_000])
async def test_an_unreadable_success_on_a_write_is_ambiguous(body: bytes) -> None:
    """An answer of success that cannot be read tells nothing."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=201, body=body)

    async with serving(answer) as url, client(url) as http:
        error = await refused(http, "POST", json={})
        assert (error.code, error.ambiguous) == ("malformed", True)
        assert not (await refused(http, "GET")).ambiguous


async def test_half_a_body_is_a_lost_answer_and_half_an_error_is_still_the_error() -> None:
    """Vendor page 0.5, fault `truncate`."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await request_head(reader)
        status = b"201 Created" if head.startswith(b"POST") else b"409 Conflict"
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 100\r\nRetry-After: 3\r\n\r\n{")
        await writer.drain()

    async with raw_serving(converse) as url, client(url) as http:
        lost = await refused(http, "POST", json={})
        assert isinstance(lost, Unavailable)
        assert lost.ambiguous
        assert isinstance(await refused(http, "PUT", json={}), Conflict)


async def test_an_html_page_with_an_error_status_is_the_status() -> None:
    """Vendor page 0.5, fault `html`: a 502 page instead of JSON."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=502, text="<html>bad gateway</html>", content_type="text/html")

    async with serving(answer) as url, client(url) as http:
        error = await refused(http)
    assert (error.code, error.ambiguous) == ("bad_gateway", False)
    assert "<html>" not in str(error)


# Bounds ---------------------------------------------------------------------------------------------------------------


async def test_a_compressed_answer_is_read_and_a_bomb_is_not() -> None:
    """S9: size and decompression limits."""
    bodies = [gzip.compress(b'{"id": "1"}'), gzip.compress(b"0" * 50_000_000)]

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=bodies.pop(0), headers={"Content-Encoding": "gzip"})

    async with serving(answer) as url, client(url) as http:
        assert (await http.request("GET", "/Users")).body == {"id": "1"}
        error = await refused(http, "GET")
    assert error.code == "malformed"


async def test_an_answer_above_the_limit_is_refused() -> None:
    """S9: body limit."""
    async with serving(answering(200, {"x": "y" * 2_000})) as url, client(url, body_bytes_max=1_000) as http:
        assert (await refused(http, "GET")).code == "malformed"


async def test_an_endpoint_may_declare_larger_answers_up_to_the_ceiling() -> None:
    """S9: a product that lists everything in one answer is read, and no declaration goes beyond what a worker can hold."""
    async with serving(answering(200, {"x": "y" * (BODY_BYTES_MAX + 1)})) as url:
        for declared, is_read in ((0, False), (2 * BODY_BYTES_MAX, True)):
            endpoint = Endpoint(base_url=url, allow_loopback=True, body_bytes_max=declared)
            http = HttpClient.open(endpoint, product="Product")
            if is_read:
                assert len((await http.request("GET", "/Users")).body["x"]) == BODY_BYTES_MAX + 1
            else:
                error = await refused(http, "GET")
                assert (error.code, f"more than {BODY_BYTES_MAX} bytes" in error.message) == ("malformed", True)
            await http.close()
    async with serving(answering(200, {"x": "y" * BODY_BYTES_CEILING})) as url:
        http = HttpClient.open(Endpoint(base_url=url, allow_loopback=True, body_bytes_max=10**12), product="Product")
        assert (await refused(http, "GET")).code == "malformed"
        await http.close()


async def test_a_name_and_a_password_go_with_every_call_and_a_rotated_password_is_read_again(tmp_path: Path) -> None:
    """RFC 7617 section 2; the password is a reference, and no error shows it."""
    file = tmp_path / "password"
    file.write_text("old-pass:word")
    file.chmod(0o600)
    seen: list[str] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")).decode())
        return web.json_response({"message": f"no: {seen[-1]}"}, status=200 if "new-pass" in seen[-1] else 401)

    async with serving(answer) as url, client(url, auth=Basic("svc", Secret(file=str(file)))) as http:
        error = await refused(http, "GET")
        file.write_text("new-pass:word")
        assert (await http.request("GET", "/Users")).status == 200
    assert seen == ["svc:old-pass:word", "svc:old-pass:word", "svc:new-pass:word"]
    assert (error.code, "pass" in error.message) == ("unauthorized", False)


async def test_no_call_starts_after_the_deadline() -> None:
    """Contract: Delivery.deadline."""
    ctx = Delivery(deadline=time.monotonic() - 1)
    async with serving(answering(200, {})) as url, client(url) as http:
        error = await refused(http, ctx=ctx, json={})
    assert (error.code, error.ambiguous, ctx.steps) == ("deadline", False, [])


async def test_the_pace_holds_in_any_window_bursts_included() -> None:
    """A11; Talkdesk allows four calls in any second, and a leaky bucket would let eight through."""
    starts: list[float] = []
    pace = Pace(RateLimit(calls=3, per_s=0.2))

    async def go() -> None:
        await pace.wait()
        starts.append(time.monotonic())

    await asyncio.gather(*(go() for _ in range(8)))
    assert all(later - earlier >= 0.2 for earlier, later in zip(starts, starts[3:], strict=False))
    assert starts[2] - starts[0] < 0.1, "a burst within the limit does not wait"


# Hostile answers ------------------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
GZIPPED = OK + b"Content-Encoding: gzip\r\n\r\n"
SAID = "Zx9SaidByTheProduct"


def whole(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """An answer that keeps the rules of HTTP."""
    lines = [b"HTTP/1.1 " + status, *headers, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


UNUSABLE: dict[str, bytes] = {
    "nothing": b"",
    "another protocol": b"SSH-2.0-OpenSSH_9.9\r\n",
    "HTTP/0.9": b"<html></html>",
    "an HTTP of the future": b"HTTP/9.9 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "status 000": whole(b"{}", status=b"000 None"),
    "status 1000": whole(b"{}", status=b"1000 Much"),
    "status 101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n{}",
    "a negative length": OK + b"Content-Length: -1\r\n\r\n{}",
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}xxx",
    "a list of lengths": OK + b"Content-Length: 2, 5\r\n\r\n{}xxx",
    "a length beyond counting": OK + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "a length too long": OK + b"Content-Length: 500\r\n\r\n{}",
    "length and chunks": OK + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a chunk of garbage": CHUNKED + b"ZZ\r\n{}\r\n0\r\n\r\n",
    "a chunk beyond counting": CHUNKED + b"ffffffffffffffffff\r\n{}",
    "a chunk that does not end": CHUNKED + b"7fffffffffffffff\r\n{}",
    "a negative chunk": CHUNKED + b"-2\r\n{}",
    "chunks without an end": CHUNKED + b"2\r\n{}\r\n",
    "a header of 9000 characters": OK + b"X-A: " + b"b" * 9000 + b"\r\n\r\n{}",
    "a thousand headers": OK + b"".join(b"X-%d: b\r\n" % number for number in range(1000)) + b"\r\n{}",
    "a header without a colon": OK + b"nonsense\r\nContent-Length: 2\r\n\r\n{}",
    "a header with NUL": OK + b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}",
    "a gzip bomb": whole(gzip.compress(b" " * 20_000_000), b"Content-Encoding: gzip"),
    "a deflate bomb": whole(zlib.compress(b" " * 20_000_000), b"Content-Encoding: deflate"),
    "brotli": whole(b"{}", b"Content-Encoding: br"),
    "gzip in gzip": whole(gzip.compress(gzip.compress(b"{}")), b"Content-Encoding: gzip, gzip"),
    "gzip in gzip, two headers": whole(
        gzip.compress(gzip.compress(b"{}")), b"Content-Encoding: gzip", b"Content-Encoding: gzip"
    ),
    "no gzip at all": whole(b"{}", b"Content-Encoding: gzip"),
    "invalid UTF-8": whole(b'{"id":"\xff"}'),
    "UTF-16": whole('{"id":"1"}'.encode("utf-16")),
    "half a surrogate pair": whole(b'{"id":"\\ud800"}'),
    "deep lists": whole(b"[" * 200_000),
    "deep objects": whole(b'{"a":' * 100_000),
    "a float beyond counting": whole(b'{"id":1e400}'),
    "an integer of 5000 digits": whole(b'{"id":' + b"9" * 5_000 + b"}"),
    "NaN": whole(b'{"id":NaN}'),
    "something behind the JSON": whole(b'{"id":"1"}x'),
    "two JSON documents": whole(b'{"id":"1"}{"id":"2"}'),
}
UNUSABLE_ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "provisional answers": (b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 1000),
    "headers": (OK, b"X-A: bbbbbbbbbbbbbb\r\n" * 1000),
    "one header": (OK + b"X-A: ", b"b" * 65_536),
    "the reason": (b"HTTP/1.1 200 ", b"O" * 65_536),
    "a body without a length": (OK + b"\r\n", b" " * 65_536),
    "chunks": (CHUNKED, b"10000\r\n" + b" " * 65_536 + b"\r\n"),
    "a chunk's extension": (CHUNKED + b"2;", b"a=b;" * 16_000),
    "trailers": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"X-A: bbbbbbbbbbb\r\n" * 1000),
    "compressed nothing": (GZIPPED + b"\x1f\x8b\x08\0\0\0\0\0\0\3", b"\0\0\0\xff\xff" * 13_000),
    "a gzip file's name": (GZIPPED + b"\x1f\x8b\x08\x08\0\0\0\0\0\3", b"x" * 65_536),
    "what follows gzip": (GZIPPED + gzip.compress(b"{}"), b"x" * 65_536),
}


@pytest.mark.parametrize("name", [*UNUSABLE, *UNUSABLE_ENDLESS])
async def test_an_answer_that_breaks_the_rules_is_a_lost_answer_and_the_next_call_is_not_harmed(name: str) -> None:
    """Section 0.4: T, and looked up before the next write; S9: bounded in time and size, whatever is sent and however long."""
    first, again = UNUSABLE_ENDLESS.get(name) or (UNUSABLE[name], b"")
    head, _, body = first.partition(b"\r\n\r\n")
    ends_itself = b"Content-Length: %d" % len(body) in head
    ends_with_the_time = name in {"a chunk's extension", "provisional answers"}
    sent_bytes = 0

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent_bytes
        while b"/next" not in await request_head(reader):
            writer.write(first)
            while again:
                writer.write(again)
                sent_bytes += len(again)
                await writer.drain()
            if not ends_itself:
                return
        writer.write(whole(b'{"good": true}'))

    started = time.monotonic()
    async with raw_serving(converse) as url, client(url, call_s=0.5 if ends_with_the_time else 5.0) as http:
        ctx = Delivery()
        error = await refused(http, "POST", json={}, ctx=ctx)
        assert (type(error), error.ambiguous) == (Unavailable, True)
        assert error.code in {"malformed", "connection_lost", "timeout"}
        assert len(ctx.steps) == 1
        assert time.monotonic() - started < 10.0
        if not ends_with_the_time:
            assert sent_bytes < 32 * BODY_BYTES_MAX
        assert (await http.request("GET", "/next")).body == {"good": True}


async def test_answers_that_are_odd_and_still_clear_are_read() -> None:
    """RFC 8259 section 8.1 (a byte order mark may be ignored) and section 4 (the last of equal names); RFC 9110 section 15.2."""
    answers = [
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 50 + whole(b'{"id": "1"}'),
        whole(b'\xef\xbb\xbf{"id": "1"}'),
        whole(b'{"id": "0", "id": "1"}'),
        whole(b'{"id": "1"}', b"Set-Cookie: session=1; Path=/", b"Content-Type: text/html"),
    ]
    heads: list[bytes] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append(await request_head(reader))
            writer.write(answers[len(heads) - 1] if len(heads) <= len(answers) else whole(b'{"id": "1"}'))

    async with raw_serving(converse) as url, client(url) as http:
        for _ in range(len(answers) + 1):
            assert (await http.request("GET", "/Users")).body == {"id": "1"}
    assert b"cookie" not in b"".join(heads).lower(), "a product's cookie is never sent, to it or to others"


async def test_an_answer_nobody_asked_for_is_never_taken_for_the_next_calls() -> None:
    """I11: answers shifted by one would write one person's account id to another person."""
    stale = asyncio.Event()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = 0
        while True:
            head = await request_head(reader)
            asked += 1
            path = head.split(b" ")[1]
            writer.write(whole(b'{"path": "%s"}' % path))
            await writer.drain()
            if path == b"/first":
                writer.write(whole(b'{"path": "somebody else"}'))
                await writer.drain()
                stale.set()

    async with raw_serving(converse) as url, client(url) as http:
        assert (await http.request("GET", "/first")).body == {"path": "/first"}
        await stale.wait()
        for _ in range(20):  # let the second answer arrive on the kept connection
            await asyncio.sleep(0)
        for path in ("/second", "/third"):
            with contextlib.suppress(Unavailable):
                assert (await http.request("GET", path)).body == {"path": path}


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "http://169.254.169.254/latest", "//evil.example", "gopher://x", "\x7f:", "/again"],
)
@pytest.mark.parametrize("status", [300, 301, 303, 307, 308])
async def test_no_redirect_leads_anywhere(status: int, location: str) -> None:
    """S9: the only host that is called is the configured one, and only where the connector says."""
    heads: list[bytes] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await request_head(reader))
        writer.write(whole(b"{}", b"Location: " + location.encode("latin-1"), status=b"%d Moved" % status))

    async with raw_serving(converse) as url, client(url) as http:
        error = await refused(http, "GET")
    assert isinstance(error, (Misconfigured, Unavailable))
    assert len(heads) == 1
    assert location not in error.message


@pytest.mark.parametrize(
    ("part", "sent"),
    [
        ("a\r\nHost: evil", "a%0D%0AHost%3A%20evil"),
        ("%2e%2e%2f", "%252e%252e%252f"),
        ("..\\..", "..%5C.."),
        ("a\0b\x7f", "a%00b%7F"),
        ("ü\u202e\u2028", "%C3%BC%E2%80%AE%E2%80%A8"),
        ("@evil.example", "%40evil.example"),
        ("a;b=c&d", "a%3Bb%3Dc%26d"),
        ("*", "%2A"),
    ],
)
async def test_a_part_of_a_path_stays_in_its_place_whatever_it_holds(part: str, sent: str) -> None:
    """S9: encoded whole, so that one id is one segment; the same holds for a query."""
    lines: list[bytes] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append((await request_head(reader)).split(b"\r\n")[0])
        writer.write(whole(b"{}"))

    async with raw_serving(converse) as url, client(url) as http:
        await http.request("GET", "/Users/{id}/x", parts={"id": part}, query={"q": part})
    assert lines == [f"GET /Users/{sent}/x?q={sent} HTTP/1.1".encode()]


async def test_a_header_that_would_begin_another_line_is_never_sent(tmp_path: Path) -> None:
    """S9: no value of a connector, a file or a token endpoint can add a header."""
    file = tmp_path / "token"
    file.write_text("abc\r\nX-Evil: 1")
    file.chmod(0o600)
    calls = 0

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        return web.json_response({"access_token": "abc\r\nX-Evil: 1", "expires_in": 600})

    async with serving(answer) as url:
        async with client(url) as http:
            with pytest.raises(ConnectorBug):
                await http.request("GET", "/Users", headers={"If-Match": 'W/"1"\r\nX-Evil: 1'})
        async with client(url, auth=Bearer(Secret(file=str(file)))) as http:
            assert (await refused(http)).code == "no_credential"
        assert calls == 0
        file.write_text("client-secret")
        issued = ClientCredentials(f"{url}/token", client_id="id", client_secret=Secret(file=str(file)), form={})
        async with client(url, auth=issued) as http:
            assert (await refused(http, "POST", json={})).code == "malformed"
        assert calls == 1


@pytest.mark.parametrize("life", [10**400, -1, 0, "soon", None, True, 1e308, []])
async def test_however_long_a_token_is_said_to_live_it_is_used(tmp_path: Path, life: Any) -> None:
    """RFC 6749 section 5.1: expires_in is a number; anything else must not stop a target."""
    file = tmp_path / "secret"
    file.write_text("client-secret")
    file.chmod(0o600)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"access_token": "token-1", "expires_in": life})

    async with serving(answer) as url:
        auth = ClientCredentials(f"{url}/token", client_id="id", client_secret=Secret(file=str(file)), form={})
        async with client(url, auth=auth) as http:
            assert (await http.request("GET", "/Users")).status == 200


async def test_neither_proxies_nor_credentials_of_the_environment_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S9: the way out is what the settings say; a proxy of the shell or a .netrc would take credentials elsewhere."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login x password y\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    seen: list[str | None] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({})

    async with serving(answer) as url, client(url) as http:
        await http.request("GET", "/Users")
    assert seen == [None]


async def test_a_certificate_nobody_vouches_for_ends_the_call_before_anything_is_sent(tmp_path: Path) -> None:
    """S9 and section 0.4: TLS is verified, and its failure is T."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "server.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    heard: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        async with client(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}") as http:
            error = await refused(http, "POST", json={})
    finally:
        server.close()
    assert (error.code, error.ambiguous) == ("unreachable", False)
    assert "no trusted TLS connection" in error.message
    assert b"".join(heard) == b""


# Repeats and the hook -------------------------------------------------------------------------------------------------


class Flaky:
    """Answers `status` for the next `failures` calls, then 200; counts."""

    def __init__(self, status: int = 503, headers: dict[str, str] | None = None) -> None:
        self.status = status
        self.headers = headers
        self.failures = 0
        self.calls = 0

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        self.calls += 1
        if self.failures:
            self.failures -= 1
            return web.json_response({}, status=self.status, headers=self.headers)
        return web.json_response({})


async def busy(http: HttpClient, calls: int) -> None:
    """Give the target enough calls in this minute to allow repeats."""
    for _ in range(calls):
        await http.request("GET", "/Users")


async def test_a_read_is_repeated_at_most_twice_when_the_target_is_busy_enough() -> None:
    """At most 2 in-attempt repeats."""
    flaky = Flaky()
    ctx = Delivery()
    async with serving(flaky) as url, client(url) as http:
        await busy(http, 40)
        flaky.failures = 2
        await http.request("GET", "/Users", ctx=ctx)
        assert [step.status for step in ctx.steps] == [503, 503, 200]
        await busy(http, 40)
        flaky.failures = 5
        await refused(http, "GET", ctx=ctx)
        assert [step.status for step in ctx.steps[3:]] == [503, 503, 503]


async def test_repeats_stay_under_a_tenth_of_the_last_minutes_calls() -> None:
    """No repeat may feed an outage."""
    flaky = Flaky()
    async with serving(flaky) as url, client(url) as http:
        flaky.failures = 1
        await refused(http, "GET")
        assert flaky.calls == 1
        await busy(http, 30)
        flaky.failures = 1000
        before = flaky.calls
        for _ in range(10):
            await refused(http, "GET")
        assert 10 < flaky.calls - before <= 14


async def test_a_write_is_repeated_only_when_called_idempotent() -> None:
    """Idempotent calls only."""
    flaky = Flaky()
    async with serving(flaky) as url, client(url) as http:
        await busy(http, 30)
        flaky.failures = 1
        await refused(http, "POST", json={})
        flaky.failures = 1
        await http.request("POST", "/Users", json={}, idempotent=True)


async def test_a_long_wait_is_left_to_the_dispatcher() -> None:
    """Stack notes 6: retry in the call only while the wait is short."""
    flaky = Flaky(429, {"Retry-After": "30"})
    async with serving(flaky) as url, client(url) as http:
        await busy(http, 30)
        flaky.failures = 1
        before = flaky.calls
        assert isinstance(await refused(http, "GET"), RateLimited)
        assert flaky.calls == before + 1


async def test_a_near_deadline_forbids_repeats() -> None:
    """Contract: a repeat must fit before the deadline."""
    flaky = Flaky()
    async with serving(flaky) as url, client(url) as http:
        await busy(http, 30)
        flaky.failures = 1
        await refused(http, "GET", ctx=Delivery(deadline=time.monotonic() + 1.0))


async def test_the_hook_stands_before_every_attempt_repeats_included() -> None:
    """R7: the check stands before every vendor call."""
    asked: list[Delivery | None] = []

    async def before(ctx: Delivery | None) -> None:
        asked.append(ctx)

    flaky = Flaky()
    ctx = Delivery()
    async with serving(flaky) as url, client(url, before_call=before) as http:
        await busy(http, 30)
        asked.clear()
        flaky.failures = 1
        await http.request("GET", "/Users", ctx=ctx)
    assert asked == [ctx, ctx]


async def test_when_the_hook_raises_nothing_is_sent_and_nothing_recorded() -> None:
    """T3: not ours any more means no call; the hook's own exception reaches the worker unchanged."""

    class NotOurs(Exception):
        pass

    async def before(ctx: Delivery | None) -> None:
        raise NotOurs

    flaky = Flaky()
    ctx = Delivery()
    async with serving(flaky) as url, client(url, before_call=before) as http:
        with pytest.raises(NotOurs):
            await http.request("PUT", "/Users", ctx=ctx, json={}, idempotent=True)
    assert (flaky.calls, ctx.steps) == (0, [])


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_a_closed_kept_connection_is_no_reason_for_a_hidden_second_call(method: str) -> None:
    """No other retry layer; the library would send these methods again by itself."""
    heads = []

    async def answer_once_per_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await request_head(reader))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        heads.append(await request_head(reader))  # then closes without an answer

    async with raw_serving(answer_once_per_connection) as url, client(url) as http:
        await http.request("GET", "/first")
        error = await refused(http, method, "/second")
    assert isinstance(error, Unavailable)
    assert sum(b"/second" in head for head in heads) == 1


# Credentials ----------------------------------------------------------------------------------------------------------


def token_checking(accepted: list[str]) -> tuple[Answer, list[str]]:
    """A product that accepts the tokens listed at the time; and what it was shown."""
    shown: list[str] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        shown.append(request.headers.get("Authorization", ""))
        return web.json_response({}, status=200 if shown[-1] in accepted else 401)

    return answer, shown


async def test_a_rotated_secret_file_takes_effect_without_a_restart(tmp_path: Path) -> None:
    """A broken credential heals at once on a new credential."""
    file = tmp_path / "token"
    file.write_text("first-token")
    file.chmod(0o600)
    accepted = ["Bearer first-token"]
    answer, shown = token_checking(accepted)
    async with serving(answer) as url, client(url, auth=Bearer(Secret(file=str(file)))) as http:
        await http.request("GET", "/Users")
        file.write_text("second-token")
        accepted[:] = ["Bearer second-token"]
        await http.request("POST", "/Users", json={})
    assert shown == ["Bearer first-token", "Bearer first-token", "Bearer second-token"]


async def test_a_secret_that_stays_wrong_is_shown_once_per_call(tmp_path: Path) -> None:
    """A9: rejected credentials are an outcome of their own."""
    file = tmp_path / "token"
    file.write_text("wrong-token")
    file.chmod(0o600)
    answer, shown = token_checking([])
    async with serving(answer) as url, client(url, auth=Bearer(Secret(file=str(file)))) as http:
        error = await refused(http)
    assert isinstance(error, Misconfigured)
    assert len(shown) == 1


async def test_a_secret_that_cannot_be_read_is_misconfigured(tmp_path: Path) -> None:
    """A missing file concerns every change of the target, not one person."""
    async with client("http://127.0.0.1:1", auth=Bearer(Secret(file=str(tmp_path / "none")))) as http:
        assert isinstance(await refused(http), Misconfigured)


class TokenHost:
    """A product with a token endpoint: issues t1, t2, … and accepts the newest unless told otherwise."""

    def __init__(self) -> None:
        self.issued = 0
        self.refuse_with: int | None = None
        self.valid = ""
        self.forms: list[str] = []

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/oauth/token":
            self.forms.append((await request.read()).decode())
            assert request.headers["Authorization"].startswith("Basic ")
            if self.refuse_with is not None:
                return web.json_response({"error": "invalid_client"}, status=self.refuse_with)
            self.issued += 1
            self.valid = f"token-{self.issued}"
            return web.json_response({"access_token": self.valid, "token_type": "bearer", "expires_in": 600})
        fine = request.headers.get("Authorization") == f"Bearer {self.valid}"
        return web.json_response({}, status=200 if fine else 401)


@contextlib.asynccontextmanager
async def with_tokens(tmp_path: Path, **options: Any) -> AsyncIterator[tuple[HttpClient, TokenHost]]:
    """A client that fetches its tokens from the host it talks to."""
    file = tmp_path / "secret"
    file.write_text("client-secret")
    file.chmod(0o600)
    host = TokenHost()
    async with serving(host) as url:
        auth = ClientCredentials(
            f"{url}/oauth/token", client_id="id", client_secret=Secret(file=str(file)), form={"scope": "scim"}
        )
        async with client(url, auth=auth, **options) as http:
            yield http, host


async def test_one_token_serves_many_calls_and_a_revoked_one_is_renewed_once(tmp_path: Path) -> None:
    """Brief of STS tokens (vendor page 1.2): long-lived, but may be revoked at any time."""
    async with with_tokens(tmp_path) as (http, host):
        await asyncio.gather(*(http.request("GET", "/Users") for _ in range(5)))
        assert host.issued == 1
        host.valid = "revoked meanwhile"
        await asyncio.gather(*(http.request("GET", "/Users") for _ in range(5)))
        assert host.issued == 2, "calls that met the same 401 share one new token"
    assert host.forms[0] == "grant_type=client_credentials&scope=scim"


@pytest.mark.parametrize("status", [400, 401])
async def test_refused_client_credentials_open_the_circuit(tmp_path: Path, status: int) -> None:
    """An invalid grant is an operator's matter, not an outage."""
    async with with_tokens(tmp_path) as (http, host):
        host.refuse_with = status
        error = await refused(http)
    assert (type(error), error.code) == (Misconfigured, "token_refused")
    assert "client-secret" not in str(error)


async def test_a_token_endpoint_that_is_away_leaves_nothing_ambiguous(tmp_path: Path) -> None:
    """Nothing was written at the product when only its token got lost."""
    async with with_tokens(tmp_path) as (http, host):
        host.refuse_with = 504
        error = await refused(http, "POST", json={})
    assert isinstance(error, Unavailable)
    assert not error.ambiguous


async def test_token_requests_pass_the_hook_too(tmp_path: Path) -> None:
    """Every outgoing call is preceded by the still-ours check."""
    asked = 0

    async def before(ctx: Delivery | None) -> None:
        nonlocal asked
        asked += 1

    async with with_tokens(tmp_path, before_call=before) as (http, _):
        await http.request("GET", "/Users")
    assert asked == 2


# Addresses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "172.16.5.4",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "168.63.129.16",
        "192.0.0.192",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "ff02::1",
        "198.51.100.7",
        "2001::1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a00:1",
        "64:ff9b:1::808:808",
        "2002:a00:1::1",
        "2002:a9fe:a9fe::",
        "::10.0.0.1",
        "::ffff:0:169.254.169.254",
        "fec0::1",
        "100::1",
        "5f00::1",
        "4000::1",
        "100.100.100.200",
    ],
)
def test_private_and_metadata_addresses_are_never_called(address: str) -> None:
    """S9: no private, loopback, link-local or metadata address, also when wrapped in IPv6."""
    assert not is_allowed_address(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "52.94.236.248", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_may_be_called(address: str) -> None:
    """S9 must not refuse products."""
    assert is_allowed_address(address)


@pytest.mark.parametrize(
    ("url", "allow_loopback"),
    [
        ("http://api.example.com", False),
        ("http://api.example.com", True),
        ("http://127.0.0.1:8080", False),
        ("https://127.0.0.1", False),
        ("https://localhost", False),
        ("https://10.1.2.3", True),
        ("https://2130706433", False),
        ("https://0x7f.1", False),
        ("https://127.1", False),
        ("https://[fe80::1]", True),
        ("https://user:secret@api.example.com", False),
        ("https://api.example.com/?x=1", False),
        ("ftp://api.example.com", False),
        ("https://", False),
        ("https://host:99999", False),
        ("https://host:0", False),
        ("https://host:80:443", False),
        ("https://host:\u0663", False),
        ("api.example.com", False),
        ("https://127\u30020\u30020\u30021", False),
        ("https://\u2460\u2461\u2466.0.0.1", False),
        ("https://\uff4cocalhost", False),
        ("https://ex\u00e4mple.com", False),
        ("https://localhost.", False),
        ("https://api.localhost", False),
        ("https://127.0.0.1.", True),
        ("https://0177.0.0.1", False),
        ("https://[::ffff:127.0.0.1]", False),
        ("https://[::127.0.0.1]", True),
        ("https://good.example\\evil.example", False),
        ("https://good.example\\@evil.example", False),
        ("https://api.exam\nple.com", False),
        ("https://api.example.com/a b", False),
        ("https://api.example.com/../admin", False),
        ("https://api.example.com/%2e%2e/admin", False),
        ("https://api.example.com/a%2fb", False),
        ("https://api%2eexample.com", False),
        ("https://a..b", False),
        ("https://" + "a" * 64 + ".com", False),
    ],
)
def test_addresses_that_must_not_be_configured_are_refused(url: str, allow_loopback: bool) -> None:
    """S9: https outside loopback, and loopback only for emulators."""
    assert address_problem(url, allow_loopback=allow_loopback)
    with pytest.raises(ConfigurationError):
        HttpClient(url, product="Product", allow_loopback=allow_loopback)


@pytest.mark.parametrize(
    ("url", "allow_loopback"),
    [
        ("https://api.example.com", False),
        ("https://api.example.com:8443/scim/v2", True),
        ("https://xn--exmple-cua.com/.well-known/v1.0", False),
        ("http://127.0.0.1:8080", True),
        ("http://[::1]:8080", True),
        ("http://localhost:8080", True),
    ],
)
def test_addresses_that_may_be_configured(url: str, allow_loopback: bool) -> None:
    """The rule leaves products and emulators."""
    assert address_problem(url, allow_loopback=allow_loopback) == ""


class Names(AbstractResolver):
    """A name server whose every name leads to the same addresses."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in self.addresses
        ]

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1"])
async def test_a_name_that_leads_to_a_forbidden_address_is_refused_at_connect(address: str) -> None:
    """S9: checked at connect, so that a changed DNS answer is no way in."""
    http = HttpClient("https://api.example.com", product="Product", names=Names(address))
    try:
        error = await refused(http, "GET")
    finally:
        await http.close()
    assert (type(error), error.code) == (Misconfigured, "forbidden_address")


async def test_a_name_that_leads_elsewhere_by_the_next_call_is_refused_then() -> None:
    """S9, DNS rebinding: every connection asks anew, and what was judged is what is connected to."""
    names = Names("127.0.0.1")

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({}, headers={"Connection": "close"})

    async with serving(answer) as url, client(url.replace("127.0.0.1", "localhost"), names=names) as http:
        await http.request("GET", "/Users")
        names.addresses = ("169.254.169.254",)
        assert (await refused(http, "GET")).code == "forbidden_address"


async def test_a_socket_is_made_for_judged_addresses_only() -> None:
    """S9: an address that no resolver was asked for, because it is spelled as one, meets the same rule."""
    async with client("http://127.0.0.1:1") as http:
        http._socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1))).close()
        for place in (("10.0.0.1", 443), ("fe80::1", 443, 0, 2), ("::ffff:169.254.169.254", 443, 0, 0)):
            with pytest.raises(ForbiddenAddress):
                http._socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", place))


async def test_only_the_public_addresses_of_a_name_are_used() -> None:
    """S9: a mixed answer keeps what may be called."""
    resolver = PublicResolver(allow_loopback=False, names=Names("10.0.0.1", "8.8.8.8"))
    assert [entry["host"] for entry in await resolver.resolve("api.example.com", 443)] == ["8.8.8.8"]


async def test_the_name_localhost_works_for_emulators() -> None:
    """allow_loopback permits names of this machine too."""
    async with serving(answering(200, {})) as url, client(url.replace("127.0.0.1", "localhost")) as http:
        assert (await http.request("GET", "/Users")).status == 200
