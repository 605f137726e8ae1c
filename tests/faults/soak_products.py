"""The eight products of the soak: how each is set up, what it holds in the end, and what it shall hold by Entra's wish."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from msgspec import Struct

from connectors.testing import shipped
from deploy.emulators import entra

MANAGER = "Contoso Archive"
INTEGRATION_USER = "integration@example.com"
TALKDESK_ROLES = ("Agent", "Supervisor", "Administrator", "Team Lead")
TEAMS = ("Porto", "Lisbon Support", "Tier-1")
CALL_ROLES = ("agent", "supervisor", "sales")
MAPPED_GROUPS = 3
"""So many groups stand in Sofa's maps: the first two in that of groups, the next in that of roles."""

Record = Mapping[str, Any]
State = Mapping[str, Any]


class Account(Struct, frozen=True):
    """One account as the product holds it. `values`: by name of what Entra says."""

    id: str
    key: str
    active: bool
    values: dict[str, Any]


class Held(Struct, frozen=True):
    """One group as the product holds it: its members by the ids of their accounts."""

    id: str
    key: str
    name: str
    members: frozenset[str]


class Kind(Struct, frozen=True, kw_only=True):
    """One product of the soak.

    Args:
        emulator: its emulator; `options` start it, and `first` is seeded before anything else.
        key: what an account is found by: from a person of Entra.
        rename: the attributes that decide that key.
        wished: what the product shall hold of a person who is in scope.
        accounts, groups: what it holds, read from the emulator's state.
        stranger, ours: the document of an account that nobody of Entra has, and one that a person has already.
        strangers_group: the document of a group that nobody of Entra has, given the ids of accounts; None where it has none.
        stays: a user who is deleted stays as an inactive account.
        keeps_names: and nobody else gets that account's name, which is refused until the administrator has cleaned up there.
    """

    name: str
    connector: str
    emulator: str
    mapping: entra.Mapping
    roles: tuple[str, ...]
    settings: Callable[[str, str, list[entra.Group]], dict[str, Any]]
    key: Callable[[entra.Person], str]
    wished: Callable[[entra.Person], dict[str, Any]]
    accounts: Callable[[State], list[Account]]
    stranger: Callable[[int], dict[str, Any]]
    ours: Callable[[entra.Person], dict[str, Any]]
    groups: Callable[[State], list[Held]] | None = None
    strangers_group: Callable[[list[str], list[str]], dict[str, Any]] | None = None
    group_key: Callable[[entra.Group], str] = lambda group: group.object_id
    options: Mapping[str, Any] = {}
    first: Mapping[str, Any] = {}
    stays: bool = False
    keeps_names: bool = False
    managers: bool = False


def _address(person: entra.Person) -> str:
    return person.user_principal_name.casefold()


def _a_stranger(number: int) -> str:
    return f"stranger{number}@example.com"


def _names(person: entra.Person) -> dict[str, Any]:
    return {"given": person.given_name, "family": person.surname}


def _manager(person: entra.Person) -> str:
    return person.manager or ""


# ---- TeleMessage


def _telemessage(url: str, secret: str, groups: list[entra.Group]) -> dict[str, Any]:
    return {"base_url": url, "token": {"file": secret}, "manager_name": MANAGER, "allow_loopback": True}


def _telemessage_accounts(state: State) -> list[Account]:
    return [
        Account(
            held["id"],
            held["mobilePhone"],
            held["status"] == "active",
            {"given": held["firstName"], "family": held["lastName"], "mail": held["email"], "login": held["userName"]},
        )
        for held in state["users"].values()
    ]


# ---- Talkdesk


def _talkdesk(url: str, secret: str, groups: list[entra.Group]) -> dict[str, Any]:
    names = {"roles": TALKDESK_ROLES, "teams": TEAMS}
    return {"base_url": url, "token": {"file": secret}, **names, "allow_loopback": True}


def _talkdesk_accounts(state: State) -> list[Account]:
    return [
        Account(
            held["id"],
            held["userName"].casefold(),
            held["active"],
            {
                "given": held["givenName"],
                "family": held["familyName"],
                "object": held["externalId"],
                "roles": held["rolesString"],
                "team": held["teamsString"],
            },
        )
        for held in state["users"].values()
        if not held["deleted"]
    ]


def _talkdesk_wish(person: entra.Person) -> dict[str, Any]:
    team = person.extension.get("extensionAttribute1", "")
    return {**_names(person), "object": person.object_id, "roles": person.roles[0].value, "team": team}


# ---- babelforce


def _babelforce(url: str, secret: str, groups: list[entra.Group]) -> dict[str, Any]:
    integration = {"integration_user": INTEGRATION_USER, "rename": "recreate", "create_agents": True}
    return {"base_url": url, "token": {"file": secret}, **integration, "allow_loopback": True}


def _babelforce_scim(url: str, secret: str, groups: list[entra.Group]) -> dict[str, Any]:
    integration = {"integration_user": INTEGRATION_USER, "target": "scim"}
    return {"base_url": url, "token": {"file": secret}, **integration, "allow_loopback": True}


def _babelforce_accounts(state: State) -> list[Account]:
    agents = {agent["email"]: agent["name"] for agent in state["agents"].values()}
    return [
        Account(
            held["id"],
            held["email"],
            held["enabled"],
            {"roles": frozenset(held["roles"]), "shown": agents.get(held["email"])},
        )
        for held in state["users"].values()
    ]


def _babelforce_wish(person: entra.Person) -> dict[str, Any]:
    roles = frozenset(role.value for role in person.roles)
    return {"roles": roles, **({"shown": person.display_name} if "agent" in roles else {})}


def _babelforce_scim_accounts(state: State) -> list[Account]:
    return [
        Account(
            held["id"],
            held["email"],
            held["enabled"],
            {"roles": frozenset(held["roles"]), "shown": held.get("displayName")},
        )
        for held in state["users"].values()
    ]


def _babelforce_scim_wish(person: entra.Person) -> dict[str, Any]:
    return {"roles": frozenset(role.value for role in person.roles), "shown": person.display_name}


_SWITCHED_ON = {
    "defaultRoles": [],
    "customizer": "microsoft",
    "features": {"scim": True, "groups": False, "roles": True, "password_sync": False, "phone_number_sync": False},
}


# ---- Bob's Business


def _bobs(url: str, secret: str, groups: list[entra.Group]) -> dict[str, Any]:
    return {
        "tenant_url": f"{url}/scim/v2",
        "api_key": {"file": secret},
        "invite": "on_create",
        "allow_loopback": True,
    }


def _bobs_accounts(state: State) -> list[Account]:
    return [
        Account(
            held["id"],
            held["userName"].casefold(),
            held["active"],
            {
                "given": held["givenName"],
                "family": held["familyName"],
                "shown": held["displayName"],
                "mail": held["email"],
                "object": held["externalId"],
            },
        )
        for held in state["users"].values()
    ]


def _bobs_wish(person: entra.Person) -> dict[str, Any]:
    return {**_names(person), "shown": person.display_name, "object": person.object_id}


def _scim_groups(state: State) -> list[Held]:
    return [
        Held(held["id"], held["externalId"] or "", held["displayName"], frozenset(held["members"]))
        for held in state["groups"].values()
    ]


# ---- Sofa


def _sofa(url: str, secret: str, groups: list[entra.Group]) -> dict[str, Any]:
    rows = [{"remote": group.object_id, "sofa": f"Sofa {index}"} for index, group in enumerate(groups[:MAPPED_GROUPS])]
    return {
        "endpoint_url": f"{url}/scim/entra",
        "access_key": {"file": secret},
        "key_issued": datetime.now(UTC).date().isoformat(),
        "key_validity_days": 730,
        "group_map": rows[:2],
        "role_map": rows[2:],
        "allow_loopback": True,
    }


def _sofa_accounts(state: State) -> list[Account]:
    objects = {held["id"]: held["sso_identifier"] or "" for held in state["users"].values()}
    return [
        Account(
            held["id"],
            held["user_name"].casefold(),
            held["enabled"],
            {
                "given": held["name"],
                "family": held["surname"],
                "shown": held["virtual_display_name"],
                "title": held["job"],
                "mail": held["notification_email"],
                "mobile": "".join(filter(str.isdigit, held["mobile_phone"] or "")),
                "object": held["sso_identifier"],
                "number": held["personal_number"],
                "department": held["department"],
                "manager": objects.get(held["direct_superior"] or "", ""),
            },
        )
        for held in state["users"].values()
    ]


def _sofa_wish(person: entra.Person) -> dict[str, Any]:
    return {
        **_names(person),
        "shown": person.display_name,
        "title": person.job_title,
        "mail": person.mail,
        "mobile": person.mobile,
        "object": person.object_id,
        "number": person.employee_id,
        "department": person.department,
        "manager": _manager(person),
    }


# ---- any product that speaks SCIM, and any product with REST calls


def _scim(url: str, secret: str, groups: list[entra.Group]) -> dict[str, Any]:
    return {
        "base_url": f"{url}/scim/v2",
        "auth": {"token": {"file": secret}},
        "omit": SCIM_OMITS,
        "allow_loopback": True,
    }


SCIM_OMITS = tuple(
    f'addresses[type eq "work"].{part}'
    for part in ("formatted", "streetAddress", "locality", "region", "postalCode", "country")
)


def _scim_accounts(state: State) -> list[Account]:
    return [
        Account(
            held["id"],
            held["userName"].casefold(),
            held["active"],
            {
                "given": held["givenName"],
                "family": held["familyName"],
                "shown": held["displayName"],
                "title": held["title"],
                "mail": held["email"],
                "mobile": held["mobile"],
                "nickname": held["externalId"],
                "number": held["employee_number"],
                "department": held["department"],
            },
        )
        for held in state["users"].values()
    ]


def _scim_wish(person: entra.Person) -> dict[str, Any]:
    return {
        **_names(person),
        "shown": person.display_name,
        "title": person.job_title,
        "mail": person.mail,
        "mobile": person.mobile,
        "nickname": person.mail_nickname,
        "number": person.employee_id,
        "department": person.department,
    }


class _Rest(shipped.GenericRestByCalls):
    page_size: ClassVar[int] = 10


REST_VALUES = {role: f"r-{role}" for role in CALL_ROLES}


def _rest(url: str, secret: str, groups: list[entra.Group]) -> dict[str, Any]:
    table = _Rest().settings(url, secret)
    more = {
        'emails[type eq "work"].value': {"field": "contact.email"},
        'phoneNumbers[type eq "mobile"].value': {"field": "contact.mobile"},
        "roles": {"field": "role.name", "through": "calls", "values": REST_VALUES},
    }
    return {**table, "attributes": {**table["attributes"], **more}}


def _rest_accounts(state: State) -> list[Account]:
    return [
        Account(
            held["id"],
            held["login"].casefold(),
            held["status"] != "disabled",
            {
                "given": held["name"]["first"],
                "family": held["name"]["last"],
                "mail": held["contact"]["email"],
                "mobile": held["contact"]["mobile"],
                "object": held["external_id"],
                "roles": frozenset(held["roles"]),
            },
        )
        for held in state["users"].values()
    ]


def _rest_wish(person: entra.Person) -> dict[str, Any]:
    roles = frozenset(REST_VALUES[role.value] for role in person.roles)
    kept = {"mail": person.mail, "mobile": person.mobile, "object": person.object_id, "roles": roles}
    return {**_names(person), **kept}


def _rest_groups(state: State) -> list[Held]:
    return [
        Held(held["id"], held["external_id"] or "", held["name"], frozenset(held["members"]))
        for held in state["groups"].values()
    ]


REST_MAPPING = entra.Mapping(
    "rest",
    (
        entra.AttributeMapping("userPrincipalName", "userName", matching=1),
        entra.AttributeMapping("Not([IsSoftDeleted])", "active"),
        entra.AttributeMapping("givenName", "name.givenName"),
        entra.AttributeMapping("surname", "name.familyName"),
        entra.AttributeMapping("mail", 'emails[type eq "work"].value'),
        entra.AttributeMapping("mobile", 'phoneNumbers[type eq "mobile"].value'),
        entra.AttributeMapping("objectId", "externalId"),
        entra.AttributeMapping("AssertiveAppRoleAssignmentsComplex([appRoleAssignments])", "roles"),
    ),
)

KINDS: tuple[Kind, ...] = (
    Kind(
        name="telemessage",
        connector="telemessage",
        emulator="telemessage",
        mapping=entra.telemessage(MANAGER),
        roles=CALL_ROLES,
        settings=_telemessage,
        key=lambda person: person.mobile or "",
        wished=lambda person: {**_names(person), "mail": person.mail, "login": person.mobile},
        accounts=_telemessage_accounts,
        stranger=lambda number: {"mobilePhone": f"4477009009{number:02d}", "firstName": "A", "lastName": "B"},
        ours=lambda person: {"mobilePhone": person.mobile, "firstName": "Before", "lastName": "Us"},
        options={"managers": [MANAGER]},
        stays=True,
    ),
    Kind(
        name="talkdesk",
        connector="talkdesk",
        emulator="talkdesk",
        mapping=entra.TALKDESK,
        roles=TALKDESK_ROLES,
        settings=_talkdesk,
        key=_address,
        wished=_talkdesk_wish,
        accounts=_talkdesk_accounts,
        stranger=lambda number: {"userName": _a_stranger(number), "rolesString": "Supervisor"},
        ours=lambda person: {"userName": person.user_principal_name},
    ),
    Kind(
        name="babelforce",
        connector="babelforce",
        emulator="babelforce",
        mapping=entra.BABELFORCE,
        roles=CALL_ROLES,
        settings=_babelforce,
        key=lambda person: (person.mail or "").casefold(),
        wished=_babelforce_wish,
        accounts=_babelforce_accounts,
        stranger=lambda number: {"email": _a_stranger(number), "roles": ["sales"]},
        ours=lambda person: {"email": person.mail, "roles": ["sales"]},
        options={"integration_user": INTEGRATION_USER},
    ),
    Kind(
        name="babelforce-scim",
        connector="babelforce",
        emulator="babelforce",
        mapping=entra.BABELFORCE,
        roles=CALL_ROLES,
        settings=_babelforce_scim,
        key=lambda person: (person.mail or "").casefold(),
        wished=_babelforce_scim_wish,
        accounts=_babelforce_scim_accounts,
        stranger=lambda number: {"email": _a_stranger(number), "roles": ["sales"]},
        ours=lambda person: {"email": person.mail, "roles": ["sales"]},
        options={"integration_user": INTEGRATION_USER},
        first={"configuration": _SWITCHED_ON},
    ),
    Kind(
        name="bobs-business",
        connector="bobs_business",
        emulator="bobs_business",
        mapping=entra.BOBS_BUSINESS,
        roles=CALL_ROLES,
        settings=_bobs,
        key=_address,
        wished=_bobs_wish,
        accounts=_bobs_accounts,
        groups=_scim_groups,
        stranger=lambda number: {"userName": _a_stranger(number), "givenName": "A"},
        ours=lambda person: {"userName": person.user_principal_name, "givenName": "Before"},
        strangers_group=lambda keys, ids: {"displayName": "Strangers", "members": keys},
    ),
    Kind(
        name="sofa",
        connector="sofa",
        emulator="sofa",
        mapping=entra.SOFA,
        roles=CALL_ROLES,
        settings=_sofa,
        key=_address,
        wished=_sofa_wish,
        accounts=_sofa_accounts,
        groups=_scim_groups,
        stranger=lambda number: {"user_name": _a_stranger(number), "surname": "B"},
        ours=lambda person: {"user_name": person.user_principal_name, "sso_identifier": person.object_id},
        strangers_group=lambda keys, ids: {"displayName": "Strangers", "members": keys},
        stays=True,
        keeps_names=True,
        managers=True,
    ),
    Kind(
        name="scim",
        connector="scim",
        emulator="scim",
        mapping=entra.Mapping("scim", tuple(row for row in entra.DEFAULT.attributes if row.source != "manager")),
        roles=CALL_ROLES,
        settings=_scim,
        key=_address,
        wished=_scim_wish,
        accounts=_scim_accounts,
        groups=_scim_groups,
        stranger=lambda number: {"userName": _a_stranger(number), "familyName": "B"},
        ours=lambda person: {"userName": person.user_principal_name, "familyName": "Before"},
        strangers_group=lambda keys, ids: {"displayName": "Strangers", "members": ids},
    ),
    Kind(
        name="rest",
        connector="rest",
        emulator="rest_service",
        mapping=REST_MAPPING,
        roles=CALL_ROLES,
        settings=_rest,
        key=_address,
        wished=_rest_wish,
        accounts=_rest_accounts,
        groups=_rest_groups,
        stranger=lambda number: {"login": _a_stranger(number)},
        ours=lambda person: {"login": person.user_principal_name},
        strangers_group=lambda keys, ids: {"name": "Strangers", "members": ids},
        options={
            "page_max": _Rest.page_size,
            "paging": "path",
            "patch": "operations",
            "states": "calls",
            "members": "memberships",
            "ids": "text",
            "quirks": ["invites", "off_first"],
        },
    ),
)


def toml(value: Any) -> str:
    """A value in TOML, on one line."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case Mapping():
            return "{ " + ", ".join(f"{json.dumps(str(name))} = {toml(one)}" for name, one in value.items()) + " }"
        case list() | tuple():
            return f"[{', '.join(map(toml, value))}]"
    return json.dumps(str(value))
