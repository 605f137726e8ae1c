"""A product that speaks SCIM and nothing else, in any dialect: the other side of the connector that needs no code per product.

Its settings say which dialect: PATCH or PUT, filters, booleans as texts, pages by index or by cursor, versions that must be
named, deletion, and whether it describes itself. It takes what RFC 7643 names and one extension of its own, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from deploy.emulators.harness import Answer, Call, Refusal, Route, Rows, Setting, check_fields
from deploy.emulators.scim_service import (
    CORE_GROUP,
    CORE_USER,
    ENTERPRISE,
    LIST,
    PAGE_MAX,
    SCIM_TYPES,
    Attribute,
    Index,
    Resource,
    ScimEmulator,
)

EXTENSION = "urn:example:params:scim:schemas:extension:helpdesk:2.0:User"
SHOWN_ONLY = ("id", "meta", "groups")
BY_NAME = Index("userName")
BY_EXTERNAL_ID = Index("externalId", exact=True)
BY_GROUP_NAME = Index("displayName")
USER = Resource(
    name="User",
    core=CORE_USER,
    table="users",
    key="userName",
    extensions=(ENTERPRISE, EXTENSION),
    attributes=(
        Attribute("userName", "userName", required=True),
        Attribute("externalId", "externalId"),
        Attribute("active", "active", "anything"),  # looked into by _check_active, in the form of the setting
        Attribute("displayName", "displayName"),
        Attribute("nickName", "nickName"),
        Attribute("title", "title"),
        Attribute("userType", "userType"),
        Attribute("preferredLanguage", "preferredLanguage"),
        *(Attribute(f"name.{part}", part) for part in ("givenName", "familyName", "formatted")),
        Attribute('emails[type eq "work"].value', "email"),
        Attribute('emails[type eq "home"].value', "home_email"),
        Attribute('phoneNumbers[type eq "work"].value', "phone"),
        Attribute('phoneNumbers[type eq "mobile"].value', "mobile"),
        Attribute('phoneNumbers[type eq "fax"].value', "fax"),
        Attribute("roles", "roles", "values"),
        Attribute(f"{ENTERPRISE}:employeeNumber", "employee_number"),
        Attribute(f"{ENTERPRISE}:department", "department"),
        Attribute(f"{ENTERPRISE}:manager", "manager", "reference"),
        Attribute(f"{EXTENSION}:queue", "queue"),
    ),
    indexes=(BY_NAME, BY_EXTERNAL_ID),
)
GROUP = Resource(
    name="Group",
    core=CORE_GROUP,
    table="groups",
    key="displayName",
    attributes=(
        Attribute("displayName", "displayName", required=True),
        Attribute("externalId", "externalId"),
        Attribute("members", "members", "values"),
    ),
    indexes=(BY_GROUP_NAME, BY_EXTERNAL_ID),
)


class ScimProductEmulator(ScimEmulator):
    """State: `users`, `groups`, `settings` of the dialect. Names are unique in any letter case, and external ids as they are."""

    name: ClassVar[str] = "scim"
    scim_resources: ClassVar[tuple[Resource, ...]] = (USER, GROUP)
    SETTINGS: ClassVar[Mapping[str, Setting]] = {
        "patch": Setting(True, bool, "PATCH is supported"),
        "put": Setting(True, bool, "PUT is supported"),
        "delete": Setting(True, bool, "users can be deleted"),
        "filter": Setting(True, bool, "lists can be filtered"),
        "booleans": Setting("json", Literal["json", "text"], 'true, or the text "True"'),
        "paging": Setting("index", Literal["index", "cursor"], "how a list is gone through"),
        "page_max": Setting(PAGE_MAX, Annotated[int, msgspec.Meta(ge=1)], "resources on one page at most"),
        "etag": Setting(False, bool, "a write must name the version it is meant for (If-Match)"),
        "described": Setting(True, bool, "there is a ServiceProviderConfig"),
        "groups": Setting(True, bool, "there are groups"),
        "switches_on": Setting(False, bool, "every new user is active, whatever was asked"),
        "ignores_active": Setting(False, bool, "active is answered with success and never changes"),
    }

    def routes(self) -> list[Route]:
        """The calls of RFC 7644 section 3.2, PUT included."""
        put = [
            Route("PUT", f"{self.scim_prefix}/{one.name}s/{{id}}", self._acting(one, self._scim_put, writes=True))
            for one in self.scim_resources
        ]
        return [*self.scim_routes(), *put]

    def first_tables(self) -> Rows:
        """An empty product."""
        return self.scim_tables()

    def seed(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """`{"users": [{"userName", field?...}], "groups": [{"displayName", "externalId"?, "members"?: [id]}]}`; made ids."""
        check_fields(document, {"users": list, "groups": list})
        made: dict[str, list[str]] = {"ids": [], "group_ids": []}
        for resource, name, ids in ((USER, "users", "ids"), (GROUP, "groups", "group_ids")):
            for wanted in document.get(name, []):
                check_fields(wanted, dict.fromkeys(resource.fields, object), (resource.key,))
                fields = {"active": self._boolean(True), **wanted} if resource is USER else wanted
                record = self.new_record(resource, fields, self.clock.now())
                self.control("seed", self.put(resource, record))
                made[ids].append(record["id"])
        return made

    def error_answer(self, refusal: Refusal, call: Call) -> Answer:
        """The error body of RFC 7644 section 3.12."""
        return self.scim_error(refusal, call)

    # What the product does --------------------------------------------------------------------------------------------

    def scim_admit(self, call: Call, resource: Resource | None, *, writes: bool) -> None:
        """Calls that the dialect does not have are not there."""
        if resource is GROUP and not self.setting("groups"):
            raise Refusal(404, "unknown_path", "There are no groups")
        if resource is None and not self.setting("described"):
            raise Refusal(404, "unknown_path", "There is no such address")
        if call.method in ("PATCH", "PUT") and not self.setting(call.method.lower()):
            raise Refusal(501, "not_supported", f"{call.method} is not supported")
        if call.method == "DELETE" and resource is USER and not self.setting("delete"):
            raise Refusal(405, "not_supported", "Users cannot be deleted")

    def scim_created(self, call: Call, resource: Resource, wanted: dict[str, Any]) -> dict[str, Any]:
        """Names and external ids are unique; members exist."""
        self._check(resource, wanted, None)
        if resource is USER:
            on = wanted["active"] is None or self.setting("switches_on")
            wanted = {**wanted, "active": self._boolean(True) if on else wanted["active"]}
        record = self.new_record(resource, wanted, call.at)
        op = "create" if resource is USER else "group_create"
        changes = self.put(resource, record)
        self.effect(call, op, record["id"], record[resource.key], wanted, changes, sorted(wanted))
        return record

    def scim_changed(
        self, call: Call, resource: Resource, before: dict[str, Any], wanted: dict[str, Any]
    ) -> dict[str, Any]:
        """The same rules; a version that is not the held one is refused before."""
        self._check(resource, wanted, before)
        if resource is USER:
            kept = self.setting("ignores_active") or wanted["active"] is None
            wanted = {**wanted, "active": before["active"] if kept else wanted["active"]}
        after, changed = self.written(before, wanted, call.at)
        values = {name: wanted[name] for name in changed}
        op = "update" if resource is USER else "group_update"
        self.effect(call, op, after["id"], after[resource.key], values, self.put(resource, after, before), changed)
        return after

    def scim_deleted(self, call: Call, resource: Resource, record: dict[str, Any]) -> None:
        """A user leaves every group."""
        changes = self.drop(resource, record)
        for group in self.tables.rows["groups"].values() if resource is USER else ():
            if record["id"] in group["members"]:
                left = {"members": [one for one in group["members"] if one != record["id"]]}
                changes.append(("groups", group["id"], self.written(group, left, call.at)[0]))
        op = "delete" if resource is USER else "group_delete"
        self.effect(call, op, record["id"], record[resource.key], {}, changes)

    def _check(self, resource: Resource, wanted: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
        for index in resource.indexes:
            field = resource.field_of(index.path)
            value = wanted[field]
            own = None if before is None else before["id"]
            if value and any(one["id"] != own for one in self.found(resource, index, value)):
                raise Refusal(409, "uniqueness", f"{index.path} is taken", field=index.path)
        if resource is GROUP:
            held = set() if before is None else set(before["members"])
            for member in wanted["members"]:
                if member not in held and member not in self.tables.rows["users"]:
                    raise Refusal(400, "unknown_member", "There is no such member", field="members")
        elif wanted["active"] is not None:
            active = wanted["active"]
            is_right = isinstance(active, bool) if self.setting("booleans") == "json" else active in ("True", "False")
            if not is_right:
                raise Refusal(400, "wrong_type", "active has the wrong form", field="active", violation=True)

    def _boolean(self, value: bool) -> bool | str:
        return value if self.setting("booleans") == "json" else str(value)

    # Calls ------------------------------------------------------------------------------------------------------------

    def _scim_put(self, resource: Resource, call: Call) -> Answer:
        before = self._held(resource, call, self.tables.rows)
        self._check_version(call, before)
        body = call.json(SCIM_TYPES)
        if body.get("id", before["id"]) != before["id"]:
            raise Refusal(400, "mutability", "id cannot be changed", field="id", violation=True)
        sent = {name: value for name, value in body.items() if name not in SHOWN_ONLY}
        wanted = self._shapes[resource.name].wanted(sent)
        after = self.scim_changed(call, resource, before, wanted)
        return Answer(200, self._shown(resource, after, call), {}, "application/scim+json")

    def _scim_patch(self, resource: Resource, call: Call) -> Answer:
        self._check_version(call, self._held(resource, call, self.tables.rows))
        return super()._scim_patch(resource, call)

    def _check_version(self, call: Call, held: Mapping[str, Any]) -> None:
        if not self.setting("etag"):
            return
        named = call.request.headers.get("If-Match")
        if named is None:
            raise Refusal(428, "no_version", "Name the version (If-Match)", violation=True)
        if named != f'W/"{held["version"]}"':
            raise Refusal(412, "other_version", "The resource was changed meanwhile")

    def _filtered(self, resource: Resource, call: Call, text: str) -> list[dict[str, Any]]:
        if not self.setting("filter"):
            raise Refusal(501, "not_supported", "Filters are not supported", violation=True)
        return super()._filtered(resource, call, text)

    def _scim_list(self, resource: Resource, call: Call) -> Answer:
        size: int = self.setting("page_max")
        if self.setting("paging") == "index":
            asked = call.request.query
            records = list(call.rows[resource.table].values())
            if "filter" in asked or len(records) <= size:
                return super()._scim_list(resource, call)
            call.query(("startIndex", "count"))
            begin = max(1, int(asked.get("startIndex", "1"))) - 1
            page = records[begin : begin + min(size, int(asked.get("count", size)))]
            return self._listed(resource, call, page, {"totalResults": len(records), "startIndex": begin + 1})
        wanted = call.query(("filter", "cursor", "count"))
        if "filter" in wanted:
            records = self._filtered(resource, call, wanted["filter"])
            return self._listed(resource, call, records, {"totalResults": len(records)})
        records = list(call.rows[resource.table].values())
        ids = [record["id"] for record in records]
        cursor = wanted.get("cursor", "")
        if cursor and cursor not in ids:
            raise Refusal(400, "invalid_cursor", "This is no cursor of ours", field="cursor", violation=True)
        begin = ids.index(cursor) + 1 if cursor else 0
        page = records[begin : begin + min(size, int(wanted.get("count", size)))]
        more = {"nextCursor": page[-1]["id"]} if begin + len(page) < len(records) else {}
        return self._listed(resource, call, page, {"totalResults": len(records), **more})

    def _listed(self, resource: Resource, call: Call, page: list[dict[str, Any]], facts: Mapping[str, Any]) -> Answer:
        shown = [self._shown(resource, record, call) for record in page]
        body = {"schemas": [LIST], **facts, "itemsPerPage": len(page), "Resources": shown}
        return Answer(200, body, {}, "application/scim+json")

    def _provider(self, call: Call) -> Answer:
        answer = super()._provider(call)
        answer.body["patch"] = {"supported": self.setting("patch")}
        answer.body["filter"] = {"supported": self.setting("filter"), "maxResults": self.setting("page_max")}
        answer.body["etag"] = {"supported": self.setting("etag")}
        cursor = self.setting("paging") == "cursor"
        answer.body["pagination"] = {"cursor": cursor, "index": not cursor}
        return answer
