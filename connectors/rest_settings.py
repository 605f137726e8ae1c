"""How a product with plain REST calls is declared in TOML: calls, fields, look-ups, paging, states, groups, errors.

Nothing in a declaration is evaluated. A path, a parameter or a body may hold `{id}` and the few other names that its call knows;
in a path each is encoded whole. A field is a dotted path (`contact.email`), one with a choice from a list
(`phones[type=work].value`), or a JSON pointer (RFC 6901).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from connectors.contract import VendorResponse
from connectors.declared import (
    FIELDS_MAX,
    MANAGER,
    TITLE_CHARS_MAX,
    CallRate,
    SignIn,
    address_mistakes,
    did_you_mean,
    path_problem,
)
from connectors.telemessage import is_region
from connectors.transforms import Transform
from schemas.config import Mistakes

TITLE = "REST product"
CONCURRENCY = 8
DEPTH_MAX = 8
RULES_MAX = 100
MEMBERS_PER_CALL = 100
HEADER_PREFIX = "header:"

Scalar = str | bool | int | float
UserCall = Literal[
    "list", "find", "read", "create", "update", "delete", "activate", "deactivate", "roles", "grant", "revoke"
]
GroupCall = Literal[
    "group_list",
    "group_find",
    "group_read",
    "group_create",
    "group_update",
    "group_delete",
    "members",
    "member_add",
    "member_remove",
]
CallName = UserCall | GroupCall
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
    "roles": "GET",
    "grant": "POST",
    "revoke": "DELETE",
    "group_list": "GET",
    "group_find": "GET",
    "group_read": "GET",
    "group_create": "POST",
    "group_update": "PATCH",
    "group_delete": "DELETE",
    "members": "GET",
    "member_add": "POST",
    "member_remove": "DELETE",
}
READS: frozenset[CallName] = frozenset(
    {"list", "find", "read", "roles", "group_list", "group_find", "group_read", "members"}
)
LISTS: frozenset[CallName] = frozenset({"list", "find", "roles", "group_list", "group_find", "members"})
NEEDS: Mapping[CallName, frozenset[str]] = {
    **dict.fromkeys(("list", "find", "create", "group_list", "group_find", "group_create"), frozenset()),
    **dict.fromkeys(
        ("read", "update", "delete", "activate", "deactivate", "roles", "group_read", "group_update", "group_delete"),
        frozenset({"id"}),
    ),
    "members": frozenset({"id"}),
    "grant": frozenset({"id", "role"}),
    "revoke": frozenset({"id", "role"}),
    "member_add": frozenset({"id"}),
    "member_remove": frozenset(),
}
"""What a call must be filled with; the two for members have a further rule of their own."""
OFFERS: Mapping[CallName, frozenset[str]] = {
    **NEEDS,
    "member_add": frozenset({"id", "member", "members"}),
    "member_remove": frozenset({"id", "member", "members", "membership"}),
}

PLACEHOLDER = re.compile(r"\{([a-z]+)(:number)?\}")
_BRACES = re.compile(r"\{\w+(?::\w+)?\}", re.ASCII)
_PATH = re.compile(r"(/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|\{\w+\})*)+", re.ASCII)
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_SEGMENT = re.compile(r"([^.\[\]]+)(?:\[([^=\[\]]+)=([^\[\]]*)\])?")
_MEDIA_TYPE = re.compile(r"[a-z]+/[a-z0-9.+-]{1,80}")
_RESERVED_HEADERS = frozenset(
    {"authorization", "cookie", "host", "content-length", "content-type", "connection", "transfer-encoding"}
)


# Fields ---------------------------------------------------------------------------------------------------------------


class Pick(NamedTuple):
    """The entry of a list whose part `key` equals `value`, letter case ignored."""

    key: str
    value: str


Place = tuple[str | Pick, ...]


@functools.lru_cache(maxsize=4 * FIELDS_MAX)
def place(field: str) -> Place:
    """Where a field stands, from the outside in. Dotted, with `[key=value]` for one entry of a list, or a JSON pointer."""
    if not field:
        return ()
    if field.startswith("/"):
        return tuple(part.replace("~1", "/").replace("~0", "~") for part in field[1:].split("/"))
    parts: list[str | Pick] = []
    for segment in _segments(field):
        found = _SEGMENT.fullmatch(segment)
        if found is None or found[2] is None:
            parts.append(segment)
        else:
            parts += [found[1], Pick(found[2], found[3])]
    return tuple(parts)


def _segments(field: str) -> list[str]:
    """Split at dots that stand in no brackets."""
    return re.split(r"\.(?![^\[\]]*\])", field)


def at(body: Any, field: str) -> Any:
    """What stands there; None when nothing does. Numbers count places in a list from 0."""
    for part in place(field):
        if isinstance(part, Pick):
            number = _picked(body, part)
            body = None if number is None else body[number]
        elif isinstance(body, Mapping):
            body = body.get(part)
        elif isinstance(body, list) and part.isdecimal() and len(part) < 6 and int(part) < len(body):
            body = body[int(part)]
        else:
            return None
    return body


def put(body: dict[str, Any], field: str, value: Any) -> None:
    """Set a field, making what is missing on the way; what stands in the way and has another form is replaced.

    An entry of a list that is emptied goes as a whole. What was reached through `body` before is not changed in place.
    """
    body.update(_with(body, place(field), value))


def _with(node: Any, parts: Place, value: Any) -> Any:
    if not parts:
        return value
    first, *rest = parts
    if isinstance(first, str):
        made = dict(node) if isinstance(node, Mapping) else {}
        made[first] = _with(made.get(first), tuple(rest), value)
        return made
    entries = list(node) if isinstance(node, list) else []
    number = _picked(entries, first)
    if value in (None, "", []) and len(rest) == 1:
        return [entry for n, entry in enumerate(entries) if n != number]
    if number is None:
        entries.append({first.key: {"true": True, "false": False}.get(first.value, first.value)})
        number = -1
    entries[number] = _with(entries[number], tuple(rest), value)
    return entries


def _picked(node: Any, pick: Pick) -> int | None:
    for number, entry in enumerate(node if isinstance(node, list) else ()):
        if isinstance(entry, Mapping) and equal(entry.get(pick.key), pick.value):
            return number
    return None


def has(held: Any, field: str) -> bool:
    """Whether there is such a field, with a value or without; of a list any entry may be missing."""
    *way, last = place(field)
    if isinstance(way[-1], Pick) if way else False:
        return isinstance(_reached(held, way[:-1]), list)
    inner = _reached(held, way)
    if isinstance(inner, list) and isinstance(last, str) and last.isdecimal():
        return int(last) < len(inner)
    return isinstance(inner, Mapping) and last in inner


def _reached(node: Any, way: Iterable[str | Pick]) -> Any:
    for part in way:
        if isinstance(part, Pick):
            number = _picked(node, part)
            node = None if number is None else node[number]
        elif isinstance(node, list):
            node = node[int(part)] if part.isdecimal() and len(part) < 6 and int(part) < len(node) else None
        else:
            node = node.get(part) if isinstance(node, Mapping) else None
    return node


def text_of(value: Any) -> str:
    """A plain value as text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else str(value)


def equal(held: Any, wanted: Any) -> bool:
    """Whether two plain values are the same: letter case and the JSON type of a number do not count."""
    if held is None or isinstance(held, (dict, list)):
        return False
    return text_of(held).casefold() == text_of(wanted).casefold()


def field_problem(field: str, *, written: bool) -> str:
    """Why this is no field, or none that can be written; "" when it is."""
    parts = place(field)
    if not parts or not all(parts) or len(parts) > DEPTH_MAX:
        return "is not a field such as login, contact.mobile, phones[type=work].value or /contact/mobile"
    if not field.startswith("/") and not all(_SEGMENT.fullmatch(segment) for segment in _segments(field)):
        return "has brackets that are no choice such as phones[type=work].value; a JSON pointer takes any name"
    if isinstance(parts[-1], Pick):
        return "ends with a choice from a list; name the part of the entry, e.g. phones[type=work].value"
    if written and any(isinstance(part, str) and part.isdecimal() for part in parts):
        return "points into a list by number, which cannot be written; choose an entry, e.g. phones[type=work].value"
    return ""


def _read_problem(field: str) -> str:
    """The same for a place in an answer, which may also be a header."""
    if field.startswith(HEADER_PREFIX):
        name = field.removeprefix(HEADER_PREFIX)
        return "" if _HEADER.fullmatch(name) else "is not the name of a header"
    return field_problem(field, written=False)


def shown(answer: VendorResponse, field: str) -> Any:
    """What an answer shows at a place, which may be a header."""
    if field.startswith(HEADER_PREFIX):
        return answer.headers.get(field.removeprefix(HEADER_PREFIX).casefold())
    return at(answer.body, field)


# Filling in -----------------------------------------------------------------------------------------------------------


def names_in(value: Any) -> Iterator[str]:
    """Every `{name}` in texts of a body or a table of parameters, as it stands between the braces."""
    if isinstance(value, str):
        yield from (found[1:-1] for found in _BRACES.findall(value) if found == value or PLACEHOLDER.fullmatch(found))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from names_in(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from names_in(inner)


def filled(value: Any, values: Mapping[str, Any]) -> Any:
    """A body with its names filled in. A text that is one name and nothing else becomes the value itself; `:number` a number."""
    if isinstance(value, str):
        whole = PLACEHOLDER.fullmatch(value)
        if whole is not None and whole[1] in values:
            return _numbers(values[whole[1]]) if whole[2] else values[whole[1]]
        return PLACEHOLDER.sub(lambda hit: text_of(values[hit[1]]) if hit[1] in values else hit[0], value)
    if isinstance(value, Mapping):
        return {name: filled(inner, values) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [filled(inner, values) for inner in value]
    return value


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value) else value


def _plain_data(value: Any, depth: int = 0) -> bool:
    """Whether a body is what JSON can say."""
    if isinstance(value, Mapping):
        return depth < DEPTH_MAX and all(_plain_data(inner, depth + 1) for inner in value.values())
    if isinstance(value, (list, tuple)):
        return depth < DEPTH_MAX and all(_plain_data(inner, depth + 1) for inner in value)
    return isinstance(value, (str, bool, int, float))


# Calls ----------------------------------------------------------------------------------------------------------------


class Call(Struct, frozen=True, kw_only=True):
    """One call of the product."""

    path: Annotated[str, Meta(description="below base_url; {id} and the other names of the call are encoded whole")]
    method: Annotated[
        Literal["GET", "POST", "PUT", "PATCH", "DELETE"] | None, Meta(description="the usual one when left out")
    ] = None
    expect: Annotated[
        tuple[Annotated[int, Meta(ge=200, le=499)], ...],
        Meta(max_length=20, description="statuses that mean success; any 2xx when left out"),
    ] = ()
    query: Annotated[dict[str, str], Meta(description="parameters of the call; they may hold {id}")] = {}
    body: Annotated[
        dict[str, Any], Meta(description="what is sent besides the declared fields; texts may hold {id}, {id:number}")
    ] = {}
    wrap: Annotated[str, Meta(description="the field the account is sent under")] = ""
    item: Annotated[str, Meta(description="where the account stands in the answer")] = ""
    items: Annotated[str, Meta(description="lists: where the entries stand in the answer")] = ""
    id: Annotated[str, Meta(description="create: where the id stands in the answer, if not as in an account")] = ""
    rounds: Annotated[
        tuple[dict[str, str], ...],
        Meta(max_length=10, description="list: gone through once with each of these parameters, e.g. for each status"),
    ] = ()

    def __post_init__(self) -> None:
        found = []
        if _PATH.fullmatch(self.path) is None or "//" in self.path or ".." in self.path.split("/"):
            found.append(("path", "must begin with / and hold no ?, # or ..; parameters belong into query"))
        found += [(f"body.{field}", problem) for field in self.body if (problem := field_problem(field, written=True))]
        if not _plain_data(self.body):
            found.append(("body", f"must hold texts, numbers, true and false only, at most {DEPTH_MAX} deep"))
        for name in ("wrap", "item", "items", "id"):
            field = getattr(self, name)
            problem = field_problem(field, written=name == "wrap") if field else ""
            if problem:
                found.append((name, problem))
        if found:
            raise Mistakes(found)

    @property
    def in_path(self) -> set[str]:
        """What the path is filled with."""
        return {found[1:-1] for found in _BRACES.findall(self.path)}

    @property
    def names(self) -> set[str]:
        """What the call is filled with."""
        inner = {name.removesuffix(":number") for name in names_in([self.query, self.body])}
        return self.in_path | inner

    def method_of(self, name: CallName) -> str:
        """The method, the usual one unless the call says another."""
        return self.method or METHODS[name]


def _call_mistakes(name: CallName, call: Call, here: str) -> list[tuple[str, str]]:
    """What is wrong with one call of its kind."""
    found = []
    offers = OFFERS[name]
    for unknown in sorted(call.names - offers):
        known = " and ".join(f"{{{one}}}" for one in sorted(offers)) if offers else "none"
        where = "path" if unknown in call.in_path else "body" if unknown in set(names_in(call.body)) else "query"
        if not offers and unknown in ("id", "value"):
            found.append((f"{here}.{where}", "must not hold {id} or {value}; see identity for look-ups"))
        else:
            found.append((f"{here}.{where}", f"{{{unknown}}} is not known; there is {known}"))
    missing = NEEDS[name] - call.names
    if missing:
        wanted = " and ".join(f"{{{one}}}" for one in sorted(missing))
        found.append((f"{here}.path", f"must hold {wanted}, or query or body must"))
    if name in ("member_add", "member_remove") and not call.names & {"member", "members", "membership"}:
        found.append((f"{here}.path", "must hold {member}, {members} or {membership}, or query or body must"))
    if name in READS and call.wrap:
        found.append((f"{here}.wrap", "means nothing here; reads only"))
    if name in READS and call.body and call.method not in ("POST", "PUT"):
        found.append((f"{here}.body", 'needs method = "POST"'))
    if name in READS and call.method not in (None, "GET", "POST"):
        found.append((f"{here}.method", "must be GET, or POST for a search"))
    if call.rounds and name not in ("list", "group_list"):
        found.append((f"{here}.rounds", "means nothing here; it is for list"))
    if name not in LISTS and call.items:
        found.append((f"{here}.items", "means nothing here; did you mean item?"))
    if name not in ("create", "group_create") and call.id:
        found.append((f"{here}.id", "means nothing here; it is for create"))
    if name not in READS and call.method == "GET":
        found.append((f"{here}.method", "must not be GET, which changes nothing"))
    return found


class Endpoints(Struct, frozen=True, kw_only=True):
    """The calls a product has for users. A product that cannot be listed cannot be reconciled."""

    create: Annotated[Call, Meta(description="makes an account (POST)")]
    update: Annotated[Call, Meta(description="changes an account (PATCH, or PUT with update = replace)")]
    list: Annotated[Call | None, Meta(description="all accounts, page by page (GET)")] = None
    find: Annotated[Call | None, Meta(description="accounts by what identity says (GET)")] = None
    read: Annotated[Call | None, Meta(description="one account (GET)")] = None
    delete: Annotated[Call | None, Meta(description="removes an account (DELETE)")] = None
    activate: Annotated[Call | None, Meta(description="switches an account on (POST)")] = None
    deactivate: Annotated[Call | None, Meta(description="switches an account off (POST)")] = None
    roles: Annotated[Call | None, Meta(description="the roles an account holds (GET), see through")] = None
    grant: Annotated[Call | None, Meta(description="gives {role} to {id} (POST)")] = None
    revoke: Annotated[Call | None, Meta(description="takes {role} from {id} (DELETE)")] = None

    def __post_init__(self) -> None:
        found = []
        for name, call in self.calls().items():
            found += _call_mistakes(name, call, name)
        if found:
            raise Mistakes(found)

    def calls(self) -> dict[CallName, Call]:
        """Those that are declared."""
        names: tuple[UserCall, ...] = (
            "list", "find", "read", "create", "update", "delete",
            "activate", "deactivate", "roles", "grant", "revoke",
        )  # fmt: skip
        return {name: call for name in names if (call := getattr(self, name)) is not None}


class Binding(Struct, frozen=True, kw_only=True):
    """Which field of the product holds an attribute, and how its value becomes the product's."""

    field: Annotated[str, Meta(description="dotted path, phones[type=work].value, or JSON pointer")]
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
    entry: Annotated[str, Meta(description="list: the part of each entry that holds the value, if not the entry")] = ""
    through: Annotated[
        Literal["field", "calls"],
        Meta(description="roles: calls are endpoints.roles, grant and revoke; field is then the role's id in an entry"),
    ] = "field"
    cleared: Annotated[
        Literal["null", "empty", "keep"], Meta(description="what is sent when Entra clears the value")
    ] = "null"
    write: Annotated[Literal["always", "create"], Meta(description="create: never changed afterwards")] = "always"

    def __post_init__(self) -> None:
        found = []
        problem = field_problem(self.field, written=self.through == "field")
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
        if self.entry and self.many != "list":
            found.append(("entry", 'means nothing without many = "list"'))
        elif self.entry and (problem := field_problem(self.entry, written=True)):
            found.append(("entry", problem))
        if found:
            raise Mistakes(found)

    def listed(self, values: Iterable[Any]) -> list[Any]:
        """Values as the product's list has them."""
        if not self.entry:
            return list(values)
        entries: list[dict[str, Any]] = []
        for value in values:
            entry: dict[str, Any] = {}
            put(entry, self.entry, value)
            entries.append(entry)
        return entries

    def unlisted(self, held: Any) -> Any:
        """What the product's list holds, as plain values; anything else as it is."""
        if not self.entry or not isinstance(held, list):
            return held
        return [value for one in held if (value := at(one, self.entry)) is not None]


class Lookup(Struct, frozen=True, kw_only=True):
    """How accounts are found by one attribute. Exactly one of the first five."""

    parameter: Annotated[str, Meta(description="query parameter of the find call")] = ""
    query: Annotated[
        dict[str, str], Meta(description="parameters of the find call with {value} in one of them, e.g. a filter")
    ] = {}
    body: Annotated[dict[str, Any], Meta(description="body of the find call, a search, with {value} in a text")] = {}
    path: Annotated[str, Meta(description="an address with {value}; 404 means nobody")] = ""
    scan: Annotated[bool, Meta(description="read all accounts and compare: small products only")] = False
    escape: Annotated[
        Literal["none", "backslash", "double"],
        Meta(description="how a quote in {value} is written: as it is, after a backslash, or twice"),
    ] = "none"
    item: Annotated[str, Meta(description="path: where the account stands in the answer")] = ""
    exact: Annotated[bool, Meta(description="letter case counts there")] = False

    def __post_init__(self) -> None:
        found = []
        ways = (self.parameter, self.query, self.body, self.path, self.scan)
        if sum(map(bool, ways)) != 1:
            found.append(("parameter", "needs exactly one of parameter, query, body, path and scan = true"))
        if self.path and (_PATH.fullmatch(self.path) is None or _BRACES.findall(self.path) != ["{value}"]):
            found.append(("path", "must begin with / and hold {value} once"))
        for name in ("query", "body"):
            table = getattr(self, name)
            if table and set(names_in(table)) != {"value"}:
                found.append((name, "must hold {value} and nothing else to be filled in"))
        if not _plain_data(self.body):
            found.append(("body", f"must hold texts, numbers, true and false only, at most {DEPTH_MAX} deep"))
        quoted = any("'" in text or '"' in text for text in _texts_with_names([self.query, self.body]))
        if quoted and self.escape == "none":
            found.append(("escape", 'a quoted {value} needs "backslash" or "double": names may hold a quote'))
        if found:
            raise Mistakes(found)

    def escaped(self, value: str) -> str:
        """A value as it stands in a filter: only the quotes that stand around it there need care."""
        quotes = {char for text in _texts_with_names([self.query, self.body]) for char in text if char in "'\""}
        if self.escape == "double":
            return "".join(2 * char if char in quotes else char for char in value)
        if self.escape == "backslash":
            return "".join(f"\\{char}" if char in quotes or char == "\\" else char for char in value)
        return value


def _texts_with_names(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if PLACEHOLDER.search(value):
            yield value
    else:
        for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
            yield from _texts_with_names(inner)


class States(Struct, frozen=True, kw_only=True):
    """How a product says that an account is switched on or off."""

    way: Annotated[Literal["field", "calls"], Meta(description="a field of the account, or calls of their own")] = (
        "field"
    )
    field: Annotated[str, Meta(description="the field; with calls the one that shows the state, if there is one")] = ""
    on: Annotated[Scalar, Meta(description="its value when switched on")] = True
    off: Annotated[Scalar, Meta(description="its value when switched off")] = False
    also_on: Annotated[
        tuple[Scalar, ...], Meta(max_length=20, description="further values that count as on, never written")
    ] = ()
    also_off: Annotated[
        tuple[Scalar, ...], Meta(max_length=20, description="further values that count as off, never written")
    ] = ()

    def __post_init__(self) -> None:
        found = []
        if self.way == "field" and not self.field:
            found.append(("field", 'missing; way = "field" needs it'))
        elif self.field and (problem := field_problem(self.field, written=True)):
            found.append(("field", problem))
        on = {text_of(value).casefold() for value in (self.on, *self.also_on)}
        off = {text_of(value).casefold() for value in (self.off, *self.also_off)}
        if on & off:
            found.append(("off", f"must differ from on: {sorted(on & off)[0]!r} cannot be both"))
        if found:
            raise Mistakes(found)

    def means(self, shown: Any) -> bool | None:
        """True on, False off, None neither: on its way, or not shown."""
        if any(equal(shown, one) for one in (self.on, *self.also_on)):
            return True
        return False if any(equal(shown, one) for one in (self.off, *self.also_off)) else None


class Paging(Struct, frozen=True, kw_only=True):
    """How a list is gone through. A list by POST gets its parameters in the body."""

    way: Annotated[
        Literal["none", "page", "offset", "cursor", "link"],
        Meta(description="one answer, page numbers, offsets, a cursor in the answer, or the header Link (RFC 8288)"),
    ] = "none"
    parameter: Annotated[str, Meta(description="page, offset, cursor: its parameter")] = ""
    first: Annotated[int, Meta(ge=0, le=1, description="page: number of the first; offset: where counting begins")] = 1
    size_parameter: Annotated[str, Meta(description="parameter for the size of a page")] = ""
    size: Annotated[int, Meta(ge=1, le=10_000, description="entries on a page")] = 100
    next: Annotated[
        str,
        Meta(description="cursor: where the next cursor, or the next page's address, stands; header:NAME for a header"),
    ] = ""
    total: Annotated[
        str, Meta(description="page, offset: where the number of all entries stands; header:NAME for a header")
    ] = ""
    pages: Annotated[str, Meta(description="page: where the number of all pages stands; header:NAME for a header")] = ""
    more: Annotated[str, Meta(description="where it stands whether there is more; false ends the list")] = ""

    def __post_init__(self) -> None:
        found = []
        if self.way in ("page", "offset", "cursor") and not self.parameter:
            found.append(("parameter", f'missing; way = "{self.way}" needs it'))
        if self.way == "cursor" and not self.next:
            found.append(("next", 'missing; way = "cursor" needs it'))
        for name, ways in (("next", ("cursor",)), ("total", ("page", "offset")), ("pages", ("page",))):
            field = getattr(self, name)
            if field and self.way not in ways:
                found.append((name, f'means nothing with way = "{self.way}"'))
            elif field and (problem := _read_problem(field)):
                found.append((name, problem))
        if self.more and self.way in ("none", "link"):
            found.append(("more", f'means nothing with way = "{self.way}"'))
        elif self.more and (problem := _read_problem(self.more)):
            found.append(("more", problem))
        if found:
            raise Mistakes(found)


class Members(Struct, frozen=True, kw_only=True):
    """How the members of a group are held: behind calls of their own, or as a field of the group."""

    field: Annotated[
        str, Meta(description="the group's field that holds all members; empty where members have calls of their own")
    ] = ""
    id: Annotated[
        str, Meta(description="where an entry holds the account's id; empty where the entry is the id itself")
    ] = ""
    numbers: Annotated[bool, Meta(description="field: ids are sent as numbers")] = False
    membership: Annotated[
        str, Meta(description="where an entry of endpoints.members holds the membership's own id, for {membership}")
    ] = ""
    per_call: Annotated[int, Meta(ge=1, le=1_000, description="ids in {members} of one call")] = MEMBERS_PER_CALL

    def __post_init__(self) -> None:
        found = [
            (name, problem)
            for name in ("field", "id", "membership")
            if getattr(self, name) and (problem := field_problem(getattr(self, name), written=name != "membership"))
        ]
        if found:
            raise Mistakes(found)


class GroupEndpoints(Struct, frozen=True, kw_only=True):
    """The calls a product has for groups; {id} is the group."""

    create: Annotated[Call, Meta(description="makes a group (POST)")]
    update: Annotated[Call | None, Meta(description="renames a group (PATCH)")] = None
    list: Annotated[Call | None, Meta(description="all groups, page by page (GET)")] = None
    find: Annotated[Call | None, Meta(description="groups by what lookup says (GET)")] = None
    read: Annotated[Call | None, Meta(description="one group (GET)")] = None
    delete: Annotated[Call | None, Meta(description="removes a group, never its users (DELETE)")] = None
    members: Annotated[Call | None, Meta(description="the members of a group, page by page (GET)")] = None
    add: Annotated[Call | None, Meta(description="adds {member}, or {members} (POST)")] = None
    remove: Annotated[Call | None, Meta(description="takes {member}, {members} or {membership} out (DELETE)")] = None

    def __post_init__(self) -> None:
        found = []
        for (name, call), here in zip(self.calls().items(), self._declared(), strict=True):
            found += _call_mistakes(name, call, here)
        if found:
            raise Mistakes(found)

    def _declared(self) -> Iterator[str]:
        yield from (name for name in GROUP_CALLS if getattr(self, name) is not None)

    def calls(self) -> dict[CallName, Call]:
        """Those that are declared, by the names that errors know."""
        return {GROUP_CALLS[name]: getattr(self, name) for name in self._declared()}


GROUP_CALLS: Mapping[str, GroupCall] = {
    "list": "group_list",
    "find": "group_find",
    "read": "group_read",
    "create": "group_create",
    "update": "group_update",
    "delete": "group_delete",
    "members": "members",
    "add": "member_add",
    "remove": "member_remove",
}


class Groups(Struct, frozen=True, kw_only=True):
    """The groups of a product."""

    endpoints: Annotated[GroupEndpoints, Meta(description="the calls the product has for groups")]
    name: Annotated[str, Meta(description="the field that holds a group's name")]
    lookup: Annotated[Lookup, Meta(description="how a group is found by its name")]
    id: Annotated[str, Meta(description="where the id stands in a group; as in an account when left out")] = ""
    external_id: Annotated[str, Meta(description="the field for Entra's id of the group, if there is one")] = ""
    constants: Annotated[dict[str, Scalar], Meta(description="field -> value for every new group")] = {}
    members: Annotated[Members, Meta(description="how members are held")] = Members()
    paging: Annotated[Paging | None, Meta(description="as the product's paging when left out")] = None

    def __post_init__(self) -> None:
        found = []
        for name in ("id", "name", "external_id"):
            field = getattr(self, name)
            if (field or name == "name") and (problem := field_problem(field, written=name != "id")):
                found.append((name, problem))
        found += [
            (f"constants.{field}", problem)
            for field in self.constants
            if (problem := field_problem(field, written=True))
        ]
        calls = self.endpoints
        if self.lookup.scan and calls.list is None:
            found.append(("lookup.scan", "needs endpoints.list"))
        if (self.lookup.parameter or self.lookup.query or self.lookup.body) and calls.find is None:
            found.append(("lookup", "needs endpoints.find"))
        if self.lookup.body and calls.find is not None and calls.find.method != "POST":
            found.append(("lookup.body", 'needs endpoints.find with method = "POST"'))
        if self.members.field:
            for name in ("add", "remove", "members"):
                if getattr(calls, name) is not None:
                    found.append((f"endpoints.{name}", "means nothing with members.field"))
            for name in ("read", "update"):
                if getattr(calls, name) is None:
                    found.append((f"endpoints.{name}", "missing; members.field needs it"))
        else:
            for name in ("add", "remove"):
                if getattr(calls, name) is None:
                    found.append((f"endpoints.{name}", "missing; members come and go by it, or by members.field"))
            needs_list = calls.remove is not None and "membership" in calls.remove.names
            if needs_list and calls.members is None:
                found.append(("endpoints.members", "missing; {membership} is read there"))
            if needs_list and not self.members.membership:
                found.append(("members.membership", "missing; endpoints.remove holds {membership}"))
        if calls.delete is None:
            found.append(("endpoints.delete", "missing; Entra deletes groups that leave its scope"))
        if found:
            raise Mistakes(found)


class Wait(Struct, frozen=True, kw_only=True):
    """Where a product that is asked too often says when to come again, if not in the header Retry-After."""

    at: Annotated[str, Meta(description="a field of the answer, or header:NAME")]
    form: Annotated[
        Literal["seconds", "milliseconds", "epoch"], Meta(description="a time from now, or seconds since 1970")
    ] = "seconds"

    def __post_init__(self) -> None:
        if problem := _read_problem(self.at):
            raise Mistakes([("at", problem)])


class ErrorRule(Struct, frozen=True, kw_only=True):
    """What an answer of the product means; the first rule that fits wins, before the usual meaning of its status."""

    means: Annotated[Meaning, Meta(description="what happens next; done: nothing is left to do")]
    status: Annotated[
        tuple[Annotated[int, Meta(ge=200, le=599)], ...], Meta(max_length=20, description="any when left out")
    ] = ()
    calls: Annotated[tuple[CallName, ...], Meta(max_length=20, description="all when left out")] = ()
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
        if self.field and (problem := field_problem(self.field, written=False)):
            found.append(("field", problem))
        if (self.equals or self.contains) and not self.field:
            found.append(("field", "missing; equals and contains need it"))
        if any(200 <= status < 300 for status in self.status) and not self.field:
            found.append(("status", "a success is an error only by what stands in a field"))
        if self.attribute and (problem := path_problem(self.attribute)):
            found.append(("attribute", problem))
        if (self.means == "blocked") != bool(self.on):
            found.append(("on", 'goes together with means = "blocked": what is awaited'))
        if self.means == "done" and (not self.calls or set(self.calls) & {*READS, "create", "group_create"}):
            found.append(("means", "done needs calls, and only such that change, switch or delete"))
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
            return any(equal(value, one) for one in self.equals)
        if self.contains:
            return isinstance(value, str) and self.contains.casefold() in value.casefold()
        return value not in (None, "", False, [], {})


# Settings -------------------------------------------------------------------------------------------------------------


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
    id_form: Annotated[
        Literal["value", "address"],
        Meta(description="address: the id is the last part of an address that stands there"),
    ] = "value"
    id_from: Annotated[
        Literal["answer", "location", "lookup"],
        Meta(description="a new account's id: in the answer, at the end of the header Location, or looked up"),
    ] = "answer"
    active: Annotated[States | None, Meta(description="how users are switched on and off")] = None
    constants: Annotated[dict[str, Scalar], Meta(description="field -> value for every account")] = {}
    update: Annotated[
        Literal["partial", "replace", "json_patch"],
        Meta(description="send what differs, or read, merge and send everything, or operations (RFC 6902)"),
    ] = "partial"
    nested: Annotated[
        Literal["whole", "part"],
        Meta(description="partial: of an object that changes in part everything is sent, or what changes"),
    ] = "whole"
    encoding: Annotated[
        Literal["json", "form"], Meta(description="of bodies; a form writes nested fields as contact[email]")
    ] = "json"
    media_type: Annotated[str, Meta(description="of JSON bodies")] = "application/json"
    read_only: Annotated[
        tuple[str, ...], Meta(max_length=FIELDS_MAX, description="fields as read that are never sent back")
    ] = ()
    paging: Annotated[Paging, Meta(description="how lists are gone through")] = Paging()
    groups: Annotated[Groups | None, Meta(description="the product's groups, if Entra shall keep them")] = None
    errors: Annotated[
        tuple[ErrorRule, ...], Meta(max_length=RULES_MAX, description="what the product's errors mean")
    ] = ()
    message: Annotated[str, Meta(description="where an error's sentence stands; the usual places when left out")] = ""
    wait: Annotated[Wait | None, Meta(description="when to come again after 429, if not in Retry-After")] = None
    headers: Annotated[
        dict[str, str], Meta(description="headers of every call, e.g. a version; never a credential")
    ] = {}
    query: Annotated[dict[str, str], Meta(description="parameters of every call, e.g. a version")] = {}
    idempotency_header: Annotated[
        str, Meta(description="the header by which the product knows a repeated write, if it has one")
    ] = ""
    foreign: Annotated[
        Literal["refuse", "adopt"], Meta(description="an account found that carries another externalId")
    ] = "refuse"
    on_delete: Annotated[Literal["delete", "deactivate"], Meta(description="what a SCIM DELETE does there")] = "delete"
    off_before_delete: Annotated[bool, Meta(description="an account is switched off before it is deleted")] = False
    rate_limit: Annotated[CallRate | None, Meta(description="the product's limit, shared by all workers")] = None
    concurrency_max: Annotated[int, Meta(ge=1, le=64, description="calls at once per worker")] = CONCURRENCY
    body_bytes_max: Annotated[
        int,
        Meta(ge=1_024, le=32 * 1024 * 1024, description="longest answer, for products that list everything at once"),
    ] = 1024 * 1024
    allow_loopback: Annotated[bool, Meta(description="for emulators: permits http to this machine")] = False

    def __post_init__(self) -> None:
        found = address_mistakes(self.base_url, self.auth, allow_loopback=self.allow_loopback)
        found += self._attribute_mistakes()
        found += self._identity_mistakes()
        found += self._needs()
        for name in ("id", "message"):
            if getattr(self, name) and (problem := field_problem(getattr(self, name), written=False)):
                found.append((name, problem))
        found += [
            ("read_only", f"{field} {problem}")
            for field in self.read_only
            if (problem := field_problem(field, written=True))
        ]
        if _MEDIA_TYPE.fullmatch(self.media_type) is None:
            found.append(("media_type", "must be like application/vnd.api+json"))
        for header in (*self.headers, *filter(None, (self.idempotency_header,))):
            if _HEADER.fullmatch(header) is None:
                found.append((f"headers.{header}", "is not the name of a header"))
            elif header.casefold() in _RESERVED_HEADERS or header.casefold() in self.auth.header_names():
                found.append((f"headers.{header}", "is not set here; credentials belong into auth"))
        found += [
            (f"headers.{name}", "must be plain text on one line")
            for name, value in self.headers.items()
            if any(ord(char) < 32 or ord(char) > 126 for char in value)
        ]
        if found:
            raise Mistakes(found)

    def calls(self) -> dict[CallName, Call]:
        """Every declared call, of users and of groups."""
        calls = self.endpoints.calls()
        if self.update == "replace" and calls["update"].method is None:
            calls["update"] = msgspec.structs.replace(calls["update"], method="PUT")
        return {**calls, **(self.groups.endpoints.calls() if self.groups is not None else {})}

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
            if (problem := field_problem(field, written=True))
        ]
        for path, binding in self.attributes.items():
            here = f"attributes.{path}"
            if path == "active":
                found.append((here, "is told in the table active"))
                continue
            if problem := path_problem(path):
                found.append((here, problem))
            if path == MANAGER and (
                binding.required or set(binding.transforms) - {"integer"} or binding.values or binding.write == "create"
            ):
                found.append((here, 'is an id of the product; only field, cleared and transforms = ["integer"] fit'))
            if binding.through == "calls":
                found += self._through_calls(path, binding, here)
                continue
            if path == "roles" and binding.many == "one" and not binding.values:
                found.append((f"{here}.many", 'users may have several roles: "list", "joined", or values for one'))
            where = place(binding.field)
            other = next((name for held, name in taken.items() if held[: len(where)] == where[: len(held)]), None)
            if other is not None:
                found.append((f"{here}.field", f"is written by {other} too"))
            taken[where] = here
        return found

    def _through_calls(self, path: str, binding: Binding, here: str) -> list[tuple[str, str]]:
        found = []
        if path != "roles":
            found.append((f"{here}.through", '"calls" is for roles only'))
        if binding.many != "one" or binding.write == "create":
            found.append((here, 'many and write mean nothing with through = "calls": roles come and go one by one'))
        found += [
            (f"endpoints.{name}", f'missing; {here}.through = "calls" needs it')
            for name in ("roles", "grant", "revoke")
            if getattr(self.endpoints, name) is None
        ]
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
            elif binding.many != "one" or binding.through == "calls":
                found.append((here, "has several values, so nobody can be found by it"))
            elif not binding.required and path == next(iter(self.identity)):
                found.append((f"attributes.{path}.required", "must be true: accounts are found by it"))
            if binding is not None and binding.field == self.id and binding.write == "always":
                found.append(
                    (
                        f"attributes.{path}.write",
                        'must be "create": this field is the account\'s id, which never changes',
                    )
                )
            find = self.endpoints.find
            asked = [name for name in ("parameter", "query", "body") if getattr(lookup, name)]
            found += [(f"{here}.{name}", "needs endpoints.find") for name in asked if find is None]
            if lookup.body and find is not None and find.method != "POST":
                found.append((f"{here}.body", 'needs endpoints.find with method = "POST"'))
            if lookup.scan and self.endpoints.list is None:
                found.append((f"{here}.scan", "needs endpoints.list"))
            twice = [name for name in (lookup.parameter, *lookup.query) if find is not None and name in find.query]
            found += [(f"{here}.parameter", f"{name} is in endpoints.find.query already") for name in twice]
        return found

    def _needs(self) -> list[tuple[str, str]]:
        """Calls that other settings cannot do without."""
        found = []
        by_calls = self.active is not None and self.active.way == "calls"
        needs: list[tuple[str, bool, str]] = [
            ("read", self.update == "replace", 'update = "replace"'),
            ("read", self.update == "json_patch", 'update = "json_patch"'),
            ("delete", self.on_delete == "delete", 'on_delete = "delete"'),
            ("activate", by_calls, 'active.way = "calls"'),
            ("deactivate", by_calls, 'active.way = "calls"'),
        ]
        for name, needed, why in needs:
            if needed and getattr(self.endpoints, name) is None:
                found.append((f"endpoints.{name}", f"missing; {why} needs it"))
        if self.on_delete == "deactivate" and self.active is None:
            found.append(("active", 'missing; on_delete = "deactivate" needs it'))
        if self.off_before_delete and self.active is None:
            found.append(("off_before_delete", "needs active"))
        if self.update == "json_patch" and self.encoding == "form":
            found.append(("encoding", 'a form cannot hold the operations of update = "json_patch"'))
        if self.paging.way != "none" and self.endpoints.list is None:
            found.append(("paging", "needs endpoints.list"))
        if self.endpoints.list is not None:
            used = {self.paging.parameter, self.paging.size_parameter} & set(self.endpoints.list.query)
            found += [("endpoints.list.query", f"{name} is set by paging") for name in sorted(used)]
        return found
