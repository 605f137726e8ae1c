"""The bus on NATS JetStream: what `gateway/bus.py` asks for, and the two ears for outcomes.

Outcomes are heard twice: as plain NATS messages, so that what this gateway has dispatched is folded at once, and through one
durable consumer that all gateways share, for everything that was missed. Folding is idempotent.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import msgspec
import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from gateway.bus import Message, ProbeReply, Published
from gateway.dispatch import act_before
from gateway.lifecycle import Row
from gateway.outcomes import Outcomes
from schemas import topology
from schemas.config import NatsSettings
from schemas.events import (
    MESSAGE_ID_HEADER,
    Begin,
    BeginReply,
    Outcome,
    decode_event,
    decode_outcome,
    encode,
    event_headers,
    timestamp,
)
from schemas.logs import logger

CONNECT_WAIT_S = 2
PUB_ACK_WAIT_S = 0.25
"""How long a publish waits for its PubAck; the sweeper sends again what got none."""
REQUEST_WAIT_S = 2.0
PROBE_WAIT_S = 12.0
IDENTITIES_WAIT_S = 0.3
FETCH_BATCH = 256
FETCH_WAIT_S = 0.05
FETCH_EVERY_S = 0.5
"""The second ear listens this often: what it hears was folded before, nearly always, and many at once cost less than each."""
RETRY_WAIT_S = 0.5
RECONNECT_WAIT_S = 1
REMEMBERED_MAX = 20_000
"""Outcome ids and sent resources remembered, so that the second ear has little to do."""
LIVE_QUEUE_MAX = 1_000
PRESENCE_FRESH_S = 1.5 * topology.PRESENCE_EVERY_S
WORKERS_READ_MAX = 256
REFUSED_CODE = 10077

log = logger()
T = TypeVar("T")


class JetStream:
    """One connection to NATS that comes back for ever.

    Args:
        settings: where NATS is.
        credentials: path of a credentials file, if one is used.
        alone: no other gateway works on this store, so nobody has to be told what was settled here.
        on_presence: is told what workers say about themselves: worker id, and the document or None when it left.
    """

    def __init__(
        self,
        settings: NatsSettings,
        *,
        credentials: str | None = None,
        alone: bool = False,
        on_presence: Callable[[str, dict[str, Any] | None], None] = lambda worker, document: None,
    ) -> None:
        self.settings = settings
        self.credentials = credentials
        self.alone = alone
        self.on_presence = on_presence
        self._client = Client()
        self._states: dict[str, topology.StreamState] = {}
        self._consumer = ""
        self._folded: OrderedDict[str, None] = OrderedDict()
        self._sent: OrderedDict[str, int] = OrderedDict()
        self._folding: set[asyncio.Task[None]] = set()
        self._in_work: dict[str, asyncio.Task[None]] = {}
        self._outcomes: Outcomes | None = None
        self._begin: Callable[[Begin], Awaitable[bool | None]] | None = None
        self._woken: Callable[[str, Row | None], None] = lambda resource, row: None

    # ---- connection

    async def start(
        self,
        outcomes: Outcomes,
        begin: Callable[[Begin], Awaitable[bool | None]],
        woken: Callable[[str, Row | None], None],
    ) -> None:
        """Connect, as soon as NATS is there, and listen. Returns when connected; until then everything else goes on without."""
        self._outcomes, self._begin, self._woken = outcomes, begin, woken
        while True:
            try:
                await self._client.connect(
                    self.settings.url,
                    name="provgate-gateway",
                    connect_timeout=CONNECT_WAIT_S,
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=RECONNECT_WAIT_S,
                    pending_size=1,  # nothing is buffered over a reconnect: a late event would surprise everybody
                    error_cb=self._on_error,
                    disconnected_cb=self._on_lost,
                    reconnected_cb=self._on_back,
                    user_credentials=self.credentials,
                )
                break
            except (OSError, nats.errors.Error, TimeoutError) as exc:
                log.warning("bus.unreachable", error=type(exc).__name__)
                await asyncio.sleep(CONNECT_WAIT_S)
        await self._client.subscribe("prov.v1.outcome.>", cb=self._hear_outcome)
        await self._client.subscribe("prov.v1.settled.>", cb=self._hear_settled)
        await self._client.subscribe(topology.BEGIN_SUBJECT, queue="gateways", cb=self._hear_begin)
        await self._client.subscribe(f"$KV.{topology.WORKERS_BUCKET}.>", cb=self._hear_presence)
        await self._read_presences()
        log.info("bus.connected")

    async def close(self) -> None:
        """Finish what is being folded, then leave."""
        if self._folding:
            await asyncio.wait(self._folding, timeout=REQUEST_WAIT_S)
        # A TimeoutError, too: what the client still has to say can be said no more.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(REQUEST_WAIT_S):
                await self._client.close()

    async def _on_error(self, exc: Exception) -> None:
        if not isinstance(exc, (OSError, nats.errors.Error)):
            log.warning("bus.error", error=type(exc).__name__)

    async def _on_lost(self) -> None:
        log.warning("bus.disconnected")

    async def _on_back(self) -> None:
        log.info("bus.reconnected")

    async def _request(self, subject: str, body: bytes) -> bytes:
        reply = await self._client.request(subject, body, timeout=REQUEST_WAIT_S)
        return bytes(reply.data)

    # ---- the engine's view (`gateway.bus.Bus`)

    def connected(self) -> bool:
        """Whether a request would get through, as far as the client knows."""
        return bool(self._client.is_connected)

    async def publish(self, message: Message) -> Published:
        """Offer one event to the stream (R5)."""
        event = decode_event(message.body)
        headers = event_headers(event, recorded_at=message.read_at, act_before=act_before(message))
        subject = topology.event_subject(message.target, message.kind, message.resource)
        self._remember(self._sent, message.resource, message.fence)
        try:
            reply = await self._client.request(subject, message.body, timeout=PUB_ACK_WAIT_S, headers=headers)
            answer = msgspec.json.decode(reply.data)
        except (OSError, nats.errors.Error, TimeoutError, msgspec.DecodeError):
            return Published.UNKNOWN
        if "error" in answer:
            if answer["error"].get("err_code") == REFUSED_CODE:
                return Published.REFUSED
            log.warning(
                "event.not_stored",
                target=message.target,
                resource_id=message.resource,
                code=answer["error"].get("code"),
            )
            return Published.UNKNOWN
        return Published.DUPLICATE if answer.get("duplicate") else Published.STORED

    async def holds(self, target: str, kind: str, resource: str) -> bool | None:
        """Whether an event of this resource is in the stream, asked of the stream's leader."""
        subject = topology.event_subject(target, kind, resource)
        try:
            reply = msgspec.json.decode(
                await self._request(
                    f"$JS.API.STREAM.MSG.GET.{topology.WORK}", msgspec.json.encode({"last_by_subj": subject})
                )
            )
        except (OSError, nats.errors.Error, TimeoutError, msgspec.DecodeError):
            return None
        if "error" in reply:
            return False if reply["error"].get("err_code") == 10037 else None
        return True

    async def outcomes_end(self) -> tuple[str, int] | None:
        """Creation time and last sequence of the outcome stream."""
        try:
            state = await topology.stream_state(self._request, topology.OUTCOMES)
        except (OSError, nats.errors.Error, TimeoutError, topology.TopologyError):
            return None
        return (state.created, state.last_seq) if state is not None else None

    async def outcomes_folded(self) -> tuple[str, int] | None:
        """Up to where the gateways' shared consumer has acknowledged."""
        state = self._states.get(topology.OUTCOMES)
        if state is None or not self._consumer:
            return None
        try:
            subject = f"$JS.API.CONSUMER.INFO.{topology.OUTCOMES}.{self._consumer}"
            reply = msgspec.json.decode(await self._request(subject, b""))
        except (OSError, nats.errors.Error, TimeoutError, msgspec.DecodeError):
            return None
        if "error" in reply:
            return None
        if not reply["num_pending"] and not reply["num_ack_pending"]:
            return state.created, max(int(reply["ack_floor"]["stream_seq"]), int(reply["delivered"]["stream_seq"]))
        return state.created, int(reply["ack_floor"]["stream_seq"])

    async def streams(self) -> dict[str, str] | None:
        """Creation times of the streams whose loss matters; a missing stream is made anew, which makes the loss visible."""
        try:
            found = {}
            for name in (topology.WORK, topology.OUTCOMES):
                state = await topology.stream_state(self._request, name)
                known = self._states.get(name)
                # Another creation time: a worker made it anew before we looked, and our consumer went with the old one.
                if state is None or known is None or known.created != state.created:
                    state = await self._declare(name)
                found[name] = state.created
            return found
        except (OSError, nats.errors.Error, TimeoutError):
            return None
        except topology.TopologyError as exc:
            log.error("bus.topology_refused", detail=str(exc))
            return None

    async def _declare(self, missing: str) -> topology.StreamState:
        for name in topology.STREAMS:
            self._states[name] = await topology.declare_stream(self._request, name, replicas=self.settings.replicas)
        self._consumer = await topology.declare_outcome_consumer(self._request, self._states[topology.OUTCOMES])
        return self._states[missing]

    async def probe(self, target: str) -> ProbeReply | None:
        """A cheap check by any worker of this target."""
        return await self._ask(target, {"do": "probe"}, PROBE_WAIT_S, ProbeReply)

    async def identities(self, target: str, user_name: str) -> list[str]:
        """The product's own spellings of a user name, from any worker; [] when nobody answers in time."""
        question = {"do": "identities", "document": {"userName": user_name}}
        reply = await self._ask(target, question, IDENTITIES_WAIT_S, _Identities)
        return list(reply.account_keys) if reply is not None else []

    async def ask(self, target: str, question: Mapping[str, Any], wait_s: float) -> bytes | None:
        """Any worker's answer to a control question, as it came; None when nobody answered in time."""
        try:
            body = msgspec.json.encode(question)
            reply = await self._client.request(topology.control_subject(target), body, timeout=wait_s)
            return bytes(reply.data)
        except (OSError, nats.errors.Error, TimeoutError):
            return None

    async def _ask(self, target: str, question: dict[str, Any], wait_s: float, type_: type[T]) -> T | None:
        try:
            body = msgspec.json.encode(question)
            reply = await self._client.request(topology.control_subject(target), body, timeout=wait_s)
            return msgspec.json.decode(reply.data, type=type_)
        except (OSError, nats.errors.Error, TimeoutError, msgspec.DecodeError):
            return None

    def announce_settled(self, resource: str) -> None:
        """Wake a request that waits in another gateway."""
        if not self.alone:
            self._tell(topology.settled_subject(resource), b"")

    def announce_dead(self, row: Row) -> None:
        """Mirror a dead letter for people who watch NATS: ids and the reason's code, no values."""
        reason = row.reason
        body = {
            "target": row.target,
            "resource": row.id,
            "generation": row.generation,
            "code": reason.code if reason else "",
            "attribute": reason.attribute if reason else None,
        }
        self._tell(topology.dead_subject(row.target, row.kind, row.id), msgspec.json.encode(body))

    def _tell(self, subject: str, body: bytes) -> None:
        if self._client.is_connected:
            task = asyncio.ensure_future(self._publish_quietly(subject, body))
            self._folding.add(task)
            task.add_done_callback(self._folding.discard)

    async def _publish_quietly(self, subject: str, body: bytes) -> None:
        with contextlib.suppress(OSError, nats.errors.Error):
            await self._client.publish(subject, body)

    # ---- ears

    async def _hear_outcome(self, message: Msg) -> None:
        try:
            outcome = decode_outcome(message.data)
        except msgspec.DecodeError:
            return  # the durable consumer meets it too, and says so
        if outcome.resource in self._sent:
            task = asyncio.ensure_future(self._fold(outcome))
            self._in_work[outcome.id] = task
            self._folding.add(task)
            task.add_done_callback(self._folding.discard)

    async def _fold(self, outcome: Outcome) -> None:
        try:
            assert self._outcomes is not None
            await self._outcomes.fold(outcome)
            self._remember(self._folded, outcome.id, None)
        except Exception as exc:  # the durable consumer brings it again
            log.error(
                "outcome.not_folded", target=outcome.target, resource_id=outcome.resource, error=type(exc).__name__
            )
        finally:
            self._in_work.pop(outcome.id, None)

    async def fold_for_ever(self) -> None:
        """Take outcomes from the durable consumer, fold what is not folded yet, acknowledge after the commit (A5)."""
        pull: Any = None
        bound = ""
        while True:
            try:
                if not self._client.is_connected or not self._consumer:
                    await asyncio.sleep(RETRY_WAIT_S)
                    continue
                if pull is None or bound != self._consumer:
                    bound = self._consumer
                    pull = await self._client.jetstream().pull_subscribe_bind(durable=bound, stream=topology.OUTCOMES)
                messages = await pull.fetch(FETCH_BATCH, timeout=FETCH_WAIT_S)
                await asyncio.gather(*(self._take(message) for message in messages))
                if len(messages) < FETCH_BATCH:
                    await asyncio.sleep(FETCH_EVERY_S)
            except (TimeoutError, nats.errors.TimeoutError):
                await asyncio.sleep(FETCH_EVERY_S)
            except Exception as exc:  # a consumer that is gone, a connection that broke: bind anew
                log.warning("outcomes.interrupted", error=type(exc).__name__)
                # The consumer may be lost alone: the next look at the streams declares it anew.
                self._states.pop(topology.OUTCOMES, None)
                pull = None
                await asyncio.sleep(RETRY_WAIT_S)

    async def _take(self, message: Msg) -> None:
        try:
            outcome = decode_outcome(message.data)
        except msgspec.DecodeError as exc:
            log.error("outcome.unreadable", detail=str(exc))
            await message.term()
            return
        if outcome.id in self._in_work:
            await asyncio.wait({self._in_work[outcome.id]})
        if outcome.id not in self._folded:
            assert self._outcomes is not None
            await self._outcomes.fold(outcome)
            self._remember(self._folded, outcome.id, None)
        await message.ack()

    async def _hear_settled(self, message: Msg) -> None:
        self._woken(message.subject.rsplit(".", 1)[-1], None)

    async def _hear_begin(self, message: Msg) -> None:
        task = asyncio.ensure_future(self._answer_begin(message))
        self._folding.add(task)
        task.add_done_callback(self._folding.discard)

    async def _answer_begin(self, message: Msg) -> None:
        try:
            request = msgspec.json.decode(message.data, type=Begin)
            assert self._begin is not None
            go = await self._begin(request)
        except Exception as exc:  # no answer: the worker leaves the message alone and asks again later
            log.warning("begin.not_answered", error=type(exc).__name__)
            return
        if go is not None:
            await message.respond(encode(BeginReply(go=go)))

    async def _hear_presence(self, message: Msg) -> None:
        worker = message.subject.rsplit(".", 1)[-1]
        if (message.headers or {}).get("KV-Operation"):
            self.on_presence(worker, None)
            return
        with contextlib.suppress(msgspec.DecodeError):
            document = msgspec.json.decode(message.data)
            if isinstance(document, dict):
                self.on_presence(worker, document)

    async def _read_presences(self) -> None:
        """Workers that spoke before we listened. Without this, a gateway that has just started believes for seconds that nobody
        serves, and tells Entra success without waiting for the product's word."""
        stream = f"KV_{topology.WORKERS_BUCKET}"
        question = msgspec.json.encode({"subjects_filter": f"$KV.{topology.WORKERS_BUCKET}.>"})
        try:
            reply = msgspec.json.decode(await self._request(f"$JS.API.STREAM.INFO.{stream}", question))
            subjects = list(reply.get("state", {}).get("subjects") or ())
            for subject in subjects[:WORKERS_READ_MAX]:
                kept = await self._client.request(f"$JS.API.DIRECT.GET.{stream}.{subject}", timeout=REQUEST_WAIT_S)
                stored_at = datetime.fromisoformat((kept.headers or {}).get("Nats-Time-Stamp", ""))
                if time.time() - stored_at.timestamp() < PRESENCE_FRESH_S:  # an older one is silent, and perhaps dead
                    kept.subject = subject
                    await self._hear_presence(kept)
        except (OSError, nats.errors.Error, TimeoutError, msgspec.DecodeError, ValueError) as exc:
            log.info("presences.not_read", error=type(exc).__name__)  # they speak again soon

    async def live(self) -> AsyncIterator[dict[str, Any]]:
        """Events and outcomes as they pass, as plain data without values."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(LIVE_QUEUE_MAX)

        async def take(message: Msg) -> None:
            with contextlib.suppress(asyncio.QueueFull, msgspec.DecodeError):
                queue.put_nowait(_seen_event(message) if ".log." in message.subject else _seen_outcome(message))

        subscriptions = [await self._client.subscribe(s, cb=take) for s in ("prov.v1.log.>", "prov.v1.outcome.>")]
        try:
            while True:
                yield await queue.get()
        finally:
            for subscription in subscriptions:
                with contextlib.suppress(nats.errors.Error):
                    await subscription.unsubscribe()

    @staticmethod
    def _remember(memory: OrderedDict[str, Any], key: str, value: Any) -> None:
        memory[key] = value
        if len(memory) > REMEMBERED_MAX:
            memory.popitem(last=False)


class _Identities(msgspec.Struct):
    ok: bool = False
    account_keys: tuple[str, ...] = ()


def _seen_event(message: Msg) -> dict[str, Any]:
    event = decode_event(message.data)
    return {
        "at": event.recorded_at,
        "kind": "event",
        "target": event.target,
        "connector": event.connector,
        "resource": event.resource,
        "resource_kind": event.kind,
        "event_id": event.id,
        "generation": event.generation,
        "fence": event.fence,
        "change": event.change.value,
        "changed": list(event.changed),
        "message_id": (message.headers or {}).get(MESSAGE_ID_HEADER, ""),
    }


def _seen_outcome(message: Msg) -> dict[str, Any]:
    outcome = decode_outcome(message.data)
    return {
        "at": timestamp(outcome.ended_at),
        "kind": "outcome",
        "target": outcome.target,
        "resource": outcome.resource,
        "resource_kind": outcome.kind,
        "event_id": outcome.event_id,
        "generation": outcome.generation,
        "fence": outcome.fence,
        "delivery": outcome.delivery,
        "result": outcome.result.value,
        "code": outcome.reason.code if outcome.reason else "",
        "ms": round((outcome.ended_at - outcome.started_at) * 1000, 1),
        "steps": len(outcome.steps),
        "worker": outcome.worker,
    }
