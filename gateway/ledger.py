"""What one transaction on the status store offers to the engine.

`gateway/store.py` implements it in SQL; the simulation implements it in memory. Everything the engine does to the store is a job:
a function of a `Ledger` that runs inside one transaction and may be run again from the start if that transaction fails.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from msgspec import Struct

from gateway.lifecycle import (
    Close,
    Effect,
    Issue,
    Linked,
    MakeDirty,
    MembersSent,
    MembersSettled,
    Others,
    Relinked,
    Row,
    TargetRow,
    make_dirty,
)
from gateway.patch import MemberChange
from schemas.events import Note, Outcome

SHADOW_LEFT_MAX = 1_000
"""Changes that one job gives back after shadow mode: few enough that no request notices it."""

T = TypeVar("T")
Job = Callable[["Ledger"], T]


class Keys(Struct, frozen=True, omit_defaults=True):
    """The values by which SCIM filters find a resource; folded, except externalId, which is case-exact (RFC 7643 section 3.1)."""

    user_name: str | None = None
    external_id: str | None = None
    work_email: str | None = None
    display_name: str | None = None


NO_KEYS = Keys()


class Tally(Struct, frozen=True):
    """Recent deliveries of a target: how many, how many failed, of how many resources, and how many failed in a row."""

    calls: int
    failures: int
    failing_resources: int
    failures_in_a_row: int


class Ledger(Others, Protocol):
    """One transaction. Rows it returns are locked until the transaction ends; changes count only when saved."""

    def row(self, resource: str) -> Row | None:
        """The row of one resource."""

    def save(self, row: Row) -> None:
        """Write a row and the identities it wishes and holds."""

    def set_keys(self, row: Row, keys: Keys) -> str | None:
        """Give the row its filter keys; the id of the resource that has one of the unique ones already, or None when done."""

    def add_event(self, row: Row, *, actor: str) -> None:
        """Record the row's current generation as accepted (outbox and history in one)."""

    def close_events(self, resource: str, generation: int, outcome: str, now: float) -> None:
        """Give every open event up to `generation` its one outcome; older ones are superseded."""

    def record_attempt(self, outcome: Outcome) -> bool:
        """Record one report; False when it was recorded before."""

    def notes_of(self, resource: str) -> Sequence[str]:
        """Codes of what earlier deliveries noted about a resource and what still holds, in alphabetical order."""

    def take_notes(self, row: Row, notes: Sequence[Note], *, by: str, at: float) -> None:
        """Keep what a delivery or a person noted about a resource that is in the store, in order."""

    def in_flight(self, target: str) -> int:
        """Deliveries of a target that are out."""

    def due(self, target: str, now: float, limit: int) -> Sequence[Row]:
        """Rows to send next, best first: by priority, then by due time."""

    def targets_due(self, now: float) -> Sequence[str]:
        """Targets that have due rows."""

    def unpublished(self, limit: int) -> Sequence[Row]:
        """Deliveries whose event is not known to be in the stream."""

    def unheard(self, before: float, limit: int) -> Sequence[Row]:
        """Deliveries nobody heard of since."""

    def read_backs(self, now: float, limit: int) -> Sequence[Row]:
        """Rows whose planned read-back is due."""

    def trails(self, limit: int) -> Sequence[Row]:
        """Resting rows with a trail that another row waits for."""

    def mark_published(self, resource: str, fence: int) -> None:
        """The event of this fence is in the stream."""

    def heard(self, resource: str, fence: int, now: float) -> None:
        """A sign of life of this delivery."""

    def expect_bus_loss(self, now: float, settled_since: float) -> None:
        """The bus lost a stream: look for everything in flight at once, and read back what settled lately (R1, R10)."""

    def target(self, name: str) -> TargetRow:
        """Runtime state of a target (fresh when it was never saved)."""

    def save_target(self, target: TargetRow) -> None:
        """Write the runtime state of a target."""

    def tally(self, target: str, since: float) -> Tally:
        """Recent deliveries, for the circuit."""

    def hasten(self, target: str, now: float) -> None:
        """A circuit closed: let waiting retries of this target go on now, except those that rest after an ambiguous end."""

    def leave_shadow(self, target: str, now: float, limit: int = SHADOW_LEFT_MAX) -> int:
        """Shadow mode is over: what was only rehearsed at this target is due now; how many of it, at most `limit` at once."""

    def dead_alike(self, target: str, fingerprint: str, since: float) -> tuple[int, int]:
        """Distinct resources that died of this cause since, and distinct resources tried since (dead-letter brake)."""

    def unbury(self, target: str, fingerprint: str, since: float, now: float) -> int:
        """Return these dead letters to the queue; how many."""

    def deprovisioned(self, target: str, since: float) -> int:
        """Deactivations and deletions accepted since (mass brake)."""

    def population(self, target: str) -> int:
        """Live resources of a target."""

    def change_members(self, group: str, changes: Sequence[MemberChange]) -> bool:
        """Change the wished members of a group, in order; whether it has other members afterwards than before."""

    def send_members(self, group: str, members: Sequence[str]) -> None:
        """These are on their way, in or out: uncertain until settled, and never forgotten before."""

    def settle_members(self, group: str, add: Sequence[str], remove: Sequence[str], *, anew: bool) -> None:
        """These are in and out at the product now; `anew`: nobody else is in."""

    def unsettle_relinked(self, group: str, members: Sequence[str], accounts: Sequence[str]) -> None:
        """Of members settled just now with these accounts: those that have another one by now are not in with that one."""

    def forget_member(self, resource: str, now: float) -> None:
        """A resource is being deleted: it is a member of nothing any more, and the groups it leaves were modified now."""

    def refer_again(self, row: Row, now: float) -> None:
        """The account of a resource is another one: its groups and those it manages are sent again, with the new one."""

    def streams(self) -> dict[str, str]:
        """Known creation times of streams."""

    def save_stream(self, name: str, created: str) -> None:
        """Remember a stream's creation time."""

    def audit(self, *, at: float, actor: str, action: str, target: str, subject: str, detail: dict[str, Any]) -> None:
        """Record an operator's or the system's act."""


class Store(Protocol):
    """Runs jobs in shared transactions; a job's result is delivered after the commit, never before."""

    def run(self, job: Job[T]) -> Awaitable[T]:
        """Run one job."""

    def post(self, job: Job[Any]) -> None:
        """Run one job without waiting for it."""


def apply_effects(ledger: Ledger, row: Row, effects: Sequence[Effect], now: float) -> None:
    """Carry out the effects of a move that concern the store; the row itself is saved by the caller."""
    for effect in effects:
        if isinstance(effect, MembersSent):
            ledger.send_members(row.id, effect.members)
        elif isinstance(effect, MembersSettled):
            ledger.settle_members(row.id, effect.add, effect.remove, anew=effect.anew)
            ledger.unsettle_relinked(row.id, effect.add, effect.accounts)
        elif isinstance(effect, Close):
            ledger.close_events(row.id, effect.generation, effect.outcome, now)
        elif isinstance(effect, MakeDirty):
            other = ledger.row(effect.resource)
            if other is not None:
                make_dirty(other, now, effect.identity)
                ledger.save(other)
        elif isinstance(effect, Relinked):
            ledger.refer_again(row, now)
        elif isinstance(effect, Linked):
            ledger.audit(
                at=now,
                actor="system",
                action="account.linked",
                target=row.target,
                subject=row.id,
                detail={"account": effect.account_id},
            )
        elif isinstance(effect, Issue):
            ledger.audit(
                at=now,
                actor="system",
                action=f"issue.{effect.code}",
                target=row.target,
                subject=row.id,
                detail={"message": effect.message},
            )
