"""The operators' API of match reports and reconciliations: begin one, see how far it is, read it page by page.

A person's values are masked unless they are asked for, and that is recorded; object ids and the products' ids are not.
"""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Router, delete, get, post
from litestar.params import FromPath, FromQuery, RawBody
from msgspec import Meta, Struct

from gateway import entra_export
from gateway.comparison import MATCH_CLASSES, ComparisonFailed, Progress, Wish
from gateway.matching import Match, masked
from gateway.reconcile import Reconciler
from gateway.reports_store import FINDINGS_LISTED_MAX, Report, kept_findings, last_report, runs
from gateway.services import (
    ACTOR,
    PREFIX,
    OperatorError,
    Sentence,
    Services,
    after_of,
    known,
    limit_of,
    order_of,
    record,
)
from gateway.spool import Finding
from schemas.comparison import DOCUMENTS_PER_QUESTION_MAX
from schemas.specs import Spec


class ReconcileOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Compare now. `approve`: repair however many differ; needs a reason."""

    repair: bool = False
    approve: bool = False
    reason: Sentence = ""


class RefuseOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Say no to a repair that is held."""

    reason: Annotated[str, Meta(min_length=1, max_length=1_000)]


class MatchOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Compare before the first cycle. `handed_in`: users come in the orders that follow, instead of from the store."""

    handed_in: bool = False


class UsersOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Users as Entra exports them. `sources`: SCIM path -> attribute of the directory, before the connector's own."""

    users: Annotated[tuple[dict[str, Any], ...], Meta(min_length=1, max_length=DOCUMENTS_PER_QUESTION_MAX)]
    sources: Annotated[dict[str, str], Meta(max_length=entra_export.MAP_ENTRIES_MAX)] = {}


class ReconcileView(Struct, frozen=True, kw_only=True):
    """How a target's comparison stands: what is under way, the last report, and when the next one is due by itself."""

    at: float
    target: str
    running: bool
    run_id: str = ""
    progress: Progress | None = None
    report: Report | None = None
    next_at: float | None = None


class RunsView(Struct, frozen=True, kw_only=True):
    """Comparisons of a target, the newest first."""

    at: float
    target: str
    next_at: float | None
    runs: tuple[Report, ...]


class MatchView(Struct, frozen=True, kw_only=True):
    """One match report.

    Args:
        state: `open`, `running`, `done` or `failed`; then `code` and `message` say why.
        sources: SCIM path -> attribute of the directory, as the connector declares it, for users that are handed in.
        needed: SCIM paths without which nobody can be compared.
    """

    id: str
    target: str
    state: str
    progress: Progress
    counts: dict[str, int]
    codes: dict[str, int]
    code: str
    message: str
    sources: dict[str, str]
    needed: tuple[str, ...]


class FindingsView(Struct, frozen=True):
    """A page of a report; the next one begins after the last `n`."""

    findings: tuple[Finding, ...]


def reports_router(services: Services, reconciler: Reconciler) -> Router:
    """The routes of this module, to be put beside the operators' others."""

    def comparable(name: str) -> str:
        known(services, name)
        if not reconciler.can_list(name):
            raise OperatorError(
                409,
                f"The accounts of {name} cannot be listed, or no worker that serves it was ever seen; run: provgate check",
            )
        return name

    def match_of(id_: str) -> Match:
        found = reconciler.matches.held.get(id_)
        if found is None:
            raise OperatorError(404, "There is no such match report; the latest are kept, until the gateway restarts.")
        return found

    def shown(match: Match) -> MatchView:
        return _match_view(match, reconciler.spec_of(match.target))

    @post("/targets/{name:str}/reconcile", status_code=202)
    async def start_reconcile(name: FromPath[str], body: RawBody) -> ReconcileView:
        """Begin a comparison, unless one is under way."""
        order = order_of(body, ReconcileOrder)
        comparable(name)
        if order.approve and not (order.repair and order.reason.strip()):
            raise OperatorError(400, "An approval goes with a repair, and needs a reason.")
        if name in reconciler.running:
            raise OperatorError(409, f"{name} is being compared already; see how far it is, or wait for its end.")
        detail = {"repair": order.repair, "approve": order.approve, "reason": order.reason}
        await record(services, "reconcile.started", name, detail)
        run = reconciler.start(name, repair=order.repair, approved=order.approve, actor=ACTOR, reason=order.reason)
        return ReconcileView(at=services.clock.now(), target=name, running=True, run_id=run.id, progress=run.progress)

    @get("/targets/{name:str}/reconcile")
    async def show_reconcile(name: FromPath[str], run_id: FromQuery[str] = "") -> ReconcileView:
        """How far a comparison is, and the last report; the one of `run_id` if it ended here."""
        run = reconciler.running.get(known(services, name))
        ended = reconciler.ended.get(name)
        if ended is not None and ended.id == run_id:
            report = ended.report
        else:
            report = await services.store.read_slow(lambda reader: last_report(reader, name))
        return ReconcileView(
            at=services.clock.now(),
            target=name,
            running=run is not None,
            run_id=run.id if run is not None else "",
            progress=run.progress if run is not None else None,
            report=report,
            next_at=reconciler.next_after(
                name, await services.store.read_slow(lambda reader: last_report(reader, name))
            ),
        )

    @post("/targets/{name:str}/reconcile/refuse", status_code=200)
    async def refuse_repair(name: FromPath[str], body: RawBody) -> ReconcileView:
        """Say no to a repair that waits for an operator; what differs stays as it is."""
        order = order_of(body, RefuseOrder)
        refused = await reconciler.refuse(known(services, name), actor=ACTOR, reason=order.reason)
        if refused is None:
            raise OperatorError(409, f"No repair of {name} waits for an answer.")
        next_at = reconciler.next_after(name, refused)
        return ReconcileView(at=services.clock.now(), target=name, running=False, report=refused, next_at=next_at)

    @get("/targets/{name:str}/reconcile/runs")
    async def list_runs(name: FromPath[str]) -> RunsView:
        """The comparisons of a target that are kept."""
        known(services, name)
        found, last = await services.store.read_slow(lambda reader: (runs(reader, name), last_report(reader, name)))
        next_at = reconciler.next_after(name, last)
        return RunsView(at=services.clock.now(), target=name, next_at=next_at, runs=tuple(found))

    @get("/targets/{name:str}/reconcile/findings")
    async def list_differences(
        name: FromPath[str],
        class_: FromQuery[str | None] = None,
        after: FromQuery[int] = 0,
        limit: FromQuery[int] = FINDINGS_LISTED_MAX,
    ) -> FindingsView:
        """What differed at the last comparison, page by page."""
        known(services, name)
        beyond, most = after_of(after), limit_of(limit, FINDINGS_LISTED_MAX)
        found = await services.store.read_slow(
            lambda reader: kept_findings(reader, name, class_=class_, after=beyond, limit=most)
        )
        return FindingsView(tuple(found))

    @post("/targets/{name:str}/match", status_code=201)
    async def start_match(name: FromPath[str], body: RawBody) -> MatchView:
        """Begin a match report."""
        order = order_of(body, MatchOrder)
        comparable(name)
        await record(services, "match.started", name, {"handed_in": order.handed_in})
        return shown(reconciler.matches.begin(name, from_store=not order.handed_in))

    @post("/matches/{match_id:str}/users", status_code=200)
    async def hand_in(match_id: FromPath[str], body: RawBody) -> MatchView:
        """Hand in exported users; they are normalized at once."""
        match = match_of(match_id)
        order = order_of(body, UsersOrder)
        if match.state != "open":
            raise OperatorError(409, "This report takes no more users.")
        spec = reconciler.spec_of(match.target)
        wishes = []
        for record_ in order.users:
            document = entra_export.document_of(record_, spec, order.sources)
            label = entra_export.label_of(document)
            wishes.append(Wish(id=entra_export.id_of(record_, document), label=label, document=document))
        try:
            await match.take(wishes)
        except ComparisonFailed as exc:
            raise OperatorError(503, exc.message) from None
        return shown(match)

    @post("/matches/{match_id:str}/start", status_code=200)
    async def go(match_id: FromPath[str]) -> MatchView:
        """All users are handed in: list the accounts and compare."""
        match = match_of(match_id)
        if match.state != "open":
            raise OperatorError(409, "This report is under way already.")
        match.start()
        return shown(match)

    @get("/matches/{match_id:str}")
    async def show_match(match_id: FromPath[str]) -> MatchView:
        """How far a match report is, and what it counts."""
        return shown(match_of(match_id))

    @get("/matches/{match_id:str}/findings")
    async def list_matches(
        match_id: FromPath[str],
        class_: FromQuery[str | None] = None,
        after: FromQuery[int] = 0,
        limit: FromQuery[int] = FINDINGS_LISTED_MAX,
        show_values: FromQuery[bool] = False,
    ) -> FindingsView:
        """Lines of a match report, page by page."""
        match = match_of(match_id)
        beyond, most = after_of(after), limit_of(limit, FINDINGS_LISTED_MAX)
        if class_ is not None and class_ not in MATCH_CLASSES:
            raise OperatorError(400, f"class_ must be one of {', '.join(MATCH_CLASSES)}.")
        if match.state != "done":
            raise OperatorError(409, "This report is not done yet.")
        if show_values:  # each page, because any page may be asked for first
            detail = {"match": match.id, "class": class_ or "", "after": after}
            await record(services, "values.shown", match.target, detail)
        found = await match.findings(class_=class_, after=beyond, limit=most)
        return FindingsView(tuple(one if show_values else masked(one) for one in found))

    @delete("/matches/{match_id:str}", status_code=204)
    async def forget(match_id: FromPath[str]) -> None:
        """Forget a match report."""
        match_of(match_id)
        reconciler.matches.drop(match_id)

    handlers: list[Any] = [
        start_reconcile,
        show_reconcile,
        list_differences,
        refuse_repair,
        list_runs,
        start_match,
        hand_in,
        go,
        show_match,
        list_matches,
        forget,
    ]
    return Router(PREFIX, route_handlers=handlers)


def _match_view(match: Match, spec: Spec | None) -> MatchView:
    return MatchView(
        id=match.id,
        target=match.target,
        state=match.state,
        progress=match.progress,
        counts=match.counts,
        codes=match.codes,
        code=match.code,
        message=match.message,
        sources=entra_export.sources_of(spec),
        needed=entra_export.needed_of(spec),
    )
