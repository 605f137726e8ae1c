"""Recordings of the emulated Entra: what is in the file, what is not, and what a replay elsewhere shows (real HTTP)."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deploy.emulators import entra
from deploy.emulators.entra_sign_in import SecretToken
from deploy.recordings import (
    ANYWHERE,
    FINE,
    NOTE,
    PLACES_MAX,
    RecordingError,
    Wanted,
    different,
    read_recording,
    record_to,
    replay,
    steady,
    with_ids,
)
from gateway.cli import main
from tests.emulators.scim_stand_in import TOKEN, running
from tests.gateway.scim_listener import ALPHA, BETA, GroupShelf, Listener, listening

WANTED = Wanted(entra.OBSERVE, people=6, groups=2)


@pytest.fixture
async def scim(tmp_path: Path) -> AsyncIterator[Listener]:
    async with listening(tmp_path, shelf=GroupShelf()) as listener:
        yield listener


async def recorded(scim: Listener, path: Path, wanted: Wanted = WANTED) -> list[Any]:
    report = await record_to(path, scim.base(ALPHA), SecretToken(scim.tokens[ALPHA]), wanted)
    assert report.failed == 0
    return read_recording(path)[1]


async def test_a_recording_holds_every_request_with_its_answer_and_no_secret(scim: Listener, tmp_path: Path) -> None:
    """Method, path, query, headers without secrets, body, status and answer; no key and no address; private to its owner."""
    path = tmp_path / "cycle.jsonl"

    lines = await recorded(scim, path)

    text = path.read_text()
    heading = json.loads(text.splitlines()[0])
    assert (heading["recording"], heading["mapping"], heading["note"]) == (1, "observe", NOTE)
    assert "personal data" in heading["note"]
    assert [line.n for line in lines] == list(range(1, len(lines) + 1))
    for secret in (scim.tokens[ALPHA], "Authorization", "Bearer", str(scim.port)):
        assert secret not in text
    assert path.stat().st_mode & 0o777 == 0o600
    assert {line.part for line in lines} == {
        "test connection",
        "mapping page",
        "initial cycle",
        "changes",
        "returns and deletions",
        "on demand",
    }
    assert {line.method for line in lines} == {"GET", "POST", "PATCH", "DELETE"}
    created = next(line for line in lines if line.operation == "create")
    assert (created.method, created.path, created.status) == ("POST", "/Users", 201)
    assert created.body["userName"] == created.answer["userName"] == "user0001@contoso.example"
    assert created.headers == {"Content-Type": "application/scim+json; charset=utf-8"}
    assert created.answer["meta"]["location"] == f"{ANYWHERE}/Users/{created.answer['id']}"
    assert lines[0].query.startswith("filter=userName+eq+%22")


@pytest.mark.parametrize("dialect", ["legacy", "flag"])
async def test_a_recording_of_one_target_is_answered_alike_by_another(
    scim: Listener, tmp_path: Path, dialect: entra.Dialect
) -> None:
    """Ids that the recorded server gave are replaced in paths, members, managers and filters; nothing differs, all arrives."""
    wanted = Wanted(entra.OBSERVE, people=6, groups=2, dialect=dialect)
    lines = await recorded(scim, tmp_path / "cycle.jsonl", wanted)
    given = {line.answer["id"] for line in lines if line.operation in ("create", "create_group")}
    seen: list[tuple[int, int]] = []

    report = await replay(
        lines, scim.base(BETA), scim.tokens[BETA], on_progress=lambda done, total: seen.append((done, total))
    )

    assert report.differences == []
    assert (report.sent, report.same, report.stopped) == (len(lines), len(lines), "")
    assert seen[-1] == (len(lines), len(lines))
    assert len(given) == 8
    one, other = [(await scim.get("/Users?count=200", target=target)).body["Resources"] for target in (ALPHA, BETA)]
    assert [user["userName"] for user in one] == [user["userName"] for user in other]
    assert not {user["id"] for user in other} & given
    (group,) = (await scim.get("/Groups", target=BETA)).body["Resources"]
    shown = (await scim.get(f"/Groups/{group['id']}", target=BETA)).body
    assert {member["value"] for member in shown["members"]} <= {user["id"] for user in other}


async def test_a_target_that_answers_otherwise_is_shown_by_status_and_by_place(scim: Listener, tmp_path: Path) -> None:
    """A taken name is another status, with what the server said; another value is named with its place."""
    lines = await recorded(scim, tmp_path / "cycle.jsonl", Wanted(entra.OBSERVE, people=2, groups=0, changes=False))
    await scim.user("user0001@contoso.example", target=BETA)

    report = await replay(lines, scim.base(BETA), scim.tokens[BETA])

    created = next(found for found in report.differences if found.method == "POST")
    assert (created.recorded, created.now, created.places) == (201, 409, [])
    assert "user0001" in created.detail or "userName" in created.detail
    matched = next(found for found in report.differences if found.path == "/Users" and found.method == "GET")
    assert matched.places[0] == "totalResults: 0 was recorded, 1 now"
    assert report.same + len(report.differences) == report.sent


async def test_a_key_that_opens_nothing_ends_the_replay_at_once(scim: Listener, tmp_path: Path) -> None:
    """A hundred refusals say no more than the first one."""
    lines = await recorded(scim, tmp_path / "cycle.jsonl", Wanted(entra.OBSERVE, people=2, groups=0))

    report = await replay(lines, scim.base(BETA), scim.tokens[ALPHA])

    assert (report.sent, report.refused) == (1, True)


async def test_nobody_listening_ends_the_replay_after_a_few_requests(scim: Listener, tmp_path: Path) -> None:
    """Every loop has a bound."""
    lines = await recorded(scim, tmp_path / "cycle.jsonl", Wanted(entra.OBSERVE, people=2, groups=0))

    report = await replay(lines, "http://127.0.0.1:9/scim", "none")

    assert (report.sent, report.refused) == (5, False)
    assert "no answer" in report.stopped


async def test_a_replay_keeps_the_pace_it_was_given(scim: Listener, tmp_path: Path) -> None:
    """`--rate`: the requests are spread over the time."""
    lines = (await recorded(scim, tmp_path / "cycle.jsonl", Wanted(entra.OBSERVE, people=2, groups=0)))[:11]

    report = await replay(lines, scim.base(BETA), scim.tokens[BETA], requests_per_s=20.0)

    assert report.sent == 11
    assert report.elapsed_s >= 0.5
    assert report.requests_per_s <= 22.0


def test_ids_are_replaced_where_ids_can_stand_and_nowhere_else() -> None:
    """A server may give ids like "88", which is a department elsewhere."""
    manager = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:manager"
    ids = {"88": "new", "89": "other"}

    assert with_ids({"id": "88", "title": "88", "members": [{"$ref": None, "value": "88"}]}, ids) == {
        "id": "new",
        "title": "88",
        "members": [{"$ref": None, "value": "new"}],
    }
    operations = [
        {"op": "Add", "path": "members", "value": [{"value": "88"}, {"value": "90"}]},
        {"op": "remove", "path": 'members[value eq "89"]'},
        {"op": "Replace", "path": manager, "value": "88"},
        {"op": "Add", "path": "manager", "value": [{"$ref": "{tenant_url}/Users/88", "value": "88"}]},
        {"op": "Replace", "path": "title", "value": "88"},
        {"op": "replace", "value": {manager: "88", "nickName": "88"}},
    ]
    assert with_ids({"Operations": operations}, ids)["Operations"] == [
        {"op": "Add", "path": "members", "value": [{"value": "new"}, {"value": "90"}]},
        {"op": "remove", "path": 'members[value eq "other"]'},
        {"op": "Replace", "path": manager, "value": "new"},
        {"op": "Add", "path": "manager", "value": [{"$ref": "{tenant_url}/Users/new", "value": "new"}]},
        {"op": "Replace", "path": "title", "value": "88"},
        {"op": "replace", "value": {manager: "new", "nickName": "88"}},
    ]


def test_times_and_versions_do_not_count_and_everything_else_does() -> None:
    """The comparison says which place differs, and how."""
    one = {"meta": {"created": "2026-01-01", "version": 'W/"1"', "resourceType": "User"}, "a": [1, {"b": "x"}], "c": 1}
    other = {
        "meta": {"created": "2026-02-02", "version": 'W/"2"', "resourceType": "User"},
        "a": [1, {"b": "y"}],
        "d": 2,
    }

    assert list(different(steady(one), steady(other))) == [
        'a[1].b: "x" was recorded, "y" now',
        "c: 1 is missing now",
        "d: 2 is new",
    ]
    assert list(different({"active": True}, {"active": 1})) == ["active: true was recorded, 1 now"]
    assert list(different([1], [1, 2], "members")) == ["members: 1 entries were recorded, 2 now"]
    errors = [
        {"schemas": [entra.SCIM_ERROR], "status": "404", "detail": f"There is no user {guid} ({time})"}
        for guid, time in (
            ("2819c223-7f76-453a-919d-413861904646", "2026-01-01T10:00:00Z"),
            ("00000000-7f76-453a-919d-413861904646", "2027-01-01T10:00:00.5+01:00"),
        )
    ]
    assert list(different(*map(steady, errors))) == []
    assert PLACES_MAX >= 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1"),
        (b"not json\n", "line 1"),
        (b'{"recording":9,"recorded_at":"","mapping":"","dialect":""}\n', "format 9"),
        (b'{"recording":1,"recorded_at":"","mapping":"","dialect":""}\n{"n":1}\n', "line 2"),
    ],
)
def test_a_file_that_is_no_recording_is_refused_with_the_line(tmp_path: Path, content: bytes, said: str) -> None:
    """Whoever edited a file by hand is told where."""
    path = tmp_path / "cycle.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=said):
        read_recording(path)


async def test_an_existing_file_is_not_overwritten_and_a_failed_recording_leaves_none(tmp_path: Path) -> None:
    """A recording may be the only copy of what was seen."""
    kept = tmp_path / "kept.jsonl"
    kept.write_text("mine")
    with pytest.raises(RecordingError, match="exists already"):
        await record_to(kept, "http://127.0.0.1:9/scim", SecretToken("x"), WANTED)
    assert kept.read_text() == "mine"
    with pytest.raises(ValueError):
        await record_to(tmp_path / "none.jsonl", "no address", SecretToken("x"), WANTED)
    assert os.listdir(tmp_path) == ["kept.jsonl"]


@pytest.fixture
def provgate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command, in a thread of its own, because what it talks to is served here meanwhile: code, output, complaints."""
    monkeypatch.setenv("COLUMNS", "100")

    async def run(*arguments: str) -> tuple[int, str, str]:
        code = await asyncio.wait_for(asyncio.to_thread(main, arguments), 60)
        said = capsys.readouterr()
        return code, " ".join(said.out.split()), said.err

    return run


async def test_the_commands_record_replay_and_end_with_1_when_something_differs(provgate: Any, tmp_path: Path) -> None:
    """Table and JSON; exit codes 0, 1, 2, 3 and 4 as for every command."""
    (tmp_path / "key").write_text(f"{TOKEN}\n")
    (tmp_path / "wrong").write_text("wrong")
    file, key = str(tmp_path / "cycle.jsonl"), ("--token-file", str(tmp_path / "key"))
    async with running() as one, running() as other:
        code, out, err = await provgate("entra", "record", file, "--tenant-url", one.url, *key, "--people", "3")
        assert (code, "requests are recorded" in out, "personal data" in out) == (FINE, True, True), err
        code, out, err = await provgate("entra", "record", file, "--tenant-url", one.url, *key)
        assert (code, "exists already" in err) == (2, True)

        code, out, err = await provgate("entra", "replay", file, "--tenant-url", other.url, *key, "--rate", "500/s")
        assert (code, "every answer is what was recorded" in out) == (0, True), out + err
        again = ("entra", "replay", file, "--tenant-url", other.url)
        code, out, _ = await provgate(*again, *key)
        assert code == 1
        assert "POST /Users" in out
        assert "differ in status" in out
        code, out, _ = await provgate(*again, *key, "--json")
        report = json.loads(out)
        assert code == 1
        assert {found["now"] for found in report["differences"] if found["method"] == "POST"} == {409}
        assert report["sent"] == report["same"] + len(report["differences"])
        code, out, _ = await provgate(*again, "--token-file", str(tmp_path / "wrong"))
        assert (code, "1 request of" in out, "nothing can be said" in out) == (4, True, True), out
        fresh = str(tmp_path / "fresh.jsonl")
        for credentials, wanted in ((("--token-file", str(tmp_path / "wrong")), 4), (key, 0)):
            code, out, err = await provgate("entra", "record", fresh, "--tenant-url", one.url, *credentials)
            assert code == wanted, out + err  # the try that failed left no file in the way of the next one
    assert (await provgate(*again, *key))[0] == 3
    assert (await provgate("entra", "replay", str(tmp_path / "key"), "--tenant-url", one.url, *key))[0] == 2
