"""What of a person's values may be shown to somebody who only watches: enough to recognise a value, not enough to learn one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

DEPTH_MAX = 20
_NOT_PERSONAL = re.compile(
    r"(^|[.:])(active|type|primary|schemas|userType|locale|preferredLanguage|timezone|resourceType"
    r"|op|status|enabled|activated|sendWelcome)$|role|team|licen|queue",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"([^\s@<>\"',;:()\[\]])[^\s@<>\"',;:()\[\]]*@([\w.-]+)")
OBJECT_ID = r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"
_OPAQUE = re.compile(OBJECT_ID)
_QUOTED_NUMBER = re.compile(r'"\+?\d{6,}"')


def mask(text: str) -> str:
    """Enough to recognise a value one knows, not enough to learn one: `a•••@contoso.example`, `•••90`, `L•••`.

    An object id stays: it tells nothing about a person, and which object is meant is what a reader wants to know.
    """
    if _OPAQUE.fullmatch(text):
        return text
    if "@" in text:
        return f"{text[:1]}•••@{text.rsplit('@', 1)[1]}"
    digits = sum(char.isdigit() for char in text)
    if digits >= 6 and digits * 2 >= len(text):
        return f"•••{text[-2:]}"
    return f"{text[:1]}•••" if len(text) > 1 else "•••"


def is_personal(path: str) -> bool:
    """Whether the value under a path says something about a person. What is not known to be harmless does."""
    return _NOT_PERSONAL.search(path) is None


def mask_body(value: Any, path: str = "", *, depth: int = 0) -> Any:
    """A JSON document with every personal value masked; names, shapes, truth values and harmless attributes stay.

    The value of a SCIM PATCH operation is judged by the operation's own path (RFC 7644 section 3.5.2).
    """
    if depth > DEPTH_MAX:
        return "…"
    if isinstance(value, Mapping):
        at = value.get("path") if isinstance(value.get("op"), str) else None
        shown = {}
        for name, inner in value.items():
            if name == "path" and isinstance(at, str):
                shown[name] = mask_inside(at)
            elif name == "value" and isinstance(at, str):
                shown[name] = mask_body(inner, at, depth=depth + 1)
            else:
                shown[str(name)] = mask_body(inner, f"{path}.{name}" if path else str(name), depth=depth + 1)
        return shown
    if isinstance(value, (list, tuple)):
        return [mask_body(inner, path, depth=depth + 1) for inner in value]
    if isinstance(value, bool) or value is None or not is_personal(path):
        return value
    return mask(value) if isinstance(value, str) and value else value if value == "" else "•••"


def mask_inside(text: str) -> str:
    """A filter or path with the addresses and telephone numbers in it masked."""
    return _QUOTED_NUMBER.sub(lambda hit: f'"{mask(hit[0][1:-1])}"', _ADDRESS.sub(r"\1•••@\2", text))


def mask_id(text: str, documents: Iterable[Any] = ()) -> str:
    """An id, masked when it is a person's value itself: an address, a telephone number, or a value of the given documents."""
    spelled = _spelled(text)
    known = {_spelled(value) for document in documents for value in _values(document)}
    is_number = len(text.lstrip("+")) >= 6 and text.lstrip("+").isdigit()
    return mask(text) if "@" in text or is_number or spelled in known else text


def _spelled(text: str) -> str:
    """The same for values that differ only in letter case and punctuation."""
    return "".join(char for char in text.casefold() if char.isalnum())


def _values(value: Any, path: str = "") -> Iterable[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _values(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _values(inner, path)
    elif isinstance(value, str) and value and is_personal(path):
        yield value
