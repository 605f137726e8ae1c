"""What the status store promises, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from gateway import databases
from gateway.databases import StoreRefused, check_file_system, engine_of, file_system_of, upgrade
from gateway.ledger import NO_KEYS, Keys, Ledger
from gateway.lifecycle import (
    Doubts,
    Row,
    TargetRow,
    accept,
    begin,
    dispatch,
    lose,
    read_again,
    ready,
    settle,
)
from gateway.patch import MemberChange
from gateway.records import KeyRecord
from gateway.statements import statements_of
from gateway.store import Reader, Store, StoreClosed, StoreConflict, StoreOverloaded, StoreUnavailable, Transaction
from gateway.tables import METADATA, RESOURCE, SCHEMA
from schemas.config import RetrySettings
from schemas.events import Outcome, Reason, Sighting, Step
from schemas.resources import ENTERPRISE_SCHEMA
from schemas.states import PRIORITY_REPAIR, SHADOW, Change, Circuit, Result, State
from tests.simulation.memory import Memory, MemoryLedger

WAIT_S = 30.0
NOW = 1_750_000_000.0
TARGET = "talkdesk-eu"

# ---- fixtures: the same tests on both engines


@pytest.fixture(scope="session")
def postgres_url(postgres_server: str) -> str:
    """A PostgreSQL server on a socket, with one migrated database to copy from; modules may import this one."""
    return postgres_server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def location(request: pytest.FixtureRequest, tmp_path: Path, empty_store: Path) -> str:
    """Where an empty, migrated store lies."""
    if request.param == "sqlite":
        return str(shutil.copy(empty_store, tmp_path / "provgate.sqlite3"))
    return str(request.getfixturevalue("postgres"))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a store may be created; nothing is there yet."""
    if request.param == "sqlite":
        yield str(tmp_path / "empty.sqlite3")
        return
    url = request.getfixturevalue("postgres_url")
    by_hand(url, "CREATE DATABASE scratch")
    yield named(url, "scratch")
    by_hand(url, "DROP DATABASE scratch WITH (FORCE)")


@pytest.fixture
def postgres(postgres_url: str) -> str:
    """An empty, migrated store on PostgreSQL."""
    url = named(postgres_url, "model")
    by_hand(url, f"TRUNCATE {', '.join(METADATA.tables)} RESTART IDENTITY")
    return url


@pytest.fixture
async def store(location: str) -> AsyncIterator[Store]:
    """An open store."""
    opened = Store.open(location)
    try:
        yield opened
    finally:
        await opened.close()


def named(url: str, database: str) -> str:
    """The address of another database of the same server."""
    before, _, query = url.partition("?")
    return f"{before.rpartition('/')[0]}/{database}?{query}"


async def opened_and_closed(location: str) -> None:
    """Create the tables."""
    await Store.open(location).close()


def by_hand(location: str, sql: str) -> list[tuple[Any, ...]]:
    """Run a statement past the store, as an operator with a database tool would."""
    if location.startswith("postgresql"):
        with psycopg.connect(location, autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []
    with closing(sqlite3.connect(location, isolation_level=None)) as driver:
        return driver.execute(sql).fetchall()


# ---- rows for tests


def a_row(resource: str, **fields: Any) -> Row:
    """A resource as a POST makes it, with the given differences."""
    row = Row(id=resource, target=TARGET, generation=1, event_id=f"event-{resource}", modified_at=NOW, created_at=NOW)
    row.identities = (f"userName:{resource}",)
    for name, value in fields.items():
        setattr(row, name, value)
    return row


def in_flight(resource: str, fence: int = 1, **fields: Any) -> Row:
    """A resource whose event is out."""
    return a_row(
        resource,
        **{"state": State.DELIVERING, "in_flight": 1, "fence": fence, "body": b"{}", "heard_at": NOW, **fields},
    )


def applied(resource: str, **fields: Any) -> Row:
    """A resource that is settled."""
    name = (f"userName:{resource}",)
    settled = {"state": State.APPLIED, "settled_generation": 1, "settled_at": NOW, "settled_identities": name}
    return a_row(resource, **{**settled, **fields})


def dead(resource: str, reason: Reason, **fields: Any) -> Row:
    """A dead letter."""
    return a_row(
        resource,
        **{
            "state": State.DEAD,
            "settled_generation": 1,
            "settled_at": NOW,
            "reason": reason,
            "acknowledged": 1,
            **fields,
        },
    )


def an_outcome(report: str, resource: str, result: Result = Result.APPLIED, **fields: Any) -> Outcome:
    """A worker's report."""
    given = {"generation": 1, "fence": 1, "delivery": 1, "ended_at": NOW, **fields}
    return Outcome(
        id=report, event_id=f"event-{resource}", target=TARGET, kind="user", resource=resource, result=result, **given
    )


REASON = Reason(code="unknown_role", message="There is no role 'Wizard'.", attribute="roles", names=("Wizard",))
EVERYTHING = Row(
    id="everything",
    target=TARGET,
    kind="group",
    generation=7,
    acknowledged=6,
    event_id="01J",
    change=Change.DEACTIVATE,
    changed=("active", "name.givenName"),
    document=b'{"userName":"\xc3\xa9va"}',
    deleted=True,
    identities=("userName:éva", "externalId:7"),
    manager="r2",
    created_at=1.25,
    modified_at=2.5,
    veiled=True,
    traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    tracestate="vendor=1",
    state=State.DELIVERING,
    settled_generation=5,
    settled_document=b"{}",
    settled_identities=("userName:old",),
    settled_at=3.5,
    account_id="account-1",
    account_created=True,
    account_keys=("ADA@CONTOSO.EXAMPLE", "2"),
    observed_active=False,
    reason=REASON,
    blocked_on="a role",
    issue="a second account",
    fence=9,
    in_flight=7,
    body=b"\x00\xff",
    published=True,
    delivery=3,
    looked=True,
    heard_at=4.5,
    dirty=True,
    ambiguous=True,
    read_back=True,
    read_back_at=5.5,
    doubts=Doubts({"a"}, {"b", "c"}, {"d"}, {"e"}, {"account-2": "f"}),
    attempt=2,
    poisoned=1,
    first_failed_at=6.5,
    awaited_since=7.25,
    next_at=7.5,
    unfinished=True,
)


# ---- rows


async def test_every_field_of_a_row_comes_back_as_it_was_saved(store: Store) -> None:
    """Both halves of a row are kept whole (reliability section 3), and no field is at its default here."""
    assert all(
        getattr(EVERYTHING, field.name) != field.default for field in msgspec.structs.fields(Row) if field.name != "id"
    )

    await store.run(lambda ledger: ledger.save(EVERYTHING))

    assert await store.run(lambda ledger: ledger.row("everything")) == EVERYTHING
    assert await store.read(lambda reader: reader.row("everything")) == EVERYTHING


async def test_a_row_with_nothing_in_it_comes_back_as_it_was_saved(store: Store) -> None:
    """Empty and absent values are not confused."""
    await store.run(lambda ledger: ledger.save(Row(id="plain", target=TARGET)))

    assert await store.run(lambda ledger: ledger.row("plain")) == Row(id="plain", target=TARGET)
    assert await store.run(lambda ledger: ledger.row("nobody")) is None


async def test_a_change_counts_only_when_it_is_saved(store: Store) -> None:
    """ledger.Ledger: rows are copies."""

    def job(ledger: Transaction) -> list[int]:
        ledger.save(a_row("a"))
        row = ledger.row("a")
        assert row is not None
        row.fence = 5
        row.doubts.trail.add("x")
        before = ledger.row("a")
        ledger.save(row)
        after = ledger.row("a")
        assert before is not None
        assert after is not None
        assert before.doubts.trail == set()
        return [before.fence, after.fence]

    assert await store.run(job) == [0, 5]


async def test_a_row_is_written_whole_whatever_happened_to_it_in_between(store: Store) -> None:
    """`save` writes the row, also where a statement over many rows has changed a column since it was read."""

    def job(ledger: Transaction) -> Row | None:
        ledger.save(a_row("a", state=State.RETRYING, next_at=NOW + 100))
        row = ledger.row("a")
        assert row is not None
        ledger.hasten(TARGET, NOW)
        row.attempt = 3
        ledger.save(row)
        return ledger.row("a")

    row = await store.run(job)
    assert row is not None
    assert (row.next_at, row.attempt) == (NOW + 100, 3)


async def test_a_row_read_before_the_transaction_may_be_saved_in_it(store: Store) -> None:
    """Saving inserts a row that never was and updates one that is, whoever read it."""
    await store.run(lambda ledger: ledger.save(a_row("a", fence=1)))
    row = await store.read(lambda reader: reader.row("a"))
    assert row is not None
    row.fence = 2
    row.identities = ("userName:new",)

    await store.run(lambda ledger: ledger.save(row))

    assert await store.read(lambda reader: reader.row("a")) == row
    asked = Row(id="other", target=TARGET)
    assert not await store.run(lambda ledger: ledger.wished(asked, "userName:a"))
    assert await store.run(lambda ledger: ledger.wished(asked, "userName:new"))


# ---- transactions


async def test_a_result_comes_after_the_commit_and_never_before(store: Store) -> None:
    """A1: committed = acknowledged. Inside the job nobody else sees the row; once it is answered, everybody does."""
    entered, go = threading.Event(), threading.Event()

    def job(ledger: Transaction) -> None:
        ledger.save(a_row("a"))
        entered.set()
        assert go.wait(WAIT_S)

    running = store.run(job)
    await asyncio.to_thread(entered.wait, WAIT_S)
    assert await store.read(lambda reader: reader.row("a")) is None
    go.set()
    await running

    assert await store.read(lambda reader: reader.row("a")) is not None


async def test_a_job_that_fails_takes_nobody_with_it(store: Store) -> None:
    """Jobs share a transaction, but only the guilty one fails, and nothing of it is left."""
    entered, go = threading.Event(), threading.Event()
    gate = store.run(lambda ledger: (entered.set(), go.wait(WAIT_S)))
    await asyncio.to_thread(entered.wait, WAIT_S)  # now the next ones gather in one batch

    def saving(name: str, error: Exception | None = None) -> Callable[[Transaction], str]:
        def job(ledger: Transaction) -> str:
            ledger.save(a_row(name))
            if error is not None:
                raise error
            return name

        return job

    good = [store.run(saving(f"good-{n}")) for n in range(10)]
    bad = store.run(saving("bad", ValueError("wrong")))
    late = [store.run(saving(f"late-{n}")) for n in range(10)]
    go.set()
    await gate

    assert await asyncio.gather(*good, *late) == [f"good-{n}" for n in range(10)] + [f"late-{n}" for n in range(10)]
    with pytest.raises(ValueError, match="wrong"):
        await bad
    assert await store.read(lambda reader: reader.row("bad")) is None
    assert await store.read(lambda reader: reader.row("late-9")) is not None


async def test_one_account_cannot_belong_to_two_rows_even_if_the_code_is_wrong(store: Store) -> None:
    """I8 by the database's own constraint; only the second job fails, and the error names no value (P9)."""
    first = store.run(lambda ledger: ledger.save(applied("a", account_id="ada-account")))
    second = store.run(lambda ledger: ledger.save(applied("b", account_id="ada-account")))
    third = store.run(lambda ledger: ledger.save(applied("c", account_id="other")))

    await first
    with pytest.raises(StoreConflict) as refused:
        await second
    await third
    assert "ada-account" not in str(refused.value)
    assert await store.read(lambda reader: reader.row("b")) is None


@pytest.mark.parametrize("column", ["user_name_key", "external_id_key"])
async def test_a_filter_key_is_unique_by_the_database(store: Store, location: str, column: str) -> None:
    """reliability section 3: unique (target, kind, folded userName) and (…, externalId), enforced by the database."""
    await store.run(lambda ledger: ledger.save(a_row("a")))
    await store.run(lambda ledger: ledger.save(a_row("b")))
    by_hand(location, f"UPDATE resource SET {column} = 'x' WHERE id = 'a'")

    with pytest.raises((sqlite3.IntegrityError, psycopg.errors.UniqueViolation)):
        by_hand(location, f"UPDATE resource SET {column} = 'x' WHERE id = 'b'")


async def test_post_runs_without_anybody_waiting(store: Store) -> None:
    """A posted job is in the same queue: what comes after it sees what it wrote, and its failure harms nobody."""

    def fails(ledger: Transaction) -> None:
        raise RuntimeError("on purpose")

    store.post(lambda ledger: ledger.save(a_row("a")))
    store.post(fails)

    assert await store.run(lambda ledger: ledger.row("a")) is not None


async def test_more_jobs_than_the_bound_are_refused_at_once(location: str) -> None:
    """Every queue has a bound: a slow disk must not fill the memory."""
    store = Store.open(location, jobs_waiting_max=3)
    entered, go = threading.Event(), threading.Event()
    gate = store.run(lambda ledger: (entered.set(), go.wait(WAIT_S)))
    await asyncio.to_thread(entered.wait, WAIT_S)
    waiting = [store.run(lambda ledger: ledger.population(TARGET)) for _ in range(3)]

    with pytest.raises(StoreOverloaded):
        store.run(lambda ledger: ledger.population(TARGET))
    with pytest.raises(StoreOverloaded):
        store.post(lambda ledger: None)

    go.set()
    await gate
    assert await asyncio.gather(*waiting) == [0, 0, 0]
    await store.close()


async def test_a_writer_that_dies_leaves_nobody_waiting(location: str) -> None:
    """Any thread that can fail settles the futures that wait on it; a silent death would hang every request."""
    store = Store.open(location)
    entered, go = threading.Event(), threading.Event()

    def dies(ledger: Transaction) -> None:
        entered.set()
        assert go.wait(WAIT_S)
        raise SystemExit(1)

    running = store.run(dies)
    await asyncio.to_thread(entered.wait, WAIT_S)
    waiting = [store.run(lambda ledger: ledger.save(a_row("a"))) for _ in range(3)]
    go.set()

    async with asyncio.timeout(WAIT_S):
        ended = await asyncio.gather(running, *waiting, return_exceptions=True)
    assert [type(error) for error in ended] == [StoreClosed] * 4
    with pytest.raises(StoreClosed, match="died"):
        store.run(lambda ledger: None)
    assert await store.read(lambda reader: reader.row("a")) is None
    await store.close()


async def test_close_finishes_what_was_accepted_and_refuses_the_rest(location: str) -> None:
    """A graceful stop loses nothing that was queued."""
    store = Store.open(location)
    queued = [store.run(lambda ledger, n=n: ledger.save(a_row(f"r{n}"))) for n in range(500)]

    await store.close()

    await asyncio.gather(*queued)
    with pytest.raises(StoreClosed):
        store.run(lambda ledger: None)
    again = Store.open(location)
    assert await again.run(lambda ledger: ledger.population(TARGET)) == 500
    await again.close()


@pytest.mark.postgres
async def test_a_restart_of_the_database_costs_errors_but_no_restart_of_ours(postgres: str) -> None:
    """Database away is StoreUnavailable (503 + Retry-After); when it is back, the same store goes on."""
    store = Store.open(postgres)
    await store.run(lambda ledger: ledger.save(a_row("a")))
    assert await store.read(lambda reader: reader.row("a")) is not None
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    by_hand(postgres, cut)

    with pytest.raises(StoreUnavailable):
        await store.run(lambda ledger: ledger.save(a_row("b")))

    assert await store.read(lambda reader: reader.row("a")) is not None
    await store.run(lambda ledger: ledger.save(a_row("c")))
    assert await store.read(lambda reader: reader.row("b")) is None
    assert await store.read(lambda reader: reader.row("c")) is not None
    await store.close()


@pytest.mark.postgres
async def test_several_gateways_on_one_database_take_turns(postgres: str) -> None:
    """Nobody acts on what another gateway is about to change: read, add one, save, from three stores at once."""
    stores = [Store.open(postgres) for _ in range(3)]
    await stores[0].run(lambda ledger: ledger.save(a_row("a")))

    def one_more(ledger: Transaction) -> None:
        row = ledger.row("a")
        assert row is not None
        row.fence += 1
        ledger.save(row)

    await asyncio.gather(*(stores[n % 3].run(one_more) for n in range(150)))

    row = await stores[0].read(lambda reader: reader.row("a"))
    assert row is not None
    assert row.fence == 150
    for store in stores:
        await store.close()


WRITING = """
import asyncio, sys
from tests.gateway.test_store import a_row
from gateway.ledger import Keys
from gateway.store import Store

async def main():
    store = Store.open(sys.argv[1])

    async def write(n):
        def job(ledger):
            row = a_row(f"r{n}")
            assert ledger.set_keys(row, Keys(user_name=f"user{n}")) is None
            ledger.save(row)
            ledger.add_event(row, actor="entra")
        await store.run(job)
        sys.stdout.write(f"{n}\\n")
        sys.stdout.flush()

    async def stream(start):
        n = start
        while True:
            await write(n)
            n += 20

    await asyncio.gather(*(stream(start) for start in range(20)))

asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_kill_9(location: str) -> None:
    """P1: the process is killed in the middle of writing; every acknowledged job is there afterwards, whole."""
    writer = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", WRITING, location], stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(500)]
    writer.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in writer.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
    writer.wait(WAIT_S)
    writer.stdout.close()

    store = Store.open(location)

    def whole(reader: Reader, n: int) -> bool:
        found = reader.by_key(TARGET, "user", "user_name", f"user{n}")
        return ids(found) == [f"r{n}"] and reader.event_document(f"r{n}", 1) == b"{}"

    assert await store.read_slow(lambda reader: [n for n in acknowledged if not whole(reader, n)]) == []
    asked = Row(id="x", target=TARGET)
    wished = await store.run(lambda ledger: [ledger.wished(asked, f"userName:r{n}") for n in acknowledged])
    assert all(wished)
    halves = by_hand(location, "SELECT count(*) FROM resource WHERE id NOT IN (SELECT resource_id FROM event)")
    assert halves == [(0,)]
    await store.close()


# ---- keys and identities


async def test_the_second_resource_of_a_name_is_told_who_has_it(store: Store) -> None:
    """Duplicate live POST is 409 (reliability section 7); users and groups, targets, and the two attributes are apart."""

    def job(ledger: Transaction) -> list[str | None]:
        first = a_row("a")
        answers = [ledger.set_keys(first, Keys(user_name="ada", external_id="1"))]
        ledger.save(first)
        answers.append(ledger.set_keys(a_row("b"), Keys(user_name="ada")))
        answers.append(ledger.set_keys(a_row("b"), Keys(user_name="bob", external_id="1")))
        answers.append(ledger.set_keys(a_row("b", kind="group"), Keys(user_name="ada", external_id="1")))
        answers.append(ledger.set_keys(a_row("b", target="other"), Keys(user_name="ada", external_id="1")))
        answers.append(ledger.set_keys(a_row("b"), Keys(user_name="bob", external_id="2", display_name="x")))
        answers.append(ledger.set_keys(first, Keys(user_name="ada", external_id="1")))
        return answers

    assert await store.run(job) == [None, "a", "a", None, None, None, None]


async def test_keys_may_be_given_before_and_after_a_row_is_saved(store: Store) -> None:
    """`set_keys` and `save` may come in either order, and keys can be replaced and taken away."""

    def before(ledger: Transaction) -> None:
        ledger.set_keys(a_row("a"), Keys(user_name="ada", work_email="ada@contoso.example"))
        ledger.save(a_row("a"))

    def after(ledger: Transaction) -> None:
        ledger.save(a_row("b"))
        ledger.set_keys(a_row("b"), Keys(user_name="bob", work_email="ada@contoso.example"))

    await store.run(before)
    await store.run(after)
    shared = await store.read(lambda reader: reader.by_key(TARGET, "user", "work_email", "ada@contoso.example"))
    assert [row.id for row in shared] == ["a", "b"]

    def renamed(ledger: Transaction) -> str | None:
        row = ledger.row("a")
        assert row is not None
        return ledger.set_keys(row, NO_KEYS) or ledger.set_keys(a_row("b"), Keys(user_name="ada"))

    assert await store.run(renamed) is None
    found = await store.read(lambda reader: reader.by_key(TARGET, "user", "user_name", "ada"))
    assert [row.id for row in found] == ["b"]
    assert await store.read(lambda reader: reader.by_key(TARGET, "user", "user_name", "bob")) == []


async def test_keys_that_were_refused_are_not_written(store: Store) -> None:
    """Intake reuses the row that is in the way; the keys of the row it wanted to make must leave no trace."""

    def job(ledger: Transaction) -> str | None:
        ledger.set_keys(a_row("a"), Keys(user_name="ada"))
        ledger.save(a_row("a"))
        fresh = a_row("b")
        in_the_way = ledger.set_keys(fresh, Keys(user_name="ada", external_id="9"))
        ledger.save(fresh)
        return in_the_way

    assert await store.run(job) == "a"
    assert await store.read(lambda reader: reader.by_key(TARGET, "user", "external_id", "9")) == []


async def test_an_identity_is_held_by_whom_it_may_still_belong_to(store: Store) -> None:
    """R2: settled names, names of unsettled deliveries and names a message may still act on; not wishes, not foreign ones."""

    def job(ledger: Transaction) -> list[list[str]]:
        ledger.save(applied("settled", settled_identities=("n",)))
        ledger.save(a_row("possible", doubts=Doubts(possible={"n"})))
        ledger.save(applied("trailing", doubts=Doubts(trail={"n", "m"})))
        ledger.save(a_row("wishing", identities=("n",)))
        ledger.save(applied("gone", state=State.GONE, deleted=True, settled_identities=("n",)))
        ledger.save(applied("elsewhere", target="other", settled_identities=("n",)))
        ledger.save(applied("group", kind="group", settled_identities=("n",)))
        asking = a_row("asking", identities=("n",))
        first = [row.id for row in ledger.holders(asking, ["n", "m", "n"])]
        row = ledger.row("settled")
        assert row is not None
        row.settled_identities = ("else",)
        ledger.save(row)
        trailing = ledger.row("trailing")
        assert trailing is not None
        second = [row.id for row in ledger.holders(trailing, ["n"])]
        return [first, second, [row.id for row in ledger.holders(asking, [])]]

    assert await store.run(job) == [["settled", "possible", "trailing"], ["possible"], []]


async def test_only_live_rows_wish(store: Store) -> None:
    """`wished` decides whether a deletion may look for an account by its name (T8)."""

    def job(ledger: Transaction) -> list[bool]:
        ledger.save(a_row("a", identities=("n",)))
        ledger.save(a_row("b", identities=("m",), deleted=True))
        asking = a_row("asking")
        mine = a_row("a", identities=("n",))
        answers = [ledger.wished(asking, "n"), ledger.wished(asking, "m"), ledger.wished(mine, "n")]
        mine.deleted = True
        ledger.save(mine)
        return [*answers, ledger.wished(asking, "n")]

    assert await store.run(job) == [True, False, False, False]


async def test_the_owner_of_an_account_is_found_also_while_its_deletion_waits(store: Store) -> None:
    """A deleted row that learned of its account late still deletes it: nobody may link that account before (T8, I8)."""

    def job(ledger: Transaction) -> list[str | None]:
        ledger.save(applied("a", account_id="1"))
        ledger.save(applied("b", account_id="2", state=State.GONE, deleted=True, dirty=True))
        asking = a_row("asking")
        found = [ledger.owner(asking, account) for account in ("1", "2", "3")]
        found.append(ledger.owner(a_row("a"), "1"))
        found.append(ledger.owner(a_row("asking", kind="group"), "1"))
        return [row.id if row else None for row in found]

    assert await store.run(job) == ["a", "b", None, None, None]


# ---- who is next


async def test_due_rows_come_by_priority_then_time_then_age(store: Store) -> None:
    """Order: deprovision, create, update, repair (reliability section 6)."""
    rows = [
        a_row("repair", state=State.QUEUED, settled_generation=1, dirty=True, next_at=NOW - 900),
        a_row("update", change=Change.UPDATE, next_at=NOW - 800),
        a_row("create-late", next_at=NOW - 10),
        a_row("create-twin-1", next_at=NOW - 20),
        a_row("create-twin-2", next_at=NOW - 20),
        a_row("delete", change=Change.DELETE, deleted=True, next_at=NOW),
        a_row("not-yet", change=Change.DELETE, deleted=True, next_at=NOW + 1),
        a_row("blocked", state=State.BLOCKED, next_at=NOW - 30),
        a_row("held", state=State.HELD),
        applied("applied"),
        applied("gone-dirty", state=State.GONE, deleted=True, dirty=True, next_at=NOW - 1_000),
        in_flight("flying"),
        a_row("elsewhere", target="other", next_at=NOW - 1),
    ]

    def job(ledger: Transaction) -> list[Any]:
        for row in rows:
            ledger.save(row)
        best = [row.id for row in ledger.due(TARGET, NOW, 100)]
        return [best, [row.id for row in ledger.due(TARGET, NOW, 2)], ledger.targets_due(NOW), ledger.targets_due(1.0)]

    assert await store.run(job) == [
        ["delete", "blocked", "create-twin-1", "create-twin-2", "create-late", "update", "gone-dirty", "repair"],
        ["delete", "blocked"],
        ["other", TARGET],
        [],
    ]


@pytest.mark.postgres
async def test_answers_that_come_early_are_not_taken_for_those_of_the_next_query(postgres: str) -> None:
    """PostgreSQL answers a pipeline whenever 8 KiB are full: after some 340 changes without rows, while a query is sent."""
    store = Store.open(postgres)

    def job(changes: int) -> Callable[[Transaction], int]:
        def run(ledger: Transaction) -> int:
            for _ in range(changes):
                ledger.mark_published("nobody", 1)
            return ledger.in_flight(TARGET)

        return run

    try:
        assert [await store.run(job(changes)) for changes in range(330, 400)] == [0] * 70
    finally:
        await store.close()


async def test_due_agrees_with_what_the_rows_say_of_themselves(store: Store) -> None:
    """The derived columns are the properties of the row, for any state it can be in."""
    chance = random.Random(7)
    rows = []
    for n in range(400):
        flying = chance.random() < 0.2
        rows.append(
            a_row(
                f"r{n}",
                state=State.DELIVERING if flying else chance.choice([s for s in State if s is not State.DELIVERING]),
                in_flight=1 if flying else None,
                change=chance.choice(list(Change)),
                settled_generation=chance.choice([0, 1]),
                dirty=chance.random() < 0.3,
                next_at=NOW + chance.choice([-2, -1, 0, 1]),
            )
        )

    def job(ledger: Transaction) -> tuple[list[str], list[str]]:
        for row in rows:
            ledger.save(msgspec.structs.replace(row, state=State.APPLIED, in_flight=None, next_at=0.0))
        for row in rows:
            ledger.save(row)
        return [row.id for row in ledger.due(TARGET, NOW, 1_000)], list(ledger.targets_due(NOW))

    expected = sorted(
        (row for row in rows if row.waiting and row.next_at <= NOW),
        key=lambda row: (row.priority, row.next_at, int(row.id[1:])),
    )
    assert {row.priority for row in expected} == set(range(PRIORITY_REPAIR + 1))
    assert await store.run(job) == ([row.id for row in expected], [TARGET])


async def test_deliveries_are_counted_found_and_marked_only_under_their_fence(store: Store) -> None:
    """R1: what is in flight is known; a late word about an earlier delivery changes nothing."""

    def job(ledger: Transaction) -> list[Any]:
        ledger.save(in_flight("a", fence=3))
        ledger.save(in_flight("b", published=True, heard_at=NOW - 30))
        ledger.save(in_flight("c", target="other"))
        ledger.save(applied("d"))
        seen = [ledger.in_flight(TARGET), ids(ledger.unpublished(10)), ids(ledger.unheard(NOW - 20, 10))]
        ledger.mark_published("a", 2)
        ledger.heard("b", 9, NOW)
        ledger.mark_published("d", 0)
        seen += [ids(ledger.unpublished(10)), ids(ledger.unheard(NOW - 20, 10)), ids(ledger.unpublished(1))]
        ledger.mark_published("a", 3)
        ledger.heard("b", 1, NOW)
        return [*seen, ids(ledger.unpublished(10)), ids(ledger.unheard(NOW - 20, 10))]

    assert await store.run(job) == [2, ["a", "c"], ["b"], ["a", "c"], ["b"], ["a"], ["c"], []]


def ids(rows: Any) -> list[str]:
    """Names of rows."""
    return [row.id for row in rows]


async def test_after_the_bus_lost_a_stream_everything_out_is_looked_for_and_the_latest_is_read_back(
    store: Store,
) -> None:
    """R1 and R10."""

    def job(ledger: Transaction) -> list[Any]:
        ledger.save(in_flight("flying", published=True))
        ledger.save(applied("late", settled_at=NOW - 10))
        ledger.save(applied("gone", state=State.GONE, deleted=True, settled_at=NOW - 10))
        ledger.save(applied("early", settled_at=NOW - 400))
        ledger.save(dead("dead", REASON, settled_at=NOW - 10))
        ledger.expect_bus_loss(NOW, NOW - 300)
        unheard, early = ids(ledger.unheard(1.0, 10)), ids(ledger.read_backs(NOW + 59, 10))
        return [unheard, early, ids(ledger.read_backs(NOW + 60, 10)), ids(ledger.read_backs(NOW + 60, 1))]

    assert await store.run(job) == [["flying"], [], ["late", "gone"], ["late"]]


async def test_a_trail_is_looked_at_only_while_somebody_wants_the_name(store: Store) -> None:
    """R2: an identity passes on when its old message is gone; asked only when another row is to be called so."""

    def job(ledger: Transaction) -> list[list[str]]:
        ledger.save(applied("old", doubts=Doubts(trail={"n"})))
        ledger.save(in_flight("flying", doubts=Doubts(trail={"n"})))
        ledger.save(applied("unwanted", doubts=Doubts(trail={"m"}), settled_identities=("n",)))
        seen = [ids(ledger.trails(10))]
        ledger.save(a_row("new", identities=("n",)))
        seen.append(ids(ledger.trails(10)))
        old = ledger.row("old")
        assert old is not None
        old.doubts.trail.clear()
        ledger.save(old)
        return [*seen, ids(ledger.trails(10))]

    assert await store.run(job) == [[], ["old"], []]


async def test_a_closed_circuit_hastens_retries_but_not_what_rests_after_an_ambiguous_end(store: Store) -> None:
    """R9 keeps its 15 seconds; other targets and blocked rows keep their times."""
    rows = [
        a_row("retry", state=State.RETRYING, next_at=NOW + 500),
        a_row("ambiguous", state=State.RETRYING, next_at=NOW + 500, ambiguous=True),
        a_row("blocked", state=State.BLOCKED, next_at=NOW + 500),
        a_row("elsewhere", target="other", state=State.RETRYING, next_at=NOW + 500),
        a_row("due", state=State.RETRYING, next_at=NOW - 5),
    ]

    def job(ledger: Transaction) -> list[Any]:
        for row in rows:
            ledger.save(row)
        ledger.hasten(TARGET, NOW)
        return [[(row.id, row.next_at) for row in ledger.due(TARGET, NOW, 10)], ledger.targets_due(NOW)]

    assert await store.run(job) == [[("due", NOW - 5), ("retry", NOW)], [TARGET]]


async def test_the_end_of_shadow_mode_comes_in_parts(store: Store) -> None:
    """Jobs run in the event loop: a hundred thousand rehearsed users at once would answer nobody for seconds."""
    rows = [
        *(a_row(f"r{n}", state=State.BLOCKED, blocked_on=SHADOW, next_at=NOW + 500) for n in range(5)),
        a_row("other", state=State.BLOCKED, blocked_on="role", next_at=NOW + 500),
        a_row("elsewhere", target="other", state=State.BLOCKED, blocked_on=SHADOW, next_at=NOW + 500),
        a_row("due", state=State.BLOCKED, blocked_on=SHADOW, next_at=NOW - 5),
    ]

    def job(ledger: Transaction) -> list[Any]:
        for row in rows:
            ledger.save(row)
        moved = [ledger.leave_shadow(TARGET, NOW, limit=3) for _ in range(3)]
        return [moved, sorted(ids(ledger.due(TARGET, NOW, 10)))]

    assert await store.run(job) == [[3, 2, 0], ["due", *(f"r{n}" for n in range(5))]]


# ---- events, attempts, what a target is judged by


async def test_each_event_gets_exactly_one_outcome(store: Store) -> None:
    """I10: settling generation 3 supersedes 1 and 2; what has its outcome keeps it."""

    def job(ledger: Transaction) -> None:
        row = a_row("a", generation=0)
        for n in range(1, 6):
            row.generation, row.event_id = n, f"event-{n}"
            ledger.add_event(row, actor="entra")
            if n == 1:
                ledger.close_events("a", 1, "rejected", NOW)
        ledger.close_events("a", 3, "applied", NOW + 1)

    await store.run(job)

    events, _ = await store.read_slow(lambda reader: reader.history("a"))
    assert [(event.generation, event.outcome, event.outcome_at) for event in events] == [
        (1, "rejected", NOW),
        (2, "superseded", NOW + 1),
        (3, "applied", NOW + 1),
        (4, None, None),
        (5, None, None),
    ]


async def test_a_wish_that_is_settled_by_the_transaction_that_accepts_it_has_its_outcome_at_once(store: Store) -> None:
    """T9: deleted before anything was sent. The engine decides first and records the event afterwards."""

    def job(ledger: Transaction) -> None:
        row = a_row("a", generation=2, settled_generation=2, deleted=True, change=Change.DELETE, event_id="event-2")
        ledger.close_events("a", 2, "noop", NOW)
        ledger.save(row)
        ledger.add_event(row, actor="entra")

    await store.run(job)

    events, _ = await store.read_slow(lambda reader: reader.history("a"))
    assert [(event.outcome, event.deleted, event.change) for event in events] == [("noop", True, Change.DELETE)]


async def test_past_wishes_are_those_between_the_settled_and_the_current_one_newest_first(store: Store) -> None:
    """T10: an intermediate name is looked for in them."""

    def job(ledger: Transaction) -> Any:
        row = a_row("a")
        for n in range(1, 6):
            row.generation, row.event_id, row.identities, row.document = n, f"e{n}", (f"n{n}",), b"%d" % n
            ledger.add_event(row, actor="entra")
        row.settled_generation = 2
        return [(wish.generation, wish.event_id, wish.identities, wish.document) for wish in ledger.past(row)]

    assert await store.run(job) == [(4, "e4", ("n4",), b"4"), (3, "e3", ("n3",), b"3")]


async def test_a_report_is_recorded_once(store: Store) -> None:
    """Folding the same outcome twice changes nothing (house rule: everything delivered twice will be)."""
    full = an_outcome(
        "o1",
        "a",
        Result.REJECTED,
        reason=Reason(code="bad", message="nul \0 inside"),
        steps=(Step("POST", "/Users", 400, 12.5),),
        ignored=("title",),
        sightings=(Sighting("n", "1"),),
        worker="w1",
    )
    assert await store.run(lambda ledger: ledger.record_attempt(full))
    assert not await store.run(lambda ledger: ledger.record_attempt(full))
    assert await store.run(lambda ledger: [ledger.record_attempt(an_outcome("o2", "a")) for _ in range(2)]) == [
        True,
        False,
    ]

    _, attempts = await store.read_slow(lambda reader: reader.history("a"))
    assert [attempt.id for attempt in attempts] == ["o1", "o2"]
    assert msgspec.json.decode(attempts[0].steps) == [{"method": "POST", "path": "/Users", "status": 400, "ms": 12.5}]
    assert msgspec.json.decode(attempts[0].remarks)["ignored"] == ["title"]
    assert (attempts[0].code, attempts[0].fingerprint, attempts[0].worker) == ("bad", "bad::", "w1")
    assert bytes(attempts[1].steps) == b"[]"


async def test_a_tally_counts_recent_calls_failures_and_how_many_failed_in_a_row(store: Store) -> None:
    """vendor_down: 5 in a row, or half of at least 10 calls in 60 s (reliability section 6)."""
    reports = [
        ("old", Result.RETRY, NOW - 100),
        ("a", Result.RETRY, NOW - 50),
        ("b", Result.APPLIED, NOW - 40),
        ("a", Result.RETRY, NOW - 30),
        ("c", Result.GAVE_UP, NOW - 25),
        ("c", Result.RETRY, NOW - 30),
        ("c", Result.RETRY, NOW - 5),
    ]

    def job(ledger: Transaction) -> list[Any]:
        for n, (resource, result, ended_at) in enumerate(reports):
            ledger.record_attempt(an_outcome(f"o{n}", resource, result, ended_at=ended_at))
        ledger.record_attempt(msgspec.structs.replace(an_outcome("x", "z", Result.RETRY), target="other"))
        tallies = [ledger.tally(TARGET, NOW - 60), ledger.tally(TARGET, NOW - 35), ledger.tally(TARGET, NOW + 1)]
        return [msgspec.structs.astuple(tally) for tally in tallies]

    assert await store.run(job) == [(5, 4, 2, 3), (3, 3, 2, 3), (0, 0, 0, 0)]


async def test_dead_letters_of_one_cause_return_to_the_queue_as_if_they_had_not_been_tried(store: Store) -> None:
    """Dead-letter brake: these items return to parked; their event is open again, other causes stay dead."""
    other = Reason(code="other", message="")

    def job(ledger: Transaction) -> list[Any]:
        for name in ("a", "b"):
            row = dead(name, REASON, attempt=4, generation=2, settled_generation=2, change=Change.DEACTIVATE)
            ledger.save(row)
            for generation, event_id in ((1, f"{name}-1"), (2, f"{name}-2")):
                row.generation, row.event_id, row.settled_generation = generation, event_id, 0
                ledger.add_event(row, actor="entra")
            ledger.close_events(name, 2, "rejected", NOW)
            ledger.record_attempt(an_outcome(f"o-{name}", name, Result.REJECTED, reason=REASON))
        ledger.save(dead("resting", REASON, ambiguous=True, settled_at=NOW - 5))
        ledger.save(dead("early", REASON, settled_at=NOW - 700))
        ledger.save(dead("different", other))
        ledger.save(dead("elsewhere", REASON, target="other"))
        ledger.record_attempt(an_outcome("o-c", "c"))
        alike = ledger.dead_alike(TARGET, REASON.fingerprint(), NOW - 600)
        count = ledger.unbury(TARGET, REASON.fingerprint(), NOW - 600, NOW)
        again = ledger.dead_alike(TARGET, REASON.fingerprint(), NOW - 600)
        due = ledger.due(TARGET, NOW, 10)
        return [
            alike,
            count,
            again,
            [(r.id, r.state, r.attempt, r.open, ready(r, NOW)) for r in due],
            ledger.row("resting"),
        ]

    alike, count, again, due, resting = await store.run(job)
    assert (alike, count, again) == ((3, 3), 3, (0, 3))
    assert due == [(name, State.QUEUED, 0, True, True) for name in ("a", "b")]
    assert resting.next_at == NOW - 5 + 15
    events, _ = await store.read_slow(lambda reader: reader.history("a"))
    assert [event.outcome for event in events] == ["superseded", None]
    causes = await store.read_slow(lambda reader: reader.dead_causes())
    assert sorted((cause.target, cause.fingerprint, cause.count) for cause in causes) == [
        ("other", REASON.fingerprint(), 1),
        (TARGET, "other::", 1),
        (TARGET, REASON.fingerprint(), 1),
    ]


async def test_the_mass_brake_knows_how_much_was_taken_away_and_how_many_there_are(store: Store) -> None:
    """Mass brake: deletes and disables above a share of the app within one hour are held."""

    def job(ledger: Transaction) -> list[int]:
        for n, (change, at) in enumerate(
            [
                (Change.CREATE, NOW),
                (Change.DEACTIVATE, NOW),
                (Change.DELETE, NOW - 10),
                (Change.DELETE, NOW - 4_000),
                (Change.UPDATE, NOW),
            ]
        ):
            row = a_row(f"r{n}", change=change, modified_at=at, deleted=change is Change.DELETE)
            ledger.save(row)
            ledger.add_event(row, actor="entra")
        ledger.save(a_row("refused", state=State.REJECTED))
        return [ledger.deprovisioned(TARGET, NOW - 3_600), ledger.population(TARGET), ledger.population("other")]

    assert await store.run(job) == [2, 3, 0]


async def test_a_targets_runtime_state_and_its_connectors_word_are_kept_apart(store: Store) -> None:
    """Pausing must not forget what the connector announced, nor the other way round."""
    paused = TargetRow(name=TARGET, paused_by="operator", circuit=Circuit.DOWN, opened_at=NOW, rest_until=NOW + 5)

    def job(ledger: Transaction) -> list[Any]:
        fresh = ledger.target(TARGET)
        ledger.save_spec(TARGET, b"{}", settings_digest="d1", seen_at=NOW)
        ledger.save_target(paused)
        ledger.save_spec(TARGET, b'{"name":"x"}', settings_digest="d2", seen_at=NOW + 1)
        return [fresh, ledger.target(TARGET), ledger.spec(TARGET), ledger.spec("unknown")]

    assert await store.run(job) == [TargetRow(name=TARGET), paused, b'{"name":"x"}', None]
    await store.run(lambda ledger: ledger.save_target(TargetRow(name="never-seen")))
    unseen = await store.read(lambda reader: reader.target("never-seen"))
    assert (unseen.spec, unseen.settings_digest, unseen.seen_at) == (None, None, None)
    _, record = await store.read_slow(lambda reader: reader.targets())
    assert (record.row, record.settings_digest, record.seen_at) == (paused, "d2", NOW + 1)


async def test_the_members_of_a_group_are_settled_by_what_was_sent(store: Store) -> None:
    """T12: membership is a set, sent as differences; a member without an account blocks only its own membership."""

    def job(ledger: Transaction) -> list[Any]:
        group = a_row("group", kind="group")
        ledger.save(group)
        for name in ("a", "b", "c"):
            ledger.save(applied(name, account_id=f"account-{name}"))
        ledger.save(a_row("new"))
        ledger.save(applied("elsewhere", target="other", account_id="x"))

        def steps() -> tuple[list[str], list[str], str | None]:
            found = ledger.member_steps(group)
            return [m.id for m in found.add], [m.id for m in found.remove], found.waiting_for

        seen: list[Any] = [
            ledger.change_members("group", [MemberChange("add", ("b", "a", "new")), MemberChange("remove", ("b",))]),
            ledger.change_members("group", [MemberChange("add", ("a",)), MemberChange("remove", ("nobody",))]),
            steps(),
        ]
        ledger.settle_members("group", ["a"], [], anew=True)
        seen += [steps(), ledger.change_members("group", [MemberChange("replace", ("b", "c"))]), steps()]
        ledger.settle_members("group", ["b"], ["a"], anew=False)
        seen.append(steps())
        ledger.change_members("group", [MemberChange("add", ("elsewhere",))])
        ledger.settle_members("group", ["c"], [], anew=False)
        seen.append(steps())
        ledger.forget_member("elsewhere", 5.0)
        return [*seen, steps()]

    assert await store.run(job) == [
        True,
        False,
        (["a"], [], "new"),
        ([], [], "new"),
        True,
        (["b", "c"], ["a"], None),
        (["c"], [], None),
        ([], [], "elsewhere"),
        ([], [], None),
    ]

    def query(reader: Reader) -> list[Any]:
        return [reader.members("group"), reader.groups_of("b"), reader.is_member("group", "a")]

    assert await store.read(query) == [["b", "c"], ["group"], False]
    assert await store.run(lambda ledger: ledger.erase("group"))
    assert await store.read(query) == [[], [], False]


async def test_the_creation_time_of_a_stream_is_remembered(store: Store) -> None:
    """A10: a new or rewound stream is told from the known one."""

    def job(ledger: Transaction) -> list[dict[str, str]]:
        seen = [ledger.streams()]
        ledger.save_stream("PROV_WORK", "2026-01-01")
        ledger.save_stream("PROV_WORK", "2026-01-02")
        return [*seen, ledger.streams()]

    assert await store.run(job) == [{}, {"PROV_WORK": "2026-01-02"}]


async def test_a_changed_or_missing_audit_entry_is_noticed(store: Store, location: str) -> None:
    """S13: the audit log is chained by hashes."""

    def job(ledger: Transaction) -> None:
        for n in range(4):
            ledger.audit(
                at=NOW + n, actor="ada", action="dead.redriven", target=TARGET, subject=f"r{n}", detail={"n": n}
            )

    await store.run(job)
    entries = await store.read_slow(lambda reader: reader.audit(2))
    assert [(entry.subject, msgspec.json.decode(entry.detail)) for entry in entries] == [
        ("r3", {"n": 3}),
        ("r2", {"n": 2}),
    ]
    assert await store.read_slow(lambda reader: reader.audit_break()) is None

    by_hand(location, "UPDATE audit SET actor = 'eve' WHERE subject = 'r2'")
    assert await store.read_slow(lambda reader: reader.audit_break()) == entries[1].seq
    by_hand(location, "UPDATE audit SET actor = 'ada' WHERE subject = 'r2'")
    by_hand(location, "DELETE FROM audit WHERE subject = 'r1'")
    assert await store.read_slow(lambda reader: reader.audit_break()) == entries[1].seq


async def test_access_keys_are_added_used_revoked_and_listed(store: Store) -> None:
    """S1: only the hash is kept, last use is remembered, revocation counts once."""
    keys = [
        KeyRecord(
            id=f"k{n}", target=target, label="x", prefix="pg", hash=bytes([n]), created_at=NOW + n, expires_at=NOW + 9
        )
        for n, target in enumerate([TARGET, TARGET, "other"])
    ]

    def job(ledger: Transaction) -> list[Any]:
        for key in keys:
            ledger.add_key(key)
        ledger.touch_key("k0", NOW + 5)
        ledger.touch_key("k0", NOW + 4)
        return [
            ledger.revoke_key("k1", NOW),
            ledger.revoke_key("k1", NOW + 1),
            ledger.revoke_key("no", NOW),
            ledger.keys(TARGET),
        ]

    first, second, unknown, listed = await store.run(job)
    assert (first, second, unknown) == (True, False, False)
    expected = [
        msgspec.structs.replace(keys[0], last_used_at=NOW + 5),
        msgspec.structs.replace(keys[1], revoked_at=NOW),
    ]
    assert listed == expected
    assert await store.read(lambda reader: reader.keys(TARGET)) == expected
    assert [key.id for key in await store.read(lambda reader: reader.keys())] == ["k2", "k0", "k1"]
    with pytest.raises(StoreConflict):
        await store.run(lambda ledger: ledger.add_key(msgspec.structs.replace(keys[0], id="new")))


# ---- reading


async def test_a_resource_is_shown_only_under_its_own_target_and_only_when_scim_may_see_it(store: Store) -> None:
    """I11, S5: a foreign id answers exactly like a random one; visibility is the one law of visibility.py."""
    rows = [
        a_row("live"),
        a_row("deleted", deleted=True),
        a_row("refused", state=State.REJECTED),
        a_row("veiled", veiled=True),
        a_row("told", veiled=True, acknowledged=1),
    ]

    def job(ledger: Transaction) -> None:
        for row in rows:
            ledger.set_keys(row, Keys(user_name=row.id, display_name="same"))
            ledger.save(row)

    await store.run(job)

    seen = [await store.read(lambda r, i=row.id: r.visible_row(TARGET, "user", i)) is not None for row in rows]
    assert seen == [True, False, False, False, True]
    assert await store.read(lambda r: r.visible_row("other", "user", "live")) is None
    assert await store.read(lambda r: r.visible_row(TARGET, "group", "live")) is None
    assert await store.read(lambda r: r.by_key("other", "user", "user_name", "live")) == []
    assert ids(await store.read(lambda r: r.by_key(TARGET, "user", "display_name", "same"))) == ["live", "told"]
    hidden = await store.read(lambda r: r.by_key(TARGET, "user", "user_name", "refused", hidden=True))
    assert ids(hidden) == ["refused"]
    assert await store.run(lambda ledger: ledger.population(TARGET)) == 2


async def test_pages_and_scans_show_every_visible_resource_once_in_the_order_of_age(store: Store) -> None:
    """RFC 7644 section 3.4.2.4: startIndex counts from 1; totalResults counts all."""

    def job(ledger: Transaction) -> None:
        for n in range(25):
            ledger.save(a_row(f"r{n:02d}", deleted=n % 5 == 4))
        ledger.save(a_row("group", kind="group"))
        ledger.save(a_row("elsewhere", target="other"))

    await store.run(job)
    everyone = [f"r{n:02d}" for n in range(25) if n % 5 != 4]

    def page(start: int, count: int) -> Callable[[Reader], tuple[list[str], int]]:
        def query(reader: Reader) -> tuple[list[str], int]:
            rows, total = reader.page(TARGET, "user", start, count)
            return ids(rows), total

        return query

    assert await store.read_slow(page(1, 7)) == (everyone[:7], 20)
    assert await store.read_slow(page(8, 7)) == (everyone[7:14], 20)
    assert await store.read_slow(page(15, 100)) == (everyone[14:], 20)
    assert await store.read_slow(page(21, 7)) == ([], 20)
    assert await store.read_slow(page(1, 0)) == ([], 20)
    seen: list[str] = []
    after: int | None = 0
    while after is not None:
        rows, after = await store.read_slow(lambda reader, a=after: reader.scan(TARGET, "user", a, 6))
        seen += ids(rows)
    assert seen == everyone


async def test_operators_see_counts_the_oldest_wish_and_each_kind_of_waiting(store: Store) -> None:
    """reliability section 10: counts by state, oldest age, waiting list, dead letters."""

    def job(ledger: Transaction) -> None:
        ledger.save(a_row("new", modified_at=NOW))
        ledger.save(a_row("old", modified_at=NOW - 50, state=State.BLOCKED, next_at=NOW + 900))
        ledger.save(in_flight("flying", modified_at=NOW - 90))
        ledger.save(a_row("held", state=State.HELD))
        ledger.save(applied("fine"))
        ledger.save(dead("dead-1", REASON, settled_at=NOW - 2))
        ledger.save(dead("dead-2", Reason(code="other", message=""), settled_at=NOW - 1))
        ledger.save(dead("dead-3", REASON, settled_at=NOW, target="other"))

    await store.run(job)

    def query(reader: Reader) -> list[Any]:
        return [
            reader.counts(TARGET),
            reader.oldest_waiting(TARGET),
            reader.oldest_waiting("unknown"),
            ids(reader.waiting(TARGET, 10)),
            ids(reader.in_flight(TARGET, 10)),
            ids(reader.in_state(TARGET, State.HELD, 10)),
            ids(reader.dead(None, 10)),
            ids(reader.dead(TARGET, 10)),
            ids(reader.dead(None, 10, REASON.fingerprint())),
            ids(reader.dead(TARGET, 10, REASON.fingerprint())),
            ids(reader.dead(None, 1)),
        ]

    assert await store.read_slow(query) == [
        {State.QUEUED: 1, State.BLOCKED: 1, State.DELIVERING: 1, State.HELD: 1, State.APPLIED: 1, State.DEAD: 2},
        NOW - 50,
        None,
        ["old", "new"],
        ["flying"],
        ["held"],
        ["dead-3", "dead-2", "dead-1"],
        ["dead-2", "dead-1"],
        ["dead-3", "dead-1"],
        ["dead-1"],
        ["dead-3"],
    ]


@pytest.mark.parametrize(
    "text",
    ["r-1", "event-9", " Ada@Contoso.example", "Ext-1", "account-1", "441234", "mail@contoso.example", "ADA EXAMPLE"],
)
async def test_a_person_is_found_by_any_id(store: Store, text: str) -> None:
    """reliability section 10: find a person by any id, at every target."""

    def job(ledger: Transaction) -> None:
        row = applied("r-1", target="b-target", account_id="account-1", account_keys=("441234",), event_id="event-9")
        keys = Keys("ada@contoso.example", "Ext-1", "mail@contoso.example", "ada example")
        ledger.set_keys(row, keys)
        ledger.save(row)
        ledger.add_event(row, actor="entra")
        ledger.save(a_row("r-2", target="a-target"))

    await store.run(job)

    assert ids(await store.read_slow(lambda reader: reader.find_person(text))) == ["r-1"]
    assert await store.read_slow(lambda reader: reader.find_person("  ")) == []
    assert await store.read_slow(lambda reader: reader.find_person("a\0")) == []
    assert await store.read(lambda reader: reader.by_key(TARGET, "user", "user_name", "a\0")) == []


async def test_the_products_own_spelling_of_a_key_is_searchable(store: Store) -> None:
    """A filter by the vendor-normalized value finds the resource although Entra spells it otherwise."""
    await store.run(lambda ledger: ledger.save(applied("a", account_keys=("441234567890",))))

    assert ids(await store.read(lambda r: r.by_key(TARGET, "user", "account_key", "441234567890"))) == ["a"]


# ---- retention


async def test_what_is_past_its_retention_goes_in_bounded_pieces_and_nothing_else(store: Store) -> None:
    """S12: events 30 d, attempts 90 d, audit 365 d; an open event and a deleted resource in doubt stay."""
    day = 86_400.0

    def fill(ledger: Transaction) -> None:
        for n in range(10):
            row = applied(
                f"old-{n}", state=State.GONE, deleted=True, settled_at=NOW - 40 * day, modified_at=NOW - 40 * day
            )
            row.settled_identities = ()
            row.event_id = f"e{n}"
            ledger.save(row)
            ledger.add_event(row, actor="entra")
            ledger.record_attempt(an_outcome(f"o{n}", row.id, ended_at=NOW - 91 * day))
            ledger.audit(at=NOW - 366 * day, actor="x", action="y", target=TARGET, subject=row.id, detail={})
        in_doubt = applied(
            "doubt", state=State.GONE, deleted=True, settled_at=NOW - 40 * day, modified_at=NOW - 40 * day
        )
        in_doubt.doubts = Doubts(trail={"n"})
        ledger.save(in_doubt)
        waiting = a_row("open", modified_at=NOW - 40 * day)
        ledger.save(waiting)
        ledger.add_event(waiting, actor="entra")
        ledger.save(applied("live", settled_at=NOW - 40 * day, modified_at=NOW - 40 * day))
        ledger.record_attempt(an_outcome("young", "live"))
        ledger.audit(at=NOW, actor="x", action="y", target=TARGET, subject="live", detail={})

    await store.run(fill)

    def purge(ledger: Transaction) -> tuple[Any, ...]:
        done = ledger.purge(NOW, events_s=30 * day, attempts_s=90 * day, audit_s=365 * day, gone_s=30 * day, limit=6)
        return msgspec.structs.astuple(done)

    assert await store.run(purge) == (6, 6, 6, 6, True)
    assert await store.run(purge) == (4, 4, 4, 4, False)
    assert await store.run(purge) == (0, 0, 0, 0, False)

    def left(reader: Reader) -> list[Any]:
        return [
            [reader.row(name) is not None for name in ("old-0", "doubt", "open", "live")],
            len(reader.history("open")[0]),
            len(reader.history("live")[1]),
            len(reader.audit(10)),
            reader.audit_break(),
        ]

    assert await store.read_slow(left) == [[False, True, True, True], 1, 1, 1, None]


async def test_erasing_a_person_leaves_nothing(store: Store, location: str) -> None:
    """S12: a person's request; row, identities, history and reports go at once."""

    def job(ledger: Transaction) -> list[bool]:
        row = applied("a")
        ledger.save(row)
        ledger.add_event(row, actor="entra")
        ledger.record_attempt(an_outcome("o", "a"))
        ledger.save(applied("b"))
        return [ledger.erase("a"), ledger.erase("a")]

    assert await store.run(job) == [True, False]
    for table, column in (
        ("resource", "id"),
        ("identity", "resource_id"),
        ("event", "resource_id"),
        ("attempt", "resource_id"),
    ):
        assert by_hand(location, f"SELECT count(*) FROM {table} WHERE {column} = 'a'") == [(0,)]
    assert await store.read(lambda reader: reader.row("b")) is not None


# ---- the same as in memory


@pytest.mark.parametrize("seed", range(6))
async def test_the_store_means_the_same_as_the_one_the_simulation_runs_on(store: Store, seed: int) -> None:
    """A13: the engine was proven against a ledger in memory; random lives of resources must look alike in both."""
    often = 1 if store.engine == "sqlite" else 25  # there, each question is a journey

    def job(ledger: Transaction) -> None:
        memory = MemoryLedger(Memory())
        chance, both = random.Random(seed), (memory, ledger)
        now = NOW
        for step in range(250):
            now += chance.choice([0.0, 0.5, 3.0, 20.0])
            play(chance, both, now, step)
            if step % often == 0:
                compare(both, now)

    await store.run(job)


def play(chance: random.Random, both: tuple[Any, Any], now: float, step: int) -> None:
    """One random move of one random resource, on both ledgers."""
    resource = f"r{chance.randrange(8)}"
    rows = [ledger.row(resource) for ledger in both]
    assert rows[0] == rows[1]
    kind = chance.random()
    seed = chance.random()
    for ledger, found in zip(both, rows, strict=True):
        dice = random.Random(seed)
        row = found if found is not None else Row(id=resource, target=TARGET)
        if found is None or (kind < 0.3 and not row.deleted):
            change = (
                dice.choice([Change.UPDATE, Change.DEACTIVATE, Change.DELETE]) if found is not None else Change.CREATE
            )
            names = (f"userName:{dice.choice('abcdef')}",) if change is not Change.DELETE else row.identities
            accept(
                row,
                event_id=f"{resource}-{row.generation + 1}",
                document=b'{"n":%d}' % step,
                identities=names,
                change=change,
                changed=("userName",),
                now=now,
                acknowledged=dice.random() < 0.8,
                hold=dice.random() < 0.03,
            )
            ledger.save(row)
            ledger.add_event(row, actor="entra")
        elif kind < 0.55:
            if ready(row, now):
                apply(ledger, row, dispatch(row, now, ledger, "observe") or [], now)
                ledger.save(row)
        elif kind < 0.85 and row.fence:
            fence = row.fence - (dice.random() < 0.15)
            result = dice.choice([Result.APPLIED] * 4 + [Result.RETRY, Result.REJECTED, Result.GAVE_UP, Result.POISON])
            outcome = an_outcome(
                f"o{step}",
                resource,
                result,
                generation=row.in_flight or row.generation,
                fence=fence,
                delivery=row.delivery,
                identities=row.identities,
                account_id=f"account-{resource}" if result is Result.APPLIED and not row.deleted else None,
                deleted=row.deleted,
                ambiguous=dice.random() < 0.3,
                reason=REASON if result is not Result.APPLIED else None,
                ended_at=now,
            )
            assert ledger.record_attempt(outcome)
            apply(ledger, row, settle(row, outcome, now, ledger, RetrySettings(), adopt=True, jitter=0.5), now)
            ledger.save(row)
        elif kind < 0.88 and row.in_flight is not None:
            begin(row, row.fence, row.delivery + 1, now)
            ledger.save(row)
        elif kind < 0.9 and row.in_flight is not None:
            lose(row, now)
            ledger.save(row)
        elif kind < 0.92:
            read_again(row)
            ledger.save(row)
        elif kind < 0.94:
            ledger.mark_published(resource, row.fence)
            ledger.heard(resource, row.fence, now)
        elif kind < 0.96:
            ledger.hasten(TARGET, now)
        elif kind < 0.97:
            ledger.expect_bus_loss(now, now - 60)
        else:
            keys = Keys(user_name=dice.choice("abc"), external_id=dice.choice("xyz"))
            ledger.set_keys(row, keys)


def apply(ledger: Any, row: Row, effects: list[Any], now: float) -> None:
    """As the engine does."""
    from gateway.ledger import apply_effects

    apply_effects(ledger, row, effects, now)


def compare(both: tuple[Any, Any], now: float) -> None:
    """Everything a ledger can be asked."""

    def answers(ledger: Ledger) -> dict[str, Any]:
        rows = [row for n in range(8) if (row := ledger.row(f"r{n}")) is not None]
        asked = Row(id="asking", target=TARGET)
        names = [f"userName:{letter}" for letter in "abcdef"]
        return {
            "rows": rows,
            "holders": [ids(ledger.holders(row, names)) for row in [asked, *rows]],
            "wished": [ledger.wished(row, name) for row in [asked, *rows] for name in names],
            "past": [ledger.past(row) for row in rows],
            "in_flight": ledger.in_flight(TARGET),
            "due": [list(ledger.due(TARGET, now, limit)) for limit in (1, 3, 100)],
            "targets": list(ledger.targets_due(now)),
            "unpublished": list(ledger.unpublished(3)),
            "unheard": list(ledger.unheard(now - 20, 3)),
            "read_backs": list(ledger.read_backs(now, 3)),
            "trails": list(ledger.trails(3)),
            "tally": ledger.tally(TARGET, now - 60),
            "dead_alike": ledger.dead_alike(TARGET, REASON.fingerprint(), now - 600),
        }

    assert answers(both[0]) == answers(both[1])


# ---- opening


async def test_models_and_migrations_agree(empty: str) -> None:
    """What the migrations build is what the statements are written for, column by column."""
    await opened_and_closed(empty)

    engine = engine_of(empty)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "target_metadata": METADATA})
        assert compare_metadata(context, METADATA) == []
        built = definitions(connection)
        METADATA.drop_all(connection)
        METADATA.create_all(connection)
        assert definitions(connection) == built
        connection.rollback()
    engine.dispose()


def definitions(connection: sa.Connection) -> list[str]:
    """Indexes with their conditions, as the database spells them: alembic does not compare those."""
    if connection.dialect.name == "sqlite":
        sql = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND type = 'index'"
    else:
        sql = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
    return sorted(str(row[0]) for row in connection.exec_driver_sql(sql))


def test_the_program_knows_its_newest_migration() -> None:
    """SCHEMA decides at start whether alembic is needed at all; it must not lag behind."""
    config = Config()
    config.set_main_option("script_location", str(Path(databases.__file__).parent / "migrations"))

    assert ScriptDirectory.from_config(config).get_heads() == [SCHEMA]


async def test_a_store_of_an_earlier_version_is_brought_up_to_date_with_what_is_in_it(empty: str) -> None:
    """Upgrade: what was acknowledged by an older version is still there, and what is new works."""
    engine = engine_of(empty)
    with engine.connect() as connection:
        upgrade(connection, "0001")
        connection.commit()
        assert not sa.inspect(connection).has_table("audit")
        there = {column["name"] for column in sa.inspect(connection).get_columns("resource")}
        columns = {c.name: c for c in RESOURCE.columns if c.name in there and not c.nullable and c.name != "seq"}
        plain = {"INTEGER": 0, "BOOLEAN": False, "FLOAT": 0.0, "VARCHAR": "", "BLOB": b"{}", "BYTEA": b"{}"}
        values = {name: plain[str(c.type.compile(connection.dialect))] for name, c in columns.items()}
        values |= {
            "id": "old",
            "target": TARGET,
            "kind": "user",
            "state": "queued",
            "change": "create",
            "visible": True,
            "document": msgspec.json.encode({"userName": "a", ENTERPRISE_SCHEMA: {"manager": {"value": "boss"}}}),
        }
        connection.execute(sa.insert(RESOURCE).values(values))
        connection.execute(sa.insert(RESOURCE).values({**values, "id": "boss", "document": b'{"title":"manager"}'}))
        connection.commit()
    engine.dispose()

    store = Store.open(empty)

    row = await store.read(lambda reader: reader.visible_row(TARGET, "user", "old"))
    assert row is not None
    assert (row.manager, row.account_created, row.traceparent) == ("boss", None, None)
    boss = await store.read(lambda reader: reader.row("boss"))
    assert boss is not None
    assert boss.manager is None
    await store.run(lambda ledger: ledger.audit(at=NOW, actor="x", action="y", target=TARGET, subject="old", detail={}))
    assert len(await store.read_slow(lambda reader: reader.audit(10))) == 1
    assert by_hand(empty, "SELECT version_num FROM alembic_version") == [(SCHEMA,)]
    await store.close()


async def test_a_store_of_a_later_version_is_left_alone(empty: str) -> None:
    """Rollback of the program: better no start than an old program on tables it does not know."""
    await opened_and_closed(empty)
    by_hand(empty, "UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(StoreRefused, match="newer version"):
        Store.open(empty)

    assert by_hand(empty, "SELECT version_num FROM alembic_version") == [("9999",)]


async def test_gateways_that_start_together_create_the_tables_once(empty: str) -> None:
    """Migrations run under a lock."""
    code = "import asyncio, sys; from gateway.store import Store; asyncio.run(Store.open(sys.argv[1]).close())"
    starting = [await asyncio.create_subprocess_exec(sys.executable, "-c", code, empty) for _ in range(2)]

    assert await asyncio.gather(*(process.wait() for process in starting)) == [0, 0]
    await opened_and_closed(empty)


async def test_a_store_that_is_up_to_date_opens_without_alembic(location: str) -> None:
    """Its import takes as long as the rest of the start."""
    await opened_and_closed(location)
    code = (
        "import asyncio, sys; from gateway.store import Store; asyncio.run(Store.open(sys.argv[1]).close());"
        "sys.exit('alembic' in sys.modules)"
    )

    ended = await asyncio.create_subprocess_exec(sys.executable, "-c", code, location)
    assert await ended.wait() == 0


@pytest.mark.postgres
def test_a_postgresql_that_forgets_acknowledged_writes_is_refused(postgres_url: str) -> None:
    """A8: refuse to start unless fsync and synchronous_commit are on."""
    url = named(postgres_url, "model")
    by_hand(url, "ALTER DATABASE model SET synchronous_commit = off")
    try:
        with pytest.raises(StoreRefused, match="synchronous_commit = off"):
            Store.open(url)
    finally:
        by_hand(url, "ALTER DATABASE model RESET synchronous_commit")


@pytest.mark.postgres
def test_an_address_that_does_not_answer_is_refused_without_its_password(tmp_path: Path) -> None:
    """P9: no credentials in errors."""
    with pytest.raises(StoreRefused) as refused:
        Store.open(f"postgresql://provgate:s3cr3t-word@/provgate?host={tmp_path}")

    assert "s3cr3t-word" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_sqlite_writes_through_to_the_disk_and_is_for_our_eyes_only(tmp_path: Path) -> None:
    """A8: WAL, synchronous=FULL, foreign keys, busy timeout."""
    path = tmp_path / "provgate.sqlite3"
    engine = engine_of(path)

    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }

    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5_000}
    assert path.stat().st_mode & 0o077 == 0
    engine.dispose()


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:40 / /srv/data rw shared:2 - nfs4 server.contoso.example:/data rw
41 40 254:1 / /srv/data/local rw shared:3 - xfs /dev/vdb rw
42 22 0:42 / /mnt/team\\040share rw - cifs //server.contoso.example/team rw
43 22 0:43 / /mnt/remote rw - fuse.sshfs ada@server.contoso.example:/ rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/data/provgate.sqlite3", "nfs4"),
        ("/srv/data/local/provgate.sqlite3", "xfs"),
        ("/srv/database/provgate.sqlite3", "ext4"),
        ("/mnt/team share/x/provgate.sqlite3", "cifs"),
        ("/mnt/remote/provgate.sqlite3", "fuse.sshfs"),
    ],
)
def test_a_network_file_system_is_refused_and_a_local_one_is_not(path: str, kind: str) -> None:
    """A8: local disk only; the innermost mount decides."""
    assert file_system_of(Path(path), MOUNTS) == kind

    if kind in ("ext4", "xfs"):
        check_file_system(Path(path), MOUNTS)
    else:
        with pytest.raises(StoreRefused, match=kind):
            check_file_system(Path(path), MOUNTS)


@pytest.mark.parametrize(
    "place", ["mysql://contoso.example/x", "no-such-folder/provgate.sqlite3"], ids=["another database", "no folder"]
)
def test_a_place_that_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path, place: str) -> None:
    """House style: what happened, and what to do."""
    with pytest.raises(StoreRefused):
        Store.open(place if "://" in place else tmp_path / place)


HOT = [
    "row",
    "key_holder",
    "in_flight",
    "due",
    "targets_due",
    "unpublished",
    "unheard",
    "read_backs",
    "trails",
    "mark_published",
    "heard",
    "hasten",
    "leave_shadow",
    "died",
    "tried",
    "reopen_events",
    "unbury",
    "population",
    "drop_identity",
    "wished",
    "owner",
    "close_events",
    "past",
    "deprovisioned",
    "tally",
    "failures_since",
    "target",
    "keys",
    "by_user_name_key",
    "by_external_id_key",
    "by_work_email_key",
    "by_display_name_key",
    "by_account_key",
    "by_account_id",
    "page",
    "total",
    "scan",
    "counts",
    "oldest_waiting",
    "waiting",
    "flying",
    "in_state",
    "dead",
    "dead_of_target",
    "dead_of_cause",
    "dead_of_both",
    "dead_causes",
    "events_of",
    "attempts_of",
    "event_document",
    "resource_of_event",
    "wish_members",
    "unwish_members",
    "unwish_others",
    "drop_unwished",
    "settle_added",
    "settle_removed",
    "unsettle_members",
    "forget_member",
    "member_steps",
    "member_waiting",
    "referred",
    "unsettle_member",
    "unsettle_relinked",
    "refer_in_flight",
    "refer_again",
    "wished_members",
    "is_member",
    "groups_of",
    "modify_groups_of",
    "scan_back",
    "places",
    "event",
    "purge_events",
    "purge_attempts",
    "purge_audit",
    "purge_resources",
    "erase_resource",
    "erase_events",
    "erase_attempts",
]


@pytest.mark.parametrize("name", HOT)
async def test_no_statement_reads_a_whole_table(tmp_path: Path, name: str) -> None:
    """100,000 resources may not make a request slower than ten do: every statement goes through an index."""
    location = str(tmp_path / "provgate.sqlite3")
    await opened_and_closed(location)
    statement = statements_of("sqlite")[name]

    with closing(sqlite3.connect(location)) as driver:
        plan = driver.execute(f"EXPLAIN QUERY PLAN {statement.sql}", statement.bind({})).fetchall()

    steps = [str(step[3]) for step in plan]
    whole = [s for s in steps if s.startswith("SCAN") and s.split()[1] in METADATA.tables and " USING " not in s]
    assert whole == [], steps
