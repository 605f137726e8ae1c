"""What a gateway and a worker say to each other about settings that a product keeps and only its interface can change.

The worker holds the credentials, so it reads and writes; the gateway asks, shows the difference, and records who wrote.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

CONFIGURE_S = 20.0
"""Longest time a worker takes to read, or to write and read again."""
CONFIGURE_WAIT_S = 25.0
"""How long the gateway waits for it."""
DIFFERENCES_MAX = 100


class Difference(Struct, frozen=True):
    """One setting that is not as it must be. `path` like `features.roles`; `wanted` None: there shall be no such setting."""

    path: str
    held: Any
    wanted: Any


class Configured(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a product holds, compared with what it must hold.

    Args:
        ok: it could be read, and, when that was asked for, written.
        code: why not: the connector's own code, or `no_configuration`, `changed_meanwhile`, `shadow`, `timeout`, `connector_bug`.
        product: its title.
        version: a digest of what is held; a write names the one that was looked at.
        differences: what is not as it must be, after the write if there was one.
        changed: what this write changed.
        sent: something that writes was sent to the product, whatever came of it.
    """

    ok: bool
    code: str = ""
    message: str = ""
    product: str = ""
    version: str = ""
    differences: tuple[Difference, ...] = ()
    changed: tuple[Difference, ...] = ()
    sent: bool = False
