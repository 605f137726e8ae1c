"""The SCIM listener as an OpenAPI 3.1 document, made from the routes it serves and the attributes a target takes.

Whoever serves an address that is not described here, or describes one that is not served, finds out at once: `document` refuses
both. The document stands on the operators' listener, behind their token; the SCIM listener tells strangers nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gateway.discovery import schemas_of
from gateway.messages import (
    BULK_REQUEST,
    BULK_RESPONSE,
    ERROR,
    LIST_RESPONSE,
    MEDIA_TYPE,
    PATCH_OP,
    SEARCH_REQUEST,
    Limits,
)
from schemas.resources import GROUP_SCHEMA, USER_SCHEMA
from schemas.specs import Spec

OPENAPI = "3.1.0"
DOCUMENT_VERSION = "1"
_TOKEN_PATH = "/oauth2/{target}/token"  # noqa: S105 - an address
_TENANT = "/scim/v2/{target}"
_SIGNED = "bearer"
_TYPES = {"boolean": "boolean", "integer": "integer", "decimal": "number"}
_SERVER_SETS = ("id", "schemas", "meta")

_Json = dict[str, Any]


def document(
    routes: Iterable[tuple[str, str]],
    spec: Spec | None,
    limits: Limits,
    *,
    address: str = "",
    target: str = "",
) -> _Json:
    """The whole document.

    Args:
        routes: method and path template of everything the SCIM listener serves; see `scim_app.served`.
        spec: the connector's declaration of a target; None describes what any target takes (RFC 7643).
        limits: bounds that are part of the description.
        address: how clients reach the gateway, without a slash at its end; "" leaves it relative.
        target: whose document this is, in addresses; "" leaves it to the reader.

    Raises:
        ValueError: a route has no description, or a description no route.
    """
    described = _operations(limits)
    served = sorted({(method.lower(), path) for method, path in routes})
    if set(served) != set(described):
        raise ValueError(f"routes and descriptions differ: {sorted(set(served) ^ set(described))}")
    paths: _Json = {}
    for method, path in served:
        paths.setdefault(path, {})[method] = described[(method, path)]
    for path, item in paths.items():
        named = [name for name in ("target", "resource") if f"{{{name}}}" in path]
        if named:
            item["parameters"] = [_path_parameter(name, target) for name in named]
    return {
        "openapi": OPENAPI,
        "info": {
            "title": f"Provgate SCIM ingress of {spec.title}" if spec is not None else "Provgate SCIM ingress",
            "version": DOCUMENT_VERSION,
            "description": "SCIM 2.0 (RFC 7643, 7644, 9865). The Tenant URL is the address of a target.",
        },
        "servers": [{"url": address or "/"}],
        "security": [{_SIGNED: []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                _SIGNED: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key of the target, or its access token.",
                },
                "client": {"type": "http", "scheme": "basic", "description": "Client id and secret of the target."},
            },
            "schemas": _schemas(spec, limits),
        },
    }


# ---- operations


def _operations(limits: Limits) -> dict[tuple[str, str], _Json]:
    operations: dict[tuple[str, str], _Json] = {}
    for kind in ("User", "Group"):
        operations |= _resource_operations(kind, limits)
    for name, schema in (("ResourceTypes", "ResourceType"), ("Schemas", "Schema")):
        operations["get", f"{_TENANT}/{name}"] = _operation(
            f"list{name}", "Discovery", f"All {name}.", {200: _list_of("Discovered")}, 403
        )
        operations["get", f"{_TENANT}/{name}/{{resource}}"] = _operation(
            f"get{schema}", "Discovery", f"One {schema}.", {200: _ref("Discovered")}, 404
        )
    operations["get", f"{_TENANT}/ServiceProviderConfig"] = _operation(
        "getServiceProviderConfig",
        "Discovery",
        "What this service provider can do (RFC 7643 section 5).",
        {200: _ref("Discovered")},
        parameters=_projections(),
    )
    operations["post", f"{_TENANT}/.search"] = _operation(
        "searchEverything",
        "Search",
        "A search over all resources of the target (RFC 7644 section 3.4.3).",
        {200: _list_of("AnyResource")},
        408, 413, 415,
        body="SearchRequest",
    )  # fmt: skip
    operations["post", f"{_TENANT}/Bulk"] = _operation(
        "bulk",
        "Bulk",
        "Many writes in one request (RFC 7644 section 3.7).",
        {200: _ref("BulkResponse")},
        408, 409, 413, 415,
        body="BulkRequest",
    )  # fmt: skip
    operations["get", f"{_TENANT}/Events/{{resource}}"] = _operation(
        "getCompletion",
        "Events",
        "What became of a write that was not waited for (RFC 9967 section 2.5.1).",
        {200: {"type": "object"}, 202: None},
        404,
    )
    operations["post", _TOKEN_PATH] = _token_operation()
    for name in ("live", "ready"):
        operations["get", f"/health/{name}"] = {
            "operationId": name,
            "tags": ["Health"],
            "summary": "Whether the process runs." if name == "live" else "Whether requests can be served.",
            "security": [],
            "responses": {"200": _plain("Yes."), "503": _plain("No.")} if name == "ready" else {"200": _plain("Yes.")},
        }
    return operations


def _resource_operations(kind: str, limits: Limits) -> dict[tuple[str, str], _Json]:
    collection, one = f"{_TENANT}/{kind}s", f"{_TENANT}/{kind}s/{{resource}}"
    resource, plural = _ref(kind), f"{kind}s"
    version = [_header("If-Match", "Only when this is the version (RFC 7644 section 3.14).")]
    later = [_header("Prefer", "`respond-async`: do not wait for the product (RFC 9967).")]
    asked = _projections()
    operations: dict[tuple[str, str], _Json] = {
        ("get", collection): _operation(
            f"search{plural}", plural, "A page of all, or of those a filter finds.", {200: _list_of(kind)},
            parameters=[*_search_parameters(limits), *asked],
        ),
        ("post", collection): _operation(
            f"create{kind}", plural, "Create one.", {201: resource, 202: None}, 408, 409, 413, 415,
            body=f"New{kind}", parameters=[*asked, *later],
        ),
        ("post", f"{collection}/.search"): _operation(
            f"search{plural}Posted", plural, "A search whose parameters are in the body.", {200: _list_of(kind)},
            408, 413, 415, body="SearchRequest",
        ),
        ("get", one): _operation(
            f"get{kind}", plural, "One by its id.", {200: resource, 304: None}, 404,
            parameters=[*asked, _header("If-None-Match", "304 when this is still the version.")],
        ),
        ("put", one): _operation(
            f"replace{kind}", plural, "Replace it whole.", {200: resource, 202: None},
            404, 408, 409, 412, 413, 415, body=f"New{kind}", parameters=[*asked, *version, *later],
        ),
        ("patch", one): _operation(
            f"change{kind}", plural, "Change it (RFC 7644 section 3.5.2, and both dialects of Entra).",
            {200: resource, 202: None, 204: None}, 404, 408, 409, 412, 413, 415,
            body="PatchOp", parameters=[*asked, *version, *later],
        ),
        ("delete", one): _operation(
            f"delete{kind}", plural, "Delete it.", {202: None, 204: None}, 404, 412, parameters=[*version, *later],
        ),
    }  # fmt: skip
    return operations


def _operation(
    operation_id: str,
    tag: str,
    summary: str,
    answers: Mapping[int, _Json | None],
    *refusals: int,
    body: str = "",
    parameters: Iterable[_Json] = (),
) -> _Json:
    responses: _Json = {}
    for status, schema in answers.items():
        responses[str(status)] = {"description": _SAID.get(status, "Done.")}
        if schema is not None:
            responses[str(status)]["content"] = {MEDIA_TYPE: {"schema": schema}}
    for status in sorted({*refusals, 400, 401, 414, 429, 431, 503}):
        responses[str(status)] = {
            "description": _SAID.get(status, "Refused."),
            "content": {MEDIA_TYPE: {"schema": _ref("Error")}},
        }
    operation: _Json = {"operationId": operation_id, "tags": [tag], "summary": summary, "responses": responses}
    listed = list(parameters)
    if listed:
        operation["parameters"] = listed
    if body:
        schema = _ref(body)
        content = {MEDIA_TYPE: {"schema": schema}, "application/json": {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


_SAID = {
    200: "Found, or changed.",
    201: "Created.",
    202: "Taken; `Location` says how to ask what became of it.",
    204: "Done.",
    304: "Not modified.",
    400: "Not understood, or refused by the product.",
    401: "The sign-in is refused; nothing says why.",
    403: "It was asked with a filter, and there is none here.",
    404: "This target has no such thing.",
    408: "The body did not arrive in time.",
    409: "One of its unique values is taken.",
    412: "It is at another version.",
    413: "Too large.",
    414: "The address is too long.",
    415: "Not JSON.",
    429: "Too many requests; `Retry-After` says when to come again.",
    431: "The headers are too large.",
    503: "Not now; `Retry-After` says when to come again.",
}


def _token_operation() -> _Json:
    form = {
        "type": "object",
        "required": ["grant_type"],
        "properties": {
            "grant_type": {"type": "string", "const": "client_credentials"},
            **{name: {"type": "string"} for name in ("client_id", "client_secret", "scope", "client_assertion")},
            "client_assertion_type": {
                "type": "string",
                "const": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            },
        },
    }
    token = {
        "type": "object",
        "required": ["access_token", "token_type", "expires_in"],
        "properties": {
            "access_token": {"type": "string"},
            "token_type": {"type": "string"},
            "expires_in": {"type": "integer"},
        },
    }
    refused = {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string"}, "error_description": {"type": "string"}},
    }
    sized = {MEDIA_TYPE: {"schema": _ref("Error")}}
    responses: _Json = {"200": {"description": "A token.", "content": {"application/json": {"schema": token}}}}
    for status in (400, 401, 503):
        responses[str(status)] = {"description": _SAID[status], "content": {"application/json": {"schema": refused}}}
    for status in (408, 413, 414, 429, 431):
        responses[str(status)] = {"description": _SAID[status], "content": sized}
    return {
        "operationId": "getToken",
        "tags": ["Token"],
        "summary": "An access token for client credentials (RFC 6749 section 4.4, RFC 7523).",
        "security": [{"client": []}, {}],
        "requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": form}}},
        "responses": responses,
    }


def _plain(description: str) -> _Json:
    schema = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _path_parameter(name: str, target: str) -> _Json:
    schema: _Json = {"type": "string", "minLength": 1}
    if name == "target" and target:
        schema["const"] = target
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _header(name: str, description: str) -> _Json:
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}


def _query(name: str, schema: _Json, description: str) -> _Json:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _projections() -> list[_Json]:
    return [
        _query("attributes", {"type": "string"}, "Names of the attributes wanted, with commas between."),
        _query("excludedAttributes", {"type": "string"}, "Names of the attributes to leave out."),
    ]


def _search_parameters(limits: Limits) -> list[_Json]:
    return [
        _query("filter", {"type": "string", "maxLength": limits.filter_bytes_max}, "RFC 7644 section 3.4.2.2."),
        _query("startIndex", {"type": "integer"}, "The first one wanted, counted from 1."),
        _query("count", {"type": "integer"}, f"How many at most; never more than {limits.count_max}."),
        _query("cursor", {"type": "string"}, "Empty for the first page, then as it was answered (RFC 9865)."),
    ]


# ---- schemas


def _ref(name: str) -> _Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _list_of(name: str) -> _Json:
    page = {"type": "object", "properties": {"Resources": {"type": "array", "items": _ref(name)}}}
    return {"allOf": [_ref("ListResponse"), page]}


def _schemas(spec: Spec | None, limits: Limits) -> _Json:
    attributes = schemas_of(spec)
    extensions = {urn: listed for urn, listed in attributes.items() if urn not in (USER_SCHEMA, GROUP_SCHEMA)}
    # a target without groups answers their addresses all the same: searches find nothing, writes are refused
    group = attributes.get(GROUP_SCHEMA) or schemas_of(None)[GROUP_SCHEMA]
    resources = {
        "User": _resource(USER_SCHEMA, attributes[USER_SCHEMA], extensions),
        "Group": _resource(GROUP_SCHEMA, group, {}),
    }
    return {
        **resources,
        **{f"New{kind}": _as_sent(resource) for kind, resource in resources.items()},
        "AnyResource": {"anyOf": [_ref("User"), _ref("Group")]},
        "Discovered": {
            "type": "object",
            "required": ["schemas"],
            "properties": {"schemas": _texts(), "id": {"type": "string"}, "meta": _META},
        },
        **_messages(limits),
    }


def _messages(limits: Limits) -> _Json:
    operation = {
        "type": "object",
        "required": ["op"],
        "properties": {
            "op": {"type": "string", "description": "add, replace or remove, in any letter case"},
            "path": {"type": "string", "maxLength": limits.filter_bytes_max},
            "value": {},
        },
    }
    count = {"type": "integer", "minimum": 0}
    return {
        "ListResponse": _message(
            LIST_RESPONSE,
            {
                "totalResults": count,
                "startIndex": {"type": "integer", "minimum": 1},
                "itemsPerPage": count,
                "nextCursor": {"type": "string"},
                "previousCursor": {"type": "string"},
                "Resources": {"type": "array", "maxItems": limits.count_max},
            },
            "itemsPerPage", "Resources",
        ),
        "SearchRequest": _message(
            SEARCH_REQUEST,
            {
                "filter": {"type": "string", "maxLength": limits.filter_bytes_max},
                "attributes": _texts(),
                "excludedAttributes": _texts(),
                "startIndex": {"type": "integer"},
                "count": {"type": "integer"},
                "cursor": {"type": "string"},
            },
        ),
        "PatchOp": _message(
            PATCH_OP,
            {
                "Operations": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": limits.operations_max,
                    "items": operation,
                }
            },
            "Operations",
        ),
        "BulkRequest": _message(
            BULK_REQUEST,
            {
                "failOnErrors": {"type": "integer", "minimum": 1},
                "Operations": {
                    "type": "array",
                    "maxItems": limits.operations_max,
                    "items": {
                        "type": "object",
                        "required": ["method", "path"],
                        "properties": {
                            "method": {"type": "string", "enum": ["POST", "PUT", "PATCH", "DELETE"]},
                            "bulkId": {"type": "string"},
                            "version": {"type": "string"},
                            "path": {"type": "string"},
                            "data": {"type": "object"},
                        },
                    },
                },
            },
            "Operations",
        ),
        "BulkResponse": _message(
            BULK_RESPONSE,
            {
                "Operations": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["method", "status"],
                        "properties": {
                            "method": {"type": "string"},
                            "status": {"type": "string"},
                            "bulkId": {"type": "string"},
                            "version": {"type": "string"},
                            "location": {"type": "string"},
                            "response": _ref("Error"),
                        },
                    },
                }
            },
            "Operations",
        ),
        "Error": _message(
            ERROR,
            {
                "status": {"type": "string", "pattern": "^[45][0-9]{2}$"},
                "scimType": {"type": "string"},
                "detail": {"type": "string", "description": "For the administrator."},
            },
            "status", "detail",
        ),
    }  # fmt: skip


def _message(urn: str, properties: _Json, *required: str) -> _Json:
    schemas = {"type": "array", "items": {"type": "string"}, "contains": {"const": urn}}
    return {"type": "object", "required": ["schemas", *required], "properties": {"schemas": schemas, **properties}}


def _texts() -> _Json:
    return {"type": "array", "items": {"type": "string"}}


_META: _Json = {
    "type": "object",
    "properties": {
        "resourceType": {"type": "string"},
        "created": {"type": "string", "format": "date-time"},
        "lastModified": {"type": "string", "format": "date-time"},
        "location": {"type": "string"},
        "version": {"type": "string"},
    },
}


def _resource(urn: str, attributes: list[_Json], extensions: Mapping[str, list[_Json]]) -> _Json:
    """A resource as it is answered; further attributes are kept as they were sent."""
    properties = {
        "schemas": {"type": "array", "items": {"type": "string"}, "contains": {"const": urn}},
        "id": {"type": "string"},
        "externalId": {"type": "string"},
        "meta": _META,
        **{each["name"]: _attribute(each) for each in attributes},
        **{extension: _object(listed) for extension, listed in extensions.items()},
    }
    return {"type": "object", "required": ["schemas", "id"], "properties": properties}


def _as_sent(resource: _Json) -> _Json:
    """A resource as a client sends it: without what the server sets, and `active` also as text."""
    properties = {name: held for name, held in resource["properties"].items() if name not in _SERVER_SETS}
    if "active" in properties:
        properties["active"] = {
            **properties["active"],
            "type": ["boolean", "string"],
            "pattern": "^[Tt]rue$|^[Ff]alse$",
        }
    required = "userName" if "userName" in properties else "displayName"
    return {
        "type": "object",
        "required": [required],
        "properties": {"schemas": resource["properties"]["schemas"], **properties},
    }


def _object(attributes: list[_Json]) -> _Json:
    return {"type": "object", "properties": {each["name"]: _attribute(each) for each in attributes}}


def _attribute(described: Mapping[str, Any]) -> _Json:
    """One attribute of RFC 7643 section 7 as JSON Schema.

    What is shown of the parts of an entry is what was sent, so `primary` may be text; a complex value may also be its `value`.
    """
    kind = described["type"]
    if kind == "complex":
        schema = _object(described.get("subAttributes", []))
        for name in ("primary",):
            if name in schema["properties"]:
                schema["properties"][name]["type"] = ["boolean", "string"]
    else:
        schema = {"type": _TYPES.get(kind, "string")}
        if described.get("canonicalValues") and described.get("caseExact"):
            schema["enum"] = list(described["canonicalValues"])
    if described["multiValued"]:
        schema = {"type": "array", "items": schema}
    schema["description"] = described["description"]
    if described["mutability"] == "readOnly":
        schema["readOnly"] = True
    if described["mutability"] == "writeOnly":
        schema["writeOnly"] = True
    return schema
