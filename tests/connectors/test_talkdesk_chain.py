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
    """1.4, T8: no licence is an answer like any other; Entra reads inactive and tries again, and nobody has to do anything."""
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
    chain.emulator.set(licences=1)
    await chain.pass_s(1_000)
    assert (chain.state(row.id), chain.shown(row.id).get("active", True)) == (State.APPLIED, True)
    assert [user["active"] for user in held(chain)] == [True]


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
