"""TeleMessage: the number table, the rules of the seed, and every failure class against the emulator over real HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from connectors import registry
from connectors.contract import Delivery
from connectors.telemessage import Account, Settings, TeleMessage, is_assigned, masked, normalize_mobile
from deploy.emulators.harness import running
from deploy.emulators.telemessage import TelemessageEmulator
from schemas.config import Secret
from schemas.errors import (
    Blocked,
    Conflict,
    Gone,
    Misconfigured,
    NormalizationError,
    RateLimited,
    Rejected,
    Unavailable,
)
from schemas.resources import User
from tests.connectors.alone import Known, built, correctly_used, refusal, secret_file, users

MANAGER = "Contoso Archive"

TABLE: list[tuple[str, str | None, str]] = [
    ("123 456 7890", "US", "11234567890"),
    ("0123 456 7890", "GB", "441234567890"),
    ("1234 5678", "HK", "85212345678"),
    ("11234567890", "US", "11234567890"),
    ("85212345678", "HK", "85212345678"),
    ("1234 5678", None, "impossible"),
    ("0123 456 7890", None, "no_country"),
    ("+44 7400-123456", None, "447400123456"),
    ("+44 (0)7400 123456", None, "447400123456"),
    ("0044 7400 123456", "US", "447400123456"),
    ("011 44 7400 123456", "US", "447400123456"),
    ("4407400123456", None, "447400123456"),
    ("+39 06 1234 5678", None, "390612345678"),
    ("06 1234 5678", "IT", "390612345678"),
    ("+39 (0)6 1234 5678", None, "390612345678"),
    ("+39 (0)347 123 4567", None, "393471234567"),
    ("07 07 12 34 56", "CI", "2250707123456"),
    ("0549 886377", "SM", "3780549886377"),
    ("2025550123", "US", "12025550123"),
    ("2025550123", None, "2025550123"),
    ("447400123456", "DE", "447400123456"),
    ("972540032618", "DE", "972540032618"),
    ("8 912 345-67-89", "RU", "79123456789"),
    ("011 15 2345 6789", "AR", "5491123456789"),
    ("+52 1 55 1234 5678", None, "impossible"),
    ("+1 202 555 0123 ext. 45", None, "extension"),
    ("\u202d+44 7400 123456\u202c", None, "447400123456"),
    ("+４４ ７４００ １２３４５６", None, "447400123456"),
    ("1-800-FLOWERS", "US", "not_a_number"),
    ("+447400123456, +447400654321", None, "not_a_number"),
    ("   ", None, "missing"),
]


def outcome(raw: Any, region: str | None = None, **options: Any) -> str:
    """The digits, or the code of the refusal."""
    try:
        return normalize_mobile(raw, region, **options)
    except NormalizationError as exc:
        return exc.code


@pytest.mark.parametrize(("raw", "region", "expected"), TABLE)
def test_each_number_of_the_vendor_page_comes_out_as_written_there(raw: str, region: str | None, expected: str) -> None:
    """Vendor page 3.4, every row; M10-M15."""
    assert outcome(raw, region) == expected


@pytest.mark.parametrize(("raw", "region", "expected"), [row for row in TABLE if row[2].isdigit()])
def test_each_result_of_the_table_is_stable(raw: str, region: str | None, expected: str) -> None:
    """Vendor page 3.4: normalizing a normalized number again with the same configuration changes nothing."""
    assert normalize_mobile(expected, region) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("+1 202 555 0123 ext. 45", "12025550123"),
        ("+1 202 555 0123 x45", "12025550123"),
        ("+1 202 555 0123 #45", "12025550123"),
        ("+1 202 555 0123, extension 45", "12025550123"),
        ("tel:+1-202-555-0123;ext=45", "12025550123"),
        ("+1 202 555 0123 extn 45", "12025550123"),
        ("#45", "not_a_number"),
    ],
)
def test_an_extension_is_cut_when_the_settings_say_so_and_refused_otherwise(raw: str, expected: str) -> None:
    """Vendor page 3.4, step 2."""
    assert outcome(raw, extension="drop") == expected
    assert outcome(raw) == "extension"


@pytest.mark.parametrize(
    ("raw", "region", "expected"),
    [
        (None, None, "missing"),
        ("", None, "missing"),
        ("\u200b\u202d", None, "missing"),
        ("TEL:+44 7400 123456", None, "447400123456"),
        ("(+44) 7400 123456", None, "447400123456"),
        ("44+7400123456", None, "not_a_number"),
        ("++447400123456", None, "not_a_number"),
        ("+", None, "not_a_number"),
        ("٠٠٤٤٧٤٠٠١٢٣٤٥٦", None, "447400123456"),
        ("+44\u20117400\u2013123456", None, "447400123456"),
        ("00 44 (0)7400 123456", None, "447400123456"),
        ("44 (0)7400 123456", None, "447400123456"),
        ("+999 1234567", None, "impossible"),
        ("0012", None, "impossible"),
        ("9" * 300, None, "not_a_number"),
        ("ann@example.com", "GB", "not_a_number"),
        ("2819c223-7f76-453a-919d-413861904646", "GB", "not_a_number"),
        (447400123456, None, "447400123456"),
        (True, None, "not_a_number"),
        (4.4, None, "not_a_number"),
        ("07400 123456", "gb", "447400123456"),
        ("07400 123456", "XX", "impossible"),
        ("996 312 345 678", "FI", "996312345678"),
    ],
)
def test_odd_spellings_are_read_or_refused_with_the_right_code(raw: Any, region: str | None, expected: str) -> None:
    """Vendor page 3.4, steps 1 to 8."""
    assert outcome(raw, region) == expected


def test_an_international_number_that_would_read_differently_without_its_plus_is_refused() -> None:
    """Stability: +20 25550123 is no assigned Egyptian number, and its digits are a mobile number of the default region."""
    assert outcome("+2025550123", "US") == "impossible"
    with pytest.raises(NormalizationError, match="of another kind in US; add it to overrides"):
        normalize_mobile("+2025550123", "US")
    assert normalize_mobile("+2025550123", "US", overrides={"+2025550123": "2025550123"}) == "2025550123"
    assert outcome("+2025550123") == "2025550123"


def test_overrides_win_over_all_rules() -> None:
    """M16: numbers the metadata reads wrongly can be configured."""
    overrides = {"front desk": "441234567890", "0123": "85212345678", "447400123456": "447400999888"}
    assert normalize_mobile("front desk", overrides=overrides) == "441234567890"
    assert normalize_mobile(" 0123 ", overrides=overrides) == "85212345678"
    assert normalize_mobile("+44 7400 123456", overrides=overrides) == "447400999888"
    assert normalize_mobile("85212345678", overrides=overrides) == "85212345678"


REGIONS = st.sampled_from([None, *sorted(phonenumbers.SUPPORTED_REGIONS)])
PIECES = st.sampled_from(
    ["+", "00", "011", "0", "44", "1", "39", "(0)", " ", "-", "ext. 4", "x", "7", "810", "99", "2025550123"]
)
NUMBERS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="0123456789+-() .", max_size=24),
    st.lists(st.one_of(PIECES, st.text(alphabet="0123456789", max_size=6)), max_size=8).map("".join),
    st.integers(min_value=10**6, max_value=10**15 - 1).map(lambda n: f"+{n}"),
)


@settings(max_examples=600, deadline=None)
@given(raw=NUMBERS, region=REGIONS, extension=st.sampled_from(["reject", "drop"]))
def test_any_text_gives_stable_digits_or_a_normalization_error(raw: str, region: str | None, extension: Any) -> None:
    """0.2 and 3.4: never another exception; a result is 7 to 15 digits, and normalizing it again changes nothing."""
    digits = outcome(raw, region, extension=extension)
    if digits in {"missing", "not_a_number", "extension", "no_country", "impossible"}:
        return
    assert digits.isascii()
    assert digits.isdigit()
    assert 7 <= len(digits) <= 15
    assert normalize_mobile(digits, region, extension) == digits


@settings(max_examples=200, deadline=None)
@given(raw=st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.binary(), st.lists(st.text())))
def test_values_of_other_types_give_digits_or_a_normalization_error(raw: Any) -> None:
    """0.2: a value of any JSON type may arrive."""
    assert outcome(raw)


@given(region=st.sampled_from(sorted(phonenumbers.SUPPORTED_REGIONS)))
@settings(max_examples=250, deadline=None)
def test_a_real_mobile_number_is_understood_in_every_usual_spelling(region: str) -> None:
    """M10-M14 for every country: international, national in its own region, and with the exit code 00."""
    number = phonenumbers.example_number_for_type(region, phonenumbers.PhoneNumberType.MOBILE)
    if number is None:
        return
    digits = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)[1:]
    spelled = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.INTERNATIONAL)
    assert normalize_mobile(spelled) == digits
    assert normalize_mobile(f"00{digits}") == digits
    assert normalize_mobile(digits, region) == digits
    national = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
    if national.startswith("0"):  # without a trunk zero the digits may also be an international number, and that wins
        assert normalize_mobile(national, region) == digits


@pytest.mark.parametrize("raw", ["+44 7400 123456 ext 99", "+44 7400", "07400 123456", "1-800-FLOWERS"])
def test_a_refusal_names_attribute_and_remedy_and_never_shows_the_number(raw: str) -> None:
    """A10 and house style 4: what, in which attribute, what to do."""
    with pytest.raises(NormalizationError) as refused:
        normalize_mobile(raw)
    assert "userName must be the mobile number in full international form" in str(refused.value)
    assert "Map userName from mobile" in str(refused.value)
    assert raw not in str(refused.value)
    assert "123456" not in str(refused.value)


def test_a_shown_number_keeps_two_digits_at_each_end() -> None:
    """A10: country code and last two digits."""
    assert masked("+44 7400 123456") == "+44 … 56"
    assert masked("+1 202 555 0123") == "+1 … 23"
    assert masked("\u202d+3780549886377") == "+378 … 77"
    assert masked("0123 456 7890") == "… 90"
    assert masked("123") == "…"


def test_reserved_ranges_are_not_assigned_and_odd_digits_are_no_crash() -> None:
    """M15: assignment is reported, not required."""
    assert is_assigned("447400123456")
    assert not is_assigned("11234567890")
    assert not is_assigned("0000000")


# The connector --------------------------------------------------------------------------------------------------------


def a_user(number: str = "+44 7400 123456", **document: Any) -> User:
    """A user as the seven mappings of M8 send it."""
    return User.from_document(
        {
            "userName": number,
            "externalId": number,
            "active": True,
            "displayName": MANAGER,
            "name": {"givenName": "Ann", "familyName": "Lee"},
            "emails": [{"type": "work", "value": "ann@example.com"}],
            **document,
        }
    )


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """The credential of the target, in a file that can be changed."""
    return secret_file(tmp_path / "token", "demo-token-telemessage")


@pytest.fixture
async def emulator() -> AsyncIterator[tuple[TelemessageEmulator, str]]:
    """A running TeleMessage."""
    async with correctly_used(TelemessageEmulator(rate_per_s=0)) as used:
        yield used


@contextlib.asynccontextmanager
async def connected(url: str, token: Path, **options: Any) -> AsyncIterator[TeleMessage]:
    """The connector as a worker builds it."""
    table = {"base_url": url, "token": {"file": str(token)}, "manager_name": MANAGER, "allow_loopback": True, **options}
    async with built("telemessage", table, paced=True) as connector:
        yield connector


def wished(connector: TeleMessage, **document: Any) -> Account:
    """A normalized account."""
    return connector.normalize(a_user(**document), Known())


def an_account(number: str = "447400123456", **fields: Any) -> Account:
    """An account without the detour over a user."""
    return Account(number=number, active=fields.pop("active", True), **fields)


async def test_a_user_is_created_with_digits_manager_and_one_idempotency_key(emulator: Any, token: Path) -> None:
    """M10, M18, M20-M22; A3: our key goes out where the contract knows one."""
    product, url = emulator
    ctx = Delivery(idempotency_key="E1-1")
    async with connected(url, token) as connector:
        account_id = await connector.create(wished(connector), ctx)
    (held,) = users(product)
    assert held["id"] == account_id
    assert (held["userName"], held["mobilePhone"], held["manager"]) == ("447400123456", "447400123456", MANAGER)
    assert (held["firstName"], held["lastName"], held["email"]) == ("Ann", "Lee", "ann@example.com")
    assert held["status"] == "active"
    assert [(step.method, step.path, step.key) for step in ctx.steps] == [("POST", "/v1/users", "E1-1:create")]


async def test_a_repeated_create_of_the_same_delivery_makes_no_second_user(emulator: Any, token: Path) -> None:
    """A3 and P3: the answer was lost, the redelivery carries the same key."""
    product, url = emulator
    product.fault("drop_response", method="POST", path="/v1/users$", times=1)
    async with connected(url, token) as connector:
        lost = await refusal(connector.create(wished(connector), Delivery(idempotency_key="E1-1")))
        assert lost.ambiguous
        again = await connector.create(wished(connector), Delivery(idempotency_key="E1-1"))
    assert [held["id"] for held in users(product)] == [again]


async def test_an_inactive_user_is_created_suspended(emulator: Any, token: Path) -> None:
    """M17, A7: active false is suspended."""
    product, url = emulator
    async with connected(url, token) as connector:
        await connector.create(wished(connector, active=False), Delivery())
    assert users(product)[0]["status"] == "suspended"


async def test_without_names_none_are_sent_and_a_warning_says_what_is_shown(emulator: Any, token: Path) -> None:
    """Vendor page 3.3: both names empty, send none; the number shows as first name."""
    product, url = emulator
    ctx = Delivery()
    async with connected(url, token) as connector:
        await connector.create(wished(connector, name={}), ctx)
    assert users(product)[0]["firstName"] == "447400123456"
    sent = next(call["body"] for call in product.recorded() if call["method"] == "POST")
    assert "firstName" not in sent
    assert any("Both names are empty" in warning for warning in ctx.warnings)


async def test_an_unassigned_number_is_accepted_with_a_warning(emulator: Any, token: Path) -> None:
    """M15: the seed's own examples are not assigned."""
    _, url = emulator
    ctx = Delivery()
    async with connected(url, token, default_region="US") as connector:
        await connector.create(wished(connector, number="123 456 7890"), ctx)
    assert any("not assigned" in warning for warning in ctx.warnings)
    assert not any("1234567890" in warning for warning in ctx.warnings)


async def test_another_managers_name_is_refused_before_any_call(emulator: Any, token: Path) -> None:
    """M19: one target per manager; displayName is the manager's name."""
    product, url = emulator
    async with connected(url, token) as connector:
        with pytest.raises(NormalizationError) as refused:
            wished(connector, displayName="Ann Lee")
    assert (refused.value.code, refused.value.attribute) == ("wrong_manager", "displayName")
    assert "manager_name" in str(refused.value)
    assert product.recorded() == []


async def test_an_unmapped_display_name_is_remarked_only(emulator: Any, token: Path) -> None:
    """M19 refuses a different name; an absent one contradicts nothing."""
    _, url = emulator
    async with connected(url, token) as connector:
        account = wished(connector, displayName=None)
    assert any("displayName is not mapped" in warning for warning in account.warnings)


async def test_attributes_beyond_the_seven_are_listed_as_ignored(emulator: Any, token: Path) -> None:
    """M8 and A8."""
    _, url = emulator
    async with connected(url, token) as connector:
        user = a_user(title="Dr", phoneNumbers=[{"type": "work", "value": "1"}], nickName="")
        assert connector.ignored(user) == ("title", 'phoneNumbers[type eq "work"].value')
        assert connector.ignored(a_user()) == ()


async def test_a_user_is_found_by_any_spelling_and_a_non_number_matches_nothing(emulator: Any, token: Path) -> None:
    """A1; 0.2: Test Connection's random GUID is never an error."""
    product, url = emulator
    product.seed({"users": [{"mobilePhone": "447400123456"}]})
    asked = (
        "userName:2819c223-7f76-453a-919d-413861904646",
        "userName:0044 7400 123456",
        "userName:+44 (0)7400 123456",
        "userName:12025550123",
    )
    ctx = Delivery()
    async with connected(url, token) as connector:
        (found,) = await connector.find(None, asked, ctx)
    assert (found.account_id, found.identity, found.conflict) == (users(product)[0]["id"], asked[1], "")
    assert len(ctx.steps) == 2, "one call per distinct number"


async def test_the_wish_itself_is_looked_up_under_the_first_identity(emulator: Any, token: Path) -> None:
    """Contract: an account's own keys are looked up too and reported under the first identity."""
    product, url = emulator
    product.seed({"users": [{"mobilePhone": "447400123456"}]})
    async with connected(url, token) as connector:
        (found,) = await connector.find(wished(connector), ("userName:unreadable",), Delivery())
    assert found.identity == "userName:unreadable"


async def test_a_number_under_another_manager_is_a_conflict(emulator: Any, token: Path) -> None:
    """Vendor page 3.3: present under another manager."""
    product, url = emulator
    product.seed({"managers": [MANAGER, "Other"], "users": [{"mobilePhone": "447400123456", "manager": "Other"}]})
    async with connected(url, token) as connector:
        (found,) = await connector.find(wished(connector), (), Delivery())
        assert "another company manager at TeleMessage (u-1)" in found.conflict
        assert isinstance(await refusal(connector.create(wished(connector), Delivery())), Conflict)


async def test_a_number_that_turns_out_to_be_taken_is_looked_up_next_time(emulator: Any, token: Path) -> None:
    """R4 and 3.5: an account that was merely found is linked by the gateway; never a second create."""
    product, url = emulator
    product.seed({"users": [{"mobilePhone": "447400123456", "status": "suspended"}]})
    async with connected(url, token) as connector:
        taken = await refusal(connector.create(wished(connector), Delivery()))
    assert (type(taken), taken.code, taken.ambiguous) == (Unavailable, "already_there", True)
    assert len(users(product)) == 1


async def test_a_reserved_number_is_refused_with_what_to_do(emulator: Any, token: Path) -> None:
    """Vendor page 3.3: deleted numbers cannot be registered again."""
    product, url = emulator
    product.seed({"reserved": ["447400123456"]})
    async with connected(url, token) as connector:
        error = await refusal(connector.create(wished(connector), Delivery()))
    assert (type(error), error.code, error.attribute) == (Rejected, "number_reserved", "userName")
    assert "ask the account manager" in str(error)
    assert "7400123456" not in str(error)


async def test_an_update_changes_names_and_status_and_leaves_the_rest(emulator: Any, token: Path) -> None:
    """A4: unset is kept, null is cleared; a suspended account becomes active, never a second one."""
    product, url = emulator
    product.seed(
        {
            "users": [
                {"mobilePhone": "447400123456", "status": "suspended", "lastName": "Old", "email": "old@example.com"}
            ]
        }
    )
    account_id = users(product)[0]["id"]
    async with connected(url, token) as connector:
        await connector.update(account_id, an_account(first_name="Ann", email=""), Delivery())
    (held,) = users(product)
    assert (held["firstName"], held["lastName"], held["email"]) == ("Ann", "Old", "")
    assert held["status"] == "active"


async def test_a_new_number_is_a_login_call_on_the_same_user(emulator: Any, token: Path) -> None:
    """Vendor page 3.3: the archive hangs on the user; never delete and create."""
    product, url = emulator
    product.seed({"users": [{"mobilePhone": "447400123456"}]})
    account_id = users(product)[0]["id"]
    ctx = Delivery(idempotency_key="E2-1")
    async with connected(url, token) as connector:
        await connector.update(account_id, an_account("447400999888", first_name="Ann"), ctx)
        same = Delivery(idempotency_key="E3-1")
        await connector.update(account_id, an_account("447400999888", first_name="Ann"), same)
    (held,) = users(product)
    assert (held["id"], held["userName"], held["mobilePhone"]) == (account_id, "447400999888", "447400999888")
    assert [(step.path, step.key) for step in ctx.steps if step.method == "POST"] == [
        ("/v1/users/{id}/login", "E2-1:login")
    ]
    assert [step.path for step in ctx.steps] == ["/v1/users", "/v1/users/{id}/login", "/v1/users/{id}"], (
        "names afterwards"
    )
    assert [step.method for step in same.steps] == ["GET", "PATCH"], "no login call when the number is right already"


async def test_a_new_number_and_back_arrives_although_the_list_lags(emulator: Any, token: Path) -> None:
    """Fault stale_read: what to do is decided on answers to writes, not on a list that may be old."""
    product, url = emulator
    product.seed({"users": [{"mobilePhone": "447400123456"}]})
    account_id = users(product)[0]["id"]
    product.fault("stale_read", lag_s=60)
    async with connected(url, token) as connector:
        for number in ("447400999888", "447400123456"):
            await connector.update(account_id, an_account(number, first_name="Ann"), Delivery())
    assert users(product)[0]["mobilePhone"] == "447400123456"


async def test_a_lost_login_answer_is_ambiguous_and_the_repeat_is_harmless(emulator: Any, token: Path) -> None:
    """Vendor page 3.6: drop_response on login."""
    product, url = emulator
    product.seed({"users": [{"mobilePhone": "447400123456"}]})
    account_id = users(product)[0]["id"]
    product.fault("drop_response", path=r"/v1/users/[^/]+/login", times=1)
    async with connected(url, token) as connector:
        wish = an_account("447400999888", first_name="Ann")
        assert (await refusal(connector.update(account_id, wish, Delivery(idempotency_key="E2-1")))).ambiguous
        await connector.update(account_id, wish, Delivery(idempotency_key="E2-1"))
    assert len(product.journal.effects(op="login")) == 1


async def test_a_number_of_somebody_else_is_a_conflict_on_change(emulator: Any, token: Path) -> None:
    """Vendor page 3.3: login answers 409."""
    product, url = emulator
    product.seed(
        {"users": [{"mobilePhone": "447400123456"}, {"mobilePhone": "447400999888"}], "reserved": ["12025550123"]}
    )
    account_id = users(product)[0]["id"]
    async with connected(url, token) as connector:
        taken = await refusal(connector.update(account_id, an_account("447400999888", first_name="Ann"), Delivery()))
        assert not product.journal.effects(), "a refused number changes nothing else"
        assert (type(taken), taken.code, taken.attribute) == (Conflict, "number_taken", "userName")
        assert "+44" not in taken.message
        assert "44 … 88 belongs to another user at TeleMessage (u-2)" in taken.message
        reserved = await refusal(connector.update(account_id, an_account("12025550123"), Delivery()))
        assert reserved.code == "number_reserved"


async def test_taking_access_away_comes_first(emulator: Any, token: Path) -> None:
    """A refused name or number must not keep a leaver active."""
    product, url = emulator
    product.seed({"users": [{"mobilePhone": "447400123456"}, {"mobilePhone": "447400999888"}]})
    account_id = users(product)[0]["id"]
    async with connected(url, token) as connector:
        await refusal(connector.update(account_id, an_account("447400999888", active=False), Delivery()))
    assert users(product)[0]["status"] == "suspended"


async def test_an_account_that_is_gone_is_gone_on_update_and_fine_on_delete(emulator: Any, token: Path) -> None:
    """A6."""
    _, url = emulator
    async with connected(url, token) as connector:
        assert isinstance(await refusal(connector.update("u-77", an_account(first_name="Ann"), Delivery())), Gone)
        assert isinstance(await refusal(connector.update("u-77", an_account(), Delivery())), Gone)
        await connector.delete("u-77", Delivery())
    async with connected(url, token, on_delete="delete") as connector:
        await connector.delete("u-77", Delivery())


async def test_a_deletion_suspends_unless_the_settings_say_delete(emulator: Any, token: Path) -> None:
    """Vendor page 3.3: deleting reserves the number."""
    product, url = emulator
    product.seed({"users": [{"mobilePhone": "447400123456"}]})
    account_id = users(product)[0]["id"]
    async with connected(url, token) as connector:
        await connector.delete(account_id, Delivery())
        assert users(product)[0]["status"] == "suspended"
    async with connected(url, token, on_delete="delete") as connector:
        await connector.delete(account_id, Delivery())
        assert users(product) == []


async def test_a_pending_create_waits_for_approval_with_its_id(emulator: Any, token: Path) -> None:
    """Vendor page 3.5: 202 pending is class W; it ends by itself after the daily run."""
    product, url = emulator
    product.set(approval=True)
    async with connected(url, token) as connector:
        account = wished(connector)
        waiting = await refusal(connector.create(account, Delivery()))
        assert (type(waiting), waiting.on, waiting.observed_active) == (Blocked, "approval", False)
        still = await refusal(connector.update(waiting.account_id, account, Delivery()))
        assert (type(still), still.account_id) == (Blocked, waiting.account_id)
        product.approve()
        await connector.update(waiting.account_id, account, Delivery())
    assert users(product)[0]["status"] == "active"


async def test_a_leaver_does_not_wait_for_approval_and_is_not_let_in_by_it(emulator: Any, token: Path) -> None:
    """A pending account that shall be inactive is suspended at once, also one that was created so; A7."""
    product, url = emulator
    product.set(approval=True)
    async with connected(url, token) as connector:
        waiting = await refusal(connector.create(wished(connector), Delivery()))
        await connector.update(waiting.account_id, wished(connector, active=False), Delivery())
        await connector.create(wished(connector, number="+44 7400 999888", active=False), Delivery())
    product.approve()
    assert [held["status"] for held in users(product)] == ["suspended", "suspended"]


async def test_an_unknown_manager_concerns_the_target_not_the_person(emulator: Any, token: Path) -> None:
    """Vendor page 3.5: 400 unknown manager is configuration."""
    product, url = emulator
    product.set(managers=["Somebody"])
    async with connected(url, token) as connector:
        error = await refusal(connector.create(wished(connector), Delivery()))
    assert (type(error), error.code) == (Misconfigured, "unknown_manager")


async def test_a_refused_value_names_its_attribute(emulator: Any, token: Path) -> None:
    """Vendor page 0.4: permanent, naming attribute and remedy."""
    _, url = emulator
    async with connected(url, token) as connector:
        error = await refusal(connector.create(an_account(email="nonsense"), Delivery()))
    assert (type(error), error.attribute) == (Rejected, 'emails[type eq "work"].value')
    assert "Correct emails" in str(error)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"kind": "status", "status": 503}, Unavailable),
        ({"kind": "status", "status": 500}, Unavailable),
        ({"kind": "html"}, Unavailable),
        ({"kind": "reset"}, Unavailable),
        ({"kind": "truncate"}, Unavailable),
        ({"kind": "drop_response"}, Unavailable),
        ({"kind": "rate_limit", "retry_after": 7}, RateLimited),
        ({"kind": "auth"}, Misconfigured),
        ({"kind": "status", "status": 403}, Misconfigured),
    ],
    ids=lambda value: value.get("status", value["kind"]) if isinstance(value, dict) else "",
)
async def test_faults_of_the_product_become_their_class(emulator: Any, token: Path, fault: Any, kind: type) -> None:
    """Vendor pages 0.4, 0.5 and 3.5, over real HTTP."""
    product, url = emulator
    options = dict(fault)
    product.fault(options.pop("kind"), method="POST", **options)
    async with connected(url, token) as connector:
        error = await refusal(connector.create(wished(connector), Delivery()))
    assert type(error) is kind
    if fault["kind"] in ("truncate", "drop_response", "reset"):
        assert error.ambiguous
    if kind is RateLimited:
        assert error.retry_after_s == 7.0


async def test_the_products_own_limit_is_kept(token: Path) -> None:
    """Vendor page 3.3: ten calls per second; the emulator reports every call too many."""
    product = TelemessageEmulator()
    async with running(product) as url, connected(url, token) as connector:
        for number in range(14):
            await connector.find(None, (f"userName:4474001234{number:02}",), Delivery())
    assert len(product.recorded()) == 14
    assert not product.violations


async def test_check_proves_token_and_manager_and_writes_nothing(emulator: Any, token: Path) -> None:
    """A12, M5, M18."""
    product, url = emulator
    async with connected(url, token, default_region="GB") as connector:
        assert [finding.level for finding in await connector.check()] == ["ok"]
    async with connected(url, token, manager_name="contoso  archive", on_delete="delete") as connector:
        findings = {finding.code: finding for finding in await connector.check()}
    assert findings["unknown_manager"].level == "error"
    assert f"did you mean '{MANAGER}'" in findings["unknown_manager"].message
    assert {"no_default_region", "delete_reserves"} <= set(findings)
    product.revoke_token()
    async with connected(url, token) as connector:
        assert isinstance(await refusal(connector.check()), Misconfigured)
    assert {call["method"] for call in product.recorded()} == {"GET"}


async def test_all_accounts_of_the_manager_are_listed_page_by_page(emulator: Any, token: Path) -> None:
    """Contract, ListsAccounts: one page and the next cursor."""
    product, url = emulator
    product.set(managers=[MANAGER, "Other"], page_users=2)
    numbers = [f"44740012345{digit}" for digit in range(5)]
    product.seed(
        {
            "users": [{"mobilePhone": number} for number in numbers]
            + [{"mobilePhone": "12025550123", "manager": "Other"}]
        }
    )
    listed: list[Any] = []
    async with connected(url, token) as connector:
        cursor: str | None = None
        for _ in range(10):
            page, cursor = await connector.list_accounts(cursor)
            listed += page
            if cursor is None:
                break
    assert [entry["identities"] for entry in listed] == [(f"userName:{number}",) for number in numbers]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"base_url": "http://telemessage.example.com"}, "https://"),
        ({"default_region": "UK"}, "not an ISO country code"),
        ({"overrides": {"0123": "+44 7400"}}, "7 to 15 digits"),
        ({"overrides": {"0123": "1234567", "1234567": "7654321"}}, "overridden itself"),
        ({"manager_name": ""}, "manager_name"),
        ({"on_delete": "purge"}, "on_delete"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_the_file_is_read(wrong: dict[str, Any], said: str) -> None:
    """All mistakes at once, path first."""
    table = {"base_url": "https://telemessage.example.com", "token": {"env": "T"}, "manager_name": MANAGER, **wrong}
    problems: list[str] = []
    assert registry.decode_settings("telemessage", table, "targets.tm.settings", problems) is None
    (problem,) = problems
    assert problem.startswith("targets.tm.settings")
    assert said in problem


def test_unset_null_and_text_are_told_apart() -> None:
    """Schemas: unset keeps what the product holds, null clears it."""
    options = Settings(base_url="https://telemessage.example.com", token=Secret(env="T"), manager_name=MANAGER)
    connector = TeleMessage(options, registry.CallsNobody())
    sent = connector.normalize(a_user(name={"givenName": None}, emails=[]), Known())
    assert (sent.first_name, sent.last_name, sent.email) == ("", UNSET, UNSET)
    assert sent.person() == {"firstName": ""}
    cleared = connector.normalize(a_user(emails=None), Known())
    assert cleared.email == "", "what was mapped and is gone in Entra is cleared at the product (M20)"
