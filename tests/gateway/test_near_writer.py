"""The store whose jobs run in the event loop and are committed in a thread keeps the same promises."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.ledger import Keys
from gateway.lifecycle import Row
from gateway.store import Store, StoreClosed, StoreConflict, StoreOverloaded, Transaction

TARGET = "talkdesk"
WAIT_S = 20.0


def a_row(name: str) -> Row:
    """A resource of that id."""
    return Row(id=name, target=TARGET, event_id=f"event-{name}", generation=1)


@pytest.fixture
def location(tmp_path: Path, empty_store: Path) -> Path:
    """Where the store lies."""
    return Path(shutil.copy(empty_store, tmp_path / "store.sqlite3"))


@pytest.fixture
async def store(location: Path) -> AsyncIterator[Store]:
    """A store of this kind."""
    opened = Store.open(location, jobs_in_loop=True)
    yield opened
    await opened.close()


def committed(location: Path) -> list[str]:
    """What another process would see."""
    other = sqlite3.connect(location)
    try:
        return [name for (name,) in other.execute("SELECT id FROM resource ORDER BY id")]
    finally:
        other.close()


async def test_a_result_comes_after_the_commit_and_never_before(store: Store, location: Path) -> None:
    """Committed = acknowledged: when a job's future is done, another connection sees what it wrote."""
    for number in range(30):
        name = f"r{number:02}"
        await store.run(lambda ledger, name=name: ledger.save(a_row(name)))
        assert committed(location)[-1] == name


async def test_jobs_run_in_the_loop_that_asked_once_there_is_a_session(store: Store) -> None:
    """Only the wait for the disk belongs to the thread; the first batch connects, which may take long."""
    await store.run(lambda ledger: None)

    assert await store.run(lambda ledger: threading.current_thread()) is threading.current_thread()


async def test_jobs_that_wait_together_share_a_transaction_and_keep_their_order(store: Store) -> None:
    """Many requests cost one wait for the disk, and each sees what those before it wrote."""
    await store.run(lambda ledger: None)
    asked: list[tuple[int, int]] = []

    def job(ledger: Transaction, number: int) -> None:
        asked.append((number, ledger.population(TARGET)))
        ledger.save(a_row(f"r{number}"))

    await asyncio.gather(*(store.run(lambda ledger, n=n: job(ledger, n)) for n in range(150)))

    assert asked == [(number, number) for number in range(150)]


async def test_a_job_that_fails_takes_nobody_with_it(store: Store, location: Path) -> None:
    """Only the guilty one fails; what the others of its batch wrote is there, and written once."""
    await store.run(lambda ledger: None)

    def fails(ledger: Transaction) -> None:
        ledger.save(a_row("never"))
        raise ValueError("wrong")

    def clashes(ledger: Transaction) -> None:
        row = a_row("clash")
        ledger.save(row)
        row.account_id = "account"
        ledger.save(row)

    def has_account(ledger: Transaction) -> None:
        row = a_row("first")
        row.account_id = "account"
        ledger.save(row)

    results = await asyncio.gather(
        store.run(has_account),
        store.run(fails),
        store.run(clashes),
        store.run(lambda ledger: ledger.save(a_row("last"))),
        return_exceptions=True,
    )

    assert [type(result) for result in results] == [type(None), ValueError, StoreConflict, type(None)]
    assert committed(location) == ["first", "last"]


async def test_what_nobody_waits_for_runs_too_also_from_outside_the_loop(store: Store) -> None:
    """`post` needs no event loop; a failing one harms nobody."""

    def fails(ledger: Transaction) -> None:
        raise ValueError("wrong")

    store.post(fails)
    store.post(lambda ledger: ledger.save(a_row("here")))
    await asyncio.to_thread(store.post, lambda ledger: ledger.save(a_row("there")))

    async with asyncio.timeout(WAIT_S):
        while await store.run(lambda ledger: ledger.population(TARGET)) < 2:  # noqa: ASYNC110 - a condition, with a bound
            await asyncio.sleep(0)


async def test_more_jobs_than_the_bound_are_refused_at_once(location: Path) -> None:
    """Every queue has a bound: a slow disk must not fill the memory."""
    store = Store.open(location, jobs_waiting_max=3, jobs_in_loop=True)
    waiting = [store.run(lambda ledger: ledger.population(TARGET)) for _ in range(3)]

    with pytest.raises(StoreOverloaded):
        store.run(lambda ledger: ledger.population(TARGET))

    assert await asyncio.gather(*waiting) == [0, 0, 0]
    await store.close()


async def test_a_writer_that_dies_leaves_nobody_waiting(location: Path) -> None:
    """A thread that can fail settles the futures that wait on it, those in line as well."""
    store = Store.open(location, jobs_in_loop=True)
    await store.run(lambda ledger: None)

    def dies(ledger: Transaction) -> None:
        raise SystemExit(1)

    running = [store.run(dies), *(store.run(lambda ledger: ledger.save(a_row("a"))) for _ in range(200))]

    async with asyncio.timeout(WAIT_S):
        ended = await asyncio.gather(*running, return_exceptions=True)
    assert {type(error) for error in ended} == {StoreClosed}
    assert committed(location) == []
    with pytest.raises(StoreClosed, match="died"):
        store.run(lambda ledger: None)
    await store.close()


async def test_close_finishes_what_was_accepted_and_refuses_the_rest(location: Path) -> None:
    """A graceful stop loses nothing that was queued."""
    store = Store.open(location, jobs_in_loop=True)
    queued = [store.run(lambda ledger, n=n: ledger.save(a_row(f"r{n:03}"))) for n in range(500)]

    await store.close()

    await asyncio.gather(*queued)
    with pytest.raises(StoreClosed):
        store.run(lambda ledger: None)
    assert committed(location) == [f"r{n:03}" for n in range(500)]


def test_several_loops_may_use_a_store_one_after_the_other(location: Path) -> None:
    """The store belongs to no event loop; jobs of one that has ended do not stop those of the next."""
    store = Store.open(location, jobs_in_loop=True)

    async def write(name: str) -> None:
        await store.run(lambda ledger: ledger.save(a_row(name)))

    for name in ("a", "b", "c"):
        asyncio.run(write(name))
    asyncio.run(store.close())

    assert committed(location) == ["a", "b", "c"]


async def test_a_locked_database_fails_those_who_ask_and_is_used_again_afterwards(store: Store, location: Path) -> None:
    """A batch that cannot begin is repeated in the thread with a new connection; the lock of another ends, and all is well."""
    await store.run(lambda ledger: None)
    other = sqlite3.connect(location, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
    release.start()

    await store.run(lambda ledger: ledger.save(a_row("a")))

    release.join()
    other.close()
    assert committed(location) == ["a"]


WRITING = """
import asyncio, sys
from tests.gateway.test_near_writer import a_row
from gateway.ledger import Keys
from gateway.store import Store

async def main():
    store = Store.open(sys.argv[1], jobs_in_loop=True)

    async def stream(start):
        number = start
        while True:
            def job(ledger):
                row = a_row(f"r{number}")
                assert ledger.set_keys(row, Keys(user_name=f"user{number}")) is None
                ledger.save(row)
                ledger.add_event(row, actor="entra")
            await store.run(job)
            sys.stdout.write(f"{number}\\n")
            sys.stdout.flush()
            number += 20

    await asyncio.gather(*(stream(start) for start in range(20)))

asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_kill_9(location: Path) -> None:
    """P1: the process is killed in the middle of writing; every acknowledged job is there afterwards, whole."""
    writer = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", WRITING, str(location)], stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(500)]
    writer.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in writer.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
    writer.wait(WAIT_S)
    writer.stdout.close()

    store = Store.open(location, jobs_in_loop=True)
    for number in acknowledged:
        found = await store.read(
            lambda reader, number=number: reader.by_key(TARGET, "user", "user_name", f"user{number}")
        )
        assert [row.id for row in found] == [f"r{number}"]
        assert await store.run(
            lambda ledger, number=number: ledger.set_keys(a_row("x"), Keys(user_name=f"user{number}"))
        )
    await store.close()
