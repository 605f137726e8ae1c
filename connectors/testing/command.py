"""`provgate connector list | new | test | emulate`, and the same as functions."""

from __future__ import annotations

import asyncio
import difflib
import importlib
import importlib.util
import io
import json
import keyword
import os
import re
import signal
import sys
import tempfile
import time
import unicodedata
from collections.abc import Awaitable, Callable, Mapping, Sequence
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
from connectors.testing import example, shipped
from connectors.testing.conformance import PROMISES, Conformance, Verdict, told, try_all
from connectors.testing.harness import Emulator, serve
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


class PresentStderr(io.TextIOBase):
    """Writes to whatever standard error is at the moment, so that a promise about what is logged hears the log."""

    def write(self, text: str) -> int:
        """To the present standard error."""
        return sys.stderr.write(text)

    def flush(self) -> None:
        """The present standard error."""
        sys.stderr.flush()


# Finding and trying ---------------------------------------------------------------------------------------------------


def trials_of(name: str) -> list[type[Conformance]]:
    """How a connector is tried: by its package's entry point, by what is shipped, or by its test in this checkout.

    Raises:
        ConfigurationError: there is no such connector, nothing says how to try it, or what says so is broken.
    """
    if name not in registry.names() and NAME.fullmatch(name) and (ROOT / "connectors" / f"{name}.py").is_file():
        raise ConfigurationError(name, [f"is not known yet; add to {_registry_line(name)}"])
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


def _registry_line(name: str) -> str:
    return f'SHIPPED in connectors/registry.py:     "{name}": "connectors.{name}:{class_name(name)}",'


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


def try_connector(name: str, promises: Sequence[str] = (), *, as_json: bool = False) -> int:
    """Try every promise and print one table; NOT_FINE when one is broken.

    Args:
        promises: only these.

    Raises:
        ConfigurationError: see `trials_of`; there is no such promise; or the trial's settings are wrong.
    """
    unknown = [one for one in promises if one not in PROMISES]
    if unknown:
        raise ConfigurationError("promises", [_no_such_promise(one) for one in unknown])
    wanted = [one for one in PROMISES if one in promises] if promises else list(PROMISES)
    trials = trials_of(name)
    console = _console(stderr=True)
    results: list[tuple[str, list[Verdict], float]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=as_json or not console.is_terminal) as progress:
        task = progress.add_task("", total=len(wanted) * len(trials))

        def seen(verdict: Verdict) -> None:
            progress.update(task, advance=1, description=verdict.promise)

        for trial in trials:
            started = time.monotonic()
            verdicts = asyncio.run(try_all(trial(), seen, names=wanted))
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
        if broken:
            first = next(one for _, verdicts, _ in results for one in verdicts if one.verdict == "broken")
            _console().print(Text(f"Try one again: provgate connector test {name} {first.promise}"))
    return NOT_FINE if broken else FINE


def _no_such_promise(name: str) -> str:
    near = difflib.get_close_matches(name, PROMISES, n=1, cutoff=0.4)
    return f"{name}: not a promise; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(PROMISES)}")


def _print_verdicts(title: str, verdicts: list[Verdict], took_s: float) -> None:
    table = _table("Promise", "Verdict", "Figure")
    for verdict in verdicts:
        shown = verdict.figure or verdict.detail
        table.add_row(Text(verdict.promise), Text(verdict.verdict, style=_STYLES[verdict.verdict]), Text(shown))
    counts = {said: sum(one.verdict == said for one in verdicts) for said in _STYLES}
    out = _console()
    out.print(Text(f"\n{title}", style="bold"))
    out.print(table)
    for verdict in verdicts:
        if verdict.verdict == "broken":
            out.print(Text(f"{told(verdict)}\n"))
    counted = ", ".join(f"{count} {said}" for said, count in counts.items() if count or said == "broken")
    out.print(Text(f"{counted}; {took_s:.1f} s.", style="bold red" if counts["broken"] else "bold green"))


# Running the emulated product by hand ---------------------------------------------------------------------------------


def emulate(name: str, *, port: int = 0, until: Callable[[], Awaitable[None]] | None = None) -> int:
    """Serve a connector's emulated product on this machine until it is interrupted, and print a target that uses it.

    Args:
        port: 0 takes a free one.
        until: ends it; without it SIGINT or SIGTERM does.

    Raises:
        ConfigurationError: see `trials_of`; or the connector calls nobody.
    """
    trial = trials_of(name)[0]()
    emulator = trial.emulator()
    if emulator is None:
        raise ConfigurationError(name, ["calls nobody, so there is no product to emulate"])
    emulator.set(rate_per_s=type(emulator).rate_per_s)
    asyncio.run(_emulate(name, trial, emulator, port, until or _interrupted))
    return FINE


async def _emulate(
    name: str, trial: Conformance, emulator: Emulator, port: int, until: Callable[[], Awaitable[None]]
) -> None:
    with tempfile.TemporaryDirectory(prefix="provgate-emulated-") as folder:
        secret = Path(folder) / "credential"
        secret.touch(mode=0o600)
        secret.write_text(trial.credential, encoding="utf-8")
        try:
            serving = await serve(emulator, port=port)
        except (OSError, OverflowError) as exc:
            raise ConfigurationError(name, [f"port {port} cannot be used: {exc}"]) from exc
        try:
            settings = "".join(
                f"{key} = {_toml(value)}\n" for key, value in trial.settings(serving.url, str(secret)).items()
            )
            print(f'[targets.{name}]\nconnector = "{name}"\n\n[targets.{name}.settings]\n{settings}', flush=True)
            _console(stderr=True).print(
                Text(
                    f"{emulator.name} answers on {serving.url} until Ctrl-C. What it holds: {serving.url}/__emu/state, "
                    f"what it was asked: {serving.url}/__emu/requests"
                )
            )
            await until()
        finally:
            await serving.close()


async def _interrupted() -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()


def _toml(value: Any) -> str:
    """A setting in one line of TOML."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{json.dumps(key)} = {_toml(held)}" for key, held in value.items() if held is not None)
        return f"{{ {inside} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def listed(*, as_json: bool = False) -> int:
    """Print every connector that can be named in a configuration; NOT_FINE when one cannot be loaded."""
    rows = [_described(name) for name in registry.names()]
    if as_json:
        print(json.dumps({"connectors": rows}, ensure_ascii=False))
    else:
        table = _table("Connector", "Product", "Resources", "Support", "Can also")
        for row in rows:
            problem = row["problem"]
            able = ", ".join(row["capabilities"]).replace("_", " ")  # broken between words, not within
            cells = (row["title"], ", ".join(row["resources"]), row["support"], able)
            shown = [Text(str(problem), style="red"), *[Text("")] * 3] if problem else [Text(cell) for cell in cells]
            name = Text(row["name"], style="bold")
            if row["name"] not in registry.SHIPPED:
                name.append(f"\n{row['place']}", style="bright_black")
            table.add_row(name, *shown)
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
    if problem := name_problem(name):
        raise ConfigurationError(name or "(no name)", [problem])
    if name in registry.names():
        raise ConfigurationError(name, ["there is a connector of this name already; see: provgate connector list"])
    if folder is None and not (ROOT / "tests" / "connectors").is_dir():
        raise ConfigurationError(name, ["this is no checkout; begin a package of its own with --folder"])
    files = files_in_checkout(name) if folder is None else files_of_package(name)
    base = ROOT if folder is None else folder.resolve()
    _write(name, base, files)
    if folder is None:
        todo = [
            f"Add to {_registry_line(name)}",
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


def _write(name: str, base: Path, files: Mapping[str, str]) -> None:
    """All of the files or none: what exists is never overwritten, and what cannot be finished is taken away again."""
    there = [path for path in files if (base / path).exists() or (base / path).is_symlink()]
    there += [path.removesuffix(".py") for path in files if path.endswith(".py") and (base / path[:-3]).is_dir()]
    if there:
        raise ConfigurationError(name, [f"{path} exists already and is not overwritten" for path in there])
    written: list[Path] = []
    try:
        for path, text in files.items():
            (base / path).parent.mkdir(parents=True, exist_ok=True)
            with (base / path).open("x", encoding="utf-8") as file:
                written.append(base / path)
                file.write(text)
    except OSError as exc:
        for file_written in written:
            file_written.unlink(missing_ok=True)
        raise ConfigurationError(name, [f"{exc.filename or base}: {exc.strerror}; nothing was written"]) from exc


def name_problem(name: str) -> str:
    """Why a connector cannot have this name, with one it could have; "" when it can."""
    if NAME.fullmatch(name) and not keyword.iskeyword(name):
        return ""
    says = "a connector's name has 2 to 40 small letters, digits and _, and begins with a letter"
    if keyword.iskeyword(name):
        says = "this is a word of Python"
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    proposal = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")[:40]
    if proposal[:1].isdigit():
        proposal = f"the_{proposal}"[:40]
    if keyword.iskeyword(proposal):
        proposal = f"{proposal}_product"
    return f"{says}; {proposal} would do" if NAME.fullmatch(proposal) else says


def class_name(name: str) -> str:
    """`toy_shop` as a class: `ToyShop`; a name that the module uses for something else becomes `UserConnector`."""
    said = "".join(word.capitalize() for word in name.split("_"))
    return f"{said}Connector" if said in vars(example) else said


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

[tool.ruff]
line-length = 120

[tool.ruff.lint.isort]
known-first-party = ["{package}", "connectors", "schemas"]

[tool.mypy]
strict = true
packages = ["{package}"]

[tool.pytest.ini_options]
testpaths = ["tests"]
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
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDTH_WITHOUT_TERMINAL
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name in ("Promise", "Verdict", "Connector"))
    return table
