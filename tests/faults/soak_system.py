"""The whole system under the soak: a gateway, two workers and a nats-server in front of eight emulated products."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from deploy.emulators import entra
from deploy.local import Child, Supervisor, free_port, nats_child, process_children, wait_for_port, write_private
from tests.e2e.running import eventually
from tests.faults.installation import REPOSITORY, START_WAIT_S, Installation
from tests.faults.soak_products import Kind, toml

WORKERS = ("worker", "worker-2")
PARTS = ("nats-server", "gateway", *WORKERS)
DELAY_MS = 3.0
HEAD = """\
[gateway]
port = {gateway}
operator_port = {operator}
operator_token = {{ file = "{data}/secrets/operator" }}

[gateway.limits]
requests_per_s_per_target = "unlimited"

[nats]
url = "nats://127.0.0.1:{nats}"
"""


class System(Installation):
    """Use as an async context manager.

    Args:
        data: where everything is kept.
        kinds: the products.
        groups: the groups of each product's directory, which some settings name.

    Attributes:
        emulators: the processes of the products; what they hold outlives them.
        rewritten: how often the configuration file was written.
    """

    def __init__(self, data: Path, kinds: tuple[Kind, ...], groups: dict[str, list[entra.Group]]) -> None:
        self.data = data
        self.kinds = kinds
        self.supervisor = Supervisor()
        names = ("gateway", "operator", "nats", *(kind.name for kind in kinds))
        self.ports = {name: free_port() for name in names}
        self.tokens = {}
        self.kills = []
        self.config = data / "provgate.toml"
        self.rewritten = 0
        self.emulators: list[str] = []
        self.targets: dict[str, dict[str, Any]] = {
            kind.name: {
                "connector": kind.connector,
                # An outage shall not outlast the run, and nobody is there to let held changes go.
                "retry": {"wait_first_s": 0.5, "wait_max_s": 8.0},
                "brake": {"enabled": False},
                "reconcile": {"mode": "off"},
                "settings": kind.settings(self.url(kind.name), self.secret(kind.name), groups[kind.name]),
            }
            for kind in kinds
        }

    def url(self, name: str) -> str:
        """Where an emulator answers."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def secret(self, name: str) -> str:
        """The file of a credential."""
        return str(self.data / "secrets" / name)

    def credential(self, name: str) -> str:
        """What is in it."""
        return Path(self.secret(name)).read_text()

    def tenant_url(self, name: str) -> str:
        """What an Entra admin enters."""
        return f"http://127.0.0.1:{self.ports['gateway']}/scim/v2/{name}"

    def rewrite(self, name: str = "", **values: Any) -> None:
        """Write the configuration file, with other values for one target; the running processes find out by themselves."""
        if name:
            self.targets[name].update(values)
        text = HEAD.format(data=self.data, **{part: self.ports[part] for part in ("gateway", "operator", "nats")})
        for target, table in self.targets.items():
            text += f"\n[targets.{target}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in table.items())
        fresh = self.config.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.config)
        self.rewritten += 1

    async def _start(self) -> None:
        data, logs = self.data, self.data / "logs"
        for name in (*(kind.name for kind in self.kinds), "operator"):
            write_private(data / "secrets" / name, secrets.token_hex(32))
        self.rewrite()
        # Two targets may be of one product, and a process runs each emulator once.
        first = {kind.emulator: kind for kind in reversed(self.kinds)}
        await self._emulators("emulators", tuple(first.values()))
        second = tuple(kind for kind in self.kinds if kind not in first.values())
        if second:
            await self._emulators("emulators-2", second)
        await self.supervisor.start(nats_child(data / "nats", self.ports["nats"], output=logs / "nats-server.log"))
        await wait_for_port(self.ports["nats"])
        gateway, worker = process_children(self.config, output=logs)
        another = msgspec.structs.replace(worker, name="worker-2", output=logs / "worker-2.log")
        for child in (gateway, worker, another):
            await self.supervisor.start(msgspec.structs.replace(child, environment={"PYTHONPATH": REPOSITORY}))
        async with aiohttp.ClientSession() as session:

            async def served() -> bool:
                try:
                    status = await self.api(session, "GET", "/status")
                except (aiohttp.ClientError, OSError):
                    return False
                return all(len(target["workers"]) == len(WORKERS) for target in status["targets"])

            await eventually(served, START_WAIT_S, f"two workers serve every target; see {logs}", every_s=0.3)
            for kind in self.kinds:
                order = {"target": kind.name, "days": 90, "label": "soak"}
                self.tokens[kind.name] = (await self.api(session, "POST", "/keys", order))["key"]

    async def _emulators(self, name: str, kinds: tuple[Kind, ...]) -> None:
        journal = self.data / f"journal-{name}"
        journal.mkdir()
        places = [f"{kind.emulator}:{self.ports[kind.name]}" for kind in kinds]
        tokens = [f"--token={kind.emulator}={self.credential(kind.name)}" for kind in kinds]
        settings = [
            f"--set={kind.emulator}.{key}={msgspec.json.encode(value).decode()}"
            for kind in kinds
            for key, value in kind.options.items()
        ]
        options = ("--journal-dir", str(journal), "--delay-ms", f"{DELAY_MS:g}")
        command = (sys.executable, "-m", "deploy.emulators", *places, *options, *settings, *tokens)
        self.emulators.append(name)
        output = self.data / "logs" / f"{name}.log"
        await self.supervisor.start(Child(name, command, output=output, environment={"PYTHONPATH": REPOSITORY}))
        for kind in kinds:
            await wait_for_port(self.ports[kind.name])
