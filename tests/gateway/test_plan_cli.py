"""`provgate plan`, `provgate shadow` and shadow mode: real operators' listener, store and engine; a real worker's part answers.

Only NATS is short-circuited: what is published is handed to the worker's code by the test, and its answer back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest_asyncio

from connectors.contract import Delivery
from deploy.emulators.bobs_business import BobsBusinessEmulator
from deploy.emulators.harness import Emulator, running
from deploy.emulators.talkdesk import TalkdeskEmulator
from gateway.checks import run_checks
from gateway.cli_client import FINE, NOT_FINE, UNREACHABLE, WRONG_USE
from gateway.ledger import Ledger
from gateway.lifecycle import Row
from gateway.patch import MemberChange
from schemas.config import BrakeSettings, TargetSettings, load
from schemas.events import Begin, Reason, decode_event
from schemas.resources import GROUP_SCHEMA
from schemas.states import SHADOW, Result, State
from tests.gateway.operated import ALPHA, BETA, COLUMNS, Ended, Operated, a_user, operated
from tests.waiting import until
from workers.control import answer
from workers.delivery import deliver
from workers.limits import CallLimit
from workers.rehearsals import shadow
from workers.targets import Served

TOKEN = "token-of-the-plan-tests"
TALKDESK = "urn:ietf:params:scim:schemas:extension:talkdesk:2.0:User"


async def _no_limit(limit: CallLimit) -> None:
    pass


class Mine:
    """Always ours."""

    def check(self) -> None:
        pass


class Staged:
    """A gateway whose target alpha is an emulated Talkdesk, served by a worker's code."""

    def __init__(
        self, here: Operated, emulator: Emulator, url: str, folder: Path, *, connector: str = "talkdesk"
    ) -> None:
        self.here, self.emulator, self.folder, self.connector = here, emulator, folder, connector
        own: dict[str, Any] = {
            "token": {"file": "token"},
            "roles": ["Agent", "Supervisor"],
            "base_url": f"{url}/scim/v2",
        }
        if connector == "bobs_business":
            own = {"api_key": {"file": "token"}, "tenant_url": f"{url}/scim/v2", "invite": "on_create"}
        self.settings = {"allow_loopback": True, **own}
        self.configure()
        self.served = Served(ALPHA, here.configured[ALPHA], folder, concurrency_max=4, before_call=_no_limit)
        self.listening = True
        here.services.ask_worker = self.ask

    def configure(self, **target: Any) -> None:
        """The gateway's configuration of the target, as after a change of its file."""
        self.here.configured = {
            **self.here.configured,
            ALPHA: TargetSettings(
                connector=self.connector, settings=self.settings, brake=BrakeSettings(enabled=False), **target
            ),
        }

    async def ask(self, target: str, question: Mapping[str, Any], wait_s: float) -> bytes | None:
        return await answer(self.served, msgspec.json.encode(question)) if self.listening else None

    async def work(self, resource: str) -> Row:
        """What the worker does with the event that is out for a resource, and what the gateway makes of its report."""
        event = decode_event(self.here.bus.sent.pop(resource).body)
        given: dict[str, Any] = {
            "delivery": 1,
            "owned": Mine(),
            "new_id": lambda: f"report-{time.time_ns()}",
            "clock": time.time,
            "ctx": Delivery(),
            "worker": "w1",
        }
        if event.shadow:
            outcome = await shadow(event, self.served, **given)
        else:
            outcome = await deliver(event, connector=self.served.connector, directory=self.served.directory, **given)
        assert outcome is not None
        await self.here.outcomes.fold(outcome)
        await self.here.settled()
        return await self.here.row(resource)

    async def work_all(self) -> None:
        """Deliver until nothing is out any more."""
        await self.here.settled()
        for _ in range(50):
            if not self.here.bus.sent:
                return
            await self.work(next(iter(self.here.bus.sent)))
        raise AssertionError("there is no end of it")

    async def arrives(self, name: str, role: str = "Agent") -> str:
        """Entra creates a user."""
        return await self.here.created(name, ALPHA, **{TALKDESK: {"rolesString": role}})

    async def typed(self, *arguments: str) -> Ended:
        """A command as a person types it, without what the worker in this very process logs meanwhile."""
        ended = await self.here.typed(*arguments)
        out = "".join(line for line in ended.out.splitlines(keepends=True) if " vendor.call " not in line)
        return Ended(ended.code, out, ended.err)

    def writes(self) -> int:
        return len(self.emulator.journal.effects())


@pytest_asyncio.fixture
async def staged(tmp_path: Path) -> AsyncIterator[Staged]:
    secret = tmp_path / "token"
    secret.write_text(TOKEN, encoding="utf-8")
    secret.chmod(0o600)
    emulator = TalkdeskEmulator(token=TOKEN, rate_per_s=0)
    async with operated(tmp_path / "data") as here, running(emulator) as url:
        one = Staged(here, emulator, url, tmp_path)
        yield one
        await one.served.close()


@contextlib.asynccontextmanager
async def of_bobs_business(folder: Path) -> AsyncIterator[Staged]:
    """A gateway whose target alpha is an emulated Bob's Business that is told to invite: users, groups, invitations."""
    (folder / "token").write_text(TOKEN, encoding="utf-8")
    (folder / "token").chmod(0o600)
    emulator = BobsBusinessEmulator(token=TOKEN, rate_per_s=0)
    async with operated(folder / "data") as here, running(emulator) as url:
        one = Staged(here, emulator, url, folder, connector="bobs_business")
        yield one
        await one.served.close()


# ---- provgate plan


async def test_a_plan_is_a_verdict_the_account_and_the_calls_within_100_columns(staged: Staged) -> None:
    """What would be sent for a stored user, masked; nothing is written and nothing is recorded."""
    resource = await staged.arrives("ada")
    before = await staged.here.row(resource)

    ended = await staged.typed("plan", ALPHA, "ada@contoso.example")

    assert (ended.code, ended.err) == (FINE, "")
    assert "would be made" in ended.out
    assert f"Calls to {staged.settings['base_url'].removesuffix('/scim/v2')}, in order" in ended.out
    assert "POST /scim/v2/Users" in ended.out
    assert "Normalized account" in ended.out
    assert "ada@contoso.example" not in ended.out
    assert "a•••@contoso.example" in ended.out
    assert max(map(len, ended.out.splitlines())) <= COLUMNS
    assert staged.writes() == 0
    after = await staged.here.row(resource)
    assert {name for name in after.__struct_fields__ if getattr(after, name) != getattr(before, name)} <= {"published"}


async def test_a_plan_equals_what_is_then_sent(staged: Staged) -> None:
    """The calls of a plan and the writing calls of the delivery after it are the same, in order."""
    resource = await staged.arrives("ada")
    plan = json.loads((await staged.typed("plan", ALPHA, resource, "--json")).out)
    row = await staged.work(resource)
    history = (await staged.here.get(f"/resources/{resource}"))["history"]
    steps = next(entry["steps"] for entry in history if entry["what"] == "delivered")

    assert row.state is State.APPLIED
    sent = [(step["method"], step["path"]) for step in steps if step["method"] != "GET"]
    assert [(call["method"], call["path"]) for call in plan["calls"]] == sent


async def test_deletion_and_deactivation_are_planned_of_a_user_who_is_there(staged: Staged) -> None:
    """--inactive and --delete change the wish of the plan only."""
    resource = await staged.arrives("ada")
    await staged.work(resource)
    writes = staged.writes()

    inactive = json.loads((await staged.typed("plan", ALPHA, resource, "--inactive", "--json")).out)
    deleted = json.loads((await staged.typed("plan", ALPHA, resource, "--delete", "--json")).out)

    assert (inactive["would"], inactive["change"]) == ("disable", "deactivate")
    assert inactive["calls"][-1]["body"]["active"] is False
    assert (deleted["would"], deleted["change"]) == ("delete", "delete")
    assert deleted["calls"]
    assert staged.writes() == writes
    row = await staged.here.row(resource)
    assert (row.state, row.deleted, row.generation) == (State.APPLIED, False, 1)


async def test_a_refusal_is_shown_as_entra_would_see_it_and_ends_with_1(staged: Staged) -> None:
    """Status, scimType and detail of the SCIM error; a wish that was acknowledged is said to wait for the name instead."""
    file = staged.folder / "user.json"
    file.write_text(json.dumps(a_user("eve", **{TALKDESK: {"rolesString": "Wizard"}})), encoding="utf-8")
    ended = await staged.typed("plan", ALPHA, "--file", str(file))
    machine = json.loads((await staged.typed("plan", ALPHA, "--file", str(file), "--json")).out)
    file.write_text('{"userName": [1, 2]}', encoding="utf-8")
    document = await staged.typed("plan", ALPHA, "--file", str(file), "--json")
    await staged.arrives("eve", role="Wizard")
    stored = json.loads((await staged.typed("plan", ALPHA, "eve@contoso.example", "--json")).out)

    assert ended.code == NOT_FINE
    assert "Entra sees: 400 invalidValue" in ended.out
    assert "'Wizard'" in ended.out
    assert (machine["would"], machine["refusal"]["status"], machine["calls"]) == ("refuse", 400, [])
    assert document.code == NOT_FINE
    assert json.loads(document.out)["refusal"]["status"] == 400
    assert (stored["would"], stored["refusal"], "'Wizard'" in stored["sentence"]) == ("wait", None, True)


async def test_a_document_that_is_not_stored_can_be_planned(staged: Staged) -> None:
    """--file: a SCIM user as Entra would post it; an account that exists already is adopted in the plan, too."""
    resource = await staged.arrives("ada")
    await staged.work(resource)
    account = (await staged.here.row(resource)).account_id
    file = staged.folder / "user.json"
    file.write_text(json.dumps(a_user("bob", **{TALKDESK: {"rolesString": "Agent"}})), encoding="utf-8")
    new = json.loads((await staged.typed("plan", ALPHA, "--file", str(file), "--json")).out)
    file.write_text(json.dumps(a_user("ada", **{TALKDESK: {"rolesString": "Supervisor"}})), encoding="utf-8")
    known = json.loads((await staged.typed("plan", ALPHA, "--file", str(file), "--json")).out)

    assert (new["would"], new["resource"], new["change"]) == ("create", None, "create")
    assert new["calls"][0]["method"] == "POST"
    assert (known["would"], known["resource"], known["change"]) == ("update", resource, "update")
    assert known["calls"][0]["url"] == f"/scim/v2/Users/{account}"
    assert staged.writes() == 1


async def test_a_plan_says_truly_what_would_become_of_the_account(staged: Staged) -> None:
    """One account through its life: made, applied already, changed, off, on again, removed; never a create that is none."""
    file = staged.folder / "user.json"

    async def would(*what: str, **changes: Any) -> tuple[str, bool, list[bool]]:
        if changes:
            file.write_text(json.dumps({**a_user("ada", **{TALKDESK: {"rolesString": "Agent"}}), **changes}))
            what = ("--file", str(file))
        plan = json.loads((await staged.typed("plan", ALPHA, *what, "--json")).out)
        return plan["would"], plan["due"], [call["same"] for call in plan["calls"]]

    ada = await staged.arrives("ada")
    assert await would(ada) == ("create", True, [False])
    await staged.typed("target", "pause", ALPHA, "--reason", "maintenance")
    assert "The target is paused" in " ".join((await staged.typed("plan", ALPHA, ada)).out.split())
    await staged.typed("target", "resume", ALPHA)
    dead = await staged.arrives("dead")
    await staged.here.comes_to(dead, Result.REJECTED, Reason(code="no_licence", message="There is no licence left."))
    shown = " ".join((await staged.typed("plan", ALPHA, dead)).out.split())
    assert (f"provgate dead redrive {dead}" in shown, "is applied" in shown) == (True, False)
    await staged.work(ada)
    assert await would(ada) == ("nothing", False, [True]), "the PUT repeats what is there"
    shown = (await staged.typed("plan", ALPHA, ada)).out
    assert "the product holds all of this" in shown
    assert "All that Entra asked for is applied" in " ".join(shown.split())
    assert await would(name={"givenName": "Adele", "familyName": "Example"}) == ("update", True, [False])
    assert await would(ada, "--inactive") == ("disable", True, [False])
    seen = await staged.here.row(ada)
    await staged.here.intake.change(ALPHA, "user", seen, lambda base: {**base, "active": False})
    await staged.here.settled()
    await staged.work(ada)
    assert await would(ada, "--inactive") == ("nothing", True, [True])
    assert await would(active=True) == ("enable", True, [False])
    assert (await would(ada, "--delete"))[0] == "delete"
    writes = [call["method"] for call in staged.emulator.journal.effects()]
    assert writes == ["POST", "PUT"], "plans wrote nothing"


async def test_a_group_is_planned_with_the_calls_for_its_members(tmp_path: Path) -> None:
    """By name, by id and from a document; a member without an account is named; members are put in and taken out by id."""
    async with of_bobs_business(tmp_path) as staged:
        here = staged.here
        ada, bob = await here.created("ada", ALPHA), await here.created("bob", ALPHA)
        accounts = {one: (await staged.work(one)).account_id for one in (ada, bob)}
        cyd = await here.created("cyd", ALPHA)
        made = await here.intake.create(
            ALPHA, "group", {"displayName": "Sales"}, members=(MemberChange("add", (ada, cyd)),)
        )
        assert made.row is not None
        group = made.row.id

        async def planned(*what: str) -> Any:
            return json.loads((await staged.typed("plan", ALPHA, *what, "--json")).out)

        new = await planned("Sales")
        assert (new["kind"], new["resource"], new["would"]) == ("group", group, "create")
        assert [call["method"] for call in new["calls"]] == ["POST", "PATCH"]
        assert accounts[ada] in json.dumps(new["calls"][1]["body"])
        assert any(cyd in text for text in new["warnings"])
        await staged.work(group)
        file = tmp_path / "group.json"
        document = {"schemas": [GROUP_SCHEMA], "displayName": "Sales", "members": [{"value": bob}]}
        file.write_text(json.dumps(document), encoding="utf-8")
        before = await here.row(group)
        changed = await planned("--file", str(file))
        sent = json.dumps(changed["calls"])
        assert (changed["would"], accounts[ada] in sent, accounts[bob] in sent) == ("update", True, True)
        assert await here.row(group) == before, "the trial was undone"
        assert (await planned(group, "--delete"))["would"] == "delete"
        wrong = await staged.typed("plan", ALPHA, group, "--inactive")
        assert (wrong.code, "cannot be deactivated" in wrong.err) == (WRONG_USE, True)
        assert (await staged.typed("plan", ALPHA, ada, "--group")).code == WRONG_USE
        assert staged.writes() == 6, "two users, their invitations, a group and its member"


async def test_shown_values_are_recorded(staged: Staged) -> None:
    """--show-values unmasks, and the record says so with its reason."""
    resource = await staged.arrives("ada")
    ended = await staged.typed("plan", ALPHA, resource, "--show-values", "--reason", "a ticket")

    assert "ada@contoso.example" in ended.out
    (record,) = await staged.here.audited("values.shown")
    assert (record.subject, msgspec.json.decode(record.detail)["reason"]) == (resource, "a ticket")


async def test_wrong_use_and_unreachable_workers_have_their_exit_codes(staged: Staged) -> None:
    """2: named wrongly; 3: nobody could make the plan, or the product did not answer."""
    resource = await staged.arrives("ada")
    for command in (
        ("plan", ALPHA),
        ("plan", ALPHA, resource, "--file", "x.json"),
        ("plan", ALPHA, resource, "--delete", "--inactive"),
        ("plan", ALPHA, "nobody@contoso.example"),
        ("plan", "nowhere", resource),
        ("plan", ALPHA, "--file", str(staged.folder / "missing.json")),
    ):
        assert (await staged.typed(*command)).code == WRONG_USE, command
    staged.emulator.fault("status", status=503, times=100)
    assert (await staged.typed("plan", ALPHA, resource)).code == UNREACHABLE
    usage = (await staged.typed("plan", "--help")).out
    assert "provgate plan [OPTIONS] TARGET [WHO]\n" in usage
    assert "Exit codes: 0 it would go well" in usage
    assert "[default: " not in usage, "nothing is said of what means nothing"
    staged.listening = False
    nobody = await staged.typed("plan", ALPHA, resource)
    assert (nobody.code, "No worker answered" in nobody.err) == (UNREACHABLE, True)


# ---- shadow mode


async def test_shadow_mode_rehearses_keeps_the_wish_open_and_delivers_when_it_ends(staged: Staged) -> None:
    """Create, change and delete in shadow mode write nothing; what is wished at the end is what is delivered then."""
    here = staged.here
    staged.configure(shadow=True)
    ada, eve, bob = await staged.arrives("ada"), await staged.arrives("eve", role="Wizard"), await staged.arrives("bob")
    for resource in (ada, eve, bob):
        row = await staged.work(resource)
        assert (row.state, row.blocked_on, row.account_id, row.open) == (State.BLOCKED, SHADOW, None, True)
        doubts = row.doubts  # others wait for its name only until its message is known to be gone (R2)
        assert not doubts.possible | doubts.written | doubts.remembered | set(doubts.strays)
        assert row.acknowledged == row.generation
    await here.intake.delete(ALPHA, "user", bob)
    await here.settled()
    assert (await here.row(bob)).state is State.GONE
    assert staged.writes() == 0

    staged.configure()
    moved = await here.store.run(lambda ledger: ledger.leave_shadow(ALPHA, time.time()))
    here.dispatcher.kick(ALPHA)
    await here.settled()

    assert moved == 2
    assert (await staged.work(ada)).state is State.APPLIED
    assert (await staged.work(eve)).blocked_on == "role:Wizard"
    assert staged.writes() == 1
    assert await here.store.run(lambda ledger: ledger.leave_shadow(ALPHA, time.time())) == 0


async def test_all_that_was_recorded_in_shadow_mode_is_sent_once_when_it_ends(tmp_path: Path) -> None:
    """Made, adopted, changed, removed, invited, grouped: no write meanwhile, every wish at the product afterwards, nobody twice.

    A user who is made and removed within shadow mode, also while the rehearsal is under way, never comes to the product.
    """
    async with of_bobs_business(tmp_path) as staged:
        here = staged.here
        dan, eve = await here.created("dan", ALPHA), await here.created("eve", ALPHA)
        for one in (dan, eve):
            await staged.work(one)
        staged.emulator.seed({"users": [{"userName": "bob@contoso.example"}]})
        before, place = staged.writes(), staged.emulator.recorded()[-1]["seq"]
        staged.configure(shadow=True)

        ada, bob = await here.created("ada", ALPHA), await here.created("bob", ALPHA)
        fay, gil = await here.created("fay", ALPHA), await here.created("gil", ALPHA)
        await staged.work(fay)
        await here.intake.delete(ALPHA, "user", fay)
        await here.intake.delete(ALPHA, "user", gil)  # its rehearsal is still out
        await here.intake.delete(ALPHA, "user", dan)
        await here.intake.change(ALPHA, "user", await here.row(eve), lambda base: {**base, "displayName": "Eva"})
        members = (MemberChange("add", (ada, bob, eve)),)
        made = await here.intake.create(ALPHA, "group", {"displayName": "Sales"}, members=members)
        assert made.row is not None
        group = made.row.id
        await staged.work_all()

        recorded = await here.get(f"/targets/{ALPHA}/shadow")
        assert {item["id"] for item in recorded["items"]} == {ada, bob, dan, eve, group}
        assert (recorded["total"], recorded["under_way"]) == (5, 0)
        assert [(await here.row(one)).state for one in (fay, gil)] == [State.GONE, State.GONE]
        assert staged.writes() == before
        assert {call["method"] for call in staged.emulator.recorded(place)} == {"GET"}, "not even one that failed"

        staged.configure()
        assert await here.store.run(lambda ledger: ledger.leave_shadow(ALPHA, time.time())) == 5
        here.dispatcher.kick(ALPHA)
        await staged.work_all()

        assert {(await here.row(one)).state for one in (ada, bob, eve, group)} == {State.APPLIED}
        assert (await here.row(dan)).state is State.GONE
        held = staged.emulator.state()
        there = {user["userName"]: user for user in held["users"].values()}
        assert len(held["users"]) == len(there) == 3
        assert there["eve@contoso.example"]["displayName"] == "Eva"
        (sales,) = held["groups"].values()
        assert set(sales["members"]) == {user["id"] for user in there.values()}
        effects = staged.writes()
        here.dispatcher.kick(ALPHA)
        await staged.work_all()
        assert staged.writes() == effects, "nothing is sent again"


async def test_deliveries_that_were_out_when_shadow_mode_began_write_nothing_more(staged: Staged) -> None:
    """One in a worker's hands is given up before its next call; one that has not begun may not, and is rehearsed instead."""
    here, old = staged.here, staged.served
    ada, bob = await staged.arrives("ada"), await staged.arrives("bob")
    waiting = here.bus.sent[bob]
    staged.emulator.fault("slow", method="GET", when="after", delay_s=0.5, times=1)
    begun = asyncio.create_task(staged.work(ada))
    await until(staged.emulator.recorded, "the worker looks")
    staged.configure(shadow=True)
    staged.served = Served(ALPHA, here.configured[ALPHA], staged.folder, concurrency_max=4, before_call=_no_limit)
    staged.served.succeed(old)
    row = await begun
    await old.close()
    assert (staged.writes(), row.in_flight) == (0, 1), "a report that settles nothing"
    assert (await here.get(f"/targets/{ALPHA}/shadow"))["under_way"] == 2
    assert "2 deliveries that went out before shadow mode" in " ".join(
        (await staged.typed("shadow", ALPHA)).out.split()
    )

    row = await here.row(bob)
    go = await here.dispatcher.begin(Begin(target=ALPHA, resource=bob, fence=row.fence, delivery=1))
    assert go is False
    row = await here.row(bob)
    assert (row.state, row.in_flight, row.ambiguous) == (State.QUEUED, None, True)

    def rested(ledger: Ledger) -> None:
        row.next_at = 0.0
        ledger.save(row)

    await here.store.run(rested)
    here.dispatcher.kick(ALPHA)
    await here.settled()
    assert decode_event(here.bus.sent[bob].body).shadow
    assert here.bus.sent[bob].fence > waiting.fence
    assert (await staged.work(bob)).blocked_on == SHADOW
    assert staged.writes() == 0


async def test_a_user_who_was_there_before_shadow_mode_keeps_the_link(staged: Staged) -> None:
    """A deactivation in shadow mode is not lost: it is delivered to the linked account when the mode ends."""
    here = staged.here
    ada = await staged.arrives("ada")
    account = (await staged.work(ada)).account_id
    staged.configure(shadow=True)
    seen = await here.row(ada)
    await here.intake.change(ALPHA, "user", seen, lambda base: {**base, "active": False})
    await here.settled()
    row = await staged.work(ada)
    assert (row.state, row.account_id) == (State.BLOCKED, account)
    assert staged.writes() == 1

    staged.configure()
    await here.store.run(lambda ledger: ledger.leave_shadow(ALPHA, time.time()))
    here.dispatcher.kick(ALPHA)
    await here.settled()

    row = await staged.work(ada)
    assert (row.state, row.account_id) == (State.APPLIED, account)
    (held,) = [user for user in staged.emulator.state()["users"].values() if user["id"] == account]
    assert held["active"] is False


async def test_a_worker_that_still_rehearses_after_the_end_is_asked_again_soon(staged: Staged) -> None:
    """The worker's own configuration counts, too; its report does not put the change aside for a day."""
    ada = await staged.arrives("ada")
    message = staged.here.bus.sent[ada]
    event = msgspec.structs.replace(decode_event(message.body), shadow=True)
    staged.here.bus.sent[ada] = msgspec.structs.replace(message, body=msgspec.json.encode(event))

    row = await staged.work(ada)

    assert (row.state, row.blocked_on) == (State.BLOCKED, SHADOW)
    assert row.next_at - time.time() <= 5.0


def test_the_check_warns_of_shadow_mode_and_pending_gives_way_to_it(tmp_path: Path) -> None:
    """A forgotten switch is seen before the start; Entra never waits for what will not come."""
    file = tmp_path / "provgate.toml"
    file.write_text('[targets.a]\nconnector = "observe"\nshadow = true\npending = "retry-later"\n', encoding="utf-8")

    found = [finding for finding in run_checks(file) if finding.where == "targets.a.shadow"]

    assert [finding.level for finding in found] == ["warning"]
    assert load(file).targets["a"].pending == "accept"


async def test_operators_are_told_plainly_about_shadow_mode(staged: Staged) -> None:
    """Status, target, user and the list of what was recorded; all masked, within 100 columns."""
    here = staged.here
    staged.configure(shadow=True)
    ada = await staged.arrives("ada")
    await staged.arrives("eve", role="Wizard")
    for resource in list(here.bus.sent):
        await staged.work(resource)

    status = (await staged.typed("status")).out
    target = (await staged.typed("target", "show", ALPHA)).out
    user = (await staged.typed("user", "show", ada)).out
    ended = await staged.typed("shadow", ALPHA)
    machine = json.loads((await staged.typed("shadow", ALPHA, "--json")).out)
    other = await staged.typed("shadow", BETA)

    assert f"{ALPHA} is in shadow mode" in status
    assert "shadow mode" in (await staged.typed("target", "list")).out
    assert "nothing is written at the product" in target
    assert "not sent (shadow mode)" in user
    assert "Delivered for real when shadow mode ends." in user
    assert "Rehearsed in shadow mode; delivered for real when it ends." in " ".join(status.split())
    assert ended.code == FINE
    assert "2 changes rehearsed, 1 of them would be refused." in ended.out
    assert "POST /scim/v2/Users" in ended.out
    assert max(map(len, ended.out.splitlines())) <= COLUMNS
    for shown in (status, target, user, ended.out, json.dumps(machine)):
        assert "ada@contoso.example" not in shown
    assert (machine["shadow"], machine["total"], machine["refused"]) == (True, 2, 1)
    assert machine["calls"] == [{"method": "POST", "path": "/scim/v2/Users", "count": 1}]
    assert "is not in shadow mode" in other.out
