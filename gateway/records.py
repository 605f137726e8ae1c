"""What the store returns besides rows: history, keys, audit, runtime state of targets. Times are epoch seconds."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from gateway.lifecycle import TargetRow
from schemas.states import Change, Result


class EventRecord(Struct, frozen=True, kw_only=True):
    """One accepted generation, without its document. Times are epoch seconds."""

    seq: int
    id: str
    target: str
    resource_id: str
    generation: int
    change: Change
    deleted: bool
    actor: str
    created_at: float
    outcome: str | None
    outcome_at: float | None
    changed: tuple[str, ...]
    identities: tuple[str, ...]


class AttemptRecord(Struct, frozen=True, kw_only=True):
    """One report of a delivery. `steps` and `remarks` are JSON: the calls made, and what else the worker said."""

    id: str
    target: str
    resource_id: str
    generation: int
    fence: int
    delivery: int
    result: Result
    started_at: float
    ended_at: float
    worker: str
    code: str | None
    fingerprint: str | None
    account_id: str | None
    message: str | None
    steps: msgspec.Raw
    remarks: msgspec.Raw


class LastAttempt(Struct, frozen=True):
    """The newest report of a target. `called_at`: of the newest one that called the product; None when none lately did."""

    at: float
    result: str
    called_at: float | None


class NoteRecord(Struct, frozen=True):
    """What was noted about a resource: by which worker or person, since when, when last, and how often."""

    code: str
    message: str
    subject: str
    noted_by: str
    first_at: float
    last_at: float
    times: int


class TargetRecord(Struct, frozen=True, kw_only=True):
    """A target's runtime state and what its connector announced (`spec` is the JSON of a `schemas.specs.Spec`)."""

    row: TargetRow
    spec: bytes | None
    settings_digest: str | None
    seen_at: float | None


class KeyRecord(Struct, frozen=True, kw_only=True):
    """A key of Entra's for one target. `hash` is the keyed hash; the key itself was shown once."""

    id: str
    target: str
    label: str
    prefix: str
    hash: bytes
    created_at: float
    expires_at: float
    revoked_at: float | None = None
    last_used_at: float | None = None


class AuditRecord(Struct, frozen=True, kw_only=True):
    """One act. `detail` is JSON."""

    seq: int
    at: float
    actor: str
    action: str
    target: str
    subject: str
    detail: msgspec.Raw
    previous: str
    hash: str


class DeadCause(Struct, frozen=True, kw_only=True):
    """Dead letters of one cause: how many, since when, and one of them."""

    target: str
    fingerprint: str | None
    count: int
    first_at: float
    last_at: float
    example: str


class Purged(Struct, frozen=True):
    """What one purge job deleted; `more` when it stopped at its bound and should be run again."""

    events: int
    attempts: int
    audit: int
    resources: int
    more: bool
