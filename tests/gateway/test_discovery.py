"""Discovery: what a target says about itself, from its connector's declaration (RFC 7643 sections 5-7, RFC 7644 section 4)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.cursors import CURSOR_S
from gateway.discovery import CACHED_MAX, Discovery
from gateway.messages import DEFAULT_LIMITS, LIST_RESPONSE, ScimError
from schemas.events import EVENT_TYPES
from schemas.resources import ENTERPRISE_SCHEMA, GROUP_SCHEMA, USER_SCHEMA
from schemas.specs import Attribute, Spec
from schemas.states import Change

BASE = "https://provgate.example.com/scim/v2/talkdesk"
EXTENSION = "urn:ietf:params:scim:schemas:extension:Talkdesk:2.0:User"
SPEC = Spec(
    name="talkdesk",
    title="Talkdesk",
    attributes=(
        Attribute("userName", "userName", required=True, note="An e-mail address."),
        Attribute("name.givenName", "name.givenName", required=True),
        Attribute("name.familyName", "name.familyName", required=True),
        Attribute('emails[type eq "work"].value', "email", note="The address the product writes to."),
        Attribute("active", "active", type="boolean"),
        Attribute(f"{ENTERPRISE_SCHEMA}:department", "department"),
        Attribute(f"{EXTENSION}:rolesString", "rolesString", note="Existing roles, separated by ;"),
        Attribute(f"{EXTENSION}:seats", "seats", type="integer"),
    ),
)


GROUPS = Spec(name="observe", title="Observe", resources=("User", "Group"), any_attribute=True)


def discovery(spec: Spec | None) -> Discovery:
    return Discovery(lambda target: spec, DEFAULT_LIMITS)


def schemas(spec: Spec | None) -> dict[str, dict[str, Any]]:
    answer = msgspec.json.decode(discovery(spec).schemas("talkdesk", BASE))
    assert answer["schemas"] == [LIST_RESPONSE]
    assert answer["totalResults"] == answer["itemsPerPage"] == len(answer["Resources"])
    return {schema["id"]: schema for schema in answer["Resources"]}


def attributes(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {attribute["name"]: attribute for attribute in schema["attributes"]}


def nulls_in(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in nulls_in(item, f"{path}/{key}")]
    if isinstance(value, list):
        return [found for number, item in enumerate(value) for found in nulls_in(item, f"{path}/{number}")]
    return [path] if value is None else []


@pytest.mark.parametrize("spec", [None, SPEC, GROUPS, Spec(name="observe", title="Observe", any_attribute=True)])
def test_nothing_that_discovery_says_is_null(spec: Spec | None) -> None:
    """Entra refuses a /Schemas answer with nulls in it (its SCIM guide)."""
    found = discovery(spec)
    for body in (
        found.schemas("t", BASE),
        found.resource_types("t", BASE),
        found.provider_config("t", BASE),
    ):
        assert nulls_in(msgspec.json.decode(body)) == []


def test_before_any_worker_was_seen_the_schemas_are_core_user_group_and_the_enterprise_extension() -> None:
    """The design: a target that was just configured can be connected in Entra at once."""
    known = schemas(None)

    assert list(known) == [USER_SCHEMA, ENTERPRISE_SCHEMA, GROUP_SCHEMA]
    core = attributes(known[USER_SCHEMA])
    assert {"userName", "active", "name", "emails", "phoneNumbers", "addresses", "roles"} <= core.keys()
    assert core["userName"]["required"] is True
    assert core["userName"]["uniqueness"] == "server"
    assert core["active"]["type"] == "boolean"
    assert {part["name"] for part in core["emails"]["subAttributes"]} >= {"value", "display", "type", "primary"}
    assert "value" not in {part["name"] for part in core["addresses"]["subAttributes"]}
    assert core.keys().isdisjoint({"password", "groups", "id", "meta", "schemas"})
    manager = attributes(known[ENTERPRISE_SCHEMA])["manager"]
    assert {part["name"] for part in manager["subAttributes"]} == {"value", "displayName"}


def test_a_declared_connector_shows_exactly_the_attributes_it_takes() -> None:
    """The declaration is the documentation: /Schemas is printed from the spec, custom extension included."""
    known = schemas(SPEC)

    assert list(known) == [USER_SCHEMA, ENTERPRISE_SCHEMA, EXTENSION]
    core = attributes(known[USER_SCHEMA])
    assert set(core) == {"userName", "active", "name", "emails"}
    assert core["userName"]["description"] == "An e-mail address."
    assert {part["name"]: part["required"] for part in core["name"]["subAttributes"]} == {
        "givenName": True,
        "familyName": True,
    }
    value = attributes({"attributes": core["emails"]["subAttributes"]})["value"]
    assert value["description"] == "The address the product writes to."
    assert core["emails"]["multiValued"] is True
    custom = attributes(known[EXTENSION])
    assert custom["rolesString"]["type"] == "string"
    assert custom["seats"]["type"] == "integer"
    assert known[EXTENSION]["name"] == "Talkdesk"


def test_every_attribute_is_described_completely() -> None:
    """RFC 7643 section 7 names the characteristics; a complex attribute has parts, every other one says how it compares."""

    def check(attribute: dict[str, Any]) -> None:
        assert attribute["name"]
        assert attribute["description"]
        assert attribute["mutability"] in ("readOnly", "readWrite", "immutable")
        assert attribute["returned"] == "default"
        assert isinstance(attribute["multiValued"], bool)
        assert isinstance(attribute["required"], bool)
        if attribute["type"] == "complex":
            assert attribute["subAttributes"]
        else:
            assert isinstance(attribute["caseExact"], bool)
            assert attribute["uniqueness"] in ("none", "server")
        if attribute["type"] == "reference":
            assert attribute["referenceTypes"]
        for part in attribute.get("subAttributes", ()):
            check(part)

    for spec in (None, SPEC, GROUPS):
        for schema in schemas(spec).values():
            for attribute in schema["attributes"]:
                check(attribute)


def test_the_resource_type_names_the_extensions_and_no_groups() -> None:
    """RFC 7643 section 6; a target without groups lists no Group, so that nobody maps one."""
    answer = msgspec.json.decode(discovery(SPEC).resource_types("talkdesk", BASE))

    (user,) = answer["Resources"]
    assert user["endpoint"] == "/Users"
    assert user["schema"] == USER_SCHEMA
    assert [entry["schema"] for entry in user["schemaExtensions"]] == [ENTERPRISE_SCHEMA, EXTENSION]
    assert user["meta"]["location"] == f"{BASE}/ResourceTypes/User"


def test_a_target_that_takes_groups_lists_them_with_what_is_shown_of_a_member() -> None:
    """RFC 7643 sections 4.2 and 6; Microsoft's validation asks for a Group schema before it tests groups."""
    answer = msgspec.json.decode(discovery(GROUPS).resource_types("observe", BASE))
    user, group = answer["Resources"]
    assert (user["name"], group["name"]) == ("User", "Group")
    assert (group["endpoint"], group["schema"], group["schemaExtensions"]) == ("/Groups", GROUP_SCHEMA, [])
    assert GROUP_SCHEMA not in [entry["schema"] for entry in user["schemaExtensions"]]

    known = attributes(schemas(GROUPS)[GROUP_SCHEMA])

    assert list(known) == ["displayName", "members"]
    assert (known["displayName"]["required"], known["displayName"]["uniqueness"]) == (True, "server")
    parts = attributes({"attributes": known["members"]["subAttributes"]})
    assert list(parts) == ["value", "$ref", "type"]
    assert {part["mutability"] for part in parts.values()} == {"immutable"}
    assert parts["$ref"]["referenceTypes"] == parts["type"]["canonicalValues"] == ["User", "Group"]
    assert GROUP_SCHEMA not in schemas(SPEC)


def test_one_schema_or_resource_type_is_found_in_any_letter_case() -> None:
    """RFC 7643 section 2.1: URNs are case-insensitive; what does not exist is 404."""
    found = discovery(SPEC)

    assert msgspec.json.decode(found.schema("t", BASE, EXTENSION.upper()))["id"] == EXTENSION
    assert msgspec.json.decode(found.resource_type("t", BASE, "user"))["id"] == "User"
    for missing in (lambda: found.schema("t", BASE, "urn:x"), lambda: found.resource_type("t", BASE, "Group")):
        with pytest.raises(ScimError) as refused:
            missing()
        assert refused.value.status == 404


def test_the_service_provider_config_says_what_is_true_here() -> None:
    """RFC 7643 section 5: PATCH, bulk, filters and ETags are there; sorting and password changes are not."""
    config = msgspec.json.decode(discovery(None).provider_config("t", BASE))

    supported = {
        name: part["supported"] for name, part in config.items() if isinstance(part, dict) and "supported" in part
    }
    assert supported == {
        "patch": True,
        "bulk": True,
        "filter": True,
        "changePassword": False,
        "sort": False,
        "etag": True,
    }
    assert config["filter"]["maxResults"] == 200
    assert config["bulk"] == {"supported": True, "maxOperations": 1_000, "maxPayloadSize": 1_048_576}
    assert config["pagination"] == {
        "cursor": True,
        "index": True,
        "defaultPaginationMethod": "index",
        "defaultPageSize": 200,
        "maxPageSize": 200,
        "cursorTimeout": CURSOR_S,
    }
    assert config["authenticationSchemes"][0]["type"] == "oauthbearertoken"


def test_the_events_announced_are_those_on_the_bus_under_their_rfc_names() -> None:
    """RFC 9967 sections 2.4 and 4: what is announced is what a receiver will meet, and nothing else; it is told who asks."""
    found = discovery(None)
    config = msgspec.json.decode(found.provider_config("t", BASE, b"attributes=securityEvents"))

    assert set(config) == {"schemas", "securityEvents"}
    assert "securityEvents" not in msgspec.json.decode(found.provider_config("t", BASE))
    assert set(msgspec.json.decode(found.provider_config("t", BASE, b"excludedAttributes=bulk,sort"))).isdisjoint(
        ("bulk", "sort", "securityEvents")
    )
    assert config["securityEvents"] == {
        "asyncRequest": "request",
        "eventUris": [
            "urn:ietf:params:scim:event:prov:activate",
            "urn:ietf:params:scim:event:prov:create:full",
            "urn:ietf:params:scim:event:prov:deactivate",
            "urn:ietf:params:scim:event:prov:delete",
            "urn:ietf:params:scim:event:prov:put:full",
        ],
    }
    assert set(config["securityEvents"]["eventUris"]) == {EVENT_TYPES[change] for change in Change}


def test_a_declaration_that_changes_shows_at_once() -> None:
    """A worker of a newer version announces another spec; what was kept of the old one is not used further."""
    current: list[Spec | None] = [None]
    found = Discovery(lambda target: current[0], DEFAULT_LIMITS)
    before = found.schemas("t", BASE)

    current[0] = SPEC

    assert found.schemas("t", BASE) != before
    assert EXTENSION.encode() in found.schemas("t", BASE)


def test_the_documents_kept_for_invented_addresses_stay_bounded() -> None:
    """The Host header is the caller's choice; a thousand of them must not fill the memory."""
    found = discovery(SPEC)
    for number in range(CACHED_MAX * 2 + 1):
        found.provider_config("t", f"https://{number}.example.com/scim/v2/t")

    assert len(found._documents) <= CACHED_MAX
