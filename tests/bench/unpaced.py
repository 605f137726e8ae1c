"""Talkdesk without its four calls a second: what the gateway can do shows only when the product is not the limit."""

from __future__ import annotations

from msgspec.structs import replace

from connectors.talkdesk import Talkdesk

CONCURRENCY_MAX = 16


class Unpaced(Talkdesk):
    """The same calls in the same order, as fast as the emulator answers."""

    spec = replace(Talkdesk.spec, name="unpaced", rate_limit=None, concurrency_max=CONCURRENCY_MAX)
