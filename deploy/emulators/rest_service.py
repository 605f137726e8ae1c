"""A product with plain REST calls for users and groups, as there are many: the other side of what is declared in TOML.

Its settings say how it differs from the next one: how bodies are written, how lists are paged, what stands around an account,
how a user is switched off, where a new id is told, how members come and go, how calls are signed, and some habits that make
life hard (`quirks`). Besides plain addresses there are searches, filters, and calls that name the user in a parameter.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal
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

USER_NAME = "svc"
"""The name that goes with the fixed credential when calls are signed with name and password."""
API_KEY = "X-Api-Key"
SECOND_KEY = "X-Application-Key"
CLIENT_ID = "demo-client"
TOKEN_S = 3_600
JSON_API = "application/vnd.api+json"
JSON_PATCH = "application/json-patch+json"
FORM = "application/x-www-form-urlencoded"
FILTER = re.compile(r'login eq "((?:[^"\\]|\\.)*)"')
FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "login": str,
    "external_id": (str, type(None)),
    "name": dict,
    "contact": dict,
    "plan": (str, type(None)),
    "level": (int, type(None)),
    "roles": list,
    "status": str,
    "source": (str, type(None)),
    "note": (str, type(None)),
    "manager_id": (str, int, type(None)),
    "phones": list,
}
PHONE_FIELDS: Mapping[str, type | tuple[type, ...]] = {"type": str, "number": (str, type(None)), "primary": bool}
NAME_FIELDS = {"first": (str, type(None)), "last": (str, type(None))}
CONTACT_FIELDS = {"email": (str, type(None)), "mobile": (str, type(None)), "pager": (str, type(None))}
READ_ONLY = ("id", "created_at", "updated_at")
BLANK: Mapping[str, Any] = {
    "external_id": None,
    "name": {"first": None, "last": None},
    "contact": {"email": None, "mobile": None, "pager": None},
    "plan": None,
    "level": None,
    "roles": [],
    "status": "enabled",
    "source": None,
    "note": None,
    "manager_id": None,
    "phones": [],
}
Quirk = Literal[
    "shallow",
    "success_false",
    "ignores_filter",
    "switches_on",
    "ignores_status",
    "repeats_page",
    "bare_list",
    "likeness",
    "invites",
    "off_first",
    "breaks_off",
    "by_status",
]


class RestServiceEmulator(Emulator):
    """State: `users` and `groups` by id, `settings` of the product. Logins and names of groups are unique in any letter case.

    Quirks: `shallow` (PATCH replaces nested objects whole), `success_false` (refusals come as 200 with `success` false),
    `ignores_filter` (?login= finds everybody), `switches_on` (new users are enabled, whatever was asked), `ignores_status`
    (status never changes, with success), `repeats_page` (every page is the first), `bare_list` (lists show id and name only),
    `likeness` (?login= finds everybody whose login contains it, page by page), `invites` (new users are `invited`), `off_first`
    (an enabled user is not deleted), `breaks_off` (no page after the first, whatever the total), `by_status` (lists show the
    enabled, or those of ?status=).
    """

    name: ClassVar[str] = "rest_service"
    SETTINGS: ClassVar[Mapping[str, Setting]] = {
        "paging": Setting(
            "page",
            Literal["none", "page", "offset", "cursor", "next", "link", "path", "more", "header"],
            "how a list is gone through; path: the next page has an address of its own; more: offsets without a total; "
            "header: page numbers with X-Next-Page",
        ),
        "body": Setting("json", Literal["json", "form", "jsonapi"], "how bodies are written"),
        "ids": Setting(
            "number",
            Literal["number", "text", "href"],
            "numbers, texts such as crm|1001, or the end of _links.self.href",
        ),
        "patch": Setting("merge", Literal["merge", "operations"], "PATCH takes fields, or operations (RFC 6902)"),
        "members": Setting(
            "calls",
            Literal["calls", "bulk", "memberships", "field"],
            "one call each, several at once, memberships with ids of their own, or a field of the group",
        ),
        "page_max": Setting(100, Annotated[int, msgspec.Meta(ge=1)], "users on one page at most"),
        "envelope": Setting(True, bool, 'accounts and lists come under "data", and the total under "meta"'),
        "states": Setting("field", Literal["field", "calls"], "status is written, or calls of their own switch users"),
        "created": Setting("answer", Literal["answer", "location", "empty"], "what a create is answered with"),
        "auth": Setting(
            "bearer",
            Literal["bearer", "basic", "header", "basic_key", "two", "token", "oauth"],
            f"how calls are signed; {API_KEY} for header, {SECOND_KEY} beside it for two, `Token token=` for token",
        ),
        "seats": Setting(None, Annotated[int, msgspec.Meta(ge=0)] | None, "enabled users at most; null is unlimited"),
        "quirks": Setting([], list[Quirk], "habits, see the class"),
    }

    def routes(self) -> list[Route]:
        """Plain CRUD below /api/users."""
        return [
            Route("GET", "/api/users", self._list),
            Route("POST", "/api/users", self._create, idempotent=True),
            Route("GET", "/api/users/by-login/{login}", self._by_login),
            Route("GET", "/api/users/{id}", self._read),
            Route("PATCH", "/api/users/{id}", self._patch),
            Route("PUT", "/api/users/{id}", self._replace),
            Route("DELETE", "/api/users/{id}", self._delete),
            Route("POST", "/api/users/{id}/enable", self._enable),
            Route("POST", "/api/users/{id}/disable", self._disable),
            Route("POST", "/api/users/search", self._search),
            Route("GET", "/api/users/more/{cursor}", self._more),
            Route("GET", "/api/users/{id}/roles", self._roles),
            Route("POST", "/api/users/{id}/roles", self._grant),
            Route("DELETE", "/api/users/{id}/roles/{role}", self._revoke),
            Route("GET", "/api/user.info", self._named(self._read)),
            Route("POST", "/api/user.set", self._named(self._patch)),
            Route("POST", "/api/user.remove", self._named(self._delete)),
            Route("GET", "/api/groups", self._group_list),
            Route("POST", "/api/groups", self._group_create),
            Route("GET", "/api/groups/{id}", self._group_read),
            Route("PATCH", "/api/groups/{id}", self._group_patch),
            Route("PUT", "/api/groups/{id}", self._group_patch),
            Route("DELETE", "/api/groups/{id}", self._group_delete),
            Route("GET", "/api/groups/{id}/members", self._members),
            Route("PUT", "/api/groups/{id}/members/{member}", self._member_put),
            Route("DELETE", "/api/groups/{id}/members/{member}", self._member_delete),
            Route("POST", "/api/groups/{id}/members", self._member_bulk),
            Route("POST", "/api/memberships", self._membership_create),
            Route("DELETE", "/api/memberships/{membership}", self._membership_delete),
            Route("POST", "/oauth/token", self._issue, authenticated=False, metered=False),
        ]

    def first_tables(self) -> Rows:
        """No users; `_by_login` finds the holder of a folded login."""
        return {"users": {}, "groups": {}, "_by_login": {}, "_counters": {"users": 0, "groups": 0}}

    def seed(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """`{"users": [{"login", field?...}], "groups": [{"name", "external_id"?, "members"?}]}`; answers with the ids."""
        check_fields(document, {"users": list, "groups": list})
        ids: list[str] = []
        group_ids: list[str] = []
        for wanted in document.get("users", []):
            check_fields(wanted, FIELDS, ("login",))
            if wanted["login"].casefold() in self.tables.rows["_by_login"]:
                raise ValueError(f"{wanted['login']} is already taken")
            user = self._new_user(wanted, self.clock.now())
            self.control("seed", self._put(user, None))
            ids.append(user["id"])
        for wanted in document.get("groups", []):
            check_fields(wanted, {"name": str, "external_id": str, "members": list}, ("name",))
            group = {"id": self._next_group(), "external_id": None, "members": [], **wanted}
            self.control("seed", self._put_group(group, new=True))
            group_ids.append(group["id"])
        return {"ids": ids, "group_ids": group_ids}

    def error_answer(self, refusal: Refusal, call: Call) -> Answer:
        """`{"error": {"code", "message", "field"?}}`; with the quirk `success_false` under a 200."""
        if self.setting("body") == "jsonapi":
            told = {"status": str(refusal.status), "code": refusal.reason, "detail": refusal.message}
            return Answer(refusal.status, {"errors": [told]}, dict(refusal.headers), JSON_API)
        error: dict[str, Any] = {"code": refusal.reason, "message": refusal.message, **refusal.extra}
        if refusal.field is not None:
            error["field"] = refusal.field
        hidden = self._has("success_false") and 400 <= refusal.status < 500 and refusal.status not in (401, 429)
        if hidden:
            return Answer(200, {"success": False, "error": error}, dict(refusal.headers))
        return Answer(refusal.status, {"error": error}, dict(refusal.headers))

    # Signing ----------------------------------------------------------------------------------------------------------

    def _authenticate(self, call: Call) -> None:
        way: str = self.setting("auth")
        if way == "bearer":
            super()._authenticate(call)
            return
        token = self._signature(call, way)
        fixed = self.tables.rows["_credentials"]["fixed"]
        if not token or fixed["revoked"] or not hmac.compare_digest(fixed["digest"], digest(token)):
            raise Refusal(401, "unauthorized", "The credential was refused")

    def _signature(self, call: Call, way: str) -> str:
        """The credential of a call in the product's way; "" when it is not there."""
        headers = call.request.headers
        if way == "basic":
            return _password(call)
        if way == "basic_key":
            return _password(call, key_is_name=True)
        if way == "two" and headers.get(SECOND_KEY) != headers.get(API_KEY):
            return ""
        if way == "oauth":
            return headers.get("Authorization", "").removeprefix("Bearer issued-")
        if way == "token":
            return headers.get("Authorization", "").removeprefix("Token token=")
        return headers.get(API_KEY, "")

    def _issue(self, call: Call) -> Answer:
        """Client credentials with id and secret in the body (RFC 6749 section 2.3.1); the token says the secret again."""
        form = dict(parse_qsl(call.raw.decode()))
        fixed = self.tables.rows["_credentials"]["fixed"]
        secret = form.get("client_secret", "")
        known = form.get("client_id") == CLIENT_ID and form.get("grant_type") == "client_credentials"
        if not known or fixed["revoked"] or not hmac.compare_digest(fixed["digest"], digest(secret)):
            return Answer(401, {"error": "invalid_client"})
        return Answer(200, {"access_token": f"issued-{secret}", "expires_in": TOKEN_S, "token_type": "Bearer"})

    # Calls ------------------------------------------------------------------------------------------------------------

    def _list(self, call: Call) -> Answer:
        wanted = call.query(("login", "page", "per_page", "offset", "limit", "cursor", "fields", "filter", "status"))
        users = list(call.rows["users"].values())
        if "filter" in wanted:
            found = FILTER.fullmatch(wanted["filter"])
            if found is None:
                raise Refusal(400, "bad_filter", 'Filters are login eq "…"', field="filter", violation=True)
            wanted["login"] = json.loads(f'"{found[1]}"')
        if self._has("by_status") and "login" not in wanted:
            users = [user for user in users if user["status"] == wanted.get("status", "enabled")]
        if "login" in wanted and self._has("likeness"):
            users = [user for user in users if wanted["login"].casefold() in user["login"].casefold()]
        elif "login" in wanted and not self._has("ignores_filter"):
            holder = call.rows["_by_login"].get(wanted["login"].casefold())
            users = [user for user in users if user["id"] == holder]
        return self._paged(call, users, wanted)

    def _search(self, call: Call) -> Answer:
        """A search by POST: `{"filters": [{"field", "op", "value"}], "after"?, "limit"?}`."""
        body = call.json()
        check_fields(body, {"filters": list, "after": str, "limit": int})
        users = list(call.rows["users"].values())
        for one in body.get("filters", []):
            check_fields(one, {"field": str, "op": str, "value": str}, ("field", "op", "value"), at="filters.")
            users = [user for user in users if str(user[one["field"]]).casefold() == one["value"].casefold()]
        begin = int(body.get("after", "0"))
        page = users[begin : begin + min(self.setting("page_max"), body.get("limit", 100))]
        following = begin + len(page)
        after = str(following) if following < len(users) else None
        return Answer(200, {"data": [self._shown(user) for user in page], "meta": {"next": after}})

    def _more(self, call: Call) -> Answer:
        """The next page of a list whose pages have addresses of their own."""
        return self._paged(call, list(call.rows["users"].values()), {"cursor": call.params["cursor"]})

    def _paged(self, call: Call, users: list[dict[str, Any]], wanted: Mapping[str, str]) -> Answer:
        paging: str = self.setting("paging")
        size = min(self.setting("page_max"), self._whole(wanted, "per_page", self._whole(wanted, "limit", 100)))
        begin = self._begin(paging, wanted, size)
        if self._has("repeats_page"):
            begin = 0
        if self._has("breaks_off") and begin:
            users = users[:begin]
        page = users if paging == "none" else users[begin : begin + size]
        following = begin + len(page)
        more = paging != "none" and following < len(users)
        shown = [self._shown(user) for user in page]
        if self._has("bare_list"):
            shown = [{"id": user["id"], "name": user["name"]} for user in shown]
        headers = {}
        if paging == "link" and more:
            other = "https://elsewhere.example/api/users"  # a client that follows the host would call a stranger
            headers["Link"] = f'<{other}?page=1>; rel="first", <{other}?cursor={following}>; rel="next"'
        if paging == "header" and more:
            headers["X-Next-Page"] = str(begin // size + 2)
        if self.setting("ids") == "href":
            return Answer(200, {"_embedded": {"users": shown}, "total": len(users)}, headers)
        if self.setting("body") == "jsonapi":
            address = f"https://elsewhere.example/api/users?page[cursor]={following}&page[size]={size}"
            document = {"data": shown, "links": {"next": address if more else None}}
            return Answer(200, document, headers, JSON_API)
        if not self.setting("envelope"):
            return Answer(200, shown, headers)
        meta: dict[str, Any] = {} if paging in ("more", "path", "header") else {"total": len(call.rows["users"])}
        if "login" in wanted:
            meta = {"total": len(users)}
        if paging == "more":
            meta["more"] = more
        if paging == "path":
            meta["next"] = f"/api/users/more/{following}" if more else None
        if paging == "cursor":
            meta["next"] = str(following) if more else None
        if paging == "next":
            meta["next"] = f"https://elsewhere.example/api/users?cursor={following}" if more else None
        return Answer(200, {"data": shown, "meta": meta}, headers)

    def _begin(self, paging: str, wanted: Mapping[str, str], size: int) -> int:
        by_page, by_offset = ("page", "per_page"), ("offset", "limit")
        ways = {"page": by_page, "header": by_page, "offset": by_offset, "more": by_offset}
        known = ways.get(paging, ("cursor", "limit"))
        for name in wanted:
            if name not in (*known, "login", "fields", "filter", "status"):
                raise Refusal(400, "unknown_parameter", f"Pages go by {known[0]} here", field=name, violation=True)
        number = self._whole(wanted, known[0], 1 if known == by_page else 0)
        if known == by_page:
            if number < 1:
                raise Refusal(400, "bad_page", "Pages are counted from 1", field="page", violation=True)
            return (number - 1) * size
        return number

    def _by_login(self, call: Call) -> Answer:
        holder = call.rows["_by_login"].get(call.params["login"].casefold())
        if holder is None:
            raise Refusal(404, "no_user", "There is no such user")
        return self._one(200, call.rows["users"][holder])

    def _read(self, call: Call) -> Answer:
        return self._one(200, self._held(call, call.rows))

    def _create(self, call: Call) -> Answer:
        body = self._document(call, None)
        self._check(body, ("login",))
        self._check_free(body["login"], None)
        user = self._new_user(body, call.at)
        if self._has("invites"):
            user["status"] = "invited"
        if self._has("switches_on"):
            user["status"] = "enabled"
        if user["status"] == "enabled":
            self._check_seat()
        self.effect(call, "create", user["id"], user["login"], body, self._put(user, None), sorted(body))
        location = {"Location": f"{call.base_url}/api/users/{user['id']}"}
        created: str = self.setting("created")
        if created == "answer":
            return self._one(201, user)
        return Answer(201, None, location if created == "location" else {})

    def _patch(self, call: Call) -> Answer:
        before = self._held(call, self.tables.rows)
        if self.setting("patch") == "operations":
            return self._operated(call, before)
        body = self._document(call, before)
        self._check(body)
        wanted = {**before, **body}
        for name in ("name", "contact"):
            if name in body and not self._has("shallow"):
                wanted[name] = {**before[name], **body[name]}
            elif name in body:
                wanted[name] = {**BLANK[name], **body[name]}
        return self._changed(call, "update", before, wanted)

    def _replace(self, call: Call) -> Answer:
        before = self._held(call, self.tables.rows)
        body = call.json()
        own = {name: value for name, value in body.items() if name != "id"}
        if body.get("id", int(before["id"])) != int(before["id"]):
            raise Refusal(400, "read_only", "id cannot be changed", field="id", violation=True)
        self._check(own, ("login",))
        kept = {name: before[name] for name in READ_ONLY}
        wanted = {**BLANK, **own, **kept}
        for name in ("name", "contact"):
            wanted[name] = {**BLANK[name], **wanted[name]}
        return self._changed(call, "replace", before, wanted)

    def _delete(self, call: Call) -> Answer:
        user = self._held(call, self.tables.rows)
        if self._has("off_first") and user["status"] == "enabled":
            raise Refusal(409, "still_enabled", "Disable the user first", violation=True)
        changes: list[Change] = [("users", user["id"]), ("_by_login", user["login"].casefold())]
        for group in self.tables.rows["groups"].values():
            if user["id"] in group["members"]:
                left = [one for one in group["members"] if one != user["id"]]
                changes.append(("groups", group["id"], {**group, "members": left}))
        self.effect(call, "delete", user["id"], user["login"], {}, changes)
        return Answer(204)

    def _enable(self, call: Call) -> Answer:
        return self._switched(call, "enabled")

    def _disable(self, call: Call) -> Answer:
        return self._switched(call, "disabled")

    def _switched(self, call: Call, status: str) -> Answer:
        if self.setting("states") != "calls":
            raise Refusal(404, "unknown_path", "There is no such address", violation=True)
        call.json()
        before = self._held(call, self.tables.rows)
        return self._changed(call, status, before, {**before, "status": status})

    def _operated(self, call: Call, before: dict[str, Any]) -> Answer:
        """PATCH with operations; a path must lead to something that is there, but for the last part of an `add`."""
        if call.request.content_type != JSON_PATCH:
            raise Refusal(415, "content_type", f"Send {JSON_PATCH}", violation=True)
        wanted = json.loads(json.dumps(before))
        for one in json.loads(call.raw):
            known: dict[str, type] = {"op": str, "path": str, "value": object}
            check_fields(one, known, ("op", "path"))
            *way, last = one["path"].removeprefix("/").split("/")
            inner = wanted
            for part in way:
                inner = inner[part]
            if one["op"] not in ("add", "replace") or (one["op"] == "replace" and last not in inner):
                raise Refusal(400, "bad_operation", "There is no such operation", field=one["path"], violation=True)
            inner[last] = one["value"]
        changed = {name: value for name, value in wanted.items() if value != before[name]}
        self._check(changed)
        return self._changed(call, "update", before, wanted)

    def _named(self, act: Callable[[Call], Answer]) -> Callable[[Call], Answer]:
        """The same, but the user is named in a parameter, or in the body."""

        def acted(call: Call) -> Answer:
            named = call.query(("user",)) if call.method == "GET" else json.loads(call.raw)
            call.params["id"] = str(named.get("user", ""))
            return act(call)

        return acted

    # Roles ------------------------------------------------------------------------------------------------------------

    def _roles(self, call: Call) -> Answer:
        roles = self._held(call, call.rows)["roles"]
        return Answer(200, {"roles": [{"role": {"name": role}} for role in roles]})

    def _grant(self, call: Call) -> Answer:
        before = self._held(call, self.tables.rows)
        body = call.json()
        check_fields(body, {"name": str}, ("name",))
        if body["name"] in before["roles"]:
            raise Refusal(409, "granted", "The user has this role")
        return self._changed(call, "grant", before, {**before, "roles": [*before["roles"], body["name"]]})

    def _revoke(self, call: Call) -> Answer:
        before = self._held(call, self.tables.rows)
        if call.params["role"] not in before["roles"]:
            raise Refusal(404, "no_role", "The user does not have this role")
        left = [role for role in before["roles"] if role != call.params["role"]]
        self._changed(call, "revoke", before, {**before, "roles": left})
        return Answer(204)

    # Groups -----------------------------------------------------------------------------------------------------------

    def _group_list(self, call: Call) -> Answer:
        wanted = call.query(("name", "offset", "limit"))
        groups = list(call.rows["groups"].values())
        if "name" in wanted:
            groups = [one for one in groups if one["name"].casefold() == wanted["name"].casefold()]
        begin = self._whole(wanted, "offset", 0)
        page = groups[begin : begin + min(self.setting("page_max"), self._whole(wanted, "limit", 100))]
        return Answer(
            200, {"groups": [self._shown_group(one) for one in page], "more": begin + len(page) < len(groups)}
        )

    def _group_create(self, call: Call) -> Answer:
        body = self._group_document(call)
        check_fields(body, {"name": str, "external_id": (str, type(None)), "source": str}, ("name",))
        self._check_group_free(body["name"], "")
        group = {"id": self._next_group(), "external_id": None, "members": [], **body}
        self.effect(
            call, "group_create", group["id"], group["name"], body, self._put_group(group, new=True), sorted(body)
        )
        return Answer(201, {"group": self._shown_group(group)})

    def _group_read(self, call: Call) -> Answer:
        return Answer(200, {"group": self._shown_group(self._group(call, call.rows))})

    def _group_patch(self, call: Call) -> Answer:
        before = self._group(call, self.tables.rows)
        body = self._group_document(call)
        if call.method == "PUT":
            body.pop("id", None)
        known: dict[str, Any] = {"name": str, "external_id": (str, type(None))}
        if self.setting("members") == "field":
            known["members"] = list
        check_fields(body, known)
        wanted = {**before, **body}
        if "members" in body:
            wanted["members"] = [str(one["user"]) for one in body["members"]]
            self._check_members(wanted["members"])
        self._check_group_free(wanted["name"], before["id"])
        return self._group_changed(call, before, wanted)

    def _group_delete(self, call: Call) -> Answer:
        group = self._group(call, self.tables.rows)
        self.effect(call, "group_delete", group["id"], group["name"], {}, [("groups", group["id"])])
        return Answer(204)

    def _members(self, call: Call) -> Answer:
        self._check_way("calls", "bulk", "memberships")
        wanted = call.query(("offset", "limit"))
        group = self._group(call, call.rows)
        begin = self._whole(wanted, "offset", 0)
        page = group["members"][begin : begin + min(self.setting("page_max"), self._whole(wanted, "limit", 100))]
        ids = [f"crm|{one}" if self.setting("ids") == "text" else int(one) for one in page]
        entries: list[Any] = [
            {"user": {"id": shown}, "id": f"{group['id']}-{one}"} for shown, one in zip(ids, page, strict=True)
        ]
        if self.setting("members") == "bulk":
            entries = [int(one) for one in page]
        return Answer(200, {"members": entries, "more": begin + len(page) < len(group["members"])})

    def _member_put(self, call: Call) -> Answer:
        self._check_way("calls")
        return self._joined(call, self._group(call, self.tables.rows), [call.params["member"]])

    def _member_delete(self, call: Call) -> Answer:
        self._check_way("calls")
        return self._left(call, self._group(call, self.tables.rows), [call.params["member"]])

    def _member_bulk(self, call: Call) -> Answer:
        self._check_way("bulk")
        body = call.json()
        check_fields(body, {"add": list, "remove": list})
        group = self._group(call, self.tables.rows)
        if not all(isinstance(one, int) for one in (*body.get("add", []), *body.get("remove", []))):
            raise Refusal(400, "wrong_type", "Ids are numbers", violation=True)
        if body.get("remove"):
            return self._left(call, group, [str(one) for one in body["remove"]])
        return self._joined(call, group, [str(one) for one in body.get("add", [])])

    def _membership_create(self, call: Call) -> Answer:
        self._check_way("memberships")
        body = call.json()
        kind = str if self.setting("ids") == "text" else int
        check_fields(body, {"group_id": int, "user_id": kind}, ("group_id", "user_id"))
        call.params["id"] = str(body["group_id"])
        return self._joined(call, self._group(call, self.tables.rows), [str(body["user_id"]).removeprefix("crm|")])

    def _membership_delete(self, call: Call) -> Answer:
        self._check_way("memberships")
        call.params["id"], _, member = call.params["membership"].partition("-")
        return self._left(call, self._group(call, self.tables.rows), [member])

    def _joined(self, call: Call, group: dict[str, Any], coming: list[str]) -> Answer:
        self._check_members(coming)
        if len(coming) == 1 and coming[0] in group["members"]:
            raise Refusal(409, "a_member", "The user is a member already")
        members = list(dict.fromkeys((*group["members"], *coming)))
        return self._group_changed(call, group, {**group, "members": members})

    def _left(self, call: Call, group: dict[str, Any], going: list[str]) -> Answer:
        if len(going) == 1 and going[0] not in group["members"]:
            raise Refusal(404, "no_member", "The user is no member")
        left = [one for one in group["members"] if one not in going]
        return self._group_changed(call, group, {**group, "members": left})

    def _group_changed(self, call: Call, before: dict[str, Any], wanted: dict[str, Any]) -> Answer:
        changed = sorted(name for name in wanted if wanted[name] != before.get(name))
        values = {name: wanted[name] for name in changed}
        changes = self._put_group(wanted)
        self.effect(call, "group_update", wanted["id"], wanted["name"], values, changes, changed)
        return Answer(200, {"group": self._shown_group(wanted)})

    def _group_document(self, call: Call) -> dict[str, Any]:
        if self.setting("body") == "form":
            return _unfolded(call.raw)
        return dict(call.json())

    def _check_way(self, *ways: str) -> None:
        if self.setting("members") not in ways:
            raise Refusal(404, "unknown_path", "There is no such address", violation=True)

    def _check_members(self, ids: list[str]) -> None:
        for one in ids:
            if one not in self.tables.rows["users"]:
                raise Refusal(422, "unknown_user", "There is no such user")

    def _check_group_free(self, name: str, own: str) -> None:
        for group in self.tables.rows["groups"].values():
            if group["name"].casefold() == name.casefold() and group["id"] != own:
                raise Refusal(409, "name_taken", "This name is taken", field="name")

    def _group(self, call: Call, rows: Rows) -> dict[str, Any]:
        group: dict[str, Any] | None = rows["groups"].get(call.params["id"])
        if group is None:
            raise Refusal(404, "no_group", "There is no such group")
        return group

    def _next_group(self) -> str:
        return str(50 + int(self.tables.rows["_counters"]["groups"]))

    def _put_group(self, group: Mapping[str, Any], *, new: bool = False) -> list[Change]:
        changes: list[Change] = [("groups", group["id"], group)]
        if new:
            changes.append(("_counters", "groups", self.tables.rows["_counters"]["groups"] + 1))
        return changes

    def _shown_group(self, group: Mapping[str, Any]) -> dict[str, Any]:
        shown = {name: value for name, value in group.items() if name != "members"}
        if self.setting("members") == "field":
            shown["members"] = [{"user": int(one)} for one in group["members"]]
        return {**shown, "id": int(group["id"])}

    # Parts ------------------------------------------------------------------------------------------------------------

    def _document(self, call: Call, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """The fields of a body in the product's way of writing them."""
        way: str = self.setting("body")
        if way == "form":
            if call.request.content_type != FORM:
                raise Refusal(415, "content_type", f"Send {FORM}", violation=True)
            return _unfolded(call.raw)
        if way == "json":
            body = dict(call.json())
            if call.path.endswith("/user.set"):
                body.pop("user", None)
            return body
        data = call.json((JSON_API,)).get("data", {})
        check_fields(data, {"type": str, "id": str, "attributes": dict}, ("type", "attributes"), at="data.")
        if data["type"] != "users" or data.get("id") != (None if before is None else before["id"]):
            raise Refusal(409, "wrong_resource", "type and id do not fit", violation=True)
        return dict(data["attributes"])

    def _has(self, quirk: str) -> bool:
        return quirk in self.setting("quirks")

    def _held(self, call: Call, rows: Rows) -> dict[str, Any]:
        user: dict[str, Any] | None = rows["users"].get(call.params["id"].removeprefix("crm|"))
        if user is None:
            raise Refusal(404, "no_user", "There is no such user")
        return user

    def _check(self, body: Mapping[str, Any], required: tuple[str, ...] = ()) -> None:
        known = dict(FIELDS)
        if self.setting("states") == "calls":
            known.pop("status")
        for name in READ_ONLY:
            if name in body:
                raise Refusal(400, "read_only", f"{name} is not written", field=name, violation=True)
        check_fields(body, known, required)
        check_fields(body.get("name", {}), NAME_FIELDS, at="name.")
        check_fields(body.get("contact", {}), CONTACT_FIELDS, at="contact.")
        for one in body.get("phones", []):
            check_fields(one, PHONE_FIELDS, ("type",), at="phones.")
        if body.get("status", "enabled") not in ("enabled", "disabled"):
            raise Refusal(400, "bad_status", "status is enabled or disabled", field="status", violation=True)
        if not all(isinstance(role, str) for role in body.get("roles", [])):
            raise Refusal(400, "wrong_type", "roles are texts", field="roles", violation=True)
        email = body.get("contact", {}).get("email")
        if email and "@" not in email:
            raise Refusal(422, "bad_email", f"{email} is not an e-mail address", field="contact.email")

    def _check_free(self, login: str, own: str | None) -> None:
        holder = self.tables.rows["_by_login"].get(login.casefold())
        if holder is not None and holder != own:
            raise Refusal(409, "login_taken", "This login is taken", field="login")

    def _check_seat(self) -> None:
        seats: int | None = self.setting("seats")
        enabled = sum(user["status"] == "enabled" for user in self.tables.rows["users"].values())
        if seats is not None and enabled >= seats:
            raise Refusal(402, "no_seat", "There is no free seat")

    def _changed(self, call: Call, op: str, before: dict[str, Any], wanted: dict[str, Any]) -> Answer:
        self._check_free(wanted["login"], before["id"])
        if self._has("ignores_status"):
            wanted = {**wanted, "status": before["status"]}
        if wanted["status"] == "enabled" and before["status"] != "enabled":
            self._check_seat()
        changed = sorted(name for name in wanted if wanted[name] != before[name])
        after = {**wanted, "updated_at": iso_time(call.at)} if changed else before
        values = {name: wanted[name] for name in changed}
        self.effect(call, op, after["id"], after["login"], values, self._put(after, before), changed)
        return self._one(200, after)

    def _new_user(self, wanted: Mapping[str, Any], at: float) -> dict[str, Any]:
        number = self.tables.rows["_counters"]["users"] + 1
        user = {**BLANK, **wanted}
        for name in ("name", "contact"):
            user[name] = {**BLANK[name], **user[name]}
        return {"id": str(1_000 + number), **user, "created_at": iso_time(at), "updated_at": iso_time(at)}

    def _put(self, after: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[Change]:
        changes: list[Change] = [("users", after["id"], after)]
        old, new = None if before is None else before["login"].casefold(), after["login"].casefold()
        if old is None:
            changes.append(("_counters", "users", self.tables.rows["_counters"]["users"] + 1))
        if old != new:
            changes.append(("_by_login", new, after["id"]))
            if old is not None:
                changes.append(("_by_login", old))
        return changes

    def _shown(self, user: Mapping[str, Any]) -> dict[str, Any]:
        """Ids are numbers here, unless the settings say otherwise."""
        if self.setting("body") == "jsonapi":
            attributes = {name: value for name, value in user.items() if name != "id"}
            return {"type": "users", "id": user["id"], "attributes": attributes}
        ids: str = self.setting("ids")
        if ids == "href":
            shown = {name: value for name, value in user.items() if name != "id"}
            return {**shown, "_links": {"self": {"href": f"https://elsewhere.example/api/users/{user['id']}"}}}
        return {**user, "id": int(user["id"]) if ids == "number" else f"crm|{user['id']}"}

    def _one(self, status: int, user: Mapping[str, Any]) -> Answer:
        shown = self._shown(user)
        if self.setting("body") == "jsonapi":
            return Answer(status, {"data": shown}, {}, JSON_API)
        return Answer(status, {"data": shown} if self.setting("envelope") else shown)

    def _whole(self, wanted: Mapping[str, str], name: str, default: int) -> int:
        text = wanted.get(name, str(default))
        if not text.isdecimal() or len(text) > 9:
            raise Refusal(400, "bad_number", f"{name} is a whole number", field=name, violation=True)
        return int(text)


def _password(call: Call, *, key_is_name: bool = False) -> str:
    scheme, _, encoded = call.authorization.partition(" ")
    try:
        name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return ""
    if scheme.casefold() != "basic":
        return ""
    if key_is_name:
        return name
    return password if name == USER_NAME else ""


def _unfolded(raw: bytes) -> dict[str, Any]:
    """`contact[email]=a&roles[0]=b` as nested objects and lists; an empty text is no value."""
    body: dict[str, Any] = {}
    for key, value in parse_qsl(raw.decode(), keep_blank_values=True):
        first, *inner = re.findall(r"[^\[\]]+", key)
        if inner and inner[0].isdecimal():
            body.setdefault(first, []).append(value)
        elif inner:
            body.setdefault(first, {})[inner[0]] = value or None
        elif first == "roles":
            body[first] = []
        else:
            body[first] = value or None
    return body
