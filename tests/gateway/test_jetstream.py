"""The bus on a real nats-server: what its streams say, what is heard, and how often."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import nats
import psutil
import pytest
import pytest_asyncio
from nats.aio.client import Client

from gateway.bus import Message, Published
from gateway.jetstream import JetStream
from gateway.lifecycle import Row
from gateway.outcomes import Outcomes
from schemas import topology
from schemas.config import NatsSettings
from schemas.events import (
    ACT_BEFORE_HEADER,
    MESSAGE_ID_HEADER,
    Begin,
    BeginReply,
    Outcome,
    Reason,
    cloud_event,
    decode_event,
    encode,
    outcome_headers,
)
from schemas.states import Result, State
from schemas.topology import FRESH_S
from tests.conftest import NatsServer
from tests.gateway.bench import TARGET, outcome_of
from tests.gateway.engine import Engine
from tests.simulation.books import MemoryBooks
from tests.waiting import until

WAIT_S = 10.0


class Gateway:
    """One gateway: the bus under test, and a real engine behind it."""

    def __init__(self, url: str, books: MemoryBooks, *, alone: bool = False) -> None:
        self.presences: list[tuple[str, dict[str, Any] | None]] = []
        self.woken: list[tuple[str, Row | None]] = []
        self.bus = JetStream(
            NatsSettings(url=url), alone=alone, on_presence=lambda who, what: self.presences.append((who, what))
        )
        self.engine = Engine(books, bus=self.bus)
        self.engine.serving = False
        self.engine.clock.time = time.time()
        self.folding: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect, declare the streams, listen."""
        async with asyncio.timeout(WAIT_S):
            await self.bus.start(
                self.engine.outcomes,
                self.engine.dispatcher.begin,
                lambda resource, row: self.woken.append((resource, row)),
            )
        assert await self.bus.streams()

    def fold(self) -> None:
        """Begin to listen to the durable consumer as well."""
        self.folding = asyncio.create_task(self.bus.fold_for_ever())

    async def everything_folded(self) -> bool:
        """Whether the shared consumer has acknowledged everything that is in the stream."""
        end = await self.bus.outcomes_end()
        return end is not None and end[1] > 0 and await self.bus.outcomes_folded() == end

    async def stop(self) -> None:
        """Leave."""
        if self.folding is not None:
            self.folding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.folding
        await self.engine.idle()
        await self.bus.close()

    async def send(self, name: str = "ada") -> Message:
        """Entra creates a user; its event is published."""
        answer = await self.engine.post(name)
        assert answer.row is not None
        await self.engine.idle()
        return self.message(answer.row.id)

    def message(self, resource: str) -> Message:
        """The event of a delivery that is out, as it goes over the bus."""
        row = self.engine.row(resource)
        assert row.body is not None
        return Message(row.target, row.kind, row.id, row.fence, row.body, time.time())


@pytest_asyncio.fixture
async def start(nats_server: NatsServer) -> AsyncIterator[Callable[..., Awaitable[Gateway]]]:
    """Starts gateways, on one store unless told otherwise, and stops them at the end."""
    books = MemoryBooks()
    running: list[Gateway] = []

    async def one(**arguments: Any) -> Gateway:
        gateway = Gateway(nats_server.url, arguments.pop("books", books), **arguments)
        running.append(gateway)
        await gateway.start()
        return gateway

    yield one
    for gateway in running:
        await gateway.stop()


@pytest_asyncio.fixture
async def gateway(start: Callable[..., Awaitable[Gateway]]) -> Gateway:
    """One running gateway."""
    return await start()


class Worker:
    """The worker's side of the bus, by hand."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def take(self) -> Any:
        """Pull one event of the target."""
        state = await topology.stream_state(self.request, topology.WORK)
        assert state is not None
        name = await topology.declare_work_consumer(self.request, state, TARGET, ack_pending_max=10)
        pull = await self.client.jetstream().pull_subscribe_bind(durable=name, stream=topology.WORK)
        (message,) = await pull.fetch(1, timeout=WAIT_S)
        return message

    async def request(self, subject: str, body: bytes = b"") -> bytes:
        """One NATS request."""
        return (await self.client.request(subject, body, timeout=WAIT_S)).data

    async def tell(self, outcome: Outcome) -> None:
        """Publish an outcome, confirmed by the stream."""
        subject = topology.outcome_subject(outcome.target, outcome.kind, outcome.resource)
        await self.client.jetstream().publish(subject, encode(outcome), headers=outcome_headers(outcome))


@pytest_asyncio.fixture
async def worker(nats_server: NatsServer) -> AsyncIterator[Worker]:
    """A worker's connection."""
    client = await nats.connect(nats_server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
    yield Worker(client)
    await client.close()


# ---- publishing


async def test_R5_the_stream_says_stored_duplicate_refused_and_stored_again(gateway: Gateway, worker: Worker) -> None:
    """R5: the same fence is known; another one is refused (10077) until the first is acknowledged, also while a worker has it."""
    message = await gateway.send()
    second = Message(
        message.target,
        message.kind,
        message.resource,
        2,
        encode(msgspec.structs.replace(decode_event(message.body), fence=2)),
        time.time(),
    )

    assert await gateway.bus.publish(message) is Published.DUPLICATE
    assert await gateway.bus.publish(second) is Published.REFUSED
    taken = await worker.take()
    assert await gateway.bus.publish(second) is Published.REFUSED
    await taken.ack_sync()

    assert await gateway.bus.publish(second) is Published.STORED
    assert await gateway.bus.publish(message) is Published.DUPLICATE, "known although it is gone"


async def test_R5_without_an_answer_nothing_is_known(gateway: Gateway, nats_server: NatsServer) -> None:
    """R5, A7: a frozen, dead or stream-less broker: neither stored nor refused is claimed."""
    message = await gateway.send()
    nats_server.freeze()
    process = psutil.Process(nats_server.process.pid if nats_server.process else 0)
    await until(lambda: process.status() == psutil.STATUS_STOPPED)
    started = time.monotonic()
    assert await gateway.bus.publish(message) is Published.UNKNOWN
    assert time.monotonic() - started < 5.0, "the wait for a PubAck is bounded"
    nats_server.thaw()

    nats_server.kill()
    await until(lambda: not gateway.bus.connected())
    assert await gateway.bus.publish(message) is Published.UNKNOWN
    assert await gateway.bus.holds(TARGET, "user", message.resource) is None
    assert await gateway.bus.outcomes_end() is None
    assert await gateway.bus.outcomes_folded() is None
    assert await gateway.bus.streams() is None
    assert await gateway.bus.probe(TARGET) is None


async def test_R5_nothing_is_buffered_over_a_reconnect(gateway: Gateway, nats_server: NatsServer) -> None:
    """R5: what was offered while the bus was away does not arrive by itself later."""
    await gateway.send()
    nats_server.kill()
    await until(lambda: not gateway.bus.connected())
    late = await gateway.send("bob")
    nats_server.start()
    await until(gateway.bus.connected)

    assert await gateway.bus.holds(TARGET, "user", late.resource) is False
    assert await gateway.bus.publish(late) is Published.STORED


async def test_an_event_carries_its_headers(gateway: Gateway, worker: Worker) -> None:
    """R5, R6: CloudEvents attributes, the id of event and fence, and until when it is fresh."""
    message = await gateway.send()

    taken = await worker.take()

    event = decode_event(message.body)
    attributes = cloud_event(taken.headers)
    assert taken.data == message.body
    assert taken.headers[MESSAGE_ID_HEADER] == f"{event.id}-1"
    assert abs(int(taken.headers[ACT_BEFORE_HEADER]) / 1000 - (gateway.engine.clock.time + FRESH_S)) < 1
    assert (attributes["specversion"], attributes["subject"]) == ("1.0", message.resource)
    assert attributes["type"].endswith("prov:create:full")


async def test_P10_events_are_kept_in_the_log(gateway: Gateway, worker: Worker) -> None:
    """P10: PROV_LOG holds every event for 30 days, so that a lost store can be rebuilt."""
    await gateway.send()

    reply = msgspec.json.decode(await worker.request(f"$JS.API.STREAM.INFO.{topology.WORK}"))
    assert reply["state"]["last_seq"] == 1
    await gateway.bus._client.flush()

    async def logged() -> bool:
        reply = msgspec.json.decode(await worker.request(f"$JS.API.STREAM.INFO.{topology.LOG}"))
        return bool(reply["state"]["messages"] == 1)

    await until(logged, wait_s=2.0)


async def test_events_and_outcomes_are_seen_live(gateway: Gateway, worker: Worker) -> None:
    """The live view shows what passes, without values."""
    seen: list[dict[str, Any]] = []

    async def watch() -> None:
        async for entry in gateway.bus.live():
            seen.extend([entry])

    watching = asyncio.create_task(watch())
    try:
        await until(lambda: gateway.bus._client._subs and len(gateway.bus._client._subs) >= 6)
        message = await gateway.send()
        outcome = outcome_of(decode_event(message.body), Result.APPLIED, now=time.time())
        await worker.tell(outcome)
        await until(lambda: len(seen) == 2)
    finally:
        watching.cancel()
    assert [(entry["kind"], entry["resource"]) for entry in seen] == [("event", "r1"), ("outcome", "r1")]
    assert "ada" not in str(seen)


# ---- R1, R10: what is in the stream, and which stream


async def test_R1_the_stream_says_whether_it_holds_an_event(gateway: Gateway, worker: Worker) -> None:
    """R1: until it is acknowledged, also while a worker has it."""
    assert await gateway.bus.holds(TARGET, "user", "r1") is False
    await gateway.send()
    assert await gateway.bus.holds(TARGET, "user", "r1") is True
    taken = await worker.take()
    assert await gateway.bus.holds(TARGET, "user", "r1") is True
    await taken.ack_sync()

    assert await gateway.bus.holds(TARGET, "user", "r1") is False


async def test_A10_streams_are_declared_once_and_recognised(gateway: Gateway, start: Any) -> None:
    """A10: every gateway declares what it needs and sees the same creation times."""
    other = await start()

    streams = await gateway.bus.streams()

    assert streams is not None
    assert set(streams) == {topology.WORK, topology.OUTCOMES}
    assert streams == await other.bus.streams() == await gateway.bus.streams()


@pytest.mark.parametrize("how", ["wiped", "deleted", "a worker was quicker"])
async def test_R10_a_stream_that_was_made_anew_has_another_creation_time_and_consumer(
    gateway: Gateway, worker: Worker, nats_server: NatsServer, how: str
) -> None:
    """R1, R10: the loss is noticed, the stream is there again, and the consumer's name tells it from the former one."""
    before = await gateway.bus.streams()
    assert before is not None
    consumer = gateway.bus._consumer
    if how == "wiped":
        nats_server.wipe()
        await until(gateway.bus.connected)
    else:
        await worker.request(f"$JS.API.STREAM.DELETE.{topology.OUTCOMES}")
        if how == "a worker was quicker":
            await topology.declare_stream(worker.request, topology.OUTCOMES, replicas=1)

    after = await until(gateway.bus.streams)

    assert after[topology.OUTCOMES] != before[topology.OUTCOMES]
    assert (after[topology.WORK] != before[topology.WORK]) is (how == "wiped")
    assert gateway.bus._consumer != consumer


async def test_R1_everything_lost_by_a_wipe_is_sent_again(gateway: Gateway, nats_server: NatsServer) -> None:
    """R1: the sweep notices the new stream, calls what is not in it lost, and sends it again when old work has come to rest."""
    engine = gateway.engine
    await gateway.send()
    await engine.sweep()
    assert engine.row("r1").published
    nats_server.wipe()
    await until(gateway.bus.connected)
    gateway.fold()

    async def lost() -> bool:
        await engine.sweep(1)
        return engine.row("r1").state is State.QUEUED

    await until(lost)
    assert await gateway.bus.holds(TARGET, "user", "r1") is False
    await engine.sweep(60)

    assert engine.row("r1").fence == 2
    assert await gateway.bus.holds(TARGET, "user", "r1") is True


# ---- outcomes


async def test_A5_an_outcome_is_heard_twice_and_folded_once(gateway: Gateway, worker: Worker) -> None:
    """A5: as plain NATS at once, through the durable consumer for what was missed; folding is idempotent."""
    gateway.fold()
    message = await gateway.send()

    await worker.tell(outcome_of(decode_event(message.body), Result.APPLIED, now=time.time()))

    await until(gateway.everything_folded)
    assert gateway.engine.row("r1").state is State.APPLIED
    assert [row.id for row in gateway.engine.moved] == ["r1"]


async def test_an_outcome_of_a_delivery_of_this_gateway_is_folded_without_the_consumer(
    gateway: Gateway, worker: Worker
) -> None:
    """Gateways fold those they dispatched at once."""
    message = await gateway.send()

    await worker.tell(outcome_of(decode_event(message.body), Result.APPLIED, now=time.time()))

    await until(lambda: gateway.engine.moved)
    assert gateway.engine.row("r1").state is State.APPLIED


async def test_an_outcome_nobody_here_waited_for_comes_through_the_consumer(
    gateway: Gateway, worker: Worker, start: Any
) -> None:
    """P1: the gateway that sent it is gone; another one folds it, and tells those who wait elsewhere."""
    message = await gateway.send()
    other = await start()
    await gateway.bus.close()

    await worker.tell(outcome_of(decode_event(message.body), Result.APPLIED, now=time.time()))
    assert not other.engine.moved
    other.fold()

    await until(other.everything_folded)
    assert other.engine.row("r1").state is State.APPLIED


async def test_A5_an_outcome_that_could_not_be_folded_comes_again(gateway: Gateway, worker: Worker) -> None:
    """A5: acknowledged only after the commit; the second ear brings what the first could not fold."""
    message = await gateway.send()
    fold, failed = gateway.engine.outcomes.fold, []

    class Stumbling(Outcomes):
        """Fails once."""

        def __init__(self) -> None:
            """Everything else is the engine's."""

        async def fold(self, outcome: Outcome) -> None:
            """See `Outcomes`."""
            if not failed:
                failed.append(outcome.id)
                raise RuntimeError("the database is away")
            await fold(outcome)

    gateway.bus._outcomes = Stumbling()
    gateway.fold()

    await worker.tell(outcome_of(decode_event(message.body), Result.APPLIED, now=time.time()))

    await until(gateway.everything_folded)
    assert len(failed) == 1
    assert gateway.engine.row("r1").state is State.APPLIED


async def test_what_is_no_outcome_is_ended_and_the_next_one_folded(gateway: Gateway, worker: Worker) -> None:
    """Unparsable: term it; it stops nobody."""
    gateway.fold()
    message = await gateway.send()
    await worker.client.jetstream().publish(topology.outcome_subject(TARGET, "user", "r9"), b"{")

    await worker.tell(outcome_of(decode_event(message.body), Result.APPLIED, now=time.time()))

    await until(gateway.everything_folded)
    assert gateway.engine.row("r1").state is State.APPLIED


async def test_R1_how_far_outcomes_are_folded_is_told_of_the_stream_that_is_there(
    gateway: Gateway, worker: Worker
) -> None:
    """R1: an outcome that is not folded yet is seen to be missing."""
    message = await gateway.send()
    await worker.tell(outcome_of(decode_event(message.body), Result.GAVE_UP, now=time.time()))
    end = await gateway.bus.outcomes_end()
    assert end is not None
    assert end[1] == 1
    assert await gateway.bus.outcomes_folded() == (end[0], 0)

    gateway.fold()

    await until(gateway.everything_folded)


async def test_R1_a_consumer_that_is_lost_alone_is_declared_again(gateway: Gateway, worker: Worker) -> None:
    """R1: without it no outcome would come any more, and nothing in flight could be called lost."""
    message = await gateway.send()
    await worker.request(f"$JS.API.CONSUMER.DELETE.{topology.OUTCOMES}.{gateway.bus._consumer}")
    gateway.fold()
    await worker.tell(outcome_of(decode_event(message.body), Result.APPLIED, now=time.time()))

    async def folded() -> bool:
        return await gateway.bus.streams() is not None and await gateway.everything_folded()

    await until(folded)


# ---- plain NATS


async def test_R6_a_worker_is_answered_go_or_drop(gateway: Gateway, worker: Worker) -> None:
    """R6: request-reply; what is in later hands gets no answer and is left alone."""
    await gateway.send()

    async def ask(fence: int, delivery: int) -> BeginReply:
        body = encode(Begin(TARGET, "r1", fence, delivery))
        reply = await worker.client.request(topology.BEGIN_SUBJECT, body, timeout=0.5)
        return msgspec.json.decode(reply.data, type=BeginReply)

    assert (await ask(1, 2)).go is True
    assert (await ask(7, 1)).go is False
    with pytest.raises(nats.errors.TimeoutError):
        await ask(1, 1)
    with pytest.raises(nats.errors.TimeoutError):
        await worker.client.request(topology.BEGIN_SUBJECT, b"nonsense", timeout=0.3)


async def test_R6_a_question_is_answered_by_one_gateway(gateway: Gateway, worker: Worker, start: Any) -> None:
    """R6: gateways share the questions, or two would let two deliveries go."""
    other = await start()
    await gateway.send()
    inbox = worker.client.new_inbox()
    answers: list[bytes] = []

    async def hear(message: Any) -> None:
        answers.append(message.data)

    await worker.client.subscribe(inbox, cb=hear)
    body = encode(Begin(TARGET, "r1", 1, 2))
    for _ in range(10):
        await worker.client.publish(topology.BEGIN_SUBJECT, body, reply=inbox)
    await until(lambda: len(answers) >= 10)
    await worker.client.flush()

    assert len(answers) == 10
    assert other.bus.connected()


async def test_presence_is_heard_and_its_end_as_well(gateway: Gateway, worker: Worker, start: Any) -> None:
    """PROV_WORKERS: who serves what; a gateway that starts later knows those who spoke before."""
    subject = f"$KV.{topology.WORKERS_BUCKET}.w1"
    document = {"worker": "w1", "targets": {}}
    await worker.client.jetstream().publish(subject, msgspec.json.encode(document))
    await until(lambda: gateway.presences)
    assert gateway.presences == [("w1", document)]
    late = await start()
    await until(lambda: late.presences)
    assert late.presences == [("w1", document)]

    await worker.client.jetstream().publish(subject, b"", headers={"KV-Operation": "DEL"})
    await until(lambda: len(gateway.presences) == 2)
    await worker.client.jetstream().publish(subject, b"nonsense")
    await worker.client.flush()

    assert gateway.presences[1] == ("w1", None)


async def test_other_gateways_are_woken(gateway: Gateway, start: Any) -> None:
    """`prov.v1.settled.{resource}` between gateways; nobody is told by one that is alone."""
    other = await start()
    lonely = await start(alone=True)

    lonely.bus.announce_settled("r2")
    gateway.bus.announce_settled("r1")

    await until(lambda: other.woken)
    assert other.woken == [("r1", None)]


async def test_P9_a_dead_letter_is_mirrored_without_values(gateway: Gateway, worker: Worker) -> None:
    """P9: PROV_DEAD carries ids and the reason's code, the newest per resource."""
    row = Row(
        id="r1",
        target=TARGET,
        generation=3,
        document=b'{"userName":"ada"}',
        reason=Reason(code="bad_value", message="ada is no number.", attribute="userName"),
    )

    for _ in range(2):
        gateway.bus.announce_dead(row)

    async def kept() -> dict[str, Any] | None:
        state = msgspec.json.decode(await worker.request(f"$JS.API.STREAM.INFO.{topology.DEAD}"))["state"]
        return dict(state) if state["last_seq"] == 2 else None

    state = await until(kept)
    assert state["messages"] == 1
    body = (
        await worker.client.jetstream().get_last_msg(topology.DEAD, topology.dead_subject(TARGET, "user", "r1"))
    ).data
    assert b"ada" not in (body or b"")
    assert msgspec.json.decode(body or b"")["code"] == "bad_value"


async def test_workers_are_asked_and_their_silence_is_no_answer(gateway: Gateway, worker: Worker) -> None:
    """`prov.v1.ctl.{target}`: probe and identities; nobody there is told at once."""
    started = time.monotonic()
    assert await gateway.bus.probe(TARGET) is None
    assert await gateway.bus.identities(TARGET, "ada") == []
    assert time.monotonic() - started < 5.0

    async def answer(message: Any) -> None:
        asked = msgspec.json.decode(message.data)
        reply = {"ok": True} if asked["do"] == "probe" else {"ok": True, "account_keys": ["447700900123"]}
        await message.respond(msgspec.json.encode(reply))

    await worker.client.subscribe(topology.control_subject(TARGET), cb=answer)
    await worker.client.flush()

    reply = await gateway.bus.probe(TARGET)
    assert reply is not None
    assert reply.ok
    assert await gateway.bus.identities(TARGET, "+44 7700 900123") == ["447700900123"]


async def test_A7_a_gateway_that_starts_before_nats_waits_for_it(nats_server: NatsServer) -> None:
    """A7: SCIM goes on without NATS; the bus is there as soon as NATS is."""
    nats_server.stop()
    gateway = Gateway(nats_server.url, MemoryBooks())
    starting = asyncio.create_task(gateway.start())
    answer = await gateway.engine.post("ada")
    assert answer.error is None
    assert not gateway.bus.connected()

    nats_server.start()
    try:
        async with asyncio.timeout(WAIT_S):
            await starting
        await gateway.engine.sweep(1)
        assert await gateway.bus.holds(TARGET, "user", "r1") is True
    finally:
        await gateway.stop()
