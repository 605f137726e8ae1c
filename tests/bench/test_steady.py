"""The pace of the benchmark: kept at every target, and honest when it is not (real listener, real HTTP)."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from tests.bench.__main__ import _quantiles
from tests.bench.steady import STEPS, Place, figures, hold
from tests.gateway.scim_listener import ALPHA, BETA, GroupShelf, listening


async def test_every_target_is_asked_at_its_pace_with_filter_create_and_update_in_turn(tmp_path: Path) -> None:
    """The rate reached is the rate asked, each step is a third, and every answer is what it should be."""
    async with listening(tmp_path, shelf=GroupShelf()) as scim:
        places = [Place(target, scim.tokens[target]) for target in (ALPHA, BETA)]

        held = await hold(scim.port, places, 1.0, "steady", per_s=30.0)

        assert (held.planned, held.answered, held.unsent) == (60, 60, 0)
        assert not held.unexpected
        # lanes that had begun a life when the time was over do not finish it
        assert {step: len(times) > 10 for step, times in held.from_due.items()} == dict.fromkeys(STEPS, True)
        for target in (ALPHA, BETA):
            listed = (await scim.get("/Users?count=100", target=target)).body["Resources"]
            assert len({user["userName"] for user in listed}) == len(listed) > 5
            assert any(user["title"] == "Lead" for user in listed)
        shown = figures(replace(held, elapsed_s=1.0), _quantiles)
        assert (shown["requests_per_s_asked"], shown["requests_per_s_reached"], shown["held"]) == (60.0, 60.0, True)
        assert shown["ms_from_due"].keys() == {"p50", "p95", "p99"}


async def test_refusals_are_counted_by_step_and_status_and_a_missed_pace_is_told(tmp_path: Path) -> None:
    """A wrong key answers quickly and is no success; a server that is too slow is not said to have held the pace."""
    async with listening(tmp_path, shelf=GroupShelf()) as scim:
        held = await hold(scim.port, [Place(ALPHA, "wrong")], 0.5, "refused", per_s=40.0)

    assert held.unexpected.keys() == {"filter 401", "create 401"}
    assert sum(held.unexpected.values()) == held.answered == 20
    assert not figures(replace(held, elapsed_s=2.0), _quantiles)["held"]
