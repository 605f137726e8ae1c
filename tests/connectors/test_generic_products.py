"""Whole products, each declared in TOML as an operator writes it, against an emulated product of that kind over real HTTP.

The kinds are those of public interfaces: envelopes and bare lists, JSON:API, HAL, forms, calls that name the user in a parameter,
searches by POST, filters, cursors, links, next addresses, keys in several headers, states of many names, roles and groups.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from connectors import registry
from connectors.contract import Delivery, ListsGroups, PutsGroups
from connectors.generic_rest import GenericRest
from connectors.rehearsal import Rehearsal, rehearsing, rehearsing_connector
from connectors.scanned import SCAN_KEEP_S, Row, Scanned
from deploy.emulators.harness import running
from deploy.emulators.rest_service import RestServiceEmulator
from schemas.errors import Blocked, ConnectorError, Gone, Misconfigured, RateLimited, Rejected, Unavailable
from schemas.resources import Group, User
from tests.connectors.alone import Known, secret_file

TOKEN = "demo-token-rest_service"
COMMON = """
title = "Product"
allow_loopback = true
message = "error.message"
active = { field = "status", on = "enabled", off = "disabled" }
[endpoints]
list = { path = "/users", items = "data" }
find = { path = "/users", items = "data" }
read = { path = "/users/{id}", item = "data" }
create = { path = "/users", item = "data" }
update = { path = "/users/{id}", item = "data" }
delete = { path = "/users/{id}" }
[identity]
userName = { parameter = "login" }
[attributes]
userName = { field = "login", required = true }
externalId = { field = "external_id" }
"name.givenName" = { field = "name.first" }
"name.familyName" = { field = "name.last" }
'emails[type eq "work"].value' = { field = "contact.email" }
'phoneNumbers[type eq "mobile"].value' = { field = "phones[type=mobile].number" }
roles = { field = "roles", many = "list" }
"""
"""What a product says that none of the following lines say otherwise."""
PRODUCTS: dict[str, tuple[str, dict[str, Any]]] = {
    "next page at an address of its own": (
        'paging = { way = "cursor", parameter = "cursor", next = "meta.next", size_parameter = "limit", size = 2 }',
        {"paging": "path"},
    ),
    "offsets without a total": (
        'paging = { way = "offset", parameter = "offset", first = 0, size_parameter = "limit", size = 2, more = "meta.more" }',
        {"paging": "more"},
    ),
    "next page in a header": (
        'paging = { way = "cursor", parameter = "page", next = "header:X-Next-Page", size_parameter = "per_page", size = 2 }',
        {"paging": "header"},
    ),
    "filter": (
        r"""
        paging = { way = "link", size_parameter = "limit", size = 2 }
        identity.userName = { query = { filter = 'login eq "{value}"' }, escape = "backslash" }
        """,
        {"paging": "link"},
    ),
    "search by POST, by likeness elsewhere": (
        """
        paging = { way = "cursor", parameter = "after", next = "meta.next", size_parameter = "limit", size = 2 }
        endpoints.list = { path = "/users/search", method = "POST", items = "data" }
        endpoints.find = { path = "/users/search", method = "POST", items = "data" }
        identity.userName = { body = { filters = [{ field = "login", op = "eq", value = "{value}" }] } }
        """,
        {"paging": "cursor"},
    ),
    "finds by likeness": (
        'paging = { way = "page", parameter = "page", size_parameter = "per_page", size = 2, total = "meta.total" }',
        {"paging": "page", "quirks": ["likeness"], "page_max": 2},
    ),
    "user named in a parameter, and a key in place of the name": (
        """
        paging = { way = "page", parameter = "page", size_parameter = "per_page", size = 2, total = "meta.total" }
        auth = { way = "basic_key", token = "TOKEN" }
        endpoints.read = { path = "/user.info", query = { user = "{id}" }, item = "data" }
        endpoints.update = { path = "/user.set", method = "POST", body = { user = "{id}" }, item = "data" }
        endpoints.delete = { path = "/user.remove", method = "POST", body = { user = "{id}" } }
        """,
        {"auth": "basic_key"},
    ),
    "JSON:API, and client credentials in the body": (
        """
        id = "id"
        media_type = "application/vnd.api+json"
        message = "errors.0.detail"
        nested = "part"
        auth.way = "client_credentials"
        auth.client_id = "demo-client"
        auth.client_secret = "TOKEN"
        auth.client_in = "body"
        auth.token_url = "URL/oauth/token"
        active = { field = "attributes.status", on = "enabled", off = "disabled" }
        paging = { way = "cursor", parameter = "page[cursor]", next = "links.next" }
        errors = [{ status = [409], field = "errors.0.code", equals = ["login_taken"], means = "conflict" }]
        endpoints.create = { path = "/users", wrap = "data", body = { "data.type" = "users" }, item = "data" }
        endpoints.update.path = "/users/{id}"
        endpoints.update.wrap = "data"
        endpoints.update.item = "data"
        endpoints.update.body = { "data.type" = "users", "data.id" = "{id}" }
        identity.userName = { scan = true }
        attributes.userName = { field = "attributes.login", required = true }
        attributes.externalId = { field = "attributes.external_id" }
        attributes."name.givenName" = { field = "attributes.name.first" }
        attributes."name.familyName" = { field = "attributes.name.last" }
        attributes.'emails[type eq "work"].value' = { field = "attributes.contact.email" }
        attributes.'phoneNumbers[type eq "mobile"].value' = { field = "attributes.phones[type=mobile].number" }
        attributes.roles = { field = "attributes.roles", many = "list" }
        """,
        {"auth": "oauth", "body": "jsonapi", "paging": "none"},
    ),
    "HAL": (
        """
        id = "_links.self.href"
        id_form = "address"
        auth = { way = "header", scheme = "Token token=", token = "TOKEN" }
        endpoints.list = { path = "/users", items = "_embedded.users" }
        endpoints.find = { path = "/users", items = "_embedded.users" }
        endpoints.read = { path = "/users/{id}" }
        endpoints.create = { path = "/users" }
        endpoints.update = { path = "/users/{id}" }
        """,
        {"auth": "token", "ids": "href", "envelope": False, "paging": "none"},
    ),
    "forms, and two keys": (
        """
        encoding = "form"
        auth = { way = "header", header = "X-Api-Key", scheme = "", token = "TOKEN", also = { X-Application-Key = "TOKEN" } }
        attributes.'phoneNumbers[type eq "mobile"].value' = { field = "contact.mobile" }
        """,
        {"auth": "two", "body": "form", "paging": "none"},
    ),
    "operations, and ids with a bar": (
        'update = "json_patch"',
        {"patch": "operations", "ids": "text", "paging": "none"},
    ),
    "states of many names, off before it goes, roles by calls": (
        """
        off_before_delete = true
        active = { way = "calls", field = "status", on = "enabled", off = "disabled", also_on = ["invited"] }
        endpoints.activate = { path = "/users/{id}/enable", item = "data" }
        endpoints.deactivate = { path = "/users/{id}/disable", item = "data" }
        endpoints.roles = { path = "/users/{id}/roles", items = "roles" }
        endpoints.grant = { path = "/users/{id}/roles", body = { name = "{role}" } }
        endpoints.revoke = { path = "/users/{id}/roles/{role}" }
        attributes.roles = { field = "role.name", through = "calls" }
        """,
        {"states": "calls", "quirks": ["off_first", "invites"], "paging": "none"},
    ),
}
GROUPS: dict[str, tuple[str, dict[str, Any]]] = {
    "a call for each member": (
        """
        add = { path = "/groups/{id}/members/{member}", method = "PUT" }
        remove = { path = "/groups/{id}/members/{member}" }
        """,
        {"members": "calls"},
    ),
    "members that are listed": (
        """
        add = { path = "/groups/{id}/members/{member}", method = "PUT" }
        remove = { path = "/groups/{id}/members/{member}" }
        members = { path = "/groups/{id}/members", items = "members" }
        [groups.members]
        id = "user.id"
        """,
        {"members": "calls"},
    ),
    "several at once": (
        """
        add = { path = "/groups/{id}/members", body = { add = "{members:number}" } }
        remove = { path = "/groups/{id}/members", method = "POST", body = { remove = "{members:number}" } }
        members = { path = "/groups/{id}/members", items = "members" }
        [groups.members]
        per_call = 3
        """,
        {"members": "bulk"},
    ),
    "memberships with ids of their own": (
        """
        add = { path = "/memberships", body = { group_id = "{id:number}", user_id = "{member:number}" } }
        remove = { path = "/memberships/{membership}" }
        members = { path = "/groups/{id}/members", items = "members" }
        [groups.members]
        id = "user.id"
        membership = "id"
        """,
        {"members": "memberships"},
    ),
    "a field of the group": (
        """
        [groups.members]
        field = "members"
        id = "user"
        numbers = true
        """,
        {"members": "field"},
    ),
}
GROUP_CALLS = """
[groups]
name = "name"
external_id = "external_id"
lookup = { parameter = "name" }
paging = { way = "offset", parameter = "offset", first = 0, size_parameter = "limit", size = 2, more = "more" }
[groups.endpoints]
list = { path = "/groups", items = "groups" }
find = { path = "/groups", items = "groups" }
read = { path = "/groups/{id}", item = "group" }
create = { path = "/groups", item = "group" }
update = { path = "/groups/{id}", item = "group" }
delete = { path = "/groups/{id}" }
"""


def merged(one: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of two texts as one; the later text wins, a call or a binding as a whole."""
    for name, value in other.items():
        deeper = name in ("endpoints", "attributes", "identity", "groups", "members") and isinstance(value, dict)
        one[name] = merged(dict(one.get(name, {})), value) if deeper else value
    return one


def with_secret(value: Any, url: str, file: str) -> Any:
    """The settings with the credential's file and the product's address put in."""
    if isinstance(value, dict):
        return {name: with_secret(inner, url, file) for name, inner in value.items()}
    return {"file": file} if value == "TOKEN" else value.replace("URL", url) if isinstance(value, str) else value


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """The credential of the target."""
    return secret_file(tmp_path / "token", TOKEN)


@contextlib.asynccontextmanager
async def declared(token: Path, *texts: str, **habits: Any) -> AsyncIterator[tuple[GenericRest, RestServiceEmulator]]:
    """A running product of these habits, and the connector that its declaration makes."""
    product = RestServiceEmulator(token=TOKEN, rate_per_s=0, **habits)
    async with running(product) as url:
        table: dict[str, Any] = {"base_url": f"{url}/api", "auth": {"token": "TOKEN"}}
        for text in (COMMON, *texts):
            merged(table, tomllib.loads("\n".join(line.strip() for line in text.splitlines())))
        problems: list[str] = []
        settings = registry.decode_settings("rest", with_secret(table, url, str(token)), "settings", problems)
        assert not problems, problems
        connector, http = registry.build("rest", settings)
        assert isinstance(connector, GenericRest)
        assert http is not None
        try:
            yield connector, product
        finally:
            await connector.close()
            await http.close()
    assert not product.violations, list(product.violations)


def a_user(**document: Any) -> User:
    return User.from_document(
        {
            "userName": "Ada.O'Neill@contoso.example",
            "externalId": "e-1",
            "active": True,
            "name": {"givenName": "Ada", "familyName": "O'Neill"},
            "emails": [{"type": "work", "value": "ada@contoso.example"}],
            "phoneNumbers": [{"type": "mobile", "value": "+44 1"}],
            "roles": [{"value": "agent"}, {"value": "lead"}],
            **document,
        }
    )


def a_group(name: str) -> Group:
    return Group(display_name=name, external_id="g-1")


async def listed(lists: Any, *named: Any) -> list[Any]:
    """A whole list, page by page."""
    rows: list[Any] = []
    cursor: str | None = None
    for _ in range(20):
        page, cursor = await lists(*named, cursor)
        rows += page
        if cursor is None:
            return rows
    raise AssertionError("the list has no end")


@pytest.mark.parametrize("kind", PRODUCTS)
async def test_a_product_of_every_kind_is_declared_and_kept(token: Path, kind: str) -> None:
    """Made, found, listed, changed in part, switched off and on, removed; `check` has nothing to say; no other is touched."""
    text, habits = PRODUCTS[kind]
    async with declared(token, text, **habits) as (connector, product):
        others = [
            {"login": f"ada.o'neill{n}@contoso.example", "phones": [{"type": "home", "number": "1"}]} for n in range(5)
        ]
        product.seed({"users": others})
        before = dict(product.state()["users"])
        ctx = Delivery()
        wish = connector.normalize(a_user(), Known())
        name = "userName:ada.o'neill@contoso.example"
        assert await connector.find(wish, [name], ctx) == []
        dry: Any = rehearsing_connector(type(connector), connector.settings, connector.http)
        with rehearsing(Rehearsal()) as rehearsal:
            assert (await dry.create(wish, Delivery())).startswith("would-be-")
        assert (rehearsal.calls[0].method, len(product.state()["users"])) == ("POST", 5)
        account_id = await connector.create(wish, ctx)
        assert [found.account_id for found in await connector.find(None, [name], Delivery())] == [account_id]
        rows = {row["account_id"]: row for row in await listed(connector.list_accounts)}
        assert len(rows) == 6
        assert rows[account_id]["active"] is True
        expected = connector.expected(wish)
        assert {path: rows[account_id]["values"].get(path) for path in expected.values} == expected.values
        held_id = account_id.removeprefix("crm|")
        held = product.state()["users"][held_id]
        if "form" not in kind:
            by_hand = {**held, "phones": [{"type": "home", "number": "7"}, *held["phones"]], "note": "kept"}
            product.control("by_hand", [("users", held_id, by_hand)])
        changed = a_user(
            name={"givenName": "Ada", "familyName": "King"},
            phoneNumbers=[{"type": "mobile", "value": "+44 2"}],
            roles=[{"value": "lead"}, {"value": "head"}],
        )
        wish = connector.normalize(changed, Known())
        with rehearsing(Rehearsal()) as rehearsal:
            await dry.update(account_id, wish, Delivery())
        assert rehearsal.calls
        assert product.state()["users"][held_id]["name"]["last"] == "O'Neill"
        for _ in range(2):
            writes = len(product.journal.effects())
            await connector.update(account_id, wish, Delivery())
        assert len(product.journal.effects()) == writes, "the same wish again sends nothing"
        held = product.state()["users"][held_id]
        assert (held["name"], held["contact"]["email"]) == ({"first": "Ada", "last": "King"}, "ada@contoso.example")
        assert sorted(held["roles"]) == ["head", "lead"]
        if "form" not in kind:
            assert held["phones"] == [{"type": "home", "number": "7"}, {"type": "mobile", "number": "+44 2"}]
            assert held["note"] == "kept"
        for active, status in ((False, "disabled"), (True, "enabled")):
            await connector.update(account_id, connector.normalize(a_user(active=active), Known()), Delivery())
            assert product.state()["users"][held_id]["status"] == status
        findings = await connector.check()
        assert [one for one in findings if one.level != "ok"] == []
        for _ in range(2):
            await connector.delete(account_id, Delivery())
        assert product.state()["users"] == before


@pytest.mark.parametrize("kind", GROUPS)
async def test_groups_are_declared_and_their_members_come_and_go(token: Path, kind: str) -> None:
    """Made once, found, renamed, members by difference in every way, strangers waited for, listed, removed without its people."""
    text, habits = GROUPS[kind]
    async with declared(token, GROUP_CALLS + text, paging="none", page_max=2, **habits) as (connector, product):
        assert isinstance(connector, (PutsGroups, ListsGroups))
        assert connector.spec_for(connector.settings).has_groups
        people = product.seed({"users": [{"login": f"u{n}@contoso.example"} for n in range(6)]})["ids"]
        product.seed({"groups": [{"name": f"Other {n}"} for n in range(3)]})
        assert await connector.find_group(a_group("Sales"), ["displayName:sales"], Delivery()) == []
        group_id = await connector.put_group(None, a_group("Sales"), Delivery())
        (found,) = await connector.find_group(None, ["displayName:sales"], Delivery())
        assert (found.account_id, found.conflict) == (group_id, "")

        def members() -> list[str]:
            return sorted(product.state()["groups"][group_id]["members"])

        for _ in range(2):
            await connector.change_members(group_id, people[:5], [], Delivery())
        assert members() == people[:5]
        with pytest.raises(Blocked) as waits:
            await connector.change_members(group_id, ["9999", people[5]], [people[0]], Delivery())
        assert (waits.value.on, members()) == ("member:9999", people[1:])
        for _ in range(2):
            await connector.change_members(group_id, [], people[1:4], Delivery())
        assert members() == people[4:]
        assert await connector.put_group(group_id, a_group("Sales EU"), Delivery()) == group_id
        writes = len(product.journal.effects())
        await connector.put_group(group_id, a_group("Sales EU"), Delivery())
        assert len(product.journal.effects()) == writes
        rows = {row["account_id"]: row for row in await listed(connector.list_groups)}
        assert len(rows) == 4
        expected = connector.expected_group(a_group("Sales EU"))
        assert expected is not None
        assert {path: rows[group_id]["values"][path] for path in expected.values} == expected.values
        if kind != "a call for each member":
            assert sorted(await listed(connector.list_members, group_id)) == people[4:]
        theirs = Group(display_name="Sales EU", external_id="g-2")
        (found,) = await connector.find_group(theirs, ["displayName:sales eu"], Delivery())
        assert "belongs to another group" in found.conflict
        assert [one for one in await connector.check() if one.level != "ok"] == []
        for _ in range(2):
            await connector.delete_group(group_id, Delivery())
        assert len(product.state()["groups"]) == 3
        assert len(product.state()["users"]) == 6


def notes() -> list[tuple[str, ...]]:
    """The declarations of connectors/rest.md, each after what it adds to."""
    page = Path(registry.__file__).with_name("rest.md").read_text(encoding="utf-8")
    found = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    groups = next(text for text in found if text.startswith("[groups]"))
    return [(COMMON, groups, text) if text.startswith("[groups.") else (COMMON, text) for text in found]


@pytest.mark.parametrize("texts", notes())
def test_what_the_notes_for_operators_show_is_a_declaration(texts: tuple[str, ...]) -> None:
    """Nobody copies a line from the page that the gateway then refuses."""
    table: dict[str, Any] = {"base_url": "https://crm.example.com/api", "auth": {"token": {"env": "KEY"}}}
    for text in texts:
        merged(table, tomllib.loads(text))
    problems: list[str] = []
    assert registry.decode_settings("rest", table, "settings", problems) is not None, problems


MISTAKES = [
    ('endpoints.read = { path = "/users/{idd}" }', "endpoints.read.path: {idd} is not known; there is {id}"),
    ('endpoints.update = { path = "/u", body = { x = "{idd}" } }', "endpoints.update.body: {idd} is not known"),
    ('endpoints.delete = { path = "/u", method = "POST" }', "endpoints.delete.path: must hold {id}, or query or body"),
    ('endpoints.find = { path = "/u", body = { a = 1 } }', 'endpoints.find.body: needs method = "POST"'),
    ("""identity.userName = { query = { q = "'{value}'" } }""", "identity.userName.escape: a quoted {value}"),
    ('identity.userName = { query = { q = "x" } }', "identity.userName.query: must hold {value}"),
    ('identity.userName = { body = { q = "{value}" } }', "identity.userName.body: needs endpoints.find with method"),
    ('id = "login"', 'attributes.userName.write: must be "create": this field is the account\'s id'),
    ('attributes.title = { field = "phones[type].value" }', "attributes.title.field: has brackets"),
    ('attributes.title = { field = "phones[type=x]" }', "attributes.title.field: ends with a choice"),
    ('attributes.title = { field = "note", through = "calls" }', 'attributes.title.through: "calls" is for roles only'),
    ('attributes.roles = { field = "id", through = "calls" }', "endpoints.grant: missing; attributes.roles.through"),
    (
        'attributes.title = { field = "note", entry = "x" }',
        'attributes.title.entry: means nothing without many = "list"',
    ),
    ('active = { field = "status", on = "a", off = "b", also_on = ["B"] }', "active.off: must differ from on: 'b'"),
    ('paging = { way = "cursor", parameter = "c", next = "header:a b" }', "paging.next: is not the name of a header"),
    ('paging = { way = "link", more = "x" }', "paging.more: means nothing with way"),
    ('media_type = "json"', "media_type: must be like"),
    ('auth = { way = "basic_key" }', 'auth.token: missing; way = "basic_key" needs it'),
    ('auth.also = { authorization = "TOKEN" }', "auth.also.authorization: is sent already"),
    ("off_before_delete = true\nactive = false", "active: must be a table"),
    ('groups = { name = "n" }', "groups.endpoints: missing; the calls the product has for groups"),
    (GROUP_CALLS, "groups.endpoints.add: missing; members come and go by it"),
    (GROUP_CALLS + "members = { path = '/m' }", "groups.endpoints.members.path: must hold {id}"),
    (
        GROUP_CALLS + GROUPS["a field of the group"][0] + "feild = 'x'",
        "groups.members.feild: not a setting of REST product",
    ),
    (
        GROUP_CALLS + "remove = { path = '/m/{membership}' }",
        "groups.endpoints.members: missing; {membership} is read there",
    ),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES)
def test_every_mistake_names_its_place_and_the_remedy(text: str, said: str) -> None:
    """Path first, with the nearest name; what cannot work is refused before anything is sent."""
    table: dict[str, Any] = {"base_url": "https://crm.example.com/api", "auth": {"token": {"env": "KEY"}}}
    for part in (COMMON, text):
        merged(table, tomllib.loads("\n".join(line.strip() for line in part.splitlines())))
    problems: list[str] = []
    assert registry.decode_settings("rest", with_secret(table, "", "t"), "settings", problems) is None
    assert any(problem.removeprefix("settings.").startswith(said) for problem in problems), problems


async def test_who_left_a_group_already_does_not_keep_the_others_in_it(token: Path) -> None:
    """Without a list of members a removal may name somebody who is out already; the product refuses all of that call."""
    lines = [line for line in GROUPS["several at once"][0].splitlines() if not line.strip().startswith("members =")]
    async with declared(token, GROUP_CALLS + "\n".join(lines), paging="none", members="bulk") as (connector, product):
        people = product.seed({"users": [{"login": f"u{n}@contoso.example"} for n in range(3)]})["ids"]
        (group_id,) = product.seed({"groups": [{"name": "Sales", "members": people}]})["group_ids"]
        product.fault("status", method="POST", path=f"/api/groups/{group_id}/members", status=404, times=1)
        await connector.change_members(group_id, [], people[:2], Delivery())
        await connector.change_members(group_id, [], people[:1], Delivery())
        assert product.state()["groups"][group_id]["members"] == people[2:]


async def test_a_list_that_breaks_off_is_no_whole_list(token: Path) -> None:
    """Reconciliation must not take the rest for missing: the product said how many there are, or where it goes on."""
    paging = (
        'paging = { way = "page", parameter = "page", size_parameter = "per_page", size = 2, total = "meta.total" }'
    )
    people = {"users": [{"login": f"u{n}@contoso.example"} for n in range(5)]}
    async with declared(token, paging, quirks=["breaks_off"]) as (connector, product):
        product.seed(people)
        with pytest.raises(Unavailable) as broken:
            await listed(connector.list_accounts)
        assert broken.value.code == "incomplete_list"
    paging = 'paging = { way = "cursor", parameter = "cursor", next = "meta.next", size_parameter = "limit", size = 2 }'
    async with declared(token, paging, paging="cursor") as (connector, product):
        product.seed(people)
        away = {"data": [{"id": 1, "login": "a"}], "meta": {"next": "https://elsewhere.example/other/place"}}
        product.fault("status", method="GET", status=200, body=away)
        with pytest.raises(Unavailable) as broken:
            await listed(connector.list_accounts)
        assert broken.value.code == "incomplete_list"


async def test_a_list_of_one_status_at_a_time_is_gone_through_for_each(token: Path) -> None:
    """Who is switched off is not missing because the product lists by status."""
    text = """
        endpoints.list = { path = "/users", items = "data", rounds = [{ status = "enabled" }, { status = "disabled" }] }
        paging = { way = "offset", parameter = "offset", first = 0, size_parameter = "limit", size = 2, more = "meta.more" }
        identity.userName = { scan = true }
        query = { api-version = "7.1" }
        """
    async with declared(token, text, paging="none") as (connector, product):
        (one,) = product.seed({"users": [{"login": "u@contoso.example"}]})["ids"]
        await connector.update(one, connector.normalize(a_user(userName="u@contoso.example"), Known()), Delivery())
        asked = {line["method"]: line["query"] for line in product.recorded()}
        assert set(asked.values()) == {"api-version=7.1"}
    async with declared(token, text.replace("query = {", "#"), paging="more", quirks=["by_status"]) as (
        connector,
        product,
    ):
        states = ("enabled", "disabled")
        product.seed({"users": [{"login": f"u{n}@contoso.example", "status": states[n % 2]} for n in range(7)]})
        rows = await listed(connector.list_accounts)
        assert sorted((row["identities"][0], row["active"]) for row in rows) == [
            (f"userName:u{n}@contoso.example", n % 2 == 0) for n in range(7)
        ]
        assert len(await connector.find(None, ["userName:u5@contoso.example"], Delivery())) == 1


async def test_null_where_an_account_should_be_means_that_it_is_gone(token: Path) -> None:
    """Products that answer every question with 200 say so; what is no answer at all is tried again."""
    async with declared(token, paging="none") as (connector, product):
        wish = connector.normalize(a_user(), Known())
        for body, kind in (({"data": None}, Gone), ({}, Unavailable), ({"data": []}, Unavailable)):
            product.fault("status", method="GET", status=200, body=body, times=1)
            with pytest.raises(kind):
                await connector.update("1001", wish, Delivery())


async def test_a_rehearsal_never_sends_what_might_write(token: Path) -> None:
    """A search by POST is sent in a rehearsal, unless the product takes its writes at the same address."""
    text = """
        endpoints.find = { path = "/users/search", method = "POST", items = "data" }
        endpoints.list = { path = "/users", method = "POST", items = "data" }
        identity.userName = { body = { a = "{value}" } }
        """
    async with declared(token, text) as (connector, _):
        assert connector.reading_calls == {("POST", "/users/search")}


@pytest.mark.parametrize(
    ("wait", "headers", "body"),
    [
        ('{ at = "header:X-Reset-Ms", form = "milliseconds" }', {"X-Reset-Ms": "42000"}, {}),
        ('{ at = "error.retry_after" }', {}, {"error": {"retry_after": 42}}),
        ('{ at = "header:X-Reset", form = "epoch" }', {"X-Reset": "EPOCH"}, {}),
        ('{ at = "header:X-Reset" }', {"Retry-After": "42"}, {}),
    ],
)
async def test_a_product_says_in_its_own_way_when_to_come_again(
    token: Path, wait: str, headers: dict[str, str], body: dict[str, Any]
) -> None:
    """A11: seconds, milliseconds or a time of day, in a header or in the body; Retry-After counts as well."""
    async with declared(token, f"wait = {wait}", paging="none") as (connector, product):
        connector.calls._now = lambda: 1_700_000_000.0
        headers = {name: value.replace("EPOCH", "1700000042") for name, value in headers.items()}
        product.fault("status", status=429, headers=headers, body=body)
        with pytest.raises(RateLimited) as limited:
            await connector.list_accounts(None)
    assert limited.value.retry_after_s == 42


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('endpoints.read = { path = "/people/{id}" }', "cannot_read"),
        ('identity.userName = { path = "/users/by-name/{value}" }', "not_found_again"),
        (
            GROUP_CALLS.replace('name = "name"', 'name = "title"') + GROUPS["members that are listed"][0],
            "no_group_name",
        ),
        (GROUP_CALLS + GROUPS["members that are listed"][0].replace("user.id", "person.id"), "no_members"),
    ],
)
async def test_check_tries_what_is_declared(token: Path, text: str, code: str) -> None:
    """A12: an account that is listed is read and found again, a group's members are read; what does not fit is named."""
    async with declared(token, text, paging="none") as (connector, product):
        (one,) = product.seed({"users": [{"login": "u@contoso.example"}]})["ids"]
        product.seed({"groups": [{"name": "Sales", "members": [one]}]})
        found = {finding.code: finding for finding in await connector.check()}
        assert found[code].level == "error"
        product.violations.clear()


# Kept lists -----------------------------------------------------------------------------------------------------------


async def test_one_reading_answers_many_look_ups_and_our_own_writes_are_in_it(token: Path) -> None:
    """Ten new people cost one reading of the list; who was made, renamed or removed by us is known without another."""
    scan = "identity.userName = { scan = true }"
    async with declared(token, scan, paging="none") as (connector, product):
        product.seed({"users": [{"login": f"u{n}@contoso.example"} for n in range(5)]})

        def reads() -> int:
            return sum(one["method"] == "GET" and one["path"] == "/api/users" for one in product.recorded())

        made = {}
        for n in range(10):
            login = f"new{n}@contoso.example"
            wish = connector.normalize(a_user(userName=login), Known())
            assert await connector.find(wish, [f"userName:{login}"], Delivery()) == []
            made[login] = await connector.create(wish, Delivery())
        assert reads() == 1

        async def found(login: str, ctx: Delivery | None = None) -> list[str]:
            wish = connector.normalize(a_user(userName=login), Known())
            return [one.account_id for one in await connector.find(wish, [f"userName:{login}"], ctx or Delivery())]

        first = made["new0@contoso.example"]
        assert await found("new0@contoso.example") == [first]
        await connector.update(
            first, connector.normalize(a_user(userName="moved@contoso.example"), Known()), Delivery()
        )
        assert await found("new0@contoso.example") == []
        assert await found("moved@contoso.example") == [first]
        await connector.delete(first, Delivery())
        assert await found("moved@contoso.example") == []
        assert reads() == 1
        product.seed({"users": [{"login": "late@contoso.example"}]})
        assert await found("late@contoso.example", Delivery(ambiguous=True)) != [], "in doubt the product is asked"
        assert reads() == 2
        product.fault("drop_response", method="POST", path="/api/users$", times=1)
        wish = connector.normalize(a_user(userName="lost@contoso.example"), Known())
        with pytest.raises(Unavailable):
            await connector.create(wish, Delivery())
        assert len(await found("lost@contoso.example")) == 1, "after a lost answer nothing that was read before counts"
        assert reads() == 3


async def test_a_kept_list_ends_by_itself_and_a_fresh_look_up_reads_anew() -> None:
    """The bound is time; those who ask together while nothing is kept share one reading; failures keep nothing."""
    now, loads, broken = [0.0], [0], [False]
    scanned = Scanned(clock=lambda: now[0])

    async def load() -> AsyncIterator[Row]:
        loads[0] += 1
        if broken[0]:
            raise Unavailable("The list broke off", code="incomplete_list")
        scanned.wrote("2", Row("2", (("userName", "b"),), {"id": 2}))
        yield Row("1", (("userName", "a"),), {"id": 1})

    a, b = ("userName", "a"), ("userName", "b")
    assert await scanned.find([a, b], load, fresh=False) == {a: [{"id": 1}], b: [{"id": 2}]}, "and what came meanwhile"
    now[0] += SCAN_KEEP_S
    await scanned.find([a], load, fresh=False)
    assert loads[0] == 1
    now[0] += 0.1
    await scanned.find([a], load, fresh=False)
    assert loads[0] == 2
    now[0] += 1
    await scanned.find([a], load, fresh=True)
    assert loads[0] == 3
    for failure in (Unavailable("x", code="x"), OSError()):
        with contextlib.suppress(Unavailable, OSError), scanned.in_doubt():
            raise failure
        await scanned.find([a], load, fresh=False)
    assert loads[0] == 5
    with contextlib.suppress(Rejected), scanned.in_doubt():
        raise Rejected("no")
    with contextlib.suppress(Gone), scanned.in_doubt("1"):
        raise Gone("gone")
    assert await scanned.find([a], load, fresh=False) == {a: []}
    assert loads[0] == 5
    broken[0] = True
    for _ in range(2):
        now[0] += 1
        with pytest.raises(ConnectorError):
            await scanned.find([a], load, fresh=True)
    assert loads[0] == 7


async def test_a_search_that_never_ends_is_the_settings_mistake(token: Path) -> None:
    """A product that looks at nothing would be read page after page for every person."""
    paging = (
        'paging = { way = "page", parameter = "page", size_parameter = "per_page", size = 1, total = "meta.total" }'
    )
    async with declared(token, paging, quirks=["likeness"], page_max=1) as (connector, product):
        product.seed({"users": [{"login": f"u@contoso.example{n}"} for n in range(25)]})
        with pytest.raises(Misconfigured) as endless:
            await connector.find(None, ["userName:u@contoso.example"], Delivery())
        assert endless.value.code == "too_many_hits"
