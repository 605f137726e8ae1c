"""Any order of wishes, deliveries, reports, losses and acts of operators: what must hold of every row holds after every step.

Runs on the ledger in memory and on the store at once; each of their answers is compared.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.ledger import Ledger
from gateway.lifecycle import DEAD_STATES, Row, begin, clear_trail, discard, read_again, ready, redrive
from schemas.config import RetrySettings
from schemas.events import Outcome, ProvisioningEvent, Reason
from schemas.states import Change, Result, State
from tests.gateway.bench import TARGET, Bench, named, outcome_of, sightings
from tests.simulation.books import ComparedBooks

RESOURCES = st.sampled_from(["r1", "r2", "r3"])
NAMES = st.sampled_from(["ada", "bob", "eve"])
ACCOUNTS = st.sampled_from(["v1", "v2", "v3"])
LONGEST_S = 3_600.0
"""No row may be due later than the longest wait: an hour, after a rate limit."""


class Lives(RuleBasedStateMachine):
    """Three resources, three names and three accounts, so that they meet all the time."""

    empty: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "store.sqlite3"
        shutil.copy(self.empty, path)
        self.books = ComparedBooks(path)
        self.bench = Bench(self.books)
        self.bench.retry = RetrySettings(give_up_after_s=2_000.0)
        self.old: list[Outcome] = []
        self.events = 0

    @initialize(name=NAMES)
    def first(self, name: str) -> None:
        """There is always somebody."""
        self.bench.wish("r1", name)

    def rows(self) -> list[Row]:
        """All rows."""
        return list(self.books.memory.rows.values())

    def get(self, resource: str) -> Row | None:
        """A row, if it exists."""
        return self.books.memory.rows.get(resource)

    # ---- Entra

    @rule(
        resource=RESOURCES,
        name=NAMES,
        change=st.sampled_from([Change.UPDATE, Change.DEACTIVATE, Change.ACTIVATE, Change.DELETE]),
        acknowledged=st.booleans(),
        hold=st.booleans(),
    )
    def wish(self, resource: str, name: str, change: Change, acknowledged: bool, hold: bool) -> None:
        """A create, or any change of a resource that is there."""
        row = self.get(resource)
        if row is not None and row.deleted:
            return
        if row is None or row.state is State.REJECTED:
            self.bench.wish(resource, name, Change.CREATE, acknowledged=acknowledged)
        else:
            hold = hold and change in (Change.DELETE, Change.DEACTIVATE)
            self.bench.wish(resource, name, change, acknowledged=acknowledged, hold=hold)

    # ---- the gateway

    @rule(count=st.integers(1, 3))
    def send(self, count: int) -> None:
        """The dispatcher sends the best due rows."""
        for row in self.bench.run(lambda ledger: list(ledger.due(TARGET, self.bench.now, count))):
            if ready(self.bench.row(row.id), self.bench.now):
                event = self.bench.dispatch(row.id)
                if event is not None:
                    self.bench.run(lambda ledger, e=event: ledger.mark_published(e.resource, e.fence))

    @rule(seconds=st.sampled_from([1.0, 15.0, 40.0, 300.0, 900.0]))
    def wait(self, seconds: float) -> None:
        """Time passes, and planned read-backs become due."""
        self.bench.now += seconds

        def job(ledger: Ledger) -> None:
            for row in ledger.read_backs(self.bench.now, 10):
                read_again(row)
                ledger.save(row)

        self.bench.run(job)

    @rule()
    def pass_names_on(self) -> None:
        """The stream holds nothing of resting rows any more."""

        def job(ledger: Ledger) -> None:
            for row in ledger.trails(10):
                clear_trail(row, row.fence)
                ledger.save(row)

        self.bench.run(job)

    @rule(resource=RESOURCES)
    def lose(self, resource: str) -> None:
        """In flight but not in the stream."""
        row = self.get(resource)
        if row is not None and row.in_flight is not None:
            self.bench.lose(resource)

    @rule()
    def lose_the_bus(self) -> None:
        """A stream was made anew."""
        self.bench.run(lambda ledger: ledger.expect_bus_loss(self.bench.now, self.bench.now - 300))

    @rule(resource=RESOURCES, delivery=st.integers(1, 3))
    def ask(self, resource: str, delivery: int) -> None:
        """A worker asks whether a redelivery may act."""
        row = self.get(resource)
        if row is not None and row.in_flight is not None:
            row = self.bench.row(resource)
            if begin(row, row.fence, delivery, self.bench.now):
                self.bench.save(row)

    # ---- workers

    def _flying(self) -> list[Row]:
        return [row for row in self.rows() if row.in_flight is not None]

    @precondition(lambda self: self._flying())
    @rule(
        data=st.data(),
        result=st.sampled_from([Result.APPLIED] * 4 + [r for r in Result if r is not Result.APPLIED]),
        account=ACCOUNTS,
        name=NAMES,
        ambiguous=st.booleans(),
        code=st.sampled_from(["bad_value", "conflict"]),
    )
    def report(self, data: st.DataObject, result: Result, account: str, name: str, ambiguous: bool, code: str) -> None:
        """A worker reports about a delivery that is out, in any way it may."""
        row = data.draw(st.sampled_from(self._flying()))
        event = decode(row)
        if event.read_only and result not in (Result.SEEN, Result.RETRY, Result.RATE_LIMITED, Result.MISCONFIGURED):
            result = Result.SEEN
        elif not event.read_only and result is Result.SEEN:
            result = Result.APPLIED
        fields: dict[str, object] = {"delivery": row.delivery, "looked": event.look or row.delivery > 1}
        match result:
            case Result.APPLIED if not event.deleted:
                mine = event.account_id or account
                fields |= {"account_id": mine, "created": event.account_id is None}
            case Result.FOUND | Result.SEEN:
                seen = [n for n in event.lookup if n == named(name)] or list(event.lookup[:1])
                fields["sightings"] = sightings(**{n.partition(":")[2]: account for n in seen})
                if result is Result.FOUND and not seen:
                    result = Result.RETRY
            case Result.REJECTED:
                fields |= {"reason": Reason(code=code, message="No."), "ambiguous": ambiguous and code != "conflict"}
            case Result.BLOCKED:
                fields |= {"blocked_on": "licence"}
            case Result.GAVE_UP:
                fields |= {"account_id": account if ambiguous else None, "created": ambiguous}
            case _:
                fields |= {"ambiguous": ambiguous}
        outcome = outcome_of(event, result, now=self.bench.now, **fields)
        self.old.append(outcome)
        self.bench.fold(outcome)

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def report_again(self, data: st.DataObject) -> None:
        """A report of long ago, from another delivery of the same event."""
        outcome = data.draw(st.sampled_from(self.old))
        self.bench.fold(outcome)

    # ---- operators

    @rule(resource=RESOURCES, give_up=st.booleans())
    def decide(self, resource: str, give_up: bool) -> None:
        """A person redrives, approves or discards."""
        row = self.get(resource)
        if row is None or row.state not in (State.DEAD, State.HELD) or row.in_flight is not None:
            return
        row = self.bench.row(resource)
        self.events += 1

        def job(ledger: Ledger) -> None:
            generation = row.generation
            if give_up:
                for effect in discard(row):
                    ledger.close_events(row.id, effect.generation, effect.outcome, self.bench.now)  # type: ignore[union-attr]
            else:
                redrive(row, f"again{self.events}", self.bench.now)
            ledger.save(row)
            if row.generation > generation:
                ledger.add_event(row, actor="operator")

        self.bench.run(job)

    # ---- what always holds

    @invariant()
    def nothing_is_broken(self) -> None:
        """I2, I3, I4, I5, I8: kept by the ledger itself."""
        assert not self.books.memory.violations

    @invariant()
    def every_generation_has_its_event_and_at_most_one_outcome(self) -> None:
        """I1, I2, I10."""
        for row in self.rows():
            events = self.books.memory.events[row.id]
            assert sorted(events) == list(range(1, row.generation + 1)), "I1, I2"
            assert row.acknowledged <= row.generation
            for generation, event in events.items():
                assert (event[0] is not None) == (generation <= row.settled_generation), f"I10: {row.id} {generation}"

    @invariant()
    def everybody_goes_on_or_says_what_for(self) -> None:
        """I6."""
        for row in self.rows():
            if row.in_flight is not None:
                assert row.state is State.DELIVERING or row.state in DEAD_STATES, "I3"
            elif row.state in (State.QUEUED, State.RETRYING, State.BLOCKED):
                assert row.open or row.dirty or row.unfinished, f"I6: {row.id} waits for nothing"
                assert row.next_at <= self.bench.now + LONGEST_S, (
                    f"I6: {row.id} is due in {row.next_at - self.bench.now} s"
                )
                assert row.state is not State.BLOCKED or row.blocked_on, "I6: blocked on nothing"
            else:
                assert row.state is not State.DELIVERING, "I3"
                assert row.state is not State.APPLIED or not (row.open or row.dirty), "I5"

    @invariant()
    def doubt_is_never_forgotten(self) -> None:
        """I6, R9: whatever may be at the product without our knowledge is looked at, or a person knows."""
        for row in self.rows():
            if row.dirty and row.in_flight is None and row.state is not State.DETACHED:
                assert row.waiting or row.state is State.HELD, f"{row.id}: {row.state} in doubt, and nobody looks"

    def teardown(self) -> None:
        """Close the store."""
        self.books.close()
        self.folder.cleanup()


def decode(row: Row) -> ProvisioningEvent:
    """The event that is out."""
    from schemas.events import decode_event

    assert row.body is not None
    return decode_event(row.body)


@pytest.mark.timeout(120)
def test_I6_I10_whatever_happens_in_whatever_order_every_row_goes_on_or_says_what_it_waits_for(
    empty_store: Path,
) -> None:
    """I1-I6, I8 and I10 after every step of random lives; the two ledgers agree on each of them."""
    Lives.empty = empty_store

    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
