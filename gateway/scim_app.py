"""The SCIM listener: one ASGI application from parts that somebody else has made.

`Edge` stands before everything: it bounds what a request may cost, asks who calls, writes one log line, and turns whatever goes
wrong into a SCIM error. Behind it Litestar routes to `gateway/endpoints.py` and `gateway/discovery.py`.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from litestar import Litestar, Request, Response, delete, get, patch, post, put
from litestar.enums import HttpMethod, ScopeType
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send
from msgspec import Struct, field

from gateway.auth import Authenticator
from gateway.bulk import Bulk
from gateway.completions import Completions, preferred
from gateway.cursors import PURPOSE, Cursors
from gateway.discovery import Discovery
from gateway.endpoints import Call, Everything, Groups, NoGroups, OtherSpellings, Reply, Resources, Users
from gateway.entra_keys import KeySets
from gateway.entra_tokens import EntraTokens
from gateway.filters import query_parameters
from gateway.intake import Intake
from gateway.keys import Keys
from gateway.limits import (
    Buckets,
    Overload,
    Sources,
    refusal_rates,
    target_rates,
    too_many_for_target,
    too_many_refusals,
)
from gateway.listener import address_too_long, headers_too_large
from gateway.messages import (
    MEDIA_TYPE,
    Limits,
    ScimError,
    forbidden,
    invalid_syntax,
    too_large,
    unavailable,
    unsupported_media_type,
)
from gateway.oauth import AccessTokens, TokenEndpoint, TokenRequest
from gateway.openapi import document
from gateway.refusals import RefusedSignIns
from gateway.store import Store
from gateway.writer import StoreError
from schemas.config import LimitSettings, TargetSettings
from schemas.logs import logger
from schemas.specs import Spec

PREFIX = "/scim/v2"
REQUESTS_MAX = 2_000
"""Requests in work at once; the next are asked to come again."""
STORE_RETRY_AFTER_S = 5
BUSY_RETRY_AFTER_S = 1
UNAUTHORIZED = 401

_MEDIA_TYPE = MEDIA_TYPE.encode()
_MEDIA_TYPES = frozenset(("", MEDIA_TYPE, "application/json"))
_TYPED = re.compile(r":str(?=\})")
_HOST = re.compile(r"[A-Za-z0-9.\-:\[\]_]{1,255}\Z")
_CLOSE = {"Connection": "close"}
"""Sent when a body was not read to its end: what is left of it must not be taken for the next request."""

log = logger()


async def _always_ready() -> bool:
    return True


class ScimParts(Struct, kw_only=True):
    """What the SCIM listener is made of.

    Args:
        targets: settings of the configured targets by name.
        spec_of: the connector's declaration of a target, None while no worker has announced one; it decides about groups.
        trusted_proxies: addresses and networks whose forwarding headers are believed.
        overload: says what is left out when there is too much to do.
        public_url: how Entra reaches this gateway, e.g. `https://provgate.example.com`; "" takes the Host of each request.
        ready: whether requests can be served (readiness probe).
        other_spellings: see `gateway/endpoints.py`.
        observed: is told target, operation and status of every SCIM request (metrics).
        key_sets: the keys Entra signs tokens with.
        refused: where refused sign-ins are explained to operators.
        clock: monotonic seconds.
        now: epoch seconds.
    """

    store: Store
    intake: Intake
    keys: Keys
    targets: Callable[[], Mapping[str, TargetSettings]]
    spec_of: Callable[[str], Spec | None] = lambda target: None
    limits: LimitSettings = LimitSettings()
    trusted_proxies: tuple[str, ...] = ()
    overload: Overload = field(default_factory=Overload)
    public_url: str = ""
    ready: Callable[[], Awaitable[bool]] = _always_ready
    other_spellings: OtherSpellings | None = None
    observed: Callable[[str, str, int], None] = lambda target, op, status: None
    key_sets: KeySets = field(default_factory=KeySets)
    refused: RefusedSignIns = field(default_factory=lambda: RefusedSignIns(time.time))
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time


def limits_of(settings: LimitSettings) -> Limits:
    """The configured bounds as the SCIM functions take them."""
    return Limits(
        body_bytes_max=settings.body_bytes_max,
        group_body_bytes_max=settings.group_body_bytes_max,
        bulk_body_bytes_max=settings.bulk_body_bytes_max,
        headers_bytes_max=settings.header_bytes_max,
        url_bytes_max=settings.url_bytes_max,
        depth_max=settings.depth_max,
        keys_max=settings.keys_max,
        members_max=settings.members_max,
        operations_max=settings.operations_max,
        string_bytes_max=settings.string_bytes_max,
        filter_bytes_max=settings.filter_bytes_max,
        filter_depth_max=settings.filter_depth_max,
        filter_terms_max=settings.filter_terms_max,
        count_max=settings.count_max,
        body_wait_s=settings.body_wait_s,
    )


class ClientGone(Exception):
    """The caller hung up before its request was complete; nobody is left to answer."""


class HttpCall:
    """One authenticated request; the `Call` of `gateway/endpoints.py`."""

    __slots__ = ("_limits", "_receive", "_scope", "base", "patience", "query", "resource", "target")

    def __init__(self, scope: Scope, receive: Receive, limits: Limits, public_url: str) -> None:
        path = scope["path_params"]
        self._scope = scope
        self._receive = receive
        self._limits = limits
        self.target: str = path["target"]
        self.resource: str = path.get("resource", "")
        self.query: bytes = scope["query_string"]
        self.patience = preferred(self.header(b"prefer"))
        self.base = f"{public_url or _own_address(scope)}{PREFIX}/{self.target}"

    def header(self, name: bytes) -> str | None:
        """One request header by its lower-case name; several are joined (RFC 9110 section 5.3)."""
        held = [value for key, value in self._scope["headers"] if key == name]
        return b",".join(held).decode("latin-1") if held else None

    async def body(self, bytes_max: int) -> bytes:
        """The whole body, within its bounds of type, size and time.

        Raises:
            ScimError: 415, 413 (before anything is read when its length was announced), 408, 400.
            ClientGone: the connection was closed before its end.
        """
        media_type = (self.header(b"content-type") or "").partition(";")[0].strip().lower()
        if media_type not in _MEDIA_TYPES:
            raise unsupported_media_type()
        return await self.content(bytes_max)

    async def content(self, bytes_max: int) -> bytes:
        """The whole body, of whatever type; otherwise as `body`."""
        announced = self.header(b"content-length")
        if announced is not None:
            if not (announced.isascii() and announced.isdigit()):
                raise invalid_syntax("Content-Length is not a number")
            if len(announced) > 18 or int(announced) > bytes_max:
                raise _closing(too_large("The request body", bytes_max))
        try:
            async with asyncio.timeout(self._limits.body_wait_s):
                return await self._read(bytes_max)
        except TimeoutError:
            wait_s = self._limits.body_wait_s
            raise ScimError(408, f"The request body did not arrive within {wait_s:g} s.", headers=_CLOSE) from None

    async def _read(self, bytes_max: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message: Any = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > bytes_max:
                raise _closing(too_large("The request body", bytes_max))
            if not message.get("more_body", False):
                return b"".join((*parts, part)) if parts else part
            parts.append(part)


def _closing(error: ScimError) -> ScimError:
    error.headers.update(_CLOSE)
    return error


def _own_address(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"host":
            host = value.decode("latin-1")
            if _HOST.match(host):
                return f"{scope['scheme']}://{host}"
    return ""


# ---- routes


def scim_app(parts: ScimParts) -> Edge:
    """The whole SCIM listener as an ASGI application."""
    limits = limits_of(parts.limits)
    public_url = parts.public_url.rstrip("/")
    cursors = Cursors(parts.keys.derived(PURPOSE), parts.now)
    users = Users(parts.store, parts.intake, limits, cursors, other_spellings=parts.other_spellings)
    groups = Groups(parts.store, parts.intake, limits, cursors)
    no_groups = NoGroups(parts.spec_of, limits)

    def takes_groups(target: str) -> bool:
        spec = parts.spec_of(target)
        return spec is not None and spec.has_groups

    everything = Everything(users, groups, takes_groups, limits, cursors)
    discovery = Discovery(parts.spec_of, limits)

    rates = target_rates(parts.limits, parts.clock)

    def resources_of(target: str, name: str) -> Resources:
        if name == "Users":
            return users
        return groups if takes_groups(target) else no_groups

    def too_many(target: str) -> ScimError | None:
        return parts.overload.write_refused(target) if rates.take(target) else too_many_for_target(rates.rate_per_s)

    bulk = Bulk(resources_of, limits, answer_wait_s=parts.intake.answer_wait_s, refused=too_many)

    def call_of(request: Request[Any, Any, Any]) -> HttpCall:
        return HttpCall(request.scope, request.receive, limits, public_url)

    routes = [
        *_resource_routes("Users", lambda target: resources_of(target, "Users"), call_of),
        *_resource_routes("Groups", lambda target: resources_of(target, "Groups"), call_of),
        *_discovery_routes(discovery, call_of, limits),
        _search_route(everything, call_of),
        _event_route(Completions(parts.store), call_of),
        _bulk_route(bulk, call_of),
        *_health_routes(parts.ready),
    ]
    inner = Litestar(
        routes,
        openapi_config=None,
        logging_config=None,
        exception_handlers={Exception: _let_through, HTTPException: _let_through},
    )
    return Edge(inner, parts, limits, rates, served(routes))


def served(handlers: Iterable[HTTPRouteHandler]) -> tuple[tuple[str, str], ...]:
    """Method and path template of every address of the SCIM listener, as `/scim/v2/{target}/Users` (`gateway/openapi.py`)."""
    found = {
        (method.value if isinstance(method, HttpMethod) else str(method), _TYPED.sub("", path))
        for handler in handlers
        for path in handler.paths
        for method in handler.http_methods
    }
    return tuple(sorted(found | {("POST", "/oauth2/{target}/token")}))  # the edge answers this one itself


CallOf = Callable[[Request[Any, Any, Any]], HttpCall]


def _resource_routes(name: str, resources_of: Callable[[str], Resources], call_of: CallOf) -> list[HTTPRouteHandler]:
    collection = f"{PREFIX}/{{target:str}}/{name}"
    one = f"{collection}/{{resource:str}}"

    @get(collection, name=f"{name}.search")
    async def search(request: Request[Any, Any, Any]) -> Sent:
        call = call_of(request)
        return await _run(resources_of(call.target).search, call)

    @post(collection, name=f"{name}.create")
    async def create(request: Request[Any, Any, Any]) -> Sent:
        call = call_of(request)
        return await _run(resources_of(call.target).create, call)

    @get(one, name=f"{name}.get")
    async def get_one(request: Request[Any, Any, Any]) -> Sent:
        call = call_of(request)
        return await _run(resources_of(call.target).get, call)

    @put(one, name=f"{name}.replace")
    async def replace(request: Request[Any, Any, Any]) -> Sent:
        call = call_of(request)
        return await _run(resources_of(call.target).replace, call)

    @patch(one, name=f"{name}.change")
    async def change(request: Request[Any, Any, Any]) -> Sent:
        call = call_of(request)
        return await _run(resources_of(call.target).change, call)

    @delete(one, name=f"{name}.delete", status_code=200)
    async def delete_one(request: Request[Any, Any, Any]) -> Sent:
        call = call_of(request)
        return await _run(resources_of(call.target).delete, call)

    @post(f"{collection}/.search", name=f"{name}.search_posted")
    async def search_posted(request: Request[Any, Any, Any]) -> Sent:
        call = call_of(request)
        return await _run(resources_of(call.target).search_posted, call)

    return [search, create, get_one, replace, change, delete_one, search_posted]


def _search_route(everything: Everything, call_of: CallOf) -> HTTPRouteHandler:
    """A search over everything a target has (RFC 7644 section 3.4.3)."""

    @post(f"{PREFIX}/{{target:str}}/.search")
    async def search_all(request: Request[Any, Any, Any]) -> Sent:
        return await _run(everything.search_posted, call_of(request))

    return search_all


def _bulk_route(bulk: Bulk, call_of: CallOf) -> HTTPRouteHandler:
    """Many writes in one request (RFC 7644 section 3.7)."""

    @post(f"{PREFIX}/{{target:str}}/Bulk")
    async def many(request: Request[Any, Any, Any]) -> Sent:
        return await _run(bulk.post, call_of(request))

    return many


def _event_route(completions: Completions, call_of: CallOf) -> HTTPRouteHandler:
    """What became of a write that was not waited for (RFC 9967 section 2.5.1)."""

    @get(f"{PREFIX}/{{target:str}}/Events/{{resource:str}}")
    async def completion(request: Request[Any, Any, Any]) -> Sent:
        return await _run(completions.get, call_of(request))

    return completion


def _discovery_routes(discovery: Discovery, call_of: CallOf, limits: Limits) -> list[HTTPRouteHandler]:
    tenant = f"{PREFIX}/{{target:str}}"

    @get(f"{tenant}/ServiceProviderConfig")
    async def provider_config(request: Request[Any, Any, Any]) -> Sent:
        call = call_of(request)
        return _answer(Reply(200, discovery.provider_config(call.target, call.base, call.query)))

    @get(f"{tenant}/ResourceTypes")
    async def resource_types(request: Request[Any, Any, Any]) -> Sent:
        call = call_of(request)
        _refuse_filter(call, limits)
        return _answer(Reply(200, discovery.resource_types(call.target, call.base)))

    @get(f"{tenant}/ResourceTypes/{{resource:str}}")
    async def resource_type(request: Request[Any, Any, Any]) -> Sent:
        call = call_of(request)
        return _answer(Reply(200, discovery.resource_type(call.target, call.base, call.resource)))

    @get(f"{tenant}/Schemas")
    async def schemas(request: Request[Any, Any, Any]) -> Sent:
        call = call_of(request)
        _refuse_filter(call, limits)
        return _answer(Reply(200, discovery.schemas(call.target, call.base)))

    @get(f"{tenant}/Schemas/{{resource:str}}")
    async def schema(request: Request[Any, Any, Any]) -> Sent:
        call = call_of(request)
        return _answer(Reply(200, discovery.schema(call.target, call.base, call.resource)))

    return [provider_config, resource_types, resource_type, schemas, schema]


def _refuse_filter(call: HttpCall, limits: Limits) -> None:
    """Nobody may believe that a filter was obeyed here (RFC 7644 section 4).

    Raises:
        ScimError: 403; 400 for a query that is none.
    """
    if call.query and "filter" in query_parameters(call.query, limits=limits):
        raise forbidden("There is no filter on this address", "Ask for one by its id, or for all")


def _health_routes(is_ready: Callable[[], Awaitable[bool]]) -> list[HTTPRouteHandler]:
    @get("/health/live")
    async def live() -> Sent:
        return _health(200, b'{"status":"ok"}')

    @get("/health/ready")
    async def ready() -> Sent:
        if await is_ready():
            return _health(200, b'{"status":"ok"}')
        return _health(503, b'{"status":"unavailable"}')

    return [live, ready]


def _health(status: int, body: bytes) -> Sent:
    return Sent(status, body, {}, b"application/json")


class Sent:
    """A finished answer on its way out; half the work of Litestar's own response, on a path every request takes."""

    __slots__ = ("_body", "_headers", "_status")

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str], media_type: bytes) -> None:
        self._status = status
        self._body = body
        self._headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        if status not in (204, 304):
            if body:
                self._headers.append((b"content-type", media_type))
            self._headers.append((b"content-length", b"%d" % len(body)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


async def _run(operation: Callable[[Call], Awaitable[Reply]], call: Call) -> Sent:
    """One operation. Its errors are ordinary answers (404, 409): they take the short way, not that of exceptions."""
    try:
        return _answer(await operation(call))
    except ScimError as error:
        return _error(error)


def _answer(reply: Reply) -> Sent:
    return Sent(reply.status, reply.body, reply.headers, _MEDIA_TYPE)


# ---- errors


def _let_through(_: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Every error belongs to `Edge`, which makes a SCIM error of it."""
    raise error


def _http_error(scope: HTTPScope, error: HTTPException) -> ScimError:
    """What Litestar itself refuses: unknown paths, methods that are not there, a Host header that is none."""
    if isinstance(error, NotFoundException):
        return ScimError(404, "There is nothing at this address. Check the Tenant URL.")
    if isinstance(error, MethodNotAllowedException):
        allow = ", ".join(_methods(scope["path"]))
        return ScimError(405, f"This address takes {allow} and nothing else.", headers={"Allow": allow})
    return ScimError(error.status_code, "The request cannot be understood.")


def _methods(path: str) -> tuple[str, ...]:
    segments = [part for part in path.split("/") if part]
    if segments[-1:] == [".search"] or segments[3:] == ["Bulk"]:
        return ("POST",)
    if len(segments) < 4 or segments[0] == "health" or segments[3] not in ("Users", "Groups"):
        return ("GET", "HEAD")
    return ("GET", "HEAD", "POST") if len(segments) == 4 else ("GET", "HEAD", "PUT", "PATCH", "DELETE")


# ---- the edge

_KINDS = frozenset(("Users", "Groups", "Bulk", "Events", "ServiceProviderConfig", "ResourceTypes", "Schemas"))
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class Edge:
    """The outermost ASGI application: bounds, authentication, errors, and one log line per request.

    The order of questions matters: what costs nothing comes first, and a target's rate is only counted once the key was right, so
    that strangers cannot use up what belongs to Entra.
    """

    def __init__(
        self, inner: ASGIApp, parts: ScimParts, limits: Limits, rates: Buckets, routes: tuple[tuple[str, str], ...]
    ) -> None:
        self._inner = inner
        self._routes = routes
        self._spec_of = parts.spec_of
        self._limits = limits
        self._targets = parts.targets
        self._observed = parts.observed
        self._clock = parts.clock
        self._public_url = parts.public_url.rstrip("/")
        entra = EntraTokens(parts.key_sets, parts.now)
        tokens = AccessTokens(parts.keys, parts.now)
        self._sources = Sources(parts.trusted_proxies)
        self._proxied = bool(parts.trusted_proxies)
        self._refusals = refusal_rates(parts.limits, parts.clock)
        self._auth = Authenticator(parts.keys, entra, tokens, parts.targets, parts.refused, self._refusals)
        self._token_endpoint = TokenEndpoint(
            parts.store, parts.keys, tokens, entra, parts.targets, parts.refused, parts.now
        )
        self._per_target = rates
        self._overload = parts.overload

    def openapi(self, address: str, target: str = "") -> dict[str, Any]:
        """What is served here, as an OpenAPI document; see `gateway/openapi.py`.

        Args:
            address: how clients reach the gateway.
            target: with its own attributes; "" for what any target takes.
        """
        spec = self._spec_of(target) if target else None
        return document(self._routes, spec, self._limits, address=address, target=target)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass the lifespan on."""
        if scope["type"] != ScopeType.HTTP:
            await self._inner(scope, receive, send)
            return
        segments = [part for part in scope["path"].split("/") if part]
        started = self._clock()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        target = segments[1] if _is_token_endpoint(segments) else segments[2] if len(segments) > 2 else ""
        self._overload.requests += 1
        try:
            await self._serve(scope, receive, sending, segments, target)
        except ScimError as error:
            await self._fail(status, scope, receive, sending, error)
        except HTTPException as error:
            await self._fail(status, scope, receive, sending, _http_error(scope, error))
        except StoreError as error:
            log.warning("store.unavailable", target=self._name(target), error=type(error).__name__)
            await self._fail(
                status, scope, receive, sending, unavailable("The gateway cannot take this now", STORE_RETRY_AFTER_S)
            )
        except ClientGone:
            status = 499
        except Exception as error:
            await self._fail(status, scope, receive, sending, _unexpected(error, self._name(target)))
        finally:
            self._overload.requests -= 1
            if segments[:1] != ["health"]:
                self._note(scope["method"], segments, target, status, started)

    async def _serve(self, scope: HTTPScope, receive: Receive, send: Send, segments: list[str], target: str) -> None:
        if segments[:1] == ["health"]:
            await self._inner(_as_get(scope), receive, send)
            return
        if self._overload.requests > REQUESTS_MAX:
            raise unavailable("Too many requests at once", BUSY_RETRY_AFTER_S)
        self._check_size(scope)
        if self._proxied:
            scope["scheme"] = self._sources.scheme(scope)
        if _is_token_endpoint(segments):
            await self._token(scope, receive, send, target)
            return
        await self._auth.admit(
            target if segments[:2] == ["scim", "v2"] else "", scope["headers"], lambda: self._sources.source(scope)
        )
        if not self._per_target.take(target):
            raise too_many_for_target(self._per_target.rate_per_s)
        if self._overload.step:
            self._overload.check(scope["method"], segments, scope["query_string"], target, self._limits)
        if scope["method"] == "OPTIONS":
            send = _allowing(send, ", ".join((*_methods(scope["path"]), "OPTIONS")))
        await self._inner(_as_get(scope), receive, send)

    async def _token(self, scope: HTTPScope, receive: Receive, send: Send, target: str) -> None:
        """The one address that is not SCIM: who comes here has no token yet."""
        call = HttpCall({**scope, "path_params": {"target": target}}, receive, self._limits, self._public_url)
        request = TokenRequest(scope["method"], scope["query_string"], scope["headers"], call.content)
        reply = await self._token_endpoint.answer(target, request)
        if reply.status == UNAUTHORIZED and not self._refusals.take(self._sources.source(scope)):
            raise too_many_refusals()
        await Sent(reply.status, reply.body, reply.headers, b"application/json")(scope, receive, send)

    def _check_size(self, scope: HTTPScope) -> None:
        url_bytes = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
        if url_bytes > self._limits.url_bytes_max:
            raise _closing(address_too_long(self._limits.url_bytes_max))
        header_bytes = 0
        for name, value in scope["headers"]:
            header_bytes += len(name) + len(value)
        if header_bytes > self._limits.headers_bytes_max:
            raise _closing(headers_too_large(self._limits.headers_bytes_max))

    async def _fail(self, status: int, scope: Scope, receive: Receive, send: Send, error: ScimError) -> None:
        if status:
            raise error  # the answer has begun: the server closes the connection
        await _error(error)(scope, receive, send)

    def _name(self, target: str) -> str:
        """The target for logs and metrics; a name that is not configured was chosen by the caller."""
        return target if target in self._targets() else "unknown"

    def _note(self, method: str, segments: list[str], target: str, status: int, started: float) -> None:
        name = self._name(target)
        kind = segments[3] if len(segments) > 3 and segments[3] in _KINDS else "other"
        path = f"{PREFIX}/{{target}}/{kind}/{{id}}" if len(segments) > 4 else f"{PREFIX}/{{target}}/{kind}"
        if _is_token_endpoint(segments):
            kind, path = "token", "/oauth2/{target}/token"
        method = method if method in _METHODS else "other"  # anything may stand there, and it becomes a label
        self._observed(name, f"{method} {kind}", status)
        settings = self._targets().get(target)
        if status < 400 and settings is not None and settings.log_level == "warning":
            return
        ms = round((self._clock() - started) * 1000, 2)
        log.info("scim.request", method=method, path=path, target=name, status=status, ms=ms)


def _is_token_endpoint(segments: list[str]) -> bool:
    return len(segments) == 3 and segments[0] == "oauth2" and segments[2] == "token"


def _allowing(send: Send, methods: str) -> Send:
    """What may be done here goes into the answer to OPTIONS (RFC 9110 section 9.3.7); Litestar names only one method."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 204:
            kept = [header for header in message["headers"] if header[0] != b"allow"]
            message["headers"] = [*kept, (b"allow", methods.encode())]
        await send(message)

    return sending


def _as_get(scope: HTTPScope) -> HTTPScope:
    """HEAD is answered as GET; the server leaves the body out (RFC 9110 section 9.3.2)."""
    return {**scope, "method": HttpMethod.GET} if scope["method"] == "HEAD" else scope


def _unexpected(error: Exception, target: str) -> ScimError:
    """500 that says nothing but an id; the log has the type and the place, never the text, which may hold values."""
    error_id = secrets.token_hex(8)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}" if trace is not None else ""
    log.error("scim.failed", target=target, error=type(error).__name__, at=place, error_id=error_id)
    return ScimError(
        500,
        f"The gateway failed. Its operator finds the cause in the log under {error_id}.",
        extra={"errorId": error_id},
    )


def _error(error: ScimError) -> Sent:
    return Sent(error.status, error.to_bytes(), error.headers, _MEDIA_TYPE)
