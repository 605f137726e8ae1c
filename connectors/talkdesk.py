"""Talkdesk: users with roles and teams, named in Entra, resolved here to the exact names of the account.

Documented (vendor's Entra guide and SCIM pages): role and team must already exist; without a mapped role the account becomes
Agent; without a mapped `active` it is active; no licence left makes a new user inactive without an error; 4 calls a second;
rolesString and teamsString are lists separated by semicolons. Inferred: names are case-sensitive, and PUT forgets what is not
sent. Assumed, and off unless configured: calls that list roles and teams.
"""

from __future__ import annotations

import difflib
import functools
import heapq
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from msgspec import UNSET, Meta, Struct, UnsetType, structs

from connectors.contract import (
    Auth,
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
from connectors.http import Bearer, ClientCredentials, address_problem, already_there, error_of, vendor_text
from connectors.scim import ScimClient, as_text, checked_id, extension_value, held_text, ignored_paths, texts
from schemas.config import Secret
from schemas.errors import Blocked, Conflict, Gone, NormalizationError, Rejected
from schemas.events import identity, split_identity
from schemas.resources import USER_SCHEMA, User
from schemas.specs import Attribute, NoteKind, RateLimit, Spec

TITLE = "Talkdesk"
EXTENSION = "urn:ietf:params:scim:schemas:extension:talkdesk:2.0:User"
SCIM_PREFIX = "/scim/v2"
DEFAULT_ROLE = "Agent"
NO_LICENCE = "no_licence"
LICENCE_MAX_S = 30 * 86_400.0
"""So long nobody bought or freed a licence: the change is a dead letter, and Entra's next write or a redrive tries again."""
BUILT_IN_ROLES = ("Administrator", "Agent", "Supervisor")
"""Exist in every account and cannot be renamed or deactivated."""
KEEP_ALIVE_S = 12 * 3600.0
"""An opaque token lives as long as it is used; how long it may lie is not documented, a call a day is known to do."""
PAGES_MAX = 500
NAMES_MAX = 10_000
PROPOSALS_MAX = 3
COMPARED_MAX = 100
"""Names that a mistyped one is compared with."""
NAME_CHARS_MAX = 200
SPELLINGS_MAX = 50_000
"""Folded names that are remembered: they are the same for every user."""

Kind = Literal["role", "team"]
Region = Literal["us", "eu", "ca"]

API_HOSTS: dict[Region, str] = {
    "us": "https://api.talkdeskapp.com",
    "eu": "https://api.talkdeskapp.eu",
    "ca": "https://api.talkdeskappca.com",
}
TOKEN_HOSTS: dict[Region, str] = {"us": "talkdeskid.com", "eu": "talkdeskid.eu", "ca": "talkdeskidca.com"}

_ACCOUNT = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_ATTRIBUTE: dict[Kind, str] = {"role": f"{EXTENSION}:rolesString", "team": f"{EXTENSION}:teamsString"}
_SAID = {
    "unknown": "does not exist in Talkdesk",
    "ambiguous": "fits several names in Talkdesk that differ only in letter case",
    "inactive": "is deactivated in Talkdesk",
}

CatalogueEntry = Mapping[str, Any] | str


def resolve_names(kind: Kind, value: Any, catalogue: Sequence[CatalogueEntry]) -> list[str]:
    """Entra's text for roles or teams as exact names of the account, in order, without duplicates.

    Exact names win; otherwise letter case, width and blanks do not matter, while accents, hyphens and other punctuation do.
    Only `;` separates. One bad name refuses all.

    Args:
        value: any form of vendor page 0.2; null and unset give an empty list.
        catalogue: names, or `{"name", "active"}`.

    Raises:
        NormalizationError: `unknown_*`, else `ambiguous_*`, else `inactive_*` (with the kind); `names` lists all of that code.
    """
    is_active: dict[str, bool] = {}
    for entry in catalogue:
        name, active = (
            (entry, True) if isinstance(entry, str) else (str(entry["name"]), entry.get("active") is not False)
        )
        is_active[name] = active or is_active.get(name, False)
    exact = {unicodedata.normalize("NFC", name): name for name in is_active}
    folded: dict[str, list[str]] = {}
    for name in is_active:
        folded.setdefault(_folded(name), []).append(name)

    resolved: list[str] = []
    problems: dict[str, list[str]] = {"unknown": [], "ambiguous": [], "inactive": []}
    for wanted in split_names(value):
        hits = [exact[wanted]] if wanted in exact else folded.get(_folded(wanted), [])
        if len(hits) == 1 and is_active[hits[0]]:
            resolved.append(hits[0])
        else:
            problems["unknown" if not hits else "ambiguous" if len(hits) > 1 else "inactive"].append(wanted)
    for problem, bad in problems.items():
        if bad:
            raise _bad_names(kind, problem, list(dict.fromkeys(bad)), folded, is_active)
    return list(dict.fromkeys(resolved))


def split_names(value: Any) -> list[str]:
    """The names in Entra's value: unwrapped, split on `;`, without invisible characters and superfluous blanks, composed."""
    names = []
    for text in texts(value):
        for part in text.split(";"):
            visible = "".join(char for char in part if unicodedata.category(char) != "Cf")
            name = unicodedata.normalize("NFC", " ".join(visible.split()))
            if name:
                names.append(name)
    return names[:NAMES_MAX]


@functools.lru_cache(SPELLINGS_MAX)
def _folded(name: str) -> str:
    """Equal for names that differ in letter case, width, compatibility forms and blanks only."""
    once = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(once.split())


@functools.lru_cache(SPELLINGS_MAX)
def _bare(name: str) -> str:
    """For proposals only: accents and unusual hyphens do not count either."""
    spread = unicodedata.normalize("NFKD", _folded(name))
    return "".join(
        "-" if unicodedata.category(char) == "Pd" else char for char in spread if not unicodedata.combining(char)
    )


def nearest(name: str, known: Sequence[str]) -> list[str]:
    """Existing names that a mistyped one may mean, best first.

    Comparing whole names is slow, and a worker does nothing else meanwhile: of many names only those that share the most pairs of
    letters are compared.
    """
    by_bare: dict[str, list[str]] = {}
    for candidate in known:
        by_bare.setdefault(_bare(candidate), []).append(candidate)
    wanted = _bare(name[:NAME_CHARS_MAX])
    likely = list(by_bare)
    if len(likely) > COMPARED_MAX:
        pairs = {wanted[at : at + 2] for at in range(len(wanted) - 1)}
        likely = heapq.nlargest(
            COMPARED_MAX, likely, key=lambda one: 4 * sum(pair in one for pair in pairs) - abs(len(one) - len(wanted))
        )
    close = difflib.get_close_matches(wanted, likely, n=PROPOSALS_MAX, cutoff=0.6)
    return [candidate for bare in close for candidate in by_bare[bare]][:PROPOSALS_MAX]


def _bad_names(
    kind: Kind, problem: str, bad: list[str], folded: Mapping[str, list[str]], is_active: Mapping[str, bool]
) -> NormalizationError:
    sentences = []
    for name in bad:
        if problem == "ambiguous":
            proposals = folded[_folded(name)]
            hint = f": {', '.join(map(repr, proposals))}; write one of them exactly"
        elif problem == "unknown":
            proposals = nearest(name, [one for one, active in is_active.items() if active])
            hint = f"; did you mean {' or '.join(map(repr, proposals))}?" if proposals else ""
            if "," in name:
                hint += " Only a semicolon separates names."
        else:
            hint = ""
        sentences.append(f"{kind} {name!r} {_SAID[problem]}{hint}")
    remedy = {
        "unknown": f"Create it there or correct the mapping of {_ATTRIBUTE[kind]}.",
        "ambiguous": f"Correct the mapping of {_ATTRIBUTE[kind]}.",
        "inactive": f"Activate it there or correct the mapping of {_ATTRIBUTE[kind]}.",
    }[problem]
    text = "; ".join(sentences)
    return NormalizationError(
        f"{text}{'' if text.endswith(('?', '.')) else '.'} {remedy}",
        code=f"{problem}_{kind}",
        attribute=_ATTRIBUTE[kind],
        names=bad,
    )


class Settings(Struct, frozen=True, kw_only=True):
    """One Talkdesk account. Either a ready STS token, or client credentials with which tokens are fetched."""

    region: Annotated[Region, Meta(description="us, eu or ca; decides the hosts (T1)")] = "us"
    base_url: Annotated[str | None, Meta(description="instead of the region's API host")] = None
    token: Annotated[Secret | None, Meta(description="an STS token with the scope scim (T2), as a reference")] = None
    client_id: Annotated[
        str | None, Meta(description="instead of token: the client with which tokens are fetched, scope scim")
    ] = None
    client_secret: Annotated[Secret | None, Meta(description="secret of the client, as a reference")] = None
    account: Annotated[str | None, Meta(description="the account's name in its token host")] = None
    token_url: Annotated[str | None, Meta(description="instead of the account's token host")] = None
    auth_scheme: Annotated[
        Literal["bearer", "raw"], Meta(description="raw sends the token without the word Bearer")
    ] = "bearer"
    roles: Annotated[tuple[str, ...], Meta(description="all role names of the account; authoritative when given")] = ()
    teams: Annotated[tuple[str, ...], Meta(description="all team names of the account; authoritative when given")] = ()
    harvest: Annotated[bool, Meta(description="learn names from the users that hold them")] = False
    list_endpoints: Annotated[bool, Meta(description="learn names from GET /roles and /teams (assumed calls)")] = False
    default_role: Annotated[str, Meta(description="given when Entra takes the role away")] = DEFAULT_ROLE
    on_delete: Annotated[Literal["delete", "deactivate"], Meta(description="what a SCIM DELETE does")] = "delete"
    allow_loopback: Annotated[bool, Meta(description="for emulators: permits http to this machine")] = False

    def __post_init__(self) -> None:
        if (self.token is None) == (self.client_id is None and self.client_secret is None):
            raise ValueError("needs either token, or client_id and client_secret")
        if self.token is None:
            if self.client_id is None or self.client_secret is None:
                raise ValueError("needs client_id and client_secret together")
            if self.token_url is None and (self.account is None or not _ACCOUNT.fullmatch(self.account)):
                raise ValueError("needs account, the name in https://ACCOUNT.talkdeskid.com, to fetch tokens")
        for name, url in (("base_url", self.base_url), ("token_url", self.token_url)):
            problem = address_problem(url, allow_loopback=self.allow_loopback) if url is not None else ""
            if problem:
                raise ValueError(f"{name} {problem}")
        for name in (*self.roles, *self.teams, self.default_role):
            if not name.strip() or ";" in name:
                raise ValueError(f"roles, teams, default_role: {name!r} cannot be a name in Talkdesk")


class Account(Struct, frozen=True, kw_only=True):
    """What Talkdesk shall hold. UNSET means that Entra says nothing: the vendor's default on create, kept afterwards.

    Empty `roles` or `teams` mean that Entra removed them.
    """

    user_name: str
    given_name: str
    family_name: str
    active: bool | UnsetType = UNSET
    external_id: str | UnsetType = UNSET
    roles: tuple[str, ...] | UnsetType = UNSET
    teams: tuple[str, ...] | UnsetType = UNSET
    warnings: tuple[str, ...] = ()

    def entitlements(self, *, creating: bool, default_role: str) -> dict[str, str]:
        """The extension's attributes as sent: exact names joined with `;`, without blanks."""
        sent = {}
        if self.roles:
            sent["rolesString"] = ";".join(self.roles)
        elif self.roles is not UNSET and not creating:
            sent["rolesString"] = default_role
        if self.teams:
            sent["teamsString"] = ";".join(self.teams)
        elif self.teams is not UNSET and not creating:
            sent["teamsString"] = ""
        return sent


class Talkdesk(Connector[Settings, Account]):
    """Users of one Talkdesk account."""

    spec = Spec(
        name="talkdesk",
        title=TITLE,
        attributes=(
            Attribute("userName", "userName", required=True, source="userPrincipalName", note="an e-mail address"),
            Attribute("name.givenName", "name.givenName", required=True, source="givenName", note="T7"),
            Attribute("name.familyName", "name.familyName", required=True, source="surname", note="T7"),
            Attribute(
                "active",
                "active",
                type="boolean",
                source='Switch([IsSoftDeleted], , "False", "True", "True", "False")',
                note="optional; unmapped means active (T8, T9)",
            ),
            Attribute("externalId", "externalId", source="objectId", note="optional, Direct (T10)"),
            Attribute(
                f"{EXTENSION}:rolesString",
                "rolesString",
                source="SingleAppRoleAssignment([appRoleAssignments])",
                note=f"existing roles, separated by semicolons; unmapped means {DEFAULT_ROLE} (T11-T14)",
            ),
            Attribute(
                f"{EXTENSION}:teamsString",
                "teamsString",
                source="Constant, or a custom attribute",
                note="existing teams, separated by semicolons; unmapped means no team (T15, T16)",
            ),
        ),
        groups_step=(
            f"{TITLE} has no groups: set Provision Microsoft Entra ID Groups to Enabled = No (group mapping Disabled) "
            "and map rolesString and teamsString instead."
        ),
        rate_limit=RateLimit(calls=4, per_s=1.0),
        rights_settle_s=600.0,  # a new scope "can take minutes"
        concurrency_max=4,
        on_delete="delete",
        capabilities=("list_accounts", "directory", "keep_alive"),
        pitfalls=(
            "Roles and teams must exist in Talkdesk before they are mapped; a mistyped constant refuses every user.",
            "Without a free licence a user is created inactive; the change then waits for a licence.",
            "SingleAppRoleAssignment sends one role; which one is not guaranteed when a user has several.",
            "Remove the default mappings that Talkdesk does not know, such as honorificPrefix.",
        ),
        notes=(NoteKind(NO_LICENCE, "inactive for want of a licence"),),
    )
    settings_type = Settings

    @classmethod
    def endpoint(cls, settings: Settings) -> Endpoint | None:
        """The region's API host, or `base_url`; with or without the SCIM path that Talkdesk shows as Tenant URL."""
        base_url = (settings.base_url or API_HOSTS[settings.region]).rstrip("/").removesuffix(SCIM_PREFIX)
        scheme = "Bearer" if settings.auth_scheme == "bearer" else ""
        auth: Auth
        if settings.token is not None:
            auth = Bearer(settings.token, scheme=scheme)
        else:
            host = f"https://{settings.account}.{TOKEN_HOSTS[settings.region]}/oauth/token"
            if (
                settings.client_id is None or settings.client_secret is None
            ):  # refused by Settings; said for the checker
                raise ValueError("needs client_id and client_secret")
            scopes = ["scim", *(["roles:read", "teams:read"] if settings.list_endpoints else [])]
            auth = ClientCredentials(
                settings.token_url or host,
                client_id=settings.client_id,
                client_secret=settings.client_secret,
                form={"token_type": "opaque", "scope": " ".join(scopes)},
                scheme=scheme,
            )
        return Endpoint(base_url=base_url, auth=auth, allow_loopback=settings.allow_loopback)

    def __init__(self, settings: Settings, http: VendorHttp) -> None:
        super().__init__(settings, http)
        self.scim = ScimClient(http, product=TITLE, prefix=SCIM_PREFIX)
        self._seen: dict[str, list[dict[str, Any]]] = {}

    def normalize(self, user: User, directory: Directory) -> Account:
        """T7, T13, T15. Raises NormalizationError naming the attribute and, for roles and teams, the nearest existing name.

        Names of the settings count without the directory; names that are learned are unknown until it was loaded, which makes
        the worker load it. Without any source of names the product decides.
        """
        user_name = user.user_name.strip()
        if not user_name:
            raise _missing("userName")
        if _EMAIL.fullmatch(user_name) is None:
            raise NormalizationError(
                f"userName must be an e-mail address ({TITLE}). Map userName from mail or userPrincipalName.",
                code="bad_email",
                attribute="userName",
            )
        given_name, family_name = as_text(user.name.given_name), as_text(user.name.family_name)
        if not given_name:
            raise _missing("name.givenName")
        if not family_name:
            raise _missing("name.familyName")
        warnings: list[str] = []
        external_id = as_text(user.external_id)
        return Account(
            user_name=user_name,
            given_name=given_name,
            family_name=family_name,
            active=user.active,
            external_id=external_id or UNSET,
            roles=self._names("role", user, directory, warnings),
            teams=self._names("team", user, directory, warnings),
            warnings=tuple(warnings),
        )

    def account_keys(self, account: Account) -> tuple[str, ...]:
        """The address."""
        return (account.user_name,)

    def ignored(self, user: User) -> tuple[str, ...]:
        """Mapped attributes that Talkdesk does not support (T6)."""
        return ignored_paths(user, self.spec)

    async def check(self) -> list[Finding]:
        """Credentials, the SCIM interface, and names of the settings that are not in the account."""
        features = await self.scim.features(None)
        _, users = await self.scim.page(None)
        findings = [
            Finding(level="ok", code="reachable", message=f"{TITLE} accepts the token; {users} users are visible."),
        ]
        if not features:
            findings.append(
                Finding(
                    level="warning",
                    code="no_service_provider_config",
                    message="Talkdesk shows no ServiceProviderConfig; PUT is used for every update.",
                )
            )
        findings += _catalogue_findings(self.settings)
        if self.settings.harvest or self.settings.list_endpoints:
            findings += self._compared(await self._learned(None))
        return findings

    def keep_alive_s(self) -> float:
        """A ready token dies when it is not used; with client credentials the next one is fetched anyway."""
        return KEEP_ALIVE_S if self.settings.token is not None else 0.0

    async def keep_alive(self) -> None:
        """One user at most is asked for."""
        await self.scim.page(None, query={"startIndex": "1", "count": "1"})

    async def load_directory(self) -> dict[str, list[dict[str, Any]]]:
        """Role and team names: those of the settings where given, else what the account shows; empty when nothing is known."""
        settings = self.settings
        learned: dict[str, list[dict[str, Any]]] = {"role": [], "team": []}
        if (settings.harvest or settings.list_endpoints) and not (settings.roles and settings.teams):
            learned = await self._learned(None)
        configured: dict[str, tuple[str, ...]] = {"role": settings.roles, "team": settings.teams}
        for kind, names in configured.items():
            if names:
                learned[kind] = [{"name": name, "active": True} for name in names]
        self._seen = learned
        return learned

    async def find(self, account: Account | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """By userName; an account with another externalId is somebody else's."""
        asked: dict[str, tuple[str, Identity]] = {}
        if account is not None:  # in Entra's spelling; identities are folded
            first = identities[0] if identities else identity("userName", account.user_name)
            asked[account.user_name.casefold()] = (account.user_name, first)
        for name in identities:
            attribute, value = split_identity(name)
            if attribute == "userName" and value:
                spelling, _ = asked.get(value.casefold(), (value, name))
                asked[value.casefold()] = (spelling, name)
        found = []
        for spelling, name in asked.values():
            for held in await self.scim.find("userName", spelling, ctx):
                account_id = checked_id(held.get("id"), f"{TITLE} listed a user")
                found.append(Found(account_id=account_id, identity=name, conflict=_conflict(held, account)))
        return found

    async def create(self, account: Account, ctx: Delivery) -> str:
        """POST; no licence left shows as an inactive user in a successful answer."""
        ctx.warnings.extend(account.warnings)
        answer = await self.scim.create(
            _resource(account, account.entitlements(creating=True, default_role=self.settings.default_role)),
            ctx,
            expect=(400, 409),
        )
        if answer.status == 409:
            await self._taken(account, ctx)
        self._refused(answer, "POST", "/Users", account)
        held = self.scim.resource_of(answer, "POST", "/Users")
        account_id = checked_id(held.get("id"), f"{TITLE} answered {answer.status} to POST /Users")
        if account.active is not False:  # unmapped means active on create (T8)
            _await_licence(held, account_id, ctx)
        ctx.unnote(NO_LICENCE)  # of an account that was there before
        return account_id

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        """PATCH where the product says it can; otherwise read, merge and PUT, because PUT forgets what is not sent (A4).

        Who was to be active because nothing was said (T8), and had no licence, is activated here as soon as there is one.
        """
        ctx.warnings.extend(account.warnings)
        if account.active is UNSET and ctx.has_note(NO_LICENCE):
            account = structs.replace(account, active=True)
        sent = account.entitlements(creating=False, default_role=self.settings.default_role)
        if await self.scim.can_patch(ctx):
            method = "PATCH"
            answer = await self.scim.patch(account_id, _operations(account, sent), ctx, expect=(400, 409))
        else:
            method = "PUT"
            held = await self.scim.read(account_id, ctx)
            answer = await self.scim.replace(account_id, _merged(held, account, sent), ctx, expect=(400, 409))
        if answer.status == 409:
            raise Conflict(
                f"Another user in {TITLE} has this userName already; rename or remove it there, or correct userName in Entra.",
                code="user_name_taken",
                attribute="userName",
            )
        self._refused(answer, method, "/Users/{id}", account)
        if account.active is True:
            held = (
                await self.scim.read(account_id, ctx)
                if answer.body is None
                else self.scim.resource_of(answer, method, "/Users/{id}")
            )
            _await_licence(held, account_id, ctx)
        if account.active is not UNSET:
            ctx.unnote(NO_LICENCE)

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        """The product's delete, or deactivation where the settings say so; one that is gone is fine."""
        if self.settings.on_delete == "delete":
            answer = await self.scim.delete(account_id, ctx, expect=(405, 501))
            if answer.status in (405, 501):
                raise Rejected(
                    f'{TITLE} does not delete users over SCIM; set on_delete = "deactivate" for this target.',
                    code="cannot_delete",
                )
            return
        try:
            if await self.scim.can_patch(ctx):
                await self.scim.patch(account_id, [{"op": "replace", "path": "active", "value": False}], ctx)
            else:
                held = await self.scim.read(account_id, ctx)
                await self.scim.replace(account_id, _writable(held) | {"active": False}, ctx)
        except Gone:
            return

    async def list_accounts(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """One page of users; the cursor is the next start index."""
        found, following = await self.scim.listed(cursor)
        page = [
            {
                "account_id": checked_id(held.get("id"), f"{TITLE} listed a user"),
                "identities": (identity("userName", str(held.get("userName", ""))),),
                "active": held.get("active") is not False,
                "owner": str(held.get("externalId") or ""),
                "values": _shown(held),
            }
            for held in found
        ]
        return page, following

    def expected(self, account: Account) -> Expected:
        """userName, names, externalId, and roles and teams where they are mapped."""
        sent = account.entitlements(creating=False, default_role=self.settings.default_role)
        values: dict[str, Any] = {
            "userName": account.user_name.casefold(),
            "name.givenName": account.given_name,
            "name.familyName": account.family_name,
            **{f"{EXTENSION}:{name}": sorted(split_names(value)) for name, value in sent.items()},
        }
        owner = account.external_id if isinstance(account.external_id, str) else ""
        if owner:
            values["externalId"] = owner
        return Expected(identities=(identity("userName", account.user_name),), owner=owner, values=values)

    # Steps ------------------------------------------------------------------------------------------------------------

    def _names(self, kind: Kind, user: User, directory: Directory, warnings: list[str]) -> tuple[str, ...] | UnsetType:
        value = extension_value(user, EXTENSION, "rolesString" if kind == "role" else "teamsString")
        if isinstance(value, UnsetType):
            return UNSET
        configured = self.settings.roles if kind == "role" else self.settings.teams
        if configured:
            return tuple(resolve_names(kind, value, configured))
        if self.settings.list_endpoints:
            return tuple(resolve_names(kind, value, directory.names(kind)))
        if self.settings.harvest:
            try:
                return tuple(resolve_names(kind, value, directory.names(kind)))
            except NormalizationError as exc:
                if exc.code != f"unknown_{kind}":
                    raise
                raise NormalizationError(
                    f"{exc.message} Names are learned from users here: one that exists but that nobody holds yet belongs into "
                    f"{kind}s of this target's settings.",
                    code=exc.code,
                    attribute=exc.attribute,
                    names=exc.names,
                ) from None
        wanted: tuple[str, ...] = tuple(dict.fromkeys(split_names(value)))
        if wanted:
            warnings.append(f"No {kind} names are known for this target, so {TITLE} decides; configure {kind}s.")
        return wanted

    async def _learned(self, ctx: Delivery | None) -> dict[str, list[dict[str, Any]]]:
        """Names the account shows: in its lists where they exist, in its users, and the roles every account has."""
        names: dict[str, dict[str, bool]] = {"role": dict.fromkeys(BUILT_IN_ROLES, True), "team": {}}
        if self.settings.harvest:
            cursor = 1
            for _ in range(PAGES_MAX):
                found, total = await self.scim.page(ctx, start=cursor)
                for held in found:
                    extension = held.get(EXTENSION)
                    if isinstance(extension, dict):
                        for kind, attribute in (("role", "rolesString"), ("team", "teamsString")):
                            for name in split_names(extension.get(attribute)):
                                names[kind].setdefault(name, True)
                cursor += len(found)
                if not found or cursor > total:
                    break
        if self.settings.list_endpoints:
            for kind, path in (("role", "/roles"), ("team", "/teams")):
                for entry in await self._listed(path, ctx):
                    names[kind][str(entry["name"])] = entry.get("active") is not False
        return {kind: [{"name": name, "active": on} for name, on in held.items()] for kind, held in names.items()}

    async def _listed(self, path: str, ctx: Delivery | None) -> list[dict[str, Any]]:
        """All entries of a HAL list; only the query of `next` is followed, never its host."""
        entries: list[dict[str, Any]] = []
        query: dict[str, str] | None = None
        for _ in range(PAGES_MAX):
            answer = await self.http.request("GET", path, ctx=ctx, query=query)
            body = answer.body if isinstance(answer.body, dict) else {}
            embedded = body.get("_embedded")
            rows = embedded.get(path.strip("/"), []) if isinstance(embedded, dict) else []
            entries += [row for row in rows if isinstance(row, dict) and isinstance(row.get("name"), str)]
            links = body.get("_links")
            following = links.get("next") if isinstance(links, dict) else None
            href = following.get("href") if isinstance(following, dict) else None
            if not isinstance(href, str) or len(entries) >= NAMES_MAX:
                break
            query = dict(parse_qsl(urlsplit(href).query))
        return entries

    def _compared(self, learned: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Finding]:
        """Names of the settings that the account does not show."""
        findings = []
        sure = self.settings.list_endpoints
        wanted: dict[str, tuple[str, ...]] = {
            "role": (*self.settings.roles, self.settings.default_role),
            "team": self.settings.teams,
        }
        for kind, names in wanted.items():
            shown = [str(entry["name"]) for entry in learned[kind]]
            for name in dict.fromkeys(names):
                if name not in shown:
                    near = nearest(name, shown)
                    hint = f"; did you mean {near[0]!r}?" if near else ""
                    said = "does not exist" if sure else "is held by no user, so it may not exist"
                    findings.append(
                        Finding(
                            level="error" if sure else "warning",
                            code=f"unknown_{kind}",
                            message=f"{kind} {name!r} of the settings {said} in {TITLE}{hint}",
                        )
                    )
        return findings

    async def _taken(self, account: Account, ctx: Delivery) -> None:
        """Why a userName cannot be created. Always raises: an account that was merely found is linked by the gateway."""
        for held in await self.scim.find("userName", account.user_name, ctx):
            conflict = _conflict(held, account)
            if conflict:
                raise Conflict(conflict, code="account_of_another", attribute="userName")
        raise already_there(TITLE, "a user with this userName")

    def _refused(self, answer: VendorResponse, method: str, template: str, account: Account) -> None:
        """Raise for a 400; one about a role or team is told by name, since our catalogue may be older than the account."""
        if answer.status < 300:
            return
        detail = answer.body.get("detail", "") if isinstance(answer.body, dict) else ""
        hit = re.search(r"\b(role|team)", str(detail), re.IGNORECASE)
        if hit is None:
            raise error_of(TITLE, method, self.scim.path(template), answer)
        kind: Kind = "role" if hit[1].casefold() == "role" else "team"
        held = account.roles if kind == "role" else account.teams
        sent = held if isinstance(held, tuple) else ()
        if kind == "role" and not sent:
            sent = (self.settings.default_role,)
        bad = [name for name in sent if name in str(detail)] or list(sent)
        known = [str(entry["name"]) for entry in self._seen.get(kind, ()) if entry["name"] not in bad]
        near = list(dict.fromkeys(one for name in bad for one in nearest(name, known)))[:PROPOSALS_MAX]
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
        raise Rejected(
            f"{TITLE} refused {kind} {', '.join(map(repr, bad))} ({vendor_text(answer.body)}){hint} Create it there or correct "
            f"the mapping of {_ATTRIBUTE[kind]}.",
            code=f"unknown_{kind}",
            attribute=_ATTRIBUTE[kind],
            names=bad,
        )


def _catalogue_findings(settings: Settings) -> list[Finding]:
    """What is wrong with the configured names by themselves."""
    findings = []
    for kind, names in (("role", settings.roles), ("team", settings.teams)):
        folded: dict[str, list[str]] = {}
        for name in names:
            folded.setdefault(_folded(name), []).append(name)
        findings += [
            Finding(
                level="warning",
                code=f"ambiguous_{kind}",
                message=f"{kind}s {', '.join(map(repr, twins))} differ in letter case only; Entra must send them exactly.",
            )
            for twins in folded.values()
            if len(twins) > 1
        ]
    if settings.roles and settings.default_role not in settings.roles:
        findings.append(
            Finding(
                level="error",
                code="unknown_default_role",
                message=f"default_role {settings.default_role!r} is not among roles; who loses a role could not be updated.",
            )
        )
    if not (settings.roles or settings.harvest or settings.list_endpoints):
        findings.append(
            Finding(
                level="warning",
                code="no_catalogue",
                message="No role and team names are known: Talkdesk decides, letter by letter. Set roles and teams, or harvest.",
            )
        )
    return findings


def _shown(held: Mapping[str, Any]) -> dict[str, Any]:
    """What the list shows of the managed attributes."""
    name, extension = _table(held.get("name")), _table(held.get(EXTENSION))
    return {
        "userName": str(held.get("userName", "")).strip().casefold(),
        "name.givenName": held_text(name.get("givenName")),
        "name.familyName": held_text(name.get("familyName")),
        "externalId": held_text(held.get("externalId")),
        **{f"{EXTENSION}:{one}": sorted(split_names(extension.get(one))) for one in ("rolesString", "teamsString")},
    }


def _missing(attribute: str) -> NormalizationError:
    return NormalizationError(
        f"{attribute} is required by {TITLE} and is blank or not mapped. Map it and fill it in Entra.",
        code="missing",
        attribute=attribute,
    )


def _conflict(held: Mapping[str, Any], account: Account | None) -> str:
    """Why a user found under our name is not ours: it carries another externalId."""
    theirs = held.get("externalId")
    if account is None or not theirs or theirs == account.external_id:
        return ""
    return (
        f"A user with this userName exists in {TITLE} and carries another externalId; remove it there, clear its externalId, "
        "or map externalId from objectId."
    )


def _resource(account: Account, sent: Mapping[str, str]) -> dict[str, Any]:
    resource: dict[str, Any] = {
        "schemas": [USER_SCHEMA, *([EXTENSION] if sent else [])],
        "userName": account.user_name,
        "name": {"givenName": account.given_name, "familyName": account.family_name},
    }
    if account.active is not UNSET:
        resource["active"] = account.active
    if account.external_id is not UNSET:
        resource["externalId"] = account.external_id
    if sent:
        resource[EXTENSION] = dict(sent)
    return resource


def _writable(held: Mapping[str, Any]) -> dict[str, Any]:
    """A resource as read, without what only the product sets and without nulls."""
    return {name: value for name, value in held.items() if name != "meta" and value is not None}


def _merged(held: Mapping[str, Any], account: Account, sent: Mapping[str, str]) -> dict[str, Any]:
    """What the product holds, with our attributes put in; everything else stays as it is (A4)."""
    kept = _writable(held)
    ours = _resource(account, sent)
    extension = {**_table(kept.get(EXTENSION)), **sent}
    merged = {**kept, **ours, "name": {**_table(kept.get("name")), **ours["name"]}}
    schemas = [schema for schema in kept.get("schemas", []) if isinstance(schema, str)]
    merged["schemas"] = list(dict.fromkeys([USER_SCHEMA, *schemas, *([EXTENSION] if extension else [])]))
    if extension:
        merged[EXTENSION] = extension
    return merged


def _table(value: Any) -> dict[str, Any]:
    return {name: inner for name, inner in value.items() if inner is not None} if isinstance(value, dict) else {}


def _operations(account: Account, sent: Mapping[str, str]) -> list[dict[str, Any]]:
    values: dict[str, Any] = {
        "userName": account.user_name,
        "name.givenName": account.given_name,
        "name.familyName": account.family_name,
        "active": account.active,
        "externalId": account.external_id,
        **{f"{EXTENSION}:{name}": value for name, value in sent.items()},
    }
    return [{"op": "replace", "path": path, "value": value} for path, value in values.items() if value is not UNSET]


def _await_licence(held: Mapping[str, Any], account_id: str, ctx: Delivery) -> None:
    """Raise when a user that was to be active is not: the product says "no licence left" in this way only."""
    if held.get("active") is False:
        ctx.note(NO_LICENCE, f"{TITLE} made the user inactive, because no licence was left.")
        raise Blocked(
            f"{TITLE} has no licence left: the user exists but is inactive. Free a licence or buy one; it is tried again.",
            on="licence",
            code=NO_LICENCE,
            attribute="active",
            account_id=account_id,
            observed_active=False,
            wait_max_s=LICENCE_MAX_S,
        )


__all__ = ["Account", "Settings", "Talkdesk", "resolve_names"]
