"""Who is there: every worker says every few seconds which targets it serves, and with which connector and settings.

The documents live in a key-value bucket whose entries vanish by themselves when a worker does. The gateway learns from them
what a connector can do and when a credential has changed; workers learn among how many a product's rate limit is shared.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from connectors.contract import CredentialEnd
from schemas import topology
from schemas.config import Secret
from schemas.logs import register_secret
from schemas.specs import Spec

DIGEST_CHARS = 16
WORKERS_MAX = 10_000
"""More presence documents than this are not remembered."""

SUBJECT = f"$KV.{topology.WORKERS_BUCKET}."
GONE_HEADERS = {"KV-Operation": "PURGE", "Nats-Rollup": "sub"}
"""What removes an entry from a key-value bucket."""


class TargetPresence(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One target as a worker sees it.

    Args:
        connector: name of the connector.
        serving: whether events of the target are taken.
        spec: the connector's declaration, when it could be loaded.
        digest: changes exactly when connector, settings or the value of a credential change.
        problems: why the target is not served, path first.
        credential: when the credential of the product ends, where the connector knows.
    """

    connector: str
    serving: bool = False
    spec: Spec | None = None
    digest: str = ""
    problems: tuple[str, ...] = ()
    credential: CredentialEnd | None = None


class Presence(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What one worker says about itself. `started_at`: epoch seconds."""

    worker: str
    started_at: float
    version: str
    targets: dict[str, TargetPresence] = {}


_PRESENCE = msgspec.json.Decoder(Presence)


def worker_id() -> str:
    """A name for this process that works as a subject token: host, process id, and something for a pid used again."""
    host = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname())[:40].strip("-") or "worker"
    return f"{host}-{os.getpid()}-{secrets.token_hex(2)}"


def subject(worker: str) -> str:
    """Where a worker's document is kept."""
    return SUBJECT + topology.token(worker)


def encode(presence: Presence) -> bytes:
    """The document as it is kept."""
    return msgspec.json.encode(presence)


def decode(body: bytes) -> Presence:
    """Raises: msgspec.DecodeError when the body is not a presence document."""
    return _PRESENCE.decode(body)


def digest(target: str, connector: str, settings: Struct) -> str:
    """A short fingerprint of connector, settings and the values of all secrets, salted with the target's name.

    Every revealed value is kept out of the logs from then on.

    Raises:
        ConfigurationError: a secret cannot be read.
    """
    known = hashlib.sha256()
    for part in (target, connector):
        known.update(part.encode() + b"\0")
    known.update(msgspec.json.encode(msgspec.to_builtins(settings), order="deterministic"))
    for path, secret in secrets_of(settings):
        value = secret.reveal()
        register_secret(value)
        known.update(b"\0" + path.encode() + b"\0" + value.encode())
    return known.hexdigest()[:DIGEST_CHARS]


def secrets_of(value: Any, path: str = "") -> Iterator[tuple[str, Secret]]:
    """Every reference to a secret inside settings, with its path."""
    if isinstance(value, Secret):
        yield path, value
    elif isinstance(value, Struct):
        for name in value.__struct_fields__:
            yield from secrets_of(getattr(value, name), f"{path}.{name}" if path else name)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from secrets_of(item, f"{path}.{name}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from secrets_of(item, f"{path}.{number}")


class WorkersSeen:
    """The workers heard of lately, by their presence documents.

    Args:
        clock: monotonic seconds.
        changed: called when the number of workers of some target may have changed.
    """

    def __init__(self, clock: Callable[[], float], changed: Callable[[], None] = lambda: None) -> None:
        self._clock = clock
        self._changed = changed
        self._seen: dict[str, tuple[float, frozenset[str]]] = {}

    def heard(self, worker: str, body: bytes) -> None:
        """A document was written; an empty one removes the worker. What cannot be read is ignored."""
        before = self._seen.get(worker)
        if not body:
            self._seen.pop(worker, None)
        else:
            try:
                presence = decode(body)
            except msgspec.DecodeError:
                return
            if before is None and len(self._seen) >= WORKERS_MAX:
                return
            serving = frozenset(name for name, target in presence.targets.items() if target.serving)
            self._seen[worker] = (self._clock(), serving)
        after = self._seen.get(worker)
        if (before and before[1]) != (after and after[1]):
            self._changed()

    def forget_silent(self) -> None:
        """Drop those whose document has run out."""
        oldest = self._clock() - topology.PRESENCE_TTL_S
        silent = [worker for worker, (heard_at, _) in self._seen.items() if heard_at < oldest]
        for worker in silent:
            del self._seen[worker]
        if silent:
            self._changed()

    def count(self, target: str, *, besides: str = "") -> int:
        """How many workers serve a target."""
        return sum(target in serving for worker, (_, serving) in self._seen.items() if worker != besides)
