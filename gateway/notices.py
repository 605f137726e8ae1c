"""What operators are told by mail, and in which words. Reads and decides; writes and sends nothing.

A mail names targets, causes, attributes, counts, and what to do: never a person's value, never a text that came from a product or
from Entra. What was refused in whose words stands behind the operators' token, and the mail says by which command.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from gateway import explanations as explain
from gateway.expiry import takes_secret
from gateway.explanations import Served, counted, duration, moment
from gateway.keys import DAY_S, WARN_DAYS, expiry_warnings
from gateway.lifecycle import TargetRow
from gateway.mails_store import Alert, Waiting, blocked_for, dead_by_cause, held_count, refused_call
from gateway.reports_store import last_report
from gateway.store import Reader
from gateway.waits import PRODUCTS
from schemas.config import TargetSettings
from schemas.states import Circuit, State

OVER_AFTER_S = 60.0
"""What was not so for so long is over; what comes back sooner was never away."""
QUIET_AFTER_OVER_S = 3_600.0
"""What comes back within this time after its end was told is left to the next digest: a circuit may open every minute."""
FORGET_OVER_S = 86_400.0
REMIND_AFTER_S = 86_400.0
PRESENCE_GRACE_S = 60.0
"""A worker that is started anew, or a short break of NATS, is no news."""
WAIT_GRACE_S = 900.0
APPROVAL_GRACE_S = 26 * 3_600.0
"""A product that approves once a day has missed a run."""
REFUSED_LOOK_BACK_S = 60.0
SEEN_PER_TARGET_MAX = 50
SHOWN_MAX = 20
WORD_CHARS_MAX = 120

ALL_TARGETS = ""
"""What concerns no target more than another has this name."""

_GRACES = {"licence": 0.0, "seat": 0.0, "approval": APPROVAL_GRACE_S}
"""By the thing that is waited for; a missing name is spoken of at once, and everything else after WAIT_GRACE_S."""
_GO_BY_THEMSELVES = frozenset(
    ("identity_held", "manager_missing", "member_missing", "unknown_member", "unknown_manager", "members")
)
"""They wait for a neighbour that is on its way, or was never assigned; the status names them, a mail would come every day."""
_WORD = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.:$-]{{0,{WORD_CHARS_MAX}}}")
_CALL = re.compile(rf"[A-Z]{{3,10}} /[A-Za-z0-9_.:{{}}/~-]{{0,{WORD_CHARS_MAX}}}")
_FIRST_WORD = re.compile(r"[A-Za-z_-]{1,40}")
_PATH_OF_URN = re.compile(r"(urn:[\w.:-]*?:(?:User|Group)(?::[\w.$-]+)?):")


class Seen(Struct, frozen=True, kw_only=True):
    """Something that needs a person, as it is now.

    Args:
        cause: stable; one cause is told once, not once per person.
        noun: what it is, without numbers: `dead letters: unknown_role (roles)`.
        phrase: goes after the target's name: `has 3 dead letters: unknown_role (roles)`.
        remedy: what to do, in a sentence or two.
        count: how many it concerns, where it can grow.
        level: how urgent it is, smaller is worse; a smaller one is told at once.
        grace_s: it is told when it lasts for so long.
        reminds: whether it is said again every day.
    """

    cause: str
    noun: str
    phrase: str
    remedy: str
    count: int = 1
    level: int = 0
    grace_s: float = 0.0
    reminds: bool = True


class Look(Struct, frozen=True):
    """What one look at a target found. `unsure`: causes of which nothing can be said now."""

    seen: tuple[Seen, ...]
    unsure: frozenset[str] = frozenset()


def word(text: str) -> str:
    """A code, an id or the name of an attribute, up to its filter; "" for what is none and could say anything."""
    found = _WORD.fullmatch(text.partition("[")[0])
    return found[0] if found else ""


# ---- what is so


def look_at(
    reader: Reader, target: str, settings: TargetSettings, served: Served, now: float, *, rights_settle_s: float = 0.0
) -> Look:
    """Everything at one target that a mail may be about.

    Args:
        served: what workers' presence says of it.
        rights_settle_s: how long the product takes to let granted rights count.
    """
    runtime = reader.target(target).row
    seen = _circuit(reader, target, runtime, served, now, rights_settle_s)
    if not served.workers:
        remedy = f"See what is wrong with: provgate check. Start one: provgate worker --target {target}"
        seen.append(
            Seen(
                cause="no_worker",
                noun="no worker",
                phrase="is served by no worker; changes wait, none is lost",
                remedy=remedy,
                grace_s=PRESENCE_GRACE_S,
            )
        )
    if served.workers and served.kept:
        seen.append(
            Seen(
                cause="configuration",
                noun="changed settings with a mistake",
                phrase="works as it was configured before, because its changed settings have a mistake",
                remedy="See what is wrong with: provgate check",
            )
        )
    report = last_report(reader, target)
    if report is not None and report.state == "held":
        seen.append(
            Seen(
                cause="repair_held",
                noun="a repair that waits for approval",
                phrase="differs so much from the product that its repair waits for your approval",
                remedy=f"Look: provgate reconcile {target} --last. If it is wanted: "
                f"provgate reconcile {target} --repair --approve --reason TEXT",
            )
        )
    seen += [*_keys(reader, target, settings, now), *_credential(served, now), *_stuck(reader, target)]
    if not settings.shadow:
        seen += _blocked(target, blocked_for(reader, target), now)
    unsure = {one.cause for one in seen[SEEN_PER_TARGET_MAX:]}
    if not served.workers:
        unsure.add("credential")  # whoever knows is away
    return Look(tuple(seen[:SEEN_PER_TARGET_MAX]), frozenset(unsure))


def _circuit(
    reader: Reader, target: str, runtime: TargetRow, served: Served, now: float, rights_settle_s: float
) -> list[Seen]:
    if runtime.circuit is Circuit.CLOSED:
        return []
    counts = reader.counts(target)
    waiting = sum(counts.get(state, 0) for state in (State.QUEUED, State.RETRYING, State.DELIVERING))
    waits = f"{counted(waiting, 'change')} {'waits' if waiting == 1 else 'wait'}, none is lost"
    if runtime.circuit is Circuit.DOWN:
        return [
            Seen(
                cause="circuit_down",
                noun="the product is down",
                phrase=f"is down; {waits}",
                remedy=f"It is probed by itself; at once with: provgate target probe {target}",
            )
        ]
    remedy = []
    call = refused_call(reader, target, runtime.opened_at - REFUSED_LOOK_BACK_S)
    if call is not None and (named := _CALL.fullmatch(f"{call.method} {call.path.partition('?')[0]}")):
        remedy.append(f"The call that was refused: {named[0]} ({call.status}).")
    if served.credential is not None:
        ends = f"{'ended' if served.credential.ends_at <= now else 'ends'} on {moment(served.credential.ends_at)[:10]}"
        remedy.append(f"The {_plain(served.credential.what)} that is configured {ends}.")
    remedy.append(f"Correct the credential or setting, then: provgate target probe {target}")
    return [
        Seen(
            cause="circuit_auth",
            noun="credentials or settings refused",
            phrase=f"refuses our credentials or settings; {waits}",
            remedy=" ".join(remedy),
            grace_s=rights_settle_s,
        )
    ]


def _stuck(reader: Reader, target: str) -> list[Seen]:
    found = []
    causes: Counter[tuple[str, str]] = Counter()
    for fingerprint, count in dead_by_cause(reader, target):
        causes[_cause_of(fingerprint)] += count
    for (code, attribute), count in causes.most_common():
        name = f"{code} ({attribute})" if attribute else code
        found.append(
            Seen(
                cause=f"dead:{code}:{attribute}",
                noun=f"dead letters: {name}",
                phrase=f"has {counted(count, 'dead letter')}: {name}",
                remedy=f"{explain.suggestion(code, code)} See: provgate dead list --target {target}",
                count=count,
            )
        )
    if held := held_count(reader, target):
        found.append(
            Seen(
                cause="held",
                noun="changes held by the safety brake",
                phrase=f"holds {counted(held, 'change')} back: more deletions and deactivations than usual within an hour",
                remedy=f"See: provgate held list --target {target}. If they are wanted: provgate held approve "
                f"--target {target}; if not, stop the cycle in Entra first.",
                count=held,
            )
        )
    return found


def _cause_of(fingerprint: str) -> tuple[str, str]:
    """Code and attribute of `schemas.events.Reason.fingerprint`; the names behind them are left out."""
    code, _, rest = fingerprint.partition(":")
    urn = _PATH_OF_URN.match(rest)
    return word(code) or "other", word(urn[1] if urn else "" if rest.startswith("urn:") else rest.partition(":")[0])


def _blocked(target: str, rows: Sequence[Waiting], now: float) -> list[Seen]:
    counts: Counter[tuple[str, str, bool]] = Counter()
    for row in rows:
        on = row.on.removeprefix(PRODUCTS)
        named = _FIRST_WORD.match(on)
        is_name = row.code.startswith("unknown_")
        if row.code not in _GO_BY_THEMSELVES and now - row.wished_at >= _GRACES.get(
            on, 0.0 if is_name else WAIT_GRACE_S
        ):
            inside = ", ".join(filter(None, (word(row.code), word(row.attribute))))
            counts[(named[0] if named else "something", inside, is_name)] += 1
    found = []
    for (thing, inside, is_name), count in counts.most_common():
        name = f"{thing} ({inside})" if inside else thing
        make = "Make it at the product, or correct the mapping in Entra. " if is_name else ""
        found.append(
            Seen(
                cause=f"blocked:{thing}:{inside}",
                noun=f"changes that wait for: {name}",
                phrase=f"has {counted(count, 'change')} that {'waits' if count == 1 else 'wait'} for: {name}",
                remedy=f"{make}They go on by themselves when it is there. See: provgate status {target}",
                count=count,
            )
        )
    return found


def _keys(reader: Reader, target: str, settings: TargetSettings, now: float) -> list[Seen]:
    rows = [row for row in reader.keys(target) if takes_secret(settings, row)]
    found = []
    for warning in expiry_warnings(rows, now):
        noun = "access key" if warning.kind == "key" else "client secret"
        when = "has ended" if warning.threshold == 0 else f"ends in {counted(warning.days_left, 'day')}"
        found.append(
            Seen(
                cause=f"{warning.kind}:{word(warning.key_id)}",
                noun=f"{noun} {word(warning.key_id)} ends",
                phrase=f"has the {noun} {word(warning.key_id)}, which {when}; without one Entra cannot write",
                remedy=f"Make a new one and enter it in Entra: provgate {warning.kind} new {target}. If this one is not "
                f"in use any more: provgate {warning.kind} revoke {word(warning.key_id)}",
                level=warning.threshold,
                reminds=False,
            )
        )
    return found


def _credential(served: Served, now: float) -> list[Seen]:
    """The product's own credential, where the connector knows its end (vendor requirement S7)."""
    held = served.credential
    if held is None:
        return []
    left_s = held.ends_at - now
    reached = [days for days in WARN_DAYS if left_s <= days * DAY_S]
    if not reached:
        return []
    what, days_left = _plain(held.what), math.floor(left_s / DAY_S)
    when = "has ended" if left_s <= 0 else f"ends in {counted(days_left, 'day')}"
    return [
        Seen(
            cause="credential",
            noun=f"{what} ends",
            phrase=f"has a {what} that {when} ({moment(held.ends_at)[:10]})",
            remedy=_plain(held.remedy),
            level=0 if left_s <= 0 else min(reached),
            reminds=False,
        )
    ]


def _plain(text: str) -> str:
    """A connector's own words, which are about a credential and never about a person."""
    return explain.sentence_of(explain.mask_message(text))


def look_at_all(*, bus_connected: bool, configuration_problems: int) -> Look:
    """What concerns all targets."""
    seen = []
    if not bus_connected:
        seen.append(
            Seen(
                cause="bus",
                noun="NATS cannot be reached",
                phrase="cannot reach NATS; Entra is answered, changes wait, none is lost",
                remedy="See what is wrong with: provgate check",
                grace_s=PRESENCE_GRACE_S,
            )
        )
    if configuration_problems:
        seen.append(
            Seen(
                cause="configuration",
                noun="the changed configuration file was refused",
                phrase=f"refused the changed configuration file ({counted(configuration_problems, 'problem')}) "
                "and goes on with the one before",
                remedy="All of them at once: provgate check",
            )
        )
    return Look(tuple(seen))


# ---- what of it is news


class News(Struct, kw_only=True):
    """What is to be said about one target. Pairs: as it is now, and how many it concerned when it was told last."""

    new: list[Seen] = []
    grown: list[tuple[Seen, Alert]] = []
    over: list[Alert] = []
    open: list[tuple[Seen, Alert]] = []

    def __bool__(self) -> bool:
        return bool(self.new or self.grown or self.over)


class Judged(Struct):
    """How the alerts of one target change. `put`, `drop`: whether anything is said or not; `told`: once `news` is said."""

    put: list[Alert]
    drop: list[str]
    news: News
    told: list[Alert]


def judge(held: Mapping[str, Alert], target: str, look: Look, now: float, *, digest_s: float) -> Judged:
    """Compare what is so with what was seen and told before. Pure.

    Args:
        held: the alerts of this target by cause.
        digest_s: what has only grown is said again after so long.
    """
    judged = Judged([], [], News(), [])
    seen = {one.cause: one for one in look.seen}
    for cause, one in seen.items():
        before = held.get(cause)
        alert = _opened(before, target, one, now)
        if alert != before:
            judged.put.append(alert)
        told = msgspec.structs.replace(
            alert, told_at=now, told_count=one.count, told_level=one.level, text=f"{one.noun}"
        )
        if alert.told_at is None or one.level < alert.told_level:
            if now - alert.opened_at >= one.grace_s:
                judged.news.new.append(one)
                judged.told.append(told)
            continue
        judged.news.open.append((one, alert))
        since = now - alert.told_at
        if (one.count > alert.told_count and since >= digest_s) or (one.reminds and since >= REMIND_AFTER_S):
            judged.news.grown.append((one, alert))
            judged.told.append(told)
    for cause, alert in held.items():
        if cause not in seen and cause not in look.unsure:
            _gone(judged, alert, now)
    return judged


def _opened(before: Alert | None, target: str, one: Seen, now: float) -> Alert:
    if before is None or (before.over_at is not None and now - before.over_at >= QUIET_AFTER_OVER_S):
        return Alert(target=target, cause=one.cause, opened_at=now, count=one.count, level=one.level)
    if before.over_at is not None:  # told as over a while ago: for the next digest
        return msgspec.structs.replace(
            before, opened_at=now, gone_at=None, over_at=None, count=one.count, level=one.level, told_count=0
        )
    return msgspec.structs.replace(before, gone_at=None, count=one.count, level=one.level)


def _gone(judged: Judged, alert: Alert, now: float) -> None:
    if alert.over_at is not None:
        if now - alert.over_at >= FORGET_OVER_S:
            judged.drop.append(alert.cause)
        return
    if alert.told_at is None:
        judged.drop.append(alert.cause)
        return
    if alert.gone_at is None:
        alert = msgspec.structs.replace(alert, gone_at=now)
        judged.put.append(alert)
    if now - (alert.gone_at or now) < OVER_AFTER_S:
        return
    ended = msgspec.structs.replace(alert, over_at=now, told_at=now)
    if not alert.told_count:  # it came back and went again, and nobody was told of that
        judged.put.append(ended)
        return
    judged.news.over.append(alert)
    judged.told.append(ended)


# ---- in words


class Written(Struct, frozen=True):
    """A mail's text. `kind`: `new`, `over` or `digest`."""

    kind: str
    subject: str
    body: str


def write(target: str, news: News, now: float, *, place: str) -> Written:
    """The mail about one target.

    Args:
        target: its name, or ALL_TARGETS.
        place: how this gateway is called from outside, so that several installations are told apart.
    """
    name = target or "the gateway"
    kind = "new" if news.new else "digest" if news.grown else "over"
    lines: list[str] = []
    if news.new:
        lines += ["New:", "", *_each([_entry(name, one) for one in news.new])]
    if news.grown:
        grown = [_entry(name, one, _since(one, alert, now)) for one, alert in news.grown]
        lines += ["Still so:", "", *_each(grown)]
    if news.over:
        over = [f"  {alert.text}: {_ended(alert, now)}." for alert in news.over]
        lines += ["Over:", "", *_each([[line, ""] for line in over])]
    said = {one.cause for one, _ in news.grown}
    rest = [(one, alert) for one, alert in news.open if one.cause not in said]
    if rest:
        lines += ["Told before and still so:", ""]
        lines += [f"  {name} {one.phrase}." for one, _ in rest[:SHOWN_MAX]]
        lines += [*_more(len(rest)), ""]
    lines += [
        "-- ",
        f"Provgate at {place}" if place else "Provgate",
        f"Everything about it: provgate {f'target show {target}' if target else 'status'}",
    ]
    return Written(kind, f"[Provgate] {_subject(name, news)}", "\n".join(lines) + "\n")


def _subject(name: str, news: News) -> str:
    if news.new:
        return f"{name} {news.new[0].phrase}" if len(news.new) == 1 else f"{name}: {len(news.new)} new problems"
    if news.grown:
        first = news.grown[0][0]
        return f"still: {name} {first.phrase}" if len(news.grown) == 1 else f"{name}: still {len(news.grown)} problems"
    return (
        f"{name}, over: {news.over[0].text}" if len(news.over) == 1 else f"{name}: {len(news.over)} problems are over"
    )


def _entry(name: str, one: Seen, more: str = "") -> list[str]:
    return [f"  {name} {one.phrase}.{f' {more}' if more else ''}", f"    {one.remedy}", ""]


def _since(one: Seen, alert: Alert, now: float) -> str:
    added = one.count - alert.told_count
    if not alert.told_count:
        return f"It is back since {duration(now - alert.opened_at)}."
    grown = f", {added:,} more than told before" if added > 0 else ""
    return f"Since {duration(now - alert.opened_at)}{grown}."


def _ended(alert: Alert, now: float) -> str:
    gone_at = alert.gone_at or now
    return f"over since {moment(gone_at)}, after {duration(gone_at - alert.opened_at)}"


def _each(entries: Sequence[Sequence[str]]) -> list[str]:
    return [line for entry in entries[:SHOWN_MAX] for line in entry] + _more(len(entries))


def _more(count: int) -> list[str]:
    return [f"  and {count - SHOWN_MAX:,} more", ""] if count > SHOWN_MAX else []
