"""A plain client of one emulated product, as its own tests need it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Generic, TypeVar

import aiohttp

from deploy.emulators.harness import Emulator, running
from deploy.emulators.scim_service import PATCH_OP

E = TypeVar("E", bound=Emulator)
C = TypeVar("C", bound="Caller[Any]")


class Caller(Generic[E]):
    """Calls a product and looks into it."""

    media_type = "application/json"

    def __init__(self, emulator: E, session: aiohttp.ClientSession) -> None:
        self.emulator = emulator
        self.session = session

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and decoded body."""
        raw = None if body is None else json.dumps(body)
        sent = {"Content-Type": self.media_type, **headers}
        async with self.session.request(method, path, data=raw, headers=sent) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else None

    @property
    def codes(self) -> list[str]:
        """What no correct client does, and somebody did."""
        return [violation["code"] for violation in self.emulator.violations]

    @property
    def ops(self) -> list[str]:
        """What was really written."""
        return [effect["op"] for effect in self.emulator.journal.effects()]


class ScimCaller(Caller[E]):
    """Calls a product that speaks SCIM."""

    media_type = "application/scim+json"
    users = "/scim/v2/Users"

    async def patch(self, path: str, *operations: Any) -> tuple[int, Any]:
        """A PATCH with these operations."""
        return await self.call("PATCH", path, {"schemas": [PATCH_OP], "Operations": list(operations)})

    async def found(self, text: str, where: str = "") -> list[dict[str, Any]]:
        """What a filter finds; users unless `where` says otherwise."""
        async with self.session.get(where or self.users, params={"filter": text}) as answer:
            assert answer.status == 200, await answer.text()
            found: list[dict[str, Any]] = (await answer.json(content_type=None))["Resources"]
            return found


@contextlib.asynccontextmanager
async def calling(caller: type[C], emulator: Emulator, headers: Mapping[str, str]) -> AsyncIterator[C]:
    """A caller of a running product; the headers carry the credential."""
    async with running(emulator) as url, aiohttp.ClientSession(url, headers=headers) as session:
        yield caller(emulator, session)
