"""The SCIM operations on resources: what each request means to the engine, and what it is answered (RFC 7644 section 3).

Nothing here knows HTTP servers: a `Call` comes in, a `Reply` or a `ScimError` goes out. `Users` serves people, `Groups` groups;
`NoGroups` answers for targets whose product has no groups that may be written. All have the methods of `Resources`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from gateway.attributes import REQUIRED, Kind, fold_name
from gateway.cursors import Batch, Cursors, Place, invalid_cursor
from gateway.filters import (
    And,
    Comparison,
    Exists,
    Filter,
    Not,
    Or,
    evaluate,
    index_terms,
    parse_filter,
    query_parameters,
)
from gateway.intake import Answer, Compute, Intake, Patience
from gateway.lifecycle import Row
from gateway.messages import (
    Limits,
    ScimError,
    attribute_names,
    cursor_response,
    decode_body,
    invalid_filter,
    invalid_value,
    list_response,
    not_found,
    precondition_failed,
    project,
    resource_bytes,
    shown,
    unavailable,
)
from gateway.patch import MemberChange, PatchResult, apply_patch, normalize_create
from gateway.store import KeyAttribute, Reader, Store
from gateway.visibility import base_document, is_refused, keys_of, shown_document
from schemas.events import Trace, timestamp, valid_trace
from schemas.logs import logger
from schemas.specs import Spec

SCANS_MAX = 2
"""Filters that look at every resource run side by side at most this often; the next ones are asked to come again."""
SCAN_CHUNK_ROWS = 500
SCAN_PAGE_ROWS_MAX = 10_000
"""Resources that are looked at for one page by cursor, unless nothing was found among them."""
SCAN_WAIT_S = 8.0
"""Entra gives up on slow answers; a scan that takes longer ends in 400 `tooMany`."""
SCAN_RETRY_AFTER_S = 5
GROUPS_RETRY_AFTER_S = 30
"""A worker that starts has said what its targets take long before."""
SPELLING_WAIT_S = 0.3
SPELLINGS_MAX = 8
MEMBERS_SHOWN_MAX = 250_000
"""Members of all groups in one answer; a client that wants more has to leave them out (`excludedAttributes=members`)."""
GROUPS_OF_MEMBER_MAX = 10_000
"""Groups that a question for one member's groups looks at."""
RESPOND_ASYNC = "respond-async"
"""The preference not to wait (RFC 7240 section 4.1)."""
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
    patience: Patience
    """How long the caller waits for the product's word."""

    def header(self, name: bytes) -> str | None:
        """One request header by its lower-case name."""

    async def body(self, bytes_max: int) -> bytes:
        """The request body.

        Raises:
            ScimError: 408, 413 or 415.
        """


def _condition(call: Call) -> Callable[[Row], bool] | None:
    """The request's `If-Match` as a question to the row (RFC 7644 section 3.14); None without one."""
    header = call.header(b"if-match")
    return None if header is None else lambda row: version_matches(header, row)


def accepted(base: str, txn: str) -> Reply:
    """202 without a body: taken, and how to ask what became of it (RFC 9967 sections 2.5.1 and 3).

    Args:
        base: the tenant URL.
        txn: the event that carries the write; the same on the bus, in its `correlationid`.
    """
    headers = {"Set-Txn": txn, "Preference-Applied": RESPOND_ASYNC, "Location": f"{base}/Events/{txn}"}
    return Reply(202, headers=headers)


def _trace(call: Call) -> Trace | None:
    """The request's trace context, if it carries one that may be passed on (W3C Trace Context, section 3.2)."""
    return valid_trace(call.header(b"traceparent"), call.header(b"tracestate"))


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

    Settling alone changes nothing a reader sees, so it does not change the version; a refusal does. A group also loses members
    when they are deleted, which is no wish of its own; the time of its last modification tells.
    """
    tail = f".{round(row.modified_at * 1000):x}" if row.kind == "group" else ""
    if is_refused(row):
        tail += f".r{row.settled_generation}"
    elif row.veiled and row.acknowledged < row.generation and row.settled_document is not None:
        tail += f".s{row.settled_generation}"
    if row.observed_active is not None:
        tail += ".a" if row.observed_active else ".i"
    return f'W/"{row.generation}{tail}"'


def version_matches(header: str, row: Row) -> bool:
    """Whether an `If-Match` or `If-None-Match` header names this row's version; weak comparison (RFC 9110 section 8.8.3.2)."""
    if header.strip() == "*":
        return True
    version = version_of(row).removeprefix("W/")
    return any(candidate.strip().removeprefix("W/") == version for candidate in header.split(","))


def encoded(
    row: Row,
    base: str,
    projection: Projection = EVERYTHING,
    kind: Kind = "User",
    members: Sequence[dict[str, str]] = (),
) -> bytes:
    """What a visible row looks like to a SCIM client, with the members given; a group that has none shows none."""
    document = shown_document(row)
    if members:
        document = {**document, "members": members}
    return resource_bytes(
        document,
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


class _Collection:
    """What the operations on people and on groups have in common; see `Users` and `Groups`.

    Args:
        store: where resources are read.
        intake: takes writes.
        limits: bounds on bodies, filters and pages.
        cursors: make the cursors of long lists.
    """

    kind: Kind
    stored: str
    """The kind as the store and the engine spell it."""
    indexed: dict[str, KeyAttribute]
    """Paths of `index_terms` and the key by which the store finds them, most selective first."""
    foreign: frozenset[str]
    """Paths of `index_terms` that only the other kind has: what asks for one of them finds nothing here."""

    def __init__(self, store: Store, intake: Intake, limits: Limits, cursors: Cursors) -> None:
        self._store = store
        self._intake = intake
        self._limits = limits
        self._cursors = cursors
        self._body_bytes_max = limits.body_bytes_max
        self._scans = 0

    # ---- reading

    async def get(self, call: Call) -> Reply:
        """200, 304 when `If-None-Match` names the version, 404 (the same for every id that is not this target's)."""
        row = await self._seen(call)
        if_none_match = call.header(b"if-none-match")
        etag = {"ETag": version_of(row)}
        if if_none_match is not None and version_matches(if_none_match, row):
            return Reply(304, headers=etag)
        return Reply(200, await self._shown(row, call.base, self._projection(call)), etag)

    async def search(self, call: Call) -> Reply:
        """A page of all, or of those a filter finds; nothing found is 200 with an empty list."""
        return await self._search(call, query_parameters(call.query, limits=self._limits))

    async def search_posted(self, call: Call) -> Reply:
        """As `search`, with the parameters in the body."""
        return await self._search(call, await posted_parameters(call, self._limits))

    async def _search(self, call: Call, parameters: dict[str, str]) -> Reply:
        if "cursor" in parameters:
            return await self._search_onward(call, parameters)
        page = page_of(parameters, self._limits.count_max)
        projection = projection_of(parameters)
        rows, total = await self.listed(call, parameters.get("filter"), page)
        return Reply(200, list_response(await self.shown(rows, call.base, projection), total, page.start))

    async def _search_onward(self, call: Call, parameters: dict[str, str]) -> Reply:
        """A page by cursor (RFC 9865): as quick on the last page as on the first, and nothing is skipped or shown twice."""
        cursors, target, count_max = self._cursors, call.target, self._limits.count_max
        place = cursors.asked(target, self.kind, parameters, count_max)
        projection = projection_of(parameters)
        rows, batch = await self.onward(call, parameters.get("filter"), place)

        def cursor(seq: int | None, *, backward: bool) -> str | None:
            if seq is None:
                return None
            other = Place(place.count, seq, batch.total, backward=backward)
            return cursors.cursor(other, target, self.kind, parameters)

        after, before = cursor(batch.after, backward=False), cursor(batch.before, backward=True)
        shown = await self.shown(rows, call.base, projection)
        return Reply(200, cursor_response(shown, batch.total, after, before))

    async def onward(self, call: Call, text: str | None, place: Place) -> tuple[list[Row], Batch]:
        """The rows of one page from a place on.

        Args:
            text: the filter, None for everything.

        Raises:
            ScimError: 400 `invalidFilter` or `tooMany`, 503.
        """
        if text is None:
            return await self._store.read_slow(lambda reader: self._whole_list(reader, call.target, place))
        asked = parse_filter(text, limits=self._limits)
        found = await self._indexed(call, asked)
        if found is None:
            return await self._scanned_onward(call, asked, place)
        seqs = await self._store.read_slow(lambda reader: reader.places([row.id for row in found]))
        placed = sorted(((seqs[row.id], row) for row in found if row.id in seqs), key=lambda pair: pair[0])
        if place.backward:
            near = [pair for pair in placed if pair[0] < place.seq][-place.count - 1 :]
        else:
            near = [pair for pair in placed if pair[0] > place.seq]
        return _batch(near, place, len(placed))

    def _whole_list(self, reader: Reader, target: str, place: Place) -> tuple[list[Row], Batch]:
        total = reader.total(target, self.stored) if place.total is None and place.is_first else place.total
        ask = reader.before if place.backward else reader.after
        return _batch(ask(target, self.stored, place.seq, place.count + 1), place, total)

    async def _scanned_onward(self, call: Call, asked: Filter, place: Place) -> tuple[list[Row], Batch]:
        """A filter no key answers: look at as many as one page may cost, and go on from there with the next."""
        matches: list[tuple[int, Row]] = []
        looked, start = 0, place.seq
        async with self._scanning():
            while place.count:

                def chunk(reader: Reader, start: int = start) -> tuple[list[tuple[int, Row]], int | None]:
                    pairs = reader.after(call.target, self.stored, start, SCAN_CHUNK_ROWS)
                    seqs = {row.id: seq for seq, row in pairs}
                    kept = self._satisfying(reader, call, asked, [row for _, row in pairs])
                    end = pairs[-1][0] if len(pairs) == SCAN_CHUNK_ROWS else None
                    return [(seqs[row.id], row) for row in kept], end

                more, last = await self._store.read_slow(chunk)
                matches += more
                looked += SCAN_CHUNK_ROWS
                if len(matches) > place.count or last is None:
                    break
                if looked >= SCAN_PAGE_ROWS_MAX and matches:
                    return [row for _, row in matches], Batch(after=last)
                start = last
        rows = [row for _, row in matches[: place.count]]
        return rows, Batch(after=matches[place.count - 1][0] if len(matches) > place.count else None)

    async def listed(self, call: Call, text: str | None, page: Page) -> tuple[list[Row], int]:
        """The rows of one page, and how many there are in all.

        Args:
            text: the filter, None for everything.

        Raises:
            ScimError: 400 `invalidFilter` or `tooMany`, 503.
        """
        if text is None:
            return await self._store.read_slow(
                lambda reader: reader.page(call.target, self.stored, page.start, page.count)
            )
        found = await self._found(call, parse_filter(text, limits=self._limits))
        return found[page.start - 1 : page.start - 1 + page.count], len(found)

    async def shown(self, rows: Sequence[Row], base: str, projection: Projection) -> list[bytes]:
        """What these visible rows look like to a SCIM client."""
        return [encoded(row, base, projection, self.kind) for row in rows]

    async def _shown(self, row: Row, base: str, projection: Projection) -> bytes:
        return encoded(row, base, projection, self.kind)

    async def _seen(self, call: Call) -> Row:
        resource = call.resource
        row = None
        if _ID.match(resource):  # otherwise no id of ours, and perhaps nothing a database takes
            row = await self._store.read(lambda reader: reader.visible_row(call.target, self.stored, resource))
        if row is None:
            raise not_found(self.kind)
        return row

    async def _found(self, call: Call, asked: Filter) -> list[Row]:
        """The visible rows a filter finds, in the store's order."""
        found = await self._indexed(call, asked)
        return await self._scanned(call, asked) if found is None else found

    async def _indexed(self, call: Call, asked: Filter) -> list[Row] | None:
        """The visible rows a filter finds by a key; None when every resource has to be looked at."""
        indexed = dict(index_terms(asked))
        if not self.foreign.isdisjoint(indexed):
            return []
        resource = indexed.get("id")
        if isinstance(resource, str):
            if not _ID.match(resource):
                return []

            def one(reader: Reader) -> list[Row]:
                row = reader.visible_row(call.target, self.stored, resource)
                return self._satisfying(reader, call, asked, [row]) if row is not None else []

            return await self._store.read(one)
        for path, attribute in self.indexed.items():
            value = indexed.get(path)
            if isinstance(value, str):
                return await self._by_key(call, asked, attribute, value)
        return None

    async def _by_key(self, call: Call, asked: Filter, attribute: KeyAttribute, value: str) -> list[Row]:
        folded = value if attribute == "external_id" else value.strip().casefold()
        if not folded:
            return []
        if isinstance(asked, Comparison):
            rows = await self._keyed(call.target, attribute, folded)
            # the key is the answer, except for rows that show something else than their newest wish
            return [row for row in rows if getattr(keys_of(shown_document(row), self.stored), attribute) == folded]

        def keyed(reader: Reader) -> list[Row]:
            return self._satisfying(reader, call, asked, reader.by_key(call.target, self.stored, attribute, folded))

        return await self._store.read(keyed)

    async def _keyed(self, target: str, attribute: KeyAttribute, value: str) -> list[Row]:
        return await self._store.read(lambda reader: reader.by_key(target, self.stored, attribute, value))

    def _satisfying(self, reader: Reader, call: Call, asked: Filter, rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if evaluate(asked, _whole_document(row, call.base, self.kind))]

    async def _scanned(self, call: Call, asked: Filter) -> list[Row]:
        """Look at every resource, a chunk at a time, beside the requests that have an index."""
        async with self._scanning():
            return await self._scan(call, asked)

    @contextlib.asynccontextmanager
    async def _scanning(self) -> AsyncIterator[None]:
        """The bounds of every search without an index: how many at once, and how long each.

        Raises:
            ScimError: 503, or 400 `tooMany` when the time is over.
        """
        if self._scans >= SCANS_MAX:
            raise unavailable("Too many searches without an index are running", SCAN_RETRY_AFTER_S)
        self._scans += 1
        try:
            async with asyncio.timeout(SCAN_WAIT_S):
                yield
        except TimeoutError:
            names = ", ".join((REQUIRED[self.kind], "externalId or id"))
            raise ScimError(
                400, f"This filter would have to look at too many resources. Filter by {names}.", "tooMany"
            ) from None
        finally:
            self._scans -= 1

    async def _scan(self, call: Call, asked: Filter) -> list[Row]:
        found: list[Row] = []
        after = 0
        while True:
            start = after

            def chunk(reader: Reader, start: int = start) -> tuple[list[Row], int | None]:
                rows, last = reader.scan(call.target, self.stored, start, SCAN_CHUNK_ROWS)
                return self._satisfying(reader, call, asked, rows), last

            matches, last = await self._store.read_slow(chunk)
            found += matches
            if last is None:
                return found
            after = last

    # ---- writing

    async def delete(self, call: Call) -> Reply:
        """204, and 404 from then on; 412 when `If-Match` names another version."""
        if not _ID.match(call.resource):
            raise not_found(self.kind)
        answer = await self._intake.delete(
            call.target,
            self.stored,
            call.resource,
            if_match=_condition(call),
            trace=_trace(call),
            patience=call.patience,
        )
        if answer.error is not None:
            raise answer.error
        return self._deferred(call, answer) or Reply(204)

    async def _body(self, call: Call) -> dict[str, Any]:
        return decode_body(await call.body(self._body_bytes_max), self._limits)

    async def _changed(self, call: Call, seen: Row, compute: Compute, members: Sequence[MemberChange] = ()) -> Answer:
        matches = _condition(call)
        if matches is not None and not matches(seen):
            raise precondition_failed()
        return await self._intake.change(
            call.target,
            self.stored,
            seen,
            compute,
            if_match=matches,
            members=members,
            trace=_trace(call),
            patience=call.patience,
        )

    def _deferred(self, call: Call, answer: Answer) -> Reply | None:
        """202 for one who would rather not wait for what is not done yet (RFC 9967 section 2.5.1); None: answer as usual."""
        row = _written(answer)
        if not call.patience.accepts or answer.applied:
            return None
        return accepted(call.base, answer.txn or row.event_id)

    def _created(self, call: Call, row: Row, body: bytes) -> Reply:
        headers = {"Location": f"{call.base}/{self.kind}s/{row.id}", "ETag": version_of(row)}
        return Reply(201, body, headers)

    def _projection(self, call: Call) -> Projection:
        return projection_of(query_parameters(call.query, limits=self._limits)) if call.query else EVERYTHING


class Users(_Collection):
    """The operations on people.

    Args:
        other_spellings: asks how the product spells a userName; None when no product here normalizes.
    """

    kind = "User"
    stored = "user"
    indexed = {
        "username": "user_name",
        "externalid": "external_id",
        'emails[type eq "work"].value': "work_email",
        "displayname": "display_name",
    }
    foreign = frozenset(("members.value",))

    def __init__(
        self,
        store: Store,
        intake: Intake,
        limits: Limits,
        cursors: Cursors,
        *,
        other_spellings: OtherSpellings | None = None,
    ) -> None:
        super().__init__(store, intake, limits, cursors)
        self._other_spellings = other_spellings

    async def _by_key(self, call: Call, asked: Filter, attribute: KeyAttribute, value: str) -> list[Row]:
        found = await super()._by_key(call, asked, attribute, value)
        if found or attribute != "user_name" or self._other_spellings is None or not isinstance(asked, Comparison):
            return found
        if not value.strip():
            return found
        return await self._spelled_otherwise(self._other_spellings, call.target, asked)

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

    async def create(self, call: Call) -> Reply:
        """201 with the resource and its `Location`; 400 or 409 when the product refused in time."""
        document = normalize_create(await self._body(call), "User", limits=self._limits)
        projection = self._projection(call)
        answer = await self._intake.create(call.target, "user", document, trace=_trace(call), patience=call.patience)
        row = _written(answer)
        return self._deferred(call, answer) or self._created(call, row, encoded(row, call.base, projection))

    async def change(self, call: Call) -> Reply:
        """PATCH: 200 with the resource."""
        body = await self._body(call)
        projection = self._projection(call)  # read before anything is written: a bad query must not fail afterwards
        seen = await self._seen(call)

        def compute(base: dict[str, Any]) -> dict[str, Any]:
            return apply_patch(base, body, kind="User", limits=self._limits, resource_id=seen.id).document

        return self._changed_reply(call, await self._changed(call, seen, compute), projection)

    async def replace(self, call: Call) -> Reply:
        """PUT: what is not in the body is gone afterwards; 200 with the resource."""
        document = normalize_create(await self._body(call), "User", limits=self._limits)
        projection = self._projection(call)
        answer = await self._changed(call, await self._seen(call), lambda base: document)
        return self._changed_reply(call, answer, projection)

    def _changed_reply(self, call: Call, answer: Answer, projection: Projection) -> Reply:
        row = _written(answer)
        body = encoded(row, call.base, projection)
        return self._deferred(call, answer) or Reply(200, body, {"ETag": version_of(row)})


class Groups(_Collection):
    """The operations on groups, for targets whose product has groups that may be written.

    Memberships are rows of the store and never part of a group's document. They are read only when an answer shows them, and a
    question about single members looks at those alone, however large the group is.
    """

    kind = "Group"
    stored = "group"
    indexed = {"externalid": "external_id", "displayname": "display_name"}
    foreign = frozenset(("username", 'emails[type eq "work"].value', "emails.value"))

    def __init__(self, store: Store, intake: Intake, limits: Limits, cursors: Cursors) -> None:
        super().__init__(store, intake, limits, cursors)
        self._body_bytes_max = limits.group_body_bytes_max

    # ---- reading

    async def shown(self, rows: Sequence[Row], base: str, projection: Projection) -> list[bytes]:
        """What these visible rows look like, with their members unless they are not wanted.

        Raises:
            ScimError: 400 `tooMany`: more than MEMBERS_SHOWN_MAX members in one answer.
        """
        if not rows or not _shows_members(projection):
            return await super().shown(rows, base, projection)

        def whole(reader: Reader) -> list[bytes]:
            room = MEMBERS_SHOWN_MAX
            bodies = []
            for row in rows:
                members = _members_shown(reader, row, base, room)
                room -= len(members)
                bodies.append(encoded(row, base, projection, "Group", members))
            return bodies

        return await self._store.read_slow(whole)

    async def _shown(self, row: Row, base: str, projection: Projection) -> bytes:
        return (await self.shown((row,), base, projection))[0]

    async def _indexed(self, call: Call, asked: Filter) -> list[Row] | None:
        _check_member_terms(asked)
        found = await super()._indexed(call, asked)
        member = dict(index_terms(asked)).get("members.value")
        if found is not None or not isinstance(member, str):
            return found

        def joined(reader: Reader) -> list[Row]:
            groups = reader.groups_of(member)
            if len(groups) > GROUPS_OF_MEMBER_MAX:
                raise ScimError(
                    400, f"This member is in more than {GROUPS_OF_MEMBER_MAX:,} groups. Ask for one by id.", "tooMany"
                )
            rows = (reader.visible_row(call.target, "group", group) for group in groups)
            oldest_first = sorted((row for row in rows if row is not None), key=lambda row: row.created_at)
            return self._satisfying(reader, call, asked, oldest_first)

        return await self._store.read_slow(joined)

    def _satisfying(self, reader: Reader, call: Call, asked: Filter, rows: Sequence[Row]) -> list[Row]:
        """As for people, but of a group's members the document holds only those the filter names."""
        named = set(_members_named(asked))
        found = []
        for row in rows:
            document = _whole_document(row, call.base, "Group")
            members = [{"value": member} for member in named if reader.is_member(row.id, member)]
            if members:
                document["members"] = members
            if evaluate(asked, document):
                found.append(row)
        return found

    # ---- writing

    async def create(self, call: Call) -> Reply:
        """201 with the resource and its `Location`; 400 or 409 when the product refused in time."""
        document, members = self._taken_apart(await self._body(call))
        projection = self._projection(call)
        answer = await self._intake.create(
            call.target,
            "group",
            document,
            members=(members,),
            trace=_trace(call),
            patience=call.patience,
        )
        row = _written(answer)
        deferred = self._deferred(call, answer)
        if deferred is not None:
            return deferred
        if members.ids:
            return self._created(call, row, await self._shown(row, call.base, projection))
        return self._created(call, row, encoded(row, call.base, projection, "Group"))

    async def change(self, call: Call) -> Reply:
        """PATCH: 204, because nobody wants the members back; 200 with the resource when attributes are asked for."""
        body = await self._body(call)
        projection = self._projection(call)
        seen = await self._seen(call)

        def patched(base: dict[str, Any]) -> PatchResult:
            return apply_patch(base, body, kind="Group", limits=self._limits, resource_id=seen.id)

        base = base_document(seen)
        first = patched(base)

        def compute(current: dict[str, Any]) -> dict[str, Any]:
            return first.document if current == base else patched(current).document

        answer = await self._changed(call, seen, compute, first.members)
        row = _written(answer)
        deferred = self._deferred(call, answer)
        if deferred is not None:
            return deferred
        etag = {"ETag": version_of(row)}
        if not projection.attributes:
            return Reply(204, headers=etag)
        return Reply(200, await self._shown(row, call.base, projection), etag)

    async def replace(self, call: Call) -> Reply:
        """PUT: what is not in the body is gone afterwards, members included; 200 with the resource."""
        document, members = self._taken_apart(await self._body(call))
        projection = self._projection(call)
        answer = await self._changed(call, await self._seen(call), lambda base: document, (members,))
        row = _written(answer)
        deferred = self._deferred(call, answer)
        if deferred is not None:
            return deferred
        return Reply(200, await self._shown(row, call.base, projection), {"ETag": version_of(row)})

    def _taken_apart(self, body: dict[str, Any]) -> tuple[dict[str, Any], MemberChange]:
        """A whole group as its document and its members."""
        document = normalize_create(body, "Group", limits=self._limits)
        members = document.pop("members", ())
        return document, MemberChange("replace", tuple(member["value"] for member in members))


def _shows_members(projection: Projection) -> bool:
    """Whether anything of `members` is left by `attributes` and `excludedAttributes` (RFC 7644 section 3.9)."""
    if projection is EVERYTHING:
        return True
    left = project({"members": [_ANY_MEMBER]}, projection.attributes, projection.excluded)
    return any(left.get("members", ()))


def _members_shown(reader: Reader, row: Row, base: str, count_max: int) -> list[dict[str, str]]:
    members = reader.member_kinds(row.id, row.target, count_max + 1)
    if len(members) > count_max:
        raise ScimError(
            400,
            f"One answer holds {MEMBERS_SHOWN_MAX:,} members at most. Ask with excludedAttributes=members.",
            "tooMany",
        )
    return [_member(member, kind, base) for member, kind in members]


def _member(member: str, kind: str | None, base: str) -> dict[str, str]:
    """One entry of `members`; of one that is not here yet nothing is known but its id."""
    if kind is None:
        return {"value": member}
    name = "Group" if kind == "group" else "User"
    return {"value": member, "$ref": f"{base}/{name}s/{member}", "type": name}


_ANY_MEMBER = _member("", "user", "")


def _comparisons(asked: Filter) -> Iterator[Comparison | Exists]:
    if isinstance(asked, And | Or):
        for term in asked.terms:
            yield from _comparisons(term)
    elif isinstance(asked, Not):
        yield from _comparisons(asked.term)
    else:
        yield asked


def _members_named(asked: Filter) -> Iterator[str]:
    """The ids a checked filter asks for in `members`."""
    for term in _comparisons(asked):
        if term.path.attribute == "members" and not term.path.container:
            inner = term.path.where if isinstance(term, Exists) else term
            if isinstance(inner, Comparison) and isinstance(inner.value, str):
                yield inner.value


def _check_member_terms(asked: Filter) -> None:
    """A filter may ask whether somebody is a member; anything else about members would read whole groups.

    Raises:
        ScimError: 400 `invalidFilter`.
    """
    for term in _comparisons(asked):
        path = term.path
        if path.attribute != "members" or path.container:
            continue
        if isinstance(term, Exists):
            inner = path.where
            fits = isinstance(inner, Comparison) and inner.path.attribute == "value" and inner.op == "eq"
            fits = fits and isinstance(inner, Comparison) and isinstance(inner.value, str)
        else:
            fits = path.where is None and path.sub in ("", "value") and term.op == "eq" and isinstance(term.value, str)
        if not fits:
            raise invalid_filter("asks for more than a single member", 'Write it as in members eq "<id>"')


class Everything:
    """A search over all that a target has: its people, and its groups where it takes any (RFC 7644 section 3.4.3).

    Args:
        takes_groups: whether a target does.
    """

    def __init__(
        self, users: Users, groups: Groups, takes_groups: Callable[[str], bool], limits: Limits, cursors: Cursors
    ) -> None:
        self._cursors = cursors
        self._users = users
        self._groups = groups
        self._takes_groups = takes_groups
        self._limits = limits

    async def search_posted(self, call: Call) -> Reply:
        """People come first; a page may hold the last of them and the first groups."""
        parameters = await posted_parameters(call, self._limits)
        if "cursor" in parameters:
            return await self._search_onward(call, parameters)
        page = page_of(parameters, self._limits.count_max)
        projection = projection_of(parameters)
        text = parameters.get("filter")
        rows, total = await self._users.listed(call, text, page)
        bodies = await self._users.shown(rows, call.base, projection)
        if self._takes_groups(call.target):
            rest = Page(max(1, page.start - total), page.count - len(rows))
            rows, groups = await self._groups.listed(call, text, rest)
            bodies += await self._groups.shown(rows, call.base, projection)
            total += groups
        return Reply(200, list_response(bodies, total, page.start))

    async def _search_onward(self, call: Call, parameters: dict[str, str]) -> Reply:
        """As by index, and nobody goes back; how many there are in all is not counted."""
        place = self._cursors.asked(call.target, "", parameters, self._limits.count_max)
        projection = projection_of(parameters)
        text = parameters.get("filter")
        bodies: list[bytes] = []
        following: Place | None = None
        if not place.later_kind:
            rows, batch = await self._users.onward(call, text, place)
            bodies = await self._users.shown(rows, call.base, projection)
            if batch.after is not None:
                following = Place(place.count, batch.after)
        room = place.count - len(bodies)
        if following is None and place.count and self._takes_groups(call.target):
            start = place.seq if place.later_kind else 0
            following = Place(place.count, start, later_kind=True)
            if room:
                rows, batch = await self._groups.onward(call, text, Place(room, start, later_kind=True))
                bodies += await self._groups.shown(rows, call.base, projection)
                following = None if batch.after is None else Place(place.count, batch.after, later_kind=True)
        cursor = None
        if following is not None:
            cursor = self._cursors.cursor(following, call.target, "", parameters)
        return Reply(200, cursor_response(bodies, None, cursor, None))


def _batch(near: list[tuple[int, Row]], place: Place, total: int | None) -> tuple[list[Row], Batch]:
    """One page of rows that lie beside a place; one more than the page holds tells that there are more."""
    count = place.count
    page = near[max(0, len(near) - count) :] if place.backward else near[:count]
    if not count:
        return [], Batch(total=total)
    rows = [row for _, row in page]
    if place.backward:
        after = page[-1][0] if page else place.seq - 1
        return rows, Batch(after, page[0][0] if len(near) > count else None, total)
    before = page[0][0] if page and place.seq else None
    return rows, Batch(page[-1][0] if len(near) > count else None, before, total)


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
        if parameters.get("cursor"):
            raise invalid_cursor()  # none was ever made for an empty list
        page = page_of(parameters, self._limits.count_max)
        text = parameters.get("filter")
        if text is not None:
            parse_filter(text, limits=self._limits)
        if "cursor" in parameters:
            return Reply(200, cursor_response((), 0, None, None))
        return Reply(200, list_response((), 0, page.start))

    async def get(self, call: Call) -> Reply:
        """404."""
        raise not_found("Group")

    async def create(self, call: Call) -> Reply:
        """400 with the setup step; 403 would read as missing rights in Entra's log. 503 while no worker was ever seen."""
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
        if spec is None:  # a refusal would be a guess, and would send Entra's admin after a setting that may be right
            return unavailable("No worker has said yet whether this target takes groups", GROUPS_RETRY_AFTER_S)
        step = spec.groups_step or self.STEP
        step = step if step.endswith(".") else f"{step}."
        return ScimError(400, f"{spec.title} does not take groups through this connection. {step}", "invalidValue")
