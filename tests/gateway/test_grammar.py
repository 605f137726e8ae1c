"""The grammars of RFC 7644, one rule after the other: filters (figure 1) and PATCH paths (figure 7), each with its limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.filters import And, Filter, Not, Or, parse_filter, parse_path
from gateway.messages import Limits, ScimError

CORE = "urn:ietf:params:scim:schemas:core:2.0:User"
ENTERPRISE = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
RULES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "FILTER = attrExp / logExp / valuePath / *1not (FILTER)": (
        (
            "title pr",
            "title pr and active pr",
            "emails[type pr]",
            "(title pr)",
            "((title pr))",
            "NOT (title pr)",
            "not (not (title pr))",
        ),
        ("", " ", "title", "not", "not title pr", "(title pr", "title pr)", "not not (title pr)", "()"),
    ),
    "valuePath = attrPath [valFilter]": (
        ('emails[type eq "work"]', f'{CORE}:emails[type eq "work"]', "x[y pr]", f'{ENTERPRISE}:manager[value eq "1"]'),
        (
            "emails[]",
            "[type pr]",
            "emails.value[type pr]",
            "emails[type pr",
            "emails type pr]",
            "emails[emails[type pr]]",
        ),
    ),
    "valFilter = attrExp / logExp / *1not (valFilter)": (
        ("emails[type pr or value pr]", "emails[not (type pr)]", "emails[(type pr and value pr) or primary eq true]"),
        ("emails[type]", "emails[not type pr]", "emails[type pr and]", "emails[(type pr]", "emails[type pr)]"),
    ),
    "attrExp = (attrPath SP pr) / (attrPath SP compareOp SP compValue)": (
        ("title pr", 'title eq "x"', "title  pr", 'title   eq   "x"'),
        ("title prx", "title eq", "eq title", 'eq "x"', "pr", 'title "x"', 'title eq "x" "y"'),
    ),
    "logExp = FILTER SP (and / or) SP FILTER": (
        ("title pr and active pr", "title pr or active pr", "title pr AND active pr or id pr"),
        (
            "title pr and",
            "and title pr",
            "title pr and or id pr",
            "title pr id pr",
            "title pr xor id pr",
            "title pr & id pr",
        ),
    ),
    "compValue = false / null / true / number / string": (
        (
            "active eq true",
            "active eq false",
            "title eq null",
            "x eq 1.5e3",
            'title eq "a\\"b\\\\c\\u00e9"',
            'title eq ""',
        ),
        ('title eq "a', 'title eq "\\x"', 'title eq "\\ud800"', "title eq ()", "title eq []", 'title eq "\\u0000"'),
    ),
    "compareOp = eq / ne / co / sw / ew / gt / lt / ge / le": (
        tuple(f'title {op} "a"' for op in ("eq", "ne", "co", "sw", "ew", "gt", "lt", "ge", "le", "EQ", "Sw")),
        tuple(f'title {op} "a"' for op in ("==", "=", "like", "in", "equals", "<", "e q")),
    ),
    "attrPath = [URI :] ATTRNAME *1subAttr": (
        (
            "title pr",
            "meta.created pr",
            f"{CORE}:name.familyName pr",
            f"{ENTERPRISE}:manager.value pr",
            "urn:x:y:1.0:Z:a.b pr",
        ),
        ("a.b.c pr", "urn: pr", f"{CORE}:: pr", f"{CORE}:a.b.c pr", ":title pr", "title: pr"),
    ),
    "ATTRNAME = ALPHA *(nameChar)": (
        ("a pr", "A1 pr", "a-b_c pr", "x" * 256 + " pr"),
        ("1a pr", "-a pr", "a%b pr", "ä pr", "a!b pr", "a@b pr", "x" * 257 + " pr"),
    ),
    "subAttr = . ATTRNAME": (("members.$ref pr", "name.a1 pr"), ("name. pr", "name.1a pr", ".a pr", "name..a pr")),
}


def refused(text: str, limits: Limits = Limits()) -> str:  # noqa: B008 - frozen
    """The sentence it is refused with."""
    with pytest.raises(ScimError) as error:
        parse_filter(text, limits=limits)
    assert (error.value.status, error.value.scim_type) == (400, "invalidFilter")
    return error.value.detail


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_takes_what_it_describes_and_nothing_else(rule: str) -> None:
    """RFC 7644 figure 1, rule by rule; what is refused says why and is `invalidFilter`."""
    taken, others = RULES[rule]
    for text in taken:
        parse_filter(text)
    for text in others:
        refused(text)


# ---- sentences made by the grammar itself

names = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True).filter(
    lambda name: name.lower() not in ("not", "password", "and", "or", "active", "members")
)
values = st.one_of(
    st.sampled_from(("true", "false", "null")),
    st.integers().map(str),
    st.text("abc é😀", max_size=5).map(lambda t: f'"{t}"'),
)
paths = st.one_of(names, st.builds("{}.{}".format, names, names), names.map(lambda name: f"{CORE}:{name}"))
plain = st.one_of(
    paths.map(lambda path: f"{path} pr"),
    st.builds("{} {} {}".format, paths, st.sampled_from(("eq", "NE", "co", "sw", "Ew")), values),
)


def _joined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("({})".format, inner),
        st.builds("not ({})".format, inner),
        st.builds("{} {} {}".format, inner, st.sampled_from(("and", "or", "AND", "Or")), inner),
    )


inside = st.recursive(st.builds("{} eq {}".format, names, values), _joined, max_leaves=3)
sentences = st.recursive(st.one_of(plain, st.builds("{}[{}]".format, names, inside)), _joined, max_leaves=6)
WIDE = Limits(filter_bytes_max=100_000, filter_depth_max=100, filter_terms_max=1_000)


def terms_of(found: Filter) -> int:
    """How many comparisons and value paths a filter joins."""
    if isinstance(found, And | Or):
        return sum(map(terms_of, found.terms))
    return terms_of(found.term) if isinstance(found, Not) else 1


@given(text=sentences)
def test_every_sentence_of_the_grammar_is_a_filter(text: str) -> None:
    """RFC 7644 figure 1: what its rules derive is taken, however deep, unless a limit or a type says otherwise."""
    try:
        found = parse_filter(text, limits=WIDE)
    except ScimError as error:
        assert "no date and time" in error.detail or "has no order" in error.detail  # noqa: PT017
        return
    assert terms_of(found) >= 1


@given(left=sentences, right=sentences)
def test_joining_two_filters_joins_their_terms(left: str, right: str) -> None:
    """Order of operations: in parentheses a filter is one term, whatever is in it."""
    try:
        parts = [parse_filter(text, limits=WIDE) for text in (left, right)]
    except ScimError:
        return
    for word, made in (("and", And), ("or", Or)):
        whole = parse_filter(f"({left}) {word} ({right})", limits=WIDE)
        assert isinstance(whole, made)
        assert whole.terms == tuple(parts)


# ---- PATCH paths


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("title", "title"),
        ("name.familyName", "name.familyName"),
        (f"{CORE}:title", "title"),
        (CORE, ""),
        ('emails[type eq "work"]', "emails"),
        ('emails[type eq "work"].value', "emails.value"),
        ('emails[type eq "work" and not (value sw "x")].value', "emails.value"),
        (f'{CORE}:emails[type eq "work"].value', "emails.value"),
        ("urn:x:y:1.0:Z:a.b", "urn:x:y:1.0:Z:a.b"),
        ('members[value eq "1"]', "members"),
    ],
)
def test_PATH_is_an_attribute_path_or_a_value_path_with_a_part(text: str, name: str) -> None:
    """RFC 7644 figure 7: PATH = attrPath / valuePath [subAttr]."""
    assert parse_path(text, "User").name == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "title pr",
        'title eq "x"',
        "title and name",
        "not (title)",
        "(title)",
        'emails[type eq "a"].value.x',
        'emails[type eq "a"]value',
        "emails[].value",
        "emails[",
        "emails]",
        "emails[type]",
        "emails[type pr]..value",
        "a b",
        'emails[type eq "a"].',
        "title,name",
    ],
)
def test_PATH_is_no_filter_and_no_list(text: str) -> None:
    """RFC 7644 figure 7 and table 9: `invalidPath`."""
    with pytest.raises(ScimError) as error:
        parse_path(text, "User")
    assert (error.value.status, error.value.scim_type) == (400, "invalidPath")


@pytest.mark.parametrize(
    ("fits", "exceeds", "word"),
    [
        ("emails[" + "(" * 7 + "type pr" + ")" * 7 + "]", "emails[" + "(" * 8 + "type pr" + ")" * 8 + "]", "8 levels"),
        (
            "emails[" + " or ".join(["type pr"] * 32) + "]",
            "emails[" + " or ".join(["type pr"] * 33) + "]",
            "32 comparisons",
        ),
        ('emails[type eq "' + "x" * (1_024 - 18) + '"]', 'emails[type eq "' + "x" * (1_025 - 18) + '"]', "1,024 bytes"),
    ],
)
def test_a_path_has_the_limits_of_a_filter(fits: str, exceeds: str, word: str) -> None:
    """Security requirement S7, at each limit and one beyond."""
    assert parse_path(fits, "User").where is not None
    with pytest.raises(ScimError) as error:
        parse_path(exceeds, "User")
    assert error.value.scim_type == "invalidPath"
    assert word in error.value.detail


@pytest.mark.parametrize("opening", ["(", "not (", "emails[", "emails[(", "a["])
def test_no_depth_reaches_the_limit_of_the_interpreter(opening: str) -> None:
    """Ten thousand openings are refused by our own limit, for filters and for paths."""
    text = opening * 10_000
    wide = Limits(filter_bytes_max=1_000_000)

    assert "8 levels" in refused(text, wide) or "part" in refused(text, wide) or "operator" in refused(text, wide)
    with pytest.raises(ScimError):
        parse_path(f"emails[{text}", "User", limits=wide)
