"""Who is sent next, what becomes of it on the way, and what the sweep finds: on both ledgers, with a bus that does as told."""

from __future__ import annotations

import asyncio

import pytest

from gateway.bus import ProbeReply, Published
from gateway.dispatch import PROBE_CHECK_EVERY_S, PROBE_CHECKS_MAX, REFUSED_AGAIN_S, SWEEP_EVERY_S, act_before
from gateway.lifecycle import AUTH_PROBE_FIRST_S, QUIET_S, READ_BACK_S, UNHEARD_S, Row
from schemas.config import TargetSettings
from schemas.events import Begin
from schemas.states import Circuit, Result, State
from schemas.topology import FRESH_S, OUTCOMES, WORK
from tests.gateway.bench import NOON, TARGET
from tests.gateway.engine import Engine
from tests.simulation.books import MemoryBooks, SqlBooks


@pytest.fixture
def engine(ledger_store: MemoryBooks | SqlBooks) -> Engine:
    """A gateway's engine whose workers are asked nothing: writes are answered at once."""
    made = Engine(ledger_store)
    made.serving = False
    return made


# ---- the window


async def test_T2_no_more_deliveries_are_out_than_the_window_allows(engine: Engine) -> None:
    """Each target has a window; the rest waits in the store."""
    for number in range(10):
        await engine.post(f"user{number}")
    await engine.idle()

    assert len(engine.bus.sent) == engine.targets[TARGET].window == 4
    assert engine.run(lambda ledger: ledger.in_flight(TARGET)) == 4


async def test_a_place_that_becomes_free_is_taken_by_the_most_urgent_row(engine: Engine) -> None:
    """Deprovision, then create, then update."""
    engine.set(window=1)
    leaver = await engine.applied("leaver")
    mover = await engine.applied("mover")
    first = (await engine.post("first")).row
    await engine.patch(mover.id, title="Chief")
    second = (await engine.post("second")).row
    await engine.patch(leaver.id, active=False)
    assert first is not None
    assert second is not None

    order = []
    flying = first.id
    for _ in range(4):
        order.append(flying)
        await engine.report(flying)
        await engine.idle()
        flying = engine.bus.sent[-1].resource

    assert order == [first.id, leaver.id, second.id, mover.id]


async def test_one_slow_user_delays_nobody(engine: Engine) -> None:
    """P5: a row that retries gives its place back."""
    engine.set(window=1)
    slow = (await engine.post("slow")).row
    assert slow is not None
    await engine.post("quick")
    await engine.report(slow.id, Result.RETRY)
    await engine.idle()

    assert engine.bus.sent[-1].resource != slow.id
    assert engine.row(slow.id).state is State.RETRYING


@pytest.mark.parametrize("why", ["paused", "auth", "down", "resting", "disabled", "unknown"])
async def test_I7_a_target_that_is_not_served_gets_nothing_and_loses_nothing(engine: Engine, why: str) -> None:
    """I7, P1: parked in the store, sent when the target is back."""
    match why:
        case "paused":
            engine.save_target(paused_by="ops")
        case "auth":
            engine.save_target(circuit=Circuit.AUTH, next_probe_at=NOON + 60)
        case "down":
            engine.save_target(circuit=Circuit.DOWN, next_probe_at=NOON + 60)
        case "resting":
            engine.save_target(rest_until=NOON + 60)
        case "disabled":
            engine.set(enabled=False)
        case "unknown":
            engine.targets["other"] = TargetSettings(connector="shelf")
    answer = await (
        engine.post("ada") if why != "unknown" else engine.intake.create("other", "user", {"userName": "a"})
    )
    if why == "unknown":
        del engine.targets["other"]
    assert answer.row is not None
    await engine.sweep()
    sent = len(engine.bus.sent)

    assert engine.row(answer.row.id).generation == 1
    if why != "unknown":
        assert sent == 0
        assert engine.row(answer.row.id).state is State.QUEUED
        engine.save_target(paused_by=None, circuit=Circuit.CLOSED, rest_until=0.0)
        engine.set(enabled=True)
        await engine.sweep()
        assert engine.bus.sent[-1].resource == answer.row.id


async def test_a_target_that_is_down_is_probed_by_one_delivery(engine: Engine) -> None:
    """section 6, vendor_down: one item as probe."""
    for name in ("ada", "bob", "eve"):
        engine.save_target(paused_by="ops")
        await engine.post(name)
    engine.save_target(paused_by=None, circuit=Circuit.DOWN, next_probe_at=NOON + 2)
    await engine.sweep(2)

    assert len(engine.bus.sent) == 1


async def test_rows_that_wait_for_others_do_not_use_up_the_window(engine: Engine) -> None:
    """R2, P5: blocked on a neighbour is decided without a place, and others take it."""
    engine.set(window=2)
    engine.save_target(paused_by="ops")
    holder = (await engine.post("ada")).row
    assert holder is not None
    engine.save(engine.row(holder.id), settled_identities=("userName:bob", "userName:eve"))
    for name in ("bob", "eve", "free"):
        await engine.post(name)
    engine.save_target(paused_by=None)

    engine.dispatcher.kick(TARGET)
    await engine.idle()

    states = {name: engine.row(f"r{n}").state for n, name in enumerate(("ada", "bob", "eve", "free"), start=1)}
    assert states["ada"] is State.DELIVERING
    assert states["free"] is State.DELIVERING or states["bob"] is State.BLOCKED
    await engine.sweep()
    assert engine.row("r4").state is State.DELIVERING


async def test_kicking_a_target_many_times_looks_once(engine: Engine) -> None:
    """A burst of outcomes costs one look at the queue."""
    engine.store.jobs = 0

    for _ in range(50):
        engine.dispatcher.kick(TARGET)
    await engine.idle()

    assert engine.store.jobs == 1


# ---- R5: publishing


async def test_R5_an_event_without_confirmation_is_sent_again_with_the_same_id_and_bytes(engine: Engine) -> None:
    """R5: a lost PubAck; the answer `duplicate` means it was stored once."""
    engine.bus.answers = [Published.UNKNOWN, Published.DUPLICATE]
    answer = await engine.post("ada")
    await engine.idle()
    assert answer.row is not None
    assert not engine.row(answer.row.id).published

    await engine.sweep(SWEEP_EVERY_S)

    first, second = engine.bus.sent
    assert (first.body, first.fence, first.resource) == (second.body, second.fence, second.resource)
    assert engine.row(answer.row.id).published
    await engine.sweep()
    assert len(engine.bus.sent) == 2


async def test_R5_a_refused_event_keeps_its_fence_and_uses_no_attempt(engine: Engine) -> None:
    """R5: 10077 means an earlier event is still there: again in a moment, then every second, no error to Entra."""
    row = await engine.applied("ada")
    refusals = 2 * (1 + len(REFUSED_AGAIN_S))
    engine.bus.answers = [*[Published.REFUSED] * refusals, Published.STORED]

    answer = await engine.patch(row.id, title="Chief")
    await engine.idle()
    fence = engine.row(row.id).fence
    for _ in range(2):
        await engine.sweep(SWEEP_EVERY_S)

    after = engine.row(row.id)
    assert answer.error is None
    assert (after.fence, after.attempt, after.state, after.published) == (fence, 0, State.DELIVERING, True)
    assert [message.fence for message in engine.bus.sent[1:]] == [fence] * (refusals + 1)


async def test_an_acknowledgement_that_is_late_by_a_moment_costs_a_moment(engine: Engine) -> None:
    """The outcome reaches Entra before the worker's ack reaches the stream; the next write must not wait for the relay."""
    row = await engine.applied("ada")
    engine.bus.answers = [Published.REFUSED, Published.STORED]

    await engine.patch(row.id, title="Chief")
    await engine.idle()

    assert len(engine.bus.sent) == 3
    assert sum(engine.clock.slept) < SWEEP_EVERY_S


async def test_A7_nothing_is_published_while_the_bus_is_away_and_everything_afterwards(engine: Engine) -> None:
    """A7, P1: SCIM goes on without NATS; the relay publishes the rest with the same id."""
    engine.bus.up = False
    for name in ("ada", "bob"):
        answer = await engine.post(name)
        assert answer.error is None
    await engine.sweep()
    assert engine.bus.sent == []

    engine.bus.up = True
    await engine.sweep(SWEEP_EVERY_S)

    assert sorted(message.resource for message in engine.bus.sent) == ["r1", "r2"]


async def test_R6_a_message_says_when_its_row_was_read(engine: Engine) -> None:
    """R6: what the stream stores later than 10 s after that does not act without asking."""
    engine.bus.answers = [Published.UNKNOWN]
    await engine.post("ada")
    await engine.idle()
    await engine.sweep(30)

    first, second = engine.bus.sent
    assert act_before(first) == NOON + FRESH_S
    assert act_before(second) == NOON + 30 + FRESH_S


# ---- R6: a worker asks


async def test_R6_the_current_delivery_may_act_and_is_heard_of(engine: Engine) -> None:
    """R6: a go is a sign of life as well."""
    await engine.post("ada")
    await engine.idle()
    engine.clock.time += 12

    assert await engine.dispatcher.begin(Begin(TARGET, "r1", 1, 2)) is True

    row = engine.row("r1")
    assert (row.delivery, row.heard_at) == (2, NOON + 12)
    assert await engine.dispatcher.begin(Begin(TARGET, "r1", 1, 1)) is None


@pytest.mark.parametrize(
    "asked", [Begin(TARGET, "r1", 9, 2), Begin("other", "r1", 1, 2), Begin(TARGET, "nobody", 1, 2)]
)
async def test_R6_I11_what_is_not_current_or_not_ours_is_dropped(engine: Engine, asked: Begin) -> None:
    """R6, I11: another fence, another target, an unknown resource."""
    await engine.post("ada")
    await engine.idle()

    assert await engine.dispatcher.begin(asked) is False
    assert engine.row("r1").delivery == 1


# ---- R1: in flight but not in the stream is lost


async def _unheard(engine: Engine) -> Row:
    await engine.post("ada")
    await engine.idle()
    engine.clock.time += UNHEARD_S + 1
    return engine.row("r1")


async def test_R1_what_is_in_the_stream_is_not_lost(engine: Engine) -> None:
    """R1: it is only heard of again, and left alone for another while."""
    await _unheard(engine)

    await engine.sweep()

    row = engine.row("r1")
    assert (row.state, row.heard_at) == (State.DELIVERING, engine.clock.time)
    assert engine.bus.asked == ["r1"]
    await engine.sweep()
    assert engine.bus.asked == ["r1"]


async def test_R1_what_is_in_flight_and_not_in_the_stream_is_sent_again_later(engine: Engine) -> None:
    """R1: ambiguous, with another fence, after everything old has come to rest."""
    await _unheard(engine)
    engine.bus.stream.clear()

    await engine.sweep()

    row = engine.row("r1")
    assert (row.state, row.in_flight, row.ambiguous) == (State.QUEUED, None, True)
    assert row.next_at == engine.clock.time + QUIET_S
    await engine.sweep(QUIET_S)
    assert engine.event("r1").look
    assert [message.fence for message in engine.bus.sent] == [1, 2]


async def test_R1_nothing_is_asked_before_20_s_of_silence(engine: Engine) -> None:
    """R1: a delivery that was heard of lately is not looked for."""
    await engine.post("ada")
    await engine.idle()
    await engine.sweep(UNHEARD_S - 1)

    assert engine.bus.asked == []


@pytest.mark.parametrize("unknown", ["the bus is away", "no answer", "no end", "folded is unknown", "another stream"])
async def test_R1_what_is_not_known_is_not_called_lost(engine: Engine, unknown: str) -> None:
    """R1: stream, end of outcomes and how far they are folded: each must be known, of one and the same stream."""
    await _unheard(engine)
    engine.bus.stream.clear()
    match unknown:
        case "the bus is away":
            engine.bus.up = False
        case "no answer":
            engine.bus.known = False
        case "no end":
            engine.bus.end = None
        case "folded is unknown":
            engine.bus.folded = [None]
        case "another stream":
            engine.bus.folded = [("two", 99)]

    await engine.sweep()

    assert engine.row("r1").state is State.DELIVERING


async def test_R1_outcomes_that_are_under_way_are_folded_first(engine: Engine) -> None:
    """R1: the stream first, then all outcomes up to the end read after that, then the row."""
    await _unheard(engine)
    engine.bus.stream.clear()
    engine.bus.end = ("one", 7)
    engine.bus.folded = [("one", 5), ("one", 6), ("one", 7)]

    await engine.sweep()

    assert engine.clock.slept.count(PROBE_CHECK_EVERY_S) == 2
    assert engine.row("r1").state is State.QUEUED


async def test_R1_outcomes_that_are_never_folded_are_waited_for_only_so_long(engine: Engine) -> None:
    """R1: bounded; the next sweep asks again."""
    await _unheard(engine)
    engine.bus.stream.clear()
    engine.bus.end, engine.bus.folded = ("one", 7), [("one", 5)]

    await engine.sweep()

    assert engine.clock.slept.count(PROBE_CHECK_EVERY_S) == PROBE_CHECKS_MAX
    assert engine.row("r1").state is State.DELIVERING


async def test_R1_a_row_that_moved_on_while_the_stream_was_asked_is_left_alone(engine: Engine) -> None:
    """R1: and the row still has that fence."""
    row = await _unheard(engine)
    engine.bus.stream.clear()
    engine.bus.meanwhile = lambda: engine.save(row, fence=5)

    await engine.sweep()

    assert engine.row("r1").state is State.DELIVERING


async def test_R1_R10_a_stream_that_was_made_anew_is_noticed_and_looked_into_at_once(engine: Engine) -> None:
    """R1, R10: everything in flight is asked about now; what settled lately is read back once."""
    settled = await engine.applied("bob")
    await engine.post("ada")
    await engine.idle()
    await engine.sweep()
    assert engine.run(lambda ledger: ledger.streams()) == {WORK: "one", OUTCOMES: "one"}
    assert engine.bus.asked == []

    engine.bus.created = {WORK: "two", OUTCOMES: "one"}
    engine.bus.stream.clear()
    await engine.sweep()

    assert engine.row("r2").state is State.QUEUED
    assert engine.row("r2").ambiguous
    assert engine.row(settled.id).read_back_at == engine.clock.time + 60
    assert engine.run(lambda ledger: ledger.streams())[WORK] == "two"


async def test_R1_streams_seen_for_the_first_time_are_no_loss(engine: Engine) -> None:
    """A10: a gateway that starts notes their creation time and disturbs nobody."""
    settled = await engine.applied("bob")

    await engine.sweep()

    assert engine.row(settled.id).read_back_at is None


async def test_R1_a_loss_is_handled_by_one_gateway(engine: Engine) -> None:
    """R1: the store is read first, the broker second; who comes second changes nothing."""
    settled = await engine.applied("bob")
    await engine.sweep()
    engine.bus.created = {WORK: "two", OUTCOMES: "one"}

    await asyncio.gather(engine.dispatcher.sweep(), engine.dispatcher.sweep())
    await engine.idle()
    engine.save(engine.row(settled.id), read_back_at=None)
    await engine.sweep()

    assert engine.row(settled.id).read_back_at is None


# ---- R2: names pass on


@pytest.mark.parametrize(
    ("there", "known", "passes"), [(False, True, True), (True, True, False), (False, False, False)]
)
async def test_R2_a_name_passes_on_when_its_last_message_is_gone(
    engine: Engine, there: bool, known: bool, passes: bool
) -> None:
    """R2: settled, and its message is gone from the stream; unknown is not gone."""
    row = await engine.applied("ada")
    await engine.patch(row.id, userName="bob")
    await engine.idle()
    message = engine.bus.sent[-1]
    await engine.report(row.id)
    if there:
        engine.bus.stream[row.id] = message
    engine.bus.known = known
    other = (await engine.post("ada")).row
    assert other is not None
    await engine.idle()
    assert engine.row(other.id).state is State.BLOCKED

    await engine.sweep(2)

    assert (engine.row(other.id).state is State.DELIVERING) is passes


# ---- T4: read back


async def test_T4_a_planned_read_back_is_dispatched_when_it_is_due(engine: Engine) -> None:
    """T4: five minutes after something ambiguous, as the least urgent work."""
    row = await engine.applied("ada")
    engine.save(engine.row(row.id), read_back_at=NOON + READ_BACK_S)
    await engine.sweep(READ_BACK_S - 1)
    assert engine.row(row.id).state is State.APPLIED

    await engine.sweep(1)

    assert engine.row(row.id).state is State.DELIVERING
    assert engine.event(row.id).look


async def test_A4_a_retry_is_sent_by_the_sweep_when_it_is_due(engine: Engine) -> None:
    """A4: once a second whatever is due, without anybody asking."""
    await engine.post("ada")
    await engine.idle()
    await engine.report("r1", Result.RETRY)
    await engine.idle()
    due = engine.row("r1").next_at

    engine.clock.time = due - 0.5
    await engine.sweep()
    assert len(engine.bus.sent) == 1
    engine.clock.time = due
    await engine.sweep()

    assert len(engine.bus.sent) == 2


# ---- circuits


async def test_an_open_auth_circuit_is_closed_by_a_probe_that_goes_well(engine: Engine) -> None:
    """section 6, auth_broken: a cheap check by a worker; then slow start, and waiting retries go on."""
    await engine.post("ada")
    await engine.idle()
    await engine.report("r1", Result.MISCONFIGURED)
    await engine.idle()
    assert engine.target().circuit is Circuit.AUTH
    engine.bus.probes = ProbeReply(ok=True)

    await engine.sweep()
    assert engine.bus.probed == [], "not before its time"
    await engine.sweep(AUTH_PROBE_FIRST_S)

    target = engine.target()
    assert (target.circuit, target.closed_at) == (Circuit.CLOSED, engine.clock.time)
    assert [message.resource for message in engine.bus.sent] == ["r1", "r1"]


@pytest.mark.parametrize("reply", [None, ProbeReply(ok=False, code="auth", message="Still expired.")])
async def test_an_open_auth_circuit_stays_open_while_the_probe_fails(engine: Engine, reply: ProbeReply | None) -> None:
    """section 6: probes become rarer; what a worker says is the reason shown."""
    engine.save_target(
        circuit=Circuit.AUTH, circuit_reason="Expired.", next_probe_at=NOON, probe_wait_s=AUTH_PROBE_FIRST_S
    )
    engine.bus.probes = reply

    await engine.sweep()

    target = engine.target()
    assert (target.circuit, target.next_probe_at) == (Circuit.AUTH, NOON + 2 * AUTH_PROBE_FIRST_S)
    assert target.circuit_reason == (reply.message if reply else "Expired.")


async def test_a_new_credential_is_probed_at_once(engine: Engine) -> None:
    """section 6: at once on a new credential; a closed circuit is not touched."""
    engine.save_target(circuit=Circuit.AUTH, next_probe_at=NOON + 900)
    engine.bus.probes = ProbeReply(ok=True)

    await engine.dispatcher.probe_now(TARGET)
    await engine.sweep()
    assert engine.target().circuit is Circuit.CLOSED

    before = engine.target()
    await engine.dispatcher.probe_now(TARGET)
    assert engine.target() == before


async def test_a_circuit_that_closed_while_the_probe_ran_is_left_alone(engine: Engine) -> None:
    """An operator or another gateway may be quicker."""
    engine.save_target(circuit=Circuit.AUTH, next_probe_at=NOON, probe_wait_s=60.0)
    engine.bus.probes = ProbeReply(ok=False)
    await engine.dispatcher._probe_circuits()
    engine.save_target(circuit=Circuit.CLOSED)
    await engine.idle()

    assert engine.target().circuit is Circuit.CLOSED
    assert engine.target().next_probe_at == NOON


async def test_when_a_circuit_closes_only_certain_retries_are_hastened(engine: Engine) -> None:
    """R9: what ended ambiguously keeps its rest."""
    await engine.post("sure")
    await engine.post("unsure")
    await engine.idle()
    await engine.report("r1", Result.RETRY, retry_after_s=500.0)
    await engine.report("r2", Result.RETRY, retry_after_s=500.0, ambiguous=True)

    engine.run(lambda ledger: ledger.hasten(TARGET, NOON))

    assert engine.row("r1").next_at == NOON
    assert engine.row("r2").next_at == NOON + 500


# ---- A14


async def test_A14_a_broken_invariant_stops_the_row_and_the_others_go_on(engine: Engine) -> None:
    """A14: dead, reason `invariant`; the process and its other rows go on."""
    holder = await engine.applied("ada")
    broken = await engine.applied("bob")
    engine.save(
        broken, state=State.GONE, dirty=True, settled_identities=(), identities=holder.identities, account_id=None
    )
    engine.save_target(paused_by="ops")
    await engine.post("eve")
    engine.save_target(paused_by=None)

    await engine.sweep()

    row = engine.row(broken.id)
    assert (row.state, row.in_flight) == (State.DEAD, None)
    assert row.reason is not None
    assert row.reason.code == "invariant"
    assert "gone -> blocked" in row.reason.message
    assert engine.row("r3").state is State.DELIVERING
