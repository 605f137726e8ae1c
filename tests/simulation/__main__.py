"""Run many seeds: `python -m tests.simulation 20000`, or one with its history: `python -m tests.simulation --seed 7 --trace`.

Prints the seeds that broke a promise, and how fast it went. Exit code 1 when any did.
"""

from __future__ import annotations

import argparse
import collections
import logging
import multiprocessing
import sys
import time

import structlog

from tests.simulation.world import PROTECTIONS, World


def silence() -> None:
    """The engine's log lines are of no interest here."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def one(job: tuple[int, frozenset[str]]) -> tuple[int, list[str], collections.Counter[str]]:
    """Play one seed."""
    silence()
    seed, without = job
    world = World(seed, without).play()
    return seed, sorted(set(world.violations)), world.stats


def many(seeds: range, without: frozenset[str], processes: int | None = None) -> dict[str, object]:
    """Play many seeds on all cores."""
    kinds: collections.Counter[str] = collections.Counter()
    first: dict[str, int] = {}
    stats: collections.Counter[str] = collections.Counter()
    bad = []
    started = time.monotonic()
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for seed, violations, counts in pool.imap_unordered(one, [(s, without) for s in seeds], 10):
            stats.update(counts)
            if violations:
                bad.append(seed)
            for kind in violations:
                kinds[kind] += 1
                first[kind] = min(seed, first.get(kind, seed))
    seconds = time.monotonic() - started
    return {
        "without": sorted(without),
        "seeds": len(seeds),
        "violating": sorted(bad),
        "kinds": {kind: [count, first[kind]] for kind, count in kinds.most_common()},
        "seeds_per_minute": round(len(seeds) / seconds * 60),
        "stats": dict(stats.most_common()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="?", type=int, default=1_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--without", action="append", choices=PROTECTIONS, default=[])
    arguments = parser.parse_args()
    without = frozenset(arguments.without)
    if arguments.seed is not None:
        silence()
        world = World(arguments.seed, without)
        if arguments.trace:
            world.trace = []
        world.play()
        for line in world.trace or ():
            print(*line)
        print(f"seed {arguments.seed}:", sorted(set(world.violations)) or "no promise broken")
        return 1 if world.violations else 0
    result = many(range(arguments.first, arguments.first + arguments.seeds), without)
    for name, value in result.items():
        print(f"{name}: {value}")
    return 1 if result["violating"] else 0


if __name__ == "__main__":
    sys.exit(main())
