"""What operators are told: the shapes of the API's answers, and how they are made from what the store holds.

Everything here reads; nothing changes anything. A person's values are masked before they come near an answer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from gateway import explanations as explain
from gateway.keys import DAY_S, Kind, is_live, kind_of
from gateway.lifecycle import Row
from gateway.limits import OverloadView
from gateway.mails_store import MailHealth, blocked_for
from gateway.records import AttemptRecord, AuditRecord, DeadCause, EventRecord, KeyRecord
from gateway.refusals import RefusedSignIn
from gateway.reports_store import Report, last_report
from gateway.store import Reader
from schemas.config import TargetSettings
from schemas.states import WAITING, Circuit, State

WAITING_LOOKED_AT_MAX = 1_000
"""Waiting rows of a target that are looked at one by one for their causes; the rest is counted."""
HISTORY_MAX = 100


class Surroundings(Struct, frozen=True, kw_only=True):
    """What is so at the moment of a question, besides what the store holds.

    Args:
        presences: the presence documents of all workers heard of lately.
        last_outcome: when the last outcome of a target was folded here, and what it was.
        last_request: when Entra last called this gateway for a target.
        next_comparison: when a target is compared by itself after its last comparison.
    """

    now: float
    targets: Mapping[str, TargetSettings]
    presences: Sequence[Mapping[str, Any]]
    bus_connected: bool
    public_url: str
    last_outcome: Callable[[str], tuple[float, str] | None]
    last_request: Callable[[str], float | None]
    next_comparison: Callable[[str, Report | None], float | None] = lambda target, last: None

    def tenant_url(self, target: str) -> str:
        """What the Entra admin enters."""
        return f"{self.public_url.rstrip('/')}/scim/v2/{target}"

    def token_endpoint(self, target: str) -> str:
        """What the Entra admin enters beside it for client credentials."""
        return f"{self.public_url.rstrip('/')}/oauth2/{target}/token"

    def served(self, target: str) -> explain.Served:
        """Which workers serve a target."""
        return explain.served_by(self.presences, target)

    def standstill(self, reader: Reader, target: str) -> explain.Cause | None:
        """What stops every change of a target, if anything does."""
        settings = self.targets.get(target)
        return explain.standstill(
            reader.target(target).row,
            self.served(target),
            self.now,
            enabled=settings is not None and settings.enabled,
            bus_connected=self.bus_connected,
        )


# ---- answers: the shapes of this API


class CircuitView(Struct, frozen=True):
    """Whether a target is called. Times are epoch seconds."""

    state: str
    reason: str
    since: float | None
    next_probe_at: float | None


class Counts(Struct, frozen=True):
    """Resources of a target by what they mean to a person; `waiting` is queued, retrying or on its way."""

    applied: int
    waiting: int
    blocked: int
    held: int
    dead: int


class LastOutcome(Struct, frozen=True):
    """The last outcome this gateway folded for a target."""

    at: float
    result: str


class TargetView(Struct, frozen=True, kw_only=True):
    """One target. `states` counts resources by every state; `problems` is empty when all is well, else worst first.

    `reconcile`: the last comparison of its accounts with what was applied; `reconcile_next_at`: when the next one begins.
    `credential_days_left`: of the product's credential, where its end is known; negative afterwards. `last_request_at`: when
    Entra last called, `last_call_at`: when a delivery last called the product (vendor requirement S19).
    """

    name: str
    title: str
    connector: str
    enabled: bool
    shadow: bool
    light: explain.Light
    problems: tuple[explain.Problem, ...]
    workers: tuple[str, ...]
    circuit: CircuitView
    paused_by: str | None
    paused_reason: str
    resting_until: float | None
    window: int
    in_flight: int
    counts: Counts
    states: dict[str, int]
    oldest_waiting_s: float | None
    last_outcome: LastOutcome | None
    auth: tuple[str, ...]
    key_days_left: int | None
    client_days_left: int | None
    tenant_url: str
    credential_days_left: int | None = None
    last_request_at: float | None = None
    last_call_at: float | None = None
    reconcile: Report | None = None
    reconcile_next_at: float | None = None


class WaitingView(Struct, frozen=True, kw_only=True):
    """Changes of one target that wait for the same thing."""

    target: str
    code: str
    message: str
    count: int
    oldest_s: float | None
    next_at: float | None


class LeftOverView(Struct, frozen=True, kw_only=True):
    """A target that is not in the configuration any more: what of it is kept, and in how far it waits."""

    name: str
    kept: int
    waiting: int
    sentence: str


class StatusView(Struct, frozen=True, kw_only=True):
    """The overview: one sentence, every target, what waits and why, and what is left out for want of time.

    `config_problems`: mistakes in the configuration file as it is now, path first; until they are gone an earlier one holds.
    `mail`: whether operators can be told by mail; None when they are not to be. `left_over`: targets that were taken out of it.
    """

    at: float
    sentence: str
    fine: bool
    bus_connected: bool
    targets: tuple[TargetView, ...]
    waiting: tuple[WaitingView, ...]
    overload: OverloadView | None = None
    config_problems: tuple[str, ...] = ()
    mail: MailHealth | None = None
    left_over: tuple[LeftOverView, ...] = ()


class TargetsView(Struct, frozen=True):
    """All targets."""

    at: float
    targets: tuple[TargetView, ...]


class OneTargetView(Struct, frozen=True):
    """One target, with what waits there."""

    at: float
    target: TargetView
    waiting: tuple[WaitingView, ...]


class CauseView(Struct, frozen=True, kw_only=True):
    """Dead letters or held changes of one target that are alike."""

    target: str
    cause: str
    code: str
    attribute: str | None
    message: str
    suggestion: str
    count: int
    first_at: float
    last_at: float


class StuckView(Struct, frozen=True, kw_only=True):
    """One dead letter or held change. `label`: who it is about, masked."""

    id: str
    target: str
    kind: str
    label: str
    change: str
    generation: int
    cause: str
    message: str
    at: float


class StuckList(Struct, frozen=True):
    """Dead letters or held changes: `total` in all, `items` at most `limit` of them."""

    at: float
    total: int
    causes: tuple[CauseView, ...]
    items: tuple[StuckView, ...]


class ReasonView(Struct, frozen=True):
    """Why something did not happen."""

    code: str
    message: str
    attribute: str | None


class HistoryEntry(Struct, frozen=True, kw_only=True):
    """Something that happened to a resource: `asked` (a generation was accepted) or `delivered` (a report of a delivery)."""

    what: str
    at: float
    generation: int
    # asked
    actor: str = ""
    change: str = ""
    changed: tuple[str, ...] = ()
    outcome: str | None = None
    outcome_at: float | None = None
    # delivered
    fence: int = 0
    delivery: int = 0
    result: str = ""
    code: str | None = None
    message: str = ""
    worker: str = ""
    took_s: float = 0.0
    steps: Any = ()
    remarks: Any = None


class ResourceView(Struct, frozen=True, kw_only=True):
    """One resource with both halves. `masked`: values are hidden; `notes`: codes of what deliveries noted about it."""

    at: float
    id: str
    target: str
    kind: str
    state: str
    label: str
    generation: int
    settled_generation: int
    acknowledged: int
    fence: int
    attempt: int
    account_id: str | None
    created_at: float
    modified_at: float
    settled_at: float | None
    first_failed_at: float | None
    reason: ReasonView | None
    blocked_on: str | None
    issue: str | None
    identities: tuple[str, ...]
    conditions: tuple[explain.Condition, ...]
    next: explain.NextStep
    values: tuple[explain.Value, ...]
    masked: bool
    history: tuple[HistoryEntry, ...]
    notes: tuple[str, ...] = ()


class FoundView(Struct, frozen=True):
    """Whom an id belongs to: at most FOUND_MAX, `total` in all."""

    at: float
    total: int
    found: tuple[ResourceView, ...]


class Skipped(Struct, frozen=True):
    """A resource that was not moved, and why."""

    id: str
    why: str


class Moved(Struct, frozen=True):
    """What became of an order about several resources."""

    done: tuple[str, ...]
    skipped: tuple[Skipped, ...]


class KeyView(Struct, frozen=True, kw_only=True):
    """One key, never its text. `state`: live, expired or revoked."""

    id: str
    target: str
    label: str
    state: str
    created_at: float
    expires_at: float
    revoked_at: float | None
    last_used_at: float | None


class KeysView(Struct, frozen=True):
    """Keys, oldest first."""

    at: float
    total: int
    keys: tuple[KeyView, ...]


class NewKeyView(Struct, frozen=True, kw_only=True):
    """A key that was just made: the only answer that holds its text."""

    id: str
    target: str
    key: str
    tenant_url: str
    expires_at: float


class NewClientView(Struct, frozen=True, kw_only=True):
    """A client secret that was just made, and everything else Entra asks for: the only answer that holds its text."""

    id: str
    target: str
    client_id: str
    client_secret: str
    token_endpoint: str
    tenant_url: str
    expires_at: float


class ClientsView(Struct, frozen=True):
    """Client secrets, oldest first; `client_id` of each is its target's name."""

    at: float
    total: int
    clients: tuple[KeyView, ...]


class RefusalsView(Struct, frozen=True):
    """Refused sign-ins, newest first."""

    at: float
    refusals: tuple[RefusedSignIn, ...]


class TargetMoved(Struct, frozen=True):
    """A target was paused or resumed; `changed` is false when it was so before."""

    name: str
    paused_by: str | None
    changed: bool


class Probed(Struct, frozen=True):
    """A worker's word about a product."""

    name: str
    ok: bool
    code: str
    message: str


class AuditEntry(Struct, frozen=True, kw_only=True):
    """One recorded act."""

    seq: int
    at: float
    actor: str
    action: str
    target: str
    subject: str
    detail: msgspec.Raw


class AuditView(Struct, frozen=True):
    """The newest acts, newest first."""

    at: float
    entries: tuple[AuditEntry, ...]


def _short_of(reader: Reader, name: str) -> dict[str, int]:
    return Counter(row.on for row in blocked_for(reader, name) if row.on in explain.BOUGHT)


def target_view(around: Surroundings, reader: Reader, name: str) -> TargetView:
    """One configured target with everything that is known of it."""
    now, settings = around.now, around.targets[name]
    runtime = reader.target(name).row
    states = {state.value: count for state, count in reader.counts(name).items()}
    oldest = reader.oldest_waiting(name)
    keys = reader.keys(name)
    days_left, client_days_left = _days_left(keys, "key", now), _days_left(keys, "client", now)
    served = around.served(name)
    problems: list[explain.Problem] = []
    if settings.enabled:
        problems = explain.problems_of(
            name,
            runtime,
            served,
            states,
            days_left,
            "key" in settings.auth,
            now,
            client_days_left=client_days_left,
            clients_known="oauth" in settings.auth,
            other_ways=settings.signs_in_without_secret(),
            short_of=_short_of(reader, name) if states.get(State.BLOCKED) else {},
        )
    closed = runtime.circuit is Circuit.CLOSED
    kept = reader.last_attempt(name)
    last = around.last_outcome(name) or ((kept.at, kept.result) if kept is not None else None)
    asked = (around.last_request(name), *(key.last_used_at for key in keys))
    compared = last_report(reader, name)
    return TargetView(
        name=name,
        title=settings.title,
        connector=settings.connector,
        enabled=settings.enabled,
        shadow=settings.shadow,
        light=explain.light_of(problems, enabled=settings.enabled),
        problems=tuple(problems),
        workers=served.workers,
        circuit=CircuitView(
            runtime.circuit.value,
            "" if closed else explain.sentence_of(explain.mask_message(runtime.circuit_reason)),
            None if closed else runtime.opened_at,
            None if closed else runtime.next_probe_at,
        ),
        paused_by=runtime.paused_by,
        paused_reason=runtime.paused_reason,
        resting_until=runtime.rest_until if runtime.rest_until > now else None,
        window=settings.window,
        in_flight=states.get(State.DELIVERING, 0),
        counts=Counts(
            applied=states.get(State.APPLIED, 0),
            waiting=sum(states.get(state, 0) for state in (State.QUEUED, State.RETRYING, State.DELIVERING)),
            blocked=states.get(State.BLOCKED, 0),
            held=states.get(State.HELD, 0),
            dead=states.get(State.DEAD, 0),
        ),
        states=states,
        oldest_waiting_s=None if oldest is None else max(0.0, now - oldest),
        last_outcome=LastOutcome(*last) if last is not None else None,
        last_request_at=max((at for at in asked if at is not None), default=None),
        last_call_at=kept.called_at if kept is not None else None,
        auth=settings.auth,
        key_days_left=days_left,
        client_days_left=client_days_left,
        tenant_url=around.tenant_url(name),
        credential_days_left=None
        if served.credential is None
        else math.floor((served.credential.ends_at - now) / DAY_S),
        reconcile=compared,
        reconcile_next_at=around.next_comparison(name, compared),
    )


def left_over(around: Surroundings, reader: Reader) -> list[LeftOverView]:
    """Targets that were taken out of the configuration and left something here."""
    found = []
    for name in reader.target_names():
        if name in around.targets:
            continue
        counts = reader.counts(name)
        kept = sum(count for state, count in counts.items() if state not in (State.GONE, State.REJECTED))
        waiting = sum(counts.get(state, 0) for state in (*WAITING, State.DELIVERING, State.HELD))
        if kept or waiting:
            said = explain.left_over_sentence(name, kept, waiting)
            found.append(LeftOverView(name=name, kept=kept, waiting=waiting, sentence=said))
    return found


def _days_left(keys: Sequence[KeyRecord], kind: Kind, now: float) -> int | None:
    """Days until the last key or client secret ends; negative when it has; None when there is none."""
    ends = [key.expires_at for key in keys if key.revoked_at is None and kind_of(key) == kind]
    return math.floor((max(ends) - now) / DAY_S) if ends else None


def waiting_views(around: Surroundings, reader: Reader, target: str) -> list[WaitingView]:
    """What waits at a target and why, the most first."""
    now = around.now
    stopped = around.standstill(reader, target)
    rows = reader.waiting(target, WAITING_LOOKED_AT_MAX)
    states = reader.counts(target)
    groups: dict[str, list[tuple[Row, explain.Cause]]] = {}
    for row in rows:
        if row.state in WAITING:
            cause = explain.waiting_cause(
                row.state,
                stopped,
                code=row.reason.code if row.reason else "",
                message=_masked_message(row),
                blocked_on=row.blocked_on,
            )
            groups.setdefault(cause.code, []).append((row, cause))
    found = [
        WaitingView(
            target=target,
            code=code,
            message=members[0][1].message,
            count=len(members),
            oldest_s=max(0.0, now - min(row.modified_at for row, _ in members)),
            next_at=min((row.next_at for row, _ in members if row.next_at > now), default=None),
        )
        for code, members in groups.items()
    ]
    found.sort(key=lambda group: -group.count)
    looked_at = sum(group.count for group in found)
    more = sum(states.get(state, 0) for state in WAITING) - looked_at
    if more > 0 and len(rows) >= WAITING_LOOKED_AT_MAX:
        message = f"More, behind the oldest {WAITING_LOOKED_AT_MAX:,}; not looked at one by one."
        found.append(WaitingView(target=target, code="more", message=message, count=more, oldest_s=None, next_at=None))
    flying = states.get(State.DELIVERING, 0)
    if flying:
        cause = explain.waiting_cause(State.DELIVERING, None, code="", message="", blocked_on=None)
        found.append(
            WaitingView(
                target=target, code=cause.code, message=cause.message, count=flying, oldest_s=None, next_at=None
            )
        )
    return found


def cause_of(fingerprint: str | None) -> str:
    """The name of a cause, as it is listed and asked for."""
    return fingerprint or "unknown"


def dead_cause(reader: Reader, held: DeadCause) -> CauseView:
    """Dead letters of one cause, and what to do about them."""
    example = reader.row(held.example)
    reason = example.reason if example is not None else None
    code = reason.code if reason is not None else ""
    cause = cause_of(held.fingerprint)
    return CauseView(
        target=held.target,
        cause=cause,
        code=code,
        attribute=reason.attribute if reason is not None else None,
        message=_masked_message(example) if example is not None else "",
        suggestion=explain.suggestion(code, cause),
        count=held.count,
        first_at=held.first_at,
        last_at=held.last_at,
    )


def held_cause(target: str, change: str, rows: Sequence[Row]) -> CauseView:
    """Held changes of one kind."""
    return CauseView(
        target=target,
        cause=change,
        code="held",
        attribute=None,
        message="More deletions and deactivations than usual came within an hour, so these wait for you.",
        suggestion=f"If they are wanted: provgate held approve --target {target}; if not, stop the cycle in Entra first.",
        count=len(rows),
        first_at=min(row.modified_at for row in rows),
        last_at=max(row.modified_at for row in rows),
    )


def stuck(row: Row, cause: str) -> StuckView:
    """One dead letter or held change."""
    return StuckView(
        id=row.id,
        target=row.target,
        kind=row.kind,
        label=_label(row, show_values=False),
        change=row.change.value,
        generation=row.generation,
        cause=cause,
        message=_masked_message(row),
        at=row.settled_at if row.state is State.DEAD and row.settled_at else row.modified_at,
    )


def _label(row: Row, *, show_values: bool) -> str:
    document = msgspec.json.decode(row.document)
    name = document.get("displayName") if row.kind == "group" else document.get("userName")
    text = name if isinstance(name, str) and name else row.id
    return text if show_values or row.kind == "group" or text == row.id else explain.mask(text)


def _masked_message(row: Row) -> str:
    if row.reason is None:
        return ""
    return explain.sentence_of(explain.mask_message(row.reason.message, (row.document, row.settled_document)))


def resource_view(around: Surroundings, reader: Reader, row: Row, *, show_values: bool) -> ResourceView:
    """One resource with both halves."""
    now = around.now
    runtime = reader.target(row.target).row
    stopped = around.standstill(reader, row.target)
    documents = (row.document, row.settled_document)

    def said(text: str | None) -> str:
        return explain.sentence_of((text or "") if show_values else explain.mask_message(text or "", documents))

    def named(condition: explain.Condition) -> explain.Condition:
        return msgspec.structs.replace(condition, message=said(condition.message))

    events, attempts = reader.history(row.id, HISTORY_MAX)
    return ResourceView(
        at=now,
        id=row.id,
        target=row.target,
        kind=row.kind,
        state=row.state.value,
        label=_label(row, show_values=show_values),
        generation=row.generation,
        settled_generation=row.settled_generation,
        acknowledged=row.acknowledged,
        fence=row.fence,
        attempt=row.attempt,
        account_id=row.account_id if show_values else explain.mask_account(row.account_id, documents),
        created_at=row.created_at,
        modified_at=row.modified_at,
        settled_at=row.settled_at or None,
        first_failed_at=row.first_failed_at,
        reason=ReasonView(row.reason.code, said(row.reason.message), row.reason.attribute) if row.reason else None,
        blocked_on=row.blocked_on,
        issue=said(row.issue) or None,
        identities=row.identities if show_values else tuple(explain.mask_identity(one) for one in row.identities),
        conditions=tuple(named(condition) for condition in explain.conditions(row, runtime, stopped)),
        next=explain.next_step(row, stopped, now),
        values=tuple(explain.both_halves(row, show_values=show_values)),
        masked=not show_values,
        history=_history(events, attempts, said),
        notes=tuple(reader.notes_of(row.id)),
    )


def _history(
    events: Sequence[EventRecord], attempts: Sequence[AttemptRecord], said: Callable[[str | None], str]
) -> tuple[HistoryEntry, ...]:
    entries = [
        HistoryEntry(
            what="asked",
            at=event.created_at,
            generation=event.generation,
            actor=event.actor,
            change=event.change.value,
            changed=event.changed,
            outcome=event.outcome,
            outcome_at=event.outcome_at,
        )
        for event in events
    ]
    entries += [
        HistoryEntry(
            what="delivered",
            at=attempt.ended_at,
            generation=attempt.generation,
            fence=attempt.fence,
            delivery=attempt.delivery,
            result=attempt.result.value,
            code=attempt.code,
            message=said(attempt.message),
            worker=attempt.worker,
            took_s=round(max(0.0, attempt.ended_at - attempt.started_at), 3),
            steps=msgspec.json.decode(attempt.steps),
            remarks=_remarks(attempt.remarks, said),
        )
        for attempt in attempts
    ]
    return tuple(sorted(entries, key=lambda entry: -entry.at)[:HISTORY_MAX])


def _remarks(raw: bytes | msgspec.Raw, said: Callable[[str | None], str]) -> dict[str, Any] | None:
    """What else the worker said, without what names people."""
    remarks = msgspec.json.decode(raw)
    kept = {name: value for name, value in remarks.items() if name in _REMARKS_SHOWN}
    if remarks.get("warnings"):
        kept["warnings"] = [said(text) for text in remarks["warnings"]]
    return kept or None


_REMARKS_SHOWN = frozenset(("ignored", "note", "blocked_on", "retry_after_s", "created", "looked", "ambiguous"))


def key_view(row: KeyRecord, now: float) -> KeyView:
    """One key, never its text."""
    state = "live" if is_live(row, now) else "revoked" if row.revoked_at is not None else "expired"
    return KeyView(
        id=row.id,
        target=row.target,
        label=row.label,
        state=state,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )


def audit_entry(record: AuditRecord) -> AuditEntry:
    """One recorded act."""
    return AuditEntry(
        seq=record.seq,
        at=record.at,
        actor=record.actor,
        action=record.action,
        target=record.target,
        subject=record.subject,
        detail=record.detail,
    )
