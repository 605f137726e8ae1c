"""How memberships reach a product: the real store on both engines, the real engine and delivery, a clock set by hand."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from connectors.contract import Delivery
from gateway.bus import Message
from gateway.dispatch import Dispatcher
from gateway.intake import Answer, Intake, Waiters
from gateway.lifecycle import Row
from gateway.outcomes import Outcomes
from gateway.patch import MemberChange
from gateway.store import MEMBERS_PER_EVENT_MAX, Store
from gateway.visibility import is_visible
from schemas.config import TargetSettings
from schemas.errors import Unavailable
from schemas.events import Outcome, decode_event
from schemas.resources import User
from schemas.states import State
from tests.connectors.alone import Known, StaysOurs
from tests.gateway.scim_listener import GroupShelf
from tests.gateway.stand_ins import Background, HandClock, HeldBus
from tests.gateway.test_store import location, postgres, postgres_url, store  # noqa: F401 - fixtures
from workers.delivery import deliver

TARGET = "shelf"
NOBODY = "0b7fd5f4-0000-4000-8000-000000000000"
ROUNDS_MAX = 50


class LossyShelf(GroupShelf):
    """A product whose answer to a change of members can get lost after the change was made, or before."""

    def __init__(self) -> None:
        super().__init__()
        self.losing = ""

    async def change_members(self, group_id: str, add: Any, remove: Any, ctx: Delivery) -> None:
        if self.losing != "before":
            await super().change_members(group_id, add, remove, ctx)
        if self.losing:
            raise Unavailable("Shelf did not answer in time.", ambiguous=True)


class Desk:
    """The engine with one target, worked by hand."""

    def __init__(self, opened: Store) -> None:
        self.store = opened
        self.clock = HandClock()
        self.bus = HeldBus()
        self.shelf = LossyShelf()
        self._background = Background()
        settings = {TARGET: TargetSettings(connector="shelf")}
        self.dispatcher = Dispatcher(opened, self.bus, self.clock, self._background.spawn, lambda: settings)
        self.outcomes = Outcomes(opened, self.bus, self.clock, self.dispatcher, lambda: settings, jitter=lambda: 0.5)
        self.intake = Intake(
            opened,
            self.dispatcher,
            Waiters(),
            self.clock,
            lambda: settings,
            answer_wait_s=1.0,
            new_id=lambda: uuid.uuid4().hex,
            new_resource=lambda: str(uuid.uuid4()),
            healthy=lambda target: False,
            identity_paths=lambda target: ("userName",),
        )
        self._numbers = itertools.count(1)

    async def quiet(self) -> None:
        """Until nothing runs by itself any more."""
        await self._background.quiet()

    async def work(self) -> None:
        """Deliver what is out, and what follows from it, until there is nothing more."""
        for _ in range(ROUNDS_MAX):
            await self.quiet()
            messages, self.bus.sent = self.bus.sent, {}
            if not messages:
                return
            for message in messages.values():
                await self.outcomes.fold(await self.delivered(message))
        raise AssertionError("the engine does not come to rest")

    async def delivered(self, message: Message) -> Outcome:
        """What the worker says about one event."""
        outcome = await deliver(
            decode_event(message.body),
            delivery=1,
            connector=self.shelf,
            directory=Known(),
            owned=StaysOurs(),
            new_id=lambda: uuid.uuid4().hex,
            clock=self.clock.now,
        )
        assert outcome is not None
        return outcome

    async def later(self, seconds: float) -> None:
        """Let time pass, then do what time alone brings about."""
        self.clock.time += seconds
        await self.dispatcher.sweep()
        await self.work()

    async def users(self, count: int) -> list[str]:
        """Ids of new users with accounts."""
        made = [await self.user() for _ in range(count)]
        await self.work()
        return made

    async def crowd(self, count: int) -> list[str]:
        """Ids of many users with accounts, put there at once."""
        rows = []
        for number in range(count):
            account, name = f"crowd-{number}", f"crowd-{number:05}@contoso.example"
            self.shelf.accounts[account] = User(user_name=name)
            row = Row(id=f"{number:05}", target=TARGET, generation=1, acknowledged=1, settled_generation=1)
            row.state, row.account_id, row.event_id = State.APPLIED, account, f"event-{number}"
            row.document = row.settled_document = msgspec.json.encode({"userName": name})
            rows.append(row)
        await self.store.run(lambda ledger: [ledger.save(row) for row in rows])
        return [row.id for row in rows]

    async def user(self) -> str:
        """A new user whose creation is on its way."""
        name = f"user-{next(self._numbers):05}@contoso.example"
        return taken(await self.intake.create(TARGET, "user", {"userName": name})).id

    async def group(self, *members: str, name: str = "Sales") -> str:
        """A new group whose creation is on its way."""
        wished = (MemberChange("replace", members),)
        return taken(await self.intake.create(TARGET, "group", {"displayName": name}, members=wished)).id

    async def patch(self, group: str, *changes: MemberChange, name: str | None = None) -> Answer:
        """Change members, and the name if one is given."""
        seen = await self.row(group)

        def compute(base: dict[str, Any]) -> dict[str, Any]:
            return base if name is None else {**base, "displayName": name}

        return await self.intake.change(TARGET, "group", seen, compute, members=changes)

    async def row(self, resource: str) -> Row:
        """The row of a resource."""
        row = await self.store.read(lambda reader: reader.row(resource))
        assert row is not None
        return row

    async def wished(self, group: str) -> set[str]:
        """Who shall be in a group."""
        return set(await self.store.read(lambda reader: reader.members(group)))

    async def at_product(self, group: str) -> set[str]:
        """Who is in the group at the product, by account id."""
        account = (await self.row(group)).account_id
        assert account is not None
        return set(self.shelf.groups[account][1])

    async def accounts(self, *users: str) -> set[str]:
        """Account ids of users."""
        rows = await self.store.read(lambda reader: [reader.row(user) for user in users])
        found = {row.account_id for row in rows if row is not None and row.account_id is not None}
        assert len(found) == len(users)
        return found


def taken(answer: Answer) -> Row:
    """The row of a write that was accepted."""
    assert answer.error is None, answer.error.detail
    assert answer.row is not None
    return answer.row


def add(*members: str) -> MemberChange:
    return MemberChange("add", members)


def remove(*members: str) -> MemberChange:
    return MemberChange("remove", members)


@pytest.fixture
async def desk(store: Store) -> AsyncIterator[Desk]:  # noqa: F811 - the fixture of that name
    made = Desk(store)
    yield made
    await made.quiet()


# ---- who waits


async def test_a_member_without_an_account_holds_up_only_itself(desk: Desk) -> None:
    """T12: all others are in at once, the group says whom it waits for, and that one follows without any further request."""
    one, two = await desk.users(2)
    desk.shelf.away = True
    late = await desk.user()
    await desk.work()
    desk.shelf.away = False
    group = await desk.group(one, late, two)
    await desk.work()

    assert await desk.at_product(group) == await desk.accounts(one, two)
    row = await desk.row(group)
    assert (row.state, row.blocked_on) == (State.BLOCKED, f"member {late}")
    assert row.settled_generation == row.generation

    for _ in range(5):
        await desk.later(10)

    assert (await desk.row(late)).state is State.APPLIED
    assert await desk.at_product(group) == await desk.accounts(one, two, late)
    row = await desk.row(group)
    assert (row.state, row.blocked_on, row.reason, row.unfinished) == (State.APPLIED, None, None, False)


async def test_a_group_that_waits_for_nobodys_member_takes_further_changes(desk: Desk) -> None:
    """An id that is never going to exist must not stop the group."""
    one, two = await desk.users(2)
    group = await desk.group(NOBODY, one)
    await desk.work()

    taken(await desk.patch(group, add(two), name="Sales EU"))
    await desk.work()
    assert await desk.at_product(group) == await desk.accounts(one, two)
    assert {name for name, _ in desk.shelf.groups.values()} == {"Sales EU"}

    taken(await desk.patch(group, remove(NOBODY)))
    await desk.work()
    await desk.later(40)
    assert (await desk.row(group)).state is State.APPLIED


async def test_a_group_does_not_wait_for_somebody_who_was_deleted(desk: Desk) -> None:
    """A user that is deleted before its account was made is nobody's member any more."""
    (one,) = await desk.users(1)
    desk.shelf.away = True
    late = await desk.user()
    await desk.work()
    desk.shelf.away = False
    group = await desk.group(one, late)
    await desk.work()

    assert (await desk.intake.delete(TARGET, "user", late)).error is None
    for _ in range(5):
        await desk.later(10)

    assert await desk.wished(group) == {one}
    assert (await desk.row(group)).state is State.APPLIED


async def test_members_of_a_group_that_was_refused_do_not_come_back_with_the_next(desk: Desk) -> None:
    """A create that the product refused is reused by the next POST of that name; it counts as that POST says."""
    one, two = await desk.users(2)
    desk.shelf.refused.add("Sales")
    refused = await desk.group(one)
    await desk.work()
    row = await desk.row(refused)
    assert row.state is State.DEAD  # acknowledged before the product's word came
    desk.shelf.refused.clear()

    taken(await desk.patch(refused, MemberChange("replace", (two,))))
    await desk.work()

    assert await desk.at_product(refused) == await desk.accounts(two)


async def test_a_refused_group_stays_hidden_although_it_also_waited_for_a_member(desk: Desk) -> None:
    """T13: the product's refusal is told to the caller who waits for it, so nothing of that create may count as acknowledged."""
    (one,) = await desk.users(1)
    desk.shelf.away = True
    late = await desk.user()
    await desk.work()
    desk.shelf.away = False
    desk.shelf.refused.add("Sales")
    waiters = desk.intake.waiters
    desk.intake.healthy = lambda target: True
    desk.intake.answer_wait_s = 5.0
    desk.outcomes.awaited = waiters.awaited
    desk.outcomes.on_settled = lambda row: waiters.wake(row.id, row)

    for _ in range(2):  # the same POST again, as Entra sends it
        wished = (MemberChange("replace", (one, late)),)
        asked = asyncio.ensure_future(desk.intake.create(TARGET, "group", {"displayName": "Sales"}, members=wished))
        async with asyncio.timeout(5):
            while not asked.done():
                await desk.work()
                await asyncio.sleep(0.001)
        answer = asked.result()
        assert answer.error is not None
        assert answer.error.status == 400
        rows = await desk.store.read(lambda reader: reader.in_state(TARGET, State.REJECTED, 9))
        assert [(row.acknowledged, is_visible(row)) for row in rows] == [(0, False)]


async def test_a_create_that_another_one_took_over_is_not_confirmed_by_its_own_refusal(desk: Desk) -> None:
    """T13: the first POST was refused while the second one's wish waited, and that one is refused, too: nobody is told 201."""
    one, two = await desk.users(2)
    desk.shelf.refused.add("Sales")
    waiters = desk.intake.waiters
    desk.intake.healthy = lambda target: True
    desk.intake.answer_wait_s = 5.0
    desk.outcomes.awaited = waiters.awaited
    desk.outcomes.on_settled = lambda row: waiters.wake(row.id, row)

    asked = [
        asyncio.ensure_future(
            desk.intake.create(TARGET, "group", {"displayName": "Sales"}, members=(MemberChange("replace", (member,)),))
        )
        for member in (one, two)
    ]
    async with asyncio.timeout(5):
        while not all(task.done() for task in asked):
            await asyncio.sleep(0.001)
            await desk.work()

    assert [task.result().error and task.result().error.status for task in asked] == [400, 400]
    (row,) = await desk.store.read(lambda reader: reader.in_state(TARGET, State.REJECTED, 9))
    assert (row.generation, row.acknowledged, is_visible(row)) == (2, 0, False)


# ---- how much at once


async def test_more_differences_than_an_event_carries_follow_one_another(desk: Desk) -> None:
    """1,000 differences per event: a large change goes out in pieces, each settled before the next, all under one wish."""
    crowd = await desk.crowd(2 * MEMBERS_PER_EVENT_MAX + 300)
    group = await desk.group(*crowd)
    generation = (await desk.row(group)).generation
    await desk.work()

    assert await desk.at_product(group) == await desk.accounts(*crowd)
    assert [added for added, _ in desk.shelf.steps] == [MEMBERS_PER_EVENT_MAX, MEMBERS_PER_EVENT_MAX, 300]
    row = await desk.row(group)
    assert (row.state, row.generation, row.unfinished) == (State.APPLIED, generation, False)

    desk.shelf.steps.clear()
    taken(await desk.patch(group, MemberChange("replace", tuple(crowd[:200]))))
    await desk.work()
    assert desk.shelf.steps == [(0, MEMBERS_PER_EVENT_MAX), (0, MEMBERS_PER_EVENT_MAX), (0, 100)]
    assert await desk.at_product(group) == await desk.accounts(*crowd[:200])


async def test_a_change_in_the_middle_of_a_large_one_is_not_lost(desk: Desk) -> None:
    """The pieces are computed when they are sent, so what was taken back meanwhile is not sent any more."""
    crowd = await desk.crowd(MEMBERS_PER_EVENT_MAX + 50)
    group = await desk.group(*crowd)
    await desk.quiet()
    assert len(desk.bus.sent) == 1
    last = sorted(crowd)[-10:]

    taken(await desk.patch(group, remove(*last)))
    await desk.work()

    assert await desk.at_product(group) == await desk.accounts(*sorted(crowd)[:-10])
    assert [added for added, _ in desk.shelf.steps] == [MEMBERS_PER_EVENT_MAX, 40]


# ---- what is lost and comes back


async def test_a_group_that_vanished_at_the_product_is_made_again_with_everybody(desk: Desk) -> None:
    """Nobody is in a group that was just created: whoever was settled is sent again, not only the last difference."""
    one, two, three = await desk.users(3)
    group = await desk.group(one, two)
    await desk.work()
    first = (await desk.row(group)).account_id
    desk.shelf.groups.clear()

    taken(await desk.patch(group, add(three)))
    await desk.work()
    await desk.later(1)

    assert (await desk.row(group)).account_id != first
    assert await desk.at_product(group) == await desk.accounts(one, two, three)
    assert (await desk.row(group)).state is State.APPLIED


async def test_a_group_made_again_has_nobody_who_was_removed_before(desk: Desk) -> None:
    """Only wished members are sent again."""
    one, two, three = await desk.users(3)
    group = await desk.group(one, two)
    await desk.work()
    desk.shelf.groups.clear()

    taken(await desk.patch(group, remove(one), add(three)))
    await desk.work()
    await desk.later(1)

    assert await desk.at_product(group) == await desk.accounts(two, three)


async def test_an_outage_in_between_leaves_no_difference(desk: Desk) -> None:
    """Ten PATCHes while the product is away become what they mean together."""
    crowd = await desk.users(10)
    group = await desk.group(*crowd[:5])
    await desk.work()
    desk.shelf.away = True
    for member in crowd[5:]:
        taken(await desk.patch(group, add(member)))
        await desk.work()
    for member in crowd[:5]:
        taken(await desk.patch(group, remove(member)))
        await desk.work()
    desk.shelf.away = False
    for _ in range(8):
        await desk.later(30)

    assert await desk.at_product(group) == await desk.accounts(*crowd[5:])
    assert (await desk.row(group)).state is State.APPLIED


async def test_somebody_removed_while_the_add_is_on_its_way_is_taken_out_again(desk: Desk) -> None:
    """Access that was withdrawn must not stay because the two requests came close together."""
    one, two = await desk.users(2)
    group = await desk.group(one)
    await desk.work()
    taken(await desk.patch(group, add(two)))
    await desk.quiet()
    assert len(desk.bus.sent) == 1  # the add is out

    taken(await desk.patch(group, remove(two)))
    await desk.work()

    assert await desk.at_product(group) == await desk.accounts(one)


async def test_somebody_added_again_while_the_removal_is_on_its_way_is_put_back(desk: Desk) -> None:
    """The other way round: the last word counts."""
    one, two = await desk.users(2)
    group = await desk.group(one, two)
    await desk.work()
    taken(await desk.patch(group, remove(two)))
    await desk.quiet()
    assert len(desk.bus.sent) == 1

    taken(await desk.patch(group, add(two)))
    await desk.work()

    assert await desk.at_product(group) == await desk.accounts(one, two)


@pytest.mark.parametrize("first", ["add", "remove"])
async def test_a_change_whose_answer_was_lost_is_undone_when_it_is_taken_back(desk: Desk, first: str) -> None:
    """T4: after an ambiguous end nobody knows whether it happened, so the opposite wish is sent and not saved."""
    one, two = await desk.users(2)
    group = await desk.group(*((one,) if first == "add" else (one, two)))
    await desk.work()
    there, back = (add(two), remove(two)) if first == "add" else (remove(two), add(two))
    desk.shelf.losing = "after"
    taken(await desk.patch(group, there))
    await desk.work()
    desk.shelf.losing = ""

    taken(await desk.patch(group, back))
    for _ in range(8):
        await desk.later(30)

    assert (await desk.row(group)).state is State.APPLIED
    assert await desk.at_product(group) == await desk.accounts(*((one,) if first == "add" else (one, two)))


@pytest.mark.parametrize("losing", ["before", "after"])
async def test_a_change_whose_answer_was_lost_is_made_once_more(desk: Desk, losing: str) -> None:
    """T4: whether the product did it or not, it is sent again until it is confirmed."""
    one, two, three = await desk.users(3)
    group = await desk.group(one, two)
    await desk.work()
    desk.shelf.losing = losing
    taken(await desk.patch(group, add(three), remove(one)))
    await desk.work()
    desk.shelf.losing = ""
    for _ in range(8):
        await desk.later(30)

    assert await desk.at_product(group) == await desk.accounts(two, three)
    assert (await desk.row(group)).state is State.APPLIED


# ---- all or nothing


async def test_a_patch_that_is_refused_changes_no_member(desk: Desk) -> None:
    """RFC 7644 section 3.5.2: a PATCH applies as a whole or not at all."""
    one, two = await desk.users(2)
    await desk.group(name="Support")
    group = await desk.group(one)
    await desk.work()

    answer = await desk.patch(group, add(two), remove(one), name="Support")

    assert answer.error is not None
    assert answer.error.status == 409
    assert await desk.wished(group) == {one}


async def test_a_stale_patch_changes_no_member(desk: Desk) -> None:
    """412 is decided before anything is written."""
    one, two = await desk.users(2)
    group = await desk.group(one)
    await desk.work()
    seen = await desk.row(group)

    answer = await desk.intake.change(
        TARGET, "group", seen, lambda base: base, if_match=lambda row: False, members=(add(two),)
    )

    assert answer.error is not None
    assert answer.error.status == 412
    assert await desk.wished(group) == {one}


async def test_each_write_is_one_generation_and_repeats_are_none(desk: Desk) -> None:
    """T1: a generation is a difference; asking again for what is there is none."""
    one, two = await desk.users(2)
    group = await desk.group(one)
    await desk.work()
    before = (await desk.row(group)).generation

    taken(await desk.patch(group, add(two), add(one)))
    taken(await desk.patch(group, add(two)))
    taken(await desk.patch(group, remove(NOBODY)))
    await desk.work()

    assert (await desk.row(group)).generation == before + 1
