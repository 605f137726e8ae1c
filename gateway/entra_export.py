"""Users as Entra exports them, in the shape of SCIM documents: for comparing with a product before the first cycle.

Entra's portal exports CSV, Microsoft Graph answers JSON; both name attributes as a directory does. Which of them becomes which
SCIM attribute is the target's mapping: the connector's declaration names the source of each, and the caller may name others.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Any

from schemas.resources import ENTERPRISE_SCHEMA
from schemas.specs import Spec

RECORD_FIELDS_MAX = 200
MAP_ENTRIES_MAX = 100
VALUE_CHARS_MAX = 4_096

ALIASES: dict[str, tuple[str, ...]] = {
    "userprincipalname": ("userprincipalname", "user principal name", "upn"),
    "objectid": ("objectid", "id", "object id"),
    "mail": ("mail", "email", "e-mail", "primary smtp address"),
    "mobile": ("mobile", "mobilephone", "mobile phone"),
    "telephonenumber": ("telephonenumber", "businessphones", "business phones", "telephone number"),
    "givenname": ("givenname", "given name", "first name", "firstname"),
    "surname": ("surname", "last name", "lastname"),
    "displayname": ("displayname", "display name", "name"),
    "jobtitle": ("jobtitle", "job title", "title"),
    "department": ("department",),
    "employeeid": ("employeeid", "employee id"),
    "mailnickname": ("mailnickname", "mail nickname", "alias"),
}
"""By which headings the portal and Graph name an attribute of the directory; letter case does not count."""

DEFAULT_SOURCES = {"userName": "userPrincipalName", "externalId": "objectId"}
_PLAIN = re.compile(r"[A-Za-z]+\Z")
_TYPED = re.compile(r'(\w+)\[type eq "(\w+)"\]\.value\Z')
_TRUE = frozenset(("true", "yes", "1"))
_FALSE = frozenset(("false", "no", "0"))


def sources_of(spec: Spec | None) -> dict[str, str]:
    """SCIM path -> attribute of the directory, as a connector's declaration has it."""
    declared = spec.attributes if spec is not None else ()
    return DEFAULT_SOURCES | {one.path: one.source for one in declared if _PLAIN.match(one.source)}


def needed_of(spec: Spec | None) -> tuple[str, ...]:
    """SCIM paths without which no user can be compared."""
    declared = spec.attributes if spec is not None else ()
    return tuple(
        dict.fromkeys(("userName", *(one.path for one in declared if one.required and _PLAIN.match(one.source))))
    )


def document_of(record: Mapping[str, Any], spec: Spec | None, sources: Mapping[str, str]) -> dict[str, Any]:
    """One exported user as the SCIM document that the mapping would make of it.

    Args:
        record: a line of a CSV export, an object of Graph, or a SCIM document, which stays as it is.
        spec: the declaration of the target's connector; None when it was never seen: userName and externalId only.
        sources: SCIM path -> attribute of the directory, before those of the declaration.
    """
    if "userName" in record:
        return {name: value for name, value in record.items() if name not in ("id", "meta", "schemas")}
    fields = _fields(record)
    document: dict[str, Any] = {}
    for path, source in {**sources_of(spec), **sources}.items():
        if path != "active":
            value = _text(_held(fields, source))
            if value:
                _put(document, path, value)
    document["active"] = _is_active(fields)
    return document


def lacks(names: Container[str], source: str) -> bool:
    """Whether none of these names, folded, is an attribute's."""
    return not any(name in names for name in _names(source))


def label_of(document: Mapping[str, Any]) -> str:
    """What the user of a document is called."""
    return str(document.get("userName") or "")


def id_of(record: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """By what the admin finds the user in Entra again: the object id, else what the document has."""
    return object_id(record) or str(document.get("externalId") or document.get("userName") or "")


def object_id(record: Mapping[str, Any]) -> str:
    """The object id of an exported user, the id of a SCIM document; "" when there is none."""
    return _text(record.get("id") if "userName" in record else _held(_fields(record), "objectId"))


def _fields(record: Mapping[str, Any]) -> dict[str, Any]:
    return {folded(str(name)): value for name, value in list(record.items())[:RECORD_FIELDS_MAX]}


def folded(name: str) -> str:
    """A heading as it is compared."""
    return name.replace("\ufeff", "").strip().casefold()


def _names(source: str) -> tuple[str, ...]:
    name = source.casefold()
    return ALIASES.get(name, (name,))


def _held(fields: Mapping[str, Any], source: str) -> Any:
    for alias in _names(source):
        if alias in fields and fields[alias] not in (None, "", []):
            return fields[alias]
    return None


def _text(value: Any) -> str:
    if isinstance(value, list):
        value = value[0] if value else ""
    if value is None or isinstance(value, (dict, list)):
        return ""
    return str(value).strip()[:VALUE_CHARS_MAX]


def _is_active(fields: Mapping[str, Any]) -> bool:
    """A user without the column is one that may sign in; the portal's older export says it the other way round."""
    for name, turned in (("accountenabled", False), ("account enabled", False), ("block credential", True)):
        if name in fields:
            value = str(fields[name]).strip().casefold()
            if value in _TRUE | _FALSE:
                return (value in _TRUE) is not turned
    return True


def _put(document: dict[str, Any], path: str, value: str) -> None:
    typed = _TYPED.match(path)
    if typed:
        document.setdefault(typed[1], []).append({"type": typed[2], "value": value})
    elif path.startswith("urn:"):
        urn, _, name = path.rpartition(":")
        inner: Any = {"value": value} if urn == ENTERPRISE_SCHEMA and name == "manager" else value
        document.setdefault(urn, {})[name] = inner
    elif path == "roles":
        document["roles"] = [{"value": value}]
    else:
        holder, _, name = path.rpartition(".")
        (document.setdefault(holder, {}) if holder else document)[name] = value
