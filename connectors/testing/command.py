"""`provgate connector list | new | test`, and the same as functions."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import keyword
import re
import sys
import time
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from connectors import registry
from connectors.testing import shipped
from connectors.testing.conformance import PROMISES, Conformance, Verdict, try_all
from schemas.errors import ConfigurationError

FINE, NOT_FINE = 0, 1
TRIALS = "provgate.trials"
"""Entry points by which a package of its own says how its connectors are tried: connector -> `module:Class`."""
ROOT = Path(registry.__file__).resolve().parent.parent
"""The checkout, or where the packages are installed."""
NAME = re.compile(r"[a-z][a-z0-9_]{1,39}")
WIDTH_WITHOUT_TERMINAL = 120

_STYLES = {"kept": "green", "broken": "bold red", "not applicable": "bright_black"}
_HERE = Path(__file__).parent


# Finding and trying ---------------------------------------------------------------------------------------------------


def trials_of(name: str) -> list[type[Conformance]]:
    """How a connector is tried: by its package's entry point, by what is shipped, or by its test in this checkout.

    Raises:
        ConfigurationError: there is no such connector, nothing says how to try it, or what says so is broken.
    """
    registry.load(name)
    for entry in entry_points(group=TRIALS):
        if entry.name == name:
            return [_trial(entry.load(), f"the entry point {name} of {TRIALS}")]
    if name in shipped.SHIPPED:
        return list(shipped.SHIPPED[name])
    file = ROOT / "tests" / "connectors" / f"test_{name}.py"
    found = _trials_in(file, name) if file.is_file() else []
    if not found:
        raise ConfigurationError(
            name,
            [
                f"nothing says how it is tried: write a class that inherits connectors.testing.conformance.Conformance into "
                f"tests/connectors/test_{name}.py, or name one in the entry point group {TRIALS}"
            ],
        )
    return found


def _trials_in(file: Path, name: str) -> list[type[Conformance]]:
    spec = importlib.util.spec_from_file_location(f"trial_of_{name}", file)
    if spec is None or spec.loader is None:
        return []
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as exc:  # an author's file may fail in any way
        raise ConfigurationError(name, [f"{file} cannot be loaded ({type(exc).__name__}: {exc})"]) from exc
    return [
        found
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, Conformance) and found.connector == name
    ]


def _trial(found: Any, what: str) -> type[Conformance]:
    if not (isinstance(found, type) and issubclass(found, Conformance)):
        raise ConfigurationError("trial", [f"{what} is no class that inherits Conformance"])
    return found


def try_connector(name: str, *, as_json: bool = False) -> int:
    """Try every promise and print one table; NOT_FINE when one is broken.

    Raises:
        ConfigurationError: see `trials_of`; or the trial's settings are wrong.
    """
    trials = trials_of(name)
    console = _console(stderr=True)
    results: list[tuple[str, list[Verdict], float]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=as_json or not console.is_terminal) as progress:
        task = progress.add_task("", total=len(PROMISES) * len(trials))

        def seen(verdict: Verdict) -> None:
            progress.update(task, advance=1, description=verdict.promise)

        for trial in trials:
            started = time.monotonic()
            verdicts = asyncio.run(try_all(trial(), seen))
            results.append((trial.__name__, verdicts, round(time.monotonic() - started, 2)))
    broken = sum(verdict.verdict == "broken" for _, verdicts, _ in results for verdict in verdicts)
    if as_json:
        said = [
            {"trial": title, "took_s": took_s, "verdicts": msgspec.to_builtins(verdicts)}
            for title, verdicts, took_s in results
        ]
        print(json.dumps({"connector": name, "ok": not broken, "trials": said}, ensure_ascii=False))
    else:
        for title, verdicts, took_s in results:
            _print_verdicts(name if len(results) == 1 else f"{name} ({title})", verdicts, took_s)
    return NOT_FINE if broken else FINE


def _print_verdicts(title: str, verdicts: list[Verdict], took_s: float) -> None:
    table = _table("Promise", "Verdict", "Figure")
    for verdict in verdicts:
        shown = verdict.figure or verdict.detail
        if verdict.verdict == "broken":
            shown = f"{verdict.says}.\nSeen: {verdict.detail}"
        table.add_row(Text(verdict.promise), Text(verdict.verdict, style=_STYLES[verdict.verdict]), Text(shown))
    counts = {said: sum(one.verdict == said for one in verdicts) for said in _STYLES}
    out = _console()
    out.print(Text(f"\n{title}", style="bold"))
    out.print(table)
    counted = ", ".join(f"{count} {said}" for said, count in counts.items() if count or said == "broken")
    out.print(Text(f"{counted}; {took_s:.1f} s.", style="bold red" if counts["broken"] else "bold green"))


def listed(*, as_json: bool = False) -> int:
    """Print every connector that can be named in a configuration; NOT_FINE when one cannot be loaded."""
    rows = [_described(name) for name in registry.names()]
    if as_json:
        print(json.dumps({"connectors": rows}, ensure_ascii=False))
    else:
        table = _table("Connector", "Product", "Resources", "Support", "Can also", "Place")
        for row in rows:
            problem = row["problem"]
            cells = (row["title"], ", ".join(row["resources"]), row["support"], ", ".join(row["capabilities"]))
            shown = [Text(str(problem), style="red"), *[Text("")] * 3] if problem else [Text(cell) for cell in cells]
            table.add_row(Text(row["name"], style="bold"), *shown, Text(row["place"]))
        _console().print(table)
    return NOT_FINE if any(row["problem"] for row in rows) else FINE


def _described(name: str) -> dict[str, Any]:
    place = "shipped" if name in registry.SHIPPED else "entry point"
    try:
        spec = registry.load(name).spec
    except ConfigurationError as exc:
        blank: dict[str, Any] = {"title": "", "resources": [], "support": "", "capabilities": []}
        return {"name": name, **blank, "place": place, "problem": "; ".join(exc.problems)}
    return {
        "name": name,
        "title": spec.title,
        "resources": list(spec.resources),
        "support": spec.support,
        "capabilities": list(spec.capabilities),
        "place": place,
        "problem": "",
    }


# Beginning a new one --------------------------------------------------------------------------------------------------


def new(name: str, *, folder: Path | None = None, as_json: bool = False) -> int:
    """Write a module, an emulator, a test and a page of notes that already pass.

    Args:
        name: the connector's name in a configuration.
        folder: where a package of its own is begun; without it the files go into this checkout.

    Raises:
        ConfigurationError: the name cannot be used, a file exists already, or this is no checkout.
    """
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ConfigurationError(name, ["a connector's name has small letters, digits and _, and begins with a letter"])
    if name in registry.names():
        raise ConfigurationError(name, ["there is a connector of this name already; see: provgate connector list"])
    if folder is None and not (ROOT / "tests" / "connectors").is_dir():
        raise ConfigurationError(name, ["this is no checkout; begin a package of its own with --folder"])
    files = files_in_checkout(name) if folder is None else files_of_package(name)
    base = ROOT if folder is None else folder.resolve()
    there = [path for path in files if (base / path).exists()]
    if there:
        raise ConfigurationError(name, [f"{path} exists already and is not overwritten" for path in there])
    for path, text in files.items():
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).write_text(text, encoding="utf-8")
    if folder is None:
        todo = [
            f'Add to SHIPPED in connectors/registry.py:     "{name}": "connectors.{name}:{class_name(name)}",',
            "Print its section into the page: python -m connectors.docs",
            f"Try it: provgate connector test {name}",
        ]
    else:
        todo = [f"Install it: pip install -e {base}", f"Try it: provgate connector test {name}"]
    if as_json:
        print(json.dumps({"connector": name, "folder": str(base), "files": list(files), "next": todo}))
    else:
        out = _console()
        out.print(Text(f"Written below {base}:"), *[Text(f"  {path}") for path in files], sep="\n")
        out.print(Text("Next:"), *[Text(f"  {number}. {step}") for number, step in enumerate(todo, 1)], sep="\n")
    return FINE


def class_name(name: str) -> str:
    """`toy_shop` as a class: `ToyShop`."""
    return "".join(word.capitalize() for word in name.split("_"))


def files_in_checkout(name: str) -> Mapping[str, str]:
    """Path below the checkout -> text, for a connector that is shipped here."""
    emulator = f"deploy.emulators.{name}"
    return {
        f"connectors/{name}.py": _from_example("example.py", name),
        f"connectors/{name}.md": _notes(name),
        f"deploy/emulators/{name}.py": _from_example("example_emulator.py", name).replace(
            "connectors.testing.harness", "deploy.emulators.harness"
        ),
        f"tests/connectors/test_{name}.py": _from_example("example_trial.py", name).replace(
            "connectors.testing.example_emulator", emulator
        ),
    }


def files_of_package(name: str) -> Mapping[str, str]:
    """Path -> text, for a connector in a package of its own, found by entry points."""
    package = f"provgate_{name}"
    trial = _from_example("example_trial.py", name).replace(
        "connectors.testing.example_emulator", f"{package}.emulator"
    )
    own = f"{class_name(name)}Trial"
    return {
        "pyproject.toml": _PYPROJECT.format(
            name=name, package=package, distribution=package.replace("_", "-"), connector=class_name(name), trial=own
        ),
        "README.md": f"# {_title(name)} for Provgate\n\n{_notes(name)}",
        f"{package}/__init__.py": f'"""A connector for {_title(name)}."""\n',
        f"{package}/connector.py": _from_example("example.py", name),
        f"{package}/emulator.py": _from_example("example_emulator.py", name),
        f"{package}/trial.py": trial.replace(f"class Test{class_name(name)}(", f"class {own}("),
        f"tests/test_{name}.py": _PACKAGE_TEST.format(
            package=package, title=_title(name), trial=own, cls=class_name(name)
        ),
    }


def _from_example(file: str, name: str) -> str:
    text = (_HERE / file).read_text(encoding="utf-8")
    text = text.replace('TITLE = "Lantern"', f'TITLE = "{_title(name)}"')
    return text.replace("Lantern", class_name(name)).replace("lantern", name)


def _title(name: str) -> str:
    return " ".join(word.capitalize() for word in name.split("_"))


def _notes(name: str) -> str:
    return _NOTES.format(title=_title(name))


_NOTES = """\
Before the first cycle, at {title}:

1. Where a token is made, and which rights it needs.
2. What has to exist there before it is mapped, e.g. roles.

Where the rules of this connector are written: name the pages, and the day they were read. What was assumed: say so.
"""

_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{distribution}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["provgate"]

[project.entry-points."provgate.connectors"]
{name} = "{package}.connector:{connector}"

[project.entry-points."provgate.trials"]
{name} = "{package}.trial:{trial}"

[tool.hatch.build.targets.wheel]
packages = ["{package}"]
"""

_PACKAGE_TEST = '''\
"""{title} keeps what every connector promises."""

from __future__ import annotations

from {package}.trial import {trial}


class Test{cls}({trial}):
    """Every promise of the suite, with {title}."""
'''


# Printing -------------------------------------------------------------------------------------------------------------


def _console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_WITHOUT_TERMINAL
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name in ("Promise", "Verdict", "Connector"))
    return table
