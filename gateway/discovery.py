"""What this service provider can do and which attributes a target takes (RFC 7644 section 4).

The attributes are those of the connector's declaration, as a worker announced it. Before any worker was seen, and for a connector
that takes any attribute, they are those of RFC 7643: core User and the enterprise extension. Group is there for targets that take
groups, and as a schema also before any worker was seen: Entra asks once, when its configuration is saved, and adds what it finds.
Nothing here is ever null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from gateway.attributes import (
    ENTERPRISE_ATTRIBUTES,
    GROUP_ATTRIBUTES,
    USER_ATTRIBUTES,
    AttributeRule,
    fold_name,
)
from gateway.cursors import CURSOR_S
from gateway.filters import AttributePath, parse_path, query_parameters
from gateway.messages import Limits, ScimError, attribute_names, list_response, project
from schemas.events import EVENT_TYPES
from schemas.resources import ENTERPRISE_SCHEMA, GROUP_SCHEMA, USER_SCHEMA
from schemas.specs import Attribute, Spec

CONFIG_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"
RESOURCE_TYPE_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:ResourceType"
SCHEMA_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:Schema"
CACHED_MAX = 256
"""Documents are kept per target and address; an address comes from the Host header, so their number has to have a bound."""

_ON_REQUEST = frozenset(("securityEvents",))
_NEVER_LISTED = frozenset(("id", "externalid", "schemas", "meta", "password", "groups"))
"""Common attributes belong to no schema (RFC 7643 section 3.1); the others are never stored or not kept on users here."""
_DEFAULT_PARTS = frozenset(("value", "display", "type", "primary"))
_SERVER_UNIQUE = frozenset(("username",))
_REFERENCES = {"profileurl": ["external"], "photos": ["external"], "manager": ["User"]}
_DESCRIPTIONS = {
    "username": "The name the person signs in with; unique within the target.",
    "name": "The parts of the person's name.",
    "displayname": "The name shown to others.",
    "active": "Whether the account may be used.",
    "emails": "E-mail addresses, one per type.",
    "phonenumbers": "Phone numbers, one per type.",
    "addresses": "Postal addresses, one per type.",
    "roles": "Roles assigned in Entra.",
    "employeenumber": "The number the organization gave the person.",
    "department": "The department the person works in.",
    "manager": "The person's manager; value is the manager's id here.",
}

_SCHEMA_DESCRIPTIONS = {USER_SCHEMA: "User account", GROUP_SCHEMA: "Group of users"}
_MEMBER_PARTS = ("value", "$ref", "type")
"""What is shown of a member; its name belongs to the member itself."""
_MEMBER_KINDS = ["User", "Group"]

_encode = msgspec.json.Encoder().encode


class _Listed(Struct):
    """An attribute on its way into a schema: what is known of it, and which of its parts are taken."""

    name: str
    rule: AttributeRule | None = None
    note: str = ""
    required: bool = False
    type: str = "string"
    multi: bool = False
    parts: dict[str, _Listed] = msgspec.field(default_factory=dict)


class _Documents(Struct, frozen=True):
    """Everything discovery answers for one target under one address."""

    spec: Spec | None
    config: dict[str, Any]
    config_bytes: bytes
    resource_types: dict[str, bytes]
    schemas: dict[str, bytes]


class Discovery:
    """Answers discovery requests with bytes that are made once.

    Args:
        spec_of: the connector's declaration of a target, None while no worker has announced one.
        limits: what is announced of them: the most resources in one answer, the most operations and bytes in one bulk.
    """

    def __init__(self, spec_of: Callable[[str], Spec | None], limits: Limits) -> None:
        self._spec_of = spec_of
        self._limits = limits
        self._documents: dict[tuple[str, str], _Documents] = {}

    def provider_config(self, target: str, base: str, query: bytes = b"") -> bytes:
        """The ServiceProviderConfig (RFC 7643 section 5).

        `securityEvents` (RFC 9967 section 4) is returned on request, as in `?attributes=securityEvents`: it may be left out, and
        clients that know the attributes of RFC 7643 and RFC 9865 only take anything else for an error.

        Args:
            base: the tenant URL without a slash at its end.
            query: what followed the `?`; `attributes` and `excludedAttributes` are obeyed (RFC 7644 section 3.9).

        Raises:
            ScimError: 400 for a query that is none.
        """
        documents = self._of(target, base)
        parameters = query_parameters(query, limits=self._limits) if query else {}
        wanted = attribute_names(parameters.get("attributes"))
        left_out = attribute_names(parameters.get("excludedattributes"))
        if not (wanted or left_out):
            return documents.config_bytes
        whole = documents.config
        return _encode(project(whole if wanted else _without_requested(whole), wanted, left_out))

    def resource_types(self, target: str, base: str) -> bytes:
        """All resource types in a ListResponse."""
        return _listed(self._of(target, base).resource_types.values())

    def resource_type(self, target: str, base: str, name: str) -> bytes:
        """One resource type by its id, in any letter case.

        Raises:
            ScimError: 404.
        """
        return _found(self._of(target, base).resource_types, name, "resource type")

    def schemas(self, target: str, base: str) -> bytes:
        """All schemas in a ListResponse."""
        return _listed(self._of(target, base).schemas.values())

    def schema(self, target: str, base: str, urn: str) -> bytes:
        """One schema by its URN, in any letter case.

        Raises:
            ScimError: 404.
        """
        return _found(self._of(target, base).schemas, urn, "schema")

    def _of(self, target: str, base: str) -> _Documents:
        spec = self._spec_of(target)
        kept = self._documents.get((target, base))
        if kept is None or kept.spec != spec:
            if len(self._documents) >= CACHED_MAX:
                self._documents.clear()
            kept = _documents(spec, base, self._limits)
            self._documents[(target, base)] = kept
        return kept


def _listed(resources: Iterable[bytes]) -> bytes:
    held = list(resources)
    return list_response(held, len(held))


def _found(held: dict[str, bytes], name: str, what: str) -> bytes:
    body = held.get(fold_name(name))
    if body is None:
        raise ScimError(404, f"This target has no such {what}.")
    return body


def _documents(spec: Spec | None, base: str, limits: Limits) -> _Documents:
    schemas = schemas_of(spec)
    title = spec.title if spec is not None else "this product"
    schema_bytes: dict[str, bytes] = {}
    for urn, attributes in schemas.items():
        document: dict[str, Any] = {
            "schemas": [SCHEMA_SCHEMA],
            "id": urn,
            "name": _schema_name(urn),
            "description": _SCHEMA_DESCRIPTIONS.get(urn) or f"Further attributes of a user of {title}",
            "attributes": attributes,
            "meta": {"resourceType": "Schema", "location": f"{base}/Schemas/{urn}"},
        }
        schema_bytes[fold_name(urn)] = _encode(document)
    extensions = [urn for urn in schemas if urn not in (USER_SCHEMA, GROUP_SCHEMA)]
    types = {"user": _resource_type("User", f"User account of {title}", USER_SCHEMA, extensions, base)}
    if spec is not None and spec.has_groups:
        types["group"] = _resource_type("Group", f"Group of users of {title}", GROUP_SCHEMA, [], base)
    config = _config(base, limits)
    return _Documents(
        spec=spec,
        config=config,
        config_bytes=_encode(_without_requested(config)),
        resource_types=types,
        schemas=schema_bytes,
    )


def _resource_type(name: str, description: str, schema: str, extensions: list[str], base: str) -> bytes:
    return _encode(
        {
            "schemas": [RESOURCE_TYPE_SCHEMA],
            "id": name,
            "name": name,
            "description": description,
            "endpoint": f"/{name}s",
            "schema": schema,
            "schemaExtensions": [{"schema": urn, "required": False} for urn in extensions],
            "meta": {"resourceType": "ResourceType", "location": f"{base}/ResourceTypes/{name}"},
        }
    )


def _without_requested(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _ON_REQUEST}


def _config(base: str, limits: Limits) -> dict[str, Any]:
    return {
        "schemas": [CONFIG_SCHEMA],
        "patch": {"supported": True},
        "bulk": {
            "supported": True,
            "maxOperations": limits.operations_max,
            "maxPayloadSize": limits.bulk_body_bytes_max,
        },
        "filter": {"supported": True, "maxResults": limits.count_max},
        "changePassword": {"supported": False},
        "sort": {"supported": False},
        "etag": {"supported": True},
        "pagination": {
            "cursor": True,
            "index": True,
            "defaultPaginationMethod": "index",
            "defaultPageSize": limits.count_max,
            "maxPageSize": limits.count_max,
            "cursorTimeout": CURSOR_S,
        },
        "securityEvents": {"asyncRequest": "request", "eventUris": sorted(EVENT_TYPES.values())},
        "authenticationSchemes": [
            {
                "type": "oauthbearertoken",
                "name": "Bearer token",
                "description": "The target's access key as a bearer token; in Entra it is called Secret Token.",
                "specUri": "https://www.rfc-editor.org/info/rfc6750",
                "primary": True,
            }
        ],
        "meta": {"resourceType": "ServiceProviderConfig", "location": f"{base}/ServiceProviderConfig"},
    }


# ---- from the declaration to schemas


def schemas_of(spec: Spec | None) -> dict[str, list[dict[str, Any]]]:
    """The attributes of every schema of a target, as RFC 7643 section 7 describes them.

    Returns:
        Lists of attributes by URN; core User comes first and is always there.
    """
    schemas = _user_schemas(spec)
    if spec is None or spec.has_groups:
        schemas[GROUP_SCHEMA] = _group_attributes()
    return schemas


def _user_schemas(spec: Spec | None) -> dict[str, list[dict[str, Any]]]:
    if spec is None or spec.any_attribute or not spec.attributes:
        tables = {USER_SCHEMA: USER_ATTRIBUTES, ENTERPRISE_SCHEMA: ENTERPRISE_ATTRIBUTES}
        return {
            urn: [_described(_whole(rule)) for folded, rule in table.items() if folded not in _NEVER_LISTED]
            for urn, table in tables.items()
        }
    held: dict[str, dict[str, _Listed]] = {USER_SCHEMA: {}}
    for name in ("userName", "active"):
        rule = USER_ATTRIBUTES[fold_name(name)]
        held[USER_SCHEMA][fold_name(name)] = _Listed(name, rule)
    for attribute in spec.attributes:
        _list(held, attribute)
    return {urn: [_described(entry) for entry in entries.values()] for urn, entries in held.items() if entries}


def _group_attributes() -> list[dict[str, Any]]:
    """The same for every product: a group is its name and its members (RFC 7643 section 4.2)."""
    name = _described(_Listed("displayName", GROUP_ATTRIBUTES["displayname"], "The group's name.", required=True))
    rule = GROUP_ATTRIBUTES["members"]
    parts = {part: _Listed(rule.sub[part].name, rule.sub[part]) for part in _MEMBER_PARTS}
    members = _described(_Listed("members", rule, "Who is in the group.", parts=parts))
    for part in members["subAttributes"]:  # a member is replaced by another one, never changed
        part["mutability"] = "immutable"
        if part["type"] == "reference":
            part["referenceTypes"] = _MEMBER_KINDS
        elif part["name"] == "type":
            part["canonicalValues"] = _MEMBER_KINDS
    return [{**name, "uniqueness": "server"}, members]


def _list(held: dict[str, dict[str, _Listed]], attribute: Attribute) -> None:
    try:
        path = parse_path(attribute.path, "User")
    except ScimError:
        return  # a declaration that names no attribute is the connector suite's to find; discovery goes on without it
    if not path.attribute or (not path.container and fold_name(path.attribute) in _NEVER_LISTED):
        return
    entries = held.setdefault(path.container or USER_SCHEMA, {})
    entry = entries.setdefault(fold_name(path.attribute), _Listed(path.attribute, path.rule))
    whole = path.where is None and not path.sub
    if whole:
        entry.required = entry.required or attribute.required
        entry.note = attribute.note or entry.note
        entry.type, entry.multi = attribute.type, attribute.multi_valued
        if path.rule is not None and path.rule.sub:
            entry.parts.update(_whole(path.rule).parts)
        return
    _list_part(entry, path, attribute)


def _list_part(entry: _Listed, path: AttributePath, attribute: Attribute) -> None:
    entry.type = "complex"
    if path.rule is None:
        entry.multi = entry.multi or path.where is not None
    if path.rule is not None and path.rule.multi:
        for folded, rule in path.rule.sub.items():
            if folded in _DEFAULT_PARTS and (folded != "value" or fold_name(path.rule.name) != "addresses"):
                entry.parts.setdefault(folded, _Listed(rule.name, rule))
    sub = path.sub or "value"
    part = entry.parts.setdefault(fold_name(sub), _Listed(sub, path.sub_rule))
    if part.rule is None:
        part.type, part.multi = attribute.type, attribute.multi_valued
    part.note = attribute.note or part.note
    if path.where is None and path.rule is not None and not path.rule.multi:
        part.required = part.required or attribute.required


def _whole(rule: AttributeRule) -> _Listed:
    # `$ref` is not kept: a reference is its `value`, whatever address the client wrote beside it
    parts = {folded: _Listed(part.name, part) for folded, part in rule.sub.items() if folded != "$ref"}
    if fold_name(rule.name) == "addresses":
        del parts["value"]  # an address has no value of its own (RFC 7643 section 4.1.2)
    return _Listed(rule.name, rule, parts=parts)


def _described(entry: _Listed, within: str = "") -> dict[str, Any]:
    rule = entry.rule
    folded = fold_name(entry.name)
    kind = rule.type if rule is not None else entry.type
    required = entry.required or (not within and folded in _SERVER_UNIQUE)
    described: dict[str, Any] = {
        "name": entry.name,
        "type": kind,
        "multiValued": rule.multi if rule is not None else entry.multi,
        "description": entry.note or (_DESCRIPTIONS.get(folded, entry.name) if not within else entry.name),
        "required": required,
        "mutability": rule.access if rule is not None else "readWrite",
        "returned": "default",
    }
    if kind == "complex":
        described["subAttributes"] = [_described(part, folded) for part in entry.parts.values()]
        return described
    described["caseExact"] = rule.exact if rule is not None else False
    described["uniqueness"] = "server" if not within and folded in _SERVER_UNIQUE else "none"
    if kind == "reference":
        described["referenceTypes"] = _REFERENCES.get(within or folded, ["external"])
    return described


def _schema_name(urn: str) -> str:
    if urn == USER_SCHEMA:
        return "User"
    if urn == GROUP_SCHEMA:
        return "Group"
    if urn == ENTERPRISE_SCHEMA:
        return "EnterpriseUser"
    parts = [part for part in urn.split(":") if part]
    return parts[-3] if len(parts) >= 3 and parts[-2][:1].isdigit() else parts[-1]
