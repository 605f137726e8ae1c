"""babelforce from Entra's write to the product and back: over REST a new login makes the user anew, over SCIM it changes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from connectors.babelforce import configuration_document
from deploy.emulators.babelforce import USER, BabelforceEmulator
from schemas.states import Circuit, State
from tests.connectors.chain import Chain, chained

TOKEN = "token-of-the-babelforce-chain"
OLD, NEW = "old@example.com", "new@example.com"


@asynccontextmanager
async def chain_of(
    folder: Path, settings: dict[str, Any], adopt: str = "always", **switches: Any
) -> AsyncIterator[Chain]:
    """babelforce, with SCIM switched on."""
    token = folder / "token"
    token.write_text(TOKEN, encoding="utf-8")
    token.chmod(0o600)
    emulator = BabelforceEmulator(token=TOKEN, rate_per_s=0, **switches)
    emulator.seed({"configuration": configuration_document()})
    known = {"token": {"file": "token"}, "integration_user": "scim@example.com", **settings}
    async with chained(emulator, "babelforce", folder, known, adopt=adopt) as chain:
        yield chain
    assert not emulator.violations, list(emulator.violations)


def held(chain: Chain) -> dict[str, dict[str, Any]]:
    """All users but the integration's, by login."""
    users = chain.emulator.state()["users"].values()
    return {user["email"]: user for user in users if user["email"] != "scim@example.com"}


def roles(*names: str) -> list[dict[str, Any]]:
    return [{"value": name} for name in names]


FAULTS: dict[str, dict[str, Any] | None] = {
    "nothing": None,
    "the answer to the new user is lost": {"kind": "drop_response", "path": "/api/v2/users$"},
    "the product refuses to disable once": {
        "kind": "status",
        "path": "/api/v2/users/disable",
        "status": 503,
        "times": 9,
    },
    "the answer to disable is lost": {"kind": "drop_response", "path": "/api/v2/users/disable", "times": 9},
}


@pytest.mark.parametrize(
    ("happens", "adopt"),
    [("nothing", "never"), *((name, "always") for name in (*FAULTS, "the worker dies at the end"))],
)
async def test_a_login_changes_by_making_the_user_anew_whatever_happens_in_between(
    tmp_path: Path, happens: str, adopt: str
) -> None:
    """2.3: the new user with the same roles, then the old one disabled: two steps in one event, safe to repeat."""
    async with chain_of(tmp_path, {"rename": "recreate"}, adopt) as chain:
        row = await chain.post({"userName": OLD, "roles": roles("agent", "sales")})
        fault = FAULTS.get(happens)
        if fault:
            chain.emulator.fault(method="POST", **{"times": 1, **fault})
        if happens == "the worker dies at the end":
            await chain.engine.patch(row.id, userName=NEW)
            await chain.engine.idle()
            await chain.deliver(row.id, lost=True)
            await chain.redeliver(row.id)
        else:
            await chain.patch(row.id, userName=NEW)
        await chain.pass_s(300)
        chain.emulator.clear_faults()
        await chain.pass_s(900)
        row = chain.engine.row(row.id)
        users = held(chain)
        assert (row.state, row.account_id) == (State.APPLIED, users[NEW]["id"])
        assert {login: (user["enabled"], user["roles"]) for login, user in users.items()} == {
            OLD: (False, ["agent", "sales"]),
            NEW: (True, ["agent", "sales"]),
        }
        if happens == "nothing":
            assert len(chain.outcomes) == 2, "both steps in one event"
        await chain.patch(row.id, active=False)
        assert held(chain)[NEW]["enabled"] is False
        assert len([one for one in chain.emulator.journal.effects() if one["op"] == "create"]) == 2


@pytest.mark.parametrize("spelling", ["roles", "role"])
@pytest.mark.parametrize("removes", [False, True], ids=["keeps inactive users", "removes inactive users"])
async def test_over_scim_a_whole_life_is_led(tmp_path: Path, spelling: str, removes: bool) -> None:
    """2.3, B10, B14, 2.2: roles in either spelling, a new login and name in place, away and back, and gone at the end."""
    async with chain_of(tmp_path, {"target": "scim"}, scim_removes_inactive=removes) as chain:
        row = await chain.post({"userName": "Old@Example.com", "displayName": "Jane", spelling: roles("Agent")})
        first = held(chain)[OLD]
        assert (first["roles"], first["displayName"], first["enabled"]) == (["agent"], "Jane", True)
        await chain.patch(row.id, userName=NEW, displayName="Jane Doe", **{spelling: roles("sales", "agent")})
        (user,) = held(chain).values()
        assert (user["id"], user["email"], user["displayName"]) == (first["id"], NEW, "Jane Doe")
        assert user["roles"] == ["agent", "sales"]
        await chain.patch(row.id, **{spelling: []})
        assert held(chain)[NEW]["roles"] == []
        await chain.patch(row.id, active=False)
        assert [one["enabled"] for one in held(chain).values()] == ([] if removes else [False])
        await chain.pass_s(600)
        await chain.patch(row.id, active=True, **{spelling: roles("manager")})
        await chain.pass_s(600)
        (user,) = held(chain).values()
        assert (user["email"], user["enabled"], user["roles"]) == (NEW, True, ["manager"])
        assert chain.state(row.id) is State.APPLIED
        await chain.delete(row.id)
        assert (held(chain), chain.state(row.id)) == ({}, State.GONE)
        paths = {call["path"].split("/Users")[0] for call in chain.emulator.recorded()}
        assert paths == {"/auth/scim/v2"}, "nothing goes over REST"


async def test_over_scim_roles_that_are_switched_off_are_remarked(tmp_path: Path) -> None:
    """B4, B18: with features.roles off SCIM answers success and takes no role; whoever looks at the person reads why."""
    async with chain_of(tmp_path, {"target": "scim"}) as chain:
        off = configuration_document()
        off["features"]["roles"] = False
        chain.emulator.seed({"configuration": off})
        row = await chain.post({"userName": OLD, "roles": roles("agent")})
        await chain.patch(row.id, roles=roles("sales"))
        assert held(chain)[OLD]["roles"] == []
        for outcome in chain.outcomes:
            (remark,) = outcome.warnings
            assert "did not take the roles; see provgate connector configure" in remark


async def test_of_both_spellings_roles_wins(tmp_path: Path) -> None:
    """B14: the guide names the attribute once so and once so; when both arrive, `roles` is the truth, also when it is empty."""
    async with chain_of(tmp_path, {"target": "scim"}) as chain:
        row = await chain.post({"userName": OLD, "role": roles("sales"), "roles": roles("agent")})
        assert held(chain)[OLD]["roles"] == ["agent"]
        await chain.patch(row.id, role=roles("manager"))
        assert held(chain)[OLD]["roles"] == ["agent"]
        await chain.patch(row.id, roles=[])
        assert held(chain)[OLD]["roles"] == []


# Failure classes, in the worker's order of work ----------------------------------------------------------------------

API = "/api/v2/users"
LOOK, POST, READ = f"GET {API}/by-email/…", f"POST {API}", f"GET {API}/…"
DISABLE, DELETE, GIVE = f"POST {API}/disable", f"POST {API}/delete", f"POST {API}/roles"


def calls(chain: Chain, since: int = 0) -> list[str]:
    """What was asked of the product, ids and addresses left out."""
    asked = (f"{call['method']} {call['path']}" for call in chain.emulator.recorded()[since:])
    return [re.sub(rf"(?<=GET {API}/)(by-email/)?(?!by-email).+", r"\1…", one) for one in asked]


@asynccontextmanager
async def resting(folder: Path, **switches: Any) -> AsyncIterator[Chain]:
    """The target rest, without names of agents, so that every call is about the user."""
    async with chain_of(folder, {"agent_name_sync": False}, **switches) as chain:
        yield chain


TRANSIENT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "429 with Retry-After": ({"kind": "rate_limit", "retry_after": 7}, [LOOK, POST, LOOK, POST]),
    "429 without": ({"kind": "rate_limit", "retry_after": None}, [LOOK, POST, LOOK, POST]),
    "502": ({"kind": "status", "status": 502}, [LOOK, POST, LOOK, POST]),
    "503": ({"kind": "status", "status": 503}, [LOOK, POST, LOOK, POST]),
    "504 after the effect": ({"kind": "status", "status": 504, "when": "after"}, [LOOK, POST, LOOK, READ]),
    "500 before the effect": ({"kind": "status", "status": 500}, [LOOK, POST, LOOK, POST]),
    "500 after the effect": ({"kind": "status", "status": 500, "when": "after"}, [LOOK, POST, LOOK, READ]),
    "reset after the effect": ({"kind": "drop_response"}, [LOOK, POST, LOOK, READ]),
    "success false": ({"kind": "status", "status": 200, "body": {"success": False}}, [LOOK, POST, LOOK, POST]),
    "200 in place of 201": ({"kind": "status", "status": 200, "when": "after"}, [LOOK, POST, LOOK, READ]),
}


@pytest.mark.parametrize("happens", TRANSIENT)
async def test_what_passes_is_tried_again_after_a_look_and_makes_nobody_twice(tmp_path: Path, happens: str) -> None:
    """2.5, class T, A3: before a second POST the address is looked for; an answer without a user is no answer."""
    fault, expected = TRANSIENT[happens]
    async with resting(tmp_path) as chain:
        chain.emulator.fault(method="POST", path=f"{API}$", times=1, **fault)
        row = await chain.post({"userName": OLD, "roles": roles("agent")})
        await chain.pass_s(120)
        assert chain.state(row.id) is State.APPLIED
        assert calls(chain) == expected
        assert [(user["enabled"], user["roles"]) for user in held(chain).values()] == [(True, ["agent"])]


@pytest.mark.parametrize("status", [409, 400])
@pytest.mark.parametrize("shows", [True, False], ids=["shown later", "never shown"])
async def test_a_duplicate_is_adopted_when_it_shows_and_told_when_it_never_does(
    tmp_path: Path, status: int, shows: bool
) -> None:
    """2.5, classes D and U: 409, or 400 with that message; the look-up decides."""
    async with resting(tmp_path, duplicate_status=status) as chain:
        chain.emulator.seed({"users": [{"email": OLD, "roles": ["sales", "owner"], "enabled": False}]})
        hidden = {"status": 404, "body": {"message": "There is no such user"}}
        chain.emulator.fault("status", method="GET", path=f"{API}/by-email", **hidden, times=1 if shows else None)
        row = await chain.post({"userName": OLD, "roles": roles("agent")})
        await chain.pass_s(3_600)
        row = chain.engine.row(row.id)
        (user,) = held(chain).values()
        if shows:
            assert (row.state, user["enabled"], sorted(user["roles"])) == (State.APPLIED, True, ["agent", "owner"])
        else:
            assert row.reason is not None
            assert (row.state, row.reason.scim_type) == (State.DEAD, "uniqueness")
            assert (user["enabled"], user["roles"]) == (False, ["sales", "owner"])


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ({"status": 400, "body": {"message": "no such tariff"}}, "refused", "no such tariff"),
        ({"status": 422, "body": {"detail": "too many users"}}, "refused", "too many users"),
        (
            {"status": 400, "body": {"error": "Role 'agent' is not assignable"}},
            "role_not_assignable",
            "role not assignable",
        ),
        ({"status": 200, "body": {"success": False, "message": "not today"}}, "not_done", "not today"),
    ],
    ids=["400", "422", "a role that is gone", "success false for ever"],
)
async def test_what_does_not_pass_is_a_dead_letter_with_the_products_word(
    tmp_path: Path, fault: dict[str, Any], code: str, said: str
) -> None:
    """2.5, class P: the message stands in the dead letter; `success: false` is tried three times in all, each after a look."""
    async with resting(tmp_path) as chain:
        chain.emulator.fault("status", method="POST", path=f"{API}$", **fault)
        row = await chain.post({"userName": OLD, "roles": roles("agent")})
        assert row.reason is not None
        assert (row.state, row.reason.code) == (State.DEAD, code)
        assert said in row.reason.message
        tries = 3 if code == "not_done" else 1
        assert calls(chain) == [LOOK, *[POST, LOOK] * tries][: 2 * tries + (code == "not_done")]
        assert held(chain) == {}


@pytest.mark.parametrize("answer", ["404", "no effect"])
@pytest.mark.parametrize("step", ["disable", "delete"])
async def test_no_effect_counts_as_done_only_when_the_read_after_it_says_so(
    tmp_path: Path, step: str, answer: str
) -> None:
    """2.5, class D, 2.3: 404 or a success that did nothing; who is gone is done, who is still there is tried again."""
    fault = {"status": 404} if answer == "404" else {"status": 200, "body": {"success": True}}
    async with resting(tmp_path) as chain:
        row = await chain.post({"userName": OLD, "roles": roles("agent")})
        chain.emulator.fault("status", method="POST", path=f"{API}/{step}", **fault, times=1)
        since = len(chain.emulator.recorded())
        row = await (chain.delete(row.id) if step == "delete" else chain.patch(row.id, active=False))
        assert row.state is State.RETRYING
        assert calls(chain, since) == [READ, DELETE if step == "delete" else DISABLE, READ]
        await chain.pass_s(120)
        assert chain.state(row.id) is (State.GONE if step == "delete" else State.APPLIED)
        assert [user["enabled"] for user in held(chain).values()] == ([] if step == "delete" else [False])


@pytest.mark.parametrize("step", ["disable", "delete"])
async def test_who_vanished_meanwhile_is_done(tmp_path: Path, step: str) -> None:
    """2.5, A6: nobody of that address, neither before nor after."""
    async with resting(tmp_path) as chain:
        row = await chain.post({"userName": OLD, "roles": roles("agent")})
        user = held(chain)[OLD]
        chain.emulator.control("lost", chain.emulator.drop(USER, user))
        since = len(chain.emulator.recorded())
        row = await (chain.delete(row.id) if step == "delete" else chain.patch(row.id, active=False))
        assert row.state is (State.GONE if step == "delete" else State.APPLIED)
        assert all(call in (READ, LOOK) for call in calls(chain, since)), "nothing to write"


async def test_a_dead_token_stops_the_target_and_loses_nobody(tmp_path: Path) -> None:
    """2.5, class C, B2: the user of the integration was disabled, and its token with it; nothing is a dead letter."""
    async with resting(tmp_path) as chain:
        chain.emulator.revoke_token()
        row = await chain.post({"userName": OLD, "roles": roles("agent")})
        assert (row.state, chain.engine.target().circuit) == (State.QUEUED, Circuit.AUTH)
        await chain.pass_s(300)
        chain.emulator.revoke_token(revoked=False)
        await chain.pass_s(900)
        assert (chain.state(row.id), chain.engine.target().circuit) == (State.APPLIED, Circuit.CLOSED)
