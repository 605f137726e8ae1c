"""The page of the connectors says what the connectors say."""

from __future__ import annotations

import pytest

from connectors import docs, registry
from schemas.config import parse


def test_the_page_is_what_the_specs_print_now() -> None:
    """A spec or setting that changes without its page fails here; `python -m connectors.docs` mends it."""
    page = docs.README.read_text(encoding="utf-8")

    assert docs.with_printed(page) == page


@pytest.mark.parametrize("name", sorted(registry.SHIPPED))
def test_every_shipped_connector_has_a_section_with_its_attributes(name: str) -> None:
    """Nobody can ship a product that the Entra admin does not find in the page."""
    spec = registry.load(name).spec
    section = docs.printed().partition(f"(`{name}`)")[2].partition("\n### ")[0]

    assert section
    for attribute in spec.attributes:
        assert f"`{attribute.path}`" in section


@pytest.mark.parametrize("name", sorted(name for name in registry.SHIPPED if registry.load(name).example))
def test_an_example_is_a_target_that_can_be_configured_as_it_stands(name: str) -> None:
    """What the page shows is read by the same code as an operator's file; nobody copies a mistake."""
    connector = registry.load(name)
    (target,) = parse(connector.example).targets.values()
    problems: list[str] = []

    settings = registry.decode_settings(target.connector, target.settings, "settings", problems)

    assert problems == []
    assert target.connector == name
    assert connector.endpoint(settings) is not None
    assert connector.spec_for(settings).attributes
    assert connector.example.strip() in docs.printed()


def test_every_setting_says_what_it_means_and_what_else_can_be_chosen() -> None:
    """An operator reads the page instead of the source: no setting is only a name, and no choice has to be guessed."""
    tables = docs.printed().split("| setting | default | meaning |\n|---|---|---|\n")[1:]
    rows = [row.split(" | ") for table in tables for row in table.partition("\n\n")[0].splitlines()]
    told = {row[0]: row[1] for row in rows}

    assert [row for row in rows if not row[2].removesuffix("|").strip()] == []
    assert told["| `email_from`"] == '`"userName"`, or `"mail"`'
    assert told["| `entra_tenant_id`"] == "none"


def test_a_page_without_its_markers_is_refused() -> None:
    """Better an error than a page that silently stays as it was."""
    with pytest.raises(ValueError, match="needs the lines"):
        docs.with_printed("# nothing here")
