"""Chaos over all products at once: `python -m tests.faults.soak --minutes 5 --seed 7`.

People and groups of an emulated Entra join, leave, change, are deleted and come back, while the products misbehave, processes are
killed and frozen, NATS loses everything once, the configuration file is rewritten, one target goes through shadow mode, and every
target is repaired once. Then all faults are lifted, and every product must hold what Entra wishes: the table says so per target
and promise. Ends with 0 when all of them hold, 1 when one does not. The seed repeats the choices, not their timing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy.emulators import entra
from schemas import logs
from tests.e2e.running import Product, a_session, eventually, leaks
from tests.faults.soak_products import INTEGRATION_USER, KINDS, MAPPED_GROUPS, TEAMS, Account, Kind
from tests.faults.soak_system import PARTS, WORKERS, System
from tests.faults.test_kill import open_events

PEOPLE_MAX = 60
PEOPLE_FIRST = 20
GROUPS_FIRST = 5
STRANGERS = 3
CONVERGE_MAX_S = 300.0
SETTLE_MAX_S = 150.0
QUIET_CYCLES_MAX = 4
MINUTES_MAX = 240.0
FREEZE_MAX_S = 40.0
SHOWN_MAX = 60
WIDTH_MIN = 170
"""The table has a column per promise."""
PROMISES = (
    "converged",  # nothing waits any more
    "accounts",  # every account is as Entra wishes
    "groups",
    "doubles",  # no account twice
    "strangers",  # accounts that were never ours are as they were
    "deletions",  # nobody was deleted whom Entra did not delete
    "invitations",  # nobody was invited twice
    "entra",  # Entra was refused nothing, and its last cycle finds nothing to do
    "dead",  # no dead letter
    "misuse",  # nothing at the product that no correct client does
    "compared",  # the gateway's own comparison finds no difference
)


class Target:
    """One product of the soak with the directory and the provisioning job of its application."""

    def __init__(self, kind: Kind, seed: int) -> None:
        self.kind = kind
        self.chance = random.Random(f"{seed}:{kind.name}")
        self.pool = entra.make_people(
            PEOPLE_MAX, seed=seed, prefix=kind.name.replace("-", ""), app_roles=kind.roles, teams=TEAMS
        )
        for number, person in enumerate(self.pool):
            person.given_name, person.surname = f"Givenary{number}", f"Surnary{number}"
        first, self.pool = self.pool[:PEOPLE_FIRST], self.pool[PEOPLE_FIRST:]
        self.groups = entra.make_groups(first, GROUPS_FIRST, seed=seed) if kind.groups else []
        self.directory = entra.Directory(first, self.groups)
        self.spare_mobiles = [person.mobile for person in entra.make_people(400, seed=seed)[PEOPLE_MAX:]]
        self.job: entra.ProvisioningJob
        self.strangers: dict[str, dict[str, Any]] = {}
        self.strangers_groups: dict[str, dict[str, Any]] = {}
        self.changes: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.cycles = 0
        self.replaced: set[str] = set()
        self.number = PEOPLE_MAX
        self.problems: dict[str, list[str]] = {promise: [] for promise in PROMISES}
        self.effects = 0
        self.hurried = 0

    # ---- what happens in the directory

    def people(self, **wanted: bool) -> list[entra.Person]:
        """People the target has, in this state."""
        return [
            person
            for person in self.directory.people.values()
            if person.object_id in self.job.links
            and all(getattr(person, name) is value for name, value in wanted.items())
        ]

    def change(self) -> None:
        """One thing happens."""
        verbs = {
            "join": 10,
            "unassign": 5,
            "assign": 8,
            "disable": 7,
            "enable": 9,
            "soft_delete": 6,
            "restore": 7,
            "hard_delete": 4,
            "rehire": 0 if self.kind.keeps_names else 6,
            "name": 14,
            "mobile": 10,
            "rename": 8,
            "role": 12,
            "team": 6,
            "department": 6,
            "manager": 8 if self.kind.managers else 0,
            "group": 16 if self.groups else 0,
        }
        verb = self.chance.choices(tuple(verbs), tuple(verbs.values()))[0]
        if getattr(self, f"_{verb}")() is not False:
            self.changes[verb] += 1

    def _one(self, **wanted: bool) -> entra.Person | None:
        people = self.people(**wanted)
        return self.chance.choice(people) if people else None

    def _join(self) -> bool:
        if not self.pool:
            return False
        person = self.pool.pop(0)
        person.manager = None
        self.directory.add(person)
        if groups := self._living_groups():
            self.directory.add_members(self.chance.choice(groups), person)
        return True

    def _gone_from_groups(self, person: entra.Person) -> None:
        for group in self.directory.groups.values():
            if person.object_id in group.members:
                self.directory.remove_members(group, person)

    def _unassign(self) -> bool:
        person = self._one(in_scope=True)
        if person is None:
            return False
        self._gone_from_groups(person)
        self.directory.unassign(person)
        return True

    def _assign(self) -> bool:
        person = self._one(assigned=False, soft_deleted=False)
        return person is not None and self.directory.assign(person) is person

    def _disable(self) -> bool:
        person = self._one(in_scope=True, account_enabled=True)
        return person is not None and self.directory.disable(person) is person

    def _enable(self) -> bool:
        person = self._one(in_scope=True, account_enabled=False)
        return person is not None and self.directory.enable(person) is person

    def _soft_delete(self) -> bool:
        person = self._one(in_scope=True)
        if person is None:
            return False
        self._gone_from_groups(person)
        for report in self.directory.people.values():
            if report.manager == person.object_id:
                self.directory.set(report, manager=None)
        self.directory.soft_delete(person)
        return True

    def _restore(self) -> bool:
        person = self._one(assigned=True, soft_deleted=True, hard_deleted=False)
        return person is not None and self.directory.restore(person) is person

    def _hard_delete(self) -> bool:
        person = self._one(assigned=True, soft_deleted=True, hard_deleted=False)
        return person is not None and self.directory.hard_delete(person) is person

    def _rehire(self) -> bool:
        """The same name, number and address as somebody who is gone for good; to Entra it is somebody else.

        Once each: a name that its second owner has just given up is still the second owner's to Entra's query.
        """
        taken = {self.kind.key(person) for person in self.directory.people.values() if not person.hard_deleted}
        gone = [
            person
            for person in self.directory.people.values()
            if person.hard_deleted
            and person.object_id not in self.job.links
            and person.object_id not in self.replaced
            and self.kind.key(person) not in taken
        ]
        if not gone:
            return False
        old = self.chance.choice(gone)
        self.replaced.add(old.object_id)
        self.number += 1
        again = entra.make_people(1, seed=self.chance.randrange(10**9), app_roles=self.kind.roles, teams=TEAMS)[0]
        again.object_id, fresh = old.object_id, again.object_id
        for name in ("user_principal_name", "mail", "mail_nickname", "mobile", "employee_id", "display_name"):
            setattr(again, name, getattr(old, name))
        again.object_id, again.manager = fresh, None
        again.given_name, again.surname = f"Givenary{self.number}", f"Surnary{self.number}"
        self.directory.add(again)
        return True

    def _name(self) -> bool:
        person = self._one(in_scope=True)
        if person is None:
            return False
        self.number += 1
        self.directory.set(person, surname=f"Surnary{self.number}", display_name=f"Shownary {self.number}")
        return True

    def _mobile(self) -> bool:
        person = self._one(in_scope=True)
        if person is None or not self.spare_mobiles:
            return False
        self.directory.set(person, mobile=self.spare_mobiles.pop())
        return True

    def _rename(self) -> bool:
        person = self._one(in_scope=True)
        if person is None:
            return False
        self.number += 1
        name = f"renamed{self.number}.{self.kind.name}"
        self.directory.set(person, user_principal_name=f"{name}@contoso.example", mail=f"{name}@example.com")
        return True

    def _role(self) -> bool:
        person = self._one(in_scope=True)
        if person is None:
            return False
        several = 1 if self.kind.name == "talkdesk" else self.chance.randint(1, 2)
        self.directory.set(person, app_role_assignments=self.chance.sample(self.kind.roles, several))
        return True

    def _team(self) -> bool:
        person = self._one(in_scope=True)
        if person is None:
            return False
        self.directory.set(person, extensionAttribute1=self.chance.choice(TEAMS))
        return True

    def _department(self) -> bool:
        person = self._one(in_scope=True)
        if person is None:
            return False
        self.directory.set(person, department=f"Department {self.chance.randrange(100)}", job_title="Position 9")
        return True

    def _manager(self) -> bool:
        person, manager = self._one(in_scope=True), self._one(in_scope=True, account_enabled=True)
        if person is None or manager is None or person is manager:
            return False
        self.directory.set(person, manager=manager.object_id)
        return True

    def _living_groups(self) -> list[entra.Group]:
        return [group for group in self.directory.groups.values() if group.in_scope]

    def _group(self) -> bool:
        linked = [group for group in self._living_groups() if group.object_id in self.job.group_links]
        person = self._one(in_scope=True)
        if not linked or person is None:
            return False
        group = self.chance.choice(linked)
        self.number += 1
        match self.chance.choices(("add", "remove", "rename", "new", "delete"), (40, 30, 10, 6, 4))[0]:
            case "add":
                self.directory.add_members(group, person)
            case "remove" if group.members:
                self.directory.remove_members(group, self.chance.choice(group.members))
            case "rename":
                self.directory.rename_group(group, f"Group renamed {self.number}")
            case "new":
                fresh = entra.make_groups([person], 1, seed=self.chance.randrange(10**9), prefix=f"New{self.number}")
                self.directory.add_group(fresh[0])
            case "delete" if len(linked) > MAPPED_GROUPS:
                self.directory.delete_group(group)
            case _:
                return False
        return True

    # ---- what Entra does

    async def cycle(self, *, again: bool = False) -> entra.CycleReport:
        """One cycle; with `again`, an initial one, which looks at everybody."""
        if self.job.quarantine is not None:
            self.job.restart()
        if again:
            self.job.watermark = -1
        report = await self.job.incremental_cycle()
        self.cycles += 1
        for entry in self.job.log:
            if entry.status == "Failure":
                self.failures[entry.error_code] += 1
                if entry.error_code in ("InvalidAnchor", "DuplicateTargetEntries", entra.SERVICE_INCOMPATIBLE):
                    said = f"{entry.kind} {entry.action} {entry.error_code} {entry.status_code} {entry.message}"
                    self.problems["entra"].append(f"{entry.object_id}: {said} {entry.response_body[:200]}")
        report.entries = list(self.job.log)
        self.job.log.clear()
        return report


class Soak:
    """One run.

    Args:
        minutes: how long the chaos lasts.
        seed: decides every choice.
        data: where everything is kept.
        kinds: the products.
    """

    def __init__(self, minutes: float, seed: int, data: Path, kinds: tuple[Kind, ...]) -> None:
        self.chaos_s = minutes * 60
        self.seed = seed
        self.chance = random.Random(seed)
        self.targets = [Target(kind, seed) for kind in kinds]
        self.system = System(data, kinds, {target.kind.name: target.groups for target in self.targets})
        self.products: dict[str, Product] = {}
        self.faults: Counter[str] = Counter()
        self.happened: list[str] = []
        self.common: dict[str, list[str]] = {"leaks": [], "open events": [], "alive": []}
        self.session: aiohttp.ClientSession
        self.started = 0.0
        self.doing = "starts"
        self.took: dict[str, float] = {}

    def _note(self, what: str) -> None:
        self.happened.append(f"{time.monotonic() - self.started:7.1f} s {what}")

    async def run(self) -> None:
        """All of it; the problems stand at the targets and in `common` afterwards."""
        async with a_session() as self.session, contextlib.AsyncExitStack() as jobs:
            async with self.system:
                self.products = {
                    target.kind.name: self.system.product(self.session, target.kind.name) for target in self.targets
                }
                for target in self.targets:
                    name = target.kind.name
                    target.job = entra.ProvisioningJob(
                        self.system.tenant_url(name),
                        self.system.tokens[name],
                        target.directory,
                        target.kind.mapping,
                        connections=2,
                        escrow=entra.EVERY_CYCLE,
                        provision_groups=target.kind.groups is not None,
                        probe_groups=target.kind.groups is not None,
                        seed=self.seed,
                    )
                    await jobs.enter_async_context(target.job)
                    await self._seed(target)
                self.started = time.monotonic()
                await self._chaos()
                self.doing = "everything is lifted"
                await self._lift()
                began = time.monotonic()
                await self._converge()
                self.took["converged after s"] = time.monotonic() - began
                self.doing = "compares"
                for target in self.targets:
                    await self._judge(target)
            self.common["open events"] += [str(event) for event in open_events(self.system.data)]
            self._look_for_leaks()

    async def _seed(self, target: Target) -> None:
        kind, product = target.kind, self.products[target.kind.name]
        if kind.first:
            await product.control("POST", "seed", kind.first)
        strangers = [kind.stranger(number) for number in range(STRANGERS)]
        ids = (await product.control("POST", "seed", {"users": strangers}))["ids"]
        if kind.strangers_group is not None:
            keys = [next(iter(stranger.values())) for stranger in strangers]
            await product.control("POST", "seed", {"groups": [kind.strangers_group(keys, ids)]})
        state = await product.control("GET", "state")
        target.strangers = dict(state["users"])
        target.strangers_groups = dict(state.get("groups", {}))
        ours = [kind.ours(person) for person in list(target.directory.people.values())[:2]]
        await product.control("POST", "seed", {"users": ours})

    # ---- chaos

    async def _chaos(self) -> None:
        self.doing = "chaos"
        tasks = [asyncio.ensure_future(self._entra(target)) for target in self.targets]
        tasks += [asyncio.ensure_future(work()) for work in (self._break_products, self._kill, self._operate)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def share(self) -> float:
        """How much of the chaos is over."""
        return (time.monotonic() - self.started) / self.chaos_s if self.started else 0.0

    async def _rest(self, least_s: float, most_s: float) -> None:
        await asyncio.sleep(self.chance.uniform(least_s, most_s))  # the pace of the chaos, not a wait for something

    async def _entra(self, target: Target) -> None:
        await target.cycle()
        while self.share < 1:
            for _ in range(target.chance.randint(1, 4)):
                target.change()
            await target.cycle()
            await asyncio.sleep(target.chance.uniform(0.2, 2.0))

    async def _break_products(self) -> None:
        spared = {target.kind.name: 2 for target in self.targets}
        while self.share < 1:
            name = self.chance.choice(tuple(spared))
            kind = self.chance.choices(
                ("status", "rate_limit", "reset", "drop_response", "truncate", "html", "slow", "stale_read", "auth"),
                (20, 14, 12, 12, 8, 6, 8, 12, 2),
            )[0]
            options = self._fault(kind)
            if kind == "auth":
                if not spared[name]:
                    continue
                spared[name] -= 1
            self.faults[kind] += 1
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                await self.products[name].fails(kind, **options)
            await self._rest(0.3, 1.6)

    def _fault(self, kind: str) -> dict[str, Any]:
        chance = self.chance
        options: dict[str, Any] = {"times": chance.randint(1, 4), "skip": chance.randint(0, 2)}
        if chance.random() < 0.4:
            options["match"] = {"method": chance.choice(("GET", "POST", "PATCH", "PUT", "DELETE"))}
        match kind:
            case "status":
                options |= {"status": chance.choice((500, 502, 503, 504)), "when": chance.choice(("before", "after"))}
                options["times"] = chance.choice((1, 2, 3, 8, 15))
            case "rate_limit":
                at = datetime.now(UTC) + timedelta(seconds=chance.randint(1, 4))
                options["retry_after"] = chance.choice((1, 3, format_datetime(at, usegmt=True), None))
            case "reset" | "html":
                options["when"] = chance.choice(("before", "after"))
            case "truncate":
                options["honest_length"] = chance.random() < 0.5
            case "slow":
                options |= {"delay_s": chance.choice((1.0, 4.0, 20.0)), "when": chance.choice(("before", "after"))}
            case "stale_read":
                options |= {"lag_s": chance.uniform(0.5, 4.0), "times": chance.randint(1, 8)}
        return options

    async def _kill(self) -> None:
        wiped = False
        while self.share < 1:
            await self._rest(6.0, 18.0)
            if not wiped and self.share > 0.4:
                wiped = True
                self._note("nats-server and its data are wiped")
                await self.system.wipe()
                continue
            victims = self.chance.choice(
                (
                    ("gateway",),
                    ("worker",),
                    ("worker-2",),
                    ("nats-server",),
                    WORKERS,
                    (self.chance.choice(self.system.emulators),),
                )
            )
            for victim in victims:
                if self.chance.random() < 0.2:
                    seconds = self.chance.uniform(3.0, FREEZE_MAX_S)
                    self._note(f"{victim} stands still for {seconds:.0f} s")
                    await self.system.freeze(victim, seconds)
                else:
                    self._note(f"{victim} is killed")
                    await self.system.kill(victim)

    async def _operate(self) -> None:
        """What an operator does meanwhile: the file is rewritten, one target goes through shadow mode, all are repaired."""
        shadowed = self.chance.choice(self.targets).kind.name
        steps = [(0.3, "shadow"), (0.3 + min(0.1, 25 / self.chaos_s), "deliver"), (0.6, "repair")]
        while self.share < 1:
            await self._rest(2.0, 8.0)
            if steps and self.share > steps[0][0]:
                match steps.pop(0)[1]:
                    case "shadow":
                        self._note(f"{shadowed} is in shadow mode")
                        self.system.rewrite(shadowed, shadow=True)
                    case "deliver":
                        self._note(f"{shadowed} is delivered to again")
                        self.system.rewrite(shadowed, shadow=False)
                    case "repair":
                        await self._compare_all(repair=True)
            elif self.chance.random() < 0.3:
                level = self.chance.choice(("warning", "information", "debug"))
                self.system.rewrite(self.chance.choice(self.targets).kind.name, log_level=level)
            elif self.chance.random() < 0.3:
                await self._api("POST", f"/targets/{self.chance.choice(self.targets).kind.name}/probe")
        for target in self.targets:
            self.system.rewrite(target.kind.name, shadow=False)

    async def _api(self, method: str, path: str, body: object = None) -> dict[str, Any] | None:
        """The operators' API; None while nobody answers or when it says no."""
        try:
            return await self.system.api(self.session, method, path, body)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    async def _compare_all(self, *, repair: bool) -> None:
        order = {"repair": repair, "approve": repair, "reason": "soak" if repair else ""}
        for target in self.targets:
            said = await self._api("POST", f"/targets/{target.kind.name}/reconcile", order)
            self._note(f"{target.kind.name} is compared{' and repaired' if repair else ''}: {said is not None}")

    # ---- the end

    async def _lift(self) -> None:
        await self.system.replaced((*PARTS, *self.system.emulators))
        for target in self.targets:
            await eventually(partial(self._behaves, target.kind.name), SETTLE_MAX_S, f"{target.kind.name} answers")

        async def served() -> bool:
            status = await self._api("GET", "/status")
            return status is not None and all(target["workers"] for target in status["targets"])

        await eventually(served, SETTLE_MAX_S, "a worker serves every target again", every_s=0.5)
        for target in self.targets:
            await self._api("POST", f"/targets/{target.kind.name}/probe")

    async def _behaves(self, name: str) -> bool:
        """Take all faults from a product; False while it is not there."""
        try:
            await self.products[name].control("DELETE", "faults")
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False
        return True

    async def _converge(self) -> None:
        """Let Entra run until it has nothing to do and nothing waits any more."""

        async def end(target: Target) -> None:
            name = target.kind.name
            for number in range(QUIET_CYCLES_MAX):
                self.doing = f"cycle {number + 1} of the end"
                if not number:
                    target.job.restart()
                report = await target.cycle(again=True)
                with contextlib.suppress(AssertionError):
                    await eventually(lambda: self._nothing_waits(name), SETTLE_MAX_S, name, every_s=0.5)
                written = [entry for entry in report.entries if entry.status == "Success"]
                failed = [
                    entry for entry in report.entries if entry.status == "Failure" and self._counts(target, entry)
                ]
                if number and not written and not failed:
                    break
            else:
                target.problems["entra"] += [
                    f"its last cycle: {entry.kind} {entry.action} {entry.status} of {entry.object_id} {entry.error_code}"
                    f" {entry.message} {entry.modified or entry.response_body[:300]}"
                    for entry in (*written, *failed)
                ]

        try:
            async with asyncio.timeout(CONVERGE_MAX_S):
                await asyncio.gather(*map(end, self.targets))
        except TimeoutError:
            self.common["alive"].append(f"not at rest within {CONVERGE_MAX_S:.0f} s")

    def _counts(self, target: Target, entry: entra.LogEntry) -> bool:
        """A manager who was switched off before the first cycle saw them is none that could be named."""
        return entry.error_code != "UnresolvedReference"

    async def _nothing_waits(self, name: str) -> bool:
        status = await self._api("GET", "/status")
        counts = next((t["counts"] for t in status["targets"] if t["name"] == name), None) if status else None
        return counts is not None and counts["waiting"] == counts["blocked"] == 0

    async def _judge(self, target: Target) -> None:
        kind, problems = target.kind, target.problems
        product = self.products[kind.name]
        shown = await self._api("GET", f"/targets/{kind.name}")
        if shown is None:
            self.common["alive"].append(f"the operators' API does not answer about {kind.name}")
        elif shown["target"]["counts"]["waiting"] or shown["target"]["counts"]["blocked"]:
            problems["converged"] += [f"{shown['target']['states']}", *(str(one) for one in shown["waiting"])]
        await self._judge_comparison(target)
        state = await product.control("GET", "state")
        effects = await product.effects()
        target.effects = len(effects)
        accounts = [account for account in kind.accounts(state) if account.id not in target.strangers]
        for table, before in (("users", target.strangers), ("groups", target.strangers_groups)):
            for id_, record in before.items():
                if state[table].get(id_) != record:
                    problems["strangers"].append(f"{table} {id_} was {record}, is {state[table].get(id_)}")
        problems["strangers"] += [
            f"an effect on a stranger: {effect}"
            for effect in effects
            if effect["account_id"] in target.strangers or effect["account_id"] in target.strangers_groups
        ]
        by_key = self._judge_accounts(target, accounts)
        if kind.groups is not None:
            self._judge_groups(target, state, by_key)
        self._judge_effects(target, effects, accounts)
        misuse = (await product.control("GET", "violations"))["violations"]
        # Workers share the limit by counting each other: who has just died or come back is counted a moment later.
        hurried = [found for found in misuse if found["code"] == "rate_exceeded"]
        target.hurried = len(hurried)
        problems["misuse"] += [
            str(one) for one in misuse if one not in hurried or len(hurried) > len(self.system.kills)
        ]
        dead = await self._api("GET", "/dead?limit=500") or {"items": []}
        problems["dead"] += [str(item) for item in dead["items"] if item["target"] == kind.name]
        held = await self._api("GET", "/held?limit=500") or {"items": []}
        problems["dead"] += [f"held: {item}" for item in held["items"] if item["target"] == kind.name]

    def _judge_accounts(self, target: Target, accounts: list[Account]) -> dict[str, Account]:
        kind, problems = target.kind, target.problems
        by_key: dict[str, Account] = {}
        for account in accounts:
            if account.key in by_key:
                problems["doubles"].append(f"{account} and {by_key[account.key]}")
            by_key[account.key] = account
        wanted: set[str] = set()
        for person in target.directory.people.values():
            if not person.in_scope or person.object_id not in target.job.links:
                if person.in_scope and not person.is_soft_deleted:
                    problems["accounts"].append(f"{person.object_id} was never provisioned")
                continue
            key = kind.key(person)
            wanted.add(key)
            if key not in by_key:
                problems["accounts"].append(f"{person.object_id} has no account {key}")
                continue
            account = by_key[key]
            wish = kind.wished(person)
            manager = wish.get("manager")
            if not person.account_enabled or (manager and manager not in target.job.links):
                wish.pop("manager", None)
            wrong = {
                name: (value, account.values[name]) for name, value in wish.items() if account.values[name] != value
            }
            if account.active is person.is_soft_deleted:
                wrong["active"] = (not person.is_soft_deleted, account.active)
            if wrong:
                problems["accounts"].append(f"{person.object_id} at {account.id} (wished, held): {wrong}")
        finals: dict[str, bool] = {}
        for person in target.directory.people.values():
            final = target.job.final_wishes.get(person.object_id)
            # A second owner of the name may have been switched off only.
            finals[kind.key(person)] = final is not None and final.deleted
        gone = {key for key, deleted in finals.items() if deleted} - wanted
        for account in accounts:
            if account.key in wanted:
                continue
            if account.active:
                problems["accounts"].append(f"{account} is active, and nobody's")
            elif account.key in gone and not kind.stays:
                problems["accounts"].append(f"{account} was deleted, and is there")
        return by_key

    def _judge_groups(self, target: Target, state: dict[str, Any], by_key: dict[str, Account]) -> None:
        kind, problems = target.kind, target.problems["groups"]
        assert kind.groups is not None
        held = [group for group in kind.groups(state) if group.id not in target.strangers_groups]
        by_object = {group.key: group for group in held}
        if len(by_object) != len(held):
            target.problems["doubles"].append(f"groups: {held}")
        mapped = {group.object_id for group in target.groups[:MAPPED_GROUPS]} if kind.name == "sofa" else None
        for group in target.directory.groups.values():
            there = by_object.pop(group.object_id, None)
            if not group.in_scope or (mapped is not None and group.object_id not in mapped):
                if there is not None:
                    problems.append(f"{group.object_id} shall not be there: {there}")
                continue
            if there is None:
                problems.append(f"{group.object_id} is not there")
                continue
            if there.name != group.display_name:
                problems.append(f"{group.object_id} is called {there.name!r}, shall be {group.display_name!r}")
            members = [target.directory[member] for member in group.members if member in target.job.links]
            wanted = {account.id for person in members if (account := by_key.get(kind.key(person)))}
            if wanted != there.members:
                lacks, has = sorted(wanted - there.members), sorted(there.members - wanted)
                problems.append(f"{group.object_id} ({there.id}) lacks {lacks}, has {has} too many")
        problems += [f"a group of nobody: {group}" for group in by_object.values()]

    def _judge_effects(self, target: Target, effects: list[dict[str, Any]], accounts: list[Account]) -> None:
        kind = target.kind
        deletable = {person.object_id for person in target.directory.people.values() if person.hard_deleted}
        deleted = [effect for effect in effects if effect["op"] == "delete"]
        if kind.name != "babelforce":  # a login is renamed there by making the account anew
            most = len([one for one in deletable if (w := target.job.final_wishes.get(one)) and w.deleted])
            if len(deleted) > most:
                target.problems["deletions"].append(f"{len(deleted)} accounts were deleted, {most} people")
        invited = Counter(effect["account_id"] for effect in effects if effect["op"] == "invite")
        made = {effect["account_id"] for effect in effects if effect["op"] == "create"}
        target.problems["invitations"] += [f"{one} was invited {n} times" for one, n in invited.items() if n > 1]
        if kind.name == "bobs-business":
            target.problems["invitations"] += [f"{one} was invited, not made here" for one in invited.keys() - made]
            # Who was switched off before the call came to it is invited when switched on.
            owed = {account.id for account in accounts if account.active} & made - invited.keys()
            target.problems["invitations"] += [f"{one} was made, never invited" for one in owed]
        living: dict[str, str] = {}
        for effect in effects:
            if effect["op"] == "create":
                values = json.dumps(effect["values"], sort_keys=True)
                if effect["natural_key"] in living:
                    target.problems["doubles"].append(f"{effect['natural_key']} was made twice: {values}")
                living[effect["natural_key"]] = effect["account_id"]
            elif effect["op"] in ("delete", "update", "login"):
                living = {key: one for key, one in living.items() if one != effect["account_id"]}

    async def _judge_comparison(self, target: Target) -> None:
        name = target.kind.name
        said = await self._api("POST", f"/targets/{name}/reconcile", {"repair": False})
        if said is None:
            target.problems["compared"].append("could not be begun")
            return
        found: dict[str, Any] = {}

        async def ended() -> bool:
            view = await self._api("GET", f"/targets/{name}/reconcile?run_id={said['run_id']}")
            found.update(view or {})
            return view is not None and not view["running"] and (view["report"] or {}).get("id") == said["run_id"]

        try:
            await eventually(ended, SETTLE_MAX_S, f"{name} is compared", every_s=0.5)
        except AssertionError as exc:
            target.problems["compared"].append(str(exc))
            return
        report = found["report"]
        # Strangers are unknown to it, and so is who was deleted here and stays there.
        differs = {
            name: count
            for name, count in report["counts"].items()
            if count and name not in ("unknown", "group_unknown")
        }
        if differs or report["state"] not in ("good", "differs") or report["code"]:
            target.problems["compared"].append(f"{report['state']} {report['code']} {differs} {report['codes']}")

    def _look_for_leaks(self) -> None:
        words = [
            (self.system.data / "secrets" / path.name).read_text() for path in (self.system.data / "secrets").iterdir()
        ]
        words += [*self.system.tokens.values(), "Surnary", "Givenary", "Shownary"]
        found = leaks(self.system.data / "logs", words)
        self.common["leaks"] += [line for line in found if INTEGRATION_USER not in line]

    # ---- what is said

    @property
    def violations(self) -> list[str]:
        """Every broken promise."""
        return [
            *(
                f"{target.kind.name}: {promise}: {problem}"
                for target in self.targets
                for promise, problems in target.problems.items()
                for problem in dict.fromkeys(problems)
            ),
            *(f"{promise}: {problem}" for promise, problems in self.common.items() for problem in problems),
        ]

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "seed": self.seed,
            "minutes": round(self.chaos_s / 60, 2),
            "kills": dict(Counter(self.system.kills)),
            "faults": dict(self.faults),
            "configuration_writes": self.system.rewritten,
            "took": {name: round(value, 1) for name, value in self.took.items()},
            "targets": {
                target.kind.name: {
                    "cycles": target.cycles,
                    "changes": dict(target.changes),
                    "acknowledged": len(target.job.acknowledged),
                    "effects": target.effects,
                    "too_fast": target.hurried,
                    "failures_seen_by_entra": dict(target.failures),
                    "problems": {name: found for name, found in target.problems.items() if found},
                }
                for target in self.targets
            },
            "common": self.common,
            "happened": self.happened,
            "violations": self.violations,
        }

    def show(self, console: Console) -> None:
        """The table, and the first problems."""
        table = Table("target", "changes", "writes", "effects", *PROMISES, box=None, pad_edge=False)
        for target in self.targets:
            verdicts = [f"[red]{len(found)}[/]" if (found := target.problems[name]) else "ok" for name in PROMISES]
            counts = (sum(target.changes.values()), len(target.job.acknowledged), target.effects)
            table.add_row(target.kind.name, *map(str, counts), *verdicts)
        console.print(table)
        console.print("; ".join(f"{name}: {len(found) or 'ok'}" for name, found in self.common.items()))
        kills = ", ".join(f"{name} {count}" for name, count in Counter(self.system.kills).items())
        console.print(
            f"kills: {kills}; faults: {sum(self.faults.values())}; took {self.document()['took']}", soft_wrap=True
        )
        for problem in self.violations[:SHOWN_MAX]:
            console.print(problem, soft_wrap=True, markup=False)
        console.print(f"seed {self.seed}: {len(self.violations)} violations", style="bold")


async def _run(soak: Soak, console: Console) -> None:
    columns = (TextColumn("{task.description:40}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starts", total=1.0)

        async def draw() -> None:
            while True:
                killed = len(soak.system.kills)
                progress.update(bar, completed=min(1.0, soak.share), description=f"{soak.doing}, {killed} kills")
                await asyncio.sleep(0.25)

        drawing = asyncio.ensure_future(draw())
        try:
            await soak.run()
        finally:
            drawing.cancel()


def main(arguments: list[str]) -> int:
    """1 when a promise is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--targets", default="", help="names, separated by commas; all when left out")
    parser.add_argument("--json", action="store_true", help="the figures on standard output")
    parser.add_argument("--data", type=Path, help="an empty folder to keep; a temporary one when left out")
    parsed = parser.parse_args(arguments)
    if not 0 < parsed.minutes <= MINUTES_MAX:
        parser.error(f"--minutes: above 0, at most {MINUTES_MAX:g}")
    wanted = set(filter(None, parsed.targets.split(",")))
    if unknown := wanted - {kind.name for kind in KINDS}:
        parser.error(f"--targets: {', '.join(sorted(unknown))}; there are {', '.join(kind.name for kind in KINDS)}")
    logs.configure("soak", level="warning", pretty=True)
    console = Console(stderr=True, highlight=False)
    console.width = max(console.width, WIDTH_MIN)
    console.print(f"seed {parsed.seed}, {parsed.minutes:g} minutes")
    data = parsed.data or Path(tempfile.mkdtemp(prefix="provgate-soak-"))
    data.mkdir(parents=True, exist_ok=True)
    soak = Soak(parsed.minutes, parsed.seed, data.resolve(), tuple(k for k in KINDS if not wanted or k.name in wanted))
    asyncio.run(_run(soak, console))
    soak.show(console)
    if parsed.json:
        print(json.dumps(soak.document(), indent=2, default=str))
    if soak.violations:
        console.print(f"kept: {data}")
        return 1
    if parsed.data is None:
        shutil.rmtree(data)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
