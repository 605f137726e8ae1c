"""A bench for the engine's moves: rows of one target on a ledger, a clock moved by hand, one transaction per move."""

from __future__ import annotations

import itertools
from typing import Any, TypeVar

import msgspec

from gateway.ledger import Job, Ledger, apply_effects
from gateway.lifecycle import Effect, Row, accept, dispatch, lose, ready, settle
from gateway.visibility import keys_of
from schemas.config import RetrySettings
from schemas.events import Outcome, ProvisioningEvent, Reason, Sighting, decode_event
from schemas.states import Change, Result
from tests.simulation.books import ComparedBooks, MemoryBooks, SqlBooks

TARGET = "shelf"
NOON = 1_000_000.0
T = TypeVar("T")


def named(name: str) -> str:
    """The identity of a user of this name."""
    return f"userName:{name}"


def sightings(**seen: str) -> tuple[Sighting, ...]:
    """Accounts by name: `sightings(ada="a1")`."""
    return tuple(Sighting(named(name), account) for name, account in seen.items())


def outcome_of(event: ProvisioningEvent, result: Result, *, now: float = NOON, **fields: Any) -> Outcome:
    """What a worker reports about an event; an applied one names account `a-<resource>` unless told otherwise."""
    known: dict[str, Any] = {
        "id": f"o{next(_NUMBERS)}",
        "event_id": event.id,
        "target": event.target,
        "kind": event.kind,
        "resource": event.resource,
        "generation": event.generation,
        "fence": event.fence,
        "delivery": 1,
        "result": result,
        "identities": event.identities,
        "deleted": event.deleted,
        "looked": event.look,
        "started_at": now,
        "ended_at": now,
    }
    if result is Result.APPLIED and not event.deleted:
        known["account_id"] = event.account_id or f"a-{event.resource}"
        known["created"] = event.account_id is None
    return Outcome(**{**known, **fields})


_NUMBERS = itertools.count(1)


class Bench:
    """Moves of `gateway/lifecycle.py`, each in a transaction of its own.

    Attributes:
        now: epoch seconds; a test moves it.
        jitter: the random number a retry gets; 1 gives the upper bound.
        effects: what the last move said besides the row.
    """

    def __init__(self, books: MemoryBooks | SqlBooks | ComparedBooks) -> None:
        self.books = books
        self.now = NOON
        self.jitter = 1.0
        self.adopt = True
        self.retry = RetrySettings()
        self.effects: list[Effect] = []

    def run(self, job: Job[T]) -> T:
        """One transaction."""
        run: Any = self.books.run
        result: T = run(job)
        return result

    def row(self, resource: str) -> Row:
        """The stored row."""
        row = self.run(lambda ledger: ledger.row(resource))
        assert row is not None
        return row

    def save(self, row: Row) -> Row:
        """Write a row as it is."""
        self.run(lambda ledger: ledger.save(row))
        return row

    def wish(
        self,
        resource: str,
        name: str = "",
        change: Change | None = None,
        *,
        acknowledged: bool = True,
        hold: bool = False,
        target: str = TARGET,
        kind: str = "user",
        **attributes: Any,
    ) -> Row:
        """Entra asks for something: a create when the resource is new, else an update."""

        def job(ledger: Ledger) -> Row:
            row = ledger.row(resource) or Row(id=resource, target=target, kind=kind)
            called = name or (msgspec.json.decode(row.document).get("userName") if row.generation else resource)
            document = {"userName": called, **attributes}
            what = change or (Change.UPDATE if row.generation else Change.CREATE)
            accept(
                row,
                event_id=f"e{next(_NUMBERS)}",
                document=msgspec.json.encode(document),
                identities=(named(called),),
                change=what,
                changed=tuple(document),
                now=self.now,
                acknowledged=acknowledged,
                hold=hold,
            )
            ledger.set_keys(row, keys_of(document, kind) if what is not Change.DELETE else keys_of({}, kind))
            ledger.save(row)
            ledger.add_event(row, actor="entra")
            return row

        return self.run(job)

    def dispatch(self, resource: str) -> ProvisioningEvent | None:
        """The dispatcher's decision about a ready row; the event when one goes out."""

        def job(ledger: Ledger) -> Row:
            row = ledger.row(resource)
            assert row is not None
            assert ready(row, self.now), f"{resource} is {row.state}, due in {row.next_at - self.now} s"
            self.effects = dispatch(row, self.now, ledger, "shelf") or []
            apply_effects(ledger, row, self.effects, self.now)
            ledger.save(row)
            return row

        row = self.run(job)
        return decode_event(row.body) if row.in_flight is not None and row.body else None

    def send(self, resource: str) -> ProvisioningEvent:
        """The same, where an event must go out."""
        event = self.dispatch(resource)
        assert event is not None, f"{resource} is {self.row(resource).state}"
        return event

    def settle(self, event: ProvisioningEvent, result: Result = Result.APPLIED, **fields: Any) -> Row:
        """A worker's report arrives."""
        return self.fold(outcome_of(event, result, now=self.now, **fields))

    def fold(self, outcome: Outcome) -> Row:
        """Any report arrives."""

        def job(ledger: Ledger) -> Row:
            row = ledger.row(outcome.resource)
            assert row is not None
            self.effects = settle(row, outcome, self.now, ledger, self.retry, adopt=self.adopt, jitter=self.jitter)
            apply_effects(ledger, row, self.effects, self.now)
            ledger.save(row)
            return row

        return self.run(job)

    def refuse(self, event: ProvisioningEvent, code: str = "bad_value", **fields: Any) -> Row:
        """The product says no for good."""
        return self.settle(event, Result.REJECTED, reason=Reason(code=code, message="No."), **fields)

    def lose(self, resource: str) -> Row:
        """The bus lost the delivery (R1)."""

        def job(ledger: Ledger) -> Row:
            row = ledger.row(resource)
            assert row is not None
            lose(row, self.now)
            ledger.save(row)
            return row

        return self.run(job)

    def applied(self, resource: str, name: str = "", **fields: Any) -> Row:
        """A resource whose create is applied."""
        self.wish(resource, name)
        return self.settle(self.send(resource), **fields)

    def outcomes(self, resource: str) -> dict[int, str | None]:
        """What became of each accepted generation."""
        if not isinstance(self.books, SqlBooks):
            return {generation: event[0] for generation, event in self.books.memory.events[resource].items()}
        found = self.books.session.execute("SELECT resource_id, generation, outcome FROM event ORDER BY generation")
        return {generation: outcome for owner, generation, outcome in found.fetchall() if owner == resource}

    def audits(self) -> list[str]:
        """What the system did by itself."""
        if not isinstance(self.books, SqlBooks):
            return [action for action, _ in self.books.memory.audits]
        return [action for (action,) in self.books.session.execute("SELECT action FROM audit ORDER BY seq").fetchall()]
