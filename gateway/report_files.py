"""Files of the comparing commands: users as Entra exports them, read one by one, and reports as CSV.

Neither holds more than one user or one page at a time, however long the file is; of a file that is examined, also an object id
for each user.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import os
import re
import stat
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from gateway.entra_export import folded, lacks, object_id

CHUNK_CHARS = 64 * 1024
RECORD_CHARS_MAX = 256 * 1024
"""Longest single user in a JSON export."""
NAMES_MAX = 500
COLUMNS_SHOWN_MAX = 30
PROBLEMS_SHOWN_MAX = 20
NOTICE_EVERY = 5_000
_SEPARATOR = re.compile(r"\ufeff?sep=([,;\t])")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""With which a spreadsheet takes a cell for a formula."""
COLUMNS = ("class", "code", "user", "label", "account", "attributes", "message")


class UnreadableExport(Exception):
    """The file is no export of users that could be compared; the text says all that is wrong with it."""


class Examined(Struct, frozen=True):
    """A file that can be compared.

    Args:
        users: how many it holds, without those that are there twice.
        repeats: places of the users, counted from 0, that only repeat another one word for word.
        absent: attributes of the mapping that no user has; they are not compared.
    """

    users: int
    repeats: frozenset[int]
    absent: tuple[str, ...]


def examine(path: Path, sources: Mapping[str, str], needed: Container[str], noticed: Callable[[int], None]) -> Examined:
    """Read an export once from end to end before anything is made of it.

    Args:
        sources: SCIM path -> attribute of the directory, as the target's mapping has it.
        needed: SCIM paths without which nobody can be compared.
        noticed: is told now and then how many users were read.

    Raises:
        UnreadableExport: with every mistake of it, at most PROBLEMS_SHOWN_MAX of them by line.
    """
    problems: list[str] = []
    names: dict[str, str] = {}
    known: dict[str, tuple[int, int]] = {}
    repeats: set[int] = set()
    is_scim, count = False, 0
    for place, (line, record) in enumerate(_records(path, problems)):
        is_scim = is_scim or "userName" in record
        if len(names) < NAMES_MAX:
            names |= {folded(name): name for name in record if name}
        id_ = object_id(record)
        mark = hash(json.dumps(record, sort_keys=True))
        first = known.setdefault(id_, (line, mark)) if id_ else (line, mark)
        if first[0] != line and first[1] == mark:
            repeats.add(place)
        elif first[0] != line:
            problems.append(f"{_at(line)} has the object id of {_at(first[0])}, and other values")
        count = place + 1
        if count % NOTICE_EVERY == 0:
            noticed(count)
    if not count and not problems:
        problems.append("it holds no users")
    missing = [] if is_scim or not count else [path_ for path_, source in sources.items() if lacks(names, source)]
    shown = ", ".join(sorted(names.values())[:COLUMNS_SHOWN_MAX])
    problems[:0] = [
        f"no column {sources[one]!r}, of which {one} is made; --map {one}=COLUMN names another. It has: {shown}"
        for one in missing
        if one in needed
    ]
    if problems:
        raise UnreadableExport(_listed(path, problems))
    return Examined(
        users=count - len(repeats),
        repeats=frozenset(repeats),
        absent=tuple(sorted({sources[one] for one in missing})),
    )


def _listed(path: Path, problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return f"{path.name}: {problems[0]}"
    lines = [f"{path.name}: {len(problems):,} problems", *(f"  {one}" for one in problems[:PROBLEMS_SHOWN_MAX])]
    if len(problems) > PROBLEMS_SHOWN_MAX:
        lines.append(f"  and {len(problems) - PROBLEMS_SHOWN_MAX:,} more")
    return "\n".join(lines)


def read_users(path: Path) -> Iterator[dict[str, Any]]:
    """The users of an export: CSV by its heading line, or JSON: a list, Graph's `{"value": [...]}`, or one object a line.

    Raises:
        UnreadableExport: it is neither, or breaks off.
    """
    problems: list[str] = []
    for _, record in _records(path, problems):
        yield record
    if problems:
        raise UnreadableExport(_listed(path, problems))


def _records(path: Path, problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each user with the line it begins at (of JSON: its number). What is wrong is added to `problems`, the rest goes on."""
    line = 0
    try:
        encoding = _encoding(path)
        records = _json_users if path.suffix.casefold() in (".json", ".jsonl") else _csv_users
        for line, record in records(path, encoding, problems):
            yield line, record
    except UnreadableExport as exc:
        problems.append(str(exc))
    except UnicodeError:
        problems.append(
            f"after {_at(line)} it is not {encoding.removesuffix('-sig').upper()} text; save it as CSV UTF-8"
        )
    except csv.Error as exc:
        what = "a quotation mark is never closed" if "unexpected end" in str(exc) else str(exc)
        problems.append(f"after {_at(line)} it cannot be read as CSV: {what}")


def _at(line: int) -> str:
    return f"line {line:,}"


def _encoding(path: Path) -> str:
    """What the first bytes say: UTF-8 with or without a mark, or UTF-16, as spreadsheets write it."""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(b"PK\x03\x04"):
        raise UnreadableExport("it is a workbook; save it as CSV UTF-8")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if len(start) == 4 and start[1::2] == b"\0\0":
        return "utf-16-le"
    if len(start) == 4 and start[::2] == b"\0\0":
        return "utf-16-be"
    return "utf-8-sig"


def _csv_users(path: Path, encoding: str, problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding=encoding, newline="") as lines:
        heading = lines.readline()
        skipped = 0
        said = _SEPARATOR.fullmatch(heading.strip())
        if said is not None:  # how a spreadsheet is told what separates
            heading, skipped = lines.readline(), 1
        if not heading.strip():
            raise UnreadableExport("it is empty; its first line must name the columns")
        separator = said[1] if said is not None else max(",;\t", key=heading.count)
        rows = csv.reader(itertools.chain((heading,), lines), delimiter=separator, strict=True)
        names = [name.strip() for name in next(rows)]
        doubled = sorted({name for name in names if name and names.count(name) > 1})
        if doubled:
            problems.append(f"its heading names {', '.join(doubled)} twice")
        ended = rows.line_num
        for row in rows:
            line, ended = ended + 1 + skipped, rows.line_num
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(names):
                problems.append(f"{_at(line)} has {len(row)} cells, and the heading {len(names)} columns")
                continue
            yield line, dict(zip(names, row, strict=True))


def _json_users(path: Path, encoding: str, problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of the list in the file; what stands around the list is passed over."""
    decoder, number = json.JSONDecoder(), 0
    with path.open(encoding=encoding) as file:
        text = file.read(CHUNK_CHARS)
        start = _list_start(text)
        text = text[start:]
        while True:
            text = text.lstrip(" \t\r\n,")
            if not text:
                more = file.read(CHUNK_CHARS)
                if not more:
                    return
                text = more
                continue
            if text[0] == "]":
                return
            try:
                record, end = decoder.raw_decode(text)
            except json.JSONDecodeError as exc:
                more = file.read(CHUNK_CHARS)
                if not more or len(text) > RECORD_CHARS_MAX:
                    raise UnreadableExport(f"after user {number:,} it breaks off, or is no JSON list of users") from exc
                text += more
                continue
            if not isinstance(record, dict):
                raise UnreadableExport("it is no JSON list of users")
            number += 1
            yield number, record
            text = text[end:]


def _list_start(text: str) -> int:
    """Where the first user may begin: after the bracket of a list, or at the first object of a file of lines."""
    stripped = text.lstrip()
    at = len(text) - len(stripped)
    if stripped.startswith("["):
        return at + 1
    if not stripped.startswith("{"):
        raise UnreadableExport("it is no JSON list of users")
    for name in ('"value"', '"Resources"'):
        found = text.find(name)
        if found >= 0:
            after = text[found + len(name) :].lstrip()
            if after.startswith(":") and after[1:].lstrip().startswith("["):
                return text.index("[", found + len(name)) + 1
    return at


def safe_cell(value: Any) -> str:
    """A cell that no spreadsheet takes for a formula (security requirement S13)."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def write_csv(path: Path, findings: Iterable[Mapping[str, Any]]) -> int:
    """Write a report, readable for this account only; how many lines it has.

    Raises:
        OSError: the file cannot be written.
    """
    count = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
        if stat.S_ISREG(
            os.fstat(descriptor).st_mode
        ):  # a file that was there keeps its mode, and may be open to others
            os.fchmod(descriptor, 0o600)
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for one in findings:
            cells = (one["class"], one["code"], one["resource"], one["label"], one["account_id"])
            writer.writerow([safe_cell(cell) for cell in (*cells, " ".join(one["attributes"]), one["message"])])
            count += 1
    return count
