"""Sofa: the tables of fields, maps, identifiers and keys, and every failure class against the emulator over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from connectors import registry
from connectors.contract import Delivery, ListsAccounts, PutsGroups
from connectors.sofa import (
    FIELDS,
    MANAGER,
    NO_MAPPING,
    UNMAPPED,
    Account,
    Settings,
    Sofa,
    derive_identifier,
    key_state,
    map_memberships,
    map_user,
    normalize_object_id,
    validate_identifier,
)
from deploy.emulators.harness import running
from deploy.emulators.sofa import SofaEmulator
from schemas.config import Secret
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
from schemas.states import Circuit, Result, State
from tests.connectors.alone import FAULTS, Known, built, correctly_used, fail_writes, refusal, secret_file, users
from tests.connectors.driven import TARGET, Driven, add, driven, remove


def remote(last: str) -> str:
    """An object id as in the vendor page's map."""
    return f"aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaa{last}"


EVA = "0f1c2d3e-0000-4000-8000-0000000000e1"
OTHER = "0f1c2d3e-0000-4000-8000-0000000000e2"
GROUP_MAP = [
    {"remote": remote("01"), "sofa": "Sales"},
    {"remote": remote("02"), "sofa": "Sales"},
    {"remote": remote("03"), "sofa": "Accounting"},
    {"remote": remote("03"), "sofa": "Archive"},
]
ROLE_MAP = [{"remote": remote("01"), "sofa": "approver"}, {"remote": remote("04"), "sofa": "administrator"}]

MEMBERSHIPS: list[tuple[Any, list[str], list[str], list[str]]] = [
    ([remote("01")], ["Sales"], ["approver"], []),
    ([remote("02")], ["Sales"], [], []),
    ([remote("01"), remote("02")], ["Sales"], ["approver"], []),
    ([remote("03")], ["Accounting", "Archive"], [], []),
    ([remote("99")], [], [], [remote("99")]),
    (["{" + remote("03").upper() + "}"], ["Accounting", "Archive"], [], []),
    ([f"urn:uuid:{remote('04')}"], [], ["administrator"], []),
    ([f" {remote('04').replace('-', '')} "], [], ["administrator"], []),
    ([], [], [], []),
    (None, [], [], []),
]


@pytest.mark.parametrize(("object_ids", "groups", "roles", "ignored"), MEMBERSHIPS)
def test_each_membership_of_the_vendor_page(
    object_ids: Any, groups: list[str], roles: list[str], ignored: list[str]
) -> None:
    """Vendor page 5.4, S10-S12: unmapped is ignored and no error; several rows may share either side."""
    expected = {"groups": groups, "roles": roles, "ignored": ignored}
    assert map_memberships(object_ids, GROUP_MAP, ROLE_MAP) == expected


def test_a_name_is_no_object_id_and_all_of_them_are_named() -> None:
    """Vendor page 5.4, S11."""
    with pytest.raises(NormalizationError) as refused:
        map_memberships(["Sales", remote("01"), "HR"], GROUP_MAP, ROLE_MAP)
    assert (refused.value.code, refused.value.names) == ("bad_object_id", ("Sales", "HR"))
    assert "Map objectId to externalId for groups" in str(refused.value)


BASE = {"userName": "eva@firma.cz", "externalId": EVA}

USERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"active": "False"}, {"enabled": False}),
    ({"active": "True"}, {"enabled": True}),
    ({"active": True}, {"enabled": True}),
    (
        {"name": {"honorificPrefix": "Mgr.", "formatted": "Mgr. Eva"}},
        {"degree_before": "Mgr.", "ignored": ["name.formatted"]},
    ),
    (
        {"emails": [{"type": "home", "value": "eva@doma.cz"}, {"type": "work", "value": "eva@firma.cz"}]},
        {"notification_email": "eva@firma.cz", "ignored": ["emails[home]"]},
    ),
    (
        {
            "phoneNumbers": [
                {"type": "mobile", "value": "+420 602 000 111"},
                {"type": "fax", "value": "+420 2"},
                {"type": "work", "value": "123"},
            ]
        },
        {"mobile_phone": "+420 602 000 111", "telephone": "123", "ignored": ["phoneNumbers[fax]"]},
    ),
    ({"title": ""}, {"job": None}),
    ({"title": " Head  "}, {"job": "Head"}),
    (
        {ENTERPRISE_SCHEMA: {"employeeNumber": "007", "manager": {"value": "gw-3"}, "costCenter": "x"}},
        {"personal_number": "007", "direct_superior": "gw-3", "ignored": [f"{ENTERPRISE_SCHEMA}:costCenter"]},
    ),
    (
        {f"{ENTERPRISE_SCHEMA}:department": "IT", f"{ENTERPRISE_SCHEMA}:manager": "gw-3"},
        {"department": "IT", "direct_superior": "gw-3"},
    ),
    ({ENTERPRISE_SCHEMA: {"manager": None}}, {"direct_superior": None}),
    (
        {"preferredLanguage": "cs", "addresses": [{"type": "work", "locality": "Praha"}], "nickName": "E"},
        {"ignored": ["addresses", "nickName", "preferredLanguage"]},
    ),
    (
        {
            "displayName": "Eva",
            "name": {"givenName": "Eva", "familyName": "Malá", "honorificSuffix": "Ph.D."},
            "externalId": "{" + EVA.upper() + "}",
        },
        {
            "virtual_display_name": "Eva",
            "name": "Eva",
            "surname": "Malá",
            "degree_after": "Ph.D.",
            "sso_identifier": EVA,
        },
    ),
]


@pytest.mark.parametrize(("document", "expected"), USERS)
def test_each_user_of_the_vendor_page_is_mapped(document: dict[str, Any], expected: dict[str, Any]) -> None:
    """Vendor page 5.4, S22-S25: exactly these fields beside user name and SSO identifier."""
    mapped = map_user({**BASE, **document})
    assert mapped == {"user_name": "eva@firma.cz", "sso_identifier": EVA, "ignored": [], **expected}


@pytest.mark.parametrize(
    ("document", "code", "attribute"),
    [
        ({"externalId": "eva"}, "bad_object_id", "externalId"),
        ({"externalId": None}, "missing_external_id", "externalId"),
        ({"externalId": "  "}, "missing_external_id", "externalId"),
        ({"active": "1"}, "bad_boolean", "active"),
        ({"active": None}, "bad_boolean", "active"),
        ({"userName": " "}, "missing", "userName"),
    ],
)
def test_each_bad_user_of_the_vendor_page_is_refused(document: dict[str, Any], code: str, attribute: str) -> None:
    """Vendor page 5.4, S21, 0.2."""
    with pytest.raises(NormalizationError) as refused:
        map_user({**BASE, **document})
    assert (refused.value.code, refused.value.attribute) == (code, attribute)


def test_a_mail_nickname_as_external_id_is_told_with_the_remedy_and_without_the_person() -> None:
    """S21, 5.5: change its source from mailNickname to objectId; one cause for operators, not one per person."""
    with pytest.raises(NormalizationError) as refused:
        map_user({"userName": "jan@firma.cz", "externalId": "jan.novak"})
    assert "change its source from mailNickname to objectId" in str(refused.value)
    assert "novak" not in str(refused.value)
    assert refused.value.names == ()


@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        ("Entra Česko", "Entra_Cesko"),
        ("2nd sync", "s_2nd_sync"),
        ("  Sales & HR!  ", "Sales_HR"),
        ("", "sync"),
        ("日本", "sync"),
        ("Straße", "Stra_e"),
        (None, "sync"),
    ],
)
def test_each_identifier_is_made_from_its_name(name: Any, identifier: str) -> None:
    """Vendor page 5.4, S5 (assumed derivation)."""
    assert derive_identifier(name) == identifier


@pytest.mark.parametrize(
    ("identifier", "good"),
    [
        ("1x", False),
        ("a-b", False),
        ("Entra_Cesko", True),
        ("", False),
        ("_x", False),
        ("á", False),
        (7, False),
        ("x\n", False),
    ],
)
def test_each_identifier_is_judged(identifier: Any, good: bool) -> None:
    """S5: starts with a letter; English letters, digits and underscores only."""
    assert validate_identifier(identifier) is good


@pytest.mark.parametrize(
    ("days", "now", "state", "warn"),
    [
        (120, "2026-04-01", "ok", None),
        (120, "2026-06-24", "expiring", 7),
        (120, "2026-07-01", "expired", None),
        (120, "2026-05-30", "expiring", 30),
        (120, "2026-05-29T23:59:59", "ok", None),
        (120, "2026-06-15", "expiring", 14),
        (120, "2026-06-28", "expiring", 1),
        (120, "2026-06-28T23:59:59+00:00", "expiring", 1),
        (120, "2026-06-29", "expired", None),
        (120, "2026-06-29T01:00:00+02:00", "expiring", 1),
        (90, "2026-03-02", "ok", None),
        (730, "2026-03-02", "ok", None),
    ],
)
def test_each_key_state_of_the_vendor_page(days: int, now: str, state: str, warn: int | None) -> None:
    """Vendor page 5.4, S16: warnings 30, 14, 7 and 1 days before expiry."""
    stand = key_state("2026-03-01", days, now)
    assert (stand["state"], stand["warn"]) == (state, warn)
    assert key_state(date(2026, 3, 1), days, datetime.fromisoformat(now)) == stand


@pytest.mark.parametrize(
    ("issued", "days", "now"),
    [
        ("2026-03-01", 30, "2026-03-02"),
        ("2026-03-01", 89, "2026-03-02"),
        ("2026-03-01", 731, "2026-03-02"),
        ("2026-03-01", True, "2026-03-02"),
        ("2026-03-01", "120", "2026-03-02"),
        ("yesterday", 120, "2026-03-02"),
        ("2026-03-01", 120, None),
        ("9999-12-31", 120, "2026-03-02"),
    ],
)
def test_each_bad_validity_is_refused(issued: Any, days: Any, now: Any) -> None:
    """S16: 90 to 730 days."""
    with pytest.raises(NormalizationError) as refused:
        key_state(issued, days, now)
    assert refused.value.code == "bad_validity"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "value", "manager", "formatted", "givenName", "$ref"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
NAMES = [
    "userName", "active", "title", "name", "emails", "phoneNumbers", "addresses", "externalId", ENTERPRISE_SCHEMA,
    MANAGER, f"{ENTERPRISE_SCHEMA}:department", "roles", "id", "x",
]  # fmt: skip


@settings(deadline=None)
@given(document=st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=6), named=st.booleans())
def test_any_document_is_mapped_or_refused(document: dict[str, Any], named: bool) -> None:
    """0.6: nothing but NormalizationError; only Sofa's fields come out, as texts; mapping a result again changes nothing."""
    try:
        mapped = map_user({**document, **(BASE if named else {})})
    except NormalizationError as exc:
        found = exc.code
    else:
        found = ""
        ignored = mapped.pop("ignored")
        assert ignored == sorted(set(ignored))
        assert set(mapped) <= {*FIELDS, "direct_superior"}
        superior = (
            {f"{ENTERPRISE_SCHEMA}:manager": mapped.pop("direct_superior")} if "direct_superior" in mapped else {}
        )
        again: dict[str, Any] = {"name": {}, "emails": [], "phoneNumbers": [], **superior}
        for field, value in mapped.items():
            path = FIELDS[field]
            if "[" in path:
                kind = path.split('"')[1]
                again[path.partition("[")[0]].append({"type": kind, "value": value})
            elif path.startswith("name."):
                again["name"][path.removeprefix("name.")] = value
            else:
                again[path] = value
        second = map_user(again)
        assert {name: second.get(name) for name in mapped} == mapped
        assert second["ignored"] == []
    assert found in ("", "missing", "missing_external_id", "bad_object_id", "bad_boolean")


@settings(deadline=None)
@given(st.text() | st.none() | st.integers())
def test_any_name_gives_a_valid_identifier_that_stays(name: Any) -> None:
    """S5: deriving twice changes nothing."""
    identifier = derive_identifier(name)
    assert validate_identifier(identifier)
    assert derive_identifier(identifier) == identifier


@settings(deadline=None)
@given(
    st.uuids(),
    st.sampled_from(["{%s}", "urn:uuid:%s", " %s ", "%s", "URN:UUID:%s", "{ %s }"]),
    st.booleans(),
    st.booleans(),
)
def test_any_spelling_of_an_object_id_is_the_same_id(value: Any, form: str, bare: bool, upper: bool) -> None:
    """5.4: case, braces, prefix, missing hyphens and blanks do not matter; normalizing twice changes nothing."""
    text = value.hex if bare else str(value)
    assert normalize_object_id(form % (text.upper() if upper else text)) == str(value)


@settings(deadline=None)
@given(ANYTHING | st.text(alphabet="0123456789abcdefABCDEF-{} ", max_size=44))
def test_anything_is_an_object_id_or_our_error(value: Any) -> None:
    """0.6: no input crashes."""
    try:
        once = normalize_object_id(value)
    except NormalizationError:
        return
    assert normalize_object_id(once) == once


@settings(deadline=None)
@given(issued=ANYTHING | st.dates(), days=st.integers() | ANYTHING, now=st.datetimes() | ANYTHING)
def test_any_key_has_a_state_or_our_error(issued: Any, days: Any, now: Any) -> None:
    """0.6: no input crashes."""
    try:
        stand = key_state(issued, days, now)
    except NormalizationError:
        return
    assert (stand["state"] == "expiring") is (stand["warn"] is not None)


# The connector --------------------------------------------------------------------------------------------------------


def a_user(**document: Any) -> User:
    """A user as the vendor's table maps it."""
    return User.from_document(
        {
            "userName": "eva@firma.example",
            "externalId": EVA,
            "active": True,
            "displayName": "Eva Malá",
            "title": "Účetní",
            "name": {"givenName": "Eva", "familyName": "Malá", "honorificPrefix": "Mgr."},
            "emails": [{"type": "work", "value": "eva@firma.example"}],
            "phoneNumbers": [{"type": "work", "value": "+420 2"}, {"type": "mobile", "value": "+420 602 000 111"}],
            ENTERPRISE_SCHEMA: {"employeeNumber": "007", "department": "Účtárna"},
            **document,
        }
    )


def offline(**options: Any) -> Sofa:
    """A connector whose pure parts are under test."""
    options = {
        "endpoint_url": "https://sofa.example.com/scim/entra",
        "access_key": Secret(env="T"),
        "key_issued": date(2026, 3, 1),
        "key_validity_days": 120,
        **options,
    }
    return Sofa(Settings(**options), registry.CallsNobody())


def wish(**document: Any) -> Account:
    return offline().normalize(a_user(**document), Known())


def with_manager(manager: str | None, **document: Any) -> Account:
    held = {"manager": {"value": manager} if manager else None, "department": "Účtárna"}
    return wish(**{ENTERPRISE_SCHEMA: held, **document})


@pytest.fixture
def access_key(tmp_path: Path) -> Path:
    """The credential of the target."""
    return secret_file(tmp_path / "access-key", "demo-token-sofa")


@pytest.fixture
async def emulator() -> AsyncIterator[tuple[SofaEmulator, str]]:
    """A running Sofa without its rate limit, with the maps of the vendor page."""
    emulator = SofaEmulator(rate_per_s=0)
    emulator.edit({"group_map": GROUP_MAP, "role_map": ROLE_MAP})
    async with correctly_used(emulator) as used:
        yield used


@contextlib.asynccontextmanager
async def connected(url: str, access_key: Path, *, paced: bool = False, **options: Any) -> AsyncIterator[Sofa]:
    """The connector as a worker builds it."""
    table = {
        "endpoint_url": f"{url}/scim/entra",
        "allow_loopback": True,
        "access_key": {"file": str(access_key)},
        "key_issued": datetime.now(UTC).date(),
        "key_validity_days": 730,
        "group_map": GROUP_MAP,
        "role_map": ROLE_MAP,
        **options,
    }
    async with built("sofa", table, paced=paced) as connector:
        yield connector


def groups(emulator: SofaEmulator) -> list[dict[str, Any]]:
    return list(emulator.state()["groups"].values())


def writes(emulator: SofaEmulator) -> list[dict[str, Any]]:
    return [call for call in emulator.recorded() if call["method"] != "GET"]


async def test_a_user_arrives_field_by_field(emulator: Any, access_key: Path) -> None:
    """S22-S25: the whole table, numbers unchanged, nothing that is not mapped."""
    product, url = emulator
    async with connected(url, access_key) as connector:
        account = wish(preferredLanguage="cs", addresses=[{"type": "work", "locality": "Praha"}])
        account_id = await connector.create(account, Delivery())
    (held,) = users(product)
    assert held["id"] == account_id
    expected = map_user({"userName": "eva@firma.example", "externalId": EVA, "active": True})
    assert {name: held[name] for name in expected if name != "ignored"} == {
        name: value for name, value in expected.items() if name != "ignored"
    }
    assert (held["virtual_display_name"], held["job"], held["department"]) == ("Eva Malá", "Účetní", "Účtárna")
    assert (held["telephone"], held["mobile_phone"], held["personal_number"]) == ("+420 2", "+420 602 000 111", "007")
    assert (held["degree_before"], held["degree_after"], held["direct_superior"]) == ("Mgr.", None, None)
    (call,) = writes(product)
    assert "preferredLanguage" not in call["body"]
    assert "addresses" not in call["body"]
    assert account.ignored == ("addresses", "preferredLanguage")
    assert connector.ignored(a_user(nickName="E")) == ("nickName",)


async def test_an_update_writes_differences_clears_what_was_removed_and_repeats_nothing(
    emulator: Any, access_key: Path
) -> None:
    """A4, 5.4: empty clears, absent is kept; what has no value yet is added, since a replacement has no target."""
    product, url = emulator
    seeded = {
        "user_name": "eva@firma.example",
        "job": "Old",
        "telephone": "1",
        "degree_after": "kept",
        "surname": "Malá",
    }
    account_id = product.seed({"users": [seeded]})["ids"][0]
    async with connected(url, access_key) as connector:
        account = wish(name={"givenName": "Eva", "familyName": None}, phoneNumbers=[{"type": "work", "value": None}])
        await connector.update(account_id, account, Delivery())
        await connector.update(account_id, account, Delivery())
    (held,) = users(product)
    assert (held["name"], held["surname"], held["degree_after"]) == ("Eva", None, "kept")
    assert (held["telephone"], held["job"], held["sso_identifier"]) == (None, "Účetní", EVA)
    assert held["notification_email"] == "eva@firma.example"
    assert len(writes(product)) == 1


@pytest.mark.parametrize(
    ("seeded", "identity", "conflict"),
    [
        ({"user_name": "old@firma.example", "sso_identifier": EVA}, f"externalId:{EVA}", False),
        ({"user_name": "EVA@firma.example", "sso_identifier": EVA.upper()}, f"externalId:{EVA}", False),
        ({"user_name": "Eva@firma.example"}, "userName:eva@firma.example", False),
        ({"user_name": "eva@firma.example", "sso_identifier": OTHER}, "userName:eva@firma.example", True),
    ],
)
async def test_a_user_is_found_by_external_id_first_then_by_user_name(
    emulator: Any, access_key: Path, seeded: dict[str, Any], identity: str, conflict: bool
) -> None:
    """S23, 5.5: made by hand without externalId: adopted; with another one: somebody else's."""
    product, url = emulator
    account_id = product.seed({"users": [seeded, {"user_name": "x@firma.example"}]})["ids"][0]
    identities = (f"externalId:{EVA}", "userName:eva@firma.example", "externalId:none", "displayName:eva")
    async with connected(url, access_key) as connector:
        for account in (wish(), None):
            (found,) = await connector.find(account, identities, Delivery())
            assert (found.account_id, found.identity, bool(found.conflict)) == (account_id, identity, conflict)
        (found,) = await connector.find(wish(), (), Delivery())
        assert found.account_id == account_id


async def test_an_adopted_user_gets_the_external_id(emulator: Any, access_key: Path) -> None:
    """5.5: if the user has none (created by hand): adopt and set it."""
    product, url = emulator
    account_id = product.seed({"users": [{"user_name": "eva@firma.example"}]})["ids"][0]
    async with connected(url, access_key) as connector:
        error = await refusal(connector.create(wish(), Delivery()))
        assert (type(error), error.code, error.ambiguous) == (Unavailable, "already_there", True)
        await connector.update(account_id, wish(), Delivery())
    assert users(product)[0]["sso_identifier"] == EVA


async def test_a_user_name_of_another_person_is_a_conflict(emulator: Any, access_key: Path) -> None:
    """5.5: 409, class U, on create and on update; with lagging reads the gateway looks again."""
    product, url = emulator
    seeded = [{"user_name": "eva@firma.example", "sso_identifier": OTHER}, {"user_name": "mine@firma.example"}]
    _, mine = product.seed({"users": seeded})["ids"]
    async with connected(url, access_key) as connector:
        error = await refusal(connector.create(wish(), Delivery()))
        assert (type(error), error.code) == (Conflict, "account_of_another")
        error = await refusal(connector.update(mine, wish(), Delivery()))
        assert (type(error), error.code) == (Conflict, "user_name_taken")
        product.fault("stale_read", lag_s=60)
        error = await refusal(connector.create(wish(), Delivery()))
        assert (type(error), error.code) == (Conflict, "conflict")


async def test_a_lost_create_answer_makes_no_second_user(emulator: Any, access_key: Path) -> None:
    """A3: drop_response on POST; 409 with the same externalId is done."""
    product, url = emulator
    product.fault("drop_response", method="POST", times=1)
    async with connected(url, access_key) as connector:
        assert (await refusal(connector.create(wish(), Delivery()))).ambiguous
        assert len(await connector.find(wish(), (), Delivery())) == 1
        assert (await refusal(connector.create(wish(), Delivery()))).code == "already_there"
    assert len(users(product)) == 1


@pytest.mark.parametrize("on_delete", ["delete", "deactivate"])
async def test_a_deletion_disables_and_gone_is_fine(emulator: Any, access_key: Path, on_delete: str) -> None:
    """A6, A7, 5.6: DELETE disables; a re-created user is found again by externalId."""
    product, url = emulator
    async with connected(url, access_key, on_delete=on_delete) as connector:
        account_id = await connector.create(wish(), Delivery())
        await connector.delete(account_id, Delivery())
        assert users(product)[0]["enabled"] is False
        await connector.delete("no-such-user", Delivery())
        assert isinstance(await refusal(connector.update("no-such-user", wish(), Delivery())), Gone)
        (found,) = await connector.find(wish(), (), Delivery())
        await connector.update(found.account_id, wish(), Delivery())
    assert users(product)[0]["enabled"] is True


async def test_a_deletion_is_not_done_when_the_synchronization_is_gone(emulator: Any, access_key: Path) -> None:
    """S15, 5.5: 404 on the endpoint itself is class C, also where 404 would be fine for one user."""
    product, url = emulator
    async with connected(url, access_key) as connector:
        account_id = await connector.create(wish(), Delivery())
        group_id = await connector.put_group(None, a_group(), Delivery())
        product.delete()
        for step in (
            connector.delete(account_id, Delivery()),
            connector.delete_group(group_id, Delivery()),
            connector.create(wish(), Delivery()),
        ):
            error = await refusal(step)
            assert (type(error), error.code) == (Misconfigured, "wrong_address")
            assert "deleted in Sofa" in str(error)


# Managers -------------------------------------------------------------------------------------------------------------


async def test_everything_else_is_applied_and_the_gateway_hears_of_the_manager_who_is_missing(
    emulator: Any, access_key: Path
) -> None:
    """5.3, 5.5: the id is the gateway's; not there yet: all else is applied, and the delivery says who is missing."""
    product, url = emulator
    async with connected(url, access_key) as connector:
        ctx = Delivery()
        account_id = await connector.create(with_manager("gw-3"), ctx)
        (held,) = users(product)
        assert (account_id, ctx.unresolved) == (held["id"], ["gw-3"])
        assert (held["department"], held["direct_superior"]) == ("Účtárna", None)
        ctx = Delivery()
        await connector.update(account_id, with_manager("gw-3", title="Head"), ctx)
        assert (users(product)[0]["job"], ctx.unresolved) == ("Head", ["gw-3"])
        before = len(writes(product))
        await connector.update(account_id, with_manager("gw-3", title="Head"), Delivery())
        assert len(writes(product)) == before, "waiting costs no writes"


async def test_a_manager_who_can_be_translated_is_set_and_can_be_removed(emulator: Any, access_key: Path) -> None:
    """5.3: translated to Sofa's id; cleared when Entra says so, kept when it says nothing."""
    product, url = emulator
    boss = product.seed({"users": [{"user_name": "boss@firma.example"}]})["ids"][0]
    ctx = Delivery(accounts={"gw-3": boss})
    async with connected(url, access_key) as connector:
        account_id = await connector.create(with_manager("gw-3"), ctx)
        held = {user["id"]: user for user in users(product)}
        assert held[account_id]["direct_superior"] == boss
        await connector.update(account_id, with_manager("gw-3"), ctx)
        await connector.update(account_id, wish(), Delivery())
        assert len(writes(product)) == 1 + 1, "only personal_number was missing in between"
        await connector.update(account_id, with_manager(None), Delivery())
        assert next(u for u in users(product) if u["id"] == account_id)["direct_superior"] is None
        await connector.update(account_id, with_manager("gw-3"), ctx)
    assert next(u for u in users(product) if u["id"] == account_id)["direct_superior"] == boss


async def test_a_manager_sofa_does_not_know_stops_nothing_else(emulator: Any, access_key: Path) -> None:
    """5.5, 5.6: 400 for an unknown manager: W; everything else is applied."""
    product, url = emulator
    ctx = Delivery(accounts={"gw-3": "no-such-user"})
    async with connected(url, access_key) as connector:
        waiting = await refusal(connector.create(with_manager("gw-3"), ctx))
        (held,) = users(product)
        assert (type(waiting), waiting.on, waiting.account_id) == (Blocked, "manager:gw-3", held["id"])
        assert (waiting.attribute, waiting.observed_active, ctx.unresolved) == (MANAGER, None, [])
        waiting = await refusal(connector.update(held["id"], with_manager("gw-3", title="Head"), ctx))
        assert isinstance(waiting, Blocked)
        assert users(product)[0]["job"] == "Head"
        assert isinstance(await refusal(connector.update(held["id"], with_manager("gw-3", title="Head"), ctx)), Blocked)
        product.fault("status", method="PATCH", status=400)
        assert type(await refusal(connector.update(held["id"], with_manager("gw-3", title="X"), ctx))) is Rejected


# Groups ---------------------------------------------------------------------------------------------------------------


def a_group(last: str = "01", name: str = "Entra Sales") -> Group:
    return Group(display_name=name, external_id=remote(last))


async def test_a_mapped_group_is_forwarded_with_its_object_id_and_gives_groups_and_roles(
    emulator: Any, access_key: Path
) -> None:
    """S10-S12, 5.3: Sofa's own rows match on the object id; several rows on one group hold as long as one of them does."""
    product, url = emulator
    ids = product.seed({"users": [{"user_name": f"u{number}@firma.example"} for number in range(2)]})["ids"]
    async with connected(url, access_key) as connector:
        assert isinstance(connector, PutsGroups)
        both = [await connector.put_group(None, a_group(last, f"Entra {last}"), Delivery()) for last in ("01", "02")]
        for group_id in both:
            await connector.change_members(group_id, ids, (), Delivery())
        shown = product.state()
        assert (set(shown["sofa_groups"]["Sales"]), set(shown["sofa_roles"]["approver"])) == (set(ids), set(ids))
        await connector.change_members(both[0], (), ids[:1], Delivery())
        shown = product.state()
        assert (set(shown["sofa_groups"]["Sales"]), shown["sofa_roles"]["approver"]) == (set(ids), ids[1:])
        await connector.delete_group(both[0], Delivery())
        await connector.delete_group(both[0], Delivery())
        shown = product.state()
        assert (set(shown["sofa_groups"]["Sales"]), shown["sofa_roles"]["approver"]) == (set(ids), [])
    assert [group["externalId"] for group in groups(product)] == [remote("02")]
    assert len(users(product)) == 2


async def test_an_unmapped_group_is_acknowledged_noted_counted_and_not_forwarded(
    emulator: Any, access_key: Path
) -> None:
    """5.3, 5.5: `ignored: no mapping for <object id>`; no call at all, in any step of its life."""
    product, url = emulator
    async with connected(url, access_key) as connector:
        ctx = Delivery()
        assert await connector.find_group(a_group("99"), (), ctx) == []
        group_id = await connector.put_group(None, a_group("99"), ctx)
        assert group_id == f"{UNMAPPED}{remote('99')}"
        await connector.change_members(group_id, ["u1"], ["u2"], ctx)
        assert await connector.put_group(group_id, a_group("99", "Renamed"), ctx) == group_id
        await connector.delete_group(group_id, ctx)
        assert ctx.warnings == [f"ignored: no mapping for {remote('99')}"] * 2
        assert [(one.code, one.subject) for one in ctx.noted] == [(NO_MAPPING, remote("99"))] * 2
        assert ctx.not_told
    assert product.recorded() == []


async def test_a_map_edit_lets_a_stored_group_be_made(emulator: Any, access_key: Path) -> None:
    """5.3: re-evaluated after a map edit: what was not forwarded is said to be gone, so that the worker makes it."""
    product, url = emulator
    rows = [*GROUP_MAP, {"remote": remote("99"), "sofa": "New"}]
    async with connected(url, access_key, group_map=rows) as connector:
        error = await refusal(connector.put_group(f"{UNMAPPED}{remote('99')}", a_group("99"), Delivery()))
        assert (type(error), error.code) == (Gone, "mapped_now")
        assert await connector.find_group(a_group("99"), (), Delivery()) == []
        made = await connector.put_group(None, a_group("99"), Delivery())
        assert connector.group_stands(a_group("99"), made)
        assert not connector.group_stands(a_group("99"), f"{UNMAPPED}{remote('99')}")
        assert connector.group_stands(a_group("x"), made), "an id that is none is refused elsewhere"
    async with connected(url, access_key) as connector:
        assert not connector.group_stands(a_group("99"), made)
        error = await refusal(connector.put_group(made, a_group("99", "Renamed"), Delivery()))
        assert (type(error), error.code) == (Gone, "unmapped_now"), "the row was taken out again"
    assert groups(product) == []


async def test_unmapped_groups_can_be_forwarded(emulator: Any, access_key: Path) -> None:
    """5.3, 5.6: forward_unmapped_groups; Sofa accepts them without effect."""
    product, url = emulator
    async with connected(url, access_key, forward_unmapped_groups=True) as connector:
        await connector.put_group(None, a_group("99"), Delivery())
    assert [group["externalId"] for group in groups(product)] == [remote("99")]


@pytest.mark.parametrize(
    ("value", "code"), [(None, "missing_external_id"), (" ", "missing_external_id"), ("Sales", "bad_object_id")]
)
async def test_a_group_without_an_object_id_is_refused_with_the_remedy(value: Any, code: str) -> None:
    """5.3: class P, before any call."""
    group = Group(display_name="Sales", external_id=UNSET if value is None else value)
    for step in (offline().put_group(None, group, Delivery()), offline().find_group(group, (), Delivery())):
        error = await refusal(step)
        assert (type(error), error.code, error.attribute) == (NormalizationError, code, "externalId")
        assert "objectId to externalId for groups" in str(error)


@pytest.mark.parametrize(
    ("seeded", "found"),
    [
        ([{"displayName": "Other", "externalId": remote("01")}, {"displayName": "Entra Sales"}], 0),
        ([{"displayName": "ENTRA sales"}], 0),
        ([{"displayName": "Entra Sales", "externalId": remote("02")}], None),
        ([], None),
    ],
)
async def test_a_group_is_found_by_object_id_then_by_name_without_one(
    emulator: Any, access_key: Path, seeded: list[dict[str, Any]], found: int | None
) -> None:
    """5.3: names of groups are not unique in Entra, so one with another object id is another group."""
    product, url = emulator
    ids = product.seed({"groups": seeded})["group_ids"]
    async with connected(url, access_key) as connector:
        hits = await connector.find_group(a_group(), ("displayName:entra sales",), Delivery())
        assert [hit.account_id for hit in hits] == ([] if found is None else [ids[found]])
        looked = await connector.find_group(None, ("displayName:entra sales", "title:x"), Delivery())
        named = [group for group in seeded if group["displayName"].casefold() == "entra sales"]
        assert len(looked) == len(named)
        if found is not None:
            await connector.put_group(ids[found], a_group(), Delivery())
            held = product.state()["groups"][ids[found]]
            assert (held["displayName"].casefold(), held["externalId"]) == ("entra sales", remote("01"))


async def test_a_group_that_reads_do_not_show_yet_is_looked_at_again(emulator: Any, access_key: Path) -> None:
    """5.6: stale_read after POST /Groups, and a lost answer."""
    product, url = emulator
    product.fault("drop_response", method="POST", times=1)
    async with connected(url, access_key) as connector:
        assert (await refusal(connector.put_group(None, a_group(), Delivery()))).ambiguous
        stale = product.fault("stale_read", lag_s=60)
        assert await connector.find_group(a_group(), (), Delivery()) == []
        assert (await refusal(connector.put_group(None, a_group(), Delivery()))).code == "conflict"
        product.clear_faults(stale)
        assert (await refusal(connector.put_group(None, a_group(), Delivery()))).code == "already_there"
    assert len(groups(product)) == 1


async def test_an_unknown_member_waits_and_the_others_are_added(emulator: Any, access_key: Path) -> None:
    """5.5: member missing is W; whole groups are large, so members go in chunks (S20)."""
    product, url = emulator
    ids = product.seed({"users": [{"user_name": f"u{number}@firma.example"} for number in range(150)]})["ids"]
    async with connected(url, access_key) as connector:
        group_id = await connector.put_group(None, a_group(), Delivery())
        waiting = await refusal(connector.change_members(group_id, [*ids, "ghost"], (), Delivery()))
        assert (type(waiting), waiting.on, waiting.account_id) == (Blocked, "member:ghost", group_id)
        assert set(groups(product)[0]["members"]) == set(ids)
        product.fault("status", method="PATCH", status=400)
        assert type(await refusal(connector.change_members(group_id, ids[:1], (), Delivery()))) is Rejected
        product.clear_faults()
        assert isinstance(await refusal(connector.change_members("no-such-group", ids[:1], (), Delivery())), Gone)


# Failure classes and the key ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "ambiguous"),
    [
        *FAULTS,
        ({"kind": "status", "status": 500}, Unavailable, False),
        ({"kind": "rate_limit", "retry_after": 9}, RateLimited, False),
        ({"kind": "status", "status": 400}, Rejected, False),
    ],
)
async def test_faults_of_the_product_become_their_class(
    emulator: Any, access_key: Path, fault: dict[str, Any], kind: type, ambiguous: bool
) -> None:
    """Vendor pages 0.4, 0.5 and 5.5, over real HTTP."""
    product, url = emulator
    fail_writes(product, fault)
    async with connected(url, access_key) as connector:
        error = await refusal(connector.create(wish(), Delivery()))
    assert type(error) is kind
    assert getattr(error, "ambiguous", False) is ambiguous


async def test_five_calls_a_second_are_kept(access_key: Path) -> None:
    """5.3: the emulator reports every call too many as a violation."""
    product = SofaEmulator()
    async with running(product) as url, connected(url, access_key, paced=True) as connector:
        await asyncio.gather(*(connector.list_accounts(None) for _ in range(8)))
    assert len(product.recorded()) == 8
    assert not product.violations


async def test_an_expired_key_says_which_date_was_configured_and_a_new_one_goes_on(
    emulator: Any, access_key: Path
) -> None:
    """S16-S18, 5.3, 5.5: class C naming the date; after a new key is entered processing resumes without loss."""
    product, url = emulator
    issued = datetime.now(UTC).date()
    async with connected(url, access_key) as connector:
        product.advance(731 * 86_400)
        for step in (connector.check(), connector.create(wish(), Delivery())):
            error = await refusal(step)
            assert type(error) is Misconfigured
            assert (issued + timedelta(days=730)).isoformat() in str(error)
            assert "Access details" in str(error)
        secret_file(access_key, product.generate_key(365))
        await connector.create(wish(), Delivery())
    assert len(users(product)) == 1


async def test_a_disabled_synchronization_concerns_the_target(emulator: Any, access_key: Path) -> None:
    """S6, S18: 403 while disabled."""
    product, url = emulator
    product.edit({"enabled": False})
    async with connected(url, access_key) as connector:
        error = await refusal(connector.create(wish(), Delivery()))
        assert (type(error), error.code) == (Misconfigured, "forbidden")
        assert "enabled in Sofa" in str(error)
        product.edit({"enabled": True})
        await connector.create(wish(), Delivery())


async def test_a_second_key_takes_over_without_a_gap(emulator: Any, access_key: Path, tmp_path: Path) -> None:
    """5.3: two keys at once; calls that meet the same refusal together all go on with the other one."""
    product, url = emulator
    second = secret_file(tmp_path / "second", "not yet generated")
    today = datetime.now(UTC).date()
    following = {"access_key": {"file": str(second)}, "key_issued": today, "key_validity_days": 365}
    async with connected(url, access_key, next_key=following) as connector:
        await connector.list_accounts(None)
        secret_file(second, product.generate_key(365))
        await asyncio.gather(*(connector.list_accounts(None) for _ in range(4)))
    async with connected(url, tmp_path / "lost", next_key=following) as connector:
        await connector.list_accounts(None)
    async with connected(url, access_key, next_key={**following, "access_key": {"file": str(access_key)}}) as connector:
        assert isinstance(await refusal(connector.check()), Misconfigured)


@pytest.mark.parametrize(
    ("age", "validity", "code", "level"),
    [
        (0, 365, "key_valid", "ok"),
        (335, 365, "key_expiring_30", "warning"),
        (351, 365, "key_expiring_14", "warning"),
        (358, 365, "key_expiring_7", "warning"),
        (364, 365, "key_expiring_1", "warning"),
        (366, 365, "key_dates_wrong", "warning"),
    ],
)
async def test_check_warns_of_the_keys_end_at_each_step(
    emulator: Any, access_key: Path, age: int, validity: int, code: str, level: str
) -> None:
    """S16, 5.3: 30, 14, 7 and 1 days ahead; a code of its own per step, so that each step alerts once."""
    _, url = emulator
    issued = datetime.now(UTC).date() - timedelta(days=age)
    async with connected(url, access_key, key_issued=issued, key_validity_days=validity) as connector:
        findings = await connector.check()
    assert [(finding.level, finding.code) for finding in findings] == [("ok", "reachable"), (level, code)]


async def test_a_newer_second_key_ends_the_warning(emulator: Any, access_key: Path) -> None:
    """5.3: what counts is the key that is valid longest."""
    _, url = emulator
    today = datetime.now(UTC).date()
    following = {"access_key": {"file": str(access_key)}, "key_issued": today, "key_validity_days": 365}
    old = {"key_issued": today - timedelta(days=85), "key_validity_days": 90}
    async with connected(url, access_key, next_key=following, **old) as connector:
        assert [finding.code for finding in await connector.check()] == ["reachable", "key_valid"]


async def test_check_finds_setup_mistakes_and_writes_nothing(emulator: Any, access_key: Path) -> None:
    """S3, S9, S10, S12, S15, S18, A12: all of them as findings with a code of their own."""
    product, url = emulator
    async with connected(url, access_key, password_link=True, group_map=[], role_map=[]) as connector:
        codes = {finding.code for finding in await connector.check()}
        assert codes == {"reachable", "key_valid", "password_link", "no_maps"}
        product.edit({"enabled": False})
        (disabled,) = await connector.check()
        product.delete()
        (deleted,) = await connector.check()
        product.add({"name": "Directory", "kind": "ldap"})
        product.revoke_token(revoked=False)
        (other,) = await connector.check()
    findings = (disabled, deleted, other)
    assert {finding.level for finding in findings} == {"error"}
    codes = ["synchronization_disabled", "synchronization_deleted", "other_synchronization"]
    assert [finding.code for finding in findings] == codes
    assert "enabled in Sofa" in disabled.message
    assert "one kind of synchronization" in other.message
    assert writes(product) == []


async def test_accounts_are_listed_page_by_page(emulator: Any, access_key: Path) -> None:
    """Contract, ListsAccounts."""
    product, url = emulator
    seeded = [{"user_name": f"u{number:03}@firma.example", "enabled": number != 7} for number in range(205)]
    product.seed({"users": [*seeded, {"user_name": "eva@firma.example", "sso_identifier": EVA}]})
    listed: list[Any] = []
    async with connected(url, access_key) as connector:
        assert isinstance(connector, ListsAccounts)
        cursor: str | None = None
        for _ in range(10):
            page, cursor = await connector.list_accounts(cursor)
            listed += page
            if cursor is None:
                break
    assert len({entry["account_id"] for entry in listed}) == 206
    assert [entry["identities"] for entry in listed if not entry["active"]] == [("userName:u007@firma.example",)]
    assert listed[-1]["identities"] == (f"externalId:{EVA}", "userName:eva@firma.example")


def test_sso_identifier_and_user_name_are_the_natural_keys() -> None:
    """A1, S23."""
    assert offline().account_keys(wish()) == (EVA, "eva@firma.example")


def test_the_endpoint_url_gives_host_and_scim_root() -> None:
    """S17, S26: the Endpoint URL as Sofa shows it."""
    connector = offline(endpoint_url="https://firma.sofa.example.com/api/scim/entra/")
    endpoint = Sofa.endpoint(connector.settings)
    assert endpoint is not None
    assert endpoint.base_url == "https://firma.sofa.example.com"
    assert connector.scim.path("/Users") == "/api/scim/entra/Users"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"endpoint_url": "http://sofa.example.com/scim"}, "https://"),
        ({"key_validity_days": 30}, "key_validity_days"),
        ({"key_validity_days": 731}, "key_validity_days"),
        ({"key_issued": "soon"}, "key_issued"),
        ({"identifier": "a-b"}, "identifier starts with a letter"),
        ({"group_map": [{"remote": "Sales", "sofa": "Sales"}]}, "must be the object id"),
        ({"role_map": [{"remote": remote("01"), "sofa": " "}]}, "no name of Sofa"),
        ({"group_map": [{"remote": remote("01"), "safa": "x"}]}, "group_map"),
        ({"access_key": "plain"}, "a secret is a reference"),
        ({"next_key": {"access_key": {"env": "T"}, "key_issued": "2026-03-01", "key_validity_days": 3}}, "next_key"),
        ({"acces_key": {"env": "T"}}, "did you mean access_key?"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_the_file_is_read(options: dict[str, Any], said: str) -> None:
    """S5, S11, S16: a mistake is said at start, not at the first delivery."""
    table = {
        "endpoint_url": "https://sofa.example.com/scim/entra",
        "access_key": {"env": "T"},
        "key_issued": "2026-03-01",
        "key_validity_days": 120,
        **options,
    }
    problems: list[str] = []
    assert registry.decode_settings("sofa", table, "targets.s.settings", problems) is None
    assert any(problem.startswith("targets.s.settings") and said in problem for problem in problems), problems


# Under the whole engine -----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def at_work(folder: Path, url: str, access_key: Path, **options: Any) -> AsyncIterator[Driven]:
    """The engine with this connector."""
    async with connected(url, access_key, **options) as connector, driven(folder, connector) as here:
        yield here


def a_document(**document: Any) -> dict[str, Any]:
    return {"userName": "eva@firma.example", "externalId": EVA, "active": True, "displayName": "Eva", **document}


FAULTS: list[dict[str, Any]] = [
    {"kind": "status", "status": 408},
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 503},
    {"kind": "rate_limit", "retry_after": 9},
    {"kind": "html"},
    {"kind": "reset"},
    {"kind": "truncate"},
    {"kind": "drop_response"},
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.get("status", fault["kind"])))
async def test_what_passes_is_tried_again_until_there_is_one_user(
    emulator: Any, access_key: Path, tmp_path: Path, fault: dict[str, Any]
) -> None:
    """5.5, class T: 429, 5xx, resets, also where the write had its effect: one user, one welcome, nothing is lost."""
    product, url = emulator
    product.edit({"mail_to_new_users": True})
    options = dict(fault)
    product.fault(options.pop("kind"), method="POST", times=2, **options)
    async with at_work(tmp_path, url, access_key) as here:
        row = await here.settled(await here.user(a_document()))
    assert (row.state, row.reason) == (State.APPLIED, None)
    assert here.results()[0] in (Result.RETRY, Result.RATE_LIMITED)
    assert [one["sso_identifier"] for one in users(product)] == [EVA]
    assert [mail["kind"] for mail in product.state()["mails"].values()] == ["welcome"]


@pytest.mark.parametrize("broken", ["expired", "regenerated", "disabled", "deleted", "other kind"])
async def test_what_concerns_the_synchronization_stops_the_target_and_loses_nothing(
    emulator: Any, access_key: Path, tmp_path: Path, broken: str
) -> None:
    """S3, S15, S16, S18, 5.3, 5.5, class C: also a removal is not taken for done; it goes on by itself after the correction."""
    product, url = emulator
    maps = {"group_map": GROUP_MAP, "role_map": ROLE_MAP}
    async with at_work(tmp_path, url, access_key) as here:
        left = await here.user(a_document(userName="left@firma.example", externalId=OTHER))
        group = await here.group("Sales", remote("01"), left)
        assert (await here.settled(group)).state is State.APPLIED
        match broken:
            case "expired":
                product.advance(731 * 86_400)
            case "regenerated":
                new = product.generate_key(120)
            case "disabled":
                product.edit({"enabled": False})
            case _:
                product.delete()
                if broken == "other kind":
                    product.add({"name": "Directory", "kind": "ldap"})
                    product.revoke_token(revoked=False)
        await here.delete(left)
        await here.delete(group)
        await here.user(a_document())
        await here.later(1.0)
        target = await here.store.run(lambda ledger: ledger.target(TARGET))
        assert target.circuit is Circuit.AUTH
        assert {one.result for one in here.outcomes_seen[3:]} <= {Result.MISCONFIGURED}
        if broken in ("expired", "regenerated", "disabled"):
            assert "by the settings the access key" in target.circuit_reason.casefold(), (
                "says which date was configured"
            )

        if broken in ("deleted", "other kind"):
            product.delete()
            product.add({"name": "Entra", "identifier": "entra", **maps})
        product.edit({"enabled": True})
        if broken != "disabled":
            new = new if broken == "regenerated" else product.generate_key(120)
            secret_file(access_key, new)
        for _ in range(3):
            await here.later(61.0)
    assert {one["user_name"]: one["enabled"] for one in users(product)} == {
        "left@firma.example": False,
        "eva@firma.example": True,
    }
    assert groups(product) == []


@pytest.mark.parametrize(
    ("seeded", "document", "code", "writes_there"),
    [
        ({}, {"externalId": "jan.novak"}, "bad_object_id", 0),
        ({}, {"externalId": ""}, "missing_external_id", 0),
        ({"user_name": "eva@firma.example", "sso_identifier": OTHER}, {}, "account_of_another", 0),
        ({"status": 400}, {}, "refused", 0),
    ],
)
async def test_what_can_never_be_taken_is_a_dead_letter_with_its_remedy(
    emulator: Any,
    access_key: Path,
    tmp_path: Path,
    seeded: dict[str, Any],
    document: dict[str, Any],
    code: str,
    writes_there: int,
) -> None:
    """S21, 5.5, classes P and U: a mail nickname as externalId, somebody else's user name, a plain 400."""
    product, url = emulator
    if "status" in seeded:
        product.fault("status", method="POST", **seeded)
    elif seeded:
        product.seed({"users": [seeded]})
    async with at_work(tmp_path, url, access_key) as here:
        row = await here.settled(await here.user(a_document(**document)))
    assert row.reason is not None
    assert (row.state, row.reason.code) == (State.DEAD, code)
    assert len(product.journal.effects(op="create")) == writes_there
    if code == "bad_object_id":
        assert "from mailNickname to objectId" in row.reason.message


async def test_a_user_made_by_hand_is_adopted_and_one_that_is_gone_is_looked_for(
    emulator: Any, access_key: Path, tmp_path: Path
) -> None:
    """5.5, A6: 409 that cannot be seen coming: adopt and set externalId; 404 on update: search, else make it again."""
    product, url = emulator
    product.seed({"users": [{"user_name": "eva@firma.example"}]})
    lag = product.fault("stale_read", lag_s=60)
    async with at_work(tmp_path, url, access_key) as here:
        resource = await here.user(a_document())
        await here.work()
        assert (await here.row(resource)).blocked_on == "identity held at the product"
        product.clear_faults(lag)
        assert (await here.settled(resource)).state is State.APPLIED
        (held,) = users(product)
        assert (held["user_name"], held["sso_identifier"]) == ("eva@firma.example", EVA)
        product.control("by hand", product.drop(product.scim_resources[0], held))
        await here.change(resource, title="Head")
        row = await here.settled(resource)
        (made,) = users(product)
        assert (row.account_id, made["job"]) == (made["id"], "Head")
        product.control("by hand", product.drop(product.scim_resources[0], made))
        await here.change(resource, active=False)
        assert (await here.settled(resource)).state is State.APPLIED
    assert users(product) == [], "nobody is made who shall be switched off"


async def test_managers_and_members_who_come_later_follow_by_themselves(
    emulator: Any, access_key: Path, tmp_path: Path
) -> None:
    """S20, 5.3, 5.5, class W: whole groups; everything but the missing manager and member is applied at once."""
    product, url = emulator
    async with at_work(tmp_path, url, access_key) as here:
        product.fault("status", status=503, method="POST", contains="boss@firma.example")
        boss = await here.user(a_document(userName="boss@firma.example", externalId=OTHER))
        eva = await here.user(a_document(**{ENTERPRISE_SCHEMA: {"manager": {"value": boss}, "department": "IT"}}))
        group = await here.group("Entra Sales", remote("01"), boss, eva)
        await here.work()
        (held,) = users(product)
        assert (held["user_name"], held["department"], held["direct_superior"]) == ("eva@firma.example", "IT", None)
        assert product.state()["sofa_roles"]["approver"] == [held["id"]]
        assert [(await here.row(one)).blocked_on for one in (eva, group)] == [f"manager {boss}", f"member {boss}"]
        product.clear_faults()
        for _ in range(3):
            await here.later(31.0)
        ids = {one["user_name"]: one["id"] for one in users(product)}
        shown = {one["user_name"]: one["direct_superior"] for one in users(product)}
        assert shown == {"boss@firma.example": None, "eva@firma.example": ids["boss@firma.example"]}
    assert set(product.state()["sofa_roles"]["approver"]) == set(ids.values())


async def test_a_map_edit_sends_the_affected_groups_again_and_no_others(
    emulator: Any, access_key: Path, tmp_path: Path
) -> None:
    """5.3: rows that came and went, with a worker of the new settings: groups are made with all their members, and removed with
    what they gave; several remote ids on one group of Sofa hold as long as one does; unmapped ones are counted by object id."""
    product, url = emulator
    new_rows = [*GROUP_MAP[1:], {"remote": remote("99"), "sofa": "New"}]  # without 01, with 99
    new_roles = [row for row in ROLE_MAP if row["remote"] != remote("01")]
    async with at_work(tmp_path, url, access_key) as here:
        people = [
            await here.user(a_document(userName=f"u{n}@firma.example", externalId=f"{EVA[:-2]}1{n}")) for n in range(3)
        ]
        first = await here.group("One", remote("01"), *people[:2])
        second = await here.group("Two", remote("02"), people[0])
        late = await here.group("Late", remote("99"), *people)
        for one in (*people, first, second, late):
            assert (await here.settled(one)).state is State.APPLIED
        assert here.outcomes_seen[-1].note == "ignored"
        await here.members(late, remove(people[2]))
        await here.settled(late)
        await here.members(late, add(people[2]))
        await here.settled(late)
        ((noted, note),) = await here.noted(NO_MAPPING)
        assert (noted, note.subject, note.times >= 3) == (late, remote("99"), True)
        ids = {one["user_name"]: one["id"] for one in users(product)}
        assert set(product.state()["sofa_groups"]["Sales"]) == {ids["u0@firma.example"], ids["u1@firma.example"]}

        product.edit({"group_map": new_rows, "role_map": new_roles})
        async with connected(url, access_key, group_map=new_rows, role_map=new_roles) as renewed:
            here.connector = renewed
            quiet = len(here.outcomes_seen)
            assert await here.regrouping.changed(TARGET) == 2
            for one in (first, second, late):
                assert (await here.settled(one)).state is State.APPLIED
            await here.later(31.0)
            touched = {one.resource for one in here.outcomes_seen[quiet:]}
            assert touched == {first, late}, "the second group stands as it is"
            assert await here.regrouping.look(TARGET) == 0
            shown = product.state()["sofa_groups"]
            assert {name: len(held) for name, held in shown.items()} == {
                "Sales": 1,
                "Accounting": 0,
                "Archive": 0,
                "New": 3,
            }
            assert [one for one, _ in await here.noted(NO_MAPPING)] == [first]

        async with connected(url, access_key) as before:
            here.connector = before
            product.edit({"group_map": GROUP_MAP, "role_map": ROLE_MAP})
            assert await here.regrouping.changed(TARGET) == 2
            for one in (first, late):
                assert (await here.settled(one)).state is State.APPLIED
            await here.later(31.0)
    assert set(product.state()["sofa_groups"]["Sales"]) == {ids["u0@firma.example"], ids["u1@firma.example"]}
    assert {group["externalId"] for group in groups(product)} == {remote("01"), remote("02")}
