"""One running system for all tests of this folder; the products' own rate limits are lifted, ours stay.

Every test brings its own people, so that none depends on another; what was sent is looked for in the logs at the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.running import Product, Running, Scim, a_session, leaks


@pytest.fixture(scope="package")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`provgate demo --no-cycle`, ready; ends without an error and leaves no process behind."""
    folder: Path = tmp_path_factory.mktemp("e2e")
    running = Running(folder / "data", "--no-cycle")
    try:
        yield running.start()
    finally:
        code = running.stop()
    assert code == 0, running.said()
    assert running.left_behind() == []
    tokens = [entry["token"] for entry in running.ready["targets"].values()]
    assert leaks(running.data / "logs", [*tokens, running.ready["console"]["token"], "Traceback"]) == []


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """Connections of one test."""
    async with a_session() as session:
        yield session


@pytest.fixture
async def talkdesk(system: Running, session: aiohttp.ClientSession) -> AsyncIterator[Product]:
    """The emulated Talkdesk, without faults before and after."""
    product = system.product(session, "talkdesk")
    await product.control("POST", "settings", {"rate_per_s": 0})
    yield product
    await product.works()


@pytest.fixture
async def telemessage(system: Running, session: aiohttp.ClientSession) -> AsyncIterator[Product]:
    """The emulated TeleMessage, without faults before and after."""
    product = system.product(session, "telemessage")
    await product.control("POST", "settings", {"rate_per_s": 0})
    yield product
    await product.works()


@pytest.fixture
def to_talkdesk(system: Running, session: aiohttp.ClientSession) -> Scim:
    """A caller of the target talkdesk."""
    return system.scim(session, "talkdesk")


@pytest.fixture
def to_telemessage(system: Running, session: aiohttp.ClientSession) -> Scim:
    """A caller of the target telemessage."""
    return system.scim(session, "telemessage")


@pytest.fixture
def to_observe(system: Running, session: aiohttp.ClientSession) -> Scim:
    """A caller of the target observe."""
    return system.scim(session, "observe")
