"""Who calls: the same 401 for all who may not, the reason only in the log (S1, S4)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from gateway.auth import bearer
from gateway.keys import new_key_text
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
