"""SCIM: any product that speaks SCIM 2.0 itself, described by its target's settings; no code per product.

What products differ in is a dialect option: PATCH or PUT, whether filters work, how paths and booleans are written, which
attributes are taken, how lists are paged, whether versions are checked, and what a deletion comes to (RFC 7643, RFC 7644,
RFC 9865). What the product says of itself in its ServiceProviderConfig is compared with these options by `check`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from connectors.contract import (
    Connector,
    Delivery,
    Directory,
    Endpoint,
    Expected,
    Finding,
    Found,
    Identity,
    VendorHttp,
    VendorResponse,
)
from connectors.declared import MANAGER, did_you_mean, read
from connectors.http import already_there, error_of
from connectors.scanned import Row, Scanned
from connectors.scim import (
    GROUP_BYTES_MAX,
    ScimClient,
    checked_id,
    ignored_paths,
    literal,
    scim_type,
    shown_id,
    texts,
    unknown_members,
    unless_changed,
    version_of,
)
from connectors.scim_paths import has_entry_at, held_at, parts_of, put_at
from connectors.scim_settings import CONCURRENCY, DEFAULT_ATTRIBUTES, TITLE, Settings, feature_findings
from schemas.errors import Conflict, Gone, Misconfigured, NormalizationError, Rejected, Unavailable
from schemas.events import identity, split_identity
from schemas.resources import GROUP_SCHEMA, USER_SCHEMA, Group, User, text
from schemas.specs import Attribute, Spec

PAGES_MAX = 1_000
"""Pages of one list; a product with more accounts than they hold needs filters, or larger pages."""
NOBODY = "provgate-check-nobody"
"""Looked up by `check`."""
_NO_PATCH = (405, 501)
_REFUSALS = (400, 409, 422)


class Account(Struct, frozen=True, kw_only=True):
    """What the product shall hold.

    Args:
        user_name: its name there.
        values: the product's path -> value; None where Entra cleared it. What nobody mentioned is not among them.
        active: what `active` means for a new account.
        manager: the manager's id at this gateway; None when there shall be none, UNSET when nobody says.
    """

    user_name: str
    values: dict[str, Any]
    active: bool
    external_id: str = ""
    manager: str | UnsetType | None = UNSET


class GenericScim(Connector[Settings, Account]):
    """Users and groups of any product that speaks SCIM."""

    spec = Spec(
        name="scim",
        title=TITLE,
        resources=("User", "Group"),
        attributes=tuple(
            Attribute(
                path,
                path,
                required=path == "userName",
                type="boolean" if path == "active" else "string",
                note="another source with user_name" if path == "userName" else "",
            )
            for path in DEFAULT_ATTRIBUTES
        ),
        concurrency_max=CONCURRENCY,
        capabilities=("groups", "list_accounts", "list_groups", "keep_alive"),
        pitfalls=(
            "The table shows the default; attributes, add, omit and rename say what a target really sends; /Schemas shows it.",
            "The manager is sent where add names it; a user whose manager has no account there yet is sent again later.",
            'filter = "scan" reads all users to find one, at most every 30 s while nothing is in doubt: small products only.',
            "Where user_name is not a plain attribute, add externalId to match: accounts of earlier names are found by it.",
            "Run provgate check after every change: it compares these settings with what the product says of itself.",
        ),
    )
    settings_type = Settings
    example: ClassVar[str] = """[targets.helpdesk]
connector = "scim"
title = "Helpdesk"

[targets.helpdesk.settings]
title = "Helpdesk"
base_url = "https://helpdesk.example.com/scim/v2"
auth = { way = "bearer", token = { env = "HELPDESK_TOKEN" } }
rate_limit = { calls = 10, per_s = 1.0 }
add = ["urn:example:params:scim:schemas:extension:helpdesk:2.0:User:queue"]
omit = ['phoneNumbers[type eq "fax"].value', "preferredLanguage"]
required = ["name.familyName"]
rename = { displayName = "nickName" }
constants = { userType = "Employee" }
match = ["externalId", "userName"]
update = "patch"
on_delete = "deactivate"
"""

    @classmethod
    def spec_for(cls, settings: Settings) -> Spec:
        """Title, limit, attributes and groups as the settings say."""
        needed = {"userName", settings.user_name, *settings.required}
        attributes = tuple(
            Attribute(
                path,
                settings.there(path),
                required=path in needed,
                type="boolean" if path == "active" else "string",
                multi_valued=path == "roles",
            )
            for path in dict.fromkeys((*settings.supplied(), settings.user_name))
        )
        return msgspec.structs.replace(
            cls.spec,
            title=settings.title,
            resources=("User", "Group") if settings.groups else ("User",),
            groups_step=""
            if settings.groups
            else f"{settings.title} takes no groups here: switch group provisioning off in Entra (group mapping Disabled).",
            attributes=attributes,
            identity=_identity_paths(settings),
            rate_limit=settings.rate_limit.limit() if settings.rate_limit is not None else None,
            concurrency_max=settings.concurrency_max,
            on_delete=settings.on_delete,
            capabilities=(
                *(("groups", "list_groups") if settings.groups else ()),
                "list_accounts",
                "keep_alive",
            ),
        )

    @classmethod
    def endpoint(cls, settings: Settings) -> Endpoint | None:
        """The SCIM root."""
        return Endpoint(
            base_url=settings.base_url,
            auth=settings.auth.auth(),
            allow_loopback=settings.allow_loopback,
            body_bytes_max=GROUP_BYTES_MAX if settings.groups else 0,
        )

    def __init__(self, settings: Settings, http: VendorHttp) -> None:
        super().__init__(settings, http)
        self.title = settings.title
        self.scim = ScimClient(
            http,
            product=settings.title,
            media_type=settings.media_type,
            page_size=settings.page_size,
            first_index=settings.first_index,
            trusts_total=settings.trusts_total,
            nobody_status=settings.nobody_status,
            names=settings.names(),
        )
        self._spec = self.spec_for(settings)
        self._users = settings.users_path.strip("/")
        self._groups = settings.groups_path.strip("/")
        self._cannot_patch = False
        self._scanned = {self._users: Scanned(), self._groups: Scanned()}

    # Users ------------------------------------------------------------------------------------------------------------

    def normalize(self, user: User, directory: Directory) -> Account:
        """Every attribute that is sent, under the product's path. Raises NormalizationError `missing` or `bad_value`."""
        settings = self.settings
        values: dict[str, Any] = {}
        manager: str | UnsetType | None = UNSET
        for path in settings.supplied():
            value = _plain(path, read(user, path))
            if path == MANAGER:
                manager = value
                continue
            if value is not UNSET:
                values[settings.there(path)] = value
        user_name = _plain(settings.user_name, read(user, settings.user_name))
        if not isinstance(user_name, str) or not user_name:
            raise _missing(settings.user_name, self.title)
        values[settings.there("userName")] = user_name
        for path in settings.required:
            if values.get(settings.there(path)) in (None, [], ""):
                raise _missing(path, self.title)
        values.update(settings.constants)
        if user.active is UNSET and settings.on_delete == "deactivate" and "active" in settings.supplied():
            values[settings.there("active")] = True  # an account that a deletion switched off is wished again
        if not user.is_active and "active" not in settings.supplied():
            raise NormalizationError(
                f"{self.title} is never told active here (omit), so this user cannot be switched off. Take active out of omit.",
                code="cannot_deactivate",
                attribute="active",
            )
        external_id = text(user.external_id).strip() if "externalId" in settings.supplied() else ""
        return Account(
            user_name=user_name, values=values, active=user.is_active, external_id=external_id, manager=manager
        )

    def account_keys(self, account: Account) -> tuple[str, ...]:
        """The name it has there."""
        return (account.user_name,)

    def ignored(self, user: User) -> tuple[str, ...]:
        """Everything that is not among the attributes of the settings."""
        return ignored_paths(user, self._spec)

    def keep_alive_s(self) -> float:
        """As the settings say."""
        return self.settings.keep_alive_s

    async def keep_alive(self) -> None:
        """One user at most is asked for."""
        await self.scim.page(None, query={"count": "1"})

    async def check(self) -> list[Finding]:
        """Address, credentials, and the options compared with what the product says of itself. Writes nothing."""
        features = await self.scim.features(None)
        first = [held async for held in self._all(self._users, None, pages_max=1)]
        findings = [
            Finding(
                level="ok",
                code="reachable",
                message=f"{self.title} accepts the credentials; {len(first)} users are on the first page.",
            )
        ]
        findings += feature_findings(self.settings, features)
        findings += await self._resource_findings()
        name = self.settings.there("userName")
        if first and all(held_at(one, name) in (None, "") for one in first):
            findings.append(
                Finding(
                    level="error",
                    code="no_user_name",
                    message=f"No user of {self.title} shows {name}; accounts could never be found. Correct rename.",
                )
            )
        elif first:
            findings += await self._known_findings(first[0])
        if self.settings.filter == "server":
            findings += await self._nobody_findings()
        return findings

    async def _known_findings(self, known: Mapping[str, Any]) -> list[Finding]:
        """Whether a user that is listed can be read, and is found by what it is known by."""
        findings: list[Finding] = []

        def wrong(code: str, message: str) -> None:
            findings.append(Finding(level="error", code=code, message=message))

        try:
            await self.scim.read(self._id(known, "user"), None, kind=self._users)
        except (Gone, Rejected, Unavailable) as exc:
            wrong("cannot_read", f"A user of {self.title} that is listed cannot be read: {exc.message}.")
        for attribute in self.settings.match if self.settings.filter == "server" else ():
            value = str(held_at(known, self.settings.there(attribute)) or "")
            if not value:
                continue
            try:
                rows = await self._looked_up(
                    self._users, {(attribute, value.casefold()): value}, Delivery(), fresh=True
                )
            except (Misconfigured, Rejected, Unavailable) as exc:
                wrong("not_found_again", f'{exc.message}. Correct filter_on, or set filter = "scan".')
                continue
            if not rows[attribute, value.casefold()]:
                wrong(
                    "not_found_again",
                    f"{self.title} does not find a user it lists by {attribute}; accounts would be made twice. Correct filter_on "
                    'or rename, or set filter = "scan".',
                )
        return findings

    async def _nobody_findings(self) -> list[Finding]:
        """What the product answers to a look-up of somebody who does not exist."""
        there = self.settings.filter_on.get("userName", self.settings.there("userName"))
        query = {"filter": f"{there} eq {literal(NOBODY)}"}
        try:
            rows, _ = await self.scim.page(None, kind=self._users, query=query)
        except Misconfigured as exc:
            if exc.code != "wrong_address":
                raise
            message = f"{self.title} answers a look-up of nobody with 404; set nobody_status = 404."
            return [Finding(level="error", code="nobody_is_404", message=message)]
        except Rejected as exc:
            message = f'{exc.message}. Correct filter_on, or set filter = "scan".'
            return [Finding(level="error", code="no_filter", message=message)]
        if not rows:
            return []
        message = (
            f'{self.title} answers a look-up of nobody with users: it does not look at filters. Set filter = "scan".'
        )
        return [Finding(level="error", code="filter_ignored", message=message)]

    async def find(self, account: Account | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """By userName and, where `match` says so, externalId. An identity of another kind matches nothing (0.2)."""
        return await self._find(account, identities, ctx, fresh=account is None or ctx.ambiguous or ctx.attempt > 1)

    async def _find(
        self, account: Account | None, identities: Sequence[Identity], ctx: Delivery, *, fresh: bool = True
    ) -> list[Found]:
        asked: dict[tuple[str, str], tuple[str, Identity]] = {}
        settings = self.settings
        if account is not None:  # in Entra's spelling; identities are folded
            first = identities[0] if identities else identity("userName", account.user_name)
            if "externalId" in settings.match and account.external_id:
                asked["externalId", account.external_id.casefold()] = (account.external_id, first)
            if "userName" in settings.match:
                asked["userName", account.user_name.casefold()] = (account.user_name, first)
        for name in identities:
            attribute, value = split_identity(name)
            key = {settings.user_name: "userName", "externalId": "externalId"}.get(attribute)
            if key in settings.match and key is not None and value:
                spelling, _ = asked.get((key, value.casefold()), (value, name))
                asked[key, value.casefold()] = (spelling, name)
        found: dict[str, Found] = {}
        spellings = {key: spelling for key, (spelling, _) in asked.items()}
        rows = await self._looked_up(self._users, spellings, ctx, fresh=fresh)
        for (attribute, folded), (_, name) in asked.items():
            for held in rows[attribute, folded]:
                account_id = self._id(held, "user")
                found.setdefault(
                    account_id, Found(account_id=account_id, identity=name, conflict=self._foreign(held, account))
                )
        return list(found.values())

    async def create(self, account: Account, ctx: Delivery) -> str:
        """POST; a name that is taken after all is looked up next."""
        values = {path: value for path, value in self._values(account, ctx).items() if value not in (None, [])}
        if "active" in self.settings.supplied():
            values.setdefault(self.settings.there("active"), account.active)
        with self._scanned[self._users].in_doubt():
            answer = await self.scim.create(self._resource({}, values), ctx, kind=self._users, expect=_REFUSALS)
            if self._is_taken(answer, "POST", f"/{self._users}"):
                await self._taken(account, ctx)
            held = self.scim.resource_of(answer, "POST", f"/{self._users}")
            account_id = self._id(held, "user")
            self._enter(account_id, account)
        active = self.settings.there("active")
        if values.get(active) is False and _same(held_at(held, active), True):  # some products switch every new user on
            answer = await self._written(self._users, account_id, held, {active: False}, ctx)
            self._check_active(self._shown(answer), False)
        return account_id

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        """Read, compare, and write what differs: as PATCH, or merged into what is held as PUT (A4)."""
        with self._scanned[self._users].in_doubt(account_id):
            await self._update(account_id, account, ctx)
            self._enter(account_id, account)

    async def _update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        held = await self.scim.read(account_id, ctx, kind=self._users)
        values = self._values(account, ctx)
        changed = {path: value for path, value in values.items() if not _same(held_at(held, path), value)}
        if not changed:
            return
        answer = await self._written(self._users, account_id, held, changed, ctx)
        if answer.status == 409:
            raise Conflict(
                f"Another user in {self.title} has this name or externalId already; rename or remove it there, or correct the "
                "value in Entra.",
                code="user_name_taken",
                attribute="userName",
            )
        self._check_active(self._shown(answer), changed.get(self.settings.there("active")))

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        """The product's delete, or deactivation where the settings say so; one that is gone is fine."""
        with self._scanned[self._users].in_doubt():
            await self._delete(account_id, ctx)
        self._scanned[self._users].wrote(account_id, None)

    async def _delete(self, account_id: str, ctx: Delivery) -> None:
        if self.settings.on_delete == "delete":
            answer = await self.scim.delete(account_id, ctx, kind=self._users, expect=_NO_PATCH)
            if answer.status in _NO_PATCH:
                raise Rejected(
                    f'{self.title} does not delete users over SCIM; set on_delete = "deactivate" for this target.',
                    code="cannot_delete",
                )
            return
        path = self.settings.there("active")
        try:
            held = await self.scim.read(account_id, ctx, kind=self._users)
            if _same(held_at(held, path), False):
                return
            answer = await self._written(self._users, account_id, held, {path: False}, ctx)
        except Gone:
            return
        if answer.status == 409:
            raise error_of(self.title, "PATCH", self.scim.path(f"/{self._users}/{{id}}"), answer)
        self._check_active(self._shown(answer), False)

    async def list_accounts(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """One page of users."""
        found, following = await self._listed(self._users, cursor)
        name = self.settings.there("userName")
        there = {path: self.settings.there(path) for path in self._compared()}
        # Some products list less than they hold; what nobody on a page shows says nothing.
        shown = {path: at for path, at in there.items() if any(held_at(held, at) is not None for held in found)}
        page = []
        for held in found:
            names = [identity(_identity_paths(self.settings)[0], str(held_at(held, name) or ""))]
            if external_id := held_at(held, self.settings.there("externalId")):
                names.append(identity("externalId", str(external_id)))
            page.append(
                {
                    "account_id": self._id(held, "user"),
                    "identities": tuple(names),
                    "active": not _same(held_at(held, self.settings.there("active")), False),
                    "owner": str(external_id or ""),
                    "values": {path: _comparable(path, held_at(held, at)) for path, at in shown.items()},
                }
            )
        return page, following or None

    def expected(self, account: Account) -> Expected:
        """Every attribute that is sent but `active` and the manager; an account of another externalId is somebody else's."""
        own = [identity(_identity_paths(self.settings)[0], account.user_name)]
        if account.external_id and "externalId" in self.settings.match:
            own.append(identity("externalId", account.external_id))
        there = {path: self.settings.there(path) for path in self._compared()}
        values = {
            path: _comparable(path, account.values[name]) for path, name in there.items() if name in account.values
        }
        owner = account.external_id if self.settings.foreign == "refuse" else ""
        return Expected(identities=tuple(own), owner=owner, values=values)

    def _compared(self) -> tuple[str, ...]:
        return tuple(path for path in self.settings.supplied() if path not in ("active", MANAGER))

    # Groups -----------------------------------------------------------------------------------------------------------

    async def list_groups(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """One page of groups, without their members where the product knows how to leave them out."""
        found, following = await self._listed(self._groups, cursor)
        page = []
        for held in found:
            name, owner = str(held.get("displayName") or "").strip(), str(held.get("externalId") or "")
            names = [identity("displayName", name)]
            if owner and "externalId" in self.settings.match:
                names.append(identity("externalId", owner))
            values = {path: _comparable(path, held.get(path)) for path in ("displayName", "externalId") if path in held}
            page.append(
                {
                    "account_id": self._id(held, "group"),
                    "identities": tuple(names),
                    "active": True,
                    "owner": owner,
                    "values": values,
                }
            )
        return page, following or None

    def expected_group(self, group: Group) -> Expected | None:
        """Name, and externalId where it is sent."""
        name, ours = group.display_name.strip(), self._group_external_id(group)
        names = [identity("displayName", name)]
        if ours and "externalId" in self.settings.match:
            names.append(identity("externalId", ours))
        values = {"displayName": name or None} | ({"externalId": ours.casefold()} if ours else {})
        return Expected(identities=tuple(names), owner=ours if self.settings.foreign == "refuse" else "", values=values)

    async def list_members(self, group_id: str, cursor: str | None) -> tuple[list[str], str | None]:
        """Whom a group holds; a group shows all of its members at once (RFC 7643 section 4.2)."""
        return await self.scim.members(group_id, kind=self._groups), None

    async def find_group(self, group: Group | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """By name, and by externalId where `match` says so.

        Raises:
            Conflict: several groups carry the name of a group that is about to be made.
        """
        asked: dict[tuple[str, str], tuple[str, Identity]] = {}
        for name in identities:
            attribute, value = split_identity(name)
            if attribute == "displayName" and value:
                asked["displayName", value.casefold()] = (value, name)
        if group is not None:
            shown, ours = group.display_name.strip(), self._group_external_id(group)
            first = identities[0] if identities else identity("displayName", shown)
            if "externalId" in self.settings.match and ours:
                asked = {("externalId", ours.casefold()): (ours, first), **asked}
            asked["displayName", shown.casefold()] = (shown, first)
        fresh = group is None or ctx.ambiguous or ctx.attempt > 1
        spellings = {key: spelling for key, (spelling, _) in asked.items()}
        rows = await self._looked_up(self._groups, spellings, ctx, fresh=fresh)
        if group is not None:
            owned = rows.get(("externalId", self._group_external_id(group).casefold()), [])
            twins = rows["displayName", group.display_name.strip().casefold()]
            if not owned and len(twins) > 1:
                raise Conflict(
                    f"{self.title} has {len(twins)} groups of this name; rename or remove one there.",
                    code="duplicate_groups",
                    attribute="displayName",
                )
        found: dict[str, Found] = {}
        for key, (_, name) in asked.items():
            for held in rows[key]:
                group_id = self._id(held, "group")
                conflict = self._foreign_group(held, group)
                found.setdefault(group_id, Found(account_id=group_id, identity=name, conflict=conflict))
        return list(found.values())

    async def put_group(self, group_id: str | None, group: Group, ctx: Delivery) -> str:
        """Create without members, or set what differs of name and externalId."""
        wish: dict[str, Any] = {"displayName": group.display_name.strip()}
        if ours := self._group_external_id(group):
            wish["externalId"] = ours
        if group_id is None:
            self._scanned[self._groups].forget()
            resource = {"schemas": [GROUP_SCHEMA], **wish}
            answer = await self.scim.create(resource, ctx, kind=self._groups, expect=_REFUSALS)
            if self._is_taken(answer, "POST", f"/{self._groups}"):
                raise Conflict(
                    f"{self.title} has a group of this name already; it is looked at again.", attribute="displayName"
                )
            return self._id(self.scim.resource_of(answer, "POST", f"/{self._groups}"), "group")
        held = await self.scim.read(group_id, ctx, kind=self._groups)
        changed = {path: value for path, value in wish.items() if not _same(held_at(held, path), value)}
        if changed:
            self._scanned[self._groups].forget()
            answer = await self._written(self._groups, group_id, held, changed, ctx)
            if answer.status == 409:
                raise Conflict(
                    f"Another group of {self.title} has this name; rename or remove it there.",
                    code="duplicate_groups",
                    attribute="displayName",
                )
        return group_id

    async def change_members(self, group_id: str, add: Sequence[str], remove: Sequence[str], ctx: Delivery) -> None:
        """Explicit additions and removals, `members_per_call` at a time; with PUT the merged list.

        Raises:
            Blocked: members the product does not know; all others are added first.
        """
        if self.settings.members == "whole" or not await self._patches(ctx):
            await self._replace_members(group_id, add, remove, ctx)
            return
        await self.scim.change_members(
            group_id,
            add,
            remove,
            ctx,
            kind=self._groups,
            users=self._users,
            per_call=self.settings.members_per_call,
            removal="listed" if self.settings.members == "listed" else "filtered",
            with_path=self.settings.path_style == "path",
            versioned=self.settings.etag,
        )

    async def delete_group(self, group_id: str, ctx: Delivery) -> None:
        """The group only; its users stay."""
        self._scanned[self._groups].forget()
        await self.scim.delete(group_id, ctx, kind=self._groups)

    # Reading ----------------------------------------------------------------------------------------------------------

    async def _listed(self, kind: str, cursor: str | None) -> tuple[list[dict[str, Any]], str]:
        """One page of a list that has to be whole.

        Raises:
            Unavailable: the list ends before the number of resources it names, or begins again from the start.
        """
        found, following, whole = await self._paged(kind, None, cursor or "", members=False)
        if not whole:
            raise Unavailable(
                f"{self.title} names more {kind} than it shows; does it ignore startIndex? Then set paging.",
                code="incomplete_list",
            )
        return found, following

    async def _page(self, kind: str, ctx: Delivery | None, cursor: str) -> tuple[list[dict[str, Any]], str]:
        """One page and where the next begins, "" at the end."""
        found, following, _ = await self._paged(kind, ctx, cursor)
        return found, following

    async def _paged(
        self, kind: str, ctx: Delivery | None, cursor: str, *, members: bool = True
    ) -> tuple[list[dict[str, Any]], str, bool]:
        """One page, where the next begins, and False when the list ends here although it names more."""
        members = members or kind != self._groups
        if self.settings.paging == "cursor":
            return *(await self.scim.cursor_page(ctx, kind=kind, cursor=cursor, members=members)), True
        if self.settings.paging == "none":
            found, total = await self.scim.page(ctx, kind=kind, query={}, members=members)
            return found, "", len(found) >= total
        start, _, before = cursor.partition(":")
        begin = int(start) if start.isdecimal() else 1
        found, total = await self.scim.page(ctx, kind=kind, start=begin, members=members)
        first = str(shown_id(found[0]) or "") if found else ""
        if before and before == first:  # startIndex is ignored there, so this is the first page again
            return [], "", False
        following = begin + len(found)
        if following > total:
            return found, "", True
        return found, f"{following}:{first}" if found else "", bool(found)

    async def _all(
        self, kind: str, ctx: Delivery | None, *, pages_max: int = PAGES_MAX
    ) -> AsyncIterator[dict[str, Any]]:
        cursor = ""
        for _ in range(pages_max):
            found, cursor = await self._page(kind, ctx, cursor)
            for held in found:
                yield held
            if not cursor:
                return
        if pages_max == PAGES_MAX:
            raise Misconfigured(
                f"{self.title} lists more than {PAGES_MAX} pages of {kind}; use larger pages (page_size) or filters.",
                code="too_many_pages",
            )

    async def _looked_up(
        self, kind: str, asked: Mapping[tuple[str, str], str], ctx: Delivery, *, fresh: bool
    ) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """Resources by attribute and folded value; answers are compared again, so that no stranger is handed out."""
        if self.settings.filter == "scan":
            return await self._scanned[kind].find(asked, lambda: self._scan(kind, ctx), fresh=fresh) if asked else {}
        rows = {}
        for (attribute, folded), spelling in asked.items():
            there = self._there(kind, attribute)
            query = {"filter": f"{self.settings.filter_on.get(attribute, there)} eq {literal(spelling)}"}
            found, _ = await self.scim.page(ctx, kind=kind, query=query)
            rows[attribute, folded] = [held for held in found if str(held_at(held, there) or "").casefold() == folded]
        return rows

    def _there(self, kind: str, attribute: str) -> str:
        return self.settings.there(attribute) if kind == self._users else attribute

    async def _scan(self, kind: str, ctx: Delivery) -> AsyncIterator[Row]:
        """Everybody, as small as a look-up needs them."""
        async for held in self._all(kind, ctx):
            yield self._row(kind, held)

    def _row(self, kind: str, held: Mapping[str, Any]) -> Row:
        small: dict[str, Any] = {"id": shown_id(held)}
        keys = []
        for attribute in ("userName" if kind == self._users else "displayName", "externalId"):
            there = self._there(kind, attribute)
            if value := str(held_at(held, there) or ""):
                keys.append((attribute, value.casefold()))
                put_at(small, there, value)
        return Row(self._id(held, "user" if kind == self._users else "group"), tuple(keys), small)

    def _enter(self, account_id: str, account: Account) -> None:
        """What we wrote is known to the next look-ups without reading everything again."""
        made: dict[str, Any] = {"id": account_id}
        put_at(made, self._there(self._users, "userName"), account.user_name)
        if account.external_id:
            put_at(made, self._there(self._users, "externalId"), account.external_id)
        self._scanned[self._users].wrote(account_id, self._row(self._users, made))

    async def _resource_findings(self) -> list[Finding]:
        """Resource types and schemas, where the product shows them."""
        findings: list[Finding] = []
        if self.settings.groups:
            try:
                await self._page(self._groups, None, "")
            except Misconfigured as exc:
                if exc.code not in ("wrong_address", "forbidden"):
                    raise
                findings.append(
                    Finding(
                        level="error",
                        code="no_groups",
                        message=f"{exc.message}. Set groups = false, or correct groups_path and the rights of the credentials.",
                    )
                )
        return findings + self._type_findings(await self.scim.resource_types())

    def _type_findings(self, types: Sequence[Mapping[str, Any]]) -> list[Finding]:
        """Addresses and extensions compared with what the product says of its resource types (RFC 7643 section 6)."""
        findings: list[Finding] = []
        wanted = {"User": self.settings.users_path} | (
            {"Group": self.settings.groups_path} if self.settings.groups else {}
        )
        for name, path in wanted.items():
            told = next((one for one in types if one.get("name") == name), {})
            there = str(told.get("endpoint") or path)
            if there.rstrip("/").rpartition("/")[2].casefold() != path.strip("/").casefold():
                setting = "users_path" if name == "User" else "groups_path"
                message = f"{self.title} says that its resources {name} are at {there}; {setting} says {path}."
                findings.append(Finding(level="warning", code="other_path", message=message))
        told = next((one for one in types if one.get("name") == "User"), {})
        known = [str(one.get("schema")) for one in told.get("schemaExtensions") or () if isinstance(one, dict)]
        sent = dict.fromkeys(parts_of(self.settings.there(path)).urn for path in self.settings.supplied())
        for urn in sent:
            if urn and known and urn.casefold() not in {one.casefold() for one in known}:
                theirs = next((one for one in known if "enterprise" in one.casefold()), "")
                remedy = f'set enterprise_urn = "{theirs}"' if theirs and urn == self.settings.enterprise_urn else ""
                remedy = remedy or f"set rename or omit for its attributes{did_you_mean(urn, known)}"
                message = f"{self.title} does not name the extension {urn}; {remedy.rstrip('.')}."
                findings.append(Finding(level="warning", code="unknown_extension", message=message))
        return findings

    # Writing ----------------------------------------------------------------------------------------------------------

    def _values(self, account: Account, ctx: Delivery) -> dict[str, Any]:
        """What is sent, the manager by the product's id; one without an account there is left out and waited for."""
        if account.manager is UNSET:
            return account.values
        there = self.settings.there(MANAGER)
        if account.manager is None:
            return {**account.values, there: None}
        resolved = ctx.resolve(account.manager)
        return account.values if resolved is None else {**account.values, there: {"value": resolved}}

    async def _patches(self, ctx: Delivery) -> bool:
        """Whether PATCH is used: as set, or as the product says; one that says nothing is tried."""
        if self.settings.update != "auto":
            return self.settings.update == "patch"
        if self._cannot_patch:
            return False
        said = (await self.scim.features(ctx)).get("patch")
        return not (isinstance(said, dict) and said.get("supported") is False)

    async def _written(
        self, kind: str, resource_id: str, held: Mapping[str, Any], changed: Mapping[str, Any], ctx: Delivery
    ) -> VendorResponse:
        """Write what differs; the answer's status is a success or 409."""
        version = version_of(held) if self.settings.etag else ""
        if await self._patches(ctx):
            answer = await self.scim.patch(
                resource_id,
                self._operations(held, changed),
                ctx,
                kind=kind,
                expect=(*_REFUSALS, 412, *(_NO_PATCH if self.settings.update == "auto" else ())),
                version=version,
            )
            if answer.status not in _NO_PATCH:
                return unless_changed(self.title, self._taken_as_409(answer, "PATCH", kind))
            self._cannot_patch = True
        core = USER_SCHEMA if kind == self._users else GROUP_SCHEMA
        answer = await self.scim.replace(
            resource_id,
            self._resource(_writable(held), changed, core=core),
            ctx,
            kind=kind,
            expect=(*_REFUSALS, 412),
            version=version,
        )
        return unless_changed(self.title, self._taken_as_409(answer, "PUT", kind))

    def _taken_as_409(self, answer: VendorResponse, method: str, kind: str) -> VendorResponse:
        taken = self._is_taken(answer, method, f"/{kind}/{{id}}")
        return msgspec.structs.replace(answer, status=409) if taken else answer

    def _is_taken(self, answer: VendorResponse, method: str, path: str) -> bool:
        """Whether a write was refused because somebody else has the name: by 409, or by another refusal that says so.

        Raises:
            Rejected: another refusal.
        """
        if answer.status not in _REFUSALS:
            return False
        if answer.status != 409 and scim_type(answer) != "uniqueness":
            raise error_of(self.title, method, self.scim.path(path), answer)
        return True

    def _shown(self, answer: VendorResponse) -> Mapping[str, Any]:
        """The resource in an answer; empty when there is none."""
        shown = self.scim.spelled(answer.body)
        return shown if isinstance(shown, dict) else {}

    def _resource(
        self, kept: Mapping[str, Any], values: Mapping[str, Any], *, core: str = USER_SCHEMA
    ) -> dict[str, Any]:
        """A complete resource: what is kept, with the values put in and the cleared ones taken out."""
        resource: dict[str, Any] = deepcopy(dict(kept))
        for path, value in values.items():
            put_at(resource, path, self._wire(value))
        told = kept.get("schemas")
        known = [schema for schema in (told if isinstance(told, list) else ()) if isinstance(schema, str)]
        resource["schemas"] = list(
            dict.fromkeys([core, *known, *(name for name in resource if name.startswith("urn:"))])
        )
        return resource

    def _operations(self, held: Mapping[str, Any], changed: Mapping[str, Any]) -> list[dict[str, Any]]:
        """PATCH operations in the product's style (RFC 7644 section 3.5.2)."""
        operations: list[dict[str, Any]] = []
        merged = deepcopy(dict(held))
        lists: dict[str, None] = {}
        additions: dict[tuple[str, str], dict[str, Any]] = {}
        body: dict[str, Any] = {}
        for path, value in changed.items():
            parts = parts_of(path)
            sent = self._wire(value)
            put_at(merged, path, sent)
            if parts.type and (self.settings.multi_valued == "whole" or self.settings.path_style == "value"):
                lists[parts.name] = None
            elif self.settings.path_style == "value":
                put_at(body, path, sent, keep_null=True)
            elif value is None or value == []:
                operations.append({"op": "remove", "path": path})
            elif parts.type and not has_entry_at(held, path):  # replacing an entry that is not there has no target
                additions.setdefault((parts.name, parts.type), {"type": parts.type})[parts.sub or "value"] = sent
            else:
                operations.append({"op": "replace", "path": path, "value": sent})
        for name in lists:
            whole = merged.get(name, [])
            if self.settings.path_style == "value":
                body[name] = whole
            else:
                operations.append({"op": "replace", "path": name, "value": whole})
        operations += [{"op": "add", "path": name, "value": [entry]} for (name, _), entry in additions.items()]
        if body:
            operations.append({"op": "replace", "value": body})
        return operations

    def _wire(self, value: Any) -> Any:
        if isinstance(value, bool) and self.settings.booleans == "text":
            return "True" if value else "False"
        return value

    async def _taken(self, account: Account, ctx: Delivery) -> None:
        """Why a user cannot be created. Always raises: an account that was merely found is linked by the gateway (R4)."""
        found = await self._find(account, (), ctx)
        foreign = next((one.conflict for one in found if one.conflict), "")
        if foreign:
            raise Conflict(foreign, code="account_of_another", attribute="userName")
        if found:
            raise already_there(self.title, "this user")
        # Reads may lag behind writes, so the gateway looks again some times before it is a person's turn (code `conflict`).
        raise Conflict(
            f"{self.title} says that a value of this user is taken, but shows no such user by "
            f"{' or '.join(self.settings.match)}.",
            attribute="userName",
        )

    def _check_active(self, shown: Mapping[str, Any], wanted: Any) -> None:
        """A product that answers success and leaves the account switched on must not be believed."""
        path = self.settings.there("active")
        if wanted is False and _same(held_at(shown, path), True):
            raise Rejected(
                f"{self.title} answered success but still shows the user as active. It does not switch users off by {path}; "
                "correct rename or booleans, or ask its support.",
                code="not_deactivated",
                attribute="active",
            )

    def _foreign(self, held: Mapping[str, Any], account: Account | None) -> str:
        """Why a user found under our name is not ours: it carries another externalId."""
        theirs = str(held_at(held, self.settings.there("externalId")) or "")
        ours = account.external_id if account is not None else ""
        if self.settings.foreign == "adopt" or not theirs or not ours or theirs.casefold() == ours.casefold():
            return ""
        return (
            f"A user of this name exists in {self.title} and carries another externalId; remove it there, clear its "
            'externalId, or set foreign = "adopt" for this target.'
        )

    def _foreign_group(self, held: Mapping[str, Any], group: Group | None) -> str:
        theirs = str(held.get("externalId") or "")
        ours = self._group_external_id(group) if group is not None else ""
        if self.settings.foreign == "adopt" or not theirs or not ours or theirs.casefold() == ours.casefold():
            return ""
        return f"A group of this name exists in {self.title} and belongs to another group of Entra; rename one of them."

    def _group_external_id(self, group: Group) -> str:
        sent = self.settings.group_external_id and "externalId" in self.settings.supplied()
        return text(group.external_id).strip() if sent else ""

    def _id(self, held: Mapping[str, Any], what: str) -> str:
        return checked_id(shown_id(held), f"{self.title} answered with a {what}")

    # Members ----------------------------------------------------------------------------------------------------------

    async def _replace_members(self, group_id: str, add: Sequence[str], remove: Sequence[str], ctx: Delivery) -> None:
        held = await self.scim.read(group_id, ctx, kind=self._groups)
        current = [str(one.get("value")) for one in held.get("members") or () if isinstance(one, dict)]
        wanted = [one for one in dict.fromkeys((*current, *add)) if one not in set(remove)]
        if wanted == current:
            return
        unknown: list[str] = []
        while True:
            members = [{"value": one} for one in wanted if one not in unknown]
            answer = await self._members_written(group_id, held, members, ctx)
            if unless_changed(self.title, answer).status < 300:
                break
            if unknown:
                raise error_of(self.title, "PUT", self.scim.path(f"/{self._groups}/{{id}}"), answer)
            for one in add:
                try:
                    await self.scim.read(one, ctx, kind=self._users)
                except Gone:
                    unknown.append(one)
            if not unknown:
                raise error_of(self.title, "PUT", self.scim.path(f"/{self._groups}/{{id}}"), answer)
        if unknown:
            raise unknown_members(self.title, group_id, unknown)

    async def _members_written(
        self, group_id: str, held: Mapping[str, Any], members: Sequence[Mapping[str, str]], ctx: Delivery
    ) -> VendorResponse:
        """The whole list; the answer's status is a success, a refusal or 412."""
        version = version_of(held) if self.settings.etag else ""
        expect = (400, 412, 422)
        if not await self._patches(ctx):
            body = {**_writable(held), "members": members}
            return await self.scim.replace(group_id, body, ctx, kind=self._groups, expect=expect, version=version)
        operation: dict[str, Any] = {"op": "replace", "path": "members", "value": members}
        if self.settings.path_style == "value":
            operation = {"op": "replace", "value": {"members": members}}
        return await self.scim.patch(group_id, [operation], ctx, kind=self._groups, expect=expect, version=version)


def _identity_paths(settings: Settings) -> tuple[str, ...]:
    """What the gateway keeps in order: plain attributes only, since others are no part of an identity there."""
    plain = settings.user_name if re.fullmatch(r"[A-Za-z.]+", settings.user_name) else "userName"
    return tuple(dict.fromkeys((plain, *(one for one in settings.match if one == "externalId"))))


# Values ---------------------------------------------------------------------------------------------------------------


def _plain(path: str, value: Any) -> Any:
    """A value of the wish as it is sent: trimmed, cleared values None, roles as objects."""
    if value is UNSET:
        return UNSET
    if path == "roles":
        return [{"value": one} for one in dict.fromkeys(texts(value))]
    if isinstance(value, str):
        return value.strip() or None
    return value


def _comparable(path: str, value: Any) -> Any:
    """A value in the form in which lists and wishes are compared."""
    if isinstance(value, list):
        return sorted(texts(value)) or None
    if isinstance(value, str):
        return (value.casefold() if path in ("userName", "externalId") else value) or None
    return value


def _missing(path: str, title: str) -> NormalizationError:
    return NormalizationError(
        f"{path} is required by {title} and is blank or not mapped. Map it and fill it in Entra.",
        code="missing",
        attribute=path,
    )


def _writable(held: Mapping[str, Any]) -> dict[str, Any]:
    """A resource as read, without what only the product sets and without nulls."""
    return {name: value for name, value in held.items() if name not in ("meta", "groups") and value is not None}


def _same(held: Any, wanted: Any) -> bool:
    """Whether a product holds a value already; texts for booleans count, no value and an empty one are the same."""
    if isinstance(wanted, bool):
        return held is wanted or (isinstance(held, str) and held.strip().casefold() == str(wanted).casefold())
    if isinstance(wanted, dict):  # a reference; products add a name and an address to it
        return isinstance(held, dict) and held.get("value") == wanted.get("value")
    if isinstance(wanted, list) or isinstance(held, list):
        return sorted(texts(held)) == sorted(texts(wanted))
    empty = (None, "")
    return held == wanted or (held in empty and wanted in empty)


__all__ = ["Account", "GenericScim", "Settings"]
