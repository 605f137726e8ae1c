"""A whole SCIM listener on a free port: real HTTP server, real SQLite store, the real engine, and a worker that answers at once.

Only the message bus is short-circuited: `InstantBus` hands each event to `workers.delivery.deliver` and folds what comes of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct
from yarl import URL

from connectors.contract import Connector, Delivery, Directory, Endpoint, Found, Identity
from gateway.bus import Message, Published
from gateway.dispatch import Dispatcher
from gateway.intake import Intake, Waiters
from gateway.keys import PEPPER_BYTES, Keys
from gateway.limits import Sources
from gateway.listener import HttpServer, listen
from gateway.outcomes import Outcomes
from gateway.scim_app import Edge, ScimParts, scim_app
from gateway.store import Store
from schemas.config import LimitSettings, TargetSettings
from schemas.errors import Gone, NormalizationError, Rejected, Unavailable
from schemas.events import decode_event
from schemas.resources import Group, User
from schemas.specs import Attribute, Spec
from tests.connectors.alone import Known, StaysOurs
from tests.gateway.stand_ins import Background, HeldBus, WallClock, write_blank_store
from workers.delivery import deliver

START_WAIT_S = 60.0
UNPACED = LimitSettings(requests_per_s_per_target="unlimited", refused_sign_ins_per_min_per_source="unlimited")
ALPHA, BETA = "alpha", "beta"
USER = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP = "urn:ietf:params:scim:schemas:core:2.0:Group"
PATCH = "urn:ietf:params:scim:api:messages:2.0:PatchOp"


class NoSettings(Struct, frozen=True):
    """Nothing to set."""


class Shelf(Connector[NoSettings, User]):
    """A product that keeps accounts in a dictionary; titles named `forbidden` are refused, and it can be away."""

    spec = Spec(
        name="shelf",
        title="Shelf",
        attributes=(Attribute("userName", "login", required=True), Attribute("title", "title")),
        groups_step="Switch group provisioning off in Entra.",
    )
    settings_type = NoSettings

    def __init__(self) -> None:
        super().__init__(NoSettings(), None)  # type: ignore[arg-type]
        self.accounts: dict[str, User] = {}
        self.away = False
        self._ids = itertools.count(1)

    @classmethod
    def endpoint(cls, settings: NoSettings) -> Endpoint | None:
        return None

    def normalize(self, user: User, directory: Directory) -> User:
        if user.title == "forbidden":
            raise NormalizationError("title must not be 'forbidden'. Map another attribute.", attribute="title")
        return user

    def account_keys(self, account: User) -> tuple[str, ...]:
        return ("".join(char for char in account.user_name if char.isdigit()),)

    async def find(self, account: User | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        self._answer()
        wanted = {text.partition(":")[2] for text in identities}
        return [
            Found(account_id, f"userName:{user.user_name.casefold()}")
            for account_id, user in self.accounts.items()
            if user.user_name.casefold() in wanted
        ]

    async def create(self, account: User, ctx: Delivery) -> str:
        self._answer()
        account_id = f"shelf-{next(self._ids)}"
        self.accounts[account_id] = account
        return account_id

    async def update(self, account_id: str, account: User, ctx: Delivery) -> None:
        self._answer()
        self.accounts[account_id] = account

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        self._answer()
        self.accounts.pop(account_id, None)

    def _answer(self) -> None:
        if self.away:
            raise Unavailable("Shelf does not answer.")


class GroupShelf(Shelf):
    """A product that takes any attribute and has groups; `groups` holds name and members (account ids) by group id."""

    spec = Spec(name="group_shelf", title="Group shelf", resources=("User", "Group"), any_attribute=True)

    def __init__(self) -> None:
        super().__init__()
        self.groups: dict[str, tuple[str, set[str]]] = {}
        self.refused: set[str] = set()
        """Names that this product does not take."""
        self.steps: list[tuple[int, int]] = []
        """How many members each call added and removed."""

    def normalize(self, user: User, directory: Directory) -> User:
        return user

    async def find_group(self, group: Group | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        self._answer()
        return [
            Found(group_id, f"displayName:{name.casefold()}")
            for group_id, (name, _) in self.groups.items()
            if f"displayName:{name.casefold()}" in identities
        ]

    async def put_group(self, group_id: str | None, group: Group, ctx: Delivery) -> str:
        self._answer()
        if group.display_name in self.refused:
            raise Rejected(f"The name '{group.display_name}' is reserved. Choose another one.")
        if group_id is not None and group_id not in self.groups:
            raise Gone("There is no such group.")
        made = group_id or f"group-{next(self._ids)}"
        self.groups[made] = (group.display_name, self.groups.get(made, ("", set()))[1])
        return made

    async def change_members(self, group_id: str, add: Sequence[str], remove: Sequence[str], ctx: Delivery) -> None:
        self._answer()
        self.steps.append((len(add), len(remove)))
        members = self.groups[group_id][1]
        members |= set(add)
        members -= set(remove)

    async def delete_group(self, group_id: str, ctx: Delivery) -> None:
        self._answer()
        self.groups.pop(group_id, None)


class InstantBus(HeldBus):
    """A bus whose only worker takes every event the moment it is published."""

    def __init__(self, connector: Shelf, spawn: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        super().__init__()
        self.connector = connector
        self.spawn = spawn
        self.outcomes: Outcomes | None = None

    async def publish(self, message: Message) -> Published:
        self.spawn(self._work(message))
        return Published.STORED

    async def _work(self, message: Message) -> None:
        outcome = await deliver(
            decode_event(message.body),
            delivery=1,
            connector=self.connector,
            directory=Known(),
            owned=StaysOurs(),
            new_id=lambda: uuid.uuid4().hex,
            clock=time.time,
        )
        assert outcome is not None
        assert self.outcomes is not None
        await self.outcomes.fold(outcome)


class Answer(Struct):
    """An HTTP answer: status, headers with lower-case names, the raw body and what it decodes to (None when empty)."""

    status: int
    headers: dict[str, str]
    raw: bytes
    body: Any


class Listener:
    """A running SCIM listener with two targets, a key for each, and a client."""

    def __init__(self, store: Store, keys: Keys, shelf: Shelf, port: int, tokens: dict[str, str]) -> None:
        self.store = store
        self.keys = keys
        self.shelf = shelf
        self.port = port
        self.tokens = tokens
        self.intake: Intake
        self.server: HttpServer
        self.app: Edge
        self.ready = True
        self.session: aiohttp.ClientSession

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def base(self, target: str = ALPHA) -> str:
        return f"{self.origin}/scim/v2/{target}"

    async def send(
        self,
        method: str,
        path: str,
        *,
        target: str = ALPHA,
        json: Any = None,
        data: bytes | None = None,
        token: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request; `path` follows the tenant URL and is sent as it is. `token` "" sends none."""
        sent = {"Authorization": f"Bearer {self.tokens[target] if token is None else token}"}
        if token == "":
            sent = {}
        if json is not None:
            data = msgspec.json.encode(json)
        if data is not None:
            sent["Content-Type"] = "application/scim+json; charset=utf-8"
        sent.update(headers or {})
        url = URL(f"{self.base(target)}{path}", encoded=True)
        skip = () if "Content-Type" in sent else ("Content-Type",)
        async with self.session.request(method, url, data=data, headers=sent, skip_auto_headers=skip) as answer:
            raw = await answer.read()
            named = {name.lower(): value for name, value in answer.headers.items()}
            return Answer(answer.status, named, raw, msgspec.json.decode(raw) if raw else None)

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.send("GET", path, **options)

    async def post(self, path: str, json: Any, **options: Any) -> Answer:
        return await self.send("POST", path, json=json, **options)

    async def patch(self, path: str, *operations: dict[str, Any], **options: Any) -> Answer:
        return await self.send("PATCH", path, json={"schemas": [PATCH], "Operations": list(operations)}, **options)

    async def user(
        self, name: str = "ada@contoso.example", *, target: str = ALPHA, **attributes: Any
    ) -> dict[str, Any]:
        """Create one and give its resource."""
        answer = await self.post("/Users", {"schemas": [USER], "userName": name, **attributes}, target=target)
        assert answer.status == 201, answer.body
        body: dict[str, Any] = answer.body
        return body

    async def group(self, name: str = "Sales", *members: str, target: str = ALPHA, **attributes: Any) -> dict[str, Any]:
        """Create one, with these members, and give its resource."""
        body: dict[str, Any] = {"schemas": [GROUP], "displayName": name, **attributes}
        if members:
            body["members"] = [{"value": member} for member in members]
        answer = await self.post("/Groups", body, target=target)
        assert answer.status == 201, answer.body
        made: dict[str, Any] = answer.body
        return made

    async def raw(self, request: bytes, *, wait_s: float = 5.0) -> bytes:
        """Send bytes as they are, and read until the server closes or falls silent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            received = b""
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(wait_s):
                    while part := await reader.read(65_536):
                        received += part
                        head, _, rest = received.partition(b"\r\n\r\n")
                        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                        if length and len(rest) >= int(length[0].split(b":")[1]):
                            break
            return received
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def listening(
    folder: Path,
    *,
    limits: LimitSettings | None = None,
    answer_wait_s: float = 4.0,
    store: Store | None = None,
    targets: dict[str, TargetSettings] | None = None,
    shelf: Shelf | None = None,
    **parts: Any,
) -> AsyncIterator[Listener]:
    """Start a listener; everything is stopped at the end.

    Args:
        limits: without, those of the product but for the rate of a target.
        shelf: the product behind both targets; one without groups when None.
        targets: settings by name; without, ALPHA and BETA as they come.
        parts: further fields of `ScimParts`.
    """
    own = store is None
    limits = limits or UNPACED
    path = folder / "store.sqlite3"
    if own and not path.exists():
        await write_blank_store(path)
    store = store or Store.open(path)
    background = Background()
    clock = WallClock()
    settings = targets or {ALPHA: TargetSettings(connector="shelf"), BETA: TargetSettings(connector="shelf")}
    waiters = Waiters()
    shelf = shelf or Shelf()
    bus = InstantBus(shelf, background.spawn)
    dispatcher = Dispatcher(store, bus, clock, background.spawn, lambda: settings)
    bus.outcomes = Outcomes(
        store,
        bus,
        clock,
        dispatcher,
        lambda: settings,
        jitter=lambda: 0.5,
        on_settled=lambda row: waiters.wake(row.id, row),
        awaited=waiters.awaited,
    )
    intake = Intake(
        store,
        dispatcher,
        waiters,
        clock,
        lambda: settings,
        answer_wait_s=answer_wait_s,
        new_id=lambda: uuid.uuid4().hex,
        new_resource=lambda: str(uuid.uuid4()),
        healthy=lambda target: True,
        identity_paths=lambda target: ("userName",),
    )
    keys = Keys(store, bytes(range(PEPPER_BYTES)), now=time.time, clock=time.monotonic)
    tokens = {target: (await keys.issue(target, actor="test")).text for target in settings}
    listener = Listener(store, keys, shelf, 0, tokens)
    listener.intake = intake

    async def ready() -> bool:
        return listener.ready

    app = scim_app(
        ScimParts(
            store=store,
            intake=intake,
            keys=keys,
            targets=lambda: settings,
            ready=ready,
            limits=limits,
            **{"spec_of": lambda target: shelf.spec, **parts},
        )
    )
    listener.app = app
    talk = listen("127.0.0.1", 0)
    listener.port = talk.getsockname()[1]
    server = HttpServer(app, talk, limits, Sources(parts.get("trusted_proxies", ())))
    listener.server = server
    serving = asyncio.create_task(server.serve_here())
    try:
        async with asyncio.timeout(START_WAIT_S):
            while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.005)
        async with aiohttp.ClientSession() as session:
            listener.session = session
            yield listener
    finally:
        server.should_exit = True
        await serving
        await background.end()
        talk.close()
        if own:
            await store.close()
