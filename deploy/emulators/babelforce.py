"""babelforce: users with roles and agents over its REST API, the token endpoint, and SCIM below /auth/scim/v2.

The REST API is documented, the SCIM one only by the configuration document of B4. Where
nothing is known the strict reading is taken: addresses are compared as they stand, a PUT of an agent forgets what is not sent,
SCIM refuses everybody until the document switches it on, and a list of roles sent over SCIM is the whole truth.
"""

from __future__ import annotations

import hmac
import re
import secrets
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import parse_qsl

import msgspec

from deploy.emulators.harness import (
    Answer,
    Call,
    Change,
    Refusal,
    Route,
    Rows,
    Setting,
    check_fields,
    digest,
)
from deploy.emulators.scim_service import CORE_USER, Attribute, Index, Resource, ScimEmulator

ROLES = ["manager", "owner", "reporter", "user", "agent", "supervisor", "sales", "router", "scheduler"]
OWNER = "owner"
DEMO_LOGIN = ("scim@example.com", "demo-password-babelforce")
EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
ADDRESSES_MAX = 1_000
ACCESS_LIFE_S = 3_600.0
OLD_HEADERS = ("X-Auth-Access-Id", "X-Auth-Access-Token")

USER_FIELDS = {"email": str, "roles": list, "password": str, "activated": bool}
TEXT_OR_NULL = (str, type(None))
AGENT_FIELDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "email": TEXT_OR_NULL,
    "number": TEXT_OR_NULL,
    "enabled": bool,
    "groups": list,
    "tags": list,
}
AGENT_BLANK: dict[str, Any] = {"email": None, "number": None, "enabled": True, "groups": [], "tags": []}
FEATURES = ("scim", "groups", "roles", "password_sync", "phone_number_sync")
CONFIGURATION_FIELDS = {"defaultRoles": list, "customizer": str, "features": dict}
CONFIGURATION_FIRST = {"defaultRoles": [], "customizer": "default", "features": dict.fromkeys(FEATURES, False)}

BY_EMAIL = Index("userName")
USER = Resource(
    name="User",
    core=CORE_USER,
    table="users",
    key="email",
    attributes=(
        Attribute("userName", "email", required=True),
        Attribute("active", "enabled", "boolean", default=True),
        Attribute("displayName", "displayName"),
        Attribute("roles", "roles", "values"),
    ),
    indexes=(BY_EMAIL,),
)


class BabelforceEmulator(ScimEmulator):
    """State: `users` and `agents` by id (32 hex digits), the `configuration` document, `settings` with the roles.

    The fixed token belongs to the integration user: when that user is disabled or deleted the token is dead. `password` is the
    integration user's, for the grant of /oauth/token.
    """

    name: ClassVar[str] = "babelforce"
    rate_per_s: ClassVar[float] = 5.0
    scim_prefix: ClassVar[str] = "/auth/scim/v2"
    scim_resources: ClassVar[tuple[Resource, ...]] = (USER,)
    SETTINGS: ClassVar[Mapping[str, Setting]] = {
        "integration_user": Setting(DEMO_LOGIN[0], str, "login that no client may change (B1)"),
        "roles": Setting(ROLES, list[str], "roles that can be given"),
        "create_status": Setting(201, Literal[201, 200], "what POST answers: documented 201, seen 200"),
        "duplicate_status": Setting(409, Literal[409, 400], "a second user of one address; not documented"),
        "error_key": Setting("message", Literal["message", "error", "detail"], "where errors hold their text"),
        "hyphenated_agent_ids": Setting(False, bool, "User.agent.uuid is written with hyphens"),
        "page_agents": Setting(50, Annotated[int, msgspec.Meta(ge=1)], "`max` of /agents when the client does not say"),
        "scim_removes_inactive": Setting(False, bool, "SCIM active false removes the user, as the Okta guide says"),
    }

    def __init__(self, *, password: str = DEMO_LOGIN[1], **options: Any) -> None:
        self._password = password
        super().__init__(**options)

    def routes(self) -> list[Route]:
        """The documented users and agents calls, the token endpoint, SCIM and its configuration."""
        return [
            Route("GET", "/api/v2/users", self._list),
            Route("POST", "/api/v2/users", self._create),
            Route("GET", "/api/v2/users/roles", self._roles),
            Route("POST", "/api/v2/users/roles", self._grant),
            Route("POST", "/api/v2/users/roles/remove", self._revoke),
            Route("POST", "/api/v2/users/enable", self._enable),
            Route("POST", "/api/v2/users/disable", self._disable),
            Route("POST", "/api/v2/users/delete", self._delete),
            Route("POST", "/api/v2/users/reset-password", self._reset_password),
            Route("GET", "/api/v2/users/by-email/{email}", self._by_email),
            Route("GET", "/api/v2/users/{id}", self._get),
            Route("GET", "/api/v2/agents", self._agents),
            Route("POST", "/api/v2/agents", self._agent_create),
            Route("GET", "/api/v2/agents/{id}", self._agent_get),
            Route("PUT", "/api/v2/agents/{id}", self._agent_put),
            Route("DELETE", "/api/v2/agents/{id}", self._agent_delete),
            Route("POST", "/oauth/token", self._token, authenticated=False, metered=False),
            Route("GET", "/auth/scim/v2/configuration", self._configuration),
            Route("PUT", "/auth/scim/v2/configuration", self._configure),
            *self.scim_routes(),
        ]

    def first_tables(self) -> Rows:
        """The integration user and the document with everything off; `_agent_of` finds an agent by login."""
        tables = {
            **self.scim_tables(),
            "agents": {},
            "configuration": {"document": CONFIGURATION_FIRST},
            "_agent_of": {},
            "_tokens": {},
        }
        login = str(self._settings_first["integration_user"]).lower()
        user = {**self._new_user(login, ["manager"], 0.0, activated=True), "id": digest(login)[:32]}
        tables[USER.table][user["id"]] = user
        tables[USER.index_table(BY_EMAIL)][login] = [user["id"]]
        return tables

    def seed(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """`{"users": [{"email", "roles"?, "enabled"?, "activated"?, "displayName"?}], "agents": [{"name", "email"?, ...}],
        "configuration": {...}}`."""
        check_fields(document, {"users": list, "agents": list, "configuration": dict})
        known = {"email": str, "roles": list, "enabled": bool, "activated": bool, "displayName": str}
        ids: list[str] = []
        agent_ids: list[str] = []
        for wanted in document.get("users", []):
            check_fields(wanted, known, ("email",))
            login = wanted["email"].lower()
            if self._user_at(login) is not None:
                raise ValueError(f"{login} is already taken")
            self._check_roles(wanted.get("roles", []))
            user = {**self._new_user(login, [], self.clock.now(), activated=True), **wanted, "email": login}
            self.control("seed", self.put(USER, user))
            ids.append(user["id"])
        for wanted in document.get("agents", []):
            agent = self._new_agent(wanted)
            self.control("seed", self._put_agent(agent))
            agent_ids.append(agent["id"])
        if "configuration" in document:
            self._check_configuration(document["configuration"])
            self.control("seed", [("configuration", "document", document["configuration"])])
        return {"ids": ids, "agent_ids": agent_ids}

    def error_answer(self, refusal: Refusal, call: Call) -> Answer:
        """A SCIM error on SCIM resources, the token endpoint's own body in `extra`, otherwise `{"code", "message"}`."""
        message = refusal.message
        if refusal.status == 401 and any(name in call.request.headers for name in OLD_HEADERS):
            message = "Access id and access token are no longer accepted; send a bearer token"
        if "error_description" in refusal.extra:
            return Answer(refusal.status, dict(refusal.extra), dict(refusal.headers))
        if call.path.startswith("/auth/scim/") and not call.path.endswith("/configuration"):
            return self.scim_error(refusal, call)
        body = {"code": refusal.reason, self.setting("error_key"): message}
        return Answer(refusal.status, body, dict(refusal.headers))

    # Users ------------------------------------------------------------------------------------------------------------

    def _list(self, call: Call) -> Answer:
        wanted = call.query(("email", "page", "max"))
        if "page" in wanted or "max" in wanted:
            self.violation("paging_ignored", "the list of users has no pages; it serves everything", call)
        users = list(call.rows["users"].values())
        if "email" in wanted:
            asked = call.request.query.getall("email")
            users = [user for user in users if user["email"] in asked]
        return Answer(200, _listed([self._user_shown(user, call.rows) for user in users]))

    def _get(self, call: Call) -> Answer:
        call.query(())
        return self._item(self._at(call, "users"), call)

    def _by_email(self, call: Call) -> Answer:
        call.query(())
        user = self._user_at(call.params["email"], call.rows)
        if user is None:
            raise Refusal(404, "not_found", "There is no such user")
        return self._item(user, call)

    def _create(self, call: Call) -> Answer:
        body = call.json()
        check_fields(body, USER_FIELDS, ("email", "roles"))
        if "password" in body:
            self.violation("password_sent", "passwords are not part of provisioning (B18)", call)
        self._check_roles(body["roles"])
        login = body["email"].strip().lower()
        self._check_free(login)
        user = self._new_user(login, body["roles"], call.at, activated=body.get("activated", False))
        values = {name: value for name, value in body.items() if name != "password"}
        self.effect(call, "create", user["id"], login, values, self.put(USER, user), sorted(values))
        return self._item(user, call, self.setting("create_status"))

    def _enable(self, call: Call) -> Answer:
        return self._bulk(call, "enable", {"enabled": True})

    def _disable(self, call: Call) -> Answer:
        return self._bulk(call, "disable", {"enabled": False})

    def _reset_password(self, call: Call) -> Answer:
        return self._bulk(call, "reset_password", {"passwordExpired": True})

    def _bulk(self, call: Call, op: str, fields: Mapping[str, Any]) -> Answer:
        body = call.json()
        check_fields(body, {"emails": list}, ("emails",))
        for user in self._named(body["emails"]):
            self._changed(call, op, user, fields)
        return Answer(200, {"success": True, "message": f"{op} done"})

    def _delete(self, call: Call) -> Answer:
        body = call.json()
        check_fields(body, {"emails": list}, ("emails",))
        users = self._named(body["emails"])
        self._check_owner_left([user["id"] for user in users])
        for user in users:
            self._removed(call, user)
        return Answer(200, {"success": True, "message": "delete done"})

    def _roles(self, call: Call) -> Answer:
        call.query(())
        return Answer(200, {"items": self.setting("roles")})

    def _grant(self, call: Call) -> Answer:
        users, roles = self._binding(call)
        for user in users:
            self._changed(call, "grant", user, {"roles": list(dict.fromkeys([*user["roles"], *roles]))})
        return Answer(200, {"success": True, "message": "roles added"})

    def _revoke(self, call: Call) -> Answer:
        users, roles = self._binding(call)
        if OWNER in roles:
            self._check_owner_left([user["id"] for user in users])
        for user in users:
            self._changed(call, "revoke", user, {"roles": [role for role in user["roles"] if role not in roles]})
        return Answer(200, {"success": True, "message": "roles removed"})

    def _binding(self, call: Call) -> tuple[list[dict[str, Any]], list[str]]:
        body = call.json()
        check_fields(body, {"emails": list, "roles": list}, ("emails", "roles"))
        self._check_roles(body["roles"])
        return self._named(body["emails"]), body["roles"]

    def _named(self, emails: Sequence[Any]) -> list[dict[str, Any]]:
        """The users of these addresses; an address nobody has is passed over in silence."""
        if not 0 < len(emails) <= ADDRESSES_MAX or not all(isinstance(email, str) for email in emails):
            raise Refusal(400, "wrong_type", "emails is a list of addresses", field="emails", violation=True)
        found = (self._user_at(email) for email in dict.fromkeys(emails))
        return [user for user in found if user is not None]

    def _user_at(self, email: str, rows: Rows | None = None) -> dict[str, Any] | None:
        """The user of an address as it stands: stored in lower case, so nobody is found under another."""
        return next((user for user in self.found(USER, BY_EMAIL, email, rows) if user["email"] == email), None)

    def _new_user(self, login: str, roles: Sequence[str], at: float, *, activated: bool) -> dict[str, Any]:
        flags = {"activated": activated, "passwordExpired": False, "accountExpired": False, "accountLocked": False}
        fields = {"email": login, "enabled": True, "roles": list(dict.fromkeys(roles))}
        return self.new_record(USER, {**fields, **flags}, at)

    def new_id(self) -> str:
        """32 hex digits, no hyphens."""
        return uuid.uuid4().hex

    def _changed(self, call: Call, op: str, user: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
        after, changed = self.written(user, fields, call.at)
        changes = [*self._watched(call, user, lost=not after["enabled"]), *self.put(USER, after, user)]
        self.effect(call, op, after["id"], after["email"], fields, changes, changed)
        return after

    def _removed(self, call: Call, user: Mapping[str, Any]) -> None:
        changes = [*self._watched(call, user, lost=True), *self.drop(USER, user)]
        self.effect(call, "delete", user["id"], user["email"], {}, changes)

    def _watched(self, call: Call, user: Mapping[str, Any], *, lost: bool) -> list[Change]:
        """Note a write to the integration user; without it every token of its own is dead."""
        if user["email"] != self.setting("integration_user"):
            return []
        self.violation("integration_user_written", "the integration user is not provisioned (B1)", call)
        if not lost:
            return []
        fixed = self.tables.rows["_credentials"]["fixed"]
        gone: list[Change] = [("_tokens", key) for key in self.tables.rows["_tokens"]]
        return [("_credentials", "fixed", {**fixed, "revoked": True}), *gone]

    def _check_free(self, login: str, but_for: str | None = None) -> None:
        if EMAIL.fullmatch(login) is None:
            raise Refusal(400, "invalid_email", "email is not an address", field="email")
        holder = self._user_at(login)
        if holder is not None and holder["id"] != but_for:
            status: int = self.setting("duplicate_status")
            raise Refusal(status, "duplicate_email", "A user with this email already exists", field="email")

    def _check_roles(self, roles: Iterable[Any]) -> None:
        known: list[str] = self.setting("roles")
        for role in roles:
            if role not in known:
                raise Refusal(400, "unknown_role", f"Role {role!r} is not assignable", field="roles")

    def _check_owner_left(self, losing: Sequence[str]) -> None:
        owners = [user["id"] for user in self.tables.rows["users"].values() if OWNER in user["roles"]]
        if owners and all(owner in losing for owner in owners):
            raise Refusal(400, "last_owner", "The last owner cannot be removed", field="roles")

    def _item(self, user: Mapping[str, Any], call: Call, status: int = 200) -> Answer:
        return Answer(status, {"item": self._user_shown(user, call.rows), "success": True})

    def _user_shown(self, user: Mapping[str, Any], rows: Rows) -> dict[str, Any]:
        shown = {
            name: user[name]
            for name in (
                *("id", "email", "enabled", "activated", "passwordExpired", "accountExpired", "accountLocked", "roles"),
            )
        }
        agent_id: str | None = rows["_agent_of"].get(user["email"])
        if agent_id is not None:
            hyphens = self.setting("hyphenated_agent_ids")
            shown["agent"] = {
                "uuid": str(uuid.UUID(agent_id)) if hyphens else agent_id,
                "type": "agent",
                "sourceId": "",
            }
        return shown

    # Agents -----------------------------------------------------------------------------------------------------------

    def _agents(self, call: Call) -> Answer:
        wanted = call.query(("page", "max", "q"))
        asked = wanted.get("q", "").casefold()
        agents = [
            agent
            for agent in call.rows["agents"].values()
            if any(asked in (agent[name] or "").casefold() for name in ("name", "email", "number"))
        ]
        page = max(1, _whole(wanted.get("page", "1"), "page"))
        size = max(1, _whole(wanted.get("max", str(self.setting("page_agents"))), "max"))
        return Answer(200, _listed(agents, page, size))

    def _agent_get(self, call: Call) -> Answer:
        call.query(())
        return Answer(200, {"item": self._at(call, "agents"), "success": True})

    def _agent_create(self, call: Call) -> Answer:
        agent = self._new_agent(call.json())
        self.effect(call, "agent_create", agent["id"], agent["name"], agent, self._put_agent(agent), sorted(agent))
        return Answer(201, {"item": agent, "success": True})

    def _agent_put(self, call: Call) -> Answer:
        agent = self._at(call, "agents")
        body = call.json()
        # Replacing starts from a GET, whose id comes back; it must be the same one.
        check_fields(body, {**AGENT_FIELDS, "id": str}, ("name",))
        if body.get("id", agent["id"]) != agent["id"]:
            raise Refusal(400, "wrong_id", "id cannot be changed", field="id", violation=True)
        after = {"id": agent["id"], **AGENT_BLANK, **body}
        self._check_agent(after)
        changed = [name for name in AGENT_FIELDS if after[name] != agent[name]]
        self.effect(call, "agent_update", agent["id"], after["name"], body, self._put_agent(after, agent), changed)
        return Answer(200, {"item": after, "success": True})

    def _agent_delete(self, call: Call) -> Answer:
        agent = self._at(call, "agents")
        changes: list[Change] = [("agents", agent["id"]), ("_agent_of", agent["email"] or "")]
        self.effect(call, "agent_delete", agent["id"], agent["name"], {}, changes)
        return Answer(200, {"success": True, "message": "agent deleted"})

    def _new_agent(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        check_fields(wanted, AGENT_FIELDS, ("name",))
        agent = {"id": self.new_id(), **AGENT_BLANK, **wanted}
        self._check_agent(agent)
        return agent

    def _check_agent(self, agent: dict[str, Any]) -> None:
        """The login is stored in lower case and belongs to one agent."""
        if not agent["email"]:
            agent["email"] = None
            return
        agent["email"] = agent["email"].strip().lower()
        if EMAIL.fullmatch(agent["email"]) is None:
            raise Refusal(400, "invalid_email", "email is not an address", field="email")
        if self.tables.rows["_agent_of"].get(agent["email"], agent["id"]) != agent["id"]:
            raise Refusal(409, "duplicate_agent", "Another agent has this login", field="email")

    def _put_agent(self, after: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> list[Change]:
        changes: list[Change] = [("agents", after["id"], after)]
        if before is not None and before["email"]:
            changes.append(("_agent_of", before["email"]))
        if after["email"]:
            changes.append(("_agent_of", after["email"], after["id"]))
        return changes

    def _at(self, call: Call, table: str) -> dict[str, Any]:
        wanted = call.params["id"]
        record: dict[str, Any] | None = (call.rows if call.method == "GET" else self.tables.rows)[table].get(wanted)
        if record is None:
            if "-" in wanted:
                self.violation("hyphenated_id", "ids are 32 hex digits without hyphens", call)
            raise Refusal(404, "not_found", "There is no such object")
        return record

    # Tokens -----------------------------------------------------------------------------------------------------------

    def token_scopes(self, token: str) -> frozenset[str] | None:
        """No scopes, but known: an access token of /oauth/token that has not expired."""
        held = self.tables.rows["_tokens"].get(digest(token))
        if held is None or held["kind"] != "access" or self.clock.now() >= held["at"] + ACCESS_LIFE_S:
            return None
        return frozenset()

    def _token(self, call: Call) -> Answer:
        """Grants `password` (client id `manager`) and `refresh_token`, which rotates."""
        if call.request.content_type != "application/x-www-form-urlencoded":
            self.violation("content_type", "the token endpoint takes a form", call)
            raise _grant_refusal("invalid_request", "Send a form")
        form = dict(parse_qsl(call.raw.decode("utf-8", "replace"), keep_blank_values=True))
        unknown = sorted(set(form) - {"grant_type", "client_id", "username", "password", "refresh_token"})
        if unknown:
            self.violation("unknown_field", f"form field {', '.join(unknown)}", call)
            raise _grant_refusal("invalid_request", f"Unknown field {unknown[0]}")
        grant = form.get("grant_type")
        if grant == "client_credentials":
            raise _grant_refusal("unauthorized_client", "Client credentials are not available")
        if form.get("client_id") != "manager":
            raise _grant_refusal("invalid_client", "There is no such client", 401)
        used: list[Change] = []
        if grant == "password":
            login = self._user_at(form.get("username", ""))
            if (
                login is None
                or login["email"] != self.setting("integration_user")
                or not login["enabled"]
                or not hmac.compare_digest(digest(form.get("password", "")), digest(self._password))
            ):
                raise _grant_refusal("invalid_grant", "User name or password is wrong")
        elif grant == "refresh_token":
            key = digest(form.get("refresh_token", ""))
            if self.tables.rows["_tokens"].get(key, {}).get("kind") != "refresh":
                raise _grant_refusal("invalid_grant", "The refresh token was used or never given out")
            used.append(("_tokens", key))
        else:
            raise _grant_refusal("unsupported_grant_type", "Only password and refresh_token")
        access, refresh = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        issued: list[Change] = [
            ("_tokens", digest(token), {"kind": kind, "at": call.at})
            for token, kind in ((access, "access"), (refresh, "refresh"))
        ]
        self.control("token_issued", [*used, *issued], grant=grant)
        body = {
            "access_token": access,
            "refresh_token": refresh,
            "token_type": "bearer",
            "expires_in": int(ACCESS_LIFE_S),
        }
        return Answer(200, body, {"Cache-Control": "no-store"})

    # SCIM -------------------------------------------------------------------------------------------------------------

    def _configuration(self, call: Call) -> Answer:
        call.query(())
        return Answer(200, call.rows["configuration"]["document"])

    def _configure(self, call: Call) -> Answer:
        document = call.json()
        self._check_configuration(document)
        held = self.tables.rows["configuration"]["document"]
        changed = [name for name in CONFIGURATION_FIELDS if document[name] != held[name]]
        changes: list[Change] = [("configuration", "document", document)]
        self.effect(call, "configure", "configuration", "configuration", document, changes, changed)
        return Answer(200, document)

    def _check_configuration(self, document: Mapping[str, Any]) -> None:
        """The document of B4 and nothing else."""
        check_fields(document, CONFIGURATION_FIELDS, tuple(CONFIGURATION_FIELDS))
        check_fields(document["features"], dict.fromkeys(FEATURES, bool), FEATURES, at="features.")
        self._check_roles(document["defaultRoles"])

    def scim_admit(self, call: Call, resource: Resource | None, *, writes: bool) -> None:
        """SCIM answers only when the document says so."""
        del call, resource, writes
        if not self._feature("scim"):
            raise Refusal(403, "scim_disabled", "SCIM is not enabled for this account")

    def _feature(self, name: str) -> bool:
        on: bool = self.tables.rows["configuration"]["document"]["features"][name]
        return on

    def scim_created(self, call: Call, resource: Resource, wanted: dict[str, Any]) -> dict[str, Any]:
        """A user with the default roles of the document when none were sent."""
        values = dict(wanted)
        fields = self._scim_fields(wanted, [])
        if not fields["roles"] and self._feature("roles"):
            fields["roles"] = list(self.tables.rows["configuration"]["document"]["defaultRoles"])
        self._check_free(fields["email"])
        user = {**self._new_user(fields["email"], [], call.at, activated=True), **fields}
        self.effect(call, "create", user["id"], user["email"], values, self.put(USER, user), sorted(values))
        return user

    def scim_changed(
        self, call: Call, resource: Resource, before: dict[str, Any], wanted: dict[str, Any]
    ) -> dict[str, Any]:
        """Here a login can be renamed and a display name held; both cannot be done over REST."""
        fields = self._scim_fields(wanted, before["roles"])
        self._check_free(fields["email"], before["id"])
        if OWNER in before["roles"] and OWNER not in fields["roles"]:
            self._check_owner_left([before["id"]])
        if not fields["enabled"] and self.setting("scim_removes_inactive"):
            self._check_owner_left([before["id"]])
            self._removed(call, before)
            return {**before, **fields}
        return self._changed(call, "update", before, fields)

    def scim_deleted(self, call: Call, resource: Resource, record: dict[str, Any]) -> None:
        """The user is gone."""
        self._check_owner_left([record["id"]])
        self._removed(call, record)

    def _scim_fields(self, wanted: Mapping[str, Any], roles: Sequence[str]) -> dict[str, Any]:
        """What a SCIM body asks for, in the account's terms; roles stay `roles` while the feature is off."""
        self._check_roles(wanted["roles"])
        kept = wanted["roles"] if self._feature("roles") else list(roles)
        return {**wanted, "email": wanted["email"].strip().lower(), "roles": kept}


def _listed(items: Sequence[Any], page: int = 1, size: int | None = None) -> dict[str, Any]:
    """`items` with the vendor's pagination; without a size everything is one page."""
    held = len(items) if size is None else size
    pages = max(1, -(-len(items) // held)) if held else 1
    pagination = {
        "pages": pages,
        "total": len(items),
        "current": page,
        "max": held,
        "maxResults": held,
        "next": f"?page={page + 1}&max={held}" if page < pages else None,
    }
    return {"items": list(items[(page - 1) * held : page * held]), "pagination": pagination}


def _whole(text: str, name: str) -> int:
    if re.fullmatch(r"[0-9]{1,9}", text) is None:
        raise Refusal(400, "invalid_value", f"{name} is a whole number", field=name, violation=True)
    return int(text)


def _grant_refusal(error: str, description: str, status: int = 400) -> Refusal:
    return Refusal(status, error, description, extra={"error": error, "error_description": description})
