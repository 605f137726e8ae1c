"""Software602 Sofa: users and groups for its SCIM synchronization, which turns Entra's groups into groups and roles of its own.

From the seed: endpoint URL and access key with a validity of 90 to 730 days, the attribute table, externalId as the Entra object
id, the two membership maps by object id, whole groups. Assumed: everything about SCIM beyond RFC 7644, 5 calls a second, and how
an identifier is made from a name.
"""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal, Unpack
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from connectors.contract import (
    Call,
    Connector,
    CredentialEnd,
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
from connectors.scim import GROUP_BYTES_MAX, ScimClient, checked_id, held_text, visible
from connectors.scim_paths import held_at, parts_of, put_at, taken_apart
from schemas.config import Secret
from schemas.errors import Blocked, Conflict, Gone, Misconfigured, NormalizationError
from schemas.events import identity, split_identity
from schemas.logs import logger
from schemas.resources import ENTERPRISE_SCHEMA, GROUP_SCHEMA, USER_SCHEMA, Group, User
from schemas.specs import Attribute, NoteKind, RateLimit, Spec

TITLE = "Sofa"
MANAGER = f"{ENTERPRISE_SCHEMA}:manager"
WARN_DAYS = (30, 14, 7, 1)
VALIDITY_MIN_DAYS = 90
VALIDITY_MAX_DAYS = 730
NAME_CHARS_MAX = 64
NUMBER_MAX = 10**18
MAP_ROWS_MAX = 10_000
UNMAPPED = "unmapped:"
"""Begins the id of a group that is acknowledged to Entra and not forwarded; the rest is its object id."""
NO_MAPPING = "no_mapping"
"""What is noted about such a group; how often is counted."""
KEY_SWITCH_REST_S = 5.0

FIELDS: dict[str, str] = {
    "user_name": "userName",
    "enabled": "active",
    "virtual_display_name": "displayName",
    "job": "title",
    "notification_email": 'emails[type eq "work"].value',
    "name": "name.givenName",
    "surname": "name.familyName",
    "degree_before": "name.honorificPrefix",
    "degree_after": "name.honorificSuffix",
    "telephone": 'phoneNumbers[type eq "work"].value',
    "mobile_phone": 'phoneNumbers[type eq "mobile"].value',
    "sso_identifier": "externalId",
    "personal_number": f"{ENTERPRISE_SCHEMA}:employeeNumber",
    "department": f"{ENTERPRISE_SCHEMA}:department",
}
"""Sofa's fields and where they stand in SCIM (S22-S25); the superior is a reference and goes its own way."""

_OBJECT_ID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_BOOKKEEPING = frozenset({"schemas", "id", "meta", "groups", "password"})

# Pure rules -----------------------------------------------------------------------------------------------------------


def normalize_object_id(value: Any) -> str:
    """An Entra object id in lower case with hyphens; case, braces, `urn:uuid:`, missing hyphens and blanks do not matter.

    Raises:
        NormalizationError: `bad_object_id`; `names` has the value.
    """
    shown = "".join(visible(value).split()) if isinstance(value, str) else ""
    folded = shown.lower().removeprefix("urn:uuid:")
    if folded.startswith("{") and folded.endswith("}"):
        folded = folded[1:-1]
    if _OBJECT_ID.fullmatch(folded) is None:
        raise NormalizationError("This is no object id of Entra.", code="bad_object_id", names=[_named(value)])
    digits = folded.replace("-", "")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def map_user(scim: Mapping[str, Any]) -> dict[str, Any]:
    """A SCIM user as Sofa's fields (S21-S25). Pure.

    Args:
        scim: a SCIM document; extension attributes nested under their URN or as `urn:…:User:department` keys.

    Returns:
        The keys of `FIELDS` and `direct_superior` (the manager's id at this gateway). Texts are trimmed; one that is present and
        empty is None and clears, an absent one has no key. `ignored` lists what Sofa does not take, sorted.

    Raises:
        NormalizationError: `missing_external_id`, `bad_object_id`, `bad_boolean`, `missing` (userName).
    """
    document = _flattened(scim)
    mapped: dict[str, Any] = {"sso_identifier": _external_id(document.pop("externalId", None))}
    if "active" in document:
        mapped["enabled"] = _boolean(document.pop("active"))
    ignored: set[str] = set()
    by_path = {path: field for field, path in FIELDS.items()}
    for path, value in _attributes(document, ignored):
        field = by_path.get(path)
        if path == MANAGER:
            mapped["direct_superior"] = _reference(value)
        elif field is None:
            if _carries(value):
                ignored.add(_shown(path))
        elif isinstance(value, (Mapping, list, tuple)):
            ignored.add(_shown(path))
        elif field not in mapped or mapped[field] is None:
            mapped[field] = _text(value)
    if not mapped.get("user_name"):
        raise NormalizationError(
            f"userName is blank; {TITLE} needs it as user name. Map userName from userPrincipalName.",
            code="missing",
            attribute="userName",
        )
    return {**mapped, "ignored": sorted(ignored)}


def map_memberships(
    object_ids: Iterable[Any] | None,
    group_map: Iterable[Mapping[str, Any]],
    role_map: Iterable[Mapping[str, Any]],
) -> dict[str, list[str]]:
    """Which of Sofa's groups and roles the members of some Entra groups have (S10-S12). Pure.

    Args:
        object_ids: Entra's groups, in any spelling of an object id.
        group_map: rows `{"remote": object id, "sofa": name}`; several rows may share either side.
        role_map: the same for roles.

    Returns:
        `groups`, `roles`, and `ignored` (object ids without any row), each sorted and without duplicates.

    Raises:
        NormalizationError: `bad_object_id`; `names` lists all of them.
    """
    wanted = set(_all_object_ids(object_ids or ()))
    found: dict[str, set[str]] = {"groups": set(), "roles": set()}
    mapped: set[str] = set()
    for kind, rows in (("groups", group_map), ("roles", role_map)):
        table = [(row.get("remote"), str(row.get("sofa"))) for row in rows]
        for remote, (_, name) in zip(_all_object_ids(one for one, _ in table), table, strict=True):
            if remote in wanted:
                found[kind].add(name)
                mapped.add(remote)
    return {**{kind: sorted(names) for kind, names in found.items()}, "ignored": sorted(wanted - mapped)}


def derive_identifier(name: Any) -> str:
    """The identifier Sofa makes from a name: accents dropped, other characters joined to one `_` (S5, assumed)."""
    plain = unicodedata.normalize("NFKD", name) if isinstance(name, str) else ""
    letters = "".join(char for char in plain if not unicodedata.combining(char))
    derived = re.sub(r"[^A-Za-z0-9_]+", "_", letters).strip("_")
    if not derived:
        return "sync"
    return derived if derived[0].isalpha() else f"s_{derived}"


def validate_identifier(identifier: Any) -> bool:
    """Whether it starts with a letter and has only English letters, digits and underscores (S5)."""
    return isinstance(identifier, str) and _IDENTIFIER.fullmatch(identifier) is not None


def key_state(issued: Any, validity_days: Any, now: Any) -> dict[str, Any]:
    """How an access key stands (S16, 5.3). Pure.

    Args:
        issued: when it was generated; ISO 8601 text, date or datetime, UTC unless it says otherwise.
        validity_days: 90 to 730.
        now: as `issued`.

    Returns:
        `state` (`ok`, `expiring`, `expired`), `warn` (the smallest of WARN_DAYS reached, else None), `expires` (ISO 8601),
        `days_left`.

    Raises:
        NormalizationError: `bad_validity`, also for what is no date.
    """
    if not isinstance(validity_days, int) or isinstance(validity_days, bool):
        raise _bad_validity()
    if not VALIDITY_MIN_DAYS <= validity_days <= VALIDITY_MAX_DAYS:
        raise _bad_validity()
    try:
        expires = _moment(issued) + timedelta(days=validity_days)
        left = expires - _moment(now)
    except (ValueError, OverflowError):
        raise _bad_validity() from None
    days_left = left / timedelta(days=1)
    if left <= timedelta(0):
        state, warn = "expired", None
    else:
        warn = min((days for days in WARN_DAYS if days_left <= days), default=None)
        state = "ok" if warn is None else "expiring"
    return {"state": state, "warn": warn, "expires": expires.isoformat(), "days_left": days_left}


def _bad_validity() -> NormalizationError:
    return NormalizationError(
        f"An access key of {TITLE} is valid for {VALIDITY_MIN_DAYS} to {VALIDITY_MAX_DAYS} days from the day it was generated. "
        "Correct key_issued and key_validity_days.",
        code="bad_validity",
    )


def _moment(value: Any) -> datetime:
    if isinstance(value, str):
        value = datetime.fromisoformat(value.strip())
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        raise ValueError("no date")
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _all_object_ids(values: Iterable[Any]) -> list[str]:
    ids: list[str] = []
    bad: list[str] = []
    for value in values:
        try:
            ids.append(normalize_object_id(value))
        except NormalizationError as exc:
            bad += exc.names
    if bad:
        raise NormalizationError(
            f"{', '.join(map(repr, bad))}: groups are known by their object id in Entra. Map objectId to externalId for groups.",
            code="bad_object_id",
            attribute="externalId",
            names=bad,
        )
    return ids


def _external_id(value: Any) -> str:
    if value is None or (isinstance(value, str) and not visible(value)):
        raise NormalizationError(
            f"externalId is blank; {TITLE} knows people by the object id of Entra. Map externalId from objectId.",
            code="missing_external_id",
            attribute="externalId",
        )
    try:
        return normalize_object_id(value)
    except NormalizationError:
        raise NormalizationError(
            f"externalId is {_masked(_named(value))}, which is no object id: change its source from mailNickname to objectId "
            "(matching precedence included) before the first cycle.",
            code="bad_object_id",
            attribute="externalId",
        ) from None


def _boolean(value: Any) -> bool:
    """Entra's booleans: JSON, or the words True and False (0.2)."""
    if isinstance(value, bool):
        return value
    folded = value.strip().casefold() if isinstance(value, str) else ""
    if folded not in ("true", "false"):
        raise NormalizationError(
            "active must be true or false. Correct its mapping in Entra.", code="bad_boolean", attribute="active"
        )
    return folded == "true"


def _flattened(scim: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the enterprise extension's attributes beside the others, under their full names."""
    flat: dict[str, Any] = {}
    for name, value in scim.items():
        if not isinstance(name, str) or name in _BOOKKEEPING:
            continue
        if name.casefold() == ENTERPRISE_SCHEMA.casefold():
            flat.update({f"{ENTERPRISE_SCHEMA}:{inner}": held for inner, held in _table(value).items()})
        elif name.casefold().startswith(f"{ENTERPRISE_SCHEMA}:".casefold()):
            flat[f"{ENTERPRISE_SCHEMA}:{name[len(ENTERPRISE_SCHEMA) + 1 :]}"] = value
        else:
            flat[name] = value
    return flat


def _attributes(document: Mapping[str, Any], ignored: set[str]) -> Iterable[tuple[str, Any]]:
    """Single values by SCIM path; entries of unknown types go to `ignored`."""
    for name, value in document.items():
        if name == "name":
            for inner, held in _table(value).items():
                yield f"name.{inner}", held
        elif name in ("emails", "phoneNumbers"):
            entries = value if isinstance(value, (list, tuple)) else [value]
            for entry in entries:
                held = _table(entry)
                kind = held.get("type")
                path = f'{name}[type eq "{kind}"].value' if isinstance(kind, str) else name
                if isinstance(kind, str) and path in FIELDS.values():
                    if "value" in held:
                        yield path, held["value"]
                elif _carries(held.get("value")):
                    ignored.add(f"{name}[{kind}]" if isinstance(kind, str) else name)
        else:
            yield name, value


def _shown(path: str) -> str:
    parts = taken_apart(path)
    typed = parts is not None and parts.type and parts.sub == "value" and not parts.urn
    return f"{parts.name}[{parts.type}]" if parts is not None and typed else path


def _reference(value: Any) -> str | None:
    """A manager in any form: an id, `{"value": id}`, or a list of one (0.2)."""
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    if isinstance(value, Mapping):
        value = value.get("value")
    return _text(value) if isinstance(value, (str, int)) else None


def _text(value: Any) -> str | None:
    if isinstance(value, int) and abs(value) >= NUMBER_MAX:
        return None
    return (str(value).strip() or None) if value is not None else None


def _carries(value: Any) -> bool:
    return value is not None and value not in ("", [], (), {})


def _table(value: Any) -> Mapping[str, Any]:
    return {key: held for key, held in value.items() if isinstance(key, str)} if isinstance(value, Mapping) else {}


def _named(value: Any) -> str:
    return value[:NAME_CHARS_MAX] if isinstance(value, str) else type(value).__name__


def _masked(value: str) -> str:
    """As much of a value as tells what it is not."""
    return f"'{value[:2]}…'" if len(value) > 2 else repr(value)


# The connector --------------------------------------------------------------------------------------------------------


class MapRow(Struct, frozen=True, forbid_unknown_fields=True):
    """One row of a membership map, the same as in Sofa (S10-S12).

    Args:
        remote: object id of the group in Entra.
        sofa: name of the group or role in Sofa.
    """

    remote: Annotated[str, Meta(description="Object Id of the group in Entra")]
    sofa: Annotated[str, Meta(description="name of the group or role in Sofa")]


ValidityDays = Annotated[int, Meta(ge=VALIDITY_MIN_DAYS, le=VALIDITY_MAX_DAYS)]


class AccessKey(Struct, frozen=True, kw_only=True):
    """A second access key, for a change of keys without a gap."""

    access_key: Annotated[Secret, Meta(description="the newer key, as a reference")]
    key_issued: Annotated[date, Meta(description="the day it was generated")]
    key_validity_days: Annotated[ValidityDays, Meta(description="90 to 730")]


class Settings(Struct, frozen=True, kw_only=True):
    """One synchronization of Sofa."""

    endpoint_url: Annotated[str, Meta(description="Endpoint URL shown beside the access key (S17)")]
    access_key: Annotated[Secret, Meta(description="access key, shown once by Sofa (S16, S17), as a reference")]
    key_issued: Annotated[date, Meta(description="the day the key was generated")]
    key_validity_days: Annotated[ValidityDays, Meta(description="90 to 730; warnings come 30, 14, 7 and 1 days ahead")]
    next_key: Annotated[
        AccessKey | None, Meta(description="a newer key that takes over when the old one is refused")
    ] = None
    name: Annotated[str, Meta(description="the synchronization's name in Sofa (S4)")] = ""
    identifier: Annotated[str, Meta(description="its identifier; made from the name when not given (S5)")] = ""
    group_map: Annotated[tuple[MapRow, ...], Meta(description="Entra group -> group in Sofa, as in Sofa (S10)")] = ()
    role_map: Annotated[tuple[MapRow, ...], Meta(description="Entra group -> role in Sofa, as in Sofa (S12)")] = ()
    forward_unmapped_groups: Annotated[
        bool, Meta(description="whether Sofa is told of groups that no row of the maps names")
    ] = False
    password_link: Annotated[
        bool, Meta(description="whether Sofa sends new users a link for setting the password (S9)")
    ] = False
    on_delete: Annotated[Literal["delete", "deactivate"], Meta(description="what a SCIM DELETE does")] = "delete"
    allow_loopback: Annotated[bool, Meta(description="for emulators: permits http to this machine")] = False

    def __post_init__(self) -> None:
        problem = address_problem(self.endpoint_url, allow_loopback=self.allow_loopback)
        if problem:
            raise ValueError(f"endpoint_url {problem}")
        if self.identifier and not validate_identifier(self.identifier):
            raise ValueError("identifier starts with a letter and has only English letters, digits and underscores")
        for name, rows in (("group_map", self.group_map), ("role_map", self.role_map)):
            if len(rows) > MAP_ROWS_MAX:
                raise ValueError(f"{name} has more than {MAP_ROWS_MAX} rows")
            for row in rows:
                try:
                    normalize_object_id(row.remote)
                except NormalizationError:
                    raise ValueError(
                        f"{name}: remote of {row.sofa!r} must be the object id of the group in Entra, not its name"
                    ) from None
                if not row.sofa.strip():
                    raise ValueError(f"{name}: a row has no name of Sofa")

    @property
    def keys(self) -> list[AccessKey]:
        """All configured keys, the one that is valid longest first."""
        first = AccessKey(
            access_key=self.access_key, key_issued=self.key_issued, key_validity_days=self.key_validity_days
        )
        return sorted([first, *([self.next_key] if self.next_key else [])], key=_expiry, reverse=True)


class Account(Struct, frozen=True, kw_only=True):
    """What Sofa shall hold.

    Args:
        fields: as `map_user` names them; None clears, an absent key is kept.
        manager: the superior's id at this gateway; None when there shall be none, UNSET when nobody says.
        ignored: what Sofa does not take.
    """

    fields: dict[str, Any]
    manager: str | UnsetType | None = UNSET
    ignored: tuple[str, ...] = ()

    @property
    def external_id(self) -> str:
        """The person's object id in Entra."""
        return str(self.fields["sso_identifier"])

    @property
    def user_name(self) -> str:
        """The user name, as sent."""
        return str(self.fields["user_name"])


class Sofa(Connector[Settings, Account]):
    """Users and groups of one synchronization."""

    spec = Spec(
        name="sofa",
        title="Software602 Sofa",
        resources=("User", "Group"),
        identity=("externalId", "userName"),
        attributes=(
            Attribute("userName", "User name", required=True, source="userPrincipalName"),
            Attribute("active", "switched on or off", type="boolean", source="Not([IsSoftDeleted])"),
            Attribute(
                "displayName", "virtual display name", source="displayName", note="for the synchronization only (S22)"
            ),
            Attribute("title", "Job", source="jobTitle"),
            Attribute('emails[type eq "work"].value', "Notification e-mail", source="mail"),
            Attribute("name.givenName", "Name", source="givenName"),
            Attribute("name.familyName", "Surname", source="surname"),
            Attribute("name.honorificPrefix", "degree before the name", note="not in Entra's default mapping (S25)"),
            Attribute("name.honorificSuffix", "degree after the name", note="not in Entra's default mapping (S25)"),
            Attribute('phoneNumbers[type eq "work"].value', "Telephone", source="telephoneNumber"),
            Attribute('phoneNumbers[type eq "mobile"].value', "Mobile phone", source="mobile"),
            Attribute(
                "externalId",
                "SSO identifier",
                required=True,
                source="objectId",
                note="instead of the default mailNickname, before the connection is made (S21, S23)",
            ),
            Attribute(f"{ENTERPRISE_SCHEMA}:employeeNumber", "Personal number", source="employeeId"),
            Attribute(f"{ENTERPRISE_SCHEMA}:department", "Department", source="department"),
            Attribute(MANAGER, "Direct superior", type="reference", source="manager"),
        ),
        rate_limit=RateLimit(calls=5, per_s=1.0),
        concurrency_max=4,
        on_delete="delete",
        capabilities=("groups", "list_accounts", "list_groups", "key_watch", "group_maps"),
        support="assumed",
        pitfalls=(
            "Change the source of externalId from mailNickname to objectId before the connection is made.",
            "Assign whole groups to the application, not single users (S20).",
            "Once one synchronization is set up in Sofa, no other kind can be added (S3).",
            "Key and endpoint URL are shown once; a lost key can only be generated anew.",
            "Groups without a row in group_map or role_map are acknowledged to Entra and not forwarded.",
            "The link for setting a password is for log-in by name and password only; with single sign-on leave it off (S9).",
            "A group whose last row is taken out of the maps is removed from the synchronization, with what Sofa made of it; put "
            "the row back, and the group is made again with all its members.",
            "Deleting somebody only switches the account off in Sofa, which keeps its user name: somebody new with the same "
            "user principal name is refused until an administrator of Sofa renames or deletes the old account.",
        ),
        notes=(
            NoteKind(
                NO_MAPPING, "groups of Entra that no row of group_map or role_map names; Sofa is not told of them"
            ),
        ),
    )
    settings_type = Settings

    @classmethod
    def endpoint(cls, settings: Settings) -> Endpoint | None:
        """The host of the endpoint URL; its path is the SCIM root."""
        parts = urlsplit(settings.endpoint_url)
        return Endpoint(
            base_url=f"{parts.scheme}://{parts.netloc}",
            auth=Keys([key.access_key for key in settings.keys]),
            allow_loopback=settings.allow_loopback,
            body_bytes_max=GROUP_BYTES_MAX,
        )

    def __init__(
        self, settings: Settings, http: VendorHttp, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        super().__init__(settings, http)
        prefix = urlsplit(settings.endpoint_url).path.rstrip("/")
        self._clock = clock
        self.scim = ScimClient(_Explained(http, self._key_sentence), product=TITLE, prefix=prefix)
        self._group_map: list[dict[str, Any]] = [msgspec.to_builtins(row) for row in settings.group_map]
        self._role_map: list[dict[str, Any]] = [msgspec.to_builtins(row) for row in settings.role_map]

    def normalize(self, user: User, directory: Directory) -> Account:
        """S21-S25. Raises NormalizationError `missing_external_id`, `bad_object_id` or `missing`."""
        mapped = map_user(_document(user))
        ignored = tuple(mapped.pop("ignored"))
        manager = mapped.pop("direct_superior", UNSET)
        return Account(fields=mapped, manager=manager, ignored=ignored)

    def account_keys(self, account: Account) -> tuple[str, ...]:
        """SSO identifier and user name."""
        return (account.external_id, account.user_name)

    def ignored(self, user: User) -> tuple[str, ...]:
        """What Sofa does not take (S24)."""
        return self.normalize(user, _NoDirectory()).ignored

    async def check(self) -> list[Finding]:
        """Endpoint, key, and the setup mistakes that the seed warns of. Writes nothing."""
        try:
            _, users = await self.scim.page(None, query={"startIndex": "1", "count": "1"})
        except Misconfigured as exc:
            match exc.code:
                case "other_synchronization":
                    return [Finding(level="error", code="other_synchronization", message=exc.message)]
                case "forbidden":
                    return [Finding(level="error", code="synchronization_disabled", message=exc.message)]
                case "wrong_address":
                    return [Finding(level="error", code="synchronization_deleted", message=exc.message)]
            raise
        findings = [
            Finding(level="ok", code="reachable", message=f"{TITLE} accepts the key; {users} users are visible.")
        ]
        findings += self._key_findings()
        if self.settings.password_link:
            findings.append(
                Finding(
                    level="warning",
                    code="password_link",
                    message="Sofa sends new users a link for setting a password; with single sign-on switch it off (S9).",
                )
            )
        if not (self.settings.group_map or self.settings.role_map or self.settings.forward_unmapped_groups):
            findings.append(
                Finding(
                    level="warning",
                    code="no_maps",
                    message="group_map and role_map are empty: groups from Entra are acknowledged and have no effect (S10, S12).",
                )
            )
        return findings

    # Users ------------------------------------------------------------------------------------------------------------

    async def find(self, account: Account | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """By externalId first, then by user name; a user with another externalId is somebody else."""
        asked: dict[tuple[str, str], Identity] = {}
        if account is not None:
            first = identities[0] if identities else identity("externalId", account.external_id)
            asked[("externalId", account.external_id)] = first
            asked[("userName", account.user_name.casefold())] = first
        owners = {account.external_id} if account is not None else set()
        for name in identities:
            attribute, value = split_identity(name)
            if attribute == "externalId":
                try:
                    value = normalize_object_id(value)
                except NormalizationError:
                    continue
                owners.add(value)
            if attribute in ("externalId", "userName") and value:
                asked[(attribute, value)] = name
        found: dict[str, Found] = {}
        for (attribute, value), name in sorted(asked.items(), key=lambda one: one[0][0] != "externalId"):
            exact = account.user_name if account and value == account.user_name.casefold() else value
            for held in await self.scim.find(attribute, exact, ctx):
                account_id = _id(held, "user")
                conflict = _conflict(held, owners) if attribute == "userName" else ""
                found.setdefault(account_id, Found(account_id=account_id, identity=name, conflict=conflict))
        return list(found.values())

    async def create(self, account: Account, ctx: Delivery) -> str:
        """POST with everything that can be said now; then wait for a manager whom Sofa does not know."""
        manager = self._translated(account, ctx)
        answer = await self.scim.create(_resource(account, manager), ctx, expect=(400, 409))
        unknown = answer.status == 400 and isinstance(manager, str)
        if unknown:  # the manager may be what Sofa does not know; everything else is applied first
            answer = await self.scim.create(_resource(account, UNSET), ctx, expect=(400, 409))
        if answer.status == 409:
            await self._taken(account, ctx)
        self._refused(answer, "POST", "/Users")
        held = self.scim.resource_of(answer, "POST", "/Users")
        account_id = checked_id(held.get("id"), f"{TITLE} answered {answer.status} to POST {self.scim.path('/Users')}")
        self._await_manager(account, account_id, unknown=unknown)
        return account_id

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        """Read, compare, PATCH what differs; what Entra does not say stays."""
        held = await self.scim.read(account_id, ctx)
        manager = self._translated(account, ctx)
        operations = _operations(held, account.fields)
        reference = _manager_operations(held, manager)
        unknown = False
        if operations or reference:
            answer = await self.scim.patch(account_id, [*operations, *reference], ctx, expect=(400, 409))
            unknown = answer.status == 400 and isinstance(manager, str) and bool(reference)
            if unknown and operations:
                answer = await self.scim.patch(account_id, operations, ctx, expect=(400, 409))
            if answer.status == 409:
                raise Conflict(
                    f"Another user in {TITLE} has this userName or externalId already; remove it there, or correct it in Entra.",
                    code="user_name_taken",
                    attribute="userName",
                )
            if operations or not unknown:
                self._refused(answer, "PATCH", "/Users/{id}")
        self._await_manager(account, account_id, unknown=unknown)

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        """DELETE, which Sofa understands as disabling; or active = false where the settings say so."""
        if self.settings.on_delete == "delete":
            answer = await self.scim.delete(account_id, ctx)
        else:
            answer = await self.scim.patch(
                account_id, [{"op": "replace", "path": "active", "value": False}], ctx, expect=(404, 410)
            )
        await self._still_synchronized(answer, ctx)

    async def list_accounts(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """One page of users; the cursor is the next start index."""
        found, following = await self.scim.listed(cursor)
        page = []
        for held in found:
            names = [identity("userName", str(held.get("userName", "")))]
            if held.get("externalId"):
                names.insert(0, identity("externalId", str(held["externalId"])))
            page.append(
                {
                    "account_id": _id(held, "user"),
                    "identities": tuple(names),
                    "active": held.get("active") is not False,
                    "owner": str(held.get("externalId") or ""),
                    "values": {
                        path: _compared(field, held_at(held, path))
                        for field, path in FIELDS.items()
                        if field != "enabled"
                    },
                }
            )
        return page, following

    def expected(self, account: Account) -> Expected:
        """Every field Entra speaks of but the superior, who is known here by another id than there."""
        return Expected(
            identities=(identity("externalId", account.external_id), identity("userName", account.user_name)),
            owner=account.external_id,
            values={
                FIELDS[field]: _compared(field, value) for field, value in account.fields.items() if field != "enabled"
            },
        )

    # Groups -----------------------------------------------------------------------------------------------------------

    async def list_groups(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """One page of groups without their members."""
        found, following = await self.scim.listed(cursor, kind="Groups")
        page = []
        for held in found:
            name, owner = str(held.get("displayName") or "").strip(), str(held.get("externalId") or "")
            names = [identity("externalId", owner)] if owner else [identity("displayName", name)]
            page.append(
                {
                    "account_id": _id(held, "group"),
                    "identities": tuple(names),
                    "active": True,
                    "owner": owner,
                    "values": {"displayName": name or None, "externalId": owner or None},
                }
            )
        return page, following

    def expected_group(self, group: Group) -> Expected | None:
        """Name and object id of a group that is forwarded; Sofa is not told of any other."""
        object_id, name = _group_object_id(group), group.display_name.strip()
        if not self._is_forwarded(object_id):
            return None
        return Expected(
            identities=(identity("externalId", object_id), identity("displayName", name)),
            owner=object_id,
            values={"displayName": name or None, "externalId": object_id},
        )

    async def list_members(self, group_id: str, cursor: str | None) -> tuple[list[str], str | None]:
        """Sofa shows all members of a group at once."""
        return await self.scim.members(group_id), None

    async def find_group(self, group: Group | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """By externalId; then by name among groups that have none. A group without a mapping is looked for nowhere."""
        first = identities[0] if identities else identity("displayName", group.display_name if group else "")
        names: dict[str, Identity] = {}
        for name in identities:
            attribute, value = split_identity(name)
            if attribute == "displayName" and value:
                names.setdefault(value, name)
        if group is not None:
            object_id = _group_object_id(group)
            if not self._is_forwarded(object_id):
                return []
            held = await self.scim.find("externalId", object_id, ctx, kind="Groups")
            if held:
                return [Found(account_id=_id(held[0], "group"), identity=first)]
            names.setdefault(group.display_name.strip().casefold(), first)
        found = []
        for value, name in names.items():
            own = group is not None and value == group.display_name.strip().casefold()
            exact = group.display_name.strip() if group is not None and own else value
            rows = await self.scim.find("displayName", exact, ctx, kind="Groups")
            # Names of groups are not unique in Entra: one with another object id is another group.
            rows = [row for row in rows if group is None or not row.get("externalId")]
            found += [Found(account_id=_id(row, "group"), identity=name) for row in rows]
        return found

    async def put_group(self, group_id: str | None, group: Group, ctx: Delivery) -> str:
        """Forward a mapped group with its object id unchanged; acknowledge any other.

        Raises:
            Gone: the group was not forwarded before and has a mapping now, or the reverse: it is taken in anew.
        """
        object_id = _group_object_id(group)
        if not self._is_forwarded(object_id):
            if group_id is not None and not group_id.startswith(UNMAPPED):
                await self.delete_group(
                    group_id, ctx
                )  # else those who leave it in Entra would keep what Sofa gave them
                raise Gone(f"{TITLE}: the group has no mapping any more and was removed", code="unmapped_now")
            self._note_unmapped(object_id, ctx)
            return f"{UNMAPPED}{object_id}"
        if group_id is not None and group_id.startswith(UNMAPPED):
            raise Gone(f"{TITLE}: the group has a mapping now and is forwarded", code="mapped_now")
        ctx.unnote(NO_MAPPING)
        wanted = {"displayName": group.display_name.strip(), "externalId": object_id}
        if group_id is None:
            answer = await self.scim.create({"schemas": [GROUP_SCHEMA], **wanted}, ctx, kind="Groups", expect=(409,))
            if answer.status == 409:
                await self._group_taken(object_id, ctx)
            return _id(self.scim.resource_of(answer, "POST", "/Groups"), "group")
        held = await self.scim.read(group_id, ctx, kind="Groups")
        operations = [
            {"op": "replace" if held.get(path) else "add", "path": path, "value": value}
            for path, value in wanted.items()
            if held.get(path) != value
        ]
        if operations:
            await self.scim.patch(group_id, operations, ctx, kind="Groups")
        return group_id

    async def change_members(self, group_id: str, add: Sequence[str], remove: Sequence[str], ctx: Delivery) -> None:
        """Explicit additions and removals, 100 at a time; Sofa computes its groups and roles from them.

        Raises:
            Blocked: members Sofa does not know; all others are added first.
        """
        if group_id.startswith(UNMAPPED):
            return
        await self.scim.change_members(group_id, add, remove, ctx)

    async def delete_group(self, group_id: str, ctx: Delivery) -> None:
        """The group, which ends what the maps made of it; its users stay."""
        if not group_id.startswith(UNMAPPED):
            answer = await self.scim.delete(group_id, ctx, kind="Groups")
            await self._still_synchronized(answer, ctx)

    def group_stands(self, group: Group, group_id: str) -> bool:
        """Whether a stored group is forwarded, or not, as the maps say now (5.3)."""
        try:
            return self._is_forwarded(_group_object_id(group)) is not group_id.startswith(UNMAPPED)
        except NormalizationError:
            return True  # it was refused, or it will be when it is written next

    # Steps ------------------------------------------------------------------------------------------------------------

    async def _still_synchronized(self, answer: VendorResponse, ctx: Delivery) -> None:
        """A deleted synchronization answers 404 as well, and then nothing was done (S15)."""
        if answer.status in (404, 410):
            await self.scim.page(ctx, query={"startIndex": "1", "count": "1"})

    def _is_forwarded(self, object_id: str) -> bool:
        if self.settings.forward_unmapped_groups:
            return True
        return not map_memberships([object_id], self._group_map, self._role_map)["ignored"]

    def _note_unmapped(self, object_id: str, ctx: Delivery) -> None:
        """Once per delivery, and counted per object id for the operator."""
        ctx.not_told = True
        said = f"ignored: no mapping for {object_id}"
        ctx.warnings.append(said)
        ctx.note(NO_MAPPING, said, subject=object_id)
        logger().info("group.unmapped", product=TITLE, object_id=object_id)

    def _translated(self, account: Account, ctx: Delivery) -> str | UnsetType | None:
        """The superior's account: an id, None when there shall be none, UNSET when nothing can be said (yet)."""
        if not isinstance(account.manager, str):
            return account.manager
        return ctx.resolve(account.manager) or UNSET

    def _await_manager(self, account: Account, account_id: str, *, unknown: bool) -> None:
        """A manager without an account is waited for by the gateway; here only one whose account Sofa does not know."""
        if unknown:
            raise Blocked(
                f"Everything was applied but the manager, who is not in {TITLE} yet; assign the manager to the application too.",
                on=f"manager:{account.manager}",
                code="manager_missing",
                attribute=MANAGER,
                account_id=account_id,
            )

    async def _taken(self, account: Account, ctx: Delivery) -> None:
        """Why a user cannot be created. Always raises: an account that was merely found is linked by the gateway."""
        found = await self.find(account, (), ctx)
        if found and all(one.conflict for one in found):
            raise Conflict(found[0].conflict, code="account_of_another", attribute="externalId")
        if found:
            raise already_there(TITLE, "this user")
        # Reads may lag behind writes, so the gateway looks again some times before it is a person's turn (code `conflict`).
        raise Conflict(f"{TITLE} says that this user exists, but shows no such user.", attribute="externalId")

    async def _group_taken(self, object_id: str, ctx: Delivery) -> None:
        if await self.scim.find("externalId", object_id, ctx, kind="Groups"):
            raise already_there(TITLE, "this group")
        raise Conflict(f"{TITLE} says that this group exists, but shows no such group.", attribute="externalId")

    def _refused(self, answer: VendorResponse, method: str, template: str) -> None:
        if answer.status >= 300:
            raise error_of(TITLE, method, self.scim.path(template), answer)

    # The key ----------------------------------------------------------------------------------------------------------

    def _key_findings(self) -> list[Finding]:
        """The product has just accepted a key, so dates that say otherwise are wrong dates (S16, 5.3)."""
        stand = self._key_state()
        day = stand["expires"][:10]
        if stand["state"] == "expired":
            return [
                Finding(
                    level="warning",
                    code="key_dates_wrong",
                    message=f"By the settings the access key expired on {day}, yet Sofa accepts it; correct key_issued.",
                )
            ]
        if stand["state"] == "expiring":
            return [
                Finding(
                    level="warning",
                    code=f"key_expiring_{stand['warn']}",
                    message=f"The access key expires on {day}. Generate a new one in Sofa under Access details and set next_key.",
                )
            ]
        return [Finding(level="ok", code="key_valid", message=f"The access key is valid until {day}.")]

    def credential_end(self) -> CredentialEnd:
        """Of the access key that is valid longest (S16, 5.3)."""
        return CredentialEnd(
            what="Sofa access key",
            ends_at=datetime.fromisoformat(self._key_state()["expires"]).timestamp(),
            remedy="Generate a new key in Sofa under Access details and set next_key; the old one serves until it ends.",
        )

    def _key_state(self) -> dict[str, Any]:
        """Of the key that is valid longest."""
        key = self.settings.keys[0]
        return key_state(key.key_issued, key.key_validity_days, self._clock())

    def _key_sentence(self) -> str:
        stand = self._key_state()
        verb = "expired" if stand["state"] == "expired" else "is valid until"
        on = " on" if stand["state"] == "expired" else ""
        return (
            f"By the settings the access key {verb}{on} {stand['expires'][:10]} (keys live {VALIDITY_MIN_DAYS} to "
            f"{VALIDITY_MAX_DAYS} days). See whether the synchronization is enabled in Sofa, or generate a new key there under "
            "Access details; nothing is lost meanwhile."
        )


class Keys:
    """One or two access keys: when one is refused the other takes over. Implements `Auth`.

    Args:
        secrets: in the order in which they are tried.
    """

    def __init__(self, secrets: Sequence[Secret], clock: Callable[[], float] = time.monotonic) -> None:
        self._bearers = [Bearer(secret) for secret in secrets]
        self._at = 0
        self._clock = clock
        self._switched_at: float | None = None

    def connect(self, sibling: Callable[[str], VendorHttp]) -> None:
        """Needs no other host."""

    async def headers(self, ctx: Delivery | None) -> Mapping[str, str]:
        """Raises: Misconfigured when no key can be read."""
        try:
            return await self._bearers[self._at].headers(ctx)
        except Misconfigured:
            if len(self._bearers) == 1:
                raise
            self._switch()
            return await self._bearers[self._at].headers(ctx)

    async def renew(self, ctx: Delivery | None) -> bool:
        """True when a key has changed since it was read, or another one is in use now."""
        rested = self._switched_at is None or self._clock() - self._switched_at >= KEY_SWITCH_REST_S
        if len(self._bearers) > 1 and not rested:
            return True  # another call has just met the same refusal and switched
        try:
            if await self._bearers[self._at].renew(ctx):
                return True
        except Misconfigured:
            if len(self._bearers) == 1:
                raise
        if len(self._bearers) == 1:
            return False
        self._switch()
        return True

    def _switch(self) -> None:
        self._at = (self._at + 1) % len(self._bearers)
        self._switched_at = self._clock()


class _Explained:
    """The HTTP client, with what an operator can do about a refusal in the sentence. Implements `VendorHttp`."""

    def __init__(self, http: VendorHttp, key_sentence: Callable[[], str]) -> None:
        self._http = http
        self._key_sentence = key_sentence

    async def request(self, method: str, path: str, **call: Unpack[Call]) -> VendorResponse:
        """As `connectors.http.HttpClient.request`."""
        try:
            return await self._http.request(method, path, **call)
        except Conflict as exc:
            if method not in ("GET", "DELETE"):
                raise
            # Nothing that is read or removed can be in conflict with another user or group: it is the synchronization itself.
            raise Misconfigured(
                f"{exc.message}. Sofa allows one kind of synchronization; remove the other one there (S3).",
                code="other_synchronization",
            ) from None
        except Misconfigured as exc:
            if exc.code in ("unauthorized", "forbidden"):
                raise Misconfigured(f"{exc.message}. {self._key_sentence()}", code=exc.code) from None
            if exc.code == "wrong_address":
                raise Misconfigured(
                    f"{exc.message}. Perhaps the synchronization was deleted in Sofa (S15); a new one has a new URL and key.",
                    code=exc.code,
                ) from None
            raise


class _NoDirectory:
    """Sofa's names are in the settings."""

    def names(self, kind: str) -> Sequence[Mapping[str, Any] | str]:
        """None."""
        return ()


def _expiry(key: AccessKey) -> date:
    return key.key_issued + timedelta(days=key.key_validity_days)


def _document(user: User) -> dict[str, Any]:
    """The user as the SCIM document it came from."""
    plain: dict[str, Any] = msgspec.to_builtins(user)
    enterprise = plain.pop("enterprise", {})
    extensions: dict[str, Any] = plain.pop("extensions", {})
    return {**plain, **extensions, **({ENTERPRISE_SCHEMA: enterprise} if enterprise else {})}


def _compared(field: str, value: Any) -> str | None:
    """A field as the product and the wish are compared."""
    shown = held_text(value)
    return shown.casefold() if shown and field in ("sso_identifier", "user_name") else shown


def _group_object_id(group: Group) -> str:
    """S11. Raises NormalizationError `missing_external_id` or `bad_object_id`."""
    value = group.external_id if isinstance(group.external_id, str) else ""
    if not value.strip():
        raise NormalizationError(
            f"The group has no externalId; {TITLE} knows groups by their object id. Map objectId to externalId for groups.",
            code="missing_external_id",
            attribute="externalId",
        )
    return _all_object_ids([value])[0]


def _conflict(held: Mapping[str, Any], owners: set[str]) -> str:
    """Why a user of our user name is not ours: it carries another object id. One without any was made by hand and is adopted."""
    theirs = held.get("externalId")
    if not theirs or not owners:
        return ""
    try:
        if normalize_object_id(theirs) in owners:
            return ""
    except NormalizationError:
        pass
    return f"A user of this userName exists in {TITLE} with another externalId; correct or remove it there."


def _resource(account: Account, manager: str | UnsetType | None) -> dict[str, Any]:
    resource: dict[str, Any] = {"schemas": [USER_SCHEMA]}
    for field, value in account.fields.items():
        if value is not None:
            put_at(resource, FIELDS[field], value)
    if isinstance(manager, str):
        put_at(resource, MANAGER, {"value": manager})
    if ENTERPRISE_SCHEMA in resource:
        resource["schemas"].append(ENTERPRISE_SCHEMA)
    return resource


def _operations(held: Mapping[str, Any], fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What turns the held user into the wished one; a path that has no value yet cannot be replaced, only added to."""
    operations: list[dict[str, Any]] = []
    for field, value in fields.items():
        path = FIELDS[field]
        shown = held_at(held, path)
        parts = parts_of(path)
        if value == shown or (field == "sso_identifier" and str(shown or "").lower() == value):
            continue
        if value is None:
            operations.append({"op": "remove", "path": path})
        elif shown is not None:
            operations.append({"op": "replace", "path": path, "value": value})
        elif parts.type:
            operations.append({"op": "add", "path": parts.name, "value": [{"type": parts.type, "value": value}]})
        else:
            operations.append({"op": "add", "path": path, "value": value})
    return operations


def _manager_operations(held: Mapping[str, Any], manager: str | UnsetType | None) -> list[dict[str, Any]]:
    if manager is UNSET:
        return []
    shown = _reference(held_at(held, MANAGER))
    if shown == manager:
        return []
    if manager is None:
        return [{"op": "remove", "path": MANAGER}]
    return [{"op": "replace" if shown else "add", "path": MANAGER, "value": {"value": manager}}]


def _id(held: Mapping[str, Any], what: str) -> str:
    return checked_id(held.get("id"), f"{TITLE} answered with a {what}")
