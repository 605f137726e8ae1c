"""A small SCIM server with state, used by test_entra.py alone: it shows what the emulated Entra sends and what it means.

It knows as much of RFC 7644 as that needs, keeps every request as it came over the wire, and can be told to misbehave.
"""

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from aiohttp import web

from deploy.emulators.entra import Directory, Person

TOKEN = "stand-in-token-1"
LIST_RESPONSE = "urn:ietf:params:scim:api:messages:2.0:ListResponse"
ERROR = "urn:ietf:params:scim:api:messages:2.0:Error"
PATH = re.compile(r'(?:(urn:.+):)?(\w+)(?:\[(\w+) eq "([^"]*)"\])?(?:\.(\w+))?')


@dataclass
class Seen:
    """One request as it came in."""

    method: str
    raw: str
    headers: dict[str, str]
    body: Any

    @property
    def query(self) -> str:
        return urlsplit(self.raw).query


@dataclass
class Fault:
    """A way to misbehave: a status, `slow`, `reset` (before acting), `lost` (after acting), `accepted` (202), `html`,
    `html404`, `no_id`."""

    method: str
    kind: str
    times: int
    status: int = 0
    under: str = ""
    containing: str = ""


@dataclass
class StandIn:
    """The server's state and its record of requests."""

    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Each with its members as a list of ids, which is never shown."""
    seen: list[Seen] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    token: str = TOKEN
    url: str = ""
    patch_answers_204: bool = False
    listed_otherwise: dict[str, Any] = field(default_factory=dict)
    """Members of a list of users that are other than they should be."""
    at_once: int = 0
    at_once_max: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def fault(self, method: str, kind: str, times: int = 1, **more: Any) -> None:
        self.faults.append(Fault(method, kind, times, **more))

    def user(self, user_name: str) -> dict[str, Any]:
        return next(user for user in self.users.values() if user["userName"].lower() == user_name.lower())

    def group(self, name: str) -> dict[str, Any]:
        return next(group for group in self.groups.values() if group["displayName"].lower() == name.lower())

    def requests(self, method: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == method]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        raw = request.raw_path
        self.seen.append(Seen(request.method, raw, dict(request.headers), json.loads(body) if body else None))
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)
        try:
            await asyncio.sleep(0)
            return await self._misbehave(request, body)
        finally:
            self.at_once -= 1

    async def _misbehave(self, request: web.Request, body: bytes) -> web.StreamResponse:
        fault = next(
            (
                fault
                for fault in self.faults
                if fault.times
                and fault.method in (request.method, "*")
                and fault.under in request.path
                and fault.containing in body.decode() + request.raw_path
            ),
            None,
        )
        if fault is None:
            return self._act(request, body)
        fault.times -= 1
        if fault.kind == "status":
            return error(fault.status, "told to fail")
        if fault.kind == "slow":
            answer = self._act(request, body)
            await self.released.wait()
            return answer
        if fault.kind == "html":
            return web.Response(text="<html>Bad Gateway</html>", content_type="text/html")
        if fault.kind == "html404":
            return web.Response(status=404, text="<html>Not Found</html>", content_type="text/html")
        if fault.kind == "no_id":
            return web.json_response({"userName": "x"}, status=201)
        if fault.kind == "accepted":
            answer = self._act(request, body)
            answer.set_status(202)
            return answer
        if fault.kind == "lost":
            self._act(request, body)
        assert request.transport is not None
        request.transport.abort()
        raise ConnectionResetError

    def _act(self, request: web.Request, body: bytes) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return error(401, "wrong token")
        parts = request.path.removeprefix("/scim").strip("/").split("/")
        if parts == ["Schemas"]:
            return listed([])
        if parts[0] == "Groups":
            return self._groups(request, parts[1:], body)
        if parts == ["Users"]:
            if request.method == "GET":
                return listed(self._find(urlsplit(request.raw_path).query), **self.listed_otherwise)
            return self._create(json.loads(body))
        if len(parts) == 2 and parts[0] == "Users":
            return self._one(request.method, parts[1], body)
        return error(404, "no such endpoint")

    def _groups(self, request: web.Request, rest: list[str], body: bytes) -> web.Response:
        """Like a server that cannot show members at all, which Microsoft allows; to ask for them is a mistake here."""
        if request.method == "GET":
            assert parse_qs(urlsplit(request.raw_path).query)["excludedAttributes"] == ["members"]
        if not rest:
            if request.method == "GET":
                condition = parse_qs(urlsplit(request.raw_path).query)["filter"][0]
                name = json.loads(condition.removeprefix("displayName eq "))
                found = [group for group in self.groups.values() if equal(group["displayName"], name)]
                return listed([shown(group) for group in found])
            return self._create_group(json.loads(body))
        group = self.groups.get(rest[0])
        if group is None:
            return error(404, "no such group")
        if request.method == "DELETE":
            del self.groups[rest[0]]
            return web.Response(status=204)
        if request.method == "PATCH":
            for operation in json.loads(body)["Operations"]:
                change(group, operation)
            return web.Response(status=204)
        return web.json_response(shown(group), content_type="application/scim+json")

    def _create_group(self, document: dict[str, Any]) -> web.Response:
        if any(equal(group["displayName"], document["displayName"]) for group in self.groups.values()):
            return error(409, "displayName is taken", "uniqueness")
        target_id = uuid.uuid4().hex
        self.groups[target_id] = {**document, "id": target_id, "members": []}
        return web.json_response(shown(self.groups[target_id]), status=201, content_type="application/scim+json")

    def _find(self, query: str) -> list[dict[str, Any]]:
        condition = parse_qs(query)["filter"][0]
        found = re.fullmatch(r'(\S.*?) eq ("(?:[^"\\]|\\.)*")', condition)
        assert found is not None, condition
        wanted = json.loads(found[2])
        return [user for user in self.users.values() if equal(read(user, found[1]), wanted)]

    def _create(self, document: dict[str, Any]) -> web.Response:
        if any(equal(user["userName"], document["userName"]) for user in self.users.values()):
            return error(409, "userName is taken", "uniqueness")
        target_id = uuid.uuid4().hex
        self.users[target_id] = {**document, "id": target_id}
        return web.json_response(self.users[target_id], status=201, content_type="application/scim+json")

    def _one(self, method: str, target_id: str, body: bytes) -> web.Response:
        user = self.users.get(target_id)
        if user is None:
            return error(404, "no such user")
        if method == "DELETE":
            del self.users[target_id]
            return web.Response(status=204)
        if method == "PATCH":
            for operation in json.loads(body)["Operations"]:
                if "path" in operation:
                    write(user, operation["path"], operation["value"])
                else:
                    for path, value in operation["value"].items():
                        write(user, path, value)
            if self.patch_answers_204:
                return web.Response(status=204)
        return web.json_response(user, content_type="application/scim+json")


def shown(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "members"}


def change(group: dict[str, Any], operation: dict[str, Any]) -> None:
    """One operation on a group in either dialect; a member that is not there yet or not any more is fine."""
    op, path = operation["op"].lower(), operation.get("path", "")
    members: list[str] = group["members"]
    if path == "members":
        ids = [member["value"] for member in operation["value"]]
        kept = [member for member in members if member not in ids]
        group["members"] = kept if op == "remove" else kept + ids
    elif path.startswith("members["):
        found = re.fullmatch(r'members\[value eq "([^"]*)"\]', path)
        assert found is not None, path
        assert op == "remove"
        group["members"] = [member for member in members if member != found[1]]
    else:
        group |= {path: operation["value"]} if path else operation["value"]


def equal(one: Any, other: Any) -> bool:
    return str(one).lower() == str(other).lower()


def read(user: dict[str, Any], path: str) -> Any:
    found = PATH.fullmatch(path)
    assert found is not None, path
    urn, attribute, by, which, sub = found.groups()
    node: Any = user.get(urn, {}) if urn else user
    node = node.get(attribute)
    if by:
        node = next((entry for entry in node or [] if equal(entry.get(by), which)), None)
    return node.get(sub) if sub and node else node


def write(user: dict[str, Any], path: str, value: Any) -> None:
    found = PATH.fullmatch(path)
    assert found is not None, path
    urn, attribute, by, which, sub = found.groups()
    node: Any = user.setdefault(urn, {}) if urn else user
    if attribute == "active":
        value = equal(value, "true")
    if attribute == "manager":
        value = value[0] if isinstance(value, list) else value
        value = value if isinstance(value, dict) else {"value": value}
    if by:
        entries = node.setdefault(attribute, [])
        entry = next((entry for entry in entries if equal(entry.get(by), which)), None)
        if entry is None:
            entry = {by: which}
            entries.append(entry)
        entry[sub or "value"] = value
    elif sub:
        node.setdefault(attribute, {})[sub] = value
    else:
        node[attribute] = value


def listed(resources: list[dict[str, Any]], **otherwise: Any) -> web.Response:
    count = len(resources)
    document = {"schemas": [LIST_RESPONSE], "totalResults": count, "startIndex": 1, "itemsPerPage": count}
    shown = {**document, "Resources": resources, **otherwise}
    return web.json_response(shown, content_type="application/scim+json")


def error(status: int, detail: str, scim_type: str = "") -> web.Response:
    document = {"schemas": [ERROR], "status": str(status), "detail": detail}
    if scim_type:
        document["scimType"] = scim_type
    return web.json_response(document, status=status, content_type="application/scim+json")


@asynccontextmanager
async def running(port: int = 0, state: StandIn | None = None) -> AsyncIterator[StandIn]:
    """Serve on 127.0.0.1, on a free port unless one is named."""
    server = state or StandIn()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    server.url = f"{site.name}/scim"
    try:
        yield server
    finally:
        server.released.set()
        await runner.cleanup()


def someone(directory: Directory, index: int = 0) -> Person:
    """One of the people of a directory."""
    return list(directory.people.values())[index]
