"""An operators' listener on a free port: real HTTP, real SQLite store, the real engine; resources come and settle through it.

Only the message bus is short-circuited: `HeldBus` keeps what was published, and a test says what each delivery came to.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import os
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from msgspec import Struct

from gateway.access import write_access_file
from gateway.cli import main
from gateway.configuration_api import configuration_router
from gateway.dispatch import Dispatcher
from gateway.intake import Intake, Waiters
from gateway.keys import PEPPER_BYTES, Keys
from gateway.ledger import Ledger
from gateway.lifecycle import Row, accept
from gateway.mail_api import mail_router
from gateway.metrics import Metrics
from gateway.notes_api import notes_router
from gateway.notify import Notifier
from gateway.operators import create_app
from gateway.outcomes import Outcomes
from gateway.services import Services
from gateway.store import Store
from schemas.config import BrakeSettings, MailSettings, TargetSettings
from schemas.events import Outcome, Reason, Step, decode_event, identity
from schemas.states import Change, Result, State
from tests.gateway.stand_ins import Background, HeldBus, WallClock, write_blank_store

TOKEN = "operator-token-of-this-test"
ALPHA, BETA = "alpha", "beta"
WAIT_S = 60.0
COLUMNS = 100

ROLE = Reason(
    code="bad_role",
    message="The role 'Wizard' does not exist in the account; create it or correct the mapping.",
    attribute="roles",
    names=("Wizard",),
)


class Live:
    """A feed of live events that a test fills; each reader gets what comes after it began to listen."""

    def __init__(self) -> None:
        self.readers: list[asyncio.Queue[Mapping[str, Any] | None]] = []

    def say(self, event: Mapping[str, Any] | None) -> None:
        for queue in self.readers:
            queue.put_nowait(event)

    async def listen(self) -> AsyncIterator[Mapping[str, Any]]:
        queue: asyncio.Queue[Mapping[str, Any] | None] = asyncio.Queue()
        self.readers.append(queue)
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self.readers.remove(queue)

    async def heard_by(self, count: int) -> None:
        """Wait until so many readers listen."""
        async with asyncio.timeout(WAIT_S):
            while len(self.readers) != count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


class Ended(Struct):
    """How a command ended."""

    code: int
    out: str
    err: str


class Operated:
    """Everything a test needs of one gateway: its store and engine, its listener, and its commands."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder = folder
        self.store = store
        self.bus = HeldBus(known=False)
        self.live = Live()
        self.workers: list[dict[str, Any]] = [worker_of(ALPHA, BETA)]
        self.configured = {
            name: TargetSettings(connector="observe", title=name.title(), brake=BrakeSettings(enabled=False))
            for name in (ALPHA, BETA)
        }
        self.config_problems: tuple[str, ...] = ()
        self.url = ""
        clock = WallClock()
        count = itertools.count(1)
        self._background = Background()
        self.dispatcher = Dispatcher(store, self.bus, clock, self._background.spawn, lambda: self.configured)
        self.intake = Intake(
            store,
            self.dispatcher,
            Waiters(),
            clock,
            lambda: self.configured,
            answer_wait_s=0.1,
            new_id=lambda: f"event-{next(count):06d}",
            new_resource=lambda: str(uuid.uuid4()),
            healthy=lambda target: False,
            identity_paths=lambda target: ("userName",),
        )
        self.outcomes = Outcomes(store, self.bus, clock, self.dispatcher, lambda: self.configured, jitter=lambda: 0.5)
        self.metrics = Metrics((ALPHA, BETA))
        self.keys = Keys(store, bytes(PEPPER_BYTES), now=time.time, clock=time.monotonic)
        self.services = Services(
            token=TOKEN,
            store=store,
            dispatcher=self.dispatcher,
            targets=lambda: self.configured,
            clock=clock,
            workers_seen=lambda: self.workers,
            config_problems=lambda: self.config_problems,
            live_events=self.live.listen,
            public_url="https://provgate.example.com",
            new_id=lambda: f"event-{next(count):06d}",
            keys=self.keys,
            metrics=self.metrics,
            mail_health=lambda reader: self.notifier.health(reader),
        )
        self.mail: MailSettings | None = None
        self.ahead_s = self.rights_settle_s = 0.0
        self.notifier = self.another_notifier(store)
        self.app = create_app(
            self.services,
            configuration_router(self.services),
            notes_router(self.services),
            mail_router(self.services, self.notifier),
        )
        self._reports = itertools.count(1)

    def another_notifier(self, store: Store) -> Notifier:
        """Who tells operators by mail as `mail` says; its clock is `ahead_s` ahead."""
        return Notifier(
            store,
            lambda: self.mail,
            lambda: self.configured,
            lambda: self.workers,
            self.bus.connected,
            base=self.folder,
            rights_settle_s=lambda target: self.rights_settle_s,
            place=self.services.public_url,
            now=lambda: time.time() + self.ahead_s,
            counted=self.metrics.count_mail,
        )

    async def settled(self) -> None:
        """Wait until nothing that was started in the background is left."""
        async with asyncio.timeout(WAIT_S):
            await self._background.quiet(failing=False)

    # ---- resources

    async def created(self, name: str, target: str = ALPHA, **more: Any) -> str:
        """Entra creates a user; the id of the resource, which is on its way afterwards unless something stops it."""
        answer = await self.intake.create(target, "user", a_user(name, **more))
        assert answer.row is not None, answer.error
        await self.settled()
        return answer.row.id

    async def comes_to(self, resource: str, result: Result, reason: Reason | None = None, **more: Any) -> Row:
        """The delivery that is out for this resource ends like this."""
        event = decode_event(self.bus.sent.pop(resource).body)
        now = time.time()
        await self.outcomes.fold(
            Outcome(
                id=f"report-{next(self._reports):06d}",
                event_id=event.id,
                target=event.target,
                kind=event.kind,
                resource=resource,
                generation=event.generation,
                fence=event.fence,
                delivery=1,
                result=result,
                identities=event.identities,
                reason=reason,
                started_at=now - 0.1,
                ended_at=now,
                worker="worker-1",
                **{"steps": (Step(method="POST", path="/Users", status=201, ms=12.0),), **more},
            )
        )
        await self.settled()
        return await self.row(resource)

    async def applied(self, name: str, target: str = ALPHA, **more: Any) -> str:
        """A user that is at the product."""
        resource = await self.created(name, target, **more)
        row = await self.comes_to(resource, Result.APPLIED, account_id=f"account-of-{resource[:8]}", created=True)
        assert row.state is State.APPLIED
        return resource

    async def dead(self, name: str, target: str = ALPHA, reason: Reason = ROLE, **more: Any) -> str:
        """A dead letter."""
        resource = await self.created(name, target, **more)
        row = await self.comes_to(resource, Result.REJECTED, reason)
        assert row.state is State.DEAD
        return resource

    async def held(self, name: str, target: str = ALPHA) -> str:
        """A deletion that the safety brake holds back."""
        resource = await self.applied(name, target)

        def hold(ledger: Ledger) -> None:
            row = ledger.row(resource)
            assert row is not None
            accept(
                row,
                event_id=f"held-{name}-{target}",
                document=row.document,
                identities=row.identities,
                change=Change.DELETE,
                changed=(),
                now=time.time(),
                acknowledged=True,
                hold=True,
            )
            ledger.save(row)
            ledger.add_event(row, actor="entra")

        await self.store.run(hold)
        assert (await self.row(resource)).state is State.HELD
        return resource

    async def row(self, resource: str) -> Row:
        found = await self.store.read(lambda reader: reader.row(resource))
        assert found is not None
        return found

    async def audited(self, action: str) -> list[Any]:
        """The recorded acts of one kind, oldest first."""
        records = await self.store.read_slow(lambda reader: reader.audit(1_000))
        return [record for record in reversed(records) if record.action == action]

    # ---- over HTTP and on the command line

    def client(self, **headers: str) -> httpx.AsyncClient:
        """Somebody who calls the API; with the token unless `authorization` says otherwise."""
        given = {"authorization": f"Bearer {TOKEN}", **headers}
        return httpx.AsyncClient(base_url=self.url, headers=given, timeout=WAIT_S, trust_env=False)

    async def get(self, path: str, **params: Any) -> Any:
        async with self.client() as client:
            answer = await client.get(f"/api/v1{path}", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, body: Mapping[str, Any], status: int = 200) -> Any:
        async with self.client() as client:
            answer = await client.post(f"/api/v1{path}", json=dict(body))
        assert answer.status_code == status, answer.text
        return answer.json()

    async def command(self, *arguments: str, **environment: str) -> Ended:
        """Run `provgate` as a person would, with the gateway's folder named by --data unless the environment says more."""
        where = () if environment else ("--data", str(self.folder))
        ended = await provgate(*arguments, *where, **environment)
        await self.settled()
        return ended

    async def typed(self, *arguments: str) -> Ended:
        """The same without a process of its own, for tests that type many commands."""
        ended = await asyncio.to_thread(_typed, (*arguments, "--data", str(self.folder)))
        await self.settled()
        return ended


def _typed(arguments: tuple[str, ...]) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(COLUMNS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return Ended(code, out.getvalue(), err.getvalue())


async def provgate(*arguments: str, cwd: Path | None = None, **environment: str) -> Ended:
    """Run the command in a process of its own, 100 columns wide."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway.cli",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=cwd,
        env=clean_environment(**environment),
    )
    out, err = await asyncio.wait_for(process.communicate(), WAIT_S * 3)
    return Ended(process.returncode or 0, out.decode(), err.decode())


def clean_environment(**more: str) -> dict[str, str]:
    """The environment of a command: nothing of ours, 100 columns, importable from anywhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PROVGATE_")}
    root = str(Path(__file__).parent.parent.parent)
    return {**kept, "COLUMNS": str(COLUMNS), "PYTHONPATH": root, "NO_COLOR": "1", **more}


def worker_of(*targets: str, problems: tuple[str, ...] = ()) -> dict[str, Any]:
    """A worker's presence document as plain data."""
    entry = {"connector": "observe", "serving": not problems, "digest": "d", "problems": list(problems)}
    return {"worker": "worker-1", "started_at": 1.0, "version": "0.1.0", "targets": dict.fromkeys(targets, entry)}


def a_user(name: str, **more: Any) -> dict[str, Any]:
    """A SCIM user as it is stored."""
    return {
        "userName": f"{name}@contoso.example",
        "externalId": f"external-{name}",
        "name": {"givenName": name.title(), "familyName": "Lovelace"},
        "emails": [{"type": "work", "value": f"{name}@contoso.example", "primary": True}],
        "phoneNumbers": [{"type": "mobile", "value": "+44 7700 900123"}],
        "roles": [{"value": "Wizard"}],
        "active": True,
        **more,
    }


def wished_name(name: str) -> str:
    """What a user of `a_user` is called at the product."""
    return identity("userName", f"{name}@contoso.example")


@contextlib.asynccontextmanager
async def operated(folder: Path) -> AsyncIterator[Operated]:
    """A gateway's operators' side, serving on a free port; its address and token lie in the folder."""
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 a moment, in a test
    await write_blank_store(folder / "store.sqlite3")
    here = Operated(folder, Store.open(folder / "store.sqlite3"))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    here.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(here.app, access_log=False, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(WAIT_S):
            while not server.started:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        write_access_file(folder, here.url, TOKEN)
        yield here
    finally:
        server.should_exit = True
        await serving
        await here.settled()
        await here.store.close()
