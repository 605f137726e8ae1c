"""Waiting in tests: for a condition, never for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

WAIT_S = 60.0
"""Generous on purpose: whoever waits goes on as soon as it is so, and machines are busy at times."""
LOOK_EVERY_S = 0.02


async def until(condition: Callable[[], Any], what: str = "", *, wait_s: float = WAIT_S) -> Any:
    """Wait until a condition, plain or awaitable, gives something true, and return it; fails with `what` when the time is up."""
    try:
        async with asyncio.timeout(wait_s):
            while True:
                found = condition()
                if isinstance(found, Awaitable):
                    found = await found
                if found:
                    return found
                await asyncio.sleep(LOOK_EVERY_S)
    except TimeoutError:
        raise AssertionError(f"not within {wait_s:g} s: {what or 'the condition'}") from None
