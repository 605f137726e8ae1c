"""The status store on SQLite or PostgreSQL: the only record of what was asked and what became of it.

Writing: jobs run one after the other in one thread, many to a transaction (`gateway/writer.py`); `Transaction` is what a job
works with. There is never a second writer at work: SQLite has BEGIN IMMEDIATE, and on PostgreSQL each transaction takes one
advisory lock, so that several gateways take turns. Looking for an identity's holder and acting on the answer needs no other lock.

Reading: `Reader` answers what SCIM and operators ask, from committed data, on connections that never write.

Statements are written in SQLAlchemy Core and turned into text once per engine; no ORM session and no model object is made while
the gateway serves.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import msgspec
import psycopg
import sqlalchemy as sa
from msgspec import Struct

from gateway import ledger as protocol
from gateway.databases import StoreRefused, check_durability, engine_of, first_line, migrate
from gateway.ledger import SHADOW_LEFT_MAX, Keys, Tally
from gateway.lifecycle import MemberSteps, Referred, Row, TargetRow, Wish, refer
from gateway.patch import MemberChange
from gateway.records import (
    AttemptRecord,
    AuditRecord,
    DeadCause,
    EventRecord,
    KeyRecord,
    LastAttempt,
    NoteRecord,
    Purged,
    TargetRecord,
)
from gateway.statements import Statement, Statements, statements_of
from gateway.tables import (
    AUDIT,
    CHANGES,
    KEY,
    KEYS,
    SEQ_PLACE,
    STATES,
    TARGET,
    WRITTEN,
    decode_row,
    encode_row,
    to_json,
    to_texts,
    without_nul,
)
from gateway.visibility import is_visible
from gateway.writer import (
    JOBS_WAITING_MAX,
    NearWriter,
    StoreClosed,
    StoreConflict,
    StoreError,
    StoreOverloaded,
    StoreUnavailable,
    Writer,
)
from schemas.events import Note, Outcome
from schemas.resources import Member
from schemas.states import Change, Circuit, Result, State

__all__ = [
    "Reader",
    "Store",
    "StoreClosed",
    "StoreConflict",
    "StoreError",
    "StoreOverloaded",
    "StoreRefused",
    "StoreUnavailable",
    "Transaction",
]

BUS_LOSS_READ_BACK_S = 60.0
"""After the bus lost a stream, what settled lately is read back this much later (R10)."""
READER_BUSY_WAIT_S = 0.25
"""Readers run in the event loop on SQLite, so they may not wait long; in WAL mode they practically never have to."""
READER_THREADS = 4
IDENTITIES_PER_QUERY_MAX = 64
ATTEMPTS_LOOKED_AT_MAX = 50
"""Newest reports of a target among which one with a call to the product is looked for."""
LISTED_MAX = 1_000
MEMBERS_PER_EVENT_MAX = 1_000
"""Membership differences that one event carries; the rest follows when it is settled."""
"""Longest list any reading method returns at once."""
PURGE_ROWS_MAX = 500
"""Rows of one kind that one purge job deletes: short enough that no request notices it."""
WRITER_LOCK = 0x70726F7667617465
"""Key of PostgreSQL's advisory lock by which writers take turns."""

_json = msgspec.json.Encoder(order="deterministic")
T = TypeVar("T")
KeyAttribute = Literal["user_name", "external_id", "work_email", "display_name", "account_key"]
"""By what `Reader.by_key` finds resources: the filter keys, and the product's own spelling of its key."""

# ---- connections


class _Connection:
    """A driver's connection and its one cursor. Everything is fetched at once: an open result would pin SQLite's log."""

    def __init__(self, driver: Any, cursor: Any, statements: Statements) -> None:
        self.driver = driver
        self.statements = statements
        self._cursor = cursor

    def rows(self, statement: str | Statement, **values: Any) -> list[tuple[Any, ...]]:
        """Run a query, or a change that returns rows."""
        if isinstance(statement, str):
            statement = self.statements[statement]
        cursor = self._cursor
        cursor.execute(statement.sql, statement.bind(values))
        return cast("list[tuple[Any, ...]]", cursor.fetchall())

    def do(self, statement: str | Statement, **values: Any) -> None:
        """Run a change that returns nothing."""
        if isinstance(statement, str):
            statement = self.statements[statement]
        self._cursor.execute(statement.sql, statement.bind(values))

    def number(self, statement: str, **values: Any) -> int:
        """Run a count."""
        return int(self.rows(statement, **values)[0][0])

    def execute(self, sql: str) -> Any:
        """Run a statement without parameters."""
        return self._cursor.execute(sql)

    def close(self) -> None:
        """Close; an error here would only hide the one that led to it."""
        try:
            self.driver.close()
        except (sqlite3.Error, psycopg.Error):
            return


_ENVIRONMENT = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)
"""SQLite's errors that mean the file, not the statement."""


def _translate(error: Exception) -> Exception:
    """Our error for a driver's, without its text: PostgreSQL quotes the values of a violated constraint."""
    if isinstance(error, psycopg.errors.PipelineAborted):
        return StoreError("an earlier job of the same transaction failed")
    if isinstance(error, psycopg.IntegrityError):
        return StoreConflict(f"the database refused a change: constraint {error.diag.constraint_name}")
    if isinstance(error, sqlite3.IntegrityError):
        return StoreConflict(f"the database refused a change: {error}")
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return StoreUnavailable(f"PostgreSQL cannot be used now ({type(error).__name__}, {error.sqlstate or '-'})")
    if isinstance(error, psycopg.Error):
        return StoreError(f"PostgreSQL refused a statement ({type(error).__name__}, {error.sqlstate or '-'})")
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        if code is not None and code & 0xFF in _ENVIRONMENT:
            return StoreUnavailable(f"the SQLite file cannot be used now ({name})")
        return StoreError(f"SQLite refused a statement ({name})")
    return error


class _Session(_Connection):
    """The writing connection (`writer.Session`)."""

    targets: dict[str, TargetRow]
    """Targets as this database transaction, during which nobody else writes, has read them."""

    def begin(self) -> None:
        """See `writer.Session`."""
        self.targets = {}
        self.execute("BEGIN IMMEDIATE")

    def transaction(self) -> Transaction:
        """See `writer.Session`."""
        return Transaction(self)

    def insert(self, statement: str, **values: Any) -> int | None:
        """Insert unless it is there; the new row's number, or None when it was there."""
        self.do(statement, **values)
        return cast(int, self._cursor.lastrowid) if self._cursor.rowcount == 1 else None

    def commit(self) -> None:
        """See `writer.Session`."""
        self.execute("COMMIT")

    def rollback(self) -> None:
        """See `writer.Session`."""
        self.execute("ROLLBACK")

    def translate(self, error: Exception) -> Exception:
        """See `writer.Session`."""
        return _translate(error)


class _PostgresSession(_Session):
    """Sends the statements of a batch without waiting for each answer (pipeline mode).

    What returns nothing has a cursor of its own: its answer may arrive while a query is sent, and would be taken for the query's.
    """

    _pipeline: Any = None

    def __init__(self, driver: Any, cursor: Any, statements: Statements) -> None:
        super().__init__(driver, cursor, statements)
        self._silent = driver.cursor(binary=True)

    def do(self, statement: str | Statement, **values: Any) -> None:
        """See `_Connection`."""
        if isinstance(statement, str):
            statement = self.statements[statement]
        self._silent.execute(statement.sql, statement.bind(values))

    def execute(self, sql: str) -> Any:
        """See `_Connection`."""
        return self._silent.execute(sql)

    def insert(self, statement: str, **values: Any) -> int | None:
        """See `_Session`."""
        found = self.rows(statement, **values)
        return int(found[0][0]) if found else None

    def begin(self) -> None:
        """Also waits for its turn among the gateways."""
        self.targets = {}
        self._pipeline = self.driver.pipeline()
        self._pipeline.__enter__()
        self.execute("BEGIN")
        self.execute(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")

    def commit(self) -> None:
        """Deferred errors of the batch come out here at the latest."""
        self.execute("COMMIT")
        self._leave_pipeline()

    def rollback(self) -> None:
        """Errors of the pipeline were reported before; what counts is that the transaction ends."""
        try:
            self._leave_pipeline()
        except psycopg.Error:
            if self.driver.closed:
                raise
        self.execute("ROLLBACK")

    def _leave_pipeline(self) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline.__exit__(None, None, None)


# ---- writing


class _Loaded(Struct):
    """What the database has of a row that this transaction has read or written."""

    seq: int
    values: Sequence[Any]
    names: _Names


_ACCOUNT_PLACE = WRITTEN.index("account_id")
_TARGET_PLACE = WRITTEN.index("target")


class _Names(Struct, frozen=True):
    """The identities of a row, as table `identity` keeps them."""

    wished: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()
    trail: frozenset[str] = frozenset()

    @classmethod
    def of(cls, row: Row) -> _Names:
        """Copies: the row may change afterwards."""
        wished = frozenset() if row.deleted else frozenset(row.identities)
        return cls(wished, frozenset(row.held()), frozenset(row.doubts.trail))

    def marks(self, name: str) -> tuple[bool, bool, bool]:
        """What one name is to the row."""
        return name in self.wished, name in self.held, name in self.trail


_NO_NAMES = _Names()


class Transaction(protocol.Ledger):
    """One job's view of the store; see `ledger.Ledger` for what each method must do.

    Each row that is returned is a copy of its own. Where the protocol names no order, the older resource comes first.
    """

    def __init__(self, connection: _Session) -> None:
        self._db = connection
        self._loaded: dict[str, _Loaded] = {}
        self._keys: dict[str, Keys] = {}
        self._closed: dict[str, tuple[int, str, float]] = {}
        self._noted: dict[str, bool] = {}

    @property
    def connection(self) -> _Connection:
        """For the statements of other modules of the store, e.g. `gateway/reports_store.py`."""
        return self._db

    # ---- rows

    def row(self, resource: str) -> Row | None:
        found = self._db.rows("row", id=resource)
        return self._take(found[0]) if found else None

    def _take(self, columns: tuple[Any, ...]) -> Row:
        row = decode_row(columns)
        self._loaded[row.id] = _Loaded(columns[SEQ_PLACE], columns, _Names.of(row))
        return row

    def _take_all(self, found: list[tuple[Any, ...]]) -> list[Row]:
        return [self._take(columns) for columns in found]

    def save(self, row: Row) -> None:
        values = encode_row(row)
        loaded = self._loaded.get(row.id)
        if loaded is None:
            seq = self._insert(row, values)
            if seq is not None:
                self._save_identities(row, _Loaded(seq, values, _NO_NAMES))
                return
            if self.row(row.id) is None:
                raise StoreError(f"resource {row.id} can be neither inserted nor found")
            loaded = self._loaded[row.id]
        changed = tuple([n for n, (old, new) in enumerate(zip(loaded.values, values, strict=False)) if old != new])
        if changed:
            columns = {WRITTEN[n]: values[n] for n in changed}
            self._db.do(self._db.statements.update(changed), row_seq=loaded.seq, **columns)
        loaded.values = values
        self._save_identities(row, loaded)

    def _insert(self, row: Row, values: list[Any]) -> int | None:
        columns = dict(zip(WRITTEN, values, strict=True))
        seq = self._db.insert("insert", **columns, **_key_columns(self._keys.get(row.id)))
        if seq is not None:
            self._keys.pop(row.id, None)
        return seq

    def _save_identities(self, row: Row, loaded: _Loaded) -> None:
        """Write only what differs from what the database has."""
        old, new = loaded.names, _Names.of(row)
        if old != new:
            for name in sorted(old.wished | old.held | new.wished | new.held):
                wished, held, trail = marks = new.marks(name)
                if marks == old.marks(name):
                    continue
                if wished or held:
                    self._db.do(
                        "put_identity",
                        resource_id=row.id,
                        value=name,
                        target=row.target,
                        kind=row.kind,
                        wished=wished,
                        held=held,
                        trail=trail,
                    )
                else:
                    self._db.do("drop_identity", row_id=row.id, identity=name)
            loaded.names = new
        self._loaded[row.id] = loaded

    def set_keys(self, row: Row, keys: Keys) -> str | None:
        """When both unique keys are taken, the holder of the user name is named.

        Keys of a row that is not saved yet are written with it.
        """
        if keys.user_name is not None or keys.external_id is not None:
            found = self._db.rows(
                "key_holder",
                target=row.target,
                kind=row.kind,
                id=row.id,
                user_name_key=keys.user_name,
                external_id_key=keys.external_id,
            )
            for (holder,) in found:
                if holder is not None:
                    return str(holder)
        self._db.do("set_keys", row_id=row.id, **_key_columns(keys))
        if row.id not in self._loaded:  # perhaps a new row: then there was nothing to write to
            self._keys[row.id] = keys
        return None

    # ---- other rows

    def holders(self, row: Row, identities: Iterable[str]) -> list[Row]:
        names = list(dict.fromkeys(identities))
        if not names:
            return []
        if len(names) > IDENTITIES_PER_QUERY_MAX:
            raise StoreError(f"a resource has more than {IDENTITIES_PER_QUERY_MAX} identities")
        values = {f"value{n}": name for n, name in enumerate(names)}
        statement = self._db.statements.holders(len(names))
        return self._take_all(self._db.rows(statement, target=row.target, kind=row.kind, id=row.id, **values))

    def wished(self, row: Row, identity: str) -> bool:
        return bool(self._db.rows("wished", target=row.target, kind=row.kind, id=row.id, value=identity))

    def owner(self, row: Row, account_id: str) -> Row | None:
        loaded = self._loaded.get(row.id)
        if loaded is not None and loaded.values[_ACCOUNT_PLACE] == account_id:
            return None  # it is this row's, and the database lets it be only one's
        found = self._db.rows("owner", target=row.target, kind=row.kind, id=row.id, account_id=account_id)
        return self._take(found[0]) if found else None

    def past(self, row: Row) -> Sequence[Wish]:
        found = self._db.rows("past", id=row.id, settled=row.settled_generation, current=row.generation)
        return [
            Wish(generation, event_id, to_texts(identities), document, CHANGES[change], bool(deleted))
            for generation, event_id, identities, document, change, deleted in found
        ]

    # ---- members of groups

    def change_members(self, group: str, changes: Sequence[MemberChange]) -> bool:
        touched = False
        moved: set[str] = set()  # in instead of out, or out instead of in: who was moved twice is where he was
        for change in changes:
            members = msgspec.json.encode(change.ids).decode()
            statements = ["unwish_members" if change.op == "remove" else "wish_members"]
            if change.op == "replace":
                statements.insert(0, "unwish_others")
            for statement in statements:
                found = self._db.rows(statement, group_id=group, members=members)
                touched |= bool(found)
                moved ^= {member for (member,) in found}
        if touched:
            self._db.do("drop_unwished", group_id=group)
        return bool(moved)

    def member_steps(self, row: Row) -> MemberSteps:
        found = self._db.rows("member_steps", group_id=row.id, target=row.target, limit=MEMBERS_PER_EVENT_MAX + 1)
        waiting = self._db.rows("member_waiting", group_id=row.id, target=row.target)
        steps = [(bool(wished), Member(id=m, kind=kind or "user", account_id=a)) for m, wished, kind, a in found]
        carried = steps[:MEMBERS_PER_EVENT_MAX]
        return MemberSteps(
            add=tuple(member for wished, member in carried if wished),
            remove=tuple(member for wished, member in carried if not wished),
            more=len(steps) > len(carried),
            waiting_for=waiting[0][0] if waiting else None,
        )

    def referred(self, row: Row, resource: str) -> Referred | None:
        found = self._db.rows("referred", id=resource, target=row.target, kind=row.kind)
        if not found:
            return None
        account_id, deleted, state = found[0]
        return refer(account_id, deleted=bool(deleted), state=STATES[state])

    def send_members(self, group: str, members: Sequence[str]) -> None:
        if members:
            self._db.do("send_members", group_id=group, members=msgspec.json.encode(members).decode())

    def settle_members(self, group: str, add: Sequence[str], remove: Sequence[str], *, anew: bool) -> None:
        if anew:
            self._db.do("unsettle_members", group_id=group)
        if add:
            self._db.do("settle_added", group_id=group, members=msgspec.json.encode(add).decode())
        if remove:
            self._db.do("settle_removed", group_id=group, members=msgspec.json.encode(remove).decode())
        self._db.do("drop_unwished", group_id=group)

    def unsettle_relinked(self, group: str, members: Sequence[str], accounts: Sequence[str]) -> None:
        if members:
            pairs = msgspec.json.encode(dict(zip(members, accounts, strict=True))).decode()
            self._db.do("unsettle_relinked", group_id=group, accounts=pairs)

    def forget_member(self, resource: str, now: float) -> None:
        self._db.do("modify_groups_of", member=resource, now=now)
        self._db.do("forget_member", member=resource)

    def refer_again(self, row: Row, now: float) -> None:
        self._loaded.clear()
        which = {"member": row.id, "target": row.target}
        self._db.do("unsettle_member", member=row.id)
        self._db.do("refer_in_flight", **which)
        self._db.do("refer_again", **which, now=now)

    # ---- events and attempts

    def add_event(self, row: Row, *, actor: str) -> None:
        """A wish that was settled in the very transaction that accepts it is recorded with its outcome."""
        outcome, outcome_at = None, None
        closed = self._closed.get(row.id)
        if closed is not None and row.generation <= closed[0]:
            outcome, outcome_at = (closed[1] if row.generation == closed[0] else "superseded"), closed[2]
        elif row.settled_generation >= row.generation:
            outcome, outcome_at = "noop", row.modified_at
        self._db.do(
            "add_event",
            id=row.event_id,
            target=row.target,
            resource_id=row.id,
            generation=row.generation,
            change=row.change.value,
            takes_away=row.change in (Change.DEACTIVATE, Change.DELETE),
            deleted=row.deleted,
            actor=actor,
            created_at=row.modified_at,
            outcome=outcome,
            outcome_at=outcome_at,
            changed=to_json(row.changed),
            identities=to_json(row.identities),
            document=row.document,
        )

    def close_events(self, resource: str, generation: int, outcome: str, now: float) -> None:
        self._closed[resource] = (generation, outcome, now)
        self._db.do("close_events", row_id=resource, upto=generation, what=outcome, now=now)

    def record_attempt(self, outcome: Outcome) -> bool:
        reason = outcome.reason
        recorded = self._db.insert(
            "record_attempt",
            id=outcome.id,
            target=outcome.target,
            resource_id=outcome.resource,
            generation=outcome.generation,
            fence=outcome.fence,
            delivery=outcome.delivery,
            result=outcome.result.value,
            started_at=outcome.started_at,
            ended_at=outcome.ended_at,
            worker=without_nul(outcome.worker),
            code=without_nul(reason.code) if reason else None,
            fingerprint=without_nul(reason.fingerprint()) if reason else None,
            account_id=without_nul(outcome.account_id),
            message=without_nul(reason.message) if reason else None,
            steps=to_json(outcome.steps),
            remarks=to_json(_remarks(outcome)),
        )
        return recorded is not None

    def notes_of(self, resource: str) -> Sequence[str]:
        """Costs nothing once it is known that the target has no notes at all."""
        loaded = self._loaded.get(resource)
        if loaded is not None and not self._noted.get(loaded.values[_TARGET_PLACE], True):
            return ()
        return [str(code) for (code,) in self._db.rows("notes_of", id=resource)]

    def take_notes(self, row: Row, notes: Sequence[Note], *, by: str, at: float) -> None:
        self._noted.pop(row.target, None)
        for one in notes:
            if one.holds:
                self._db.do(
                    "put_note",
                    resource_id=row.id,
                    code=without_nul(one.code),
                    target=row.target,
                    message=without_nul(one.message),
                    subject=without_nul(one.subject),
                    noted_by=without_nul(by),
                    first_at=at,
                    last_at=at,
                    times=1,
                )
            else:
                self._db.do("drop_note", row_id=row.id, note_code=without_nul(one.code))

    # ---- who is next

    def in_flight(self, target: str) -> int:
        ((count, noted),) = self._db.rows("in_flight", target=target)
        self._noted[target] = bool(noted)
        return int(count)

    def due(self, target: str, now: float, limit: int) -> Sequence[Row]:
        return self._take_all(self._db.rows("due", target=target, now=now, limit=limit))

    def targets_due(self, now: float) -> Sequence[str]:
        """In alphabetical order."""
        return sorted(name for (name,) in self._db.rows("targets_due", now=now))

    def unpublished(self, limit: int) -> Sequence[Row]:
        return self._take_all(self._db.rows("unpublished", limit=limit))

    def unheard(self, before: float, limit: int) -> Sequence[Row]:
        return self._take_all(self._db.rows("unheard", before=before, limit=limit))

    def read_backs(self, now: float, limit: int) -> Sequence[Row]:
        return self._take_all(self._db.rows("read_backs", now=now, limit=limit))

    def trails(self, limit: int) -> Sequence[Row]:
        return self._take_all(self._db.rows("trails", limit=limit))

    def mark_published(self, resource: str, fence: int) -> None:
        self._loaded.pop(resource, None)
        self._db.do("mark_published", row_id=resource, row_fence=fence)

    def heard(self, resource: str, fence: int, now: float) -> None:
        self._loaded.pop(resource, None)
        self._db.do("heard", row_id=resource, row_fence=fence, now=now)

    def expect_bus_loss(self, now: float, settled_since: float) -> None:
        self._loaded.clear()
        self._db.do("expect_outcomes")
        self._db.do("expect_read_backs", since=settled_since, at=now + BUS_LOSS_READ_BACK_S)

    # ---- targets

    def target(self, name: str) -> TargetRow:
        known = self._db.targets.get(name)
        if known is None:
            found = self._db.rows("target", name=name)
            known = self._db.targets[name] = _target_record(found[0]).row if found else TargetRow(name=name)
        return msgspec.structs.replace(known)

    def save_target(self, target: TargetRow) -> None:
        self._db.targets.pop(target.name, None)
        self._db.do("save_target", **_target_columns(target))

    def save_spec(self, target: str, spec: bytes, *, settings_digest: str, seen_at: float) -> None:
        """Remember what a target's connector says about itself (JSON of its Spec), of which settings, and when it was seen."""
        columns = _target_columns(TargetRow(name=target))
        self._db.do("save_spec", **columns, spec=spec, settings_digest=settings_digest, seen_at=seen_at)

    def spec(self, target: str) -> bytes | None:
        """What the connector announced, or None when none was ever seen."""
        found = self._db.rows("target", name=target)
        return _target_record(found[0]).spec if found else None

    def tally(self, target: str, since: float) -> Tally:
        """A failure is a result `retry`; `statements.NOT_A_CALL` counts nowhere.

        In a row: folded after the last delivery that did not fail.
        """
        calls, failures, failing, good_at = self._db.rows("tally", target=target, since=since)[0]
        in_a_row = failures
        if failures and good_at is not None:
            in_a_row = self._db.number("failures_since", target=target, since=since, after=good_at)
        return Tally(calls, failures, failing, in_a_row)

    def hasten(self, target: str, now: float) -> None:
        self._loaded.clear()
        self._db.do("hasten", name=target, now=now)

    def leave_shadow(self, target: str, now: float, limit: int = SHADOW_LEFT_MAX) -> int:
        self._loaded.clear()
        return len(self._db.rows("leave_shadow", name=target, now=now, limit=limit))

    def dead_alike(self, target: str, fingerprint: str, since: float) -> tuple[int, int]:
        died = self._db.number("died", name=target, cause=without_nul(fingerprint), since=since)
        return died, self._db.number("tried", name=target, since=since)

    def unbury(self, target: str, fingerprint: str, since: float, now: float) -> int:
        """Their wish is open again as if it had not been tried: same generation, its event without an outcome.

        What may still be at work at the product after an ambiguous end keeps its rest (R9).
        """
        self._loaded.clear()
        which = {"name": target, "cause": without_nul(fingerprint), "since": since}
        self._db.do("reopen_events", **which)
        return len(self._db.rows("unbury", **which, now=now))

    def deprovisioned(self, target: str, since: float) -> int:
        return self._db.number("deprovisioned", target=target, since=since)

    def population(self, target: str) -> int:
        """Those SCIM shows. Counts an index: about 1 ms per 100,000."""
        return self._db.number("population", target=target)

    # ---- streams, audit

    def streams(self) -> dict[str, str]:
        return dict(cast("list[tuple[str, str]]", self._db.rows("streams")))

    def save_stream(self, name: str, created: str) -> None:
        self._db.do("save_stream", name=name, created=created)

    def audit(self, *, at: float, actor: str, action: str, target: str, subject: str, detail: dict[str, Any]) -> None:
        """Each entry is chained to the one before it by its hash."""
        last = self._db.rows("last_audit")
        previous = str(last[0][0]) if last else ""
        entry = (float(at), actor, action, target, subject, _json.encode(detail).decode())
        at, actor, action, target, subject, text = entry
        self._db.do(
            "add_audit",
            at=at,
            actor=actor,
            action=action,
            target=target,
            subject=subject,
            detail=text,
            previous=previous,
            hash=_audit_hash(previous, entry),
        )

    # ---- access keys

    def add_key(self, key: KeyRecord) -> None:
        """Keep a new key's hash.

        Raises:
            StoreConflict: from the commit, when its id or hash exists already.
        """
        self._db.do("add_key", **msgspec.structs.asdict(key))

    def revoke_key(self, key_id: str, now: float) -> bool:
        """False when there is no such key or it was revoked before."""
        return bool(self._db.rows("revoke_key", key_id=key_id, now=now))

    def touch_key(self, key_id: str, last_used_at: float) -> None:
        """Remember the last use; an older time changes nothing."""
        self._db.do("touch_key", key_id=key_id, now=last_used_at)

    def keys(self, target: str | None = None) -> list[KeyRecord]:
        """Keys of one target or of all, also expired and revoked ones, oldest first."""
        return _keys_of(self._db, target)

    def use_assertion(self, name: str, expires_at: float, now: float) -> bool:
        """Remember that an assertion was used; False when it was before. Those that ended are forgotten."""
        self._db.do("forget_assertions", now=now)
        return self._db.insert("use_assertion", id=name, expires_at=expires_at) is not None

    # ---- retention

    def purge(
        self,
        now: float,
        *,
        events_s: float,
        attempts_s: float,
        audit_s: float,
        gone_s: float,
        limit: int = PURGE_ROWS_MAX,
    ) -> Purged:
        """Delete what is past its retention (S12), at most `limit` rows of each kind; repeat while `more`.

        Args:
            events_s: age of events whose outcome is known; open ones stay.
            attempts_s: age of reports.
            audit_s: age of audit entries.
            gone_s: age of deleted resources and of refused creates nobody repeated; what is in doubt in any way stays.
        """
        self._loaded.clear()
        events = len(self._db.rows("purge_events", before=now - events_s, limit=limit))
        attempts = 0
        for (target,) in self._db.rows("attempt_targets"):
            if attempts < limit:
                before = now - attempts_s
                attempts += len(self._db.rows("purge_attempts", name=target, before=before, limit=limit - attempts))
        audit = len(self._db.rows("purge_audit", before=now - audit_s, limit=limit))
        resources = 0
        for (target,) in self._db.rows("target_names"):
            for state in (State.GONE, State.REJECTED):
                if resources < limit:
                    found = self._db.rows(
                        "purge_resources",
                        name=target,
                        state=state.value,
                        before=now - gone_s,
                        limit=limit - resources,
                    )
                    resources += len(found)
        return Purged(events, attempts, audit, resources, max(events, attempts, audit, resources) >= limit)

    def erase(self, resource: str) -> bool:
        """Delete everything about one resource at once (S12, a person's request); False when it does not exist."""
        self._loaded.pop(resource, None)
        self._db.do("erase_events", row_id=resource)
        self._db.do("erase_attempts", row_id=resource)
        return bool(self._db.rows("erase_resource", row_id=resource))


def _key_columns(keys: Keys | None) -> dict[str, str | None]:
    if keys is None:
        return dict.fromkeys(KEYS)
    return {f"{name}_key": getattr(keys, name) for name in Keys.__struct_fields__}


def _remarks(outcome: Outcome) -> dict[str, Any]:
    """What else a report says, for a resource's history; only what is there."""
    said = {
        "note": outcome.note,
        "ignored": outcome.ignored,
        "warnings": outcome.warnings,
        "created": outcome.created,
        "deleted": outcome.deleted,
        "looked": outcome.looked,
        "ambiguous": outcome.ambiguous,
        "blocked_on": outcome.blocked_on,
        "retry_after_s": outcome.retry_after_s,
        "sightings": outcome.sightings,
        "attribute": outcome.reason.attribute if outcome.reason else None,
    }
    return {name: value for name, value in said.items() if value}


def _target_columns(target: TargetRow) -> dict[str, Any]:
    return {**msgspec.structs.asdict(target), "circuit": target.circuit.value}


_TARGET_COLUMNS = [column.name for column in TARGET.columns]
if not set(TargetRow.__struct_fields__) <= set(_TARGET_COLUMNS):
    raise TypeError("lifecycle.TargetRow has a field without a column in the store")


def _target_record(columns: tuple[Any, ...]) -> TargetRecord:
    values = dict(zip(_TARGET_COLUMNS, columns, strict=True))
    about = {name: values.pop(name) for name in ("spec", "settings_digest", "seen_at")}
    values["circuit"] = Circuit(values["circuit"])
    return TargetRecord(row=TargetRow(**values), **about)


_KEY_COLUMNS = [column.name for column in KEY.columns]
_AUDIT_COLUMNS = [column.name for column in AUDIT.columns]


def _keys_of(db: _Connection, target: str | None) -> list[KeyRecord]:
    found = db.rows("all_keys") if target is None else db.rows("keys", target=target)
    return [KeyRecord(**dict(zip(_KEY_COLUMNS, columns, strict=True))) for columns in found]


def _audit_hash(previous: str, entry: tuple[Any, ...]) -> str:
    return hashlib.sha256(_json.encode([previous, *entry])).hexdigest()


# ---- reading


class Reader:
    """Answers from committed data. Times are epoch seconds; lists are never longer than LISTED_MAX.

    On SQLite a point query (`row`, `visible_row`, `by_key`) takes tens of microseconds and may run in the event loop; everything
    that counts, lists or searches belongs into `Store.read_slow`.
    """

    def __init__(self, connection: _Connection) -> None:
        self._db = connection

    @property
    def connection(self) -> _Connection:
        """For the statements of other modules of the store, e.g. `gateway/reports_store.py`."""
        return self._db

    # ---- for SCIM

    def row(self, resource: str) -> Row | None:
        """The row of one resource, of any target, shown or not."""
        found = self._db.rows("row", id=resource)
        return decode_row(found[0]) if found else None

    def visible_row(self, target: str, kind: str, resource: str) -> Row | None:
        """The row of one resource if SCIM shows it under this target (S5: foreign ids answer like random ones)."""
        row = self.row(resource)
        if row is None or row.target != target or row.kind != kind or not is_visible(row):
            return None
        return row

    def by_key(self, target: str, kind: str, attribute: KeyAttribute, value: str, *, hidden: bool = False) -> list[Row]:
        """Resources with this key, oldest first.

        Args:
            value: folded as the keys were (`visibility.keys_of`); `account_key` is compared as the worker reported it.
            hidden: also those SCIM does not show, e.g. a refused create.
        """
        if "\0" in value:
            return []  # nothing stored contains it, and PostgreSQL would refuse the question
        name = attribute if attribute == "account_key" else f"{attribute}_key"
        found = self._db.rows(f"by_{name}", target=target, kind=kind, value=value, limit=LISTED_MAX)
        rows = [decode_row(columns) for columns in found]
        return rows if hidden else [row for row in rows if is_visible(row)]

    def members(self, group: str) -> list[str]:
        """The wished members of a group, in the order of their ids."""
        return [member for (member,) in self._db.rows("wished_members", group_id=group)]

    def member_kinds(self, group: str, target: str, limit: int) -> list[tuple[str, str | None]]:
        """The first `limit` wished members of a group in the order of their ids, each with its kind.

        The kind is None for members that this target does not have, or not yet. Belongs into `Store.read_slow`.
        """
        return [
            (member, kind) for member, kind in self._db.rows("member_kinds", group_id=group, target=target, limit=limit)
        ]

    def is_member(self, group: str, member: str) -> bool:
        """Whether somebody is a wished member of a group."""
        return bool(self._db.rows("is_member", group_id=group, member=member))

    def groups_of(self, member: str) -> list[str]:
        """The groups somebody is a wished member of."""
        return [group for (group,) in self._db.rows("groups_of", member=member)]

    def page(self, target: str, kind: str, start_index: int, count: int) -> tuple[list[Row], int]:
        """Shown resources from the `start_index`-th on, oldest first, and how many there are in all (RFC 7644, 3.4.2.4)."""
        total = self._db.number("total", target=target, kind=kind)
        offset, limit = max(start_index, 1) - 1, min(max(count, 0), LISTED_MAX)
        if limit == 0 or offset >= total:
            return [], total
        found = self._db.rows("page", target=target, kind=kind, limit=limit, offset=offset)
        return [decode_row(columns) for columns in found], total

    def scan(self, target: str, kind: str, after_seq: int, limit: int) -> tuple[list[Row], int | None]:
        """Shown resources in bounded pieces, for filters no key answers.

        Args:
            after_seq: 0 at first, then what the call before returned.

        Returns:
            The rows, and where to go on; None at the end.
        """
        limit = min(max(limit, 1), LISTED_MAX)
        found = self._db.rows("scan", target=target, kind=kind, after=after_seq, limit=limit)
        more = int(found[-1][SEQ_PLACE]) if len(found) == limit else None
        return [decode_row(columns) for columns in found], more

    def total(self, target: str, kind: str) -> int:
        """How many resources are shown. Counts an index: about 1 ms per 100,000."""
        return self._db.number("total", target=target, kind=kind)

    def after(self, target: str, kind: str, place: int, limit: int) -> list[tuple[int, Row]]:
        """The next shown resources after a place, oldest first, each with its place; costs the same wherever that is."""
        found = self._db.rows("scan", target=target, kind=kind, after=place, limit=_bounded(limit))
        return [(int(columns[SEQ_PLACE]), decode_row(columns)) for columns in found]

    def before(self, target: str, kind: str, place: int, limit: int) -> list[tuple[int, Row]]:
        """The last shown resources before a place, oldest first, each with its place."""
        found = self._db.rows("scan_back", target=target, kind=kind, before=place, limit=_bounded(limit))
        return [(int(columns[SEQ_PLACE]), decode_row(columns)) for columns in reversed(found)]

    def places(self, resources: Sequence[str]) -> dict[str, int]:
        """The places of resources, by id, in the order of `after`."""
        members = msgspec.json.encode(resources).decode()
        return {resource: int(seq) for resource, seq in self._db.rows("places", members=members)}

    def groups_after(self, target: str, after: int, limit: int) -> list[tuple[int, Row]]:
        """Linked groups of a target in the order in which they were made, after the row of this number."""
        found = self._db.rows("groups_after", target=target, kind="group", after=after, limit=_bounded(limit))
        return [(int(columns[SEQ_PLACE]), decode_row(columns)) for columns in found]

    # ---- for operators

    def counts(self, target: str) -> dict[State, int]:
        """Resources by state; states nobody is in are missing."""
        return {STATES[state]: int(count) for state, count in self._db.rows("counts", target=target)}

    def last_attempt(self, target: str) -> LastAttempt | None:
        """The last delivery of a target that was reported, and when the product was called last (S19)."""
        found = self._db.rows("last_attempts", target=target, limit=ATTEMPTS_LOOKED_AT_MAX)
        if not found:
            return None
        ended_at, result, _ = found[0]
        called = next((float(at) for at, _, steps in found if steps), None)
        return LastAttempt(at=float(ended_at), result=str(result), called_at=called)

    def target_names(self) -> list[str]:
        """Every target that has resources here, configured or not."""
        return sorted(str(name) for (name,) in self._db.rows("target_names"))

    def oldest_waiting(self, target: str) -> float | None:
        """When the oldest wish that waits for its turn was made."""
        oldest = self._db.rows("oldest_waiting", target=target)[0][0]
        return None if oldest is None else float(oldest)

    def waiting(self, target: str, limit: int) -> list[Row]:
        """Rows that wait for their turn, a retry or a named thing; oldest wish first."""
        return self._list("waiting", limit, target=target)

    def in_flight(self, target: str, limit: int) -> list[Row]:
        """Deliveries that are out, the one not heard of for longest first."""
        return self._list("flying", limit, target=target)

    def rehearsed(self, target: str, limit: int) -> list[Row]:
        """Rows that wait for the end of shadow mode, the one rehearsed last first."""
        return self._list("rehearsed", limit, target=target)

    def rehearsed_counts(self, target: str) -> tuple[int, int]:
        """How many wait for the end of shadow mode, and how many of them would be refused."""
        total, refused = self._db.rows("rehearsed_counts", target=target)[0]
        return int(total), int(refused or 0)

    def in_state(self, target: str, state: State, limit: int) -> list[Row]:
        """Rows in one state, e.g. held, the one settled longest ago first."""
        return self._list("in_state", limit, target=target, state=state.value)

    def dead(self, target: str | None, limit: int, fingerprint: str | None = None) -> list[Row]:
        """Dead letters, newest first; of one target and of one cause if given."""
        which = {
            (False, False): "dead",
            (True, False): "dead_of_target",
            (False, True): "dead_of_cause",
            (True, True): "dead_of_both",
        }[target is not None, fingerprint is not None]
        return self._list(which, limit, target=target, cause=fingerprint)

    def dead_causes(self, limit: int = LISTED_MAX) -> list[DeadCause]:
        """Dead letters by target and cause, the most frequent first."""
        return [
            DeadCause(target=target, fingerprint=cause, count=int(count), first_at=first, last_at=last, example=example)
            for target, cause, count, first, last, example in self._db.rows("dead_causes", limit=_bounded(limit))
        ]

    def history(self, resource: str, limit: int = LISTED_MAX) -> tuple[list[EventRecord], list[AttemptRecord]]:
        """The newest `limit` accepted generations and reports of one resource, oldest first."""
        found = self._db.rows("events_of", id=resource, limit=_bounded(limit))
        events = [_event_record(columns) for columns in reversed(found)]
        attempts = []
        for columns in reversed(self._db.rows("attempts_of", id=resource, limit=_bounded(limit))):
            values = dict(zip(AttemptRecord.__struct_fields__, columns, strict=True))
            values["result"] = Result(values["result"])
            values["steps"] = _raw(values["steps"], b"[]")
            values["remarks"] = _raw(values["remarks"], b"{}")
            attempts.append(AttemptRecord(**values))
        return events, attempts

    def notes_of(self, resource: str) -> list[str]:
        """Codes of what is noted about a resource."""
        return [str(code) for (code,) in self._db.rows("notes_of", id=resource)]

    def note_counts(self, target: str) -> dict[str, int]:
        """How many resources of a target have which note; deleted ones do not count."""
        return {str(code): int(count) for code, count in self._db.rows("note_counts", target=target)}

    def notes(self, target: str, code: str, after: int, limit: int) -> list[tuple[int, Row, NoteRecord]]:
        """Resources of a target with one note, in the order in which they were made, after the row of this number."""
        found = self._db.rows("notes", target=target, code=code, after=after, limit=_bounded(limit))
        first = SEQ_PLACE + 1
        return [
            (int(columns[SEQ_PLACE]), decode_row(columns[:first]), NoteRecord(*columns[first:])) for columns in found
        ]

    def event(self, event_id: str) -> EventRecord | None:
        """One accepted generation by the id of its event, of any target; None when it never was or is past its retention."""
        found = self._db.rows("event", id=event_id)
        return _event_record(found[0]) if found else None

    def event_document(self, resource: str, generation: int) -> bytes | None:
        """The complete document of one accepted generation; None when it never was or is past its retention."""
        found = self._db.rows("event_document", id=resource, generation=generation)
        return bytes(found[0][0]) if found else None

    def find_person(self, text: str) -> list[Row]:
        """Resources of any target by id, event id, userName, work e-mail, displayName, externalId, account id or account key."""
        raw, folded = text.strip(), text.strip().casefold()
        if not raw or "\0" in raw:
            return []
        found: dict[str, Row] = {}
        by_event = self._db.rows("resource_of_event", id=raw)
        for resource in (raw, folded, *(str(columns[0]) for columns in by_event)):
            row = self.row(resource)
            if row is not None:
                found[row.id] = row
        wanted = {
            "by_user_name_key": folded,
            "by_work_email_key": folded,
            "by_display_name_key": folded,
            "by_external_id_key": raw,
            "by_account_id": raw,
            "by_account_key": raw,
        }
        for (target,) in self._db.rows("target_names"):
            for kind in ("user", "group"):
                for name, value in wanted.items():
                    for row in self._list(name, LISTED_MAX, target=target, kind=kind, value=value):
                        found[row.id] = row
        return list(found.values())

    def target(self, name: str) -> TargetRecord:
        """Runtime state of one target (fresh when nothing was ever saved)."""
        found = self._db.rows("target", name=name)
        if found:
            return _target_record(found[0])
        return TargetRecord(row=TargetRow(name=name), spec=None, settings_digest=None, seen_at=None)

    def targets(self) -> list[TargetRecord]:
        """Every target something is known of, by name."""
        return [_target_record(columns) for columns in self._db.rows("targets")]

    def spec(self, target: str) -> bytes | None:
        """JSON of the Spec that the target's connector announced last."""
        return self.target(target).spec

    def keys(self, target: str | None = None) -> list[KeyRecord]:
        """Keys of one target or of all, also expired and revoked ones, oldest first."""
        return _keys_of(self._db, target)

    def audit(self, limit: int) -> list[AuditRecord]:
        """The newest acts, newest first."""
        return [_audit_record(columns) for columns in self._db.rows("audit", limit=_bounded(limit))]

    def audit_break(self) -> int | None:
        """The first audit entry that was changed, or before which one is missing; None when the chain holds."""
        after, previous = 0, None
        while True:
            found = self._db.rows("audit_after", after=after, limit=LISTED_MAX)
            for entry in map(_audit_record, found):
                facts = (entry.at, entry.actor, entry.action, entry.target, entry.subject, bytes(entry.detail).decode())
                chained = previous is None or entry.previous == previous
                if not chained or entry.hash != _audit_hash(entry.previous, facts):
                    return entry.seq
                after, previous = entry.seq, entry.hash
            if len(found) < LISTED_MAX:
                return None

    def _list(self, name: str, limit: int, **values: Any) -> list[Row]:
        return [decode_row(columns) for columns in self._db.rows(name, limit=_bounded(limit), **values)]


def _bounded(limit: int) -> int:
    return min(max(limit, 0), LISTED_MAX)


def _event_record(columns: tuple[Any, ...]) -> EventRecord:
    values = dict(zip(EventRecord.__struct_fields__, columns, strict=True))
    values["change"] = CHANGES[values["change"]]
    values["deleted"] = bool(values["deleted"])
    values["changed"] = to_texts(values["changed"])
    values["identities"] = to_texts(values["identities"])
    return EventRecord(**values)


def _raw(text: str | None, otherwise: bytes) -> msgspec.Raw:
    return msgspec.Raw(otherwise if text is None else text.encode())


def _audit_record(columns: tuple[Any, ...]) -> AuditRecord:
    values = dict(zip(_AUDIT_COLUMNS, columns, strict=True))
    values["detail"] = _raw(values["detail"], b"{}")
    return AuditRecord(**values)


# ---- the store


class Store:
    """See the module. Open it with `Store.open`; close it with `close`."""

    def __init__(
        self, engine: sa.Engine, *, jobs_waiting_max: int = JOBS_WAITING_MAX, jobs_in_loop: bool = False
    ) -> None:
        self._engine = engine
        self.engine = engine.dialect.name
        """`sqlite` or `postgresql`."""
        self._statements = statements_of(self.engine)
        self._local = threading.local()
        self._readers: list[_Connection] = []
        self._threads = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="store-reader")
        self._near = Reader(self._connect_reader()) if self.engine == "sqlite" else None
        writer = NearWriter[Transaction] if jobs_in_loop and self.engine == "sqlite" else Writer[Transaction]
        self._writer: Writer[Transaction] = writer(self._connect_writer, jobs_waiting_max=jobs_waiting_max)

    @classmethod
    def open(
        cls, location: str | Path, *, jobs_waiting_max: int = JOBS_WAITING_MAX, jobs_in_loop: bool = False
    ) -> Store:
        """Open a store, creating it or bringing its tables up to date first. Blocks; call it before serving.

        Args:
            location: an SQLite file, or `postgresql://…` (the password in it never appears in an error).
            jobs_in_loop: on SQLite run jobs in the event loop (`writer.NearWriter`): more of them, if they are short.

        Raises:
            StoreRefused: it may not be used: network file system, fsync off, written by a newer version, or not there.
        """
        engine = engine_of(location)
        try:
            check_durability(engine)
            migrate(engine)
            return cls(engine, jobs_waiting_max=jobs_waiting_max, jobs_in_loop=jobs_in_loop)
        except (sa.exc.DBAPIError, sqlite3.Error, psycopg.Error) as exc:
            driver = exc.orig if isinstance(exc, sa.exc.DBAPIError) else exc
            engine.dispose()
            name = engine.url.render_as_string(hide_password=True)
            raise StoreRefused(f"{name} cannot be opened: {first_line(driver)}") from None
        except StoreError:
            engine.dispose()
            raise

    def run(self, job: Callable[[Transaction], T]) -> asyncio.Future[T]:
        """Queue one job; its result comes after the commit. The job may run twice, so it must start from what it reads.

        Raises:
            StoreOverloaded: at once, when too many jobs wait.
            StoreClosed: at once or later, when the store is closed or its writer died.
            StoreUnavailable: the database is away; nothing is known to be written.
            StoreConflict: this job broke a constraint.
        """
        return self._writer.run(job)

    def post(self, job: Callable[[Transaction], Any]) -> None:
        """Queue one job nobody waits for; its failure is logged. Raises StoreOverloaded and StoreClosed at once."""
        self._writer.post(job)

    @property
    def jobs_waiting(self) -> int:
        """Length of the writer's queue, for metrics and load shedding."""
        return self._writer.waiting

    async def read(self, query: Callable[[Reader], T]) -> T:
        """Run a point query: on SQLite right here, without leaving the event loop; on PostgreSQL in a thread.

        Raises:
            StoreUnavailable: the database is away.
        """
        if self._near is None:
            return await self.read_slow(query)
        try:
            return query(self._near)
        except sqlite3.Error as exc:
            raise _translate(exc) from None

    async def read_slow(self, query: Callable[[Reader], T]) -> T:
        """Run a query that counts, lists or searches, in a thread.

        Raises:
            StoreUnavailable: the database is away.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read_in_thread, query)

    async def close(self) -> None:
        """Finish what is queued (bounded by `writer.CLOSE_WAIT_S`) and close every connection."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writer.close()
        self._threads.shutdown(wait=True)
        for connection in self._readers:
            connection.close()
        self._engine.dispose()

    def _read_in_thread(self, query: Callable[[Reader], T]) -> T:
        for last in (False, True):
            reader: Reader | None = getattr(self._local, "reader", None)
            try:
                if reader is None:
                    reader = self._local.reader = Reader(self._connect_reader())
                return query(reader)
            except (sqlite3.Error, psycopg.Error, sa.exc.DBAPIError) as exc:
                driver = cast(Exception, exc.orig) if isinstance(exc, sa.exc.DBAPIError) else exc
                error = _translate(driver)
                if isinstance(error, StoreUnavailable):
                    self._local.reader = (
                        None  # a restarted server has forgotten this connection: try once with a new one
                    )
                    if not last:
                        continue
                raise error from None
        raise StoreUnavailable("unreachable")

    def _connect_reader(self) -> _Connection:
        driver = self._detached()
        if self.engine == "sqlite":
            driver.execute(f"PRAGMA busy_timeout = {int(READER_BUSY_WAIT_S * 1000)}")
            driver.execute("PRAGMA query_only = on")
            connection = _Connection(driver, driver.cursor(), self._statements)
        else:
            driver.autocommit = True
            driver.execute("SET default_transaction_read_only = on")
            connection = _Connection(driver, driver.cursor(binary=True), self._statements)
        self._readers.append(connection)
        return connection

    def _connect_writer(self) -> _Session:
        try:
            driver = self._detached()
        except sa.exc.DBAPIError as exc:
            raise _translate(cast(Exception, exc.orig)) from None
        if self.engine == "sqlite":
            return _Session(driver, driver.cursor(), self._statements)
        driver.autocommit = True
        return _PostgresSession(driver, driver.cursor(binary=True), self._statements)

    def _detached(self) -> Any:
        """A driver connection of our own; the pool forgets it."""
        pooled = self._engine.raw_connection()
        driver = pooled.driver_connection
        pooled.detach()
        return driver


def _conforms(store: Store) -> protocol.Store:
    """Checked by mypy: this store is the store the engine asks for."""
    return store
