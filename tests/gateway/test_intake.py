"""What Entra is told about a write, and what is recorded for it: waiting, joining, refusing, holding."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from gateway.bus import Published
from gateway.intake import RETRY_AFTER_S, Answer, Patience
from gateway.lifecycle import QUIET_S, Row
from gateway.messages import ScimError
from gateway.patch import MemberChange
from gateway.visibility import is_visible, shown_document
from schemas.config import BrakeSettings, TargetSettings
from schemas.events import Reason
from schemas.states import Change, Circuit, Result, State
from tests.gateway.bench import NOON, TARGET, named, sightings
from tests.gateway.engine import WAIT_S, Engine
from tests.simulation.books import MemoryBooks, SqlBooks

BAD_NUMBER = Reason(code="bad_value", message="userName must be the mobile number.", attribute="userName")
SHORT_S = 0.05
"""Answer budget of tests that wait until it is used up."""


@pytest.fixture
def engine(ledger_store: MemoryBooks | SqlBooks) -> Engine:
    """A gateway's engine with a healthy worker; requests wait as long as a test needs."""
    return Engine(ledger_store)


@pytest.fixture
def hasty(ledger_store: MemoryBooks | SqlBooks) -> Engine:
    """The same with a budget that is soon used up."""
    return Engine(ledger_store, answer_wait_s=SHORT_S)


async def answered(engine: Engine, write: Any, result: Result = Result.APPLIED, **fields: Any) -> Answer:
    """Start a write, let a worker report what came of it, and return what Entra is told."""
    count = len(engine.bus.sent)
    task = asyncio.ensure_future(write)
    message = await engine.bus.published(count + 1)
    await engine.report(message.resource, result, **fields)
    async with asyncio.timeout(WAIT_S):
        answer: Answer = await task
    await engine.idle()
    return answer


def refused(answer: Answer, status: int, scim_type: str | None = None) -> ScimError:
    """The error of an answer, which must be this one."""
    assert answer.error is not None
    assert (answer.error.status, answer.error.scim_type) == (status, scim_type)
    return answer.error


# ---- POST


async def test_I1_a_post_is_recorded_with_its_event_before_it_is_answered(engine: Engine) -> None:
    """I1, A1: one transaction: document, generation, event; then the message."""
    engine.serving = False

    answer = await engine.post("ada", title="Clerk")

    assert (answer.created, answer.applied, answer.error) == (True, False, None)
    row = engine.row("r1")
    assert (row.generation, row.acknowledged, row.state) == (1, 1, State.DELIVERING)
    assert [
        wish.generation for wish in engine.run(lambda ledger: ledger.past(msgspec.structs.replace(row, generation=2)))
    ] == [1]
    await engine.idle()
    assert [message.resource for message in engine.bus.sent] == ["r1"]


async def test_a_post_waits_for_the_word_of_the_product(engine: Engine) -> None:
    """section 7: applied in time: 201 with the confirmed resource."""
    answer = await answered(engine, engine.post("ada"))

    assert (answer.created, answer.applied) == (True, True)
    assert answer.row is not None
    assert (answer.row.state, answer.row.acknowledged) == (State.APPLIED, 1)


async def test_a_refusal_reaches_the_caller_of_the_same_request(engine: Engine) -> None:
    """Issue 2: 400 with the reason; the resource is hidden."""
    answer = await answered(engine, engine.post("0123"), Result.REJECTED, reason=BAD_NUMBER)

    error = refused(answer, 400, "invalidValue")
    assert "mobile number" in error.detail
    row = engine.row("r1")
    assert (row.state, is_visible(row), row.acknowledged) == (State.REJECTED, False, 0)


async def test_a_name_taken_at_the_product_is_409(engine: Engine) -> None:
    """section 7: refused in time 400/409."""
    reason = msgspec.structs.replace(BAD_NUMBER, scim_type="uniqueness")

    refused(await answered(engine, engine.post("ada"), Result.REJECTED, reason=reason), 409, "uniqueness")


async def test_the_next_post_of_a_refused_one_uses_its_row(engine: Engine) -> None:
    """Rejected: the row is reused; nothing of the refusal is left."""
    await answered(engine, engine.post("0123"), Result.REJECTED, reason=BAD_NUMBER)

    answer = await answered(engine, engine.post("0123", title="Clerk"))

    assert answer.row is not None
    assert (answer.row.id, answer.row.generation, answer.row.state) == ("r1", 2, State.APPLIED)
    assert answer.row.reason is None
    assert shown_document(answer.row)["title"] == "Clerk"


async def test_a_refused_name_may_be_given_to_another_resource(engine: Engine) -> None:
    """T13: a hidden row keeps nobody from its name."""
    row = await engine.applied("ada")
    await answered(engine, engine.post("bob"), Result.REJECTED, reason=BAD_NUMBER)

    answer = await engine.patch(row.id, userName="bob")

    assert answer.error is None
    refused(await engine.post("bob"), 409, "uniqueness")
    await engine.sweep(2)
    await engine.sweep(2)
    assert engine.event(row.id).identities == (named("bob"),), "once the refused message is known to be gone (R2)"


async def test_without_a_word_in_time_a_post_is_accepted(hasty: Engine) -> None:
    """section 7: late 201; it is acknowledged, so a refusal later is a dead letter."""
    answer = await hasty.post("ada")

    assert (answer.created, answer.applied, answer.error) == (True, False, None)
    assert hasty.row("r1").acknowledged == 1
    await hasty.report("r1", Result.REJECTED, reason=BAD_NUMBER)
    row = hasty.row("r1")
    assert (row.state, is_visible(row), shown_document(row)["active"]) == (State.DEAD, True, False)


async def test_an_unsettled_retry_is_waited_for_and_then_accepted(hasty: Engine) -> None:
    """P6: a transient failure is merely late: no error to Entra."""
    answer = await answered(hasty, hasty.post("ada"), Result.RETRY)

    assert answer.error is None
    assert hasty.row("r1").state is State.RETRYING


@pytest.mark.parametrize("why", ["no worker", "paused", "full", "bus away", "refused by the stream"])
async def test_nothing_is_waited_for_where_waiting_is_in_vain(hasty: Engine, why: str) -> None:
    """section 7: wait only if healthy and on its way; an outage never becomes an error for Entra."""
    match why:
        case "no worker":
            hasty.serving = False
        case "paused":
            hasty.save_target(paused_by="ops")
        case "full":
            hasty.set(window=1)
            await hasty.applied("first")
            hasty.serving = False
            await hasty.patch("r1", title="Chief")
            hasty.serving = True
        case "bus away":
            hasty.bus.up = False
        case "refused by the stream":
            hasty.bus.answers = [Published.REFUSED]

    answer = await hasty.post("ada")

    assert (answer.created, answer.error) == (True, None)
    assert answer.row is not None
    assert hasty.row(answer.row.id).acknowledged == 1


async def test_the_same_post_while_the_first_is_running_joins_it(engine: Engine) -> None:
    """It gets its result, and nothing is recorded twice."""
    first = asyncio.ensure_future(engine.post("ada"))
    await engine.bus.published(1)
    second = asyncio.ensure_future(engine.post("ADA"))
    await engine.waiters.reached(2)

    await engine.report("r1")
    async with asyncio.timeout(WAIT_S):
        answers = await asyncio.gather(first, second)

    assert [(answer.created, answer.applied, answer.error) for answer in answers] == [(True, True, None)] * 2
    assert engine.row("r1").generation == 1
    assert len(engine.bus.sent) == 1


async def test_a_post_of_the_same_name_with_other_values_is_the_newer_wish(engine: Engine) -> None:
    """Nothing Entra sent is left out: while the first is not answered, what the second says of the same person counts."""
    first = asyncio.ensure_future(engine.post("ada", title="Clerk"))
    await engine.bus.published(1)
    second = asyncio.ensure_future(engine.post("ada", title="Countess"))
    await engine.waiters.reached(2)
    assert engine.row("r1").generation == 2

    await engine.report("r1")
    await engine.bus.published(2)
    await engine.report("r1")
    async with asyncio.timeout(WAIT_S):
        answers = await asyncio.gather(first, second)

    assert [(answer.created, answer.error) for answer in answers] == [(True, None)] * 2
    assert b"Countess" in (engine.row("r1").settled_document or b"")


async def test_a_post_of_the_same_group_with_other_members_is_the_newer_wish(engine: Engine) -> None:
    """As for users: the members of the second POST are in the group, those of the first alone are not."""

    def create(*members: str) -> asyncio.Future[Answer]:
        change = MemberChange("replace", members)
        return asyncio.ensure_future(engine.intake.create(TARGET, "group", {"displayName": "Sales"}, members=(change,)))

    first = create("m1")
    await engine.bus.published(1)
    second, third = create("m1", "m2"), create("m2", "m1")
    await engine.waiters.reached(3)

    group = engine.row("r1")
    assert group.generation == 2  # the third names the same members as the second: it joins
    assert engine.run(lambda ledger: ledger.change_members("r1", [MemberChange("replace", ("m1", "m2"))])) is False
    for write in (first, second, third):
        write.cancel()


async def test_a_precondition_of_a_deletion_is_asked_in_its_transaction(engine: Engine) -> None:
    """RFC 7644 section 3.14: what came between reading and deleting counts; 412, and nothing is deleted."""
    row = await engine.applied("ada")
    asked: list[int] = []

    def matches(current: Row) -> bool:
        asked.append(current.generation)
        return current.generation == row.generation

    engine.serving = False
    await engine.patch(row.id, title="Countess")
    refused(await engine.intake.delete(TARGET, "user", row.id, if_match=matches), 412)
    assert (asked, engine.row(row.id).deleted) == ([row.generation + 1], False)

    assert (await engine.intake.delete(TARGET, "user", row.id, if_match=lambda current: True)).error is None
    assert engine.row(row.id).deleted


async def test_a_caller_who_hardly_waits_does_not_make_the_product_look_slow(engine: Engine) -> None:
    """A request that was given a tenth of the time says nothing about the product; the next ones wait as before."""
    impatient = Patience(wait_s=0.001)
    for name in ("a", "b", "c"):
        answer = await engine.intake.create(TARGET, "user", {"userName": name}, patience=impatient)
        assert (answer.error, answer.applied) == (None, False)

    assert (await answered(engine, engine.post("d"))).applied


async def test_a_post_that_joined_a_refused_one_gets_the_refusal(engine: Engine) -> None:
    """P6: both callers are told the truth."""
    first = asyncio.ensure_future(engine.post("0123"))
    await engine.bus.published(1)
    second = asyncio.ensure_future(engine.post("0123"))
    await engine.waiters.reached(2)

    await engine.report("r1", Result.REJECTED, reason=BAD_NUMBER)
    async with asyncio.timeout(WAIT_S):
        for answer in await asyncio.gather(first, second):
            refused(answer, 400, "invalidValue")


async def test_a_post_for_a_resource_that_was_answered_is_409(engine: Engine) -> None:
    """409 `uniqueness`, naming the resource that has the name."""
    await answered(engine, engine.post("ada"))

    error = refused(await engine.post("Ada "), 409, "uniqueness")

    assert "userName" in error.detail
    assert "r1" in error.detail
    assert engine.row("r1").generation == 1


async def test_another_user_with_the_same_external_id_is_409(engine: Engine) -> None:
    """issue 2, item 4: externalId is unique per target, case-exact."""
    await answered(engine, engine.post("ada", externalId="X1"))

    error = refused(await engine.post("bob", externalId="X1"), 409, "uniqueness")
    assert "externalId" in error.detail
    assert (await answered(engine, engine.post("eve", externalId="x1"))).error is None


async def test_I11_the_same_name_at_another_target_is_another_resource(engine: Engine) -> None:
    """I11, P8: separated per app."""
    engine.targets["other"] = TargetSettings(connector="shelf")
    await engine.applied("ada")
    engine.serving = False

    answer = await engine.intake.create("other", "user", {"userName": "ada"})

    assert answer.error is None
    assert answer.row is not None
    assert answer.row.id != "r1"


# ---- answer policy retry-later


async def test_under_retry_later_nothing_is_promised_before_it_is_confirmed(hasty: Engine) -> None:
    """503 + Retry-After; the resource is not readable."""
    hasty.set(pending="retry-later")

    error = refused(await hasty.post("ada"), 503)

    assert error.headers == {"Retry-After": str(RETRY_AFTER_S)}
    row = hasty.row("r1")
    assert (row.acknowledged, is_visible(row)) == (0, False)


async def test_under_retry_later_the_repeated_request_joins_and_gets_the_result(hasty: Engine) -> None:
    """The same generation, the true answer."""
    hasty.set(pending="retry-later")
    refused(await hasty.post("ada"), 503)
    refused(await hasty.post("ada"), 503)
    assert hasty.row("r1").generation == 1

    await hasty.report("r1")
    answer = await hasty.post("ada")

    assert (answer.created, answer.applied, answer.error) == (True, True, None)
    assert is_visible(hasty.row("r1"))


async def test_under_retry_later_a_change_is_shown_when_it_is_confirmed(hasty: Engine) -> None:
    """T13: a wish that was answered 503 is never readable as if it held."""
    row = await hasty.applied("ada", title="Clerk")
    hasty.set(pending="retry-later")

    refused(await hasty.patch(row.id, title="Chief"), 503)
    assert shown_document(hasty.row(row.id))["title"] == "Clerk"
    refused(await hasty.patch(row.id, title="Chief"), 503)
    assert hasty.row(row.id).generation == 2
    await hasty.report(row.id)

    answer = await hasty.patch(row.id, title="Chief")
    assert answer.error is None
    assert shown_document(hasty.row(row.id))["title"] == "Chief"


@pytest.mark.parametrize("circuit", [Circuit.AUTH, Circuit.DOWN])
async def test_under_retry_later_an_outage_quarantines_nobody(hasty: Engine, circuit: Circuit) -> None:
    """Switches to accept by itself while the circuit is open."""
    hasty.set(pending="retry-later")
    hasty.save_target(circuit=circuit, next_probe_at=NOON + 60)

    answer = await hasty.post("ada")

    assert (answer.created, answer.error) == (True, None)
    assert is_visible(hasty.row("r1"))


# ---- PATCH and PUT


async def test_T1_a_change_that_changes_nothing_is_no_generation(engine: Engine) -> None:
    """T1: unchanged and not dead: no generation, no event."""
    row = await engine.applied("ada", title="Clerk")
    sent = len(engine.bus.sent)

    answer = await engine.patch(row.id, title="Clerk")

    assert (answer.applied, answer.error) == (True, None)
    assert engine.row(row.id).generation == 1
    assert len(engine.bus.sent) == sent


async def test_a_change_waits_for_the_word_of_the_product(engine: Engine) -> None:
    """section 7: 200, confirmed."""
    row = await engine.applied("ada")

    answer = await answered(engine, engine.patch(row.id, title="Chief"))

    assert (answer.applied, answer.created) == (True, False)
    assert engine.row(row.id).acknowledged == 2


async def test_a_refused_change_is_told_and_the_old_values_stay(engine: Engine) -> None:
    """section 7: refused in time 400; reads show the last confirmed values."""
    row = await engine.applied("ada", title="Clerk")

    refused(
        await answered(engine, engine.patch(row.id, title="Wizard"), Result.REJECTED, reason=BAD_NUMBER),
        400,
        "invalidValue",
    )

    assert engine.row(row.id).state is State.DEAD
    assert shown_document(engine.row(row.id))["title"] == "Clerk"


async def test_T1_the_same_write_on_a_dead_resource_is_a_redrive_and_waits_for_the_truth(engine: Engine) -> None:
    """T1, T11: Entra asks again; it is told what the product says now."""
    row = await engine.applied("ada", title="Clerk")
    await answered(engine, engine.patch(row.id, title="Wizard"), Result.REJECTED, reason=BAD_NUMBER)

    again = await answered(engine, engine.patch(row.id, title="Wizard"), Result.REJECTED, reason=BAD_NUMBER)
    refused(again, 400, "invalidValue")
    assert engine.row(row.id).generation == 3

    answer = await answered(engine, engine.patch(row.id, title="Wizard"))
    assert answer.applied
    assert (engine.row(row.id).generation, engine.row(row.id).state) == (4, State.APPLIED)


async def test_T1_an_identical_write_on_a_create_that_died_is_a_redrive(hasty: Engine) -> None:
    """T1: unchanged and dead: redrive."""
    await hasty.post("ada", title="Clerk")
    await hasty.report("r1", Result.REJECTED, reason=BAD_NUMBER)
    assert hasty.row("r1").state is State.DEAD

    answer = await answered(hasty, hasty.patch("r1", title="Clerk"))

    assert answer.applied
    assert (hasty.row("r1").generation, hasty.row("r1").state) == (2, State.APPLIED)


async def test_two_changes_side_by_side_do_not_undo_each_other(engine: Engine) -> None:
    """P1: the second is computed anew on what the first made of the row."""
    row = await engine.applied("ada")
    engine.serving = False

    await asyncio.gather(engine.patch(row.id, title="Chief"), engine.patch(row.id, nickName="A"))

    assert msgspec.json.decode(engine.row(row.id).document) == {"userName": "ada", "title": "Chief", "nickName": "A"}


async def test_a_burst_of_changes_is_coalesced(engine: Engine) -> None:
    """Ten PATCHes during a delivery become one call."""
    row = await engine.applied("ada")
    engine.serving = False
    for number in range(10):
        await engine.patch(row.id, title=str(number))
    await engine.idle()
    assert len(engine.bus.sent) == 2

    await engine.report(row.id)
    await engine.idle()

    assert engine.event(row.id).generation == 11
    assert len(engine.bus.sent) == 3


async def test_a_request_waits_for_its_own_generation(engine: Engine) -> None:
    """P6: the outcome of an older one is not its answer."""
    row = await engine.applied("ada")
    engine.serving = False
    await engine.patch(row.id, title="first")
    engine.serving = True
    await engine.idle()
    task = asyncio.ensure_future(engine.patch(row.id, title="Wizard"))
    await engine.waiters.reached(1)

    await engine.report(row.id)
    assert not task.done()
    await engine.report(row.id, Result.REJECTED, reason=BAD_NUMBER)

    async with asyncio.timeout(WAIT_S):
        refused(await task, 400, "invalidValue")


async def test_a_request_is_woken_by_another_gateway(engine: Engine) -> None:
    """`prov.v1.settled` says only that something moved; the waiter reads the row."""
    task = asyncio.ensure_future(engine.post("ada"))
    await engine.bus.published(1)
    engine.outcomes.on_settled = lambda row: engine.waiters.wake(row.id, None)

    await engine.report("r1")

    async with asyncio.timeout(WAIT_S):
        answer = await task
    assert answer.applied


async def test_a_wake_without_a_settlement_goes_on_waiting(engine: Engine) -> None:
    """P6: an account that was found is linked first; only the write is the answer."""
    task = asyncio.ensure_future(engine.post("ada"))
    await engine.bus.published(1)
    await engine.report("r1", Result.FOUND, sightings=sightings(ada="v7"))
    await engine.bus.published(2)
    assert not task.done()
    await engine.report("r1")

    async with asyncio.timeout(WAIT_S):
        assert (await task).applied


@pytest.mark.parametrize("who", ["nobody", "of another target", "of another kind", "deleted", "rejected"])
async def test_I11_what_is_not_shown_here_cannot_be_changed_or_deleted(engine: Engine, who: str) -> None:
    """I11, S5: foreign ids answer exactly like random ids."""
    engine.targets["other"] = TargetSettings(connector="shelf")
    row = await engine.applied("ada")
    target, kind = TARGET, "user"
    match who:
        case "nobody":
            row = msgspec.structs.replace(row, id="r99")
        case "of another target":
            target = "other"
        case "of another kind":
            kind = "group"
        case "deleted":
            await engine.delete(row.id)
            row = engine.row(row.id)
        case "rejected":
            await answered(engine, engine.post("0123"), Result.REJECTED, reason=BAD_NUMBER)
            row = engine.row("r2")

    answers = [
        await engine.intake.change(target, kind, row, lambda document: {**document, "title": "Chief"}),
        await engine.intake.delete(target, kind, row.id),
    ]

    random = await engine.intake.delete(target, kind, "r98")
    for answer in answers:
        error = refused(answer, 404)
        assert random.error is not None
        assert error.detail == random.error.detail


async def test_a_precondition_that_does_not_hold_changes_nothing(engine: Engine) -> None:
    """RFC 7644 section 3.14: 412; checked in the transaction."""
    row = await engine.applied("ada")

    answer = await engine.intake.change(
        TARGET, "user", row, lambda document: {**document, "title": "Chief"}, if_match=lambda current: False
    )

    refused(answer, 412)
    assert engine.row(row.id).generation == 1


async def test_an_error_of_the_computation_is_the_answer(engine: Engine) -> None:
    """RFC 7644 section 3.5.2: whether the row was read before or moved meanwhile."""
    row = await engine.applied("ada")
    engine.serving = False

    def compute(document: dict[str, Any]) -> dict[str, Any]:
        if "title" in document:
            raise ScimError(400, "No.", "mutability")
        return {**document, "nickName": "A"}

    await engine.patch(row.id, title="Chief")
    refused(await engine.intake.change(TARGET, "user", row, compute), 400, "mutability")
    refused(await engine.intake.change(TARGET, "user", engine.row(row.id), compute), 400, "mutability")
    assert engine.row(row.id).generation == 2


async def test_renaming_to_a_name_of_another_is_409(engine: Engine) -> None:
    """section 7: duplicate live 409 `uniqueness`."""
    row = await engine.applied("ada")
    await engine.applied("bob")

    refused(await engine.patch(row.id, userName="Bob"), 409, "uniqueness")

    assert engine.row(row.id).generation == 1


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ({}, {"active": False}, Change.DEACTIVATE),
        ({"active": True}, {"active": False}, Change.DEACTIVATE),
        ({"active": False}, {"active": True}, Change.ACTIVATE),
        ({"active": False}, {"active": False, "title": "Chief"}, Change.UPDATE),
        ({}, {"title": "Chief"}, Change.UPDATE),
    ],
)
async def test_a_change_is_named_by_what_it_does(
    engine: Engine, before: dict[str, Any], after: dict[str, Any], change: Change
) -> None:
    """RFC 9967 section 2.4.5 and 2.4.6: activate and deactivate have events of their own, and deactivate goes first."""
    row = await engine.applied("ada", **before)
    engine.serving = False

    await engine.patch(row.id, **after)

    assert engine.row(row.id).change is change
    assert set(engine.row(row.id).changed) == {name for name in after if after[name] != before.get(name)}


# ---- DELETE


async def test_a_deletion_is_answered_at_once_and_repeated_is_404(engine: Engine) -> None:
    """section 7: DELETE 204, repeated 404; the product follows."""
    row = await engine.applied("ada")

    answer = await engine.delete(row.id)
    await engine.idle()

    assert answer.error is None
    assert engine.row(row.id).acknowledged == 2
    assert engine.event(row.id).deleted
    refused(await engine.delete(row.id), 404)
    await engine.report(row.id)
    assert engine.row(row.id).state is State.GONE


async def test_T9_a_resource_that_was_never_delivered_is_gone_at_once(engine: Engine) -> None:
    """T9: no vendor call; its event ends as `noop`."""
    engine.save_target(paused_by="ops")
    await engine.post("ada")
    engine.save_target(paused_by=None)

    await engine.delete("r1")
    await engine.idle()

    assert engine.row("r1").state is State.GONE
    assert engine.bus.sent == []


async def test_R2_a_user_made_anew_waits_for_the_deletion_of_the_former_one(engine: Engine) -> None:
    """P2, R2: the older resource's deletion is finished before the younger one is created."""
    row = await engine.applied("ada")
    engine.serving = False
    await engine.delete(row.id)
    answer = await engine.post("ada")
    await engine.idle()
    assert answer.row is not None
    assert engine.row(answer.row.id).state is State.BLOCKED

    await engine.report(row.id)
    await engine.sweep(2)
    await engine.sweep(2)

    assert engine.row(answer.row.id).state is State.DELIVERING


# ---- mass brake


async def _braked(engine: Engine) -> list[str]:
    engine.set(brake=BrakeSettings(count_min=3, share=0.1), window=100)
    return [(await engine.applied(f"user{number}")).id for number in range(6)]


async def test_more_deactivations_than_the_brake_allows_are_held(engine: Engine) -> None:
    """section 6, mass brake: deletes and disables above max(count, share) in 1 h wait for approval; Entra is told success."""
    ids = await _braked(engine)
    engine.serving = False

    answers = [await engine.patch(resource, active=False) for resource in ids[:3]]
    answers.append(await engine.delete(ids[3]))
    answers.append(await engine.patch(ids[4], active=False))

    assert [answer.error for answer in answers] == [None] * 5
    assert [engine.row(resource).state for resource in ids] == [
        *[State.DELIVERING] * 3,
        State.HELD,
        State.HELD,
        State.APPLIED,
    ]
    await engine.sweep(60)
    assert engine.row(ids[3]).state is State.HELD
    assert (await engine.patch(ids[5], title="Chief")).error is None
    assert engine.row(ids[5]).state is State.DELIVERING, "other changes pass"


async def test_after_an_hour_the_brake_counts_anew(engine: Engine) -> None:
    """section 6, mass brake: in 1 h."""
    ids = await _braked(engine)
    engine.serving = False
    for resource in ids[:3]:
        await engine.patch(resource, active=False)
    engine.clock.time += 3_601

    await engine.patch(ids[3], active=False)

    assert engine.row(ids[3]).state is State.DELIVERING


async def test_the_brake_grows_with_the_target(engine: Engine) -> None:
    """section 6, mass brake: the larger of count and share."""
    ids = await _braked(engine)
    engine.set(brake=BrakeSettings(count_min=1, share=0.5))
    engine.serving = False

    for resource in ids[:4]:
        await engine.patch(resource, active=False)

    assert [engine.row(resource).state for resource in ids[:4]] == [*[State.DELIVERING] * 3, State.HELD]


async def test_the_brake_can_be_switched_off(engine: Engine) -> None:
    """A setting of the target."""
    ids = await _braked(engine)
    engine.set(brake=BrakeSettings(enabled=False, count_min=1))
    engine.serving = False

    for resource in ids:
        await engine.delete(resource)

    assert {engine.row(resource).state for resource in ids} == {State.DELIVERING}


# ---- targets that are too slow to wait for


async def test_a_target_that_is_too_slow_is_not_waited_for_until_it_had_time_to_recover(hasty: Engine) -> None:
    """section 7: wait only if the expected time fits the budget, so that bulk cycles run at full speed."""
    hasty.set(window=100)
    for number in range(60):
        await hasty.post(f"user{number}")
        if hasty.waiters.begun == number:
            break
    else:
        pytest.fail("every request waited")

    for _ in range(400):
        hasty.intake.relax()
    used = hasty.waiters.begun
    await hasty.post("later")

    assert hasty.waiters.begun == used + 1


async def test_an_applied_row_that_was_lost_before_is_answered_as_accepted(hasty: Engine) -> None:
    """P6: nothing known in time: success, and R1 does the rest."""
    answer = await hasty.post("ada")
    hasty.bus.stream.clear()
    await hasty.sweep(21)
    await hasty.sweep(QUIET_S)

    assert answer.error is None
    assert hasty.event("r1").fence == 2
