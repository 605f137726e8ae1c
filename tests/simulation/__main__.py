"""Run many seeds: `python -m tests.simulation 20000`, or one with its history: `python -m tests.simulation --seed 7 --trace`.

Prints the seeds that broke a promise, and how fast it went. Exit code 1 when any did.
"""

from __future__ import annotations

import argparse
import sys

from tests.simulation.play import Rules, many, silence
from tests.simulation.world import PROTECTIONS, WEATHERS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="?", type=int, default=1_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--without", action="append", choices=PROTECTIONS, default=[])
    parser.add_argument("--weather", choices=WEATHERS, default="common")
    parser.add_argument("--late-effects", action="store_true")
    parser.add_argument("--managers", action="store_true")
    parser.add_argument("--names", action="store_true")
    arguments = parser.parse_args()
    rules = Rules(
        frozenset(arguments.without), arguments.weather, arguments.late_effects, arguments.managers, arguments.names
    )
    if arguments.seed is not None:
        silence()
        world = rules.world(arguments.seed)
        if arguments.trace:
            world.trace = []
        world.play()
        for line in world.trace or ():
            print(*line)
        print(f"seed {arguments.seed}:", sorted(set(world.violations)) or "no promise broken")
        return 1 if world.violations else 0
    played = many(range(arguments.first, arguments.first + arguments.seeds), rules)
    print("without:", ", ".join(sorted(rules.without)) or "nothing", "- weather:", rules.weather)
    print(f"seeds: {played.seeds}, {round(played.seeds / played.seconds * 60)} a minute")
    print("stats:", played.stats)
    print("violating:", list(played.violating))
    for kind, (count, first) in played.kinds.items():
        print(f"  {count} x {kind}, first: {rules.command(first)}")
    return 1 if played.violating else 0


if __name__ == "__main__":
    sys.exit(main())
