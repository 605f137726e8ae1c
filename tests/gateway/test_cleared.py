"""What Entra clears reaches the product as cleared, and what nobody ever spoke of stays as it is there (vendor rule A4)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.lifecycle import Row, accept, dispatch, settle
from schemas.config import RetrySettings
from schemas.events import Outcome, decode_event
from schemas.resources import User
from schemas.states import Change, Result
from tests.simulation.memory import Memory, MemoryLedger

HOME = {"type": "home", "value": "a@home.example"}
WORK = {"type": "work", "value": "a@contoso.example", "primary": True}
EXTENSION = "urn:ietf:params:scim:schemas:extension:talkdesk:2.0:User"


def sent_after(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The document that goes to the product when `first` is applied and `second` is wished then."""
    ledger, row = MemoryLedger(Memory()), Row(id="r1", target="t")
    for number, document in enumerate((first, second), start=1):
        accept(
            row,
            event_id=f"e{number}",
            document=msgspec.json.encode(document),
            identities=("userName:ada@contoso.example",),
            change=Change.CREATE if number == 1 else Change.UPDATE,
            changed=(),
            now=float(number),
            acknowledged=True,
        )
        ledger.save(row)
        dispatch(row, float(number), ledger, "talkdesk")
        assert row.body is not None
        event = decode_event(row.body)
        outcome = Outcome(
            id=f"o{number}",
            event_id=event.id,
            target="t",
            kind="user",
            resource="r1",
            generation=event.generation,
            fence=event.fence,
            delivery=1,
            result=Result.APPLIED,
            account_id="a1",
            identities=event.identities,
        )
        settle(row, outcome, float(number), ledger, RetrySettings(), adopt=True, jitter=0.5)
    held: dict[str, Any] = msgspec.json.decode(row.settled_document or b"")
    assert held == second, "nulls are for the product only"
    sent: dict[str, Any] = msgspec.json.decode(event.document)
    return sent


@pytest.mark.parametrize(
    ("first", "second", "sent"),
    [
        ({"userName": "a", "title": "x"}, {"userName": "a"}, {"userName": "a", "title": None}),
        (
            {"userName": "a", EXTENSION: {"rolesString": "Agent", "teamsString": "Porto"}},
            {"userName": "a", EXTENSION: {"teamsString": "Porto"}},
            {"userName": "a", EXTENSION: {"rolesString": None, "teamsString": "Porto"}},
        ),
        (
            {"userName": "a", EXTENSION: {"rolesString": "Agent"}},
            {"userName": "a"},
            {"userName": "a", EXTENSION: {"rolesString": None}},
        ),
        (
            {"userName": "a", "emails": [WORK, HOME]},
            {"userName": "a", "emails": [HOME]},
            {"userName": "a", "emails": [HOME, {"type": "work", "value": None}]},
        ),
        (
            {"userName": "a", "emails": [WORK, HOME]},
            {"userName": "a", "emails": [{**WORK, "type": "Work", "value": "b@contoso.example"}, HOME]},
            {"userName": "a", "emails": [{**WORK, "type": "Work", "value": "b@contoso.example"}, HOME]},
        ),
        ({"userName": "a", "title": "x"}, {"userName": "a", "title": "y"}, {"userName": "a", "title": "y"}),
        ({"userName": "a"}, {"userName": "a", "title": "y"}, {"userName": "a", "title": "y"}),
    ],
    ids=[
        "an attribute",
        "one of an extension",
        "a whole extension",
        "an entry of a list",
        "an entry that changed",
        "a change",
        "something new",
    ],
)
def test_only_what_was_held_and_is_no_longer_wished_is_sent_as_null(
    first: dict[str, Any], second: dict[str, Any], sent: dict[str, Any]
) -> None:
    """Clearing is told apart from never having been mentioned; the stored document keeps no nulls."""
    assert sent_after(first, second) == sent


def test_a_cleared_role_list_is_empty_for_the_connector_and_an_unmentioned_one_unset() -> None:
    """Assertive role mappings take roles away; users whose roles are not mapped keep theirs (B19)."""
    assert User.from_document({"userName": "a", "roles": None}).roles == ()
    assert User.from_document({"userName": "a"}).roles is msgspec.UNSET


def test_a_cleared_text_is_null_for_the_connector() -> None:
    """Null is not unset (RFC 7643 section 2.5)."""
    assert User.from_document({"userName": "a", "title": None}).title is None


def test_a_cleared_list_of_addresses_is_told_entry_by_entry() -> None:
    """Connectors map single types, such as the mail address of type work (M20): cleared is not unmentioned there either."""
    first = {"userName": "a", "emails": [{"type": "work", "value": "a@example.com"}], "phoneNumbers": [{"value": "1"}]}
    cleared = User.from_document(sent_after(first, {"userName": "a"}))
    assert ("work", None) in [(entry.type, entry.value) for entry in cleared.emails]
    assert ("mobile", None) in [(entry.type, entry.value) for entry in cleared.phone_numbers]
    assert cleared.email("work") is None
    assert User.from_document({"userName": "a"}).emails == ()


def test_the_attribute_role_counts_as_roles() -> None:
    """The vendor's guide names it once so and once so; `roles` wins (B14)."""
    assert [r.value for r in User.from_document({"userName": "a", "role": ["agent"]}).roles] == ["agent"]
    both = User.from_document({"userName": "a", "role": ["agent"], "roles": [{"value": "sales"}]})
    assert [r.value for r in both.roles] == ["sales"]
