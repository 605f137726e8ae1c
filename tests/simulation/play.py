"""Play seeds on all cores and say what came of them."""

from __future__ import annotations

import collections
import logging
import multiprocessing
import time
from collections.abc import Iterable

import structlog
from msgspec import Struct

from tests.simulation.world import WEATHERS, World


class Rules(Struct, frozen=True):
    """How a world is played.

    Args:
        without: protections that are taken away.
        weather: a name of WEATHERS.
        late_effects, managers, names: see `World`.
    """

    without: frozenset[str] = frozenset()
    weather: str = "common"
    late_effects: bool = False
    managers: bool = False
    names: bool = False

    def world(self, seed: int) -> World:
        """The world of one seed, not played yet."""
        weather = WEATHERS[self.weather]
        return World(
            seed,
            self.without,
            weather=weather,
            late_effects=self.late_effects,
            managers=self.managers,
            names=self.names,
        )

    def command(self, seed: int) -> str:
        """What to type to see one seed's history."""
        words = [f"python -m tests.simulation --seed {seed} --trace"]
        words += [f"--without {name}" for name in sorted(self.without)]
        words += [f"--weather {self.weather}"] if self.weather != "common" else []
        words += ["--late-effects"] if self.late_effects else []
        words += ["--managers"] if self.managers else []
        words += ["--names"] if self.names else []
        return " ".join(words)


class Played(Struct, frozen=True):
    """What came of many seeds: those that broke a promise, which promises (how often, and the first seed), and what happened."""

    seeds: int
    seconds: float
    violating: dict[int, list[str]]
    stats: dict[str, int]

    @property
    def kinds(self) -> dict[str, tuple[int, int]]:
        """Broken promises: count and first seed."""
        found: dict[str, list[int]] = collections.defaultdict(list)
        for seed, violations in self.violating.items():
            for violation in violations:
                found[violation].append(seed)
        return {kind: (len(seeds), min(seeds)) for kind, seeds in sorted(found.items())}


def silence() -> None:
    """The engine's log lines are of no interest here."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def one(job: tuple[int, Rules]) -> tuple[int, list[str], dict[str, int]]:
    """Play one seed; returns it with the promises it broke and what happened."""
    seed, rules = job
    world = rules.world(seed).play()
    return seed, sorted(set(world.violations)), dict(world.stats)


def many(seeds: Iterable[int], rules: Rules, processes: int | None = None) -> Played:
    """Play many seeds, on all cores unless told otherwise."""
    stats: collections.Counter[str] = collections.Counter()
    violating: dict[int, list[str]] = {}
    count = 0
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(processes, initializer=silence) as pool:
        for seed, violations, counts in pool.imap_unordered(one, ((seed, rules) for seed in seeds), 10):
            count += 1
            stats.update(counts)
            if violations:
                violating[seed] = violations
    return Played(count, time.monotonic() - started, dict(sorted(violating.items())), dict(stats.most_common()))
