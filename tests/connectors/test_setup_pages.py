"""The setup pages: what is printed is current, what can be copied works, and the mapping is the one end-to-end tests use."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from connectors import registry, setup_pages
from deploy.emulators import entra
from schemas.config import parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = setup_pages.pages()


def text(page: Path) -> str:
    """A page as it stands."""
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_what_the_specs_print_now(page: Path) -> None:
    """A spec that changes without its page fails here; `python -m connectors.docs` mends it."""
    assert setup_pages.with_printed(page.stem, text(page)) == text(page)


def test_every_shipped_connector_has_a_page() -> None:
    """No product without its steps."""
    assert {page.stem for page in PAGES} == set(registry.SHIPPED)


@pytest.mark.parametrize("name", ["talkdesk", "babelforce", "telemessage", "bobs_business", "sofa"])
def test_the_mapping_of_a_page_is_the_one_the_emulated_entra_provisions_with(name: str) -> None:
    """The end-to-end tests run with the very expressions that an admin copies; constants and attributes of choice differ."""
    emulated = {row.path: (row.source, row.matching) for row in entra.MAPPINGS[name].attributes}
    printed = dict(setup_pages.rows(registry.load(name).spec))

    for attribute in printed:
        if attribute.source == "":
            continue
        source, matching = emulated[attribute.path]
        assert matching == (1 if attribute.path == "userName" else 0) or matching is None
        if not attribute.source.startswith("Constant"):
            assert source == attribute.source
    assert set(emulated) <= {attribute.path for attribute in printed}


def test_the_default_mapping_is_the_emulated_one() -> None:
    """Two hands wrote it down from Microsoft's page: the emulator's author and this one's."""
    assert {row.path: row.source for row in entra.DEFAULT.attributes} == setup_pages.DEFAULT_MAPPING


@pytest.mark.parametrize("name", sorted(registry.SHIPPED))
def test_every_row_of_the_default_mapping_is_kept_changed_or_deleted(name: str) -> None:
    """An admin who works through the page has nothing left to ask."""
    spec = registry.load(name).spec
    printed = {attribute.path for attribute, _ in setup_pages.rows(spec)}
    deleted = set(setup_pages.superfluous(spec))

    assert printed.isdisjoint(deleted)
    assert spec.any_attribute or set(setup_pages.DEFAULT_MAPPING) <= printed | deleted


@pytest.mark.parametrize(
    ("page", "example"),
    [(page, toml) for page in PAGES for toml in re.findall(r"```toml\n(.*?)```", text(page), re.DOTALL)],
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)
def test_a_target_of_a_page_can_be_configured_as_it_stands(page: Path, example: str) -> None:
    """What is copied is read by the same code as an operator's file."""
    (target,) = parse(example).targets.values()
    problems: list[str] = []

    settings = registry.decode_settings(target.connector, target.settings, "settings", problems)

    assert (problems, target.connector) == ([], page.stem)
    assert settings is not None


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("<!-- printed: weather -->\n<!-- end -->", "there is no part weather"),
        ("<!-- printed: mapping -->\n", "has no end"),
    ],
)
def test_a_page_with_a_broken_mark_is_refused(page: str, said: str) -> None:
    """Better an error than a page that silently stays as it was."""
    with pytest.raises(ValueError, match=said):
        setup_pages.with_printed("talkdesk", page)


@pytest.mark.parametrize("name", ["talkdesk", "babelforce", "telemessage", "bobs_business", "sofa"])
def test_what_a_page_says_of_refusals_is_said_by_the_connector(name: str) -> None:
    """An admin searches the page for the words that stand in the log."""
    said = "".join(
        node.value
        for node in ast.walk(ast.parse((ROOT / "connectors" / f"{name}.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    titled = said.replace(f" {registry.load(name).spec.title}", " ")
    table = text(setup_pages.FOLDER / f"{name}.md").partition("| `detail` says |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1].removesuffix(" (in `provgate status`) ").strip() for line in table.splitlines()[2:]]

    assert len(rows) >= 5
    for words in rows:
        assert words in said or words in titled, words
