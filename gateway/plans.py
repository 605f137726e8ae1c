"""What a change of a user or group would do at a product, without doing it: the operator's plan, and what shadow mode recorded.

The event is made by the very rules that make real ones (`lifecycle.dispatch` on a copy of the row that is never saved); a worker
rehearses it. Nothing is recorded but that values were shown, if they were.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

import msgspec
from msgspec import Struct

from gateway import explanations as explain
from gateway import lifecycle, views
from gateway.intake import refusal
from gateway.ledger import Ledger
from gateway.lifecycle import InvariantBroken, Row
from gateway.messages import ScimError
from gateway.patch import MemberChange
from gateway.store import Reader
from gateway.waits import waits_for_name
from schemas.config import TargetSettings
from schemas.events import Reason, Step, decode_event, encode, identity
from schemas.plans import NOT_SENT, Planned, WouldCall
from schemas.specs import Spec
from schemas.states import SHADOW, Change, State

CALLS_SHOWN_MAX = 60

Would = Literal["create", "update", "enable", "disable", "delete", "adopt", "wait", "refuse", "nothing", "unknown"]
"""What would become of it: the account made, changed, switched on or off, removed; an existing one linked; and so on."""


class Refusal(Struct, frozen=True):
    """A SCIM error as Entra would see it (RFC 7644 section 3.12)."""

    status: int
    scim_type: str | None
    detail: str


class PlanView(Struct, frozen=True, kw_only=True):
    """A plan.

    Args:
        resource: the stored resource, or None for a document that is not stored.
        kind: `user` or `group`.
        change: the kind of write this would be for Entra.
        due: this is still to be done; False when it is applied already and the plan says what applying it again would do.
        would: what would become of it; `unknown` when the product could not be asked.
        sentence: the same for a person.
        refusal: what Entra would be answered, when it would be refused while Entra waits.
        account: the normalized account.
        base_url: of the product; the calls' `url` is below it.
        calls: what would be sent, in order; `reads` were really made for the plan.
        ignored: SCIM paths the product cannot hold.
    """

    at: float
    target: str
    shadow: bool
    resource: str | None
    kind: str
    change: str
    due: bool
    would: Would
    sentence: str
    refusal: Refusal | None = None
    account: Any = None
    base_url: str = ""
    calls: tuple[WouldCall, ...] = ()
    left_out: int = 0
    reads: tuple[Step, ...] = ()
    adopts: str | None = None
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    masked: bool = True


class Draft(Struct, kw_only=True):
    """An event that is not going to be sent.

    Args:
        row: as it would be then; it is never saved.
        event: None: nothing would be sent, `row` says why.
        due: see `PlanView`.
        remarks: what the event does not carry yet, and why.
    """

    row: Row
    event: bytes | None
    due: bool = True
    remarks: tuple[str, ...] = ()


class Undone(Exception):
    """Ends a job of the store that only tried something out, so that nothing of it is left; carries what came of it."""

    def __init__(self, draft: Draft) -> None:
        super().__init__("only tried out")
        self.draft = draft


def existing(row: Row, *, delete: bool, inactive: bool) -> Row:
    """A copy of a stored row as it would be dispatched next, perhaps with another wish."""
    draft = copy.deepcopy(row)
    draft.in_flight = draft.body = None
    draft.blocked_on = draft.reason = None
    draft.state = State.QUEUED
    if draft.change is Change.CREATE and draft.account_id is not None:
        draft.change = Change.UPDATE  # that it was made once is not what would happen now
    if delete:
        draft.generation += 1
        draft.change, draft.deleted = Change.DELETE, True
    elif inactive:
        draft.generation += 1
        draft.change = Change.DEACTIVATE
        draft.document = msgspec.json.encode({**msgspec.json.decode(draft.document), "active": False})
    return draft


def rewished(row: Row, document: Mapping[str, Any], spec: Spec | None) -> Row:
    """A copy of a row with another document."""
    draft = existing(row, delete=False, inactive=False)
    draft.generation += 1
    draft.change = Change.UPDATE if row.generation else Change.CREATE
    draft.deleted = False
    draft.document = msgspec.json.encode(document)
    draft.identities = _identities(document, spec, row.kind)
    return draft


def regrouped(
    row: Row, document: Mapping[str, Any], members: Sequence[str], ledger: Ledger, connector: str, now: float
) -> NoReturn:
    """Try out a group with these members in the store's own transaction, which is undone.

    Raises:
        Undone: always, with the draft.
    """
    draft = rewished(row, document, None)
    ledger.save(draft)  # members belong to a row that exists
    ledger.change_members(draft.id, (MemberChange("replace", tuple(members)),))
    raise Undone(drafted(draft, ledger, connector, now))


def _identities(document: Mapping[str, Any], spec: Spec | None, kind: str = "user") -> tuple[str, ...]:
    if kind == "group":
        paths: Sequence[str] = ("displayName",)
    else:
        paths = spec.identity if spec is not None else ("userName",)
    found = []
    for path in paths:
        value: Any = document
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str) and value:
            found.append(identity(path, value))
    return tuple(found)


_STOPPED = {
    State.HELD: "It is held back, and waits for: provgate held approve {id}",
    State.DEAD: "It is a dead letter, and is sent again by: provgate dead redrive {id}",
}
"""What else has to happen before a stored wish is sent."""


def drafted(row: Row, ledger: Ledger, connector: str, now: float, state: State | None = None) -> Draft:
    """The event that would be sent for a copied row; saves nothing.

    Args:
        state: where the stored row stands, when it is its own wish that is planned.
    """
    row.event_id = row.event_id or "plan"
    remarks: list[str] = []
    due = row.open or row.dirty or row.unfinished or state not in (None, State.APPLIED, State.GONE)
    if state in _STOPPED:
        remarks.append(_STOPPED[state].format(id=row.id))
    if (paused_by := ledger.target(row.target).paused_by) is not None:
        remarks.append(f"The target is paused ({paused_by}), so nothing is sent until it is resumed.")
    if row.kind == "group" and not row.deleted:
        steps = ledger.member_steps(row)
        if steps.waiting_for is not None:
            remarks.append(
                f"Member {steps.waiting_for} has no account at the product yet, and follows when there is one."
            )
        if steps.more:
            remarks.append("These are not all changes of its members; the others follow in further events.")
    try:
        lifecycle.dispatch(row, now, ledger, connector)
    except InvariantBroken as exc:
        row.body, row.reason = None, Reason(code="invariant", message=f"An internal rule stops it ({exc}).")
    if row.body is not None and (
        notes := ledger.notes_of(row.id)
    ):  # what was noted before decides, too: who was invited
        row.body = encode(msgspec.structs.replace(decode_event(row.body), notes=tuple(notes)))
    return Draft(row=row, event=row.body, due=due, remarks=tuple(remarks))


def answered(
    draft: Draft,
    said: Planned,
    *,
    target: str,
    settings: TargetSettings,
    stored: bool,
    owner: Row | None,
    now: float,
    show_values: bool,
) -> PlanView:
    """A worker's answer as an operator reads it.

    Args:
        owner: another resource that is linked to the account that would be adopted.
    """
    row = draft.row
    would, sentence, reason = _judged(said, owner, row)
    documents = (row.document, row.settled_document)

    def shown(text: str) -> str:
        return explain.sentence_of(text if show_values else explain.mask_message(text, documents))

    refused = None
    if reason is not None:
        error = refusal(reason)
        refused = Refusal(error.status, error.scim_type, shown(error.detail))
    return PlanView(
        at=now,
        target=target,
        shadow=settings.shadow,
        resource=row.id if stored else None,
        kind=row.kind,
        change=row.change.value,
        due=draft.due,
        would=would,
        sentence=shown(sentence),
        refusal=refused,
        account=said.account,
        base_url=said.base_url,
        calls=said.calls,
        left_out=said.left_out,
        reads=said.reads,
        adopts=said.adopts,
        ignored=said.ignored,
        warnings=(*draft.remarks, *(shown(text) for text in said.warnings)),
        masked=not show_values,
    )


def _judged(said: Planned, owner: Row | None, row: Row) -> tuple[Would, str, Reason | None]:
    if not said.ok:
        return "unknown", said.message or "The worker could not make the plan.", None
    thing = "group" if row.kind == "group" else "account"
    calls = explain.counted(len(said.calls) + said.left_out, "call")
    message = said.reason.message if said.reason is not None else ""
    match said.result:
        case "rejected" if (
            said.reason is not None and waits_for_name(said.reason) and row.acknowledged >= row.generation
        ):
            return "wait", f"Entra was told success, so it would wait: {message}", None
        case "rejected" | "poison":
            return "refuse", "It would be refused.", said.reason
        case "found" if row.deleted:
            return "nothing", f"A {thing} of this name exists, was not made from here, and would be left alone.", None
        case "found":
            return "refuse", f"The {thing} exists already, and this target adopts none.", lifecycle._adopt_reason()
        case "blocked":
            return "wait", f"{calls} would be made, then it would wait for {said.blocked_on}: {message}", None
        case "applied" if owner is not None:
            return (
                "refuse",
                f"The {thing} belongs to another {row.kind} of this target.",
                lifecycle._owner_reason(owner),
            )
        case "applied":
            return (*_applied(said, row, thing, calls), None)
        case _:
            return "unknown", f"The product could not be asked: {message}", None


def _applied(said: Planned, row: Row, thing: str, calls: str) -> tuple[Would, str]:
    """What a change that goes well does to the account, as far as the product shows what it holds."""
    if not said.calls:
        held = f"Its existing {thing} would be linked as it is." if said.adopts else "Nothing would change."
        return ("adopt" if said.adopts else "nothing"), held
    if said.adopts:
        return "adopt", f"Its existing {thing} would be linked, then {calls} made."
    if row.deleted:
        return "delete", f"The {thing} would be removed: {calls}."
    if said.created:
        return "create", f"A new {thing} would be made: {calls}."
    if not said.left_out and all(call.same for call in said.calls):
        return "nothing", f"Nothing would change: {calls} would repeat what the product holds already."
    was, wished = _is_active(row.settled_document), _is_active(row.document)
    if row.kind == "user" and was is not None and was is not wished:
        return (
            ("enable", f"The {thing} would be switched on: {calls}.")
            if wished
            else ("disable", f"The {thing} would be switched off: {calls}.")
        )
    return "update", f"The {thing} would be changed: {calls}."


def _is_active(document: bytes | None) -> bool | None:
    """Whether a user's document lets somebody in; None when there is none."""
    return None if document is None else msgspec.json.decode(document).get("active", True) is not False


def unsent(draft: Draft, *, target: str, settings: TargetSettings, stored: bool, now: float) -> PlanView:
    """A plan for which no worker has to be asked."""
    row = draft.row
    would: Would = "nothing" if row.state is State.GONE else "wait"
    message = explain.mask_message(row.reason.message, (row.document,)) if row.reason is not None else ""
    return PlanView(
        at=now,
        target=target,
        shadow=settings.shadow,
        resource=row.id if stored else None,
        kind=row.kind,
        change=row.change.value,
        due=draft.due,
        would=would,
        sentence="Nothing of it is at the product." if would == "nothing" else f"It would wait. {message}".strip(),
        warnings=draft.remarks,
    )


def refused_as_scim(error: ScimError, *, target: str, kind: str, settings: TargetSettings, now: float) -> PlanView:
    """A document that would not even be taken from Entra."""
    return PlanView(
        at=now,
        target=target,
        shadow=settings.shadow,
        resource=None,
        kind=kind,
        change=Change.CREATE.value,
        due=True,
        would="refuse",
        sentence="The document would be refused before anything else.",
        refusal=Refusal(error.status, error.scim_type, explain.mask_message(error.detail)),
    )


# ---- shadow mode


class ShadowedView(Struct, frozen=True, kw_only=True):
    """One rehearsed change: why, and the calls that were not sent, masked."""

    id: str
    label: str
    kind: str
    change: str
    at: float
    refused: bool
    message: str
    calls: tuple[Any, ...]


class CallCount(Struct, frozen=True):
    """How many of one call would have been sent for the changes shown."""

    method: str
    path: str
    count: int


class ShadowView(Struct, frozen=True, kw_only=True):
    """What shadow mode has recorded for a target: `total` rehearsed changes, the newest `items` of them.

    Args:
        under_way: deliveries that went out before shadow mode began; a worker gives each up before its next call.
    """

    at: float
    target: str
    shadow: bool
    total: int
    refused: int
    under_way: int
    calls: tuple[CallCount, ...]
    items: tuple[ShadowedView, ...]


def shadow_view(reader: Reader, target: str, settings: TargetSettings, *, limit: int, now: float) -> ShadowView:
    """The rehearsed changes of a target that wait for the end of shadow mode, newest first."""
    total, refused = reader.rehearsed_counts(target)
    items = tuple(_shadowed(reader, row) for row in reader.rehearsed(target, limit))
    counts = Counter((step["method"], step["path"]) for item in items for step in item.calls)
    out = reader.in_flight(target, views.WAITING_LOOKED_AT_MAX) if settings.shadow else []
    return ShadowView(
        at=now,
        target=target,
        shadow=settings.shadow,
        total=total,
        refused=refused,
        under_way=sum(row.body is not None and not decode_event(row.body).shadow for row in out),
        calls=tuple(CallCount(method, path, count) for (method, path), count in counts.most_common()),
        items=items,
    )


def _shadowed(reader: Reader, row: Row) -> ShadowedView:
    steps: list[Any] = []
    for attempt in reader.history(row.id, 1)[1][:1]:
        steps = [step for step in msgspec.json.decode(attempt.steps) if step.get("error") == NOT_SENT]
    reason = row.reason
    return ShadowedView(
        id=row.id,
        label=views.stuck(row, SHADOW).label,
        kind=row.kind,
        change=row.change.value,
        at=row.settled_at,
        refused=reason is not None and reason.code == "shadow_refused",
        message=explain.mask_message(reason.message, (row.document,)) if reason is not None else "",
        calls=tuple(steps[:CALLS_SHOWN_MAX]),
    )
