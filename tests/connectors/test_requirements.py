"""Requirements of the vendors' guides that no other test shows: each sentence names its id, see `connectors/coverage.py`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from connectors import registry
from connectors.contract import Delivery
from connectors.talkdesk import EXTENSION
from deploy.emulators.harness import running
from deploy.emulators.talkdesk import TalkdeskEmulator
from schemas.config import parse
from schemas.errors import ConfigurationError
from schemas.events import identity
from schemas.resources import User
from tests.connectors.alone import Known

TOKEN = "token-of-the-requirements"
RITA = "rita@example.com"
STEPS = ("create", "update", "delete")


def a_user(given_name: str = "Rita", **extension: str) -> User:
    """Somebody as the guide of Talkdesk maps her."""
    return User.from_document(
        {
            "userName": RITA,
            "name": {"givenName": given_name, "familyName": "Sousa"},
            **({EXTENSION: extension} if extension else {}),
        }
    )


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Settings of an emulated Talkdesk without its address."""
    token = tmp_path / "token"
    token.write_text(TOKEN, encoding="utf-8")
    token.chmod(0o600)
    return {
        "token": {"file": str(token)},
        "roles": ["Agent", "Supervisor"],
        "teams": ["Porto"],
        "allow_loopback": True,
    }


def built(settings: dict[str, Any], url: str) -> tuple[Any, Any]:
    """The connector and its client, as a worker builds them."""
    problems: list[str] = []
    table = {**settings, "base_url": f"{url}/scim/v2"}
    decoded = registry.decode_settings("talkdesk", table, "targets.t.settings", problems)
    assert problems == []
    return registry.build("talkdesk", decoded, paced=False)


@pytest.mark.parametrize(
    "steps", [chosen for size in (1, 2, 3) for chosen in itertools.combinations(STEPS, size)], ids="+".join
)
async def test_every_choice_of_create_update_and_delete_works(settings: dict[str, Any], steps: tuple[str, ...]) -> None:
    """T5: the admin chooses what Entra synchronizes; an account that was not made from here is found instead."""
    product = TalkdeskEmulator(token=TOKEN, rate_per_s=0)
    async with running(product) as url:
        connector, http = built(settings, url)
        wish = connector.normalize(a_user(), Known())
        if "create" in steps:
            account_id = await connector.create(wish, Delivery())
        else:
            product.seed({"users": [{"userName": RITA, "givenName": "Rita", "familyName": "Sousa"}]})
            (found,) = await connector.find(None, [identity("userName", RITA)], Delivery())
            account_id = found.account_id
        if "update" in steps:
            await connector.update(account_id, connector.normalize(a_user("Margarida"), Known()), Delivery())
        if "delete" in steps:
            await connector.delete(account_id, Delivery())
        held = [one for one in product.state()["users"].values() if not one["deleted"]]
        await connector.close()
        await http.close()
    wanted = [] if "delete" in steps else ["Margarida" if "update" in steps else "Rita"]
    assert [one["givenName"] for one in held] == wanted
    assert not product.violations


@pytest.mark.parametrize(
    ("extension", "role", "team"),
    [
        ({}, "Agent", ""),
        ({"rolesString": "Supervisor"}, "Supervisor", ""),
        ({"teamsString": "Porto"}, "Agent", "Porto"),
        ({"rolesString": "Supervisor", "teamsString": "Porto"}, "Supervisor", "Porto"),
    ],
    ids=["neither", "a role", "a team", "both"],
)
async def test_role_and_team_are_mapped_each_without_the_other(
    settings: dict[str, Any], extension: dict[str, str], role: str, team: str
) -> None:
    """T19: the guide shows them as alternatives; neither is asked for, and neither asks for the other."""
    product = TalkdeskEmulator(token=TOKEN, rate_per_s=0)
    async with running(product) as url:
        connector, http = built(settings, url)
        await connector.create(connector.normalize(a_user(**extension), Known()), Delivery())
        (held,) = product.state()["users"].values()
        await connector.close()
        await http.close()
    assert (held["rolesString"], held["teamsString"]) == (role, team)


def test_a_target_has_exactly_three_levels_of_logging() -> None:
    """S13: warning, information and debug, information unless said otherwise; any other word is named with what there is."""
    text = '[targets.sofa]\nconnector = "sofa"\n'
    assert parse(text).targets["sofa"].log_level == "information"
    for level in ("warning", "information", "debug"):
        assert parse(f'{text}log_level = "{level}"\n').targets["sofa"].log_level == level

    with pytest.raises(ConfigurationError) as refused:
        parse(f'{text}log_level = "trace"\n')

    (problem,) = refused.value.problems
    assert problem.startswith("targets.sofa.log_level: ")
