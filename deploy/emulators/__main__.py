"""Run vendor emulators: `python -m deploy.emulators telemessage:18081 talkdesk:18082 --journal-dir DIR --ready-file FILE`.

A name stands for the module beside this one that holds the emulator of that name; without a port a free one is taken. When all of
them answer, the ready file holds `{name: url}`. SIGTERM or SIGINT ends the process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from deploy.emulators.harness import Emulator, Serving, serve


def emulator_class(name: str) -> type[Emulator]:
    """The emulator called `name`. Raises ValueError when there is none."""
    module_name = f"deploy.emulators.{name}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        if missing.name != module_name:
            raise
        raise ValueError(f"there is no emulator {name!r}") from None
    for found in vars(module).values():
        if isinstance(found, type) and issubclass(found, Emulator) and getattr(found, "name", None) == name:
            return found
    raise ValueError(f"there is no vendor emulator {name!r}")


def _place(text: str) -> tuple[str, int | None]:
    name, colon, port = text.partition(":")
    return name, int(port) if colon else None


def _named(text: str) -> tuple[str | None, str]:
    """`VALUE` for every emulator or `NAME=VALUE` for one."""
    name, equals, value = text.partition("=")
    return (name, value) if equals else (None, text)


def _setting(text: str) -> tuple[str, str, Any]:
    path, _, value = text.partition("=")
    name, dot, key = path.partition(".")
    if not dot:
        raise argparse.ArgumentTypeError("write NAME.SETTING=JSON, e.g. talkdesk.patch=true")
    try:
        return name, key, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, key, value


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.emulators", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("places", nargs="+", type=_place, metavar="NAME[:PORT]")
    parser.add_argument("--port", type=int, default=0, help="port of an emulator named without one; 0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--ready-file", type=Path, help="written when all answer: {name: url}")
    parser.add_argument("--journal-dir", type=Path, help="folder of NAME.journal.jsonl; state survives in it")
    parser.add_argument("--delay-ms", type=_named, action="append", default=[], metavar="[NAME=]N")
    parser.add_argument("--rate-per-s", type=_named, action="append", default=[], metavar="[NAME=]N", help="0 is off")
    parser.add_argument("--token", type=_named, action="append", default=[], metavar="[NAME=]TOKEN")
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="NAME.SETTING=JSON")
    parsed = parser.parse_args(arguments)
    names = [name for name, _ in parsed.places]
    if len(set(names)) != len(names):
        parser.error("each emulator once")
    if parsed.port and sum(port is None for _, port in parsed.places) > 1:
        parser.error("--port is for one emulator; write NAME:PORT for several")
    meant = {name for option in ("delay_ms", "rate_per_s", "token") for name, _ in getattr(parsed, option) if name}
    meant |= {name for name, _, _ in parsed.set}
    if unknown := sorted(meant - set(names)):
        parser.error(f"options name {', '.join(unknown)}, which is not started")
    return parsed


def _built(name: str, parsed: argparse.Namespace) -> Emulator:
    options: dict[str, Any] = {key: value for meant, key, value in parsed.set if meant == name}
    for option in ("delay_ms", "rate_per_s"):
        for meant, value in getattr(parsed, option):
            if meant in (None, name):
                options[option] = float(value)
    for meant, token in parsed.token:
        if meant in (None, name):
            options["token"] = token
    return emulator_class(name)(journal_dir=parsed.journal_dir, **options)


def write_ready_file(path: Path, urls: Mapping[str, str]) -> None:
    """Write `{name: url}` so that a reader sees all of it or nothing."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_bytes(msgspec.json.encode(urls))
    beside.replace(path)


async def _run(parsed: argparse.Namespace) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    servings: list[Serving] = []
    try:
        for name, port in parsed.places:
            emulator = _built(name, parsed)
            servings.append(await serve(emulator, port=parsed.port if port is None else port, host=parsed.host))
        urls = {serving.emulator.name: serving.url for serving in servings}
        for name, url in urls.items():
            print(f"{name}: {url}", flush=True)
        if parsed.ready_file is not None:
            write_ready_file(parsed.ready_file, urls)
        await ended.wait()
    finally:
        for serving in servings:
            await serving.close()


def main(arguments: list[str]) -> int:
    """Run until told to stop; 2 when the arguments or a setting are wrong."""
    parsed = _arguments(arguments)
    runner: Any = asyncio.run
    with contextlib.suppress(ImportError):
        runner = importlib.import_module("uvloop").run
    try:
        runner(_run(parsed))
    except (ValueError, RuntimeError, OSError) as wrong:
        print(f"emulators: {wrong}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
