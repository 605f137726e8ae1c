"""Send many generated requests to a gateway of its own, and count what comes back: `python -m tests.fuzz 100000 --seed 1`.

Exit code 1 when one of them was answered by a 5xx, by nothing, or by an error that is none of SCIM; the first of them are shown
as they went out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.fuzz.running import PUBLISHED_SHARE, Found, fuzz

SHOWN_MAX = 10
TABLE_CHARS = 160


def main(arguments: list[str]) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("requests", type=int, nargs="?", default=5_000, help="how many requests (default 5000)")
    parser.add_argument("--seed", type=int, default=1, help="the same number gives the same requests")
    parser.add_argument("--only", type=int, default=None, help="send the own request of this number only, and show it")
    given = parser.parse_args(arguments)
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, bar:
        task = bar.add_task("requests", total=given.requests)
        started = time.monotonic()
        found = fuzz(Path(folder), given.requests, given.seed, lambda: bar.advance(task), only=given.only)
        took_s = time.monotonic() - started
    _show(found, took_s, given.seed)
    return 1 if found.failures else 0


def _show(found: Found, took_s: float, seed: int) -> None:
    console = Console(width=TABLE_CHARS)
    statuses = sorted({status for status, _ in found.counts})
    table = Table(
        title=f"{found.total:,} requests in {took_s:.0f} s, seed {seed}; {PUBLISHED_SHARE:.0%} by schemathesis"
    )
    table.add_column("kind")
    for status in statuses:
        table.add_column(str(status) if status else "closed", justify="right")
    for kind in sorted({kind for _, kind in found.counts}):
        table.add_row(
            kind, *(f"{found.counts[(status, kind)]:,}" if found.counts[(status, kind)] else "" for status in statuses)
        )
    table.add_section()
    table.add_row("all", *(f"{sum(n for (s, _), n in found.counts.items() if s == status):,}" for status in statuses))
    console.print(table)
    console.print(f"slowest answer {found.slowest_s * 1000:.0f} ms; {len(found.failures):,} failures")
    for failure in found.failures[:SHOWN_MAX]:
        console.print(f"\n[bold]{failure.wrong}[/bold]  ({failure.where})", highlight=False)
        console.print(failure.request[:2_000], markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
