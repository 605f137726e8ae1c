"""What the operators' API is made of, and what all its parts do alike: orders, bounds, known targets, records of acts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from litestar.params import SkipValidation
from msgspec import Meta, Struct, field

from gateway import explanations as explain
from gateway import views
from gateway.dispatch import Clock, Dispatcher
from gateway.keys import Keys
from gateway.ledger import Ledger
from gateway.limits import OverloadView
from gateway.mails_store import MailHealth
from gateway.metrics import Metrics
from gateway.refusals import RefusedSignIns
from gateway.reports_store import Report
from gateway.store import Reader, Store
from schemas.config import TargetSettings

PREFIX = "/api/v1"
ACTOR = "operator"
TOKEN_CHARS_MIN = 20
"""A shorter operator token could be guessed; the gateway does not start with one."""
LIST_DEFAULT = 100
LIST_MAX = 500
FOUND_MAX = 20
SOURCE_CHARS_MAX = 512
NUMBER_MAX = 2**63 - 1
"""The stores count lines in 64 bits."""

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


Sentence = Annotated[str, Meta(max_length=1_000)]
Id = Annotated[str, Meta(min_length=1, max_length=SOURCE_CHARS_MAX)]


class ReasonOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """An act that may say why."""

    reason: Sentence = ""


def order_of(body: bytes, type_: type[T]) -> T:
    """The order in a body. Raises OperatorError 400 for one that cannot be read."""
    try:
        return msgspec.json.decode(body or b"{}", type=type_)
    except msgspec.DecodeError as exc:
        raise OperatorError(400, f"The order cannot be read: {exc}") from None


def limit_of(limit: int, most: int = LIST_MAX) -> int:
    """How many are asked for. Raises OperatorError 400 above `most`."""
    if not 1 <= limit <= most:
        raise OperatorError(400, f"limit must be 1 to {most}.")
    return limit


def after_of(after: int) -> int:
    """The number of the line a page begins after. Raises OperatorError 400 for what no line can have."""
    if not 0 <= after <= NUMBER_MAX:
        raise OperatorError(400, f"after must be 0 to {NUMBER_MAX}.")
    return after


def known(services: Services, name: str) -> str:
    """The name of a configured target. Raises OperatorError 404 for another, with the nearest name."""
    if name not in services.targets():
        raise OperatorError(404, explain.no_target(name, services.targets()))
    return name


def ever_known(services: Services, reader: Reader, name: str | None) -> None:
    """A filter by target: of the file, or one that was in it once and left something behind. A slip of the pen is said."""
    if name is not None and all(record.row.name != name for record in reader.targets()):
        known(services, name)


def surroundings(services: Services) -> views.Surroundings:
    """What views are made from, as it is now."""
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


async def record(
    services: Services, action: str, target: str, detail: dict[str, Any], *, subject: str | None = None
) -> None:
    """Write down what an operator did; `subject` is the target itself unless named."""
    at = services.clock.now()

    def job(ledger: Ledger) -> None:
        named = target if subject is None else subject
        ledger.audit(at=at, actor=ACTOR, action=action, target=target, subject=named, detail=detail)

    await services.store.run(job)
