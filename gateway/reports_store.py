"""The store's part in reconciliation: leases, the last report of each target, and users page by page.

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
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from gateway.lifecycle import Row
from gateway.spool import Finding
from gateway.statements import Statement
from gateway.store import Reader, Transaction
from gateway.tables import METADATA, READ_COLUMNS, RESOURCE, SEQ_PLACE, decode_row, without_nul

FINDINGS_KEPT_MAX = 10_000
"""Differences kept of one report; all of them are counted."""
FINDINGS_LISTED_MAX = 500
ROWS_LISTED_MAX = 500

_LEASE, _REPORT, _FINDING = (METADATA.tables[name] for name in ("lease", "reconcile_report", "reconcile_finding"))
_json = msgspec.json.Encoder(order="deterministic")


class Report(Struct, frozen=True, kw_only=True):
    """What a reconciliation came to. Times are epoch seconds.

    Args:
        state: `good` (nothing differs), `differs`, `repairing` (what differs is applied again), `held` (too much differs: it
            waits for an operator's approval) or `failed` (no conclusion; `code` and `message` say why).
        mode: `report` or `repair`.
        compared: users at rest that were compared.
        listed: accounts the product listed.
        size: accounts of the last list that was whole, less the users deleted here since.
        repaired: users that were given back to the engine.
        counts: differences by class. codes: by class and cause, `class.code`.
    """

    target: str
    id: str
    state: str
    mode: str
    started_at: float
    ended_at: float
    compared: int = 0
    listed: int = 0
    size: int = 0
    repaired: int = 0
    counts: dict[str, int] = {}
    codes: dict[str, int] = {}
    code: str = ""
    message: str = ""


class _Statements:
    """The statements of this module for one engine."""

    def __init__(self, engine: str) -> None:
        dialect: sa.Dialect = (
            sqlite.dialect() if engine == "sqlite" else PGDialect_psycopg(paramstyle="format")  # type: ignore[no-untyped-call]
        )
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
        report = insert(_REPORT)
        columns = {column.name: report.excluded[column.name] for column in _REPORT.columns if column.name != "target"}
        self.save_report = ready(report.on_conflict_do_update(index_elements=["target"], set_=columns), _REPORT)
        self.report = ready(sa.select(_REPORT).where(_REPORT.c.target == p("target")))
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
        self.users_after = ready(
            sa.select(*READ_COLUMNS)
            .where(its_target == p("target"), r.kind == sa.literal_column("'user'"), r.seq > p("after"))
            .order_by(r.seq)
            .limit(p("limit", sa.Integer))
        )
        self.gone_since = ready(
            sa.select(sa.func.count()).where(
                r.target == p("target"),
                r.state == sa.literal_column("'gone'"),
                r.kind == sa.literal_column("'user'"),
                r.settled_at > p("since", sa.Float),
            )
        )


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


# ---- the last report


def save_report(ledger: Transaction, report: Report) -> None:
    """Put a report in the place of the one before it."""
    values = msgspec.structs.asdict(report)
    values |= {name: _json.encode(values[name]).decode() for name in ("counts", "codes")}
    values["message"] = without_nul(report.message)
    ledger.connection.do(_of(ledger).save_report, **values)


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


def last_report(reader: Reader, target: str) -> Report | None:
    """The last report of a target."""
    found = reader.connection.rows(_of(reader).report, target=target)
    if not found:
        return None
    values: dict[str, Any] = dict(zip((column.name for column in _REPORT.columns), found[0], strict=True))
    counts: Mapping[str, Any] = {name: msgspec.json.decode(values[name]) for name in ("counts", "codes")}
    return Report(**{**values, **counts})


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


# ---- users


def gone_since(reader: Reader, target: str, since: float) -> int:
    """How many users of a target were deleted here after a time."""
    return int(reader.connection.rows(_of(reader).gone_since, target=target, since=since)[0][0])


def users_after(reader: Reader, target: str, after: int, limit: int = ROWS_LISTED_MAX) -> list[tuple[int, Row]]:
    """Users of a target in any state, in the order in which they were made, after the row of this number."""
    found = reader.connection.rows(
        _of(reader).users_after, target=target, after=after, limit=min(limit, ROWS_LISTED_MAX)
    )
    return [(int(columns[SEQ_PLACE]), decode_row(columns)) for columns in found]
