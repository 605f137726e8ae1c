"""The SCIM operations on resources: what each request means to the engine, and what it is answered (RFC 7644 section 3).

Nothing here knows HTTP servers: a `Call` comes in, a `Reply` or a `ScimError` goes out. `Users` serves people; `NoGroups` answers
for targets whose product has no groups that may be written. A class with the methods of `Resources` can take its place.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from gateway.attributes import Kind, fold_name
from gateway.filters import Comparison, Filter, evaluate, index_terms, parse_filter, query_parameters
from gateway.intake import Answer, Intake
from gateway.lifecycle import Row
from gateway.messages import (
    Limits,
    ScimError,
    attribute_names,
    decode_body,
    invalid_value,
    list_response,
    not_found,
    precondition_failed,
    resource_bytes,
    shown,
    unavailable,
)
from gateway.patch import apply_patch, normalize_create
from gateway.store import KeyAttribute, Reader, Store
from gateway.visibility import is_refused, keys_of, shown_document
from schemas.events import timestamp
from schemas.logs import logger
from schemas.specs import Spec

SCANS_MAX = 2
"""Filters that look at every resource run side by side at most this often; the next ones are asked to come again."""
SCAN_CHUNK_ROWS = 500
SCAN_WAIT_S = 8.0
"""Entra gives up on slow answers; a scan that takes longer ends in 400 `tooMany`."""
SCAN_RETRY_AFTER_S = 5
SPELLING_WAIT_S = 0.3
SPELLINGS_MAX = 8
_NUMBER_CHARS_MAX = 18
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")

OtherSpellings = Callable[[str, str], Awaitable[Sequence[str]]]
"""Target and a userName as asked; the product's own natural keys for it (rule A1). Empty when it has none, never an error."""

log = logger()


class Reply(Struct, frozen=True):
    """An answer: status, JSON body (empty for none) and further headers."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = {}


class Call(Protocol):
    """One authenticated request."""

    target: str
    base: str
    """The tenant URL as the caller knows it, without a slash at its end."""
    resource: str
    """The id in the path; "" for requests to the collection."""
    query: bytes

    def header(self, name: bytes) -> str | None:
        """One request header by its lower-case name."""

    async def body(self, bytes_max: int) -> bytes:
        """The request body.

        Raises:
            ScimError: 408, 413 or 415.
        """


class Resources(Protocol):
    """The operations on one kind of resource."""

    async def search(self, call: Call) -> Reply:
        """GET of the collection."""

    async def search_posted(self, call: Call) -> Reply:
        """POST of a SearchRequest to `.search`, for questions too long or too private for a URL."""

    async def get(self, call: Call) -> Reply:
        """GET of one."""

    async def create(self, call: Call) -> Reply:
        """POST."""

    async def replace(self, call: Call) -> Reply:
        """PUT."""

    async def change(self, call: Call) -> Reply:
        """PATCH."""

    async def delete(self, call: Call) -> Reply:
        """DELETE."""


class Page(Struct, frozen=True):
    """What of a list is wanted (RFC 7644 section 3.4.2.4): `start` counts from 1 and is echoed, `count` is bounded."""

    start: int = 1
    count: int = 0


class Projection(Struct, frozen=True):
    """`attributes` and `excludedAttributes` of a request."""

    attributes: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


EVERYTHING = Projection()


def page_of(parameters: Mapping[str, str], count_max: int) -> Page:
    """Paging as asked: a start below 1 is 1, a negative count is 0, more than we give is cut.

    Raises:
        ScimError: 400 `invalidValue` for something that is no whole number.
    """
    start = _whole_number(parameters, "startindex", "startIndex", 1)
    count = _whole_number(parameters, "count", "count", count_max)
    return Page(max(1, start), min(max(0, count), count_max))


def _whole_number(parameters: Mapping[str, str], name: str, spelling: str, default: int) -> int:
    text = parameters.get(name)
    if text is None:
        return default
    text = text.strip()
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > _NUMBER_CHARS_MAX:
        raise invalid_value(spelling, "is not a whole number", "Leave it out or send digits only")
    return int(text)


async def posted_parameters(call: Call, limits: Limits) -> dict[str, str]:
    """The parameters in a SearchRequest (RFC 7644 section 3.4.3), as `query_parameters` gives those of a URL.

    Raises:
        ScimError: 400 for a body that is none, or a parameter of a wrong type.
    """
    body = decode_body(await call.body(limits.body_bytes_max), limits)
    parameters: dict[str, str] = {}
    for name, value in body.items():
        folded = fold_name(name)
        if value is None or folded == "schemas":
            continue
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = ",".join(value)
        elif type(value) is int:
            value = str(value)
        if not isinstance(value, str):
            raise invalid_value(shown(name), "has a type it cannot have in a search", "Send text, a number, or names")
        parameters[folded] = value
    return parameters


def projection_of(parameters: Mapping[str, str]) -> Projection:
    """Which attributes are wanted."""
    if "attributes" not in parameters and "excludedattributes" not in parameters:
        return EVERYTHING
    return Projection(
        attribute_names(parameters.get("attributes")), attribute_names(parameters.get("excludedattributes"))
    )


def version_of(row: Row) -> str:
    """The weak ETag of what a row shows: its generation, and what is shown instead while that is not the wish.

    Settling alone changes nothing a reader sees, so it does not change the version; a refusal does.
    """
    tail = ""
    if is_refused(row):
        tail = f".r{row.settled_generation}"
    elif row.veiled and row.acknowledged < row.generation and row.settled_document is not None:
        tail = f".s{row.settled_generation}"
    if row.observed_active is not None:
        tail += ".a" if row.observed_active else ".i"
    return f'W/"{row.generation}{tail}"'


def version_matches(header: str, row: Row) -> bool:
    """Whether an `If-Match` or `If-None-Match` header names this row's version; weak comparison (RFC 9110 section 8.8.3.2)."""
    if header.strip() == "*":
        return True
    version = version_of(row).removeprefix("W/")
    return any(candidate.strip().removeprefix("W/") == version for candidate in header.split(","))


def encoded(row: Row, base: str, projection: Projection = EVERYTHING, kind: Kind = "User") -> bytes:
    """What a visible row looks like to a SCIM client."""
    return resource_bytes(
        shown_document(row),
        kind=kind,
        resource_id=row.id,
        location=f"{base}/{kind}s/{row.id}",
        created=timestamp(row.created_at),
        last_modified=timestamp(row.modified_at),
        version=version_of(row),
        attributes=projection.attributes,
        excluded_attributes=projection.excluded,
    )


def _whole_document(row: Row, base: str, kind: Kind) -> dict[str, Any]:
    """What a filter is evaluated on: the shown document with its common attributes."""
    return {
        **shown_document(row),
        "id": row.id,
        "meta": {
            "resourceType": kind,
            "created": timestamp(row.created_at),
            "lastModified": timestamp(row.modified_at),
            "location": f"{base}/{kind}s/{row.id}",
            "version": version_of(row),
        },
    }


_INDEXED: dict[str, KeyAttribute] = {
    "username": "user_name",
    "externalid": "external_id",
    'emails[type eq "work"].value': "work_email",
    "displayname": "display_name",
}
"""Paths of `index_terms` and the key by which the store finds them, most selective first."""


class Users:
    """The operations on people.

    Args:
        store: where resources are read.
        intake: takes writes.
        limits: bounds on bodies, filters and pages.
        other_spellings: asks how the product spells a userName; None when no product here normalizes.
    """

    def __init__(
        self, store: Store, intake: Intake, limits: Limits, *, other_spellings: OtherSpellings | None = None
    ) -> None:
        self._store = store
        self._intake = intake
        self._limits = limits
        self._other_spellings = other_spellings
        self._scans = 0

    # ---- reading

    async def get(self, call: Call) -> Reply:
        """200, 304 when `If-None-Match` names the version, 404 (the same for every id that is not this target's)."""
        row = await self._seen(call)
        if_none_match = call.header(b"if-none-match")
        etag = {"ETag": version_of(row)}
        if if_none_match is not None and version_matches(if_none_match, row):
            return Reply(304, headers=etag)
        projection = projection_of(query_parameters(call.query, limits=self._limits)) if call.query else EVERYTHING
        return Reply(200, encoded(row, call.base, projection), etag)

    async def search(self, call: Call) -> Reply:
        """A page of all, or of those a filter finds; nothing found is 200 with an empty list."""
        return await self._search(call, query_parameters(call.query, limits=self._limits))

    async def search_posted(self, call: Call) -> Reply:
        """As `search`, with the parameters in the body."""
        return await self._search(call, await posted_parameters(call, self._limits))

    async def _search(self, call: Call, parameters: dict[str, str]) -> Reply:
        page = page_of(parameters, self._limits.count_max)
        projection = projection_of(parameters)
        text = parameters.get("filter")
        if text is None:
            rows, total = await self._store.read_slow(
                lambda reader: reader.page(call.target, "user", page.start, page.count)
            )
        else:
            found = await self._found(call, parse_filter(text, limits=self._limits))
            total = len(found)
            rows = found[page.start - 1 : page.start - 1 + page.count]
        return Reply(200, list_response([encoded(row, call.base, projection) for row in rows], total, page.start))

    async def _seen(self, call: Call) -> Row:
        row = await self._one(call.target, call.resource)
        if row is None:
            raise not_found("User")
        return row

    async def _one(self, target: str, resource: str) -> Row | None:
        if not _ID.match(resource):
            return None  # no id of ours, and perhaps nothing a database takes
        return await self._store.read(lambda reader: reader.visible_row(target, "user", resource))

    async def _found(self, call: Call, asked: Filter) -> list[Row]:
        """The visible rows a filter finds, in the store's order."""
        indexed = dict(index_terms(asked))
        resource = indexed.get("id")
        if isinstance(resource, str):
            row = await self._one(call.target, resource)
            return self._evaluated(call, asked, [row] if row is not None else [])
        for path, attribute in _INDEXED.items():
            value = indexed.get(path)
            if isinstance(value, str):
                return await self._by_key(call, asked, attribute, value)
        return await self._scanned(call, asked)

    async def _by_key(self, call: Call, asked: Filter, attribute: KeyAttribute, value: str) -> list[Row]:
        folded = value if attribute == "external_id" else value.strip().casefold()
        if not folded:
            return []
        rows = await self._keyed(call.target, attribute, folded)
        if not isinstance(asked, Comparison):
            return self._evaluated(call, asked, rows)
        # the key is the answer, except for rows that show something else than their newest wish
        found = [row for row in rows if getattr(keys_of(shown_document(row), "user"), attribute) == folded]
        if not found and attribute == "user_name" and self._other_spellings is not None:
            found = await self._spelled_otherwise(self._other_spellings, call.target, asked)
        return found

    async def _keyed(self, target: str, attribute: KeyAttribute, value: str) -> list[Row]:
        return await self._store.read(lambda reader: reader.by_key(target, "user", attribute, value))

    async def _spelled_otherwise(self, other_spellings: OtherSpellings, target: str, asked: Comparison) -> list[Row]:
        """A userName that is not ours letter by letter may still be the same account at the product (rule A1)."""
        try:
            async with asyncio.timeout(SPELLING_WAIT_S):
                spellings = await other_spellings(target, str(asked.value))
        except TimeoutError:
            return []
        found: dict[str, Row] = {}
        for spelling in spellings[:SPELLINGS_MAX]:
            for row in await self._keyed(target, "account_key", spelling):
                found[row.id] = row
        return list(found.values())

    def _evaluated(self, call: Call, asked: Filter, rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if evaluate(asked, _whole_document(row, call.base, "User"))]

    async def _scanned(self, call: Call, asked: Filter) -> list[Row]:
        """Look at every resource, a chunk at a time, beside the requests that have an index."""
        if self._scans >= SCANS_MAX:
            raise unavailable("Too many searches without an index are running", SCAN_RETRY_AFTER_S)
        self._scans += 1
        try:
            async with asyncio.timeout(SCAN_WAIT_S):
                return await self._scan(call, asked)
        except TimeoutError:
            raise ScimError(
                400,
                "This filter would have to look at too many resources. Filter by userName, externalId or id.",
                "tooMany",
            ) from None
        finally:
            self._scans -= 1

    async def _scan(self, call: Call, asked: Filter) -> list[Row]:
        found: list[Row] = []
        after = 0
        while True:
            start = after

            def chunk(reader: Reader, start: int = start) -> tuple[list[Row], int | None]:
                rows, last = reader.scan(call.target, "user", start, SCAN_CHUNK_ROWS)
                return self._evaluated(call, asked, rows), last

            matches, last = await self._store.read_slow(chunk)
            found += matches
            if last is None:
                return found
            after = last

    # ---- writing

    async def create(self, call: Call) -> Reply:
        """201 with the resource and its `Location`; 400 or 409 when the product refused in time."""
        body = decode_body(await call.body(self._limits.body_bytes_max), self._limits)
        document = normalize_create(body, "User", limits=self._limits)
        projection = self._projection(call)
        row = _written(await self._intake.create(call.target, "user", document))
        headers = {"Location": f"{call.base}/Users/{row.id}", "ETag": version_of(row)}
        return Reply(201, encoded(row, call.base, projection), headers)

    async def change(self, call: Call) -> Reply:
        """PATCH: 200 with the resource."""
        body = decode_body(await call.body(self._limits.body_bytes_max), self._limits)
        seen = await self._seen(call)

        def compute(base: dict[str, Any]) -> dict[str, Any]:
            return apply_patch(base, body, kind="User", limits=self._limits, resource_id=seen.id).document

        return await self._changed(call, seen, compute)

    async def replace(self, call: Call) -> Reply:
        """PUT: what is not in the body is gone afterwards; 200 with the resource."""
        body = decode_body(await call.body(self._limits.body_bytes_max), self._limits)
        document = normalize_create(body, "User", limits=self._limits)
        return await self._changed(call, await self._seen(call), lambda base: document)

    async def delete(self, call: Call) -> Reply:
        """204, and 404 from then on."""
        if not _ID.match(call.resource):
            raise not_found("User")
        header = call.header(b"if-match")
        if header is not None and not version_matches(header, await self._seen(call)):
            raise precondition_failed()
        answer = await self._intake.delete(call.target, "user", call.resource)
        if answer.error is not None:
            raise answer.error
        return Reply(204)

    async def _changed(self, call: Call, seen: Row, compute: Callable[[dict[str, Any]], dict[str, Any]]) -> Reply:
        header = call.header(b"if-match")
        projection = self._projection(call)  # read before anything is written: a bad query must not fail afterwards

        def matches(row: Row) -> bool:
            return header is None or version_matches(header, row)

        if not matches(seen):
            raise precondition_failed()
        answer = await self._intake.change(
            call.target, "user", seen, compute, if_match=matches if header is not None else None
        )
        row = _written(answer)
        return Reply(200, encoded(row, call.base, projection), {"ETag": version_of(row)})

    def _projection(self, call: Call) -> Projection:
        return projection_of(query_parameters(call.query, limits=self._limits)) if call.query else EVERYTHING


def _written(answer: Answer) -> Row:
    if answer.error is not None:
        raise answer.error
    if answer.row is None:
        raise RuntimeError("an answer has neither a row nor an error")
    return answer.row


class NoGroups:
    """Groups of a target whose product has none that may be written.

    Entra asks for groups even when it provisions users only, and takes a 404 on a query for a broken address; so searches find
    nothing, and writes are refused with the step that switches them off in Entra.

    Args:
        spec_of: the connector's declaration of a target, None while no worker has announced one.
    """

    STEP = "Set Mappings > Provision Microsoft Entra ID Groups > Enabled to No"

    def __init__(self, spec_of: Callable[[str], Spec | None], limits: Limits) -> None:
        self._spec_of = spec_of
        self._limits = limits

    async def search(self, call: Call) -> Reply:
        """200 with an empty list; the query is checked all the same."""
        return self._nothing(query_parameters(call.query, limits=self._limits))

    async def search_posted(self, call: Call) -> Reply:
        """As `search`, with the parameters in the body."""
        return self._nothing(await posted_parameters(call, self._limits))

    def _nothing(self, parameters: dict[str, str]) -> Reply:
        page = page_of(parameters, self._limits.count_max)
        text = parameters.get("filter")
        if text is not None:
            parse_filter(text, limits=self._limits)
        return Reply(200, list_response((), 0, page.start))

    async def get(self, call: Call) -> Reply:
        """404."""
        raise not_found("Group")

    async def create(self, call: Call) -> Reply:
        """400 with the setup step; 403 would read as missing rights in Entra's log."""
        raise self._refused(call.target)

    async def replace(self, call: Call) -> Reply:
        """400 with the setup step."""
        raise self._refused(call.target)

    async def change(self, call: Call) -> Reply:
        """400 with the setup step."""
        raise self._refused(call.target)

    async def delete(self, call: Call) -> Reply:
        """404: there is nothing left to remove, which is how Entra reads it."""
        raise not_found("Group")

    def _refused(self, target: str) -> ScimError:
        spec = self._spec_of(target)
        product = spec.title if spec is not None else "This target"
        step = (spec.groups_step if spec is not None else "") or self.STEP
        step = step if step.endswith(".") else f"{step}."
        return ScimError(400, f"{product} does not take groups through this connection. {step}", "invalidValue")
