"""The life of one resource: every move it can make, as functions without I/O.

A row has two halves: what was asked (document, generation) and what became of it (settled generation, link, reason). The store
loads a locked row, calls one of these functions and saves; the deterministic simulation runs the very same functions. They read
other rows only through `Others`, and say what else must happen through the effects they return.

States and permitted moves: `schemas/states.py`. R1-R10 name the rules of delivery; a test carries each name.

    R1  in flight but not in the stream is lost          R6  a fresh first delivery acts at once, everything else asks
    R2  an identity waits for every holder               R7  ownership is renewed only by an answered signal
    R3  an event carries every identity in doubt         R8  a delivery that gave up reports what it did
    R4  a found account is linked first, never written   R9  doubt is cleared only by the delivery that carried it
    R5  same fence = same id = same bytes                R10 a re-created stream gets consumers of another name
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

import msgspec
from msgspec import Struct, field

from schemas.config import RetrySettings
from schemas.events import Outcome, ProvisioningEvent, Reason, Sighting, Trace, encode, made_traceparent, timestamp
from schemas.resources import ENTERPRISE_SCHEMA, TYPED_LISTS, Group, Member
from schemas.states import NEXT, PRIORITY, PRIORITY_REPAIR, WAITING, Change, Circuit, Result, State
from schemas.topology import CALL_S, OWNED_S, SETTLE_S

READ_BACK_S = 300.0
"""After anything ambiguous the product is read once more, this much later (rule T4)."""
UNHEARD_S = 20.0
"""A delivery nobody heard of for this long is looked for in the stream (R1)."""
QUIET_S = OWNED_S + CALL_S + SETTLE_S
"""Rest before a lost delivery is sent again: until then an old worker may still act."""
RECHECK_FIRST_S = 2.0
RECHECK_MAX_S = 900.0
NEIGHBOUR_RECHECK_FIRST_S = 1.0
NEIGHBOUR_RECHECK_MAX_S = 30.0
"""A row that waits for another row of ours looks again at least this often: that one may settle at any moment."""
CONFLICT_RECHECK_S = 4.0
CONFLICTS_MAX = 8
"""How often an identity held at the product is looked at again before a person has to."""
SLOW_START_STEP_S = 5.0
PROBE_FIRST_S = 2.0
PROBE_MAX_S = 60.0
AUTH_PROBE_FIRST_S = 60.0
AUTH_PROBE_MAX_S = 900.0
DEAD_STATES = frozenset({State.DEAD, State.REJECTED, State.DETACHED})
ON_MEMBER = "member "
ON_MANAGER = "manager "
"""What a settled wish waits for here, before its id; what a connector waits for is named by the connector."""
APPROVAL = "approval"
"""What a wish waits for that a safety brake holds."""


class Doubts(Struct, omit_defaults=True):
    """What is not certain about a resource's accounts. Empty for nearly every row, nearly always.

    Args:
        possible: identities that an unsettled delivery may have created.
        written: identities that were sent for writing since the last confirmed state.
        remembered: identities that were possible once and are looked at while in doubt.
        trail: identities a message still in the stream may act on; cleared when it is known to be gone.
        strays: accounts that stale deliveries of this resource made, with the identity they were made under.
    """

    possible: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)
    remembered: set[str] = field(default_factory=set)
    trail: set[str] = field(default_factory=set)
    strays: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.possible or self.written or self.remembered or self.trail or self.strays)


class Row(Struct, kw_only=True):
    """One resource of one target: both halves. Times are epoch seconds."""

    id: str
    target: str
    kind: str = "user"
    # what was asked
    generation: int = 0
    acknowledged: int = 0
    event_id: str = ""
    change: Change = Change.CREATE
    changed: tuple[str, ...] = ()
    document: bytes = b"{}"
    deleted: bool = False
    identities: tuple[str, ...] = ()
    manager: str | None = None
    """Resource id of the wished manager."""
    created_at: float = 0.0
    modified_at: float = 0.0
    veiled: bool = False
    traceparent: str | None = None
    """W3C trace context of the request that made the newest wish, if it carried one."""
    tracestate: str | None = None
    # what became of it
    state: State = State.QUEUED
    settled_generation: int = 0
    settled_document: bytes | None = None
    settled_identities: tuple[str, ...] = ()
    settled_at: float = 0.0
    account_id: str | None = None
    account_created: bool | None = None
    """Whether a delivery of ours created the linked account; None when nobody knows."""
    account_keys: tuple[str, ...] = ()
    observed_active: bool | None = None
    reason: Reason | None = None
    blocked_on: str | None = None
    issue: str | None = None
    # the delivery in flight
    fence: int = 0
    in_flight: int | None = None
    body: bytes | None = None
    published: bool = False
    delivery: int = 1
    looked: bool = False
    heard_at: float = 0.0
    # doubt
    dirty: bool = False
    ambiguous: bool = False
    read_back: bool = False
    read_back_at: float | None = None
    doubts: Doubts = field(default_factory=Doubts)
    # when to go on
    attempt: int = 0
    poisoned: int = 0
    first_failed_at: float | None = None
    awaited_since: float | None = None
    """When the wait for `blocked_on` began, if it has a bound (`gateway/waits.py`)."""
    next_at: float = 0.0
    unfinished: bool = False
    """What is settled is not all of it: members the last event did not carry, or a manager who had no account yet."""

    @property
    def waiting(self) -> bool:
        """Whether the dispatcher has something to do for this row (now or at `next_at`)."""
        if self.in_flight is not None:
            return False
        if self.state in WAITING:
            return True
        return self.dirty and (self.state is State.GONE or self.state in DEAD_STATES)

    @property
    def priority(self) -> int:
        """Order among due rows, lower first: deprovision, create, update, repair."""
        if self.settled_generation >= self.generation:
            return PRIORITY_REPAIR
        return PRIORITY[self.change]

    @property
    def open(self) -> bool:
        """Whether a wish is newer than what is settled."""
        return self.settled_generation < self.generation

    def held(self) -> set[str]:
        """Identities no other resource may use yet (R2)."""
        holds = set(self.doubts.trail)
        if self.state is State.GONE and not self.dirty and self.in_flight is None:
            return holds
        return holds | self.doubts.possible | set(self.settled_identities)


class Others(Protocol):
    """What a move may know of the other resources of the same target and kind."""

    def holders(self, row: Row, identities: Iterable[str]) -> list[Row]:
        """Rows other than `row` that hold any of the identities."""

    def wished(self, row: Row, identity: str) -> bool:
        """Whether another live row is wished to be called so."""

    def owner(self, row: Row, account_id: str) -> Row | None:
        """The row other than `row` that is linked to this account."""

    def past(self, row: Row) -> Sequence[Wish]:
        """Wishes of this row newer than the settled one, newest first, without the current one."""

    def member_steps(self, row: Row) -> MemberSteps:
        """What has to be done about the members of a group, as much as one event carries."""

    def referred(self, row: Row, resource: str) -> Referred | None:
        """The user of this target that `row` refers to, e.g. as its manager; None when there is no such user."""


class Referred(Struct, frozen=True):
    """A user that another one refers to.

    Args:
        account_id: its account at the product, if it has one that stays.
        awaited: it has none yet, and may still get one.
    """

    account_id: str | None = None
    awaited: bool = False


def refer(account_id: str | None, *, deleted: bool, state: State) -> Referred:
    """What a user is to those who refer to it. A dead one may still be redriven; a deleted or rejected one comes no more."""
    if deleted or state in (State.GONE, State.REJECTED):
        return Referred()
    return Referred(account_id=account_id, awaited=account_id is None)


class Wish(Struct, frozen=True):
    """One generation of a row, as accepted."""

    generation: int
    event_id: str
    identities: tuple[str, ...]
    document: bytes
    change: Change
    deleted: bool = False


class MemberSteps(Struct, frozen=True):
    """The difference between the wished members of a group and those the product has, as far as it can be sent now.

    Args:
        more: there are further differences than one event carries.
        waiting_for: a wished member that has no account at the product yet; it blocks only its own membership (rule T12).
    """

    add: tuple[Member, ...] = ()
    remove: tuple[Member, ...] = ()
    more: bool = False
    waiting_for: str | None = None


# ---- effects: what must happen besides saving the row


class Close(Struct, frozen=True):
    """Event rows up to `generation` get their one outcome; older ones are superseded."""

    generation: int
    outcome: str


class MakeDirty(Struct, frozen=True):
    """Another row's account was touched or claimed, perhaps under a name it is not known by: look at it again."""

    resource: str
    identity: str = ""


class Relinked(Struct, frozen=True):
    """The account that groups and reports know is gone: they refer to the row's next account as soon as there is one."""


class Linked(Struct, frozen=True):
    """An existing account was linked (audited)."""

    account_id: str


class CircuitHit(Struct, frozen=True):
    """The target, not the resource, has a problem."""

    circuit: Circuit
    reason: Reason | None


class RateLimitHit(Struct, frozen=True):
    """The product asked for a rest."""

    wait_s: float


class Died(Struct, frozen=True):
    """A dead letter."""

    reason: Reason


class Issue(Struct, frozen=True):
    """Something a person should look at although nothing is stuck: e.g. a second account."""

    code: str
    message: str


class MembersSent(Struct, frozen=True):
    """An event carries these members: whether the product has them is uncertain until it is settled."""

    members: tuple[str, ...]


class MembersSettled(Struct, frozen=True):
    """These members were added and removed at the product. `anew`: the group was created, so nobody else is in it.

    `accounts` are those the members in `add` had when the event was made, in the same order; by now they may be others.
    """

    add: tuple[str, ...]
    remove: tuple[str, ...]
    anew: bool = False
    accounts: tuple[str, ...] = ()


Effect = Close | MembersSent | MembersSettled | MakeDirty | Linked | Relinked | CircuitHit | RateLimitHit | Died | Issue


# ---- moves


class InvariantBroken(Exception):
    """A move that is not permitted. The resource is stopped (dead, reason `invariant`), the process goes on."""


def move(row: Row, state: State) -> None:
    """Change state; the only place that does.

    Raises:
        InvariantBroken: the move is not in the table of permitted moves.
    """
    if state is not row.state and state not in NEXT[row.state]:
        raise InvariantBroken(f"{row.state} -> {state}")
    row.state = state


def accept(
    row: Row,
    *,
    event_id: str,
    document: bytes,
    identities: tuple[str, ...],
    change: Change,
    changed: tuple[str, ...],
    now: float,
    acknowledged: bool,
    hold: bool = False,
    trace: Trace | None = None,
) -> list[Effect]:
    """Take a new wish (rule T1). The caller has found that it differs, or that the row is dead and this is a redrive.

    Args:
        event_id: ULID of the new generation.
        document: the complete wished document.
        identities: what the resource is called under this wish.
        acknowledged: Entra is told success at once; otherwise a request waits for the outcome.
        hold: a safety brake stops this wish until an operator approves.
        trace: the request's trace context, if it carried one.
    """
    fresh_start = row.state in DEAD_STATES or row.state is State.BLOCKED
    held = row.state is State.HELD or row.blocked_on == APPROVAL
    hold = hold or (held and change is not Change.ACTIVATE)
    row.generation += 1
    row.event_id = event_id
    row.document = document
    row.identities = identities
    row.change = change
    row.changed = changed
    row.deleted = change is Change.DELETE
    row.modified_at = now
    row.traceparent, row.tracestate = (trace.parent, trace.state or None) if trace is not None else (None, None)
    row.manager = manager_of(document) if row.kind == "user" else None
    if row.generation == 1:
        row.created_at = now
    if acknowledged:
        row.acknowledged = row.generation
    if row.state in DEAD_STATES:
        row.attempt = row.poisoned = 0
        row.first_failed_at = None
    if row.in_flight is None:
        if row.state in (State.APPLIED, State.GONE, State.HELD) or fresh_start:
            # a rest after an ambiguous end is kept: the product may still be busy with it (R9)
            row.next_at = max(row.next_at, now) if row.ambiguous else 0.0
        if row.state is not State.RETRYING:
            move(row, State.QUEUED)
        row.blocked_on = None
        if hold:
            move(row, State.HELD)
    else:
        row.blocked_on = APPROVAL if hold else None  # held as soon as what is in flight is settled
        if row.state in DEAD_STATES:
            move(row, State.DELIVERING)  # only a look is in flight; the wish goes next
    return []


def acknowledge(row: Row, generation: int) -> None:
    """Entra is told success although the outcome is not known yet."""
    row.acknowledged = max(row.acknowledged, min(generation, row.generation))


def ready(row: Row, now: float) -> bool:
    """Whether a delivery may be made now, as far as the row itself is concerned (rule T2)."""
    return row.waiting and row.next_at <= now and (row.open or row.dirty or row.unfinished)


def dispatch(row: Row, now: float, others: Others, connector: str) -> list[Effect] | None:
    """Decide about the next delivery of a ready row; on success the row is `delivering` and `row.body` is the event.

    Returns:
        Effects when something was decided; None when the row has to wait (its state and next_at say for what).
    """
    if row.state in DEAD_STATES:  # refused, but what an earlier delivery did is uncertain: find out, write nothing (R2)
        return _send(row, _current_wish(row), now, others, connector, read_only=True)
    if row.deleted and _unknown_there(row):
        row.settled_generation = row.generation
        row.acknowledged = row.generation
        row.settled_document = None
        row.dirty = row.read_back = False
        row.reason = None  # whatever its wish was refused for has gone with it
        move(row, State.GONE)
        return [Close(row.generation, "noop")]
    if row.unfinished and not (row.open or row.dirty):
        if row.kind == "group":
            steps = others.member_steps(row)
            if not (steps.add or steps.remove):
                return _rest_of_members(row, steps, now)
        elif not row.ambiguous:
            manager = row.manager
            referred = _referred(row, manager, others)
            if manager is None or referred is None or referred.account_id is None:
                return _rest_of_manager(row, manager, referred, now)
        if row.blocked_on is not None and row.blocked_on.startswith((ON_MEMBER, ON_MANAGER)):
            row.attempt = 0  # that was waiting, not failing: a failure now is the first
    wish = _current_wish(row)
    if not row.deleted:
        holders = others.holders(row, row.identities)
        if holders:
            names = ", ".join(sorted({h.id for h in holders}))
            _wait_for_neighbour(row, f"identity of {names}", now, _identity_reason())
            if row.doubts.possible:  # its own name is uncertain: find out first, without writing (R2)
                return _send(row, wish, now, others, connector, read_only=True)
            ring = _cycle(row, others)
            if not ring:
                return None
            ways = {member.id: _detour(member, others) for member in ring}
            detour = ways[row.id]
            if detour is None:
                if any(ways.values()):
                    return None  # another member of the ring has a free name and goes first
                reason = Reason(
                    code="identity_cycle",
                    message="Renames block each other in a circle and no intermediate name is free; rename one of them first.",
                    scim_type="uniqueness",
                )
                return _die(row, reason, "rejected")
            wish = detour
    return _send(row, wish, now, others, connector)


def _rest_of_members(row: Row, steps: MemberSteps, now: float) -> list[Effect] | None:
    """Nothing more can be sent for this group now: it is done, or waits for a member's account."""
    if steps.waiting_for is None:
        return _finish(row)
    _wait_for_neighbour(row, f"{ON_MEMBER}{steps.waiting_for}", now, _member_reason(steps.waiting_for))
    return None


def _finish(row: Row) -> list[Effect]:
    row.unfinished = False
    row.reason = row.blocked_on = None
    if row.state is State.RETRYING:
        move(row, State.QUEUED)
    move(row, State.APPLIED)
    return []


def _rest_of_manager(row: Row, manager: str | None, referred: Referred | None, now: float) -> list[Effect] | None:
    """Everything but the manager is applied: wait until that one has an account, unless it is never going to have one."""
    if manager is None:
        return _finish(row)
    if referred is None or not referred.awaited:
        return [
            *_finish(row),
            Issue("manager_gone", f"applied without the manager {manager}, who is not a user here any more"),
        ]
    _wait_for_neighbour(row, f"{ON_MANAGER}{manager}", now, _manager_reason(manager))
    return None


def _manager_reason(manager: str) -> Reason:
    return Reason(
        code="manager_missing",
        message=f"Everything was applied but the manager: waits until user {manager} has an account at the product.",
        attribute=f"{ENTERPRISE_SCHEMA}:manager",
    )


def manager_of(document: bytes) -> str | None:
    """The resource id of the manager in a user's stored document, or None."""
    if b'"manager"' not in document:  # most users have none, and decoding costs more than everything else here
        return None
    enterprise = msgspec.json.decode(document).get(ENTERPRISE_SCHEMA)
    manager = enterprise.get("manager") if isinstance(enterprise, dict) else None
    value = manager.get("value") if isinstance(manager, dict) else None
    return value if isinstance(value, str) and value else None


def _referred(row: Row, manager: str | None, others: Others) -> Referred | None:
    if manager is None:
        return None
    if manager == row.id:  # some lead themselves
        return Referred(account_id=row.account_id, awaited=row.account_id is None)
    return others.referred(row, manager)


def _member_reason(member: str) -> Reason:
    return Reason(
        code="member_missing", message=f"Waits until member {member} has an account at the product; all others are in."
    )


def _current_wish(row: Row) -> Wish:
    return Wish(row.generation, row.event_id, row.identities, row.document, row.change, row.deleted)


def _unknown_there(row: Row) -> bool:
    """Nothing of this row can be at the product: never delivered, or every delivery was certainly refused (rule T9)."""
    if row.fence == 0:
        return True
    doubts = row.doubts
    return (
        row.account_id is None
        and not (row.ambiguous or row.dirty)
        and not (doubts.possible or doubts.written or doubts.remembered or doubts.strays)
    )


def _send(row: Row, wish: Wish, now: float, others: Others, connector: str, *, read_only: bool = False) -> list[Effect]:
    doubts = row.doubts
    row.fence += 1
    row.in_flight = wish.generation
    row.published = False
    row.delivery = 1
    row.heard_at = now
    row.looked = row.dirty or row.ambiguous
    row.read_back = row.read_back and not row.ambiguous
    row.ambiguous = row.looked and not row.read_back
    row.dirty = False
    if row.state not in DEAD_STATES:
        move(row, State.DELIVERING)
    own = set() if wish.deleted or read_only else set(wish.identities)
    lookup: set[str] = own
    watch: set[str] = set()
    strays: list[str] = []
    if doubts or wish.deleted or read_only:
        names = set(wish.identities) | doubts.possible | doubts.remembered | set(doubts.strays.values())
        lookup = own | {name for name in names if _may_look_up(row, name, others)}
        if wish.deleted and row.account_id:
            lookup &= doubts.possible | doubts.remembered
        watch = doubts.remembered - lookup
        strays = [
            account_id
            for account_id, name in sorted(doubts.strays.items())
            if not others.holders(row, (name,)) and others.owner(row, account_id) is None
        ]
    doubts.written |= own
    doubts.possible |= lookup
    document = wish.document
    if row.settled_document is not None and row.settled_document != document and not (wish.deleted or read_only):
        document = _with_cleared(document, row.settled_document)
    row.unfinished = False
    effects: list[Effect] = []
    if row.kind == "group" and not (wish.deleted or read_only):
        steps = others.member_steps(row)
        effects = [MembersSent(tuple(member.id for member in (*steps.add, *steps.remove)))]
        document = _group_document(document, steps)
        row.unfinished = steps.more or steps.waiting_for is not None
    accounts: dict[str, str] = {}
    if row.kind == "user" and not (wish.deleted or read_only):
        manager = manager_of(wish.document)
        referred = _referred(row, manager, others)
        if manager is not None and referred is not None and referred.account_id is not None:
            accounts[manager] = referred.account_id
    event = ProvisioningEvent(
        id=wish.event_id,
        target=row.target,
        connector=connector,
        kind="group" if row.kind == "group" else "user",
        resource=row.id,
        generation=wish.generation,
        fence=row.fence,
        change=wish.change,
        document=msgspec.Raw(document),
        deleted=wish.deleted,
        account_id=row.account_id,
        look=row.looked,
        read_only=read_only,
        identities=wish.identities,
        lookup=tuple(sorted(lookup)),
        watch=tuple(sorted(watch)),
        strays=tuple(strays),
        changed=row.changed,
        accounts=accounts,
        created_by_us=row.account_created if row.account_id else None,
        traceparent=row.traceparent or made_traceparent(wish.event_id),
        tracestate=row.tracestate or "",
        txn=wish.event_id,
        recorded_at=timestamp(now),
    )
    row.body = encode(event)
    return effects


def _with_cleared(document: bytes, settled: bytes) -> bytes:
    """The wish, with null where the product still holds something that is no longer wished.

    A stored document has no nulls: an attribute that was cleared is simply not there. A connector has to tell that from one
    nobody ever spoke of, which keeps the product's value (vendor rule A4).
    """
    wished, held = msgspec.json.decode(document), msgspec.json.decode(settled)
    return msgspec.json.encode(_marked(wished, held)) if _clears(wished, held) else document


def _clears(wished: dict[str, Any], held: dict[str, Any]) -> bool:
    if held.keys() - wished.keys():
        return True
    return any(
        _clears(wished[key], value)
        if isinstance(value, dict) and isinstance(wished[key], dict)
        else bool(key in TYPED_LISTS and _gone_entries(wished[key], value))
        for key, value in held.items()
    )


def _marked(wished: dict[str, Any], held: dict[str, Any]) -> dict[str, Any]:
    marked: dict[str, Any] = dict.fromkeys(held.keys() - wished.keys())
    for key, value in held.items():
        there = wished.get(key, {})
        if isinstance(value, dict) and isinstance(there, dict):
            marked[key] = _marked(there, value)
        elif key in TYPED_LISTS and there and (gone := _gone_entries(there, value)):
            marked[key] = [*there, *gone]
    return {**wished, **marked}


def _gone_entries(wished: Any, held: Any) -> list[dict[str, Any]]:
    """The entries of types that only the product holds, with null for each of their values."""
    if not isinstance(wished, list) or not isinstance(held, list):
        return []
    there = {_type_of(entry) for entry in wished}
    gone = {_type_of(entry): entry for entry in held if _type_of(entry) not in there}
    return [
        {**dict.fromkeys(entry.keys() - {"primary"}), "type": entry["type"]} for kind, entry in gone.items() if kind
    ]


def _type_of(entry: Any) -> str:
    """In small letters, as entries are told apart when Entra changes them; "" when it has none."""
    kind = entry.get("type") if isinstance(entry, dict) else None
    return kind.casefold() if isinstance(kind, str) else ""


def _unmarked(document: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            value = _unmarked(value)
            if not value:
                continue
        elif key in TYPED_LISTS and isinstance(value, list):
            value = [one for one in value if not (isinstance(one, dict) and None in one.values())]
        if value is not None:
            plain[key] = value
    return plain


def _group_document(document: bytes, steps: MemberSteps) -> bytes:
    group = Group.from_document(msgspec.json.decode(document))
    return msgspec.json.encode(msgspec.structs.replace(group, add=steps.add, remove=steps.remove))


def _may_look_up(row: Row, name: str, others: Others) -> bool:
    if others.holders(row, (name,)):
        return False
    return name in row.doubts.possible or not others.wished(row, name)


def _block(row: Row, on: str, now: float, reason: Reason | None, *, wait_s: float | None = None) -> None:
    """Wait for a named thing; looked at again at growing intervals."""
    again = row.blocked_on == on  # also after a delivery that came to the same end
    row.attempt = row.attempt + 1 if again else 0
    row.blocked_on = on
    row.reason = reason
    row.next_at = now + (wait_s or min(RECHECK_MAX_S, RECHECK_FIRST_S * 2 ** min(row.attempt, 9)))
    move(row, State.BLOCKED)


def _wait_for_neighbour(row: Row, on: str, now: float, reason: Reason) -> None:
    attempt = row.attempt if row.state is State.BLOCKED else 0
    wait_s = min(NEIGHBOUR_RECHECK_MAX_S, NEIGHBOUR_RECHECK_FIRST_S * 2 ** min(attempt, 9))
    _block(row, on, now, reason, wait_s=wait_s)


def _identity_reason() -> Reason:
    return Reason(
        code="identity_held", message="Waits until an earlier user of the same name is settled at the product."
    )


def _cycle(row: Row, others: Others) -> list[Row]:
    """The ring of resting rows that wait for each other's names, or [] (rule T10)."""
    ring = [row]
    current = row
    while True:
        blocking = [] if current.deleted else others.holders(current, current.identities)
        resting = [holder for holder in blocking if holder.in_flight is None]
        if not resting:
            return []
        current = resting[0]
        if current.id == row.id:
            return ring
        if any(member.id == current.id for member in ring):
            return []
        ring.append(current)


def _detour(row: Row, others: Others) -> Wish | None:
    """An intermediate wish of this row whose name nobody holds."""
    for wish in others.past(row):
        if not wish.deleted and not others.holders(row, wish.identities):
            return wish
    return None


def _die(row: Row, reason: Reason, outcome: str, generation: int | None = None) -> list[Effect]:
    row.reason = reason
    row.blocked_on = None
    settled = row.generation if generation is None else generation
    row.settled_generation = max(row.settled_generation, settled)
    if row.ambiguous:
        row.dirty = True
        row.next_at = row.settled_at + SETTLE_S
    else:
        _release(row, row.doubts.possible)
        row.doubts.written.clear()
    if row.acknowledged == 0 and row.settled_document is None and row.account_id is None:
        move(row, State.REJECTED)
        return [Close(settled, outcome)]
    move(row, State.DEAD)
    return [Close(settled, outcome), Died(reason)]


def _release(row: Row, names: Collection[str]) -> None:
    """These identities are no longer possible; a message in the stream might still act on them, so others wait for that."""
    released = set(names)
    row.doubts.possible -= released
    row.doubts.trail |= released - set(row.settled_identities)


def begin(row: Row, fence: int, delivery: int, now: float) -> bool | None:
    """A delivery that is not fresh asks whether it may act (R6).

    Returns:
        True: go, and from now on only this delivery may settle. False: the message is not current, drop it.
        None: a later delivery of the same message is at work; leave the message alone.
    """
    if row.in_flight is None or row.fence != fence:
        return False
    if delivery < row.delivery:
        return None
    row.delivery = delivery
    row.heard_at = now
    return True


def lose(row: Row, now: float) -> None:
    """The delivery in flight is lost (R1): queue again as ambiguous, after everything old has come to rest."""
    row.in_flight = None
    row.body = None
    row.ambiguous = True
    row.read_back = False
    row.dirty |= row.looked
    if not (row.open or row.dirty):
        row.unfinished = True  # what was sent again besides a settled wish is still to be done
    row.next_at = now + QUIET_S
    if row.state in DEAD_STATES:
        row.dirty = True
    else:
        move(row, State.QUEUED)


def make_dirty(row: Row, now: float, identity: str = "") -> None:
    """Something was done behind this row's back, or may have been: read before the next write, and do it soon.

    Args:
        identity: a name under which the row's account was seen; the next look asks for it, too.
    """
    row.dirty = True
    if identity and identity not in row.settled_identities:
        row.doubts.remembered.add(identity)
        row.doubts.possible.add(identity)
    row.read_back = False
    if row.in_flight is None and (row.state in (State.APPLIED, State.GONE) or row.state in DEAD_STATES):
        row.next_at = min(row.next_at, now) if row.next_at else now
        if row.state is State.APPLIED:
            move(row, State.QUEUED)


def read_again(row: Row) -> None:
    """The planned read-back after something ambiguous (rule T4)."""
    row.read_back_at = None
    waits_for_another = row.state is State.BLOCKED and row.unfinished and not row.open
    if row.in_flight is not None or not (row.state in (State.APPLIED, State.GONE) or waits_for_another):
        return
    row.dirty = row.read_back = True
    row.next_at = 0.0
    if row.state is State.APPLIED:
        move(row, State.QUEUED)


def clear_trail(row: Row, fence: int) -> None:
    """No message of this row up to `fence` is in the stream any more: its old identities pass on (R2)."""
    if row.in_flight is None and row.fence == fence:
        row.doubts.trail.clear()


def settle(
    row: Row, outcome: Outcome, now: float, others: Others, retry: RetrySettings, *, adopt: bool, jitter: float
) -> list[Effect]:
    """Fold one outcome that was not folded before (rule T5).

    Args:
        adopt: whether existing accounts may be linked.
        jitter: a random number in [0, 1).

    Returns:
        Effects; the row is saved by the caller. An outcome that is not current settles nothing (R8, R9).
    """
    current = row.in_flight is not None and outcome.fence == row.fence
    if outcome.result is Result.GAVE_UP or not current or outcome.delivery < row.delivery:
        _doubt(row, outcome, others, now)
        return []
    sent = row.body
    row.in_flight = None
    row.body = None
    row.settled_at = row.heard_at = now
    account_id = row.account_id
    if row.state in DEAD_STATES:
        return _resolved(row, outcome, now, others)
    hold = row.blocked_on == APPROVAL
    effects = _settle_current(row, outcome, now, others, retry, adopt, jitter, sent)
    if hold and row.open and row.state in WAITING:
        row.blocked_on = None
        move(row, State.HELD)
    done = outcome.result is Result.APPLIED or row.state is State.GONE or row.state in DEAD_STATES
    if account_id is not None and row.account_id != account_id and not row.deleted:
        effects.append(Relinked())
        if row.manager == row.id and not row.open:
            row.unfinished = True
            if row.state is State.APPLIED:
                move(row, State.QUEUED)
    if not done and not row.open:
        row.unfinished = True  # what was sent again besides a settled wish is still to be done
    if row.looked and not done:
        row.dirty = row.ambiguous = True  # doubt is cleared only by the settle of the delivery that carried it (R9)
    return effects


def _resolved(row: Row, outcome: Outcome, now: float, others: Others) -> list[Effect]:
    """A look at what a refused resource left behind: the refusal stays, its names become certain."""
    if outcome.result is not Result.SEEN:
        row.dirty = row.ambiguous = True
        row.attempt += 1
        row.next_at = now + max(outcome.retry_after_s or 0.0, min(RECHECK_MAX_S, SETTLE_S * 2 ** min(row.attempt, 9)))
        return [CircuitHit(Circuit.AUTH, outcome.reason)] if outcome.result is Result.MISCONFIGURED else []
    state = row.state
    effects = _learn(row, outcome, others)
    row.ambiguous = False
    row.doubts.written.clear()
    row.attempt = 0
    row.state = state
    return effects


def _doubt(row: Row, outcome: Outcome, others: Others, now: float) -> None:
    """A report that settles nothing: whatever it did is looked at by the next delivery."""
    account_id = outcome.account_id
    free = account_id is not None and others.owner(row, account_id) is None
    acted = outcome.created or outcome.result is Result.APPLIED
    if account_id and free and acted and row.account_id is None and not outcome.deleted:
        _link(row, account_id, created=outcome.created or None)
    elif account_id and free and outcome.created and account_id != row.account_id:
        row.doubts.strays[account_id] = outcome.identities[0] if outcome.identities else ""
    row.doubts.remembered |= set(outcome.identities)
    make_dirty(row, now)


def _settle_current(
    row: Row,
    outcome: Outcome,
    now: float,
    others: Others,
    retry: RetrySettings,
    adopt: bool,
    jitter: float,
    sent: bytes | None,
) -> list[Effect]:
    match outcome.result:
        case Result.APPLIED:
            return _applied(row, outcome, now, others, sent)
        case Result.FOUND:
            return _found(row, outcome, now, others, adopt, sent)
        case Result.SEEN:
            return _seen(row, outcome, now, others)
        case Result.REJECTED:
            return _rejected(row, outcome, now)
        case Result.MISCONFIGURED:
            row.ambiguous |= outcome.ambiguous
            row.next_at = now + (SETTLE_S if outcome.ambiguous else 1.0)
            row.reason = outcome.reason
            move(row, State.QUEUED)
            return [CircuitHit(Circuit.AUTH, outcome.reason)]
        case Result.RATE_LIMITED:
            wait_s = min(outcome.retry_after_s or 1.0, retry.rate_limit_wait_max_s)
            row.ambiguous |= outcome.ambiguous
            row.next_at = now + max(wait_s, SETTLE_S if outcome.ambiguous else 0.0)
            row.reason = outcome.reason
            move(row, State.RETRYING)
            return [RateLimitHit(wait_s)]
        case Result.BLOCKED:
            return _blocked(row, outcome, now, others)
        case Result.POISON:
            row.poisoned += 1
            if row.poisoned >= retry.poison_attempts_max:
                row.ambiguous |= outcome.ambiguous
                return _die(row, outcome.reason or Reason(code="poison", message=""), "rejected", outcome.generation)
            return _retry(row, outcome, now, retry, jitter)
        case _:
            return _retry(row, outcome, now, retry, jitter)


def _applied(row: Row, outcome: Outcome, now: float, others: Others, sent: bytes | None) -> list[Effect]:
    owner = others.owner(row, outcome.account_id) if outcome.account_id and not outcome.deleted else None
    if owner is not None:
        row.ambiguous = True
        _link(row, None, created=None)
        _block(row, f"account of {owner.id}", now, _owner_reason(owner), wait_s=5.0)
        return [MakeDirty(owner.id)]
    doubts = row.doubts
    before = set(row.settled_identities)
    row.settled_generation = outcome.generation
    row.attempt = row.poisoned = 0
    row.first_failed_at = None
    row.ambiguous = False
    _link(row, None if outcome.deleted else outcome.account_id, created=outcome.created or _made_before(row, outcome))
    row.account_keys = outcome.account_keys
    row.observed_active = outcome.observed_active
    row.settled_identities = () if outcome.deleted else outcome.identities
    effects: list[Effect] = [Close(outcome.generation, "applied")]
    if (outcome.looked and not row.read_back) or outcome.delivery > 1 or row.delivery > 1:
        row.read_back_at = now + READ_BACK_S
    if doubts.strays:
        done = set(msgspec.json.decode(sent, type=ProvisioningEvent).strays) if sent else set()
        doubts.strays = {
            account_id: name
            for account_id, name in doubts.strays.items()
            if account_id not in done
            and account_id != row.account_id
            and others.owner(row, account_id) is None
            and not others.holders(row, (name,))
        }
    effects += _report_sightings(row, outcome, others)
    keep = row.dirty or row.read_back_at is not None
    settled = set(row.settled_identities)
    doubts.remembered = ((doubts.remembered | doubts.possible) - settled) if keep else set()
    _release(row, set(doubts.possible))
    doubts.trail |= before - settled
    doubts.trail -= settled
    doubts.written.clear()
    row.reason = None
    row.blocked_on = None
    row.next_at = 0.0
    row.settled_document = None if outcome.deleted else _document_of(sent, row)
    if row.kind == "group" and not outcome.deleted:
        effects.append(_members_of(sent, created=outcome.created))
        row.unfinished |= outcome.created
    if row.kind == "user":
        again = row.unfinished or row.manager in outcome.unresolved  # or its account became another one meanwhile
        row.unfinished = again and not (outcome.deleted or row.open)
    move(row, State.GONE if outcome.deleted else State.APPLIED)
    if doubts.strays:
        row.dirty = True
        row.next_at = now + 5.0
    if row.open:
        row.next_at = 0.0
        move(row, State.QUEUED)
    elif (row.dirty or row.unfinished) and row.state is State.APPLIED:
        move(row, State.QUEUED)
    return effects


def _link(row: Row, account_id: str | None, *, created: bool | None) -> None:
    """Link the row to an account; who made it is kept while the link stays."""
    if account_id != row.account_id or created:
        row.account_id = account_id
        row.account_created = created if account_id is not None else None


def _made_before(row: Row, outcome: Outcome) -> bool | None:
    """An account that was linked only now without having been created now: one that a stale delivery of ours made."""
    return True if outcome.account_id in row.doubts.strays else None


def _members_of(sent: bytes | None, *, created: bool) -> MembersSettled:
    group = msgspec.json.decode(sent, type=ProvisioningEvent).group() if sent else Group(display_name="")
    return MembersSettled(
        tuple(m.id for m in group.add),
        tuple(m.id for m in group.remove),
        anew=created,
        accounts=tuple(m.account_id or "" for m in group.add),
    )


def _document_of(sent: bytes | None, row: Row) -> bytes:
    """The confirmed document: what was sent. Equal to the wish unless a newer one waits."""
    if sent is None or not row.open:
        return row.document
    if row.kind == "group":
        group = msgspec.json.decode(sent, type=ProvisioningEvent).group()
        return msgspec.json.encode(msgspec.structs.replace(group, add=(), remove=()))
    return msgspec.json.encode(
        _unmarked(msgspec.json.decode(msgspec.json.decode(sent, type=ProvisioningEvent).document))
    )


def _report_sightings(row: Row, outcome: Outcome, others: Others) -> list[Effect]:
    """Accounts nobody owns beside the linked one are for a person to look at; they are never touched."""
    second = [
        s.account_id
        for s in (*outcome.sightings, *outcome.watched)
        if s.account_id != outcome.account_id and others.owner(row, s.account_id) is None
    ]
    if not second:
        row.issue = None if outcome.looked else row.issue
        return []
    row.issue = f"a second account {', '.join(sorted(set(second)))} answers to an earlier name"
    return [Issue("second_account", row.issue)]


def _found(row: Row, outcome: Outcome, now: float, others: Others, adopt: bool, sent: bytes | None) -> list[Effect]:
    """R4: link what was found, if nobody owns it, and send again; a worker never writes on it."""
    effects: list[Effect] = []
    row.ambiguous = True
    row.next_at = now
    blocked: Row | None = None
    for sighting in outcome.sightings:
        owner = others.owner(row, sighting.account_id)
        if owner is not None:
            effects.append(MakeDirty(owner.id, sighting.identity))
            _release(row, {sighting.identity})
            row.doubts.written.discard(sighting.identity)
            row.doubts.remembered.discard(sighting.identity)
            blocked = blocked or owner
            continue
        if outcome.deleted and sighting.identity not in row.doubts.written:
            effects += _leave(row, sighting)
            continue
        if not outcome.deleted and not adopt and sighting.identity not in row.doubts.written - set(outcome.identities):
            return effects + _die(row, _adopt_reason(), "rejected", outcome.generation)
        # after an earlier delivery that may have acted, the account may be its work
        _link(row, sighting.account_id, created=None if outcome.looked else False)
        move(row, State.QUEUED)
        return [*effects, Linked(sighting.account_id)]
    if outcome.deleted:  # our own accounts are gone; what was found is others', or nobody's and left alone
        done = msgspec.structs.replace(outcome, result=Result.APPLIED, account_id=None, sightings=())
        issue = row.issue
        effects += _applied(row, done, now, others, sent)
        row.issue = row.issue or issue  # what was left alone stays for a person to see
        return effects
    if blocked is not None:
        _block(row, f"account of {blocked.id}", now, _owner_reason(blocked), wait_s=5.0)
        if row.acknowledged == 0 and not blocked.open and not blocked.deleted:
            return effects + _die(row, _owner_reason(blocked), "rejected", outcome.generation)
        return effects
    move(row, State.QUEUED)
    return effects


def _leave(row: Row, sighting: Sighting) -> list[Effect]:
    """A deletion met an account it never made: leave it, tell a person."""
    _release(row, {sighting.identity})
    row.doubts.remembered.discard(sighting.identity)
    row.issue = f"account {sighting.account_id} answers to the deleted name and was left alone"
    return [Issue("account_left", row.issue)]


def _seen(row: Row, outcome: Outcome, now: float, others: Others) -> list[Effect]:
    """The result of a read-only delivery: which account is ours, and what it is called (R2). Then the wish goes on."""
    effects = _learn(row, outcome, others)
    row.next_at = now
    move(row, State.QUEUED)
    return effects


def _learn(row: Row, outcome: Outcome, others: Others) -> list[Effect]:
    free = [s for s in outcome.sightings if others.owner(row, s.account_id) is None]
    ours = next((s for s in (*free, *outcome.watched) if s.account_id == row.account_id), None)
    if ours is None and row.account_id is None:
        ours = next(iter(free), None)
    effects: list[Effect] = []
    if ours is not None and row.account_id is None:
        _link(row, ours.account_id, created=None)
        effects.append(Linked(ours.account_id))
    before = set(row.settled_identities)
    row.settled_identities = (ours.identity,) if ours is not None else ()
    row.doubts.remembered |= row.doubts.possible - set(row.settled_identities)
    _release(row, set(row.doubts.possible))
    row.doubts.trail |= before - set(row.settled_identities)
    return effects


def _rejected(row: Row, outcome: Outcome, now: float) -> list[Effect]:
    reason = outcome.reason or Reason(code="rejected", message="The product refused.")
    if reason.code == "conflict" and row.attempt < CONFLICTS_MAX:
        # the product says the name is taken although the look-up came back empty: somebody was quicker, or its reads lag
        attempt = row.attempt
        row.ambiguous = True
        if not outcome.looked:
            _release(row, set(outcome.identities))
        _block(row, "identity held at the product", now, reason, wait_s=CONFLICT_RECHECK_S if attempt else 0.5)
        row.attempt = attempt + 1
        return []
    row.ambiguous |= outcome.ambiguous
    newer = row.generation > outcome.generation
    effects = _die(row, reason, "rejected", outcome.generation)
    row.attempt = 0
    if newer:
        row.next_at = now + SETTLE_S if outcome.ambiguous else 0.0
        move(row, State.QUEUED)
        return [effect for effect in effects if not isinstance(effect, Died)]
    return effects


def _blocked(row: Row, outcome: Outcome, now: float, others: Others) -> list[Effect]:
    """Waits for a named thing. When the account exists already (licence, approval), it is linked and its name is ours."""
    effects: list[Effect] = []
    # while a detour is out, its row waits for the names of its ring: the newer wish is the one the detour prepares for
    came_meanwhile = row.generation > outcome.generation and row.blocked_on is None
    row.ambiguous |= outcome.ambiguous
    row.first_failed_at = None  # the product answered
    row.observed_active = outcome.observed_active
    if outcome.account_id:
        owner = others.owner(row, outcome.account_id)
        if owner is not None:
            _block(row, f"account of {owner.id}", now, _owner_reason(owner), wait_s=5.0)
            return [MakeDirty(owner.id)]
        _link(row, outcome.account_id, created=outcome.created or None)
        row.doubts.trail |= set(row.settled_identities) - set(outcome.identities)
        row.settled_identities = outcome.identities
        row.ambiguous = False
    elif not (row.ambiguous or row.dirty or row.looked or outcome.looked):
        _release(row, row.doubts.possible)  # nothing was written, so whoever has this name at the product is not ours
        row.doubts.written.clear()
    wait_s = outcome.retry_after_s
    _block(row, outcome.blocked_on or "something the product did not name", now, outcome.reason, wait_s=wait_s)
    if came_meanwhile and not row.ambiguous:  # T6: nothing is known of the newer wish
        row.attempt, row.next_at = 0, now
    return effects


def _retry(row: Row, outcome: Outcome, now: float, retry: RetrySettings, jitter: float) -> list[Effect]:
    row.attempt += 1
    row.ambiguous |= outcome.ambiguous or row.looked or row.dirty
    row.reason = outcome.reason
    if row.first_failed_at is None:
        row.first_failed_at = now
    if now - row.first_failed_at > retry.give_up_after_s:
        reason = outcome.reason or Reason(code="exhausted", message="")
        hours = retry.give_up_after_s / 3600
        message = f"Given up after {row.attempt} attempts in {hours:g} h. Last: {reason.message}"
        return _die(row, Reason(code="exhausted", message=message), "rejected", outcome.generation)
    bound = min(retry.wait_max_s, retry.wait_first_s * 2 ** min(row.attempt - 1, 20))
    wait_s = max(bound * jitter, outcome.retry_after_s or 0.0)
    if outcome.ambiguous:
        wait_s = max(wait_s, SETTLE_S)  # R9: the product may still be busy with it
    row.next_at = now + min(wait_s, max(retry.wait_max_s, outcome.retry_after_s or 0.0))
    move(row, State.RETRYING)
    return []


def _owner_reason(owner: Row) -> Reason:
    return Reason(
        code="account_of_another",
        message=f"The product's account for this user is already linked to user {owner.id} of this target. "
        "Two users must not share the attribute the product recognises accounts by; correct one of them in Entra.",
        scim_type="uniqueness",
    )


def _adopt_reason() -> Reason:
    return Reason(
        code="account_exists",
        message="An account of this name already exists at the product, and this target is set not to adopt existing accounts "
        '(adopt = "never"). Remove or rename that account, or let the operator allow adoption.',
        scim_type="uniqueness",
    )


# ---- the operator's moves


def redrive(row: Row, event_id: str, now: float) -> list[Effect]:
    """Open a dead or held wish again, as a new generation of the same document; an old payload is never replayed (rule T11)."""
    if row.state is State.HELD:
        row.next_at = 0.0
        move(row, State.QUEUED)
        return []
    return accept(
        row,
        event_id=event_id,
        document=row.document,
        identities=row.identities,
        change=row.change,
        changed=row.changed,
        now=now,
        acknowledged=True,
    )


def discard(row: Row) -> list[Effect]:
    """Give a dead or held wish up; what SCIM shows stays the last confirmed state."""
    effects: list[Effect] = [Close(row.generation, "discarded")] if row.open else []
    row.settled_generation = row.generation
    if row.ambiguous or row.doubts.possible:
        row.dirty = True  # what its deliveries may have made is looked at once, so that its names pass on
        row.next_at = row.settled_at + SETTLE_S
    move(row, State.DETACHED)
    return effects


# ---- a target's runtime state


class TargetRow(Struct, kw_only=True):
    """Pause, circuit and rest of one target. Times are epoch seconds."""

    name: str
    paused_by: str | None = None
    paused_reason: str = ""
    circuit: Circuit = Circuit.CLOSED
    circuit_reason: str = ""
    opened_at: float = 0.0
    next_probe_at: float = 0.0
    probe_wait_s: float = 0.0
    closed_at: float = 0.0
    rest_until: float = 0.0


def window(target: TargetRow, window_max: int, now: float) -> int:
    """How many deliveries may be in flight now."""
    if target.paused_by is not None or target.circuit is Circuit.AUTH:
        return 0
    if target.rest_until > now and target.rest_until - now <= 3600.0:
        return 0
    if target.circuit is Circuit.DOWN:
        return 1 if target.next_probe_at <= now else 0
    if target.closed_at:
        steps = int(max(0.0, now - target.closed_at) / SLOW_START_STEP_S)
        return min(window_max, 1 << min(steps, 16))
    return window_max


def open_circuit(target: TargetRow, circuit: Circuit, reason: str, now: float) -> bool:
    """Stop calling the target except for probes; says whether this changed anything."""
    if target.circuit is circuit:
        return False
    first = AUTH_PROBE_FIRST_S if circuit is Circuit.AUTH else PROBE_FIRST_S
    target.circuit = circuit
    target.circuit_reason = reason
    target.opened_at = now
    target.probe_wait_s = first
    target.next_probe_at = now + first
    target.closed_at = 0.0
    return True


def probe_failed(target: TargetRow, now: float) -> None:
    """The probe did not go through: next one later."""
    limit = AUTH_PROBE_MAX_S if target.circuit is Circuit.AUTH else PROBE_MAX_S
    target.probe_wait_s = min(limit, target.probe_wait_s * 2)
    target.next_probe_at = now + target.probe_wait_s


def close_circuit(target: TargetRow, now: float) -> bool:
    """The target answers again: slow start. Says whether it was open."""
    if target.circuit is Circuit.CLOSED:
        return False
    target.circuit = Circuit.CLOSED
    target.circuit_reason = ""
    target.closed_at = now
    return True


def rest(target: TargetRow, wait_s: float, now: float) -> None:
    """The product asked to slow down: nothing for a while, then slow start."""
    target.rest_until = max(target.rest_until, now + wait_s)
    target.closed_at = target.rest_until
