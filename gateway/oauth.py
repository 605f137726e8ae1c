"""OAuth client credentials: the token endpoint of a target, and the tokens it issues (RFC 6749 sections 2.3.1, 4.4, 5; RFC 7523).

Entra signs in with a client secret, in `Authorization: Basic` or in the form, or with an assertion that it signed itself
(workload identity federation). The client id of a target is the target's name. A token is `pgt_` and a JWT signed with joserfc
under a key derived from this installation's pepper and the target's name; it names the secret it was bought with, and ends with
it. A token bought with an assertion ends with the settings it was bought under.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote_plus

import msgspec
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from msgspec import Struct

from gateway.entra_keys import KeysUnavailable
from gateway.entra_tokens import TOKEN_CHARS_MAX, EntraTokens, wanted_assertion
from gateway.keys import CLIENT_PREFIX, Keys, is_live, key_id_of
from gateway.refusals import Check, RefusedSignIns
from gateway.store import Store
from schemas.config import Federation, TargetSettings
from schemas.logs import logger

TOKEN_PREFIX = "pgt_"  # noqa: S105 no secret, but how one is recognised
BODY_BYTES_MAX = 16 * 1024
FIELDS_MAX = 32
CLOCKS_APART_S = 60.0
"""How much the clocks of two gateways of one installation may differ."""
JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
FORM = "application/x-www-form-urlencoded"
UNKNOWN_TARGET = "unknown"
KEY_SERVER_RETRY_AFTER_S = 30

_ALGORITHM = "HS256"
_HEADER = {"alg": _ALGORITHM, "typ": "at+jwt"}
_ISSUER = "provgate"
_SIGNATURES = jws.JWSRegistry(algorithms=[_ALGORITHM])
_PARTS = 3
_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
_FORM_FIELDS = frozenset(
    ("grant_type", "client_id", "client_secret", "client_assertion", "client_assertion_type", "scope")
)

TokenRefusal = Literal["malformed", "wrong", "expired", "revoked", "settings_changed"]

log = logger()


class AccessToken(Struct, frozen=True):
    """What a token says. `sid` is the id of the secret it was bought with, or `fed` the settings of the federation."""

    iss: str
    aud: str
    iat: int
    exp: int
    jti: str
    sid: str = ""
    fed: str = ""


@functools.lru_cache(maxsize=256)
def fingerprint(settings: Federation) -> str:
    """Changes with every setting of a federation."""
    return hashlib.sha256(msgspec.json.encode(settings)).hexdigest()[:16]


class AccessTokens:
    """Issues and verifies the tokens of all targets.

    Args:
        keys: the client secrets, and what the signing keys are derived from.
        now: epoch seconds.
    """

    def __init__(self, keys: Keys, now: Callable[[], float]) -> None:
        self._keys = keys
        self._now = now
        self._signing: dict[str, OctKey] = {}

    def issue(self, target: str, settings: TargetSettings, *, secret_id: str | None) -> str:
        """A new token for one target.

        Args:
            target: a configured target.
            secret_id: the client secret it is bought with; None for an assertion.
        """
        now = int(self._now())
        federation = settings.oauth.federation
        token = AccessToken(
            iss=_ISSUER,
            aud=target,
            iat=now,
            exp=now + settings.oauth.token_life_s,
            jti=secrets.token_hex(16),
            sid=secret_id or "",
            fed=fingerprint(federation) if secret_id is None and federation is not None else "",
        )
        claims = msgspec.to_builtins(token)
        return TOKEN_PREFIX + jwt.encode(dict(_HEADER), claims, self._key(target), [_ALGORITHM], default_type=None)

    async def check(self, target: str, settings: TargetSettings, text: str) -> TokenRefusal | None:
        """Whether a token opens a target now; None when it does.

        Args:
            target: a configured target.

        Raises:
            StoreError: the client secrets cannot be read.
        """
        if not text.startswith(TOKEN_PREFIX) or len(text) > TOKEN_CHARS_MAX or text.count(".") != _PARTS - 1:
            return "malformed"
        token = self._verified(target, text)
        if token is None or token.aud != target or token.iss != _ISSUER:
            return "wrong"
        now = self._now()
        if now >= token.exp or token.iat > now + CLOCKS_APART_S:
            return "expired"
        if token.sid:
            row = await self._keys.known(target, token.sid, "client")
            return None if row is not None and is_live(row, now) else "revoked"
        federation = settings.oauth.federation
        return None if federation is not None and token.fed == fingerprint(federation) else "settings_changed"

    async def explain(self, target: str, settings: TargetSettings, text: str) -> list[Check]:
        """The questions behind `check`, for the operator."""
        refusal = await self.check(target, settings, text)
        token = self._verified(target, text) if refusal not in ("malformed",) else None
        checks = [
            Check("form", f"{TOKEN_PREFIX} and a JWT", f"{len(text):,} characters", _verdict(refusal != "malformed")),
            Check(
                "signature",
                f"a token of this installation for {target}",
                "one" if token is not None else "of another target or installation, or changed",
                _verdict(refusal != "wrong", refusal == "malformed"),
            ),
        ]
        if token is None:
            return checks
        left_s = token.exp - self._now()
        age = f"ends in {left_s:.0f} s" if left_s > 0 else f"ended {-left_s:.0f} s ago"
        checks.append(Check("exp", "a token that has not ended", age, _verdict(refusal != "expired")))
        source = f"client secret {token.sid}" if token.sid else "an assertion"
        ended = refusal in ("revoked", "settings_changed")
        received = f"{source}, {'which counts no more' if ended else 'which counts'}"
        checks.append(
            Check("source", "a live secret, or the settings of today", received, _verdict(not ended, left_s <= 0))
        )
        return checks

    def _key(self, target: str) -> OctKey:
        key = self._signing.get(target)
        if key is None:
            key = self._signing[target] = OctKey.import_key(self._keys.derived(f"access-token/{target}"))
        return key

    def _verified(self, target: str, text: str) -> AccessToken | None:
        """What a genuine token says; `target` is a configured one, so there are few keys."""
        try:
            parts = jws.extract_compact(text[len(TOKEN_PREFIX) :].encode("ascii"), None, _SIGNATURES)
            if parts.headers() != _HEADER or not jws.validate_compact(parts, self._key(target), None, _SIGNATURES):
                return None
            return msgspec.json.decode(parts.payload, type=AccessToken)
        except (JoseError, ValueError, TypeError, AttributeError, RecursionError):
            return None


def _verdict(passed: bool, skipped: bool = False) -> Literal["passed", "failed", "not checked"]:
    return "not checked" if skipped else "passed" if passed else "failed"


# ---- the token endpoint


class TokenReply(Struct, frozen=True):
    """An answer of the token endpoint: JSON, never to be stored."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class OAuthError(Exception):
    """An error of RFC 6749 section 5.2.

    Args:
        error: the code of the RFC.
        description: a sentence for the administrator; never repeats what was sent.
    """

    def __init__(self, status: int, error: str, description: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"oauth error {error}")
        self.status = status
        self.error = error
        self.description = description
        self.headers = dict(headers or {})

    def reply(self) -> TokenReply:
        """What is sent."""
        body = msgspec.json.encode({"error": self.error, "error_description": self.description})
        return TokenReply(self.status, body, {**_NO_STORE, **self.headers})


class TokenRequest(Struct, frozen=True):
    """What came in.

    Args:
        headers: as ASGI gives them, names in lower case.
        body: reads the whole body within its bounds.
    """

    method: str
    query: bytes
    headers: Iterable[tuple[bytes, bytes]]
    body: Callable[[int], Awaitable[bytes]]


class Client(Struct, frozen=True):
    """Who says to be calling: an id with a secret or an assertion."""

    client_id: str | None
    secret: str | None = None
    assertion: str | None = None


class TokenEndpoint:
    """Answers `POST /oauth2/{target}/token`.

    Whether a client is refused because of its target, its id, its secret or its assertion is not told: it is always the same
    401, with an id under which the operator finds the reason. What is wrong with the request itself is told, and does not depend
    on the target.

    Args:
        store: remembers assertions that were used, so that they count once in all gateways.
        targets: settings of the configured targets by name.
        entra: verifies assertions.
        refused: where refusals are explained.
        now: epoch seconds.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        tokens: AccessTokens,
        entra: EntraTokens,
        targets: Callable[[], Mapping[str, TargetSettings]],
        refused: RefusedSignIns,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._keys = keys
        self._tokens = tokens
        self._entra = entra
        self._targets = targets
        self._refused = refused
        self._now = now

    async def answer(self, target: str, request: TokenRequest) -> TokenReply:
        """A token, or an error.

        Raises:
            ScimError: the body is too large or too slow.
            StoreError: secrets cannot be read.
        """
        try:
            return await self._answer(target, request)
        except KeysUnavailable:
            wait = {"Retry-After": str(KEY_SERVER_RETRY_AFTER_S)}
            sentence = "Entra's signing keys cannot be reached; try again."
            return OAuthError(503, "temporarily_unavailable", sentence, wait).reply()
        except OAuthError as error:
            known = target in self._targets()
            log.warning("oauth.refused", target=target if known else UNKNOWN_TARGET, cause=error.error)
            return error.reply()

    async def _answer(self, target: str, request: TokenRequest) -> TokenReply:
        if request.method != "POST":
            raise OAuthError(405, "invalid_request", "The token endpoint takes POST only.", {"Allow": "POST"})
        fields = await _form(request)
        grant = fields.get("grant_type")
        if grant is None:
            raise _bad("grant_type is missing; it is client_credentials.")
        client = _client(request.headers, fields)
        if grant != "client_credentials":
            raise OAuthError(400, "unsupported_grant_type", "The only grant type here is client_credentials.")
        settings = self._targets().get(target)
        if settings is None:
            raise self._refusal(
                UNKNOWN_TARGET, "unknown_target", [Check("target", "a configured one", "another", "failed")]
            )
        if "oauth" not in settings.auth:
            ways = ", ".join(settings.auth)
            raise self._refusal(
                target, "way_not_allowed", [Check("auth", "oauth", f"only {ways} set for it", "failed")]
            )
        secret_id = None
        if client.assertion is not None:
            await self._by_assertion(target, settings, client, client.assertion)
        else:
            secret_id = await self._by_secret(target, client)
        token = self._tokens.issue(target, settings, secret_id=secret_id)
        log.info("oauth.token_issued", target=target, by=secret_id or "assertion")
        answer: dict[str, Any] = {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": settings.oauth.token_life_s,
        }
        return TokenReply(200, msgspec.json.encode(answer), _NO_STORE)

    # ---- who it is

    async def _by_secret(self, target: str, client: Client) -> str:
        """The id of the secret that was right."""
        secret = client.secret or ""
        refusal = await self._keys.check(target, secret, "client")
        if refusal is None and client.client_id == target:
            return key_id_of(secret, CLIENT_PREFIX) or ""
        checks = [_client_check(client, (target,))]
        if not secret:
            raise self._refusal(target, "no_secret", [*checks, Check("client_secret", "one", "none", "failed")])
        raise self._refusal(
            target, refusal or "client_id", [*checks, *await self._keys.explained(target, secret, "client")]
        )

    async def _by_assertion(self, target: str, settings: TargetSettings, client: Client, assertion: str) -> None:
        federation = settings.oauth.federation
        if federation is None:
            check = Check("federation", "set for this target", "not set, but an assertion came", "failed")
            raise self._refusal(target, "no_federation", [check])
        allowed = (target, federation.app_id.lower())
        named = _client_check(client, allowed)
        verdict, _ = await self._entra.examine(assertion, wanted_assertion(federation))
        checks = [*([named] if client.client_id is not None else []), *verdict.checks]
        if verdict.cause is not None:
            raise self._refusal(target, verdict.cause, checks)
        if client.client_id is not None and client.client_id not in allowed:
            raise self._refusal(target, "client_id", checks)
        if federation.replay == "refuse" and not await self._first_use(target, verdict.use, verdict.until):
            received = "used before, for this target"
            raise self._refusal(
                target, "replay", [*checks, Check("replay", "an assertion's first use", received, "failed")]
            )

    async def _first_use(self, target: str, use: str, until: float) -> bool:
        """Remember that an assertion was used, until it ends; False when it was used before, here or at another gateway."""
        name = hashlib.sha256(f"{target}\0{use}".encode()).hexdigest()
        now = self._now()
        return await self._store.run(lambda ledger: ledger.use_assertion(name, until, now))

    def _refusal(self, target: str, cause: str, checks: Iterable[Check]) -> OAuthError:
        """The one answer to whoever is no client here; kept for the operator."""
        refused = self._refused.note(target, cause, checks, place="token")
        failed = [check.name for check in refused.checks if check.verdict == "failed"]
        log.warning("auth.refused", target=target, cause=cause, place="token", refusal=refused.id, failed=failed)
        return OAuthError(
            401,
            "invalid_client",
            f"The client is not accepted here. The operator of the gateway finds the reason under {refused.id}.",
            {"WWW-Authenticate": 'Basic realm="scim"'},
        )


def _client_check(client: Client, allowed: tuple[str, ...]) -> Check:
    # what was sent may be a secret that was entered in the wrong field
    given = client.client_id
    received = "nothing" if given is None else given if given in allowed else f"another, {len(given):,} characters"
    return Check("client_id", " or ".join(allowed), received, _verdict(given in allowed))


# ---- the request


def _bad(description: str) -> OAuthError:
    return OAuthError(400, "invalid_request", description)


async def _form(request: TokenRequest) -> dict[str, str]:
    """The fields of the form; empty ones count as not sent (RFC 6749 section 3.2)."""
    types = [value for name, value in request.headers if name == b"content-type"]
    media_type = types[0].partition(b";")[0].strip().lower() if len(types) == 1 else b""
    if media_type != FORM.encode():
        raise _bad(f"The request has to be form-encoded ({FORM}).")
    query = parse_qsl(request.query.decode("latin-1"), keep_blank_values=True, max_num_fields=None)
    if any(name in _FORM_FIELDS for name, _ in query):
        raise _bad("Parameters belong in the body; an address ends up in logs.")
    try:
        body = (await request.body(BODY_BYTES_MAX)).decode("ascii")
        pairs = parse_qsl(body, keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict")
    except ValueError:  # UnicodeDecodeError is one; too many fields too
        raise _bad("The form cannot be read.") from None
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name in fields:
            raise _bad("A parameter is sent twice.")
        fields[name] = value
    return {name: value for name, value in fields.items() if value}


def _client(headers: Iterable[tuple[bytes, bytes]], fields: Mapping[str, str]) -> Client:
    """Who says to be calling, by one way of authentication and no more."""
    basic = _basic([value for name, value in headers if name == b"authorization"])
    secret, assertion = fields.get("client_secret"), fields.get("client_assertion")
    named = fields.get("client_id")
    kind = fields.get("client_assertion_type")
    if (kind is None) != (assertion is None) or (kind is not None and kind != JWT_BEARER):
        raise _bad(f"client_assertion goes together with client_assertion_type {JWT_BEARER}.")
    if assertion is not None and (secret is not None or basic is not None):
        raise _bad("Only one way of client authentication may be used.")
    if basic is None:
        return Client(named, secret, assertion)
    if (named is not None and named != basic[0]) or (secret is not None and secret != basic[1]):
        raise _bad("The Authorization header and the form name different clients.")
    return Client(*basic)


def _basic(headers: list[bytes]) -> tuple[str, str] | None:
    """Id and secret of the Authorization header, each form-encoded in it (RFC 6749 section 2.3.1); None without one."""
    if not headers:
        return None
    scheme, _, value = headers[0].partition(b" ")
    if len(headers) > 1 or scheme.lower() != b"basic":
        raise _bad("The Authorization header has to be one, with the scheme Basic.")
    try:
        text = base64.b64decode(value.strip(), validate=True).decode("utf-8")
        name, colon, secret = text.partition(":")
        if not colon:
            raise ValueError
        return unquote_plus(name, errors="strict"), unquote_plus(secret, errors="strict")
    except (binascii.Error, ValueError):
        raise _bad("The Authorization header cannot be read.") from None
