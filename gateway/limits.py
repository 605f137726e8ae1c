"""How much is taken from whom: rates of targets and sources, and what is left out first when there is too much to do.

Nothing here waits, and everything that is remembered has a bound. What a request may contain is `gateway/messages.py`, how long
it may take to arrive `gateway/listener.py`.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Literal

import msgspec
from msgspec import Struct

from gateway.endpoints import Groups, Users
from gateway.filters import index_terms, parse_filter, query_parameters
from gateway.messages import DEFAULT_LIMITS, Limits, ScimError, too_many_requests, unavailable
from schemas.config import LimitSettings
from schemas.logs import logger

NAMES_MAX = 10_000
"""Names whose rate is remembered at once; beyond it the longest unheard is forgotten."""
TARGET_BURST_S = 10.0
"""What a target did not ask for in this many seconds it may ask for at once: cycles come in waves."""
RETRY_AFTER_S = 1
SIGN_IN_RETRY_AFTER_S = 60

log = logger()


# ---- rates


class Buckets:
    """Token buckets, one per name (a target, a source address).

    Args:
        rate_per_s: requests per second each may make in the long run; None for as many as they like.
        clock: monotonic seconds.
        burst_s: a bucket holds what its rate gives in this many seconds, at least one.
    """

    def __init__(self, rate_per_s: float | None, clock: Callable[[], float], burst_s: float = TARGET_BURST_S) -> None:
        self.unlimited = rate_per_s is None
        self.rate_per_s = rate_per_s or 0.0
        self._burst = max(1.0, self.rate_per_s * burst_s)
        self._clock = clock
        self._held: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        """How many names are remembered."""
        return len(self._held)

    def take(self, name: str) -> bool:
        """Use one token; False when there is none."""
        if self.unlimited:
            return True
        now = self._clock()
        held = self._held.pop(name, None)  # put back at the end: the dictionary is in order of last use
        if held is None:
            tokens = self._burst
            if len(self._held) >= NAMES_MAX:
                del self._held[next(iter(self._held))]
        else:
            tokens = min(self._burst, held[0] + (now - held[1]) * self.rate_per_s)
        if tokens < 1.0:
            self._held[name] = (tokens, now)
            return False
        self._held[name] = (tokens - 1.0, now)
        return True


def target_rates(settings: LimitSettings, clock: Callable[[], float]) -> Buckets:
    """What each target may ask for."""
    return Buckets(_per_s(settings.requests_per_s_per_target, 1.0), clock)


def refusal_rates(settings: LimitSettings, clock: Callable[[], float]) -> Buckets:
    """How many refused sign-ins each source is told about in full; a minute's worth at once."""
    return Buckets(_per_s(settings.refused_sign_ins_per_min_per_source, 60.0), clock, burst_s=60.0)


def _per_s(rate: int | Literal["unlimited"], seconds: float) -> float | None:
    return None if rate == "unlimited" else rate / seconds


def too_many_for_target(limit_per_s: float) -> ScimError:
    """429 for a target above its rate."""
    error = too_many_requests(RETRY_AFTER_S)
    error.detail = (
        f"Too many requests for this target: the limit is {limit_per_s:g} per second. Try again in {RETRY_AFTER_S} s."
    )
    return error


def too_many_refusals() -> ScimError:
    """429 in place of the next 401; who signs in rightly from the same address is served all the same."""
    error = too_many_requests(SIGN_IN_RETRY_AFTER_S)
    error.detail = f"Too many refused sign-ins from this address. Try again in {SIGN_IN_RETRY_AFTER_S} s."
    return error


# ---- where a request comes from

FORWARDED_CHARS_MAX = 2_048
"""Of `X-Forwarded-For`, its end: what stands further in front was written by somebody further away."""
ADDRESSES_KNOWN_MAX = 4_096
IPV6_SITE_BITS = 64
"""One subscriber holds at least this much of IPv6, so it counts as one source."""


class Sources:
    """Which address a request counts for.

    Args:
        trusted_proxies: addresses and networks whose forwarding headers are believed.
    """

    def __init__(self, trusted_proxies: Sequence[str] = ()) -> None:
        self._networks = tuple(ipaddress.ip_network(proxy, strict=False) for proxy in trusted_proxies)
        self._known = functools.lru_cache(maxsize=ADDRESSES_KNOWN_MAX)(self._look)

    def is_trusted(self, address: str) -> bool:
        """Whether this is one of our proxies."""
        return bool(self._networks) and self._known(address)[1]

    def source(self, scope: Mapping[str, Any]) -> str:
        """The address of whoever sent this: of the connection, or the last one in `X-Forwarded-For` that is no proxy of ours."""
        client = scope.get("client")
        peer = client[0] if client else ""
        if not self._networks:
            return self._known(peer)[0]
        name, trusted = self._known(peer)
        if trusted:
            for forwarded in reversed(_forwarded(scope["headers"])):
                found, trusted = self._known(forwarded)
                if not found:
                    break  # no address: whoever wrote it, what stands before it is not to be believed either
                name = found
                if not trusted:
                    break
        return name

    def scheme(self, scope: Mapping[str, Any]) -> str:
        """`http` or `https`, as the caller sees it."""
        seen: str = scope["scheme"]
        client = scope.get("client")
        if not self._networks or not client or not self._known(client[0])[1]:
            return seen
        said = [value for name, value in scope["headers"] if name == b"x-forwarded-proto"]
        told = said[-1].decode("latin-1").rpartition(",")[2].strip().lower() if said else ""
        return told if told in ("http", "https") else seen

    def _look(self, text: str) -> tuple[str, bool]:
        """The name a source counts under ("" when the text is no address), and whether it is trusted."""
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return "", False
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is None:
                site = ipaddress.ip_network((int(address), IPV6_SITE_BITS), strict=False)
                return str(site), any(address in network for network in self._networks)
            address = address.ipv4_mapped
        return str(address), any(address in network for network in self._networks)


def _forwarded(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    said = b",".join(value for name, value in headers if name == b"x-forwarded-for")[-FORWARDED_CHARS_MAX:]
    return [_bare(part.strip()) for part in said.decode("latin-1").split(",") if part.strip()]


def _bare(text: str) -> str:
    """An address without the port some proxies add, and without the brackets of IPv6."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


# ---- too much to do


class Shed(IntEnum):
    """What is left out, each step with those before it. Single reads are served at every step."""

    NOTHING = 0
    REPORTS = 1
    """Operators' lists, and searches that look at every resource."""
    LISTS = 2
    """SCIM lists without a filter and posted searches."""
    WRITES = 3
    """Writes of a target above WRITES_KEPT_PER_S."""


class Load(Struct, frozen=True, kw_only=True):
    """What the gateway has to do at one moment.

    Args:
        lag_s: how much later than wanted the event loop came back, in seconds.
        jobs_waiting: jobs that wait for the store's writer.
        requests: requests in work.
    """

    lag_s: float = 0.0
    jobs_waiting: int = 0
    requests: int = 0


SHED_AT: Mapping[Shed, Load] = {
    Shed.REPORTS: Load(lag_s=0.5, jobs_waiting=2_000, requests=500),
    Shed.LISTS: Load(lag_s=1.0, jobs_waiting=5_000, requests=1_000),
    Shed.WRITES: Load(lag_s=2.0, jobs_waiting=10_000, requests=1_600),
}
"""From which load on a step is taken: any one of the three is enough. An answer needs a handful of turns of the loop, so at a
lag of two seconds it is already later than Entra waits."""
CALM_SHARE = 0.5
"""A step ends when the load is below this share of where it began."""
LOOK_EVERY_S = 0.25
RISE_LOOKS = 4
"""That many looks in a row must agree: one stall, of a full collection or of a machine that slept, is no overload."""
FALL_LOOKS = 20
SHED_RETRY_AFTER_S = 5
WRITES_KEPT_PER_S = 25.0
"""What Entra may count on for each of its applications, also now."""
WRITES_KEPT_BURST_S = 2.0

_WORDS: Mapping[Shed, str] = {
    Shed.NOTHING: "nothing",
    Shed.REPORTS: "reports",
    Shed.LISTS: "reports and lists",
    Shed.WRITES: "reports, lists and writes beyond 25 per second and target",
}


class OverloadView(Struct, frozen=True, kw_only=True):
    """What operators see. `refused` counts since the start of this process."""

    step: int
    leaves_out: str
    since: float
    load: Load
    refused: Mapping[str, int]


class Overload:
    """Decides what is left out, from what the gateway has to do.

    Args:
        clock: monotonic seconds.
        now: epoch seconds.
        on_step: is told every new step.
        on_shed: is told what was refused: `reports`, `lists` or `writes`.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        on_step: Callable[[int], None] = lambda step: None,
        on_shed: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.step = Shed.NOTHING
        self.requests = 0
        """Requests in work; the SCIM listener counts them."""
        self._clock = clock
        self._now = now
        self._on_step = on_step
        self._on_shed = on_shed
        self._load = Load()
        self._since = now()
        self._refused = {step.name.lower(): 0 for step in Shed if step}
        self._reached: deque[Shed] = deque(maxlen=RISE_LOOKS)
        self._calm: deque[Shed] = deque(maxlen=FALL_LOOKS)
        self._kept = Buckets(WRITES_KEPT_PER_S, clock, WRITES_KEPT_BURST_S)

    async def watch(self, jobs_waiting: Callable[[], int]) -> None:
        """Look at the load for ever."""
        while True:
            started = self._clock()
            await asyncio.sleep(LOOK_EVERY_S)
            lag_s = max(0.0, self._clock() - started - LOOK_EVERY_S)
            self.look(Load(lag_s=lag_s, jobs_waiting=jobs_waiting(), requests=self.requests))

    def look(self, load: Load) -> None:
        """Take one look into account; at most one change of the step comes of it."""
        self._load = load
        self._reached.append(_reached(load, 1.0))
        self._calm.append(_reached(load, CALM_SHARE))
        step = self.step
        if len(self._reached) == RISE_LOOKS and min(self._reached) > step:
            step = min(self._reached)
        elif len(self._calm) == FALL_LOOKS and max(self._calm) < step:
            step = max(self._calm)
        if step == self.step:
            return
        was, self.step, self._since = self.step, step, self._now()
        say = log.warning if step > was else log.info
        say(
            "overload.changed",
            leaves_out=_WORDS[step],
            before=_WORDS[was],
            lag_s=round(load.lag_s, 3),
            jobs_waiting=load.jobs_waiting,
            requests=load.requests,
        )
        self._on_step(int(step))

    def check(self, method: str, segments: Sequence[str], query: bytes, target: str, limits: Limits) -> None:
        """Refuse a SCIM request that is left out now. Only called while something is.

        Raises:
            ScimError: 503 for reports and lists, 429 for writes, each with `Retry-After`.
        """
        belongs = belongs_to(method, segments, query, limits)
        if belongs is Shed.NOTHING or belongs > self.step:
            return
        if belongs is Shed.WRITES:
            error = self.write_refused(target)
            if error is not None:
                raise error
            return
        self.count(belongs)
        what = "searches without an index" if belongs is Shed.REPORTS else "lists"
        raise unavailable(f"The gateway has too much to do for {what} now", SHED_RETRY_AFTER_S)

    def write_refused(self, target: str) -> ScimError | None:
        """What a write of this target is answered instead, if it is left out now: one request, or one operation of a bulk."""
        if self.step < Shed.WRITES or self._kept.take(target):
            return None
        self.count(Shed.WRITES)
        error = too_many_requests(SHED_RETRY_AFTER_S)
        error.detail = (
            f"The gateway has too much to do and takes {WRITES_KEPT_PER_S:g} writes per second for each target now. "
            f"Try again in {SHED_RETRY_AFTER_S} s."
        )
        return error

    def count(self, what: Shed) -> None:
        """Something was refused."""
        name = what.name.lower()
        self._refused[name] += 1
        self._on_shed(name)

    def view(self) -> OverloadView:
        """How it stands."""
        return OverloadView(
            step=int(self.step),
            leaves_out=_WORDS[self.step],
            since=self._since,
            load=self._load,
            refused=dict(self._refused),
        )


def _reached(load: Load, share: float) -> Shed:
    reached = Shed.NOTHING
    for step, bound in SHED_AT.items():
        if (
            load.lag_s >= bound.lag_s * share
            or load.jobs_waiting >= bound.jobs_waiting * share
            or load.requests >= bound.requests * share
        ):
            reached = step
    return reached


_READS = frozenset(("GET", "HEAD"))
_LISTED = frozenset(("Users", "Groups"))
_INDEXED = {
    "Users": frozenset(("id", *Users.indexed, *Users.foreign)),
    "Groups": frozenset(("id", "members.value", *Groups.indexed, *Groups.foreign)),
}
_COLLECTION = 4
"""Parts of the path of a collection: scim, v2, target, kind."""


def belongs_to(method: str, segments: Sequence[str], query: bytes, limits: Limits = DEFAULT_LIMITS) -> Shed:
    """With which step a SCIM request is left out; NOTHING for what is served as long as anything is.

    Entra's own questions, for one resource by id or by what it is matched with, are of the last kind.

    Args:
        segments: the parts of the path, from `scim` on.
    """
    if segments[-1:] == [".search"]:
        return Shed.LISTS
    if method not in _READS:
        return Shed.WRITES
    if len(segments) != _COLLECTION or segments[-1] not in _LISTED:
        return Shed.NOTHING
    try:
        text = query_parameters(query, limits=limits).get("filter")
        if text is None:
            return Shed.LISTS
        named = {path for path, _ in index_terms(parse_filter(text, limits=limits))}
    except ScimError:
        return Shed.NOTHING  # it is refused in a moment, and in its own words
    return Shed.REPORTS if _INDEXED[segments[-1]].isdisjoint(named) else Shed.NOTHING


# ---- the operators' side

_OPERATOR_READS = re.compile(
    r"/api/v1/(dead|held|audit|auth/refusals|events/stream|targets/[^/]+/(shadow|reconcile/(findings|runs))|matches/[^/]+/findings)/?\Z"
)
_OPERATOR_STARTS = re.compile(r"/api/v1/(targets/[^/]+/(reconcile|match)|matches/[^/]+/start)/?\Z")
"""Operators' lists and reports by their path. The overview, the metrics, and what changes something stay."""

_SHED_BODY = msgspec.json.encode(
    {"error": "The gateway has too much to do for lists and reports now; see provgate status."}
)

Asgi = Callable[[Any, Any, Any], Any]


class SheddingReports:
    """ASGI middleware before the operators' listener: its lists are the first that is left out.

    Args:
        inner: the listener's application.
    """

    def __init__(self, inner: Asgi, overload: Overload) -> None:
        self._inner = inner
        self._overload = overload

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request, or refuse it with 503."""
        if self._overload.step and scope["type"] == "http" and _is_report(scope):
            self._overload.count(Shed.REPORTS)
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(_SHED_BODY)),
                (b"retry-after", b"%d" % SHED_RETRY_AFTER_S),
                (b"cache-control", b"no-store"),
            ]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": _SHED_BODY, "more_body": False})
            return
        await self._inner(scope, receive, send)


def _is_report(scope: Mapping[str, Any]) -> bool:
    if scope["method"] in _READS:
        return _OPERATOR_READS.match(scope["path"]) is not None
    return scope["method"] == "POST" and _OPERATOR_STARTS.match(scope["path"]) is not None
