"""The demonstration as a newcomer sees it: one command up, one Ctrl-C down, and the same again with what was kept."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest

from tests.e2e.running import Running, a_session, a_talkdesk_user, eventually

PEOPLE = 20
GROUPS = 2
PRODUCTS = ("telemessage", "talkdesk", "babelforce", "bobs_business", "sofa")
TARGETS = (*PRODUCTS, "observe")
WITH_GROUPS = ("bobs_business", "sofa", "observe")
THERE_BEFORE = {"babelforce": 1}
"""Accounts a product has from the start: babelforce knows the user of the integration."""
CYCLE_WAIT_S = 90.0


@pytest.mark.slow
async def test_the_demo_applies_a_first_cycle_ends_without_a_trace_and_keeps_what_it_was_told(tmp_path: Path) -> None:
    """All users applied at all products although the gateway is killed in the middle, up until Ctrl-C, then no process left;
    a second run with the same data has the same Tenant URLs, tokens and users."""
    first = Running(tmp_path / "data")
    try:
        await asyncio.to_thread(first.start)
        ready = first.ready
        assert set(ready["targets"]) >= set(TARGETS)
        assert set(ready["pids"]) >= {"gateway", "worker", "nats-server"}
        async with a_session() as session:

            async def somebody_is_there() -> bool:
                return len(await first.product(session, "talkdesk").users()) > 0

            async def cycle_is_over() -> bool:
                return "Press Ctrl-C to stop" in first.said()

            await eventually(somebody_is_there, CYCLE_WAIT_S, "the first cycle is under way")
            os.kill(ready["pids"]["gateway"], signal.SIGKILL)
            await eventually(cycle_is_over, CYCLE_WAIT_S, f"the first cycle ends: {first.said()}", every_s=0.2)
            for target in TARGETS:
                seen = await first.target(session, target)
                assert seen["states"] == {"applied": PEOPLE + (GROUPS if target in WITH_GROUPS else 0)}, seen
            accounts = {name: await first.product(session, name).users() for name in PRODUCTS}
        expected = {name: PEOPLE + THERE_BEFORE.get(name, 0) for name in PRODUCTS}
        assert {name: len(users) for name, users in accounts.items()} == expected
        for entry in ready["targets"].values():
            assert entry["tenant_url"] in first.said()
            assert entry["token"] not in first.said()
        for target in TARGETS:
            applied = PEOPLE + (GROUPS if target in WITH_GROUPS else 0)
            assert re.search(
                rf"^{target} +\d+ +\d+ +0 +{applied} +({expected.get(target)}|-) *$", first.said(), re.MULTILINE
            )
        assert first.process is not None
        assert first.process.poll() is None, "it stays up"

        code = await asyncio.to_thread(first.stop, signal.SIGINT)
    finally:
        await asyncio.to_thread(first.stop, signal.SIGKILL)
    assert code == 0, first.said()
    assert first.left_behind() == []
    assert not first.ready_file.exists()
    assert "Traceback" not in first.said()

    again = Running(tmp_path / "data", "--no-cycle")
    try:
        await asyncio.to_thread(again.start)
        assert again.ready["targets"] == ready["targets"]
        assert again.ready["emulators"] == ready["emulators"]
        async with a_session() as session:
            for target in TARGETS:
                scim = again.scim(session, target)
                everybody = await scim.send("GET", "/Users?count=100")
                assert everybody.document["totalResults"] == PEOPLE
            kept = {name: await again.product(session, name).users() for name in PRODUCTS}
            assert kept == accounts
            assert (await again.scim(session, "talkdesk").create(a_talkdesk_user())).status == 201
        assert again.process is not None
        again.look()
        os.kill(again.process.pid, signal.SIGKILL)

        async def nobody_is_left() -> bool:
            return again.left_behind() == []

        await eventually(nobody_is_left, 30.0, "all processes end with their parent, also when that was killed (Linux)")
    finally:
        await asyncio.to_thread(again.stop, signal.SIGKILL)


def test_the_picture_of_the_readme_shows_todays_demo() -> None:
    """`python -m deploy.demo_recording` records it anew when targets come or go; nothing is loaded from elsewhere to show it."""
    picture = (Path(__file__).resolve().parents[2] / "deploy" / "demo.svg").read_text(encoding="utf-8")

    for target in TARGETS:
        assert f"/scim/v2/{target}" in picture
    assert "https://cdn" not in picture
    assert "@font-face" not in picture
