"""The status store as a world keeps it: in memory, or in the product's own SQL store. Jobs run one by one, in this thread.

`ComparedBooks` keeps both and compares every single answer, so that the ledger in memory means what the store means.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from gateway.ledger import Job
from gateway.store import Store, Transaction
from tests.simulation.memory import Memory, MemoryLedger

T = TypeVar("T")


class Books(Protocol):
    """Where a world keeps its rows; `memory` shows them to the checks."""

    memory: Memory

    def run(self, job: Job[T]) -> T:
        """Run one job as one transaction."""


class MemoryBooks:
    """Dictionaries.

    Args:
        without: protections the ledger leaves out, see `MemoryLedger`.
    """

    def __init__(self, without: frozenset[str] = frozenset()) -> None:
        self.memory = Memory()
        self.without = without

    def run(self, job: Job[T]) -> T:
        """See `Books`."""
        return job(MemoryLedger(self.memory, self.without))

    def close(self) -> None:
        """Nothing to close."""


class SqlBooks:
    """The product's store in one SQLite file, with the writer's thread left out."""

    def __init__(self, path: Path) -> None:
        self.store = Store.open(path)
        self.session = self.store._connect_writer()
        self.session.execute("PRAGMA synchronous = off")  # no power cut happens here

    def run(self, job: Callable[[Transaction], T]) -> T:
        """One transaction; on an error nothing of it is left."""
        self.session.begin()
        try:
            result = job(self.session.transaction())
        except BaseException:
            self.session.rollback()
            raise
        self.session.commit()
        return result

    def close(self) -> None:
        """Close the file."""
        self.session.close()
        self.store._close()


class Different(AssertionError):
    """The ledger in memory and the store answered differently."""


class ComparedBooks:
    """Both at once; the world goes by the store's answers."""

    def __init__(self, path: Path) -> None:
        self.memory = Memory()
        self.sql = SqlBooks(path)
        self.compared = 0

    def run(self, job: Job[T]) -> T:
        """See `Books`."""

        def both(transaction: Transaction) -> T:
            ledger: Any = _ComparedLedger(MemoryLedger(self.memory), transaction)
            try:
                return job(ledger)
            finally:
                self.compared += ledger.compared

        return self.sql.run(both)

    def close(self) -> None:
        """Close the store."""
        self.sql.close()


class _ComparedLedger:
    """Every method of the `Ledger` protocol, asked twice."""

    def __init__(self, memory: MemoryLedger, sql: Transaction) -> None:
        self.memory = memory
        self.sql = sql
        self.compared = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        in_memory, in_sql = getattr(self.memory, name), getattr(self.sql, name)

        def ask(*arguments: Any, **named: Any) -> Any:
            expected, answer = in_memory(*arguments, **named), in_sql(*arguments, **named)
            self.compared += 1
            if _plain(expected) != _plain(answer):
                raise Different(f"{name}{arguments}{named}\nin memory: {expected}\nin SQL:    {answer}")
            return answer

        return ask


def _plain(answer: Any) -> Any:
    return list(answer) if isinstance(answer, list | tuple) else answer
