"""Paths as SCIM's PATCH spells them, and what stands at one of them in a resource (RFC 7644 section 3.5.2)."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from schemas.resources import USER_SCHEMA

PATHS_KEPT_MAX = 800
"""Paths whose parts are remembered: a few targets with as many attributes as settings may name."""

_PATH = re.compile(
    r"(?:(?P<urn>urn:[A-Za-z0-9][A-Za-z0-9.:_-]*):)?(?P<name>[A-Za-z$][\w$-]*)"
    r'(?:\[type eq "(?P<type>[^"\\]{1,40})"\])?(?:\.(?P<sub>[A-Za-z$][\w$-]*))?',
    re.ASCII,
)


class ScimPath(Struct, frozen=True):
    """A path as PATCH spells it, taken apart: `urn:name[type eq "type"].sub`; empty where there is no such part."""

    urn: str
    name: str
    type: str
    sub: str


@functools.lru_cache(maxsize=PATHS_KEPT_MAX)
def taken_apart(path: str) -> ScimPath | None:
    """The parts of a path, None when it is none."""
    parts = _PATH.fullmatch(path)
    if parts is None:
        return None
    urn = parts["urn"] or ""
    return ScimPath("" if urn == USER_SCHEMA else urn, parts["name"], parts["type"] or "", parts["sub"] or "")


def parts_of(path: str) -> ScimPath:
    """The parts of a path that is known to be one, because settings were checked or a connector declares it."""
    parts = taken_apart(path)
    assert parts is not None, "refused by the settings, or misspelled in a declaration"
    return parts


def _table_of(resource: Mapping[str, Any], parts: ScimPath) -> Mapping[str, Any]:
    if not parts.urn:
        return resource
    inner = resource.get(parts.urn)
    return inner if isinstance(inner, dict) else {}


def _entry(entries: Any, kind: str) -> dict[str, Any] | None:
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and str(entry.get("type") or "").casefold() == kind.casefold():
            return entry
    return None


def has_entry_at(resource: Mapping[str, Any], path: str) -> bool:
    """Whether a list holds an entry of the path's type; replacing one that is not there has no target."""
    parts = parts_of(path)
    return _entry(_table_of(resource, parts).get(parts.name), parts.type) is not None


def held_at(resource: Mapping[str, Any], path: str) -> Any:
    """What a resource holds at a path; None when nothing."""
    parts = parts_of(path)
    value = _table_of(resource, parts).get(parts.name)
    if parts.type:
        entry = _entry(value, parts.type)
        return None if entry is None else entry.get(parts.sub or "value")
    if parts.sub:
        return value.get(parts.sub) if isinstance(value, dict) else None
    return value


def put_at(resource: dict[str, Any], path: str, value: Any, *, keep_null: bool = False) -> None:
    """Set, or with None take out, what stands at a path; `keep_null` writes null instead, which PATCH understands."""
    parts = parts_of(path)
    table = resource
    if parts.urn:
        inner = resource.get(parts.urn)
        table = resource[parts.urn] = inner if isinstance(inner, dict) else {}
    gone = (value is None or value == []) and not keep_null
    name = parts.name
    if parts.type:
        entries = table.get(name)
        entries = table[name] = entries if isinstance(entries, list) else []
        entry = _entry(entries, parts.type)
        if entry is None and not gone:
            entry = {"type": parts.type}
            entries.append(entry)
        table, name = ({} if entry is None else entry), parts.sub or "value"
    elif parts.sub:
        inner = table.get(name)
        table[name] = inner if isinstance(inner, dict) else {}
        table, name = table[name], parts.sub
    if gone:
        table.pop(name, None)
    else:
        table[name] = value
    _swept(resource, parts)


def _swept(resource: dict[str, Any], parts: ScimPath) -> None:
    """Take out what has become empty: entries without a value, lists without entries, objects without parts."""
    table: dict[str, Any] = resource[parts.urn] if parts.urn else resource
    held = table.get(parts.name)
    if parts.type and isinstance(held, list):
        table[parts.name] = held = [
            entry for entry in held if not isinstance(entry, dict) or set(entry) - {"type", "primary"}
        ]
    if held in ([], {}):
        table.pop(parts.name, None)
    if parts.urn and not table:
        resource.pop(parts.urn, None)
