"""Cursors of long lists: where the next page begins, sealed so that nobody can make one up (RFC 9865).

A cursor holds a place in the order in which resources were created, as a number, and nothing of the resources themselves. It is
sealed together with the target, the kind of resource, the filter and the order it was made for: with any other of them it is as
worthless as one that was tampered with. It needs no memory here, so any gateway of the installation continues any list.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import struct
from collections.abc import Callable, Mapping

from msgspec import Struct
from msgspec.json import encode

from gateway.messages import ScimError, invalid_syntax

CURSOR_S = 3_600
"""How long a cursor can be used; announced as `cursorTimeout`."""
SEAL_BYTES = 16
CURSOR_CHARS_MAX = 128
PURPOSE = "scim-cursor"
"""What the secret of cursors is derived for (`Keys.derived`)."""

_LAYOUT = struct.Struct(">BBQIqQ")
_VERSION = 1
_BACKWARD = 1
_LATER_KIND = 2
_UNKNOWN = -1
_NUMBER_CHARS_MAX = 18
_BOUND_BY = ("filter", "sortby", "sortorder")


class Place(Struct, frozen=True):
    """Where a page begins.

    Args:
        seq: the page holds what comes after this place, or before it.
        count: resources per page, the same for the whole list.
        total: how many there were when the list began; None: not counted.
        backward: the page before instead of the page after.
        later_kind: of a list of several kinds the second one has been reached.
    """

    count: int
    seq: int = 0
    total: int | None = None
    backward: bool = False
    later_kind: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this is the begin of the list."""
        return self.seq == 0 and not self.backward and not self.later_kind


class Batch(Struct, frozen=True):
    """One page as it was found.

    Args:
        after: the place its successor begins after; None at the end.
        before: the place its predecessor ends before; None at the begin, or when nobody can go back.
        total: how many there are in all; None: not counted.
    """

    after: int | None = None
    before: int | None = None
    total: int | None = None


class Cursors:
    """Makes cursors and reads them.

    Args:
        secret: the same in every gateway of an installation.
        now: epoch seconds.
    """

    def __init__(self, secret: bytes, now: Callable[[], float]) -> None:
        self._secret = secret
        self._now = now

    def asked(self, target: str, kind: str, parameters: Mapping[str, str], count_max: int) -> Place:
        """The place a request with the parameter `cursor` asks for; an empty one asks for the first page.

        Raises:
            ScimError: 400 with `invalidCursor`, `expiredCursor` or `invalidCount` (RFC 9865 section 2.1), or `invalidSyntax` when
                the list is asked for by index at the same time.
        """
        if "startindex" in parameters:
            raise invalid_syntax("The query has both startIndex and cursor", "Send one of them")
        count = _count(parameters.get("count"), count_max)
        text = parameters["cursor"]
        if not text:
            return Place(count_max if count is None else count)
        place = self._read(text, _bound(target, kind, parameters))
        if count is not None and count != place.count:
            raise _invalid_count(f"has to stay {place.count} through the whole list")
        return place

    def cursor(self, place: Place, target: str, kind: str, parameters: Mapping[str, str]) -> str:
        """The text of a cursor; unreserved characters only (RFC 9865 section 2)."""
        flags = (_BACKWARD if place.backward else 0) | (_LATER_KIND if place.later_kind else 0)
        total = _UNKNOWN if place.total is None else place.total
        body = _LAYOUT.pack(_VERSION, flags, place.seq, place.count, total, int(self._now()))
        sealed = body + self._seal(body, _bound(target, kind, parameters))
        return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def _read(self, text: str, bound: bytes) -> Place:
        try:
            if len(text) > CURSOR_CHARS_MAX or not text.isascii() or "=" in text:
                raise ValueError
            sealed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            raise invalid_cursor() from None
        body, seal = sealed[:-SEAL_BYTES], sealed[-SEAL_BYTES:]
        if len(body) != _LAYOUT.size or not hmac.compare_digest(seal, self._seal(body, bound)):
            raise invalid_cursor()
        version, flags, seq, count, total, made_at = _LAYOUT.unpack(body)
        if version != _VERSION:
            raise invalid_cursor()
        if self._now() - made_at > CURSOR_S:
            raise ScimError(400, "The cursor has expired. Begin the list anew with an empty cursor.", "expiredCursor")
        return Place(
            count,
            seq,
            None if total == _UNKNOWN else total,
            backward=bool(flags & _BACKWARD),
            later_kind=bool(flags & _LATER_KIND),
        )

    def _seal(self, body: bytes, bound: bytes) -> bytes:
        return hmac.digest(self._secret, body + bound, "sha256")[:SEAL_BYTES]


def _bound(target: str, kind: str, parameters: Mapping[str, str]) -> bytes:
    return encode([target, kind, *(parameters.get(name, "") for name in _BOUND_BY)])


def _count(text: str | None, count_max: int) -> int | None:
    if text is None:
        return None
    text = text.strip()
    if not (text.isascii() and text.isdigit()) or len(text) > _NUMBER_CHARS_MAX or int(text) > count_max:
        raise _invalid_count(f"has to be a whole number from 0 to {count_max}")
    return int(text)


def _invalid_count(problem: str) -> ScimError:
    return ScimError(400, f"count {problem}.", "invalidCount")


def invalid_cursor() -> ScimError:
    """400 `invalidCursor`: not one of ours, or made for another list."""
    return ScimError(
        400, "This cursor does not belong to this list. Begin the list anew with an empty cursor.", "invalidCursor"
    )
