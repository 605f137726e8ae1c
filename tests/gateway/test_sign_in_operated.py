"""How an operator makes client secrets, sees when they end, and finds out why a sign-in was refused: over API and command."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.checks import run_checks
from gateway.cli_client import FINE, WRONG_USE
from gateway.keys import DAY_S, KeyRecord, Kind, expiry_warnings
from gateway.refusals import CAUSES_MAX, KEPT_PER_CAUSE_MAX, Check, RefusedSignIns, shown
from gateway.store import Store
from schemas.config import EntraSignIn, Federation, OAuthSignIn
from tests.gateway.local_issuer import OBJECT, TENANT, WORKLOAD
from tests.gateway.operated import ALPHA, BETA, COLUMNS, Operated, operated
from tests.gateway.scim_listener import listening

NOON = 1_800_000_000.0


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Operated]:
    async with operated(tmp_path / "data") as running:
        running.configured[ALPHA] = replace(running.configured[ALPHA], auth=("oauth",))
        yield running


def problems(answer: Any, target: str) -> list[tuple[str, str, str]]:
    found = next(view for view in answer["targets"] if view["name"] == target)["problems"]
    return [(problem["code"], problem["phrase"], problem["remedy"]) for problem in found]


# ---- client secrets


async def test_a_client_secret_is_shown_once_with_everything_entra_asks_for(here: Operated) -> None:
    """Entra page 2 [LA]: Tenant URL, Token Endpoint, Client Identifier, Client Secret; the secret is nowhere afterwards."""
    ended = await here.typed("client", "new", ALPHA, "--label", "Entra, production")

    assert (ended.code, ended.err) == (FINE, "")
    lines = dict(line.strip().split("  ", 1) for line in ended.out.splitlines() if line.startswith("  "))
    values = {name: value.strip() for name, value in lines.items()}
    assert values["Tenant URL"] == "https://provgate.example.com/scim/v2/alpha"
    assert values["Token Endpoint"] == "https://provgate.example.com/oauth2/alpha/token"
    assert values["Client Identifier"] == ALPHA
    secret = values["Client Secret"]
    assert await here.keys.check(ALPHA, secret, "client") is None
    shown_again = await here.typed("client", "list")
    assert secret.split("_")[1] in shown_again.out
    assert "Entra, production" in shown_again.out
    assert max(map(len, shown_again.out.splitlines())) <= COLUMNS
    assert secret.split("_")[2] not in shown_again.out + str(await here.get("/audit")) + str(await here.get("/clients"))


async def test_a_client_secret_is_no_key_in_any_list_or_command(here: Operated) -> None:
    """Each kind has its commands; an id of the other kind is not found there, so that nothing is ended by mistake."""
    secret = (await here.post("/clients", {"target": ALPHA}, 201))["id"]
    key = (await here.post("/keys", {"target": ALPHA}, 201))["id"]

    assert [row["id"] for row in (await here.get("/keys"))["keys"]] == [key]
    assert [row["id"] for row in (await here.get("/clients"))["clients"]] == [secret]
    assert (await here.typed("key", "revoke", secret)).code == WRONG_USE
    assert (await here.typed("client", "revoke", key)).code == WRONG_USE
    ended = await here.typed("client", "revoke", secret, "--reason", "replaced")
    assert (ended.code, ended.out) == (FINE, f"Client secret {secret} of alpha is revoked, and its tokens with it.\n")
    assert (await here.get("/clients"))["clients"][0]["state"] == "revoked"
    assert [act.subject for act in await here.audited("client.revoked")] == [secret]
    assert [act.subject for act in await here.audited("client.reason")] == [secret]


async def test_what_cannot_be_made_is_said_in_a_sentence(here: Operated) -> None:
    """A target that takes none, a third at a time, a life out of range, a target that is not there."""
    for body, status, said in (
        ({"target": BETA}, 409, 'add "oauth" to targets.beta.auth'),
        ({"target": ALPHA, "days": 89}, 409, "90 to 1095 days"),
        ({"target": ALPHA, "days": 1_096}, 409, "90 to 1095 days"),
        ({"target": "gamma"}, 404, "no target"),
        ({"target": ALPHA, "secret": "x"}, 400, "unknown field"),
    ):
        assert said in (await here.post("/clients", body, status))["error"]
    for _ in range(2):
        await here.post("/clients", {"target": ALPHA, "days": 1_095}, 201)
    assert "2 live client secrets" in (await here.post("/clients", {"target": ALPHA}, 409))["error"]


# ---- what is missing or ends


async def test_the_status_says_what_entra_cannot_sign_in_without(here: Operated) -> None:
    """S1, S2: a missing or ending secret is named like a key; a way that needs none is none of it."""
    assert problems(await here.get("/status"), ALPHA) == [
        ("client", "has no client secret, so Entra cannot write", "provgate client new alpha")
    ]
    await here.post("/clients", {"target": ALPHA, "days": 90}, 201)
    assert problems(await here.get("/status"), ALPHA) == []
    tenant = EntraSignIn(tenant=TENANT)
    here.configured[BETA] = replace(here.configured[BETA], auth=("key", "entra"), entra=tenant)
    assert problems(await here.get("/status"), BETA) == []
    federation = Federation(tenant=TENANT, app_id=WORKLOAD, subjects=(OBJECT,))
    federated = OAuthSignIn(federation=federation)
    here.configured[BETA] = replace(here.configured[BETA], auth=("oauth",), oauth=federated)
    assert problems(await here.get("/status"), BETA) == []
    here.configured[BETA] = replace(here.configured[BETA], auth=("key", "oauth"), oauth=OAuthSignIn())
    assert problems(await here.get("/status"), BETA) == [
        ("key", "has no key, so Entra cannot write", "provgate key new beta")
    ]


async def test_a_client_secret_that_ends_soon_is_named_in_the_status(here: Operated) -> None:
    """S1: expiry warnings, as for keys."""
    secret = (await here.post("/clients", {"target": ALPHA, "days": 90}, 201))["id"]
    row = next(row for row in await here.keys.listed(ALPHA) if row.id == secret)
    soon = replace(row, id="soon", hash=b"soon", prefix="pgs_soon", expires_at=time.time() + 9.5 * DAY_S)
    await here.keys.revoke(ALPHA, secret, actor="test")
    await here.store.run(lambda ledger: ledger.add_key(soon))

    assert problems(await here.get("/status"), ALPHA) == [
        ("client", "has a client secret that ends in 9 days", "provgate client new alpha")
    ]
    assert [view["client_days_left"] for view in (await here.get("/targets"))["targets"]] == [9, None]


def test_warnings_keep_keys_and_client_secrets_apart() -> None:
    """A live key does not make up for a client secret that ended."""

    def row(kind: Kind, left_days: float) -> KeyRecord:
        return KeyRecord(
            id=kind,
            target=ALPHA,
            label="",
            prefix=f"{'pg' if kind == 'key' else 'pgs'}_{kind}",
            hash=kind.encode(),
            created_at=NOON - 100 * DAY_S,
            expires_at=NOON + left_days * DAY_S,
        )

    found = expiry_warnings([row("key", 300), row("client", -1)], NOON)

    assert [(warning.kind, warning.threshold) for warning in found] == [("client", 0)]


async def test_check_says_what_is_missing_before_the_start(tmp_path: Path) -> None:
    """`provgate check`: client secrets like keys, and an Entra sign-in that every application of the tenant could use."""
    store = Store.open(tmp_path / "provgate.sqlite3")
    await store.close()
    path = tmp_path / "provgate.toml"
    path.write_text(
        f'[targets.a]\nconnector = "observe"\nauth = ["oauth"]\n'
        f'[targets.b]\nconnector = "observe"\nauth = ["key", "entra"]\n[targets.b.entra]\ntenant = "{TENANT}"\n'
        f'[targets.b.settings]\nentra_tenant_id = "{OBJECT}"\n'
    )

    found = {(finding.where, finding.message) for finding in run_checks(path)}

    assert ("targets.a", "has no client secret, so Entra cannot write") in found
    assert ("targets.b.entra", "takes Entra-signed tokens of every enterprise application of the tenant") in found
    assert not any(where == "targets.b" and "has no" in message for where, message in found)
    other = "is another tenant than entra_tenant_id, the one that the product has approved"
    assert ("targets.b.entra.tenant", other) in found, "vendor requirement M1"


# ---- why a sign-in was refused


async def test_the_id_in_a_401_leads_the_operator_to_every_check(here: Operated, tmp_path: Path) -> None:
    """Issue 3, item 5: explained to the operator check by check under an id that the 401 carries, to the caller not at all."""
    async with listening(tmp_path / "listener", store=here.store, refused=here.services.refused) as scim:
        right = scim.tokens[ALPHA]
        await scim.keys.revoke(ALPHA, right.split("_")[1], actor="test")
        refusal = (await scim.get("/Users", token=right)).body["errorId"]
        other = (await scim.get("/Users", target="nobody", token=right)).body["errorId"]

    ended = await here.typed("auth", "explain", refusal)

    assert (ended.code, ended.err) == (FINE, "")
    assert "at the Tenant URL of alpha: revoked." in ended.out
    checks = {line.split()[0]: line.split()[-1] for line in ended.out.splitlines() if line.strip()}
    assert (checks["form"], checks["id"], checks["secret"], checks["revoked"]) == ("passed",) * 3 + ("failed",)
    assert right.split("_")[1] in ended.out
    assert right.split("_")[2] not in ended.out
    assert max(map(len, ended.out.splitlines())) <= COLUMNS
    machine = json.loads((await here.typed("auth", "explain", refusal, "--json")).out)
    assert (machine["id"], machine["target"], machine["cause"], machine["place"]) == (refusal, ALPHA, "revoked", "scim")
    listed = await here.get("/auth/refusals")
    assert [entry["id"] for entry in listed["refusals"]] == [other, refusal]
    assert [entry["id"] for entry in (await here.get("/auth/refusals", target=ALPHA))["refusals"]] == [refusal]
    assert "nobody" not in str(listed)
    lines = (await here.typed("auth", "list")).out
    assert refusal in lines
    assert "unknown_target" in lines


async def test_an_id_nobody_knows_is_answered_with_where_else_to_look(here: Operated) -> None:
    """What was forgotten is still in the log by its cause."""
    ended = await here.typed("auth", "explain", "0123456789abcdef")

    assert ended.code == WRONG_USE
    assert "log" in ended.err
    assert "No sign-in was refused" in (await here.typed("auth", "list")).out


def test_refusals_are_bounded_and_noise_of_one_kind_pushes_out_no_other() -> None:
    """Every queue has a bound: a flood of guesses must not hide why Entra itself was refused."""
    now = iter(range(1_000_000))
    book = RefusedSignIns(lambda: float(next(now)))
    kept = book.note(ALPHA, "expired", [Check("expiry", "later", "earlier", "failed")])
    for _ in range(10 * KEPT_PER_CAUSE_MAX):
        book.note("unknown", "unknown_target", [])

    assert book.find(kept.id) == kept
    assert len(book.listed(None, 10_000)) == KEPT_PER_CAUSE_MAX + 1
    assert book.listed(None, 3)[0].at > book.listed(None, 3)[1].at
    for number in range(CAUSES_MAX + 10):
        book.note(ALPHA, f"cause-{number}", [])
    assert len(book.listed(None, 1_000_000)) <= CAUSES_MAX * KEPT_PER_CAUSE_MAX
    assert book.find(kept.id) is None


@pytest.mark.parametrize(
    ("received", "told"),
    [
        (TENANT, TENANT),
        (f"https://sts.windows.net/{TENANT}/", f"https://sts.windows.net/{TENANT}/"),
        (None, "nothing"),
        ("", "an empty text"),
        ("ada@contoso.example", "something else, 19 characters"),
        ("Ada Lovelace", "something else, 12 characters"),
        ("eyJhbGciOiJub25lIn0", "something else, 19 characters"),
        ("pgs_0123456789_secret", "something else, 21 characters"),
        ("x" * 121, "something else, 121 characters"),
        ("\x1b[2Jx", "something else, 5 characters"),
        (["a"], "a list"),
        (True, "a bool"),
        (7, "7"),
    ],
)
def test_only_what_looks_like_an_id_is_repeated_of_what_a_caller_sent(received: Any, told: str) -> None:
    """S4, S11: never a token, a name or a mail address; nothing that commands a terminal."""
    assert shown(received) == told
