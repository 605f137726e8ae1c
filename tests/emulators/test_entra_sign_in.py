"""The emulated Entra signs in at the real gateway in every documented way; its issuer has real keys and serves them over HTTP."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from deploy.emulators.entra import CycleReport, Directory, ProvisioningJob, make_groups, make_people
from deploy.emulators.entra_sign_in import (
    CREDENTIALS_UNAVAILABLE,
    BlankToken,
    ClientCredentials,
    Credentials,
    EntraIssuer,
    FederatedCredentials,
    SecretToken,
    basic,
)
from gateway.entra_keys import REFETCH_S, KeySets
from schemas.config import EntraCloud, EntraSignIn, Federation, OAuthSignIn, TargetSettings
from tests.gateway.scim_listener import ALPHA, BETA, GroupShelf, Listener, listening

TENANT = "5f2b1b8e-3a70-4a0c-9d52-0e6bb0a5b9aa"
WORKLOAD = "b5ba7a93-4452-4522-aeb4-a2b5da870c16"
SUBJECT = "3d0f1a55-8f4e-4e0b-b6a5-7f0f7c6f4b02"
LIFE_S = 3_600


class Scene(Struct):
    """A gateway, an issuer, and a clock of the gateway that can run ahead."""

    scim: Listener
    issuer: EntraIssuer
    stack: AsyncExitStack
    ahead: list[float]

    @property
    def token_endpoint(self) -> str:
        return f"{self.scim.origin}/oauth2/{ALPHA}/token"

    async def client(self, **more: Any) -> ClientCredentials:
        secret = (await self.scim.keys.issue(ALPHA, actor="test", kind="client")).text
        return ClientCredentials(token_endpoint=self.token_endpoint, client_id=ALPHA, client_secret=secret, **more)

    async def job(self, credentials: Credentials, people: int = 3, **more: Any) -> ProvisioningJob:
        everybody = make_people(people, managers=False)
        directory = Directory(everybody, make_groups(everybody, 1))
        job = ProvisioningJob(self.scim.base(ALPHA), credentials, directory, **more)
        return await self.stack.enter_async_context(job)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with EntraIssuer(TENANT) as issuer, AsyncExitStack() as stack:
        cloud = EntraCloud(**issuer.settings, http_loopback=True)
        federation = Federation(tenant=TENANT, app_id=WORKLOAD, subjects=(SUBJECT,), cloud="custom", custom=cloud)
        targets = {
            ALPHA: TargetSettings(
                connector="shelf",
                auth=("key", "entra", "oauth"),
                entra=EntraSignIn(tenant=TENANT, cloud="custom", custom=cloud),
                oauth=OAuthSignIn(federation=federation, token_life_s=LIFE_S),
            ),
            BETA: TargetSettings(connector="shelf"),
        }
        ahead = [0.0]
        async with listening(
            tmp_path,
            targets=targets,
            shelf=GroupShelf(),
            now=lambda: time.time() + ahead[0],
            key_sets=KeySets(clock=lambda: time.monotonic() + ahead[0]),
        ) as scim:
            yield Scene(scim, issuer, stack, ahead)
            await stack.aclose()


def operations(job: ProvisioningJob) -> list[str]:
    return [exchange.operation for exchange in job.exchanges]


def arrived(report: CycleReport) -> tuple[int, int, int, str]:
    return report.created, report.groups_created, report.memberships, report.quarantined


@pytest.mark.parametrize("place", ["header", "body"])
async def test_client_credentials_buy_one_token_for_a_whole_cycle(scene: Scene, place: Any) -> None:
    """Entra page 2: form-encoded, credentials in Authorization: Basic, or in the form; the token comes before anything else."""
    credentials = await scene.client(place=place)
    job = await scene.job(credentials, connections=8, people=9)

    test = await job.test_connection()
    report = await job.initial_cycle()

    assert test.ok, test
    assert arrived(report) == (9, 1, 9, "")
    assert operations(job)[:3] == ["token", "probe_users", "probe_groups"]
    assert operations(job).count("token") == 1
    written = str(list(job.exchanges))
    assert credentials.client_secret not in written
    assert base64.b64encode(f"{ALPHA}:{credentials.client_secret}".encode()).decode() not in written
    assert "pgt_" not in written
    assert credentials.client_secret not in repr(credentials)
    form = job.exchanges[0].request_body
    assert form.startswith("grant_type=client_credentials")
    assert ("client_secret=***" in form) is (place == "body")


async def test_a_token_is_renewed_before_its_end(scene: Scene) -> None:
    """A request never carries a token that ends on the way: the next one is bought five minutes before."""
    now = [time.time()]
    job = await scene.job(await scene.client(), clock=lambda: now[0])
    await job.initial_cycle()
    now[0] += LIFE_S - 400.0
    await job.provision_on_demand(next(iter(job.directory.people)))
    assert operations(job).count("token") == 1

    now[0] += 200.0
    entry = await job.provision_on_demand(next(iter(job.directory.people)))

    assert entry.status != "Failure"
    assert operations(job).count("token") == 2
    assert [exchange.status for exchange in job.exchanges if exchange.operation != "token"].count(401) == 0


async def test_a_refused_token_is_renewed_once_and_the_request_sent_again(scene: Scene) -> None:
    """The gateway's clock says that the token ended: one 401, a new token, and the same request succeeds."""
    job = await scene.job(await scene.client())
    await job.initial_cycle()
    scene.ahead[0] = LIFE_S + 10.0
    before = len(job.exchanges)

    entry = await job.provision_on_demand(next(iter(job.directory.people)))

    assert (entry.status, job.quarantine) == ("Skipped", None)
    later = [(exchange.operation, exchange.status) for exchange in list(job.exchanges)[before:]]
    assert later == [("probe_users", 401), ("token", 200), ("probe_users", 200), ("match_hit", 200)]


async def test_a_secret_that_was_revoked_stops_the_job_at_once(scene: Scene) -> None:
    """Microsoft, quarantine status: invalid credentials quarantine immediately; nothing more is sent, one mail is."""
    credentials = await scene.client()
    job = await scene.job(credentials)
    await job.initial_cycle()
    (known,) = await scene.scim.keys.listed(ALPHA, "client")
    await scene.scim.keys.revoke(ALPHA, known.id, actor="test")
    scene.ahead[0] = 3.0 * LIFE_S
    job.directory.set(next(iter(job.directory.people)), job_title="Lead")

    report = await job.incremental_cycle()

    assert report.quarantined == "EncounteredQuarantineException"
    assert [entry.error_code for entry in report.entries] == [CREDENTIALS_UNAVAILABLE]
    assert operations(job)[-2:] == ["read", "token"]
    assert len(job.notices) == 1


async def test_wrong_client_credentials_fail_the_connection_test_by_their_own_name(scene: Scene) -> None:
    """Recorded: CredentialValidationUnavailable, before any SCIM request; the admin reads what the endpoint said."""
    wrong = ClientCredentials(token_endpoint=scene.token_endpoint, client_id=ALPHA, client_secret="no such secret")
    job = await scene.job(wrong)

    test = await job.test_connection()

    assert (test.ok, test.error_code) == (False, CREDENTIALS_UNAVAILABLE)
    assert "invalid_client" in test.response_body
    assert operations(job) == ["token"]


async def test_a_token_endpoint_that_is_away_fails_objects_but_is_no_quarantine(scene: Scene) -> None:
    """Only a refusal is about the credentials; an outage is tried again in the next cycle."""
    away = ClientCredentials(token_endpoint="http://127.0.0.1:9/token", client_id=ALPHA, client_secret="secret")
    job = await scene.job(away, provision_groups=False)

    report = await job.initial_cycle()

    assert (report.failed, report.quarantined, report.escrowed, report.state) == (3, "", 3, "EntryLevelErrors")


@pytest.mark.parametrize("version", ["1.0", "2.0"])
async def test_a_token_signed_by_entra_opens_a_target_whose_secret_was_left_blank(scene: Scene, version: Any) -> None:
    """Entra page 2: RS256, the tenant's issuer of that version, the audience of all custom applications; keys may change."""
    scene.issuer.version = version
    job = await scene.job(BlankToken(issuer=scene.issuer))

    assert (await job.test_connection()).ok
    assert arrived(await job.initial_cycle()) == (3, 1, 3, "")
    assert "eyJ" not in str(list(job.exchanges))

    scene.issuer.roll_keys()
    scene.ahead[0] = REFETCH_S + 1.0  # so often at most the gateway asks for keys it does not know
    assert (await job.test_connection()).ok


async def test_a_token_of_another_tenant_opens_nothing(scene: Scene) -> None:
    """SCIMReferenceCode#100: the audience is shared by all tenants, so the tenant is the lock."""
    scene.issuer.tenant = "77aa0c1e-94c5-4f59-8a1b-5a4f2f2b0d11"
    job = await scene.job(BlankToken(issuer=scene.issuer))

    test = await job.test_connection()
    report = await job.initial_cycle()

    assert (test.status_code, test.error_code) == (401, "InvalidCredentials")
    assert report.quarantined == "EncounteredQuarantineException"


async def test_an_assertion_signed_by_entra_buys_a_token(scene: Scene) -> None:
    """Workload identity federation: no shared secret; the assertion is not kept in any record."""
    credentials = FederatedCredentials(
        token_endpoint=scene.token_endpoint, client_id=ALPHA, issuer=scene.issuer, app_id=WORKLOAD, object_id=SUBJECT
    )
    job = await scene.job(credentials)

    assert (await job.test_connection()).ok
    assert arrived(await job.initial_cycle()) == (3, 1, 3, "")
    assert "eyJ" not in str(list(job.exchanges))


async def test_a_secret_token_is_never_renewed_and_never_recorded(scene: Scene) -> None:
    """There is only one: a 401 ends the run after one request."""
    right = await scene.job(SecretToken(scene.scim.tokens[ALPHA]))
    await right.initial_cycle()
    assert scene.scim.tokens[ALPHA] not in str(list(right.exchanges))
    wrong = await scene.job(SecretToken("wrong"))
    await wrong.initial_cycle()
    assert [exchange.status for exchange in wrong.exchanges] == [401]
    assert "wrong" not in repr(SecretToken("wrong"))


def test_credentials_are_form_encoded_in_the_basic_header() -> None:
    """RFC 6749 section 2.3.1: each part by itself, so that a colon in either does no harm."""
    assert basic("client-1", "s3cret") == "Basic Y2xpZW50LTE6czNjcmV0"
    assert base64.b64decode(basic("a:b", "c d").removeprefix("Basic ")) == b"a%3Ab:c+d"
