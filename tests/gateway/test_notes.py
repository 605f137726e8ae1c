"""Notes: what deliveries found to be so about resources is kept, told to later deliveries, listed, and dealt with by people."""

from __future__ import annotations

import csv
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from gateway.records import LastAttempt
from gateway.store import Store
from schemas.events import Note, Outcome, Step, decode_event
from schemas.specs import NoteKind, Spec
from schemas.states import Result
from tests.gateway.operated import ALPHA, BETA, Operated, operated
from tests.gateway.test_store import NOW, TARGET, applied, location, postgres, postgres_url, store  # noqa: F401 - fixtures

KINDS = (NoteKind("not_invited", "provisioned and not invited", done="invited"), NoteKind("invited", "invited"))


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Operated]:
    """An operators' listener whose target notes who is invited."""
    async with operated(tmp_path) as there:
        spec = msgspec.json.encode(Spec(name="x", title="X", notes=KINDS))
        await there.store.run(lambda ledger: ledger.save_spec(ALPHA, spec, settings_digest="d", seen_at=time.time()))
        yield there


async def noted(here: Operated, name: str, *notes: Note, result: Result = Result.APPLIED) -> str:
    """A user whose delivery noted something."""
    resource = await here.created(name)
    await here.comes_to(resource, result, account_id=f"p-{name}", created=True, notes=notes)
    return resource


async def test_who_is_not_invited_is_listed_until_an_operator_says_it_is_done(here: Operated, tmp_path: Path) -> None:
    """L5, vendor page 4.3: table, CSV and JSON; masked unless asked for; done is recorded, and the next delivery is told."""
    ada = await noted(here, "ada", Note("not_invited", "Not invited: by hand."))
    bob = await noted(here, "bob", Note("not_invited", "Not invited: by hand."))
    await noted(here, "cyd", Note("invited"))
    gone = await noted(here, "dan", Note("not_invited"))
    await here.intake.delete(ALPHA, "user", gone)

    shown = await here.typed("notes", "list", ALPHA)
    assert shown.code == 0, shown.err
    assert "provisioned and not invited" in shown.out
    assert f"provgate notes done {ALPHA} not_invited" in " ".join(shown.out.split())
    assert "ada@contoso.example" not in shown.out
    file = tmp_path / "uninvited.csv"
    more = ("--code", "not_invited", "--show-values", "--csv", str(file), "--json")
    listed = msgspec.json.decode((await here.typed("notes", "list", ALPHA, *more)).out)
    assert listed["counts"] == {"not_invited": 2}
    assert [line["label"] for line in listed["findings"]] == ["ada@contoso.example", "bob@contoso.example"]
    assert [row["account"] for row in csv.DictReader(file.read_text().splitlines())] == ["p-ada", "p-bob"]
    assert len(await here.audited("values.shown")) == 2
    path = f"/targets/{ALPHA}/notes/findings"
    (second,) = (await here.get(path, class_="not_invited", after=1, show_values=True))["findings"]
    assert second["label"] == "bob@contoso.example"
    assert len(await here.audited("values.shown")) == 3  # no page with values goes without a record
    async with here.client() as client:
        for wrong in (-1, 2**63):
            answer = await client.get(f"/api/v1{path}", params={"class_": "not_invited", "after": wrong})
            assert (answer.status_code, "after" in answer.text) == (400, True)

    assert "noted: not_invited" in (await here.typed("user", "show", ada)).out

    done = await here.typed("notes", "done", ALPHA, "not_invited", ada, "nobody", "--reason", "sent by hand")
    assert done.code == 1
    assert "There is no such resource" in done.out + done.err
    assert (await here.typed("notes", "done", ALPHA, "not_invited", "--all")).code == 0
    assert (await here.get(f"/targets/{ALPHA}/notes"))["counts"] == {"invited": 3}
    assert [record.subject for record in await here.audited("note.done")] == [ada, bob]
    row = await here.row(ada)
    await here.intake.change(ALPHA, "user", row, lambda base: {**base, "displayName": "Ada L."})
    await here.settled()
    assert decode_event(here.bus.sent[ada].body).notes == ("invited",)
    wrong = [
        ("notes", "done", ALPHA, "invited", ada),
        ("notes", "list", ALPHA, "--code", "x"),
        ("notes", "list", "nowhere"),
    ]
    for arguments in wrong:
        assert (await here.typed(*arguments)).code == 2, arguments
    assert "note nothing" in (await here.typed("notes", "list", BETA)).out


async def test_a_note_is_kept_whatever_the_delivery_came_to_and_goes_when_it_is_not_so_any_more(here: Operated) -> None:
    """Recorded before the call is repeated: also the report of a failed delivery counts, once, and is counted."""
    resource = await here.created("ada")
    for _ in range(2):
        await here.comes_to(
            resource, Result.RATE_LIMITED, retry_after_s=0.0, notes=(Note("owed", "x" * 9_999, subject="s"),)
        )
        await here.store.run(lambda ledger: ledger.hasten(ALPHA, time.time() + 60.0))
        row = await here.row(resource)
        row.next_at = 0.0
        await here.store.run(lambda ledger, row=row: ledger.save(row))  # type: ignore[misc]
        target = await here.store.run(lambda ledger: ledger.target(ALPHA))
        target.rest_until = target.closed_at = 0.0
        await here.store.run(lambda ledger, target=target: ledger.save_target(target))  # type: ignore[misc]
        here.dispatcher.kick(ALPHA)
        await here.settled()
    ((_, _, note),) = await here.store.read_slow(lambda reader: reader.notes(ALPHA, "owed", 0, 10))
    assert (note.times, note.subject, note.noted_by, len(note.message)) == (2, "s", "worker-1", 500)
    assert decode_event(here.bus.sent[resource].body).notes == ("owed",)
    await here.comes_to(
        resource, Result.APPLIED, account_id="p", created=True, notes=(Note("invited"), Note("owed", holds=False))
    )
    assert await here.store.read(lambda reader: reader.notes_of(resource)) == ["invited"]


async def test_both_stores_keep_notes_with_their_resource_and_forget_them_with_it(store: Store) -> None:  # noqa: F811
    """By target and kind, in the order of resources, a page at a time; a deleted resource's are nobody's concern."""
    rows = [applied(name, kind="group", account_id=f"a-{name}") for name in ("one", "two", "left", "un")]
    rows[2].deleted = True
    rows[3].account_id = None

    def take(ledger) -> None:  # type: ignore[no-untyped-def]
        for row in rows:
            ledger.save(row)
        for row in rows[:3]:
            ledger.take_notes(row, (Note("no_mapping", "m\0", subject=row.id), Note("x")), by="w", at=NOW)
        ledger.take_notes(rows[0], (Note("no_mapping", "m", subject="1"), Note("x", holds=False)), by="v", at=NOW + 5)
        assert list(ledger.notes_of("one")) == ["no_mapping"]
        assert ledger.in_flight(TARGET) == 0
        assert list(ledger.notes_of("one")) == ["no_mapping"], "who counts learns whether the target has any"
        for number, steps in enumerate(((Step("GET", "/"),), ())):
            outcome = Outcome(
                id=f"o{number}",
                event_id="e",
                target=TARGET,
                kind="user",
                resource="one",
                generation=1,
                fence=1,
                delivery=1,
                result=Result.APPLIED if steps else Result.REJECTED,
                steps=steps,
                ended_at=NOW + number,
            )
            assert ledger.record_attempt(outcome)

    await store.run(take)
    assert await store.read(lambda reader: reader.note_counts(TARGET)) == {"no_mapping": 2, "x": 1}
    first, second = await store.read(lambda reader: reader.notes(TARGET, "no_mapping", 0, 10))
    note = first[2]
    assert (first[1].id, note.subject, note.noted_by, note.times) == ("one", "1", "v", 2)
    assert (note.first_at, note.last_at) == (NOW, NOW + 5)
    assert [row.id for _, row, _ in await store.read(lambda r: r.notes(TARGET, "no_mapping", first[0], 1))] == ["two"]
    assert second[2].message == "m\ufffd"
    groups = await store.read(lambda reader: reader.groups_after(TARGET, 0, 10))
    assert [row.id for _, row in groups] == ["one", "two"], "linked and not deleted"
    assert await store.read(lambda reader: reader.groups_after(TARGET, groups[-1][0], 10)) == []
    assert await store.read(lambda reader: reader.target_names()) == [TARGET]
    last = await store.read(lambda reader: reader.last_attempt(TARGET))
    assert last == LastAttempt(at=NOW + 1, result="rejected", called_at=NOW)
    assert await store.read(lambda reader: reader.last_attempt("nowhere")) is None
    assert await store.run(lambda ledger: ledger.erase("one"))
    assert await store.read(lambda reader: reader.note_counts(TARGET)) == {"no_mapping": 1, "x": 1}
