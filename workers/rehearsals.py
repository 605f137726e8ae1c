"""Dry runs of a delivery: `deliver` with a client that sends nothing that writes, and what came of it.

Two askers: an operator's plan (`provgate plan`), and shadow mode, where every delivery of a target is only rehearsed. An account
that is merely found is linked for the rest of the rehearsal as the gateway would link it (delivery rule R4), so that the calls on
it are shown; nothing of that is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from connectors.contract import Delivery
from connectors.rehearsal import Rehearsal, rehearsing
from schemas.errors import ConnectorError
from schemas.events import Outcome, ProvisioningEvent, Reason, encode
from schemas.masking import mask_body, mask_id, mask_inside
from schemas.plans import PLAN_BYTES_MAX, PLAN_S, Planned, WouldCall
from schemas.states import SHADOW, Result
from workers.delivery import Ownership, Steps, deliver
from workers.targets import Served

ROUNDS_MAX = 3
"""Deliveries of one rehearsal: as it is, and again with what was found."""
SHADOW_LOOK_S = 86_400.0
"""How long a rehearsed change rests before it is rehearsed again, as long as the target stays in shadow mode."""
STEPS_MAX = 60
"""Calls of one shadowed delivery that are kept with it."""
_SETTLED = frozenset({Result.APPLIED, Result.FOUND, Result.REJECTED, Result.BLOCKED, Result.POISON})


class Rehearsed(Struct, frozen=True, kw_only=True):
    """One dry run.

    Args:
        outcome: what the last delivery came to, as if its writes had been answered.
        calls: what was not sent, in order.
        adopts: the account that exists already and would be linked first, if any.
    """

    outcome: Outcome
    calls: tuple[WouldCall, ...]
    adopts: str | None = None


class _Anybody:
    """A rehearsal belongs to no delivery, so nobody can take it away."""

    def check(self) -> None:
        """Always."""


async def rehearse(
    event: ProvisioningEvent,
    served: Served,
    *,
    connector: Steps,
    delivery: int,
    owned: Ownership,
    new_id: Callable[[], str],
    clock: Callable[[], float],
    ctx: Delivery,
    worker: str,
) -> Rehearsed | None:
    """Run one event without sending what writes; None when the delivery is no longer ours.

    Args:
        connector: one of `Served.rehearsing` or `Served.shadow`.
        ctx: collects the steps that were really made, as in a real delivery.
    """
    rehearsal, adopts = Rehearsal(), None
    outcome: Outcome | None = None
    with rehearsing(rehearsal):
        for _ in range(ROUNDS_MAX):
            outcome = await deliver(
                event,
                delivery=delivery,
                connector=connector,
                directory=served.directory,
                owned=owned,
                new_id=new_id,
                clock=clock,
                ctx=ctx,
                worker=worker,
            )
            if outcome is None or outcome.result is Result.GAVE_UP:
                return None
            links = outcome.result is Result.FOUND and not event.deleted and outcome.sightings
            if not links or served.configured.adopt == "never":
                break
            adopts = outcome.sightings[0].account_id
            event = msgspec.structs.replace(event, account_id=adopts)
    if outcome is None:
        return None
    return Rehearsed(outcome=outcome, calls=tuple(rehearsal.calls), adopts=adopts)


async def shadow(
    event: ProvisioningEvent,
    served: Served,
    *,
    delivery: int,
    owned: Ownership,
    new_id: Callable[[], str],
    clock: Callable[[], float],
    ctx: Delivery,
    worker: str,
) -> Outcome | None:
    """The delivery of a target in shadow mode: a rehearsal, reported as waiting for the end of that mode.

    The wish stays open, no link is made, nothing is in doubt: whatever was found out counts only for the record. A product that
    does not answer is reported as it is, because then there is nothing to record. None: no longer ours, and nothing was written.
    """
    done = await rehearse(
        event,
        served,
        connector=served.shadow(),
        delivery=delivery,
        owned=owned,
        new_id=new_id,
        clock=clock,
        ctx=ctx,
        worker=worker,
    )
    return None if done is None else shadowed(done, event)


def shadowed(done: Rehearsed, event: ProvisioningEvent) -> Outcome:
    """What the gateway is told about a rehearsed delivery."""
    outcome = done.outcome
    if outcome.result is Result.SEEN:
        return outcome
    documents = (msgspec.json.decode(event.document),)
    steps = [*outcome.steps, *(call.step(documents) for call in done.calls)][:STEPS_MAX]
    plain = msgspec.structs.replace(
        outcome,
        account_id=None,
        created=False,
        ambiguous=False,
        sightings=(),
        observed_active=None,
        notes=(),
        wait_max_s=None,
        steps=tuple(steps),
    )
    if outcome.result not in _SETTLED:
        return plain
    return msgspec.structs.replace(
        plain,
        result=Result.BLOCKED,
        blocked_on=SHADOW,
        note=SHADOW,
        retry_after_s=SHADOW_LOOK_S,
        unresolved=(),
        reason=_shadow_reason(done, event),
    )


def _shadow_reason(done: Rehearsed, event: ProvisioningEvent) -> Reason:
    outcome, count = done.outcome, len(done.calls)
    calls = f"{count} call{'' if count == 1 else 's'}"
    said = outcome.reason
    if outcome.result in (Result.REJECTED, Result.POISON) and said is not None:
        return Reason(
            code="shadow_refused",
            message=f"Shadow mode, nothing was sent. It would be refused: {said.message}",
            attribute=said.attribute,
            names=said.names,
        )
    if outcome.result is Result.FOUND:
        what = "is left alone" if event.deleted else "may not be adopted"
        return Reason(code="shadow_refused", message=f"Shadow mode, nothing was sent. An account exists and {what}.")
    if outcome.result is Result.BLOCKED and said is not None:
        return Reason(code="shadow", message=f"Shadow mode: {calls} recorded, none sent. It would wait: {said.message}")
    link = ", after linking an existing account" if done.adopts else ""
    return Reason(code="shadow", message=f"Shadow mode: {calls} recorded{link}, none sent.")


async def plan(event: ProvisioningEvent, served: Served, *, show_values: bool, new_id: Callable[[], str]) -> Planned:
    """Rehearse one event for an operator. Bounded by the caller in time (PLAN_S) and here in bytes (PLAN_BYTES_MAX)."""
    ctx = Delivery(deadline=time.monotonic() + PLAN_S)
    connector = served.rehearsing()
    try:
        done = await rehearse(
            event,
            served,
            connector=connector,
            delivery=1,
            owned=_Anybody(),
            new_id=new_id,
            clock=time.time,
            ctx=ctx,
            worker="",
        )
    finally:
        await connector.close()
    if done is None:
        return Planned(ok=False, code="interrupted", message="The rehearsal was interrupted; ask again.")
    outcome = done.outcome
    documents = (msgspec.json.decode(event.document),)
    account = _account(event, served)
    calls = done.calls if show_values else tuple(call.masked(documents) for call in done.calls)

    def named(account_id: str) -> str:
        return account_id if show_values else mask_id(account_id, documents)

    planned = Planned(
        ok=True,
        result=outcome.result.value,
        reason=outcome.reason if outcome.reason is None or show_values else _masked_reason(outcome.reason),
        account=account if show_values else mask_body(account),
        account_keys=outcome.account_keys
        if show_values
        else tuple(mask_id(key, documents) for key in outcome.account_keys),
        reads=tuple(ctx.steps[:STEPS_MAX]),
        calls=calls,
        base_url=served.base_url,
        created=outcome.created,
        adopts=named(done.adopts) if done.adopts else None,
        adopts_id=done.adopts,
        adopt=served.configured.adopt,
        seen=tuple(named(one.account_id) for one in outcome.sightings),
        ignored=outcome.ignored,
        warnings=tuple(
            dict.fromkeys(
                (
                    *(text if show_values else mask_inside(text) for text in outcome.warnings),
                    *(
                        f"{one} has no account at the product yet; that part would follow."
                        for one in outcome.unresolved
                    ),
                )
            )
        ),
        blocked_on=outcome.blocked_on,
        masked=not show_values,
    )
    return _cut(planned)


def _account(event: ProvisioningEvent, served: Served) -> Any:
    """The normalized account as plain data; None when there is none."""
    if event.deleted or event.kind != "user":
        return None
    try:
        normalized = served.connector.normalize(event.user(), served.directory)
    except (ConnectorError, msgspec.DecodeError):
        return None
    plain = msgspec.to_builtins(normalized, enc_hook=str)
    return dict(plain) if isinstance(plain, Mapping) else plain


def _masked_reason(reason: Reason) -> Reason:
    return msgspec.structs.replace(reason, message=mask_inside(reason.message))


def _cut(planned: Planned) -> Planned:
    """Leave out the last calls until the answer fits into one message."""
    calls = planned.calls
    while len(encode(planned)) > PLAN_BYTES_MAX and planned.calls:
        kept = planned.calls[: len(planned.calls) // 2]
        planned = msgspec.structs.replace(planned, calls=kept, left_out=len(calls) - len(kept))
    return planned
