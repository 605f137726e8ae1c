"""Plans and shadow deliveries of a worker: the control question as it comes over NATS, a real target, an emulated product."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest_asyncio

from connectors.contract import Delivery
from deploy.emulators.harness import running
from deploy.emulators.talkdesk import TalkdeskEmulator
from schemas.config import TargetSettings
from schemas.events import ProvisioningEvent, encode
from schemas.plans import NOT_SENT, PLAN_BYTES_MAX, Planned
from schemas.states import SHADOW, Change, Result
from workers.control import answer
from workers.delivery import NotOurs, deliver
from workers.limits import CallLimit
from workers.rehearsals import SHADOW_LOOK_S, shadow
from workers.targets import Served

TOKEN = "token-of-the-plan-tests"
TALKDESK = "urn:ietf:params:scim:schemas:extension:talkdesk:2.0:User"
ADA = "ada@contoso.example"


class Mine:
    """A delivery that is ours for so many looks."""

    def __init__(self, looks: int = 1_000) -> None:
        self.looks = looks

    def check(self) -> None:
        self.looks -= 1
        if self.looks < 0:
            raise NotOurs


async def _no_limit(limit: CallLimit) -> None:
    pass


class Stage:
    """A target served from an emulated Talkdesk."""

    def __init__(self, emulator: TalkdeskEmulator, url: str, folder: Path) -> None:
        self.emulator, self.url, self.folder = emulator, url, folder
        self.served = self.serve()

    def serve(self, **target: Any) -> Served:
        settings = {
            "base_url": f"{self.url}/scim/v2",
            "allow_loopback": True,
            "token": {"file": "token"},
            "roles": ["Agent", "Supervisor"],
        }
        configured = TargetSettings(connector="talkdesk", settings=settings, **target)
        return Served("t", configured, self.folder, concurrency_max=4, before_call=_no_limit)

    async def ask(self, event: ProvisioningEvent, *, served: Served | None = None, **more: Any) -> Planned:
        question = msgspec.json.encode({"do": "plan", "event": msgspec.Raw(encode(event)), **more})
        return msgspec.json.decode(await answer(served or self.served, question), type=Planned)

    async def shadowed(self, event: ProvisioningEvent, *, served: Served | None = None, looks: int = 1_000) -> Any:
        return await shadow(
            event,
            served or self.served,
            delivery=1,
            owned=Mine(looks),
            new_id=lambda: "o1",
            clock=time.time,
            ctx=Delivery(),
            worker="w1",
        )

    async def really(self, event: ProvisioningEvent) -> str:
        outcome = await deliver(
            event,
            delivery=1,
            connector=self.served.connector,
            directory=self.served.directory,
            owned=Mine(),
            new_id=lambda: "o1",
            clock=time.time,
        )
        assert outcome is not None
        assert outcome.account_id is not None
        return outcome.account_id


def an_event(*, roles: str = "Agent", **more: Any) -> ProvisioningEvent:
    """The event of a Talkdesk user."""
    document = {
        "userName": ADA,
        "active": True,
        "name": {"givenName": "Ada", "familyName": "Example"},
        TALKDESK: {"rolesString": roles},
        "nickName": "Countess",
    }
    return ProvisioningEvent(
        id="01JABCDEFGHJKMNPQRSTVWXYZ0",
        target="t",
        connector="talkdesk",
        kind="user",
        resource="r1",
        generation=1,
        fence=1,
        change=more.pop("change", Change.CREATE),
        document=msgspec.Raw(msgspec.json.encode(document)),
        identities=(f"userName:{ADA}",),
        lookup=(f"userName:{ADA}",),
        **more,
    )


@pytest_asyncio.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """An empty product."""
    secret = tmp_path / "token"
    secret.write_text(TOKEN, encoding="utf-8")
    secret.chmod(0o600)
    emulator = TalkdeskEmulator(token=TOKEN, rate_per_s=0)
    async with running(emulator) as url:
        one = Stage(emulator, url, tmp_path)
        yield one
        await one.served.close()


async def test_a_plan_shows_the_account_and_the_calls_and_writes_nothing(stage: Stage) -> None:
    """The exact create in order, what is ignored, and the reads that were really made."""
    plan = await stage.ask(an_event(), show_values=True)

    assert (plan.ok, plan.result) == (True, "applied")
    assert plan.account["user_name"] == ADA
    assert [(call.method, call.url) for call in plan.calls] == [("POST", "/scim/v2/Users")]
    assert plan.calls[0].body["userName"] == ADA
    assert "nickName" in plan.ignored
    assert [step.method for step in plan.reads] == ["GET"]
    assert stage.emulator.journal.effects() == []


async def test_a_plan_is_masked_unless_values_were_asked_for(stage: Stage) -> None:
    """Nobody learns a name or an address from a plan that does not say so; roles stay readable."""
    plan = await stage.ask(an_event())
    text = msgspec.json.encode(plan).decode()

    assert plan.masked
    assert ADA not in text
    assert "Example" not in text.replace("contoso.example", "")
    assert "a•••@contoso.example" in text
    assert plan.calls[0].body[TALKDESK] == {"rolesString": "Agent"}


async def test_a_refusal_is_the_one_a_delivery_would_report(stage: Stage) -> None:
    """Code, attribute and sentence of the normalization, before any call."""
    plan = await stage.ask(an_event(roles="Wizard"))

    assert plan.result == "rejected"
    assert plan.reason is not None
    assert plan.reason.code == "unknown_role"
    assert plan.reason.attribute == f"{TALKDESK}:rolesString"
    assert not plan.calls


async def test_an_existing_account_is_adopted_in_the_plan_as_in_life(stage: Stage) -> None:
    """R4: linked first, then written; the plan shows both. With adopt = "never" it stops at what was found."""
    account = await stage.really(an_event())
    plan = await stage.ask(an_event(roles="Supervisor"), show_values=True)
    shy = stage.serve(adopt="never")
    refused = await stage.ask(an_event(roles="Supervisor"), served=shy)
    await shy.close()

    assert plan.adopts == plan.adopts_id == account
    assert plan.result == "applied"
    assert [call.url for call in plan.calls] == [f"/scim/v2/Users/{account}"]
    assert (refused.result, refused.adopts, len(refused.calls)) == ("found", None, 0)


async def test_a_plan_of_a_deletion_shows_what_the_settings_make_of_it(stage: Stage) -> None:
    """The linked account, and nothing else."""
    account = await stage.really(an_event())
    plan = await stage.ask(an_event(account_id=account, deleted=True, change=Change.DELETE), show_values=True)

    assert plan.result == "applied"
    assert {call.url for call in plan.calls} == {f"/scim/v2/Users/{account}"}
    assert len(stage.emulator.journal.effects()) == 1


async def test_a_product_that_is_away_makes_no_plan_and_no_question_breaks_the_worker(stage: Stage) -> None:
    """The worker says what it could not find out; a broken question is answered, too."""
    stage.emulator.fault("status", status=503, times=100)
    away = await stage.ask(an_event())
    broken = msgspec.json.decode(await answer(stage.served, b'{"do": "plan", "event": {"id": 1}}'), type=Planned)

    assert (away.ok, away.result, len(away.calls)) == (True, "retry", 0)
    assert (broken.ok, broken.code) == (False, "bad_question")


async def test_an_answer_fits_into_one_message(stage: Stage) -> None:
    """PLAN_BYTES_MAX: calls at the end are left out and counted."""
    plan = await stage.ask(an_event(), show_values=True)
    big = msgspec.structs.replace(plan.calls[0], body={"note": "x" * 100_000})

    from workers.rehearsals import _cut

    cut = _cut(msgspec.structs.replace(plan, calls=(big,) * 16))

    assert len(msgspec.json.encode(cut)) <= PLAN_BYTES_MAX
    assert cut.left_out + len(cut.calls) == 16
    assert cut.calls


async def test_a_shadow_delivery_waits_for_the_end_of_shadow_mode_with_its_calls(stage: Stage) -> None:
    """Nothing is linked, nothing is in doubt; the calls are kept masked, each marked as not sent."""
    outcome = await stage.shadowed(an_event())

    assert (outcome.result, outcome.blocked_on, outcome.note) == (Result.BLOCKED, SHADOW, SHADOW)
    assert (outcome.account_id, outcome.created, outcome.ambiguous, outcome.sightings) == (None, False, False, ())
    assert outcome.retry_after_s == SHADOW_LOOK_S
    kept = [step for step in outcome.steps if step.error == NOT_SENT]
    assert [(step.method, step.path, step.status) for step in kept] == [("POST", "/scim/v2/Users", 0)]
    assert ADA not in kept[0].sent
    assert "a•••@contoso.example" in kept[0].sent
    assert stage.emulator.journal.effects() == []


async def test_a_shadow_delivery_of_an_existing_account_shows_the_change_and_links_nothing(stage: Stage) -> None:
    """What would be adopted is changed in the rehearsal only."""
    await stage.really(an_event())
    outcome = await stage.shadowed(an_event(roles="Supervisor"))

    assert outcome.blocked_on == SHADOW
    assert outcome.account_id is None
    assert [step.path for step in outcome.steps if step.error == NOT_SENT] == ["/scim/v2/Users/{id}"]
    assert outcome.reason is not None
    assert "linking" in outcome.reason.message


async def test_what_would_be_refused_is_recorded_and_not_told_as_a_refusal(stage: Stage) -> None:
    """Entra is told success in shadow mode; the operator reads the reason."""
    outcome = await stage.shadowed(an_event(roles="Wizard"))

    assert (outcome.result, outcome.blocked_on) == (Result.BLOCKED, SHADOW)
    assert outcome.reason is not None
    assert outcome.reason.code == "shadow_refused"
    assert "'Wizard'" in outcome.reason.message


async def test_a_product_that_is_away_is_retried_in_shadow_mode_without_doubt(stage: Stage) -> None:
    """Nothing was rehearsed, so nothing is recorded; and nothing was written, so nothing is ambiguous."""
    stage.emulator.fault("status", status=503, times=100)
    outcome = await stage.shadowed(an_event())

    assert (outcome.result, outcome.ambiguous) == (Result.RETRY, False)


async def test_a_shadow_delivery_that_is_lost_reports_nothing(stage: Stage) -> None:
    """R8 asks for reports of what was done; here nothing was."""
    for looks in range(3):
        assert await stage.shadowed(an_event(), looks=looks) is None or looks == 2
