"""What the generic connectors are told in configuration: how calls are signed, how fast they may come, which SCIM path is meant.

A product that needs no code of its own is described by its target's settings alone; what both kinds of description have in
common stands here.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct

from connectors.contract import Auth, Delivery, VendorHttp
from connectors.http import Basic, Bearer, ClientCredentials, address_problem
from connectors.scim_paths import ScimPath, taken_apart
from schemas.config import Mistakes, Secret
from schemas.resources import ENTERPRISE_SCHEMA, Address, Enterprise, Manager, Name, User
from schemas.specs import RateLimit

FIELDS_MAX = 200
"""Attributes, constants and rules that one target may declare, each."""
TITLE_CHARS_MAX = 60
SUGGESTION_CUTOFF = 0.6

SINGLE = (
    "userName",
    "externalId",
    "active",
    "displayName",
    "nickName",
    "profileUrl",
    "title",
    "userType",
    "preferredLanguage",
    "locale",
    "timezone",
)
"""Attributes of a user that have one value (RFC 7643 section 4.1.1)."""
TYPES = ("work", "home", "mobile", "fax", "pager", "other")
NAME_PARTS = tuple(field.encode_name for field in msgspec.structs.fields(Name))
ADDRESS_PARTS = tuple(
    field.encode_name for field in msgspec.structs.fields(Address) if field.name not in ("type", "primary")
)
ENTERPRISE_NAMES = tuple(field.encode_name for field in msgspec.structs.fields(Enterprise) if field.name != "manager")
KNOWN_PATHS: tuple[str, ...] = (
    *SINGLE,
    "roles",
    *(f"name.{part}" for part in NAME_PARTS),
    *(f'{name}[type eq "{kind}"].value' for name in ("emails", "phoneNumbers") for kind in TYPES),
    *(f'addresses[type eq "{kind}"].{part}' for kind in ("work", "home", "other") for part in ADDRESS_PARTS),
    *(f"{ENTERPRISE_SCHEMA}:{name}" for name in ENTERPRISE_NAMES),
)
"""Every path that can be named besides those of further extensions, and MANAGER."""
MANAGER = f"{ENTERPRISE_SCHEMA}:manager"
"""Arrives as an id of this gateway, and leaves as the product's own (`Delivery.resolve`)."""

_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")


def path_problem(path: str) -> str:
    """Why a path cannot be named in a configuration, with the nearest one that can; "" when it may.

    Types of e-mail addresses, numbers and postal addresses are free; so are names of extensions but the enterprise one.
    """
    parts = taken_apart(path)
    if path == MANAGER:
        return ""
    if parts is not None and parts.urn and parts.urn != ENTERPRISE_SCHEMA:
        return "" if not parts.type and not parts.sub else "must be an attribute of the extension as a whole"
    if path in KNOWN_PATHS:
        return ""
    if parts is not None and parts.type and not parts.urn:
        subs = {"emails": ("value",), "phoneNumbers": ("value",), "addresses": ADDRESS_PARTS}.get(parts.name, ())
        if parts.sub in subs:
            return ""
    return f"is not a SCIM attribute of users{did_you_mean(path, (*KNOWN_PATHS, MANAGER))}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean x?`, or "" when nothing is near; letter case does not count."""
    folded = {one.casefold(): one for one in known}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=SUGGESTION_CUTOFF)
    return f"; did you mean {folded[near[0]]}?" if near else ""


def read(user: User, path: str) -> Any:
    """What the wish says at a path: UNSET when it says nothing, None when the value was cleared.

    Letter case of extension names does not count. `roles` gives the roles as plain objects.
    """
    parts = taken_apart(path)
    if parts is None:
        return UNSET
    if parts.urn == ENTERPRISE_SCHEMA:
        held = _of_struct(user.enterprise, parts.name)
        return held.value if isinstance(held, Manager) else held
    if parts.urn:
        return _of_extension(user, parts)
    if parts.type:
        entries: tuple[Any, ...] = {
            "emails": user.emails,
            "phoneNumbers": user.phone_numbers,
            "addresses": user.addresses,
        }.get(parts.name, ())
        for entry in entries:
            if isinstance(entry.type, str) and entry.type.casefold() == parts.type.casefold():
                return _of_struct(entry, parts.sub or "value")
        return UNSET
    if parts.name == "name":
        return _of_struct(user.name, parts.sub)
    value = _of_struct(user, parts.name)
    return msgspec.to_builtins(value) if isinstance(value, tuple) else value


@functools.cache
def _names_of(type_: type[Struct]) -> Mapping[str, str]:
    """SCIM's names of a shape -> ours."""
    return {field.encode_name: field.name for field in msgspec.structs.fields(type_)}


def _of_struct(held: Struct, name: str) -> Any:
    known = _names_of(type(held)).get(name)
    return UNSET if known is None else getattr(held, known)


def _of_extension(user: User, parts: ScimPath) -> Any:
    for urn, attributes in user.extensions.items():
        if urn.casefold() == parts.urn.casefold():
            for name, value in attributes.items():
                if name.casefold() == parts.name.casefold():
                    return value
    return UNSET


class Together:
    """Several credentials with every call, each in a header of its own."""

    def __init__(self, parts: Sequence[Auth]) -> None:
        self._parts = tuple(parts)

    def connect(self, sibling: Callable[[str], VendorHttp]) -> None:
        """All of them."""
        for part in self._parts:
            part.connect(sibling)

    async def headers(self, ctx: Delivery | None) -> Mapping[str, str]:
        """Raises: what any of them raises."""
        return {name: value for part in self._parts for name, value in (await part.headers(ctx)).items()}

    async def renew(self, ctx: Delivery | None) -> bool:
        """True when any has changed; all are asked, because nobody knows which was refused."""
        return any([await part.renew(ctx) for part in self._parts])


class SignIn(Struct, frozen=True, kw_only=True):
    """How calls to a product are signed."""

    way: Annotated[
        Literal["bearer", "header", "basic", "basic_key", "client_credentials", "none"],
        Meta(
            description="bearer token, a header of another form, name and password, a key in place of the name, "
            "OAuth client credentials, nothing"
        ),
    ] = "bearer"
    token: Annotated[Secret | None, Meta(description="bearer, header, basic_key: the credential, as a reference")] = (
        None
    )
    header: Annotated[str, Meta(description="header: its name")] = "Authorization"
    scheme: Annotated[
        str, Meta(max_length=40, description='text before the credential and a blank; after a last "=" no blank')
    ] = "Bearer"
    username: Annotated[str | None, Meta(description="basic")] = None
    password: Annotated[Secret | None, Meta(description="basic, as a reference")] = None
    client_id: Annotated[str | None, Meta(description="client_credentials")] = None
    client_secret: Annotated[Secret | None, Meta(description="client_credentials, as a reference")] = None
    token_url: Annotated[str | None, Meta(description="client_credentials: the token endpoint")] = None
    scope: Annotated[str, Meta(description="client_credentials: scopes, separated by blanks")] = ""
    form: Annotated[dict[str, str], Meta(description="client_credentials: further fields of the token request")] = {}
    client_in: Annotated[
        Literal["header", "body"], Meta(description="client_credentials: where id and secret are sent")
    ] = "header"
    also: Annotated[
        dict[str, Secret], Meta(max_length=5, description="further headers whose values are credentials, as references")
    ] = {}

    def __post_init__(self) -> None:
        needed = _NEEDED[self.way]
        found = [
            (name, f'missing; way = "{self.way}" needs it') for name in needed if getattr(self, name) in (None, "")
        ]
        others = {name for names in _NEEDED.values() for name in names} - set(needed)
        found += [
            (name, f'means nothing with way = "{self.way}"')
            for name in sorted(others)
            if getattr(self, name) is not None
        ]
        if self.username is not None and ":" in self.username:
            found.append(("username", "must not contain a colon (RFC 7617 section 2)"))
        if _HEADER.fullmatch(self.header) is None:
            found.append(("header", "is not the name of a header"))
        found += [
            (f"also.{name}", "is not the name of a header" if _HEADER.fullmatch(name) is None else "is sent already")
            for name in self.also
            if _HEADER.fullmatch(name) is None or name.casefold() in self._own_headers()
        ]
        if self.client_in == "body" and self.way != "client_credentials":
            found.append(("client_in", f'means nothing with way = "{self.way}"'))
        if any(ord(char) < 32 or ord(char) > 126 for char in self.scheme):
            found.append(("scheme", "must be plain text on one line"))
        if found:
            raise Mistakes(found)

    def _own_headers(self) -> set[str]:
        return {"authorization", *((self.header.casefold(),) if self.way == "header" else ())}

    def header_names(self) -> set[str]:
        """Headers that carry credentials, in small letters."""
        return {*self._own_headers(), *(name.casefold() for name in self.also)}

    def auth(self) -> Auth | None:
        """What signs the calls."""
        first = self._first()
        further = [Bearer(secret, scheme="", header=name) for name, secret in self.also.items()]
        return Together((*(() if first is None else (first,)), *further)) if further else first

    def _first(self) -> Auth | None:
        match self.way:
            case "none":
                return None
            case "basic" if self.username is not None and self.password is not None:
                return Basic(self.username, self.password)
            case "basic_key" if self.token is not None:
                return Basic("", self.token, is_name=True)
            case "client_credentials" if (
                self.client_id is not None and self.client_secret is not None and self.token_url is not None
            ):
                scope = {"scope": self.scope} if self.scope else {}
                return ClientCredentials(
                    self.token_url,
                    client_id=self.client_id,
                    client_secret=self.client_secret,
                    form={**self.form, **scope},
                    scheme=self.scheme,
                    in_body=self.client_in == "body",
                )
            case _:
                assert self.token is not None, "refused by the settings"
                header = "Authorization" if self.way == "bearer" else self.header
                return Bearer(self.token, scheme=self.scheme, header=header)


_NEEDED: Mapping[str, tuple[str, ...]] = {
    "bearer": ("token",),
    "header": ("token",),
    "basic": ("username", "password"),
    "basic_key": ("token",),
    "client_credentials": ("client_id", "client_secret", "token_url"),
    "none": (),
}


class CallRate(Struct, frozen=True, kw_only=True):
    """The product's limit: `calls` in any `per_s` seconds, shared by all workers of the target."""

    calls: Annotated[int, Meta(ge=1, le=100_000, description="how many calls")]
    per_s: Annotated[float, Meta(gt=0, le=86_400, description="in how many seconds")] = 1.0

    def limit(self) -> RateLimit:
        """As a declaration says it."""
        return RateLimit(calls=self.calls, per_s=self.per_s)


def address_mistakes(base_url: str, auth: SignIn, *, allow_loopback: bool) -> list[tuple[str, str]]:
    """What is wrong with the addresses of a target."""
    found = []
    for name, url in (("base_url", base_url), ("auth.token_url", auth.token_url)):
        problem = address_problem(url, allow_loopback=allow_loopback) if url is not None else ""
        if problem:
            found.append((name, problem))
    return found
