"""How Entra's provisioning service signs in at a SCIM server: the credentials an admin may enter, and an issuer of its tokens.

`Credentials` is one of four: a secret token, OAuth client credentials, workload identity federation, or nothing at all (the blank
secret token, for which Entra signs one itself). `Bearer` keeps the token in use: it buys or mints one when needed, a new one
before the old one ends, and once after a 401. `EntraIssuer` is what login.microsoftonline.com is for tokens, here, with
real keys, metadata and key sets over HTTP.

Follows entra-docs (use-scim-to-provision-users-and-groups, access-tokens), SCIMReferenceCode (federation, Logic App validation),
RFC 6749 and RFC 7523. What is undocumented is a named constant.
"""

import asyncio
import base64
import random
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Self
from urllib.parse import quote, quote_plus, urlencode

import msgspec
from aiohttp import web
from joserfc import jwt
from joserfc.jwk import RSAKey

AUDIENCE = "8adf8e6e-67b2-4cf2-a259-e3dc5476c621"
"""Of the tokens for every non-gallery application."""
CALLER = "00000014-0000-0000-c000-000000000000"
"""Application id of the provisioning service itself, as a third party saw it."""
JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
FORM = "application/x-www-form-urlencoded"
ENTRA_TOKEN_LIFE_S = (3_600, 5_400)
"""Documented: random, 60 to 90 minutes."""
RENEW_BEFORE_END_S = 300.0
"""How long before its end a token is renewed, at most a tenth of its life; undocumented."""
MASKED = "***"
TOKENS_MASKED_MAX = 64
"""So many tokens are remembered in order to keep them out of records."""
KEY_BITS = 2_048
CREDENTIALS_UNAVAILABLE = "CredentialValidationUnavailable"

Clock = Callable[[], float]
Version = Literal["1.0", "2.0"]


class SecretToken(msgspec.Struct, frozen=True):
    """The field Secret Token filled in: an opaque text that does not expire by itself."""

    text: str

    def __repr__(self) -> str:
        return "SecretToken()"


class ClientCredentials(msgspec.Struct, frozen=True, kw_only=True):
    """OAuth 2.0 client credentials: Token Endpoint, Client Identifier and Client Secret of the admin's page."""

    token_endpoint: str
    client_id: str
    client_secret: str
    place: Literal["header", "body"] = "header"
    """Where the secret goes: `Authorization: Basic`, as seen, or the form."""

    def __repr__(self) -> str:
        return f"ClientCredentials({self.client_id!r}, {self.place!r})"


class FederatedCredentials(msgspec.Struct, frozen=True, kw_only=True):
    """Workload identity federation: an assertion signed by Entra buys the token; there is no secret."""

    token_endpoint: str
    client_id: str
    issuer: "EntraIssuer"
    app_id: str
    """Application id the assertion is made for."""
    object_id: str
    """Object id of the enterprise application, the assertion's subject."""
    scope: str = ""


class BlankToken(msgspec.Struct, frozen=True, kw_only=True):
    """The field Secret Token left blank: Entra signs a token itself."""

    issuer: "EntraIssuer"


Credentials = SecretToken | ClientCredentials | FederatedCredentials | BlankToken


class TokenAnswer(msgspec.Struct, frozen=True):
    """What the token endpoint said; `status` 0 when it did not answer, and `error` then names the kind."""

    status: int
    body: bytes
    error: str = ""


AskForToken = Callable[[str, dict[str, str], bytes], Awaitable[TokenAnswer]]


class SignInFailed(Exception):
    """No token could be had."""

    def __init__(self, answer: TokenAnswer, message: str) -> None:
        super().__init__(message)
        self.answer = answer
        self.message = message

    @property
    def refused(self) -> bool:
        """The token endpoint said no, which is about the credentials; otherwise it was merely out of order."""
        return 400 <= self.answer.status < 500


class _TokenReply(msgspec.Struct):
    """RFC 6749 section 5.1."""

    access_token: str
    token_type: str
    expires_in: float


class Bearer:
    """The token in use.

    Args:
        credentials: what the admin entered.
        ask: sends a form to the token endpoint (address, headers, body).
        clock: epoch seconds.
    """

    def __init__(self, credentials: Credentials, ask: AskForToken, clock: Clock) -> None:
        self._credentials = credentials
        self._ask = ask
        self._clock = clock
        self._token = ""
        self._renew_at_s = 0.0
        self._one_at_a_time = asyncio.Lock()
        self._secrets: deque[str] = deque(maxlen=TOKENS_MASKED_MAX)
        self.bought = 0
        """How many tokens were bought or minted."""

    async def current(self) -> str:
        """The token for the next request; a new one when there is none or the old one is about to end.

        Raises:
            SignInFailed: none could be had.
        """
        if isinstance(self._credentials, SecretToken):
            return self._credentials.text
        async with self._one_at_a_time:
            if not self._token or self._clock() >= self._renew_at_s:
                await self._renew()
            return self._token

    async def renewed(self, refused: str) -> str | None:
        """Another token after a 401 for `refused`; None when there is only one, the secret token.

        Raises:
            SignInFailed: none could be had.
        """
        if isinstance(self._credentials, SecretToken):
            return None
        async with self._one_at_a_time:
            if self._token == refused:  # otherwise another request has renewed it meanwhile
                await self._renew()
            return self._token

    def forget(self) -> None:
        """Sign in anew at the next request, as Test Connection does."""
        self._token = ""

    def masked(self, text: str) -> str:
        """The text without any secret or token that this object knows."""
        for secret in (*_secrets_of(self._credentials), *self._secrets):
            for spelled in {secret, quote(secret, safe=""), quote_plus(secret)}:
                text = text.replace(spelled, MASKED)
        return text

    async def _renew(self) -> None:
        self._token = ""
        credentials, now = self._credentials, self._clock()
        if isinstance(credentials, BlankToken):
            self._token, life_s = credentials.issuer.token(), float(ENTRA_TOKEN_LIFE_S[0])
        else:
            assert not isinstance(credentials, SecretToken)
            self._token, life_s = await self._bought(credentials)
        self._secrets.append(self._token)
        self.bought += 1
        self._renew_at_s = now + life_s - min(RENEW_BEFORE_END_S, life_s / 10)

    async def _bought(self, credentials: ClientCredentials | FederatedCredentials) -> tuple[str, float]:
        headers, fields = {"Content-Type": FORM}, {"grant_type": "client_credentials"}
        if isinstance(credentials, FederatedCredentials):
            assertion = credentials.issuer.assertion(credentials.app_id, credentials.object_id)
            self._secrets.append(assertion)
            fields |= {
                "client_id": credentials.client_id,
                "client_assertion_type": JWT_BEARER,
                "client_assertion": assertion,
            }
            fields |= {"scope": credentials.scope} if credentials.scope else {}
        elif credentials.place == "body":
            fields |= {"client_id": credentials.client_id, "client_secret": credentials.client_secret}
        else:
            headers["Authorization"] = basic(credentials.client_id, credentials.client_secret)
        answer = await self._ask(credentials.token_endpoint, headers, urlencode(fields).encode())
        if answer.status != 200:
            said = f"answered {answer.status}" if answer.status else f"did not answer ({answer.error})"
            raise SignInFailed(answer, f"the token endpoint {said}")
        try:
            reply = msgspec.json.decode(answer.body, type=_TokenReply)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise SignInFailed(answer, "the token endpoint's answer is no token") from None
        self._secrets.append(reply.access_token)
        if reply.token_type.lower() != "bearer" or not reply.access_token or reply.expires_in <= 0:
            raise SignInFailed(answer, "the token endpoint's answer is no bearer token")
        return reply.access_token, reply.expires_in


def basic(client_id: str, client_secret: str) -> str:
    """The value of `Authorization: Basic`, each part form-encoded in it (RFC 6749 section 2.3.1)."""
    pair = f"{quote_plus(client_id)}:{quote_plus(client_secret)}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _secrets_of(credentials: Credentials) -> tuple[str, ...]:
    match credentials:
        case SecretToken(text=text):
            return (text,) if text else ()
        case ClientCredentials(client_id=client_id, client_secret=secret):
            return (basic(client_id, secret).removeprefix("Basic "), secret)
        case _:
            return ()


class EntraIssuer:
    """The issuer of one tenant's tokens. As an async context manager it also serves its metadata and key sets on 127.0.0.1.

    Args:
        tenant: the customer tenant's id.
        version: of the tokens; 1.0 is the documented one.
        object_id: of the enterprise application, the tokens' subject.
        seed: makes ids and lives repeatable; keys are always new.
        clock: epoch seconds.
    """

    def __init__(
        self,
        tenant: str,
        *,
        version: Version = "1.0",
        object_id: str | None = None,
        seed: int = 1,
        clock: Clock = time.time,
    ) -> None:
        self.tenant = tenant
        self.version: Version = version
        self._chance = random.Random(f"{seed}:issuer")
        self.object_id = object_id or self._guid()
        self.url = ""
        self._clock = clock
        self._keys: list[RSAKey] = []
        self._runner: web.AppRunner | None = None
        self.roll_keys()

    async def __aenter__(self) -> Self:
        await self.serve()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def serve(self, port: int = 0) -> None:
        """Answer for metadata and key sets on 127.0.0.1; port 0 takes a free one. `url` is set then."""
        app = web.Application()
        app.router.add_get("/{tenant}/.well-known/openid-configuration", self._metadata)
        app.router.add_get("/{tenant}/v2.0/.well-known/openid-configuration", self._metadata)
        app.router.add_get("/{tenant}/discovery/keys", self._key_set)
        app.router.add_get("/{tenant}/discovery/v2.0/keys", self._key_set)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def aclose(self) -> None:
        """Stop answering."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def settings(self) -> dict[str, str]:
        """Where a server finds this issuer in place of Entra's: `authority`, and `issuer_v1` and `issuer_v2` with `{tenant}`."""
        return {
            "authority": self.url,
            "issuer_v1": f"{self.url}/sts/{{tenant}}/",
            "issuer_v2": f"{self.url}/{{tenant}}/v2.0",
        }

    def roll_keys(self, *, drop_old: bool = False) -> None:
        """Sign with a new key from now on, which may happen at any time; the old ones stay in the key set unless dropped."""
        kid = self._guid()
        self._keys = [RSAKey.generate_key(KEY_BITS, {"kid": kid, "use": "sig"}), *([] if drop_old else self._keys)]

    def token(self, **more: Any) -> str:
        """A token for the blank secret token; `more` replaces claims, None leaves one out."""
        return self._signed(self.version, AUDIENCE, CALLER, self.object_id, more)

    def assertion(self, app_id: str, object_id: str, **more: Any) -> str:
        """The assertion of workload identity federation: version 2.0, the audience as documented."""
        return self._signed("2.0", f"api://{app_id}", app_id, object_id, more)

    def _signed(self, version: Version, audience: str, caller: str, subject: str, more: dict[str, Any]) -> str:
        now = int(self._clock())
        claims: dict[str, Any] = {
            "aud": audience,
            "iss": self._issuer(version, self.tenant),
            "iat": now,
            "nbf": now,
            "exp": now + self._chance.randint(*ENTRA_TOKEN_LIFE_S),
            "appid" if version == "1.0" else "azp": caller,
            "appidacr" if version == "1.0" else "azpacr": "2",
            "idp": self._issuer(version, self.tenant),
            "oid": subject,
            "sub": subject,
            "tid": self.tenant,
            "uti": self._guid().replace("-", "")[:22],
            "ver": version,
            **more,
        }
        key = self._keys[0]
        header = {"typ": "JWT", "alg": "RS256", "kid": key.kid, "x5t": key.kid}
        said = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(header, said, key, ["RS256"])

    def _issuer(self, version: Version, tenant: str) -> str:
        return self.settings["issuer_v1" if version == "1.0" else "issuer_v2"].replace("{tenant}", tenant)

    async def _metadata(self, request: web.Request) -> web.Response:
        tenant = request.match_info["tenant"]
        version: Version = "2.0" if "/v2.0/" in request.path else "1.0"
        keys = "discovery/v2.0/keys" if version == "2.0" else "discovery/keys"
        said = {"issuer": self._issuer(version, tenant), "jwks_uri": f"{self.url}/{tenant}/{keys}"}
        return web.json_response(said)

    async def _key_set(self, request: web.Request) -> web.Response:
        return web.json_response({"keys": [key.as_dict(private=False) for key in self._keys]})

    def _guid(self) -> str:
        return str(uuid.UUID(int=self._chance.getrandbits(128), version=4))
