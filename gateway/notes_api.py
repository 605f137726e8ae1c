"""The operators' API of notes: what deliveries found to be so about resources, e.g. who is provisioned and not invited.

A person deals with some of them outside, e.g. sends an invitation by hand, and says here that it is done: later deliveries of the
resource are told. A person's values are masked unless they are asked for, and that is recorded.
"""

from __future__ import annotations

import msgspec
from litestar import Router, get, post
from litestar.params import FromPath, FromQuery, RawBody
from msgspec import Struct

from gateway.dead_api import UNREASONED_MAX, MoveOrder
from gateway.explanations import mask_identity, mask_message, sentence_of
from gateway.ledger import Ledger
from gateway.lifecycle import Row
from gateway.matching import label_of
from gateway.records import NoteRecord
from gateway.services import ACTOR, PREFIX, OperatorError, Services, after_of, known, limit_of, order_of, record
from gateway.store import Reader
from gateway.views import Moved, Skipped
from schemas.events import Note
from schemas.masking import mask
from schemas.specs import NoteKind, Spec

LISTED_MAX = 500


class NoteKindView(Struct, frozen=True, kw_only=True):
    """One kind of note. `done`: what is noted instead when a person has dealt with it; "" when there is nothing to deal with."""

    code: str
    title: str
    done: str
    count: int


class NotesView(Struct, frozen=True, kw_only=True):
    """What is noted about the resources of a target; `counts` by code, only what there is."""

    at: float
    target: str
    kinds: tuple[NoteKindView, ...]
    counts: dict[str, int]


class NoteLine(Struct, frozen=True, kw_only=True):
    """A resource with a note. `n`: pages go on after it; `code`: what it is about, e.g. an object id."""

    n: int
    class_: str = msgspec.field(name="class")
    code: str
    resource: str
    kind: str
    state: str
    account_id: str
    label: str
    attributes: tuple[str, ...] = ()
    message: str
    times: int
    first_at: float
    last_at: float
    noted_by: str


class NoteLines(Struct, frozen=True):
    """A page of notes; the next one begins after the last `n`."""

    findings: tuple[NoteLine, ...]


def notes_router(services: Services) -> Router:
    """The routes of this module, to be put beside the operators' others."""

    async def kinds_of(name: str) -> tuple[NoteKind, ...]:
        body = await services.store.read(lambda reader: reader.spec(name))
        try:
            return msgspec.json.decode(body, type=Spec).notes if body else ()
        except msgspec.DecodeError:  # announced by a worker of another version
            return ()

    @get("/targets/{name:str}/notes")
    async def show_notes(name: FromPath[str]) -> NotesView:
        """Which kinds there are, and how many of each."""
        kinds = await kinds_of(known(services, name))
        counts = await services.store.read_slow(lambda reader: reader.note_counts(name))
        seen = (*kinds, *(NoteKind(code, "") for code in counts if all(kind.code != code for kind in kinds)))
        views = tuple(
            NoteKindView(code=kind.code, title=kind.title, done=kind.done, count=counts.get(kind.code, 0))
            for kind in seen
        )
        return NotesView(
            at=services.clock.now(),
            target=name,
            kinds=views,
            counts={view.code: view.count for view in views if view.count},
        )

    @get("/targets/{name:str}/notes/findings")
    async def list_notes(
        name: FromPath[str],
        class_: FromQuery[str],
        after: FromQuery[int] = 0,
        limit: FromQuery[int] = LISTED_MAX,
        show_values: FromQuery[bool] = False,
    ) -> NoteLines:
        """Resources with one kind of note, page by page."""
        known(services, name)
        beyond, most = after_of(after), limit_of(limit, LISTED_MAX)
        if show_values:  # each page, because any page may be asked for first
            await record(services, "values.shown", name, {"notes": class_, "after": after})

        def query(reader: Reader) -> tuple[NoteLine, ...]:
            found = reader.notes(name, class_, beyond, most)
            return tuple(_line(n, row, note, show_values=show_values) for n, row, note in found)

        return NoteLines(await services.store.read_slow(query))

    @post("/targets/{name:str}/notes/{code:str}/done", status_code=200)
    async def end_notes(name: FromPath[str], code: FromPath[str], body: RawBody) -> Moved:
        """A person has dealt with these; what is noted in their place keeps deliveries from doing it again."""
        kind = next((one for one in await kinds_of(known(services, name)) if one.code == code and one.done), None)
        if kind is None:
            raise OperatorError(409, f"There is nothing to be done about notes {sentence_of(code)!r} of {name}.")
        order = order_of(body, MoveOrder)
        if len(order.ids) > UNREASONED_MAX and not order.reason.strip():
            raise OperatorError(400, f"More than {UNREASONED_MAX} at once need a reason.")
        return await services.store.run(lambda ledger: _end(ledger, name, kind, order, services.clock.now()))

    return Router(PREFIX, route_handlers=[show_notes, list_notes, end_notes])


def _end(ledger: Ledger, target: str, kind: NoteKind, order: MoveOrder, now: float) -> Moved:
    done: list[str] = []
    skipped: list[Skipped] = []
    for resource in order.ids:
        row = ledger.row(resource)
        if row is None or row.target != target:
            skipped.append(Skipped(resource, "There is no such resource at this target."))
        elif kind.code not in ledger.notes_of(resource):
            skipped.append(Skipped(resource, f"Nothing of the kind {kind.code} is noted about it."))
        else:
            said = "An operator said so."
            notes = (Note(code=kind.code, holds=False), Note(code=kind.done, message=said))
            ledger.take_notes(row, notes, by=ACTOR, at=now)
            ledger.audit(
                at=now,
                actor=ACTOR,
                action="note.done",
                target=target,
                subject=resource,
                detail={"note": kind.code, "reason": order.reason},
            )
            done.append(resource)
    return Moved(tuple(done), tuple(skipped))


def _line(n: int, row: Row, note: NoteRecord, *, show_values: bool) -> NoteLine:
    label, account_id, message = label_of(row), row.account_id or "", note.message
    if not show_values:
        label = label if row.kind == "group" else mask_identity(label)
        account_id = mask(account_id) if "@" in account_id else account_id
        message = mask_message(message, (row.document, row.settled_document))
    return NoteLine(
        n=n,
        class_=note.code,
        code=note.subject,
        resource=row.id,
        kind=row.kind,
        state=row.state.value,
        account_id=account_id,
        label=label,
        message=message,
        times=note.times,
        first_at=note.first_at,
        last_at=note.last_at,
        noted_by=note.noted_by,
    )
