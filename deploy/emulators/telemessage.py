"""TeleMessage's archiver as a REST service: users known by their mobile number, one company manager each.

The contract is assumed: the real one is not public. Kept from the public SOAP interface: a number is never
given out twice (suspended and even deleted numbers still block a create), a change of number is a call of its own, and a user
without a name is shown with the number as first name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

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
    iso_time,
)

NUMBER = re.compile(r"[0-9]{7,15}")
PAGE_USERS = 100
USER_FIELDS = {
    "userName": str,
    "mobilePhone": str,
    "firstName": str,
    "lastName": str,
    "email": str,
    "manager": str,
    "status": str,
    "sendWelcome": bool,
}
SHOWN = (
    "id",
    "userName",
    "mobilePhone",
    "firstName",
    "lastName",
    "email",
    "manager",
    "status",
    "createdAt",
    "updatedAt",
)


class TelemessageEmulator(Emulator):
    """State: `users` by id, `reserved` numbers, `settings` with the managers. Numbers are the natural key."""

    name: ClassVar[str] = "telemessage"
    rate_per_s: ClassVar[float] = 10.0
    SETTINGS: ClassVar[Mapping[str, Setting]] = {
        "managers": Setting(["Contoso Archive"], list[str], "company managers, exact and case-sensitive"),
        "approval": Setting(False, bool, "creates stay pending until POST /__emu/approve or midnight UTC"),
        "page_users": Setting(PAGE_USERS, Annotated[int, msgspec.Meta(ge=1)], "users on one page of the list"),
    }

    _ran_on = ""  # the day of the last daily run; a restarted emulator runs again, which changes nothing

    def routes(self) -> list[Route]:
        """The calls of the assumed contract, no more."""
        return [
            Route("GET", "/v1/users", self._list),
            Route("POST", "/v1/users", self._create, idempotent=True),
            Route("PATCH", "/v1/users/{id}", self._update),
            Route("DELETE", "/v1/users/{id}", self._delete),
            Route("POST", "/v1/users/{id}/login", self._login, idempotent=True),
            Route("POST", "/v1/users/{id}/status", self._status, idempotent=True),
            Route("GET", "/v1/managers", self._managers),
        ]

    def control_routes(self) -> list[Route]:
        """`POST /__emu/approve {"ids": [...]}` does the daily run by hand; without ids for everybody."""
        return [Route("POST", "/__emu/approve", self._control_approve)]

    def first_tables(self) -> Rows:
        """No users; `_by_number` finds the holder of a user name or number."""
        return {"users": {}, "reserved": {}, "_by_number": {}, "_counters": {"users": 0}}

    def seed(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """`{"managers": [name], "users": [{"mobilePhone", "manager"?, "status"?, "firstName"?, ...}], "reserved": [number]}`."""
        check_fields(document, {"managers": list, "users": list, "reserved": list})
        if "managers" in document:
            self.set(managers=document["managers"])
        changes: list[Change] = [("reserved", number, {"userId": None}) for number in document.get("reserved", [])]
        taken = set(self.tables.rows["_by_number"])
        ids: list[str] = []
        for wanted in document.get("users", []):
            check_fields(wanted, USER_FIELDS, ("mobilePhone",))
            named = {"userName": wanted["mobilePhone"], "manager": self.setting("managers")[0], **wanted}
            numbers = {named["userName"], named["mobilePhone"]}
            if numbers & taken:
                raise ValueError(f"{named['mobilePhone']} is already taken")
            taken |= numbers
            user = self._new_user(named, self.clock.now(), len(ids))
            ids.append(user["id"])
            changes += self._put(user)
        changes.append(("_counters", "users", self._users_made + len(ids)))
        self.control("seed", changes)
        return {"ids": ids}

    def error_answer(self, refusal: Refusal, call: Call) -> Answer:
        """`{"code", "message", "field"}`; the code is the reason in capitals."""
        body = {"code": refusal.reason.upper(), "message": refusal.message, **refusal.extra}
        if refusal.field is not None:
            body["field"] = refusal.field
        return Answer(refusal.status, body, dict(refusal.headers))

    def tick(self) -> None:
        """The daily run: what was created before the last midnight UTC becomes active."""
        if not self.setting("approval"):
            return
        today = iso_time(self.clock.now())[:10]
        if today == self._ran_on:
            return
        self._ran_on = today
        users = self.tables.rows["users"].values()
        due = [user["id"] for user in users if user["status"] == "pending" and user["createdAt"][:10] < today]
        if due:
            self.approve(due)

    def approve(self, ids: list[str] | None = None) -> list[str]:
        """Make pending users active, all of them without `ids`; the ids of those that changed."""
        users = self.tables.rows["users"]
        pending = [
            user for user in users.values() if user["status"] == "pending" and (ids is None or user["id"] in ids)
        ]
        changes: list[Change] = [
            ("users", user["id"], {**user, "status": "active", "updatedAt": iso_time(self.clock.now())})
            for user in pending
        ]
        approved = [user["id"] for user in pending]
        self.control("approve", changes, account_ids=approved)
        return approved

    # Calls ------------------------------------------------------------------------------------------------------------

    def _list(self, call: Call) -> Answer:
        wanted = call.query(("mobilePhone", "manager", "cursor"))
        users = call.rows["users"]
        number = wanted.get("mobilePhone")
        if number is not None:
            _check_number("mobilePhone", number)
            # The index also finds by user name, which may differ from the number.
            holder = users.get(call.rows["_by_number"].get(number, ""))
            found = [holder] if holder is not None and holder["mobilePhone"] == number else []
        else:
            found = list(users.values())
        if "manager" in wanted:
            found = [user for user in found if user["manager"] == wanted["manager"]]
        if "cursor" in wanted:
            if not wanted["cursor"].isdecimal():
                raise Refusal(400, "invalid_cursor", "This is not a cursor of ours", field="cursor", violation=True)
            found = [user for user in found if _ordinal(user["id"]) > int(wanted["cursor"])]
        size: int = self.setting("page_users")
        page = found[:size]
        cursor = str(_ordinal(page[-1]["id"])) if len(found) > size else None
        return Answer(200, {"users": [_shown(user) for user in page], "next": cursor})

    def _create(self, call: Call) -> Answer:
        body = call.json()
        check_fields(body, USER_FIELDS, ("userName", "mobilePhone", "manager"))
        numbers = dict.fromkeys((body["userName"], body["mobilePhone"]))
        for field in ("userName", "mobilePhone"):
            _check_number(field, body[field])
        _check_email(body)
        _check_status(body.get("status", "active"))
        if body["manager"] not in self.setting("managers"):
            raise Refusal(400, "unknown_manager", f"There is no manager {body['manager']!r}", field="manager")
        for number in numbers:
            self._check_free(number)
        user = self._new_user(body, call.at)
        if self.setting("approval"):
            user["status"] = "pending"
        changes: list[Change] = [*self._put(user), ("_counters", "users", self._users_made + 1)]
        self.effect(call, "create", user["id"], user["mobilePhone"], body, changes, sorted(body))
        return Answer(202 if user["status"] == "pending" else 201, _shown(user))

    def _update(self, call: Call) -> Answer:
        user = self._user(call)
        body = call.json()
        check_fields(body, {"firstName": str, "lastName": str, "email": str})
        _check_email(body)
        return self._changed(call, "update", user, body)

    def _login(self, call: Call) -> Answer:
        user = self._user(call)
        body = call.json()
        check_fields(body, {"userName": str, "mobilePhone": str}, ("userName", "mobilePhone"))
        for field in ("userName", "mobilePhone"):
            _check_number(field, body[field])
        for number in dict.fromkeys(body.values()):
            self._check_free(number, but_for=user["id"])
        shows_number = user["firstName"] == user["mobilePhone"] and not user["lastName"]
        return self._changed(call, "login", user, body, {"firstName": body["mobilePhone"]} if shows_number else {})

    def _status(self, call: Call) -> Answer:
        user = self._user(call)
        body = call.json()
        check_fields(body, {"status": str}, ("status",))
        _check_status(body["status"])
        if user["status"] == "pending" and body["status"] == "active":
            # Only the daily run makes a pending user active.
            return self._changed(call, "status", user, {})
        return self._changed(call, "status", user, body)

    def _delete(self, call: Call) -> Answer:
        user = self._user(call)
        changes: list[Change] = [("users", user["id"])]
        for number in dict.fromkeys((user["userName"], user["mobilePhone"])):
            changes += [("_by_number", number), ("reserved", number, {"userId": user["id"]})]
        self.effect(call, "delete", user["id"], user["mobilePhone"], {}, changes)
        return Answer(204)

    def _managers(self, call: Call) -> Answer:
        call.query(())
        return Answer(200, {"managers": [{"name": name} for name in self.setting("managers")]})

    def _control_approve(self, call: Call) -> Answer:
        wanted = msgspec.json.decode(call.raw or b"{}", type=_Approval)
        return Answer(200, {"ids": self.approve(wanted.ids)})

    # Users ------------------------------------------------------------------------------------------------------------

    @property
    def _users_made(self) -> int:
        made: int = self.tables.rows["_counters"]["users"]
        return made

    def _user(self, call: Call) -> dict[str, Any]:
        user: dict[str, Any] | None = self.tables.rows["users"].get(call.params["id"])
        if user is None:
            raise Refusal(404, "unknown_user", "There is no such user")
        return user

    def _new_user(self, wanted: Mapping[str, Any], at: float, offset: int = 0) -> dict[str, Any]:
        user = {
            "id": f"u-{self._users_made + offset + 1}",
            "userName": wanted["userName"],
            "mobilePhone": wanted["mobilePhone"],
            "firstName": wanted.get("firstName", ""),
            "lastName": wanted.get("lastName", ""),
            "email": wanted.get("email", ""),
            "manager": wanted["manager"],
            "status": wanted.get("status", "active"),
            "createdAt": iso_time(at),
            "updatedAt": iso_time(at),
        }
        return _named(user)

    def _put(self, user: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> list[Change]:
        held = dict.fromkeys((before["userName"], before["mobilePhone"])) if before else {}
        return [
            ("users", user["id"], user),
            *(("_by_number", number) for number in held),
            *(("_by_number", number, user["id"]) for number in dict.fromkeys((user["userName"], user["mobilePhone"]))),
        ]

    def _changed(
        self,
        call: Call,
        op: str,
        user: Mapping[str, Any],
        values: Mapping[str, Any],
        besides: Mapping[str, Any] | None = None,
    ) -> Answer:
        after = _named({**user, **values, **(besides or {})})
        changed = [name for name in SHOWN if after[name] != user[name]]
        if changed:
            after["updatedAt"] = iso_time(call.at)
        self.effect(call, op, after["id"], after["mobilePhone"], values, self._put(after, user), changed)
        return Answer(200, _shown(after))

    def _check_free(self, number: str, but_for: str | None = None) -> None:
        rows = self.tables.rows
        holder = rows["_by_number"].get(number)
        if holder is not None and holder != but_for:
            message = "This number belongs to another user"
            raise Refusal(409, "duplicate_msisdn", message, field="mobilePhone", extra={"userId": holder})
        if number in rows["reserved"]:
            message = "This number was deleted and stays reserved"
            raise Refusal(409, "duplicate_msisdn", message, field="mobilePhone", extra={"reserved": True})


class _Approval(msgspec.Struct, forbid_unknown_fields=True):
    ids: list[str] | None = None


def _named(user: dict[str, Any]) -> dict[str, Any]:
    """Without any name the user is listed under the number."""
    if not user["firstName"].strip() and not user["lastName"].strip():
        return {**user, "firstName": user["mobilePhone"]}
    return user


def _shown(user: Mapping[str, Any]) -> dict[str, Any]:
    return {name: user[name] for name in SHOWN}


def _ordinal(user_id: str) -> int:
    return int(user_id.removeprefix("u-"))


def _check_number(field: str, value: str) -> None:
    if NUMBER.fullmatch(value) is None:
        raise Refusal(
            400, "invalid_msisdn", f"{field} takes 7 to 15 digits and nothing else", field=field, violation=True
        )


def _check_email(body: Mapping[str, Any]) -> None:
    if body.get("email") and "@" not in body["email"]:
        raise Refusal(400, "invalid_email", "email is not an address", field="email")


def _check_status(status: str) -> None:
    if status not in ("active", "suspended"):
        raise Refusal(400, "invalid_status", "status is active or suspended", field="status", violation=True)
