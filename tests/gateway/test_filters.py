"""Filters, attribute paths and query strings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.attributes import AttributeName
from gateway.filters import (
    And,
    Comparison,
    Exists,
    Filter,
    Not,
    Or,
    evaluate,
    index_terms,
    parse_filter,
    parse_path,
    query_parameters,
)
from gateway.messages import ENTERPRISE_SCHEMA, USER_SCHEMA, Limits, ScimError
from tests.gateway.samples import samples

TELEPHONY = "urn:ietf:params:scim:schemas:extension:Telephony:2.0:User"
ADA: dict[str, Any] = {
    "id": "2819c223-7f76-453a-919d-413861904646",
    "externalId": "Ada",
    "userName": "Ada@contoso.example",
    "displayName": "Ada Byron",
    "active": True,
    "name": {"familyName": "Byron"},
    "profileUrl": "https://contoso.example/Ada",
    "emails": [
        {"type": "work", "value": "ada@contoso.example", "primary": True},
        {"type": "home", "value": "ada@home.example"},
    ],
    "roles": [{"primary": "True", "value": "agent"}],
    ENTERPRISE_SCHEMA: {"department": "R&D", "manager": {"value": "88a"}},
    TELEPHONY: {"extensionNumber": "4711", "floor": 3, "recorded": True},
    "favouriteColours": ["red", "green"],
    "meta": {"resourceType": "User", "lastModified": "2026-01-31T08:00:00Z"},
}


def refused(text: str, **limits: int) -> ScimError:
    with pytest.raises(ScimError) as error:
        parse_filter(text, limits=Limits(**limits))
    assert (error.value.status, error.value.scim_type) == (400, "invalidFilter")
    return error.value


def holds(text: str, document: dict[str, Any] = ADA) -> bool:
    return evaluate(parse_filter(text), document)


def shape(found: Filter) -> Any:
    """A filter as nested tuples, short enough to compare by eye."""
    if isinstance(found, And | Or):
        return (type(found).__name__.lower(), *(shape(term) for term in found.terms))
    if isinstance(found, Not):
        return ("not", shape(found.term))
    where = f"[{shape(found.path.where)}]" if found.path.where is not None else ""
    if isinstance(found, Exists):
        return f"{found.path.name}{where}"
    return f"{found.path.name}{where} {found.op} {found.value!r}"


# --- the grammar, rule by rule (RFC 7644 figure 1) -------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["eq", "ne", "co", "sw", "ew", "gt", "ge", "lt", "le"])
def test_every_comparison_operator_is_read_in_any_letter_case(operator: str) -> None:
    """RFC 7644, compareOp; operators are case-insensitive (section 3.4.2.2)."""
    for spelled in (operator, operator.upper(), operator.title()):
        found = parse_filter(f'userName {spelled} "x"')
        assert isinstance(found, Comparison)
        assert (found.path.name, found.op, found.value) == ("userName", operator, "x")


def test_presence_needs_no_value() -> None:
    """RFC 7644, attrExp: attrPath SP "pr"."""
    assert shape(parse_filter("title PR")) == "title pr None"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ('"x"', "x"),
        ('""', ""),
        ('"a b"', "a b"),
        (r'"say \"hi\""', 'say "hi"'),
        (r'"back\\slash\/\n\u00e9"', "back\\slash/\né"),
        (r'"\ud83d\ude00"', "😀"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("54", "54"),
        ("-1.5e3", "-1.5e3"),
        ("jyoung", "jyoung"),
        ("ada@contoso.example", "ada@contoso.example"),
        ('"true"', "true"),
        ('"null"', "null"),
    ],
)
def test_values_are_json_literals_or_bare_words(written: str, value: object) -> None:
    """RFC 7644, compValue; beyond it words without quotes, which one published example has."""
    found = parse_filter(f"externalId eq {written}")
    assert isinstance(found, Comparison)
    assert found.value == value
    assert type(found.value) is type(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a eq "1" and b eq "2"', ("and", "a eq '1'", "b eq '2'")),
        ('a eq "1" AND b eq "2" And c pr', ("and", "a eq '1'", "b eq '2'", "c pr None")),
        ('a eq "1" or b eq "2" and c eq "3"', ("or", "a eq '1'", ("and", "b eq '2'", "c eq '3'"))),
        ('(a eq "1" or b eq "2") and c eq "3"', ("and", ("or", "a eq '1'", "b eq '2'"), "c eq '3'")),
        ('not (a eq "1") and b eq "2"', ("and", ("not", "a eq '1'"), "b eq '2'")),
        ("NOT(a pr or b pr)", ("not", ("or", "a pr None", "b pr None"))),
        ("((a pr))", "a pr None"),
        ("not pr", "not pr None"),
    ],
)
def test_logic_and_grouping_bind_in_the_order_of_the_rfc(text: str, expected: object) -> None:
    """RFC 7644 section 3.4.2.2: grouping, then not, then and, then or."""
    assert shape(parse_filter(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('emails[type eq "work"]', "emails[type eq 'work']"),
        (
            'emails[type eq "work" and not (value co "@x")]',
            "emails[('and', \"type eq 'work'\", ('not', \"value co '@x'\"))]",
        ),
        ('emails[type eq "work"].value eq "x"', "emails.value[type eq 'work'] eq 'x'"),
        ('EMAILS[TYPE EQ "work"].VALUE pr', "emails.value[type eq 'work'] pr None"),
        ('emails[type eq "work"] and title pr', ("and", "emails[type eq 'work']", "title pr None")),
        (f'{USER_SCHEMA}:emails[type eq "work"].value eq "x"', "emails.value[type eq 'work'] eq 'x'"),
    ],
)
def test_value_paths_filter_entries(text: str, expected: object) -> None:
    """RFC 7644, valuePath; the sub-attribute after the bracket is what Entra sends."""
    assert shape(parse_filter(text)) == expected


@pytest.mark.parametrize(
    ("written", "container", "attribute", "sub"),
    [
        ("USERNAME", "", "userName", ""),
        ("name.FamilyName", "", "name", "familyName"),
        (f"{USER_SCHEMA}:userName", "", "userName", ""),
        (f"{USER_SCHEMA.upper()}:NAME.familyname", "", "name", "familyName"),
        (f"{ENTERPRISE_SCHEMA}:department", ENTERPRISE_SCHEMA, "department", ""),
        (f"{ENTERPRISE_SCHEMA.lower()}:MANAGER.Value", ENTERPRISE_SCHEMA, "manager", "value"),
        ("manager", ENTERPRISE_SCHEMA, "manager", ""),
        (f"{TELEPHONY}:extensionNumber", TELEPHONY, "extensionNumber", ""),
        (f"{TELEPHONY}:phone.number", TELEPHONY, "phone", "number"),
        ("members.$ref", "", "members", "$ref"),
        ("Favourite-Colour_2", "", "Favourite-Colour_2", ""),
    ],
)
def test_attribute_names_are_resolved_in_any_spelling(written: str, container: str, attribute: str, sub: str) -> None:
    """RFC 7644, attrPath, with URN prefixes (section 3.10) in any letter case."""
    found = parse_filter(f"{written} pr")
    assert isinstance(found, Comparison)
    assert (found.path.container, found.path.attribute, found.path.sub) == (container, attribute, sub)
    assert found.path.name == AttributeName(container, attribute, sub).text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "userName",
        "userName eq",
        'userName eq "x',
        'userName "x"',
        'userName is "x"',
        'eq "x"',
        '"userName" eq "x"',
        'userName eq "x" and',
        'and userName eq "x"',
        'userName eq "x" userName eq "y"',
        'userName eq "x")',
        '(userName eq "x"',
        "()",
        "not",
        'not userName eq "x"',
        'emails[type eq "work"',
        'emails[type eq "work"]]',
        "emails[]",
        'emails[type eq "work"].value',
        'emails[type eq "work"].',
        'emails[type eq "work"].a.b eq "x"',
        'emails[addresses[type eq "x"]]',
        'emails[urn:a:b:c eq "x"]',
        'emails.type[value eq "x"]',
        '[type eq "x"]',
        'user name eq "x"',
        'üname eq "x"',
        'name.a.b eq "x"',
        '.value eq "x"',
        'name. eq "x"',
        '1a eq "x"',
        'http://a eq "x"',
        'urn:ietf:params:scim:schemas:core:2.0:User: eq "x"',
        f'{ENTERPRISE_SCHEMA}[a eq "x"]',
        r'userName eq "\x"',
        r'userName eq "\ud800"',
        r'userName eq "\u0000"',
        "userName eq (",
        'userName\neq\n"x"',
        "active gt true",
        'active lt "x"',
        'x509Certificates ge "x"',
        "userName gt null",
        'meta.lastModified gt "yesterday"',
        "a" * 300 + ' eq "x"',
    ],
)
def test_what_is_no_filter_is_refused(text: str) -> None:
    """RFC 7644 section 3.4.2.2: 400 invalidFilter, with a sentence about what is wrong."""
    assert refused(text).detail.startswith("The filter ")


@pytest.mark.parametrize(
    "text",
    [
        'password eq "x"',
        "PASSWORD pr",
        f'{USER_SCHEMA}:password sw "x"',
        'userName eq "x" or not (password co "x")',
        'emails[password eq "x"]',
        'emails[type eq "work"].password eq "x"',
        'x.password eq "x"',
    ],
)
def test_password_is_never_filterable(text: str) -> None:
    """reliability S8: a filter on password would tell a caller its letters one by one."""
    assert "password" in refused(text).detail


def test_the_word_password_may_be_searched_for() -> None:
    """Only the attribute is forbidden, not the value."""
    assert holds('displayName eq "password"', {"displayName": "Password"})


def test_the_length_limit_is_1_kib_in_bytes() -> None:
    """reliability S7: filter 1 KiB."""
    frame = len('userName eq ""')
    assert parse_filter(f'userName eq "{"x" * (1_024 - frame)}"')
    assert "1,024 bytes" in refused(f'userName eq "{"x" * (1_025 - frame)}"').detail
    assert "1,024 bytes" in refused(f'userName eq "{"é" * 510}"').detail


def test_the_depth_limit_is_8_counting_parentheses_and_brackets() -> None:
    """reliability S7: depth 8."""
    assert parse_filter("(" * 8 + "title pr" + ")" * 8)
    assert "8 levels" in refused("(" * 9 + "title pr" + ")" * 9).detail
    assert parse_filter("(" * 7 + "emails[value pr]" + ")" * 7)
    assert "8 levels" in refused("(" * 8 + "emails[value pr]" + ")" * 8).detail
    assert "8 levels" in refused("(" * 1_000).detail
    assert parse_filter(" and ".join(["(title pr)"] * 20)), "levels that were left do not count"


def test_the_limit_of_comparisons_is_32() -> None:
    """reliability S7: 32 terms, those inside value filters included."""
    assert parse_filter(" or ".join(["title pr"] * 32))
    assert "32 comparisons" in refused(" or ".join(["title pr"] * 33)).detail
    assert "32 comparisons" in refused(" or ".join(["a[b pr]"] * 17)).detail


# --- what a filter means ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('userName eq "ada@CONTOSO.example"', True),
        ('userName eq "grace@contoso.example"', False),
        ('externalId eq "Ada"', True),
        ('externalId eq "ada"', False),
        ('id eq "2819c223-7f76-453a-919d-413861904646"', True),
        ('id eq "2819C223-7F76-453A-919D-413861904646"', False),
        ('profileUrl sw "https://contoso.example/A"', True),
        ('profileUrl sw "https://contoso.example/a"', False),
        ('userName ne "x"', True),
        ('userName ne "ADA@contoso.example"', False),
        ('nickName ne "x"', True),
        ('nickName eq "x"', False),
        ('displayName co "a b"', True),
        ('displayName sw "ada"', True),
        ('displayName sw "byron"', False),
        ('displayName ew "BYRON"', True),
        ('displayName gt "Ada"', True),
        ('displayName ge "ada byron"', True),
        ('displayName lt "ada byron"', False),
        ('displayName le "ada byron"', True),
        ("title pr", False),
        ("displayName pr", True),
        ("emails pr", True),
        ("emails.display pr", False),
        ("name.familyName pr", True),
        ("title eq null", True),
        ("displayName eq null", False),
        ("displayName ne null", True),
        ("active eq true", True),
        ('active eq "True"', True),
        ("active eq false", False),
        ("active ne false", True),
        ('active eq "perhaps"', False),
        ('name.familyName eq "byron"', True),
        ('emails eq "ada@home.example"', True),
        ('emails.value eq "ada@home.example"', True),
        ('emails.value ne "ada@home.example"', True),
        ('emails.value eq "nobody@home.example"', False),
        ('emails[type eq "work"].value eq "ADA@contoso.example"', True),
        ('emails[type eq "WORK"].value eq "ada@contoso.example"', True),
        ('emails[type eq "work"].value eq "ada@home.example"', False),
        ('emails[type eq "work" and value co "home"]', False),
        ('emails[type eq "home" and value co "home"]', True),
        ('emails[type eq "fax"].value pr', False),
        ('emails[primary eq "True"].type eq "work"', True),
        ("roles[primary eq true]", True),
        ('roles[primary eq "false"]', False),
        ('manager eq "88a"', True),
        ('manager eq "88A"', False),
        (f'{ENTERPRISE_SCHEMA}:manager.value eq "88a"', True),
        (f'{ENTERPRISE_SCHEMA}:department eq "r&d"', True),
        ('department eq "r&d"', True),
        (f'{TELEPHONY.upper()}:EXTENSIONNUMBER eq "4711"', True),
        (f"{TELEPHONY}:extensionNumber eq 4711", True),
        (f"{TELEPHONY}:floor gt 2", True),
        (f'{TELEPHONY}:floor eq "3"', True),
        (f"{TELEPHONY}:floor gt 10", False),
        (f'{TELEPHONY}:recorded eq "TRUE"', True),
        (f"{TELEPHONY} pr", True),
        ("urn:ietf:params:scim:schemas:extension:Other:2.0:User pr", False),
        ('favouritecolours eq "RED"', True),
        ('favouriteColours[value eq "green"]', True),
        ('favouriteColours eq "blue"', False),
        ('meta.lastModified gt "2026-01-31T07:59:59Z"', True),
        ('meta.lastModified eq "2026-01-31T09:00:00+01:00"', True),
        ('meta.lastModified lt "2026-01-31T08:00:00.001Z"', True),
        ('meta.lastModified sw "2026-01"', True),
        ('meta.resourceType eq "user"', False),
        ('userName eq "x" or active eq true', True),
        ('userName eq "x" and active eq true', False),
        ('not (userName eq "x")', True),
        ('not (active eq true or title pr) or displayName co "ada"', True),
    ],
)
def test_a_filter_holds_as_the_rfc_says(text: str, expected: bool) -> None:
    """RFC 7644 section 3.4.2.2 with caseExact of RFC 7643 section 7; booleans and their text are equal."""
    assert holds(text) is expected


def test_values_of_other_types_never_break_an_evaluation() -> None:
    """A document may hold anything under a name a filter asks for."""
    odd: dict[str, Any] = {
        "userName": {"value": 5},
        "emails": "text",
        "name": ["x", {"familyName": 1}],
        "active": [None, 3],
    }
    for path in ("userName", "emails", "emails.value", "name.familyName", "active", "emails[value pr].value"):
        for operator in ("eq", "ne", "co", "sw"):
            assert isinstance(holds(f'{path} {operator} "x"', odd), bool)
    assert holds('emails eq "text"', odd)


# --- look-ups by index -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ('userName eq "Ada"', [("username", "ada")]),
        ('externalId eq "Ada"', [("externalid", "Ada")]),
        ('id eq "A" and displayName eq "B"', [("id", "A"), ("displayname", "b")]),
        ('(id eq "A" and (userName eq "B"))', [("id", "A"), ("username", "b")]),
        ('emails eq "A"', [("emails.value", "a")]),
        ('emails.value eq "A"', [("emails.value", "a")]),
        ('emails[type eq "Work"].value eq "A"', [('emails[type eq "work"].value', "a")]),
        ('emails[type eq "work" and value eq "A"]', [('emails[type eq "work"].value', "a")]),
        ('emails[value eq "A"]', [("emails.value", "a")]),
        ('members[value eq "A"]', [("members.value", "A")]),
        ('members eq "A"', [("members.value", "A")]),
        ('active eq "True" and userName eq "a"', [("active", True), ("username", "a")]),
        (f'{TELEPHONY}:extensionNumber eq "X"', [(f"{TELEPHONY.lower()}:extensionnumber", "x")]),
        ('userName eq "a" and title pr', [("username", "a")]),
        ('userName eq "a" and (title pr or id eq "1")', [("username", "a")]),
        ('userName eq "a" and not (id eq "1")', [("username", "a")]),
        ('userName eq "a" or id eq "1"', []),
        ('userName ne "a"', []),
        ("userName eq null", []),
        ("userName eq true", []),
        ('active eq "perhaps"', []),
        ('emails[type eq "work" or type eq "home"].value eq "a"', []),
        ('emails[type co "work"].value eq "a"', []),
        ('emails[type co "work" and value eq "a"]', []),
        ('not (userName eq "a")', []),
    ],
)
def test_index_terms_are_the_equalities_every_hit_must_satisfy(text: str, terms: list[tuple[str, object]]) -> None:
    """The store may look these up by index; whatever is under an or, a not or another operator is no such term."""
    assert index_terms(parse_filter(text)) == terms


names = st.sampled_from(["userName", "externalId", "active", "title", "emails.value", "nope"])
values = st.sampled_from(['"A"', '"a"', '"true"', "true", "null", '"b"'])
comparisons = st.builds(
    lambda n, o, v: f"{n} {o} {v}" if o != "pr" else f"{n} pr", names, st.sampled_from(["eq", "ne", "co", "pr"]), values
) | st.builds(lambda v, w: f"emails[type eq {v} and value eq {w}]", values, values)
filters = st.recursive(
    comparisons,
    lambda inner: (
        st.builds(lambda a, j, b: f"({a} {j} {b})", inner, st.sampled_from(["and", "or"]), inner)
        | st.builds("not ({})".format, inner)
    ),
    max_leaves=6,
)
texts = st.sampled_from(["A", "a", "b", "true"])
documents = st.fixed_dictionaries(
    {},
    optional={
        "userName": texts,
        "externalId": texts,
        "active": st.booleans(),
        "title": texts,
        "emails": st.lists(st.fixed_dictionaries({"type": texts, "value": texts}), max_size=2),
    },
)


@given(filters, documents)
def test_every_hit_satisfies_its_index_terms(text: str, document: dict[str, Any]) -> None:
    """Looking up by index never loses a hit: a document that satisfies the filter satisfies each index term."""
    try:
        found = parse_filter(text)
    except ScimError as error:
        assert "levels" in error.detail  # noqa: PT017 - the only limit these texts can meet
        return
    if not evaluate(found, document):
        return
    for path, value in index_terms(found):
        written = "true" if value is True else "false" if value is False else f'"{value}"'
        assert holds(f"{path} eq {written}", document), (path, value)


@given(filters, documents)
def test_not_turns_every_answer_around(text: str, document: dict[str, Any]) -> None:
    """RFC 7644 table 4: `not` is the logical opposite."""
    if text.count("(") < 7:
        assert holds(f"not ({text})", document) is not holds(text, document)


@given(st.text(max_size=60) | st.text('abeqorndt[]()." \\:$u', max_size=60))
@example("(" * 2_000)
@example('urn:a:b:2.0:c eq "x"')
def test_no_text_raises_anything_but_invalid_filter(text: str) -> None:
    """reliability S8: any text is a filter or a 400."""
    try:
        found = parse_filter(text)
    except ScimError as error:
        assert error.scim_type == "invalidFilter"  # noqa: PT017 - both outcomes are allowed
    else:
        evaluate(found, ADA)
        index_terms(found)


# --- paths of PATCH --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "filtered"),
    [
        ("userName", "userName", False),
        ('Emails[Type eq "work"].Value', "emails.value", True),
        ('members[value eq "88"]', "members", True),
        (f"{ENTERPRISE_SCHEMA}:manager", f"{ENTERPRISE_SCHEMA}:manager", False),
        (ENTERPRISE_SCHEMA, ENTERPRISE_SCHEMA, False),
        (f"{TELEPHONY}:a.b", f"{TELEPHONY}:a.b", False),
    ],
)
def test_a_path_is_an_attribute_a_value_path_or_a_schema(text: str, name: str, filtered: bool) -> None:
    """RFC 7644 figure 7."""
    path = parse_path(text, "User")
    assert path.name == name
    assert (path.where is not None) is filtered


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/displayName",
        "a b",
        "emails[",
        "emails[]",
        'emails[type eq "w"].value eq "x"',
        "a.b.c",
        '"x"',
        "emails]",
        "x" * 2_000,
        "a\0b",
    ],
)
def test_what_is_no_path_is_refused_as_a_path(text: str) -> None:
    """RFC 7644 table 9: invalidPath."""
    with pytest.raises(ScimError) as error:
        parse_path(text, "User")
    assert error.value.scim_type == "invalidPath"


def test_a_refused_path_does_not_repeat_the_values_in_it() -> None:
    """Promise P9: the value inside a filter may be personal."""
    for text in ('emails[value eq "ada@contoso.example"', 'emails value eq "ada@contoso.example"'):
        with pytest.raises(ScimError) as error:
            parse_path(text, "User")
        assert "ada@" not in error.value.detail


# --- query strings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "parameters"),
    [
        (b"", {}),
        (b"filter=userName+eq+%22a%2Bb%40x%22", {"filter": 'userName eq "a+b@x"'}),
        (b"filter=userName%20eq%20%22O%27Neil%22", {"filter": 'userName eq "O\'Neil"'}),
        (b"FILTER=a&startIndex=1&COUNT=5", {"filter": "a", "startindex": "1", "count": "5"}),
        (b"filter=%C3%84rger&x", {"filter": "Ärger", "x": ""}),
        (b"filter=%25", {"filter": "%"}),
        (b"filter=a%26b%3Dc=d", {"filter": "a&b=c=d"}),
        (b"aadOptscim062020", {"aadoptscim062020": ""}),
        (b"&&filter=a&", {"filter": "a"}),
        (b"x=1&x=2", {"x": "2"}),
        (b"filter=%zz", {"filter": "%zz"}),
        ("filter=Ä".encode(), {"filter": "Ä"}),
    ],
)
def test_query_strings_are_decoded_as_entra_encodes_them(raw: bytes, parameters: dict[str, str]) -> None:
    """Space as + or %20, plus as %2B; unknown parameters such as aadOptscim062020 are harmless."""
    assert query_parameters(raw) == parameters


@pytest.mark.parametrize(
    "raw",
    [
        b"filter=%FF",
        b"filter=\xff",
        b"filter=%00",
        b"%00=1",
        b"filter=a&FILTER=b",
        b"count=1&count=1",
        b"&".join([b"a=1"] * 65),
    ],
)
def test_query_strings_that_could_mean_two_things_are_refused(raw: bytes) -> None:
    """Not UTF-8, U+0000, a SCIM parameter twice, or too many: 400 invalidSyntax."""
    with pytest.raises(ScimError) as error:
        query_parameters(raw)
    assert (error.value.status, error.value.scim_type) == (400, "invalidSyntax")


@given(st.binary(max_size=100))
def test_no_query_raises_anything_but_a_scim_error(raw: bytes) -> None:
    """reliability S8: any bytes are parameters or a 400."""
    try:
        parameters = query_parameters(raw)
    except ScimError as error:
        assert error.status == 400  # noqa: PT017 - both outcomes are allowed
    else:
        assert all("\0" not in name + value for name, value in parameters.items())


# --- wire samples ----------------------------------------------------------------------------------------------------

QUERIES = samples("GET")


@pytest.mark.parametrize("name", QUERIES)
def test_a_recorded_query_finds_what_it_is_meant_to_find(name: str) -> None:
    """Each file of tests/samples names its source and the documented fact it checks."""
    sample = QUERIES[name]
    found = parse_filter(query_parameters(sample["query"].encode())["filter"])
    assert [evaluate(found, document) for document in sample["finds"]] == [True] * len(sample["finds"]), sample["fact"]
    assert [evaluate(found, document) for document in sample["misses"]] == [False] * len(sample["misses"]), sample[
        "fact"
    ]
    assert [list(term) for term in index_terms(found)] == sample["index_terms"]


def test_an_operator_entra_never_uses_works_or_is_refused_but_never_finds_everything() -> None:
    """`userName sw "a"`: supported here, so it finds exactly what begins with it."""
    found = parse_filter('userName sw "a"')
    assert evaluate(found, {"userName": "Ada"})
    assert not evaluate(found, {"userName": "Grace"})
    assert index_terms(found) == []
