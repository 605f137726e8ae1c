"""The two messages on the bus: the wish (ProvisioningEvent) and what became of it (Outcome).

Both are CloudEvents 1.0 in binary mode: attributes in `ce-*` headers, JSON body. Event types are those of RFC 9967 section 2.4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Literal
from urllib.parse import quote, unquote

import msgspec
from msgspec import Struct

from schemas.resources import Group, User
from schemas.states import Change, Result

Kind = Literal["user", "group"]

_RFC9967 = "urn:ietf:params:scim:event:"
EVENT_TYPES: dict[Change, str] = {
    Change.CREATE: _RFC9967 + "prov:create:full",
    Change.UPDATE: _RFC9967 + "prov:put:full",
    Change.ACTIVATE: _RFC9967 + "prov:activate",
    Change.DEACTIVATE: _RFC9967 + "prov:deactivate",
    Change.DELETE: _RFC9967 + "prov:delete",
}
OUTCOME_TYPE = "provgate.{kind}.outcome.v1"

ACT_BEFORE_HEADER = "Prov-Act-Before"
"""Epoch milliseconds until which the stream must have stored the message for it to count as fresh (delivery rule R6)."""

MESSAGE_ID_HEADER = "Nats-Msg-Id"


Identity = str
"""`attribute:value`, see `identity()`."""


def identity(attribute: str, value: str) -> str:
    """What a product recognises an account by, as one string: `userName:ada@contoso.example`, letter case folded."""
    return f"{attribute}:{value.strip().casefold()}"


def split_identity(text: str) -> tuple[str, str]:
    """The reverse of `identity`: attribute and folded value."""
    attribute, _, value = text.partition(":")
    return attribute, value


class Note(Struct, frozen=True, omit_defaults=True):
    """Something about a resource that stays so after the delivery: later deliveries are told, operators can list it.

    Args:
        code: stable snake_case name, e.g. `invited`.
        message: one sentence for an operator; no person's values.
        subject: what it is about beyond the resource, e.g. an object id of Entra.
        holds: false: it is not so any more.
    """

    code: str
    message: str = ""
    subject: str = ""
    holds: bool = True


class Trace(Struct, frozen=True):
    """The trace a request belongs to (W3C Trace Context). `parent`: its traceparent; `state`: its tracestate, or ""."""

    parent: str
    state: str = ""


class ProvisioningEvent(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One wish of Entra for one resource, complete; never a difference, so that it can be applied at any time.

    Args:
        id: ULID of the generation; with the fence it is the message's id and the idempotency key.
        fence: counts the deliveries of the resource; an outcome with an older fence never settles anything.
        generation: version of what Entra asked.
        document: the wished SCIM document (users) or group; JSON.
        account_id: the linked account, if any.
        look: look before writing: an earlier delivery may have acted.
        read_only: only find out which account is ours and what it is called; write nothing.
        identities: what the wished resource is called at the product.
        lookup: identities that earlier, unsettled deliveries of this resource may have created (delivery rule R3).
        watch: identities others hold by now: looked at and reported, never touched.
        strays: accounts that stale deliveries of this very resource made.
        changed: names of the attributes that changed; for people and logs, connectors use the document.
        accounts: linked accounts of other resources this wish refers to (a user's manager), by resource id, as known when this
            delivery was made; one that is missing has no account yet. Members of a group bring theirs along themselves.
        shadow: only rehearse this: the target is in shadow mode (`connectors/rehearsal.py`).
        created_by_us: whether `account_id` was created by a delivery of ours; None when nobody knows.
        notes: codes of what earlier deliveries of this resource noted and what still holds.
        traceparent: W3C trace context of the request that asked for this, or one of our own.
        tracestate: what tracing systems of others keep along with it, as it came.
    """

    id: str
    target: str
    connector: str
    kind: Kind
    resource: str
    generation: int
    fence: int
    change: Change
    document: msgspec.Raw = msgspec.Raw(b"{}")
    deleted: bool = False
    account_id: str | None = None
    look: bool = False
    read_only: bool = False
    identities: tuple[str, ...] = ()
    lookup: tuple[str, ...] = ()
    watch: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    accounts: dict[str, str] = {}
    created_by_us: bool | None = None
    notes: tuple[str, ...] = ()
    traceparent: str = ""
    tracestate: str = ""
    shadow: bool = False
    txn: str = ""
    recorded_at: str = ""

    @property
    def message_id(self) -> str:
        """Same fence = same id = same bytes (delivery rule R5)."""
        return f"{self.id}-{self.fence}"

    def user(self) -> User:
        """The wished user.

        Raises:
            msgspec.ValidationError: the document does not fit a user (poison).
        """
        return User.from_document(msgspec.json.decode(self.document))

    def group(self) -> Group:
        """The wished group with its member differences.

        Raises:
            msgspec.ValidationError: the document does not fit a group (poison).
        """
        return msgspec.json.decode(self.document, type=Group)


class Sighting(Struct, frozen=True, omit_defaults=True):
    """An account seen under an identity while looking."""

    identity: str
    account_id: str


class Step(Struct, frozen=True, omit_defaults=True):
    """One call to the product: what operators see in a resource's history. Never values, only templates.

    Args:
        sent: the masked body of a call that was rehearsed and not sent; "" for every real one.
    """

    method: str
    path: str
    status: int = 0
    ms: float = 0.0
    key: str = ""
    error: str = ""
    sent: str = ""


class Reason(Struct, frozen=True, omit_defaults=True):
    """Why something did not happen.

    Args:
        code: stable snake_case name.
        message: one sentence for a person.
        attribute: SCIM path, when the problem is one attribute's.
        scim_type: RFC 7644 section 3.12 detail, used when the caller still waits.
    """

    code: str
    message: str
    attribute: str | None = None
    scim_type: str = ""
    names: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Equal for equal causes: operators see one line per cause, not one per person."""
        return ":".join((self.code, self.attribute or "", ",".join(self.names)))


class Outcome(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What one delivery came to.

    Args:
        id: ULID, one per report; folding the same report twice changes nothing.
        delivery: which delivery of this fence reports (1 = first); a redelivery counts up.
        identities: what the wished resource of this event is called at the product.
        account_id: the account this delivery wrote, created or found under the link.
        created: this delivery created `account_id`.
        sightings: accounts seen under the event's `lookup` identities.
        watched: accounts seen under its `watch` identities; reported only, never linked (delivery rule R3).
        ambiguous: the product may have acted although no answer came.
        note: `already` (nothing had to be done), `ignored` (the product is not told on purpose), or "" (vendor rule A13).
        notes: what this delivery found to be so, or not to be so any more, whatever it came to.
        ignored: attributes the product cannot hold, by SCIM path.
        account_keys: the product's own natural keys after normalization, for filters that use another spelling.
        observed_active: what the product shows when it differs from the wish.
        wait_max_s: how long a blocked change may wait before it becomes a dead letter; None: for ever.
        unresolved: resources without an account yet that the connector asked for; the rest was applied without them.
        connection: true when the failure counts against the target's health.
    """

    id: str
    event_id: str
    target: str
    kind: Kind
    resource: str
    generation: int
    fence: int
    delivery: int
    result: Result
    identities: tuple[str, ...] = ()
    account_id: str | None = None
    created: bool = False
    deleted: bool = False
    looked: bool = False
    sightings: tuple[Sighting, ...] = ()
    watched: tuple[Sighting, ...] = ()
    ambiguous: bool = False
    note: str = ""
    notes: tuple[Note, ...] = ()
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    account_keys: tuple[str, ...] = ()
    observed_active: bool | None = None
    unresolved: tuple[str, ...] = ()
    reason: Reason | None = None
    blocked_on: str | None = None
    retry_after_s: float | None = None
    wait_max_s: float | None = None
    steps: tuple[Step, ...] = ()
    worker: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0


class Begin(Struct, frozen=True):
    """A worker asks whether a delivery that is not fresh may act (delivery rule R6)."""

    target: str
    resource: str
    fence: int
    delivery: int


class BeginReply(Struct, frozen=True):
    """`go`: this is now the only delivery that may settle. Otherwise drop the message without a call."""

    go: bool


_TRACEPARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<parent>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.{0,200})?"
)
_KEY = r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
_TRACESTATE_ENTRY = re.compile(rf"(?P<key>{_KEY})=[ -+\--<>-~]{{0,255}}[!-+\--<>-~]")
TRACESTATE_CHARS_MAX = 512
"""What has to be passed on at least (W3C Trace Context, section 3.3.1.5), and is at most."""
TRACESTATE_ENTRIES_MAX = 32
LONG_TRACESTATE_ENTRY_CHARS = 128
"""Longer ones are left out first."""
_ENCODER = msgspec.json.Encoder()
_EVENT = msgspec.json.Decoder(ProvisioningEvent)
_OUTCOME = msgspec.json.Decoder(Outcome)


def encode(message: Struct) -> bytes:
    """The JSON body of any message of this module."""
    return _ENCODER.encode(message)


def decode_event(body: bytes) -> ProvisioningEvent:
    """Raises: msgspec.DecodeError (also ValidationError) when the body is not an event."""
    return _EVENT.decode(body)


def decode_outcome(body: bytes) -> Outcome:
    """Raises: msgspec.DecodeError (also ValidationError) when the body is not an outcome."""
    return _OUTCOME.decode(body)


def event_headers(event: ProvisioningEvent, *, recorded_at: float, act_before: float) -> dict[str, str]:
    """CloudEvents headers of an event. Times are epoch seconds; `act_before` see ACT_BEFORE_HEADER."""
    return {
        MESSAGE_ID_HEADER: event.message_id,
        ACT_BEFORE_HEADER: str(int(act_before * 1000)),
        **_cloud_event(
            id=event.id,
            source=f"/targets/{event.target}",
            type=EVENT_TYPES[event.change],
            subject=event.resource,
            time=event.recorded_at or timestamp(recorded_at),
            dataschema="provgate:event:v1",
            partitionkey=event.resource,
            sequence=f"{event.generation:012d}",
            correlationid=event.txn or event.id,
            dataclassification="personal",
            provgen=str(event.generation),
            provop=event.change.value,
            provconn=event.connector,
            **({"traceparent": event.traceparent} if event.traceparent else {}),
            **({"tracestate": event.tracestate} if event.tracestate else {}),
        ),
    }


def outcome_headers(outcome: Outcome) -> dict[str, str]:
    """CloudEvents headers of an outcome; `causationid` names the event."""
    extra = {"provreason": outcome.reason.code} if outcome.reason else {}
    return {
        MESSAGE_ID_HEADER: outcome.id,
        **_cloud_event(
            id=outcome.id,
            source=f"/targets/{outcome.target}",
            type=OUTCOME_TYPE.format(kind=outcome.kind),
            subject=outcome.resource,
            time=timestamp(outcome.ended_at),
            dataschema="provgate:outcome:v1",
            partitionkey=outcome.resource,
            sequence=f"{outcome.generation:012d}",
            causationid=outcome.event_id,
            provgen=str(outcome.generation),
            provop=outcome.result.value,
            **extra,
        ),
    }


def cloud_event(headers: Mapping[str, str]) -> dict[str, str]:
    """The CloudEvents attributes of a message's headers, decoded, without their prefix."""
    return {k[3:].lower(): unquote(v) for k, v in headers.items() if k.lower().startswith("ce-")}


def valid_traceparent(text: str | None) -> str | None:
    """A trace context that may be passed on, as version 00; None when there is none (W3C Trace Context, section 3.2)."""
    hit = _TRACEPARENT.fullmatch(text.strip()) if text else None
    if hit is None or hit["version"] == "ff" or (hit["version"] == "00" and hit["more"]):
        return None
    if not hit["trace"].strip("0") or not hit["parent"].strip("0"):
        return None
    return f"00-{hit['trace']}-{hit['parent']}-{hit['flags']}"


def valid_trace(parent: str | None, state: str | None) -> Trace | None:
    """What two request headers say, as far as it may be passed on; None without a valid traceparent (section 4.3)."""
    valid = valid_traceparent(parent)
    return None if valid is None else Trace(valid, valid_tracestate(state))


def valid_tracestate(text: str | None) -> str:
    """A tracestate that may be passed on, within TRACESTATE_CHARS_MAX; "" when there is none, or one mistake in it."""
    entries = [entry for one in (text or "").split(",") if (entry := one.strip(" \t"))]
    found = [_TRACESTATE_ENTRY.fullmatch(entry) for entry in entries]
    keys = {hit["key"] for hit in found if hit is not None}
    if len(keys) < len(entries) or len(entries) > TRACESTATE_ENTRIES_MAX:
        return ""
    while len(",".join(entries)) > TRACESTATE_CHARS_MAX:  # whole entries only; the newest stand in front
        long = [entry for entry in entries if len(entry) > LONG_TRACESTATE_ENTRY_CHARS]
        entries.remove(long[-1] if long else entries[-1])
    return ",".join(entries)


def made_traceparent(seed: str) -> str:
    """A trace context of our own, not sampled; equal for equal seeds, so that every delivery of one wish is one trace."""
    digest = blake2b(seed.encode(), digest_size=24).hexdigest()
    return f"00-{digest[:32]}-{digest[32:]}-00"


def timestamp(epoch_s: float) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _cloud_event(**attributes: Any) -> dict[str, str]:
    headers = {"ce-specversion": "1.0", "ce-datacontenttype": "application/json"}
    for name, value in attributes.items():
        headers[f"ce-{name}"] = value if value.isascii() and value.isprintable() else quote(value, safe=" /:@-._~")
    return headers
