"""babelforce: the role and login tables, the rules of the seed, and every failure class against the emulator over real HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from connectors import registry
from connectors.babelforce import (
    MANAGED_ROLES,
    Account,
    Babelforce,
    Settings,
    address_findings,
    configuration_document,
    difference,
    normalize_login,
    normalize_roles,
    read_configuration,
    role_diff,
    surplus,
    write_configuration,
)
from connectors.contract import Delivery, Difference
from connectors.http import BODY_BYTES_MAX
from deploy.emulators.babelforce import BabelforceEmulator
from deploy.emulators.harness import running
from schemas.config import Secret
from schemas.errors import (
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


def objects(*names: str) -> list[dict[str, Any]]:
    """App roles as Entra posts them."""
    return [
        {"primary": False, "type": "WindowsAzureActiveDirectoryRole", "display": name, "value": name} for name in names
    ]


ROLES: list[tuple[Any, dict[str, Any], list[str]]] = [
    (objects("manager"), {}, ["manager"]),
    (objects("agent", "manager"), {}, ["agent", "manager"]),
    (objects("Manager"), {}, ["manager"]),
    (objects(" AGENT "), {}, ["agent"]),
    (["agent", "reporter"], {}, ["agent", "reporter"]),
    ([{"value": '{"id":"x","value":"agent","displayName":"Agent"}'}], {}, ["agent"]),
    ('[{"value":"sales"}]', {}, ["sales"]),
    ([{"display": "router"}], {}, ["router"]),
    (objects("agent", "superuser"), {"unknown": "ignore"}, ["agent"]),
    (objects("owner", "agent"), {"unknown": "ignore"}, ["agent"]),
    (objects("User"), {}, []),
    (objects("msiam_access", "agent"), {}, ["agent"]),
    ([], {}, []),
    (None, {"default_roles": ["agent"]}, ["agent"]),
    (UNSET, {"default_roles": ["agent"]}, ["agent"]),
    (objects("User"), {"default_roles": ["agent"]}, ["agent"]),
    (objects("manager"), {"default_roles": ["agent"]}, ["manager"]),
    ([], {"default_roles": ["agent"], "creating": False}, []),
    (objects("agent", "Agent", "agent"), {}, ["agent"]),
    (objects("a\u200bgent"), {}, ["agent"]),
]

UNKNOWN: list[tuple[Any, tuple[str, ...]]] = [
    (objects("superuser"), ("superuser",)),
    (objects("agent", "superuser"), ("superuser",)),
    (objects("owner"), ("owner",)),
    (objects("owner", "agent", "Ghost"), ("owner", "Ghost")),
    ("agent;manager", ("agent;manager",)),
]


@pytest.mark.parametrize(("payload", "options", "expected"), ROLES)
def test_each_role_value_of_the_vendor_page_gives_its_roles(
    payload: Any, options: dict[str, Any], expected: list[str]
) -> None:
    """Vendor page 2.4 and B14-B17, the rows that are sent: every form, letter case, and the app roles that Entra makes itself."""
    assert normalize_roles(payload, **options) == expected


@pytest.mark.parametrize(("payload", "names"), UNKNOWN)
def test_each_unknown_role_is_refused_by_name_and_nothing_is_applied(payload: Any, names: tuple[str, ...]) -> None:
    """Vendor page 2.4: `unknown_role` lists all; owner is never granted from Entra; nothing separates roles."""
    with pytest.raises(NormalizationError) as refused:
        normalize_roles(payload)
    assert (refused.value.code, refused.value.names, refused.value.attribute) == ("unknown_role", names, "roles")


@pytest.mark.parametrize(
    ("current", "desired", "add", "remove"),
    [
        (["agent", "manager", "owner", "user"], ["agent", "supervisor"], ["supervisor"], ["manager"]),
        (["owner", "user", "sales"], [], [], ["sales"]),
        ([], ["sales", "agent"], ["sales", "agent"], []),
        (["router", "agent"], [], [], ["router", "agent"]),
        (["user", "newly invented"], ["agent"], ["agent"], []),
    ],
)
def test_each_role_difference_of_the_vendor_page(
    current: list[str], desired: list[str], add: list[str], remove: list[str]
) -> None:
    """Vendor page 2.3 and 2.4: owner, user and unknown roles are untouched; both lists keep their order."""
    assert role_diff(current, desired) == {"add": add, "remove": remove}


@pytest.mark.parametrize(
    ("raw", "login"),
    [
        ("Jane.Doe@Example.COM", "jane.doe@example.com"),
        ("  jane@example.com ", "jane@example.com"),
        ("j\u200bane+x@example.com", "jane+x@example.com"),
    ],
)
def test_each_login_of_the_vendor_page_is_lower_case(raw: str, login: str) -> None:
    """Vendor page 2.4 and B11."""
    assert normalize_login(raw) == login


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ("jane@localhost", "bad_email"),
        ("jane_gmail.com#EXT#@contoso.onmicrosoft.com", "bad_email"),
        ("jane", "bad_email"),
        ("jane doe@example.com", "bad_email"),
        ("a@b@example.com", "bad_email"),
        ("jane@example..com", "bad_email"),
        (7, "bad_email"),
        ("  ", "missing"),
        (None, "missing"),
    ],
)
def test_each_bad_login_of_the_vendor_page_is_refused(raw: Any, code: str) -> None:
    """Vendor page 2.4: no guests, a dot in the domain; the value is not shown."""
    with pytest.raises(NormalizationError) as refused:
        normalize_login(raw)
    assert (refused.value.code, refused.value.attribute) == (code, "userName")
    assert "jane" not in str(refused.value)


PAYLOADS = st.recursive(
    st.none() | st.booleans() | st.text(max_size=20) | st.integers() | st.sampled_from(MANAGED_ROLES),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["value", "display", "displayName", "id", "primary"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(payload=PAYLOADS, unknown=st.sampled_from(["reject", "ignore"]), creating=st.booleans())
def test_any_payload_gives_managed_roles_or_our_error(payload: Any, unknown: Any, creating: bool) -> None:
    """0.2 and 0.6: nothing but NormalizationError is raised, and normalizing a result again changes nothing."""
    try:
        roles = normalize_roles(payload, ("sales",), creating, unknown)
    except NormalizationError:
        return
    assert set(roles) <= set(MANAGED_ROLES)
    assert len(set(roles)) == len(roles)
    assert normalize_roles(roles, ("sales",), creating, unknown) == roles


@settings(deadline=None)
@given(
    raw=st.none()
    | st.integers()
    | st.text(max_size=40)
    | st.from_regex(r"[A-Zİß\u200b .+]{1,6}@[a-zE-G]{1,4}\.[a-z]{2}")
)
def test_any_login_is_an_address_or_our_error_and_stays_as_it_is(raw: Any) -> None:
    """0.6: normalizing twice changes nothing, and no input crashes."""
    try:
        login = normalize_login(raw)
    except NormalizationError:
        return
    assert normalize_login(login) == login


NAMES = st.lists(st.sampled_from([*MANAGED_ROLES, "owner", "user", "else"]), max_size=8)


@settings(deadline=None)
@given(current=NAMES, desired=NAMES)
def test_a_role_difference_applied_twice_changes_nothing(current: list[str], desired: list[str]) -> None:
    """Vendor page 2.4, idempotence; what is not managed is neither given nor taken."""
    steps = role_diff(current, desired)
    after = [role for role in [*current, *steps["add"]] if role not in steps["remove"]]
    assert role_diff(after, desired) == {"add": [], "remove": []}
    others = {"owner", "user", "else"}
    assert set(current) & others == set(after) & others


# The connector --------------------------------------------------------------------------------------------------------


def a_user(*roles: str, **document: Any) -> User:
    """A user as the vendor's guide maps it."""
    return User.from_document(
        {
            "userName": "Jane.Doe@Example.com",
            "active": True,
            "displayName": "Jane Doe",
            **({"roles": objects(*roles)} if roles else {}),
            **document,
        }
    )


def offline(**options: Any) -> Babelforce:
    """A connector whose pure parts are under test."""
    options = {"token": Secret(env="T"), "integration_user": "scim@example.com", **options}
    return Babelforce(Settings(**options), registry.CallsNobody())


def wish(*roles: str, **document: Any) -> Account:
    return offline().normalize(a_user(*roles, **document), Known())


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """The credential of the target."""
    return secret_file(tmp_path / "token", "demo-token-babelforce")


@pytest.fixture
async def emulator() -> AsyncIterator[tuple[BabelforceEmulator, str]]:
    """A running babelforce without its rate limit."""
    async with correctly_used(BabelforceEmulator(rate_per_s=0)) as used:
        yield used


@contextlib.asynccontextmanager
async def connected(url: str, token: Path, *, paced: bool = False, **options: Any) -> AsyncIterator[Babelforce]:
    """The connector as a worker builds it."""
    table = {
        "base_url": url,
        "allow_loopback": True,
        "token": {"file": str(token)},
        "integration_user": "scim@example.com",
        **options,
    }
    async with built("babelforce", table, paced=paced) as connector:
        yield connector


def users(emulator: BabelforceEmulator) -> list[dict[str, Any]]:
    """All users but the integration's."""
    return [user for user in emulator.state()["users"].values() if user["email"] != "scim@example.com"]


def writes(emulator: BabelforceEmulator) -> list[str]:
    return [call["path"] for call in emulator.recorded() if call["method"] != "GET"]


@pytest.fixture(params=["rest", "scim"])
async def either(request: pytest.FixtureRequest) -> AsyncIterator[tuple[BabelforceEmulator, str, str]]:
    """A running babelforce, and the interface that is used."""
    emulator = BabelforceEmulator(rate_per_s=0)
    emulator.seed({"configuration": configuration_document()})
    async with running(emulator) as url:
        yield emulator, url, request.param
    assert not emulator.violations, list(emulator.violations)
    prefix = {"rest": "/api/v2/", "scim": "/auth/scim/v2/"}[request.param]
    assert all(call["path"].startswith(prefix) for call in emulator.recorded())


async def test_a_user_is_created_with_login_and_roles(either: Any, token: Path) -> None:
    """B10, B11, B14, 2.3: mail address in lower case, roles, enabled and activated at once."""
    product, url, target = either
    async with connected(url, token, target=target) as connector:
        account_id = await connector.create(wish("manager", "agent"), Delivery())
    (held,) = users(product)
    assert (held["id"], held["email"], held["roles"]) == (account_id, "jane.doe@example.com", ["manager", "agent"])
    assert (held["enabled"], held["activated"]) == (True, True)


async def test_an_inactive_user_is_created_and_disabled(either: Any, token: Path) -> None:
    """2.3: not active means POST, then disable; `activated` is not sent."""
    product, url, target = either
    async with connected(url, token, target=target) as connector:
        await connector.create(wish("agent", active=False), Delivery())
    (held,) = users(product)
    assert held["enabled"] is False
    if target == "rest":
        assert held["activated"] is False


@pytest.mark.parametrize(("roles", "expected"), [((), ["sales"]), (("agent",), ["agent"]), (("User",), ["sales"])])
async def test_default_roles_apply_on_create_when_nothing_is_left(
    either: Any, token: Path, roles: tuple[str, ...], expected: list[str]
) -> None:
    """2.4: the mirror of defaultRoles."""
    product, url, target = either
    async with connected(url, token, target=target, default_roles=["sales"]) as connector:
        await connector.create(wish(*roles), Delivery())
    assert users(product)[0]["roles"] == expected


async def test_roles_are_given_and_taken_by_difference_and_others_stay(either: Any, token: Path) -> None:
    """B19, 2.3: the list is the whole truth for the managed roles; owner, user and the like are untouched."""
    product, url, target = either
    product.seed({"users": [{"email": "jane.doe@example.com", "roles": ["agent", "manager", "owner", "user"]}]})
    async with connected(url, token, target=target) as connector:
        await connector.update(users(product)[0]["id"], wish("agent", "supervisor"), Delivery())
    assert users(product)[0]["roles"] == ["agent", "owner", "user", "supervisor"]


async def test_a_user_never_stands_without_roles_in_between(emulator: Any, token: Path) -> None:
    """2.3: give before take."""
    product, url = emulator
    product.seed({"users": [{"email": "jane.doe@example.com", "roles": ["agent"]}]})
    async with connected(url, token) as connector:
        await connector.update(users(product)[0]["id"], wish("sales"), Delivery())
    assert [effect["op"] for effect in product.journal.effects()] == ["grant", "revoke"]


async def test_an_empty_list_removes_all_managed_roles_and_an_absent_one_none(either: Any, token: Path) -> None:
    """2.4: on replace an empty list means no roles; what Entra does not say stays (A4)."""
    product, url, target = either
    product.seed({"users": [{"email": "jane.doe@example.com", "roles": ["agent", "user"], "displayName": "Jane Doe"}]})
    account_id = users(product)[0]["id"]
    async with connected(url, token, target=target, default_roles=["sales"]) as connector:
        await connector.update(account_id, wish(), Delivery())
        assert users(product)[0]["roles"] == ["agent", "user"]
        await connector.update(account_id, wish("User"), Delivery())
        assert users(product)[0]["roles"] == ["user"]


async def test_absent_roles_can_mean_none(emulator: Any, token: Path) -> None:
    """B19: for tenants whose mapping always sends the list."""
    product, url = emulator
    product.seed({"users": [{"email": "jane.doe@example.com", "roles": ["agent", "user"]}]})
    async with connected(url, token, absent_roles="remove") as connector:
        await connector.update(users(product)[0]["id"], wish(), Delivery())
    assert users(product)[0]["roles"] == ["user"]


async def test_repeats_cost_no_write(either: Any, token: Path) -> None:
    """2.3: what is compared first is not written again."""
    product, url, target = either
    async with connected(url, token, target=target) as connector:
        account_id = await connector.create(wish("agent"), Delivery())
        before = len(writes(product))
        await connector.update(account_id, wish("agent"), Delivery())
        await connector.update(account_id, wish("agent"), Delivery())
    assert len(writes(product)) == before


@pytest.mark.parametrize("active", [False, True])
async def test_active_switches_a_user_on_and_off(either: Any, token: Path, active: bool) -> None:
    """2.3, A7: deactivation is no deletion."""
    product, url, target = either
    product.seed({"users": [{"email": "jane.doe@example.com", "roles": ["agent"], "enabled": not active}]})
    async with connected(url, token, target=target) as connector:
        await connector.update(users(product)[0]["id"], wish("agent", active=active), Delivery())
    (held,) = users(product)
    assert (held["enabled"], held["roles"]) == (active, ["agent"])


async def test_a_deactivation_goes_before_everything_else(emulator: Any, token: Path) -> None:
    """Who leaves loses access first, also when a later step fails."""
    product, url = emulator
    product.seed({"users": [{"email": "jane.doe@example.com", "roles": ["agent"]}]})
    product.fault("status", method="POST", path="/api/v2/users/roles", status=503)
    async with connected(url, token) as connector:
        error = await refusal(connector.update(users(product)[0]["id"], wish("sales", active=False), Delivery()))
    assert isinstance(error, Unavailable)
    assert users(product)[0]["enabled"] is False


async def test_a_user_is_found_by_login_in_any_letter_case(either: Any, token: Path) -> None:
    """A3 and 0.2: the natural key; an identity that is no address matches nothing."""
    product, url, target = either
    product.seed({"users": [{"email": "jane.doe@example.com"}, {"email": "j+d@example.com"}]})
    async with connected(url, token, target=target) as connector:
        asked = ("userName:jane.doe@example.com", "userName:nobody", "displayName:jane", "userName:j+d@example.com")
        found = await connector.find(wish(), asked, Delivery())
        assert await connector.find(None, ("userName:ghost@example.com",), Delivery()) == []
    held = {user["email"]: user["id"] for user in users(product)}
    assert {(one.account_id, one.identity, one.conflict) for one in found} == {
        (held["jane.doe@example.com"], asked[0], ""),
        (held["j+d@example.com"], asked[3], ""),
    }


async def test_a_lost_create_answer_makes_no_second_user(either: Any, token: Path) -> None:
    """A3: drop_response on POST; the repetition meets the user and has it looked up and linked."""
    product, url, target = either
    product.fault("drop_response", method="POST", times=1)
    async with connected(url, token, target=target) as connector:
        assert (await refusal(connector.create(wish("agent"), Delivery()))).ambiguous
        assert len(await connector.find(wish("agent"), (), Delivery())) == 1
        error = await refusal(connector.create(wish("agent"), Delivery()))
    assert (type(error), error.code, error.ambiguous) == (Unavailable, "already_there", True)
    assert len(users(product)) == 1


@pytest.mark.parametrize("status", [409, 400])
async def test_a_duplicate_that_reads_do_not_show_yet_is_looked_at_again(token: Path, status: int) -> None:
    """2.5, 2.6: duplicate e-mail is 409 or 400 with that message; with lagging reads it is the gateway's to look again."""
    product = BabelforceEmulator(rate_per_s=0, duplicate_status=status)
    async with running(product) as url, connected(url, token) as connector:
        await connector.create(wish("agent"), Delivery())
        product.fault("stale_read", lag_s=60)
        assert await connector.find(wish("agent"), (), Delivery()) == []
        error = await refusal(connector.create(wish("agent"), Delivery()))
    assert (type(error), error.code, error.attribute) == (Conflict, "conflict", "userName")
    assert len(users(product)) == 1


async def test_a_500_on_create_may_have_made_the_user(either: Any, token: Path) -> None:
    """2.5: 500 on POST create is transient, with a look-up before the next try."""
    product, url, target = either
    product.fault("status", method="POST", status=500, when="after", times=1)
    async with connected(url, token, target=target) as connector:
        error = await refusal(connector.create(wish("agent"), Delivery()))
    assert (type(error), error.ambiguous) == (Unavailable, True)


async def test_another_success_status_than_documented_is_success(token: Path) -> None:
    """2.2, 2.5: the live service may say 200."""
    product = BabelforceEmulator(rate_per_s=0, create_status=200)
    async with running(product) as url, connected(url, token) as connector:
        assert await connector.create(wish("agent"), Delivery()) == users(product)[0]["id"]


@pytest.mark.parametrize("times", [2, 3])
async def test_success_false_is_tried_again_and_then_refused(emulator: Any, token: Path, times: int) -> None:
    """2.5: 200 with `success` false: transient twice, then permanent with the message."""
    product, url = emulator
    product.seed({"users": [{"email": "jane.doe@example.com", "roles": ["agent"]}]})
    body = {"success": False, "message": "not today"}
    product.fault("status", method="POST", path="/api/v2/users/disable", status=200, body=body, times=times)
    async with connected(url, token) as connector:
        step = connector.update(users(product)[0]["id"], wish("agent", active=False), Delivery())
        if times == 2:
            await step
            assert users(product)[0]["enabled"] is False
            return
        error = await refusal(step)
    assert (type(error), error.code) == (Rejected, "not_done")
    assert "not today" in str(error)


async def test_a_success_without_effect_is_found_out_by_the_confirming_read(emulator: Any, token: Path) -> None:
    """2.3: one `success` is given for a whole list; a read after the write confirms."""
    product, url = emulator
    product.seed({"users": [{"email": "jane.doe@example.com", "roles": ["agent"]}]})
    product.fault("status", method="POST", path="/api/v2/users/disable", status=200, body={"success": True}, times=1)
    async with connected(url, token) as connector:
        error = await refusal(connector.update(users(product)[0]["id"], wish("agent", active=False), Delivery()))
    assert (type(error), error.code, error.ambiguous) == (Unavailable, "not_confirmed", True)


async def test_a_role_change_without_effect_is_found_out_too(emulator: Any, token: Path) -> None:
    """2.3, as for activation."""
    product, url = emulator
    product.seed({"users": [{"email": "jane.doe@example.com", "roles": ["agent"]}]})
    product.fault("status", method="POST", path="/api/v2/users/roles$", status=200, body={"success": True}, times=1)
    async with connected(url, token) as connector:
        error = await refusal(connector.update(users(product)[0]["id"], wish("agent", "sales"), Delivery()))
        assert (type(error), error.code, error.ambiguous) == (Unavailable, "not_confirmed", True)
        await connector.update(users(product)[0]["id"], wish("agent", "sales"), Delivery())
    assert users(product)[0]["roles"] == ["agent", "sales"]


async def test_a_vendor_role_that_is_gone_is_refused_as_not_assignable(either: Any, token: Path) -> None:
    """2.5: role removed from the vendor's list."""
    product, url, target = either
    product.seed({"users": [{"email": "jane.doe@example.com", "roles": ["agent"]}]})
    product.set(roles=["agent", "manager"])
    async with connected(url, token, target=target) as connector:
        for step in (
            connector.create(wish("sales", userName="new@example.com"), Delivery()),
            connector.update(users(product)[0]["id"], wish("sales"), Delivery()),
        ):
            error = await refusal(step)
            assert (type(error), error.code, error.attribute) == (Rejected, "role_not_assignable", "roles")
            assert "not assignable" in str(error)
    assert len(users(product)) == 1


async def test_a_rename_over_rest_is_refused_with_the_remedy(emulator: Any, token: Path) -> None:
    """2.3: babelforce cannot rename a login over its REST API."""
    product, url = emulator
    product.seed({"users": [{"email": "old@example.com", "roles": ["agent"]}]})
    async with connected(url, token) as connector:
        error = await refusal(connector.update(users(product)[0]["id"], wish("agent"), Delivery()))
    assert (type(error), error.code, error.attribute) == (Rejected, "cannot_rename", "userName")
    assert 'target = "scim"' in str(error)
    assert writes(product) == []


async def test_scim_renames_and_holds_the_display_name(emulator: Any, token: Path) -> None:
    """2.3: those two need the target scim."""
    product, url = emulator
    product.seed(
        {
            "configuration": configuration_document(),
            "users": [{"email": "old@example.com", "roles": ["agent"]}, {"email": "taken@example.com"}],
        }
    )
    account_id = users(product)[0]["id"]
    async with connected(url, token, target="scim") as connector:
        await connector.update(account_id, wish("agent"), Delivery())
        held = next(user for user in users(product) if user["id"] == account_id)
        assert (held["email"], held["displayName"]) == ("jane.doe@example.com", "Jane Doe")
        error = await refusal(connector.update(account_id, wish(userName="Taken@example.com"), Delivery()))
    assert (type(error), error.code) == (Conflict, "user_name_taken")


@pytest.mark.parametrize("hyphens", [False, True])
async def test_the_display_name_becomes_the_linked_agents_name(token: Path, hyphens: bool) -> None:
    """2.3, B10: agent_name_sync; the rest of the agent stays, and ids lose their hyphens."""
    product = BabelforceEmulator(rate_per_s=0, hyphenated_agent_ids=hyphens)
    agent = {"name": "Old", "email": "jane.doe@example.com", "number": "100", "tags": ["x"], "groups": ["g"]}
    product.seed({"users": [{"email": "jane.doe@example.com", "roles": ["agent"]}], "agents": [agent]})
    async with running(product) as url, connected(url, token) as connector:
        for _ in range(2):
            await connector.update(users(product)[0]["id"], wish("agent"), Delivery())
    (held,) = product.state()["agents"].values()
    assert (held["name"], held["number"], held["tags"], held["groups"]) == ("Jane Doe", "100", ["x"], ["g"])
    assert [effect["op"] for effect in product.journal.effects()] == ["agent_update"]
    assert not product.violations


@pytest.mark.parametrize(
    ("options", "noted"), [({}, True), ({"agent_name_sync": False}, False), ({"create_agents": True}, False)]
)
async def test_without_an_agent_the_name_is_noted_or_an_agent_made(
    emulator: Any, token: Path, options: dict[str, Any], noted: bool
) -> None:
    """2.3: no agent to carry the name; agents are made only where the settings say so."""
    product, url = emulator
    ctx = Delivery()
    async with connected(url, token, **options) as connector:
        account_id = await connector.create(wish("agent"), ctx)
        await connector.update(account_id, wish("agent"), Delivery())
    assert any("no agent to carry the name" in warning for warning in ctx.warnings) is noted
    agents = list(product.state()["agents"].values())
    assert [agent["name"] for agent in agents] == (["Jane Doe"] if "create_agents" in options else [])


async def test_an_agent_is_made_when_the_role_comes_later_and_never_twice(emulator: Any, token: Path) -> None:
    """2.3, create_agents: the role decides, with or without a displayName; a lost answer or an unseen agent makes no second."""
    product, url = emulator
    account_id = product.seed({"users": [{"email": "jane.doe@example.com", "roles": ["sales"]}]})["ids"][0]
    options = {"create_agents": True, "agent_name_sync": False}
    async with connected(url, token, **options) as connector:
        await connector.update(account_id, wish("sales"), Delivery())
        assert product.state()["agents"] == {}
        product.fault("status", method="POST", path="/api/v2/agents", status=409, times=1)  # one that no list shows yet
        await connector.update(account_id, wish("agent", "sales"), Delivery())
        product.fault("drop_response", method="POST", path="/api/v2/agents", times=1)
        nameless = wish("sales", "agent", displayName=None)
        assert isinstance(await refusal(connector.update(account_id, nameless, Delivery())), Unavailable)
        await connector.update(account_id, nameless, Delivery())
    assert [agent["name"] for agent in product.state()["agents"].values()] == ["jane.doe@example.com"]


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("call", ["PUT", "POST"])
async def test_success_false_for_an_agent_is_tried_again_and_then_refused(
    emulator: Any, token: Path, call: str, times: int
) -> None:
    """2.5, the agent's calls like the user's: transient twice, then permanent with the message; made once at most."""
    product, url = emulator
    product.seed({"users": [{"email": "jane.doe@example.com", "roles": ["agent"]}]})
    if call == "PUT":
        product.seed({"agents": [{"name": "Old", "email": "jane.doe@example.com"}]})
    body = {"success": False, "message": "not today"}
    product.fault("status", method=call, path="/api/v2/agents", status=200, body=body, times=times)
    async with connected(url, token, create_agents=True) as connector:
        step = connector.update(users(product)[0]["id"], wish("agent"), Delivery())
        if times == 2:
            await step
        else:
            error = await refusal(step)
            assert (type(error), error.code) == (Rejected, "not_done")
            assert "not today" in str(error)
    made = ["Jane Doe"] if times == 2 else ["Old"] if call == "PUT" else []
    assert [agent["name"] for agent in product.state()["agents"].values()] == made


@pytest.mark.parametrize(("on_delete", "left"), [("delete", []), ("deactivate", [False])])
async def test_a_deletion_deletes_or_disables_and_gone_is_fine(
    either: Any, token: Path, on_delete: str, left: list[bool]
) -> None:
    """A6, A7, 2.3."""
    product, url, target = either
    product.seed({"users": [{"email": "jane.doe@example.com", "roles": ["agent"]}]})
    account_id = users(product)[0]["id"]
    async with connected(url, token, target=target, on_delete=on_delete) as connector:
        await connector.delete(account_id, Delivery())
        await connector.delete(account_id, Delivery())
        await connector.delete("0" * 32, Delivery())
    assert [user["enabled"] for user in users(product)] == left


async def test_an_update_of_a_user_that_is_gone_says_so(either: Any, token: Path) -> None:
    """A6."""
    _, url, target = either
    async with connected(url, token, target=target) as connector:
        assert isinstance(await refusal(connector.update("0" * 32, wish(), Delivery())), Gone)


async def test_the_integration_user_is_never_touched(either: Any, token: Path) -> None:
    """B1: refused before any call by its login, and by what the product shows when a link leads there."""
    product, url, target = either
    own = next(user for user in product.state()["users"].values() if user["email"] == "scim@example.com")
    async with connected(url, token, target=target, rename="recreate") as connector:
        with pytest.raises(NormalizationError) as refused:
            connector.normalize(a_user(userName="SCIM@example.com"), Known())
        assert (refused.value.code, refused.value.attribute) == ("integration_user", "userName")
        (found,) = await connector.find(None, ("userName:scim@example.com",), Delivery())
        assert "never changed" in found.conflict
        for step in (
            connector.update(own["id"], wish(active=False), Delivery()),
            connector.delete(own["id"], Delivery()),
        ):
            assert (await refusal(step)).code == "integration_user"
        listed, _ = await connector.list_accounts(None)
    assert listed == []
    assert not [call for call in product.recorded() if call["method"] != "GET"]


def test_attributes_beyond_the_four_are_listed_as_ignored() -> None:
    """B10, B18, A8: dropped and listed; telephone numbers are never sent."""
    user = a_user(
        "agent",
        title="Lead",
        externalId="x",
        phoneNumbers=[{"type": "mobile", "value": "1"}],
        name={"givenName": "Jane"},
    )
    assert offline().ignored(user) == ("externalId", "name.givenName", "title", 'phoneNumbers[type eq "mobile"].value')


def test_one_bad_role_refuses_the_whole_user_unless_unknown_ones_are_ignored() -> None:
    """A2, 2.4."""
    with pytest.raises(NormalizationError) as refused:
        wish("agent", "superuser")
    assert refused.value.names == ("superuser",)
    account = offline(unknown_roles="ignore").normalize(a_user("agent", "superuser"), Known())
    assert account.roles == ("agent",)


def test_the_login_is_the_natural_key() -> None:
    """A1: filters may spell it in any letter case."""
    assert offline().account_keys(wish()) == ("jane.doe@example.com",)


@pytest.mark.parametrize(
    ("fault", "kind", "ambiguous"),
    [
        *FAULTS,
        ({"kind": "status", "status": 502}, Unavailable, False),
        ({"kind": "rate_limit", "retry_after": 7}, RateLimited, False),
        ({"kind": "status", "status": 422}, Rejected, False),
        ({"kind": "status", "status": 400, "body": {"detail": "no such tariff"}}, Rejected, False),
    ],
)
async def test_faults_of_the_product_become_their_class(
    either: Any, token: Path, fault: dict[str, Any], kind: type, ambiguous: bool
) -> None:
    """Vendor pages 0.4, 0.5 and 2.5, over real HTTP."""
    product, url, target = either
    fail_writes(product, fault)
    async with connected(url, token, target=target) as connector:
        error = await refusal(connector.create(wish("agent"), Delivery()))
    assert type(error) is kind
    assert getattr(error, "ambiguous", False) is ambiguous
    if kind is RateLimited:
        assert error.retry_after_s == 7.0
    if fault.get("status") == 400:
        assert "no such tariff" in str(error)


async def test_five_calls_a_second_are_kept(token: Path) -> None:
    """2.5: own limiter; the emulator reports every call too many as a violation."""
    product = BabelforceEmulator()
    async with running(product) as url, connected(url, token, paced=True) as connector:
        for number in range(8):
            await connector.find(None, (f"userName:a{number}@example.com",), Delivery())
    assert len(product.recorded()) == 8
    assert not product.violations


async def test_accounts_are_listed_whole_or_page_by_page(either: Any, token: Path) -> None:
    """2.2: REST serves everything in one answer; SCIM pages."""
    product, url, target = either
    product.seed({"users": [{"email": f"u{number:03}@example.com", "enabled": number != 7} for number in range(205)]})
    listed: list[Any] = []
    async with connected(url, token, target=target) as connector:
        cursor: str | None = None
        for _ in range(10):
            page, cursor = await connector.list_accounts(cursor)
            listed += page
            if cursor is None:
                break
    assert len({entry["account_id"] for entry in listed}) == 205
    assert [entry["identities"] for entry in listed if not entry["active"]] == [("userName:u007@example.com",)]


async def test_a_list_of_more_than_a_mebibyte_is_read(token: Path) -> None:
    """2.2: all users come in one answer, whatever is asked; the usual bound would end at some two thousand of them."""
    product = BabelforceEmulator(rate_per_s=0)
    product.seed({"users": [{"email": f"{'u' * 200}{number}@example.com"} for number in range(3_000)]})
    async with running(product) as url, connected(url, token) as connector, aiohttp.ClientSession(url) as plain:
        listed, cursor = await connector.list_accounts(None)
        headers = {"Authorization": "Bearer demo-token-babelforce"}
        async with plain.get("/api/v2/users", headers=headers) as answer:
            assert len(await answer.read()) > BODY_BYTES_MAX
    assert (len(listed), cursor) == (3_000, None)


# Configuration document and check -------------------------------------------------------------------------------------

KEYS = st.sampled_from(["defaultRoles", "customizer", "features", "scim", "roles", "else"])
DOCUMENTS = st.none() | st.dictionaries(
    KEYS, st.booleans() | st.text(max_size=3) | st.dictionaries(KEYS, st.booleans())
)


def test_the_configuration_document_is_the_seeds() -> None:
    """B4, B18: exact document."""
    assert configuration_document() == {
        "defaultRoles": [],
        "customizer": "microsoft",
        "features": {
            "scim": True,
            "groups": False,
            "roles": True,
            "password_sync": False,
            "phone_number_sync": False,
        },
    }


def test_what_goes_beyond_the_document_is_named_before_it_is_taken_away() -> None:
    """B4: the exact document replaces what is held, so an operator sees what goes; by itself it is no reason to write."""
    wanted = configuration_document()
    held = {**wanted, "theme": "dark", "features": {**wanted["features"], "scim": False, "beta": True}}

    assert surplus(held, wanted) == [
        Difference(path="features.beta", held=True, wanted=None),
        Difference(path="theme", held="dark", wanted=None),
    ]
    assert surplus(wanted, wanted) == surplus(None, wanted) == []


async def test_the_configuration_document_is_read_compared_and_written(emulator: Any, token: Path) -> None:
    """B3, B4: read, show the difference, write; twice is once."""
    product, url = emulator
    wanted = configuration_document(("agent",))
    async with connected(url, token) as connector:
        before = difference(await read_configuration(connector.http), wanted)
        assert [one.path for one in before] == ["defaultRoles", "customizer", "features.scim", "features.roles"]
        assert (before[2].held, before[2].wanted) == (False, True)
        assert difference(await write_configuration(connector.http, wanted), wanted) == []
        assert difference(await write_configuration(connector.http, wanted), wanted) == []
    assert product.state()["configuration"]["document"] == wanted


@settings(deadline=None)
@given(DOCUMENTS)
def test_any_held_document_can_be_compared(held: Any) -> None:
    """B4: whatever the product holds; taking over the wanted values leaves no difference."""
    wanted = configuration_document()
    missing = {one.path for one in difference(held, wanted)}
    assert missing <= {"defaultRoles", "customizer", *(f"features.{name}" for name in wanted["features"])}
    merged = {**(held if isinstance(held, dict) else {}), **wanted}
    assert difference(merged, wanted) == []


async def test_check_proves_the_token_and_finds_setup_mistakes_without_writing(emulator: Any, token: Path) -> None:
    """A12, B1, B2, B4, B16: integration user, role list, configuration document."""
    product, url = emulator
    async with connected(url, token) as connector:
        assert [finding.code for finding in await connector.check()] == ["reachable"]
    product.set(roles=["agent", "owner", "user"])
    async with connected(url, token, default_roles=["sales"], integration_user="other@example.com") as connector:
        found = {(finding.level, finding.code) for finding in await connector.check()}
    assert found == {("warning", "no_integration_user"), ("warning", "unknown_role"), ("error", "unknown_role")}
    product.seed({"configuration": {**configuration_document(), "customizer": "okta"}})
    async with connected(url, token, target="scim", create_agents=True) as connector:
        findings = await connector.check()
    assert [finding.code for finding in findings] == ["reachable", "no_effect", "configuration_differs"]
    assert "create_agents does nothing" in findings[1].message
    assert "customizer is 'okta' and must be 'microsoft'" in findings[2].message
    product.seed({"users": [{"email": "scim2@example.com", "enabled": False}]})
    async with connected(url, token, integration_user="scim2@example.com") as connector:
        assert (await connector.check())[0].code == "integration_user_disabled"
    assert {call["method"] for call in product.recorded()} == {"GET"}


async def test_scim_that_is_not_switched_on_concerns_the_target(emulator: Any, token: Path) -> None:
    """B3, B4, A9: refused until the document says scim; the check says so, and with which command it is mended."""
    _, url = emulator
    async with connected(url, token, target="scim") as connector:
        (error,) = [finding for finding in await connector.check() if finding.level == "error"]
        assert error.code == "configuration_differs"
        assert "features.scim is False" in error.message
        assert "provgate connector configure TARGET --write" in error.message
        assert isinstance(await refusal(connector.create(wish("agent"), Delivery())), Misconfigured)
        await connector.write_configuration()
        assert [finding.code for finding in await connector.check()] == ["reachable"]


async def test_check_reports_a_revoked_token(either: Any, token: Path) -> None:
    """A12, 2.5: token revoked or user of B1 disabled."""
    product, url, target = either
    product.revoke_token()
    async with connected(url, token, target=target) as connector:
        assert isinstance(await refusal(connector.check()), Misconfigured)


async def test_role_names_are_listed_for_operators(emulator: Any, token: Path) -> None:
    """Contract, HasDirectory: what is not managed here is shown as not active."""
    _, url = emulator
    async with connected(url, token) as connector:
        listed = (await connector.load_directory())["role"]
    assert {entry["name"] for entry in listed if entry["active"]} == set(MANAGED_ROLES)
    assert {entry["name"] for entry in listed if not entry["active"]} == {"owner", "user"}


@pytest.mark.parametrize(
    ("options", "base_url"),
    [
        ({}, "https://services.babelforce.com"),
        ({"namespace": "contoso"}, "https://contoso.babelforce.com"),
        ({"base_url": "https://x.example.com/auth/scim/v2/"}, "https://x.example.com"),
    ],
)
def test_the_address_follows_the_namespace_or_the_tenant_url(options: dict[str, Any], base_url: str) -> None:
    """B7: `services` is the shared environment; B6: a development host is no default."""
    endpoint = Babelforce.endpoint(offline(**options).settings)
    assert endpoint is not None
    assert endpoint.base_url == base_url


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "token: missing"),
        ({"token": {"env": "T"}}, "integration_user: missing"),
        ({"token": {"env": "T"}, "integration_user": "scim"}, "integration_user must be"),
        ({"token": {"env": "T"}, "integration_user": "a@b.example", "namespace": "evil.example/"}, "namespace must"),
        ({"token": {"env": "T"}, "integration_user": "a@b.example", "base_url": "http://x.example"}, "https://"),
        ({"token": {"env": "T"}, "integration_user": "a@b.example", "default_roles": ["owner"]}, "cannot be given"),
        ({"token": {"env": "T"}, "integration_user": "a@b.example", "target": "soap"}, "target"),
        ({"token": {"env": "T"}, "integration_usr": "a@b.example"}, "did you mean integration_user?"),
        ({"token": "plain", "integration_user": "a@b.example"}, "a secret is a reference"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_the_file_is_read(table: dict[str, Any], said: str) -> None:
    """A mistake is said at start, not at the first delivery."""
    problems: list[str] = []
    assert registry.decode_settings("babelforce", table, "targets.b.settings", problems) is None
    assert any(problem.startswith("targets.b.settings") and said in problem for problem in problems), problems


def test_the_development_host_of_the_sample_is_warned_of() -> None:
    """B6: it must not stay in the settings unnoticed."""
    (finding,) = address_findings(offline(base_url="https://latest.dev.babelforce.com/auth/scim/v2").settings)
    assert (finding.level, finding.code) == ("warning", "development_host")
    assert address_findings(offline().settings) == []
