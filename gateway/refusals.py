"""Why a caller was refused: kept for the operator under the id that the 401 carries, and told to nobody else (S4).

What was received is attacker's text. Only what looks like an id, a number or an address is shown; never a token, a name or a mail
address. Everything is in memory and bounded, per target and cause, so that noise of one kind does not push the rest out.
"""

from __future__ import annotations

import re
import secrets
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Literal

from msgspec import Struct

KEPT_PER_CAUSE_MAX = 50
CAUSES_MAX = 1_000
"""Pairs of target and cause that are remembered; both are few by nature."""
SHOWN_CHARS_MAX = 120
ID_BYTES = 8

CheckVerdict = Literal["passed", "failed", "not checked"]

_ID_LIKE = re.compile(rf"[A-Za-z0-9._:/{{}}+=-]{{1,{SHOWN_CHARS_MAX}}}\Z")
_TOKEN_LIKE = re.compile(r"eyJ|pg[st]?_", re.IGNORECASE)


class Check(Struct, frozen=True):
    """One question that was asked about a sign-in."""

    name: str
    expected: str
    received: str
    verdict: CheckVerdict


class RefusedSignIn(Struct, frozen=True, kw_only=True):
    """One refusal. `place` is where it happened: the SCIM listener or the token endpoint; times are epoch seconds."""

    id: str
    at: float
    target: str
    place: Literal["scim", "token"]
    cause: str
    checks: tuple[Check, ...]


def shown(value: Any) -> str:
    """What may be repeated of something a caller sent."""
    if value is None:
        return "nothing"
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return f"a {type(value).__name__}"
    text = str(value)
    if _ID_LIKE.match(text) and not _TOKEN_LIKE.search(text):
        return text
    return f"something else, {len(text):,} characters" if text else "an empty text"


def shown_time(at: Any) -> str:
    """A NumericDate claim as a time of day, if it is one."""
    if isinstance(at, bool) or not isinstance(at, (int, float)):
        return shown(at)
    try:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return "no time"


class RefusedSignIns:
    """The latest refusals.

    Args:
        now: epoch seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._kept: dict[tuple[str, str], deque[RefusedSignIn]] = {}

    def note(
        self, target: str, cause: str, checks: Iterable[Check], *, place: Literal["scim", "token"] = "scim"
    ) -> RefusedSignIn:
        """Keep one; its id is new and says nothing.

        Args:
            target: a configured target or one name for all others.
            cause: a short code from our own code, never from a caller.
        """
        refused = RefusedSignIn(
            id=secrets.token_hex(ID_BYTES),
            at=self._now(),
            target=target,
            place=place,
            cause=cause,
            checks=tuple(checks),
        )
        kept = self._kept.pop((target, cause), None)  # put back at the end: in order of last use
        if kept is None:
            kept = deque(maxlen=KEPT_PER_CAUSE_MAX)
            if len(self._kept) >= CAUSES_MAX:
                del self._kept[next(iter(self._kept))]
        kept.append(refused)
        self._kept[(target, cause)] = kept
        return refused

    def find(self, refusal_id: str) -> RefusedSignIn | None:
        """The refusal with this id; None when there was none or it was forgotten."""
        return next((held for kept in self._kept.values() for held in kept if held.id == refusal_id), None)

    def listed(self, target: str | None, limit: int) -> list[RefusedSignIn]:
        """The newest first, of one target or of all."""
        chosen = [held for kept in self._kept.values() for held in kept if target is None or held.target == target]
        return sorted(chosen, key=lambda held: -held.at)[:limit]
