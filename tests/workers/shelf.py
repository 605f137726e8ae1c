"""A small product with state over real HTTP, and its connector: what the worker's tests deliver to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from aiohttp import web
from msgspec import Struct

from connectors.contract import Connector, Delivery, Directory, Endpoint, Finding, Found
from connectors.http import Bearer
from schemas.config import Secret
from schemas.errors import NormalizationError
from schemas.events import split_identity
from schemas.resources import User, text
from schemas.specs import RateLimit, Spec


class ShelfServer:
    """Accounts with a name, a title and badges; a journal of everything that was asked.

    Attributes:
        gate: while it is not set, writes have their effect but are not answered.
        journal: (method, path) of every call, in order of arrival.
        times: monotonic time of each.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, dict[str, Any]] = {}
        self.journal: list[tuple[str, str]] = []
        self.times: list[float] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.roles = ["Clerk"]
        self.status = 0
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen on a free port of the loopback address."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"

    async def stop(self) -> None:
        """Close everything."""
        self.gate.set()
        if self._runner is not None:
            await self._runner.cleanup()

    def writes(self) -> list[tuple[str, str]]:
        """The calls that change something."""
        return [call for call in self.journal if call[0] != "GET"]

    async def _answer(self, request: web.Request) -> web.Response:
        self.journal.append((request.method, request.path))
        self.times.append(time.monotonic())
        if self.status:
            return web.json_response({"message": "as told"}, status=self.status)
        kind, _, account_id = request.path.strip("/").partition("/")
        account_id, _, part = account_id.partition("/")
        body = await request.json() if request.can_read_body else {}
        answer: Any = {}
        match request.method, kind:
            case "GET", "roles":
                answer = [{"name": name, "active": True} for name in self.roles]
            case "GET", _:
                wanted = request.query.get("name", "")
                answer = [{"id": k, **v} for k, v in self.accounts.items() if v["name"].casefold() == wanted]
            case "POST", _:
                account_id = f"a{len(self.accounts) + 1}"
                self.accounts[account_id] = {**body, "key": request.headers.get("Idempotency-Key", "")}
                answer = {"id": account_id}
            case "PUT", _ if account_id not in self.accounts:
                return web.json_response({"message": "no such account"}, status=404)
            case "PUT", _:
                self.accounts[account_id].update({part: body} if part else body)
            case "DELETE", _:
                self.accounts.pop(account_id, None)
        if request.method != "GET":
            await self.gate.wait()
        return web.json_response(answer)


class Settings(Struct, frozen=True, kw_only=True):
    """Where the shelf stands.

    Args:
        badge: give every new account a badge: a second call after the one that creates it.
    """

    base_url: str
    badge: bool = False
    token: Secret | None = None


class Account(Struct, frozen=True):
    """What the shelf holds of a user."""

    name: str
    title: str


class Shelf(Connector[Settings, Account]):
    """The connector, as an author would write it."""

    spec = Spec(name="shelf", title="Shelf", concurrency_max=4, rate_limit=RateLimit(calls=500, per_s=1.0))
    settings_type = Settings

    @classmethod
    def endpoint(cls, settings: Settings) -> Endpoint | None:
        """The configured address."""
        auth = Bearer(settings.token) if settings.token else None
        return Endpoint(base_url=settings.base_url, auth=auth, allow_loopback=True)

    def normalize(self, user: User, directory: Directory) -> Account:
        """A title must be a role of the shelf."""
        title = text(user.title)
        known = [entry["name"] for entry in directory.names("role") if not isinstance(entry, str)]
        if title and title not in known:
            raise NormalizationError(
                f"there is no role {title!r}", code="unknown_role", attribute="title", names=[title]
            )
        return Account(name=user.user_name, title=title)

    def account_keys(self, account: Account) -> tuple[str, ...]:
        """The name, folded."""
        return (account.name.casefold(),)

    async def load_directory(self) -> dict[str, list[dict[str, Any]]]:
        """The shelf's roles."""
        return {"role": (await self.http.request("GET", "/roles")).body}

    async def check(self) -> list[Finding]:
        """One call."""
        await self.http.request("GET", "/roles")
        return [Finding(level="ok", code="reachable", message="The shelf answers.")]

    async def find(self, account: Account | None, identities: Sequence[str], ctx: Delivery) -> list[Found]:
        """By name."""
        found = []
        for name in identities:
            answer = await self.http.request("GET", "/accounts", query={"name": split_identity(name)[1]}, ctx=ctx)
            found += [Found(account_id=entry["id"], identity=name) for entry in answer.body]
        return found

    async def create(self, account: Account, ctx: Delivery) -> str:
        """One call, or two with a badge."""
        body = {"name": account.name, "title": account.title}
        headers = {"Idempotency-Key": ctx.idempotency_key}
        account_id = str((await self.http.request("POST", "/accounts", json=body, headers=headers, ctx=ctx)).body["id"])
        if self.settings.badge:
            await self.http.request(
                "PUT", "/accounts/{id}/badge", parts={"id": account_id}, json={"is": "new"}, ctx=ctx
            )
        return account_id

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        """Replace."""
        body = {"name": account.name, "title": account.title}
        await self.http.request("PUT", "/accounts/{id}", parts={"id": account_id}, json=body, ctx=ctx)

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        """Gone is fine."""
        await self.http.request("DELETE", "/accounts/{id}", parts={"id": account_id}, ctx=ctx, expect=(404,))
