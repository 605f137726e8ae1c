"""Rehearsals: all five connectors against their emulators, through the order of work of a real delivery; nothing is written."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import pytest_asyncio
from msgspec import Struct

from connectors import registry
from connectors.contract import Connector, Delivery, PutsGroups
from connectors.http import HttpClient
from connectors.rehearsal import CALLS_MAX, MADE_ID, Rehearsal, rehearsing, rehearsing_connector
from deploy.emulators.babelforce import BabelforceEmulator
from deploy.emulators.bobs_business import BobsBusinessEmulator
from deploy.emulators.harness import Emulator, running
from deploy.emulators.sofa import SofaEmulator
from deploy.emulators.talkdesk import TalkdeskEmulator
from deploy.emulators.telemessage import TelemessageEmulator
from schemas.config import TargetSettings
from schemas.errors import ConnectorBug, Gone, NormalizationError, Rejected
from schemas.events import Outcome, ProvisioningEvent
from schemas.plans import NOT_SENT
from schemas.states import SHADOW, Change, Result
from tests.connectors import test_generic_rest as generic
from tests.connectors.alone import Known, StaysOurs
from workers.delivery import deliver
from workers.limits import CallLimit
from workers.rehearsals import shadow
from workers.targets import Served

TOKEN = "token-of-the-rehearsal-tests"
OBJECT_ID = "7d3f6a52-0f5c-4f0e-9a2b-1c2d3e4f5a6b"


class Product(Struct):
    """One product: its emulator, its settings, a user that suits it, and the address of its emulator's accounts."""

    name: str
    emulator: Callable[[], Emulator]
    settings: Callable[[str, dict[str, Any]], dict[str, Any]]
    user: dict[str, Any]


def _user(**more: Any) -> dict[str, Any]:
    return {
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"],
        "userName": "ada@contoso.example",
        "externalId": OBJECT_ID,
        "active": True,
        "displayName": "Ada Example",
        "name": {"givenName": "Ada", "familyName": "Example"},
        "emails": [{"type": "work", "value": "ada@contoso.example", "primary": True}],
        **more,
    }


PRODUCTS = {
    "talkdesk": Product(
        "talkdesk",
        lambda: TalkdeskEmulator(token=TOKEN, rate_per_s=0),
        lambda url, secret: {"base_url": f"{url}/scim/v2", "token": secret},
        _user(),
    ),
    "babelforce": Product(
        "babelforce",
        lambda: BabelforceEmulator(token=TOKEN, rate_per_s=0),
        lambda url, secret: {"base_url": url, "token": secret, "integration_user": "scim@example.com"},
        _user(roles=[{"value": "agent"}, {"value": "manager"}]),
    ),
    "telemessage": Product(
        "telemessage",
        lambda: TelemessageEmulator(token=TOKEN, rate_per_s=0),
        lambda url, secret: {"base_url": url, "token": secret, "manager_name": "Contoso Archive"},
        _user(userName="+447400123456", displayName="Contoso Archive"),
    ),
    "bobs_business": Product(
        "bobs_business",
        lambda: BobsBusinessEmulator(token=TOKEN, rate_per_s=0),
        lambda url, secret: {"tenant_url": f"{url}/scim/v2", "api_key": secret},
        _user(),
    ),
    "sofa": Product(
        "sofa",
        lambda: SofaEmulator(token=TOKEN, rate_per_s=0),
        lambda url, secret: {
            "endpoint_url": f"{url}/scim/entra",
            "access_key": secret,
            "key_issued": datetime.now(UTC).date(),
            "key_validity_days": 730,
        },
        _user(),
    ),
}


async def _no_limit(limit: CallLimit) -> None:
    pass


class Stage:
    """One product on a free port with a delivering connector and a rehearsing one."""

    def __init__(
        self,
        product: Product,
        emulator: Emulator,
        table: dict[str, Any],
        real: Connector[Any, Any],
        dry: Connector[Any, Any],
    ) -> None:
        self.product, self.emulator, self.table, self.real, self.dry = product, emulator, table, real, dry

    def writes(self) -> int:
        """How many effects the product's journal holds."""
        return len(self.emulator.journal.effects())

    async def deliver(
        self, *, dry: bool = True, account_id: str | None = None, deleted: bool = False, **changes: Any
    ) -> tuple[Outcome, Rehearsal]:
        """One delivery of the product's user with some attributes changed."""
        document = {**self.product.user, **changes}
        return await self._run(document, "user", dry=dry, account_id=account_id, deleted=deleted)

    async def deliver_group(self, group: dict[str, Any], *, dry: bool = True) -> tuple[Outcome, Rehearsal]:
        """One delivery of a group that is new."""
        return await self._run(group, "group", dry=dry)

    def event(
        self,
        document: dict[str, Any],
        kind: Literal["user", "group"],
        *,
        account_id: str | None = None,
        deleted: bool = False,
    ) -> ProvisioningEvent:
        """The event of a wish."""
        return ProvisioningEvent(
            id="01JABCDEFGHJKMNPQRSTVWXYZ0",
            target="t",
            connector=self.product.name,
            kind=kind,
            resource="r1",
            generation=1,
            fence=1,
            change=Change.DELETE if deleted else Change.UPDATE,
            document=msgspec.Raw(msgspec.json.encode(document)),
            deleted=deleted,
            account_id=account_id,
        )

    async def _run(
        self,
        document: dict[str, Any],
        kind: Literal["user", "group"],
        *,
        dry: bool,
        account_id: str | None = None,
        deleted: bool = False,
    ) -> tuple[Outcome, Rehearsal]:
        event = self.event(document, kind, account_id=account_id, deleted=deleted)
        rehearsal = Rehearsal()
        with rehearsing(rehearsal):
            outcome = await deliver(
                event,
                delivery=1,
                connector=self.dry if dry else self.real,
                directory=Known(),
                owned=StaysOurs(),
                new_id=lambda: "o1",
                clock=lambda: 0.0,
                ctx=Delivery(),
            )
        assert outcome is not None
        return outcome, rehearsal


@contextlib.asynccontextmanager
async def staged(name: str, folder: Path, **options: Any) -> AsyncIterator[Stage]:
    """A product with both connectors."""
    product = PRODUCTS[name]
    secret = folder / f"{name}.token"
    secret.write_text(TOKEN, encoding="utf-8")
    secret.chmod(0o600)
    emulator = product.emulator()
    async with running(emulator) as url:
        table = {**product.settings(url, {"file": str(secret)}), "allow_loopback": True, **options}
        problems: list[str] = []
        decoded = registry.decode_settings(name, table, "targets.t.settings", problems)
        assert not problems, problems
        real, http = registry.build(name, decoded, paced=False)
        assert isinstance(http, HttpClient)
        try:
            yield Stage(product, emulator, table, real, rehearsing_connector(type(real), decoded, http))
        finally:
            await http.close()


@pytest_asyncio.fixture(params=sorted(PRODUCTS))
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    """Each of the five products."""
    async with staged(request.param, tmp_path) as one:
        yield one


async def test_a_rehearsed_create_shows_the_document_and_writes_nothing(stage: Stage) -> None:
    """The product's journal holds no effect; the first call is the create, with the body the product would get."""
    outcome, rehearsal = await stage.deliver()

    assert outcome.result is Result.APPLIED, outcome.reason
    assert outcome.created
    assert rehearsal.calls[0].method == "POST"
    assert rehearsal.calls[0].path.endswith(("/Users", "/users"))
    assert rehearsal.calls[0].body
    assert stage.writes() == 0
    assert any(step.method == "GET" for step in outcome.steps), "looking was real"


async def test_what_is_rehearsed_is_what_is_then_sent(stage: Stage) -> None:
    """Method, path and order of the writing calls of the real delivery equal those of the rehearsal before it."""
    _, planned = await stage.deliver()
    real, _ = await stage.deliver(dry=False)

    sent = [(step.method, step.path) for step in real.steps if step.method != "GET"]
    assert [(call.method, call.path) for call in planned.calls] == sent


async def test_a_rehearsed_change_of_a_real_account_ends_as_applied_and_leaves_it_as_it_is(stage: Stage) -> None:
    """Update, deactivation and deletion: reads after a write show the imagined state, so each connector comes to its end."""
    made, _ = await stage.deliver(dry=False)
    assert made.account_id is not None
    writes = stage.writes()

    renamed = {"name": {"givenName": "Adele", "familyName": "Example"}}
    for change in (renamed, {"active": False}, {"deleted": True}):
        outcome, rehearsal = await stage.deliver(account_id=made.account_id, **change)  # type: ignore[arg-type]
        assert outcome.result is Result.APPLIED, (change, outcome.reason)
        if change is not renamed or stage.product.name != "babelforce":  # a babelforce user has no name of its own
            assert rehearsal.calls, change

    assert stage.writes() == writes


async def test_each_rehearsed_call_equals_the_one_that_is_then_sent_for_a_deactivation(stage: Stage) -> None:
    """The same for an account that exists: paths in order, and reads in between."""
    made, _ = await stage.deliver(dry=False)
    _, planned = await stage.deliver(account_id=made.account_id, active=False)
    real, _ = await stage.deliver(dry=False, account_id=made.account_id, active=False)

    sent = [(step.method, step.path) for step in real.steps if step.method != "GET"]
    assert [(call.method, call.path) for call in planned.calls] == sent


async def test_an_account_that_exists_is_found_by_really_looking(stage: Stage) -> None:
    """Delivery rule R4 holds in a rehearsal: found, not written."""
    made, _ = await stage.deliver(dry=False)

    outcome, rehearsal = await stage.deliver()

    assert outcome.result is Result.FOUND
    assert {one.account_id for one in outcome.sightings} == {made.account_id}
    assert not rehearsal.calls


async def test_an_account_that_is_gone_is_made_anew_in_a_rehearsal(tmp_path: Path) -> None:
    """A real 404 reaches the order of work: look, then create (rule A3)."""
    async with staged("talkdesk", tmp_path) as stage:
        outcome, rehearsal = await stage.deliver(account_id="no-such-account", active=True)

        assert outcome.result is Result.APPLIED, outcome.reason
        assert stage.writes() == 0
        assert rehearsal.calls


async def test_babelforce_roles_are_read_back_as_imagined(tmp_path: Path) -> None:
    """Vendor page 2.3: add before remove, each read back; a rehearsal shows both calls."""
    async with staged("babelforce", tmp_path) as stage:
        made, _ = await stage.deliver(dry=False)
        outcome, rehearsal = await stage.deliver(account_id=made.account_id, roles=[{"value": "supervisor"}])

        assert outcome.result is Result.APPLIED, outcome.reason
        assert [call.path for call in rehearsal.calls] == ["/api/v2/users/roles", "/api/v2/users/roles/remove"]
        assert rehearsal.calls[0].body == {"emails": ["ada@contoso.example"], "roles": ["supervisor"]}


async def test_telemessage_shows_a_change_of_number_only_when_there_is_one(tmp_path: Path) -> None:
    """Vendor page 3.5: there is no reading by id, so what is held comes from the list."""
    async with staged("telemessage", tmp_path) as stage:
        made, _ = await stage.deliver(dry=False)
        _, same = await stage.deliver(account_id=made.account_id)
        _, other = await stage.deliver(account_id=made.account_id, userName="+447400123457")

        assert [call.path for call in same.calls] == ["/v1/users/{id}"]
        assert [call.path for call in other.calls] == ["/v1/users/{id}/login", "/v1/users/{id}"]


@pytest.mark.parametrize("name", ["bobs_business", "sofa"])
async def test_groups_are_rehearsed_with_their_members(name: str, tmp_path: Path) -> None:
    """A group that would be made is written to under the id it would get; the real delivery sends the same calls."""
    options = {"forward_unmapped_groups": True} if name == "sofa" else {}
    async with staged(name, tmp_path, **options) as stage:
        ada, _ = await stage.deliver(dry=False)
        writes = stage.writes()
        group = {"displayName": "Sales", "externalId": OBJECT_ID, "add": [{"id": "r1", "account_id": ada.account_id}]}
        outcome, planned = await stage.deliver_group(group)
        assert stage.writes() == writes
        real, _ = await stage.deliver_group(group, dry=False)

    assert outcome.result is Result.APPLIED, outcome.reason
    assert [call.method for call in planned.calls] == ["POST", "PATCH"]
    assert planned.calls[1].url.rsplit("/", 1)[1].startswith(MADE_ID)
    sent = [(step.method, step.path) for step in real.steps if step.method != "GET"]
    assert [(call.method, call.path) for call in planned.calls] == sent


@pytest.mark.parametrize("name", sorted(PRODUCTS))
async def test_in_shadow_mode_a_product_gets_nothing_but_questions(name: str, tmp_path: Path) -> None:
    """Users, groups, agents and invitations, made, changed, switched off and removed: reads and token requests only."""
    options = {
        "bobs_business": {"invite": "on_create"},
        "babelforce": {"create_agents": True},
        "sofa": {"forward_unmapped_groups": True},
    }
    async with staged(name, tmp_path, **options.get(name, {})) as stage:
        made, _ = await stage.deliver(dry=False)
        groups = isinstance(stage.real, PutsGroups)
        group = {"displayName": "Sales", "externalId": OBJECT_ID, "add": [{"id": "r1", "account_id": made.account_id}]}
        held = (await stage.deliver_group(group, dry=False))[0].account_id if groups else None
        last = stage.emulator.recorded()[-1]["seq"]
        settings = TargetSettings(connector=name, settings=stage.table, shadow=True)
        served = Served("t", settings, tmp_path, concurrency_max=1, before_call=_no_limit)
        other = "+447400123999" if name == "telemessage" else "eve@contoso.example"
        eve = {"externalId": str(uuid.uuid4()), "emails": [{"type": "work", "value": "eve@contoso.example"}]}
        events = [
            stage.event({**stage.product.user, "userName": other, **eve}, "user"),
            stage.event(
                {**stage.product.user, "name": {"givenName": "Adele", "familyName": "E."}},
                "user",
                account_id=made.account_id,
            ),
            stage.event({**stage.product.user, "active": False}, "user", account_id=made.account_id),
            stage.event(stage.product.user, "user", account_id=made.account_id, deleted=True),
        ]
        if groups:
            events += [
                stage.event({**group, "displayName": "Support", "externalId": str(uuid.uuid4())}, "group"),
                stage.event({**group, "displayName": "Sales 2", "add": []}, "group", account_id=held),
                stage.event(group, "group", account_id=held, deleted=True),
            ]
        calls = 0
        for event in events:
            outcome = await shadow(
                event,
                served,
                delivery=1,
                owned=StaysOurs(),
                new_id=lambda: "o1",
                clock=time.time,
                ctx=Delivery(),
                worker="w1",
            )
            assert outcome is not None
            assert (outcome.result, outcome.blocked_on, outcome.notes) == (Result.BLOCKED, SHADOW, ())
            assert outcome.reason is not None
            assert outcome.reason.code == "shadow", outcome.reason
            calls += sum(step.error == NOT_SENT for step in outcome.steps)
        await served.close()
        sent = {(call["method"], call["path"]) for call in stage.emulator.recorded(last)}
        assert calls >= len(events) - 1
        assert sent, "it does look"
        assert {method for method, path in sent if "token" not in path} <= {"GET", "HEAD"}


async def test_a_refusal_of_our_own_comes_before_any_call(tmp_path: Path) -> None:
    """Normalization is the real one: the same code, attribute and sentence."""
    async with staged("telemessage", tmp_path) as stage:
        outcome, rehearsal = await stage.deliver(userName="not a number")

        assert outcome.result is Result.REJECTED
        assert outcome.reason is not None
        with pytest.raises(NormalizationError) as refused:
            stage.real._number("not a number")  # type: ignore[attr-defined]
        assert (outcome.reason.code, outcome.reason.message) == (refused.value.code, refused.value.message)
        assert not rehearsal.calls


async def test_a_refused_credential_shows_in_a_rehearsal(tmp_path: Path) -> None:
    """Reads are real, so a wrong token is found before anything is switched on."""
    async with staged("talkdesk", tmp_path) as stage:
        (tmp_path / "talkdesk.token").write_text("another", encoding="utf-8")
        outcome, _ = await stage.deliver()

        assert outcome.result is Result.MISCONFIGURED


async def test_nothing_writes_outside_a_rehearsal_and_made_ids_are_read_nowhere(tmp_path: Path) -> None:
    """A connector that rehearses cannot be used by mistake; an id that was only imagined is not asked for at the product."""
    async with staged("talkdesk", tmp_path) as stage:
        http = stage.dry.http
        with pytest.raises(ConnectorBug):
            await http.request("POST", "/Users", json={})
        with pytest.raises(Gone):
            await http.request("GET", "/Users/{id}", parts={"id": f"{MADE_ID}7"})
        with pytest.raises(ConnectorBug):
            await http.request("GET", "/Users/{id}", parts={"id": ".."})
        assert not stage.emulator.journal.lines()


async def test_a_declared_reading_call_is_sent_although_it_is_a_post(tmp_path: Path) -> None:
    """`Connector.reading_calls`: searches by POST reach the product; others do not."""
    async with staged("talkdesk", tmp_path) as stage:

        class Searching(type(stage.real)):  # type: ignore[misc]
            reading_calls = frozenset({("POST", "/search")})

        dry = rehearsing_connector(Searching, stage.real.settings, stage.real.http)
        with rehearsing(Rehearsal()) as rehearsal:
            answer = await dry.http.request("POST", "/search", json={}, expect=(404, 405, 501))
            await dry.http.request("POST", "/other", json={})

        assert answer.status in (404, 405, 501), "the product itself answered"
        assert [call.path for call in rehearsal.calls] == ["/other"]


async def test_a_rehearsal_is_bounded_and_keeps_no_secret_header(tmp_path: Path) -> None:
    """CALLS_MAX ends it; an Authorization header a connector gives itself is not kept."""
    async with staged("talkdesk", tmp_path) as stage:
        with rehearsing(Rehearsal()) as rehearsal:
            for _ in range(CALLS_MAX):
                headers = {"Authorization": f"Bearer {TOKEN}", "X-Api-Key": TOKEN, "If-Match": "1"}
                await stage.dry.http.request("POST", "/x", json={}, headers=headers)
            with pytest.raises(Rejected):
                await stage.dry.http.request("POST", "/x", json={})

        assert len(rehearsal.calls) == CALLS_MAX
        assert rehearsal.calls[0].headers == {"If-Match": "1"}


async def test_what_is_kept_of_a_call_is_masked_and_cut(tmp_path: Path) -> None:
    """Personal values never reach a history: names of attributes, truth values and roles stay."""
    async with staged("babelforce", tmp_path) as stage:
        _, rehearsal = await stage.deliver(displayName="x" * 10_000)
        step = rehearsal.calls[0].step((stage.product.user,))

        assert step.error == NOT_SENT
        assert step.status == 0
        assert "a•••@contoso.example" in step.sent
        assert '"roles":["agent","manager"]' in step.sent
        assert "ada@contoso" not in step.sent
        assert len(step.sent) <= 2_000


async def test_a_declared_product_is_rehearsed_by_its_declaration(tmp_path: Path) -> None:
    """The generic connector: status, place of the account and its id come from the target's own settings."""
    token = tmp_path / "rest.token"
    token.write_text(generic.TOKEN, encoding="utf-8")
    token.chmod(0o600)
    emulator = generic.RestServiceEmulator()
    async with running(emulator) as url, generic.connected(url, token) as real:
        dry = rehearsing_connector(type(real), real.settings, real.http)
        account = generic.wish(real)
        with rehearsing(Rehearsal()) as rehearsal:
            account_id = await dry.create(account, Delivery())
            await dry.update(account_id, generic.wish(real, active=False), Delivery())
            await dry.delete(account_id, Delivery())

    assert account_id.startswith(MADE_ID)
    assert [call.method for call in rehearsal.calls] == ["POST", "PATCH", "DELETE"]
    assert emulator.journal.effects() == []
