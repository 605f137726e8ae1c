"""The emulated Entra against a stand-in of a service provider, on a clock that is set by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from deploy.emulators.entra import DEFAULT, Directory, ManualClock, Mapping, ProvisioningJob, make_people
from tests.emulators.scim_stand_in import TOKEN, StandIn, running


@pytest.fixture
async def server() -> AsyncIterator[StandIn]:
    """The service provider."""
    async with running() as server:
        yield server


@pytest.fixture
def directory() -> Directory:
    """Three people."""
    return Directory(make_people(3, seed=7, managers=False))


@pytest.fixture
def clock() -> ManualClock:
    """Time passes when a test says so."""
    return ManualClock()


@pytest.fixture
def usual() -> Mapping:
    """The mapping of jobs that ask for no other; a module may have its own."""
    return DEFAULT


@pytest.fixture
async def start(server: StandIn, directory: Directory, clock: ManualClock, usual: Mapping) -> AsyncIterator[Any]:
    """Makes jobs against the stand-in and closes them."""
    async with AsyncExitStack() as stack:

        async def make(mapping: Mapping = usual, **more: Any) -> ProvisioningJob:
            settings = {"tenant_url": server.url, "token": TOKEN, "directory": directory, "clock": clock, **more}
            return await stack.enter_async_context(ProvisioningJob(mapping=mapping, **settings))

        yield make
