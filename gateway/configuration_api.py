"""The operators' API of settings that a product keeps and only its interface can change: see what differs, then write it.

The gateway holds no vendor credentials, so a worker reads and writes. A write names what was looked at; it is refused when the
product holds something else by then. Every attempt to write is recorded, also one that failed or whose end is not known.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Router, get, post
from litestar.params import FromPath, RawBody
from msgspec import Meta, Struct

from gateway import explanations as explain
from gateway.services import PREFIX, OperatorError, Sentence, Services, known, order_of, record
from schemas.configured import CONFIGURE_WAIT_S, Configured, Difference

_STATUS = {"not_needed": 409, "no_configuration": 409, "changed_meanwhile": 409, "shadow": 409}
"""What the operator can do something about; everything else is the product's answer."""


class ConfigureOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Write what differs. `version`: of what was looked at."""

    version: Annotated[str, Meta(min_length=1, max_length=64)]
    reason: Sentence = ""


class ConfigurationView(Struct, frozen=True, kw_only=True):
    """What differs. `changed`: what was written just now; `fine`: nothing differs any more."""

    at: float
    target: str
    product: str
    version: str
    fine: bool
    differences: tuple[Difference, ...]
    changed: tuple[Difference, ...] = ()


def configuration_router(services: Services) -> Router:
    """The routes of this module, to be put beside the operators' others."""

    @get("/targets/{name:str}/configuration")
    async def show_configuration(name: FromPath[str]) -> ConfigurationView:
        """What the product holds and what it must hold, where they differ; nothing is written."""
        return _view(services, name, await _asked(services, name, {"do": "configuration"}))

    @post("/targets/{name:str}/configuration", status_code=200)
    async def write_configuration(name: FromPath[str], body: RawBody) -> ConfigurationView:
        """Write what differs, read it again, and have an open circuit tried at once."""
        known(services, name)
        order = order_of(body, ConfigureOrder)
        if services.targets()[name].shadow:
            raise OperatorError(409, f"{name} is in shadow mode: nothing is written at the product.")
        try:
            said = await _asked(services, name, {"do": "configure", "version": order.version})
        except OperatorError:
            if services.dispatcher.bus.connected():  # it may have been written; without the bus nobody was asked
                await _record(services, name, order.reason, None)
            raise
        if said.sent or said.ok:
            await _record(services, name, order.reason, said)
        view = _view(services, name, said)
        if view.changed:
            await services.dispatcher.probe_now(name)
            services.dispatcher.kick(name)
        return view

    return Router(PREFIX, route_handlers=[show_configuration, write_configuration])


async def _asked(services: Services, name: str, question: dict[str, str]) -> Configured:
    """Raises: OperatorError 404 for an unknown target, 503 when no worker answered, or not in words known here."""
    known(services, name)
    connected = services.dispatcher.bus.connected()
    answer = await services.ask_worker(name, question, CONFIGURE_WAIT_S) if connected else None
    if answer is None:
        why = "No worker answered." if connected else "NATS cannot be reached."
        unknown = " It is not known whether it was written; look again." if connected and "version" in question else ""
        raise OperatorError(503, f"{why}{unknown} See: provgate target show {name}")
    try:
        return msgspec.json.decode(answer, type=Configured)
    except msgspec.DecodeError:
        raise OperatorError(
            503, "The worker answered in words this gateway does not know; are both up to date?"
        ) from None


def _view(services: Services, name: str, said: Configured) -> ConfigurationView:
    """Raises: OperatorError 409 or 502 with the worker's sentence when it did not go through."""
    if not said.ok:
        message = explain.sentence_of(explain.mask_message(said.message)) or "It failed."
        raise OperatorError(_STATUS.get(said.code, 502), message)
    return ConfigurationView(
        at=services.clock.now(),
        target=name,
        product=said.product,
        version=said.version,
        fine=not said.differences,
        differences=said.differences,
        changed=said.changed,
    )


async def _record(services: Services, name: str, reason: str, said: Configured | None) -> None:
    """`ok` null: nobody knows."""
    detail = {
        "reason": reason,
        "ok": None if said is None else said.ok,
        "code": "no_answer" if said is None else said.code,
        "changed": [] if said is None else [one.path for one in said.changed],
    }
    await record(services, "configuration.written", name, detail)
