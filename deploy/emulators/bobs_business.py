"""Bob's Business: SCIM users and groups of one organisation, its seats, its invitations, and accounts made by a first login.

Only the Tenant URL and the API key are known; the rest is assumed as RFC 7644. The address of an account is its userName. It is
unique as it stands: another letter case makes the second account of one person.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from deploy.emulators.harness import Answer, Call, Change, Refusal, Route, Rows, Setting, check_fields, digest, iso_time
from deploy.emulators.scim_service import CORE_USER, Attribute, Index, Resource, ScimEmulator, group_resource

MEMBERS_PER_CALL = 100
EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
PERMISSIONS = ["users:read", "users:write", "groups:read", "groups:write", "invitations:write"]
# The fixed token has the permissions of the setting, so that a test can take one away.
FIXED = "fixed"

BY_ADDRESS = Index("userName", exact=True)
BY_LOGIN = Index("userName", filterable=False)
BY_NAME = Index("displayName", exact=True)
BY_EXTERNAL_ID = Index("externalId", exact=True)
USER = Resource(
    name="User",
    core=CORE_USER,
    table="users",
    key="userName",
    attributes=(
        Attribute("userName", "userName", required=True),
        Attribute("active", "active", "boolean", default=True),
        Attribute("name.givenName", "givenName"),
        Attribute("name.familyName", "familyName"),
        Attribute("displayName", "displayName"),
        Attribute('emails[type eq "work"].value', "email"),
        Attribute("externalId", "externalId"),
    ),
    indexes=(BY_ADDRESS, BY_EXTERNAL_ID, BY_LOGIN),
)
GROUP = group_resource(BY_NAME, BY_EXTERNAL_ID)


class BobsBusinessEmulator(ScimEmulator):
    """State: `users`, `groups`, `invitations` by user id, `tokens` by the digest of the token, `settings` of the organisation."""

    name: ClassVar[str] = "bobs_business"
    rate_per_s: ClassVar[float] = 5.0
    scopes_all: ClassVar[frozenset[str]] = frozenset({FIXED})
    scim_resources: ClassVar[tuple[Resource, ...]] = (USER, GROUP)
    SETTINGS: ClassVar[Mapping[str, Setting]] = {
        "scim": Setting(True, bool, "SCIM is enabled in the organisation's Single Sign On page (L5)"),
        "invite_on_creation": Setting(False, bool, "the platform invites new users itself (L5)"),
        "permissions": Setting(PERMISSIONS, list[str], "what the fixed token may do (L6)"),
        "seats": Setting(None, Annotated[int, msgspec.Meta(ge=0)] | None, "active users at most; null is unlimited"),
        "seat_status": Setting(403, Literal[403, 422], "what a missing seat is answered with; not documented"),
        "members_per_call": Setting(
            MEMBERS_PER_CALL, Annotated[int, msgspec.Meta(ge=1)], "members that come or go in one call"
        ),
    }

    def routes(self) -> list[Route]:
        """SCIM, and the assumed call that invites a user."""
        return [*self.scim_routes(), Route("POST", "/api/v1/users/{id}/invitations", self._invite, idempotent=True)]

    def control_routes(self) -> list[Route]:
        """`POST /__emu/sso_login {"email"}` logs somebody in; `POST /__emu/tokens {"permissions"}` makes a token, shown once."""
        return [
            Route("POST", "/__emu/sso_login", self._control_sso_login),
            Route("POST", "/__emu/tokens", self._control_token_made),
            Route("DELETE", "/__emu/tokens", self._control_tokens_gone),
        ]

    def first_tables(self) -> Rows:
        """An organisation without users."""
        return {**self.scim_tables(), "invitations": {}, "tokens": {}, "_counters": {"active": 0}}

    def seed(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """`{"users": [{"userName", "active"?, "givenName"?, "familyName"?, "displayName"?, "email"?, "externalId"?, "invited"?}],
        "groups": [{"displayName", "externalId"?, "members"?: [userName]}]}`; a user's e-mail is the userName when not given."""
        check_fields(document, {"users": list, "groups": list})
        known: dict[str, type] = {name: bool if name == "active" else str for name in USER.fields}
        ids: list[str] = []
        for wanted in document.get("users", []):
            check_fields(wanted, {**known, "invited": bool}, ("userName",))
            if self.found(USER, BY_ADDRESS, wanted["userName"]):
                raise ValueError(f"{wanted['userName']} is already taken")
            fields = {name: value for name, value in wanted.items() if name != "invited"}
            user = self._new_user({"email": wanted["userName"], **fields}, self.clock.now(), "seed")
            self.control("seed", [*self._put_user(user), *self._invitation(user, "seed", wanted.get("invited", False))])
            ids.append(user["id"])
        groups = self.seeded_groups(document.get("groups", []), GROUP, USER, BY_ADDRESS)
        return {"ids": ids, "group_ids": groups}

    def error_answer(self, refusal: Refusal, call: Call) -> Answer:
        """A SCIM error, for a missing seat with a `code`; `{"code", "message"}` on the other calls."""
        if call.path.startswith("/api/"):
            return Answer(refusal.status, {"code": refusal.reason, "message": refusal.message}, dict(refusal.headers))
        return self.scim_error(refusal, call)

    # Tokens -----------------------------------------------------------------------------------------------------------

    def token_scopes(self, token: str) -> frozenset[str] | None:
        """Permissions of a token made under API Integrations."""
        held = self.tables.rows["tokens"].get(digest(token))
        return None if held is None else frozenset(held["permissions"])

    def make_token(self, permissions: Iterable[str]) -> str:
        """A new token; only its digest is kept."""
        wanted = sorted(set(permissions))
        if unknown := sorted(set(wanted) - set(PERMISSIONS)):
            raise ValueError(f"there is no permission {', '.join(unknown)}")
        token = secrets.token_urlsafe(32)
        self.control("token_made", [("tokens", digest(token), {"permissions": wanted})], permissions=wanted)
        return token

    def _control_token_made(self, call: Call) -> Answer:
        wanted = msgspec.json.decode(call.raw, type=_NewToken)
        return Answer(200, {"token": self.make_token(wanted.permissions)})

    def _control_tokens_gone(self, call: Call) -> Answer:
        self.control("tokens_revoked", [("tokens", key) for key in list(self.tables.rows["tokens"])])
        return Answer(200, {})

    def _need(self, call: Call, permission: str) -> None:
        if not self.setting("scim"):
            raise Refusal(403, "scim_disabled", "SCIM is not enabled for this organisation")
        allowed = self.setting("permissions") if FIXED in call.scopes else call.scopes
        if permission not in allowed:
            raise Refusal(403, "missing_permission", f"The token lacks the permission {permission}")

    # Logins and invitations -------------------------------------------------------------------------------------------

    def sso_login(self, email: str, given_name: str = "", family_name: str = "") -> dict[str, Any]:
        """Somebody logs in, letter case ignored: `id`, whether the account was `created` by it, and whether they got in."""
        known = self.found(USER, BY_LOGIN, email)
        if known:
            user = next((one for one in known if one["active"]), known[0])
            self.control("sso_login", [], account_id=user["id"])
            return {"id": user["id"], "created": False, "admitted": user["active"]}
        if self._seats_left() <= 0:
            return {"id": None, "created": False, "admitted": False}
        fields = {"userName": email, "email": email, "givenName": given_name or None, "familyName": family_name or None}
        user = self._new_user(fields, self.clock.now(), "sso")
        self.control("sso_login", self._put_user(user), account_id=user["id"])
        return {"id": user["id"], "created": True, "admitted": True}

    def _control_sso_login(self, call: Call) -> Answer:
        wanted = msgspec.json.decode(call.raw, type=_Login)
        return Answer(200, self.sso_login(wanted.email, wanted.givenName, wanted.familyName))

    def _invite(self, call: Call) -> Answer:
        self._need(call, "invitations:write")
        if call.idempotency_key is None:
            raise Refusal(400, "missing_field", "Send an Idempotency-Key", field="Idempotency-Key", violation=True)
        if call.raw:
            check_fields(call.json(), {})
        user = self.tables.rows["users"].get(call.params["id"])
        if user is None:
            raise Refusal(404, "unknown_user", "There is no such user")
        if user["id"] in self.tables.rows["invitations"]:
            raise Refusal(409, "already_invited", "This user has been invited")
        if not user["active"]:
            raise Refusal(422, "inactive_user", "An inactive user cannot be invited")
        changes = self._invitation(user, "api")
        self.effect(call, "invite", user["id"], user["userName"], {}, changes)
        return Answer(202, {"userId": user["id"], "status": "sent"})

    def _invitation(self, user: Mapping[str, Any], by: str, wanted: bool = True) -> list[Change]:
        record = {"userName": user["userName"], "by": by, "at": iso_time(self.clock.now())}
        return [("invitations", user["id"], record)] if wanted else []

    # SCIM -------------------------------------------------------------------------------------------------------------

    def scim_admit(self, call: Call, resource: Resource | None, *, writes: bool) -> None:
        """SCIM must be switched on and the token must hold the permission of the call."""
        table = USER.table if resource is None else resource.table
        self._need(call, f"{table}:{'write' if writes else 'read'}")

    def scim_created(self, call: Call, resource: Resource, wanted: dict[str, Any]) -> dict[str, Any]:
        """A user takes a seat and may be invited at once; a group holds only users that exist."""
        if resource is GROUP:
            self._check_group(wanted, None)
            group = self.new_record(GROUP, wanted, call.at)
            changes = self.put(GROUP, group)
            self.effect(call, "group_create", group["id"], group["displayName"], wanted, changes, sorted(wanted))
            return group
        self._check_address(wanted["userName"])
        if wanted["active"]:
            self._check_seat()
        if twins := self.found(USER, BY_LOGIN, wanted["userName"]):
            self.violation(
                "duplicate_account", f"the same person as {twins[0]['id']} in another letter case (L1)", call
            )
        user = self._new_user(wanted, call.at, "scim")
        invited = self.setting("invite_on_creation") and user["active"]
        changes = [*self._put_user(user), *self._invitation(user, "platform", invited)]
        self.effect(call, "create", user["id"], user["userName"], wanted, changes, sorted(wanted))
        return user

    def scim_changed(
        self, call: Call, resource: Resource, before: dict[str, Any], wanted: dict[str, Any]
    ) -> dict[str, Any]:
        """A user may get another address or leave and take a seat; members are whatever the operations came to."""
        after, changed = self.written(before, wanted, call.at)
        values = {name: wanted[name] for name in changed}
        if resource is GROUP:
            self._check_group(wanted, before)
            self._note_replaced_members(call, before, after)
            changes = self.put(GROUP, after, before)
            self.effect(call, "group_update", after["id"], after["displayName"], values, changes, changed)
            return after
        if after["userName"] != before["userName"]:
            self._check_address(after["userName"])
        if after["active"] and not before["active"]:
            self._check_seat()
        self.effect(call, "update", after["id"], after["userName"], values, self._put_user(after, before), changed)
        return after

    def scim_deleted(self, call: Call, resource: Resource, record: dict[str, Any]) -> None:
        """A user leaves every group and frees the seat; the users of a group stay."""
        if resource is GROUP:
            self.effect(call, "group_delete", record["id"], record["displayName"], {}, self.drop(GROUP, record))
            return
        changes = [
            *self.drop(USER, record),
            ("_counters", "active", self._active - record["active"]),
            ("invitations", record["id"]),
        ]
        for group in self.tables.rows["groups"].values():
            if record["id"] in group["members"]:
                left = {"members": [one for one in group["members"] if one != record["id"]]}
                changes.append(("groups", group["id"], self.written(group, left, call.at)[0]))
        self.effect(call, "delete", record["id"], record["userName"], {}, changes)

    def _note_replaced_members(self, call: Call, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """A list of members that came with `replace` says nothing about who left (L15): provision on demand sends a few."""
        if set(before["members"]) <= set(after["members"]):
            return
        operations: list[dict[str, Any]] = msgspec.json.decode(call.raw)["Operations"]
        if any(one["op"] == "replace" and _writes_members(one) for one in operations):
            self.violation("members_replaced", "members leave only by being removed (L15)", call)

    def _new_user(self, wanted: Mapping[str, Any], at: float, source: str) -> dict[str, Any]:
        return {**self.new_record(USER, wanted, at), "source": source}

    def _put_user(self, after: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> list[Change]:
        active = self._active + after["active"] - (before["active"] if before else 0)
        return [*self.put(USER, after, before), ("_counters", "active", active)]

    @property
    def _active(self) -> int:
        active: int = self.tables.rows["_counters"]["active"]
        return active

    def _seats_left(self) -> float:
        seats: int | None = self.setting("seats")
        return float("inf") if seats is None else seats - self._active

    def _check_seat(self) -> None:
        if self._seats_left() <= 0:
            status: int = self.setting("seat_status")
            raise Refusal(status, "no_seat", "There is no free seat", extra={"code": "no_seat"})

    def _check_address(self, address: str) -> None:
        if EMAIL.fullmatch(address) is None:
            raise Refusal(400, "invalid_value", "userName is an e-mail address", field="userName")
        if self.found(USER, BY_ADDRESS, address):
            raise Refusal(409, "uniqueness", "A user with this userName exists", field="userName")

    def _check_group(self, wanted: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
        """The name is unique as it stands; members exist, and not too many of them come and go at once."""
        renamed = before is None or before["displayName"] != wanted["displayName"]
        if renamed and self.found(GROUP, BY_NAME, wanted["displayName"]):
            raise Refusal(409, "uniqueness", "A group with this displayName exists", field="displayName")
        held = set(before["members"]) if before else set()
        moved = held ^ set(wanted["members"])
        if len(moved) > self.setting("members_per_call"):
            raise Refusal(400, "too_many", "Too many members in one call", field="members", violation=True)
        for member in wanted["members"]:
            if member not in held and member not in self.tables.rows["users"]:
                raise Refusal(400, "unknown_member", f"There is no user {member!r}", field="members")


class _Login(msgspec.Struct, forbid_unknown_fields=True):
    email: str
    givenName: str = ""
    familyName: str = ""


class _NewToken(msgspec.Struct, forbid_unknown_fields=True):
    permissions: list[str]


def _writes_members(operation: Mapping[str, Any]) -> bool:
    if "path" in operation:
        return bool(operation["path"] == "members")
    return isinstance(operation.get("value"), dict) and "members" in operation["value"]
