"""What the generic SCIM connector is told of a product: its address, its attributes, and where its dialect differs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from connectors.contract import Finding
from connectors.declared import (
    ADDRESS_PARTS,
    ENTERPRISE_NAMES,
    FIELDS_MAX,
    NAME_PARTS,
    SINGLE,
    TITLE_CHARS_MAX,
    CallRate,
    SignIn,
    address_mistakes,
    did_you_mean,
    path_problem,
)
from connectors.scim_paths import taken_apart
from schemas.config import Mistakes
from schemas.resources import ENTERPRISE_SCHEMA, GROUP_SCHEMA, USER_SCHEMA

TITLE = "SCIM product"
CONCURRENCY = 8
DEFAULT_ATTRIBUTES = (
    "userName",
    "externalId",
    "active",
    "displayName",
    "title",
    "preferredLanguage",
    "name.givenName",
    "name.familyName",
    "name.formatted",
    'emails[type eq "work"].value',
    'phoneNumbers[type eq "work"].value',
    'phoneNumbers[type eq "mobile"].value',
    'phoneNumbers[type eq "fax"].value',
    'addresses[type eq "work"].formatted',
    'addresses[type eq "work"].streetAddress',
    'addresses[type eq "work"].locality',
    'addresses[type eq "work"].region',
    'addresses[type eq "work"].postalCode',
    'addresses[type eq "work"].country',
    f"{ENTERPRISE_SCHEMA}:employeeNumber",
    f"{ENTERPRISE_SCHEMA}:department",
)
"""Entra's default mapping without the manager, whose value is an id of this gateway."""
Constant = str | bool | int
_FILTER_PATH = re.compile(r'[A-Za-z$][\w.:$-]*(\[type eq "[^"\\]{1,40}"\])?(\.[A-Za-z$][\w$-]*)?', re.ASCII)
_KIND_PATH = re.compile(r"/[A-Za-z0-9_.-]{1,60}")
_FRAME_NAMES = (
    "id", "externalId", "meta", "schemas", "location", "version", "userName", "displayName", "active", "members", "value", "type",
    "Resources", "totalResults", "nextCursor", "scimType", "detail", "supported", *SINGLE, *NAME_PARTS, *ADDRESS_PARTS,
    *ENTERPRISE_NAMES, "name", "emails", "phoneNumbers", "addresses", "roles", "manager", USER_SCHEMA, GROUP_SCHEMA,
)  # fmt: skip
"""Spelled as in RFC 7643; products that use other letter case mean the same (section 2.1)."""


class Settings(Struct, frozen=True, kw_only=True):
    """One product that speaks SCIM, and its dialect."""

    base_url: Annotated[str, Meta(description="the product's SCIM root (what it calls Tenant URL or SCIM endpoint)")]
    auth: Annotated[SignIn, Meta(description="how calls are signed")]
    title: Annotated[
        str, Meta(min_length=1, max_length=TITLE_CHARS_MAX, description="the product's name in messages")
    ] = TITLE
    rate_limit: Annotated[CallRate | None, Meta(description="the product's limit, shared by all workers")] = None
    concurrency_max: Annotated[int, Meta(ge=1, le=64, description="calls at once per worker")] = CONCURRENCY
    attributes: Annotated[
        tuple[str, ...], Meta(max_length=FIELDS_MAX, description="SCIM paths that are sent; all others are ignored")
    ] = DEFAULT_ATTRIBUTES
    add: Annotated[
        tuple[str, ...], Meta(max_length=FIELDS_MAX, description="further paths, e.g. of the product's own extension")
    ] = ()
    omit: Annotated[
        tuple[str, ...], Meta(max_length=FIELDS_MAX, description="paths of attributes the product refuses")
    ] = ()
    rename: Annotated[dict[str, str], Meta(description="SCIM path -> the path the product wants it under")] = {}
    constants: Annotated[dict[str, Constant], Meta(description="the product's path -> value for every user")] = {}
    required: Annotated[tuple[str, ...], Meta(description="paths without which no user is sent")] = ()
    user_name: Annotated[str, Meta(description="the SCIM path whose value becomes the product's userName")] = "userName"
    match: Annotated[
        tuple[Literal["userName", "externalId"], ...],
        Meta(min_length=1, max_length=2, description="by what existing accounts are found"),
    ] = ("userName",)
    foreign: Annotated[
        Literal["refuse", "adopt"], Meta(description="an account found that carries another externalId")
    ] = "refuse"
    filter_on: Annotated[
        dict[str, str],
        Meta(
            description='what a look-up filters by instead, e.g. userName = "emails.value"; the answer is compared all the same'
        ),
    ] = {}
    booleans: Annotated[Literal["json", "text"], Meta(description='true, or the text "True"')] = "json"
    update: Annotated[
        Literal["auto", "patch", "put"], Meta(description="auto asks the product's ServiceProviderConfig")
    ] = "auto"
    path_style: Annotated[
        Literal["path", "value"], Meta(description="PATCH: one operation per path, or one without path")
    ] = "path"
    multi_valued: Annotated[
        Literal["filtered", "whole"], Meta(description='PATCH: emails[type eq "work"], or the whole list')
    ] = "filtered"
    filter: Annotated[
        Literal["server", "scan"], Meta(description="scan reads all users to find one: small products only")
    ] = "server"
    paging: Annotated[
        Literal["index", "cursor", "none"], Meta(description="startIndex, cursor (RFC 9865), or one answer")
    ] = "index"
    page_size: Annotated[int, Meta(ge=1, le=1_000, description="resources on one page")] = 100
    keep_alive_s: Annotated[
        float,
        Meta(ge=0, description="half of the time after which an unused credential dies there; 0 where none does"),
    ] = 0.0
    first_index: Annotated[Literal[0, 1], Meta(description="startIndex of the first resource")] = 1
    trusts_total: Annotated[
        bool, Meta(description="false where totalResults is wrong: a list then ends with an empty page")
    ] = True
    nobody_status: Annotated[Literal[200, 404], Meta(description="404 where a look-up of nobody is answered so")] = 200
    enterprise_urn: Annotated[str, Meta(description="what the enterprise extension is called there")] = (
        ENTERPRISE_SCHEMA
    )
    etag: Annotated[bool, Meta(description="write only on the version that was read (If-Match)")] = False
    groups: Annotated[bool, Meta(description="the product takes groups")] = True
    group_external_id: Annotated[bool, Meta(description="groups carry Entra's id (externalId)")] = True
    members: Annotated[
        Literal["filtered", "listed", "whole"],
        Meta(
            description='PATCH: who leaves is members[value eq "id"], or a list of values, or the whole list is replaced'
        ),
    ] = "filtered"
    members_per_call: Annotated[int, Meta(ge=1, le=1_000, description="members that come or go in one call")] = 100
    on_delete: Annotated[Literal["delete", "deactivate"], Meta(description="what a SCIM DELETE does there")] = "delete"
    media_type: Annotated[
        Literal["application/scim+json", "application/json"], Meta(description="of request bodies")
    ] = "application/scim+json"
    users_path: Annotated[str, Meta(description="users below base_url")] = "/Users"
    groups_path: Annotated[str, Meta(description="groups below base_url")] = "/Groups"
    allow_loopback: Annotated[bool, Meta(description="for emulators: permits http to this machine")] = False

    def __post_init__(self) -> None:
        found = address_mistakes(self.base_url, self.auth, allow_loopback=self.allow_loopback)
        supplied = self.supplied()
        for name in ("attributes", "add", "omit", "required"):
            found += _bad_paths(name, getattr(self, name))
        found += [
            ("omit", f"{path} is not sent anyway{did_you_mean(path, (*self.attributes, *self.add))}")
            for path in self.omit
            if not path_problem(path) and path not in (*self.attributes, *self.add)
        ]
        found += [
            ("required", f"{path} is not among the attributes that are sent{did_you_mean(path, supplied)}")
            for path in self.required
            if not path_problem(path) and path not in supplied
        ]
        for path, there in self.rename.items():
            if path not in supplied:
                found.append(
                    (f"rename.{path}", f"is not among the attributes that are sent{did_you_mean(path, supplied)}")
                )
            if taken_apart(there) is None:
                found.append((f"rename.{path}", "must lead to an attribute such as nickName or urn:…:User:name"))
        found += [
            (f"constants.{path}", "is not an attribute such as userType or urn:…:User:name")
            for path in self.constants
            if taken_apart(path) is None
        ]
        seen: dict[str, str] = dict.fromkeys(self.constants, "constants")
        for path in supplied:
            there = self.there(path)
            if there in seen:
                found.append(("rename", f"{path} and {seen[there]} both lead to {there}"))
            seen[there] = path
        found += [("user_name", problem) for problem in [path_problem(self.user_name)] if problem]
        if "userName" in self.omit:
            found.append(("omit", "userName is what accounts are known by"))
        if "externalId" in self.match and "externalId" not in supplied:
            found.append(("match", "externalId is not among the attributes that are sent"))
        for name, path in self.filter_on.items():
            known = ("userName", "externalId", "displayName")
            if name not in known:
                found.append((f"filter_on.{name}", f"nothing is looked up by it{did_you_mean(name, known)}"))
            if _FILTER_PATH.fullmatch(path) is None:
                found.append((f"filter_on.{name}", "must lead to an attribute such as emails.value"))
        if self.filter_on and self.filter == "scan":
            found.append(("filter_on", 'means nothing with filter = "scan"'))
        if re.fullmatch(r"urn:[A-Za-z0-9][A-Za-z0-9.:_-]*", self.enterprise_urn) is None:
            found.append(("enterprise_urn", "must be like urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"))
        for name in ("users_path", "groups_path"):
            if _KIND_PATH.fullmatch(getattr(self, name)) is None:
                found.append((name, "must be one part such as /Users"))
        if found:
            raise Mistakes(found)

    def supplied(self) -> tuple[str, ...]:
        """The SCIM paths that are sent, userName always."""
        named = dict.fromkeys(("userName", *self.attributes, *self.add))
        return tuple(path for path in named if path not in self.omit)

    def there(self, path: str) -> str:
        """The path the product wants an attribute under."""
        if path not in self.rename and path.startswith(f"{ENTERPRISE_SCHEMA}:"):
            return f"{self.enterprise_urn}{path.removeprefix(ENTERPRISE_SCHEMA)}"
        return self.rename.get(path, path)

    def names(self) -> set[str]:
        """Every name that may stand in an answer, as it is spelled here."""
        paths = [taken_apart(path) for path in (*map(self.there, self.supplied()), *self.constants)]
        parts = {part for path in paths if path is not None for part in (path.urn, path.name, path.sub)}
        return {*parts, *_FRAME_NAMES} - {""}


def _bad_paths(name: str, paths: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, f"{path} {problem}") for path in paths if (problem := path_problem(path))]


def feature_findings(settings: Settings, features: Mapping[str, Any]) -> list[Finding]:
    """The settings compared with the ServiceProviderConfig (RFC 7643 section 5)."""
    if not features:
        return [
            Finding(
                level="warning",
                code="no_service_provider_config",
                message=f"{settings.title} shows no ServiceProviderConfig; this target's options cannot be compared with it.",
            )
        ]

    def said(name: str) -> bool | None:
        table = features.get(name)
        held = table.get("supported") if isinstance(table, dict) else None
        return held if isinstance(held, bool) else None

    findings = []

    def find(level: Literal["ok", "warning", "error"], code: str, message: str) -> None:
        findings.append(Finding(level=level, code=code, message=message))

    if settings.update == "patch" and said("patch") is False:
        find("error", "no_patch", f'{settings.title} says that it has no PATCH; set update = "put" or "auto".')
    if settings.update == "put" and said("patch") is True:
        find("warning", "patch_unused", f'{settings.title} has PATCH; update = "patch" writes less and keeps more.')
    if settings.filter == "server" and said("filter") is False:
        find("error", "no_filter", f'{settings.title} says that it has no filters; set filter = "scan".')
    if settings.filter == "scan" and said("filter") is True:
        find("warning", "filter_unused", f'{settings.title} has filters; filter = "server" is much quicker.')
    if settings.etag and said("etag") is False:
        find("error", "no_etag", f"{settings.title} says that it has no versions; set etag = false.")
    if not settings.etag and said("etag") is True:
        find("ok", "etag_unused", f"{settings.title} has versions; etag = true keeps two writers apart.")
    paging = features.get("pagination")
    by_index = paging.get("index") if isinstance(paging, dict) else None
    by_cursor = paging.get("cursor") if isinstance(paging, dict) else None
    if settings.paging == "cursor" and by_cursor is False:
        find("error", "no_cursor", f'{settings.title} says that it has no cursors; set paging = "index".')
    if settings.paging == "index" and by_index is False:
        find("error", "no_index", f'{settings.title} says that it pages by cursor only; set paging = "cursor".')
    limit = features.get("filter")
    results_max = limit.get("maxResults") if isinstance(limit, dict) else None
    if isinstance(results_max, int) and not isinstance(results_max, bool) and 0 < results_max < settings.page_size:
        find("ok", "page_size", f"{settings.title} gives at most {results_max} at once; page_size may be that.")
    return findings
