"""Products that speak SCIM themselves: a small client, and the forms in which Entra's values arrive (vendor page, 0.2).

The client does one call per method and knows no product; what differs between products is decided by the connector.
"""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import UNSET, UnsetType

from connectors.contract import Delivery, VendorHttp, VendorResponse
from connectors.http import error_of
from schemas.errors import Blocked, Gone, Misconfigured, Rejected, Unavailable
from schemas.resources import ENTERPRISE_SCHEMA, User
from schemas.specs import Spec

LIST_PAGE = 100
MEMBERS_PER_CALL = 100
FEATURES_KEEP_S = 3600.0
UNWRAP_DEPTH_MAX = 4
VALUES_MAX = 1_000
GROUP_BYTES_MAX = 16 * 1024 * 1024
"""Longest answer of a product with groups: all members of a group stand in one."""
PATCH_SCHEMA = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
MEDIA_TYPE = "application/scim+json"

_ID = re.compile(r"[A-Za-z0-9_{(][A-Za-z0-9_.:@=+~|!$',;(){}-]{0,254}")
"""No blank, slash, backslash, percent sign, question mark or hash: what would mean something else in an address."""
_VALUE_KEYS = ("value", "display", "displayName")


def texts(value: Any, *, depth: int = 0) -> list[str]:
    """The texts in an attribute's value, whatever form Entra gave it, in order.

    Takes a text, JSON inside a text (complex app-role mapping), a list, and role objects (`value` before `display`). Null, unset
    and empty values give nothing.
    """
    if value is None or value is UNSET or depth > UNWRAP_DEPTH_MAX:
        return []
    if isinstance(value, str):
        inner = _json_inside(value)
        return texts(inner, depth=depth + 1) if inner is not None else ([value] if value.strip() else [])
    if isinstance(value, (list, tuple)):
        return [text for entry in value[:VALUES_MAX] for text in texts(entry, depth=depth + 1)]
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value)
    if isinstance(value, Mapping):
        found = next((value[key] for key in _VALUE_KEYS if value.get(key) not in (None, "")), None)
        return texts(found, depth=depth + 1)
    return [str(value)]


def _json_inside(text: str) -> Any:
    stripped = text.strip()
    if not stripped.startswith(("{", "[")):
        return None
    try:
        inner = msgspec.json.decode(stripped)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    return inner if isinstance(inner, (dict, list)) else None


def extension_value(user: User, urn: str, name: str) -> Any:
    """One attribute of an extension, letter case of both names ignored; UNSET when nobody sent it, None when it was removed."""
    for key, attributes in user.extensions.items():
        if key.casefold() == urn.casefold():
            for attribute, value in attributes.items():
                if attribute.casefold() == name.casefold():
                    return value
    return UNSET


def supplied_paths(user: User) -> list[str]:
    """SCIM paths of everything in a wish that carries a value."""
    plain: dict[str, Any] = msgspec.to_builtins(user)
    extensions: dict[str, Any] = plain.pop("extensions", {})
    enterprise = plain.pop("enterprise", {})
    paths: list[str] = []
    for name, value in plain.items():
        if isinstance(value, dict):
            paths += [f"{name}.{inner}" for inner, held in value.items() if _carries(held)]
        elif isinstance(value, (list, tuple)) and name != "roles":
            for entry in value:
                kind = entry.get("type")
                at = f'{name}[type eq "{kind}"]' if kind else name
                inner_names = [key for key, held in entry.items() if key not in ("type", "primary") and _carries(held)]
                paths += [f"{at}.{key}" for key in inner_names]
        elif _carries(value):
            paths.append(name)
    for urn, attributes in {ENTERPRISE_SCHEMA: enterprise, **extensions}.items():
        paths += [f"{urn}:{name}" for name, value in attributes.items() if _carries(value)]
    return list(dict.fromkeys(paths))


def ignored_paths(user: User, spec: Spec) -> tuple[str, ...]:
    """Supplied attributes that a product's declaration does not name (vendor rule A8)."""
    if spec.any_attribute:
        return ()
    known = [attribute.path.casefold() for attribute in spec.attributes]

    def is_known(path: str) -> bool:
        folded = path.casefold()
        return any(folded == one or folded.startswith((f"{one}.", f"{one}[")) for one in known)

    return tuple(path for path in supplied_paths(user) if not is_known(path))


def _carries(value: Any) -> bool:
    return value is not None and value not in ("", [], (), {})


def literal(value: str) -> str:
    """A filter's comparison value: a JSON string (RFC 7644 section 3.4.2.2)."""
    return msgspec.json.encode(value).decode()


def checked_id(value: Any, sentence: str) -> str:
    """A product's id for an account, by pattern (security requirement S9).

    Raises:
        Unavailable: no id, or one that no product would give; ambiguous, because the write was answered with success.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or _ID.fullmatch(text) is None:
        raise Unavailable(f"{sentence} without a usable id", code="malformed", ambiguous=True)
    return text


class ScimClient:
    """SCIM calls to one product.

    Args:
        http: the way out.
        product: name for messages.
        prefix: path of the product's SCIM root below the client's base URL.
        media_type: of request bodies.
        page_size: how many resources are asked for at once.
        first_index: how the product counts the first resource of a list; 1 in RFC 7644, 0 at some.
        trusts_total: `totalResults` is the number of all; at some products it is that of the page.
        nobody_status: 404 for products that answer a look-up of nobody with it.
        names: how attributes and schemas are spelled here; answers that spell them in other letter case are read all the same.
    """

    def __init__(
        self,
        http: VendorHttp,
        *,
        product: str,
        prefix: str = "",
        media_type: str = MEDIA_TYPE,
        page_size: int = LIST_PAGE,
        first_index: int = 1,
        trusts_total: bool = True,
        nobody_status: int = 200,
        names: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = http
        self._product = product
        self._prefix = prefix
        self._page_size = page_size
        self._first_index = first_index
        self._trusts_total = trusts_total
        self._nobody = (404,) if nobody_status == 404 else ()
        self._names = {name.casefold(): name for name in names}
        self._headers = {"Content-Type": media_type, "Accept": f"{MEDIA_TYPE}, application/json"}
        self._clock = clock
        self._features: dict[str, Any] = {}
        self._features_until = 0.0

    def path(self, template: str) -> str:
        """Where a call goes below the base URL; what messages and steps show."""
        return f"{self._prefix}{template}"

    async def find(
        self, attribute: str, value: str, ctx: Delivery | None, *, kind: str = "Users"
    ) -> list[dict[str, Any]]:
        """Resources whose attribute equals the value, letter case ignored.

        The answer is compared again here: a product that ignores filters must not hand out a stranger's account.
        """
        query = {"filter": f"{attribute} eq {literal(value)}"}
        found, _ = await self.page(ctx, kind=kind, query=query)
        wanted = value.casefold()
        return [entry for entry in found if str(entry.get(attribute, "")).casefold() == wanted]

    async def page(
        self,
        ctx: Delivery | None,
        *,
        kind: str = "Users",
        start: int = 1,
        query: Mapping[str, str] | None = None,
        members: bool = True,
    ) -> tuple[list[dict[str, Any]], int]:
        """One page of a list and the total; `start` counts from 1 (RFC 7644 section 3.4.2.4).

        Where the product names no total, it is one more than was seen until a page is empty.

        Args:
            members: False leaves them out of groups, at a product that knows how (section 3.9).
        """
        paging = (
            {}
            if query is not None
            else {"startIndex": str(start - 1 + self._first_index), "count": str(self._page_size)}
        )
        paging |= {} if members else {"excludedAttributes": "members"}
        entries, body = await self._listed(ctx, kind, {**paging, **(query or {})})
        total = _number(body.get("totalResults")) if self._trusts_total else None
        if total is not None:
            return entries, total
        if query is not None:
            return entries, len(entries)
        return entries, start + len(entries) if entries else start - 1  # nobody says, so only an empty page is the end

    async def cursor_page(
        self, ctx: Delivery | None, *, kind: str = "Users", cursor: str = "", members: bool = True
    ) -> tuple[list[dict[str, Any]], str]:
        """One page by cursor and the next cursor, "" at the end (RFC 9865 section 2). `members` as in `page`."""
        paging = {"cursor": cursor, "count": str(self._page_size)}
        entries, body = await self._listed(ctx, kind, paging | ({} if members else {"excludedAttributes": "members"}))
        following = body.get("nextCursor")
        return entries, following if isinstance(following, str) else ""

    async def _listed(
        self, ctx: Delivery | None, kind: str, query: Mapping[str, str]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        path = self.path(f"/{kind}")
        nobody = self._nobody if "filter" in query else ()
        answer = await self._http.request("GET", path, ctx=ctx, query=query, headers=self._reading, expect=nobody)
        if answer.status in nobody:
            return [], {"totalResults": 0}
        body = self._object(answer, "GET", path)
        entries = body.get("Resources")
        if (
            entries is None and _number(body.get("totalResults")) == 0
        ):  # may be left out then, and only then (RFC 7644 section 3.4.2)
            entries = []
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise Unavailable(f"{self._product} answered GET {path} with a list of something else", code="malformed")
        return entries, body

    async def listed(self, cursor: str | None, *, kind: str = "Users") -> tuple[list[dict[str, Any]], str | None]:
        """One page of everything, and the start of the next one; None at the end. Groups without their members.

        Raises:
            Unavailable: an empty page before the end that `totalResults` names; the list is not whole.
        """
        start = int(cursor) if cursor else 1
        found, total = await self.page(None, kind=kind, start=start, members=kind != "Groups")
        following = start + len(found)
        if not found and following <= total:
            raise Unavailable(
                f"{self._product} lists {total} of {kind} and shows nothing from number {start} on",
                code="incomplete_list",
            )
        return found, str(following) if following <= total else None

    async def read(self, account_id: str, ctx: Delivery | None, *, kind: str = "Users") -> dict[str, Any]:
        """One resource. Raises Gone when it is not there."""
        path = self.path(f"/{kind}/{{id}}")
        answer = await self._http.request("GET", path, ctx=ctx, parts={"id": account_id}, headers=self._reading)
        return self._object(answer, "GET", path)

    async def members(self, group_id: str, *, kind: str = "Groups") -> list[str]:
        """Whom a group holds, by id. Raises Gone when it is not there."""
        held = (await self.read(group_id, None, kind=kind)).get("members") or []
        ids = [one.get("value") for one in held if isinstance(one, dict)] if isinstance(held, list) else [None]
        if not all(isinstance(one, str) for one in ids):
            raise Unavailable(f"{self._product} shows members of a group that cannot be read", code="malformed")
        return [str(one) for one in ids]

    async def create(
        self, resource: Mapping[str, Any], ctx: Delivery, *, kind: str = "Users", expect: Sequence[int] = ()
    ) -> VendorResponse:
        """POST a resource; statuses in `expect` come back as they are."""
        headers = self._headers | ({"Idempotency-Key": f"{ctx.idempotency_key}:create"} if ctx.idempotency_key else {})
        return await self._http.request(
            "POST", self.path(f"/{kind}"), ctx=ctx, json=resource, headers=headers, expect=expect
        )

    async def replace(
        self,
        account_id: str,
        resource: Mapping[str, Any],
        ctx: Delivery,
        *,
        kind: str = "Users",
        expect: Sequence[int] = (),
        version: str = "",
    ) -> VendorResponse:
        """PUT a complete resource; the same twice is the same once. With a version only if that is still the held one."""
        return await self._http.request(
            "PUT",
            self.path(f"/{kind}/{{id}}"),
            ctx=ctx,
            parts={"id": account_id},
            json=resource,
            headers=self._headers | ({"If-Match": version} if version else {}),
            expect=expect,
            idempotent=True,
        )

    async def patch(
        self,
        account_id: str,
        operations: Sequence[Mapping[str, Any]],
        ctx: Delivery,
        *,
        kind: str = "Users",
        expect: Sequence[int] = (),
        version: str = "",
    ) -> VendorResponse:
        """PATCH with the operations as given (RFC 7644 section 3.5.2). With a version only if that is still the held one."""
        return await self._http.request(
            "PATCH",
            self.path(f"/{kind}/{{id}}"),
            ctx=ctx,
            parts={"id": account_id},
            json={"schemas": [PATCH_SCHEMA], "Operations": list(operations)},
            headers=self._headers | ({"If-Match": version} if version else {}),
            expect=expect,
        )

    async def delete(
        self, account_id: str, ctx: Delivery, *, kind: str = "Users", expect: Sequence[int] = ()
    ) -> VendorResponse:
        """DELETE; one that is gone already is fine (vendor rule A6)."""
        return await self._http.request(
            "DELETE",
            self.path(f"/{kind}/{{id}}"),
            ctx=ctx,
            parts={"id": account_id},
            headers=self._reading,
            expect=(404, 410, *expect),
            idempotent=True,
        )

    async def change_members(
        self,
        group_id: str,
        add: Sequence[str],
        remove: Sequence[str],
        ctx: Delivery,
        *,
        kind: str = "Groups",
        users: str = "Users",
        per_call: int = MEMBERS_PER_CALL,
        removal: Literal["filtered", "listed"] = "filtered",
        with_path: bool = True,
        versioned: bool = False,
    ) -> None:
        """Explicit additions and removals by PATCH, `per_call` at a time; never a list that replaces. Both are safe to repeat.

        Args:
            kind, users: where groups and users are.
            removal: who leaves is `members[value eq "id"]`, or an entry of a list of values.
            with_path: additions name the path `members`.
            versioned: every call is meant for the version that was read just before.

        Raises:
            Blocked: members the product does not know; all others are added first.
        """

        async def changed(operations: list[dict[str, Any]], *expect: int) -> VendorResponse:
            version = version_of(await self.read(group_id, ctx, kind=kind)) if versioned else ""
            if versioned:
                expect = (*expect, 412)
            answer = await self.patch(group_id, operations, ctx, kind=kind, expect=expect, version=version)
            return unless_changed(self._product, answer)

        async def removed(chunk: list[str]) -> None:
            operations: list[dict[str, Any]] = [{"op": "remove", "path": "members", "value": _values(chunk)}]
            if removal == "filtered":
                operations = [{"op": "remove", "path": f"members[value eq {literal(one)}]"} for one in chunk]
            answer = await changed(operations, 400)
            if answer.status < 300:
                return
            if scim_type(answer) != "notarget":
                raise error_of(self._product, "PATCH", self.path(f"/{kind}/{{id}}"), answer)
            for one in (
                chunk if len(chunk) > 1 else ()
            ):  # who is no member any more is removed already (section 3.5.2.2)
                await removed([one])

        async def added(chunk: list[str]) -> bool:
            """Of several, one stranger refuses all."""
            operation: dict[str, Any] = {"op": "add", "path": "members", "value": _values(chunk)}
            answer = await changed(
                [operation if with_path else {"op": "add", "value": {"members": _values(chunk)}}], 400, 422
            )
            if answer.status >= 300 and len(chunk) == 1:
                await self.still_there(chunk[0], answer, ctx, kind=kind, users=users)
            return answer.status < 300

        for chunk in _chunks(remove, per_call):
            await removed(chunk)
        unknown: list[str] = []
        for chunk in _chunks(add, per_call):
            if not await added(chunk):
                unknown += [one for one in chunk if len(chunk) == 1 or not await added([one])]
        if unknown:
            raise unknown_members(self._product, group_id, unknown)

    async def still_there(
        self,
        member: str,
        answer: VendorResponse,
        ctx: Delivery,
        *,
        kind: str = "Groups",
        users: str = "Users",
        method: str = "PATCH",
    ) -> None:
        """A refused member is unknown, or the refusal means something else. Raises the refusal in the second case."""
        try:
            await self.read(member, ctx, kind=users)
        except Gone:
            return
        raise error_of(self._product, method, self.path(f"/{kind}/{{id}}"), answer)

    async def features(self, ctx: Delivery | None) -> dict[str, Any]:
        """ServiceProviderConfig (RFC 7643 section 5), kept for FEATURES_KEEP_S; empty when the product has none."""
        if self._clock() >= self._features_until:
            path = self.path("/ServiceProviderConfig")
            try:
                answer = await self._http.request("GET", path, ctx=ctx, headers=self._reading)
                self._features = self._object(answer, "GET", path)
            except Rejected:
                self._features = {}
            except Misconfigured as exc:
                if exc.code != "wrong_address":
                    raise
                self._features = {}
            self._features_until = self._clock() + FEATURES_KEEP_S
        return self._features

    async def resource_types(self) -> list[dict[str, Any]]:
        """What the product says of its resource types (RFC 7643 section 6); empty when it does not."""
        try:
            entries, _ = await self._listed(None, "ResourceTypes", {})
        except (Misconfigured, Rejected, Unavailable):
            return []
        return entries

    async def can_patch(self, ctx: Delivery | None) -> bool:
        """Whether the product says that it supports PATCH."""
        patch = (await self.features(ctx)).get("patch")
        return isinstance(patch, dict) and patch.get("supported") is True

    def resource_of(self, answer: VendorResponse, method: str, template: str) -> dict[str, Any]:
        """The resource in an answer to a write; of an empty one the header Location says the id (RFC 7644 section 3.3).

        Raises:
            Unavailable: ambiguous, when the answer is no resource.
        """
        if answer.body is None and answer.headers.get("location"):
            return {"meta": {"location": answer.headers["location"]}}
        return self._object(answer, method, self.path(template))

    @property
    def _reading(self) -> dict[str, str]:
        return {"Accept": self._headers["Accept"]}

    def _object(self, answer: VendorResponse, method: str, path: str) -> dict[str, Any]:
        if not isinstance(answer.body, dict):
            raise Unavailable(
                f"{self._product} answered {answer.status} to {method} {path} without a JSON object",
                code="malformed",
                ambiguous=method != "GET",
            )
        spelled: dict[str, Any] = self.spelled(answer.body)
        return spelled

    def spelled(self, value: Any) -> Any:
        """What was read, with names in our spelling: their letter case does not count (RFC 7643 section 2.1)."""
        if not self._names:
            return value
        if isinstance(value, dict):
            named = {self._names.get(name.casefold(), name): self.spelled(inner) for name, inner in value.items()}
            if isinstance(schemas := named.get("schemas"), list):
                named["schemas"] = [self._names.get(str(one).casefold(), one) for one in schemas]
            return named
        return [self.spelled(inner) for inner in value] if isinstance(value, list) else value


def unknown_members(product: str, group_id: str, unknown: Sequence[str]) -> Blocked:
    """What a group waits for whose members do not all have an account yet."""
    return Blocked(
        f"{len(unknown)} of the group's members are not in {product} yet; the others were added.",
        on=f"member:{unknown[0]}",
        code="unknown_member",
        attribute="members",
        account_id=group_id,
    )


def unless_changed(product: str, answer: VendorResponse) -> VendorResponse:
    """The answer. Raises Unavailable when the resource is not the one any more that was read (RFC 7644 section 3.14)."""
    if answer.status == 412:
        raise Unavailable(
            f"{product} holds a newer version than the one that was read; it is read again.", code="changed_meanwhile"
        )
    return answer


def version_of(held: Mapping[str, Any]) -> str:
    """A resource's version; "" where the product shows none."""
    meta = held.get("meta")
    version = meta.get("version") if isinstance(meta, dict) else None
    return version if isinstance(version, str) else ""


def scim_type(answer: VendorResponse) -> str:
    """What kind of refusal an answer says it is (RFC 7644 section 3.12), in small letters."""
    said = answer.body.get("scimType") if isinstance(answer.body, dict) else None
    return said.casefold() if isinstance(said, str) else ""


def _values(ids: Sequence[str]) -> list[dict[str, str]]:
    return [{"value": one} for one in ids]


def _chunks(ids: Sequence[str], size: int) -> Iterable[list[str]]:
    distinct = list(dict.fromkeys(ids))
    return (distinct[at : at + size] for at in range(0, len(distinct), size))


def shown_id(held: Mapping[str, Any]) -> Any:
    """A resource's id; where it is left out, the end of its address (meta.location)."""
    if held.get("id") not in (None, ""):
        return held["id"]
    meta = held.get("meta")
    location = meta.get("location") if isinstance(meta, dict) else None
    return unquote(urlsplit(location).path.rstrip("/").rpartition("/")[2]) if isinstance(location, str) else None


def _number(value: Any) -> int | None:
    """A number, also as text."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 16:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def visible(value: str) -> str:
    """Trimmed, and without characters that nobody sees, which arrive when values are copied from documents."""
    return "".join(char for char in value if unicodedata.category(char) != "Cf").strip()


def as_text(value: str | UnsetType | None) -> str | None:
    """Trimmed text; None when unset or null."""
    return value.strip() if isinstance(value, str) else None


def kept_text(value: str | UnsetType | None) -> str | UnsetType:
    """Trimmed text; unset stays unset, null becomes empty."""
    return value if value is UNSET else as_text(value) or ""


def held_text(value: Any) -> str | None:
    """A text a product holds, trimmed; None for what is empty, which is the same as absent."""
    return (value.strip() or None) if isinstance(value, str) else None


def spoken_of(values: Mapping[str, str | UnsetType | None]) -> dict[str, str | None]:
    """Wished texts in the form of `held_text`, without those nobody speaks of."""
    return {path: held_text(value) for path, value in values.items() if value is not UNSET}
