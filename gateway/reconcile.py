"""Comparing products with what was applied to them: every so often by itself, and when an operator asks.

A comparison only reads. What it finds is a report; a repair gives the users in it back to the engine, which looks at the product
first and sends the ordinary event, after everything Entra asks for. Guards: a broken list concludes nothing, nor does one much
shorter than the last; a repair of many waits for an operator; nothing is called through an open circuit; and all of it takes a
small part of the product's rate limit. Of several gateways one does it at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct
from ulid import ULID

from gateway import reports_store as kept
from gateway.comparison import (
    DIFFERENCES,
    GROUPS_REPAIRABLE,
    OF_GROUPS,
    REPAIRABLE,
    Ask,
    ComparisonFailed,
    Kind,
    Progress,
    Wish,
    asked,
    sort_differences,
    take_accounts,
    take_wishes,
)
from gateway.dispatch import Clock, Dispatcher
from gateway.explanations import mask_message
from gateway.group_spool import Difference, GroupSpool, LinkedGroup
from gateway.lifecycle import Row, make_dirty
from gateway.matching import Matches, label_of, masked
from gateway.reports_store import Report
from gateway.spool import Finding, Spool, Wished
from gateway.store import Reader, Store, Transaction
from gateway.writer import StoreError
from schemas.comparison import LIST_S, Members
from schemas.config import ReconcileSettings, TargetSettings
from schemas.logs import logger
from schemas.specs import Spec
from schemas.states import Circuit, State

LEASE = "reconcile:"
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
MEMBERS_PER_CALL = 100
"""Members of a group one call changes, for reckoning with; products take about as many."""
GROUPS_PER_LOOK = 200
STOPPED = frozenset((kept.ELSEWHERE, "not_enabled", "paused", "circuit_open"))
"""Why nothing more is to be called, or concluded."""
JITTER_SHARE = 0.05
JITTER_MAX_S = 1_800.0
"""Comparisons of all targets would otherwise begin in the same minute every day, and those of all customers of a product."""
CALLS_PER_S_UNKNOWN = 20.0
"""Taken for the rate of a product that names none."""
USERS_PER_PAGE = 200

log = logger()


class Run(Struct):
    """A comparison that is under way, or ended with `report`."""

    target: str
    id: str
    progress: Progress
    report: Report | None = None
    repaired: int = 0


def next_run(target: str, settings: ReconcileSettings, last: Report | None, started_at: float) -> float | None:
    """When a target is compared by itself next, epoch seconds; None when it is not.

    Args:
        started_at: when this gateway started.
    """
    if settings.mode == "off":
        return None
    every_s = settings.every_hours * 3_600
    if last is None:
        after, wait_s = started_at, min(FIRST_AFTER_S, every_s)
    else:
        after, wait_s = last.ended_at, min(every_s, FAILED_AGAIN_S) if last.state == "failed" else every_s
    drawn = hashlib.blake2b(f"{target} {last.id if last else ''}".encode(), digest_size=4).digest()
    return after + wait_s + int.from_bytes(drawn) / 2**32 * min(JITTER_MAX_S, JITTER_SHARE * every_s)


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
        self.matches = Matches(store, clock, targets, ask, spawn)
        self._started_at = clock.now()

    # ---- by itself

    async def take_over(self) -> None:
        """At the start of the only gateway there is: what its predecessor had begun is over, and is not waited for."""

        def job(ledger: Transaction) -> list[Report]:
            broken = []
            for name, holder in kept.leases(ledger, LEASE):
                kept.end_lease(ledger, name, holder)
                broken += kept.end_broken_off(ledger, name.removeprefix(LEASE), self.clock.now())
            return broken

        for one in await self.store.run(job):
            log.warning("reconcile.broken_off", target=one.target, run=one.id, state=one.state)

    async def look(self) -> None:
        """Start what is due; called every LOOK_EVERY_S."""
        for name, settings in self.targets().items():
            if settings.enabled and await self._is_due(name, settings.reconcile):
                self.start(name, repair=settings.reconcile.mode == "repair")
        self.matches.expire()

    async def _is_due(self, target: str, settings: ReconcileSettings) -> bool:
        if settings.mode == "off" or target in self.running or not self.can_list(target) or not self.serves(target):
            return False
        await self._end_broken_off(target)
        last = await self.store.read_slow(lambda reader: kept.last_report(reader, target))
        at = self.next_after(target, last)
        return at is not None and self.clock.now() >= at

    def next_after(self, target: str, last: Report | None) -> float | None:
        """When a target is compared by itself after the last time; None when it is not."""
        settings = self.targets().get(target)
        if settings is None or not settings.enabled or not self.can_list(target):
            return None
        return next_run(target, settings.reconcile, last, self._started_at)

    async def _end_broken_off(self, target: str) -> None:
        """End what a gateway that is gone had begun: nobody holds its lease any more."""
        begun = await self.store.read_slow(lambda reader: [one.state for one in kept.runs(reader, target)])
        if not any(state in kept.UNDER_WAY for state in begun):
            return
        lease, now = f"{LEASE}{target}", self.clock.now()

        def job(ledger: Transaction) -> list[Report]:
            if not kept.take_lease(ledger, lease, self.holder, now, LEASE_S):
                return []
            broken = kept.end_broken_off(ledger, target, now)
            kept.end_lease(ledger, lease, self.holder)
            return broken

        for one in await self.store.run(job):
            log.warning("reconcile.broken_off", target=target, run=one.id, state=one.state)

    def can_list(self, target: str) -> bool:
        """Whether the target's connector says that it can list its accounts."""
        spec = self.spec_of(target)
        return spec is not None and "list_accounts" in spec.capabilities

    def _settle_s(self, target: str) -> float:
        """How long after a write the product's lists may still show what was before it."""
        spec, own = self.spec_of(target), self._settings(target).settle_s
        return own if own is not None else spec.settle_s if spec is not None else Spec(name="", title="").settle_s

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
        lease = f"{LEASE}{target}"
        spool: GroupSpool | None = None
        report = Report(
            target=target,
            id=run.id,
            state="running",
            mode="repair" if repair else "report",
            started_at=started_at,
            ended_at=started_at,
            actor=actor,
            reason=reason,
        )
        leased = False
        try:
            report = await self._begin(lease, report)
            leased = True
            spool = await asyncio.to_thread(GroupSpool)
            report = await self._compare(run, spool, report)
            report = await self._judge(spool, report, repair=repair, approved=approved)
            await self._keep(spool, report)
            if report.state == "repairing":
                report = await self._repair(run, spool, report)
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
            run=report.id,
            state=report.state,
            code=report.code,
            repaired=report.repaired,
            took_s=round(self.clock.now() - started_at, 1),
            **differences,
        )

    async def _begin(self, lease: str, report: Report) -> Report:
        """Take the lease, end what a gateway that is gone had begun, and write down that this one is under way."""

        def job(ledger: Transaction) -> bool:
            if not kept.take_lease(ledger, lease, self.holder, report.started_at, LEASE_S):
                return False
            kept.end_broken_off(ledger, report.target, report.started_at)
            return True

        if not await self.store.run(job):
            raise ComparisonFailed(kept.ELSEWHERE, "Another gateway compares this target at this moment.")

        def sized(reader: Reader) -> Report:
            before = kept.last_report(reader, report.target)
            if before is None:
                return report
            gone = {kind: kept.gone_since(reader, report.target, kind, before.started_at) for kind in ("user", "group")}
            return msgspec.structs.replace(
                report,
                size=max(0, before.size - gone["user"]),
                groups_size=max(0, before.groups_size - gone["group"]),
            )

        report = await self.store.read_slow(sized)
        await self.store.run(lambda ledger: kept.save_run(ledger, report))
        return report

    async def _failed(self, run: Run, report: Report, code: str, message: str) -> Report:
        """The end of a run that concludes nothing; of a repair that stopped, the report stays and says how far it came."""
        comparing = report.state != "repairing"
        failed = msgspec.structs.replace(
            report,
            state="failed" if comparing else "differs",
            ended_at=self.clock.now(),
            listed=run.progress.accounts if comparing else report.listed,
            repaired=run.repaired,
            code=code,
            message=mask_message(message)
            if comparing
            else f"The repair stopped after {run.repaired:,} were given back: {mask_message(message)}",
        )
        if code == kept.ELSEWHERE:
            return failed  # the other one's report is the one that counts
        try:
            await self._keep(None, failed, forget=comparing)
        except StoreError:
            log.warning("reconcile.report_lost", target=report.target)
        return failed

    async def _renew(self, lease: str) -> None:
        def job(ledger: Transaction) -> bool:
            return kept.take_lease(ledger, lease, self.holder, self.clock.now(), LEASE_S)

        if not await self.store.run(job):
            raise ComparisonFailed(kept.ELSEWHERE, "Another gateway compares this target at this moment.")

    async def _compare(self, run: Run, spool: GroupSpool, report: Report) -> Report:
        target = run.target
        await self._check_open(target)
        run.progress.of = await self.store.read_slow(lambda reader: sum(reader.counts(target).values()))
        listed, compared = await self._compare_kind(run, spool, report, "user", report.size)
        report = msgspec.structs.replace(report, size=listed, listed=listed, compared=compared)
        if await self._has_groups(target):
            report = await self._compare_groups(run, spool, report)
        await self._retract(spool, report)
        counts, codes = await asyncio.to_thread(spool.counts), await asyncio.to_thread(spool.codes)
        fixes = await asyncio.to_thread(spool.count_fixes)
        return msgspec.structs.replace(
            report, counts=counts, codes=codes, member_differences=fixes, ended_at=self.clock.now()
        )

    async def _compare_kind(
        self, run: Run, spool: GroupSpool, report: Report, kind: Kind, size: int
    ) -> tuple[int, int]:
        """Accounts, or groups: how many are listed, and how many here were compared with them."""
        target, least, sleep = run.target, self._settings(run.target).list_share_min, self.clock.sleep
        await take_accounts(spool, self.ask, target, run.progress, self._pacer(target), sleep, kind)
        listed = await asyncio.to_thread(spool.count, "account")
        what = "accounts" if kind == "user" else "groups"
        remedy = (
            f"Nothing was concluded from it; if that is right, lower list_share_min of targets.{target}.reconcile for one "
            "comparison."
        )
        if listed < least * size:
            raise ComparisonFailed(
                "list_too_short",
                f"The product lists {listed:,} {what}, and {size:,} were expected: as many as the last time, less those "
                f"deleted here since. {remedy}",
            )
        await take_wishes(spool, self.ask, target, run.progress, self._wishes(report, kind), sleep, kind)
        known = await asyncio.to_thread(spool.count_linked)
        if not size and listed < least * known:
            raise ComparisonFailed(
                "list_too_short", f"The product lists {listed:,} {what}, and {known:,} are linked here. {remedy}"
            )
        run.progress.stage = "sorting"
        return listed, await asyncio.to_thread(sort_differences, spool, OF_GROUPS if kind == "group" else "")

    async def _wishes(self, report: Report, kind: Kind) -> AsyncIterator[Sequence[Wish]]:
        """Users or groups page by page, read after the list: an account made meanwhile is in the store by then."""
        target, since, after = report.target, self._since(report), 0
        while True:
            rows = await self.store.read_slow(
                lambda reader, after=after: kept.rows_after(reader, target, kind, after, USERS_PER_PAGE)  # type: ignore[misc]
            )
            if not rows:
                return
            yield [_wish(row, since) for _, row in rows]
            after = rows[-1][0]
            await self._renew(f"{LEASE}{target}")

    def _since(self, report: Report) -> float:
        """Who changed after this is on the way: the product's lists may show it as it was, or as it is."""
        return report.started_at - self._settle_s(report.target)

    # ---- groups and their members

    async def _has_groups(self, target: str) -> bool:
        """Whether there is anything to compare: groups of a product that Entra sends none of are none of our business."""
        spec = self.spec_of(target)
        if spec is None or "list_groups" not in spec.capabilities:
            return False
        return bool(await self.store.read_slow(lambda reader: kept.rows_after(reader, target, "group", 0, 1)))

    async def _compare_groups(self, run: Run, spool: GroupSpool, report: Report) -> Report:
        """Groups after the users; what keeps them from being compared, such as a missing right, leaves the users' part."""
        target = run.target
        await self._rest(target, 1)  # for the last part of the list, after which nothing was called yet
        await self._check_open(target)
        await asyncio.to_thread(spool.turn_to_groups)
        try:
            listed, compared = await self._compare_kind(run, spool, report, "group", report.groups_size)
            whole = msgspec.structs.replace(report, groups_size=listed, groups_listed=listed, groups=compared)
            return await self._compare_members(run, spool, whole)
        except ComparisonFailed as exc:
            if exc.code in STOPPED:
                raise
            await asyncio.to_thread(spool.forget_fixes)
            await asyncio.to_thread(spool.retract_classes, *(one for one in DIFFERENCES if one.startswith(OF_GROUPS)))
            message = f"Groups were not compared ({exc.code}): {mask_message(exc.message)}"
            return msgspec.structs.replace(report, code=exc.code, message=message)

    async def _compare_members(self, run: Run, spool: GroupSpool, report: Report) -> Report:
        run.progress.stage = "members"
        compared = shown = after = 0
        while groups := await asyncio.to_thread(spool.linked_groups, after, GROUPS_PER_LOOK):
            if not after:
                await self._rest(run.target, 1)
            for group in groups:
                found = await self._members_of(run, spool, report, group)
                compared, shown = compared + found.compared, shown + found.shown
            after = groups[-1].n
        if compared and not shown:  # it shows no members at all, which says nothing about them
            await asyncio.to_thread(spool.forget_fixes)
            await asyncio.to_thread(spool.retract_classes, "group_members", "group_strangers")
            message = "The product shows no members of any group, so members were not compared."
            return msgspec.structs.replace(report, message=message)
        return msgspec.structs.replace(report, memberships=compared)

    async def _members_of(self, run: Run, spool: GroupSpool, report: Report, group: LinkedGroup) -> Difference:
        """Compare the members of one group; the product is asked first, so that a change meanwhile shows in the row."""
        await asyncio.to_thread(spool.begin_members)
        cursor, pace = "", self._pacer(run.target)
        while True:
            question = {"do": "members", "group": group.account_id, "cursor": cursor}
            part = await asked(self.ask, run.target, question, LIST_S, Members, self.clock.sleep)
            new = await asyncio.to_thread(spool.add_there, part.members)
            run.progress.members += new
            await pace(part.calls)
            if part.cursor is None or part.gone:
                break
            if not new or part.cursor == cursor:
                raise ComparisonFailed(
                    "endless_list", "The members of a group are shown again and again; nothing was concluded from it."
                )
            cursor = part.cursor
        row = await self.store.read_slow(lambda reader: reader.row(group.id))
        if part.gone or row is None or not _is_at_rest(row, self._since(report)):
            return Difference()
        last = ""
        while members := await self.store.read_slow(
            lambda reader: kept.members_after(reader, run.target, group.id, last)  # noqa: B023 - done before the next
        ):
            here = [(one.account_id, one.member, one.firm) for one in members if one.account_id is not None]
            await asyncio.to_thread(spool.add_here, here)
            last = members[-1].member
        ours = row.account_created is True
        found = await asyncio.to_thread(spool.compare_members, group.id, ours=ours)

        def say() -> None:
            about: dict[str, Any] = {"resource": group.id, "accounts": (group.account_id,), "label": group.label}
            wrong = {"missing": found.missing, "extra": found.extra if ours else 0}
            if any(wrong.values()):
                code = f"{'_and_'.join(name for name, many in wrong.items() if many)}_members"
                text = f"{found.missing:,} of {found.compared:,} missing, {wrong['extra']:,} too many"
                spool.say("group_members", code=code, attributes=("members",), message=text, **about)
            strangers = {"unknown": found.strange, "not_from_here": 0 if ours else found.extra}
            for code, many in strangers.items():
                if many:
                    text = f"{many:,} more than were put in from here; they stay"
                    spool.say("group_strangers", code=code, attributes=("members",), message=text, **about)

        await asyncio.to_thread(spool.at_once, say)
        return found

    async def _retract(self, spool: GroupSpool, report: Report) -> None:
        """Take back what is not so any more: changes arrived while the lists were read."""
        since, target, after = self._since(report), report.target, 0
        while found := await asyncio.to_thread(spool.findings, after=after, limit=GROUPS_PER_LOOK):
            after = found[-1].n

            def stale(reader: Reader, found: Sequence[Finding] = found) -> list[Finding]:
                return [one for one in found if not _is_still_so(reader, target, one, since)]

            taken_back = await self.store.read_slow(stale)
            if taken_back:
                await asyncio.to_thread(spool.retract, [one.n for one in taken_back])
                await asyncio.to_thread(
                    spool.forget_fixes, [one.resource for one in taken_back if one.class_ == "group_members"]
                )
            await self._renew(f"{LEASE}{target}")

    # ---- its pace

    def _pacer(self, target: str) -> Callable[[int], Awaitable[None]]:
        async def pace(calls: int) -> None:
            await self._renew(f"{LEASE}{target}")
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
            await self._renew(f"{LEASE}{target}")

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
        users = sum(report.counts.get(name, 0) for name in REPAIRABLE)
        if settings.unknown == "delete-ours":
            users += report.codes.get("unknown.deleted_here", 0)
        groups = sum(report.counts.get(name, 0) for name in GROUPS_REPAIRABLE)
        many = [
            f"{wrong:,} of {compared:,} {what}"
            for wrong, compared, what in (
                (users, report.compared, "users"),
                (groups, report.groups, "groups"),
                (report.member_differences, report.memberships, "memberships"),
            )
            if wrong > max(settings.held_count_min, settings.held_share * compared)
        ]
        message = report.message
        if not sum(report.counts.values()):
            state = "differs" if report.code else "good"
        elif not repair or not (users or groups):
            state = "differs"
        elif many and not approved:
            state = "held"
            message = (
                f"{' and '.join(many)} would be applied again, which is unusually many. Look at the report; then: provgate "
                f"reconcile {report.target} --repair --approve --reason TEXT, or --refuse --reason TEXT"
            )
        else:
            state = "repairing"
        return msgspec.structs.replace(report, state=state, message=message, ended_at=self.clock.now())

    async def _keep(self, spool: Spool | None, report: Report, *, forget: bool = False) -> None:
        """Write the report; with a spool its differences, too, in several jobs so that no request waits for them."""

        def head(ledger: Transaction) -> None:
            if spool is not None or forget:
                kept.forget_findings(ledger, report.target)
            kept.save_run(ledger, report)

        await self.store.run(head)
        after = 0
        while spool is not None and after < kept.FINDINGS_KEPT_MAX:
            found = await asyncio.to_thread(spool.findings, after=after, limit=100)
            if not found:
                return
            lines = [masked(one) for one in found]
            await self.store.run(lambda ledger, lines=lines: kept.add_findings(ledger, report.target, lines))  # type: ignore[misc]
            after = found[-1].n

    async def _repair(self, run: Run, spool: GroupSpool, report: Report) -> Report:
        """Give what differs back to the engine, slowly: marked dirty, it is looked at and applied after everything else."""
        target, settings, since = run.target, self._settings(run.target), self._since(report)
        run.progress.stage = "repairing"
        classes: list[str] = [*REPAIRABLE, *GROUPS_REPAIRABLE]
        if settings.unknown == "delete-ours":
            classes.append("unknown")
        calls = 0
        async for found in _batches(spool, classes):
            if calls:
                await self._rest(target, calls)
            await self._renew(f"{LEASE}{target}")
            await self._check_open(target)
            fixes = {
                one.resource: await asyncio.to_thread(spool.fixes, one.resource)
                for one in found
                if one.class_ == "group_members"
            }
            done = await self.store.run(_repair_job(target, found, fixes, since, self.dispatcher.clock))
            changed = sum(len(members) for fix in fixes.values() for members in fix.values())
            calls = done * REPAIR_CALLS + -(-changed // MEMBERS_PER_CALL)
            run.repaired += done
            self.dispatcher.kick(target)

        def audit(ledger: Transaction) -> None:
            detail = {
                "reason": report.reason,
                "repaired": run.repaired,
                "report": report.id,
                "counts": report.counts,
            }
            ledger.audit(
                at=self.clock.now(),
                actor=report.actor,
                action="reconcile.repaired",
                target=target,
                subject=target,
                detail=detail,
            )

        await self.store.run(audit)
        return msgspec.structs.replace(report, state="repaired", repaired=run.repaired, ended_at=self.clock.now())

    async def refuse(self, target: str, *, actor: str, reason: str) -> Report | None:
        """An operator's no to a repair that is held; None when none is."""

        def job(ledger: Transaction) -> Report | None:
            held = kept.held_run(ledger, target)
            if held is None:
                return None
            message = "An operator refused this repair; what differs stays as it is."
            refused = msgspec.structs.replace(held, state="refused", message=message)
            kept.save_run(ledger, refused)
            detail = {"reason": reason, "report": held.id, "counts": held.counts}
            ledger.audit(
                at=self.clock.now(),
                actor=actor,
                action="reconcile.refused",
                target=target,
                subject=target,
                detail=detail,
            )
            return refused

        return await self.store.run(job)


def _wish(row: Row, since: float) -> Wish:
    resting = row.in_flight is None and not row.dirty and not row.ambiguous
    wished: Wished
    if row.state is State.GONE and resting and _untouched_since(row, since):
        wished = "gone"
    elif _is_at_rest(row, since):
        wished = "compare"
    else:
        wished = "moving"
    return Wish(
        id=row.id,
        label=label_of(row),
        document=msgspec.Raw(row.document),
        wished=wished,
        account_id=row.account_id,
        inactive_known=row.observed_active is False,
    )


def _is_at_rest(row: Row, since: float) -> bool:
    """Whether the product has had the time to show what is settled, and nothing else is under way."""
    return (
        row.state is State.APPLIED
        and row.in_flight is None
        and not (row.dirty or row.ambiguous or row.open or row.deleted)
        and _untouched_since(row, since)
    )


def _untouched_since(row: Row, since: float) -> bool:
    return row.modified_at < since and row.settled_at < since


def _is_still_so(reader: Reader, target: str, one: Finding, since: float) -> bool:
    """Whether nothing happened to whom a line is about since the lists were read."""
    row = reader.row(one.resource) if one.resource else None
    if one.class_.removeprefix(OF_GROUPS) == "unknown":
        kind = "group" if one.class_.startswith(OF_GROUPS) else "user"
        if kept.owner_of(reader, target, kind, one.account_id) is not None:
            return False
        return row is None or (row.state is State.GONE and _untouched_since(row, since))
    return row is not None and _is_at_rest(row, since)


async def _batches(spool: Spool, classes: Sequence[str]) -> AsyncIterator[list[Finding]]:
    """Lines of these classes, REPAIRS_PER_JOB at a time; a group with members to change alone, for it may be large."""
    batch: list[Finding] = []
    for class_ in classes:
        size = 1 if class_ == "group_members" else REPAIRS_PER_JOB
        after = 0
        while found := await asyncio.to_thread(spool.findings, class_=class_, after=after, limit=size):
            after = found[-1].n
            batch += found
            while len(batch) >= size:
                yield batch[:size]
                batch = batch[size:]
        if batch and size == 1:
            yield batch
            batch = []
    if batch:
        yield batch


def _repair_job(
    target: str,
    found: Sequence[Finding],
    fixes: Mapping[str, Mapping[Literal["add", "remove"], Sequence[str]]],
    since: float,
    clock: Clock,
) -> Callable[[Transaction], int]:
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
            elif not _is_at_rest(row, since):
                continue
            if one.class_ == "group_members":
                fix = fixes[one.resource]
                kept.reopen_members(ledger, row.id, fix["add"], fix["remove"])
            make_dirty(row, clock.now())
            ledger.save(row)
            done += 1
        return done

    return job
