"""babelforce from Entra's write to the product and back: over REST a new login makes the user anew, over SCIM it changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from connectors.babelforce import configuration_document
from deploy.emulators.babelforce import BabelforceEmulator
from schemas.states import State
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


async def test_of_both_spellings_roles_wins(tmp_path: Path) -> None:
    """B14: the guide names the attribute once so and once so; when both arrive, `roles` is the truth, also when it is empty."""
    async with chain_of(tmp_path, {"target": "scim"}) as chain:
        row = await chain.post({"userName": OLD, "role": roles("sales"), "roles": roles("agent")})
        assert held(chain)[OLD]["roles"] == ["agent"]
        await chain.patch(row.id, role=roles("manager"))
        assert held(chain)[OLD]["roles"] == ["agent"]
        await chain.patch(row.id, roles=[])
        assert held(chain)[OLD]["roles"] == []
