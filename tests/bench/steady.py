"""Many targets at the pace that Entra asks for, held for a while: filter, POST and PATCH in turn, at 25 requests a second each.

The pace is kept whatever the answers take: a request is due at a moment, and its time counts from that moment, also while it
waits for a free connection. So a server that cannot keep up shows in the times and in the rate reached, and nothing is hidden.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from deploy.emulators.entra import OBSERVE, filter_query, make_people, patch_body
from deploy.emulators.entra import Change as Changed
from tests.bench.client import Lane, connect, request

PER_S = 25.0
"""What one target is asked: the documented minimum for a SCIM server."""
CONNECTIONS = 8
"""Per target."""
LATE_MAX_S = 5.0
"""What could not be sent this long after the end is given up, and counted as unsent."""
HELD = 0.99
"""The pace counts as held when this share of it was reached."""

Step = Literal["filter", "create", "update"]
STEPS: dict[Step, int] = {"filter": 200, "create": 201, "update": 200}
"""By step, the status it should have."""


class Place(Struct, frozen=True):
    """One target: its name and its key."""

    name: str
    key: str


class Held(Struct):
    """What one run measured; seconds per step, in order of completion."""

    targets: int
    asked_per_s: float
    elapsed_s: float
    planned: int
    from_due: dict[Step, list[float]]
    """From the moment a request was due until its answer."""
    served: list[float]
    """From sending until the answer."""
    unexpected: Counter[str]
    unsent: int

    @property
    def answered(self) -> int:
        """Requests with an answer."""
        return len(self.served)

    @property
    def per_s(self) -> float:
        """The rate reached."""
        return self.answered / self.elapsed_s


class _Id(Struct):
    id: str


class _Wires:
    """Makes the requests of one target; only names differ from life to life."""

    def __init__(self, port: int, place: Place, prefix: str) -> None:
        self._port, self._place = port, place
        self._base = f"/scim/v2/{place.name}"
        self._prefix = prefix
        person = make_people(1, prefix="placeholder", managers=False)[0]
        self._document = msgspec.json.encode(OBSERVE.document(OBSERVE.values(person, creating=True), "legacy"))
        self._name = person.user_principal_name.partition("@")[0].encode()
        self._update = msgspec.json.encode(
            patch_body(
                [Changed("title", "Lead", "Engineer"), Changed("displayName", "Ada King", "Ada Byron")], "legacy"
            )
        )

    def name(self, number: int) -> str:
        return f"{self._prefix}{number:07d}"

    def filter(self, number: int) -> bytes:
        query = filter_query("userName", f"{self.name(number)}@contoso.example")
        return request(self._port, "GET", f"{self._base}/Users?{query}", self._place.key)

    def create(self, number: int) -> bytes:
        body = self._document.replace(self._name, self.name(number).encode())
        return request(self._port, "POST", f"{self._base}/Users", self._place.key, body)

    def update(self, resource: str) -> bytes:
        return request(self._port, "PATCH", f"{self._base}/Users/{resource}", self._place.key, self._update)


async def hold(
    port: int,
    places: Sequence[Place],
    seconds: float,
    prefix: str,
    *,
    per_s: float = PER_S,
    on_answer: Callable[[], None] = lambda: None,
) -> Held:
    """Keep the pace at every place for a while.

    Args:
        prefix: start of every user's name; new for every run against the same places.
        per_s: requests a second of every place.

    Raises:
        ConnectionError: the server closed a connection.
        TimeoutError: an answer took longer than the client's bound.
    """
    planned_each = int(seconds * per_s)
    held = Held(
        len(places),
        per_s * len(places),
        0.0,
        planned_each * len(places),
        {step: [] for step in STEPS},
        [],
        Counter(),
        0,
    )
    lanes = await connect(port, CONNECTIONS * len(places))
    started = time.perf_counter()
    give_up_at = started + seconds + LATE_MAX_S

    async def run(lane: Lane, wires: _Wires, slots: Iterator[int], lives: Iterator[int], offset_s: float) -> None:
        async def ask(step: Step, wire: bytes) -> bytes | None:
            slot = next(slots)
            if slot >= planned_each:
                return None
            due = started + offset_s + slot / per_s
            wait_s = due - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            sent = time.perf_counter()
            if sent > give_up_at:
                held.unsent += 1
                return None
            status, body = await lane.ask(wire)
            now = time.perf_counter()
            held.from_due[step].append(now - due)
            held.served.append(now - sent)
            if status != STEPS[step]:
                held.unexpected[f"{step} {status}"] += 1
                return b""
            on_answer()
            return body

        for life in lives:
            if await ask("filter", wires.filter(life)) is None:
                return
            created = await ask("create", wires.create(life))
            if created is None:
                return
            if created and await ask("update", wires.update(msgspec.json.decode(created, type=_Id).id)) is None:
                return

    try:
        async with asyncio.TaskGroup() as group:
            for number, place in enumerate(places):
                # the targets' clocks are apart: they are different jobs of Entra
                parts = (
                    _Wires(port, place, prefix),
                    itertools.count(),
                    itertools.count(),
                    number / len(places) / per_s,
                )
                for lane in lanes[number * CONNECTIONS : (number + 1) * CONNECTIONS]:
                    group.create_task(run(lane, *parts))
        held.elapsed_s = max(time.perf_counter() - started, seconds)
    finally:
        for lane in lanes:
            lane.close()
    held.unsent = held.planned - held.answered
    return held


def figures(held: Held, quantiles: Callable[[Sequence[float]], dict[str, float]]) -> dict[str, Any]:
    """The run as plain data."""
    return {
        "targets": held.targets,
        "requests_per_s_per_target": held.asked_per_s / held.targets,
        "requests_per_s_asked": held.asked_per_s,
        "requests_per_s_reached": round(held.per_s, 1),
        "held": held.per_s >= HELD * held.asked_per_s,
        "seconds": round(held.elapsed_s, 1),
        "requests": held.answered,
        "unsent": held.unsent,
        "ms_from_due": quantiles([seconds for step in STEPS for seconds in held.from_due[step]]),
        "ms_from_due_by_step": {step: quantiles(held.from_due[step]) for step in STEPS},
        "ms_from_sending": quantiles(held.served),
        "unexpected": dict(held.unexpected),
    }
