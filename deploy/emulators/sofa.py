"""Software602 Sofa: one synchronization takes users and groups over SCIM and turns group ids into groups and roles of its own.

The administrator's page (name, flags, maps, key, log) is known from its guide and is moved here by control calls; the SCIM
side is assumed as RFC 7644. Strict where nothing is known: remote ids match as they stand, a new key ends
the old one, and a deleted user stays in sight as a disabled one.
"""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from deploy.emulators.harness import Answer, Call, Change, Refusal, Route, Rows, Setting, check_fields, digest, iso_time
from deploy.emulators.scim_service import (
    CORE_USER,
    ENTERPRISE,
    Attribute,
    Index,
    Resource,
    ScimEmulator,
    group_resource,
)

VALIDITY_MIN_DAYS = 90
VALIDITY_MAX_DAYS = 730
DAY_S = 86_400.0
LAST_CALL_STEP_S = 1.0
LOG_LINES_MAX = 10_000
MAILS_MAX = 100_000
LEVELS = ("Warning", "Information", "Debug")
ROLES_ALERTED = ("Administrator", "Subject manager")
IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
OBJECT_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# Attributes of SCIM that Sofa takes and forgets (S24), beside those it maps.
FORGOTTEN = (
    "preferredLanguage",
    "name.formatted",
    "name.middleName",
    "nickName",
    "profileUrl",
    "userType",
    "locale",
    "timezone",
    "addresses",
    "emails",
    "phoneNumbers",
    "ims",
    "photos",
    "entitlements",
    "roles",
    "x509Certificates",
    f"{ENTERPRISE}:costCenter",
    f"{ENTERPRISE}:organization",
    f"{ENTERPRISE}:division",
)

BY_EXTERNAL_ID = Index("externalId")
BY_USER_NAME = Index("userName")
BY_NAME = Index("displayName")
USER = Resource(
    name="User",
    core=CORE_USER,
    table="users",
    key="user_name",
    attributes=(
        Attribute("userName", "user_name", required=True),
        Attribute("active", "enabled", "boolean", default=True),
        Attribute("displayName", "virtual_display_name"),
        Attribute("title", "job"),
        Attribute("name.givenName", "name"),
        Attribute("name.familyName", "surname"),
        Attribute("name.honorificPrefix", "degree_before"),
        Attribute("name.honorificSuffix", "degree_after"),
        Attribute('emails[type eq "work"].value', "notification_email"),
        Attribute('phoneNumbers[type eq "work"].value', "telephone"),
        Attribute('phoneNumbers[type eq "mobile"].value', "mobile_phone"),
        Attribute("externalId", "sso_identifier", required=True),
        Attribute(f"{ENTERPRISE}:employeeNumber", "personal_number"),
        Attribute(f"{ENTERPRISE}:department", "department"),
        Attribute(f"{ENTERPRISE}:manager", "direct_superior", "reference"),
        *(Attribute(path, form="anything") for path in FORGOTTEN),
    ),
    indexes=(BY_EXTERNAL_ID, BY_USER_NAME),
    extensions=(ENTERPRISE,),
)
GROUP = group_resource(BY_EXTERNAL_ID, BY_NAME)


class MapRow(msgspec.Struct, forbid_unknown_fields=True):
    """One row of a membership map: an Entra object id and a group or role of Sofa (S10 to S12)."""

    remote: str
    sofa: str


class Synchronization(msgspec.Struct, forbid_unknown_fields=True):
    """The four tabs of the administrator's page (S4 to S13)."""

    name: str
    identifier: str = ""
    kind: Literal["scim", "entra", "ldap"] = "scim"
    description: str = ""
    enabled: bool = True
    mail_on_failure: bool = False
    mail_to_new_users: bool = False
    mail_password_link: bool = False
    group_map: list[MapRow] = []
    role_map: list[MapRow] = []
    log_level: Literal["Warning", "Information", "Debug"] = "Information"


FIRST = Synchronization(name="Entra", identifier="entra")


class SofaEmulator(ScimEmulator):
    """State: `synchronization` (at most one), `keys`, `users`, `groups`, `sofa_groups` and `sofa_roles` as the maps make them,
    `mails`, `log`, `last_call`. The endpoint is `/scim/{identifier}`; the first one is `/scim/entra` with the fixed token as key.
    """

    name: ClassVar[str] = "sofa"
    rate_per_s: ClassVar[float] = 5.0
    scim_prefix: ClassVar[str] = "/scim/{identifier}"
    scim_resources: ClassVar[tuple[Resource, ...]] = (USER, GROUP)
    SETTINGS: ClassVar[Mapping[str, Setting]] = {
        "key_validity_days": Setting(
            VALIDITY_MAX_DAYS,
            Annotated[int, msgspec.Meta(ge=VALIDITY_MIN_DAYS, le=VALIDITY_MAX_DAYS)],
            "of the first key, counted from the first start",
        ),
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # The first key runs from now on, and from the same moment after a restart.
        self.tick()

    def routes(self) -> list[Route]:
        """SCIM is the only interface of the synchronization."""
        return self.scim_routes()

    def control_routes(self) -> list[Route]:
        """What the administrator does on Sofa's page: add, edit and delete the synchronization, generate its key."""
        return [
            Route("POST", "/__emu/synchronizations", self._control_add),
            Route("POST", "/__emu/synchronization", self._control_edit),
            Route("DELETE", "/__emu/synchronization", self._control_delete),
            Route("POST", "/__emu/generate_key", self._control_generate_key),
        ]

    def first_tables(self) -> Rows:
        """One SCIM synchronization without maps, no users."""
        return {
            **self.scim_tables(),
            "synchronization": {"current": msgspec.to_builtins(FIRST)},
            "keys": {},
            "mails": {},
            "log": {},
            "last_call": {},
            "_counters": {"mails": 0, "log": 0, "keys": 0},
        }

    def tick(self) -> None:
        """Date the first key once."""
        if not self.tables.rows["_counters"]["keys"]:
            key = _key(self.clock.now(), self.setting("key_validity_days"))
            self.control("key_dated", [("keys", "current", key), ("_counters", "keys", 1)])

    def reset(self) -> None:
        """Back to the first state, with a first key from now on."""
        super().reset()
        self.tick()

    def state(self) -> dict[str, Any]:
        """What Sofa holds, with who is in which group and role by the maps: name -> user ids."""
        shown = super().state()
        return {**shown, "sofa_groups": self.holders("group_map"), "sofa_roles": self.holders("role_map")}

    def seed(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """`{"users": [{"user_name", "sso_identifier"?, "enabled"?, ...}], "groups": [{"displayName", "externalId"?, "members"?:
        [user_name]}], "synchronization": {field: value}}`; fields of users are Sofa's own."""
        check_fields(document, {"users": list, "groups": list, "synchronization": dict})
        known: dict[str, type] = {name: bool if name == "enabled" else str for name in USER.fields}
        ids: list[str] = []
        if "synchronization" in document:
            self.edit(document["synchronization"])
        for wanted in document.get("users", []):
            check_fields(wanted, known, ("user_name",))
            self._check_free(wanted, None)
            user = self.new_record(USER, wanted, self.clock.now())
            self.control("seed", self.put(USER, user))
            ids.append(user["id"])
        groups = self.seeded_groups(document.get("groups", []), GROUP, USER, BY_USER_NAME)
        return {"ids": ids, "group_ids": groups}

    def error_answer(self, refusal: Refusal, call: Call) -> Answer:
        """A SCIM error, always."""
        return self.scim_error(refusal, call)

    # The administrator's page -----------------------------------------------------------------------------------------

    @property
    def synchronization(self) -> Synchronization | None:
        """The one that is set up; None after it was deleted."""
        held = self.tables.rows["synchronization"].get("current")
        return None if held is None else msgspec.convert(held, Synchronization)

    def add(self, wanted: Mapping[str, Any]) -> Synchronization:
        """Set one up. Raises Refusal 409 while there is one (S3), ValueError for a wrong identifier (S5)."""
        held = self.synchronization
        if held is not None:
            message = f"There is a synchronization of kind {held.kind}; no other can be added"
            raise Refusal(409, "synchronization_exists", message)
        made = msgspec.convert(wanted, Synchronization)
        made.identifier = made.identifier or _identifier_of(made.name)
        _check_identifier(made.identifier)
        # The key of the one before is worth nothing here: a new one has to be generated.
        fixed = {**self.tables.rows["_credentials"]["fixed"], "revoked": True}
        changes: list[Change] = [("synchronization", "current", msgspec.to_builtins(made))]
        self.control("synchronization_added", [*changes, ("_credentials", "fixed", fixed)])
        return made

    def edit(self, wanted: Mapping[str, Any]) -> Synchronization:
        """Change tabs of the one that is set up; its kind stays. Raises ValueError."""
        held = self.tables.rows["synchronization"].get("current")
        if held is None:
            raise ValueError("there is no synchronization")
        edited = msgspec.convert({**held, **wanted}, Synchronization)
        if edited.kind != held["kind"]:
            raise ValueError("the kind of a synchronization cannot be changed")
        _check_identifier(edited.identifier)
        changes: list[Change] = [("synchronization", "current", msgspec.to_builtins(edited))]
        self.control("synchronization_edited", changes, fields=sorted(wanted))
        return edited

    def delete(self) -> None:
        """Remove it with its settings, for good (S15); what it made stays."""
        self.control("synchronization_deleted", [("synchronization", "current"), ("keys", "current")])

    def generate_key(self, validity_days: int) -> str:
        """A new key, shown once; the one before is refused from now on (S16, S17). Raises ValueError."""
        if self.synchronization is None:
            raise ValueError("there is no synchronization")
        if not VALIDITY_MIN_DAYS <= validity_days <= VALIDITY_MAX_DAYS:
            raise ValueError(f"a key is valid for {VALIDITY_MIN_DAYS} to {VALIDITY_MAX_DAYS} days")
        access_key = secrets.token_urlsafe(32)
        fixed = {"digest": digest(access_key), "revoked": False, "effective_at": 0.0}
        key = _key(self.clock.now(), validity_days)
        self.control("key_generated", [("_credentials", "fixed", fixed), ("keys", "current", key)])
        return access_key

    def holders(self, which: Literal["group_map", "role_map"]) -> dict[str, list[str]]:
        """Who is in which group or role of Sofa: every name of a map with the ids of its users."""
        synchronization = self.synchronization
        rows = getattr(synchronization, which) if synchronization is not None else []
        held: dict[str, set[str]] = {row.sofa: set() for row in rows}
        for group in self.tables.rows["groups"].values():
            for row in rows:
                if row.remote == group["externalId"]:
                    held[row.sofa].update(group["members"])
        return {name: sorted(ids) for name, ids in sorted(held.items())}

    def _control_add(self, call: Call) -> Answer:
        return Answer(200, msgspec.to_builtins(self.add(msgspec.json.decode(call.raw, type=dict[str, Any]))))

    def _control_edit(self, call: Call) -> Answer:
        return Answer(200, msgspec.to_builtins(self.edit(msgspec.json.decode(call.raw, type=dict[str, Any]))))

    def _control_delete(self, call: Call) -> Answer:
        self.delete()
        return Answer(200, {})

    def _control_generate_key(self, call: Call) -> Answer:
        wanted = msgspec.json.decode(call.raw, type=_NewKey)
        access_key = self.generate_key(wanted.validity_days)
        synchronization = self.synchronization
        assert synchronization is not None
        endpoint_url = f"{call.base_url}/scim/{synchronization.identifier}"
        expires_at = self.tables.rows["keys"]["current"]["expires_at"]
        return Answer(200, {"access_key": access_key, "endpoint_url": endpoint_url, "expires_at": expires_at})

    # SCIM -------------------------------------------------------------------------------------------------------------

    def scim_admit(self, call: Call, resource: Resource | None, *, writes: bool) -> None:
        """The synchronization must be there, its key not expired, and it must be enabled."""
        del resource, writes
        held = self.synchronization
        if held is not None and held.kind != "scim":
            message = f"There is a synchronization of kind {held.kind}; SCIM cannot be used beside it"
            raise Refusal(409, "synchronization_exists", message)
        if held is None or held.identifier != call.params["identifier"]:
            raise Refusal(404, "unknown_endpoint", "There is no such synchronization")
        key = self.tables.rows["keys"].get("current")
        if key is None or call.at >= key["expires"]:
            raise Refusal(401, "expired_key", "The access key has expired", headers={"WWW-Authenticate": "Bearer"})
        changes = self._logged("Debug", f"{call.method} {call.path}")
        if changes or call.at - self.tables.rows["last_call"].get("at", 0.0) >= LAST_CALL_STEP_S:
            self.control("called", [("last_call", "at", call.at), *changes])
        if not held.enabled:
            raise Refusal(403, "disabled", "The synchronization is disabled")

    def scim_refused(self, call: Call, refusal: Refusal) -> None:
        """A failed write is logged and, when so configured, mailed to those who look after the system (S7)."""
        if call.method == "GET":
            return
        changes = self._logged("Warning", f"{call.method} {call.path}: {refusal.status} {refusal.message}")
        held = self.synchronization
        if held is not None and held.mail_on_failure:
            roles = self.holders("role_map")
            alerted = sorted({user_id for role in ROLES_ALERTED for user_id in roles.get(role, ())})
            changes += self._mailed([("failure", self.tables.rows["users"][user_id]) for user_id in alerted])
        self.control("failed", changes)

    def scim_created(self, call: Call, resource: Resource, wanted: dict[str, Any]) -> dict[str, Any]:
        """A new user may get mail; a group is taken whether or not a map knows it."""
        if resource is GROUP:
            self._check_group(wanted, None)
            group = self.new_record(GROUP, wanted, call.at)
            changes = [*self.put(GROUP, group), *self._group_logged(group, "created")]
            self.effect(call, "group_create", group["id"], group["displayName"], wanted, changes, sorted(wanted))
            return group
        self._check_free(wanted, None)
        self._check_superior(wanted, None)
        user = self.new_record(USER, wanted, call.at)
        held = self.synchronization
        assert held is not None
        kinds = [("welcome", held.mail_to_new_users), ("password_link", held.mail_password_link)]
        changes = [
            *self.put(USER, user),
            *self._mailed([(kind, user) for kind, wished in kinds if wished]),
            *self._logged("Information", f"user {user['id']} created"),
        ]
        self.effect(call, "create", user["id"], user["user_name"], wanted, changes, sorted(wanted))
        return user

    def scim_changed(
        self, call: Call, resource: Resource, before: dict[str, Any], wanted: dict[str, Any]
    ) -> dict[str, Any]:
        """No mail here, also when somebody comes back."""
        after, changed = self.written(before, wanted, call.at)
        values = {name: wanted[name] for name in changed}
        if resource is GROUP:
            self._check_group(wanted, before)
            changes = [*self.put(GROUP, after, before), *self._group_logged(after, "changed")]
            self.effect(call, "group_update", after["id"], after["displayName"], values, changes, changed)
            return after
        self._check_free(wanted, before)
        self._check_superior(wanted, before)
        changes = [*self.put(USER, after, before), *self._logged("Information", f"user {after['id']} changed")]
        self.effect(call, "update", after["id"], after["user_name"], values, changes, changed)
        return after

    def scim_deleted(self, call: Call, resource: Resource, record: dict[str, Any]) -> None:
        """A user is disabled and stays, for SCIM too; a group is gone."""
        if resource is GROUP:
            changes = [*self.drop(GROUP, record), *self._logged("Information", f"group {record['id']} deleted")]
            self.effect(call, "group_delete", record["id"], record["displayName"], {}, changes)
            return
        after, changed = self.written(record, {"enabled": False}, call.at)
        changes = [*self.put(USER, after, record), *self._logged("Information", f"user {after['id']} disabled")]
        self.effect(call, "delete", after["id"], after["user_name"], {}, changes, changed)

    def _check_free(self, wanted: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
        """The SSO identifier decides who somebody is, then the user name (S23)."""
        own = None if before is None else before["id"]
        external_id = wanted.get("sso_identifier")
        if external_id is not None:
            _check_object_id(external_id)
            if any(user["id"] != own for user in self.found(USER, BY_EXTERNAL_ID, external_id)):
                raise Refusal(409, "uniqueness", "A user with this externalId exists", field="externalId")
        if any(user["id"] != own for user in self.found(USER, BY_USER_NAME, wanted["user_name"])):
            raise Refusal(409, "uniqueness", "A user with this userName exists", field="userName")

    def _check_superior(self, wanted: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
        superior = wanted["direct_superior"]
        if superior is None or (before is not None and before["direct_superior"] == superior):
            return
        if superior not in self.tables.rows["users"]:
            raise Refusal(400, "unknown_manager", f"There is no user {superior!r} to be manager", field="manager")

    def _check_group(self, wanted: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
        external_id = wanted["externalId"]
        if external_id is not None:
            _check_object_id(external_id)
            own = None if before is None else before["id"]
            if any(group["id"] != own for group in self.found(GROUP, BY_EXTERNAL_ID, external_id)):
                raise Refusal(409, "uniqueness", "A group with this externalId exists", field="externalId")
        held = before["members"] if before is not None else []
        for member in wanted["members"]:
            if member not in self.tables.rows["users"] and member not in held:
                raise Refusal(400, "unknown_member", f"There is no user {member!r}", field="members")

    # Log and mails ----------------------------------------------------------------------------------------------------

    def _group_logged(self, group: Mapping[str, Any], what: str) -> list[Change]:
        held = self.synchronization
        assert held is not None
        mapped = any(row.remote == group["externalId"] for row in (*held.group_map, *held.role_map))
        return self._logged("Information", f"group {group['id']} {what}{'' if mapped else ', no mapping: no effect'}")

    def _logged(self, level: str, text: str) -> list[Change]:
        """A line of the transaction log (S13, S18) unless the level is too low; the oldest goes when there are too many."""
        held = self.synchronization
        if held is None or LEVELS.index(level) > LEVELS.index(held.log_level):
            return []
        line = {"at": iso_time(self.clock.now()), "level": level, "text": text}
        return self._numbered("log", [line], LOG_LINES_MAX)

    def _mailed(self, mails: list[tuple[str, Mapping[str, Any]]]) -> list[Change]:
        at = iso_time(self.clock.now())
        sent = [
            {
                "kind": kind,
                "user_id": user["id"],
                "to": user["notification_email"] or user["user_name"],
                "at": at,
            }
            for kind, user in mails
        ]
        return self._numbered("mails", sent, MAILS_MAX)

    def _numbered(self, table: str, records: list[dict[str, Any]], kept_max: int) -> list[Change]:
        if not records:
            return []
        last: int = self.tables.rows["_counters"][table]
        changes: list[Change] = []
        for number, record in enumerate(records, last + 1):
            changes.append((table, str(number), record))
            if number > kept_max:
                changes.append((table, str(number - kept_max)))
        return [*changes, ("_counters", table, last + len(records))]


class _NewKey(msgspec.Struct, forbid_unknown_fields=True):
    validity_days: int


def _key(at: float, validity_days: int) -> dict[str, Any]:
    """What stays visible of a key: never the key."""
    expires = at + validity_days * DAY_S
    return {
        "issued_at": iso_time(at),
        "validity_days": validity_days,
        "expires": expires,
        "expires_at": iso_time(expires),
    }


def _identifier_of(name: str) -> str:
    """The identifier that the page proposes for a name: English letters, digits and underscores (S5)."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    joined = re.sub(r"[^A-Za-z0-9]+", "_", plain).strip("_") or "sync"
    return joined if joined[0].isalpha() else f"s_{joined}"


def _check_identifier(identifier: str) -> None:
    if IDENTIFIER.fullmatch(identifier) is None:
        raise ValueError("an identifier starts with a letter and has only English letters, digits and underscores")


def _check_object_id(external_id: str) -> None:
    if OBJECT_ID.fullmatch(external_id) is None:
        message = "externalId is the Object Id of Entra (S11, S21)"
        raise Refusal(400, "not_an_object_id", message, field="externalId", violation=True)
