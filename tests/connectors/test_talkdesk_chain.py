"""Talkdesk from Entra's write to the product and back: rights that take a while, licences, and constants that are mistyped."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from connectors.talkdesk import EXTENSION
from deploy.emulators.talkdesk import TalkdeskEmulator
from gateway.explanations import Served as Seen
from gateway.explanations import light_of, problems_of, waiting_cause
from schemas.states import Circuit, State
from tests.connectors.chain import Chain, chained
from tests.gateway.bench import TARGET

TOKEN = "token-of-the-talkdesk-chain"


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[Chain]:
    """Talkdesk with a token, and with the names of some roles."""
    token = tmp_path / "token"
    token.write_text(TOKEN, encoding="utf-8")
    token.chmod(0o600)
    emulator = TalkdeskEmulator(token=TOKEN, rate_per_s=0)
    settings = {"token": {"file": "token"}, "roles": ["Agent", "Supervisor"], "teams": ["Porto"]}
    async with chained(emulator, "talkdesk", tmp_path, settings) as chain:
        yield chain
    assert not emulator.violations, list(emulator.violations)


def rita(name: str = "rita", **document: Any) -> dict[str, Any]:
    """Somebody as the guide maps her."""
    return {"userName": f"{name}@example.com", "name": {"givenName": "Rita", "familyName": "Sousa"}, **document}


def held(chain: Chain) -> list[dict[str, Any]]:
    return [user for user in chain.emulator.state()["users"].values() if not user["deleted"]]


def light(chain: Chain) -> str:
    """The light an operator sees."""
    target = chain.engine.target()
    seen = Seen(workers=("w",), rights_settle_s=chain.spec.rights_settle_s)
    found = problems_of(TARGET, target, seen, {}, 90, True, chain.engine.clock.now())
    assert all(problem.stops for problem in found)
    return light_of(found, enabled=True)


@pytest.mark.parametrize("takes_s", [300.0, 1_500.0], ids=["some minutes", "too long"])
async def test_a_scope_that_takes_minutes_is_waited_for_before_anybody_is_alerted(chain: Chain, takes_s: float) -> None:
    """1.4: 401 and 403 pause the target and lose nobody; it is tried again slowly, and an alert only after the first minutes."""
    chain.emulator.revoke_token(revoked=False, effective_in_s=takes_s)
    with structlog.testing.capture_logs() as lines:
        row = await chain.post(rita())
        assert (row.state, chain.engine.target().circuit) == (State.QUEUED, Circuit.AUTH)
        assert light(chain) == "yellow"
        await chain.pass_s(590)
        if takes_s > 590:
            assert light(chain) == "yellow"
            await chain.pass_s(10)
            assert light(chain) == "red"
            await chain.pass_s(1_500)
    assert (chain.state(row.id), chain.engine.target().circuit) == (State.APPLIED, Circuit.CLOSED)
    assert len(held(chain)) == 1
    assert len(chain.bus.probed) <= 6, "slowly"
    circuit = [(line["log_level"], line["event"]) for line in lines if line["event"].startswith("circuit.")]
    alert = [("error", "circuit.stays_open")] if takes_s > 590 else []
    assert circuit == [("warning", "circuit.opened"), *alert, ("info", "circuit.closed")]


@pytest.mark.parametrize("mapped", [True, False], ids=["active is mapped", "active is not mapped"])
async def test_a_user_without_a_licence_is_shown_inactive_and_active_as_soon_as_there_is_one(
    chain: Chain, mapped: bool
) -> None:
    """1.4, T8: Entra reads inactive and tries again, which is looked at at once; otherwise a look every quarter of an hour."""
    chain.emulator.set(licences=0)
    document = rita(active=True) if mapped else rita()
    row = await chain.post(document)
    assert (row.state, row.blocked_on) == (State.BLOCKED, "licence")
    assert row.reason is not None
    assert "no licence left" in row.reason.message
    assert chain.shown(row.id)["active"] is False
    if mapped:  # Entra sees the difference and asks again
        row = await chain.patch(row.id, active=True)
        assert (row.state, chain.shown(row.id)["active"]) == (State.BLOCKED, False)
    await chain.pass_s(3_600)
    assert chain.state(row.id) is State.BLOCKED
    assert chain.engine.run(lambda ledger: list(ledger.notes_of(row.id))) == ["no_licence"]
    chain.emulator.set(licences=1)
    if mapped:
        await chain.patch(row.id, active=True)
    await chain.pass_s(1 if mapped else 900)
    assert (chain.state(row.id), chain.shown(row.id).get("active", True)) == (State.APPLIED, True)
    assert [user["active"] for user in held(chain)] == [True]
    assert chain.engine.run(lambda ledger: list(ledger.notes_of(row.id))) == [], "the licence is no concern any more"


async def test_a_licence_is_waited_for_a_month_and_then_it_is_a_persons_turn(chain: Chain) -> None:
    """0.4, class W: with a limit; the same write again from Entra, or a redrive, begins anew."""
    chain.emulator.set(licences=0)
    row = await chain.post(rita(active=True))
    await chain.pass_s(29 * 86_400, step_s=43_200)
    assert chain.state(row.id) is State.BLOCKED
    await chain.pass_s(2 * 86_400, step_s=43_200)
    assert chain.state(row.id) is State.DEAD
    assert chain.shown(row.id)["active"] is False
    chain.emulator.set(licences=1)
    await chain.patch(row.id, active=True)
    assert (chain.state(row.id), [user["active"] for user in held(chain)]) == (State.APPLIED, [True])


async def test_a_mistyped_constant_is_one_cause_however_many_people_it_hits(chain: Chain) -> None:
    """T17: an operator sees it once per value and not once per user, whether it was accepted or refused; nothing is sent."""
    refused = {"rolesString": "Superviser"}
    for name in ("rita", "rui", "ines"):
        await chain.post(rita(name, **{EXTENSION: refused}))
    await chain.post(rita("ana", **{EXTENSION: {"rolesString": "Agent;Agnet"}}))
    rows = [chain.engine.row(f"r{number}") for number in range(1, 5)]
    waiting = Counter(
        waiting_cause(row.state, None, code=row.reason.code, message=row.reason.message, blocked_on=row.blocked_on)
        for row in rows
        if row.reason
    )
    assert [count for _, count in waiting.most_common()] == [3, 1]
    (worst, _), (other, _) = waiting.most_common()
    assert "'Superviser' does not exist in Talkdesk; did you mean 'Supervisor'?" in worst.message
    assert "'Agnet'" in other.message
    causes = Counter(row.reason.fingerprint() for row in rows if row.reason)
    assert sorted(causes.values()) == [1, 3]
    assert chain.emulator.recorded() == []


USERS = "/scim/v2/Users"
FIND, POST, PUT, READ = f"GET {USERS}", f"POST {USERS}", f"PUT {USERS}/", f"GET {USERS}/"


def calls(chain: Chain, since: int = 0) -> list[str]:
    """What was asked of the product, ids left out; the question for PATCH is not of interest."""
    asked = (f"{call['method']} {call['path']}" for call in chain.emulator.recorded()[since:])
    return [call[: len(USERS) + 5] if f"{USERS}/" in call else call for call in asked if "Provider" not in call]


TRANSIENT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "429 with Retry-After": ({"kind": "rate_limit", "retry_after": 7, "times": 1}, [FIND, POST, FIND, POST]),
    "429 without": ({"kind": "rate_limit", "retry_after": None, "times": 1}, [FIND, POST, FIND, POST]),
    "503": ({"kind": "status", "status": 503, "times": 1}, [FIND, POST, FIND, POST]),
    "a page of HTML": ({"kind": "html", "times": 1}, [FIND, POST, FIND, POST]),
    "reset before the effect": ({"kind": "reset", "times": 1}, [FIND, POST, FIND, POST]),
    "reset after the effect": ({"kind": "drop_response", "times": 1}, [FIND, POST, FIND, READ, PUT]),
    "500 after the effect": (
        {"kind": "status", "status": 500, "when": "after", "times": 1},
        [FIND, POST, FIND, READ, PUT],
    ),
    "half a body": ({"kind": "truncate", "times": 1}, [FIND, POST, FIND, READ, PUT]),
}


@pytest.mark.parametrize("happens", TRANSIENT)
async def test_what_passes_is_tried_again_after_a_look_and_makes_nobody_twice(chain: Chain, happens: str) -> None:
    """1.4, class T, in the worker's order of work: before a second POST the userName is looked for."""
    fault, expected = TRANSIENT[happens]
    chain.emulator.fault(method="POST", path=USERS, **fault)
    row = await chain.post(rita(active=True))
    assert row.state is not State.APPLIED
    if "retry_after" in fault:
        assert chain.outcomes[0].retry_after_s == (fault["retry_after"] or 1.0)
        assert row.attempt == 0
    await chain.pass_s(120)
    assert chain.state(row.id) is State.APPLIED
    assert calls(chain) == expected
    assert len(held(chain)) == 1


@pytest.mark.parametrize(
    ("theirs", "state"),
    [("object-1", State.APPLIED), ("", State.APPLIED), ("object-2", State.DEAD)],
    ids=["ours", "none", "somebody else's"],
)
async def test_a_409_on_create_adopts_what_may_be_ours_and_refuses_what_is_not(
    chain: Chain, theirs: str, state: State
) -> None:
    """1.4, classes D and U: adopted and brought to the wish by PUT, when the list did not show it at first."""
    chain.emulator.seed(
        {"users": [{"userName": "RITA@example.com", "givenName": "Old", **({"externalId": theirs} if theirs else {})}]}
    )
    chain.emulator.fault("status", method="GET", path=f"{USERS}$", status=200, body={"totalResults": 0}, times=1)
    row = await chain.post(rita(externalId="object-1"))
    await chain.pass_s(60)
    assert (chain.state(row.id), len(held(chain))) == (state, 1)
    if state is State.APPLIED:
        assert calls(chain) == [FIND, POST, FIND, FIND, READ, PUT]
        assert (held(chain)[0]["givenName"], held(chain)[0]["externalId"]) == ("Rita", "object-1")
    else:
        reason = chain.engine.row(row.id).reason
        assert reason is not None
        assert (reason.scim_type, reason.attribute) == ("uniqueness", "userName")
        assert held(chain)[0]["givenName"] == "Old"


async def test_a_role_that_is_gone_at_the_product_is_asked_for_once_more_and_then_told_by_name(tmp_path: Path) -> None:
    """1.4: 400 naming a role is permanent after one refresh of the names; T13, the remedy and the nearest name are said."""
    (tmp_path / "token").write_text(TOKEN, encoding="utf-8")
    (tmp_path / "token").chmod(0o600)
    emulator = TalkdeskEmulator(token=TOKEN, rate_per_s=0, listing=True)
    settings = {"token": {"file": "token"}, "list_endpoints": True}
    async with chained(emulator, "talkdesk", tmp_path, settings) as chain:
        await chain.post(rita("first", **{EXTENSION: {"rolesString": "team lead"}}))
        emulator.set(roles={"Agent": True, "Team Leader": True})
        await chain.pass_s(60)
        since = len(emulator.recorded())
        chain.served.directory._next_at = None  # a minute has passed since the names were loaded
        row = await chain.post(rita(**{EXTENSION: {"rolesString": "team lead"}}))
    assert calls(chain, since) == [FIND, POST, "GET /roles", "GET /teams"]
    assert row.reason is not None
    assert (row.reason.code, row.reason.names) == ("unknown_role", ("team lead",))
    assert "did you mean 'Team Leader'?" in row.reason.message
    assert f"correct the mapping of {EXTENSION}:rolesString" in row.reason.message


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("moved", [True, False], ids=["under another id", "gone"])
async def test_a_404_on_update_finds_makes_anew_or_is_done(chain: Chain, active: bool, moved: bool) -> None:
    """1.4, A6: looked for by userName and adopted; otherwise made again when it shall be active, and done when not."""
    row = await chain.post(rita())
    account_id = held(chain)[0]["id"]
    rows = chain.emulator.tables.rows
    user = {**rows["users"][account_id], "id": "another-id"}
    changes: list[Any] = [("users", account_id), ("_by_user_name", "rita@example.com"), ("_counters", "active", 0)]
    if moved:
        changes = [
            ("users", account_id),
            ("users", "another-id", user),
            ("_by_user_name", "rita@example.com", "another-id"),
        ]
    chain.emulator.control("lost", changes)
    await chain.patch(row.id, active=active, name={"givenName": "Margarida", "familyName": "Sousa"})
    assert chain.state(row.id) is State.APPLIED
    found = [(one["givenName"], one["active"], one["id"] == "another-id") for one in held(chain)]
    assert found == ([("Margarida", active, moved)] if moved or active else [])
