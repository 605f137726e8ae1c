"""One seed, one world: gateways, workers, a broker and a vendor under faults, then quiet, then the promises are checked.

The product's own code runs here unchanged: `gateway.intake`, `dispatch`, `outcomes`, `lifecycle` and `workers.delivery`.
Simulated are time, randomness, the store's tables, the broker (rules measured on nats-server: repeated ids, refusal of a second
message of a subject, stale acks after a re-creation), the connection of every process, and the vendor. A process may die or
freeze at any await.

A protection can be taken away by name (see PROTECTIONS), always through an injected part, to show that the checker notices;
some are needed so rarely that it takes rougher weather than usual (see WEATHERS).
"""

from __future__ import annotations

import collections
import functools
import heapq
import random
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from connectors.contract import Delivery, Found
from gateway.bus import Message, ProbeReply, Published
from gateway.dispatch import Dispatcher, act_before
from gateway.intake import Intake, Waiters
from gateway.ledger import Ledger
from gateway.lifecycle import Row
from gateway.outcomes import Outcomes
from schemas.config import BrakeSettings, RetrySettings, TargetSettings
from schemas.errors import (
    Blocked,
    Conflict,
    Gone,
    Misconfigured,
    NormalizationError,
    RateLimited,
    Rejected,
    Unavailable,
)
from schemas.events import Begin, Outcome, decode_event, decode_outcome, encode
from schemas.resources import ENTERPRISE_SCHEMA, Manager
from schemas.states import Result, State
from schemas.topology import ACK_WAIT_S, CALL_S, DUPLICATE_WINDOW_S, OUTCOMES, OWNED_S, REST_S, SIGNAL_EVERY_S, WORK
from tests.simulation.books import Books, MemoryBooks
from tests.simulation.memory import MemoryLedger
from workers.delivery import NotOurs, deliver

TARGET = "t"
ROUND_S = 260.0
QUIET_S = 2_200.0
NAMES = "abcdefgh"
PROTECTIONS = ("sweeper", "outbox", "fence", "dirty", "lookup", "refusal", "R1", "R2", "R3", "R6", "R7")
SETTINGS = TargetSettings(
    connector="sim", window=4, brake=BrakeSettings(enabled=False), retry=RetrySettings(wait_max_s=60.0)
)


class Weather(Struct, frozen=True):
    """How rough a world is: probabilities per occasion, seconds.

    Args:
        crash: a process dies at a place where it may.
        freeze: a process stops there for a while and goes on later.
        lost: an answer of the broker is lost although it acted.
        unacknowledged: a worker's acknowledgement never arrives.
        late: an outcome is handed to the gateways up to `late_s` later.
        remembers_s: how long the broker knows a message's id.
        slow: a call to the vendor takes seconds, or longer than the call limit.
    """

    crash: float = 0.002
    freeze: float = 0.004
    lost: float = 0.06
    unacknowledged: float = 0.0
    late: float = 0.04
    late_s: float = 60.0
    remembers_s: float = DUPLICATE_WINDOW_S
    slow: float = 0.15


WEATHERS = {
    "common": Weather(),
    # processes stand still in the middle of everything: deliveries that are no longer theirs abound
    "clumsy": Weather(crash=0.001, freeze=0.02, slow=0.5),
    # confirmations get lost and the broker knows an id hardly longer than an event is fresh: copies of events abound
    "forgetful": Weather(crash=0.0005, freeze=0.001, lost=0.7, remembers_s=15.0, slow=0.8),
    # outcomes come late and acknowledgements hardly ever: outcomes of earlier deliveries abound
    "tardy": Weather(crash=0.0, freeze=0.0, lost=0.0, unacknowledged=0.9, late=0.5, late_s=45.0, slow=0.3),
}
COMMON = WEATHERS["common"]


class Sleep:
    """The only thing anybody awaits: virtual seconds."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __await__(self) -> Generator[float, None, None]:
        yield self.seconds


class Process:
    """A gateway or worker: it can die (a new incarnation forgets everything), freeze, and lose its connection."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.incarnation = 0
        self.frozen = 0.0
        self.mute = 0.0
        self.connected = False
        self.broker_connection = -1
        self.connection = 0
        self.load = 0
        self.down = False
        self.dispatcher: Dispatcher
        self.outcomes: Outcomes
        self.intake: Intake


class Work:
    """A message of the work stream."""

    def __init__(self, message: Message, sequence: int, epoch: int, stored: float, message_id: str) -> None:
        self.message = message
        self.sequence = sequence
        self.epoch = epoch
        self.stored = stored
        self.id = message_id
        self.deliveries = 0
        self.deadline = 0.0


class World:
    """One seeded run.

    Args:
        without: protections that are taken away.
        late_effects: a frozen worker's bytes may leave right after the thaw, so that the vendor acts later than any wait of ours.
            No gateway can order what a vendor does then, so promises may break; the order of generations is only counted.
        weather: how rough it is.
        managers: people have managers, whom the vendor knows by its own ids.
        names: some names and licences are missing while there are faults, and deliveries note what they do.
        books: the status store; in memory unless told otherwise.
    """

    def __init__(
        self,
        seed: int,
        without: frozenset[str] = frozenset(),
        *,
        late_effects: bool = False,
        weather: Weather = COMMON,
        managers: bool = False,
        names: bool = False,
        books: Books | None = None,
    ) -> None:
        self.managers = managers
        self.names = names
        self.random = random.Random(seed)
        self.late_effects = late_effects
        self.weather = weather
        self.without = without
        self.now = 0.0
        self.heap: list[tuple[float, int, Process | None, int, Coroutine[Any, Any, Any]]] = []
        self.count = 0
        self.faults = True
        self.stats: collections.Counter[str] = collections.Counter()
        self.violations: list[str] = []
        self.trace: list[tuple[Any, ...]] | None = None
        self.books = books or MemoryBooks(without)
        self.memory = self.books.memory
        # broker
        self.up = True
        self.connection = 0
        self.work: list[Work] = []
        self.out: list[dict[str, Any]] = []
        self.epoch = {WORK: 0, OUTCOMES: 0}
        self.created = {WORK: -1.0, OUTCOMES: -1.0}
        self.sequence = {WORK: 0, OUTCOMES: 0}
        self.ids: dict[str, float] = {}
        self.bodies: dict[str, bytes] = {}
        # vendor
        self.accounts: dict[str, dict[str, Any]] = {}
        self.by_key: dict[str, str] = {}
        self.account_count = 0
        self.newest: dict[str, int] = {}
        self.credential = True
        r = self.random
        self.gateways = [Process(f"g{i}") for i in range(r.choice([1, 2, 3]))]
        self.workers = [Process(f"w{i}") for i in range(r.choice([2, 3, 4]))]
        for process in (*self.gateways, *self.workers):
            self.boot(process)

    # ---- scheduler

    def spawn(self, process: Process | None, coroutine: Coroutine[Any, Any, Any], after_s: float = 0.0) -> None:
        self.count += 1
        incarnation = process.incarnation if process else 0
        heapq.heappush(self.heap, (self.now + after_s, self.count, process, incarnation, coroutine))

    def run(self, until: float) -> None:
        heap = self.heap
        while heap and heap[0][0] <= until:
            at, number, process, incarnation, coroutine = heapq.heappop(heap)
            if process is not None:
                if process.incarnation != incarnation:
                    coroutine.close()
                    continue
                if process.frozen > at:
                    heapq.heappush(
                        heap, (process.frozen + self.random.random() * 0.01, number, process, incarnation, coroutine)
                    )
                    continue
            self.now = at
            try:
                wait = coroutine.send(None)
            except StopIteration:
                continue
            heapq.heappush(heap, (at + wait, number, process, incarnation, coroutine))
        self.now = until

    def log(self, *words: Any) -> None:
        if self.trace is not None:
            self.trace.append((round(self.now, 2), *words))

    def new_id(self) -> str:
        self.count += 1
        return f"e{self.count}"

    def boot(self, process: Process) -> None:
        process.down = process.connected = False
        process.load = 0
        r = self.random
        if process.name[0] == "g":
            store = SimStore(self, process)
            bus = SimBus(self, process)
            clock = SimClock(self)
            targets = {TARGET: SETTINGS}

            def spawn(coroutine: Coroutine[Any, Any, None]) -> None:
                self.spawn(process, coroutine, r.random() * 0.01)

            process.dispatcher = Dispatcher(store, bus, clock, spawn, lambda: targets)
            process.outcomes = Outcomes(store, bus, clock, process.dispatcher, lambda: targets, r.random)
            process.intake = Intake(
                store,
                process.dispatcher,
                Waiters(),
                clock,
                lambda: targets,
                answer_wait_s=4.0,
                new_id=self.new_id,
                new_resource=lambda: f"r{len(self.memory.rows) + 1}",
                healthy=lambda _: False,
                identity_paths=lambda _: ("userName",),
            )
            if "sweeper" not in self.without:
                self.spawn(process, self.sweeper(process), r.random())
            self.spawn(process, self.folder(process), r.random())
        else:
            self.spawn(process, self.puller(process), r.random())

    def crash(self, process: Process) -> None:
        process.incarnation += 1
        process.down = True
        self.stats["crash"] += 1
        self.log("crash", process.name)

        async def back() -> None:
            await Sleep(self.random.uniform(0.5, 15))
            self.boot(process)

        self.spawn(None, back())

    async def point(self, process: Process, rate: float = 1.0) -> None:
        """A place where a process may die or freeze."""
        if self.faults:
            x = self.random.random()
            if x < self.weather.crash * rate:
                self.crash(process)
            elif x < (self.weather.crash + self.weather.freeze) * rate:
                process.frozen = self.now + self.random.choice([5, 12, 20, 33, 45, 70, 150])
                self.stats["freeze"] += 1
                self.log("freeze", process.name, process.frozen)
        await Sleep(self.random.random() * 0.01)

    # ---- connections: what the client believes, and whether bytes arrive

    def live(self, process: Process) -> bool:
        if self.now < process.mute:
            return process.connected
        if process.connected and (process.broker_connection != self.connection or not self.up):
            process.connected = False
        if not process.connected and self.up:
            process.connected = True
            process.broker_connection = self.connection
            process.connection += 1
        return process.connected

    def through(self, process: Process) -> bool:
        return self.live(process) and self.now >= process.mute and self.up

    def lost(self) -> bool:
        return self.faults and self.random.random() < self.weather.lost

    # ---- broker

    def store_event(self, message: Message, message_id: str) -> Published:
        if self.bodies.setdefault(message_id, message.body) != message.body:
            self.violations.append("same fence, other bytes (R5)")
        if self.ids.get(message_id, -1.0) > self.now:
            return Published.DUPLICATE
        if "refusal" not in self.without and any(w.message.resource == message.resource for w in self.work):
            self.stats["refused"] += 1
            return Published.REFUSED
        self.sequence[WORK] += 1
        self.ids[message_id] = self.now + self.weather.remembers_s
        self.work.append(Work(message, self.sequence[WORK], self.epoch[WORK], self.now, message_id))
        return Published.STORED

    def settle_message(self, sequence: int, epoch: int, *, ack: bool) -> bool:
        if epoch != self.epoch[WORK]:  # consumer names carry the creation time (R10)
            return False
        for work in self.work:
            if work.sequence == sequence:
                if ack:
                    self.work.remove(work)
                else:
                    work.deadline = self.now + ACK_WAIT_S
                break
        return True

    def store_outcome(self, outcome: Outcome) -> None:
        if self.ids.get(outcome.id, -1.0) > self.now:
            return
        self.sequence[OUTCOMES] += 1
        self.ids[outcome.id] = self.now + DUPLICATE_WINDOW_S
        late = (
            self.now + self.random.uniform(1, self.weather.late_s)
            if self.faults and self.random.random() < self.weather.late
            else 0.0
        )
        self.out.append(
            {"sequence": self.sequence[OUTCOMES], "epoch": self.epoch[OUTCOMES], "body": encode(outcome), "at": late}
        )

    def restart(self, wipe: Sequence[str] = ()) -> None:
        for name in wipe:
            self.epoch[name] += 1
            self.created[name] = self.now
            self.sequence[name] = 0
            self.stats[f"wipe {name}"] += 1
            self.log("wipe", name)
            if name == WORK:
                self.work = []
            else:
                self.out = []
        there = {w.id for w in self.work}
        self.ids = {i: at for i, at in self.ids.items() if i in there}

    # ---- gateway

    async def sweeper(self, process: Process) -> None:
        while True:
            await Sleep(1.0 if self.faults else 2.0)
            await process.dispatcher.sweep()

    async def folder(self, process: Process) -> None:
        r = self.random
        while True:
            await Sleep(r.uniform(0.05, 0.4))
            if not self.through(process):
                continue
            ready = [m for m in self.out if m["at"] <= self.now]
            if ready:
                message = r.choice(ready)
                again = self.faults and r.random() < 0.05  # given to another gateway, too
                message["at"] = self.now + (0.1 if again else ACK_WAIT_S)
                self.spawn(process, self.fold(process, message))

    async def fold(self, process: Process, message: dict[str, Any]) -> None:
        await self.point(process)
        outcome = decode_outcome(message["body"])
        if "fence" in self.without:
            row = self.memory.rows[outcome.resource]
            outcome = msgspec.structs.replace(outcome, fence=row.fence)
        self.log("fold", process.name, outcome.resource, outcome.fence, outcome.result.value, outcome.account_id)
        await process.outcomes.fold(outcome)
        await self.point(process, 3)
        if self.through(process) and not self.lost():
            self.out = [
                m for m in self.out if not (m["sequence"] == message["sequence"] and m["epoch"] == message["epoch"])
            ]

    # ---- worker

    async def puller(self, process: Process) -> None:
        r = self.random
        while True:
            await Sleep(r.uniform(0.1, 0.6))
            if process.load >= 3 or not self.through(process):
                continue
            ready = [w for w in self.work if w.deadline <= self.now]
            if not ready:
                continue
            work = r.choice(ready)
            work.deadline = self.now + ACK_WAIT_S
            work.deliveries += 1
            process.load += 1
            self.stats["redelivered"] += work.deliveries > 1
            self.spawn(process, self.work_on(process, Held(self, process, work)), r.uniform(0.001, 0.05))

    async def work_on(self, process: Process, held: Held) -> None:
        await self._work_on(process, held)
        held.done = True
        process.load -= 1

    async def _work_on(self, process: Process, held: Held) -> None:
        work = held.work
        await self.point(process)
        event = decode_event(work.message.body)
        # an earlier stream may have carried the same event: another worker may hold a copy of it (workers/receiving.py)
        older_stream = datetime.fromisoformat(event.recorded_at).timestamp() <= self.created[WORK]
        fresh = "R6" in self.without or (
            held.deliveries == 1
            and work.stored <= act_before(work.message)
            and process.connection == held.connection
            and not older_stream
        )
        if not fresh and older_stream and self.now < work.stored + REST_S:
            work.deadline = min(work.deadline, work.stored + REST_S)  # given back until then
            return
        if not fresh:
            fence = self.memory.rows[event.resource].fence if "fence" in self.without else event.fence
            go = await self.ask(process, Begin(TARGET, event.resource, fence, held.deliveries))
            self.stats[f"begin {go}"] += 1
            if go is False and self.through(process) and held.owned():
                self.settle_message(work.sequence, work.epoch, ack=True)
            if not go:
                return
        self.spawn(process, self.signals(process, held))
        if "R3" in self.without:
            event = msgspec.structs.replace(event, lookup=event.identities, watch=(), strays=())
        connector = SimConnector(self, process, held)
        outcome = await deliver(
            event,
            delivery=held.deliveries,
            connector=connector,
            directory=connector,
            owned=held,
            new_id=self.new_id,
            clock=lambda: self.now,
            worker=process.name,
        )
        if outcome is None:
            self.stats["stopped"] += 1
            return
        if outcome.result is not Result.GAVE_UP:
            if await self.report(process, held, outcome):
                owned = held.owned()
                await self.point(process, 3)
                if self.weather.unacknowledged and self.faults and self.random.random() < self.weather.unacknowledged:
                    self.stats["ack lost"] += 1
                elif owned and self.through(process):
                    self.settle_message(work.sequence, work.epoch, ack=True)
                elif (
                    owned and self.faults and self.random.random() < 0.5
                ):  # the client library sends it after reconnecting
                    for _ in range(60):
                        await Sleep(1.0)
                        if self.through(process):
                            self.settle_message(work.sequence, work.epoch, ack=True)
                            break
                return
            if not connector.wrote:
                return
            made = outcome.created
            outcome = msgspec.structs.replace(
                outcome,
                id=self.new_id(),
                result=Result.GAVE_UP,
                account_id=outcome.account_id if made else None,
                created=made,
            )
        self.stats["gave up"] += 1
        while True:  # never settles, never acks (R8)
            await self.point(process)
            if self.through(process):
                self.store_outcome(outcome)
                if not self.lost():
                    return
            await Sleep(1.0)

    async def ask(self, process: Process, request: Begin) -> bool | None:
        """Request-reply to any gateway, two seconds."""
        gateways = [g for g in self.gateways if not g.down]
        if not gateways or not self.through(process):
            await Sleep(2.0)
            return None
        gateway = self.random.choice(gateways)
        box: list[bool | None] = []

        async def answer() -> None:
            if self.through(gateway):
                box.append(await gateway.dispatcher.begin(request))

        self.spawn(gateway, answer(), 0.001)
        for _ in range(8):
            await Sleep(0.25)
            if box:
                return box[0] if self.through(process) and not self.lost() else None
        return None

    async def report(self, process: Process, held: Held, outcome: Outcome) -> bool:
        for _ in range(20):
            await self.point(process)
            if not held.owned():
                return False
            if self.through(process):
                self.store_outcome(outcome)
                if not self.lost():
                    await Sleep(0.01)
                    return True
            await Sleep(1.0)
        return False

    async def signals(self, process: Process, held: Held) -> None:
        while not held.done:
            await Sleep(SIGNAL_EVERY_S - 1.0)
            if held.done or not held.owned():
                return
            if self.through(process) and self.settle_message(held.work.sequence, held.work.epoch, ack=False):
                held.renewed = self.now

    # ---- vendor

    async def effect(
        self, box: list[Any], op: str, source: str, account_id: str | None, key: str, doc: int, manager: str | None
    ) -> None:
        """What the vendor does, some time after the bytes left."""
        rid, generation = self.memory.event_ids[source]
        row = self.memory.rows[rid]
        account = self.accounts.get(account_id or "")
        if not self.credential:
            box.append(("auth", None))
        elif op == "find":
            box.append(("ok", self.by_key.get(key)))
        elif op == "delete":
            if account is not None:
                del self.accounts[account_id or ""]
                del self.by_key[account["key"]]
                self._touched(row, account, account_id, "deleted")
            box.append(("ok" if account else "gone", account_id))
        elif doc % 23 == 0:
            box.append(("perm", None))
        elif op == "put" and account is None:
            box.append(("gone", None))
        elif self.by_key.get(key, account_id if op == "put" else None) != (account_id if op == "put" else None):
            box.append(("conflict", self.by_key[key]))
        else:
            if op == "create":
                self.account_count += 1
                account_id = f"v{self.account_count}"
            elif account is not None:
                del self.by_key[account["key"]]
                self._touched(row, account, account_id, "wrote on")
            if generation < self.newest.get(rid, 0):
                self.stats["older after newer"] += 1
                if not self.late_effects:
                    self.violations.append("an older generation reached the vendor after a newer one (P2)")
            self.newest[rid] = max(generation, self.newest.get(rid, 0))
            led_by = manager or (account or {}).get("manager")
            told = {"key": key, "doc": doc, "rid": rid, "generation": generation, "manager": led_by}
            self.accounts[account_id or ""] = told
            self.by_key[key] = account_id or ""
            box.append(("ok", account_id))
        self.log("vendor", op, rid, "gen", generation, account_id, key, doc, box[-1])
        self.stats["vendor calls"] += 1

    def _touched(self, row: Row, account: dict[str, Any], account_id: str | None, what: str) -> None:
        owner = self.memory.rows[account["rid"]]
        if owner.id == row.id or owner.state is State.GONE:
            return
        known = owner.account_id == account_id
        uncertain = not owner.account_id and f"userName:{account['key']}" in owner.doubts.possible
        if known or uncertain:
            self.log("VIOLATION", row.id, owner.id)
            self.violations.append(f"{what} the account of another resource")
        else:
            self.stats[f"orphan {what}"] += 1

    # ---- Entra

    async def client(self, until: float) -> None:
        r = self.random
        while self.now < until:
            await Sleep(r.expovariate(1 / 4) if r.random() < 0.7 else 0.05)
            gateways = [g for g in self.gateways if not g.down and g.frozen <= self.now]
            if not gateways:
                continue
            gateway = r.choice(gateways)
            live = {
                self.name_of(x): x for x in self.memory.rows.values() if not x.deleted and x.state is not State.REJECTED
            }
            free = [n for n in NAMES if n not in live]
            x = r.random()
            if (x < 0.25 or not live) and free:
                document = self.document(r.choice(free[:2]))
                self.write(gateway, functools.partial(gateway.intake.create, TARGET, "user", document))
            elif not live:
                continue
            else:
                row = live[r.choice(sorted(live))]
                if x < 0.6 and self.managers and r.random() < 0.5:
                    leader = live[r.choice(sorted(live))].id
                    self.change(gateway, row, **{ENTERPRISE_SCHEMA: {"manager": {"value": leader}}})
                elif x < 0.6:
                    self.change(gateway, row, title=str(r.randrange(1, 400)))
                elif x < 0.78:
                    self.write(gateway, functools.partial(gateway.intake.delete, TARGET, "user", row.id))
                elif x < 0.9 and free:
                    self.change(gateway, row, userName=r.choice(free))
                elif len(live) > 1 and free:
                    a, b = r.sample(sorted(live), 2)
                    self.change(gateway, live[a], userName=free[-1])
                    await Sleep(r.choice([0.1, 0.1, 3]))
                    self.change(gateway, live[b], userName=a)
                    await Sleep(r.choice([0.1, 3]))
                    self.change(gateway, live[a], userName=b)

    def document(self, name: str) -> dict[str, Any]:
        return {"userName": name, "title": str(self.random.randrange(1, 400))}

    def change(self, gateway: Process, row: Row, **values: Any) -> None:
        seen = self.memory.rows[row.id]
        self.write(gateway, lambda: gateway.intake.change(TARGET, "user", seen, lambda doc: {**doc, **values}))

    def write(self, gateway: Process, begin: Callable[[], Awaitable[Any]]) -> None:
        async def run() -> None:
            answer = await begin()
            self.stats["accepted" if answer.error is None else f"refused {answer.error.status}"] += 1

        self.spawn(gateway, run(), 0.001)

    @staticmethod
    def name_of(row: Row) -> str:
        return str(msgspec.json.decode(row.document)["userName"])

    # ---- chaos

    async def chaos(self, until: float) -> None:
        r = self.random
        while self.now < until:
            await Sleep(r.expovariate(1 / 6))
            x = r.random()
            process = r.choice(self.gateways + self.workers * 2)
            if x < 0.12 and not process.down:
                self.crash(process)
            elif x < 0.30:
                process.frozen = max(process.frozen, self.now + r.choice([8, 14, 35, 60, 120]))
                self.stats["freeze"] += 1
            elif x < 0.42:
                self.live(process)
                process.mute = self.now + r.choice([3, 15, 40, 70])
                self.stats["half-open"] += 1
                if r.random() < 0.7:
                    process.broker_connection = -1
            elif x < 0.52:
                self.up = False
                self.connection += 1
                self.stats["nats down"] += 1
                await Sleep(r.choice([0.5, 3, 15, 40]))
                self.restart(r.choice([(), (), (WORK, OUTCOMES), (WORK,), (OUTCOMES,)]))
                self.up = True
            elif x < 0.57:
                self.restart(r.choice([(WORK,), (OUTCOMES,)]))  # stream deleted, connections stay up
            elif x < 0.65:
                self.pause("chaos")
                await Sleep(r.uniform(5, 40))
                self.pause(None)
            elif x < 0.72:
                self.credential = False
                await Sleep(r.uniform(2, 20))
                self.credential = True

    def pause(self, by: str | None) -> None:
        def job(ledger: Ledger) -> None:
            target = ledger.target(TARGET)
            target.paused_by = by
            ledger.save_target(target)

        self.books.run(job)

    # ---- promises

    def play(self) -> World:
        for _ in range(2):
            self.faults = True
            until = self.now + ROUND_S
            self.spawn(None, self.client(until - 10))
            self.spawn(None, self.chaos(until))
            self.run(until)
            self.run(self.now + 1)
            self.faults = False
            end = self.now + QUIET_S
            quiet = False
            while self.now < end and not quiet:
                self.up = self.credential = True
                self.pause(None)
                self.run(self.now + 20)
                quiet = self.quiet()
            self.check(quiet)
            if self.violations:
                break
        for coroutine in [entry[4] for entry in self.heap]:
            coroutine.close()
        return self

    def waits_for_a_person(self, row: Row, seen: tuple[str, ...] = ()) -> bool:
        if row.state is State.DEAD:
            return True
        if row.state is not State.BLOCKED or row.id in seen:
            return False
        if row.blocked_on == "identity held at the product":
            holder = self.by_key.get(self.name_of(row))
            if holder is not None and (TARGET, "user", holder) not in self.memory.links:
                return True  # by an account nobody owns
        if row.reason is not None and row.reason.code == "manager_missing":
            manager = self.memory.rows.get(row.manager or "")
            return manager is not None and self.waits_for_a_person(manager, (*seen, row.id))
        holders = MemoryLedger(self.memory, self.without).holders(row, row.identities)
        return any(self.waits_for_a_person(h, (*seen, row.id)) for h in holders)

    def quiet(self) -> bool:
        for row in self.memory.rows.values():
            if row.in_flight is not None:
                return False
            if self.waits_for_a_person(row):
                continue
            if row.state not in (State.APPLIED, State.GONE) or row.dirty or row.open or row.read_back_at is not None:
                return False
        busy = any(p.frozen > self.now or p.load for p in (*self.workers, *self.gateways))
        return not self.work and not self.out and not busy

    def check(self, quiet: bool) -> None:
        v = self.violations
        v += self.memory.violations
        rows = self.memory.rows.values()
        if not quiet:
            for row in rows:
                if row.in_flight is not None:
                    v.append("stuck: in flight for ever")
                elif row.state not in (State.APPLIED, State.GONE, State.DEAD):
                    v.append(f"stuck: {row.state.value}")
            if not v:
                v.append("stuck: other")
        issues = {subject for action, subject in self.memory.audits if action.startswith("issue.")}
        owned = collections.Counter(a["rid"] for a in self.accounts.values())
        noted = collections.defaultdict(set)
        for outcome in self.memory.attempts.values():
            noted[outcome.resource] |= {one.code for one in outcome.notes}
        for row in rows:
            account = self.accounts.get(row.account_id or "")
            wish = msgspec.json.decode(row.document)
            if row.state is State.APPLIED and not row.open:
                if account is None:
                    v.append("lost write: no account")
                elif (account["key"], str(account["doc"]), account["rid"]) != (wish["userName"], wish["title"], row.id):
                    v.append("lost write: vendor differs")
                manager = self.memory.rows.get(row.manager or "")
                linked = manager is not None and not manager.deleted and manager.account_id is not None
                if account is not None and manager is not None and linked:
                    self.stats["led"] += 1
                    if account["manager"] != manager.account_id:
                        v.append("not led by the manager's account")
            if noted[row.id] != self.memory.notes[row.id]:
                v.append("a note was forgotten")
            if row.state is State.GONE and owned[row.id] and row.id not in issues:
                v.append("account left after deletion")
            if owned[row.id] > 1 and row.id not in issues and row.state is not State.DEAD:
                v.append("duplicate accounts")
            cause = row.reason.code if row.reason else "no reason"
            if row.state is State.DEAD and cause not in ("refused", "identity_cycle", "conflict"):
                v.append(f"dead without need: {cause}")
            for event in self.memory.events[row.id].values():
                if event[0] is None and row.state in (State.APPLIED, State.GONE) and row.in_flight is None:
                    v.append("a generation without outcome")


class SimClock:
    """Virtual time."""

    def __init__(self, world: World) -> None:
        self.world = world

    def now(self) -> float:
        return self.world.now

    async def sleep(self, seconds: float) -> None:
        await Sleep(seconds)


class SimStore:
    """The store as one gateway reaches it: the process may die before and after the commit."""

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.process = process

    async def run(self, job: Callable[[Any], Any]) -> Any:
        await self.world.point(self.process)
        result = self.world.books.run(job)
        await self.world.point(self.process)
        return result

    def post(self, job: Callable[[Any], Any]) -> None:
        async def later() -> None:
            await self.world.point(self.process)
            self.world.books.run(job)

        self.world.spawn(self.process, later())


class SimBus:
    """The bus as one gateway reaches it."""

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.process = process

    def connected(self) -> bool:
        return self.world.live(self.process)

    async def publish(self, message: Message) -> Published:
        w = self.world
        await w.point(self.process, 2)
        if not w.through(self.process):
            return Published.UNKNOWN
        answer = w.store_event(message, decode_event(message.body).message_id)
        w.log("publish", message.resource, message.fence, answer.value)
        if w.lost():
            return Published.UNKNOWN
        await w.point(self.process)
        return answer

    async def holds(self, target: str, kind: str, resource: str) -> bool | None:
        w = self.world
        await w.point(self.process)
        if "R1" in w.without:
            return True
        if not w.through(self.process):
            return None
        return any(x.message.resource == resource for x in w.work)

    async def outcomes_end(self) -> tuple[str, int] | None:
        w = self.world
        if not w.through(self.process):
            return None
        end = (str(w.epoch[OUTCOMES]), w.sequence[OUTCOMES])
        await w.point(self.process)
        return end

    async def outcomes_folded(self) -> tuple[str, int] | None:
        w = self.world
        await w.point(self.process)
        if not w.through(self.process):
            return None
        left = [m["sequence"] for m in w.out]
        return str(w.epoch[OUTCOMES]), min(left) - 1 if left else w.sequence[OUTCOMES]

    async def streams(self) -> dict[str, str] | None:
        w = self.world
        if not w.through(self.process):
            return None
        answer = {name: str(epoch) for name, epoch in w.epoch.items()}
        await w.point(self.process)
        return answer

    async def probe(self, target: str) -> ProbeReply | None:
        await self.world.point(self.process)
        return ProbeReply(ok=self.world.credential)

    def announce_settled(self, resource: str) -> None:
        return None

    def announce_dead(self, row: Row) -> None:
        return None


class Held:
    """A delivery in a worker's hands: ownership counts from the pull, and only an answered signal renews it (R7)."""

    def __init__(self, world: World, process: Process, work: Work) -> None:
        self.world = world
        self.process = process
        self.work = work
        self.deliveries = work.deliveries
        self.connection = process.connection
        self.renewed = world.now
        self.late = False
        self.done = False

    def owned(self) -> bool:
        w = self.world
        if "R7" in w.without:
            return True
        if w.now - self.renewed > OWNED_S:
            self.late = True
        return w.live(self.process) and self.process.connection == self.connection and not self.late

    def check(self) -> None:
        if not self.owned():
            raise NotOurs


class SimConnector:
    """The vendor's connector: find, create, update, delete by name, with answers that come late, twice or never."""

    def __init__(self, world: World, process: Process, held: Held) -> None:
        self.world = world
        self.process = process
        self.held = held
        self.wrote = False

    def names(self, kind: str) -> tuple[str, ...]:
        return ()

    async def refresh(self) -> bool:
        return False

    def lacks(self, doc: int, step: int) -> bool:
        """Whether the product lacks something now that this wish needs, noticed at this step."""
        lacks = self.world.names and self.world.faults and doc % 11 == step
        self.world.stats["lacking"] += lacks
        return lacks

    def normalize(self, user: Any, directory: Any) -> tuple[str, int, str | None]:
        if self.lacks(int(user.title), 1):
            raise NormalizationError("there is no such role", code="unknown_role", names=("Wizard",))
        manager = user.enterprise.manager
        return user.user_name, int(user.title), manager.value if isinstance(manager, Manager) else None

    def account_keys(self, account: Any) -> tuple[str, ...]:
        return ()

    def ignored(self, user: Any) -> tuple[str, ...]:
        return ()

    async def call(
        self,
        ctx: Delivery,
        op: str,
        account_id: str | None = None,
        key: str = "",
        doc: int = 1,
        manager: str | None = None,
    ) -> Any:
        w = self.world
        if w.late_effects:
            self.held.check()
            await w.point(self.process, 3)  # frozen here, the bytes leave right after the thaw: later than any wait
        else:
            await w.point(self.process, 3)
            self.held.check()
        x = w.random.random() if w.faults else 1.0
        self.wrote |= op != "find"
        if x < 0.03:
            await Sleep(0.1)
            raise Unavailable("refused", code="refused_connection")
        if x < 0.05:
            await Sleep(0.1)
            raise RateLimited("slow down", retry_after_s=3.0)
        y = w.random.random()
        latency = (
            w.random.uniform(0.02, 0.4)
            if y < 1 - w.weather.slow or not w.faults
            else w.random.uniform(1, 9)
            if y < 1 - w.weather.slow * 4 / 15
            else w.random.uniform(9, 25)
        )
        box: list[Any] = []
        source = ctx.idempotency_key.rsplit("-", 1)[0]
        w.spawn(None, w.effect(box, op, source, account_id, key, doc, manager), latency)
        wait = latency + w.random.uniform(0.01, 0.2)
        if x < 0.09 or wait > CALL_S:
            await Sleep(min(CALL_S, wait + 5))
            raise Unavailable("no answer", code="timeout", ambiguous=op != "find")
        await Sleep(wait)
        kind, value = box[0]
        if kind == "auth":
            raise Misconfigured("credential")
        if kind == "perm":
            raise Rejected("no", code="refused")
        if kind == "conflict":
            raise Conflict("taken")
        if kind == "gone" and op == "put":
            raise Gone("gone")
        return value

    async def find(self, account: Any, identities: Sequence[str], ctx: Delivery) -> list[Found]:
        if "lookup" in self.world.without:
            return []
        found = []
        for identity in identities:
            account_id = await self.call(ctx, "find", key=identity.partition(":")[2])
            if account_id is not None:
                found.append(Found(account_id=account_id, identity=identity))
        return found

    async def create(self, account: Any, ctx: Delivery) -> str:
        key, doc, manager = account
        self.refuse(doc)
        made = str(await self.call(ctx, "create", key=key, doc=doc, manager=manager and ctx.resolve(manager)))
        self.await_licence(made, doc, ctx)
        return made

    async def update(self, account_id: str, account: Any, ctx: Delivery) -> None:
        key, doc, manager = account
        self.refuse(doc)
        await self.call(ctx, "put", account_id, key=key, doc=doc, manager=manager and ctx.resolve(manager))
        self.await_licence(account_id, doc, ctx)

    def refuse(self, doc: int) -> None:
        if self.lacks(doc, 2):
            raise Rejected("there is no such team any more", code="unknown_team", names=("A",))
        if self.lacks(doc, 3):
            raise Blocked("no seat", on="seat")

    def await_licence(self, account_id: str, doc: int, ctx: Delivery) -> None:
        if self.world.names:
            ctx.note(f"written_{doc % 3}")
        if self.lacks(doc, 4):
            raise Blocked("no licence", on="licence", account_id=account_id, wait_max_s=20 * ROUND_S)

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        await self.call(ctx, "delete", account_id)
