"""Whose delivery it is, by the clock alone (delivery rule R7); against a real bus: `test_app.py`."""

from __future__ import annotations

import pytest

from schemas.topology import ACK_WAIT_S, CALL_S, OWNED_S
from tests.workers.conftest import Clock
from workers.delivery import NotOurs
from workers.ownership import HELD_MAX_S, Held, Link


@pytest.fixture
def clock() -> Clock:
    """A clock a test can put forward."""
    return Clock()


@pytest.fixture
def held(clock: Clock) -> Held:
    """A message pulled just now."""
    link = Link(clock)
    return Held(link, "reply", pulled_at=clock(), epoch=link.epoch)


def test_R7_the_three_bounds_leave_no_gap() -> None:
    """R7: a call that began at the last moment has ended before the broker delivers the event to somebody else."""
    assert OWNED_S + CALL_S < ACK_WAIT_S


def test_R7_a_delivery_is_ours_for_ten_seconds_after_its_pull(held: Held, clock: Clock) -> None:
    """R7: up to the bound, and not beyond."""
    clock.added_s += OWNED_S - 0.5
    held.check()

    clock.added_s += 1
    with pytest.raises(NotOurs):
        held.check()


def test_R7_what_was_lost_once_stays_lost(held: Held, clock: Clock) -> None:
    """R7: an answer that comes after the gap renews nothing; somebody else may have the event."""
    clock.added_s += OWNED_S + 1

    held.answered(clock())

    assert not held.ours


def test_R7_a_renewal_counts_from_when_the_signal_was_sent(held: Held, clock: Clock) -> None:
    """R7: the broker's time began at the latest when it answered and at the earliest when it was asked; the earlier counts."""
    sent_at = clock()
    clock.added_s += OWNED_S - 1

    held.answered(sent_at)
    clock.added_s += 2

    assert not held.ours


def test_R7_a_lost_connection_ends_every_delivery_held_through_it(clock: Clock) -> None:
    """R7: also the one whose message arrives afterwards, because its pull request was sent before."""
    link = Link(clock)
    epoch = link.epoch
    before = Held(link, "a", pulled_at=clock(), epoch=epoch)

    link.lost()

    assert not before.ours
    assert not Held(link, "b", pulled_at=clock(), epoch=epoch).ours
    assert Held(link, "c", pulled_at=clock(), epoch=link.epoch).ours


def test_no_delivery_is_kept_alive_for_ever(held: Held, clock: Clock) -> None:
    """A connector that hangs must not hold its event for good."""
    while clock.added_s < HELD_MAX_S:
        clock.added_s += 5
        held.answered(clock())

    clock.added_s += 1
    assert not held.ours
