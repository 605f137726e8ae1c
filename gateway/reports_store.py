"""The store's part in reconciliation: leases, runs and the differences of the last one, users and groups page by page.

Functions of a `Transaction` run inside a job of `Store.run`, those of a `Reader` inside `Store.read_slow`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.dialects import postgresql, sqlite

from gateway.lifecycle import Row
from gateway.spool import Finding
from gateway.statements import Statement, dialect_of
from gateway.store import Reader, Transaction
from gateway.tables import MEMBERSHIP, METADATA, READ_COLUMNS, RESOURCE, SEQ_PLACE, decode_row, without_nul

FINDINGS_KEPT_MAX = 10_000
"""Differences kept of one report; all of them are counted."""
FINDINGS_LISTED_MAX = 500
ROWS_LISTED_MAX = 500
MEMBERS_LISTED_MAX = 1_000
RUNS_KEPT_MAX = 100
"""Runs of one target that are kept; the oldest make room."""
UNDER_WAY = ("running", "repairing")
ELSEWHERE = "running_elsewhere"

_LEASE, _RUN, _FINDING = (METADATA.tables[name] for name in ("lease", "reconcile_run", "reconcile_finding"))
_json = msgspec.json.Encoder(order="deterministic")


class Report(Struct, frozen=True, kw_only=True):
    """What a reconciliation came to, or how it stands. Times are epoch seconds.

    Args:
        state: `running`, then `good` (nothing differs), `differs` (or part of it was not compared: `code`), `repairing` (what
            differs is being given back to the engine), `repaired`, `held` (too much differs: it waits for an operator), `refused`
            (the operator said no) or `failed` (no conclusion; `code` and `message` say why, as they do where a repair stopped).
        mode: `report` or `repair`.
        actor: who asked for it; `system` when it was due.
        compared: users at rest that were compared; `groups` the same of groups, and `memberships` of their members.
        listed: accounts the product listed; `groups_listed`: groups.
        size: accounts of the last list that was whole, less the users deleted here since; `groups_size`: groups.
        repaired: users and groups that were given back to the engine.
        member_differences: memberships that a repair changes.
        counts: differences by class. codes: by class and cause, `class.code`.
    """

    target: str
    id: str
    state: str
    mode: str
    started_at: float
    ended_at: float
    actor: str = "system"
    reason: str = ""
    compared: int = 0
    listed: int = 0
    size: int = 0
    repaired: int = 0
    groups: int = 0
    groups_listed: int = 0
    groups_size: int = 0
    memberships: int = 0
    member_differences: int = 0
    counts: dict[str, int] = {}
    codes: dict[str, int] = {}
    code: str = ""
    message: str = ""


class Membership(Struct, frozen=True):
    """A member of a group as the store has it. `firm`: wished, and known to be in; `account_id` None: it has none yet."""

    member: str
    account_id: str | None
    firm: bool


_GIVEN = {
    "sqlite": "SELECT value AS member FROM json_each(:members)",
    "postgresql": "SELECT value AS member FROM jsonb_array_elements_text(CAST(:members AS JSONB))",
}
_EXPEL = (
    "INSERT INTO membership (group_id, member, wished, settled, uncertain) "
    "SELECT :of_group, g.member, false, true, false FROM ({given}) g WHERE true ON CONFLICT (group_id, member) DO NOTHING"
)


class _Statements:
    """The statements of this module for one engine."""

    def __init__(self, engine: str) -> None:
        dialect = dialect_of(engine)
        insert: Any = sqlite.insert if engine == "sqlite" else postgresql.insert

        def p(name: str, type_: Any = None) -> Any:
            return sa.bindparam(name, required=False, type_=type_)

        def ready(clause: Any, table: sa.Table | None = None) -> Statement:
            return Statement(clause, dialect, None if table is None else [column.name for column in table.columns])

        lease = insert(_LEASE)
        self.take_lease = ready(
            lease.on_conflict_do_update(
                index_elements=["name"],
                set_={"holder": lease.excluded.holder, "until": lease.excluded.until},
                where=sa.or_(_LEASE.c.holder == lease.excluded.holder, _LEASE.c.until < p("now", sa.Float)),
            ).returning(_LEASE.c.holder),
            _LEASE,
        )
        self.end_lease = ready(
            sa.delete(_LEASE).where(_LEASE.c.name == p("lease_name"), _LEASE.c.holder == p("lease_holder"))
        )
        its_lease = sa.and_(_LEASE.c.name >= p("first_name"), _LEASE.c.name < p("beyond_name"))
        self.leases = ready(sa.select(_LEASE.c.name, _LEASE.c.holder).where(its_lease).order_by(_LEASE.c.name))
        run, runs = insert(_RUN), _RUN.c
        columns = {c.name: run.excluded[c.name] for c in _RUN.columns if c.name not in ("target", "id")}
        self.save_run = ready(run.on_conflict_do_update(index_elements=["target", "id"], set_=columns), _RUN)
        newest = sa.select(_RUN).where(runs.target == p("target")).order_by(runs.started_at.desc(), runs.id.desc())
        self.runs = ready(newest.limit(p("limit", sa.Integer)))
        ended = newest.where(
            runs.state != sa.literal_column("'running'"), runs.code != sa.literal_column(f"'{ELSEWHERE}'")
        )
        self.last_ended = ready(ended.limit(1))
        under_way = sa.or_(*(runs.state == sa.literal_column(f"'{state}'") for state in UNDER_WAY))
        self.under_way = ready(newest.where(under_way).limit(p("limit", sa.Integer)))
        kept = (
            sa.select(runs.id)
            .where(runs.target == p("of_target"))
            .order_by(runs.started_at.desc())
            .limit(RUNS_KEPT_MAX)
        )
        self.forget_runs = ready(sa.delete(_RUN).where(runs.target == p("of_target"), runs.id.not_in(kept)))
        self.forget_findings = ready(sa.delete(_FINDING).where(_FINDING.c.target == p("of_target")))
        self.add_finding = ready(insert(_FINDING).on_conflict_do_nothing(), _FINDING)
        found = sa.select(*(column for column in _FINDING.columns if column.name != "target"))
        found = found.where(_FINDING.c.target == p("target"), _FINDING.c.n > p("after", sa.Integer))
        found = found.order_by(_FINDING.c.n).limit(p("limit", sa.Integer))
        self.findings = ready(found)
        self.findings_of_class = ready(found.where(_FINDING.c.class_name == p("class_name")))
        r = RESOURCE.c
        its_target = r.target + sa.literal_column("''")
        # not the column itself: SQLite would look it up in an index and sort whatever is left, for every page again
        self.rows_after = ready(
            sa.select(*READ_COLUMNS)
            .where(its_target == p("target"), r.kind == p("kind"), r.seq > p("after"))
            .order_by(r.seq)
            .limit(p("limit", sa.Integer))
        )
        of_kind = sa.select(sa.func.count()).where(r.target == p("target"), r.kind == p("kind"))
        self.gone_since = ready(
            of_kind.where(r.state == sa.literal_column("'gone'"), r.settled_at > p("since", sa.Float))
        )
        self.owner_of = ready(
            sa.select(r.id).where(r.target == p("target"), r.kind == p("kind"), r.account_id == p("account_id"))
        )
        m = MEMBERSHIP.c
        self.members_after = ready(
            sa.select(m.member, r.account_id, m.wished, m.settled, m.uncertain)
            .select_from(sa.outerjoin(MEMBERSHIP, RESOURCE, sa.and_(m.member == r.id, r.target == p("target"))))
            .where(m.group_id == p("group_id"), m.member > p("after"))
            .order_by(m.member)
            .limit(p("limit", sa.Integer))
        )
        given = sa.text(_GIVEN[engine]).columns(member=sa.String).subquery("given")
        self.reopen_members = ready(
            sa.update(MEMBERSHIP)
            .where(
                m.group_id == p("of_group"),
                m.member.in_(sa.select(given.c.member)),
                m.wished.is_(sa.true()),
                m.settled.is_(sa.true()),
                m.uncertain.is_(sa.false()),
            )
            .values(settled=sa.false())
        )
        self.expel_members = ready(sa.text(_EXPEL.format(given=_GIVEN[engine])))


@cache
def _statements(engine: str) -> _Statements:
    return _Statements(engine)


def _of(within: Transaction | Reader) -> _Statements:
    return _statements(within.connection.statements.engine)


# ---- one at a time


def take_lease(ledger: Transaction, name: str, holder: str, now: float, life_s: float) -> bool:
    """Take a lease, or go on with one's own, until `now + life_s`; False while another one has it.

    A clock that is wrong makes two gateways compare at once, which costs calls and changes nothing: whatever a comparison
    concludes, only the engine writes.
    """
    values = {"name": name, "holder": holder, "until": now + life_s, "now": now}
    return bool(ledger.connection.rows(_of(ledger).take_lease, **values))


def end_lease(ledger: Transaction, name: str, holder: str) -> None:
    """Give a lease back; another one's stays."""
    ledger.connection.do(_of(ledger).end_lease, lease_name=name, lease_holder=holder)


def leases(within: Transaction | Reader, prefix: str) -> list[tuple[str, str]]:
    """Leases whose names begin so, each with its holder, also those that have ended."""
    found = within.connection.rows(_of(within).leases, first_name=prefix, beyond_name=f"{prefix}\U0010ffff")
    return [(str(name), str(holder)) for name, holder in found]


# ---- runs


def save_run(ledger: Transaction, report: Report) -> None:
    """Keep a run, or what has become of it, and forget the oldest."""
    values = msgspec.structs.asdict(report)
    values |= {name: _json.encode(values[name]).decode() for name in ("counts", "codes")}
    values |= {name: without_nul(values[name]) for name in ("message", "reason")}
    ledger.connection.do(_of(ledger).save_run, **values)
    ledger.connection.do(_of(ledger).forget_runs, of_target=report.target)


def end_broken_off(ledger: Transaction, target: str, now: float) -> list[Report]:
    """End the runs of a target that are under way; to be called by whoever has the lease, so nobody is at work on them.

    Returns:
        The runs that had broken off: a gateway was ended in the middle of them.
    """
    found = ledger.connection.rows(_of(ledger).under_way, target=target, limit=RUNS_KEPT_MAX)
    broken = [_run_of(columns) for columns in found]
    for one in broken:
        message = "The gateway was ended in the middle of it; nothing was concluded."
        if one.state == "repairing":
            message = (
                "The gateway was ended in the middle of the repair; what it had given back is applied all the same."
            )
        else:
            forget_findings(ledger, target)
        save_run(ledger, msgspec.structs.replace(one, state="failed", code="broken_off", message=message, ended_at=now))
    return broken


def forget_findings(ledger: Transaction, target: str) -> None:
    """Before those of a new report are added."""
    ledger.connection.do(_of(ledger).forget_findings, of_target=target)


def add_findings(ledger: Transaction, target: str, findings: Sequence[Finding]) -> None:
    """Keep differences of the last report; their labels must be masked by now."""
    for one in findings:
        ledger.connection.do(
            _of(ledger).add_finding,
            target=target,
            n=one.n,
            class_name=one.class_,
            code=without_nul(one.code),
            resource=one.resource,
            account_id=without_nul(one.account_id),
            label=without_nul(one.label),
            attributes=_json.encode(one.attributes).decode(),
            message=without_nul(one.message),
        )


def held_run(within: Transaction | Reader, target: str) -> Report | None:
    """The last run of a target if its repair waits for an operator."""
    found = within.connection.rows(_of(within).last_ended, target=target)
    last = _run_of(found[0]) if found else None
    return last if last is not None and last.state == "held" else None


def _run_of(columns: Sequence[Any]) -> Report:
    values: dict[str, Any] = dict(zip((column.name for column in _RUN.columns), columns, strict=True))
    counts: Mapping[str, Any] = {name: msgspec.json.decode(values[name]) for name in ("counts", "codes")}
    return Report(**{**values, **counts})


def last_report(reader: Reader, target: str) -> Report | None:
    """The last run of a target that came to an end, or to its repair; one that another gateway was ahead of does not count."""
    found = reader.connection.rows(_of(reader).last_ended, target=target)
    return _run_of(found[0]) if found else None


def runs(reader: Reader, target: str, limit: int = RUNS_KEPT_MAX) -> list[Report]:
    """Runs of a target, the newest first, also one that is under way."""
    return [_run_of(columns) for columns in reader.connection.rows(_of(reader).runs, target=target, limit=limit)]


def kept_findings(
    reader: Reader, target: str, *, class_: str | None = None, after: int = 0, limit: int = FINDINGS_LISTED_MAX
) -> list[Finding]:
    """Differences of the last report after a number, of one class or of all; at most FINDINGS_LISTED_MAX."""
    statements = _of(reader)
    which = statements.findings if class_ is None else statements.findings_of_class
    most = min(limit, FINDINGS_LISTED_MAX)
    found = reader.connection.rows(which, target=target, class_name=class_, after=after, limit=most)
    return [
        Finding(
            n=n,
            class_=name,
            code=code,
            resource=resource,
            account_id=account_id,
            label=label,
            attributes=tuple(msgspec.json.decode(attributes)),
            message=message,
        )
        for n, name, code, resource, account_id, label, attributes, message in found
    ]


# ---- users and groups


def gone_since(reader: Reader, target: str, kind: str, since: float) -> int:
    """How many users or groups of a target were deleted here after a time."""
    return int(reader.connection.rows(_of(reader).gone_since, target=target, kind=kind, since=since)[0][0])


def owner_of(reader: Reader, target: str, kind: str, account_id: str) -> str | None:
    """The resource that is linked to an account now."""
    found = reader.connection.rows(_of(reader).owner_of, target=target, kind=kind, account_id=account_id)
    return str(found[0][0]) if found else None


def rows_after(
    reader: Reader, target: str, kind: str, after: int, limit: int = ROWS_LISTED_MAX
) -> list[tuple[int, Row]]:
    """Users or groups of a target in any state, in the order in which they were made, after the row of this number."""
    found = reader.connection.rows(
        _of(reader).rows_after, target=target, kind=kind, after=after, limit=min(limit, ROWS_LISTED_MAX)
    )
    return [(int(columns[SEQ_PLACE]), decode_row(columns)) for columns in found]


def members_after(
    reader: Reader, target: str, group: str, after: str, limit: int = MEMBERS_LISTED_MAX
) -> list[Membership]:
    """Members of a group, wished or still in, in the order of their ids."""
    found = reader.connection.rows(
        _of(reader).members_after, target=target, group_id=group, after=after, limit=min(limit, MEMBERS_LISTED_MAX)
    )
    return [
        Membership(member, account_id, bool(wished and settled and not uncertain))
        for member, account_id, wished, settled, uncertain in found
    ]


def reopen_members(ledger: Transaction, group: str, add: Sequence[str], remove: Sequence[str]) -> None:
    """What the product was seen to have of a group's members instead of what was settled, for its next delivery to mend.

    Args:
        add: wished members that are not in. remove: members that nobody wishes; one that is wished by now stays.
    """
    statements = _of(ledger)
    for statement, members in ((statements.reopen_members, add), (statements.expel_members, remove)):
        if members:
            ledger.connection.do(statement, of_group=group, members=_json.encode(members).decode())
