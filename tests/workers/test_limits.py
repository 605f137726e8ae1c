"""Rate limits shared by workers, slots, and the cache of a product's names."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import Any

import pytest

from schemas.errors import Blocked, ConnectorError, Misconfigured, Unavailable
from schemas.specs import RateLimit
from tests.workers.conftest import Clock
from workers import limits
from workers.delivery import NotOurs
from workers.limits import CallLimit, NameCache
from workers.ownership import Slots


async def starts(limit: CallLimit, count: int) -> list[float]:
    """When each of so many calls, all waiting at once, was let go."""
    times: list[float] = []

    async def call() -> None:
        await limit.wait()
        times.append(time.monotonic())

    await asyncio.gather(*(call() for _ in range(count)))
    return times


@pytest.mark.parametrize(("workers", "most"), [(1, 6), (2, 3), (3, 2), (4, 1)])
async def test_no_interval_holds_more_calls_than_this_workers_part(workers: int, most: int) -> None:
    """The product's limit holds for any interval, bursts included, and is divided by the workers of the target."""
    per_s = 0.1
    limit = CallLimit(RateLimit(calls=6, per_s=per_s))
    limit.share_among(workers)

    times = await starts(limit, 3 * most)

    assert all(later - earlier >= per_s for earlier, later in zip(times, times[most:], strict=False))
    assert times[most - 1] - times[0] < per_s  # and a part is not given away


async def test_more_workers_than_calls_take_turns_in_a_longer_interval() -> None:
    """Four workers of a product that allows two calls in an interval: one call each in two intervals."""
    limit = CallLimit(RateLimit(calls=2, per_s=0.1))
    limit.share_among(4)

    times = await starts(limit, 3)

    assert all(later - earlier >= 0.2 for earlier, later in pairwise(times))


async def test_a_waiting_call_takes_the_new_share_when_a_worker_has_left() -> None:
    """The part is looked at again while waiting: nobody waits out an interval that no longer applies."""
    limit = CallLimit(RateLimit(calls=2, per_s=30.0))
    limit.share_among(2)
    await limit.wait()
    waiting = asyncio.create_task(limit.wait())
    await asyncio.sleep(0)

    limit.share_among(1)

    async with asyncio.timeout(2 * limits.LOOK_EVERY_S):
        await waiting


async def test_a_product_without_a_limit_is_not_slowed() -> None:
    """None means none."""
    limit = CallLimit(None)
    limit.share_among(5)

    times = await starts(limit, 1_000)

    assert times[-1] - times[0] < 2.0


async def test_slots_are_never_given_out_twice() -> None:
    """What is in a worker's hands is bounded: a pull asks for at most what is free, and waits when nothing is."""
    slots = Slots(3)

    assert await slots.take(2, wait_s=0.01) == 2
    assert await slots.take(5, wait_s=0.01) == 1
    assert await slots.take(1, wait_s=0.01) == 0
    waiting = asyncio.create_task(slots.take(4, wait_s=5))
    await asyncio.sleep(0)
    slots.give_back(2)
    assert await waiting == 2


class Directory:
    """A product's list of roles that can be told to fail."""

    def __init__(self) -> None:
        self.roles = ["Clerk"]
        self.loads = 0
        self.fails: Exception | None = None

    async def load(self) -> dict[str, list[dict[str, Any]]]:
        self.loads += 1
        await asyncio.sleep(0)
        if self.fails is not None:
            raise self.fails
        return {"role": [{"name": name, "active": True} for name in self.roles]}


async def test_names_are_loaded_on_a_miss_and_at_most_once_a_minute() -> None:
    """A burst of unknown names costs the product one call."""
    clock, product = Clock(), Directory()
    cache = NameCache(product.load, clock=clock)
    assert list(cache.names("role")) == []

    assert await cache.refresh()
    assert [entry["name"] for entry in cache.names("role") if not isinstance(entry, str)] == ["Clerk"]
    clock.added_s += limits.REFRESH_EVERY_S - 1
    assert not await cache.refresh()
    clock.added_s += 2
    assert await cache.refresh()

    assert product.loads == 2


async def test_deliveries_that_miss_a_name_together_share_one_load() -> None:
    """All of them are told that the names are new."""
    product = Directory()
    cache = NameCache(product.load)

    assert await asyncio.gather(*(cache.refresh() for _ in range(100))) == [True] * 100
    assert await asyncio.gather(*(cache.refresh() for _ in range(100))) == [False] * 100

    assert product.loads == 1


async def test_names_that_could_not_be_loaded_are_not_called_unknown() -> None:
    """Promise P6: a role nobody could look up must not be refused as if it did not exist; the failure is what happened."""
    clock, product = Clock(), Directory()
    cache = NameCache(product.load, clock=clock)
    product.fails = Unavailable("the product is down")

    for _ in range(2):
        with pytest.raises(Unavailable):
            await cache.refresh()
    assert product.loads == 1
    product.fails = None
    clock.added_s += limits.RELOAD_AFTER_FAILURE_S + 1

    assert await cache.refresh()


@pytest.mark.parametrize("failure", [Misconfigured("no right to list"), Unavailable("the product is down")])
async def test_names_of_an_earlier_load_stay_when_they_cannot_be_loaded_anew(failure: ConnectorError) -> None:
    """A9 concerns credentials: one mistyped role must not stop a target whose names were known a minute ago; it alone waits."""
    clock, product = Clock(), Directory()
    cache = NameCache(product.load, clock=clock)
    assert await cache.refresh()
    product.fails = failure
    clock.added_s += limits.REFRESH_EVERY_S + 1

    for _ in range(2):
        with pytest.raises(Blocked, match=str(failure)):
            await cache.refresh()
    assert product.loads == 2
    assert [entry["name"] for entry in cache.names("role") if not isinstance(entry, str)] == ["Clerk"]


async def test_what_is_remembered_of_a_product_has_a_bound() -> None:
    """A product that lists names without end does not fill a worker's memory."""
    product = Directory()
    product.roles = [f"role{number}" for number in range(limits.NAMES_MAX + 5)]
    cache = NameCache(product.load)
    await cache.refresh()
    assert len(cache.names("role")) == limits.NAMES_MAX


async def test_a_probe_that_went_well_ends_the_memory_of_a_failure() -> None:
    """A new credential takes effect at once, and does not meet the old refusal again."""
    product = Directory()
    cache = NameCache(product.load)
    product.fails = Misconfigured("the key expired")
    with pytest.raises(Misconfigured):
        await cache.refresh()
    product.fails = None

    cache.forgive()

    assert await cache.refresh()


async def test_a_load_ended_by_lost_ownership_counts_for_nobody() -> None:
    """R7: the call was not made, so the next delivery may make it at once."""
    product = Directory()
    cache = NameCache(product.load)
    product.fails = NotOurs()
    with pytest.raises(NotOurs):
        await cache.refresh()
    product.fails = None

    assert await cache.refresh()


async def test_an_operator_does_not_wait_for_the_minute() -> None:
    """A refresh on demand is done whenever the last one was; a product without such a call says no."""
    product = Directory()
    cache = NameCache(product.load)
    await cache.refresh()

    assert await cache.refresh(now=True)
    assert product.loads == 2
    assert not await NameCache(None).refresh(now=True)
