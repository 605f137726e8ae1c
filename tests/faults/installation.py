"""An installation on this machine whose processes a test may kill: emulators, nats-server, gateway and worker, watched over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
import msgspec

from deploy.local import (
    Child,
    Supervisor,
    free_port,
    nats_child,
    process_children,
    wait_for_port,
    write_private,
)
from tests.e2e.running import MANAGER, Product, Scim, eventually
from tests.faults import unpaced

START_WAIT_S = 60.0
REPOSITORY = str(Path(__file__).resolve().parents[2])
PRODUCTS = ("telemessage", "talkdesk")
ROLES = ("Agent", "Supervisor", "Administrator", "Team Lead")

CONFIG = """\
[gateway]
port = {gateway}
operator_port = {operator}
operator_token = {{ file = "{data}/secrets/operator" }}

[gateway.limits]
requests_per_s_per_target = "unlimited"

[nats]
url = "nats://127.0.0.1:{nats}"

[targets.telemessage]
connector = "telemessage_unpaced"
[targets.telemessage.brake]
enabled = false
[targets.telemessage.settings]
base_url = "http://127.0.0.1:{telemessage}"
token = {{ file = "{data}/secrets/telemessage" }}
manager_name = "{manager}"
allow_loopback = true

[targets.talkdesk]
connector = "talkdesk_unpaced"
[targets.talkdesk.brake]
enabled = false
[targets.talkdesk.settings]
base_url = "http://127.0.0.1:{talkdesk}"
token = {{ file = "{data}/secrets/talkdesk" }}
roles = {roles}
allow_loopback = true
"""


class Installation:
    """Use as an async context manager.

    Args:
        data: where everything is kept.
        delay_ms: how long the products take for a call.
    """

    def __init__(self, data: Path, *, delay_ms: float = 2.0) -> None:
        self.data = data
        self.delay_ms = delay_ms
        self.supervisor = Supervisor()
        self.ports = {name: free_port() for name in ("gateway", "operator", "nats", *PRODUCTS)}
        self.tokens: dict[str, str] = {}
        self.kills: list[str] = []

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.supervisor.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.supervisor.stop()

    async def _start(self) -> None:
        data, logs = self.data, self.data / "logs"
        for name in (*PRODUCTS, "operator"):
            write_private(data / "secrets" / name, secrets.token_hex(32))
        (data / "journal").mkdir()
        config = data / "provgate.toml"
        roles = msgspec.json.encode(ROLES).decode()
        config.write_text(CONFIG.format(data=data, manager=MANAGER, roles=roles, **self.ports))
        unpaced.install(data / "connectors")
        path = os.pathsep.join((str(data / "connectors"), REPOSITORY))
        places = [f"{name}:{self.ports[name]}" for name in PRODUCTS]
        tokens = [f"--token={name}={(data / 'secrets' / name).read_text()}" for name in PRODUCTS]
        managers = f"--set=telemessage.managers={msgspec.json.encode([MANAGER]).decode()}"
        options = ("--rate-per-s", "0", "--delay-ms", f"{self.delay_ms:g}", "--journal-dir", str(data / "journal"))
        command = (sys.executable, "-m", "deploy.emulators", *places, *options, managers, *tokens)
        await self.supervisor.start(Child("emulators", command, output=logs / "emulators.log"))
        await self.supervisor.start(nats_child(data / "nats", self.ports["nats"], output=logs / "nats-server.log"))
        await wait_for_port(self.ports["nats"])
        for child in process_children(config, output=logs):
            await self.supervisor.start(msgspec.structs.replace(child, environment={"PYTHONPATH": path}))
        async with aiohttp.ClientSession() as session:

            async def served() -> bool:
                try:
                    status = await self.api(session, "GET", "/status")
                    return all(t["workers"] for t in status["targets"])
                except (aiohttp.ClientError, OSError):
                    return False

            await eventually(served, START_WAIT_S, f"a worker serves both targets; see {logs}")
            for target in PRODUCTS:
                order = {"target": target, "days": 90, "label": "faults"}
                self.tokens[target] = (await self.api(session, "POST", "/keys", order))["key"]

    async def api(self, session: aiohttp.ClientSession, method: str, path: str, body: object = None) -> dict:  # type: ignore[type-arg]
        """The operators' API."""
        token = (self.data / "secrets" / "operator").read_text()
        url = f"http://127.0.0.1:{self.ports['operator']}/api/v1{path}"
        async with session.request(method, url, json=body, headers={"Authorization": f"Bearer {token}"}) as answer:
            answer.raise_for_status()
            return dict(await answer.json())

    def scim(self, session: aiohttp.ClientSession, target: str) -> Scim:
        """A caller of a target."""
        return Scim(session, f"http://127.0.0.1:{self.ports['gateway']}/scim/v2/{target}", self.tokens[target])

    def product(self, session: aiohttp.ClientSession, name: str) -> Product:
        """One emulator."""
        return Product(session, f"http://127.0.0.1:{self.ports[name]}")

    async def kill(self, name: str) -> None:
        """kill -9 of the process that has this part now; waits for one to exist."""

        async def running() -> int | None:
            return self.supervisor.pids.get(name)

        os.kill(await eventually(running, START_WAIT_S, f"{name} runs"), signal.SIGKILL)
        self.kills.append(name)

    async def wipe(self) -> None:
        """kill -9 of the nats-server, and its whole data directory is gone before the next one starts."""

        async def running() -> int | None:
            return self.supervisor.pids.get("nats-server")

        pid = await eventually(running, START_WAIT_S, "nats-server runs")
        os.kill(pid, signal.SIGSTOP)  # what stands still writes nothing more; it never wakes up
        shutil.rmtree(self.data / "nats")
        os.kill(pid, signal.SIGKILL)
        self.kills.append("nats-server and its data")

    async def freeze(self, name: str, seconds: float) -> None:
        """This part stands still for so long and goes on as if nothing had happened, as a virtual machine may."""

        async def running() -> int | None:
            return self.supervisor.pids.get(name)

        pid = await eventually(running, START_WAIT_S, f"{name} runs")
        self.kills.append(f"{name} frozen {seconds:.0f} s")
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(seconds)  # the fault itself, not a wait for something
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    async def replaced(self, names: tuple[str, ...] = ("nats-server", "gateway", "worker")) -> None:
        """Wait until every part has a process."""

        async def all_run() -> bool:
            await asyncio.sleep(0)
            return set(names) <= set(self.supervisor.pids)

        await eventually(all_run, START_WAIT_S, "all parts run again")
