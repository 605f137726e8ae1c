"""The grammars of RFC 7644, rule by rule: filters (figure 1) and PATCH paths (figure 7)."""

from __future__ import annotations

import pytest

from gateway.filters import parse_filter, parse_path
from gateway.messages import ScimError

URN = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"

DERIVED = {
    "FILTER = attrExp": ["userName pr", 'userName eq "x"'],
    "FILTER = logExp": ['userName eq "x" and title pr', 'userName eq "x" or title pr'],
    "FILTER = valuePath": ['emails[type eq "work"]'],
    'FILTER = *1"not" "(" FILTER ")"': ["(title pr)", "not (title pr)", "not (not (title pr))", "((title pr))"],
    'valuePath = attrPath "[" valFilter "]"': ["emails[type pr]", f'{URN}:manager[value eq "1"]'],
    "valFilter = attrExp / logExp": ['emails[type eq "work" and value co "@"]', "emails[type pr or value pr]"],
    'valFilter = *1"not" "(" valFilter ")"': ["emails[(type pr)]", "emails[not (type pr)]"],
    'attrExp = attrPath SP "pr"': ["title pr", "title PR", "name.givenName pr"],
    "attrExp = attrPath SP compareOp SP compValue": [
        f'title {op} "x"' for op in ("eq", "ne", "co", "sw", "ew", "gt", "lt", "ge", "le", "EQ", "Sw")
    ],
    'logExp = FILTER SP ("and" / "or") SP FILTER': ["title pr AND nickName pr", "title pr or nickName pr Or active pr"],
    "compValue = false / null / true / number / string": [
        "active eq false",
        "active eq true",
        "title eq null",
        "title eq 1.5e3",
        r'title eq "a\"b\\c\u00e9"',
    ],
    'attrPath = [URI ":"] ATTRNAME *1subAttr': [
        f'{URN}:department eq "x"',
        f'{URN}:manager.value eq "1"',
        "meta.created pr",
    ],
    'ATTRNAME = ALPHA *(nameChar); nameChar = "-" / "_" / DIGIT / ALPHA': ["a-b_9 pr"],
}
BROKEN = {
    "FILTER": ["", " ", "()", "not", "not title pr", "(title pr", "title pr)"],
    "valuePath": ["emails[]", "emails[type pr", "emails type pr]", "[type pr]", "emails[emails[type pr]]"],
    "attrExp": ["title", "title eq", "eq title", 'title like "x"', 'title "x"'],
    "logExp": ["title pr and", "and title pr", "title pr and or active pr", "title pr active pr"],
    "compValue": ['title eq "x', r'title eq "\x"', "title eq [1]"],
    "attrPath": ['9title eq "x"', "name..givenName pr", ".title pr", "title. pr", 'ti%tle eq "x"'],
}
PATHS = {
    "PATH = attrPath": ["title", "name.givenName", f"{URN}:department", f"{URN}:manager.value"],
    "PATH = valuePath [subAttr]": ['emails[type eq "work"]', 'emails[type eq "work"].value', 'members[value eq "1"]'],
}
BROKEN_PATHS = [
    "",
    "emails[",
    "emails]",
    "emails[type]",
    'emails[type eq "work"]value',
    "emails[type pr]..value",
    "a b",
]


def listed(table: dict[str, list[str]]) -> list[object]:
    return [pytest.param(text, id=f"{rule}: {text}") for rule, texts in table.items() for text in texts]


@pytest.mark.parametrize("text", listed(DERIVED))
def test_what_a_rule_of_the_filter_grammar_derives_is_read(text: str) -> None:
    """RFC 7644 figure 1: every alternative of every rule."""
    assert parse_filter(text) is not None


@pytest.mark.parametrize("text", listed(BROKEN))
def test_what_breaks_a_rule_of_the_filter_grammar_is_refused(text: str) -> None:
    """RFC 7644 section 3.4.2.2: invalidFilter, and never another error."""
    with pytest.raises(ScimError) as refused:
        parse_filter(text)
    assert (refused.value.status, refused.value.scim_type) == (400, "invalidFilter")


@pytest.mark.parametrize("text", listed(PATHS))
def test_what_a_rule_of_the_path_grammar_derives_is_read(text: str) -> None:
    """RFC 7644 figure 7: every alternative."""
    assert parse_path(text, "Group" if text.startswith("members") else "User") is not None


@pytest.mark.parametrize("text", BROKEN_PATHS)
def test_what_breaks_the_path_grammar_is_refused(text: str) -> None:
    """RFC 7644 section 3.5.2: invalidPath."""
    with pytest.raises(ScimError) as refused:
        parse_path(text, "User")
    assert (refused.value.status, refused.value.scim_type) == (400, "invalidPath")
