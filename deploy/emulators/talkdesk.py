"""Talkdesk: SCIM users with roles and teams by exact name, a read-only users API, and the token endpoint.

The interface is documented. Where the vendor says nothing the strict reading is taken: names of roles and teams
are exact and case-sensitive, PUT forgets whatever is not sent, and 429 carries no Retry-After.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar
from urllib.parse import parse_qsl

import msgspec

from deploy.emulators.harness import (
    Answer,
    Call,
    Change,
    Emulator,
    Refusal,
    Route,
    Rows,
    Setting,
    check_fields,
    digest,
    iso_time,
)

CORE = "urn:ietf:params:scim:schemas:core:2.0:User"
EXTENSION = "urn:ietf:params:scim:schemas:extension:talkdesk:2.0:User"
ERROR = "urn:ietf:params:scim:api:messages:2.0:Error"
LIST = "urn:ietf:params:scim:api:messages:2.0:ListResponse"
PATCH_OP = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
PROVIDER = "urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"
RESOURCE_TYPE = "urn:ietf:params:scim:schemas:core:2.0:ResourceType"

SCIM_TYPES = ("application/scim+json", "application/json")
SCIM_PAGE_MAX = 100
SCIM_USER_FIELDS = {"schemas": list, "userName": str, "externalId": str, "active": bool, "name": dict, EXTENSION: dict}
NAME_FIELDS = {"givenName": str, "familyName": str}
EXTENSION_FIELDS = {"rolesString": str, "teamsString": str}
# Flat names of what a user holds, by SCIM path: PATCH speaks in paths.
PATHS = {
    "userName": "userName",
    "externalId": "externalId",
    "active": "active",
    "name.givenName": "givenName",
    "name.familyName": "familyName",
    f"{EXTENSION}:rolesString": "rolesString",
    f"{EXTENSION}:teamsString": "teamsString",
}
PATCH_DEFAULTS = {"externalId": None, "active": True, "rolesString": "", "teamsString": ""}
FILTER = re.compile(r'\s*(\w+)\s+eq\s+"((?:[^"\\]|\\.)*)"\s*', re.IGNORECASE)
EMAIL = re.compile(r"[^@\s]+@[^@\s]+")

DEFAULT_ROLE = "Agent"
ROLES = {
    "Agent": True,
    "Supervisor": True,
    "Administrator": True,
    "Team Lead": True,
    "Quality Analyst": True,
    "Billing": True,
    "BILLING": True,
    "Legacy Agent": False,
}
TEAMS = ["Porto", "Lisbon Support", "São Paulo", "Tier-1", "Ops & QA"]
DEMO_CLIENT = ("demo-client", "demo-secret-talkdesk")
SCOPES = frozenset({"scim", "users:read", "roles:read", "teams:read"})
OPAQUE_IDLE_S = 86_400.0
JWT_LIFE_S = 600.0
JWT_LIFE_SCIM_S = 2_592_000.0


class TalkdeskEmulator(Emulator):
    """State: `users` by id (deleted ones stay, for the users API), `tokens`, `settings` with roles, teams and licences.

    `client_id` and `client_secret` open /oauth/token; the fixed token of the harness holds every scope.
    """

    name: ClassVar[str] = "talkdesk"
    rate_per_s: ClassVar[float] = 4.0
    bearer_optional: ClassVar[bool] = True
    scopes_all: ClassVar[frozenset[str]] = SCOPES
    SETTINGS: ClassVar[Mapping[str, Setting]] = {
        "roles": Setting(ROLES, dict[str, bool], "role name -> active"),
        "teams": Setting(TEAMS, list[str], "team names"),
        "licences": Setting(None, Annotated[int, msgspec.Meta(ge=0)] | None, "active users at most; null is unlimited"),
        "patch": Setting(False, bool, "PATCH works and ServiceProviderConfig says so"),
        "listing": Setting(False, bool, "GET /roles and /teams exist (assumed calls)"),
        "retry_after": Setting(False, bool, "429 carries Retry-After"),
        "page_users": Setting(
            50, Annotated[int, msgspec.Meta(ge=1)], "per_page of /users when the client does not say"
        ),
    }

    def __init__(self, *, client_id: str = DEMO_CLIENT[0], client_secret: str = DEMO_CLIENT[1], **options: Any) -> None:
        self._client = (client_id, client_secret)
        self._used_at: dict[str, float] = {}
        super().__init__(**options)

    def routes(self) -> list[Route]:
        """SCIM, the users API, the optional name lists and the token endpoint."""
        return [
            Route("GET", "/scim/v2/Users", self._scim_list),
            Route("POST", "/scim/v2/Users", self._scim_create),
            Route("GET", "/scim/v2/Users/{id}", self._scim_get),
            Route("PUT", "/scim/v2/Users/{id}", self._scim_put),
            Route("PATCH", "/scim/v2/Users/{id}", self._scim_patch),
            Route("DELETE", "/scim/v2/Users/{id}", self._scim_delete),
            Route("GET", "/scim/v2/ServiceProviderConfig", self._provider),
            Route("GET", "/scim/v2/ResourceTypes", self._resource_types),
            Route("GET", "/scim/v2/ResourceTypes/User", self._resource_type),
            Route("GET", "/users", self._hal_users),
            Route("GET", "/users/{id}", self._hal_user),
            Route("GET", "/roles", self._hal_roles),
            Route("GET", "/teams", self._hal_teams),
            Route("POST", "/oauth/token", self._token, authenticated=False, metered=False),
        ]

    def first_tables(self) -> Rows:
        """No users; `_by_user_name` (lower case) and `_by_external_id` find them."""
        return {"users": {}, "_by_user_name": {}, "_tokens": {}, "_counters": {"active": 0}}

    def seed(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """`{"users": [{"userName", "givenName"?, "familyName"?, "active"?, "externalId"?, "rolesString"?, "teamsString"?}],
        "roles": {name: active}, "teams": [name]}`; roles and teams replace the lists."""
        check_fields(document, {"users": list, "roles": dict, "teams": list})
        self.set(**{kind: document[kind] for kind in ("roles", "teams") if kind in document})
        known = {name: bool if name == "active" else str for name in PATHS.values()}
        taken = set(self.tables.rows["_by_user_name"])
        changes: list[Change] = []
        ids: list[str] = []
        active = self._active
        for wanted in document.get("users", []):
            check_fields(wanted, known, ("userName",))
            key = wanted["userName"].casefold()
            if key in taken:
                raise ValueError(f"{wanted['userName']} is already taken")
            taken.add(key)
            blank = {"givenName": "Given", "familyName": "Family", "externalId": None, "active": True}
            names = {"rolesString": DEFAULT_ROLE, "teamsString": ""}
            user = self._new_user({**blank, **names, **wanted}, self.clock.now())
            ids.append(user["id"])
            active += user["active"]
            changes += [("users", user["id"], user), ("_by_user_name", key, user["id"])]
        changes.append(("_counters", "active", active))
        self.control("seed", changes)
        return {"ids": ids}

    def rate_refusal(self) -> Refusal:
        """429; the vendor documents no Retry-After."""
        headers = {"Retry-After": "1"} if self.setting("retry_after") else {}
        return Refusal(429, "rate_limited", "Rate limit exceeded", headers=headers)

    def error_answer(self, refusal: Refusal, call: Call) -> Answer:
        """A SCIM error below /scim, the token endpoint's own body in `extra`, otherwise the error of the users API."""
        if refusal.extra:
            return Answer(refusal.status, dict(refusal.extra), dict(refusal.headers), "application/json")
        if not call.path.startswith("/scim/"):
            said = {
                "code": f"{refusal.status}",
                "message": refusal.message,
                "description": refusal.message,
                "fields": [],
            }
            return Answer(refusal.status, said, dict(refusal.headers), "application/json")
        body = {"schemas": [ERROR], "status": str(refusal.status), "detail": refusal.message}
        if refusal.status == 400:
            body["scimType"] = _SCIM_TYPE.get(refusal.reason, "invalidValue")
        elif refusal.status == 409:
            body["scimType"] = "uniqueness"
        return Answer(refusal.status, body, dict(refusal.headers), "application/scim+json")

    # Tokens -----------------------------------------------------------------------------------------------------------

    def token_scopes(self, token: str) -> frozenset[str] | None:
        """Scopes of a token issued by /oauth/token; an opaque one lives as long as it is used."""
        key = digest(token)
        held = self.tables.rows["_tokens"].get(key)
        if held is None:
            return None
        now = self.clock.now()
        last = max(held["at"], self._used_at.get(key, held["at"])) if held["type"] == "opaque" else held["at"]
        if now >= last + held["life_s"]:
            return None
        self._used_at[key] = now
        return frozenset(held["scopes"])

    def revoke_issued_tokens(self) -> None:
        """Make every token of /oauth/token worthless."""
        self.control("tokens_revoked", [("_tokens", key) for key in list(self.tables.rows["_tokens"])])

    def control_routes(self) -> list[Route]:
        """`POST /__emu/revoke_issued_tokens`."""
        return [Route("POST", "/__emu/revoke_issued_tokens", self._control_revoke_issued)]

    def _control_revoke_issued(self, call: Call) -> Answer:
        self.revoke_issued_tokens()
        return Answer(200, {})

    def _token(self, call: Call) -> Answer:
        if self._basic(call) != self._client:
            raise _oauth_refusal(401, "invalid_client", "Client authentication failed")
        if call.request.content_type != "application/x-www-form-urlencoded":
            self.violation("content_type", "the token endpoint takes a form", call)
            raise _oauth_refusal(400, "invalid_request", "Send a form")
        form = dict(parse_qsl(call.raw.decode("utf-8", "replace"), keep_blank_values=True))
        unknown = sorted(set(form) - {"grant_type", "token_type", "expires_in", "scope"})
        if unknown:
            self.violation("unknown_field", f"form field {', '.join(unknown)}", call)
            raise _oauth_refusal(400, "invalid_request", f"Unknown field {unknown[0]}")
        if form.get("grant_type") != "client_credentials":
            raise _oauth_refusal(400, "unsupported_grant_type", "Only client_credentials")
        scopes = sorted(set(form.get("scope", "").split()))
        if not scopes or not SCOPES.issuperset(scopes):
            raise _oauth_refusal(400, "invalid_scope", "Unknown or missing scope")
        kind = form.get("token_type", "opaque")
        if kind not in ("opaque", "jwt"):
            raise _oauth_refusal(400, "invalid_request", "token_type is opaque or jwt")
        if kind == "opaque":
            life_s = OPAQUE_IDLE_S
        else:
            life_s = JWT_LIFE_SCIM_S if "scim" in scopes else JWT_LIFE_S
        if "expires_in" in form:
            if not form["expires_in"].isdecimal() or not int(form["expires_in"]):
                raise _oauth_refusal(400, "invalid_request", "expires_in is a number of seconds")
            life_s = min(life_s, float(form["expires_in"]))
        token = secrets.token_urlsafe(32)
        record = {"at": call.at, "life_s": life_s, "scopes": scopes, "type": kind}
        self.control("token_issued", [("_tokens", digest(token), record)], scopes=scopes)
        body = {"access_token": token, "token_type": "bearer", "expires_in": int(life_s), "scope": " ".join(scopes)}
        return Answer(200, body, {"Cache-Control": "no-store"}, "application/json")

    def _basic(self, call: Call) -> tuple[str, str] | None:
        scheme, _, encoded = call.authorization.partition(" ")
        if scheme.casefold() != "basic":
            return None
        try:
            client_id, _, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return client_id, secret

    # SCIM -------------------------------------------------------------------------------------------------------------

    def _scim_list(self, call: Call) -> Answer:
        _need(call, "scim")
        wanted = call.query(("filter", "startIndex", "count"))
        users = call.rows["users"]
        if "filter" in wanted:
            found = self._filtered(call, wanted["filter"])
        else:
            found = [user for user in users.values() if not user["deleted"]]
        start = max(1, _whole(wanted.get("startIndex", "1"), "startIndex"))
        count = min(SCIM_PAGE_MAX, max(0, _whole(wanted.get("count", str(SCIM_PAGE_MAX)), "count")))
        page = found[start - 1 : start - 1 + count]
        return _scim(
            200,
            {
                "schemas": [LIST],
                "totalResults": len(found),
                "startIndex": start,
                "itemsPerPage": len(page),
                "Resources": [_resource(user, call) for user in page],
            },
        )

    def _filtered(self, call: Call, text: str) -> list[dict[str, Any]]:
        parts = FILTER.fullmatch(text)
        if parts is None:
            raise Refusal(400, "invalid_filter", 'Only attribute eq "value" is supported')
        attribute = parts[1].casefold()
        try:
            value = msgspec.json.decode(f'"{parts[2]}"', type=str)
        except msgspec.DecodeError:
            raise Refusal(400, "invalid_filter", "The value is not a JSON string") from None
        users = call.rows["users"]
        if attribute == "username":
            holder = users.get(call.rows["_by_user_name"].get(value.casefold(), ""))
            return [] if holder is None else [holder]
        if attribute == "externalid":
            return [user for user in users.values() if user["externalId"] == value and not user["deleted"]]
        raise Refusal(400, "invalid_filter", f"No filter on {parts[1]}")

    def _scim_get(self, call: Call) -> Answer:
        _need(call, "scim")
        return _scim(200, _resource(self._user(call, call.rows), call))

    def _scim_create(self, call: Call) -> Answer:
        _need(call, "scim")
        wanted = self._wanted(call.json(SCIM_TYPES), SCIM_USER_FIELDS)
        self._check_unique(wanted["userName"])
        values = dict(wanted)
        if wanted["active"] and self._licences_left() <= 0:
            wanted["active"] = False
        user = self._new_user(wanted, call.at)
        changes: list[Change] = [
            ("users", user["id"], user),
            ("_by_user_name", user["userName"].casefold(), user["id"]),
            ("_counters", "active", self._active + user["active"]),
        ]
        self.effect(call, "create", user["id"], user["userName"], values, changes, sorted(values))
        resource = _resource(user, call)
        return _scim(201, resource, {"Location": resource["meta"]["location"]})

    def _scim_put(self, call: Call) -> Answer:
        _need(call, "scim")
        user = self._user(call, self.tables.rows)
        body = call.json(SCIM_TYPES)
        # Replacing starts from a GET, whose id and meta come back; id must be the same one.
        wanted = self._wanted(body, {**SCIM_USER_FIELDS, "id": str, "meta": dict})
        if body.get("id", user["id"]) != user["id"]:
            raise Refusal(400, "mutability", "id cannot be changed", field="id", violation=True)
        return self._replaced(call, user, wanted)

    def _scim_patch(self, call: Call) -> Answer:
        _need(call, "scim")
        if not self.setting("patch"):
            raise Refusal(501, "patch_unsupported", "PATCH is not supported", violation=True)
        user = self._user(call, self.tables.rows)
        body = call.json(SCIM_TYPES)
        check_fields(body, {"schemas": list, "Operations": list}, ("schemas", "Operations"))
        if body["schemas"] != [PATCH_OP]:
            raise Refusal(400, "schemas", "schemas names PatchOp", field="schemas", violation=True)
        wanted = {name: user[name] for name in PATHS.values()}
        for operation in body["Operations"]:
            wanted.update(_patched(operation))
        self._check_values(wanted)
        return self._replaced(call, user, wanted)

    def _scim_delete(self, call: Call) -> Answer:
        _need(call, "scim")
        user = self._user(call, self.tables.rows)
        gone = {**user, "active": False, "deleted": True, "lastModified": iso_time(call.at)}
        changes: list[Change] = [
            ("users", user["id"], gone),
            ("_by_user_name", user["userName"].casefold()),
            ("_counters", "active", self._active - user["active"]),
        ]
        self.effect(call, "delete", user["id"], user["userName"], {}, changes)
        return Answer(204)

    def _provider(self, call: Call) -> Answer:
        _need(call, "scim")
        return _scim(
            200,
            {
                "schemas": [PROVIDER],
                "patch": {"supported": self.setting("patch")},
                "bulk": {"supported": False, "maxOperations": 0, "maxPayloadSize": 0},
                "filter": {"supported": True, "maxResults": SCIM_PAGE_MAX},
                "changePassword": {"supported": False},
                "sort": {"supported": False},
                "etag": {"supported": False},
                "authenticationSchemes": [
                    {"type": "oauthbearertoken", "name": "OAuth Bearer Token", "description": "STS token, scope scim"}
                ],
            },
        )

    def _resource_types(self, call: Call) -> Answer:
        _need(call, "scim")
        listed = [_resource_type(call)]
        return _scim(
            200, {"schemas": [LIST], "totalResults": 1, "startIndex": 1, "itemsPerPage": 1, "Resources": listed}
        )

    def _resource_type(self, call: Call) -> Answer:
        _need(call, "scim")
        return _scim(200, _resource_type(call))

    # The users API ----------------------------------------------------------------------------------------------------

    def _hal_users(self, call: Call) -> Answer:
        _need(call, "users:read")
        users = [_hal_user(user, call) for user in call.rows["users"].values()]
        return self._hal_page(call, "users", users)

    def _hal_user(self, call: Call) -> Answer:
        _need(call, "users:read")
        user = call.rows["users"].get(call.params["id"])
        if user is None:
            raise Refusal(404, "unknown_user", "There is no such user")
        return Answer(200, _hal_user(user, call), content_type="application/hal+json")

    def _hal_roles(self, call: Call) -> Answer:
        self._need_listing(call, "roles:read")
        roles = [
            {"id": _stable_id("role", name), "name": name, "active": on} for name, on in self.setting("roles").items()
        ]
        return self._hal_page(call, "roles", roles)

    def _hal_teams(self, call: Call) -> Answer:
        self._need_listing(call, "teams:read")
        return self._hal_page(
            call, "teams", [{"id": _stable_id("team", name), "name": name} for name in self.setting("teams")]
        )

    def _need_listing(self, call: Call, scope: str) -> None:
        if not self.setting("listing"):
            raise Refusal(404, "unknown_path", "There is no such address", violation=True)
        _need(call, scope)

    def _hal_page(self, call: Call, kind: str, rows: list[dict[str, Any]]) -> Answer:
        wanted = call.query(("page", "per_page"))
        page = max(1, _whole(wanted.get("page", "1"), "page"))
        size = max(1, _whole(wanted.get("per_page", str(self.setting("page_users"))), "per_page"))
        pages = max(1, -(-len(rows) // size))
        shown = rows[(page - 1) * size : page * size]

        def link(number: int) -> dict[str, str]:
            return {"href": f"{call.base_url}{call.path}?page={number}&per_page={size}"}

        links: dict[str, Any] = {"self": link(page), "first": link(1), "last": link(pages)}
        if page < pages:
            links["next"] = link(page + 1)
        links["show"] = {"href": f"{call.base_url}{call.path}/{{id}}", "templated": True}
        return Answer(
            200,
            {
                "count": len(shown),
                "total": len(rows),
                "page": page,
                "per_page": size,
                "total_pages": pages,
                "_embedded": {kind: shown},
                "_links": links,
            },
            content_type="application/hal+json",
        )

    # Users ------------------------------------------------------------------------------------------------------------

    @property
    def _active(self) -> int:
        active: int = self.tables.rows["_counters"]["active"]
        return active

    def _licences_left(self) -> float:
        licences: int | None = self.setting("licences")
        return float("inf") if licences is None else licences - self._active

    def _user(self, call: Call, rows: Rows) -> dict[str, Any]:
        user: dict[str, Any] | None = rows["users"].get(call.params["id"])
        if user is None or user["deleted"]:
            raise Refusal(404, "unknown_user", "There is no such user")
        return user

    def _new_user(self, wanted: Mapping[str, Any], at: float) -> dict[str, Any]:
        moment = iso_time(at)
        stamps = {"created": moment, "lastModified": moment, "version": 1, "deleted": False}
        return {"id": str(uuid.uuid4()), **wanted, **stamps}

    def _wanted(self, body: dict[str, Any], known: Mapping[str, type]) -> dict[str, Any]:
        """The flat values of a complete SCIM user, with the vendor's defaults for what was not sent."""
        check_fields(body, known, ("schemas", "userName", "name"))
        check_fields(body["name"], NAME_FIELDS, ("givenName", "familyName"), at="name.")
        extension = body.get(EXTENSION, {})
        check_fields(extension, EXTENSION_FIELDS, at=f"{EXTENSION}:")
        needed = {CORE, EXTENSION} if EXTENSION in body else {CORE}
        named = {schema for schema in body["schemas"] if isinstance(schema, str)}
        if not needed <= named <= {CORE, EXTENSION}:
            raise Refusal(400, "schemas", "schemas does not fit the body", field="schemas", violation=True)
        wanted = {
            "userName": body["userName"],
            "externalId": body.get("externalId"),
            "active": body.get("active", True),
            "givenName": body["name"]["givenName"],
            "familyName": body["name"]["familyName"],
            "rolesString": extension.get("rolesString", ""),
            "teamsString": extension.get("teamsString", ""),
        }
        self._check_values(wanted)
        return wanted

    def _check_values(self, wanted: dict[str, Any]) -> None:
        """Refuse a user name that is no address and names that are not in the account, exactly; no role is Agent."""
        if EMAIL.fullmatch(wanted["userName"]) is None:
            raise Refusal(400, "invalid_value", "userName is an e-mail address", field="userName")
        for field in ("givenName", "familyName"):
            if not wanted[field].strip():
                raise Refusal(400, "missing_field", f"{field} is required", field=field, violation=True)
        wanted["rolesString"] = wanted["rolesString"] or DEFAULT_ROLE
        roles: dict[str, bool] = self.setting("roles")
        for name in wanted["rolesString"].split(";"):
            if not roles.get(name, False):
                what = "is deactivated" if name in roles else "does not exist"
                raise Refusal(400, "unknown_role", f"Role '{name}' {what}", field="rolesString")
        teams: list[str] = self.setting("teams")
        for name in wanted["teamsString"].split(";") if wanted["teamsString"] else ():
            if name not in teams:
                raise Refusal(400, "unknown_team", f"Team '{name}' does not exist", field="teamsString")

    def _check_unique(self, user_name: str, but_for: str | None = None) -> None:
        holder = self.tables.rows["_by_user_name"].get(user_name.casefold())
        if holder is not None and holder != but_for:
            raise Refusal(409, "uniqueness", "A user with this userName exists", field="userName")

    def _replaced(self, call: Call, user: Mapping[str, Any], wanted: dict[str, Any]) -> Answer:
        self._check_unique(wanted["userName"], but_for=user["id"])
        values = dict(wanted)
        if wanted["active"] and not user["active"] and self._licences_left() <= 0:
            wanted["active"] = False
        changed = [name for name in PATHS.values() if wanted[name] != user[name]]
        after = {**user, **wanted}
        if changed:
            after.update(lastModified=iso_time(call.at), version=user["version"] + 1)
        changes: list[Change] = [
            ("users", user["id"], after),
            ("_by_user_name", user["userName"].casefold()),
            ("_by_user_name", after["userName"].casefold(), user["id"]),
            ("_counters", "active", self._active - user["active"] + after["active"]),
        ]
        self.effect(call, "update", user["id"], after["userName"], values, changes, changed)
        return _scim(200, _resource(after, call))


_SCIM_TYPE = {
    "not_json": "invalidSyntax",
    "unknown_field": "invalidSyntax",
    "wrong_case": "invalidSyntax",
    "schemas": "invalidSyntax",
    "invalid_filter": "invalidFilter",
    "invalid_path": "invalidPath",
    "mutability": "mutability",
}


def _scim(status: int, body: Any, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, body, headers or {}, "application/scim+json")


def _need(call: Call, scope: str) -> None:
    if scope not in call.scopes:
        raise Refusal(403, "forbidden", f"The token lacks the scope {scope}")


def _oauth_refusal(status: int, error: str, description: str) -> Refusal:
    headers = {"WWW-Authenticate": "Basic"} if status == 401 else {}
    return Refusal(
        status, error, description, headers=headers, extra={"error": error, "error_description": description}
    )


def _whole(text: str, name: str) -> int:
    if re.fullmatch(r"-?[0-9]{1,9}", text) is None:
        raise Refusal(400, "invalid_value", f"{name} is a whole number", field=name, violation=True)
    return int(text)


def _stable_id(kind: str, name: str) -> str:
    return digest(f"{kind}:{name}")[:24]


def _patched(operation: Any) -> dict[str, Any]:
    """What one PATCH operation sets, by flat name. RFC 7644 section 3.5.2, for the attributes of this vendor."""
    if not isinstance(operation, dict):
        raise Refusal(400, "not_json", "An operation is an object", field="Operations", violation=True)
    check_fields(operation, {"op": str, "path": str, "value": object}, ("op",), at="Operations.")
    op = operation["op"]
    if op not in ("add", "replace", "remove"):
        raise Refusal(400, "unknown_field", f"There is no operation {op!r}", field="op", violation=True)
    path = operation.get("path")
    if op == "remove":
        if path not in PATHS or PATHS[path] not in PATCH_DEFAULTS:
            raise Refusal(400, "invalid_path", f"{path!r} cannot be removed", field="path", violation=True)
        return {PATHS[path]: PATCH_DEFAULTS[PATHS[path]]}
    if "value" not in operation:
        raise Refusal(400, "missing_field", "value is required", field="value", violation=True)
    values = {path: operation["value"]} if path is not None else operation["value"]
    if not isinstance(values, dict):
        raise Refusal(400, "wrong_type", "value without path is an object", field="value", violation=True)
    found = {}
    for name, value in _flattened(values).items():
        if name not in PATHS:
            raise Refusal(400, "invalid_path", f"There is no attribute {name!r}", field=name, violation=True)
        if not isinstance(value, bool if PATHS[name] == "active" else str):
            raise Refusal(400, "wrong_type", f"{name!r} has the wrong JSON type", field=name, violation=True)
        found[PATHS[name]] = value
    return found


def _flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if name in ("name", EXTENSION) and isinstance(value, dict):
            joint = "." if name == "name" else ":"
            flat.update({f"{name}{joint}{inner}": part for inner, part in value.items()})
        else:
            flat[name] = value
    return flat


def _resource(user: Mapping[str, Any], call: Call) -> dict[str, Any]:
    resource = {
        "schemas": [CORE, EXTENSION],
        "id": user["id"],
        "userName": user["userName"],
        "active": user["active"],
        "name": {"givenName": user["givenName"], "familyName": user["familyName"]},
        EXTENSION: {"rolesString": user["rolesString"], "teamsString": user["teamsString"]},
        "meta": {
            "resourceType": "User",
            "created": user["created"],
            "lastModified": user["lastModified"],
            "location": f"{call.base_url}/scim/v2/Users/{user['id']}",
            "version": f'W/"{user["version"]}"',
        },
    }
    if user["externalId"] is not None:
        resource["externalId"] = user["externalId"]
    return resource


def _resource_type(call: Call) -> dict[str, Any]:
    return {
        "schemas": [RESOURCE_TYPE],
        "id": "User",
        "name": "User",
        "endpoint": "/Users",
        "description": "A user of the account",
        "schema": CORE,
        "schemaExtensions": [{"schema": EXTENSION, "required": False}],
        "meta": {"resourceType": "ResourceType", "location": f"{call.base_url}/scim/v2/ResourceTypes/User"},
    }


def _hal_user(user: Mapping[str, Any], call: Call) -> dict[str, Any]:
    return {
        "id": user["id"],
        "email": user["userName"],
        "name": f"{user['givenName']} {user['familyName']}",
        "active": user["active"],
        "gender": None,
        "extension": None,
        "external_phone_number": None,
        "created_at": user["created"],
        "_links": {"self": {"href": f"{call.base_url}/users/{user['id']}"}},
    }
