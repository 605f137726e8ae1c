"""The calls of a declared product: filling them in, judging their answers, going through their lists."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import msgspec

from connectors.contract import Delivery, VendorHttp, VendorResponse
from connectors.http import RETRY_AFTER_MAX_S, clean, error_of, retry_after
from connectors.rest_settings import (
    READS,
    Call,
    CallName,
    ErrorRule,
    Lookup,
    Paging,
    Settings,
    at,
    filled,
    has,
    put,
    shown,
    text_of,
)
from schemas.errors import (
    Blocked,
    Conflict,
    ConnectorError,
    Gone,
    Misconfigured,
    RateLimited,
    Rejected,
    Unavailable,
)

PAGES_MAX = 1_000
"""Pages of one list; a product with more accounts than they hold needs larger pages, or look-ups by parameter."""
HITS_PAGES_MAX = 20
"""Pages of one look-up; a product that finds more finds by something else than what was asked for."""
ROWS_MAX = 10_000
"""Entries on one page at most; more than that is no page."""
CURSOR_CHARS_MAX = 4_000

_PART = re.compile(r"\{(\w+)\}")
_BELOW = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)+/?", re.ASCII)
_NEXT_LINK = re.compile(r'<([^<>]*)>\s*((?:;[^,<>"]*(?:"[^"]*")?)*)')


class RestCalls:
    """What is declared, as calls.

    Args:
        now: epoch seconds, for products that say at which time they may be asked again.
    """

    def __init__(self, settings: Settings, http: VendorHttp, *, now: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.title = settings.title
        self.calls = settings.calls()
        self._http = http
        self._now = now
        ruled = {status for rule in settings.errors for status in rule.status}
        everything = any(not rule.status for rule in settings.errors)
        waits = (429,) if settings.wait is not None else ()
        self._ruled = tuple(range(400, 600)) if everything else tuple(sorted({*ruled, *waits}))

    @property
    def searches(self) -> frozenset[tuple[str, str]]:
        """Calls that change nothing although they are no GET. One whose address also takes writes is not among them."""
        writes = {(call.method_of(name), call.path) for name, call in self.calls.items() if name not in READS}
        reads = {(call.method_of(name), call.path) for name, call in self.calls.items() if name in READS}
        return frozenset(one for one in reads - writes if one[0] != "GET")

    async def send(
        self,
        name: CallName,
        ctx: Delivery | None,
        *,
        values: Mapping[str, Any] | None = None,
        fields: Mapping[str, Any] | None = None,
        whole: dict[str, Any] | None = None,
        operations: Sequence[Mapping[str, Any]] | None = None,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        path: str = "",
    ) -> VendorResponse:
        """One declared call, judged by the declared errors.

        Args:
            values: what the names in the call stand for.
            fields: what is sent, by field.
            whole: what is sent, as a complete body.
            operations: what is sent instead of both (RFC 6902).
            query: further parameters, as they are.
            body: further fields, as they are.
            path: instead of the declared one.
        """
        call = self.calls.get(name)
        if call is None and not path:
            raise Rejected(f"{self.title}: its target has no endpoints.{name}.", code=f"no_{name}")
        call = call or Call(path=path)
        method = "GET" if path else call.method_of(name)
        template = path or call.path
        given = dict(values or {})
        parts = {part: text_of(given[part]) for part in _PART.findall(template)}
        asked = {} if path else {key: text_of(filled(text, given)) for key, text in call.query.items()}
        document: Any = _body({} if path else call.body, call.wrap, fields, whole, given)
        for field, value in (body or {}).items():
            put(document, field, value)
        headers = dict(self.settings.headers)
        if ctx is not None and ctx.idempotency_key and self.settings.idempotency_header and name not in READS:
            headers[self.settings.idempotency_header] = f"{ctx.idempotency_key}:{name}"
        hidden = not path and bool(call.names - call.in_path)
        form = None
        has_body = bool(document) or method in ("POST", "PUT", "PATCH")
        if operations is not None:
            document, has_body = list(operations), True
            headers["Content-Type"] = "application/json-patch+json"
        elif has_body and self.settings.encoding == "form":
            form, has_body = dict(_form_fields(document)), False
        elif has_body and self.settings.media_type != "application/json":
            headers["Content-Type"] = self.settings.media_type
        answer = await self._http.request(
            method,
            template,
            ctx=ctx,
            parts=parts,
            query={**self.settings.query, **asked, **(query or {})},
            json=document if has_body else None,
            form=form,
            headers=headers,
            expect=(
                *self._ruled,
                *((404, 410) if hidden else ()),
                *(status for status in call.expect if status >= 300),
            ),
            idempotent=True if name in READS or method in ("PUT", "DELETE") else None,
        )
        self._judge(name, method, template, call, answer)
        return answer

    # Judging ----------------------------------------------------------------------------------------------------------

    def _judge(self, name: CallName, method: str, template: str, call: Call, answer: VendorResponse) -> None:
        """Raise what an answer means: the first rule that fits, then the expected statuses, then the usual table."""
        for rule in self.settings.errors:
            if rule.fits(name, answer):
                if rule.means == "done":
                    return
                raise self._meant(rule, name, method, template, answer)
        if answer.status in call.expect:
            return
        if answer.status in (404, 410) and call.names:  # whom the call is about may stand in its query or body
            usual = error_of(self.title, method, template, self._told(answer))
            raise Gone(usual.message, code="not_found")
        if answer.status == 429:
            usual = error_of(self.title, method, template, self._told(answer))
            raise RateLimited(usual.message, retry_after_s=self._wait_s(answer))
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

    def _wait_s(self, answer: VendorResponse) -> float | None:
        """How long the product wants to be left alone: as declared, as in Retry-After, or as its limit has it."""
        limit = self.settings.rate_limit
        wait = self.settings.wait
        told = shown(answer, wait.at) if wait is not None else None
        text = text_of(told).strip() if told is not None and not isinstance(told, (dict, list, bool)) else ""
        if wait is not None and re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,9})?", text):
            number = float(text)
            seconds = {"seconds": number, "milliseconds": number / 1000, "epoch": number - self._now()}[wait.form]
            return min(max(0.0, seconds), RETRY_AFTER_MAX_S)
        named_s = retry_after(answer.headers)
        return named_s if named_s is not None or limit is None else limit.per_s

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
                return RateLimited(sentence, retry_after_s=after_s or self._wait_s(answer))
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

    # Answers ----------------------------------------------------------------------------------------------------------

    def one(self, name: CallName, answer: VendorResponse) -> dict[str, Any]:
        """The account or group that was read.

        Raises:
            Gone: the product shows null in its place.
            Unavailable: there is none in the answer.
        """
        held, place = self.item(name, answer), self.calls[name].item
        if place and answer.status < 300 and has(answer.body, place) and at(answer.body, place) is None:
            raise Gone(f"{self.title} answered {name} with nobody", code="not_found")
        if held is None or answer.status >= 300:
            raise Unavailable(f"{self.title} answered {name} without what was asked for", code="malformed")
        return held

    def item(self, name: CallName, answer: VendorResponse) -> dict[str, Any] | None:
        """The account or group in an answer, None when there is none."""
        call = self.calls.get(name)
        item = at(answer.body, call.item) if call is not None else None
        return item if isinstance(item, dict) else None

    def rows(self, name: CallName, answer: VendorResponse, call: Call | None) -> list[Any]:
        """The entries of a list, or the one of a look-up's answer that is no list."""
        body = answer.body
        if body is None:
            return []
        items = call.items if call is not None else ""
        if items and not has(body, items):  # not the same as an empty list: the settings, or the product, are wrong
            raise Unavailable(f"{self.title} answered {name} without {items!r}", code="malformed")
        held = at(body, items)
        if held is None:
            return []
        if isinstance(held, dict) and name in ("find", "group_find") and call is not None and not items:
            one = at(held, call.item)
            held = [one] if one else []
        plain = name in ("members", "roles")  # such lists may hold ids and nothing else
        fits = (str, int) if plain else ()
        if (
            not isinstance(held, list)
            or len(held) > ROWS_MAX
            or not all(isinstance(one, (dict, *fits)) for one in held)
        ):
            raise Unavailable(f"{self.title} answered {name} without a list of accounts", code="malformed")
        return held

    # Lists ------------------------------------------------------------------------------------------------------------

    async def all(
        self, name: CallName, ctx: Delivery | None, *, values: Mapping[str, Any] | None = None, id_field: str = ""
    ) -> AsyncIterator[Any]:
        """Every entry of a list.

        Raises:
            Misconfigured: more than PAGES_MAX pages.
            Unavailable: the list broke off before its end.
        """
        cursor = ""
        for _ in range(PAGES_MAX):
            rows, cursor = await self.page(name, ctx, cursor, values=values, id_field=id_field)
            for held in rows:
                yield held
            if not cursor:
                return
        raise Misconfigured(
            f"{self.title} lists more than {PAGES_MAX} pages; use larger pages (paging.size), or find accounts by a parameter.",
            code="too_many_pages",
        )

    async def page(
        self,
        name: CallName,
        ctx: Delivery | None,
        cursor: str,
        *,
        values: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        id_field: str = "",
        looked_up: bool = False,
    ) -> tuple[list[Any], str]:
        """One page and where the next begins, "" at the end; the rounds of a list follow each other.

        Args:
            looked_up: this is an answer to a question; it goes on only if the product says so.

        Raises:
            Unavailable: the list broke off before its end; half a list must not look like a whole one.
        """
        rounds = self.calls[name].rounds
        number, _, within = cursor.partition("|") if rounds and cursor else ("0", "", cursor)
        asked = {**(query or {}), **(rounds[int(number)] if rounds else {})}
        rows, following = await self._page(
            name, ctx, within, values=values, query=asked, body=body, id_field=id_field, looked_up=looked_up
        )
        if following:
            return rows, f"{number}|{following}" if rounds else following
        return rows, f"{int(number) + 1}|" if int(number) + 1 < len(rounds) else ""

    async def _page(
        self,
        name: CallName,
        ctx: Delivery | None,
        cursor: str,
        *,
        values: Mapping[str, Any] | None,
        query: Mapping[str, str],
        body: Mapping[str, Any] | None,
        id_field: str,
        looked_up: bool,
    ) -> tuple[list[Any], str]:
        paging = self._paging(name)
        call = self.calls[name]
        kind, _, rest = cursor.partition(":")
        further: dict[str, Any] = {}
        in_address: dict[str, str] = {}
        path = ""
        if paging.size_parameter and (cursor or not looked_up):
            further[paging.size_parameter] = paging.size
        if paging.way in ("page", "offset") and (cursor or not looked_up):
            further[paging.parameter] = int(kind or paging.first)
        elif kind == "c":
            further[paging.parameter] = rest
        elif kind in ("q", "p"):
            path, _, text = rest.rpartition("?")
            in_address = dict(parse_qsl(text, keep_blank_values=True))
        given = dict(values or {})
        if path:
            path, _, last = path.rstrip("/").rpartition("/")
            path, given, further = f"{path}/{{next}}", {"next": unquote(last)}, {}
        by_body = call.method_of(name) == "POST" and not path
        shown_query = {} if by_body else {key: text_of(value) for key, value in further.items()}
        answer = await self.send(
            name,
            ctx,
            values=given,
            query={**({} if path else query), **shown_query, **in_address},
            body={**(body or {}), **further} if by_body else body,
            path=path,
        )
        # A refusal of a look-up that is expected says that nobody was found.
        rows = [] if looked_up and answer.status >= 300 else self.rows(name, answer, call)
        more = shown(answer, paging.more) if paging.more else None
        if paging.more and (more in (None, False, 0, "") or equal_false(more)):
            return rows, ""
        match paging.way:
            case "page" | "offset":
                begin = int(kind) if kind.isdecimal() else paging.first
                return self._counted(
                    paging, rows, answer, begin, rest, id_field, sure=bool(paging.more), looked_up=looked_up
                )
            case "cursor":
                return rows, _moved(cursor, self._next(shown(answer, paging.next), call, values or {}))
            case "link":
                link = _next_link(answer.headers.get("link", ""))
                return rows, _moved(cursor, self._next(link, call, values or {}))
            case _:
                return rows, ""

    async def asked(
        self,
        name: CallName,
        lookup: Lookup,
        key: str,
        ctx: Delivery | None,
        *,
        fits: Callable[[Mapping[str, Any]], bool],
        id_field: str,
    ) -> list[dict[str, Any]]:
        """What the product finds for a key; empty when it says that there is nobody.

        Entries that do not fit are dropped, so that no stranger is handed out. While none fits, the further pages of a product
        that finds by likeness are read too.

        Raises:
            Misconfigured: HITS_PAGES_MAX pages without an end.
        """
        try:
            if lookup.path:
                answer = await self.send(name, ctx, values={"value": key}, path=lookup.path)
                call = Call(path=lookup.path, item=lookup.item)
                hits = [] if answer.status >= 300 else self.rows(name, answer, call)
                return list(filter(fits, hits))
            values = {"value": lookup.escaped(key)}
            query = {lookup.parameter: key} if lookup.parameter else filled(lookup.query, values)
            body = filled(lookup.body, values)
            cursor = ""
            for _ in range(HITS_PAGES_MAX):
                rows, cursor = await self.page(
                    name, ctx, cursor, query=query, body=body, id_field=id_field, looked_up=True
                )
                found = list(filter(fits, rows))
                if found or not cursor:
                    return found
        except Gone:
            return []
        raise Misconfigured(
            f"{self.title} answers a look-up with more than {HITS_PAGES_MAX} pages; it does not look at what is asked for",
            code="too_many_hits",
        )

    def _paging(self, name: CallName) -> Paging:
        groups = self.settings.groups
        own = groups.paging if groups is not None and name in ("group_list", "group_find", "members") else None
        return own if own is not None else self.settings.paging

    def _counted(
        self,
        paging: Paging,
        rows: list[Any],
        answer: VendorResponse,
        begin: int,
        rest: str,
        id_field: str,
        *,
        sure: bool,
        looked_up: bool,
    ) -> tuple[list[Any], str]:
        """Numbered pages: the next one's number, how many entries were seen, and what the page began with.

        A page may be shorter than asked for, so only an empty one, or what the product says of its list, is the end.
        """
        before_count, _, before_first = rest.partition(":")
        seen = int(before_count) if before_count.isdecimal() else 0
        total = _whole(shown(answer, paging.total)) if paging.total else None
        pages = _whole(shown(answer, paging.pages)) if paging.pages else None
        first = _mark(rows[0], id_field) if rows else ""
        if not rows or (before_first and before_first == first):
            if total is not None and seen < total:
                raise Unavailable(
                    f"{self.title} lists {total} and shows nothing new after {seen}", code="incomplete_list"
                )
            return [], ""
        seen += len(rows)
        if total is not None:
            goes_on = seen < total
        elif pages is not None:
            goes_on = begin - paging.first + 1 < pages
        else:
            goes_on = sure or not looked_up
        if not goes_on:
            return rows, ""
        following = begin + (len(rows) if paging.way == "offset" else 1)
        return rows, f"{following}:{seen}:{first}"

    def _next(self, value: Any, call: Call, values: Mapping[str, Any]) -> str:
        """Where the next page begins: `c:` a cursor, `q:` the query of an address, `p:` an address below base_url.

        The host of an address is never followed, and neither is a path outside of what is configured.
        """
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            return ""
        text = str(value)
        if len(text) > CURSOR_CHARS_MAX:
            raise Unavailable(f"{self.title} names a next page of {len(text)} letters", code="incomplete_list")
        if "://" not in text and not text.startswith(("/", "?")):
            return f"c:{text}"
        try:
            address = urlsplit(text)
            base = urlsplit(self.settings.base_url).path.rstrip("/")
        except ValueError:
            address = None
        if address is not None:
            query = urlencode(parse_qsl(address.query, keep_blank_values=True))
            own = _PART.sub(lambda hit: quote(text_of(values.get(hit[1], "")), safe=""), call.path)
            below = address.path[len(base) :] if address.path.startswith(f"{base}/") else ""
            if query and below in ("", own):
                return f"q:?{query}"
            if below and below != own and _BELOW.fullmatch(below) and ".." not in below.split("/"):
                return f"p:{below}?{query}"
            if "://" not in text and not address.query:
                return f"c:{text}"  # a cursor may look like a path
        raise Unavailable(
            f"{self.title} names a next page that is not below base_url; correct base_url or paging.next",
            code="incomplete_list",
        )


def equal_false(value: Any) -> bool:
    """Whether a text says no."""
    return isinstance(value, str) and value.strip().casefold() in ("false", "0", "no")


def _body(
    beside: Mapping[str, Any],
    wrap: str,
    fields: Mapping[str, Any] | None,
    whole: dict[str, Any] | None,
    values: Mapping[str, Any],
) -> dict[str, Any]:
    """What is sent: the fields or the whole, under `wrap`, with what goes with every call beside them."""
    body: dict[str, Any] = dict(whole) if whole is not None else {}
    for field, value in (fields or {}).items():
        put(body, field, value)
    if wrap and (fields is not None or whole is not None):
        wrapped: dict[str, Any] = {}
        put(wrapped, wrap, body)
        body = wrapped
    for field, value in beside.items():
        put(body, field, filled(value, values))
    return body


def _form_fields(value: Any, name: str = "") -> list[tuple[str, str]]:
    """A body as fields of a form: `contact[email]`, `roles[0]`; no value is an empty text."""
    if isinstance(value, Mapping):
        pairs = [(f"{name}[{key}]" if name else str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list):
        pairs = [(f"{name}[{number}]", inner) for number, inner in enumerate(value)] or [(name, "")]
    else:
        return [(name, "" if value is None else text_of(value))]
    return [field for key, inner in pairs for field in _form_fields(inner, key)]


def _whole(value: Any) -> int | None:
    """A number of entries, also as text."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    text = str(value).strip()
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def _mark(row: Any, id_field: str) -> str:
    """By what a page is known that was seen before."""
    if isinstance(row, Mapping):
        held = at(row, id_field) if id_field else None
        return str(held) if held is not None else str(zlib.crc32(msgspec.json.encode(row)))
    return str(row)


def _next_link(header: str) -> str:
    """The address whose relation is `next` (RFC 8288 section 3)."""
    for target, parameters in _NEXT_LINK.findall(header[: 4 * CURSOR_CHARS_MAX]):
        relation = re.search(r';\s*rel\s*=\s*"?([^";]*)"?', parameters, re.IGNORECASE)
        if relation is not None and "next" in relation[1].casefold().split():
            return target if "://" in target or target.startswith(("/", "?")) else f"/{target}"
    return ""


def _moved(before: str, after: str) -> str:
    """The next cursor, unless it is the one that was just used."""
    return "" if after == before else after
