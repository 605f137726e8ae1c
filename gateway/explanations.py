"""What a person is told: about a target, about a resource, about a cause. Pure functions, no I/O.

The operators' API, the command line and later the console say the same things in the same words, because they say them from here.
Values of people are masked here too, and only here.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec import Struct

from gateway.lifecycle import Row, TargetRow
from schemas.masking import OBJECT_ID
from schemas.masking import is_personal as is_personal
from schemas.masking import mask as mask
from schemas.states import FOR_A_PERSON, SHADOW, WAITING, Circuit, State

Light = Literal["green", "yellow", "red", "grey"]

KEY_WARN_DAYS = 30
"""The last key of a target is named in the status from so many days before its end; `gateway/expiry.py` speaks of each key."""
CREDENTIAL_WARN_DAYS = 30
"""A product's credential is spoken of from so many days before its end on; to change one takes people on both sides."""
DAY_S = 86_400.0
SHOWN_NAMES_MAX = 3
"""How many targets the one sentence names before it only counts."""


# ---- times and counts in words


def duration(seconds: float) -> str:
    """A length of time as people say it: `4 s`, `12 min`, `3 h 20 min`, `5 days`."""
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 100:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{hours // 24} days"


def counted(count: int, one: str, many: str = "") -> str:
    """`1 change`, `2 changes`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def moment(at: float) -> str:
    """An epoch time in UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


# ---- targets


class Credential(Struct, frozen=True):
    """A credential that a product gave us. `ends_at`: epoch seconds; `remedy`: what a person does about it."""

    what: str
    ends_at: float
    remedy: str


class Served(Struct, frozen=True):
    """What the workers' presence says of one target.

    Args:
        workers: ids of the workers that take its events.
        problems: why workers that know it do not.
        credential: when the product's credential ends, where the connector knows.
        kept: why workers that serve it do so as it was configured before.
        rights_settle_s: see `schemas.specs.Spec`.
    """

    workers: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    credential: Credential | None = None
    kept: tuple[str, ...] = ()
    rights_settle_s: float = 0.0


BOUGHT = ("licence", "seat")
"""What a connector waits for that comes only when a person does something at the product."""


class Problem(Struct, frozen=True):
    """Something that keeps a target from being all right.

    Args:
        red: nothing gets through; otherwise only some things do not.
        phrase: goes after the target's name: `is down since 12 min`.
        remedy: what to do about it.
    """

    code: str
    red: bool
    phrase: str
    remedy: str

    @property
    def stops(self) -> bool:
        """Whether changes wait because of it."""
        return self.red or self.code in ("paused", "circuit_auth")


def served_by(presences: Iterable[Mapping[str, Any]], target: str) -> Served:
    """Which workers serve a target, out of the presence documents of all workers."""
    workers: list[str] = []
    problems: list[str] = []
    kept: list[str] = []
    credential: Credential | None = None
    rights_settle_s = 0.0
    for presence in presences:
        targets = presence.get("targets")
        entry = targets.get(target) if isinstance(targets, dict) else None
        if not isinstance(entry, dict):
            continue
        if entry.get("serving"):
            workers.append(str(presence.get("worker", "")))
            rights_settle_s = max(rights_settle_s, _rights_settle_s(entry.get("spec")))
            kept += [str(problem) for problem in entry.get("problems", ())]
            found = _credential(entry.get("credential"))
            # While workers know different ones, e.g. in the middle of a change, the one that ends first is spoken of.
            if found is not None and (credential is None or found.ends_at < credential.ends_at):
                credential = found
        else:
            problems += [str(problem) for problem in entry.get("problems", ())]
    return Served(
        tuple(sorted(workers)),
        tuple(dict.fromkeys(problems)),
        credential,
        tuple(dict.fromkeys(kept)),
        rights_settle_s,
    )


def _rights_settle_s(spec: Any) -> float:
    said = spec.get("rights_settle_s") if isinstance(spec, dict) else None
    return float(said) if isinstance(said, (int, float)) else 0.0


def _credential(said: Any) -> Credential | None:
    try:
        return None if said is None else msgspec.convert(said, Credential)
    except msgspec.ValidationError:  # a worker of another version
        return None


def problems_of(
    name: str,
    target: TargetRow,
    served: Served,
    counts: Mapping[str, int],
    key_days_left: int | None,
    keys_known: bool,
    now: float,
    *,
    client_days_left: int | None = None,
    clients_known: bool = False,
    other_ways: bool = False,
    short_of: Mapping[str, int] = {},
) -> list[Problem]:
    """Everything a person should know about a target, worst first; empty when it works.

    Args:
        key_days_left: days until the last access key ends; `client_days_left` the same of the last client secret.
        keys_known: whether access keys are a way to sign in at this target; `clients_known` the same of client secrets.
        other_ways: whether Entra can also sign in without either.
        short_of: changes that wait for something of BOUGHT, by that.
    """
    found: list[Problem] = []
    if not served.workers:
        why = f" ({served.problems[0]})" if served.problems else ""
        remedy = (
            "Correct it, then: provgate check. The file is read again by itself; a new environment variable needs a new start"
            if served.problems
            else f"Start one: provgate worker --target {name}"
        )
        found.append(
            Problem(
                "no_worker",
                True,
                f"is served by no worker{why}",
                remedy,
            )
        )
    if target.circuit is not Circuit.CLOSED:
        since = duration(now - target.opened_at)
        refused = target.circuit is Circuit.AUTH
        settling_s = served.rights_settle_s - (now - target.opened_at) if refused else 0.0
        soon = f"It is tried again by itself, and an alert in {duration(settling_s)}: a right given just now takes a while. "
        found.append(
            Problem(
                f"circuit_{target.circuit.value}",
                settling_s <= 0,
                ("refuses our credentials or settings" if refused else "is down")
                + f" since {since} ({sentence_of(target.circuit_reason) or 'no reason given'})",
                f"{soon if settling_s > 0 else ''}Correct the credential or setting, then: provgate target probe {name}"
                if refused
                else f"It is probed by itself; at once with: provgate target probe {name}",
            )
        )
    if served.kept:
        phrase = f"works as it was configured before ({served.kept[0]})"
        found.append(
            Problem("configuration", False, phrase, "Correct the setting; see what is wrong with: provgate check")
        )
    if target.paused_by is not None:
        reason = f": {target.paused_reason}" if target.paused_reason else ""
        found.append(
            Problem("paused", False, f"is paused by {target.paused_by}{reason}", f"provgate target resume {name}")
        )
    held, dead = counts.get(State.HELD, 0), counts.get(State.DEAD, 0)
    if held:
        what = counted(held, "change")
        found.append(
            Problem("held", False, f"holds {what} back for your approval", f"provgate held list --target {name}")
        )
    if dead:
        what = counted(dead, "dead letter")
        found.append(Problem("dead", False, f"has {what}", f"provgate dead list --target {name}"))
    for thing, count in short_of.items():
        what = f"{counted(count, 'change')} that {'waits' if count == 1 else 'wait'} for a {thing}"
        remedy = f"Free one at the product or buy one; they go on by themselves. See: provgate status {name}"
        found.append(Problem(thing, False, f"has {what}", remedy))
    both = keys_known and clients_known
    if keys_known:
        spare = other_ways or (both and client_days_left is not None)
        found += _key_problems("key", "key", name, key_days_left, spare)
    if clients_known:
        spare = other_ways or both  # without keys either, that is said of the keys
        found += _key_problems("client", "client secret", name, client_days_left, spare)
    if served.credential is not None:
        found += _credential_problems(served.credential, now)
    return sorted(found, key=lambda problem: not problem.red)


def _credential_problems(credential: Credential, now: float) -> list[Problem]:
    """From CREDENTIAL_WARN_DAYS before the end; whether the product still takes it is the circuit's to say."""
    left_s = credential.ends_at - now
    if left_s > CREDENTIAL_WARN_DAYS * DAY_S:
        return []
    days_left = math.floor(left_s / DAY_S)
    if days_left < 0:
        phrase = f"has a {credential.what} that ended {counted(-days_left, 'day')} ago"
    else:
        phrase = f"has a {credential.what} that ends in {counted(days_left, 'day')}"
    return [Problem("credential", False, phrase, credential.remedy)]


def _key_problems(command: str, noun: str, name: str, days_left: int | None, spare: bool) -> list[Problem]:
    """What is to be said of the keys or client secrets of a target; `spare`: Entra can do without."""
    if days_left is None:
        if spare:
            return []
        phrase = f"has no {noun}, so Entra cannot write"
    elif days_left > KEY_WARN_DAYS:
        return []
    elif days_left < 0:
        phrase = f"has a {noun} that ended {counted(-days_left, 'day')} ago"
    else:
        phrase = f"has a {noun} that ends in {counted(days_left, 'day')}"
    return [Problem(command, False, phrase, f"provgate {command} new {name}")]


def light_of(problems: Sequence[Problem], *, enabled: bool) -> Light:
    """Red: nothing gets through. Yellow: something needs a person. Grey: switched off in the configuration."""
    if not enabled:
        return "grey"
    if any(problem.red for problem in problems):
        return "red"
    return "yellow" if problems else "green"


def status_sentence(
    problems: Mapping[str, Sequence[Problem]],
    waiting: Mapping[str, int],
    *,
    bus_connected: bool,
    only: str | None = None,
) -> str:
    """The one plain sentence above everything else.

    Args:
        problems: of every enabled target, by name.
        waiting: how many changes wait, by target.
        only: the target that was asked about, when it was one of perhaps several.
    """
    if not problems and only is not None:
        return f"{only} is switched off in the configuration file."
    if not problems:
        return "No target is configured; add a [targets.<name>] section to the configuration file."
    if not bus_connected:
        return f"NATS cannot be reached; {_waits(sum(waiting.values()))}."
    wrong = {name: found for name, found in problems.items() if found}
    if not wrong:
        if only is not None:
            return f"{only} is working."
        if len(problems) == 1:
            return f"The only target, {next(iter(problems))}, is working."
        return f"All {len(problems)} targets are working."
    ordered = sorted(wrong.items(), key=lambda item: (not item[1][0].red, -waiting.get(item[0], 0)))
    phrases = []
    for name, found in ordered[:SHOWN_NAMES_MAX]:
        wait = waiting.get(name, 0)
        phrases.append(f"{name} {found[0].phrase}" + (f", {_waits(wait)}" if found[0].stops and wait else ""))
    if len(wrong) == 1:
        return phrases[0] + "."
    more = len(ordered) - SHOWN_NAMES_MAX
    tail = f"; and {more} more" if more > 0 else ""
    return f"{len(wrong)} of {len(problems)} targets need attention: {'; '.join(phrases)}{tail}."


def left_over_sentence(name: str, kept: int, waiting: int) -> str:
    """What became of a target that was taken out of the configuration."""
    waits = f", {counted(waiting, 'change')} of them not applied yet" if waiting else ""
    return (
        f"{name} is not in the configuration any more. Nothing of it was lost or removed at the product: "
        f"{counted(kept, 'resource')} {'is' if kept == 1 else 'are'} kept{waits}. Entra is turned away until "
        f"[targets.{name}] is there again; then everything goes on where it stopped."
    )


def _waits(count: int) -> str:
    if not count:
        return "nothing waits"
    return f"{counted(count, 'change')} {'waits' if count == 1 else 'wait'}, none is lost"


class Cause(Struct, frozen=True):
    """Why something waits: a stable code to group by, and a sentence."""

    code: str
    message: str


def standstill(target: TargetRow, served: Served, now: float, *, enabled: bool, bus_connected: bool) -> Cause | None:
    """What stops every queued and retrying change of a target, or None when they go out as their turn comes."""
    if not enabled:
        return Cause("disabled", "The target is switched off in the configuration.")
    if target.paused_by is not None:
        reason = f" ({target.paused_reason})" if target.paused_reason else ""
        return Cause("paused", f"Paused by {target.paused_by}{reason}.")
    if target.circuit is Circuit.AUTH:
        return Cause("circuit_auth", f"The product refuses our credentials or settings: {target.circuit_reason}")
    if target.circuit is Circuit.DOWN:
        return Cause("circuit_down", f"The product is down: {target.circuit_reason}")
    if not bus_connected:
        return Cause("bus", "NATS cannot be reached; sent as soon as it is back.")
    if not served.workers:
        return Cause("no_worker", "No worker serves this target.")
    if target.rest_until > now:
        rest = duration(target.rest_until - now)
        return Cause("rate_limited", f"The product asked for a rest; it goes on in {rest}.")
    return None


def waiting_cause(state: str, stopped: Cause | None, *, code: str, message: str, blocked_on: str | None) -> Cause:
    """Why one change, or a group of them that are alike, waits.

    Args:
        state: the resource's state.
        stopped: see `standstill`.
        code, message: of the resource's own reason, when it has one.
    """
    if state == State.DELIVERING:
        return Cause("delivering", "On its way: a worker has it or is about to.")
    if state == State.HELD:
        return Cause("held", "Stopped by the safety brake until you approve.")
    if state == State.BLOCKED:
        # rows that wait for a neighbour name its id; for a person these are one cause
        if code in ("identity_held", "account_of_another"):
            return Cause(code, sentence_of(message))
        if code in _REFERENCES:
            return Cause(code, _REFERENCES[code])
        if blocked_on == SHADOW:
            return Cause("shadow", "Rehearsed in shadow mode; delivered for real when it ends.")
        on = blocked_on or "something the product did not name"
        return Cause(f"blocked:{on}", sentence_of(message) or f"Waits for {on}.")
    if stopped is not None:
        return stopped
    if state == State.RETRYING:
        return Cause(code or "retrying", sentence_of(message) or "Tried again after a transient failure.")
    return Cause("queued", "Waits for its turn.")


_REFERENCES = {
    "manager_missing": "Everything was applied but the manager, who has no account at the product yet; goes on by itself.",
    "member_missing": "All other members are in; the rest have no account at the product yet and follow by themselves.",
}

# ---- causes of dead letters

_SUGGESTIONS = {
    "exhausted": "The product failed for a long time. When it works again: provgate dead redrive --cause {cause}",
    "poison": "The connector could not handle the event. Read the history, then redrive after an upgrade.",
    "connector_bug": "A mistake in the connector. Read the history, report it, redrive after the fix.",
    "unreadable_event": "The document does not fit. Correct the value in Entra; its next write goes through by itself.",
    "invariant": "An internal rule stopped this resource. Read its history (provgate user show ID), then redrive.",
    "identity_cycle": "Rename one of the users to a free name in Entra first, then redrive.",
    "account_of_another": "Two users share the attribute the product knows accounts by. Correct one of them in Entra.",
    "account_exists": 'Rename or remove the existing account at the product, or allow adoption (adopt = "always"), then redrive.',
    "conflict": "Another account at the product has this name. Rename or remove it there, then redrive.",
    "misconfigured": "Correct the target's credential or setting, then redrive.",
}
_BY_WORD = (
    (
        ("role", "team", "group", "licence", "product", "catalogue"),
        "Create what is missing at the product, or correct the mapping in Entra, then: provgate dead redrive --cause {cause}",
    ),
    (("taken", "reserved", "already"), "Free the name at the product or change it in Entra, then redrive."),
)
_CORRECT_IN_ENTRA = (
    "Correct the value in Entra: its next write goes through by itself. Redrive only after a change at the product."
)


def suggestion(code: str, cause: str) -> str:
    """What to do about dead letters of one cause.

    Args:
        code: of the reason.
        cause: the fingerprint by which they are grouped; goes into the command.
    """
    text = _SUGGESTIONS.get(code, "")
    if not text:
        words = set(code.split("_"))
        text = next((known for names, known in _BY_WORD if words & set(names)), _CORRECT_IN_ENTRA)
    return text.format(cause=f"'{cause}'" if re.search(r"[^A-Za-z0-9_.:,-]", cause) else cause)


def sentence_of(text: str) -> str:
    """Text from outside, fit for one line: no control characters, cut to a bound."""
    plain = "".join(char if char.isprintable() else " " for char in text).strip()
    return plain if len(plain) <= MESSAGE_CHARS_MAX else plain[: MESSAGE_CHARS_MAX - 1] + "…"


MESSAGE_CHARS_MAX = 600


def no_target(name: str, configured: Iterable[str]) -> str:
    """What to tell whoever named a target that is not in the configuration, the nearest one first."""
    names = sorted(configured)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? Configured" if near else "configured"
    return f"There is no target {sentence_of(name)!r}; {hint}: {', '.join(names) or 'none'}."


# ---- one resource


class Condition(Struct, frozen=True):
    """One thing that is so, not so, or not known, and since when; the names of Kubernetes' conditions.

    Args:
        observed_generation: the generation this statement is about.
        since: epoch seconds; None when it is not known.
    """

    type: str
    status: Literal["True", "False", "Unknown"]
    observed_generation: int
    reason: str
    message: str = ""
    since: float | None = None


def conditions(row: Row, target: TargetRow, stopped: Cause | None) -> list[Condition]:
    """Accepted, Applied, ConnectorReady, DependenciesMet, InSync."""
    return [
        _accepted(row),
        _applied(row),
        Condition(
            "ConnectorReady",
            "True" if stopped is None else "False",
            row.generation,
            "Ready" if stopped is None else _camel(stopped.code),
            "" if stopped is None else stopped.message,
            _time(target.opened_at if target.circuit is not Circuit.CLOSED else target.closed_at),
        ),
        _dependencies(row),
        _in_sync(row),
    ]


def _accepted(row: Row) -> Condition:
    if row.state is State.REJECTED:
        return Condition("Accepted", "False", row.generation, "Refused", _message(row), _time(row.settled_at))
    told = row.acknowledged >= row.generation
    reason, message = ("Acknowledged", "") if told else ("NotToldYet", "Entra has not been told success.")
    return Condition("Accepted", "True", row.generation, reason, message, _time(row.modified_at))


def _applied(row: Row) -> Condition:
    if row.state in (State.APPLIED, State.GONE) and not row.open:
        reason = "Deleted" if row.state is State.GONE else "Applied"
        return Condition("Applied", "True", row.settled_generation, reason, "", _time(row.settled_at))
    reason = row.reason.code if row.reason is not None else row.state.value
    since = row.settled_at if row.state in FOR_A_PERSON else row.modified_at
    return Condition("Applied", "False", row.settled_generation, _camel(reason), _message(row), _time(since))


def _dependencies(row: Row) -> Condition:
    if row.state is State.BLOCKED:
        message = _message(row) or f"Waits for {row.blocked_on}."
        reason = row.reason.code if row.reason is not None else "Waiting"
        return Condition(
            "DependenciesMet",
            "False",
            row.generation,
            _camel(reason),
            message,
            _time(row.settled_at or row.modified_at),
        )
    return Condition("DependenciesMet", "True", row.generation, "NothingAwaited", "", _time(row.modified_at))


def _in_sync(row: Row) -> Condition:
    settled, since = row.settled_generation, _time(row.settled_at)
    if row.dirty or row.ambiguous:
        message = (
            "Something may have been done at the product without our knowing; it is looked at before the next write."
        )
        return Condition("InSync", "Unknown", settled, "LookedAtAgain", message, since)
    if row.issue:
        return Condition("InSync", "False", settled, "NeedsALook", sentence_of(row.issue), since)
    if row.observed_active is not None:
        message = f"The product shows active {str(row.observed_active).lower()}, which differs from what was asked."
        return Condition("InSync", "False", settled, "ActiveDiffers", message, since)
    if row.open or row.state not in (State.APPLIED, State.GONE):
        return Condition("InSync", "False", settled, "NotApplied", "", since)
    return Condition("InSync", "True", settled, "Confirmed", "", since)


class NextStep(Struct, frozen=True):
    """What happens next to a resource. `at`: epoch seconds, None when no time is known."""

    message: str
    at: float | None = None
    command: str = ""


def next_step(row: Row, stopped: Cause | None, now: float) -> NextStep:
    """What happens next, when, and what a person can do about it."""
    if row.in_flight is not None:
        return NextStep(f"A worker has it or is about to (fence {row.fence}).")
    if row.state is State.DEAD:
        return NextStep("Nothing by itself: redrive it, discard it, or let Entra write again.", None, _redrive(row))
    if row.state is State.HELD:
        return NextStep("Nothing until it is approved.", None, f"provgate held approve {row.id}")
    if row.state is State.REJECTED:
        return NextStep("Nothing: Entra was told the reason, and its next create starts anew.")
    if row.state is State.DETACHED:
        return NextStep("Nothing until Entra writes again: it was discarded.")
    if row.state in WAITING:
        if stopped is not None and row.state is not State.BLOCKED:
            return NextStep(stopped.message)
        if row.state is State.BLOCKED and row.blocked_on == SHADOW:
            return NextStep("Delivered for real when shadow mode ends.", None, f"provgate plan {row.target} {row.id}")
        verb = "Looked at" if row.state is State.BLOCKED else "Tried" if row.attempt else "Sent"
        again = f" again (attempt {row.attempt + 1})" if row.attempt else ""
        when = f"in {duration(row.next_at - now)}" if row.next_at > now else "as soon as there is room"
        return NextStep(f"{verb}{again} {when}.", row.next_at if row.next_at > now else None)
    if row.read_back_at is not None:
        return NextStep(f"Read back once in {duration(row.read_back_at - now)}.", row.read_back_at)
    return NextStep("Nothing: what was asked is applied.")


def _redrive(row: Row) -> str:
    return f"provgate dead redrive {row.id}"


def _message(row: Row) -> str:
    return sentence_of(row.reason.message) if row.reason is not None else ""


def _time(at: float) -> float | None:
    return at or None


def _camel(code: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", code) if part)


# ---- values of people

_ADDRESS = re.compile(r"([^\s@<>\"',;:()\[\]])[^\s@<>\"',;:()\[\]]*@([\w.-]+)")
_NUMBER = re.compile(OBJECT_ID + r"|\+?\d(?:[\s()./-]{0,2}\d){5,}(?![\w-])")
_SHORTEST_MASKED = 3
"""A value shorter than this inside a sentence is left alone: it would tear holes into ordinary words."""
FLAT_VALUES_MAX = 2_000


class Value(Struct, frozen=True):
    """One attribute in both halves; a half is None when it does not hold the attribute."""

    path: str
    asked: str | None
    confirmed: str | None
    masked: bool


def flatten(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every plain value of a document under its SCIM path, e.g. `name.givenName` or `emails[type eq "work"].value`."""
    for name, value in document.items():
        yield from _flatten(name, value)


def _flatten(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        joint = ":" if path.lower().startswith("urn:") and path.rsplit(":", 1)[-1][:1].isupper() else "."
        for name, inner in value.items():
            yield from _flatten(f"{path}{joint}{name}", inner)
    elif isinstance(value, list):
        seen: set[str] = set()
        for number, inner in enumerate(value):
            kind = inner.get("type") if isinstance(inner, dict) else None
            label = f'[type eq "{kind}"]' if kind else f"[{number}]"
            if label in seen:
                label += f"[{number}]"
            seen.add(label)
            yield from _flatten(path + label, inner)
    else:
        yield path, value


def both_halves(row: Row, *, show_values: bool) -> list[Value]:
    """What was asked beside what was confirmed, attribute by attribute; masked unless `show_values`."""
    asked = dict(flatten(msgspec.json.decode(row.document)))
    confirmed = dict(flatten(msgspec.json.decode(row.settled_document))) if row.settled_document is not None else {}
    paths = list(dict.fromkeys([*asked, *confirmed]))[:FLAT_VALUES_MAX]
    values = []
    for path in paths:
        hide = not show_values and is_personal(path)
        halves = [_shown(half.get(path), hide=hide) if path in half else None for half in (asked, confirmed)]
        values.append(Value(path, halves[0], halves[1], hide))
    return values


def mask_identity(text: str) -> str:
    """An identity (`attribute:value`) with its value masked."""
    attribute, colon, value = text.partition(":")
    return f"{attribute}{colon}{mask(value)}" if colon else mask(text)


def mask_account(account_id: str | None, documents: Iterable[bytes | None]) -> str | None:
    """The product's id of an account, masked when it is a person's value itself (an e-mail address, a telephone number)."""
    if account_id is None:
        return None
    spelled = {_spelled(value) for value in _personal_values(documents)}
    return mask(account_id) if "@" in account_id or _spelled(account_id) in spelled else account_id


def _spelled(text: str) -> str:
    """The same for values that differ only in letter case and punctuation."""
    return "".join(char for char in text.casefold() if char.isalnum())


def _personal_values(documents: Iterable[bytes | None]) -> set[str]:
    return {
        value
        for body in documents
        if body
        for path, value in flatten(msgspec.json.decode(body))
        if isinstance(value, str) and is_personal(path)
    }


def mask_message(text: str, documents: Iterable[bytes | None] = ()) -> str:
    """A sentence of a product or connector without a person's values.

    Masked are the personal values of the given documents, and whatever looks like a mail address or a telephone number.
    """
    for value in sorted((v for v in _personal_values(documents) if len(v) >= _SHORTEST_MASKED), key=len, reverse=True):
        if value in text:
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", lambda found: mask(found[0]), text)
    text = _ADDRESS.sub(r"\1•••@\2", text)
    return _NUMBER.sub(lambda found: mask(found[0]), text)  # which leaves an object id whole


def _shown(value: Any, *, hide: bool) -> str:
    if isinstance(value, str):
        return mask(value) if hide and value else value
    text = msgspec.json.encode(value).decode()
    return "•••" if hide and value is not None and not isinstance(value, bool) else text
