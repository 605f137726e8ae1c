"""Run one gateway: `python -m gateway --config provgate.toml`, or `provgate gateway`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from schemas import logs
from schemas.config import load
from schemas.config_file import ConfigurationFile
from schemas.errors import ConfigurationError

EXIT_CONFIGURATION = 2


def run(*, config: Path, pretty: bool = False) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Raises:
        ConfigurationError: the file is wrong; all mistakes at once.
    """
    file = ConfigurationFile(config)
    configuration = load(config)
    logs.configure("gateway", pretty=pretty)
    from gateway.app import Gateway

    async def serve() -> int:
        return await Gateway(configuration, file).run()

    try:
        import uvloop
    except ImportError:
        return asyncio.run(serve())
    return uvloop.run(serve())


def main() -> int:
    """Entry of `python -m gateway`."""
    parser = argparse.ArgumentParser(prog="python -m gateway", description="One Provgate gateway.")
    parser.add_argument("--config", type=Path, default=Path("provgate.toml"))
    parser.add_argument("--pretty", action="store_true", help="log lines for a person at a terminal")
    arguments = parser.parse_args()
    try:
        return run(config=arguments.config, pretty=arguments.pretty)
    except ConfigurationError as exc:
        print(exc, file=sys.stderr)
        return EXIT_CONFIGURATION


if __name__ == "__main__":
    sys.exit(main())
