"""A caller that never gives up, and what it remembers: every write it was told is done, per person and in order.

What a dying gateway refused, or did not answer, is asked again with the same values, as Entra does; a POST that meets its own
earlier self looks for the user and goes on with a PATCH.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

import aiohttp
from msgspec import Struct

from tests.e2e.running import CORE, MANAGER, TALKDESK, Said, Scim, replacing
from tests.faults.installation import ROLES

WRITE_WAIT_S = 90.0
"""How long one write may be refused by a gateway that is not there."""
AGAIN_FIRST_S = 0.05
AGAIN_MAX_S = 0.5


class Person(Struct):
    """One user as asked: the newest wish that was acknowledged. `version` stands in the family name of every wish."""

    number: int
    target: str
    user_name: str
    incarnation: int = 0
    resource: str | None = None
    version: int = 0
    given: str = ""
    role: str = "Agent"
    active: bool = True
    alive: bool = False
    versions: list[int] = []
    names: list[str] = []
    deletions: int = 0

    @property
    def external_id(self) -> str:
        """Says which incarnation of which person a resource is."""
        return f"p{self.number:04d}-{self.incarnation}"


class Caller:
    """Writes to one gateway.

    Args:
        session: its connections.
        scims: callers of the targets by name.
        chance: decides what is written.
    """

    def __init__(self, session: aiohttp.ClientSession, scims: dict[str, Scim], chance: random.Random) -> None:
        self.session = session
        self.scims = scims
        self.chance = chance
        self.acknowledged = 0
        self.again: Counter[str] = Counter()
        self.refused: list[str] = []
        self._version = 0
        self._name = 0

    async def write_once(self, person: Person) -> None:
        """One random write to this person; returns when it was acknowledged."""
        self._version += 1
        version = self._version
        if not person.alive:
            await self._create(person, version)
        else:
            kind = self.chance.choices(
                ("change", "switch", "rename", "delete"), (70, 15, 8 if person.target == "talkdesk" else 0, 7)
            )[0]
            if kind == "delete":
                await self._delete(person)
            else:
                await self._change(person, version, kind)
        self.acknowledged += 1

    async def _create(self, person: Person, version: int) -> None:
        person.incarnation += 1
        person.given, person.active, person.role = f"G{version}", True, "Agent"
        document: dict[str, Any] = {
            "schemas": [CORE],
            "userName": person.user_name,
            "externalId": person.external_id,
            "active": True,
            "name": {"givenName": person.given, "familyName": f"V{version}"},
        }
        if person.target == "talkdesk":
            document["schemas"] = [CORE, TALKDESK]
            document[TALKDESK] = {"rolesString": person.role}
        else:
            document["displayName"] = MANAGER
        person.versions.append(version)
        said = await self._until_done(person, "POST", "/Users", document, (201, 409))
        if said.status == 409:
            found = await self._find(person)
            if len(found) != 1 or found[0].get("externalId") != person.external_id:
                self.refused.append(f"409 for {person.external_id}, and a filter finds {len(found)}: {said.text}")
                return
            person.resource = str(found[0]["id"])
            message = replacing(active=True, name__givenName=person.given, name__familyName=f"V{version}")
            await self._until_done(person, "PATCH", f"/Users/{person.resource}", message, (200,))
        else:
            person.resource = said.id
        person.version, person.alive = version, True
        person.names.append(person.user_name)

    async def _change(self, person: Person, version: int, kind: str) -> None:
        values: dict[str, Any] = {"name__familyName": f"V{version}"}
        wanted: dict[str, Any] = {}
        if kind == "switch":
            wanted["active"] = values["active"] = not person.active
        elif kind == "rename":
            self._name += 1
            wanted["user_name"] = values["userName"] = f"p{person.number:04d}.n{self._name}@contoso.example"
        else:
            wanted["given"] = values["name__givenName"] = f"G{version}"
            if person.target == "talkdesk" and self.chance.random() < 0.3:
                wanted["role"] = self.chance.choice(ROLES)
        message = replacing(**values)
        if "role" in wanted:
            message["Operations"].append({"op": "Replace", "path": f"{TALKDESK}:rolesString", "value": wanted["role"]})
        person.versions.append(version)
        await self._until_done(person, "PATCH", f"/Users/{person.resource}", message, (200,))
        person.version = version
        for name, value in wanted.items():
            setattr(person, name, value)
        if kind == "rename":
            person.names.append(person.user_name)

    async def _delete(self, person: Person) -> None:
        await self._until_done(person, "DELETE", f"/Users/{person.resource}", None, (204, 404))
        person.alive, person.resource = False, None
        person.deletions += 1

    async def _find(self, person: Person) -> list[dict[str, Any]]:
        path = f"/Users?filter=userName%20eq%20%22{person.user_name}%22"
        said = await self._until_done(person, "GET", path, None, (200,))
        return list(said.document["Resources"])

    async def _until_done(self, person: Person, method: str, path: str, body: Any, good: tuple[int, ...]) -> Said:
        """Ask until the gateway answers; what it refuses for good is noted and ends the test."""
        deadline = time.monotonic() + WRITE_WAIT_S
        wait_s = AGAIN_FIRST_S
        repeated = False
        while True:
            try:
                said = await self.scims[person.target].send(method, path, body)
            except (aiohttp.ClientError, OSError, TimeoutError) as exc:
                self.again[type(exc).__name__] += 1
            else:
                if said.status in good and (repeated or said.status not in (404, 409)):
                    return said
                if said.status != 503:
                    self.refused.append(
                        f"{method} {path} of {person.external_id} was answered {said.status}: {said.text}"
                    )
                    raise AssertionError(self.refused[-1])
                self.again["503"] += 1
            repeated = True
            assert time.monotonic() < deadline, f"no gateway took {method} {path} within {WRITE_WAIT_S:g} s"
            await asyncio.sleep(wait_s)
            wait_s = min(AGAIN_MAX_S, 2 * wait_s)
