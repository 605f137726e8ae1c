"""Who calls, and how often: the two questions every SCIM request is asked before it may cost anything.

The answer to everybody who may not is the same, whatever the reason (security requirement S4); the reason goes to the log.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable

from gateway.keys import Keys, Refusal
from gateway.messages import too_many_requests, unauthorized
from schemas.logs import logger

SOURCES_MAX = 10_000
"""Callers whose rate is remembered at once; beyond it the longest unheard is forgotten."""
BURST_S = 2.0
"""A bucket holds what its rate gives in this many seconds."""
RETRY_AFTER_S = 1
UNKNOWN_TARGET = "unknown"

_SCHEME = b"bearer "
_KEY = re.compile(r"[\x21-\x7e]{1,512}\Z")

log = logger()


class Buckets:
    """Token buckets, one per name (a target, a source address).

    Args:
        rate_per_s: requests per second each may make in the long run.
        clock: monotonic seconds.
    """

    def __init__(self, rate_per_s: float, clock: Callable[[], float]) -> None:
        self._rate_per_s = rate_per_s
        self._burst = max(1.0, rate_per_s * BURST_S)
        self._clock = clock
        self._held: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        """How many names are remembered."""
        return len(self._held)

    def take(self, name: str) -> None:
        """Use one token.

        Raises:
            ScimError: 429 with `Retry-After` when there is none.
        """
        now = self._clock()
        held = self._held.pop(name, None)  # put back at the end: the dictionary is in order of last use
        if held is None:
            tokens = self._burst
            if len(self._held) >= SOURCES_MAX:
                del self._held[next(iter(self._held))]
        else:
            tokens = min(self._burst, held[0] + (now - held[1]) * self._rate_per_s)
        if tokens < 1.0:
            self._held[name] = (tokens, now)
            raise too_many_requests(RETRY_AFTER_S)
        self._held[name] = (tokens - 1.0, now)


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The bearer token of a request (RFC 6750 section 2.1); None when there is none, or more than one, or it cannot be one."""
    found: str | None = None
    for name, value in headers:
        if name == b"authorization":
            if found is not None or value[: len(_SCHEME)].lower() != _SCHEME:
                return None
            found = value[len(_SCHEME) :].strip().decode("latin-1")
    return found if found is not None and _KEY.match(found) else None


class Authenticator:
    """Checks the access key of a target.

    Args:
        keys: the keys of all targets.
        targets: the names of the configured targets.
    """

    def __init__(self, keys: Keys, targets: Callable[[], Container[str]]) -> None:
        self._keys = keys
        self._targets = targets

    async def admit(self, target: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Let a request pass that carries a live key of this target.

        Raises:
            ScimError: 401, the same for an unknown target and a missing, wrong, expired or revoked key.
            StoreError: the keys cannot be read.
        """
        known = target in self._targets()
        token = bearer(headers)
        if token is None:
            refusal: Refusal | None = "missing"
        else:
            refusal = await self._keys.check(target if known else "", token)
        if not known:
            refusal = "unknown_target"
        if refusal is not None:
            # a name that is not configured was chosen by the caller and stays out of the log
            log.warning("auth.refused", target=target if known else UNKNOWN_TARGET, cause=refusal)
            raise unauthorized()
