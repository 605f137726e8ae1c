"""Who refers to whom: managers and members reach a product by its own ids, as soon as there are any."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from connectors.contract import Delivery
from connectors.http import HttpClient
from gateway.lifecycle import Row, dispatch, manager_of
from gateway.store import Store
from schemas.errors import Gone, Unavailable
from schemas.events import (
    ProvisioningEvent,
    Trace,
    decode_event,
    event_headers,
    made_traceparent,
    valid_traceparent,
    valid_tracestate,
)
from schemas.resources import ENTERPRISE_SCHEMA, User
from schemas.states import State
from tests.connectors.test_http import client, serving
from tests.connectors.test_sofa import access_key, connected, emulator  # noqa: F401 - fixtures
from tests.gateway.scim_listener import USER, Shelf, listening
from tests.gateway.test_memberships import NOBODY, TARGET, Desk, LossyShelf, add, taken
from tests.gateway.test_store import location, postgres, postgres_url, store  # noqa: F401 - fixtures
from tests.simulation.memory import Memory, MemoryLedger
from workers.delivery import deliver

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STATE = "vendor=a:1,0tenant@sys=b c"


class ManagedShelf(LossyShelf):
    """A product that keeps who leads whom, by its own ids, and tells what it was told about the account it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.managers: dict[str, str | None] = {}
        self.writes = 0
        self.told: list[Delivery] = []

    def _led(self, account_id: str, account: User, ctx: Delivery) -> None:
        self.writes += 1
        self.told.append(ctx)
        manager = account.enterprise.manager
        if manager is None:
            self.managers[account_id] = None
        elif isinstance(manager, msgspec.Struct) and isinstance(manager.value, str):
            known = ctx.resolve(manager.value)
            if known is not None:
                self.managers[account_id] = known

    async def create(self, account: User, ctx: Delivery) -> str:
        account_id = await super().create(account, ctx)
        self._led(account_id, account, ctx)
        if self.losing == "create":
            raise Unavailable("Shelf did not answer in time.", ambiguous=True)
        return account_id

    async def update(self, account_id: str, account: User, ctx: Delivery) -> None:
        if account_id not in self.accounts:
            raise Gone("There is no such account.")
        await super().update(account_id, account, ctx)
        self._led(account_id, account, ctx)


class Office(Desk):
    """The engine with a product that knows managers."""

    shelf: ManagedShelf

    def __init__(self, opened: Store) -> None:
        super().__init__(opened)
        self.shelf = ManagedShelf()

    async def person(self, manager: str | None = None, **attributes: Any) -> str:
        """A new user whose creation is on its way."""
        name = f"user-{next(self._numbers):05}@contoso.example"
        document = {"userName": name, **attributes, **(led_by(manager) if manager else {})}
        return taken(await self.intake.create(TARGET, "user", document)).id

    async def lead(self, user: str, manager: str | None, **trace: Trace) -> None:
        """Another manager for a user, or none."""

        def compute(base: dict[str, Any]) -> dict[str, Any]:
            kept = {key: value for key, value in base.items() if key != ENTERPRISE_SCHEMA}
            return {**kept, **(led_by(manager) if manager else {})}

        taken(await self.intake.change(TARGET, "user", await self.row(user), compute, **trace))

    async def leader(self, user: str) -> str | None:
        """Who leads a user at the product, by account id."""
        account_id = (await self.row(user)).account_id
        assert account_id is not None
        return self.shelf.managers.get(account_id)

    async def account(self, user: str) -> str:
        (account_id,) = await self.accounts(user)
        return account_id

    async def unlinked(self) -> str:
        """A user whose account the product could not make yet."""
        self.shelf.away = True
        late = await self.person()
        await self.work()
        self.shelf.away = False
        return late

    async def events(self) -> list[ProvisioningEvent]:
        """What is on its way now."""
        await self.quiet()
        return [decode_event(message.body) for message in self.bus.sent.values()]


def led_by(manager: str) -> dict[str, Any]:
    return {ENTERPRISE_SCHEMA: {"manager": {"value": manager}}}


@pytest.fixture
async def office(store: Store) -> AsyncIterator[Office]:  # noqa: F811 - the fixture of that name
    made = Office(store)
    yield made
    await made.quiet()


# ---- managers


async def test_a_manager_reaches_the_product_by_the_products_own_id(office: Office) -> None:
    """Entra sends the id our gateway gave out; the event carries the account's, and nobody else's."""
    boss, other = await office.users(2)
    clerk = await office.person(manager=boss)

    (event,) = await office.events()
    assert event.accounts == {boss: await office.account(boss)}
    await office.work()
    assert await office.leader(clerk) == await office.account(boss)
    assert (await office.row(clerk)).state is State.APPLIED

    await office.lead(clerk, other)
    await office.work()
    assert await office.leader(clerk) == await office.account(other)


async def test_a_user_does_not_wait_for_a_manager_without_an_account(office: Office) -> None:
    """T12: applied at once without the manager, which status says; nothing is called meanwhile, and then once."""
    boss = await office.unlinked()
    clerk = await office.person(manager=boss, title="Clerk")
    await office.work()

    row = await office.row(clerk)
    assert (row.state, row.blocked_on, row.settled_generation) == (State.BLOCKED, f"manager {boss}", row.generation)
    assert row.reason is not None
    assert (row.reason.code, row.reason.attribute) == ("manager_missing", f"{ENTERPRISE_SCHEMA}:manager")
    assert office.shelf.accounts[await office.account(clerk)].title == "Clerk"

    office.shelf.away = True
    writes = office.shelf.writes
    for _ in range(5):
        await office.later(40)
    row = await office.row(clerk)
    assert (office.shelf.writes, row.state, row.fence) == (writes, State.BLOCKED, 1)

    office.shelf.away = False
    for _ in range(5):
        await office.later(600)
    row = await office.row(clerk)
    assert await office.leader(clerk) == await office.account(boss)
    assert (row.state, row.reason, row.blocked_on, row.unfinished, row.fence) == (State.APPLIED, None, None, False, 2)


async def test_two_who_manage_each_other_both_get_there(office: Office) -> None:
    """A circle of managers blocks nobody: neither waits for the other to be created."""
    office.shelf.away = True
    ada, eva = await office.person(), await office.person()
    await office.work()
    await office.lead(ada, eva)
    await office.lead(eva, ada)
    office.shelf.away = False
    for _ in range(5):
        await office.later(40)

    assert await office.leader(ada) == await office.account(eva)
    assert await office.leader(eva) == await office.account(ada)
    assert {(await office.row(user)).state for user in (ada, eva)} == {State.APPLIED}


async def test_who_leads_themselves_needs_two_deliveries(office: Office) -> None:
    """The account is known only after it was made; then the row's own link counts, which no other transaction has seen yet."""
    ada = await office.person()
    await office.quiet()
    await office.lead(ada, ada)
    await office.work()

    assert await office.leader(ada) == await office.account(ada)
    row = await office.row(ada)
    assert (row.state, row.fence) == (State.APPLIED, 2)


@pytest.mark.parametrize("end", ["deleted", "never there"])
async def test_a_manager_who_will_never_come_is_not_waited_for(office: Office, end: str) -> None:
    """No endless loop: a deleted manager ends the wait, an id that is nobody's never begins it; the history says so."""
    boss = await office.unlinked() if end == "deleted" else NOBODY
    clerk = await office.person(manager=boss)
    await office.work()
    if end == "deleted":
        assert (await office.row(clerk)).state is State.BLOCKED
        assert (await office.intake.delete(TARGET, "user", boss)).error is None
        await office.later(2)

    row = await office.row(clerk)
    assert (row.state, row.reason, row.blocked_on, row.unfinished, row.fence) == (State.APPLIED, None, None, False, 1)
    assert [
        a.subject for a in await office.store.read(lambda reader: reader.audit(9)) if a.action == "issue.manager_gone"
    ] == [clerk]
    assert not office.bus.sent


async def test_a_user_of_another_target_is_nobodys_manager_here(office: Office) -> None:
    """I11: accounts of another target are neither shown nor waited for."""
    stranger = Row(id="stranger", target="elsewhere", generation=1, event_id="e", account_id="theirs")
    await office.store.run(lambda ledger: ledger.save(stranger))
    clerk = await office.person(manager="stranger")

    (event,) = await office.events()
    assert event.accounts == {}
    await office.work()
    assert await office.leader(clerk) is None
    assert (await office.row(clerk)).state is State.APPLIED


async def test_a_manager_taken_away_while_waited_for_ends_the_wait(office: Office) -> None:
    """A new wish is not held up, and what is not wished any more is not waited for."""
    boss = await office.unlinked()
    clerk = await office.person(manager=boss)
    await office.work()

    await office.lead(clerk, None)
    await office.work()

    row = await office.row(clerk)
    assert (row.state, row.generation, row.settled_generation) == (State.APPLIED, 2, 2)


async def test_a_product_without_managers_waits_for_none(store: Store) -> None:  # noqa: F811
    """Only what a connector asks for can be missing: one that ignores managers never makes a user wait."""
    desk = Desk(store)
    desk.shelf.away = True
    boss = await desk.user()
    await desk.work()
    desk.shelf.away = False
    clerk = taken(await desk.intake.create(TARGET, "user", {"userName": "clerk@contoso.example", **led_by(boss)})).id
    await desk.work()

    assert (await desk.row(clerk)).state is State.APPLIED


@pytest.mark.parametrize("kind", ["user", "group"])
@pytest.mark.parametrize("how", ["refused for now", "lost on its way"])
async def test_what_was_waited_for_is_not_forgotten_when_its_delivery_fails(
    office: Office, kind: str, how: str
) -> None:
    """I6: the wish itself is settled, so the reference alone keeps the row going, through failures and losses."""
    late = await office.unlinked()
    waiting = await office.person(manager=late) if kind == "user" else await office.group(late)
    await office.work()
    assert (await office.row(waiting)).state is State.BLOCKED
    for _ in range(9):  # until the late one is there and what waited for it is on its way
        office.clock.time += 40
        await office.dispatcher.sweep()
        await office.quiet()
        mine = {resource: message for resource, message in office.bus.sent.items() if resource == waiting}
        if mine:
            break
        await office.work()
        if (await office.row(waiting)).state is State.APPLIED:
            break
    if not mine:
        pytest.fail("the delivery under test was not seen")

    office.bus.sent = mine if how == "refused for now" else {}
    office.shelf.away = True
    await office.work()
    if how == "refused for now":
        row = await office.row(waiting)
        assert (row.state, row.attempt) == (State.RETRYING, 1), "having waited makes no failure worse"
    office.shelf.away = False
    for _ in range(9):
        await office.later(60)

    assert (await office.row(waiting)).state is State.APPLIED
    if kind == "user":
        assert await office.leader(waiting) == await office.account(late)
    else:
        assert await office.at_product(waiting) == {await office.account(late)}


async def test_R5_the_same_fence_keeps_its_bytes_although_the_manager_was_linked_meanwhile(office: Office) -> None:
    """R5: what is offered to the stream again is what was stored, not what would be true by now."""
    boss = await office.unlinked()
    office.bus.sent = {}
    clerk = await office.person(manager=boss)
    await office.quiet()
    first = office.bus.sent[clerk]

    await office.store.run(lambda ledger: _linked(ledger, boss))
    unconfirmed = await office.row(clerk)
    unconfirmed.published = False
    await office.store.run(lambda ledger: ledger.save(unconfirmed))
    office.clock.time += 5
    await office.dispatcher.sweep()
    await office.quiet()

    again = office.bus.sent[clerk]
    assert again is not first, "it was offered again"
    assert again.body == first.body
    assert decode_event(first.body).accounts == {}


def _linked(ledger: Any, resource: str) -> None:
    row = ledger.row(resource)
    row.account_id = "late"
    ledger.save(row)


class Counting(MemoryLedger):
    """Counts how often another resource is asked for."""

    asked = 0

    def referred(self, row: Row, resource: str) -> Any:
        self.asked += 1
        return super().referred(row, resource)


@pytest.mark.parametrize(("document", "asked"), [({"userName": "a"}, 0), ({"userName": "a", **led_by("r2")}, 1)])
def test_a_user_without_a_manager_costs_no_question(document: dict[str, Any], asked: int) -> None:
    """The path of most writes asks the store for nothing more than before."""
    ledger = Counting(Memory())
    row = Row(id="r1", target=TARGET, generation=1, event_id="e1", document=msgspec.json.encode(document))

    dispatch(row, 1.0, ledger, "shelf")

    assert (ledger.asked, row.state) == (asked, State.DELIVERING)


@pytest.mark.parametrize(
    ("document", "manager"),
    [
        ({"userName": "a"}, None),
        ({"userName": "a", "title": '"manager"'}, None),
        ({"userName": "a", ENTERPRISE_SCHEMA: {"manager": None}}, None),
        ({"userName": "a", ENTERPRISE_SCHEMA: {"manager": {"displayName": "x"}}}, None),
        ({"userName": "a", ENTERPRISE_SCHEMA: ["manager"]}, None),
        ({"userName": "a", "manager": {"value": "r2"}}, None),
        ({"userName": "a", **led_by("r2")}, "r2"),
    ],
)
def test_the_manager_is_read_from_the_one_place_where_it_is_stored(
    document: dict[str, Any], manager: str | None
) -> None:
    """RFC 7643 section 4.3: `manager` of the enterprise extension, an object with `value`; anything else is none."""
    assert manager_of(msgspec.json.encode(document)) == manager


# ---- members


async def test_a_delivery_of_a_group_knows_the_accounts_of_its_members(office: Office) -> None:
    """T12: those of this event's difference; whoever has no account is in neither."""
    one, two = await office.users(2)
    late = await office.unlinked()
    group = await office.group(one, two, late)
    (event,) = [event for event in await office.events() if event.resource == group]
    ctx = Delivery()
    outcome = await deliver(
        event,
        delivery=1,
        connector=office.shelf,
        directory=_NoNames(),
        owned=_Ours(),
        new_id=lambda: "x",
        clock=office.clock.now,
        ctx=ctx,
    )

    assert outcome is not None
    assert ctx.accounts == {one: await office.account(one), two: await office.account(two)}
    assert (ctx.resolve(one), ctx.resolve(late), ctx.unresolved) == (await office.account(one), None, [late])


class _NoNames:
    def names(self, kind: str) -> tuple[str, ...]:
        return ()

    async def refresh(self) -> bool:
        return False


class _Ours:
    def check(self) -> None:
        return None


async def test_entra_waits_for_no_member_and_no_manager(office: Office) -> None:
    """A wish that is settled but for a reference counts as confirmed: a second POST of it is 409, not joined."""
    boss = await office.unlinked()
    office.outcomes.awaited = lambda resource: True
    office.intake.healthy = lambda target: True
    office.intake.answer_wait_s = 5.0
    name = "clerk@contoso.example"
    office.dispatcher.spawn(_served(office))
    answer = await office.intake.create(TARGET, "user", {"userName": name, **led_by(boss)})

    assert (taken(answer).settled_generation, answer.applied) == (1, True)
    second = await office.intake.create(TARGET, "user", {"userName": name, **led_by(boss)})
    assert second.error is not None
    assert second.error.status == 409


async def _served(office: Office) -> None:
    """A worker and a folder, until one outcome was folded."""
    office.outcomes.on_settled = lambda row: office.intake.waiters.wake(row.id, row)
    for _ in range(10_000):
        if office.bus.sent:
            _, message = office.bus.sent.popitem()
            await office.outcomes.fold(await office.delivered(message))
            return
        await asyncio.sleep(0)


# ---- an account that became another one


async def test_groups_and_reports_follow_an_account_that_was_made_anew(office: Office) -> None:
    """T12: a new account is in no group and nobody's manager at the product, whatever was settled with the one before it."""
    boss, clerk, other = await office.person(), await office.person(), await office.person()
    await office.work()
    await office.lead(clerk, boss)
    await office.lead(boss, boss)
    group, elsewhere = await office.group(boss, clerk), await office.group(other, name="Elsewhere")
    await office.work()
    before = await office.account(boss)
    untouched = (await office.row(elsewhere)).fence, (await office.row(other)).fence

    del office.shelf.accounts[before]
    await office.lead(boss, boss, trace=Trace(TRACE))
    taken(await office.intake.change(TARGET, "user", await office.row(boss), lambda base: {**base, "title": "Chief"}))
    await office.work()
    for _ in range(3):
        await office.later(1)

    now = await office.account(boss)
    assert now != before
    assert await office.leader(clerk) == await office.leader(boss) == now
    assert now in await office.at_product(group)
    assert {(await office.row(one)).state for one in (boss, clerk, group)} == {State.APPLIED}
    assert ((await office.row(elsewhere)).fence, (await office.row(other)).fence) == untouched


async def test_what_is_on_its_way_with_an_account_that_was_made_anew_is_sent_again(office: Office) -> None:
    """R5: the event keeps the bytes it had; once it is settled, the next one names the new account."""
    boss, clerk = await office.users(2)
    await office.lead(clerk, boss)
    await office.quiet()
    (out,), office.bus.sent = office.bus.sent.values(), {}
    del office.shelf.accounts[await office.account(boss)]
    taken(await office.intake.change(TARGET, "user", await office.row(boss), lambda base: {**base, "title": "Chief"}))
    await office.work()

    await office.outcomes.fold(await office.delivered(out))
    await office.work()
    assert await office.leader(clerk) == await office.account(boss)
    assert (await office.row(clerk)).state is State.APPLIED


@pytest.mark.parametrize("by_now", ["another account", "none"])
async def test_a_member_whose_account_was_made_anew_while_a_group_carried_the_old_one_gets_in(
    office: Office, by_now: str
) -> None:
    """T12: what was settled with an account that is not the member's any more is settled for nobody."""
    boss, clerk = await office.users(2)
    group = await office.group(clerk)
    await office.work()
    taken(await office.patch(group, add(boss)))
    await office.quiet()
    (out,), office.bus.sent = office.bus.sent.values(), {}
    before = await office.account(boss)
    if by_now == "none":
        await office.store.run(lambda ledger: _unlinked(ledger, boss, office.clock.now()))
    else:
        del office.shelf.accounts[before]
        seen = await office.row(boss)
        taken(await office.intake.change(TARGET, "user", seen, lambda base: {**base, "title": "Chief"}))
        await office.work()

    await office.outcomes.fold(await office.delivered(out))
    await office.work()
    row = await office.row(group)
    if by_now == "none":
        assert (row.state, row.blocked_on) == (State.BLOCKED, f"member {boss}")
    else:
        assert await office.account(boss) != before
        assert await office.account(boss) in await office.at_product(group)
        assert row.state is State.APPLIED


def _unlinked(ledger: Any, resource: str, now: float) -> None:
    row = ledger.row(resource)
    row.account_id = None
    ledger.refer_again(row, now)
    ledger.save(row)


# ---- who made an account


async def test_an_account_we_made_is_ours_and_one_we_found_is_not(office: Office) -> None:
    """An invitation is for accounts made by us; the gateway remembers with the link."""
    office.shelf.accounts["theirs"] = User(user_name="eva@contoso.example")
    ours, found = (
        await office.person(),
        taken(await office.intake.create(TARGET, "user", {"userName": "eva@contoso.example"})).id,
    )
    await office.work()
    assert ((await office.row(ours)).account_created, (await office.row(found)).account_created) == (True, False)

    for user in (ours, found):
        await office.lead(user, ours)
    assert {event.resource: event.created_by_us for event in await office.events()} == {ours: True, found: False}
    await office.work()
    assert office.shelf.told[-1].created_by_us is not None
    assert ((await office.row(ours)).account_created, (await office.row(found)).account_created) == (True, False)


async def test_who_made_an_account_after_a_lost_answer_is_not_known(office: Office) -> None:
    """R4: the account found after an ambiguous create may be ours or somebody else's; nothing is claimed."""
    office.shelf.losing = "create"
    user = await office.person()
    await office.work()
    office.shelf.losing = ""
    for _ in range(4):
        await office.later(30)

    row = await office.row(user)
    assert (row.state, row.account_id, row.account_created) == (State.APPLIED, "shelf-1", None)


async def test_an_account_that_vanished_and_was_made_again_is_ours(office: Office) -> None:
    """A6: the new account is a new link; so is what is remembered of it."""
    office.shelf.accounts["theirs"] = User(user_name="eva@contoso.example")
    user = taken(await office.intake.create(TARGET, "user", {"userName": "eva@contoso.example"})).id
    await office.work()
    assert (await office.row(user)).account_created is False

    del office.shelf.accounts["theirs"]
    await office.lead(user, user)
    await office.work()
    row = await office.row(user)
    assert (row.account_id, row.account_created) == ("shelf-1", True)


async def test_a_deleted_account_is_nobodys(office: Office) -> None:
    """With the link goes what was known of it."""
    (user,) = await office.users(1)
    assert (await office.row(user)).account_created is True
    assert (await office.intake.delete(TARGET, "user", user)).error is None
    await office.work()
    row = await office.row(user)
    assert (row.state, row.account_id, row.account_created) == (State.GONE, None, None)


# ---- the whole way


async def test_a_manager_set_in_entra_is_the_direct_superior_at_sofa(
    tmp_path: Path,
    emulator: Any,  # noqa: F811 - the fixture of that name
    access_key: Path,  # noqa: F811 - the fixture of that name
) -> None:
    """From the PATCH that Entra sends, through store, event and delivery, to Sofa's own id."""
    product, url = emulator
    async with connected(url, access_key) as sofa, listening(tmp_path, shelf=sofa) as scim:
        ids = []
        for number in (1, 2):
            object_id = f"00000000-0000-4000-8000-{number:012}"
            ids.append((await scim.user(f"user-{number}@firma.example", externalId=object_id))["id"])
        boss, clerk = ids
        operation = {"op": "Add", "path": f"{ENTERPRISE_SCHEMA}:manager", "value": boss}
        answer = await scim.patch(f"/Users/{clerk}", operation)
        assert (answer.status, answer.body[ENTERPRISE_SCHEMA]["manager"]["value"]) == (200, boss)
        held = {user["user_name"]: user for user in product.state()["users"].values()}
        assert held["user-2@firma.example"]["direct_superior"] == held["user-1@firma.example"]["id"]


class Calling(Shelf):
    """A product that is called over HTTP for every new account."""

    http: HttpClient

    async def create(self, account: User, ctx: Delivery) -> str:
        await self.http.request("POST", "/accounts", json={}, ctx=ctx)
        return await super().create(account, ctx)


async def test_the_trace_of_a_scim_request_reaches_the_product(tmp_path: Path) -> None:
    """reliability section 5: one trace from Entra's request to the product's call; without one, or a broken one, we begin it."""
    seen: list[str | None] = []
    states: list[str | None] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(valid_traceparent(request.headers.get("traceparent")))
        states.append(request.headers.get("tracestate"))
        return web.json_response({})

    shelf = Calling()
    async with serving(answer) as url, client(url) as http, listening(tmp_path, shelf=shelf) as scim:
        shelf.http = http
        for number, traced in enumerate(({"traceparent": TRACE}, {}, {"traceparent": "broken"})):
            headers = {**traced, "tracestate": STATE}
            body = {"schemas": [USER], "userName": f"user-{number}@contoso.example"}
            assert (await scim.post("/Users", body, headers=headers)).status == 201
    assert seen[0] == TRACE
    assert None not in seen
    assert len(set(seen)) == 3
    assert states == [STATE, None, None]


# ---- old events, traces


def test_an_event_of_an_older_version_reads_as_one_that_says_nothing() -> None:
    """reliability section 5: old event versions stay readable, with what they did not know left open."""
    event = decode_event(
        b'{"id":"01J","target":"t","connector":"c","kind":"user","resource":"r1","generation":1,"fence":1,'
        b'"change":"create","document":{"userName":"a"},"identities":["userName:a"]}'
    )
    assert (event.accounts, event.created_by_us, event.traceparent) == ({}, None, "")
    assert "ce-traceparent" not in event_headers(event, recorded_at=1.0, act_before=2.0)


async def test_a_requests_trace_goes_with_its_event_and_every_delivery_of_it(office: Office) -> None:
    """reliability section 5: ce-traceparent; W3C Trace Context section 3.2."""
    (user,) = await office.users(1)
    await office.lead(user, user, trace=Trace(TRACE, STATE))
    (event,) = await office.events()
    headers = event_headers(event, recorded_at=1.0, act_before=2.0)
    assert (event.traceparent, headers["ce-traceparent"]) == (TRACE, TRACE)
    assert (event.tracestate, headers["ce-tracestate"]) == (STATE, STATE)
    office.shelf.away = True
    await office.work()
    office.shelf.away = False
    await office.later(30)
    assert office.shelf.told[-1].traceparent == TRACE

    await office.lead(user, None)
    (event,) = await office.events()
    assert event.traceparent == made_traceparent(event.id) != TRACE
    assert event.tracestate == "", "of a trace of our own nobody has said anything"
    assert valid_traceparent(event.traceparent) == event.traceparent


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (None, None),
        ("", None),
        (TRACE, TRACE),
        (f" {TRACE} ", TRACE),
        (TRACE.upper(), None),
        (TRACE.replace("00-4", "ff-4"), None),
        (TRACE + "-more", None),
        (TRACE.replace("00-4", "01-4") + "-more", TRACE),
        (TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32), None),
        (TRACE.replace("00f067aa0ba902b7", "0" * 16), None),
        (TRACE + "\r\nX: y", None),
        (f"{TRACE},{TRACE}", None),
    ],
)
def test_only_a_valid_trace_context_is_passed_on(sent: str | None, kept: str | None) -> None:
    """W3C Trace Context sections 3.2.2 and 4.3: invalid means a new trace; a later version is read as far as it is known."""
    assert valid_traceparent(sent) == kept


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (None, ""),
        (STATE, STATE),
        (" a=1 ,,\tb=2", "a=1,b=2"),
        ("a=1,a=2", ""),
        ("a=1,b", ""),
        ("A=1", ""),
        ("a=1=2", ""),
        ("a=1\r\nX: y", ""),
        ("a=\u00e9", ""),
        (",".join(f"k{n}=v" for n in range(33)), ""),
        (
            "new=1,long=" + "x" * 200 + ",other=" + "y" * 120 + ",more=" + "z" * 200,
            "new=1,long=" + "x" * 200 + ",other=" + "y" * 120,
        ),
        (",".join(f"k{n:02}=" + "v" * 60 for n in range(10)), ",".join(f"k{n:02}=" + "v" * 60 for n in range(7))),
    ],
)
def test_only_a_valid_tracestate_is_passed_on_and_not_more_of_it_than_has_to_be(sent: str | None, kept: str) -> None:
    """W3C Trace Context section 3.3.1: invalid as a whole or not at all; long entries go first, then the oldest."""
    assert valid_tracestate(sent) == kept


def test_every_wish_without_a_trace_has_one_of_its_own() -> None:
    """Equal for every delivery of one wish, different for every other one."""
    made = {made_traceparent(f"01J{n}") for n in range(200)}
    assert len(made) == 200
    assert made == {valid_traceparent(one) for one in made}
