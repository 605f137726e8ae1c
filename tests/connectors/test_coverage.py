"""The requirements of the vendors' guides: each is shown by something, and the table of `connectors/README.md` says by what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from connectors import coverage
from connectors.coverage import Requirement, Section, Shown

COUNTS = {"T": 19, "B": 19, "M": 25, "L": 15, "S": 27}
"""How many the guides have."""


@pytest.fixture(scope="module")
def everything() -> Any:
    """What stands in this checkout, read once."""
    return coverage.everything()


def test_every_requirement_is_shown_and_nothing_names_one_that_does_not_exist(everything: Any) -> None:
    """A test for what the connector keeps, a section of the setup page for what people do, a finding only if there is one."""
    assert coverage.problems(*everything) == []


def test_the_table_is_current(everything: Any) -> None:
    """A test that is renamed changes the page; `python -m connectors.coverage` mends it."""
    wanted, tests, sections, _ = everything
    page = coverage.README.read_text(encoding="utf-8")

    assert coverage.with_printed(page, coverage.printed(wanted, tests, sections)) == page


def test_the_list_has_every_number_of_every_guide() -> None:
    """105 in all; none is forgotten and none invented."""
    wanted = coverage.requirements()

    assert {letter: sum(name[0] == letter for name in wanted) for letter in COUNTS} == COUNTS


def test_gaps_and_strangers_are_named() -> None:
    """The check itself, with one mistake of each kind; a test of an emulator alone shows nothing of ours."""
    wanted = {
        "T1": Requirement(what="kept", kind="connector"),
        "T2": Requirement(what="only emulated", kind="connector"),
        "T3": Requirement(what="untold", kind="admin"),
        "T4": Requirement(what="noticed", kind="admin", findings=("nothing_like_it",)),
    }
    ours, emulated = Shown(False, 0, "tests/x.py", "test_x"), Shown(True, 0, "tests/emulators/y.py", "test_y")
    found = coverage.problems(
        wanted,
        {"T1": [ours], "T2": [emulated], "T9": [ours]},
        {"T4": [Section("talkdesk", "4. Here")], "T8": [Section("talkdesk", "4. Here")]},
        {"talkdesk": {"reachable"}},
    )

    assert [problem.partition(":")[0] for problem in found] == ["T2", "T3", "T4", "T9", "T8"]
    assert "no test of ours" in found[0]
    assert "no section of setup/talkdesk.md" in found[1]
    assert "no finding nothing_like_it" in found[2]


def test_tests_are_read_with_their_names_docstrings_and_parameter_ids(tmp_path: Path) -> None:
    """Bare ids count in a product's own modules, spans included; elsewhere only after the words for them."""
    own, other = tmp_path / "tests" / "connectors", tmp_path / "tests" / "gateway"
    own.mkdir(parents=True)
    other.mkdir(parents=True)
    (own / "test_talkdesk.py").write_text(
        'import pytest\n\n@pytest.mark.parametrize("x", [1], ids=["T7: a name"])\n'
        'def test_a(x):\n    """T1, T3-T5; S9 is somebody else\'s."""\n\n\ndef helper():\n    """T2."""\n',
        encoding="utf-8",
    )
    (other / "test_b.py").write_text(
        'async def test_b():\n    """Rule T10, S1.\n\n    Vendor requirements M4, L14 and S10 to S12: shown.\n    """\n',
        encoding="utf-8",
    )
    found = coverage.named_by_tests(tmp_path)

    assert set(found) == {"T1", "T3", "T4", "T5", "T7", "M4", "L14", "S10", "S11", "S12"}
    assert found["T1"] == [Shown(False, 4, "tests/connectors/test_talkdesk.py", "test_a")]


def test_a_page_covers_only_its_own_product_and_within_a_section(tmp_path: Path) -> None:
    """Otherwise the link in the table would lead nowhere."""
    page = tmp_path / "sofa.md"
    page.write_text("# Sofa\n\n## 1. At Sofa: first\n<!-- covers: S1, S2 -->\n", encoding="utf-8")
    found = coverage.sections_by_id(tmp_path)
    assert found["S2"][0].link == "[setup: 1. At Sofa: first](setup/sofa.md#1-at-sofa-first)"

    for text in ("## 1. At Sofa\n<!-- covers: T1 -->\n", "<!-- covers: S1 -->\n"):
        page.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="wrong place"):
            coverage.sections_by_id(tmp_path)


def test_a_list_with_a_gap_is_refused(tmp_path: Path) -> None:
    """A number that is missing would never be asked for."""
    file = tmp_path / "requirements.toml"
    file.write_text('[T1]\nwhat = "a"\nkind = "admin"\n[T3]\nwhat = "c"\nkind = "admin"\n', encoding="utf-8")

    with pytest.raises(ValueError, match="without a gap"):
        coverage.requirements(file)
