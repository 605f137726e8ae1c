"""Control calls, faults, clock, limit, journal and restart, tried on the TeleMessage emulator over real HTTP."""

import asyncio
import errno
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from deploy.emulators.__main__ import emulator_class
from deploy.emulators.harness import Clock, Fault, Journal, Tables, journal_lines, running
from deploy.emulators.telemessage import TelemessageEmulator

TOKEN = "demo-token-telemessage"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
NUMBER = "447400123456"
USER = {
    "userName": NUMBER,
    "mobilePhone": NUMBER,
    "firstName": "Given",
    "lastName": "Family",
    "manager": "Contoso Archive",
}
READY_WAIT_MAX_S = 60.0
GONE = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


@asynccontextmanager
async def client(emulator: TelemessageEmulator) -> AsyncIterator[aiohttp.ClientSession]:
    async with running(emulator) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        yield session


@pytest.fixture
def emulator() -> TelemessageEmulator:
    return TelemessageEmulator(rate_per_s=0)


@pytest.fixture
async def http(emulator: TelemessageEmulator) -> AsyncIterator[aiohttp.ClientSession]:
    async with client(emulator) as session:
        yield session


async def create(http: aiohttp.ClientSession, number: str = NUMBER, **headers: str) -> tuple[int, Any]:
    body = {**USER, "userName": number, "mobilePhone": number}
    async with http.post("/v1/users", json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def find(http: aiohttp.ClientSession, number: str = NUMBER) -> tuple[int, Any]:
    async with http.get("/v1/users", params={"mobilePhone": number}) as answer:
        return answer.status, await answer.json() if answer.content_type == "application/json" else None


async def control(http: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> Any:
    async with http.request(method, f"/__emu/{path}", json=body) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


def codes(emulator: TelemessageEmulator) -> list[str]:
    return [violation["code"] for violation in emulator.violations]


# Faults ---------------------------------------------------------------------------------------------------------------


async def test_a_status_fault_answers_as_told_without_the_write_and_only_so_many_times(http, emulator):
    """Fault kind `status`: any code, optional body and headers, before the effect; `times` counts down."""
    await control(
        http, "POST", "faults", {"kind": "status", "status": 503, "times": 1, "headers": {"Retry-After": "7"}}
    )

    async with http.post("/v1/users", json=USER) as refused:
        assert refused.status == 503
        assert refused.headers["Retry-After"] == "7"
        assert (await refused.json())["code"] == "INJECTED"
    assert emulator.journal.effects() == []
    assert (await create(http))[0] == 201


async def test_a_status_fault_after_the_write_hides_that_it_happened(http, emulator):
    """Fault option `when`: the answer is an error although the effect is there."""
    emulator.fault("status", status=500, body={"code": "BROKEN"}, when="after", times=1)

    assert await create(http) == (500, {"code": "BROKEN"})
    assert len(emulator.journal.effects(op="create")) == 1


async def test_a_rate_limit_fault_answers_429_with_retry_after_and_is_no_violation(http, emulator):
    """Fault kind `rate_limit`: 429 and Retry-After, here as an HTTP date."""
    emulator.fault("rate_limit", times=1, retry_after="Wed, 21 Oct 2026 07:28:00 GMT")

    async with http.post("/v1/users", json=USER) as refused:
        assert refused.status == 429
        assert refused.headers["Retry-After"] == "Wed, 21 Oct 2026 07:28:00 GMT"
    assert emulator.journal.effects() == []
    assert codes(emulator) == []


async def test_a_slow_fault_keeps_the_caller_waiting(http, emulator):
    """Fault kind `slow`: the answer is right but late."""
    emulator.fault("slow", delay_s=0.2, times=1)

    began = time.monotonic()
    assert (await create(http))[0] == 201
    assert time.monotonic() - began >= 0.2


async def test_a_write_goes_on_after_the_client_gave_up_waiting(http, emulator):
    """Fault kind `slow`: the effect comes later than the client's patience, as with a real vendor."""
    emulator.fault("slow", delay_s=0.3, times=1)

    with pytest.raises(TimeoutError):
        await http.post("/v1/users", json=USER, timeout=aiohttp.ClientTimeout(total=0.1))
    assert emulator.journal.effects() == []
    async with asyncio.timeout(5):
        while not emulator.journal.effects(op="create"):
            await find(http)


async def test_a_reset_closes_the_connection_before_anything_happens(http, emulator):
    """Fault kind `reset`: closed before the answer and before the effect, with a TCP reset."""
    emulator.fault("reset", method="POST", times=1)

    with pytest.raises(aiohttp.ClientOSError) as cut:
        await create(http)
    assert cut.value.errno == errno.ECONNRESET
    assert emulator.journal.effects() == []
    assert (await find(http))[1]["users"] == []


async def test_a_dropped_response_leaves_the_write_behind(http, emulator):
    """Fault kind `drop_response`: the write is done and the caller cannot know."""
    await control(http, "POST", "faults", {"kind": "drop_response", "match": {"method": "POST"}, "times": 1})

    with pytest.raises(GONE):
        await create(http)
    assert [user["id"] for user in (await find(http))[1]["users"]] == ["u-1"]
    assert [effect["op"] for effect in emulator.journal.effects()] == ["create"]


async def test_a_truncated_answer_ends_in_the_middle(http, emulator):
    """Fault kind `truncate`: half a body, then the end of the connection."""
    emulator.fault("truncate", times=1)

    with pytest.raises(aiohttp.ClientPayloadError):
        await create(http)
    assert len(emulator.journal.effects()) == 1


async def test_a_truncated_answer_of_honest_length_is_no_json(http, emulator):
    """Fault kind `truncate` with `honest_length`: HTTP is intact, the JSON is not."""
    emulator.fault("truncate", times=1, honest_length=True)

    async with http.post("/v1/users", json=USER) as answer:
        assert answer.status == 201
        with pytest.raises(json.JSONDecodeError):
            await answer.json()


async def test_an_html_fault_is_a_gateway_page(http, emulator):
    """Fault kind `html`: a 502 page where JSON was expected."""
    emulator.fault("html", times=1)

    async with http.post("/v1/users", json=USER) as answer:
        assert answer.status == 502
        assert answer.content_type == "text/html"
        assert "<html>" in await answer.text()
    assert emulator.journal.effects() == []


async def test_stale_reads_lag_writes_by_the_emulators_clock(http, emulator):
    """Fault kind `stale_read`: a new user is not found until the lag has passed; writes see the truth."""
    emulator.fault("stale_read", lag_s=30)
    await create(http)

    assert (await find(http))[1]["users"] == []
    assert (await create(http))[0] == 409
    await control(http, "POST", "clock", {"advance_s": 31})
    assert [user["id"] for user in (await find(http))[1]["users"]] == ["u-1"]


async def test_stale_reads_show_old_values_and_deleted_users(http, emulator):
    """Fault kind `stale_read`: what changed or went away still looks as before."""
    emulator.seed({"users": [{"mobilePhone": NUMBER, "firstName": "Old"}, {"mobilePhone": "447400999888"}]})
    emulator.advance(60)
    emulator.fault("stale_read", lag_s=30)
    async with http.patch("/v1/users/u-1", json={"firstName": "New"}) as answer:
        assert answer.status == 200
    async with http.delete("/v1/users/u-2") as answer:
        assert answer.status == 204

    assert (await find(http))[1]["users"][0]["firstName"] == "Old"
    assert len((await find(http, "447400999888"))[1]["users"]) == 1
    emulator.clear_faults()
    assert (await find(http))[1]["users"][0]["firstName"] == "New"
    assert (await find(http, "447400999888"))[1]["users"] == []


async def test_an_auth_fault_refuses_every_credential_until_it_is_lifted(http, emulator):
    """Fault kind `auth`: 401 until the faults are cleared."""
    added = await control(http, "POST", "faults", {"kind": "auth"})

    assert [(await find(http))[0] for _ in range(3)] == [401, 401, 401]
    listed = await control(http, "GET", "faults")
    assert [(fault["id"], fault["hits"]) for fault in listed["faults"]] == [(added["ids"][0], 3)]
    await control(http, "DELETE", "faults")
    assert (await find(http))[0] == 200


async def test_faults_hit_only_what_they_match(http, emulator):
    """Faults match method, path (prefix or regular expression) and a text in the call; `skip` lets some pass."""
    emulator.fault("status", status=500, method="POST", path="/v1/users/[^/]+/login$")
    emulator.fault("status", status=501, path="/v1/managers")
    emulator.fault("status", status=502, contains="447400000666")
    emulator.fault("status", status=504, method="GET", path="/v1/users$", skip=1)

    assert (await create(http))[0] == 201
    assert (await create(http, "447400000666"))[0] == 502
    async with http.post("/v1/users/u-1/login", json={"userName": NUMBER, "mobilePhone": NUMBER}) as answer:
        assert answer.status == 500
    async with http.post("/v1/users/u-1/status", json={"status": "active"}) as answer:
        assert answer.status == 200
    async with http.get("/v1/managers") as answer:
        assert answer.status == 501
    assert [(await find(http))[0] for _ in range(3)] == [200, 504, 504]


async def test_one_fault_of_several_can_be_cleared(http, emulator):
    """DELETE /__emu/faults?id= leaves the others armed."""
    added = await control(http, "POST", "faults", {"faults": [{"kind": "auth"}, {"kind": "html"}]})

    left = await control(http, "DELETE", f"faults?id={added['ids'][0]}")
    assert [fault["kind"] for fault in left["faults"]] == ["html"]
    assert (await find(http))[0] == 502


async def test_chaos_of_a_seed_is_the_same_every_time(http, emulator):
    """Probability with a seed: two runs hit the same calls, another seed hits others."""

    async def run(seed: int) -> list[int]:
        emulator.clear_faults()
        emulator.fault("status", status=503, probability=0.5, seed=seed)
        return [(await find(http))[0] for _ in range(40)]

    first = await run(7)
    assert first == await run(7)
    assert first != await run(8)
    assert 5 < first.count(503) < 35


async def test_a_misspelled_fault_is_refused(http):
    """POST /__emu/faults refuses unknown fields and kinds: a fault that never strikes would let a test pass."""
    for wrong in ({"kind": "slow", "dealy_s": 1}, {"kind": "explode"}, {"kind": "auth", "match": {"paht": "/"}}):
        async with http.post("/__emu/faults", json=wrong) as answer:
            assert answer.status == 400
            assert "error" in await answer.json()


# Credentials, limit, clock, settings ----------------------------------------------------------------------------------


async def test_calls_without_the_right_token_are_refused(emulator):
    """The emulators enforce auth: missing, wrong and bare tokens are 401."""
    async with running(emulator) as url, aiohttp.ClientSession(url) as http:
        for header in (None, "Bearer wrong", TOKEN, "Basic abc", "Bearer "):
            headers = {"Authorization": header} if header is not None else {}
            async with http.get("/v1/managers", headers=headers) as answer:
                assert answer.status == 401, header
                assert (await answer.json())["code"] == "UNAUTHORIZED"


async def test_the_token_can_be_revoked_restored_replaced_and_delayed(http, emulator):
    """Credentials are revocable through /__emu; a newly granted one may take effect only later."""
    await control(http, "POST", "token", {"revoked": True})
    assert (await find(http))[0] == 401
    await control(http, "POST", "token", {"revoked": False})
    assert (await find(http))[0] == 200
    await control(http, "POST", "token", {"effective_in_s": 120})
    assert (await find(http))[0] == 401
    await control(http, "POST", "clock", {"advance_s": 121})
    assert (await find(http))[0] == 200
    await control(http, "POST", "token", {"token": "another-token"})
    assert (await find(http))[0] == 401
    async with http.get("/v1/managers", headers={"Authorization": "Bearer another-token"}) as answer:
        assert answer.status == 200


async def test_more_calls_than_allowed_are_429_and_a_violation_by_the_emulators_clock(http, emulator):
    """The limit counts by the emulator's clock: with the clock stopped the eleventh call is one too many."""
    await control(http, "POST", "settings", {"rate_per_s": 10})
    await control(http, "POST", "clock", {"frozen": True})

    assert [(await find(http))[0] for _ in range(10)] == [200] * 10
    async with http.get("/v1/managers") as refused:
        assert refused.status == 429
        assert refused.headers["Retry-After"] == "1"
    assert codes(emulator) == ["rate_exceeded"]
    await control(http, "POST", "clock", {"advance_s": 1})
    assert (await find(http))[0] == 200


async def test_evenly_spaced_calls_at_the_allowed_rate_are_never_refused(http, emulator):
    """The limit forgives a little bunching on the way: calls every tenth of a second, some 50 ms early."""
    emulator.set(rate_per_s=10)
    emulator.clock.freeze(True)

    for number in range(40):
        assert (await find(http))[0] == 200
        emulator.advance(0.05 if number % 10 == 9 else 0.1)
    assert codes(emulator) == []


async def test_every_call_takes_at_least_the_set_latency(http, emulator):
    """`delay_ms` is the base latency of every vendor call; control calls have none."""
    emulator.set(delay_ms=60)

    began = time.monotonic()
    await find(http)
    assert time.monotonic() - began >= 0.06


async def test_a_wrong_setting_is_refused_by_name(http):
    """POST /__emu/settings names what it does not know."""
    for wrong, named in (
        ({"aproval": True}, "aproval"),
        ({"approval": "yes"}, "approval"),
        ({"delay_ms": -1}, "delay_ms"),
    ):
        async with http.post("/__emu/settings", json=wrong) as answer:
            assert answer.status == 400
            assert named in (await answer.json())["error"]


def test_a_stopped_clock_moves_only_when_told():
    """Clock: frozen time stands, an advance moves it, thawing goes on from there without a jump."""
    clock = Clock()
    clock.freeze(True)
    stood = clock.now()
    assert clock.now() == stood
    clock.advance(5)
    assert clock.now() == stood + 5
    clock.freeze(False)
    assert 0 <= clock.now() - (stood + 5) < 1


def test_the_past_can_be_read_back_change_by_change():
    """Tables: puts, replacements and removals are undone in order, and the present is untouched."""
    tables = Tables({"t": {"a": 1}})
    tables.apply(10, [("t", "b", 2)])
    tables.apply(20, [("t", "a", 3), ("t", "a", 4)])
    tables.apply(30, [("t", "b")])

    assert [tables.as_of(at)["t"] for at in (5, 10, 20, 30)] == [{"a": 1}, {"a": 1, "b": 2}, {"a": 4, "b": 2}, {"a": 4}]
    assert tables.rows["t"] == {"a": 4}


# Journal, records, reset ----------------------------------------------------------------------------------------------


async def test_every_effect_is_journaled_with_what_a_checker_needs(http, emulator):
    """Journal lines of effects carry account, natural key, number, time, idempotency key and values."""
    await create(http, **{"Idempotency-Key": "telemessage.r1.1.create"})
    async with http.post("/v1/users/u-1/status", json={"status": "suspended"}) as answer:
        assert answer.status == 200

    entries = (await control(http, "GET", "journal?kind=effect"))["entries"]
    assert [(entry["op"], entry["account_id"], entry["natural_key"]) for entry in entries] == [
        ("create", "u-1", NUMBER),
        ("status", "u-1", NUMBER),
    ]
    assert entries[0]["idempotency_key"] == "telemessage.r1.1.create"
    assert entries[0]["values"] == USER
    assert entries[1]["values"] == {"status": "suspended"}
    assert entries[1]["changed"] == ["status"]
    assert entries[0]["seq"] < entries[1]["seq"]
    assert entries[0]["at"] <= entries[1]["at"] <= emulator.clock.now()


async def test_the_journal_can_be_searched(http, emulator):
    """GET /__emu/journal filters by kind, op, account, natural key and number."""
    await create(http)
    await create(http, "447400999888")
    first = emulator.journal.effects()[0]

    async def found(query: str) -> list[str]:
        return [entry["op"] for entry in (await control(http, "GET", f"journal?kind=effect&{query}"))["entries"]]

    assert await found("natural_key=447400999888") == ["create"]
    assert await found("account_id=u-1") == ["create"]
    assert await found(f"since_seq={first['seq']}") == ["create"]
    assert await found("op=delete") == []


async def test_requests_are_recorded_with_status_and_fault_and_never_the_token(http, emulator):
    """Every request is journaled and recorded for assertions; the bearer token is in neither, nor in the state."""
    emulator.fault("html", times=1, method="GET")
    await find(http)
    await create(http)
    emulator.revoke_token(revoked=False, token="second-secret-token")

    requests = (await control(http, "GET", "requests"))["requests"]
    assert [(line["method"], line["path"], line["status"], line["fault"]) for line in requests] == [
        ("GET", "/v1/users", 502, "html"),
        ("POST", "/v1/users", 201, None),
    ]
    assert requests[1]["body"] == USER
    told = [await control(http, "GET", what) for what in ("requests", "journal", "state", "violations")]
    everything = json.dumps(told) + json.dumps(emulator.journal.lines())
    assert TOKEN not in everything
    assert "second-secret-token" not in everything


async def test_an_unknown_address_or_method_is_a_violation(http, emulator):
    """What the vendor does not offer is refused and recorded."""
    async with http.get("/v1/usres") as answer:
        assert answer.status == 404
    async with http.put("/v1/users/u-1", json={}) as answer:
        assert answer.status == 405
        assert answer.headers["Allow"] == "PATCH, DELETE"

    told = (await control(http, "GET", "violations"))["violations"]
    assert [(one["code"], one["method"]) for one in told] == [("unknown_path", "GET"), ("method_not_allowed", "PUT")]
    assert (await control(http, "DELETE", "violations"))["violations"] == []
    assert codes(emulator) == []


async def test_reset_returns_to_the_first_state_and_keeps_the_journal(http, emulator):
    """POST /__emu/reset clears accounts, faults, violations, records and clock; the journal is append-only."""
    await create(http)
    await control(http, "POST", "faults", {"kind": "slow", "match": {"path": "/nowhere"}})
    async with http.get("/v1/usres"):
        pass
    emulator.advance(1_000)

    since = (await control(http, "POST", "reset"))["seq"]
    state = await control(http, "GET", "state")
    assert state["users"] == {}
    assert abs(state["now"] - time.time()) < 60
    assert (await control(http, "GET", "faults"))["faults"] == []
    assert (await control(http, "GET", "requests"))["requests"] == []
    assert codes(emulator) == []
    assert len(emulator.journal.effects()) == 1
    assert (await create(http))[1]["id"] == "u-1"
    assert len(emulator.journal.effects(since_seq=since)) == 1


async def test_an_unknown_control_call_is_refused(http):
    """A test that misspells a control call hears so."""
    async with http.post("/__emu/resset") as answer:
        assert answer.status == 404


async def test_a_mistake_in_an_emulator_shows_as_a_violation(emulator):
    """An exception inside an emulator answers 500 and is recorded, so that no test mistakes it for a vendor fault."""

    class Broken(TelemessageEmulator):
        def _managers(self, call):
            raise ZeroDivisionError

    broken = Broken(rate_per_s=0)
    async with client(broken) as http, http.get("/v1/managers") as answer:
        assert answer.status == 500
    assert codes(broken) == ["emulator_bug"]


# Restart --------------------------------------------------------------------------------------------------------------


async def test_state_clock_settings_credentials_and_violations_survive_a_restart(tmp_path):
    """With a journal folder the vendor remembers everything over a restart of its process."""
    before = TelemessageEmulator(journal_dir=tmp_path, rate_per_s=0)
    async with client(before) as http:
        before.seed({"managers": ["Contoso Archive", "Fabrikam"], "reserved": ["447400111222"]})
        await create(http, **{"Idempotency-Key": "k1"})
        async with http.post("/v1/users/u-1/login", json={"userName": "447400999888", "mobilePhone": "447400999888"}):
            pass
        async with http.get("/v1/usres"):
            pass
        before.advance(7_200)
        before.revoke_token(token="another-token")
        held = before.state()

    after = TelemessageEmulator(journal_dir=tmp_path, rate_per_s=0)
    async with client(after) as http:
        again = after.state()
        assert again.pop("now") - held.pop("now") < 60
        assert again == held
        assert again["settings"]["managers"] == ["Contoso Archive", "Fabrikam"]
        assert codes(after) == ["unknown_path"]
        assert len(after.journal.effects()) == 2
        assert (await find(http))[0] == 401
        after.revoke_token(revoked=False, token=TOKEN)
        assert (await create(http, **{"Idempotency-Key": "k1"}))[1]["id"] == "u-1"
        assert (await create(http, "447400555666"))[1]["id"] == "u-2"
        assert (await create(http, "447400111222"))[1]["reserved"] is True
    numbers = [line["seq"] for line in journal_lines(tmp_path / "telemessage.journal.jsonl")]
    assert numbers == sorted(set(numbers))


async def test_a_restart_after_a_reset_does_not_bring_back_what_was_before(tmp_path):
    """Reading the journal again honours a reset."""
    before = TelemessageEmulator(journal_dir=tmp_path, rate_per_s=0)
    async with client(before) as http:
        await create(http)
        before.advance(100)
        before.reset()
        await create(http, "447400999888")

    after = TelemessageEmulator(journal_dir=tmp_path, rate_per_s=0)
    assert [user["mobilePhone"] for user in after.state()["users"].values()] == ["447400999888"]
    assert after.clock.offset_s == 0
    after.journal.close()


def test_a_line_torn_by_a_kill_is_cut_off(tmp_path):
    """A journal whose last line is incomplete is read without it and continued cleanly."""
    path = tmp_path / "telemessage.journal.jsonl"
    journal = Journal(path)
    journal.append({"seq": 1, "at": 1.0, "kind": "control", "op": "seed"})
    journal.close()
    with path.open("ab") as torn:
        torn.write(b'{"seq": 2, "at": 2.0, "ki')

    assert [line["seq"] for line in journal_lines(path)] == [1]
    again = TelemessageEmulator(journal_dir=tmp_path)
    again.set(approval=True)
    again.journal.close()
    assert [line["seq"] for line in journal_lines(path)] == [1, 2]


def test_a_journal_belongs_to_one_emulator_at_a_time(tmp_path, capsys):
    """A second emulator on the same journal is refused instead of mixing two histories."""
    first = TelemessageEmulator(journal_dir=tmp_path)
    with pytest.raises(RuntimeError, match="in use"):
        TelemessageEmulator(journal_dir=tmp_path)
    first.journal.close()
    TelemessageEmulator(journal_dir=tmp_path).journal.close()


@asynccontextmanager
async def process(*arguments: str, ready: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, str]]]:
    """The emulators as a program of their own, ready to answer; killed at the end if still there."""
    ready.unlink(missing_ok=True)  # noqa: ASYNC240
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "deploy.emulators",
        *arguments,
        "--ready-file",
        str(ready),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(READY_WAIT_MAX_S):
            while not ready.exists():  # noqa: ASYNC240
                assert started.returncode is None, "ended before it was ready"
                await asyncio.sleep(0.02)
        yield started, msgspec.json.decode(ready.read_bytes(), type=dict[str, str])  # noqa: ASYNC240
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def test_a_killed_process_comes_back_with_everything_it_had_answered(tmp_path):
    """kill -9 in the middle of traffic: every create that was answered is there after the restart, each once."""
    arguments = ["telemessage", "--journal-dir", str(tmp_path / "journals"), "--rate-per-s", "0"]
    answered: list[str] = []
    enough = asyncio.Event()

    async def keep_creating(http: aiohttp.ClientSession, lane: int) -> None:
        for number in range(100_000):
            mobile = f"4474{lane}{number:07d}"
            if (await create(http, mobile))[0] == 201:
                answered.append(mobile)
                if len(answered) >= 50:
                    enough.set()

    async with process(*arguments, ready=tmp_path / "ready") as (child, urls):
        async with aiohttp.ClientSession(urls["telemessage"], headers=AUTH) as http:
            lanes = [asyncio.create_task(keep_creating(http, lane)) for lane in range(3)]
            await asyncio.wait_for(enough.wait(), READY_WAIT_MAX_S)
            os.kill(child.pid, signal.SIGKILL)
            results = await asyncio.gather(*lanes, return_exceptions=True)
        assert all(isinstance(result, aiohttp.ClientError) for result in results)

    async with process(*arguments, ready=tmp_path / "ready") as (child, urls):
        async with aiohttp.ClientSession(urls["telemessage"], headers=AUTH) as http:
            held = [user["mobilePhone"] for user in (await control(http, "GET", "state"))["users"].values()]
            created = (await control(http, "GET", "journal?kind=effect&op=create"))["entries"]
            assert await find(http, answered[0]) != (200, {"users": [], "next": None})
        child.terminate()
        assert await asyncio.wait_for(child.wait(), READY_WAIT_MAX_S) == 0
    assert set(answered) <= set(held)
    assert sorted(entry["natural_key"] for entry in created) == sorted(held)
    assert len(set(held)) == len(held)


async def test_one_process_serves_several_emulators_with_their_options(tmp_path):
    """`telemessage talkdesk` in one process: a port each, options for all or for one by name."""
    arguments = [
        "telemessage",
        "talkdesk",
        "--rate-per-s",
        "0",
        "--rate-per-s",
        "talkdesk=2",
        "--token",
        "talkdesk=mine",
    ]
    arguments += ["--set", "talkdesk.patch=true", "--set", 'telemessage.managers=["Fabrikam"]', "--delay-ms", "1"]
    async with process(*arguments, ready=tmp_path / "ready") as (_, urls), aiohttp.ClientSession() as http:
        assert set(urls) == {"telemessage", "talkdesk"}
        assert all(url.startswith("http://127.0.0.1:") for url in urls.values())
        async with http.get(f"{urls['telemessage']}/v1/managers", headers=AUTH) as answer:
            assert await answer.json() == {"managers": [{"name": "Fabrikam"}]}
        provider = f"{urls['talkdesk']}/scim/v2/ServiceProviderConfig"
        async with http.get(provider, headers={"Authorization": "Bearer mine"}) as answer:
            assert (await answer.json(content_type=None))["patch"] == {"supported": True}
        async with http.get(f"{urls['talkdesk']}/__emu/state") as answer:
            settings = (await answer.json())["settings"]
    assert (settings["rate_per_s"], settings["delay_ms"]) == (2, 1)


async def test_connections_are_cut_in_the_program_as_in_the_tests(tmp_path):
    """The program runs on uvloop, whose sockets differ: reset, dropped and truncated answers look the same there."""
    arguments = ["telemessage", "--rate-per-s", "0"]
    ready = tmp_path / "ready"
    async with (
        process(*arguments, ready=ready) as (_, urls),
        aiohttp.ClientSession(urls["telemessage"], headers=AUTH) as http,
    ):
        for kind in ("reset", "drop_response", "truncate"):
            await control(http, "POST", "faults", {"kind": kind, "times": 1})
        with pytest.raises(aiohttp.ClientOSError) as cut:
            await create(http)
        assert cut.value.errno == errno.ECONNRESET
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await create(http)
        with pytest.raises(aiohttp.ClientPayloadError):
            await find(http)
        assert len((await control(http, "GET", "journal?kind=effect"))["entries"]) == 1
        assert (await find(http))[0] == 200


@pytest.mark.parametrize(
    "arguments",
    [
        ["nobody"],
        ["harness"],
        ["telemessage", "--set", "telemessage.aproval=true"],
        ["telemessage", "--token", "talkdesk=x"],
    ],
)
async def test_wrong_arguments_end_the_program_at_once(arguments):
    """An emulator or setting that does not exist is an error, not a default."""
    ended = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deploy.emulators", *arguments, stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(ended.communicate(), READY_WAIT_MAX_S)
    assert ended.returncode == 2
    assert b"Traceback" not in said
    assert said


def test_a_new_emulator_is_found_by_the_name_of_its_module():
    """One file per product: the name on the command line is the module, and the class carries the same name."""
    assert emulator_class("telemessage") is TelemessageEmulator
    assert emulator_class("talkdesk").name == "talkdesk"


def test_a_fault_reads_from_the_shape_of_the_control_call():
    """`{"match": {"method", "path"}, "kind", "times", ...}`."""
    fault = msgspec.convert({"match": {"method": "POST", "path": "/v1"}, "kind": "reset", "times": 2}, Fault)
    assert (fault.match.method, fault.match.path, fault.kind, fault.times) == ("POST", "/v1", "reset", 2)


async def test_a_thousand_calls_per_second_are_served_with_the_limit_off(http, emulator):
    """The emulator must never be the bottleneck of a measurement: client and server together on one loop pass 1,000/s
    of processor time, which other load on the machine does not change."""
    calls = 600

    async def lane() -> None:
        for _ in range(calls // 6):
            await find(http)

    began = time.process_time()
    await asyncio.gather(*(lane() for _ in range(6)))
    assert calls / (time.process_time() - began) >= 1_000
