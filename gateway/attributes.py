"""The attributes of RFC 7643 that this gateway knows by name: their spelling, type, and rules of comparison.

One table for filters, PATCH and POST. Names and URNs are case-insensitive (RFC 7643 section 2.1), so everything is
looked up by its folded name and stored under the spelling of the table; an attribute that is not in the table keeps the
spelling it came with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import msgspec

from schemas.resources import ENTERPRISE_SCHEMA, GROUP_SCHEMA, USER_SCHEMA

Kind: TypeAlias = Literal["User", "Group"]
AttributeType: TypeAlias = Literal["string", "boolean", "complex", "reference", "dateTime", "binary"]

MICROSOFT_GROUP_SCHEMA = "http://schemas.microsoft.com/2006/11/ResourceManagement/ADSCIM/2.0/Group"
"""Sent by Entra with every new group; it carries no attributes, is accepted, and is never returned."""

_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*\Z")
_EXTENSION_NAME = re.compile(r"(urn:.+?:\d+(?:\.\d+)*:[A-Za-z][A-Za-z0-9_-]*)(?::(.+))?\Z", re.IGNORECASE | re.DOTALL)
_NAMES_CACHED_MAX = 2_048
NAME_CHARS_MAX = 256
"""Longest attribute name, URN included, that is resolved at all; it also bounds what the cache of names can hold."""


class AttributeRule(msgspec.Struct, frozen=True):
    """What RFC 7643 says about one attribute.

    Args:
        name: the canonical spelling.
        type: data type of section 2.3; the type of the entries when `multi` is set.
        multi: multi-valued (section 2.4).
        exact: `caseExact`; otherwise values compare without regard to letter case.
        access: `readOnly` is never taken from a client; `writeOnly` is never stored, returned or filtered.
        sub: sub-attributes of a complex attribute by folded name.
    """

    name: str
    type: AttributeType = "string"
    multi: bool = False
    exact: bool = False
    access: Literal["readWrite", "readOnly", "writeOnly"] = "readWrite"
    sub: dict[str, AttributeRule] = {}


class AttributeName(msgspec.Struct, frozen=True):
    """An attribute as somebody spelled it, resolved.

    Args:
        container: URN of the extension the attribute lives in, "" for the core schema.
        attribute: canonical name, or as spelled when unknown; "" when the name is that of a whole extension or schema.
        sub: canonical sub-attribute, "" when none was named.
        rule: what is known of the attribute, None when nothing is.
        sub_rule: what is known of the sub-attribute.
        certain: False when the border between URN and attribute had to be guessed.
    """

    container: str
    attribute: str
    sub: str = ""
    rule: AttributeRule | None = None
    sub_rule: AttributeRule | None = None
    certain: bool = True

    @property
    def text(self) -> str:
        """The name in canonical spelling, as used in `detail` and in lists of changed attributes."""
        path = f"{self.attribute}.{self.sub}" if self.sub else self.attribute
        if self.container:
            return f"{self.container}:{path}" if path else self.container
        return path


def fold_name(name: str) -> str:
    """The form under which attribute names and URNs are compared (RFC 7643 section 2.1)."""
    return name.lower()


def fold_value(value: str) -> str:
    """The form under which values compare when their attribute is not `caseExact` (RFC 7643 section 2.2).

    The store uses the same function for its unique and indexed columns.
    """
    return value.lower()


def _table(*rules: AttributeRule) -> dict[str, AttributeRule]:
    return {fold_name(rule.name): rule for rule in rules}


def _texts(*names: str) -> list[AttributeRule]:
    return [AttributeRule(name) for name in names]


def _plural(name: str, *own: AttributeRule, value: AttributeRule | None = None) -> AttributeRule:
    """A multi-valued attribute with the default sub-attributes of RFC 7643 section 2.4."""
    sub = _table(
        value or AttributeRule("value"),
        AttributeRule("display"),
        AttributeRule("type"),
        AttributeRule("primary", "boolean"),
        AttributeRule("displayName"),  # not in the RFC; Entra's complex roles have it
        *own,
    )
    return AttributeRule(name, "complex", multi=True, sub=sub)


_REFERENCE = AttributeRule("$ref", "reference", exact=True)
_COMMON = (
    AttributeRule("id", exact=True, access="readOnly"),
    AttributeRule("externalId", exact=True),
    AttributeRule("schemas", "reference", multi=True, exact=True, access="readOnly"),
    AttributeRule(
        "meta",
        "complex",
        access="readOnly",
        sub=_table(
            AttributeRule("resourceType", exact=True),
            AttributeRule("created", "dateTime"),
            AttributeRule("lastModified", "dateTime"),
            AttributeRule("location", "reference", exact=True),
            AttributeRule("version", exact=True),
        ),
    ),
)
_MEMBER_ID = AttributeRule("value", exact=True)

USER_ATTRIBUTES = _table(
    *_COMMON,
    *_texts("userName", "displayName", "nickName", "title", "userType", "preferredLanguage", "locale", "timezone"),
    AttributeRule(
        "name",
        "complex",
        sub=_table(*_texts("formatted", "familyName", "givenName", "middleName", "honorificPrefix", "honorificSuffix")),
    ),
    AttributeRule("profileUrl", "reference", exact=True),
    AttributeRule("active", "boolean"),
    AttributeRule("password", exact=True, access="writeOnly"),
    _plural("emails"),
    _plural("phoneNumbers"),
    _plural("ims"),
    _plural("photos", value=AttributeRule("value", "reference", exact=True)),
    _plural("addresses", *_texts("formatted", "streetAddress", "locality", "region", "postalCode", "country")),
    AttributeRule(
        "groups",
        "complex",
        multi=True,
        access="readOnly",
        sub=_table(_MEMBER_ID, _REFERENCE, AttributeRule("display"), AttributeRule("type")),
    ),
    _plural("entitlements"),
    _plural("roles"),
    _plural("x509Certificates", value=AttributeRule("value", "binary", exact=True)),
)
"""RFC 7643 section 4.1, by folded name."""

GROUP_ATTRIBUTES = _table(
    *_COMMON,
    AttributeRule("displayName"),
    AttributeRule(
        "members",
        "complex",
        multi=True,
        sub=_table(_MEMBER_ID, _REFERENCE, AttributeRule("type"), AttributeRule("display")),
    ),
)
"""RFC 7643 section 4.2, by folded name."""

ENTERPRISE_ATTRIBUTES = _table(
    *_texts("employeeNumber", "costCenter", "organization", "division", "department"),
    AttributeRule(
        "manager",
        "complex",
        sub=_table(_MEMBER_ID, _REFERENCE, AttributeRule("displayName", access="readOnly")),
    ),
)
"""RFC 7643 section 4.3, by folded name."""

CORE_ATTRIBUTES: dict[Kind, dict[str, AttributeRule]] = {"User": USER_ATTRIBUTES, "Group": GROUP_ATTRIBUTES}
EXTENSIONS: dict[str, dict[str, AttributeRule]] = {ENTERPRISE_SCHEMA: ENTERPRISE_ATTRIBUTES}
CORE_SCHEMAS: dict[Kind, str] = {"User": USER_SCHEMA, "Group": GROUP_SCHEMA}
REQUIRED: dict[Kind, str] = {"User": "userName", "Group": "displayName"}

_ANY_KIND = {**GROUP_ATTRIBUTES, **USER_ATTRIBUTES}
_CONTAINERS = {
    fold_name(USER_SCHEMA): "",
    fold_name(GROUP_SCHEMA): "",
    fold_name(ENTERPRISE_SCHEMA): ENTERPRISE_SCHEMA,
}


def core_attributes(kind: Kind | None) -> dict[str, AttributeRule]:
    """The core table of one kind; for None those of users and groups together, which never disagree."""
    return _ANY_KIND if kind is None else CORE_ATTRIBUTES[kind]


@lru_cache(maxsize=_NAMES_CACHED_MAX)
def resolve_name(text: str, kind: Kind | None) -> AttributeName:
    """Resolve `attribute`, `attribute.sub`, `URN:attribute.sub` or a bare schema URN, in any letter case.

    Enterprise attributes named without their URN (Entra does this for `manager`) resolve into the enterprise extension.

    Args:
        text: the name as it came; its length is bounded by the caller.
        kind: decides the table; None takes users and groups together.

    Raises:
        ValueError: this is not an attribute name.
    """
    if len(text) > NAME_CHARS_MAX:
        raise ValueError("longer than any attribute name")
    folded = fold_name(text)
    if ":" not in text:
        return _resolve_within("", text, kind)
    if folded in _CONTAINERS:
        return AttributeName(_CONTAINERS[folded], "")
    for urn, container in _CONTAINERS.items():
        if folded.startswith(urn) and folded[len(urn)] == ":":
            return _resolve_within(container, text[len(urn) + 1 :], kind)
    if not folded.startswith("urn:"):
        raise ValueError("not an attribute name")
    match = _EXTENSION_NAME.match(text)
    if match is not None:
        if match.group(2) is None:
            return AttributeName(match.group(1), "")
        return _resolve_within(match.group(1), match.group(2), kind)
    container, _, rest = text.rpartition(":")
    return msgspec.structs.replace(_resolve_within(container, rest, kind), certain=False)


def _resolve_within(container: str, text: str, kind: Kind | None) -> AttributeName:
    attribute, dot, sub = text.partition(".")
    if not _NAME.match(attribute) or (dot and not _NAME.match(sub)):
        raise ValueError("not an attribute name")
    folded = fold_name(attribute)
    rule: AttributeRule | None
    if container:
        rule = EXTENSIONS.get(container, {}).get(folded)
    else:
        rule = core_attributes(kind).get(folded)
        if rule is None and kind != "Group" and folded in ENTERPRISE_ATTRIBUTES:
            container, rule = ENTERPRISE_SCHEMA, ENTERPRISE_ATTRIBUTES[folded]
    sub_rule = rule.sub.get(fold_name(sub)) if rule is not None and sub else None
    return AttributeName(
        container,
        rule.name if rule is not None else attribute,
        sub_rule.name if sub_rule is not None else sub,
        rule,
        sub_rule,
    )


def find_key(holder: Mapping[str, Any], name: str) -> str | None:
    """The key of `holder` that is `name` in any letter case, or None."""
    if name in holder:
        return name
    folded = fold_name(name)
    for key in holder:
        if len(key) == len(name) and fold_name(key) == folded:
            return key
    return None
