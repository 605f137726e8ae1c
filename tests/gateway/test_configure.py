"""`provgate connector configure`: a real operators' listener and store, a worker's own code, and the emulated babelforce.

Only NATS is short-circuited: the question is handed to the worker's code, and its answer back.
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from connectors.babelforce import configuration_document
from deploy.emulators.babelforce import BabelforceEmulator
from deploy.emulators.harness import running
from gateway.cli_client import FINE, NOT_FINE, WRONG_USE
from schemas.config import TargetSettings
from schemas.configured import Configured
from tests.gateway.operated import ALPHA, BETA, COLUMNS, Ended, Operated, operated
from workers.control import answer
from workers.limits import CallLimit
from workers.targets import Served

TOKEN = "token-of-the-configure-tests"
ASKED_MAX_S = 20.0
WRITE = ("connector", "configure", ALPHA, "--write", "--yes")


async def _no_limit(limit: CallLimit) -> None:
    pass


class Staged:
    """A gateway whose target alpha is an emulated babelforce, served by a worker's code. `meanwhile` runs before a write."""

    def __init__(self, here: Operated, emulator: BabelforceEmulator, url: str, folder: Path) -> None:
        self.here, self.emulator, self.url, self.folder = here, emulator, url, folder
        self.meanwhile: Any = lambda: None
        self.lost = False
        self.serve()
        here.services.ask_worker = self.ask

    def serve(self, *, connector: str = "babelforce", shadow: bool = False, told: bool = True, **more: Any) -> None:
        """Configure the target; `told`: the gateway knows of shadow mode, too."""
        settings = {
            "base_url": self.url,
            "allow_loopback": True,
            "token": {"file": "token"},
            "integration_user": "scim@example.com",
            "target": "scim",
            **more,
        }
        configured = TargetSettings(
            connector=connector, settings=settings if connector == "babelforce" else {}, shadow=shadow
        )
        gateways = configured if told else msgspec.structs.replace(configured, shadow=False)
        self.here.configured = {**self.here.configured, ALPHA: gateways}
        self.served = Served(ALPHA, configured, self.folder, concurrency_max=4, before_call=_no_limit)

    async def ask(self, target: str, question: Mapping[str, Any], wait_s: float) -> bytes | None:
        assert target == ALPHA
        if question["do"] == "configure":
            self.meanwhile()
        said = await answer(self.served, msgspec.json.encode(question))
        return None if self.lost and question["do"] == "configure" else said

    async def typed(self, *arguments: str) -> Ended:
        """A command as a person types it, without what the worker in this very process logs meanwhile."""
        ended = await self.here.typed(*arguments)
        out = "".join(line for line in ended.out.splitlines(keepends=True) if " vendor.call " not in line)
        return Ended(ended.code, out, ended.err)

    def held(self) -> Any:
        return self.emulator.state()["configuration"]["document"]

    def writes(self) -> list[str]:
        return [call["method"] for call in self.emulator.recorded() if call["method"] != "GET"]

    async def records(self) -> list[Any]:
        return [msgspec.json.decode(one.detail) for one in await self.here.audited("configuration.written")]


@pytest_asyncio.fixture
async def staged(tmp_path: Path) -> AsyncIterator[Staged]:
    secret = tmp_path / "token"
    secret.write_text(TOKEN, encoding="utf-8")
    secret.chmod(0o600)
    emulator = BabelforceEmulator(token=TOKEN, rate_per_s=0)
    async with operated(tmp_path / "data") as here, running(emulator) as url:
        one = Staged(here, emulator, url, tmp_path)
        yield one
        await one.served.close()
    assert not emulator.violations, list(emulator.violations)


async def test_what_differs_is_a_table_and_nothing_is_written(staged: Staged) -> None:
    """Vendor requirements B3 and B4: read and compared; ends with 1, names the command that writes, and records nothing."""
    ended = await staged.typed("connector", "configure", ALPHA)

    assert (ended.code, ended.err) == (NOT_FINE, "")
    for word in ("customizer", "default", "microsoft", "features.scim", "features.roles", "--write"):
        assert word in ended.out
    assert "features.groups" not in ended.out
    assert max(map(len, ended.out.splitlines())) <= COLUMNS
    assert (staged.writes(), await staged.records()) == ([], [])


async def test_the_exact_document_is_written_read_again_and_recorded(staged: Staged) -> None:
    """Vendor requirement B4: exactly the document; the audit says why, and which settings changed."""
    ended = await staged.typed(*WRITE, "--reason", "first setup", "--json")
    again = await staged.typed(*WRITE)

    assert ended.code == FINE, ended
    view = json.loads(ended.out)
    assert (view["fine"], view["differences"]) == (True, [])
    assert [one["path"] for one in view["changed"]] == ["customizer", "features.scim", "features.roles"]
    assert staged.held() == configuration_document()
    assert again.code == FINE
    assert "as they must be" in again.out
    assert staged.writes() == ["PUT"]
    (record,) = await staged.records()
    assert record == {
        "reason": "first setup",
        "ok": True,
        "code": "",
        "changed": ["customizer", "features.scim", "features.roles"],
    }


async def test_the_target_whose_scim_was_off_is_tried_at_once(staged: Staged) -> None:
    """Vendor requirement B3: SCIM is refused until the document says so; then the check of the worker finds no error."""
    before = await answer(staged.served, b'{"do": "probe"}')
    await staged.typed(*WRITE)
    after = await answer(staged.served, b'{"do": "probe"}')

    assert b"configuration_differs" in before or b'"ok":false' in before
    assert b'"ok":true' in after
    assert b"configuration_differs" not in after


async def test_default_roles_of_the_settings_are_part_of_the_document(staged: Staged) -> None:
    """Vendor requirement B4, 2.4: defaultRoles mirrors the target's default_roles."""
    staged.serve(default_roles=["agent"])

    ended = await staged.typed(*WRITE, "--json")

    assert "defaultRoles" in [one["path"] for one in json.loads(ended.out)["changed"]]
    assert staged.held() == configuration_document(("agent",))


async def test_a_refused_credential_is_said_and_nothing_is_recorded_as_done(staged: Staged) -> None:
    """A9: the token is refused; the command ends with an error that names the product and holds no token."""
    staged.emulator.revoke_token()

    shown = await staged.typed("connector", "configure", ALPHA)
    written = await staged.typed(*WRITE, "--json")

    for ended in (shown, written):
        assert ended.code not in (FINE, NOT_FINE)
        assert "babelforce" in ended.err
        assert TOKEN not in ended.out + ended.err
    assert (staged.writes(), await staged.records()) == ([], [])


async def test_a_credential_refused_at_the_write_is_recorded_as_a_failed_write(staged: Staged) -> None:
    """The token ends between reading and writing: the attempt is in the audit, with the reason and without success."""
    await staged.typed("connector", "configure", ALPHA)
    staged.emulator.fault("status", method="PUT", status=401)

    ended = await staged.typed(*WRITE)

    assert ended.code not in (FINE, NOT_FINE)
    (record,) = await staged.records()
    assert (record["ok"], record["changed"]) == (False, [])
    assert record["code"]
    assert staged.held() != configuration_document()


async def test_what_changed_since_it_was_looked_at_is_not_overwritten(staged: Staged) -> None:
    """Somebody else edits the document between the table and the write: it is refused, and nothing is sent."""
    staged.meanwhile = lambda: staged.emulator.seed(
        {"configuration": {**configuration_document(), "customizer": "okta"}}
    )

    ended = await staged.typed(*WRITE)

    assert ended.code not in (FINE, NOT_FINE)
    assert "look again" in ended.err
    assert (staged.writes(), await staged.records()) == ([], [])
    assert staged.held()["customizer"] == "okta"


@pytest.mark.parametrize("told", [True, False], ids=["both know", "only the worker knows"])
async def test_in_shadow_mode_it_is_shown_and_not_written(staged: Staged, told: bool) -> None:
    """Either side's word is enough to write nothing at the product."""
    staged.serve(shadow=True, told=told)

    shown = await staged.typed("connector", "configure", ALPHA)
    written = await staged.typed(*WRITE)

    assert shown.code == NOT_FINE
    assert "shadow mode" in written.err
    assert staged.writes() == []


async def test_an_answer_that_got_lost_is_recorded_as_unknown(staged: Staged) -> None:
    """Nobody knows whether it was written, and the message and the audit say just that; looking again tells."""
    staged.lost = True

    ended = await staged.typed(*WRITE)
    staged.lost = False
    again = await staged.typed("connector", "configure", ALPHA)

    assert ended.code not in (FINE, NOT_FINE)
    assert "not known whether it was written" in ended.err
    (record,) = await staged.records()
    assert (record["ok"], record["code"]) == (None, "no_answer")
    assert again.code == FINE


async def test_targets_without_such_settings_say_so(staged: Staged) -> None:
    """The target rest has no use for the document, other products have none, and an unknown name is named."""
    staged.serve(target="rest")
    rest = await staged.typed("connector", "configure", ALPHA)
    staged.serve(connector="observe")
    other = await staged.typed("connector", "configure", ALPHA)
    unknown = await staged.typed("connector", "configure", "nowhere")

    assert 'target = "scim"' in rest.err
    assert "no settings that are written from here" in other.err
    assert f"configured: {ALPHA}, {BETA}" in unknown.err
    assert FINE not in (rest.code, other.code, unknown.code)


async def test_nothing_is_written_where_nobody_can_be_asked(staged: Staged) -> None:
    """--write without --yes asks on a terminal; a script is told what to say."""
    for more in ((), ("--json",)):
        ended = await staged.typed("connector", "configure", ALPHA, "--write", *more)
        assert ended.code == WRONG_USE
        assert "--yes" in ended.err
    assert staged.emulator.recorded() == []


async def test_on_a_terminal_it_asks_and_anything_but_yes_writes_nothing(staged: Staged) -> None:
    """What changes is shown first; the answer decides."""

    async def asked(said: bytes) -> tuple[int | None, str]:
        leader, follower = pty.openpty()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "gateway.cli", "connector", "configure", ALPHA, "--write", "--data", str(staged.here.folder)),
                stdin=follower,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, "COLUMNS": str(COLUMNS)},
            )
            os.write(leader, said)
            async with asyncio.timeout(ASKED_MAX_S):
                out, _ = await process.communicate()
            return process.returncode, out.decode()
        finally:
            os.close(leader)
            os.close(follower)

    code, out = await asked(b"\n")
    assert (code, staged.writes()) == (NOT_FINE, [])
    assert "features.scim" in out
    assert "Nothing was written." in out

    code, out = await asked(b"yes\n")
    assert (code, staged.writes()) == (FINE, ["PUT"])
    assert out.index("Differs at babelforce") < out.index("Write these settings") < out.index("Written at babelforce")


async def test_a_product_that_says_yes_and_does_nothing_is_found_out(staged: Staged) -> None:
    """B4: it is read again after the write; what still differs is no success."""
    first = msgspec.json.decode(await answer(staged.served, b'{"do": "configuration"}'), type=Configured)
    held = staged.held()
    staged.emulator.fault("status", method="PUT", status=200, body=held)
    question = msgspec.json.encode({"do": "configure", "version": first.version})

    said = msgspec.json.decode(await answer(staged.served, question), type=Configured)

    assert (said.ok, said.code, said.sent) == (False, "not_taken", True)
    assert said.changed == ()
