"""The normalized User and Group (RFC 7643), as connectors see them.

A stored document keeps what Entra sent, value for value; these shapes are read from it. Unset is not null: an attribute
nobody sent is `UNSET`, so that a connector can tell "keep what the product holds" from "clear it".
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

USER_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:Group"
ENTERPRISE_SCHEMA = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"

Text = str | None | UnsetType


class Name(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """RFC 7643 section 4.1.1, `name`."""

    formatted: Text = UNSET
    family_name: Text = UNSET
    given_name: Text = UNSET
    middle_name: Text = UNSET
    honorific_prefix: Text = UNSET
    honorific_suffix: Text = UNSET


class Value(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One entry of a multi-valued attribute: emails, phoneNumbers, roles, entitlements (RFC 7643 section 2.4)."""

    value: Text = UNSET
    type: Text = UNSET
    primary: bool | UnsetType | None = UNSET
    display: Text = UNSET
    display_name: Text = UNSET


class Address(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """RFC 7643 section 4.1.2, `addresses`."""

    type: Text = UNSET
    formatted: Text = UNSET
    street_address: Text = UNSET
    locality: Text = UNSET
    region: Text = UNSET
    postal_code: Text = UNSET
    country: Text = UNSET
    primary: bool | UnsetType | None = UNSET


class Manager(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Enterprise extension, `manager`; `value` is the manager's SCIM id at this gateway."""

    value: Text = UNSET
    display_name: Text = UNSET


class Enterprise(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """RFC 7643 section 4.3."""

    employee_number: Text = UNSET
    cost_center: Text = UNSET
    organization: Text = UNSET
    division: Text = UNSET
    department: Text = UNSET
    manager: Manager | UnsetType | None = UNSET


class User(Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """A person as Entra wishes it at one target (RFC 7643 section 4.1)."""

    user_name: str
    external_id: Text = UNSET
    active: bool | UnsetType = UNSET
    name: Name = Name()
    display_name: Text = UNSET
    nick_name: Text = UNSET
    profile_url: Text = UNSET
    title: Text = UNSET
    user_type: Text = UNSET
    preferred_language: Text = UNSET
    locale: Text = UNSET
    timezone: Text = UNSET
    emails: tuple[Value, ...] = ()
    phone_numbers: tuple[Value, ...] = ()
    addresses: tuple[Address, ...] = ()
    roles: tuple[Value, ...] | UnsetType = UNSET
    enterprise: Enterprise = Enterprise()
    extensions: dict[str, dict[str, Any]] = {}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> User:
        """Read a stored document.

        Args:
            document: a SCIM document with canonical attribute names (as the gateway stores it); null where the product still
                holds something that was cleared.

        Raises:
            msgspec.ValidationError: a known attribute has a type it cannot have.
        """
        plain: dict[str, Any] = {}
        extensions: dict[str, dict[str, Any]] = {}
        for key, value in document.items():
            if key == ENTERPRISE_SCHEMA:
                plain["enterprise"] = value or {}
            elif key.startswith("urn:"):
                if isinstance(value, dict):
                    extensions[key] = value
            elif value is not None or key in _CLEARABLE:
                plain[key] = value
            elif key in _CLEARED_ENTRIES:
                plain[key] = _CLEARED_ENTRIES[key]
        if "role" in plain and "roles" not in plain:
            plain["roles"] = plain.pop("role")  # vendor requirement B14 names it once so and once so
        if "roles" in plain:
            roles = plain["roles"]
            plain["roles"] = [] if roles is None else [unwrap_role(role) for role in as_list(roles)]
        plain["extensions"] = extensions
        return msgspec.convert(plain, cls, strict=False)

    @property
    def is_active(self) -> bool:
        """What `active` means when nobody sent it: a user that exists is active (RFC 7643 section 4.1.1)."""
        return self.active is not False

    def email(self, type_: str = "work") -> str | None:
        """The address of one type, or None. Entra sends one entry per type."""
        return _value_of_type(self.emails, type_)


_CLEARABLE = frozenset(
    (
        "externalId",
        "displayName",
        "nickName",
        "profileUrl",
        "title",
        "userType",
        "preferredLanguage",
        "locale",
        "timezone",
        "roles",
        "role",
    )
)
"""Attributes of which a connector is told that they were cleared."""

_CLEARED_ENTRIES: dict[str, list[dict[str, str | None]]] = {
    "emails": [{"type": one, "value": None} for one in ("work", "home", "other")],
    "phoneNumbers": [{"type": one, "value": None} for one in ("work", "mobile", "fax", "home", "pager", "other")],
    "addresses": [
        {"type": "work", **dict.fromkeys(("formatted", "streetAddress", "locality", "region", "postalCode", "country"))}
    ],
}
"""A cleared list of typed entries, told entry by entry: connectors map single types, such as the address of type work."""

TYPED_LISTS = frozenset(_CLEARED_ENTRIES)
"""Attributes whose entries are told apart by their type."""


class Member(Struct, frozen=True, omit_defaults=True):
    """A member of a group: its SCIM id here, and its account at the product once it is known."""

    id: str
    kind: str = "user"
    account_id: str | None = None


class Group(Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """A group as Entra wishes it at one target (RFC 7643 section 4.2). Members travel as differences."""

    display_name: str
    external_id: Text = UNSET
    add: tuple[Member, ...] = ()
    remove: tuple[Member, ...] = ()

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Group:
        """Read a stored document without its members.

        Raises:
            msgspec.ValidationError: a known attribute has a type it cannot have.
        """
        known = {k: v for k, v in document.items() if v is not None and k in ("displayName", "externalId")}
        return msgspec.convert(known, cls, strict=False)


def text(value: str | UnsetType | None) -> str:
    """A text or "" when it is unset or null; for rules that only ask whether something is there."""
    return value if isinstance(value, str) else ""


def as_list(value: Any) -> list[Any]:
    """A multi-valued attribute as a list: Entra's older shapes send a single value bare."""
    return value if isinstance(value, list) else [value]


def unwrap_role(role: Any) -> dict[str, Any]:
    """One role in the shape of an object.

    Entra's complex app-role mapping puts a JSON document into the string `value`; a constant mapping sends a plain string.

    Raises:
        msgspec.ValidationError: it is neither a text nor an object.
    """
    if isinstance(role, str):
        role = {"value": role}
    if not isinstance(role, dict):
        raise msgspec.ValidationError("roles: an entry is neither a text nor an object")
    value = role.get("value")
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            inner = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError):
            return dict(role)
        if isinstance(inner, dict) and inner.get("value") is not None:
            unwrapped = dict(role)
            unwrapped["value"] = str(inner["value"])
            if inner.get("displayName"):
                unwrapped["displayName"] = str(inner["displayName"])
            return unwrapped
    return dict(role)


def _value_of_type(values: tuple[Value, ...], type_: str) -> str | None:
    for entry in values:
        if isinstance(entry.type, str) and entry.type.lower() == type_ and isinstance(entry.value, str):
            return entry.value
    return None
