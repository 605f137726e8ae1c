"""Take a write of Entra's: record it, send it, and wait for its outcome where waiting is worth it.

One transaction records the wish; committed = acknowledged = never lost. What Entra is told follows the target's answer policy:
the product's own word when it comes in time, success (or "come again", policy `retry-later`) when it does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from gateway.bus import Message
from gateway.crashpoints import reached
from gateway.dispatch import Clock, Dispatcher
from gateway.ledger import NO_KEYS, Ledger, Store
from gateway.lifecycle import Row, accept, acknowledge
from gateway.messages import ScimError
from gateway.patch import MemberChange
from gateway.visibility import base_document, is_refused, is_visible, keys_of
from schemas.config import BrakeSettings, TargetSettings
from schemas.events import Reason, Trace, identity
from schemas.states import Change, Circuit, State

BRAKE_S = 3600.0
COUNTS_FRESH_S = 10.0
RETRY_AFTER_S = 30
ASKED_AGAIN_S = 30.0
"""Whoever asks again for what is waited for has it looked at this long after the last look, however often it is asked."""
EWMA_WEIGHT = 0.1
LATE_FACTOR = 2.0
"""An outcome that did not come within the budget counts as this many budgets: how much later it comes is not known."""
LATENCY_MAX_FACTOR = 1.1
"""The estimate rises no further above the budget, so that a product that is quick again is waited for within seconds."""

Compute = Callable[[dict[str, Any]], dict[str, Any]]
"""Turns the current document into the wished one; pure; raises ScimError."""

_encode = msgspec.json.Encoder().encode


class Patience(Struct, frozen=True):
    """How a caller wants to be answered.

    Args:
        wait_s: the longest wait for the product's word; None: the configured budget, which nobody exceeds.
        accepts: told to be content with "accepted", whatever the target's answer policy says (RFC 9967, `respond-async`).
    """

    wait_s: float | None = None
    accepts: bool = False


USUAL = Patience()


class Answer(Struct, frozen=True):
    """What Entra is told: the row to show, or the error.

    `applied` is true when the product confirmed; false when the write is accepted and still on its way. `txn` is the event that
    carries the write, or the one it joined.
    """

    row: Row | None = None
    error: ScimError | None = None
    applied: bool = False
    created: bool = False
    txn: str = ""


class _Taken(Struct, frozen=True):
    """What one transaction made of a write."""

    row: Row | None = None
    error: ScimError | None = None
    message: Message | None = None
    wait: bool = False
    unchanged: bool = False
    created: bool = False


class Waiters:
    """Requests that wait for a resource to settle; woken after the commit, in process or through another gateway."""

    def __init__(self) -> None:
        self._futures: dict[str, list[asyncio.Future[Row | None]]] = {}

    def awaited(self, resource: str) -> bool:
        """Whether a request waits for this resource here."""
        return resource in self._futures

    def register(self, resource: str) -> asyncio.Future[Row | None]:
        """Start waiting; pair with `forget`."""
        future: asyncio.Future[Row | None] = asyncio.get_running_loop().create_future()
        self._futures.setdefault(resource, []).append(future)
        return future

    def forget(self, resource: str, future: asyncio.Future[Row | None]) -> None:
        """Stop waiting."""
        futures = self._futures.get(resource, [])
        if future in futures:
            futures.remove(future)
        if not futures:
            self._futures.pop(resource, None)

    def wake(self, resource: str, row: Row | None) -> None:
        """A resource moved. `row` None: moved in another gateway, the waiter reads it."""
        for future in self._futures.get(resource, ()):
            if not future.done():
                future.set_result(row)


class Intake:
    """Records writes and answers them.

    Args:
        healthy: whether a worker serves this target now, as far as this gateway knows.
        identity_paths: the SCIM paths by which the target's product recognises an account.
        new_id: ULIDs for events; `new_resource` ids for resources.
    """

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        waiters: Waiters,
        clock: Clock,
        targets: Callable[[], Mapping[str, TargetSettings]],
        *,
        answer_wait_s: float,
        new_id: Callable[[], str],
        new_resource: Callable[[], str],
        healthy: Callable[[str], bool],
        identity_paths: Callable[[str], tuple[str, ...]],
    ) -> None:
        self.store = store
        self.dispatcher = dispatcher
        self.waiters = waiters
        self.clock = clock
        self.targets = targets
        self.answer_wait_s = answer_wait_s
        self.new_id = new_id
        self.new_resource = new_resource
        self.healthy = healthy
        self.identity_paths = identity_paths
        self._latency_s: dict[str, float] = {}
        self._counts: dict[str, tuple[float, int, int]] = {}

    # ---- the three writes

    async def create(
        self,
        target: str,
        kind: str,
        document: dict[str, Any],
        *,
        members: Sequence[MemberChange] = (),
        trace: Trace | None = None,
        patience: Patience = USUAL,
    ) -> Answer:
        """POST. The same POST while the first still runs joins it; a live resource of that name is 409 (`uniqueness`).

        The same means: nothing differs but letter case. One of the same names with other values or members, while the first
        is not answered yet, is the newer wish for that resource: it is taken over, and nothing of it is left out.

        Args:
            document: the wished document; a group's without its members.
            members: who shall be in a group.
            trace: the request's W3C trace context, if it carried one.
        """
        body = _encode(document)
        identities = self._identities(target, kind, document)
        keys = keys_of(document, kind)
        strict = self._strict(target, patience)
        healthy = self.healthy(target)

        def job(ledger: Ledger) -> _Taken:
            now = self.clock.now()
            row = Row(id=self.new_resource(), target=target, kind=kind, veiled=strict)
            in_the_way = ledger.set_keys(row, keys)
            if in_the_way is not None:
                other = ledger.row(in_the_way)
                if other is None:
                    raise RuntimeError("a key belongs to a resource that does not exist")
                if other.state is not State.REJECTED:
                    same = keys_of(msgspec.json.decode(other.document), kind) == keys
                    if not (other.acknowledged == 0 and same and not is_refused(other)):
                        return _Taken(error=_exists(kind, keys, other))
                    regrouped = bool(members) and ledger.change_members(other.id, members)
                    if not regrouped and _alike(other.document, body):
                        return self._join(other)
                    ledger.set_keys(other, keys)
                    return self._accept(
                        ledger,
                        other,
                        body,
                        identities,
                        other.change,
                        (*document, "members") if regrouped else tuple(document),
                        now,
                        strict=strict,
                        healthy=healthy,
                        trace=trace,
                        patience=patience,
                    )
                row = other
                second = ledger.set_keys(row, keys)
                if second is not None and second != row.id:
                    return _Taken(error=_exists(kind, keys, ledger.row(second)))
                row.veiled = strict
            return self._accept(
                ledger,
                row,
                body,
                identities,
                Change.CREATE,
                tuple(document),
                now,
                strict=strict,
                healthy=healthy,
                members=members,
                trace=trace,
                patience=patience,
            )

        return await self._answer(target, await self.store.run(job), patience)

    async def change(
        self,
        target: str,
        kind: str,
        seen: Row,
        compute: Compute,
        *,
        if_match: Callable[[Row], bool] | None = None,
        members: Sequence[MemberChange] = (),
        trace: Trace | None = None,
        patience: Patience = USUAL,
    ) -> Answer:
        """PATCH and PUT of a visible resource.

        Args:
            members: what shall happen to a group's members, in order.
            seen: the row as read before; the change is computed on it outside the transaction, and anew inside if it moved.
            if_match: the caller's precondition (412 when it does not hold).
            trace: the request's W3C trace context, if it carried one.
        """
        try:
            computed = compute(base_document(seen))
        except ScimError as error:
            return Answer(error=error)
        strict = self._strict(target, patience)
        healthy = self.healthy(target)
        brake = self.targets()[target].brake

        def job(ledger: Ledger) -> _Taken:
            row = ledger.row(seen.id)
            if row is None or row.target != target or row.kind != kind or not is_visible(row):
                return _Taken(error=_not_found(kind, seen.id))
            if if_match is not None and not if_match(row):
                return _Taken(error=_stale(kind))
            base = base_document(row)
            document = computed
            if row.generation != seen.generation or row.state is not seen.state:
                try:
                    document = compute(base)
                except ScimError as error:
                    return _Taken(error=error)
            refused = is_refused(row)
            keys = keys_of(document, kind)
            taken = ledger.set_keys(row, keys)  # before anything else is changed: a 409 changes nothing
            if taken is not None:
                other = ledger.row(taken)
                if other is None or other.state is not State.REJECTED:
                    return _Taken(error=_exists(kind, keys, other))
                ledger.set_keys(other, NO_KEYS)
                ledger.set_keys(row, keys)
            regrouped = bool(members) and ledger.change_members(row.id, members)
            if document == base and not refused and not regrouped:
                if row.open and row.acknowledged < row.generation:
                    return self._join(row)
                if row.state is State.BLOCKED and row.observed_active is not None and not row.ambiguous:
                    # Entra reads what the product shows in place of the wish, and asks again: time for another look
                    soon = max(self.clock.now(), row.settled_at + ASKED_AGAIN_S)
                    if soon < row.next_at:
                        row.next_at = soon
                        ledger.save(row)
                return _Taken(row=row, unchanged=True)
            change = _change(base, document)
            now = self.clock.now()
            hold = change is Change.DEACTIVATE and self._braked(ledger, target, brake, now)
            names = {k for k in base.keys() | document.keys() if base.get(k) != document.get(k)}
            changed = tuple(sorted(names | {"members"} if regrouped else names))
            identities = self._identities(target, kind, document)
            if strict and row.acknowledged >= row.generation:
                row.veiled = True
            return self._accept(
                ledger,
                row,
                _encode(document),
                identities,
                change,
                changed,
                now,
                strict=strict,
                healthy=healthy,
                hold=hold,
                trace=trace,
                patience=patience,
            )

        return await self._answer(target, await self.store.run(job), patience)

    async def delete(
        self,
        target: str,
        kind: str,
        resource: str,
        *,
        if_match: Callable[[Row], bool] | None = None,
        trace: Trace | None = None,
        patience: Patience = USUAL,
    ) -> Answer:
        """DELETE: answered once it is recorded; the product follows. `if_match` and `trace` as in `change`."""
        brake = self.targets()[target].brake

        def job(ledger: Ledger) -> _Taken:
            row = ledger.row(resource)
            if row is None or row.target != target or row.kind != kind or not is_visible(row):
                return _Taken(error=_not_found(kind, resource))
            if if_match is not None and not if_match(row):
                return _Taken(error=_stale(kind))
            now = self.clock.now()
            hold = self._braked(ledger, target, brake, now)
            ledger.set_keys(row, NO_KEYS)
            ledger.forget_member(row.id, now)
            return self._accept(
                ledger,
                row,
                row.document,
                row.identities,
                Change.DELETE,
                (),
                now,
                strict=False,
                healthy=False,
                hold=hold,
                trace=trace,
                patience=patience,
            )

        return await self._answer(target, await self.store.run(job), patience)

    # ---- inside the transaction

    def _accept(
        self,
        ledger: Ledger,
        row: Row,
        document: bytes,
        identities: tuple[str, ...],
        change: Change,
        changed: tuple[str, ...],
        now: float,
        *,
        strict: bool,
        healthy: bool,
        hold: bool = False,
        members: Sequence[MemberChange] = (),
        trace: Trace | None = None,
        patience: Patience = USUAL,
    ) -> _Taken:
        created = change is Change.CREATE
        accept(
            row,
            event_id=self.new_id(),
            document=document,
            identities=identities,
            change=change,
            changed=changed,
            now=now,
            acknowledged=False,
            hold=hold,
            trace=trace,
        )
        if members:
            ledger.save(row)  # members belong to a row that exists
            ledger.change_members(row.id, members)
        was_in_flight = row.in_flight is not None
        message = self.dispatcher.try_dispatch(ledger, row, now)
        on_its_way = message is not None or was_in_flight
        budget_s = self._budget_s(patience)
        quick = budget_s > 0 and self._latency_s.get(row.target, 0.0) <= budget_s
        wait = change is not Change.DELETE and healthy and on_its_way and quick
        if not wait and not (strict and ledger.target(row.target).circuit is Circuit.CLOSED):
            acknowledge(row, row.generation)
        elif strict and not wait:
            wait = True  # nothing may be promised: the answer says "come again" after the wait
        ledger.save(row)
        ledger.add_event(row, actor="entra")
        reached("G1")
        return _Taken(row=row, message=message, wait=wait, created=created)

    def _strict(self, target: str, patience: Patience) -> bool:
        """Whether nothing may be promised that is not confirmed."""
        return self.targets()[target].pending == "retry-later" and not patience.accepts

    def _budget_s(self, patience: Patience) -> float:
        return self.answer_wait_s if patience.wait_s is None else min(patience.wait_s, self.answer_wait_s)

    def _join(self, row: Row) -> _Taken:
        settled = row.settled_generation >= row.generation
        return _Taken(row=row, wait=not settled, created=row.settled_generation == 0 or row.generation == 1)

    def _braked(self, ledger: Ledger, target: str, brake: BrakeSettings, now: float) -> bool:
        """Mass brake: too many deactivations and deletions in an hour wait for an operator's approval."""
        if not brake.enabled:
            return False
        at, count, population = self._counts.get(target, (0.0, 0, 0))
        if now - at > COUNTS_FRESH_S:
            at, count, population = now, ledger.deprovisioned(target, now - BRAKE_S), ledger.population(target)
        self._counts[target] = (at, count + 1, population)
        return count + 1 > max(brake.count_min, brake.share * population)

    def _identities(self, target: str, kind: str, document: dict[str, Any]) -> tuple[str, ...]:
        paths = self.identity_paths(target) if kind == "user" else ("displayName",)
        values = ((path, _at(document, path)) for path in paths)
        return tuple(identity(path, value) for path, value in values if value)

    # ---- the answer

    async def _answer(self, target: str, taken: _Taken, patience: Patience) -> Answer:
        row = taken.row
        if row is None or taken.error is not None:
            return Answer(error=taken.error)
        if taken.message is not None:
            reached("G2")
        txn = row.event_id  # by the end of the wait the row may be another wish's
        return msgspec.structs.replace(await self._outcome_of(target, row, taken, patience), txn=txn)

    async def _outcome_of(self, target: str, row: Row, taken: _Taken, patience: Patience) -> Answer:
        if taken.unchanged:
            return Answer(row=row, applied=not row.open)
        if not taken.wait:
            if taken.message is not None:
                self.dispatcher.spawn(self.dispatcher.send((taken.message,)))
            if is_refused(row) or row.state is State.REJECTED:
                return Answer(error=refusal(row.reason))
            return Answer(row=row, created=taken.created, applied=not row.open)
        generation = row.generation
        started = self.clock.now()
        future = self.waiters.register(row.id)
        try:
            if taken.message is not None:
                self.dispatcher.spawn(self.dispatcher.send((taken.message,)))
            verdict = None
            budget_s = self._budget_s(patience)
            deadline = asyncio.get_running_loop().time() + budget_s
            while verdict is None:
                moved = await self._moved(row.id, future, deadline)
                if moved is None:
                    break
                self._note_latency(target, self.clock.now() - started)
                verdict = self._verdict(moved, generation, taken.created)
                if verdict is None:
                    self.waiters.forget(row.id, future)
                    future = self.waiters.register(row.id)
        finally:
            self.waiters.forget(row.id, future)
        if verdict is not None:
            return verdict
        if budget_s >= self.answer_wait_s:  # one who hardly waited has learnt nothing about the product
            self._note_latency(target, LATE_FACTOR * self.answer_wait_s)
        return await self._pending(target, row, generation, taken.created, strict=self._strict(target, patience))

    async def _moved(self, resource: str, future: asyncio.Future[Row | None], deadline: float) -> Row | None:
        """The row after its next move, or None when the budget is used up."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline):
                row = await future
        except TimeoutError:
            return None
        if row is None and loop.time() < deadline:
            row = await self.store.run(lambda ledger: ledger.row(resource))
        return row

    def _verdict(self, row: Row, generation: int, created: bool) -> Answer | None:
        """What a move of the row means for a waiting request; None: go on waiting."""
        if row.settled_generation >= generation:
            if is_refused(row) or row.state is State.REJECTED:
                return Answer(error=refusal(row.reason))
            if row.open and row.reason is not None:
                return None  # it was refused, and a newer wish took its place: that one's word counts for both
            return Answer(row=row, created=created, applied=True)
        return None

    async def _pending(self, target: str, row: Row, generation: int, created: bool, *, strict: bool) -> Answer:
        """Nothing within the budget: success and the rest behind the scenes, or "come again" (policy `retry-later`)."""

        def job(ledger: Ledger) -> Answer:
            current = ledger.row(row.id)
            if current is None:
                return Answer(error=_not_found(row.kind, row.id))
            verdict = self._verdict(current, generation, created)
            if verdict is not None and verdict.error is not None:
                return verdict
            if verdict is None and strict and ledger.target(target).circuit is Circuit.CLOSED:
                return Answer(error=_come_again(current))
            acknowledge(current, generation)
            ledger.save(current)
            return verdict or Answer(row=current, created=created)

        return await self.store.run(job)

    def _note_latency(self, target: str, seconds: float) -> None:
        before = self._latency_s.get(target, 0.0)
        self._latency_s[target] = min(
            LATENCY_MAX_FACTOR * self.answer_wait_s, before + EWMA_WEIGHT * (seconds - before)
        )

    def relax(self) -> None:
        """Called once a second: a target that was too slow to wait for is tried again after a while."""
        for target, seconds in self._latency_s.items():
            self._latency_s[target] = seconds * 0.98


def refusal(reason: Reason | None) -> ScimError:
    """The product's own reason as a SCIM error; `detail` is what the Entra admin reads in the provisioning log."""
    if reason is None:
        return ScimError(400, "The product refused this write and gave no reason.", "invalidValue")
    if reason.scim_type == "uniqueness":
        return ScimError(409, reason.message, "uniqueness")
    return ScimError(400, reason.message, reason.scim_type or "invalidValue")


def _alike(held: bytes, sent: bytes) -> bool:
    """Whether two documents differ in nothing but letter case; a name in other letters is the same name."""
    return held == sent or _folded(held) == _folded(sent)


def _folded(document: bytes) -> Any:
    return msgspec.json.decode(document.decode().casefold())


def _change(base: dict[str, Any], document: dict[str, Any]) -> Change:
    was, now = base.get("active") is not False, document.get("active") is not False
    if was and not now:
        return Change.DEACTIVATE
    if now and not was:
        return Change.ACTIVATE
    return Change.UPDATE


def _at(document: dict[str, Any], path: str) -> str:
    value: Any = document
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""


def _not_found(kind: str, resource: str) -> ScimError:
    return ScimError(404, f"There is no {kind} with this id at this target.")


def _exists(kind: str, keys: Any, other: Row | None) -> ScimError:
    which = "userName" if kind == "user" else "displayName"
    if other is not None and keys.user_name != keys_of(msgspec.json.decode(other.document), kind).user_name:
        which = "externalId"
    detail = f"Another {kind} of this target has this {which} already"
    if other is not None:
        detail += f" (id {other.id})"
    detail += ". Entra links it at its next match; otherwise make the values differ."
    return ScimError(409, detail, "uniqueness")


def _stale(kind: str) -> ScimError:
    return ScimError(412, f"The {kind} has changed since the version named in If-Match; read it again.")


def _come_again(row: Row) -> ScimError:
    detail = (
        f"Accepted as operation {row.event_id} and not confirmed by the product yet; the same request gets its result."
    )
    return ScimError(503, detail, None, headers={"Retry-After": str(RETRY_AFTER_S)})
