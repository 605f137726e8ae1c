"""Filters (RFC 7644 section 3.4.2.2), attribute paths (figure 7), and the query strings they arrive in.

A hand-written tokenizer and recursive descent: the grammar is small, every nesting and every term is counted against a limit,
and a filter of one comparison takes a few microseconds. Values never leave the tree except as values; nothing here builds SQL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes

import msgspec

from gateway.attributes import AttributeName, AttributeRule, Kind, find_key, fold_name, fold_value, resolve_name
from gateway.messages import DEFAULT_LIMITS, Limits, ScimError, invalid_filter, invalid_path, invalid_syntax, parse_bool

Value: TypeAlias = str | bool | None
"""A comparison value. Numbers keep the digits they were written with: `id eq 54` and `id eq "54"` are the same question."""


class AttributePath(msgspec.Struct, frozen=True):
    """An attribute path, possibly with a value filter: `emails[type eq "work"].value`.

    Args:
        container: URN of the extension, "" for the core schema.
        attribute: canonical name, or as spelled when unknown; "" for a whole extension.
        sub: canonical sub-attribute, or "".
        where: the value filter, None without.
        rule, sub_rule: what RFC 7643 says of the two, None when nothing.
        certain: False when the border between URN and attribute had to be guessed.
    """

    container: str
    attribute: str
    sub: str = ""
    where: Filter | None = None
    rule: AttributeRule | None = None
    sub_rule: AttributeRule | None = None
    certain: bool = True

    @property
    def name(self) -> str:
        """The path without its filter, in canonical spelling; it holds no value and is fit for `detail` and logs."""
        return AttributeName(self.container, self.attribute, self.sub).text

    @property
    def leaf_rule(self) -> AttributeRule | None:
        """The rule of what is compared: of the sub-attribute, or of the default sub-attribute `value`."""
        if self.sub:
            return self.sub_rule
        if self.rule is not None and self.rule.type == "complex":
            return self.rule.sub.get("value")
        return self.rule


class Comparison(msgspec.Struct, frozen=True):
    """`path op value`; `op` is lower-case. For `pr` the value is None."""

    path: AttributePath
    op: str
    value: Value = None


class Exists(msgspec.Struct, frozen=True):
    """`emails[type eq "work"]`: some entry of the attribute satisfies the filter."""

    path: AttributePath


class And(msgspec.Struct, frozen=True):
    """All of the terms hold."""

    terms: tuple[Filter, ...]


class Or(msgspec.Struct, frozen=True):
    """At least one of the terms holds."""

    terms: tuple[Filter, ...]


class Not(msgspec.Struct, frozen=True):
    """The term does not hold."""

    term: Filter


Filter: TypeAlias = Comparison | Exists | And | Or | Not

# --- parsing ---------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r'[ \t]*(?:("(?:[^"\\]|\\.)*")|([()\[\]])|([^\s()\[\]"]+))', re.DOTALL)
_VALUE_START = re.compile(r'[\["]')
_OPERATORS = frozenset(("eq", "ne", "co", "sw", "ew", "gt", "ge", "lt", "le"))
_ORDERING = frozenset(("gt", "ge", "lt", "le"))
_LITERALS: dict[str, Value] = {"true": True, "false": False, "null": None}
_OPERATOR_LIST = "eq, ne, co, sw, ew, gt, ge, lt, le, pr"
_PATHS_CACHED_MAX = 1_024


class _Parser:
    """Recursive descent over the tokens of one filter or path."""

    def __init__(self, text: str, kind: Kind | None, limits: Limits) -> None:
        if len(text) > limits.filter_bytes_max or len(text.encode("utf-8", "replace")) > limits.filter_bytes_max:
            raise invalid_filter(f"is longer than {limits.filter_bytes_max:,} bytes", "Ask for less in one filter")
        self.kind = kind
        self.limits = limits
        self.tokens = _tokens(text)
        self.at = 0
        self.depth = 0
        self.terms = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def keyword(self, word: str) -> bool:
        """Whether the next token is this keyword; then it is consumed."""
        token = self.peek()
        if len(token) == len(word) and token.lower() == word:
            self.at += 1
            return True
        return False

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise invalid_filter(f"lacks a '{token}'", "Close every bracket and parenthesis")

    def end(self) -> None:
        if self.at < len(self.tokens):
            raise invalid_filter("goes on after its end", "Join comparisons by and, or")

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > self.limits.filter_depth_max:
            raise invalid_filter(f"is nested deeper than {self.limits.filter_depth_max} levels", "Ask for less at once")

    def disjunction(self, inside: AttributePath | None = None) -> Filter:
        """`and` binds tighter than `or` (RFC 7644 section 3.4.2.2, order of operations)."""
        terms = [self.conjunction(inside)]
        while self.keyword("or"):
            terms.append(self.conjunction(inside))
        return terms[0] if len(terms) == 1 else Or(tuple(terms))

    def conjunction(self, inside: AttributePath | None) -> Filter:
        terms = [self.term(inside)]
        while self.keyword("and"):
            terms.append(self.term(inside))
        return terms[0] if len(terms) == 1 else And(tuple(terms))

    def term(self, inside: AttributePath | None) -> Filter:
        negated = self.at + 1 < len(self.tokens) and self.tokens[self.at + 1] == "(" and self.keyword("not")
        if self.peek() == "(":
            self.take()
            self.deeper()
            inner = self.disjunction(inside)
            self.expect(")")
            self.depth -= 1
            return Not(inner) if negated else inner
        return self.comparison(inside)

    def comparison(self, inside: AttributePath | None) -> Filter:
        self.terms += 1
        if self.terms > self.limits.filter_terms_max:
            raise invalid_filter(f"has more than {self.limits.filter_terms_max} comparisons", "Ask for less at once")
        path = self.path(inside)
        operator = self.peek().lower()
        if operator == "pr":
            self.take()
            return Comparison(path, "pr")
        if operator in _OPERATORS:
            self.take()
            return self.compared(path, operator)
        if path.where is not None and not path.sub and operator in ("", "and", "or", ")"):
            return Exists(path)
        raise invalid_filter(f"lacks an operator after {path.name}", f"Use one of {_OPERATOR_LIST}")

    def compared(self, path: AttributePath, operator: str) -> Comparison:
        word = self.take()
        if word == "" or word in "()[]":
            raise invalid_filter(
                f"lacks a value after {path.name} {operator}", 'Write the value in quotes, as in eq "x"'
            )
        value = _value(word)
        rule = path.leaf_rule
        if operator in _ORDERING and (value is None or (rule is not None and rule.type in ("boolean", "binary"))):
            raise invalid_filter(f"compares {path.name} by {operator}, which has no order", "Use eq or ne")
        if (
            rule is not None
            and rule.type == "dateTime"
            and operator not in ("co", "sw", "ew")
            and value is not None
            and _moment(value) is None
        ):
            raise invalid_filter(
                f"compares {path.name} with something that is no date and time", "Use 2026-01-31T08:00:00Z"
            )
        return Comparison(path, operator, value)

    def path(self, inside: AttributePath | None) -> AttributePath:
        """attrPath, or valuePath with an optional sub-attribute; inside a value filter a bare sub-attribute."""
        word = self.take()
        if word == "" or word in "()[]" or word[0] == '"':
            raise invalid_filter("lacks an attribute name", 'Write it as in userName eq "x"')
        if inside is not None:
            return _sub_path(word, inside)
        try:
            name = resolve_name(word, self.kind)
        except ValueError:
            raise invalid_filter("names an attribute that cannot exist", "Check the attribute's spelling") from None
        path = AttributePath(name.container, name.attribute, name.sub, None, name.rule, name.sub_rule, name.certain)
        if self.peek() != "[":
            return path
        if not path.attribute or path.sub:
            raise invalid_filter(f"puts a bracket after {path.name}", 'Write it as in emails[type eq "work"].value')
        self.take()
        self.deeper()
        where = self.disjunction(path)
        self.expect("]")
        self.depth -= 1
        sub, sub_rule = "", None
        if self.peek()[:1] == "." and len(self.peek()) > 1:
            inner = _sub_path(self.take()[1:], path)
            sub, sub_rule = inner.attribute, inner.rule
        return AttributePath(path.container, path.attribute, sub, where, path.rule, sub_rule, path.certain)


def _tokens(text: str) -> list[str]:
    tokens = []
    at, end = 0, len(text.rstrip(" \t"))
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            raise invalid_filter(
                "has a quote that is not closed, or an unexpected character", 'Write values as in eq "x"'
            )
        tokens.append(match.group(match.lastindex or 0))
        at = match.end()
    return tokens


def _sub_path(word: str, inside: AttributePath) -> AttributePath:
    """A sub-attribute of the attribute whose value filter or tail is being read."""
    try:
        name = resolve_name(word, "Group")  # only for its syntax: sub-attributes are looked up below
    except ValueError:
        raise invalid_filter(f"names a part of {inside.name} that cannot exist", "Check the spelling") from None
    if ":" in word or name.sub:
        raise invalid_filter(f"names a part of a part of {inside.name}", "Name one sub-attribute")
    rule = inside.rule.sub.get(fold_name(word)) if inside.rule is not None else None
    return AttributePath("", rule.name if rule is not None else word, rule=rule)


def _value(token: str) -> Value:
    if token[0] != '"':
        folded = token.lower()
        return _LITERALS.get(folded, token)
    try:
        value = msgspec.json.decode(token, type=str) if "\\" in token else token[1:-1]
    except (msgspec.DecodeError, UnicodeError):
        raise invalid_filter("has a value that is no JSON string", 'Escape " and \\ by a backslash') from None
    if "\0" in value:
        raise invalid_filter("has a value with the character U+0000")
    return value


def _names_password(found: Filter) -> bool:
    if isinstance(found, And | Or):
        return any(_names_password(term) for term in found.terms)
    if isinstance(found, Not):
        return _names_password(found.term)
    path = found.path
    if "password" in (fold_name(path.attribute), fold_name(path.sub)):
        return True
    return path.where is not None and _names_password(path.where)


def parse_filter(text: str, *, limits: Limits = DEFAULT_LIMITS) -> Filter:
    """Parse a filter (RFC 7644 section 3.4.2.2).

    Beyond the RFC's grammar: values without quotes, a sub-attribute after a value filter (`emails[type eq "work"].value eq "x"`,
    which Entra sends), and names of the enterprise extension without their URN.

    Raises:
        ScimError: 400 `invalidFilter`: syntax, an operator that has no meaning for the attribute, a limit, or `password`.
    """
    parser = _Parser(text, None, limits)
    if not parser.tokens:
        raise invalid_filter("is empty", 'Write it as in userName eq "x"')
    found = parser.disjunction()
    parser.end()
    if "password" in text.lower() and _names_password(found):
        raise invalid_filter("names password, which can never be asked for", "Leave it out")
    return found


def parse_path(text: str, kind: Kind, *, limits: Limits = DEFAULT_LIMITS) -> AttributePath:
    """Parse the `path` of a PATCH operation (RFC 7644 figure 7), or a key of a path-less value.

    Parsed paths are kept for reuse: Entra sends the same few over and over.

    Raises:
        ScimError: 400 `invalidPath`.
    """
    try:
        return _cached_path(text, kind, limits)
    except ScimError as error:
        problem = error.detail.removeprefix("The filter ")
        raise invalid_path(_VALUE_START.split(text, maxsplit=1)[0], problem) from None


@lru_cache(maxsize=_PATHS_CACHED_MAX)
def _cached_path(text: str, kind: Kind, limits: Limits) -> AttributePath:
    parser = _Parser(text, kind, limits)
    if not parser.tokens:
        raise invalid_filter("is empty", "Name an attribute")
    path = parser.path(None)
    parser.end()
    return path


# --- evaluation ------------------------------------------------------------------------------------------------------


def evaluate(found: Filter, document: dict[str, Any]) -> bool:
    """Whether a document satisfies a filter.

    Args:
        found: from `parse_filter`.
        document: a stored document with canonical names; to answer for `id` and `meta` they have to be in it, and for
            `members` those of them that were asked for.

    Letter case counts where RFC 7643 says `caseExact` (`id`, `externalId`, references), and nowhere else. On a multi-valued
    attribute a comparison holds if it holds for any of the values; `ne` also holds when there is none.
    """
    if isinstance(found, Comparison):
        return _compare(found, document)
    if isinstance(found, And):
        return all(evaluate(term, document) for term in found.terms)
    if isinstance(found, Or):
        return any(evaluate(term, document) for term in found.terms)
    if isinstance(found, Not):
        return not evaluate(found.term, document)
    return any(True for _ in matching_entries(found.path, _held(found.path, document)))


def matching_entries(path: AttributePath, held: Any) -> Iterator[dict[str, Any]]:
    """The entries of a multi-valued (or single complex) value that satisfy the path's value filter; all without one."""
    entries = held if isinstance(held, list) else [held]
    for entry in entries:
        if isinstance(entry, dict):
            if path.where is None or evaluate(path.where, entry):
                yield entry
        elif entry is not None and path.where is not None and evaluate(path.where, {"value": entry}):
            yield {"value": entry}


def _held(path: AttributePath, document: dict[str, Any]) -> Any:
    holder: Any = document
    if path.container:
        container = find_key(document, path.container)
        holder = document[container] if container is not None else None
        if not path.attribute:
            return holder
        if not isinstance(holder, dict):
            return None
    key = path.attribute if path.rule is not None and path.attribute in holder else find_key(holder, path.attribute)
    return holder[key] if key is not None else None


def _values(path: AttributePath, document: dict[str, Any]) -> list[Any]:
    """The simple values a comparison looks at."""
    held = _held(path, document)
    if held is None:
        return []
    if path.where is not None:
        held = list(matching_entries(path, held))
    values: list[Any] = []
    for item in held if isinstance(held, list) else (held,):
        if isinstance(item, dict):
            key = find_key(item, path.sub or "value")
            part = item[key] if key is not None else None
            values += part if isinstance(part, list) else [part]
        elif not path.sub or path.sub == "value":
            values.append(item)
    return [value for value in values if value is not None]


def _compare(term: Comparison, document: dict[str, Any]) -> bool:
    path, op = term.path, term.op
    if op == "pr":
        return _present(path, document)
    values = _values(path, document)
    if term.value is None:
        return op == "eq" if not values else op == "ne"
    if not values:
        return op == "ne"
    rule = path.leaf_rule
    if rule is not None and rule.type == "dateTime":
        return any(_compare_moments(op, value, term.value) for value in values)
    exact = rule is not None and rule.exact
    return any(_compare_values(op, value, term.value, exact) for value in values)


def _present(path: AttributePath, document: dict[str, Any]) -> bool:
    held = _held(path, document)
    if path.where is not None:
        held = list(matching_entries(path, held))
    if path.sub:
        return any(value != "" for value in _values(path, document))
    return held is not None and held not in ("", [], {})


_TEXT: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda held, asked: held == asked,
    "ne": lambda held, asked: held != asked,
    "co": lambda held, asked: asked in held,
    "sw": lambda held, asked: held.startswith(asked),
    "ew": lambda held, asked: held.endswith(asked),
    "gt": lambda held, asked: held > asked,
    "ge": lambda held, asked: held >= asked,
    "lt": lambda held, asked: held < asked,
    "le": lambda held, asked: held <= asked,
}
_ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda held, asked: held == asked,
    "ne": lambda held, asked: held != asked,
    "gt": lambda held, asked: held > asked,
    "ge": lambda held, asked: held >= asked,
    "lt": lambda held, asked: held < asked,
    "le": lambda held, asked: held <= asked,
}


def _compare_values(op: str, held: Any, asked: str | bool, exact: bool) -> bool:
    if isinstance(held, bool) or isinstance(asked, bool):
        # A boolean and the text of one are equal: Entra asks for roles[primary eq "True"].
        try:
            same = parse_bool(held) is parse_bool(asked)
        except ValueError:
            return op == "ne"
        return same if op == "eq" else op == "ne" and not same
    if isinstance(held, int | float):
        number = _number(asked)
        if number is not None and op in _ORDERED:
            return _ORDERED[op](held, number)
        held = str(held)
    if not isinstance(held, str):
        return op == "ne"
    if exact:
        return _TEXT[op](held, asked)
    return _TEXT[op](fold_value(held), fold_value(asked))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _moment(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _compare_moments(op: str, held: Any, asked: Value) -> bool:
    if op not in _ORDERED:
        return isinstance(held, str) and isinstance(asked, str) and _TEXT[op](held.lower(), asked.lower())
    left, right = _moment(held), _moment(asked)
    if left is None or right is None:
        return op == "ne"
    return _ORDERED[op](left, right)


# --- index look-ups --------------------------------------------------------------------------------------------------


def index_terms(found: Filter) -> list[tuple[str, str | bool]]:
    """The equality terms every hit must satisfy, for a look-up by index; what is found still has to be evaluated.

    Returns:
        Pairs of a lower-cased path and a value, in the order of the filter. Paths: `username`, `externalid`, `id`,
        `displayname`, `emails.value`, `emails[type eq "work"].value`, `members.value`, `active`,
        `urn:…:user:manager.value`. A value is folded with `fold_value` unless its attribute is `caseExact`; for boolean
        attributes it is a bool.
    """
    terms: list[tuple[str, str | bool]] = []
    for term in found.terms if isinstance(found, And) else (found,):
        if isinstance(term, And):
            terms += index_terms(term)
        elif isinstance(term, Comparison) and term.op == "eq" and term.value is not None:
            terms += _index_term(term.path, term.value)
        elif isinstance(term, Exists):
            terms += _terms_within(term.path)
    return terms


def _index_term(path: AttributePath, value: str | bool) -> list[tuple[str, str | bool]]:
    rule = path.leaf_rule
    sub = path.sub
    if not sub and path.rule is not None and path.rule.type == "complex":
        sub = "value"
    asked: str | bool
    if rule is not None and rule.type == "boolean":
        try:
            asked = parse_bool(value)
        except ValueError:
            return []
    elif isinstance(value, bool):
        return []  # a boolean asked of a text: equal by its meaning, which no index of texts knows
    else:
        asked = value if rule is not None and rule.exact else fold_value(value)
    where = ""
    if path.where is not None:
        terms = _equal_terms(path.where)
        if terms is None or len(terms) != 1:
            return []
        (key, entry_value), *_ = terms
        where = f'[{fold_name(key)} eq "{fold_value(str(entry_value))}"]'
    prefix = f"{fold_name(path.container)}:" if path.container else ""
    tail = f".{fold_name(sub)}" if sub else ""
    return [(f"{prefix}{fold_name(path.attribute)}{where}{tail}", asked)]


def _terms_within(path: AttributePath) -> list[tuple[str, str | bool]]:
    """`emails[type eq "work" and value eq "x"]` asks the same as `emails[type eq "work"].value eq "x"`."""
    if path.where is None or path.container:
        return []
    compared = path.where.terms if isinstance(path.where, And) else (path.where,)
    values = [t for t in compared if isinstance(t, Comparison) and t.op == "eq" and t.path.attribute == "value"]
    others = [t for t in compared if t not in values]
    if len(values) != 1 or len(others) > 1 or values[0].value is None:
        return []
    inner = values[0].path
    where = others[0] if others else None
    return _index_term(
        AttributePath("", path.attribute, inner.attribute, where, path.rule, inner.rule), values[0].value
    )


def _equal_terms(found: Filter) -> list[tuple[str, Value]] | None:
    """The terms of a value filter that consists of nothing but equalities joined by `and`; None for any other."""
    terms: list[tuple[str, Value]] = []
    for term in found.terms if isinstance(found, And) else (found,):
        if not isinstance(term, Comparison) or term.op != "eq" or term.path.where is not None or term.path.sub:
            return None
        terms.append((term.path.attribute, term.value))
    return terms


def entry_of(where: Filter) -> dict[str, Any] | None:
    """The entry a value filter describes: `type eq "work"` is {"type": "work"}; boolean sub-attributes become booleans.

    Returns:
        None when the filter does not say exactly what an entry must hold, e.g. when it has an `or`.
    """
    terms = _equal_terms(where)
    if terms is None:
        return None
    entry: dict[str, Any] = {}
    compared = where.terms if isinstance(where, And) else (where,)
    for term, (name, value) in zip(compared, terms, strict=True):
        if value is None or name in entry:
            return None
        rule = term.path.rule if isinstance(term, Comparison) else None
        if rule is not None and rule.type == "boolean":
            try:
                entry[name] = parse_bool(value)
            except ValueError:
                return None
        else:
            entry[name] = value
    return entry


def names_of(where: Filter) -> frozenset[str]:
    """The sub-attributes a value filter looks at."""
    if isinstance(where, And | Or):
        return frozenset().union(*(names_of(term) for term in where.terms))
    if isinstance(where, Not):
        return names_of(where.term)
    return frozenset((where.path.attribute,))


# --- query strings ---------------------------------------------------------------------------------------------------

_KNOWN_PARAMETERS = frozenset(
    ("filter", "startindex", "count", "attributes", "excludedattributes", "sortby", "sortorder", "cursor")
)


def query_parameters(raw_query: bytes, *, limits: Limits = DEFAULT_LIMITS) -> dict[str, str]:
    """Decode a query string: `+` and `%20` are spaces, `%2B` is a plus, names are folded (`startindex`).

    Parameters we do not know are kept, and harmless.

    Args:
        raw_query: what follows the `?`, as bytes, undecoded.

    Raises:
        ScimError: 400 `invalidSyntax`: not UTF-8, U+0000, too many parameters, or one of SCIM's parameters twice.
    """
    parameters: dict[str, str] = {}
    if not raw_query:
        return parameters
    parts = raw_query.split(b"&")
    if len(parts) > limits.parameters_max:
        raise invalid_syntax(f"The query has more than {limits.parameters_max} parameters", "Leave some out")
    for part in parts:
        if not part:
            continue
        raw_name, _, raw_value = part.partition(b"=")
        name = fold_name(_decoded(raw_name))
        if name in parameters and name in _KNOWN_PARAMETERS:
            raise invalid_syntax(f"The query gives {name} twice", "Send it once")
        parameters[name] = _decoded(raw_value)
    return parameters


def _decoded(raw: bytes) -> str:
    if b"+" in raw:
        raw = raw.replace(b"+", b" ")
    if b"%" in raw:
        raw = unquote_to_bytes(raw)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise invalid_syntax("The query is not UTF-8", "Encode it as percent-encoded UTF-8") from None
    if "\0" in text:
        raise invalid_syntax("The query holds the character U+0000")
    return text
