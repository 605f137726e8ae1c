"""An issuer of tokens on this machine: real RSA keys, real metadata and key sets over HTTP, keys that change, and outages."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, HashAlgorithm

from schemas.config import EntraCloud, EntraSignIn, Federation

TENANT = "5f2b1b8e-3a70-4a0c-9d52-0e6bb0a5b9aa"
OTHER_TENANT = "77aa0c1e-94c5-4f59-8a1b-5a4f2f2b0d11"
AUDIENCE = "8adf8e6e-67b2-4cf2-a259-e3dc5476c621"
CALLER = "00000014-0000-0000-c000-000000000000"
OBJECT = "0c9d3c9e-58f3-4d43-9f0c-1f9d0b7a6a01"
SYNC_OBJECT = "3d0f1a55-8f4e-4e0b-b6a5-7f0f7c6f4b02"
WORKLOAD = "b5ba7a93-4452-4522-aeb4-a2b5da870c16"
LIFE_S = 3_900

Signer = Callable[[bytes], bytes]


@functools.cache
def rsa_key(number: int, bits: int = 2048) -> rsa.RSAPrivateKey:
    """The same key for the same number, in this process."""
    return rsa.generate_private_key(public_exponent=65_537, key_size=bits)


def encoded(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signer(key: rsa.RSAPrivateKey, digest: HashAlgorithm | None = None) -> Signer:
    """Signs as RS256, or with another digest."""
    return lambda data: key.sign(data, padding.PKCS1v15(), digest or SHA256())


def forge(header: Any, claims: Any, sign: Signer) -> str:
    """A token of anything, signed by anybody. Bytes are taken as they are, everything else as JSON."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
    text = ".".join(encoded(part) for part in parts)
    return f"{text}.{encoded(sign(text.encode()))}"


def jwk(kid: str, key: rsa.RSAPrivateKey, **more: Any) -> dict[str, Any]:
    """An entry of a key set."""
    numbers = key.public_key().public_numbers()
    n, e = (encoded(value.to_bytes((value.bit_length() + 7) // 8, "big")) for value in (numbers.n, numbers.e))
    return {"kty": "RSA", "use": "sig", "kid": kid, "n": n, "e": e, **more}


class LocalIssuer:
    """What login.microsoftonline.com is for tokens. `keys` are those of a version, by id; the first signs."""

    def __init__(self) -> None:
        self.url = ""
        self.keys: dict[str, dict[str, rsa.RSAPrivateKey]] = {
            "1.0": {"one": rsa_key(1), "common": rsa_key(3)},
            "2.0": {"two": rsa_key(2), "common": rsa_key(3)},
        }
        self.more: list[dict[str, Any]] = []
        """Further entries of every key set."""
        self.about_keys: dict[str, Any] = {}
        """Further members of every entry."""
        self.metadata: dict[str, Any] = {}
        """Members of the metadata that are other than they should be."""
        self.down = False
        self.asked: list[str] = []

    # ---- what is configured

    @property
    def cloud(self) -> EntraCloud:
        return EntraCloud(
            authority=self.url,
            issuer_v1=f"{self.url}/sts/{{tenant}}/",
            issuer_v2=f"{self.url}/{{tenant}}/v2.0",
            http_loopback=True,
        )

    def sign_in(self, **settings: Any) -> EntraSignIn:
        return EntraSignIn(**{"tenant": TENANT, "cloud": "custom", "custom": self.cloud, **settings})

    def federation(self, **settings: Any) -> Federation:
        known = {"tenant": TENANT, "app_id": WORKLOAD, "subjects": (SYNC_OBJECT,)}
        return Federation(**{**known, "cloud": "custom", "custom": self.cloud, **settings})

    def issuer(self, version: str, tenant: str = TENANT) -> str:
        return f"{self.url}/sts/{tenant}/" if version == "1.0" else f"{self.url}/{tenant}/v2.0"

    # ---- tokens

    def signs(self, version: str) -> tuple[str, rsa.RSAPrivateKey]:
        """Id and key of the version's newest key."""
        return next(iter(self.keys[version].items()))

    def header(self, version: str = "1.0", **more: Any) -> dict[str, Any]:
        """What stands in front, as Entra writes it."""
        kid = self.signs(version)[0]
        return {"typ": "JWT", "alg": "RS256", "x5t": kid, "kid": kid, **more}

    def claims(self, version: str = "1.0", *without: str, tenant: str = TENANT, **more: Any) -> dict[str, Any]:
        """What an application's token says, of the blank Secret Token."""
        now = int(time.time())
        claims = {
            "aud": AUDIENCE,
            "iss": self.issuer(version, tenant),
            "iat": now,
            "nbf": now,
            "exp": now + LIFE_S,
            "appid" if version == "1.0" else "azp": CALLER,
            "appidacr" if version == "1.0" else "azpacr": "2",
            "idp": self.issuer(version, tenant),
            "oid": OBJECT,
            "sub": OBJECT,
            "tid": tenant,
            "uti": uuid.uuid4().hex[:22],
            "ver": version,
            **more,
        }
        return {name: value for name, value in claims.items() if name not in without}

    def token(self, version: str = "1.0", *without: str, **more: Any) -> str:
        """A genuine token, also when what it says is wrong."""
        return self.sign(self.claims(version, *without, **more), version)

    def sign(self, claims: Any, version: str = "1.0", **header: Any) -> str:
        """Signed as Entra does; header members that are None are left out."""
        members = {name: value for name, value in self.header(version, **header).items() if value is not None}
        return forge(members, claims, signer(self.signs(version)[1]))

    def assertion(self, *without: str, **more: Any) -> str:
        """The assertion of workload identity federation, as documented."""
        said = {"aud": f"api://{WORKLOAD}", "appid": WORKLOAD, "sub": SYNC_OBJECT, "appidacr": "2", **more}
        return self.token("2.0", "azp", "azpacr", *without, **said)

    # ---- over HTTP

    async def _metadata(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if self.down:
            return web.Response(status=503, text="down")
        tenant = request.match_info["tenant"]
        version, path = ("2.0", "discovery/v2.0/keys") if "/v2.0/" in request.path else ("1.0", "discovery/keys")
        said = {"issuer": self.issuer(version, tenant), "jwks_uri": f"{self.url}/{tenant}/{path}"}
        return web.json_response({**said, **self.metadata})

    async def _key_set(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if self.down:
            return web.Response(status=503, text="down")
        version = "2.0" if "v2.0" in request.path else "1.0"
        entries = [jwk(kid, key, **self.about_keys) for kid, key in self.keys[version].items()]
        return web.json_response({"keys": [*self.more, *entries]})

    def fetches(self) -> int:
        """How often metadata was asked for."""
        return sum(path.endswith("openid-configuration") for path in self.asked)


@contextlib.asynccontextmanager
async def issuing() -> AsyncIterator[LocalIssuer]:
    """A running issuer."""
    issuer = LocalIssuer()
    app = web.Application()
    app.router.add_get("/{tenant}/.well-known/openid-configuration", issuer._metadata)
    app.router.add_get("/{tenant}/v2.0/.well-known/openid-configuration", issuer._metadata)
    app.router.add_get("/{tenant}/discovery/keys", issuer._key_set)
    app.router.add_get("/{tenant}/discovery/v2.0/keys", issuer._key_set)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    issuer.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield issuer
    finally:
        await runner.cleanup()
