"""What is written for readers: links lead somewhere, commands exist, and the example shows every setting with its default."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from connectors import registry
from gateway.cli import app as root
from schemas import config
from schemas.config import Configuration, EntraCloud, Secret

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    page
    for folder in (".", "connectors", "connectors/setup", "deploy", "gateway", "workers")
    for page in (ROOT / folder).glob("*.md")
)
COMMAND = re.compile(r"(?:`|^)(provgate(?: [^`#\n]+)?)(?:`| *#| *$)", re.MULTILINE)
EXAMPLE = ROOT / "deploy" / "provgate.toml"


def text(page: Path) -> str:
    """A page as it stands."""
    return page.read_text(encoding="utf-8")


def test_every_link_leads_somewhere() -> None:
    """Files exist, and sections are called what the link says, as anchors are made of headings everywhere."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", text(page)):
            path, _, anchor = target.partition("#")
            if "://" in path:
                continue
            file = page if not path else page.parent / path
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", text(file), re.MULTILINE)
                anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in anchors, f"{page.name}: {target}"


def test_every_command_that_a_page_names_exists_with_its_options() -> None:
    """Pages are typed after, word by word."""
    named = {(str(page.relative_to(ROOT)), said.strip()) for page in PAGES for said in COMMAND.findall(text(page))}

    assert len(named) > 60
    for page, command in sorted(named):
        words = command.split()[1:]
        if not words or words[0].startswith("-"):
            continue
        app = root
        for word in words:
            if word not in app:
                break
            app = app[word]
        assert app.default_command is not None, f"{page}: {command}"
        options = {option for word in words if (option := word.partition("=")[0]).startswith("--")}
        known = {name for argument in app.assemble_argument_collection() for name in argument.names}
        assert options <= known, f"{page}: {command} has no {options - known}"


def settings(type_: type[msgspec.Struct], path: str) -> Iterator[tuple[str, Any]]:
    """Path and default of every setting below a table; those of connectors and of clouds of one's own stand elsewhere."""
    for field in msgspec.structs.fields(type_):
        here = f"{path}.{field.encode_name}".lstrip(".")
        table = config._struct_of(field.type) or config._table_of(field.type)[1]
        if table is None or table is Secret:
            yield here, field.default
        elif table is not EntraCloud:
            yield from settings(table, f"{here}.talkdesk-eu" if field.encode_name == "targets" else here)


def leaves(table: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of everything in a TOML document that is no table of settings."""
    for name, value in table.items():
        here = f"{path}.{name}".lstrip(".")
        if isinstance(value, dict) and not value.keys() <= {"env", "file"}:
            yield from leaves(value, here)
        else:
            yield here, tuple(value) if isinstance(value, list) else value


def test_the_example_shows_every_setting_with_its_default() -> None:
    """Nobody looks for a setting in the source: the file holds all of them, and says truly what happens without each."""
    all_shown = re.sub(r"(?m)^#(?=\[|\w+ = )", "", text(EXAMPLE))
    shown = dict(leaves(tomllib.loads(all_shown)))
    own = {path for path in shown if path.startswith("targets.talkdesk-eu.settings.")}
    expected = dict(settings(Configuration, ""))
    del expected["targets.talkdesk-eu.settings"]

    assert shown.keys() - own == expected.keys()
    for line in all_shown.splitlines():
        name = re.match(r"(\w+) = ", line)
        if name and "example" not in line and line not in text(EXAMPLE).splitlines():
            ends = [path for path in expected if path.endswith(f".{name[1]}")]
            required = all(expected[path] is msgspec.NODEFAULT for path in ends)
            assert required or any(shown[path] == expected[path] for path in ends), line


def test_the_example_is_a_configuration_as_it_stands_and_with_all_of_it_in_force() -> None:
    """What is copied is read by the same code as an operator's file."""
    for said in (text(EXAMPLE), re.sub(r"(?m)^#(?=\[|\w+ = )", "", text(EXAMPLE))):
        target = config.parse(said).targets["talkdesk-eu"]
        problems: list[str] = []
        registry.decode_settings(target.connector, target.settings, "settings", problems)
        assert problems == []
