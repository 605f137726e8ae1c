"""Figures of the store: `python -m tests.gateway.bench_store [sqlite path or postgresql URL]`.

Accept: a new resource with its keys, identity and event. Settle: load it, record the report, close the event, link, save.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from gateway.ledger import Keys, Ledger
from gateway.lifecycle import Row, accept, dispatch, settle
from gateway.store import Store
from schemas.config import RetrySettings
from schemas.events import Outcome
from schemas.states import Change, Result

JOBS = 20_000
ROWS = 100_000
IN_FLIGHT = 64
READS = 5_000
NOW = 1_750_000_000.0
DOCUMENT = {
    "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"],
    "userName": "",
    "externalId": "",
    "active": True,
    "displayName": "Ada Example",
    "name": {"givenName": "Ada", "familyName": "Example"},
    "emails": [{"type": "work", "primary": True, "value": "ada@contoso.example"}],
    "phoneNumbers": [{"type": "work", "value": "+441234567890"}, {"type": "mobile", "value": "+441234567891"}],
    "title": "Analyst",
    "preferredLanguage": "en-GB",
}
RETRY = RetrySettings()


def accept_job(n: int) -> Callable[[Ledger], Any]:
    """What a POST does to the store."""
    name = f"user{n}@contoso.example"
    body = msgspec.json.encode({**DOCUMENT, "userName": name, "externalId": f"external-{n}"})
    keys = Keys(name, f"external-{n}", name, f"ada example {n}")

    def job(ledger: Ledger) -> None:
        row = Row(id=f"r{n:08d}", target=f"target-{n % 5}")
        assert ledger.set_keys(row, keys) is None
        accept(
            row,
            event_id=f"e{n:08d}",
            document=body,
            identities=(f"userName:{name}",),
            change=Change.CREATE,
            changed=("userName",),
            now=NOW + n,
            acknowledged=True,
        )
        ledger.save(row)
        ledger.add_event(row, actor="entra")

    return job


def dispatch_job(n: int) -> Callable[[Ledger], Any]:
    """What sending does to the store."""

    def job(ledger: Ledger) -> None:
        row = ledger.row(f"r{n:08d}")
        assert row is not None
        assert dispatch(row, NOW, ledger, "observe") == []
        ledger.save(row)

    return job


def settle_job(n: int) -> Callable[[Ledger], Any]:
    """What folding an outcome does to the store."""
    outcome = Outcome(
        id=f"o{n:08d}",
        event_id=f"e{n:08d}",
        target=f"target-{n % 5}",
        kind="user",
        resource=f"r{n:08d}",
        generation=1,
        fence=1,
        delivery=1,
        result=Result.APPLIED,
        identities=(f"userName:user{n}@contoso.example",),
        account_id=f"account-{n}",
        created=True,
        worker="worker-1",
        started_at=NOW,
        ended_at=NOW + 0.2,
    )

    def job(ledger: Ledger) -> None:
        assert ledger.record_attempt(outcome)
        row = ledger.row(outcome.resource)
        assert row is not None
        settle(row, outcome, NOW, ledger, RETRY, adopt=True, jitter=0.5)
        ledger.close_events(row.id, 1, "applied", NOW)
        ledger.save(row)

    return job


async def rate(store: Store, make: Callable[[int], Callable[[Ledger], Any]], numbers: range, in_flight: int) -> float:
    """Jobs per second with so many in flight."""
    waiting = iter([make(n) for n in numbers])

    async def one_after_the_other() -> None:
        for job in waiting:
            await store.run(job)

    started = time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(in_flight)))
    return len(numbers) / (time.perf_counter() - started)


async def reads(store: Store, query: Callable[[int], Callable[[Any], Any]]) -> float:
    """Microseconds per read, one after the other, spread over all rows."""
    queries = [query((n * 7919) % ROWS) for n in range(READS)]
    started = time.perf_counter()
    for one in queries:
        assert await store.read(one)
    return (time.perf_counter() - started) / READS * 1e6


async def main(location: str) -> None:
    """Print the figures."""
    store = Store.open(location)
    print(f"{store.engine}, {IN_FLIGHT} in flight")
    print(f"accept    {await rate(store, accept_job, range(JOBS), IN_FLIGHT):8.0f} jobs/s")
    print(f"dispatch  {await rate(store, dispatch_job, range(JOBS), IN_FLIGHT):8.0f} jobs/s")
    print(f"settle    {await rate(store, settle_job, range(JOBS), IN_FLIGHT):8.0f} jobs/s")
    filled = await rate(store, accept_job, range(JOBS, ROWS), 1_000)
    print(f"accept    {filled:8.0f} jobs/s with 1000 in flight, up to {ROWS} rows")
    found = await reads(store, lambda n: lambda r: r.visible_row(f"target-{n % 5}", "user", f"r{n:08d}"))
    print(f"visible_row  {found:5.0f} us on {ROWS} rows")
    for attribute, value in {"user_name": "user{}@contoso.example", "external_id": "external-{}"}.items():
        found = await reads(
            store, lambda n, a=attribute, v=value: lambda r: r.by_key(f"target-{n % 5}", "user", a, v.format(n))
        )
        print(f"by_key       {found:5.0f} us by {attribute}")
    for name, query in {
        "population": lambda ledger: ledger.population("target-1"),
        "targets_due": lambda ledger: ledger.targets_due(NOW * 2),
        "due, 64 rows": lambda ledger: ledger.due("target-1", NOW * 2, 64),
        "in_flight": lambda ledger: ledger.in_flight("target-1"),
        "tally": lambda ledger: ledger.tally("target-1", NOW - 60),
        "trails": lambda ledger: ledger.trails(500),
    }.items():
        started = time.perf_counter()
        await store.run(query)
        print(f"{name:14s} {(time.perf_counter() - started) * 1e3:6.2f} ms")
    for name, query in {
        "page at 15000": lambda r: r.page("target-1", "user", 15_000, 100),
        "counts": lambda r: r.counts("target-1"),
        "oldest_waiting": lambda r: r.oldest_waiting("target-1"),
        "find_person": lambda r: r.find_person("user77@contoso.example"),
    }.items():
        started = time.perf_counter()
        assert await store.read_slow(query)
        print(f"{name:14s} {(time.perf_counter() - started) * 1e3:6.2f} ms")
    await store.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else str(Path(folder) / "bench.sqlite3")))
