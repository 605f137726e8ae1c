"""Parts for the tests of the worker: a product with state, and a stand-in for the gateway's side of the bus."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client

from schemas import topology
from schemas.config import parse
from schemas.events import (
    ACT_BEFORE_HEADER,
    Begin,
    BeginReply,
    Outcome,
    ProvisioningEvent,
    decode_outcome,
    encode,
    event_headers,
)
from schemas.states import Change
from tests.conftest import NatsServer
from tests.waiting import until
from tests.workers.shelf import ShelfServer
from workers.app import Worker
from workers.ownership import monotonic_s

WAIT_S = 60.0


class Clock:
    """Real time, plus what a test adds."""

    def __init__(self) -> None:
        self.added_s = 0.0

    def __call__(self) -> float:
        return monotonic_s() + self.added_s


class Gateway:
    """The gateway's side of the bus: sends events, answers `begin`, keeps outcomes."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.go: bool | None = True
        self.asked: list[Begin] = []
        self.outcomes: list[Outcome] = []

    async def listen(self) -> None:
        """Hear outcomes and questions."""
        await self.client.subscribe("prov.v1.outcome.>", cb=self._on_outcome)
        await self.client.subscribe(topology.BEGIN_SUBJECT, cb=self._on_begin)

    async def request(self, subject: str, body: bytes = b"") -> bytes:
        """One NATS request."""
        return (await self.client.request(subject, body, timeout=5)).data

    async def declare(self) -> topology.StreamState:
        """The work stream, as the gateway would declare it."""
        return await topology.declare_stream(self.request, topology.WORK)

    async def send(
        self, resource: str = "r1", *, act_before_s: float | None = 10.0, body: bytes | None = None, **fields: Any
    ) -> ProvisioningEvent:
        """Publish one event; `act_before_s` from now, or no such header at all."""
        event = an_event(resource, **fields)
        headers = event_headers(event, recorded_at=time.time(), act_before=time.time() + (act_before_s or 0.0))
        if act_before_s is None:
            del headers[ACT_BEFORE_HEADER]
        await self.client.jetstream().publish(
            topology.event_subject(event.target, event.kind, event.resource), body or encode(event), headers=headers
        )
        return event

    async def left(self) -> int:
        """How many events the work stream still holds."""
        reply = msgspec.json.decode(await self.request(f"$JS.API.STREAM.INFO.{topology.WORK}"))
        return int(reply["state"]["messages"])

    async def acknowledged(self) -> bool:
        """Whether nothing is left in the work stream."""
        return await self.left() == 0

    async def consumers(self) -> list[dict[str, Any]]:
        """The work stream's consumers."""
        reply = msgspec.json.decode(await self.request(f"$JS.API.CONSUMER.LIST.{topology.WORK}"))
        return list(reply.get("consumers") or ())

    async def outcome(self, number: int = 1, wait_s: float = WAIT_S) -> Outcome:
        """The n-th outcome that was heard."""
        await until(lambda: len(self.outcomes) >= number, wait_s=wait_s)
        return self.outcomes[number - 1]

    async def ask(self, target: str, question: dict[str, Any]) -> dict[str, Any]:
        """A question to a worker of this target."""
        reply = await self.request(topology.control_subject(target), msgspec.json.encode(question))
        return dict(msgspec.json.decode(reply))

    async def _on_outcome(self, message: Any) -> None:
        self.outcomes.append(decode_outcome(message.data))

    async def _on_begin(self, message: Any) -> None:
        self.asked.append(msgspec.json.decode(message.data, type=Begin))
        if self.go is not None:
            await message.respond(encode(BeginReply(go=self.go)))


def an_event(
    resource: str = "r1", *, name: str = "", document: dict[str, Any] | None = None, **fields: Any
) -> ProvisioningEvent:
    """A create of one user of the target `shelf`, unless told otherwise."""
    name = name or f"{resource}@contoso.example"
    known: dict[str, Any] = {
        "id": f"event-{resource}",
        "target": "shelf",
        "connector": "shelf",
        "kind": "user",
        "resource": resource,
        "generation": 1,
        "fence": 1,
        "change": Change.CREATE,
        "document": msgspec.Raw(msgspec.json.encode(document if document is not None else {"userName": name})),
        "identities": (f"userName:{name}",),
    }
    return ProvisioningEvent(**{**known, **fields})


def configuration_text(url: str, shelf_url: str, more: str = "") -> str:
    """One target `shelf`; `more` is further TOML."""
    return (
        f'[nats]\nurl = "{url}"\n[worker]\nconcurrency_max = 4\ndrain_s = 5\n'
        f'[targets.shelf]\nconnector = "shelf"\n[targets.shelf.settings]\nbase_url = "{shelf_url}"\n{more}'
    )


@pytest.fixture
def plugin_folder(tmp_path: Path) -> Path:
    """An installed package of somebody else's that brings the connectors of `tests/workers/shelf.py` by entry point."""
    folder = tmp_path / "plugin"
    info = folder / "shelf_connector-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf-connector\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[provgate.connectors]\nshelf = tests.workers.shelf:Shelf\nbroken = tests.workers.shelf:Absent\n"
    )
    return folder


@pytest.fixture
def installed(plugin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That package on the import path of this process."""
    monkeypatch.syspath_prepend(str(plugin_folder))


@pytest_asyncio.fixture
async def shelf() -> AsyncIterator[ShelfServer]:
    """A running product."""
    server = ShelfServer()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@pytest_asyncio.fixture
async def gateway(nats_server: NatsServer) -> AsyncIterator[Gateway]:
    """The gateway's side of a running bus."""
    client = await nats.connect(nats_server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
    side = Gateway(client)
    await side.listen()
    await side.declare()
    try:
        yield side
    finally:
        await client.close()


StartWorker = Callable[..., Awaitable[Worker]]


@pytest_asyncio.fixture
async def start_worker(nats_server: NatsServer, shelf: ShelfServer, installed: None) -> AsyncIterator[StartWorker]:
    """Starts workers in this process, and stops them at the end: `await start_worker(more="…", clock=…)`."""
    running: list[tuple[Worker, asyncio.Task[int]]] = []

    async def start(more: str = "", *, wait: bool = True, **arguments: Any) -> Worker:
        config = parse(configuration_text(nats_server.url, shelf.url, more))
        worker = Worker(config, Path("."), **arguments)
        task = asyncio.create_task(worker.run())
        running.append((worker, task))
        if wait:
            await until(worker.serving.is_set)
        return worker

    yield start
    shelf.gate.set()
    for worker, task in running:
        worker.stop()
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.timeout(WAIT_S):
                await task
