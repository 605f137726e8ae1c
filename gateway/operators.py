"""The operators' API: everything a person may see and do, as JSON under `/api/v1`, on a listener of its own.

Who may use it: whoever has the operator token. A page in a browser may not: a request that names another host than a local or
configured one, or that comes from another origin, is refused before anything else, whatever it carries.

Answers never hold a person's values unless they were asked for, and that is recorded. Every act is recorded with its reason.
Lists are bounded by `limit` and say how many there are in all. What goes wrong is `{"error": sentence}`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Litestar, Request, Response, Router, get, post
from litestar.connection import ASGIConnection
from litestar.datastructures import State as AppState
from litestar.di import Provide
from litestar.exceptions import HTTPException, NotFoundException
from litestar.handlers.base import BaseRouteHandler
from litestar.params import FromPath, FromQuery, RawBody, SkipValidation
from litestar.response import Stream
from msgspec import Meta, Struct, field

from gateway import explanations as explain
from gateway import plans, views
from gateway.comparison import DIFFERENCES
from gateway.dispatch import Clock, Dispatcher
from gateway.keys import CLIENT_DAYS_DEFAULT, DAYS_DEFAULT, KeyProblem, Keys, Kind, kind_of, last_ends
from gateway.ledger import NO_KEYS, Ledger, apply_effects
from gateway.lifecycle import InvariantBroken, Row, discard, redrive
from gateway.limits import OverloadView
from gateway.mails_store import MailHealth
from gateway.messages import ScimError
from gateway.metrics import CONTENT_TYPE, Metrics, TargetGauges
from gateway.patch import member_ids, normalize_create
from gateway.refusals import RefusedSignIn, RefusedSignIns
from gateway.reports_store import Report, last_report
from gateway.store import Reader, Store
from gateway.visibility import keys_of, shown_keys
from gateway.writer import StoreError
from schemas.config import TargetSettings
from schemas.logs import logger
from schemas.plans import PLAN_WAIT_S, Planned
from schemas.resources import GROUP_SCHEMA
from schemas.specs import Spec
from schemas.states import Circuit, State

PREFIX = "/api/v1"
ACTOR = "operator"
TOKEN_CHARS_MIN = 20
"""A shorter operator token could be guessed; the gateway does not start with one."""
BODY_BYTES_MAX = 256 * 1024
LIST_DEFAULT = 100
LIST_MAX = 500
FOUND_MAX = 20
IDS_MAX = 500
UNREASONED_MAX = 100
"""Moving more than this at once needs a reason in words (security requirement S13)."""
STREAMS_MAX = 16
STREAM_QUEUE_MAX = 1_000
"""Events kept for a reader that is too slow; beyond it they are counted instead."""
HEARTBEAT_S = 15.0
SOURCE_CHARS_MAX = 512

log = logger()

T = TypeVar("T")


AskWorker = Callable[[str, Mapping[str, Any], float], Awaitable[bytes | None]]


async def _nobody(target: str, question: Mapping[str, Any], wait_s: float) -> bytes | None:
    return None


def _not_described(target: str) -> Mapping[str, Any]:
    raise OperatorError(404, "This process serves no SCIM.")


class Services(Struct, kw_only=True):
    """What the operators' API is made of; the gateway puts it together.

    Args:
        token: what operators authenticate with, at least TOKEN_CHARS_MIN characters.
        targets: settings of the configured targets by name.
        workers_seen: the presence documents of all workers heard of lately, as plain data.
        live_events: a new feed of events and outcomes as plain data; see LIVE_FIELDS for what gets through.
        public_url: how Entra reaches this gateway, e.g. `https://provgate.example.com`; for Tenant URLs.
        new_id: ids of new generations (ULIDs).
        refused: what the SCIM listener of this process refused, and why.
        overload: what is left out for want of time in this process, if anybody watches.
        config_problems: what is wrong with the configuration file as it is now, so that an earlier one stays in force.
        ask_worker: asks any worker of a target a control question and waits so many seconds; None when nobody answered.
        scim_openapi: the OpenAPI document of the SCIM listener, with the attributes of a target ("": of any).
        next_comparison: when a target is compared by itself after its last comparison.
        mail_health: whether operators can be told by mail; None when they are not to be.
        hosts: further host names under which this listener is reached; addresses and `localhost` always are.
    """

    token: str
    store: Store
    dispatcher: Dispatcher
    targets: Callable[[], Mapping[str, TargetSettings]]
    clock: Clock
    workers_seen: Callable[[], Sequence[Mapping[str, Any]]]
    live_events: Callable[[], AsyncIterator[Mapping[str, Any]]]
    public_url: str
    new_id: Callable[[], str]
    keys: Keys
    metrics: Metrics
    refused: RefusedSignIns = field(default_factory=lambda: RefusedSignIns(time.time))
    overload: Callable[[], OverloadView | None] = lambda: None
    config_problems: Callable[[], Sequence[str]] = tuple
    ask_worker: AskWorker = _nobody
    scim_openapi: Callable[[str], Mapping[str, Any]] = _not_described
    hosts: tuple[str, ...] = ()
    mail_health: Callable[[Reader], MailHealth | None] = lambda reader: None
    next_comparison: Callable[[str, Report | None], float | None] = lambda target, last: None


Given = SkipValidation[Services]


class OperatorError(Exception):
    """An answer that is not the one the operator hoped for: a status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"operator error {status}")
        self.status = status
        self.message = message


# ---- orders

Sentence = Annotated[str, Meta(max_length=1_000)]
Id = Annotated[str, Meta(min_length=1, max_length=SOURCE_CHARS_MAX)]


class MoveOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Move these resources, at most IDS_MAX at a time."""

    ids: Annotated[tuple[Id, ...], Meta(min_length=1, max_length=IDS_MAX)]
    reason: Sentence = ""


class DiscardOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Give these up, and say why."""

    ids: Annotated[tuple[Id, ...], Meta(min_length=1, max_length=IDS_MAX)]
    reason: Annotated[str, Meta(min_length=1, max_length=1_000, pattern=r"\S")]


class FindOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Find a person. In a body, because addresses of requests end up in logs of proxies."""

    who: Id
    target: str | None = None
    show_values: bool = False
    reason: Sentence = ""


class PlanOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Say what would be done at the product, for a stored user or group (`who`: any id) or a SCIM document.

    `group`: only a group is meant, or the document is one.
    """

    who: Id | None = None
    document: dict[str, Any] | None = None
    group: bool = False
    delete: bool = False
    inactive: bool = False
    show_values: bool = False
    reason: Sentence = ""


class ReasonOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """An act that may say why."""

    reason: Sentence = ""


class PauseOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Pause, and say why."""

    reason: Annotated[str, Meta(min_length=1, max_length=1_000, pattern=r"\S")]


class KeyOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Make a key."""

    target: str
    days: int = DAYS_DEFAULT
    label: Annotated[str, Meta(max_length=100)] = ""


class ClientOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Make a client secret."""

    target: str
    days: int = CLIENT_DAYS_DEFAULT
    label: Annotated[str, Meta(max_length=100)] = ""


def _order(body: bytes, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(body or b"{}", type=type_)
    except msgspec.DecodeError as exc:
        raise OperatorError(400, f"The order cannot be read: {exc}") from None


def _limit(limit: int) -> int:
    if not 1 <= limit <= LIST_MAX:
        raise OperatorError(400, f"limit must be 1 to {LIST_MAX}.")
    return limit


# ---- who may


class _Gate:
    """Decides about every request before it is looked at further."""

    def __init__(self, token: str, hosts: Iterable[str]) -> None:
        if len(token) < TOKEN_CHARS_MIN:
            raise ValueError(f"an operator token needs at least {TOKEN_CHARS_MIN} characters")
        self._digest = hashlib.sha256(token.encode()).digest()
        self._hosts = frozenset(host.lower() for host in hosts) | {"localhost"}

    async def no_browser(self, connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        """A page of another site may not use this listener, not even through a name it made point here (DNS rebinding)."""
        host = connection.headers.get("host", "")
        if not self._own(host):
            raise OperatorError(403, "This listener is not known under that host name.")
        origin = connection.headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            raise OperatorError(403, "A page of another site may not use this API.")
        if connection.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise OperatorError(403, "A page of another site may not use this API.")

    async def operator(self, connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        """Only who has the token, compared in constant time."""
        if handler.opt.get("public"):
            return
        given = connection.headers.getall("authorization", [])
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        if not (hmac.compare_digest(digest, self._digest) and scheme.lower() == "bearer"):
            raise OperatorError(401, "The operator token is missing or wrong.")

    def _own(self, host: str) -> bool:
        name = host.rsplit("]", 1)[0][1:] if host.startswith("[") else host.partition(":")[0]
        if name.lower() in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True  # an address cannot be made to point elsewhere


# ---- the overview


@get("/status")
async def status(services: Given, target: FromQuery[str | None] = None) -> views.StatusView:
    """What is wrong, in one sentence; every target; what waits and why."""
    around = _around(services)
    names = [_known(services, target)] if target is not None else list(around.targets)
    seen, waiting = await _look(services, around, names)
    problems = {view.name: view.problems for view in seen if view.enabled}
    waits = {view.name: view.counts.waiting + view.counts.blocked for view in seen}
    overload = services.overload()
    config_problems = tuple(services.config_problems())
    mail = await services.store.read_slow(services.mail_health)
    left_over: tuple[views.LeftOverView, ...] = ()
    if target is None:
        left_over = await services.store.read_slow(lambda reader: tuple(views.left_over(around, reader)))
    return views.StatusView(
        at=around.now,
        sentence=explain.status_sentence(problems, waits, bus_connected=around.bus_connected, only=target),
        fine=around.bus_connected
        and bool(problems)
        and not any(problems.values())
        and not config_problems
        and (mail is None or mail.fine)
        and (overload is None or not overload.step),
        bus_connected=around.bus_connected,
        targets=seen,
        waiting=waiting,
        overload=overload,
        config_problems=config_problems,
        mail=mail,
        left_over=left_over,
    )


@get("/targets")
async def list_targets(services: Given) -> views.TargetsView:
    """All configured targets."""
    around = _around(services)
    names = list(around.targets)
    seen = await services.store.read_slow(
        lambda reader: tuple(views.target_view(around, reader, name) for name in names)
    )
    return views.TargetsView(around.now, seen)


@get("/targets/{name:str}")
async def show_target(services: Given, name: FromPath[str]) -> views.OneTargetView:
    """One target, with what waits there and why."""
    around = _around(services)
    seen, waiting = await _look(services, around, [_known(services, name)])
    return views.OneTargetView(around.now, seen[0], waiting)


def _known(services: Services, name: str) -> str:
    if name not in services.targets():
        raise OperatorError(404, explain.no_target(name, services.targets()))
    return name


def _ever_known(services: Services, reader: Reader, name: str | None) -> None:
    """A filter by target: of the file, or one that was in it once and left something behind. A slip of the pen is said."""
    if name is not None and all(record.row.name != name for record in reader.targets()):
        _known(services, name)


def _around(services: Services) -> views.Surroundings:
    return views.Surroundings(
        now=services.clock.now(),
        targets=services.targets(),
        presences=services.workers_seen(),
        bus_connected=services.dispatcher.bus.connected(),
        public_url=services.public_url,
        last_outcome=services.metrics.last_outcome,
        last_request=services.metrics.last_request,
        next_comparison=services.next_comparison,
    )


async def _look(
    services: Services, around: views.Surroundings, names: Sequence[str]
) -> tuple[tuple[views.TargetView, ...], tuple[views.WaitingView, ...]]:
    """Targets, and what waits there and why."""

    def query(reader: Reader) -> tuple[tuple[views.TargetView, ...], tuple[views.WaitingView, ...]]:
        seen = tuple(views.target_view(around, reader, name) for name in names)
        return seen, tuple(group for name in names for group in views.waiting_views(around, reader, name))

    return await services.store.read_slow(query)


@get("/openapi.json")
async def scim_openapi(services: Given, target: FromQuery[str | None] = None) -> dict[str, Any]:
    """What the SCIM listener serves, as OpenAPI 3.1; with `target` its own attributes and addresses."""
    return dict(services.scim_openapi(_known(services, target) if target is not None else ""))


# ---- one target


@post("/targets/{name:str}/pause", status_code=200)
async def pause_target(services: Given, name: FromPath[str], body: RawBody) -> views.TargetMoved:
    """Send nothing to this target until it is resumed; Entra is still answered."""
    return await _set_pause(services, _known(services, name), ACTOR, _order(body, PauseOrder).reason)


@post("/targets/{name:str}/resume", status_code=200)
async def resume_target(services: Given, name: FromPath[str], body: RawBody) -> views.TargetMoved:
    """Go on sending."""
    moved = await _set_pause(services, _known(services, name), None, _order(body, ReasonOrder).reason)
    services.dispatcher.kick(name)
    return moved


async def _set_pause(services: Services, name: str, paused_by: str | None, reason: str) -> views.TargetMoved:
    def job(ledger: Ledger) -> views.TargetMoved:
        target = ledger.target(name)
        changed = (target.paused_by is None) != (paused_by is None)
        target.paused_by = paused_by
        target.paused_reason = explain.sentence_of(reason) if paused_by is not None else ""
        ledger.save_target(target)
        ledger.audit(
            at=services.clock.now(),
            actor=ACTOR,
            action="target.paused" if paused_by is not None else "target.resumed",
            target=name,
            subject=name,
            detail={"reason": reason, "changed": changed},
        )
        return views.TargetMoved(name, paused_by, changed)

    return await services.store.run(job)


@post("/targets/{name:str}/probe", status_code=200)
async def probe_target(services: Given, name: FromPath[str]) -> views.Probed:
    """Have a worker check the product now; an open circuit is tried again at once."""
    _known(services, name)
    bus = services.dispatcher.bus
    reply = await bus.probe(name) if bus.connected() else None
    await services.dispatcher.probe_now(name)
    services.dispatcher.kick(name)
    if reply is None:
        why = "No worker answered." if bus.connected() else "NATS cannot be reached."
        probed = views.Probed(name, False, "no_answer", f"{why} Nothing is known about the product.")
    else:
        said = explain.sentence_of(explain.mask_message(reply.message))
        probed = views.Probed(
            name, reply.ok, reply.code, said or ("The product answers." if reply.ok else "It failed.")
        )

    def job(ledger: Ledger) -> None:
        detail = {"ok": probed.ok, "code": probed.code}
        ledger.audit(
            at=services.clock.now(), actor=ACTOR, action="target.probed", target=name, subject=name, detail=detail
        )

    await services.store.run(job)
    return probed


# ---- plans and shadow mode


@post("/targets/{name:str}/plan", status_code=200)
async def plan_change(services: Given, name: FromPath[str], body: RawBody) -> plans.PlanView:
    """What would be done at the product; a worker rehearses it and sends nothing that writes."""
    order = _order(body, PlanOrder)
    settings = services.targets()[_known(services, name)]
    if (order.who is None) == (order.document is None) or (order.delete and order.inactive):
        raise OperatorError(
            400, "Name either a stored user or group or a document, and at most one of delete and inactive."
        )
    kind: str | None = "group" if order.group or _is_group(order.document) else None
    now = services.clock.now()
    document: dict[str, Any] | None = None
    if order.document is not None:
        kind = kind or "user"
        try:
            document = normalize_create(order.document, "Group" if kind == "group" else "User")
        except ScimError as exc:
            return plans.refused_as_scim(exc, target=name, kind=kind, settings=settings, now=now)
        if order.inactive:
            document["active"] = False
    name_path = "displayName" if kind == "group" else "userName"
    who = order.who if order.who is not None else str((document or {}).get(name_path, ""))

    def find(reader: Reader) -> tuple[list[Row], Spec | None]:
        spec = reader.spec(name)
        rows = [row for row in reader.find_person(who) if row.target == name and kind in (None, row.kind)]
        if document is not None:
            rows = [row for row in rows if shown_keys(row).user_name == keys_of(document, row.kind).user_name]
        return rows, msgspec.json.decode(spec, type=Spec) if spec else None

    rows, spec = await services.store.read_slow(find)
    if order.who is not None and len(rows) != 1:
        many = ", ".join(f"{row.id} (a {row.kind})" for row in rows[:FOUND_MAX])
        what = f"No {kind or 'user or group'}"
        why = (
            f"Several are known by that name; name one of {many}." if rows else f"{what} of {name} is known by that id."
        )
        raise OperatorError(404 if not rows else 409, why)
    stored = bool(rows)
    if order.inactive and (rows[0].kind if rows else kind) == "group":
        raise OperatorError(400, "A group cannot be deactivated; plan its deletion.")

    def draft(ledger: Ledger) -> plans.Draft:
        row = (ledger.row(rows[0].id) if stored else None) or Row(
            id=str(uuid.uuid4()), target=name, kind=kind or "user"
        )
        if document is not None and row.kind == "group" and not order.delete:
            plain = {path: value for path, value in document.items() if path != "members"}
            plans.regrouped(row, plain, member_ids(document.get("members", ())), ledger, settings.connector, now)
        state = row.state if document is None and not (order.delete or order.inactive) else None
        if document is not None:
            row = plans.rewished(row, document, spec)
        if document is None or order.delete:
            row = plans.existing(row, delete=order.delete, inactive=order.inactive)
        return plans.drafted(row, ledger, settings.connector, now, state)

    try:
        drafted = await services.store.run(draft)
    except plans.Undone as undone:
        drafted = undone.draft
    if drafted.event is None:
        return plans.unsent(drafted, target=name, settings=settings, stored=stored, now=now)
    said = await _planned(services, name, drafted.event, show_values=order.show_values)
    owner = await _owner_of(services, drafted.row, said.adopts_id) if said.adopts_id else None
    if order.show_values:
        await _record_shown(services, name, drafted.row.id, order.reason)  # recorded before it is shown
    return plans.answered(
        drafted,
        said,
        target=name,
        settings=settings,
        stored=stored,
        owner=owner,
        now=now,
        show_values=order.show_values,
    )


def _is_group(document: Mapping[str, Any] | None) -> bool:
    """Whether a document says that it is a group; one that says nothing is one when it has a name and no userName."""
    if document is None:
        return False
    schemas = document.get("schemas")
    if isinstance(schemas, list) and schemas:
        return GROUP_SCHEMA in schemas
    return "displayName" in document and "userName" not in document


async def _planned(services: Services, name: str, event: bytes, *, show_values: bool) -> Planned:
    """Raises: OperatorError 503 when no worker answered, or not in words known here."""
    question = {"do": "plan", "event": msgspec.Raw(event), "show_values": show_values}
    connected = services.dispatcher.bus.connected()
    answer = await services.ask_worker(name, question, PLAN_WAIT_S) if connected else None
    if answer is None:
        why = "No worker answered." if connected else "NATS cannot be reached."
        raise OperatorError(503, f"{why} Nothing can be planned; see: provgate target show {name}")
    try:
        return msgspec.json.decode(answer, type=Planned)
    except msgspec.DecodeError:
        raise OperatorError(
            503, "The worker answered in words this gateway does not know; are both up to date?"
        ) from None


async def _owner_of(services: Services, row: Row, account_id: str) -> Row | None:
    """The resource that is linked to an account already, if it is not this one."""

    def query(reader: Reader) -> Row | None:
        found = (held for held in reader.find_person(account_id) if held.target == row.target)
        return next((held for held in found if held.account_id == account_id and held.id != row.id), None)

    return await services.store.read_slow(query)


async def _record_shown(services: Services, target: str, subject: str, reason: str) -> None:
    def job(ledger: Ledger) -> None:
        ledger.audit(
            at=services.clock.now(),
            actor=ACTOR,
            action="values.shown",
            target=target,
            subject=subject,
            detail={"reason": reason, "plan": True},
        )

    await services.store.run(job)


@get("/targets/{name:str}/shadow")
async def show_shadow(services: Given, name: FromPath[str], limit: FromQuery[int] = LIST_DEFAULT) -> plans.ShadowView:
    """What shadow mode has recorded: every rehearsed change with the calls that were not sent, masked."""
    settings, most, now = services.targets()[_known(services, name)], _limit(limit), services.clock.now()
    return await services.store.read_slow(lambda reader: plans.shadow_view(reader, name, settings, limit=most, now=now))


# ---- dead letters and held changes


@get("/dead")
async def list_dead(
    services: Given,
    target: FromQuery[str | None] = None,
    cause: FromQuery[str | None] = None,
    limit: FromQuery[int] = LIST_DEFAULT,
) -> views.StuckList:
    """Dead letters: all causes with their counts, and the newest `limit` of them; `cause` is a whole fingerprint or a code."""
    most = _limit(limit)
    now = services.clock.now()

    def query(reader: Reader) -> views.StuckList:
        _ever_known(services, reader, target)
        causes = [
            held
            for held in reader.dead_causes()
            if (target is None or held.target == target) and _is_cause(cause, views.cause_of(held.fingerprint))
        ]
        if cause is None:
            rows = reader.dead(target, most)
        else:
            rows = []
            for held in causes:
                rows += reader.dead(held.target, most - len(rows), held.fingerprint) if len(rows) < most else []
        return views.StuckList(
            at=now,
            total=sum(held.count for held in causes),
            causes=tuple(views.dead_cause(reader, held) for held in causes[:LIST_MAX]),
            items=tuple(
                views.stuck(row, views.cause_of(row.reason.fingerprint() if row.reason else None)) for row in rows
            ),
        )

    return await services.store.read_slow(query)


def _is_cause(wanted: str | None, cause: str) -> bool:
    return wanted is None or wanted == cause or wanted == cause.partition(":")[0]


@get("/held")
async def list_held(
    services: Given,
    target: FromQuery[str | None] = None,
    cause: FromQuery[str | None] = None,
    limit: FromQuery[int] = LIST_DEFAULT,
) -> views.StuckList:
    """Changes a safety brake holds back, oldest first, grouped by kind of change."""
    most = _limit(limit)
    now = services.clock.now()

    def query(reader: Reader) -> views.StuckList:
        _ever_known(services, reader, target)
        names = [target] if target is not None else [record.row.name for record in reader.targets()]
        names = sorted({*names, *([] if target is not None else services.targets())})
        total, rows = 0, []
        for name in names:
            total += reader.counts(name).get(State.HELD, 0)
            rows += [row for row in reader.in_state(name, State.HELD, LIST_MAX) if _is_cause(cause, row.change.value)]
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            groups.setdefault((row.target, row.change.value), []).append(row)
        return views.StuckList(
            at=now,
            total=total if cause is None else len(rows),
            causes=tuple(views.held_cause(name, change, members) for (name, change), members in groups.items()),
            items=tuple(views.stuck(row, row.change.value) for row in rows[:most]),
        )

    return await services.store.read_slow(query)


@post("/dead/redrive", status_code=200)
async def redrive_dead(services: Given, body: RawBody) -> views.Moved:
    """Open dead letters again, as a new generation of what Entra asked last."""
    return await _redrive(services, _order(body, MoveOrder), State.DEAD, "dead.redriven")


@post("/held/approve", status_code=200)
async def approve_held(services: Given, body: RawBody) -> views.Moved:
    """Let held changes go on."""
    return await _redrive(services, _order(body, MoveOrder), State.HELD, "held.approved")


async def _redrive(services: Services, order: MoveOrder, state: State, action: str) -> views.Moved:
    def job(ledger: Ledger, resource: str) -> Row:
        row = _in_state(ledger, resource, state)
        now = services.clock.now()
        generation = row.generation
        apply_effects(ledger, row, redrive(row, services.new_id(), now), now)
        _show_again(ledger, row)
        ledger.save(row)
        if row.generation != generation:
            ledger.add_event(row, actor=ACTOR)
        _record(services, ledger, row, action, order.reason)
        return row

    return await _move(services, order.ids, order.reason, job)


@post("/dead/discard", status_code=200)
async def discard_dead(services: Given, body: RawBody) -> views.Moved:
    """Give dead letters (or held changes) up; what SCIM shows stays the last confirmed state."""
    order = _order(body, DiscardOrder)

    def job(ledger: Ledger, resource: str) -> Row:
        row = _in_state(ledger, resource, State.DEAD, State.HELD)
        now = services.clock.now()
        apply_effects(ledger, row, discard(row), now)
        if ledger.set_keys(row, shown_keys(row)) is not None:
            ledger.set_keys(
                row, NO_KEYS
            )  # its confirmed name belongs to somebody else by now; it is still found by its id
        ledger.save(row)
        _record(services, ledger, row, "dead.discarded", order.reason)
        return row

    return await _move(services, order.ids, order.reason, job)


class _NotMoved(Exception):
    """Why one resource of an order stays as it is; raised before anything of it was written."""


async def _move(services: Services, ids: Sequence[str], reason: str, job: Callable[[Ledger, str], Row]) -> views.Moved:
    """One job per resource; they share transactions, and one that cannot be moved does not stop the others."""
    if len(ids) > UNREASONED_MAX and not reason.strip():
        raise OperatorError(400, f"More than {UNREASONED_MAX} at once need a reason.")

    def guarded(resource: str) -> Callable[[Ledger], Row | views.Skipped]:
        def one(ledger: Ledger) -> Row | views.Skipped:
            try:
                return job(ledger, resource)
            except (_NotMoved, InvariantBroken) as exc:
                return views.Skipped(resource, str(exc))

        return one

    jobs: list[Awaitable[Row | views.Skipped]] = [services.store.run(guarded(one)) for one in dict.fromkeys(ids)]
    results = await asyncio.gather(*jobs)
    rows = [result for result in results if isinstance(result, Row)]
    for target in sorted({row.target for row in rows}):
        services.dispatcher.kick(target)
    return views.Moved(
        tuple(row.id for row in rows), tuple(result for result in results if isinstance(result, views.Skipped))
    )


def _in_state(ledger: Ledger, resource: str, *states: State) -> Row:
    row = ledger.row(resource)
    if row is None:
        raise _NotMoved("there is no such resource; all of a target: --target NAME")
    if row.state not in states:
        wanted = " or ".join(state.value for state in states)
        raise _NotMoved(f"it is {row.state.value}, not {wanted}")
    return row


def _show_again(ledger: Ledger, row: Row) -> None:
    """A wish that is alive again is found by its own names; nothing is written when somebody else has them."""
    keys = shown_keys(row)
    taken = ledger.set_keys(row, keys)
    if taken is None:
        return
    other = ledger.row(taken)
    if other is None or other.state is not State.REJECTED:
        raise _NotMoved(f"its userName or externalId belongs to resource {taken} by now; correct one of them in Entra")
    ledger.set_keys(other, NO_KEYS)
    if ledger.set_keys(row, keys) is not None:
        raise RuntimeError("two resources hold the unique keys of a third one")


def _record(services: Services, ledger: Ledger, row: Row, action: str, reason: str) -> None:
    ledger.audit(
        at=services.clock.now(),
        actor=ACTOR,
        action=action,
        target=row.target,
        subject=row.id,
        detail={"reason": reason, "generation": row.generation},
    )


# ---- one resource


@get("/resources/{resource:str}")
async def show_resource(services: Given, resource: FromPath[str]) -> views.ResourceView:
    """One resource by its id: both halves, conditions, history, next step; values masked."""
    around = _around(services)

    def query(reader: Reader) -> views.ResourceView | None:
        row = reader.row(resource)
        return None if row is None else views.resource_view(around, reader, row, show_values=False)

    found = await services.store.read_slow(query)
    if found is None:
        raise OperatorError(404, "There is no resource with this id; provgate user show finds people by other ids.")
    return found


@post("/resources/find", status_code=200)
async def find_resources(services: Given, body: RawBody) -> views.FoundView:
    """People by any id; values are shown only when asked for, and that is recorded."""
    order = _order(body, FindOrder)

    around = _around(services)

    def query(reader: Reader) -> views.FoundView:
        _ever_known(services, reader, order.target)
        rows = [row for row in reader.find_person(order.who) if order.target in (None, row.target)]
        found = (views.resource_view(around, reader, row, show_values=order.show_values) for row in rows[:FOUND_MAX])
        return views.FoundView(around.now, len(rows), tuple(found))

    found = await services.store.read_slow(query)
    if order.show_values and found.found:

        def job(ledger: Ledger) -> None:
            for view in found.found:
                ledger.audit(
                    at=services.clock.now(),
                    actor=ACTOR,
                    action="values.shown",
                    target=view.target,
                    subject=view.id,
                    detail={"reason": order.reason},
                )

        await services.store.run(job)  # recorded before it is shown
    return found


# ---- keys


@get("/keys")
async def list_keys(
    services: Given, target: FromQuery[str | None] = None, limit: FromQuery[int] = LIST_MAX
) -> views.KeysView:
    """The keys of one target or of all, oldest first."""
    most = _limit(limit)
    now = services.clock.now()
    rows = await services.keys.listed(_known(services, target) if target is not None else None, "key")
    return views.KeysView(now, len(rows), tuple(views.key_view(row, now) for row in rows[:most]))


@post("/keys", status_code=201)
async def new_key(services: Given, body: RawBody) -> views.NewKeyView:
    """Make a key; its text is in this answer and nowhere else."""
    order = _order(body, KeyOrder)
    target = _known(services, order.target)
    try:
        made = await services.keys.issue(target, days=order.days, label=order.label, actor=ACTOR)
    except KeyProblem as exc:
        raise OperatorError(409, str(exc)) from None
    return views.NewKeyView(
        id=made.row.id,
        target=target,
        key=made.text,
        tenant_url=_around(services).tenant_url(target),
        expires_at=made.row.expires_at,
    )


@post("/keys/{key_id:str}/revoke", status_code=200)
async def revoke_key(services: Given, key_id: FromPath[str], body: RawBody) -> views.KeyView:
    """End a key now."""
    return await _revoke(services, key_id, _order(body, ReasonOrder).reason, "key")


async def _revoke(services: Services, key_id: str, reason: str, kind: Kind) -> views.KeyView:
    held = [row for row in await services.store.read_slow(lambda reader: reader.keys(None)) if row.id == key_id]
    if not held or kind_of(held[0]) != kind:
        what = "key" if kind == "key" else "client secret"
        raise OperatorError(404, f"There is no {what} with this id; see: provgate {kind} list")
    await services.keys.revoke(held[0].target, key_id, actor=ACTOR)
    now = services.clock.now()
    if reason:

        def job(ledger: Ledger) -> None:
            ledger.audit(
                at=now,
                actor=ACTOR,
                action=f"{kind}.reason",
                target=held[0].target,
                subject=key_id,
                detail={"reason": reason},
            )

        await services.store.run(job)
    rows = [row for row in await services.keys.listed(held[0].target) if row.id == key_id]
    return views.key_view(rows[0], now)


# ---- client secrets, refused sign-ins


@get("/clients")
async def list_clients(
    services: Given, target: FromQuery[str | None] = None, limit: FromQuery[int] = LIST_MAX
) -> views.ClientsView:
    """The client secrets of one target or of all, oldest first."""
    most = _limit(limit)
    now = services.clock.now()
    rows = await services.keys.listed(_known(services, target) if target is not None else None, "client")
    return views.ClientsView(now, len(rows), tuple(views.key_view(row, now) for row in rows[:most]))


@post("/clients", status_code=201)
async def new_client(services: Given, body: RawBody) -> views.NewClientView:
    """Make a client secret; its text is in this answer and nowhere else."""
    order = _order(body, ClientOrder)
    target = _known(services, order.target)
    if "oauth" not in services.targets()[target].auth:
        raise OperatorError(409, f'{target} takes no client secrets; add "oauth" to targets.{target}.auth first.')
    try:
        made = await services.keys.issue(target, days=order.days, label=order.label, actor=ACTOR, kind="client")
    except KeyProblem as exc:
        raise OperatorError(409, str(exc)) from None
    around = _around(services)
    return views.NewClientView(
        id=made.row.id,
        target=target,
        client_id=target,
        client_secret=made.text,
        token_endpoint=around.token_endpoint(target),
        tenant_url=around.tenant_url(target),
        expires_at=made.row.expires_at,
    )


@post("/clients/{key_id:str}/revoke", status_code=200)
async def revoke_client(services: Given, key_id: FromPath[str], body: RawBody) -> views.KeyView:
    """End a client secret now, and every token that was bought with it."""
    return await _revoke(services, key_id, _order(body, ReasonOrder).reason, "client")


@get("/auth/refusals")
async def list_refusals(
    services: Given, target: FromQuery[str | None] = None, limit: FromQuery[int] = LIST_DEFAULT
) -> views.RefusalsView:
    """The latest refused sign-ins at this gateway, with every check."""
    return views.RefusalsView(services.clock.now(), tuple(services.refused.listed(target, _limit(limit))))


@get("/auth/refusals/{refusal_id:str}")
async def show_refusal(services: Given, refusal_id: FromPath[str]) -> RefusedSignIn:
    """One refused sign-in, by the id that the caller was given."""
    refused = services.refused.find(refusal_id)
    if refused is None:
        raise OperatorError(
            404,
            "This gateway knows of no such refusal. The latest are kept, until it restarts; the log keeps the cause of all.",
        )
    return refused


# ---- audit, live events, metrics


@get("/audit")
async def list_audit(services: Given, limit: FromQuery[int] = LIST_DEFAULT) -> views.AuditView:
    """What operators and the system did, newest first."""
    most = _limit(limit)
    records = await services.store.read_slow(lambda reader: reader.audit(most))
    return views.AuditView(services.clock.now(), tuple(views.audit_entry(record) for record in records))


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
        _known(services, target)
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


@get("/metrics", opt={"public": True})
async def metrics_page(services: Given) -> Response[bytes]:
    """For Prometheus. Needs no token: there are numbers and names of targets in it, nothing about people."""
    now = services.clock.now()
    names = list(services.targets())

    def query(reader: Reader) -> list[TargetGauges]:
        gauges = []
        for name in names:
            oldest = reader.oldest_waiting(name)
            report = last_report(reader, name)
            gauges.append(
                TargetGauges(
                    target=name,
                    counts={state.value: count for state, count in reader.counts(name).items()},
                    oldest_waiting_s=0.0 if oldest is None else max(0.0, now - oldest),
                    circuit_open=reader.target(name).row.circuit is not Circuit.CLOSED,
                    drift={one: report.counts.get(one, 0) for one in DIFFERENCES} if report else {},
                    reconciled_at=report.ended_at if report else 0.0,
                    reconcile_state=report.state if report else "",
                    reconcile_next_at=services.next_comparison(name, report) or 0.0,
                    key_ends=last_ends(reader.keys(name)),
                )
            )
        return gauges

    services.metrics.know(names)
    page = services.metrics.render(await services.store.read_slow(query))
    return Response(page, headers={"Content-Type": CONTENT_TYPE})


# ---- the application


def _problem(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response[bytes]:
    body = msgspec.json.encode({"error": message})
    return Response(body, status_code=status, media_type="application/json", headers=dict(headers or {}))


def _on_operator_error(_: Request[Any, Any, Any], exc: OperatorError) -> Response[bytes]:
    return _problem(exc.status, exc.message, {"WWW-Authenticate": "Bearer"} if exc.status == 401 else None)


def _on_http_error(_: Request[Any, Any, Any], exc: HTTPException) -> Response[bytes]:
    if isinstance(exc, NotFoundException):
        return _problem(404, "There is nothing at this address; the API lives under /api/v1.")
    return _problem(exc.status_code, explain.sentence_of(exc.detail))


def _on_store_error(_: Request[Any, Any, Any], exc: StoreError) -> Response[bytes]:
    return _problem(503, "The status store cannot be reached; nothing was changed. Try again.", {"Retry-After": "5"})


def _on_bug(request: Request[Any, Any, Any], exc: Exception) -> Response[bytes]:
    # the text of an unforeseen error may hold anything, so only its type is written down
    log.error("operators.failed", route=request.scope["path"].split("/")[3:4], error=type(exc).__name__)
    return _problem(500, "Something went wrong inside the gateway; its log says more.")


def create_app(services: Services, *more: Router) -> Litestar:
    """The operators' listener as an ASGI application; `more`: further routes, behind the same gate.

    Raises:
        ValueError: the operator token is too short.
    """
    gate = _Gate(services.token, services.hosts)

    def given() -> Services:
        return services

    api = Router(
        PREFIX,
        route_handlers=[
            status,
            scim_openapi,
            list_targets,
            show_target,
            pause_target,
            resume_target,
            probe_target,
            plan_change,
            show_shadow,
            list_dead,
            redrive_dead,
            discard_dead,
            list_held,
            approve_held,
            show_resource,
            find_resources,
            list_keys,
            new_key,
            revoke_key,
            list_clients,
            new_client,
            revoke_client,
            list_refusals,
            show_refusal,
            list_audit,
            stream_events,
        ],
    )
    return Litestar(
        [api, metrics_page, *more],
        dependencies={"services": Provide(given, sync_to_thread=False)},
        guards=[gate.no_browser, gate.operator],
        exception_handlers={
            OperatorError: _on_operator_error,
            HTTPException: _on_http_error,
            StoreError: _on_store_error,
            Exception: _on_bug,
        },
        response_headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
        request_max_body_size=BODY_BYTES_MAX,
        openapi_config=None,
        logging_config=None,
        state=AppState({"streams": set()}),
    )
