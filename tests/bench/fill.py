"""Fill a store before a gateway starts: `python -m tests.bench.fill STORE COUNT [MEMBERS ...]`.

Every user is accepted, delivered and settled by the engine's own functions and saved by one job of the store; what is left out is
the bus and the history of attempts, which no filter looks at. Prints one number per second: how many are done. After the users
come groups, `GROUPS_PER_SIZE` of every size given, whose members are the first users.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from deploy.emulators.entra import OBSERVE, make_people
from gateway.ledger import Ledger
from gateway.lifecycle import Row, accept, dispatch, settle
from gateway.patch import MemberChange
from gateway.store import Store
from gateway.visibility import keys_of
from schemas.config import RetrySettings
from schemas.events import Outcome, identity
from schemas.states import Change, Result

AT_ONCE = 2_000
GROUPS_PER_SIZE = 10
"""Of sizes below `SMALL`, so that one more member hardly makes a group larger; of others there is one."""
SMALL = 1_000
SETTLED_AGO_S = 3_600.0
"""Long enough ago that a gateway does not read it back after finding new streams."""
SEED = 77
PREFIX = "stored"
TARGET = "observe"


def user_names(count: int) -> list[str]:
    """The user names that a filled store knows."""
    return [person.user_principal_name for person in make_people(count, SEED, prefix=PREFIX, managers=False)]


def resource_id(number: int) -> str:
    """The id of a stored user."""
    return f"00000000-0000-4000-8000-{number:012d}"


def group_ids(size: int) -> list[str]:
    """The ids of the stored groups of one size."""
    count = GROUPS_PER_SIZE if size < SMALL else 1
    return [f"00000000-0000-4000-9000-{size:07d}{number:05d}" for number in range(count)]


def applied(ledger: Ledger, row: Row, document: dict[str, Any], name: str, now: float) -> None:
    """Accept, dispatch and settle a new row, by the engine's own functions."""
    if ledger.set_keys(row, keys_of(document, row.kind)) is not None:
        raise ValueError("two of the same name")
    names = (identity(name, document[name]),)
    accept(
        row,
        event_id=f"filled-{row.id}",
        document=msgspec.json.encode(document),
        identities=names,
        change=Change.CREATE,
        changed=tuple(document),
        now=now,
        acknowledged=True,
    )
    dispatch(row, now, ledger, "observe")
    outcome = Outcome(
        id=f"outcome-{row.id}",
        event_id=row.event_id,
        target=TARGET,
        kind=row.kind,
        resource=row.id,
        generation=row.generation,
        fence=row.fence,
        delivery=1,
        result=Result.APPLIED,
        identities=names,
        account_id=f"account-{row.id}",
        created=True,
        started_at=now,
        ended_at=now,
    )
    settle(row, outcome, now, ledger, RetrySettings(), adopt=True, jitter=0.0)
    ledger.save(row)
    ledger.add_event(row, actor="entra")


def stored_group(group: str, size: int, now: float) -> Callable[[Ledger], None]:
    """The job that puts one applied group with members into the store."""
    members = [resource_id(number) for number in range(size)]

    def job(ledger: Ledger) -> None:
        row = Row(id=group, target=TARGET, kind="group")
        applied(ledger, row, {"displayName": f"Group {group}", "externalId": group}, "displayName", now)
        ledger.change_members(row.id, [MemberChange("add", tuple(members))])
        ledger.settle_members(row.id, members, (), anew=False)
        dispatch(row, now, ledger, "observe")  # finds that no member is left to be sent
        ledger.save(row)

    return job


def stored_user(number: int, document: dict[str, Any], now: float) -> Callable[[Ledger], None]:
    """The job that puts one applied user into the store."""

    def job(ledger: Ledger) -> None:
        applied(ledger, Row(id=resource_id(number), target=TARGET), document, "userName", now)

    return job


async def fill(path: Path, count: int, sizes: Sequence[int] = ()) -> None:
    """Put `count` users into the store at `path`, and groups of these sizes."""
    people = make_people(count, SEED, prefix=PREFIX, managers=False)
    store = Store.open(path)
    try:
        now, told = time.time() - SETTLED_AGO_S, time.monotonic()
        for start in range(0, count, AT_ONCE):
            jobs = []
            for number, person in enumerate(people[start : start + AT_ONCE], start):
                values = OBSERVE.values(person, creating=True)
                jobs.append(store.run(stored_user(number, OBSERVE.document(values, "flag"), now)))
            await asyncio.gather(*jobs)
            if time.monotonic() - told >= 1.0:
                told = time.monotonic()
                print(start + len(jobs), flush=True)
        for size in sizes:
            for group in group_ids(size):
                await store.run(stored_group(group, size, now))
    finally:
        await store.close()


if __name__ == "__main__":
    uvloop.run(fill(Path(sys.argv[1]), int(sys.argv[2]), [int(size) for size in sys.argv[3:]]))
