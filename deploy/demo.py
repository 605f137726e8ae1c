"""The demonstration: the whole system on one machine, with emulated products and an emulated Entra.

Nothing in it is special: the same gateway and worker run as anywhere else, from a configuration file that is written first.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, cast

import aiohttp
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy.emulators import entra
from deploy.local import (
    Child,
    Supervisor,
    free_port,
    nats_child,
    process_children,
    stop_event,
    wait_for_port,
    write_private,
)
from schemas import logs
from schemas.errors import ConfigurationError

PEOPLE = 20
GROUPS = 2
"""Groups of the targets that take any, with everybody in one of them."""
START_WAIT_S = 60.0
PORT_MAX = 65_535
PORT_WAIT_S = 5.0
APPLY_WAIT_S = 120.0
CYCLES_MAX = 3
"""How often the emulated Entra starts over when something failed: somebody may kill a process to see what happens."""
KEY_DAYS = 90
MANAGER = "Contoso Archive"
ROLES = ("Agent", "Supervisor", "Administrator", "Team Lead", "Quality Analyst")
TEAMS = ("Porto", "Lisbon Support", "Tier-1")
BABELFORCE_ROLES = ("agent", "supervisor", "sales")
INTEGRATION_USER = "scim@example.com"
EMULATED = ("telemessage", "talkdesk", "babelforce", "bobs_business", "sofa")
WITH_GROUPS = ("bobs_business", "sofa", "observe")

CONFIG = """\
# written by provgate demo; the same file would serve a real installation
[gateway]
host = "127.0.0.1"
port = {port}
operator_port = {operator_port}
operator_token = {{ file = "{data}/secrets/operator" }}

[gateway.limits]
requests_per_s_per_target = "unlimited"  # the emulated Entra is in a hurry; 100 otherwise

[nats]
url = "nats://127.0.0.1:{nats_port}"

[targets.telemessage]
connector = "telemessage"
title = "Message archive (emulated)"
[targets.telemessage.settings]
base_url = "{telemessage}"
token = {{ file = "{data}/secrets/telemessage" }}
manager_name = "{manager}"
allow_loopback = true

[targets.talkdesk]
connector = "talkdesk"
title = "Contact centre (emulated)"
[targets.talkdesk.settings]
base_url = "{talkdesk}"
token = {{ file = "{data}/secrets/talkdesk" }}
roles = {roles}
teams = {teams}
allow_loopback = true

[targets.babelforce]
connector = "babelforce"
title = "Call centre (emulated)"
[targets.babelforce.settings]
base_url = "{babelforce}"
token = {{ file = "{data}/secrets/babelforce" }}
integration_user = "{integration_user}"
allow_loopback = true

[targets.bobs_business]
connector = "bobs_business"
title = "Learning platform (emulated)"
[targets.bobs_business.settings]
tenant_url = "{bobs_business}/scim/v2"
api_key = {{ file = "{data}/secrets/bobs_business" }}
allow_loopback = true

[targets.sofa]
connector = "sofa"
title = "Document system (emulated)"
[targets.sofa.settings]
endpoint_url = "{sofa}/scim/entra"
access_key = {{ file = "{data}/secrets/sofa" }}
key_issued = {key_issued}
key_validity_days = 730
group_map = {group_map}
allow_loopback = true

[targets.observe]
connector = "observe"
title = "Shows what Entra sends"
"""


def demo(*, port: int = 8080, data: Path | None = None, ready_file: Path | None = None, cycle: bool = True) -> int:
    """Run the demonstration until SIGTERM or Ctrl-C; returns the exit code.

    Args:
        port: of the Tenant URLs; 0 takes a free one.
        data: where everything is kept; a temporary folder, removed at the end, when None.
        ready_file: written as JSON when everything answers.
        cycle: whether the emulated Entra runs its first cycle.

    Raises:
        ConfigurationError: the folder cannot be made, or a port is none or is taken.
    """
    logs.configure("demo", level="warning", pretty=True)
    if not 0 <= port <= PORT_MAX:
        raise ConfigurationError("demo", [f"--port {port}: must be 1 to {PORT_MAX}, or 0 for a free one"])
    if data is not None:
        try:
            data.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigurationError("demo", [f"--data {data}: cannot be made: {exc.strerror}"]) from None
        return asyncio.run(_Demo(port, data.resolve(), ready_file, cycle).run())
    with tempfile.TemporaryDirectory(prefix="provgate-demo-") as folder:
        return asyncio.run(_Demo(port, Path(folder).resolve(), ready_file, cycle).run())


class _Demo:
    def __init__(self, port: int, data: Path, ready_file: Path | None, cycle: bool) -> None:
        self.port = port
        self.data = data
        self.ready_file = ready_file
        self.cycle = cycle
        self.supervisor = Supervisor(on_restart=self._write_ready_file)
        self.is_ready = False
        self.console = Console(highlight=False)
        self.operator_token = ""
        self.operator_url = ""
        self.emulators: dict[str, str] = {}
        self.tokens: dict[str, str] = {}

    async def run(self) -> int:
        stop = stop_event()
        started = time.monotonic()
        try:
            await self._start(stop)
            if stop.is_set():
                return 0
            self.console.print(f"Everything answers after {time.monotonic() - started:.1f} s.")
            self._say_where()
            self.is_ready = True
            self._write_ready_file()
            if self.cycle:
                await self._cycle(stop)
            if not stop.is_set():
                self.console.print("\nPress Ctrl-C to stop. Try in another terminal:")
                provgate = Path(sys.executable).with_name("provgate")
                shown = provgate.relative_to(Path.cwd()) if provgate.is_relative_to(Path.cwd()) else provgate
                someone = _directory(ROLES)[0][0].user_principal_name
                commands = ("status", "events tail", f"user show {someone}", "dead list", "key new talkdesk")
                for command in commands:
                    self.console.print(f"  {shown} {command} --data {self.data}", soft_wrap=True)
            await stop.wait()
            self.console.print("Stopping.")
        finally:
            await self.supervisor.stop()
            if self.ready_file is not None:
                self.ready_file.unlink(missing_ok=True)
        return 0

    # ---- starting

    async def _start(self, stop: asyncio.Event) -> None:
        ports = self._ports()
        self.port = ports["scim"]
        self.emulators = {name: f"http://127.0.0.1:{ports[name]}" for name in EMULATED}
        self.operator_url = f"http://127.0.0.1:{ports['operator']}"
        self.nats_url = f"nats://127.0.0.1:{ports['nats']}"
        secret_files = {name: self.data / "secrets" / name for name in (*EMULATED, "operator")}
        for path in secret_files.values():
            if not path.exists():
                write_private(path, secrets.token_hex(32))
        self.operator_token = secret_files["operator"].read_text(encoding="utf-8")
        config = self.data / "provgate.toml"
        config.write_text(
            CONFIG.format(
                port=ports["scim"],
                operator_port=ports["operator"],
                nats_port=ports["nats"],
                data=self.data,
                manager=MANAGER,
                roles=msgspec.json.encode(ROLES).decode(),
                teams=msgspec.json.encode(TEAMS).decode(),
                integration_user=INTEGRATION_USER,
                key_issued=date.fromtimestamp(secret_files["sofa"].stat().st_mtime),
                group_map=_group_map(),
                **self.emulators,
            ),
            encoding="utf-8",
        )
        output = self.data / "logs"
        journal = self.data / "journal"
        journal.mkdir(exist_ok=True)
        places = [f"{name}:{ports[name]}" for name in EMULATED]
        tokens = [f"--token={name}={secret_files[name].read_text(encoding='utf-8')}" for name in EMULATED]
        known = (
            f"--set=telemessage.managers={msgspec.json.encode([MANAGER]).decode()}",
            f"--set=babelforce.integration_user={INTEGRATION_USER}",
        )
        command = (sys.executable, "-m", "deploy.emulators", *places, "--journal-dir", str(journal), *known, *tokens)
        await self.supervisor.start(Child("emulators", command, output=output / "emulators.log"))
        await self.supervisor.start(nats_child(self.data / "nats", ports["nats"], output=output / "nats-server.log"))
        await wait_for_port(ports["nats"])
        for child in process_children(config, output=output):
            await self.supervisor.start(child)
        if said := await self._hindered(stop):
            raise SystemExit(f"The demo did not start within {START_WAIT_S:.0f} s: {said} in {self.data}")
        if not stop.is_set():
            await self._make_keys()

    def _ports(self) -> dict[str, int]:
        """The same ports on every run with the same data, so that a Tenant URL stays what it was."""
        path = self.data / "ports.json"
        kept: dict[str, int] = msgspec.json.decode(path.read_bytes(), type=dict[str, int]) if path.exists() else {}
        ports = {name: kept.get(name) or free_port() for name in ("operator", "nats", *EMULATED)}
        ports["scim"] = self.port or kept.get("scim") or free_port()
        # Children of a demo that was killed with the same data end within moments.
        deadline = time.monotonic() + (PORT_WAIT_S if kept else 0.0)
        for name, port in ports.items():
            while not (free := _is_free(port)) and time.monotonic() < deadline:
                time.sleep(0.1)
            if not free:
                said = f"port {port} ({name}) is taken; " + (
                    "name another one with --port, 0 takes a free one"
                    if name == "scim" and self.port
                    else f"does a demo with the data in {self.data} run already?"
                )
                raise ConfigurationError("demo", [said])
        path.write_bytes(msgspec.json.encode(ports))
        return ports

    async def _hindered(self, stop: asyncio.Event) -> str:
        """Wait until a worker serves every target; what hinders it when the time is up, else ""."""
        said = "the gateway does not answer; see logs/gateway.log"
        deadline = time.monotonic() + START_WAIT_S
        while time.monotonic() < deadline and not stop.is_set():
            with contextlib.suppress(OSError, aiohttp.ClientError, TimeoutError):
                status = await self._api("GET", "/api/v1/status")
                waiting = [t["name"] for t in status["targets"] if not t["workers"]]
                if not waiting:
                    return ""
                said = f"no worker serves {', '.join(waiting)}; see logs/worker.log"
            await asyncio.sleep(0.2)
        return "" if stop.is_set() else said

    async def _make_keys(self) -> None:
        path = self.data / "secrets" / "keys.json"
        self.tokens = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
        for target in (*EMULATED, "observe"):
            if target not in self.tokens:
                order = {"target": target, "days": KEY_DAYS, "label": "demo"}
                self.tokens[target] = (await self._api("POST", "/api/v1/keys", order))["key"]
        write_private(path, msgspec.json.encode(self.tokens).decode())

    async def _api(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {self.operator_token}"}
        async with (
            aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.request(method, self.operator_url + path, json=body) as answer,
        ):
            answer.raise_for_status()
            return await answer.json()

    # ---- what a person sees

    def _tenant_url(self, target: str) -> str:
        return f"http://127.0.0.1:{self.port}/scim/v2/{target}"

    def _say_where(self) -> None:
        targets = (*EMULATED, "observe")
        table = Table("target", box=None, pad_edge=False)
        # An address that is cut off is no address: the column keeps its width on a narrow terminal too.
        longest = max(len(self._tenant_url(target)) for target in targets)
        table.add_column("Tenant URL (what an Entra admin enters)", min_width=longest, no_wrap=True)
        table.add_column("emulated product", no_wrap=True)  # without its http://, all of it fits eighty columns
        for target in targets:
            product = self.emulators.get(target, "calls nobody").removeprefix("http://")
            table.add_row(target, self._tenant_url(target), product)
        self.console.print(table)
        self.console.print(f"Operators: {self.operator_url} (token in {self.data}/operator.json)", soft_wrap=True)

    def _write_ready_file(self) -> None:
        """Once everything answers, and again with new process ids whenever a process was restarted."""
        if self.ready_file is None or not self.is_ready:
            return
        document = {
            "targets": {
                target: {"connector": target, "tenant_url": self._tenant_url(target), "token": token}
                for target, token in self.tokens.items()
            },
            "console": {"url": self.operator_url, "token": self.operator_token},
            "metrics": f"{self.operator_url}/metrics",
            "nats": self.nats_url,
            "emulators": self.emulators,
            "pids": self.supervisor.pids,
        }
        write_private(self.ready_file, msgspec.json.encode(document).decode())

    # ---- Entra's first cycle

    async def _cycle(self, stop: asyncio.Event) -> None:
        people, groups = _directory(ROLES)
        callers, _ = _directory(BABELFORCE_ROLES)
        mappings = {**entra.MAPPINGS, "telemessage": entra.telemessage(MANAGER)}
        mappings = {target: mappings[target] for target in (*EMULATED, "observe")}
        self.console.print(
            f"\nThe emulated Entra runs its first cycle: {PEOPLE} people for each target,"
            f" {GROUPS} groups for those that take any.",
            soft_wrap=True,
        )
        columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        reports: dict[str, entra.CycleReport] = {}
        with Progress(*columns, console=self.console, transient=True) as progress:

            async def run(target: str) -> None:
                bar = progress.add_task(target, total=PEOPLE)

                def on_progress(done: int, total: int) -> None:
                    progress.update(bar, completed=done, total=total)

                job = entra.ProvisioningJob(
                    self._tenant_url(target),
                    self.tokens[target],
                    entra.Directory(
                        callers if target == "babelforce" else people, groups if target in WITH_GROUPS else ()
                    ),
                    mappings[target],
                    connections=2,
                    provision_groups=target in WITH_GROUPS,
                )
                async with job:
                    reports[target] = await self._provisioned(job, on_progress, stop)

            async def run_all() -> None:
                async with asyncio.TaskGroup() as group:
                    for target in mappings:
                        group.create_task(run(target))

            cycles = asyncio.create_task(run_all())
            stopped = asyncio.create_task(_until(stop))
            await asyncio.wait([cycles, stopped], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if stop.is_set():
                cycles.cancel()
                await asyncio.gather(cycles, return_exceptions=True)
                return
            await cycles
        applied = await self._wait_until_applied(
            stop, {name: PEOPLE + GROUPS * (name in WITH_GROUPS) for name in mappings}
        )
        table = Table(
            "target", "created", "updated", "failed", "applied", "accounts at the product", box=None, pad_edge=False
        )
        for target, report in reports.items():
            failed = report.failed + report.failed_references
            counts = (report.created, report.updated, failed, applied.get(target, 0))
            table.add_row(target, *map(str, counts), await self._accounts(target))
        self.console.print(table)
        for target in WITH_GROUPS:
            report = reports[target]
            created, members = report.groups_created, report.memberships
            self.console.print(
                f"Applied at {target} includes {GROUPS} groups: {created} created, {members} members sent."
            )

    async def _provisioned(
        self, job: entra.ProvisioningJob, on_progress: Callable[[int, int], None], stop: asyncio.Event
    ) -> entra.CycleReport:
        """One cycle; anew, as an admin would restart it, when something failed. What all of them did is counted together."""
        report = await job.initial_cycle(on_progress=on_progress)
        for _ in range(CYCLES_MAX - 1):
            if report.state == "Succeeded" or await self._hindered(stop):
                break
            job.restart()
            before, report = report, await job.initial_cycle(on_progress=on_progress)
            for name in ("created", "updated", "groups_created", "memberships"):
                setattr(report, name, getattr(report, name) + getattr(before, name))
        return report

    async def _wait_until_applied(self, stop: asyncio.Event, expected: dict[str, int]) -> dict[str, int]:
        deadline = time.monotonic() + APPLY_WAIT_S
        applied: dict[str, int] = {}
        while time.monotonic() < deadline and not stop.is_set():
            with contextlib.suppress(OSError, aiohttp.ClientError, TimeoutError):  # it may just be starting again
                status = await self._api("GET", "/api/v1/status")
                applied = {t["name"]: t["counts"]["applied"] for t in status["targets"]}
                if all(applied.get(name, 0) >= count for name, count in expected.items()):
                    break
            await asyncio.sleep(0.2)
        return applied

    async def _accounts(self, target: str) -> str:
        if target not in self.emulators:
            return "-"
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{self.emulators[target]}/__emu/state") as answer,
            ):
                state = cast("dict[str, Any]", await answer.json())
        except (OSError, aiohttp.ClientError):
            return "does not answer"
        return str(len(state["users"]))


def _is_free(port: int) -> bool:
    """Whether something could listen there; a process that cannot would be started again and again."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _directory(roles: Sequence[str]) -> tuple[list[entra.Person], list[entra.Group]]:
    """The same people and groups every time."""
    people = entra.make_people(PEOPLE, seed=1, app_roles=roles, teams=TEAMS)
    return people, entra.make_groups(people, GROUPS)


def _group_map() -> str:
    """Sofa's table of groups: each of Entra's by its object id."""
    _, groups = _directory(ROLES)
    rows = (f'{{ remote = "{group.object_id}", sofa = "{group.display_name}" }}' for group in groups)
    return f"[{', '.join(rows)}]"


async def _until(stop: asyncio.Event) -> None:
    await stop.wait()
