"""Tokens that Entra has signed: whether one may come in, question by question (security requirement S3).

joserfc verifies signatures; here is decided what a token has to say. RS256 and nothing else; the key comes from the configured
place and from nowhere a token names; issuer, tenant, audience and caller are compared letter by letter, times with five minutes
of grace; and a person's token is never taken. Names and mail addresses in a token decide nothing.

A signature is verified last: somebody who does not even know the tenant cannot make this gateway fetch keys.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from msgspec import Struct

from gateway.entra_keys import KID_CHARS_MAX, KeyPlace, KeySets, SigningKey, Version, key_place
from gateway.refusals import Check, CheckVerdict, shown, shown_time
from schemas.config import EntraSignIn, Federation

TOKEN_CHARS_MAX = 8_192
LEEWAY_S = 300.0
VERDICTS_MAX = 4_096
"""Accepted tokens that are remembered; Entra uses one for an hour."""
ALGORITHM = "RS256"

_FORBIDDEN_HEADERS = ("jku", "jwk", "x5u", "x5c", "crit", "b64", "zip", "enc")
"""Whatever names a key, or changes how the token is read."""
_PERSONAL_CLAIMS = ("scp", "upn", "unique_name", "preferred_username")
"""What only the token of a signed-in person has."""
_CALLER_CLAIMS = ("appid", "azp")
_SIGNATURES = jws.JWSRegistry(algorithms=[ALGORITHM], strict_check_header=False)


class Wanted(Struct, frozen=True):
    """What a token has to say to be accepted.

    Args:
        places: where the keys of each accepted version are; the issuer is the place's.
        audiences: what `aud` may be.
        callers: what `appid` and `azp` may be.
        subjects: what `sub` may be; anything when empty.
        object_ids: what `oid` may be; anything when empty.
    """

    tenant: str
    places: tuple[tuple[Version, KeyPlace], ...]
    audiences: tuple[str, ...]
    callers: tuple[str, ...]
    subjects: tuple[str, ...] = ()
    object_ids: tuple[str, ...] = ()


def _lower(ids: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text.lower() for text in ids)


@functools.lru_cache(maxsize=256)
def wanted_token(settings: EntraSignIn) -> Wanted:
    """What the tokens of the blank Secret Token look like."""
    cloud, tenant = settings.addresses(), settings.tenant.lower()
    return Wanted(
        tenant=tenant,
        places=tuple((version, key_place(cloud, tenant, version)) for version in settings.versions),
        audiences=settings.audiences,
        callers=_lower(settings.callers),
        object_ids=_lower(settings.object_ids),
    )


@functools.lru_cache(maxsize=256)
def wanted_assertion(settings: Federation) -> Wanted:
    """What the assertions of workload identity federation look like: version 2.0, for the workload identity's application."""
    tenant, app_id = settings.tenant.lower(), settings.app_id.lower()
    return Wanted(
        tenant=tenant,
        places=(("2.0", key_place(settings.addresses(), tenant, "2.0")),),
        audiences=(f"api://{app_id}", app_id, f"api://{app_id}/.default"),
        callers=_lower(settings.callers) or (app_id,),
        subjects=_lower(settings.subjects),
        object_ids=_lower(settings.object_ids),
    )


class Verdict(Struct, frozen=True):
    """What became of a token.

    Args:
        cause: name of the first check that failed; None when it is accepted.
        checks: every question; empty when the answer was remembered.
        until: epoch seconds at which an accepted token ends, grace included.
        use: by what another use of the same token is recognised: its `uti`, or a digest.
    """

    cause: str | None
    checks: tuple[Check, ...] = ()
    until: float = 0.0
    use: str = ""


class _Asked:
    """The questions so far."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def ask(self, name: str, passed: bool | None, expected: str, received: str) -> None:
        verdict: CheckVerdict = "not checked" if passed is None else "passed" if passed else "failed"
        self.checks.append(Check(name, expected, received, verdict))

    @property
    def failed(self) -> str | None:
        return next((check.name for check in self.checks if check.verdict == "failed"), None)


class _Kept(Struct, frozen=True):
    until: float
    place: KeyPlace
    generation: int


class EntraTokens:
    """Verifies tokens.

    Args:
        keys: the keys they are signed with.
        now: epoch seconds.
    """

    def __init__(self, keys: KeySets, now: Callable[[], float]) -> None:
        self._keys = keys
        self._now = now
        self._kept: dict[tuple[bytes, Wanted], _Kept] = {}

    async def check(self, token: str, wanted: Wanted) -> Verdict:
        """The verdict on a token; one that was accepted is remembered until it ends or Entra's keys change.

        Raises:
            KeysUnavailable: everything fits, but its signature cannot be verified now.
        """
        name = (hashlib.sha256(token.encode("utf-8", "replace")).digest(), wanted)
        kept = self._kept.get(name)
        if kept is not None:
            if self._now() < kept.until and self._keys.generation(kept.place) == kept.generation:
                return Verdict(None, until=kept.until)
            del self._kept[name]
        verdict, place = await self.examine(token, wanted)
        if verdict.cause is None and place is not None:
            if len(self._kept) >= VERDICTS_MAX:
                del self._kept[next(iter(self._kept))]
            self._kept[name] = _Kept(verdict.until, place, self._keys.generation(place))
        return verdict

    async def examine(self, token: str, wanted: Wanted) -> tuple[Verdict, KeyPlace | None]:
        """The verdict with every question, and where the token's key is from. Nothing is remembered.

        Raises:
            KeysUnavailable: everything fits, but its signature cannot be verified now.
        """
        asked = _Asked()
        read = _read(token)
        form = f"three parts of base64url with JSON in them, at most {TOKEN_CHARS_MAX:,} characters"
        asked.ask("form", read is not None, form, f"{len(token):,} characters")
        if read is None:
            return Verdict("form", tuple(asked.checks)), None
        parts, claims = read
        header = parts.headers()
        _ask_header(asked, header)
        place = _ask_claims(asked, claims, wanted, self._now())
        await self._ask_signature(asked, parts, claims, place, asked.failed is None)
        if asked.failed is not None or place is None:
            return Verdict(asked.failed or "signature", tuple(asked.checks)), None
        uti = claims.get("uti")
        use = uti if isinstance(uti, str) and uti else hashlib.sha256(parts.segments["payload"]).hexdigest()
        return Verdict(None, tuple(asked.checks), float(claims["exp"]) + LEEWAY_S, use), place

    async def _ask_signature(
        self, asked: _Asked, parts: jws.CompactSignature, claims: Mapping[str, Any], place: KeyPlace | None, fits: bool
    ) -> None:
        kid = parts.headers().get("kid")
        if place is None or not isinstance(kid, str) or len(kid) > KID_CHARS_MAX:
            asked.ask("signature", None, "Entra's", "not looked at: it is not known whose key it would have to be")
            return
        # keys are fetched only for a token that fits otherwise; for the explanation of another, those at hand must do
        key = await self._keys.find(place, kid) if fits else self._keys.held(place, kid)
        if key is None and not fits:
            asked.ask("signature", None, "Entra's", "not looked at: the token does not fit anyway")
            return
        asked.ask("key", key is not None, f"a key of {place.metadata_url}", f"kid {shown(kid)}")
        if key is not None:
            asked.ask("key_issuer", _may_sign(key, claims), "a key that signs for this issuer", shown(key.issuer))
            asked.ask("signature", _is_signed(parts, key), f"{ALGORITHM} with that key", f"alg {_alg(parts)}")


def _alg(parts: jws.CompactSignature) -> str:
    return shown(parts.headers().get("alg"))


def _may_sign(key: SigningKey, claims: Mapping[str, Any]) -> bool:
    """A set may hold keys that sign for one issuer only; each says so (Microsoft, "validate the signing key issuer")."""
    if key.issuer is None:
        return True
    return key.issuer.replace("{tenantid}", str(claims.get("tid"))) == claims.get("iss")


def _is_signed(parts: jws.CompactSignature, key: SigningKey) -> bool:
    try:
        return jws.validate_compact(parts, key.key, [ALGORITHM], _SIGNATURES)
    except (JoseError, ValueError, TypeError):
        return False


def _read(token: str) -> tuple[jws.CompactSignature, dict[str, Any]] | None:
    """The parts of a token and its claims, unverified; None when it is no token."""
    if len(token) > TOKEN_CHARS_MAX or not token.isascii():
        return None
    try:
        parts = jws.extract_compact(token.encode("ascii"), None, _SIGNATURES)
        header: Any = parts.protected  # whatever JSON stood there
        if not isinstance(header, dict) or not parts.payload:
            return None
        claims = msgspec.json.decode(parts.payload)
    except (JoseError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return (parts, claims) if isinstance(claims, dict) else None


def _ask_header(asked: _Asked, header: Mapping[str, Any]) -> None:
    alg, kid, typ = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    asked.ask("alg", alg == ALGORITHM, ALGORITHM, shown(alg))
    has_kid = isinstance(kid, str) and 0 < len(kid) <= KID_CHARS_MAX
    asked.ask("kid", has_kid, "the id of the key", shown(kid))
    asked.ask("typ", isinstance(typ, str) and typ.upper() in ("JWT", "AT+JWT"), "JWT", shown(typ))
    named = [name for name in _FORBIDDEN_HEADERS if name in header]
    asked.ask("header", not named, "nothing that names a key of its own", ", ".join(named) or "nothing")


def _one_of(texts: tuple[str, ...]) -> str:
    return texts[0] if len(texts) == 1 else f"one of {', '.join(texts)}"


def _ask_claims(asked: _Asked, claims: Mapping[str, Any], wanted: Wanted, now: float) -> KeyPlace | None:
    """Every claim; the place of the keys when the issuer is one of those expected."""
    issuer = claims.get("iss")
    found = next(((version, place) for version, place in wanted.places if place.issuer == issuer), None)
    asked.ask("iss", found is not None, _one_of(tuple(place.issuer for _, place in wanted.places)), shown(issuer))
    version = claims.get("ver")
    versions = _one_of(tuple(version for version, _ in wanted.places))
    asked.ask("ver", found is not None and version == found[0], found[0] if found else versions, shown(version))
    asked.ask("tid", claims.get("tid") == wanted.tenant, wanted.tenant, shown(claims.get("tid")))
    audience = claims.get("aud")
    asked.ask(
        "aud", isinstance(audience, str) and audience in wanted.audiences, _one_of(wanted.audiences), shown(audience)
    )
    _ask_caller(asked, claims, wanted, version)
    for name, allowed in (("sub", wanted.subjects), ("oid", wanted.object_ids)):
        if allowed:
            asked.ask(name, claims.get(name) in allowed, _one_of(allowed), shown(claims.get(name)))
    _ask_times(asked, claims, now)
    _ask_app_only(asked, claims)
    return found[1] if found is not None else None


def _ask_caller(asked: _Asked, claims: Mapping[str, Any], wanted: Wanted, version: Any) -> None:
    """Version 1.0 names the caller in `appid`, 2.0 in `azp` or, in assertions, in `appid`; whatever is there has to fit."""
    given = [claims[name] for name in _CALLER_CLAIMS if name in claims]
    named = "appid" in claims or (version == "2.0" and "azp" in claims)
    passed = named and all(caller in wanted.callers for caller in given)
    asked.ask("caller", passed, _one_of(wanted.callers), ", ".join(shown(caller) for caller in given) or "nothing")


def _ask_times(asked: _Asked, claims: Mapping[str, Any], now: float) -> None:
    at = shown_time(now)
    exp, nbf, iat = (claims.get(name) for name in ("exp", "nbf", "iat"))
    asked.ask("exp", _is_time(exp) and exp > now - LEEWAY_S, f"after {at}, 5 min of grace", shown_time(exp))
    for name, value in (("nbf", nbf), ("iat", iat)):
        asked.ask(name, _is_time(value) and value <= now + LEEWAY_S, f"before {at}, 5 min of grace", shown_time(value))


def _is_time(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _ask_app_only(asked: _Asked, claims: Mapping[str, Any]) -> None:
    """An application's own token has no scope and no person in it; `idtyp` and the strength of its credential say so too."""
    signs = [name for name in _PERSONAL_CLAIMS if name in claims]
    if "idtyp" in claims and claims["idtyp"] != "app":
        signs.append("idtyp")
    signs += [name for name in ("appidacr", "azpacr") if name in claims and claims[name] not in ("1", "2")]
    asked.ask("app_only", not signs, "the token of an application", ", ".join(signs) or "an application's")
