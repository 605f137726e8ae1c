"""How the connectors shipped here are tried: one class each, found by the connector's name."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from connectors.observe import Observe as ObserveConnector
from connectors.testing.conformance import PROMISES, WITHOUT_GROUPS, Bench, Conformance, Seen, SeenGroup
from connectors.testing.harness import Emulator
from deploy.emulators.babelforce import DEMO_LOGIN, BabelforceEmulator
from deploy.emulators.bobs_business import BobsBusinessEmulator
from deploy.emulators.rest_service import RestServiceEmulator
from deploy.emulators.scim import ScimProductEmulator
from deploy.emulators.sofa import SofaEmulator
from deploy.emulators.talkdesk import EXTENSION, TalkdeskEmulator
from deploy.emulators.telemessage import TelemessageEmulator

SCIM_PAGE_HALF = 50
"""Half of what the SCIM emulators put on one page, so that one account more than two halves needs a second page."""


NO_ROLES: Mapping[str, str] = {"unknown_role": "the product has no roles or teams by name"}


def _person(number: int, text: str, active: bool) -> dict[str, Any]:
    """A person as Entra's default mapping sends it."""
    login = f"person{number}@example.com"
    return {
        "userName": login,
        "externalId": f"00000000-0000-4000-8000-{number:012d}",
        "displayName": text,
        "name": {"givenName": text, "familyName": "Example"},
        "emails": [{"type": "work", "value": login, "primary": True}],
        "active": active,
    }


def _scim_groups(bench: Bench) -> list[SeenGroup]:
    return [
        SeenGroup(held["id"], held["displayName"], frozenset(held["members"]))
        for held in bench.product.state()["groups"].values()
    ]


class TeleMessage(Conformance):
    """Known by a mobile number; a deletion suspends."""

    connector = "telemessage"
    create_call = ("POST", "/v1/users$")
    not_applicable = {**NO_ROLES, **WITHOUT_GROUPS}
    page_size = 3
    manager: ClassVar[str] = "Contoso Archive"

    def emulator(self) -> Emulator | None:
        """With short pages."""
        return TelemessageEmulator(token=self.credential, rate_per_s=0, page_users=self.page_size)

    def settings(self, url: str, secret: str) -> dict[str, Any]:
        """One company manager."""
        return {"base_url": url, "token": {"file": secret}, "manager_name": self.manager, "allow_loopback": True}

    def user(self, number: int, *, text: str = "Ada Example", active: bool = True) -> dict[str, Any]:
        """Numbers of a range that is given out."""
        mobile = f"+44 7400 {123000 + number}"
        return {
            **_person(number, text, active),
            "userName": mobile,
            "externalId": mobile,
            "displayName": self.manager,
        }

    def accounts(self, bench: Bench) -> list[Seen]:
        """Suspended ones are there and not active."""
        return [
            Seen(held["id"], held["mobilePhone"], held["status"] == "active", (held["firstName"], held["lastName"]))
            for held in bench.product.state()["users"].values()
        ]


class Talkdesk(Conformance):
    """SCIM with PUT, roles and teams by exact name."""

    connector = "talkdesk"
    not_applicable = WITHOUT_GROUPS
    create_call = ("POST", "/scim/v2/Users$")
    page_size = SCIM_PAGE_HALF

    def emulator(self) -> Emulator | None:
        """With the roles and teams of the demonstration."""
        return TalkdeskEmulator(token=self.credential, rate_per_s=0)

    def settings(self, url: str, secret: str) -> dict[str, Any]:
        """With the catalogue of names."""
        names = {"roles": ["Agent", "Supervisor", "Administrator"], "teams": ["Porto"]}
        return {"base_url": url, "token": {"file": secret}, "allow_loopback": True, **names}

    def user(self, number: int, *, text: str = "Ada Example", active: bool = True) -> dict[str, Any]:
        """With a role and a team."""
        held = {"rolesString": "supervisor", "teamsString": "Porto"}
        return {**_person(number, text, active), EXTENSION: held}

    def with_unknown_role(self, user: dict[str, Any], role: str) -> dict[str, Any] | None:
        """Roles come as text."""
        return {**user, EXTENSION: {"rolesString": role}}

    def accounts(self, bench: Bench) -> list[Seen]:
        """Deleted ones stay in the users API only."""
        return [
            Seen(held["id"], held["userName"], held["active"], (held["givenName"],))
            for held in bench.product.state()["users"].values()
            if not held["deleted"]
        ]


class Babelforce(Conformance):
    """REST with logins that cannot be renamed; a name is the linked agent's."""

    connector = "babelforce"
    not_applicable = WITHOUT_GROUPS
    create_call = ("POST", "/api/v2/users$")
    page_size = 3
    rename: ClassVar[Literal["same", "refused"]] = "refused"

    def emulator(self) -> Emulator | None:
        """With the integration's own user."""
        return BabelforceEmulator(token=self.credential, rate_per_s=0)

    def settings(self, url: str, secret: str) -> dict[str, Any]:
        """Over REST; agents are made, because they carry the name."""
        return {
            "base_url": url,
            "token": {"file": secret},
            "integration_user": DEMO_LOGIN[0],
            "create_agents": True,
            "allow_loopback": True,
        }

    def user(self, number: int, *, text: str = "Ada Example", active: bool = True) -> dict[str, Any]:
        """With the role of an agent."""
        return {**_person(number, text, active), "roles": [{"value": "agent"}]}

    def with_unknown_role(self, user: dict[str, Any], role: str) -> dict[str, Any] | None:
        """App roles."""
        return {**user, "roles": [{"value": role}]}

    def accounts(self, bench: Bench) -> list[Seen]:
        """All but the integration's own user."""
        state = bench.product.state()
        names = {agent["email"]: agent["name"] for agent in state["agents"].values()}
        return [
            Seen(held["id"], held["email"], held["enabled"], (names.get(held["email"], ""),))
            for held in state["users"].values()
            if held["email"] != DEMO_LOGIN[0]
        ]


class BabelforceScim(Babelforce):
    """The same product over its SCIM interface, which can rename."""

    create_call = ("POST", "/auth/scim/v2/Users$")
    page_size = SCIM_PAGE_HALF
    rename = "same"

    def emulator(self) -> Emulator | None:
        """With SCIM switched on."""
        emulator = BabelforceEmulator(token=self.credential, rate_per_s=0)
        self._switch_on(emulator)
        return emulator

    def lose_accounts(self, bench: Bench) -> None:
        """The configuration stays."""
        super().lose_accounts(bench)
        self._switch_on(bench.product)

    @staticmethod
    def _switch_on(emulator: Emulator) -> None:
        features = {"scim": True, "groups": False, "roles": True, "password_sync": False, "phone_number_sync": False}
        emulator.seed({"configuration": {"defaultRoles": [], "customizer": "microsoft", "features": features}})

    def settings(self, url: str, secret: str) -> dict[str, Any]:
        """Over SCIM."""
        table = {**super().settings(url, secret), "target": "scim"}
        del table["create_agents"]
        return table

    def accounts(self, bench: Bench) -> list[Seen]:
        """The display name is the user's own here."""
        return [
            Seen(held["id"], held["email"], held["enabled"], (held.get("displayName") or "",))
            for held in bench.product.state()["users"].values()
            if held["email"] != DEMO_LOGIN[0]
        ]


class BobsBusiness(Conformance):
    """SCIM where a second spelling of an address would make a second account."""

    connector = "bobs_business"
    create_call = ("POST", "/scim/v2/Users$")
    create_group_call = ("POST", "/scim/v2/Groups$")
    not_applicable = NO_ROLES
    page_size = SCIM_PAGE_HALF

    def emulator(self) -> Emulator | None:
        """One organisation."""
        return BobsBusinessEmulator(token=self.credential, rate_per_s=0)

    def settings(self, url: str, secret: str) -> dict[str, Any]:
        """Tenant URL and key."""
        return {"tenant_url": f"{url}/scim/v2", "api_key": {"file": secret}, "allow_loopback": True}

    def user(self, number: int, *, text: str = "Ada Example", active: bool = True) -> dict[str, Any]:
        """The default mapping."""
        return _person(number, text, active)

    def accounts(self, bench: Bench) -> list[Seen]:
        """Users."""
        return [
            Seen(held["id"], held["userName"], held["active"], (held["givenName"] or "", held["displayName"] or ""))
            for held in bench.product.state()["users"].values()
        ]

    def groups(self, bench: Bench) -> list[SeenGroup]:
        """Groups with the ids of their users."""
        return _scim_groups(bench)


class Sofa(Conformance):
    """SCIM of one synchronization, with an access key that ends on a date."""

    connector = "sofa"
    create_call = ("POST", "/scim/entra/Users$")
    create_group_call = ("POST", "/scim/entra/Groups$")
    not_applicable = NO_ROLES
    page_size = SCIM_PAGE_HALF
    deleted_stays = True

    def emulator(self) -> Emulator | None:
        """With the first synchronization."""
        return SofaEmulator(token=self.credential, rate_per_s=0)

    def settings(self, url: str, secret: str) -> dict[str, Any]:
        """A key generated today."""
        return {
            "endpoint_url": f"{url}/scim/entra",
            "access_key": {"file": secret},
            "key_issued": datetime.now(UTC).date().isoformat(),
            "key_validity_days": 730,
            "forward_unmapped_groups": True,
            "allow_loopback": True,
        }

    def user(self, number: int, *, text: str = "Ada Example", active: bool = True) -> dict[str, Any]:
        """The default mapping, externalId from objectId."""
        return _person(number, text, active)

    def accounts(self, bench: Bench) -> list[Seen]:
        """Users as the administrator sees them."""
        return [
            Seen(held["id"], held["user_name"], held["enabled"], (held["name"] or "",))
            for held in bench.product.state()["users"].values()
        ]

    def groups(self, bench: Bench) -> list[SeenGroup]:
        """Groups with the ids of their users."""
        return _scim_groups(bench)


class Observe(Conformance):
    """Calls nobody: what it holds is what it has seen."""

    connector = "observe"
    not_applicable = {name: "calls nobody" for name, promise in PROMISES.items() if promise.calls}

    def emulator(self) -> Emulator | None:
        """There is no product."""
        return None

    def settings(self, url: str, secret: str) -> dict[str, Any]:
        """Nothing to set."""
        return {}

    def user(self, number: int, *, text: str = "Ada Example", active: bool = True) -> dict[str, Any]:
        """The default mapping."""
        return _person(number, text, active)

    def accounts(self, bench: Bench) -> list[Seen]:
        """The newest sight of every account."""
        assert isinstance(bench.connector, ObserveConnector)
        held: dict[str, Seen] = {}
        for sight in bench.connector.sights:
            user = sight.resource
            held[sight.account_id] = Seen(sight.account_id, sight.account_id, True, (str(user),))
        return list(held.values())


class GenericScim(Conformance):
    """Any product that speaks SCIM, here one that speaks it as RFC 7644 has it."""

    connector = "scim"
    not_applicable = NO_ROLES
    create_call = ("POST", "/scim/v2/Users$")
    create_group_call = ("POST", "/scim/v2/Groups$")
    page_size = 3
    product_options: ClassVar[Mapping[str, Any]] = {}
    options: ClassVar[Mapping[str, Any]] = {}

    def emulator(self) -> Emulator | None:
        """With short pages."""
        return ScimProductEmulator(token=self.credential, rate_per_s=0, page_max=self.page_size, **self.product_options)

    def settings(self, url: str, secret: str) -> dict[str, Any]:
        """As RFC 7644 has it."""
        auth = {"token": {"file": secret}}
        table = {"base_url": f"{url}/scim/v2", "auth": auth, "page_size": self.page_size, "allow_loopback": True}
        return {**table, **self.options}

    def user(self, number: int, *, text: str = "Ada Example", active: bool = True) -> dict[str, Any]:
        """The default mapping."""
        return _person(number, text, active)

    def accounts(self, bench: Bench) -> list[Seen]:
        """Users; a dialect may write booleans as texts."""
        return [
            Seen(held["id"], held["userName"], held["active"] in (True, "True"), (held["displayName"] or "",))
            for held in bench.product.state()["users"].values()
        ]

    def groups(self, bench: Bench) -> list[SeenGroup]:
        """Groups with the ids of their users."""
        return _scim_groups(bench)


class GenericScimPut(GenericScim):
    """The other end of the dialects: PUT, no filters, booleans as texts, cursors, versions, and addresses in place of ids."""

    product_options: ClassVar[Mapping[str, Any]] = {
        "patch": False,
        "filter": False,
        "booleans": "text",
        "paging": "cursor",
        "etag": True,
        "ids": "location",
        "taken": "empty",
        "spelling": "folded",
        "enterprise": "urn:scim:schemas:extension:enterprise:1.0",
    }
    options: ClassVar[Mapping[str, Any]] = {
        "update": "put",
        "filter": "scan",
        "booleans": "text",
        "paging": "cursor",
        "etag": True,
        "enterprise_urn": "urn:scim:schemas:extension:enterprise:1.0",
    }


class GenericRest(Conformance):
    """Any product with plain REST calls, declared in its settings."""

    connector = "rest"
    not_applicable = WITHOUT_GROUPS
    create_call = ("POST", "/api/users$")
    page_size = 3

    def emulator(self) -> Emulator | None:
        """With short pages."""
        return RestServiceEmulator(token=self.credential, rate_per_s=0, page_max=self.page_size, paging="page")

    def settings(self, url: str, secret: str) -> dict[str, Any]:
        """The calls and fields of the emulated product."""
        one = {"item": "data"}
        return {
            "base_url": f"{url}/api",
            "auth": {"token": {"file": secret}},
            "endpoints": {
                "create": {"path": "/users", **one},
                "update": {"path": "/users/{id}", **one},
                "read": {"path": "/users/{id}", **one},
                "list": {"path": "/users", "items": "data"},
                "find": {"path": "/users", "items": "data"},
                "delete": {"path": "/users/{id}"},
            },
            "attributes": {
                "userName": {"field": "login", "required": True},
                "externalId": {"field": "external_id"},
                "name.givenName": {"field": "name.first"},
                "name.familyName": {"field": "name.last"},
                "roles": {"field": "roles", "many": "list", "values": {"Agent": "agent"}},
            },
            "identity": {"userName": {"parameter": "login"}},
            "active": {"field": "status", "on": "enabled", "off": "disabled"},
            "paging": {
                "way": "page",
                "parameter": "page",
                "size_parameter": "per_page",
                "size": self.page_size,
                "total": "meta.total",
            },
            "allow_loopback": True,
        }

    def user(self, number: int, *, text: str = "Ada Example", active: bool = True) -> dict[str, Any]:
        """The default mapping, and a role."""
        return {**_person(number, text, active), "roles": [{"value": "Agent"}]}

    def with_unknown_role(self, user: dict[str, Any], role: str) -> dict[str, Any] | None:
        """Not in the table of values."""
        return {**user, "roles": [{"value": role}]}

    def accounts(self, bench: Bench) -> list[Seen]:
        """Users."""
        return [
            Seen(held["id"], held["login"], held["status"] == "enabled", (held["name"]["first"] or "",))
            for held in bench.product.state()["users"].values()
        ]


class GenericRestByCalls(GenericRest):
    """The other end of what is declared: look-ups read everybody, and states, roles and members have calls of their own."""

    not_applicable: ClassVar[Mapping[str, str]] = {}
    create_group_call = ("POST", "/api/groups$")

    def emulator(self) -> Emulator | None:
        """Operations, next pages at addresses of their own, invited users, memberships with ids."""
        return RestServiceEmulator(
            token=self.credential,
            rate_per_s=0,
            page_max=self.page_size,
            paging="path",
            patch="operations",
            states="calls",
            members="memberships",
            ids="text",
            quirks=["invites", "off_first"],
        )

    def settings(self, url: str, secret: str) -> dict[str, Any]:
        """Those calls."""
        table = super().settings(url, secret)
        one = {"item": "data"}
        pages = {"parameter": "offset", "size_parameter": "limit", "size": self.page_size}
        return {
            **table,
            "update": "json_patch",
            "off_before_delete": True,
            "endpoints": {
                **table["endpoints"],
                "activate": {"path": "/users/{id}/enable", **one},
                "deactivate": {"path": "/users/{id}/disable", **one},
                "roles": {"path": "/users/{id}/roles", "items": "roles"},
                "grant": {"path": "/users/{id}/roles", "body": {"name": "{role}"}},
                "revoke": {"path": "/users/{id}/roles/{role}"},
            },
            "attributes": {
                **table["attributes"],
                "roles": {"field": "role.name", "through": "calls", "values": {"Agent": "agent"}},
            },
            "identity": {"userName": {"scan": True}},
            "active": {"way": "calls", "field": "status", "on": "enabled", "off": "disabled", "also_on": ["invited"]},
            "paging": {
                "way": "cursor",
                "parameter": "cursor",
                "next": "meta.next",
                "size_parameter": "limit",
                "size": 3,
            },
            "groups": {
                "name": "name",
                "external_id": "external_id",
                "lookup": {"scan": True},
                "paging": {"way": "offset", "first": 0, "more": "more", **pages},
                "members": {"id": "user.id", "membership": "id"},
                "endpoints": {
                    "list": {"path": "/groups", "items": "groups"},
                    "read": {"path": "/groups/{id}", "item": "group"},
                    "create": {"path": "/groups", "item": "group"},
                    "update": {"path": "/groups/{id}", "item": "group"},
                    "delete": {"path": "/groups/{id}"},
                    "members": {"path": "/groups/{id}/members", "items": "members"},
                    "add": {
                        "path": "/memberships",
                        "body": {"group_id": "{id:number}", "user_id": "{member}"},
                    },
                    "remove": {"path": "/memberships/{membership}"},
                },
            },
        }

    def accounts(self, bench: Bench) -> list[Seen]:
        """Users; who is invited is let in."""
        return [
            Seen(f"crm|{held['id']}", held["login"], held["status"] != "disabled", (held["name"]["first"] or "",))
            for held in bench.product.state()["users"].values()
        ]

    def groups(self, bench: Bench) -> list[SeenGroup]:
        """Groups with the ids of their users."""
        return [
            SeenGroup(held["id"], held["name"], frozenset(f"crm|{one}" for one in held["members"]))
            for held in bench.product.state()["groups"].values()
        ]


SHIPPED: Mapping[str, tuple[type[Conformance], ...]] = {
    "babelforce": (Babelforce, BabelforceScim),
    "bobs_business": (BobsBusiness,),
    "observe": (Observe,),
    "rest": (GenericRest, GenericRestByCalls),
    "scim": (GenericScim, GenericScimPut),
    "sofa": (Sofa,),
    "talkdesk": (Talkdesk,),
    "telemessage": (TeleMessage,),
}
"""Connector -> its trials; one that can speak two ways has two."""
