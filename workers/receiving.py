"""From a message to its acknowledgement: the order that makes every event effectively once.

decode, fresh or ask (R6), deliver (`workers/delivery.py`), publish the outcome until it is confirmed, and only then acknowledge.
Whatever happens in between, the event stays in the stream and is delivered again; whatever was done is reported (R8).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import msgspec
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.client import JetStreamContext
from ulid import ULID

from connectors.contract import Delivery
from schemas import topology
from schemas.events import (
    ACT_BEFORE_HEADER,
    Begin,
    BeginReply,
    Outcome,
    ProvisioningEvent,
    Reason,
    decode_event,
    encode,
    outcome_headers,
)
from schemas.logs import at_level, logger
from schemas.plans import NOT_SENT
from schemas.states import Result
from workers.crashpoints import reached
from workers.delivery import deliver
from workers.limits import CallLimit
from workers.ownership import Held, Link, Pulls
from workers.rehearsals import shadow
from workers.targets import Served

DELIVERY_S = 300.0
"""Longest run of one delivery; one that takes longer is reported as such and looked into by the next."""
NAK_S = 5.0
"""When the gateway does not answer, the message comes back after this long."""
PUBLISH_TIMEOUT_S = 2.0
PUBLISH_WAIT_FIRST_S = 0.1
PUBLISH_WAIT_MAX_S = 1.0
ACK_TIMEOUT_S = 1.0
ACK_TRIES_MAX = 3
REPORT_S = 3600.0
"""How long a delivery that gave up tries to tell what it did."""
OUTCOME_BYTES_MAX = 512 * 1024
"""An outcome above this goes without its steps."""

_READS = frozenset({"GET", "HEAD"})
_BEGIN_REPLY = msgspec.json.Decoder(BeginReply)

_LINES: dict[Result, tuple[str, str]] = {
    Result.APPLIED: ("info", "delivery.applied"),
    Result.SEEN: ("info", "delivery.seen"),
    Result.FOUND: ("info", "delivery.found"),
    Result.RETRY: ("warning", "delivery.retrying"),
    Result.RATE_LIMITED: ("warning", "delivery.rate_limited"),
    Result.BLOCKED: ("warning", "delivery.blocked"),
    Result.REJECTED: ("warning", "delivery.rejected"),
    Result.GAVE_UP: ("warning", "delivery.gave_up"),
    Result.MISCONFIGURED: ("error", "delivery.misconfigured"),
    Result.POISON: ("error", "delivery.poisoned"),
}

_current: ContextVar[Held | None] = ContextVar("delivery", default=None)


async def before_call(limit: CallLimit) -> None:
    """Stands before every call to a product: first wait for the rate limit, then look whether the delivery is still ours.

    Raises:
        NotOurs: the delivery this call serves is over (delivery rule R7). Probes belong to no delivery.
    """
    await limit.wait()
    reached("W7")
    held = _current.get()
    if held is not None:
        held.check()


def ack_facts(reply: str) -> tuple[int, int]:
    """How often the broker delivered a message, and when it stored it (epoch nanoseconds), from the ack subject.

    Raises:
        ValueError: this is no ack subject of JetStream.
    """
    parts = reply.split(".")
    if parts[:2] != ["$JS", "ACK"] or len(parts) < 9:
        raise ValueError("no ack subject")
    # $JS.ACK.<stream>.<consumer>.<delivered>.<sseq>.<cseq>.<time>.<pending>, longer forms have domain and account before them
    at = 4 if len(parts) == 9 else 6
    return int(parts[at]), int(parts[at + 3])


class Receiver:
    """What happens to one message.

    Args:
        link: the connection to the bus.
        worker: this worker's id, for the record.
        clock: epoch seconds, for the record only.
        new_id: makes outcome ids.
    """

    def __init__(
        self,
        link: Link,
        worker: str,
        *,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: str(ULID()),
    ) -> None:
        self._link = link
        self._worker = worker
        self._clock = clock
        self._new_id = new_id
        self._log = logger()
        self.stream: JetStreamContext | None = None

    async def receive(self, served: Served, pulls: Pulls, message: Msg) -> None:
        """Everything that is to be done with one message. Never raises; what fails is delivered again by the broker."""
        held = pulls.take(message.reply)
        if held is None:
            return
        token = _current.set(held)
        try:
            with at_level(served.configured.log_level):
                await self._receive(served, pulls, held, message)
        except Exception as exc:  # a mistake of ours: the event stays in the stream, other deliveries go on
            self._log.error("delivery.failed", target=served.name, error=type(exc).__name__, exc_info=exc)
        finally:
            _current.reset(token)
            pulls.done(held)

    async def _receive(self, served: Served, pulls: Pulls, held: Held, message: Msg) -> None:
        started = time.perf_counter()
        reached("W1")
        try:
            event = _event_of(served, message)
            delivery, stored_ns = ack_facts(message.reply)
        except (msgspec.DecodeError, ValueError) as exc:
            await self._terminate(served, held, exc)
            return
        act_before_ms = (message.headers or {}).get(ACT_BEFORE_HEADER, "")
        older_stream = may_have_a_copy(event.recorded_at, pulls.stream_created_ns)
        if older_stream or not is_fresh(held, pulls.fresh_from_ns, act_before_ms, delivery, stored_ns):
            reached("W2")
            rest_ns = stored_ns + int(topology.REST_S * 1e9) - pulls.broker_now_ns
            if older_stream and rest_ns > 0:
                await self._later(held, rest_ns)
                self._line(served, event, delivery, "warning", "delivery.deferred", started)
                return
            go = await self._begin(event, delivery)
            if go is None:
                await self._later(held)
                self._line(served, event, delivery, "warning", "delivery.deferred", started)
                return
            if not go:
                await self._ack(served, held)
                self._line(served, event, delivery, "info", "delivery.dropped", started)
                return
        reached("W3")
        outcome = await self._deliver(served, event, delivery, held)
        if outcome is None:
            self._line(served, event, delivery, "warning", "delivery.lost", started)
            return
        reached("W4")
        if outcome.result is not Result.GAVE_UP:
            if await self._confirmed(outcome, held):
                reached("W5")
                await self._ack(served, held)
                reached("W6")
                self._told(served, event, outcome, started)
                return
            gave_up = self._as_report(outcome)
            if gave_up is None:
                self._line(served, event, delivery, "warning", "delivery.lost", started)
                return
            outcome = gave_up
        reached("W8")
        confirmed = await self._reported(outcome)
        self._told(served, event, outcome, started, confirmed=confirmed)

    async def _deliver(self, served: Served, event: ProvisioningEvent, delivery: int, held: Held) -> Outcome | None:
        started_at = self._clock()
        ctx = Delivery(deadline=time.monotonic() + DELIVERY_S)
        is_shadowed = event.shadow or served.configured.shadow  # either is enough: nothing is written by mistake
        try:
            async with asyncio.timeout(DELIVERY_S):
                if is_shadowed:
                    return await shadow(
                        event,
                        served,
                        delivery=delivery,
                        owned=held,
                        new_id=self._new_id,
                        clock=self._clock,
                        ctx=ctx,
                        worker=self._worker,
                    )
                return await deliver(
                    event,
                    delivery=delivery,
                    connector=served.connector,
                    directory=served.directory,
                    owned=held,
                    new_id=self._new_id,
                    clock=self._clock,
                    ctx=ctx,
                    worker=self._worker,
                )
        except TimeoutError:
            reason = Reason(
                code="delivery_timeout",
                message=f"Applying this change took longer than {DELIVERY_S:.0f} s and was ended.",
            )
        return Outcome(
            id=self._new_id(),
            event_id=event.id,
            target=event.target,
            kind=event.kind,
            resource=event.resource,
            generation=event.generation,
            fence=event.fence,
            delivery=delivery,
            result=Result.RETRY,
            account_id=event.account_id,
            deleted=event.deleted,
            identities=event.identities,
            looked=ctx.ambiguous,
            ambiguous=not is_shadowed,
            notes=() if is_shadowed else tuple(ctx.noted),
            reason=reason,
            steps=tuple(ctx.steps),
            worker=self._worker,
            started_at=started_at,
            ended_at=self._clock(),
        )

    async def _begin(self, event: ProvisioningEvent, delivery: int) -> bool | None:
        """Ask the gateway whether this delivery may act (delivery rule R6); None when it does not say."""
        question = Begin(target=event.target, resource=event.resource, fence=event.fence, delivery=delivery)
        client = self._link.client
        if client is None:
            return None
        try:
            answer = await client.request(topology.BEGIN_SUBJECT, encode(question), timeout=topology.BEGIN_TIMEOUT_S)
            return _BEGIN_REPLY.decode(answer.data).go
        except (NatsError, TimeoutError, OSError, msgspec.DecodeError):
            return None

    async def _later(self, held: Held, delay_ns: int = int(NAK_S * 1e9)) -> None:
        """Give the message back for a while; unanswered or not ours any more, it comes back after ACK_WAIT_S by itself."""
        if held.ours and self._link.client is not None:
            await self._told_broker(held, b'-NAK {"delay": %d}' % delay_ns)

    async def _terminate(self, served: Served, held: Held, exc: Exception) -> None:
        """No redelivery can make this message readable."""
        subject = type(exc).__name__
        self._log.error("event.unreadable", target=served.name, error=subject, reply=held.reply)
        if held.ours:
            await self._told_broker(held, b"+TERM unreadable event: " + subject.encode())

    async def _ack(self, served: Served, held: Held) -> None:
        """Acknowledge while it is ours, and know that the broker heard it."""
        for _ in range(ACK_TRIES_MAX):
            if not held.ours:
                break
            if await self._told_broker(held, b"+ACK"):
                return
        self._log.warning("delivery.ack_unconfirmed", target=served.name)

    async def _told_broker(self, held: Held, word: bytes) -> bool:
        client = self._link.client
        if client is None:
            return False
        try:
            await client.request(held.reply, word, timeout=ACK_TIMEOUT_S)
        except (NatsError, TimeoutError, OSError):
            return False
        return True

    async def _confirmed(self, outcome: Outcome, held: Held) -> bool:
        """Publish until the stream has it, with the same id each time, as long as the delivery is ours."""
        return await self._publish(outcome, lambda: held.ours)

    async def _reported(self, outcome: Outcome) -> bool:
        """Publish a report that settles nothing; ownership does not matter for it (delivery rule R8)."""
        until = time.monotonic() + REPORT_S
        return await self._publish(outcome, lambda: time.monotonic() < until)

    async def _publish(self, outcome: Outcome, go_on: Callable[[], bool]) -> bool:
        body = encode(outcome)
        if len(body) > OUTCOME_BYTES_MAX:
            body = encode(msgspec.structs.replace(outcome, steps=()))
        subject = topology.outcome_subject(outcome.target, outcome.kind, outcome.resource)
        wait_s = PUBLISH_WAIT_FIRST_S
        while go_on():
            if self._link.up and self.stream is not None:
                try:
                    await self.stream.publish(
                        subject,
                        body,
                        timeout=PUBLISH_TIMEOUT_S,
                        stream=topology.OUTCOMES,
                        headers=outcome_headers(outcome),
                    )
                except (NatsError, TimeoutError, OSError) as exc:
                    self._log.warning("outcome.unconfirmed", target=outcome.target, error=type(exc).__name__)
                else:
                    return True
            await asyncio.sleep(wait_s)
            wait_s = min(PUBLISH_WAIT_MAX_S, 2 * wait_s)
        return False

    def _as_report(self, outcome: Outcome) -> Outcome | None:
        """The outcome of a delivery that was lost before it could be told; None when it only read (delivery rule R8)."""
        wrote = (
            outcome.created
            or outcome.result is Result.APPLIED
            or any(s.method not in _READS and s.error != NOT_SENT for s in outcome.steps)
        )
        if not wrote:
            return None
        return msgspec.structs.replace(
            outcome,
            id=self._new_id(),
            result=Result.GAVE_UP,
            account_id=outcome.account_id if outcome.created else None,
        )

    def _told(
        self, served: Served, event: ProvisioningEvent, outcome: Outcome, started: float, *, confirmed: bool = True
    ) -> None:
        level, name = _LINES[outcome.result]
        facts: dict[str, Any] = {}
        if outcome.reason is not None:
            facts = {"code": outcome.reason.code, "attribute": outcome.reason.attribute}
        if not confirmed:
            facts["reported"] = False
        self._line(served, event, outcome.delivery, level, name, started, result=outcome.result.value, **facts)

    def _line(
        self,
        served: Served,
        event: ProvisioningEvent,
        delivery: int,
        level: str,
        name: str,
        started: float,
        **facts: Any,
    ) -> None:
        getattr(self._log, level)(
            name,
            target=event.target,
            resource_id=event.resource,
            txn=event.txn or event.id,
            attempt=delivery,
            ms=round((time.perf_counter() - started) * 1000, 1),
            **facts,
        )


def _event_of(served: Served, message: Msg) -> ProvisioningEvent:
    """Raises: msgspec.DecodeError, ValueError when the body is no event of this subject."""
    event = decode_event(message.data)
    if event.target != served.name or message.subject != topology.event_subject(
        event.target, event.kind, event.resource
    ):
        raise ValueError("the event belongs to another subject")
    return event


def may_have_a_copy(recorded_at: str, stream_created_ns: int) -> bool:
    """Whether an earlier stream may have carried this very event: it was recorded before this stream was made.

    Then another worker may hold a copy, first delivery like this one, and act on it until it loses it (R7). The message rests
    until that is over, and asks then.

    Args:
        recorded_at: when the delivery was decided, the same in every copy (RFC 3339).
    """
    try:
        recorded_ns = int(datetime.fromisoformat(recorded_at).timestamp() * 1e9)
    except ValueError:
        return False  # nothing is known of it; without a header it asks anyway
    return recorded_ns <= stream_created_ns


def is_fresh(held: Held, since_ns: int, act_before_ms: str, delivery: int, stored_ns: int) -> bool:
    """Whether a delivery may act without asking (delivery rule R6).

    All times are the broker's, or compared with a bound the gateway wrote for this purpose; none of this worker's own clocks
    takes part. A message older than the connection or the consumer is not fresh even when its count says so: a consumer that
    was made anew counts from one again.

    Args:
        since_ns: broker time since which connection and consumer have been as they are.
        act_before_ms: the ACT_BEFORE_HEADER of the message, "" when there is none.
        stored_ns: when the broker stored the message.
    """
    return (
        delivery == 1
        and act_before_ms.isdecimal()
        and stored_ns <= int(act_before_ms) * 1_000_000
        and stored_ns >= since_ns
        and held.ours
    )
