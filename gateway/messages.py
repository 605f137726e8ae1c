"""SCIM messages in and out: bodies decoded within limits, resources, lists and errors encoded (RFC 7644 sections 3.4, 3.9, 3.12).

Nothing a client sends raises anything but `ScimError` here, and no error repeats a value it was sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway.attributes import (
    CORE_SCHEMAS,
    AttributeName,
    Kind,
    find_key,
    fold_name,
    fold_value,
    resolve_name,
)
from schemas.resources import ENTERPRISE_SCHEMA, GROUP_SCHEMA, USER_SCHEMA

__all__ = [
    "BULK_REQUEST",
    "BULK_RESPONSE",
    "DEFAULT_LIMITS",
    "ENTERPRISE_SCHEMA",
    "ERROR",
    "GROUP_SCHEMA",
    "LIST_RESPONSE",
    "MEDIA_TYPE",
    "PATCH_OP",
    "SEARCH_REQUEST",
    "USER_SCHEMA",
    "Limits",
    "ScimError",
    "attribute_names",
    "conflict",
    "cursor_response",
    "decode_body",
    "fold_name",
    "fold_value",
    "forbidden",
    "invalid_filter",
    "invalid_path",
    "invalid_syntax",
    "invalid_value",
    "list_response",
    "mutability",
    "no_target",
    "not_found",
    "not_implemented",
    "parse_bool",
    "precondition_failed",
    "project",
    "resource_bytes",
    "timestamp",
    "too_large",
    "too_many_requests",
    "unauthorized",
    "unavailable",
    "uniqueness",
    "unsupported_media_type",
]

MEDIA_TYPE = "application/scim+json"
PATCH_OP = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
LIST_RESPONSE = "urn:ietf:params:scim:api:messages:2.0:ListResponse"
SEARCH_REQUEST = "urn:ietf:params:scim:api:messages:2.0:SearchRequest"
BULK_REQUEST = "urn:ietf:params:scim:api:messages:2.0:BulkRequest"
BULK_RESPONSE = "urn:ietf:params:scim:api:messages:2.0:BulkResponse"
ERROR = "urn:ietf:params:scim:api:messages:2.0:Error"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much one request may ask of us; beyond it the answer is a 4xx that names the limit.

    A member reference inside an array (`value`, `$ref`, `type`, `display`) counts against `members_max`, not against `keys_max`:
    a thousand members in one PATCH are ordinary, a thousand attributes are not. `entries_max` bounds the values of one
    multi-valued attribute, `entries_visited_max` the values that all operations of one PATCH look at together.
    """

    body_bytes_max: int = 262_144
    group_body_bytes_max: int = 1_048_576
    bulk_body_bytes_max: int = 1_048_576
    headers_bytes_max: int = 16_384
    url_bytes_max: int = 8_192
    depth_max: int = 32
    keys_max: int = 2_000
    members_max: int = 10_000
    operations_max: int = 1_000
    entries_max: int = 256
    entries_visited_max: int = 5_000
    string_bytes_max: int = 4_096
    filter_bytes_max: int = 1_024
    filter_depth_max: int = 8
    filter_terms_max: int = 32
    parameters_max: int = 64
    count_max: int = 200
    body_wait_s: float = 10.0


DEFAULT_LIMITS = Limits()


class ScimError(Exception):
    """An answer that is not the one the client hoped for.

    `detail` is read by the Entra admin in the provisioning log: it names the attribute, the problem and the remedy. It may
    hold a product's own words and is therefore no part of the exception's text, which ends up in logs.

    Args:
        status: the HTTP status.
        detail: one or two sentences for the Entra admin.
        scim_type: keyword of RFC 7644 table 9, None where the RFC names none.
        headers: headers the answer needs, e.g. `Retry-After`.
        extra: further members of the body, e.g. an operation id; Entra shows them too.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        scim_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"SCIM error {status} {scim_type or ''}".rstrip())
        self.status = status
        self.detail = detail
        self.scim_type = scim_type
        self.headers: dict[str, str] = dict(headers or {})
        self.extra: dict[str, str] = dict(extra or {})

    def to_bytes(self) -> bytes:
        """The Error message of RFC 7644 section 3.12; `status` is a string there."""
        body: dict[str, Any] = {"schemas": [ERROR], "status": str(self.status)}
        if self.scim_type is not None:
            body["scimType"] = self.scim_type
        body["detail"] = self.detail
        for name, value in self.extra.items():
            body.setdefault(name, value)
        return msgspec.json.encode(body)


def _sentences(*parts: str) -> str:
    return " ".join(part if part.endswith((".", "!", "?")) else f"{part}." for part in parts if part)


def invalid_value(attribute: str, value_problem: str, remedy: str = "") -> ScimError:
    """400 `invalidValue`: "{attribute} {value_problem}. {remedy}"."""
    return ScimError(400, _sentences(f"{attribute} {value_problem}", remedy), "invalidValue")


def invalid_syntax(problem: str, remedy: str = "") -> ScimError:
    """400 `invalidSyntax`: the body or query is not what the protocol asks for."""
    return ScimError(400, _sentences(problem, remedy), "invalidSyntax")


def invalid_filter(problem: str, remedy: str = "") -> ScimError:
    """400 `invalidFilter`."""
    return ScimError(400, _sentences(f"The filter {problem}", remedy), "invalidFilter")


def invalid_path(path: str, problem: str, remedy: str = "") -> ScimError:
    """400 `invalidPath`; the path is repeated, cut to a readable length."""
    return ScimError(400, _sentences(f"The path {shown(path)} {problem}", remedy), "invalidPath")


def no_target(attribute: str, problem: str, remedy: str = "") -> ScimError:
    """400 `noTarget`."""
    return ScimError(400, _sentences(f"{attribute} {problem}", remedy), "noTarget")


def mutability(attribute: str, problem: str, remedy: str = "") -> ScimError:
    """400 `mutability`."""
    return ScimError(400, _sentences(f"{attribute} {problem}", remedy), "mutability")


def unauthorized(refusal_id: str = "", realm: str = "scim") -> ScimError:
    """401, the same for every reason; the operator finds the reason under the id."""
    detail = "The credentials are not accepted here. Enter a valid secret token in the provisioning settings."
    return ScimError(
        401,
        f"{detail} The operator of the gateway finds the reason under {refusal_id}." if refusal_id else detail,
        headers={"WWW-Authenticate": f'Bearer realm="{realm}"'},
        extra={"errorId": refusal_id} if refusal_id else {},
    )


def forbidden(problem: str, remedy: str = "") -> ScimError:
    """403: understood and refused by configuration."""
    return ScimError(403, _sentences(problem, remedy))


def not_found(kind: str = "resource") -> ScimError:
    """404; the same for an id that never was, is gone, or belongs to somebody else."""
    return ScimError(404, f"No {kind.lower()} with this id exists here.")


def conflict(problem: str, remedy: str = "") -> ScimError:
    """409 without keyword."""
    return ScimError(409, _sentences(problem, remedy))


def uniqueness(attribute: str, kind: Kind = "User", remedy: str = "") -> ScimError:
    """409 `uniqueness`: another live resource has this value."""
    return ScimError(
        409,
        _sentences(
            f"Another {kind.lower()} of this target already has this {attribute}",
            remedy or f"{attribute} must be unique; change it, or remove the other {kind.lower()}",
        ),
        "uniqueness",
    )


def precondition_failed() -> ScimError:
    """412: `If-Match` names another version."""
    return ScimError(412, "The resource was changed in the meantime. Read it again and repeat the change.")


def too_large(what: str, limit: int, unit: str = "bytes") -> ScimError:
    """413: more than one request may carry."""
    return ScimError(413, f"{what} is larger than the limit of {limit:,} {unit}. Send it in several smaller requests.")


def unsupported_media_type() -> ScimError:
    """415."""
    return ScimError(415, f"The content type is not supported. Send {MEDIA_TYPE} or application/json.")


def too_many_requests(retry_after_s: int) -> ScimError:
    """429 with `Retry-After`."""
    return ScimError(
        429,
        f"Too many requests for this target. Try again in {retry_after_s} s.",
        headers={"Retry-After": str(retry_after_s)},
    )


def not_implemented(problem: str, remedy: str = "") -> ScimError:
    """501."""
    return ScimError(501, _sentences(problem, remedy))


def unavailable(problem: str, retry_after_s: int) -> ScimError:
    """503 with `Retry-After`."""
    return ScimError(503, _sentences(problem), headers={"Retry-After": str(retry_after_s)})


_SHOWN_CHARS_MAX = 120


def shown(name: str) -> str:
    """A name or path from a request in quotes, printable and cut, fit for `detail`. Never for values of attributes."""
    cut = name if len(name) <= _SHOWN_CHARS_MAX else name[: _SHOWN_CHARS_MAX - 1] + "…"
    return "'" + "".join(char if char.isprintable() else "?" for char in cut) + "'"


# --- bodies in -------------------------------------------------------------------------------------------------------

_BOM = b"\xef\xbb\xbf"
_KEY_END = re.compile(rb'"[ \t\r\n]*:')
_OPERATION_KEYS = frozenset(("op", "path", "value"))
_REFERENCE_KEYS = frozenset(("value", "$ref", "type", "display"))
_decode_json = msgspec.json.Decoder().decode


class _Twice(Exception):
    """A key occurs twice in one object."""


def decode_body(raw: bytes, limits: Limits = DEFAULT_LIMITS, *, bytes_max: int | None = None) -> dict[str, Any]:
    """Decode a request body into plain objects, refusing whatever a later stage could stumble over.

    Args:
        raw: the body; a byte order mark is tolerated.
        limits: depth, number of keys and members, length of strings.
        bytes_max: limit of the whole body; None when the server in front has checked it.

    Raises:
        ScimError: 413 when the body is longer than `bytes_max`; 400 `invalidSyntax` for anything else: not JSON, not an
            object, invalid Unicode, U+0000, a key given twice, or a limit exceeded (RFC 7644 table 9).
    """
    if bytes_max is not None and len(raw) > bytes_max:
        raise too_large("The request body", bytes_max)
    if raw.startswith(_BOM):
        raw = raw[len(_BOM) :]
    try:
        body = _decode_json(raw)
    except UnicodeDecodeError:
        raise invalid_syntax("The request body is not valid UTF-8", "Send JSON encoded as UTF-8") from None
    except RecursionError:
        raise _too_deep(limits) from None
    except msgspec.ValidationError:
        raise invalid_syntax("The request body holds a number that is out of range") from None
    except msgspec.DecodeError:
        remedy = "Send a JSON object" if raw.strip() else "Send a JSON object; the body was empty"
        raise invalid_syntax("The request body is not valid JSON", remedy) from None
    if type(body) is not dict:
        raise invalid_syntax("The request body is not a JSON object", "Send a JSON object")
    keys = _Walk(raw, limits).run(body)
    # Every key is followed by `"` and `:`, so a count of those that equals the number of decoded keys proves that none was
    # given twice. A string may contain the same two characters; then the exact and slower reading decides.
    if keys != len(_KEY_END.findall(raw)):
        _refuse_keys_given_twice(raw, limits)
    return body


class _Walk:
    """One pass over a decoded body: counts keys, and checks of the limits those that its bytes do not already prove."""

    def __init__(self, raw: bytes, limits: Limits) -> None:
        self.limits = limits
        self.members = 0
        self.keys = 0
        self.counted = 0
        self.strings = len(raw) > limits.string_bytes_max or b"\\u0000" in raw

    def run(self, body: dict[str, Any]) -> int:
        """The number of keys in all objects of the body."""
        self._object(body, 1)
        return self.keys

    def _object(self, value: dict[str, Any], depth: int) -> None:
        if depth > self.limits.depth_max:
            raise _too_deep(self.limits)
        self.keys += len(value)
        self.counted += len(value)
        if self.counted > self.limits.keys_max:
            raise invalid_syntax(
                f"The request body has more than {self.limits.keys_max:,} keys", "Send fewer attributes"
            )
        if self.strings:
            for key in value:
                self._string(key)
        for item in value.values():
            kind = type(item)
            if kind is str:
                if self.strings:
                    self._string(item)
            elif kind is dict:
                self._object(item, depth + 1)
            elif kind is list:
                self._array(item, depth + 1)

    def _array(self, value: list[Any], depth: int) -> None:
        if depth > self.limits.depth_max:
            raise _too_deep(self.limits)
        for item in value:
            kind = type(item)
            if kind is dict:
                if _REFERENCE_KEYS.issuperset(item):
                    self.members += 1
                    self.counted -= len(item)
                elif "op" in item and _OPERATION_KEYS.issuperset(item):
                    self.counted -= len(item)  # operations have a bound of their own
                self._object(item, depth + 1)
            elif kind is str:
                if self.strings:
                    self._string(item)
            elif kind is list:
                self._array(item, depth + 1)
        if self.members > self.limits.members_max:
            raise invalid_syntax(
                f"The request body has more than {self.limits.members_max:,} entries", "Send them in several requests"
            )

    def _string(self, value: str) -> None:
        if "\0" in value:
            raise invalid_syntax("The request body holds the character U+0000", "Remove it at the source")
        limit = self.limits.string_bytes_max
        # A character takes at most four bytes, so only strings between the two bounds have to be encoded to be measured.
        if len(value) > limit or (len(value) * 4 > limit and len(value.encode()) > limit):
            raise invalid_syntax(f"The request body holds a string of more than {limit:,} bytes", "Shorten the value")


def _too_deep(limits: Limits) -> ScimError:
    return invalid_syntax(f"The request body is nested deeper than {limits.depth_max} levels", "Send a flatter object")


def _object_of_unique_keys(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise _Twice


def _refuse_keys_given_twice(raw: bytes, limits: Limits) -> None:
    try:
        json.loads(raw, object_pairs_hook=_object_of_unique_keys)
    except _Twice:
        raise invalid_syntax("The request body gives a key twice in one object", "Send every attribute once") from None
    except RecursionError:
        raise _too_deep(limits) from None
    except ValueError:
        raise invalid_syntax("The request body is not valid JSON", "Send a JSON object") from None


def parse_bool(value: object) -> bool:
    """A boolean, or the text of one in any letter case: Entra's default dialect sends "True" and "False".

    Raises:
        ValueError: anything else; numbers are no booleans.
    """
    if value is True or value is False:
        return value
    if isinstance(value, str):
        folded = value.lower()
        if folded == "true":
            return True
        if folded == "false":
            return False
    raise ValueError("neither true nor false")


# --- messages out ----------------------------------------------------------------------------------------------------


def timestamp(moment: datetime) -> str:
    """A moment as a SCIM dateTime in UTC with milliseconds (RFC 7643 section 2.3.5). A naive moment is taken as UTC."""
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def resource_bytes(
    document: Mapping[str, Any],
    *,
    kind: Kind,
    resource_id: str,
    location: str,
    created: str,
    last_modified: str,
    version: str | None = None,
    attributes: Sequence[str] = (),
    excluded_attributes: Sequence[str] = (),
) -> bytes:
    """One resource as JSON: the stored document framed by `schemas`, `id` and `meta` (RFC 7643 section 3.1).

    Args:
        document: the stored document, canonical names, without the common attributes `schemas`, `id` and `meta`.
        kind: decides the core schema and `meta.resourceType`.
        resource_id: our id.
        location: absolute address of the resource.
        created, last_modified: SCIM dateTimes, see `timestamp`.
        version: the ETag as it stands in the header, None without.
        attributes, excluded_attributes: the projection, see `project`.
    """
    schemas = [CORE_SCHEMAS[kind]]
    schemas += [name for name, value in document.items() if type(value) is dict and name[:4].lower() == "urn:"]
    meta = {"resourceType": kind, "created": created, "lastModified": last_modified, "location": location}
    if version is not None:
        meta["version"] = version
    resource = {"schemas": schemas, "id": resource_id, **document, "meta": meta}
    if attributes or excluded_attributes:
        resource = project(resource, attributes, excluded_attributes)
    return msgspec.json.encode(resource)


def cursor_response(
    resources: Sequence[bytes], total: int | None, next_cursor: str | None, previous_cursor: str | None
) -> bytes:
    """A ListResponse of a list that is read by cursor (RFC 9865 section 2).

    Args:
        resources: the page, see `resource_bytes`.
        total: number of all hits; None leaves it out, as it may be here.
        next_cursor: None on the last page.
        previous_cursor: None on the first page, and where nobody can go back.
    """
    head: dict[str, Any] = {"schemas": [LIST_RESPONSE]}
    if total is not None:
        head["totalResults"] = total
    head["itemsPerPage"] = len(resources)
    if previous_cursor is not None:
        head["previousCursor"] = previous_cursor
    if next_cursor is not None:
        head["nextCursor"] = next_cursor
    return b"".join((msgspec.json.encode(head)[:-1], b',"Resources":[', b",".join(resources), b"]}"))


def list_response(resources: Sequence[bytes], total: int, start_index: int = 1, per_page: int | None = None) -> bytes:
    """A ListResponse of already encoded resources (RFC 7644 section 3.4.2).

    Args:
        resources: the page, see `resource_bytes`.
        total: number of all hits, not of this page.
        start_index: echoed as it was asked, counted from 1.
        per_page: `itemsPerPage`; None takes the number of resources.
    """
    count = len(resources) if per_page is None else per_page
    head = f'{{"schemas":["{LIST_RESPONSE}"],"totalResults":{total},"startIndex":{start_index},"itemsPerPage":{count},'
    return b"".join((head.encode(), b'"Resources":[', b",".join(resources), b"]}"))


_ALWAYS_RETURNED = frozenset(("id", "schemas"))


def attribute_names(text: str | None) -> tuple[str, ...]:
    """The names of a comma-separated `attributes` or `excludedAttributes` parameter, blanks dropped."""
    if not text:
        return ()
    return tuple(name.strip() for name in text.split(",") if name.strip())


def project(
    document: Mapping[str, Any], attributes: Sequence[str] = (), excluded_attributes: Sequence[str] = ()
) -> dict[str, Any]:
    """What of a resource is returned (RFC 7644 section 3.9).

    Names in any letter case, with or without their URN, with or without a sub-attribute; a schema URN stands for all its
    attributes. Unknown names are ignored. `id` and `schemas` are always returned.

    Args:
        document: a resource with its common attributes.
        attributes: return these only; none means all.
        excluded_attributes: leave these out; applied second.
    """
    projected = dict(document)
    if attributes:
        wanted = list(_names(attributes))
        projected = {name: projected[name] for name in projected if name in _ALWAYS_RETURNED}
        for name in wanted:
            _include(document, projected, name)
        projected = {name: _filled(projected[name]) for name in document if name in projected}
    for name in _names(excluded_attributes):
        _exclude(projected, name)
    return projected


def _names(texts: Iterable[str]) -> Iterable[AttributeName]:
    for text in texts:
        try:
            yield resolve_name(text, None)
        except ValueError:
            continue


def _include(source: Mapping[str, Any], target: dict[str, Any], name: AttributeName) -> None:
    if name.container:
        container = find_key(source, name.container)
        if container is None:
            return
        if not name.attribute:
            target[container] = source[container]
            return
        held = source[container]
        if not isinstance(held, dict):
            return
        chosen = target.get(container)
        part: dict[str, Any] = dict(chosen) if isinstance(chosen, dict) else {}
        _include(held, part, AttributeName("", name.attribute, name.sub))
        if part:
            target[container] = part
        return
    if not name.attribute:
        target.update({key: value for key, value in source.items() if ":" not in key})
        return
    key = find_key(source, name.attribute)
    if key is None:
        return
    if not name.sub:
        target[key] = source[key]
        return
    value = source[key]
    if isinstance(value, list):
        entries = [_only(entry, name.sub) for entry in value if isinstance(entry, dict)]
        earlier = target.get(key)
        if isinstance(earlier, list) and len(earlier) == len(entries):
            entries = [{**old, **new} for old, new in zip(earlier, entries, strict=True)]
        if any(entries):
            target[key] = entries
    elif isinstance(value, dict):
        part = _only(value, name.sub)
        if part:
            target[key] = {**target.get(key, {}), **part}


def _filled(value: Any) -> Any:
    """Without the entries of which nothing was asked for."""
    return [entry for entry in value if entry != {}] if isinstance(value, list) else value


def _only(entry: dict[str, Any], sub: str) -> dict[str, Any]:
    key = find_key(entry, sub)
    return {} if key is None else {key: entry[key]}


def _exclude(target: dict[str, Any], name: AttributeName) -> None:
    if name.container:
        container = find_key(target, name.container)
        if container is None:
            return
        if not name.attribute:
            del target[container]
            return
        held = target[container]
        if isinstance(held, dict):
            part = dict(held)
            _exclude(part, AttributeName("", name.attribute, name.sub))
            if part:
                target[container] = part
            else:
                del target[container]
        return
    key = find_key(target, name.attribute) if name.attribute else None
    if key is None or key in _ALWAYS_RETURNED:
        return
    if not name.sub:
        del target[key]
        return
    value = target[key]
    if isinstance(value, list):
        target[key] = [_without(entry, name.sub) if isinstance(entry, dict) else entry for entry in value]
    elif isinstance(value, dict):
        target[key] = _without(value, name.sub)


def _without(entry: dict[str, Any], sub: str) -> dict[str, Any]:
    key = find_key(entry, sub)
    return {name: value for name, value in entry.items() if name != key}
