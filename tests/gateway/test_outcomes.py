"""What became of an event: folded once, whatever order and however often it arrives; and what it says about the target."""

from __future__ import annotations

import msgspec
import pytest

from gateway.lifecycle import PROBE_FIRST_S, Row
from gateway.outcomes import (
    CALLS_MIN,
    DEAD_ALIKE_MIN,
    FAILING_RESOURCES_MIN,
    FAILURES_IN_A_ROW,
    TALLY_S,
)
from schemas.config import RetrySettings, TargetSettings
from schemas.events import Reason
from schemas.states import Circuit, Result, State
from tests.gateway.bench import NOON, TARGET, outcome_of, sightings
from tests.gateway.engine import Engine
from tests.simulation.books import MemoryBooks, SqlBooks

NO_ROLE = Reason(
    code="reserved_role", message="The role Wizard is not given to anybody.", attribute="roles", names=("Wizard",)
)


@pytest.fixture
def engine(ledger_store: MemoryBooks | SqlBooks) -> Engine:
    """A gateway's engine with room for everybody; writes are answered at once."""
    made = Engine(ledger_store)
    made.serving = False
    made.set(window=100)
    return made


async def users(engine: Engine, count: int, prefix: str = "user") -> list[str]:
    """So many creates, all out."""
    found = []
    for number in range(count):
        row = (await engine.post(f"{prefix}{number}")).row
        assert row is not None
        found.append(row.id)
    await engine.idle()
    return found


# ---- one outcome, one effect


async def test_I10_the_same_report_twice_changes_nothing_the_second_time(engine: Engine) -> None:
    """A5, I10: outcomes are heard twice; folding is idempotent."""
    await users(engine, 1)
    outcome = await engine.report("r1")
    row = engine.row("r1")

    await engine.outcomes.fold(outcome)

    assert engine.row("r1") == row
    assert engine.bus.settled == ["r1"]


async def test_R9_another_report_of_a_settled_delivery_is_looked_into(engine: Engine) -> None:
    """R9: two deliveries reported: the second one settles nothing and leaves a doubt."""
    await users(engine, 1)
    event = engine.event("r1")
    await engine.report("r1")

    await engine.outcomes.fold(outcome_of(event, Result.APPLIED, delivery=2, account_id="a-r1"))

    row = engine.row("r1")
    assert (row.state, row.settled_generation, row.priority) == (State.DELIVERING, 1, 3)
    assert engine.event("r1").look


@pytest.mark.parametrize("change", [{"resource": "nobody"}, {"target": "elsewhere"}])
async def test_I11_reports_about_nobody_and_about_other_targets_change_nothing(
    engine: Engine, change: dict[str, str]
) -> None:
    """I11: a worker of one target cannot settle resources of another."""
    await users(engine, 1)
    before = engine.row("r1")

    await engine.outcomes.fold(msgspec.structs.replace(outcome_of(engine.event("r1"), Result.APPLIED), **change))

    assert engine.row("r1") == before
    assert engine.bus.settled == []


async def test_A5_requests_are_told_after_the_commit(engine: Engine) -> None:
    """A5: who is woken reads what is stored."""
    await users(engine, 1)
    seen: list[Row] = []
    engine.outcomes.on_settled = lambda row: seen.append(engine.row(row.id))

    await engine.report("r1")

    assert [row.state for row in seen] == [State.APPLIED]
    assert engine.bus.settled == ["r1"]


async def test_a_dead_letter_is_mirrored_on_the_bus(engine: Engine) -> None:
    """PROV_DEAD, for people who watch NATS."""
    await users(engine, 1)

    await engine.report("r1", Result.REJECTED, reason=NO_ROLE)

    assert engine.bus.dead == ["r1"]


async def test_T6_the_next_wish_leaves_in_the_settle_of_the_one_before(engine: Engine) -> None:
    """T6: window permitting, dispatched in the same transaction."""
    await users(engine, 1)
    await engine.patch("r1", title="Chief")
    await engine.patch("r1", title="President")
    jobs = engine.store.jobs

    await engine.report("r1")

    assert engine.store.jobs == jobs + 1
    assert [message.fence for message in engine.bus.sent] == [1, 2]
    event = engine.event("r1")
    assert (event.generation, msgspec.json.decode(event.document)["title"]) == (3, "President")


async def test_T6_the_next_wish_waits_while_the_target_is_paused(engine: Engine) -> None:
    """T6: window permitting."""
    await users(engine, 1)
    await engine.patch("r1", title="Chief")
    engine.save_target(paused_by="ops")

    await engine.report("r1")

    assert engine.row("r1").state is State.QUEUED
    assert len(engine.bus.sent) == 1


async def test_A14_an_outcome_that_breaks_an_invariant_stops_its_row(engine: Engine) -> None:
    """A14: dead, reason `invariant`; the report is recorded, so that it is not folded for ever."""
    await users(engine, 1)
    event = engine.event("r1")
    engine.save(engine.row("r1"), state=State.HELD)
    if isinstance(engine.books, MemoryBooks):
        engine.books.memory.violations.clear()  # this row is broken on purpose

    await engine.outcomes.fold(outcome_of(event, Result.APPLIED))

    row = engine.row("r1")
    assert row.state is State.DEAD
    assert row.reason is not None
    assert row.reason.code == "invariant"


# ---- keys


async def test_after_a_refused_rename_the_old_name_is_found_and_the_new_one_free(engine: Engine) -> None:
    """T13: filters find what is shown; nobody is kept from a name that was refused to somebody else."""
    row = await engine.applied("ada")
    await engine.patch(row.id, userName="bob")
    await engine.report(row.id, Result.REJECTED, reason=NO_ROLE)

    assert (await engine.post("bob")).error is None
    taken = await engine.post("ada")
    assert taken.error is not None
    assert taken.error.status == 409


async def test_after_a_deletion_the_name_is_free(engine: Engine) -> None:
    """T13: a deleted resource holds no key, whatever its deletion still waits for."""
    row = await engine.applied("ada")
    await engine.delete(row.id)

    answer = await engine.post("ada")

    assert answer.error is None
    assert answer.row is not None
    assert answer.row.id != row.id


# ---- the circuit


async def test_a_target_that_fails_five_times_in_a_row_is_down(engine: Engine) -> None:
    """section 6, vendor_down: 5 in a row, of several resources."""
    await users(engine, FAILURES_IN_A_ROW + 1)
    for number in range(1, FAILURES_IN_A_ROW):
        await engine.report(f"r{number}", Result.RETRY)
    assert engine.target().circuit is Circuit.CLOSED

    await engine.report(
        f"r{FAILURES_IN_A_ROW}", Result.RETRY, reason=Reason(code="unavailable", message="It says 503.")
    )

    target = engine.target()
    assert (target.circuit, target.circuit_reason) == (Circuit.DOWN, "It says 503.")
    assert target.next_probe_at == engine.clock.time + PROBE_FIRST_S


async def test_P5_one_failing_user_does_not_close_the_target_to_others(engine: Engine) -> None:
    """P5: a target is down only when several resources fail."""
    await users(engine, FAILING_RESOURCES_MIN)
    for _ in range(3 * FAILURES_IN_A_ROW):
        for resource in ("r1", "r2")[: FAILING_RESOURCES_MIN - 1]:
            if engine.row(resource).state is State.RETRYING:
                engine.save(engine.row(resource), next_at=0.0)
                await engine.sweep()
            await engine.report(resource, Result.RETRY)

    assert engine.target().circuit is Circuit.CLOSED


async def test_a_success_in_between_breaks_the_row_of_failures(engine: Engine) -> None:
    """section 6, vendor_down: in a row means in a row."""
    await users(engine, 8)
    for number in range(1, 5):
        await engine.report(f"r{number}", Result.RETRY)
    await engine.report("r5")

    for number in range(6, 9):
        await engine.report(f"r{number}", Result.RETRY)

    assert engine.target().circuit is Circuit.CLOSED


async def test_a_target_that_fails_half_of_its_calls_is_down(engine: Engine) -> None:
    """section 6, vendor_down: 50 % of >= 10 calls in 60 s."""
    await users(engine, CALLS_MIN)
    for number in range(1, CALLS_MIN + 1):
        assert engine.target().circuit is Circuit.CLOSED
        await engine.report(f"r{number}", Result.APPLIED if number % 2 else Result.RETRY)

    assert engine.target().circuit is Circuit.DOWN


async def test_failures_of_long_ago_do_not_count(engine: Engine) -> None:
    """section 6, vendor_down: within 60 s."""
    await users(engine, FAILURES_IN_A_ROW)
    for number in range(1, FAILURES_IN_A_ROW):
        await engine.report(f"r{number}", Result.RETRY)
    engine.clock.time += TALLY_S + 1

    await engine.report(f"r{FAILURES_IN_A_ROW}", Result.RETRY)

    assert engine.target().circuit is Circuit.CLOSED


@pytest.mark.parametrize("result", [Result.REJECTED, Result.POISON, Result.BLOCKED])
async def test_a_problem_of_one_resource_is_no_failure_of_the_target(engine: Engine, result: Result) -> None:
    """section 6: item-specific refusals, poison and blocks say nothing about the target."""
    await users(engine, CALLS_MIN)
    for number in range(1, CALLS_MIN + 1):
        await engine.report(f"r{number}", result, reason=Reason(code=f"c{number}", message="No."), blocked_on="role")

    assert engine.target().circuit is Circuit.CLOSED


async def test_a_delivery_that_was_not_ours_any_more_says_nothing_about_the_target(engine: Engine) -> None:
    """R8: `gave_up` counts nowhere."""
    await users(engine, CALLS_MIN)
    for number in range(1, CALLS_MIN + 1):
        await engine.outcomes.fold(outcome_of(engine.event(f"r{number}"), Result.GAVE_UP))

    assert engine.target().circuit is Circuit.CLOSED


async def test_P5_a_broken_credential_opens_the_circuit_at_once_and_kills_nobody(engine: Engine) -> None:
    """P5: a broken vendor credential dead-letters nobody; everything is parked."""
    await users(engine, 3)
    reason = Reason(code="auth", message="The key has expired.")

    for number in (1, 2, 3):
        await engine.report(f"r{number}", Result.MISCONFIGURED, reason=reason)
    await engine.sweep(10)

    target = engine.target()
    assert (target.circuit, target.circuit_reason) == (Circuit.AUTH, "The key has expired.")
    assert [engine.row(f"r{number}").state for number in (1, 2, 3)] == [State.QUEUED] * 3
    assert len(engine.bus.sent) == 3


async def test_a_probe_that_goes_through_closes_the_circuit_and_work_starts_slowly(engine: Engine) -> None:
    """section 6: one item as probe; then 1, 2, 4, ... and waiting retries go on at once."""
    await users(engine, 7)
    for number in range(1, 7):
        await engine.report(f"r{number}", Result.RETRY, retry_after_s=600.0)
    assert engine.target().circuit is Circuit.DOWN

    await engine.report("r7")

    assert engine.target().circuit is Circuit.CLOSED
    await engine.sweep()
    assert engine.run(lambda ledger: ledger.in_flight(TARGET)) == 1
    await engine.sweep(10)
    assert engine.run(lambda ledger: ledger.in_flight(TARGET)) == 4


async def test_a_probe_that_fails_makes_the_next_one_later(engine: Engine) -> None:
    """section 6: back-off of probes; the circuit stays open."""
    await users(engine, 7)
    for number in range(1, 7):
        await engine.report(f"r{number}", Result.RETRY)
    before = engine.target().probe_wait_s

    await engine.report("r7", Result.RETRY)

    target = engine.target()
    assert (target.circuit, target.probe_wait_s) == (Circuit.DOWN, 2 * before)


async def test_a_refusal_shows_that_a_target_is_up_again(engine: Engine) -> None:
    """section 6: whatever the product says about one resource, it answers."""
    await users(engine, 1)
    engine.save_target(circuit=Circuit.DOWN, next_probe_at=NOON)

    await engine.report("r1", Result.REJECTED, reason=NO_ROLE)

    assert engine.target().circuit is Circuit.CLOSED


async def test_a_rate_limit_rests_the_whole_target(engine: Engine) -> None:
    """section 6, rate_limited: connector-wide wait, then slow start."""
    await users(engine, 2)
    await engine.report("r1", Result.RATE_LIMITED, retry_after_s=30.0)
    await engine.report("r2")
    await engine.post("late")
    await engine.sweep(29)
    assert len(engine.bus.sent) == 2

    await engine.sweep(1)

    assert len(engine.bus.sent) == 3, "slow start: one at first"


async def test_the_retry_settings_of_the_target_count(engine: Engine) -> None:
    """Bounds are settings of each target."""
    engine.set(retry=RetrySettings(poison_attempts_max=1))
    await users(engine, 1)

    await engine.report("r1", Result.POISON, reason=Reason(code="connector_bug", message="Raised."))

    assert engine.row("r1").state is State.DEAD


async def test_S6_adoption_follows_the_settings_of_the_target(engine: Engine) -> None:
    """S6: adopting existing accounts needs policy."""
    engine.set(adopt="never")
    await users(engine, 1)

    await engine.report("r1", Result.FOUND, sightings=sightings(user0="v1"))

    row = engine.row("r1")
    assert (row.state, row.account_id) == (State.DEAD, None)


async def test_outcomes_of_a_target_that_was_taken_out_are_still_folded(engine: Engine) -> None:
    """P1: what was accepted is settled, also when its target left the configuration."""
    await users(engine, 1)
    event = engine.event("r1")
    engine.targets = {"other": TargetSettings(connector="shelf")}

    await engine.outcomes.fold(outcome_of(event, Result.APPLIED))

    assert engine.row("r1").state is State.APPLIED


# ---- the dead-letter brake


async def refuse(engine: Engine, count: int, first: int = 1) -> None:
    """So many of the users that are out are refused for the same reason."""
    for number in range(first, first + count):
        await engine.report(f"r{number}", Result.REJECTED, reason=NO_ROLE)


async def test_one_cause_that_kills_nearly_everybody_is_the_targets_problem(engine: Engine) -> None:
    """section 6, dead-letter brake: >= 25 items and >= 80 %: the circuit opens, the items return to parked."""
    await users(engine, DEAD_ALIKE_MIN)
    await refuse(engine, DEAD_ALIKE_MIN - 1)
    assert engine.target().circuit is Circuit.CLOSED
    assert engine.row("r1").state is State.DEAD

    await refuse(engine, 1, DEAD_ALIKE_MIN)
    await engine.idle()

    target = engine.target()
    assert target.circuit is Circuit.DOWN
    assert f"{DEAD_ALIKE_MIN} resources" in target.circuit_reason
    rows = [engine.row(f"r{number}") for number in range(1, DEAD_ALIKE_MIN + 1)]
    assert {row.state for row in rows} == {State.QUEUED}
    assert {(row.settled_generation, row.generation) for row in rows} == {(0, 1)}
    await engine.sweep()
    assert len(engine.bus.sent) == DEAD_ALIKE_MIN, "parked behind the circuit"


async def test_I10_what_returned_to_the_queue_ends_in_one_outcome(engine: Engine) -> None:
    """I10: the event is open again, and closed by what becomes of it in the end."""
    await users(engine, DEAD_ALIKE_MIN)
    await refuse(engine, DEAD_ALIKE_MIN)
    await engine.sweep(PROBE_FIRST_S)
    probe = engine.bus.sent[-1].resource

    await engine.report(probe)

    row = engine.row(probe)
    assert (row.state, row.settled_generation) == (State.APPLIED, 1)
    assert engine.target().circuit is Circuit.CLOSED


async def test_a_cause_that_kills_few_of_many_stops_nobody(engine: Engine) -> None:
    """section 6, dead-letter brake: below 80 % of those tried it is the persons' own problem."""
    await users(engine, DEAD_ALIKE_MIN + 10)
    for number in range(1, 11):
        await engine.report(f"r{number}")

    await refuse(engine, DEAD_ALIKE_MIN, 11)

    assert engine.target().circuit is Circuit.CLOSED
    assert engine.row("r11").state is State.DEAD


async def test_a_cause_is_told_from_another_by_what_is_missing(engine: Engine) -> None:
    """section 6: one fingerprint; the same code about other names is another cause."""
    await users(engine, DEAD_ALIKE_MIN)
    for number in range(1, DEAD_ALIKE_MIN + 1):
        reason = msgspec.structs.replace(NO_ROLE, names=(f"Role{number % 2}",))
        await engine.report(f"r{number}", Result.REJECTED, reason=reason)

    assert engine.target().circuit is Circuit.CLOSED


async def test_T13_a_rename_that_returned_to_the_queue_is_found_by_its_new_name(engine: Engine) -> None:
    """T13: the wish is on its way again, so it is what filters find."""
    rows = [await engine.applied(f"old{number}") for number in range(DEAD_ALIKE_MIN)]
    engine.clock.time += 1_000
    for number, row in enumerate(rows):
        await engine.patch(row.id, userName=f"new{number}")
    await engine.idle()
    for row in rows:
        await engine.report(row.id, Result.REJECTED, reason=NO_ROLE)
    assert engine.row(rows[0].id).state is State.QUEUED

    answer = await engine.post("new0")

    assert answer.error is not None
    assert answer.error.status == 409
