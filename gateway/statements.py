"""Every statement of the store, written in SQLAlchemy Core and turned into text once per engine.

Compiling or even looking up a compiled statement costs more than SQLite needs to run it, so the store hands plain text and
parameters to the driver.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from gateway.lifecycle import TargetRow
from gateway.records import AttemptRecord, EventRecord
from gateway.tables import (
    ASSERTION,
    ATTEMPT,
    AUDIT,
    EVENT,
    IDENTITY,
    KEY,
    KEYS,
    MEMBERSHIP,
    NOTE,
    OPEN_MEMBERSHIP,
    READ_COLUMNS,
    RESOURCE,
    STREAM,
    TARGET,
    WRITTEN,
)
from schemas.states import PRIORITY, PRIORITY_REPAIR, SHADOW, Result
from schemas.topology import SETTLE_S

NOT_A_CALL = frozenset({Result.GAVE_UP})
"""Results that say nothing about the health of a target: the delivery was no longer ours."""
STATEMENTS_KEPT = 512
NOTES_PER_EVENT_MAX = 100


def _p(name: str, type_: Any = None) -> Any:
    return sa.bindparam(name, required=False, type_=type_)


def _names(table: sa.Table) -> list[str]:
    return [column.name for column in table.columns]


def _is(column: Any, text: str) -> Any:
    """A comparison that stands in the statement itself, so that partial indexes with the same condition are used."""
    return column == sa.literal_column(f"'{text}'")


class Statement:
    """A statement as text for one engine, and in which order it takes its parameters."""

    __slots__ = ("_names", "sql")

    def __init__(self, clause: Any, dialect: sa.Dialect, columns: Sequence[str] | None = None) -> None:
        compiled = clause.compile(dialect=dialect, column_keys=columns)
        self.sql = str(compiled)
        fixed = {name: None if bind.required else bind.value for name, bind in compiled.binds.items()}
        self._names = [(name, fixed.get(name)) for name in compiled.positiontup or ()]

    def bind(self, values: dict[str, Any]) -> tuple[Any, ...]:
        """The parameters in the order of the text."""
        return tuple([values.get(name, fixed) for name, fixed in self._names])


def dialect_of(engine: str) -> sa.Dialect:
    """How SQL is written for `sqlite` or `postgresql`, with the placeholders of the driver that is used."""
    return sqlite.dialect() if engine == "sqlite" else PGDialect_psycopg(paramstyle="format")  # type: ignore[no-untyped-call]


class Statements:
    """Every statement of the store for one engine.

    Args:
        engine: `sqlite` or `postgresql`.
    """

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self._dialect = dialect_of(engine)
        self._insert: Any = sqlite.insert if engine == "sqlite" else postgresql.insert
        self._clauses: dict[str, Any] = {}
        self._columns: dict[str, list[str]] = {}
        self._ready: dict[Any, Statement] = {}
        r, i, e, a = RESOURCE.c, IDENTITY.c, EVENT.c, ATTEMPT.c
        rows = sa.select(*READ_COLUMNS)
        first = rows.limit(1)
        one: Any = sa.select(sa.literal_column("1")).limit(1)
        limited = rows.limit(_p("limit", sa.Integer))
        flying = r.in_flight.is_not(None)
        clauses = self._clauses

        # resources
        clauses["row"] = rows.where(r.id == _p("id"))
        clauses["insert"] = self._insert_new(RESOURCE, "id", r.seq)
        self._columns["insert"] = [*WRITTEN, *KEYS]
        clauses["set_keys"] = sa.update(RESOURCE).where(r.id == _p("row_id"))
        self._columns["set_keys"] = list(KEYS)
        mine = sa.and_(r.target == _p("target"), r.kind == _p("kind"), r.id != _p("id"))
        clauses["key_holder"] = sa.union_all(
            *(
                sa.select(sa.select(r.id).where(mine, column == _p(column.name)).limit(1).scalar_subquery())
                for column in (r.user_name_key, r.external_id_key)
            )
        )
        noted = sa.exists().where(NOTE.c.target == _p("target"))  # along with it: whoever counts is about to dispatch
        clauses["in_flight"] = sa.select(sa.func.count(), noted).where(r.target == _p("target"), flying)
        branches = [
            sa.select(
                sa.select(r.seq)
                .where(r.target == _p("target"), r.priority == sa.literal_column(str(n)), r.due_at <= _p("now"))
                .order_by(r.due_at, r.seq)
                .limit(_p("limit", sa.Integer))
                .subquery()
                .c.seq
            )
            for n in range(PRIORITY_REPAIR + 1)
        ]
        clauses["due"] = limited.where(r.seq.in_(sa.union_all(*branches))).order_by(r.priority, r.due_at, r.seq)
        clauses["targets_due"] = sa.text(_TARGETS_DUE).columns(target=sa.String)
        by_age = r.seq + sa.literal_column(
            "0"
        )  # not the column itself: SQLite would read the whole table in this order
        clauses["unpublished"] = limited.where(flying, r.published.is_(sa.false())).order_by(by_age)
        clauses["unheard"] = limited.where(flying, r.published.is_(sa.true()), r.heard_at < _p("before")).order_by(
            by_age
        )
        clauses["read_backs"] = limited.where(r.read_back_at <= _p("now")).order_by(by_age)
        clauses["trails"] = _trails(limited)
        clauses["mark_published"] = (
            sa.update(RESOURCE)
            .where(r.id == _p("row_id"), r.fence == _p("row_fence"), flying)
            .values(published=sa.true())
        )
        clauses["heard"] = (
            sa.update(RESOURCE)
            .where(r.id == _p("row_id"), r.fence == _p("row_fence"), flying)
            .values(heard_at=_p("now"))
        )
        clauses["expect_outcomes"] = sa.update(RESOURCE).where(flying).values(heard_at=sa.literal_column("0.0"))
        clauses["expect_read_backs"] = (
            sa.update(RESOURCE)
            .where(~flying, sa.or_(_is(r.state, "applied"), _is(r.state, "gone")), r.settled_at > _p("since"))
            .values(read_back_at=_p("at"))
        )
        clauses["hasten"] = (
            sa.update(RESOURCE)
            .where(
                r.target == _p("name"),
                _is(r.state, "retrying"),
                ~flying,
                r.ambiguous.is_(sa.false()),
                r.next_at > _p("now"),
            )
            .values(next_at=_p("now", sa.Float), due_at=_p("now", sa.Float))
        )
        rehearsed = (
            sa.select(r.seq)
            .where(
                r.target == _p("name"),
                r.priority.in_([sa.literal_column(str(n)) for n in range(PRIORITY_REPAIR + 1)]),
                r.due_at > _p("now", sa.Float),
                # not the column itself: those given back already are blocked, too, and SQLite would read them for every part
                _is(r.state + sa.literal_column("''"), "blocked"),
                _is(r.blocked_on, SHADOW),
            )
            .limit(_p("limit", sa.Integer))
        )
        clauses["leave_shadow"] = (
            sa.update(RESOURCE)
            .where(r.seq.in_(rehearsed))
            .values(next_at=_p("now", sa.Float), due_at=_p("now", sa.Float))
            .returning(r.id)
        )
        buried = sa.and_(
            r.target == _p("name"),
            _is(r.state, "dead"),
            r.fingerprint == _p("cause"),
            r.settled_at >= _p("since"),
        )
        clauses["died"] = sa.select(sa.func.count()).where(buried)
        clauses["tried"] = sa.select(sa.func.count(a.resource_id.distinct())).where(
            a.target == _p("name"), a.ended_at >= _p("since")
        )
        clauses["reopen_events"] = (
            sa.update(EVENT)
            .where(
                sa.tuple_(e.resource_id, e.generation).in_(sa.select(r.id, r.generation).where(buried)),
                _is(e.outcome, "rejected"),
            )
            .values(outcome=sa.null(), outcome_at=sa.null())
        )
        rested = r.settled_at + sa.literal_column(str(SETTLE_S))
        again_at = sa.case((sa.and_(r.ambiguous, rested > _p("now", sa.Float)), rested), else_=_p("now", sa.Float))
        clauses["unbury"] = (
            sa.update(RESOURCE)
            .where(buried)
            .values(
                state=sa.literal_column("'queued'"),
                settled_generation=r.generation - 1,
                priority=sa.case(
                    *((_is(r.change, change.value), sa.literal_column(str(n))) for change, n in PRIORITY.items())
                ),
                attempt=sa.literal_column("0"),
                poisoned=sa.literal_column("0"),
                first_failed_at=sa.null(),
                next_at=again_at,
                due_at=again_at,
            )
            .returning(r.seq)
        )
        clauses["population"] = sa.select(sa.func.count()).where(r.target == _p("target"), r.visible == sa.true())

        # identities
        clauses["put_identity"] = self._upsert(IDENTITY, ["resource_id", "value"], ["wished", "held", "trail"])
        self._columns["put_identity"] = _names(IDENTITY)
        clauses["drop_identity"] = sa.delete(IDENTITY).where(i.resource_id == _p("row_id"), i.value == _p("identity"))
        clauses["wished"] = one.where(
            i.target == _p("target"),
            i.kind == _p("kind"),
            i.value == _p("value"),
            i.resource_id != _p("id"),
            i.wished == sa.true(),
        )
        clauses["owner"] = (
            first.where(r.target == _p("target"), r.kind == _p("kind"), r.account_id == _p("account_id"))
            .where(r.id != _p("id"))
            .order_by(r.seq)
        )

        clauses["referred"] = sa.select(r.account_id, r.deleted, r.state).where(
            r.id == _p("id"), r.target == _p("target"), r.kind == _p("kind")
        )

        # events
        clauses["add_event"] = sa.insert(EVENT)
        self._columns["add_event"] = [name for name in _names(EVENT) if name != "seq"]
        clauses["close_events"] = (
            sa.update(EVENT)
            .where(e.resource_id == _p("row_id"), e.generation <= _p("upto"), e.outcome.is_(None))
            .values(
                outcome=sa.case(
                    (e.generation == _p("upto"), _p("what", sa.String)), else_=sa.literal_column("'superseded'")
                ),
                outcome_at=_p("now"),
            )
        )
        clauses["past"] = (
            sa.select(e.generation, e.id, e.identities, e.document, e.change, e.deleted)
            .where(e.resource_id == _p("id"), e.generation > _p("settled"), e.generation < _p("current"))
            .order_by(e.generation.desc())
        )
        clauses["deprovisioned"] = sa.select(sa.func.count()).where(
            e.target == _p("target"), e.created_at >= _p("since"), sa.text("takes_away")
        )

        # attempts
        self._memberships(clauses)
        clauses["record_attempt"] = self._insert_new(ATTEMPT, "id", a.seq)
        self._columns["record_attempt"] = [name for name in _names(ATTEMPT) if name != "seq"]
        failed = _is(a.result, Result.RETRY.value)
        recent = sa.and_(
            a.target == _p("target"),
            a.ended_at >= _p("since"),
            *(a.result != sa.literal_column(f"'{result.value}'") for result in sorted(NOT_A_CALL)),
        )
        clauses["tally"] = sa.select(
            sa.func.count(),
            sa.func.count(sa.case((failed, 1))),
            sa.func.count(sa.case((failed, a.resource_id)).distinct()),
            sa.func.max(sa.case((failed, None), else_=a.seq)),
        ).where(recent)
        clauses["failures_since"] = sa.select(sa.func.count()).where(recent, failed, a.seq > _p("after"))

        newest_attempts = sa.select(a.ended_at, a.result, a.steps).where(a.target == _p("target"))
        clauses["last_attempts"] = newest_attempts.order_by(a.ended_at.desc()).limit(_p("limit", sa.Integer))

        # targets, streams, audit, keys
        t, k, u = TARGET.c, KEY.c, AUDIT.c
        clauses["target"] = sa.select(TARGET).where(t.name == _p("name"))
        clauses["targets"] = sa.select(TARGET).order_by(t.name)
        clauses["save_target"] = self._upsert(TARGET, ["name"], list(TargetRow.__struct_fields__[1:]))
        clauses["save_spec"] = self._upsert(TARGET, ["name"], ["spec", "settings_digest", "seen_at"])
        self._columns["save_target"] = self._columns["save_spec"] = _names(TARGET)
        clauses["streams"] = sa.select(STREAM.c.name, STREAM.c.created)
        clauses["save_stream"] = self._upsert(STREAM, ["name"], ["created"])
        self._columns["save_stream"] = _names(STREAM)
        clauses["last_audit"] = sa.select(u.hash).order_by(u.seq.desc()).limit(1)
        clauses["add_audit"] = sa.insert(AUDIT)
        self._columns["add_audit"] = [name for name in _names(AUDIT) if name != "seq"]
        clauses["audit"] = sa.select(AUDIT).order_by(u.seq.desc()).limit(_p("limit", sa.Integer))
        clauses["audit_after"] = (
            sa.select(AUDIT).where(u.seq > _p("after")).order_by(u.seq).limit(_p("limit", sa.Integer))
        )
        clauses["add_key"] = sa.insert(KEY)
        self._columns["add_key"] = _names(KEY)
        clauses["revoke_key"] = (
            sa.update(KEY)
            .where(k.id == _p("key_id"), k.revoked_at.is_(None))
            .values(revoked_at=_p("now"))
            .returning(k.id)
        )
        clauses["touch_key"] = (
            sa.update(KEY)
            .where(k.id == _p("key_id"), sa.or_(k.last_used_at.is_(None), k.last_used_at < _p("now", sa.Float)))
            .values(last_used_at=_p("now", sa.Float))
        )
        clauses["keys"] = sa.select(KEY).where(k.target == _p("target")).order_by(k.created_at, k.id)
        clauses["all_keys"] = sa.select(KEY).order_by(k.target, k.created_at, k.id)

        clauses["use_assertion"] = self._insert_new(ASSERTION, "id", sa.literal_column("1"))
        self._columns["use_assertion"] = _names(ASSERTION)
        clauses["forget_assertions"] = sa.delete(ASSERTION).where(ASSERTION.c.expires_at < _p("now", sa.Float))

        # what only readers ask
        visible = r.visible == sa.true()
        for name in (*KEYS, "account_key"):
            found = limited.where(r.target == _p("target"), r.kind == _p("kind"), r[name] == _p("value"))
            clauses[f"by_{name}"] = found.order_by(r.seq)
        listing = sa.and_(r.target == _p("target"), r.kind == _p("kind"), visible)
        place = sa.select(r.seq).where(listing).order_by(r.seq)
        place = place.limit(_p("limit", sa.Integer)).offset(_p("offset", sa.Integer))
        clauses["page"] = rows.where(r.seq.in_(place)).order_by(r.seq)
        clauses["total"] = sa.select(sa.func.count()).where(listing)
        clauses["scan"] = limited.where(listing, r.seq > _p("after")).order_by(r.seq)
        clauses["scan_back"] = limited.where(listing, r.seq < _p("before")).order_by(r.seq.desc())
        clauses["groups_after"] = limited.where(
            r.target == _p("target"),
            r.kind == _p("kind"),
            r.account_id.is_not(None),
            r.deleted.is_(sa.false()),
            r.seq > _p("after", sa.Integer),
        ).order_by(r.seq)
        clauses["counts"] = sa.select(r.state, sa.func.count()).where(r.target == _p("target")).group_by(r.state)
        clauses["oldest_waiting"] = sa.select(sa.func.min(r.modified_at)).where(
            r.target == _p("target"), r.due_at.is_not(None)
        )
        clauses["waiting"] = limited.where(r.target == _p("target"), r.due_at.is_not(None)).order_by(
            r.modified_at, r.seq
        )
        clauses["flying"] = limited.where(r.target == _p("target"), flying).order_by(r.heard_at, r.seq)
        clauses["in_state"] = limited.where(r.target == _p("target"), r.state == _p("state")).order_by(
            r.settled_at, r.seq
        )
        dead = _is(r.state, "dead")
        newest = limited.order_by(r.settled_at.desc(), r.seq.desc())
        shadowed = (r.target == _p("target"), _is(r.state, "blocked"), _is(r.blocked_on, SHADOW))
        clauses["rehearsed"] = newest.where(*shadowed)
        clauses["rehearsed_counts"] = sa.select(
            sa.func.count(), sa.func.sum(sa.case((r.fingerprint.like("shadow_refused%"), 1), else_=0))
        ).where(*shadowed)
        for name, conditions in {
            "dead": (dead,),
            "dead_of_target": (dead, r.target == _p("target")),
            "dead_of_cause": (dead, r.fingerprint == _p("cause")),
            "dead_of_both": (dead, r.target == _p("target"), r.fingerprint == _p("cause")),
        }.items():
            clauses[name] = newest.where(*conditions)
        causes = sa.select(
            r.target,
            r.fingerprint,
            sa.func.count(),
            sa.func.min(r.settled_at),
            sa.func.max(r.settled_at),
            sa.func.min(r.id),
        ).where(dead)
        clauses["dead_causes"] = (
            causes.group_by(r.target, r.fingerprint)
            .order_by(sa.func.count().desc(), r.target, r.fingerprint)
            .limit(_p("limit", sa.Integer))
        )
        heads = [e[name] for name in EventRecord.__struct_fields__]
        clauses["events_of"] = (
            sa.select(*heads)
            .where(e.resource_id == _p("id"))
            .order_by(e.generation.desc())
            .limit(_p("limit", sa.Integer))
        )
        clauses["event"] = sa.select(*heads).where(e.id == _p("id"))
        clauses["attempts_of"] = (
            sa.select(*(a[name] for name in AttemptRecord.__struct_fields__))
            .where(a.resource_id == _p("id"))
            .order_by(a.ended_at.desc(), a.seq.desc())
            .limit(_p("limit", sa.Integer))
        )
        clauses["event_document"] = sa.select(e.document).where(
            e.resource_id == _p("id"), e.generation == _p("generation")
        )
        clauses["resource_of_event"] = sa.select(e.resource_id).where(e.id == _p("id"))
        clauses["by_account_id"] = limited.where(
            r.target == _p("target"), r.kind == _p("kind"), r.account_id == _p("value")
        )
        clauses["target_names"] = sa.text(_TARGET_NAMES).columns(target=sa.String)

        # retention
        bound = _p("limit", sa.Integer)
        old_events = sa.select(e.seq).where(e.created_at < _p("before"), e.outcome.is_not(None)).limit(bound)
        clauses["purge_events"] = sa.delete(EVENT).where(e.seq.in_(old_events)).returning(e.seq)
        old_attempts = sa.select(a.seq).where(a.target == _p("name"), a.ended_at < _p("before")).limit(bound)
        clauses["purge_attempts"] = sa.delete(ATTEMPT).where(a.seq.in_(old_attempts)).returning(a.seq)
        clauses["attempt_targets"] = sa.text(_ATTEMPT_TARGETS).columns(target=sa.String)
        old_audit = sa.select(u.seq).where(u.at < _p("before")).order_by(u.at, u.seq).limit(bound)
        clauses["purge_audit"] = sa.delete(AUDIT).where(u.seq.in_(old_audit)).returning(u.seq)
        finished = (
            sa.select(r.seq)
            .where(
                r.target == _p("name"),
                r.state == _p("state"),
                r.settled_at < _p("before"),
                r.modified_at < _p("before"),
                ~flying,
                r.dirty.is_(sa.false()),
                r.ambiguous.is_(sa.false()),
                r.account_id.is_(None),
                r.read_back_at.is_(None),
                r.doubts.is_(None),
            )
            .limit(bound)
        )
        clauses["purge_resources"] = sa.delete(RESOURCE).where(r.seq.in_(finished)).returning(r.id)
        clauses["erase_resource"] = sa.delete(RESOURCE).where(r.id == _p("row_id")).returning(r.id)
        clauses["erase_events"] = sa.delete(EVENT).where(e.resource_id == _p("row_id"))
        clauses["erase_attempts"] = sa.delete(ATTEMPT).where(a.resource_id == _p("row_id"))
        self._notes(clauses)

    def __getitem__(self, name: str) -> Statement:
        ready = self._ready.get(name)
        if ready is None:
            ready = self._ready[name] = Statement(self._clauses[name], self._dialect, self._columns.get(name))
        return ready

    def _notes(self, clauses: dict[str, Any]) -> None:
        """What deliveries noted about resources; those of deleted ones are nobody's concern."""
        n, r = NOTE.c, RESOURCE.c
        kept = sa.select(n.code).where(n.resource_id == _p("id")).order_by(n.code)
        clauses["notes_of"] = kept.limit(NOTES_PER_EVENT_MAX)
        put = self._insert(NOTE)
        renewed = {name: put.excluded[name] for name in ("message", "subject", "noted_by", "last_at")}
        clauses["put_note"] = put.on_conflict_do_update(
            index_elements=["resource_id", "code"], set_={**renewed, "times": n.times + put.excluded.times}
        )
        self._columns["put_note"] = _names(NOTE)
        clauses["drop_note"] = sa.delete(NOTE).where(n.resource_id == _p("row_id"), n.code == _p("note_code"))
        alive = sa.and_(n.target == _p("target"), r.id == n.resource_id, r.deleted.is_(sa.false()))
        clauses["note_counts"] = sa.select(n.code, sa.func.count()).where(alive).group_by(n.code).order_by(n.code)
        about = (n.code, n.message, n.subject, n.noted_by, n.first_at, n.last_at, n.times)
        clauses["notes"] = (
            sa.select(*READ_COLUMNS, *about)
            .where(alive, n.code == _p("code"), r.seq > _p("after", sa.Integer))
            .order_by(r.seq)
            .limit(_p("limit", sa.Integer))
        )

    def _memberships(self, clauses: dict[str, Any]) -> None:
        """Members of groups, wished and settled; `members` is a JSON list of ids, so that one statement takes any number."""
        m, r = MEMBERSHIP.c, RESOURCE.c
        given = sa.text(_GIVEN_MEMBERS[self.engine]).columns(member=sa.String)
        ids = sa.select(given.subquery("given").c.member)
        mine = m.group_id == _p("group_id")
        clauses["wish_members"] = sa.text(_WISH_MEMBERS.format(given=_GIVEN_MEMBERS[self.engine]))
        clauses["unwish_members"] = (
            sa.update(MEMBERSHIP)
            .where(mine, m.wished.is_(sa.true()), m.member.in_(ids))
            .values(wished=sa.false())
            .returning(m.member)
        )
        clauses["unwish_others"] = (
            sa.update(MEMBERSHIP)
            .where(mine, m.wished.is_(sa.true()), m.member.not_in(ids))
            .values(wished=sa.false())
            .returning(m.member)
        )
        clauses["places"] = sa.select(r.id, r.seq).where(r.id.in_(ids))
        is_open = sa.text(f"({OPEN_MEMBERSHIP})")
        clauses["drop_unwished"] = sa.text(_DROP_UNWISHED.format(indexed=_INDEXED_UNWISHED[self.engine]))
        clauses["send_members"] = (
            sa.update(MEMBERSHIP).where(mine, is_open, m.member.in_(ids)).values(uncertain=sa.true())
        )
        clauses["settle_added"] = (
            sa.update(MEMBERSHIP).where(mine, m.member.in_(ids)).values(settled=sa.true(), uncertain=sa.false())
        )
        clauses["settle_removed"] = (
            sa.update(MEMBERSHIP).where(mine, m.member.in_(ids)).values(settled=sa.false(), uncertain=sa.false())
        )
        clauses["unsettle_members"] = (
            sa.update(MEMBERSHIP)
            .where(mine, sa.or_(m.settled.is_(sa.true()), m.uncertain.is_(sa.true())))
            .values(settled=sa.false(), uncertain=sa.false())
        )
        clauses["unsettle_member"] = (
            sa.update(MEMBERSHIP)
            .where(m.member == _p("member"), m.wished.is_(sa.true()), m.settled.is_(sa.true()))
            .values(settled=sa.false())
        )
        clauses["unsettle_relinked"] = sa.text(_UNSETTLE_RELINKED.format(given=_GIVEN_ACCOUNTS[self.engine]))
        refers = sa.or_(
            sa.and_(r.manager == _p("member"), r.target == _p("target")),
            r.id.in_(sa.select(m.group_id).where(m.member == _p("member"), m.wished.is_(sa.true()))),
        )
        clauses["refer_in_flight"] = (
            sa.update(RESOURCE).where(refers, r.in_flight.is_not(None)).values(unfinished=sa.true())
        )
        clauses["refer_again"] = (
            sa.update(RESOURCE)
            .where(refers, r.in_flight.is_(None), _is(r.state, "applied"))
            .values(
                unfinished=sa.true(),
                state=sa.literal_column("'queued'"),
                next_at=_p("now", sa.Float),
                due_at=_p("now", sa.Float),
                priority=sa.literal_column(str(PRIORITY_REPAIR)),
            )
        )
        clauses["forget_member"] = sa.delete(MEMBERSHIP).where(m.member == _p("member"))
        left = sa.select(m.group_id).where(m.member == _p("member"), m.wished.is_(sa.true()))
        later = r.modified_at + sa.literal_column("0.001")  # a millisecond at least: the version of a group tells it
        clauses["modify_groups_of"] = (
            sa.update(RESOURCE)
            .where(r.id.in_(left))
            .values(modified_at=sa.case((later > _p("now", sa.Float), later), else_=_p("now", sa.Float)))
        )
        for name, text in _OPEN_MEMBERS.items():
            clauses[name] = sa.text(text.format(indexed=_INDEXED_OPEN[self.engine])).columns(
                member=sa.String, wished=sa.Boolean, kind=sa.String, account_id=sa.String
            )
        clauses["wished_members"] = sa.select(m.member).where(mine, m.wished.is_(sa.true())).order_by(m.member)
        at_home = sa.outerjoin(MEMBERSHIP, RESOURCE, sa.and_(m.member == r.id, r.target == _p("target")))
        clauses["member_kinds"] = (
            sa.select(m.member, r.kind)
            .select_from(at_home)
            .where(mine, m.wished.is_(sa.true()))
            .order_by(m.member)
            .limit(_p("limit", sa.Integer))
        )
        clauses["is_member"] = (
            sa.select(sa.literal_column("1")).where(mine, m.member == _p("member"), m.wished.is_(sa.true())).limit(1)
        )
        clauses["groups_of"] = sa.select(m.group_id).where(m.member == _p("member"), m.wished.is_(sa.true()))

    def holders(self, count: int) -> Statement:
        """Rows other than `id` that hold any of `count` identities, oldest first."""
        ready = self._ready.get(count)
        if ready is None:
            i, r = IDENTITY.c, RESOURCE.c
            holding = sa.select(i.resource_id).where(
                i.target == _p("target"),
                i.kind == _p("kind"),
                i.value.in_([_p(f"value{n}") for n in range(count)]),
                i.held == sa.true(),
                i.resource_id != _p("id"),
            )
            clause = sa.select(*READ_COLUMNS).where(r.id.in_(holding)).order_by(r.seq)
            ready = self._ready[count] = Statement(clause, self._dialect)
        return ready

    def update(self, columns: tuple[int, ...]) -> Statement:
        """Write these columns (places in WRITTEN) of the row `row_seq`.

        Only what changed is written: every index of a written column costs, whether its value changed or not.
        """
        return _update(self, columns)

    def compile_update(self, columns: Iterable[int]) -> Statement:
        """See `update`."""
        clause = sa.update(RESOURCE).where(RESOURCE.c.seq == _p("row_seq"))
        return Statement(clause, self._dialect, [WRITTEN[n] for n in columns])

    def _insert_new(self, table: sa.Table, key: str, answer: Any) -> Any:
        """Insert unless the key exists. Only PostgreSQL returns a row: RETURNING trebles the cost of an insert on SQLite."""
        put = self._insert(table).on_conflict_do_nothing(index_elements=[key])
        return put if self.engine == "sqlite" else put.returning(answer)

    def _upsert(self, table: sa.Table, key: list[str], columns: list[str]) -> Any:
        put = self._insert(table)
        return put.on_conflict_do_update(index_elements=key, set_={name: put.excluded[name] for name in columns})


@lru_cache(maxsize=STATEMENTS_KEPT // 2)
def _update(statements: Statements, columns: tuple[int, ...]) -> Statement:
    return statements.compile_update(columns)


@cache
def statements_of(engine: str) -> Statements:
    """The statements of one engine, built once per process."""
    return Statements(engine)


def _loose_scan(table: str, where: str = "") -> str:
    """Distinct targets of a table by jumping through an index that begins with the target."""
    condition = f"WHERE {where} " if where else ""
    more = f"AND {where} " if where else ""
    first = f"SELECT target FROM {table} {condition}ORDER BY target LIMIT 1"  # noqa: S608 - constants of this module
    after = f"SELECT n.target FROM {table} n WHERE n.target > names.target {more}ORDER BY n.target LIMIT 1"  # noqa: S608
    return (
        f"WITH RECURSIVE names(target) AS (SELECT ({first}) UNION ALL SELECT ({after}) "  # noqa: S608
        "FROM names WHERE names.target IS NOT NULL) SELECT target FROM names WHERE target IS NOT NULL"
    )


_TARGET_NAMES = _loose_scan("resource")
_ATTEMPT_TARGETS = _loose_scan("attempt")
_IS_DUE = "SELECT 1 FROM resource d WHERE d.target = names.target AND d.due_at <= CAST(:now AS DOUBLE PRECISION)"
_ANY_DUE = " OR ".join(f"EXISTS ({_IS_DUE} AND d.priority = {n})" for n in range(PRIORITY_REPAIR + 1))
_TARGETS_DUE = _loose_scan("resource", "due_at IS NOT NULL") + f" AND ({_ANY_DUE})"


_GIVEN_MEMBERS = {
    "sqlite": "SELECT value AS member FROM json_each(:members)",
    "postgresql": "SELECT value AS member FROM jsonb_array_elements_text(CAST(:members AS JSONB))",
}
_GIVEN_ACCOUNTS = {
    "sqlite": "SELECT key AS member, value AS account_id FROM json_each(:accounts)",
    "postgresql": "SELECT key AS member, value AS account_id FROM jsonb_each_text(CAST(:accounts AS JSONB))",
}
_UNSETTLE_RELINKED = (
    "UPDATE membership SET settled = false WHERE group_id = :group_id AND member IN (SELECT g.member FROM ({given}) g "
    "LEFT JOIN resource r ON r.id = g.member WHERE r.account_id IS NULL OR r.account_id != g.account_id)"
)
_INDEXED_OPEN = {"sqlite": "INDEXED BY ix_membership_open", "postgresql": ""}
_INDEXED_UNWISHED = {"sqlite": "INDEXED BY ix_membership_unwished", "postgresql": ""}
"""SQLite would read the whole group through the primary key, which seems as good to it as a small partial index."""
_OPEN = (
    "SELECT m.member, m.wished, r.kind, r.account_id FROM membership AS m {indexed} "
    "LEFT JOIN resource r ON r.id = m.member "
    "WHERE m.group_id = :group_id AND (m.wished != m.settled OR m.uncertain) AND "
)
_OPEN_MEMBERS = {
    "member_steps": _OPEN
    + "(NOT m.wished OR (r.target = :target AND r.account_id IS NOT NULL)) ORDER BY m.member LIMIT :limit",
    "member_waiting": _OPEN
    + "m.wished AND NOT m.settled AND (r.account_id IS NULL OR r.target != :target) ORDER BY m.member LIMIT 1",
}
_DROP_UNWISHED = (
    "DELETE FROM membership {indexed} WHERE group_id = :group_id AND NOT wished AND NOT settled AND NOT uncertain"
)
_WISH_MEMBERS = (
    "INSERT INTO membership (group_id, member, wished, settled, uncertain) "
    "SELECT :group_id, g.member, true, false, false FROM ({given}) g WHERE true "
    "ON CONFLICT (group_id, member) DO UPDATE SET wished = true WHERE NOT membership.wished RETURNING member"
)
"""SQLite needs the `WHERE true` to tell the conflict clause from a join."""


def _trails(limited: Any) -> Any:
    """Resting rows with a trail, a name of which another live row wishes."""
    r, left, wished = RESOURCE.c, IDENTITY.alias("left_behind"), IDENTITY.alias("wished")
    wanted: Any = (
        sa.select(sa.literal_column("1"))
        .select_from(left)
        .join(
            wished,
            sa.and_(
                wished.c.target == left.c.target,
                wished.c.kind == left.c.kind,
                wished.c.value == left.c.value,
                wished.c.resource_id != left.c.resource_id,
                wished.c.wished == sa.true(),
            ),
        )
        .where(left.c.resource_id == r.id, left.c.trail == sa.true())
        .correlate(RESOURCE)
    )
    return limited.where(sa.text("has_trail"), sa.exists(wanted)).order_by(r.seq)
