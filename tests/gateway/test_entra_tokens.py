"""Tokens that Entra has signed: which are taken, where their keys come from, what happens when keys change or cannot be had (S3).

Every key, signature and HTTP answer here is real; only the clock of the key sets is moved by hand.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.entra_keys import (
    KEPT_S,
    REFETCH_S,
    REFRESH_S,
    RETRY_S,
    KeySets,
    KeysUnavailable,
    fetch_over_http,
    key_place,
)
from gateway.entra_tokens import LEEWAY_S, VERDICTS_MAX, EntraTokens, wanted_assertion, wanted_token
from schemas.config import CLOUDS, EntraSignIn, parse
from schemas.errors import ConfigurationError
from tests.gateway.local_issuer import (
    AUDIENCE,
    CALLER,
    OBJECT,
    OTHER_TENANT,
    TENANT,
    WORKLOAD,
    LocalIssuer,
    forge,
    issuing,
    jwk,
    rsa_key,
    signer,
)


class Time:
    """Wall time and monotonic time, moved by hand from now on."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
async def issuer() -> AsyncIterator[LocalIssuer]:
    async with issuing() as running:
        yield running


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def tokens(clock: Time) -> EntraTokens:
    return EntraTokens(KeySets(clock=clock.now), clock.now)


async def cause(tokens: EntraTokens, issuer: LocalIssuer, token: str, **settings: Any) -> str | None:
    return (await tokens.check(token, wanted_token(issuer.sign_in(**settings)))).cause


# ---- what is taken


async def test_tokens_of_both_versions_are_taken_and_each_is_verified_with_its_own_keys(
    tokens: EntraTokens, issuer: LocalIssuer
) -> None:
    """Entra page 2: v1.0 and v2.0 differ in issuer, caller claim, metadata and key set."""
    assert await cause(tokens, issuer, issuer.token("1.0")) is None
    assert await cause(tokens, issuer, issuer.token("2.0")) is None

    paths = [path.replace(TENANT, "T") for path in issuer.asked]
    assert paths == [
        "/T/.well-known/openid-configuration",
        "/T/discovery/keys",
        "/T/v2.0/.well-known/openid-configuration",
        "/T/discovery/v2.0/keys",
    ]


@pytest.mark.parametrize(
    ("version", "more"),
    [
        ("1.0", {"roles": ["User.ReadWrite.All"]}),
        ("1.0", {"idtyp": "app"}),
        ("1.0", {"appidacr": "1"}),
        ("1.0", {"rh": "0.AXkA", "aio": "E2Zg", "xms_tcdt": 1_600_000_000, "wids": []}),
        ("1.0", {"azp": CALLER}),
        ("2.0", {"appid": CALLER}),
        ("2.0", {"idtyp": "app", "roles": []}),
        ("2.0", {"sub": "another-subject"}),
    ],
)
async def test_what_else_an_application_token_says_does_not_matter(
    tokens: EntraTokens, issuer: LocalIssuer, version: str, more: dict[str, Any]
) -> None:
    """Microsoft adds claims without notice; only what is pinned is compared."""
    assert await cause(tokens, issuer, issuer.token(version, **more)) is None


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"exp": -LEEWAY_S + 30}, None),
        ({"exp": -LEEWAY_S - 30}, "exp"),
        ({"nbf": LEEWAY_S - 30}, None),
        ({"nbf": LEEWAY_S + 30}, "nbf"),
        ({"iat": LEEWAY_S - 30}, None),
        ({"iat": LEEWAY_S + 30}, "iat"),
    ],
)
async def test_clocks_may_be_five_minutes_apart_and_no_more(
    tokens: EntraTokens, issuer: LocalIssuer, more: dict[str, float], expected: str | None
) -> None:
    """S3: times with five minutes of grace."""
    claims = {name: int(time.time() + offset) for name, offset in more.items()}

    assert await cause(tokens, issuer, issuer.token(**claims)) == expected


async def test_ids_in_the_configuration_may_be_in_capitals(tokens: EntraTokens, issuer: LocalIssuer) -> None:
    """Portals show ids in either case; tokens carry them in small letters."""
    settings = {"tenant": TENANT.upper(), "callers": (CALLER.upper(),), "object_ids": (OBJECT.upper(),)}

    assert await cause(tokens, issuer, issuer.token(), **settings) is None


async def test_what_is_pinned_is_compared(tokens: EntraTokens, issuer: LocalIssuer) -> None:
    """S3: audience list, pinned application and object id; versions can be switched off one by one."""
    older = "00000002-0000-0000-c000-000000000000"
    assert await cause(tokens, issuer, issuer.token(aud=older)) == "aud"
    assert await cause(tokens, issuer, issuer.token(aud=older), audiences=(AUDIENCE, older)) is None
    assert await cause(tokens, issuer, issuer.token(), callers=(WORKLOAD,)) == "caller"
    assert await cause(tokens, issuer, issuer.token(), object_ids=(OBJECT,)) is None
    assert await cause(tokens, issuer, issuer.token(), object_ids=(WORKLOAD,)) == "oid"
    assert await cause(tokens, issuer, issuer.token("2.0"), versions=("1.0",)) == "iss"
    assert await cause(tokens, issuer, issuer.token("1.0"), versions=("2.0",)) == "iss"


async def test_the_tenant_is_the_lock(tokens: EntraTokens, issuer: LocalIssuer) -> None:
    """Vendor requirement M1, SCIMReferenceCode issue 100: all tenants share the audience; another one's genuine token fails."""
    assert await cause(tokens, issuer, issuer.token(tenant=OTHER_TENANT)) == "iss"
    assert await cause(tokens, issuer, issuer.token(tid=OTHER_TENANT)) == "tid"


async def test_a_refusal_is_explained_check_by_check_and_never_with_the_token(
    tokens: EntraTokens, issuer: LocalIssuer
) -> None:
    """Issue 3, item 5: expected, received and verdict of every check; names of people stay out."""
    token = issuer.token(aud="00000003-0000-0000-c000-000000000000", upn="ada@contoso.example", tid=OTHER_TENANT)

    verdict, _ = await tokens.examine(token, wanted_token(issuer.sign_in()))

    by_name = {check.name: check for check in verdict.checks}
    assert by_name["iss"].verdict == "passed"
    assert (by_name["aud"].expected, by_name["aud"].received) == (AUDIENCE, "00000003-0000-0000-c000-000000000000")
    assert (by_name["tid"].expected, by_name["tid"].received) == (TENANT, OTHER_TENANT)
    assert by_name["app_only"].received == "upn"
    assert by_name["signature"].verdict == "not checked"
    everything = str(verdict)
    assert "ada" not in everything
    assert not any(part in everything for part in token.split("."))


# ---- keys


async def test_a_new_key_is_taken_as_soon_as_it_signs(tokens: EntraTokens, issuer: LocalIssuer, clock: Time) -> None:
    """Entra page 2: keys may change at any time; refetched once for an unknown key id."""
    assert await cause(tokens, issuer, issuer.token()) is None
    clock.ahead_s += REFETCH_S
    issuer.keys["1.0"] = {"new": rsa_key(4), **issuer.keys["1.0"]}

    assert await cause(tokens, issuer, issuer.token()) is None
    assert issuer.fetches() == 2


async def test_a_flood_of_unknown_key_ids_makes_one_fetch_a_minute(
    tokens: EntraTokens, issuer: LocalIssuer, clock: Time
) -> None:
    """Stack notes 7: at most once a minute, however many ask, at once or one after the other."""
    assert await cause(tokens, issuer, issuer.token()) is None
    assert issuer.fetches() == 1
    for minute in range(1, 4):
        clock.ahead_s += REFETCH_S
        forged = [issuer.sign(issuer.claims(), kid=f"invented-{minute}-{number}") for number in range(100)]
        causes = await asyncio.gather(*(cause(tokens, issuer, token) for token in forged))
        causes += [await cause(tokens, issuer, token) for token in forged]
        assert set(causes) == {"key"}
        assert issuer.fetches() == 1 + minute


async def test_a_token_that_does_not_fit_makes_nobody_fetch_keys(tokens: EntraTokens, issuer: LocalIssuer) -> None:
    """A stranger who does not know the tenant has no influence on whom this gateway calls."""
    for token in (
        issuer.token(tenant=OTHER_TENANT),
        issuer.token(aud="x"),
        issuer.sign(issuer.claims(), alg="none"),
        issuer.sign(issuer.claims(), jku=f"{issuer.url}/evil"),
    ):
        assert await cause(tokens, issuer, token) is not None

    assert issuer.asked == []


async def test_while_the_key_server_is_down_the_old_keys_go_on_and_an_unknown_one_is_undecided(
    tokens: EntraTokens, issuer: LocalIssuer, clock: Time
) -> None:
    """Entra page 2 [WIF]: keep the cached set; a 401 would quarantine the job, so what cannot be known is no 401."""
    assert await cause(tokens, issuer, issuer.token()) is None
    issuer.down = True
    clock.ahead_s += REFRESH_S + 1

    assert await cause(tokens, issuer, issuer.token(exp=int(clock.now()) + 100)) is None
    new = issuer.sign(issuer.claims(exp=int(clock.now()) + 100), kid="new")
    with pytest.raises(KeysUnavailable):
        await tokens.check(new, wanted_token(issuer.sign_in()))

    issuer.down = False
    issuer.keys["1.0"] = {"new": issuer.signs("1.0")[1]}
    clock.ahead_s += REFETCH_S
    assert await cause(tokens, issuer, new) is None


async def test_without_any_keys_nobody_is_let_in_and_the_server_is_asked_again_soon(
    tokens: EntraTokens, issuer: LocalIssuer, clock: Time
) -> None:
    """A gateway that starts during an outage decides nothing, and recovers by itself."""
    issuer.down = True
    wanted = wanted_token(issuer.sign_in())
    for _ in range(20):
        with pytest.raises(KeysUnavailable):
            await tokens.check(issuer.token(), wanted)
    assert issuer.fetches() == 1
    issuer.down = False
    clock.ahead_s += RETRY_S

    assert await cause(tokens, issuer, issuer.token()) is None


async def test_keys_nobody_vouched_for_for_a_week_are_believed_no_more(
    tokens: EntraTokens, issuer: LocalIssuer, clock: Time
) -> None:
    """Every wait has a bound: a withdrawn key must not live on because its server is kept away."""
    assert await cause(tokens, issuer, issuer.token()) is None
    issuer.down = True
    clock.ahead_s += KEPT_S + 1

    now = int(clock.now())
    fresh = issuer.token(iat=now, nbf=now, exp=now + 100)
    with pytest.raises(KeysUnavailable):
        await tokens.check(fresh, wanted_token(issuer.sign_in()))


async def test_a_withdrawn_key_goes_and_takes_remembered_tokens_along(
    tokens: EntraTokens, issuer: LocalIssuer, clock: Time
) -> None:
    """Keys are fetched anew now and then; what was accepted under the old set is looked at again."""
    token = issuer.token(exp=int(time.time()) + 10 * int(REFRESH_S))
    assert await cause(tokens, issuer, token) is None
    issuer.keys["1.0"] = {"other": rsa_key(5)}
    clock.ahead_s += REFRESH_S + 1
    later = int(clock.now())
    assert await cause(tokens, issuer, issuer.token(iat=later, nbf=later, exp=later + 100)) is None

    assert await cause(tokens, issuer, token) == "key"


@pytest.mark.parametrize(
    "wrong",
    [
        {"issuer": "https://sts.windows.net/another/"},
        {"issuer": None},
        {"jwks_uri": "https://keys.evil.example/keys"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": 5},
        {"jwks_uri": "http://user@127.0.0.1/keys"},
        {"jwks_uri": "//[bad"},
    ],
)
async def test_metadata_that_points_elsewhere_is_not_believed(
    tokens: EntraTokens, issuer: LocalIssuer, wrong: dict[str, Any]
) -> None:
    """S3: keys only from the fixed metadata of that cloud; the issuer there has to be the expected one."""
    issuer.metadata = wrong

    with pytest.raises(KeysUnavailable):
        await tokens.check(issuer.token(), wanted_token(issuer.sign_in()))
    assert len(issuer.asked) == 1


async def test_keys_that_are_weak_or_for_something_else_are_left_out_of_a_set(
    tokens: EntraTokens, issuer: LocalIssuer
) -> None:
    """RFC 7517 section 4: kty, use and alg; a modulus below 2,048 bits is no key (Entra page 2, transport)."""
    odd = {
        "weak": jwk("weak", rsa_key(6, 1024)),
        "enc": jwk("enc", rsa_key(7), use="enc"),
        "pss": jwk("pss", rsa_key(7), alg="PS256"),
        "oct": {"kty": "oct", "kid": "oct", "k": "c2VjcmV0"},
        "noid": {name: value for name, value in jwk("x", rsa_key(7)).items() if name != "kid"},
        "bad": {**jwk("bad", rsa_key(7)), "n": "%%%"},
        "foreign": jwk("foreign", rsa_key(7), issuer=f"{issuer.url}/sts/{OTHER_TENANT}/"),
    }
    issuer.more = [*odd.values(), "no key"]  # type: ignore[list-item]
    keys = {"weak": rsa_key(6, 1024)}

    for kid in odd:
        token = forge(issuer.header(kid=kid), issuer.claims(), signer(keys.get(kid, rsa_key(7))))
        assert await cause(tokens, issuer, token) == ("key_issuer" if kid == "foreign" else "key"), kid
    assert await cause(tokens, issuer, issuer.token()) is None


async def test_a_key_that_signs_for_every_tenant_says_so(tokens: EntraTokens, issuer: LocalIssuer) -> None:
    """Microsoft's sets carry `issuer` per key, with {tenantid} where any tenant is meant."""
    issuer.about_keys = {"issuer": f"{issuer.url}/sts/{{tenantid}}/"}

    assert await cause(tokens, issuer, issuer.token()) is None


async def test_an_accepted_token_is_not_verified_again_until_it_ends(
    tokens: EntraTokens, issuer: LocalIssuer, clock: Time
) -> None:
    """Stack notes 7: the verdict is kept by the token's hash until exp."""
    token = issuer.token()
    wanted = wanted_token(issuer.sign_in())
    first = await tokens.check(token, wanted)
    again = await tokens.check(token, wanted)

    assert first.checks
    assert again.checks == ()
    assert (first.cause, again.cause) == (None, None)
    assert (await tokens.check(token, wanted_token(issuer.sign_in(callers=(WORKLOAD,))))).cause == "caller"
    clock.ahead_s += 3_900 + LEEWAY_S + 1
    assert (await tokens.check(token, wanted)).cause == "exp"


async def test_what_is_remembered_of_tokens_is_bounded(tokens: EntraTokens, issuer: LocalIssuer) -> None:
    """Every cache has a bound; tokens beyond it are verified again."""
    wanted = wanted_token(issuer.sign_in())
    first = issuer.token()
    await tokens.check(first, wanted)
    for number in range(VERDICTS_MAX):
        assert (await tokens.check(issuer.token(uti=str(number)), wanted)).cause is None

    assert (await tokens.check(first, wanted)).checks


async def test_an_answer_without_end_is_cut_off(issuer: LocalIssuer) -> None:
    """S9: size limits for what comes in from outside."""
    issuer.metadata = {"padding": "x" * 600_000}

    with pytest.raises(Exception, match="more than"):
        await fetch_over_http(f"{issuer.url}/{TENANT}/.well-known/openid-configuration")


# ---- assertions


async def test_an_assertion_is_for_the_workload_and_from_the_sync_service(
    tokens: EntraTokens, issuer: LocalIssuer
) -> None:
    """Entra page 2 [WIF]: v2 issuer, tid, sub, aud with or without `api://`."""
    wanted = wanted_assertion(issuer.federation())
    for audience in (f"api://{WORKLOAD}", WORKLOAD, f"api://{WORKLOAD}/.default"):
        assert (await tokens.check(issuer.assertion(aud=audience), wanted)).cause is None
    for name, token in (
        ("aud", issuer.assertion(aud=AUDIENCE)),
        ("sub", issuer.assertion(sub=OBJECT)),
        ("sub", issuer.assertion("sub")),
        ("caller", issuer.assertion(appid=CALLER)),
        ("iss", issuer.assertion(iss=issuer.issuer("1.0"))),
        ("tid", issuer.assertion(tid=OTHER_TENANT)),
        ("ver", issuer.assertion(ver="1.0")),
    ):
        assert (await tokens.check(token, wanted)).cause == name


# ---- settings


def test_the_addresses_of_a_cloud_are_those_of_its_metadata() -> None:
    """Entra page 2: issuer and metadata of both versions; national clouds have their own."""
    public = key_place(CLOUDS["public"], TENANT.upper(), "1.0")
    assert public.issuer == f"https://sts.windows.net/{TENANT}/"
    assert public.metadata_url == f"https://login.microsoftonline.com/{TENANT}/.well-known/openid-configuration"
    second = key_place(CLOUDS["public"], TENANT, "2.0")
    assert second.issuer == f"https://login.microsoftonline.com/{TENANT}/v2.0"
    assert second.metadata_url == f"https://login.microsoftonline.com/{TENANT}/v2.0/.well-known/openid-configuration"
    gov = key_place(CLOUDS["us-government"], TENANT, "2.0")
    assert gov.issuer.startswith("https://login.microsoftonline.us/")
    assert EntraSignIn(tenant=TENANT).addresses() is CLOUDS["public"]


def test_mistakes_in_the_settings_are_named_all_at_once() -> None:
    """Design 8: path first, all of them, with the nearest valid name."""
    text = f"""
[targets.a]
connector = "observe"
auth = ["key", "entra"]
[targets.b]
connector = "observe"
auth = ["kee"]
[targets.b.entra]
tenant = "contoso"
callrs = []
[targets.b.oauth]
token_life_s = 60
[targets.b.oauth.federation]
app_id = "{WORKLOAD}"
[targets.c]
connector = "observe"
auth = ["oauth", "oauth"]
[targets.d]
connector = "observe"
[targets.d.entra]
tenant = "{TENANT}"
cloud = "custom"
custom = {{authority = "http://login.example.com", issuer_v1 = "https://x/", issuer_v2 = "https://x/{{tenant}}/v2.0"}}
"""
    with pytest.raises(ConfigurationError) as refused:
        parse(text)

    problems = refused.value.problems
    for start in (
        "targets.a.entra: missing",
        "targets.b.auth: Invalid enum value 'kee'",
        "targets.b.entra.tenant: must be an id like",
        "targets.b.entra.callrs: not a setting; did you mean callers?",
        "targets.b.oauth.token_life_s: must be int >= 3600",
        "targets.b.oauth.federation.tenant: missing",
        "targets.b.oauth.federation.subjects: missing",
        "targets.c.auth: names a way to sign in twice",
        "targets.d.entra.custom.authority: must be https://HOST",
        "targets.d.entra.custom.issuer_v1: must be an address with {tenant}",
    ):
        assert any(problem.startswith(start) for problem in problems), (start, problems)
