"""A product that speaks SCIM and nothing else, in any dialect: the other side of the connector that needs no code per product.

Its settings say which dialect: PATCH or PUT, filters, booleans as texts, pages by index or by cursor, versions that must be
named, deletion, and whether it describes itself. It takes what RFC 7643 names and one extension of its own, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from deploy.emulators.harness import Answer, Call, Refusal, Route, Rows, Setting, check_fields
from deploy.emulators.scim_service import (
    CORE_USER,
    ENTERPRISE,
    LIST,
    PAGE_MAX,
    SCIM_TYPES,
    Attribute,
    Index,
    Resource,
    ScimEmulator,
    group_resource,
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
GROUP = group_resource(BY_GROUP_NAME, BY_EXTERNAL_ID)


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
        "first_index": Setting(1, Literal[0, 1], "startIndex of the first resource"),
        "totals": Setting("right", Literal["right", "none", "page", "text"], "what totalResults says"),
        "nobody": Setting(200, Literal[200, 404], "the answer to a look-up of nobody"),
        "filter_name": Setting("userName", str, "what users are filtered by in place of userName"),
        "ids": Setting(
            "shown", Literal["shown", "location"], "resources show id, or their address only (meta.location)"
        ),
        "created": Setting(
            "resource", Literal["resource", "empty"], "a create is answered with the resource, or its address"
        ),
        "spelling": Setting(
            "exact", Literal["exact", "folded", "bare"], "names and schemas in small letters, or without schemas"
        ),
        "enterprise": Setting(ENTERPRISE, str, "what the enterprise extension is called"),
        "taken": Setting(
            "409", Literal["409", "empty", "400"], "a name that is taken: 409, 409 without body, 400 uniqueness"
        ),
        "members": Setting("filtered", Literal["filtered", "listed", "whole"], "how a PATCH takes members out"),
        "group_external_id": Setting(True, bool, "groups may carry an externalId"),
    }

    def _acted_on(
        self, resource: Resource, act: Callable[[Resource, Call], Answer], writes: bool, call: Call
    ) -> Answer:
        """The dialect's spelling of requests and answers around what the product does."""
        enterprise: str = self.setting("enterprise")
        if enterprise != ENTERPRISE and call.raw:
            if ENTERPRISE.encode() in call.raw:
                raise Refusal(400, "unknown_field", "There is no such extension", field="schemas", violation=True)
            call.raw = call.raw.replace(enterprise.encode(), ENTERPRISE.encode())
        if resource is GROUP and call.method == "PATCH":
            self._check_members_style(call)
        try:
            answer = super()._acted_on(resource, act, writes, call)
        except Refusal as refusal:
            if refusal.status == 409 and self.setting("taken") == "400":
                raise Refusal(400, "taken", refusal.message) from None
            raise
        if isinstance(answer.body, dict):
            answer.body = self._respelled(answer.body)
        if answer.status == 201 and self.setting("created") == "empty":
            answer.body = None
        return answer

    def _check_members_style(self, call: Call) -> None:
        style: str = self.setting("members")
        for operation in call.json(SCIM_TYPES).get("Operations", []):
            path = str(operation.get("path", ""))
            kind = "filtered" if path.startswith("members[") else "listed" if "value" in operation else "whole"
            if operation.get("op") == "remove" and kind != style:
                raise Refusal(400, "invalid_path", "Members do not leave like this", field="path", violation=True)

    def _respelled(self, body: dict[str, Any]) -> dict[str, Any]:
        spelling: str = self.setting("spelling")
        enterprise: str = self.setting("enterprise")

        def named(name: str) -> str:
            name = enterprise if name == ENTERPRISE else name
            return name.lower() if spelling == "folded" else name

        def one(value: Any) -> Any:
            if isinstance(value, dict):
                gone = {"schemas"} if spelling == "bare" else set()
                if self.setting("ids") == "location" and "meta" in value:
                    gone.add("id")
                return {named(name): one(inner) for name, inner in value.items() if name not in gone}
            if isinstance(value, list):
                return [one(inner) for inner in value]
            return named(value) if isinstance(value, str) and value.startswith("urn:") else value

        respelled: dict[str, Any] = one(body)
        return respelled

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
        answer = self.scim_error(refusal, call)
        if refusal.reason == "taken":
            answer.body["scimType"] = "uniqueness"
        if refusal.status == 409 and self.setting("taken") == "empty":
            answer.body = None
        return answer

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
            if wanted["externalId"] is not None and not self.setting("group_external_id"):
                raise Refusal(400, "unknown_field", "Groups have no externalId", field="externalId", violation=True)
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
        name: str = self.setting("filter_name")
        if resource is USER and name != "userName":
            if text.startswith("userName "):
                raise Refusal(400, "invalid_filter", f"Users are filtered by {name}", violation=True)
            text = text.replace(f"{name} ", "userName ", 1)
        found = super()._filtered(resource, call, text)
        if not found and self.setting("nobody") == 404:
            raise Refusal(404, "nobody", "There is nobody")
        return found

    def _scim_list(self, resource: Resource, call: Call) -> Answer:
        size: int = self.setting("page_max")
        if self.setting("paging") == "index":
            asked = call.request.query
            records = list(call.rows[resource.table].values())
            first: int = self.setting("first_index")
            if "filter" in asked or (len(records) <= size and first == 1):
                return self._told(super()._scim_list(resource, call))
            call.query(("startIndex", "count", "excludedAttributes"))
            begin = max(first, int(asked.get("startIndex", first))) - first
            page = records[begin : begin + min(size, int(asked.get("count", size)))]
            facts = {"totalResults": len(records), "startIndex": begin + first}
            return self._told(self._listed(resource, call, page, facts))
        wanted = call.query(("filter", "cursor", "count", "excludedAttributes"))
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

    def _told(self, answer: Answer) -> Answer:
        """What the dialect says of the number of all."""
        totals: str = self.setting("totals")
        if totals == "none":
            del answer.body["totalResults"]
        elif totals == "page":
            answer.body["totalResults"] = len(answer.body["Resources"])
        elif totals == "text":
            answer.body["totalResults"] = str(answer.body["totalResults"])
        return answer

    def _listed(self, resource: Resource, call: Call, page: list[dict[str, Any]], facts: Mapping[str, Any]) -> Answer:
        shown = [self._shown(resource, record, call) for record in page]
        body = {"schemas": [LIST], **facts, "itemsPerPage": len(page), "Resources": shown}
        return Answer(200, body, {}, "application/scim+json")

    def _resource_types(self, call: Call) -> Answer:
        answer = super()._resource_types(call)
        answer.body = self._respelled(answer.body)
        return answer

    def _provider(self, call: Call) -> Answer:
        answer = super()._provider(call)
        answer.body["patch"] = {"supported": self.setting("patch")}
        answer.body["filter"] = {"supported": self.setting("filter"), "maxResults": self.setting("page_max")}
        answer.body["etag"] = {"supported": self.setting("etag")}
        cursor = self.setting("paging") == "cursor"
        answer.body["pagination"] = {"cursor": cursor, "index": not cursor}
        return answer
