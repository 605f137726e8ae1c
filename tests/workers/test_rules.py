"""Rules of delivery as a worker keeps them, by name; what each step does is in `test_delivery.py`."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.states import Change
from tests.workers.test_delivery import BOB, GroupProduct, Owner, run

CALLS = {"find", "create", "update", "delete"}


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"account_id": "a1"},
        {"account_id": "a1", "look": True, "lookup": (BOB,), "watch": (BOB,), "strays": ("a2", "a3")},
        {"account_id": "a9", "look": True},
        {
            "deleted": True,
            "change": Change.DELETE,
            "account_id": "a1",
            "look": True,
            "lookup": (BOB,),
            "strays": ("a2",),
        },
        {"deleted": True, "change": Change.DELETE, "lookup": (BOB,)},
        {"read_only": True, "lookup": (BOB,), "watch": (BOB,)},
    ],
    ids=["create", "update", "update in doubt", "account gone", "delete in doubt", "delete by name", "look"],
)
async def test_T3_the_check_stands_right_before_every_call(event: dict[str, Any]) -> None:
    """T3: the delivery is still ours at each call, not only at the first one; nothing else happens in between."""
    product = GroupProduct()
    product.accounts = {"a1": {"name": "old"}, "a2": {}, "a3": {}}

    class Noting(Owner):
        def check(self) -> None:
            product.journal.append(("check", None))

    await run(product, owned=Noting(), **event)

    steps = product.steps
    calls = [place for place, step in enumerate(steps) if step in CALLS]
    assert calls
    assert all(steps[place - 1] == "check" for place in calls), steps
