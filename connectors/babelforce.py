"""babelforce: users with a fixed list of roles, over the native REST API or, as second target, over SCIM.

Documented (vendor's API description, SDKs and Okta guide): e-mail addresses in lower case are the logins; bulk calls answer one
`success` for the whole list; ids are 32 hex digits without hyphens; there is no call that changes a login and no field for a
person's name. From the seed: the configuration document, the role values, the integration's own user. Assumed: 5 calls a second,
the meaning of `defaultRoles`, the link from a user to its agent, and every SCIM shape beyond RFC 7644.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from msgspec import UNSET, Meta, Struct, UnsetType

from connectors.contract import (
    Connector,
    Delivery,
    Difference,
    Directory,
    Endpoint,
    Expected,
    Finding,
    Found,
    Held,
    Identity,
    Imagined,
    VendorHttp,
    VendorResponse,
    Write,
)
from connectors.http import Bearer, address_problem, already_there, error_of, vendor_text
from connectors.scim import ScimClient, as_text, checked_id, held_text, ignored_paths, texts, visible
from schemas.config import Secret
from schemas.errors import Conflict, Gone, NormalizationError, Rejected, Unavailable
from schemas.events import identity, split_identity
from schemas.resources import USER_SCHEMA, User
from schemas.specs import Attribute, RateLimit, Spec

TITLE = "babelforce"
MANAGED_ROLES = ("manager", "agent", "scheduler", "reporter", "router", "supervisor", "sales")
"""The roles Entra may give and take (B16); all others at the product are neither given nor taken."""
ENTRA_ROLES = frozenset({"msiam_access", "user"})
"""App roles that Entra makes by itself; they mean nothing here (B17)."""
SCIM_PREFIX = "/auth/scim/v2"
CONFIGURATION_PATH = f"{SCIM_PREFIX}/configuration"
DEVELOPMENT_HOST = "latest.dev.babelforce.com"
NOT_DONE_TRIES_MAX = 3
"""A call answered with `success: false` is sent this often before the change is given up."""
NOT_DONE_WAIT_S = 0.25
LIST_BYTES_MAX = 16 * 1024 * 1024
"""Users come in one answer, whatever is asked: about 500 bytes each, so that thirty thousand of them still fit."""

_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_EMAIL = re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+")
_DUPLICATE = re.compile(r"\b(exist|exists|taken|duplicate|in use)\b", re.IGNORECASE)


def normalize_roles(
    payload: Any,
    default_roles: Sequence[str] = (),
    creating: bool = True,
    unknown: Literal["reject", "ignore"] = "reject",
) -> list[str]:
    """The roles in Entra's value as babelforce spells them, in order, without duplicates (B14-B17).

    Args:
        payload: any form in which Entra sends app roles; null and unset give none.
        default_roles: taken on create when nothing is left.
        creating: False for a replacement, where nothing left means no roles.
        unknown: `ignore` drops what babelforce does not have, `owner` included.

    Raises:
        NormalizationError: `unknown_role`; `names` lists all of them, and nothing is applied.
    """
    names = {visible(text): None for text in texts(payload)}
    folded = {name: name.casefold() for name in names if name and name.casefold() not in ENTRA_ROLES}
    bad = [name for name, role in folded.items() if role not in MANAGED_ROLES]
    if bad and unknown == "reject":
        hint = (
            " Only one role per value; nothing separates roles." if any(";" in one or "," in one for one in bad) else ""
        )
        raise NormalizationError(
            f"{TITLE} has no role {', '.join(map(repr, bad))} that Entra may give; there are {', '.join(MANAGED_ROLES)}."
            f"{hint} Correct the value of the app role in Entra.",
            code="unknown_role",
            attribute="roles",
            names=bad,
        )
    roles = list(dict.fromkeys(role for role in folded.values() if role in MANAGED_ROLES))
    if not roles and creating:
        return list(dict.fromkeys(visible(role).casefold() for role in default_roles))
    return roles


def role_diff(current: Iterable[str], desired: Iterable[str]) -> dict[str, list[str]]:
    """What has to be given and taken so that a user holds exactly the desired managed roles.

    Returns:
        `add` in the order of `desired`, `remove` in the order of `current`. Roles that are not managed here, such as `owner`, are
        in neither. Applying the difference twice changes nothing.
    """
    held, wanted = list(dict.fromkeys(current)), list(dict.fromkeys(desired))
    return {
        "add": [role for role in wanted if role in MANAGED_ROLES and role not in held],
        "remove": [role for role in held if role in MANAGED_ROLES and role not in wanted],
    }


def normalize_login(user_name: Any) -> str:
    """A login as babelforce keeps it: an e-mail address in lower case (B11).

    Raises:
        NormalizationError: `missing`, or `bad_email`, also for the user principal name of a guest.
    """
    login = visible(user_name).lower() if isinstance(user_name, str) else ""
    if user_name is None or (isinstance(user_name, str) and not login):
        raise NormalizationError(
            f"userName is blank; {TITLE} needs the e-mail address as login. Map userName from mail and fill it in Entra.",
            code="missing",
            attribute="userName",
        )
    if _EMAIL.fullmatch(login) is None or "#ext#" in login:
        raise NormalizationError(
            f"userName must be an e-mail address ({TITLE}), not a guest's principal name. Map userName from mail.",
            code="bad_email",
            attribute="userName",
        )
    return login


# The configuration document -------------------------------------------------------------------------------------------


def configuration_document(default_roles: Sequence[str] = ()) -> dict[str, Any]:
    """What `PUT /auth/scim/v2/configuration` has to be sent (B4)."""
    return {
        "defaultRoles": list(default_roles),
        "customizer": "microsoft",
        "features": {
            "scim": True,
            "groups": False,
            "roles": True,
            "password_sync": False,
            "phone_number_sync": False,
        },
    }


def difference(held: Any, wanted: Mapping[str, Any]) -> list[Difference]:
    """Where the document held by the product differs from the wanted one, in the order of the wanted one.

    What the product holds beyond it is not a difference; a setting that is absent is held as None.
    """
    found: list[Difference] = []
    table = held if isinstance(held, Mapping) else {}
    for name, value in wanted.items():
        if isinstance(value, Mapping):
            found += [
                Difference(path=f"{name}.{one.path}", held=one.held, wanted=one.wanted)
                for one in difference(table.get(name), value)
            ]
        elif table.get(name) != value:
            found.append(Difference(path=name, held=table.get(name), wanted=value))
    return found


def surplus(held: Any, wanted: Mapping[str, Any]) -> list[Difference]:
    """What the document holds beyond the wanted one, in the order held: writing the exact document (B4) takes it away."""
    found: list[Difference] = []
    for name, value in held.items() if isinstance(held, Mapping) else ():
        if name not in wanted:
            found.append(Difference(path=str(name), held=value, wanted=None))
        elif isinstance(wanted[name], Mapping):
            found += [
                Difference(path=f"{name}.{one.path}", held=one.held, wanted=None)
                for one in surplus(value, wanted[name])
            ]
    return found


async def read_configuration(http: VendorHttp, ctx: Delivery | None = None) -> dict[str, Any]:
    """The SCIM configuration document as the product holds it (B3).

    Raises:
        Misconfigured: the token may not read it, or there is no such address. Unavailable: no usable answer.
    """
    answer = await http.request("GET", CONFIGURATION_PATH, ctx=ctx)
    if not isinstance(answer.body, dict):
        raise Unavailable(f"{TITLE} answered GET {CONFIGURATION_PATH} without a document", code="malformed")
    return answer.body


async def write_configuration(
    http: VendorHttp, wanted: Mapping[str, Any], ctx: Delivery | None = None
) -> dict[str, Any]:
    """Put the document and read it again.

    Returns:
        What the product holds now; compare it with `difference`.

    Raises:
        As `read_configuration`; Rejected: the product refuses the document.
    """
    await http.request("PUT", CONFIGURATION_PATH, ctx=ctx, json=dict(wanted), idempotent=True)
    return await read_configuration(http, ctx)


# The connector --------------------------------------------------------------------------------------------------------


class Settings(Struct, frozen=True, kw_only=True):
    """One babelforce environment."""

    token: Annotated[Secret, Meta(description="long-living token from babelforce's Success team (B2), as a reference")]
    integration_user: Annotated[
        str, Meta(description="login of the babelforce user made for this integration; never changed from here (B1)")
    ]
    namespace: Annotated[str, Meta(description="environment in https://NAMESPACE.babelforce.com (B7)")] = "services"
    base_url: Annotated[str | None, Meta(description="instead of the namespace's host")] = None
    target: Annotated[Literal["rest", "scim"], Meta(description="which interface users are written through")] = "rest"
    default_roles: Annotated[
        tuple[str, ...], Meta(description="roles of new users without one; mirrors defaultRoles")
    ] = ()
    unknown_roles: Annotated[
        Literal["reject", "ignore"],
        Meta(description="a role babelforce does not have: refuse the user, or drop the role"),
    ] = "reject"
    absent_roles: Annotated[
        Literal["keep", "remove"], Meta(description="what an update without any roles means for the roles held")
    ] = "keep"
    rename: Annotated[Literal["refuse", "recreate"], Meta(description="rest only: what to do when a login changes")] = (
        "refuse"
    )
    agent_name_sync: Annotated[bool, Meta(description="rest only: displayName becomes the linked agent's name")] = True
    create_agents: Annotated[bool, Meta(description="rest only: make an agent for users of the role agent")] = False
    on_delete: Annotated[Literal["delete", "deactivate"], Meta(description="what a SCIM DELETE does")] = "delete"
    allow_loopback: Annotated[bool, Meta(description="for emulators: permits http to this machine")] = False

    def __post_init__(self) -> None:
        if _NAMESPACE.fullmatch(self.namespace) is None:
            raise ValueError("namespace must be the name in https://NAMESPACE.babelforce.com")
        problem = address_problem(self.base_url, allow_loopback=self.allow_loopback) if self.base_url else ""
        if problem:
            raise ValueError(f"base_url {problem}")
        try:
            normalize_login(self.integration_user)
        except NormalizationError:
            raise ValueError("integration_user must be the e-mail address that is its login") from None
        bad = [role for role in self.default_roles if role not in MANAGED_ROLES]
        if bad:
            raise ValueError(f"default_roles: {', '.join(bad)} cannot be given; there are {', '.join(MANAGED_ROLES)}")


def address_findings(settings: Settings) -> list[Finding]:
    """What is wrong with the address by itself (B6)."""
    if (urlsplit(settings.base_url or "").hostname or "") != DEVELOPMENT_HOST:
        return []
    return [
        Finding(
            level="warning",
            code="development_host",
            message=f"{DEVELOPMENT_HOST} is the vendor's development host from its sample; set namespace instead.",
        )
    ]


def _idle_settings(settings: Settings) -> list[Finding]:
    """Settings of the target rest that were made for the target scim, where they do nothing."""
    made = {"rename": settings.rename != "refuse", "create_agents": settings.create_agents}
    return [
        Finding(
            level="warning",
            code="no_effect",
            message=f'{name} does nothing with target = "scim"; take it out, or write over rest.',
        )
        for name, is_made in made.items()
        if is_made and settings.target == "scim"
    ]


class Account(Struct, frozen=True, kw_only=True):
    """What babelforce shall hold. UNSET means that Entra says nothing."""

    login: str
    active: bool
    roles: tuple[str, ...] | UnsetType = UNSET
    display_name: str | UnsetType = UNSET


class Babelforce(Connector[Settings, Account]):
    """Users of one environment."""

    spec = Spec(
        name="babelforce",
        title=TITLE,
        attributes=(
            Attribute("userName", "email", required=True, source="mail", note="the login, an e-mail address (B11)"),
            Attribute("active", "enabled", type="boolean", source="Not([IsSoftDeleted])", note="B10"),
            Attribute(
                "displayName",
                "agent.name",
                source="displayName",
                note="kept by the linked agent, if there is one (B10)",
            ),
            Attribute(
                "roles",
                "roles",
                type="complex",
                multi_valued=True,
                source="AssertiveAppRoleAssignmentsComplex([appRoleAssignments])",
                note=f"{', '.join(MANAGED_ROLES)} (B13-B16); needs the scope of assigned users only (B19)",
            ),
        ),
        groups_step=(
            f"{TITLE} has no groups: set Provision Microsoft Entra ID Groups to Enabled = No (group mapping Disabled) "
            "and give roles through app roles."
        ),
        rate_limit=RateLimit(calls=5, per_s=1.0),
        concurrency_max=4,
        on_delete="delete",
        capabilities=("list_accounts", "directory", "configuration"),
        pitfalls=(
            'A login cannot be renamed over REST; use the target scim, or rename = "recreate".',
            "The app role User must be disabled and then deleted in Entra; display name and value of every other app role equal "
            "the babelforce role.",
            "The attribute roles has to be added to Entra's attribute list (Required, Multi-Value) before it can be mapped.",
            'Assertive role mappings do nothing with the scope "Sync all users and groups".',
            "The vendor's sample configuration call points at a development host; do not copy its address.",
        ),
    )
    settings_type = Settings

    @classmethod
    def endpoint(cls, settings: Settings) -> Endpoint | None:
        """The namespace's host, or `base_url` with or without the SCIM path of the Tenant URL (B7)."""
        base_url = settings.base_url or f"https://{settings.namespace}.babelforce.com"
        return Endpoint(
            base_url=base_url.rstrip("/").removesuffix(SCIM_PREFIX),
            auth=Bearer(settings.token),
            allow_loopback=settings.allow_loopback,
            body_bytes_max=LIST_BYTES_MAX,
        )

    def __init__(self, settings: Settings, http: VendorHttp) -> None:
        super().__init__(settings, http)
        self._own = normalize_login(settings.integration_user)
        self.way: _Rest | _Scim = _Rest(settings, http) if settings.target == "rest" else _Scim(settings, http)

    def normalize(self, user: User, directory: Directory) -> Account:
        """B1, B11, B14-B17. Raises NormalizationError `missing`, `bad_email`, `unknown_role` or `integration_user`."""
        login = normalize_login(user.user_name)
        if login == self._own:
            raise NormalizationError(_OWN_USER, code="integration_user", attribute="userName")
        roles: tuple[str, ...] | UnsetType = UNSET
        if user.roles is not UNSET:
            roles = tuple(normalize_roles(user.roles, creating=False, unknown=self.settings.unknown_roles))
        display_name = as_text(user.display_name)
        return Account(login=login, active=user.is_active, roles=roles, display_name=display_name or UNSET)

    def account_keys(self, account: Account) -> tuple[str, ...]:
        """The login in lower case."""
        return (account.login,)

    def ignored(self, user: User) -> tuple[str, ...]:
        """Everything but the four attributes of B10 and B14; passwords and telephone numbers never leave the gateway (B18)."""
        return ignored_paths(user, self.spec)

    async def check(self) -> list[Finding]:
        """Token, the integration's user, role names, and for the target scim the configuration document."""
        differing = await self._configured() if self.settings.target == "scim" else []
        if [finding.level for finding in differing] == ["error"]:
            return differing  # nobody is served before that is mended, so there is nothing else to find out
        findings = [await self._own_user()]
        findings += address_findings(self.settings)
        findings += _idle_settings(self.settings)
        offered = await self._offered(None) if self.settings.target == "rest" else []
        findings += [
            Finding(
                level="error" if role in self.settings.default_roles else "warning",
                code="unknown_role",
                message=f"{TITLE} does not list the role {role!r}; users who get it in Entra will be refused.",
            )
            for role in MANAGED_ROLES
            if offered and role not in offered
        ]
        return findings + differing

    async def _configured(self) -> list[Finding]:
        """Where the configuration document differs (B4); an error where nothing can work, because SCIM itself is switched off."""
        wanted = configuration_document(self.settings.default_roles)
        differing = difference(await read_configuration(self.http), wanted)
        if not differing:
            return []
        settings = "; ".join(f"{one.path} is {one.held!r} and must be {one.wanted!r}" for one in differing)
        return [
            Finding(
                level="error" if any(one.path == "features.scim" for one in differing) else "warning",
                code="configuration_differs",
                message=f"SCIM configuration of {TITLE}: {settings}. Write it with: provgate connector configure TARGET --write",
            )
        ]

    async def read_configuration(self) -> dict[str, Any]:
        """The SCIM configuration document (B3); only the target scim has any use for it."""
        if self.settings.target != "scim":
            raise Rejected(
                f'This target writes over the REST API; {TITLE}\'s SCIM settings matter only with target = "scim".',
                code="not_needed",
            )
        return await read_configuration(self.http)

    def compare_configuration(self, held: Any) -> list[Difference]:
        """Against the exact document (B4). What goes beyond it is named only when there is something to write anyway."""
        wanted = configuration_document(self.settings.default_roles)
        differing = difference(held, wanted)
        return [*differing, *surplus(held, wanted)] if differing else []

    async def write_configuration(self) -> dict[str, Any]:
        """The exact document (B4), written and read again."""
        return await write_configuration(self.http, configuration_document(self.settings.default_roles))

    async def load_directory(self) -> dict[str, list[dict[str, Any]]]:
        """The roles babelforce lists; those that are not managed here are shown as not active."""
        offered = await self._offered(None)
        return {"role": [{"name": role, "active": role in MANAGED_ROLES} for role in offered]}

    async def find(self, account: Account | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """By login. An identity that is no address matches nothing (0.2); the integration's user is nobody's."""
        asked: dict[str, Identity] = {}
        for name in identities:
            attribute, value = split_identity(name)
            if attribute != "userName":
                continue
            try:
                asked.setdefault(normalize_login(value), name)
            except NormalizationError:
                continue
        if account is not None:
            asked.setdefault(account.login, identities[0] if identities else identity("userName", account.login))
        found = []
        for login, name in asked.items():
            account_id = await self.way.look_up(login, ctx)
            if account_id is not None:
                found.append(
                    Found(account_id=account_id, identity=name, conflict=_OWN_USER if login == self._own else "")
                )
        return found

    async def create(self, account: Account, ctx: Delivery) -> str:
        """The roles of the wish, or the default roles when nothing is left."""
        roles = account.roles or self.settings.default_roles
        return await self.way.create(account, roles, ctx)

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        """Differences only. A deactivation goes first, an activation last."""
        roles: tuple[str, ...] | UnsetType = account.roles
        if roles is UNSET and self.settings.absent_roles == "remove":
            roles = ()
        await self.way.update(account_id, account, roles, ctx)

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        """The product's delete, or deactivation where the settings say so; one that is gone is fine."""
        await self.way.delete(account_id, ctx)

    async def list_accounts(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """REST serves everything in one answer, whatever is asked; SCIM pages."""
        return await self.way.list_accounts(cursor)

    def expected(self, account: Account) -> Expected:
        """Login and managed roles, over SCIM the name too. No roles at all is not compared: a create gives the default ones."""
        values: dict[str, Any] = {"userName": account.login}
        if isinstance(account.roles, tuple) and account.roles:
            values["roles"] = sorted(account.roles)
        if isinstance(account.display_name, str) and self.settings.target == "scim":
            values["displayName"] = held_text(account.display_name)
        return Expected(identities=(identity("userName", account.login),), values=values)

    async def imagine(self, write: Write, made_id: str, held: Held, ctx: Delivery | None) -> Imagined | None:
        """For rehearsals: the REST answers wrap what is held, and each write is read back."""
        return await self.way.imagine(write, made_id, ctx) if isinstance(self.way, _Rest) else None

    # Steps ------------------------------------------------------------------------------------------------------------

    async def _own_user(self) -> Finding:
        """The first call: it also proves address and token."""
        enabled = await self.way.enabled(self._own)
        if enabled is None:
            return Finding(
                level="warning",
                code="no_integration_user",
                message=f"{TITLE} accepts the token but has no user integration_user; make one for this integration.",
            )
        if not enabled:
            return Finding(
                level="warning",
                code="integration_user_disabled",
                message=f"The user integration_user is disabled in {TITLE}; its token may end with it.",
            )
        return Finding(level="ok", code="reachable", message=f"{TITLE} accepts the token.")

    async def _offered(self, ctx: Delivery | None) -> list[str]:
        answer = await self.http.request("GET", "/api/v2/users/roles", ctx=ctx)
        items = answer.body.get("items") if isinstance(answer.body, dict) else None
        return [str(role) for role in items] if isinstance(items, list) else []


class _Rest:
    """Users over the native REST API."""

    def __init__(self, settings: Settings, http: VendorHttp) -> None:
        self.settings = settings
        self.http = http
        self._own = normalize_login(settings.integration_user)

    async def by_login(self, login: str, ctx: Delivery | None) -> dict[str, Any] | None:
        """The user of a login; compared again here, so that a product that looks up loosely hands out no stranger."""
        path = "/api/v2/users/by-email/{email}"
        answer = await self.http.request("GET", path, ctx=ctx, parts={"email": login}, expect=(404,))
        if answer.status == 404:
            return None
        held = _item(answer, "GET", path)
        return held if str(held.get("email", "")).lower() == login else None

    async def enabled(self, login: str) -> bool | None:
        """Whether a user is enabled; None when there is none."""
        held = await self.by_login(login, None)
        return None if held is None else held.get("enabled") is not False

    async def look_up(self, login: str, ctx: Delivery) -> str | None:
        """The id of the user of a login."""
        held = await self.by_login(login, ctx)
        return None if held is None else _id(held)

    async def create(self, account: Account, roles: Sequence[str], ctx: Delivery) -> str:
        path = "/api/v2/users"
        wish: dict[str, Any] = {"email": account.login, "roles": list(roles)}
        if account.active:
            wish["activated"] = True
        for last in _tries():
            answer = await self.http.request("POST", path, ctx=ctx, json=wish, expect=(400, 409, 422, 500))
            if answer.status == 500:  # the vendor may have made the user all the same
                raise Unavailable(error_of(TITLE, "POST", path, answer).message, code="server_error", ambiguous=True)
            if answer.status >= 300:
                await self._not_created(account, answer, ctx)
            if not _not_done(answer):
                break
            if await self.by_login(account.login, ctx) is not None:
                raise already_there(TITLE, "a user with this login")
            await _pause_or_give_up("POST", path, answer, last=last)
        account_id = _id(_item(answer, "POST", path))
        if not account.active:
            await self._switch(account_id, account.login, on=False, ctx=ctx)
        if self._names(account) or self.settings.create_agents:
            held = await self._read(account_id, ctx)
            await self._name(account, held, _roles(held), ctx)
        return account_id

    async def update(
        self, account_id: str, account: Account, roles: tuple[str, ...] | UnsetType, ctx: Delivery
    ) -> None:
        held = await self._read(account_id, ctx)
        login = self._checked_login(held)
        if login != account.login:
            await self._renamed(account_id, account, roles, held, ctx)
        if not account.active and held.get("enabled") is not False:
            await self._switch(account_id, login, on=False, ctx=ctx)
        if roles is not UNSET:
            await self._put_roles(account_id, login, roles, _roles(held), ctx)
        await self._name(account, held, _roles(held) if roles is UNSET else roles, ctx)
        if account.active and held.get("enabled") is not True:
            await self._switch(account_id, login, on=True, ctx=ctx)

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        try:
            held = await self._read(account_id, ctx)
        except Gone:
            return
        login = self._checked_login(held)
        if self.settings.on_delete == "deactivate":
            if held.get("enabled") is not False:
                try:
                    await self._switch(account_id, login, on=False, ctx=ctx)
                except Gone:
                    return
            return
        await self._bulk("/api/v2/users/delete", {"emails": [login]}, ctx)
        try:
            await self._read(account_id, ctx)
        except Gone:
            return
        raise _not_confirmed("deletion")

    async def list_accounts(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        path = "/api/v2/users"
        answer = await self.http.request("GET", path)
        items = answer.body.get("items") if isinstance(answer.body, dict) else None
        if not isinstance(items, list) or not all(isinstance(held, dict) for held in items):
            raise Unavailable(f"{TITLE} answered GET {path} without a list of users", code="malformed")
        return [
            {
                "account_id": _id(held),
                "identities": (identity("userName", str(held.get("email", ""))),),
                "active": held.get("enabled") is True,
                "values": {"userName": str(held.get("email", "")).lower(), "roles": _managed(_roles(held))},
            }
            for held in items
            if str(held.get("email", "")).lower() != self._own
        ], None

    async def imagine(self, write: Write, made_id: str, ctx: Delivery | None) -> Imagined | None:
        """What would be held after a call that a rehearsal did not send."""
        body = write.body if isinstance(write.body, dict) else {}
        if (write.method, write.path) == ("POST", "/api/v2/users"):
            account_id = _bare(made_id)
            made = {"id": account_id, "email": body["email"], "roles": list(body["roles"])}
            made["enabled"] = body.get("activated", False)
            return _imagined(made, status=201)
        if write.method != "POST" or "emails" not in body:
            return None
        held = await self.by_login(str(body["emails"][0]), ctx)
        if held is None:
            return Imagined(200, {"success": True})
        roles = _roles(held)
        match write.path.removeprefix("/api/v2/users/"):
            case "enable":
                return _imagined({**held, "enabled": True})
            case "disable":
                return _imagined({**held, "enabled": False})
            case "roles":
                return _imagined({**held, "roles": list(dict.fromkeys((*roles, *body["roles"])))})
            case "roles/remove":
                return _imagined({**held, "roles": [role for role in roles if role not in body["roles"]]})
            case "delete":
                return _imagined(held, gone=True)
        return None

    # Parts ------------------------------------------------------------------------------------------------------------

    async def _read(self, account_id: str, ctx: Delivery) -> dict[str, Any]:
        path = "/api/v2/users/{id}"
        return _item(await self.http.request("GET", path, ctx=ctx, parts={"id": _bare(account_id)}), "GET", path)

    def _checked_login(self, held: Mapping[str, Any]) -> str:
        login = str(held.get("email", "")).lower()
        if login == self._own:
            raise Rejected(_OWN_USER, code="integration_user", attribute="userName")
        return login

    async def _not_created(self, account: Account, answer: VendorResponse, ctx: Delivery) -> None:
        """Why a user was not made. Always raises; a user that was merely found is linked by the gateway."""
        taken = answer.status == 409 or _DUPLICATE.search(vendor_text(answer.body)) is not None
        if taken and await self.by_login(account.login, ctx) is not None:
            raise already_there(TITLE, "a user with this login")
        if taken:
            raise _unseen()
        raise _refused("POST", "/api/v2/users", answer)

    async def _switch(self, account_id: str, login: str, *, on: bool, ctx: Delivery) -> None:
        await self._bulk(f"/api/v2/users/{'enable' if on else 'disable'}", {"emails": [login]}, ctx)
        held = await self._read(account_id, ctx)  # one `success` is given for a whole list, also for unknown addresses
        if held.get("enabled") is not on:
            raise _not_confirmed("activation" if on else "deactivation")

    async def _put_roles(
        self, account_id: str, login: str, wanted: Sequence[str], held: Sequence[str], ctx: Delivery
    ) -> None:
        """Give before taking, so that a user never stands without roles in between."""
        steps = role_diff(held, wanted)
        if steps["add"]:
            await self._bulk("/api/v2/users/roles", {"emails": [login], "roles": steps["add"]}, ctx)
        if steps["remove"]:
            await self._bulk("/api/v2/users/roles/remove", {"emails": [login], "roles": steps["remove"]}, ctx)
        if steps["add"] or steps["remove"]:
            left = role_diff(_roles(await self._read(account_id, ctx)), wanted)
            if left["add"] or left["remove"]:
                raise _not_confirmed("change of roles")

    async def _bulk(self, path: str, body: Mapping[str, Any], ctx: Delivery) -> None:
        """One call for one address, safe to repeat. 404 counts as no effect, which the reading after it judges."""
        answer = await self._done("POST", path, body, ctx, expect=(400, 404, 422))
        if answer.status >= 300 and answer.status != 404:
            raise _refused("POST", path, answer)

    async def _done(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any],
        ctx: Delivery,
        *,
        parts: Mapping[str, str] | None = None,
        expect: Sequence[int] = (),
    ) -> VendorResponse:
        """A call that is safe to repeat, sent again as long as the answer is `success: false`, NOT_DONE_TRIES_MAX times in all.

        Raises:
            Rejected: `not_done`, with the product's message.
        """
        for last in _tries():
            answer = await self.http.request(
                method, path, ctx=ctx, parts=parts, json=dict(body), expect=expect, idempotent=True
            )
            if answer.status >= 300 or not _not_done(answer):
                break
            await _pause_or_give_up(method, path, answer, last=last)
        return answer

    async def _renamed(
        self,
        account_id: str,
        account: Account,
        roles: tuple[str, ...] | UnsetType,
        held: Mapping[str, Any],
        ctx: Delivery,
    ) -> None:
        """A login cannot be changed. Always raises; after a recreation Gone.

        A user of the new login that is there already, e.g. from a delivery that ended in between, is looked for by the worker and
        linked by the gateway.
        """
        if self.settings.rename == "refuse":
            raise Rejected(
                f'{TITLE} cannot rename a login over its REST API; use target = "scim", or recreate the user '
                '(rename = "recreate").',
                code="cannot_rename",
                attribute="userName",
            )
        made: str | None = None
        if await self.by_login(account.login, ctx) is None:
            kept = [role for role in _roles(held) if role in MANAGED_ROLES]
            made = await self.create(account, kept if roles is UNSET else roles, ctx)
        if held.get("enabled") is not False:
            await self._switch(account_id, str(held["email"]), on=False, ctx=ctx)
        ctx.warnings.append(f"{TITLE} has a new user for the new login; the one of the old login is disabled.")
        raise Gone(f"{TITLE}: the user was recreated under its new login", code="recreated", replaced_by=made)

    def _names(self, account: Account) -> bool:
        return account.display_name is not UNSET and self.settings.agent_name_sync

    async def _name(self, account: Account, held: Mapping[str, Any], roles: Sequence[str], ctx: Delivery) -> None:
        """A user has no name; the agent linked to it has. `roles`: those the user has by now."""
        agent = held.get("agent")
        agent_id = agent.get("uuid") if isinstance(agent, dict) else None
        if not agent_id:
            if self.settings.create_agents and "agent" in roles:
                await self._make_agent(account, ctx)
            elif self._names(account):
                ctx.warnings.append("There is no agent to carry the name; displayName is kept by the gateway only.")
            return
        if not self._names(account):
            return
        path = "/api/v2/agents/{id}"
        parts = {"id": _bare(str(agent_id))}
        answer = await self.http.request("GET", path, ctx=ctx, parts=parts, expect=(404,))
        if answer.status == 404:
            ctx.warnings.append("The linked agent does not exist any more; displayName is kept by the gateway only.")
            return
        shown = _item(answer, "GET", path)
        if shown.get("name") == account.display_name:
            return
        kept = {name: shown[name] for name in _AGENT_FIELDS if shown.get(name) is not None}
        await self._done("PUT", path, {**kept, "name": account.display_name}, ctx, parts=parts)

    async def _make_agent(self, account: Account, ctx: Delivery) -> None:
        """An agent of this login, unless there is one: looked for before each try, because a refused one may have been made."""
        path = "/api/v2/agents"
        wish = {"name": account.display_name or account.login, "email": account.login, "enabled": True}
        for last in _tries():
            if await self._has_agent(account.login, ctx):
                return
            answer = await self.http.request("POST", path, ctx=ctx, json=wish, expect=(409,))
            if answer.status == 409 or not _not_done(answer):  # 409: there is one that the list does not show yet
                return
            await _pause_or_give_up("POST", path, answer, last=last)

    async def _has_agent(self, login: str, ctx: Delivery) -> bool:
        path = "/api/v2/agents"
        answer = await self.http.request("GET", path, ctx=ctx, query={"q": login})
        items = answer.body.get("items") if isinstance(answer.body, dict) else None
        listed = [one for one in items if isinstance(one, dict)] if isinstance(items, list) else []
        return any(str(one.get("email", "")).lower() == login for one in listed)


class _Scim:
    """Users over SCIM (2.3, last line): can rename, and takes displayName."""

    def __init__(self, settings: Settings, http: VendorHttp) -> None:
        self.settings = settings
        self.scim = ScimClient(http, product=TITLE, prefix=SCIM_PREFIX)
        self._own = normalize_login(settings.integration_user)

    async def enabled(self, login: str) -> bool | None:
        """Whether a user is active; None when there is none."""
        found = await self.scim.find("userName", login, None)
        return found[0].get("active") is not False if found else None

    async def look_up(self, login: str, ctx: Delivery) -> str | None:
        """The id of the user of a login."""
        for held in await self.scim.find("userName", login, ctx):
            return checked_id(held.get("id"), f"{TITLE} listed a user")
        return None

    async def create(self, account: Account, roles: Sequence[str], ctx: Delivery) -> str:
        resource: dict[str, Any] = {
            "schemas": [USER_SCHEMA],
            "userName": account.login,
            "active": account.active,
            "roles": _role_objects(roles),
        }
        if account.display_name is not UNSET:
            resource["displayName"] = account.display_name
        answer = await self.scim.create(resource, ctx, expect=(400, 409, 422, 500))
        if answer.status == 500:
            said = error_of(TITLE, "POST", self.scim.path("/Users"), answer).message
            raise Unavailable(said, code="server_error", ambiguous=True)
        if answer.status == 409:
            if await self.look_up(account.login, ctx) is not None:
                raise already_there(TITLE, "a user with this login")
            raise _unseen()
        if answer.status >= 300:
            raise _refused("POST", self.scim.path("/Users"), answer)
        held = self.scim.resource_of(answer, "POST", "/Users")
        _note_roles(held, roles, ctx)
        return checked_id(held.get("id"), f"{TITLE} answered {answer.status} to POST {self.scim.path('/Users')}")

    async def update(
        self, account_id: str, account: Account, roles: tuple[str, ...] | UnsetType, ctx: Delivery
    ) -> None:
        """Read, compare, PATCH: roles that are not managed here stay in the list that is sent."""
        held = await self.scim.read(account_id, ctx)
        self._refuse_own(held)
        values: dict[str, Any] = {}
        if str(held.get("userName", "")).lower() != account.login:
            values["userName"] = account.login
        if held.get("active") is not account.active:
            values["active"] = account.active
        if account.display_name is not UNSET and held.get("displayName") != account.display_name:
            values["displayName"] = account.display_name
        if roles is not UNSET:
            current = [visible(name).casefold() for name in texts(held.get("roles"))]
            steps = role_diff(current, roles)
            if steps["add"] or steps["remove"]:
                values["roles"] = _role_objects([*(r for r in current if r not in steps["remove"]), *steps["add"]])
        if not values:
            return
        operations = [{"op": "replace", "path": path, "value": value} for path, value in values.items()]
        answer = await self.scim.patch(account_id, operations, ctx, expect=(400, 409, 422))
        if answer.status == 409:
            raise Conflict(
                f"Another user in {TITLE} has this login already; remove it there, or correct userName in Entra.",
                code="user_name_taken",
                attribute="userName",
            )
        if answer.status >= 300:
            raise _refused("PATCH", self.scim.path("/Users/{id}"), answer)
        if "roles" in values and roles is not UNSET and isinstance(answer.body, dict):
            _note_roles(answer.body, roles, ctx)

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        try:
            held = await self.scim.read(account_id, ctx)
        except Gone:
            return
        self._refuse_own(held)
        if self.settings.on_delete == "delete":
            await self.scim.delete(account_id, ctx)
        elif held.get("active") is not False:
            try:
                await self.scim.patch(account_id, [{"op": "replace", "path": "active", "value": False}], ctx)
            except Gone:
                return

    async def list_accounts(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        found, following = await self.scim.listed(cursor)
        page = [
            {
                "account_id": checked_id(held.get("id"), f"{TITLE} listed a user"),
                "identities": (identity("userName", str(held.get("userName", ""))),),
                "active": held.get("active") is not False,
                "values": {
                    "userName": str(held.get("userName", "")).lower(),
                    "roles": _managed(visible(name).casefold() for name in texts(held.get("roles"))),
                    "displayName": held_text(held.get("displayName")),
                },
            }
            for held in found
            if str(held.get("userName", "")).lower() != self._own
        ]
        return page, following

    def _refuse_own(self, held: Mapping[str, Any]) -> None:
        if str(held.get("userName", "")).lower() == self._own:
            raise Rejected(_OWN_USER, code="integration_user", attribute="userName")


_OWN_USER = (
    f"This is the {TITLE} user of the integration itself (integration_user); it is never changed from here. "
    "Take the person out of the application's assignments in Entra."
)
_AGENT_FIELDS = ("name", "email", "enabled", "number", "groups", "tags")


def _imagined(held: Mapping[str, Any], *, status: int = 200, gone: bool = False) -> Imagined:
    """An answer, and the two addresses at which a user is read."""
    shown = None if gone else {"item": dict(held)}
    return Imagined(
        status,
        {"success": True, "item": dict(held)},
        held=(
            ("/api/v2/users/{id}", {"id": _id(held)}, shown),
            ("/api/v2/users/by-email/{email}", {"email": str(held["email"]).lower()}, shown),
        ),
    )


def _tries() -> Iterable[bool]:
    """For each try whether it is the last one."""
    return (number == NOT_DONE_TRIES_MAX for number in range(1, NOT_DONE_TRIES_MAX + 1))


async def _pause_or_give_up(method: str, path: str, answer: VendorResponse, *, last: bool) -> None:
    """After `success: false`: a short rest, or the end."""
    if last:
        text = vendor_text(answer.body)
        raise Rejected(f"{TITLE} does not do {method} {path}{': ' + text if text else ''}.", code="not_done")
    await asyncio.sleep(NOT_DONE_WAIT_S)


def _not_done(answer: VendorResponse) -> bool:
    return isinstance(answer.body, dict) and answer.body.get("success") is False


def _refused(method: str, path: str, answer: VendorResponse) -> Rejected | Exception:
    """The error of a 400 or 422; one about a role is the mapping's."""
    text = vendor_text(answer.body)
    if re.search(r"\brole", text, re.IGNORECASE):
        return Rejected(
            f"{TITLE} does not let this role be given or taken ({text}): role not assignable. Correct the app roles in Entra.",
            code="role_not_assignable",
            attribute="roles",
        )
    return error_of(TITLE, method, path, answer)


def _note_roles(held: Mapping[str, Any], wanted: Sequence[str], ctx: Delivery) -> None:
    """Say so when SCIM answered success and kept the roles as they were, because the configuration document has them off."""
    left = role_diff([visible(name).casefold() for name in texts(held.get("roles"))], wanted)
    if left["add"] or left["remove"]:
        ctx.warnings.append(
            f"{TITLE} answered success and did not take the roles; see provgate connector configure: features.roles must be true."
        )


def _unseen() -> Conflict:
    """Reads may lag behind writes, so the gateway looks again some times before it is a person's turn (code `conflict`)."""
    return Conflict(
        f"{TITLE} says that this login is taken, but shows no such user; ask its support.", attribute="userName"
    )


def _not_confirmed(what: str) -> Unavailable:
    return Unavailable(
        f"{TITLE} answered success, but the {what} does not show yet; it is looked at again",
        code="not_confirmed",
        ambiguous=True,
    )


def _item(answer: VendorResponse, method: str, path: str) -> dict[str, Any]:
    item = answer.body.get("item") if isinstance(answer.body, dict) else None
    if not isinstance(item, dict):
        raise Unavailable(
            f"{TITLE} answered {answer.status} to {method} {path} without an item",
            code="malformed",
            ambiguous=method != "GET",
        )
    return item


def _roles(held: Mapping[str, Any]) -> list[str]:
    roles = held.get("roles")
    return [str(role) for role in roles] if isinstance(roles, list) else []


def _managed(roles: Iterable[str]) -> list[str]:
    """The roles that are given and taken from here, sorted; all others stay as they are."""
    return sorted(role for role in roles if role in MANAGED_ROLES)


def _role_objects(roles: Collection[str]) -> list[dict[str, str]]:
    return [{"value": role} for role in roles]


def _bare(native_id: str) -> str:
    """Ids are 32 hex digits on the wire; the spelling with hyphens is answered 404."""
    return native_id.replace("-", "")


def _id(held: Mapping[str, Any]) -> str:
    return _bare(checked_id(held.get("id"), f"{TITLE} answered with a user"))
