"""The operators' API: who may use it, what it says, what it does, and that it never shows a person's values unasked."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.bus import ProbeReply
from gateway.dead_api import IDS_MAX, UNREASONED_MAX
from gateway.explanations import mask, mask_message
from gateway.lifecycle import TargetRow, open_circuit
from gateway.live_api import STREAM_QUEUE_MAX, end_streams
from gateway.operators import create_app
from gateway.services import LIST_MAX, TOKEN_CHARS_MIN
from schemas.config import TargetSettings
from schemas.events import Reason
from schemas.states import Circuit, Result, State
from tests.gateway.operated import ALPHA, BETA, ROLE, TOKEN, WAIT_S, Operated, a_user, operated, worker_of

PERSONAL = ("ada@contoso.example", "Ada", "Lovelace", "7700 900123", "external-ada")


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Operated]:
    async with operated(tmp_path / "data") as running:
        yield running


async def with_keys(here: Operated) -> None:
    for name in (ALPHA, BETA):
        await here.keys.issue(name, days=365, actor="test")


# ---- who may


async def test_who_has_no_token_learns_nothing(here: Operated) -> None:
    """Every route of the API answers 401 without the operator token, in one shape (S4)."""
    wrong = ("", "Bearer", "Bearer wrong-token-of-the-same-kind", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x")
    for authorization in wrong:
        async with here.client(authorization=authorization) as client:
            for path in ("/api/v1/status", "/api/v1/dead", "/api/v1/keys", "/api/v1/events/stream", "/api/v1/audit"):
                answer = await client.get(path)
                assert answer.status_code == 401, authorization
                assert answer.json() == {"error": "The operator token is missing or wrong."}
                assert answer.headers["www-authenticate"] == "Bearer"
            assert (await client.post("/api/v1/dead/redrive", json={"ids": ["x"]})).status_code == 401


async def test_two_authorization_headers_are_refused(here: Operated) -> None:
    """Which of two tokens counts is never guessed."""
    headers = [("authorization", "Bearer nonsense"), ("authorization", f"Bearer {TOKEN}")]
    async with httpx.AsyncClient(base_url=here.url, trust_env=False) as client:
        assert (await client.get("/api/v1/status", headers=headers)).status_code == 401


async def test_a_page_in_a_browser_may_not_use_it_even_with_the_token(here: Operated) -> None:
    """A foreign page is refused by Host (DNS rebinding), Origin and Fetch metadata, on every route, metrics included."""
    foreign: list[dict[str, str]] = [
        {"host": "evil.example"},
        {"host": "evil.example:8081"},
        {"host": "127.0.0.1.evil.example"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ]
    for headers in foreign:
        async with here.client(**headers) as client:
            for path in ("/api/v1/status", "/metrics"):
                assert (await client.get(path)).status_code == 403, headers
            assert (await client.post("/api/v1/targets/alpha/pause", json={"reason": "x"})).status_code == 403
    assert (await here.get("/targets/alpha"))["target"]["paused_by"] is None


async def test_the_listeners_own_pages_may_use_it(here: Operated) -> None:
    """The console will be served from this very origin."""
    async with here.client(**{"origin": here.url, "sec-fetch-site": "same-origin"}) as client:
        assert (await client.get("/api/v1/status")).status_code == 200
    async with here.client(host="localhost:1") as client:
        assert (await client.get("/api/v1/status")).status_code == 200


async def test_a_token_that_could_be_guessed_is_refused_at_start(here: Operated) -> None:
    """Start refuses weak secrets (S14)."""
    here.services.token = "x" * (TOKEN_CHARS_MIN - 1)
    with pytest.raises(ValueError, match="at least"):
        create_app(here.services)


async def test_what_cannot_be_done_is_said_in_a_sentence(here: Operated) -> None:
    """Every error is `{"error": sentence}` with a fitting status, never a 500."""
    orders: list[tuple[str, str, bytes | None, int]] = [
        ("GET", "/api/v1/nothing", None, 404),
        ("DELETE", "/api/v1/status", None, 405),
        ("GET", "/api/v1/status?target=nobody", None, 404),
        ("GET", "/api/v1/dead?limit=0", None, 400),
        ("GET", f"/api/v1/dead?limit={LIST_MAX + 1}", None, 400),
        ("GET", "/api/v1/dead?limit=many", None, 400),
        ("GET", "/api/v1/resources/nobody", None, 404),
        ("POST", "/api/v1/dead/redrive", b"{", 400),
        ("POST", "/api/v1/dead/redrive", b"[]", 400),
        ("POST", "/api/v1/dead/redrive", b'{"ids": []}', 400),
        ("POST", "/api/v1/dead/redrive", b'{"ids": ["a"], "all": true}', 400),
        ("POST", "/api/v1/dead/discard", b'{"ids": ["a"]}', 400),
        ("POST", "/api/v1/dead/discard", b'{"ids": ["a"], "reason": "  "}', 400),
        ("POST", "/api/v1/targets/alpha/pause", b"{}", 400),
        ("POST", "/api/v1/targets/nobody/pause", b'{"reason": "x"}', 404),
        ("POST", "/api/v1/keys", b'{"target": "nobody"}', 404),
        ("POST", "/api/v1/keys", b'{"target": "alpha", "days": 1}', 409),
        ("POST", "/api/v1/keys/nothing/revoke", b"{}", 404),
        ("POST", "/api/v1/dead/redrive", b'{"ids": ["' + b"x" * 300_000 + b'"]}', 413),
    ]
    async with here.client() as client:
        for method, path, body, status in orders:
            answer = await client.request(method, path, content=body)
            assert answer.status_code == status, (path, answer.text)
            assert set(answer.json()) == {"error"}
            assert len(answer.json()["error"]) > 10


# ---- the overview


async def test_all_well_is_one_sentence(here: Operated) -> None:
    """With workers, keys and nothing stuck, the overview says so and shows every target green."""
    await with_keys(here)
    await here.applied("ada")

    status = await here.get("/status")

    assert status["sentence"] == "All 2 targets are working."
    assert status["fine"] is True
    assert [target["light"] for target in status["targets"]] == ["green", "green"]
    alpha = status["targets"][0]
    assert alpha["counts"] == {"applied": 1, "waiting": 0, "blocked": 0, "held": 0, "dead": 0}
    assert alpha["key_days_left"] == 364
    assert alpha["tenant_url"] == "https://provgate.example.com/scim/v2/alpha"
    assert alpha["workers"] == ["worker-1"]


async def test_a_target_that_refuses_us_is_red_and_says_since_when_and_what_waits(here: Operated) -> None:
    """An open circuit names the product's reason, the number of waiting changes, that none is lost, and the remedy."""
    await with_keys(here)

    def break_it(ledger) -> None:
        target = ledger.target(ALPHA)
        open_circuit(target, Circuit.AUTH, "The product answered 401", time.time() - 720)
        ledger.save_target(target)

    await here.store.run(break_it)
    for name in ("ada", "bob", "eve"):
        await here.created(name)

    status = await here.get("/status")

    assert status["sentence"] == (
        "alpha refuses our credentials or settings since 12 min (The product answered 401), 3 changes wait, none is lost."
    )
    alpha = status["targets"][0]
    assert alpha["light"] == "red"
    assert alpha["circuit"]["state"] == "auth"
    assert alpha["problems"][0]["remedy"].endswith("provgate target probe alpha")
    assert [(group["code"], group["count"]) for group in status["waiting"]] == [("circuit_auth", 3)]
    assert status["waiting"][0]["oldest_s"] >= 0


async def test_changes_of_a_target_nobody_serves_wait_for_a_worker(here: Operated) -> None:
    """The overview tells a missing worker from one that cannot serve the target, and names the setting that is wrong."""
    await with_keys(here)
    here.workers = [worker_of(BETA), worker_of(ALPHA, problems=("targets.alpha.settings.token: missing",))]

    status = await here.get("/status")

    assert status["sentence"] == "alpha is served by no worker (targets.alpha.settings.token: missing)."
    assert status["targets"][0]["light"] == "red"


async def test_the_bus_being_away_outranks_everything(here: Operated) -> None:
    """Without NATS nothing moves, and everything waits in the store."""
    await with_keys(here)
    here.configured[ALPHA] = TargetSettings(connector="observe", window=1)
    for name in ("ada", "bob"):
        await here.created(name)
    here.bus.up = False

    status = await here.get("/status")

    assert status["sentence"] == "NATS cannot be reached; 2 changes wait, none is lost."
    assert status["fine"] is False
    assert {group["code"] for group in status["waiting"]} == {"bus", "delivering"}


async def test_waiting_changes_are_grouped_by_what_they_wait_for(here: Operated) -> None:
    """Blocked rows by the named thing, retries by their reason; counts per group, the most first."""
    licence = Reason(code="no_licence", message="No licence is free.")
    for name in ("ada", "bob"):
        await here.comes_to(await here.created(name), Result.BLOCKED, licence, blocked_on="licence")
    slow = Reason(code="timeout", message="The product did not answer within 15 s.")
    await here.comes_to(await here.created("eve"), Result.RETRY, slow)
    await here.created("kim")

    shown = await here.get("/targets/alpha")
    assert (shown["target"]["light"], shown["target"]["problems"][0]["phrase"]) == (
        "yellow",
        "has 2 changes that wait for a licence",
    )
    groups = shown["waiting"]

    assert [(group["code"], group["count"]) for group in groups] == [
        ("blocked:licence", 2),
        ("timeout", 1),
        ("delivering", 1),
    ]
    assert groups[0]["message"] == "No licence is free."
    assert groups[1]["next_at"] > time.time()


async def test_several_problems_make_one_sentence_with_the_worst_first(here: Operated) -> None:
    """Red before yellow; each target with its worst problem."""
    await with_keys(here)
    await here.dead("ada", ALPHA)
    here.workers = [worker_of(ALPHA)]

    sentence = (await here.get("/status"))["sentence"]

    assert sentence == "2 of 2 targets need attention: beta is served by no worker; alpha has 1 dead letter."


# ---- dead letters


async def test_dead_letters_are_grouped_by_cause_with_a_suggestion(here: Operated) -> None:
    """One line per cause and target, the most frequent first; a cause is asked for by its fingerprint or its first word."""
    dead = [await here.dead(name) for name in ("ada", "bob", "eve")]
    number = Reason(code="bad_number", message="The number 07700 900123 is too short.", attribute="userName")
    other = await here.dead("kim", BETA, number)

    listed = await here.get("/dead")

    assert listed["total"] == 4
    assert [(cause["target"], cause["cause"], cause["count"]) for cause in listed["causes"]] == [
        (ALPHA, ROLE.fingerprint(), 3),
        (BETA, number.fingerprint(), 1),
    ]
    assert "provgate dead redrive --cause bad_role:roles:Wizard" in listed["causes"][0]["suggestion"]
    assert {item["id"] for item in listed["items"]} == {*dead, other}
    by_code = await here.get("/dead", cause="bad_role")
    assert by_code["total"] == 3
    assert {item["id"] for item in by_code["items"]} == set(dead)
    assert (await here.get("/dead", target=BETA))["total"] == 1
    assert len((await here.get("/dead", limit=2))["items"]) == 2


async def test_a_redrive_is_a_new_generation_that_is_sent_and_recorded(here: Operated) -> None:
    """Rule T11: an old payload is never replayed; history, filter keys and audit show the redrive."""
    resource = await here.dead("ada")

    moved = await here.post("/dead/redrive", {"ids": [resource], "reason": "role was created"})
    await here.settled()

    assert moved == {"done": [resource], "skipped": []}
    row = await here.row(resource)
    assert (row.state, row.generation, row.fence) == (State.DELIVERING, 2, 2)
    events, _ = await here.store.read_slow(lambda reader: reader.history(resource))
    assert [(event.generation, event.actor, event.outcome) for event in events] == [
        (1, "entra", "rejected"),
        (2, "operator", None),
    ]
    (act,) = await here.audited("dead.redriven")
    assert (act.actor, act.subject, json.loads(bytes(act.detail))["reason"]) == (
        "operator",
        resource,
        "role was created",
    )
    assert (await here.comes_to(resource, Result.APPLIED, account_id="a-1")).state is State.APPLIED
    found = await here.store.read(lambda reader: reader.by_key(ALPHA, "user", "user_name", "ada@contoso.example"))
    assert [row.id for row in found] == [resource]


async def test_one_that_cannot_be_redriven_does_not_stop_the_others(here: Operated) -> None:
    """What is not dead, unknown, or named twice is told apart, each with its reason."""
    dead, fine = await here.dead("ada"), await here.applied("bob")

    moved = await here.post("/dead/redrive", {"ids": [fine, dead, dead, "nobody"]})

    assert moved["done"] == [dead]
    assert moved["skipped"] == [
        {"id": fine, "why": "it is applied, not dead"},
        {"id": "nobody", "why": "there is no such resource; all of a target: --target NAME"},
    ]


async def test_a_dead_wish_whose_name_was_given_to_somebody_else_is_not_redriven(here: Operated) -> None:
    """Two resources never hold one unique key; the operator is told whose it is, and nothing of the row changes."""
    first = await here.applied("ada")
    seen = await here.row(first)
    await here.intake.change(ALPHA, "user", seen, lambda document: {**document, "userName": "grace@contoso.example"})
    await here.settled()
    assert (await here.comes_to(first, Result.REJECTED, ROLE)).state is State.DEAD
    second = await here.created("grace")

    moved = await here.post("/dead/redrive", {"ids": [first]})

    assert moved["done"] == []
    assert second in moved["skipped"][0]["why"]
    row = await here.row(first)
    assert (row.state, row.generation) == (State.DEAD, 2)
    assert await here.audited("dead.redriven") == []


async def test_moving_many_at_once_needs_a_reason(here: Operated) -> None:
    """Above 100 resources a typed reason is required (S13), and one order is bounded."""
    many = [f"r{number}" for number in range(UNREASONED_MAX + 1)]
    assert "reason" in (await here.post("/dead/redrive", {"ids": many}, 400))["error"]
    assert len((await here.post("/dead/redrive", {"ids": many, "reason": "all"}))["skipped"]) == len(many)
    await here.post("/dead/redrive", {"ids": [f"r{number}" for number in range(IDS_MAX + 1)], "reason": "x"}, 400)


async def test_a_discarded_dead_letter_shows_what_was_confirmed_and_is_recorded(here: Operated) -> None:
    """Given up: detached, its open event closed, found by its last confirmed name, the reason in the audit."""
    resource = await here.applied("ada")
    seen = await here.row(resource)
    await here.intake.change(ALPHA, "user", seen, lambda document: {**document, "userName": "grace@contoso.example"})
    await here.settled()
    await here.comes_to(resource, Result.REJECTED, ROLE)

    await here.post("/dead/discard", {"ids": [resource], "reason": "left the company"})

    assert (await here.row(resource)).state is State.DETACHED
    for name, count in (("ada@contoso.example", 1), ("grace@contoso.example", 0)):
        found = await here.store.read(lambda reader, name=name: reader.by_key(ALPHA, "user", "user_name", name))
        assert len(found) == count
    (act,) = await here.audited("dead.discarded")
    assert json.loads(bytes(act.detail))["reason"] == "left the company"


async def test_held_changes_are_listed_and_approved(here: Operated) -> None:
    """An approved deletion goes on as it was accepted: same generation, sent to the product."""
    held = [await here.held(name) for name in ("ada", "bob")]

    listed = await here.get("/held")
    assert (listed["total"], [item["change"] for item in listed["items"]]) == (2, ["delete", "delete"])
    assert listed["causes"][0]["count"] == 2

    moved = await here.post("/held/approve", {"ids": held[:1], "reason": "announced"})
    await here.settled()

    assert moved["done"] == held[:1]
    row = await here.row(held[0])
    assert (row.state, row.generation) == (State.DELIVERING, 2)
    assert (await here.row(held[1])).state is State.HELD
    assert (await here.post("/dead/redrive", {"ids": held[1:]}))["skipped"][0]["why"] == "it is held, not dead"


# ---- one person


async def test_a_person_is_found_by_any_id(here: Operated) -> None:
    """Resource id, userName in any letter case, externalId and the account's id lead to the same person."""
    resource = await here.applied("ada")
    await here.applied("bob")
    for who in (resource, "ADA@contoso.example", "external-ada", f"account-of-{resource[:8]}"):
        found = await here.post("/resources/find", {"who": who})
        assert [view["id"] for view in found["found"]] == [resource]
        assert (await here.post("/resources/find", {"who": who, "target": BETA}))["found"] == []


async def test_conditions_say_what_is_so_for_which_generation_and_since_when(here: Operated) -> None:
    """Both halves of an applied resource agree; every condition is true for the generation it was observed at."""
    resource = await here.applied("ada")

    view = await here.get(f"/resources/{resource}")

    conditions = {condition["type"]: condition for condition in view["conditions"]}
    assert list(conditions) == ["Accepted", "Applied", "ConnectorReady", "DependenciesMet", "InSync"]
    assert {condition["status"] for condition in conditions.values()} == {"True"}
    assert {condition["observed_generation"] for condition in conditions.values()} == {1}
    assert abs(conditions["Applied"]["since"] - time.time()) < 60
    assert all(value["asked"] == value["confirmed"] for value in view["values"])
    assert view["next"]["message"] == "Nothing: what was asked is applied."


async def test_a_dead_letter_says_why_what_was_tried_and_what_to_do(here: Operated) -> None:
    """Conditions, reason, history with steps, and the next command; the confirmed half stays at what was confirmed."""
    resource = await here.applied("ada")
    seen = await here.row(resource)
    await here.intake.change(ALPHA, "user", seen, lambda document: {**document, "title": "Countess"})
    await here.settled()
    await here.comes_to(resource, Result.REJECTED, ROLE)

    view = await here.get(f"/resources/{resource}")

    conditions = {condition["type"]: condition for condition in view["conditions"]}
    assert (conditions["Applied"]["status"], conditions["Applied"]["reason"]) == ("False", "BadRole")
    assert conditions["InSync"]["status"] == "False"
    assert view["reason"]["message"] == ROLE.message
    title = next(value for value in view["values"] if value["path"] == "title")
    assert (title["asked"], title["confirmed"]) == ("C•••", None)
    assert view["next"]["command"] == f"provgate dead redrive {resource}"
    assert [(entry["what"], entry["generation"]) for entry in view["history"]] == [
        ("delivered", 2),
        ("asked", 2),
        ("delivered", 1),
        ("asked", 1),
    ]
    assert view["history"][0]["steps"] == [{"method": "POST", "path": "/Users", "status": 201, "ms": 12.0}]
    assert view["history"][1]["changed"] == ["title"]


async def test_a_blocked_resource_names_what_it_waits_for_and_when_it_is_looked_at_again(here: Operated) -> None:
    """DependenciesMet is false, and the next step carries a time."""
    resource = await here.created("ada")
    reason = Reason(code="no_licence", message="No licence is free.")
    await here.comes_to(resource, Result.BLOCKED, reason, blocked_on="licence")

    view = await here.get(f"/resources/{resource}")

    conditions = {condition["type"]: condition for condition in view["conditions"]}
    assert conditions["DependenciesMet"]["status"] == "False"
    assert conditions["DependenciesMet"]["message"] == "No licence is free."
    assert view["next"]["at"] > time.time() - 1
    assert view["next"]["message"].startswith("Looked at")


async def test_no_answer_shows_a_persons_values_unasked(here: Operated) -> None:
    """Names, addresses, numbers and ids of a person are masked everywhere, also inside a product's sentence."""
    leaky = Reason(
        code="bad_number",
        message="Ada Lovelace (ada@contoso.example) has the number +44 7700 900123, or 447700900123; role 'Wizard' is fine.",
    )
    resource = await here.dead("ada", reason=leaky)
    slow = Reason(code="timeout", message="No answer about eve@contoso.example, +44 7700 900123.")
    await here.comes_to(await here.created("eve"), Result.RETRY, slow)

    answers = [
        await here.get("/status"),
        await here.get("/targets/alpha"),
        await here.get("/dead"),
        await here.get("/dead", cause="bad_number"),
        await here.get(f"/resources/{resource}"),
        await here.post("/resources/find", {"who": resource}),
    ]

    text = json.dumps(answers, ensure_ascii=False)
    for value in (*PERSONAL, "447700900123", "eve@", "external-eve"):
        assert value not in text, value
    assert "a•••@contoso.example" in text
    assert "role 'Wizard' is fine" in text
    assert await here.audited("values.shown") == []


async def test_values_are_shown_when_asked_for_and_that_is_recorded(here: Operated) -> None:
    """`show_values` shows both halves as they are, and the audit says who looked at whom, and why."""
    resource = await here.applied("ada")

    found = await here.post(
        "/resources/find", {"who": "ada@contoso.example", "show_values": True, "reason": "ticket 7"}
    )

    values = {value["path"]: value for value in found["found"][0]["values"]}
    assert values["userName"] == {
        "path": "userName",
        "asked": "ada@contoso.example",
        "confirmed": "ada@contoso.example",
        "masked": False,
    }
    assert values['phoneNumbers[type eq "mobile"].value']["asked"] == "+44 7700 900123"
    (act,) = await here.audited("values.shown")
    assert (act.actor, act.subject, json.loads(bytes(act.detail))) == ("operator", resource, {"reason": "ticket 7"})


async def test_roles_and_switches_are_not_personal(here: Operated) -> None:
    """What operators need to see at once is not masked: active, types, roles."""
    view = await here.get(f"/resources/{await here.applied('ada')}")
    values = {value["path"]: value["asked"] for value in view["values"] if not value["masked"]}
    assert values["active"] == "true"
    assert values["roles[0].value"] == "Wizard"
    assert values['emails[type eq "work"].type'] == "work"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Mail to ada.b+c@contoso.example bounced.", "Mail to a•••@contoso.example bounced."),
        ("Number +44 (0)7700 900-123 refused", "Number •••23 refused"),
        ("HTTP 503 after 15000 ms", "HTTP 503 after 15000 ms"),
        ("role 'Wizard'; see https://contoso.example/roles", "role 'Wizard'; see https://contoso.example/roles"),
    ],
)
def test_sentences_of_products_are_masked_where_they_name_people(said: str, shown: str) -> None:
    """Addresses and telephone numbers go; status codes, roles and links stay."""
    assert mask_message(said) == shown


def test_masks_are_recognisable_but_not_readable() -> None:
    """Enough to recognise what one knows, never the whole value."""
    assert mask("ada@contoso.example") == "a•••@contoso.example"
    assert mask("+44 7700 900123") == "•••23"
    assert mask("Lovelace") == "L•••"
    assert mask("x") == "•••"


# ---- targets and keys


async def test_a_paused_target_keeps_its_changes_until_it_is_resumed(here: Operated) -> None:
    """Pause stops dispatch with a reason for all to see; resume sends what waited; both are recorded."""
    moved = await here.post("/targets/alpha/pause", {"reason": "maintenance"})
    assert moved == {"name": ALPHA, "paused_by": "operator", "changed": True}
    resource = await here.created("ada")
    assert (await here.row(resource)).state is State.QUEUED
    view = await here.get("/targets/alpha")
    assert (view["target"]["paused_by"], view["target"]["paused_reason"]) == ("operator", "maintenance")
    assert (view["waiting"][0]["code"], view["waiting"][0]["message"]) == (
        "paused",
        "Paused by operator (maintenance).",
    )

    assert (await here.post("/targets/alpha/resume", {}))["changed"] is True
    await here.settled()

    assert (await here.row(resource)).state is State.DELIVERING
    assert (await here.post("/targets/alpha/resume", {}))["changed"] is False
    assert len(await here.audited("target.paused")) == 1


async def test_a_probe_asks_a_worker_and_makes_an_open_circuit_due_at_once(here: Operated) -> None:
    """The answer is the worker's own; without a worker it says that nothing is known."""

    def break_it(ledger) -> None:
        target: TargetRow = ledger.target(ALPHA)
        open_circuit(target, Circuit.AUTH, "401", time.time())
        ledger.save_target(target)

    await here.store.run(break_it)
    here.bus.said = ProbeReply(ok=False, code="token_refused", message="The product refused the token.")

    probed = await here.post("/targets/alpha/probe", {})

    assert probed == {"name": ALPHA, "ok": False, "code": "token_refused", "message": "The product refused the token."}
    record = await here.store.read_slow(lambda reader: reader.target(ALPHA))
    assert record.row.next_probe_at <= time.time()
    here.bus.said = None
    assert (await here.post("/targets/alpha/probe", {}))["code"] == "no_answer"
    assert len(await here.audited("target.probed")) == 2


async def test_a_key_is_shown_once_and_never_again(here: Operated) -> None:
    """S1: the text of a key is in the answer that made it and in no other; two live at once; a revoked one says so."""
    made = await here.post("/keys", {"target": ALPHA, "days": 90, "label": "Entra"}, 201)
    assert made["tenant_url"] == "https://provgate.example.com/scim/v2/alpha"
    assert await here.keys.check(ALPHA, made["key"]) is None

    listed = await here.get("/keys", target=ALPHA)
    assert [(key["id"], key["label"], key["state"]) for key in listed["keys"]] == [(made["id"], "Entra", "live")]
    assert made["key"] not in json.dumps(listed)
    await here.post("/keys", {"target": ALPHA}, 201)
    assert "2 live keys" in (await here.post("/keys", {"target": ALPHA}, 409))["error"]

    revoked = await here.post(f"/keys/{made['id']}/revoke", {"reason": "leaked"})
    assert revoked["state"] == "revoked"
    assert await here.keys.check(ALPHA, made["key"]) == "revoked"
    audit = await here.get("/audit")
    assert {"key.issued", "key.revoked"} <= {entry["action"] for entry in audit["entries"]}
    assert made["key"] not in json.dumps(audit)


# ---- live events


async def frames(here: Operated, count: int, **params: str) -> list[dict[str, object]]:
    """The next events of the live stream; returns once so many have come."""
    found: list[dict[str, object]] = []
    async with here.client() as client, client.stream("GET", "/api/v1/events/stream", params=params) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        async for line in stream.aiter_lines():
            if line.startswith("data:"):
                found.append(json.loads(line[5:]))
                if len(found) == count:
                    return found
    return found


async def test_live_events_carry_ids_and_names_and_never_values(here: Operated) -> None:
    """What a feed says beyond the named fields stays inside: no document, no message, no identity."""
    reading = asyncio.create_task(frames(here, 2, target=ALPHA))
    await here.live.heard_by(1)
    here.live.say({"kind": "event", "target": BETA, "resource": "other"})
    here.live.say(
        {
            "kind": "event",
            "at": 1.5,
            "target": ALPHA,
            "resource": "r-1",
            "change": "create",
            "changed": ["userName"],
            "document": a_user("ada"),
            "message": "Ada Lovelace",
            "identities": ["userName:ada@contoso.example"],
        }
    )
    here.live.say({"kind": "outcome", "target": ALPHA, "resource": "r-1", "result": "applied"})

    event, outcome = await asyncio.wait_for(reading, WAIT_S)

    assert event == {
        "kind": "event",
        "at": 1.5,
        "target": ALPHA,
        "resource": "r-1",
        "change": "create",
        "changed": ["userName"],
    }
    assert outcome == {"kind": "outcome", "target": ALPHA, "resource": "r-1", "result": "applied"}


async def test_a_reader_that_hangs_up_is_forgotten(here: Operated) -> None:
    """The feed behind a closed stream is closed, so that nothing is kept for nobody."""
    reading = asyncio.create_task(frames(here, 1))
    await here.live.heard_by(1)
    here.live.say({"kind": "event", "resource": "r-1"})
    await asyncio.wait_for(reading, WAIT_S)
    await here.live.heard_by(0)


async def test_a_stream_ends_when_the_feed_ends(here: Operated) -> None:
    """A gateway that shuts down ends its streams, and the reader knows."""
    reading = asyncio.create_task(frames(here, 5))
    await here.live.heard_by(1)
    here.live.say({"kind": "event", "resource": "r-1"})
    here.live.say(None)
    assert [frame["resource"] for frame in await asyncio.wait_for(reading, WAIT_S)] == ["r-1"]


async def test_events_a_slow_reader_missed_are_counted(here: Operated) -> None:
    """The queue of a stream is bounded; what did not fit is told as a number, and the stream goes on."""
    async with here.client() as client, client.stream("GET", "/api/v1/events/stream") as stream:
        await here.live.heard_by(1)
        lines = stream.aiter_lines()
        too_many = STREAM_QUEUE_MAX + 500
        for number in range(too_many):  # all at once: the stream has no turn in between
            here.live.say({"kind": "event", "resource": str(number)})
        received, skipped = 0, 0
        async with asyncio.timeout(WAIT_S):
            async for line in lines:
                if not line.startswith("data:"):
                    continue
                event = json.loads(line[5:])
                if event["kind"] == "skipped":
                    skipped += event["count"]
                elif event["kind"] == "last":
                    break
                else:
                    received += 1
                if received == STREAM_QUEUE_MAX and not skipped:
                    here.live.say({"kind": "last"})
    assert received + skipped == too_many
    assert skipped >= 500


async def test_a_listener_that_shuts_down_ends_its_streams(here: Operated) -> None:
    """An open live view does not keep a gateway from stopping."""
    reading = asyncio.create_task(frames(here, 5))
    await here.live.heard_by(1)
    end_streams(here.app)
    assert await asyncio.wait_for(reading, WAIT_S) == []


async def test_without_the_bus_there_is_no_live_stream_and_it_says_so(here: Operated) -> None:
    """An empty stream would look like a quiet system."""
    here.bus.up = False
    async with here.client() as client:
        answer = await client.get("/api/v1/events/stream")
    assert (answer.status_code, "NATS" in answer.json()["error"]) == (503, True)


# ---- metrics


async def test_metrics_count_resources_requests_and_outcomes_without_naming_people(here: Operated) -> None:
    """Base units, `_total` and `_seconds`; an unknown target's name never becomes a label."""
    await here.applied("ada")
    await here.dead("bob")
    await here.created("eve")
    here.metrics.count_request(ALPHA, "create", 201)
    here.metrics.count_request("whatever-somebody-typed", "create", 401)
    here.metrics.count_outcome(ALPHA, "applied", time.time())

    async with here.client(authorization="") as client:
        answer = await client.get("/metrics")

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert 'provgate_resources{state="applied",target="alpha"} 1.0' in lines
    assert 'provgate_resources{state="dead",target="alpha"} 1.0' in lines
    assert 'provgate_circuit_open{target="alpha"} 0.0' in lines
    assert any(line.startswith('provgate_oldest_waiting_seconds{target="alpha"} ') for line in lines)
    assert 'provgate_requests_total{op="create",status="201",target="alpha"} 1.0' in lines
    assert 'provgate_requests_total{op="create",status="401",target="unknown"} 1.0' in lines
    assert 'provgate_outcomes_total{result="applied",target="alpha"} 1.0' in lines
    assert not [line for line in lines if "_created" in line or "ada" in line]
    assert (await here.get("/targets/alpha"))["target"]["last_outcome"]["result"] == "applied"
