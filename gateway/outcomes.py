"""What became of an event: fold an outcome into the store, once, whatever order and however often it arrives."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct

from gateway.bus import Bus, Message
from gateway.crashpoints import reached
from gateway.dispatch import Clock, Dispatcher, stop
from gateway.ledger import Ledger, Store, apply_effects
from gateway.lifecycle import (
    DEAD_STATES,
    CircuitHit,
    Died,
    Effect,
    InvariantBroken,
    RateLimitHit,
    Row,
    acknowledge,
    close_circuit,
    open_circuit,
    probe_failed,
    rest,
    settle,
)
from gateway.visibility import shown_keys
from gateway.waits import judged, spaced
from schemas.config import TargetSettings
from schemas.events import Note, Outcome
from schemas.logs import logger
from schemas.states import SHADOW, Circuit, Result, State

TALLY_S = 60.0
FAILURES_IN_A_ROW = 5
FAILURE_SHARE = 0.5
CALLS_MIN = 10
FAILING_RESOURCES_MIN = 3
"""A target is down only when several resources fail: one bad user must not stop the others."""
DEAD_ALIKE_S = 600.0
DEAD_ALIKE_MIN = 25
DEAD_ALIKE_SHARE = 0.8
UNBURIED_MAX = 1_000
NOTES_MAX = 32
"""Of one delivery; a connector has a handful of them."""
NOTE_CODE_CHARS_MAX = 64
NOTE_TEXT_CHARS_MAX = 500

log = logger()


class Folded(Struct, frozen=True):
    """What folding one outcome came to: nothing new, or a row that moved, whether its delivery ended, perhaps the next event."""

    row: Row | None = None
    messages: tuple[Message, ...] = ()
    settled: bool = False


class Outcomes:
    """Folds outcomes.

    Args:
        on_settled: is told about every row that moved, after the commit.
        awaited: whether a request waits here for a resource.
        rights_settle_s: of a target, see `schemas.specs.Spec`.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        clock: Clock,
        dispatcher: Dispatcher,
        targets: Callable[[], Mapping[str, TargetSettings]],
        jitter: Callable[[], float],
        on_settled: Callable[[Row], None] = lambda row: None,
        awaited: Callable[[str], bool] = lambda resource: False,
        rights_settle_s: Callable[[str], float] = lambda target: 0.0,
    ) -> None:
        self.store = store
        self.bus = bus
        self.clock = clock
        self.dispatcher = dispatcher
        self.targets = targets
        self.jitter = jitter
        self.on_settled = on_settled
        self.awaited = awaited
        self.rights_settle_s = rights_settle_s

    async def fold(self, outcome: Outcome) -> None:
        """Settle one outcome; returns after the commit, so that the caller may acknowledge it then (rule A5)."""
        folded = await self.store.run(lambda ledger: self.fold_job(ledger, outcome))
        if folded.row is not None:
            reached("G5")
            self.on_settled(folded.row)
            self.bus.announce_settled(folded.row.id)
            if folded.row.state is State.DEAD:
                self.bus.announce_dead(folded.row)
        await self.dispatcher.send(folded.messages)
        if folded.settled:
            self.dispatcher.settled(outcome.target, outcome.resource, outcome.fence)

    def fold_job(self, ledger: Ledger, outcome: Outcome) -> Folded:
        """One transaction: attempt log, settle, circuit, and the next event of the resource if a newer wish waits (rule T6)."""
        if not ledger.record_attempt(outcome):
            return Folded()
        row = ledger.row(outcome.resource)
        if row is None or row.target != outcome.target:
            return Folded()
        now = self.clock.now()
        if outcome.notes:
            ledger.take_notes(row, _bounded(outcome.notes), by=outcome.worker, at=now)
        settings = self.targets().get(row.target) or TargetSettings(connector="")
        was, in_flight = row.state, row.in_flight
        if outcome.blocked_on == SHADOW and not settings.shadow:
            # a worker that still rehearses is asked again soon
            outcome = msgspec.structs.replace(outcome, retry_after_s=None)
        outcome = judged(row, outcome, now)
        try:
            effects = settle(
                row,
                outcome,
                now,
                ledger,
                settings.retry,
                adopt=settings.adopt == "always",
                jitter=self.jitter(),
            )
        except InvariantBroken as exc:
            stop(row, str(exc))
            effects = []
        settled = in_flight is not None and row.in_flight is None
        if settled:
            spaced(row, now)
        if settled and outcome.blocked_on == SHADOW and not (row.looked or row.dirty or row.ambiguous):
            row.doubts.possible.clear()  # nothing was written, so nothing of this row can be at the product under these names
            row.doubts.written.clear()
        rest = row.unfinished and not row.open and row.state not in DEAD_STATES
        done = row.state in (State.APPLIED, State.GONE) or rest
        if done and self.awaited(row.id):
            acknowledge(row, row.settled_generation)  # a request waits here and is answered right after the commit
        apply_effects(ledger, row, effects, now)
        if settled:
            self._judge_target(ledger, row, outcome, effects, now)
        message = self.dispatcher.try_dispatch(ledger, row, now)
        if row.state is not was and (row.state in (State.DEAD, State.REJECTED, State.GONE) or was in (State.DEAD,)):
            ledger.set_keys(row, shown_keys(row))
        ledger.save(row)
        if any(isinstance(effect, Died) for effect in effects) and row.reason is not None:
            self._brake(ledger, row, now)
        reached("G4")
        return Folded(row=row, messages=(message,) if message else (), settled=settled)

    def _judge_target(self, ledger: Ledger, row: Row, outcome: Outcome, effects: list[Effect], now: float) -> None:
        """What this delivery says about the target as a whole: circuit, rest, recovery."""
        for effect in effects:
            if isinstance(effect, CircuitHit):
                target = ledger.target(row.target)
                reason = effect.reason.message if effect.reason else ""
                if open_circuit(target, effect.circuit, reason, now):
                    alert_in_s = self.rights_settle_s(row.target) if effect.circuit is Circuit.AUTH else 0.0
                    say = log.warning if alert_in_s else log.error
                    say("circuit.opened", target=row.target, circuit=effect.circuit.value, alert_in_s=alert_in_s)
                ledger.save_target(target)
                return
            if isinstance(effect, RateLimitHit):
                target = ledger.target(row.target)
                rest(target, effect.wait_s, now)
                ledger.save_target(target)
                return
        if outcome.result is Result.RETRY:
            self._count_failure(ledger, row, outcome, now)
        elif outcome.result not in (Result.POISON, Result.GAVE_UP):
            target = ledger.target(row.target)
            if target.circuit is Circuit.DOWN and close_circuit(target, now):
                ledger.hasten(row.target, now)
                ledger.save_target(target)
                log.info("circuit.closed", target=row.target)

    def _count_failure(self, ledger: Ledger, row: Row, outcome: Outcome, now: float) -> None:
        target = ledger.target(row.target)
        if target.circuit is Circuit.DOWN:
            probe_failed(target, now)
            ledger.save_target(target)
            return
        if target.circuit is not Circuit.CLOSED:
            return
        tally = ledger.tally(row.target, now - TALLY_S)
        in_a_row = tally.failures_in_a_row >= FAILURES_IN_A_ROW
        share = tally.calls >= CALLS_MIN and tally.failures >= FAILURE_SHARE * tally.calls
        if (in_a_row or share) and tally.failing_resources >= FAILING_RESOURCES_MIN:
            reason = outcome.reason.message if outcome.reason else "The product does not answer."
            open_circuit(target, Circuit.DOWN, reason, now)
            ledger.save_target(target)
            log.error("circuit.opened", target=row.target, circuit=Circuit.DOWN.value)

    def _brake(self, ledger: Ledger, row: Row, now: float) -> None:
        """Dead-letter brake: one cause that kills nearly everybody is the target's problem, not theirs."""
        reason = row.reason
        if reason is None:
            return
        dead, tried = ledger.dead_alike(row.target, reason.fingerprint(), now - DEAD_ALIKE_S)
        if dead < DEAD_ALIKE_MIN or dead < DEAD_ALIKE_SHARE * tried:
            return
        target = ledger.target(row.target)
        if target.circuit is Circuit.CLOSED:
            count = ledger.unbury(row.target, reason.fingerprint(), now - DEAD_ALIKE_S, now)
            for returned in ledger.due(row.target, now, UNBURIED_MAX):
                ledger.set_keys(returned, shown_keys(returned))  # their wish is shown again, so it is found again
            open_circuit(target, Circuit.DOWN, f"{count} resources were refused alike: {reason.message}", now)
            ledger.save_target(target)
            log.error("circuit.opened", target=row.target, circuit=Circuit.DOWN.value, refused_alike=count)


def _bounded(notes: tuple[Note, ...]) -> list[Note]:
    """What a delivery said last about each thing; it comes back in every later event of the resource, so it must be small."""
    latest = {one.code[:NOTE_CODE_CHARS_MAX]: one for one in notes}
    return [
        msgspec.structs.replace(
            one, code=code, message=one.message[:NOTE_TEXT_CHARS_MAX], subject=one.subject[:NOTE_TEXT_CHARS_MAX]
        )
        for code, one in list(latest.items())[:NOTES_MAX]
    ]
