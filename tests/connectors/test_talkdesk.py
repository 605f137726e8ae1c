"""Talkdesk: the name table, the rules of the seed, and every failure class against the emulator over real HTTP."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from connectors import registry
from connectors.contract import Delivery
from connectors.scim import texts
from connectors.talkdesk import EXTENSION, Account, Settings, Talkdesk, resolve_names
from deploy.emulators.harness import running
from deploy.emulators.talkdesk import TalkdeskEmulator
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
from schemas.resources import User
from tests.connectors.alone import FAULTS, Known, built, correctly_used, fail_writes, refusal, secret_file

ROLES: list[Any] = [
    "Agent",
    "Supervisor",
    "Administrator",
    "Team Lead",
    "Quality Analyst",
    "Billing",
    "BILLING",
    {"name": "Legacy Agent", "active": False},
]
TEAMS: list[Any] = ["Porto", "Lisbon Support", "São Paulo", "Tier-1", "Ops & QA"]
CATALOGUE = {"role": ROLES, "team": TEAMS}

RESOLVED: list[tuple[Any, Any, list[str]]] = [
    ("role", "agent", ["Agent"]),
    ("role", "  Team   Lead ", ["Team Lead"]),
    ("role", "team\u00a0lead", ["Team Lead"]),
    ("role", "TEAM LEAD;agent", ["Team Lead", "Agent"]),
    ("role", "Agent; Supervisor;agent", ["Agent", "Supervisor"]),
    ("role", None, []),
    ("role", UNSET, []),
    ("role", "", []),
    ("role", " ; ;", []),
    ("role", "BILLING", ["BILLING"]),
    ("role", '{"id":"06b0f1c2","value":"Supervisor","displayName":"Sup"}', ["Supervisor"]),
    ("role", ["Agent", "Supervisor"], ["Agent", "Supervisor"]),
    (
        "role",
        [{"primary": True, "type": "WindowsAzureActiveDirectoryRole", "value": "supervisor"}],
        ["Supervisor"],
    ),
    ("role", [{"value": '{"id":"1","value":"agent","displayName":"A"}'}], ["Agent"]),
    ("role", {"display": "agent"}, ["Agent"]),
    ("role", "team\tlead", ["Team Lead"]),
    ("role", "A\u200bgent\u202c", ["Agent"]),
    ("role", "ａｇｅｎｔ", ["Agent"]),
    ("team", "porto", ["Porto"]),
    ("team", None, []),
    ("team", "Lisbon support ; Porto", ["Lisbon Support", "Porto"]),
    ("team", "Sa\u0303o Paulo", ["São Paulo"]),
    ("team", "ops & qa", ["Ops & QA"]),
]

REFUSED: list[tuple[Any, Any, str, tuple[str, ...], str]] = [
    ("role", "Superviser", "unknown_role", ("Superviser",), "'Supervisor'"),
    ("role", "Agent;Ghost", "unknown_role", ("Ghost",), "'Ghost'"),
    ("role", "billing", "ambiguous_role", ("billing",), "'Billing', 'BILLING'"),
    ("role", "legacy agent", "inactive_role", ("legacy agent",), "deactivated"),
    ("role", "Legacy Agent", "inactive_role", ("Legacy Agent",), "deactivated"),
    ("role", "Agent,Supervisor", "unknown_role", ("Agent,Supervisor",), "semicolon"),
    ("role", "legacy agent;billing;Ghost;Phantom", "unknown_role", ("Ghost", "Phantom"), "'Phantom'"),
    ("role", "legacy agent;billing", "ambiguous_role", ("billing",), "exactly"),
    ("team", "Sao Paulo", "unknown_team", ("Sao Paulo",), "'São Paulo'"),
    ("team", "Tier\u20111", "unknown_team", ("Tier\u20111",), "'Tier-1'"),
    ("team", "Ops &amp; QA", "unknown_team", ("Ops &amp", "QA"), "'Ops & QA'"),
]


@pytest.mark.parametrize(("kind", "value", "expected"), RESOLVED)
def test_each_value_of_the_vendor_page_resolves_to_the_exact_names(kind: Any, value: Any, expected: list[str]) -> None:
    """Vendor page 1.3, the rows that are sent; T12 and 0.2 for the forms: text, lists, app roles as objects and as JSON text."""
    assert resolve_names(kind, value, CATALOGUE[kind]) == expected


@pytest.mark.parametrize(("kind", "value", "code", "names", "said"), REFUSED)
def test_each_bad_name_of_the_vendor_page_is_refused_by_name(
    kind: Any, value: Any, code: str, names: tuple[str, ...], said: str
) -> None:
    """Vendor page 1.3 and 0.6: precedence unknown, ambiguous, inactive; all names of that code; the nearest name proposed."""
    with pytest.raises(NormalizationError) as refused:
        resolve_names(kind, value, CATALOGUE[kind])
    assert (refused.value.code, refused.value.names) == (code, names)
    assert said in str(refused.value)
    assert refused.value.attribute == f"{EXTENSION}:{kind}sString"
    assert "correct the mapping" in str(refused.value).lower()


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.text(max_size=20) | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["value", "display", "displayName", "id", "primary"]), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_any_value_resolves_to_existing_names_or_is_refused(value: Any) -> None:
    """0.2: whatever arrives, the result is in the catalogue or the error is ours; resolving a result changes nothing."""
    try:
        names = resolve_names("team", value, TEAMS)
    except NormalizationError:
        return
    assert set(names) <= set(TEAMS)
    assert resolve_names("team", ";".join(names), TEAMS) == names


def test_a_proposal_is_found_among_very_many_names_without_holding_up_the_worker() -> None:
    """Proposals are worth little time: deliveries of all targets of the worker wait for them."""
    names = [f"Team number {number} of the region" for number in range(10_000)]
    started = time.monotonic()
    with pytest.raises(NormalizationError, match="did you mean 'Team number 4711 of the region'"):
        resolve_names("team", "Teem number 4711 of the region", names)
    assert time.monotonic() - started < 5.0


@given(st.text(alphabet='{}[]"\\:,ab ', max_size=60))
def test_text_that_only_looks_like_json_stays_text(value: str) -> None:
    """0.2: JSON inside a string is unwrapped, anything else is a name."""
    assert all(isinstance(text, str) for text in texts(value))


# The connector --------------------------------------------------------------------------------------------------------


KNOWN = Known(CATALOGUE)


def a_user(extension: dict[str, Any] | None = None, **document: Any) -> User:
    """A user as the vendor's guide maps it."""
    return User.from_document(
        {
            "userName": "Rita.Sousa@example.com",
            "externalId": "8f1c0000-0000-0000-0000-000000000001",
            "active": True,
            "name": {"givenName": "Rita", "familyName": "Sousa"},
            **({EXTENSION: extension} if extension is not None else {}),
            **document,
        }
    )


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """The credential of the target."""
    return secret_file(tmp_path / "token", "demo-token-talkdesk")


@pytest.fixture
async def emulator() -> AsyncIterator[tuple[TalkdeskEmulator, str]]:
    """A running Talkdesk without its rate limit."""
    async with correctly_used(TalkdeskEmulator(rate_per_s=0)) as used:
        yield used


@contextlib.asynccontextmanager
async def connected(url: str, token: Path | None, *, paced: bool = False, **options: Any) -> AsyncIterator[Talkdesk]:
    """The connector as a worker builds it."""
    table = {"base_url": f"{url}/scim/v2", "allow_loopback": True, **options}
    if token is not None:
        table["token"] = {"file": str(token)}
    async with built("talkdesk", table, paced=paced) as connector:
        yield connector


def users(emulator: TalkdeskEmulator) -> list[dict[str, Any]]:
    return [user for user in emulator.state()["users"].values() if not user["deleted"]]


def wish(connector: Talkdesk, extension: dict[str, Any] | None = None, **document: Any) -> Account:
    """A normalized account of a target that knows all names of the account."""
    resolving = offline(roles=tuple(name for name in ROLES if isinstance(name, str)), teams=tuple(TEAMS))
    return resolving.normalize(a_user(extension, **document), Known())


async def test_a_user_is_created_with_the_accounts_exact_names(emulator: Any, token: Path) -> None:
    """T7, T10, T11, T13, T15; the emulator accepts exact names only."""
    product, url = emulator
    async with connected(url, token) as connector:
        account = wish(connector, {"rolesString": "team lead;AGENT", "teamsString": " porto "})
        account_id = await connector.create(account, Delivery())
    (held,) = users(product)
    assert held["id"] == account_id
    assert (held["userName"], held["givenName"], held["familyName"]) == ("Rita.Sousa@example.com", "Rita", "Sousa")
    assert held["externalId"] == "8f1c0000-0000-0000-0000-000000000001"
    assert (held["rolesString"], held["teamsString"]) == ("Team Lead;Agent", "Porto")


@pytest.mark.parametrize("extension", [None, {}, {"rolesString": "", "teamsString": None}])
async def test_without_role_and_team_nothing_is_sent_and_the_vendors_defaults_apply(
    emulator: Any, token: Path, extension: Any
) -> None:
    """T8, T14, T16: Agent, no team, active."""
    product, url = emulator
    async with connected(url, token) as connector:
        user = User.from_document(
            {
                "userName": "rita@example.com",
                "name": {"givenName": "Rita", "familyName": "Sousa"},
                **({EXTENSION: extension} if extension is not None else {}),
            }
        )
        await connector.create(connector.normalize(user, KNOWN), Delivery())
    (held,) = users(product)
    assert (held["rolesString"], held["teamsString"], held["active"]) == ("Agent", "", True)
    sent = next(call["body"] for call in product.recorded() if call["method"] == "POST")
    assert EXTENSION not in sent
    assert "active" not in sent


async def test_one_bad_name_refuses_the_whole_user_before_any_call(emulator: Any, token: Path) -> None:
    """A2 and 1.4: nothing sent, also not the other attributes."""
    product, url = emulator
    async with connected(url, token) as connector:
        with pytest.raises(NormalizationError):
            wish(connector, {"rolesString": "Agent", "teamsString": "Portu"})
    assert product.recorded() == []


@pytest.mark.parametrize(
    ("document", "code", "attribute"),
    [
        ({"userName": "  "}, "missing", "userName"),
        ({"userName": "rita"}, "bad_email", "userName"),
        ({"userName": "rita sousa@example.com"}, "bad_email", "userName"),
        ({"name": {"familyName": "Sousa"}}, "missing", "name.givenName"),
        ({"name": {"givenName": "Rita", "familyName": "  "}}, "missing", "name.familyName"),
        ({"name": {"givenName": None, "familyName": "Sousa"}}, "missing", "name.givenName"),
    ],
)
def test_a_missing_or_malformed_mandatory_attribute_is_named(document: Any, code: str, attribute: str) -> None:
    """T7: permanent, naming the attribute."""
    with pytest.raises(NormalizationError) as refused:
        offline().normalize(a_user(**document), KNOWN)
    assert (refused.value.code, refused.value.attribute) == (code, attribute)
    assert "Map" in str(refused.value)


def offline(**options: Any) -> Talkdesk:
    """A connector whose pure parts are under test."""
    return Talkdesk(Settings(token=Secret(env="T"), **options), registry.CallsNobody())


def test_configured_names_count_before_any_directory_was_loaded() -> None:
    """1.3: the configured list is authoritative, also for the first user after a start."""
    account = offline(roles=("Team Lead",)).normalize(a_user({"rolesString": "team lead"}), Known())
    assert account.roles == ("Team Lead",)


@pytest.mark.parametrize("source", ["harvest", "list_endpoints"])
def test_learned_names_are_unknown_until_the_directory_is_there(source: str) -> None:
    """1.3: a miss makes the worker load the catalogue once; after that it is final."""
    connector = offline(**{source: True})
    with pytest.raises(NormalizationError) as refused:
        connector.normalize(a_user({"rolesString": "team lead"}), Known())
    assert (refused.value.code, refused.value.names) == ("unknown_role", ("team lead",))
    assert ("settings" in str(refused.value)) is (source == "harvest")
    assert connector.normalize(a_user({"rolesString": "team lead"}), KNOWN).roles == ("Team Lead",)


def test_without_any_source_of_names_the_product_decides() -> None:
    """1.3: a target that knows no names must not refuse every user."""
    account = offline().normalize(a_user({"rolesString": "Wizard; wizard ;Wizard"}), Known())
    assert account.roles == ("Wizard", "wizard")
    assert any("No role names are known" in warning for warning in account.warnings)


def test_attributes_talkdesk_does_not_support_are_listed() -> None:
    """T6, A8: dropped and listed, never an error."""
    user = a_user(
        {"rolesString": "Agent", "skills": "x"},
        name={"givenName": "Rita", "familyName": "Sousa", "honorificPrefix": "Dr"},
        title="Lead",
        emails=[{"type": "work", "value": "rita@example.com"}],
    )
    assert offline().ignored(user) == (
        "name.honorificPrefix",
        "title",
        'emails[type eq "work"].value',
        f"{EXTENSION}:skills",
    )


async def test_a_user_is_found_by_user_name_in_any_letter_case(emulator: Any, token: Path) -> None:
    """A3, 1.3: userName is compared ignoring case; identities arrive folded."""
    product, url = emulator
    product.seed({"users": [{"userName": "RITA.sousa@example.com"}]})
    async with connected(url, token) as connector:
        asked = ("userName:rita.sousa@example.com", 'userName:gho"st@example.com', "displayName:rita")
        (found,) = await connector.find(None, asked, Delivery())
        (same,) = await connector.find(wish(connector), asked[:1], Delivery())
    assert (found.account_id, found.identity) == (users(product)[0]["id"], asked[0])
    assert same == found


async def test_an_account_with_another_external_id_must_not_be_adopted(emulator: Any, token: Path) -> None:
    """1.4: adopt when externalId is ours or none."""
    product, url = emulator
    product.seed({"users": [{"userName": "rita.sousa@example.com", "externalId": "somebody else"}]})
    async with connected(url, token) as connector:
        (found,) = await connector.find(wish(connector), (), Delivery())
        assert "another externalId" in found.conflict
        error = await refusal(connector.create(wish(connector), Delivery()))
    assert (type(error), error.attribute) == (Conflict, "userName")


async def test_a_lost_create_answer_makes_no_second_user_although_the_list_lags(emulator: Any, token: Path) -> None:
    """1.5: drop_response on POST with stale_read on the list filter."""
    product, url = emulator
    product.fault("drop_response", method="POST", times=1)
    async with connected(url, token) as connector:
        assert (await refusal(connector.create(wish(connector), Delivery()))).ambiguous
        stale = product.fault("stale_read", path="/scim/v2/Users$", lag_s=60)
        assert await connector.find(wish(connector), (), Delivery()) == []
        assert (await refusal(connector.create(wish(connector), Delivery()))).code == "already_there"
        product.clear_faults(stale)
        assert len(await connector.find(wish(connector), (), Delivery())) == 1
    assert len(users(product)) == 1


async def test_an_update_answered_without_the_user_is_read_for_the_licence(token: Path) -> None:
    """1.4: PATCH may be answered 204; whether there was a licence then shows in the user only."""
    product = TalkdeskEmulator(rate_per_s=0, patch=True, licences=0)
    account_id = product.seed({"users": [{**SEEDED, "externalId": "x"}]})["ids"][0]
    product.fault("status", method="PATCH", status=204, when="after")
    async with running(product) as url, connected(url, token) as connector:
        active = Account(user_name=SEEDED["userName"], given_name="Rita", family_name="Sousa", active=True)
        assert isinstance(await refusal(connector.update(account_id, active, Delivery())), Blocked)
        product.set(licences=1)
        await connector.update(account_id, active, Delivery())
    assert users(product)[0]["active"] is True


async def test_an_inactive_wish_does_not_wait_for_a_licence(emulator: Any, token: Path) -> None:
    """T9: a soft-deleted user arrives inactive."""
    product, url = emulator
    product.set(licences=0)
    async with connected(url, token) as connector:
        await connector.create(wish(connector, active=False), Delivery())
    assert users(product)[0]["active"] is False


@pytest.fixture(params=[False, True], ids=["put", "patch"])
async def either(request: pytest.FixtureRequest) -> AsyncIterator[tuple[TalkdeskEmulator, str]]:
    """A Talkdesk that only replaces, and one whose ServiceProviderConfig says PATCH."""
    emulator = TalkdeskEmulator(rate_per_s=0, patch=request.param)
    async with running(emulator) as url:
        yield emulator, url
    assert not emulator.violations, list(emulator.violations)
    used = {call["method"] for call in emulator.recorded()}
    assert ("PATCH" in used) is request.param
    assert ("PUT" in used) is not request.param


SEEDED: dict[str, Any] = {
    "userName": "rita.sousa@example.com",
    "givenName": "Old",
    "externalId": "kept",
    "active": False,
    "rolesString": "Supervisor",
    "teamsString": "Porto",
}


async def test_what_entra_does_not_say_keeps_the_products_value(either: Any, token: Path) -> None:
    """A4, 1.3: unset is kept, although PUT forgets whatever is not sent."""
    product, url = either
    product.seed({"users": [SEEDED]})
    account = Account(user_name="rita.sousa@example.com", given_name="Rita", family_name="Sousa")
    async with connected(url, token) as connector:
        await connector.update(users(product)[0]["id"], account, Delivery())
    (held,) = users(product)
    assert (held["givenName"], held["familyName"], held["externalId"]) == ("Rita", "Sousa", "kept")
    assert (held["active"], held["rolesString"], held["teamsString"]) == (False, "Supervisor", "Porto")


async def test_a_removed_role_becomes_the_default_and_a_removed_team_none(either: Any, token: Path) -> None:
    """1.3: when Entra removes the role, Agent; when it removes the team, empty."""
    product, url = either
    product.seed({"users": [SEEDED]})
    async with connected(url, token) as connector:
        account = wish(connector, {"rolesString": None, "teamsString": ""})
        await connector.update(users(product)[0]["id"], account, Delivery())
    (held,) = users(product)
    assert (held["rolesString"], held["teamsString"], held["active"]) == ("Agent", "", True)


async def test_every_mapped_attribute_can_be_changed(either: Any, token: Path) -> None:
    """T6: all seven supported attributes, the userName included."""
    product, url = either
    product.seed({"users": [SEEDED]})
    async with connected(url, token) as connector:
        account = wish(
            connector,
            {"rolesString": "administrator", "teamsString": "tier-1"},
            userName="new@example.com",
            active=False,
        )
        await connector.update(users(product)[0]["id"], account, Delivery())
    (held,) = users(product)
    assert (held["userName"], held["externalId"]) == ("new@example.com", account.external_id)
    assert (held["active"], held["rolesString"], held["teamsString"]) == (False, "Administrator", "Tier-1")


async def test_a_user_name_of_somebody_else_is_a_conflict_on_update(either: Any, token: Path) -> None:
    """1.2: userName is unique."""
    product, url = either
    product.seed({"users": [SEEDED, {"userName": "taken@example.com"}]})
    async with connected(url, token) as connector:
        account = wish(connector, userName="TAKEN@example.com")
        error = await refusal(connector.update(users(product)[0]["id"], account, Delivery()))
    assert (type(error), error.attribute) == (Conflict, "userName")


async def test_deactivation_on_delete_keeps_everything_else(either: Any, token: Path) -> None:
    """A7: deactivate where configured."""
    product, url = either
    product.seed({"users": [{**SEEDED, "active": True}]})
    async with connected(url, token, on_delete="deactivate") as connector:
        await connector.delete(users(product)[0]["id"], Delivery())
    (held,) = users(product)
    assert (held["active"], held["rolesString"], held["givenName"]) == (False, "Supervisor", "Old")


async def test_a_role_that_vanished_since_the_catalogue_was_read_is_refused_by_name(emulator: Any, token: Path) -> None:
    """1.4: the product's 400 names the role; the nearest existing name is proposed."""
    product, url = emulator
    async with connected(url, token, roles=["Agent", "Team Lead", "Team Leader"]) as connector:
        await connector.load_directory()
        account = connector.normalize(
            a_user({"rolesString": "team leader;Agent"}), Known({"role": ["Team Leader", "Agent"]})
        )
        error = await refusal(connector.create(account, Delivery()))
    assert (type(error), error.code, error.names) == (Rejected, "unknown_role", ("Team Leader",))
    assert error.attribute == f"{EXTENSION}:rolesString"
    assert "did you mean 'Team Lead'" in str(error)
    assert users(product) == []


async def test_a_team_that_vanished_is_refused_by_name(emulator: Any, token: Path) -> None:
    """1.4, as for roles."""
    _, url = emulator
    async with connected(url, token) as connector:
        account = connector.normalize(a_user({"teamsString": "Faro"}), Known())
        error = await refusal(connector.create(account, Delivery()))
    assert (error.code, error.names, error.attribute) == ("unknown_team", ("Faro",), f"{EXTENSION}:teamsString")


async def test_gone_on_update_and_fine_on_delete(emulator: Any, token: Path) -> None:
    """A6."""
    product, url = emulator
    product.seed({"users": [SEEDED]})
    account_id = users(product)[0]["id"]
    async with connected(url, token) as connector:
        await connector.delete(account_id, Delivery())
        assert users(product) == []
        await connector.delete(account_id, Delivery())
        assert isinstance(await refusal(connector.update(account_id, wish(connector), Delivery())), Gone)
    async with connected(url, token, on_delete="deactivate") as connector:
        await connector.delete(account_id, Delivery())


async def test_a_product_without_delete_says_which_setting_helps(emulator: Any, token: Path) -> None:
    """1.2: no page about DELETE was found."""
    product, url = emulator
    product.seed({"users": [SEEDED]})
    product.fault("status", method="DELETE", status=405)
    async with connected(url, token) as connector:
        error = await refusal(connector.delete(users(product)[0]["id"], Delivery()))
    assert type(error) is Rejected
    assert 'on_delete = "deactivate"' in str(error)


@pytest.mark.parametrize(
    ("fault", "kind", "ambiguous"),
    [
        *FAULTS,
        ({"kind": "status", "status": 500}, Unavailable, False),
        ({"kind": "truncate", "honest_length": True}, Unavailable, True),
        ({"kind": "rate_limit", "retry_after": None}, RateLimited, False),
        ({"kind": "status", "status": 422}, Rejected, False),
    ],
)
async def test_faults_of_the_product_become_their_class(
    emulator: Any, token: Path, fault: dict[str, Any], kind: type, ambiguous: bool
) -> None:
    """Vendor pages 0.4, 0.5 and 1.4, over real HTTP."""
    product, url = emulator
    fail_writes(product, fault)
    async with connected(url, token, paced=True) as connector:
        error = await refusal(connector.create(wish(connector), Delivery()))
    assert type(error) is kind
    assert getattr(error, "ambiguous", False) is ambiguous
    if kind is RateLimited:
        assert error.retry_after_s == 1.0, "the vendor asks to retry within the next second"


async def test_four_calls_a_second_are_kept(token: Path) -> None:
    """1.2: the emulator reports every call too many as a violation."""
    product = TalkdeskEmulator()
    async with running(product) as url, connected(url, token, paced=True) as connector:
        for number in range(9):
            await connector.find(None, (f"userName:a{number}@example.com",), Delivery())
    assert len(product.recorded()) == 9
    assert not product.violations


# Tokens ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def client_secret(tmp_path: Path) -> dict[str, Any]:
    """Client credentials of the emulator."""
    file = tmp_path / "client-secret"
    file.write_text("demo-secret-talkdesk")
    file.chmod(0o600)
    return {"client_id": "demo-client", "client_secret": {"file": str(file)}}


async def test_an_sts_token_is_fetched_once_and_again_when_revoked(
    emulator: Any, client_secret: dict[str, Any]
) -> None:
    """T2, 1.2: opaque token, scope scim; a revoked one is renewed within the call."""
    product, url = emulator
    async with connected(url, None, token_url=f"{url}/oauth/token", **client_secret) as connector:
        await connector.create(wish(connector), Delivery())
        await connector.find(wish(connector), (), Delivery())
        product.revoke_issued_tokens()
        ctx = Delivery()
        await connector.create(wish(connector, userName="second@example.com"), ctx)
    assert [call["path"] for call in product.recorded()].count("/oauth/token") == 2
    assert [(step.path, step.status) for step in ctx.steps] == [
        ("/scim/v2/Users", 401),
        ("/oauth/token", 200),
        ("/scim/v2/Users", 201),
    ]


async def test_refused_client_credentials_concern_the_target(emulator: Any, client_secret: dict[str, Any]) -> None:
    """A9: rejected credentials pause the target."""
    _, url = emulator
    options = {**client_secret, "client_id": "nobody", "token_url": f"{url}/oauth/token"}
    async with connected(url, None, **options) as connector:
        error = await refusal(connector.check())
    assert (type(error), error.code) == (Misconfigured, "token_refused")


async def test_the_token_may_be_sent_without_the_word_bearer(emulator: Any, token: Path) -> None:
    """1.2: auth_scheme raw, as the vendor's STS page says."""
    seen: list[str] = []
    _, url = emulator
    async with connected(url, token, auth_scheme="raw") as connector:
        assert (await connector.check())[0].level == "ok"
        endpoint = Talkdesk.endpoint(connector.settings)
        assert endpoint is not None
        assert endpoint.auth is not None
        seen = list((await endpoint.auth.headers(None)).values())
    assert seen == ["demo-token-talkdesk"]


@pytest.mark.parametrize(
    ("options", "base_url"),
    [
        ({}, "https://api.talkdeskapp.com"),
        ({"region": "eu"}, "https://api.talkdeskapp.eu"),
        ({"region": "ca"}, "https://api.talkdeskappca.com"),
        ({"base_url": "https://api.talkdeskapp.com/scim/v2"}, "https://api.talkdeskapp.com"),
        ({"base_url": "https://api.example.com/scim/v2/"}, "https://api.example.com"),
    ],
)
def test_the_address_follows_region_or_tenant_url(options: dict[str, Any], base_url: str) -> None:
    """T1: the host depends on the account's region; the Tenant URL may be pasted as it is."""
    endpoint = Talkdesk.endpoint(Settings(token=Secret(env="T"), **options))
    assert endpoint is not None
    assert endpoint.base_url == base_url


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "needs either token, or client_id"),
        ({"token": {"env": "T"}, "client_id": "x"}, "needs either token, or client_id"),
        ({"client_id": "x"}, "together"),
        ({"client_id": "x", "client_secret": {"env": "S"}}, "needs account"),
        ({"client_id": "x", "client_secret": {"env": "S"}, "account": "evil.example.com/"}, "needs account"),
        ({"token": {"env": "T"}, "base_url": "http://api.talkdeskapp.com"}, "https://"),
        ({"token": {"env": "T"}, "region": "uk"}, "region"),
        ({"token": {"env": "T"}, "roles": ["Agent;Supervisor"]}, "cannot be a name"),
        ({"token": {"env": "T"}, "rolls": ["Agent"]}, "did you mean roles?"),
        ({"token": "plain text"}, "a secret is a reference"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_the_file_is_read(table: dict[str, Any], said: str) -> None:
    """A mistake is said at start, not at the first delivery."""
    problems: list[str] = []
    assert registry.decode_settings("talkdesk", table, "targets.td.settings", problems) is None
    assert any(problem.startswith("targets.td.settings") and said in problem for problem in problems)


# Names ----------------------------------------------------------------------------------------------------------------


async def test_configured_names_are_authoritative_and_cost_no_call(emulator: Any, token: Path) -> None:
    """1.3: the configured list is authoritative."""
    product, url = emulator
    async with connected(url, token, roles=["Agent", "Team Lead"], teams=["Porto"]) as connector:
        directory = await connector.load_directory()
    assert [entry["name"] for entry in directory["role"]] == ["Agent", "Team Lead"]
    assert [entry["name"] for entry in directory["team"]] == ["Porto"]
    assert product.recorded() == []


async def test_without_any_source_nothing_is_known(emulator: Any, token: Path) -> None:
    """Contract: names are empty when unknown."""
    _, url = emulator
    async with connected(url, token) as connector:
        assert await connector.load_directory() == {"role": [], "team": []}


async def test_names_are_harvested_from_users_over_all_pages(emulator: Any, token: Path) -> None:
    """1.3: rolesString and teamsString of existing users, and the roles every account has."""
    product, url = emulator
    many = [{"userName": f"u{number}@example.com"} for number in range(120)]
    product.seed({"users": [*many, {**SEEDED, "rolesString": "Team Lead;Billing", "teamsString": "São Paulo"}]})
    async with connected(url, token, harvest=True) as connector:
        directory = await connector.load_directory()
    assert {entry["name"] for entry in directory["role"]} == {
        "Administrator",
        "Agent",
        "Supervisor",
        "Team Lead",
        "Billing",
    }
    assert [entry["name"] for entry in directory["team"]] == ["São Paulo"]


async def test_names_are_listed_where_the_assumed_calls_exist(emulator: Any, token: Path) -> None:
    """1.3: GET /roles and /teams, off unless configured; deactivated roles are known as such."""
    product, url = emulator
    product.set(listing=True, page_users=3)
    async with connected(url, token, list_endpoints=True) as connector:
        directory = await connector.load_directory()
    assert resolve_names("role", "team lead", directory["role"]) == ["Team Lead"]
    assert {"name": "Legacy Agent", "active": False} in directory["role"]
    assert [entry["name"] for entry in directory["team"]] == [
        "Porto",
        "Lisbon Support",
        "São Paulo",
        "Tier-1",
        "Ops & QA",
    ]


async def test_check_names_setup_mistakes_and_writes_nothing(emulator: Any, token: Path) -> None:
    """A12, T17: a mistyped constant hits every user, so the settings are compared with the account."""
    product, url = emulator
    product.set(listing=True)
    options: dict[str, Any] = {"roles": ["Agent", "Superviser", "agent"], "teams": ["Porto"], "list_endpoints": True}
    async with connected(url, token, default_role="Boss", **options) as connector:
        findings = {(finding.level, finding.code): finding.message for finding in await connector.check()}
    assert ("ok", "reachable") in findings
    assert "differ in letter case only" in findings["warning", "ambiguous_role"]
    assert "'Boss'" in findings["error", "unknown_default_role"]
    assert ("error", "unknown_role") in findings
    assert {call["method"] for call in product.recorded()} == {"GET"}
    async with connected(url, token) as connector:
        assert "no_catalogue" in {finding.code for finding in await connector.check()}


async def test_check_reports_a_revoked_token(emulator: Any, token: Path) -> None:
    """A12: credentials are proved."""
    product, url = emulator
    product.revoke_token()
    async with connected(url, token) as connector:
        assert isinstance(await refusal(connector.check()), Misconfigured)


async def test_all_accounts_are_listed_page_by_page(emulator: Any, token: Path) -> None:
    """Contract, ListsAccounts."""
    product, url = emulator
    product.seed({"users": [{"userName": f"u{number:03}@example.com", "active": number != 7} for number in range(205)]})
    listed: list[Any] = []
    async with connected(url, token) as connector:
        cursor: str | None = None
        for _ in range(10):
            page, cursor = await connector.list_accounts(cursor)
            listed += page
            if cursor is None:
                break
    assert len({entry["account_id"] for entry in listed}) == 205
    assert [entry["identities"] for entry in listed if not entry["active"]] == [("userName:u007@example.com",)]
