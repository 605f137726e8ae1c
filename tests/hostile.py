"""Send the list of hostile requests and print what came back, and how fast: `python -m tests.hostile`.

Exit code 1 when one was answered wrongly, or when 99 % of the refusals took longer than REFUSAL_MS_MAX.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.gateway.attacked import Met, attacked, percentile
from tests.gateway.hostile import all_of_them

REFUSAL_MS_MAX = 50.0
ROUNDS = 3
SHOWN_MAX = 20


async def everything(console: Console) -> list[Met]:
    """All of them, a few times."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        async with attacked(Path(folder)) as world:
            shots = all_of_them() * ROUNDS
            return [await world.meet(shot) for shot in track(shots, "hostile requests", console=console)]


def main() -> int:
    """Run it."""
    console = Console(stderr=True)
    met = asyncio.run(everything(console))
    table = Table(title=f"{len(met):,} hostile requests ({ROUNDS} rounds)")
    for name in ("kind", "requests", "refused", "p50 ms", "p99 ms", "max ms", "wrong"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for kind in [*dict.fromkeys(one.shot.kind for one in met), ""]:
        held = [one for one in met if not kind or one.shot.kind == kind]
        times = [one.took_s for one in held if one.is_refusal] or [0.0]
        if not kind:
            table.add_section()
        wrong = sum(bool(one.wrong) for one in held)
        ms = [f"{1_000 * percentile(times, share):.1f}" for share in (0.5, 0.99, 1.0)]
        table.add_row(kind or "all", f"{len(held):,}", f"{len(times):,}", *ms, f"{wrong:,}")
    Console().print(table)
    wrong_ones = [one for one in met if one.wrong]
    for one in wrong_ones[:SHOWN_MAX]:
        Console().print(
            f"{one.wrong}: {one.shot.kind}, {one.shot.aims}: {one.shot.method!r} {one.shot.path[:200]!r}", markup=False
        )
    p99_ms = 1_000 * percentile([one.took_s for one in met if one.is_refusal], 0.99)
    Console().print(f"p99 of refusals {p99_ms:.1f} ms (at most {REFUSAL_MS_MAX:g})")
    return 1 if wrong_ones or p99_ms > REFUSAL_MS_MAX else 0


if __name__ == "__main__":
    sys.exit(main())
