"""The newcomer's trial: the walk-through of the connectors' page, run line by line in a copy of the checkout."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from connectors import registry
from connectors.docs import README
from connectors.testing import command
from connectors.testing.conformance import PROMISES, WITHOUT_GROUPS
from schemas.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent.parent
NEEDED = ("connectors", "deploy", "gateway", "schemas", "workers", "tests/connectors")
RUN_S_MAX = 60.0


def section(title: str) -> str:
    """One section of the page."""
    page = README.read_text(encoding="utf-8")
    return page.partition(f"\n## {title}")[2].partition("\n## ")[0]


def steps() -> list[tuple[str, str]]:
    """What the walk-through says is to be done: ("run", command) and ("edit", file, change), in order."""
    text = section("A walk-through")
    found: list[tuple[str, str]] = []
    for kind, block in re.findall(r"```(console|diff)\n(.*?)```", text, re.DOTALL):
        if kind == "diff":
            found.append(("edit", block))
        else:
            found += [("run", line.removeprefix("$ ")) for line in block.splitlines()]
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a connector needs, and nothing of the tests of others but those of connectors."""
    copy = tmp_path / "checkout"
    for folder in NEEDED:
        shutil.copytree(ROOT / folder, copy / folder)  # compiled files included, so that nothing is compiled again
    shutil.copy(ROOT / "pyproject.toml", copy)
    shutil.copy(ROOT / "tests" / "__init__.py", copy / "tests")
    return copy


def run(command: str, folder: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    """A line of the page: `provgate` and `python` are those of this environment, modules those of the folder."""
    words = shlex.split(command)
    if words[0] == "provgate":
        words[:1] = [sys.executable, "-m", "gateway.cli"]
    elif words[0] == "python":
        words[0] = sys.executable
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
        "PYTHONPATH": os.pathsep.join(map(str, (folder, *paths))),
    }
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=RUN_S_MAX)


def contents(folder: Path) -> dict[str, list[str]]:
    """Every text file below a folder, by lines."""
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8").splitlines()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".py", ".md", ".toml")
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def edit(change: str, folder: Path) -> None:
    """Put the `+` line of a diff below the line that stands before it."""
    lines = change.splitlines()
    (added,) = [line[1:] for line in lines if line.startswith("+")]
    anchor = lines[0][1:]
    file = folder / "connectors" / "registry.py"
    text = file.read_text(encoding="utf-8")
    assert text.count(f"{anchor}\n") == 1
    file.write_text(text.replace(f"{anchor}\n", f"{anchor}\n{added}\n"), encoding="utf-8")


def test_a_newcomer_comes_from_nothing_to_a_green_suite_by_editing_one_existing_line(checkout: Path) -> None:
    """The page is executed; afterwards one file of code differs, by one added line; a bug put in then is caught."""
    before = contents(checkout)

    for kind, what in steps():
        if kind == "edit":
            edit(what, checkout)
            continue
        ran = run(what, checkout)
        assert ran.returncode == 0, f"{what}\n{ran.stdout}\n{ran.stderr}"
    assert [kind for kind, _ in steps()] == ["run", "edit", "run", "run", "run"]

    after = contents(checkout)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"connectors/registry.py", "connectors/README.md"}
    gone, added = (
        [line for line in one["connectors/registry.py"] if line not in other["connectors/registry.py"]]
        for one, other in ((before, after), (after, before))
    )
    assert (gone, len(added)) == ([], 1)
    assert set(after) - set(before) == {
        "connectors/toy.py",
        "connectors/toy.md",
        "deploy/emulators/toy.py",
        "tests/connectors/test_toy.py",
    }
    assert not any("lantern" in line.casefold() for name in set(after) - set(before) for line in after[name])
    ruff = Path(sys.executable).with_name("ruff")
    checked = subprocess.run(
        [ruff, "check", "--no-cache", *sorted(name for name in set(after) - set(before) if name.endswith(".py"))],
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout

    module = checkout / "connectors" / "toy.py"
    text = module.read_text(encoding="utf-8")
    assert text.count("return _id(_object(answer, write=True))") == 1
    module.write_text(
        text.replace("return _id(_object(answer, write=True))", 'return answer.body["number"]'), encoding="utf-8"
    )
    told = run("provgate connector test toy idempotent_create", checkout)
    assert told.returncode == 1
    for part in (
        "1 broken; ",
        "Seen: create raised KeyError: 'number' (toy.py line ",
        "To do: let `find` return the account",
        "POST /v1/people -> 201",
        "Try one again: provgate connector test toy idempotent_create",
    ):
        assert part in told.stdout


def test_a_package_of_its_own_edits_nothing_that_exists(tmp_path: Path) -> None:
    """Two entry points make the connector and its trial known; the package is installed as its own metadata say."""
    package = tmp_path / "package"

    assert command.new("toy_shop", folder=package) == 0
    project = (package / "pyproject.toml").read_text(encoding="utf-8")
    points = re.findall(r'\[project\.entry-points\."([\w.]+)"\]\n(\w+) = "([\w.:]+)"', project)
    metadata = package / "provgate_toy_shop-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: provgate-toy-shop\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text(
        "".join(f"[{group}]\n{name} = {place}\n" for group, name, place in points)
    )

    tried = run("provgate connector test toy_shop --json", ROOT, package)

    assert tried.returncode == 0, f"{tried.stdout}\n{tried.stderr}"
    (trial,) = json.loads(tried.stdout)["trials"]
    assert trial["trial"] == "ToyShopTrial"
    assert {verdict["promise"] for verdict in trial["verdicts"] if verdict["verdict"] != "kept"} == set(WITHOUT_GROUPS)
    ruff = Path(sys.executable).with_name("ruff")
    linted = subprocess.run([ruff, "check", "--no-cache", "."], cwd=package, capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Toy", "small letters"),
        ("7toys", "small letters"),
        ("class", "word of Python; class_product would do"),
        ("../toy", "small letters.*; toy would do"),
        ("my-product", "my_product would do"),
        ("2fast", "the_2fast would do"),
        ("Zoë's Shop", "zoe_s_shop would do"),
        ("李", "small letters"),
        ("", "small letters"),
        ("a" * 60, "2 to 40 small letters"),
        ("talkdesk", "already"),
    ],
)
def test_a_name_that_cannot_be_used_writes_nothing(tmp_path: Path, name: str, why: str) -> None:
    """The message says what a name must be; nothing is overwritten."""
    with pytest.raises(ConfigurationError, match=why):
        command.new(name, folder=tmp_path / "package")

    assert not (tmp_path / "package").exists()


def test_a_file_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    """All or nothing: one file in the way, and none is written."""
    (tmp_path / "README.md").write_text("mine")

    with pytest.raises(ConfigurationError, match=r"README\.md exists already"):
        command.new("toy", folder=tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_told_in_a_sentence_and_left_as_it_was(tmp_path: Path) -> None:
    """A file where a folder is needed: no traceback, and nothing half written."""
    (tmp_path / "tests").write_text("a file, not a folder")

    with pytest.raises(ConfigurationError, match="nothing was written"):
        command.new("toy", folder=tmp_path)

    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["tests"]


def test_a_connector_called_like_something_in_its_module_gets_a_class_of_another_name(tmp_path: Path) -> None:
    """`user` is a fine name for a product, and `User` is taken."""
    assert command.new("user", folder=tmp_path) == 0
    text = (tmp_path / "provgate_user" / "connector.py").read_text(encoding="utf-8")

    assert "class UserConnector(Connector[Settings, Account]):" in text
    assert 'name="user"' in text


def test_the_emulated_product_runs_by_hand_and_its_target_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed is a target of a configuration file, and its connector finds the product well set up."""
    said: list[str] = []

    async def checked() -> None:
        said.append(capsys.readouterr().out)
        (target,) = tomllib.loads(said[0])["targets"].values()
        problems: list[str] = []
        settings = registry.decode_settings("talkdesk", target["settings"], "settings", problems)
        assert not problems
        connector, http = registry.build("talkdesk", settings)
        said.extend(finding.level for finding in await connector.check())
        assert http is not None
        await http.close()

    assert command.emulate("talkdesk", until=checked) == 0
    assert "error" not in said
    assert len(said) > 1
    with pytest.raises(ConfigurationError, match="calls nobody"):
        command.emulate("observe")


def test_the_page_names_every_promise_in_its_own_words() -> None:
    """The table of the page is what the suite says."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", section("What every connector promises"), re.MULTILINE)

    assert dict(rows) == {name: promise.says for name, promise in PROMISES.items()}
