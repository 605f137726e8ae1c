"""The tables of the store, and how a row of `lifecycle.py` becomes columns and back.

SQLModel declares the tables and nothing more: the statements of `gateway/statements.py` work on `METADATA` in SQLAlchemy Core.
Every change here needs a migration in `gateway/migrations/versions`; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec
import sqlalchemy as sa
from msgspec.structs import astuple
from sqlmodel import Field, SQLModel

from gateway.lifecycle import Doubts, Row
from gateway.visibility import is_visible
from schemas.events import Reason
from schemas.states import Change, State

SCHEMA = "0011"
"""The newest migration; older stores are brought up to it at start, newer ones are refused."""

_Sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


class _Table(SQLModel):
    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def _seq() -> Any:
    return Field(default=None, primary_key=True, sa_type=cast(Any, _Sequence))


def _where(condition: str) -> dict[str, Any]:
    """The condition of a partial index, for both engines."""
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


class Resource(_Table, table=True):
    """`lifecycle.Row`, a column each, and what look-ups need. Large values stand last, because SQLite reads in order."""

    __table_args__ = (
        sa.Index("uq_resource_id", "id", unique=True),
        sa.Index(
            "uq_resource_user_name",
            "target",
            "kind",
            "user_name_key",
            unique=True,
            **_where("user_name_key IS NOT NULL"),
        ),
        sa.Index(
            "uq_resource_external_id",
            "target",
            "kind",
            "external_id_key",
            unique=True,
            **_where("external_id_key IS NOT NULL"),
        ),
        sa.Index(
            "uq_resource_account", "target", "kind", "account_id", unique=True, **_where("account_id IS NOT NULL")
        ),
        sa.Index("ix_resource_work_email", "target", "kind", "work_email_key", **_where("work_email_key IS NOT NULL")),
        sa.Index(
            "ix_resource_display_name", "target", "kind", "display_name_key", **_where("display_name_key IS NOT NULL")
        ),
        sa.Index("ix_resource_account_key", "target", "kind", "account_key", **_where("account_key IS NOT NULL")),
        sa.Index("ix_resource_listing", "target", "kind", "visible", "seq"),
        sa.Index("ix_resource_state", "target", "state", "settled_at"),
        sa.Index("ix_resource_due", "target", "priority", "due_at", "seq", **_where("due_at IS NOT NULL")),
        sa.Index("ix_resource_waiting", "target", "modified_at", **_where("due_at IS NOT NULL")),
        sa.Index("ix_resource_in_flight", "target", **_where("in_flight IS NOT NULL")),
        sa.Index("ix_resource_read_back", "read_back_at", **_where("read_back_at IS NOT NULL")),
        sa.Index("ix_resource_dead", "target", "fingerprint", "settled_at", **_where("state = 'dead'")),
        sa.Index("ix_resource_manager", "manager", **_where("manager IS NOT NULL")),
        sa.Index("ix_resource_trail", "seq", **_where("has_trail")),
        {"sqlite_autoincrement": True},
    )

    seq: int | None = _seq()
    id: str
    target: str
    kind: str
    generation: int
    acknowledged: int
    event_id: str
    change: str
    deleted: bool
    manager: str | None
    created_at: float
    modified_at: float
    veiled: bool
    traceparent: str | None
    tracestate: str | None
    state: str
    settled_generation: int
    settled_at: float
    account_id: str | None
    account_created: bool | None
    observed_active: bool | None
    blocked_on: str | None
    fence: int
    in_flight: int | None
    published: bool
    delivery: int
    looked: bool
    heard_at: float
    dirty: bool
    ambiguous: bool
    read_back: bool
    read_back_at: float | None
    attempt: int
    poisoned: int
    first_failed_at: float | None
    awaited_since: float | None
    next_at: float
    unfinished: bool
    # derived
    due_at: float | None
    priority: int
    visible: bool
    has_trail: bool
    fingerprint: str | None
    account_key: str | None
    # by what filters find it
    user_name_key: str | None
    external_id_key: str | None
    work_email_key: str | None
    display_name_key: str | None
    # JSON, NULL when empty
    changed: str | None
    identities: str | None
    settled_identities: str | None
    account_keys: str | None
    issue: str | None
    reason: str | None
    doubts: str | None
    # documents
    document: bytes
    settled_document: bytes | None
    body: bytes | None


class Identity(_Table, table=True):
    """Who is wished to be called so, and who holds the name at the product (R2); `trail`: held for a message's sake only."""

    __table_args__ = (sa.Index("ix_identity_value", "target", "kind", "value"), {"sqlite_with_rowid": False})

    resource_id: str = Field(primary_key=True, foreign_key="resource.id", ondelete="CASCADE")
    value: str = Field(primary_key=True)
    target: str
    kind: str
    wished: bool
    held: bool
    trail: bool


OPEN_MEMBERSHIP = "wished != settled OR uncertain"
UNWISHED_MEMBERSHIP = "NOT wished"


class Membership(_Table, table=True):
    """Who is in a group: as wished, and as the product has it, which is uncertain while an event carries it.

    Rows, so that a large group takes small changes in no time.
    """

    __table_args__ = (
        sa.Index("ix_membership_open", "group_id", "member", **_where(OPEN_MEMBERSHIP)),
        sa.Index("ix_membership_unwished", "group_id", "member", **_where(UNWISHED_MEMBERSHIP)),
        sa.Index("ix_membership_member", "member"),
        {"sqlite_with_rowid": False},
    )

    group_id: str = Field(primary_key=True, foreign_key="resource.id", ondelete="CASCADE")
    member: str = Field(primary_key=True)
    wished: bool
    settled: bool
    uncertain: bool


class Event(_Table, table=True):
    """Every accepted generation: outbox and history in one."""

    __table_args__ = (
        sa.Index("uq_event_id", "id", unique=True),
        sa.Index("uq_event_generation", "resource_id", "generation", unique=True),
        sa.Index("ix_event_open", "resource_id", "generation", **_where("outcome IS NULL")),
        sa.Index("ix_event_taken_away", "target", "created_at", **_where("takes_away")),
        sa.Index("ix_event_created", "created_at"),
        {"sqlite_autoincrement": True},
    )

    seq: int | None = _seq()
    id: str
    target: str
    resource_id: str
    generation: int
    change: str
    takes_away: bool
    deleted: bool
    actor: str
    created_at: float
    outcome: str | None
    outcome_at: float | None
    changed: str | None
    identities: str | None
    document: bytes


class Attempt(_Table, table=True):
    """Every report of a delivery, once, in the order in which they were folded."""

    __table_args__ = (
        sa.Index("uq_attempt_id", "id", unique=True),
        sa.Index("ix_attempt_target", "target", "ended_at"),
        sa.Index("ix_attempt_resource", "resource_id", "ended_at"),
        {"sqlite_autoincrement": True},
    )

    seq: int | None = _seq()
    id: str
    target: str
    resource_id: str
    generation: int
    fence: int
    delivery: int
    result: str
    started_at: float
    ended_at: float
    worker: str
    code: str | None
    fingerprint: str | None
    account_id: str | None
    message: str | None
    steps: str | None
    remarks: str | None


class Note(_Table, table=True):
    """What deliveries noted about a resource and what holds until they say otherwise; `times`: how often it was noted."""

    __table_args__ = (
        sa.Index("ix_note_target_code_resource_id", "target", "code", "resource_id"),
        {"sqlite_with_rowid": False},
    )

    resource_id: str = Field(primary_key=True, foreign_key="resource.id", ondelete="CASCADE")
    code: str = Field(primary_key=True)
    target: str
    message: str
    subject: str
    noted_by: str
    first_at: float
    last_at: float
    times: int


class Target(_Table, table=True):
    """Runtime state of a target, and what its connector last said about itself."""

    name: str = Field(primary_key=True)
    paused_by: str | None
    paused_reason: str
    circuit: str
    circuit_reason: str
    opened_at: float
    next_probe_at: float
    probe_wait_s: float
    closed_at: float
    rest_until: float
    settings_digest: str | None
    seen_at: float | None
    spec: bytes | None


class Stream(_Table, table=True):
    """By its creation time a stream is told from an earlier one of the same name."""

    name: str = Field(primary_key=True)
    created: str


class Key(_Table, table=True):
    """A key of Entra's for one target; only its keyed hash is kept."""

    __tablename__ = "access_key"
    __table_args__ = (sa.Index("ix_access_key_target", "target"), sa.Index("uq_access_key_hash", "hash", unique=True))

    id: str = Field(primary_key=True)
    target: str
    label: str
    prefix: str
    hash: bytes
    created_at: float
    expires_at: float
    revoked_at: float | None
    last_used_at: float | None


class UsedAssertion(_Table, table=True):
    """An assertion of Entra's that was exchanged for a token; remembered until it ends, so that it counts once."""

    __tablename__ = "used_assertion"
    __table_args__ = (sa.Index("ix_used_assertion_expires_at", "expires_at"),)

    id: str = Field(primary_key=True)
    expires_at: float


class Audit(_Table, table=True):
    """What operators and the system did; each entry carries the hash of the one before it."""

    __table_args__ = (
        sa.Index("ix_audit_at", "at"),
        {"sqlite_autoincrement": True},
    )

    seq: int | None = _seq()
    at: float
    actor: str
    action: str
    target: str
    subject: str
    detail: str
    previous: str
    hash: str


class Lease(_Table, table=True):
    """Work that one gateway does at a time, and until when it is taken for alive."""

    name: str = Field(primary_key=True)
    holder: str
    until: float


class ReconcileRun(_Table, table=True):
    """What a reconciliation of a target came to, or that it is under way. `counts` and `codes` are JSON.

    `size` and `groups_size`: of the last whole list.
    """

    __tablename__ = "reconcile_run"
    __table_args__ = (sa.Index("ix_reconcile_run_started_at", "target", "started_at"),)

    target: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    state: str
    mode: str
    actor: str
    reason: str
    started_at: float
    ended_at: float
    compared: int
    listed: int
    size: int
    repaired: int
    groups: int
    groups_listed: int
    groups_size: int
    memberships: int
    member_differences: int
    counts: str
    codes: str
    code: str
    message: str


class ReconcileFinding(_Table, table=True):
    """One difference of the last report of a target; the label is masked."""

    __tablename__ = "reconcile_finding"
    __table_args__ = ({"sqlite_with_rowid": False},)

    target: str = Field(primary_key=True)
    n: int = Field(primary_key=True)
    class_name: str
    code: str
    resource: str
    account_id: str
    label: str
    attributes: str
    message: str


class Alert(_Table, table=True):
    """Something that needs a person, as it was seen last and as it was told last; see `gateway/notices.py`."""

    target: str = Field(primary_key=True)
    cause: str = Field(primary_key=True)
    opened_at: float
    gone_at: float | None
    over_at: float | None
    count: int
    level: int
    told_at: float | None
    told_count: int
    told_level: int
    text: str


class Mail(_Table, table=True):
    """One mail to one recipient: outbox and what became of it. `notice` is shared by the copies of one mail."""

    __table_args__ = (
        sa.Index("ix_mail_due", "next_at", **_where("state = 'waiting'")),
        sa.Index("ix_mail_target", "target", "created_at"),
        sa.Index("ix_mail_created", "created_at"),
        {"sqlite_autoincrement": True},
    )

    seq: int | None = _seq()
    notice: str
    copy_number: int
    message_id: str
    target: str
    kind: str
    recipient: str
    subject: str
    body: str
    created_at: float
    state: str
    attempts: int
    next_at: float
    ended_at: float | None
    holder: str
    error: str


METADATA = _Table.metadata
RESOURCE, IDENTITY, MEMBERSHIP, EVENT, ATTEMPT, NOTE, TARGET, STREAM, KEY, ASSERTION, AUDIT = (
    METADATA.tables[name]
    for name in (
        "resource",
        "identity",
        "membership",
        "event",
        "attempt",
        "note",
        "target",
        "stream",
        "access_key",
        "used_assertion",
        "audit",
    )
)

# ---- rows to columns and back

_texts = msgspec.json.Decoder(tuple[str, ...])
_reason = msgspec.json.Decoder(Reason)
_doubts = msgspec.json.Decoder(Doubts)
_json = msgspec.json.Encoder(order="deterministic")
CHANGES = {change.value: change for change in Change}
STATES = {state.value: state for state in State}


def to_json(value: Any) -> str | None:
    """JSON, or NULL for nothing."""
    return _json.encode(value).decode() if value else None


def without_nul(value: str | None) -> str | None:
    """PostgreSQL keeps no U+0000 in a text; vendors' messages may carry one."""
    return value.replace("\0", "\ufffd") if value and "\0" in value else value


def to_texts(value: str | None) -> tuple[str, ...]:
    return _texts.decode(value) if value else ()


def _value(member: Any) -> str:
    return str(member.value)


_CODECS: dict[str, tuple[Callable[[Any], Any] | None, Callable[[Any], Any]]] = {
    "change": (_value, CHANGES.__getitem__),
    "state": (_value, STATES.__getitem__),
    "changed": (to_json, to_texts),
    "identities": (to_json, to_texts),
    "settled_identities": (to_json, to_texts),
    "account_keys": (to_json, to_texts),
    "reason": (to_json, lambda value: None if value is None else _reason.decode(value)),
    "doubts": (to_json, lambda value: Doubts() if value is None else _doubts.decode(value)),
    "blocked_on": (without_nul, lambda value: value),
    "issue": (without_nul, lambda value: value),
    "observed_active": (None, lambda value: None if value is None else bool(value)),
    "account_created": (None, lambda value: None if value is None else bool(value)),
}
_ROW = Row.__struct_fields__
for _field in msgspec.structs.fields(Row):
    if _field.type is bool:
        _CODECS[_field.name] = (None, bool)
    if _field.name not in RESOURCE.columns:
        raise TypeError(f"lifecycle.Row.{_field.name} has no column in the store")
_ENCODERS = [(i, codec[0]) for i, name in enumerate(_ROW) if (codec := _CODECS.get(name)) and codec[0]]
_DECODERS = [(i, codec[1]) for i, name in enumerate(_ROW) if (codec := _CODECS.get(name))]
_DERIVED = ("due_at", "priority", "visible", "has_trail", "fingerprint", "account_key")
WRITTEN = (*_ROW, *_DERIVED)
"""Columns that `save` writes, in the order of their values; `seq` follows them in what is read."""
KEYS = ("user_name_key", "external_id_key", "work_email_key", "display_name_key")
SEQ_PLACE = len(WRITTEN)
READ_COLUMNS = [*(RESOURCE.c[name] for name in WRITTEN), RESOURCE.c.seq]


def encode_row(row: Row) -> list[Any]:
    values: list[Any] = list(astuple(row))
    for i, encode in _ENCODERS:
        if encode is not None:
            values[i] = encode(values[i])
    doubts = row.doubts
    values += (
        row.next_at if row.waiting else None,
        row.priority,
        is_visible(row),
        bool(doubts.trail) and row.in_flight is None,
        None if row.reason is None else without_nul(row.reason.fingerprint()),
        without_nul(row.account_keys[0]) if row.account_keys else None,
    )
    return values


def decode_row(columns: Sequence[Any]) -> Row:
    values = list(columns)
    for i, decode in _DECODERS:
        values[i] = decode(values[i])
    return Row(**dict(zip(_ROW, values, strict=False)))
