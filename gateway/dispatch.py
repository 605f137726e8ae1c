"""Who is sent next, and is it really on its way? The only place that puts deliveries on the bus.

Waiting happens in the store, not in the broker: each target has a window, and retry times, pauses, circuits, slow start and
rate-limit rests are all decisions about that window and about who is next.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from gateway.bus import Bus, Message, Published
from gateway.crashpoints import reached
from gateway.ledger import Job, Ledger, Store, apply_effects
from gateway.lifecycle import (
    READ_BACK_S,
    UNHEARD_S,
    Died,
    InvariantBroken,
    Row,
    begin,
    clear_trail,
    close_circuit,
    dispatch,
    lose,
    probe_failed,
    read_again,
    ready,
    window,
)
from schemas.config import TargetSettings
from schemas.events import Begin, Reason, decode_event, encode
from schemas.logs import logger
from schemas.states import Circuit, State
from schemas.topology import FRESH_S

SWEEP_EVERY_S = 1.0
SWEEP_ROWS_MAX = 500
"""Rows of one kind handled per sweep; the rest waits for the next second."""
PUMP_ROUNDS_MAX = 4
RECORD_EVERY_S = 0.2
"""That an event is in the stream is recorded this much later, many at once; what is settled by then needs no record."""
REFUSED_AGAIN_S = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Waits before an event is offered again that the stream refused: mostly the worker is just acknowledging the one before."""
PROBE_CHECKS_MAX = 20
PROBE_CHECK_EVERY_S = 1.0

log = logger()


class Clock(Protocol):
    """Time and waiting, injected so that the same code runs in a simulation."""

    def now(self) -> float:
        """Epoch seconds."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


Spawn = Callable[[Coroutine[Any, Any, None]], None]
"""Starts a task that somebody watches over."""


class Dispatcher:
    """Sends what is due, finds what was lost, and answers workers that ask whether they may act.

    Args:
        targets: settings of the enabled targets; a target that is not in it keeps its events and gets none.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        clock: Clock,
        spawn: Spawn,
        targets: Callable[[], Mapping[str, TargetSettings]],
        rights_settle_s: Callable[[str], float] = lambda target: 0.0,
    ) -> None:
        self.store = store
        self.bus = bus
        self.clock = clock
        self.spawn = spawn
        self.targets = targets
        self.rights_settle_s = rights_settle_s
        self._pumping: set[str] = set()
        self._probing: set[str] = set()
        self._crowded: set[str] = set()
        self._stored: dict[str, int] = {}
        self._recording = False

    # ---- inside transactions

    def try_dispatch(self, ledger: Ledger, row: Row, now: float) -> Message | None:
        """Send this row now if it is ready and its target has room. The caller saves the row in either case."""
        if not ready(row, now):
            return None
        if self._room(ledger, row.target, now) <= 0:
            self._crowded.add(row.target)
            return None
        return self._decide(ledger, row, now)

    def _room(self, ledger: Ledger, target: str, now: float) -> int:
        settings = self.targets().get(target)
        if settings is None or not settings.enabled:
            return 0
        return window(ledger.target(target), settings.window, now) - ledger.in_flight(target)

    def _decide(self, ledger: Ledger, row: Row, now: float) -> Message | None:
        connector = self.targets()[row.target].connector
        try:
            effects = dispatch(row, now, ledger, connector)
        except InvariantBroken as exc:
            stop(row, str(exc))
            return None
        if row.body is not None and row.fence > 1 and (notes := ledger.notes_of(row.id)):
            row.body = encode(msgspec.structs.replace(decode_event(row.body), notes=tuple(notes)))
        if row.body is not None and self.targets()[row.target].shadow:
            row.body = encode(msgspec.structs.replace(decode_event(row.body), shadow=True))
        if effects:
            apply_effects(ledger, row, effects, now)
        if any(isinstance(effect, Died) for effect in effects or ()):
            log.warning(
                "resource.dead", target=row.target, resource_id=row.id, code=row.reason.code if row.reason else ""
            )
        return message_of(row, now)

    def pump_job(self, target: str) -> Job[list[Message]]:
        """Fill the target's window with the best due rows."""

        def job(ledger: Ledger) -> list[Message]:
            now = self.clock.now()
            messages: list[Message] = []
            room = self._room(ledger, target, now)
            for _ in range(PUMP_ROUNDS_MAX):
                rows = ledger.due(target, now, room) if room > 0 else ()
                for row in rows:
                    if not ready(row, now):
                        row.next_at = now + SWEEP_EVERY_S  # nothing to do for it: do not look at it in this round again
                        ledger.save(row)
                        continue
                    message = self._decide(ledger, row, now)
                    ledger.save(row)
                    if message is not None:
                        messages.append(message)
                        room -= 1
                if not rows:
                    break
            if room > 0 and not rows:
                self._crowded.discard(target)
            else:
                self._crowded.add(target)
            return messages

        return job

    # ---- on the way out

    async def send(self, messages: Sequence[Message | None]) -> None:
        """Publish what a transaction has decided; what does not get through is sent again by the sweeper."""
        for message in messages:
            if message is not None:
                await self.publish(message)

    async def publish(self, message: Message) -> None:
        """Offer one event to the stream, as often as it takes always with the same bytes (R5).

        A refused one is offered again for a moment, because outcomes travel faster than acknowledgements; then by the relay.
        """
        if not self.bus.connected():
            return
        answer = await self.bus.publish(message)
        for wait_s in REFUSED_AGAIN_S:
            if answer is not Published.REFUSED or not self.bus.connected():
                break
            await self.clock.sleep(wait_s)
            answer = await self.bus.publish(message)
        if answer in (Published.STORED, Published.DUPLICATE):
            reached("G3")
            self._stored[message.resource] = message.fence
            if not self._recording:
                self._recording = True
                self.spawn(self._record_stored())

    async def _record_stored(self) -> None:
        """Until this is recorded the relay offers the event again, which changes nothing (R5)."""
        await self.clock.sleep(RECORD_EVERY_S)
        self._recording = False
        stored, self._stored = self._stored, {}

        def job(ledger: Ledger) -> None:
            for resource, fence in stored.items():
                ledger.mark_published(resource, fence)

        if stored:
            self.store.post(job)

    def settled(self, target: str, resource: str, fence: int) -> None:
        """A delivery has ended: nothing is to be recorded about it, and whoever was turned away for lack of room is next."""
        if self._stored.get(resource) == fence:
            del self._stored[resource]
        if target in self._crowded:
            self.kick(target)

    def kick(self, target: str) -> None:
        """Something of this target may be due: look soon, once."""
        if target not in self._pumping:
            self._pumping.add(target)
            self.spawn(self._pump(target))

    async def _pump(self, target: str) -> None:
        self._pumping.discard(target)  # before the job runs: what comes later is not in it
        await self.send(await self.store.run(self.pump_job(target)))

    # ---- a worker asks

    async def begin(self, request: Begin) -> bool | None:
        """May this delivery act? See `lifecycle.begin` (R6). Not for real once its target is in shadow mode."""

        def job(ledger: Ledger) -> bool | None:
            row = ledger.row(request.resource)
            if row is None or row.target != request.target:
                return False
            now = self.clock.now()
            go = begin(row, request.fence, request.delivery, now)
            if go and self._began_before_shadow(row):
                lose(row, now)  # and is sent again, to be rehearsed
                go = False
                ledger.save(row)
            elif go:
                ledger.save(row)
            return go

        return await self.store.run(job)

    def _began_before_shadow(self, row: Row) -> bool:
        """Whether the event that is out would still be delivered for real, although its target is in shadow mode by now."""
        settings = self.targets().get(row.target)
        return settings is not None and settings.shadow and row.body is not None and not decode_event(row.body).shadow

    # ---- once a second

    async def sweep(self) -> None:
        """Everything that time alone brings about. Each step is bounded; what is left over waits for the next second."""
        await self._notice_new_streams()
        await self._relay()
        await self._look_for_the_unheard()
        await self._read_back()
        await self._pass_identities_on()
        await self._probe_circuits()
        for target in await self.store.run(lambda ledger: list(ledger.targets_due(self.clock.now()))):
            self.kick(target)

    async def _notice_new_streams(self) -> None:
        """A stream that was re-created has lost what was in it (R1, R10). The store is read first, the broker second."""
        known = await self.store.run(lambda ledger: dict(ledger.streams()))
        created = await self.bus.streams() if self.bus.connected() else None
        if created is None or all(known.get(name) == at for name, at in created.items()):
            return
        fresh = {name: at for name, at in created.items() if known.get(name) != at}

        def job(ledger: Ledger) -> bool:
            if any(ledger.streams().get(name) != known.get(name) for name in fresh):
                return False  # another gateway was quicker
            for name, at in fresh.items():
                ledger.save_stream(name, at)
            lost = any(name in known for name in fresh)
            if lost:
                now = self.clock.now()
                ledger.expect_bus_loss(now, now - READ_BACK_S)
            return lost

        if await self.store.run(job):
            log.warning("bus.lost", streams=sorted(fresh))

    async def _relay(self) -> None:
        now = self.clock.now()
        rows = await self.store.run(lambda ledger: list(ledger.unpublished(SWEEP_ROWS_MAX)))
        for row in rows:
            message = message_of(row, now)
            if message is not None and row.heard_at <= now - SWEEP_EVERY_S:  # younger ones are on their way out already
                reached("G6")
                self.spawn(self.publish(message))

    async def _look_for_the_unheard(self) -> None:
        before = self.clock.now() - UNHEARD_S
        rows = await self.store.run(lambda ledger: list(ledger.unheard(before, SWEEP_ROWS_MAX)))
        for row in rows:
            if row.id not in self._probing:
                self._probing.add(row.id)
                self.spawn(self._probe(row))

    async def _probe(self, row: Row) -> None:
        """In flight but not in the stream is lost (R1): the stream first, then the outcomes, then the row."""
        try:
            there = await self.bus.holds(row.target, row.kind, row.id) if self.bus.connected() else None
            if there is None:
                return
            if there:
                await self.store.run(lambda ledger: ledger.heard(row.id, row.fence, self.clock.now()))
                return
            end = await self.bus.outcomes_end()
            if end is None or not await self._folded_up_to(*end):
                return

            def job(ledger: Ledger) -> bool:
                current = ledger.row(row.id)
                if current is None or current.in_flight is None or current.fence != row.fence:
                    return False
                lose(current, self.clock.now())
                ledger.save(current)
                return True

            if await self.store.run(job):
                log.warning("delivery.lost", target=row.target, resource_id=row.id, fence=row.fence)
        finally:
            self._probing.discard(row.id)

    async def _folded_up_to(self, created: str, sequence: int) -> bool:
        for _ in range(PROBE_CHECKS_MAX):
            folded = await self.bus.outcomes_folded() if self.bus.connected() else None
            if folded is None or folded[0] != created:
                return False
            if folded[1] >= sequence:
                return True
            await self.clock.sleep(PROBE_CHECK_EVERY_S)
        return False

    async def _read_back(self) -> None:
        now = self.clock.now()

        def job(ledger: Ledger) -> None:
            for row in ledger.read_backs(now, SWEEP_ROWS_MAX):
                read_again(row)
                ledger.save(row)

        await self.store.run(job)

    async def _pass_identities_on(self) -> None:
        """An identity passes on when no message of its old owner is in the stream (R2); asked only when somebody waits."""
        for row in await self.store.run(lambda ledger: list(ledger.trails(SWEEP_ROWS_MAX))):
            if not self.bus.connected() or await self.bus.holds(row.target, row.kind, row.id) is not False:
                continue

            def job(ledger: Ledger, resource: str = row.id, fence: int = row.fence) -> None:
                current = ledger.row(resource)
                if current is not None:
                    clear_trail(current, fence)
                    ledger.save(current)

            await self.store.run(job)

    async def _probe_circuits(self) -> None:
        """An open `auth` circuit is probed by a cheap check of a worker; `down` is probed by one real delivery."""
        now = self.clock.now()
        for name in self.targets():
            if name in self._probing:
                continue
            state = await self.store.run(lambda ledger, name=name: ledger.target(name))  # type: ignore[misc]
            if state.circuit is Circuit.AUTH and state.next_probe_at <= now:
                self._probing.add(name)
                self.spawn(self._probe_target(name))

    async def _probe_target(self, name: str) -> None:
        try:
            reply = await self.bus.probe(name) if self.bus.connected() else None
            alert_after_s = self.rights_settle_s(name)
            stays_open = False

            def job(ledger: Ledger) -> bool:
                nonlocal stays_open
                target = ledger.target(name)
                if target.circuit is not Circuit.AUTH:
                    return False
                now = self.clock.now()
                # said by the first probe after that time; the one before it was a wait ago
                stays_open = alert_after_s > 0 and 0 <= now - target.opened_at - alert_after_s < target.probe_wait_s
                if reply is not None and reply.ok:
                    close_circuit(target, now)
                    ledger.hasten(name, now)
                else:
                    probe_failed(target, now)
                    if reply is not None:
                        target.circuit_reason = reply.message
                ledger.save_target(target)
                return reply is not None and reply.ok

            if await self.store.run(job):
                log.info("circuit.closed", target=name)
                self.kick(name)
            elif stays_open:
                log.error("circuit.stays_open", target=name, circuit=Circuit.AUTH.value)
        finally:
            self._probing.discard(name)

    async def probe_now(self, name: str) -> None:
        """A new credential, or an operator who says it is mended: ask at once."""

        def job(ledger: Ledger) -> None:
            target = ledger.target(name)
            if target.circuit is not Circuit.CLOSED:
                target.next_probe_at = self.clock.now()
                ledger.save_target(target)

        await self.store.run(job)


def message_of(row: Row, now: float) -> Message | None:
    """The event of a row that is in flight, as it goes out; `now` is when the row was read."""
    if row.in_flight is None or row.body is None:
        return None
    return Message(target=row.target, kind=row.kind, resource=row.id, fence=row.fence, body=row.body, read_at=now)


def stop(row: Row, problem: str) -> None:
    """A broken invariant stops this resource, not the process."""
    row.in_flight = None
    row.body = None
    row.ambiguous = True
    row.state = State.DEAD
    row.reason = Reason(
        code="invariant", message=f"An internal rule was broken ({problem}); redrive after a look at the history."
    )
    log.error("invariant.broken", target=row.target, resource_id=row.id, detail=problem)


def act_before(message: Message) -> float:
    """Until when the stream must have stored a message for its first delivery to act without asking (R6)."""
    return message.read_at + FRESH_S
