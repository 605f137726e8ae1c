"""Observe: accepts anything, calls nobody, remembers a bounded number of changes."""

from __future__ import annotations

import pytest

from connectors import registry
from connectors.contract import Delivery, PutsGroups
from connectors.observe import SIGHTS_MAX, Observe, Settings
from schemas.errors import ConnectorBug
from schemas.resources import Group, Member, User
from tests.connectors.alone import Known


@pytest.fixture
def observe() -> Observe:
    """The connector as a worker builds it."""
    connector, http = registry.build("observe", Settings())
    assert isinstance(connector, Observe)
    assert http is None
    return connector


ODD = {
    "userName": "x",
    "roles": [{"value": "a"}],
    "addresses": [{"type": "work", "locality": "Porto"}],
    "urn:example:custom:2.0:User": {"shoeSize": 43},
}


async def test_a_user_of_any_shape_is_accepted_and_nothing_is_ignored(observe: Observe) -> None:
    """Accepts users and groups of any shape."""
    user = User.from_document(ODD)
    account = observe.normalize(user, Known())
    await observe.create(account, Delivery(idempotency_key="E1-1"))
    assert observe.ignored(user) == ()
    assert observe.sights[0].paths == (
        "userName",
        'addresses[type eq "work"].locality',
        "roles",
        "urn:example:custom:2.0:User:shoeSize",
    )


async def test_a_redelivery_answers_with_the_same_account(observe: Observe) -> None:
    """P3: effectively once per event, also on another worker."""
    other = Observe(Settings(), registry.CallsNobody())
    user = User(user_name="x")
    first = await observe.create(user, Delivery(idempotency_key="E1-1"))
    assert await observe.create(user, Delivery(idempotency_key="E1-1", attempt=2)) == first
    assert await other.create(user, Delivery(idempotency_key="E1-1")) == first
    assert await other.create(user, Delivery(idempotency_key="E2-1")) != first, "one account, one live link (I8)"


async def test_find_never_finds_because_there_is_no_store(observe: Observe) -> None:
    """What a worker remembers is no evidence: the next one would not remember it."""
    await observe.create(User(user_name="x"), Delivery(idempotency_key="E1-1"))
    assert await observe.find(User(user_name="x"), ("userName:x",), Delivery()) == []


async def test_groups_and_members_are_accepted(observe: Observe) -> None:
    """Contract: PutsGroups in a simple form."""
    assert isinstance(observe, PutsGroups)
    group = Group(display_name="Support", add=(Member(id="1", account_id="obs-1"),))
    ctx = Delivery(idempotency_key="E1-1")
    assert await observe.find_group(group, (), ctx) == []
    group_id = await observe.put_group(None, group, ctx)
    assert await observe.put_group(group_id, group, Delivery(idempotency_key="E2-1")) == group_id
    await observe.change_members(group_id, ["obs-1"], [], ctx)
    await observe.delete_group(group_id, ctx)
    assert observe.counts == {
        "put_group": 2,
        "change_members": 1,
        "members_added": 1,
        "members_removed": 0,
        "delete_group": 1,
    }


async def test_only_the_newest_changes_are_kept_and_all_are_counted(observe: Observe) -> None:
    """Every memory has a bound."""
    for number in range(SIGHTS_MAX + 5):
        await observe.update(f"obs-{number}", User(user_name=str(number)), Delivery())
    await observe.delete("obs-1", Delivery())
    assert len(observe.sights) == SIGHTS_MAX
    assert observe.sights[-1].act == "delete"
    assert observe.counts["update"] == SIGHTS_MAX + 5


async def test_it_is_always_well_and_calls_nobody(observe: Observe) -> None:
    """A connector that calls nobody."""
    assert [finding.level for finding in await observe.check()] == ["ok"]
    with pytest.raises(ConnectorBug):
        await observe.http.request("GET", "/anything")
