"""The life of one resource, move by move, on the ledger in memory and on the real store.

T1-T13, I1-I10 and R1-R10 are the rules, invariants and rules of delivery that a test's name refers to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from gateway import lifecycle
from gateway.ledger import Keys
from gateway.lifecycle import (
    AUTH_PROBE_FIRST_S,
    AUTH_PROBE_MAX_S,
    CONFLICT_RECHECK_S,
    CONFLICTS_MAX,
    NEIGHBOUR_RECHECK_MAX_S,
    PROBE_FIRST_S,
    PROBE_MAX_S,
    QUIET_S,
    READ_BACK_S,
    RECHECK_MAX_S,
    SLOW_START_STEP_S,
    CircuitHit,
    Close,
    Died,
    InvariantBroken,
    Issue,
    Linked,
    MakeDirty,
    RateLimitHit,
    Row,
    TargetRow,
    acknowledge,
    begin,
    clear_trail,
    close_circuit,
    discard,
    make_dirty,
    move,
    open_circuit,
    probe_failed,
    read_again,
    ready,
    redrive,
    rest,
    window,
)
from gateway.patch import MemberChange
from gateway.visibility import base_document, is_refused, is_visible, keys_of, shown_document, shown_keys
from schemas.config import RetrySettings
from schemas.events import Reason, decode_event
from schemas.states import NEXT, Change, Circuit, Result, State
from schemas.topology import CALL_S, OWNED_S, SETTLE_S
from tests.gateway.bench import NOON, TARGET, Bench, named, outcome_of, sightings
from tests.simulation.books import MemoryBooks, SqlBooks


@pytest.fixture
def bench(ledger_store: MemoryBooks | SqlBooks) -> Bench:
    """The moves, one transaction each."""
    return Bench(ledger_store)


# ---- the table of moves


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_a_move_is_made_if_the_table_permits_it_and_refused_otherwise(before: State, after: State) -> None:
    """A14: a move that is not in the table is a broken invariant, in production, too."""
    row = Row(id="r1", target=TARGET, state=before)

    if after is before or after in NEXT[before]:
        move(row, after)
        assert row.state is after
    else:
        with pytest.raises(InvariantBroken, match=f"{before} -> {after}"):
            move(row, after)
        assert row.state is before


def test_every_state_can_be_left_and_reached() -> None:
    """No state is a trap, none is out of reach."""
    assert set(NEXT) == set(State)
    assert all(NEXT.values())
    assert {state for states in NEXT.values() for state in states} == set(State)


# ---- T1: a wish is accepted


def test_T1_I1_a_wish_is_the_next_generation_queued_with_its_event(bench: Bench) -> None:
    """T1, I1: one transaction records document, generation and event."""
    row = bench.wish("r1", "ada", title="Clerk")

    assert (row.state, row.generation, row.settled_generation, row.acknowledged) == (State.QUEUED, 1, 0, 1)
    assert row.created_at == row.modified_at == NOON
    assert bench.outcomes("r1") == {1: None}
    assert bench.row("r1") == row


def test_T1_a_wish_nobody_was_told_about_is_not_acknowledged_until_it_is(bench: Bench) -> None:
    """T1: while Entra waits, nothing is promised; `acknowledge` never promises more than was asked."""
    row = bench.wish("r1", acknowledged=False)
    assert row.acknowledged == 0

    acknowledge(row, 7)

    assert row.acknowledged == row.generation == 1


@pytest.mark.parametrize("state", [State.DEAD, State.REJECTED, State.DETACHED])
def test_T1_after_an_end_a_new_wish_starts_to_count_anew(bench: Bench, state: State) -> None:
    """T1: from dead, rejected and detached attempts begin at zero and nothing delays the new wish."""
    bench.wish("r1")
    row = bench.row("r1")
    row.state, row.settled_generation, row.attempt, row.poisoned = state, 1, 9, 4
    row.first_failed_at, row.next_at = NOON - 9, NOON + 900
    bench.save(row)

    row = bench.wish("r1", title="Chief")

    assert (row.state, row.attempt, row.poisoned, row.first_failed_at, row.next_at) == (State.QUEUED, 0, 0, None, 0.0)


def test_T1_a_running_rate_limit_wait_outlasts_a_new_wish(bench: Bench) -> None:
    """T1: a row that waits because the product asked for a rest keeps its time."""
    bench.wish("r1")
    bench.settle(bench.send("r1"), Result.RATE_LIMITED, retry_after_s=40.0)

    row = bench.wish("r1", title="Chief")

    assert (row.state, row.generation, row.next_at) == (State.RETRYING, 2, NOON + 40)
    assert not ready(row, NOON + 39)
    assert ready(row, NOON + 40)


def test_T1_a_wish_during_a_delivery_waits_for_its_outcome(bench: Bench) -> None:
    """T1, A2: the delivery in flight goes on; nothing is sent beside it."""
    bench.wish("r1")
    bench.send("r1")

    row = bench.wish("r1", title="Chief")

    assert (row.state, row.generation, row.in_flight, row.fence) == (State.DELIVERING, 2, 1, 1)
    assert not ready(row, NOON)


def test_T1_a_wish_for_a_blocked_row_is_tried_at_once(bench: Bench) -> None:
    """Blocked leaves by what it waits for, or by a new wish that may not need it."""
    bench.wish("r1", title="Wizard")
    bench.settle(bench.send("r1"), Result.BLOCKED, blocked_on="role:Wizard", retry_after_s=500.0)

    row = bench.wish("r1", title="Clerk")

    assert (row.state, row.blocked_on, row.next_at) == (State.QUEUED, None, 0.0)


def test_T1_R9_a_wish_for_a_blocked_row_in_doubt_keeps_the_rest_of_the_product(bench: Bench) -> None:
    """R9: after an ambiguous end the product gets its time, whatever Entra asks meanwhile."""
    bench.wish("r1")
    bench.settle(bench.send("r1"), Result.BLOCKED, blocked_on="approval", retry_after_s=500.0, ambiguous=True)

    row = bench.wish("r1", title="Clerk")

    assert row.next_at == NOON + 500


# ---- T2: dispatch


def test_T2_a_delivery_has_the_next_fence_and_the_whole_wish(bench: Bench) -> None:
    """T2: fence + 1; the event carries document, generation and identities, never a difference."""
    bench.wish("r1", "ada", title="Clerk")

    event = bench.send("r1")

    row = bench.row("r1")
    assert (row.state, row.fence, row.in_flight, row.published, row.heard_at) == (State.DELIVERING, 1, 1, False, NOON)
    assert (event.fence, event.generation, event.change, event.target) == (1, 1, Change.CREATE, TARGET)
    assert msgspec.json.decode(event.document) == {"userName": "ada", "title": "Clerk"}
    assert event.identities == event.lookup == (named("ada"),)
    assert (event.look, event.read_only, event.watch, event.strays) == (False, False, (), ())


@pytest.mark.parametrize("state", [State.HELD, State.DEAD, State.REJECTED, State.DETACHED, State.APPLIED, State.GONE])
def test_T2_a_row_at_rest_is_not_sent(state: State) -> None:
    """T2: held, dead and rejected rows wait for a person or a new wish; applied and gone ones for nothing."""
    assert not ready(Row(id="r1", target=TARGET, state=state, generation=1), NOON)


def test_T2_a_row_is_sent_when_it_is_due_and_not_before() -> None:
    """T2: due, and a wish newer than what is settled, or in doubt."""
    row = Row(id="r1", target=TARGET, state=State.RETRYING, generation=1, next_at=NOON)

    assert not ready(row, NOON - 0.1)
    assert ready(row, NOON)
    row.settled_generation = 1
    assert not ready(row, NOON)
    row.dirty = True
    assert ready(row, NOON)
    row.in_flight = 1
    assert not ready(row, NOON)


def test_T2_I3_a_second_delivery_is_not_sent_beside_the_first(bench: Bench) -> None:
    """I3: at most one event of a resource is in flight."""
    bench.wish("r1")
    bench.send("r1")
    bench.wish("r1", title="Chief")

    assert not ready(bench.row("r1"), NOON + 999)
    assert bench.run(lambda ledger: ledger.due(TARGET, NOON + 999, 10)) == []
    assert bench.run(lambda ledger: ledger.in_flight(TARGET)) == 1


def test_due_rows_come_by_priority_then_by_time(bench: Bench) -> None:
    """Deprovision, then create, then update, then repair."""
    for name in ("update", "leaver", "repair", "gone"):
        bench.applied(name)
    bench.wish("update", title="Chief")
    bench.wish("create")
    bench.wish("early")
    bench.save(msgspec.structs.replace(bench.row("early"), next_at=-5.0))
    bench.wish("leaver", change=Change.DEACTIVATE)
    bench.wish("gone", change=Change.DELETE)
    row = bench.row("repair")
    make_dirty(row, NOON)
    bench.save(row)

    order = [row.id for row in bench.run(lambda ledger: list(ledger.due(TARGET, NOON, 10)))]

    assert order == ["leaver", "gone", "early", "create", "update", "repair"]
    assert [row.id for row in bench.run(lambda ledger: list(ledger.due(TARGET, NOON, 2)))] == ["leaver", "gone"]


# ---- T4: look first


@pytest.mark.parametrize("mark", ["dirty", "ambiguous"])
def test_T4_a_row_in_doubt_is_looked_at_before_it_is_written(bench: Bench, mark: str) -> None:
    """T4: ambiguous or dirty means: read the vendor first."""
    bench.wish("r1")
    bench.save(msgspec.structs.replace(bench.row("r1"), **{mark: True}))

    event = bench.send("r1")

    assert event.look
    assert bench.row("r1").looked


@pytest.mark.parametrize("how", ["looked", "redelivered"])
def test_T4_after_anything_ambiguous_the_product_is_read_once_more(bench: Bench, how: str) -> None:
    """T4: read back once more after 5 min, as a repair, and only once."""
    bench.wish("r1")
    if how == "looked":
        bench.save(msgspec.structs.replace(bench.row("r1"), ambiguous=True))
    row = bench.settle(bench.send("r1"), delivery=2 if how == "redelivered" else 1)
    assert (row.state, row.read_back_at) == (State.APPLIED, NOON + READ_BACK_S)
    assert bench.run(lambda ledger: list(ledger.read_backs(NOON + READ_BACK_S - 1, 10))) == []

    bench.now += READ_BACK_S
    (row,) = bench.run(lambda ledger: list(ledger.read_backs(bench.now, 10)))
    read_again(row)
    bench.save(row)
    assert (row.state, row.dirty, row.read_back_at, row.priority) == (State.QUEUED, True, None, 3)
    event = bench.send("r1")
    assert event.look
    row = bench.settle(event)

    assert (row.state, row.dirty, row.ambiguous, row.read_back_at) == (State.APPLIED, False, False, None)


def test_T4_a_read_back_is_left_out_while_something_else_is_on_its_way(bench: Bench) -> None:
    """T4: a newer delivery looks anyway."""
    bench.applied("r1")
    bench.wish("r1", title="Chief")
    bench.send("r1")
    row = bench.row("r1")
    row.read_back_at = NOON

    read_again(row)

    assert (row.read_back_at, row.dirty, row.state) == (None, False, State.DELIVERING)


# ---- T5, T6: settle


def test_T5_I5_I10_an_applied_outcome_settles_the_generation(bench: Bench) -> None:
    """T5, I5, I10: settled = asked, the account is linked, the event has its one outcome."""
    bench.wish("r1", "ada")
    event = bench.send("r1")

    row = bench.settle(event, account_id="v7", account_keys=("ada@contoso.example",))

    assert (row.state, row.settled_generation, row.generation) == (State.APPLIED, 1, 1)
    assert (row.account_id, row.account_keys, row.settled_identities) == (
        "v7",
        ("ada@contoso.example",),
        (named("ada"),),
    )
    assert row.settled_document == row.document
    assert (row.in_flight, row.body, row.reason, row.settled_at) == (None, None, None, NOON)
    assert bench.effects == [Close(1, "applied")]
    assert bench.outcomes("r1") == {1: "applied"}


def test_T5_I3_I4_an_outcome_of_an_earlier_fence_settles_nothing(bench: Bench) -> None:
    """T5, I3, I4: it only leaves doubt, so that the next delivery reads first."""
    bench.wish("r1", "ada")
    stale = bench.send("r1")
    bench.lose("r1")
    bench.now += QUIET_S
    current = bench.send("r1")

    row = bench.settle(stale)

    assert (row.state, row.in_flight, row.settled_generation, row.dirty) == (State.DELIVERING, 1, 0, True)
    assert bench.outcomes("r1") == {1: None}
    row = bench.settle(current)
    assert (row.state, row.settled_generation) == (State.QUEUED, 1), (
        "the doubt outlives the delivery that did not carry it"
    )
    assert row.dirty


def test_T5_an_outcome_that_was_settled_by_another_delivery_counts_no_more(bench: Bench) -> None:
    """R6: after a go only that delivery may settle; the first one's report is a doubt."""
    bench.wish("r1")
    event = bench.send("r1")
    row = bench.row("r1")
    assert begin(row, event.fence, 2, NOON) is True
    bench.save(row)

    row = bench.settle(event, delivery=1)
    assert (row.state, row.dirty) == (State.DELIVERING, True)
    row = bench.settle(event, delivery=2)

    assert row.settled_generation == 1


def test_T6_a_newer_wish_is_queued_in_the_settle_of_the_older_one(bench: Bench) -> None:
    """T6: generation > settled generation: queued again at once."""
    bench.wish("r1", title="Clerk")
    event = bench.send("r1")
    bench.wish("r1", title="Chief")

    row = bench.settle(event)

    assert (row.state, row.settled_generation, row.generation) == (State.QUEUED, 1, 2)
    assert ready(row, NOON)
    assert msgspec.json.decode(row.settled_document or b"")["title"] == "Clerk"


def test_A2_I10_ten_wishes_during_an_outage_become_one_delivery(bench: Bench) -> None:
    """A2, I10: the newest generation is sent; each older one ends as superseded, the newest as applied."""
    bench.applied("r1")
    for number in range(10):
        bench.wish("r1", title=str(number))

    event = bench.send("r1")
    bench.settle(event)

    assert (event.generation, msgspec.json.decode(event.document)["title"]) == (11, "9")
    assert bench.outcomes("r1") == {1: "applied", **dict.fromkeys(range(2, 11), "superseded"), 11: "applied"}


def test_I2_generations_have_no_gaps(bench: Bench) -> None:
    """I2: every accepted wish is one more, whatever becomes of it."""
    bench.applied("r1")
    bench.wish("r1", title="1")
    bench.refuse(bench.send("r1"))
    bench.wish("r1", title="2")
    bench.settle(bench.send("r1"))
    bench.wish("r1", change=Change.DELETE)
    bench.settle(bench.send("r1"))

    assert bench.outcomes("r1") == {1: "applied", 2: "rejected", 3: "applied", 4: "applied"}
    assert bench.row("r1").state is State.GONE


def test_T7_no_clock_decides_who_owns_a_delivery(bench: Bench) -> None:
    """T7: the fence does; a clock that was set back by a day changes nothing."""
    bench.wish("r1")
    event = bench.send("r1")
    bench.now -= 86_400

    row = bench.settle(event)

    assert (row.state, row.settled_generation) == (State.APPLIED, 1)


# ---- T8, T9: deletions


def test_T8_a_deletion_is_by_the_account_it_owns(bench: Bench) -> None:
    """T8: with a link no name is looked for at all."""
    bench.applied("r1", "ada", account_id="v7")
    bench.wish("r1", change=Change.DELETE)

    event = bench.send("r1")

    assert (event.deleted, event.account_id, event.lookup) == (True, "v7", ())
    row = bench.settle(event)
    assert (row.state, row.account_id, row.settled_identities, row.settled_document) == (State.GONE, None, (), None)


def test_T8_I9_a_deletion_looks_for_no_name_that_a_younger_resource_wishes(bench: Bench) -> None:
    """T8, I9: by identity only if no other resource with that identity exists, in any state."""
    bench.wish("r1", "ada")
    bench.send("r1")
    bench.lose("r1")
    bench.wish("r1", change=Change.DELETE)
    bench.save(
        msgspec.structs.replace(bench.row("r1"), next_at=0.0, doubts=lifecycle.Doubts(remembered={named("ada")}))
    )
    bench.wish("r2", "ada")

    event = bench.send("r1")

    assert (event.account_id, event.lookup) == (None, ())
    assert event.watch == (named("ada"),)


def test_T8_I9_a_deletion_that_finds_the_account_of_another_is_finished(bench: Bench) -> None:
    """T8, I9: a tombstone never deletes what belongs to a live resource; that one is looked at again."""
    bench.wish("r1", "ada")
    bench.send("r1")
    bench.lose("r1")
    bench.now += QUIET_S
    bench.applied("r2", "bob", account_id="v7")
    bench.wish("r1", change=Change.DELETE)
    event = bench.send("r1")

    row = bench.settle(event, Result.FOUND, sightings=sightings(ada="v7"))

    assert (row.state, row.account_id) == (State.GONE, None)
    assert bench.row("r2").dirty
    assert bench.row("r2").account_id == "v7"


def test_R4_a_deletion_that_left_an_account_says_so_on_its_row(bench: Bench) -> None:
    """R4: what a person should look at is on the resource as long as nobody has."""
    bench.wish("r1", "ada")
    bench.send("r1")
    bench.lose("r1")
    bench.now += QUIET_S
    bench.wish("r1", change=Change.DELETE)
    row = bench.row("r1")
    row.doubts.written.clear()
    bench.save(row)

    row = bench.settle(bench.send("r1"), Result.FOUND, sightings=sightings(ada="v7"))

    assert "v7" in (row.issue or "")


def test_R4_a_deletion_leaves_an_account_it_never_made(bench: Bench) -> None:
    """R4: found, not written by us: left alone, and a person is told."""
    bench.wish("r1", "ada")
    bench.send("r1")
    bench.lose("r1")
    bench.now += QUIET_S
    bench.wish("r1", change=Change.DELETE)
    row = bench.row("r1")
    row.doubts.written.clear()
    bench.save(row)

    row = bench.settle(bench.send("r1"), Result.FOUND, sightings=sightings(ada="v7"))

    assert row.state is State.GONE
    assert any(isinstance(effect, Issue) and effect.code == "account_left" for effect in bench.effects)
    assert "issue.account_left" in bench.audits()


def test_T9_what_was_never_delivered_is_gone_without_a_call(bench: Bench) -> None:
    """T9: no delivery, no doubt: nothing can be at the product."""
    bench.wish("r1")
    bench.wish("r1", change=Change.DELETE)

    assert bench.dispatch("r1") is None

    row = bench.row("r1")
    assert (row.state, row.fence, row.settled_generation, row.acknowledged) == (State.GONE, 0, 2, 2)
    assert bench.outcomes("r1") == {1: "superseded", 2: "noop"}


def test_T9_what_was_certainly_refused_is_gone_without_a_call(bench: Bench) -> None:
    """T9: every delivery was refused for certain, so there is no account."""
    bench.wish("r1")
    bench.refuse(bench.send("r1"))
    bench.wish("r1", change=Change.DELETE)

    assert bench.dispatch("r1") is None
    assert bench.row("r1").state is State.GONE


def test_T9_after_a_lost_delivery_a_deletion_is_sent(bench: Bench) -> None:
    """T9: a delivery that may have acted has to be undone."""
    bench.wish("r1", "ada")
    bench.send("r1")
    bench.lose("r1")
    bench.now += QUIET_S
    bench.wish("r1", change=Change.DELETE)

    event = bench.send("r1")

    assert (event.deleted, event.look, event.lookup) == (True, True, (named("ada"),))


# ---- R1: lost deliveries


def test_R1_a_lost_delivery_is_sent_again_after_everything_old_has_come_to_rest(bench: Bench) -> None:
    """R1: queued as ambiguous; the rest covers ownership, the longest call and the product's own time."""
    bench.wish("r1")
    bench.send("r1")

    row = bench.lose("r1")

    assert (row.state, row.in_flight, row.ambiguous) == (State.QUEUED, None, True)
    assert row.next_at == NOON + OWNED_S + CALL_S + SETTLE_S
    bench.now = row.next_at
    event = bench.send("r1")
    assert (event.look, event.fence, event.generation) == (True, 2, 1)


def test_R1_a_lost_look_at_a_refused_row_is_made_again(bench: Bench) -> None:
    """R1: the refusal stays, its doubt, too."""
    bench.wish("r1", acknowledged=False)
    bench.refuse(bench.send("r1"), ambiguous=True)
    bench.now += SETTLE_S
    assert bench.send("r1").read_only

    row = bench.lose("r1")

    assert (row.state, row.dirty, row.in_flight) == (State.REJECTED, True, None)


# ---- R2: an identity waits for every holder


def test_R2_an_identity_waits_for_the_resource_that_holds_it(bench: Bench) -> None:
    """R2: also for a deleted one, until its deletion is settled; then it passes on."""
    bench.applied("r1", "ada")
    bench.wish("r1", change=Change.DELETE)
    bench.wish("r2", "ada")

    assert bench.dispatch("r2") is None
    row = bench.row("r2")
    assert (row.state, row.blocked_on) == (State.BLOCKED, "identity of r1")
    assert row.reason is not None
    assert row.reason.code == "identity_held"

    row = bench.settle(bench.send("r1"))
    assert row.state is State.GONE
    assert row.held() == {named("ada")}, "its message may still be in the stream"
    clear_trail(row, row.fence)
    bench.save(row)
    bench.now += 60
    assert bench.send("r2").identities == (named("ada"),)


def test_R2_an_identity_waits_for_a_younger_holder_as_well(bench: Bench) -> None:
    """R2: age does not matter; an unsettled delivery holds what it may have created."""
    bench.applied("r1", "ada")
    bench.wish("r2", "bob")
    bench.send("r2")
    bench.wish("r1", "bob")

    assert bench.dispatch("r1") is None
    assert bench.row("r1").blocked_on == "identity of r2"


def test_R2_a_waiting_row_looks_again_soon_and_never_later_than_half_a_minute(bench: Bench) -> None:
    """R2, I6: a row that waits for a neighbour has a time and a name."""
    bench.applied("r1", "ada")
    bench.wish("r2", "ada")
    waits = []
    for _ in range(9):
        assert bench.dispatch("r2") is None
        row = bench.row("r2")
        waits.append(row.next_at - bench.now)
        assert row.blocked_on
        bench.now = row.next_at

    assert waits[:4] == [1, 1, 2, 4]
    assert waits[-1] == max(waits) == NEIGHBOUR_RECHECK_MAX_S


def test_R2_a_blocked_row_of_uncertain_identity_is_read_first(bench: Bench) -> None:
    """R2: a read-only delivery finds out what it is called, so that nobody waits for a name it does not have."""
    bench.applied("r1", "ada")
    bench.wish("r1", "bob")
    bench.send("r1")
    bench.lose("r1")
    bench.now += QUIET_S
    bench.applied("r2", "eve")
    bench.wish("r2", "bob")
    assert bench.dispatch("r2") is None
    bench.wish("r1", "eve")

    event = bench.send("r1")

    assert event.read_only
    row = bench.settle(event, Result.SEEN, sightings=sightings(ada="a-r1"))
    assert (row.settled_identities, row.settled_generation) == ((named("ada"),), 1)
    assert row.state is State.QUEUED
    assert named("bob") not in row.doubts.possible


def test_R2_a_trail_is_cleared_only_for_the_delivery_that_was_asked_about(bench: Bench) -> None:
    """R2: names pass on when no message up to that fence is in the stream; a newer delivery keeps them."""
    bench.applied("r1", "ada")
    bench.wish("r1", "bob")
    bench.settle(bench.send("r1"))
    row = bench.row("r1")
    assert row.held() == {named("ada"), named("bob")}

    clear_trail(row, row.fence - 1)
    assert named("ada") in row.held()
    clear_trail(row, row.fence)

    assert row.held() == {named("bob")}


def test_R2_trails_are_looked_at_when_somebody_waits_for_them(bench: Bench) -> None:
    """R2: the stream is asked only about names another live resource wishes."""
    bench.applied("r1", "ada")
    bench.wish("r1", "bob")
    bench.settle(bench.send("r1"))
    assert bench.run(lambda ledger: list(ledger.trails(10))) == []

    bench.wish("r2", "ada")

    assert [row.id for row in bench.run(lambda ledger: list(ledger.trails(10)))] == ["r1"]


def test_I11_names_accounts_and_holders_of_other_targets_are_no_concern(bench: Bench) -> None:
    """I11: everything a move asks about others ends at its own target."""
    bench.applied("r1", "ada", account_id="v1")
    bench.wish("other", "ada", target="elsewhere")

    other = bench.row("other")
    asked = bench.run(
        lambda ledger: (
            ledger.holders(other, (named("ada"),)),
            ledger.wished(other, named("ada")),
            ledger.owner(other, "v1"),
        )
    )

    assert asked == ([], False, None)
    row = bench.settle(bench.send("other"), account_id="v1")
    assert (row.state, row.account_id) == (State.APPLIED, "v1")


# ---- T10: renames in a circle


def _circle(bench: Bench, *, intermediate: bool) -> None:
    bench.applied("r1", "ada")
    bench.applied("r2", "bob")
    if intermediate:
        bench.wish("r1", "free")
    bench.wish("r1", "bob")
    bench.wish("r2", "ada")


def test_T10_a_member_of_a_circle_with_a_free_intermediate_name_goes_first(bench: Bench) -> None:
    """T10, R2: its older generation is sent, which sets the name free that the other one waits for."""
    _circle(bench, intermediate=True)

    event = bench.send("r1")

    assert (event.identities, event.generation) == ((named("free"),), 2)
    row = bench.settle(event)
    assert (row.state, row.settled_generation, row.generation) == (State.QUEUED, 2, 3)
    assert bench.outcomes("r1") == {1: "applied", 2: "applied", 3: None}


def test_T10_the_other_members_let_it_go_first(bench: Bench) -> None:
    """T10: who has no free name of its own waits for the one that has."""
    _circle(bench, intermediate=True)

    assert bench.dispatch("r2") is None
    assert bench.row("r2").state is State.BLOCKED


def test_T10_a_circle_without_a_free_name_is_for_a_person(bench: Bench) -> None:
    """T10: dead with `identity_cycle`; the others' way is free then."""
    _circle(bench, intermediate=False)

    assert bench.dispatch("r1") is None

    row = bench.row("r1")
    assert row.state is State.DEAD
    assert row.reason is not None
    assert (row.reason.code, row.reason.scim_type) == ("identity_cycle", "uniqueness")
    assert any(isinstance(effect, Died) for effect in bench.effects)
    assert bench.outcomes("r1") == {1: "applied", 2: "rejected"}


# ---- R3: every identity in doubt is carried


def test_R3_an_event_carries_every_identity_an_unsettled_delivery_may_have_created(bench: Bench) -> None:
    """R3: renamed twice while deliveries were lost: all three names are looked up."""
    for name in ("ada", "bob", "eve"):
        bench.wish("r1", name)
        bench.now += QUIET_S
        event = bench.send("r1")
        bench.lose("r1")

    assert event.identities == (named("eve"),)
    assert event.lookup == (named("ada"), named("bob"), named("eve"))
    assert bench.row("r1").held() == {named("ada"), named("bob"), named("eve")}


def test_R3_identities_others_hold_by_now_are_only_watched(bench: Bench) -> None:
    """R3: looked at and reported, never touched."""
    bench.wish("r1", "bob")
    row = bench.row("r1")
    row.ambiguous, row.doubts.remembered = True, {named("ada")}
    bench.save(row)
    bench.applied("r2", "ada")

    event = bench.send("r1")

    assert (event.lookup, event.watch) == ((named("bob"),), (named("ada"),))


def test_R3_a_second_account_is_reported_to_a_person_and_kept(bench: Bench) -> None:
    """R3: nobody owns it, nobody touches it; the resource is applied all the same."""
    bench.wish("r1", "ada")
    bench.send("r1")
    bench.lose("r1")
    bench.now += QUIET_S

    row = bench.settle(bench.send("r1"), account_id="v1", watched=sightings(old="v9"))

    assert row.state is State.APPLIED
    assert "v9" in (row.issue or "")
    assert "issue.second_account" in bench.audits()


# ---- R4: found accounts are linked first


def test_R4_a_found_account_is_linked_and_the_event_sent_again(bench: Bench) -> None:
    """R4: never written on before the link; the link is audited."""
    bench.wish("r1", "ada")

    row = bench.settle(bench.send("r1"), Result.FOUND, sightings=sightings(ada="v7"))

    assert (row.state, row.account_id, row.settled_generation) == (State.QUEUED, "v7", 0)
    assert Linked("v7") in bench.effects
    assert bench.audits() == ["account.linked"]
    event = bench.send("r1")
    assert (event.account_id, event.fence, event.look) == ("v7", 2, True)
    assert bench.settle(event).state is State.APPLIED


def test_R4_I8_an_account_of_another_row_is_never_linked_twice(bench: Bench) -> None:
    """R4, I8: both rows become uncertain; an accepted wish waits for the owner, by name."""
    bench.applied("r1", "ada", account_id="v7")
    bench.wish("r2", "bob")

    row = bench.settle(bench.send("r2"), Result.FOUND, sightings=sightings(bob="v7"))

    assert (row.state, row.account_id, row.blocked_on) == (State.BLOCKED, None, "account of r1")
    assert MakeDirty("r1", named("bob")) in bench.effects
    assert (bench.row("r1").dirty, bench.row("r1").state) == (True, State.QUEUED)


def test_R4_while_entra_waits_an_account_of_another_row_is_a_refusal(bench: Bench) -> None:
    """section 6, conflict: the reason names the other user and the remedy."""
    bench.applied("r1", "ada", account_id="v7")
    bench.wish("r2", "bob", acknowledged=False)

    row = bench.settle(bench.send("r2"), Result.FOUND, sightings=sightings(bob="v7"))

    assert row.state is State.REJECTED
    assert row.reason is not None
    assert (row.reason.code, row.reason.scim_type) == ("account_of_another", "uniqueness")
    assert "r1" in row.reason.message


def test_R4_a_target_that_must_not_adopt_refuses_what_was_there_before(bench: Bench) -> None:
    """S6: adopting needs the target's policy."""
    bench.adopt = False
    bench.wish("r1", "ada")

    row = bench.settle(bench.send("r1"), Result.FOUND, sightings=sightings(ada="v7"))

    assert (row.state, row.account_id) == (State.DEAD, None)
    assert row.reason is not None
    assert row.reason.code == "account_exists"


def test_I8_an_applied_outcome_that_names_anothers_account_settles_nothing(bench: Bench) -> None:
    """I8: one account, one live binding; both rows are looked at."""
    bench.applied("r1", "ada", account_id="v7")
    bench.wish("r2", "bob")

    row = bench.settle(bench.send("r2"), account_id="v7")

    assert (row.state, row.settled_generation, row.account_id, row.ambiguous) == (State.BLOCKED, 0, None, True)
    assert bench.row("r1").dirty


# ---- R5: same fence, same bytes


def test_R5_nothing_changes_the_bytes_of_a_delivery_that_is_out(bench: Bench) -> None:
    """R5: a new wish, a go and a doubt leave the stored event as it was."""
    bench.wish("r1", title="Clerk")
    event = bench.send("r1")
    body = bench.row("r1").body

    bench.wish("r1", title="Chief")
    row = bench.row("r1")
    begin(row, event.fence, 2, NOON)
    make_dirty(row, NOON)
    bench.save(row)

    assert bench.row("r1").body == body
    assert decode_event(body or b"").message_id == f"{event.id}-1"


# ---- R6: everything that is not fresh asks


def test_R6_a_delivery_that_is_not_current_is_dropped(bench: Bench) -> None:
    """R6: another fence, or nothing in flight: False."""
    bench.wish("r1")
    event = bench.send("r1")

    assert begin(bench.row("r1"), event.fence + 1, 1, NOON) is False
    row = bench.settle(event)
    assert begin(row, event.fence, 2, NOON) is False


def test_R6_a_go_makes_this_the_only_delivery_that_may_settle(bench: Bench) -> None:
    """R6: an earlier delivery is told nothing (its message is in other hands)."""
    bench.wish("r1")
    event = bench.send("r1")
    row = bench.row("r1")
    bench.now += 5

    assert begin(row, event.fence, 2, bench.now) is True
    assert (row.delivery, row.heard_at) == (2, bench.now)
    assert begin(row, event.fence, 1, bench.now) is None
    assert begin(row, event.fence, 2, bench.now) is True, "asking twice is no harm: the answer may have been lost"


# ---- R8: reports of deliveries that gave up


def test_R8_an_account_nobody_has_becomes_the_link(bench: Bench) -> None:
    """R8: `gave_up` settles nothing; the account it made is ours."""
    bench.wish("r1", "ada")
    event = bench.send("r1")

    row = bench.settle(event, Result.GAVE_UP, account_id="v7", created=True)

    assert (row.state, row.in_flight, row.account_id, row.dirty) == (State.DELIVERING, 1, "v7", True)
    assert bench.effects == []


def test_R8_a_second_account_of_the_same_row_is_a_stray_that_is_removed(bench: Bench) -> None:
    """R8: the row has a link already; the other account is carried by the next event, and done when that is settled."""
    bench.applied("r1", "ada", account_id="v1")
    stale = outcome_of(bench_event(bench, "r1"), Result.GAVE_UP, account_id="v2", created=True, fence=0)

    row = bench.fold(stale)
    assert row.doubts.strays == {"v2": named("ada")}
    event = bench.send("r1")
    assert event.strays == ("v2",)
    row = bench.settle(event)

    assert (row.state, row.doubts.strays) == (State.APPLIED, {})


def bench_event(bench: Bench, resource: str) -> Any:
    """An event of a delivery of this row as it was asked last."""
    row = bench.row(resource)
    return msgspec.structs.replace(
        decode_event(
            msgspec.json.encode(
                {
                    "id": row.event_id,
                    "target": row.target,
                    "connector": "shelf",
                    "kind": row.kind,
                    "resource": row.id,
                    "generation": row.generation,
                    "fence": row.fence,
                    "change": row.change,
                }
            )
        ),
        identities=row.identities,
    )


def test_R8_I8_an_account_of_another_row_is_not_taken_from_a_report(bench: Bench) -> None:
    """R8, I8: somebody has it: only doubt is left."""
    bench.applied("r1", "ada", account_id="v7")
    bench.wish("r2", "bob")
    event = bench.send("r2")

    row = bench.settle(event, Result.GAVE_UP, account_id="v7", created=True)

    assert (row.account_id, row.doubts.strays, row.dirty) == (None, {}, True)


def test_R8_a_report_about_a_resting_row_brings_it_back_to_be_looked_at(bench: Bench) -> None:
    """R8: applied, then a late report: queued as a repair."""
    row = bench.applied("r1", "ada")
    late = outcome_of(bench_event(bench, "r1"), Result.GAVE_UP, fence=row.fence)

    row = bench.fold(late)

    assert (row.state, row.dirty, row.priority) == (State.QUEUED, True, 3)
    assert ready(row, NOON)


# ---- R9: doubt


def test_R9_doubt_is_cleared_only_by_the_delivery_that_carried_it(bench: Bench) -> None:
    """R9: made dirty while a delivery is out: that delivery's settle leaves it, the next one's clears it."""
    bench.wish("r1", "ada")
    event = bench.send("r1")
    row = bench.row("r1")
    make_dirty(row, NOON, named("old"))
    bench.save(row)

    row = bench.settle(event)
    assert (row.state, row.dirty) == (State.QUEUED, True)
    event = bench.send("r1")
    assert event.look
    assert named("old") in event.lookup
    row = bench.settle(event)

    assert (row.state, row.dirty, row.ambiguous) == (State.APPLIED, False, False)


def test_R9_doubt_outlives_a_look_that_failed(bench: Bench) -> None:
    """R9: the delivery that carried it did not settle it."""
    bench.wish("r1")
    bench.save(msgspec.structs.replace(bench.row("r1"), dirty=True))

    row = bench.settle(bench.send("r1"), Result.RETRY)

    assert (row.state, row.dirty, row.ambiguous) == (State.RETRYING, True, True)


@pytest.mark.parametrize("result", [Result.RETRY, Result.RATE_LIMITED, Result.MISCONFIGURED, Result.POISON])
def test_R9_after_an_ambiguous_end_the_product_is_left_alone_for_a_while(bench: Bench, result: Result) -> None:
    """R9: 15 s at least, however short the wait would be otherwise."""
    bench.jitter = 0.0
    bench.wish("r1")

    row = bench.settle(bench.send("r1"), result, ambiguous=True)

    assert row.ambiguous
    assert row.next_at >= NOON + SETTLE_S


def test_R9_an_ambiguous_refusal_is_looked_into_without_writing(bench: Bench) -> None:
    """R9, R2: refused, but something may be there: a read-only delivery makes its names certain; the refusal stays."""
    bench.wish("r1", "ada")
    row = bench.refuse(bench.send("r1"), ambiguous=True)
    assert (row.state, row.dirty, row.next_at) == (State.DEAD, True, NOON + SETTLE_S)
    assert row.held() == {named("ada")}
    assert not ready(row, NOON)

    bench.now += SETTLE_S
    event = bench.send("r1")
    assert event.read_only
    assert bench.row("r1").state is State.DEAD
    row = bench.settle(event, Result.SEEN)

    assert (row.state, row.dirty, row.ambiguous) == (State.DEAD, False, False)
    assert not row.doubts.possible


def test_R9_a_look_that_fails_is_made_again_at_growing_intervals(bench: Bench) -> None:
    """R9, I6: what a refused row left behind is never forgotten, and nobody is asked in a loop."""
    bench.wish("r1", "ada")
    bench.refuse(bench.send("r1"), ambiguous=True)
    waits = []
    for _ in range(9):
        bench.now = bench.row("r1").next_at
        row = bench.settle(bench.send("r1"), Result.RETRY)
        assert (row.state, row.dirty) == (State.DEAD, True)
        waits.append(row.next_at - bench.now)

    assert waits == sorted(waits)
    assert waits[0] == SETTLE_S * 2
    assert waits[-1] == RECHECK_MAX_S


def test_R10_after_a_loss_of_the_bus_what_settled_lately_is_read_back(bench: Bench) -> None:
    """R10: settled in the last five minutes: read once more; everything in flight is looked for at once (R1)."""
    bench.applied("old")
    bench.now += 1_000
    bench.applied("new")
    bench.wish("flying")
    bench.send("flying")
    bench.run(lambda ledger: ledger.mark_published("flying", 1))

    bench.run(lambda ledger: ledger.expect_bus_loss(bench.now, bench.now - READ_BACK_S))

    assert bench.row("old").read_back_at is None
    assert bench.row("new").read_back_at == bench.now + 60
    assert [row.id for row in bench.run(lambda ledger: list(ledger.unheard(bench.now - 20, 10)))] == ["flying"]


# ---- transient failures


def test_retries_wait_twice_as_long_each_time_up_to_a_quarter_of_an_hour(bench: Bench) -> None:
    """section 6, transient: 2 s doubling to 15 min."""
    bench.wish("r1")
    waits = []
    for _ in range(12):
        row = bench.settle(bench.send("r1"), Result.RETRY)
        assert row.state is State.RETRYING
        waits.append(row.next_at - bench.now)
        bench.now = row.next_at

    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]
    assert row.attempt == 12


@pytest.mark.parametrize("jitter", [0.0, 0.25, 0.99])
def test_retries_are_spread_over_the_whole_interval(bench: Bench, jitter: float) -> None:
    """section 6: full jitter."""
    bench.jitter = jitter
    bench.wish("r1")

    row = bench.settle(bench.send("r1"), Result.RETRY)

    assert row.next_at == pytest.approx(NOON + 2 * jitter)


def test_a_time_the_product_named_is_respected(bench: Bench) -> None:
    """section 6: Retry-After is a lower bound."""
    bench.wish("r1")

    row = bench.settle(bench.send("r1"), Result.RETRY, retry_after_s=120.0)

    assert row.next_at == NOON + 120


def test_after_three_days_of_failures_a_person_is_asked(bench: Bench) -> None:
    """section 6: up to 72 h, then dead (exhausted), with the last reason."""
    bench.wish("r1")
    reason = Reason(code="unavailable", message="The product answered 503.")
    row = bench.settle(bench.send("r1"), Result.RETRY, reason=reason)
    bench.now += 72 * 3600
    row = bench.settle(bench.send("r1"), Result.RETRY, reason=reason)
    assert row.state is State.RETRYING

    bench.now = row.next_at + 1
    row = bench.settle(bench.send("r1"), Result.RETRY, reason=reason)

    assert row.state is State.DEAD
    assert row.reason is not None
    assert row.reason.code == "exhausted"
    assert "503" in row.reason.message
    assert "72 h" in row.reason.message


def test_a_success_ends_the_count_of_failures(bench: Bench) -> None:
    """section 6: attempts and the first failure belong to one run of failures."""
    bench.wish("r1")
    bench.settle(bench.send("r1"), Result.RETRY)
    bench.now += 10

    row = bench.settle(bench.send("r1"))

    assert (row.attempt, row.poisoned, row.first_failed_at) == (0, 0, None)


def test_a_rate_limit_uses_up_no_attempt_and_concerns_the_target(bench: Bench) -> None:
    """section 6, rate_limited: connector-wide wait."""
    bench.wish("r1")

    row = bench.settle(bench.send("r1"), Result.RATE_LIMITED, retry_after_s=30.0)

    assert (row.state, row.attempt, row.first_failed_at, row.next_at) == (State.RETRYING, 0, None, NOON + 30)
    assert bench.effects == [RateLimitHit(30.0)]


def test_a_rate_limit_is_believed_for_an_hour_at_most(bench: Bench) -> None:
    """section 6: Retry-After, cap 1 h."""
    bench.wish("r1")

    row = bench.settle(bench.send("r1"), Result.RATE_LIMITED, retry_after_s=1e9)

    assert row.next_at == NOON + 3600


def test_poison_is_tried_five_times(bench: Bench) -> None:
    """section 6, poison: at most 5 attempts, dead."""
    bench.wish("r1")
    for left in (4, 3, 2, 1):
        row = bench.settle(bench.send("r1"), Result.POISON, reason=Reason(code="connector_bug", message="Raised."))
        assert row.state is State.RETRYING, left
        bench.now = row.next_at

    row = bench.settle(bench.send("r1"), Result.POISON, reason=Reason(code="connector_bug", message="Raised."))

    assert row.state is State.DEAD
    assert row.reason is not None
    assert row.reason.code == "connector_bug"


def test_a_broken_credential_is_the_targets_problem_and_uses_up_nothing(bench: Bench) -> None:
    """P5, section 6: auth_broken: circuit open, everything parked, nobody dead."""
    bench.wish("r1")

    row = bench.settle(bench.send("r1"), Result.MISCONFIGURED, reason=Reason(code="auth", message="Expired."))

    assert (row.state, row.attempt, row.settled_generation) == (State.QUEUED, 0, 0)
    assert bench.effects == [CircuitHit(Circuit.AUTH, row.reason)]


# ---- refusals


def test_a_refused_create_nobody_was_told_about_is_rejected(bench: Bench) -> None:
    """Hidden, its row is reused."""
    bench.wish("r1", acknowledged=False)

    row = bench.refuse(bench.send("r1"))

    assert (row.state, row.settled_generation, is_visible(row)) == (State.REJECTED, 1, False)
    assert bench.effects == [Close(1, "rejected")]
    assert bench.outcomes("r1") == {1: "rejected"}


def test_a_refused_create_that_was_acknowledged_is_a_dead_letter(bench: Bench) -> None:
    """It stays findable, inactive."""
    bench.wish("r1", acknowledged=True)

    row = bench.refuse(bench.send("r1"))

    assert (row.state, is_visible(row)) == (State.DEAD, True)
    assert any(isinstance(effect, Died) for effect in bench.effects)


def test_a_refused_change_is_a_dead_letter_whoever_waited(bench: Bench) -> None:
    """section 7: PATCH refused in time: the resource is dead, reads show the last confirmed values."""
    bench.applied("r1")
    bench.wish("r1", acknowledged=False, title="Wizard")

    row = bench.refuse(bench.send("r1"))

    assert row.state is State.DEAD
    assert "title" not in shown_document(row)


def test_a_refusal_of_an_older_wish_lets_the_newer_one_go_on(bench: Bench) -> None:
    """T6: the newer wish may be fine; nobody is bothered with the old one."""
    bench.wish("r1", title="Wizard")
    event = bench.send("r1")
    bench.wish("r1", title="Clerk")

    row = bench.refuse(event)

    assert (row.state, row.settled_generation) == (State.QUEUED, 1)
    assert not any(isinstance(effect, Died) for effect in bench.effects)
    assert bench.outcomes("r1") == {1: "rejected", 2: None}


def test_a_conflict_is_looked_at_again_eight_times_before_a_person_has_to(bench: Bench) -> None:
    """section 6, conflict: somebody may have been quicker, or the product's reads lag."""
    bench.wish("r1", "ada")
    waits = []
    for _ in range(CONFLICTS_MAX):
        event = bench.send("r1")
        row = bench.refuse(event, "conflict")
        assert (row.state, row.blocked_on) == (State.BLOCKED, "identity held at the product")
        waits.append(row.next_at - bench.now)
        bench.now = row.next_at
        assert not event.look or len(waits) > 1

    row = bench.refuse(bench.send("r1"), "conflict")

    assert waits == [0.5, *[CONFLICT_RECHECK_S] * (CONFLICTS_MAX - 1)]
    assert row.state is State.DEAD


# ---- blocked on something the product names


def test_blocked_on_a_licence_the_account_is_linked_and_its_name_ours(bench: Bench) -> None:
    """The account exists already although not as wished."""
    bench.wish("r1", "ada")

    row = bench.settle(
        bench.send("r1"),
        Result.BLOCKED,
        blocked_on="licence",
        account_id="v7",
        observed_active=False,
        retry_after_s=60.0,
    )

    assert (row.state, row.blocked_on, row.account_id) == (State.BLOCKED, "licence", "v7")
    assert (row.settled_identities, row.settled_generation, row.next_at) == ((named("ada"),), 0, NOON + 60)
    assert shown_document(row)["active"] is False
    bench.now += 60
    event = bench.send("r1")
    assert event.account_id == "v7"
    row = bench.settle(event)
    assert (row.state, row.blocked_on, row.reason) == (State.APPLIED, None, None)
    assert shown_document(row).get("active") is None


def test_blocked_without_a_time_is_looked_at_at_growing_intervals(bench: Bench) -> None:
    """I6: a named blocker and a next time, at most a quarter of an hour away."""
    bench.wish("r1")
    waits = []
    for _ in range(12):
        row = bench.settle(bench.send("r1"), Result.BLOCKED, blocked_on="role:Wizard")
        waits.append(row.next_at - bench.now)
        bench.now = row.next_at

    assert waits[:4] == [2, 4, 8, 16]
    assert waits[-1] == max(waits) <= RECHECK_MAX_S


def test_blocked_on_the_account_of_another_waits_for_that_row(bench: Bench) -> None:
    """I8: a report of a blocked delivery links nothing that is somebody's."""
    bench.applied("r1", "ada", account_id="v7")
    bench.wish("r2", "bob")

    row = bench.settle(bench.send("r2"), Result.BLOCKED, blocked_on="licence", account_id="v7")

    assert (row.blocked_on, row.account_id) == ("account of r1", None)
    assert bench.row("r1").dirty


def test_T12_a_member_without_an_account_blocks_only_its_own_membership(bench: Bench) -> None:
    """T12: the group is written with everybody else, and waits by name for the one that is missing."""
    bench.applied("r1", "ada", account_id="v1")
    bench.wish("r2", "bob")
    bench.wish("g1", "staff", kind="group", displayName="staff")
    bench.run(lambda ledger: ledger.change_members("g1", [MemberChange("add", ("r1", "r2"))]))

    event = bench.send("g1")
    group = event.group()
    assert [member.account_id for member in group.add] == ["v1"]
    row = bench.settle(event)
    assert (row.state, row.settled_generation) == (State.QUEUED, 1)

    assert bench.dispatch("g1") is None
    row = bench.row("g1")
    assert (row.state, row.blocked_on) == (State.BLOCKED, "member r2")

    bench.settle(bench.send("r2"), account_id="v2")
    bench.now += NEIGHBOUR_RECHECK_MAX_S
    event = bench.send("g1")
    assert [member.account_id for member in event.group().add] == ["v2"]
    assert bench.settle(event).state is State.APPLIED


# ---- T11: the operator's moves


def test_T11_a_redrive_is_a_new_generation_of_the_same_wish(bench: Bench) -> None:
    """T11: an old payload is never replayed; the refused generation keeps its outcome."""
    bench.applied("r1")
    bench.wish("r1", title="Wizard")
    dead = bench.refuse(bench.send("r1"))

    row = bench.row("r1")
    redrive(row, "again", NOON)
    bench.save(row)
    bench.run(lambda ledger: ledger.add_event(row, actor="operator"))

    assert (row.state, row.generation, row.document, row.attempt) == (State.QUEUED, 3, dead.document, 0)
    event = bench.send("r1")
    assert (event.id, event.generation, event.fence) == ("again", 3, 3)
    assert bench.settle(event).state is State.APPLIED
    assert bench.outcomes("r1") == {1: "applied", 2: "rejected", 3: "applied"}


def test_T11_a_discarded_wish_leaves_the_last_confirmed_state(bench: Bench) -> None:
    """T11: detached until a new wish."""
    bench.applied("r1")
    bench.wish("r1", title="Wizard")
    bench.refuse(bench.send("r1"))

    row = bench.row("r1")
    assert discard(row) == [], "its event has its outcome already"

    assert row.state is State.DETACHED
    assert "title" not in shown_document(row)
    assert not ready(row, NOON)


def test_R2_what_a_discarded_wish_may_have_made_does_not_keep_its_name_for_ever(bench: Bench) -> None:
    """R2, I6: given up while in doubt: somebody has to find out before the name passes on."""
    bench.wish("r1", "ada")
    bench.refuse(bench.send("r1"), ambiguous=True)
    row = bench.row("r1")
    discard(row)
    bench.save(row)
    bench.wish("r2", "ada")

    for _ in range(100):
        for due in bench.run(lambda ledger: list(ledger.due(TARGET, bench.now, 10))):
            event = bench.dispatch(due.id) if ready(due, bench.now) else None
            if event is not None:
                row = bench.settle(event, Result.SEEN if event.read_only else Result.APPLIED)
                clear_trail(row, row.fence)
                bench.save(row)
        bench.now += 10

    assert bench.row("r2").state is State.APPLIED


def test_I10_discarding_a_held_wish_ends_its_event(bench: Bench) -> None:
    """I10: each event ends in exactly one outcome."""
    bench.applied("r1")
    row = bench.wish("r1", change=Change.DEACTIVATE, hold=True)

    effects = discard(row)

    assert effects == [Close(2, "discarded")]
    assert (row.state, row.settled_generation) == (State.DETACHED, 2)


def test_a_held_wish_waits_for_an_operator(bench: Bench) -> None:
    """Mass brake: held until approved; approval sends what is wished now, without a new generation."""
    bench.applied("r1")
    row = bench.wish("r1", change=Change.DEACTIVATE, hold=True)
    assert (row.state, ready(row, NOON + 1e6)) == (State.HELD, False)

    redrive(row, "unused", NOON)

    assert (row.state, row.generation) == (State.QUEUED, 2)
    assert ready(row, NOON)


def test_a_wish_to_be_held_is_held_although_a_delivery_is_out(bench: Bench) -> None:
    """Mass brake: what is in flight is settled; the deactivation behind it waits for approval."""
    bench.applied("r1")
    bench.wish("r1", title="Chief")
    event = bench.send("r1")
    bench.wish("r1", change=Change.DEACTIVATE, hold=True)

    row = bench.settle(event)

    assert row.state is State.HELD


def test_a_held_row_stays_held_until_it_is_activated_again(bench: Bench) -> None:
    """Mass brake: another change does not slip the deactivation through; taking it back needs no approval."""
    bench.applied("r1")
    bench.wish("r1", change=Change.DEACTIVATE, hold=True)

    assert bench.wish("r1", title="Chief").state is State.HELD
    assert bench.wish("r1", change=Change.ACTIVATE).state is State.QUEUED


# ---- T13: what SCIM shows


def _shown(state: State, *, settled: bool, acknowledged: bool, veiled: bool = False, open: bool = True) -> Row:
    return Row(
        id="r1",
        target=TARGET,
        state=state,
        generation=2 if settled else 1,
        settled_generation=(1 if open else 2) if settled else 0,
        acknowledged=(2 if settled else 1) if acknowledged else (1 if settled else 0),
        document=b'{"userName":"new","externalId":"X1"}',
        settled_document=b'{"userName":"old","active":true}' if settled else None,
        veiled=veiled,
    )


ON_ITS_WAY = [State.QUEUED, State.DELIVERING, State.RETRYING, State.BLOCKED, State.HELD]


@pytest.mark.parametrize("state", ON_ITS_WAY)
@pytest.mark.parametrize("settled", [False, True])
def test_T13_a_wish_on_its_way_is_shown(state: State, settled: bool) -> None:
    """T13: what Entra was told succeeded is readable at once."""
    row = _shown(state, settled=settled, acknowledged=True)

    assert is_visible(row)
    assert not is_refused(row)
    assert shown_document(row)["userName"] == "new"
    assert shown_keys(row) == Keys(user_name="new", external_id="X1")


@pytest.mark.parametrize("state", [State.DEAD, State.DETACHED])
def test_T13_after_a_refusal_the_last_confirmed_values_are_shown(state: State) -> None:
    """T13: Entra sees a difference and sends it again; a PATCH is computed on what is shown."""
    row = _shown(state, settled=True, acknowledged=True)

    assert is_visible(row)
    assert is_refused(row)
    assert shown_document(row) == base_document(row) == {"userName": "old", "active": True}
    assert shown_keys(row) == Keys(user_name="old")


def test_T13_an_acknowledged_create_that_died_stays_findable_and_inactive() -> None:
    """T13: Entra was told that it exists."""
    row = _shown(State.DEAD, settled=False, acknowledged=True)

    assert is_visible(row)
    assert shown_document(row) == {"userName": "new", "externalId": "X1", "active": False}


def test_T13_a_rejected_create_is_nowhere_and_keeps_its_keys_for_the_next_post() -> None:
    """T13: nothing is shown of it; the next POST finds the row and uses it."""
    row = _shown(State.REJECTED, settled=False, acknowledged=False)

    assert not is_visible(row)
    assert shown_keys(row).user_name == "new"


@pytest.mark.parametrize("state", [State.QUEUED, State.DELIVERING, State.GONE])
def test_T13_a_deleted_resource_is_not_shown_in_any_state(state: State) -> None:
    """T13: DELETE was answered 204; repeated it is 404."""
    row = msgspec.structs.replace(_shown(state, settled=True, acknowledged=True), deleted=True)

    assert not is_visible(row)
    assert shown_keys(row) == Keys()


def test_T13_under_retry_later_a_create_is_hidden_until_it_is_acknowledged() -> None:
    """T13: a wish that was answered 503 is never readable as if it held."""
    assert not is_visible(_shown(State.QUEUED, settled=False, acknowledged=False, veiled=True))
    assert is_visible(_shown(State.QUEUED, settled=False, acknowledged=True, veiled=True))
    assert is_visible(_shown(State.QUEUED, settled=False, acknowledged=False))


def test_T13_under_retry_later_a_change_is_shown_once_it_is_confirmed() -> None:
    """T13: until then the last confirmed values; but a PATCH that arrives meanwhile counts on the wish."""
    row = _shown(State.DELIVERING, settled=True, acknowledged=False, veiled=True)

    assert shown_document(row)["userName"] == "old"
    assert base_document(row)["userName"] == "new"
    acknowledge(row, 2)
    assert shown_document(row)["userName"] == "new"


def test_T13_what_the_product_shows_instead_is_shown() -> None:
    """P6: an account the product keeps inactive (licence, approval) is not shown as active."""
    row = _shown(State.BLOCKED, settled=True, acknowledged=True)
    row.observed_active = False

    assert shown_document(row)["active"] is False


@pytest.mark.parametrize(
    ("document", "kind", "keys"),
    [
        ({"userName": " ADA@Contoso.Example "}, "user", Keys(user_name="ada@contoso.example")),
        ({"userName": "STRASSE"}, "user", keys_of({"userName": "straße"}, "user")),
        ({"externalId": "Ab"}, "user", Keys(external_id="Ab")),
        ({"externalId": ""}, "user", Keys()),
        ({"emails": [{"type": "Work", "value": "A@b.example"}]}, "user", Keys(work_email="a@b.example")),
        ({"emails": [{"type": "home", "value": "a@b.example"}, "odd"]}, "user", Keys()),
        ({"displayName": "Staff"}, "user", Keys(display_name="staff")),
        ({"displayName": "Staff"}, "group", Keys(user_name="staff", display_name="staff")),
    ],
)
def test_filter_keys_are_folded_as_each_attribute_asks(document: dict[str, Any], kind: str, keys: Keys) -> None:
    """RFC 7643 section 3.1 and 4.1: userName is case-insensitive, externalId is case-exact."""
    assert keys_of(document, kind) == keys


# ---- the target: window, circuit, slow start, rest


def test_I7_a_paused_target_and_a_broken_credential_let_nothing_out() -> None:
    """I7: no call while paused or while the credential is refused; the cheap probe is no delivery."""
    assert window(TargetRow(name="t"), 16, NOON) == 16
    assert window(TargetRow(name="t", paused_by="ops"), 16, NOON) == 0
    assert window(TargetRow(name="t", circuit=Circuit.AUTH, next_probe_at=0.0), 16, NOON) == 0


def test_I7_a_target_that_is_down_gets_one_delivery_as_a_probe() -> None:
    """I7, section 6: vendor_down: one item as probe, when it is time."""
    target = TargetRow(name="t")
    assert open_circuit(target, Circuit.DOWN, "503", NOON)

    assert window(target, 16, NOON + PROBE_FIRST_S - 0.1) == 0
    assert window(target, 16, NOON + PROBE_FIRST_S) == 1
    assert not open_circuit(target, Circuit.DOWN, "503", NOON + 1), "it is open already"


@pytest.mark.parametrize(
    ("circuit", "first_s", "last_s"),
    [(Circuit.DOWN, PROBE_FIRST_S, PROBE_MAX_S), (Circuit.AUTH, AUTH_PROBE_FIRST_S, AUTH_PROBE_MAX_S)],
)
def test_probes_become_rarer_up_to_a_bound(circuit: Circuit, first_s: float, last_s: float) -> None:
    """section 6: 1 min to 15 min for a credential; the bounds of a target that is down are shorter."""
    target = TargetRow(name="t")
    open_circuit(target, circuit, "", NOON)
    waits = [target.next_probe_at - NOON]
    for _ in range(8):
        now = target.next_probe_at
        probe_failed(target, now)
        waits.append(target.next_probe_at - now)

    assert waits[:2] == [first_s, min(last_s, first_s * 2)]
    assert waits[-1] == max(waits) == last_s


def test_after_closing_a_target_starts_slowly() -> None:
    """section 6: 1, 2, 4, ... per 5 s, up to the window."""
    target = TargetRow(name="t")
    assert not close_circuit(target, NOON), "it was closed"
    open_circuit(target, Circuit.DOWN, "", NOON)
    assert close_circuit(target, NOON)

    assert [window(target, 16, NOON + n * SLOW_START_STEP_S) for n in range(7)] == [1, 2, 4, 8, 16, 16, 16]
    assert window(target, 16, NOON + 1e7) == 16


def test_after_a_rate_limit_the_target_rests_and_starts_slowly() -> None:
    """section 6, rate_limited: connector-wide wait, then slow start; a shorter wait does not shorten it."""
    target = TargetRow(name="t")
    rest(target, 30.0, NOON)
    rest(target, 5.0, NOON)

    assert window(target, 16, NOON + 29.9) == 0
    assert window(target, 16, NOON + 30) == 1
    assert window(target, 16, NOON + 35) == 2


def test_T7_a_rest_further_away_than_its_longest_is_not_believed() -> None:
    """T7: a clock that was wrong for a moment stops nobody for a year."""
    target = TargetRow(name="t", rest_until=NOON + 3601)

    assert window(target, 16, NOON) > 0


# ---- invariants that hold whatever happens


def test_A14_the_moves_of_a_broken_row_stop_it_and_nothing_else() -> None:
    """A14: dispatching a row whose state does not allow it is a broken invariant."""
    row = Row(id="r1", target=TARGET, state=State.HELD, generation=1)

    with pytest.raises(InvariantBroken):
        lifecycle.dispatch(row, NOON, _Nobody(), "shelf")


class _Nobody:
    """No other rows."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: False if name == "wished" else None if name == "owner" else []


def test_the_retry_bounds_are_those_of_the_configuration(bench: Bench) -> None:
    """section 6: each bound is a setting of the target."""
    bench.retry = RetrySettings(wait_first_s=5.0, wait_max_s=7.0, give_up_after_s=20.0, poison_attempts_max=1)
    bench.wish("r1")
    row = bench.settle(bench.send("r1"), Result.RETRY)
    assert row.next_at - bench.now == 5
    bench.now = row.next_at
    row = bench.settle(bench.send("r1"), Result.RETRY)
    assert row.next_at - bench.now == 7
    bench.now += 21
    assert bench.settle(bench.send("r1"), Result.RETRY).state is State.DEAD

    bench.wish("r2")
    assert bench.settle(bench.send("r2"), Result.POISON).state is State.DEAD
