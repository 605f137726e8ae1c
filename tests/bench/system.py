"""A whole system for the benchmark: own folder, own ports, own nats-server; the same processes as anywhere else."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from deploy.local import Child, Supervisor, free_port, nats_child, process_children, wait_for_port, write_private

START_WAIT_S = 60.0
APPLY_WAIT_S = 120.0
POLL_S = 0.05
VENDOR_DELAY_MS = 5
KEY_DAYS = 90
VENDOR_TARGET = "vendor"

CONFIG = """\
[gateway]
host = "127.0.0.1"
port = {scim}
operator_port = {operator}
operator_token = {{ file = "{folder}/operator-token" }}

[gateway.limits]
requests_per_s_per_target = "unlimited"

[nats]
url = "nats://127.0.0.1:{nats}"

[targets.observe]
connector = "observe"
log_level = "{log_level}"
[targets.observe.brake]
enabled = false
"""

VENDOR = """
[targets.vendor]
connector = "unpaced"
log_level = "{log_level}"
[targets.vendor.brake]
enabled = false
[targets.vendor.settings]
base_url = "http://127.0.0.1:{vendor}"
token = {{ file = "{folder}/vendor-token" }}
roles = ["Agent", "Supervisor"]
allow_loopback = true
"""

STEADY = """
[targets.{name}]
connector = "observe"
log_level = "{log_level}"
[targets.{name}.brake]
enabled = false
"""

ENTRY_POINT = "[provgate.connectors]\nunpaced = tests.bench.unpaced:Unpaced\n"
METADATA = "Metadata-Version: 2.1\nName: provgate-bench\nVersion: 0\n"


class System:
    """One installation.

    Args:
        folder: everything it keeps; the store may be there already.
        alone: only the gateway, without a bus, for what it answers by itself.
        log_level: of the targets; `information` is the default of the product.
        steady: further targets, named `steady-01` and so on.
    """

    def __init__(self, folder: Path, *, alone: bool = False, log_level: str = "information", steady: int = 0) -> None:
        self.folder = folder
        self.alone = alone
        self.log_level = log_level
        self.steady = [f"steady-{number:02d}" for number in range(1, steady + 1)]
        self.supervisor = Supervisor()
        self.ports: dict[str, int] = {}
        self.keys: dict[str, str] = {}

    @property
    def nats_url(self) -> str:
        return f"nats://127.0.0.1:{self.ports['nats']}"

    def tenant_url(self, target: str) -> str:
        return f"http://127.0.0.1:{self.ports['scim']}/scim/v2/{target}"

    async def __aenter__(self) -> System:
        try:
            await self._start()
        except BaseException:
            await self.supervisor.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.supervisor.stop()

    async def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ports = {name: free_port() for name in ("scim", "operator", "nats", "vendor")}
        for name in ("operator-token", "vendor-token"):
            write_private(self.folder / name, secrets.token_hex(32))
        text = CONFIG if self.alone else CONFIG + VENDOR
        config = self.folder / "provgate.toml"
        text = text.format(folder=self.folder, log_level=self.log_level, **self.ports)
        text += "".join(STEADY.format(name=name, log_level=self.log_level) for name in self.steady)
        config.write_text(text, encoding="utf-8")
        gateway, worker = process_children(config, output=self.folder / "logs")
        if self.alone:
            await self.supervisor.start(gateway)
        else:
            await self.supervisor.start(nats_child(self.folder / "nats", self.ports["nats"], output=self._log("nats")))
            await wait_for_port(self.ports["nats"])
            await self.supervisor.start(self._vendor())
            await self.supervisor.start(gateway)
            await self.supervisor.start(Child(worker.name, worker.command, None, worker.output, self._with_unpaced()))
        await self._until_ready()
        for target in (*(("observe",) if self.alone else ("observe", VENDOR_TARGET)), *self.steady):
            order = {"target": target, "days": KEY_DAYS, "label": "benchmark"}
            self.keys[target] = (await self.api("POST", "/api/v1/keys", order))["key"]

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _vendor(self) -> Child:
        token = (self.folder / "vendor-token").read_text(encoding="utf-8")
        place = f"talkdesk:{self.ports['vendor']}"
        options = (f"--delay-ms={VENDOR_DELAY_MS}", "--rate-per-s=0", f"--token=talkdesk={token}")
        return Child("vendor", (sys.executable, "-m", "deploy.emulators", place, *options), output=self._log("vendor"))

    def _with_unpaced(self) -> dict[str, str]:
        """A connector of a package of its own, as an author would bring one: found by its entry point on the path."""
        package = self.folder / "packages" / "provgate_bench-0.dist-info"
        package.mkdir(parents=True, exist_ok=True)
        (package / "entry_points.txt").write_text(ENTRY_POINT, encoding="utf-8")
        (package / "METADATA").write_text(METADATA, encoding="utf-8")
        return {"PYTHONPATH": str(package.parent)}

    async def _until_ready(self) -> None:
        deadline = time.monotonic() + START_WAIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, aiohttp.ClientError, TimeoutError):
                status = await self.api("GET", "/api/v1/status")
                if self.alone or all(target["workers"] for target in status["targets"]):
                    return
            await asyncio.sleep(POLL_S)
        raise TimeoutError(f"the system does not answer; see {self.folder}/logs")

    async def api(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the operator API."""
        token = (self.folder / "operator-token").read_text(encoding="utf-8")
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
            session.request(method, f"http://127.0.0.1:{self.ports['operator']}{path}", json=body) as answer,
        ):
            answer.raise_for_status()
            return await answer.json()

    async def until_applied(self, target: str, count: int) -> None:
        """Wait until so many resources of a target are applied.

        Raises:
            TimeoutError: they are not after APPLY_WAIT_S.
        """
        deadline = time.monotonic() + APPLY_WAIT_S
        while time.monotonic() < deadline:
            status = await self.api("GET", "/api/v1/status")
            if next(t["counts"]["applied"] for t in status["targets"] if t["name"] == target) >= count:
                return
            await asyncio.sleep(POLL_S)
        raise TimeoutError(f"{target} has not applied {count} users; see {self.folder}/logs")

    def memory_mib(self) -> dict[str, float]:
        """Resident memory of every process by name."""
        pids = self.supervisor.pids
        return {name: round(psutil.Process(pid).memory_info().rss / 2**20, 1) for name, pid in pids.items()}

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds every process has used so far."""
        times = {name: psutil.Process(pid).cpu_times() for name, pid in self.supervisor.pids.items()}
        return {name: spent.user + spent.system for name, spent in times.items()}
