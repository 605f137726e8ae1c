"""Attacks on signing in, one by one, over the real listener: none is let in, and every legitimate form is (issue 3, S1-S4).

`ALPHA` takes keys, Entra's tokens of one tenant and application, and client credentials; `BETA` the same of another tenant;
`gamma` keys only. Whatever a case is signed with is a real key: Entra's where a claim is what is wrong, else the attacker's.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlencode

import pytest
import pytest_asyncio
import structlog
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import Struct

from gateway.keys import Keys, check_digits, new_key_text
from gateway.oauth import JWT_BEARER, AccessTokens
from gateway.refusals import RefusedSignIns
from schemas.config import OAuthSignIn, TargetSettings
from tests.gateway.local_issuer import (
    AUDIENCE,
    CALLER,
    OBJECT,
    OTHER_TENANT,
    TENANT,
    LocalIssuer,
    encoded,
    forge,
    issuing,
    jwk,
    rsa_key,
    signer,
)
from tests.gateway.scim_listener import ALPHA, BETA, Listener, listening

pytestmark = pytest.mark.asyncio(loop_scope="module")

GAMMA = "gamma"
THIEF = rsa_key(9)
"""The attacker's own key."""
REFUSAL_MS_P99 = 50.0


class Scene(Struct):
    """The listener, the issuer, and one of everything that opens ALPHA."""

    scim: Listener
    issuer: LocalIssuer
    refused: RefusedSignIns
    secret: str
    own: str
    """A token of our token endpoint."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder: Path = tmp_path_factory.mktemp("matrix")
    async with issuing() as issuer:
        ways = ("key", "entra", "oauth")
        mine = issuer.sign_in(object_ids=(OBJECT,))
        theirs = issuer.sign_in(tenant=OTHER_TENANT, object_ids=(OBJECT,))
        targets = {
            ALPHA: TargetSettings(
                connector="shelf", auth=ways, entra=mine, oauth=OAuthSignIn(federation=issuer.federation())
            ),
            BETA: TargetSettings(connector="shelf", auth=ways, entra=theirs),
            GAMMA: TargetSettings(connector="shelf"),
        }
        refused = RefusedSignIns(time.time)
        async with listening(folder, targets=targets, refused=refused) as scim:
            secret = (await scim.keys.issue(ALPHA, actor="test", kind="client")).text
            form = {"grant_type": "client_credentials", "client_id": ALPHA, "client_secret": secret}
            async with scim.session.post(f"{scim.origin}/oauth2/{ALPHA}/token", data=form) as answer:
                own = (await answer.json())["access_token"]
            yield Scene(scim, issuer, refused, secret, own)


Make: TypeAlias = Callable[[Scene], str]
TOKENS: dict[str, Make] = {}
"""Every attack that is one bearer token for ALPHA."""


def genuine(**more: Any) -> Make:
    """Signed by Entra; what it says is wrong."""
    return lambda s: s.issuer.token(**more)


def lacking(*names: str, version: str = "1.0") -> Make:
    return lambda s: s.issuer.token(version, *names)


def second(**more: Any) -> Make:
    return lambda s: s.issuer.token("2.0", **more)


def headed(**header: Any) -> Make:
    """Signed by Entra; what stands in front is wrong."""
    return lambda s: s.issuer.sign(s.issuer.claims(), **header)


def stolen(**header: Any) -> Make:
    """Signed by the attacker under another header."""
    return lambda s: forge(s.issuer.header(**header), s.issuer.claims(), signer(THIEF))


def raw(change: Callable[[Scene, str], str]) -> Make:
    """A genuine token, changed afterwards."""
    return lambda s: change(s, s.issuer.token())


def part(token: str, number: int, text: str) -> str:
    parts = token.split(".")
    parts[number] = text
    return ".".join(parts)


def maced(secret: Callable[[Scene], bytes], alg: str = "HS256", digest: str = "sha256") -> Make:
    """A MAC under something everybody knows: the public key, in one of its spellings."""

    def make(s: Scene) -> str:
        key = secret(s)
        return forge(s.issuer.header(alg=alg), s.issuer.claims(), lambda data: hmac.digest(key, data, digest))

    return make


def public(
    s: Scene, encoding: Encoding = Encoding.PEM, form: PublicFormat = PublicFormat.SubjectPublicKeyInfo
) -> bytes:
    return s.issuer.signs("1.0")[1].public_key().public_bytes(encoding, form)


def jwk_of(s: Scene) -> dict[str, Any]:
    return jwk(*s.issuer.signs("1.0"))


# ---- the algorithm

for spelling in ("none", "None", "NONE", "nOnE", ""):
    TOKENS[f"alg {spelling!r}, no signature"] = lambda s, spelling=spelling: forge(  # type: ignore[misc]
        s.issuer.header(alg=spelling), s.issuer.claims(), lambda data: b""
    )
TOKENS |= {
    "alg none, Entra's signature kept": headed(alg="none"),
    "alg none, no kid": lambda s: forge({"alg": "none"}, s.issuer.claims(), lambda data: b""),
    "HS256 with the public key, PEM": maced(public),
    "HS256 with the public key, PEM without its last newline": maced(lambda s: public(s).strip()),
    "HS256 with the public key, DER": maced(lambda s: public(s, Encoding.DER)),
    "HS256 with the public key, PKCS1": maced(lambda s: public(s, Encoding.PEM, PublicFormat.PKCS1)),
    "HS256 with the modulus": maced(lambda s: jwk_of(s)["n"].encode()),
    "HS256 with the modulus, decoded": maced(lambda s: base64.urlsafe_b64decode(jwk_of(s)["n"] + "==")),
    "HS256 with the whole JWK": maced(lambda s: json.dumps(jwk_of(s)).encode()),
    "HS256 with the kid": maced(lambda s: b"one"),
    "HS256 with an empty key": maced(lambda s: b""),
    "HS384 with the public key": maced(public, "HS384", "sha384"),
    "HS512 with the public key": maced(public, "HS512", "sha512"),
    "alg RS256, but a MAC with the public key": maced(public, "RS256"),
    "RS384 by Entra's key": lambda s: forge(
        s.issuer.header(alg="RS384"), s.issuer.claims(), signer(s.issuer.signs("1.0")[1], SHA384())
    ),
    "RS512 by Entra's key": lambda s: forge(
        s.issuer.header(alg="RS512"), s.issuer.claims(), signer(s.issuer.signs("1.0")[1], SHA512())
    ),
    "alg RS256, SHA-512 by Entra's key": lambda s: forge(
        s.issuer.header(), s.issuer.claims(), signer(s.issuer.signs("1.0")[1], SHA512())
    ),
    "PS256 by Entra's key": lambda s: forge(
        s.issuer.header(alg="PS256"),
        s.issuer.claims(),
        lambda data: s.issuer.signs("1.0")[1].sign(data, padding.PSS(padding.MGF1(SHA256()), 32), SHA256()),
    ),
    "ES256 by the attacker": lambda s: forge(
        s.issuer.header(alg="ES256"),
        s.issuer.claims(),
        lambda data: ec.generate_private_key(ec.SECP256R1()).sign(data, ec.ECDSA(SHA256())),
    ),
    "EdDSA by the attacker": lambda s: forge(
        s.issuer.header(alg="EdDSA"), s.issuer.claims(), ed25519.Ed25519PrivateKey.generate().sign
    ),
    "alg missing": headed(alg=None),
    "alg in small letters": headed(alg="rs256"),
    "alg with a space": headed(alg="RS256 "),
    "alg a list": headed(alg=["RS256"]),
    "alg a number": headed(alg=256),
    "alg an object": headed(alg={"RS256": True}),
}

# ---- the key

TOKENS |= {
    "another key under Entra's kid": stolen(),
    "another key under an unknown kid": stolen(kid="thief"),
    "kid missing": headed(kid=None),
    "kid missing, another key": stolen(kid=None),
    "kid empty": headed(kid=""),
    "kid a number": headed(kid=1),
    "kid a list": headed(kid=["one"]),
    "kid an object": headed(kid={"one": 1}),
    "kid true": headed(kid=True),
    "kid with another case": headed(kid="ONE"),
    "kid with a NUL": headed(kid="one\x00"),
    "kid with a space": headed(kid="one "),
    "kid a path": stolen(kid="../../../../dev/null"),
    "kid /dev/null, MAC with nothing": lambda s: forge(
        s.issuer.header(alg="HS256", kid="/dev/null"), s.issuer.claims(), lambda d: hmac.digest(b"", d, "sha256")
    ),
    "kid SQL": stolen(kid="one' OR '1'='1"),
    "kid SQL union": stolen(kid="x' UNION SELECT 'key'--"),
    "kid a command": stolen(kid="one|id"),
    "kid an address": lambda s: stolen(kid=f"{s.issuer.url}/thief")(s),
    "kid beyond its bound": stolen(kid="k" * 129),
    "kid of 5,000 characters": stolen(kid="k" * 5_000),
    "kid with an umlaut": stolen(kid="önë"),
    "kid a lone surrogate": stolen(kid="\ud800"),
    "kid __class__": stolen(kid="__class__"),
    "kid of the other version's key": lambda s: forge(
        s.issuer.header(kid="two"), s.issuer.claims(), signer(s.issuer.signs("2.0")[1])
    ),
    "version 2.0 signed with a key of 1.0": lambda s: forge(
        s.issuer.header("2.0", kid="one"), s.issuer.claims("2.0"), signer(s.issuer.signs("1.0")[1])
    ),
    "kid of one key, signature of another": lambda s: forge(
        s.issuer.header(kid="common"), s.issuer.claims(), signer(s.issuer.signs("1.0")[1])
    ),
    "jku of the attacker": lambda s: stolen(jku=f"{s.issuer.url}/thief/keys", kid="thief")(s),
    "jku, Entra's signature": lambda s: headed(jku=f"{s.issuer.url}/{TENANT}/discovery/keys")(s),
    "x5u of the attacker": stolen(x5u="https://thief.example.com/cert.pem"),
    "x5u, Entra's signature": headed(x5u="https://login.microsoftonline.com/cert.pem"),
    "jwk of the attacker": stolen(jwk=jwk("one", THIEF)),
    "jwk of the attacker under its own kid": stolen(jwk=jwk("thief", THIEF), kid="thief"),
    "jwk of the attacker without kid": stolen(jwk=jwk("thief", THIEF), kid=None),
    "jwk, Entra's signature": headed(jwk=jwk("one", THIEF)),
    "x5c of the attacker": stolen(x5c=["MIIB"]),
    "x5c, Entra's signature": headed(x5c=["MIIB"]),
    "crit": headed(crit=["exp"]),
    "crit of something unknown": headed(crit=["http://example.com/unknown"]),
    "b64 false": headed(b64=False, crit=["b64"]),
    "b64 false without crit": headed(b64=False),
    "zip": headed(zip="DEF"),
    "enc": headed(enc="A256GCM", alg="dir"),
    "typ of something else": headed(typ="JWE"),
    "typ of a security event": headed(typ="secevent+jwt"),
    "typ a number": headed(typ=5),
}

# ---- what it says

TOKENS |= {
    "issuer of another tenant": lambda s: s.issuer.token(iss=s.issuer.issuer("1.0", OTHER_TENANT)),
    "another tenant's genuine token": genuine(tenant=OTHER_TENANT),
    "another tenant's genuine token of version 2.0": lambda s: s.issuer.token("2.0", tenant=OTHER_TENANT),
    "issuer missing": lacking("iss"),
    "issuer null": genuine(iss=None),
    "issuer a list": lambda s: s.issuer.token(iss=[s.issuer.issuer("1.0")]),
    "issuer without its slash": lambda s: s.issuer.token(iss=s.issuer.issuer("1.0").rstrip("/")),
    "issuer with more behind it": lambda s: s.issuer.token(iss=s.issuer.issuer("1.0") + "x"),
    "issuer with a look-alike host": lambda s: s.issuer.token(iss=s.issuer.issuer("1.0").replace("127", "l27")),
    "issuer in capitals": lambda s: s.issuer.token(iss=s.issuer.issuer("1.0").upper()),
    "issuer common": lambda s: s.issuer.token(iss=s.issuer.issuer("1.0", "common")),
    "issuer with {tenant} in it": lambda s: s.issuer.token(iss=s.issuer.cloud.issuer_v1),
    "issuer of 2.0 in a token of 1.0": lambda s: s.issuer.token(iss=s.issuer.issuer("2.0")),
    "issuer of 1.0 in a token of 2.0": lambda s: s.issuer.token("2.0", iss=s.issuer.issuer("1.0")),
    "real Entra's issuer": genuine(iss=f"https://sts.windows.net/{TENANT}/"),
    "version missing": lacking("ver"),
    "version 2.0 at the issuer of 1.0": genuine(ver="2.0"),
    "version 1.0 at the issuer of 2.0": second(ver="1.0"),
    "version a number": genuine(ver=1.0),
    "version 3.0": genuine(ver="3.0"),
    "tenant other": genuine(tid=OTHER_TENANT),
    "tenant missing": lacking("tid"),
    "tenant null": genuine(tid=None),
    "tenant a list": genuine(tid=[TENANT]),
    "tenant in capitals": genuine(tid=TENANT.upper()),
    "audience other": genuine(aud="00000003-0000-0000-c000-000000000000"),
    "audience of Graph": genuine(aud="https://graph.microsoft.com"),
    "audience missing": lacking("aud"),
    "audience null": genuine(aud=None),
    "audience empty": genuine(aud=""),
    "audience a list with ours": genuine(aud=[AUDIENCE, "x"]),
    "audience a list of ours": genuine(aud=[AUDIENCE]),
    "audience an object": genuine(aud={AUDIENCE: 1}),
    "audience in capitals": genuine(aud=AUDIENCE.upper()),
    "audience with more behind it": genuine(aud=AUDIENCE + "0"),
    "audience a beginning": genuine(aud=AUDIENCE[:8]),
    "caller other": genuine(appid="11111111-0000-0000-c000-000000000000"),
    "caller missing": lacking("appid"),
    "caller missing in 2.0": lacking("azp", version="2.0"),
    "caller null": genuine(appid=None),
    "caller a list": genuine(appid=[CALLER]),
    "caller in the claim of 2.0 only": lambda s: s.issuer.token("1.0", "appid", azp=CALLER),
    "caller right in appid, other in azp": genuine(azp="11111111-0000-0000-c000-000000000000"),
    "caller right in azp, other in appid": second(appid="11111111-0000-0000-c000-000000000000"),
    "object other": genuine(oid="11111111-58f3-4d43-9f0c-1f9d0b7a6a01"),
    "object missing": lacking("oid"),
    "object only in sub": lambda s: s.issuer.token("1.0", "oid", sub=OBJECT),
    "object a list": genuine(oid=[OBJECT]),
    "expired": lambda s: s.issuer.token(exp=int(time.time()) - 301),
    "expired long ago": genuine(exp=1),
    "expiry missing": lacking("exp"),
    "expiry null": genuine(exp=None),
    "expiry text": genuine(exp="9999999999"),
    "expiry true": genuine(exp=True),
    "expiry a list": genuine(exp=[9_999_999_999]),
    "expiry negative": genuine(exp=-9_999_999_999),
    "expiry infinite": lambda s: s.issuer.sign(json.dumps(s.issuer.claims(exp=float("inf"))).encode()),
    "expiry NaN": lambda s: s.issuer.sign(json.dumps(s.issuer.claims(exp=float("nan"))).encode()),
    "not yet valid": lambda s: s.issuer.token(nbf=int(time.time()) + 360),
    "valid from missing": lacking("nbf"),
    "valid from text": genuine(nbf="0"),
    "issued in the future": lambda s: s.issuer.token(iat=int(time.time()) + 360),
    "issue time missing": lacking("iat"),
    "issue time true": genuine(iat=True),
    "a person's token: scp": genuine(scp="user_impersonation"),
    "a person's token: scp empty": genuine(scp=""),
    "a person's token: upn": genuine(upn="ada@contoso.example"),
    "a person's token: unique_name": genuine(unique_name="ada@contoso.example"),
    "a person's token of 2.0: preferred_username": second(preferred_username="ada@contoso.example"),
    "a person's token: idtyp user": genuine(idtyp="user"),
    "idtyp a list": genuine(idtyp=["app"]),
    "a public client: appidacr 0": genuine(appidacr="0"),
    "a public client of 2.0: azpacr 0": second(azpacr="0"),
    "an id token": lambda s: s.issuer.token("2.0", "azp", nonce="n", preferred_username="ada@contoso.example"),
    "an assertion of the federation": lambda s: s.issuer.assertion(),
}

# ---- its form

TOKENS |= {
    "signature cut off": raw(lambda s, t: t.rsplit(".", 1)[0]),
    "signature empty": raw(lambda s, t: part(t, 2, "")),
    "signature halved": raw(lambda s, t: t[: -len(t.split(".")[2]) // 2]),
    "last character missing": raw(lambda s, t: t[:-1]),
    "last character other": raw(lambda s, t: t[:-1] + ("A" if t[-1] != "A" else "B")),
    "first character missing": raw(lambda s, t: t[1:]),
    "claims cut off": raw(lambda s, t: part(t, 1, "")),
    "claims only": raw(lambda s, t: t.split(".")[1]),
    "header only": raw(lambda s, t: t.split(".")[0] + ".."),
    "two dots": lambda s: "..",
    "four parts": raw(lambda s, t: t + ".x"),
    "five parts": raw(lambda s, t: t + ".x.y"),
    "dot at the end": raw(lambda s, t: t + "."),
    "twice": raw(lambda s, t: t + t),
    "claims changed after signing": raw(
        lambda s, t: part(t, 1, encoded(json.dumps(s.issuer.claims(oid=OBJECT, sub="x")).encode()))
    ),
    "header changed after signing": raw(
        lambda s, t: part(t, 0, encoded(json.dumps(s.issuer.header(extra=1)).encode()))
    ),
    "signature of another token": lambda s: part(s.issuer.token(), 2, s.issuer.token().split(".")[2]),
    "one bit of the signature": raw(
        lambda s, t: part(t, 2, encoded(bytes([base64.urlsafe_b64decode(t.split(".")[2] + "==")[0] ^ 1]) + b"x" * 255))
    ),
    "signature with padding": raw(lambda s, t: t + "=="),
    "claims with padding": raw(lambda s, t: part(t, 1, t.split(".")[1] + "=")),
    "signature of zeros": raw(lambda s, t: part(t, 2, encoded(bytes(256)))),
    "signature of one": raw(lambda s, t: part(t, 2, encoded(bytes(255) + b"\x01"))),
    "signature the modulus": raw(lambda s, t: part(t, 2, jwk_of(s)["n"])),
    "other alphabet of base64": raw(lambda s, t: part(t, 2, "+" + t.split(".")[2][1:])),
    "claims no JSON": lambda s: s.issuer.sign(b"claims"),
    "claims a list": lambda s: s.issuer.sign([s.issuer.claims()]),
    "claims a text": lambda s: s.issuer.sign("claims"),
    "claims null": lambda s: s.issuer.sign(b"null"),
    "claims an empty object": lambda s: s.issuer.sign({}),
    "claims nested deeply": lambda s: s.issuer.sign(b"[" * 2_000 + b"]" * 2_000),
    "claims no UTF-8": lambda s: s.issuer.sign(b'{"iss":"\xff"}'),
    "header no JSON": lambda s: forge(b"header", s.issuer.claims(), signer(THIEF)),
    "header a list": lambda s: forge(["alg", "RS256"], s.issuer.claims(), signer(THIEF)),
    "header a text": lambda s: forge("alg", s.issuer.claims(), signer(THIEF)),
    "header null": lambda s: forge(b"null", s.issuer.claims(), signer(THIEF)),
    "header nested deeply": lambda s: forge(b'{"alg":' + b"[" * 300 + b"]" * 300 + b"}", {}, signer(THIEF)),
    "JSON serialization": raw(
        lambda s, t: json.dumps(
            dict(zip(("protected", "payload", "signature"), t.split("."), strict=True)), separators=(",", ":")
        )
    ),
    "larger than any token": lambda s: s.issuer.token(padding="x" * 7_000),
    "nine thousand letters": lambda s: "a" * 9_000,
    "a GUID": lambda s: TENANT,
    "null": lambda s: "null",
    "undefined": lambda s: "undefined",
}

# ---- our own keys and tokens


def own(target: str = ALPHA, pepper: bytes = bytes(range(32)), **claims: Any) -> Make:
    """A token of our kind under the right key, saying something else; or under the key of another installation."""

    def make(s: Scene) -> str:
        keys = Keys(s.scim.store, pepper, now=time.time, clock=time.monotonic)
        key = keys.derived(f"access-token/{target}")
        said = {"iss": "provgate", "aud": ALPHA, "iat": int(time.time()), "exp": int(time.time()) + 100, "jti": "j"}
        said |= {"sid": s.secret.split("_")[1], "fed": ""} | claims
        return "pgt_" + forge({"alg": "HS256", "typ": "at+jwt"}, said, lambda data: hmac.digest(key, data, "sha256"))

    return make


TOKENS |= {
    "own token without its prefix": lambda s: s.own.removeprefix("pgt_"),
    "own token with the prefix twice": lambda s: "pgt_" + s.own,
    "own token in capitals": lambda s: s.own.replace("pgt_", "PGT_"),
    "own prefix before Entra's token": raw(lambda s, t: "pgt_" + t),
    "own token, alg none": lambda s: (
        "pgt_" + part(part(s.own[4:], 0, encoded(b'{"alg":"none","typ":"at+jwt"}')), 2, "")
    ),
    "own token, signature cut off": lambda s: s.own.rsplit(".", 1)[0] + ".",
    "own token, claims changed": lambda s: part(s.own, 1, encoded(b'{"aud":"alpha","exp":9999999999}')),
    "own token of another installation": own(pepper=bytes(32)),
    "own token for another target": own(aud=BETA),
    "own token under another target's key": own(target=BETA),
    "own token that ended": own(exp=int(time.time()) - 1),
    "own token from the future": own(iat=int(time.time()) + 3_600),
    "own token without an end": own(exp=None),
    "own token of no secret": own(sid=""),
    "own token of an unknown secret": own(sid="0123456789"),
    "own token of an access key": lambda s: own(sid=s.scim.tokens[ALPHA].split("_")[1])(s),
    "own token of settings that are not these": own(sid="", fed="0" * 16),
    "own token, MAC with nothing": lambda s: (
        "pgt_" + forge({"alg": "HS256", "typ": "at+jwt"}, {"aud": ALPHA}, lambda d: hmac.digest(b"", d, hashlib.sha256))
    ),
    "a client secret": lambda s: s.secret,
    "another target's key": lambda s: s.scim.tokens[BETA],
    "a key nobody made": lambda s: new_key_text(),
    "a key cut off": lambda s: s.scim.tokens[ALPHA][:-1],
    "a key with the secret of another": lambda s: checked(s.scim.tokens[ALPHA][:14] + s.scim.tokens[BETA][14:57]),
    "a key with the prefix of a client secret": lambda s: checked("pgs" + s.scim.tokens[ALPHA][2:57]),
    "a client secret with the prefix of a key": lambda s: checked("pg" + s.secret[3:58]),
    "a key in capitals": lambda s: s.scim.tokens[ALPHA].upper(),
    "the target's name": lambda s: ALPHA,
}


def checked(body: str) -> str:
    """With check digits that fit."""
    body = body.rstrip("_")
    return f"{body}_{check_digits(body)}"


async def test_the_matrix_is_as_large_as_was_asked_for() -> None:
    """Issue 3: at least 100 cases."""
    assert len(TOKENS) >= 180


@pytest.mark.parametrize("name", TOKENS)
async def test_an_attack_is_refused_like_every_other(scene: Scene, name: str) -> None:
    """S3, S4: 401, the same but for its id, and under the id the operator finds what failed; the token is nowhere in it."""
    token = TOKENS[name](scene)
    with structlog.testing.capture_logs() as lines:
        answer = await scene.scim.get("/Users", token=token)

    assert answer.status == 401, name
    assert answer.headers["www-authenticate"] == 'Bearer realm="scim"'
    refusal_id = answer.body["errorId"]
    assert answer.raw.replace(refusal_id.encode(), b"ID") == (
        b'{"schemas":["urn:ietf:params:scim:api:messages:2.0:Error"],"status":"401","detail":"The credentials are not '
        b"accepted here. Enter a valid secret token in the provisioning settings. The operator of the gateway finds the "
        b'reason under ID.","errorId":"ID"}'
    )
    found = scene.refused.find(refusal_id)
    assert found is not None
    assert found.target == ALPHA
    assert any(check.verdict == "failed" for check in found.checks), found
    known = str(found) + str(lines)
    assert "ada@" not in known
    assert not any(len(piece) > 30 and piece in known for piece in token.replace("_", ".").split("."))


async def test_the_same_attacks_buy_no_token_either(scene: Scene) -> None:
    """RFC 7523: what is no bearer token is no assertion, and no client secret."""
    for name, make in TOKENS.items():
        if name in ("an assertion of the federation", "a client secret"):
            continue
        token = make(scene)
        for fields in (
            {"client_assertion_type": JWT_BEARER, "client_assertion": token},
            {"client_id": ALPHA, "client_secret": token},
        ):
            form = {"grant_type": "client_credentials", **fields}
            body = urlencode(form, errors="surrogatepass")
            async with scene.scim.session.post(
                f"{scene.scim.origin}/oauth2/{ALPHA}/token",
                data=body,
                headers={"Content-Type": "application/x-www-form-urlencoded"},
            ) as answer:
                assert answer.status in (400, 401), (name, answer.status)


# ---- the right token in the wrong way


async def refused(scene: Scene, request: bytes) -> bool:
    said = await scene.scim.raw(request)
    assert said.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 ", b"HTTP/1.1 431 ")), said[:100]
    return b"Resources" not in said


@pytest.mark.parametrize(
    "head",
    [
        "Authorization: Bearer {t}\r\nAuthorization: Bearer {t}",
        "Authorization: Bearer {t}\r\nAuthorization: Basic YTpi",
        "Authorization: Basic YTpi\r\nAuthorization: Bearer {t}",
        "Authorization: Bearer {t}\r\nauthorization: bearer x",
        "Authorization: {t}",
        "Authorization: Token {t}",
        "Authorization: Basic {t}",
        "Authorization: Digest {t}",
        "Authorization: Bearer{t}",
        "Authorization: Bearer:{t}",
        "Authorization: Bearer={t}",
        "Authorization: Bearer\t{t}",
        "Authorization: Bearer {t},{t}",
        "Authorization: Bearer {t} {t}",
        "Authorization: Bearer {t},",
        "Authorization: Bearer x {t}",
        'Authorization: Bearer "{t}"',
        "Authorization: Bearer <{t}>",
        "Authorization: Bearer \u200b{t}",
        "Authorization: Bearer \u00a0{t}",
        "Authorization: Bearer {t}\u00a0",
        "Authorization: Bearer {t}\ufeff",
        "Authorization: Bearer token={t}",
        "Authorization: Bearer access_token={t}",
        "Proxy-Authorization: Bearer {t}",
        "X-Authorization: Bearer {t}",
        "X-Forwarded-Authorization: Bearer {t}",
        "Cookie: access_token={t}",
        "Authorization2: Bearer {t}",
        "Authorization : Bearer {t}",
    ],
)
async def test_a_right_token_in_a_wrong_place_opens_nothing(scene: Scene, head: str) -> None:
    """RFC 6750 section 2.1: one Authorization header with the scheme Bearer and nothing else."""
    for token in (scene.issuer.token(), scene.own, scene.scim.tokens[ALPHA]):
        request = f"GET /scim/v2/{ALPHA}/Users HTTP/1.1\r\nHost: x\r\n{head.format(t=token)}\r\n\r\n"
        assert await refused(scene, request.encode())


async def test_a_token_in_an_address_or_a_body_opens_nothing(scene: Scene) -> None:
    """S4: no credentials in addresses (RFC 6750 sections 2.2 and 2.3 are not offered)."""
    for token in (scene.issuer.token(), scene.own, scene.scim.tokens[ALPHA]):
        for path in (f"/Users?access_token={token}", f"/Users?token={token}", f"/Users#Bearer {token}"):
            assert (await scene.scim.get(path, token="")).status == 401
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = await scene.scim.send("POST", "/Users", token="", data=f"access_token={token}".encode(), headers=form)
        assert answer.status == 401


async def test_a_right_token_opens_no_other_target_and_nothing_beside_it(scene: Scene) -> None:
    """I11, S3: a token, a key and a secret belong to one target; an unknown target is like a wrong token."""
    for token in (scene.issuer.token(), scene.issuer.token("2.0"), scene.own, scene.scim.tokens[ALPHA]):
        for target in (BETA, GAMMA, "nobody", "ALPHA", "alpha%20", "%61lpha%00", "..", "alpha/../beta", "beta;alpha"):
            answer = await scene.scim.send("GET", "/Users", target=target, token=token)
            assert answer.status in (401, 404), (target, answer.status)
            assert answer.status == 401 or ".." in target, (target, answer.status)
    assert (await scene.scim.get("/Users", target=GAMMA, token=scene.issuer.token())).status == 401
    theirs = scene.issuer.token(tenant=OTHER_TENANT)
    assert (await scene.scim.get("/Users", target=BETA, token=theirs)).status == 200
    assert (await scene.scim.get("/Users", target=ALPHA, token=theirs)).status == 401


@pytest.mark.parametrize(
    "path",
    [
        "/scim/v2/alpha/../beta/Users",
        "/scim/v2/alpha/%2e%2e/beta/Users",
        "/scim/v2/alpha%2f..%2fbeta/Users",
        "/scim/v2/alpha%2f%2e%2e%2fbeta%2fUsers",
        "/scim/v2/alpha//beta/Users",
        "/scim/v2//beta/Users",
        "//scim/v2/beta/Users",
        "/scim//v2/beta/Users",
        "/scim/v2/alpha/Users/../../beta/Users",
        "/scim/v2/alpha;/../beta/Users",
        "/scim/v2/alpha%00/../beta/Users",
        "/scim/v2/alpha\\..\\beta/Users",
        "/scim/v2/alpha/scim/v2/beta/Users",
        "/SCIM/v2/beta/Users",
        "/scim/v2/beta%2fUsers",
        "/oauth2/beta/token/../../../scim/v2/beta/Users",
        "/health/../scim/v2/beta/Users",
        "/health/live/../../scim/v2/beta/Users",
    ],
)
async def test_no_way_of_writing_an_address_leads_to_another_target(scene: Scene, path: str) -> None:
    """I11: who is asked for a key and who is served are the same target, however the path is spelled."""
    held = await scene.scim.get("/Users", target=BETA)
    if not held.body["Resources"]:
        await scene.scim.user("hidden@contoso.example", target=BETA)
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {scene.scim.tokens[ALPHA]}\r\n\r\n"

    said = await scene.scim.raw(request.encode())

    assert said.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 404 ")), said[:100]
    assert b"hidden" not in said


# ---- what is let in


@pytest.mark.parametrize(
    "make",
    [
        lambda s: s.scim.tokens[ALPHA],
        lambda s: s.own,
        own(),
        genuine(),
        second(),
        second(appid=CALLER),
        genuine(idtyp="app", roles=["x"]),
        headed(typ=None),
        headed(x5t=None),
        headed(nonce="n"),
        lambda s: forge(s.issuer.header(kid="common"), s.issuer.claims(), signer(rsa_key(3))),
        lambda s: forge(s.issuer.header("2.0", kid="common"), s.issuer.claims("2.0"), signer(rsa_key(3))),
        lambda s: s.issuer.token(exp=int(time.time()) - 290),
        lambda s: s.issuer.token(nbf=int(time.time()) + 290, iat=int(time.time()) + 290),
        lambda s: s.issuer.token(padding="x" * 4_000),
        lambda s: AccessTokens(s.scim.keys, time.time).issue(
            ALPHA,
            TargetSettings(connector="shelf", oauth=OAuthSignIn(federation=s.issuer.federation())),
            secret_id=None,
        ),
    ],
)
async def test_every_legitimate_form_is_let_in(scene: Scene, make: Make) -> None:
    """Issue 3: 0 attacks accepted is worth nothing if Entra is not let in; also with other spellings of the scheme.

    Keys of ours and tokens that Entra signs itself, side by side: vendor requirement M2.
    """
    token = make(scene)
    for scheme in ("Bearer ", "bearer ", "BEARER  "):
        answer = await scene.scim.get("/Users", token="", headers={"Authorization": f"{scheme}{token}"})
        assert answer.status == 200


async def test_refusals_are_quick(scene: Scene) -> None:
    """Issue 3: p99 of refusals under 50 ms."""
    tokens = [make(scene) for make in TOKENS.values()]
    times = []
    for token in tokens:
        started = time.perf_counter()
        assert (await scene.scim.get("/Users", token=token)).status == 401
        times.append((time.perf_counter() - started) * 1000)
    times.sort()

    assert times[int(len(times) * 0.99) - 1] < REFUSAL_MS_P99, times[-5:]
