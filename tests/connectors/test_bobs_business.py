"""Bob's Business: the decision table, groups, invitations, and every failure class against the emulator over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors import registry
from connectors.bobs_business import (
    Account,
    BobsBusiness,
    Platform,
    Settings,
    decide_create,
    normalize_address,
)
from connectors.contract import Delivery, ListsAccounts, PutsGroups
from deploy.emulators.bobs_business import PERMISSIONS, BobsBusinessEmulator
from deploy.emulators.harness import running
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
from schemas.resources import Group, User
from schemas.states import Circuit, Result, State
from tests.connectors.alone import (
    FAULTS,
    Known,
    Repeating,
    built,
    correctly_used,
    fail_writes,
    refusal,
    secret_file,
    users,
)
from tests.connectors.driven import TARGET, Driven, add, driven, remove

ANNA = "8f1c0000-0000-0000-0000-000000000001"
OTHER = "8f1c0000-0000-0000-0000-000000000002"
PLATFORM = [
    {"id": "p1", "email": "anna@acme.co.uk"},
    {"id": "p2", "email": "Bob.Brown@Acme.co.uk"},
    {"id": "p3", "email": "carol.white@acme.co.uk"},
    {"id": "p4", "email": "dave@acme.onmicrosoft.com"},
    {"id": "p5", "email": "erin@acme.co.uk", "linked": OTHER},
    {"id": "p6", "email": "frank@acme.co.uk"},
    {"id": "p7", "email": "Frank@acme.co.uk"},
]
ALIAS = {"domain_aliases": {"acme.onmicrosoft.com": "acme.co.uk"}}
CAROL = {"userName": "cwhite@acme.co.uk", "mail": "carol.white@acme.co.uk"}
GUEST = "ian_x.com#EXT#@acme.onmicrosoft.com"

DECISIONS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"userName": "anna@acme.co.uk"}, {}, {"action": "adopt", "id": "p1", "email": "anna@acme.co.uk"}),
    ({"userName": "Anna@ACME.co.uk"}, {}, {"action": "adopt", "id": "p1", "email": "anna@acme.co.uk"}),
    ({"userName": "bob.brown@acme.co.uk"}, {}, {"action": "adopt", "id": "p2", "email": "bob.brown@acme.co.uk"}),
    ({"userName": " anna@acme.co.uk "}, {}, {"action": "adopt", "id": "p1", "email": "anna@acme.co.uk"}),
    ({"userName": "gwen@acme.co.uk"}, {}, {"action": "create", "email": "gwen@acme.co.uk", "invite": False}),
    (
        {"userName": "gwen@acme.co.uk"},
        {"invite": "on_create"},
        {"action": "create", "email": "gwen@acme.co.uk", "invite": True},
    ),
    (
        {"userName": "gwen@acme.co.uk"},
        {"invite": "manual"},
        {"action": "create", "email": "gwen@acme.co.uk", "invite": False},
    ),
    (
        {"userName": "gwen@acme.co.uk", "active": "False"},
        {"invite": "on_create"},
        {"action": "create", "email": "gwen@acme.co.uk", "invite": False},
    ),
    (CAROL, {}, {"action": "conflict", "code": "exists_under_other_address", "ids": ["p3"]}),
    (CAROL, {"match_alternate": "adopt"}, {"action": "adopt", "id": "p3", "email": "cwhite@acme.co.uk"}),
    (CAROL, {"email_from": "mail"}, {"action": "adopt", "id": "p3", "email": "carol.white@acme.co.uk"}),
    (
        {"userName": "dave@acme.co.uk"},
        {},
        {"action": "create", "email": "dave@acme.co.uk", "invite": False, "warnings": ["possible_duplicate"]},
    ),
    ({"userName": "dave@acme.co.uk"}, ALIAS, {"action": "adopt", "id": "p4", "email": "dave@acme.co.uk"}),
    (
        {"userName": "hugo@acme.onmicrosoft.com"},
        ALIAS,
        {"action": "create", "email": "hugo@acme.co.uk", "invite": False},
    ),
    ({"userName": "erin@acme.co.uk"}, {}, {"action": "conflict", "code": "linked_elsewhere", "ids": ["p5"]}),
    ({"userName": "frank@acme.co.uk"}, {}, {"action": "conflict", "code": "duplicate_accounts", "ids": ["p6", "p7"]}),
    ({"userName": GUEST}, {}, {"action": "reject", "code": "bad_email"}),
    (
        {"userName": GUEST, "mail": "ian@x.com"},
        {"email_from": "mail"},
        {"action": "create", "email": "ian@x.com", "invite": False},
    ),
    ({"userName": "kim@acme.co.uk"}, {"email_from": "mail"}, {"action": "reject", "code": "missing"}),
    ({"userName": "lou"}, {}, {"action": "reject", "code": "bad_email"}),
    ({"userName": "anna+hr@acme.co.uk"}, {}, {"action": "create", "email": "anna+hr@acme.co.uk", "invite": False}),
    ({"userName": "mia@acme.co.uk", "mail": "-"}, {}, {"action": "create", "email": "mia@acme.co.uk", "invite": False}),
    # Beyond the page's table: the same rules, one step further.
    ({"userName": "erin@acme.co.uk", "externalId": OTHER.upper()}, {}, {"action": "update", "id": "p5"}),
    (
        {"userName": "e@acme.co.uk", "mail": "erin@acme.co.uk"},
        {"match_alternate": "adopt"},
        {"code": "linked_elsewhere"},
    ),
    ({"userName": "f@acme.co.uk", "mail": "frank@acme.co.uk"}, {"match_alternate": "adopt"}, {"ids": ["p6", "p7"]}),
    ({"userName": "gwen@acme.co.uk", "active": "1"}, {}, {"action": "reject", "code": "bad_boolean"}),
    ({}, {}, {"action": "reject", "code": "missing"}),
]


@pytest.mark.parametrize("arranged", [False, True], ids=["rows", "platform"])
@pytest.mark.parametrize(("user", "config", "expected"), DECISIONS)
def test_each_row_of_the_vendor_page_is_decided(
    user: dict[str, Any], config: dict[str, Any], expected: dict[str, Any], arranged: bool
) -> None:
    """Vendor page 4.4, L1-L3, L11: the same from plain rows and from a platform arranged for many users."""
    platform: Any = Platform(PLATFORM, config.get("domain_aliases")) if arranged else PLATFORM
    decided = decide_create(user, platform, {}, config)
    assert {name: decided.get(name) for name in expected} == expected
    if decided["action"] == "create" and "warnings" not in expected:
        assert decided["warnings"] == []


@pytest.mark.parametrize("key", [ANNA, ANNA.upper()])
def test_a_known_link_wins_over_every_address(key: str) -> None:
    """Vendor page 4.4: linked to p1, address changed; also when the new address is somebody else's other one."""
    user = {"userName": "anna.jones@acme.co.uk", "mail": "carol.white@acme.co.uk", "externalId": ANNA}
    assert decide_create(user, PLATFORM, {key: "p1"}) == {
        "action": "update",
        "id": "p1",
        "email": "anna.jones@acme.co.uk",
    }


def test_an_account_that_our_links_give_to_another_is_linked_elsewhere() -> None:
    """Vendor page 4.3: linked to another object id, known by us although the platform does not say so."""
    decided = decide_create({"userName": "anna@acme.co.uk", "externalId": ANNA}, PLATFORM, {OTHER: "p1"})
    assert (decided["action"], decided["code"], decided["ids"]) == ("conflict", "linked_elsewhere", ["p1"])


ADDRESSES = st.sampled_from([row["email"] for row in PLATFORM] + ["x@a.b", "x@b.c", " X@A.b", GUEST, "lou", "", "-"])
VALUES = ADDRESSES | st.none() | st.integers() | st.text(max_size=20)


@settings(deadline=None)
@given(
    user=st.fixed_dictionaries(
        {},
        optional={
            "userName": VALUES,
            "mail": VALUES,
            "externalId": VALUES,
            "active": st.none() | st.booleans() | VALUES,
        },
    ),
    config=st.fixed_dictionaries(
        {},
        optional={
            "email_from": st.sampled_from(["userName", "mail"]),
            "invite": st.sampled_from(["platform", "manual", "on_create"]),
            "match_alternate": st.sampled_from(["adopt", "refuse"]),
            "domain_aliases": st.dictionaries(
                st.sampled_from(["a.b", "b.c", "c"]), st.sampled_from(["a.b", "b.c", "c"])
            ),
        },
    ),
)
def test_any_user_gets_exactly_one_decision(user: dict[str, Any], config: dict[str, Any]) -> None:
    """0.6: no input crashes the decision; what is created has an address no account has, and deciding again changes nothing."""
    decided = decide_create(user, PLATFORM, {}, config)
    assert decided["action"] in ("create", "adopt", "update", "conflict", "reject")
    if decided["action"] == "create":
        aliases = config.get("domain_aliases")
        assert decided["email"] not in {normalize_address(row["email"], aliases) for row in PLATFORM}
        assert normalize_address(decided["email"], aliases) == decided["email"]
        made = [*PLATFORM, {"id": "new", "email": decided["email"]}]
        assert decide_create(user, made, {}, config) == {"action": "adopt", "id": "new", "email": decided["email"]}


@settings(deadline=None)
@given(
    value=st.none() | st.integers() | st.text(max_size=30) | ADDRESSES, aliases=st.dictionaries(ADDRESSES, ADDRESSES)
)
def test_an_address_normalized_twice_is_the_same(value: Any, aliases: dict[str, str]) -> None:
    """0.6: nothing but NormalizationError is raised; aliases that lead in a circle or nowhere have no effect."""
    domains = {old.partition("@")[2]: new.partition("@")[2] for old, new in aliases.items()}
    try:
        once = normalize_address(value, domains)
    except NormalizationError:
        return
    assert normalize_address(once, domains) == once


def test_a_platform_forgets_and_replaces_accounts() -> None:
    """The arranged rows stay equal to the plain ones when accounts change."""
    platform = Platform(PLATFORM)
    platform.add({"id": "p7", "email": "other@acme.co.uk", "linked": ANNA})
    platform.forget("p1")
    platform.forget("p1")
    assert [row["id"] for row in platform.at("frank@acme.co.uk")] == ["p6"]
    assert platform.owned_by(ANNA.upper()) == "p7"
    assert platform.at("anna@acme.co.uk") == []
    assert len(platform) == 6
    platform.add({"id": "p7", "email": "frank@acme.co.uk"})
    assert platform.owned_by(ANNA) is None


# The connector --------------------------------------------------------------------------------------------------------


def a_document(**document: Any) -> dict[str, Any]:
    return {
        "userName": "Anna@acme.example",
        "externalId": ANNA,
        "active": True,
        "displayName": "Anna Jones",
        "name": {"givenName": "Anna", "familyName": "Jones"},
        "emails": [{"type": "work", "value": "anna@acme.example"}],
        **document,
    }


def a_user(**document: Any) -> User:
    """A user as the vendor's guide maps it."""
    return User.from_document(a_document(**document))


def offline(**options: Any) -> BobsBusiness:
    """A connector whose pure parts are under test."""
    options = {"tenant_url": "https://bobs.example.com/scim/v2", "api_key": Secret(env="T"), **options}
    return BobsBusiness(Settings(**options), registry.CallsNobody())


def wish(connector: BobsBusiness | None = None, **document: Any) -> Account:
    return (connector or offline()).normalize(a_user(**document), Known())


@pytest.fixture
def api_key(tmp_path: Path) -> Path:
    """The credential of the target."""
    return secret_file(tmp_path / "api-key", "demo-token-bobs_business")


@pytest.fixture
async def emulator() -> AsyncIterator[tuple[BobsBusinessEmulator, str]]:
    """A running platform without its rate limit; making the second account of a person is a violation."""
    async with correctly_used(BobsBusinessEmulator(rate_per_s=0)) as used:
        yield used


@contextlib.asynccontextmanager
async def connected(url: str, api_key: Path, *, paced: bool = False, **options: Any) -> AsyncIterator[BobsBusiness]:
    """The connector as a worker builds it."""
    table = {
        "tenant_url": f"{url}/scim/v2",
        "allow_loopback": True,
        "api_key": {"file": str(api_key)},
        **options,
    }
    async with built("bobs_business", table, paced=paced) as connector:
        yield connector


def effects(emulator: BobsBusinessEmulator, op: str) -> int:
    return len(emulator.journal.effects(op=op))


async def test_a_user_is_created_with_the_principal_name_as_address(emulator: Any, api_key: Path) -> None:
    """L2, L10, 4.4: lower case; the attribute set, and nothing else."""
    product, url = emulator
    async with connected(url, api_key) as connector:
        account_id = await connector.create(wish(), Delivery())
    (held,) = users(product)
    assert (held["id"], held["userName"], held["email"]) == (account_id, "anna@acme.example", "anna@acme.example")
    assert (held["givenName"], held["familyName"], held["displayName"]) == ("Anna", "Jones", "Anna Jones")
    assert (held["active"], held["externalId"]) == (True, ANNA)


async def test_mail_is_the_address_where_the_settings_say_so(emulator: Any, api_key: Path) -> None:
    """L11: the only permitted deviation."""
    product, url = emulator
    async with connected(url, api_key, email_from="mail") as connector:
        account = wish(connector, userName="guest#EXT#@acme.example", emails=[{"type": "work", "value": "A@x.example"}])
        assert account.email == "a@x.example"
        await connector.create(account, Delivery())
        with pytest.raises(NormalizationError) as refused:
            wish(connector, emails=[])
    assert (refused.value.code, refused.value.attribute) == ("missing", 'emails[type eq "work"].value')
    assert users(product)[0]["userName"] == "a@x.example"


@pytest.mark.parametrize(
    ("document", "code"),
    [({"userName": "lou"}, "bad_email"), ({"userName": GUEST}, "bad_email"), ({"userName": " "}, "missing")],
)
def test_a_bad_address_is_refused_before_any_call(document: dict[str, Any], code: str) -> None:
    """4.4, class P: names the attribute and the remedy, not the value."""
    with pytest.raises(NormalizationError) as refused:
        wish(**document)
    assert (refused.value.code, refused.value.attribute) == (code, "userName")
    assert "Map it from" in str(refused.value)
    assert "ian_x" not in str(refused.value)


@pytest.mark.parametrize("spelled", ["anna@acme.example", "ANNA@Acme.example", "Anna@ACME.EXAMPLE"])
async def test_an_account_in_any_letter_case_is_adopted_and_never_doubled(
    emulator: Any, api_key: Path, spelled: str
) -> None:
    """L1, 4.6: the platform's filter and its uniqueness are exact, log-in is not."""
    product, url = emulator
    product.seed({"users": [{"userName": "someone@acme.example"}, {"userName": spelled}]})
    async with connected(url, api_key) as connector:
        outcome = await Repeating(connector, "userName", "externalId").settle(a_document())
    assert outcome.result is Result.APPLIED
    held = {user["userName"]: user for user in users(product)}
    assert set(held) == {"someone@acme.example", spelled}
    assert (held[spelled]["externalId"], held[spelled]["displayName"]) == (ANNA, "Anna Jones")


async def test_what_was_found_is_only_read_until_it_is_linked(emulator: Any, api_key: Path) -> None:
    """Delivery rule R4: a worker never writes on an account it merely found."""
    product, url = emulator
    product.seed({"users": [{"userName": "ANNA@acme.example"}]})
    async with connected(url, api_key) as connector:
        outcome = await Repeating(connector, "userName", "externalId").send(a_document())
    assert outcome.result is Result.FOUND
    assert outcome.sightings[0].account_id == users(product)[0]["id"]
    assert {call["method"] for call in product.recorded()} == {"GET"}


async def test_an_account_made_by_a_first_login_is_adopted(emulator: Any, api_key: Path) -> None:
    """4.2: accounts appear just in time, also after all accounts were listed."""
    product, url = emulator
    async with connected(url, api_key) as connector:
        assert await connector.find(wish(), (), Delivery()) == []
        made = product.sso_login("Anna@acme.example")
        (found,) = await connector.find(wish(), (), Delivery())
    assert (found.account_id, found.conflict) == (made["id"], "")


SEEDED = {"userName": "carol.white@acme.example"}
AS_CAROL = {"userName": "cwhite@acme.example", "emails": [{"type": "work", "value": "carol.white@acme.example"}]}


async def test_an_account_under_the_other_address_is_a_conflict_with_a_remedy(emulator: Any, api_key: Path) -> None:
    """L1, 4.5: would be the duplicate the seed warns of."""
    product, url = emulator
    ids = product.seed({"users": [SEEDED]})["ids"]
    async with connected(url, api_key) as connector:
        outcome = await Repeating(connector, "userName", "externalId").settle(a_document(**AS_CAROL))
    assert outcome.result is Result.REJECTED
    assert outcome.reason is not None
    assert (outcome.reason.code, outcome.reason.names) == ("exists_under_other_address", tuple(ids))
    assert outcome.reason.scim_type == "uniqueness"
    assert "match_alternate" in outcome.reason.message
    assert "carol" not in outcome.reason.message
    assert effects(product, "create") == 0


async def test_the_other_address_can_be_taken_over(emulator: Any, api_key: Path) -> None:
    """4.3: match_alternate adopts and changes the address."""
    product, url = emulator
    product.seed({"users": [SEEDED]})
    async with connected(url, api_key, match_alternate="adopt") as connector:
        outcome = await Repeating(connector, "userName", "externalId").settle(a_document(**AS_CAROL))
    assert outcome.result is Result.APPLIED
    (held,) = users(product)
    assert (held["userName"], held["email"]) == ("cwhite@acme.example", "cwhite@acme.example")


@pytest.mark.parametrize(
    ("seeded", "code"),
    [
        ([{"userName": "anna@acme.example", "externalId": OTHER}], "linked_elsewhere"),
        ([{"userName": "anna@acme.example"}, {"userName": "ANNA@acme.example"}], "duplicate_accounts"),
    ],
)
async def test_accounts_that_must_not_be_adopted_are_conflicts(
    emulator: Any, api_key: Path, seeded: list[dict[str, Any]], code: str
) -> None:
    """4.3, class U."""
    product, url = emulator
    product.seed({"users": seeded})
    async with connected(url, api_key) as connector:
        error = await refusal(connector.find(wish(), ("userName:anna@acme.example",), Delivery()))
        assert isinstance(error, Conflict)
        assert error.code == code
        taken = await refusal(connector.create(wish(), Delivery()))
    assert (type(taken), taken.code) == (Conflict, code)
    assert effects(product, "create") == 0


async def test_a_namesake_in_another_domain_is_a_warning_only(emulator: Any, api_key: Path) -> None:
    """4.3: does not block, adds possible_duplicate."""
    product, url = emulator
    product.seed({"users": [{"userName": "anna@acme.onmicrosoft.example"}]})
    async with connected(url, api_key) as connector:
        outcome = await Repeating(connector, "userName", "externalId").settle(a_document())
    assert outcome.result is Result.APPLIED
    assert any(warning.startswith("possible_duplicate") for warning in outcome.warnings)
    assert len(users(product)) == 2


async def test_alias_domains_are_one_person(emulator: Any, api_key: Path) -> None:
    """4.4: domain_aliases before matching and sending."""
    product, url = emulator
    product.seed({"users": [{"userName": "anna@acme.onmicrosoft.example"}]})
    async with connected(url, api_key, domain_aliases={"Acme.onmicrosoft.example": "acme.example"}) as connector:
        outcome = await Repeating(connector, "userName", "externalId").settle(a_document())
        assert wish(connector, userName="x@acme.onmicrosoft.example").email == "x@acme.example"
    assert outcome.result is Result.APPLIED
    assert len(users(product)) == 1


async def test_an_account_of_ours_is_found_under_a_new_address(emulator: Any, api_key: Path) -> None:
    """4.3: the link known by externalId comes first."""
    product, url = emulator
    product.seed({"users": [{"userName": "anna.old@acme.example", "externalId": ANNA}]})
    async with connected(url, api_key) as connector:
        outcome = await Repeating(connector, "userName", "externalId").settle(a_document())
    assert outcome.result is Result.APPLIED
    assert [user["userName"] for user in users(product)] == ["anna@acme.example"]


async def test_looking_only_finds_by_both_identities_and_marks_others_accounts(emulator: Any, api_key: Path) -> None:
    """0.2 and delivery rule R3: what is no address matches nothing; an account of another object is no sign of ours."""
    product, url = emulator
    product.seed(
        {
            "users": [
                {"userName": "ANNA@acme.example"},
                {"userName": "b@acme.example", "externalId": ANNA},
                {"userName": "c@acme.example", "externalId": OTHER},
            ]
        }
    )
    held = {user["userName"]: user["id"] for user in users(product)}
    asked = ("userName:anna@acme.example", f"externalId:{ANNA}", "userName:c@acme.example", "userName:none", "title:x")
    async with connected(url, api_key) as connector:
        found = {one.account_id: one for one in await connector.find(None, asked, Delivery())}
        assert set(found) == set(held.values())
        assert found[held["c@acme.example"]].conflict
        assert not found[held["b@acme.example"]].conflict
    async with connected(url, api_key, email_from="mail") as connector:
        assert await connector.find(None, asked[:1], Delivery()) == []


async def test_an_address_cannot_change_to_somebody_elses(emulator: Any, api_key: Path) -> None:
    """L1: also a rename must not make the second account of an address, in any letter case."""
    product, url = emulator
    product.seed({"users": [{"userName": "x@acme.example", "externalId": ANNA}, {"userName": "ANNA@acme.example"}]})
    async with connected(url, api_key) as connector:
        error = await refusal(connector.update(users(product)[0]["id"], wish(), Delivery()))
    assert (type(error), error.code) == (Conflict, "duplicate_accounts")
    assert effects(product, "update") == 0


async def test_an_update_writes_differences_in_one_call_and_repeats_nothing(emulator: Any, api_key: Path) -> None:
    """A4, L14: what Entra does not say stays, what was removed is cleared, letter case alone is no difference; twice is once."""
    product, url = emulator
    product.seed({"users": [{"userName": "ANNA@acme.example", "givenName": "Old", "displayName": "Kept"}]})
    account_id = users(product)[0]["id"]
    async with connected(url, api_key) as connector:
        document = a_document(name={"givenName": None, "familyName": "Jones"}, active=False)
        del document["displayName"]
        account = connector.normalize(User.from_document(document), Known())
        await connector.update(account_id, account, Delivery())
        await connector.update(account_id, account, Delivery())
    (held,) = users(product)
    assert (held["userName"], held["displayName"], held["active"]) == ("ANNA@acme.example", "Kept", False)
    assert (held["givenName"], held["familyName"], held["externalId"]) == (None, "Jones", ANNA)
    assert effects(product, "update") == 1


async def test_gone_on_update_and_fine_on_delete(emulator: Any, api_key: Path) -> None:
    """A6, A7."""
    product, url = emulator
    account_id = product.seed({"users": [{"userName": "anna@acme.example"}]})["ids"][0]
    async with connected(url, api_key, on_delete="deactivate") as connector:
        await connector.delete(account_id, Delivery())
        await connector.delete("no-such-user", Delivery())
        assert users(product)[0]["active"] is False
    async with connected(url, api_key) as connector:
        await connector.delete(account_id, Delivery())
        await connector.delete(account_id, Delivery())
        assert isinstance(await refusal(connector.update(account_id, wish(), Delivery())), Gone)
    assert users(product) == []


async def test_a_lost_create_answer_makes_no_second_account(emulator: Any, api_key: Path) -> None:
    """A3: drop_response on POST."""
    product, url = emulator
    product.fault("drop_response", method="POST", path="/scim/v2/Users", times=1)
    async with connected(url, api_key) as connector:
        outcome = await Repeating(connector, "userName", "externalId").settle(a_document())
    assert outcome.result is Result.APPLIED
    assert len(users(product)) == 1


async def test_a_create_that_meets_its_own_account_looks_it_up_next(emulator: Any, api_key: Path) -> None:
    """4.5: 409 is done when the account found matches and is free; with lagging reads the gateway looks again."""
    product, url = emulator
    product.seed({"users": [{"userName": "anna@acme.example"}]})
    async with connected(url, api_key) as connector:
        error = await refusal(connector.create(wish(), Delivery()))
        assert (type(error), error.code, error.ambiguous) == (Unavailable, "already_there", True)
        product.fault("stale_read", lag_s=60)
        error = await refusal(connector.create(wish(), Delivery()))
    assert (type(error), error.code) == (Conflict, "conflict")


@pytest.mark.parametrize("status", [403, 422])
async def test_no_free_seat_waits_an_hour_and_heals(api_key: Path, status: int) -> None:
    """4.3, 4.5: class W with an alert, not C; on create and on activation."""
    product = BobsBusinessEmulator(rate_per_s=0, seats=0, seat_status=status)
    async with running(product) as url, connected(url, api_key) as connector:
        waiting = await refusal(connector.create(wish(), Delivery()))
        assert (type(waiting), waiting.on, waiting.retry_after_s, waiting.account_id) == (Blocked, "seat", 3600.0, None)
        account_id = await connector.create(wish(active=False), Delivery())
        waiting = await refusal(connector.update(account_id, wish(), Delivery()))
        assert (type(waiting), waiting.account_id, waiting.observed_active) == (Blocked, account_id, False)
        product.set(seats=1)
        await connector.update(account_id, wish(), Delivery())
    assert users(product)[0]["active"] is True


@pytest.mark.parametrize(
    ("fault", "kind", "ambiguous"),
    [
        *FAULTS,
        ({"kind": "status", "status": 500}, Unavailable, False),
        ({"kind": "rate_limit", "retry_after": 9}, RateLimited, False),
        ({"kind": "status", "status": 400}, Rejected, False),
        ({"kind": "status", "status": 422}, Rejected, False),
    ],
)
async def test_faults_of_the_product_become_their_class(
    emulator: Any, api_key: Path, fault: dict[str, Any], kind: type, ambiguous: bool
) -> None:
    """Vendor pages 0.4, 0.5 and 4.5, over real HTTP."""
    product, url = emulator
    fail_writes(product, fault)
    async with connected(url, api_key) as connector:
        error = await refusal(connector.create(wish(), Delivery()))
    assert type(error) is kind
    assert getattr(error, "ambiguous", False) is ambiguous
    if kind is Misconfigured:
        assert "POST /scim/v2/Users" in str(error), "the alert lists which call failed"


async def test_five_calls_a_second_are_kept(api_key: Path) -> None:
    """4.3: the emulator reports every call too many as a violation."""
    product = BobsBusinessEmulator()
    async with running(product) as url, connected(url, api_key, paced=True) as connector:
        await asyncio.gather(*(connector.list_accounts(None) for _ in range(8)))
    assert len(product.recorded()) == 8
    assert not product.violations


# Listing all accounts -------------------------------------------------------------------------------------------------


async def test_accounts_are_listed_page_by_page_for_the_match_report(emulator: Any, api_key: Path) -> None:
    """L1, L3: 100 per page; each row is what decide_create takes."""
    product, url = emulator
    product.seed(
        {"users": [{"userName": f"U{number:03}@acme.example", "active": number != 7} for number in range(205)]}
    )
    product.seed({"users": [{"userName": "anna@acme.example", "externalId": OTHER}]})
    listed: list[Any] = []
    async with connected(url, api_key) as connector:
        assert isinstance(connector, ListsAccounts)
        cursor: str | None = None
        for _ in range(10):
            page, cursor = await connector.list_accounts(cursor)
            listed += page
            if cursor is None:
                break
    assert len({entry["account_id"] for entry in listed}) == 206
    assert [entry["identities"] for entry in listed if not entry["active"]] == [("userName:u007@acme.example",)]
    assert listed[-1]["identities"] == ("userName:anna@acme.example", f"externalId:{OTHER}")
    platform = Platform(listed)
    assert decide_create({"userName": "u100@acme.example"}, platform)["action"] == "adopt"
    assert decide_create({"userName": "anna@acme.example"}, platform)["code"] == "linked_elsewhere"


async def test_all_accounts_are_listed_once_for_many_users_at_a_time(emulator: Any, api_key: Path) -> None:
    """4.3: listing is shared, so that a bulk cycle does not list per user; an interrupted one goes on where it stopped."""
    product, url = emulator
    product.seed({"users": [{"userName": f"U{number:03}@acme.example"} for number in range(205)]})
    product.fault("status", method="GET", status=500, skip=2, times=1, path="/scim/v2/Users$", contains="startIndex")
    async with connected(url, api_key) as connector:
        wishes = [wish(connector, userName=f"u{n:03}@acme.example", externalId=f"x{n}") for n in range(6)]
        results = await asyncio.gather(*(connector.find(one, (), Delivery()) for one in wishes), return_exceptions=True)
        failed = [one for one in results if isinstance(one, BaseException)]
        assert [type(one) for one in failed] == [Unavailable]
        assert all(len(one) == 1 for one in results if not isinstance(one, BaseException))
    pages = [call for call in product.recorded() if "startIndex" in call["query"]]
    assert len(pages) == 4, "three pages, one of them asked twice"


# Invitations ----------------------------------------------------------------------------------------------------------


def invited(emulator: BobsBusinessEmulator) -> int:
    return effects(emulator, "invite")


@pytest.mark.parametrize(
    ("invite", "sent", "noted"), [("platform", 0, ""), ("manual", 0, "Not invited"), ("on_create", 1, "Invited")]
)
async def test_invitations_are_the_platforms_the_peoples_or_ours(
    emulator: Any, api_key: Path, invite: str, sent: int, noted: str
) -> None:
    """L5, 4.3: platform does nothing, manual tells who is not invited, on_create invites."""
    product, url = emulator
    async with connected(url, api_key, invite=invite) as connector:
        outcome = await Repeating(connector, "userName", "externalId").settle(a_document())
    assert invited(product) == sent
    assert [warning for warning in outcome.warnings if noted and warning.startswith(noted)] or not noted


async def test_a_user_is_invited_once_ever(emulator: Any, api_key: Path) -> None:
    """4.3: updates, deactivation and activation send no second invitation; the platform keeps the record."""
    product, url = emulator
    async with connected(url, api_key, invite="on_create") as connector:
        gateway = Repeating(connector, "userName", "externalId")
        await gateway.settle(a_document())
        for active in (False, True, True):
            outcome = await gateway.settle(a_document(active=active))
            assert outcome.result is Result.APPLIED
    assert invited(product) == 1
    assert len(product.state()["invitations"]) == 1


async def test_who_becomes_active_later_is_invited_then(emulator: Any, api_key: Path) -> None:
    """4.3: never for inactive users; a re-activated user is invited if never invited before."""
    product, url = emulator
    async with connected(url, api_key, invite="on_create") as connector:
        gateway = Repeating(connector, "userName", "externalId")
        await gateway.settle(a_document(active=False))
        assert invited(product) == 0
        await gateway.settle(a_document(active=True))
    assert invited(product) == 1


@pytest.mark.parametrize("active", [True, False])
async def test_an_adopted_user_is_not_invited(emulator: Any, api_key: Path, active: bool) -> None:
    """4.3: never on adoption, also when the answer to the adopting write is lost."""
    product, url = emulator
    product.seed({"users": [{"userName": "anna@acme.example", "active": active}]})
    product.fault("drop_response", method="PATCH", times=1)
    async with connected(url, api_key, invite="on_create") as connector:
        gateway = Repeating(connector, "userName", "externalId")
        assert (await gateway.settle(a_document())).result is Result.APPLIED
        await gateway.settle(a_document(displayName="Changed"))
    assert invited(product) == 0


async def test_an_adopted_user_is_not_invited_by_a_worker_that_knows_nothing_of_the_adoption(
    emulator: Any, api_key: Path
) -> None:
    """4.3: never on adoption; the account carries our externalId by now, so only the gateway can say who made it."""
    product, url = emulator
    product.seed({"users": [{"userName": "anna@acme.example"}]})
    async with connected(url, api_key, invite="on_create") as connector:
        gateway = Repeating(connector, "userName", "externalId")
        assert (await gateway.settle(a_document())).result is Result.APPLIED
    async with connected(url, api_key, invite="on_create") as connector:
        gateway.connector = connector
        await gateway.settle(a_document(active=False))
        await gateway.settle(a_document(active=True))
    (held,) = users(product)
    assert (held["active"], held["externalId"]) == (True, a_document()["externalId"])
    assert invited(product) == 0


async def test_a_user_of_ours_is_invited_even_without_the_mark_of_ours(emulator: Any, api_key: Path) -> None:
    """4.3: made by us while inactive, so never invited; another worker activates the account, without an externalId."""
    product, url = emulator
    async with connected(url, api_key, invite="on_create") as connector:
        gateway = Repeating(connector, "userName", "externalId")
        await gateway.settle(a_document(active=False))
        assert (gateway.created_by_us, invited(product)) == (True, 0)
    async with connected(url, api_key, invite="on_create") as connector:
        ctx = Delivery(created_by_us=True)
        assert gateway.account_id is not None
        unmarked = connector.normalize(User.from_document(a_document(externalId=None, active=True)), Known())
        await connector.update(gateway.account_id, unmarked, ctx)
    assert invited(product) == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "drop_response", "path": "/scim/v2/Users", "method": "POST"},
        {"kind": "drop_response", "path": "/api/v1/users/"},
        {"kind": "status", "status": 503, "path": "/api/v1/users/"},
        {"kind": "rate_limit", "path": "/api/v1/users/"},
        {"kind": "reset", "path": "/api/v1/users/"},
    ],
)
async def test_a_lost_answer_loses_no_invitation_and_sends_no_second(
    emulator: Any, api_key: Path, fault: dict[str, Any]
) -> None:
    """4.3: exactly one invitation, whatever gets lost between create and invitation; 409 already_invited is done."""
    product, url = emulator
    options = dict(fault)
    product.fault(options.pop("kind"), times=3, **options)
    async with connected(url, api_key, invite="on_create") as connector:
        outcome = await Repeating(connector, "userName", "externalId").settle(a_document())
    assert outcome.result is Result.APPLIED
    assert invited(product) == 1
    assert len(users(product)) == 1


async def test_an_invitation_that_exists_already_is_done_and_an_inactive_user_is_refused(
    emulator: Any, api_key: Path
) -> None:
    """4.5: 409 is D, 422 inactive_user is P."""
    product, url = emulator
    product.set(invite_on_creation=True)
    ctx = Delivery()
    async with connected(url, api_key, invite="on_create") as connector:
        await connector.create(wish(), ctx)
        assert any("no second invitation" in warning for warning in ctx.warnings)
        body = {"code": "inactive_user", "message": "inactive"}
        product.fault("status", path="/api/v1/", status=422, body=body)
        error = await refusal(connector.create(wish(userName="b@acme.example", externalId=OTHER), Delivery()))
    assert (type(error), error.code) == (Rejected, "inactive_user")


# Groups ---------------------------------------------------------------------------------------------------------------

TEAM = "8f1c0000-0000-0000-0000-0000000000aa"


def a_group(name: str = "Sales", external_id: str = TEAM) -> Group:
    return Group(display_name=name, external_id=external_id)


def groups(emulator: BobsBusinessEmulator) -> list[dict[str, Any]]:
    return list(emulator.state()["groups"].values())


async def test_a_group_is_created_renamed_and_deleted_without_its_users(emulator: Any, api_key: Path) -> None:
    """L9, L12, 4.3."""
    product, url = emulator
    ids = product.seed({"users": [{"userName": "a@acme.example"}]})["ids"]
    async with connected(url, api_key) as connector:
        assert isinstance(connector, PutsGroups)
        group_id = await connector.put_group(None, a_group(" Sales "), Delivery())
        await connector.change_members(group_id, ids, (), Delivery())
        assert await connector.put_group(group_id, a_group("Sales UK"), Delivery()) == group_id
        assert await connector.put_group(group_id, a_group("Sales UK"), Delivery()) == group_id
        (held,) = groups(product)
        assert (held["displayName"], held["externalId"], held["members"]) == ("Sales UK", TEAM, ids)
        assert effects(product, "group_update") == 2
        await connector.delete_group(group_id, Delivery())
        await connector.delete_group(group_id, Delivery())
    assert groups(product) == []
    assert len(users(product)) == 1


@pytest.mark.parametrize(
    ("seeded", "found"),
    [
        ([{"displayName": "Other", "externalId": TEAM}, {"displayName": "Sales"}], "Other"),
        ([{"displayName": "  sALES "}], "  sALES "),
        ([{"displayName": "Marketing"}], None),
    ],
)
async def test_a_group_is_matched_by_external_id_then_by_name(
    emulator: Any, api_key: Path, seeded: list[dict[str, Any]], found: str | None
) -> None:
    """4.3: name trimmed and folded; a name match without externalId is adopted."""
    product, url = emulator
    product.seed({"groups": [{"displayName": f"G{number}"} for number in range(120)]})
    product.seed({"groups": seeded})
    async with connected(url, api_key) as connector:
        hits = await connector.find_group(a_group(), ("displayName:sales",), Delivery())
    by_id = {group["id"]: group["displayName"] for group in groups(product)}
    assert [(by_id[one.account_id], one.conflict) for one in hits] == ([] if found is None else [(found, "")])


async def test_two_groups_of_a_name_or_one_of_another_are_conflicts(emulator: Any, api_key: Path) -> None:
    """4.3: two name matches: U; a group that belongs to another group of Entra is not taken over."""
    product, url = emulator
    product.seed(
        {"groups": [{"displayName": "sales"}, {"displayName": "SALES"}, {"displayName": "HR", "externalId": OTHER}]}
    )
    async with connected(url, api_key) as connector:
        error = await refusal(connector.find_group(a_group(), (), Delivery()))
        assert (type(error), error.code, error.attribute) == (Conflict, "duplicate_groups", "displayName")
        (found,) = await connector.find_group(a_group("HR"), (), Delivery())
        assert "another group of Entra" in found.conflict
        hits = await connector.find_group(None, ("displayName:sales", "displayName:hr", "title:x"), Delivery())
        assert len(hits) == 3
        error = await refusal(connector.put_group(None, a_group("HR"), Delivery()))
    assert (type(error), error.code) == (Conflict, "conflict")


async def test_members_come_and_go_by_explicit_operations_in_chunks(emulator: Any, api_key: Path) -> None:
    """L15, 4.3: chunks of 100; a write with a few members is never proof that the others left. Twice is once."""
    product, url = emulator
    ids = product.seed({"users": [{"userName": f"u{number}@acme.example"} for number in range(230)]})["ids"]
    async with connected(url, api_key) as connector:
        group_id = await connector.put_group(None, a_group(), Delivery())
        for _ in range(2):
            await connector.change_members(group_id, ids, (), Delivery())
        assert set(groups(product)[0]["members"]) == set(ids)
        for _ in range(2):
            await connector.change_members(group_id, ids[:2], ids[100:], Delivery())
    assert set(groups(product)[0]["members"]) == set(ids[:100])


async def test_an_unknown_member_waits_and_the_others_are_added(emulator: Any, api_key: Path) -> None:
    """4.3, 4.5: a member not yet there is W, the others are added at once."""
    product, url = emulator
    ids = product.seed({"users": [{"userName": f"u{number}@acme.example"} for number in range(3)]})["ids"]
    async with connected(url, api_key) as connector:
        group_id = await connector.put_group(None, a_group(), Delivery())
        waiting = await refusal(connector.change_members(group_id, [ids[0], "ghost", *ids[1:]], (), Delivery()))
        assert (type(waiting), waiting.on, waiting.account_id) == (Blocked, "member:ghost", group_id)
        assert set(groups(product)[0]["members"]) == set(ids)
        assert isinstance(await refusal(connector.change_members(group_id, ["ghost"], (), Delivery())), Blocked)
        product.fault("status", method="PATCH", status=400)
        error = await refusal(connector.change_members(group_id, [ids[0]], (), Delivery()))
    assert type(error) is Rejected, "a refusal about anything else is told as it is"


async def test_a_group_that_is_gone_is_said_to_be_gone(emulator: Any, api_key: Path) -> None:
    """4.5: 404 on group PATCH: searched by name, made again, members sent again by the gateway."""
    _, url = emulator
    async with connected(url, api_key) as connector:
        assert isinstance(await refusal(connector.put_group("no-such-group", a_group(), Delivery())), Gone)
        assert isinstance(await refusal(connector.change_members("no-such-group", ["x"], (), Delivery())), Gone)


# Check and settings ---------------------------------------------------------------------------------------------------


async def test_check_names_a_missing_permission_and_writes_nothing(emulator: Any, api_key: Path) -> None:
    """L6, A12: the permission list is a picture; what reading shows is reported with the call."""
    product, url = emulator
    async with connected(url, api_key) as connector:
        assert [finding.code for finding in await connector.check()] == ["reachable"]
    product.set(permissions=["users:read", "users:write"])
    async with connected(url, api_key, invite="on_create", match_alternate="adopt") as connector:
        findings = {finding.code: finding for finding in await connector.check()}
    assert set(findings) == {"reachable", "missing_permission", "assumed_invitations", "adopts_other_address"}
    assert "GET /scim/v2/Groups" in findings["missing_permission"].message
    product.set(permissions=["groups:read"])
    async with connected(url, api_key) as connector:
        assert isinstance(await refusal(connector.check()), Misconfigured)
    assert {call["method"] for call in product.recorded()} == {"GET"}


@pytest.mark.parametrize("broken", [{"scim": False}, {"permissions": ["users:read", "groups:read"]}])
async def test_a_switch_or_permission_that_is_missing_concerns_the_target(
    emulator: Any, api_key: Path, broken: dict[str, Any]
) -> None:
    """L5, L6, 4.5: class C, naming the call."""
    product, url = emulator
    product.set(**broken)
    async with connected(url, api_key) as connector:
        error = await refusal(connector.create(wish(), Delivery()))
    assert type(error) is Misconfigured
    assert "POST /scim/v2/Users" in str(error)


async def test_a_revoked_key_concerns_the_target(emulator: Any, api_key: Path) -> None:
    """L7, A9."""
    product, url = emulator
    product.revoke_token()
    async with connected(url, api_key) as connector:
        assert isinstance(await refusal(connector.check()), Misconfigured)


def test_attributes_beyond_the_permitted_set_are_listed() -> None:
    """L10, A8: no other attribute can be passed."""
    user = a_user(title="Lead", phoneNumbers=[{"type": "mobile", "value": "1"}])
    assert offline().ignored(user) == ("title", 'phoneNumbers[type eq "mobile"].value')


def test_the_address_is_the_natural_key() -> None:
    """A1: where domains are one, filters in either spelling find the user; otherwise no worker is asked."""
    assert offline().account_keys(wish()) == ("anna@acme.example",)
    assert "normalizes_identity" not in BobsBusiness.spec_for(offline().settings).capabilities
    aliased = offline(domain_aliases={"acme.onmicrosoft.example": "acme.example"})
    assert "normalizes_identity" in BobsBusiness.spec_for(aliased.settings).capabilities
    assert aliased.account_keys(wish(aliased, userName="ANNA@acme.onmicrosoft.example")) == ("anna@acme.example",)


def test_the_tenant_url_gives_host_and_scim_root() -> None:
    """L5: one per organisation, configured, not computed."""
    connector = offline(tenant_url="https://acme.bobs.example.com/api/scim/")
    endpoint = BobsBusiness.endpoint(connector.settings)
    assert endpoint is not None
    assert endpoint.base_url == "https://acme.bobs.example.com"
    assert connector.scim.path("/Users") == "/api/scim/Users"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tenant_url": "http://bobs.example.com/scim"}, "https://"),
        ({"email_from": "upn"}, "email_from"),
        ({"invite": "always"}, "invite"),
        ({"invitations_path": "/users/invite"}, "{id} once"),
        ({"domain_aliases": {"a.example": "b.example", "b.example": "a.example"}}, "a circle"),
        ({"domain_aliases": {"a.example": "nowhere"}}, "no domain"),
        ({"api_key": "plain"}, "a secret is a reference"),
        ({"apikey": {"env": "T"}}, "did you mean api_key?"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_the_file_is_read(options: dict[str, Any], said: str) -> None:
    """A mistake is said at start, not at the first delivery."""
    table = {"tenant_url": "https://bobs.example.com/scim/v2", "api_key": {"env": "T"}, **options}
    problems: list[str] = []
    assert registry.decode_settings("bobs_business", table, "targets.l.settings", problems) is None
    assert any(problem.startswith("targets.l.settings") and said in problem for problem in problems), problems


# Under the whole engine -----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def at_work(folder: Path, url: str, api_key: Path, **options: Any) -> AsyncIterator[Driven]:
    """The engine with this connector."""
    async with connected(url, api_key, **options) as connector, driven(folder, connector) as here:
        yield here


USER = "/scim/v2/Users$"
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
async def test_what_passes_is_tried_again_until_there_is_one_account(
    emulator: Any, api_key: Path, tmp_path: Path, fault: dict[str, Any]
) -> None:
    """4.5, class T: 429, 5xx, resets, also where the write had its effect: search first, one account, nothing is lost."""
    product, url = emulator
    options = dict(fault)
    product.fault(options.pop("kind"), method="POST", path=USER, times=2, **options)
    async with at_work(tmp_path, url, api_key) as here:
        row = await here.settled(await here.user(a_document()))
    assert (row.state, row.reason) == (State.APPLIED, None)
    assert here.results()[0] in (Result.RETRY, Result.RATE_LIMITED)
    assert [one["externalId"] for one in users(product)] == [ANNA]
    assert effects(product, "create") == 1


@pytest.mark.parametrize(
    ("broken", "call"),
    [
        ({"scim": False}, "GET /scim/v2/Users"),
        ({"permissions": ["users:read", "groups:read"]}, "POST /scim/v2/Users"),
        (None, "GET /scim/v2/Users"),
    ],
)
async def test_a_refused_key_or_permission_stops_the_target_and_loses_nothing(
    emulator: Any, api_key: Path, tmp_path: Path, broken: dict[str, Any] | None, call: str
) -> None:
    """4.5, class C: the alert lists which call failed; after the correction everything goes on by itself."""
    product, url = emulator
    product.set(**broken) if broken else product.revoke_token()
    async with at_work(tmp_path, url, api_key) as here:
        row = await here.settled(await here.user(a_document()))
        target = await here.store.run(lambda ledger: ledger.target(TARGET))
        assert (row.state, target.circuit) == (State.QUEUED, Circuit.AUTH)
        assert call in target.circuit_reason
        product.set(scim=True, permissions=list(PERMISSIONS))
        if broken is None:
            api_key.write_text(product.make_token(PERMISSIONS))  # noqa: ASYNC240 a moment, in a test
        await here.later(61.0)
        await here.later(5.0)
        assert (await here.settled(row.id)).state is State.APPLIED
    assert len(users(product)) == 1


@pytest.mark.parametrize(
    ("seeded", "document", "code", "scim_type"),
    [
        ([SEEDED], AS_CAROL, "exists_under_other_address", "uniqueness"),
        ([{"userName": "anna@acme.example", "externalId": OTHER}], {}, "linked_elsewhere", "uniqueness"),
        (
            [{"userName": "anna@acme.example"}, {"userName": "ANNA@acme.example"}],
            {},
            "duplicate_accounts",
            "uniqueness",
        ),
        ([], {"userName": "lou"}, "bad_email", "invalidValue"),
        ([], {"userName": GUEST}, "bad_email", "invalidValue"),
    ],
)
async def test_a_conflict_or_a_bad_address_is_a_dead_letter_without_a_write(
    emulator: Any,
    api_key: Path,
    tmp_path: Path,
    seeded: list[dict[str, Any]],
    document: dict[str, Any],
    code: str,
    scim_type: str,
) -> None:
    """4.5, classes U and P: nothing is written, the sentence names the remedy, and correcting it in Entra is enough."""
    product, url = emulator
    product.seed({"users": seeded})
    async with at_work(tmp_path, url, api_key) as here:
        row = await here.settled(await here.user(a_document(**document)))
        assert row.reason is not None
        assert (row.state, row.reason.code, row.reason.scim_type) == (State.DEAD, code, scim_type)
        await here.change(row.id, userName="free@acme.example", emails=[])
        assert (await here.settled(row.id)).state is State.APPLIED
    assert {call["method"] for call in product.recorded()} == {"GET", "POST"}
    assert effects(product, "create") == 1


async def test_an_account_that_appears_between_look_and_create_is_adopted(
    emulator: Any, api_key: Path, tmp_path: Path
) -> None:
    """4.5: 409 on POST is done when the account found matches and is free, also where reads lag behind for a while."""
    product, url = emulator
    product.seed({"users": [{"userName": "anna@acme.example"}]})
    lag = product.fault("stale_read", lag_s=60)
    async with at_work(tmp_path, url, api_key, invite="on_create") as here:
        resource = await here.user(a_document())
        await here.work()
        row = await here.row(resource)
        assert (row.state, row.blocked_on) == (State.BLOCKED, "identity held at the product")
        product.clear_faults(lag)
        row = await here.settled(resource)
    assert (row.state, row.account_created) == (State.APPLIED, None)
    assert [(one["userName"], one["externalId"]) for one in users(product)] == [("anna@acme.example", ANNA)]
    assert (effects(product, "create"), invited(product)) == (0, 0)


async def test_a_missing_seat_waits_is_looked_at_every_hour_and_heals(api_key: Path, tmp_path: Path) -> None:
    """4.3, 4.5, class W: the target goes on serving others; the change is applied by itself within an hour of a free seat."""
    product = BobsBusinessEmulator(rate_per_s=0, seats=0)
    async with running(product) as url, at_work(tmp_path, url, api_key) as here:
        row = await here.settled(await here.user(a_document()))
        assert (row.state, row.blocked_on, row.next_at - here.time) == (State.BLOCKED, "seat", 3600.0)
        assert (await here.store.run(lambda ledger: ledger.target(TARGET))).circuit is Circuit.CLOSED
        product.set(seats=1)
        await here.later(3600.0)
        assert (await here.row(row.id)).state is State.APPLIED


async def test_groups_keep_whom_nobody_removed_and_are_made_again_with_all_members(
    emulator: Any, api_key: Path, tmp_path: Path
) -> None:
    """L9, L12, L15, 4.3, 4.5: a member not there yet waits and the others are in; only explicit removals remove; a group that
    was deleted on the platform is searched by name, made again, and gets the members the gateway knows."""
    product, url = emulator
    async with at_work(tmp_path, url, api_key) as here:
        people = [
            await here.user(a_document(userName=f"u{n}@acme.example", externalId=f"{ANNA[:-2]}1{n}")) for n in range(3)
        ]
        await here.work()
        product.set(seats=3)
        late = await here.user(a_document(userName="late@acme.example", externalId=OTHER))
        group = await here.group(" Sales ", TEAM, *people[:2], late)
        assert (await here.settled(group)).blocked_on == f"member {late}"
        by_address = {one["userName"]: one["id"] for one in users(product)}
        assert set(groups(product)[0]["members"]) == {by_address["u0@acme.example"], by_address["u1@acme.example"]}

        await here.members(group, add(people[2]))
        await here.work()
        assert set(groups(product)[0]["members"]) == set(by_address.values()), "what came alone sent nobody away"
        product.set(seats=None)
        await here.later(3600.0)
        await here.later(31.0)
        assert (await here.settled(group)).state is State.APPLIED
        assert len(groups(product)[0]["members"]) == 4
        await here.members(group, remove(people[0]))
        assert (await here.settled(group)).state is State.APPLIED
        assert by_address["u0@acme.example"] not in groups(product)[0]["members"]

        product.control("by hand", product.drop(product.scim_resources[1], groups(product)[0]))
        await here.members(group, add(people[0]))
        row = await here.settled(group)
    (held,) = groups(product)
    assert (row.state, row.account_id, held["displayName"]) == (State.APPLIED, held["id"], "Sales")
    assert len(held["members"]) == 4
    assert {one["userName"] for one in users(product) if one["id"] in held["members"]} == {
        *by_address,
        "late@acme.example",
    }


@pytest.mark.parametrize(
    "fault",
    [
        {},
        {"kind": "drop_response", "path": USER, "method": "POST"},
        {"kind": "drop_response", "path": "/api/v1/users/"},
        {"kind": "status", "status": 503, "path": "/api/v1/users/"},
        {"kind": "rate_limit", "retry_after": 3, "path": "/api/v1/users/"},
        {"kind": "reset", "path": "/api/v1/users/"},
        {"dies": 1},
        {"dies": 2},
    ],
    ids=lambda fault: str(fault.get("kind", fault)),
)
async def test_one_invitation_per_user_ever_is_recorded_before_it_is_repeated(
    emulator: Any, api_key: Path, tmp_path: Path, fault: dict[str, Any]
) -> None:
    """4.3: whatever is lost between creation and invitation, and however often the user leaves and comes back; the store has
    the record, so the platform is not asked again even where it would have forgotten."""
    product, url = emulator
    options = dict(fault)
    async with at_work(tmp_path, url, api_key, invite="on_create") as here:
        here.dies = options.pop("dies", 0)
        if options:
            product.fault(options.pop("kind"), times=2, **options)
        resource = await here.user(a_document())
        assert (await here.settled(resource)).state is State.APPLIED
        calls = [call for call in product.recorded() if call["path"].startswith("/api/")]
        assert invited(product) == 1
        deliveries = sum(any("invitations" in step.path for step in one.steps) for one in here.outcomes_seen)
        assert here.dies or deliveries + fault.get("dies", 0) >= len(calls), "once per delivery that was recorded"
        assert await here.notes(resource) == ["invited"]

        for active in (False, True):
            await here.change(resource, active=active)
            assert (await here.settled(resource)).state is State.APPLIED
        await here.later(400.0)  # the read-back after doubt
        product.clear_faults()
        product.control("by hand", product.drop(product.scim_resources[0], users(product)[0]))
        await here.change(resource, displayName="Made again")
        assert (await here.settled(resource)).state is State.APPLIED
        after = [call for call in product.recorded() if call["path"].startswith("/api/")]
        assert len(after) == len(calls)
        assert await here.notes(resource) == ["invited", "not_invited"], "the new account is for a person to look at"
    assert (invited(product), len(users(product))) == (1, 1)


async def test_who_is_not_invited_by_hand_yet_is_listed_until_it_is_done(
    emulator: Any, api_key: Path, tmp_path: Path
) -> None:
    """L5, 4.3: invite = "manual": active users made here; not adopted ones, not inactive ones until they are active."""
    product, url = emulator
    product.seed({"users": [{"userName": "adopted@acme.example"}]})
    async with at_work(tmp_path, url, api_key, invite="manual") as here:
        made = {
            name: await here.user(a_document(userName=f"{name}@acme.example", externalId=f"{name}", **more))
            for name, more in {"new": {}, "adopted": {}, "asleep": {"active": False}, "gone": {}}.items()
        }
        for resource in made.values():
            await here.settled(resource)
        assert {one for one, _ in await here.noted("not_invited")} == {made["new"], made["gone"]}
        await here.delete(made["gone"])
        await here.change(made["asleep"], active=True)
        await here.settled(made["asleep"])
        assert {one for one, _ in await here.noted("not_invited")} == {made["new"], made["asleep"]}
        await here.change(made["new"], title="Not taken there")
        await here.settled(made["new"])
        said = here.outcomes_seen[-1]
        assert (said.result, said.note, said.ignored) == (Result.APPLIED, "already", ("title",)), "rules A8, A13"
        await here.change(made["new"], active=False)
        await here.settled(made["new"])
        assert {one for one, _ in await here.noted("not_invited")} == {made["asleep"]}
    assert invited(product) == 0
