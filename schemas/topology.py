"""Streams, subjects and consumers, in one place; declared idempotently by whoever needs them.

Subjects carry opaque ids only. A token made from data must match `[A-Za-z0-9_-]+`: the server would store a publish to
`x.a@b.c` without complaint, and nobody would find it again.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec import Struct

WORK = "PROV_WORK"
LOG = "PROV_LOG"
OUTCOMES = "PROV_OUTCOMES"
DEAD = "PROV_DEAD"
WORKERS_BUCKET = "PROV_WORKERS"

ACK_WAIT_S = 30.0
"""How long the broker leaves a message with a worker that says nothing (delivery rule R7)."""
SIGNAL_EVERY_S = 5.0
"""In-progress signals of a running delivery."""
OWNED_S = 10.0
"""A delivery without an answered signal for longer than this is over for good (delivery rule R7)."""
CALL_S = 15.0
"""Longest single call to a product. OWNED_S + CALL_S < ACK_WAIT_S, so a redelivery never meets a running call."""
REST_S = OWNED_S + CALL_S
"""After this long nobody can act any more on a copy of an event that a lost stream has carried (delivery rule R6)."""
FRESH_S = 10.0
"""A message stored later than this after its row was read is not fresh (delivery rule R6)."""
SETTLE_S = 15.0
"""Rest given to a product after an ambiguous end before it is asked again (delivery rule R9)."""
DUPLICATE_WINDOW_S = 120.0
BEGIN_TIMEOUT_S = 2.0
PRESENCE_TTL_S = 15.0
PRESENCE_EVERY_S = 4.0

_TOKEN = re.compile(r"[A-Za-z0-9_-]+")
_DAY_NS = 86_400 * 1_000_000_000
_S_NS = 1_000_000_000

BEGIN_SUBJECT = "prov.v1.ctl.begin"


def token(value: str) -> str:
    """Check one subject token.

    Raises:
        ValueError: the value would make a subject nobody finds again.
    """
    if not _TOKEN.fullmatch(value):
        raise ValueError(f"{value!r} cannot be part of a subject; use letters, digits, - and _")
    return value


def event_subject(target: str, kind: str, resource: str) -> str:
    """Where events of one resource go; one subject per resource, so that the stream refuses a second event."""
    return f"prov.v1.event.{token(target)}.{kind}.{token(resource)}"


def outcome_subject(target: str, kind: str, resource: str) -> str:
    """Where outcomes of one resource go."""
    return f"prov.v1.outcome.{token(target)}.{kind}.{token(resource)}"


def dead_subject(target: str, kind: str, resource: str) -> str:
    """Mirror of a dead letter for people who watch NATS."""
    return f"prov.v1.dead.{token(target)}.{kind}.{token(resource)}"


def settled_subject(resource: str) -> str:
    """Plain NATS: wakes a request that waits in another gateway."""
    return f"prov.v1.settled.{token(resource)}"


def control_subject(target: str) -> str:
    """Plain NATS request-reply to any worker that serves the target: probe, identities, directory refresh."""
    return f"prov.v1.ctl.target.{token(target)}"


STREAMS: dict[str, dict[str, Any]] = {
    WORK: {
        "subjects": ["prov.v1.event.>"],
        "retention": "workqueue",
        "storage": "file",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "discard_new_per_subject": True,
        "duplicate_window": int(DUPLICATE_WINDOW_S * _S_NS),
        "republish": {"src": "prov.v1.event.>", "dest": "prov.v1.log.>"},
        "allow_direct": True,
    },
    LOG: {
        "subjects": ["prov.v1.log.>"],
        "retention": "limits",
        "storage": "file",
        "max_age": 30 * _DAY_NS,
        "discard": "old",
        "duplicate_window": int(DUPLICATE_WINDOW_S * _S_NS),
    },
    OUTCOMES: {
        "subjects": ["prov.v1.outcome.>"],
        "retention": "limits",
        "storage": "file",
        "max_age": 14 * _DAY_NS,
        "discard": "old",
        "duplicate_window": int(DUPLICATE_WINDOW_S * _S_NS),
    },
    DEAD: {
        "subjects": ["prov.v1.dead.>"],
        "retention": "limits",
        "storage": "file",
        "max_msgs_per_subject": 1,
        "discard": "old",
    },
    f"KV_{WORKERS_BUCKET}": {
        "subjects": [f"$KV.{WORKERS_BUCKET}.>"],
        "retention": "limits",
        "storage": "memory",
        "max_msgs_per_subject": 1,
        "max_age": int(PRESENCE_TTL_S * _S_NS),
        "discard": "new",
        "allow_rollup_hdrs": True,
        "allow_direct": True,
        "deny_delete": True,
        "duplicate_window": int(PRESENCE_TTL_S * _S_NS),
    },
}
"""JetStream's own configuration documents, by stream name."""

Request = Callable[[str, bytes], Awaitable[bytes]]
"""A NATS request: subject and body in, reply body out (the transport's timeout applies)."""


class StreamState(Struct, frozen=True):
    """What tells a stream from an earlier one of the same name: its creation time; and how far it has come."""

    name: str
    created: str
    last_seq: int


class TopologyError(Exception):
    """The broker refused a declaration; the message names the stream and the broker's reason."""


async def declare_stream(request: Request, name: str, *, replicas: int = 1) -> StreamState:
    """Create or update one stream of STREAMS.

    Raises:
        TopologyError: the broker refused.
    """
    config = {"name": name, "num_replicas": replicas, **STREAMS[name]}
    body = msgspec.json.encode(config)
    reply = _reply(await request(f"$JS.API.STREAM.CREATE.{name}", body))
    if _error_code(reply) == 10058:  # exists with another configuration: bring it up to ours
        reply = _reply(await request(f"$JS.API.STREAM.UPDATE.{name}", body))
    if "error" in reply:
        raise TopologyError(f"stream {name}: {reply['error'].get('description', 'refused')}")
    return _state(name, reply)


async def stream_state(request: Request, name: str) -> StreamState | None:
    """The stream's identity and last sequence, or None when it does not exist.

    Raises:
        TopologyError: the broker cannot say (e.g. JetStream is off).
    """
    reply = _reply(await request(f"$JS.API.STREAM.INFO.{name}", b""))
    if _error_code(reply) == 10059:
        return None
    if "error" in reply:
        raise TopologyError(f"stream {name}: {reply['error'].get('description', 'refused')}")
    return _state(name, reply)


def consumer_name(role: str, created: str) -> str:
    """A durable's name carries the stream's creation time (delivery rule R10).

    A stale ack from before a re-creation would otherwise acknowledge the new stream's message with the same sequence.
    """
    digits = "".join(c for c in created if c.isdigit())[:20]
    return f"{role}-{digits}"


async def declare_work_consumer(request: Request, stream: StreamState, target: str, *, ack_pending_max: int) -> str:
    """Create or update the durable pull consumer of one target; returns its name.

    Raises:
        TopologyError: the broker refused.
    """
    name = consumer_name(token(target), stream.created)
    config = {
        "durable_name": name,
        "name": name,
        "ack_policy": "explicit",
        "ack_wait": int(ACK_WAIT_S * _S_NS),
        "max_deliver": -1,
        "max_ack_pending": ack_pending_max,
        "filter_subject": f"prov.v1.event.{target}.>",
        "deliver_policy": "all",
        "replay_policy": "instant",
    }
    return await _declare_consumer(request, WORK, name, config)


async def declare_outcome_consumer(request: Request, stream: StreamState) -> str:
    """The one durable consumer that all gateways share for outcomes; returns its name.

    Raises:
        TopologyError: the broker refused.
    """
    name = consumer_name("gateways", stream.created)
    config = {
        "durable_name": name,
        "name": name,
        "ack_policy": "explicit",
        "ack_wait": int(ACK_WAIT_S * _S_NS),
        "max_deliver": -1,
        "max_ack_pending": 20_000,
        "deliver_policy": "all",
        "replay_policy": "instant",
    }
    return await _declare_consumer(request, OUTCOMES, name, config)


async def _declare_consumer(request: Request, stream: str, name: str, config: dict[str, Any]) -> str:
    body = msgspec.json.encode({"stream_name": stream, "config": config})
    reply = _reply(await request(f"$JS.API.CONSUMER.CREATE.{stream}.{name}", body))
    if "error" in reply:
        raise TopologyError(f"consumer {name} on {stream}: {reply['error'].get('description', 'refused')}")
    return name


def _reply(body: bytes) -> dict[str, Any]:
    reply = msgspec.json.decode(body)
    if not isinstance(reply, dict):
        raise TopologyError("the broker's answer is not a JSON object")
    return reply


def _error_code(reply: dict[str, Any]) -> int:
    return int(reply.get("error", {}).get("err_code", 0))


def _state(name: str, reply: dict[str, Any]) -> StreamState:
    return StreamState(name=name, created=str(reply["created"]), last_seq=int(reply["state"]["last_seq"]))
