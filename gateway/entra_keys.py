"""The keys Entra signs tokens with: fetched from the one address that is configured, kept, and fetched anew when they change.

The address is made of the configured cloud, the configured tenant and the version of the token, and of nothing a caller sent. The
metadata there names the issuer, which must be the expected one, and where the keys are, which must be a host of the same cloud.

This is the only place where the gateway calls anybody over HTTP, and the only one that knows the client library. It is imported
when the first call is made: most gateways never make one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
from joserfc.errors import JoseError
from joserfc.jwk import RSAKey
from joserfc.util import urlsafe_b64decode
from msgspec import Struct

from schemas.config import EntraCloud
from schemas.logs import logger

REFETCH_S = 60.0
"""For a key id nobody knows, keys are fetched at most this often."""
RETRY_S = 10.0
"""While no keys are held at all, they are asked for at most this often."""
REFRESH_S = 6 * 3600.0
"""Keys older than this are fetched anew beside the requests, so that a withdrawn key goes."""
KEPT_S = 7 * 86_400.0
"""Without any contact the last keys are believed for this long."""
CALL_S = 5.0
ANSWER_BYTES_MAX = 512 * 1024
KEYS_MAX = 100
KEY_BITS_MIN = 2048
KEY_BITS_MAX = 8192
KID_CHARS_MAX = 128

Version = Literal["1.0", "2.0"]
Fetch = Callable[[str], Awaitable[bytes]]

log = logger()


class KeysUnavailable(Exception):
    """Whether a token is genuine cannot be said now: its key is not here, and the key server cannot be reached."""


class BadAnswer(Exception):
    """The key server answered something that is not believed; the text says what, without repeating it."""


class KeyPlace(Struct, frozen=True):
    """Where the keys of one tenant's tokens of one version are."""

    metadata_url: str
    issuer: str
    key_hosts: tuple[str, ...]
    """Scheme and host, e.g. `https://login.microsoftonline.com`."""


def key_place(cloud: EntraCloud, tenant: str, version: Version) -> KeyPlace:
    """The place for one cloud, tenant and version; the tenant id in lower case, as Entra writes it."""
    tenant = tenant.lower()
    authority = cloud.authority.rstrip("/")
    path, issuer = ("", cloud.issuer_v1) if version == "1.0" else ("/v2.0", cloud.issuer_v2)
    return KeyPlace(
        f"{authority}/{tenant}{path}/.well-known/openid-configuration",
        issuer.replace("{tenant}", tenant),
        (authority, *(f"https://{host}" for host in cloud.key_hosts)),
    )


class SigningKey(Struct, frozen=True):
    """One public key. `issuer` is whose tokens it may sign, where the set says so; `{tenantid}` stands for any tenant."""

    key: RSAKey
    issuer: str | None


class _Place(Struct):
    """What is known of one place. Times are monotonic seconds; `generation` counts the sets that were fetched."""

    keys: Mapping[str, SigningKey] = {}
    fetched_at: float | None = None
    tried_at: float | None = None
    failed: bool = False
    generation: int = 0
    fetching: asyncio.Task[None] | None = None


async def fetch_over_http(url: str) -> bytes:
    """The answer to one GET, followed nowhere, bounded in time and size.

    Raises:
        BadAnswer: another status than 200, or too large.
        OSError: not reachable in time.
    """
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=CALL_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers={"Accept": "application/json"}) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise BadAnswer(f"status {answer.status}")
            body = bytearray()
            async for part in answer.content.iter_chunked(64 * 1024):
                body += part
                if len(body) > ANSWER_BYTES_MAX:
                    raise BadAnswer(f"more than {ANSWER_BYTES_MAX} bytes")
            return bytes(body)
    except aiohttp.ClientError as exc:
        raise OSError(type(exc).__name__) from None


class KeySets:
    """The keys of every place that was asked for.

    Args:
        fetch: gets one address.
        clock: monotonic seconds.
    """

    def __init__(self, fetch: Fetch = fetch_over_http, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._places: dict[KeyPlace, _Place] = {}

    def generation(self, place: KeyPlace) -> int:
        """Counts the sets of a place; a token that was accepted under an older one has to be looked at again."""
        held = self._places.get(place)
        return held.generation if held is not None else 0

    def held(self, place: KeyPlace, kid: str) -> SigningKey | None:
        """A key that is here already; nobody is asked."""
        held = self._places.get(place)
        return held.keys.get(kid) if held is not None else None

    async def find(self, place: KeyPlace, kid: str) -> SigningKey | None:
        """The key with this id; None when the place has no such key.

        Raises:
            KeysUnavailable: the key is not here and the place cannot be reached.
        """
        held = self._places.setdefault(place, _Place())
        now = self._clock()
        if held.fetched_at is not None and now - held.fetched_at > KEPT_S:
            held.keys, held.fetched_at = {}, None
        key = held.keys.get(kid)
        since_try = now - held.tried_at if held.tried_at is not None else None
        if key is not None:
            if held.fetched_at is not None and now - held.fetched_at > REFRESH_S and (since_try or 0.0) >= REFETCH_S:
                self._refreshing(place, held)  # not waited for: the key that is here will do
            return key
        wait_s = REFETCH_S if held.fetched_at is not None else RETRY_S
        if held.fetching is not None or since_try is None or since_try >= wait_s:
            await asyncio.shield(self._refreshing(place, held))
            key = held.keys.get(kid)
        if key is None and held.failed:
            raise KeysUnavailable
        return key

    def _refreshing(self, place: KeyPlace, held: _Place) -> asyncio.Task[None]:
        """The fetch that is under way, or a new one: however many ask, one goes out."""
        if held.fetching is None:
            held.tried_at = self._clock()
            held.fetching = asyncio.create_task(self._refresh(place, held))
        return held.fetching

    async def _refresh(self, place: KeyPlace, held: _Place) -> None:
        try:
            keys = await self._fetched(place)
        except (BadAnswer, OSError, TimeoutError) as exc:  # what was held goes on being held
            held.failed = True
            why = str(exc) if isinstance(exc, BadAnswer) else type(exc).__name__
            log.warning("entra.keys_unavailable", place=place.metadata_url, cause=why, kept=len(held.keys))
        else:
            held.keys, held.fetched_at, held.failed = keys, self._clock(), False
            held.generation += 1
            log.info("entra.keys_fetched", place=place.metadata_url, count=len(keys))
        finally:
            held.fetching = None

    async def _fetched(self, place: KeyPlace) -> Mapping[str, SigningKey]:
        metadata = _object(await self._fetch(place.metadata_url))
        if metadata.get("issuer") != place.issuer:
            raise BadAnswer("the metadata names another issuer")
        url = metadata.get("jwks_uri")
        if not isinstance(url, str) or _origin(url) not in place.key_hosts:
            raise BadAnswer("the metadata names another host for the keys")
        entries = _object(await self._fetch(url)).get("keys")
        if not isinstance(entries, list) or len(entries) > KEYS_MAX:
            raise BadAnswer("no key set")
        keys: dict[str, SigningKey] = {}
        for entry in entries:
            read = _signing_key(entry)
            if read is not None:
                keys.setdefault(*read)
        if not keys:
            raise BadAnswer("no key that could be used")
        return keys


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        raise BadAnswer("not JSON") from None
    if not isinstance(value, dict):
        raise BadAnswer("no JSON object")
    return value


def _origin(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.netloc}"  # with user or another port in it, it equals no host


def _signing_key(entry: object) -> tuple[str, SigningKey] | None:
    """Id and key of an entry of a set; None for what is no RSA key for signatures. Certificates in it are not looked at."""
    if not isinstance(entry, dict) or entry.get("kty") != "RSA":
        return None
    kid, n, e = entry.get("kid"), entry.get("n"), entry.get("e")
    if not (isinstance(kid, str) and 0 < len(kid) <= KID_CHARS_MAX and isinstance(n, str) and isinstance(e, str)):
        return None
    if entry.get("use", "sig") != "sig" or entry.get("alg", "RS256") != "RS256":
        return None
    issuer = entry.get("issuer")
    if issuer is not None and not isinstance(issuer, str):
        return None
    try:
        bits = int.from_bytes(urlsafe_b64decode(n.encode()), "big").bit_length()
        if not KEY_BITS_MIN <= bits <= KEY_BITS_MAX:
            return None
        return kid, SigningKey(RSAKey.import_key({"kty": "RSA", "n": n, "e": e}), issuer)
    except (ValueError, JoseError):
        return None
