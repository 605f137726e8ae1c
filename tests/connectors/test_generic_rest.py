"""The connector for products that are declared in TOML: every option and every failure against the emulator over real HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors import registry
from connectors.contract import ComparesAccounts, Delivery, ListsAccounts
from connectors.declared import MANAGER
from connectors.generic_rest import Account, GenericRest
from connectors.rehearsal import Rehearsal, rehearsing, rehearsing_connector
from connectors.rest_settings import at, place, put
from connectors.transforms import transformed
from deploy.emulators.rest_service import RestServiceEmulator
from schemas.config import TargetSettings
from schemas.errors import (
    Blocked,
    Conflict,
    Gone,
    Misconfigured,
    NormalizationError,
    RateLimited,
    Rejected,
    Unavailable,
)
from schemas.resources import ENTERPRISE_SCHEMA, User
from schemas.specs import RateLimit
from schemas.states import Result
from tests.connectors import alone
from tests.connectors.alone import Known, Repeating, built, correctly_used, effects, secret_file, users
from workers.limits import CallLimit
from workers.targets import Served

OBJECT_ID = "8f1c0000-0000-0000-0000-000000000001"
OTHER_ID = "8f1c0000-0000-0000-0000-000000000002"
TOKEN = "demo-token-rest_service"
WORK = 'emails[type eq "work"].value'
MOBILE = 'phoneNumbers[type eq "mobile"].value'
DEPARTMENT = f"{ENTERPRISE_SCHEMA}:department"


def a_document(**document: Any) -> dict[str, Any]:
    return {
        "userName": "Ada@contoso.example",
        "externalId": OBJECT_ID,
        "active": True,
        "name": {"givenName": "Ada", "familyName": "Lovelace"},
        "emails": [{"type": "work", "value": "Ada@Contoso.example"}],
        "phoneNumbers": [{"type": "mobile", "value": "07400 123456"}],
        "userType": "Employee",
        "roles": [{"value": "agent"}, {"value": "lead"}],
        **document,
    }


def a_user(**document: Any) -> User:
    return User.from_document(a_document(**document))


ATTRIBUTES: dict[str, dict[str, Any]] = {
    "userName": {"field": "login", "required": True, "transforms": ["lower"]},
    "externalId": {"field": "external_id"},
    "name.givenName": {"field": "name.first", "required": True},
    "name.familyName": {"field": "/name/last"},
    WORK: {"field": "contact.email", "transforms": ["email"]},
    MOBILE: {"field": "contact.mobile", "transforms": ["mobile_plus"], "region": "GB"},
    "userType": {"field": "plan", "default": "basic", "values": {"Employee": "full", "Guest": "basic"}},
    "roles": {"field": "roles", "many": "list"},
}
ENDPOINTS: dict[str, dict[str, Any]] = {
    "list": {"path": "/users", "items": "data"},
    "find": {"path": "/users", "items": "data"},
    "read": {"path": "/users/{id}", "item": "data"},
    "create": {"path": "/users", "item": "data", "expect": [201]},
    "update": {"path": "/users/{id}", "item": "data"},
    "delete": {"path": "/users/{id}"},
}
BARE = {
    name: {key: value for key, value in call.items() if key not in ("item", "items")}
    for name, call in ENDPOINTS.items()
}
CALLS = {
    "endpoints": {
        **ENDPOINTS,
        "activate": {"path": "/users/{id}/enable", "item": "data"},
        "deactivate": {"path": "/users/{id}/disable", "item": "data"},
    },
    "active": {"way": "calls", "field": "status", "on": "enabled", "off": "disabled"},
}
RULES = [
    {"status": [409], "field": "error.code", "equals": ["login_taken"], "means": "conflict", "attribute": "userName"},
    {"status": [402], "means": "blocked", "on": "licence", "remedy": "Buy a seat or free one.", "retry_after_s": 60},
    {"status": [422], "field": "error.field", "contains": "EMAIL", "means": "rejected", "attribute": WORK},
]
HIDDEN = [
    {"field": "error.code", "equals": ["login_taken"], "means": "conflict", "attribute": "userName"},
    {"field": "error.code", "equals": ["no_user"], "means": "gone"},
    {"status": [200], "field": "success", "equals": [False], "means": "rejected"},
]
PAGES: dict[str, dict[str, Any]] = {
    "none": {"way": "none"},
    "page": {"way": "page", "parameter": "page", "size_parameter": "per_page", "size": 2, "total": "meta.total"},
    "offset": {"way": "offset", "parameter": "offset", "first": 0, "size_parameter": "limit", "size": 2},
    "cursor": {"way": "cursor", "parameter": "cursor", "next": "meta.next", "size_parameter": "limit", "size": 2},
    "next": {"way": "cursor", "parameter": "cursor", "next": "meta.next", "size_parameter": "limit", "size": 2},
    "link": {"way": "link", "size_parameter": "limit", "size": 2},
}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "partial": ({}, {}),
    "partial, nested objects replaced": ({}, {"quirks": ["shallow"]}),
    "replace": ({"update": "replace", "read_only": ["created_at", "updated_at"]}, {}),
    "without envelope": ({"endpoints": BARE, "paging": {"way": "none"}}, {"envelope": False, "paging": "none"}),
    "calls": (CALLS, {"states": "calls"}),
    "calls, unread": (
        {
            **CALLS,
            "active": {"way": "calls"},
            "endpoints": {k: v for k, v in CALLS["endpoints"].items() if k != "read"},
        },
        {"states": "calls"},
    ),
    "location": ({"id_from": "location"}, {"created": "location"}),
    "looked up": ({"id_from": "lookup"}, {"created": "empty"}),
    "by path": ({"identity": {"userName": {"path": "/users/by-login/{value}", "item": "data"}}}, {}),
    "scan": ({"identity": {"userName": {"scan": True}}}, {"quirks": ["ignores_filter"], "page_max": 2}),
    "scan, cursor": (
        {"identity": {"userName": {"scan": True}}, "paging": PAGES["cursor"]},
        {"paging": "cursor", "quirks": ["ignores_filter"]},
    ),
    "deactivate": ({"on_delete": "deactivate"}, {}),
    "deactivate by calls": ({**CALLS, "on_delete": "deactivate"}, {"states": "calls"}),
    "name and password": ({"way": "basic"}, {"auth": "basic"}),
    "a header": ({"way": "header"}, {"auth": "header"}),
    "switched on": ({}, {"quirks": ["switches_on"]}),
    "refusals with success": ({"errors": HIDDEN}, {"quirks": ["success_false"]}),
    "idempotency keys": ({"idempotency_header": "Idempotency-Key"}, {}),
}
"""Options of the connector, and the product they are for."""


def table(url: str = "https://crm.example.com", **options: Any) -> dict[str, Any]:
    """A target's settings as TOML gives them."""
    return {
        "base_url": f"{url}/api",
        "title": "CRM",
        "auth": {"token": {"env": "T"}},
        "active": {"way": "field", "field": "status", "on": "enabled", "off": "disabled"},
        "endpoints": ENDPOINTS,
        "attributes": ATTRIBUTES,
        "identity": {"userName": {"parameter": "login"}},
        "constants": {"source": "entra"},
        "paging": PAGES["page"],
        "errors": RULES,
        "message": "error.message",
        "allow_loopback": True,
        **options,
    }


def decoded(**options: Any) -> Any:
    return alone.decoded("rest", table(**options))


def problems_of(**options: Any) -> list[str]:
    """What is wrong with settings."""
    return alone.problems_of("rest", table(**options))


def offline(**options: Any) -> GenericRest:
    """A connector whose pure parts are under test."""
    return GenericRest(decoded(**options), registry.CallsNobody())


def bound(path: str, **binding: Any) -> dict[str, Any]:
    """The attributes with one bound otherwise, or added."""
    return {"attributes": {**ATTRIBUTES, path: {"field": "note", **binding}}}


def wish(connector: GenericRest | None = None, **document: Any) -> Account:
    return (connector or offline()).normalize(a_user(**document), Known())


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """The credential of the target."""
    return secret_file(tmp_path / "token", TOKEN)


@pytest.fixture
async def emulator() -> AsyncIterator[tuple[RestServiceEmulator, str]]:
    """A running product; what no correct client does fails the test."""
    async with correctly_used(RestServiceEmulator()) as used:
        yield used


@contextlib.asynccontextmanager
async def connected(url: str, token: Path, way: str = "bearer", **options: Any) -> AsyncIterator[GenericRest]:
    """The connector as a worker builds it."""
    secret = {"file": str(token)}
    auth: dict[str, Any] = {
        "bearer": {"token": secret},
        "basic": {"way": "basic", "username": "svc", "password": secret},
        "header": {"way": "header", "header": "X-Api-Key", "scheme": "", "token": secret},
    }[way]
    async with built("rest", table(url, auth=auth, **options), paced=True) as connector:
        yield connector


async def refusal(awaitable: Any) -> Any:
    """The connector error of a step that must fail; it never tells the credential."""
    return await alone.refusal(awaitable, TOKEN)


# Normalization --------------------------------------------------------------------------------------------------------


def test_values_take_the_products_form() -> None:
    """0.6: named transforms, tables of values, constants and lists, each in its field."""
    account = wish()
    assert account.fields == {
        "login": "ada@contoso.example",
        "external_id": OBJECT_ID,
        "name.first": "Ada",
        "/name/last": "Lovelace",
        "contact.email": "ada@contoso.example",
        "contact.mobile": "+447400123456",
        "plan": "full",
        "roles": ["agent", "lead"],
        "source": "entra",
    }
    assert offline().account_keys(account) == ("ada@contoso.example",)


@pytest.mark.parametrize(
    ("binding", "value", "made"),
    [
        ({}, " a ", "a"),
        ({"transforms": ["upper"]}, "straße", "STRASSE"),
        ({"transforms": ["ascii", "lower"]}, "Zoë Ångström", "zoe angstrom"),
        ({"transforms": ["nfc"]}, "e\u0301", "é"),
        ({"transforms": ["digits", "integer"]}, "Level 7", 7),
        ({"transforms": ["boolean"]}, "Yes", True),
        ({"transforms": ["identifier"]}, "Ops & QA", "Ops_QA"),
        ({"transforms": ["mobile"], "region": "GB"}, "(07400) 123-456", "447400123456"),
        ({"transforms": ["mobile"], "region": "GB", "extension": "drop"}, "07400 123456 ext. 4", "447400123456"),
        ({"values": {"a": 1, "B": 2}}, "b", 2),
        ({"values": {"a": 1}, "other": "keep"}, "z", "z"),
        ({"cleared": "empty"}, None, ""),
        ({}, None, None),
        ({}, "  ", None),
    ],
)
def test_each_step_does_what_its_name_says(binding: dict[str, Any], value: Any, made: Any) -> None:
    """0.6: the same rules as those of the connectors with code, for any attribute."""
    assert wish(offline(**bound("title", **binding)), title=value).fields["note"] == made


@pytest.mark.parametrize("binding", [{"cleared": "keep"}, {"values": {"a": 1}, "other": "drop", "cleared": "keep"}])
def test_a_value_may_be_left_as_it_is_there(binding: dict[str, Any]) -> None:
    """A4: neither written nor cleared."""
    value = "z" if "values" in binding else None
    assert "note" not in wish(offline(**bound("title", **binding)), title=value).fields


@pytest.mark.parametrize(
    ("path", "binding", "document", "code"),
    [
        ("title", {"required": True}, {}, "missing"),
        ("title", {"required": True}, {"title": " "}, "missing"),
        ("title", {"transforms": ["email"]}, {"title": "not an address"}, "bad_email"),
        ("title", {"transforms": ["mobile"]}, {"title": "07400123456"}, "no_country"),
        ("title", {"transforms": ["mobile"], "region": "GB"}, {"title": "07400 123456 ext. 4"}, "extension"),
        ("title", {"transforms": ["mobile"], "region": "GB"}, {"title": "0740"}, "impossible"),
        ("title", {"transforms": ["integer"]}, {"title": "seven"}, "bad_integer"),
        ("title", {"transforms": ["boolean"]}, {"title": "perhaps"}, "bad_boolean"),
        ("title", {"values": {"Engineer": 1}}, {"title": "Enginer"}, "unknown_value"),
    ],
)
def test_what_the_product_would_refuse_is_refused_before_any_call(
    path: str, binding: dict[str, Any], document: dict[str, Any], code: str
) -> None:
    """A2, A10: names the attribute and the remedy, and never shows a number or an address."""
    with pytest.raises(NormalizationError, match="CRM") as refused:
        wish(offline(**bound(path, **binding)), **document)
    assert (refused.value.code, refused.value.attribute) == (code, path)
    assert "07400" not in str(refused.value)
    assert "in Entra" in str(refused.value)
    assert code != "unknown_value" or "did you mean Engineer?" in str(refused.value)


def test_a_user_that_cannot_be_switched_off_there_is_refused() -> None:
    """A7: an acknowledged deactivation that nobody carries out would leave somebody in."""
    connector = GenericRest(_without_states(), registry.CallsNobody())
    assert wish(connector).active is True
    with pytest.raises(NormalizationError) as refused:
        wish(connector, active=False)
    assert refused.value.code == "cannot_deactivate"


def _without_states() -> Any:
    problems: list[str] = []
    plain = {name: value for name, value in table().items() if name != "active"}
    made = registry.decode_settings("rest", plain, "settings", problems)
    assert not problems, problems
    return made


def test_what_is_not_declared_is_reported_as_ignored() -> None:
    """A8: dropped, listed, never an error."""
    assert offline().ignored(a_user(title="x", **{ENTERPRISE_SCHEMA: {"department": "d"}})) == ("title", DEPARTMENT)


def test_several_values_can_be_joined() -> None:
    """Roles as one text, in order and without duplicates."""
    attributes = {**ATTRIBUTES, "roles": {"field": "note", "many": "joined", "separator": ","}}
    connector = offline(attributes=attributes)
    assert wish(connector, roles=["b", "a", "b"]).fields["note"] == "b,a"
    assert wish(connector, roles=None).fields["note"] == ""


TEXTS = st.none() | st.text(max_size=12) | st.sampled_from(["+44 7400 123456", "a@b.example", "7", '[{"value": "x"}]'])
ANYTHING = st.recursive(
    TEXTS | st.booleans() | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
STEPS = [
    "lower",
    "upper",
    "nfc",
    "ascii",
    "digits",
    "email",
    "mobile",
    "mobile_plus",
    "identifier",
    "integer",
    "boolean",
]
URN = "urn:example:params:scim:schemas:extension:crm:2.0:User"


@settings(deadline=None, max_examples=100)
@given(
    document=st.fixed_dictionaries(
        {"userName": st.text(max_size=12)},
        optional={
            **dict.fromkeys(("externalId", "displayName", "title", "userType"), TEXTS),
            "active": st.booleans(),
            "name": st.dictionaries(st.sampled_from(["givenName", "familyName"]), TEXTS),
            "emails": st.lists(st.fixed_dictionaries({"type": st.just("work")}, optional={"value": TEXTS}), max_size=2),
            "phoneNumbers": st.lists(st.fixed_dictionaries({"type": st.just("mobile"), "value": TEXTS}), max_size=2),
            "roles": st.lists(st.text(max_size=9) | st.fixed_dictionaries({"value": TEXTS}), max_size=3),
            URN: st.dictionaries(st.sampled_from(["x", "X"]), ANYTHING, max_size=2),
        },
    ),
    steps=st.lists(st.sampled_from(STEPS), max_size=3),
    many=st.sampled_from(["one", "list", "joined"]),
)
def test_no_input_crashes_normalize_and_its_result_is_json(
    document: dict[str, Any], steps: list[str], many: str
) -> None:
    """0.6: NormalizationError or an account, the same one each time; what it holds can be sent."""
    extra = {f"{URN}:x": {"field": "note", "transforms": steps, "many": many}}
    connector = offline(attributes={**ATTRIBUTES, **extra})
    user = User.from_document(document)
    connector.ignored(user)
    try:
        account = connector.normalize(user, Known())
    except NormalizationError:
        return
    assert connector.normalize(user, Known()) == account
    assert msgspec.json.decode(msgspec.json.encode(account.fields)) == account.fields
    assert connector._key("userName", account.keys["userName"].casefold())


@given(value=st.text(max_size=20), step=st.sampled_from(STEPS))
def test_a_step_refuses_or_makes_a_plain_value(value: str, step: Any) -> None:
    """0.6: nothing but NormalizationError is raised, and its sentence never holds the value."""
    try:
        made = transformed(step, value, region="GB")
    except NormalizationError:
        return
    assert isinstance(made, (str, int, bool))


PLACES = st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=4)


@given(parts=PLACES, value=st.integers())
def test_what_is_put_at_a_pointer_is_read_there(parts: list[str], value: int) -> None:
    """RFC 6901 section 3: any name can be pointed to, `~` and `/` escaped."""
    pointer = "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)
    body: dict[str, Any] = {parts[0]: "in the way"}
    put(body, pointer, value)
    assert place(pointer) == tuple(parts)
    assert at(body, pointer) == value
    assert at(body, f"{pointer}/x") is None


@given(
    kinds=st.lists(st.sampled_from(["work", "home", "mobile"]), max_size=4),
    chosen=st.sampled_from(["work", "Home", "fax"]),
    value=st.none() | st.text(min_size=1, max_size=4),
)
def test_a_choice_from_a_list_changes_one_entry_and_no_other(kinds: list[str], chosen: str, value: str | None) -> None:
    """Telephone numbers of other kinds belong to somebody else's care, and what was read before is not changed in place."""
    entries = [{"type": kind, "n": str(number)} for number, kind in enumerate(kinds)]
    body: dict[str, Any] = {"phones": [dict(entry) for entry in entries]}
    before, field = body["phones"], f"phones[type={chosen}].n"
    put(body, field, value)
    first = next((n for n, kind in enumerate(kinds) if kind.casefold() == chosen.casefold()), None)
    others = [entry for number, entry in enumerate(entries) if number != first]
    assert before == entries
    assert [one for one in body["phones"] if one in others] == others
    assert len(body["phones"]) == len(others) + (value is not None)
    assert value is None or at(body, field) == value
    once = deepcopy(body)
    if value is not None:
        put(body, field, value)
    assert body == once


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"endpoints": {**ENDPOINTS, "craete": {"path": "/x"}}},
            "settings.endpoints.craete: not a setting of REST product; did you mean create?",
        ),
        ({"endpoints": {**ENDPOINTS, "read": {"path": "/users"}}}, "settings.endpoints.read.path: must hold {id}"),
        (
            {"endpoints": {**ENDPOINTS, "list": {"path": "/users/{id}"}}},
            "settings.endpoints.list.path: must not hold {id}",
        ),
        (
            {"endpoints": {**ENDPOINTS, "read": {"path": "/users/{userName}"}}},
            "settings.endpoints.read.path: {userName} is not known",
        ),
        (
            {"endpoints": {**ENDPOINTS, "list": {"path": "/users?x=1"}}},
            "settings.endpoints.list.path: must begin with /",
        ),
        ({"endpoints": {**ENDPOINTS, "list": {"path": "/a/../b"}}}, "settings.endpoints.list.path: must begin with /"),
        (
            {"endpoints": {**ENDPOINTS, "create": {"path": "/u", "method": "GET"}}},
            "settings.endpoints.create.method: must not be GET",
        ),
        (
            {"endpoints": {**ENDPOINTS, "create": {"path": "/u", "metod": "PUT"}}},
            "settings.endpoints.create.metod: not a setting of REST product; did you mean method?",
        ),
        (
            {"endpoints": {k: v for k, v in ENDPOINTS.items() if k != "delete"}},
            "settings.endpoints.delete: missing; on_delete",
        ),
        (
            {"endpoints": {k: v for k, v in ENDPOINTS.items() if k != "read"}, "update": "replace"},
            "settings.endpoints.read: missing",
        ),
        (
            {"endpoints": {k: v for k, v in ENDPOINTS.items() if k != "find"}},
            "settings.identity.userName.parameter: needs endpoints.find",
        ),
        ({"active": {"way": "calls"}}, "settings.endpoints.activate: missing"),
        ({"active": {"way": "field"}}, "settings.active.field: missing"),
        ({"active": {"field": "status", "on": "x", "off": "X"}}, "settings.active.off: must differ"),
        (
            {"identity": {"username": {"parameter": "l"}}},
            "settings.identity.username: is not among attributes; did you mean userName?",
        ),
        (
            {"identity": {"userName": {"parameter": "l", "scan": True}}},
            "settings.identity.userName.parameter: needs exactly one",
        ),
        ({"identity": {"roles": {"scan": True}}}, "settings.identity.roles: has several values"),
        ({"identity": {}}, "settings.identity: missing"),
        (
            {"attributes": {**ATTRIBUTES, "displayNam": {"field": "x"}}},
            "settings.attributes.displayNam: is not a SCIM attribute of users; did you mean displayName?",
        ),
        (
            {"attributes": {**ATTRIBUTES, "active": {"field": "x"}}},
            "settings.attributes.active: is told in the table active",
        ),
        (bound("title", field="source"), "settings.attributes.title.field: is written by constants.source too"),
        (bound("title", field="name"), "settings.attributes.title.field: is written by attributes.name.givenName too"),
        (bound("title", field="emails.0.value"), "settings.attributes.title.field: points into a list"),
        (
            bound("title", transforms=["lowr"]),
            "settings.attributes.title.transforms: Invalid enum value 'lowr'; did you mean lower?",
        ),
        (
            bound("title", transforms=["mobile"], region="UK"),
            "settings.attributes.title.region: 'UK' is not an ISO country code",
        ),
        (bound("title", region="GB"), "settings.attributes.title.region: means nothing"),
        (bound("roles", field="note"), "settings.attributes.roles.many: users may have several roles"),
        (bound(MANAGER, transforms=["lower"]), f"settings.attributes.{MANAGER}: is an id of the product"),
        ({"errors": [{"means": "conflict"}]}, "settings.errors[0].status: missing"),
        (
            {"errors": [*RULES, {"means": "conflikt", "status": [409]}]},
            "settings.errors[3].means: Invalid enum value 'conflikt'; did you mean conflict?",
        ),
        ({"errors": [{"means": "blocked", "status": [402]}]}, "settings.errors[0].on: goes together"),
        (
            {"errors": [{"means": "done", "status": [409], "calls": ["create"]}]},
            "settings.errors[0].means: done needs calls",
        ),
        ({"errors": [{"means": "rejected", "status": [200]}]}, "settings.errors[0].status: a success is an error only"),
        ({"paging": {"way": "page"}}, "settings.paging.parameter: missing"),
        ({"paging": {"way": "cursor", "parameter": "c"}}, "settings.paging.next: missing"),
        ({"headers": {"Authorization": "x"}}, "settings.headers.Authorization: is not set here"),
        ({"headers": {"X-A": "a\r\nb"}}, "settings.headers.X-A: must be plain text"),
        ({"base_url": "https://10.0.0.1/api"}, "settings.base_url: leads to a private"),
    ],
)
def test_every_mistake_is_told_with_its_place(options: dict[str, Any], said: str) -> None:
    """Path first, with the nearest valid name."""
    problems = problems_of(**options)
    assert any(problem.startswith(said) for problem in problems), problems


def test_all_mistakes_are_reported_at_once() -> None:
    """Nobody has to start the system five times."""
    problems = problems_of(
        endpoints={**ENDPOINTS, "read": {"path": "/x"}, "lst": {"path": "/x"}},
        attributes={"userName": {"feld": "login"}},
        errors=[{"status": [1]}],
        paging={"way": "pages"},
    )
    assert {problem.partition(":")[0] for problem in problems} >= {
        "settings.endpoints.lst",
        "settings.attributes.userName.feld",
        "settings.attributes.userName.field",
        "settings.errors[0].status",
        "settings.errors[0].means",
        "settings.paging.way",
    }


def test_the_declaration_of_a_target_follows_its_settings() -> None:
    """What /Schemas, the console and the limits of the workers are made from."""
    spec = GenericRest.spec_for(decoded(rate_limit={"calls": 3, "per_s": 2}, on_delete="deactivate", concurrency_max=2))
    assert (spec.title, spec.rate_limit, spec.on_delete) == ("CRM", RateLimit(calls=3, per_s=2.0), "deactivate")
    assert {attribute.path: attribute.field for attribute in spec.attributes}["name.familyName"] == "/name/last"
    assert [attribute.path for attribute in spec.attributes if attribute.required] == ["userName", "name.givenName"]
    assert (spec.identity, spec.concurrency_max, spec.has_groups) == (("userName",), 2, False)


def test_a_worker_keeps_the_limit_of_the_target_and_says_what_it_is(token: Path) -> None:
    """A11: the limit is the target's, so is the declaration the gateway makes /Schemas from; secrets lie beside the file."""
    auth = {"way": "header", "header": "X-Api-Key", "scheme": "", "token": {"file": token.name}}
    configured = TargetSettings(connector="rest", settings=table(auth=auth, rate_limit={"calls": 2, "per_s": 5.0}))

    async def before_call(limit: CallLimit) -> None:
        await limit.wait()

    served = Served("crm", configured, token.parent, concurrency_max=99, before_call=before_call)

    presence = served.presence()
    assert presence.problems == ()
    assert presence.spec is not None
    assert (presence.spec.title, presence.spec.rate_limit) == ("CRM", RateLimit(calls=2, per_s=5.0))
    assert served.concurrency == 8
    assert (served.limit._calls, served.limit._per_s > 5.0) == (2, True)
    assert TOKEN not in repr(served.settings)


# Users ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_life_in_every_shape(emulator: Any, token: Path, shape: str) -> None:
    """Create, find, change, clear, switch off and on, delete; what people wrote there stays, nobody else is touched."""
    product, url = emulator
    options, habits = SHAPES[shape]
    product.set(**{"paging": options.get("paging", PAGES["page"])["way"], **habits})
    product.seed({"users": [{"login": f"other{n}@contoso.example", "note": "x"} for n in range(5)]})
    others = users(product)
    async with connected(url, token, **options) as connector:
        gateway = Repeating(connector)
        created = await gateway.settle(a_document())
        assert (created.result, created.created) == (Result.APPLIED, True), created.reason
        held = product.state()["users"][gateway.account_id]
        assert (held["login"], held["plan"], held["roles"]) == ("ada@contoso.example", "full", ["agent", "lead"])
        assert (held["contact"]["mobile"], held["source"]) == ("+447400123456", "entra")
        seen = await connector.find(None, ["userName:ada@contoso.example", "userName:nobody@x.example"], Delivery())
        assert [found.account_id for found in seen] == [gateway.account_id]
        noted = {**held, "note": "kept by people", "contact": {**held["contact"], "pager": "77"}}
        product.control("by_hand", [("users", held["id"], noted)])
        changed = a_document(
            name={"givenName": "Ada", "familyName": None},
            phoneNumbers=[{"type": "mobile", "value": "+49 1512 3456789"}],
            roles=["agent"],
        )
        assert (await gateway.settle(changed)).result is Result.APPLIED
        held = product.state()["users"][gateway.account_id]
        assert (held["name"], held["roles"]) == ({"first": "Ada", "last": None}, ["agent"])
        assert held["contact"]["mobile"] == "+4915123456789"
        assert (held["note"], held["contact"]["pager"]) == ("kept by people", "77")
        before = len(effects(product))
        assert (await gateway.settle(changed)).result is Result.APPLIED
        assert len(effects(product)) == before or "unread" in shape, "the same wish again sends nothing"
        for active, status in ((False, "disabled"), (True, "enabled")):
            assert (await gateway.settle({**changed, "active": active})).result is Result.APPLIED
            assert product.state()["users"][gateway.account_id]["status"] == status
        for _ in range(2):
            assert (await gateway.settle(changed, deleted=True)).result is Result.APPLIED
        left = product.state()["users"].get(gateway.account_id)
        assert left is None if options.get("on_delete") != "deactivate" else left["status"] == "disabled"
    assert [one for one in users(product) if one["id"] != gateway.account_id] == others


@pytest.mark.parametrize("shape", ["partial", "calls", "switched on", "deactivate"])
async def test_a_new_user_may_be_inactive(emulator: Any, token: Path, shape: str) -> None:
    """A7: nobody is let in because the product switches new accounts on."""
    product, url = emulator
    options, habits = SHAPES[shape]
    product.set(**habits)
    async with connected(url, token, **options) as connector:
        await connector.create(wish(connector, active=False), Delivery())
    assert [user["status"] for user in users(product)] == ["disabled"]


async def test_defaults_are_for_new_accounts_and_fixed_fields_never_change(emulator: Any, token: Path) -> None:
    """A default is what Entra does not say; a field of write = create is refused as a rename, and told otherwise."""
    product, url = emulator
    attributes = {
        **ATTRIBUTES,
        "userName": {**ATTRIBUTES["userName"], "write": "create"},
        "title": {"field": "note", "write": "create"},
    }
    async with connected(url, token, attributes=attributes) as connector:
        account_id = await connector.create(wish(connector, userType=None, title="first"), Delivery())
        assert users(product)[0]["plan"] is None
        ctx = Delivery()
        await connector.update(account_id, wish(connector, title="second"), ctx)
        assert (users(product)[0]["note"], len(ctx.warnings)) == ("first", 1)
        error = await refusal(connector.update(account_id, wish(connector, userName="b@contoso.example"), Delivery()))
        assert (error.code, error.attribute) == ("cannot_rename", "userName")
        document = {k: v for k, v in a_document(userName="c@contoso.example").items() if k != "userType"}
        await connector.create(connector.normalize(User.from_document(document), Known()), Delivery())
    assert [user["plan"] for user in users(product)] == ["full", "basic"]


async def test_a_manager_is_sent_by_the_products_id_once_there_is_one(emulator: Any, token: Path) -> None:
    """Rule W: everything else is applied at once; the reference follows when the manager has an account, and can be cleared."""
    product, url = emulator
    (boss,) = product.seed({"users": [{"login": "boss@contoso.example"}]})["ids"]
    async with connected(url, token, attributes={**ATTRIBUTES, MANAGER: {"field": "manager_id"}}) as connector:
        account = wish(connector, **{ENTERPRISE_SCHEMA: {"manager": {"value": "r-boss"}}})
        waiting = Delivery()
        account_id = await connector.create(account, waiting)
        assert (product.state()["users"][account_id]["manager_id"], waiting.unresolved) == (None, ["r-boss"])
        for _ in range(2):
            await connector.update(account_id, account, Delivery(accounts={"r-boss": boss}))
            assert product.state()["users"][account_id]["manager_id"] == boss
        assert effects(product) == ["create", "update"]
        await connector.update(account_id, wish(connector, **{ENTERPRISE_SCHEMA: {"manager": None}}), Delivery())
        assert product.state()["users"][account_id]["manager_id"] is None


async def test_the_list_shows_what_is_compared(emulator: Any, token: Path) -> None:
    """Drift is seen without a read per user: as wished nothing differs, and a change by hand shows at its path."""
    product, url = emulator
    async with connected(url, token) as connector:
        assert isinstance(connector, ComparesAccounts)
        account = wish(connector, name={"givenName": "Ada", "familyName": None})
        await connector.create(account, Delivery())
        expected = connector.expected(account)
        ((listed,), _) = await connector.list_accounts(None)
        assert set(expected.identities) <= set(listed["identities"])
        assert (expected.owner, listed["owner"], listed["active"]) == (OBJECT_ID, OBJECT_ID, True)
        assert {path: listed["values"].get(path) for path in expected.values} == expected.values
        (held,) = users(product)
        by_hand = {**held, "plan": "x", "roles": ["lead", "agent", "other"], "name": {"first": "ada", "last": None}}
        product.control("by_hand", [("users", held["id"], by_hand)])
        ((listed,), _) = await connector.list_accounts(None)
        differing = {path for path, value in expected.values.items() if listed["values"].get(path) != value}
        assert differing == {"userType", "roles", "name.givenName"}
        product.set(quirks=["bare_list"])
        ((listed,), _) = await connector.list_accounts(None)
    assert set(listed["values"]) == {"name.givenName", "name.familyName"}, "what the list does not show is not compared"


@pytest.mark.parametrize("shape", ["partial", "replace", "calls", "location", "looked up", "without envelope"])
async def test_a_declared_product_is_rehearsed_to_the_end(emulator: Any, token: Path, shape: str) -> None:
    """A dry run shows the calls a delivery would make, for a new account and a held one, and nothing is written."""
    product, url = emulator
    options, habits = SHAPES[shape]
    product.set(**{"paging": options.get("paging", PAGES["page"])["way"], **habits})
    made = decoded(url=url, auth={"token": {"file": str(token)}}, **options)
    real, http = registry.build("rest", made)
    assert http is not None
    connector: Any = rehearsing_connector(type(real), made, http)
    for wished in ({}, {"active": False}):
        with rehearsing(Rehearsal()) as rehearsal:
            outcome = await Repeating(connector).send(a_document(**wished))
        assert (outcome.result, outcome.created) == (Result.APPLIED, True), outcome.reason
        assert rehearsal.calls[0].method == "POST"
    (account_id,) = product.seed({"users": [{"login": "ada@contoso.example"}]})["ids"]
    gateway = Repeating(connector)
    gateway.account_id = account_id
    with rehearsing(Rehearsal()) as rehearsal:
        assert (await gateway.send(a_document(active=False))).result is Result.APPLIED
    assert rehearsal.calls
    assert effects(product) == []
    await http.close()


async def test_a_lost_answer_to_a_create_makes_no_second_account(emulator: Any, token: Path) -> None:
    """A3: look before creating, always."""
    product, url = emulator
    product.fault("drop_response", method="POST", path="/api/users", times=1)
    async with connected(url, token) as connector:
        gateway = Repeating(connector)
        first = await gateway.send(a_document())
        assert (first.result, first.ambiguous) == (Result.RETRY, True)
        assert (await gateway.settle(a_document())).result is Result.APPLIED
    assert effects(product).count("create") == 1


async def test_a_write_carries_its_key_where_the_product_knows_one(emulator: Any, token: Path) -> None:
    """A3: the same key for all redeliveries, one per call."""
    product, url = emulator
    async with connected(url, token, idempotency_header="Idempotency-Key") as connector:
        for _ in range(2):
            await connector.create(wish(connector), Delivery(idempotency_key="e-1"))
    assert effects(product) == ["create"]
    assert {line["idempotency_key"] for line in product.recorded() if line["method"] == "POST"} == {"e-1:create"}


async def test_an_account_that_appears_between_look_and_create_is_linked(emulator: Any, token: Path) -> None:
    """0.4 class U: a declared conflict is looked up, reported, and adopted by the gateway."""
    product, url = emulator
    product.seed({"users": [{"login": "ADA@contoso.example"}]})
    product.fault("stale_read", method="GET", path="/api/users$", lag_s=60, times=1)
    async with connected(url, token) as connector:
        gateway = Repeating(connector)
        first = await gateway.send(a_document())
        assert first.reason is not None
        assert (first.result, first.reason.code) == (Result.RETRY, "already_there")
        assert (await gateway.settle(a_document())).result is Result.APPLIED
    assert len(users(product)) == 1


async def test_an_account_of_another_person_is_refused_or_adopted_as_set(emulator: Any, token: Path) -> None:
    """An account that carries another externalId belongs to somebody; `foreign` says whether that counts."""
    product, url = emulator
    product.seed({"users": [{"login": "ada@contoso.example", "external_id": OTHER_ID}]})
    async with connected(url, token) as connector:
        outcome = await Repeating(connector).settle(a_document())
        assert outcome.reason is not None
        assert (outcome.result, outcome.reason.code) == (Result.REJECTED, "account_of_another")
        error = await refusal(connector.create(wish(connector), Delivery()))
        assert (type(error), error.code) == (Conflict, "account_of_another")
    async with connected(url, token, foreign="adopt") as connector:
        assert (await Repeating(connector).settle(a_document())).result is Result.APPLIED
    assert [user["external_id"] for user in users(product)] == [OBJECT_ID]


async def test_a_rename_to_a_taken_login_is_a_conflict(emulator: Any, token: Path) -> None:
    """A declared error keeps the product's sentence and names the attribute."""
    product, url = emulator
    ids = product.seed({"users": [{"login": "a@contoso.example"}, {"login": "ada@contoso.example"}]})["ids"]
    async with connected(url, token) as connector:
        error = await refusal(connector.update(ids[0], wish(connector), Delivery()))
    assert (type(error), error.attribute) == (Conflict, "userName")
    assert "This login is taken" in str(error)


async def test_declared_errors_are_sorted_by_what_happens_next(emulator: Any, token: Path) -> None:
    """0.4: the product's own codes become our classes, with the remedy of the settings and the product's sentence cleaned."""
    product, url = emulator
    product.set(seats=0)
    async with connected(url, token) as connector:
        error = await refusal(connector.create(wish(connector), Delivery()))
        assert (type(error), error.on, error.retry_after_s) == (Blocked, "licence", 60)
        assert "There is no free seat" in str(error)
        assert str(error).endswith("Buy a seat or free one.")
        product.set(seats=None)
        said = {"error": {"field": "contact.email", "message": f"ada@contoso.example {TOKEN} " + "x" * 400}}
        product.fault("status", method="POST", status=422, body=said, times=1)
        error = await refusal(connector.create(wish(connector), Delivery()))
        assert (type(error), error.attribute) == (Rejected, WORK)
        assert "ada@" not in str(error)
        assert len(str(error)) < 350


@pytest.mark.parametrize(
    ("means", "kind"),
    [
        ("rejected", Rejected),
        ("conflict", Conflict),
        ("transient", Unavailable),
        ("rate_limited", RateLimited),
        ("misconfigured", Misconfigured),
        ("gone", Gone),
    ],
)
async def test_each_meaning_is_raised(emulator: Any, token: Path, means: str, kind: type[Exception]) -> None:
    """A status means what the settings say, before it means what it usually does."""
    product, url = emulator
    rule = {"status": [418], "field": "error.code", "contains": "TEA", "means": means}
    product.fault(
        "status", method="PATCH", status=418, body={"error": {"code": "teapot"}}, headers={"Retry-After": "9"}
    )
    (account_id,) = product.seed({"users": [{"login": "ada@contoso.example"}]})["ids"]
    async with connected(url, token, errors=[rule]) as connector:
        error = await refusal(connector.update(account_id, wish(connector), Delivery()))
    assert type(error) is kind
    assert getattr(error, "retry_after_s", 9) == 9


async def test_a_refusal_under_a_success_is_one(emulator: Any, token: Path) -> None:
    """Products that answer 200 with `success` false are not believed."""
    product, url = emulator
    product.set(quirks=["success_false"], seats=0)
    async with connected(url, token, errors=HIDDEN) as connector:
        error = await refusal(connector.create(wish(connector), Delivery()))
    assert (type(error), error.code) == (Rejected, "declared_refusal")
    assert "There is no free seat" in str(error)
    async with connected(url, token, errors=[]) as connector:
        error = await refusal(connector.create(wish(connector), Delivery()))
    assert error.code == "unexpected_status", "and without a rule it is no account either"


async def test_done_means_that_nothing_is_left_to_do(emulator: Any, token: Path) -> None:
    """0.4 class D: an answer that says "already so" is a success."""
    product, url = emulator
    product.fault("status", method="DELETE", status=409, body={"error": {"code": "deleted_already"}})
    rule = {"status": [409], "calls": ["delete"], "means": "done"}
    async with connected(url, token, errors=[rule]) as connector:
        await connector.delete("1001", Delivery())


async def test_an_unexpected_success_is_looked_at_again(emulator: Any, token: Path) -> None:
    """A status that is not declared may mean that the write is only planned."""
    product, url = emulator
    product.fault("status", method="POST", status=202, body={"data": {"id": 7}})
    async with connected(url, token) as connector:
        error = await refusal(connector.create(wish(connector), Delivery()))
    assert (type(error), error.code, error.ambiguous) == (Unavailable, "unexpected_status", True)


async def test_a_deactivation_that_the_product_ignores_is_not_reported_as_done(emulator: Any, token: Path) -> None:
    """A product that answers success and leaves the account switched on must not be believed."""
    product, url = emulator
    product.set(quirks=["ignores_status"])
    (account_id,) = product.seed({"users": [{"login": "ada@contoso.example"}]})["ids"]
    async with connected(url, token, on_delete="deactivate") as connector:
        for step in (
            connector.update(account_id, wish(connector, active=False), Delivery()),
            connector.delete(account_id, Delivery()),
        ):
            assert (await refusal(step)).code == "not_deactivated"


async def test_an_account_that_is_gone_is_gone(emulator: Any, token: Path) -> None:
    """A6: update says so, delete and deactivate are done."""
    _, url = emulator
    async with connected(url, token) as connector:
        assert isinstance(await refusal(connector.update("gone", wish(connector), Delivery())), Gone)
        await connector.delete("gone", Delivery())
    async with connected(url, token, on_delete="deactivate") as connector:
        await connector.delete("gone", Delivery())


@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        ({"kind": "rate_limit", "retry_after": 7}, RateLimited, "rate_limited"),
        ({"kind": "rate_limit", "retry_after": "Wed, 21 Oct 2099 07:28:00 GMT"}, RateLimited, "rate_limited"),
        ({"kind": "html"}, Unavailable, "bad_gateway"),
        ({"kind": "status", "status": 200, "body": "<html>"}, Unavailable, "malformed"),
        ({"kind": "status", "status": 200, "body": {"users": []}}, Unavailable, "malformed"),
        ({"kind": "status", "status": 200, "body": {"data": [7]}}, Unavailable, "malformed"),
        ({"kind": "status", "status": 200, "body": {"data": [{"id": 1}]}}, Misconfigured, "no_identity_field"),
        ({"kind": "status", "status": 503}, Unavailable, "service_unavailable"),
        ({"kind": "status", "status": 404}, Misconfigured, "wrong_address"),
        ({"kind": "auth"}, Misconfigured, "unauthorized"),
        ({"kind": "reset"}, Unavailable, "connection_lost"),
    ],
)
async def test_failures_are_sorted_by_what_happens_next(
    emulator: Any, token: Path, fault: dict[str, Any], kind: type[Exception], code: str
) -> None:
    """0.4, A11: one class each; the two forms of Retry-After are both read; no list is not an empty list."""
    product, url = emulator
    product.fault(fault.pop("kind"), **fault)
    async with connected(url, token) as connector:
        error = await refusal(connector.find(wish(connector), ["userName:ada@contoso.example"], Delivery()))
    assert (type(error), error.code) == (kind, code)
    if kind is RateLimited:
        assert error.retry_after_s == 7 or error.retry_after_s >= 3_600


async def test_unicode_goes_there_and_back_and_no_value_leaves_its_place_in_an_address(
    emulator: Any, token: Path
) -> None:
    """S9: what is looked up is encoded whole, in a parameter and in a path; slashes and dots lead nowhere else."""
    product, url = emulator
    whole = "zoë+ł/../🦉&x=1#?%2f@contoso.example"
    plain = whole.replace("/", "")  # the emulator's web server undoes %2F before it looks for the path
    for name, identity in (
        (whole, {"parameter": "login"}),
        (plain, {"path": "/users/by-login/{value}", "item": "data"}),
    ):
        async with connected(url, token, identity={"userName": identity}) as connector:
            gateway = Repeating(connector)
            assert (await gateway.settle(a_document(userName=name))).result is Result.APPLIED
            found = await connector.find(None, [f"userName:{name}"], Delivery())
            assert [one.account_id for one in found] == [gateway.account_id]
    assert [user["login"] for user in users(product)] == [whole, plain]


# Lists ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_max", [2, 3, 100])
@pytest.mark.parametrize("way", PAGES)
async def test_accounts_are_listed_page_by_page(emulator: Any, token: Path, way: str, page_max: int) -> None:
    """Reconciliation sees every account once, in every way of paging; addresses of the next page are never followed."""
    product, url = emulator
    product.set(paging=way, page_max=page_max)
    product.seed(
        {"users": [{"login": f"U{n}@contoso.example", "status": ("enabled", "disabled")[n % 2]} for n in range(7)]}
    )
    listed: list[dict[str, Any]] = []
    cursor: str | None = None
    async with connected(url, token, paging=PAGES[way]) as connector:
        assert isinstance(connector, ListsAccounts)
        for _ in range(9):
            page, cursor = await connector.list_accounts(cursor)
            listed += page
            if cursor is None:
                break
    assert cursor is None
    assert [one["identities"] for one in listed] == [(f"userName:u{n}@contoso.example",) for n in range(7)]
    assert [one["active"] for one in listed] == [n % 2 == 0 for n in range(7)]


async def test_pages_shorter_than_asked_for_are_not_the_end(emulator: Any, token: Path) -> None:
    """A product may give less than was asked for; only an empty page, or the number of all accounts, ends a list."""
    product, url = emulator
    product.set(page_max=3)
    product.seed({"users": [{"login": f"u{n}@contoso.example"} for n in range(8)]})
    paging = {**PAGES["page"], "size": 5}
    async with connected(url, token, paging=paging, identity={"userName": {"scan": True}}) as connector:
        assert len(await connector.find(None, ["userName:u7@contoso.example"], Delivery())) == 1


@pytest.mark.parametrize("way", ["page", "offset"])
async def test_a_product_that_repeats_its_first_page_is_left(emulator: Any, token: Path, way: str) -> None:
    """A list that never moves on must not be read for ever."""
    product, url = emulator
    product.set(paging=way, quirks=["repeats_page"])
    product.seed({"users": [{"login": f"u{n}@contoso.example"} for n in range(5)]})
    paging = {name: value for name, value in PAGES[way].items() if name != "total"}
    async with connected(url, token, paging=paging, identity={"userName": {"scan": True}}) as connector:
        assert await connector.find(None, ["userName:nobody@contoso.example"], Delivery()) == []
    assert len(product.recorded()) == 2


async def test_a_cursor_that_leads_to_itself_ends_the_list(emulator: Any, token: Path) -> None:
    """The same bound for products that page by cursor."""
    product, url = emulator
    product.set(paging="cursor")
    product.fault("status", method="GET", status=200, body={"data": [{"id": 1, "login": "a"}], "meta": {"next": "x"}})
    async with connected(url, token, paging=PAGES["cursor"], identity={"userName": {"scan": True}}) as connector:
        await connector.find(None, ["userName:nobody@contoso.example"], Delivery())
    assert len(product.recorded()) == 2


async def test_a_product_without_a_list_says_so() -> None:
    """Reconciliation is told, and the declaration does not promise it."""
    endpoints = {name: call for name, call in ENDPOINTS.items() if name != "list"}
    connector = offline(endpoints=endpoints, paging={"way": "none"})
    assert GenericRest.spec_for(connector.settings).capabilities == ()
    assert (await refusal(connector.list_accounts(None))).code == "cannot_list"


# Check ----------------------------------------------------------------------------------------------------------------


async def test_a_fitting_target_has_nothing_to_say(emulator: Any, token: Path) -> None:
    """A12: address and credentials are proven, nothing is written."""
    product, url = emulator
    product.seed({"users": [{"login": "u@contoso.example"}]})
    async with connected(url, token) as connector:
        findings = await connector.check()
    assert [(finding.level, finding.code) for finding in findings] == [("ok", "reachable")]
    assert effects(product) == []


@pytest.mark.parametrize(
    ("habits", "options", "code", "level"),
    [
        ({"quirks": ["ignores_filter"]}, {}, "parameter_ignored", "error"),
        ({}, {"id": "uuid"}, "no_id", "error"),
        ({}, bound("title", field="notes"), "unknown_field", "warning"),
        ({}, {"attributes": {**ATTRIBUTES, "userName": {"field": "logn", "required": True}}}, "no_identity", "error"),
        ({}, {"active": {"field": "status", "on": "active", "off": "inactive"}}, "unknown_state", "error"),
        (
            {},
            {"endpoints": {k: v for k, v in ENDPOINTS.items() if k != "list"}, "paging": {"way": "none"}},
            "cannot_list",
            "warning",
        ),
    ],
)
async def test_settings_that_do_not_fit_the_product_are_found(
    emulator: Any, token: Path, habits: dict[str, Any], options: dict[str, Any], code: str, level: str
) -> None:
    """A12: declared fields are compared with what accounts show; a parameter that is not looked at would hide everybody."""
    product, url = emulator
    product.seed({"users": [{"login": "u@contoso.example"}]})
    product.set(**habits)
    async with connected(url, token, **options) as connector:
        findings = {finding.code: finding for finding in await connector.check()}
    assert findings[code].level == level
    assert code != "unknown_field" or "did you mean note?" in findings[code].message


async def test_an_account_without_the_field_it_is_known_by_is_never_taken_for_nobody(
    emulator: Any, token: Path
) -> None:
    """A3: a look-up that shows ids only could not tell anybody apart; a create after it would make a second account."""
    product, url = emulator
    product.set(quirks=["bare_list"])
    product.seed({"users": [{"login": "ada@contoso.example"}]})
    async with connected(url, token) as connector:
        outcome = await Repeating(connector).send(a_document())
    assert outcome.result is Result.MISCONFIGURED
    assert len(users(product)) == 1


async def test_wrong_credentials_are_the_operators_to_mend(emulator: Any, token: Path) -> None:
    """A9: misconfigured, not rejected; the token is not in the sentence."""
    product, url = emulator
    product.revoke_token()
    async with connected(url, token) as connector:
        assert isinstance(await refusal(connector.check()), Misconfigured)


async def test_large_answers_are_declared(emulator: Any, token: Path) -> None:
    """S9: a product that lists everybody at once is read up to the declared bound and no further."""
    product, url = emulator
    product.set(paging="none")
    product.seed({"users": [{"login": f"u{n}@contoso.example", "note": "n" * 1_000} for n in range(1_000)]})
    for body_bytes_max, is_read in ((1_048_576, False), (4_194_304, True)):
        async with connected(url, token, paging=PAGES["none"], body_bytes_max=body_bytes_max) as connector:
            if is_read:
                assert len((await connector.list_accounts(None))[0]) == 1_000
            else:
                assert (await refusal(connector.list_accounts(None))).code == "malformed"
