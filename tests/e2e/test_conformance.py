"""The public conformance suite scim2-tester against the target that accepts everything."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx2
import pytest
from scim2_client.engines.httpx2 import SyncSCIMClient
from scim2_tester import Status, check_server

from tests.e2e.running import Running

BAD = (Status.ERROR, Status.CRITICAL)


@pytest.mark.slow
async def test_scim2_tester_finds_no_error_for_the_user_resource(system: Running) -> None:
    """The suite of python-scim, discovery included: every check of the user resource runs and none reports an error."""
    entry = system.ready["targets"]["observe"]

    def run() -> list:  # type: ignore[type-arg]
        headers = {"Authorization": f"Bearer {entry['token']}"}
        with httpx2.Client(base_url=entry["tenant_url"], headers=headers, timeout=30) as http:
            return check_server(SyncSCIMClient(http), resource_types=["User"])

    results = await asyncio.to_thread(run)

    counts = Counter(result.status.name for result in results)
    print(f"scim2-tester: {dict(counts)}")
    for result in results:
        if result.status not in (Status.SUCCESS, Status.SKIPPED):
            print(result)
    bad = [result for result in results if result.status in BAD]
    assert not bad, "\n".join(str(result) for result in bad)
    of_users = Counter(result.status.name for result in results if result.resource_type == "User")
    assert of_users["SUCCESS"] > 50, of_users
