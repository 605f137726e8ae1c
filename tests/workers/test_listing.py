"""Listing a target's accounts over the bus in bounded parts, and how wished users would show in that list."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.emulators.babelforce import BabelforceEmulator
from deploy.emulators.bobs_business import BobsBusinessEmulator
from deploy.emulators.harness import Emulator, running
from deploy.emulators.scim import ScimProductEmulator
from deploy.emulators.sofa import SofaEmulator
from deploy.emulators.talkdesk import TalkdeskEmulator
from deploy.emulators.telemessage import TelemessageEmulator
from schemas.comparison import ANSWER_BYTES_MAX, DOCUMENTS_PER_QUESTION_MAX, Expectations, ListedAccount, Listing
from schemas.config import TargetSettings, parse
from schemas.topology import control_subject
from tests.conftest import NatsServer
from tests.waiting import until
from tests.workers.conftest import Gateway
from workers import control
from workers.app import Worker
from workers.listing import KEPT_S, _Page, digest
from workers.targets import Served

MANAGER = "Contoso Archive"
OBJECT = "8f1c0000-0000-0000-0000-00000000000"
TALKDESK = "urn:ietf:params:scim:schemas:extension:talkdesk:2.0:User"


def _no_wait(emulator: Emulator) -> Emulator:
    emulator.set(rate_per_s=0)
    return emulator


@contextlib.asynccontextmanager
async def serving(
    connector: str, emulator: Emulator, folder: Path, settings: Callable[[str], dict[str, Any]]
) -> AsyncIterator[Served]:
    """A target as a worker serves it, of a running product."""
    async with running(_no_wait(emulator)) as url:
        secret = folder / f"{connector}.secret"
        secret.write_text(f"demo-token-{emulator.name}")
        secret.chmod(0o600)
        token = {"file": str(secret)}
        configured = TargetSettings(connector=connector, settings=_filled(settings(url), token))

        async def at_once(_: Any) -> None:
            return None

        served = Served("target", configured, folder, concurrency_max=4, before_call=at_once)
        try:
            yield served
        finally:
            await served.close()


def _filled(settings: dict[str, Any], token: dict[str, str]) -> dict[str, Any]:
    return {name: token if value == "TOKEN" else value for name, value in settings.items()} | {"allow_loopback": True}


async def asked(served: Served, **question: Any) -> Any:
    """A question as it comes over the bus."""
    return msgspec.json.decode(await control.answer(served, msgspec.json.encode(question)))


async def everything(served: Served) -> tuple[list[ListedAccount], int]:
    """All parts of the list, and how many there were."""
    accounts: list[ListedAccount] = []
    cursor = ""
    for parts in range(1, 100):
        reply = msgspec.convert(await asked(served, do="list", cursor=cursor), Listing)
        assert reply.ok, reply
        assert len(msgspec.json.encode(reply)) <= ANSWER_BYTES_MAX + 4_096
        accounts += reply.accounts
        if reply.cursor is None:
            return accounts, parts
        cursor = reply.cursor
    raise AssertionError("the list has no end")


def bobs(url: str) -> dict[str, Any]:
    return {"tenant_url": f"{url}/scim/v2", "api_key": "TOKEN"}


def sofa(url: str) -> dict[str, Any]:
    return {
        "endpoint_url": f"{url}/scim/entra",
        "access_key": "TOKEN",
        "key_issued": "2026-10-01",
        "key_validity_days": 365,
    }


def talkdesk(url: str) -> dict[str, Any]:
    return {"base_url": url, "token": "TOKEN", "roles": ["Agent", "Supervisor"], "teams": ["Support"]}


def telemessage(url: str) -> dict[str, Any]:
    return {"base_url": url, "token": "TOKEN", "manager_name": MANAGER}


def babelforce(url: str) -> dict[str, Any]:
    return {
        "namespace": "contoso",
        "base_url": url,
        "token": "TOKEN",
        "integration_user": "scim@example.com",
    }


PRODUCTS: list[tuple[str, Callable[[], Emulator], Callable[[str], dict[str, Any]], dict[str, Any], dict[str, Any]]] = [
    (
        "bobs_business",
        BobsBusinessEmulator,
        bobs,
        {"users": [{"userName": "Ada@Contoso.example", "givenName": "Ada", "externalId": f"{OBJECT}1"}]},
        {"userName": "ada@contoso.example", "externalId": f"{OBJECT}1", "name": {"givenName": "Ada"}, "active": True},
    ),
    (
        "sofa",
        SofaEmulator,
        sofa,
        {"users": [{"user_name": "Ada@contoso.example", "sso_identifier": f"{OBJECT}1", "name": "Ada"}]},
        {"userName": "ada@contoso.example", "externalId": f"{OBJECT}1", "name": {"givenName": "Ada"}, "active": True},
    ),
    (
        "talkdesk",
        TalkdeskEmulator,
        talkdesk,
        {
            "users": [
                {
                    "userName": "ada@contoso.example",
                    "givenName": "Ada",
                    "familyName": "Lovelace",
                    "rolesString": "Supervisor",
                }
            ]
        },
        {
            "userName": "Ada@contoso.example",
            "name": {"givenName": "Ada", "familyName": "Lovelace"},
            TALKDESK: {"rolesString": "supervisor"},
        },
    ),
    (
        "telemessage",
        TelemessageEmulator,
        telemessage,
        {"managers": [MANAGER], "users": [{"mobilePhone": "447700900123", "manager": MANAGER, "firstName": "Ada"}]},
        {"userName": "+44 7700 900123", "displayName": MANAGER, "name": {"givenName": "Ada"}},
    ),
    (
        "babelforce",
        BabelforceEmulator,
        babelforce,
        {"users": [{"email": "Ada@contoso.example", "roles": ["agent"]}]},
        {"userName": "ada@contoso.example", "roles": [{"value": "agent"}]},
    ),
]


@pytest.mark.parametrize(
    ("connector", "product", "settings", "seed", "document"), PRODUCTS, ids=[one[0] for one in PRODUCTS]
)
async def test_an_account_as_wished_shows_in_the_list_as_expected(
    connector: str,
    product: Callable[[], Emulator],
    settings: Callable[[str], dict[str, Any]],
    seed: dict[str, Any],
    document: dict[str, Any],
    tmp_path: Path,
) -> None:
    """Managed attributes are compared in one normalized form, without a read per user."""
    emulator = product()
    emulator.seed(seed)
    async with serving(connector, emulator, tmp_path, settings) as served:
        listed, _ = await everything(served)
        reply = msgspec.convert(await asked(served, do="expect", documents=[document]), Expectations)
    (account,), (user,) = listed, reply.users

    assert user.code == ""
    assert set(user.identities) & set(account.identities)
    assert user.digests, "something is compared"
    assert {path: account.digests[path] for path in user.digests} == user.digests
    assert account.active is True
    assert "Lovelace" not in str((account.digests, user.digests))


@pytest.mark.parametrize(
    ("connector", "product", "settings", "seed", "document"), PRODUCTS, ids=[one[0] for one in PRODUCTS]
)
async def test_a_changed_value_shows_as_another_digest_of_that_attribute_alone(
    connector: str,
    product: Callable[[], Emulator],
    settings: Callable[[str], dict[str, Any]],
    seed: dict[str, Any],
    document: dict[str, Any],
    tmp_path: Path,
) -> None:
    """Drift is told per attribute."""
    other: dict[str, Any] = {**document}
    path = "name.givenName"
    if connector == "babelforce":
        other["roles"], path = [{"value": "manager"}], "roles"
    else:
        other["name"] = {**document["name"], "givenName": "Grace"}
    emulator = product()
    emulator.seed(seed)
    async with serving(connector, emulator, tmp_path, settings) as served:
        listed, _ = await everything(served)
        reply = msgspec.convert(await asked(served, do="expect", documents=[other]), Expectations)
    (account,), (user,) = listed, reply.users

    assert [one for one in user.digests if user.digests[one] != account.digests[one]] == [path]


async def test_a_list_served_in_one_answer_is_divided_and_fetched_once(tmp_path: Path) -> None:
    """Answers stay below what the bus carries; what is left of a page is kept for KEPT_S, so nothing is asked for twice."""
    emulator = BabelforceEmulator()
    emulator.seed({"users": [{"email": f"person{n:05}@contoso.example", "roles": ["agent"]} for n in range(1_203)]})
    async with serving("babelforce", emulator, tmp_path, babelforce) as served:
        listed, parts = await everything(served)
    assert len({account.account_id for account in listed}) == 1_203
    assert parts == 3
    assert len([call for call in emulator.recorded() if call["path"] == "/api/v2/users"]) == 1
    assert KEPT_S <= 60


async def test_of_a_long_list_one_page_is_held_at_a_time(tmp_path: Path) -> None:
    """Memory is bounded however fast the list is read: what is kept of a page goes when the next one comes."""
    emulator = ScimProductEmulator(page_max=600)
    emulator.seed({"users": [{"userName": f"person{n:05}@contoso.example"} for n in range(3_000)]})

    def settings(url: str) -> dict[str, Any]:
        auth = {"token": {"file": str(tmp_path / "scim.secret")}}
        return {"base_url": f"{url}/scim/v2", "title": "Helpdesk", "auth": auth, "page_size": 600}

    async with serving("scim", emulator, tmp_path, settings) as served:
        before = _pages_held()
        listed, _ = await everything(served)
        held = _pages_held() - before
    assert len(listed) == 3_000
    assert held <= 1


def _pages_held() -> int:
    gc.collect()
    return sum(isinstance(held, _Page) for held in gc.get_objects())


async def test_a_list_that_breaks_off_is_no_list(tmp_path: Path) -> None:
    """Incomplete lists are errors. A page that shows nothing before the total is reached is one."""
    emulator = BobsBusinessEmulator()
    emulator.seed({"users": [{"userName": f"u{n}@contoso.example"} for n in range(3)]})
    async with serving("bobs_business", emulator, tmp_path, bobs) as served:
        body = {"Resources": [], "totalResults": 3, "schemas": []}
        emulator.fault("status", method="GET", status=200, body=body, path="/scim/v2/Users$", times=1)
        broken = await asked(served, do="list", cursor="")
        whole = await asked(served, do="list", cursor="")
    assert (broken["ok"], broken["code"], broken.get("again", False)) == (False, "incomplete_list", False)
    assert whole["ok"]
    assert len(whole["accounts"]) == 3


async def test_a_product_that_is_away_is_worth_asking_again(tmp_path: Path) -> None:
    """A part that failed in a way that may pass says so; the answer holds no exception."""
    emulator = BobsBusinessEmulator()
    async with serving("bobs_business", emulator, tmp_path, bobs) as served:
        emulator.fault("status", method="GET", status=503, path="/scim/v2/Users$")
        away = await asked(served, do="list")
        emulator.clear_faults()
        emulator.revoke_token()
        closed = await asked(served, do="list")
    assert (away["ok"], away["again"]) == (False, True)
    assert (closed["ok"], closed.get("again", False)) == (False, False)


async def test_what_is_no_question_is_answered_all_the_same(tmp_path: Path) -> None:
    """Worker answers are never exceptions: bad cursors, too many users, users that no product takes."""
    async with serving("bobs_business", BobsBusinessEmulator(), tmp_path, bobs) as served:
        assert (await asked(served, do="list", cursor="x:1"))["code"] == "bad_cursor"
        too_many = [{"userName": "a@contoso.example"}] * (DOCUMENTS_PER_QUESTION_MAX + 1)
        assert (await asked(served, do="expect", documents=too_many))["code"] == "too_many"
        mixed = await asked(served, do="expect", documents=[{"userName": "nobody"}, {"userName": 3}, {}])
    assert [user["code"] for user in mixed["users"]][:1] == ["bad_email"]
    assert mixed["users"][2]["code"] == "unreadable_user"


async def test_who_cannot_list_says_so(tmp_path: Path) -> None:
    """Contract: listing is optional."""

    async def at_once(_: Any) -> None:
        return None

    served = Served("o", TargetSettings(connector="observe"), tmp_path, concurrency_max=1, before_call=at_once)
    assert (await asked(served, do="list"))["code"] == "cannot_list"
    await served.close()


async def test_a_worker_lists_over_the_bus(nats_server: NatsServer, gateway: Gateway, tmp_path: Path) -> None:
    """Plain NATS request and reply to any worker that serves the target."""
    emulator = _no_wait(BobsBusinessEmulator())
    emulator.seed({"users": [{"userName": f"u{n:03}@contoso.example"} for n in range(150)]})
    async with running(emulator) as url:
        secret = tmp_path / "secret"
        secret.write_text(f"demo-token-{emulator.name}")
        secret.chmod(0o600)
        worker = Worker(
            parse(
                f'[nats]\nurl = "{nats_server.url}"\n[targets.bobs]\nconnector = "bobs_business"\n'
                f'[targets.bobs.settings]\ntenant_url = "{url}/scim/v2"\napi_key = {{ file = "{secret}" }}\n'
                "allow_loopback = true\n"
            ),
            tmp_path,
        )
        task = asyncio.create_task(worker.run())
        try:
            await until(worker.serving.is_set)
            seen: set[str] = set()
            cursor: str | None = ""
            while cursor is not None:
                body = msgspec.json.encode({"do": "list", "cursor": cursor})
                reply = msgspec.json.decode(await gateway.request(control_subject("bobs"), body), type=Listing)
                assert reply.ok
                seen |= {account.account_id for account in reply.accounts}
                cursor = reply.cursor
        finally:
            worker.stop()
            await task
    assert len(seen) == 150


def test_equal_values_have_equal_digests() -> None:
    """Digests are made of the normalized value, lists by content, nothing and an empty text apart."""
    assert digest(["a", "b"]) == digest(("a", "b"))
    assert digest(None) != digest("")
    assert len(digest("x" * 1_000)) == 12
