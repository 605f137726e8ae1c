"""What a gateway and a worker say to each other about stored groups after the settings of a target have changed."""

from __future__ import annotations

from msgspec import Struct

GROUPS_PER_QUESTION_MAX = 200
SORT_S = 10.0
"""Longest time a worker takes for one question; it calls nobody."""


class StoredGroup(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A group as it was applied. `account_id`: what the connector made of it."""

    id: str
    account_id: str
    display_name: str = ""
    external_id: str = ""


class GroupsSorted(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """`changed`: groups of the question of which the settings want something else now; they are to be sent again."""

    ok: bool
    code: str = ""
    changed: tuple[str, ...] = ()
