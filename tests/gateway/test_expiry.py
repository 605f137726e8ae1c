"""Keys and client secrets that end soon are spoken of in time, once per threshold (security requirement S1)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
from msgspec.structs import replace

from gateway.expiry import ExpiryWatch
from gateway.keys import DAY_S, PEPPER_BYTES, Keys, Kind, last_ends
from gateway.records import KeyRecord
from gateway.store import Store
from schemas.config import TargetSettings
from tests.gateway.operated import ALPHA, Operated, operated

NOON = 1_800_000_000.0


class HandClock:
    """Time that moves only when a test says so."""

    def __init__(self) -> None:
        self.at = NOON

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def keys(tmp_path: Path, clock: HandClock) -> AsyncIterator[Keys]:
    store = Store.open(tmp_path / "store.sqlite3")
    yield Keys(store, bytes(range(PEPPER_BYTES)), now=clock, clock=clock)
    await store.close()


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Operated]:
    async with operated(tmp_path) as running:
        yield running


def watch_of(keys: Keys, clock: HandClock, **targets: TargetSettings) -> ExpiryWatch:
    return ExpiryWatch(keys, lambda: targets, clock)


async def said(watch: ExpiryWatch) -> list[tuple[str, str, int, int]]:
    """What one look writes to the log: event, key, threshold and days left."""
    with structlog.testing.capture_logs() as lines:
        await watch.look()
    return [(line["event"], line["key"], line["threshold_days"], line["days_left"]) for line in lines]


async def test_a_key_is_warned_of_30_14_7_and_1_days_before_its_end_and_at_its_end_once_each(
    keys: Keys, clock: HandClock
) -> None:
    """S1: 30/14/7/1 days; looked at every day of its life, a key is named five times."""
    made = (await keys.issue("alpha", days=90, actor="test")).row
    watch = watch_of(keys, clock, alpha=TargetSettings(connector="observe"))
    lines = []
    for day in range(100):
        clock.at = NOON + (day + 0.5) * DAY_S
        lines += [(day, *line) for line in await said(watch)]

    assert lines == [
        (60, "key.expiring", made.id, 30, 29),
        (76, "key.expiring", made.id, 14, 13),
        (83, "key.expiring", made.id, 7, 6),
        (89, "key.expiring", made.id, 1, 0),
        (90, "key.expired", made.id, 0, 0),
    ]


async def test_a_newer_key_does_not_silence_the_one_that_entra_still_uses(keys: Keys, clock: HandClock) -> None:
    """A new key that nobody entered in Entra helps nobody when the old one ends; the line says whether that one is used."""
    old = await keys.issue("alpha", days=90, actor="test")
    await keys.check("alpha", old.text)
    clock.at += 85 * DAY_S
    new = await keys.issue("alpha", days=90, actor="test")
    watch = watch_of(keys, clock, alpha=TargetSettings(connector="observe"))

    with structlog.testing.capture_logs() as lines:
        await watch.look()

    assert [(line["key"], line["used"], line["log_level"]) for line in lines] == [(old.row.id, True, "warning")]
    assert lines[0]["remedy"] == "provgate key new alpha"
    assert not any(text.split("_")[2] in str(lines) for text in (old.text, new.text))


async def test_what_could_not_sign_in_anyway_is_not_warned_of(keys: Keys, clock: HandClock) -> None:
    """Revoked keys, targets that are gone, and ways to sign in that a target does not take are noise."""
    await keys.issue("gone", days=90, actor="test")
    revoked = await keys.issue("alpha", days=90, actor="test")
    await keys.revoke("alpha", revoked.row.id, actor="test")
    secret = await keys.issue("alpha", days=90, actor="test", kind="client")
    clock.at += 80 * DAY_S

    assert await said(watch_of(keys, clock, alpha=TargetSettings(connector="observe"))) == []
    both = TargetSettings(connector="observe", auth=("key", "oauth"))
    assert await said(watch_of(keys, clock, alpha=both)) == [("key.expiring", secret.row.id, 14, 10)]


def test_the_last_end_is_that_of_the_last_key_that_was_not_revoked() -> None:
    """What alerts compute with: one number per target and kind."""

    def row(key_id: str, kind: Kind, ends_at: float, *, revoked: bool = False) -> KeyRecord:
        return KeyRecord(
            id=key_id,
            target="alpha",
            label="",
            prefix=f"{'pg' if kind == 'key' else 'pgs'}_{key_id}",
            hash=b"",
            created_at=NOON,
            expires_at=ends_at,
            revoked_at=NOON if revoked else None,
        )

    rows = [row("a", "key", 5.0), row("b", "key", 3.0), row("c", "key", 9.0, revoked=True), row("d", "client", 4.0)]

    assert last_ends(rows) == {"key": 5.0, "client": 4.0}
    assert last_ends([]) == {}


async def test_the_status_and_the_metric_tell_when_the_last_key_ends(here: Operated) -> None:
    """S1: from 30 days on a key is named by `provgate status`, without anybody having to ask for its page."""
    made = await here.keys.issue(ALPHA, days=90, actor="test")
    soon = replace(made.row, id="soon", hash=b"soon", prefix="pg_soon", expires_at=time.time() + 29.5 * DAY_S)
    assert not [problem for problem in await problems(here) if problem.startswith("has a key")]
    await here.keys.revoke(ALPHA, made.row.id, actor="test")
    await here.store.run(lambda ledger: ledger.add_key(soon))

    assert "has a key that ends in 29 days" in await problems(here)
    async with here.client(authorization="") as client:
        lines = (await client.get("/metrics")).text.splitlines()

    ends = f'provgate_key_expires_timestamp_seconds{{kind="key",target="{ALPHA}"}} '
    (told,) = [line for line in lines if line.startswith(ends)]
    assert abs(float(told.removeprefix(ends)) - soon.expires_at) < 1


async def problems(here: Operated) -> list[str]:
    """What the status says is wrong with the target."""
    (view,) = [view for view in (await here.get("/status"))["targets"] if view["name"] == ALPHA]
    return [problem["phrase"] for problem in view["problems"]]
