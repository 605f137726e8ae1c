"""`python -m workers`: serve targets, or check one.

    python -m workers --config provgate.toml               serve what the file lets this worker serve
    python -m workers --config provgate.toml sofa-prague   serve this target only
    python -m workers --config provgate.toml --check sofa-prague

Nothing heavy is imported before it is known that something is to be served.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from schemas import logs
from schemas.config import Configuration, load
from schemas.config_file import ConfigurationFile
from schemas.errors import ConfigurationError

EXIT_CONFIGURATION = 2

T = TypeVar("T")


def run(
    config: Configuration,
    base: Path,
    targets: Sequence[str] = (),
    *,
    file: ConfigurationFile | None = None,
    pretty: bool = False,
) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. A second signal ends the process at once.

    Args:
        config: the whole configuration; every process is given the same file.
        base: folder of the file; relative secret files are found from there.
        targets: names to serve; by default what `[worker]` says, and all targets when that says nothing.
        file: where `config` came from; what changes there about targets counts without a restart.
        pretty: log lines for a person at a terminal.

    Raises:
        ConfigurationError: the connection to NATS is described wrongly, or none of `targets` is in the file. A wrong target
            beside right ones is reported and not served.
    """
    if targets and not any(name in config.targets for name in targets):
        known = ", ".join(sorted(config.targets)) or "none"
        problems = [f"targets.{name}: is not configured; there are: {known}" for name in targets]
        raise ConfigurationError("worker", problems)
    logs.configure("worker", level="debug", pretty=pretty)
    with logs.at_level(
        "information"
    ):  # of what belongs to no target; every target has a level of its own, which may change
        return _looped(_serve(config, base, targets, file))


def check(config: Configuration, base: Path, target: str) -> int:
    """Print what a target's connector finds when it checks address, credentials and rights; 0 when it can work.

    Raises:
        ConfigurationError: the target, its connector or its settings are wrong.
    """
    logs.configure("worker", level="warning", pretty=True)
    return _looped(_check(config, base, target))


async def _serve(config: Configuration, base: Path, targets: Sequence[str], file: ConfigurationFile | None) -> int:
    from workers.app import Worker

    worker = Worker(config, base, targets, file=file)
    asked_to_stop = False

    def on_signal(number: int) -> None:
        nonlocal asked_to_stop
        if asked_to_stop:
            os._exit(128 + number)
        asked_to_stop = True
        worker.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # not every system has signal handlers in its loops
            loop.add_signal_handler(number, on_signal, number)
    return await worker.run()


async def _check(config: Configuration, base: Path, target: str) -> int:
    from workers.control import probe
    from workers.receiving import before_call
    from workers.targets import Served

    if target not in config.targets:
        raise ConfigurationError(target, [f"targets.{target}: is not configured"])
    served = Served(target, config.targets[target], base, concurrency_max=1, before_call=before_call)
    try:
        answer = await probe(served)
    finally:
        await served.close()
    for finding in answer.findings:
        print(f"{finding.level:8}{finding.code}: {finding.message}")
    if not answer.findings:
        print(f"{'ok' if answer.ok else 'error':8}{answer.code}: {answer.message}")
    return 0 if answer.ok else 1


def _looped(work: Coroutine[Any, Any, T]) -> T:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workers", description="Serve targets of Provgate.")
    parser.add_argument("--config", type=Path, default=Path("provgate.toml"), help="the configuration file")
    parser.add_argument("--check", metavar="TARGET", help="check one target and end")
    parser.add_argument("targets", nargs="*", help="targets to serve; all by default")
    given = parser.parse_args(arguments)
    try:
        file = ConfigurationFile(given.config)
        config = load(given.config)
        base = given.config.resolve().parent
        if given.check:
            return check(config, base, given.check)
        return run(config, base, given.targets, file=file, pretty=sys.stderr.isatty())
    except ConfigurationError as exc:
        print(exc, file=sys.stderr)
        return EXIT_CONFIGURATION


if __name__ == "__main__":
    sys.exit(main())
