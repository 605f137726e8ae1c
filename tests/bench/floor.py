"""The floor: the least a durable gateway could do per write, as a server of its own.

A bare Litestar handler on the same uvicorn, uvloop and httptools decodes the body with msgspec, commits one row to SQLite
(write-ahead log, synchronous=FULL) and publishes one message to JetStream with its PubAck. `/group` commits the rows of many
requests together in one thread, as the product does; `/each` commits every row by itself. Nothing is looked up, compared,
delivered or answered by a product.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import sys
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import nats
import uvicorn
from litestar import Litestar, Response, post

STREAM = "BENCH_FLOOR"
SUBJECT = "bench.floor."
BATCH_MAX = 256
PUB_ACK_WAIT_S = 5.0

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Commits:
    """One thread that commits rows.

    Args:
        together: rows that wait at the same time share one transaction.
    """

    def __init__(self, path: Path, *, together: bool) -> None:
        self._batch_max = BATCH_MAX if together else 1
        self._path = path
        self._rows: queue.SimpleQueue[tuple[tuple[str, bytes], asyncio.Future[None]] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def put(self, key: str, body: bytes) -> asyncio.Future[None]:
        """Resolved after the commit."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._rows.put(((key, body), future))
        return future

    def close(self) -> None:
        self._rows.put(None)
        self._thread.join()

    def _serve(self) -> None:
        database = sqlite3.connect(self._path, isolation_level=None)
        for pragma in ("journal_mode = wal", "synchronous = full"):
            database.execute(f"PRAGMA {pragma}").fetchall()
        table = f"floor_{self._batch_max}"
        database.execute(f"CREATE TABLE IF NOT EXISTS {table} (id TEXT PRIMARY KEY, body BLOB)")
        while (first := self._rows.get()) is not None:
            batch = [first]
            while len(batch) < self._batch_max:
                try:
                    entry = self._rows.get_nowait()
                except queue.Empty:
                    break
                if entry is None:
                    self._rows.put(None)
                    break
                batch.append(entry)
            database.execute("BEGIN IMMEDIATE")
            for row, _ in batch:
                database.execute(f"INSERT INTO {table} VALUES (?, ?)", row)
            database.execute("COMMIT")
            self._loop.call_soon_threadsafe(_resolve, [future for _, future in batch])
        database.close()


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def app(folder: Path, nats_url: str) -> Litestar:
    """The server."""
    parts: dict[str, Any] = {}

    async def write(commits: Commits, body: bytes) -> Response[bytes]:
        document = _decode(body)
        key = str(uuid.uuid4())
        await commits.put(key, body)
        await parts["js"].publish(
            SUBJECT + key, body, timeout=PUB_ACK_WAIT_S, stream=STREAM, headers={"Nats-Msg-Id": key}
        )
        document["id"] = key
        return Response(_encode(document), media_type="application/scim+json", status_code=201)

    @post("/group")
    async def group(body: bytes) -> Response[bytes]:
        return await write(parts["group"], body)

    @post("/each")
    async def each(body: bytes) -> Response[bytes]:
        return await write(parts["each"], body)

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        client = await nats.connect(nats_url)
        parts["js"] = client.jetstream()
        await parts["js"].add_stream(name=STREAM, subjects=[f"{SUBJECT}>"])
        parts["group"] = Commits(folder / "floor-group.sqlite3", together=True)
        parts["each"] = Commits(folder / "floor-each.sqlite3", together=False)
        try:
            yield
        finally:
            for name in ("group", "each"):
                parts[name].close()
            await client.close()

    return Litestar([group, each], lifespan=[lifespan], openapi_config=None, logging_config=None)


if __name__ == "__main__":
    uvicorn.run(
        app(Path(sys.argv[1]), sys.argv[2]),
        port=int(sys.argv[3]),
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
    )
