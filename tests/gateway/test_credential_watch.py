"""What operators are told of a product's credential that ends: status, the target's page, and the light."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from schemas.states import Result, State
from tests.gateway.operated import ALPHA, BETA, ROLE, Operated, operated, worker_of

DAY_S = 86_400.0


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Operated]:
    """An operators' listener."""
    async with operated(tmp_path) as there:
        yield there


def worker_with(left_days: float, name: str = "worker-1") -> dict[str, Any]:
    """A worker whose product gave it a credential that ends in so many days."""
    credential = {
        "what": "Sofa access key",
        "ends_at": time.time() + left_days * DAY_S,
        "remedy": "Generate a new key in Sofa under Access details and set next_key.",
    }
    document = worker_of(ALPHA, BETA)
    targets = {**document["targets"], ALPHA: {**document["targets"][ALPHA], "credential": credential}}
    return {**document, "worker": name, "targets": targets}


async def problems(here: Operated) -> list[dict[str, Any]]:
    """Those of the target that are about the product's credential."""
    view = (await here.get(f"/targets/{ALPHA}"))["target"]
    return [one for one in view["problems"] if one["code"] == "credential"]


@pytest.mark.parametrize(
    ("left_days", "phrase"),
    [
        (31.5, None),
        (29.5, "has a Sofa access key that ends in 29 days"),
        (1.5, "has a Sofa access key that ends in 1 day"),
        (-0.5, "has a Sofa access key that ended 1 day ago"),
    ],
)
async def test_a_credential_that_ends_soon_is_a_problem_with_a_remedy(
    here: Operated, left_days: float, phrase: str | None
) -> None:
    """S16, 5.3: an operator who only looks at the status learns of it 30 days ahead; nothing stands still because of it."""
    here.workers[:] = [worker_with(left_days)]
    found = await problems(here)
    assert [one["phrase"] for one in found] == ([phrase] if phrase else [])
    assert all("Access details" in one["remedy"] and not one["red"] for one in found)
    status = await here.get("/status")
    assert (phrase is not None) == ("Sofa access key" in json.dumps(status["targets"][0]["problems"]))
    shown = await here.typed("target", "show", ALPHA)
    assert "Credential" in shown.out
    assert phrase is None or phrase in " ".join(shown.out.split())


async def test_what_another_version_of_a_worker_says_breaks_no_status(here: Operated) -> None:
    """Presence is what others wrote; of two workers the one whose credential ends first is believed."""
    strange = worker_with(3, "worker-2")
    strange["targets"][ALPHA] = {**strange["targets"][ALPHA], "credential": {"ends_at": "soon"}}
    here.workers[:] = [worker_with(20), strange, worker_with(9.5, "worker-3")]
    assert [one["phrase"] for one in await problems(here)] == ["has a Sofa access key that ends in 9 days"]
    assert (await here.get(f"/targets/{ALPHA}"))["target"]["credential_days_left"] == 9


async def test_the_targets_page_says_when_entra_and_the_product_were_last_in_touch(here: Operated) -> None:
    """S19: the last SCIM call, of whatever way to sign in, refused sign-ins not counted; and the last outcome."""
    here.metrics.count_request(ALPHA, "GET user", 401)
    assert (await here.get(f"/targets/{ALPHA}"))["target"]["last_request_at"] is None
    before = time.time()
    here.metrics.count_request(ALPHA, "GET user", 404)
    here.metrics.count_request("invented", "GET user", 200)
    here.metrics.count_outcome(ALPHA, "applied", time.time())
    at = (await here.get(f"/targets/{ALPHA}"))["target"]["last_request_at"]
    assert before <= at <= time.time()
    shown = " ".join((await here.typed("target", "show", ALPHA)).out.split())
    assert "Entra called 0 s ago" in shown or "Entra called 1 s ago" in shown, shown
    assert "Last outcome applied, " in shown
    assert "Entra called -" in " ".join((await here.typed("target", "show", BETA)).out.split())


async def test_a_gateway_that_was_started_anew_still_knows_when_both_called_last(here: Operated) -> None:
    """S19: the store has it; a delivery that called nobody does not count as a call to the product."""
    key = await here.post("/keys", {"target": ALPHA}, status=201)
    await here.store.run(lambda ledger: ledger.touch_key(key["id"], 1_700_000_000.0))
    await here.applied("ada")
    called_at = (await here.get(f"/targets/{ALPHA}"))["target"]["last_call_at"]
    refused = await here.created("bob")
    await here.comes_to(refused, Result.REJECTED, ROLE, steps=())
    view = (await here.get(f"/targets/{ALPHA}"))["target"]
    assert (view["last_request_at"], view["last_call_at"]) == (1_700_000_000.0, called_at)
    assert (view["last_outcome"]["result"], view["last_outcome"]["at"] > called_at) == ("rejected", True)
    assert (await here.get(f"/targets/{BETA}"))["target"]["last_call_at"] is None


async def test_a_target_that_left_the_configuration_is_accounted_for(here: Operated) -> None:
    """S15: the status says what is kept, what waits and how it goes on; put back, it goes on."""
    await here.applied("ada")
    waiting = await here.created("bob")
    taken_out = here.configured.pop(ALPHA)
    (left,) = (await here.get("/status"))["left_over"]
    assert (left["name"], left["kept"], left["waiting"]) == (ALPHA, 2, 1)
    shown = " ".join((await here.typed("status")).out.split())
    assert "alpha is not in the configuration any more. Nothing of it was lost" in shown
    assert "[targets.alpha]" in shown
    here.configured[ALPHA] = taken_out
    assert (await here.get("/status"))["left_over"] == []
    assert (await here.comes_to(waiting, Result.APPLIED, account_id="b", created=True)).state is State.APPLIED
