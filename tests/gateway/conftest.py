"""A ledger in memory and one in SQL for tests of the engine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.books import MemoryBooks, SqlBooks


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store file with its tables and nothing in them, made once."""
    path = tmp_path_factory.mktemp("empty") / "store.sqlite3"
    books = SqlBooks(path)
    books.session.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    books.close()
    return path


@pytest.fixture(params=["memory", "sqlite"])
def ledger_store(request: pytest.FixtureRequest, empty_store: Path, tmp_path: Path) -> Iterator[MemoryBooks | SqlBooks]:
    """The ledger of the simulation, and the product's own store."""
    if request.param == "sqlite":
        shutil.copy(empty_store, tmp_path / "store.sqlite3")
    books = MemoryBooks() if request.param == "memory" else SqlBooks(tmp_path / "store.sqlite3")
    yield books
    if isinstance(books, MemoryBooks):
        assert not books.memory.violations
    books.close()
