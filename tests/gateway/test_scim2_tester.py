"""The public conformance suite of python-scim, run against the whole listener over HTTP (RFC 7643, RFC 7644)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from httpx2 import Client
from scim2_client.engines.httpx2 import SyncSCIMClient
from scim2_tester import CheckResult, Status, check_server

from tests.gateway.scim_listener import ALPHA, GroupShelf, Shelf, listening

GOOD = {Status.SUCCESS, Status.COMPLIANT, Status.ACCEPTABLE}
EVERY_KIND = {
    "object_creation",
    "object_query",
    "object_list_with_attributes",
    "search_with_attributes",
    "object_replacement",
    "check_add_attribute",
    "check_replace_attribute",
    "check_remove_attribute",
    "object_deletion",
}
"""What must have been tried, so that a suite that skips everything is no success."""


def checked(base: str, token: str) -> list[CheckResult]:
    """Everything the suite has, on what the target says about itself."""
    with Client(base_url=base, headers={"Authorization": f"Bearer {token}"}, trust_env=False) as client:
        return check_server(SyncSCIMClient(client))


@pytest.mark.parametrize(
    ("shelf", "kinds", "checks_min"),
    [(GroupShelf, {"User", "Group"}, 100), (Shelf, {"User"}, 40)],
    ids=["with groups", "without groups"],
)
async def test_the_conformance_suite_finds_no_error(
    tmp_path: Path, shelf: type[Shelf], kinds: set[str], checks_min: int
) -> None:
    """scim2-tester: discovery, every attribute of users and groups by POST, PUT, PATCH and GET, projections, errors."""
    async with listening(tmp_path, shelf=shelf()) as scim:
        results = await asyncio.to_thread(checked, scim.base(), scim.tokens[ALPHA])

    assert [(r.title, r.resource_type, r.status.name, r.reason) for r in results if r.status not in GOOD] == []
    for kind in kinds:
        assert {result.title for result in results if result.resource_type == kind} >= EVERY_KIND
    assert {result.resource_type for result in results if result.resource_type} == kinds
    assert len(results) >= checks_min
