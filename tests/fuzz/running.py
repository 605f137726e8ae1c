"""One gateway, and requests against it: schemathesis first, then those of our own generators."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct, field

from schemas.config import TargetSettings
from tests.fuzz import published
from tests.fuzz.generators import Known, generated
from tests.gateway.scim_listener import ALPHA, BETA, GroupShelf, Listener, listening
from tests.gateway.test_groups_stateful import Loop
from tests.gateway.wire import Shot, Wire, judge

PUBLISHED_SHARE = 0.15
"""How many of the requests schemathesis makes; the rest is ours."""
WIRES = 2
"""Connections side by side: more would be refused filters without an index, which is 503 by design."""
PEOPLE = 12
FAILURES_MAX = 1_000


class Failure(Struct, frozen=True):
    """A request that was not answered as it has to be."""

    wrong: str
    where: str
    request: str


class Found(Struct):
    """What came of all requests: counts by status and kind (status 0: closed without an answer, as has to be)."""

    counts: Counter[tuple[int, str]] = field(default_factory=Counter)
    failures: list[Failure] = []
    slowest_s: float = 0.0

    @property
    def total(self) -> int:
        """How many requests were sent."""
        return sum(self.counts.values())

    def note(self, kind: str, status: int, wrong: str, where: str, request: str) -> None:
        """Count one."""
        self.counts[(status, kind)] += 1
        if wrong and len(self.failures) < FAILURES_MAX:
            self.failures.append(Failure(wrong, where, request))


def fuzz(folder: Path, count: int, seed: int, advance: Callable[[], None], *, only: int | None = None) -> Found:
    """Send so many requests to a gateway that is started for it.

    Args:
        only: of the own requests this number alone.
    """
    loop = Loop()
    stack, logs = contextlib.AsyncExitStack(), contextlib.ExitStack()
    settings = {name: TargetSettings(connector="shelf", auth=("key", "oauth")) for name in (ALPHA, BETA)}
    found = Found()
    lines = logs.enter_context(structlog.testing.capture_logs())
    try:
        scim: Listener = loop.run(stack.enter_async_context(listening(folder, shelf=GroupShelf(), targets=settings)))
        known = loop.run(_filled(scim))
        by_schema = round(count * PUBLISHED_SHARE) if only is None else 0

        def told(kind: str, status: int, wrong: str, request: str) -> None:
            advance()
            found.note(kind, status, wrong, f"seed {seed}", request.replace(scim.tokens[ALPHA], "$TOKEN"))

        document = scim.app.openapi(scim.origin, ALPHA)
        if by_schema:
            published.run(document, scim.origin, scim.tokens[ALPHA], known, by_schema, seed, told)
        numbers = range(count - found.total) if only is None else range(only, only + 1)
        loop.run(_own(scim, known, seed, numbers, found, advance), wait_s=None)
        found.failures += [
            Failure("a token in the log", str(line["event"]), "") for line in lines if scim.tokens[ALPHA] in str(line)
        ]
        return found
    finally:
        loop.run(stack.aclose())
        loop.close()
        logs.close()


async def _filled(scim: Listener) -> Known:
    """A few people and groups in each target."""
    known = Known(ALPHA)
    for number in range(PEOPLE):
        user = await scim.user(
            f"first-{number}@contoso.example",
            emails=[{"type": "work", "value": f"first-{number}@contoso.example"}],
            title="Engineer",
        )
        known.users.append(user["id"])
    known.groups += [(await scim.group(f"Group {n}", *known.users[n : n + 4]))["id"] for n in range(3)]
    known.foreign.append((await scim.user("other@contoso.example", target=BETA))["id"])
    return known


async def _own(
    scim: Listener, known: Known, seed: int, numbers: range, found: Found, advance: Callable[[], None]
) -> None:
    left = iter(numbers)

    async def sender() -> None:
        wire = Wire(scim.port)
        for number in left:
            shot = generated(seed, number, known)
            status, wrong = await shoot(scim, wire, shot, known, found)
            advance()
            request = repr(shot.wire("$TOKEN")) if wrong else ""
            found.note(shot.kind, status, wrong, f"--seed {seed} --only {number}", request)
        await wire.close()

    await asyncio.gather(*(sender() for _ in range(WIRES)))


async def shoot(scim: Listener, wire: Wire, shot: Shot, known: Known, found: Found) -> tuple[int, str]:
    """Send one, and give its status and what is wrong."""
    data = shot.wire(scim.tokens[ALPHA])
    if shot.raw:
        answers = await wire.alone(data)
        wrongs = [judge(heard) for heard in answers]
        if not answers and not shot.silent:
            wrongs = ["no answer"]
        return answers[0].status if answers else 0, next(filter(None, wrongs), "")
    head = shot.method == b"HEAD"
    heard = await wire.send(data, head=head)
    found.slowest_s = max(found.slowest_s, heard.took_s)
    wrong = judge(heard, head=head, token_endpoint=shot.path.startswith(b"/oauth2/"))
    if b'"nextCursor"' in heard.body:
        known.learn(msgspec.json.decode(heard.body))
    return heard.status, wrong
