"""Whose delivery is it? (Delivery rules R6 and R7.)

The broker hands a message to somebody else when nothing was heard for ACK_WAIT_S. Its clock starts when it answers a pull
request, which is after the request was sent; so a worker that counts from the moment it *sent* the request, or sent an
in-progress signal that was answered, can only be too careful. The moment a message was *received* says nothing: a frozen
process finds minutes-old messages in its socket.

nats-py cannot tell which pull request a message answers: `fetch` first hands out whatever an earlier request left behind.
`Pulls` therefore asks for itself, one request at a time, each with a reply subject of its own, and starts the next one only
after the last has ended; a request whose end cannot be told takes its inbox with it. It stands in the place of a FastStream
pull subscriber's `subscription`, which calls nothing but `fetch` and `unsubscribe`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from schemas import topology
from workers.delivery import NotOurs

PULL_S = 1.0
"""How long one pull request waits at the broker; also what an idle delivery may have aged before it arrives."""
PULL_GRACE_S = 1.0
"""How long after that its end is waited for before its inbox is given up."""
RETRY_S = 0.25
"""Rest after a pull that could not be sent or was refused."""
SIGNAL_TICK_S = 0.5
SIGNAL_TIMEOUT_S = 2.0
HELD_MAX_S = 900.0
"""No delivery is kept alive by signals for longer than this, whatever it does."""

_ENDED = frozenset({"404", "408"})
_HEARTBEAT = "100"
_UNKNOWN = -1
"""Epoch of a request whose end cannot be told any more."""


def monotonic_s() -> float:
    """Seconds that pass also while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(_CLOCK)


_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Connection(Protocol):
    """What ownership needs of a NATS client."""

    @property
    def is_connected(self) -> bool: ...
    def new_inbox(self) -> str: ...
    async def publish(self, subject: str, payload: bytes = b"", reply: str = "") -> None: ...
    async def request(self, subject: str, payload: bytes = b"", timeout: float = 0.5) -> Msg: ...
    async def subscribe(self, subject: str, *, cb: Any = None) -> Any: ...


class Link:
    """The connection to the bus, and how often it was lost: deliveries of an earlier epoch are over.

    Attributes:
        epoch: goes up with every loss of the connection.
        client: the NATS client, once there is one.
    """

    def __init__(self, clock: Callable[[], float] = monotonic_s) -> None:
        self.clock = clock
        self.epoch = 0
        self.client: Connection | None = None

    @property
    def up(self) -> bool:
        """Whether something can be sent right now; nothing is ever buffered over a reconnect (delivery rule R5)."""
        return self.client is not None and self.client.is_connected

    def lost(self) -> None:
        """The connection went down: everything held through it is over for good."""
        self.epoch += 1


class Held:
    """One message in our hands; answers whether it is still ours. Once lost, lost for good.

    Attributes:
        reply: the ack subject, unique per delivery.
        sent_at: when the pull request, or the last answered signal, was sent.
    """

    __slots__ = ("_link", "_lost", "epoch", "pulled_at", "reply", "sent_at", "signalling")

    def __init__(self, link: Link, reply: str, *, pulled_at: float, epoch: int) -> None:
        self._link = link
        self._lost = False
        self.reply = reply
        self.pulled_at = pulled_at
        self.sent_at = pulled_at
        self.epoch = epoch
        self.signalling = False

    @property
    def ours(self) -> bool:
        """Whether the delivery is still ours (delivery rule R7)."""
        if not self._lost:
            now = self._link.clock()
            self._lost = (
                self._link.epoch != self.epoch
                or now - self.sent_at > topology.OWNED_S
                or now - self.pulled_at > HELD_MAX_S
            )
        return not self._lost

    def check(self) -> None:
        """Stands before every call to the product.

        Raises:
            NotOurs: the delivery is over for us.
        """
        if not self.ours:
            raise NotOurs

    def answered(self, sent_at: float) -> None:
        """The broker answered a signal sent at this time. What was lost before stays lost."""
        if self.ours:
            self.sent_at = max(self.sent_at, sent_at)


class Signals:
    """In-progress signals of everything held, from one task; only an answered one renews (delivery rule R7)."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._held: set[Held] = set()
        self._sending: set[asyncio.Task[None]] = set()

    def add(self, held: Held) -> None:
        """From now on."""
        self._held.add(held)

    def drop(self, held: Held) -> None:
        """The delivery has ended."""
        self._held.discard(held)

    @property
    def running(self) -> int:
        """How many deliveries are in our hands."""
        return len(self._held)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await asyncio.sleep(SIGNAL_TICK_S)
                self._send_due()
        finally:
            for task in self._sending:
                task.cancel()

    def _send_due(self) -> None:
        if not self._link.up:
            return
        due_before = self._link.clock() - topology.SIGNAL_EVERY_S
        for held in self._held:
            if held.sent_at <= due_before and not held.signalling and held.ours:
                held.signalling = True
                task = asyncio.ensure_future(self._signal(held))
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)

    async def _signal(self, held: Held) -> None:
        client = self._link.client
        assert client is not None
        sent_at = self._link.clock()
        try:
            await client.request(held.reply, b"+WPI", timeout=SIGNAL_TIMEOUT_S)
        except (NatsError, TimeoutError):
            return  # asked again at the next tick, until the delivery is too old
        finally:
            held.signalling = False
        held.answered(sent_at)


class Slots:
    """How many deliveries of a target may be in our hands at once; asked for before pulling, so that none waits its turn."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._changed = asyncio.Event()

    async def take(self, most: int, *, wait_s: float) -> int:
        """Between one and `most` free slots, or 0 when none came free in time."""
        if self._free <= 0:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
        taken = max(0, min(most, self._free))
        self._free -= taken
        return taken

    def give_back(self, count: int = 1) -> None:
        """A delivery ended, or a pull came back with less than it asked for."""
        self._free += count
        if count:
            self._changed.set()


class Pulls:
    """Pull requests of one durable consumer, each stamped with the time it was sent.

    It asks for nothing before `verified` was called, and after each loss of the connection or of the consumer not until it was
    called again: a broker that came back may have forgotten how often it delivered a message.

    Args:
        durable: name of the consumer on `stream`.
        stream_created_ns: when the stream was made (broker's time, epoch nanoseconds).
        on_gone: called when the broker says that the consumer is not there (any more).

    Attributes:
        fresh_from_ns: broker time (epoch nanoseconds) since which connection and consumer have been as they are now.
    """

    def __init__(
        self,
        link: Link,
        signals: Signals,
        slots: Slots,
        *,
        stream: str,
        durable: str,
        stream_created_ns: int = 0,
        on_gone: Callable[[], None] = lambda: None,
    ) -> None:
        self.durable = durable
        self.stream_created_ns = stream_created_ns
        self.fresh_from_ns = 0
        self._fresh_from_local_ns = time.monotonic_ns()
        self._verified_epoch = _UNKNOWN
        self._link = link
        self._signals = signals
        self._slots = slots
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._on_gone = on_gone
        self._arrived: list[Msg] = []
        self._waiting: dict[str, Held] = {}
        self._held: set[Held] = set()
        self._idle = asyncio.Event()
        self._subscription: Any = None
        self._inbox = ""
        self._number = 0
        self._reply = ""
        self._open = 0
        self._asked_at = 0.0
        self._asked_epoch = _UNKNOWN
        self._news = asyncio.Event()
        self._closing = asyncio.Event()
        self._refused = False

    def verified(self, epoch: int, now_ns: int) -> None:
        """The consumer is there, seen through the connection of this epoch at this time of the broker."""
        if epoch != self._verified_epoch:
            self._verified_epoch = epoch
            self.fresh_from_ns = now_ns
            self._fresh_from_local_ns = time.monotonic_ns()
            self._news.set()

    @property
    def broker_now_ns(self) -> int:
        """The broker's time now, as far as the last verification and our own clock tell."""
        return self.fresh_from_ns + time.monotonic_ns() - self._fresh_from_local_ns

    @property
    def needs_verification(self) -> bool:
        """Whether nothing is pulled until somebody has looked at the consumer."""
        return self._verified_epoch != self._link.epoch

    async def fetch(self, batch: int = 1, timeout: float | None = None) -> list[Msg]:
        """What FastStream's pull loop calls: the next messages, or none after a bounded wait."""
        if not self._arrived:
            await self._await_news(batch)
        arrived, self._arrived = self._arrived, []
        return arrived

    def take(self, reply: str) -> Held | None:
        """The ownership of a fetched message, once; None when the pulls were closed before it was begun."""
        return self._waiting.pop(reply, None)

    def done(self, held: Held) -> None:
        """The delivery has ended, one way or the other."""
        if held not in self._held:
            return
        self._held.discard(held)
        self._signals.drop(held)
        self._slots.give_back()
        if not self._held:
            self._idle.set()

    async def close(self) -> None:
        """Stop asking. What the broker has sent by then is still delivered; it sends nothing to an inbox that is gone."""
        self._closing.set()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with contextlib.suppress(NatsError, OSError, TimeoutError):
                async with asyncio.timeout(PULL_GRACE_S):
                    await subscription.drain()
        self._slots.give_back(self._open)
        self._open = 0
        self._news.set()

    async def idle(self, wait_s: float) -> bool:
        """Wait until nothing is in our hands; False when the time was up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while self._held:
                    self._idle.clear()
                    await self._idle.wait()
        return not self._held

    async def unsubscribe(self) -> None:
        """Give up the inbox and what was fetched but not begun; the broker delivers that again."""
        self._closing.set()
        await self._drop_inbox()
        self._arrived.clear()
        waiting = list(self._waiting.values())
        self._waiting.clear()
        for held in waiting:
            self.done(held)

    async def _await_news(self, batch: int) -> None:
        if self._asked_epoch != self._link.epoch or (self._open and self._overdue()):
            await self._drop_inbox()  # its end will not come, or cannot be told apart any more
        if self._refused:
            self._refused = False
            await asyncio.sleep(RETRY_S)
        if not self._open:
            if self._closing.is_set() or not self._link.up or self.needs_verification:
                await asyncio.sleep(RETRY_S)
                return
            count = await self._slots.take(batch, wait_s=PULL_S)
            if not count:
                return
            if not await self._ask(count):
                self._slots.give_back(count)
                await asyncio.sleep(RETRY_S)
                return
        await self._wait_news(PULL_GRACE_S)

    async def _wait_news(self, wait_s: float) -> None:
        if self._arrived or not self._open:
            return
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._news.wait()

    def _overdue(self) -> bool:
        return self._link.clock() - self._asked_at > PULL_S + PULL_GRACE_S

    async def _ask(self, count: int) -> bool:
        """Send one pull request for `count` messages; the stamp is taken before it leaves."""
        client = self._link.client
        epoch = self._link.epoch
        if self._closing.is_set() or client is None or not client.is_connected or epoch != self._verified_epoch:
            return False
        try:
            if self._subscription is None:
                self._inbox = client.new_inbox()
                self._subscription = await client.subscribe(f"{self._inbox}.*", cb=self._receive)
                if self._closing.is_set():
                    return False
            self._number += 1
            self._reply = f"{self._inbox}.{self._number}"
            self._open = count
            self._asked_at = self._link.clock()
            self._asked_epoch = epoch
            body = {"batch": count, "expires": int(PULL_S * 1e9)}
            await client.publish(self._subject, msgspec.json.encode(body), reply=self._reply)
        except (NatsError, OSError):
            self._open = 0
            return False
        return True

    async def _receive(self, message: Msg) -> None:
        if message.subject.startswith(self._inbox):
            if message.subject == self._reply:
                await self._status(message)
            return
        if not self._open or not message.reply:
            return  # belongs to no request we know: the broker will deliver it again
        self._open -= 1
        held = Held(self._link, message.reply, pulled_at=self._asked_at, epoch=self._asked_epoch)
        self._waiting[message.reply] = held
        self._held.add(held)
        self._signals.add(held)
        self._arrived.append(message)
        self._news.set()

    async def _status(self, message: Msg) -> None:
        status = (message.headers or {}).get("Status", "")
        if status == _HEARTBEAT:
            return
        if status in _ENDED:
            self._slots.give_back(self._open)
            self._open = 0
            self._news.set()
            return
        # Consumer or stream gone, leader moved, server going down: nobody knows what may still come on this inbox.
        self._refused = True
        self._asked_epoch = self._verified_epoch = _UNKNOWN
        self._news.set()
        self._on_gone()

    async def _drop_inbox(self) -> None:
        """Nothing that still arrives for this inbox is taken; the broker delivers it again after ACK_WAIT_S."""
        subscription, self._subscription = self._subscription, None
        self._slots.give_back(self._open)
        self._open = 0
        if subscription is not None:
            with contextlib.suppress(NatsError, OSError):
                await subscription.unsubscribe()
