"""The OpenAPI document of the SCIM listener: complete, valid, true to a target, and for operators only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis

from gateway.messages import DEFAULT_LIMITS
from gateway.openapi import document
from schemas.resources import ENTERPRISE_SCHEMA
from schemas.specs import Attribute, Spec
from tests.gateway.operated import TOKEN, Operated, operated
from tests.gateway.scim_listener import ALPHA, Listener, listening

ADDRESS = "https://provgate.example.com"
ROUTED = {
    *((method, f"/scim/v2/{{target}}/{kind}") for kind in ("Users", "Groups") for method in ("get", "post")),
    *(
        (method, f"/scim/v2/{{target}}/{kind}/{{resource}}")
        for kind in ("Users", "Groups")
        for method in ("get", "put", "patch", "delete")
    ),
    *(("post", f"/scim/v2/{{target}}{kind}/.search") for kind in ("", "/Users", "/Groups")),
    *(("get", f"/scim/v2/{{target}}/{kind}") for kind in ("ResourceTypes", "Schemas", "ServiceProviderConfig")),
    *(("get", f"/scim/v2/{{target}}/{kind}/{{resource}}") for kind in ("ResourceTypes", "Schemas", "Events")),
    ("post", "/scim/v2/{target}/Bulk"),
    ("post", "/oauth2/{target}/token"),
    ("get", "/health/live"),
    ("get", "/health/ready"),
}
"""What RFC 7644 section 3.2 and our own pages say is there."""


@pytest.fixture
async def scim(tmp_path: Path) -> AsyncIterator[Listener]:
    async with listening(tmp_path) as running:
        yield running


def described(found: dict[str, Any]) -> set[tuple[str, str]]:
    return {(method, path) for path, item in found["paths"].items() for method in item if method != "parameters"}


async def test_every_address_that_is_served_is_described_and_no_other(scim: Listener) -> None:
    """The document is made from the routes themselves, so neither side can fall behind."""
    assert described(scim.app.openapi(ADDRESS)) == ROUTED


def test_a_route_without_a_description_is_an_error() -> None:
    """Whoever adds an address describes it, or learns of it at the first request for the document."""
    routes = [*ROUTED, ("get", "/scim/v2/{target}/Me")]

    assert described(document(ROUTED, None, DEFAULT_LIMITS)) == ROUTED
    with pytest.raises(ValueError, match=r"/scim/v2/\{target\}/Me"):
        document(routes, None, DEFAULT_LIMITS)
    with pytest.raises(ValueError, match="/health/live"):
        document(ROUTED - {("get", "/health/live")}, None, DEFAULT_LIMITS)


async def test_it_is_a_valid_document_whose_operations_have_names_of_their_own(scim: Listener) -> None:
    """OpenAPI 3.1, as other people's tools read it: references resolve, and operationIds are unique."""
    found = scim.app.openapi(ADDRESS, ALPHA)

    schemathesis.openapi.from_dict(found).validate()

    names = [
        item[method]["operationId"] for item in found["paths"].values() for method in item if method != "parameters"
    ]
    assert len(names) == len(set(names)) == len(ROUTED)


def test_the_attributes_are_those_of_the_target() -> None:
    """A connector's declaration decides; what a client may not set is not among what it sends."""
    spec = Spec(
        name="little",
        title="Little",
        attributes=(Attribute("userName", "login", required=True), Attribute('emails[type eq "work"].value', "mail")),
    )

    own = document(ROUTED, spec, DEFAULT_LIMITS, address=ADDRESS, target="little-eu")["components"]["schemas"]
    anybodys = document(ROUTED, None, DEFAULT_LIMITS)["components"]["schemas"]

    assert own["User"]["properties"].keys() == {"schemas", "id", "externalId", "meta", "userName", "active", "emails"}
    assert own["NewUser"]["properties"].keys() == own["User"]["properties"].keys() - {"id", "meta"}
    assert own["NewUser"]["required"] == ["userName"]
    assert "department" in anybodys["User"]["properties"][ENTERPRISE_SCHEMA]["properties"]
    assert "password" not in anybodys["User"]["properties"]


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Operated]:
    async with operated(tmp_path / "operated") as running:
        yield running


async def test_operators_get_it_and_nobody_else(scim: Listener, here: Operated) -> None:
    """It says what an attacker wants to know first, so it needs the operator's token, and the SCIM listener has none."""
    here.services.scim_openapi = lambda target: scim.app.openapi(ADDRESS, target)
    signed = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=here.url) as client:
        without = await client.get("/api/v1/openapi.json")
        whole = await client.get("/api/v1/openapi.json", headers=signed)
        one = await client.get("/api/v1/openapi.json?target=alpha", headers=signed)
        unknown = await client.get("/api/v1/openapi.json?target=nobody", headers=signed)

    assert (without.status_code, whole.status_code, one.status_code, unknown.status_code) == (401, 200, 200, 404)
    assert whole.json()["openapi"].startswith("3.1")
    assert one.json()["servers"] == [{"url": ADDRESS}]
    assert one.json()["info"]["title"].endswith(scim.shelf.spec.title)
    for path in ("/openapi.json", "/api/v1/openapi.json", "/schema", f"/scim/v2/{ALPHA}/openapi.json"):
        async with scim.session.get(f"{scim.origin}{path}") as answer:
            assert answer.status == 401
    assert (await scim.get("/openapi.json")).status == 404


async def test_a_process_without_scim_says_so(here: Operated) -> None:
    """No document is made up where nothing is served."""
    async with httpx.AsyncClient(base_url=here.url) as client:
        answer = await client.get("/api/v1/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"})

    assert (answer.status_code, answer.json()) == (404, {"error": "This process serves no SCIM."})
