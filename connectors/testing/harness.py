"""What an author builds the emulator of a product from; the same parts as the emulators shipped here.

An emulator is a product as its connector sees it: HTTP, state, errors, limits. It never shares code with the connector, so that a
mistake made in one of them shows in the other. `example_emulator.py` is the smallest complete one; a product that speaks SCIM
itself starts from `ScimEmulator`.
"""

from __future__ import annotations

from deploy.emulators.harness import (
    Answer,
    Call,
    Change,
    Emulator,
    Fault,
    Refusal,
    Route,
    Rows,
    Setting,
    check_fields,
    digest,
    iso_time,
    running,
    serve,
)
from deploy.emulators.scim_service import CORE_GROUP, CORE_USER, Attribute, Index, Resource, ScimEmulator

__all__ = [
    "CORE_GROUP",
    "CORE_USER",
    "Answer",
    "Attribute",
    "Call",
    "Change",
    "Emulator",
    "Fault",
    "Index",
    "Refusal",
    "Resource",
    "Route",
    "Rows",
    "ScimEmulator",
    "Setting",
    "check_fields",
    "digest",
    "iso_time",
    "running",
    "serve",
]
