"""`provgate check` names what a mapping in Entra gets wrong, as the newest deliveries showed it."""

from __future__ import annotations

from pathlib import Path

from gateway.checks import run_checks
from schemas.events import Reason
from schemas.states import Result
from tests.gateway.operated import ALPHA, BETA, operated

NICKNAME = Reason(code="bad_object_id", message="externalId is no object id.", attribute="externalId")
CONFIGURED = f"""\
[store]
path = "store.sqlite3"
[targets.{ALPHA}]
connector = "observe"
[targets.{BETA}]
connector = "observe"
[targets.gamma]
connector = "talkdesk"
settings = {{ region = "eu", token = {{ env = "PROVGATE_TEST_NEVER_SET" }} }}
"""


async def test_attributes_sent_in_vain_and_values_refused_are_findings_of_the_check(tmp_path: Path) -> None:
    """Vendor requirements T6, B10, M8, L10, S21 and S24: what should not be mapped, or is mapped from a wrong source, is seen.

    No person's value is in a finding; a mapping that fits, like that of the second target, leads to none. A secret that is not
    there, the third's, is named by its variable.
    """
    file = tmp_path / "provgate.toml"
    file.write_text(CONFIGURED, encoding="utf-8")
    async with operated(tmp_path) as here:
        for target, ignored in ((ALPHA, ("name.honorificPrefix", "title")), (BETA, ())):
            for name in ("ada", "bob"):
                resource = await here.created(name, target)
                account = {"account_id": f"account-{name}", "created": True}
                await here.comes_to(resource, Result.APPLIED, ignored=ignored, **account)
        await here.dead("eve", reason=NICKNAME)

    all_found = run_checks(file)
    found = [finding for finding in all_found if finding.where.endswith(".mapping")]

    assert [(finding.level, finding.where) for finding in found] == [("warning", f"targets.{ALPHA}.mapping")] * 2
    assert "name.honorificPrefix, title" in found[0].message
    assert "Delete their rows in Entra" in found[0].remedy
    assert "newest 3 deliveries" in found[1].message
    assert "1 for externalId, bad_object_id" in found[1].message
    assert "connectors/setup/observe.md" in found[1].remedy
    said = {(finding.level, finding.message) for finding in all_found if finding.where == "targets.gamma"}
    assert ("error", "environment variable PROVGATE_TEST_NEVER_SET is not set or empty") in said
    assert not any("ada" in text or "eve" in text for one in found for text in (one.message, one.remedy))
