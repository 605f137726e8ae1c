"""The store's part in mails: what needs a person as it was last seen and told, and the outbox.

Functions of a `Transaction` run inside a job of `Store.run`, those of a `Reader` inside `Store.read` or `Store.read_slow`.
A mail that is being sent is one whose turn comes again after CLAIM_S: a gateway that dies meanwhile leaves nothing to clean up.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.dialects import postgresql, sqlite

from gateway.explanations import duration
from gateway.statements import Statement, dialect_of
from gateway.store import Reader, Transaction
from gateway.tables import ATTEMPT, METADATA, RESOURCE
from schemas.events import Reason, Step
from schemas.states import SHADOW

CLAIM_S = 300.0
"""A mail is tried by one gateway for at most so long; then it is anybody's again."""
LISTED_MAX = 500
ALERTS_MAX = 10_000
BLOCKED_LOOKED_AT_MAX = 1_000
CAUSES_LOOKED_AT_MAX = 1_000
FORGET_ROWS_MAX = 500

_ALERT, _MAIL = METADATA.tables["alert"], METADATA.tables["mail"]
_OUT = [column.name for column in _MAIL.columns if column.name != "seq"]
_steps = msgspec.json.Decoder(tuple[Step, ...])
_reason = msgspec.json.Decoder(Reason)


class Alert(Struct, kw_only=True):
    """One cause at one target ("": it concerns all). Times are epoch seconds.

    Args:
        gone_at: since when it is not so any more; None while it is.
        over_at: when that was taken for its end.
        count: how many are affected. level: how urgent, smaller is worse; both of causes that have one.
        told_at: when somebody was last told; None when nobody was.
        text: what it is, as told last.
    """

    target: str
    cause: str
    opened_at: float
    gone_at: float | None = None
    over_at: float | None = None
    count: int = 1
    level: int = 0
    told_at: float | None = None
    told_count: int = 0
    told_level: int = 0
    text: str = ""


class Mail(Struct, frozen=True, kw_only=True):
    """One mail to one recipient. Times are epoch seconds.

    Args:
        notice: shared by the copies of one mail, which `copy_number` counts from 0.
        kind: `new`, `over` or `digest`.
        state: `waiting`, `sent` or `failed`.
        next_at: when it is tried next.
        holder: the gateway that is trying.
        error: why it was not taken the last time.
    """

    notice: str
    copy_number: int
    message_id: str
    target: str
    kind: str
    recipient: str
    subject: str
    body: str
    created_at: float
    state: str = "waiting"
    attempts: int = 0
    next_at: float = 0.0
    ended_at: float | None = None
    holder: str = ""
    error: str = ""
    seq: int = 0


class Waiting(Struct, frozen=True):
    """A change that waits for something: for what, its reason's code and attribute, and when it was wished."""

    on: str
    code: str
    attribute: str
    wished_at: float


class Outbox(Struct, frozen=True, kw_only=True):
    """The outbox in numbers. `oldest_at`: of what waits; `failing_since`: of what waits after it was tried in vain."""

    waiting: int
    failed: int
    sent: int
    oldest_at: float | None
    failing_since: float | None
    last_sent_at: float | None
    error: str


class MailHealth(Struct, frozen=True, kw_only=True):
    """Whether operators can be told. `sentence` is for people, empty when all is well. Times are epoch seconds."""

    fine: bool
    sentence: str
    waiting: int
    failed: int
    last_sent_at: float | None


def health_of(box: Outbox, now: float) -> MailHealth:
    """What is to be said of the outbox."""
    said = []
    if box.failing_since is not None:
        since = duration(now - box.failing_since)
        waits = f"{box.waiting:,} {'waits' if box.waiting == 1 else 'wait'}, none is lost"
        said.append(f"Mails to operators do not get through since {since}: {box.error}; {waits}.")
    if box.failed:
        said.append(
            f"{box.failed:,} {'mail was' if box.failed == 1 else 'mails were'} given up; see: provgate mail list"
        )
    return MailHealth(
        fine=not said, sentence=" ".join(said), waiting=box.waiting, failed=box.failed, last_sent_at=box.last_sent_at
    )


class _Statements:
    """The statements of this module for one engine."""

    def __init__(self, engine: str) -> None:
        dialect = dialect_of(engine)
        insert: Any = sqlite.insert if engine == "sqlite" else postgresql.insert
        m, r, t = _MAIL.c, RESOURCE.c, ATTEMPT.c

        def p(name: str, type_: Any = None) -> Any:
            return sa.bindparam(name, required=False, type_=type_)

        def word(text: str) -> Any:
            return sa.literal_column(f"'{text}'")

        def ready(clause: Any, columns: Sequence[str] | None = None) -> Statement:
            return Statement(clause, dialect, columns)

        limit = p("limit", sa.Integer)
        put = insert(_ALERT)
        changed = {c.name: put.excluded[c.name] for c in _ALERT.columns if c.name not in ("target", "cause")}
        names = [column.name for column in _ALERT.columns]
        self.alerts = ready(sa.select(_ALERT).order_by(_ALERT.c.target, _ALERT.c.cause).limit(limit))
        self.put_alert = ready(put.on_conflict_do_update(index_elements=["target", "cause"], set_=changed), names)
        self.drop_alert = ready(
            sa.delete(_ALERT).where(_ALERT.c.target == p("of_target"), _ALERT.c.cause == p("of_cause"))
        )
        waiting = m.state == word("waiting")
        self.add_mail = ready(sa.insert(_MAIL), _OUT)
        due = sa.and_(waiting, m.next_at <= p("now", sa.Float))
        self.any_due = ready(sa.select(sa.literal_column("1")).where(due).limit(1))
        first = sa.select(m.seq).where(due).order_by(m.next_at, m.seq).limit(limit)
        self.claim = ready(
            sa.update(_MAIL)
            .where(m.seq.in_(first))
            .values(next_at=p("until", sa.Float), holder=p("by"), attempts=m.attempts + 1)
            .returning(*_MAIL.columns)
        )
        self.settle = ready(
            sa.update(_MAIL)
            .where(m.seq == p("number"), waiting, m.holder == p("by"))
            .values(
                state=p("to_state"),
                next_at=p("again_at", sa.Float),
                ended_at=p("at", sa.Float),
                holder=word(""),
                error=p("why"),
            )
        )
        self.hasten = ready(
            sa.update(_MAIL)
            .where(waiting, m.holder == word(""), m.next_at > p("now", sa.Float))
            .values(next_at=p("now", sa.Float))
        )
        self.retry = ready(
            sa.update(_MAIL)
            .where(m.state == word("failed"))
            .values(state=word("waiting"), next_at=p("now", sa.Float), ended_at=sa.null(), attempts=0)
            .returning(m.seq)
        )
        old = sa.select(m.seq).where(~waiting, m.created_at < p("before", sa.Float)).order_by(m.created_at).limit(limit)
        self.forget = ready(sa.delete(_MAIL).where(m.seq.in_(old)).returning(m.seq))
        self.lately = ready(
            sa.select(sa.func.count(), sa.func.max(m.created_at)).where(
                m.target == p("target"), m.created_at > p("since", sa.Float), m.copy_number == 0
            )
        )
        self.waiting = ready(sa.select(sa.func.count()).where(waiting))
        mails = sa.select(*_MAIL.columns).order_by(m.seq.desc()).limit(limit)
        self.mails = ready(mails)
        self.mails_in = ready(mails.where(m.state == p("state")))
        self.numbers = ready(
            sa.select(
                m.state,
                sa.func.count(),
                sa.func.min(m.created_at),
                sa.func.max(m.ended_at),
                sa.func.min(sa.case((m.error != word(""), m.created_at))),
            ).group_by(m.state)
        )
        self.last_error = ready(
            sa.select(m.error)
            .where(waiting, m.error != word(""))
            .order_by(m.attempts.desc(), m.seq.desc())
            .limit(sa.literal_column("1"))
        )
        # what needs a person
        mine = r.target == p("target")
        self.dead = ready(
            sa.select(r.fingerprint, sa.func.count())
            .where(mine, r.state == word("dead"))
            .group_by(r.fingerprint)
            .order_by(sa.func.count().desc(), r.fingerprint)
            .limit(limit)
        )
        self.held = ready(sa.select(sa.func.count()).where(mine, r.state == word("held")))
        self.blocked = ready(
            sa.select(r.blocked_on, r.reason, r.modified_at)
            .where(mine, r.state == word("blocked"), r.blocked_on != word(SHADOW))
            .order_by(r.settled_at)
            .limit(limit)
        )
        self.refused = ready(
            sa.select(t.steps, t.code)
            .where(t.target == p("target"), t.ended_at > p("since", sa.Float), t.result == word("misconfigured"))
            .order_by(t.ended_at.desc())
            .limit(limit)
        )


@cache
def _statements(engine: str) -> _Statements:
    return _Statements(engine)


def _of(within: Transaction | Reader) -> _Statements:
    return _statements(within.connection.statements.engine)


# ---- alerts


def alerts(within: Transaction | Reader) -> dict[tuple[str, str], Alert]:
    """Everything that needs a person, or did lately, by target and cause."""
    found = within.connection.rows(_of(within).alerts, limit=ALERTS_MAX)
    names = [column.name for column in _ALERT.columns]
    kept = (Alert(**dict(zip(names, columns, strict=True))) for columns in found)
    return {(alert.target, alert.cause): alert for alert in kept}


def put_alert(ledger: Transaction, alert: Alert) -> None:
    """Write one alert, new or not."""
    ledger.connection.do(_of(ledger).put_alert, **msgspec.structs.asdict(alert))


def drop_alert(ledger: Transaction, target: str, cause: str) -> None:
    """Forget one alert."""
    ledger.connection.do(_of(ledger).drop_alert, of_target=target, of_cause=cause)


# ---- the outbox


def add_mail(ledger: Transaction, mail: Mail) -> None:
    """Put a mail into the outbox; it is kept when the caller's transaction is."""
    ledger.connection.do(_of(ledger).add_mail, **{name: getattr(mail, name) for name in _OUT})


def any_due(reader: Reader, now: float) -> bool:
    """Whether a mail could be tried now."""
    return bool(reader.connection.rows(_of(reader).any_due, now=now))


def claim_mails(ledger: Transaction, holder: str, now: float, limit: int) -> list[Mail]:
    """Take the mails whose turn it is, oldest first; until `now + CLAIM_S` nobody else tries them."""
    found = ledger.connection.rows(_of(ledger).claim, now=now, until=now + CLAIM_S, by=holder, limit=limit)
    return sorted(map(_mail, found), key=lambda mail: mail.seq)


def settle_mail(
    ledger: Transaction, seq: int, holder: str, state: str, now: float, *, again_at: float = 0.0, error: str = ""
) -> None:
    """What became of a mail that this holder claimed; nothing when somebody else has it by now."""
    ended_at = None if state == "waiting" else now
    values = {"number": seq, "by": holder, "to_state": state, "at": ended_at, "again_at": again_at, "why": error}
    ledger.connection.do(_of(ledger).settle, **values)


def hasten_mails(ledger: Transaction, now: float) -> None:
    """The server takes mails again: what waits for its next attempt is tried now."""
    ledger.connection.do(_of(ledger).hasten, now=now)


def retry_failed(ledger: Transaction, now: float) -> int:
    """Have every failed mail tried again; how many."""
    return len(ledger.connection.rows(_of(ledger).retry, now=now))


def forget_mails(ledger: Transaction, before: float) -> int:
    """Delete mails of that age that were sent or given up, at most FORGET_ROWS_MAX; how many."""
    return len(ledger.connection.rows(_of(ledger).forget, before=before, limit=FORGET_ROWS_MAX))


def mails_lately(within: Transaction | Reader, target: str, since: float) -> tuple[int, float]:
    """How many mails about a target were written since (copies not counted), and when the last one was; 0 for never."""
    count, last = within.connection.rows(_of(within).lately, target=target, since=since)[0]
    return int(count), float(last or 0.0)


def mails_waiting(within: Transaction | Reader) -> int:
    """How many mails are in the outbox."""
    return int(within.connection.rows(_of(within).waiting)[0][0])


def listed_mails(reader: Reader, state: str | None, limit: int) -> list[Mail]:
    """The newest mails first, of one state or of all; at most LISTED_MAX."""
    which = _of(reader).mails if state is None else _of(reader).mails_in
    return [_mail(columns) for columns in reader.connection.rows(which, state=state, limit=min(limit, LISTED_MAX))]


def outbox(reader: Reader) -> Outbox:
    """The outbox in numbers."""
    states = {columns[0]: columns[1:] for columns in reader.connection.rows(_of(reader).numbers)}
    waiting, sent, failed = (states.get(name, (0, None, None, None)) for name in ("waiting", "sent", "failed"))
    error = reader.connection.rows(_of(reader).last_error)
    return Outbox(
        waiting=int(waiting[0]),
        failed=int(failed[0]),
        sent=int(sent[0]),
        oldest_at=waiting[1],
        failing_since=waiting[3],
        last_sent_at=sent[2],
        error=str(error[0][0]) if error else "",
    )


def _mail(columns: Sequence[Any]) -> Mail:
    return Mail(**dict(zip((column.name for column in _MAIL.columns), columns, strict=True)))


# ---- what needs a person


def dead_by_cause(reader: Reader, target: str) -> list[tuple[str, int]]:
    """Dead letters of a target by fingerprint, the most frequent first."""
    found = reader.connection.rows(_of(reader).dead, target=target, limit=CAUSES_LOOKED_AT_MAX)
    return [(str(fingerprint or ""), int(count)) for fingerprint, count in found]


def held_count(reader: Reader, target: str) -> int:
    """Changes of a target that a safety brake holds."""
    return int(reader.connection.rows(_of(reader).held, target=target)[0][0])


def blocked_for(reader: Reader, target: str) -> list[Waiting]:
    """Changes of a target that wait for something outside shadow mode, at most BLOCKED_LOOKED_AT_MAX."""
    found = []
    for on, raw, at in reader.connection.rows(_of(reader).blocked, target=target, limit=BLOCKED_LOOKED_AT_MAX):
        reason = _reason.decode(raw) if raw else None
        code, attribute = (reason.code, reason.attribute or "") if reason is not None else ("", "")
        found.append(Waiting(on=str(on), code=code, attribute=attribute, wished_at=float(at)))
    return found


def refused_call(reader: Reader, target: str, since: float) -> Step | None:
    """The call at which the product last refused credentials or settings, where the connector recorded it."""
    found = reader.connection.rows(_of(reader).refused, target=target, since=since, limit=1)
    for steps, _ in found:
        for step in reversed(_steps.decode(steps) if steps else ()):
            if step.status in (401, 403):
                return step
    return None
