"""Lists that are read as a whole to find one entry, kept for a short while: for products that find nobody by a parameter.

What one reading showed answers the look-ups of the next SCAN_KEEP_S seconds, and what we write ourselves is entered at once. It
never answers a look-up that asks for a fresh reading: that is every one after a create whose end is not known, since "nobody"
from an old list would make a second account. What others wrote in between is not seen: a look-up that finds nobody is followed by
a create, and two people of one name are never on their way at once (delivery rule R2).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from typing import Any

from msgspec import Struct

from schemas.errors import Gone, Rejected

SCAN_KEEP_S = 30.0
SCAN_ROWS_MAX = 20_000
"""Entries that are kept; of a longer list every look-up reads all."""
NOTES_MAX = 10_000
"""Writes remembered while a list is read; with more the reading is not kept."""

Key = tuple[str, str]
"""An attribute, and its value as it is compared."""


class Row(Struct, frozen=True):
    """One entry of a list: the product's id, what it is found by, and as much of it as a look-up needs."""

    account_id: str
    keys: tuple[Key, ...]
    held: dict[str, Any]


class Scanned:
    """The entries of one list.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turn = asyncio.Lock()
        self._began: float | None = None
        self._by_key: dict[Key, dict[str, Row]] = {}
        self._keys: dict[str, tuple[Key, ...]] = {}
        self._reading = False
        self._notes: list[tuple[str, Row | None]] = []

    async def find(
        self, keys: Collection[Key], load: Callable[[], AsyncIterator[Row]], *, fresh: bool
    ) -> dict[Key, list[dict[str, Any]]]:
        """What the list holds under each key.

        Args:
            load: reads the whole list; whatever it raises ends the look-up, and nothing is kept.
            fresh: only a reading that began after this call counts; those who ask together share one.
        """
        asked = self._clock()
        if not fresh and self._is_good(self._clock() - SCAN_KEEP_S):
            return self._held_under(keys)
        async with self._turn:
            if self._is_good(self._clock() - SCAN_KEEP_S) and (not fresh or self._began_after(asked)):
                return self._held_under(keys)
            return await self._read(keys, load)

    def wrote(self, account_id: str, row: Row | None) -> None:
        """Enter what we wrote ourselves; None takes the entry out."""
        if self._reading and len(self._notes) <= NOTES_MAX:
            self._notes.append((account_id, row))
        if self._began is not None:
            self._enter(account_id, row)

    def forget(self) -> None:
        """Nothing that was read counts any more, e.g. after a write whose end is not known."""
        self._began = None
        self._by_key, self._keys = {}, {}
        if self._reading:
            self._notes = [("", None)] * (NOTES_MAX + 1)

    @contextlib.contextmanager
    def in_doubt(self, account_id: str = "") -> Iterator[None]:
        """Around a write: when it ends otherwise than done or refused, nothing that was read counts any more.

        Args:
            account_id: the entry that is taken out when the product says that it is gone.
        """
        try:
            yield
        except Rejected:
            raise
        except Gone:
            self.wrote(account_id, None)
            raise
        except BaseException:
            self.forget()
            raise

    async def _read(
        self, keys: Collection[Key], load: Callable[[], AsyncIterator[Row]]
    ) -> dict[Key, list[dict[str, Any]]]:
        self.forget()
        began, wanted, rows = self._clock(), set(keys), 0
        kept: list[Row] = []
        found: dict[Key, list[dict[str, Any]]] = {key: [] for key in keys}
        self._reading, self._notes = True, []
        try:
            async for row in load():
                rows += 1
                for key in wanted.intersection(row.keys):
                    found[key].append(row.held)
                if rows <= SCAN_ROWS_MAX:
                    kept.append(row)
        finally:
            self._reading = False
            notes, self._notes = self._notes, []
        if rows > SCAN_ROWS_MAX or len(notes) > NOTES_MAX:
            return found
        self._began = began
        for row in kept:
            self._enter(row.account_id, row)
        for account_id, note in notes:
            self._enter(account_id, note)
        return self._held_under(keys)

    def _is_good(self, since: float) -> bool:
        return self._began is not None and self._began >= since

    def _began_after(self, moment: float) -> bool:
        return self._began is not None and self._began > moment

    def _held_under(self, keys: Collection[Key]) -> dict[Key, list[dict[str, Any]]]:
        return {key: [row.held for row in self._by_key.get(key, {}).values()] for key in keys}

    def _enter(self, account_id: str, row: Row | None) -> None:
        for key in self._keys.pop(account_id, ()):
            under = self._by_key.get(key, {})
            under.pop(account_id, None)
            if not under:
                self._by_key.pop(key, None)
        if row is not None:
            self._keys[account_id] = row.keys
            for key in row.keys:
                self._by_key.setdefault(key, {})[account_id] = row
