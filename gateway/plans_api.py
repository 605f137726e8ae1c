"""The operators' API of plans and shadow mode: what would be done at a product, or would have been."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import get, post
from litestar.params import FromPath, FromQuery, RawBody
from msgspec import Struct

from gateway import plans
from gateway.ledger import Ledger
from gateway.lifecycle import Row
from gateway.messages import ScimError
from gateway.patch import member_ids, normalize_create
from gateway.services import (
    FOUND_MAX,
    LIST_DEFAULT,
    Given,
    Id,
    OperatorError,
    Sentence,
    Services,
    known,
    limit_of,
    order_of,
    record,
)
from gateway.store import Reader
from gateway.visibility import keys_of, shown_keys
from schemas.plans import PLAN_WAIT_S, Planned
from schemas.resources import GROUP_SCHEMA
from schemas.specs import Spec


class PlanOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Say what would be done at the product, for a stored user or group (`who`: any id) or a SCIM document.

    `group`: only a group is meant, or the document is one.
    """

    who: Id | None = None
    document: dict[str, Any] | None = None
    group: bool = False
    delete: bool = False
    inactive: bool = False
    show_values: bool = False
    reason: Sentence = ""


@post("/targets/{name:str}/plan", status_code=200)
async def plan_change(services: Given, name: FromPath[str], body: RawBody) -> plans.PlanView:
    """What would be done at the product; a worker rehearses it and sends nothing that writes."""
    order = order_of(body, PlanOrder)
    settings = services.targets()[known(services, name)]
    if (order.who is None) == (order.document is None) or (order.delete and order.inactive):
        raise OperatorError(
            400, "Name either a stored user or group or a document, and at most one of delete and inactive."
        )
    kind: str | None = "group" if order.group or _is_group(order.document) else None
    now = services.clock.now()
    document: dict[str, Any] | None = None
    if order.document is not None:
        kind = kind or "user"
        try:
            document = normalize_create(order.document, "Group" if kind == "group" else "User")
        except ScimError as exc:
            return plans.refused_as_scim(exc, target=name, kind=kind, settings=settings, now=now)
        if order.inactive:
            document["active"] = False
    name_path = "displayName" if kind == "group" else "userName"
    who = order.who if order.who is not None else str((document or {}).get(name_path, ""))

    def find(reader: Reader) -> tuple[list[Row], Spec | None]:
        spec = reader.spec(name)
        rows = [row for row in reader.find_person(who) if row.target == name and kind in (None, row.kind)]
        if document is not None:
            rows = [row for row in rows if shown_keys(row).user_name == keys_of(document, row.kind).user_name]
        return rows, msgspec.json.decode(spec, type=Spec) if spec else None

    rows, spec = await services.store.read_slow(find)
    if order.who is not None and len(rows) != 1:
        many = ", ".join(f"{row.id} (a {row.kind})" for row in rows[:FOUND_MAX])
        what = f"No {kind or 'user or group'}"
        why = (
            f"Several are known by that name; name one of {many}." if rows else f"{what} of {name} is known by that id."
        )
        raise OperatorError(404 if not rows else 409, why)
    stored = bool(rows)
    if order.inactive and (rows[0].kind if rows else kind) == "group":
        raise OperatorError(400, "A group cannot be deactivated; plan its deletion.")

    def draft(ledger: Ledger) -> plans.Draft:
        row = (ledger.row(rows[0].id) if stored else None) or Row(
            id=str(uuid.uuid4()), target=name, kind=kind or "user"
        )
        if document is not None and row.kind == "group" and not order.delete:
            plain = {path: value for path, value in document.items() if path != "members"}
            plans.regrouped(row, plain, member_ids(document.get("members", ())), ledger, settings.connector, now)
        state = row.state if document is None and not (order.delete or order.inactive) else None
        if document is not None:
            row = plans.rewished(row, document, spec)
        if document is None or order.delete:
            row = plans.existing(row, delete=order.delete, inactive=order.inactive)
        return plans.drafted(row, ledger, settings.connector, now, state)

    try:
        drafted = await services.store.run(draft)
    except plans.Undone as undone:
        drafted = undone.draft
    if drafted.event is None:
        return plans.unsent(drafted, target=name, settings=settings, stored=stored, now=now)
    said = await _planned(services, name, drafted.event, show_values=order.show_values)
    owner = await _owner_of(services, drafted.row, said.adopts_id) if said.adopts_id else None
    if order.show_values:
        shown = {"reason": order.reason, "plan": True}
        await record(services, "values.shown", name, shown, subject=drafted.row.id)  # recorded before it is shown
    return plans.answered(
        drafted,
        said,
        target=name,
        settings=settings,
        stored=stored,
        owner=owner,
        now=now,
        show_values=order.show_values,
    )


def _is_group(document: Mapping[str, Any] | None) -> bool:
    """Whether a document says that it is a group; one that says nothing is one when it has a name and no userName."""
    if document is None:
        return False
    schemas = document.get("schemas")
    if isinstance(schemas, list) and schemas:
        return GROUP_SCHEMA in schemas
    return "displayName" in document and "userName" not in document


async def _planned(services: Services, name: str, event: bytes, *, show_values: bool) -> Planned:
    """Raises: OperatorError 503 when no worker answered, or not in words known here."""
    question = {"do": "plan", "event": msgspec.Raw(event), "show_values": show_values}
    connected = services.dispatcher.bus.connected()
    answer = await services.ask_worker(name, question, PLAN_WAIT_S) if connected else None
    if answer is None:
        why = "No worker answered." if connected else "NATS cannot be reached."
        raise OperatorError(503, f"{why} Nothing can be planned; see: provgate target show {name}")
    try:
        return msgspec.json.decode(answer, type=Planned)
    except msgspec.DecodeError:
        raise OperatorError(
            503, "The worker answered in words this gateway does not know; are both up to date?"
        ) from None


async def _owner_of(services: Services, row: Row, account_id: str) -> Row | None:
    """The resource that is linked to an account already, if it is not this one."""

    def query(reader: Reader) -> Row | None:
        found = (held for held in reader.find_person(account_id) if held.target == row.target)
        return next((held for held in found if held.account_id == account_id and held.id != row.id), None)

    return await services.store.read_slow(query)


@get("/targets/{name:str}/shadow")
async def show_shadow(services: Given, name: FromPath[str], limit: FromQuery[int] = LIST_DEFAULT) -> plans.ShadowView:
    """What shadow mode has recorded: every rehearsed change with the calls that were not sent, masked."""
    settings, most, now = services.targets()[known(services, name)], limit_of(limit), services.clock.now()
    return await services.store.read_slow(lambda reader: plans.shadow_view(reader, name, settings, limit=most, now=now))


ROUTES = (plan_change, show_shadow)
