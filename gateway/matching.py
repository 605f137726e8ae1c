"""Match reports: before the first cycle, who is at the product already, who would be made, and what would collide.

Users come from the store, or are handed in as Entra exports them; accounts are listed by a worker. Nothing is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from ulid import ULID

from gateway import reports_store as kept
from gateway.comparison import Ask, ComparisonFailed, Progress, Wish, sort_match, take_accounts, take_users, take_wishes
from gateway.dispatch import Clock
from gateway.explanations import mask_identity, mask_message
from gateway.lifecycle import Row
from gateway.spool import Finding, Spool
from gateway.store import Store
from schemas.config import TargetSettings
from schemas.logs import logger
from schemas.masking import mask

MATCHES_MAX = 4
"""Match reports kept at once; the oldest makes room."""
MATCH_KEPT_S = 3_600.0
LABEL_CHARS_MAX = 320
USERS_PER_PAGE = 200

log = logger()


class _Named(Struct):
    """What a stored document is called; everything else stays undecoded."""

    userName: Any = ""
    displayName: Any = ""


_named = msgspec.json.Decoder(_Named)


def label_of(row: Row) -> str:
    """What a user or a group is called here."""
    try:
        named = _named.decode(row.document)
        return str(named.displayName if row.kind == "group" else named.userName)[:LABEL_CHARS_MAX]
    except msgspec.DecodeError:
        return ""


def masked(finding: Finding) -> Finding:
    """A line of a report without a person's values; ids and names of attributes stay."""
    label = finding.label
    return msgspec.structs.replace(
        finding,
        label=mask_identity(label) if ":" in label else mask(label) if label else "",
        account_id=mask(finding.account_id) if "@" in finding.account_id else finding.account_id,
        message=mask_message(finding.message),
    )


class Matches:
    """The match reports of one gateway, the latest few.

    Args:
        targets: settings of the configured targets by name.
        ask: puts a question to a worker.
        spawn: starts a task that somebody watches over.

    Attributes:
        held: those that are kept, by id, the oldest first.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        targets: Callable[[], Mapping[str, TargetSettings]],
        ask: Ask,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self.store = store
        self.clock = clock
        self.targets = targets
        self.ask = ask
        self.spawn = spawn
        self.held: dict[str, Match] = {}

    def expire(self) -> None:
        """Forget those that ended MATCH_KEPT_S ago."""
        for id_, match in list(self.held.items()):
            if match.ended_at and self.clock.now() - match.ended_at > MATCH_KEPT_S:
                self.drop(id_)

    def begin(self, target: str, *, from_store: bool) -> Match:
        """Begin a match report: with the users of the store at once, or with users that are handed in one by one."""
        while len(self.held) >= MATCHES_MAX:
            self.drop(next(iter(self.held)))
        match = Match(self, target, str(ULID()))
        self.held[match.id] = match
        if from_store:
            match.start(from_store=True)
        return match

    def drop(self, id_: str) -> None:
        """Forget a match report."""
        match = self.held.pop(id_, None)
        if match is not None:
            match.close()

    async def stored_users(self, target: str) -> AsyncIterator[Sequence[Wish]]:
        """Users of a target that are wished to be, page by page."""
        after = 0
        while True:
            rows = await self.store.read_slow(
                lambda reader, after=after: kept.rows_after(reader, target, "user", after, USERS_PER_PAGE)  # type: ignore[misc]
            )
            if not rows:
                return
            yield [
                Wish(id=row.id, label=label_of(row), document=msgspec.Raw(row.document), account_id=row.account_id)
                for _, row in rows
                if not row.deleted
            ]
            after = rows[-1][0]


class Match:
    """One match report: what would happen to each user of Entra, and which accounts nobody would have.

    Attributes:
        state: `open` (users may be handed in), `running`, `done` or `failed`.
    """

    def __init__(self, matches: Matches, target: str, id_: str) -> None:
        self.target = target
        self.id = id_
        self.state = "open"
        self.code = ""
        self.message = ""
        self.progress = Progress()
        self.counts: dict[str, int] = {}
        self.codes: dict[str, int] = {}
        self.ended_at = 0.0
        self._matches = matches
        self._spool = Spool()
        self._closed = False

    async def take(self, wishes: Sequence[Wish]) -> None:
        """Hand users in, at most DOCUMENTS_PER_QUESTION_MAX at a time.

        Raises:
            ComparisonFailed: no worker could normalize them.
        """
        here = self._matches
        await take_users(
            self._spool,
            here.ask,
            self.target,
            wishes,
            here.clock.sleep,
            progress=self.progress,
            hurried=True,
        )
        self.progress.users += len(wishes)

    def start(self, *, from_store: bool = False) -> None:
        """List the accounts and write the report, in the background."""
        self.state = "running"
        self._matches.spawn(self._run(from_store))

    async def _run(self, from_store: bool) -> None:
        here = self._matches

        async def no_pace(calls: int) -> None:
            """Nothing else calls the product yet; its own rate limit is kept by the worker."""

        try:
            if from_store:
                self.progress.of = await here.store.read_slow(lambda reader: sum(reader.counts(self.target).values()))
                users = here.stored_users(self.target)
                await take_wishes(
                    self._spool,
                    here.ask,
                    self.target,
                    self.progress,
                    users,
                    here.clock.sleep,
                    hurried=True,
                )
            await take_accounts(
                self._spool, here.ask, self.target, self.progress, no_pace, here.clock.sleep, hurried=True
            )
            self.progress.stage = "sorting"
            settings = here.targets().get(self.target)
            adopt = settings is None or settings.adopt != "never"
            await asyncio.to_thread(sort_match, self._spool, adopt=adopt)
            self.counts = await asyncio.to_thread(self._spool.counts)
            self.codes = await asyncio.to_thread(self._spool.codes)
            self.state = "done"
        except ComparisonFailed as exc:
            self.state, self.code, self.message = "failed", exc.code, mask_message(exc.message)
        except Exception as exc:  # also a report that was dropped in the middle
            self.state, self.code, self.message = "failed", "internal", f"It broke off ({type(exc).__name__})."
            if not self._closed:
                log.error("match.broken", target=self.target, error=type(exc).__name__, exc_info=exc)
        finally:
            self.ended_at = here.clock.now()

    async def findings(self, *, class_: str | None, after: int, limit: int) -> list[Finding]:
        """Lines of the report."""
        return await asyncio.to_thread(self._spool.findings, class_=class_, after=after, limit=limit)

    def close(self) -> None:
        """Forget everything."""
        self._closed = True
        self._spool.close()
