"""The registry: shipped connectors, those of other packages, and settings with all their mistakes at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from connectors import registry
from connectors.contract import Connector
from schemas.config import Secret
from schemas.errors import ConfigurationError


@pytest.mark.parametrize("name", sorted(registry.SHIPPED))
def test_every_shipped_connector_loads_and_declares_itself_fully(name: str) -> None:
    """House style 2: docs, /Schemas and the console are printed from the declaration."""
    connector = registry.load(name)
    spec = connector.spec
    assert spec.name == name
    assert spec.title
    assert set(spec.resources) <= {"User", "Group"}
    assert spec.has_groups or spec.groups_step, "a product without groups says what the Entra admin has to do (T4)"
    assert spec.any_attribute or any(attribute.required for attribute in spec.attributes)
    paths = [attribute.path for attribute in spec.attributes]
    assert len(set(paths)) == len(paths)
    assert issubclass(connector.settings_type, msgspec.Struct)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=type(spec)) == spec, "it travels to the gateway as JSON"


def test_names_lists_what_can_be_configured() -> None:
    """TeleMessage, Talkdesk and observe are among them."""
    assert {"telemessage", "talkdesk", "observe"} <= set(registry.names())
    assert registry.names() == sorted(registry.names())


def test_an_unknown_connector_gets_the_nearest_name() -> None:
    """House style 4, configuration error."""
    with pytest.raises(ConfigurationError, match="did you mean talkdesk"):
        registry.load("talkdsk")
    problems: list[str] = []
    assert registry.decode_settings("talkdsk", {}, "targets.td.settings", problems) is None
    assert problems == ["targets.td.connector: talkdsk: not a connector; did you mean talkdesk?"]


def test_all_mistakes_of_a_settings_table_are_reported_at_once_path_first() -> None:
    """Nobody has to start the system five times."""
    problems: list[str] = []
    table = {"tokn": {"env": "T"}, "base_url": 7}
    assert registry.decode_settings("telemessage", table, "targets.tm.settings", problems) is None
    assert problems[0] == "targets.tm.settings.tokn: not a setting of TeleMessage; did you mean token?"
    assert any(problem.startswith("targets.tm.settings.base_url: must be") for problem in problems)
    assert any(problem.startswith("targets.tm.settings.token: missing; bearer token") for problem in problems)
    assert any(problem.startswith("targets.tm.settings.manager_name: missing; ") for problem in problems)


def test_decoded_settings_keep_references_and_never_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """S10: write-only, never printable."""
    monkeypatch.setenv("TELEMESSAGE_TOKEN", "the-secret-value")
    problems: list[str] = []
    table = {
        "base_url": "https://telemessage.example.com",
        "token": {"env": "TELEMESSAGE_TOKEN"},
        "manager_name": "Contoso Archive",
    }
    settings: Any = registry.decode_settings("telemessage", table, "targets.tm.settings", problems)
    assert not problems
    assert settings.token == Secret(env="TELEMESSAGE_TOKEN")
    assert "the-secret-value" not in repr(settings)


PACKAGE = """
from msgspec import Struct
from connectors.contract import Connector
from schemas.specs import Spec


class Settings(Struct, frozen=True):
    colour: str = "blue"


class Lamp(Connector[Settings, str]):
    spec = Spec(name="lamp", title="Lamp")
    settings_type = Settings

    @classmethod
    def endpoint(cls, settings):
        return None


class Bare(Connector[Settings, str]):
    pass


def not_a_class():
    pass
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package of somebody else with connectors, good and bad."""
    (tmp_path / "lamp_connector.py").write_text(PACKAGE)
    (tmp_path / "broken_connector.py").write_text("raise RuntimeError('half written')\n")
    info = tmp_path / "lamp_connector-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lamp-connector\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[provgate.connectors]\n"
        "lamp = lamp_connector:Lamp\n"
        "bare = lamp_connector:Bare\n"
        "function = lamp_connector:not_a_class\n"
        "absent = lamp_connector:Absent\n"
        "broken = broken_connector:Broken\n"
        "talkdesk = lamp_connector:Lamp\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("foreign")
def test_connectors_of_other_packages_are_found_by_entry_point() -> None:
    """A new product may live in a package of its own."""
    assert "lamp" in registry.names()
    lamp = registry.load("lamp")
    assert issubclass(lamp, Connector)
    problems: list[str] = []
    settings: Any = registry.decode_settings("lamp", {"colour": "red"}, "targets.l.settings", problems)
    assert (settings.colour, problems) == ("red", [])
    connector, http = registry.build("lamp", settings)
    assert (type(connector), http) == (lamp, None)


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", "RuntimeError: half written"),
        ("absent", "cannot be loaded"),
        ("function", "is not a Connector"),
        ("bare", "declares no spec"),
    ],
)
def test_a_broken_connector_is_reported_and_harms_no_other(name: str, said: str) -> None:
    """Stack notes 9: loaded one at a time, a broken one is reported."""
    with pytest.raises(ConfigurationError, match=said):
        registry.load(name)
    assert registry.load("observe").spec.name == "observe"


@pytest.mark.usefixtures("foreign")
def test_a_shipped_connector_cannot_be_replaced_by_an_installed_package() -> None:
    """Installing a package must not change where the credentials of a configured target go."""
    assert registry.load("talkdesk").__module__ == "connectors.talkdesk"
