"""Who calls: the same 401 for all who may not, the reason only in the log, rates that strangers cannot use up (S1, S4, S7)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from gateway.auth import BURST_S, SOURCES_MAX, Buckets, bearer
from gateway.keys import new_key_text
from gateway.messages import ScimError
from schemas.config import LimitSettings
from tests.gateway.scim_listener import ALPHA, BETA, Listener, listening


@pytest.fixture
async def scim(tmp_path: Path) -> AsyncIterator[Listener]:
    async with listening(tmp_path) as listener:
        yield listener


async def test_every_refused_caller_gets_the_same_answer(scim: Listener) -> None:
    """S4: unknown target, no key, a wrong one, another target's, an expired one, a revoked one: they differ in the id only."""
    expired = await scim.keys.issue(ALPHA, days=90, actor="test")
    await scim.keys.revoke(ALPHA, expired.row.id, actor="test")
    answers = [
        await scim.get("/Users", token=""),
        await scim.get("/Users", token=new_key_text()),
        await scim.get("/Users", token="short"),
        await scim.get("/Users", token=scim.tokens[BETA]),
        await scim.get("/Users", token=expired.text),
        await scim.get("/Users", headers={"Authorization": "Basic YTpi"}),
        await scim.get("/Users", target="gamma", token=scim.tokens[ALPHA]),
        await scim.get("/Nothing", token=new_key_text()),
        await scim.get("/Users/0b7fd5f4-0000-4000-8000-000000000000", token=""),
        await scim.post("/Users", {"userName": "x"}, token=""),
    ]

    assert {answer.status for answer in answers} == {401}
    ids = [answer.body["errorId"] for answer in answers]
    assert len(set(ids)) == len(answers)
    same = {answer.raw.replace(own.encode(), b"ID") for answer, own in zip(answers, ids, strict=True)}
    assert len(same) == 1
    names = [{k: v for k, v in answer.headers.items() if k not in ("date",)} for answer in answers]
    assert all(headers == names[0] for headers in names)
    assert names[0]["www-authenticate"].startswith("Bearer")
    assert answers[0].body["status"] == "401"


async def test_the_cause_of_a_refusal_is_in_the_log_and_no_key_is(scim: Listener) -> None:
    """S4, S11: the operator reads why; a name that is not configured was the caller's choice and is not repeated."""
    revoked = await scim.keys.issue(ALPHA, actor="test")
    await scim.keys.revoke(ALPHA, revoked.row.id, actor="test")
    wrong = new_key_text()
    with structlog.testing.capture_logs() as lines:
        await scim.get("/Users", token="")
        await scim.get("/Users", token=wrong)
        await scim.get("/Users", token=wrong[:-3])
        await scim.get("/Users", token=revoked.text)
        await scim.get("/Users", target="invented-name", token=wrong)

    refused = [(line["target"], line["cause"]) for line in lines if line["event"] == "auth.refused"]
    assert refused == [
        ("alpha", "missing"),
        ("alpha", "wrong"),
        ("alpha", "malformed"),
        ("alpha", "revoked"),
        ("unknown", "unknown_target"),
    ]
    everything = str(lines)
    assert wrong.split("_")[2] not in everything
    assert revoked.text.split("_")[2] not in everything
    assert "invented-name" not in everything


async def test_a_revoked_key_stops_working_while_the_other_one_goes_on(scim: Listener) -> None:
    """S1: rotation without a gap, and an end that is an end."""
    new = await scim.keys.issue(ALPHA, actor="test")
    old_id = scim.tokens[ALPHA].split("_")[1]
    assert (await scim.get("/Users")).status == 200

    await scim.keys.revoke(ALPHA, old_id, actor="test")

    assert (await scim.get("/Users")).status == 401
    assert (await scim.get("/Users", token=new.text)).status == 200


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ([(b"authorization", b"Bearer abc")], "abc"),
        ([(b"authorization", b"bearer  abc ")], "abc"),
        ([(b"authorization", b"BEARER abc")], "abc"),
        ([(b"authorization", b"Bearer")], None),
        ([(b"authorization", b"Bearer ")], None),
        ([(b"authorization", b"Bearer a b")], None),
        ([(b"authorization", b"Basic abc")], None),
        ([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")], None),
        ([(b"authorization", b"Bearer \xff\xfe")], None),
        ([(b"authorization", b"Bearer " + b"a" * 600)], None),
        ([], None),
    ],
)
def test_a_bearer_token_is_read_from_one_header_only(headers: list[tuple[bytes, bytes]], token: str | None) -> None:
    """RFC 6750 section 2.1; the scheme in any letter case (RFC 9110 section 11.1); two headers are an attack, not a choice."""
    assert bearer(headers) == token


async def test_a_target_beyond_its_rate_is_told_when_to_come_again(tmp_path: Path) -> None:
    """S7: a bucket per target, 429 with Retry-After; the other target does not notice."""
    limits = LimitSettings(requests_per_s_per_target=3)
    async with listening(tmp_path, limits=limits) as scim:
        answers = [await scim.get("/Users/nobody") for _ in range(int(3 * BURST_S) + 4)]

        refused = [answer for answer in answers if answer.status == 429]
        assert refused
        assert answers[0].status == 404
        assert refused[0].headers["retry-after"] == "1"
        assert refused[0].body["status"] == "429"
        assert (await scim.get("/Users/nobody", target=BETA)).status == 404


async def test_a_stranger_cannot_use_up_the_rate_of_a_target(tmp_path: Path) -> None:
    """S7: the target's bucket is only asked once the key was accepted."""
    limits = LimitSettings(requests_per_s_per_target=3)
    async with listening(tmp_path, limits=limits) as scim:
        for _ in range(20):
            assert (await scim.get("/Users", token="guess")).status == 401

        assert (await scim.get("/Users/nobody")).status == 404


async def test_a_source_beyond_its_rate_is_stopped_before_its_key_is_looked_at(tmp_path: Path) -> None:
    """S7: guessing keys is slow."""
    limits = LimitSettings(requests_per_s_per_source=3)
    async with listening(tmp_path, limits=limits) as scim:
        statuses = [(await scim.get("/Users", token="guess")).status for _ in range(int(3 * BURST_S) + 4)]

    assert statuses[0] == 401
    assert 429 in statuses


def test_a_bucket_fills_again_and_forgets_the_longest_unheard() -> None:
    """S7: bounded in rate and in memory."""
    now = [0.0]
    buckets = Buckets(1, clock=lambda: now[0])
    for _ in range(int(BURST_S)):
        buckets.take("a")
    with pytest.raises(ScimError):
        buckets.take("a")
    now[0] = 1.0
    buckets.take("a")
    with pytest.raises(ScimError):
        buckets.take("a")

    for number in range(SOURCES_MAX + 10):
        buckets.take(f"source-{number}")

    assert len(buckets) == SOURCES_MAX
    buckets.take("a")
