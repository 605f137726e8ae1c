"""Requests out of the grammars of SCIM, broken a little: filters, PATCH paths, bodies, bulks, cursors, headers, methods.

Every request comes from a `Random` of its own, so the same seed and number give the same request; only ids that the gateway made
up, and cursors that it handed out, differ from run to run.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from random import Random
from typing import Any
from urllib.parse import quote

from msgspec import Struct, field

from tests.gateway.wire import Shot

CORE = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP = "urn:ietf:params:scim:schemas:core:2.0:Group"
ENTERPRISE = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
OWN = "urn:ietf:params:scim:schemas:extension:Telephony:2.0:User"
PATCH_OP = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
BULK = "urn:ietf:params:scim:api:messages:2.0:BulkRequest"
SEARCH = "urn:ietf:params:scim:api:messages:2.0:SearchRequest"
NAMES_MAX = 300
"""People and groups are named out of so many names: most creations meet somebody of that name."""
CURSORS_MAX = 200
NEST_MAX = 60

SIMPLE = (
    "userName",
    "displayName",
    "title",
    "active",
    "externalId",
    "id",
    "locale",
    "profileUrl",
    "nickName",
    "password",
)
PLURAL = (
    "emails",
    "phoneNumbers",
    "addresses",
    "roles",
    "ims",
    "entitlements",
    "x509Certificates",
    "members",
    "groups",
)
SUBS = (
    "value",
    "type",
    "primary",
    "display",
    "$ref",
    "formatted",
    "locality",
    "familyName",
    "givenName",
    "displayName",
)
ODD = (
    "name",
    "meta",
    "meta.created",
    "meta.lastModified",
    "schemas",
    "manager",
    "manager.value",
    "name.familyName",
    "colour",
)
OPERATORS = ("eq", "ne", "co", "sw", "ew", "gt", "ge", "lt", "le", "pr", "EQ", "Pr", "in", "")
TEXTS = (
    "", " ", "ada", "Ada@contoso.example", "%", "*", "_", "'", '"', "\\", "\\u0000", "\0", "\x7f", "\u2028", "\u202e", "\ufeff",
    "ß", "ẞ", "İ", "ı", "ﬁ", "K", "e\u0301", "é", "😀", "\U0010ffff", "ａｄａ", "аdа", "' OR 1=1 --", "$(id)", "${jndi:x}",
    "../../etc", "a" * 300, "a" * 5_000, "true", "False", "null", "0", "-1", "1e999", "NaN", "2026-01-31T08:00:00Z",
    "2026-13-99T99:99:99Z", "9999-12-31T23:59:59.999999999+99:99", "urn:a:b", f"{CORE}:userName", "work", "value",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2**31, 2**53, 2**63, 2**64, -(2**63) - 1, 10**30, 0.1, -0.0, 1e308, 5e-324,
)  # fmt: skip
RAW_NUMBERS = (b"1e999", b"-1e999", b"NaN", b"Infinity", b"1" * 400, b"0x10", b"01", b"1.", b".5", b"+1", b"1e", b"--1")
MEDIA_TYPES = (
    b"application/scim+json", b"application/json", b"application/json; charset=utf-16", b"text/plain", b"", b"*/*", b"\xff",
    b"application/xml", b"multipart/form-data; boundary=x", b"application/x-www-form-urlencoded", b"APPLICATION/JSON ;;;",
)  # fmt: skip
METHODS = (
    b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"HEAD", b"OPTIONS", b"TRACE", b"PROPFIND", b"get", b"QUERY", b"LINK",
    b"M-SEARCH", b"X", b"PURGE",
)  # fmt: skip


class Known(Struct):
    """What the requests may name: resources that exist, of this target and of another, and cursors that were handed out."""

    target: str
    users: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    cursors: list[str] = field(default_factory=list)

    def learn(self, document: Any) -> None:
        """Keep the cursor of an answer."""
        cursor = document.get("nextCursor") if isinstance(document, dict) else None
        if cursor:
            self.cursors = [*self.cursors[-CURSORS_MAX:], cursor]


def generated(seed: int, number: int, known: Known) -> Shot:
    """The request of this number."""
    rng = Random(f"{seed}:{number}")
    kind = rng.choices(tuple(KINDS), weights=[weight for weight, _ in KINDS.values()])[0]
    return KINDS[kind][1](rng, known)


# ---- texts


def mutated(rng: Random, text: str) -> str:
    """The same text with a few characters lost, doubled, swapped, or strange."""
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 5))):
        at = rng.randrange(len(text) + 1)
        strange = rng.choice(
            ('"', "[", "]", "(", ")", " ", ".", ":", "\\", ",", rng.choice(TEXTS), chr(rng.randrange(1, 0xD800)))
        )
        text = rng.choice(
            (
                text[:at] + strange + text[at:],
                text[:at] + text[at + 1 :],
                text[:at] + text[at : at + 9] + text[at:],
                text[:at] + strange + text[at + 1 :],
                text[:at],
                text[at:] + text[:at],
            )
        )
    return text


def attribute_path(rng: Random, depth: int = 0) -> str:
    """A path of a filter or of a PATCH operation (RFC 7644 figures 1 and 7)."""
    path = rng.choice((rng.choice(SIMPLE), rng.choice(PLURAL), rng.choice(ODD)))
    if path in PLURAL and rng.random() < 0.5 and depth < 3:
        path += f"[{condition(rng, depth + 1, inside=True)}]"
    if rng.random() < 0.4:
        path += "." + rng.choice(SUBS)
    urn = rng.random()
    if urn < 0.2:
        path = f"{rng.choice((CORE, ENTERPRISE, OWN, GROUP, 'urn:x', CORE.upper()))}:{path}"
    elif urn < 0.23:
        path = rng.choice((CORE, ENTERPRISE, OWN))
    return path if rng.random() < 0.8 else rng.choice((path.upper(), path.lower(), path.title()))


def literal(rng: Random) -> str:
    """A value of a comparison."""
    text = rng.choice(TEXTS)
    return rng.choice(
        (json.dumps(text), json.dumps(text, ensure_ascii=False), f'"{text}"', text, str(rng.choice(NUMBERS)), "true")
    )


def condition(rng: Random, depth: int = 0, *, inside: bool = False) -> str:
    """A filter."""
    kind = rng.random()
    if depth < 10 and kind < 0.15:
        word = rng.choice(("and", "or", "AND", "Or"))
        return f" {word} ".join(condition(rng, depth + 2, inside=inside) for _ in range(rng.choice((2, 2, 3, 8))))
    if depth < 12 and kind < 0.25:
        return f"{rng.choice(('', 'not ', 'NOT', 'not'))}({condition(rng, depth + 1, inside=inside)})"
    if kind < 0.27:
        return "(" * rng.randrange(1, 40) + "id pr" + ")" * rng.randrange(1, 40)
    path = rng.choice(SUBS) if inside else attribute_path(rng, depth)
    operator = rng.choice(OPERATORS)
    return f"{path} {operator}" if operator.lower() == "pr" else f"{path} {operator} {literal(rng)}"


def encoded(rng: Random, text: str) -> bytes:
    """A text as a value in a query string, in one of the ways clients have, or in none of them."""
    data = text.encode("utf-8", "surrogatepass")
    way = rng.random()
    if way < 0.6:
        return quote(data, safe="").encode()
    if way < 0.8:
        return quote(data, safe=' "[]()@.:').replace(" ", "+").encode()
    if way < 0.9:
        return quote(data, safe="").encode() + rng.choice(
            (b"%", b"%2", b"%zz", b"%00", b"%ff%fe", b"%c0%80", b"&&", b"=", b"#", b"")
        )
    return bytes(byte for byte in data if byte > 32 and byte != 127)


# ---- values


def value(rng: Random, depth: int = 0) -> Any:
    """Any JSON value."""
    kind = rng.random()
    if depth < 4 and kind < 0.15:
        return [value(rng, depth + 1) for _ in range(rng.choice((0, 1, 1, 2, 6)))]
    if depth < 4 and kind < 0.35:
        return {rng.choice((*SUBS, *SIMPLE, *TEXTS)): value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 3, 6)))}
    if kind < 0.7:
        return rng.choice(TEXTS)
    return rng.choice((None, True, False, *NUMBERS))


def name_of(rng: Random) -> str:
    """A userName or displayName, out of a bounded number."""
    return f"person-{rng.randrange(NAMES_MAX)}@contoso.example"


def user(rng: Random, known: Known) -> dict[str, Any]:
    """A user, with some attributes of wrong types."""
    document: dict[str, Any] = {"schemas": [CORE], "userName": name_of(rng)}
    if rng.random() < 0.3:
        return document | {"active": "True", "title": rng.choice(TEXTS[:3]), "emails": [{"type": "work", "value": "a"}]}
    for _ in range(rng.choice((0, 1, 3, 8))):
        name = rng.choice((*SIMPLE, *PLURAL, *ODD, ENTERPRISE, OWN, CORE, *TEXTS))
        if name != "userName" or rng.random() < 0.1:
            document[name] = value(rng) if rng.random() < 0.6 else entry(rng, known)
    return document


def entry(rng: Random, known: Known) -> Any:
    """Something that is nearly right for a multi-valued attribute."""
    held = {
        "type": rng.choice(("work", "home", "mobile")),
        "value": rng.choice((*TEXTS, *known.users[:3])),
        "primary": rng.choice((True, "True", 1)),
    }
    return rng.choice(([held], held, [held, held], held["value"], [held["value"]]))


def group(rng: Random, known: Known) -> dict[str, Any]:
    """A group with members that exist, that do not, and that are none."""
    some = [rng.choice((*known.users, *known.groups, *known.foreign, *TEXTS)) for _ in range(rng.choice((0, 1, 3, 20)))]
    members: Any = [{"value": member} for member in some]
    if rng.random() < 0.2:
        members = value(rng)
    return {"schemas": [GROUP], "displayName": name_of(rng), "members": members}


def operations(rng: Random, known: Known) -> dict[str, Any]:
    """A PATCH message; four in ten are right."""
    listed: list[Any] = []
    if rng.random() < 0.4:
        return {"schemas": [PATCH_OP], "Operations": [fitting(rng, known) for _ in range(rng.choice((1, 1, 2, 6)))]}
    for _ in range(rng.choice((1, 1, 1, 2, 5, 40))):
        operation: dict[str, Any] = {
            "op": rng.choice(("add", "replace", "remove", "Add", "Replace", "Remove", "REMOVE"))
        }
        if rng.random() < 0.85:
            operation["path"] = mutated(rng, attribute_path(rng)) if rng.random() < 0.6 else attribute_path(rng)
        if rng.random() < 0.85:
            kind = rng.random()
            operation["value"] = user(rng, known) if kind < 0.15 else entry(rng, known) if kind < 0.5 else value(rng)
        if rng.random() < 0.05:
            operation[rng.choice(("op", "path", "OP", "Value", "x"))] = value(rng)
        listed.append(operation if rng.random() < 0.97 else value(rng))
    return {"schemas": [PATCH_OP], "Operations": listed if rng.random() < 0.97 else value(rng)}


def fitting(rng: Random, known: Known) -> dict[str, Any]:
    """An operation as clients send it, of a user or a group."""
    text = rng.choice(("", "a", "ß😀", "Engineer", "' OR 1=1 --", "True"))
    kind = rng.choice(("work", "home", "mobile"))
    path, held = rng.choice(
        (
            ("title", text),
            ("displayName", name_of(rng)),
            ("active", rng.choice((True, "False", "true"))),
            ("name.familyName", text),
            ("name", {"givenName": text}),
            (f'emails[type eq "{kind}"].value', text),
            (f'phoneNumbers[type eq "{kind}"]', {"value": text, "type": kind}),
            ("roles", [{"value": text, "primary": True}]),
            (f"{ENTERPRISE}:department", text),
            (f"{ENTERPRISE}:manager", {"value": rng.choice(known.users)}),
            (f"{OWN}:floor", rng.choice(NUMBERS)),
            ("members", [{"value": rng.choice((*known.users, *known.foreign))}]),
            (f'members[value eq "{rng.choice(known.users)}"]', None),
        )
    )
    return {"op": rng.choice(("add", "replace", "remove", "Replace")), "path": path, "value": held}


def as_bytes(rng: Random, document: Any) -> bytes:
    """A body, mostly as JSON should be."""
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    data = text.encode("utf-8", "surrogatepass")
    way = rng.random()
    if way < 0.75:
        return data
    at = rng.randrange(len(data) + 1)
    odd: tuple[Callable[[], bytes], ...] = (
        lambda: b"\xef\xbb\xbf" + data,
        lambda: text.encode("utf-16", "surrogatepass"),
        lambda: data[:at],
        lambda: data + b"}",
        lambda: data[:at] + bytes((rng.randrange(256),)) + data[at + 1 :],
        lambda: data[:-1] + b',"userName":"twice"}',
        lambda: data[:-1] + b',"x":' + rng.choice(RAW_NUMBERS) + b"}",
        lambda: data[:-1] + b',"x":"\\ud800"}',
        lambda: data[:-1] + b',"x":"\xed\xa0\x80"}',
        lambda: data[:-1] + b',"x":"\\u0000"}',
        lambda: data[:-1] + b',"x":' + b'[{"a":' * NEST_MAX + b"1" + b"}]" * NEST_MAX + b"}",
        lambda: b"[" * 5_000,
        lambda: b'{"a":' * 5_000,
        lambda: b"",
        lambda: json.dumps(value(rng)).encode(),
        lambda: b"// comment\n" + data,
        lambda: data.replace(b'"', b"'"),
        lambda: b"\0" + data,
    )
    return rng.choice(odd)()


# ---- requests


def place(rng: Random, known: Known, kind: str, resource: str | None = None) -> bytes:
    """An address below the Tenant URL."""
    path = f"/scim/v2/{known.target}/{kind}"
    if resource is not None:
        path += f"/{resource}"
    if rng.random() < 0.1:
        path += rng.choice(("/", "//", "/x", "/%2e%2e", ";a=b", "%00", "/.search"))
    query = b""
    if rng.random() < 0.1:
        query = (
            b"?"
            + rng.choice((b"attributes=", b"excludedAttributes=", b"aadOptscim062020", b""))
            + encoded(rng, attribute_path(rng))
        )
    return path.encode() + query


def resource(rng: Random, known: Known, kind: str) -> str:
    """An id: mostly one that exists."""
    held = known.users if kind == "Users" else known.groups
    odd = quote(rng.choice(TEXTS), safe="") or "x"
    return rng.choices((rng.choice(held), rng.choice(known.foreign), odd[:900]), weights=(8, 1, 1))[0]


def collection(rng: Random) -> str:
    """Mostly people."""
    return rng.choice(("Users", "Users", "Users", "Groups"))


def odd_headers(rng: Random) -> tuple[tuple[bytes, bytes], ...]:
    """Headers a write may carry, right and wrong."""
    text = rng.choice(TEXTS).encode("utf-8")
    text = bytes(byte for byte in text if byte > 31 and byte != 127)
    held = [
        (b"If-Match", rng.choice((b"*", b'W/"1"', b'"x"', b",", text))),
        (b"If-None-Match", rng.choice((b"*", b'W/"1"', text))),
        (b"Prefer", rng.choice((b"respond-async", b"respond-async, wait=0", b"wait=99999999999", text))),
        (b"Content-Type", rng.choice(MEDIA_TYPES)),
        (b"Accept", rng.choice((b"text/html", b"*/*;q=0", text))),
        (b"Content-Encoding", rng.choice((b"gzip", b"br", b"identity"))),
        (b"traceparent", rng.choice((b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"ff-0-0-0", text))),
        (b"Host", rng.choice((b"127.0.0.1", b"evil.example:99999", b"", text))),
        (b"X-Forwarded-For", rng.choice((b"127.0.0.1", text))),
        (b"X-HTTP-Method-Override", b"DELETE"),
        (b"Range", b"bytes=0-1"),
        (b"Expect", rng.choice((b"100-continue", b"200-ok"))),
        (b"Accept-Encoding", b"gzip"),
        (b"Cookie", b"a=b" * 50),
        (b"Authorization", rng.choice((b"Bearer {token}", b"Bearer {token}x", b"Basic e30=", b"Bearer", b"", text))),
        (b"X-Long", b"a" * rng.choice((10, 5_000, 17_000))),
    ]
    return tuple(rng.sample(held, rng.choice((1, 1, 2, 4))))


def search(rng: Random, known: Known) -> Shot:
    """A question with a filter."""
    text = condition(rng)
    asked = b"?filter=" + encoded(rng, mutated(rng, text) if rng.random() < 0.5 else text)
    if rng.random() < 0.2:
        asked += (
            b"&"
            + rng.choice((b"count", b"startIndex", b"attributes", b"filter", b"sortBy", b""))
            + b"="
            + encoded(rng, literal(rng))
        )
    return Shot(kind="filter", path=f"/scim/v2/{known.target}/{collection(rng)}".encode() + asked)


def posted(rng: Random, known: Known) -> Shot:
    """A search in a body."""
    document: dict[str, Any] = {"schemas": [SEARCH], "filter": condition(rng), "count": rng.choice(NUMBERS)}
    if rng.random() < 0.5:
        document[rng.choice(("attributes", "excludedAttributes", "cursor", "startIndex", "filter", *TEXTS))] = value(
            rng
        )
    where = rng.choice(("Users/.search", "Groups/.search", ".search"))
    return Shot(
        kind="posted search",
        method=b"POST",
        path=f"/scim/v2/{known.target}/{where}".encode(),
        body=as_bytes(rng, document),
    )


def paged(rng: Random, known: Known) -> Shot:
    """A page by cursor or by index."""
    if rng.random() < 0.3 or not known.cursors:
        query = f"?cursor=&count={rng.choice((1, 2, 5, 0, 'x', 10**20))}"
    elif rng.random() < 0.5:
        cursor = mutated(rng, rng.choice(known.cursors))
        query = f"?cursor={quote(cursor, safe='')}"
    elif rng.random() < 0.5:
        sealed = bytearray(base64.urlsafe_b64decode(rng.choice(known.cursors) + "=="))
        sealed[rng.randrange(len(sealed))] ^= 1 << rng.randrange(8)
        query = "?cursor=" + base64.urlsafe_b64encode(bytes(sealed)).decode().rstrip("=")
    else:
        query = f"?startIndex={rng.choice(NUMBERS)}&count={rng.choice((*NUMBERS, *range(5)))}"
    return Shot(kind="page", path=f"/scim/v2/{known.target}/{collection(rng)}{query}".encode())


def read(rng: Random, known: Known) -> Shot:
    """One resource, or something of discovery."""
    if rng.random() < 0.2:
        kind = rng.choice(
            ("Schemas", "ResourceTypes", "ServiceProviderConfig", "Events", "Me", "Bulk", "users", "Schemas/urn:x")
        )
        return Shot(kind="read", path=place(rng, known, kind), headers=odd_headers(rng))
    kind = collection(rng)
    return Shot(kind="read", path=place(rng, known, kind, resource(rng, known, kind)), headers=odd_headers(rng))


def created(rng: Random, known: Known) -> Shot:
    """A POST."""
    kind = collection(rng)
    document = user(rng, known) if kind == "Users" else group(rng, known)
    headers = odd_headers(rng) if rng.random() < 0.15 else ()
    return Shot(
        kind="create", method=b"POST", path=place(rng, known, kind), body=as_bytes(rng, document), headers=headers
    )


def replaced(rng: Random, known: Known) -> Shot:
    """A PUT."""
    kind = collection(rng)
    document = user(rng, known) if kind == "Users" else group(rng, known)
    headers = odd_headers(rng) if rng.random() < 0.15 else ()
    where = place(rng, known, kind, resource(rng, known, kind))
    return Shot(kind="replace", method=b"PUT", path=where, body=as_bytes(rng, document), headers=headers)


def changed(rng: Random, known: Known) -> Shot:
    """A PATCH."""
    kind = collection(rng)
    headers = odd_headers(rng) if rng.random() < 0.15 else ()
    where = place(rng, known, kind, resource(rng, known, kind))
    return Shot(kind="change", method=b"PATCH", path=where, body=as_bytes(rng, operations(rng, known)), headers=headers)


def bulk(rng: Random, known: Known) -> Shot:
    """Many at once, with references between them."""
    listed: list[Any] = []
    for number in range(rng.choice((0, 1, 2, 4, 10))):
        kind = collection(rng)
        method = rng.choice(
            ("POST", "PUT", "PATCH", "post", "GET", "DELETE") if rng.random() < 0.3 else ("POST", "PUT", "PATCH")
        )
        path = (
            f"/{kind}"
            if method == "POST"
            else f"/{kind}/{rng.choice((resource(rng, known, kind), f'bulkId:b{number}'))}"
        )
        data: Any = (
            operations(rng, known) if method == "PATCH" else user(rng, known) if kind == "Users" else group(rng, known)
        )
        if rng.random() < 0.3 and isinstance(data, dict):
            data["members"] = [{"value": f"bulkId:b{rng.randrange(10)}"}]
        operation = {"method": method, "path": path, "bulkId": f"b{number}", "data": data}
        if rng.random() < 0.2:
            operation[rng.choice(("method", "path", "bulkId", "data", "version"))] = value(rng)
        listed.append(operation)
    document = {"schemas": [BULK], "Operations": listed, "failOnErrors": rng.choice((1, 0, -1, None, "1", 10**30))}
    return Shot(
        kind="bulk", method=b"POST", path=f"/scim/v2/{known.target}/Bulk".encode(), body=as_bytes(rng, document)
    )


def odd_method(rng: Random, known: Known) -> Shot:
    """Any method anywhere."""
    kind = rng.choice(("Users", "Groups", "Bulk", "Schemas", ".search", "Users/.search", "", "Events/x"))
    body = as_bytes(rng, value(rng)) if rng.random() < 0.5 else None
    return Shot(kind="method", method=rng.choice(METHODS), path=place(rng, known, kind), body=body)


def odd_address(rng: Random, known: Known) -> Shot:
    """Addresses that are none."""
    parts = [quote(rng.choice(TEXTS), safe=rng.choice(("", "/", "%"))) for _ in range(rng.choice((1, 2, 5)))]
    base = rng.choice(
        ("/", f"/scim/v2/{known.target}/", "/scim/", "/oauth2/", "//", "/api/v1/", "/health/", "/scim/v2//Users/")
    )
    text = base + "/".join(parts)
    clean = bytes(byte for byte in text.encode() if byte > 32 and byte != 127)
    return Shot(kind="address", method=rng.choice((b"GET", b"POST")), path=clean, headers=odd_headers(rng))


def token(rng: Random, known: Known) -> Shot:
    """The token endpoint."""
    names = (
        "grant_type",
        "client_id",
        "client_secret",
        "client_assertion",
        "client_assertion_type",
        "scope",
        *TEXTS[:12],
    )
    pairs = [
        (rng.choice(names), rng.choice((*TEXTS, "client_credentials", known.target)))
        for _ in range(rng.choice((0, 1, 3, 30)))
    ]
    body = b"&".join(encoded(rng, name) + b"=" + encoded(rng, text) for name, text in pairs)
    basic = base64.b64encode(f"{rng.choice(TEXTS)}:{rng.choice(TEXTS)}".encode("utf-8", "surrogatepass"))
    headers: tuple[tuple[bytes, bytes], ...] = (
        (b"Content-Type", rng.choice((b"application/x-www-form-urlencoded", *MEDIA_TYPES))),
        (b"Authorization", rng.choice((b"Basic " + basic, b"Basic", b"Basic \xff", b"Bearer {token}"))),
    )
    where = f"/oauth2/{rng.choice((known.target, 'nobody', '%00', ''))}/token".encode()
    return Shot(
        kind="token",
        method=rng.choice((b"POST", b"POST", b"GET")),
        path=where,
        body=body,
        headers=headers[rng.randrange(2) :],
    )


def noise(rng: Random, known: Known) -> Shot:
    """A body sent in pieces, too much of it, or a header section that is none, on a connection of its own."""
    top = b"POST /scim/v2/%s/Users HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n" % known.target.encode()
    data = as_bytes(rng, user(rng, known))
    way = rng.randrange(6)
    if way == 0:
        at = rng.randrange(len(data) + 1)
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:at], data[at:]) if part)
        raw = top + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    elif way == 1:
        raw = bytes(rng.randrange(256) for _ in range(rng.choice((5, 50, 500)))) + b"\r\n\r\n"
    elif way == 2:
        raw = top + b"Content-Length: %s\r\n\r\n" % rng.choice((b"-1", b"+5", b"1e3", b"0x10", b"9" * 30, b"", b"5, 5"))
    elif way == 3:
        raw = top + bytes(rng.randrange(1, 256) for _ in range(30)) + b": x\r\n\r\n"
    elif way == 4:
        raw = (
            top
            + b"Transfer-Encoding: chunked\r\n\r\n"
            + rng.choice((b"zz\r\n", b"-1\r\n\r\n", b"f" * 40 + b"\r\n", b"5;" + b"x" * 99 + b"\r\nabc"))
        )
        raw += b"\r\n\r\n0\r\n\r\n"
    else:
        raw = top.replace(b"HTTP/1.1", rng.choice((b"HTTP/9.9", b"HTTP/1.0", b"HTTP/2", b"", b"ICE/1.0"))) + b"\r\n"
    return Shot(kind="noise", raw=raw, answers_max=9, silent=True)


KINDS: dict[str, tuple[float, Callable[[Random, Known], Shot]]] = {
    "filter": (22, search),
    "posted search": (6, posted),
    "page": (6, paged),
    "read": (10, read),
    "create": (12, created),
    "replace": (7, replaced),
    "change": (20, changed),
    "bulk": (3, bulk),
    "method": (4, odd_method),
    "address": (5, odd_address),
    "token": (4, token),
    "noise": (1, noise),
}
"""How often, and who makes them."""
