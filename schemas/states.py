"""The life of a resource: every state and every permitted move.

queued      a wish is newer than what is settled (shown as parked while the target is paused or its circuit is open)
delivering  an event is out under fence n
retrying    transient failure, due at a time
blocked     waits for a named thing
held        stopped by a safety brake until an operator approves
dead        dead letter: permanent, exhausted, poison, or a broken invariant
rejected    a create refused while Entra waited: hidden from SCIM, the row is reused by the next POST
applied     settled = asked
gone        deletion applied
detached    given up by an operator
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where one resource stands; see the module's table."""

    QUEUED = "queued"
    DELIVERING = "delivering"
    RETRYING = "retrying"
    BLOCKED = "blocked"
    HELD = "held"
    DEAD = "dead"
    REJECTED = "rejected"
    APPLIED = "applied"
    GONE = "gone"
    DETACHED = "detached"


_SETTLED = {
    State.APPLIED,
    State.GONE,
    State.QUEUED,
    State.RETRYING,
    State.BLOCKED,
    State.DEAD,
    State.REJECTED,
}

NEXT: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset(
        {State.DELIVERING, State.APPLIED, State.BLOCKED, State.HELD, State.GONE, State.DEAD, State.REJECTED}
    ),
    State.DELIVERING: frozenset(_SETTLED),
    State.RETRYING: frozenset(
        {State.QUEUED, State.DELIVERING, State.BLOCKED, State.HELD, State.GONE, State.DEAD, State.REJECTED}
    ),
    State.BLOCKED: frozenset(
        {State.QUEUED, State.DELIVERING, State.APPLIED, State.HELD, State.GONE, State.DEAD, State.REJECTED}
    ),
    State.HELD: frozenset({State.QUEUED, State.DETACHED}),
    State.DEAD: frozenset({State.QUEUED, State.DELIVERING, State.DETACHED, State.HELD}),
    State.REJECTED: frozenset({State.QUEUED, State.DELIVERING}),
    State.APPLIED: frozenset({State.QUEUED, State.HELD}),
    State.GONE: frozenset({State.QUEUED, State.DELIVERING}),
    State.DETACHED: frozenset({State.QUEUED, State.DELIVERING, State.HELD}),
}
"""Permitted moves; staying in a state is always permitted. Checked after every step, also in production (invariant A14)."""


WAITING = frozenset({State.QUEUED, State.RETRYING, State.BLOCKED})
"""States the dispatcher may send from."""

FOR_A_PERSON = frozenset({State.DEAD, State.HELD})
"""States that end only by an operator's act or by a new wish from Entra."""


class Change(StrEnum):
    """What kind of write Entra asked for; names of RFC 9967 section 2.4."""

    CREATE = "create"
    UPDATE = "update"
    ACTIVATE = "activate"
    DEACTIVATE = "deactivate"
    DELETE = "delete"


SHADOW = "shadow"
"""What a wish waits for whose delivery was only rehearsed, because its target is in shadow mode: the end of that mode."""

PRIORITY: dict[Change, int] = {
    Change.DEACTIVATE: 0,
    Change.DELETE: 0,
    Change.CREATE: 1,
    Change.ACTIVATE: 1,
    Change.UPDATE: 2,
}
"""Order of dispatch, lower first: taking access away goes before giving it."""

PRIORITY_REPAIR = 3
"""Read-backs and repairs come after everything Entra asked for."""


class Result(StrEnum):
    """What one delivery came to (the worker's word)."""

    APPLIED = "applied"
    RETRY = "retry"
    RATE_LIMITED = "rate_limited"
    BLOCKED = "blocked"
    REJECTED = "rejected"
    MISCONFIGURED = "misconfigured"
    FOUND = "found"
    SEEN = "seen"
    GAVE_UP = "gave_up"
    POISON = "poison"


class Circuit(StrEnum):
    """Whether a target is called: closed = yes; open = only probes."""

    CLOSED = "closed"
    AUTH = "auth"
    DOWN = "down"
