"""Bob's Business: users and groups of one organisation over SCIM, without ever making the second account of one person.

From the seed: Tenant URL and API key per organisation, the principal name as address unless Mail is chosen, the warning about
duplicates, invitations by the platform or by hand, provisioning on demand with five members of a group. Inferred from the help
pages: accounts appear just in time at the first login. Assumed: the attribute sets (the guide shows them as pictures), 5 calls a
second, SCIM details beyond RFC 7644, that creating tells addresses apart by letter case, and the call that invites.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

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
from connectors.http import Bearer, address_problem, already_there, error_of
from connectors.scim import (
    GROUP_BYTES_MAX,
    ScimClient,
    checked_id,
    held_text,
    ignored_paths,
    kept_text,
    spoken_of,
    visible,
)
from schemas.config import Secret
from schemas.errors import Blocked, Conflict, Gone, Misconfigured, NormalizationError, Rejected
from schemas.events import identity, split_identity
from schemas.resources import GROUP_SCHEMA, USER_SCHEMA, Group, User, text
from schemas.specs import Attribute, NoteKind, RateLimit, Spec

TITLE = "Bob's Business"
WORK_EMAIL = 'emails[type eq "work"].value'
ACCOUNTS_KEEP_S = 300.0
"""How long a list of all accounts is used for matching; longer when making it took long, see ACCOUNTS_KEEP_FACTOR."""
ACCOUNTS_KEEP_FACTOR = 10.0
ACCOUNTS_MAX = 200_000
LISTING_REST_MAX_S = 600.0
"""A listing that was interrupted goes on where it stopped, unless it is older than this."""
GROUP_PAGES_MAX = 100
CANDIDATES_MAX = 20
"""So many accounts with the address of one person are read before the decision; more are a conflict in any case."""
ALIASES_MAX = 1_000
SEAT_RETRY_S = 3600.0
INVITED = "invited"
OWED = "invitation_owed"
NOT_INVITED = "not_invited"
NAMESAKE = "possible_duplicate"
"""What is noted about users: an invitation is recorded before the call is repeated, and never sent again afterwards."""
NO_SEAT = frozenset({"no_seat", "no_seats", "seat_limit", "no_licence"})

_EMAIL = re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+")

Source = Literal["userName", "mail"]
Reject = Literal["missing", "bad_email", "bad_boolean"]


class _BadAddress(Exception):
    """Why a text is no usable address: `missing` or `bad_email`."""

    def __init__(self, code: Reject) -> None:
        super().__init__(code)
        self.code: Reject = code


# The decision ---------------------------------------------------------------------------------------------------------


class Platform:
    """The platform's accounts, arranged so that the decision about one person does not look at all of them.

    Args:
        rows: `{"id", "email"}`, optionally `"linked"` (the object id the account belongs to).
        domain_aliases: as in the decision's configuration.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = (), domain_aliases: Mapping[str, str] | None = None) -> None:
        self.aliases = _clean_aliases(domain_aliases or {})
        self._rows: dict[str, dict[str, str]] = {}
        self._by_address: dict[str, dict[str, None]] = {}
        self._by_local: dict[str, dict[str, None]] = {}
        self._by_owner: dict[str, str] = {}
        for row in rows:
            self.add(row)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in an account, in the place of what was known of the same id."""
        account_id = str(row.get("id", ""))
        self.forget(account_id)
        held = {"id": account_id, "email": str(row.get("email") or ""), "linked": str(row.get("linked") or "")}
        self._rows[account_id] = held
        address = self.key(held["email"])
        self._by_address.setdefault(address, {})[account_id] = None
        self._by_local.setdefault(address.partition("@")[0], {})[account_id] = None
        if held["linked"]:
            self._by_owner[held["linked"].casefold()] = account_id

    def forget(self, account_id: str) -> None:
        """An account that is gone."""
        held = self._rows.pop(account_id, None)
        if held is None:
            return
        address = self.key(held["email"])
        for table, key in ((self._by_address, address), (self._by_local, address.partition("@")[0])):
            table[key].pop(account_id)
            if not table[key]:
                del table[key]
        if self._by_owner.get(held["linked"].casefold()) == account_id:
            del self._by_owner[held["linked"].casefold()]

    def key(self, address: str) -> str:
        """Equal for addresses that are the same person's."""
        try:
            return _address(address, self.aliases)
        except _BadAddress:
            return visible(address).lower()

    def at(self, address: str) -> list[dict[str, str]]:
        """Accounts of a normalized address, in the order they were taken in."""
        return [self._rows[one] for one in self._by_address.get(address, ())]

    def owned_by(self, external_id: str) -> str | None:
        """The account that belongs to an object id."""
        return self._by_owner.get(external_id.casefold()) if external_id else None

    def has_namesake(self, address: str) -> bool:
        """Whether somebody has the same local part in another domain."""
        twins = self._by_local.get(address.partition("@")[0], {})
        return len(twins) > len(self._by_address.get(address, {}))


def decide_create(
    user: Mapping[str, Any],
    platform: Iterable[Mapping[str, Any]] | Platform,
    links: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What to do about a user who has no account yet as far as we know (L1-L3, L11; vendor page 4.3). Pure.

    In this order: the link known by externalId is updated; an account of the same address is adopted, or a conflict when there
    are two or it belongs to another object; an account under the user's *other* address is a conflict, unless it may be adopted;
    else a new account.

    Args:
        user: `userName`, `mail`, `externalId`, `active`; any may be absent.
        platform: rows `{"id", "email"}`, optionally `"linked"`; a `Platform` when many users are decided.
        links: object id -> platform id.
        config: `email_from` (`userName`, `mail`), `invite` (`platform`, `manual`, `on_create`), `match_alternate` (`adopt`),
            `domain_aliases` (domain -> domain).

    Returns:
        `{"action"}` with, for `create`: `email`, `invite`, `warnings`; `adopt` and `update`: `id`, `email`; `conflict`: `code`,
        `ids`; `reject`: `code`.
    """
    config = config or {}
    links = links or {}
    aliases = config.get("domain_aliases") or {}
    accounts = platform if isinstance(platform, Platform) else Platform(platform, aliases)
    aliases = _clean_aliases(aliases)
    source: Source = "mail" if config.get("email_from") == "mail" else "userName"
    try:
        email = _address(user.get(source), aliases)
        active = _boolean(user.get("active"))
    except _BadAddress as exc:
        return {"action": "reject", "code": exc.code}
    ours = str(user.get("externalId") or "").strip()
    known = next((held for owner, held in links.items() if ours and owner.casefold() == ours.casefold()), None)
    known = known or accounts.owned_by(ours)
    if known is not None:
        return {"action": "update", "id": known, "email": email}
    conflict = _conflict_among(accounts.at(email), ours, links)
    if conflict is not None:
        return conflict
    if held := accounts.at(email):
        return {"action": "adopt", "id": held[0]["id"], "email": email}
    try:
        other = _address(user.get("userName" if source == "mail" else "mail"), aliases)
    except _BadAddress:
        other = ""
    if other and other != email and (held := accounts.at(other)):
        if config.get("match_alternate") != "adopt":
            ids = [row["id"] for row in held]
            return {"action": "conflict", "code": "exists_under_other_address", "ids": ids}
        conflict = _conflict_among(held, ours, links)
        return conflict or {"action": "adopt", "id": held[0]["id"], "email": email}
    return {
        "action": "create",
        "email": email,
        "invite": config.get("invite") == "on_create" and active,
        "warnings": ["possible_duplicate"] if accounts.has_namesake(email) else [],
    }


def _conflict_among(held: Sequence[Mapping[str, str]], ours: str, links: Mapping[str, str]) -> dict[str, Any] | None:
    """Why accounts of one address must not be adopted: there are two, or it is somebody else's."""
    ids = [row["id"] for row in held]
    if len(held) > 1:
        return {"action": "conflict", "code": "duplicate_accounts", "ids": ids}
    owners = [row["linked"] for row in held if row["linked"]]
    if held:
        owners += [owner for owner, account_id in links.items() if account_id == held[0]["id"]]
    if any(owner.casefold() != ours.casefold() for owner in owners):
        return {"action": "conflict", "code": "linked_elsewhere", "ids": ids}
    return None


def normalize_address(value: Any, domain_aliases: Mapping[str, str] | None = None) -> str:
    """An address as it is matched and sent: lower case, alias domains rewritten; plus tags and dots stay.

    Raises:
        NormalizationError: `missing` or `bad_email`; never shows the value.
    """
    try:
        return _address(value, _clean_aliases(domain_aliases or {}))
    except _BadAddress as exc:
        raise _no_address(exc.code, "userName") from None


def _address(value: Any, aliases: Mapping[str, str]) -> str:
    shown = visible(value).lower() if isinstance(value, str) else ""
    if value is None or value is UNSET or (isinstance(value, str) and not shown):
        raise _BadAddress("missing")
    if _EMAIL.fullmatch(shown) is None or "#ext#" in shown:
        raise _BadAddress("bad_email")
    local, _, domain = shown.partition("@")
    return f"{local}@{aliases.get(domain, domain)}"


def _clean_aliases(aliases: Mapping[str, str]) -> dict[str, str]:
    """Each alias with the domain it ends at. Aliases that lead nowhere or in a circle have no effect."""
    direct = {visible(str(old)).lower(): visible(str(new)).lower() for old, new in aliases.items()}
    ends: dict[str, str] = {}
    for old in direct:
        seen, domain = {old}, direct[old]
        while domain in direct and domain not in seen:
            seen.add(domain)
            domain = direct[domain]
        if domain not in seen and _EMAIL.fullmatch(f"x@{domain}"):
            ends[old] = domain
    return ends


def _boolean(value: Any) -> bool:
    """Entra's booleans: JSON, or the words True and False; absent means active."""
    if value is None or value is UNSET:
        return True
    if isinstance(value, bool):
        return value
    folded = value.strip().casefold() if isinstance(value, str) else ""
    if folded not in ("true", "false"):
        raise _BadAddress("bad_boolean")
    return folded == "true"


def _no_address(code: Reject, attribute: str) -> NormalizationError:
    source = "mail" if attribute == WORK_EMAIL else "userPrincipalName"
    said = {
        "missing": f"is blank; {TITLE} knows people by their e-mail address",
        "bad_email": f"must be an e-mail address ({TITLE}); the principal name of a guest is none",
        "bad_boolean": "must be true or false",
    }[code]
    named = "active" if code == "bad_boolean" else attribute
    remedy = (
        "Correct its mapping in Entra." if code == "bad_boolean" else f"Map it from {source} and fill that in Entra."
    )
    return NormalizationError(f"{named} {said}. {remedy}", code=code, attribute=named)


# The connector --------------------------------------------------------------------------------------------------------


class Settings(Struct, frozen=True, kw_only=True):
    """One organisation."""

    tenant_url: Annotated[str, Meta(description="Tenant URL of the organisation's Single Sign On page (L5)")]
    api_key: Annotated[Secret, Meta(description="token made under API Integrations (L6, L7), as a reference")]
    email_from: Annotated[
        Source, Meta(description="which Entra attribute is the address on the platform (L2, L11)")
    ] = "userName"
    match_alternate: Annotated[
        Literal["refuse", "adopt"],
        Meta(description="an account under the user's other address: refuse, or take it over"),
    ] = "refuse"
    domain_aliases: Annotated[dict[str, str], Meta(description="domain -> domain, before matching and sending")] = {}
    invite: Annotated[
        Literal["platform", "manual", "on_create"],
        Meta(description="who invites new users: the platform, people, or we"),
    ] = "platform"
    invitations_path: Annotated[
        str, Meta(description="on_create only: the assumed call, on the host of tenant_url, with {id}")
    ] = "/api/v1/users/{id}/invitations"
    on_delete: Annotated[Literal["delete", "deactivate"], Meta(description="what a SCIM DELETE does")] = "delete"
    allow_loopback: Annotated[bool, Meta(description="for emulators: permits http to this machine")] = False

    def __post_init__(self) -> None:
        problem = address_problem(self.tenant_url, allow_loopback=self.allow_loopback)
        if problem:
            raise ValueError(f"tenant_url {problem}")
        if not self.invitations_path.startswith("/") or re.findall(r"\{(\w+)\}", self.invitations_path) != ["id"]:
            raise ValueError("invitations_path must be a path with {id} once")
        if len(self.domain_aliases) > ALIASES_MAX:
            raise ValueError(f"domain_aliases has more than {ALIASES_MAX} entries")
        without_effect = sorted(
            old for old in self.domain_aliases if visible(old).lower() not in _clean_aliases(self.domain_aliases)
        )
        if without_effect:
            raise ValueError(f"domain_aliases: {', '.join(without_effect)} leads in a circle or to no domain")

    @property
    def decision(self) -> dict[str, Any]:
        """The configuration of `decide_create`."""
        return {
            "email_from": self.email_from,
            "invite": self.invite,
            "match_alternate": self.match_alternate,
            "domain_aliases": self.domain_aliases,
        }


class Account(Struct, frozen=True, kw_only=True):
    """What the platform shall hold. UNSET means that Entra says nothing.

    Args:
        email: the address, normalized.
        spellings: the user's addresses as Entra spells them; the platform finds exact spellings only.
        person: what `decide_create` takes.
    """

    email: str
    active: bool
    spellings: tuple[str, ...]
    person: dict[str, Any]
    external_id: str = ""
    given_name: str | UnsetType = UNSET
    family_name: str | UnsetType = UNSET
    display_name: str | UnsetType = UNSET


class BobsBusiness(Connector[Settings, Account]):
    """Users and groups of one organisation."""

    spec = Spec(
        name="bobs_business",
        title=TITLE,
        resources=("User", "Group"),
        identity=("userName", "externalId"),
        attributes=(
            Attribute(
                "userName", "userName", required=True, source="userPrincipalName", note="becomes the address (L2)"
            ),
            Attribute(WORK_EMAIL, "emails", source="mail", note='the address when email_from = "mail" (L11)'),
            Attribute("active", "active", type="boolean", source="Not([IsSoftDeleted])"),
            Attribute("name.givenName", "name.givenName", source="givenName"),
            Attribute("name.familyName", "name.familyName", source="surname"),
            Attribute("displayName", "displayName", source="displayName"),
            Attribute("externalId", "externalId", source="objectId", note="links the account to the person in Entra"),
        ),
        rate_limit=RateLimit(calls=5, per_s=1.0),
        concurrency_max=4,
        on_delete="delete",
        capabilities=("groups", "list_accounts", "list_groups", "invitations"),
        support="assumed",
        pitfalls=(
            "Accounts whose address differs from the one passed are duplicated by the platform; compare all accounts with Entra "
            "before the first cycle (the match report).",
            "The picture of permitted attributes in the vendor's guide is not text; the set here is assumed.",
            "Provision on demand sends at most five members of a group; who is not among them has not left.",
            "With single sign-on an account may appear at the first login, before it is provisioned; it is adopted.",
            "A user whose address on the platform is spelled in another letter case is found by listing all accounts, which is "
            "done at most every few minutes.",
        ),
        notes=(
            NoteKind(NOT_INVITED, "provisioned and not invited", done=INVITED),
            NoteKind(OWED, "to be invited; the call has not succeeded yet"),
            NoteKind(INVITED, "invited"),
            NoteKind(NAMESAKE, "somebody of the same name has an account in another domain", done="no_duplicate"),
        ),
    )
    settings_type = Settings

    @classmethod
    def spec_for(cls, settings: Settings) -> Spec:
        """Where domains are one, Entra's filters find a user under either (rule A1)."""
        if not settings.domain_aliases:
            return cls.spec
        return msgspec.structs.replace(cls.spec, capabilities=(*cls.spec.capabilities, "normalizes_identity"))

    @classmethod
    def endpoint(cls, settings: Settings) -> Endpoint | None:
        """The host of the Tenant URL; its path is the SCIM root."""
        parts = urlsplit(settings.tenant_url)
        return Endpoint(
            base_url=f"{parts.scheme}://{parts.netloc}",
            auth=Bearer(settings.api_key),
            allow_loopback=settings.allow_loopback,
            body_bytes_max=GROUP_BYTES_MAX,
        )

    def __init__(self, settings: Settings, http: VendorHttp) -> None:
        super().__init__(settings, http)
        self.scim = ScimClient(http, product=TITLE, prefix=urlsplit(settings.tenant_url).path.rstrip("/"))
        self._accounts = _Accounts(self.scim, settings.domain_aliases)
        self._found_foreign: dict[str, None] = {}

    def normalize(self, user: User, directory: Directory) -> Account:
        """L2, L11 and 4.4. Raises NormalizationError `missing` or `bad_email`."""
        external_id = text(user.external_id).strip()
        mail = user.email("work")
        person = {"userName": user.user_name, "mail": mail, "externalId": external_id, "active": user.is_active}
        decided = decide_create(person, (), {}, self.settings.decision)
        if decided["action"] == "reject":
            raise _no_address(decided["code"], self._attribute)
        spelled = (decided["email"], user.user_name.strip(), (mail or "").strip())
        return Account(
            email=decided["email"],
            active=user.is_active,
            spellings=tuple(dict.fromkeys(filter(None, spelled))),
            person=person,
            external_id=external_id,
            given_name=kept_text(user.name.given_name),
            family_name=kept_text(user.name.family_name),
            display_name=kept_text(user.display_name),
        )

    def account_keys(self, account: Account) -> tuple[str, ...]:
        """The address in lower case, aliases rewritten."""
        return (account.email,)

    def ignored(self, user: User) -> tuple[str, ...]:
        """Everything beyond the attributes of L10."""
        return ignored_paths(user, self.spec)

    async def check(self) -> list[Finding]:
        """Address, key, the permissions that reading shows, and settings that invite duplicates. Writes nothing."""
        _, users = await self.scim.page(None)
        findings = [
            Finding(level="ok", code="reachable", message=f"{TITLE} accepts the key; {users} users are visible.")
        ]
        try:
            await self.scim.page(None, kind="Groups")
        except Misconfigured as exc:
            if exc.code != "forbidden":
                raise
            findings.append(
                Finding(
                    level="warning",
                    code="missing_permission",
                    message=f"{exc.message}. Groups cannot be written; make a token that reads and writes users and groups (L6).",
                )
            )
        if self.settings.email_from == "userName" and self.settings.match_alternate == "adopt":
            findings.append(
                Finding(
                    level="warning",
                    code="adopts_other_address",
                    message='match_alternate = "adopt" takes over accounts found under mail and changes their address.',
                )
            )
        if self.settings.invite == "on_create":
            findings.append(
                Finding(
                    level="warning",
                    code="assumed_invitations",
                    message="The call that invites is assumed; switch the platform's own invitations off, or leave them to it.",
                )
            )
        return findings

    # Users ------------------------------------------------------------------------------------------------------------

    async def find(self, account: Account | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """By externalId and address; before a create the whole decision of 4.3.

        Raises:
            Conflict: `exists_under_other_address`, `duplicate_accounts` or `linked_elsewhere`: a create would make the duplicate
                the vendor warns of, an adoption would take somebody else's account. `names` are the accounts' ids.
        """
        own: set[Identity] = set()
        if account is not None:
            own = {identity("userName", one) for one in account.spellings} | {
                identity("externalId", account.external_id)
            }
        found: dict[str, Found] = {}
        owners = {value for attribute, value in map(split_identity, identities) if attribute == "externalId"}
        for name in identities:
            if name in own:
                continue
            for held in await self._answering(name, ctx):
                foreign = bool(owners) and held["linked"] and held["linked"].casefold() not in owners
                conflict = _SAID["linked_elsewhere"] if foreign else ""
                found.setdefault(held["id"], Found(account_id=held["id"], identity=name, conflict=conflict))
        if account is None:
            return list(found.values())
        first = identities[0] if identities else identity("userName", account.email)
        decided = await self._decided(account, ctx)
        if decided["action"] == "conflict" and all(one.conflict for one in found.values()):
            raise self._conflict(decided)
        if decided["action"] in ("update", "adopt"):
            if decided["action"] == "adopt":
                self._remember_foreign(decided["id"])
            mine = Found(account_id=decided["id"], identity=first)
            found = {mine.account_id: mine, **found}
        for code in decided.get("warnings", ()):
            ctx.warnings.append(f"{code}: {_NAMESAKE_SAID}")
            ctx.note(code, _NAMESAKE_SAID)
        return list(found.values())

    async def create(self, account: Account, ctx: Delivery) -> str:
        """POST, then the invitation where the settings ask for it. An address that is taken after all is looked up next."""
        answer = await self.scim.create(_resource(account), ctx, expect=(403, 409, 422))
        if answer.status == 409:
            await self._taken(account, ctx)
        self._refused(answer, "POST", "/Users", None)
        held = self.scim.resource_of(answer, "POST", "/Users")
        account_id = checked_id(held.get("id"), f"{TITLE} answered {answer.status} to POST {self.scim.path('/Users')}")
        self._accounts.note(account_id, account.email, account.external_id)
        if account.active:
            await self._welcome(account_id, ctx)
        return account_id

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        """Read, compare, PATCH what differs in one call; letter case alone is no difference of an address."""
        held = await self.scim.read(account_id, ctx)
        values = self._differences(held, account)
        if "userName" in values:
            await self._check_free(account_id, account, ctx)
        if values:
            operations = [_operation(path, value, held) for path, value in values.items()]
            answer = await self.scim.patch(account_id, operations, ctx, expect=(403, 409, 422))
            if answer.status == 409:
                raise self._conflict({"code": "duplicate_accounts", "ids": ()})
            self._refused(answer, "PATCH", "/Users/{id}", account_id)
        self._accounts.note(account_id, account.email, account.external_id)
        if not account.active:
            ctx.unnote(NOT_INVITED)
        elif self._is_to_be_invited(account_id, held, account, ctx):
            await self._welcome(account_id, ctx)

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        """The product's delete, or deactivation where the settings say so; one that is gone is fine."""
        self._accounts.forget(account_id)
        if self.settings.on_delete == "delete":
            await self.scim.delete(account_id, ctx)
            return
        try:
            await self.scim.patch(account_id, [{"op": "replace", "path": "active", "value": False}], ctx)
        except Gone:
            return

    async def list_accounts(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """One page of users; `id`, `email` and `linked` are what `decide_create` takes as rows."""
        found, following = await self.scim.listed(cursor)
        page = []
        for held in found:
            row = _row(held)
            names = dict.fromkeys((row["email"], self._accounts.key(row["email"])))
            known_by = dict.fromkeys(identity("userName", one) for one in names)
            if row["linked"]:
                known_by[identity("externalId", row["linked"])] = None
            page.append(
                {
                    "account_id": row["id"],
                    "identities": tuple(known_by),
                    "active": held.get("active") is not False,
                    "owner": row["linked"],
                    "values": self._shown(held),
                    **row,
                }
            )
        return page, following

    def expected(self, account: Account) -> Expected:
        """Address, names, externalId; an account under the person's other address is adopted only where the settings say so."""
        own = [identity("userName", account.email)]
        if account.external_id:
            own.insert(0, identity("externalId", account.external_id))
        keys = dict.fromkeys(self._accounts.key(one) for one in account.spellings)
        others = tuple(identity("userName", one) for one in keys if one != account.email and "@" in one)
        adopts = self.settings.match_alternate == "adopt"
        values: dict[str, Any] = {"userName": account.email, WORK_EMAIL: account.email}
        values |= spoken_of(
            {
                "name.givenName": account.given_name,
                "name.familyName": account.family_name,
                "displayName": account.display_name,
            }
        )
        if account.external_id:
            values["externalId"] = account.external_id.casefold()
        return Expected(
            identities=(*own, *(others if adopts else ())),
            elsewhere=() if adopts else others,
            owner=account.external_id,
            values=values,
        )

    # Groups -----------------------------------------------------------------------------------------------------------

    async def list_groups(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """One page of groups without their members."""
        found, following = await self.scim.listed(cursor, kind="Groups")
        page = []
        for held in found:
            name, owner = str(held.get("displayName") or ""), str(held.get("externalId") or "")
            known_by = {identity("displayName", _folded(name)): None}
            if owner:
                known_by[identity("externalId", owner)] = None
            page.append(
                {
                    "account_id": _id(held, "group"),
                    "identities": tuple(known_by),
                    "active": True,
                    "owner": owner,
                    "values": {"displayName": held_text(name), "externalId": held_text(owner)},
                }
            )
        return page, following

    def expected_group(self, group: Group) -> Expected | None:
        """Name and externalId, as `put_group` writes them."""
        ours = text(group.external_id).strip()
        names = [identity("externalId", ours)] if ours else []
        return Expected(
            identities=(*names, identity("displayName", _folded(group.display_name))),
            owner=ours,
            values={"displayName": held_text(group.display_name)} | ({"externalId": ours} if ours else {}),
        )

    async def list_members(self, group_id: str, cursor: str | None) -> tuple[list[str], str | None]:
        """The platform shows all members of a group at once."""
        return await self.scim.members(group_id), None

    async def find_group(self, group: Group | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """By externalId, then by name, trimmed and folded.

        Raises:
            Conflict: two groups carry the name of a group that is about to be made.
        """
        names: dict[str, Identity] = {}
        for name in identities:
            attribute, value = split_identity(name)
            if attribute == "displayName" and value:
                names[_folded(value)] = name
        first = identities[0] if identities else identity("displayName", group.display_name if group else "")
        if group is not None:
            names.setdefault(_folded(group.display_name), first)
            ours = text(group.external_id).strip()
            held = await self.scim.find("externalId", ours, ctx, kind="Groups") if ours else []
            if held:
                return [Found(account_id=_id(held[0], "group"), identity=first)]
        found = []
        for name, rows in (await self._groups_named(names, ctx)).items():
            if group is not None and name == _folded(group.display_name) and len(rows) > 1:
                raise Conflict(
                    f"{TITLE} has {len(rows)} groups of this name; rename or remove one there.",
                    code="duplicate_groups",
                    attribute="displayName",
                )
            found += [
                Found(account_id=_id(row, "group"), identity=names[name], conflict=_of_another(row, group))
                for row in rows
            ]
        return found

    async def put_group(self, group_id: str | None, group: Group, ctx: Delivery) -> str:
        """Create without members, or set what differs of name and externalId."""
        ours = text(group.external_id).strip()
        if group_id is None:
            wish = {"schemas": [GROUP_SCHEMA], "displayName": group.display_name.strip()}
            if ours:
                wish["externalId"] = ours
            answer = await self.scim.create(wish, ctx, kind="Groups", expect=(409,))
            if answer.status == 409:
                raise Conflict(
                    f"{TITLE} has a group of this name already; it is looked at again.", attribute="displayName"
                )
            return _id(self.scim.resource_of(answer, "POST", "/Groups"), "group")
        held = await self.scim.read(group_id, ctx, kind="Groups")
        wanted = {"displayName": group.display_name.strip(), "externalId": ours or held.get("externalId")}
        operations = [
            {"op": "replace", "path": path, "value": value}
            for path, value in wanted.items()
            if value is not None and held.get(path) != value
        ]
        if operations:
            answer = await self.scim.patch(group_id, operations, ctx, kind="Groups", expect=(409,))
            if answer.status == 409:
                raise Conflict(
                    f"Another group of {TITLE} has this name; rename or remove it there.",
                    code="duplicate_groups",
                    attribute="displayName",
                )
        return group_id

    async def change_members(self, group_id: str, add: Sequence[str], remove: Sequence[str], ctx: Delivery) -> None:
        """Explicit additions and removals, 100 at a time; never a list that replaces (L15).

        Raises:
            Blocked: members the platform does not know; all others are added first.
        """
        await self.scim.change_members(group_id, add, remove, ctx)

    async def delete_group(self, group_id: str, ctx: Delivery) -> None:
        """The group only; its users stay."""
        await self.scim.delete(group_id, ctx, kind="Groups")

    # Steps ------------------------------------------------------------------------------------------------------------

    @property
    def _attribute(self) -> str:
        return WORK_EMAIL if self.settings.email_from == "mail" else "userName"

    async def _answering(self, name: Identity, ctx: Delivery) -> list[dict[str, str]]:
        """Accounts that answer to one identity; one that is no address matches nothing (0.2)."""
        attribute, value = split_identity(name)
        if attribute == "externalId" and value:
            return [_row(held) for held in await self.scim.find("externalId", value, ctx)]
        if attribute != "userName" or self.settings.email_from == "mail":
            return []  # where mail is the address, an account under the principal name is no sign of ours
        try:
            address = _address(value, self._accounts.aliases)
        except _BadAddress:
            return []
        held = await self._at_addresses((address,), (value, address), ctx)
        return held.at(address)

    async def _decided(self, account: Account, ctx: Delivery) -> dict[str, Any]:
        """`decide_create` on what the platform holds at this moment."""
        addresses = dict.fromkeys((account.email, *(self._accounts.key(one) for one in account.spellings)))
        held = await self._at_addresses(tuple(addresses), account.spellings, ctx)
        links: dict[str, str] = {}
        if account.external_id:
            for one in await self.scim.find("externalId", account.external_id, ctx):
                links[account.external_id] = _row(one)["id"]
        decided = decide_create(account.person, held, links, self.settings.decision)
        if decided["action"] == "create" and self._accounts.has_namesake(account.email):
            decided["warnings"] = ["possible_duplicate"]
        return decided

    async def _at_addresses(self, addresses: Sequence[str], spellings: Sequence[str], ctx: Delivery) -> Platform:
        """Accounts of some addresses in any letter case, as they are now.

        The platform finds exact spellings only, so those Entra uses are asked for, and accounts in another spelling come from the
        list of all accounts and are read again, because the list may be some minutes old.
        """
        held = Platform(domain_aliases=self.settings.domain_aliases)
        for spelling in dict.fromkeys((*addresses, *spellings)):
            for one in await self.scim.find("userName", spelling, ctx):
                held.add(_row(one))
        await self._accounts.refresh()
        seen = {row["id"] for address in addresses for row in held.at(address)}
        listed = [row["id"] for address in addresses for row in self._accounts.at(address)]
        for account_id in [one for one in listed if one not in seen][:CANDIDATES_MAX]:
            try:
                row = _row(await self.scim.read(account_id, ctx))
            except Gone:
                self._accounts.forget(account_id)
                continue
            held.add(row)
            self._accounts.note(row["id"], row["email"], row["linked"])
        return held

    async def _check_free(self, account_id: str, account: Account, ctx: Delivery) -> None:
        """Before an address changes: nobody else may have the new one in any letter case."""
        held = await self._at_addresses((account.email,), (account.email,), ctx)
        others = [row["id"] for row in held.at(account.email) if row["id"] != account_id]
        if others:
            raise self._conflict({"code": "duplicate_accounts", "ids": others})

    async def _taken(self, account: Account, ctx: Delivery) -> None:
        """Why an address cannot be created. Always raises: an account that was merely found is linked by the gateway."""
        self._accounts.expire()
        decided = await self._decided(account, ctx)
        if decided["action"] == "conflict":
            raise self._conflict(decided)
        if decided["action"] in ("update", "adopt"):
            raise already_there(TITLE, "an account of this address")
        # Reads may lag behind writes, so the gateway looks again some times before it is a person's turn (code `conflict`).
        raise Conflict(
            f"{TITLE} says that this address is taken, but shows no such account.", attribute=self._attribute
        )

    def _conflict(self, decided: Mapping[str, Any]) -> Conflict:
        ids = tuple(decided["ids"])
        named = f" (account {', '.join(ids[:CANDIDATES_MAX])})" if ids else ""
        return Conflict(
            f"{TITLE}{named}: {_SAID[decided['code']]}", code=decided["code"], attribute=self._attribute, names=ids
        )

    def _differences(self, held: Mapping[str, Any], account: Account) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if held.get("active") is not account.active:
            values["active"] = account.active
        if self._accounts.key(str(held.get("userName", ""))) != account.email:
            values["userName"] = account.email
        if self._accounts.key(_work_email(held) or "") != account.email:
            values[WORK_EMAIL] = account.email
        if account.external_id and held.get("externalId") != account.external_id:
            values["externalId"] = account.external_id
        name = held.get("name")
        shown = {**(name if isinstance(name, dict) else {}), "displayName": held.get("displayName")}
        wanted = {
            "givenName": account.given_name,
            "familyName": account.family_name,
            "displayName": account.display_name,
        }
        for field, value in wanted.items():
            if value is not UNSET and (shown.get(field) or "") != value:
                values[field if field == "displayName" else f"name.{field}"] = value or None
        return values

    def _shown(self, held: Mapping[str, Any]) -> dict[str, str | None]:
        """What the list shows of the managed attributes."""
        shown = held.get("name")
        name: Mapping[str, Any] = shown if isinstance(shown, dict) else {}
        return {
            "userName": self._accounts.key(str(held.get("userName") or "")),
            WORK_EMAIL: self._accounts.key(_work_email(held) or ""),
            "name.givenName": held_text(name.get("givenName")),
            "name.familyName": held_text(name.get("familyName")),
            "displayName": held_text(held.get("displayName")),
            "externalId": held_text(str(held.get("externalId") or "").casefold()),
        }

    def _is_to_be_invited(self, account_id: str, held: Mapping[str, Any], account: Account, ctx: Delivery) -> bool:
        """A user made by us whose invitation may have got lost, or who becomes active; never an adopted account."""
        if ctx.has_note(INVITED):
            return False
        if ctx.has_note(OWED):
            return True
        if not self._is_ours(account_id, held, account, ctx):
            return False
        return held.get("active") is False or ctx.ambiguous or ctx.attempt > 1

    def _is_ours(self, account_id: str, held: Mapping[str, Any], account: Account, ctx: Delivery) -> bool:
        """Made by us: the gateway remembers. Where a lost answer left that open, an account of ours carries our externalId."""
        if ctx.created_by_us is not None:
            return ctx.created_by_us
        marked = bool(account.external_id) and held.get("externalId") == account.external_id
        return marked and account_id not in self._found_foreign

    async def _welcome(self, account_id: str, ctx: Delivery) -> None:
        """Who invites an active user made by us: the platform, people, or we; nobody a second time (4.3)."""
        if self.settings.invite == "platform":
            return
        if ctx.has_note(INVITED):
            said = "An earlier account of this user was invited; nobody is invited twice."
        elif self.settings.invite == "manual":
            said = "Not invited: invitations are sent by hand on the platform."
        else:
            ctx.note(OWED, "The invitation of a new user; it is sent as soon as the platform takes it.")
            await self._invite(account_id, ctx)
            ctx.unnote(OWED)
            ctx.unnote(NOT_INVITED)
            return
        ctx.warnings.append(said)
        ctx.note(NOT_INVITED, said)

    async def _invite(self, account_id: str, ctx: Delivery) -> None:
        """One call; whether it succeeded is recorded before it is repeated, so it is not repeated within a delivery."""
        path = self.settings.invitations_path
        answer = await self.http.request(
            "POST",
            path,
            ctx=ctx,
            parts={"id": account_id},
            headers={"Idempotency-Key": f"invite:{account_id}"},
            expect=(409, 422),
        )
        code = _code(answer)
        if answer.status == 409 and code in ("", "already_invited"):
            ctx.warnings.append("Invited already; no second invitation was sent.")
            ctx.note(INVITED, "The platform had invited this user already.")
        elif answer.status == 422 and code == "inactive_user":
            raise Rejected(f"{TITLE} does not invite an inactive user.", code="inactive_user", attribute="active")
        elif answer.status >= 300:
            raise error_of(TITLE, "POST", path, answer)
        else:
            ctx.warnings.append("Invited: the platform sent one invitation.")
            ctx.note(INVITED, "The platform sent an invitation.")

    def _remember_foreign(self, account_id: str) -> None:
        self._found_foreign[account_id] = None
        while len(self._found_foreign) > ACCOUNTS_MAX:
            self._found_foreign.pop(next(iter(self._found_foreign)))

    def _refused(self, answer: VendorResponse, method: str, template: str, account_id: str | None) -> None:
        """Raise for a refusal; a missing seat waits and is looked at every hour."""
        if answer.status < 300:
            return
        if _code(answer) in NO_SEAT:
            raise Blocked(
                f"{TITLE} has no free seat. Free one or buy more; it is tried again every hour.",
                on="seat",
                code="no_seat",
                attribute="active",
                retry_after_s=SEAT_RETRY_S,
                account_id=account_id,
                observed_active=False if account_id else None,
            )
        raise error_of(TITLE, method, self.scim.path(template), answer)

    async def _groups_named(self, names: Mapping[str, Identity], ctx: Delivery) -> dict[str, list[dict[str, Any]]]:
        """All groups of some names, letter case and blanks ignored, which the platform's filter does not do."""
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        start = 1
        for _ in range(GROUP_PAGES_MAX if names else 0):
            found, total = await self.scim.page(ctx, kind="Groups", start=start)
            for held in found:
                name = _folded(str(held.get("displayName", "")))
                if name in rows:
                    rows[name].append(held)
            start += len(found)
            if not found or start > total:
                break
        return rows


class _Accounts:
    """All accounts of the platform as last listed, for finding an address in another letter case.

    One listing at a time, shared by all deliveries; an interrupted one goes on where it stopped.
    """

    def __init__(
        self, scim: ScimClient, domain_aliases: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._scim = scim
        self._domain_aliases = domain_aliases
        self._clock = clock
        self._listing = asyncio.Lock()
        self._held = Platform(domain_aliases=domain_aliases)
        self._good_until = 0.0
        self._partial: Platform | None = None
        self._start = 1
        self._begun_at = 0.0

    @property
    def aliases(self) -> Mapping[str, str]:
        return self._held.aliases

    def key(self, address: str) -> str:
        return self._held.key(address)

    def at(self, address: str) -> list[dict[str, str]]:
        return self._held.at(address)

    def has_namesake(self, address: str) -> bool:
        return self._held.has_namesake(address)

    def note(self, account_id: str, email: str, linked: str) -> None:
        """What a call has just shown."""
        for accounts in (self._held, self._partial):
            if accounts is not None and len(accounts) < ACCOUNTS_MAX:
                accounts.add({"id": account_id, "email": email, "linked": linked})

    def forget(self, account_id: str) -> None:
        for accounts in (self._held, self._partial):
            if accounts is not None:
                accounts.forget(account_id)

    def expire(self) -> None:
        """The list is older than something that has just been seen."""
        self._good_until = 0.0

    async def refresh(self) -> None:
        """List all accounts anew when the list is too old."""
        async with self._listing:
            if self._clock() < self._good_until:
                return
            if self._partial is None or self._clock() - self._begun_at > LISTING_REST_MAX_S:
                self._partial, self._start = Platform(domain_aliases=self._domain_aliases), 1
                self._begun_at = self._clock()
            while len(self._partial) < ACCOUNTS_MAX:
                found, total = await self._scim.page(None, start=self._start)
                for held in found:
                    self._partial.add(_row(held))
                self._start += len(found)
                if not found or self._start > total:
                    break
            took_s = self._clock() - self._begun_at
            self._held, self._partial = self._partial, None
            self._good_until = self._clock() + max(ACCOUNTS_KEEP_S, ACCOUNTS_KEEP_FACTOR * took_s)


_SAID = {
    "exists_under_other_address": (
        "An account exists on the platform under this person's other address. Align mail and userPrincipalName, set email_from "
        'to the one the platform uses, or set match_alternate = "adopt".'
    ),
    "duplicate_accounts": (
        "The platform has another account of this address already. Ask the vendor's support to merge them; nothing was written."
    ),
    "linked_elsewhere": (
        "The platform's account of this address belongs to another object of Entra. Remove that link or account there, or "
        "correct the address in Entra."
    ),
}


_NAMESAKE_SAID = (
    "An account with the same name in another domain exists on the platform. If it is the same person, have the vendor's support "
    "merge the two, or name the domains in domain_aliases."
)


def _of_another(held: Mapping[str, Any], group: Group | None) -> str:
    theirs = str(held.get("externalId") or "")
    if group is None or not theirs or theirs.casefold() == text(group.external_id).strip().casefold():
        return ""
    return f"A group of this name exists in {TITLE} and belongs to another group of Entra; rename one of them."


def _resource(account: Account) -> dict[str, Any]:
    resource: dict[str, Any] = {
        "schemas": [USER_SCHEMA],
        "userName": account.email,
        "active": account.active,
        "emails": [{"type": "work", "value": account.email, "primary": True}],
    }
    if account.external_id:
        resource["externalId"] = account.external_id
    if account.display_name:
        resource["displayName"] = account.display_name
    name = {"givenName": account.given_name, "familyName": account.family_name}
    if given := {field: value for field, value in name.items() if value}:
        resource["name"] = given
    return resource


def _operation(path: str, value: Any, held: Mapping[str, Any]) -> dict[str, Any]:
    if value is None:
        return {"op": "remove", "path": path}
    if path == WORK_EMAIL and _work_email(held) is None:  # replacing an entry that is not there has no target
        return {"op": "add", "path": "emails", "value": [{"type": "work", "value": value}]}
    return {"op": "replace", "path": path, "value": value}


def _work_email(held: Mapping[str, Any]) -> str | None:
    emails = held.get("emails")
    for entry in emails if isinstance(emails, list) else ():
        if isinstance(entry, dict) and entry.get("type") == "work":
            return str(entry.get("value") or "")
    return None


def _row(held: Mapping[str, Any]) -> dict[str, str]:
    return {
        "id": _id(held, "user"),
        "email": str(held.get("userName") or ""),
        "linked": str(held.get("externalId") or ""),
    }


def _id(held: Mapping[str, Any], what: str) -> str:
    return checked_id(held.get("id"), f"{TITLE} answered with a {what}")


def _code(answer: VendorResponse) -> str:
    body = answer.body if isinstance(answer.body, dict) else {}
    code = body.get("code")
    return code if isinstance(code, str) else ""


def _folded(name: str) -> str:
    return " ".join(visible(name).casefold().split())
