"""The operators' API of what waits for a person: dead letters and held changes, sent again, let go or given up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

from litestar import get, post
from litestar.params import FromQuery, RawBody
from msgspec import Meta, Struct

from gateway import views
from gateway.ledger import NO_KEYS, Ledger, apply_effects
from gateway.lifecycle import InvariantBroken, Row, discard, redrive
from gateway.services import (
    ACTOR,
    LIST_DEFAULT,
    LIST_MAX,
    Given,
    Id,
    OperatorError,
    Sentence,
    Services,
    ever_known,
    limit_of,
    order_of,
)
from gateway.store import Reader
from gateway.visibility import shown_keys
from schemas.states import State

IDS_MAX = 500
UNREASONED_MAX = 100
"""Moving more than this at once needs a reason in words (security requirement S13)."""


class MoveOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Move these resources, at most IDS_MAX at a time."""

    ids: Annotated[tuple[Id, ...], Meta(min_length=1, max_length=IDS_MAX)]
    reason: Sentence = ""


class DiscardOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Give these up, and say why."""

    ids: Annotated[tuple[Id, ...], Meta(min_length=1, max_length=IDS_MAX)]
    reason: Annotated[str, Meta(min_length=1, max_length=1_000, pattern=r"\S")]


@get("/dead")
async def list_dead(
    services: Given,
    target: FromQuery[str | None] = None,
    cause: FromQuery[str | None] = None,
    limit: FromQuery[int] = LIST_DEFAULT,
) -> views.StuckList:
    """Dead letters: all causes with their counts, and the newest `limit` of them; `cause` is a whole fingerprint or a code."""
    most = limit_of(limit)
    now = services.clock.now()

    def query(reader: Reader) -> views.StuckList:
        ever_known(services, reader, target)
        causes = [
            held
            for held in reader.dead_causes()
            if (target is None or held.target == target) and _is_cause(cause, views.cause_of(held.fingerprint))
        ]
        if cause is None:
            rows = reader.dead(target, most)
        else:
            rows = []
            for held in causes:
                rows += reader.dead(held.target, most - len(rows), held.fingerprint) if len(rows) < most else []
        return views.StuckList(
            at=now,
            total=sum(held.count for held in causes),
            causes=tuple(views.dead_cause(reader, held) for held in causes[:LIST_MAX]),
            items=tuple(
                views.stuck(row, views.cause_of(row.reason.fingerprint() if row.reason else None)) for row in rows
            ),
        )

    return await services.store.read_slow(query)


def _is_cause(wanted: str | None, cause: str) -> bool:
    return wanted is None or wanted == cause or wanted == cause.partition(":")[0]


@get("/held")
async def list_held(
    services: Given,
    target: FromQuery[str | None] = None,
    cause: FromQuery[str | None] = None,
    limit: FromQuery[int] = LIST_DEFAULT,
) -> views.StuckList:
    """Changes a safety brake holds back, oldest first, grouped by kind of change."""
    most = limit_of(limit)
    now = services.clock.now()

    def query(reader: Reader) -> views.StuckList:
        ever_known(services, reader, target)
        names = [target] if target is not None else [record.row.name for record in reader.targets()]
        names = sorted({*names, *([] if target is not None else services.targets())})
        total, rows = 0, []
        for name in names:
            total += reader.counts(name).get(State.HELD, 0)
            rows += [row for row in reader.in_state(name, State.HELD, LIST_MAX) if _is_cause(cause, row.change.value)]
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            groups.setdefault((row.target, row.change.value), []).append(row)
        return views.StuckList(
            at=now,
            total=total if cause is None else len(rows),
            causes=tuple(views.held_cause(name, change, members) for (name, change), members in groups.items()),
            items=tuple(views.stuck(row, row.change.value) for row in rows[:most]),
        )

    return await services.store.read_slow(query)


@post("/dead/redrive", status_code=200)
async def redrive_dead(services: Given, body: RawBody) -> views.Moved:
    """Open dead letters again, as a new generation of what Entra asked last."""
    return await _redrive(services, order_of(body, MoveOrder), State.DEAD, "dead.redriven")


@post("/held/approve", status_code=200)
async def approve_held(services: Given, body: RawBody) -> views.Moved:
    """Let held changes go on."""
    return await _redrive(services, order_of(body, MoveOrder), State.HELD, "held.approved")


async def _redrive(services: Services, order: MoveOrder, state: State, action: str) -> views.Moved:
    def job(ledger: Ledger, resource: str) -> Row:
        row = _in_state(ledger, resource, state)
        now = services.clock.now()
        generation = row.generation
        apply_effects(ledger, row, redrive(row, services.new_id(), now), now)
        _show_again(ledger, row)
        ledger.save(row)
        if row.generation != generation:
            ledger.add_event(row, actor=ACTOR)
        _record(services, ledger, row, action, order.reason)
        return row

    return await _move(services, order.ids, order.reason, job)


@post("/dead/discard", status_code=200)
async def discard_dead(services: Given, body: RawBody) -> views.Moved:
    """Give dead letters (or held changes) up; what SCIM shows stays the last confirmed state."""
    order = order_of(body, DiscardOrder)

    def job(ledger: Ledger, resource: str) -> Row:
        row = _in_state(ledger, resource, State.DEAD, State.HELD)
        now = services.clock.now()
        apply_effects(ledger, row, discard(row), now)
        if ledger.set_keys(row, shown_keys(row)) is not None:
            ledger.set_keys(
                row, NO_KEYS
            )  # its confirmed name belongs to somebody else by now; it is still found by its id
        ledger.save(row)
        _record(services, ledger, row, "dead.discarded", order.reason)
        return row

    return await _move(services, order.ids, order.reason, job)


class _NotMoved(Exception):
    """Why one resource of an order stays as it is; raised before anything of it was written."""


async def _move(services: Services, ids: Sequence[str], reason: str, job: Callable[[Ledger, str], Row]) -> views.Moved:
    """One job per resource; they share transactions, and one that cannot be moved does not stop the others."""
    if len(ids) > UNREASONED_MAX and not reason.strip():
        raise OperatorError(400, f"More than {UNREASONED_MAX} at once need a reason.")

    def guarded(resource: str) -> Callable[[Ledger], Row | views.Skipped]:
        def one(ledger: Ledger) -> Row | views.Skipped:
            try:
                return job(ledger, resource)
            except (_NotMoved, InvariantBroken) as exc:
                return views.Skipped(resource, str(exc))

        return one

    jobs: list[Awaitable[Row | views.Skipped]] = [services.store.run(guarded(one)) for one in dict.fromkeys(ids)]
    results = await asyncio.gather(*jobs)
    rows = [result for result in results if isinstance(result, Row)]
    for target in sorted({row.target for row in rows}):
        services.dispatcher.kick(target)
    return views.Moved(
        tuple(row.id for row in rows), tuple(result for result in results if isinstance(result, views.Skipped))
    )


def _in_state(ledger: Ledger, resource: str, *states: State) -> Row:
    row = ledger.row(resource)
    if row is None:
        raise _NotMoved("there is no such resource; all of a target: --target NAME")
    if row.state not in states:
        wanted = " or ".join(state.value for state in states)
        raise _NotMoved(f"it is {row.state.value}, not {wanted}")
    return row


def _show_again(ledger: Ledger, row: Row) -> None:
    """A wish that is alive again is found by its own names; nothing is written when somebody else has them."""
    keys = shown_keys(row)
    taken = ledger.set_keys(row, keys)
    if taken is None:
        return
    other = ledger.row(taken)
    if other is None or other.state is not State.REJECTED:
        raise _NotMoved(f"its userName or externalId belongs to resource {taken} by now; correct one of them in Entra")
    ledger.set_keys(other, NO_KEYS)
    if ledger.set_keys(row, keys) is not None:
        raise RuntimeError("two resources hold the unique keys of a third one")


def _record(services: Services, ledger: Ledger, row: Row, action: str, reason: str) -> None:
    ledger.audit(
        at=services.clock.now(),
        actor=ACTOR,
        action=action,
        target=row.target,
        subject=row.id,
        detail={"reason": reason, "generation": row.generation},
    )


ROUTES = (list_dead, redrive_dead, discard_dead, list_held, approve_held)
