"""A dry run: the connector works as always, what reads is really sent, and what writes is recorded and not sent.

`RehearsalHttp` stands between a connector and its real client. GET and HEAD go out, and so do the calls that a connector declares
as reading (`Connector.reading_calls`); token requests are made by the real client itself. Any other call is kept in the running
`Rehearsal` and answered with what lets the connector go on: the document that was sent, an id that begins with `would-be-`, and
from then on reads show the change. Products whose answers say more than that imagine them (`contract.Imagines`).

What a rehearsal can and cannot show:

    any product     The id of an account that would be created is not known. A refusal that only the product's own validation
                    would give (an unassignable role, no free licence or seat, a reserved number, a member it does not know)
                    is not seen, and neither is what somebody else changes before the real delivery.
    talkdesk        Everything else is exact. No licence left would only show in the answer to a create.
    babelforce      Exact for users; reads after each write show the imagined state. The agent of a new user is not there
                    yet, so the step that names it is left out (a warning says so).
    telemessage     There is no reading by id: the rehearsal searches the first pages of users for what is held, and when it
                    does not find the account it shows every step that may be needed. Whether a request waits for the daily
                    approval is not known.
    bobs_business   Exact, from a list of all accounts; our own invitations are known, those of others are not.
    sofa            Exact. The manager reference of an account that does not exist yet cannot be shown.
    observe         Calls nobody, so there is nothing to show.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Unpack
from urllib.parse import quote

import msgspec

from connectors.contract import Call, Connector, Delivery, Imagines, VendorHttp, VendorResponse, Write
from connectors.http import error_of
from schemas.errors import ConnectorBug, Rejected
from schemas.plans import WouldCall

CALLS_MAX = 200
"""Writing calls kept of one rehearsal; one that wants more is ended."""
MADE_ID = "would-be-"

_READS = frozenset({"GET", "HEAD"})
_FRAME = frozenset({"schemas", "meta", "id"})
"""What frames a SCIM document, and says nothing about the account."""
_NOTHING: tuple[Any, ...] = (None, "", [], {})
_PART = re.compile(r"\{(\w+)\}")
_PLAIN_PATH = re.compile(r"[A-Za-z][\w]*(\.[A-Za-z][\w]*)?")
_SECRET_HEADER = re.compile(r"auth|token|secret|cookie|api-?key|access-?key", re.IGNORECASE)


class Rehearsal:
    """What one dry run would have done, and what reading would show after it."""

    def __init__(self) -> None:
        self.calls: list[WouldCall] = []
        self._held: dict[str, Any] = {}
        self._read: dict[str, Any] = {}
        self._made = 0

    def next_id(self) -> str:
        """An id for what would be created."""
        self._made += 1
        return f"{MADE_ID}{self._made}"

    def note(self, call: WouldCall) -> None:
        """Keep a call.

        Raises:
            Rejected: there are CALLS_MAX already.
        """
        if len(self.calls) >= CALLS_MAX:
            raise Rejected(
                f"This change takes more than {CALLS_MAX} calls; a rehearsal shows no more.", code="too_long"
            )
        self.calls.append(call)

    def changes_nothing(self) -> None:
        """The call kept last repeats what the product shows already."""
        self.calls[-1] = msgspec.structs.replace(self.calls[-1], same=True)

    def shows(self, url: str) -> bool:
        """Whether an earlier call of this rehearsal decides what is read there."""
        return url in self._held

    def shown(self, url: str) -> Any:
        """What would be read; None when it would be gone."""
        return self._held[url]

    def hold(self, url: str, body: Any) -> None:
        """From now on this is read there."""
        self._held[url] = body

    def seen(self, url: str, body: Any) -> None:
        """The product's real answer, on which a later change is imagined."""
        self._read[url] = body

    def last(self, url: str) -> Any:
        """The newest known state of a resource; None when nobody read it."""
        return self._held[url] if url in self._held else self._read.get(url)


_now: ContextVar[Rehearsal | None] = ContextVar("rehearsal", default=None)


@contextmanager
def rehearsing(rehearsal: Rehearsal) -> Iterator[Rehearsal]:
    """Everything the current task does through a `RehearsalHttp` belongs to this rehearsal."""
    token = _now.set(rehearsal)
    try:
        yield rehearsal
    finally:
        _now.reset(token)


class RehearsalHttp:
    """The client of a connector that rehearses. Implements `VendorHttp`.

    Args:
        real: what really calls the product, for reads only.
        product: the product's name, for sentences.

    Attributes:
        connector: whose client this is; says which calls only read, and imagines answers.
    """

    def __init__(self, real: VendorHttp, *, product: str) -> None:
        self._real = real
        self._product = product
        self.connector: Any = None

    async def request(self, method: str, path: str, **call: Unpack[Call]) -> VendorResponse:
        """Send what reads, keep what writes; raises as `connectors.http.HttpClient.request`.

        Raises:
            ConnectorBug: a write outside a rehearsal, or a template that does not fit its parts.
        """
        method, parts = method.upper(), dict(call.get("parts") or {})
        ctx, query, json, expect = call.get("ctx"), call.get("query"), call.get("json"), call.get("expect", ())
        url = filled(path, parts)
        rehearsal = _now.get()
        reading = self.connector.reading_calls if self.connector is not None else frozenset()
        if method in _READS or (method, path) in reading:
            imagined = rehearsal is not None and method in _READS and rehearsal.shows(url)
            if imagined or any(value.startswith(MADE_ID) for value in parts.values()):
                held = rehearsal.shown(url) if rehearsal is not None and imagined else None
                return self._answer(method, path, VendorResponse(200 if held is not None else 404, held, {}), expect)
            answer = await self._real.request(method, path, **call)
            if rehearsal is not None and method == "GET" and not query and answer.status < 300:
                rehearsal.seen(url, answer.body)
            return answer
        if rehearsal is None:
            raise ConnectorBug(f"{method} {path} was to be sent outside a rehearsal by a connector that only rehearses")
        body = json if json is not None else call.get("form")
        headers = call.get("headers") or {}
        rehearsal.note(
            WouldCall(
                method=method,
                path=path,
                url=url,
                query=dict(query or {}),
                body=msgspec.to_builtins(body, enc_hook=str) if body is not None else None,
                headers={name: value for name, value in headers.items() if not _SECRET_HEADER.search(name)},
            )
        )
        return self._answer(method, path, await self._imagined(rehearsal, method, path, parts, url, body, ctx), expect)

    def _answer(self, method: str, path: str, answer: VendorResponse, expect: Sequence[int]) -> VendorResponse:
        if answer.status < 300 or answer.status in expect:
            return answer
        raise error_of(self._product, method, path, answer)

    async def _imagined(
        self,
        rehearsal: Rehearsal,
        method: str,
        path: str,
        parts: Mapping[str, str],
        url: str,
        body: Any,
        ctx: Delivery | None,
    ) -> VendorResponse:
        made_id = rehearsal.next_id()
        if isinstance(self.connector, Imagines):
            write = Write(method=method, path=path, parts=parts, body=body)
            guess = await self.connector.imagine(write, made_id, lambda at, of: rehearsal.last(filled(at, of)), ctx)
            if guess is not None:
                shown = [(filled(template, filling), held) for template, filling, held in guess.held]
                if shown and all(held is not None and rehearsal.last(at) == held for at, held in shown):
                    rehearsal.changes_nothing()
                for at, held in shown:
                    rehearsal.hold(at, held)
                return VendorResponse(guess.status, guess.body, {})
        if method == "DELETE":
            rehearsal.hold(url, None)
            return VendorResponse(204, None, {})
        sent = dict(body) if isinstance(body, Mapping) else {}
        if method == "POST":
            made = {**sent, "id": made_id}
            if not parts:
                rehearsal.hold(f"{url}/{made_id}", made)
                return VendorResponse(201, made, {})
            return VendorResponse(200, made, {})
        held = rehearsal.last(url)
        if method == "PATCH":
            if not isinstance(held, Mapping):
                return VendorResponse(204, None, {})
            changed, is_whole = _patched(held, sent)
            if is_whole and changed == held:
                rehearsal.changes_nothing()
        else:
            known = {"id": held["id"]} if isinstance(held, Mapping) and "id" in held else {}
            changed = {**({"id": parts["id"]} if "id" in parts else {}), **known, **sent}
            if isinstance(held, Mapping) and sent and _shows(held, sent):
                rehearsal.changes_nothing()
        rehearsal.hold(url, changed)
        return VendorResponse(200, changed, {})


def rehearsing_connector(kind: type[Connector[Any, Any]], settings: Any, real: VendorHttp) -> Connector[Any, Any]:
    """A connector of its own for rehearsals: what it remembers never mixes with what the delivering one knows.

    Args:
        real: the client of the delivering connector; shared, so that limits, credentials and address rules are the same.
    """
    http = RehearsalHttp(real, product=kind.spec.title)
    connector = http.connector = kind(settings, http)
    return connector


def filled(path: str, parts: Mapping[str, str]) -> str:
    """A path template with its parts encoded whole.

    Raises:
        ConnectorBug: template and parts do not fit.
    """
    if set(parts) != set(_PART.findall(path)):
        raise ConnectorBug(f"{path} does not fit its parts {sorted(parts)}", code="bad_address")
    if any(value in ("", ".", "..") for value in parts.values()):
        raise ConnectorBug(f"{path}: a part is empty or not an id", code="bad_address")
    return _PART.sub(lambda hit: quote(parts[hit[1]], safe="@"), path)


def _shows(held: Any, sent: Any) -> bool:
    """Whether a resource has all that a document says; an attribute without a value is the same as one that is not there."""
    if isinstance(sent, Mapping):
        there = held if isinstance(held, Mapping) else {}
        return all(_shows(there.get(name), value) for name, value in sent.items() if name not in _FRAME)
    return held == sent or (held in _NOTHING and sent in _NOTHING)


def _patched(held: Mapping[str, Any], sent: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """A resource after a PATCH: plain attributes of SCIM operations, or the members of a merge document.

    The truth value says whether all of the PATCH was understood.
    """
    operations = sent.get("Operations")
    if not isinstance(operations, Sequence):
        return {**held, **sent}, True
    changed, is_whole = dict(held), True
    for operation in operations:
        path, value = operation.get("path"), operation.get("value")
        removes = str(operation.get("op", "")).casefold() == "remove"
        is_whole = is_whole and not isinstance(
            value, list
        )  # some of many values: what is held besides is not known here
        if path is None and isinstance(value, Mapping):
            changed.update(value)
        elif isinstance(path, str) and _PLAIN_PATH.fullmatch(path):
            name, _, inner = path.partition(".")
            if inner:
                branch = dict(changed[name]) if isinstance(changed.get(name), Mapping) else {}
                branch[inner] = None if removes else value
                changed[name] = branch
            elif removes:
                changed.pop(name, None)
            else:
                changed[name] = value
        else:
            is_whole = False
    return changed, is_whole
