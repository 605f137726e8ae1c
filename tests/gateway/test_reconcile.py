"""Reconciliation: what is found, what is repaired and how, and every guard; with a real bus, store, worker and product."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from pathlib import Path

import httpx
import msgspec
import pytest

from gateway import reports_store as kept
from gateway.comparison import sort_differences
from gateway.lifecycle import make_dirty
from gateway.reconcile import JITTER_MAX_S, Reconciler
from gateway.reports_store import Report
from gateway.spool import Finding, Spool
from gateway.store import Store
from schemas.comparison import ExpectedUser, ListedAccount
from schemas.config import TargetSettings, parse
from schemas.errors import ConfigurationError
from schemas.specs import RateLimit
from schemas.states import PRIORITY_REPAIR, State
from tests.conftest import NatsServer
from tests.gateway.compared import TARGET, LongDays, compared
from tests.gateway.test_store import location, postgres, postgres_url, store  # noqa: F401 - fixtures
from tests.waiting import until


async def test_every_class_of_difference_is_found_and_nothing_is_written(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Missing, drift, unknown, double; a report writes nothing, and shows nobody's values."""
    async with compared(tmp_path, nats_server) as here:
        ids = {name: await here.created(name) for name in ("ada", "bea", "cyd", "eve", "fay")}
        here.remove("ada@contoso.example")
        here.change("bea@contoso.example", givenName="Beatrix")
        here.change("cyd@contoso.example", active=False)
        here.product.seed({"users": [{"userName": "stranger@contoso.example"}, {"userName": "EVE@contoso.example"}]})
        before = len(here.writes())

        report, findings = await here.reconciled()

        assert (report.state, report.compared, report.listed) == ("differs", 5, 6)
        assert report.counts == {"missing": 1, "drifted": 2, "double": 1, "unknown": 1}
        found = {(one.class_, one.resource): one for one in findings}
        assert ("missing", ids["ada"]) in found
        assert found["drifted", ids["bea"]].attributes == ("name.givenName",)
        assert found["drifted", ids["cyd"]].attributes == ("active",)
        assert ("double", ids["eve"]) in found
        assert len(here.writes()) == before
        assert "Beatrix" not in str(findings)
        assert {one.label for one in findings if one.class_ == "unknown"} == {"userName:s•••@contoso.example"}

        async with httpx.AsyncClient(trust_env=False) as client:
            page = (await client.get(f"{here.url()}/metrics")).text
        assert f'provgate_drift{{class="drifted",target="{TARGET}"}} 2.0' in page
        shown = await here.said("target", "show", TARGET, code=0)
        assert shown["target"]["reconcile"]["counts"]["drifted"] == 2
        assert "5 differences" in (await here.typed("target", "show", TARGET)).out
        assert (await here.said("reconcile", TARGET, "--last", code=1))["report"]["id"] == report.id


async def test_a_repair_goes_through_the_engine_and_heals_everything(nats_server: NatsServer, tmp_path: Path) -> None:
    """Repair by the existing path: marked dirty, looked at, sent as the ordinary event; what nobody here has is left alone."""
    async with compared(tmp_path, nats_server) as here:
        ids = {name: await here.created(name) for name in ("ada", "bea", "cyd")}
        off = await here.created("dan", active=False)
        here.remove("ada@contoso.example")
        here.change("bea@contoso.example", givenName="Beatrix")
        here.change("dan@contoso.example", active=True)
        here.product.seed({"users": [{"userName": "stranger@contoso.example"}]})
        generations = {one: (await here.row(one)).generation for one in (*ids.values(), off)}

        said = await here.said("reconcile", TARGET, "--repair", code=0)

        assert said["report"]["state"] == "repaired"
        assert said["report"]["counts"] == {"missing": 1, "drifted": 1, "reactivated": 1, "unknown": 1}
        assert said["report"]["repaired"] == 3
        for one in (*ids.values(), off):
            assert (await here.is_in(one, State.APPLIED)).generation == generations[one], "no new wish was made up"
        accounts = here.accounts()
        assert accounts["ada@contoso.example"]["externalId"] == "object-ada"
        assert accounts["bea@contoso.example"]["givenName"] == "Bea"
        assert accounts["dan@contoso.example"]["active"] is False
        assert "stranger@contoso.example" in accounts
        assert (await here.row(ids["cyd"])).fence == 1, "who did not differ was not sent again"
        audited = await here.gateway.store.read_slow(lambda reader: reader.audit(50))
        assert [record.target for record in audited if record.action == "reconcile.repaired"] == [TARGET]

        again, _ = await here.reconciled()
        assert again.counts == {"unknown": 1}


async def test_unusually_many_differences_wait_for_an_operator(nats_server: NatsServer, tmp_path: Path) -> None:
    """More than 5 % is held; an approval needs a reason, and acts on what is so at that moment."""
    async with compared(tmp_path, nats_server, reconcile="held_count_min = 1") as here:
        ids = [await here.created(name) for name in ("ada", "bea")]
        for name in ("ada", "bea"):
            here.change(f"{name}@contoso.example", givenName="Somebody")

        held, _ = await here.reconciled(repair=True)
        assert (held.state, held.repaired) == ("held", 0)
        assert "--approve" in held.message
        assert here.accounts()["ada@contoso.example"]["givenName"] == "Somebody"
        assert not (await here.row(ids[0])).dirty
        waits = await here.typed("status")
        assert "waits for an approval" in " ".join(waits.out.split())

        assert (await here.typed("reconcile", TARGET, "--repair", "--approve")).code == 2, "a reason is needed"
        said = await here.said("reconcile", TARGET, "--repair", "--approve", "--reason", "renamed by mistake", code=0)
        assert said["report"]["repaired"] == 2
        for one in ids:
            await here.is_in(one, State.APPLIED)
        assert here.accounts()["bea@contoso.example"]["givenName"] == "Bea"


async def test_a_broken_or_short_list_concludes_nothing(nats_server: NatsServer, tmp_path: Path) -> None:
    """Incomplete lists and lists below 80 % of the last size are errors, and repair nobody."""
    async with compared(tmp_path, nats_server) as here:
        for name in ("ada", "bea"):
            await here.created(name)
        here.product.seed({"users": [{"userName": f"u{n}@contoso.example"} for n in range(8)]})
        good, _ = await here.reconciled()
        assert (good.size, good.listed) == (10, 10)

        empty = {"Resources": [], "totalResults": 10, "schemas": []}
        here.product.fault("status", method="GET", status=200, body=empty, contains="startIndex")
        broken, findings = await here.reconciled(repair=True)
        here.product.clear_faults()
        assert (broken.state, broken.code, broken.size, findings) == ("failed", "incomplete_list", 10, [])

        for n in range(3):
            here.remove(f"u{n}@contoso.example")
        short, _ = await here.reconciled(repair=True)
        assert (short.state, short.code, short.size, short.listed) == ("failed", "list_too_short", 10, 7)
        assert "without a result" in (await here.typed("reconcile", TARGET, "--last")).out


async def test_a_list_is_not_too_short_because_of_what_was_deleted_here(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Accounts that Entra had deleted are not expected any more, also when a comparison in between broke off."""
    async with compared(tmp_path, nats_server) as here:
        names = [f"p{n}" for n in range(6)]
        ids = [await here.created(name) for name in names]
        assert (await here.reconciled())[0].size == 6

        for one in ids[:4]:
            await here.gateway.intake.delete(TARGET, "user", one)
            await here.is_in(one, State.GONE)
        empty = {"Resources": [], "totalResults": 10, "schemas": []}
        here.product.fault("status", method="GET", status=200, body=empty, contains="startIndex")
        assert (await here.reconciled())[0].code == "incomplete_list"
        here.product.clear_faults()

        after, _ = await here.reconciled()
        assert (after.state, after.listed, after.size) == ("good", 2, 2)


async def test_nothing_is_compared_through_an_open_circuit_or_a_pause(nats_server: NatsServer, tmp_path: Path) -> None:
    """It stops with the circuit, and calls nobody."""
    async with compared(tmp_path, nats_server) as here:
        assert (await here.typed("target", "pause", TARGET, "--reason", "maintenance")).code == 0
        before = len(here.product.recorded())
        report, _ = await here.reconciled(repair=True)
        assert (report.state, report.code) == ("failed", "paused")
        assert len(here.product.recorded()) == before


async def test_what_was_deleted_here_and_is_there_again_goes_only_by_policy_and_marker(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Unknown accounts are never deleted unless the policy allows it and the account carries the externalId we wrote."""
    async with compared(tmp_path, nats_server, reconcile='unknown = "delete-ours"') as here:
        gone = await here.created("ada")
        await here.gateway.intake.delete(TARGET, "user", gone)
        await here.is_in(gone, State.GONE)
        assert here.accounts() == {}
        here.product.seed(
            {
                "users": [
                    {"userName": "ada@contoso.example", "externalId": "object-ada"},
                    {"userName": "bea@contoso.example", "externalId": "object-bea"},
                    {"userName": "cyd@contoso.example"},
                ]
            }
        )

        told, findings = await here.reconciled()
        assert told.counts == {"unknown": 3}
        assert [one.resource for one in findings if one.code == "deleted_here"] == [gone]
        assert len(here.accounts()) == 3

        repaired, _ = await here.reconciled(repair=True)
        assert repaired.repaired == 1
        await here.is_in(gone, State.GONE)
        assert sorted(here.accounts()) == ["bea@contoso.example", "cyd@contoso.example"]


async def test_it_runs_by_itself_when_it_is_due_and_slowly(nats_server: NatsServer, tmp_path: Path) -> None:
    """Modes and every_hours; at most a fifth of the product's five calls a second; repairs go last of all."""
    async with compared(tmp_path, nats_server, reconcile='mode = "repair"\nevery_hours = 12') as here:
        one = await here.created("ada")
        here.product.seed({"users": [{"userName": f"u{n}@contoso.example"} for n in range(250)]})
        here.change("ada@contoso.example", givenName="Somebody")
        clock = LongDays()
        reconciler = here.another(clock)

        async def looked(after_s: float) -> bool:
            clock.added_s += after_s
            await reconciler.look()
            begun = TARGET in reconciler.running
            await until(lambda: TARGET not in reconciler.running)
            return begun

        assert not await looked(60), "not in the first hour"
        assert await looked(3_600 + JITTER_MAX_S)
        report = await here.report()
        assert report is not None
        assert (report.state, report.repaired, report.listed) == ("repaired", 1, 251)
        assert sum(clock.slept) == pytest.approx(2 / (5 * 0.2)), "three calls, a second apart"
        assert not await looked(3_600)
        await here.is_in(one, State.APPLIED)
        assert here.accounts()["ada@contoso.example"]["givenName"] == "Ada"

        row = await here.row(one)
        make_dirty(row, time.time())
        assert (row.priority, row.state) == (PRIORITY_REPAIR, State.QUEUED)


async def test_only_one_gateway_compares_a_target_at_a_time(store: Store) -> None:  # noqa: F811 - the fixture
    """A lease in the store, on both engines: taken, renewed, refused to others, free again when it ends or is given back."""
    now = 1_750_000_000.0

    def take(holder: str, at: float) -> asyncio.Future[bool]:
        return store.run(lambda ledger: kept.take_lease(ledger, "reconcile:bobs", holder, at, 60.0))

    assert await take("one", now)
    assert not await take("two", now + 30)
    assert await take("one", now + 50)
    assert not await take("two", now + 100)
    assert await take("two", now + 111)
    await store.run(lambda ledger: kept.end_lease(ledger, "reconcile:bobs", "one"))
    assert not await take("one", now + 112), "another one's lease stays"
    await store.run(lambda ledger: kept.end_lease(ledger, "reconcile:bobs", "two"))
    assert await take("one", now + 113)


async def test_a_comparison_of_a_slow_product_keeps_its_lease_while_it_rests(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Of several gateways one compares; a rest longer than the lease would hand it to the next, and then neither ever ends."""
    async with compared(tmp_path, nats_server) as here:
        parts, clock = here.gateway, LongDays()
        stolen: list[float] = []

        async def rest(seconds: float) -> None:
            clock.added_s += seconds
            taken = await parts.store.run(
                lambda ledger: kept.take_lease(ledger, f"reconcile:{TARGET}", "other", clock.now(), 60.0)
            )
            if taken:
                stolen.append(seconds)

        clock.sleep = rest  # type: ignore[method-assign]
        here.product.seed({"users": [{"userName": f"u{n}@contoso.example"} for n in range(250)]})
        slow = msgspec.structs.replace(parts.presences.spec(TARGET), rate_limit=RateLimit(calls=1, per_s=120.0))
        reconciler = Reconciler(
            parts.store,
            parts.dispatcher,
            clock,
            lambda: parts.targets,
            parts.bus.ask,
            lambda target: slow,
            parts.presences.serves,
            parts.spawn,
        )
        run = reconciler.start(TARGET, repair=False)
        await until(lambda: run.report is not None)

        assert run.report is not None
        assert (run.report.code, stolen) == ("", [])


async def test_users_are_read_page_by_page_without_sorting_all_of_them(tmp_path: Path) -> None:
    """A comparison reads every user once: a page that sorts whatever follows it would read 100,000 users 500 times."""
    opened = Store.open(tmp_path / "store.sqlite3")
    try:
        statement = kept._statements("sqlite").rows_after
        with contextlib.closing(sqlite3.connect(tmp_path / "store.sqlite3")) as store:
            bound = statement.bind({"target": "bobs", "kind": "user", "after": 1, "limit": 200})
            plan = [row[3] for row in store.execute(f"EXPLAIN QUERY PLAN {statement.sql}", bound)]
        assert plan == ["SEARCH resource USING INTEGER PRIMARY KEY (rowid>?)"]
    finally:
        await opened.close()


async def test_the_last_report_and_its_differences_are_kept_page_by_page(store: Store) -> None:  # noqa: F811
    """The report outlives the process; a new one takes the place of the old one. On both engines."""
    report = Report(
        target="bobs", id="r1", state="differs", mode="report", started_at=1.0, ended_at=2.0, counts={"drifted": 2}
    )
    lines = [
        Finding(n=n, class_=c, code="", resource=f"u{n}", account_id="a\0b", label="", attributes=("x",), message="")
        for n, c in ((1, "drifted"), (2, "unknown"), (3, "drifted"))
    ]
    await store.run(lambda ledger: kept.save_run(ledger, report))
    await store.run(lambda ledger: kept.add_findings(ledger, "bobs", lines))
    assert await store.read_slow(lambda reader: kept.last_report(reader, "bobs")) == report
    assert await store.read_slow(lambda reader: kept.last_report(reader, "other")) is None
    found = await store.read_slow(lambda reader: kept.kept_findings(reader, "bobs", class_="drifted", after=1))
    assert [(one.n, one.attributes) for one in found] == [(3, ("x",))]
    newer = msgspec.structs.replace(report, id="r2", started_at=3.0, counts={})
    await store.run(lambda ledger: kept.forget_findings(ledger, "bobs"))
    await store.run(lambda ledger: kept.save_run(ledger, newer))
    assert await store.read_slow(lambda reader: kept.last_report(reader, "bobs")) == newer
    assert await store.read_slow(lambda reader: kept.kept_findings(reader, "bobs")) == []


async def test_a_second_comparison_elsewhere_is_refused_and_leaves_the_first_ones_report(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """With several gateways only one compares; the other says so and overwrites nothing."""
    async with compared(tmp_path, nats_server) as here:
        first, _ = await here.reconciled()
        now = time.time()
        await here.gateway.store.run(lambda ledger: kept.take_lease(ledger, f"reconcile:{TARGET}", "other", now, 60.0))

        second, _ = await here.reconciled(repair=True)

        assert (second.state, second.code) == ("failed", "running_elsewhere")
        last = await here.report()
        assert last is not None
        assert last.id == first.id


def test_drift_is_a_metric_and_settings_are_checked() -> None:
    """Configuration: all mistakes path first; at most a fifth of the call budget."""
    assert TargetSettings(connector="observe").reconcile.mode == "report"
    with pytest.raises(ConfigurationError) as wrong:
        parse('[targets.a]\nconnector = "observe"\n[targets.a.reconcile]\nmode = "always"\ncall_share = 0.5\n')
    assert [one.split(":")[0] for one in wrong.value.problems] == [
        "targets.a.reconcile.mode",
        "targets.a.reconcile.call_share",
    ]


def test_who_is_on_the_way_is_neither_missing_nor_unknown() -> None:
    """Users with something to do are left out; their accounts are theirs all the same, also by name only."""
    spool = Spool()
    spool.add_accounts(
        [
            ListedAccount(account_id="a1", identities=("userName:ada",), active=True),
            ListedAccount(account_id="a2", identities=("userName:bea",), active=True, digests={"title": "1"}),
            ListedAccount(account_id="a3", identities=("userName:cyd",), active=None, digests={"title": "1"}),
        ]
    )
    spool.add_accounts([ListedAccount(account_id="a1", identities=("userName:ada",), active=True)])
    moving = ExpectedUser(identities=("userName:ada",))
    spool.add_wishes([("r1", "ada", "moving", None, False, moving)])
    inactive = ExpectedUser(identities=("userName:bea",), active=False, digests={"title": "2", "unseen": "9"})
    spool.add_wishes([("r2", "bea", "compare", "a2", False, inactive)])
    pending = ExpectedUser(identities=("userName:cyd",), digests={"title": "1"})
    spool.add_wishes([("r3", "cyd", "compare", "a3", False, pending)])
    absent = ExpectedUser(identities=("userName:dan",), active=False)
    spool.add_wishes([("r4", "dan", "compare", "a4", False, absent)])

    assert sort_differences(spool) == 3
    assert [(one.class_, one.resource, one.attributes) for one in spool.findings()] == [
        ("reactivated", "r2", ("active", "title"))
    ]
    spool.close()
