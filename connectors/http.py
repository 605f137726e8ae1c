"""The one way out to a product: limits, signing, address rules, recording, and one table from status to error.

Every outgoing attempt, repeats and token requests included, first passes the rate limit and the worker's `before_call` hook.
Nothing here redirects, follows links to other hosts, or talks to private addresses (security requirement S9); nothing here puts
a secret, an e-mail address or a telephone number into an error (A10, S11).
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import ipaddress
import random
import re
import socket
import time
import unicodedata
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt
from yarl import URL

from connectors.contract import Auth, Delivery, Endpoint, VendorHttp, VendorResponse
from schemas.config import Secret
from schemas.errors import (
    ConfigurationError,
    Conflict,
    ConnectorBug,
    ConnectorError,
    Gone,
    Misconfigured,
    RateLimited,
    Rejected,
    Unavailable,
)
from schemas.events import Step
from schemas.logs import logger, redact_text, register_secret
from schemas.specs import RateLimit
from schemas.topology import CALL_S

CONNECT_S = 5.0
"""Longest wait for a connection, name look-up and TLS included."""
KEEPALIVE_S = 4.0
"""Below the 5 s after which common servers close idle connections, so that a write rarely meets a closed one."""
BODY_BYTES_MAX = 1024 * 1024
"""Longest answer that is read, counted after decompression, unless the connector's endpoint declares another."""
BODY_BYTES_CEILING = 32 * 1024 * 1024
"""What no endpoint can go beyond: a worker runs many calls at once and holds each answer in memory."""
REPEATS_MAX = 2
"""In-attempt repeats of one idempotent call (reliability, section 6); everything longer is the dispatcher's retry."""
REPEAT_WAIT_FIRST_S = 0.2
REPEAT_WAIT_MAX_S = 2.0
REPEAT_SHARE_MAX = 0.1
"""Repeats stay below this share of the target's calls of the last minute, so that they never feed an outage."""
SHARE_WINDOW_S = 60.0
SHARE_CALLS_MAX = 10_000
RETRY_AFTER_MAX_S = 3600.0
RATE_JITTER_S = 0.05
"""Calls spaced correctly may bunch up on their way; this much is added to the product's own interval."""
TEXT_CHARS_MAX = 200
"""How much of a product's own message is repeated."""
TOKEN_MARGIN_S = 60.0
TOKEN_LIFE_MAX_S = 86_400.0
"""However long a token is said to live, a new one is got once a day."""

BeforeCall = Callable[[Delivery | None], Awaitable[None]]
"""Called right before every outgoing attempt; whatever it raises reaches the caller unchanged, and no call happens."""

MEANING: dict[int, tuple[type[ConnectorError], str]] = {
    400: (Rejected, "refused"),
    401: (Misconfigured, "unauthorized"),
    403: (Misconfigured, "forbidden"),
    404: (Gone, "not_found"),
    408: (Unavailable, "timeout_408"),
    409: (Conflict, "conflict"),
    410: (Gone, "not_found"),
    422: (Rejected, "refused"),
    425: (Unavailable, "too_early"),
    429: (RateLimited, "rate_limited"),
    500: (Unavailable, "server_error"),
    501: (Rejected, "not_supported"),
    502: (Unavailable, "bad_gateway"),
    503: (Unavailable, "service_unavailable"),
    504: (Unavailable, "gateway_timeout"),
}
"""What a status means (reliability, section 6). Not listed: 3xx misconfigured, other 4xx refused, other 5xx unavailable."""

AMBIGUOUS_STATUS = frozenset({504})
"""A gateway that sent our write on and heard nothing is a timeout after the request was sent."""

UNREACHABLE = "unreachable"
CONNECTION_LOST = "connection_lost"
REPEATED_CODES = frozenset(
    {UNREACHABLE, CONNECTION_LOST, "bad_gateway", "service_unavailable", "gateway_timeout", "rate_limited"}
)

_READS = frozenset({"GET", "HEAD"})
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_PLATFORM_ADDRESSES = frozenset({"168.63.129.16"})  # Azure's own service address, public by number only
# IANA's special-purpose registries; Python's own idea of them depends on its patch version.
_SPECIAL = [ipaddress.ip_network(line) for line in """\
0.0.0.0/8
10.0.0.0/8
100.64.0.0/10
127.0.0.0/8
169.254.0.0/16
172.16.0.0/12
192.0.0.0/24
192.0.2.0/24
192.88.99.0/24
192.168.0.0/16
198.18.0.0/15
198.51.100.0/24
203.0.113.0/24
224.0.0.0/4
240.0.0.0/4
2001::/23
2001:db8::/32
3fff::/20
""".splitlines()]  # fmt: skip
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all of IPv6 that is given out (RFC 4291 section 2.4)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*\Z")
_CLIMBS = re.compile(r"(^|/)(\.|%2e){1,2}(/|$)|%2f|%5c", re.IGNORECASE)
_NUMERIC_HOST = re.compile(r"(^|\.)(0x[0-9a-f]*|[0-9]+)\.?$", re.IGNORECASE)
_PART = re.compile(r"\{(\w+)\}")
_DIGITS = re.compile(r"\+?\d(?:[\s().\-/_\u2010-\u2015]*\d){4,}")
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_EMAIL = re.compile(r"[^\s@<>\"'(),;:]+(?:@|%40)[^\s@<>\"'(),;:]+")
_SCHEME = re.compile(r"\b(bearer|basic)\s+\S+", re.IGNORECASE)
_LONG_RUN = re.compile(r"[A-Za-z0-9_\-+/=.~]{32,}")
_TEXT_KEYS = ("detail", "message", "description", "error_description", "error", "title")


class ForbiddenAddress(OSError):
    """The product's host name leads to an address that is never called."""


def clean(value: Any, *, chars_max: int = TEXT_CHARS_MAX) -> str:
    """A product's text, fit for errors and logs: one line, cut, without secrets, addresses, numbers and tokens."""
    if not isinstance(value, str):
        return ""
    whole = redact_text(value)  # before anything is cut: half a secret would not be recognised
    shown = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in whole[: 8 * chars_max])
    shown = _SCHEME.sub(r"\1 [redacted]", shown)
    shown = _EMAIL.sub("[address]", shown)
    shown = _DIGITS.sub(lambda hit: hit[0] if _ISO_DATE.fullmatch(hit[0]) else "[number]", shown)
    shown = " ".join(_LONG_RUN.sub("[…]", shown).split())
    return shown if len(shown) <= chars_max else shown[: chars_max - 1] + "…"


def vendor_text(body: Any) -> str:
    """The sentence in an error body, cleaned; "" when there is none."""
    for _ in range(3):  # an error object may be nested in another
        if not isinstance(body, dict):
            break
        found = next((body[key] for key in _TEXT_KEYS if body.get(key)), None)
        if not isinstance(found, dict):
            return clean(found)
        body = found
    return clean(body)


def retry_after(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """Seconds named by Retry-After, as a number or an HTTP date (RFC 9110 section 10.2.3), at most RETRY_AFTER_MAX_S."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return min(float(text), RETRY_AFTER_MAX_S)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter for a day or year of twenty digits
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max(0.0, (moment - (now or datetime.now(UTC))).total_seconds()), RETRY_AFTER_MAX_S)


def error_of(
    product: str, method: str, path: str, response: VendorResponse, *, wait_default_s: float | None = None
) -> ConnectorError:
    """The error an answer means. Connectors that asked for a status through `expect` use it for what they cannot explain better.

    Args:
        product: the product's name, for the sentence.
        path: the path template; a 404 on one without an id means a wrong address, not a missing account.
        wait_default_s: wait after a 429 that names no time.
    """
    status = response.status
    text = vendor_text(response.body)
    sentence = f"{product} answered {status} to {method} {path}" + (f": {text}" if text else "")
    kind, code = _meaning(status)
    if kind is Gone and "{" not in path:
        return Misconfigured(f"{sentence}; check the address in the settings", code="wrong_address")
    if kind is Misconfigured and code == "redirected":
        return Misconfigured(f"{sentence}, a redirect, which is never followed; correct the address", code=code)
    if kind is RateLimited:
        named_s = retry_after(response.headers)
        return RateLimited(sentence, code=code, retry_after_s=wait_default_s if named_s is None else named_s)
    if kind is Unavailable:
        lost = status in AMBIGUOUS_STATUS and method not in _READS
        return Unavailable(sentence, code=code, ambiguous=lost, retry_after_s=retry_after(response.headers))
    return kind(sentence, code=code)


def already_there(product: str, what: str) -> Unavailable:
    """A create was refused because of what is there already: it is looked up and linked next, never adopted by the create."""
    return Unavailable(
        f"{product} holds {what} already; it is looked up and linked next", code="already_there", ambiguous=True
    )


def _meaning(status: int) -> tuple[type[ConnectorError], str]:
    if status in MEANING:
        return MEANING[status]
    if status < 400:
        return Misconfigured, "redirected"
    return (Rejected, "refused") if status < 500 else (Unavailable, "server_error")


def address_problem(base_url: str, *, allow_loopback: bool = False) -> str:
    """Why a base URL must not be used, as the end of a sentence; "" when it may."""
    if any(not 0x20 < ord(char) < 0x7F or char == "\\" for char in base_url):
        return "must be plain ASCII without blanks; spell a host with other letters as xn--…"
    try:
        parts = urlsplit(base_url)
        host = (parts.hostname or "").removesuffix(".")
        port = parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in ("https", "http") or not host:
        return "must be a URL such as https://host/path"
    if parts.username is not None or parts.password is not None:
        return "must not contain credentials"
    if parts.query or parts.fragment:
        return "must not contain ? or #"
    if _CLIMBS.search(parts.path):
        return "must not contain . or .. or an encoded slash in its path"
    if port == 0:
        return "must not name port 0"
    if _is_ip(host) != _is_ip(parts.hostname or "") or (not _is_ip(host) and _NUMERIC_HOST.search(host)):
        return "must name its host, or spell its address in the usual way"
    if not _is_ip(host) and _HOST.match(host) is None:
        return "does not name a host"
    loopback = host in _LOOPBACK_NAMES or host.endswith(".localhost")
    if parts.scheme == "http" and not (allow_loopback and loopback):
        return "must begin with https://" + (" (http only to loopback)" if allow_loopback else "")
    if loopback and not allow_loopback:
        return "leads to this machine; that needs allow_loopback = true (emulators only)"
    if _is_ip(host) and not is_allowed_address(host, allow_loopback=allow_loopback):
        return "leads to a private or reserved address"
    return ""


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_allowed_address(address: str, *, allow_loopback: bool = False) -> bool:
    """Whether an IP address may be called: public ones only (S9), loopback with the emulators' switch.

    Addresses that carry an IPv4 address inside (mapped, 6to4, NAT64) are judged by that one too.
    """
    ip = ipaddress.ip_address(address.split("%", 1)[0])
    inner: ipaddress.IPv4Address | None = None
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
    if ip.is_loopback:
        return allow_loopback
    if ip.version == 6 and inner is None and ip not in _GLOBAL_UNICAST:
        return False
    if str(ip) in _PLATFORM_ADDRESSES or any(ip.version == net.version and ip in net for net in _SPECIAL):
        return False
    return inner is None or is_allowed_address(str(inner))


class PublicResolver(AbstractResolver):
    """Looks names up and keeps only addresses that may be called; checked at connect, so a changed DNS answer is no way in."""

    def __init__(self, *, allow_loopback: bool, names: AbstractResolver | None = None) -> None:
        self._inner = names or aiohttp.ThreadedResolver()
        self._allow_loopback = allow_loopback

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises: ForbiddenAddress when every address of the name is private or reserved."""
        found = await self._inner.resolve(host, port, family)
        allowed = [entry for entry in found if is_allowed_address(entry["host"], allow_loopback=self._allow_loopback)]
        if found and not allowed:
            raise ForbiddenAddress("the name leads to private or reserved addresses only")
        return allowed

    async def close(self) -> None:
        """Nothing to release."""
        await self._inner.close()


class Pace:
    """At most `calls` in any `per_s` seconds, bursts included; waiting callers go in order of arrival.

    A leaky bucket would let twice the number through in one window, which products with a strict limit answer with 429.
    """

    def __init__(self, limit: RateLimit, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = limit.per_s + RATE_JITTER_S
        self._clock = clock
        self._starts: deque[float] = deque(maxlen=limit.calls)
        self._turn = asyncio.Lock()

    async def wait(self) -> None:
        """Return when one more call may start."""
        async with self._turn:
            if len(self._starts) == self._starts.maxlen:
                ahead_s = self._starts[0] + self._per_s - self._clock()
                if ahead_s > 0:
                    await asyncio.sleep(ahead_s)
            self._starts.append(self._clock())


class Bearer:
    """A static credential in a header.

    Args:
        secret: where it is kept; read at the first call, and again after a 401, so that a rotated file takes effect by itself.
        scheme: text before the credential, `Bearer` unless the product wants another; "" sends the credential alone, and after a
            last `=`, as in `Token token=`, there is no blank.
        header: the header's name.
    """

    def __init__(self, secret: Secret, *, scheme: str = "Bearer", header: str = "Authorization") -> None:
        self._secret = secret
        self._scheme = scheme
        self._header = header
        self._value: str | None = None

    def connect(self, sibling: Callable[[str], VendorHttp]) -> None:
        """Needs no other host."""

    async def headers(self, ctx: Delivery | None) -> Mapping[str, str]:
        """Raises: Misconfigured when the secret cannot be read."""
        if self._value is None:
            self._value = _revealed(self._secret)
        if not _fits_a_header(self._value):
            raise Misconfigured(
                "The credential holds a line break or another character that cannot be sent; store it anew",
                code="no_credential",
            )
        return {self._header: _signed(self._scheme, self._value)}

    async def renew(self, ctx: Delivery | None) -> bool:
        """True when the secret has changed since it was read."""
        before, self._value = self._value, _revealed(self._secret)
        return before != self._value


class Basic:
    """A name and a password with every call (RFC 7617).

    Args:
        username: without a colon.
        password: where it is kept; read as by `Bearer`.
        is_name: it is sent in place of the name, beside a password that says nothing; many products take their keys so.
    """

    def __init__(self, username: str, password: Secret, *, is_name: bool = False) -> None:
        self._username = username
        self._password = password
        self._is_name = is_name
        self._value: str | None = None

    def connect(self, sibling: Callable[[str], VendorHttp]) -> None:
        """Needs no other host."""

    async def headers(self, ctx: Delivery | None) -> Mapping[str, str]:
        """Raises: Misconfigured when the password cannot be read."""
        if self._value is None:
            self._value = self._encoded()
        return {"Authorization": f"Basic {self._value}"}

    async def renew(self, ctx: Delivery | None) -> bool:
        """True when the password has changed since it was read."""
        before, self._value = self._value, self._encoded()
        return before != self._value

    def _encoded(self) -> str:
        secret = _revealed(self._password)
        pair = f"{secret}:x" if self._is_name else f"{self._username}:{secret}"
        value = base64.b64encode(pair.encode()).decode()
        register_secret(value)
        return value


class ClientCredentials:
    """OAuth 2.0 client credentials (RFC 6749 section 4.4), client authenticated with HTTP Basic or in the body (section 2.3.1).

    Args:
        token_url: the token endpoint, usually on another host than the product's API.
        form: fields besides `grant_type`, e.g. scope.
        scheme: how the token is sent, see `Bearer`.
        in_body: id and secret are fields of the token request.
    """

    def __init__(
        self,
        token_url: str,
        *,
        client_id: str,
        client_secret: Secret,
        form: Mapping[str, str],
        scheme: str = "Bearer",
        in_body: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(token_url)
        self._base_url = f"{parts.scheme}://{parts.netloc}"
        self._path = parts.path or "/"
        self._client_id = client_id
        self._client_secret = client_secret
        self._form = {"grant_type": "client_credentials", **form}
        self._scheme = scheme
        self._in_body = in_body
        self._clock = clock
        self._http: VendorHttp | None = None
        self._token: str | None = None
        self._good_until = 0.0
        self._issuing = asyncio.Lock()

    def connect(self, sibling: Callable[[str], VendorHttp]) -> None:
        """Opens the client for the host that issues tokens."""
        self._http = sibling(self._base_url)

    async def headers(self, ctx: Delivery | None) -> Mapping[str, str]:
        """Raises: Misconfigured when the client is refused; Unavailable, RateLimited as any call, never ambiguous."""
        async with self._issuing:
            if self._token is None or self._clock() >= self._good_until:
                await self._issue(ctx)
        return {"Authorization": _signed(self._scheme, self._token or "")}

    async def renew(self, ctx: Delivery | None) -> bool:
        """A new token; calls that met the same 401 together share one. Raises as `headers`."""
        refused = self._token
        async with self._issuing:
            if self._token == refused:
                await self._issue(ctx)
        return True

    async def _issue(self, ctx: Delivery | None) -> None:
        if self._http is None:
            raise ConnectorBug("the token endpoint was asked before the client was connected")
        secret = _revealed(self._client_secret)
        basic = base64.b64encode(f"{self._client_id}:{secret}".encode()).decode()
        register_secret(basic)
        client = {"client_id": self._client_id, "client_secret": secret} if self._in_body else {}
        try:
            answer = await self._http.request(
                "POST",
                self._path,
                ctx=ctx,
                form={**self._form, **client},
                headers={} if self._in_body else {"Authorization": f"Basic {basic}"},
                expect=(200, 400, 401),
                idempotent=True,
            )
        except Unavailable as exc:  # a token that got lost changed nothing at the product
            raise Unavailable(exc.message, code=exc.code, retry_after_s=exc.retry_after_s) from exc
        body = answer.body if isinstance(answer.body, dict) else {}
        if answer.status != 200:
            text = vendor_text(body) or clean(body.get("error"))
            raise Misconfigured(
                f"The token endpoint refused the client credentials{': ' + text if text else ''}; check id, secret and scope",
                code="token_refused",
            )
        token = body.get("access_token")
        if not isinstance(token, str) or not token:
            raise Unavailable("The token endpoint answered 200 without an access_token", code="malformed")
        register_secret(token)
        if not _fits_a_header(token):
            raise Unavailable("The token endpoint answered 200 with a token that fits no header", code="malformed")
        life_s = body.get("expires_in")
        life_s = float(min(life_s, TOKEN_LIFE_MAX_S)) if isinstance(life_s, (int, float)) and life_s > 0 else 3600.0
        self._token = token
        self._good_until = self._clock() + max(life_s / 2, life_s - TOKEN_MARGIN_S)


def _signed(scheme: str, credential: str) -> str:
    """A credential after its scheme, and a blank unless the scheme ends with `=`."""
    return f"{scheme}{credential}" if scheme.endswith("=") else f"{scheme} {credential}".strip()


def _revealed(secret: Secret) -> str:
    try:
        value = secret.reveal()
    except ConfigurationError as exc:
        raise Misconfigured(f"A credential cannot be read: {'; '.join(exc.problems)}", code="no_credential") from exc
    register_secret(value)
    return value


def _fits_a_header(value: str) -> bool:
    return value.isascii() and value.isprintable()


class HttpClient:
    """Calls to one product over one connection pool; implements `VendorHttp`.

    Args:
        base_url: see `Endpoint`; its host is the only one that is called.
        product: name for messages.
        auth: signs every call; on a 401 it may renew its credential once, and the call is sent once more.
        allow_loopback: see `Endpoint`.
        before_call: the worker's hook (still ours? may we?); see BeforeCall.
        rate_limit: the product's limit, kept before the hook is asked, so that the answer of the hook is fresh.
        paced: False when the hook keeps the limit; it still says how long to wait after a 429 that names no time.
        concurrency_max: connections at once.
        call_s: longest call from connecting to the last byte.
        body_bytes_max: longest answer.
        clock: monotonic seconds.
        names: looks names up; the system's resolver unless given. What it finds is judged all the same.

    Raises:
        ConfigurationError: the base URL must not be called.
    """

    def __init__(
        self,
        base_url: str,
        *,
        product: str,
        auth: Auth | None = None,
        allow_loopback: bool = False,
        before_call: BeforeCall | None = None,
        rate_limit: RateLimit | None = None,
        paced: bool = True,
        concurrency_max: int = 8,
        call_s: float = CALL_S,
        connect_s: float = CONNECT_S,
        body_bytes_max: int = BODY_BYTES_MAX,
        clock: Callable[[], float] = time.monotonic,
        names: AbstractResolver | None = None,
    ) -> None:
        problem = address_problem(base_url, allow_loopback=allow_loopback)
        if problem:
            raise ConfigurationError(product, [f"base_url {problem}"])
        self.product = product
        self._base = base_url.rstrip("/")
        self._auth = auth
        self._allow_loopback = allow_loopback
        self._before_call = before_call
        self._pace = Pace(rate_limit, clock=clock) if rate_limit is not None and paced else None
        self._wait_default_s = rate_limit.per_s if rate_limit else None
        self._concurrency_max = concurrency_max
        self._timeout = aiohttp.ClientTimeout(total=call_s, connect=None, sock_connect=connect_s)
        self._call_s = call_s
        self._body_bytes_max = body_bytes_max
        self._clock = clock
        self._names = names
        self._session: aiohttp.ClientSession | None = None
        self._siblings: list[HttpClient] = []
        self._calls: deque[float] = deque(maxlen=SHARE_CALLS_MAX)
        self._repeats: deque[float] = deque(maxlen=SHARE_CALLS_MAX)
        if auth is not None:
            auth.connect(self._sibling)

    @classmethod
    def open(
        cls,
        endpoint: Endpoint,
        *,
        product: str,
        before_call: BeforeCall | None = None,
        rate_limit: RateLimit | None = None,
        paced: bool = True,
        concurrency_max: int = 8,
    ) -> HttpClient:
        """The client of a connector's endpoint."""
        return cls(
            endpoint.base_url,
            product=product,
            auth=endpoint.auth,
            allow_loopback=endpoint.allow_loopback,
            before_call=before_call,
            rate_limit=rate_limit,
            paced=paced,
            concurrency_max=concurrency_max,
            body_bytes_max=min(endpoint.body_bytes_max or BODY_BYTES_MAX, BODY_BYTES_CEILING),
        )

    @property
    def base_url(self) -> str:
        """Every path is below it."""
        return self._base

    async def close(self) -> None:
        """Close all connections; the next call would open new ones."""
        for sibling in self._siblings:
            await sibling.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        ctx: Delivery | None = None,
        parts: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        json: Any = None,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        expect: Sequence[int] = (),
        idempotent: bool | None = None,
    ) -> VendorResponse:
        """As `VendorHttp.request` says; one step per attempt, statuses by MEANING."""
        method = method.upper()
        url = self._url(path, parts or {}, query or {})
        body, content_type = _encoded(json, form)
        sent_headers = {**({"Content-Type": content_type} if content_type else {}), **(headers or {})}
        if not all(_fits_a_header(value) for value in sent_headers.values()):
            raise ConnectorBug(f"{method} {path}: a header's value cannot be sent", code="bad_header")
        if ctx is not None and ctx.traceparent:
            sent_headers["traceparent"] = ctx.traceparent
            if ctx.tracestate:
                sent_headers["tracestate"] = ctx.tracestate
        may_repeat = (method in _READS) if idempotent is None else idempotent
        renewals_left = 1

        async def attempt() -> VendorResponse:
            nonlocal renewals_left
            signature = await self._auth.headers(ctx) if self._auth is not None else {}
            answer = await self._attempt(method, path, url, body, {**signature, **sent_headers}, ctx)
            if answer.status == 401 and self._auth is not None and renewals_left:
                renewals_left -= 1
                if await self._auth.renew(ctx):
                    signature = await self._auth.headers(ctx)
                    answer = await self._attempt(method, path, url, body, {**signature, **sent_headers}, ctx)
            if answer.status < 300 or answer.status in expect:
                return answer
            raise error_of(self.product, method, path, answer, wait_default_s=self._wait_default_s)

        if not may_repeat:
            return await attempt()
        async for state in AsyncRetrying(
            stop=stop_after_attempt(1 + REPEATS_MAX),
            retry=retry_if_exception(lambda exc: self._worth_repeating(exc, ctx)),
            wait=_repeat_wait,
            before_sleep=lambda _: self._repeats.append(self._clock()),
            reraise=True,
        ):
            with state:
                return await attempt()
        raise AssertionError("unreachable: tenacity returns or raises")

    def _worth_repeating(self, exc: BaseException, ctx: Delivery | None) -> bool:
        if not isinstance(exc, (Unavailable, RateLimited)) or exc.code not in REPEATED_CODES:
            return False
        if exc.retry_after_s is not None and exc.retry_after_s > REPEAT_WAIT_MAX_S:
            return False
        if ctx is not None and ctx.deadline and self._clock() + REPEAT_WAIT_MAX_S >= ctx.deadline:
            return False
        oldest = self._clock() - SHARE_WINDOW_S
        for times in (self._calls, self._repeats):
            while times and times[0] < oldest:
                times.popleft()
        return len(self._repeats) + 1 < REPEAT_SHARE_MAX * len(self._calls)

    async def _attempt(
        self,
        method: str,
        path: str,
        url: URL,
        body: bytes | None,
        headers: Mapping[str, str],
        ctx: Delivery | None,
    ) -> VendorResponse:
        """One outgoing call: pace, hook, send, record."""
        if self._pace is not None:
            await self._pace.wait()
        if ctx is not None and ctx.deadline and self._clock() >= ctx.deadline:
            raise Unavailable(f"No time left for {method} {path} within this delivery", code="deadline")
        if self._before_call is not None:
            await self._before_call(ctx)
        started = self._clock()
        self._calls.append(started)
        sent = _Sent()
        failure = "interrupted"
        try:
            answer = await self._send(method, path, url, body, headers, sent)
            failure = _meaning(answer.status)[1] if answer.status >= 300 else ""
            return answer
        except ConnectorError as exc:
            failure = exc.code
            raise
        finally:
            status = sent.status
            ms = round((self._clock() - started) * 1000, 1)
            if ctx is not None:
                key = headers.get("Idempotency-Key", "")
                ctx.steps.append(Step(method=method, path=path, status=status, ms=ms, key=key, error=failure))
            logger().debug("vendor.call", product=self.product, method=method, path=path, status=status, ms=ms)

    async def _send(
        self, method: str, path: str, url: URL, body: bytes | None, headers: Mapping[str, str], sent: _Sent
    ) -> VendorResponse:
        write = method not in _READS
        answer_headers: dict[str, str] = {}
        content = b""
        try:
            async with (
                asyncio.timeout(self._call_s),
                self._open_session().request(
                    method, url, data=body, headers=headers, allow_redirects=False, trace_request_ctx=sent
                ) as raw,
            ):
                if raw.status < 200:  # 101 would be another protocol, and 0xx is none
                    raise _BadContent("which ends no request")
                sent.status = raw.status
                answer_headers = {name.lower(): value for name, value in raw.headers.items()}
                content = await self._content(raw)
        except aiohttp.InvalidURL:
            raise Misconfigured(
                f"{self.product}: the address in the settings is not valid", code="wrong_address"
            ) from None
        except aiohttp.ClientConnectorError as exc:
            if isinstance(exc.os_error, ForbiddenAddress):
                raise Misconfigured(
                    f"{self.product}: {exc.os_error}; such addresses are never called", code="forbidden_address"
                ) from None
            raise Unavailable(
                f"{self.product} cannot be reached for {method} {path}: {_connect_text(exc)}", code=UNREACHABLE
            ) from None
        except TimeoutError:  # aiohttp's ServerTimeoutError is one too
            if sent.headers:
                raise Unavailable(
                    f"{self.product} did not answer {method} {path} within {self._call_s:g} s",
                    code="timeout",
                    ambiguous=write,
                ) from None
            raise Unavailable(
                f"{self.product} cannot be reached for {method} {path}: no connection in time", code=UNREACHABLE
            ) from None
        except (aiohttp.ClientError, OSError) as exc:
            if sent.status < 300:
                raise Unavailable(
                    f"{self.product} closed the connection during {method} {path} ({type(exc).__name__})",
                    code=CONNECTION_LOST if sent.headers else UNREACHABLE,
                    ambiguous=sent.headers and write,
                ) from None
        except _BadContent as exc:
            if sent.status < 300:
                raise Unavailable(
                    f"{self.product} answered {sent.status or 'a status'} to {method} {path} {exc}",
                    code="malformed",
                    ambiguous=write,
                ) from None
        # An error status says enough by itself, even when its body was cut off.
        return self._parsed(method, path, sent.status, content, answer_headers)

    def _parsed(self, method: str, path: str, status: int, content: bytes, headers: dict[str, str]) -> VendorResponse:
        if status == 204 or not content.strip() or method == "HEAD":
            return VendorResponse(status=status, body=None, headers=headers)
        try:
            body = msgspec.json.decode(content.removeprefix(codecs.BOM_UTF8))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if status >= 300:
                return VendorResponse(status=status, body=None, headers=headers)
            raise Unavailable(
                f"{self.product} answered {status} to {method} {path} with something that is not JSON",
                code="malformed",
                ambiguous=method not in _READS,
            ) from None
        return VendorResponse(status=status, body=body, headers=headers)

    async def _content(self, raw: aiohttp.ClientResponse) -> bytes:
        """The body, decompressed by us so that a small answer cannot grow without bound."""
        encoding = raw.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "x-gzip", "deflate", ""):
            raise _BadContent(f"with content encoding {clean(encoding, chars_max=20)}, which was not asked for")
        inflate = zlib.decompressobj(wbits=47) if encoding not in ("identity", "") else None
        content = bytearray()
        received = 0
        async for chunk in raw.content.iter_chunked(64 * 1024):
            received += len(chunk)  # compression may also make nothing of very much
            try:
                room = self._body_bytes_max + 1 - len(content)
                content += chunk if inflate is None else inflate.decompress(chunk, room)
            except zlib.error:
                raise _BadContent("with damaged compression") from None
            if max(received, len(content)) > self._body_bytes_max:
                raise _BadContent(f"with more than {self._body_bytes_max} bytes")
        return bytes(content)

    def _url(self, path: str, parts: Mapping[str, str], query: Mapping[str, str]) -> URL:
        def encoded(hit: re.Match[str]) -> str:
            value = parts.get(hit[1], "")
            if not value or value in (".", ".."):
                raise ConnectorBug(f"{path}: {hit[1]} is empty or not an id", code="bad_address")
            return quote(value, safe="")

        filled = _PART.sub(encoded, path)
        if not path.startswith("/") or set(parts) != set(_PART.findall(path)):
            raise ConnectorBug(f"{path} does not fit its parts {sorted(parts)}", code="bad_address")
        text = f"{self._base}{filled}"
        return URL(f"{text}?{urlencode(query, quote_via=quote)}" if query else text, encoded=True)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            trace = aiohttp.TraceConfig()
            trace.on_request_headers_sent.append(_note_sent)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._concurrency_max,
                    keepalive_timeout=KEEPALIVE_S,
                    resolver=PublicResolver(allow_loopback=self._allow_loopback, names=self._names),
                    use_dns_cache=False,
                    socket_factory=self._socket,
                ),
                timeout=self._timeout,
                headers={
                    "User-Agent": "provgate",
                    "Accept": "application/json",
                    "Accept-Encoding": "gzip",
                },
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                trace_configs=[trace],
            )
            # aiohttp would by itself send a GET, PUT or DELETE again whose kept connection was closed: a call without hook,
            # pace and record. aiohttp's own test client switches it off by the same name.
            self._session._retry_connection = False
        return self._session

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """The last gate: of whatever is about to be connected to, however its address was found."""
        family, kind, protocol, _, place = address
        if not is_allowed_address(str(place[0]), allow_loopback=self._allow_loopback):
            raise ForbiddenAddress("the address is private or reserved")
        return socket.socket(family, kind, protocol)

    def _sibling(self, base_url: str) -> HttpClient:
        sibling = HttpClient(
            base_url,
            product=self.product,
            allow_loopback=self._allow_loopback,
            before_call=self._before_call,
            concurrency_max=1,
            call_s=self._call_s,
            clock=self._clock,
            names=self._names,
        )
        self._siblings.append(sibling)
        return sibling


class _Sent:
    """How far one call came."""

    def __init__(self) -> None:
        self.headers = False
        self.status = 0


class _BadContent(Exception):
    """An answer whose body cannot be used."""


async def _note_sent(session: aiohttp.ClientSession, trace: Any, params: Any) -> None:
    trace.trace_request_ctx.headers = True


def _repeat_wait(state: RetryCallState) -> float:
    exc = state.outcome.exception() if state.outcome is not None else None
    named_s = getattr(exc, "retry_after_s", None)
    jitter_s = random.uniform(0.5, 1.0) * REPEAT_WAIT_FIRST_S * 2.0 ** (state.attempt_number - 1)
    return float(min(REPEAT_WAIT_MAX_S, jitter_s if named_s is None else max(named_s, jitter_s)))


def _encoded(json: Any, form: Mapping[str, str] | None) -> tuple[bytes | None, str]:
    if form is not None:
        return urlencode(form).encode(), "application/x-www-form-urlencoded"
    if json is not None:
        return msgspec.json.encode(json), "application/json"
    return None, ""


def _connect_text(exc: aiohttp.ClientConnectorError) -> str:
    if isinstance(exc, aiohttp.ClientConnectorDNSError):
        return "the name is not known"
    if isinstance(exc, (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError)):
        return "no trusted TLS connection"
    reason = exc.os_error.strerror if isinstance(exc.os_error, OSError) else None
    return clean(reason) or "connection failed"
