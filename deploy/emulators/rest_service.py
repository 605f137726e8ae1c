"""A product with plain REST calls for users, as there are many: the other side of the connector that is declared in TOML.

Its settings say how it differs from the next one: how lists are paged, what stands around an account, how a user is switched
off, where a new id is told, how calls are signed, and some habits that make life hard (`quirks`).
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

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
    "manager_id": (str, type(None)),
}
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
}
Quirk = Literal[
    "shallow", "success_false", "ignores_filter", "switches_on", "ignores_status", "repeats_page", "bare_list"
]


class RestServiceEmulator(Emulator):
    """State: `users` by id, `settings` of the product. Logins are unique in any letter case.

    Quirks: `shallow` (PATCH replaces nested objects whole), `success_false` (refusals come as 200 with `success` false),
    `ignores_filter` (?login= finds everybody), `switches_on` (new users are enabled, whatever was asked), `ignores_status`
    (status never changes, with success), `repeats_page` (every page is the first), `bare_list` (lists show id and name only).
    """

    name: ClassVar[str] = "rest_service"
    SETTINGS: ClassVar[Mapping[str, Setting]] = {
        "paging": Setting(
            "page", Literal["none", "page", "offset", "cursor", "next", "link"], "how a list is gone through"
        ),
        "page_max": Setting(100, Annotated[int, msgspec.Meta(ge=1)], "users on one page at most"),
        "envelope": Setting(True, bool, 'accounts and lists come under "data", and the total under "meta"'),
        "states": Setting("field", Literal["field", "calls"], "status is written, or calls of their own switch users"),
        "created": Setting("answer", Literal["answer", "location", "empty"], "what a create is answered with"),
        "auth": Setting("bearer", Literal["bearer", "basic", "header"], f"how calls are signed; {API_KEY} for header"),
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
        ]

    def first_tables(self) -> Rows:
        """No users; `_by_login` finds the holder of a folded login."""
        return {"users": {}, "_by_login": {}, "_counters": {"users": 0}}

    def seed(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """`{"users": [{"login", field?...}]}`; answers with the ids."""
        check_fields(document, {"users": list})
        ids = []
        for wanted in document.get("users", []):
            check_fields(wanted, FIELDS, ("login",))
            if wanted["login"].casefold() in self.tables.rows["_by_login"]:
                raise ValueError(f"{wanted['login']} is already taken")
            user = self._new_user(wanted, self.clock.now())
            self.control("seed", self._put(user, None))
            ids.append(user["id"])
        return {"ids": ids}

    def error_answer(self, refusal: Refusal, call: Call) -> Answer:
        """`{"error": {"code", "message", "field"?}}`; with the quirk `success_false` under a 200."""
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
        token = call.request.headers.get(API_KEY, "") if way == "header" else _password(call)
        fixed = self.tables.rows["_credentials"]["fixed"]
        if not token or fixed["revoked"] or not hmac.compare_digest(fixed["digest"], digest(token)):
            raise Refusal(401, "unauthorized", "The credential was refused")

    # Calls ------------------------------------------------------------------------------------------------------------

    def _list(self, call: Call) -> Answer:
        wanted = call.query(("login", "page", "per_page", "offset", "limit", "cursor", "fields"))
        users = list(call.rows["users"].values())
        if "login" in wanted and not self._has("ignores_filter"):
            holder = call.rows["_by_login"].get(wanted["login"].casefold())
            users = [user for user in users if user["id"] == holder]
        paging: str = self.setting("paging")
        size = min(self.setting("page_max"), self._whole(wanted, "per_page", self._whole(wanted, "limit", 100)))
        begin = self._begin(paging, wanted, size)
        if self._has("repeats_page"):
            begin = 0
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
        if not self.setting("envelope"):
            return Answer(200, shown, headers)
        meta: dict[str, Any] = {"total": len(users)}
        if paging == "cursor":
            meta["next"] = str(following) if more else None
        if paging == "next":
            meta["next"] = f"https://elsewhere.example/api/users?cursor={following}" if more else None
        return Answer(200, {"data": shown, "meta": meta}, headers)

    def _begin(self, paging: str, wanted: Mapping[str, str], size: int) -> int:
        known = {"page": ("page", "per_page"), "offset": ("offset", "limit")}.get(paging, ("cursor", "limit"))
        for name in wanted:
            if name not in (*known, "login", "fields"):
                raise Refusal(400, "unknown_parameter", f"Pages go by {known[0]} here", field=name, violation=True)
        number = self._whole(wanted, known[0], 1 if paging == "page" else 0)
        if paging == "page":
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
        body = call.json()
        self._check(body, ("login",))
        self._check_free(body["login"], None)
        user = self._new_user(body, call.at)
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
        body = call.json()
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
        changes: list[Change] = [("users", user["id"]), ("_by_login", user["login"].casefold())]
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

    # Parts ------------------------------------------------------------------------------------------------------------

    def _has(self, quirk: str) -> bool:
        return quirk in self.setting("quirks")

    def _held(self, call: Call, rows: Rows) -> dict[str, Any]:
        user: dict[str, Any] | None = rows["users"].get(call.params["id"])
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
        """Ids are numbers here."""
        return {**user, "id": int(user["id"])}

    def _one(self, status: int, user: Mapping[str, Any]) -> Answer:
        shown = self._shown(user)
        return Answer(status, {"data": shown} if self.setting("envelope") else shown)

    def _whole(self, wanted: Mapping[str, str], name: str, default: int) -> int:
        text = wanted.get(name, str(default))
        if not text.isdecimal() or len(text) > 9:
            raise Refusal(400, "bad_number", f"{name} is a whole number", field=name, violation=True)
        return int(text)


def _password(call: Call) -> str:
    scheme, _, encoded = call.authorization.partition(" ")
    try:
        name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return password if scheme.casefold() == "basic" and name == USER_NAME else ""
