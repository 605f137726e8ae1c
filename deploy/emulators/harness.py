"""What every vendor emulator shares: control calls, faults, clock, rate limit, journal, and state that survives kill -9.

An emulator is one file beside this one, named like the product, with one subclass of `Emulator` that says which routes,
settings and error bodies the product has. Everything the vendor holds lives in `Tables` and is changed only by `Emulator.effect`
(a client's write) or `Emulator.control` (a test's or the vendor's own doing); both append to the journal first, so a restarted
emulator rebuilds its state by reading the journal again.

Control calls, all under `/__emu/`, answered without credentials, delay, limit or faults:

    POST   reset                                   first state again; the journal goes on
    POST   seed       {table: [...]}               vendor's own shapes, see each emulator
    GET    state                                   what the vendor holds, by table
    GET    requests   ?since_seq=                  recorded calls, newest REQUESTS_MAX
    POST   clock      {"advance_s": n, "frozen": b}
    POST   faults     Fault | {"faults": [...]}    -> {"ids": [...]};   GET lists;   DELETE ?id= clears one or all
    GET    journal    ?kind=&op=&account_id=&natural_key=&since_seq=
    GET    violations                              what no correct client does;   DELETE clears
    POST   settings   {name: value}
    POST   token      {"revoked": b, "token": new, "effective_in_s": n}
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import fcntl
import hashlib
import hmac
import logging
import os
import random
import re
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from aiohttp import web

REQUESTS_MAX = 20_000
JOURNAL_LINES_IN_MEMORY_MAX = 2_000_000
VIOLATIONS_MAX = 10_000
PAST_MAX = 20_000
IDEMPOTENCY_KEYS_MAX = 200_000
BODY_BYTES_MAX = 1_048_576
DELAY_MAX_S = 3_600.0
LOCK_WAIT_MAX_S = 1.0
SHUTDOWN_WAIT_S = 0.5
IDEMPOTENCY_KEEP_S = 86_400.0
RATE_WINDOW_S = 1.0
# Calls a client spaced correctly may bunch up on their way here; without this slack the limit would punish the network.
RATE_JITTER_S = 0.1

FaultKind = Literal[
    "status", "rate_limit", "slow", "reset", "drop_response", "truncate", "html", "stale_read", "auth"
]  # by the names a fault is asked for
Rows = dict[str, dict[str, Any]]
Change = tuple[str, str, Any] | tuple[str, str]  # (table, key, record) puts, (table, key) removes

_MISSING = object()
_log = logging.getLogger(__name__)


class Match(msgspec.Struct, forbid_unknown_fields=True):
    """Which calls a fault hits. Empty fields match everything.

    `path` is a regular expression tried from the start of the path, so a plain prefix works as it stands and `$` makes it exact.
    `contains` is a text that must occur in the query or the body: one poisoned person among many.
    """

    method: str | None = None
    path: str = ""
    contains: str = ""


class Fault(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One way the vendor misbehaves, for the calls that match. The first armed fault that matches wins.

    `times` counts down to nothing (null: until cleared), `skip` lets that many matching calls pass first, `probability`
    with `seed` draws the same numbers in every run. `when` applies to status, html, slow and reset: `before` never writes,
    `after` writes first. `delay_s` adds to any kind. `honest_length` makes a truncated body end like a whole one.
    """

    kind: FaultKind
    match: Match = msgspec.field(default_factory=Match)
    times: Annotated[int, msgspec.Meta(ge=1)] | None = None
    skip: Annotated[int, msgspec.Meta(ge=0)] = 0
    probability: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    seed: int = 0
    when: Literal["before", "after"] = "before"
    status: Annotated[int, msgspec.Meta(ge=200, le=599)] = 503
    body: Any = None
    headers: dict[str, str] = {}
    retry_after: int | str | None = 1
    delay_s: Annotated[float, msgspec.Meta(ge=0, le=DELAY_MAX_S)] = 0.0
    lag_s: Annotated[float, msgspec.Meta(ge=0)] = 5.0
    honest_length: bool = False


class _Armed:
    """A fault with what it has already done."""

    def __init__(self, number: int, fault: Fault) -> None:
        self.id = number
        self.fault = fault
        self.path = re.compile(fault.match.path)
        self.random = random.Random(fault.seed)
        self.matched = 0
        self.hits = 0

    def strikes(self, call: Call) -> bool:
        """Whether this call is hit; counts it."""
        wanted = self.fault.match
        if wanted.method is not None and wanted.method.upper() != call.method:
            return False
        if not self.path.match(call.path):
            return False
        if wanted.contains and wanted.contains not in call.query_text and wanted.contains.encode() not in call.raw:
            return False
        if self.fault.times is not None and self.hits >= self.fault.times:
            return False
        self.matched += 1
        if self.matched <= self.fault.skip:
            return False
        if self.fault.probability < 1 and self.random.random() >= self.fault.probability:
            return False
        self.hits += 1
        return True

    def view(self) -> dict[str, Any]:
        """For GET /__emu/faults."""
        shown: dict[str, Any] = msgspec.to_builtins(self.fault)
        return {"id": self.id, "matched": self.matched, "hits": self.hits, **shown}


class Refusal(Exception):
    """The vendor refuses a call. `reason` is the harness's word, which each emulator turns into its own error body.

    With `violation` the refusal is also recorded as something no correct client does.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        field: str | None = None,
        violation: bool = False,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.message = message
        self.field = field
        self.violation = violation
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})


class Answer(msgspec.Struct):
    """What the vendor answers: `body` is encoded as JSON, None sends no body."""

    status: int
    body: Any = None
    headers: dict[str, str] = {}
    content_type: str | None = None


class Call:
    """One request of a client, with what the harness found out about it."""

    def __init__(self, request: web.BaseRequest, raw: bytes, seq: int, at: float, rows: Rows) -> None:
        self.request = request
        self.method = request.method
        self.path = request.path
        self.query_text = request.query_string
        self.raw = raw
        self.seq = seq
        self.arrived_at = at
        self.at = at
        self.rows = rows
        self.params: dict[str, str] = {}
        self.scopes: frozenset[str] = frozenset()
        self.replayed = False

    @property
    def idempotency_key(self) -> str | None:
        """The Idempotency-Key header, if the client sent one."""
        return self.request.headers.get("Idempotency-Key")

    @property
    def authorization(self) -> str:
        """The Authorization header as sent; never journaled."""
        return self.request.headers.get("Authorization", "")

    @property
    def base_url(self) -> str:
        """Address the client used, without a path."""
        return f"http://{self.request.host}"

    def query(self, known: Collection[str]) -> dict[str, str]:
        """Query parameters; one the vendor does not know is a violation."""
        found = dict(self.request.query)
        for name in found:
            if name not in known:
                raise _wrong_name(name, known, "unknown_parameter", "query parameter")
        return found

    def json(self, content_types: Collection[str] = ("application/json",)) -> dict[str, Any]:
        """The body as a JSON object. Raises Refusal 415 for another content type, 400 for anything but an object."""
        if self.request.content_type not in content_types:
            raise Refusal(415, "content_type", f"Send one of: {', '.join(content_types)}", violation=True)
        try:
            body = msgspec.json.decode(self.raw)
        except msgspec.DecodeError:
            raise Refusal(400, "not_json", "The body is not valid JSON", violation=True) from None
        if not isinstance(body, dict):
            raise Refusal(400, "not_json", "The body is not a JSON object", violation=True)
        return body


class Route(msgspec.Struct, frozen=True):
    """One vendor call. `template` holds `{name}` for a path segment.

    `authenticated` and `metered` are off for token endpoints; `idempotent` makes a repeated Idempotency-Key replay the first
    answer for 24 h instead of acting again.
    """

    method: str
    template: str
    answer: Callable[[Call], Answer]
    authenticated: bool = True
    metered: bool = True
    idempotent: bool = False


class Setting(msgspec.Struct, frozen=True):
    """A switch of the emulator: changed at start, by POST /__emu/settings, and kept over a restart."""

    default: Any
    type: Any
    note: str


class Clock:
    """The emulator's time: seconds since the epoch, moved by tests, never by changes of the machine's clock."""

    def __init__(self) -> None:
        self._start = time.time() - time.monotonic()
        self._frozen_at: float | None = None
        self.offset_s = 0.0

    def now(self) -> float:
        """Seconds since the epoch in emulator time."""
        ticking = time.monotonic() if self._frozen_at is None else self._frozen_at
        return self._start + ticking + self.offset_s

    def advance(self, seconds: float) -> None:
        """Jump forward; a frozen clock stays frozen at the new time."""
        self.offset_s += seconds

    def freeze(self, frozen: bool) -> None:
        """Stop or start the clock; stopped, it moves only by `advance`."""
        if frozen and self._frozen_at is None:
            self._frozen_at = time.monotonic()
        elif not frozen and self._frozen_at is not None:
            self.offset_s -= time.monotonic() - self._frozen_at
            self._frozen_at = None


class Tables:
    """Everything the vendor holds: table -> key -> record. Records are replaced, never changed in place: the past stays."""

    def __init__(self, first: Mapping[str, Mapping[str, Any]]) -> None:
        self.rows: Rows = {table: dict(records) for table, records in first.items()}
        self._past: deque[tuple[float, str, str, Any]] = deque(maxlen=PAST_MAX)

    def apply(self, at: float, changes: Iterable[Sequence[Any]]) -> None:
        """Put (table, key, record) and remove (table, key), remembering what was there before."""
        for change in changes:
            table, key = change[0], change[1]
            rows = self.rows.setdefault(table, {})
            self._past.append((at, table, key, rows.get(key, _MISSING)))
            if len(change) == 3:
                rows[key] = change[2]
            else:
                rows.pop(key, None)

    def as_of(self, at: float) -> Rows:
        """A copy of everything as it was at that emulator time; reaches back PAST_MAX changes."""
        rows = {table: dict(records) for table, records in self.rows.items()}
        for changed_at, table, key, before in reversed(self._past):
            if changed_at <= at:
                break
            if before is _MISSING:
                rows[table].pop(key, None)
            else:
                rows[table][key] = before
        return rows


class Journal:
    """Append-only record, one JSON object per line: effect, control, request, violation.

    With a file, every call is one `write` before the answer leaves, so what a client was told is on record even when the emulator
    is killed right after; the file is locked against a second emulator, and a line torn by a kill is cut off at the next start.
    Without a file the newest JOURNAL_LINES_IN_MEMORY_MAX lines are kept and `forgotten` counts the rest.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.forgotten = 0
        self._pending: list[bytes] = []
        self._lines: deque[bytes] = deque(maxlen=JOURNAL_LINES_IN_MEMORY_MAX)
        self._fd: int | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            self._lock()
            self._cut_torn_line()

    def _lock(self) -> None:
        assert self._fd is not None
        give_up_at = time.monotonic() + LOCK_WAIT_MAX_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if time.monotonic() >= give_up_at:
                    os.close(self._fd)
                    raise RuntimeError(f"{self.path} is in use by another emulator") from None
                time.sleep(0.05)

    def _cut_torn_line(self) -> None:
        assert self._fd is not None
        assert self.path is not None
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            os.ftruncate(self._fd, whole)

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line; it is on record after the next `flush`."""
        self._pending.append(msgspec.json.encode(line))

    def flush(self) -> None:
        """Write the added lines in one go."""
        if not self._pending:
            return
        if self._fd is None:
            self.forgotten += max(0, len(self._lines) + len(self._pending) - JOURNAL_LINES_IN_MEMORY_MAX)
            self._lines.extend(self._pending)
        else:
            _write_all(self._fd, b"\n".join(self._pending) + b"\n")
        self._pending.clear()

    def lines(self) -> list[dict[str, Any]]:
        """Every line with all its fields, oldest first."""
        if self.path is not None:
            return journal_lines(self.path)
        return [msgspec.json.decode(line) for line in self._lines]

    def entries(self, *, since_seq: int = 0, **wanted: str | None) -> list[dict[str, Any]]:
        """Lines after `since_seq` whose fields equal those wanted, without the stored records (`changes`)."""
        filters = {name: value for name, value in wanted.items() if value is not None}
        return [
            {name: value for name, value in line.items() if name != "changes"}
            for line in self.lines()
            if line["seq"] > since_seq and all(line.get(name) == value for name, value in filters.items())
        ]

    def effects(self, *, since_seq: int = 0, **wanted: str | None) -> list[dict[str, Any]]:
        """The writes that really happened at the vendor, e.g. `effects(op="create", natural_key="447400123456")`."""
        return self.entries(since_seq=since_seq, kind="effect", **wanted)

    def close(self) -> None:
        """Write what is left and give the file free."""
        self.flush()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def journal_lines(path: Path) -> list[dict[str, Any]]:
    """Read a journal file, also while its emulator runs or after it was killed; a torn last line is left out."""
    content = path.read_bytes()
    return [msgspec.json.decode(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def _write_all(fd: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


def _wrong_name(name: str, known: Collection[str], reason: str, what: str) -> Refusal:
    twin = next((other for other in known if other.casefold() == name.casefold()), None)
    if twin is not None:
        return Refusal(
            400, "wrong_case", f"Unknown {what} {name!r}; it is written {twin!r}", field=name, violation=True
        )
    return Refusal(400, reason, f"Unknown {what} {name!r}", field=name, violation=True)


def check_fields(
    body: Mapping[str, Any], known: Mapping[str, type | tuple[type, ...]], required: Collection[str] = (), at: str = ""
) -> None:
    """Refuse fields the vendor does not know, keys in the wrong case, wrong JSON types and missing or blank required fields.

    `at` is the path of the object in the body, for messages ("name."). All refusals are violations.
    """
    for name, value in body.items():
        if name not in known:
            raise _wrong_name(at + name, [at + other for other in known], "unknown_field", "field")
        types = known[name]
        # bool is an int to Python, not to JSON.
        if not isinstance(value, types) or (isinstance(value, bool) and types is int):
            raise Refusal(
                400, "wrong_type", f"Field {at + name!r} has the wrong JSON type", field=at + name, violation=True
            )
    for name in required:
        value = body.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise Refusal(400, "missing_field", f"Field {at + name!r} is required", field=at + name, violation=True)


def iso_time(at: float) -> str:
    """Seconds since the epoch as RFC 3339 UTC with milliseconds."""
    moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def digest(token: str) -> str:
    """What is kept of a token: enough to recognize it, nothing to use."""
    return hashlib.sha256(token.encode()).hexdigest()


_TEMPLATE_PART = re.compile(r"\{(\w+)\}")


def _template_pattern(template: str) -> re.Pattern[str]:
    parts = _TEMPLATE_PART.split(template)
    return re.compile("".join(f"(?P<{part}>[^/]+)" if odd % 2 else re.escape(part) for odd, part in enumerate(parts)))


class Emulator:
    """One vendor. A subclass gives `name`, `SETTINGS`, `routes()`, `first_tables()`, `seed()` and `error_answer()`.

    Args:
        token: the fixed credential clients present; `demo-token-<name>` when not given.
        journal_dir: folder of `<name>.journal.jsonl`; without it nothing survives the process.
        settings: values for names in `settings_known()`, e.g. `rate_per_s=0`, `delay_ms=5`.
    """

    name: ClassVar[str]
    rate_per_s: ClassVar[float] = 0.0
    bearer_optional: ClassVar[bool] = False
    scopes_all: ClassVar[frozenset[str]] = frozenset()
    content_type: ClassVar[str] = "application/json"
    SETTINGS: ClassVar[Mapping[str, Setting]] = {}

    def __init__(self, *, token: str | None = None, journal_dir: Path | str | None = None, **settings: Any) -> None:
        self._known = self.settings_known()
        self._settings_first = {name: setting.default for name, setting in self._known.items()}
        self._settings_first.update(self._checked_settings(settings))
        self._token_first = token if token is not None else f"demo-token-{self.name}"
        self._routes = [(route, _template_pattern(route.template)) for route in self.routes()]
        self._controls = [(route, _template_pattern(route.template)) for route in self._all_controls()]
        self.clock = Clock()
        self.requests: deque[dict[str, Any]] = deque(maxlen=REQUESTS_MAX)
        self.violations: deque[dict[str, Any]] = deque(maxlen=VIOLATIONS_MAX)
        self._faults: list[_Armed] = []
        self._faults_made = 0
        self._calls: deque[float] = deque()
        self._seq = 0
        self.tables = Tables(self._first_tables())
        self.journal = Journal(None if journal_dir is None else Path(journal_dir) / f"{self.name}.journal.jsonl")
        if journal_dir is not None:
            self._replay()

    # What a subclass says ---------------------------------------------------------------------------------------------

    def routes(self) -> list[Route]:
        """The vendor's calls, tried in order."""
        raise NotImplementedError

    def control_routes(self) -> list[Route]:
        """Further control calls of this vendor, e.g. `/__emu/approve`."""
        return []

    def first_tables(self) -> Rows:
        """What a new account holds. Tables whose name starts with `_` are not shown in the state."""
        raise NotImplementedError

    def seed(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Put what a test wants to find, through `control`; what it made, for the answer of POST /__emu/seed."""
        raise NotImplementedError

    def error_answer(self, refusal: Refusal, call: Call) -> Answer:
        """The vendor's error body for a refusal; the call tells which of the vendor's interfaces answers."""
        raise NotImplementedError

    def tick(self) -> None:
        """What the vendor does by itself as time passes; called before every call, through `control`."""

    def token_scopes(self, token: str) -> frozenset[str] | None:
        """Scopes of a token other than the fixed one; None when it is not a token of ours."""
        del token
        return None

    # For subclasses and tests -----------------------------------------------------------------------------------------

    def settings_known(self) -> dict[str, Setting]:
        """Every setting with its default."""
        return {
            "rate_per_s": Setting(
                self.rate_per_s, Annotated[float, msgspec.Meta(ge=0)], "calls per second, 0 is unlimited"
            ),
            "delay_ms": Setting(
                0.0, Annotated[float, msgspec.Meta(ge=0, le=DELAY_MAX_S * 1000)], "latency of every call"
            ),
            **self.SETTINGS,
        }

    def setting(self, name: str) -> Any:
        """The present value of a setting."""
        return self.tables.rows["settings"][name]

    def set(self, **settings: Any) -> None:
        """Change settings; raises ValueError naming an unknown setting or a wrong type."""
        checked = self._checked_settings(settings)
        self.control("settings", [("settings", name, value) for name, value in checked.items()])

    def fault(self, kind: FaultKind, *, method: str | None = None, path: str = "", **options: Any) -> int:
        """Arm a fault from a test in the same process; the options are the fields of `Fault`. Returns its id."""
        match = {"method": method, "path": path, "contains": options.pop("contains", "")}
        return self.arm(msgspec.convert({"kind": kind, "match": match, **options}, Fault))

    def arm(self, fault: Fault) -> int:
        """Add a fault; its id."""
        self._faults_made += 1
        self._faults.append(_Armed(self._faults_made, fault))
        return self._faults_made

    def clear_faults(self, fault_id: int | None = None) -> None:
        """Remove one fault or all of them."""
        self._faults = [armed for armed in self._faults if fault_id is not None and armed.id != fault_id]

    def advance(self, seconds: float) -> None:
        """Move the emulator's clock forward."""
        self.clock.advance(seconds)
        self.control("clock", [], advance_s=seconds)
        self.tick()
        self.journal.flush()

    def revoke_token(self, *, revoked: bool = True, token: str | None = None, effective_in_s: float = 0.0) -> None:
        """Revoke or restore the fixed token, replace it, or let it take effect only later (a scope newly granted)."""
        held = dict(self.tables.rows["_credentials"]["fixed"])
        held["revoked"] = revoked
        held["effective_at"] = self.clock.now() + effective_in_s if effective_in_s else 0.0
        if token is not None:
            held["digest"] = digest(token)
        self.control("token", [("_credentials", "fixed", held)], revoked=revoked)

    def reset(self) -> None:
        """Back to the first state: no accounts, faults, violations or recorded calls; the journal goes on."""
        self._forget()
        self._faults.clear()
        self.requests.clear()
        self.control("reset", [])

    def state(self) -> dict[str, Any]:
        """What the vendor holds, by table, with the emulator's name and time."""
        self.tick()
        self.journal.flush()
        shown = {table: rows for table, rows in self.tables.rows.items() if not table.startswith("_")}
        return {**shown, "emulator": self.name, "now": self.clock.now()}

    def effect(
        self,
        call: Call,
        op: str,
        account_id: str,
        natural_key: str,
        values: Mapping[str, Any],
        changes: Sequence[Change],
        changed: Sequence[str] = (),
    ) -> None:
        """A client's write: journaled, then done. `changed` names the fields that are different afterwards."""
        self._record(
            "effect",
            changes,
            op=op,
            account_id=account_id,
            natural_key=natural_key,
            idempotency_key=call.idempotency_key,
            request=call.seq,
            method=call.method,
            values=values,
            changed=list(changed),
        )

    def control(self, op: str, changes: Sequence[Change], **facts: Any) -> None:
        """A change that no client asked for: journaled, then done."""
        self._record("control", changes, op=op, **facts)
        self.journal.flush()

    def violation(self, code: str, detail: str, call: Call | None = None) -> None:
        """Note something no correct client does."""
        entry = {
            "seq": self._next_seq(),
            "at": self.clock.now(),
            "kind": "violation",
            "code": code,
            "detail": detail,
            "method": call.method if call else None,
            "path": call.path if call else None,
        }
        self.violations.append(entry)
        self.journal.append(entry)

    # State and journal ------------------------------------------------------------------------------------------------

    def _first_tables(self) -> Rows:
        return {
            **self.first_tables(),
            "settings": dict(self._settings_first),
            "_credentials": {
                "fixed": {"digest": digest(self._token_first), "revoked": False, "effective_at": 0.0},
            },
            "_idempotency": {},
        }

    def _forget(self) -> None:
        self.tables = Tables(self._first_tables())
        self.clock.offset_s = 0.0
        self.clock.freeze(False)
        self.violations.clear()
        self._calls.clear()

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _record(self, kind: str, changes: Sequence[Change], **facts: Any) -> None:
        at = self.clock.now()
        line = {"seq": self._next_seq(), "at": at, "kind": kind, **facts}
        if changes:
            line["changes"] = changes
        self.journal.append(line)
        self.tables.apply(at, changes)

    def _replay(self) -> None:
        for line in self.journal.lines():
            self._seq = max(self._seq, line["seq"])
            if line["kind"] == "violation":
                self.violations.append(line)
            elif line["kind"] == "control" and line["op"] == "reset":
                self._forget()
            elif line["kind"] == "control" and line["op"] == "clock":
                self.clock.advance(line["advance_s"])
            elif line["kind"] == "control" and line["op"] == "violations_cleared":
                self.violations.clear()
            if "changes" in line:
                self.tables.apply(line["at"], line["changes"])

    def _checked_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        checked = {}
        for name, value in settings.items():
            if name not in self._known:
                raise ValueError(f"{self.name} has no setting {name!r}; it has {', '.join(sorted(self._known))}")
            plain = list(value) if isinstance(value, tuple) else value
            try:
                checked[name] = msgspec.to_builtins(msgspec.convert(plain, self._known[name].type))
            except msgspec.ValidationError as wrong:
                raise ValueError(f"setting {name!r} of {self.name}: {wrong}") from None
        return checked

    # Vendor calls -----------------------------------------------------------------------------------------------------

    async def respond(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one HTTP request: control or vendor."""
        raw = await request.read()
        call = Call(request, raw, self._next_seq(), self.clock.now(), self.tables.rows)
        if call.path.startswith("/__emu/"):
            return self._control_response(call)
        route, allowed = self._route_of(call)
        too_fast = self._too_fast(call, route)
        armed = None if too_fast else next((armed for armed in self._faults if armed.strikes(call)), None)
        fault = armed.fault if armed else None
        wait_s = float(self.setting("delay_ms")) / 1000
        if fault is not None and fault.when == "before":
            wait_s += fault.delay_s
        if wait_s:
            await asyncio.sleep(wait_s)
        answer = too_fast or self._answer(call, route, allowed, fault)
        self._note(call, answer, fault)
        if fault is not None and fault.when == "after" and fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        return await self._send(request, answer, fault)

    def _route_of(self, call: Call) -> tuple[Route | None, list[str]]:
        allowed = []
        for route, pattern in self._routes:
            found = pattern.fullmatch(call.path)
            if found is None:
                continue
            if route.method == call.method:
                call.params = found.groupdict()
                return route, []
            allowed.append(route.method)
        return None, allowed

    def _too_fast(self, call: Call, route: Route | None) -> Answer | None:
        """Count the call against the limit, over any RATE_WINDOW_S less the slack; the refusal when it is one too many."""
        rate = float(self.setting("rate_per_s"))
        if not rate or (route is not None and not route.metered):
            return None
        window_s = max(RATE_WINDOW_S, 1 / rate)
        calls = self._calls
        while calls and calls[0] <= call.at - (window_s - RATE_JITTER_S * window_s):
            calls.popleft()
        if len(calls) < int(max(1.0, rate)):
            calls.append(call.at)
            return None
        self.violation("rate_exceeded", f"more than {rate:g} calls per second", call)
        return self.error_answer(self.rate_refusal(), call)

    def rate_refusal(self) -> Refusal:
        """How the vendor says that calls come too fast."""
        return Refusal(429, "rate_limited", "Too many requests", headers={"Retry-After": "1"})

    def _answer(self, call: Call, route: Route | None, allowed: list[str], fault: Fault | None) -> Answer:
        """Decide the answer and do the write. Synchronous, so that no other call comes in between."""
        call.at = self.clock.now()
        call.rows = self.tables.rows
        if fault is not None:
            if fault.kind == "stale_read" and call.method in ("GET", "HEAD"):
                call.rows = self.tables.as_of(call.at - fault.lag_s)
            instead = self._injected(fault, call)
            if instead is not None and (fault.when == "before" or fault.kind in ("auth", "rate_limit")):
                return instead
        else:
            instead = None
        try:
            self.tick()
            answer = self._acted(call, route, allowed)
        except Refusal as refusal:
            if refusal.violation:
                self.violation(refusal.reason, refusal.message, call)
            answer = self.error_answer(refusal, call)
        except Exception as bug:
            self.violation("emulator_bug", f"{type(bug).__name__} in the emulator itself", call)
            _log.exception("%s: %s %s failed", self.name, call.method, call.path)
            answer = self.error_answer(Refusal(500, "emulator_bug", "The emulator failed"), call)
        return instead or answer

    def _injected(self, fault: Fault, call: Call) -> Answer | None:
        """The answer a fault puts in the place of the vendor's, None when the vendor's own is used."""
        if fault.kind == "status":
            if fault.body is not None:
                return Answer(fault.status, fault.body, dict(fault.headers), fault.headers.get("Content-Type"))
            answer = self.error_answer(Refusal(fault.status, "injected", HTTPStatus(fault.status).phrase), call)
            answer.headers = {**answer.headers, **fault.headers}
            return answer
        if fault.kind == "rate_limit":
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            answer = self.error_answer(Refusal(429, "rate_limited", "Too many requests"), call)
            answer.headers = headers
            return answer
        if fault.kind == "auth":
            return self.error_answer(Refusal(401, "unauthorized", "The credential was refused"), call)
        if fault.kind == "html":
            return Answer(502, _HTML_PAGE, dict(fault.headers), "text/html")
        if fault.kind == "reset":
            return Answer(0)
        return None

    def _acted(self, call: Call, route: Route | None, allowed: list[str]) -> Answer:
        if route is None:
            self._authenticate(call)
            if allowed:
                raise Refusal(
                    405,
                    "method_not_allowed",
                    f"{call.method} is not supported here",
                    violation=True,
                    headers={"Allow": ", ".join(allowed)},
                )
            raise Refusal(404, "unknown_path", "There is no such address", violation=True)
        if route.authenticated:
            self._authenticate(call)
        key = call.idempotency_key if route.idempotent else None
        if key is None:
            return route.answer(call)
        return self._once(call, route, key)

    def _authenticate(self, call: Call) -> None:
        scheme, _, token = call.authorization.partition(" ")
        if scheme.casefold() != "bearer":
            token = call.authorization if self.bearer_optional else ""
        token = token.strip()
        if not token:
            raise Refusal(401, "unauthorized", "No credential was sent", headers={"WWW-Authenticate": "Bearer"})
        fixed = self.tables.rows["_credentials"]["fixed"]
        if hmac.compare_digest(fixed["digest"], digest(token)):
            if not fixed["revoked"] and call.at >= fixed["effective_at"]:
                call.scopes = self.scopes_all
                return
        else:
            scopes = self.token_scopes(token)
            if scopes is not None:
                call.scopes = scopes
                return
        raise Refusal(401, "unauthorized", "The credential was refused", headers={"WWW-Authenticate": "Bearer"})

    def _once(self, call: Call, route: Route, key: str) -> Answer:
        """Act, or answer as the first time. Only successes are kept: what was refused may be tried again."""
        asked = hashlib.sha256(f"{call.method} {call.path}\n".encode() + call.raw).hexdigest()
        kept = self.tables.rows["_idempotency"]
        first = kept.get(key)
        if first is not None and call.at - first["at"] < IDEMPOTENCY_KEEP_S:
            if first["asked"] != asked:
                raise Refusal(422, "idempotency_key_reused", "This key came with another request", violation=True)
            call.replayed = True
            return Answer(first["status"], first["body"], {"Idempotent-Replayed": "true"})
        answer = route.answer(call)
        if answer.status < 300:
            record = {"at": call.at, "asked": asked, "status": answer.status, "body": answer.body}
            changes: list[Change] = [("_idempotency", key, record)]
            if len(kept) >= IDEMPOTENCY_KEYS_MAX:
                changes.append(("_idempotency", next(iter(kept))))
            self._record("control", changes, op="idempotency", idempotency_key=key)
        return answer

    def _note(self, call: Call, answer: Answer, fault: Fault | None) -> None:
        """Put the request, with the effect it had, on record in one write; the token is not part of it."""
        line = {
            "seq": self._next_seq(),
            "at": self.clock.now(),
            "kind": "request",
            "request": call.seq,
            "arrived_at": call.arrived_at,
            "method": call.method,
            "path": call.path,
            "query": call.query_text,
            "status": answer.status,
            "fault": fault.kind if fault else None,
            "idempotency_key": call.idempotency_key,
            "replayed": call.replayed,
        }
        self.journal.append(line)
        self.journal.flush()
        self.requests.append({**line, "content_type": call.request.headers.get("Content-Type"), "raw": call.raw})

    def recorded(self, since_seq: int = 0) -> list[dict[str, Any]]:
        """The recorded calls with their decoded bodies, oldest first."""
        shown = []
        for line in self.requests:
            if line["seq"] > since_seq:
                raw: bytes = line["raw"]
                try:
                    body = msgspec.json.decode(raw) if raw else None
                except msgspec.DecodeError:
                    # A form with a client secret is not repeated; what kind of body it was is in the content type.
                    body = None
                shown.append({**{name: value for name, value in line.items() if name != "raw"}, "body": body})
        return shown

    async def _send(self, request: web.BaseRequest, answer: Answer, fault: Fault | None) -> web.StreamResponse:
        if fault is not None and fault.kind == "reset":
            _cut(request, hard=True)
            return web.Response()
        if fault is not None and fault.kind == "drop_response":
            _cut(request, hard=False)
            return web.Response()
        response = self._response(answer)
        if fault is None or fault.kind != "truncate":
            return response
        whole = response.body if isinstance(response.body, bytes) else b""
        half = whole[: len(whole) // 2]
        if fault.honest_length:
            response.body = half
            return response
        partial = web.StreamResponse(status=answer.status, headers=response.headers)
        partial.content_length = len(whole) or 1
        await partial.prepare(request)
        await partial.write(half)
        _cut(request, hard=False)
        return partial

    def _response(self, answer: Answer) -> web.Response:
        body = answer.body
        if body is None:
            return web.Response(status=answer.status, headers=answer.headers)
        content_type = answer.content_type or self.content_type
        encoded = body.encode() if isinstance(body, str) and content_type == "text/html" else msgspec.json.encode(body)
        return web.Response(
            status=answer.status, body=encoded, headers={**answer.headers, "Content-Type": content_type}
        )

    # Control calls ----------------------------------------------------------------------------------------------------

    def _all_controls(self) -> list[Route]:
        return [
            Route("POST", "/__emu/reset", self._control_reset),
            Route("POST", "/__emu/seed", self._control_seed),
            Route("GET", "/__emu/state", lambda call: Answer(200, self.state())),
            Route("GET", "/__emu/requests", self._control_requests),
            Route("POST", "/__emu/clock", self._control_clock),
            Route("GET", "/__emu/faults", self._control_faults_list),
            Route("POST", "/__emu/faults", self._control_faults_add),
            Route("DELETE", "/__emu/faults", self._control_faults_clear),
            Route("GET", "/__emu/journal", self._control_journal),
            Route("GET", "/__emu/violations", lambda call: Answer(200, {"violations": list(self.violations)})),
            Route("DELETE", "/__emu/violations", self._control_violations_clear),
            Route("POST", "/__emu/settings", self._control_settings),
            Route("POST", "/__emu/token", self._control_token),
            *self.control_routes(),
        ]

    def _control_response(self, call: Call) -> web.Response:
        for route, pattern in self._controls:
            if route.method == call.method and (found := pattern.fullmatch(call.path)):
                call.params = found.groupdict()
                try:
                    answer = route.answer(call)
                except (ValueError, KeyError, TypeError, msgspec.MsgspecError, re.error) as wrong:
                    answer = Answer(400, {"error": str(wrong)})
                except Refusal as refusal:
                    answer = Answer(refusal.status, {"error": refusal.message})
                self.journal.flush()
                answer.content_type = "application/json"
                return self._response(answer)
        return self._response(Answer(404, {"error": f"no control call {call.method} {call.path}"}))

    def _control_reset(self, call: Call) -> Answer:
        self.reset()
        return Answer(200, {"seq": self._seq})

    def _control_seed(self, call: Call) -> Answer:
        return Answer(200, self.seed(_object(call)))

    def _control_requests(self, call: Call) -> Answer:
        return Answer(200, {"requests": self.recorded(int(call.request.query.get("since_seq", 0)))})

    def _control_clock(self, call: Call) -> Answer:
        wanted = msgspec.json.decode(call.raw, type=_ClockChange)
        if wanted.frozen is not None:
            self.clock.freeze(wanted.frozen)
        if wanted.advance_s:
            self.advance(wanted.advance_s)
        return Answer(200, {"now": self.clock.now()})

    def _control_faults_list(self, call: Call) -> Answer:
        return Answer(200, {"faults": [armed.view() for armed in self._faults]})

    def _control_faults_add(self, call: Call) -> Answer:
        asked = _object(call)
        faults = msgspec.convert(asked.get("faults", [asked]), list[Fault])
        return Answer(200, {"ids": [self.arm(fault) for fault in faults]})

    def _control_faults_clear(self, call: Call) -> Answer:
        fault_id = call.request.query.get("id")
        self.clear_faults(None if fault_id is None else int(fault_id))
        return Answer(200, {"faults": [armed.view() for armed in self._faults]})

    def _control_journal(self, call: Call) -> Answer:
        wanted = call.query(("kind", "op", "account_id", "natural_key", "idempotency_key", "since_seq"))
        since_seq = int(wanted.pop("since_seq", "0"))
        found = self.journal.entries(since_seq=since_seq, **wanted)
        return Answer(200, {"entries": found, "forgotten": self.journal.forgotten, "seq": self._seq})

    def _control_violations_clear(self, call: Call) -> Answer:
        self.violations.clear()
        self.control("violations_cleared", [])
        return Answer(200, {"violations": []})

    def _control_settings(self, call: Call) -> Answer:
        self.set(**_object(call))
        return Answer(200, self.tables.rows["settings"])

    def _control_token(self, call: Call) -> Answer:
        wanted = msgspec.json.decode(call.raw or b"{}", type=_TokenChange)
        self.revoke_token(revoked=wanted.revoked, token=wanted.token, effective_in_s=wanted.effective_in_s)
        return Answer(200, {"revoked": wanted.revoked})


class _ClockChange(msgspec.Struct, forbid_unknown_fields=True):
    advance_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    frozen: bool | None = None


class _TokenChange(msgspec.Struct, forbid_unknown_fields=True):
    revoked: bool = False
    token: str | None = None
    effective_in_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0


_HTML_PAGE = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>\n"


def _object(call: Call) -> dict[str, Any]:
    return msgspec.json.decode(call.raw or b"{}", type=dict[str, Any])


def _cut(request: web.BaseRequest, *, hard: bool) -> None:
    """Close the connection under the client: `hard` with a TCP reset, otherwise with an ordinary end."""
    transport = request.transport
    if transport is None:
        return
    if hard:
        # Through a duplicate of the descriptor, because uvloop's socket object refuses options; zero linger means reset.
        with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as twin:
            twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()


class Serving:
    """An emulator that answers on `url` until `close`."""

    def __init__(self, emulator: Emulator, runner: web.ServerRunner, url: str) -> None:
        self.emulator = emulator
        self.url = url
        self._runner = runner

    async def close(self) -> None:
        """Stop answering; calls in progress get SHUTDOWN_WAIT_S. The journal is written and free afterwards."""
        await self._runner.cleanup()
        self.emulator.journal.close()


async def serve(emulator: Emulator, *, port: int = 0, host: str = "127.0.0.1") -> Serving:
    """Start answering in the running event loop; port 0 takes a free one."""
    server = web.Server(emulator.respond, access_log=None)
    runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_WAIT_S)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError:
        await runner.cleanup()
        raise
    bound: int = runner.addresses[0][1]
    return Serving(emulator, runner, f"http://{host}:{bound}")


@contextlib.asynccontextmanager
async def running(emulator: Emulator, *, port: int = 0) -> AsyncIterator[str]:
    """`async with running(TalkdeskEmulator()) as url:` serves it on 127.0.0.1 for the length of the block."""
    serving = await serve(emulator, port=port)
    try:
        yield serving.url
    finally:
        await serving.close()
