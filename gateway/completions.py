"""Requests that are not waited for, and how to ask what became of them (RFC 9967 section 2.5.1).

A client that sends `Prefer: respond-async` with a write is answered 202 as soon as the write is recorded. `Set-Txn` in that
answer is the id of the event that carries the write, the same that stands in the event's `correlationid` on the bus. `Location`
leads here: 202 again while the write is on its way, then the claims of its completion event. `wait` (RFC 7240 section 4.3) makes
the client wait up to that long, within the gateway's own budget. Entra does not send the preference; nothing changes for Entra.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gateway.endpoints import RESPOND_ASYNC, Call, Reply, version_of
from gateway.intake import USUAL, Patience, refusal
from gateway.lifecycle import Row
from gateway.messages import ScimError
from gateway.records import EventRecord
from gateway.store import Reader, Store
from gateway.visibility import is_refused, is_visible
from schemas.states import Change, State

ASYNC_RESPONSE = "urn:ietf:params:scim:event:misc:asyncresp"
"""The event that completes an asynchronous request; it is read here, never published on the bus."""
RETRY_AFTER_S = 1
PREFERENCES_CHARS_MAX = 256
"""A longer `Prefer` is not looked at: preferences are wishes, and may be ignored (RFC 7240 section 2)."""

_WAIT = re.compile(r'wait\s*=\s*"?(\d{1,9})"?\Z')
_TXN = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_DONE = frozenset(("applied", "noop"))
_METHODS = {Change.CREATE: "POST", Change.DELETE: "DELETE"}
_STATUSES = {"POST": "201", "DELETE": "204"}


def preferred(header: str | None) -> Patience:
    """What a `Prefer` header says about waiting; anything but `respond-async` changes nothing.

    Args:
        header: the header's value, None without one. `wait` alone is not taken up: it would ask us to wait, which we do anyway.
    """
    if header is None or len(header) > PREFERENCES_CHARS_MAX:
        return USUAL
    names = [part.partition(";")[0].strip().lower() for part in header.split(",")]
    if RESPOND_ASYNC not in names:
        return USUAL
    waits = [float(found[1]) for found in map(_WAIT.match, names) if found is not None]
    return Patience(wait_s=waits[0] if waits else 0.0, accepts=True)


class Completions:
    """Answers what became of a write that was not waited for.

    Args:
        store: where events and resources are read.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, call: Call) -> Reply:
        """200 with the completion event's claims, 202 while there is none yet, 404 for events of other targets or of nobody.

        The claims are those of RFC 9967 section 2.5.1 without the envelope of a token: whoever asks has signed in, and the
        connection protects the answer. `method` says what the product was asked for, so a PATCH reads as the PUT that it became.
        """
        txn = call.resource
        found = await self._store.read(lambda reader: _found(reader, call.target, txn)) if _TXN.match(txn) else None
        if found is None:
            raise ScimError(404, "There is no such transaction at this target, or it is past its retention.")
        event, row = found
        outcome = _outcome(event, row)
        if outcome is None:
            return Reply(202, headers={"Set-Txn": txn, "Retry-After": str(RETRY_AFTER_S)})
        return Reply(200, _claims(call.base, event, row, outcome))


def _found(reader: Reader, target: str, txn: str) -> tuple[EventRecord, Row] | None:
    event = reader.event(txn)
    if event is None or event.target != target:
        return None
    row = reader.row(event.resource_id)
    return (event, row) if row is not None else None


def _outcome(event: EventRecord, row: Row) -> str | None:
    """What became of an event; None while that is open. One that a newer wish took over ends as that wish does."""
    if event.outcome is None:
        return None
    if event.outcome != "superseded":
        return event.outcome
    if row.open:
        return None
    return "rejected" if is_refused(row) or row.state is State.REJECTED else "applied"


def _claims(base: str, event: EventRecord, row: Row, outcome: str) -> bytes:
    method = _METHODS.get(event.change, "PUT")
    path = f"/{'Group' if row.kind == 'group' else 'User'}s/{row.id}"
    operation: dict[str, Any] = {"method": method}
    if outcome in _DONE:
        operation |= {"status": _STATUSES.get(method, "200"), "location": base + path}
        if is_visible(row) and row.generation == event.generation:  # a later version is another write's
            operation["version"] = version_of(row)
    else:
        error = _refused(event, row, outcome)
        if is_visible(row):
            operation["location"] = base + path
        operation |= {"status": str(error.status), "response": msgspec.Raw(error.to_bytes())}
    claims: dict[str, Any] = {
        "txn": event.id,
        "iat": int(event.created_at),
        "sub_id": {"format": "scim", "uri": path, "id": row.id},
        "events": {ASYNC_RESPONSE: operation},
    }
    if event.outcome_at is not None:
        claims["toe"] = int(event.outcome_at)
    return msgspec.json.encode(claims)


def _refused(event: EventRecord, row: Row, outcome: str) -> ScimError:
    if outcome == "discarded":
        return ScimError(400, "An operator gave this write up.", "invalidValue")
    newest = row.settled_generation == event.generation or event.outcome == "superseded"
    return refusal(row.reason if newest else None)
