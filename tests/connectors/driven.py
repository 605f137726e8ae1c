"""A connector under the whole engine: Entra's writes, the real store, the worker's order of delivery, an emulated product.

Only the message bus is short-circuited, and the clock is moved by hand: nothing waits, and a worker may die in the middle.
"""

from __future__ import annotations

import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from connectors.contract import Connector, Delivery
from gateway.bus import Message, ProbeReply, Published
from gateway.dispatch import Dispatcher
from gateway.intake import Intake, Waiters
from gateway.lifecycle import Row
from gateway.outcomes import Outcomes
from gateway.patch import MemberChange
from gateway.records import NoteRecord
from gateway.regrouping import Regrouping
from gateway.store import Store
from schemas.config import BrakeSettings, TargetSettings
from schemas.events import Outcome, ProvisioningEvent, decode_event
from schemas.states import Circuit, Result, State
from tests.connectors.alone import StaysOurs
from tests.gateway.stand_ins import Background, HandClock, HeldBus, write_blank_store
from workers import control
from workers.delivery import deliver
from workers.limits import NameCache

TARGET = "it"
ROUNDS_MAX = 40
RESTING = (State.APPLIED, State.GONE, State.DEAD, State.REJECTED, State.HELD)


class Driven(HeldBus, HandClock):
    """One target.

    Attributes:
        connector: what the worker runs; a test may put another one in its place, as a new worker would.
        outcomes_seen: everything that was reported, in order.
        dies: so many of the next deliveries end without a report, as if the worker died after its last call.
    """

    def __init__(self, store: Store, connector: Connector[Any, Any]) -> None:
        HeldBus.__init__(self)
        HandClock.__init__(self)
        self.store = store
        self.connector = connector
        self.dies = 0
        self.outcomes_seen: list[Outcome] = []
        self._deliveries: dict[str, int] = {}
        self._background = Background()
        self._numbers = itertools.count(1)
        self.settings = {TARGET: TargetSettings(connector="x", brake=BrakeSettings(enabled=False))}
        self.dispatcher = Dispatcher(store, self, self, self._background.spawn, lambda: self.settings)
        self.outcomes = Outcomes(store, self, self, self.dispatcher, lambda: self.settings, jitter=lambda: 0.5)
        self.regrouping = Regrouping(
            store, self.dispatcher, self, lambda: self.settings, self.ask, lambda _: connector.spec, lambda _: True
        )
        self.intake = Intake(
            store,
            self.dispatcher,
            Waiters(),
            self,
            lambda: self.settings,
            answer_wait_s=0.0,
            new_id=lambda: f"e{next(self._numbers)}",
            new_resource=lambda: str(uuid.uuid4()),
            healthy=lambda target: False,
            identity_paths=lambda target: tuple(connector.spec.identity),
        )

    # ---- the clock and the bus (`dispatch.Clock`, `gateway.bus.Bus`)

    async def publish(self, message: Message) -> Published:
        if message.resource in self.sent:
            return Published.REFUSED
        return await super().publish(message)

    async def probe(self, target: str) -> ProbeReply | None:
        said = msgspec.json.decode(await self.ask(target, {"do": "probe"}, 0.0), type=control.Answer)
        return ProbeReply(ok=said.ok, code=said.code, message=said.message)

    async def ask(self, target: str, question: Mapping[str, Any], wait_s: float) -> bytes:
        """What the worker answers to a question of the gateway."""
        served: Any = SimpleNamespace(connector=self.connector, directory=NameCache(None), spec=self.connector.spec)
        return await control.answer(served, msgspec.json.encode(question))

    # ---- what Entra does

    async def user(self, document: dict[str, Any]) -> str:
        """Create a user; the id of the resource."""
        answer = await self.intake.create(TARGET, "user", document)
        assert answer.row is not None, answer.error
        return answer.row.id

    async def change(self, resource: str, **attributes: Any) -> None:
        """Change a user or group."""
        row = await self.row(resource)
        await self.intake.change(TARGET, row.kind, row, lambda base: {**base, **attributes})

    async def delete(self, resource: str) -> None:
        """Delete a user or group."""
        await self.intake.delete(TARGET, (await self.row(resource)).kind, resource)

    async def group(self, name: str, external_id: str, *members: str) -> str:
        """Create a group; the id of the resource."""
        document = {"displayName": name, "externalId": external_id}
        changes = (MemberChange("add", members),) if members else ()
        answer = await self.intake.create(TARGET, "group", document, members=changes)
        assert answer.row is not None, answer.error
        return answer.row.id

    async def members(self, group: str, *changes: MemberChange) -> None:
        """Change who is in a group."""
        await self.intake.change(TARGET, "group", await self.row(group), lambda base: base, members=changes)

    # ---- what follows

    async def work(self) -> list[Outcome]:
        """Deliver everything that is out and what follows from it at once; what was reported."""
        said: list[Outcome] = []
        for _ in range(ROUNDS_MAX):
            await self._background.quiet()
            if not self.sent:
                return said
            for resource, message in list(self.sent.items()):
                outcome = await self._delivered(message)
                if outcome is None:
                    continue
                del self.sent[resource]
                said.append(outcome)
                self.outcomes_seen.append(outcome)
                await self.outcomes.fold(outcome)
        raise AssertionError("the engine does not come to rest")

    async def _delivered(self, message: Message) -> Outcome | None:
        event = decode_event(message.body)
        number = self._deliveries[event.message_id] = self._deliveries.get(event.message_id, 0) + 1
        if number > 1:
            assert await self.dispatcher.begin(_begin_of(event, number)), "a redelivery asks first (R6)"
        outcome = await deliver(
            event,
            delivery=number,
            connector=self.connector,
            directory=NameCache(None),
            owned=StaysOurs(),
            new_id=lambda: uuid.uuid4().hex,
            clock=self.now,
            ctx=Delivery(),
        )
        assert outcome is not None
        if self.dies:
            self.dies -= 1
            return None
        return outcome

    async def later(self, seconds: float) -> None:
        """Let time pass, then do what time alone brings about."""
        self.time += seconds
        await self.dispatcher.sweep()
        await self.work()

    async def settled(self, resource: str) -> Row:
        """Until a resource rests, waits for something, or its target is not called; time passes as it has to."""
        for _ in range(ROUNDS_MAX):
            await self.work()
            row = await self.row(resource)
            target = await self.store.run(lambda ledger: ledger.target(TARGET))
            waits = row.state is State.BLOCKED and row.reason is not None and row.reason.code != "conflict"
            rests = row.state in RESTING and not row.dirty
            if row.in_flight is None and (rests or waits or target.circuit is Circuit.AUTH):
                return row
            await self.later(max(1.0, row.next_at - self.time))
        raise AssertionError(f"{resource} does not come to rest: {await self.row(resource)}")

    async def row(self, resource: str) -> Row:
        """A resource as it is stored."""
        found = await self.store.read(lambda reader: reader.row(resource))
        assert found is not None
        return found

    async def notes(self, resource: str) -> list[str]:
        """Codes of what is noted about a resource."""
        return await self.store.read(lambda reader: reader.notes_of(resource))

    async def noted(self, code: str) -> list[tuple[str, NoteRecord]]:
        """Resources with a note, and the notes."""
        found = await self.store.read_slow(lambda reader: reader.notes(TARGET, code, 0, 100))
        return [(row.id, note) for _, row, note in found]

    def results(self) -> list[Result]:
        """What the deliveries so far came to."""
        return [one.result for one in self.outcomes_seen]


def _begin_of(event: ProvisioningEvent, number: int) -> Any:
    return SimpleNamespace(target=event.target, resource=event.resource, fence=event.fence, delivery=number)


def add(*members: str) -> MemberChange:
    """These shall be in."""
    return MemberChange("add", members)


def remove(*members: str) -> MemberChange:
    """These shall not be in any more."""
    return MemberChange("remove", members)


@contextlib.asynccontextmanager
async def driven(folder: Path, connector: Connector[Any, Any]) -> AsyncIterator[Driven]:
    """A target with an empty store."""
    place = folder / f"{uuid.uuid4().hex}.sqlite3"
    await write_blank_store(place)
    store = Store.open(place)
    try:
        yield Driven(store, connector)
    finally:
        await store.close()


def codes(rows: Sequence[Row]) -> list[str]:
    """Reasons of rows."""
    return [row.reason.code if row.reason else "" for row in rows]
