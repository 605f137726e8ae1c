"""A gateway that ends at a named point, as a power cut would end it: what was acknowledged is applied once and in order (A12).

Real parts: nats-server, a worker, and a gateway process per life; the product is a file (`tests/faults/journalled.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from deploy.local import Supervisor, free_port, nats_child, process_children, wait_for_port, write_private
from gateway.crashpoints import POINTS
from schemas.crashpoints import EXIT_CODE
from tests.e2e.running import CORE, Said, Scim, a_session, eventually, replacing
from tests.faults import journalled
from tests.faults.installation import REPOSITORY

START_WAIT_S = 60.0
ENDS_WAIT_S = 90.0
"""From its start; writes are asked again until it listens."""
DONE_WAIT_S = 120.0
PEOPLE = 6
PAUSE_S = 0.01
"""Between two writes of one person: a life that waits for the sweeper would else fill with thousands of them."""
AGAIN_S = 0.05

CONFIG = """\
[gateway]
port = {gateway}
operator_port = {operator}
operator_token = {{ file = "{data}/secrets/operator" }}
answer_wait_s = 1.0

[gateway.limits]
requests_per_s_per_target = "unlimited"

[nats]
url = "nats://127.0.0.1:{nats}"

[targets.seen]
connector = "observe_journalled"
[targets.seen.brake]
enabled = false
[targets.seen.settings]
journal = "{data}/journal"
"""


class System:
    """nats-server and a worker that stay, and a gateway that is started by hand. Use as an async context manager."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.supervisor = Supervisor()
        self.ports = {name: free_port() for name in ("gateway", "operator", "nats")}
        self.token = ""
        self.process: asyncio.subprocess.Process | None = None
        write_private(data / "secrets" / "operator", secrets.token_hex(32))
        journalled.install(data / "connectors")
        self.config = data / "provgate.toml"
        self.config.write_text(CONFIG.format(data=data, **self.ports))
        path = os.pathsep.join((str(data / "connectors"), REPOSITORY))
        self.environment = {**os.environ, "PYTHONPATH": path}

    @property
    def journal(self) -> list[dict[str, Any]]:
        """What the product was told, oldest first."""
        return journalled.read(self.data / "journal")

    async def start(self, session: aiohttp.ClientSession, **environment: str) -> None:
        """Everything, and a key for the target."""
        await self.supervisor.start(nats_child(self.data / "nats", self.ports["nats"], output=self.data / "nats.log"))
        await wait_for_port(self.ports["nats"])
        _, worker = process_children(self.config, output=self.data)
        path = {"PYTHONPATH": self.environment["PYTHONPATH"]}
        await self.supervisor.start(msgspec.structs.replace(worker, environment=path))
        await self.revive(**environment)

        async def served() -> bool:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                return bool((await self.api(session, "GET", "/status"))["targets"][0]["workers"])
            return False

        await eventually(served, START_WAIT_S, f"a worker serves the target; see {self.data}")
        order = {"target": "seen", "days": 90, "label": "crash points"}
        self.token = (await self.api(session, "POST", "/keys", order))["key"]

    async def revive(self, **environment: str) -> None:
        """Start the gateway, armed or not: an armed one may end before it listens, so nobody waits for that here."""
        with (self.data / "gateway.log").open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "gateway", "--config", str(self.config)),
                env={**self.environment, **environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    async def end(self) -> None:
        """kill -9 of the gateway."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def dies(self, point: str) -> None:
        """Wait until the gateway ends by itself, at its point and nowhere else."""
        assert self.process is not None
        try:
            async with asyncio.timeout(ENDS_WAIT_S):
                code = await self.process.wait()
        except TimeoutError:
            code = None
        assert code == EXIT_CODE, f"{point} was not reached: {code} {(self.data / 'gateway.log').read_text()[-2_000:]}"

    async def stop(self) -> None:
        """Everything."""
        if self.process is not None:
            await self.end()
        await self.supervisor.stop()

    async def api(self, session: aiohttp.ClientSession, method: str, path: str, body: object = None) -> dict[str, Any]:
        """The operators' API."""
        token = (self.data / "secrets" / "operator").read_text()
        url = f"http://127.0.0.1:{self.ports['operator']}/api/v1{path}"
        async with session.request(method, url, json=body, headers={"Authorization": f"Bearer {token}"}) as answer:
            answer.raise_for_status()
            return dict(await answer.json())

    def scim(self, session: aiohttp.ClientSession) -> Scim:
        """A caller of the target."""
        return Scim(session, f"http://127.0.0.1:{self.ports['gateway']}/scim/v2/seen", self.token)

    def open_events(self) -> int:
        """Accepted generations without an outcome (I10)."""
        with contextlib.closing(sqlite3.connect(f"file:{self.data / 'provgate.sqlite3'}?mode=ro", uri=True)) as store:
            return int(store.execute("select count(*) from event where outcome is null").fetchone()[0])


class Person:
    """A caller of one user: a POST and then PATCHes, each asked again with the same values until it was acknowledged."""

    def __init__(self, scim: Scim, name: str) -> None:
        self.scim = scim
        self.name = name
        self.resource = ""
        self.version = -1
        """The newest acknowledged one."""
        self.resting = False

    async def write(self) -> None:
        """One write after another, until it shall rest."""
        document = {"schemas": [CORE], "userName": self.name, "active": True, "name": {"familyName": "V0"}}
        said = await self._until("POST", "/Users", document, (201, 409))
        found = [said.document] if said.status == 201 else await self._find()
        self.resource = found[0]["id"]
        self.version = 0
        while not self.resting:
            message = replacing(name__familyName=f"V{self.version + 1}")
            await self._until("PATCH", f"/Users/{self.resource}", message, (200,))
            self.version += 1
            await asyncio.sleep(PAUSE_S)

    async def _until(self, method: str, path: str, body: Any, wanted: tuple[int, ...]) -> Said:
        deadline = time.monotonic() + DONE_WAIT_S
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                said = await self.scim.send(method, path, body)
                if said.status in wanted:
                    return said
                assert said.status == 503, (method, path, said.status, said.text)
            assert time.monotonic() < deadline, f"nobody took {method} {path}"
            await asyncio.sleep(AGAIN_S)

    async def _find(self) -> list[dict[str, Any]]:
        deadline = time.monotonic() + DONE_WAIT_S
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                return await self.scim.find(self.name)
            assert time.monotonic() < deadline, "nobody answers a filter"
            await asyncio.sleep(AGAIN_S)

    async def wrong(self, journal: list[dict[str, Any]]) -> list[str]:
        """What the product was told of this user, or SCIM shows of it, that must not be."""
        told = [line for line in journal if line.get("name") == self.name]
        versions = [int(line["version"].removeprefix("V")) for line in told]
        shown = [(one["id"], one["name"]["familyName"]) for one in await self.scim.find(self.name)]
        found = {
            "created again": [line["op"] for line in told].count("create") != 1,
            "another account": len({line["account"] for line in told}) != 1,
            "back, or twice": versions != sorted(set(versions)),
            "not the last wish": versions[-1:] != [self.version],
            "shown otherwise": shown != [(self.resource, f"V{self.version}")],
        }
        return [f"{self.name}: {what}: {told} {shown}" for what, is_so in found.items() if is_so]


LIVES = (("G1", 8), ("G2", 8), ("G6", 1), ("G3", 8), ("G4", 8), ("G5", 8))
"""G6 follows G2: what ended between its commit and the stream is what the sweeper publishes."""


@pytest.mark.slow
@pytest.mark.timeout(60 + 6 * ENDS_WAIT_S + 2 * DONE_WAIT_S)
async def test_what_was_acknowledged_is_applied_once_and_in_order_wherever_the_gateway_ends(tmp_path: Path) -> None:
    """P1, P2 and I4: one life after the other ends at its point in the middle of writes, and the next goes on from there."""
    assert sorted(point for point, _ in LIVES) == sorted(POINTS)
    system = System(tmp_path)
    async with a_session() as session:
        people: list[Person] = []
        writing: list[asyncio.Task[None]] = []
        try:
            for point, times in LIVES:
                armed = {"PROVGATE_TEST_BUILD": "1", "PROVGATE_CRASH_AT": f"{point}:{times}"}
                if writing:
                    await system.revive(**armed)
                else:
                    await system.start(session, **armed)
                    people = [Person(system.scim(session), f"person.{n}@contoso.example") for n in range(PEOPLE)]
                    writing = [asyncio.ensure_future(person.write()) for person in people]
                await system.dies(point)
            before = [person.version for person in people]
            await system.revive()

            async def everybody_went_on() -> bool:
                return all(person.version > then for person, then in zip(people, before, strict=True))

            await eventually(everybody_went_on, DONE_WAIT_S, "writes are taken again")
            for person in people:
                person.resting = True
            await asyncio.gather(*writing)

            async def everything_has_an_outcome() -> bool:
                return system.open_events() == 0

            await eventually(everything_has_an_outcome, DONE_WAIT_S, "every accepted write has its outcome")
            assert (await system.api(session, "GET", "/dead"))["items"] == []
            wrong = [problem for person in people for problem in await person.wrong(system.journal)]
            assert not wrong, "\n".join(wrong)
        finally:
            for task in writing:
                task.cancel()
            await asyncio.gather(*writing, return_exceptions=True)
            await system.stop()


@pytest.mark.parametrize(
    ("environment", "code"),
    [
        ({"PROVGATE_CRASH_AT": "G1", "PROVGATE_TEST_BUILD": "1"}, EXIT_CODE),
        ({"PROVGATE_CRASH_AT": "G1:2", "PROVGATE_TEST_BUILD": "1"}, 0),
        ({"PROVGATE_CRASH_AT": "G2", "PROVGATE_TEST_BUILD": "1"}, 0),
        ({"PROVGATE_CRASH_AT": "W1", "PROVGATE_TEST_BUILD": "1"}, 0),
        ({"PROVGATE_CRASH_AT": "G1"}, 0),
        ({}, 0),
    ],
)
def test_a_crash_point_of_the_gateway_is_asleep_unless_a_test_build_arms_it(
    environment: dict[str, str], code: int
) -> None:
    """A12: without the switch of test builds the variable does nothing; with it, only the named point counts."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PROVGATE_")}
    command = (sys.executable, "-c", "from gateway.crashpoints import reached; reached('G1')")
    assert subprocess.run(command, cwd=REPOSITORY, env={**kept, **environment}, check=False).returncode == code


def test_the_check_sees_a_wish_applied_twice() -> None:
    """A check that can find nothing would prove nothing."""

    class Told:
        async def find(self, name: str) -> list[dict[str, Any]]:
            return [{"id": "r1", "name": {"familyName": "V1"}}]

    person = Person(Told(), "a@contoso.example")  # type: ignore[arg-type]
    person.resource, person.version = "r1", 1

    def line(op: str, version: int, account: str = "a") -> dict[str, Any]:
        return {"op": op, "account": account, "name": person.name, "version": f"V{version}"}

    right = [line("create", 0), line("update", 1)]
    assert asyncio.run(person.wrong(right)) == []
    for planted, said in (
        ([*right, line("update", 1)], "back, or twice"),
        ([*right, line("update", 0)], "back, or twice"),
        ([line("create", 0)], "not the last wish"),
        ([*right, line("create", 2, "b")], "created again"),
        ([line("create", 0), line("update", 1, "b")], "another account"),
    ):
        assert any(said in problem for problem in asyncio.run(person.wrong(planted))), said
