"""Which connectors there are: a literal map for those shipped here, and the entry points `provgate.connectors` of others.

A connector's module is imported when it is first asked for, so a broken one harms only the targets that use it.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Unpack

from msgspec import Struct

from connectors.contract import Call, Connector, VendorResponse
from connectors.http import BeforeCall, HttpClient
from schemas.config import decode
from schemas.errors import ConfigurationError, ConnectorBug

GROUP = "provgate.connectors"

SHIPPED: dict[str, str] = {
    "babelforce": "connectors.babelforce:Babelforce",
    "bobs_business": "connectors.bobs_business:BobsBusiness",
    "observe": "connectors.observe:Observe",
    "rest": "connectors.generic_rest:GenericRest",
    "scim": "connectors.generic_scim:GenericScim",
    "sofa": "connectors.sofa:Sofa",
    "talkdesk": "connectors.talkdesk:Talkdesk",
    "telemessage": "connectors.telemessage:TeleMessage",
}


def names() -> list[str]:
    """Every connector that can be named in a configuration, sorted. Imports none of them."""
    return sorted(_places())


def load(name: str) -> type[Connector[Any, Any]]:
    """The class of a connector.

    Raises:
        ConfigurationError: there is no such connector (the nearest name is in the message), or its module is broken.
    """
    places = _places()
    if name not in places:
        near = difflib.get_close_matches(name, places, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(places))}"
        raise ConfigurationError("connector", [f"{name}: not a connector; {hint}"])
    module_name, _, class_name = places[name].partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except Exception as exc:  # an author's module may fail in any way; the others go on
        raise ConfigurationError(
            "connector", [f"{name}: {places[name]} cannot be loaded ({type(exc).__name__}: {exc})"]
        ) from exc
    if not (inspect.isclass(found) and issubclass(found, Connector)):
        raise ConfigurationError("connector", [f"{name}: {places[name]} is not a Connector"])
    for part in ("spec", "settings_type"):
        if not hasattr(found, part):
            raise ConfigurationError("connector", [f"{name}: {places[name]} declares no {part}"])
    return found


def decode_settings(name: str, table: Mapping[str, Any], path: str, problems: list[str]) -> Struct | None:
    """A target's `settings` table in the shape its connector declares.

    Args:
        name: the connector.
        table: what TOML gave.
        path: where the table stands, e.g. `targets.talkdesk-eu.settings`.
        problems: receives one sentence per mistake, path first.

    Returns:
        The settings, or None when there was a mistake.
    """
    try:
        connector = load(name)
    except ConfigurationError as exc:
        problems += [f"{path.removesuffix('.settings')}.connector: {problem}" for problem in exc.problems]
        return None
    return decode(dict(table), connector.settings_type, path=path, problems=problems, product=connector.spec.title)


def build(
    name: str, settings: Any, *, before_call: BeforeCall | None = None, paced: bool = True
) -> tuple[Connector[Any, Any], HttpClient | None]:
    """A connector with its HTTP client, for one target.

    Args:
        settings: what `decode_settings` returned.
        before_call: see `connectors.http.BeforeCall`.
        paced: keep the product's rate limit in the client; False when the hook does it.

    Returns:
        The connector, and its client to close after it (None when the connector calls nobody).

    Raises:
        ConfigurationError: no such connector, or an address that must not be called.
    """
    connector = load(name)
    endpoint, spec = connector.endpoint(settings), connector.spec_for(settings)
    if endpoint is None:
        return connector(settings, CallsNobody()), None
    client = HttpClient.open(
        endpoint,
        product=spec.title,
        before_call=before_call,
        rate_limit=spec.rate_limit,
        paced=paced,
        concurrency_max=spec.concurrency_max,
    )
    return connector(settings, client), client


class CallsNobody:
    """The HTTP client of a connector without an endpoint."""

    async def request(self, method: str, path: str, **call: Unpack[Call]) -> VendorResponse:
        """Raises: ConnectorBug, always."""
        raise ConnectorBug(f"{method} {path}: this connector declares no endpoint")


def _places() -> dict[str, str]:
    """Name -> "module:Class"; what is shipped wins over an entry point of the same name."""
    return {entry.name: entry.value for entry in entry_points(group=GROUP)} | SHIPPED
