"""Many writes in one request (RFC 7644 section 3.7).

Each operation goes the way of the request it stands for, through the same functions and under the same limits, so that it cannot
do anything that one could not do; the target is that of the request. Operations run one after the other: a deletion and the
creation that takes over its name keep their order. Only one that refers to a later one (`bulkId`) waits for that one first.
References in a circle are resolved by creating without them and completing with a PUT; what cannot be resolved is 409.

Outcomes are waited for as long as one request may wait, all operations together. After that they are answered as a single request
whose outcome comes late.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from gateway.attributes import find_key, fold_name
from gateway.endpoints import Call, Reply, Resources
from gateway.intake import Patience
from gateway.messages import (
    BULK_RESPONSE,
    Limits,
    ScimError,
    conflict,
    decode_body,
    invalid_path,
    invalid_syntax,
    invalid_value,
    shown,
    too_large,
    unavailable,
)
from gateway.writer import StoreError

BULKS_MAX = 4
"""Bulk requests in work at once in one gateway; the next are asked to come again."""
BULK_WAIT_S = 30.0
"""Operations that were not begun within this time are not tried."""
BULK_ID_CHARS_MAX = 128
RETRY_AFTER_S = 5
_ENVELOPE_DEPTH = 3
"""The request, its operations and the operation around the data."""

_METHODS = frozenset(("POST", "PUT", "PATCH", "DELETE"))
_PATH = re.compile(r"/?(Users|Groups)(?:/([^/?#]{1,192}))?/?\Z")
_START = "bulkId:"
_QUOTED = re.compile(r'"bulkId:([^"\\]{1,128})"')
_REFERENCE_KEYS = frozenset(("value", "$ref", "path"))
"""Under these names a reference has to lead somewhere; elsewhere it may be a text like any other."""


class Operation(Struct, frozen=True):
    """One operation as it was sent.

    Args:
        bulk_id: by what other operations refer to what this one creates; "" without.
        kind: `Users` or `Groups`.
        resource: the id in the path, or a reference; "" for creations.
        version: the version the resource must have, as in `If-Match`; None for any.
        names: every operation this one refers to; `bound` are those without which it makes no sense.
        error: why it cannot be tried at all.
    """

    method: str
    bulk_id: str = ""
    kind: str = ""
    resource: str = ""
    version: str | None = None
    data: Any = None
    names: frozenset[str] = frozenset()
    bound: frozenset[str] = frozenset()
    error: ScimError | None = None


class Done(Struct):
    """What became of one operation."""

    status: int
    location: str = ""
    version: str | None = None
    error: ScimError | None = None


class OperationCall:
    """One operation as a request of its own; the `Call` of `gateway/endpoints.py`."""

    __slots__ = ("_body", "_version", "base", "patience", "query", "resource", "target")

    def __init__(self, around: Call, resource: str, body: bytes, version: str | None, patience: Patience) -> None:
        self.target = around.target
        self.base = around.base
        self.resource = resource
        self.query = b""
        self.patience = patience
        self._body = body
        self._version = version

    def header(self, name: bytes) -> str | None:
        """The version is the only thing an operation says beside its data."""
        return self._version if name == b"if-match" else None

    async def body(self, bytes_max: int) -> bytes:
        """The data.

        Raises:
            ScimError: 413, as for a single request.
        """
        if len(self._body) > bytes_max:
            raise too_large("The data of this operation", bytes_max)
        return self._body


class Bulk:
    """Answers bulk requests.

    Args:
        resources_of: the operations on `Users` and `Groups` of a target.
        limits: of single requests and of the whole.
        answer_wait_s: how long the outcomes of all operations together are waited for.
        refused: why a target may not write once more now; counts what it may.
    """

    def __init__(
        self,
        resources_of: Callable[[str, str], Resources],
        limits: Limits,
        *,
        answer_wait_s: float,
        refused: Callable[[str], ScimError | None],
    ) -> None:
        self._resources_of = resources_of
        self._limits = limits
        self._envelope = msgspec.structs.replace(
            limits,
            keys_max=limits.bulk_body_bytes_max,  # bounded by the size; each operation has its own bounds
            members_max=limits.bulk_body_bytes_max,
            depth_max=limits.depth_max + _ENVELOPE_DEPTH,
        )
        self._answer_wait_s = answer_wait_s
        self._refused = refused
        self._in_work = 0

    async def post(self, call: Call) -> Reply:
        """200 with one result per operation that was tried, in the order in which they were sent.

        Raises:
            ScimError: 413 for more operations or bytes than announced, 400 for a request that is none, 503 for one too many.
        """
        if self._in_work >= BULKS_MAX:
            raise unavailable("Too many bulk requests are in work", RETRY_AFTER_S)
        self._in_work += 1
        try:
            return await self._answer(call)
        finally:
            self._in_work -= 1

    async def _answer(self, call: Call) -> Reply:
        body = decode_body(await call.body(self._limits.bulk_body_bytes_max), self._envelope)
        operations = _operations(body, self._limits.operations_max)
        errors_max = _errors_max(body)
        clock = asyncio.get_running_loop().time
        started = clock()

        async def perform(operation: Operation, kind: str, resource: str, data: Any) -> Done:
            left_s = max(0.0, self._answer_wait_s - (clock() - started))
            if clock() - started > BULK_WAIT_S:
                raise unavailable("The time for one bulk request is over; send the rest in another", RETRY_AFTER_S)
            return await self._perform(call, operation, kind, resource, data, Patience(wait_s=left_s))

        run = _Run(operations, errors_max, perform)
        await run.all()
        results = [_result(operation, run.done[n]) for n, operation in enumerate(operations) if n in run.done]
        return Reply(200, msgspec.json.encode({"schemas": [BULK_RESPONSE], "Operations": results}))

    async def _perform(
        self, call: Call, operation: Operation, kind: str, resource: str, data: Any, patience: Patience
    ) -> Done:
        resources = self._resources_of(call.target, kind)
        body = b"" if data is None else msgspec.json.encode(data)
        single = OperationCall(call, resource, body, operation.version, patience)
        verb = {
            "POST": resources.create,
            "PUT": resources.replace,
            "PATCH": resources.change,
            "DELETE": resources.delete,
        }[operation.method]
        refusal = self._refused(call.target)
        if refusal is not None:
            raise refusal
        reply = await verb(single)
        location = reply.headers.get("Location") or f"{call.base}/{kind}/{resource}"
        return Done(reply.status, location, reply.headers.get("ETag"))


Perform = Callable[[Operation, str, str, Any], Awaitable[Done]]
"""Does one operation on a kind of resources, the id of one (empty for a creation) and data without references."""


class _Run:
    """The operations of one request on their way.

    Args:
        errors_max: end after this many errors; None for never.
        perform: does one operation; raises ScimError or StoreError.
    """

    def __init__(self, operations: Sequence[Operation], errors_max: int | None, perform: Perform) -> None:
        self._operations = operations
        self._errors_max = errors_max
        self._perform = perform
        self._makers = {op.bulk_id: n for n, op in enumerate(operations) if op.method == "POST" and op.bulk_id}
        self._ids: dict[str, str] = {}
        self._errors = 0
        self._store_gone: ScimError | None = None
        self.done: dict[int, Done] = {}

    async def all(self) -> None:
        """Try every operation, until there were too many errors."""
        incomplete: dict[int, frozenset[str]] = {}
        for number in _order(
            [[self._makers[name] for name in op.names if name in self._makers] for op in self._operations]
        ):
            if self._is_over():
                break
            operation = self._operations[number]
            missing = frozenset(
                name for name in operation.names if name in self._makers and self._makers[name] not in self.done
            )
            done = self.done[number] = await self._one(operation, missing)
            self._errors += done.error is not None
            if done.error is None and operation.method == "POST" and operation.bulk_id:
                self._ids[operation.bulk_id] = done.location.rpartition("/")[2]
            if done.error is None and missing:
                incomplete[number] = missing
        for number, missing in incomplete.items():
            self.done[number] = await self._complete(self._operations[number], self.done[number], missing)
            self._errors += self.done[number].error is not None

    def _is_over(self) -> bool:
        return self._errors_max is not None and self._errors >= self._errors_max

    async def _one(self, operation: Operation, missing: frozenset[str]) -> Done:
        """One operation; without the references in a circle, whose ends are not there yet."""
        if operation.error is not None:
            return _failed(operation.error)
        for name in sorted(operation.names):
            if name in missing or name in self._ids:
                continue
            if name in self._makers:
                return _failed(
                    conflict(f"The operation with the bulkId {shown(name)}, to which this one refers, failed")
                )
            if name in operation.bound:
                return _failed(conflict(f"No operation of this request creates anything with the bulkId {shown(name)}"))
        data = _without(operation.data, missing) if missing else operation.data
        return await self._tried(operation, self._resource(operation), data)

    async def _complete(self, created: Operation, done: Done, missing: frozenset[str]) -> Done:
        """Give a resource that was created without some references all of them."""
        lost = sorted(name for name in missing if name not in self._ids)
        if lost or self._is_over():
            what = shown((lost or sorted(missing))[0])
            error = conflict(f"Created without its reference to the bulkId {what}, which could not be resolved")
            return Done(error.status, done.location, done.version, error)
        whole = msgspec.structs.replace(created, method="PUT", version=None)
        put = await self._tried(whole, done.location.rpartition("/")[2], created.data)
        if put.error is not None:
            return Done(put.status, done.location, done.version, put.error)
        return Done(done.status, done.location, put.version)

    async def _tried(self, operation: Operation, resource: str, data: Any) -> Done:
        if self._store_gone is not None:
            return _failed(self._store_gone)
        try:
            return await self._perform(operation, operation.kind, resource, _resolved(data, self._ids))
        except ScimError as error:
            return _failed(error)
        except StoreError:
            self._store_gone = unavailable("The gateway cannot take this now", RETRY_AFTER_S)
            return _failed(self._store_gone)

    def _resource(self, operation: Operation) -> str:
        return self._ids.get(operation.resource.removeprefix(_START), operation.resource)


def _failed(error: ScimError) -> Done:
    return Done(error.status, error=error)


def _result(operation: Operation, done: Done) -> dict[str, Any]:
    """One operation of the answer (RFC 7644 section 3.7.3)."""
    result: dict[str, Any] = {"method": operation.method}
    if operation.bulk_id:
        result["bulkId"] = operation.bulk_id
    if done.version is not None:
        result["version"] = done.version
    if done.location:
        result["location"] = done.location
    result["status"] = str(done.status)
    if done.error is not None:
        result["response"] = msgspec.Raw(done.error.to_bytes())
    return result


def _order(needs: Sequence[Sequence[int]]) -> Iterator[int]:
    """All numbers in order, each after those it needs; a circle is broken where it closes."""
    begun: set[int] = set()
    for first in range(len(needs)):
        if first in begun:
            continue
        begun.add(first)
        path = [(first, iter(sorted(needs[first])))]
        while path:
            number, rest = path[-1]
            following = next((n for n in rest if n not in begun), None)
            if following is None:
                path.pop()
                yield number
            else:
                begun.add(following)
                path.append((following, iter(sorted(needs[following]))))


# ---- what was sent


def _operations(body: Mapping[str, Any], operations_max: int) -> list[Operation]:
    key = find_key(body, "Operations")
    sent = body[key] if key is not None else None
    if not isinstance(sent, list):
        raise invalid_syntax("The request has no list of Operations", "Send a BulkRequest (RFC 7644 section 3.7)")
    if len(sent) > operations_max:
        raise too_large("The list of Operations", operations_max, "operations")
    operations = [_operation(entry) for entry in sent]
    names = [operation.bulk_id for operation in operations if operation.bulk_id and operation.method == "POST"]
    if len(set(names)) != len(names):
        raise invalid_value("bulkId", "occurs twice", "Give every creation a bulkId of its own")
    return operations


def _errors_max(body: Mapping[str, Any]) -> int | None:
    key = find_key(body, "failOnErrors")
    value = body[key] if key is not None else None
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise invalid_value("failOnErrors", "is no whole number above 0", "Leave it out to have every operation tried")
    return value


def _operation(entry: Any) -> Operation:
    """One entry; what is wrong with it concerns this operation alone."""
    if not isinstance(entry, dict):
        return Operation("", error=invalid_syntax("An operation is not a JSON object"))
    sent = {fold_name(name): value for name, value in entry.items()}
    method = str(sent.get("method", "")).upper()
    bulk_id = sent.get("bulkid")
    name = bulk_id if isinstance(bulk_id, str) else ""
    held = Operation(method if method in _METHODS else "", name if len(name) <= BULK_ID_CHARS_MAX else "")
    try:
        return _read(held, sent)
    except ScimError as error:
        return msgspec.structs.replace(held, error=error)


def _read(held: Operation, sent: Mapping[str, Any]) -> Operation:
    if not held.method:
        raise invalid_value("method", "is none of POST, PUT, PATCH and DELETE")
    if held.method == "POST" and not held.bulk_id:
        raise invalid_value(
            "bulkId", "is missing, or not a text of reasonable length", "Give every creation a bulkId of its own"
        )
    path = sent.get("path")
    if not isinstance(path, str):
        raise invalid_syntax("An operation has no path", "Write it as in /Users or /Users/<id>")
    found = _PATH.match(path)
    if found is None or (found[2] is None) != (held.method == "POST"):
        raise invalid_path(path, f"cannot be that of a {held.method}", "Write it as in /Users or /Users/<id>")
    version = sent.get("version")
    if version is not None and not isinstance(version, str):
        raise invalid_value("version", "is not a text")
    data = sent.get("data")
    if held.method == "DELETE":
        data = None
    elif not isinstance(data, dict):
        raise invalid_syntax("An operation has no data", f"A {held.method} needs a JSON object")
    kind, resource = found[1], found[2] or ""
    names, bound = set(), set()
    for name, is_bound in _references(data, ""):
        names.add(name)
        if is_bound:
            bound.add(name)
    if resource.startswith(_START):
        names.add(resource.removeprefix(_START))
        bound.add(resource.removeprefix(_START))
    return msgspec.structs.replace(
        held,
        kind=kind,
        resource=resource,
        version=version,
        data=data,
        names=frozenset(names),
        bound=frozenset(bound),
    )


# ---- references


def _references(value: Any, key: str) -> Iterator[tuple[str, bool]]:
    """The bulkIds that data refer to, each with whether it has to be one."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _references(item, fold_name(name))
    elif isinstance(value, list):
        for item in value:
            yield from _references(item, key)
    elif isinstance(value, str) and _START in value:
        if key == "path":
            for name in _QUOTED.findall(value):
                yield name, True
            return
        name = _name_in(value, key)
        if name is not None:
            yield name, key in _REFERENCE_KEYS


def _name_in(text: str, key: str) -> str | None:
    """The bulkId a text refers to: the whole text, or the last part of an address."""
    last = text.rpartition("/")[2] if key == "$ref" else text
    return last.removeprefix(_START) if last.startswith(_START) and len(last) > len(_START) else None


def _resolved(value: Any, ids: Mapping[str, str], key: str = "") -> Any:
    """Data with the ids instead of the references to them."""
    if isinstance(value, dict):
        return {name: _resolved(item, ids, fold_name(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, ids, key) for item in value]
    if not isinstance(value, str) or _START not in value:
        return value
    if key == "path":
        return _QUOTED.sub(lambda found: f'"{ids[found[1]]}"' if found[1] in ids else found[0], value)
    name = _name_in(value, key)
    if name is None or name not in ids:
        return value
    return value[: -len(_START) - len(name)] + ids[name]


_NOTHING: Any = object()


def _without(value: Any, names: Collection[str], key: str = "", *, whole: bool = True) -> Any:
    """Data without the references to these; of a member or a manager that is one, nothing is left.

    Args:
        whole: this is the resource, not a part of it.
    """
    if isinstance(value, dict):
        kept: dict[str, Any] = {}
        for name, item in value.items():
            left = _without(item, names, fold_name(name), whole=False)
            if left is not _NOTHING:
                kept[name] = left
            elif isinstance(item, str) and not whole:
                return _NOTHING
        return kept
    if isinstance(value, list):
        entries = [_without(item, names, key, whole=False) for item in value]
        return [entry for entry in entries if entry is not _NOTHING]
    if isinstance(value, str) and _START in value and _name_in(value, key) in names:
        return _NOTHING
    return value
