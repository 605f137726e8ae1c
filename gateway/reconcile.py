"""Comparing products with what was applied to them: every so often by itself, and when an operator asks.

A comparison only reads. What it finds is a report; a repair gives the users in it back to the engine, which looks at the product
first and sends the ordinary event, after everything Entra asks for. Guards: a broken list concludes nothing, nor does one much
shorter than the last; a repair of many waits for an operator; nothing is called through an open circuit; and all of it takes a
small part of the product's rate limit. Of several gateways one does it at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from ulid import ULID

from gateway import reports_store as kept
from gateway.comparison import (
    DIFFERENCES,
    REPAIRABLE,
    Ask,
    ComparisonFailed,
    Progress,
    Wish,
    sort_differences,
    sort_match,
    take_accounts,
    take_users,
    take_wishes,
)
from gateway.dispatch import Clock, Dispatcher
from gateway.explanations import mask_identity, mask_message
from gateway.lifecycle import Row, make_dirty
from gateway.reports_store import Report
from gateway.spool import Finding, Spool
from gateway.store import Reader, Store, Transaction
from gateway.writer import StoreError
from schemas.config import ReconcileSettings, TargetSettings
from schemas.logs import logger
from schemas.masking import mask
from schemas.specs import Spec
from schemas.states import Circuit, State

LEASE_S = 180.0
"""Longer than the longest step between two renewals: a part of a list with all its repeats ends earlier, or the run fails."""
REST_STEP_S = LEASE_S / 3
"""Longest rest before the lease is renewed; a slow product may want a much longer one."""
LOOK_EVERY_S = 60.0
FIRST_AFTER_S = 3_600.0
"""A gateway that just started has other things to do; a target never compared before waits this long."""
FAILED_AGAIN_S = 3_600.0
"""After a comparison that failed the next one waits at least this long."""
REPAIR_CALLS = 3
"""Calls to the product one repair is reckoned with: look, read, write."""
REPAIRS_PER_JOB = 20
CALLS_PER_S_UNKNOWN = 20.0
"""Taken for the rate of a product that names none."""
USERS_PER_PAGE = 200
MATCHES_MAX = 4
"""Match reports kept at once; the oldest makes room."""
MATCH_KEPT_S = 3_600.0
LABEL_CHARS_MAX = 320

log = logger()


class Run(Struct):
    """A comparison that is under way, or ended with `report`."""

    target: str
    id: str
    progress: Progress
    report: Report | None = None


class _Named(Struct):
    """What a stored document is called; everything else stays undecoded."""

    userName: Any = ""


_named = msgspec.json.Decoder(_Named)


def label_of(row: Row) -> str:
    """What a user is called here."""
    try:
        return str(_named.decode(row.document).userName)[:LABEL_CHARS_MAX]
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


class Reconciler:
    """The comparisons of one gateway.

    Args:
        targets: settings of the configured targets by name.
        ask: puts a question to a worker.
        spec_of: the declaration of a target's connector, None while it was never seen.
        serves: whether a worker serves a target now.
        spawn: starts a task that somebody watches over.
    """

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        clock: Clock,
        targets: Callable[[], Mapping[str, TargetSettings]],
        ask: Ask,
        spec_of: Callable[[str], Spec | None],
        serves: Callable[[str], bool],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self.store = store
        self.dispatcher = dispatcher
        self.clock = clock
        self.targets = targets
        self.ask = ask
        self.spec_of = spec_of
        self.serves = serves
        self.spawn = spawn
        self.holder = str(ULID())
        self.running: dict[str, Run] = {}
        self.ended: dict[str, Run] = {}
        self.matches: dict[str, Match] = {}
        self._started_at = clock.now()

    # ---- by itself

    async def look(self) -> None:
        """Start what is due; called every LOOK_EVERY_S."""
        for name, settings in self.targets().items():
            if settings.enabled and await self._is_due(name, settings.reconcile):
                self.start(name, repair=settings.reconcile.mode == "repair")
        for id_, match in list(self.matches.items()):
            if match.ended_at and self.clock.now() - match.ended_at > MATCH_KEPT_S:
                self.drop(id_)

    async def _is_due(self, target: str, settings: ReconcileSettings) -> bool:
        if settings.mode == "off" or target in self.running or not self.can_list(target) or not self.serves(target):
            return False
        report = await self.store.read_slow(lambda reader: kept.last_report(reader, target))
        now = self.clock.now()
        if report is None:
            return now - self._started_at >= min(FIRST_AFTER_S, settings.every_hours * 3_600)
        every_s = settings.every_hours * 3_600
        return now - report.ended_at >= (min(every_s, FAILED_AGAIN_S) if report.state == "failed" else every_s)

    def can_list(self, target: str) -> bool:
        """Whether the target's connector says that it can list its accounts."""
        spec = self.spec_of(target)
        return spec is not None and "list_accounts" in spec.capabilities

    # ---- one comparison

    def start(
        self, target: str, *, repair: bool, approved: bool = False, actor: str = "system", reason: str = ""
    ) -> Run:
        """Begin a comparison in the background, unless one of this target is under way; the one that is."""
        run = self.running.get(target)
        if run is None:
            run = self.running[target] = Run(target, str(ULID()), Progress())
            self.spawn(self._run(run, repair=repair, approved=approved, actor=actor, reason=reason))
        return run

    async def _run(self, run: Run, *, repair: bool, approved: bool, actor: str, reason: str) -> None:
        target, started_at = run.target, self.clock.now()
        lease = f"reconcile:{target}"
        spool: Spool | None = None
        report = Report(
            target=target,
            id=run.id,
            state="failed",
            mode="repair" if repair else "report",
            started_at=started_at,
            ended_at=started_at,
        )
        leased = False
        try:
            report = msgspec.structs.replace(
                report, size=await self.store.read_slow(lambda reader: _expected(reader, target))
            )
            await self._renew(lease)
            leased = True
            spool = await asyncio.to_thread(Spool)
            report = await self._compare(run, spool, report, started_at)
            report = await self._judge(spool, report, repair=repair, approved=approved)
            await self._keep(spool, report)
            if report.state == "repairing":
                report = await self._repair(run, spool, report, actor=actor, reason=reason)
                await self._keep(None, report)
        except ComparisonFailed as exc:
            report = await self._failed(run, report, exc.code, exc.message)
        except StoreError:
            report = await self._failed(run, report, "store", "The status store cannot be reached.")
        except Exception as exc:  # a mistake of ours: it is said, and the next comparison is not kept from running
            log.error("reconcile.broken", target=target, error=type(exc).__name__, exc_info=exc)
            report = await self._failed(run, report, "internal", f"The comparison broke off ({type(exc).__name__}).")
        finally:
            run.report = report
            self.ended[target] = run
            self.running.pop(target, None)
            if spool is not None:
                await asyncio.to_thread(spool.close)
            if leased:
                try:
                    await self.store.run(lambda ledger: kept.end_lease(ledger, lease, self.holder))
                except StoreError:
                    log.warning("reconcile.lease_kept", target=target)
        differences = {name: report.counts.get(name, 0) for name in DIFFERENCES}
        say = log.info if report.state in ("good", "repaired") else log.warning
        say(
            "reconcile.ended",
            target=target,
            state=report.state,
            code=report.code,
            repaired=report.repaired,
            **differences,
        )

    async def _failed(self, run: Run, report: Report, code: str, message: str) -> Report:
        failed = msgspec.structs.replace(
            report,
            state="failed",
            ended_at=self.clock.now(),
            listed=run.progress.accounts,
            code=code,
            message=mask_message(message),
        )
        if code == "running_elsewhere":
            return failed  # the other one's report is the one that counts
        try:
            await self._keep(None, failed, forget=True)
        except StoreError:
            log.warning("reconcile.report_lost", target=report.target)
        return failed

    async def _renew(self, lease: str) -> None:
        def job(ledger: Transaction) -> bool:
            return kept.take_lease(ledger, lease, self.holder, self.clock.now(), LEASE_S)

        if not await self.store.run(job):
            raise ComparisonFailed("running_elsewhere", "Another gateway compares this target at this moment.")

    async def _compare(self, run: Run, spool: Spool, report: Report, started_at: float) -> Report:
        target, settings = run.target, self._settings(run.target)
        await self._check_open(target)
        await take_accounts(spool, self.ask, target, run.progress, self._pacer(target), self.clock.sleep)
        listed = await asyncio.to_thread(spool.count, "account")
        report = msgspec.structs.replace(report, listed=listed)
        if listed < settings.list_share_min * report.size:
            raise ComparisonFailed(
                "list_too_short",
                f"The product lists {listed:,} accounts, and {report.size:,} were expected: as many as the last time, less those "
                "deleted here since. Nothing was concluded from it; "
                f"if that is right, lower list_share_min of targets.{target}.reconcile for one comparison.",
            )
        run.progress.of = await self.store.read_slow(lambda reader: sum(reader.counts(target).values()))
        wishes = self._wishes(target, started_at)
        await take_wishes(spool, self.ask, target, run.progress, wishes, self.clock.sleep)
        run.progress.stage = "sorting"
        compared = await asyncio.to_thread(sort_differences, spool)
        counts, codes = await asyncio.to_thread(spool.counts), await asyncio.to_thread(spool.codes)
        return msgspec.structs.replace(
            report, size=listed, compared=compared, counts=counts, codes=codes, ended_at=self.clock.now()
        )

    async def _wishes(self, target: str, started_at: float) -> AsyncIterator[Sequence[Wish]]:
        """Users page by page, read after the list: an account made meanwhile is in the store by then."""
        lease, after = f"reconcile:{target}", 0
        while True:
            rows = await self.store.read_slow(
                lambda reader, after=after: kept.users_after(reader, target, after, USERS_PER_PAGE)  # type: ignore[misc]
            )
            if not rows:
                return
            yield [_wish(row, started_at) for _, row in rows]
            after = rows[-1][0]
            await self._renew(lease)

    def _pacer(self, target: str) -> Callable[[int], Awaitable[None]]:
        async def pace(calls: int) -> None:
            await self._renew(f"reconcile:{target}")
            await self._check_open(target)
            await self._rest(target, calls)

        return pace

    async def _rest(self, target: str, calls: int) -> None:
        """After so many calls: as long as they would have taken at our share of the product's rate limit."""
        spec, share = self.spec_of(target), self._settings(target).call_share
        limit = spec.rate_limit if spec is not None else None
        per_s = limit.calls / limit.per_s if limit is not None else CALLS_PER_S_UNKNOWN
        left_s = calls / (per_s * share)
        while left_s > 0:
            await self.clock.sleep(min(left_s, REST_STEP_S))
            left_s -= REST_STEP_S
            await self._renew(f"reconcile:{target}")

    async def _check_open(self, target: str) -> None:
        """Raises: ComparisonFailed when the target is not to be called."""
        settings = self.targets().get(target)
        if settings is None or not settings.enabled:
            raise ComparisonFailed("not_enabled", "The target is not enabled any more.")
        row = (await self.store.read_slow(lambda reader: reader.target(target))).row
        if row.paused_by is not None:
            raise ComparisonFailed("paused", "The target is paused.")
        if row.circuit is not Circuit.CLOSED:
            raise ComparisonFailed(
                "circuit_open", "The target's circuit is open; it is compared when it answers again."
            )

    def _settings(self, target: str) -> ReconcileSettings:
        settings = self.targets().get(target)
        return settings.reconcile if settings is not None else ReconcileSettings()

    # ---- what follows

    async def _judge(self, spool: Spool, report: Report, *, repair: bool, approved: bool) -> Report:
        """Whether what differs is repaired at once, later, or not."""
        settings = self._settings(report.target)
        to_do = sum(report.counts.get(name, 0) for name in REPAIRABLE)
        if settings.unknown == "delete-ours":
            to_do += report.codes.get("unknown.deleted_here", 0)
        if not sum(report.counts.values()):
            state, message = "good", ""
        elif not repair or not to_do:
            state, message = "differs", ""
        elif to_do > max(settings.held_count_min, settings.held_share * report.compared) and not approved:
            state = "held"
            message = (
                f"{to_do:,} of {report.compared:,} users would be applied again, which is unusually many. Look at the report; "
                f"then: provgate reconcile {report.target} --repair --approve --reason TEXT"
            )
        else:
            state, message = "repairing", ""
        return msgspec.structs.replace(report, state=state, message=message, ended_at=self.clock.now())

    async def _keep(self, spool: Spool | None, report: Report, *, forget: bool = False) -> None:
        """Write the report; with a spool its differences, too, in several jobs so that no request waits for them."""

        def head(ledger: Transaction) -> None:
            if spool is not None or forget:
                kept.forget_findings(ledger, report.target)
            kept.save_report(ledger, report)

        await self.store.run(head)
        after = 0
        while spool is not None and after < kept.FINDINGS_KEPT_MAX:
            found = await asyncio.to_thread(spool.findings, after=after, limit=100)
            if not found:
                return
            lines = [masked(one) for one in found]
            await self.store.run(lambda ledger, lines=lines: kept.add_findings(ledger, report.target, lines))  # type: ignore[misc]
            after = found[-1].n

    async def _repair(self, run: Run, spool: Spool, report: Report, *, actor: str, reason: str) -> Report:
        """Give what differs back to the engine, slowly: marked dirty, it is looked at and applied after everything else."""
        target, settings = run.target, self._settings(run.target)
        run.progress.stage = "repairing"
        classes: list[str] = list(REPAIRABLE)
        if settings.unknown == "delete-ours":
            classes.append("unknown")
        repaired = done = 0
        async for found in _batches(spool, classes):
            if done:
                await self._rest(target, done * REPAIR_CALLS)
            await self._renew(f"reconcile:{target}")
            await self._check_open(target)
            done = await self.store.run(_repair_job(target, found, report.started_at, self.dispatcher.clock))
            repaired += done
            self.dispatcher.kick(target)

        def audit(ledger: Transaction) -> None:
            detail = {"reason": reason, "repaired": repaired, "report": report.id, "counts": report.counts}
            ledger.audit(
                at=self.clock.now(),
                actor=actor,
                action="reconcile.repaired",
                target=target,
                subject=target,
                detail=detail,
            )

        await self.store.run(audit)
        return msgspec.structs.replace(report, state="repaired", repaired=repaired, ended_at=self.clock.now())

    # ---- before the first cycle

    def match(self, target: str, *, from_store: bool) -> Match:
        """Begin a match report: with the users of the store at once, or with users that are handed in one by one."""
        while len(self.matches) >= MATCHES_MAX:
            self.drop(next(iter(self.matches)))
        match = Match(self, target, str(ULID()))
        self.matches[match.id] = match
        if from_store:
            match.start(from_store=True)
        return match

    def drop(self, id_: str) -> None:
        """Forget a match report."""
        match = self.matches.pop(id_, None)
        if match is not None:
            match.close()

    async def stored_users(self, target: str) -> AsyncIterator[Sequence[Wish]]:
        """Users of a target that are wished to be, page by page."""
        after = 0
        while True:
            rows = await self.store.read_slow(
                lambda reader, after=after: kept.users_after(reader, target, after, USERS_PER_PAGE)  # type: ignore[misc]
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

    def __init__(self, reconciler: Reconciler, target: str, id_: str) -> None:
        self.target = target
        self.id = id_
        self.state = "open"
        self.code = ""
        self.message = ""
        self.progress = Progress()
        self.counts: dict[str, int] = {}
        self.codes: dict[str, int] = {}
        self.ended_at = 0.0
        self._reconciler = reconciler
        self._spool = Spool()
        self._closed = False

    async def take(self, wishes: Sequence[Wish]) -> None:
        """Hand users in, at most DOCUMENTS_PER_QUESTION_MAX at a time.

        Raises:
            ComparisonFailed: no worker could normalize them.
        """
        here = self._reconciler
        await take_users(self._spool, here.ask, self.target, wishes, here.clock.sleep)
        self.progress.users += len(wishes)

    def start(self, *, from_store: bool = False) -> None:
        """List the accounts and write the report, in the background."""
        self.state = "running"
        self._reconciler.spawn(self._run(from_store))

    async def _run(self, from_store: bool) -> None:
        here = self._reconciler

        async def no_pace(calls: int) -> None:
            """Nothing else calls the product yet; its own rate limit is kept by the worker."""

        try:
            if from_store:
                self.progress.of = await here.store.read_slow(lambda reader: sum(reader.counts(self.target).values()))
                users = here.stored_users(self.target)
                await take_wishes(self._spool, here.ask, self.target, self.progress, users, here.clock.sleep)
            await take_accounts(self._spool, here.ask, self.target, self.progress, no_pace, here.clock.sleep)
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


def _expected(reader: Reader, target: str) -> int:
    """How many accounts a whole list is expected to have: as many as the last time, less those deleted here since.

    Taken off in reports that conclude nothing, too, for the next one counts from there.
    """
    before = kept.last_report(reader, target)
    if before is None:
        return 0
    return max(0, before.size - kept.gone_since(reader, target, before.started_at))


def _wish(row: Row, started_at: float) -> Wish:
    resting = row.in_flight is None and not row.dirty and not row.ambiguous
    if row.state is State.GONE and resting:
        wished = "gone"
    elif (
        row.state is State.APPLIED
        and resting
        and not row.open
        and not row.deleted
        and _untouched_since(row, started_at)
    ):
        wished = "compare"
    else:
        wished = "moving"
    return Wish(
        id=row.id,
        label=label_of(row),
        document=msgspec.Raw(row.document),
        wished=wished,  # type: ignore[arg-type]
        account_id=row.account_id,
        inactive_known=row.observed_active is False,
    )


def _untouched_since(row: Row, started_at: float) -> bool:
    return row.modified_at < started_at and row.settled_at < started_at


async def _batches(spool: Spool, classes: Sequence[str]) -> AsyncIterator[list[Finding]]:
    """Lines of these classes, REPAIRS_PER_JOB at a time."""
    batch: list[Finding] = []
    for class_ in classes:
        after = 0
        while found := await asyncio.to_thread(spool.findings, class_=class_, after=after, limit=REPAIRS_PER_JOB):
            after = found[-1].n
            batch += found
            while len(batch) >= REPAIRS_PER_JOB:
                yield batch[:REPAIRS_PER_JOB]
                batch = batch[REPAIRS_PER_JOB:]
    if batch:
        yield batch


def _repair_job(target: str, found: Sequence[Finding], started_at: float, clock: Clock) -> Callable[[Transaction], int]:
    def job(ledger: Transaction) -> int:
        done = 0
        for one in found:
            row = ledger.row(one.resource) if one.resource else None
            if row is None or row.target != target or row.in_flight is not None or row.dirty or row.open:
                continue
            if one.class_ == "unknown":
                if one.code != "deleted_here" or row.state is not State.GONE or not row.deleted:
                    continue
                # made or kept by a delivery of this very user, whose externalId it carries: the tombstone takes it along
                row.doubts.strays[one.account_id] = one.label
            elif row.state is not State.APPLIED or not _untouched_since(row, started_at):
                continue
            make_dirty(row, clock.now())
            ledger.save(row)
            done += 1
        return done

    return job
