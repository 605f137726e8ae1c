"""A wish that was acknowledged waits for a name the product does not have; a wait with a bound ends."""

from __future__ import annotations

import asyncio

import pytest

from schemas.events import Reason, Sighting
from schemas.states import Result, State
from tests.gateway.engine import Engine
from tests.simulation.books import MemoryBooks, SqlBooks

NO_ROLE = Reason(code="unknown_role", message="There is no role 'Wizard'.", attribute="roles", names=("Wizard",))
PENDING = Reason(code="pending", message="The request is approved in the daily run")
DAY_S = 86_400.0


@pytest.fixture
def engine(ledger_store: MemoryBooks | SqlBooks) -> Engine:
    """A gateway's engine; writes are answered at once."""
    made = Engine(ledger_store)
    made.serving = False
    made.set(window=100)
    return made


async def test_a_wish_that_was_acknowledged_waits_for_an_unknown_name_and_is_applied_when_it_appears(
    engine: Engine,
) -> None:
    """Blocked on the name, looked at again by itself, at growing intervals of 15 min at most."""
    await engine.post("ada")
    await engine.idle()
    waits = []
    for _ in range(14):
        await engine.report("r1", Result.REJECTED, reason=NO_ROLE)
        row = engine.row("r1")
        assert (row.state, row.blocked_on, row.account_id) == (State.BLOCKED, "role:Wizard", None)
        waits.append(row.next_at - engine.clock.time)
        await engine.sweep(waits[-1])
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (2.0, 900.0)
    assert engine.bus.dead == []

    await engine.report("r1")

    row = engine.row("r1")
    assert (row.state, row.blocked_on, row.reason) == (State.APPLIED, None, None)


async def test_an_unknown_name_is_told_while_entra_waits_and_a_newer_wish_goes_before_it(engine: Engine) -> None:
    """Refused like anything permanent as long as nobody was told success; T6: the newest wish is sent."""
    engine.serving = True
    asked = asyncio.ensure_future(engine.post("ada"))
    await engine.waiters.reached(1)
    await engine.idle()
    await engine.report("r1", Result.REJECTED, reason=NO_ROLE)
    refused = (await asked).error
    assert refused is not None
    assert (refused.status, engine.row("r1").state) == (400, State.REJECTED)

    engine.serving = False
    await engine.post("bob")
    await engine.idle()
    await engine.patch("r2", title="Chief")
    await engine.report("r2", Result.REJECTED, reason=NO_ROLE)
    assert engine.event("r2").generation == 2, "the newer wish is not held up by the older one's name"


async def test_a_refused_rename_with_an_unknown_role_keeps_the_confirmed_name(engine: Engine) -> None:
    """I5: nothing was written, so the account is still known by what was confirmed."""
    row = await engine.applied("ada")
    await engine.patch(row.id, userName="bob")
    await engine.report(row.id, Result.REJECTED, reason=NO_ROLE, account_id=row.account_id)

    after = engine.row(row.id)
    assert (after.state, after.settled_identities, after.account_id) == (
        State.BLOCKED,
        row.settled_identities,
        row.account_id,
    )


async def test_two_users_of_one_account_cost_the_product_less_and_less(engine: Engine) -> None:
    """Vendor page 3.4, same digits, accepted together: the second waits for the first, named by id, and is no load for ever."""
    owner = await engine.applied("+44 7400 123456")
    await engine.post("447400123456")
    await engine.idle()
    seen = Sighting("userName:447400123456", owner.account_id or "")
    waits = []
    for _ in range(8):
        await engine.report("r2", Result.FOUND, sightings=(seen,))
        row = engine.row("r2")
        assert (row.state, row.blocked_on) == (State.BLOCKED, f"account of {owner.id}")
        assert row.reason is not None
        assert (row.reason.scim_type, f"user {owner.id} of this target" in row.reason.message) == ("uniqueness", True)
        waits.append(row.next_at - engine.clock.time)
        await engine.sweep()
        await engine.report(owner.id)  # its account was seen under another name, so it is looked at, too
        await engine.sweep(waits[-1])
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (5.0, 300.0)


async def test_a_wait_with_a_bound_ends_as_a_dead_letter_and_a_redrive_begins_it_anew(engine: Engine) -> None:
    """Vendor page 3.3, `pending`: polled at growing intervals for 24 h, then a dead letter with what to do."""
    await engine.post("ada")
    await engine.idle()
    await engine.report("r1", Result.RETRY, reason=Reason(code="unavailable", message="down"))
    await engine.sweep(60.0)
    began = engine.clock.time
    polls = 0
    while engine.row("r1").state is not State.DEAD:
        await engine.report(
            "r1", Result.BLOCKED, reason=PENDING, blocked_on="approval", account_id="u-1", wait_max_s=DAY_S
        )
        polls += 1
        assert polls < 200
        if engine.row("r1").state is State.BLOCKED:
            await engine.sweep(engine.row("r1").next_at - engine.clock.time)
    assert DAY_S <= engine.clock.time - began <= DAY_S + 900.0
    assert 90 < polls < 120

    row = engine.row("r1")
    assert row.reason is not None
    assert (row.reason.code, row.account_id, engine.bus.dead) == ("exhausted", "u-1", ["r1"])
    assert "24 h for the product's approval" in row.reason.message

    await engine.patch("r1", title="Chief")
    await engine.idle()
    await engine.report("r1", Result.BLOCKED, reason=PENDING, blocked_on="approval", account_id="u-1", wait_max_s=DAY_S)
    assert engine.row("r1").state is State.BLOCKED

    await engine.patch("r1", title="President")
    await engine.idle()
    assert engine.event("r1").generation == 3, "what the product approves is not what an operator approves"


async def test_T6_a_newer_wish_does_not_wait_for_what_the_older_one_waits_for(engine: Engine) -> None:
    """A licence that is missing for one wish says nothing about the next, which may need none."""
    await engine.post("ada")
    await engine.idle()
    await engine.patch("r1", title="Chief")
    await engine.report("r1", Result.BLOCKED, blocked_on="licence", account_id="a-1", retry_after_s=900.0)
    await engine.sweep(1.0)

    assert engine.event("r1").generation == 2
    assert engine.row("r1").account_id == "a-1"


async def test_an_outage_during_a_long_wait_neither_ends_the_wait_nor_begins_it_anew(engine: Engine) -> None:
    """72 h without an answer, not 72 h since a licence was first missing."""
    await engine.post("ada")
    await engine.idle()
    asked = {"blocked_on": "licence", "account_id": "a-1", "wait_max_s": 30 * DAY_S}
    await engine.report("r1", Result.BLOCKED, **asked)
    await engine.sweep(10 * DAY_S)
    await engine.report("r1", Result.RETRY, reason=Reason(code="unavailable", message="down"))
    assert engine.row("r1").state is State.RETRYING

    await engine.sweep(10 * DAY_S)
    await engine.report("r1", Result.BLOCKED, **asked)
    assert engine.row("r1").state is State.BLOCKED
    await engine.sweep(10 * DAY_S)
    await engine.report("r1", Result.BLOCKED, **asked)
    assert engine.row("r1").state is State.DEAD


async def test_T9_whoever_has_the_name_of_a_user_that_was_never_written_is_not_deleted_with_it(engine: Engine) -> None:
    """T9: an unknown role stopped the create before anything was looked up; the product may have somebody of that name."""
    await engine.post("ada")
    await engine.idle()
    await engine.report("r1", Result.REJECTED, reason=NO_ROLE)
    await engine.delete("r1")
    await engine.idle()
    assert (engine.row("r1").state, engine.row("r1").body) == (State.GONE, None)

    await engine.post("bob")
    await engine.idle()
    await engine.report("r2", Result.RETRY, ambiguous=True)
    await engine.sweep(60.0)
    await engine.report("r2", Result.REJECTED, reason=NO_ROLE, looked=True)
    await engine.delete("r2")
    await engine.sweep(60.0)
    assert engine.event("r2").lookup == ("userName:bob",), "what an earlier delivery may have made is looked for"


async def test_T10_a_detour_that_waits_for_something_is_not_sent_again_and_again(engine: Engine) -> None:
    """T6 is about a wish that came meanwhile; the one a detour prepares for still waits for the names of its ring."""
    ann, bob = await engine.applied("ann"), await engine.applied("bob")
    engine.save_target(paused_by="ops")
    await engine.patch(ann.id, userName="between")
    await engine.patch(bob.id, userName="ann")
    await engine.patch(ann.id, userName="bob")
    engine.save_target(paused_by=None)
    await engine.sweep(1.0)
    assert engine.event(ann.id).identities == ("userName:between",)

    waits = []
    for _ in range(3):
        await engine.report(ann.id, Result.BLOCKED, blocked_on="the product's names")
        row = engine.row(ann.id)
        assert row.state is State.BLOCKED
        waits.append(row.next_at - engine.clock.time)
        await engine.sweep(waits[-1])
    assert min(waits) >= 1.0


async def test_whoever_asks_again_has_the_product_looked_at_and_cannot_make_it_be_looked_at_for_ever(
    engine: Engine,
) -> None:
    """Entra reads what the product shows in place of its wish and repeats it: one more look, twice a minute at most."""
    await engine.post("ada", active=True)
    await engine.idle()
    looks = 0
    for second in range(61):
        if engine.row("r1").body is not None:
            await engine.report(
                "r1", Result.BLOCKED, blocked_on="licence", account_id="a", observed_active=False, retry_after_s=900.0
            )
            looks += 1
        answer = await engine.patch("r1", active=True)
        assert answer.error is None
        await engine.sweep(1.0)
        assert second < 31 or looks > 1
    assert looks == 3
