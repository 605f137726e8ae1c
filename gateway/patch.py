"""What a POST, PUT or PATCH makes of a document: pure functions from wire shapes to the complete wished document.

PATCH follows RFC 7644 section 3.5.2 and both dialects of Entra, told apart by nothing: each shape is understood wherever it
appears. Known names get their canonical spelling, `active` becomes a boolean and `manager` an object with `value`; every other
value is stored as it was sent, because Entra compares what it reads with what it wrote. Unset is absent, never null: an empty
string, a null, an empty list and `remove` all clear, and clearing what is not there is harmless.

Groups: memberships are rows of their own and may be many, so a document has no members here; member operations come back as
an ordered list of differences.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

import msgspec

from gateway.attributes import (
    CORE_SCHEMAS,
    MICROSOFT_GROUP_SCHEMA,
    REQUIRED,
    AttributeRule,
    Kind,
    find_key,
    fold_name,
    fold_value,
    resolve_name,
)
from gateway.filters import AttributePath, Comparison, Or, entry_of, evaluate, names_of, parse_path
from gateway.messages import (
    DEFAULT_LIMITS,
    PATCH_OP,
    Limits,
    invalid_path,
    invalid_syntax,
    invalid_value,
    mutability,
    no_target,
    parse_bool,
    shown,
    too_large,
)

Op = Literal["add", "replace", "remove"]

_OPS: dict[str, Op] = {"add": "add", "replace": "replace", "remove": "remove"}
_CHECK_MAPPING = "Check this attribute in the provisioning mapping"
_DESCRIBING = frozenset(("type", "primary"))
"""Sub-attributes that say something about an entry; an entry that was cleared down to these is no entry any more."""
_IGNORED_KEYS = frozenset((fold_name(MICROSOFT_GROUP_SCHEMA),))


class MemberChange(msgspec.Struct, frozen=True):
    """One step for the members of a group, in the order of the request.

    Args:
        op: `add` and `remove` name the members concerned; `replace` names all there shall be.
        ids: SCIM ids as sent, without duplicates; empty only for `replace`, which then removes everybody.
    """

    op: Op
    ids: tuple[str, ...]


class PatchResult(msgspec.Struct, frozen=True):
    """What a PATCH came to.

    Args:
        document: the complete wished document; the one passed in is untouched.
        changed: attributes that differ from before, canonical: `title`, `name.familyName`, `emails`, `urn:…:User:department`.
            Empty when the PATCH asked for what already was. Never names `members`.
        members: for groups, the member operations in order.
    """

    document: dict[str, Any]
    changed: frozenset[str]
    members: tuple[MemberChange, ...] = ()


def apply_patch(
    document: dict[str, Any],
    body: dict[str, Any],
    *,
    kind: Kind,
    limits: Limits = DEFAULT_LIMITS,
    resource_id: str | None = None,
) -> PatchResult:
    """Apply the operations of a PatchOp message in order; all of them or none (RFC 7644 section 3.5.2).

    Args:
        document: the document as SCIM shows it, canonical names, without members.
        body: the decoded message, see `decode_body`.
        kind: decides the attributes.
        limits: number of operations, members and entries.
        resource_id: our id; None takes `id` of the document, if it is there. An operation that repeats it is harmless.

    Raises:
        ScimError: 400 `invalidSyntax`, `invalidPath`, `invalidValue`, `mutability` or `noTarget`; 413 when the document would
            become larger than a body may be.
    """
    operations = _operations(body, limits)
    if resource_id is None and isinstance(document.get("id"), str):
        resource_id = document["id"]
    draft = _Draft(_copied(document), kind, limits, resource_id)
    for number, operation in enumerate(operations):
        op, path, has_value, value = _operation(operation, number)
        draft.apply(op, path, has_value, value, number)
    after = draft.finished()
    return PatchResult(after, changed_attributes(document, after), draft.members)


def normalize_create(body: dict[str, Any], kind: Kind, *, limits: Limits = DEFAULT_LIMITS) -> dict[str, Any]:
    """The document a POST or PUT asks for (RFC 7644 sections 3.3 and 3.5.1).

    Names become canonical, nulls and empty values are left out, `schemas`, `id` and `meta` are dropped, and so is what no client
    may set (`groups`) or we never keep (`password`). Enterprise attributes on the top level, where Entra's own samples have
    them, move into the extension unless it has them already. For a group `members` is a list of `{"value": id}`.

    Raises:
        ScimError: 400 `invalidValue` for a missing or blank required attribute or a wrong type; 400 `invalidSyntax` when one
            attribute is given in two spellings or `schemas` is another resource's.
    """
    _check_schemas(body, kind)
    draft = _Draft({}, kind, limits, None)
    draft.create(body)
    required = REQUIRED[kind]
    if not draft.document.get(required):
        raise invalid_value(required, "is required and was not sent", "Map it to an attribute that every object has")
    return draft.finished()


def changed_attributes(before: dict[str, Any], after: dict[str, Any]) -> frozenset[str]:
    """Canonical names of the attributes in which two documents differ; parts of complex attributes are named singly."""
    changed: set[str] = set()
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if _identical(old, new):
            continue
        if isinstance(old or new, dict) and isinstance(new or old, dict):
            joint = ":" if ":" in key else "."
            old, new = old or {}, new or {}
            parts = [part for part in old.keys() | new.keys() if not _identical(old.get(part), new.get(part))]
            changed.update(f"{key}{joint}{part}" for part in parts)
        else:
            changed.add(key)
    return frozenset(changed)


def member_ids(value: Any) -> tuple[str, ...]:
    """The member ids in a value of `members`: a list, one object, or a bare id; without duplicates, in order.

    Raises:
        ScimError: 400 `invalidValue`.
    """
    if value is None:
        return ()
    ids: dict[str, None] = {}
    for item in value if isinstance(value, list) else [value]:
        found = item
        if isinstance(item, dict):
            key = find_key(item, "value")
            found = item[key] if key is not None else None
        if not isinstance(found, str) or not found:
            raise invalid_value(
                "members", "has an entry without an id", 'Send each member as {"value": "<id of the user or group>"}'
            )
        ids[found] = None
    return tuple(ids)


# --- reading the message ---------------------------------------------------------------------------------------------


def _operations(body: dict[str, Any], limits: Limits) -> list[Any]:
    key = find_key(body, "Operations")
    operations = body[key] if key is not None else None
    if not isinstance(operations, list) or not operations:
        raise invalid_syntax("The PATCH body has no list of Operations", "Send at least one operation")
    if len(operations) > limits.operations_max:
        raise invalid_syntax(
            f"The PATCH body has more than {limits.operations_max:,} operations", "Send them in several requests"
        )
    schemas_key = find_key(body, "schemas")
    if schemas_key is not None and fold_name(PATCH_OP) not in _folded_schemas(body[schemas_key]):
        raise invalid_syntax("schemas does not name the PATCH message", f"Send {PATCH_OP}")
    return operations


def _operation(operation: Any, number: int) -> tuple[Op, str, bool, Any]:
    """One operation as (op, path or "", whether there is a value, value)."""
    where = f"Operations[{number}]"
    if not isinstance(operation, dict):
        raise invalid_syntax(f"{where} is not an object", "Send op, path and value")
    folded = {fold_name(key): value for key, value in operation.items()}
    if len(folded) != len(operation):
        raise invalid_syntax(f"{where} gives a key in two spellings", "Send op, path and value once")
    name = folded.get("op")
    op = _OPS.get(name.lower()) if isinstance(name, str) else None
    if op is None:
        given = f"{where}.op is {shown(name)}" if isinstance(name, str) else f"{where} has no op"
        raise invalid_syntax(given, "Use add, replace or remove")
    path = folded.get("path")
    if path is None:
        path = ""
    if not isinstance(path, str):
        raise invalid_path(where, "is not text", "Name an attribute")
    has_value = "value" in folded
    if not has_value and op != "remove":
        raise invalid_value(
            path.partition("[")[0] or where, f"has no value to {op}", "Send a value, or null to clear the attribute"
        )
    return op, path.strip(), has_value, folded.get("value")


def _folded_schemas(schemas: Any) -> set[str]:
    listed = [schemas] if isinstance(schemas, str) else schemas
    if not isinstance(listed, list) or not all(isinstance(schema, str) for schema in listed):
        raise invalid_syntax("schemas is not a list of URNs", "Send the URNs of the message or resource")
    return {fold_name(schema) for schema in listed}


def _check_schemas(body: dict[str, Any], kind: Kind) -> None:
    key = find_key(body, "schemas")
    if key is None or body[key] is None:
        return
    folded = _folded_schemas(body[key])
    if fold_name(CORE_SCHEMAS[kind]) in folded:
        return
    for other, schema in CORE_SCHEMAS.items():
        if other != kind and fold_name(schema) in folded:
            raise invalid_syntax(
                f"schemas names a {other}, but this address takes a {kind}", "Send it to the other address"
            )


# --- the document being written --------------------------------------------------------------------------------------


@lru_cache(maxsize=2_048)
def _key_path(key: str, kind: Kind) -> AttributePath | None:
    """A key of a resource or path-less value as a path; None when it is no attribute name at all."""
    try:
        name = resolve_name(key, kind)
    except ValueError:
        return None
    return AttributePath(name.container, name.attribute, name.sub, None, name.rule, name.sub_rule, name.certain)


class _Draft:
    """A private copy of a document, and the ways a request may change it."""

    def __init__(self, document: dict[str, Any], kind: Kind, limits: Limits, resource_id: str | None) -> None:
        self.document = document
        self.kind = kind
        self.limits = limits
        self.resource_id = resource_id
        self._member_steps: list[tuple[Op, dict[str, None]]] = []
        self._members_named = 0
        self.visited = 0
        self.creating = False

    # entry points

    def create(self, body: dict[str, Any]) -> None:
        """Take a whole resource."""
        self.creating = True
        misplaced: list[tuple[AttributePath, Any]] = []
        seen: set[tuple[str, str, str]] = set()
        for key, value in body.items():
            path = self._path_of_key(key, value)
            if path is None:
                self._keep_unknown_key(key, value)
                continue
            place = (fold_name(path.container), fold_name(path.attribute), fold_name(path.sub))
            if ":" not in key and path.container:
                misplaced.append((path, value))
                place = ("top level", *place[1:])
            else:
                self._write("replace", path, value, with_path=False)
            self._once(seen, place, path)
        for path, value in misplaced:
            if find_key(self.document.get(path.container, {}), path.attribute) is None:
                self._write("replace", path, value, with_path=False)

    def apply(self, op: Op, text: str, has_value: bool, value: Any, number: int) -> None:
        """Take one operation of a PATCH."""
        if text:
            path = parse_path(text, self.kind, limits=self.limits)
            path = self._certain(path, text, None if op == "remove" else value)
            if op == "remove":
                self._remove(path, text, value if has_value else None)
            else:
                self._write(op, path, value, with_path=True)
            return
        if op == "remove":
            raise no_target(f"Operations[{number}]", "removes without a path", "Name the attribute in path")
        if not isinstance(value, dict):
            raise invalid_value(
                f"Operations[{number}].value",
                f"is {_word(value)} without a path",
                "Send an object of attributes, or a path",
            )
        self._write_all(op, value)

    def finished(self) -> dict[str, Any]:
        """The document without empty extensions, within its size.

        Raises:
            ScimError: 413.
        """
        for key in [key for key, value in self.document.items() if value == {}]:
            del self.document[key]
        if len(msgspec.json.encode(self.document)) > self.limits.body_bytes_max and not self.creating:
            raise too_large(f"The {self.kind.lower()} after this change", self.limits.body_bytes_max)
        return self.document

    # keys of objects

    def _write_all(self, op: Op, values: dict[str, Any]) -> None:
        """A path-less value: every key is a name, a dotted name, a URN or a path of its own."""
        seen: set[tuple[str, str, str]] = set()
        for key, value in values.items():
            path = self._path_of_key(key, value)
            if path is None and "[" in key:
                path = parse_path(key, self.kind, limits=self.limits)
            if path is None:
                self._keep_unknown_key(key, value)
                continue
            if path.where is None:
                self._once(seen, (fold_name(path.container), fold_name(path.attribute), fold_name(path.sub)), path)
            self._write(op, path, value, with_path=False)

    def _path_of_key(self, key: str, value: Any) -> AttributePath | None:
        path = _key_path(key, self.kind)
        return None if path is None else self._certain(path, key, value)

    def _certain(self, path: AttributePath, text: str, value: Any) -> AttributePath:
        """`urn:x:y` is an extension when it holds an object or is cleared as one, and otherwise the attribute y of `urn:x`."""
        if path.certain or path.where is not None:
            return path
        if isinstance(value, dict) or (_clears(value) and find_key(self.document, text) is not None):
            return AttributePath(text, "")
        return path

    def _keep_unknown_key(self, key: str, value: Any) -> None:
        if fold_name(key) in _IGNORED_KEYS:
            return
        held = find_key(self.document, key) or key
        kept = _stripped(value)
        if _clears(kept):
            self.document.pop(held, None)
        else:
            self.document[held] = kept

    def _once(self, seen: set[tuple[str, str, str]], place: tuple[str, str, str], path: AttributePath) -> None:
        if place in seen:
            raise invalid_syntax(f"{path.name} is given in two spellings", "Send every attribute once")
        seen.add(place)

    # one attribute

    def _write(self, op: Op, path: AttributePath, value: Any, *, with_path: bool) -> None:
        rule = path.rule
        if not path.attribute:
            self._write_schema(op, path, value)
        elif rule is None:
            self._write_unknown(op, path, value)
        elif rule.access != "readWrite":
            self._refuse_protected(path, rule, value, with_path=with_path)
        elif rule.name == "members":
            self._write_members(op, path, value)
        elif rule.name == "manager":
            self._write_manager(path, value)
        elif rule.multi:
            self._write_multi(op, path, rule, value)
        elif path.where is not None:
            raise invalid_path(
                path.name, "has a filter, but the attribute has one value only", "Leave the brackets out"
            )
        elif rule.type == "complex":
            self._write_complex(path, rule, value)
        else:
            self._write_simple(path, rule, value)

    def _remove(self, path: AttributePath, text: str, value: Any) -> None:
        rule = path.rule
        if not path.attribute:
            if not path.container:
                raise invalid_path(text, "names the whole resource", "Name the attribute to remove")
            self.document.pop(find_key(self.document, path.container) or "", None)
        elif rule is not None and rule.access == "readOnly":
            raise mutability(path.name, "is read-only and cannot be removed", "Take it out of the mapping")
        elif rule is not None and rule.name == "members":
            self._remove_members(path, value)
        elif not path.container and path.attribute == REQUIRED[self.kind]:
            raise mutability(path.name, "is required and cannot be removed", "Replace it by another value")
        elif rule is not None and rule.multi and not path.sub and path.where is None and not _clears(value):
            self._remove_entries(path, rule, value)
        elif rule is None and not path.sub and path.where is None and not _clears(value):
            self._remove_items(path, value)
        else:
            self._write("replace", path, None, with_path=True)

    def _write_schema(self, op: Op, path: AttributePath, value: Any) -> None:
        """A whole extension (or the core schema) by its URN."""
        if path.container and _clears(value) and value != {}:
            self.document.pop(find_key(self.document, path.container) or "", None)
            return
        if value is None or value == {}:
            return
        if not isinstance(value, dict):
            raise invalid_value(
                path.container or "The schema", f"is {_word(value)}", "Send an object of its attributes"
            )
        seen: set[tuple[str, str, str]] = set()
        for key, item in value.items():
            inner = _key_path(f"{path.container}:{key}", self.kind) if path.container else self._path_of_key(key, item)
            if inner is not None and path.container and (":" in key or not inner.certain):
                inner = None
            if inner is None:
                self._keep_in_extension(path.container, key, item)
                continue
            self._once(seen, (inner.container, fold_name(inner.attribute), fold_name(inner.sub)), inner)
            self._write(op, inner, item, with_path=False)

    def _keep_in_extension(self, container: str, key: str, value: Any) -> None:
        if not container:
            self._keep_unknown_key(key, value)
            return
        holder = self._holder(container)
        held = find_key(holder, key) or key
        kept = _stripped(value)
        if _clears(kept):
            holder.pop(held, None)
        else:
            holder[held] = kept

    def _refuse_protected(self, path: AttributePath, rule: AttributeRule, value: Any, *, with_path: bool) -> None:
        """Read-only and write-only attributes: harmless in a resource, an error when an operation aims at them."""
        if rule.name == "id":
            if not self.creating and self.resource_id is not None and value != self.resource_id:
                raise mutability("id", "cannot be changed", "Take id out of the attribute mapping")
            return
        if with_path and rule.access == "readOnly" and rule.name != "schemas":
            raise mutability(path.name, "is read-only", "Take it out of the attribute mapping")

    def _holder(self, container: str) -> dict[str, Any]:
        """The object that holds the attributes of an extension; the document itself for the core schema."""
        if not container:
            return self.document
        key = find_key(self.document, container)
        if key is None or not isinstance(self.document[key], dict):
            key = key or container
            self.document[key] = {}
        held: dict[str, Any] = self.document[key]
        return held

    def _write_simple(self, path: AttributePath, rule: AttributeRule, value: Any) -> None:
        if path.sub:
            raise invalid_path(path.name, "names a part of an attribute that has no parts", f"Use {rule.name}")
        holder = self._holder(path.container)
        value = _bare(value)
        required = not path.container and rule.name == REQUIRED[self.kind]
        if _clears(value) or (required and isinstance(value, str) and not value.strip()):
            if required:
                raise invalid_value(path.name, "is required and must not be empty", _CHECK_MAPPING)
            holder.pop(rule.name, None)
        elif rule.type == "boolean":
            try:
                holder[rule.name] = parse_bool(value)
            except ValueError:
                raise invalid_value(
                    path.name, f"is {_word(value)} where true or false is expected", _CHECK_MAPPING
                ) from None
        else:
            holder[rule.name] = _text(path.name, value)

    def _write_complex(self, path: AttributePath, rule: AttributeRule, value: Any) -> None:
        """`name`: sub-attributes that are not sent stay as they are."""
        holder = self._holder(path.container)
        if path.sub:
            parts: dict[str, Any] = {path.sub: value}
        elif _clears(value) and value != {}:
            holder.pop(rule.name, None)
            return
        else:
            single = _only_item(value)
            if not isinstance(single, dict):
                raise invalid_value(path.name, f"is {_word(value)} where an object is expected", _CHECK_MAPPING)
            parts = single
        merged: dict[str, Any] = holder.get(rule.name) or {}
        for name, part in _canonical_parts(rule.name, rule, parts):
            if _clears(part):
                merged.pop(name, None)
            else:
                merged[name] = part
        if merged:
            holder[rule.name] = merged
        else:
            holder.pop(rule.name, None)

    def _write_manager(self, path: AttributePath, value: Any) -> None:
        """However it comes, it is stored as {"value": id of the manager}."""
        if path.where is not None:
            raise invalid_path(path.name, "has a filter, but a user has one manager", "Leave the brackets out")
        if path.sub and path.sub != "value":
            return  # the reference and the manager's name are ours to say
        holder = self._holder(path.container)
        manager = _manager_id(value)
        if manager:
            holder["manager"] = {"value": manager}
        else:
            holder.pop("manager", None)

    # multi-valued attributes

    def _write_multi(self, op: Op, path: AttributePath, rule: AttributeRule, value: Any) -> None:
        holder = self._holder(path.container)
        held = holder.get(rule.name)
        entries: list[Any] = held if isinstance(held, list) else []
        if path.where is None and not path.sub:
            sent = _entries(path, rule, value, self.limits)
            entries = self._added(entries, sent) if op == "add" else sent
        else:
            entries = self._changed_entries(op, path, rule, entries, value)
        self._store_entries(holder, rule.name, entries)

    def _store_entries(self, holder: dict[str, Any], name: str, entries: list[Any]) -> None:
        if len(entries) > self.limits.entries_max:
            raise invalid_value(name, f"has more than {self.limits.entries_max} values", "Send fewer")
        if entries:
            holder[name] = entries
        else:
            holder.pop(name, None)

    def _visit(self, count: int) -> None:
        self.visited += count
        if self.visited > self.limits.entries_visited_max:
            raise invalid_value("Operations", "ask for too much work in one request", "Send them in several requests")

    def _added(self, entries: list[Any], sent: list[dict[str, Any]]) -> list[Any]:
        """Old and new entries; one that is there already is completed instead of repeated (RFC 7644 section 3.5.2.1)."""
        self._visit(len(entries) + len(sent))
        known = _KnownEntries(entries)
        for entry in sent:
            twin = known.twin(entry)
            if twin is None:
                entries.append(entry)
                known.note(entry)
                chosen = entry
            else:
                _complete(twin, entry)
                chosen = twin
            if _true(entry.get("primary")):
                _only_primary(entries, chosen)
        return entries

    def _changed_entries(
        self, op: Op, path: AttributePath, rule: AttributeRule, entries: list[Any], value: Any
    ) -> list[Any]:
        """Add or replace at `emails[type eq "work"].value`, `emails[type eq "work"]` or `emails.value`."""
        self._visit(len(entries))
        where = path.where
        matched = [e for e in entries if isinstance(e, dict) and (where is None or evaluate(where, e))]
        if not path.sub:
            return self._changed_whole(op, path, rule, entries, matched, value)
        part = _part(path.name, path.sub_rule, value)
        if _clears(part):
            for entry in matched:
                entry.pop(path.sub, None)
            emptied = {id(entry) for entry in matched if entry.keys() <= _DESCRIBING}
            return [entry for entry in entries if id(entry) not in emptied]
        if matched:
            for entry in matched:
                entry[path.sub] = part
        else:
            created = self._created(path, entries, {path.sub: part})
            if created is None:
                return entries
            entries.append(created)
            matched = [created]
            if _true(created.get("primary")):
                _only_primary(entries, created)
        if path.sub == "primary" and _true(part):
            _only_primary(entries, matched[0])
        return entries

    def _created(self, path: AttributePath, entries: list[Any], content: dict[str, Any]) -> dict[str, Any] | None:
        """The entry that a filter without a hit describes; None when a repeated request has already left its mark.

        Raises:
            ScimError: 400 `noTarget` when the filter does not describe one entry.
        """
        described: dict[str, Any] | None = {} if path.where is None else entry_of(path.where)
        contradiction = path.where is not None and any(
            name in content and (described is None or not _identical(described.get(name), content[name]))
            for name in names_of(path.where)
        )
        if described is not None and not contradiction:
            return {**described, **content}
        # The filter asks for what the operation changes, as in emails[value eq "old"].value: after it was applied once it
        # finds nothing more, and the same request again must be harmless.
        for entry in entries:
            if isinstance(entry, dict) and all(_identical(entry.get(k), v) for k, v in content.items()):
                return None
        raise no_target(path.name, "has no entry that satisfies the filter", "Add the entry first, or filter by type")

    def _changed_whole(
        self,
        op: Op,
        path: AttributePath,
        rule: AttributeRule,
        entries: list[Any],
        matched: list[dict[str, Any]],
        value: Any,
    ) -> list[Any]:
        """An entry as a whole: `add` completes it, `replace` puts another in its place, clearing removes it."""
        sent = _entries(path, rule, value, self.limits)
        if not sent:
            return _except(entries, matched) if _clears(value) else entries
        if len(sent) > 1:
            raise invalid_value(path.name, "has several values for one filtered entry", "Send one object")
        content = sent[0]
        if not matched:
            created = self._created(path, entries, content)
            if created is not None:
                entries.append(created)
                if _true(created.get("primary")):
                    _only_primary(entries, created)
            return entries
        first = matched[0]
        if op == "add":
            for entry in matched:
                entry.update(content)
        else:
            described = entry_of(path.where) if path.where is not None else None
            first.clear()
            first.update({**(described or {}), **content})
            entries = _except(entries, matched[1:])
        if _true(first.get("primary")):
            _only_primary(entries, first)
        return entries

    def _remove_entries(self, path: AttributePath, rule: AttributeRule, value: Any) -> None:
        """`remove` with a value takes away those entries only; emptying the attribute is what a missing value asks for."""
        holder = self._holder(path.container)
        held = holder.get(rule.name)
        if not isinstance(held, list):
            return
        sent = _entries(path, rule, value, self.limits)
        self._visit(len(held) + len(sent))
        gone = _KnownEntries(sent)
        kept = [entry for entry in held if not isinstance(entry, dict) or gone.twin(entry) is None]
        self._store_entries(holder, rule.name, kept)

    # attributes nobody described to us

    def _remove_items(self, path: AttributePath, value: Any) -> None:
        """`remove` with a value at an unknown attribute: from a list these items, otherwise the attribute."""
        holder = self._holder(path.container)
        name = find_key(holder, path.attribute)
        held = holder[name] if name is not None else None
        if name is None or not isinstance(held, list):
            holder.pop(name or "", None)
            return
        gone = value if isinstance(value, list) else [value]
        self._visit(len(held) * len(gone))
        kept = [item for item in held if not any(_identical(item, other) for other in gone)]
        if kept:
            holder[name] = kept
        else:
            del holder[name]

    def _write_unknown(self, op: Op, path: AttributePath, value: Any) -> None:
        holder = self._holder(path.container)
        name = find_key(holder, path.attribute) or path.attribute
        held = holder.get(name)
        if path.where is not None or (path.sub and isinstance(held, list)):
            rule = AttributeRule(name, "complex", multi=True)
            entries = held if isinstance(held, list) else [] if held is None else [held]
            self._store_entries(holder, name, self._changed_entries(op, path, rule, entries, value))
            return
        if path.sub:
            merged = held if isinstance(held, dict) else {}
            sub = find_key(merged, path.sub) or path.sub
            kept = _stripped(value)
            if _clears(kept):
                merged.pop(sub, None)
            else:
                merged[sub] = kept
            kept = merged
        else:
            kept = self._joined(op, name, held, value)
        if _clears(kept):
            holder.pop(name, None)
        else:
            holder[name] = kept

    def _joined(self, op: Op, name: str, held: Any, value: Any) -> Any:
        """What there shall be of an unknown attribute: objects are merged, additions to a list are appended."""
        if isinstance(value, dict) and not (op == "add" and isinstance(held, list)):
            merged = dict(held) if isinstance(held, dict) else {}
            for key, part in value.items():
                place = find_key(merged, key) or key
                kept = _stripped(part)
                if _clears(kept):
                    merged.pop(place, None)
                else:
                    merged[place] = kept
            return merged
        kept = _stripped(value)
        if op == "add" and isinstance(held, list) and not (_clears(value) and value != []):
            items = kept if isinstance(kept, list) else [kept]
            if len(held) + len(items) > 2 * self.limits.entries_max:
                raise invalid_value(name, f"has more than {self.limits.entries_max} values", "Send fewer")
            self._visit(len(held) * len(items))
            joined = list(held)
            for item in items:
                if not any(_identical(item, other) for other in joined):
                    joined.append(item)
            return joined
        return kept

    # members of a group

    def _write_members(self, op: Op, path: AttributePath, value: Any) -> None:
        if path.sub and path.sub != "value":
            return  # what a member is called is not stored with the group
        sent = () if _clears(value) else member_ids(value)
        if path.where is None:
            self._member_change(op, sent)
            return
        named = _named_members(path)
        if op == "replace":
            self._member_change("remove", tuple(member for member in named if member not in sent))
            self._member_change("add", sent)
        else:
            self._member_change("add", sent or named)

    def _remove_members(self, path: AttributePath, value: Any) -> None:
        if path.sub and path.sub != "value":
            return
        if path.where is not None:
            self._member_change("remove", _named_members(path))
        elif value is None:
            self._member_change("replace", ())
        else:
            # Entra's default dialect: a remove with a list takes away those members, and never all of them.
            self._member_change("remove", () if _clears(value) else member_ids(value))

    def _member_change(self, op: Op, ids: tuple[str, ...]) -> None:
        if self.creating:
            if len(ids) > self.limits.members_max:
                raise too_large("The list of members", self.limits.members_max, "members")
            if ids:
                self.document["members"] = [{"value": member} for member in ids]
            return
        if op == "replace":
            self._member_steps.clear()  # whatever was asked before is overwritten
        elif not ids:
            return
        if op == "replace" or not self._member_steps or self._member_steps[-1][0] != op:
            self._member_steps.append((op, {}))
        self._member_steps[-1][1].update(dict.fromkeys(ids))
        self._members_named += len(ids)
        if self._members_named > self.limits.members_max:
            raise too_large("The list of members", self.limits.members_max, "members")

    @property
    def members(self) -> tuple[MemberChange, ...]:
        """The member operations in order, neighbours of one kind joined."""
        return tuple(MemberChange(op, tuple(ids)) for op, ids in self._member_steps)


# --- entries of multi-valued attributes ------------------------------------------------------------------------------


def _entries(path: AttributePath, rule: AttributeRule, value: Any, limits: Limits) -> list[dict[str, Any]]:
    """A value for a multi-valued attribute as a list of entries: a single object or text is one entry."""
    if _clears(value):
        return []
    items = value if isinstance(value, list) else [value]
    if len(items) > limits.entries_max:
        raise invalid_value(path.name, f"has more than {limits.entries_max} values", "Send fewer")
    return [entry for item in items if (entry := _entry(path, rule, item)) is not None]


def _entry(path: AttributePath, rule: AttributeRule, item: Any) -> dict[str, Any] | None:
    """One entry with canonical names; None when nothing but its description is left of it."""
    if _clears(item):
        return None
    if isinstance(item, str):
        return {"value": item}
    if not isinstance(item, dict):
        raise invalid_value(path.name, f"has {_word(item)} among its values", "Send objects, each with a value")
    entry: dict[str, Any] = {}
    cleared = False
    for name, part in _canonical_parts(path.name, rule, item):
        if _clears(part):
            cleared = True
        else:
            entry[name] = part
    if not entry or (cleared and entry.keys() <= _DESCRIBING):
        return None
    return entry


def _canonical_parts(label: str, rule: AttributeRule, parts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Sub-attributes with their canonical names and checked types; cleared ones come as they are."""
    seen: set[str] = set()
    for key, part in parts.items():
        folded = fold_name(key)
        if folded in seen:
            raise invalid_syntax(f"{label} gives {shown(key)} in two spellings", "Send every attribute once")
        seen.add(folded)
        sub = rule.sub.get(folded)
        yield (key, _stripped(part)) if sub is None else (sub.name, _part(f"{label}.{sub.name}", sub, part))


class _KnownEntries:
    """Finds the entry that says the same as another: equal value and no different type, or equal altogether."""

    def __init__(self, entries: list[Any]) -> None:
        self._typed: dict[tuple[str, str], dict[str, Any]] = {}
        self._valued: dict[str, dict[str, Any]] = {}
        self._whole: dict[bytes, dict[str, Any]] = {}
        for entry in entries:
            if isinstance(entry, dict):
                self.note(entry)

    def note(self, entry: dict[str, Any]) -> None:
        value = _entry_value(entry)
        if value is None:
            self._whole.setdefault(msgspec.json.encode(entry, order="deterministic"), entry)
            return
        self._typed.setdefault((value, _entry_type(entry)), entry)
        self._valued.setdefault(value, entry)

    def twin(self, entry: dict[str, Any]) -> dict[str, Any] | None:
        value = _entry_value(entry)
        if value is None:
            return self._whole.get(msgspec.json.encode(entry, order="deterministic"))
        kind = _entry_type(entry)
        if not kind:
            return self._valued.get(value)
        return self._typed.get((value, kind)) or self._typed.get((value, ""))


def _entry_type(entry: dict[str, Any]) -> str:
    kind = entry.get("type")
    return fold_value(kind) if isinstance(kind, str) else ""


def _entry_value(entry: dict[str, Any]) -> str | None:
    """What identifies an entry; of a role written as JSON in a string the value inside."""
    value = entry.get("value")
    if not isinstance(value, str):
        return None
    inner = _role_in_text(value)
    return value if inner is None else str(inner["value"])


def _role_in_text(value: str) -> dict[str, Any] | None:
    """The object in a string such as `{"id":"…","value":"agent","displayName":"Agent"}`, or None."""
    if not value.startswith("{"):
        return None
    try:
        inner = msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return None
    return inner if isinstance(inner, dict) and isinstance(inner.get("value"), str) else None


def _complete(twin: dict[str, Any], entry: dict[str, Any]) -> None:
    """Add to an entry what another one that means the same says beyond it."""
    twin.update({name: part for name, part in entry.items() if name != "value"})
    value = entry.get("value")
    if not isinstance(value, str) or value == twin["value"]:
        return
    inner = _role_in_text(value)
    if inner is None:
        return
    if _role_in_text(twin["value"]) is not None:
        twin["value"] = value
        return
    for name in ("id", "displayName"):
        if isinstance(inner.get(name), str) and inner[name]:
            twin.setdefault(name, inner[name])


def _except(entries: list[Any], gone: list[dict[str, Any]]) -> list[Any]:
    """The entries that are not among these very objects."""
    ids = {id(entry) for entry in gone}
    return [entry for entry in entries if id(entry) not in ids]


def _only_primary(entries: list[Any], chosen: dict[str, Any]) -> None:
    """At most one entry is primary; naming another one takes it from the rest (RFC 7644 section 3.5.2)."""
    for entry in entries:
        if entry is not chosen and isinstance(entry, dict) and _true(entry.get("primary")):
            entry["primary"] = False


def _named_members(path: AttributePath) -> tuple[str, ...]:
    """The ids in `members[value eq "88"]`, also when several are joined by `or`."""
    ids: dict[str, None] = {}
    where = path.where
    for term in where.terms if isinstance(where, Or) else (where,):
        if (
            not isinstance(term, Comparison)
            or term.op != "eq"
            or term.path.attribute != "value"
            or not isinstance(term.value, str)
            or not term.value
        ):
            raise invalid_path("members", "has a filter that names no member", 'Use members[value eq "<id>"]')
        ids[term.value] = None
    return tuple(ids)


# --- simple values ---------------------------------------------------------------------------------------------------


def _clears(value: Any) -> bool:
    """Whether a value asks for nothing to be there."""
    return value is None or value == "" or value == [] or value == {}


def _true(value: Any) -> bool:
    return value is True or (isinstance(value, str) and value.lower() == "true")


def _only_item(value: Any) -> Any:
    """The item of a list of one: older dialects wrap everything in a list."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _bare(value: Any) -> Any:
    """The value of an object that only carries one, as in [{"$ref": null, "value": "x"}]."""
    value = _only_item(value)
    if isinstance(value, dict) and value:
        folded = {fold_name(key): part for key, part in value.items()}
        if "value" in folded and folded.keys() <= {"value", "$ref"}:
            return folded["value"]
    return value


def _part(label: str, rule: AttributeRule | None, value: Any) -> Any:
    """A value for a sub-attribute as it is stored: as sent, if its type fits; a clearing value stays one."""
    if rule is None:
        return _stripped(value)
    value = _bare(value)
    if _clears(value):
        return None
    if rule.type == "boolean":
        try:
            parse_bool(value)
        except ValueError:
            raise invalid_value(label, f"is {_word(value)} where true or false is expected", _CHECK_MAPPING) from None
        return value
    return _text(label, value)


def _text(label: str, value: Any) -> str:
    if not isinstance(value, str):
        raise invalid_value(label, f"is {_word(value)} where text is expected", _CHECK_MAPPING)
    return value


def _manager_id(value: Any) -> str:
    """The manager's id in any shape it is known to arrive in; "" for none."""
    value = _only_item(value)
    if isinstance(value, dict) and value:
        key = find_key(value, "value")
        if key is None:
            raise invalid_value("manager", "has no value", 'Send {"value": "<id of the manager>"}')
        value = value[key]
    if _clears(value):
        return ""
    if not isinstance(value, str):
        raise invalid_value("manager", f"is {_word(value)} where an id is expected", _CHECK_MAPPING)
    return value.strip()


def _word(value: Any) -> str:
    """What kind of value this is, for people; never the value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "an object"


def _stripped(value: Any) -> Any:
    """A value without nulls at any depth: unset is absent."""
    if isinstance(value, dict):
        return {key: _stripped(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_stripped(item) for item in value if item is not None]
    return value


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value


def _identical(one: Any, other: Any) -> bool:
    """Equal in type and value at every depth; Python alone would take 1 for true."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_identical(part, other[key]) for key, part in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_identical, one, other))
    return bool(one == other)
