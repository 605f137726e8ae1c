"""One at a time writes: many jobs share one transaction, and a job's result is handed over after the commit, never before.

`Writer` does everything in one thread; `NearWriter` runs the jobs in the event loop and only commits in the thread. Both know no
SQL. A session (a connection of `gateway/store.py`) says how to begin, commit and roll back, and which errors mean that the
database is away rather than that a job is wrong.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from schemas.logs import logger

JOBS_WAITING_MAX = 20_000
"""Jobs that wait for the writer; beyond it new ones are refused, or a slow disk would fill the memory."""
BATCH_JOBS_MAX = 256
"""Jobs per transaction: enough to share one fsync, few enough that nobody waits long for the others."""
NEAR_BATCH_JOBS_MAX = 64
"""The same where jobs run in the event loop: a few milliseconds in which it does nothing else."""
CLOSE_WAIT_S = 30.0

log = logger()

T = TypeVar("T")
Transaction_co = TypeVar("Transaction_co", covariant=True)
TransactionT = TypeVar("TransactionT")


class StoreError(Exception):
    """The store could not do what was asked; the text names no values, so it may be logged."""


class StoreOverloaded(StoreError):
    """More than JOBS_WAITING_MAX jobs wait; come again later."""


class StoreUnavailable(StoreError):
    """The database is away, locked, full or broken. Whether the last commit happened may be unknown; repeat the job."""


class StoreClosed(StoreError):
    """The store was closed, or its writer has died."""


class StoreConflict(StoreError):
    """A job broke a constraint of the database; only that job failed, and nothing of it was written."""


class Session(Protocol[Transaction_co]):
    """One connection for writing."""

    def begin(self) -> None:
        """Start a transaction that excludes every other writer."""

    def transaction(self) -> Transaction_co:
        """What one job works with; a new one for each job."""

    def commit(self) -> None:
        """End the transaction; returns when it is on disk."""

    def rollback(self) -> None:
        """Undo the transaction."""

    def close(self) -> None:
        """Give the connection back; never raises."""

    def translate(self, error: Exception) -> Exception:
        """The store's own error for one of the driver's; StoreUnavailable when the connection cannot be used further."""


class _Entry(Generic[TransactionT]):
    """A job and who waits for it."""

    __slots__ = ("ended", "error", "future", "job", "loop", "value")

    def __init__(
        self,
        job: Callable[[TransactionT], Any],
        future: asyncio.Future[Any] | None,
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        self.job = job
        self.future = future
        self.loop = loop
        self.value: Any = None
        self.error: BaseException | None = None
        self.ended = False


class Writer(Generic[TransactionT]):
    """Runs jobs in shared transactions, in the order in which they were given.

    Args:
        connect: opens a session; called again after the database was away.
        jobs_waiting_max: see JOBS_WAITING_MAX.
    """

    def __init__(
        self, connect: Callable[[], Session[TransactionT]], *, jobs_waiting_max: int = JOBS_WAITING_MAX
    ) -> None:
        self._connect = connect
        self._jobs_waiting_max = jobs_waiting_max
        self._jobs: queue.SimpleQueue[_Entry[TransactionT] | None] = queue.SimpleQueue()
        self._session: Session[TransactionT] | None = None
        self._over: StoreClosed | None = None
        self._door = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="store-writer", daemon=True)
        self._thread.start()

    def run(self, job: Callable[[TransactionT], T]) -> asyncio.Future[T]:
        """Queue one job; the future is resolved after the commit.

        Raises:
            StoreOverloaded: too many jobs wait.
            StoreClosed: the store is closed or its writer has died.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._put(_Entry(job, future, loop))
        return future

    def post(self, job: Callable[[TransactionT], Any]) -> None:
        """Queue one job nobody waits for; a failure is logged. Raises the same errors as `run`."""
        self._put(_Entry(job, None, None))

    @property
    def waiting(self) -> int:
        """Jobs that wait for the writer now."""
        return self._jobs.qsize()

    def close(self) -> None:
        """Finish what is queued, refuse everything later, end the thread. Blocks up to CLOSE_WAIT_S."""
        with self._door:
            if self._over is None:
                self._over = StoreClosed("the store is closed")
            self._jobs.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_WAIT_S)

    def _put(self, entry: _Entry[TransactionT]) -> None:
        with self._door:  # after the door is shut nothing slips into a queue that nobody reads any more
            if self._over is not None:
                raise StoreClosed(str(self._over))
            if self._jobs.qsize() >= self._jobs_waiting_max:
                raise StoreOverloaded(f"{self._jobs_waiting_max} jobs wait for the store")
            self._jobs.put(entry)

    # ---- the thread

    def _serve(self) -> None:
        batch: list[_Entry[TransactionT]] = []
        try:
            last = False
            while not last:
                batch, last = self._collect()
                if batch:
                    self._process(batch)
                    batch = []
        except BaseException as exc:
            self._died(exc)
        finally:
            if self._session is not None:
                self._session.close()
            self._fail_waiting(batch)

    def _died(self, exc: BaseException) -> None:
        log.critical("store.writer_died", error=type(exc).__name__)
        with self._door:
            self._over = StoreClosed(f"the store's writer has died ({type(exc).__name__}); restart the gateway")

    def _collect(self) -> tuple[list[_Entry[TransactionT]], bool]:
        """The next batch, and whether it is the last one."""
        first = self._jobs.get()
        batch: list[_Entry[TransactionT]] = []
        entry: _Entry[TransactionT] | None = first
        while entry is not None:
            batch.append(entry)
            if len(batch) >= BATCH_JOBS_MAX:
                return batch, False
            try:
                entry = self._jobs.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _process(self, batch: list[_Entry[TransactionT]]) -> None:
        self._conclude(batch, self._attempt(batch))

    def _conclude(self, batch: list[_Entry[TransactionT]], error: Exception | None) -> None:
        if error is not None:
            if len(batch) > 1 and not isinstance(error, StoreUnavailable):
                for entry in batch:  # one of them is wrong: only that one may fail
                    entry.error = self._attempt([entry])
                    entry.ended = True
            else:
                for entry in batch:
                    entry.error = error
        self._hand_over(batch)

    def _attempt(self, batch: list[_Entry[TransactionT]]) -> Exception | None:
        """Run a batch in one transaction; on an error nothing of it is left, and the error is returned."""
        try:
            self._perform(batch).commit()
        except Exception as exc:
            return self._undo(exc)
        return None

    def _perform(self, batch: list[_Entry[TransactionT]]) -> Session[TransactionT]:
        """Run the jobs of a batch in a new transaction, which stays open."""
        session = self._session
        if session is None:
            session = self._session = self._connect()
        session.begin()
        for entry in batch:
            entry.value = entry.job(session.transaction())
        return session

    def _undo(self, exc: Exception) -> Exception:
        """Leave nothing of a transaction that failed; what the error means to those who wait."""
        session = self._session
        error = session.translate(exc) if session is not None else exc
        if session is None or isinstance(error, StoreUnavailable):
            self._drop_session()
            return error if isinstance(error, StoreUnavailable) else _unavailable(exc)
        try:
            session.rollback()
        except Exception as broken:
            self._drop_session()
            return _unavailable(broken)
        return error

    def _drop_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _hand_over(self, batch: list[_Entry[TransactionT]]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[_Entry[TransactionT]]] = {}
        for entry in batch:
            if entry.future is not None and entry.loop is not None:
                by_loop.setdefault(entry.loop, []).append(entry)
            elif entry.error is not None:
                log.error(
                    "store.job_failed",
                    job=getattr(entry.job, "__qualname__", "?"),
                    error=type(entry.error).__name__,
                    detail=str(entry.error) if isinstance(entry.error, StoreError) else "",
                )
        for loop, entries in by_loop.items():
            try:
                loop.call_soon_threadsafe(_settle, entries)
            except RuntimeError:  # that loop is closed: nobody waits any more
                continue

    def _fail_waiting(self, batch: list[_Entry[TransactionT]]) -> None:
        """Settle what nobody will run any more, so that nobody waits for ever."""
        left = [*batch, *self._left()]
        for entry in left:
            if not entry.ended:
                entry.error = self._over or StoreClosed("the store is closed")
        self._hand_over(left)

    def _left(self) -> list[_Entry[TransactionT]]:
        left: list[_Entry[TransactionT]] = []
        while True:
            try:
                entry = self._jobs.get_nowait()
            except queue.Empty:
                return left
            if entry is not None:
                left.append(entry)


class NearWriter(Writer[TransactionT]):
    """Runs the jobs of a batch in the event loop that asked, and leaves only the wait for the disk to the thread.

    For databases whose statements take microseconds (SQLite). Two threads that run Python hand the interpreter's lock to each
    other at every statement, which costs several times what SQLite needs for it. A batch with a failing job is repeated in the
    thread, where only the guilty one fails; so is a batch that finds no session, because connecting may take long.

    The session belongs to whoever works on the current batch: first the loop, then the thread. `_turning` says that somebody
    does; jobs that come meanwhile stand in line.
    """

    def __init__(
        self, connect: Callable[[], Session[TransactionT]], *, jobs_waiting_max: int = JOBS_WAITING_MAX
    ) -> None:
        self._line: deque[_Entry[TransactionT]] = deque()
        self._work: queue.SimpleQueue[tuple[list[_Entry[TransactionT]], bool] | None] = queue.SimpleQueue()
        self._turning = False
        super().__init__(connect, jobs_waiting_max=jobs_waiting_max)

    def post(self, job: Callable[[TransactionT], Any]) -> None:
        """See `Writer.post`; outside an event loop the thread does everything."""
        try:
            loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        self._put(_Entry(job, None, loop))

    @property
    def waiting(self) -> int:
        """See `Writer.waiting`."""
        return len(self._line)

    def close(self) -> None:
        """See `Writer.close`. Call it from another thread than the event loop's, which still has to run what stands in line."""
        with self._door:
            if self._over is None:
                self._over = StoreClosed("the store is closed")
            if not self._turning:
                self._work.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_WAIT_S)

    def _put(self, entry: _Entry[TransactionT]) -> None:
        with self._door:
            if self._over is not None:
                raise StoreClosed(str(self._over))
            if len(self._line) >= self._jobs_waiting_max:
                raise StoreOverloaded(f"{self._jobs_waiting_max} jobs wait for the store")
            self._line.append(entry)
            if self._turning:
                return
            self._turning = True
        if entry.loop is None:
            self._work.put((self._taken(), False))
        else:
            entry.loop.call_soon(self._turn)

    def _taken(self) -> list[_Entry[TransactionT]]:
        return [self._line.popleft() for _ in range(min(len(self._line), NEAR_BATCH_JOBS_MAX))]

    # ---- in the event loop

    def _turn(self) -> None:
        batch = self._taken()
        performed = False
        if self._session is not None:
            try:
                self._perform(batch)
                performed = True
            except BaseException as exc:  # the thread tries again and sorts it out, whatever it was
                self._undo(exc if isinstance(exc, Exception) else RuntimeError())
        self._work.put((batch, performed))

    # ---- in the thread

    def _serve(self) -> None:
        batch: list[_Entry[TransactionT]] = []
        try:
            while (work := self._work.get()) is not None:
                batch, performed = work
                while batch:
                    self._finish(batch, performed)
                    batch, performed = self._next(), False
        except BaseException as exc:
            self._died(exc)
        finally:
            if self._session is not None:
                self._session.close()
            self._fail_waiting(batch)

    def _finish(self, batch: list[_Entry[TransactionT]], performed: bool) -> None:
        if not performed:
            self._process(batch)
            return
        error: Exception | None = None
        try:
            if self._session is not None:
                self._session.commit()
        except Exception as exc:
            error = self._undo(exc)
        self._conclude(batch, error)

    def _next(self) -> list[_Entry[TransactionT]]:
        """Wake the loop of the next batch, or rest when nothing is in line; a batch that no loop can run is returned."""
        with self._door:
            if not self._line:
                self._turning = False
                if self._over is not None:
                    self._work.put(None)
                return []
            loop = self._line[0].loop
        if loop is None:
            return self._taken()
        try:
            loop.call_soon_threadsafe(self._turn)
        except RuntimeError:  # that loop is closed
            return self._taken()
        return []

    def _left(self) -> list[_Entry[TransactionT]]:
        return list(self._line)


def _unavailable(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"the database cannot be used ({type(error).__name__})")


def _settle(entries: list[_Entry[Any]]) -> None:
    for entry in entries:
        future = entry.future
        if future is None or future.done():
            continue
        if entry.error is not None:
            future.set_exception(entry.error)
        else:
            future.set_result(entry.value)
