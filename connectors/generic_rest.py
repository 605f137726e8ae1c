"""REST: any product with plain calls for listing, reading, creating, changing and deleting users, described in TOML alone.

The settings say which calls there are, which field holds which attribute, how accounts are found and paged through, how a user
is switched off, and what the product's errors mean. Nothing in them is evaluated: a path holds `{id}` or `{value}` and nothing
else, both encoded whole; a field is a dotted path or a JSON pointer (RFC 6901).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

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
    Held,
    Identity,
    Imagined,
    VendorHttp,
    VendorResponse,
    Write,
)
from connectors.declared import (
    FIELDS_MAX,
    MANAGER,
    TITLE_CHARS_MAX,
    CallRate,
    SignIn,
    address_mistakes,
    did_you_mean,
    path_problem,
    read,
)
from connectors.http import clean, error_of, retry_after
from connectors.scim import checked_id, ignored_paths, texts
from connectors.telemessage import is_region
from connectors.transforms import Transform, said, transformed
from schemas.config import Mistakes
from schemas.errors import (
    Blocked,
    Conflict,
    ConnectorError,
    Gone,
    Misconfigured,
    NormalizationError,
    RateLimited,
    Rejected,
    Unavailable,
)
from schemas.events import identity, split_identity
from schemas.resources import User
from schemas.specs import Attribute, Spec

TITLE = "REST product"
CONCURRENCY = 8
PAGES_MAX = 1_000
"""Pages of one list; a product with more accounts than they hold needs larger pages, or look-ups by parameter."""
ROWS_MAX = 10_000
"""Accounts on one page at most; more than that is no page."""
DEPTH_MAX = 8
RULES_MAX = 100
CURSOR_CHARS_MAX = 4_000
NOBODY = "provgate-check-nobody"
"""Looked up by `check` where accounts cannot be listed."""

Scalar = str | bool | int | float
CallName = Literal["list", "find", "read", "create", "update", "delete", "activate", "deactivate"]
Meaning = Literal["rejected", "conflict", "transient", "rate_limited", "misconfigured", "gone", "blocked", "done"]
METHODS: Mapping[CallName, str] = {
    "list": "GET",
    "find": "GET",
    "read": "GET",
    "create": "POST",
    "update": "PATCH",
    "delete": "DELETE",
    "activate": "POST",
    "deactivate": "POST",
}
READS: frozenset[CallName] = frozenset({"list", "find", "read"})
WITH_ID: frozenset[CallName] = frozenset({"read", "update", "delete", "activate", "deactivate"})

_PART = re.compile(r"\{([^{}]*)\}")
_PATH = re.compile(r"(/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|\{\w+\})*)+", re.ASCII)
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_NEXT_LINK = re.compile(r'<([^<>]*)>\s*((?:;[^,<>"]*(?:"[^"]*")?)*)')
_RESERVED_HEADERS = frozenset(
    {"authorization", "cookie", "host", "content-length", "content-type", "connection", "transfer-encoding"}
)


def place(field: str) -> tuple[str, ...]:
    """Where a field stands: the names from the outside in. Dotted, or with a leading `/` a JSON pointer; "" is the whole."""
    if not field:
        return ()
    if field.startswith("/"):
        return tuple(part.replace("~1", "/").replace("~0", "~") for part in field[1:].split("/"))
    return tuple(field.split("."))


def at(body: Any, field: str) -> Any:
    """What stands there; None when nothing does. Numbers count places in a list from 0."""
    for part in place(field):
        if isinstance(body, Mapping):
            body = body.get(part)
        elif isinstance(body, list) and part.isdecimal() and len(part) < 6 and int(part) < len(body):
            body = body[int(part)]
        else:
            return None
    return body


def put(body: dict[str, Any], field: str, value: Any) -> None:
    """Set a field, making the objects on the way; what stands in the way and is no object is replaced."""
    *way, last = place(field)
    for part in way:
        inner = body.get(part)
        body[part] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        body = inner
    body[last] = value


def _field_problem(field: str, *, written: bool) -> str:
    parts = place(field)
    if not parts or not all(parts) or len(parts) > DEPTH_MAX:
        return "is not a field such as login, contact.mobile or /contact/mobile"
    if written and any(part.isdecimal() for part in parts):
        return "points into a list, which cannot be written"
    return ""


class Call(Struct, frozen=True, kw_only=True):
    """One call of the product."""

    path: Annotated[str, Meta(description="below base_url; {id} is the account, {value} what is looked for")]
    method: Annotated[
        Literal["GET", "POST", "PUT", "PATCH", "DELETE"] | None, Meta(description="the usual one when left out")
    ] = None
    expect: Annotated[
        tuple[Annotated[int, Meta(ge=200, le=499)], ...],
        Meta(max_length=20, description="statuses that mean success; any 2xx when left out"),
    ] = ()
    query: Annotated[dict[str, str], Meta(description="parameters that go with every call")] = {}
    body: Annotated[dict[str, Scalar], Meta(description="fields that go with every call")] = {}
    wrap: Annotated[str, Meta(description="the field the account is sent under")] = ""
    item: Annotated[str, Meta(description="where the account stands in the answer")] = ""
    items: Annotated[str, Meta(description="list, find: where the accounts stand in the answer")] = ""
    id: Annotated[str, Meta(description="create: where the id stands in the answer, if not as in an account")] = ""

    def __post_init__(self) -> None:
        found = []
        parts = _PART.findall(self.path)
        if _PATH.fullmatch(self.path) is None or "//" in self.path or ".." in self.path.split("/"):
            found.append(("path", "must begin with / and hold no ?, # or ..; parameters belong into query"))
        elif unknown := [part for part in parts if part not in ("id", "value")]:
            found.append(("path", f"{{{unknown[0]}}} is not known; there are {{id}} and {{value}}"))
        found += [(f"body.{field}", problem) for field in self.body if (problem := _field_problem(field, written=True))]
        for name in ("wrap", "item", "items", "id"):
            field = getattr(self, name)
            problem = _field_problem(field, written=name == "wrap") if field else ""
            if problem:
                found.append((name, problem))
        if found:
            raise Mistakes(found)

    @property
    def parts(self) -> set[str]:
        """What the path is filled with."""
        return set(_PART.findall(self.path))


class Endpoints(Struct, frozen=True, kw_only=True):
    """The calls a product has. A product that cannot be listed cannot be reconciled."""

    create: Annotated[Call, Meta(description="makes an account (POST)")]
    update: Annotated[Call, Meta(description="changes an account (PATCH, or PUT with update = replace)")]
    list: Annotated[Call | None, Meta(description="all accounts, page by page (GET)")] = None
    find: Annotated[Call | None, Meta(description="accounts by a parameter of identity (GET)")] = None
    read: Annotated[Call | None, Meta(description="one account (GET)")] = None
    delete: Annotated[Call | None, Meta(description="removes an account (DELETE)")] = None
    activate: Annotated[Call | None, Meta(description="switches an account on (POST)")] = None
    deactivate: Annotated[Call | None, Meta(description="switches an account off (POST)")] = None

    def __post_init__(self) -> None:
        found = []
        for name in METHODS:
            call: Call | None = getattr(self, name)
            if call is None:
                continue
            if name in WITH_ID and call.parts != {"id"}:
                found.append((f"{name}.path", "must hold {id} and nothing else to be filled in"))
            if name not in WITH_ID and call.parts:
                found.append((f"{name}.path", "must not hold {id} or {value}; see identity for look-ups by path"))
            if name in READS and (call.body or call.wrap):
                found.append((name, "reads only; body and wrap mean nothing here"))
            if name in READS and call.method not in (None, "GET"):
                found.append((f"{name}.method", "must be GET"))
            if name not in ("list", "find") and call.items:
                found.append((f"{name}.items", "means nothing here; did you mean item?"))
            if name != "create" and call.id:
                found.append((f"{name}.id", "means nothing here; it is for create"))
            if name not in READS and call.method == "GET":
                found.append((f"{name}.method", "must not be GET, which changes nothing"))
        if found:
            raise Mistakes(found)


class Binding(Struct, frozen=True, kw_only=True):
    """Which field of the product holds an attribute, and how its value becomes the product's."""

    field: Annotated[str, Meta(description="dotted path or JSON pointer")]
    required: Annotated[bool, Meta(description="users without it are refused")] = False
    default: Annotated[Scalar | None, Meta(description="for new accounts, when Entra says nothing")] = None
    transforms: Annotated[tuple[Transform, ...], Meta(max_length=10, description="named steps, in this order")] = ()
    region: Annotated[str | None, Meta(description="mobile: ISO code for numbers without country code")] = None
    extension: Annotated[Literal["reject", "drop"], Meta(description="mobile: numbers with an extension")] = "reject"
    values: Annotated[dict[str, Scalar], Meta(description="Entra's value -> the product's")] = {}
    other: Annotated[
        Literal["reject", "keep", "drop"], Meta(description="what a value that is not in values comes to")
    ] = "reject"
    many: Annotated[
        Literal["one", "list", "joined"], Meta(description="how several values are sent, e.g. of roles")
    ] = "one"
    separator: Annotated[str, Meta(min_length=1, max_length=5, description="joined: between them")] = ";"
    cleared: Annotated[
        Literal["null", "empty", "keep"], Meta(description="what is sent when Entra clears the value")
    ] = "null"
    write: Annotated[Literal["always", "create"], Meta(description="create: never changed afterwards")] = "always"

    def __post_init__(self) -> None:
        found = []
        problem = _field_problem(self.field, written=True)
        if problem:
            found.append(("field", problem))
        if self.region is not None and not is_region(self.region):
            found.append(("region", f"{self.region!r} is not an ISO country code such as GB"))
        if self.region is not None and not {"mobile", "mobile_plus"} & set(self.transforms):
            found.append(("region", 'means nothing without the transform "mobile"'))
        if self.required and self.default is not None:
            found.append(("default", "means nothing where the attribute is required"))
        if self.other != "reject" and not self.values:
            found.append(("other", "means nothing without values"))
        if found:
            raise Mistakes(found)


class Lookup(Struct, frozen=True, kw_only=True):
    """How accounts are found by one attribute: by a parameter of `find`, by a path of their own, or by reading all."""

    parameter: Annotated[str, Meta(description="query parameter of endpoints.find")] = ""
    path: Annotated[str, Meta(description="an address with {value}; 404 means nobody")] = ""
    item: Annotated[str, Meta(description="path: where the account stands in the answer")] = ""
    scan: Annotated[bool, Meta(description="read all accounts and compare: small products only")] = False
    exact: Annotated[bool, Meta(description="letter case counts there")] = False

    def __post_init__(self) -> None:
        if sum((bool(self.parameter), bool(self.path), self.scan)) != 1:
            raise Mistakes([("parameter", "needs exactly one of parameter, path and scan = true")])
        if self.path and (_PATH.fullmatch(self.path) is None or _PART.findall(self.path) != ["value"]):
            raise Mistakes([("path", "must begin with / and hold {value} once")])


class States(Struct, frozen=True, kw_only=True):
    """How a product says that an account is switched on or off."""

    way: Annotated[Literal["field", "calls"], Meta(description="a field of the account, or calls of their own")] = (
        "field"
    )
    field: Annotated[str, Meta(description="the field; with calls the one that shows the state, if there is one")] = ""
    on: Annotated[Scalar, Meta(description="its value when switched on")] = True
    off: Annotated[Scalar, Meta(description="its value when switched off")] = False

    def __post_init__(self) -> None:
        found = []
        if self.way == "field" and not self.field:
            found.append(("field", 'missing; way = "field" needs it'))
        elif self.field and (problem := _field_problem(self.field, written=True)):
            found.append(("field", problem))
        if _equal(self.on, self.off):
            found.append(("off", "must differ from on"))
        if found:
            raise Mistakes(found)


class Paging(Struct, frozen=True, kw_only=True):
    """How a list is gone through."""

    way: Annotated[
        Literal["none", "page", "offset", "cursor", "link"],
        Meta(description="one answer, page numbers, offsets, a cursor in the answer, or the header Link (RFC 8288)"),
    ] = "none"
    parameter: Annotated[str, Meta(description="page, offset, cursor: its query parameter")] = ""
    first: Annotated[int, Meta(ge=0, le=1, description="page: number of the first; offset: where counting begins")] = 1
    size_parameter: Annotated[str, Meta(description="query parameter for the size of a page")] = ""
    size: Annotated[int, Meta(ge=1, le=10_000, description="accounts on a page")] = 100
    next: Annotated[str, Meta(description="cursor: where the next cursor, or the next page's address, stands")] = ""
    total: Annotated[str, Meta(description="page, offset: where the number of all accounts stands")] = ""

    def __post_init__(self) -> None:
        found = []
        if self.way in ("page", "offset", "cursor") and not self.parameter:
            found.append(("parameter", f'missing; way = "{self.way}" needs it'))
        if self.way == "cursor" and not self.next:
            found.append(("next", 'missing; way = "cursor" needs it'))
        if self.total and self.way not in ("page", "offset"):
            found.append(("total", f'means nothing with way = "{self.way}"'))
        if found:
            raise Mistakes(found)


class ErrorRule(Struct, frozen=True, kw_only=True):
    """What an answer of the product means; the first rule that fits wins, before the usual meaning of its status."""

    means: Annotated[Meaning, Meta(description="what happens next; done: nothing is left to do")]
    status: Annotated[
        tuple[Annotated[int, Meta(ge=200, le=599)], ...], Meta(max_length=20, description="any when left out")
    ] = ()
    calls: Annotated[tuple[CallName, ...], Meta(max_length=8, description="all when left out")] = ()
    field: Annotated[str, Meta(description="a field of the answer")] = ""
    equals: Annotated[tuple[Scalar, ...], Meta(max_length=50, description="its value, letter case ignored")] = ()
    contains: Annotated[str, Meta(max_length=200, description="a text in it, letter case ignored")] = ""
    attribute: Annotated[str, Meta(description="the SCIM path it is about, for Entra's log")] = ""
    remedy: Annotated[str, Meta(max_length=300, description="a sentence for the Entra admin")] = ""
    on: Annotated[str, Meta(max_length=60, description="blocked: what is awaited, e.g. licence")] = ""
    retry_after_s: Annotated[
        Annotated[float, Meta(gt=0, le=86_400)] | None,
        Meta(description="when to try again, if the product names no time"),
    ] = None

    def __post_init__(self) -> None:
        found = []
        if not self.status and not self.field:
            found.append(("status", "missing; a rule needs status or field"))
        if self.field and (problem := _field_problem(self.field, written=False)):
            found.append(("field", problem))
        if (self.equals or self.contains) and not self.field:
            found.append(("field", "missing; equals and contains need it"))
        if any(200 <= status < 300 for status in self.status) and not self.field:
            found.append(("status", "a success is an error only by what stands in a field"))
        if self.attribute and (problem := path_problem(self.attribute)):
            found.append(("attribute", problem))
        if (self.means == "blocked") != bool(self.on):
            found.append(("on", 'goes together with means = "blocked": what is awaited'))
        if self.means == "done" and (not self.calls or set(self.calls) & {*READS, "create"}):
            found.append(("means", "done needs calls, and only such that change, switch or delete an account"))
        if found:
            raise Mistakes(found)

    def fits(self, name: CallName, answer: VendorResponse) -> bool:
        """Whether an answer to a call is meant."""
        if (self.calls and name not in self.calls) or (self.status and answer.status not in self.status):
            return False
        if not self.field:
            return True
        value = at(answer.body, self.field)
        if self.equals:
            return any(_equal(value, one) for one in self.equals)
        if self.contains:
            return isinstance(value, str) and self.contains.casefold() in value.casefold()
        return value not in (None, "", False, [], {})


class Settings(Struct, frozen=True, kw_only=True):
    """One product with a REST interface."""

    base_url: Annotated[str, Meta(description="scheme, host and the path that all calls have in common")]
    auth: Annotated[SignIn, Meta(description="how calls are signed")]
    endpoints: Annotated[Endpoints, Meta(description="the calls the product has")]
    attributes: Annotated[dict[str, Binding], Meta(description="SCIM path -> field; all other attributes are ignored")]
    identity: Annotated[dict[str, Lookup], Meta(description="SCIM path -> how accounts are found by it, in this order")]
    title: Annotated[
        str, Meta(min_length=1, max_length=TITLE_CHARS_MAX, description="the product's name in messages")
    ] = TITLE
    id: Annotated[str, Meta(description="where the id stands in an account")] = "id"
    id_from: Annotated[
        Literal["answer", "location", "lookup"],
        Meta(description="a new account's id: in the answer, at the end of the header Location, or looked up"),
    ] = "answer"
    active: Annotated[States | None, Meta(description="how users are switched on and off")] = None
    constants: Annotated[dict[str, Scalar], Meta(description="field -> value for every account")] = {}
    update: Annotated[
        Literal["partial", "replace"], Meta(description="send what differs, or read, merge and send everything")
    ] = "partial"
    read_only: Annotated[
        tuple[str, ...], Meta(max_length=FIELDS_MAX, description="fields as read that are never sent back")
    ] = ()
    paging: Annotated[Paging, Meta(description="how list is gone through")] = Paging()
    errors: Annotated[
        tuple[ErrorRule, ...], Meta(max_length=RULES_MAX, description="what the product's errors mean")
    ] = ()
    message: Annotated[str, Meta(description="where an error's sentence stands; the usual places when left out")] = ""
    headers: Annotated[
        dict[str, str], Meta(description="headers of every call, e.g. a version; never a credential")
    ] = {}
    idempotency_header: Annotated[
        str, Meta(description="the header by which the product knows a repeated write, if it has one")
    ] = ""
    foreign: Annotated[
        Literal["refuse", "adopt"], Meta(description="an account found that carries another externalId")
    ] = "refuse"
    on_delete: Annotated[Literal["delete", "deactivate"], Meta(description="what a SCIM DELETE does there")] = "delete"
    rate_limit: Annotated[CallRate | None, Meta(description="the product's limit, shared by all workers")] = None
    concurrency_max: Annotated[int, Meta(ge=1, le=64, description="calls at once per worker")] = CONCURRENCY
    body_bytes_max: Annotated[
        int,
        Meta(ge=1_024, le=32 * 1024 * 1024, description="longest answer, for products that list everything at once"),
    ] = 1024 * 1024
    allow_loopback: bool = False

    def __post_init__(self) -> None:
        found = address_mistakes(self.base_url, self.auth, allow_loopback=self.allow_loopback)
        found += self._attribute_mistakes()
        found += self._identity_mistakes()
        found += self._call_mistakes()
        for name in ("id", "message"):
            if getattr(self, name) and (problem := _field_problem(getattr(self, name), written=False)):
                found.append((name, problem))
        for header in (*self.headers, *filter(None, (self.idempotency_header,))):
            if _HEADER.fullmatch(header) is None:
                found.append((f"headers.{header}", "is not the name of a header"))
            elif header.casefold() in _RESERVED_HEADERS or header.casefold() == self.auth.header.casefold():
                found.append((f"headers.{header}", "is not set here; credentials belong into auth"))
        found += [
            (f"headers.{name}", "must be plain text on one line")
            for name, value in self.headers.items()
            if any(ord(char) < 32 or ord(char) > 126 for char in value)
        ]
        if found:
            raise Mistakes(found)

    def _attribute_mistakes(self) -> list[tuple[str, str]]:
        found = []
        if not 0 < len(self.attributes) <= FIELDS_MAX:
            found.append(("attributes", f"needs 1 to {FIELDS_MAX} attributes"))
        taken = {place(field): f"constants.{field}" for field in self.constants}
        if self.active is not None and self.active.way == "field":
            taken[place(self.active.field)] = "active.field"
        found += [
            (f"constants.{field}", problem)
            for field in self.constants
            if (problem := _field_problem(field, written=True))
        ]
        for path, binding in self.attributes.items():
            here = f"attributes.{path}"
            if path == "active":
                found.append((here, "is told in the table active"))
                continue
            if problem := path_problem(path):
                found.append((here, problem))
            if path == MANAGER and (
                binding.required or binding.transforms or binding.values or binding.write == "create"
            ):
                found.append((here, "is an id of the product; only field and cleared can be said of it"))
            if path == "roles" and binding.many == "one" and not binding.values:
                found.append((f"{here}.many", 'users may have several roles: "list", "joined", or values for one'))
            where = place(binding.field)
            other = next((name for held, name in taken.items() if held[: len(where)] == where[: len(held)]), None)
            if other is not None:
                found.append((f"{here}.field", f"is written by {other} too"))
            taken[where] = here
        return found

    def _identity_mistakes(self) -> list[tuple[str, str]]:
        found = []
        if not self.identity:
            found.append(
                ("identity", 'missing; by which attribute are accounts found, e.g. userName = {parameter = "login"}')
            )
        for path, lookup in self.identity.items():
            here = f"identity.{path}"
            binding = self.attributes.get(path)
            if path == MANAGER:
                found.append((here, "is another account's id, so nobody can be found by it"))
            elif binding is None:
                found.append((here, f"is not among attributes{did_you_mean(path, self.attributes)}"))
            elif binding.many != "one":
                found.append((here, "has several values, so nobody can be found by it"))
            elif not binding.required and path == next(iter(self.identity)):
                found.append((f"attributes.{path}.required", "must be true: accounts are found by it"))
            if lookup.parameter and self.endpoints.find is None:
                found.append((f"{here}.parameter", "needs endpoints.find"))
            if lookup.scan and self.endpoints.list is None:
                found.append((f"{here}.scan", "needs endpoints.list"))
            if lookup.parameter and self.endpoints.find is not None and lookup.parameter in self.endpoints.find.query:
                found.append((f"{here}.parameter", "is in endpoints.find.query already"))
        return found

    def _call_mistakes(self) -> list[tuple[str, str]]:
        found = []
        needs: list[tuple[str, bool, str]] = [
            ("read", self.update == "replace", 'update = "replace"'),
            ("delete", self.on_delete == "delete", 'on_delete = "delete"'),
            ("activate", self.active is not None and self.active.way == "calls", 'active.way = "calls"'),
            ("deactivate", self.active is not None and self.active.way == "calls", 'active.way = "calls"'),
        ]
        for name, needed, why in needs:
            if needed and getattr(self.endpoints, name) is None:
                found.append((f"endpoints.{name}", f"missing; {why} needs it"))
        if self.on_delete == "deactivate" and self.active is None:
            found.append(("active", 'missing; on_delete = "deactivate" needs it'))
        if self.paging.way != "none" and self.endpoints.list is None:
            found.append(("paging", "needs endpoints.list"))
        if self.endpoints.list is not None:
            used = {self.paging.parameter, self.paging.size_parameter} & set(self.endpoints.list.query)
            found += [("endpoints.list.query", f"{name} is set by paging") for name in sorted(used)]
        return found


class Account(Struct, frozen=True, kw_only=True):
    """What the product shall hold.

    Args:
        fields: field -> value, constants included; None, "" or a list where Entra cleared it.
        creating: field -> value for new accounts only, where Entra says nothing.
        fixed: SCIM path -> value of fields that are never changed afterwards.
        keys: SCIM path of `identity` -> the product's value.
        active: whether the user shall be switched on; None when Entra does not say.
        manager: the manager's id at this gateway; None when there shall be none, UNSET when nobody says.
    """

    fields: dict[str, Any]
    creating: dict[str, Any]
    fixed: dict[str, Any]
    keys: dict[str, str]
    active: bool | None
    external_id: str = ""
    manager: str | UnsetType | None = UNSET


class GenericRest(Connector[Settings, Account]):
    """Users of any product with plain REST calls."""

    spec = Spec(
        name="rest",
        title=TITLE,
        attributes=(
            Attribute(
                "userName", "as declared", required=True, note="the table attributes of the settings says the rest"
            ),
        ),
        groups_step=(
            "A target of the connector rest takes no groups: switch group provisioning off in Entra (group mapping Disabled); "
            "roles can be declared as an attribute."
        ),
        concurrency_max=CONCURRENCY,
        capabilities=("list_accounts",),
        pitfalls=(
            "A path holds {id} or {value}, both encoded whole; nothing else of a user ever gets into an address.",
            "Without endpoints.read every update sends all declared fields, and cannot tell what differs.",
            "scan = true reads all accounts for every look-up; use it only where the product finds nobody by a parameter.",
            "An attribute of identity that is not a plain one (userName, externalId, …) is not kept in order by the gateway.",
            "The manager's field gets the product's own id; a user whose manager has no account there yet is sent again later.",
            "Without the table active a user that is switched off in Entra is refused, never silently left on.",
        ),
    )
    settings_type = Settings
    example: ClassVar[str] = """[targets.crm]
connector = "rest"
title = "CRM"

[targets.crm.settings]
title = "CRM"
base_url = "https://crm.example.com/api/v1"
auth = { way = "header", header = "X-Api-Key", scheme = "", token = { env = "CRM_KEY" } }
rate_limit = { calls = 10, per_s = 1.0 }
update = "partial"
on_delete = "deactivate"
active = { way = "field", field = "status", on = "enabled", off = "disabled" }
constants = { "source" = "entra" }
message = "error.message"

[targets.crm.settings.endpoints]
list = { path = "/users", items = "data" }
find = { path = "/users", items = "data" }
read = { path = "/users/{id}", item = "data" }
create = { path = "/users", item = "data", expect = [201] }
update = { path = "/users/{id}", item = "data" }

[targets.crm.settings.paging]
way = "page"
parameter = "page"
size_parameter = "per_page"
size = 50
total = "meta.total"

[targets.crm.settings.identity]
userName = { parameter = "login" }

[targets.crm.settings.attributes]
userName = { field = "login", required = true, transforms = ["lower"] }
externalId = { field = "external_id" }
"name.givenName" = { field = "name.first", required = true }
"name.familyName" = { field = "name.last", required = true }
'emails[type eq "work"].value' = { field = "contact.email", transforms = ["email"] }
'phoneNumbers[type eq "mobile"].value' = { field = "contact.mobile", transforms = ["mobile_plus"], region = "GB" }
userType = { field = "plan", default = "basic", values = { Employee = "full", Guest = "basic" } }
roles = { field = "roles", many = "list" }

[[targets.crm.settings.errors]]
status = [409, 422]
field = "error.code"
equals = ["login_taken"]
means = "conflict"
attribute = "userName"

[[targets.crm.settings.errors]]
status = [402]
means = "blocked"
on = "licence"
remedy = "Buy a seat or free one."
"""

    @classmethod
    def spec_for(cls, settings: Settings) -> Spec:
        """Title, limit and attributes as the settings say."""
        bound = tuple(
            Attribute(
                path,
                binding.field,
                required=binding.required,
                multi_valued=path == "roles",
                note=", ".join(binding.transforms),
            )
            for path, binding in settings.attributes.items()
        )
        states = settings.active
        shown = (Attribute("active", states.field or "calls of its own", type="boolean"),) if states is not None else ()
        plain = tuple(path for path in settings.identity if re.fullmatch(r"[A-Za-z.]+", path))
        changed = any(
            set(settings.attributes[path].transforms) - {"lower"} or settings.attributes[path].values
            for path in settings.identity
        )
        return msgspec.structs.replace(
            cls.spec,
            title=settings.title,
            attributes=(*bound, *shown),
            identity=plain or ("userName",),
            groups_step=(
                f"{settings.title} takes no groups: switch group provisioning off in Entra (group mapping Disabled)."
            ),
            rate_limit=settings.rate_limit.limit() if settings.rate_limit is not None else None,
            concurrency_max=settings.concurrency_max,
            on_delete=settings.on_delete,
            capabilities=(
                *(("list_accounts",) if settings.endpoints.list is not None else ()),
                *(("normalizes_identity",) if changed else ()),
                *(("idempotency_keys",) if settings.idempotency_header else ()),
            ),
        )

    @classmethod
    def endpoint(cls, settings: Settings) -> Endpoint | None:
        """The configured address."""
        return Endpoint(
            base_url=settings.base_url,
            auth=settings.auth.auth(),
            allow_loopback=settings.allow_loopback,
            body_bytes_max=settings.body_bytes_max,
        )

    def __init__(self, settings: Settings, http: VendorHttp) -> None:
        super().__init__(settings, http)
        self.title = settings.title
        self._spec = self.spec_for(settings)
        ruled = {status for rule in settings.errors for status in rule.status}
        everything = any(not rule.status for rule in settings.errors)
        self._ruled: tuple[int, ...] = tuple(range(400, 600)) if everything else tuple(sorted(ruled))

    # The contract -----------------------------------------------------------------------------------------------------

    def normalize(self, user: User, directory: Directory) -> Account:
        """Every declared attribute in the product's form. Raises NormalizationError with the codes of vendor page 0.6."""
        settings = self.settings
        fields: dict[str, Any] = {}
        creating: dict[str, Any] = {}
        fixed: dict[str, Any] = {}
        keys: dict[str, str] = {}
        manager: str | UnsetType | None = UNSET
        for path, binding in settings.attributes.items():
            if path == MANAGER:
                manager = read(user, path)
                continue
            value = self._bound(path, binding, read(user, path))
            if value is UNSET and binding.default is not None:
                creating[binding.field] = binding.default
            if value is UNSET:
                continue
            if binding.write == "create":
                fixed[path] = value
            else:
                fields[binding.field] = value
            if path in settings.identity and value not in (None, ""):
                keys[path] = _text(value)
        fields.update(settings.constants)
        active = None if user.active is UNSET else user.active
        if settings.active is None and active is False:
            raise NormalizationError(
                f"{self.title} has no way to switch a user off that this target knows of (active), so this user would stay on. "
                "Delete the user there, or declare how it is done.",
                code="cannot_deactivate",
                attribute="active",
            )
        if active is None and settings.on_delete == "deactivate":
            active = True  # an account that a deletion switched off is wished again
        external = settings.attributes.get("externalId")
        external_id = fields.get(external.field, fixed.get("externalId")) if external is not None else None
        return Account(
            fields=fields,
            creating=creating,
            fixed=fixed,
            keys=keys,
            active=active,
            external_id=_text(external_id) if external_id is not None else "",
            manager=manager,
        )

    def account_keys(self, account: Account) -> tuple[str, ...]:
        """What the account is found by there."""
        return tuple(account.keys.values())

    def ignored(self, user: User) -> tuple[str, ...]:
        """Everything that is not declared."""
        return ignored_paths(user, self._spec)

    async def check(self) -> list[Finding]:
        """Address and credentials, and whether accounts show the declared fields. Writes nothing."""
        settings = self.settings
        if settings.endpoints.list is None:
            lookup = next(iter(settings.identity.values()))
            await self._asked_for_nobody(lookup)
            return [
                Finding(level="ok", code="reachable", message=f"{self.title} accepts the credentials."),
                Finding(
                    level="warning",
                    code="cannot_list",
                    message=f"{self.title} cannot be listed (endpoints.list), so accounts there are never compared with Entra.",
                ),
            ]
        rows, _ = await self._page(None, "")
        findings = [
            Finding(
                level="ok",
                code="reachable",
                message=f"{self.title} accepts the credentials; {len(rows)} accounts are on the first page.",
            )
        ]
        findings += self._shape_findings(rows)
        for path, lookup in settings.identity.items():
            if lookup.parameter and await self._asked_for_nobody(lookup):
                findings.append(
                    Finding(
                        level="error",
                        code="parameter_ignored",
                        message=f"{self.title} answers a look-up of nobody by {lookup.parameter!r} with accounts: it does not "
                        f"look at this parameter. Correct identity.{path}, or set scan = true there.",
                    )
                )
        return findings

    async def find(self, account: Account | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """By the attributes of `identity`. An identity that cannot be put into the product's form matches nothing (0.2)."""
        asked: dict[tuple[str, str], Identity] = {}
        if account is not None:
            for path, key in account.keys.items():
                asked[path, key] = identities[0] if identities else identity(path, key)
        for name in identities:
            path, value = split_identity(name)
            key = self._key(path, value)
            if key:
                mine = account is not None and account.keys.get(path, "").casefold() == key.casefold()
                asked[path, account.keys[path] if account is not None and mine else key] = name
        found: dict[str, Found] = {}
        for (path, key), name in asked.items():
            for held in await self._found_by(path, key, ctx):
                account_id = self._id(held, "listed an account")
                found.setdefault(
                    account_id, Found(account_id=account_id, identity=name, conflict=self._foreign(held, account))
                )
        return list(found.values())

    async def create(self, account: Account, ctx: Delivery) -> str:
        """Make the account, then switch it as wished where that takes a call of its own."""
        states = self.settings.active
        fixed = {self.settings.attributes[path].field: value for path, value in account.fixed.items()}
        fields = {**account.creating, **fixed, **self._fields(account, ctx)}
        wanted = account.active is not False
        if states is not None and states.way == "field":
            fields[states.field] = states.on if wanted else states.off
        sent = {field: value for field, value in fields.items() if value not in (None, "", [])}
        try:
            answer = await self._call("create", ctx, fields=sent)
        except Conflict as exc:
            await self._taken(account, exc, ctx)
            raise
        account_id = await self._made(account, answer, ctx)
        if states is not None:
            await self._after_create(states, account_id, answer, ctx, wanted=wanted)
        return account_id

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        """What differs, or everything merged (A4). A deactivation by a call goes first, an activation last."""
        states = self.settings.active
        held = await self._read(account_id, ctx) if self.settings.endpoints.read is not None else None
        self._compare_fixed(held, account, ctx)
        by_calls = states is not None and states.way == "calls"
        switch = self._switch_needed(held, account.active) if by_calls else None
        fields = self._fields(account, ctx)
        if states is not None and states.way == "field" and account.active is not None:
            fields[states.field] = states.on if account.active else states.off
        if switch is False:
            await self._switch(account_id, ctx, on=False)
        await self._write(account_id, held, fields, ctx)
        if switch is True:
            await self._switch(account_id, ctx, on=True)

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        """The product's delete, or deactivation where the settings say so; one that is gone is fine."""
        try:
            if self.settings.on_delete == "delete":
                await self._call("delete", ctx, account_id=account_id)
                return
            states = self.settings.active
            assert states is not None, "refused by the settings"
            held = await self._read(account_id, ctx) if self.settings.endpoints.read is not None else None
            if states.way == "field":
                await self._write(account_id, held, {states.field: states.off}, ctx)
            elif self._switch_needed(held, False) is False:
                await self._switch(account_id, ctx, on=False)
        except Gone:
            return

    async def list_accounts(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """One page of accounts."""
        if self.settings.endpoints.list is None:
            raise Rejected(f"{self.title} cannot be listed: its target has no endpoints.list.", code="cannot_list")
        rows, following = await self._page(None, cursor or "")
        states = self.settings.active
        page = []
        for held in rows:
            names = [
                identity(path, _text(value))
                for path in self.settings.identity
                if (value := at(held, self.settings.attributes[path].field)) not in (None, "")
            ]
            off = states is not None and bool(states.field) and _equal(at(held, states.field), states.off)
            external = self.settings.attributes.get("externalId")
            page.append(
                {
                    "account_id": self._id(held, "listed an account"),
                    "identities": tuple(names),
                    "active": not off,
                    "owner": _text(at(held, external.field) or "") if external is not None else "",
                    "values": {
                        path: _comparable(at(held, binding.field), exact=path not in self.settings.identity)
                        for path, binding in self._compared().items()
                        if _has(held, binding.field)
                    },
                }
            )
        return page, following or None

    def expected(self, account: Account) -> Expected:
        """Every declared attribute in the product's form, but the manager; lists may show fewer fields than accounts have."""
        values = {}
        for path, binding in self._compared().items():
            value = account.fixed.get(path, account.fields.get(binding.field, UNSET))
            if value is not UNSET:
                values[path] = _comparable(value, exact=path not in self.settings.identity)
        return Expected(
            identities=tuple(identity(path, key) for path, key in account.keys.items()),
            owner=account.external_id if self.settings.foreign == "refuse" else "",
            values=values,
        )

    def _compared(self) -> dict[str, Binding]:
        return {path: binding for path, binding in self.settings.attributes.items() if path != MANAGER}

    async def imagine(self, write: Write, made_id: str, held: Held, ctx: Delivery | None) -> Imagined | None:
        """For rehearsals: the declared status, and the account where a create's answer is declared to show it."""
        for name, method in METHODS.items():
            call: Call | None = getattr(self.settings.endpoints, name)
            if call is None or call.path != write.path:
                continue
            if name == "update" and self.settings.update == "replace":
                method = "PUT"
            if (call.method or method) != write.method:
                continue
            status = next((one for one in call.expect if one < 300), 201 if name == "create" else 200)
            if name == "delete":
                return Imagined(status) if call.expect else None
            read = self.settings.endpoints.read
            account_id = made_id if name == "create" else write.parts["id"]
            made: dict[str, Any] = {}
            if name != "create" and read is not None:
                known = at(held(read.path, {"id": account_id}), read.item)
                made = dict(known) if isinstance(known, Mapping) else {}
            states = self.settings.active
            if name in ("activate", "deactivate") and states is not None and states.field:
                put(made, states.field, states.on if name == "activate" else states.off)
            elif name not in ("activate", "deactivate"):
                sent = (at(write.body, call.wrap) if call.wrap else write.body) or {}
                made = {**made, **sent}
            put(made, self.settings.id, account_id)
            answer: dict[str, Any] = {}
            shown: dict[str, Any] = {}
            if call.item:
                put(answer, call.item, made)
            if read is not None and read.item:
                put(shown, read.item, made)
            there = ((read.path, {"id": account_id}, shown or made),) if read is not None else ()
            if call.id:
                put(answer if call.item else made, call.id, account_id)
            return Imagined(status, answer or made, held=there)
        return None

    # Values -----------------------------------------------------------------------------------------------------------

    def _bound(self, path: str, binding: Binding, raw: Any) -> Any:
        """A wish's value in the product's form: UNSET when nothing is sent, None, "" or [] when it was cleared."""
        if raw is UNSET:
            if binding.required:
                raise self._refused(path, "missing")
            return UNSET
        values = self._several(path, binding, raw)
        made = [one for value in values if (one := self._one(path, binding, value)) is not UNSET]
        if not made:
            if binding.required:
                raise self._refused(path, "missing")
            return _cleared(binding)
        if binding.many == "list":
            return list(dict.fromkeys(made))
        if binding.many == "joined":
            return binding.separator.join(dict.fromkeys(_text(one) for one in made))
        return made[0]

    def _several(self, path: str, binding: Binding, raw: Any) -> list[Any]:
        if path == "roles" or binding.many != "one" or isinstance(raw, (list, tuple, Mapping)):
            return [one.strip() for one in texts(raw)]
        if isinstance(raw, str):
            return [raw.strip()] if raw.strip() else []
        return [] if raw is None else [raw]

    def _one(self, path: str, binding: Binding, value: Any) -> Any:
        """One value after the named steps and the table of values; UNSET when it is dropped."""
        try:
            for name in binding.transforms:
                value = transformed(name, value, region=binding.region, extension=binding.extension)
        except NormalizationError as exc:
            raise self._refused(path, exc.code) from None
        if binding.values:
            key = _text(value)
            mapped = binding.values.get(key, next((v for k, v in binding.values.items() if _equal(k, key)), None))
            if mapped is not None:
                return mapped
            if binding.other == "drop":
                return UNSET
            if binding.other == "reject":
                known = ", ".join(list(binding.values)[:10])
                shown = (
                    repr(key) if path == "roles" else "this value"
                )  # a role is nobody's secret; any other value may be
                hint = did_you_mean(key, binding.values) or "."
                raise NormalizationError(
                    f"{path}: {shown} has no counterpart in {self.title}{hint} Known are {known}. Correct the mapping in Entra, "
                    "or values in this target's settings.",
                    code="unknown_value",
                    attribute=path,
                    names=[key] if path == "roles" else (),
                )
        return UNSET if value == "" else value

    def _key(self, path: str, value: str) -> str:
        """A folded identity as the product spells it; "" when it is none."""
        if path not in self.settings.identity or not value:
            return ""
        try:
            made = self._bound(path, self.settings.attributes[path], value)
        except NormalizationError:
            return ""
        return "" if made in (UNSET, None) else _text(made)

    def _refused(self, path: str, code: str) -> NormalizationError:
        if code == "missing":
            sentence = f"{path} is required by {self.title} and is blank or not mapped. Map it and fill it in Entra."
        else:
            sentence = f"{path} {said(code)} ({self.title}). Correct the value or its mapping in Entra."
        return NormalizationError(sentence, code=code, attribute=path)

    # Calls ------------------------------------------------------------------------------------------------------------

    async def _call(
        self,
        name: CallName,
        ctx: Delivery | None,
        *,
        account_id: str | None = None,
        fields: Mapping[str, Any] | None = None,
        whole: dict[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        path: str = "",
        value: str = "",
    ) -> VendorResponse:
        """One declared call, judged by the declared errors.

        Args:
            fields: what is sent, by field.
            whole: what is sent, as a complete body.
            path: instead of the declared one; holds `{value}`.
        """
        call: Call | None = getattr(self.settings.endpoints, name)
        if call is None and not path:
            raise Rejected(f"{self.title}: its target has no endpoints.{name}.", code=f"no_{name}")
        call = call or Call(path=path)
        method = call.method or ("PUT" if name == "update" and self.settings.update == "replace" else METHODS[name])
        template = path or call.path
        parts = {"id": account_id} if account_id is not None else {"value": value} if path else {}
        body = _body(call, fields, whole)
        headers = dict(self.settings.headers)
        if ctx is not None and ctx.idempotency_key and self.settings.idempotency_header and name not in READS:
            headers[self.settings.idempotency_header] = f"{ctx.idempotency_key}:{name}"
        answer = await self.http.request(
            method,
            template,
            ctx=ctx,
            parts=parts,
            query={**({} if path else call.query), **(query or {})},
            json=body if body or method in ("POST", "PUT", "PATCH") else None,
            headers=headers,
            expect=(*self._ruled, *(status for status in call.expect if status >= 300)),
            idempotent=True if method in ("GET", "PUT", "DELETE") else None,
        )
        self._judge(name, method, template, call, answer)
        return answer

    def _judge(self, name: CallName, method: str, template: str, call: Call, answer: VendorResponse) -> None:
        """Raise what an answer means: the first rule that fits, then the expected statuses, then the usual table."""
        for rule in self.settings.errors:
            if rule.fits(name, answer):
                if rule.means == "done":
                    return
                raise self._meant(rule, name, method, template, answer)
        if answer.status in call.expect:
            return
        if answer.status >= 300:
            raise error_of(self.title, method, template, self._told(answer))
        if call.expect:
            raise Unavailable(
                f"{self.title} answered {answer.status} to {method} {template}, which is not among the expected "
                f"{', '.join(map(str, call.expect))}",
                code="unexpected_status",
                ambiguous=name not in READS,
            )

    def _told(self, answer: VendorResponse) -> VendorResponse:
        """The answer with the product's sentence where `error_of` looks for it."""
        if not self.settings.message:
            return answer
        return VendorResponse(
            status=answer.status, body={"detail": at(answer.body, self.settings.message)}, headers=answer.headers
        )

    def _meant(
        self, rule: ErrorRule, name: CallName, method: str, template: str, answer: VendorResponse
    ) -> ConnectorError:
        usual = error_of(self.title, method, template, self._told(answer)).message if answer.status >= 300 else ""
        told = clean(at(answer.body, self.settings.message or rule.field))
        sentence = usual or f"{self.title} did not do {method} {template}" + (f": {told}" if told else "")
        if rule.remedy:
            sentence = f"{sentence.rstrip('.')}. {rule.remedy}"
        attribute = rule.attribute or None
        after_s = retry_after(answer.headers)
        after_s = rule.retry_after_s if after_s is None else after_s
        match rule.means:
            case "conflict":
                return Conflict(sentence, attribute=attribute)
            case "transient":
                acted = name not in READS and answer.status < 300
                return Unavailable(sentence, code="declared_transient", ambiguous=acted, retry_after_s=after_s)
            case "rate_limited":
                limit = self.settings.rate_limit
                return RateLimited(sentence, retry_after_s=after_s or (limit.per_s if limit is not None else None))
            case "misconfigured":
                return Misconfigured(sentence, code="declared_misconfigured")
            case "gone":
                return Gone(sentence, code="not_found")
            case "blocked":
                return Blocked(
                    sentence, on=rule.on, code="declared_blocked", attribute=attribute, retry_after_s=after_s
                )
            case _:
                return Rejected(sentence, code="declared_refusal", attribute=attribute)

    def _item(self, name: CallName, answer: VendorResponse) -> dict[str, Any] | None:
        """The account in an answer, None when there is none."""
        call: Call | None = getattr(self.settings.endpoints, name)
        item = at(answer.body, call.item) if call is not None else None
        return item if isinstance(item, dict) else None

    def _rows(self, name: CallName, answer: VendorResponse, call: Call | None) -> list[dict[str, Any]]:
        """The accounts in a list, or the one of an answer that is no list."""
        body = answer.body
        if body is None:
            return []
        items = call.items if call is not None else ""
        if items and not _has(body, items):  # not the same as an empty list: the settings, or the product, are wrong
            raise Unavailable(f"{self.title} answered {name} without {items!r}", code="malformed")
        held = at(body, items)
        if held is None:
            return []
        if isinstance(held, dict) and name == "find" and call is not None and not items:
            one = at(held, call.item)
            held = [] if one is None else [one]
        if not isinstance(held, list) or len(held) > ROWS_MAX or not all(isinstance(one, dict) for one in held):
            raise Unavailable(f"{self.title} answered {name} without a list of accounts", code="malformed")
        return held

    def _id(self, held: Mapping[str, Any], what: str) -> str:
        return checked_id(at(held, self.settings.id), f"{self.title} {what}")

    # Finding ----------------------------------------------------------------------------------------------------------

    async def _found_by(self, path: str, key: str, ctx: Delivery | None) -> list[dict[str, Any]]:
        """Accounts whose field equals the key; compared again here, so that no stranger is handed out."""
        lookup = self.settings.identity[path]
        field = self.settings.attributes[path].field
        if lookup.scan:
            rows = [held async for held in self._all(ctx)]
        else:
            try:
                rows = await self._asked_for(lookup, key, ctx)
            except Gone:
                return []
        if rows and not any(_has(held, field) for held in rows):
            raise Misconfigured(
                f"{self.title} finds accounts by {path}, but shows no field {field!r} by which they could be told apart; correct "
                "the settings, or let find ask for complete accounts (endpoints.find.query).",
                code="no_identity_field",
            )
        wanted = key if lookup.exact else key.casefold()

        def spelled(held: Mapping[str, Any]) -> str:
            value = at(held, field)
            shown = "" if value is None else _text(value)
            return shown if lookup.exact else shown.casefold()

        return [held for held in rows if spelled(held) == wanted]

    async def _asked_for(self, lookup: Lookup, key: str, ctx: Delivery | None) -> list[dict[str, Any]]:
        """What the product answers for a key, whether it fits or not. Raises Gone when it says that there is nobody."""
        if lookup.path:
            answer = await self._call("find", ctx, path=lookup.path, value=key)
            call = Call(path=lookup.path, item=lookup.item)
        else:
            answer = await self._call("find", ctx, query={lookup.parameter: key})
            assert self.settings.endpoints.find is not None, "refused by the settings"
            call = self.settings.endpoints.find
        # A refusal that is expected says that nobody was found.
        return [] if answer.status >= 300 else self._rows("find", answer, call)

    async def _asked_for_nobody(self, lookup: Lookup) -> bool:
        """Whether the product shows somebody under a name that nobody has."""
        try:
            return bool(await self._asked_for(lookup, NOBODY, None))
        except (Gone, Rejected):  # nobody, or a name of a wrong form
            return False

    async def _all(self, ctx: Delivery | None) -> AsyncIterator[dict[str, Any]]:
        cursor = ""
        for _ in range(PAGES_MAX):
            rows, cursor = await self._page(ctx, cursor)
            for held in rows:
                yield held
            if not cursor:
                return
        raise Misconfigured(
            f"{self.title} lists more than {PAGES_MAX} pages; use larger pages (paging.size), or find accounts by a parameter.",
            code="too_many_pages",
        )

    async def _page(self, ctx: Delivery | None, cursor: str) -> tuple[list[dict[str, Any]], str]:
        """One page and where the next begins, "" at the end. A product that never moves on is left after its first page."""
        paging = self.settings.paging
        query: dict[str, str] = {paging.size_parameter: str(paging.size)} if paging.size_parameter else {}
        kind, _, rest = cursor.partition(":")
        if paging.way in ("page", "offset"):
            query[paging.parameter] = kind or str(paging.first)
        elif kind == "c":
            query[paging.parameter] = rest
        elif kind == "q":
            query.update(parse_qsl(rest, keep_blank_values=True))
        answer = await self._call("list", ctx, query=query)
        rows = self._rows("list", answer, self.settings.endpoints.list)
        match paging.way:
            case "page" | "offset":
                return self._counted(rows, answer, int(kind) if kind.isdecimal() else paging.first, rest)
            case "cursor":
                return rows, _moved(cursor, _next_cursor(at(answer.body, paging.next)))
            case "link":
                return rows, _moved(cursor, _next_link(answer.headers.get("link", "")))
            case _:
                return rows, ""

    def _counted(
        self, rows: list[dict[str, Any]], answer: VendorResponse, begin: int, rest: str
    ) -> tuple[list[dict[str, Any]], str]:
        """Numbered pages: the next one's number, how many accounts were seen, and the first id of this one.

        A page may be shorter than asked for, so only an empty one, or the number of all accounts, is the end.
        """
        paging = self.settings.paging
        before_count, _, before_first = rest.partition(":")
        first = str(at(rows[0], self.settings.id)) if rows else ""
        if not rows or (before_first and before_first == first):
            return [], ""
        seen = (int(before_count) if before_count.isdecimal() else 0) + len(rows)
        total = at(answer.body, paging.total) if paging.total else None
        if isinstance(total, int) and seen >= total:
            return rows, ""
        following = begin + (len(rows) if paging.way == "offset" else 1)
        return rows, f"{following}:{seen}:{first}"

    def _shape_findings(self, rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
        """Declared fields that no account shows."""
        findings: list[Finding] = []
        if not rows:
            return findings
        if all(at(held, self.settings.id) is None for held in rows):
            findings.append(
                Finding(
                    level="error",
                    code="no_id",
                    message=f"No account of {self.title} has an id at {self.settings.id!r}; correct id or endpoints.list.items.",
                )
            )
        for path, binding in self.settings.attributes.items():
            if all(not _has(held, binding.field) for held in rows):
                known = did_you_mean(binding.field, _fields_of(rows[0]))
                wanted = path in self.settings.identity
                findings.append(
                    Finding(
                        level="error" if wanted else "warning",
                        code="no_identity" if wanted else "unknown_field",
                        message=f"No account of {self.title} shows the field {binding.field!r} of {path}{known}",
                    )
                )
        states = self.settings.active
        if states is not None and states.field:
            shown = [at(held, states.field) for held in rows]
            if all(not _equal(value, states.on) and not _equal(value, states.off) for value in shown):
                findings.append(
                    Finding(
                        level="error",
                        code="unknown_state",
                        message=f"No account of {self.title} shows {states.on!r} or {states.off!r} at {states.field!r}; "
                        "correct active.",
                    )
                )
        return findings

    def _foreign(self, held: Mapping[str, Any], account: Account | None) -> str:
        """Why an account found under our name is not ours: it carries another externalId."""
        binding = self.settings.attributes.get("externalId")
        if account is None or binding is None or self.settings.foreign == "adopt" or not account.external_id:
            return ""
        theirs = at(held, binding.field)
        if theirs in (None, "") or _text(theirs).casefold() == account.external_id.casefold():
            return ""
        return (
            f"An account of this name exists in {self.title} and carries another externalId; remove it there, clear its "
            f'{binding.field}, or set foreign = "adopt" for this target.'
        )

    # Writing ----------------------------------------------------------------------------------------------------------

    async def _read(self, account_id: str, ctx: Delivery) -> dict[str, Any]:
        answer = await self._call("read", ctx, account_id=account_id)
        held = self._item("read", answer)
        if held is None or answer.status >= 300:
            raise Unavailable(f"{self.title} answered read without an account", code="malformed")
        return held

    def _fields(self, account: Account, ctx: Delivery) -> dict[str, Any]:
        """What is sent, the manager by the product's id; one without an account there is left out and waited for."""
        if account.manager is UNSET:
            return dict(account.fields)
        binding = self.settings.attributes[MANAGER]
        resolved = ctx.resolve(account.manager) if account.manager else None
        if account.manager and resolved is None:
            return dict(account.fields)
        value = resolved if account.manager else _cleared(binding)
        return {**account.fields, **({} if value is UNSET else {binding.field: value})}

    def _compare_fixed(self, held: Mapping[str, Any] | None, account: Account, ctx: Delivery) -> None:
        """Fields that never change: a new name there is refused, anything else is told."""
        for path, value in account.fixed.items():
            field = self.settings.attributes[path].field
            if held is None or _same(at(held, field), value):
                continue
            if path in self.settings.identity and not _equal(at(held, field), value):
                raise Rejected(
                    f"{self.title} cannot change {field} of an account (write = create), so this user cannot be renamed there. "
                    "Take the old name back in Entra, or delete the account.",
                    code="cannot_rename",
                    attribute=path,
                )
            ctx.warnings.append(f"{path} is set for new accounts only; {self.title} keeps another value.")

    async def _write(
        self, account_id: str, held: Mapping[str, Any] | None, fields: Mapping[str, Any], ctx: Delivery
    ) -> None:
        """Send fields: those that differ, or everything that is held with them put in."""
        changed = {field: value for field, value in fields.items() if held is None or not _same(at(held, field), value)}
        if not changed:
            return
        if self.settings.update == "partial" or held is None:
            whole = _with_siblings(held, changed)
        else:
            whole = _copied(held)
            for field, value in changed.items():
                put(whole, field, value)
        for field in self.settings.read_only:
            _drop(whole, field)
        answer = await self._call("update", ctx, account_id=account_id, whole=whole)
        states = self.settings.active
        if states is not None and states.way == "field" and _same(changed.get(states.field), states.off):
            self._check_off("update", answer)

    async def _switch(self, account_id: str, ctx: Delivery, *, on: bool) -> None:
        name: CallName = "activate" if on else "deactivate"
        answer = await self._call(name, ctx, account_id=account_id)
        if not on:
            self._check_off(name, answer)

    def _switch_needed(self, held: Mapping[str, Any] | None, wanted: bool | None) -> bool | None:
        """Which way to switch: True on, False off, None not at all."""
        states = self.settings.active
        if wanted is None or states is None:
            return None
        if held is not None and states.field:
            shown = at(held, states.field)
            if _equal(shown, states.on if wanted else states.off):
                return None
        return wanted

    def _check_off(self, name: CallName, answer: VendorResponse) -> None:
        """A product that answers success and leaves the account switched on must not be believed."""
        states = self.settings.active
        held = self._item(name, answer)
        if states is None or not states.field or held is None:
            return
        if _equal(at(held, states.field), states.on):
            raise Rejected(
                f"{self.title} answered success but still shows the account as switched on ({states.field}). Correct active in "
                "this target's settings, or ask the product's support.",
                code="not_deactivated",
                attribute="active",
            )

    async def _made(self, account: Account, answer: VendorResponse, ctx: Delivery) -> str:
        """The new account's id, from where the settings say it is."""
        sentence = f"{self.title} answered {answer.status} to create"
        told = at(self._item("create", answer), self.settings.id)
        if self.settings.id_from == "location" and "location" in answer.headers:
            return checked_id(
                urlsplit(answer.headers.get("location", "")).path.rstrip("/").rpartition("/")[2], sentence
            )
        if self.settings.id_from == "answer":
            call = self.settings.endpoints.create
            return checked_id(
                at(answer.body, call.id) if call.id else at(self._item("create", answer), self.settings.id), sentence
            )
        if told is not None:  # the answer shows it although the settings do not count on it
            return checked_id(told, sentence)
        found = await self.find(account, (), ctx)
        if len(found) != 1:
            raise Unavailable(
                f"{sentence}, but does not show the account yet; it is looked at again",
                code="not_shown",
                ambiguous=True,
            )
        return found[0].account_id

    async def _after_create(
        self, states: States, account_id: str, answer: VendorResponse, ctx: Delivery, *, wanted: bool
    ) -> None:
        """Some products switch every new account on, or off, whatever was asked."""
        held = self._item("create", answer)
        shown = at(held, states.field) if held is not None and states.field else None
        if states.way == "calls":
            if not wanted and not (shown is not None and _equal(shown, states.off)):
                await self._switch(account_id, ctx, on=False)
            elif wanted and shown is not None and _equal(shown, states.off):
                await self._switch(account_id, ctx, on=True)
        elif not wanted and shown is not None and _equal(shown, states.on):
            full = await self._read(account_id, ctx) if self.settings.endpoints.read is not None else held
            await self._write(account_id, full, {states.field: states.off}, ctx)

    async def _taken(self, account: Account, refused: Conflict, ctx: Delivery) -> None:
        """Why an account cannot be created. An account that was merely found is linked by the gateway (R4)."""
        found = await self.find(account, (), ctx)
        foreign = next((one.conflict for one in found if one.conflict), "")
        if foreign:
            raise Conflict(foreign, code="account_of_another", attribute=refused.attribute)
        if found:
            raise Unavailable(
                f"{self.title} holds this account already; it is looked up and linked next",
                code="already_there",
                ambiguous=True,
            ) from None


def _body(call: Call, fields: Mapping[str, Any] | None, whole: dict[str, Any] | None) -> dict[str, Any]:
    """What is sent: the fields or the whole, under `wrap`, with the fields that go with every call beside them."""
    body: dict[str, Any] = dict(whole) if whole is not None else {}
    for field, value in (fields or {}).items():
        put(body, field, value)
    if call.wrap and (fields is not None or whole is not None):
        wrapped: dict[str, Any] = {}
        put(wrapped, call.wrap, body)
        body = wrapped
    for field, value in call.body.items():
        put(body, field, value)
    return body


def _with_siblings(held: Mapping[str, Any] | None, changed: Mapping[str, Any]) -> dict[str, Any]:
    """Changed fields; of an object that is changed in part everything is sent, since products may replace it whole."""
    sent: dict[str, Any] = {}
    for field, value in changed.items():
        outer, *inner = place(field)
        if inner and outer not in sent and held is not None and isinstance(held.get(outer), Mapping):
            sent[outer] = _copied(held[outer])
        put(sent, field, value)
    return sent


def _drop(body: dict[str, Any], field: str) -> None:
    *way, last = place(field)
    inner: Any = body
    for part in way:
        inner = inner.get(part) if isinstance(inner, dict) else None
    if isinstance(inner, dict):
        inner.pop(last, None)


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copied(inner) for name, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else str(value)


def _equal(held: Any, wanted: Any) -> bool:
    """Whether two plain values are the same: letter case and the JSON type of a number do not count."""
    if held is None or isinstance(held, (dict, list)):
        return False
    return _text(held).casefold() == _text(wanted).casefold()


def _same(held: Any, wanted: Any) -> bool:
    """Whether the product holds a value already; no value and an empty one are the same, letter case counts."""
    empty: tuple[Any, ...] = (None, "", [])
    if wanted in empty or held in empty:
        return wanted in empty and held in empty
    if isinstance(wanted, list):
        return isinstance(held, list) and sorted(map(_text, held)) == sorted(map(_text, wanted))
    return not isinstance(held, (dict, list)) and _text(held) == _text(wanted)


def _comparable(value: Any, *, exact: bool) -> Any:
    """A value in the form in which lists and wishes are compared."""
    if isinstance(value, list):
        return sorted(_text(one) for one in value if not isinstance(one, (dict, list))) or None
    if value in (None, "") or isinstance(value, dict):
        return None
    return _text(value) if exact else _text(value).casefold()


def _cleared(binding: Binding) -> Any:
    if binding.cleared == "keep":
        return UNSET
    if binding.many == "list":
        return []
    return "" if binding.cleared == "empty" or binding.many == "joined" else None


def _has(held: Any, field: str) -> bool:
    *way, last = place(field)
    inner: Any = held
    for part in way:
        inner = inner.get(part) if isinstance(inner, Mapping) else None
    return isinstance(inner, Mapping) and last in inner


def _fields_of(held: Mapping[str, Any], outer: str = "", depth: int = 0) -> Iterable[str]:
    for name, value in held.items():
        yield f"{outer}{name}"
        if isinstance(value, Mapping) and depth < DEPTH_MAX:
            yield from _fields_of(value, f"{outer}{name}.", depth + 1)


def _next_cursor(value: Any) -> str:
    """Where the next page begins: `c:` and a cursor, or `q:` and the query of an address, whose host is never followed."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        return ""
    text = str(value)
    if "://" in text or text.startswith(("/", "?")):
        return _query_of(text)
    return f"c:{text}" if len(text) <= CURSOR_CHARS_MAX else ""


def _next_link(header: str) -> str:
    """The query of the link whose relation is `next` (RFC 8288 section 3); its host and path are never followed."""
    for target, parameters in _NEXT_LINK.findall(header[: 4 * CURSOR_CHARS_MAX]):
        relation = re.search(r';\s*rel\s*=\s*"?([^";]*)"?', parameters, re.IGNORECASE)
        if relation is not None and "next" in relation[1].casefold().split():
            return _query_of(target)
    return ""


def _query_of(address: str) -> str:
    try:
        query = urlsplit(address).query
    except ValueError:
        return ""
    plain = urlencode(parse_qsl(query, keep_blank_values=True))
    return f"q:{plain}" if plain and len(plain) <= CURSOR_CHARS_MAX else ""


def _moved(before: str, after: str) -> str:
    """The next cursor, unless it is the one that was just used."""
    return "" if after == before else after


__all__ = ["Account", "GenericRest", "Settings"]
