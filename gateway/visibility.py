"""The one law of visibility: what Entra was told succeeded is readable at once, what it was told failed is not.

Entra compares before it writes. If it could read a value that is not confirmed and that it was told had failed, it would find no
difference and never ask again; if it could not find a user it was told exists, it would create a second one.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.ledger import NO_KEYS, Keys
from gateway.lifecycle import Row
from schemas.states import State

_decode = msgspec.json.Decoder().decode


def is_visible(row: Row) -> bool:
    """Whether SCIM shows this resource at all."""
    if row.deleted or row.state is State.REJECTED:
        return False
    return not (row.veiled and row.acknowledged == 0 and row.settled_document is None)


def is_refused(row: Row) -> bool:
    """Whether the wish itself is not shown, because its refusal is known or an operator gave it up."""
    return row.state in (State.DEAD, State.DETACHED)


def shown_document(row: Row) -> dict[str, Any]:
    """The document SCIM shows of a visible row, before `id`, `schemas` and `meta` are added.

    - the wish while it is acknowledged and on its way;
    - the last confirmed values once the wish was refused or is dead, so that Entra sees a difference and sends it again;
    - a create that was acknowledged and died later stays findable, with `active` false;
    - under the answer policy `retry-later`, the last confirmed values until the wish is confirmed.
    """
    if is_refused(row):
        if row.settled_document is None:
            return {**_decode(row.document), "active": False}
        document: dict[str, Any] = _decode(row.settled_document)
    elif row.veiled and row.acknowledged < row.generation and row.settled_document is not None:
        document = _decode(row.settled_document)
    else:
        document = _decode(row.document)
    if row.observed_active is not None and document.get("active") is not row.observed_active:
        document = {**document, "active": row.observed_active}
    return document


def base_document(row: Row) -> dict[str, Any]:
    """What a PATCH is computed on: the newest wish, unless that was refused; then the last confirmed values.

    A wish that still waits for its outcome counts, or two PATCHes that arrive side by side would undo each other.
    """
    if is_refused(row) and row.settled_document is not None:
        return dict(_decode(row.settled_document))
    return dict(_decode(row.document))


def keys_of(document: dict[str, Any], kind: str) -> Keys:
    """The values by which filters find a document; folded as RFC 7643 says for each attribute."""
    external_id = document.get("externalId")
    display_name = _fold(document.get("displayName"))
    return Keys(
        user_name=_fold(document.get("userName")) if kind == "user" else display_name,
        external_id=external_id if isinstance(external_id, str) and external_id else None,
        work_email=_work_email(document) if kind == "user" else None,
        display_name=display_name,
    )


def shown_keys(row: Row) -> Keys:
    """The filter keys of a row as it stands. A rejected create keeps them, so that the next POST finds and reuses the row."""
    if row.deleted:
        return NO_KEYS
    if row.state is State.REJECTED:
        return keys_of(_decode(row.document), row.kind)
    return keys_of(shown_document(row), row.kind)


def _fold(value: Any) -> str | None:
    return value.strip().casefold() if isinstance(value, str) and value.strip() else None


def _work_email(document: dict[str, Any]) -> str | None:
    emails = document.get("emails")
    if isinstance(emails, list):
        for entry in emails:
            if isinstance(entry, dict) and str(entry.get("type", "")).lower() == "work":
                return _fold(entry.get("value"))
    return None
