"""The operators' API: everything a person may see and do, as JSON under `/api/v1`, on a listener of its own.

Who may use it: whoever has the operator token. A page in a browser may not: a request that names another host than a local or
configured one, or that comes from another origin, is refused before anything else, whatever it carries.

Answers never hold a person's values unless they were asked for, and that is recorded. Every act is recorded with its reason.
Lists are bounded by `limit` and say how many there are in all. What goes wrong is `{"error": sentence}`.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from litestar import Litestar, Request, Response, Router, get, post
from litestar.connection import ASGIConnection
from litestar.datastructures import State as AppState
from litestar.di import Provide
from litestar.exceptions import HTTPException, NotFoundException
from litestar.handlers.base import BaseRouteHandler
from litestar.params import FromPath, FromQuery, RawBody
from msgspec import Struct

from gateway import dead_api, keys_api, plans_api, targets_api, views
from gateway import explanations as explain
from gateway.comparison import DIFFERENCES
from gateway.keys import last_ends
from gateway.ledger import Ledger
from gateway.live_api import stream_events
from gateway.metrics import CONTENT_TYPE, TargetGauges
from gateway.reports_store import last_report
from gateway.services import (
    ACTOR,
    FOUND_MAX,
    LIST_DEFAULT,
    PREFIX,
    TOKEN_CHARS_MIN,
    Given,
    Id,
    OperatorError,
    Sentence,
    Services,
    ever_known,
    limit_of,
    order_of,
    surroundings,
)
from gateway.store import Reader
from gateway.writer import StoreError
from schemas.logs import logger
from schemas.states import Circuit

BODY_BYTES_MAX = 256 * 1024

log = logger()


# ---- who may


class _Gate:
    """Decides about every request before it is looked at further."""

    def __init__(self, token: str, hosts: Iterable[str]) -> None:
        if len(token) < TOKEN_CHARS_MIN:
            raise ValueError(f"an operator token needs at least {TOKEN_CHARS_MIN} characters")
        self._digest = hashlib.sha256(token.encode()).digest()
        self._hosts = frozenset(host.lower() for host in hosts) | {"localhost"}

    async def no_browser(self, connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        """A page of another site may not use this listener, not even through a name it made point here (DNS rebinding)."""
        host = connection.headers.get("host", "")
        if not self._own(host):
            raise OperatorError(403, "This listener is not known under that host name.")
        origin = connection.headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            raise OperatorError(403, "A page of another site may not use this API.")
        if connection.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise OperatorError(403, "A page of another site may not use this API.")

    async def operator(self, connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        """Only who has the token, compared in constant time."""
        if handler.opt.get("public"):
            return
        given = connection.headers.getall("authorization", [])
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        if not (hmac.compare_digest(digest, self._digest) and scheme.lower() == "bearer"):
            raise OperatorError(401, "The operator token is missing or wrong.")

    def _own(self, host: str) -> bool:
        name = host.rsplit("]", 1)[0][1:] if host.startswith("[") else host.partition(":")[0]
        if name.lower() in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True  # an address cannot be made to point elsewhere


# ---- one resource


class FindOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Find a person. In a body, because addresses of requests end up in logs of proxies."""

    who: Id
    target: str | None = None
    show_values: bool = False
    reason: Sentence = ""


@get("/resources/{resource:str}")
async def show_resource(services: Given, resource: FromPath[str]) -> views.ResourceView:
    """One resource by its id: both halves, conditions, history, next step; values masked."""
    around = surroundings(services)

    def query(reader: Reader) -> views.ResourceView | None:
        row = reader.row(resource)
        return None if row is None else views.resource_view(around, reader, row, show_values=False)

    found = await services.store.read_slow(query)
    if found is None:
        raise OperatorError(404, "There is no resource with this id; provgate user show finds people by other ids.")
    return found


@post("/resources/find", status_code=200)
async def find_resources(services: Given, body: RawBody) -> views.FoundView:
    """People by any id; values are shown only when asked for, and that is recorded."""
    order = order_of(body, FindOrder)

    around = surroundings(services)

    def query(reader: Reader) -> views.FoundView:
        ever_known(services, reader, order.target)
        rows = [row for row in reader.find_person(order.who) if order.target in (None, row.target)]
        found = (views.resource_view(around, reader, row, show_values=order.show_values) for row in rows[:FOUND_MAX])
        return views.FoundView(around.now, len(rows), tuple(found))

    found = await services.store.read_slow(query)
    if order.show_values and found.found:

        def job(ledger: Ledger) -> None:
            for view in found.found:
                ledger.audit(
                    at=services.clock.now(),
                    actor=ACTOR,
                    action="values.shown",
                    target=view.target,
                    subject=view.id,
                    detail={"reason": order.reason},
                )

        await services.store.run(job)  # recorded before it is shown
    return found


# ---- audit, metrics


@get("/audit")
async def list_audit(services: Given, limit: FromQuery[int] = LIST_DEFAULT) -> views.AuditView:
    """What operators and the system did, newest first."""
    most = limit_of(limit)
    records = await services.store.read_slow(lambda reader: reader.audit(most))
    return views.AuditView(services.clock.now(), tuple(views.audit_entry(record) for record in records))


@get("/metrics", opt={"public": True})
async def metrics_page(services: Given) -> Response[bytes]:
    """For Prometheus. Needs no token: there are numbers and names of targets in it, nothing about people."""
    now = services.clock.now()
    names = list(services.targets())

    def query(reader: Reader) -> list[TargetGauges]:
        gauges = []
        for name in names:
            oldest = reader.oldest_waiting(name)
            report = last_report(reader, name)
            gauges.append(
                TargetGauges(
                    target=name,
                    counts={state.value: count for state, count in reader.counts(name).items()},
                    oldest_waiting_s=0.0 if oldest is None else max(0.0, now - oldest),
                    circuit_open=reader.target(name).row.circuit is not Circuit.CLOSED,
                    drift={one: report.counts.get(one, 0) for one in DIFFERENCES} if report else {},
                    reconciled_at=report.ended_at if report else 0.0,
                    reconcile_state=report.state if report else "",
                    reconcile_next_at=services.next_comparison(name, report) or 0.0,
                    key_ends=last_ends(reader.keys(name)),
                )
            )
        return gauges

    services.metrics.know(names)
    page = services.metrics.render(await services.store.read_slow(query))
    return Response(page, headers={"Content-Type": CONTENT_TYPE})


# ---- the application


def _problem(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response[bytes]:
    body = msgspec.json.encode({"error": message})
    return Response(body, status_code=status, media_type="application/json", headers=dict(headers or {}))


def _on_operator_error(_: Request[Any, Any, Any], exc: OperatorError) -> Response[bytes]:
    return _problem(exc.status, exc.message, {"WWW-Authenticate": "Bearer"} if exc.status == 401 else None)


def _on_http_error(_: Request[Any, Any, Any], exc: HTTPException) -> Response[bytes]:
    if isinstance(exc, NotFoundException):
        return _problem(404, "There is nothing at this address; the API lives under /api/v1.")
    return _problem(exc.status_code, explain.sentence_of(exc.detail))


def _on_store_error(_: Request[Any, Any, Any], exc: StoreError) -> Response[bytes]:
    return _problem(503, "The status store cannot be reached; nothing was changed. Try again.", {"Retry-After": "5"})


def _on_bug(request: Request[Any, Any, Any], exc: Exception) -> Response[bytes]:
    # the text of an unforeseen error may hold anything, so only its type is written down
    log.error("operators.failed", route=request.scope["path"].split("/")[3:4], error=type(exc).__name__)
    return _problem(500, "Something went wrong inside the gateway; its log says more.")


def create_app(services: Services, *more: Router) -> Litestar:
    """The operators' listener as an ASGI application; `more`: further routes, behind the same gate.

    Raises:
        ValueError: the operator token is too short.
    """
    gate = _Gate(services.token, services.hosts)

    def given() -> Services:
        return services

    api = Router(
        PREFIX,
        route_handlers=[
            *targets_api.ROUTES,
            *plans_api.ROUTES,
            *dead_api.ROUTES,
            *keys_api.ROUTES,
            show_resource,
            find_resources,
            list_audit,
            stream_events,
        ],
    )
    return Litestar(
        [api, metrics_page, *more],
        dependencies={"services": Provide(given, sync_to_thread=False)},
        guards=[gate.no_browser, gate.operator],
        exception_handlers={
            OperatorError: _on_operator_error,
            HTTPException: _on_http_error,
            StoreError: _on_store_error,
            Exception: _on_bug,
        },
        response_headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
        request_max_body_size=BODY_BYTES_MAX,
        openapi_config=None,
        logging_config=None,
        state=AppState({"streams": set()}),
    )
