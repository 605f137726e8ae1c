"""What waits instead of being refused, and what has waited long enough. Pure; asked before an outcome is settled.

A name the product does not have (`unknown_role` and the like) is told to Entra while Entra waits. A wish that was acknowledged
cannot be refused any more: it waits for the name, is looked at again at growing intervals, and is applied by itself when the name
appears. A wait the connector gave a bound ends as a dead letter.
"""

from __future__ import annotations

import msgspec

from gateway.lifecycle import APPROVAL, ON_MANAGER, ON_MEMBER, Row
from schemas.events import Outcome, Reason
from schemas.states import Result, State

PRODUCTS = "the product's "
ON_ACCOUNT = "account of "
OWNER_LOOK_FIRST_S = 5.0
OWNER_LOOK_MAX_S = 300.0
"""Each look at an account that belongs to another row costs the product calls for both rows."""
NAMES_SHOWN_MAX = 3
NAME_CHARS_MAX = 80


def judged(row: Row, outcome: Outcome, now: float) -> Outcome:
    """The outcome as it counts for this row; notes in the row when a bounded wait began.

    Args:
        now: epoch seconds.
    """
    if row.in_flight is None or outcome.fence != row.fence or outcome.delivery < row.delivery:
        return outcome  # settles nothing
    if outcome.result is Result.REJECTED:
        return _named(row, outcome)
    if outcome.result is Result.BLOCKED:
        outcome = _told_apart(outcome)
        if outcome.wait_max_s is not None:
            return _bounded(row, outcome, outcome.wait_max_s, now)
    return outcome


def _told_apart(outcome: Outcome) -> Outcome:
    """What a connector waits for must not be taken for what rows wait for here, such as an operator's approval."""
    on = outcome.blocked_on
    if on is None or not (on == APPROVAL or on.startswith((ON_MEMBER, ON_MANAGER))):
        return outcome
    return msgspec.structs.replace(outcome, blocked_on=f"{PRODUCTS}{on}")


def waits_for_name(reason: Reason) -> bool:
    """Whether a refusal is about a name the product does not have yet."""
    return reason.code.startswith("unknown_") and bool(reason.names)


def _named(row: Row, outcome: Outcome) -> Outcome:
    reason = outcome.reason
    if reason is None or not waits_for_name(reason):
        return outcome
    if row.acknowledged < outcome.generation or row.generation > outcome.generation:
        return outcome  # Entra is told, or has a newer wish
    shown = ", ".join(name[:NAME_CHARS_MAX] for name in reason.names[:NAMES_SHOWN_MAX])
    # without the account: nothing was written, so nothing about it has become certain
    return msgspec.structs.replace(
        outcome,
        result=Result.BLOCKED,
        blocked_on=f"{reason.code.removeprefix('unknown_')}:{shown}",
        account_id=None,
        observed_active=row.observed_active,
    )


def _bounded(row: Row, outcome: Outcome, wait_max_s: float, now: float) -> Outcome:
    if row.blocked_on != outcome.blocked_on or row.awaited_since is None:
        row.awaited_since = now
        return outcome
    if now - row.awaited_since < wait_max_s:
        return outcome
    last = f" {outcome.reason.message}." if outcome.reason is not None else ""
    message = (
        f"Given up after waiting {wait_max_s / 3600:g} h for {outcome.blocked_on}.{last} "
        "Ask the product's people, then redrive."
    )
    return msgspec.structs.replace(outcome, result=Result.REJECTED, reason=Reason(code="exhausted", message=message))


def spaced(row: Row, now: float) -> None:
    """A settled row that found its account to be another's looks again at growing intervals, too."""
    if row.state is State.BLOCKED and (row.blocked_on or "").startswith(ON_ACCOUNT):
        row.next_at = max(row.next_at, now + min(OWNER_LOOK_MAX_S, OWNER_LOOK_FIRST_S * 2 ** min(row.attempt, 9)))
