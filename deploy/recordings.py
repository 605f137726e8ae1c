"""Record what the emulated Entra sends, and send a recording again elsewhere: `provgate entra record` and `… replay`.

A recording is a file of JSON lines: a heading, then every request with its answer, in the order in which they ended. It holds no
credentials, and no address: where an answer named the Tenant URL, `{tenant_url}` stands. It does hold the people that were sent;
those of the emulated directory are invented, those of a recording made with a real directory would be personal data.

A replay sends the same requests to another Tenant URL. The server there gives ids of its own, so ids that were recorded are
replaced by those that it gave for the same resource; then its answers are compared, without ids, times and versions.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote, unquote, urlsplit

import aiohttp
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from yarl import URL

from deploy.emulators import entra
from deploy.emulators.entra_sign_in import ClientCredentials, Credentials, SecretToken
from schemas.errors import ConfigurationError

FORMAT = 1
NOTE = (
    "Holds the people of the emulated directory, who are invented, and no credentials. "
    "A recording made with a real directory would hold personal data: treat it as such."
)
ANYWHERE = "{tenant_url}"
TOKEN_ENDPOINT = "{token_endpoint}"  # noqa: S105 a placeholder
RECORDING_BYTES_MAX = 512 * 1024 * 1024
ANSWER_BYTES_MAX = 8 * 1024 * 1024
ANSWER_WAIT_S = 30.0
UNANSWERED_MAX = 5
"""So many requests in a row without an answer end a replay."""
PLACES_MAX = 10
"""Places named per answer that differs."""
VALUE_CHARS_MAX = 60
SHOWN_MAX = 50
"""Differences in the table; JSON has them all."""

FINE, NOT_FINE, UNREACHABLE, REFUSED = 0, 1, 3, 4

VOLATILE = {"created", "lastmodified", "version"}
REFERENCES = {"id", "members", "manager", "groups", "$ref", "location"}
"""Attributes in which ids of the server stand."""
_CHANGING = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b[0-9a-f]{16,32}\b|\b[0-9A-HJKMNP-TV-Z]{26}\b"
    r"|\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)?"
)
"""Ids and times in the texts of errors."""
_FILTERED = re.compile(
    r'(?i)\b((?:id|members(?:\.value)?|manager(?:\.value)?)(?:\+|%20)eq(?:\+|%20)(?:%22|")?)([^&"%+]+)'
)


class RecordingError(ConfigurationError):
    """A file that cannot be written, or that is no recording."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(str(path), [problem])


class Heading(msgspec.Struct):
    """The first line of a recording."""

    recording: int
    """Version of the format."""
    recorded_at: str
    mapping: str
    dialect: str
    note: str = NOTE


class Recorded(msgspec.Struct, omit_defaults=True):
    """One request and its answer. `status` 0 says that no answer came."""

    n: int
    part: str
    """What it belongs to, such as `initial cycle`."""
    operation: str
    method: str
    path: str
    """Below the Tenant URL, as sent."""
    status: int
    query: str = ""
    headers: dict[str, str] = {}
    body: Any = None
    answer: Any = None
    """What the answer's JSON decodes to."""
    text: str = ""
    """The answer, when it was no JSON."""
    error: str = ""
    elapsed_s: float = 0.0


# ---- recording


class Recorder:
    """Writes a recording; readable by its owner only, and removed again when the recording fails.

    Raises:
        RecordingError: the file exists already or cannot be made.
    """

    def __init__(self, path: Path, base: str, heading: Heading) -> None:
        self.path = path
        self.part = ""
        self.count = 0
        self._base_path = urlsplit(base).path
        self._anywhere = anywhere(base)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise RecordingError(path, "exists already; name another file, or remove this one") from None
        except OSError as refused:
            raise RecordingError(path, f"cannot be written: {refused.strerror}") from None
        self._file: IO[bytes] = os.fdopen(handle, "wb")
        self._write(heading)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._file.close()
        if kind is not None:
            self.path.unlink(missing_ok=True)

    def take(self, exchange: entra.Exchange) -> None:
        """Write one request with its answer."""
        self.count += 1
        path, _, query = exchange.target.partition("?")
        path = TOKEN_ENDPOINT if exchange.operation == "token" else path.removeprefix(self._base_path)
        # what is sent to a token endpoint is of no use elsewhere, and about credentials
        body = "" if exchange.operation == "token" else exchange.request_body
        answer, text = _decoded(self._anywhere(exchange.response_body))
        self._write(
            Recorded(
                n=self.count,
                part=self.part,
                operation=exchange.operation,
                method=exchange.method,
                path=path,
                status=exchange.status,
                query=query,
                headers=exchange.request_headers,
                body=_decoded(self._anywhere(body))[0],
                answer=None if exchange.operation == "token" else answer,
                text=text,
                error=exchange.error,
                elapsed_s=round(exchange.elapsed_s, 6),
            )
        )

    def _write(self, line: Heading | Recorded) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()


def anywhere(base: str) -> Callable[[str], str]:
    """What takes a target's address out of a text, also under another host name (a public one, for example)."""
    own = re.compile(r"https?://[^\s\"/]+" + re.escape(urlsplit(base).path) + r"(?=[/\"?\s]|$)")
    return lambda text: own.sub(ANYWHERE, text.replace(base, ANYWHERE))


def _decoded(text: str) -> tuple[Any, str]:
    """What a text decodes to, or the text itself when it is no JSON."""
    if not text:
        return None, ""
    try:
        return msgspec.json.decode(text), ""
    except (msgspec.DecodeError, RecursionError):
        return None, text


class Wanted(msgspec.Struct, frozen=True):
    """What is to be recorded."""

    mapping: entra.Mapping
    people: int = 20
    groups: int = 2
    dialect: entra.Dialect = "legacy"
    changes: bool = True
    """After the initial cycle, two more with every kind of change, and a run on demand."""
    seed: int = 1


class RecordReport(msgspec.Struct):
    """What a recording came to."""

    file: str
    requests: int
    failed: int
    connection: entra.ConnectionTest
    states: dict[str, str]
    """By cycle, its state as Graph shows it."""
    note: str = NOTE


async def record_to(
    path: Path,
    tenant_url: str,
    credentials: Credentials,
    wanted: Wanted,
    on_progress: Callable[[str, int, int], None] = lambda part, done, total: None,
) -> RecordReport:
    """Run the emulated Entra against a target and record it.

    Args:
        on_progress: called with (part, done, total) after every object of a cycle.

    Raises:
        RecordingError: the file exists already or cannot be written.
        ValueError: the Tenant URL is none.
    """
    address = entra.TenantUrl.parse(tenant_url)
    dialect: entra.Dialect = "flag" if address.flagged else wanted.dialect
    people = entra.make_people(wanted.people, wanted.seed)
    groups = entra.make_groups(people, wanted.groups, wanted.seed)
    directory = entra.Directory(people, groups)
    heading = Heading(FORMAT, datetime.now(UTC).isoformat(timespec="seconds"), wanted.mapping.name, dialect)
    with Recorder(path, address.base, heading) as recorder:
        job = entra.ProvisioningJob(
            tenant_url,
            credentials,
            directory,
            wanted.mapping,
            dialect,
            seed=wanted.seed,
            escrow=entra.EVERY_CYCLE,
            provision_groups=bool(groups),
            probe_groups=bool(groups),
            on_exchange=recorder.take,
        )
        async with job:
            recorder.part = "test connection"
            test = await job.test_connection()
            report = RecordReport(str(path), 0, 0, test, {})
            if test.ok:
                recorder.part = "mapping page"
                await job.read_schemas()
                await _record_cycles(job, recorder, report, wanted, on_progress)
        report.requests = recorder.count
        return report


async def _record_cycles(
    job: entra.ProvisioningJob,
    recorder: Recorder,
    report: RecordReport,
    wanted: Wanted,
    on_progress: Callable[[str, int, int], None],
) -> None:
    async def cycle(part: str) -> None:
        recorder.part = part
        done = await job.incremental_cycle(lambda count, total: on_progress(part, count, total))
        report.states[part] = done.state
        report.failed += done.failed + done.failed_references

    await cycle("initial cycle")
    if not wanted.changes:
        return
    _change(job.directory)
    await cycle("changes")
    _change_back(job.directory)
    await cycle("returns and deletions")
    recorder.part = "on demand"
    first = next(iter(job.directory.people.values()), None)
    if first is not None:
        job.directory.set(first, surname="Recorded")
        report.failed += (await job.provision_on_demand(first)).status == "Failure"


def _change(directory: entra.Directory) -> None:
    """Somebody is changed, renamed, switched off, unassigned and deleted; a group is renamed and changes its members."""
    verbs: tuple[Callable[[entra.Person], object], ...] = (
        lambda person: directory.set(person, job_title="Lead", department="Recordings"),
        lambda person: directory.rename(person, f"renamed-{person.user_principal_name}"),
        directory.disable,
        directory.unassign,
        directory.soft_delete,
    )
    for person, verb in zip(list(directory.people.values()), verbs, strict=False):
        verb(person)
    for group in list(directory.groups.values())[:1]:
        directory.rename_group(group, f"{group.display_name} renamed")
        directory.remove_members(group, *group.members[:1])
        others = [object_id for object_id in directory.people if object_id not in group.members]
        directory.add_members(group, *others[-1:])


def _change_back(directory: entra.Directory) -> None:
    """Who was switched off or unassigned comes back, who was deleted is purged, the last group goes."""
    verbs: tuple[Callable[[entra.Person], object], ...] = (directory.enable, directory.assign, directory.hard_delete)
    for person, verb in zip(list(directory.people.values())[2:], verbs, strict=False):
        verb(person)
    for group in list(directory.groups.values())[1:][-1:]:
        directory.delete_group(group)


# ---- reading


def read_recording(path: Path) -> tuple[Heading, list[Recorded]]:
    """Read a recording.

    Raises:
        RecordingError: no such file, too large, or a line that is none of a recording.
    """
    try:
        if path.stat().st_size > RECORDING_BYTES_MAX:
            raise RecordingError(path, f"larger than {RECORDING_BYTES_MAX:,} bytes")
        first, *rest = path.read_bytes().splitlines() or [b""]
    except OSError as refused:
        raise RecordingError(path, f"cannot be read: {refused.strerror}") from None
    try:
        heading = msgspec.json.decode(first, type=Heading)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise RecordingError(path, "line 1: not the heading of a recording") from None
    if heading.recording != FORMAT:
        raise RecordingError(path, f"line 1: format {heading.recording} is not known here, only {FORMAT}")
    lines: list[Recorded] = []
    decoder = msgspec.json.Decoder(Recorded)
    for number, line in enumerate(rest, 2):
        try:
            lines.append(decoder.decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError) as wrong:
            raise RecordingError(path, f"line {number}: {wrong}") from None
    return heading, lines


# ---- replaying


class Difference(msgspec.Struct):
    """An answer that is not what was recorded."""

    n: int
    part: str
    method: str
    path: str
    recorded: int
    """Status; 0 when no answer came."""
    now: int
    places: list[str]
    """Where the bodies differ, at most `PLACES_MAX`."""
    detail: str = ""
    """What an error said."""


class ReplayReport(msgspec.Struct):
    """What a replay came to."""

    sent: int
    same: int
    skipped: int
    """Token requests, and requests whose answer was not recorded: sent where it matters, never compared."""
    differences: list[Difference]
    elapsed_s: float
    stopped: str = ""
    """Why it ended early."""
    refused: bool = False
    """It ended early because the key opens nothing."""

    @property
    def requests_per_s(self) -> float:
        """The rate that was reached."""
        return self.sent / self.elapsed_s if self.elapsed_s else 0.0


class _Refused(Exception):
    """The replay cannot go on."""

    def __init__(self, why: str, *, refused: bool) -> None:
        super().__init__(why)
        self.refused = refused


async def replay(
    recorded: Sequence[Recorded],
    tenant_url: str,
    token: str,
    *,
    requests_per_s: float | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ReplayReport:
    """Send a recording to another target, one request after the other, and compare the answers.

    Args:
        token: the secret token of that target.
        requests_per_s: pace; None for as fast as it answers.
        on_progress: called with (done, total) after every request.

    Raises:
        ValueError: the Tenant URL is none.
    """
    base = entra.TenantUrl.parse(tenant_url).base
    report = ReplayReport(0, 0, 0, [], 0.0)
    without_address = anywhere(base)
    ids: dict[str, str] = {}
    unanswered = 0
    started = time.perf_counter()
    timeout = aiohttp.ClientTimeout(total=ANSWER_WAIT_S)
    async with aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {token}"},
        timeout=timeout,
        skip_auto_headers=("User-Agent", "Accept", "Content-Type"),
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        for done, line in enumerate(recorded, 1):
            if line.path == TOKEN_ENDPOINT:
                report.skipped += 1
                continue
            if requests_per_s is not None:
                await asyncio.sleep(max(0.0, started + report.sent / requests_per_s - time.perf_counter()))
            status, text = await _send(session, base, line, ids)
            report.sent += 1
            unanswered = unanswered + 1 if status == 0 else 0
            try:
                _may_go_on(report, line, status, unanswered)
            except _Refused as refused:
                report.stopped, report.refused = str(refused), refused.refused
                break
            answer = _decoded(without_address(text))[0]
            _learn(ids, line.answer, answer)
            if line.status == 0:
                report.skipped += 1
            elif (difference := _compared(line, status, answer, text, ids)) is not None:
                report.differences.append(difference)
            else:
                report.same += 1
            on_progress(done, len(recorded))
    report.elapsed_s = time.perf_counter() - started
    return report


async def _send(session: aiohttp.ClientSession, base: str, line: Recorded, ids: Mapping[str, str]) -> tuple[int, str]:
    """Status and text of the answer; 0 when none came."""
    address = base + _path(line.path, ids) + (f"?{_query(line.query, ids)}" if line.query else "")
    body = None
    if line.body is not None:
        body = msgspec.json.encode(with_ids(line.body, ids)).replace(ANYWHERE.encode(), base.encode())
    try:
        async with session.request(
            line.method, URL(address, encoded=True), data=body, headers=line.headers, allow_redirects=False
        ) as response:
            answer = await response.content.read(ANSWER_BYTES_MAX)
            while len(answer) < ANSWER_BYTES_MAX and (more := await response.content.read(ANSWER_BYTES_MAX)):
                answer += more
            return response.status, answer.decode("utf-8", "replace")
    except (aiohttp.ClientError, OSError, TimeoutError):
        return 0, ""


def _may_go_on(report: ReplayReport, line: Recorded, status: int, unanswered: int) -> None:
    if status == 401 and report.sent == 1 and line.status != 401:
        raise _Refused("the target does not take this key", refused=True)
    if unanswered >= UNANSWERED_MAX:
        raise _Refused(f"{unanswered} requests in a row got no answer", refused=False)


def _learn(ids: dict[str, str], recorded: Any, now: Any) -> None:
    """Note which id of the new server stands for which recorded one, from two answers to the same request."""
    if not isinstance(recorded, dict) or not isinstance(now, dict):
        return
    old, new = recorded.get("id"), now.get("id")
    if isinstance(old, str) and isinstance(new, str) and not recorded.get("Resources"):
        ids.setdefault(old, new)
    ones, others = recorded.get("Resources"), now.get("Resources")
    if isinstance(ones, list) and isinstance(others, list) and len(ones) == len(others):
        for one, other in zip(ones, others, strict=True):
            if isinstance(one, dict) and "meta" in one and "attributes" in one:
                return  # schemas have names, not ids
            _learn(ids, one, other)


def _path(path: str, ids: Mapping[str, str]) -> str:
    segments = [unquote(segment) for segment in path.split("/")]
    return "/".join(quote(ids.get(segment, segment), safe="") for segment in segments)


def _query(query: str, ids: Mapping[str, str]) -> str:
    return _FILTERED.sub(lambda found: found[1] + quote(ids.get(unquote(found[2]), unquote(found[2])), safe=""), query)


def with_ids(value: Any, ids: Mapping[str, str], refers: bool = False) -> Any:
    """A body with the recorded ids replaced where ids can stand: `id`, members, managers, references, and paths with a filter."""
    if isinstance(value, str):
        if not refers:
            return value
        head, slash, tail = value.rpartition("/")
        return ids.get(value) or (head + slash + ids.get(tail, tail))
    if isinstance(value, list):
        return [with_ids(entry, ids, refers) for entry in value]
    if not isinstance(value, dict):
        return value
    operation = isinstance(value.get("op"), str)
    path = str(value.get("path") or "") if operation else ""
    mapped: dict[str, Any] = {}
    for name, member in value.items():
        if operation and name == "path":
            mapped[name] = re.sub(r'"([^"]*)"', lambda found: f'"{ids.get(found[1], found[1])}"', path)
        elif operation and name == "value":
            mapped[name] = with_ids(member, ids, _names_ids(path))
        else:
            mapped[name] = with_ids(member, ids, refers or _names_ids(name))
    return mapped


def _names_ids(path: str) -> bool:
    return bool(path) and re.split(r"[.\[]", path.rpartition(":")[2])[0].lower() in REFERENCES


def _compared(line: Recorded, status: int, answer: Any, text: str, ids: Mapping[str, str]) -> Difference | None:
    places: list[str] = []
    if status == line.status:
        before, after = steady(with_ids(line.answer, ids)), steady(answer)
        if line.text or (answer is None and text):
            before, after = line.text, text
        for place in different(before, after):
            places.append(place)
            if len(places) == PLACES_MAX:
                break
        if not places:
            return None
    detail = answer.get("detail") if isinstance(answer, dict) and status >= 400 else None
    return Difference(
        line.n,
        line.part,
        line.method,
        line.path,
        line.status,
        status,
        places,
        detail if isinstance(detail, str) else "",
    )


def steady(answer: Any) -> Any:
    """An answer without what differs from server to server: times and versions, and ids in the texts of errors."""
    if isinstance(answer, dict):
        schemas = answer.get("schemas")
        if isinstance(schemas, list) and entra.SCIM_ERROR in schemas:
            return {name: _CHANGING.sub("*", str(member)) for name, member in answer.items()}
        return {
            name: steady(
                {key: what for key, what in member.items() if key.lower() not in VOLATILE}
                if name == "meta" and isinstance(member, dict)
                else member
            )
            for name, member in answer.items()
        }
    return [steady(entry) for entry in answer] if isinstance(answer, list) else answer


def different(before: Any, after: Any, at: str = "") -> Iterator[str]:
    """Every place where two values differ, as a sentence."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [*before, *(name for name in after if name not in before)]:
            place = f"{at}.{name}" if at else name
            if name not in after:
                yield f"{place}: {_short(before[name])} is missing now"
            elif name not in before:
                yield f"{place}: {_short(after[name])} is new"
            else:
                yield from different(before[name], after[name], place)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from different(one, other, f"{at}[{number}]")
    elif isinstance(before, list) and isinstance(after, list):
        yield f"{at}: {len(before)} entries were recorded, {len(after)} now"
    elif before != after or type(before) is not type(after):
        yield f"{at or 'body'}: {_short(before)} was recorded, {_short(after)} now"


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[: VALUE_CHARS_MAX - 1]}…"


# ---- the two commands


def record(
    path: Path,
    *,
    tenant_url: str,
    token_file: Path,
    mapping: str = "observe",
    people: int = 20,
    groups: int | None = None,
    dialect: entra.Dialect = "legacy",
    changes: bool = True,
    seed: int = 1,
    token_endpoint: str | None = None,
    client_id: str = "",
    as_json: bool = False,
) -> int:
    """The command `provgate entra record`; returns the exit code.

    Raises:
        RecordingError: the file exists already, the token cannot be read, or the address is none.
    """
    if mapping not in entra.MAPPINGS:
        raise RecordingError(path, f"--mapping {mapping}: there are {', '.join(entra.MAPPINGS)}")
    secret = _secret(path, token_file)
    credentials: Credentials = SecretToken(secret)
    if token_endpoint is not None:
        credentials = ClientCredentials(token_endpoint=token_endpoint, client_id=client_id, client_secret=secret)
    several = 2 if mapping == "observe" else 0
    wanted = Wanted(entra.MAPPINGS[mapping], people, several if groups is None else groups, dialect, changes, seed)
    with _bars(shown=not as_json) as step:
        try:
            report = asyncio.run(record_to(path, tenant_url, credentials, wanted, step))
        except ValueError as wrong:
            raise RecordingError(path, f"--tenant-url: {wrong}") from None
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        _say_recorded(report)
    if not report.connection.ok:
        path.unlink(missing_ok=True)  # nothing was recorded; the next try may use the name again
        if not report.connection.status_code:
            return UNREACHABLE
        return REFUSED if report.connection.status_code in (401, 403) else NOT_FINE
    return NOT_FINE if report.failed else FINE


def replay_file(
    path: Path,
    *,
    tenant_url: str,
    token_file: Path,
    rate: float | None = None,
    as_json: bool = False,
) -> int:
    """The command `provgate entra replay`; returns the exit code: 1 when an answer differs.

    Raises:
        RecordingError: the file is no recording, the token cannot be read, or the address is none.
    """
    heading, lines = read_recording(path)
    token = _secret(path, token_file)
    with _bars(shown=not as_json) as step:
        try:
            report = asyncio.run(
                replay(
                    lines,
                    tenant_url,
                    token,
                    requests_per_s=rate,
                    on_progress=lambda done, total: step("replay", done, total),
                )
            )
        except ValueError as wrong:
            raise RecordingError(path, f"--tenant-url: {wrong}") from None
    if as_json:
        shown = {**msgspec.to_builtins(report), "requests_per_s": round(report.requests_per_s, 1)}
        print(msgspec.json.encode({"file": str(path), **shown}).decode())
    else:
        _say_replayed(heading, report)
    if report.stopped:
        return REFUSED if report.refused else UNREACHABLE
    return NOT_FINE if report.differences else FINE


def _secret(path: Path, token_file: Path) -> str:
    try:
        return token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise RecordingError(path, f"--token-file {token_file}: cannot be read") from None


@contextlib.contextmanager
def _bars(*, shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not shown) as bars:
        tasks: dict[str, Any] = {}

        def step(part: str, done: int, total: int) -> None:
            if part not in tasks:
                tasks[part] = bars.add_task(part, total=total)
            bars.update(tasks[part], completed=done)

        yield step


def _say_recorded(report: RecordReport) -> None:
    out = Console(highlight=False)
    if not report.connection.ok:
        test = report.connection
        out.print(Text(f"Test Connection failed: {test.error_code} ({test.message}). {test.response_body}"))
        return
    states = ", ".join(f"{part} {state}" for part, state in report.states.items())
    out.print(Text(f"{report.requests:,} requests are recorded in {report.file}: {states}."))
    out.print(Text(report.note))


def _say_replayed(heading: Heading, report: ReplayReport) -> None:
    out = Console(highlight=False)
    if report.stopped:
        print(f"The replay was stopped: {report.stopped}.", file=sys.stderr)
    if report.differences:
        table = Table(box=None, pad_edge=False)
        for title in ("No", "Part", "Request", "Recorded", "Now", "Difference"):
            table.add_column(title, overflow="fold", justify="right" if title == "No" else "left")
        for found in report.differences[:SHOWN_MAX]:
            places = "\n".join(found.places) or found.detail or "another status"
            request = f"{found.method} {found.path}"
            statuses = (str(found.recorded), str(found.now or "no answer"))
            table.add_row(*map(Text, (str(found.n), found.part, request, *statuses, places)))
        out.print(table)
        if len(report.differences) > SHOWN_MAX:
            out.print(f"and {len(report.differences) - SHOWN_MAX:,} more; --json has them all")
    kinds = Counter("status" if found.recorded != found.now else "body" for found in report.differences)
    if report.differences:
        verdict = f"{kinds['status']:,} differ in status, {kinds['body']:,} in the body"
    elif report.stopped:
        verdict = "nothing can be said about the answers"
    else:
        verdict = "every answer is what was recorded"
    noun = "request" if report.sent == 1 else "requests"
    out.print(
        Text(
            f"{report.sent:,} {noun} of a recording of {heading.recorded_at} ({heading.mapping}, {heading.dialect}) in "
            f"{report.elapsed_s:.1f} s ({report.requests_per_s:,.0f}/s): {verdict}."
        )
    )
