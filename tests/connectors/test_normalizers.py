"""Whatever the gateway accepts, every connector can read: it becomes an account or a refusal that names what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors import registry
from connectors.contract import ComparesAccounts, Connector
from connectors.testing import shipped
from connectors.testing.conformance import Conformance
from gateway.messages import ScimError
from gateway.patch import normalize_create
from schemas.errors import NormalizationError
from schemas.resources import ENTERPRISE_SCHEMA, User

TRIALS = [trial for trials in shipped.SHIPPED.values() for trial in trials]
URL = "http://127.0.0.1:1"
TALKDESK = "urn:ietf:params:scim:schemas:extension:talkdesk:2.0:User"

KEYS = st.sampled_from(
    [
        "ann@example.com",
        "Ann@EXAMPLE.com ",
        "+44 7400 123456",
        "0044 (0)7400 123456 x7",
        "447400123456",
        "ann",
        "é@x.io",
    ]
)
TEXTS = st.one_of(
    KEYS, st.text(max_size=24), st.sampled_from(["", " ", "\u202e", "\x00", "A;B", "Agent; agent", "x" * 300])
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["value", "type", "display", "displayName", "givenName", "rolesString", "manager", "$ref"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=5,
)
ENTRIES = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["work", "mobile", "home"])}, optional={"value": TEXTS}), max_size=2
)
ROLES = st.lists(
    st.one_of(
        TEXTS, st.fixed_dictionaries({"value": TEXTS | st.just('{"value": "agent"}')}), st.just({"display": "agent"})
    ),
    max_size=3,
)
USUAL: dict[str, st.SearchStrategy[Any]] = {
    "externalId": TEXTS,
    "displayName": TEXTS,
    "title": TEXTS,
    "active": st.sampled_from([True, False, "True", "False"]),
    "name": st.fixed_dictionaries({}, optional={"givenName": TEXTS, "familyName": TEXTS}),
    "emails": ENTRIES,
    "phoneNumbers": ENTRIES,
    "roles": ROLES,
    TALKDESK: st.fixed_dictionaries({}, optional={"rolesString": TEXTS, "teamsString": TEXTS}),
    ENTERPRISE_SCHEMA: st.fixed_dictionaries({}, optional={"manager": ANYTHING, "department": TEXTS}),
}
GOOD: dict[str, Any] = {
    "userName": "ann@example.com",
    "externalId": "8f1c6f6e-3d5e-4a43-9f57-0f4f0b5f6d11",
    "displayName": shipped.TeleMessage.manager,
    "active": "True",
    "name": {"givenName": "Ann", "familyName": "Lee"},
    "emails": [{"type": "work", "value": "ann@example.com"}],
    TALKDESK: {"rolesString": "agent"},
}
ODD = st.fixed_dictionaries({}, optional={"userName": TEXTS, **USUAL}) | st.dictionaries(
    st.sampled_from([*USUAL, "userName"]), ANYTHING, max_size=2
)
BODIES = st.builds(
    lambda key, left_out, odd: {**{k: v for k, v in GOOD.items() if k not in left_out}, "userName": key, **odd},
    KEYS,
    st.sets(st.sampled_from(sorted(USUAL)), max_size=3),
    ODD | st.just({}),
)


class Names:
    """A product's names, as a worker has loaded them."""

    def names(self, kind: str) -> Sequence[Mapping[str, Any] | str]:
        return ("Agent", "A", {"name": "B", "active": False})


def offline(trial: type[Conformance]) -> Connector[Any, Any]:
    """A connector with the settings it is tried with, that calls nobody."""
    problems: list[str] = []
    made = trial()
    decoded = registry.decode_settings(made.connector, made.settings(URL, "/none"), "targets.t.settings", problems)
    assert decoded is not None, problems
    connector, _ = registry.build(made.connector, decoded)
    return connector


CONNECTORS = {trial: offline(trial) for trial in TRIALS}


@settings(deadline=None, max_examples=200)
@given(body=BODIES, cleared=st.sets(st.sampled_from(sorted(USUAL)), max_size=2))
def test_what_the_gateway_accepts_becomes_an_account_or_a_named_refusal(
    body: dict[str, Any], cleared: set[str]
) -> None:
    """Section 0.6 and A2, for every connector: pure, no other exception, and normalizing the result again changes nothing."""
    try:
        document = normalize_create(body, "User")
    except ScimError:
        return
    sent = {**document, **{name: None for name in cleared if name not in document}}
    user = User.from_document(msgspec.json.decode(msgspec.json.encode(sent)))
    for connector in CONNECTORS.values():
        try:
            account = connector.normalize(user, Names())
        except NormalizationError:
            continue
        assert connector.normalize(user, Names()) == account
        assert all(isinstance(path, str) and path for path in connector.ignored(user))
        keys = connector.account_keys(account)
        if isinstance(connector, ComparesAccounts):
            assert connector.expected(account) == connector.expected(account)
        if keys and connector.spec.name in {"telemessage", "babelforce"}:
            again = connector.normalize(msgspec.structs.replace(user, user_name=keys[0]), Names())
            assert connector.account_keys(again) == keys
