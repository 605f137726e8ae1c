"""Client credentials: the token endpoint in every documented form, what its tokens open, when they end (S2, RFC 6749, 7523)."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import structlog
from msgspec import Struct
from msgspec.structs import replace

from gateway.keys import FRESH_S, KeyProblem, Keys, new_key_text
from gateway.oauth import JWT_BEARER
from gateway.refusals import RefusedSignIns
from gateway.store import Store
from schemas.config import OAuthSignIn, TargetSettings
from tests.gateway.local_issuer import OBJECT, WORKLOAD, LocalIssuer, issuing
from tests.gateway.scim_listener import ALPHA, BETA, Listener, listening

FORM = "application/x-www-form-urlencoded"
GRANT = {"grant_type": "client_credentials"}
REVOKED_WITHIN_S = 5.0


class Said(Struct):
    """An answer of the token endpoint."""

    status: int
    headers: dict[str, str]
    body: Any


class Scene(Struct):
    """A listener with an issuer beside it; ALPHA takes everything, BETA client credentials only."""

    scim: Listener
    issuer: LocalIssuer
    targets: dict[str, TargetSettings]
    refused: RefusedSignIns
    ahead: list[float]

    async def secret(self, target: str = ALPHA) -> str:
        return (await self.scim.keys.issue(target, actor="test", kind="client")).text

    async def ask(
        self,
        fields: dict[str, str] | str | None = None,
        *,
        target: str = ALPHA,
        basic: tuple[str, str] | str | None = None,
        method: str = "POST",
        media_type: str | None = FORM,
        query: str = "",
    ) -> Said:
        """One request to the token endpoint; a Basic header of a pair, or as it is."""
        headers = {} if media_type is None else {"Content-Type": media_type}
        if basic is not None:
            pair = ":".join(quote(part, safe="") for part in basic) if isinstance(basic, tuple) else None
            headers["Authorization"] = (
                f"Basic {base64.b64encode(pair.encode()).decode()}" if pair is not None else str(basic)
            )
        data = fields if isinstance(fields, str) else urlencode(fields or {})
        skip = ("Content-Type",) if media_type is None else ()
        url = f"{self.scim.origin}/oauth2/{target}/token{query}"
        async with self.scim.session.request(
            method, url, data=data.encode(), headers=headers, skip_auto_headers=skip
        ) as answer:
            body = await answer.json() if answer.content_type == "application/json" else await answer.text()
            return Said(answer.status, {name.lower(): value for name, value in answer.headers.items()}, body)

    async def token(self, secret: str, target: str = ALPHA) -> str:
        said = await self.ask(GRANT, basic=(target, secret), target=target)
        assert said.status == 200, said.body
        return str(said.body["access_token"])

    async def opens(self, token: str, target: str = ALPHA) -> bool:
        status = (await self.scim.get("/Users", target=target, token=token)).status
        assert status in (200, 401), status
        return status == 200


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with issuing() as issuer:
        oauth = OAuthSignIn(federation=issuer.federation())
        targets = {
            ALPHA: TargetSettings(
                connector="shelf", auth=("key", "entra", "oauth"), entra=issuer.sign_in(), oauth=oauth
            ),
            BETA: TargetSettings(connector="shelf", auth=("oauth",), oauth=OAuthSignIn(token_life_s=21_600)),
            "gamma": TargetSettings(connector="shelf"),
        }
        refused = RefusedSignIns(time.time)
        ahead = [0.0]
        async with listening(tmp_path, targets=targets, refused=refused, now=lambda: time.time() + ahead[0]) as scim:
            yield Scene(scim, issuer, targets, refused, ahead)


# ---- a token, in every form


async def test_the_request_real_entra_sends_is_answered_with_a_token_that_opens_the_target(scene: Scene) -> None:
    """Entra page 2 [CAP]: form-encoded, credentials in Authorization: Basic; RFC 6749 sections 4.4.2 and 5.1."""
    said = await scene.ask(GRANT, basic=(ALPHA, await scene.secret()))

    assert said.status == 200
    assert sorted(said.body) == ["access_token", "expires_in", "token_type"]
    assert (said.body["token_type"], said.body["expires_in"]) == ("Bearer", 3600)
    assert said.headers["cache-control"] == "no-store"
    assert said.headers["pragma"] == "no-cache"
    assert said.headers["content-type"] == "application/json"
    assert await scene.opens(said.body["access_token"])


async def test_both_places_for_the_credentials_and_every_harmless_spelling_are_taken(scene: Scene) -> None:
    """Entra page 2: token endpoints that read only one place failed; RFC 6749 section 2.3.1, RFC 9110 sections 8.3 and 11.1."""
    secret = await scene.secret()
    both = {"client_id": ALPHA, "client_secret": secret}
    plain = base64.b64encode(f"{ALPHA}:{secret}".encode()).decode()
    for said in (
        await scene.ask({**GRANT, **both}),
        await scene.ask({**GRANT, **both, "scope": "scim", "resource": "x"}),
        await scene.ask({**both, **GRANT}, media_type=f"{FORM}; charset=utf-8"),
        await scene.ask({**GRANT, **both}, media_type=FORM.title()),
        await scene.ask(GRANT, basic=f"basic {plain}"),
        await scene.ask(GRANT, basic=f"BASIC  {plain}"),
        await scene.ask({**GRANT, "client_id": ALPHA}, basic=(ALPHA, secret)),
        await scene.ask({**GRANT, **both}, basic=(ALPHA, secret)),
        await scene.ask({**GRANT, "client_id": "", "client_secret": ""}, basic=(ALPHA, secret)),
        await scene.ask({**GRANT, **both}, query="?api-version=1"),
    ):
        assert said.status == 200, said.body
        assert await scene.opens(said.body["access_token"])


async def test_two_secrets_live_at_once_and_a_third_is_refused(scene: Scene) -> None:
    """S2: several secrets for a change without a gap; keys of the target do not count."""
    first, second = await scene.secret(), await scene.secret()

    assert await scene.opens(await scene.token(first))
    assert await scene.opens(await scene.token(second))
    with pytest.raises(KeyProblem, match="2 live client secrets"):
        await scene.secret()


async def test_a_token_lives_as_long_as_is_set_and_not_longer(scene: Scene) -> None:
    """S2: 1 to 6 hours, per target."""
    token = await scene.token(await scene.secret(BETA), BETA)
    assert (await scene.ask(GRANT, basic=(BETA, new_key_text("pgs")), target=BETA)).status == 401
    scene.ahead[0] = 21_590.0
    assert await scene.opens(token, BETA)

    scene.ahead[0] = 21_601.0

    assert not await scene.opens(token, BETA)


async def test_a_token_is_for_one_target_only(scene: Scene) -> None:
    """S2, I11: one app; a secret, too, belongs to one."""
    secret = await scene.secret()
    token = await scene.token(secret)

    assert not await scene.opens(token, BETA)
    assert not await scene.opens(token, "gamma")
    assert (await scene.ask(GRANT, basic=(BETA, secret), target=BETA)).status == 401
    assert (await scene.ask(GRANT, basic=(ALPHA, secret), target=BETA)).status == 401


async def test_a_revoked_secret_takes_its_tokens_along_and_no_others(scene: Scene) -> None:
    """S1, S2: revocation within 5 s; here at once, because the same process revoked it."""
    first, second = await scene.secret(), await scene.secret()
    tokens = [await scene.token(first), await scene.token(second)]

    await scene.scim.keys.revoke(ALPHA, first.split("_")[1], actor="test")

    assert [await scene.opens(token) for token in tokens] == [False, True]
    assert (await scene.ask(GRANT, basic=(ALPHA, first))).status == 401


async def test_a_secret_revoked_at_another_gateway_ends_its_tokens_within_five_seconds(scene: Scene) -> None:
    """S1: what another process of the installation revokes counts here after FRESH_S at the latest."""
    assert FRESH_S < REVOKED_WITHIN_S
    secret = await scene.secret()
    token = await scene.token(secret)
    assert await scene.opens(token)
    elsewhere = Keys(scene.scim.store, bytes(range(32)), now=time.time, clock=time.monotonic)
    await elsewhere.revoke(ALPHA, secret.split("_")[1], actor="test")

    started = time.monotonic()
    async with asyncio.timeout(REVOKED_WITHIN_S):
        while await scene.opens(token):  # noqa: ASYNC110 what another process did has no event here
            await asyncio.sleep(0.05)
    assert time.monotonic() - started < REVOKED_WITHIN_S


async def test_a_key_is_no_secret_a_secret_no_key_and_neither_is_a_token(scene: Scene) -> None:
    """Each opens one door: a leaked client secret alone does not reach SCIM."""
    secret = await scene.secret()
    key = scene.scim.tokens[ALPHA]

    assert not await scene.opens(secret)
    assert (await scene.ask(GRANT, basic=(ALPHA, key))).status == 401
    token = await scene.token(secret)
    assert (await scene.ask(GRANT, basic=(ALPHA, token))).status == 401
    assert not await scene.opens(token.removeprefix("pgt_"))


async def test_tokens_end_when_the_target_takes_none_any_more(scene: Scene) -> None:
    """Design 8: auth is a setting that is swapped in without a restart."""
    token = await scene.token(await scene.secret())
    scene.targets[ALPHA] = replace(scene.targets[ALPHA], auth=("key",))

    assert not await scene.opens(token)
    assert await scene.opens(scene.scim.tokens[ALPHA])


async def test_the_last_use_of_a_secret_is_kept(scene: Scene) -> None:
    """S1: last use kept, so that an operator sees which of two may go."""
    secret = await scene.secret()
    await scene.token(secret)

    async with asyncio.timeout(5):
        while True:
            rows = await scene.scim.keys.listed(ALPHA, "client")
            if rows[0].last_used_at is not None:
                break
            await asyncio.sleep(0.01)
    assert [row.id for row in rows] == [secret.split("_")[1]]


# ---- refusals


async def test_who_is_no_client_gets_the_same_401_whatever_the_reason(scene: Scene) -> None:
    """S4, RFC 6749 section 5.2: invalid_client with WWW-Authenticate; only the id differs, and it leads to the reason."""
    secret = await scene.secret()
    revoked = await scene.secret()
    await scene.scim.keys.revoke(ALPHA, revoked.split("_")[1], actor="test")
    asked: list[tuple[str, Said]] = [
        ("wrong", await scene.ask(GRANT, basic=(ALPHA, new_key_text("pgs")))),
        ("malformed", await scene.ask(GRANT, basic=(ALPHA, "hunter2"))),
        ("malformed", await scene.ask(GRANT, basic=(ALPHA, secret[:-1]))),
        ("revoked", await scene.ask(GRANT, basic=(ALPHA, revoked))),
        ("client_id", await scene.ask(GRANT, basic=("somebody", secret))),
        ("client_id", await scene.ask({**GRANT, "client_secret": secret})),
        ("no_secret", await scene.ask(GRANT)),
        ("no_secret", await scene.ask({**GRANT, "client_id": ALPHA})),
        ("no_secret", await scene.ask(GRANT, basic=(ALPHA, ""))),
        ("unknown_target", await scene.ask(GRANT, basic=("nobody", secret), target="nobody")),
        ("way_not_allowed", await scene.ask(GRANT, basic=("gamma", secret), target="gamma")),
        ("wrong", await scene.ask(GRANT, basic=(BETA, secret), target=BETA)),
        (
            "no_federation",
            await scene.ask(
                {**GRANT, "client_assertion_type": JWT_BEARER, "client_assertion": scene.issuer.assertion()},
                target=BETA,
            ),
        ),
    ]

    bodies, headers = set(), set()
    for cause, said in asked:
        assert said.status == 401, (cause, said.body)
        description = said.body["error_description"]
        refusal_id = description.rstrip(".").rsplit(" ", 1)[1]
        found = scene.refused.find(refusal_id)
        assert found is not None
        assert (found.cause, found.place) == (cause, "token")
        assert any(check.verdict == "failed" for check in found.checks)
        assert not any(text in str(found) for text in (secret, revoked, "hunter2", "somebody"))
        bodies.add((said.body["error"], description.replace(refusal_id, "ID")))
        headers.add(tuple(sorted((k, v) for k, v in said.headers.items() if k not in ("date", "content-length"))))
    assert len(bodies) == 1
    assert len(headers) == 1
    assert next(iter(bodies))[0] == "invalid_client"
    assert ("www-authenticate", 'Basic realm="scim"') in next(iter(headers))


async def test_what_is_wrong_with_a_request_is_told_in_the_rfcs_words(scene: Scene) -> None:
    """RFC 6749 section 5.2; nothing of what was sent is repeated, and nothing depends on the target."""
    secret = await scene.secret()
    good = {**GRANT, "client_id": ALPHA, "client_secret": secret}
    assertion = {"client_assertion_type": JWT_BEARER, "client_assertion": scene.issuer.assertion()}
    encoded = urlencode(good)
    basic = (ALPHA, secret)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("invalid_request", {"fields": {"client_id": ALPHA, "client_secret": secret}}),
        ("invalid_request", {"fields": {**good, "grant_type": ""}}),
        ("unsupported_grant_type", {"fields": {**good, "grant_type": "password"}}),
        ("unsupported_grant_type", {"fields": {**good, "grant_type": "authorization_code"}}),
        ("unsupported_grant_type", {"fields": {**good, "grant_type": "CLIENT_CREDENTIALS"}}),
        ("invalid_request", {"fields": encoded, "media_type": "application/json"}),
        ("invalid_request", {"fields": encoded, "media_type": "multipart/form-data"}),
        ("invalid_request", {"fields": encoded, "media_type": None}),
        ("invalid_request", {"fields": '{"grant_type":"client_credentials"}'}),
        ("invalid_request", {"fields": f"{encoded}&grant_type=client_credentials"}),
        ("invalid_request", {"fields": f"{encoded}&client_secret={secret}"}),
        ("invalid_request", {"fields": "&".join(f"a{number}=b" for number in range(50))}),
        ("invalid_request", {"fields": "grant_type=%ff"}),
        ("invalid_request", {"fields": "grant_type=ü"}),
        ("invalid_request", {"fields": ""}),
        ("invalid_request", {"fields": good, "query": f"?client_secret={secret}"}),
        ("invalid_request", {"fields": {}, "query": f"?{encoded}"}),
        ("invalid_request", {"fields": GRANT, "basic": "Bearer abc"}),
        ("invalid_request", {"fields": GRANT, "basic": "Basic"}),
        ("invalid_request", {"fields": GRANT, "basic": "Basic %%%"}),
        ("invalid_request", {"fields": GRANT, "basic": f"Basic {base64.b64encode(b'no colon').decode()}"}),
        ("invalid_request", {"fields": GRANT, "basic": f"Basic {base64.b64encode(bytes([255, 58, 255])).decode()}"}),
        ("invalid_request", {"fields": {**good, "client_secret": "other"}, "basic": basic}),
        ("invalid_request", {"fields": {**good, "client_id": "other"}, "basic": basic}),
        ("invalid_request", {"fields": {**GRANT, **assertion}, "basic": basic}),
        ("invalid_request", {"fields": {**good, **assertion}}),
        ("invalid_request", {"fields": {**GRANT, "client_assertion": "a.b.c"}}),
        ("invalid_request", {"fields": {**GRANT, "client_assertion_type": JWT_BEARER}}),
        ("invalid_request", {"fields": {**GRANT, **assertion, "client_assertion_type": "urn:saml2"}}),
    ]
    for error, options in cases:
        for target in (ALPHA, "nobody"):
            said = await scene.ask(**options, target=target)
            assert (said.status, said.body["error"]) == (400, error), (options, said.body)
            assert said.headers["cache-control"] == "no-store"
            assert secret not in str(said.body)
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        said = await scene.ask(good, method=method)
        assert (said.status, said.headers["allow"]) == (405, "POST")


async def test_a_body_beyond_its_bound_is_refused_before_it_is_read(scene: Scene) -> None:
    """S7: bounds on bodies hold at the token endpoint too."""
    said = await scene.ask("grant_type=" + "a" * 20_000)

    assert said.status == 413


async def test_neither_secrets_nor_tokens_reach_the_log(scene: Scene) -> None:
    """S11: ids only; a target that is not configured is not named."""
    secret = await scene.secret()
    with structlog.testing.capture_logs() as lines:
        token = await scene.token(secret)
        await scene.opens(token)
        await scene.opens(token, BETA)
        await scene.ask(GRANT, basic=(ALPHA, secret[:-2]))
        await scene.ask(GRANT, basic=("invented", secret), target="invented")
        await scene.ask({**GRANT, "client_assertion_type": JWT_BEARER, "client_assertion": scene.issuer.assertion()})

    everything = str(lines)
    assert secret.split("_")[2] not in everything
    assert token.split(".")[1] not in everything
    assert "invented" not in everything
    assert {line["by"] for line in lines if line["event"] == "oauth.token_issued"} == {
        secret.split("_")[1],
        "assertion",
    }


# ---- workload identity federation


def federated(assertion: str, **more: str) -> dict[str, str]:
    return {**GRANT, "client_assertion_type": JWT_BEARER, "client_assertion": assertion, **more}


async def test_an_assertion_buys_a_token_once(scene: Scene) -> None:
    """RFC 7523 section 2.2; Entra page 2: replay is refused by `uti`."""
    assertion = scene.issuer.assertion()
    for client_id in (ALPHA, WORKLOAD, ""):
        said = await scene.ask(federated(scene.issuer.assertion(), client_id=client_id, scope="scim"))
        assert said.status == 200, said.body
        assert await scene.opens(said.body["access_token"])
    assert (await scene.ask(federated(assertion))).status == 200

    again = await scene.ask(federated(assertion))

    assert again.status == 401
    refused = scene.refused.find(again.body["error_description"].rstrip(".").rsplit(" ", 1)[1])
    assert refused is not None
    assert refused.cause == "replay"


async def test_an_assertion_without_uti_counts_once_too(scene: Scene) -> None:
    """Microsoft's own example of an assertion has no `uti`: then what it says is remembered."""
    assertion = scene.issuer.assertion("uti")

    statuses = [(await scene.ask(federated(assertion))).status for _ in range(2)]

    assert statuses == [200, 401]
    assert (await scene.ask(federated(scene.issuer.assertion("uti", rh="1")))).status == 200


async def test_of_eight_uses_of_one_assertion_at_once_one_succeeds(scene: Scene) -> None:
    """A race must not buy two tokens; the store decides, for all gateways."""
    assertion = scene.issuer.assertion()

    said = await asyncio.gather(*(scene.ask(federated(assertion)) for _ in range(8)))

    assert sorted(answer.status for answer in said) == [200] + [401] * 7


async def test_used_assertions_are_remembered_over_a_restart_and_forgotten_when_they_ended(tmp_path: Path) -> None:
    """In the store, not in memory; a row goes once the assertion could not be used anyway."""
    for number, expected in enumerate((True, False)):
        store = Store.open(tmp_path / "store.sqlite3")
        assert await store.run(lambda ledger: ledger.use_assertion("a", 2_000.0, 1_000.0)) is expected, number
        await store.close()
    store = Store.open(tmp_path / "store.sqlite3")
    assert await store.run(lambda ledger: ledger.use_assertion("b", 4_000.0, 3_000.0))
    assert await store.run(lambda ledger: ledger.use_assertion("a", 4_000.0, 3_000.0))
    await store.close()


async def test_a_target_may_allow_an_assertion_to_be_used_again(scene: Scene) -> None:
    """A setting, for the case that Entra keeps its assertions longer than our tokens live."""
    oauth = OAuthSignIn(federation=scene.issuer.federation(replay="allow"))
    scene.targets[ALPHA] = replace(scene.targets[ALPHA], oauth=oauth)
    assertion = scene.issuer.assertion()

    assert [(await scene.ask(federated(assertion))).status for _ in range(3)] == [200] * 3


async def test_a_federated_token_ends_with_the_settings_it_was_bought_under(scene: Scene) -> None:
    """There is no secret to revoke: taking the trust away takes the tokens away."""
    token = (await scene.ask(federated(scene.issuer.assertion()))).body["access_token"]
    assert await scene.opens(token)
    oauth = OAuthSignIn(federation=scene.issuer.federation(subjects=(OBJECT,)))
    scene.targets[ALPHA] = replace(scene.targets[ALPHA], oauth=oauth)
    assert not await scene.opens(token)

    scene.targets[ALPHA] = replace(scene.targets[ALPHA], oauth=OAuthSignIn())

    assert not await scene.opens(token)


async def test_a_bad_assertion_is_explained_to_the_operator_only(scene: Scene) -> None:
    """S4; the checks of the token are those of the explanation."""
    for cause, said in (
        ("sub", await scene.ask(federated(scene.issuer.assertion(sub=OBJECT)))),
        ("exp", await scene.ask(federated(scene.issuer.assertion(exp=int(time.time()) - 400)))),
        ("client_id", await scene.ask(federated(scene.issuer.assertion(), client_id="other"))),
        ("form", await scene.ask(federated("x"))),
        ("aud", await scene.ask(federated(scene.issuer.token("2.0")))),
    ):
        assert said.status == 401
        refused = scene.refused.find(said.body["error_description"].rstrip(".").rsplit(" ", 1)[1])
        assert refused is not None
        assert refused.cause == cause


async def test_an_assertion_that_cannot_be_verified_now_is_no_refusal(scene: Scene) -> None:
    """Entra quarantines a job at a 401; while the key server is down it is asked to come again."""
    scene.issuer.down = True

    said = await scene.ask(federated(scene.issuer.assertion()))

    assert (said.status, said.body["error"]) == (503, "temporarily_unavailable")
    assert int(said.headers["retry-after"]) > 0
    answer = await scene.scim.get("/Users", token=scene.issuer.token())
    assert (answer.status, answer.body["status"]) == (503, "503")
    assert int(answer.headers["retry-after"]) > 0
