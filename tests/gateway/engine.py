"""The engine's async parts on a clock moved by hand and a bus of a few lines, for tests of dispatch, outcomes and intake."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from gateway.bus import Message, ProbeReply, Published
from gateway.dispatch import Dispatcher
from gateway.intake import Answer, Intake, Waiters
from gateway.ledger import Job, Ledger
from gateway.lifecycle import Row, TargetRow
from gateway.outcomes import Outcomes
from schemas.config import BrakeSettings, RetrySettings, TargetSettings
from schemas.events import Outcome, ProvisioningEvent, decode_event
from schemas.states import Result
from schemas.topology import OUTCOMES, WORK
from tests.gateway.bench import NOON, TARGET, outcome_of
from tests.simulation.books import MemoryBooks, SqlBooks

T = TypeVar("T")
WAIT_S = 5.0
"""Bound for everything a test waits for."""
SETTINGS = TargetSettings(connector="shelf", window=4, brake=BrakeSettings(enabled=False), retry=RetrySettings())


class ManualClock:
    """Epoch seconds that pass only when a test says so; a sleep ends at once and is noted."""

    def __init__(self) -> None:
        self.time = NOON
        self.slept: list[float] = []

    def now(self) -> float:
        """See `dispatch.Clock`."""
        return self.time

    async def sleep(self, seconds: float) -> None:
        """See `dispatch.Clock`."""
        self.slept.append(seconds)
        await asyncio.sleep(0)


class BooksStore:
    """`ledger.Store` on books: every job at once, its result on the next turn of the loop."""

    def __init__(self, books: MemoryBooks | SqlBooks) -> None:
        self.books: Any = books
        self.jobs = 0

    async def run(self, job: Job[T]) -> T:
        """See `ledger.Store`."""
        await asyncio.sleep(0)
        self.jobs += 1
        result: T = self.books.run(job)
        return result

    def post(self, job: Job[Any]) -> None:
        """See `ledger.Store`."""
        self.jobs += 1
        self.books.run(job)


class Desk:
    """A bus (`gateway.bus.Bus`): one message per resource, and answers a test decides about.

    Attributes:
        up: whether it is connected.
        answers: what the next publishes are answered; STORED or REFUSED by itself when it is empty.
        stream: events in the stream, by resource.
        sent: everything that was offered, in order.
        created: creation time of each stream.
        end, folded: last sequence of the outcome stream, and how far it is folded; None when unknown.
        known: False: `holds` cannot say.
        probes: what workers say about a target; None: nobody answers.
    """

    def __init__(self) -> None:
        self.up = True
        self.answers: list[Published] = []
        self.stream: dict[str, Message] = {}
        self.sent: list[Message] = []
        self.created: dict[str, str] | None = {WORK: "one", OUTCOMES: "one"}
        self.end: tuple[str, int] | None = ("one", 0)
        self.folded: list[tuple[str, int] | None] = [("one", 0)]
        self.known = True
        self.asked: list[str] = []
        self.probes: ProbeReply | None = None
        self.probed: list[str] = []
        self.settled: list[str] = []
        self.dead: list[str] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self._news = asyncio.Condition()

    def connected(self) -> bool:
        """See `Bus`."""
        return self.up

    async def publish(self, message: Message) -> Published:
        """See `Bus`."""
        self.sent.append(message)
        async with self._news:
            self._news.notify_all()
        if self.answers:
            answer = self.answers.pop(0)
        elif message.resource in self.stream:
            answer = Published.REFUSED
        else:
            answer = Published.STORED
        if answer is Published.STORED:
            self.stream[message.resource] = message
        return answer

    async def published(self, count: int) -> Message:
        """Wait until so many events were offered; returns the last of them."""
        async with asyncio.timeout(WAIT_S), self._news:
            await self._news.wait_for(lambda: len(self.sent) >= count)
        return self.sent[count - 1]

    async def holds(self, target: str, kind: str, resource: str) -> bool | None:
        """See `Bus`; `meanwhile` happens before the answer arrives."""
        self.asked.append(resource)
        answer = resource in self.stream if self.known else None
        self.meanwhile()
        return answer

    async def outcomes_end(self) -> tuple[str, int] | None:
        """See `Bus`."""
        return self.end

    async def outcomes_folded(self) -> tuple[str, int] | None:
        """See `Bus`; each question takes one answer, the last one stays."""
        return self.folded.pop(0) if len(self.folded) > 1 else self.folded[0]

    async def streams(self) -> dict[str, str] | None:
        """See `Bus`."""
        return None if self.created is None else dict(self.created)

    async def probe(self, target: str) -> ProbeReply | None:
        """See `Bus`."""
        self.probed.append(target)
        return self.probes

    def announce_settled(self, resource: str) -> None:
        """See `Bus`."""
        self.settled.append(resource)

    def announce_dead(self, row: Row) -> None:
        """See `Bus`."""
        self.dead.append(row.id)


class CountingWaiters(Waiters):
    """Says how many waits began."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0
        self._more = asyncio.Event()

    def register(self, resource: str) -> asyncio.Future[Row | None]:
        """See `Waiters`."""
        self.begun += 1
        self._more.set()
        return super().register(resource)

    async def reached(self, begun: int) -> None:
        """Wait until so many waits have begun in all."""
        async with asyncio.timeout(WAIT_S):
            while self.begun < begun:
                self._more.clear()
                await self._more.wait()


class Engine:
    """One gateway's engine.

    Attributes:
        targets: settings by name; a test replaces them.
        serving: whether a worker is known to serve the targets.
        moved: rows that moved, as requests are told.
    """

    def __init__(self, books: MemoryBooks | SqlBooks, *, answer_wait_s: float = WAIT_S, bus: Any = None) -> None:
        self.books: Any = books
        self.store = BooksStore(books)
        self.bus: Any = bus or Desk()
        self.clock = ManualClock()
        self.targets: dict[str, TargetSettings] = {TARGET: SETTINGS}
        self.serving = True
        self.moved: list[Row] = []
        self.tasks: set[asyncio.Task[None]] = set()
        numbers: defaultdict[str, itertools.count[int]] = defaultdict(lambda: itertools.count(1))
        self.waiters = CountingWaiters()
        self.dispatcher = Dispatcher(self.store, self.bus, self.clock, self.spawn, lambda: self.targets)
        self.outcomes = Outcomes(
            self.store,
            self.bus,
            self.clock,
            self.dispatcher,
            lambda: self.targets,
            lambda: 1.0,
            self._told,
            self.waiters.awaited,
        )
        self.intake = Intake(
            self.store,
            self.dispatcher,
            self.waiters,
            self.clock,
            lambda: self.targets,
            answer_wait_s=answer_wait_s,
            new_id=lambda: f"e{next(numbers['event'])}",
            new_resource=lambda: f"r{next(numbers['resource'])}",
            healthy=lambda target: self.serving,
            identity_paths=lambda target: ("userName",),
        )

    def _told(self, row: Row) -> None:
        self.moved.append(row)
        self.waiters.wake(row.id, row)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """See `dispatch.Spawn`."""
        task = asyncio.ensure_future(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def idle(self) -> None:
        """Wait until nothing that was started is at work; errors come out here."""
        async with asyncio.timeout(WAIT_S):
            while self.tasks:
                await asyncio.gather(*self.tasks)

    async def sweep(self, after_s: float = 0.0) -> None:
        """Time passes, the sweeper comes by, and everything it started is done."""
        self.clock.time += after_s
        await self.dispatcher.sweep()
        await self.idle()

    def run(self, job: Job[T]) -> T:
        """One transaction of the test's own."""
        result: T = self.books.run(job)
        return result

    def row(self, resource: str) -> Row:
        """The stored row."""
        row = self.run(lambda ledger: ledger.row(resource))
        assert row is not None
        return row

    def save(self, row: Row, **changes: Any) -> None:
        """Write a row with changes."""
        changed = msgspec.structs.replace(row, **changes)
        self.run(lambda ledger: ledger.save(changed))

    def target(self, name: str = TARGET) -> TargetRow:
        """The runtime state of a target."""
        return self.run(lambda ledger: ledger.target(name))

    def save_target(self, **changes: Any) -> None:
        """Change the runtime state of the target."""

        def job(ledger: Ledger) -> None:
            ledger.save_target(msgspec.structs.replace(ledger.target(TARGET), **changes))

        self.run(job)

    def set(self, **changes: Any) -> None:
        """Change the target's settings."""
        self.targets = {**self.targets, TARGET: msgspec.structs.replace(self.targets[TARGET], **changes)}

    # ---- what Entra and workers do

    async def post(self, name: str, **attributes: Any) -> Answer:
        """Entra creates a user."""
        return await self.intake.create(TARGET, "user", {"userName": name, **attributes})

    async def patch(self, resource: str, **attributes: Any) -> Answer:
        """Entra changes a user, computed on the row as it is now."""
        return await self.intake.change(TARGET, "user", self.row(resource), lambda document: {**document, **attributes})

    async def delete(self, resource: str) -> Answer:
        """Entra deletes a user."""
        return await self.intake.delete(TARGET, "user", resource)

    def event(self, resource: str) -> ProvisioningEvent:
        """The event of a delivery that is out."""
        body = self.row(resource).body
        assert body is not None, f"{resource} is {self.row(resource).state}"
        return decode_event(body)

    async def report(self, resource: str, result: Result = Result.APPLIED, **fields: Any) -> Outcome:
        """A worker tells what came of the delivery that is out, and acknowledges its event."""
        outcome = outcome_of(self.event(resource), result, now=self.clock.time, **fields)
        self.bus.stream.pop(resource, None)
        await self.outcomes.fold(outcome)
        return outcome

    async def applied(self, name: str, **attributes: Any) -> Row:
        """A user whose create was applied and answered."""
        serving, self.serving = self.serving, False
        answer = await self.post(name, **attributes)
        self.serving = serving
        assert answer.row is not None
        await self.idle()
        await self.report(answer.row.id)
        await self.idle()
        return self.row(answer.row.id)
