"""The connector for products that speak SCIM: every dialect option and every failure against the emulator over real HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors import registry
from connectors.contract import ComparesAccounts, Delivery, ListsAccounts, PutsGroups
from connectors.declared import KNOWN_PATHS, MANAGER, path_problem, read
from connectors.generic_scim import Account, GenericScim
from connectors.scim import checked_id
from deploy.emulators.bobs_business import BobsBusinessEmulator
from deploy.emulators.harness import running
from deploy.emulators.scim import EXTENSION, ScimProductEmulator
from deploy.emulators.talkdesk import TalkdeskEmulator
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
from schemas.resources import ENTERPRISE_SCHEMA, Group, User
from schemas.specs import RateLimit
from schemas.states import Result
from tests.connectors import alone
from tests.connectors.alone import Known, Repeating, built, correctly_used, effects, secret_file, users

OBJECT_ID = "8f1c0000-0000-0000-0000-000000000001"
OTHER_ID = "8f1c0000-0000-0000-0000-000000000002"
TOKEN = "demo-token-scim"
TALKDESK = "urn:ietf:params:scim:schemas:extension:talkdesk:2.0:User"
CLIENT_ID, CLIENT_SECRET = "demo-client", "demo-secret-talkdesk"
FAX = 'phoneNumbers[type eq "fax"].value'
WORK = 'emails[type eq "work"].value'
NO_ADDRESS = [f'addresses[type eq "work"].{part}' for part in ("formatted", "streetAddress", "locality", "region")] + [
    f'addresses[type eq "work"].{part}' for part in ("postalCode", "country")
]
DIALECTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "patch": ({"update": "patch"}, {"put": False}),
    "patch without path": ({"update": "patch", "path_style": "value"}, {"put": False}),
    "patch whole lists": ({"update": "patch", "multi_valued": "whole"}, {"put": False}),
    "put": ({"update": "put"}, {"patch": False}),
    "auto, told": ({}, {"patch": False}),
    "auto, tried": ({}, {"patch": False, "described": False}),
    "texts": ({"booleans": "text", "update": "put"}, {"booleans": "text"}),
    "texts, patch": ({"booleans": "text"}, {"booleans": "text"}),
    "versions": ({"etag": True}, {"etag": True}),
    "versions, put": ({"etag": True, "update": "put"}, {"etag": True}),
    "scan": ({"filter": "scan", "page_size": 2}, {"filter": False, "page_max": 2}),
    "cursor": ({"paging": "cursor", "filter": "scan", "page_size": 2}, {"paging": "cursor", "page_max": 2}),
    "deactivate": ({"on_delete": "deactivate"}, {"delete": False}),
    "plain JSON": ({"media_type": "application/json"}, {}),
    "counted from nought": (
        {"first_index": 0, "page_size": 2, "filter": "scan"},
        {"first_index": 0, "page_max": 2, "filter": False},
    ),
    "no totals": ({"page_size": 2, "filter": "scan"}, {"totals": "none", "page_max": 2, "filter": False}),
    "totals of the page, whole lists of members": (
        {"page_size": 2, "filter": "scan", "trusts_total": False, "members": "whole"},
        {"totals": "page", "page_max": 2, "filter": False, "members": "whole"},
    ),
    "404 for nobody, listed members, totals as texts": (
        {"nobody_status": 404, "members": "listed"},
        {"nobody": 404, "members": "listed", "totals": "text"},
    ),
    "filtered by another name, groups of no id": (
        {"filter_on": {"userName": "emails.value"}, "group_external_id": False},
        {"filter_name": "emails.value", "group_external_id": False},
    ),
    "ids in addresses, and nothing but an address after a create": ({}, {"ids": "location", "created": "empty"}),
    "small letters, and an extension of another name": (
        {"enterprise_urn": "urn:scim:schemas:extension:Enterprise:1.0", "update": "put"},
        {"enterprise": "urn:scim:schemas:extension:Enterprise:1.0", "spelling": "folded"},
    ),
    "no schemas, members without a path": (
        {"path_style": "value", "members": "whole"},
        {"spelling": "bare", "members": "whole"},
    ),
}
"""Options of the connector, and the product they are for."""


def a_document(**document: Any) -> dict[str, Any]:
    return {
        "userName": "Ada@contoso.example",
        "externalId": OBJECT_ID,
        "active": True,
        "displayName": "Ada Lovelace",
        "title": "Countess",
        "name": {"givenName": "Ada", "familyName": "Lovelace"},
        "emails": [{"type": "work", "value": "ada@contoso.example"}],
        "phoneNumbers": [{"type": "mobile", "value": "+44 7400 123456"}],
        ENTERPRISE_SCHEMA: {"department": "Engines"},
        **document,
    }


def a_user(**document: Any) -> User:
    return User.from_document(a_document(**document))


def table(url: str = "https://scim.example.com/v2", **options: Any) -> dict[str, Any]:
    """A target's settings as TOML gives them."""
    return {
        "base_url": url,
        "title": "Helpdesk",
        "auth": {"token": {"env": "T"}},
        "omit": NO_ADDRESS,
        "allow_loopback": True,
        **options,
    }


def decoded(**options: Any) -> Any:
    return alone.decoded("scim", table(**options))


def problems_of(**options: Any) -> list[str]:
    """What is wrong with settings."""
    return alone.problems_of("scim", table(**options))


def offline(**options: Any) -> GenericScim:
    """A connector whose pure parts are under test."""
    return GenericScim(decoded(**options), registry.CallsNobody())


def wish(connector: GenericScim | None = None, **document: Any) -> Account:
    return (connector or offline()).normalize(a_user(**document), Known())


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """The credential of the target."""
    return secret_file(tmp_path / "token", TOKEN)


@pytest.fixture
async def emulator() -> AsyncIterator[tuple[ScimProductEmulator, str]]:
    """A running product; what no correct client does fails the test."""
    async with correctly_used(ScimProductEmulator()) as used:
        yield used


@contextlib.asynccontextmanager
async def connected(url: str, token: Path, **options: Any) -> AsyncIterator[GenericScim]:
    """The connector as a worker builds it."""
    made = table(f"{url}/scim/v2", **{"auth": {"token": {"file": str(token)}}, **options})
    async with built("scim", made, paced=True) as connector:
        yield connector


async def refusal(awaitable: Any) -> Any:
    """The connector error of a step that must fail; it never tells the credential."""
    return await alone.refusal(awaitable, TOKEN)


def is_active(held: Mapping[str, Any]) -> bool:
    return held["active"] in (True, "True")


# Normalization --------------------------------------------------------------------------------------------------------


def test_what_the_settings_do_not_name_is_reported_as_ignored() -> None:
    """A8: dropped, listed, never an error; the manager's id means nothing there."""
    connector = offline(omit=[*NO_ADDRESS, "title"])
    user = a_user(nickName="Countess", **{ENTERPRISE_SCHEMA: {"department": "E", "manager": {"value": "x"}}})
    assert set(connector.ignored(user)) == {"title", "nickName", f"{ENTERPRISE_SCHEMA}:manager"}
    assert "title" not in connector.normalize(user, Known()).values


def test_attributes_are_renamed_added_and_held_constant() -> None:
    """The settings say under which path the product wants a value; constants go with every user."""
    path = f"{EXTENSION}:queue"
    connector = offline(add=[path], rename={"displayName": "nickName"}, constants={"userType": "Employee"})
    values = wish(connector, **{EXTENSION: {"queue": "blue"}}).values
    assert (values["nickName"], values[path], values["userType"]) == ("Ada Lovelace", "blue", "Employee")
    assert "displayName" not in values


def test_another_attribute_may_be_the_user_name() -> None:
    """user_name: where the product's names are mail addresses, the principal name is no sign of ours."""
    connector = offline(user_name=WORK, match=["userName", "externalId"])
    account = wish(connector)
    assert (account.user_name, account.values["userName"]) == ("ada@contoso.example", "ada@contoso.example")
    assert connector.account_keys(account) == ("ada@contoso.example",)
    with pytest.raises(NormalizationError) as refused:
        wish(connector, emails=[])
    assert (refused.value.code, refused.value.attribute) == ("missing", WORK)


def test_a_required_attribute_without_a_value_is_refused_before_any_call() -> None:
    """A2; names the attribute and the remedy."""
    with pytest.raises(NormalizationError, match="Map it and fill it in Entra") as refused:
        wish(offline(required=["title"]), title="  ")
    assert (refused.value.code, refused.value.attribute) == ("missing", "title")


def test_a_user_that_cannot_be_switched_off_there_is_refused() -> None:
    """A7: an acknowledged deactivation that nobody carries out would leave somebody in."""
    connector = offline(omit=[*NO_ADDRESS, "active"])
    assert "active" not in wish(connector).values
    with pytest.raises(NormalizationError) as refused:
        wish(connector, active=False)
    assert refused.value.code == "cannot_deactivate"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
TEXTS = st.none() | st.text(max_size=12)


@settings(deadline=None, max_examples=150)
@given(
    document=st.fixed_dictionaries(
        {"userName": st.text(max_size=12)},
        optional={
            **dict.fromkeys(("externalId", "displayName", "title", "preferredLanguage"), TEXTS),
            "active": st.booleans(),
            "name": st.dictionaries(st.sampled_from(["givenName", "familyName", "formatted"]), TEXTS),
            "emails": st.lists(st.fixed_dictionaries({}, optional={"type": TEXTS, "value": TEXTS}), max_size=3),
            "roles": st.lists(st.text(max_size=9) | st.fixed_dictionaries({"value": TEXTS}), max_size=3),
            ENTERPRISE_SCHEMA: st.dictionaries(st.sampled_from(["department", "division"]), TEXTS),
            EXTENSION: st.dictionaries(st.sampled_from(["queue", "QUEUE", "x"]), ANYTHING, max_size=2),
        },
    ),
)
def test_no_input_crashes_normalize_and_its_result_is_json(document: dict[str, Any]) -> None:
    """0.6: NormalizationError or an account, the same one each time; what it holds can be sent."""
    connector = offline(add=["roles", f"{EXTENSION}:queue"], required=["name.familyName"])
    user = User.from_document(document)
    connector.ignored(user)
    try:
        account = connector.normalize(user, Known())
    except NormalizationError:
        return
    assert connector.normalize(user, Known()) == account
    assert msgspec.json.decode(msgspec.json.encode(account.values)) == account.values
    assert None not in connector._resource({}, {k: v for k, v in account.values.items() if v}).values()


def test_every_known_path_can_be_read_and_named() -> None:
    """The list of paths that is offered to operators is the list that works."""
    user = a_user(active=False)
    for path in KNOWN_PATHS:
        assert path_problem(path) == ""
        read(user, path)
    assert (read(user, WORK), read(user, "name.givenName"), read(user, "active")) == (
        "ada@contoso.example",
        "Ada",
        False,
    )
    assert read(user, FAX) is msgspec.UNSET
    assert "did you mean name.familyName?" in path_problem("name.familynam")
    assert path_problem(MANAGER) == ""
    assert "is not a SCIM attribute" in path_problem("manager")


def test_all_mistakes_of_the_settings_are_reported_at_once() -> None:
    """Path first, with the nearest valid name."""
    problems = problems_of(
        base_url="http://scim.example.com",
        attributes=["userName", "displayNam"],
        omit=["titel"],
        required=["title"],
        rename={"nickname": "x", "displayName": "?"},
        match=["userName", "externalId"],
        users_path="/Users/..",
    )
    for start in (
        "settings.base_url: must begin with https://",
        "settings.attributes: displayNam is not a SCIM attribute of users; did you mean displayName?",
        "settings.omit: titel is not a SCIM attribute of users; did you mean title?",
        "settings.required: title is not among the attributes",
        "settings.rename.nickname: is not among the attributes",
        "settings.rename.displayName: must lead to an attribute",
        "settings.match: externalId is not among the attributes",
        "settings.users_path: must be one part",
    ):
        assert any(problem.startswith(start) for problem in problems), (start, problems)


@pytest.mark.parametrize(
    ("auth", "said"),
    [
        ({"way": "basik"}, "settings.auth.way: Invalid enum value 'basik'; did you mean basic?"),
        ({"way": "basic", "username": "a:b"}, "settings.auth.password: missing"),
        ({"way": "basic", "username": "a:b"}, "settings.auth.username: must not contain a colon"),
        ({"token": {"env": "T"}, "client_id": "x"}, "settings.auth.client_id: means nothing"),
        ({"token": "plain"}, "settings.auth.token: a secret is a reference"),
        (
            {"way": "client_credentials", "client_id": "x", "client_secret": {"env": "T"}, "token_url": "ftp://x"},
            "settings.auth.token_url: must be a URL",
        ),
    ],
)
def test_a_way_to_sign_in_says_what_it_lacks(auth: dict[str, Any], said: str) -> None:
    """Each way needs its own parts, and nothing of another one is silently left unused."""
    assert any(problem.startswith(said) for problem in problems_of(auth=auth)), problems_of(auth=auth)


def test_the_declaration_of_a_target_follows_its_settings() -> None:
    """What /Schemas, the console and the limits of the workers are made from."""
    spec = GenericScim.spec_for(decoded(groups=False, rate_limit={"calls": 3}, on_delete="deactivate", omit=["title"]))
    assert (spec.title, spec.rate_limit, spec.on_delete) == ("Helpdesk", RateLimit(calls=3), "deactivate")
    assert "title" not in [attribute.path for attribute in spec.attributes]
    assert not spec.has_groups
    assert "switch group provisioning off" in spec.groups_step
    assert GenericScim.spec_for(decoded(match=["externalId"])).identity == ("userName", "externalId")


# Users ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_life_in_every_dialect(emulator: Any, token: Path, dialect: str) -> None:
    """Create, find, change, clear, switch off and on, delete; nothing is sent a second time, nobody else is touched."""
    product, url = emulator
    options, shape = DIALECTS[dialect]
    product.set(**shape)
    product.seed({"users": [{"userName": f"other{n}@contoso.example", "title": "x"} for n in range(3)]})
    others = users(product)
    async with connected(url, token, **options) as connector:
        gateway = Repeating(connector)
        created = await gateway.settle(a_document())
        assert (created.result, created.created) == (Result.APPLIED, True), created.reason
        seen = await connector.find(
            None, ["userName:ada@contoso.example", "userName:nobody@contoso.example"], Delivery()
        )
        assert [found.account_id for found in seen] == [gateway.account_id]
        listed: list[dict[str, Any]] = []
        cursor: str | None = ""
        while cursor is not None and len(listed) < 9:
            page, cursor = await connector.list_accounts(cursor or None)
            listed += page
        (mine,) = [one for one in listed if one["account_id"] == gateway.account_id]
        expected = connector.expected(wish(connector))
        assert len(listed) == 4
        assert {path: mine["values"].get(path) for path in expected.values} == expected.values
        changed = a_document(
            displayName="Ada King",
            title=None,
            phoneNumbers=[{"type": "mobile", "value": None}, {"type": "work", "value": "+44 20 7946 0000"}],
            emails=[{"type": "work", "value": "ada.king@contoso.example"}],
        )
        assert (await gateway.settle(changed)).result is Result.APPLIED
        held = product.state()["users"][gateway.account_id]
        assert (held["displayName"], held["title"], held["mobile"]) == ("Ada King", None, None)
        assert (held["phone"], held["email"]) == ("+44 20 7946 0000", "ada.king@contoso.example")
        assert (held["givenName"], held["department"], held["externalId"]) == ("Ada", "Engines", OBJECT_ID)
        before = len(effects(product))
        assert (await gateway.settle(changed)).result is Result.APPLIED
        assert len(effects(product)) == before, "the same wish again sends nothing"
        for active in (False, True):
            assert (await gateway.settle({**changed, "active": active})).result is Result.APPLIED
            assert is_active(product.state()["users"][gateway.account_id]) is active
        for _ in range(2):
            assert (await gateway.settle(changed, deleted=True)).result is Result.APPLIED
        left = product.state()["users"].get(gateway.account_id)
        assert left is None if options.get("on_delete") != "deactivate" else not is_active(left)
    assert [one for one in users(product) if one["id"] != gateway.account_id] == others


@pytest.mark.parametrize("taken", ["409", "empty", "400"])
async def test_a_name_that_is_taken_is_told_in_many_ways(emulator: Any, token: Path, taken: str) -> None:
    """0.4 class U: 409 with a reason, 409 without a body, 400 `uniqueness`: looked up and linked, and as a rename refused."""
    product, url = emulator
    product.set(taken=taken)
    ids = product.seed({"users": [{"userName": "ADA@contoso.example"}, {"userName": "b@contoso.example"}]})["ids"]
    async with connected(url, token) as connector:
        error = await refusal(connector.create(wish(connector), Delivery()))
        assert (type(error), error.code) == (Unavailable, "already_there")
        error = await refusal(connector.update(ids[1], wish(connector), Delivery()))
        assert (type(error), error.code) == (Conflict, "user_name_taken")
    assert len(users(product)) == 2


@pytest.mark.parametrize(
    "account_id", ["../x", "a/b", "a b", "a%2fb", "a?b", "a#b", "a\\b", "", ".", "x" * 300, None, True, 1.5]
)
def test_an_id_that_would_mean_something_else_in_an_address_is_none(account_id: Any) -> None:
    """S9: by pattern; the write was answered with success, so it is looked for again."""
    with pytest.raises(Unavailable) as refused:
        checked_id(account_id, "The product answered")
    assert (refused.value.code, refused.value.ambiguous) == ("malformed", True)


async def test_ids_are_encoded_whole(token: Path) -> None:
    """Ids with bars, braces, apostrophes, plus and equals signs lead to the same account in every call."""

    class Odd(ScimProductEmulator):
        def new_id(self) -> str:
            return f"{{auth|7;x='y'+z==,{len(self.tables.rows['users'])}}}"

    product = Odd()
    async with running(product) as url, connected(url, token, update="patch") as connector:
        gateway = Repeating(connector)
        assert (await gateway.settle(a_document())).result is Result.APPLIED
        assert gateway.account_id == "{auth|7;x='y'+z==,0}"
        assert (await gateway.settle(a_document(title="x"))).result is Result.APPLIED
        group_id = await connector.put_group(None, Group(display_name="g"), Delivery())
        await connector.change_members(group_id, [gateway.account_id], [], Delivery())
        await connector.change_members(group_id, [], [gateway.account_id], Delivery())
        assert product.state()["groups"][group_id]["members"] == []
        assert (await gateway.settle(a_document(), deleted=True)).result is Result.APPLIED
    assert (users(product), list(product.violations)) == ([], [])


async def test_what_entra_does_not_send_is_kept_under_put(emulator: Any, token: Path) -> None:
    """A4: read, merge, write; attributes that nobody maps keep the product's value."""
    product, url = emulator
    (account_id,) = product.seed(
        {
            "users": [
                {"userName": "ada@contoso.example", "queue": "blue", "home_email": "a@home.example", "roles": ["r"]}
            ]
        }
    )["ids"]
    async with connected(url, token, update="put") as connector:
        await connector.update(account_id, wish(connector), Delivery())
    held = product.state()["users"][account_id]
    assert (held["queue"], held["home_email"], held["roles"]) == ("blue", "a@home.example", ["r"])
    assert (held["displayName"], held["email"]) == ("Ada Lovelace", "ada@contoso.example")


async def test_a_lost_answer_to_a_create_makes_no_second_user(emulator: Any, token: Path) -> None:
    """A3: look before creating, always."""
    product, url = emulator
    product.fault("drop_response", method="POST", path="/scim/v2/Users", times=1)
    async with connected(url, token) as connector:
        gateway = Repeating(connector)
        first = await gateway.send(a_document())
        assert (first.result, first.ambiguous) == (Result.RETRY, True)
        assert (await gateway.settle(a_document())).result is Result.APPLIED
    assert effects(product).count("create") == 1


async def test_an_account_that_appears_between_look_and_create_is_linked(emulator: Any, token: Path) -> None:
    """0.4 class U: 409 on a create is looked up, reported, and adopted by the gateway."""
    product, url = emulator
    product.seed({"users": [{"userName": "ADA@contoso.example"}]})
    product.fault("stale_read", method="GET", path="/scim/v2/Users$", lag_s=60, times=1)
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
    product.seed({"users": [{"userName": "ada@contoso.example", "externalId": OTHER_ID}]})
    async with connected(url, token) as connector:
        outcome = await Repeating(connector).settle(a_document())
        assert outcome.reason is not None
        assert (outcome.result, outcome.reason.code) == (Result.REJECTED, "account_of_another")
        error = await refusal(connector.create(wish(connector), Delivery()))
        assert isinstance(error, Conflict)
    async with connected(url, token, foreign="adopt") as connector:
        assert (await Repeating(connector).settle(a_document())).result is Result.APPLIED
    assert [user["externalId"] for user in users(product)] == [OBJECT_ID]


async def test_an_account_is_found_by_its_external_id_after_a_rename(emulator: Any, token: Path) -> None:
    """match: by externalId the account of an earlier name is found, and gets the new one."""
    product, url = emulator
    product.seed({"users": [{"userName": "ada.byron@contoso.example", "externalId": OBJECT_ID}]})
    async with connected(url, token, match=["externalId", "userName"]) as connector:
        assert (await Repeating(connector).settle(a_document())).result is Result.APPLIED
    assert [user["userName"] for user in users(product)] == ["Ada@contoso.example"]


async def test_a_rename_to_a_taken_name_is_a_conflict(emulator: Any, token: Path) -> None:
    """0.4 class U on update."""
    product, url = emulator
    ids = product.seed({"users": [{"userName": "a@contoso.example"}, {"userName": "ada@contoso.example"}]})["ids"]
    async with connected(url, token) as connector:
        error = await refusal(connector.update(ids[0], wish(connector, externalId=None), Delivery()))
    assert (type(error), error.code) == (Conflict, "user_name_taken")


async def test_a_version_that_changed_meanwhile_is_read_again(emulator: Any, token: Path) -> None:
    """RFC 7644 section 3.14: 412 means that somebody else wrote; nothing was changed by us."""
    product, url = emulator
    product.set(etag=True)
    product.fault("status", method="PATCH", path="/scim/v2/Users", status=412, times=1)
    (account_id,) = product.seed({"users": [{"userName": "ada@contoso.example"}]})["ids"]
    async with connected(url, token, etag=True) as connector:
        error = await refusal(connector.update(account_id, wish(connector), Delivery()))
        assert (type(error), error.code, error.ambiguous) == (Unavailable, "changed_meanwhile", False)
        await connector.update(account_id, wish(connector), Delivery())
    assert users(product)[0]["title"] == "Countess"


async def test_a_new_user_that_shall_be_inactive_is_switched_off_where_the_product_switches_on(
    emulator: Any, token: Path
) -> None:
    """A7: nobody is let in because the product ignores active in a create."""
    product, url = emulator
    product.set(switches_on=True)
    async with connected(url, token) as connector:
        await connector.create(wish(connector, active=False), Delivery())
    assert [user["active"] for user in users(product)] == [False]


async def test_a_deactivation_that_the_product_ignores_is_not_reported_as_done(emulator: Any, token: Path) -> None:
    """A product that answers success and leaves the account switched on must not be believed."""
    product, url = emulator
    product.set(ignores_active=True)
    (account_id,) = product.seed({"users": [{"userName": "ada@contoso.example"}]})["ids"]
    async with connected(url, token, on_delete="deactivate") as connector:
        for step in (
            connector.update(account_id, wish(connector, active=False), Delivery()),
            connector.delete(account_id, Delivery()),
        ):
            error = await refusal(step)
            assert (type(error), error.code) == (Rejected, "not_deactivated")


async def test_a_product_without_deletion_says_what_to_set(emulator: Any, token: Path) -> None:
    """405 and 501 on DELETE are the settings' fault, told with the remedy."""
    product, url = emulator
    product.set(delete=False)
    (account_id,) = product.seed({"users": [{"userName": "ada@contoso.example"}]})["ids"]
    async with connected(url, token) as connector:
        error = await refusal(connector.delete(account_id, Delivery()))
    assert error.code == "cannot_delete"
    assert 'on_delete = "deactivate"' in str(error)


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
        ({"kind": "status", "status": 200, "body": {"Resources": 7}}, Unavailable, "malformed"),
        ({"kind": "status", "status": 503}, Unavailable, "service_unavailable"),
        ({"kind": "auth"}, Misconfigured, "unauthorized"),
        ({"kind": "truncate"}, Unavailable, "connection_lost"),
    ],
)
async def test_failures_are_sorted_by_what_happens_next(
    emulator: Any, token: Path, fault: dict[str, Any], kind: type[Exception], code: str
) -> None:
    """0.4, A11: one class each; the two forms of Retry-After are both read."""
    product, url = emulator
    product.fault(fault.pop("kind"), **fault)
    async with connected(url, token) as connector:
        error = await refusal(connector.find(wish(connector), ["userName:ada@contoso.example"], Delivery()))
    assert (type(error), error.code) == (kind, code)
    if kind is RateLimited:
        assert error.retry_after_s == 7 or error.retry_after_s >= 3_600


async def test_what_the_product_says_is_cut_and_cleaned(emulator: Any, token: Path) -> None:
    """A10, S11: neither credentials nor addresses of people come back in an error."""
    product, url = emulator
    said = {"detail": f"Bearer {TOKEN} is fine but ada@contoso.example is not " + "x" * 500}
    product.fault("status", method="POST", path="/scim/v2/Users", status=400, body=said)
    async with connected(url, token) as connector:
        error = await refusal(connector.create(wish(connector), Delivery()))
    assert isinstance(error, Rejected)
    assert "ada@" not in str(error)
    assert len(str(error)) < 300


async def test_unicode_goes_there_and_back(emulator: Any, token: Path) -> None:
    """Filters are JSON strings in a query: quotes, plus signs, umlauts and emoji survive."""
    product, url = emulator
    name = 'zoë+"ł"🦉&x=1@contoso.example'
    async with connected(url, token) as connector:
        gateway = Repeating(connector)
        document = a_document(userName=name, displayName="Zoë Ł 🦉")
        assert (await gateway.settle(document)).result is Result.APPLIED
        found = await connector.find(None, [f"userName:{name}"], Delivery())
    assert [one.account_id for one in found] == [gateway.account_id]
    assert users(product)[0]["displayName"] == "Zoë Ł 🦉"


@pytest.mark.parametrize("paging", ["index", "cursor"])
async def test_accounts_are_listed_page_by_page(emulator: Any, token: Path, paging: str) -> None:
    """Reconciliation sees every account once, in pages of any size the product gives."""
    product, url = emulator
    product.set(paging=paging, page_max=3)
    product.seed({"users": [{"userName": f"U{n}@contoso.example", "active": n % 2 == 0} for n in range(8)]})
    listed: list[dict[str, Any]] = []
    cursor: str | None = None
    async with connected(url, token, paging=paging) as connector:
        assert isinstance(connector, ListsAccounts)
        for _ in range(5):
            page, cursor = await connector.list_accounts(cursor)
            listed += page
            if cursor is None:
                break
    assert cursor is None
    assert [one["identities"][0] for one in listed] == [f"userName:u{n}@contoso.example" for n in range(8)]
    assert [one["active"] for one in listed] == [n % 2 == 0 for n in range(8)]


async def test_a_product_that_ignores_the_start_index_ends_after_its_first_page(emulator: Any, token: Path) -> None:
    """A list that never moves on must not be read for ever."""
    product, url = emulator
    ids = product.seed({"users": [{"userName": f"u{n}@contoso.example"} for n in range(2)]})["ids"]
    body = {"totalResults": 9, "Resources": [{"id": one, "userName": f"x{one}"} for one in ids]}
    product.fault("status", method="GET", path="/scim/v2/Users$", status=200, body=body)
    async with connected(url, token, filter="scan") as connector:
        assert await connector.find(None, ["userName:nobody@contoso.example"], Delivery()) == []
    assert len(product.recorded()) == 2


@pytest.mark.parametrize("update", ["patch", "put"])
async def test_a_manager_is_sent_by_the_products_id_once_there_is_one(emulator: Any, token: Path, update: str) -> None:
    """Rule W: everything else is applied at once; the reference follows when the manager has an account, and can be cleared."""
    product, url = emulator
    (boss,) = product.seed({"users": [{"userName": "boss@contoso.example"}]})["ids"]
    async with connected(url, token, add=[MANAGER], update=update) as connector:
        account = wish(connector, **{ENTERPRISE_SCHEMA: {"manager": {"value": "r-boss"}}})
        waiting = Delivery()
        account_id = await connector.create(account, waiting)
        assert (product.state()["users"][account_id]["manager"], waiting.unresolved) == (None, ["r-boss"])
        for _ in range(2):
            await connector.update(account_id, account, Delivery(accounts={"r-boss": boss}))
            assert product.state()["users"][account_id]["manager"] == boss
        assert effects(product) == ["create", "update"]
        cleared = wish(connector, **{ENTERPRISE_SCHEMA: {"manager": None}})
        await connector.update(account_id, cleared, Delivery())
        assert product.state()["users"][account_id]["manager"] is None


async def test_the_list_shows_what_is_compared(emulator: Any, token: Path) -> None:
    """Drift is seen without a read per user: as wished nothing differs, and a change by hand shows at its path."""
    product, url = emulator
    product.set(booleans="text")
    async with connected(url, token, booleans="text", rename={"displayName": "nickName"}) as connector:
        assert isinstance(connector, ComparesAccounts)
        account = wish(connector, title=None)
        await connector.create(account, Delivery())
        expected = connector.expected(account)
        ((listed,), _) = await connector.list_accounts(None)
        assert set(expected.identities) <= set(listed["identities"])
        assert (expected.owner, listed["owner"], listed["active"]) == (OBJECT_ID, OBJECT_ID, True)
        assert {path: listed["values"].get(path) for path in expected.values} == expected.values
        assert "title" not in listed["values"], "what nobody on a page shows is not compared"
        (held,) = users(product)
        product.control("by_hand", [("users", held["id"], {**held, "nickName": "x", "title": "y"})])
        ((listed,), _) = await connector.list_accounts(None)
    differing = {path for path, value in expected.values.items() if listed["values"][path] != value}
    assert differing == {"displayName", "title"}


async def test_talkdesk_is_served_without_its_connector(tmp_path: Path) -> None:
    """A product that was not written for this test: OAuth client credentials, PUT, an extension, and a strict attribute set."""
    product = TalkdeskEmulator(rate_per_s=0)
    secret = tmp_path / "secret"
    secret.write_text(CLIENT_SECRET)
    secret.chmod(0o600)
    async with running(product) as url:
        auth = {
            "way": "client_credentials",
            "client_id": CLIENT_ID,
            "client_secret": {"file": str(secret)},
            "token_url": f"{url}/oauth/token",
            "scope": "scim",
            "form": {"token_type": "opaque"},
        }
        options = {
            "attributes": ["userName", "name.givenName", "name.familyName", "active", "externalId"],
            "add": [f"{TALKDESK}:rolesString"],
            "omit": [],
            "groups": False,
        }
        made = decoded(url=f"{url}/scim/v2", auth=auth, **options)
        connector, http = registry.build("scim", made)
        assert isinstance(connector, GenericScim)
        assert http is not None
        gateway = Repeating(connector)
        document = a_document(**{TALKDESK: {"rolesString": "Supervisor"}})
        assert (await gateway.settle(document)).result is Result.APPLIED
        assert (await gateway.settle({**document, "active": False})).result is Result.APPLIED
        assert {finding.code for finding in await connector.check()} == {"reachable"}
        await http.close()
    (held,) = product.state()["users"].values()
    assert (held["userName"], held["active"]) == ("Ada@contoso.example", False)
    assert not product.violations


async def test_bobs_business_is_served_without_its_connector(tmp_path: Path) -> None:
    """Another one, with groups: members by explicit additions and removals, PATCH only."""
    product = BobsBusinessEmulator(rate_per_s=0)
    file = tmp_path / "key"
    file.write_text("demo-token-bobs_business")
    file.chmod(0o600)
    async with running(product) as url:
        attributes = ["userName", "name.givenName", "name.familyName", "displayName", "active", "externalId", WORK]
        async with connected(url, file, attributes=attributes, omit=[]) as connector:
            gateway = Repeating(connector)
            assert (await gateway.settle(a_document())).result is Result.APPLIED
            assert gateway.account_id is not None
            group_id = await connector.put_group(None, Group(display_name="g", external_id=OTHER_ID), Delivery())
            await connector.change_members(group_id, [gateway.account_id], [], Delivery())
            assert product.state()["groups"][group_id]["members"] == [gateway.account_id]
            await connector.change_members(group_id, [], [gateway.account_id], Delivery())
    assert product.state()["groups"][group_id]["members"] == []
    assert not product.violations


# Groups ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["patch", "patch without path", "put", "versions", "versions, put", "scan"])
async def test_a_group_lives_in_every_dialect(emulator: Any, token: Path, dialect: str) -> None:
    """Create, rename, add and remove members twice, delete; members are sets."""
    product, url = emulator
    options, shape = DIALECTS[dialect]
    ids = product.seed({"users": [{"userName": f"u{n}@contoso.example"} for n in range(5)]})["ids"]
    product.set(**shape)
    async with connected(url, token, members_per_call=2, **options) as connector:
        assert isinstance(connector, PutsGroups)
        group = Group(display_name="Éngineers", external_id=OBJECT_ID)
        group_id = await connector.put_group(None, group, Delivery())
        found = await connector.find_group(None, ["displayName:éngineers"], Delivery())
        assert [one.account_id for one in found] == [group_id]
        for _ in range(2):
            await connector.change_members(group_id, ids, [], Delivery())
            assert set(product.state()["groups"][group_id]["members"]) == set(ids)
        for _ in range(2):
            await connector.change_members(group_id, ids[:1], ids[2:], Delivery())
            assert product.state()["groups"][group_id]["members"] == ids[:2]
        renamed = Group(display_name="Mathematicians", external_id=OBJECT_ID)
        for _ in range(2):
            assert await connector.put_group(group_id, renamed, Delivery()) == group_id
        held = product.state()["groups"][group_id]
        ours = OBJECT_ID if options.get("group_external_id", True) else None
        assert (held["displayName"], held["externalId"], held["members"]) == ("Mathematicians", ours, ids[:2])
        for _ in range(2):
            await connector.delete_group(group_id, Delivery())
    assert product.state()["groups"] == {}
    assert len(users(product)) == 5


@pytest.mark.parametrize("update", ["patch", "put"])
async def test_unknown_members_wait_and_the_others_are_added(emulator: Any, token: Path, update: str) -> None:
    """0.4 class W: a member that is not there yet blocks nobody else."""
    product, url = emulator
    made = product.seed(
        {"users": [{"userName": f"u{n}@contoso.example"} for n in range(2)], "groups": [{"displayName": "g"}]}
    )
    async with connected(url, token, update=update) as connector:
        (group_id,) = made["group_ids"]
        error = await refusal(
            connector.change_members(group_id, [made["ids"][0], "ghost", made["ids"][1]], [], Delivery())
        )
    assert (type(error), error.on, error.account_id) == (Blocked, "member:ghost", group_id)
    assert set(product.state()["groups"][group_id]["members"]) == set(made["ids"])


async def test_who_left_a_group_already_is_removed_already(emulator: Any, token: Path) -> None:
    """RFC 7644 section 3.5.2.2: noTarget on a removal is no failure; others of the same call still go."""
    product, url = emulator
    ids = product.seed({"users": [{"userName": f"u{n}@contoso.example"} for n in range(2)]})["ids"]
    (group_id,) = product.seed({"groups": [{"displayName": "g", "members": ids}]})["group_ids"]
    product.fault("status", method="PATCH", path="/scim/v2/Groups", status=400, body={"scimType": "noTarget"}, times=1)
    async with connected(url, token, update="patch") as connector:
        await connector.change_members(group_id, [], ids, Delivery())
    assert product.state()["groups"][group_id]["members"] == []


async def test_groups_of_one_name_are_told_apart_by_their_external_id(emulator: Any, token: Path) -> None:
    """A group that belongs to another group of Entra is a conflict, never adopted."""
    product, url = emulator
    product.seed({"groups": [{"displayName": "g", "externalId": OTHER_ID}]})
    async with connected(url, token) as connector:
        wanted = Group(display_name="G", external_id=OBJECT_ID)
        (found,) = await connector.find_group(wanted, ["displayName:g"], Delivery())
        assert "belongs to another group" in found.conflict
        assert isinstance(await refusal(connector.put_group(None, wanted, Delivery())), Conflict)
        product.seed({"groups": [{"displayName": "g"}]})
        error = await refusal(connector.find_group(wanted, ["displayName:g"], Delivery()))
    assert error.code == "duplicate_groups"


# Check ----------------------------------------------------------------------------------------------------------------


async def test_a_fitting_target_has_nothing_to_say(emulator: Any, token: Path) -> None:
    """A12: address and credentials are proven, nothing is written."""
    product, url = emulator
    product.seed({"users": [{"userName": "u@contoso.example"}]})
    async with connected(url, token, update="patch") as connector:
        findings = await connector.check()
    assert [(finding.level, finding.code) for finding in findings] == [("ok", "reachable")]
    assert effects(product) == []


@pytest.mark.parametrize(
    ("shape", "options", "code", "level"),
    [
        ({"patch": False}, {"update": "patch"}, "no_patch", "error"),
        ({}, {"update": "put"}, "patch_unused", "warning"),
        ({"filter": False}, {}, "no_filter", "error"),
        ({}, {"filter": "scan"}, "filter_unused", "warning"),
        ({}, {"etag": True}, "no_etag", "error"),
        ({"etag": True}, {}, "etag_unused", "ok"),
        ({}, {"page_size": 500}, "page_size", "ok"),
        ({"described": False}, {}, "no_service_provider_config", "warning"),
        ({"groups": False}, {}, "no_groups", "error"),
        ({}, {"rename": {"userName": "nickName"}}, "no_user_name", "error"),
        ({"nobody": 404}, {}, "nobody_is_404", "error"),
        ({"filter_name": "emails.value"}, {}, "not_found_again", "error"),
        ({"enterprise": "urn:example:enterprise"}, {}, "unknown_extension", "warning"),
    ],
)
async def test_settings_that_do_not_fit_the_product_are_found(
    emulator: Any, token: Path, shape: dict[str, Any], options: dict[str, Any], code: str, level: str
) -> None:
    """A12: the options are compared with the product's ServiceProviderConfig and with what it shows."""
    product, url = emulator
    product.seed({"users": [{"userName": "u@contoso.example"}]})
    product.set(**shape)
    async with connected(url, token, **options) as connector:
        findings = {finding.code: finding for finding in await connector.check()}
    product.violations.clear()  # a listing in a form the product does not have is the mistake under test
    assert findings[code].level == level
    assert findings[code].message


@pytest.mark.parametrize("paging", ["index", "cursor"])
async def test_a_product_that_pages_otherwise_is_found(emulator: Any, token: Path, paging: str) -> None:
    """RFC 9865 section 4: the product says which ways of paging it has; a wrong one is told before the first cycle."""
    product, url = emulator
    product.set(paging=paging)
    other = "cursor" if paging == "index" else "index"
    async with connected(url, token, paging=other) as connector:
        error = await refusal(connector.check())
    assert isinstance(error, Rejected)
    product.violations.clear()


async def test_wrong_credentials_are_the_operators_to_mend(emulator: Any, token: Path) -> None:
    """A9: misconfigured, not rejected; the token is not in the sentence."""
    product, url = emulator
    product.revoke_token()
    async with connected(url, token) as connector:
        assert isinstance(await refusal(connector.check()), Misconfigured)
