"""From Entra's write to the product and back in one process: the gateway's engine, the worker's delivery, an emulated product.

Only NATS and the listeners are left out. Time passes when a test says so, for the engine and for the product alike.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from deploy.emulators.harness import Emulator, running
from gateway.bus import ProbeReply
from gateway.intake import Answer
from gateway.lifecycle import Row
from gateway.visibility import shown_document
from schemas.config import TargetSettings
from schemas.events import Outcome, decode_event
from schemas.specs import Spec
from schemas.states import State
from tests.connectors.alone import StaysOurs
from tests.gateway.bench import TARGET
from tests.gateway.engine import SETTINGS, Desk, Engine
from tests.simulation.books import MemoryBooks
from workers.control import probe
from workers.delivery import deliver
from workers.limits import CallLimit
from workers.targets import Served

ROUNDS_MAX = 20


async def _no_limit(limit: CallLimit) -> None:
    pass


class Asking(Desk):
    """A bus whose probes are answered by the worker's own check."""

    served: Served | None = None

    async def probe(self, target: str) -> ProbeReply | None:
        """See `Bus`."""
        self.probed.append(target)
        assert self.served is not None
        said = await probe(self.served)
        return ProbeReply(ok=said.ok, code=said.code, message=said.message)


class Chain:
    """One target.

    Attributes:
        outcomes: what deliveries came to, in order.
    """

    def __init__(self, emulator: Emulator, served: Served, settings: TargetSettings) -> None:
        self.emulator, self.served = emulator, served
        self.bus = Asking()
        self.bus.served = served
        self.engine = Engine(MemoryBooks(), bus=self.bus, answer_wait_s=0.0)
        self.engine.targets = {TARGET: settings}
        self.engine.dispatcher.rights_settle_s = lambda target: self.spec.rights_settle_s
        self.engine.outcomes.rights_settle_s = lambda target: self.spec.rights_settle_s
        self.outcomes: list[Outcome] = []

    @property
    def spec(self) -> Spec:
        """What the connector declares."""
        return self.served.spec

    async def post(self, document: Mapping[str, Any]) -> Row:
        """Entra creates a user; what comes of it is worked off."""
        answer = await self.engine.intake.create(TARGET, "user", dict(document))
        return await self._worked(answer)

    async def patch(self, resource: str, **attributes: Any) -> Row:
        """Entra changes a user; what comes of it is worked off."""
        return await self._worked(await self.engine.patch(resource, **attributes))

    async def delete(self, resource: str) -> Row:
        """Entra deletes a user; what comes of it is worked off."""
        return await self._worked(await self.engine.delete(resource))

    async def _worked(self, answer: Answer) -> Row:
        assert answer.row is not None
        await self.work()
        return self.engine.row(answer.row.id)

    async def work(self) -> None:
        """Deliver whatever is out until nothing more comes of it."""
        for _ in range(ROUNDS_MAX):
            await self.engine.idle()
            if not self.bus.stream:
                return
            for resource in list(self.bus.stream):
                await self.deliver(resource)
        raise AssertionError("deliveries without end")

    async def deliver(self, resource: str, *, delivery: int = 1, lost: bool = False) -> Outcome:
        """One delivery. `lost`: the worker dies before it can tell what came of it, so the message comes again."""
        event = decode_event(self.bus.stream[resource].body)
        outcome = await deliver(
            event,
            delivery=delivery,
            connector=self.served.connector,
            directory=self.served.directory,
            owned=StaysOurs(),
            new_id=lambda: f"o{len(self.outcomes)}",
            clock=self.engine.clock.now,
        )
        assert outcome is not None
        self.outcomes.append(outcome)
        if not lost:
            del self.bus.stream[resource]
            await self.engine.outcomes.fold(outcome)
        return outcome

    async def redeliver(self, resource: str) -> None:
        """The message of a worker that died: the gateway lets another one go, which looks before it writes."""
        row = self.engine.row(resource)
        self.engine.save(row, delivery=2)
        await self.deliver(resource, delivery=2)
        await self.work()

    async def pass_s(self, seconds: float, *, step_s: float = 30.0) -> None:
        """Time passes; the sweeper comes by every `step_s`, and what it sends is worked off."""
        while seconds > 0:
            step = min(step_s, seconds)
            self.emulator.clock.advance(step)
            await self.engine.sweep(step)
            await self.work()
            seconds -= step

    def state(self, resource: str) -> State:
        """The resource's state."""
        return self.engine.row(resource).state

    def shown(self, resource: str) -> dict[str, Any]:
        """What Entra reads."""
        return shown_document(self.engine.row(resource))


@asynccontextmanager
async def chained(
    emulator: Emulator, connector: str, folder: Path, settings: Mapping[str, Any], **target: Any
) -> AsyncIterator[Chain]:
    """A target of a connector whose product is this emulator.

    Args:
        settings: of the connector besides address and loopback.
        target: of the target itself, e.g. `adopt`.
    """
    emulator.clock.freeze(True)
    async with running(emulator) as url:
        table = {"base_url": url, "allow_loopback": True, **settings}
        configured = TargetSettings(connector=connector, settings=table)
        served = Served("t", configured, folder, concurrency_max=4, before_call=_no_limit)
        chain = Chain(emulator, served, msgspec.structs.replace(SETTINGS, connector=connector, **target))
        try:
            yield chain
        finally:
            await served.close()
