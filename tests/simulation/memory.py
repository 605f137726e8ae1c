"""The status store in memory, for the simulation: the `Ledger` protocol without SQL.

Rows are copied on the way out and in, so a move that is not saved is lost here as it would be in the database.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from gateway.ledger import SHADOW_LEFT_MAX, Keys, Tally
from gateway.lifecycle import Doubts, MemberSteps, Referred, Row, TargetRow, Wish, refer
from gateway.patch import MemberChange
from gateway.visibility import is_visible
from schemas.events import Note, Outcome
from schemas.resources import Member
from schemas.states import SHADOW, Change, Result, State
from schemas.topology import SETTLE_S


def clone(row: Row) -> Row:
    """A copy that shares nothing mutable."""
    twin = copy.copy(row)
    d = row.doubts
    twin.doubts = (
        Doubts(set(d.possible), set(d.written), set(d.remembered), set(d.trail), dict(d.strays)) if d else Doubts()
    )
    return twin


Place = tuple[str, str, str]
"""Target, kind, and an identity or account id."""


class Memory:
    """All tables of one gateway cluster."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.order: dict[str, int] = {}
        self.keys: dict[str, Keys] = {}
        self.unique: dict[tuple[str, str, str, str], str] = {}
        self.held: dict[Place, set[str]] = defaultdict(set)
        self.wished: dict[Place, set[str]] = defaultdict(set)
        self.links: dict[Place, str] = {}
        self.events: dict[str, dict[int, list[Any]]] = defaultdict(dict)
        self.event_ids: dict[str, tuple[str, int]] = {}
        self.attempts: dict[str, Outcome] = {}
        self.recent: list[Outcome] = []
        self.targets: dict[str, TargetRow] = {}
        self.known: dict[str, str] = {}
        self.members: dict[str, dict[str, list[bool]]] = defaultdict(dict)
        self.notes: dict[str, set[str]] = defaultdict(set)
        self.audits: list[tuple[str, str]] = []
        self.violations: list[str] = []


class MemoryLedger:
    """One transaction on `Memory`; jobs run alone, so there is nothing to isolate.

    Args:
        without: protections to leave out. `R2`: nobody ever seems to hold an identity. `dirty`: nobody remembers a doubt.
            `outbox`: nobody finds an event that was committed and not published.
    """

    def __init__(self, memory: Memory, without: frozenset[str] = frozenset()) -> None:
        self.m = memory
        self.without = without
        self._closed: dict[str, tuple[int, str]] = {}

    # Others
    def holders(self, row: Row, identities: Iterable[str]) -> list[Row]:
        if "R2" in self.without:
            return []
        found = sorted(
            {r for name in identities for r in self.m.held.get((row.target, row.kind, name), ()) if r != row.id},
            key=self.m.order.__getitem__,
        )
        return [clone(self.m.rows[r]) for r in found]

    def wished(self, row: Row, identity: str) -> bool:
        return any(r != row.id for r in self.m.wished.get((row.target, row.kind, identity), ()))

    def owner(self, row: Row, account_id: str) -> Row | None:
        resource = self.m.links.get((row.target, row.kind, account_id))
        return clone(self.m.rows[resource]) if resource is not None and resource != row.id else None

    def past(self, row: Row) -> Sequence[Wish]:
        events = self.m.events[row.id]
        return [events[g][1] for g in range(row.generation - 1, row.settled_generation, -1)]

    # rows
    def row(self, resource: str) -> Row | None:
        row = self.m.rows.get(resource)
        return clone(row) if row is not None else None

    def save(self, row: Row) -> None:
        m = self.m
        old = m.rows.get(row.id)
        at = (row.target, row.kind)
        if old is not None:
            for name in old.held():
                m.held[*at, name].discard(row.id)
            if not old.deleted:
                for name in old.identities:
                    m.wished[*at, name].discard(row.id)
            if old.account_id and m.links.get((*at, old.account_id)) == row.id:
                del m.links[*at, old.account_id]
        else:
            m.order[row.id] = len(m.order)
        new = clone(row)
        new.dirty &= "dirty" not in self.without
        m.rows[row.id] = new
        for name in new.held():
            m.held[*at, name].add(row.id)
        if not new.deleted:
            for name in new.identities:
                m.wished[*at, name].add(row.id)
        if new.account_id:
            if m.links.get((*at, new.account_id), row.id) != row.id:
                m.violations.append("one account linked twice (I8)")
            m.links[*at, new.account_id] = row.id
        self._check(new, old)

    def _check(self, row: Row, old: Row | None) -> None:
        """Invariants of a single row, after every step."""
        v = self.m.violations
        if old is not None and row.settled_generation < old.settled_generation:
            v.append("settled generation went back (I4)")
        if row.state is State.APPLIED and row.settled_generation != row.generation:
            v.append("applied but not settled (I5)")
        looking = row.state in (State.DEAD, State.REJECTED, State.DETACHED)
        if (row.state is State.DELIVERING) != (row.in_flight is not None) and not looking:
            v.append("delivering without a delivery, or the other way round (I3)")

    def set_keys(self, row: Row, keys: Keys) -> str | None:
        m = self.m
        mine = self.m.keys.get(row.id)
        for name, value in (("u", keys.user_name), ("x", keys.external_id)):
            if value is not None:
                owner = m.unique.get((row.target, row.kind, name, value))
                if owner is not None and owner != row.id:
                    return owner
        if mine is not None:
            m.unique.pop((row.target, row.kind, "u", mine.user_name or ""), None)
            m.unique.pop((row.target, row.kind, "x", mine.external_id or ""), None)
        m.keys[row.id] = keys
        if keys.user_name is not None:
            m.unique[row.target, row.kind, "u", keys.user_name] = row.id
        if keys.external_id is not None:
            m.unique[row.target, row.kind, "x", keys.external_id] = row.id
        return None

    # events and attempts
    def add_event(self, row: Row, *, actor: str) -> None:
        events = self.m.events[row.id]
        if row.generation != len(events) + 1:
            self.m.violations.append("generations have a gap (I2)")
        wish = Wish(row.generation, row.event_id, row.identities, row.document, row.change, row.deleted)
        events[row.generation] = [None, wish, row.modified_at]
        self.m.event_ids[row.event_id] = (row.id, row.generation)
        generation, outcome = self._closed.get(row.id, (0, ""))
        if row.generation <= generation:  # settled in the very transaction that accepted it
            events[row.generation][0] = outcome if row.generation == generation else "superseded"
        elif row.settled_generation >= row.generation:
            events[row.generation][0] = "noop"

    def close_events(self, resource: str, generation: int, outcome: str, now: float) -> None:
        self._closed[resource] = (generation, outcome)
        for g, event in self.m.events[resource].items():
            if g <= generation and event[0] is None:
                event[0] = outcome if g == generation else "superseded"

    def record_attempt(self, outcome: Outcome) -> bool:
        if outcome.id in self.m.attempts:
            return False
        self.m.attempts[outcome.id] = outcome
        self.m.recent.append(outcome)
        return True

    def notes_of(self, resource: str) -> Sequence[str]:
        return sorted(self.m.notes[resource])

    def take_notes(self, row: Row, notes: Sequence[Note], *, by: str, at: float) -> None:
        for one in notes:
            (self.m.notes[row.id].add if one.holds else self.m.notes[row.id].discard)(one.code)

    # dispatcher
    def in_flight(self, target: str) -> int:
        return sum(1 for r in self.m.rows.values() if r.in_flight is not None and r.target == target)

    def due(self, target: str, now: float, limit: int) -> Sequence[Row]:
        rows = [r for r in self.m.rows.values() if r.waiting and r.next_at <= now and r.target == target]
        rows.sort(key=lambda r: (r.priority, r.next_at, self.m.order[r.id]))
        return [clone(r) for r in rows[:limit]]

    def targets_due(self, now: float) -> Sequence[str]:
        return sorted({r.target for r in self.m.rows.values() if r.waiting and r.next_at <= now})

    def unpublished(self, limit: int) -> Sequence[Row]:
        if "outbox" in self.without:
            return []
        return [clone(r) for r in self.m.rows.values() if r.in_flight is not None and not r.published][:limit]

    def unheard(self, before: float, limit: int) -> Sequence[Row]:
        rows = (r for r in self.m.rows.values() if r.in_flight is not None and r.published and r.heard_at < before)
        return [clone(r) for r in rows][:limit]

    def read_backs(self, now: float, limit: int) -> Sequence[Row]:
        rows = (r for r in self.m.rows.values() if r.read_back_at is not None and r.read_back_at <= now)
        return [clone(r) for r in rows][:limit]

    def trails(self, limit: int) -> Sequence[Row]:
        resting = (r for r in self.m.rows.values() if r.in_flight is None and r.doubts.trail)
        return [clone(r) for r in resting if any(self.wished(r, name) for name in r.doubts.trail)][:limit]

    def mark_published(self, resource: str, fence: int) -> None:
        row = self.m.rows.get(resource)
        if row is not None and row.fence == fence and row.in_flight is not None:
            row.published = True

    def heard(self, resource: str, fence: int, now: float) -> None:
        row = self.m.rows.get(resource)
        if row is not None and row.fence == fence and row.in_flight is not None:
            row.heard_at = now

    def expect_bus_loss(self, now: float, settled_since: float) -> None:
        for row in self.m.rows.values():
            if row.in_flight is not None:
                row.heard_at = 0.0
            elif row.state in (State.APPLIED, State.GONE) and row.settled_at > settled_since:
                row.read_back_at = now + 60.0

    # targets
    def target(self, name: str) -> TargetRow:
        return copy.copy(self.m.targets.get(name) or TargetRow(name=name))

    def save_target(self, target: TargetRow) -> None:
        self.m.targets[target.name] = copy.copy(target)

    def tally(self, target: str, since: float) -> Tally:
        recent = [
            o for o in self.m.recent if o.target == target and o.ended_at >= since and o.result is not Result.GAVE_UP
        ]
        failed = [o for o in recent if o.result is Result.RETRY]
        in_a_row = 0
        for o in reversed(recent):
            if o.result is not Result.RETRY:
                break
            in_a_row += 1
        return Tally(len(recent), len(failed), len({o.resource for o in failed}), in_a_row)

    def hasten(self, target: str, now: float) -> None:
        for row in self.m.rows.values():
            mine = row.target == target and row.state is State.RETRYING
            if mine and not row.ambiguous and row.in_flight is None:
                row.next_at = min(row.next_at, now)

    def leave_shadow(self, target: str, now: float, limit: int = SHADOW_LEFT_MAX) -> int:
        rows = [
            r
            for r in self.m.rows.values()
            if r.target == target and r.state is State.BLOCKED and r.blocked_on == SHADOW and r.next_at > now
        ][:limit]
        for row in rows:
            row.next_at = min(row.next_at, now)
        return len(rows)

    def dead_alike(self, target: str, fingerprint: str, since: float) -> tuple[int, int]:
        tried = {o.resource for o in self.m.recent if o.target == target and o.ended_at >= since}
        return len(self._buried(target, fingerprint, since)), len(tried)

    def _buried(self, target: str, fingerprint: str, since: float) -> list[Row]:
        return [
            r
            for r in self.m.rows.values()
            if r.target == target
            and r.state is State.DEAD
            and r.reason is not None
            and r.reason.fingerprint() == fingerprint
            and r.settled_at >= since
        ]

    def unbury(self, target: str, fingerprint: str, since: float, now: float) -> int:
        buried = self._buried(target, fingerprint, since)
        for row in buried:
            event = self.m.events[row.id].get(row.generation)
            if event is not None and event[0] == "rejected":
                event[0] = None
            again = msgspec.structs.replace(
                clone(row),
                state=State.QUEUED,
                settled_generation=row.generation - 1,
                attempt=0,
                poisoned=0,
                first_failed_at=None,
                next_at=max(now, row.settled_at + SETTLE_S) if row.ambiguous else now,
            )
            self.m.rows[row.id] = again
        return len(buried)

    def deprovisioned(self, target: str, since: float) -> int:
        return sum(
            1
            for resource, events in self.m.events.items()
            for _, wish, created_at in events.values()
            if wish.change in (Change.DELETE, Change.DEACTIVATE)
            and created_at >= since
            and self.m.rows[resource].target == target
        )

    def population(self, target: str) -> int:
        return sum(1 for r in self.m.rows.values() if r.target == target and is_visible(r))

    # members
    def change_members(self, group: str, changes: Sequence[MemberChange]) -> bool:
        members = self.m.members[group]
        before = {member for member, flags in members.items() if flags[0]}
        after = set(before)
        for change in changes:
            if change.op == "replace":
                after = set(change.ids)
            elif change.op == "add":
                after |= set(change.ids)
            else:
                after -= set(change.ids)
        for member in before ^ after:
            members.setdefault(member, [False, False, False])[0] = member in after
        self._drop(group)
        return before != after

    def _drop(self, group: str) -> None:
        members = self.m.members[group]
        for member in [m for m, flags in members.items() if flags == [False, False, False]]:
            del members[member]

    def member_steps(self, row: Row) -> MemberSteps:
        add, remove, waiting = [], [], None
        for member, (wished, settled, uncertain) in sorted(self.m.members[row.id].items()):
            if wished == settled and not uncertain:
                continue
            held = self.m.rows.get(member)
            known = held is not None and held.target == row.target
            if not wished:
                remove.append(Member(member, held.kind if held else "user", held.account_id if held else None))
            elif known and held.account_id:
                add.append(Member(member, held.kind, held.account_id))
            else:
                waiting = waiting or member
        return MemberSteps(tuple(add), tuple(remove), False, waiting)

    def referred(self, row: Row, resource: str) -> Referred | None:
        found = self.m.rows.get(resource)
        if found is None or (found.target, found.kind) != (row.target, row.kind):
            return None
        return refer(found.account_id, deleted=found.deleted, state=found.state)

    def send_members(self, group: str, members: Sequence[str]) -> None:
        for member in members:
            if member in self.m.members[group]:
                self.m.members[group][member][2] = True

    def settle_members(self, group: str, add: Sequence[str], remove: Sequence[str], *, anew: bool) -> None:
        for member, flags in self.m.members[group].items():
            flags[1] = (flags[1] and not anew and member not in remove) or member in add
            flags[2] = flags[2] and not anew and member not in add and member not in remove
        self._drop(group)

    def unsettle_relinked(self, group: str, members: Sequence[str], accounts: Sequence[str]) -> None:
        for member, account_id in zip(members, accounts, strict=True):
            held, flags = self.m.rows.get(member), self.m.members[group].get(member)
            if flags is not None and (held is None or held.account_id != account_id):
                flags[1] = False

    def forget_member(self, resource: str, now: float) -> None:
        for group, members in self.m.members.items():
            flags = members.pop(resource, None)
            if flags is not None and flags[0] and group in self.m.rows:
                row = self.m.rows[group]
                row.modified_at = max(now, row.modified_at + 0.001)

    def refer_again(self, row: Row, now: float) -> None:
        groups = {group for group, members in self.m.members.items() if members.get(row.id, [False])[0]}
        for group in groups:
            self.m.members[group][row.id][1] = False
        for other in self.m.rows.values():
            if other.id in groups or (other.manager == row.id and other.target == row.target):
                if other.in_flight is not None:
                    other.unfinished = True
                elif other.state is State.APPLIED:
                    other.unfinished, other.state, other.next_at = True, State.QUEUED, now

    def streams(self) -> dict[str, str]:
        return dict(self.m.known)

    def save_stream(self, name: str, created: str) -> None:
        self.m.known[name] = created

    def audit(self, *, at: float, actor: str, action: str, target: str, subject: str, detail: dict[str, Any]) -> None:
        self.m.audits.append((action, subject))
