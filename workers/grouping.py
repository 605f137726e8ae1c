"""Which stored groups the settings of a target treat differently now; asked by the gateway when they may have changed."""

from __future__ import annotations

from collections.abc import Sequence

from connectors.contract import SortsGroups
from schemas.grouping import GroupsSorted, StoredGroup
from schemas.resources import Group
from workers.targets import Served


def sort_groups(served: Served, groups: Sequence[StoredGroup]) -> GroupsSorted:
    """Ask the connector about each. Never raises: what goes wrong is the answer."""
    connector = served.connector
    if not isinstance(connector, SortsGroups):
        return GroupsSorted(ok=False, code="no_group_maps")
    try:
        changed = [
            one.id
            for one in groups
            if not connector.group_stands(
                Group(display_name=one.display_name, external_id=one.external_id), one.account_id
            )
        ]
    except Exception:  # the connector broke its contract: nothing is concluded from it
        return GroupsSorted(ok=False, code="connector_bug")
    return GroupsSorted(ok=True, changed=tuple(changed))
