"""Every connector keeps what all connectors promise: each promise is a test of each class here."""

from __future__ import annotations

import json
import time

import pytest

from connectors import registry
from connectors.testing import command, conformance, shipped
from connectors.testing.example import Lantern
from connectors.testing.example_trial import TestLantern as ExampleTrial
from schemas.errors import ConfigurationError

CONNECTOR_S_MAX = 60.0


class TestTeleMessage(shipped.TeleMessage):
    """Every promise, with TeleMessage."""


class TestTalkdesk(shipped.Talkdesk):
    """Every promise, with Talkdesk."""


class TestBabelforce(shipped.Babelforce):
    """Every promise, with babelforce over REST."""


class TestBabelforceScim(shipped.BabelforceScim):
    """Every promise, with babelforce over SCIM."""


class TestBobsBusiness(shipped.BobsBusiness):
    """Every promise, with Bob's Business."""


class TestSofa(shipped.Sofa):
    """Every promise, with Sofa."""


class TestGenericScim(shipped.GenericScim):
    """Every promise, with a product that speaks SCIM as the RFC has it."""


class TestGenericScimPut(shipped.GenericScimPut):
    """Every promise, with a product that speaks SCIM in the most awkward dialect."""


class TestGenericRest(shipped.GenericRest):
    """Every promise, with a product that is declared in settings."""


class TestGenericRestByCalls(shipped.GenericRestByCalls):
    """Every promise, with a product whose states, roles and members have calls of their own."""


class TestObserve(shipped.Observe):
    """The promises that are not about calls, with a connector that calls nobody."""


class TestExample(ExampleTrial):
    """Every promise, with the example that new connectors start from."""

    connector_type = Lantern


@pytest.mark.parametrize("name", sorted(registry.SHIPPED))
def test_every_shipped_connector_is_tried(name: str) -> None:
    """Nobody can ship a connector whose promises are tried by no test of this file."""
    tried = {base for found in globals().values() if isinstance(found, type) for base in found.__mro__}

    assert name in shipped.SHIPPED
    assert set(shipped.SHIPPED[name]) <= tried


def test_every_promise_of_the_authors_kit_becomes_a_test_of_who_inherits_it() -> None:
    """The class is the suite: one test per promise, named like it, saying what it says."""
    for name, promise in conformance.PROMISES.items():
        assert getattr(conformance.Conformance, f"test_{name}").__doc__ == f"{promise.says}."

    assert len(conformance.PROMISES) >= 20


def test_the_command_prints_one_verdict_and_figure_per_promise_within_a_minute(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`provgate connector test NAME --json` is what scripts read."""
    started = time.monotonic()

    code = command.try_connector("telemessage", as_json=True)

    took_s = time.monotonic() - started
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    (trial,) = answer["trials"]
    assert code == 0
    assert answer["ok"] is True
    assert [verdict["promise"] for verdict in trial["verdicts"]] == list(conformance.PROMISES)
    assert all(verdict["figure"] for verdict in trial["verdicts"] if verdict["verdict"] == "kept")
    assert took_s < CONNECTOR_S_MAX


def test_the_table_for_people_names_each_promise_its_verdict_and_what_was_seen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One table, and one line that counts."""
    code = command.try_connector("observe")

    shown = capsys.readouterr().out
    assert code == 0
    for name in conformance.PROMISES:
        assert name in shown
    assert "4 kept, 0 broken" in shown


def test_a_connector_that_nobody_says_how_to_try_is_told_what_to_write() -> None:
    """The message is the remedy; a module that nobody has registered yet is told the line to add."""
    with pytest.raises(ConfigurationError, match="not a connector"):
        command.trials_of("no_such_product")
    with pytest.raises(ConfigurationError, match=r'SHIPPED in connectors/registry\.py: +"coverage": '):
        command.trials_of("coverage")
    with pytest.raises(ConfigurationError, match="did you mean lost_answer"):
        command.try_connector("talkdesk", ["lost_answr"])


def test_every_connector_is_listed_with_what_it_can(capsys: pytest.CaptureFixture[str]) -> None:
    """`provgate connector list`."""
    code = command.listed(as_json=True)

    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["connectors"]}
    assert code == 0
    assert set(registry.SHIPPED) <= set(rows)
    assert rows["sofa"]["resources"] == ["User", "Group"]
    assert command.listed() == 0
    assert "Software602 Sofa" in capsys.readouterr().out
