"""SCIM as a vendor serves it: resources, filters, pages, PATCH and error bodies, once for every emulator that speaks it.

A product says with `Resource` and `Attribute` what it takes and where it keeps it; `ScimEmulator` does the reading, checking
and answering (RFC 7643, RFC 7644) and asks the product for the writes. Records are flat: one field per attribute, in the
product's words. Taken strictly: names in their exact case, `op` in lower case, booleans as JSON booleans, no attribute the
product did not name.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import msgspec

from deploy.emulators.harness import Answer, Call, Change, Emulator, Refusal, Route, Rows, check_fields, iso_time

CORE_USER = "urn:ietf:params:scim:schemas:core:2.0:User"
CORE_GROUP = "urn:ietf:params:scim:schemas:core:2.0:Group"
ENTERPRISE = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
ERROR = "urn:ietf:params:scim:api:messages:2.0:Error"
LIST = "urn:ietf:params:scim:api:messages:2.0:ListResponse"
PATCH_OP = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
PROVIDER = "urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"
RESOURCE_TYPE = "urn:ietf:params:scim:schemas:core:2.0:ResourceType"

SCIM_TYPES = ("application/scim+json", "application/json")
PAGE_MAX = 100
OPERATIONS_MAX = 1_000
FILTER = re.compile(r'\s*(\S.*?)\s+eq\s+"((?:[^"\\]|\\.)*)"\s*', re.IGNORECASE | re.DOTALL)
PLACE = re.compile(r'([A-Za-z$][\w$-]*)(?:\[(\w+) eq "((?:[^"\\]|\\.)*)"\])?(?:\.(\w+))?', re.DOTALL)
PARTS_OF_A_VALUE = {"value": object, "type": str, "primary": bool, "display": str}
PARTS_OF_A_REFERENCE = {"value": str, "type": str, "primary": bool, "display": str, "displayName": str, "$ref": str}

_SCIM_TYPE = {
    "not_json": "invalidSyntax",
    "unknown_field": "invalidSyntax",
    "wrong_case": "invalidSyntax",
    "schemas": "invalidSyntax",
    "invalid_filter": "invalidFilter",
    "invalid_path": "invalidPath",
    "no_target": "noTarget",
    "too_many": "tooMany",
}


class Attribute(msgspec.Struct, frozen=True):
    """One attribute a product takes.

    `path` is written as in PATCH: `active`, `name.givenName`, `emails[type eq "work"].value`, `urn:…:User:department`; a plain
    path beside typed ones stands for all other types. `field` is where the record keeps it; empty: accepted and forgotten. A
    `reference` holds the id of another resource, `values` a list of texts that come as `{"value"}`, `anything` is not looked
    into.
    """

    path: str
    field: str = ""
    form: Literal["text", "boolean", "reference", "values", "anything"] = "text"
    required: bool = False
    default: Any = None


class Index(msgspec.Struct, frozen=True):
    """An attribute that resources are found by; `exact` counts letter case, a filter may use it only when `filterable`."""

    path: str
    exact: bool = False
    filterable: bool = True


class Resource(msgspec.Struct, frozen=True):
    """A resource type of one product: `table` holds its records, `key` is the field that the journal calls the natural key."""

    name: str
    core: str
    table: str
    key: str
    attributes: tuple[Attribute, ...]
    indexes: tuple[Index, ...]
    extensions: tuple[str, ...] = ()

    @property
    def fields(self) -> dict[str, Any]:
        """Every kept field with its default."""
        return {one.field: _blank(one) for one in self.attributes if one.field}

    def index_table(self, index: Index) -> str:
        """Name of the table that maps values of an index to ids."""
        return f"_{self.table}_by_{index.path}{'' if index.exact else '_folded'}"

    def field_of(self, path: str) -> str:
        """Where the record keeps an attribute."""
        return next(one.field for one in self.attributes if one.path == path)


def group_resource(*indexes: Index) -> Resource:
    """Groups with a name, the id they have in Entra, and members (RFC 7643 section 4.2)."""
    return Resource(
        name="Group",
        core=CORE_GROUP,
        table="groups",
        key="displayName",
        attributes=(
            Attribute("displayName", "displayName", required=True),
            Attribute("externalId", "externalId"),
            Attribute("members", "members", "values"),
        ),
        indexes=indexes,
    )


class _Place(NamedTuple):
    """A path taken apart: `urn:…:name[by eq "chosen"].sub`; `urn` is empty for the core schema."""

    urn: str
    name: str
    by: str | None
    chosen: str | None
    sub: str | None


class _Shape:
    """How the bodies of one resource type are read and written."""

    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        self.places = [(self.place(one.path), one) for one in resource.attributes]

    # Reading bodies ---------------------------------------------------------------------------------------------------

    def wanted(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a POST body, with defaults for what was not sent. Raises Refusal for what the product does not know."""
        extensions = self.resource.extensions
        known = {"schemas": list, **dict.fromkeys(self._names(""), object), **dict.fromkeys(extensions, dict)}
        check_fields(body, known, ("schemas",))
        needed = {self.resource.core, *(urn for urn in extensions if urn in body)}
        named = {schema for schema in body["schemas"] if isinstance(schema, str)}
        if not needed <= named <= {self.resource.core, *extensions}:
            raise Refusal(400, "schemas", "schemas does not fit the body", field="schemas", violation=True)
        held = self.resource.fields
        for name, value in body.items():
            if name != "schemas":
                held = self._written(held, "replace", name, value)
        self._check_required(held)
        return held

    def patched(self, record: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a record after a PATCH, RFC 7644 section 3.5.2. One bad operation refuses all of them."""
        check_fields(body, {"schemas": list, "Operations": list}, ("schemas", "Operations"))
        if body["schemas"] != [PATCH_OP]:
            raise Refusal(400, "schemas", "schemas names PatchOp", field="schemas", violation=True)
        if not 0 < len(body["Operations"]) <= OPERATIONS_MAX:
            raise Refusal(400, "too_many", f"1 to {OPERATIONS_MAX} operations", field="Operations", violation=True)
        held = {name: record[name] for name in self.resource.fields}
        for operation in body["Operations"]:
            held = self._operated(held, operation)
        self._check_required(held, {name for name in held if held[name] != record[name]})
        return held

    def _operated(self, held: dict[str, Any], operation: Any) -> dict[str, Any]:
        if not isinstance(operation, dict):
            raise Refusal(400, "wrong_type", "An operation is an object", field="Operations", violation=True)
        check_fields(operation, {"op": str, "path": str, "value": object}, ("op",), at="Operations.")
        op, path = operation["op"], operation.get("path")
        if op not in ("add", "replace", "remove"):
            raise Refusal(400, "unknown_field", f"There is no operation {op!r}", field="op", violation=True)
        if op == "remove":
            if path is None:
                raise Refusal(400, "no_target", "remove needs a path", field="path", violation=True)
            return self._removed(held, path, operation.get("value"))
        if "value" not in operation:
            raise Refusal(400, "missing_field", "value is required", field="value", violation=True)
        if path is not None:
            return self._written(held, op, path, operation["value"])
        if not isinstance(operation["value"], dict):
            raise _wrong_type("value")
        for name, value in operation["value"].items():
            held = self._written(held, op, name, value)
        return held

    def _written(self, held: dict[str, Any], op: str, path: str, value: Any) -> dict[str, Any]:
        """`add` or `replace` at a path."""
        if path in self.resource.extensions:
            if not isinstance(value, dict):
                raise _wrong_type(path)
            for name, inner in value.items():
                held = self._written(held, op, f"{path}:{name}", inner)
            return held
        place = self.place(path)
        typed, subs, plain = self._at(place, path)
        if plain is not None and not typed and not subs:
            return {**held, **self._plain(held, op, plain, place, value)}
        if subs:
            return {**held, **self._complex(subs, place, value)}
        return {**held, **self._typed(held, op, typed, plain, place, value)}

    def _plain(
        self, held: Mapping[str, Any], op: str, attribute: Attribute, place: _Place, value: Any
    ) -> dict[str, Any]:
        if attribute.form == "anything":
            return {attribute.field: value} if attribute.field else {}
        allowed = ("value",) if attribute.form == "reference" else ()
        if place.by is not None or (place.sub is not None and place.sub not in allowed):
            raise _bad_path(place)
        taken = _taken(attribute, value)
        if attribute.form == "values" and op == "add":
            taken = list(dict.fromkeys([*held[attribute.field], *taken]))
        return {attribute.field: taken} if attribute.field else {}

    def _complex(self, subs: Mapping[str, Attribute], place: _Place, value: Any) -> dict[str, Any]:
        """`name` as a whole or one part of it; parts that are not named stay."""
        if place.by is not None:
            raise _bad_path(place)
        parts = value if place.sub is None else {place.sub: value}
        if parts is None:
            return {one.field: _blank(one) for one in subs.values() if one.field}
        if not isinstance(parts, dict):
            raise _wrong_type(place.name)
        check_fields(parts, dict.fromkeys(subs, object), at=f"{place.name}.")
        return {subs[name].field: _taken(subs[name], part) for name, part in parts.items() if subs[name].field}

    def _typed(
        self,
        held: Mapping[str, Any],
        op: str,
        typed: Mapping[str, Attribute],
        others: Attribute | None,
        place: _Place,
        value: Any,
    ) -> dict[str, Any]:
        """`emails`: all of it, or the entry of one type."""
        if place.by is None:
            if place.sub is not None:
                raise _bad_path(place)
            if value is not None and not isinstance(value, list):
                raise _wrong_type(place.name)
            found = {} if op == "add" else {one.field: _blank(one) for one in typed.values() if one.field}
            for entry in value or ():
                found.update(self._entry(typed, others, place, entry))
            return found
        if place.by != "type" or place.sub not in (None, *PARTS_OF_A_VALUE):
            raise _bad_path(place)
        if place.sub in (None, "value"):
            entry = {"value": value} if place.sub == "value" else _only(value)
            if not isinstance(entry, dict):
                raise _wrong_type(place.name)
            return self._entry(typed, others, place, {"type": place.chosen, **entry})
        return {}

    def _entry(
        self, typed: Mapping[str, Attribute], others: Attribute | None, place: _Place, entry: Any
    ) -> dict[str, Any]:
        if not isinstance(entry, dict):
            raise _wrong_type(place.name)
        kind = entry.get("type")
        attribute = typed.get(kind, others) if isinstance(kind, str) else others
        if attribute is None:
            message = f"{place.name} are of type {', '.join(typed)}, not {kind!r}"
            raise Refusal(400, "unknown_type", message, field=place.name, violation=True)
        if attribute.form == "anything":
            return {}
        check_fields(entry, PARTS_OF_A_VALUE, at=f"{place.name}.")
        return {attribute.field: _taken(attribute, entry.get("value"))} if attribute.field else {}

    def _removed(self, held: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
        """`remove`; with a list as value, as Entra sends it for members, only the named ones go."""
        if path in self.resource.extensions:
            gone = [one for place, one in self.places if place.urn == path and one.field]
            return {**held, **{one.field: _blank(one) for one in gone}}
        place = self.place(path)
        typed, subs, plain = self._at(place, path)
        if plain is not None and plain.form == "values":
            if place.by not in (None, "value") or place.sub is not None:
                raise _bad_path(place)
            if place.by is not None:
                gone_values = {_unquoted(place.chosen or "")}
            else:
                gone_values = set(held[plain.field] if value is None else _taken(plain, value))
            return {**held, plain.field: [one for one in held[plain.field] if one not in gone_values]}
        if place.by is not None and not typed and (plain is None or plain.form != "anything"):
            raise _bad_path(place)
        if typed and (place.by not in (None, "type") or place.sub not in (None, *PARTS_OF_A_VALUE)):
            raise _bad_path(place)
        chosen = {**subs, **typed}
        if typed and place.sub not in (None, "value"):
            chosen = {}
        elif place.by is not None:
            chosen = {name: one for name, one in chosen.items() if name == place.chosen}
        elif place.sub is not None and subs:
            check_fields({place.sub: None}, dict.fromkeys(subs, object), at=f"{place.name}.")
            chosen = {place.sub: subs[place.sub]}
        elif plain is not None:
            chosen[place.name] = plain
        return {**held, **{one.field: _blank(one) for one in chosen.values() if one.field}}

    def _at(self, place: _Place, path: str) -> tuple[dict[str, Attribute], dict[str, Attribute], Attribute | None]:
        """What the product knows under a name: by type, by sub-attribute, and as it stands."""
        typed: dict[str, Attribute] = {}
        subs: dict[str, Attribute] = {}
        plain: Attribute | None = None
        known = []
        for known_place, attribute in self.places:
            known.append(f"{known_place.urn}:{known_place.name}" if known_place.urn else known_place.name)
            if (known_place.urn, known_place.name) != (place.urn, place.name):
                continue
            if known_place.chosen is not None:
                typed[known_place.chosen] = attribute
            elif known_place.sub is not None:
                subs[known_place.sub] = attribute
            else:
                plain = attribute
        if not typed and not subs and plain is None:
            name = f"{place.urn}:{place.name}" if place.urn else place.name
            check_fields({name: None}, dict.fromkeys([*known, *self.resource.extensions], object))
            raise Refusal(400, "invalid_path", f"There is no attribute {path!r}", field=path, violation=True)
        return typed, subs, plain

    def _names(self, urn: str) -> list[str]:
        return [place.name for place, _ in self.places if place.urn == urn]

    def _check_required(self, held: Mapping[str, Any], only: set[str] | None = None) -> None:
        for one in self.resource.attributes:
            if not one.required or (only is not None and one.field not in only):
                continue
            value = held[one.field]
            if value is None or (isinstance(value, str) and not value.strip()):
                raise Refusal(400, "missing_field", f"{one.path} is required", field=one.path, violation=True)

    def place(self, path: str) -> _Place:
        """Take a path apart. Raises Refusal when it is none."""
        urn = next((urn for urn in self.resource.extensions if path.startswith(f"{urn}:")), "")
        if not urn and path.startswith(f"{self.resource.core}:"):
            path = path.removeprefix(f"{self.resource.core}:")
        parts = PLACE.fullmatch(path[len(urn) + 1 :] if urn else path)
        if parts is None:
            raise Refusal(400, "invalid_path", f"{path!r} is no path of ours", field="path", violation=True)
        return _Place(urn, *parts.groups())

    # Writing bodies ---------------------------------------------------------------------------------------------------

    def shown(self, record: Mapping[str, Any], location: str) -> dict[str, Any]:
        """The record as a SCIM resource; what has no value is left out (RFC 7643 section 2.5)."""
        resource: dict[str, Any] = {"schemas": [self.resource.core], "id": record["id"]}
        for place, attribute in self.places:
            value = record[attribute.field] if attribute.field else None
            if value is None or value == []:
                continue
            target = resource
            if place.urn:
                if place.urn not in resource:
                    resource["schemas"].append(place.urn)
                target = resource.setdefault(place.urn, {})
            if place.chosen is not None:
                target.setdefault(place.name, []).append({"type": place.chosen, "value": value})
            elif place.sub is not None:
                target.setdefault(place.name, {})[place.sub] = value
            elif attribute.form == "values":
                target[place.name] = [{"value": one} for one in value]
            else:
                target[place.name] = {"value": value} if attribute.form == "reference" else value
        resource["meta"] = {
            "resourceType": self.resource.name,
            "created": record["created"],
            "lastModified": record["lastModified"],
            "location": location,
            "version": f'W/"{record["version"]}"',
        }
        return resource


class ScimEmulator(Emulator):
    """An emulator whose product speaks SCIM below `scim_prefix`, which may hold `{names}` like any route.

    A subclass adds `scim_routes()` to its routes and `scim_tables()` to its first tables, answers refusals of these calls with
    `scim_error`, and does the writes in `scim_created`, `scim_changed` and `scim_deleted`.
    """

    scim_prefix: ClassVar[str] = "/scim/v2"
    scim_resources: ClassVar[tuple[Resource, ...]] = ()

    def __init__(self, **options: Any) -> None:
        self._shapes = {resource.name: _Shape(resource) for resource in self.scim_resources}
        super().__init__(**options)

    # What a subclass says ---------------------------------------------------------------------------------------------

    def scim_admit(self, call: Call, resource: Resource | None, *, writes: bool) -> None:
        """Raise Refusal when this call may not be made at all; `resource` is None for the service's description of itself."""

    def scim_created(self, call: Call, resource: Resource, wanted: dict[str, Any]) -> dict[str, Any]:
        """Make a record of these fields, through `effect`, and return it."""
        raise NotImplementedError

    def scim_changed(
        self, call: Call, resource: Resource, before: dict[str, Any], wanted: dict[str, Any]
    ) -> dict[str, Any]:
        """Give a record these fields, through `effect`, and return it."""
        raise NotImplementedError

    def scim_deleted(self, call: Call, resource: Resource, record: dict[str, Any]) -> None:
        """Do what the product does on DELETE, through `effect`."""
        raise NotImplementedError

    def scim_refused(self, call: Call, refusal: Refusal) -> None:
        """A call that was admitted was refused; a product may keep a log."""

    # For subclasses ---------------------------------------------------------------------------------------------------

    def scim_routes(self) -> list[Route]:
        """GET, POST, PATCH and DELETE of every resource type, and the service's description of itself."""
        routes = [
            Route("GET", f"{self.scim_prefix}/ServiceProviderConfig", self._described(self._provider)),
            Route("GET", f"{self.scim_prefix}/ResourceTypes", self._described(self._resource_types)),
        ]
        for resource in self.scim_resources:
            root = f"{self.scim_prefix}/{resource.name}s"
            routes += [
                Route("GET", root, self._acting(resource, self._scim_list, writes=False)),
                Route("POST", root, self._acting(resource, self._scim_create, writes=True)),
                Route("GET", f"{root}/{{id}}", self._acting(resource, self._scim_get, writes=False)),
                Route("PATCH", f"{root}/{{id}}", self._acting(resource, self._scim_patch, writes=True)),
                Route("DELETE", f"{root}/{{id}}", self._acting(resource, self._scim_delete, writes=True)),
            ]
        return routes

    def scim_tables(self) -> Rows:
        """Empty tables of records, and of indexes: value -> ids."""
        tables: Rows = {}
        for resource in self.scim_resources:
            tables[resource.table] = {}
            tables.update({resource.index_table(index): {} for index in resource.indexes})
        return tables

    def scim_error(self, refusal: Refusal, call: Call) -> Answer:
        """The error body of RFC 7644 section 3.12; `extra` is added to it."""
        body = {"schemas": [ERROR], "status": str(refusal.status), "detail": refusal.message, **refusal.extra}
        if refusal.status == 400:
            scim_type = _SCIM_TYPE.get(refusal.reason, "invalidValue")
            if call.method == "PATCH" and refusal.reason in ("unknown_field", "wrong_case"):
                scim_type = "invalidPath"
            body["scimType"] = scim_type
        elif refusal.status == 409:
            body["scimType"] = "uniqueness"
        return Answer(refusal.status, body, dict(refusal.headers), "application/scim+json")

    def new_record(self, resource: Resource, wanted: Mapping[str, Any], at: float) -> dict[str, Any]:
        """A record with an id and stamps; not stored yet."""
        moment = iso_time(at)
        stamps = {"created": moment, "lastModified": moment, "version": 1}
        return {"id": self.new_id(), **resource.fields, **wanted, **stamps}

    def new_id(self) -> str:
        """An id as the product gives them out."""
        return str(uuid.uuid4())

    def put(
        self, resource: Resource, after: Mapping[str, Any], before: Mapping[str, Any] | None = None
    ) -> list[Change]:
        """Changes that store a record and keep the indexes right."""
        return [(resource.table, after["id"], after), *self._reindexed(resource, after["id"], before, after)]

    def drop(self, resource: Resource, record: Mapping[str, Any]) -> list[Change]:
        """Changes that remove a record."""
        return [(resource.table, record["id"]), *self._reindexed(resource, record["id"], record, None)]

    def found(self, resource: Resource, index: Index, value: str, rows: Rows | None = None) -> list[dict[str, Any]]:
        """Records whose indexed attribute equals the value, oldest first."""
        held = self.tables.rows if rows is None else rows
        key = value if index.exact else value.casefold()
        ids = held[resource.index_table(index)].get(key, ())
        return [held[resource.table][one] for one in ids if one in held[resource.table]]

    def seeded_groups(
        self, groups: Sequence[Mapping[str, Any]], group: Resource, user: Resource, index: Index
    ) -> list[str]:
        """Store groups of a seed, whose members are named by an index of users; their ids. Raises ValueError for a stranger."""
        ids: list[str] = []
        for wanted in groups:
            check_fields(wanted, {"displayName": str, "externalId": str, "members": list}, ("displayName",))
            members = []
            for name in wanted.get("members", []):
                held = self.found(user, index, name)
                if not held:
                    raise ValueError(f"there is no user {name}")
                members.append(held[0]["id"])
            record = self.new_record(group, {**wanted, "members": members}, self.clock.now())
            self.control("seed", self.put(group, record))
            ids.append(record["id"])
        return ids

    def written(
        self, before: Mapping[str, Any], wanted: Mapping[str, Any], at: float
    ) -> tuple[dict[str, Any], list[str]]:
        """A record with new fields, stamped when something is different, and the names of what is."""
        changed = [name for name, value in wanted.items() if before.get(name) != value]
        after = {**before, **wanted}
        if changed:
            after.update(lastModified=iso_time(at), version=before["version"] + 1)
        return after, changed

    def _reindexed(
        self,
        resource: Resource,
        record_id: str,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
    ) -> Iterator[Change]:
        for index in resource.indexes:
            field, table = resource.field_of(index.path), resource.index_table(index)
            old, new = (
                None if record is None or record[field] is None else str(record[field]) for record in (before, after)
            )
            if not index.exact:
                old, new = (None if value is None else value.casefold() for value in (old, new))
            if old == new:
                continue
            if old is not None:
                left = [one for one in self.tables.rows[table].get(old, ()) if one != record_id]
                yield (table, old, left) if left else (table, old)
            if new is not None:
                yield table, new, [*self.tables.rows[table].get(new, ()), record_id]

    # Calls ------------------------------------------------------------------------------------------------------------

    def _acting(
        self, resource: Resource, act: Callable[[Resource, Call], Answer], *, writes: bool
    ) -> Callable[[Call], Answer]:
        return partial(self._acted_on, resource, act, writes)

    def _acted_on(
        self, resource: Resource, act: Callable[[Resource, Call], Answer], writes: bool, call: Call
    ) -> Answer:
        self.scim_admit(call, resource, writes=writes)
        try:
            return act(resource, call)
        except Refusal as refusal:
            self.scim_refused(call, refusal)
            raise

    def _described(self, answer: Callable[[Call], Answer]) -> Callable[[Call], Answer]:
        def described(call: Call) -> Answer:
            self.scim_admit(call, None, writes=False)
            return answer(call)

        return described

    def _scim_list(self, resource: Resource, call: Call) -> Answer:
        wanted = call.query(("filter", "startIndex", "count", "attributes", "excludedAttributes"))
        if "filter" in wanted:
            records = self._filtered(resource, call, wanted["filter"])
        else:
            records = list(call.rows[resource.table].values())
        start = max(1, _whole(wanted.get("startIndex", "1"), "startIndex"))
        count = min(PAGE_MAX, max(0, _whole(wanted.get("count", str(PAGE_MAX)), "count")))
        page = records[start - 1 : start - 1 + count]
        body = {
            "schemas": [LIST],
            "totalResults": len(records),
            "startIndex": start,
            "itemsPerPage": len(page),
            "Resources": [_trimmed(self._shown(resource, record, call), wanted) for record in page],
        }
        return _scim(200, body)

    def _filtered(self, resource: Resource, call: Call, text: str) -> list[dict[str, Any]]:
        parts = FILTER.fullmatch(text)
        if parts is None:
            raise Refusal(400, "invalid_filter", 'Only attribute eq "value" is supported')
        name = parts[1].casefold()
        for index in resource.indexes:
            if index.filterable and index.path.casefold() == name:
                return self.found(resource, index, _unquoted(parts[2]), call.rows)
        raise Refusal(400, "invalid_filter", f"No filter on {parts[1]}")

    def _scim_get(self, resource: Resource, call: Call) -> Answer:
        wanted = call.query(("attributes", "excludedAttributes"))
        return _scim(200, _trimmed(self._shown(resource, self._held(resource, call, call.rows), call), wanted))

    def _scim_create(self, resource: Resource, call: Call) -> Answer:
        wanted = self._shapes[resource.name].wanted(call.json(SCIM_TYPES))
        shown = self._shown(resource, self.scim_created(call, resource, wanted), call)
        return _scim(201, shown, {"Location": shown["meta"]["location"]})

    def _scim_patch(self, resource: Resource, call: Call) -> Answer:
        before = self._held(resource, call, self.tables.rows)
        wanted = self._shapes[resource.name].patched(before, call.json(SCIM_TYPES))
        return _scim(200, self._shown(resource, self.scim_changed(call, resource, before, wanted), call))

    def _scim_delete(self, resource: Resource, call: Call) -> Answer:
        self.scim_deleted(call, resource, self._held(resource, call, self.tables.rows))
        return Answer(204)

    def _held(self, resource: Resource, call: Call, rows: Rows) -> dict[str, Any]:
        record: dict[str, Any] | None = rows[resource.table].get(call.params["id"])
        if record is None:
            raise Refusal(404, f"unknown_{resource.name.lower()}", f"There is no such {resource.name}")
        return record

    def _shown(self, resource: Resource, record: Mapping[str, Any], call: Call) -> dict[str, Any]:
        root = f"{call.base_url}{self.scim_prefix.format(**call.params)}"
        return self._shapes[resource.name].shown(record, f"{root}/{resource.name}s/{record['id']}")

    def _provider(self, call: Call) -> Answer:
        call.query(())
        said = {
            "schemas": [PROVIDER],
            "patch": {"supported": True},
            "bulk": {"supported": False, "maxOperations": 0, "maxPayloadSize": 0},
            "filter": {"supported": True, "maxResults": PAGE_MAX},
            "changePassword": {"supported": False},
            "sort": {"supported": False},
            "etag": {"supported": False},
            "authenticationSchemes": [
                {"type": "oauthbearertoken", "name": "OAuth Bearer Token", "description": "A key of the product"}
            ],
        }
        return _scim(200, said)

    def _resource_types(self, call: Call) -> Answer:
        call.query(())
        types = [
            {
                "schemas": [RESOURCE_TYPE],
                "id": resource.name,
                "name": resource.name,
                "endpoint": f"/{resource.name}s",
                "schema": resource.core,
                "schemaExtensions": [{"schema": urn, "required": False} for urn in resource.extensions],
            }
            for resource in self.scim_resources
        ]
        total = len(types)
        body = {"schemas": [LIST], "totalResults": total, "startIndex": 1, "itemsPerPage": total, "Resources": types}
        return _scim(200, body)


def _scim(status: int, body: Any, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, body, headers or {}, "application/scim+json")


def _blank(attribute: Attribute) -> Any:
    return [] if attribute.form == "values" else attribute.default


def _taken(attribute: Attribute, value: Any) -> Any:
    """The value as the record keeps it; null is the same as no value (RFC 7643 section 2.5)."""
    if value is None:
        return _blank(attribute)
    if attribute.form == "reference" and isinstance(value, dict):
        check_fields(value, PARTS_OF_A_REFERENCE, ("value",), at=f"{attribute.path}.")
        return value["value"]
    if attribute.form == "values":
        if not isinstance(value, list):
            raise _wrong_type(attribute.path)
        for one in value:
            if not isinstance(one, dict):
                raise _wrong_type(attribute.path)
            check_fields(one, PARTS_OF_A_REFERENCE, ("value",), at=f"{attribute.path}.")
        return list(dict.fromkeys(one["value"] for one in value))
    if attribute.form != "anything" and not isinstance(value, bool if attribute.form == "boolean" else str):
        raise _wrong_type(attribute.path)
    return value


def _only(value: Any) -> Any:
    """`emails[type eq "work"]` takes one entry, also when it comes as a list."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _unquoted(text: str) -> str:
    try:
        return msgspec.json.decode(f'"{text}"', type=str)
    except msgspec.DecodeError:
        raise Refusal(400, "invalid_filter", "The value is not a JSON string") from None


def _trimmed(resource: dict[str, Any], wanted: Mapping[str, str]) -> dict[str, Any]:
    """`attributes` and `excludedAttributes` of RFC 7644 section 3.9, for whole attributes."""
    always = ("schemas", "id", "meta")
    if "attributes" in wanted:
        kept = wanted["attributes"].split(",")
        return {name: value for name, value in resource.items() if name in kept or name in always}
    gone = wanted.get("excludedAttributes", "").split(",")
    return {name: value for name, value in resource.items() if name not in gone or name in always}


def _whole(text: str, name: str) -> int:
    if re.fullmatch(r"-?[0-9]{1,9}", text) is None:
        raise Refusal(400, "invalid_value", f"{name} is a whole number", field=name, violation=True)
    return int(text)


def _wrong_type(name: str) -> Refusal:
    return Refusal(400, "wrong_type", f"{name!r} has the wrong JSON type", field=name, violation=True)


def _bad_path(place: _Place) -> Refusal:
    return Refusal(400, "invalid_path", f"{place.name!r} has no such part", field="path", violation=True)
