"""What the engine needs of the message bus, and its implementation on NATS JetStream.

The store knows what is in flight and never trusts the bus to remember it; this module only carries messages and says honestly
what it does not know.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from msgspec import Struct

from gateway.lifecycle import Row


class Published(Enum):
    """What the stream said to one event (delivery rule R5)."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    """The same id was stored before: it is there, or was there and has been delivered."""
    REFUSED = "refused"
    """An unacknowledged event of this resource is still there (10077): try again later, same fence."""
    UNKNOWN = "unknown"
    """No answer in time, or not connected: it may be stored or not."""


class Message(Struct, frozen=True):
    """One event on its way out: what the stored row says, and when that row was read."""

    target: str
    kind: str
    resource: str
    fence: int
    body: bytes
    read_at: float


class ProbeReply(Struct, frozen=True):
    """A worker's word about a target: `ok` and, when not, why."""

    ok: bool
    code: str = ""
    message: str = ""


class Bus(Protocol):
    """The engine's view of the bus. No method raises for a bus that is away; they say that they do not know."""

    def connected(self) -> bool:
        """Whether a request would get through, as far as is known."""

    async def publish(self, message: Message) -> Published:
        """Offer one event to the stream."""

    async def holds(self, target: str, kind: str, resource: str) -> bool | None:
        """Whether an event of this resource is in the stream; None when unknown."""

    async def outcomes_end(self) -> tuple[str, int] | None:
        """Creation time and last sequence of the outcome stream; None when unknown."""

    async def outcomes_folded(self) -> tuple[str, int] | None:
        """Creation time of the outcome stream and the sequence up to which everything is folded; None when unknown."""

    async def streams(self) -> dict[str, str] | None:
        """Creation times of the streams; None when unknown."""

    async def probe(self, target: str) -> ProbeReply | None:
        """Ask any worker of this target for a cheap check; None when nobody answered."""

    def announce_settled(self, resource: str) -> None:
        """Tell other gateways that a resource was settled."""

    def announce_dead(self, row: Row) -> None:
        """Mirror a dead letter for people who watch the bus."""
