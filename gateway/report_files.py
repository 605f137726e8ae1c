"""Files of the comparing commands: users as Entra exports them, read one by one, and reports as CSV.

Neither holds more than one user or one page at a time, however long the file is.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

CHUNK_CHARS = 64 * 1024
RECORD_CHARS_MAX = 256 * 1024
"""Longest single user in a JSON export."""
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""With which a spreadsheet takes a cell for a formula."""
COLUMNS = ("class", "code", "user", "label", "account", "attributes", "message")


class UnreadableExport(Exception):
    """The file is no export of users; the sentence says why."""


def read_users(path: Path) -> Iterator[dict[str, Any]]:
    """The users of an export: CSV by its heading line, or JSON: a list, Graph's `{"value": [...]}`, or one object a line.

    Raises:
        UnreadableExport: it is neither, or breaks off.
    """
    try:
        if path.suffix.casefold() in (".json", ".jsonl"):
            yield from _json_users(path)
        else:
            yield from _csv_users(path)
    except UnicodeDecodeError as exc:
        raise UnreadableExport(f"{path.name} is not UTF-8 text; export it again") from exc
    except csv.Error as exc:
        raise UnreadableExport(f"{path.name} cannot be read as CSV: {exc}") from exc


def _csv_users(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        heading = lines.readline()
        if not heading.strip():
            raise UnreadableExport(f"{path.name} is empty; its first line must name the columns")
        separator = max(",;\t", key=heading.count)
        names = next(csv.reader([heading], delimiter=separator))
        for row in csv.reader(lines, delimiter=separator):
            if any(cell.strip() for cell in row):
                yield dict(zip(names, row, strict=False))


def _json_users(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of the list in the file; what stands around the list is passed over."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig") as file:
        text = file.read(CHUNK_CHARS)
        start = _list_start(text, path)
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
                    raise UnreadableExport(f"{path.name} breaks off, or is no JSON list of users") from exc
                text += more
                continue
            if not isinstance(record, dict):
                raise UnreadableExport(f"{path.name} is no JSON list of users")
            yield record
            text = text[end:]


def _list_start(text: str, path: Path) -> int:
    """Where the first user may begin: after the bracket of a list, or at the first object of a file of lines."""
    stripped = text.lstrip()
    at = len(text) - len(stripped)
    if stripped.startswith("["):
        return at + 1
    if not stripped.startswith("{"):
        raise UnreadableExport(f"{path.name} is no JSON list of users")
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
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for one in findings:
            cells = (one["class"], one["code"], one["resource"], one["label"], one["account_id"])
            writer.writerow([safe_cell(cell) for cell in (*cells, " ".join(one["attributes"]), one["message"])])
            count += 1
    return count
