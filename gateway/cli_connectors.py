"""The commands `provgate connector`: which there are, the authors' kit, and the settings a product keeps."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from gateway.cli_app import AsJson, Reason, TargetName, connector_commands
from gateway.cli_client import FINE, HERE, NOT_FINE, WRONG_USE, Access, Api, Failure, code_of, segment
from gateway.cli_printing import show, spinning


def _kit() -> Any:
    """The authors' kit; it belongs to the connectors, which the gateway does not know."""
    return importlib.import_module("connectors.testing.command")


@connector_commands.command(name="list", help_epilogue="Example:\n  provgate connector list")
def connector_list(*, as_json: AsJson = False) -> int:
    """Every connector that can be named in a configuration."""
    return code_of(_kit().listed(as_json=as_json))


@connector_commands.command(
    name="new",
    help_epilogue="Examples:\n  provgate connector new toy\n  provgate connector new toy --folder ./provgate-toy",
)
def connector_new(
    name: Annotated[str, Parameter(help="What configurations will call it.")],
    /,
    *,
    folder: Annotated[Path | None, Parameter(help="Begin a package of its own there, found by entry points.")] = None,
    as_json: AsJson = False,
) -> int:
    """Write a connector, an emulator, a test and a page of notes that already pass."""
    return code_of(_kit().new(name, folder=folder, as_json=as_json))


@connector_commands.command(
    name="test",
    help_epilogue="Examples:\n  provgate connector test talkdesk\n  provgate connector test toy lost_answer rename\n"
    "  provgate connector test toy --json",
)
def connector_test(
    name: Annotated[str, Parameter(help="The connector, see: provgate connector list")],
    /,
    *promises: Annotated[str, Parameter(help="Only these promises; without any, all of them.")],
    as_json: AsJson = False,
) -> int:
    """Try every promise of a connector against its emulated product, which misbehaves. Ends with 1 when one is broken."""
    from schemas import logs

    kit = _kit()
    logs.configure("connector test", level="debug", stream=kit.PresentStderr())
    with logs.at_level("warning"):  # the table says what happened; calls one by one would bury it
        return code_of(kit.try_connector(name, promises, as_json=as_json))


@connector_commands.command(
    name="emulate",
    help_epilogue="Examples:\n  provgate connector emulate toy\n  provgate connector emulate toy --port 18090 > toy.toml",
)
def connector_emulate(
    name: Annotated[str, Parameter(help="The connector, see: provgate connector list")],
    /,
    *,
    port: Annotated[int, Parameter(help="Where it answers; 0 takes a free one.")] = 0,
) -> int:
    """Keep a connector's emulated product running on this machine, and print a target for the configuration file.

    For authors who want to see their connector under a gateway. Ends with Ctrl-C; what the product held is forgotten.
    """
    return code_of(_kit().emulate(name, port=port))


@connector_commands.command(
    help_epilogue="Examples:\n  provgate connector configure babelforce\n"
    '  provgate connector configure babelforce --write --yes --reason "first setup"'
)
def configure(
    target: TargetName,
    /,
    *,
    write: Annotated[bool, Parameter(negative=(), help="Write what differs, after showing it and asking.")] = False,
    yes: Annotated[bool, Parameter(negative=(), help="Do not ask.")] = False,
    reason: Reason = "",
    access: Access = HERE,
) -> int:
    """Settings that a product keeps and only its interface can change: show what differs from what is needed, or write it.

    A worker reads them with the target's credential. Ends with 1 when something differs (still).
    """
    api, path = Api(access), f"/targets/{segment(target)}/configuration"
    asks = write and not yes
    if asks and (access.as_json or not sys.stdin.isatty()):
        raise Failure("--write asks before it writes; where nobody can answer, say --yes", WRONG_USE)
    with spinning(access, "A worker reads them"):
        answer = api.get(path)
    if not write or answer["fine"]:
        show(access, answer, lambda terminal: terminal.configuration(answer))
        return FINE if answer["fine"] else NOT_FINE
    if not access.as_json:
        show(access, answer, lambda terminal: terminal.configuration(answer, writing=True))
    if asks and input(f"Write these settings at {answer['product']}? [y/N] ").strip().casefold() not in ("y", "yes"):
        print("Nothing was written.")
        return NOT_FINE
    with spinning(access, "A worker writes them"):
        written = api.post(path, {"version": answer["version"], "reason": reason})
    show(access, written, lambda terminal: terminal.configuration(written))
    return FINE if written["fine"] else NOT_FINE
