"""Deliver one event to one product: the heart of the worker, free of any broker.

The order of work is decided here and nowhere else: normalize (pure, before the first call), look up what may exist already,
report an account that was merely found, write, say what happened. A connector only says how its product does each step.

What was found is never written on (delivery rule R4): the gateway links it first and sends again with the link.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from connectors.contract import Delivery, Directory, Found, PutsGroups
from schemas.errors import (
    Blocked,
    Conflict,
    ConnectorBug,
    ConnectorError,
    Gone,
    Misconfigured,
    NormalizationError,
    RateLimited,
    Rejected,
    Unavailable,
)
from schemas.events import Outcome, ProvisioningEvent, Reason, Sighting
from schemas.resources import Group, User
from schemas.states import Result

_READS = frozenset({"GET", "HEAD"})


class NotOurs(Exception):
    """The delivery is no longer ours (delivery rule R7): no further call may be made, nothing may be settled."""


class Ownership(Protocol):
    """Whether a delivery still belongs to this worker."""

    def check(self) -> None:
        """Stands before every call to the product.

        Raises:
            NotOurs: signals went unanswered for too long, or the connection was lost since.
        """


class Steps(Protocol):
    """What delivery needs of a connector; `Connector` is one for users, `_GroupSteps` for groups."""

    def normalize(self, wish: Any, directory: Directory) -> Any: ...
    def account_keys(self, account: Any) -> tuple[str, ...]: ...
    def ignored(self, wish: Any) -> tuple[str, ...]: ...
    async def find(self, account: Any, identities: Sequence[str], ctx: Delivery) -> list[Found]: ...
    async def create(self, account: Any, ctx: Delivery) -> str: ...
    async def update(self, account_id: str, account: Any, ctx: Delivery) -> None: ...
    async def delete(self, account_id: str, ctx: Delivery) -> None: ...


class Names(Directory, Protocol):
    """A directory that can be refreshed; the refresh itself is bounded to once a minute by the worker."""

    async def refresh(self) -> bool:
        """Load the names anew; False when it is too early or the product has no such call."""


class Report(msgspec.Struct, kw_only=True):
    """The findings of one delivery while it runs; becomes an Outcome."""

    result: Result = Result.APPLIED
    account_id: str | None = None
    created: bool = False
    sightings: list[Sighting] = msgspec.field(default_factory=list)
    watched: list[Sighting] = msgspec.field(default_factory=list)
    account_keys: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    wrote: bool = False
    reason: Reason | None = None
    ambiguous: bool = False
    blocked_on: str | None = None
    retry_after_s: float | None = None
    wait_max_s: float | None = None
    observed_active: bool | None = None


async def deliver(
    event: ProvisioningEvent,
    *,
    delivery: int,
    connector: Steps,
    directory: Names,
    owned: Ownership,
    new_id: Callable[[], str],
    clock: Callable[[], float],
    ctx: Delivery | None = None,
    worker: str = "",
) -> Outcome | None:
    """Apply one event and say what came of it. Never raises.

    Args:
        event: the complete wish.
        delivery: how often the broker has delivered this message (1 = first).
        connector: the product.
        directory: names that exist at the product.
        owned: the still-ours check, called before every step that may reach the product.
        new_id: makes the outcome's id.
        clock: epoch seconds, for the record only.

    Returns:
        The outcome to publish before the event is acknowledged. When ownership was lost: a `gave_up` report if the product may
        have been written to (delivery rule R8), else None; neither settles, and the event must not be acknowledged.
    """
    started_at = clock()
    ctx = ctx or Delivery()
    ctx.attempt = delivery
    ctx.ambiguous = event.look or delivery > 1
    ctx.idempotency_key = event.message_id
    ctx.accounts = dict(event.accounts)
    ctx.created_by_us = event.created_by_us
    ctx.notes = frozenset(event.notes)
    ctx.traceparent = event.traceparent
    ctx.tracestate = event.tracestate
    report = Report(account_id=event.account_id)
    gave_up = False
    try:
        await _run(event, report, ctx, connector, directory, owned)
    except NotOurs:
        if not report.wrote:
            return None
        gave_up = True
        report.result = Result.GAVE_UP
        if not report.created:
            report.account_id = None
    except ConnectorError as exc:
        _judge(exc, report)
        if isinstance(exc, NormalizationError) and report.result is Result.REJECTED:
            report.ambiguous = False
    except (
        Exception
    ) as exc:  # the connector broke its contract: poison, kept with its type only (texts may carry values)
        report.result = Result.POISON
        report.reason = Reason(
            code="connector_bug",
            message=f"{event.connector} raised {type(exc).__name__}, which no connector may; this needs its author.",
        )
        report.ambiguous = report.wrote
    if not gave_up and report.result is not Result.APPLIED and _some_write_succeeded(ctx):
        report.ambiguous = True
    return Outcome(
        id=new_id(),
        event_id=event.id,
        target=event.target,
        kind=event.kind,
        resource=event.resource,
        generation=event.generation,
        fence=event.fence,
        delivery=delivery,
        result=report.result,
        identities=event.identities,
        account_id=report.account_id,
        created=report.created,
        deleted=event.deleted,
        looked=ctx.ambiguous,
        sightings=tuple(report.sightings),
        watched=tuple(report.watched),
        ambiguous=report.ambiguous,
        note=_note_of(report, ctx),
        notes=tuple(ctx.noted),
        ignored=report.ignored,
        warnings=tuple(ctx.warnings),
        account_keys=report.account_keys,
        observed_active=report.observed_active,
        unresolved=tuple(ctx.unresolved),
        reason=report.reason,
        blocked_on=report.blocked_on,
        retry_after_s=report.retry_after_s,
        wait_max_s=report.wait_max_s,
        steps=tuple(ctx.steps),
        worker=worker,
        started_at=started_at,
        ended_at=clock(),
    )


async def _run(
    event: ProvisioningEvent, report: Report, ctx: Delivery, connector: Steps, directory: Names, owned: Ownership
) -> None:
    steps: Steps = _GroupSteps(connector) if event.kind == "group" else connector
    wish: User | Group | None = None
    account: Any = None
    if not event.deleted and not event.read_only:
        wish = _wish_of(event)
        if isinstance(wish, Group):
            ctx.accounts.update((m.id, m.account_id) for m in (*wish.add, *wish.remove) if m.account_id)
        account = await _normalized(steps, wish, directory, owned)
        report.account_keys = steps.account_keys(account)
        report.ignored = steps.ignored(wish)
    owned.check()
    if event.watch:
        report.watched += _sightings(await steps.find(None, event.watch, ctx))
        owned.check()
    if event.read_only:
        await _only_look(event, report, ctx, steps)
    elif event.deleted:
        await _delete(event, report, ctx, steps, owned)
    else:
        inactive = isinstance(wish, User) and not wish.is_active
        try:
            await _write(event, report, ctx, steps, account, owned, inactive=inactive)
        except Rejected as refused:
            account = await _normalized_anew(refused, steps, wish, account, directory, owned)
            await _write(event, report, ctx, steps, account, owned, inactive=inactive)


def _wish_of(event: ProvisioningEvent) -> User | Group:
    try:
        return event.group() if event.kind == "group" else event.user()
    except msgspec.DecodeError as exc:
        raise ConnectorBug(f"The event does not fit a {event.kind}: {exc}", code="unreadable_event") from exc


async def _normalized(steps: Steps, wish: Any, directory: Names, owned: Ownership) -> Any:
    """Normalize; a name the cached directory does not know gets one refresh before it is final."""
    try:
        return steps.normalize(wish, directory)
    except NormalizationError as exc:
        if not exc.code.startswith("unknown_"):
            raise
        owned.check()
        if not await directory.refresh():
            raise
    return steps.normalize(wish, directory)


async def _normalized_anew(
    refused: Rejected, steps: Steps, wish: Any, account: Any, directory: Names, owned: Ownership
) -> Any:
    """After the product refused a name the cached directory had (`unknown_*`): what the wish means by its names of today.

    A name that was spelled anew or removed there would otherwise be sent again and again (vendor page 1.4).

    Raises:
        NormalizationError: there is no such name any more; it proposes the nearest.
        Rejected: the refusal, when the directory cannot be loaded (again) or says the same as before.
    """
    if not refused.code.startswith("unknown_"):
        raise refused
    owned.check()
    try:
        if not await directory.refresh():
            raise refused
    except ConnectorError:
        raise refused from None
    anew = steps.normalize(wish, directory)
    if anew == account:
        raise refused
    return anew


async def _only_look(event: ProvisioningEvent, report: Report, ctx: Delivery, steps: Steps) -> None:
    """Which account is ours, and what is it called? Writes nothing (delivery rule R2)."""
    report.result = Result.SEEN
    report.sightings += _sightings(await steps.find(None, event.lookup, ctx)) if event.lookup else []


async def _delete(event: ProvisioningEvent, report: Report, ctx: Delivery, steps: Steps, owned: Ownership) -> None:
    removed = set()
    for account_id in dict.fromkeys((*filter(None, (event.account_id,)), *event.strays)):
        owned.check()
        report.wrote = True
        await steps.delete(account_id, ctx)
        removed.add(account_id)
    report.account_id = None
    if event.lookup and (ctx.ambiguous or not event.account_id):
        owned.check()
        seen = [s for s in _sightings(await steps.find(None, event.lookup, ctx)) if s.account_id not in removed]
        if seen:
            report.sightings += seen
            report.result = Result.FOUND


async def _write(
    event: ProvisioningEvent,
    report: Report,
    ctx: Delivery,
    steps: Steps,
    account: Any,
    owned: Ownership,
    *,
    inactive: bool,
) -> None:
    account_id = event.account_id
    for stray in event.strays:
        if stray == account_id:
            continue
        if account_id is None:
            account_id = stray  # made by a stale delivery of this very resource: it is ours
            continue
        owned.check()
        report.wrote = True
        await steps.delete(stray, ctx)
    others = tuple(name for name in event.lookup if name not in event.identities)
    for last in (False, True):
        owned.check()
        if account_id is not None:
            if ctx.ambiguous and others:
                seen = _sightings(await steps.find(None, others, ctx))
                report.sightings += [s for s in seen if s.account_id != account_id and s not in report.sightings]
                owned.check()
            report.wrote = True
            report.account_id = account_id
            try:
                await steps.update(account_id, account, ctx)
            except Gone as exc:
                if exc.replaced_by is not None:
                    report.account_id, report.created, report.result = exc.replaced_by, True, Result.APPLIED
                    return
                if last:
                    raise
                account_id = report.account_id = None
                continue
            report.result = Result.APPLIED
            return
        found = await steps.find(account, (*event.identities, *others), ctx)
        if found:
            _refuse_foreign(found)
            report.sightings += _sightings(found)
            report.result = Result.FOUND
            return
        if last and inactive:  # the linked account is gone, and nobody shall be let in: nothing is left to do (rule A6)
            report.result = Result.APPLIED
            return
        owned.check()
        report.wrote = True
        try:
            created = await steps.create(account, ctx)
        except Blocked as exc:
            report.created = exc.account_id is not None
            raise
        if not created:
            raise ConnectorBug(f"{event.connector}.create returned no account id", code="no_account_id")
        report.account_id, report.created, report.result = created, True, Result.APPLIED
        return


def _refuse_foreign(found: Sequence[Found]) -> None:
    """Every account found must not be adopted: that is a conflict for a person, told in the connector's own words."""
    if all(entry.conflict for entry in found):
        raise Conflict(found[0].conflict, code="account_of_another")


def _sightings(found: Sequence[Found]) -> list[Sighting]:
    return [Sighting(identity=entry.identity, account_id=entry.account_id) for entry in found if not entry.conflict]


def _note_of(report: Report, ctx: Delivery) -> str:
    """How applying a wish came to be without a write (vendor rule A13); "" when there was one."""
    if report.result is not Result.APPLIED:
        return ""
    if ctx.not_told:
        return "ignored"
    return "" if _some_write_succeeded(ctx) else "already"


def _some_write_succeeded(ctx: Delivery) -> bool:
    return any(step.method not in _READS and 200 <= step.status < 300 for step in ctx.steps)


def _judge(exc: ConnectorError, report: Report) -> None:
    """Turn an error of a connector into the delivery's result (`schemas/errors.py` groups them by what happens next)."""
    report.reason = Reason(
        code=exc.code,
        message=exc.message,
        attribute=exc.attribute,
        scim_type=exc.scim_type if isinstance(exc, Rejected) else "",
        names=exc.names,
    )
    match exc:
        case Rejected():
            report.result = Result.REJECTED
        case Unavailable():
            report.result = Result.RETRY
            report.ambiguous = exc.ambiguous
            report.retry_after_s = exc.retry_after_s
        case RateLimited():
            report.result = Result.RATE_LIMITED
            report.retry_after_s = exc.retry_after_s
        case Misconfigured():
            report.result = Result.MISCONFIGURED
        case Blocked():
            report.result = Result.BLOCKED
            report.blocked_on = exc.on
            report.retry_after_s = exc.retry_after_s
            report.wait_max_s = exc.wait_max_s
            if (
                exc.account_id or not report.wrote
            ):  # before any write nothing has become certain, least of all a new name
                report.account_id = exc.account_id
            report.created = exc.account_id is not None and report.created
            report.observed_active = exc.observed_active
        case Gone():
            report.result = Result.RETRY
            report.ambiguous = True
            report.account_id = None
        case _:
            report.result = Result.POISON


class _GroupSteps:
    """A connector's groups in the shape of its users, so that the order of work is written once."""

    def __init__(self, connector: Any) -> None:
        if not isinstance(connector, PutsGroups):
            raise Rejected(
                "This product has no groups that may be written; set group provisioning to off in Entra.",
                code="no_groups",
            )
        self.connector: PutsGroups = connector

    def normalize(self, wish: Group, directory: Directory) -> Group:
        return wish

    def account_keys(self, account: Group) -> tuple[str, ...]:
        return ()

    def ignored(self, wish: Group) -> tuple[str, ...]:
        return ()

    async def find(self, account: Group | None, identities: Sequence[str], ctx: Delivery) -> list[Found]:
        return await self.connector.find_group(account, identities, ctx)

    async def create(self, account: Group, ctx: Delivery) -> str:
        group_id = await self.connector.put_group(None, account, ctx)
        await self._members(group_id, account, ctx)
        return group_id

    async def update(self, account_id: str, account: Group, ctx: Delivery) -> None:
        await self.connector.put_group(account_id, account, ctx)
        await self._members(account_id, account, ctx)

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        await self.connector.delete_group(account_id, ctx)

    async def _members(self, group_id: str, group: Group, ctx: Delivery) -> None:
        # who has no account yet is not sent by the gateway, and follows as soon as there is one (rule T12)
        add = [member.account_id for member in group.add if member.account_id]
        remove = [member.account_id for member in group.remove if member.account_id]
        if add or remove:
            await self.connector.change_members(group_id, add, remove, ctx)
