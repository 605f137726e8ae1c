"""A running system for tests: started as a person would start it, seen through its own listeners only.

`Running` is the process tree of `provgate demo`; `Scim` speaks to one Tenant URL like a caller, `Product` to one emulator,
and `Running.provgate` runs an operator's command.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import psutil
from msgspec import Struct

PROVGATE = str(Path(sys.executable).with_name("provgate"))
START_WAIT_S = 60.0
STOP_WAIT_S = 40.0
LOOK_EVERY_S = 0.05
CALL_WAIT_S = 30.0
COMMAND_WAIT_S = 40.0

CORE = "urn:ietf:params:scim:schemas:core:2.0:User"
TALKDESK = "urn:ietf:params:scim:schemas:extension:talkdesk:2.0:User"
PATCH_OP = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
ERROR = "urn:ietf:params:scim:api:messages:2.0:Error"
MANAGER = "Contoso Archive"

T = TypeVar("T")
_counter = itertools.count(1)


async def eventually(
    condition: Callable[[], Awaitable[T | None]], wait_max_s: float, what: str, *, every_s: float = LOOK_EVERY_S
) -> T:
    """Wait until a condition yields something true, and return it; fails with `what` when it takes longer."""
    deadline = time.monotonic() + wait_max_s
    while True:
        found = await condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {wait_max_s:g} s: {what}"
        await asyncio.sleep(every_s)


def a_mobile() -> str:
    """A fresh number out of the range that the United Kingdom sets aside for drama, digits only."""
    return f"447700{900_000 + next(_counter) % 1_000:06d}"


def an_address(prefix: str = "person") -> str:
    """A fresh user name."""
    return f"{prefix}.{next(_counter):04d}@contoso.example"


def a_talkdesk_user(user_name: str | None = None, *, role: str = "Agent", **more: Any) -> dict[str, Any]:
    """The POST of a Talkdesk user as Entra sends it."""
    return {
        "schemas": [CORE, TALKDESK],
        "userName": user_name or an_address(),
        "active": True,
        "name": {"givenName": "Given", "familyName": "Family"},
        TALKDESK: {"rolesString": role},
        **more,
    }


def a_telemessage_user(number: str | None = None, **more: Any) -> dict[str, Any]:
    """The POST of a TeleMessage user as Entra sends it."""
    number = number or a_mobile()
    return {
        "schemas": [CORE],
        "userName": number,
        "externalId": number,
        "active": True,
        "displayName": MANAGER,
        "name": {"givenName": "Given", "familyName": "Family"},
        **more,
    }


def replacing(**values: Any) -> dict[str, Any]:
    """A PATCH message; `name__givenName` stands for the path `name.givenName`."""
    return {
        "schemas": [PATCH_OP],
        "Operations": [
            {"op": "Replace", "path": name.replace("__", "."), "value": value} for name, value in values.items()
        ],
    }


class Said(Struct, frozen=True):
    """An answer: `document` is None when the body is no JSON."""

    status: int
    document: Any
    text: str
    headers: Mapping[str, str]
    took_s: float

    @property
    def id(self) -> str:
        """The id of the resource in the answer."""
        return str(self.document["id"])

    def is_scim_error(self, status: int, scim_type: str | None = None) -> bool:
        """RFC 7644 section 3.12: status as text, the error schema, and the right keyword."""
        body = self.document
        return (
            self.status == status
            and isinstance(body, dict)
            and body.get("schemas") == [ERROR]
            and body.get("status") == str(status)
            and bool(body.get("detail"))
            and self.headers.get("Content-Type", "").startswith("application/scim+json")
            and (scim_type is None or body.get("scimType") == scim_type)
        )


class Scim:
    """A caller of one Tenant URL."""

    def __init__(self, session: aiohttp.ClientSession, tenant_url: str, token: str) -> None:
        self.session = session
        self.url = tenant_url
        self.token = token

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Said:
        """One request; `raw` goes out as it is."""
        data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
        sent = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/scim+json", **(headers or {})}
        started = time.monotonic()
        async with self.session.request(method, self.url + path, data=data, headers=sent) as answer:
            text = await answer.text()
            try:
                document = json.loads(text)
            except ValueError:
                document = None
            return Said(answer.status, document, text, answer.headers, time.monotonic() - started)

    async def create(self, document: Mapping[str, Any]) -> Said:
        """POST."""
        return await self.send("POST", "/Users", document)

    async def patch(self, resource: str, message: Mapping[str, Any]) -> Said:
        """PATCH."""
        return await self.send("PATCH", f"/Users/{resource}", message)

    async def get(self, resource: str) -> Said:
        """GET by id."""
        return await self.send("GET", f"/Users/{resource}")

    async def delete(self, resource: str) -> Said:
        """DELETE."""
        return await self.send("DELETE", f"/Users/{resource}")

    async def find(self, user_name: str) -> list[dict[str, Any]]:
        """The resources a filter by userName finds."""
        asked = quote(f'userName eq "{user_name}"')
        said = await self.send("GET", f"/Users?filter={asked}")
        assert said.status == 200, said.text
        assert said.document["totalResults"] == len(said.document["Resources"])
        return list(said.document["Resources"])


class Product:
    """One emulated product, through its control calls."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def control(self, method: str, path: str, body: Any = None) -> Any:
        """One control call."""
        async with self.session.request(method, f"{self.url}/__emu/{path}", json=body) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def users(self) -> list[dict[str, Any]]:
        """The accounts that exist; deleted ones are left out."""
        state = await self.control("GET", "state")
        return [user for user in state["users"].values() if not user.get("deleted")]

    async def user(self, user_name: str) -> dict[str, Any] | None:
        """The account of this name."""
        return next((u for u in await self.users() if u["userName"].casefold() == user_name.casefold()), None)

    async def effects(self, since: int = 0, **wanted: str) -> list[dict[str, Any]]:
        """The writes that really happened, oldest first."""
        query = "&".join(f"{name}={quote(value)}" for name, value in {"kind": "effect", **wanted}.items())
        return list((await self.control("GET", f"journal?since_seq={since}&{query}"))["entries"])

    async def calls(self, since: int = 0) -> list[dict[str, Any]]:
        """Every request the product was sent, oldest first."""
        return list((await self.control("GET", f"journal?since_seq={since}&kind=request"))["entries"])

    async def now(self) -> int:
        """The journal's position, for `since`."""
        return int((await self.control("GET", "journal?kind=none"))["seq"])

    async def fails(self, kind: str, **options: Any) -> None:
        """Arm a fault; see deploy/emulators/harness.py."""
        await self.control("POST", "faults", {"kind": kind, **options})

    async def works(self) -> None:
        """Disarm all faults."""
        await self.control("DELETE", "faults")

    async def revoke_token(self, revoked: bool = True) -> None:
        """Refuse the worker's credential, or accept it again."""
        await self.control("POST", "token", {"revoked": revoked})


class Running:
    """`provgate demo` as a child of the test.

    Args:
        data: its data folder; a second run may use it again.
        arguments: more of the command line.
    """

    def __init__(self, data: Path, *arguments: str) -> None:
        self.data = data
        self.ready_file = data.parent / f"{data.name}.ready.json"
        self.output = data.parent / f"{data.name}.output"
        self.arguments = arguments
        self.ready: dict[str, Any] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.seen: set[psutil.Process] = set()

    def start(self) -> Running:
        """Start it, and return when the ready file says that everything answers."""
        command = [PROVGATE, "demo", "--port", "0", "--data", str(self.data), "--ready-file", str(self.ready_file)]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, *self.arguments], stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + START_WAIT_S
        while not self.ready_file.exists():
            assert self.process.poll() is None, f"it ended: {self.said()}"
            assert time.monotonic() < deadline, f"it did not get ready: {self.said()}"
            time.sleep(LOOK_EVERY_S)
        self.look()
        return self

    def look(self) -> dict[str, Any]:
        """Read the ready file again; it is written anew when a process was restarted."""
        self.ready = json.loads(self.ready_file.read_text())
        assert self.process is not None
        self.seen |= set(psutil.Process(self.process.pid).children(recursive=True))
        return self.ready

    def said(self) -> str:
        """What it printed."""
        return self.output.read_text(errors="replace")

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> int:
        """End it; returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.seen |= set(psutil.Process(self.process.pid).children(recursive=True))
            self.process.send_signal(sign)
        try:
            return self.process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def left_behind(self) -> list[str]:
        """Processes that outlived it."""
        return [
            " ".join(child.cmdline())
            for child in self.seen
            if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
        ]

    def scim(self, session: aiohttp.ClientSession, target: str) -> Scim:
        """A caller of this target."""
        entry = self.ready["targets"][target]
        return Scim(session, entry["tenant_url"], entry["token"])

    def product(self, session: aiohttp.ClientSession, name: str) -> Product:
        """The emulator behind this target."""
        return Product(session, self.ready["emulators"][name])

    async def provgate(self, *arguments: str, expect: int | None = 0) -> Any:
        """An operator's command with `--json`: its answer. Fails when it ends with another code than `expect`."""
        process = await asyncio.create_subprocess_exec(
            PROVGATE,
            *arguments,
            "--json",
            "--data",
            str(self.data),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "NO_COLOR": "1"},
        )
        async with asyncio.timeout(COMMAND_WAIT_S):
            out, err = await process.communicate()
        assert expect is None or process.returncode == expect, (process.returncode, out, err)
        return json.loads(out) if out.strip() else None

    async def api(self, session: aiohttp.ClientSession, path: str) -> Any:
        """The operators' API, for conditions that are looked at often."""
        console = self.ready["console"]
        headers = {"Authorization": f"Bearer {console['token']}"}
        async with session.get(f"{console['url']}/api/v1{path}", headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def target(self, session: aiohttp.ClientSession, name: str) -> dict[str, Any]:
        """What operators see of a target."""
        return dict((await self.api(session, f"/targets/{name}"))["target"])

    async def settled(self, session: aiohttp.ClientSession, name: str, wait_max_s: float) -> dict[str, int]:
        """Wait until nothing of a target waits any more; its resources counted by state."""

        async def nothing_waits() -> dict[str, int] | None:
            counts = (await self.target(session, name))["counts"]
            return counts if counts["waiting"] == counts["blocked"] == 0 else None

        return await eventually(nothing_waits, wait_max_s, f"{name} has nothing that waits")


_PERSONAL = re.compile(
    r"[\w.+-]+@(?:contoso\.example|example\.com)|\b447700900\d{3}\b|\b1\d{3}55501\d\d\b", re.IGNORECASE
)


def leaks(folder: Path, words: Iterable[str] = ()) -> list[str]:
    """Lines of log files with one of these words, an e-mail address or a telephone number of the tests: `file:line: text`."""
    wanted = tuple(words)
    found = []
    for path in sorted(folder.glob("*.log")):
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            if _PERSONAL.search(line) or any(word in line for word in wanted):
                found.append(f"{path.name}:{number}: {line[:300]}")
    return found


def a_session() -> aiohttp.ClientSession:
    """Connections of a test."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CALL_WAIT_S))
