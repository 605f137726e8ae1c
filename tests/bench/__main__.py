"""The benchmark: `make bench`, or `python -m tests.bench [--quick] [--steady-minutes M] [--json FILE]`.

It starts its own system on free ports and measures, with the floor (`tests/bench/floor.py`) in alternation with it: machines are
noisy, so the ratios of one round count more than any absolute number. Progress goes to standard error, the result as JSON to
standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import psutil
import uvloop
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from deploy.emulators.entra import (
    LOAD_STEPS,
    OBSERVE,
    TALKDESK,
    LoadResult,
    filter_query,
    load_cycle,
    make_people,
    members_body,
)
from deploy.local import Child, free_port, wait_for_port
from schemas import logs
from tests.bench.client import Run, drive, request
from tests.bench.fill import group_ids, resource_id, user_names
from tests.bench.steady import PER_S, Place, figures, hold
from tests.bench.system import VENDOR_DELAY_MS, VENDOR_TARGET, System

CONNECTIONS = (1, 8)
VENDOR_CONNECTIONS = 16
FILTER_CONNECTIONS = 8
FILTER_NAMES_MAX = 5_000
MEMORY_MIB_MAX = 150.0
BOUND_S = {False: 900.0, True: 240.0}
"""A quiet machine needs a third of it."""
CREATED, OK, NO_CONTENT = 201, 200, 204
STEADY_TARGETS = (16, 32)
STEADY_WARM_S = 1.0
FRESH_MEMBERS = 1_000
"""Users of the large store who are in no group yet: each PATCH adds one."""
STEADY_MINUTES_MAX = 120.0


class Size(Struct, frozen=True):
    """How much is done."""

    rounds: int
    lives: dict[int, int]
    """Users per round of the cycle, by connections."""
    floor_requests: dict[int, int]
    vendor_users: int
    stored: tuple[int, int]
    filter_rounds: int
    filter_round_s: float
    members: tuple[int, ...]
    """Members of the groups that are added to; the first is what the others are compared with."""
    member_rounds: int
    member_patches: int
    """Per round and size."""
    steady_s: float
    """How long each number of targets is held."""


FULL = Size(
    3, {1: 100, 8: 500}, {1: 300, 8: 1_500}, 1_000, (1_000, 100_000), 6, 1.5, (10, 10_000, 100_000), 3, 60, 10.0
)
QUICK = Size(1, {1: 40, 8: 200}, {1: 150, 8: 600}, 200, (1_000, 10_000), 3, 1.0, (10, 1_000, 10_000), 2, 30, 3.0)


class Bench:
    """One run of everything.

    Args:
        folder: for what the systems keep.
        log_level: of the targets.
    """

    def __init__(self, size: Size, folder: Path, progress: Progress, log_level: str) -> None:
        self.size = size
        self.folder = folder
        self.progress = progress
        self.log_level = log_level

    async def run(self) -> dict[str, Any]:
        """Measure; the result is plain data."""
        started, load_before = time.monotonic(), os.getloadavg()
        with_system = await self._with_system()
        filters = await self._filters()
        members = await self._members()
        steady = await self._steady()
        return {
            "machine": {
                "processors": os.cpu_count(),
                "load_before": load_before,
                "load_after": os.getloadavg(),
                "python": platform.python_version(),
                "memory_mib": round(psutil.virtual_memory().total / 2**20),
            },
            "seconds": round(time.monotonic() - started, 1),
            **with_system,
            **filters,
            **members,
            **steady,
        }

    # ---- with bus, worker and product

    async def _with_system(self) -> dict[str, Any]:
        with self._step("starting gateway, worker, nats-server and an emulated product"):
            system = System(self.folder / "system", log_level=self.log_level)
            await system.__aenter__()
        try:
            floor = await self._start_floor(system)
            with self._step("warming up"):
                await self._cycle(system, 30, 8, "warm")
                await self._floor(floor, "group", 200, 8, "warm")
            cycles: dict[int, list[LoadResult]] = {connections: [] for connections in CONNECTIONS}
            floors: dict[int, list[Run]] = {connections: [] for connections in CONNECTIONS}
            each: list[Run] = []
            used = dict.fromkeys(system.cpu_s(), 0.0)
            for number in range(self.size.rounds):
                for connections in CONNECTIONS:
                    title = f"round {number + 1} of {self.size.rounds}, {connections} connections: "
                    with self._step(f"{title}Entra's cycle", self.size.lives[connections]) as step:
                        before = system.cpu_s()
                        lives = self.size.lives[connections]
                        cycles[connections].append(
                            await self._cycle(system, lives, connections, f"r{number}", step.advance)
                        )
                        if connections == CONNECTIONS[-1]:
                            after = system.cpu_s()
                            used = {name: used[name] + after[name] - before[name] for name in used}
                    count = self.size.floor_requests[connections]
                    with self._step(f"{title}the floor"):
                        floors[connections].append(await self._floor(floor, "group", count, connections, f"g{number}"))
                with self._step("the floor with a commit per request"):
                    count = self.size.floor_requests[CONNECTIONS[-1]] // 3
                    each.append(await self._floor(floor, "each", count, CONNECTIONS[-1], f"e{number}"))
            with self._step(
                f"applied by a product that takes {VENDOR_DELAY_MS} ms a call", self.size.vendor_users
            ) as step:
                applied = await self._end_to_end(system, step.advance)
            memory = {name: mib for name, mib in system.memory_mib().items() if name in ("gateway", "worker")}
        finally:
            with self._step("stopping"):
                await system.supervisor.stop()
        requests = sum(result.requests for result in cycles[CONNECTIONS[-1]])
        cpu = {name: round(1000 * used[name] / requests, 3) for name in ("gateway", "worker", "nats-server")}
        return {
            "cycle": [
                _cycle_figures(connections, cycles[connections], floors[connections]) for connections in CONNECTIONS
            ],
            "cycle_cpu_ms_per_request": cpu,
            "applied_end_to_end": {
                **applied,
                "ratio_to_floor": _ratio(applied["per_s"], _per_s(floors[CONNECTIONS[-1]])),
            },
            "floor": {
                "what": "Litestar, msgspec, one row committed (many rows together), one message with its PubAck",
                **{f"connections_{c}": _run_figures(floors[c]) for c in CONNECTIONS},
                "commit_per_request_connections_8": _run_figures(each),
            },
            "memory_mib": {**memory, "max": MEMORY_MIB_MAX, "ok": max(memory.values()) < MEMORY_MIB_MAX},
        }

    async def _start_floor(self, system: System) -> int:
        port = free_port()
        command = (sys.executable, "-m", "tests.bench.floor", str(system.folder), system.nats_url, str(port))
        await system.supervisor.start(Child("floor", command, output=system.folder / "logs" / "floor.log"))
        await wait_for_port(port)
        return port

    async def _cycle(
        self, system: System, lives: int, connections: int, prefix: str, advance: Any = lambda: None
    ) -> LoadResult:
        return await load_cycle(
            system.tenant_url("observe"),
            system.keys["observe"],
            lives,
            connections,
            mapping=OBSERVE,
            prefix=f"{prefix}c{connections}x",
            on_progress=lambda done, total: advance(),
        )

    async def _floor(self, port: int, commit: str, count: int, connections: int, prefix: str) -> Run:
        people = make_people(count, prefix=prefix, managers=False)
        bodies = [msgspec.json.encode(OBSERVE.document(OBSERVE.values(p, creating=True), "legacy")) for p in people]
        wires = [request(port, "POST", f"/{commit}", body=body) for body in bodies]
        return await drive(port, wires, connections, CREATED)

    async def _end_to_end(self, system: System, advance: Any) -> dict[str, Any]:
        people = make_people(self.size.vendor_users, prefix="applied", managers=False)
        port = system.ports["scim"]
        wires = [
            request(
                port,
                "POST",
                f"/scim/v2/{VENDOR_TARGET}/Users",
                system.keys[VENDOR_TARGET],
                msgspec.json.encode(TALKDESK.document(TALKDESK.values(person, creating=True), "legacy")),
            )
            for person in people
        ]
        started = time.perf_counter()
        run = await drive(port, wires, VENDOR_CONNECTIONS, CREATED, on_answer=advance)
        await system.until_applied(VENDOR_TARGET, self.size.vendor_users)
        elapsed_s = time.perf_counter() - started
        return {
            "users": self.size.vendor_users,
            "connections": VENDOR_CONNECTIONS,
            "product_ms_per_call": VENDOR_DELAY_MS,
            "per_s": round(self.size.vendor_users / elapsed_s, 1),
            "create_ms": _quantiles(run.latencies),
            "unexpected": run.unexpected,
        }

    # ---- filters

    async def _filters(self) -> dict[str, Any]:
        """Two gateways at once, each with a store of its own, asked in turns so that noise meets both alike."""
        systems = [
            System(self.folder / f"stored-{count}", alone=True, log_level=self.log_level) for count in self.size.stored
        ]
        runs: list[list[Run]] = [[], []]
        try:
            for system, count in zip(systems, self.size.stored, strict=True):
                await self._fill(system.folder, count)
            with self._step("starting both gateways"):
                await asyncio.gather(*(system.__aenter__() for system in systems))
            wires = [_hits(system, count) for system, count in zip(systems, self.size.stored, strict=True)]
            with self._step("filter hits", 2 * self.size.filter_rounds) as step:
                for number in range(-1, self.size.filter_rounds):
                    for which, system in enumerate(systems):
                        run = await drive(
                            system.ports["scim"],
                            wires[which],
                            FILTER_CONNECTIONS,
                            OK,
                            until_s=self.size.filter_round_s,
                            looks_right=lambda body: b'"totalResults":1,' in body,
                        )
                        if number >= 0:  # the first round warms up
                            runs[which].append(run)
                            step.advance()
            memory = [system.memory_mib()["gateway"] for system in systems]
        finally:
            for system in systems:
                await system.supervisor.stop()
        few, many = runs
        return {
            "filter_hits": {
                "filled_by": "jobs of the store (accept, dispatch, settle, save, event) in a process before the gateway starts",
                "connections": FILTER_CONNECTIONS,
                "stored": [
                    {"users": count, **_run_figures(runs[which]), "gateway_memory_mib": memory[which]}
                    for which, count in enumerate(self.size.stored)
                ],
                "ratio_many_to_few": median(round(m.per_s / f.per_s, 3) for f, m in zip(few, many, strict=True)),
            }
        }

    # ---- members of groups

    async def _members(self) -> dict[str, Any]:
        """One more member for groups of different sizes, in the large store and with a bus and a worker, in turns."""
        sizes = self.size.members
        runs: list[list[Run]] = [[] for _ in sizes]
        count = self.size.stored[-1]
        with self._step("starting gateway, worker and nats-server on the large store"):
            system = System(self.folder / f"stored-{count}", log_level=self.log_level)
            await system.__aenter__()
        port, key = system.ports["scim"], system.keys["observe"]
        try:
            with self._step("one more member", len(sizes) * self.size.member_rounds) as step:
                for number in range(-1, self.size.member_rounds):
                    for which, size in enumerate(sizes):
                        groups = group_ids(size)
                        first = count + (number + 1) * self.size.member_patches
                        wires = [
                            request(
                                port,
                                "PATCH",
                                f"/scim/v2/observe/Groups/{groups[n % len(groups)]}",
                                key,
                                msgspec.json.encode(members_body([resource_id(first + n)], (), "legacy")),
                            )
                            for n in range(self.size.member_patches)
                        ]
                        run = await drive(port, wires, 1, NO_CONTENT)
                        if number >= 0:  # the first round warms up
                            runs[which].append(run)
                            step.advance()
        finally:
            await system.supervisor.stop()
        few = _quantiles([seconds for run in runs[0] for seconds in run.latencies])
        groups_figures = []
        for which, size in enumerate(sizes):
            measured = _run_figures(runs[which])
            ratios = {name: _ratio(measured["ms"][name], few[name]) for name in few}
            groups_figures.append({"members": size, "ratio_to_smallest": ratios, **measured})
        return {
            "member_patch": {
                "what": "PATCH that adds one member, one after the other, until the worker has applied it",
                "users": count + FRESH_MEMBERS,
                "groups": groups_figures,
            }
        }

    # ---- many targets at Entra's pace

    async def _steady(self) -> dict[str, Any]:
        with self._step(f"starting a system with {STEADY_TARGETS[-1]} further targets"):
            system = System(self.folder / "steady", log_level=self.log_level, steady=STEADY_TARGETS[-1])
            await system.__aenter__()
        port = system.ports["scim"]
        held: list[dict[str, Any]] = []
        try:
            places = [Place(name, system.keys[name]) for name in system.steady]
            with self._step("warming up"):
                await hold(port, places, STEADY_WARM_S, "warm")
            for count in STEADY_TARGETS:
                before, memory = system.cpu_s(), system.memory_mib()
                planned = int(self.size.steady_s * PER_S) * count
                with self._step(
                    f"{count} targets at {PER_S:.0f} requests/s each, {self.size.steady_s:.0f} s", planned
                ) as step:
                    run = await hold(port, places[:count], self.size.steady_s, f"held{count}x", on_answer=step.advance)
                used = {name: spent - before[name] for name, spent in system.cpu_s().items()}
                grown = {
                    name: {"before": memory[name], "after": after}
                    for name, after in system.memory_mib().items()
                    if name in ("gateway", "worker")
                }
                parts = ("gateway", "worker", "nats-server")
                cpu = {name: round(1000 * used[name] / max(1, run.answered), 3) for name in parts}
                held.append({**figures(run, _quantiles), "cpu_ms_per_request": cpu, "memory_mib": grown})
        finally:
            with self._step("stopping"):
                await system.supervisor.stop()
        what = "filter, POST and PATCH in turn; times count from the moment a request was due"
        return {"steady": {"what": what, "runs": held}}

    async def _fill(self, folder: Path, count: int) -> None:
        folder.mkdir(parents=True)  # noqa: ASYNC240
        large = count == self.size.stored[-1]
        wanted = [str(count + FRESH_MEMBERS), *map(str, self.size.members)] if large else [str(count)]
        command = (sys.executable, "-m", "tests.bench.fill", str(folder / "provgate.sqlite3"), *wanted)
        with self._step(f"storing {count:,} users", count) as step:
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            try:
                assert process.stdout is not None
                while line := await process.stdout.readline():
                    step.reach(int(line))
                if await process.wait():
                    raise RuntimeError(f"filling a store ended with exit code {process.returncode}")
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    def _step(self, title: str, total: int | None = None) -> _Step:
        return _Step(self.progress, title, total)


class _Step:
    """One line of progress."""

    def __init__(self, progress: Progress, title: str, total: int | None) -> None:
        self._progress = progress
        self._title = title
        self._total = total

    def __enter__(self) -> _Step:
        self._task = self._progress.add_task(self._title, total=self._total)
        self._started = time.monotonic()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._progress.remove_task(self._task)
        ended = "failed" if kind else f"{time.monotonic() - self._started:.1f} s"
        self._progress.console.print(f"{self._title}: {ended}", highlight=False)

    def advance(self) -> None:
        self._progress.advance(self._task)

    def reach(self, done: int) -> None:
        self._progress.update(self._task, completed=done)


# ---- figures


def _hits(system: System, count: int) -> list[bytes]:
    """Queries for users spread over the whole store."""
    names = user_names(count)
    chosen = names[:: max(1, len(names) // FILTER_NAMES_MAX)]
    path = "/scim/v2/observe/Users?"
    port, key = system.ports["scim"], system.keys["observe"]
    return [request(port, "GET", path + filter_query("userName", name), key) for name in chosen]


def _cycle_figures(connections: int, results: Sequence[LoadResult], floors: Sequence[Run]) -> dict[str, Any]:
    pairs = zip(results, floors, strict=True)
    floor = _quantiles([seconds for run in floors for seconds in run.latencies])
    operations: dict[str, Any] = {}
    for step in LOAD_STEPS:
        figures = _quantiles([seconds for result in results for seconds in result.latencies[step]])
        operations[step] = {
            "ms": figures,
            "ratio_to_floor": {name: _ratio(figures[name], floor[name]) for name in figures},
        }
    refused = {step: counts for result in results for step, counts in result.refused.items() if counts}
    return {
        "connections": connections,
        "requests": sum(result.requests for result in results),
        "requests_per_s": round(median(result.requests_per_s for result in results), 1),
        "rounds": [round(result.requests_per_s, 1) for result in results],
        "ratio_to_floor": median(_ratio(result.requests_per_s, floor.per_s) for result, floor in pairs),
        "operations": operations,
        "unexpected": refused,
    }


def _run_figures(runs: Sequence[Run]) -> dict[str, Any]:
    unexpected: dict[int, int] = {}
    for run in runs:
        for status, count in run.unexpected.items():
            unexpected[status] = unexpected.get(status, 0) + count
    return {
        "requests_per_s": _per_s(runs),
        "rounds": [round(run.per_s, 1) for run in runs],
        "ms": _quantiles([seconds for run in runs for seconds in run.latencies]),
        "unexpected": unexpected,
    }


def _per_s(runs: Sequence[Run]) -> float:
    return round(median(run.per_s for run in runs), 1)


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds that 50, 95 and 99 per cent stayed within."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    last = len(ordered) - 1
    return {f"p{share}": round(1000 * ordered[min(last, len(ordered) * share // 100)], 2) for share in (50, 95, 99)}


def _ratio(figure: float, floor: float) -> float:
    return round(figure / floor, 3)


def main() -> int:
    """The command line; 1 when an answer was not what it should be or a process was too large."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller numbers, one or two minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    parser.add_argument(
        "--steady-minutes",
        type=float,
        metavar="M",
        help=f"hold each of {' and '.join(map(str, STEADY_TARGETS))} targets this long, at most {STEADY_MINUTES_MAX:.0f}",
    )
    parser.add_argument("--log-level", choices=("warning", "information"), default="information", help="of the targets")
    arguments = parser.parse_args()
    if arguments.steady_minutes is not None and not 0 < arguments.steady_minutes <= STEADY_MINUTES_MAX:
        parser.error(f"--steady-minutes: more than 0 and at most {STEADY_MINUTES_MAX:.0f}")
    logs.configure("bench", level="warning", pretty=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="provgate-bench-") as folder,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        size = QUICK if arguments.quick else FULL
        if arguments.steady_minutes is not None:
            size = msgspec.structs.replace(size, steady_s=60 * arguments.steady_minutes)
        bound_s = BOUND_S[arguments.quick] + len(STEADY_TARGETS) * size.steady_s
        bench = Bench(size, Path(folder), progress, arguments.log_level)

        async def bounded() -> dict[str, Any]:
            async with asyncio.timeout(bound_s):
                return await bench.run()

        result = {"quick": arguments.quick, "log_level": arguments.log_level, **uvloop.run(bounded())}
    text = msgspec.json.format(msgspec.json.encode(result), indent=2)
    if arguments.json is not None:
        arguments.json.write_bytes(text + b"\n")
    print(text.decode())
    return 0 if _as_it_should_be(result) else 1


def _as_it_should_be(result: dict[str, Any]) -> bool:
    parts = (
        *result["cycle"],
        result["applied_end_to_end"],
        *result["filter_hits"]["stored"],
        *result["member_patch"]["groups"],
        *result["steady"]["runs"],
    )
    return bool(result["memory_mib"]["ok"]) and not any(part["unexpected"] for part in parts)


if __name__ == "__main__":
    sys.exit(main())
