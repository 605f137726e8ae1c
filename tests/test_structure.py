"""The shape of the code: who may import whom, which library lives where, and what every file owes its reader."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("schemas", "connectors", "workers", "gateway", "deploy")
MAY_IMPORT: dict[str, set[str]] = {
    "schemas": set(),
    "connectors": {"schemas"},
    "connectors/testing": {"deploy", "schemas", "workers"},
    "workers": {"connectors", "schemas"},
    "gateway": {"schemas"},
    "deploy/emulators": set(),
    "deploy": {"connectors", "gateway", "schemas", "workers"},
}
"""Per folder, which packages of ours it may use beside its own. The emulators are the products' side: they know nothing of us.

The authors' kit tries connectors with the worker's own order of work, against the emulators' own harness: another order and
another harness would prove something about themselves. Nothing of the product imports the kit.
"""
AUTHORS_KIT_USES = {"workers.delivery", "workers.limits", "deploy.emulators"}

STORE = (
    "gateway/tables.py",
    "gateway/statements.py",
    "gateway/databases.py",
    "gateway/store.py",
    "gateway/reports_store.py",
    "gateway/mails_store.py",
    "gateway/migrations/",
)
HOMES: dict[str, tuple[str, ...]] = {
    "aiosmtplib": ("gateway/smtp.py",),
    "litestar": (
        "gateway/scim_app.py",
        "gateway/operators.py",
        "gateway/services.py",
        "gateway/targets_api.py",
        "gateway/plans_api.py",
        "gateway/dead_api.py",
        "gateway/keys_api.py",
        "gateway/live_api.py",
        "gateway/reports_api.py",
        "gateway/configuration_api.py",
        "gateway/mail_api.py",
        "gateway/notes_api.py",
        "deploy/emulators/",
    ),
    "sqlmodel": ("gateway/tables.py",),
    "sqlalchemy": (*STORE, "gateway/checks.py"),
    "alembic": ("gateway/databases.py", "gateway/migrations/"),
    "psycopg": ("gateway/store.py",),
    "sqlite3": ("gateway/store.py", "gateway/spool.py"),
    "aiohttp": ("connectors/http.py", "gateway/entra_keys.py", "deploy/"),
    "faststream": ("workers/",),
    "nats": ("gateway/jetstream.py", "workers/"),
    "phonenumbers": ("connectors/telemessage.py",),
    "rich": ("gateway/cli_printing.py", "gateway/terminal.py", "connectors/testing/command.py", "deploy/"),
    "cyclopts": ("gateway/cli", "deploy/"),
    "tenacity": ("connectors/http.py",),
    "structlog": ("schemas/logs.py",),
    "prometheus_client": ("gateway/metrics.py",),
    "uvicorn": ("gateway/listener.py", "deploy/emulators/"),
    "tomllib": ("schemas/config.py", "connectors/coverage.py"),
}
"""Each library has one home; who wants what it does asks that module."""

VAGUE = {"utils", "util", "helpers", "helper", "common", "core", "misc", "manager", "handler", "handlers", "base"}
OWES_A_DOCSTRING = {
    "gateway/tables.py:to_texts",
    "gateway/tables.py:encode_row",
    "gateway/tables.py:decode_row",
    "deploy/emulators/entra.py:Answer.text",
    "deploy/emulators/entra.py:LoadResult.requests_per_s",
}
"""Public names without a docstring; nothing may be added here."""

RULES = [*(f"R{n}" for n in range(1, 11)), *(f"T{n}" for n in range(1, 14)), *(f"I{n}" for n in range(1, 12))]


def modules(folder: str) -> list[Path]:
    """The Python files of one folder."""
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


PRODUCT = [path for package in PACKAGES for path in modules(package)]
TESTS = sorted(path for path in modules("tests") if path.name.startswith("test_"))


def short(path: Path) -> str:
    """A file's name as people say it."""
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=short(path))


@functools.cache
def imported(path: Path) -> set[str]:
    """Every module a file imports anywhere in it, by full name; relative imports are resolved."""
    found = set()
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


# ---- directions


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_package_imports_only_what_lies_below_it(folder: str) -> None:
    """Directions may not change."""
    own = folder.split("/")[0] if folder != "deploy/emulators" else "deploy.emulators"
    for path in modules(folder):
        if folder == "connectors" and "testing" in path.parts:
            continue  # has a line of its own
        for name in imported(path):
            top = name.split(".")[0]
            if top not in (*PACKAGES, "tests") or name == own or name.startswith(f"{own}."):
                continue
            if folder == "deploy/emulators" and name == "deploy":
                continue  # the package the emulators lie in, empty but for its docstring
            assert top in MAY_IMPORT[folder], (
                f"{short(path)} imports {name}; allowed: {MAY_IMPORT[folder] or 'nothing of ours'}"
            )


def test_the_authors_kit_uses_delivery_and_the_emulators_and_nobody_uses_the_kit() -> None:
    """The exception stays as small as it is, and stays at the end of the line: no import cycle can come from it."""
    for path in PRODUCT:
        if short(path).startswith("connectors/testing/"):
            foreign = {name for name in imported(path) if name.split(".")[0] in ("workers", "deploy")} - {"workers"}
            assert all(any(f"{name}.".startswith(f"{one}.") for one in AUTHORS_KIT_USES) for name in foreign), foreign
        else:
            assert not any(name.startswith("connectors.testing") for name in imported(path)), short(path)


def test_only_the_command_line_starts_other_packages_by_name() -> None:
    """One console script starts them all; nobody else goes round the directions by a string."""
    by_name = ("gateway/cli_processes.py", "gateway/cli_connectors.py")
    pattern = re.compile(r"import_module\(\s*f?[\"'](deploy|workers|connectors|gateway|tests)\b")
    for path in PRODUCT:
        if pattern.search(path.read_text(encoding="utf-8")):
            assert short(path) in by_name, f"{short(path)} imports one of ours by name"


def test_there_is_no_import_cycle() -> None:
    """None; imports inside functions count as well."""
    names = {short(path)[:-3].replace("/", ".").removesuffix(".__init__"): path for path in PRODUCT}
    graph = {name: imported(path) & names.keys() - {name} for name, path in names.items()}

    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, (*way, name))
            done.add(name)

    for name in graph:
        walk(name, ())
    assert len(done) == len(PRODUCT)


@pytest.mark.parametrize("library", HOMES)
def test_a_library_has_one_home(library: str) -> None:
    """Who else wants it asks the module it lives in."""
    users = {
        short(path) for path in PRODUCT if any(n == library or n.startswith(f"{library}.") for n in imported(path))
    }

    strangers = {user for user in users if not user.startswith(HOMES[library])}

    assert users, f"nobody uses {library} any more: take it out of this table and of pyproject.toml"
    assert not strangers, f"{library} lives in {HOMES[library]}, not in {sorted(strangers)}"


def test_the_simulation_runs_without_a_bus_a_database_or_a_web_server() -> None:
    """A13: clock, random, bus, store and HTTP are injected; the engine and delivery load none of their libraries."""
    heavy = ("nats", "faststream", "sqlalchemy", "litestar", "aiohttp", "uvicorn")
    code = (
        "import sys, gateway.intake, gateway.dispatch, gateway.outcomes, workers.delivery\n"
        f"print(sorted(set({heavy!r}) & set(sys.modules)))"
    )

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout

    assert loaded.strip() == "[]"


# ---- names and words


def test_no_module_hides_a_missing_idea_behind_its_name() -> None:
    """A reader guesses the file from its name; utils, helpers and the like say nothing."""
    vague = [short(path) for path in [*PRODUCT, *modules("tests")] if {path.stem, path.parent.name} & VAGUE]

    assert not vague


def _public(body: list[ast.stmt], *, inherited: bool) -> Iterator[tuple[str, ast.AST]]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            yield node.name, node
            declared = {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
            for name, method in _public(
                node.body, inherited=bool(declared - {"Struct", "Protocol", "Generic", "Enum"})
            ):
                yield f"{node.name}.{name}", method
        elif not inherited and not _says_nothing(node):
            yield node.name, node


def _says_nothing(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A stub of a protocol: `...` stands for what another class documents."""
    only = node.body[0]
    return len(node.body) == 1 and isinstance(only, ast.Expr) and getattr(only.value, "value", None) is Ellipsis


@pytest.mark.parametrize("path", PRODUCT, ids=short)
def test_everything_public_says_what_it_is_for(path: Path) -> None:
    """A docstring for everything public; a method that another class of ours declares is documented there."""
    parsed = tree(path)
    silent = {
        f"{short(path)}:{name}" for name, node in _public(parsed.body, inherited=False) if not ast.get_docstring(node)
    }

    assert ast.get_docstring(parsed), f"{short(path)} says nothing"
    assert silent == {name for name in OWES_A_DOCSTRING if name.startswith(f"{short(path)}:")}


@pytest.mark.parametrize("path", TESTS, ids=short)
def test_every_test_says_which_property_holds(path: Path) -> None:
    """One sentence each."""
    silent = [
        node.name
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]

    assert not silent


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_a_test_that_names_it(rule: str) -> None:
    """Issue 2, item 5: rules of delivery (R), rules (T) and invariants (I), each with a test of its name."""

    assert rule in named_rules(), f"no test is named after {rule}"


@functools.cache
def named_rules() -> set[str]:
    """What the names of tests begin with: `test_R5_I3_...` names R5 and I3."""
    heads = (re.findall(r"def test_((?:[A-Z]\d+_)+)", path.read_text(encoding="utf-8")) for path in TESTS)
    return {rule for found in heads for head in found for rule in head.split("_")}


# ---- what is in the repository

GENERATED = re.compile(r"(^|/)(\.venv|__pycache__|\.[a-z]+_cache|\.hypothesis|[^/]+\.egg-info)/")


def tracked() -> list[Path]:
    """Every file under version control; without one, as in an unpacked archive, every file that nothing generated."""
    if not (ROOT / ".git").exists():
        return [path for path in ROOT.rglob("*") if path.is_file() and not GENERATED.search(short(path))]
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_nothing_in_the_repository_names_a_machine_or_a_registry() -> None:
    """A bare checkout works anywhere: no folder of one machine, no address packages come from."""
    machine = [f"/{folder}/" for folder in ("work", "farm", "root", "home")]
    registries = ["pythonhosted" + ".org", "pypi" + ".org", "--index" + "-url", "index" + "-url =", "." * 2 + "/shared"]
    pattern = re.compile("|".join(rf"(?<![\w.}}]){re.escape(text)}" for text in (*machine, *registries)))
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data[:4096]:
            lines = data.decode("utf-8", errors="replace").splitlines()
            found += [
                f"{short(path)}:{n}: {line.strip()[:120]}" for n, line in enumerate(lines, 1) if pattern.search(line)
            ]

    assert not found, "\n".join(found)


def test_the_lock_file_has_hashes_and_no_addresses() -> None:
    """Issue 2, item 1: names, versions, hashes."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned = re.findall(r"^([a-z0-9._-]+)==\S+", text, re.MULTILINE | re.IGNORECASE)

    assert len(pinned) > 30
    assert "://" not in text
    assert not re.search(r"^\s*-[-a-z]*(index|find-links|trusted)", text, re.MULTILINE)
    for requirement in re.split(r"\n(?=[a-zA-Z0-9])", text):
        if "==" in requirement:
            assert "--hash=sha256:" in requirement, requirement[:80]


def test_what_decides_in_CI_can_be_run() -> None:
    """.ci/run is executable, stops at the first failure, and runs the two commands everybody has."""
    script = ROOT / ".ci" / "run"
    text = script.read_text(encoding="utf-8")

    assert os.access(script, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert "make check" in text
    assert "make test" in text


def test_nothing_secret_or_generated_is_tracked() -> None:
    """Caches, stores, keys and virtual environments stay out."""
    wrong = re.compile(r"(^|/)(\.venv|__pycache__|\.pytest_cache|\.hypothesis)/|\.(sqlite3|pyc|pem|key|log)$")

    assert [short(path) for path in tracked() if wrong.search(short(path))] == []


def test_each_folder_has_a_reader() -> None:
    """Packages say in one line what they are; tests mirror the folders of the product."""
    for package in PACKAGES:
        assert ast.get_docstring(tree(ROOT / package / "__init__.py")), package
    for package in ("connectors", "workers", "gateway"):
        assert list((ROOT / "tests" / package).glob("test_*.py")), package
