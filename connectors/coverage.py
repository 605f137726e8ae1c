"""Which test shows which requirement of the vendors' guides: `python -m connectors.coverage` prints the table into `README.md`.

The requirements stand in `requirements.toml`. A test shows one by naming its id in its docstring, its name or the ids of its
parameters; tests are read, not imported. What somebody has to do in Entra or at the product stands in a section of the product's
setup page that says so: `<!-- covers: T3, T18 -->` below its heading. Entra's admin never sees that line.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

HERE = Path(__file__).parent
ROOT = HERE.parent
README = HERE / "README.md"
REQUIREMENTS = HERE / "requirements.toml"
SETUP = HERE / "setup"
BEGIN = "<!-- printed by python -m connectors.coverage; do not edit below -->"
END = "<!-- end of the requirements -->"
SHOWN_MAX = 3
"""Tests printed per requirement; the others are counted."""

PRODUCTS = {"T": "talkdesk", "B": "babelforce", "M": "telemessage", "L": "bobs_business", "S": "sofa"}
TITLES = {
    "T": "Talkdesk",
    "B": "babelforce",
    "M": "TeleMessage",
    "L": "Bob's Business",
    "S": "Software602 Sofa",
}
OWN = "tests/connectors/test_requirements.py"
"""A module whose ids may be any product's; elsewhere they are those of the module's product."""

_ID = r"[TBMLS]\d{1,2}"
_SPAN = re.compile(rf"\b({_ID})(?:(?:-| to )({_ID}))?\b")
_SAID = re.compile(rf"\b[Vv]endor requirements? ((?:{_ID}(?:-| to |, | and )?)+)")
_COVERS = re.compile(rf"<!-- covers: ((?:{_ID}(?:, )?)+) -->")
_HEADING = re.compile(r"^#{2,3} (.+)$")


class Requirement(Struct, frozen=True, forbid_unknown_fields=True):
    """What one numbered requirement says, who keeps it, and by which findings of `check()` one notices that it is not kept."""

    what: str
    kind: Literal["connector", "admin"]
    findings: tuple[str, ...] = ()


class Shown(Struct, frozen=True, order=True):
    """A test that names requirements. `others`: how many more it names; few say that it is about this one."""

    emulated: bool
    others: int
    path: str
    test: str


class Section(Struct, frozen=True):
    """A section of a setup page."""

    product: str
    heading: str

    @property
    def link(self) -> str:
        """Markdown, from beside `README.md`; anchors as they are made of headings everywhere."""
        anchor = re.sub(r"[^\w\- ]", "", self.heading.lower()).replace(" ", "-")
        return f"[setup: {self.heading}](setup/{self.product}.md#{anchor})"


def requirements(path: Path = REQUIREMENTS) -> dict[str, Requirement]:
    """All of them, in the order of products and numbers.

    Raises:
        ValueError: a number is missing in its row, or an entry is malformed.
    """
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    found = msgspec.convert(table, dict[str, Requirement])
    for letter in PRODUCTS:
        numbers = [int(name[1:]) for name in found if name[:1] == letter and name[1:].isdigit()]
        if numbers != list(range(1, len(numbers) + 1)):
            raise ValueError(f"{path.name}: {letter} is not numbered from 1 without a gap: {numbers}")
    strangers = [name for name in found if re.fullmatch(_ID, name) is None]
    if strangers:
        raise ValueError(f"{path.name}: {', '.join(strangers)} are no ids")
    return found


def named_by_tests(root: Path = ROOT) -> dict[str, list[Shown]]:
    """Which tests name which id, those first that are about little else, and those of emulators last."""
    found: dict[str, set[Shown]] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        place = path.relative_to(root).as_posix()
        for name, said in _said(path):
            ids = set(_named(place, said))
            for one in ids:
                shown = Shown(place.startswith("tests/emulators/"), len(ids) - 1, place, name)
                found.setdefault(one, set()).add(shown)
    return {name: sorted(shown) for name, shown in found.items()}


def sections_by_id(folder: Path = SETUP) -> dict[str, list[Section]]:
    """Which sections of the setup pages cover which id.

    Raises:
        ValueError: a page covers an id of another product, or says so outside any section.
    """
    found: dict[str, list[Section]] = {}
    for path in sorted(folder.glob("*.md")):
        heading = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if (title := _HEADING.match(line)) is not None:
                heading = title[1]
            if (covers := _COVERS.search(line)) is None:
                continue
            for one in covers[1].split(", "):
                if PRODUCTS[one[0]] != path.stem or not heading:
                    raise ValueError(f"{path.name}: {one} is covered in the wrong place")
                found.setdefault(one, []).append(Section(path.stem, heading))
    return found


def finding_codes(product: str) -> set[str]:
    """The codes of findings that a connector's module gives, read from its source: as they stand, or out of a table in it."""
    tree = ast.parse((HERE / f"{product}.py").read_text(encoding="utf-8"))
    tables = {
        name.id: node.value.values
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for name in node.targets
        if isinstance(name, ast.Name)
    }
    given = [
        keyword.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Finding"
        for keyword in call.keywords
        if keyword.arg == "code"
    ]
    for one in list(given):
        if isinstance(one, ast.Subscript) and isinstance(one.value, ast.Name):
            given += tables.get(one.value.id, ())
    return {one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)}


def problems(
    wanted: Mapping[str, Requirement],
    tests: Mapping[str, Iterable[Shown]],
    sections: Mapping[str, Iterable[Section]],
    codes: Mapping[str, set[str]],
) -> list[str]:
    """What is not covered, and what is named that does not exist; a sentence each, empty when all is well."""
    found = []
    for name, requirement in wanted.items():
        if requirement.kind == "connector" and not any(not shown.emulated for shown in tests.get(name, ())):
            found.append(f"{name}: no test of ours shows it ({requirement.what})")
        if requirement.kind == "admin" and not list(sections.get(name, ())):
            found.append(f"{name}: no section of setup/{PRODUCTS[name[0]]}.md covers it ({requirement.what})")
        strange = set(requirement.findings) - codes[PRODUCTS[name[0]]]
        found += [f"{name}: {PRODUCTS[name[0]]} gives no finding {code}" for code in sorted(strange)]
    found += [
        f"{name}: there is no such requirement, but {shown.path}::{shown.test} names it"
        for name in sorted(set(tests) - set(wanted))
        for shown in tests[name]
    ]
    found += [
        f"{name}: there is no such requirement, but a setup page covers it" for name in set(sections) - set(wanted)
    ]
    return found


def everything() -> tuple[
    dict[str, Requirement], dict[str, list[Shown]], dict[str, list[Section]], dict[str, set[str]]
]:
    """What `problems` and `printed` are made from, as it stands in this checkout."""
    codes = {product: finding_codes(product) for product in PRODUCTS.values()}
    return requirements(), named_by_tests(), sections_by_id(), codes


def printed(
    wanted: Mapping[str, Requirement], tests: Mapping[str, list[Shown]], sections: Mapping[str, list[Section]]
) -> str:
    """One table per product: id, what it says, what shows it."""
    lines: list[str] = []
    for letter, title in TITLES.items():
        rows = {name: one for name, one in wanted.items() if name[0] == letter}
        mine = sum(one.kind == "connector" for one in rows.values())
        lines += [
            f"### What the guide of {title} asks for",
            "",
            f"{len(rows)} requirements: {mine} kept by the connector or the gateway, {len(rows) - mine} for people.",
            "",
            "| id | what | shown by |",
            "|---|---|---|",
            *(
                f"| {name} | {one.what} | {_proofs(one, tests.get(name, []), sections.get(name, []))} |"
                for name, one in rows.items()
            ),
            "",
        ]
    return "\n".join(lines)


def with_printed(page: str, text: str) -> str:
    """The page with its tables made anew.

    Raises:
        ValueError: the page has lost its markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def _proofs(one: Requirement, tests: list[Shown], sections: list[Section]) -> str:
    cells = [section.link for section in sections]
    cells += [f"`{shown.path}::{shown.test}`" for shown in tests[:SHOWN_MAX]]
    if len(tests) > SHOWN_MAX:
        cells.append(f"and {len(tests) - SHOWN_MAX} more")
    if one.findings:
        cells.append("`provgate check`: " + ", ".join(f"`{code}`" for code in one.findings))
    return "<br>".join(cells)


def _said(path: Path) -> Iterator[tuple[str, str]]:
    """Every test of a module with its name, docstring and parameter ids in one text."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            texts = [node.name.replace("_", " "), ast.get_docstring(node) or ""]
            texts += [
                text.value
                for decorator in node.decorator_list
                if isinstance(decorator, ast.Call)
                for keyword in decorator.keywords
                if keyword.arg == "ids"
                for text in ast.walk(keyword.value)
                if isinstance(text, ast.Constant) and isinstance(text.value, str)
            ]
            yield node.name, "\n".join(texts)


def _named(place: str, text: str) -> Iterator[str]:
    """The ids in a test's text. In a product's own modules they stand bare; elsewhere after the words "vendor requirement"."""
    own = [
        letter
        for letter, product in PRODUCTS.items()
        if place in (f"tests/connectors/test_{product}.py", f"tests/emulators/test_{product}.py", OWN)
    ]
    if own:
        yield from (one for one in _spans(text) if one[0] in own)
        return
    for said in _SAID.finditer(" ".join(text.split())):
        yield from _spans(said[1])


def _spans(text: str) -> Iterator[str]:
    """`T7`, and every id of `M10-M15` or `S10 to S12`."""
    for first, last in _SPAN.findall(text):
        if not last or last[0] != first[0]:
            yield from (one for one in (first, last) if one)
            continue
        yield from (f"{first[0]}{number}" for number in range(int(first[1:]), int(last[1:]) + 1))


def main() -> int:
    """Rewrite the tables; ends with 1 and the gaps on standard error when a requirement is not covered."""
    wanted, tests, sections, codes = everything()
    text = printed(wanted, tests, sections)
    README.write_text(with_printed(README.read_text(encoding="utf-8"), text), encoding="utf-8")
    gaps = problems(wanted, tests, sections, codes)
    print("\n".join(gaps), file=sys.stderr, end="\n" if gaps else "")
    return 1 if gaps else 0


if __name__ == "__main__":
    sys.exit(main())
