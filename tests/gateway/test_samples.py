"""Every documented or recorded request of Entra goes to the running gateway over real HTTP; the folder is counted by source."""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from msgspec import Struct
from yarl import URL

from deploy.emulators.entra_sign_in import EntraIssuer
from gateway.messages import LIST_RESPONSE, MEDIA_TYPE
from schemas.config import EntraCloud, EntraSignIn, Federation, OAuthSignIn, TargetSettings
from tests.gateway.samples import FAMILIES, every, exchanges, samples
from tests.gateway.scim_listener import ALPHA, BETA, USER, GroupShelf, Listener, listening

TENANT = "5f2b1b8e-3a70-4a0c-9d52-0e6bb0a5b9aa"
WORKLOAD = "b5ba7a93-4452-4522-aeb4-a2b5da870c16"
SUBJECT = "3d0f1a55-8f4e-4e0b-b6a5-7f0f7c6f4b02"
IDS = ("54", "55", "88", "89", "90")
"""Users that samples name by these ids of the documentation."""

COUNTS = {
    "Azure/AzureAD-BYOA-Provisioning-Samples#26": 1,
    "AzureAD/SCIMReferenceCode": 2,
    "AzureAD/SCIMReferenceCode#10": 1,
    "AzureAD/SCIMReferenceCode, Microsoft.SCIM.LogicAppValidationTemplate": 11,
    "AzureAD/SCIMReferenceCode, PostmanCollection.json": 6,
    "AzureAD/SCIMReferenceCode, Workload-Identity-Federation-for-SCIM-Provisioning.md": 1,
    "Captain-P-Goldfish/SCIM-SDK": 1,
    "MicrosoftDocs/entra-docs, access-tokens.md": 1,
    "MicrosoftDocs/entra-docs, application-provisioning-config-problem-scim-compatibility.md": 11,
    "MicrosoftDocs/entra-docs, customize-application-attributes.md": 13,
    "MicrosoftDocs/entra-docs, how-provisioning-works.md": 1,
    "MicrosoftDocs/entra-docs, how-to-account-discovery.md": 1,
    "MicrosoftDocs/entra-docs, manage-object-connections.md": 1,
    "MicrosoftDocs/entra-docs, use-scim-to-provision-users-and-groups.md": 37,
    "OneUptime/oneuptime#2134": 2,
    "RFC 6749 section 2.3.1": 1,
    "RFC 7644 section 3.3": 1,
    "RFC 7644 section 3.4.2.2": 2,
    "RFC 7644 section 3.5.2.2": 5,
    "better-auth/better-auth#10682": 1,
    "buildbuddy-io/buildbuddy#10578": 1,
    "getsentry/sentry#84941": 1,
    "grokability/snipe-it#19115": 1,
    "jelhub/scimgateway#47": 1,
    "jelhub/scimgateway, README and source": 1,
    "limosa-io/laravel-scim-server#34": 3,
    "pranems/SCIMServer, issue log against Entra itself": 1,
    "pranems/SCIMServer, recorded runs of Microsoft's SCIM Validator": 28,
}
"""How many samples there are by source: a file that is lost or added is noticed."""

together = pytest.mark.asyncio(loop_scope="module")


class Scene(Struct):
    """A gateway that takes every way to sign in, and the issuer of Entra's tokens beside it."""

    scim: Listener
    issuer: EntraIssuer
    secret: str
    numbers: Any


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """One for all samples; each leaves nothing behind."""
    async with EntraIssuer(TENANT) as issuer:
        cloud = EntraCloud(**issuer.settings, http_loopback=True)
        federation = Federation(tenant=TENANT, app_id=WORKLOAD, subjects=(SUBJECT,), cloud="custom", custom=cloud)
        target = TargetSettings(
            connector="shelf",
            auth=("key", "entra", "oauth"),
            entra=EntraSignIn(tenant=TENANT, cloud="custom", custom=cloud),
            oauth=OAuthSignIn(federation=federation),
        )
        targets = {ALPHA: target, BETA: TargetSettings(connector="shelf")}
        folder = tmp_path_factory.mktemp("samples")
        async with listening(folder, targets=targets, shelf=GroupShelf()) as scim:
            secret = (await scim.keys.issue(ALPHA, actor="test", kind="client")).text
            yield Scene(scim, issuer, secret, itertools.count(1))


async def leave_nothing(scim: Listener) -> None:
    """Delete whatever a sample made."""
    for kind in ("Groups", "Users"):
        for resource in (await scim.get(f"/{kind}?count=200")).body["Resources"]:
            assert (await scim.send("DELETE", f"/{kind}/{resource['id']}")).status == 204


# ---- the folder


def test_every_sample_is_named_after_its_source_and_says_which_fact_it_checks() -> None:
    """A failing sample says by its name who documented what broke; issues of other projects are what Entra was seen sending."""
    for name, sample in every().items():
        family = name.partition("-")[0]
        seen = re.fullmatch(r"[\w.-]+/[\w.-]+(#\d+)?", sample["source"]) if family == "entra" else None
        assert seen or sample["source"].startswith(FAMILIES[family]), name
        assert re.fullmatch(r"[A-Z0-9%a-z].*\.", sample["fact"]), name
        assert ". " not in sample["fact"], f"{name}: one sentence"


def test_there_are_as_many_samples_of_each_source_as_were_found_there() -> None:
    """Each request example of Entra's documentation, the validator, the published tests and the threads stands here."""
    assert dict(Counter(sample["source"] for sample in every().values())) == COUNTS


def test_every_kind_of_request_is_among_the_samples() -> None:
    """Users, groups, filters, probes, discovery, deletions and token requests, and nothing that no test would read."""
    kinds = Counter(
        (sample["method"], "token" if "oauth2" in sample["path"] else sample["path"].strip("/").split("/")[0])
        for sample in every().values()
    )
    assert kinds.keys() == {
        *itertools.product(("GET", "POST", "PATCH", "DELETE"), ("Users", "Groups")),
        *(("GET", endpoint) for endpoint in ("Schemas", "ResourceTypes", "ServiceProviderConfig")),
        ("POST", "token"),
    }
    read = sum(len(samples(method)) for method in ("GET", "POST", "PATCH", "DELETE")) + len(exchanges())
    assert read == len(every())


# ---- what is found and stored, over HTTP


@together
@pytest.mark.parametrize("name", samples("POST"))
async def test_every_create_is_answered_201_and_read_back_as_it_is_stored(scene: Scene, name: str) -> None:
    """What was sent comes back under the id of the answer, by id and by filter."""
    scim, sample = scene.scim, samples("POST")[name]
    try:
        text, _ = await with_people(scim, json.dumps(sample))
        sample = json.loads(text)
        created = await scim.post(sample["path"], sample["body"])
        assert created.status == 201, created.body
        read = await scim.get(f"{sample['path']}/{created.body['id']}")
        assert shown(read.body, sample) == comparable(sample["stored"], sample)
        assert created.headers["content-type"] == MEDIA_TYPE
    finally:
        await leave_nothing(scim)


@together
@pytest.mark.parametrize("name", [name for name, sample in samples("PATCH").items() if sample["kind"] == "User"])
async def test_every_user_patch_is_answered_200_with_what_is_stored_then(scene: Scene, name: str) -> None:
    """A user's PATCH is answered with the resource, which a GET then shows too; groups have a test of their own."""
    scim, sample = scene.scim, samples("PATCH")[name]
    try:
        text, _ = await with_people(scim, json.dumps(sample))
        sample = json.loads(text)
        created = await scim.post("/Users", {"schemas": [USER], **sample["given"]})
        assert created.status == 201, created.body
        patched = await scim.send("PATCH", f"/Users/{created.body['id']}", json=sample["body"])
        assert patched.status == 200, patched.body
        for body in (patched.body, (await scim.get(f"/Users/{created.body['id']}")).body):
            assert shown(body, sample) == comparable(sample["stored"], sample)
    finally:
        await leave_nothing(scim)


@together
@pytest.mark.parametrize("name", samples("GET"))
async def test_every_query_is_answered_with_a_list_even_if_nothing_is_there(scene: Scene, name: str) -> None:
    """Always a ListResponse, with an empty one for what does not exist: a 404 here would quarantine the job."""
    sample = samples("GET")[name]
    answer = await scene.scim.get(f"{sample['path']}?{sample['query']}")
    assert answer.status == 200, answer.body
    assert answer.body["schemas"] == [LIST_RESPONSE]
    assert answer.body["totalResults"] == 0


async def with_people(scim: Listener, text: str) -> tuple[str, dict[str, str]]:
    """The sample with ids of real users in place of those of the documentation."""
    ids = {}
    for number in IDS:
        quoted = rf'(?<=")({number})(?=")|(?<=\\")({number})(?=\\")|(?<=/Users/)({number})(?=")'
        if re.search(quoted, text):
            ids[number] = (await scim.user(f"person-{number}@contoso.example"))["id"]
            text = re.sub(quoted, ids[number], text)
    return text, ids


def shown(body: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
    """A resource without what the server adds."""
    return comparable({name: value for name, value in body.items() if name not in ("schemas", "id", "meta")}, sample)


def comparable(document: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
    """What is stored, without what only a GET of a group adds."""
    return {name: value for name, value in document.items() if name != "members" or sample["kind"] != "Group"}


# ---- how the gateway answers


@together
@pytest.mark.parametrize("name", exchanges())
async def test_every_exchange_is_answered_as_documented(scene: Scene, name: str) -> None:
    """Each file of tests/samples with an `expect` names its source and the documented fact it checks."""
    try:
        await exchange(scene, exchanges()[name])
    finally:
        await leave_nothing(scene.scim)


async def exchange(scene: Scene, sample: dict[str, Any]) -> None:
    scim = scene.scim
    filled = await placeholders(scene, json.dumps(sample))
    text = json.dumps(sample)
    for name, value in filled.items():
        text = text.replace(f"{{{name}}}", value)
    sample = json.loads(text)
    expect = sample["expect"]
    for number in range(expect.get("people", 0)):
        await scim.user(f"listed-{number}@contoso.example")

    status, media_type, raw = await send(scim, sample)

    assert status == expect["status"], (sample["fact"], raw)
    body = json.loads(raw) if raw else None
    if "oauth2" not in sample["path"] and raw:
        assert media_type == MEDIA_TYPE
    contains(body, expect.get("answer"))
    if expect.get("only"):
        assert body == expect["answer"]
    for member in expect.get("has", ()):
        assert body[member]
    for member in expect.get("without", ()):
        assert member not in body
    for member in expect.get("without_in_resources", ()):
        assert not any(member in resource for resource in body["Resources"])
    if expect.get("no_null"):
        assert "null" not in raw.decode().replace('"null"', "")
    if "again" in expect:
        assert (await send(scim, sample))[0] == expect["again"]


async def placeholders(scene: Scene, text: str) -> dict[str, str]:
    """What stands in place of `{user}` and so on; made only where a sample names it."""
    scim, number = scene.scim, next(scene.numbers)
    basic = base64.b64encode(f"{ALPHA}:{scene.secret}".encode()).decode()
    filled = {"target": ALPHA, "secret": scene.secret, "basic": basic}
    filled |= {"user_name": f"sample-{number}@contoso.example", "group_name": f"Sample-{number}"}
    if "{user}" in text or "{user_name}" in text or "{group}" in text:
        more = {"title": "Engineer", "emails": [{"primary": True, "type": "work", "value": filled["user_name"]}]}
        filled["user"] = (await scim.user(filled["user_name"], active=True, **more))["id"]
    if "{group}" in text or "{group_name}" in text or '"needs": ["group"]' in text:
        members = [filled["user"]] if "user" in filled else []
        filled["group"] = (await scim.group(filled["group_name"], *members))["id"]
    if "{other_group}" in text:
        filled["other_group"] = (await scim.group(f"Child-{number}"))["id"]
    if "{assertion}" in text:
        filled["assertion"] = scene.issuer.assertion(WORKLOAD, SUBJECT)
    if "{entra_token_" in text:
        for version in ("1.0", "2.0"):
            issuer = scene.issuer
            issuer.version = "1.0" if version == "1.0" else "2.0"
            filled[f"entra_token_{version}"] = issuer.token()
    if "{bought}" in text:
        form = {"grant_type": "client_credentials", "client_id": ALPHA, "client_secret": scene.secret}
        async with scim.session.post(f"{scim.origin}/oauth2/{ALPHA}/token", data=form) as answer:
            filled["bought"] = (await answer.json())["access_token"]
    return filled


async def send(scim: Listener, sample: dict[str, Any]) -> tuple[int, str, bytes]:
    """Status, media type and body of the answer to a sample as it stands."""
    base = scim.origin if "oauth2" in sample["path"] else scim.base()
    url = URL(base + sample["path"] + (f"?{sample['query']}" if "query" in sample else ""), encoded=True)
    headers = dict(sample.get("headers", {}))
    data: bytes | None = None
    if "form" in sample:
        data = sample["form"].encode()
    elif "body" in sample:
        data = json.dumps(sample["body"]).encode()
        headers.setdefault("Content-Type", "application/scim+json")
    if "form" not in sample:
        headers.setdefault("Authorization", f"Bearer {scim.tokens[ALPHA]}")
    skip = ("User-Agent", "Accept", "Content-Type")
    async with (
        aiohttp.ClientSession(skip_auto_headers=skip) as session,
        session.request(sample["method"], url, data=data, headers=headers) as answer,
    ):
        return answer.status, answer.content_type, await answer.read()


def contains(actual: Any, expected: Any, at: str = "") -> None:
    """Objects may have more members; a list of objects must have each expected one somewhere."""
    if isinstance(expected, dict):
        assert isinstance(actual, dict), (at, actual)
        for name, value in expected.items():
            assert name in actual, (f"{at}.{name}", actual)
            contains(actual[name], value, f"{at}.{name}")
    elif isinstance(expected, list) and expected and isinstance(expected[0], dict):
        for wanted in expected:
            assert any(fits(entry, wanted) for entry in actual), (at, wanted, actual)
    else:
        assert actual == expected, at


def fits(actual: Any, expected: Any) -> bool:
    try:
        contains(actual, expected)
    except AssertionError:
        return False
    return True
