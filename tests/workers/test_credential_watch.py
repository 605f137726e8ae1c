"""The watch over credentials that end on a known day: presence and the log say so, step by step."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import structlog

from connectors.sofa import WARN_DAYS
from schemas.config import TargetSettings
from workers.limits import CallLimit
from workers.presence import Presence, decode, encode
from workers.targets import CREDENTIAL_WARN_DAYS, DAY_S, Served

ISSUED = date(2026, 1, 1)
ENDS_AT = datetime(2026, 5, 1, tzinfo=UTC).timestamp()  # 120 days later


class Clock:
    """Epoch seconds as a test sets them."""

    at = ENDS_AT

    def __call__(self) -> float:
        return self.at


async def _at_once(limit: CallLimit) -> None:
    """No limit."""


def served(folder: Path, clock: Clock, **settings: Any) -> Served:
    """Sofa as a worker serves it."""
    for name in ("key", "next"):
        (folder / name).write_text(f"access-key-{name}")
        (folder / name).chmod(0o600)
    table = {
        "endpoint_url": "https://sofa.example.com/scim/v2",
        "access_key": {"file": "key"},
        "key_issued": ISSUED,
        "key_validity_days": 120,
        **settings,
    }
    configured = TargetSettings(connector="sofa", settings=table)
    return Served("sofa", configured, folder, concurrency_max=1, before_call=_at_once, now=clock)


async def test_each_step_before_the_end_is_logged_once_and_the_end_too(tmp_path: Path) -> None:
    """S16, 5.3: warnings 30, 14, 7 and 1 days ahead, however often presence is told; the line says what to do."""
    clock = Clock()
    target = served(tmp_path, clock)
    with structlog.testing.capture_logs() as lines:
        for left_days in (31, 30.5, 30, 29, 14, 13.5, 7, 1, 0.5, 0, -3):
            clock.at = ENDS_AT - left_days * DAY_S
            for _ in range(3):
                target.presence()
    await target.close()
    said = [(line["event"], line["step_days"]) for line in lines]
    assert said == [*(("credential.ending", days) for days in WARN_DAYS), ("credential.ended", 0)]
    assert {(line["log_level"], line["target"], line["what"]) for line in lines} == {
        ("warning", "sofa", "Sofa access key")
    }
    assert all("Access details" in line["remedy"] for line in lines)
    assert set(CREDENTIAL_WARN_DAYS) == {*WARN_DAYS, 0}


async def test_presence_tells_the_gateway_when_the_key_that_lasts_longest_ends(tmp_path: Path) -> None:
    """5.3: with a second key configured, the first one's end is nobody's concern."""
    clock = Clock()
    clock.at = ENDS_AT - DAY_S
    following = {"access_key": {"file": "next"}, "key_issued": date(2026, 4, 1), "key_validity_days": 365}
    one, two = served(tmp_path, clock), served(tmp_path, clock, next_key=following)
    with structlog.testing.capture_logs() as lines:
        told = one.presence(), two.presence()
    await one.close()
    await two.close()
    assert told[0].credential is not None
    assert told[0].credential.ends_at == ENDS_AT
    assert told[1].credential is not None
    assert told[1].credential.ends_at == ENDS_AT + 335 * DAY_S
    assert len(lines) == 1
    document = Presence(worker="w", started_at=1.0, version="1", targets={"sofa": told[0]})
    assert decode(encode(document)) == document
    assert "access-key" not in encode(document).decode()


async def test_products_whose_credential_does_not_end_say_nothing_of_it(tmp_path: Path) -> None:
    """Most credentials end when somebody revokes them."""
    target = Served("o", TargetSettings(connector="observe"), tmp_path, concurrency_max=1, before_call=_at_once)
    told = target.presence()
    await target.close()
    assert told.serving
    assert told.credential is None
