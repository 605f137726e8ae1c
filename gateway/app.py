"""One gateway process, put together: store, engine, bus, the SCIM listener and the operators' listener.

This is the only module of the gateway that sees the whole configuration; every other part is given what it needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from ulid import ULID

from gateway.access import write_access_file
from gateway.checks import revealed
from gateway.configuration_api import configuration_router
from gateway.dispatch import SWEEP_EVERY_S, Dispatcher
from gateway.expiry import LOOK_EVERY_S as KEYS_LOOK_EVERY_S
from gateway.expiry import ExpiryWatch
from gateway.intake import Intake, Waiters
from gateway.jetstream import JetStream
from gateway.keys import Keys, pepper_in
from gateway.lifecycle import Row
from gateway.limits import Overload, SheddingReports, Sources
from gateway.listener import HttpServer, allow_open_files, listen
from gateway.live_api import end_streams
from gateway.mail_api import mail_router
from gateway.metrics import Metrics
from gateway.notes_api import notes_router
from gateway.notify import Notifier
from gateway.operators import create_app
from gateway.outcomes import Outcomes
from gateway.reconcile import LOOK_EVERY_S, Reconciler
from gateway.refusals import RefusedSignIns
from gateway.regrouping import Regrouping
from gateway.reports_api import reports_router
from gateway.scim_app import Edge, ScimParts, scim_app
from gateway.services import Services
from gateway.store import Store
from schemas.config import Configuration, TargetSettings
from schemas.config_file import CONFIG_LOOK_EVERY_S, ConfigurationFile
from schemas.errors import ConfigurationError
from schemas.logs import logger, register_secret
from schemas.specs import Spec
from schemas.states import FOR_A_PERSON, State
from schemas.topology import PRESENCE_TTL_S

PEPPER_FILE = "keys.pepper"
RESTART_WAIT_S = 1.0
OPERATOR_TOKEN_BYTES = 32
CANCEL_WAIT_S = 1.0
CANCEL_ROUNDS_MAX = 5
"""Together shorter than the time a supervisor leaves a process to end."""
GC_THRESHOLDS = (5_000, 20, 20)
"""Nearly nothing here lives in cycles, so looking for them less often costs little memory (see `gc.set_threshold`)."""

log = logger()


class SystemClock:
    """Real time."""

    def now(self) -> float:
        """Epoch seconds."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class Presences:
    """What workers say about themselves, for as long as they say it."""

    def __init__(self, changed: Callable[[str, Spec | None, str], None]) -> None:
        self._heard: dict[str, tuple[float, Mapping[str, Any]]] = {}
        self._specs: dict[str, Spec] = {}
        self._digests: dict[str, str] = {}
        self._changed = changed

    def hear(self, worker: str, document: dict[str, Any] | None) -> None:
        """Take one presence document; None when the worker left."""
        if document is None:
            self._heard.pop(worker, None)
            return
        self._heard[worker] = (time.monotonic(), document)
        targets = document.get("targets")
        for name, entry in targets.items() if isinstance(targets, dict) else ():
            if not isinstance(entry, dict):
                continue
            spec = self._specs.get(name)
            if isinstance(entry.get("spec"), dict):
                with contextlib.suppress(msgspec.ValidationError):
                    spec = msgspec.convert(entry["spec"], Spec)
            digest = str(entry.get("digest", ""))
            if spec != self._specs.get(name) or digest != self._digests.get(name):
                if spec is not None:
                    self._specs[name] = spec
                self._digests[name] = digest
                self._changed(name, spec, digest)

    def hear_again(self, targets: Iterable[str]) -> None:
        """What was said of these before anybody knew them counts as news when it is said again."""
        for name in targets:
            self._digests.pop(name, None)

    def remember(self, target: str, spec: Spec) -> None:
        """A spec known from an earlier run, until a worker says otherwise."""
        self._specs.setdefault(target, spec)

    def seen(self) -> list[Mapping[str, Any]]:
        """Documents of the workers heard of lately."""
        oldest = time.monotonic() - PRESENCE_TTL_S
        self._heard = {worker: held for worker, held in self._heard.items() if held[0] >= oldest}
        return [document for _, document in self._heard.values()]

    def serves(self, target: str) -> bool:
        """Whether a worker takes events of this target now."""
        oldest = time.monotonic() - PRESENCE_TTL_S
        for heard_at, document in self._heard.values():
            entry = document.get("targets", {}).get(target)
            if heard_at >= oldest and isinstance(entry, dict) and entry.get("serving"):
                return True
        return False

    def rights_settle_s(self, target: str) -> float:
        """See `schemas.specs.Spec`; 0 when no worker has said."""
        spec = self.spec(target)
        return spec.rights_settle_s if spec is not None else 0.0

    def spec(self, target: str) -> Spec | None:
        """The connector's declaration, if it was ever announced."""
        return self._specs.get(target)


class Gateway:
    """Everything one gateway process runs.

    Args:
        config: the checked configuration.
        file: where it came from; what changes there about targets counts without a restart.
    """

    def __init__(self, config: Configuration, file: ConfigurationFile) -> None:
        self.config = config
        self.file = file
        self.base = file.path.resolve().parent
        self.targets: Mapping[str, TargetSettings] = config.targets
        self.mail = config.mail
        self._leaving_shadow = {name for name, settings in config.targets.items() if not settings.shadow}
        self.stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    def _known_targets(self) -> Mapping[str, TargetSettings]:
        return self.targets

    # ---- life

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; requests in work are finished."""
        config = self.config
        self.store = await asyncio.to_thread(Store.open, self._store_location(), jobs_in_loop=True)
        clock = SystemClock()
        self.presences = Presences(self._on_worker_changed)
        await self._remember_specs()
        credentials = revealed(config.nats.credentials, self.base) if config.nats.credentials else None
        self.bus = JetStream(
            config.nats,
            credentials=credentials,
            alone=config.store.url is None,
            on_presence=self.presences.hear,
        )
        self.dispatcher = Dispatcher(
            self.store, self.bus, clock, self.spawn, self._known_targets, self.presences.rights_settle_s
        )
        self.waiters = Waiters()
        self.metrics = Metrics(self.targets)
        self.outcomes = _CountedOutcomes(
            self.metrics,
            self.store,
            self.bus,
            clock,
            self.dispatcher,
            self._known_targets,
            random.random,
            on_settled=self._on_settled,
            awaited=self.waiters.awaited,
            rights_settle_s=self.presences.rights_settle_s,
        )
        self.intake = Intake(
            self.store,
            self.dispatcher,
            self.waiters,
            clock,
            self._known_targets,
            answer_wait_s=config.gateway.answer_wait_s,
            new_id=lambda: str(ULID()),
            new_resource=lambda: str(uuid.uuid4()),
            healthy=self._answers_soon,
            identity_paths=self._identity_paths,
        )
        self.reconciler = Reconciler(
            self.store,
            self.dispatcher,
            clock,
            self._known_targets,
            self.bus.ask,
            self.presences.spec,
            self.presences.serves,
            self.spawn,
        )
        self.regrouping = Regrouping(
            self.store,
            self.dispatcher,
            clock,
            self._known_targets,
            self.bus.ask,
            self.presences.spec,
            self.presences.serves,
        )
        self.keys = Keys(self.store, self._pepper(), now=time.time, clock=time.monotonic)
        self.expiry = ExpiryWatch(self.keys, self._known_targets, time.time)
        self.refused = RefusedSignIns(time.time)
        self.notifier = Notifier(
            self.store,
            lambda: self.mail,
            self._known_targets,
            self.presences.seen,
            self.bus.connected,
            configuration_problems=lambda: len(self.file.problems),
            rights_settle_s=self.presences.rights_settle_s,
            base=self.base,
            place=config.gateway.public_url,
            counted=self.metrics.count_mail,
        )
        self.overload = Overload(on_step=self.metrics.set_overload, on_shed=self.metrics.count_shed)
        try:
            await self._serve(clock)
        finally:
            await self._end_tasks()
            await self.bus.close()
            await self.store.close()
        return 0

    async def _end_tasks(self) -> None:
        """Cancel what runs beside the servers. A library may swallow the first cancellation of a wait, so it is repeated."""
        for _ in range(CANCEL_ROUNDS_MAX):
            waiting = set(self._tasks)
            if not waiting:
                return
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting, timeout=CANCEL_WAIT_S)
        if self._tasks:
            names = sorted({getattr(task.get_coro(), "__qualname__", "?") for task in self._tasks})
            log.warning("gateway.tasks_left", tasks=names)

    async def _serve(self, clock: SystemClock) -> None:
        gateway = self.config.gateway
        scim_socket = listen(gateway.host, gateway.port)
        operator_socket = listen(gateway.operator_host, gateway.operator_port)
        limits, sources = gateway.limits, Sources(gateway.trusted_proxies)
        allow_open_files(limits)
        public_url = gateway.public_url or _url(scim_socket)
        token = self._operator_token()
        register_secret(token)
        scim = scim_app(self._scim_parts())
        services = self._services(clock, public_url, token, scim)
        routers = (
            reports_router(services, self.reconciler),
            configuration_router(services),
            notes_router(services),
            mail_router(services, self.notifier),
        )
        operators = create_app(services, *routers)
        servers = [
            HttpServer(scim, scim_socket, limits, sources),
            HttpServer(SheddingReports(operators, self.overload), operator_socket, limits, sources),
        ]
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        write_access_file(self.base, _url(operator_socket), token)
        if self.config.store.url is None:
            await self.reconciler.take_over()
        await self._leave_shadow()
        self.spawn(self._connect_and_fold())
        self.spawn(self._for_ever("sweep", self._sweep))
        self.spawn(self._for_ever("reconcile", self._look_at_products))
        self.spawn(self._for_ever("config", self._look_at_config))
        self.spawn(self._for_ever("keys", self._look_at_keys))
        self.spawn(self._for_ever("alerts", self.notifier.watch))
        self.spawn(self._for_ever("mails", self.notifier.deliver))
        self.spawn(self._for_ever("overload", lambda: self.overload.watch(lambda: self.store.jobs_waiting)))
        log.info("gateway.started", scim=_url(scim_socket), operators=_url(operator_socket), targets=len(self.targets))
        gc.collect()
        gc.freeze()  # what was loaded until now stays; looking through it again and again cost a tenth of all time
        gc.set_threshold(*GC_THRESHOLDS)
        serving = [asyncio.ensure_future(server.serve_here()) for server in servers]
        stop = asyncio.ensure_future(self.stopping.wait())
        await asyncio.wait([*serving, stop], return_when=asyncio.FIRST_COMPLETED)
        end_streams(operators)
        for server in servers:
            server.should_exit = True
        stop.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        log.info("gateway.stopped")

    def _on_signal(self, number: int) -> None:
        if self.stopping.is_set():
            os._exit(128 + number)  # a second signal means now
        self.stopping.set()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start a task that is watched: what it raises is logged and lost to nobody who waits."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("task.failed", error=type(exc).__name__)

    async def _for_ever(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Exception as exc:  # time goes on: whatever it was, the next second tries again
                log.error("task.interrupted", task=name, error=type(exc).__name__)
                await asyncio.sleep(RESTART_WAIT_S)

    async def _connect_and_fold(self) -> None:
        await self.bus.start(self.outcomes, self.dispatcher.begin, self.waiters.wake)
        await self.bus.fold_for_ever()

    async def _sweep(self) -> None:
        started = time.monotonic()
        await self.dispatcher.sweep()
        self.intake.relax()
        await asyncio.sleep(max(0.0, SWEEP_EVERY_S - (time.monotonic() - started)))

    def _on_settled(self, row: Row) -> None:
        self.waiters.wake(row.id, row)
        if row.state in FOR_A_PERSON or row.state is State.BLOCKED:
            self.notifier.kick()

    def _answers_soon(self, target: str) -> bool:
        """Whether waiting for the outcome of a write may be worth it: never in shadow mode, where none comes."""
        settings = self.targets.get(target)
        if settings is not None and settings.shadow:
            return False
        return self.bus.connected() and self.presences.serves(target)

    async def _leave_shadow(self) -> None:
        """What was only rehearsed is due now, and delivered for real; a target stays to be done when the store is away."""
        now = time.time()
        for name in sorted(self._leaving_shadow):
            count = 0
            while part := await self.store.run(lambda ledger, name=name: ledger.leave_shadow(name, now)):  # type: ignore[misc]
                count += part
            if count:
                log.warning("shadow.left", target=name, changes=count)
                self.dispatcher.kick(name)
            self._leaving_shadow.discard(name)

    async def _look_at_products(self) -> None:
        await asyncio.sleep(LOOK_EVERY_S)
        await self.reconciler.look()
        await self.regrouping.look_around()

    async def _look_at_keys(self) -> None:
        await self.expiry.look()
        await asyncio.sleep(KEYS_LOOK_EVERY_S)

    # ---- configuration

    async def _look_at_config(self) -> None:
        """A changed file is checked whole and swapped in; a bad one changes nothing."""
        while True:
            await asyncio.sleep(CONFIG_LOOK_EVERY_S)
            try:
                fresh = self.file.changed()
            except ConfigurationError as exc:
                log.error("config.refused", problems=len(exc.problems), detail=str(exc))
                self.notifier.kick()
                continue
            if fresh is not None:
                was, self.targets, self.mail = self.targets, fresh.targets, fresh.mail
                self.presences.hear_again(name for name in fresh.targets if name not in was)
                self.metrics.know(fresh.targets)
                self._leaving_shadow = {
                    name
                    for name, settings in fresh.targets.items()
                    if not settings.shadow and (name not in was or was[name].shadow or name in self._leaving_shadow)
                }
                log.info("config.changed", targets=len(fresh.targets))
            await self._leave_shadow()

    def _store_location(self) -> str | Path:
        store = self.config.store
        return revealed(store.url, self.base) if store.url is not None else self.base / store.path

    def _pepper(self) -> bytes:
        return pepper_in(self.base / PEPPER_FILE)

    def _operator_token(self) -> str:
        secret = self.config.gateway.operator_token
        return revealed(secret, self.base) if secret is not None else os.urandom(OPERATOR_TOKEN_BYTES).hex()

    # ---- workers

    def _on_worker_changed(self, target: str, spec: Spec | None, digest: str) -> None:
        if target in self.targets:
            self.spawn(self._note_worker(target, spec, digest))

    async def _note_worker(self, target: str, spec: Spec | None, digest: str) -> None:
        if spec is not None:
            body = msgspec.json.encode(spec)
            await self.store.run(
                lambda ledger: ledger.save_spec(target, body, settings_digest=digest, seen_at=time.time())
            )
        await self.dispatcher.probe_now(target)
        await self.regrouping.changed(target)

    async def _remember_specs(self) -> None:
        for name in self.targets:
            body = await self.store.read(lambda reader, name=name: reader.spec(name))  # type: ignore[misc]
            if body:
                with contextlib.suppress(msgspec.DecodeError):
                    self.presences.remember(name, msgspec.json.decode(body, type=Spec))

    def _identity_paths(self, target: str) -> tuple[str, ...]:
        spec = self.presences.spec(target)
        return spec.identity if spec is not None else ("userName",)

    # ---- the two listeners

    def _scim_parts(self) -> ScimParts:
        return ScimParts(
            store=self.store,
            intake=self.intake,
            keys=self.keys,
            targets=self._known_targets,
            spec_of=self.presences.spec,
            limits=self.config.gateway.limits,
            trusted_proxies=self.config.gateway.trusted_proxies,
            overload=self.overload,
            public_url=self.config.gateway.public_url,
            ready=self._ready,
            other_spellings=self._other_spellings,
            observed=self.metrics.count_request,
            refused=self.refused,
        )

    async def _other_spellings(self, target: str, user_name: str) -> list[str]:
        spec = self.presences.spec(target)
        if spec is None or "normalizes_identity" not in spec.capabilities or not self.presences.serves(target):
            return []
        return await self.bus.identities(target, user_name)

    async def _ready(self) -> bool:
        await self.store.read(lambda reader: reader.targets())
        return True

    def _services(self, clock: SystemClock, public_url: str, token: str, scim: Edge) -> Services:
        return Services(
            token=token,
            store=self.store,
            dispatcher=self.dispatcher,
            targets=self._known_targets,
            clock=clock,
            workers_seen=self.presences.seen,
            live_events=self._live_events,
            public_url=public_url,
            new_id=lambda: str(ULID()),
            keys=self.keys,
            metrics=self.metrics,
            refused=self.refused,
            overload=self.overload.view,
            config_problems=lambda: self.file.problems,
            ask_worker=self.bus.ask,
            scim_openapi=lambda target: scim.openapi(public_url, target),
            mail_health=self.notifier.health,
            next_comparison=self.reconciler.next_after,
        )

    def _live_events(self) -> AsyncIterator[Mapping[str, Any]]:
        return self.bus.live()


class _CountedOutcomes(Outcomes):
    """Outcomes, counted for the metrics and the status page."""

    def __init__(self, metrics: Metrics, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.metrics = metrics

    async def fold(self, outcome: Any) -> None:
        await super().fold(outcome)
        self.metrics.count_outcome(outcome.target, outcome.result.value, outcome.ended_at)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}"
