"""The list of hostile requests, against two targets with secrets in each (`python -m tests.hostile` measures the same)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.attacked import ALPHA_CANARY, BETA_CANARY, World, attacked, meet_all
from tests.gateway.hostile import MARK, VICTIM, Hostile, all_of_them, by_kind
from tests.gateway.scim_listener import ALPHA, BETA
from tests.gateway.wire import read_answer

SHOTS = all_of_them()
KINDS = {
    "sign-in", "foreign ids", "path tricks", "header tricks", "smuggling", "JSON bombs", "filters", "PATCH paths", "unicode",
    "injection", "numbers", "sizes", "methods", "content types", "bulk", "cursors", "token endpoint",
}  # fmt: skip


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with attacked(tmp_path) as running:
        yield running


def test_there_are_a_thousand_and_more_each_of_them_different_and_of_every_kind() -> None:
    """The list is curated: no entry stands there twice, and each says what it attacks."""
    grouped = by_kind(SHOTS)

    assert len({(shot.wire("token"), shot.signed) for shot in SHOTS}) >= 1_000
    assert grouped.keys() == KINDS
    assert all(shot.aims for shot in SHOTS)


@pytest.mark.parametrize("kind", sorted(KINDS))
async def test_no_hostile_request_gets_a_5xx_a_secret_or_a_change(kind: str, tmp_path: Path) -> None:
    """Security requirements S4, S5, S7, S8: a SCIM refusal, nothing of another target, nothing stored, nothing logged."""
    async with attacked(tmp_path) as world:
        before = await world.everything(ALPHA), await world.everything(BETA)

        met = await meet_all(world, by_kind(SHOTS)[kind])

        wrong = [f"{one.wrong}: {one.shot.aims}, {world.sent(one.shot)[:300]!r}" for one in met if one.wrong]
        assert not wrong, "\n".join(wrong[:20])
        assert (await world.everything(ALPHA), await world.everything(BETA)) == before
        assert world.logged() == []
        assert (await world.scim.get(f"/Users/{world.names['alpha_victim']}")).status == 200


async def test_foreign_ids_are_answered_exactly_like_ids_of_nobody(world: World) -> None:
    """Security requirement S5: not even the bytes of the answer differ."""
    nobody = world.names["beta_user"][::-1]
    patch = {"Operations": [{"op": "remove", "path": "title"}]}
    put = {"userName": "x", "displayName": "x"}
    for kind in ("Users", "Groups"):
        for method, body in (("GET", None), ("HEAD", None), ("DELETE", None), ("PATCH", patch), ("PUT", put)):
            paths = [f"/{kind}/{name}" for name in (world.names["beta_user"], world.names["beta_group"], nobody)]
            answers = [await world.scim.send(method, path, json=body) for path in paths]
            assert {(answer.status, answer.raw) for answer in answers} == {(404, answers[0].raw)}
            assert len({tuple(sorted(answer.headers.items())) for answer in answers}) == 1
    for question in ('id eq "{}"', 'members eq "{}"'):
        quoted = question.replace(" ", "+").replace('"', "%22")
        names = (world.names["beta_user"], nobody)
        asked = [await world.scim.get(f"/Groups?filter={quoted.format(name)}") for name in names]
        assert asked[0].raw == asked[1].raw


async def test_what_is_taken_is_stored_as_the_text_it_is(world: World) -> None:
    """A value that looks like SQL, a template or a command comes back as it was sent, and is found by itself alone."""
    victim = f"/Users/{world.names['alpha_victim']}"
    for text in ("'; DROP TABLE resource; --", "${jndi:ldap://x}", "{{7*7}}", "\u202eabc", "<script>"):
        changed = await world.scim.patch(victim, {"op": "replace", "path": "title", "value": text})
        assert (changed.status, changed.body["title"]) == (200, text)
        assert (await world.scim.get(victim)).body["title"] == text


async def test_the_check_sees_a_leak_a_change_and_a_line_of_the_log(world: World) -> None:
    """The checker is tested too: requests that are no attacks at all are found out as what they are."""
    token = b"Bearer " + world.names["beta_token"].encode()
    leaking = Hostile(kind="x", path=b"/scim/v2/beta/Users", headers=((b"Authorization", token),), outcome="read")
    own = Hostile(kind="x", path=b"/scim/v2/alpha/Users", signed=False, outcome="read")
    found = Hostile(kind="x", path=b"/scim/v2/alpha/Users?filter=userName+eq+%22@alpha_name@%22", outcome="empty")
    changing = Hostile(kind="x", method=b"DELETE", path=VICTIM)
    twice = Hostile(kind="x", raw=b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
    fine = Hostile(kind="x", path=b"/scim/v2/alpha/Users/x")

    wrongs = [one.wrong for one in await meet_all(world, (leaking, own, found, changing, twice, fine))]

    assert wrongs == [
        "a secret of another in the answer",
        "a secret of another in the answer",
        "found somebody",
        "204 instead of a refusal",
        "2 answers to one request",
        "",
    ]
    world.lines.extend({"event": text} for text in (ALPHA_CANARY, BETA_CANARY, MARK, world.names["token"]))
    assert len(world.logged()) == 4


async def test_a_body_whose_chunks_are_none_is_answered_and_ends_the_connection(world: World) -> None:
    """Found by the list: it was cut off without a word, which a caller takes for a fault of the network."""
    top = b"POST /scim/v2/alpha/Users HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer @token@\r\nTransfer-Encoding: chunked\r\n\r\n"
    hidden = b"GET /scim/v2/alpha/Users HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer @token@\r\n\r\n"

    met = await world.meet(Hostile(kind="x", raw=top + b"zz\r\n" + hidden))

    assert met.wrong == ""
    assert [answer.status for answer in met.answers] == [400]
    assert met.answers[0].headers["connection"] == "close"


async def test_requests_that_arrive_cut_in_odd_places_are_each_answered(world: World) -> None:
    """Found beside the list: what ended one head and began another counted as one long head, and the connection was cut off."""
    one = (
        b"GET /scim/v2/alpha/Users/x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer "
        + world.names["token"].encode()
        + b"\r\n\r\n"
    )
    count, cut = 400, len(one) // 2
    data = one * count
    reader, writer = await asyncio.open_connection("127.0.0.1", world.scim.port)

    writer.write(data[: len(one) + cut])
    statuses = [(await read_answer(reader, head=False)).status]
    writer.write(data[len(one) + cut : -cut])
    await writer.drain()
    statuses += [(await read_answer(reader, head=False)).status for _ in range(count - 2)]
    writer.write(data[-cut:])
    statuses.append((await read_answer(reader, head=False)).status)
    writer.close()

    assert statuses == [404] * count
