"""kill -9 of any process at any moment, and loss of all NATS data: what was acknowledged is applied once and in order.

`PROVGATE_FAULT_WRITES` sets how many writes are made (2,000 by default), `PROVGATE_FAULT_SEED` repeats a run's choices, and
`PROVGATE_FAULT_FREEZES` adds so many freezes of up to 40 s to the kills (none by default: they take long).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import Product, a_session, eventually
from tests.faults.installation import PRODUCTS, Installation
from tests.faults.writing import Caller, Person

WRITES = int(os.environ.get("PROVGATE_FAULT_WRITES", "2000"))
SEED = int(os.environ.get("PROVGATE_FAULT_SEED", str(random.SystemRandom().randrange(10**6))))
FREEZES = int(os.environ.get("PROVGATE_FAULT_FREEZES", "0"))
FREEZE_MAX_S = 40.0
"""Longer than a delivery may be unheard of (30 s), so that somebody else may have taken it over meanwhile."""
WRITES_PER_KILL = int(os.environ.get("PROVGATE_FAULT_WRITES_PER_KILL", "170"))
PEOPLE_PER_PRODUCT = 60
LANES = 12
CONVERGE_MAX_S = 150.0
"""A delivery lost with NATS rests 40 s before it is sent again (design rules R1 and R9); whatever waits for it comes after."""
AT_WORK_MAX_S = 6.0
VICTIMS = ("gateway", "worker", "nats-server")


@pytest.mark.slow
@pytest.mark.timeout(120 + WRITES // 5 + FREEZES * FREEZE_MAX_S + CONVERGE_MAX_S)
async def test_every_acknowledged_write_is_applied_once_and_in_order_whatever_is_killed(tmp_path: Path) -> None:
    """Promises P1, P2 and P3, checked against the journals of the products after kill -9 of gateway, worker and nats-server at
    random and one loss of the whole NATS data directory."""
    chance = random.Random(SEED)
    print(f"\nseed {SEED}, {WRITES} writes")
    people = [
        Person(number=index, target="telemessage", user_name=f"447700900{index:03d}")
        for index in range(PEOPLE_PER_PRODUCT)
    ] + [
        Person(number=500 + index, target="talkdesk", user_name=f"p{500 + index:04d}@contoso.example")
        for index in range(PEOPLE_PER_PRODUCT)
    ]
    chance.shuffle(people)
    async with Installation(tmp_path) as installed, a_session() as session:
        caller = Caller(session, {name: installed.scim(session, name) for name in PRODUCTS}, chance)
        started = time.monotonic()
        writing = [asyncio.ensure_future(write(caller, people[lane::LANES])) for lane in range(LANES)]
        products = [installed.product(session, name) for name in PRODUCTS]
        killing = asyncio.ensure_future(kill_at_random(installed, caller, products, random.Random(SEED + 1)))
        try:
            await asyncio.gather(*writing)
            await killing
        finally:
            for task in (*writing, killing):
                task.cancel()
        assert caller.refused == []
        wrote_s = time.monotonic() - started
        print(f"wrote {caller.acknowledged} in {wrote_s:.1f} s; again: {dict(caller.again)}; killed: {installed.kills}")

        await installed.replaced()
        dead_letters = await converged(installed, session)
        print(f"converged after {time.monotonic() - started - wrote_s:.1f} s")
        assert dead_letters == []

        problems: list[str] = []
        for name in PRODUCTS:
            product = installed.product(session, name)
            mine = [person for person in people if person.target == name]
            problems += await wrong_accounts(product, mine)
            problems += wrong_effects(name, await product.effects(), mine)
            problems += [str(found) for found in (await product.control("GET", "violations"))["violations"]]
            problems += await wrong_answers(caller, mine)
        assert not problems, f"seed {SEED}: {len(problems)} problems\n" + "\n".join(problems[:40])
    assert open_events(tmp_path) == [], f"seed {SEED}"


async def write(caller: Caller, people: list[Person]) -> None:
    """One lane: the writes of its people, one after another, until there were enough in all."""
    chance = random.Random(f"{SEED}:{people[0].number}")
    while caller.acknowledged < WRITES:
        await caller.write_once(chance.choice(people))


async def kill_at_random(
    installed: Installation, caller: Caller, products: list[Product], chance: random.Random
) -> None:
    """Kill something each time another share of the writes is done; in the middle the data of NATS go, too.

    Two times in three the system was at work again before; the third time the next kill meets it while it comes back.
    """
    count = max(4, WRITES // WRITES_PER_KILL)
    moments = sorted(chance.sample(range(WRITES // 20, WRITES - WRITES // 20), count))
    victims = [*VICTIMS, *chance.choices(VICTIMS, k=count - 3)]
    chance.shuffle(victims)
    freezes = set(chance.sample(range(count), min(count, FREEZES)))
    for number, (moment, victim) in enumerate(zip(moments, victims, strict=True)):

        async def is_time(moment: int = moment) -> bool:
            return caller.acknowledged >= moment

        if number and chance.random() < 2 / 3:
            await at_work(products)
        await eventually(is_time, 600.0, f"{moment} writes", every_s=0.005)
        await asyncio.sleep(chance.random() * 0.05)  # anywhere inside a write, not always right after one
        if number == count // 2:
            await installed.wipe()
        elif number in freezes:
            await installed.freeze(victim, chance.uniform(5.0, FREEZE_MAX_S))
        else:
            await installed.kill(victim)


async def at_work(products: list[Product]) -> None:
    """Wait, but not long, until something more arrives at the products."""
    before = sum([await product.now() for product in products])

    async def more_arrived() -> bool:
        return sum([await product.now() for product in products]) > before

    with contextlib.suppress(AssertionError):
        await eventually(more_arrived, AT_WORK_MAX_S, "something arrives", every_s=0.2)


async def converged(installed: Installation, session: Any) -> list[dict[str, Any]]:
    """Wait until nothing waits any more; the dead letters there are."""
    last: dict[str, Any] = {}

    async def nothing_waits() -> bool:
        try:
            last.update(await installed.api(session, "GET", "/status"))
        except OSError:
            return False
        return all(t["counts"]["waiting"] == t["counts"]["blocked"] == 0 for t in last["targets"])

    try:
        await eventually(nothing_waits, CONVERGE_MAX_S, "everything is applied", every_s=0.25)
    except AssertionError:
        print("bus connected:", last["bus_connected"], [(t["states"], t["workers"]) for t in last["targets"]])
        print(last["waiting"])
        for path in (installed.data / "logs").glob("*.log"):
            print(f"{path.name}:", *path.read_text(errors="replace").splitlines()[-15:], sep="\n  ")
        raise
    return list((await installed.api(session, "GET", "/dead"))["items"])


async def wrong_accounts(product: Product, people: list[Person]) -> list[str]:
    """What the product holds in the end, compared with the last acknowledged wish of everybody."""
    problems = []
    users = await product.users()
    by_name = Counter(user["userName"].casefold() for user in users)
    problems += [f"two accounts of one name: {name}" for name, count in by_name.items() if count > 1]
    held = {user["userName"]: user for user in users}
    for person in people:
        account = held.pop(person.user_name, None)
        if person.target == "telemessage":
            if account is None:
                if person.alive:
                    problems.append(f"{person}: no account")
                continue
            active, given, family = account["status"] == "active", account["firstName"], account["lastName"]
            if not person.alive:
                if active:
                    problems.append(f"{person}: was deleted, and the account is active")
                continue
        else:
            if not person.alive:
                if account is not None:
                    problems.append(f"{person}: was deleted, and there is {account}")
                continue
            if account is None:
                problems.append(f"{person}: no account")
                continue
            active, given, family = account["active"], account["givenName"], account["familyName"]
            if account["externalId"] != person.external_id or account["rolesString"] != person.role:
                problems.append(f"{person}: holds {account}")
        if (active, given, family) != (person.active, person.given, f"V{person.version}"):
            problems.append(f"{person}: holds {account}")
    problems += [f"an account of nobody: {account}" for account in held.values()]
    return problems


def wrong_effects(name: str, effects: list[dict[str, Any]], people: list[Person]) -> list[str]:
    """What the journal says that must not be: a second creation, a change made twice, a step back, a wish nobody had."""
    problems = []
    family = "lastName" if name == "telemessage" else "familyName"
    owners = {user_name: person for person in people for user_name in [person.user_name, *person.names]}
    creations: Counter[str] = Counter()
    newest: dict[str, int] = defaultdict(int)
    changes: Counter[tuple[str, int]] = Counter()
    living: dict[str, str] = {}
    for effect in effects:
        account, values, key = effect["account_id"], effect["values"], effect["natural_key"].casefold()
        person = owners.get(effect["natural_key"])
        if person is None:
            problems.append(f"an effect on nobody: {effect}")
            continue
        if effect["op"] == "create":
            creations[values["externalId"] if name == "talkdesk" else key] += 1
            if key in living:
                problems.append(f"{key} created while {living[key]} lived: {effect}")
            living[key] = account
        elif effect["op"] == "delete":
            living = {k: a for k, a in living.items() if a != account}
        if family in values:
            version = int(values[family].removeprefix("V"))
            if version not in person.versions:
                problems.append(f"a wish nobody had: {effect}")
            if version < newest[account]:
                problems.append(f"{account} went back from V{newest[account]} to V{version}: {effect}")
            newest[account] = max(newest[account], version)
            if family in effect["changed"]:
                changes[account, version] += 1
    problems += [f"{key} was created {count} times" for key, count in creations.items() if count > 1]
    problems += [f"{account} was changed to V{version} {n} times" for (account, version), n in changes.items() if n > 1]
    for person in people:
        key = person.external_id if name == "talkdesk" else person.user_name
        if person.alive and creations[key] != 1:
            problems.append(f"{person} was created {creations[key]} times")
    return problems


async def wrong_answers(caller: Caller, people: list[Person]) -> list[str]:
    """What SCIM shows in the end, compared with the last acknowledged wish."""
    problems = []
    for person in people:
        scim = caller.scims[person.target]
        found = await scim.find(person.user_name)
        if not person.alive:
            if found:
                problems.append(f"{person}: was deleted, and is found")
            continue
        shown = found[0] if len(found) == 1 else {}
        name = {"givenName": person.given, "familyName": f"V{person.version}"}
        if (shown.get("id"), shown.get("active"), shown.get("name")) != (person.resource, person.active, name):
            problems.append(f"{person}: shown as {found}")
    return problems


def open_events(data: Path) -> list[tuple[Any, ...]]:
    """Invariant I10, read from the stopped store: accepted generations that have no outcome."""
    store = sqlite3.connect(f"file:{data / 'provgate.sqlite3'}?mode=ro", uri=True)
    try:
        return store.execute("select resource_id, generation from event where outcome is null").fetchall()
    finally:
        store.close()


def test_the_check_of_the_journals_sees_what_must_not_be() -> None:
    """A check that can find nothing would prove nothing: each kind of wrong effect is reported when it is planted."""
    person = Person(
        number=1,
        target="talkdesk",
        user_name="p1@contoso.example",
        incarnation=1,
        version=2,
        alive=True,
        versions=[1, 2],
    )

    def effect(op: str, version: int, account: str = "a", changed: tuple[str, ...] = ("familyName",)) -> dict[str, Any]:
        values = {"familyName": f"V{version}", "externalId": "p0001-1"} if op != "delete" else {}
        key = person.user_name
        return {"op": op, "account_id": account, "natural_key": key, "values": values, "changed": list(changed)}

    right = [effect("create", 1), effect("update", 2), effect("update", 2, changed=())]
    assert wrong_effects("talkdesk", right, [person]) == []
    for planted, said in (
        ([effect("create", 1), effect("create", 2, "b")], "was created 2 times"),
        ([effect("create", 1), effect("create", 2, "b")], "created while a lived"),
        ([effect("create", 2), effect("update", 1)], "went back"),
        ([effect("create", 1), effect("update", 2), effect("update", 2)], "was changed to V2 2 times"),
        ([effect("create", 1), effect("update", 7)], "a wish nobody had"),
        ([effect("update", 2)], "was created 0 times"),
        ([effect("create", 1) | {"natural_key": "stranger@contoso.example"}], "an effect on nobody"),
    ):
        assert any(said in problem for problem in wrong_effects("talkdesk", planted, [person])), (planted, said)
