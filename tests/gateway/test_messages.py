"""Bodies in, resources, lists and errors out."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import messages
from gateway.messages import (
    DEFAULT_LIMITS,
    ENTERPRISE_SCHEMA,
    ERROR,
    GROUP_SCHEMA,
    LIST_RESPONSE,
    USER_SCHEMA,
    Limits,
    ScimError,
    attribute_names,
    decode_body,
    list_response,
    parse_bool,
    project,
    resource_bytes,
    timestamp,
)

SECRET = "hunter2-very-personal"


def refusal(raw: bytes, **limits: int) -> ScimError:
    with pytest.raises(ScimError) as refused:
        decode_body(raw, Limits(**limits))
    return refused.value


def decoded_or_refused(raw: bytes) -> dict[str, Any] | int:
    try:
        return decode_body(raw)
    except ScimError as error:
        return error.status


def test_an_ordinary_body_is_decoded_unchanged() -> None:
    """Decoding loses nothing: unknown names, nulls and nesting arrive as they were sent."""
    body = {"schemas": [USER_SCHEMA], "userName": "a", "x": None, "name": {"n": [1, 2.5, True, {"deep": "é"}]}}
    assert decode_body(json.dumps(body).encode()) == body


def test_a_byte_order_mark_is_tolerated() -> None:
    """Some clients put a BOM before the JSON."""
    assert decode_body(b'\xef\xbb\xbf{"userName":"a"}') == {"userName": "a"}


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"   ", "empty", id="blank"),
        pytest.param(b"{", "not valid JSON", id="truncated"),
        pytest.param(b'{"a":1} x', "not valid JSON", id="trailing"),
        pytest.param(b'{"a":NaN}', "not valid JSON", id="nan"),
        pytest.param(b'{"a":-Infinity}', "not valid JSON", id="infinity"),
        pytest.param(b'{"a":1e999}', "out of range", id="number too large"),
        pytest.param(b'{"a":' + b"9" * 5000 + b"}", "out of range", id="integer of 5,000 digits"),
        pytest.param(b"[]", "not a JSON object", id="array"),
        pytest.param(b'"text"', "not a JSON object", id="string"),
        pytest.param(b"null", "not a JSON object", id="null"),
        pytest.param(b'{"a":"\xff"}', "UTF-8", id="invalid UTF-8"),
        pytest.param(b'{"a":"\xed\xa0\x80"}', "UTF-8", id="surrogate in UTF-8"),
        pytest.param(b'{"a":"\\ud800"}', "not valid JSON", id="lone surrogate"),
        pytest.param(b'{"a":"\\udc00x"}', "not valid JSON", id="lone low surrogate"),
        pytest.param(b'{"a":"x\\u0000"}', "U+0000", id="escaped U+0000"),
        pytest.param(b'{"a\\u0000":1}', "U+0000", id="U+0000 in a key"),
        pytest.param(b'{"a":"\x00"}', "not valid JSON", id="raw U+0000"),
        pytest.param(b'{"a":' * 100_000, "deeper", id="100,000 objects deep"),
        pytest.param(b"[" * 100_000, "deeper", id="100,000 arrays deep"),
    ],
)
def test_what_is_no_good_json_object_is_refused_with_its_reason(raw: bytes, named: str) -> None:
    """reliability S8: decoding errors of every kind are a 400 invalidSyntax, never a RecursionError or 500."""
    error = refusal(raw)
    assert (error.status, error.scim_type) == (400, "invalidSyntax")
    assert named in error.detail


def test_an_escaped_backslash_before_u0000_is_not_the_character() -> None:
    """The text backslash-u0000 is harmless; only the character is refused."""
    assert decode_body(b'{"a":"\\\\u0000"}') == {"a": "\\u0000"}


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"a":2}',
        b'{"a" :1,"a"\n:2}',
        b'{"x":{"a":1,"a":1}}',
        b'{"x":[{"a":1},{"a":1,"a":2}]}',
        b'{"a":1,"\\u0061":2}',
        b'{"a":"x\\":","a":2}',
        b'{"a\\\\":1,"a\\\\":2}',
        b'{"":1,"":2}',
    ],
)
def test_a_key_given_twice_is_refused_however_it_is_written(raw: bytes) -> None:
    """reliability S8: two readers of one body must never disagree about which of two values counts."""
    error = refusal(raw)
    assert error.scim_type == "invalidSyntax"
    assert "twice" in error.detail


@pytest.mark.parametrize(
    "raw", [b'{"a":"b\\":","c":1}', b'{"a":":b","c":":"}', b'{"a" : "\\"x\\" : 1"}', b'{"a\\\\":1,"b":"\\\\"}']
)
def test_colons_and_quotes_inside_strings_are_not_taken_for_keys(raw: bytes) -> None:
    """Values that look like keys do not get an honest body refused."""
    assert decode_body(raw) == json.loads(raw)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(['"', ":", "\\", "a", "b", 'a":']), inner, max_size=4)
    ),
    max_leaves=12,
)


class Pairs(dict[str, Any]):
    """A dict that json.dumps writes with its pairs as given, also those whose key occurs twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs

    def items(self) -> Any:
        return self.pairs


@given(
    st.lists(st.tuples(st.sampled_from(['"', ":", "\\", "a", 'a":', "\u00e9"]), json_values), max_size=5), st.booleans()
)
def test_a_key_is_found_twice_exactly_when_it_is_there_twice(pairs: list[tuple[str, Any]], spaced: bool) -> None:
    """The cheap count of keys decides the same as a reading that looks at every pair."""
    raw = json.dumps(Pairs(pairs), separators=(", ", " : ") if spaced else (",", ":")).encode()
    twice = len({key for key, _ in pairs}) != len(pairs)
    if b"\\u0000" in raw:
        return
    if twice:
        assert "twice" in refusal(raw).detail
    else:
        assert decode_body(raw) == dict(pairs)


@given(st.binary(max_size=200) | json_values.map(lambda v: json.dumps(v).encode()))
def test_no_bytes_raise_anything_but_a_scim_error(raw: bytes) -> None:
    """reliability S8: whatever arrives is decoded or refused."""
    assert isinstance(decoded_or_refused(raw), dict) or decoded_or_refused(raw) == 400


def test_the_deepest_permitted_nesting_passes_and_one_more_does_not() -> None:
    """reliability S7: depth 32."""
    deep = DEFAULT_LIMITS.depth_max
    assert decode_body(b'{"a":' * deep + b"1" + b"}" * deep)
    assert "nested deeper than 32" in refusal(b'{"a":' * (deep + 1) + b"1" + b"}" * (deep + 1)).detail
    assert decode_body(b'{"a":' + b"[" * (deep - 1) + b"]" * (deep - 1) + b"}")
    assert "nested deeper than 32" in refusal(b'{"a":' + b"[" * deep + b"]" * deep + b"}").detail


def test_two_thousand_keys_pass_and_one_more_does_not() -> None:
    """reliability S7: 2,000 keys in all objects together."""
    assert decode_body(json.dumps({str(n): 1 for n in range(2_000)}).encode())
    assert "2,000 keys" in refusal(json.dumps({str(n): 1 for n in range(2_001)}).encode()).detail
    assert "2,000 keys" in refusal(json.dumps({"x": [{"a": 1, "b": 2, "c": 3}] * 700}).encode()).detail


def test_a_thousand_members_pass_although_they_have_more_than_two_thousand_keys() -> None:
    """Issue of the ingress: 1,000 members in one PATCH work; reliability S7: 10,000 members are the limit."""
    member = {"$ref": None, "value": "88"}
    assert decode_body(
        json.dumps({"Operations": [{"op": "Add", "path": "members", "value": [member] * 1_000}]}).encode()
    )
    assert decode_body(json.dumps({"members": [member] * 10_000}).encode())
    assert "10,000 entries" in refusal(json.dumps({"members": [member] * 10_001}).encode()).detail


def test_a_string_of_more_than_4_kib_is_refused_and_one_of_4_kib_is_not() -> None:
    """reliability S7: strings up to 4 KiB, measured in UTF-8, also as keys."""
    assert decode_body(json.dumps({"a": "x" * 4_096}).encode())
    assert "4,096 bytes" in refusal(json.dumps({"a": "x" * 4_097}).encode()).detail
    assert "4,096 bytes" in refusal(json.dumps({"a": ["é" * 2_049]}).encode()).detail
    assert "4,096 bytes" in refusal(json.dumps({"x" * 4_097: 1}).encode()).detail
    assert decode_body(json.dumps({"a": "é" * 2_048, "b": "x" * 4_000}).encode())


def test_a_body_beyond_its_limit_is_413() -> None:
    """reliability S7: 256 KiB for users, 1 MiB for groups; the caller names which."""
    with pytest.raises(ScimError) as refused:
        decode_body(b'{"a":"' + b"x" * 100 + b'"}', bytes_max=100)
    assert refused.value.status == 413
    assert "100 bytes" in refused.value.detail


@pytest.mark.parametrize(
    "raw",
    [
        b'{"password":"%s","a":"\\u0000"}',
        b'{"password":"%s","password":"%s"}',
        b'{"password":"%s"',
        b'["%s"]',
        b'{"password":"%s","a":1e999}',
    ],
)
def test_no_refusal_repeats_a_value(raw: bytes) -> None:
    """Promise P9: values of people stay out of errors and out of the text of exceptions."""
    error = refusal(raw.replace(b"%s", SECRET.encode()))
    assert SECRET not in error.detail
    assert SECRET not in str(error)
    assert SECRET not in repr(error)


def test_an_error_is_a_scim_error_message_whose_status_is_text() -> None:
    """RFC 7644 section 3.12."""
    body = json.loads(
        messages.invalid_value("title", "is a number where text is expected", "Check the mapping").to_bytes()
    )
    assert body == {
        "schemas": [ERROR],
        "status": "400",
        "scimType": "invalidValue",
        "detail": "title is a number where text is expected. Check the mapping.",
    }


def test_an_error_carries_its_own_headers_and_further_members() -> None:
    """429 and 503 say when to come back; an operation id beside `detail` reaches Entra's log too."""
    assert messages.too_many_requests(7).headers == {"Retry-After": "7"}
    assert messages.unavailable("Not now", 30).headers == {"Retry-After": "30"}
    assert messages.unauthorized().headers["WWW-Authenticate"].startswith("Bearer")
    body = json.loads(ScimError(503, "Later.", extra={"operationId": "op-1", "status": "200"}).to_bytes())
    assert body == {"schemas": [ERROR], "status": "503", "detail": "Later.", "operationId": "op-1"}


@pytest.mark.parametrize(
    ("error", "status", "scim_type"),
    [
        (messages.invalid_syntax("x"), 400, "invalidSyntax"),
        (messages.invalid_filter("x"), 400, "invalidFilter"),
        (messages.invalid_path("p", "x"), 400, "invalidPath"),
        (messages.no_target("a", "x"), 400, "noTarget"),
        (messages.mutability("a", "x"), 400, "mutability"),
        (messages.unauthorized(), 401, None),
        (messages.forbidden("x"), 403, None),
        (messages.not_found("User"), 404, None),
        (messages.conflict("x"), 409, None),
        (messages.uniqueness("userName"), 409, "uniqueness"),
        (messages.precondition_failed(), 412, None),
        (messages.too_large("x", 1), 413, None),
        (messages.unsupported_media_type(), 415, None),
        (messages.not_implemented("x"), 501, None),
    ],
)
def test_each_kind_of_error_has_the_status_and_keyword_of_the_rfc(
    error: ScimError, status: int, scim_type: str | None
) -> None:
    """RFC 7644 section 3.12, tables 8 and 9."""
    assert (error.status, error.scim_type) == (status, scim_type)
    assert error.detail.endswith(".")
    assert json.loads(error.to_bytes())["status"] == str(status)


def test_a_path_in_an_error_is_cut_and_printable() -> None:
    """`detail` is read by people, whatever was sent as a path."""
    detail = messages.invalid_path("a\n\x1b[31m" + "b" * 500, "is no path").detail
    assert "\n" not in detail
    assert "\x1b" not in detail
    assert len(detail) < 200


@pytest.mark.parametrize(
    ("value", "meant"), [(True, True), (False, False), ("True", True), ("FALSE", False), ("false", False)]
)
def test_booleans_and_the_text_of_booleans_are_understood(value: object, meant: bool) -> None:
    """Entra's default dialect writes "True" and "False"."""
    assert parse_bool(value) is meant


@pytest.mark.parametrize("value", [1, 0, "", "yes", "1", None, [], {}, " true"])
def test_nothing_else_is_a_boolean(value: object) -> None:
    """A number or another word is a mistake, not a wish."""
    with pytest.raises(ValueError, match="neither"):
        parse_bool(value)


def test_a_list_response_is_valid_and_echoes_what_was_asked() -> None:
    """RFC 7644 section 3.4.2; Entra wants startIndex echoed exactly and an empty list as 200."""
    page = json.loads(list_response([b'{"id":"1"}', b'{"id":"2"}'], 11, 6))
    assert page == {
        "schemas": [LIST_RESPONSE],
        "totalResults": 11,
        "startIndex": 6,
        "itemsPerPage": 2,
        "Resources": [{"id": "1"}, {"id": "2"}],
    }
    assert json.loads(list_response([], 0)) == {
        "schemas": [LIST_RESPONSE],
        "totalResults": 0,
        "startIndex": 1,
        "itemsPerPage": 0,
        "Resources": [],
    }
    assert json.loads(list_response([], 11, 1, 0))["itemsPerPage"] == 0


FRAME: dict[str, Any] = {
    "kind": "User",
    "resource_id": "88",
    "location": "https://scim.contoso.example/scim/v2/observe/Users/88",
    "created": "2026-01-31T08:00:00.000Z",
    "last_modified": "2026-01-31T08:00:01.000Z",
}


def test_a_resource_is_framed_by_schemas_id_and_meta() -> None:
    """RFC 7643 section 3.1: schemas names the core schema and the extensions that are there."""
    document = {
        "userName": "a",
        ENTERPRISE_SCHEMA: {"department": "R&D"},
        "urn:ietf:params:scim:schemas:extension:X:2.0:User": {"y": 1},
    }
    resource = json.loads(resource_bytes(document, version='W/"3"', **FRAME))
    assert resource == {
        "schemas": [USER_SCHEMA, ENTERPRISE_SCHEMA, "urn:ietf:params:scim:schemas:extension:X:2.0:User"],
        "id": "88",
        **document,
        "meta": {
            "resourceType": "User",
            "created": FRAME["created"],
            "lastModified": FRAME["last_modified"],
            "location": FRAME["location"],
            "version": 'W/"3"',
        },
    }
    group = json.loads(resource_bytes({"displayName": "Sales"}, **{**FRAME, "kind": "Group"}))
    assert group["schemas"] == [GROUP_SCHEMA]
    assert group["meta"]["resourceType"] == "Group"


def test_a_resource_may_be_projected_while_it_is_encoded() -> None:
    """`attributes=id` of the older reference check."""
    resource = json.loads(resource_bytes({"userName": "a", "title": "t"}, attributes=("id",), **FRAME))
    assert resource == {"schemas": [USER_SCHEMA], "id": "88"}


def test_a_timestamp_is_utc_with_milliseconds() -> None:
    """RFC 7643 section 2.3.5."""
    moment = datetime(2026, 1, 31, 9, 0, 0, 123_999, tzinfo=timezone(timedelta(hours=1)))
    assert timestamp(moment) == "2026-01-31T08:00:00.123Z"
    assert timestamp(moment.astimezone(UTC).replace(tzinfo=None)) == "2026-01-31T08:00:00.123Z"


RESOURCE: dict[str, Any] = {
    "schemas": [USER_SCHEMA, ENTERPRISE_SCHEMA],
    "id": "88",
    "userName": "a",
    "name": {"givenName": "Ada", "familyName": "Byron"},
    "emails": [{"type": "work", "value": "w"}, {"type": "home", "value": "h", "display": "H"}],
    ENTERPRISE_SCHEMA: {"department": "R&D", "manager": {"value": "77"}},
    "meta": {"resourceType": "User"},
}
ALWAYS = {"schemas": RESOURCE["schemas"], "id": "88"}


@pytest.mark.parametrize(
    ("names", "more"),
    [
        ("id", {}),
        ("userName", {"userName": "a"}),
        ("USERNAME", {"userName": "a"}),
        (f"{USER_SCHEMA}:userName", {"userName": "a"}),
        ("name.familyName", {"name": {"familyName": "Byron"}}),
        ("name.familyName,name.givenName", {"name": {"givenName": "Ada", "familyName": "Byron"}}),
        ("emails.value", {"emails": [{"value": "w"}, {"value": "h"}]}),
        ("emails.value,emails.type", {"emails": [{"value": "w", "type": "work"}, {"value": "h", "type": "home"}]}),
        ("emails.display", {"emails": [{"display": "H"}]}),
        (f"{ENTERPRISE_SCHEMA}:department", {ENTERPRISE_SCHEMA: {"department": "R&D"}}),
        ("manager", {ENTERPRISE_SCHEMA: {"manager": {"value": "77"}}}),
        (f"{ENTERPRISE_SCHEMA}:manager.value", {ENTERPRISE_SCHEMA: {"manager": {"value": "77"}}}),
        (ENTERPRISE_SCHEMA.lower(), {ENTERPRISE_SCHEMA: RESOURCE[ENTERPRISE_SCHEMA]}),
        ("meta.resourceType", {"meta": {"resourceType": "User"}}),
        ("nickName, , no such name,name.nope,userName.x", {}),
    ],
)
def test_only_the_asked_attributes_are_returned(names: str, more: dict[str, Any]) -> None:
    """RFC 7644 section 3.9: `attributes`, names in any spelling; id and schemas always."""
    assert project(RESOURCE, attribute_names(names)) == {**ALWAYS, **more}


@pytest.mark.parametrize(
    ("names", "without"),
    [
        ("emails", {**RESOURCE, "emails": None}),
        ("id,schemas,ID", RESOURCE),
        ("name.givenName", {**RESOURCE, "name": {"familyName": "Byron"}}),
        ("emails.value", {**RESOURCE, "emails": [{"type": "work"}, {"type": "home", "display": "H"}]}),
        (f"{ENTERPRISE_SCHEMA}:department,manager", {**RESOURCE, ENTERPRISE_SCHEMA: None}),
        (ENTERPRISE_SCHEMA, {**RESOURCE, ENTERPRISE_SCHEMA: None}),
        ("members,nope", RESOURCE),
    ],
)
def test_excluded_attributes_are_left_out_and_id_never_is(names: str, without: dict[str, Any]) -> None:
    """RFC 7644 section 3.9: `excludedAttributes`, as in Entra's excludedAttributes=members."""
    before = json.dumps(RESOURCE)
    assert project(RESOURCE, (), attribute_names(names)) == {k: v for k, v in without.items() if v is not None}
    assert json.dumps(RESOURCE) == before


@given(st.lists(st.text(max_size=30), max_size=4), st.lists(st.text(max_size=30), max_size=4))
def test_no_names_break_the_projection(attributes: list[str], excluded: list[str]) -> None:
    """Whatever is asked for, what comes back is part of the resource and has its id."""
    part = project(RESOURCE, attributes, excluded)
    assert part["id"] == "88"
    assert part.keys() <= RESOURCE.keys()
