"""What a reconciliation must not conclude or do: each guard, by what would go wrong without it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway import reports_store as kept
from gateway.app import SystemClock
from gateway.comparison import NOTHING_NEW_MAX, ComparisonFailed, Progress, take_accounts
from gateway.reports_store import Report
from gateway.spool import Spool
from schemas.comparison import ListedAccount, Listing
from schemas.specs import RateLimit
from schemas.states import State
from tests.conftest import NatsServer
from tests.gateway.compared import TARGET, Compared, LongDays, compared, until
from workers.app import Worker
from workers.limits import CallLimit


class Between:
    """Questions to workers, with something that happens before the n-th one of a kind."""

    def __init__(
        self, here: Compared, what: Callable[[], Awaitable[Any]], *, do: str, nth: int = 1, kind: str = ""
    ) -> None:
        self.here, self.what, self.do, self.left, self.kind = here, what, do, nth, kind

    async def __call__(self, target: str, question: Mapping[str, Any], wait_s: float) -> bytes | None:
        if question["do"] == self.do and question.get("kind", "") in ("", self.kind or question.get("kind", "")):
            self.left -= 1
            if self.left == 0:
                await self.what()
        return await self.here.gateway.bus.ask(target, question, wait_s)


async def test_what_happens_while_the_lists_are_read_is_no_difference(nats_server: NatsServer, tmp_path: Path) -> None:
    """Compared with the rows as of the end: deleted, changed, adopted meanwhile; nothing newer is overwritten by a repair."""
    async with compared(tmp_path, nats_server) as here:
        ids = {name: await here.created(name) for name in ("ada", "bea", "cyd", "dan")}
        here.product.seed({"users": [{"userName": "fay@contoso.example"}, {"userName": "stranger@contoso.example"}]})
        for name in ("cyd", "dan"):
            here.change(f"{name}@contoso.example", givenName="Somebody")
        intake, adopted = here.gateway.intake, []
        await intake.create(TARGET, "group", {"displayName": "Sales"})

        async def after_the_list() -> None:
            await intake.delete(TARGET, "user", ids["ada"])
            await here.is_in(ids["ada"], State.GONE)
            adopted.append(await here.created("fay"))

        async def at_the_end() -> None:
            name = {"givenName": "Cydney", "familyName": "Lovelace"}
            await intake.change(TARGET, "user", await here.row(ids["cyd"]), lambda document: {**document, "name": name})
            await here.is_in(ids["cyd"], State.APPLIED)

        first = Between(here, after_the_list, do="expect")
        second = Between(here, at_the_end, do="list", kind="group")

        async def both(target: str, question: Mapping[str, Any], wait_s: float) -> bytes | None:
            if question["do"] == "list":
                return await second(target, question, wait_s)
            return await first(target, question, wait_s)

        report, findings = await here.reconciled(here.another(LongDays(), both), repair=True)

        assert [(one.class_, one.resource) for one in findings] == [("drifted", ids["dan"]), ("unknown", "")]
        assert report.repaired == 1
        await here.is_in(ids["dan"], State.APPLIED)
        accounts = here.accounts()
        assert "ada@contoso.example" not in accounts
        assert accounts["cyd@contoso.example"]["givenName"] == "Cydney"
        assert (await here.row(adopted[0])).account_id == accounts["fay@contoso.example"]["id"]


async def test_a_worker_that_dies_a_pause_and_a_gateway_that_is_gone_end_clearly(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Another worker goes on with the list; a pause in the middle stops it at once; what broke off says so, and the next runs."""
    async with compared(tmp_path, nats_server) as here:
        await here.created("ada")
        here.product.seed({"users": [{"userName": f"u{n}@contoso.example"} for n in range(250)]})
        others: list[asyncio.Task[int]] = []
        second = Worker(here.gateway.config, here.folder)

        async def worker_dies() -> None:
            here.worker.stop()
            question = {"do": "identities", "document": {}}
            while await here.gateway.bus.ask(TARGET, question, 0.5) is not None:
                pass  # it answers until it has ended
            others.append(asyncio.create_task(second.run()))
            await until(second.serving.is_set, "another worker serves")
            second.served[TARGET].limit = CallLimit(None)

        try:
            whole, _ = await here.reconciled(here.another(LongDays(), Between(here, worker_dies, do="list", nth=2)))
            assert (whole.code, whole.state, whole.listed, whole.compared) == ("", "differs", 251, 1)

            async def pause() -> None:
                assert (await here.typed("target", "pause", TARGET, "--reason", "maintenance")).code == 0

            asked = len(here.product.recorded())
            paused, _ = await here.reconciled(here.another(LongDays(), Between(here, pause, do="list", nth=2)))
            assert (paused.state, paused.code) == ("failed", "paused")
            assert len(here.product.recorded()) - asked == 2
            assert (await here.typed("target", "resume", TARGET)).code == 0

            now = time.time()
            gone = Report(
                target=TARGET, id="gone", state="running", mode="report", started_at=now, ended_at=now, size=251
            )
            await here.gateway.store.run(lambda ledger: kept.save_run(ledger, gone))
            await here.gateway.store.run(
                lambda ledger: kept.take_lease(ledger, f"reconcile:{TARGET}", "gone", now, 180.0)
            )
            assert (await here.reconciled())[0].code == "running_elsewhere"
            await here.another(LongDays()).take_over()
            assert (await here.reconciled())[0].state == "differs"
            view = await here.said("reconcile", TARGET, "--runs", code=0)
            ended = {run["id"]: (run["state"], run["code"]) for run in view["runs"]}
            assert ended["gone"] == ("failed", "broken_off")
            assert next(iter(ended.values())) == ("differs", "")
            assert view["next_at"] > now
        finally:
            second.stop()
            await asyncio.gather(*others, return_exceptions=True)


async def test_a_repair_stops_with_the_target_and_says_how_far_it_came(nats_server: NatsServer, tmp_path: Path) -> None:
    """The report and its differences stay; one that is held can be refused, once, and is not shown as waiting any more."""
    async with compared(tmp_path, nats_server, reconcile="held_count_min = 100") as here:
        for n in range(25):
            await here.created(f"p{n}")
            here.change(f"p{n}@contoso.example", givenName="Somebody")
        clock = LongDays()
        by, rest = here.another(clock), clock.sleep

        async def paused_in_the_middle(seconds: float) -> None:
            await rest(seconds)
            if by.running[TARGET].repaired:
                await here.typed("target", "pause", TARGET, "--reason", "maintenance")

        clock.sleep = paused_in_the_middle  # type: ignore[method-assign]
        stopped, findings = await here.reconciled(by, repair=True)

        assert (stopped.state, stopped.code, stopped.repaired) == ("differs", "paused", 20)
        assert "20" in stopped.message
        assert len(findings) == 25
        assert by.start(TARGET, repair=False) is by.start(TARGET, repair=True), "two at once are one"
        await until(lambda: TARGET not in by.running)
        await here.typed("target", "resume", TARGET)

        await here.gateway.store.run(
            lambda ledger: kept.save_run(
                ledger, msgspec.structs.replace(stopped, id="zz", state="held", started_at=time.time())
            )
        )
        assert (await here.typed("reconcile", TARGET, "--refuse")).code == 2, "a reason is needed"
        said = await here.said("reconcile", TARGET, "--refuse", "--reason", "the product is being migrated", code=1)
        assert said["report"]["state"] == "refused"
        assert "waits for an approval" not in (await here.typed("status")).out
        again = await here.typed("reconcile", TARGET, "--refuse", "--reason", "again")
        assert again.code != 0
        assert "waits for an answer" in " ".join((again.out + again.err).split())


async def test_lists_that_lag_and_first_lists_that_are_short_conclude_nothing(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Settle time; the links known here measure the first list; who was deactivated instead of deleted is not unknown."""
    settings = 'on_delete = "deactivate"'
    async with compared(tmp_path, nats_server, reconcile="settle_s = 300.0", settings=settings) as here:
        ids = [await here.created(f"p{n}") for n in range(6)]
        left = await here.created("left")
        await here.gateway.intake.delete(TARGET, "user", left)
        await here.is_in(left, State.GONE)
        assert here.accounts()["left@contoso.example"]["active"] is False
        account = here.accounts()["p0@contoso.example"]
        here.remove("p0@contoso.example")  # as a list that lags would show it

        lagging, _ = await here.reconciled()
        assert (lagging.state, lagging.compared, lagging.counts) == ("good", 0, {})

        later = LongDays()
        later.added_s = 301.0
        settled, findings = await here.reconciled(here.another(later))
        assert [(one.class_, one.resource) for one in findings] == [("missing", ids[0])]
        assert settled.compared == 6

        resource = here.product.scim_resources[0]
        here.product.control("by hand", here.product.put(resource, account))
        here.change("left@contoso.example", active=True)
        again, findings = await here.reconciled(here.another(later))
        assert [(one.class_, one.code) for one in findings] == [("unknown", "deleted_here")]
        assert again.counts == {"unknown": 1}

    async with compared(tmp_path / "first", nats_server) as here:
        for n in range(5):
            await here.created(f"p{n}")
        for n in range(2):
            here.remove(f"p{n}@contoso.example")
        short, findings = await here.reconciled(repair=True)
        assert (short.state, short.code, findings) == ("failed", "list_too_short", [])


@pytest.mark.parametrize("cursors", [("a", "b"), ("a", "b", "c"), None])
async def test_a_list_that_goes_round_in_circles_ends(cursors: tuple[str, ...] | None) -> None:
    """A page token that does not advance, comes back, or is always another one for the same page."""
    tokens = itertools.cycle(cursors) if cursors else map(str, itertools.count())
    account = ListedAccount(account_id="a1", identities=("userName:ada",), active=True)
    asked = 0

    async def ask(target: str, question: Mapping[str, Any], wait_s: float) -> bytes:
        nonlocal asked
        asked += 1
        return msgspec.json.encode(Listing(ok=True, accounts=(account,), cursor=next(tokens), calls=1))

    async def pace(calls: int) -> None:
        """At once."""

    spool = Spool()
    with pytest.raises(ComparisonFailed, match="again and again"):
        await take_accounts(spool, ask, "bobs", Progress(), pace, LongDays().sleep)
    assert asked <= NOTHING_NEW_MAX + 1
    spool.close()


async def test_a_fifth_of_the_budget_is_all_it_takes_while_entra_writes(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Measured in the product's own journal: calls of the comparison in any second, with a load of writes beside it."""
    async with compared(tmp_path, nats_server) as here:
        here.product.seed({"users": [{"userName": f"u{n}@contoso.example"} for n in range(900)]})
        quick = msgspec.structs.replace(here.gateway.presences.spec(TARGET), rate_limit=RateLimit(calls=40, per_s=1.0))
        await here.created("first")  # the connector lists all accounts once, to find an address in any spelling
        since = here.product.recorded()[-1]["seq"]
        by = here.another(SystemClock(), spec_of=lambda target: quick)
        run, made = by.start(TARGET, repair=False), 0
        while run.report is None:
            made += 1
            await here.created(f"p{made}")
        calls = here.product.recorded(since)
        lists = [call["at"] for call in calls if call["method"] == "GET" and "count=" in call["query"]]
        assert run.report.state == "differs"
        assert len(lists) >= 10
        assert made >= 3
        busiest = max(sum(at <= other < at + 1.0 for other in lists) for at in lists)
        assert busiest <= 40 * 0.2 + 1
