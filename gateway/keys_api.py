"""The operators' API of sign-ins: keys, client secrets, and why a sign-in was refused."""

from __future__ import annotations

from typing import Annotated

from litestar import get, post
from litestar.params import FromPath, FromQuery, RawBody
from msgspec import Meta, Struct

from gateway import views
from gateway.keys import CLIENT_DAYS_DEFAULT, DAYS_DEFAULT, KeyProblem, Kind, kind_of
from gateway.refusals import RefusedSignIn
from gateway.services import (
    ACTOR,
    LIST_DEFAULT,
    LIST_MAX,
    Given,
    OperatorError,
    ReasonOrder,
    Services,
    known,
    limit_of,
    order_of,
    record,
    surroundings,
)


class KeyOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Make a key."""

    target: str
    days: int = DAYS_DEFAULT
    label: Annotated[str, Meta(max_length=100)] = ""


class ClientOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Make a client secret."""

    target: str
    days: int = CLIENT_DAYS_DEFAULT
    label: Annotated[str, Meta(max_length=100)] = ""


# ---- keys


@get("/keys")
async def list_keys(
    services: Given, target: FromQuery[str | None] = None, limit: FromQuery[int] = LIST_MAX
) -> views.KeysView:
    """The keys of one target or of all, oldest first."""
    most = limit_of(limit)
    now = services.clock.now()
    rows = await services.keys.listed(known(services, target) if target is not None else None, "key")
    return views.KeysView(now, len(rows), tuple(views.key_view(row, now) for row in rows[:most]))


@post("/keys", status_code=201)
async def new_key(services: Given, body: RawBody) -> views.NewKeyView:
    """Make a key; its text is in this answer and nowhere else."""
    order = order_of(body, KeyOrder)
    target = known(services, order.target)
    try:
        made = await services.keys.issue(target, days=order.days, label=order.label, actor=ACTOR)
    except KeyProblem as exc:
        raise OperatorError(409, str(exc)) from None
    return views.NewKeyView(
        id=made.row.id,
        target=target,
        key=made.text,
        tenant_url=surroundings(services).tenant_url(target),
        expires_at=made.row.expires_at,
    )


@post("/keys/{key_id:str}/revoke", status_code=200)
async def revoke_key(services: Given, key_id: FromPath[str], body: RawBody) -> views.KeyView:
    """End a key now."""
    return await _revoke(services, key_id, order_of(body, ReasonOrder).reason, "key")


async def _revoke(services: Services, key_id: str, reason: str, kind: Kind) -> views.KeyView:
    held = [row for row in await services.store.read_slow(lambda reader: reader.keys(None)) if row.id == key_id]
    if not held or kind_of(held[0]) != kind:
        what = "key" if kind == "key" else "client secret"
        raise OperatorError(404, f"There is no {what} with this id; see: provgate {kind} list")
    await services.keys.revoke(held[0].target, key_id, actor=ACTOR)
    if reason:
        await record(services, f"{kind}.reason", held[0].target, {"reason": reason}, subject=key_id)
    rows = [row for row in await services.keys.listed(held[0].target) if row.id == key_id]
    return views.key_view(rows[0], services.clock.now())


# ---- client secrets, refused sign-ins


@get("/clients")
async def list_clients(
    services: Given, target: FromQuery[str | None] = None, limit: FromQuery[int] = LIST_MAX
) -> views.ClientsView:
    """The client secrets of one target or of all, oldest first."""
    most = limit_of(limit)
    now = services.clock.now()
    rows = await services.keys.listed(known(services, target) if target is not None else None, "client")
    return views.ClientsView(now, len(rows), tuple(views.key_view(row, now) for row in rows[:most]))


@post("/clients", status_code=201)
async def new_client(services: Given, body: RawBody) -> views.NewClientView:
    """Make a client secret; its text is in this answer and nowhere else."""
    order = order_of(body, ClientOrder)
    target = known(services, order.target)
    if "oauth" not in services.targets()[target].auth:
        raise OperatorError(409, f'{target} takes no client secrets; add "oauth" to targets.{target}.auth first.')
    try:
        made = await services.keys.issue(target, days=order.days, label=order.label, actor=ACTOR, kind="client")
    except KeyProblem as exc:
        raise OperatorError(409, str(exc)) from None
    around = surroundings(services)
    return views.NewClientView(
        id=made.row.id,
        target=target,
        client_id=target,
        client_secret=made.text,
        token_endpoint=around.token_endpoint(target),
        tenant_url=around.tenant_url(target),
        expires_at=made.row.expires_at,
    )


@post("/clients/{key_id:str}/revoke", status_code=200)
async def revoke_client(services: Given, key_id: FromPath[str], body: RawBody) -> views.KeyView:
    """End a client secret now, and every token that was bought with it."""
    return await _revoke(services, key_id, order_of(body, ReasonOrder).reason, "client")


@get("/auth/refusals")
async def list_refusals(
    services: Given, target: FromQuery[str | None] = None, limit: FromQuery[int] = LIST_DEFAULT
) -> views.RefusalsView:
    """The latest refused sign-ins at this gateway, with every check."""
    return views.RefusalsView(services.clock.now(), tuple(services.refused.listed(target, limit_of(limit))))


@get("/auth/refusals/{refusal_id:str}")
async def show_refusal(services: Given, refusal_id: FromPath[str]) -> RefusedSignIn:
    """One refused sign-in, by the id that the caller was given."""
    refused = services.refused.find(refusal_id)
    if refused is None:
        raise OperatorError(
            404,
            "This gateway knows of no such refusal. The latest are kept, until it restarts; the log keeps the cause of all.",
        )
    return refused


ROUTES = (list_keys, new_key, revoke_key, list_clients, new_client, revoke_client, list_refusals, show_refusal)
