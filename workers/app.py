"""The worker process: connects, declares what it needs on the bus, serves its targets, and looks after all of that.

FastStream carries the messages: one pull subscriber per target, bound to a durable consumer that is declared here, with manual
acknowledgement and undecoded bodies. A supervisor compares every two seconds what the broker has with what was declared, because
a subscriber whose consumer or stream was deleted or re-created would otherwise wait for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from faststream.nats.security import NatsCredentials, NatsToken
from msgspec import Struct
from nats.aio.client import Client, RawCredentials
from nats.errors import Error as NatsError

from connectors.registry import load
from schemas import topology
from schemas.config import Configuration, TargetSettings
from schemas.config_file import CONFIG_LOOK_EVERY_S, ConfigurationFile
from schemas.errors import ConfigurationError
from schemas.logs import at_level, logger, register_secret
from schemas.topology import StreamState, TopologyError
from workers import control, presence
from workers.keeping import KeepAlive
from workers.ownership import PULL_S, Link, Pulls, Signals, monotonic_s
from workers.receiving import REPORT_S, Receiver, before_call
from workers.targets import Served, rebased

SUPERVISE_EVERY_S = 2.0
REQUEST_TIMEOUT_S = 3.0
CONNECT_AGAIN_S = 2.0
TROUBLE_EVERY_S = 30.0
OPEN_AGAIN_S = 3.0
"""A target that could not be served is looked at again this much later: a file with its secret may have come meanwhile."""
CONTROL_CONCURRENCY_MAX = 4
ACK_PENDING_MIN = 1_000
"""The consumer's bound lies well above the gateway's window, which is the one that counts."""
BROKER_STOP_S = 5.0
CANCEL_WAIT_S = 1.0
CANCEL_ROUNDS_MAX = 5
GC_THRESHOLDS = (5_000, 20, 20)
"""Nearly nothing here lives in cycles, so looking for them less often costs little memory (see `gc.set_threshold`)."""
NEEDED = (topology.WORK, topology.OUTCOMES, f"KV_{topology.WORKERS_BUCKET}")
EXIT_OK, EXIT_CONNECTION = 0, 1

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")
_TROUBLE = (NatsError, TopologyError, TimeoutError, OSError, msgspec.DecodeError)


class Subscribed(Struct):
    """A target's running subscriber and what it is bound to."""

    pulls: Pulls
    subscriber: Any
    stream_created: str
    consumer_created: str


class ConsumerState(Struct, frozen=True):
    """A consumer's creation time, and the broker's own time when it said so (epoch nanoseconds)."""

    created: str
    now_ns: int


class Worker:
    """One worker process.

    Args:
        config: the configuration; `worker` and `nats` and the targets count here.
        base: folder against which relative secret files are resolved.
        targets: names to serve; all that the configuration lets this worker serve when empty.
        file: where `config` came from; what changes there about targets counts without a restart.
        clock: seconds by which ownership is counted, see `workers/ownership.py`.

    Attributes:
        id: this process's name in presence and outcomes.
        served: the targets that work, by name.
        problems: why the others do not, or why one still works as it was configured before, by name.
        serving: set while every served target has a subscriber bound to an existing consumer.
    """

    def __init__(
        self,
        config: Configuration,
        base: Path,
        targets: Sequence[str] = (),
        *,
        file: ConfigurationFile | None = None,
        clock: Callable[[], float] = monotonic_s,
    ) -> None:
        self.config = config
        self.id = presence.worker_id()
        self.serving = asyncio.Event()
        self.served: dict[str, Served] = {}
        self.problems: dict[str, tuple[str, ...]] = {}
        self._base = base
        self._file = file
        self._wanted = targets or config.worker.targets
        self._log = logger()
        self._link = Link(clock)
        self._signals = Signals(self._link)
        self._receiver = Receiver(self._link, self.id)
        self._seen = presence.WorkersSeen(time.monotonic, self._share)
        self._subscribed: dict[str, Subscribed] = {}
        self._listening: dict[str, Any] = {}
        self._written: Mapping[str, TargetSettings] | None = None
        self._adopted_at = time.monotonic()
        self._retiring: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._speak = asyncio.Event()
        self._gone = asyncio.Event()
        self._stop = asyncio.Event()
        self._declared = False
        self._exit = EXIT_OK
        self._started_at = time.time()
        self._client: Client | None = None
        self._trouble = ("", 0.0)

    # ---- life

    async def run(self) -> int:
        """Serve until `stop` is called; returns the process's exit code."""
        await self._adopt(self.config.targets)
        broker = self._broker()
        try:
            if not await self._connected(broker):
                return self._exit
            tasks = await self._start(broker)
            try:
                await self._stop.wait()
            finally:
                await self._drain(broker, tasks)
        finally:
            for served in self.served.values():
                await self._close(served)
            with contextlib.suppress(*_TROUBLE):
                async with asyncio.timeout(BROKER_STOP_S):
                    await broker.stop()
        self._log.info("worker.stopped", worker=self.id, exit_code=self._exit)
        return self._exit

    def stop(self) -> None:
        """Take nothing new, let running deliveries finish within `worker.drain_s`, then end."""
        self._stop.set()

    # ---- targets, and what the configuration says of them

    async def _look_at_config(self) -> None:
        """A changed file is checked whole before it counts; a bad one changes nothing. Connection and limits need a restart."""
        while self._file is not None:
            await asyncio.sleep(CONFIG_LOOK_EVERY_S)
            try:
                fresh = self._file.changed()
            except ConfigurationError as exc:
                self._log.error("config.refused", problems=len(exc.problems), detail=str(exc))
                continue
            if fresh is not None:
                self._written = fresh.targets
                self._wake.set()

    async def _adopt(self, targets: Mapping[str, TargetSettings]) -> None:
        """Serve these as they are configured now. Only the supervisor does this once the worker runs.

        What did not change goes on undisturbed; what cannot work as it is written now goes on as it was, and presence says why.
        """
        self._adopted_at = time.monotonic()
        self.config = msgspec.structs.replace(self.config, targets=dict(targets))
        told = self.problems
        self.problems = {name: (f"targets.{name}: is not configured",) for name in self._wanted if name not in targets}
        wanted = {
            name: settings
            for name, settings in targets.items()
            if settings.enabled and (not self._wanted or name in self._wanted)
        }
        for name in [name for name in self.served if name not in wanted]:
            await self._leave(self.served.pop(name))
        for name, configured in wanted.items():
            held = self.served.get(name)
            if held is not None and held.configured == configured:
                continue
            fresh = self._opened(name, configured)
            if fresh is None:
                continue
            self.served[name] = fresh
            if held is not None:
                fresh.succeed(held)
                await self._leave(held)
        for name, problems in self.problems.items():
            if problems != told.get(name):
                self._log.error("target.not_served", target=name, problems=list(problems))
        self._share()
        self._speak.set()

    def _opened(self, name: str, configured: TargetSettings) -> Served | None:
        """The target, or None and why not in `problems`."""
        try:
            return Served(
                name,
                configured,
                self._base,
                concurrency_max=self.config.worker.concurrency_max,
                before_call=before_call,
            )
        except ConfigurationError as exc:
            self.problems[name] = tuple(
                problem if problem.startswith("targets.") else f"targets.{name}: {exc.source} {problem}"
                for problem in exc.problems
            )
        except Exception as exc:  # a connector's constructor may fail in any way; the other targets go on
            self.problems[name] = (f"targets.{name}: the connector raised {type(exc).__name__} when it was built",)
        return None

    async def _close(self, held: Served) -> None:
        try:
            await held.close()
        except Exception as exc:  # a connector may fail in any way; the other targets go on
            self._log.error("target.not_closed", target=held.name, error=type(exc).__name__)

    async def _leave(self, held: Served) -> None:
        """Take no more events for a target that is replaced or gone; those at work come to their end as they began."""
        bound = self._subscribed.pop(held.name, None)
        if bound is None:
            await self._close(held)
        else:
            self._retire(bound, held)
        if held.name not in self.served and (listening := self._listening.pop(held.name, None)) is not None:
            with contextlib.suppress(*_TROUBLE):
                await listening.stop()

    def _broker(self) -> NatsBroker:
        """Nothing is buffered over a reconnect (delivery rule R5), and there is no end to trying."""
        return NatsBroker(
            self.config.nats.url,
            name=f"provgate-worker-{self.id}",
            apply_types=False,
            logger=None,
            graceful_timeout=None,  # we wait for running deliveries ourselves
            pending_size=0,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            ping_interval=5,
            max_outstanding_pings=2,
            error_cb=self._on_error,
            disconnected_cb=self._on_lost,
            reconnected_cb=self._on_back,
            closed_cb=self._on_closed,
            security=_security(self.config, self._base),
        )

    async def _connected(self, broker: NatsBroker) -> bool:
        """Wait for NATS as long as it takes; False when the worker was stopped first."""
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            while not self._stop.is_set():
                starting = asyncio.ensure_future(broker.start())
                await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not starting.done():
                    starting.cancel()
                    await asyncio.gather(starting, return_exceptions=True)
                    return False
                failure = starting.exception()
                if failure is None:
                    self._client = broker.connection
                    self._link.client = broker.connection
                    self._receiver.stream = broker.connection.jetstream(timeout=REQUEST_TIMEOUT_S)
                    return True
                self._log.error("nats.refused", error=type(failure).__name__)
                await asyncio.wait({stopped}, timeout=CONNECT_AGAIN_S)
            return False
        finally:
            stopped.cancel()

    async def _start(self, broker: NatsBroker) -> list[asyncio.Task[None]]:
        assert self._client is not None
        await self._client.subscribe(f"{presence.SUBJECT}>", cb=self._hear)
        for name in list(self.served):
            await self._listen(broker, name)
        gc.collect()
        gc.freeze()  # what was loaded until now stays; looking through it again and again cost a tenth of all time
        gc.set_threshold(*GC_THRESHOLDS)
        self._log.info("worker.started", worker=self.id, targets=sorted(self.served))
        return [
            asyncio.create_task(self._for_ever("signals", self._signals.run)),
            asyncio.create_task(self._for_ever("supervisor", lambda: self._supervise(broker))),
            asyncio.create_task(self._for_ever("presence", self._tell)),
            asyncio.create_task(self._for_ever("keep_alive", KeepAlive(lambda: self.served).run)),
            asyncio.create_task(self._for_ever("configuration", self._look_at_config)),
        ]

    async def _for_ever(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A background task that ends by a mistake is begun again; without it the worker would look alive and be dead."""
        while True:
            try:
                await work()
            except Exception as exc:
                self._log.error("worker.task_failed", task=name, error=type(exc).__name__, exc_info=exc)
            await asyncio.sleep(SUPERVISE_EVERY_S)

    async def _drain(self, broker: NatsBroker, tasks: list[asyncio.Task[None]]) -> None:
        self._log.info("worker.draining", worker=self.id, running=self._signals.running)
        self.serving.clear()
        signals, *others = tasks
        await _end(others)
        with contextlib.suppress(*_TROUBLE):
            await self._put(b"", presence.GONE_HEADERS)
        current = list(self._subscribed.values())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.worker.drain_s):
                await asyncio.gather(*(one.pulls.close() for one in current))
                await asyncio.gather(*(one.pulls.idle(self.config.worker.drain_s) for one in current))
                await asyncio.gather(*self._retiring, return_exceptions=True)
        if self._signals.running:
            self._log.warning("worker.drain_unfinished", worker=self.id, running=self._signals.running)
        for one in current:
            with contextlib.suppress(*_TROUBLE):
                await one.subscriber.stop()
        await _end([signals, *self._retiring])

    # ---- the connection

    async def _on_error(self, exc: Exception) -> None:
        """Said once per kind of trouble and TROUBLE_EVERY_S, because a bus that is away causes one every second."""
        kind, now = type(exc).__name__, time.monotonic()
        if kind != self._trouble[0] or now - self._trouble[1] >= TROUBLE_EVERY_S:
            self._trouble = (kind, now)
            self._log.warning("nats.trouble", error=kind)

    async def _on_lost(self) -> None:
        self._link.lost()
        self.serving.clear()
        gone, self._gone = self._gone, asyncio.Event()
        gone.set()
        if not self._stop.is_set():
            self._log.warning("nats.lost", running=self._signals.running)

    async def _on_back(self) -> None:
        self._log.info("nats.back")
        self._wake.set()
        self._speak.set()

    async def _on_closed(self) -> None:
        """The client has given up for good (e.g. its rights were taken away): end, so that whoever watches starts us anew."""
        if not self._stop.is_set():
            self._log.error("nats.closed")
            self._exit = EXIT_CONNECTION
            self._stop.set()

    async def _request(self, subject: str, body: bytes) -> bytes:
        """Raises: ConnectionError as soon as the connection is lost, because no answer will come any more."""
        assert self._client is not None
        gone = asyncio.ensure_future(self._gone.wait())
        asking = asyncio.ensure_future(self._client.request(subject, body, timeout=REQUEST_TIMEOUT_S))
        try:
            await asyncio.wait({asking, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise ConnectionError("the connection was lost")
            return bytes(asking.result().data)
        finally:
            gone.cancel()
            asking.cancel()

    # ---- streams, consumers, subscribers

    async def _supervise(self, broker: NatsBroker) -> None:
        while True:
            self._wake.clear()
            if (written := self._written) is not None:
                await self._adopt(written)
                self._log.info("config.changed", targets=sorted(self.served))
                if self._written is written:
                    self._written = None
            elif self.problems and time.monotonic() - self._adopted_at >= OPEN_AGAIN_S:
                await self._adopt(self.config.targets)
            if self._link.up:
                try:
                    await self._look_after(broker)
                except _TROUBLE as exc:
                    self.serving.clear()
                    self._log.warning("supervisor.waiting", error=type(exc).__name__, detail=str(exc))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SUPERVISE_EVERY_S):
                    await self._wake.wait()

    async def _look_after(self, broker: NatsBroker) -> None:
        """Declare what is missing, bind subscribers to what is there, and let pulling go on."""
        epoch = self._link.epoch
        states = {name: await self._stream(name) for name in NEEDED}
        self._declared = True
        for served in list(self.served.values()):
            await self._listen(broker, served.name)
            await self._look_after_target(broker, served, states[topology.WORK], epoch)
        if epoch == self._link.epoch and not self.serving.is_set():
            self.serving.set()
            self._speak.set()

    async def _stream(self, name: str) -> StreamState:
        state = await topology.stream_state(self._request, name) if self._declared else None
        if state is None:
            state = await topology.declare_stream(self._request, name, replicas=self.config.nats.replicas)
            self._log.info("stream.declared", stream=name, created=state.created)
        return state

    async def _look_after_target(self, broker: NatsBroker, served: Served, work: StreamState, epoch: int) -> None:
        bound = self._subscribed.get(served.name)
        consumer: ConsumerState | None = None
        if bound is not None and bound.stream_created == work.created:
            consumer = await self._consumer(bound.pulls.durable)
        if bound is None or consumer is None:
            durable = await topology.declare_work_consumer(
                self._request, work, served.name, ack_pending_max=max(ACK_PENDING_MIN, 2 * served.window)
            )
            consumer = await self._consumer(durable)
            if consumer is None:
                raise TopologyError(f"consumer {durable} vanished while it was declared")
            self._log.info("consumer.declared", target=served.name, consumer=durable)
        if bound is None or consumer.created != bound.consumer_created or bound.stream_created != work.created:
            durable = topology.consumer_name(served.name, work.created)
            fresh = await self._subscribe(broker, served, durable, work.created, consumer.created)
            self._subscribed[served.name] = fresh
            if bound is not None:
                self._retire(bound)
            bound = fresh
        bound.pulls.verified(epoch, consumer.now_ns)

    async def _consumer(self, durable: str) -> ConsumerState | None:
        """Raises: TopologyError when the broker cannot say."""
        body = await self._request(f"$JS.API.CONSUMER.INFO.{topology.WORK}.{durable}", b"")
        reply = msgspec.json.decode(body)
        if "error" in reply:
            if reply["error"].get("err_code") in (10014, 10059):  # no such consumer, no such stream
                return None
            raise TopologyError(f"consumer {durable}: {reply['error'].get('description', 'refused')}")
        return ConsumerState(created=str(reply["created"]), now_ns=epoch_ns(str(reply["ts"])))

    async def _subscribe(
        self, broker: NatsBroker, served: Served, durable: str, stream_created: str, consumer_created: str
    ) -> Subscribed:
        pulls = Pulls(
            self._link,
            self._signals,
            served.slots,
            stream=topology.WORK,
            durable=durable,
            stream_created_ns=epoch_ns(stream_created),
            on_gone=self._wake.set,
        )
        subscriber = broker.subscriber(
            f"prov.v1.event.{served.name}.>",
            stream=JStream(topology.WORK, declare=False),
            durable=durable,
            pull_sub=PullSub(batch_size=served.concurrency, timeout=PULL_S),
            max_workers=max(2, served.concurrency),
            ack_policy=AckPolicy.MANUAL,
            decoder=_as_it_is,
            no_reply=True,
            persistent=False,
        )

        async def handle(message: NatsMessage) -> None:
            await self._receiver.receive(served, pulls, message.raw_message)

        subscriber(handle)
        try:
            await subscriber.start()
        except BaseException:
            await subscriber.stop()
            raise
        # FastStream's loop only ever calls `fetch` of this; ours stamps every message with its pull request (delivery rule R7).
        # The loop's task was made by `start` but has not run yet, so nothing was fetched through the other one.
        library, subscriber.subscription = subscriber.subscription, pulls
        if library is not None:
            await library.unsubscribe()
        return Subscribed(
            pulls=pulls, subscriber=subscriber, stream_created=stream_created, consumer_created=consumer_created
        )

    def _retire(self, old: Subscribed, held: Served | None = None) -> None:
        """Let the deliveries of a replaced subscriber come to their end, which may be a report (delivery rule R8).

        Args:
            held: the target as it was configured before, closed when nothing works with it any more.
        """

        async def retire() -> None:
            try:
                await old.pulls.close()
                await old.pulls.idle(REPORT_S)
                await old.subscriber.stop()
            finally:
                if held is not None:
                    await self._close(held)

        task = asyncio.create_task(retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    # ---- questions and presence

    async def _listen(self, broker: NatsBroker, name: str) -> None:
        """Answer questions about a target, as it is configured when they are asked."""
        if name in self._listening:
            return
        subscriber = broker.subscriber(
            topology.control_subject(name),
            queue="workers",
            max_workers=CONTROL_CONCURRENCY_MAX,
            decoder=_as_it_is,
        )

        async def handle(message: NatsMessage) -> bytes:
            served = self.served.get(name)
            if served is None:
                return control.not_served(name)
            with at_level(served.configured.log_level):
                return await control.answer(served, message.raw_message.data)

        subscriber(handle)
        await subscriber.start()
        self._listening[name] = subscriber

    async def _tell(self) -> None:
        """Say who we are, every few seconds, and look who else is there."""
        await self.serving.wait()  # the bucket is declared by then
        await self._read_presences()
        while True:
            self._speak.clear()
            self._seen.forget_silent()
            if self._link.up:
                try:
                    await self._put(presence.encode(self.presence()), {})
                except _TROUBLE as exc:
                    self._log.warning("presence.unconfirmed", error=type(exc).__name__)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(topology.PRESENCE_EVERY_S):
                    await self._speak.wait()

    def presence(self) -> presence.Presence:
        """What this worker says about itself."""
        targets = {name: served.presence() for name, served in self.served.items()}
        for name, problems in self.problems.items():
            if name in targets:
                targets[name] = msgspec.structs.replace(targets[name], problems=problems)
                continue
            configured = self.config.targets.get(name)
            connector = configured.connector if configured else ""
            spec = None
            with contextlib.suppress(ConfigurationError):
                spec = load(connector).spec if connector else None
            targets[name] = presence.TargetPresence(connector=connector, spec=spec, problems=problems)
        return presence.Presence(worker=self.id, started_at=self._started_at, version=_version(), targets=targets)

    async def _put(self, body: bytes, headers: dict[str, str]) -> None:
        assert self._receiver.stream is not None
        await self._receiver.stream.publish(
            presence.subject(self.id), body, timeout=REQUEST_TIMEOUT_S, headers=dict(headers) or None
        )

    async def _hear(self, message: Any) -> None:
        worker = message.subject.removeprefix(presence.SUBJECT)
        gone = bool((message.headers or {}).get("KV-Operation"))
        self._seen.heard(worker, b"" if gone else message.data)

    async def _read_presences(self) -> None:
        """Those who spoke before we listened; whoever is missed here speaks within PRESENCE_EVERY_S."""
        stream = f"KV_{topology.WORKERS_BUCKET}"
        question = msgspec.json.encode({"subjects_filter": f"{presence.SUBJECT}>"})
        with contextlib.suppress(*_TROUBLE):
            reply = msgspec.json.decode(await self._request(f"$JS.API.STREAM.INFO.{stream}", question))
            subjects = list(reply.get("state", {}).get("subjects") or ())
            for subject in subjects[: presence.WORKERS_MAX]:
                assert self._client is not None
                kept = await self._client.request(f"$JS.API.DIRECT.GET.{stream}.{subject}", timeout=REQUEST_TIMEOUT_S)
                if not (kept.headers or {}).get("KV-Operation"):
                    self._seen.heard(subject.removeprefix(presence.SUBJECT), kept.data)

    def _share(self) -> None:
        """Each product's rate limit is shared by those who serve the target."""
        for name, served in self.served.items():
            served.limit.share_among(1 + self._seen.count(name, besides=self.id))


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel these tasks and wait for their end, within CANCEL_ROUNDS_MAX times CANCEL_WAIT_S.

    Before Python 3.12 `asyncio.wait_for` swallows a cancellation that comes together with what it waited for; hence rounds.
    """
    waiting = set(tasks)
    for _ in range(CANCEL_ROUNDS_MAX):
        waiting = {task for task in waiting if not task.done()}
        if not waiting:
            return
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting, timeout=CANCEL_WAIT_S)
    logger().warning("worker.tasks_left", count=sum(not task.done() for task in waiting))


async def _as_it_is(message: Any) -> Any:
    """FastStream's decoder: bodies are decoded by us, so that a body nobody can read is ours to judge."""
    return message


def epoch_ns(text: str) -> int:
    """Nanoseconds since the epoch of an RFC 3339 time with up to nine decimals, as nats-server writes it.

    Raises:
        TopologyError: this is no such time.
    """
    parts = _TIME.fullmatch(text)
    if parts is None:
        raise TopologyError("the broker's answer carries no time that can be read")
    whole = datetime.fromisoformat(parts[1] + ("+00:00" if parts[3] == "Z" else parts[3]))
    return int(whole.timestamp()) * 1_000_000_000 + int((parts[2] or "0").ljust(9, "0"))


def _security(config: Configuration, base: Path) -> NatsCredentials | NatsToken | None:
    """A credentials file with user JWT and seed, or else a token.

    Raises:
        ConfigurationError: it cannot be read, or needs a package that is not there.
    """
    if config.nats.credentials is None:
        return None
    text = rebased(config.nats.credentials, base).reveal()
    register_secret(text)
    if "BEGIN NATS USER JWT" not in text:
        return NatsToken(text)
    for line in text.splitlines():
        register_secret(line.strip())
    try:
        return NatsCredentials(RawCredentials(text))
    except ImportError as exc:
        raise ConfigurationError("nats.credentials", ["a credentials file needs the package nkeys"]) from exc


def _version() -> str:
    try:
        return version("provgate")
    except PackageNotFoundError:
        return "0"
