"""The operators' API of targets: what is wrong, each target, what waits and why; pause, resume, probe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from litestar import get, post
from litestar.params import FromPath, FromQuery, RawBody
from msgspec import Meta, Struct

from gateway import explanations as explain
from gateway import views
from gateway.ledger import Ledger
from gateway.services import ACTOR, Given, ReasonOrder, Services, known, order_of, record, surroundings
from gateway.store import Reader


class PauseOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Pause, and say why."""

    reason: Annotated[str, Meta(min_length=1, max_length=1_000, pattern=r"\S")]


@get("/status")
async def status(services: Given, target: FromQuery[str | None] = None) -> views.StatusView:
    """What is wrong, in one sentence; every target; what waits and why."""
    around = surroundings(services)
    names = [known(services, target)] if target is not None else list(around.targets)
    seen, waiting = await _look(services, around, names)
    problems = {view.name: view.problems for view in seen if view.enabled}
    waits = {view.name: view.counts.waiting + view.counts.blocked for view in seen}
    overload = services.overload()
    config_problems = tuple(services.config_problems())
    mail = await services.store.read_slow(services.mail_health)
    left_over: tuple[views.LeftOverView, ...] = ()
    if target is None:
        left_over = await services.store.read_slow(lambda reader: tuple(views.left_over(around, reader)))
    return views.StatusView(
        at=around.now,
        sentence=explain.status_sentence(problems, waits, bus_connected=around.bus_connected, only=target),
        fine=around.bus_connected
        and bool(problems)
        and not any(problems.values())
        and not config_problems
        and (mail is None or mail.fine)
        and (overload is None or not overload.step),
        bus_connected=around.bus_connected,
        targets=seen,
        waiting=waiting,
        overload=overload,
        config_problems=config_problems,
        mail=mail,
        left_over=left_over,
    )


@get("/targets")
async def list_targets(services: Given) -> views.TargetsView:
    """All configured targets."""
    around = surroundings(services)
    names = list(around.targets)
    seen = await services.store.read_slow(
        lambda reader: tuple(views.target_view(around, reader, name) for name in names)
    )
    return views.TargetsView(around.now, seen)


@get("/targets/{name:str}")
async def show_target(services: Given, name: FromPath[str]) -> views.OneTargetView:
    """One target, with what waits there and why."""
    around = surroundings(services)
    seen, waiting = await _look(services, around, [known(services, name)])
    return views.OneTargetView(around.now, seen[0], waiting)


async def _look(
    services: Services, around: views.Surroundings, names: Sequence[str]
) -> tuple[tuple[views.TargetView, ...], tuple[views.WaitingView, ...]]:
    """Targets, and what waits there and why."""

    def query(reader: Reader) -> tuple[tuple[views.TargetView, ...], tuple[views.WaitingView, ...]]:
        seen = tuple(views.target_view(around, reader, name) for name in names)
        return seen, tuple(group for name in names for group in views.waiting_views(around, reader, name))

    return await services.store.read_slow(query)


@get("/openapi.json")
async def scim_openapi(services: Given, target: FromQuery[str | None] = None) -> dict[str, Any]:
    """What the SCIM listener serves, as OpenAPI 3.1; with `target` its own attributes and addresses."""
    return dict(services.scim_openapi(known(services, target) if target is not None else ""))


@post("/targets/{name:str}/pause", status_code=200)
async def pause_target(services: Given, name: FromPath[str], body: RawBody) -> views.TargetMoved:
    """Send nothing to this target until it is resumed; Entra is still answered."""
    return await _set_pause(services, known(services, name), ACTOR, order_of(body, PauseOrder).reason)


@post("/targets/{name:str}/resume", status_code=200)
async def resume_target(services: Given, name: FromPath[str], body: RawBody) -> views.TargetMoved:
    """Go on sending."""
    moved = await _set_pause(services, known(services, name), None, order_of(body, ReasonOrder).reason)
    services.dispatcher.kick(name)
    return moved


async def _set_pause(services: Services, name: str, paused_by: str | None, reason: str) -> views.TargetMoved:
    def job(ledger: Ledger) -> views.TargetMoved:
        target = ledger.target(name)
        changed = (target.paused_by is None) != (paused_by is None)
        target.paused_by = paused_by
        target.paused_reason = explain.sentence_of(reason) if paused_by is not None else ""
        ledger.save_target(target)
        ledger.audit(
            at=services.clock.now(),
            actor=ACTOR,
            action="target.paused" if paused_by is not None else "target.resumed",
            target=name,
            subject=name,
            detail={"reason": reason, "changed": changed},
        )
        return views.TargetMoved(name, paused_by, changed)

    return await services.store.run(job)


@post("/targets/{name:str}/probe", status_code=200)
async def probe_target(services: Given, name: FromPath[str]) -> views.Probed:
    """Have a worker check the product now; an open circuit is tried again at once."""
    known(services, name)
    bus = services.dispatcher.bus
    reply = await bus.probe(name) if bus.connected() else None
    await services.dispatcher.probe_now(name)
    services.dispatcher.kick(name)
    if reply is None:
        why = "No worker answered." if bus.connected() else "NATS cannot be reached."
        probed = views.Probed(name, False, "no_answer", f"{why} Nothing is known about the product.")
    else:
        said = explain.sentence_of(explain.mask_message(reply.message))
        probed = views.Probed(
            name, reply.ok, reply.code, said or ("The product answers." if reply.ok else "It failed.")
        )

    await record(services, "target.probed", name, {"ok": probed.ok, "code": probed.code})
    return probed


ROUTES = (status, scim_openapi, list_targets, show_target, pause_target, resume_target, probe_target)
