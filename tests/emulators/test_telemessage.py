"""The TeleMessage emulator keeps the assumed contract with its quirks."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from deploy.emulators.harness import running
from deploy.emulators.telemessage import TelemessageEmulator
from tests.emulators.calling import Caller, calling

AUTH = {"Authorization": "Bearer demo-token-telemessage"}
NUMBER = "447400123456"
OTHER = "447400999888"
USER = {
    "userName": NUMBER,
    "mobilePhone": NUMBER,
    "firstName": "Given",
    "lastName": "Family",
    "email": "given.family@example.com",
    "manager": "Contoso Archive",
    "status": "active",
    "sendWelcome": False,
}
GONE = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


class Vendor(Caller[TelemessageEmulator]):
    """A plain client of the emulator: (status, decoded body)."""

    async def create(self, **changes: Any) -> tuple[int, Any]:
        body = {name: value for name, value in {**USER, **changes}.items() if value is not None}
        return await self.call("POST", "/v1/users", body)

    async def found(self, number: str) -> list[dict[str, Any]]:
        status, body = await self.call("GET", f"/v1/users?mobilePhone={number}")
        assert status == 200
        assert body["next"] is None
        return body["users"]


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    async with calling(Vendor, TelemessageEmulator(rate_per_s=0), AUTH) as vendor:
        yield vendor


async def test_a_created_user_is_found_by_its_number(vendor):
    """3.3: POST answers 201 with the user; GET by mobilePhone finds it and only it."""
    status, user = await vendor.create()

    assert status == 201
    assert user["id"] == "u-1"
    assert {name: user[name] for name in USER if name != "sendWelcome"} == {
        name: value for name, value in USER.items() if name != "sendWelcome"
    }
    assert await vendor.found(NUMBER) == [user]
    assert await vendor.found(OTHER) == []
    assert vendor.codes == []


async def test_the_list_can_be_read_page_by_page_and_by_manager(vendor):
    """3.3: `?manager=` filters and `?cursor=` goes on where the last page ended."""
    vendor.emulator.set(page_users=2, managers=["Contoso Archive", "Fabrikam"])
    for number in range(5):
        mobile = f"44740000000{number}"
        await vendor.create(userName=mobile, mobilePhone=mobile)
    await vendor.create(userName=OTHER, mobilePhone=OTHER, manager="Fabrikam")

    seen, query = [], "manager=Contoso%20Archive"
    for _ in range(3):
        _, page = await vendor.call("GET", f"/v1/users?{query}")
        seen.append([user["id"] for user in page["users"]])
        query = f"manager=Contoso%20Archive&cursor={page['next']}"
    assert seen == [["u-1", "u-2"], ["u-3", "u-4"], ["u-5"]]
    assert page["next"] is None
    _, page = await vendor.call("GET", "/v1/users?manager=Fabrikam")
    assert [user["id"] for user in page["users"]] == ["u-6"]


async def test_names_and_mail_are_changed_by_patch(vendor):
    """3.3: PATCH changes what it names and nothing else."""
    _, user = await vendor.create()

    status, after = await vendor.call("PATCH", "/v1/users/u-1", {"firstName": "New", "email": "new@example.com"})
    assert status == 200
    assert {name for name in user if after[name] != user[name]} - {"updatedAt"} == {"firstName", "email"}
    assert vendor.emulator.journal.effects()[-1]["changed"] == ["firstName", "email"]


async def test_a_change_of_number_keeps_the_user_and_frees_the_old_number(vendor):
    """3.3, 3.2: `login` is its own call, the customer stays the same person; the old number can be used again."""
    await vendor.create()

    status, user = await vendor.call("POST", "/v1/users/u-1/login", {"userName": OTHER, "mobilePhone": OTHER})
    assert (status, user["id"], user["mobilePhone"], user["userName"]) == (200, "u-1", OTHER, OTHER)
    assert await vendor.found(NUMBER) == []
    assert [found["id"] for found in await vendor.found(OTHER)] == ["u-1"]
    assert (await vendor.create())[0] == 201
    assert vendor.ops == ["create", "login", "create"]


async def test_a_change_to_a_number_somebody_has_is_refused(vendor):
    """3.3: `login` to another user's number is 409 naming the holder; to the own number it is nothing."""
    await vendor.create()
    await vendor.create(userName=OTHER, mobilePhone=OTHER)

    status, body = await vendor.call("POST", "/v1/users/u-1/login", {"userName": OTHER, "mobilePhone": OTHER})
    assert (status, body["code"], body["userId"]) == (409, "DUPLICATE_MSISDN", "u-2")
    status, _ = await vendor.call("POST", "/v1/users/u-2/login", {"userName": OTHER, "mobilePhone": OTHER})
    assert status == 200
    assert vendor.emulator.journal.effects()[-1]["changed"] == []


async def test_a_suspended_number_still_blocks_a_create(vendor):
    """3.6: suspending keeps the number; the way back is status active."""
    await vendor.create()
    status, user = await vendor.call("POST", "/v1/users/u-1/status", {"status": "suspended"})
    assert (status, user["status"]) == (200, "suspended")

    status, body = await vendor.create()
    assert (status, body["code"], body["field"], body["userId"]) == (409, "DUPLICATE_MSISDN", "mobilePhone", "u-1")
    assert "reserved" not in body
    assert (await vendor.call("POST", "/v1/users/u-1/status", {"status": "active"}))[1]["status"] == "active"


async def test_a_deleted_number_stays_reserved(vendor):
    """3.6: a delete reserves the number for good, for creates and for changes of number."""
    await vendor.create()
    await vendor.create(userName=OTHER, mobilePhone=OTHER)
    assert await vendor.call("DELETE", "/v1/users/u-1") == (204, None)

    assert await vendor.found(NUMBER) == []
    status, body = await vendor.create()
    assert (status, body["code"], body["reserved"]) == (409, "DUPLICATE_MSISDN", True)
    status, body = await vendor.call("POST", "/v1/users/u-2/login", {"userName": NUMBER, "mobilePhone": NUMBER})
    assert (status, body["reserved"]) == (409, True)
    assert list(vendor.emulator.state()["reserved"]) == [NUMBER]


async def test_unknown_users_are_404_on_every_call(vendor):
    """3.5: PATCH, login, status and DELETE of a user that is not there."""
    login = {"userName": NUMBER, "mobilePhone": NUMBER}
    assert [
        (await vendor.call("PATCH", "/v1/users/u-9", {"firstName": "X"}))[0],
        (await vendor.call("POST", "/v1/users/u-9/login", login))[0],
        (await vendor.call("POST", "/v1/users/u-9/status", {"status": "active"}))[0],
        (await vendor.call("DELETE", "/v1/users/u-9"))[0],
    ] == [404, 404, 404, 404]
    assert vendor.ops == []


async def test_managers_are_listed_and_must_match_exactly(vendor):
    """3.6: manager names are exact and case-sensitive; an unknown one is 400 naming the field."""
    assert await vendor.call("GET", "/v1/managers") == (200, {"managers": [{"name": "Contoso Archive"}]})

    status, body = await vendor.create(manager="contoso archive")
    assert (status, body["code"], body["field"]) == (400, "UNKNOWN_MANAGER", "manager")
    assert vendor.codes == []


@pytest.mark.parametrize(
    "number", ["+447400123456", "44 7400 123456", "447400-123456", "123456", "1" * 16, "٤٤٧٤٠٠١٢٣٤٥٦"]
)
async def test_anything_but_seven_to_fifteen_digits_is_refused(vendor, number):
    """3.6: only digits in userName and mobilePhone; an unnormalized number is a mistake of the client."""
    for field in ("userName", "mobilePhone"):
        status, body = await vendor.create(**{field: number})
        assert (status, body["code"], body["field"]) == (400, "INVALID_MSISDN", field)
    login = {"userName": NUMBER, "mobilePhone": number}
    await vendor.create()
    assert (await vendor.call("POST", "/v1/users/u-1/login", login))[0] == 400
    assert vendor.codes == ["invalid_msisdn"] * 3


@pytest.mark.parametrize("number", ["1234567", "123456789012345"])
async def test_the_shortest_and_the_longest_number_are_accepted(vendor, number):
    """3.6: 7 and 15 digits are inside the range."""
    assert (await vendor.create(userName=number, mobilePhone=number))[0] == 201


@pytest.mark.parametrize("names", [{}, {"firstName": "", "lastName": " "}])
async def test_a_user_without_a_name_is_shown_with_the_number(vendor, names):
    """3.6: empty names are filled with the number, which follows a change of number and gives way to a name."""
    _, user = await vendor.create(**{"firstName": None, "lastName": None, **names})
    assert user["firstName"] == NUMBER

    if not names:
        _, user = await vendor.call("POST", "/v1/users/u-1/login", {"userName": OTHER, "mobilePhone": OTHER})
        assert user["firstName"] == OTHER
    _, user = await vendor.call("PATCH", "/v1/users/u-1", {"firstName": "Given", "lastName": "Family"})
    assert (user["firstName"], user["lastName"]) == ("Given", "Family")


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        ({"phone": "1"}, "unknown_field"),
        ({"MobilePhone": NUMBER}, "wrong_case"),
        ({"username": NUMBER}, "wrong_case"),
        ({"sendWelcome": "false"}, "wrong_type"),
        ({"firstName": 7}, "wrong_type"),
        ({"userName": None}, "missing_field"),
        ({"mobilePhone": None}, "missing_field"),
        ({"manager": None}, "missing_field"),
        ({"manager": ""}, "missing_field"),
        ({"status": "disabled"}, "invalid_status"),
    ],
)
async def test_a_malformed_user_is_refused_and_is_a_violation(vendor, change, violation):
    """0.5: unknown fields, wrong case, wrong types and missing fields fail the test that sends them."""
    status, body = await vendor.create(**change)

    assert (status, body["code"]) == (400, violation.upper())
    assert body["field"] == next(iter(change))
    assert vendor.codes == [violation]
    assert vendor.ops == []


async def test_each_call_takes_only_its_own_fields(vendor):
    """3.3: a number is not changed by PATCH, a status not by login."""
    await vendor.create()

    assert (await vendor.call("PATCH", "/v1/users/u-1", {"mobilePhone": OTHER}))[1]["code"] == "UNKNOWN_FIELD"
    assert (await vendor.call("PATCH", "/v1/users/u-1", {"status": "active"}))[1]["code"] == "UNKNOWN_FIELD"
    assert (await vendor.call("POST", "/v1/users/u-1/login", {"userName": OTHER}))[1]["code"] == "MISSING_FIELD"
    assert (await vendor.call("POST", "/v1/users/u-1/status", {"status": "pending"}))[1]["code"] == "INVALID_STATUS"
    assert vendor.ops == ["create"]


async def test_bodies_must_be_json_objects_sent_as_json(vendor):
    """0.5: the content type is enforced (415); what is no JSON object is 400."""
    for content_type, raw, status in (
        ("text/plain", b"{}", 415),
        ("application/x-www-form-urlencoded", b"userName=1", 415),
        ("application/json", b'{"userName": ', 400),
        ("application/json", b"[]", 400),
    ):
        async with vendor.session.post("/v1/users", data=raw, headers={"Content-Type": content_type}) as answer:
            assert answer.status == status
    assert vendor.codes == ["content_type", "content_type", "not_json", "not_json"]


async def test_an_unknown_query_parameter_is_refused(vendor):
    """0.5: a parameter the vendor does not know, or in the wrong case, is a violation."""
    assert (await vendor.call("GET", "/v1/users?mobilephone=447400123456"))[1]["code"] == "WRONG_CASE"
    assert (await vendor.call("GET", "/v1/users?limit=5"))[1]["code"] == "UNKNOWN_PARAMETER"
    assert vendor.codes == ["wrong_case", "unknown_parameter"]


async def test_the_default_limit_is_ten_calls_per_second():
    """3.3: 10 requests per second, then 429 with Retry-After."""
    emulator = TelemessageEmulator()
    emulator.clock.freeze(True)
    async with running(emulator) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        vendor = Vendor(emulator, session)
        answers = [await vendor.call("GET", "/v1/managers") for _ in range(11)]
    assert [status for status, _ in answers] == [200] * 10 + [429]
    assert answers[-1][1]["code"] == "RATE_LIMITED"


# Idempotency ----------------------------------------------------------------------------------------------------------


async def test_a_repeated_create_with_its_key_answers_as_the_first_time(vendor):
    """3.3: Idempotency-Key on POST; one effect, the same answer."""
    key = {"Idempotency-Key": "telemessage.r1.1.create"}
    first = await vendor.call("POST", "/v1/users", USER, **key)
    again = await vendor.call("POST", "/v1/users", USER, **key)

    assert first == again
    assert vendor.ops == ["create"]
    assert [line["replayed"] for line in vendor.emulator.recorded()] == [False, True]


async def test_the_key_is_kept_for_a_day(vendor):
    """3.3: 24 h by the emulator's clock; afterwards the same call is a new one."""
    key = {"Idempotency-Key": "telemessage.r1.1.create"}
    await vendor.call("POST", "/v1/users", USER, **key)
    vendor.emulator.advance(86_399)
    assert (await vendor.call("POST", "/v1/users", USER, **key))[0] == 201
    vendor.emulator.advance(2)
    assert (await vendor.call("POST", "/v1/users", USER, **key))[0] == 409


async def test_a_key_used_for_something_else_is_a_violation(vendor):
    """3.3: one key, one request: another body or another call under the same key is a mistake of the client."""
    key = {"Idempotency-Key": "k"}
    await vendor.call("POST", "/v1/users", USER, **key)

    status, body = await vendor.call("POST", "/v1/users", {**USER, "firstName": "X"}, **key)
    assert (status, body["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert (await vendor.call("POST", "/v1/users/u-1/status", {"status": "suspended"}, **key))[0] == 422
    assert vendor.codes == ["idempotency_key_reused"] * 2
    assert vendor.ops == ["create"]


async def test_a_refused_call_does_not_use_up_its_key(vendor):
    """3.3: after a refusal the same key may succeed."""
    key = {"Idempotency-Key": "k"}
    body = {**USER, "manager": "Fabrikam"}
    assert (await vendor.call("POST", "/v1/users", body, **key))[0] == 400
    vendor.emulator.set(managers=["Fabrikam"])
    assert (await vendor.call("POST", "/v1/users", body, **key))[0] == 201


@pytest.mark.parametrize(
    ("path", "body", "op"),
    [
        ("/v1/users", {**USER, "userName": OTHER, "mobilePhone": OTHER}, "create"),
        ("/v1/users/u-1/login", {"userName": OTHER, "mobilePhone": OTHER}, "login"),
    ],
)
async def test_a_lost_answer_can_be_fetched_again_with_the_key(vendor, path, body, op):
    """3.6: `drop_response` on POST and on login: the effect is there once, and the repeat tells its answer."""
    await vendor.create()
    vendor.emulator.fault("drop_response", method="POST", path=path + "$", times=1)
    key = {"Idempotency-Key": f"telemessage.r1.2.{op}"}

    with pytest.raises(GONE):
        await vendor.call("POST", path, body, **key)
    assert len(await vendor.found(OTHER)) == 1
    status, user = await vendor.call("POST", path, body, **key)
    assert (status, user["mobilePhone"]) == (201 if op == "create" else 200, OTHER)
    assert vendor.ops == ["create", op]


async def test_a_lost_answer_without_a_key_shows_as_a_duplicate(vendor):
    """3.6: without the key the repeat of a create whose answer was lost is 409 naming the user made before."""
    vendor.emulator.fault("drop_response", method="POST", times=1)

    with pytest.raises(GONE):
        await vendor.create()
    status, body = await vendor.create()
    assert (status, body["userId"]) == (409, "u-1")


# Approval -------------------------------------------------------------------------------------------------------------


async def test_with_approval_a_user_stays_pending_until_approved(vendor):
    """3.6: `approval` mode: 202 and pending; POST /__emu/approve makes it active, no call of the client does."""
    vendor.emulator.set(approval=True)
    status, user = await vendor.create()
    assert (status, user["status"]) == (202, "pending")
    assert (await vendor.call("POST", "/v1/users/u-1/status", {"status": "active"}))[1]["status"] == "pending"
    assert (await vendor.create())[0] == 409

    assert await vendor.call("POST", "/__emu/approve", {"ids": ["u-7"]}) == (200, {"ids": []})
    assert await vendor.call("POST", "/__emu/approve") == (200, {"ids": ["u-1"]})
    assert (await vendor.found(NUMBER))[0]["status"] == "active"


async def test_the_daily_run_approves_what_waited_over_midnight(vendor):
    """3.6: a pending user becomes active when the clock passes the daily run."""
    vendor.emulator.clock.freeze(True)
    vendor.emulator.set(approval=True)
    await vendor.create()
    vendor.emulator.advance(86_400)
    await vendor.create(userName=OTHER, mobilePhone=OTHER)

    assert (await vendor.found(NUMBER))[0]["status"] == "active"
    assert (await vendor.found(OTHER))[0]["status"] == "pending"


def test_a_restart_is_no_daily_run(tmp_path):
    """3.6: who was created today is still pending after a restart of the vendor, whatever the time."""
    before = TelemessageEmulator(journal_dir=tmp_path, approval=True)
    before.seed({"users": [{"mobilePhone": NUMBER, "status": "pending"}]})
    before.journal.close()

    after = TelemessageEmulator(journal_dir=tmp_path, approval=True)
    after.clock.advance(before.clock.now() - after.clock.now())  # the very moment of before, also around midnight
    assert after.state()["users"]["u-1"]["status"] == "pending"
    after.advance(86_400)
    assert after.state()["users"]["u-1"]["status"] == "active"
    after.journal.close()


# Seeds ----------------------------------------------------------------------------------------------------------------


async def test_a_seed_puts_managers_users_and_reserved_numbers_without_counting_as_effects(vendor):
    """0.5: POST /__emu/seed sets the scene; the journal's effects stay the client's."""
    scene = {
        "managers": ["Contoso Archive", "Fabrikam"],
        "users": [{"mobilePhone": NUMBER, "manager": "Fabrikam", "status": "suspended"}, {"mobilePhone": "1234567"}],
        "reserved": [OTHER],
    }
    assert await vendor.call("POST", "/__emu/seed", scene) == (200, {"ids": ["u-1", "u-2"]})

    (found,) = await vendor.found(NUMBER)
    assert (found["manager"], found["status"]) == ("Fabrikam", "suspended")
    assert (await vendor.create(userName=OTHER, mobilePhone=OTHER))[1]["reserved"] is True
    assert (await vendor.create(userName="7654321", mobilePhone="7654321"))[1]["id"] == "u-3"
    assert vendor.ops == ["create"]


async def test_a_wrong_seed_is_refused(vendor):
    """A seed with unknown fields or numbers that are taken is an error of the test."""
    for wrong in (
        {"user": []},
        {"users": [{"mobile": "1"}]},
        {"users": [{"mobilePhone": NUMBER}, {"mobilePhone": NUMBER}]},
    ):
        assert (await vendor.call("POST", "/__emu/seed", wrong))[0] == 400
    assert vendor.emulator.state()["users"] == {}
