"""Who calls: the question every SCIM request is asked before it may cost anything.

The answer to everybody who may not is the same, whatever the reason (security requirement S4), but for an id; under that id the
operator finds what was asked, what was expected and what came.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from gateway.entra_keys import KeysUnavailable
from gateway.entra_tokens import TOKEN_CHARS_MAX, EntraTokens, wanted_token
from gateway.keys import PREFIX, Keys
from gateway.limits import Buckets, too_many_refusals
from gateway.messages import ScimError, unauthorized, unavailable
from gateway.oauth import KEY_SERVER_RETRY_AFTER_S, TOKEN_PREFIX, UNKNOWN_TARGET, AccessTokens
from gateway.refusals import Check, CheckVerdict, RefusedSignIns
from schemas.config import SignInWay, TargetSettings
from schemas.logs import logger

KEY_CHARS_MAX = 512

_SCHEME = b"bearer "
_VISIBLE = re.compile(r"[\x21-\x7e]+\Z")
_KEY_START = f"{PREFIX}_"
_DOTS_OF_JWT = 2

log = logger()


def bearer(headers: Iterable[tuple[bytes, bytes]], chars_max: int = KEY_CHARS_MAX) -> str | None:
    """The bearer token of a request (RFC 6750 section 2.1); None when there is none, or more than one, or it cannot be one."""
    found: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            if found is not None or value[: len(_SCHEME)].lower() != _SCHEME:
                return None
            found = value[len(_SCHEME) :].strip()
    if found is None or len(found) > chars_max:
        return None
    token = found.decode("latin-1")
    return token if _VISIBLE.match(token) else None


class Authenticator:
    """Lets a request pass that may be served, by one of the ways its target allows: key, Entra's token, our own token.

    Which way a token is of is decided by how it begins, never by trying: none is ever read as another kind.

    Args:
        keys: the keys of all targets.
        entra: verifies tokens Entra has signed.
        tokens: verifies tokens of our own token endpoint.
        targets: settings of the configured targets by name.
        refused: where refusals are explained.
        refusals: how many of them a source is told about in full.
    """

    def __init__(
        self,
        keys: Keys,
        entra: EntraTokens,
        tokens: AccessTokens,
        targets: Callable[[], Mapping[str, TargetSettings]],
        refused: RefusedSignIns,
        refusals: Buckets,
    ) -> None:
        self._keys = keys
        self._entra = entra
        self._tokens = tokens
        self._targets = targets
        self._refused = refused
        self._refusals = refusals

    async def admit(self, target: str, headers: Iterable[tuple[bytes, bytes]], source: Callable[[], str]) -> None:
        """Let a request pass that carries a live key, or an accepted token, of this target.

        A source that was refused too often is still asked for its key first: what is right passes, whoever else fails behind the
        same address. Only what is wrong is told less, and costs no look-up, no log line and no record any more.

        Args:
            source: where the request comes from; only asked when it is refused.

        Raises:
            ScimError: 401, the same but for its id for an unknown target and whatever is wrong with a key or token; 429 in its
                place for a source that was refused too often; 503 when all of a token fits but the key of its signature cannot be
                had now.
            StoreError: the keys cannot be read.
        """
        settings = self._targets().get(target)
        token = bearer(headers, TOKEN_CHARS_MAX)
        if settings is None:
            if token is not None:
                await self._keys.check("", token[:KEY_CHARS_MAX])  # takes as long as for a target there is
            self._count(source)
            # the name was chosen by the caller and stays out of the log
            raise self._refusal(UNKNOWN_TARGET, "unknown_target", [_failed("target", "a configured one", "another")])
        if token is None:
            self._count(source)
            expected = "one header, Authorization: Bearer ..."
            raise self._refusal(target, "missing", [_failed("token", expected, _instead(headers))])
        way = "key" if token.startswith(_KEY_START) else _way(token, settings)
        if way not in settings.auth:
            self._count(source)
            raise self._refusal(target, "way_not_allowed", [_auth_check(way, settings)])
        if way == "key":
            refusal = await self._keys.check(target, token) if len(token) <= KEY_CHARS_MAX else "malformed"
            if refusal is not None:
                self._count(source)
                explained = await self._keys.explained(target, token[: KEY_CHARS_MAX + 1])
                raise self._refusal(target, refusal, [_auth_check("key", settings), *explained])
        elif way == "oauth":
            await self._by_own_token(target, settings, token, source)
        else:
            await self._by_entra_token(target, settings, token, source)

    async def _by_own_token(self, target: str, settings: TargetSettings, token: str, source: Callable[[], str]) -> None:
        refusal = await self._tokens.check(target, settings, token)
        if refusal is not None:
            self._count(source)
            explained = await self._tokens.explain(target, settings, token)
            raise self._refusal(target, refusal, [_auth_check("oauth", settings), *explained])

    async def _by_entra_token(
        self, target: str, settings: TargetSettings, token: str, source: Callable[[], str]
    ) -> None:
        assert settings.entra is not None, "a configuration without it is refused"
        try:
            verdict = await self._entra.check(token, wanted_token(settings.entra))
        except KeysUnavailable:
            # a 401 would make Entra stop the whole job, and nothing is known against this caller
            raise unavailable("Entra's signing keys cannot be reached", KEY_SERVER_RETRY_AFTER_S) from None
        if verdict.cause is not None:
            self._count(source)
            raise self._refusal(target, verdict.cause, [_auth_check("entra", settings), *verdict.checks])

    def _count(self, source: Callable[[], str]) -> None:
        """One more refusal of this source.

        Raises:
            ScimError: 429 when it has had too many.
        """
        if not self._refusals.take(source()):
            raise too_many_refusals()

    def _refusal(self, target: str, cause: str, checks: Iterable[Check]) -> ScimError:
        """The one answer to whoever may not; kept for the operator."""
        refused = self._refused.note(target, cause, checks)
        log.warning("auth.refused", target=target, cause=cause, refusal=refused.id)
        return unauthorized(refused.id)


_WAY_NAMES: Mapping[SignInWay, str] = {
    "key": "an access key",
    "oauth": "a token of our token endpoint",
    "entra": "a token of another issuer",
}


def _way(token: str, settings: TargetSettings) -> SignInWay:
    """Which way of signing in a token is of, that does not begin like a key.

    What begins like nothing we know is a bad copy of a key, where keys are taken.
    """
    if token.startswith(TOKEN_PREFIX):
        return "oauth"
    return "key" if "key" in settings.auth and token.count(".") != _DOTS_OF_JWT else "entra"


def _failed(name: str, expected: str, received: str) -> Check:
    return Check(name, expected, received, "failed")


def _auth_check(way: SignInWay, settings: TargetSettings) -> Check:
    verdict: CheckVerdict = "passed" if way in settings.auth else "failed"
    return Check("auth", f"auth = {', '.join(settings.auth)}", _WAY_NAMES[way], verdict)


def _instead(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """What a request has in place of a bearer token."""
    values = [value for name, value in headers if name == b"authorization"]
    if not values:
        return "no Authorization header"
    if len(values) > 1:
        return f"{len(values)} Authorization headers"
    if values[0][: len(_SCHEME)].lower() != _SCHEME:
        return "another scheme"
    length = len(values[0]) - len(_SCHEME)
    return "nothing behind Bearer" if not length else f"{length:,} characters that are no token"
