"""The command `provgate`: run as a process against a real listener; what people read, what machines read, how it ends."""

from __future__ import annotations

import asyncio
import io
import json
import os
import resource as usage
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rich.console import Console

from gateway import terminal
from gateway.access import write_access_file
from gateway.cli_client import FINE, NOT_FINE, REFUSED, UNREACHABLE, WRONG_USE
from schemas.states import Result, State
from tests.conftest import NatsServer, free_port
from tests.gateway.operated import (
    ALPHA,
    BETA,
    COLUMNS,
    TOKEN,
    WAIT_S,
    Operated,
    clean_environment,
    operated,
    provgate,
    worker_of,
)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Operated]:
    async with operated(tmp_path / "data") as running:
        yield running


async def with_keys(here: Operated) -> None:
    for name in (ALPHA, BETA):
        await here.keys.issue(name, days=365, actor="test")


# ---- what people read


async def test_status_is_a_sentence_and_a_table_that_fits_100_columns(here: Operated) -> None:
    """First what is wrong, then every target, then what waits and why; no line wider than the terminal."""
    await with_keys(here)
    await here.dead("ada")
    await here.applied("bob")
    here.workers = [worker_of(ALPHA)]

    ended = await here.command("status")

    assert (ended.code, ended.err) == (FINE, "")
    lines = ended.out.splitlines()
    assert lines[0].startswith("2 of 2 targets need attention: beta is served by no worker; alpha has 1 dead letter.")
    assert max(map(len, lines)) <= COLUMNS
    assert any(line.split()[1:3] == ["alpha", "1"] for line in lines), ended.out
    assert "provgate dead list --target alpha" in ended.out
    for heading in ("Target", "Circuit", "Applied", "Waiting", "Blocked", "Dead", "Last"):
        assert heading in ended.out


async def test_the_status_of_one_target_does_not_say_that_it_is_the_only_one(here: Operated) -> None:
    """Asked about one of several, the sentence is about that one."""
    await with_keys(here)
    await here.applied("bob")
    here.workers = [worker_of(ALPHA)]

    assert (await here.typed("status", ALPHA)).out.splitlines()[0] == "alpha is working."


async def test_a_file_or_a_target_that_goes_on_as_configured_before_is_said_with_its_mistake(here: Operated) -> None:
    """Nobody believes that what stands in the file is in force: neither gateway nor worker keeps its refusal to the log."""
    here.config_problems = ("targets.alpha.tokn: not a setting",)
    worker = worker_of(ALPHA, BETA)
    worker["targets"][BETA]["problems"] = ["targets.beta.settings.base_url: must be a text"]
    here.workers = [worker]

    ended = await here.command("status", "--exit-code")

    assert "targets.alpha.tokn: not a setting" in ended.out
    assert "beta works as it was configured before (targets.beta.settings.base_url: must be a text)" in " ".join(
        ended.out.split()
    )
    assert ended.code == 1


async def test_a_filter_by_a_target_that_never_was_is_a_mistake_and_not_an_empty_list(here: Operated) -> None:
    """A slip in a target's name must not look like "nothing to do"."""
    for command in (
        ("dead", "list", "--target", "alhpa"),
        ("dead", "redrive", "--all", "--target", "alhpa"),
        ("held", "list", "--target", "alhpa"),
        ("held", "approve", "--target", "alhpa"),
        ("user", "show", "ada@contoso.example", "--target", "alhpa"),
    ):
        ended = await here.typed(*command)
        assert ended.code == WRONG_USE, command
        assert "There is no target 'alhpa'; did you mean alpha? Configured: alpha, beta." in ended.err


@pytest.mark.parametrize("circuit", ["closed", "down", "auth"])
def test_a_line_of_a_target_in_trouble_fits_80_columns_with_nothing_cut_off(circuit: str) -> None:
    """The widest cells there are, in the narrowest terminal people have: names, states and ages stay whole."""
    target = {
        "name": "bobs_business",
        "connector": "bobs_business",
        "light": "red",
        "enabled": True,
        "shadow": False,
        "workers": ["w"],
        "paused_by": None,
        "circuit": {"state": circuit, "since": 0.0, "next_probe_at": 1_060.0},
        "counts": {"applied": 100_000, "waiting": 1_234, "blocked": 0, "held": 0, "dead": 0},
        "oldest_waiting_s": 3_000.0,
        "last_outcome": {"at": 1.0, "result": "misconfigured"},
        "key_days_left": 89,
    }
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal.target_lines([target], 1_000.0))
    shown = console.export_text()

    assert max(map(len, shown.splitlines())) <= 80
    for whole in ("bobs_business", "Worker", circuit, "100,000", "1,234", "50 min", "misconfigured"):
        assert whole in shown, shown
    assert "…" not in shown


async def test_every_table_fits_100_columns(here: Operated) -> None:
    """Long causes, ids and messages are folded, never cut off and never wider than the terminal."""
    resource = await here.dead("ada")
    await here.held("bob")
    await with_keys(here)
    commands = (
        ("dead", "list"),
        ("dead", "list", "--cause", "bad_role"),
        ("dead", "show", resource),
        ("held", "list"),
        ("user", "show", resource),
        ("key", "list"),
        ("target", "list"),
        ("target", "show", ALPHA),
    )
    for command in commands:
        ended = await here.typed(*command)
        assert (ended.code, ended.err) == (FINE, ""), command
        assert max(map(len, ended.out.splitlines())) <= COLUMNS, ended.out


async def test_dead_letters_are_listed_with_cause_remedy_and_ids(here: Operated) -> None:
    """What an operator needs to act: how many, of what, since when, what to do, and on which ids."""
    resource = await here.dead("ada")

    ended = await here.typed("dead", "list")

    assert "1 dead letter." in ended.out
    assert "bad_role:roles:Wizard" in ended.out
    assert resource in ended.out
    assert "provgate dead redrive --cause" in ended.out
    assert "No dead letters." in (await here.typed("dead", "list", "--target", BETA)).out


async def test_a_person_is_shown_with_both_halves_masked_until_asked(here: Operated) -> None:
    """Any id finds; values are masked; --show-values shows them and is recorded; nobody is exit code 1."""
    resource = await here.dead("ada")

    masked = await here.typed("user", "show", "ADA@contoso.example")
    assert resource in masked.out
    assert "ada@contoso.example" not in masked.out
    assert "a•••@contoso.example" in masked.out
    for word in ("Conditions", "Applied", "BadRole", "Asked and confirmed", "History", "entra asked: create"):
        assert word in masked.out
    assert f"provgate dead redrive {resource}" in masked.out

    shown = await here.typed("user", "show", "external-ada", "--show-values", "--reason", "ticket 7")
    assert "ada@contoso.example" in shown.out
    assert len(await here.audited("values.shown")) == 1
    nobody = await here.typed("user", "show", "nobody@contoso.example")
    assert (nobody.code, nobody.err) == (NOT_FINE, "")


async def test_what_was_applied_with_a_remark_says_so_in_the_history(here: Operated) -> None:
    """A8, A13: what the product cannot hold, and what a connector has to say about a delivery that went well; values masked."""
    remark = "There is no agent to carry the name of ada@contoso.example."
    told = {"ignored": ("title", "name.honorificPrefix"), "warnings": (remark,), "account_id": "a1", "created": True}
    await here.comes_to(await here.created("ada"), Result.APPLIED, **told)

    shown = await here.typed("user", "show", "external-ada")

    said = " ".join(shown.out.split())
    assert "ignored, the product cannot hold it: title, name.honorificPrefix" in said
    assert "There is no agent to carry the name of" in said
    assert "ada@contoso.example" not in said


async def test_a_person_at_every_stage_can_be_shown(here: Operated) -> None:
    """Applied, on its way, retrying, held, discarded: whatever is missing in a row is no reason to fail."""
    retrying = await here.created("rita")
    await here.comes_to(retrying, Result.RETRY)
    discarded = await here.dead("dora")
    await here.typed("dead", "discard", discarded, "--reason", "x")
    people = {
        "applied": await here.applied("ada"),
        "delivering": await here.created("bob"),
        "retrying": retrying,
        "held": await here.held("eve"),
        "detached": discarded,
    }
    for state, resource in people.items():
        ended = await here.typed("user", "show", resource)
        assert (ended.code, ended.err) == (FINE, ""), state
        assert f"User {resource} of alpha: {state}" in ended.out


async def test_what_comes_from_outside_cannot_command_the_terminal(here: Operated) -> None:
    """Control characters and markup in a product's or person's values are printed as text, never obeyed."""
    await here.post("/targets/alpha/pause", {"reason": "[bold red]now[/] \x1b[31mred\x07"})

    ended = await here.command("status")

    assert "\x1b" not in ended.out
    assert "\x07" not in ended.out
    assert "[bold red]now[/]" in ended.out


# ---- what machines read


STATUS = {
    "at",
    "sentence",
    "fine",
    "bus_connected",
    "targets",
    "waiting",
    "overload",
    "config_problems",
    "mail",
    "left_over",
}


async def test_json_answers_have_the_shapes_of_the_api(here: Operated) -> None:
    """Every command with --json prints one JSON document and nothing else."""
    resource = await here.dead("ada")
    expected = {
        ("status",): STATUS,
        ("status", ALPHA): STATUS,
        ("dead", "list"): {"at", "total", "causes", "items"},
        ("held", "list"): {"at", "total", "causes", "items"},
        ("user", "show", resource): {"at", "total", "found"},
        ("key", "list"): {"at", "total", "keys"},
        ("target", "list"): {"at", "targets"},
        ("target", "show", ALPHA): {"at", "target", "waiting"},
        ("target", "pause", ALPHA, "--reason", "x"): {"name", "paused_by", "changed"},
        ("target", "resume", ALPHA): {"name", "paused_by", "changed"},
        ("target", "probe", ALPHA): {"name", "ok", "code", "message"},
        ("dead", "redrive", "--cause", "bad_role", "--dry-run"): {"dry_run", "total", "ids"},
    }
    for command, names in expected.items():
        ended = await here.typed(*command, "--json")
        assert (ended.code, ended.err) == (FINE, ""), command
        assert set(json.loads(ended.out)) == names, command


async def test_an_error_is_json_too_when_json_was_asked_for(here: Operated) -> None:
    """A machine reads the reason from standard error in the same shape as the API gives it."""
    ended = await here.command("target", "show", "nobody", "--json")
    assert (ended.code, ended.out) == (WRONG_USE, "")
    assert "configured: alpha, beta" in json.loads(ended.err)["error"]


async def test_live_events_are_lines_for_people_and_for_machines(here: Operated) -> None:
    """`events tail` follows the stream, filters by target, and ends after --count."""
    people = asyncio.create_task(here.command("events", "tail", "--count", "1"))
    machines = asyncio.create_task(here.command("events", "tail", "--target", ALPHA, "--count", "1", "--json"))
    await here.live.heard_by(2)
    event = {"kind": "event", "at": time.time(), "target": ALPHA, "resource": "r-1", "change": "create"}
    here.live.say({**event, "changed": ["userName"], "generation": 1, "fence": 1, "document": {"userName": "ada"}})

    first, second = await asyncio.gather(people, machines)

    assert (first.code, second.code) == (FINE, FINE)
    assert "create" in first.out
    assert "r-1 g1 f1" in first.out
    assert "userName" in first.out
    assert json.loads(second.out) == {**event, "changed": ["userName"], "generation": 1, "fence": 1}
    assert len(second.out.splitlines()) == 1


async def test_a_stream_that_the_gateway_ends_is_exit_code_3(here: Operated) -> None:
    """Whoever watches learns that nothing more will come; times of both kinds are readable."""
    watching = asyncio.create_task(here.command("events", "tail"))
    await here.live.heard_by(1)
    here.live.say({"kind": "outcome", "at": "2026-11-22T08:00:00.123Z", "target": ALPHA, "result": "applied"})
    here.live.say({"kind": "outcome", "at": "nonsense", "target": ALPHA, "result": "rejected", "code": "bad_role"})
    here.live.say(None)
    ended = await watching
    assert ended.code == UNREACHABLE
    assert [line.split()[1:3] for line in ended.out.splitlines()] == [[ALPHA, "applied"], [ALPHA, "rejected"]]


async def test_ctrl_c_ends_the_live_view_quietly(here: Operated) -> None:
    """Leaving the live view is not an error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "gateway.cli", "events", "tail", "--data", str(here.folder)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )
    await here.live.heard_by(1)
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert (process.returncode, err) == (FINE, b"")


# ---- acting


async def test_dead_letters_are_redriven_by_id_by_cause_and_all_of_a_target(here: Operated) -> None:
    """Each selection moves what it names and nothing else; a dry run moves nothing."""
    ada, bob = await here.dead("ada"), await here.dead("bob")
    eve = await here.dead("eve", BETA)

    dry = await here.command("dead", "redrive", "--all", "--target", ALPHA, "--dry-run")
    assert (dry.code, dry.out) == (FINE, "2 dead letters would be sent again.\n")
    assert (await here.row(ada)).state is State.DEAD

    one = await here.command("dead", "redrive", ada)
    assert (one.code, one.out) == (FINE, "1 dead letter sent again.\n")
    assert ((await here.row(ada)).state, (await here.row(bob)).state) == (State.DELIVERING, State.DEAD)

    rest = await here.command("dead", "redrive", "--all", "--target", ALPHA, "--json")
    assert json.loads(rest.out) == {"done": [bob], "skipped": []}
    assert (await here.row(eve)).state is State.DEAD
    await here.command("dead", "redrive", "--cause", "bad_role")
    assert (await here.row(eve)).state is State.DELIVERING


async def test_a_redrive_keeps_to_its_rate(here: Operated) -> None:
    """`--rate 4/s` spreads six dead letters over more than a second."""
    for number in range(6):
        await here.dead(f"user{number}")
    ended = await here.command("dead", "redrive", "--all", "--target", ALPHA, "--rate", "4/s")
    assert ended.code == FINE, ended.err
    acts = await here.audited("dead.redriven")
    assert len(acts) == 6
    assert acts[-1].at - acts[0].at >= 0.9


async def test_more_than_one_page_of_dead_letters_is_redriven_with_a_progress_bar(here: Operated) -> None:
    """520 dead letters: a reason is asked for, every one is moved once, and people see how far it is."""
    ids = [await here.created(f"user{number}") for number in range(520)]
    reason = "nobody"  # moved to dead directly: 520 deliveries would only take time

    def bury(ledger) -> None:
        for resource in ids:
            row = ledger.row(resource)
            row.state, row.in_flight, row.body, row.settled_generation = State.DEAD, None, None, row.generation
            ledger.save(row)

    await here.store.run(bury)
    refused = await here.command("dead", "redrive", "--all", "--target", ALPHA)
    assert refused.code == WRONG_USE
    assert "--reason" in refused.err

    ended = await here.command("dead", "redrive", "--all", "--target", ALPHA, "--reason", reason)

    assert (ended.code, ended.out) == (FINE, "520 dead letters sent again.\n")
    assert "520/520" in ended.err
    assert len(await here.audited("dead.redriven")) == 520


async def test_what_could_not_be_moved_is_named_and_is_exit_code_1(here: Operated) -> None:
    """The rest of the order is carried out all the same."""
    dead, fine = await here.dead("ada"), await here.applied("bob")
    ended = await here.typed("dead", "redrive", dead, fine)
    assert ended.code == NOT_FINE
    assert "1 dead letter sent again." in ended.out
    assert f"{fine}: it is applied, not dead" in ended.out


async def test_giving_up_needs_a_reason(here: Operated) -> None:
    """Without --reason nothing happens; with it the resource is detached."""
    resource = await here.dead("ada")
    assert (await here.typed("dead", "discard", resource)).code == WRONG_USE
    assert (await here.typed("dead", "discard", resource, "--reason", " ")).code == WRONG_USE
    assert (await here.row(resource)).state is State.DEAD
    ended = await here.typed("dead", "discard", resource, "--reason", "left the company")
    assert (ended.code, ended.out) == (FINE, "1 dead letter given up.\n")
    assert (await here.row(resource)).state is State.DETACHED


async def test_held_changes_are_approved_by_target(here: Operated) -> None:
    """`held approve --target` lets everything held there go, and only there."""
    ada, bob = await here.held("ada"), await here.held("bob", BETA)
    ended = await here.typed("held", "approve", "--target", ALPHA, "--reason", "announced")
    assert (ended.code, ended.out) == (FINE, "1 held change approved.\n")
    assert ((await here.row(ada)).state, (await here.row(bob)).state) == (State.DELIVERING, State.HELD)


async def test_a_new_key_is_printed_once_with_the_tenant_url(here: Operated) -> None:
    """Both values an Entra admin enters, whole and on lines of their own; the list never shows the key."""
    ended = await here.typed("key", "new", ALPHA, "--days", "90", "--label", "Entra")
    words = [line.split() for line in ended.out.splitlines()]
    url = next(line[2] for line in words if line[:2] == ["Tenant", "URL"])
    key = next(line[2] for line in words if line[:2] == ["Secret", "Token"])
    assert url == "https://provgate.example.com/scim/v2/alpha"
    assert await here.keys.check(ALPHA, key) is None
    listed = await here.typed("key", "list", ALPHA)
    assert key not in listed.out
    assert "live" in listed.out
    key_id = key.split("_")[1]
    assert (await here.typed("key", "revoke", key_id)).out == f"Key {key_id} of alpha is revoked.\n"
    assert await here.keys.check(ALPHA, key) == "revoked"


async def test_a_probe_that_fails_is_exit_code_1(here: Operated) -> None:
    """The answer "it does not work" is not a failure of the command, but not fine either."""
    assert (await here.typed("target", "probe", ALPHA)).code == FINE
    here.bus.said = None
    ended = await here.typed("target", "probe", ALPHA)
    assert ended.code == NOT_FINE
    assert "No worker answered." in ended.out


# ---- how it ends, and where it looks


async def test_status_ends_with_1_only_when_asked(here: Operated) -> None:
    """A script decides whether "something is wrong" is an error for it."""
    await with_keys(here)
    assert (await here.typed("status", "--exit-code")).code == FINE
    here.bus.up = False
    assert (await here.typed("status")).code == FINE
    assert (await here.typed("status", "--exit-code")).code == NOT_FINE


async def test_wrong_use_is_exit_code_2_with_a_sentence(here: Operated) -> None:
    """What was typed wrongly is named on standard error; standard output stays empty."""
    mistakes: list[tuple[str, ...]] = [
        ("nonsense",),
        ("dead", "redrve"),
        ("dead", "redrive"),
        ("dead", "redrive", "--all"),
        ("dead", "redrive", "r-1", "--cause", "x"),
        ("dead", "redrive", "r-1", "--rate", "fast"),
        ("dead", "redrive", "r-1", "--rate", "0/s"),
        ("held", "approve"),
        ("status", "--nonsense"),
        ("status", "nobody"),
        ("dead", "list", "--limit", "0"),
        ("user", "show"),
        ("user", "show", ""),
        ("key", "new", "nobody"),
        ("key", "new", ALPHA, "--days", "1"),
        ("target", "pause", ALPHA),
        ("target", "show", "../keys"),
    ]
    for mistake in mistakes:
        ended = await here.typed(*mistake)
        assert ended.code == WRONG_USE, (mistake, ended.err)
        assert ended.out == ""
        assert ended.err.startswith("provgate: ")
        assert "Traceback" not in ended.err
    assert (await here.typed("target", "pause", ALPHA)).err.startswith("provgate: target pause needs --reason: Why;")
    assert "mail retry does not take '5'" in (await here.typed("mail", "retry", "5")).err


async def test_a_gateway_that_is_not_there_is_exit_code_3() -> None:
    """The address is named, and no stack trace."""
    url = f"http://127.0.0.1:{free_port()}"
    ended = await provgate("status", "--url", url, "--token", TOKEN)
    assert ended.code == UNREACHABLE
    assert url in ended.err
    assert "Traceback" not in ended.err


async def test_a_refused_token_is_exit_code_4_and_is_not_printed(here: Operated) -> None:
    """Whoever typed a wrong token finds it in no output."""
    ended = await provgate("status", "--url", here.url, "--token", "a-wrong-token-somebody-typed")
    assert ended.code == REFUSED
    assert "a-wrong-token" not in ended.err + ended.out


async def test_address_and_token_come_from_the_environment_or_from_a_folder_nearby(here: Operated) -> None:
    """Variables, --data, ./provgate-data and the configuration file's folder lead to the gateway; without any: exit code 2."""
    found = await here.command("target", "list", PROVGATE_OPERATOR_URL=here.url, PROVGATE_OPERATOR_TOKEN=TOKEN)
    assert found.code == FINE, found.err
    near = here.folder / "near"
    (near / "provgate-data").mkdir(parents=True)
    nothing = await provgate("target", "list", cwd=near)
    assert nothing.code == WRONG_USE
    assert "PROVGATE_OPERATOR_TOKEN" in nothing.err
    write_access_file(near / "provgate-data", here.url, TOKEN)
    assert (await provgate("target", "list", cwd=near)).code == FINE
    config = near / "provgate.toml"
    config.write_text("")
    assert (await provgate("target", "list", "--config", str(config), cwd=here.folder)).code == FINE


async def test_a_configuration_file_with_its_own_token_is_enough(here: Operated) -> None:
    """Listener and token reference of the file are used when no gateway has left its access file."""
    host, port = here.url.removeprefix("http://").split(":")
    folder = here.folder / "etc"
    folder.mkdir()
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    (folder / "provgate.toml").write_text(
        f'[gateway]\noperator_host = "{host}"\noperator_port = {port}\noperator_token = {{file = "token"}}\n'
    )
    ended = await provgate("target", "list", "--config", str(folder / "provgate.toml"))
    assert ended.code == FINE, ended.err


async def test_the_access_file_is_for_its_owner_only_and_refused_otherwise(here: Operated) -> None:
    """S14: a token that others can read is not used; a fresh one replaces an old file and its rights."""
    path = here.folder / "operator.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    ended = await here.typed("target", "list")
    assert ended.code == WRONG_USE
    assert "chmod 600" in ended.err
    write_access_file(here.folder, here.url, TOKEN)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (await here.typed("target", "list")).code == FINE


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    """Help needs the parser only: under 0.4 s of processor time, and neither web framework nor database nor HTTP client."""
    before = usage.getrusage(usage.RUSAGE_CHILDREN)
    script = (
        "import sys; from gateway.cli import main; code = main(['--help']); print(*sorted(sys.modules)); sys.exit(code)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=clean_environment(), check=True, timeout=30
    )
    after = usage.getrusage(usage.RUSAGE_CHILDREN)
    loaded = set(ended.stdout.splitlines()[-1].split())
    assert not loaded & {"litestar", "sqlalchemy", "aiohttp", "http.client", "msgspec", "nats", "asyncio"}
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 0.4 * 2  # a machine under other load


@pytest.mark.parametrize(
    "command", ["status", "dead redrive", "user show", "key new", "target pause", "demo", "check", "entra replay"]
)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    """Help names each option and shows how the command is typed."""
    ended = subprocess.run(
        [sys.executable, "-m", "gateway.cli", *command.split(), "--help"],
        capture_output=True,
        text=True,
        env=clean_environment(),
        check=True,
        timeout=30,
    )
    assert f"  provgate {command}" in ended.stdout
    assert "Example" in ended.stdout


# ---- check


async def test_check_names_every_mistake_of_the_file_at_once(tmp_path: Path) -> None:
    """All mistakes, path first, with the nearest valid name; exit code 1."""
    config = tmp_path / "provgate.toml"
    config.write_text('[gateway]\nprot = 1\n[targets.sofa]\nconnector = 5\n[targets."Bad Name"]\nconnector = "x"\n')
    ended = await provgate("check", "--config", str(config), "--json")
    answer = json.loads(ended.out)
    assert (ended.code, answer["ok"]) == (NOT_FINE, False)
    assert {finding["where"] for finding in answer["findings"]} == {
        "gateway.prot",
        "targets.sofa.connector",
        "targets.Bad Name",
    }
    assert "did you mean port?" in next(f["message"] for f in answer["findings"] if f["where"] == "gateway.prot")
    missing = await provgate("check", "--config", str(tmp_path / "none.toml"))
    assert missing.code == NOT_FINE
    line = next(line for line in missing.out.splitlines() if line.startswith("error"))
    assert line.split()[1:] == ["none.toml", "cannot", "be", "read:", "No", "such", "file", "or", "directory"]


async def test_check_finds_a_missing_broker_and_a_target_without_a_key(here: Operated, nats_server: NatsServer) -> None:
    """NATS, the store, the connectors' own checks and the keys are looked at; a healthy system has no error."""
    await here.keys.issue(ALPHA, days=365, actor="test")
    config = here.folder / "provgate.toml"

    def write(url: str) -> None:
        targets = "".join(f'[targets.{name}]\nconnector = "observe"\n' for name in (ALPHA, BETA))
        config.write_text(f'[nats]\nurl = "{url}"\n[store]\npath = "store.sqlite3"\n{targets}')

    await asyncio.to_thread(write, nats_server.url)
    ended = await provgate("check", "--config", str(config), "--json")
    findings = json.loads(ended.out)["findings"]
    assert ended.code == FINE, ended.out
    by_place = {(finding["where"], finding["level"]) for finding in findings}
    assert {("nats", "ok"), ("store", "ok"), ("targets.alpha", "ok"), ("targets.beta", "warning")} <= by_place
    assert any("no key" in f["message"] for f in findings if f["where"] == "targets.beta")

    await asyncio.to_thread(config.write_text, f'[nats]\nurl = "nats://127.0.0.1:{free_port()}"\n')
    ended = await provgate("check", "--config", str(config))
    assert ended.code == NOT_FINE
    assert "1 error." in ended.out
    assert max(map(len, ended.out.splitlines())) <= COLUMNS


async def test_commands_that_start_processes_want_their_configuration_file(tmp_path: Path) -> None:
    """A file that is not there is said before anything is started."""
    for command in ("up", "gateway", "worker"):
        ended = await provgate(command, "--config", str(tmp_path / "none.toml"))
        assert ended.code == WRONG_USE
        assert "none.toml" in ended.err


async def test_a_demo_that_cannot_start_says_why_at_once(tmp_path: Path) -> None:
    """A port that is none or is taken, and a folder that cannot be made, are said instead of tried again and again."""
    taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    (tmp_path / "file").write_text("")
    async with taken:
        for arguments, said in (
            (("--port", "99999"), "--port 99999: must be 1 to 65535, or 0 for a free one"),
            (("--port", str(port), "--data", str(tmp_path / "new")), f"port {port} (scim) is taken; name another"),
            (("--data", str(tmp_path / "file" / "below")), "cannot be made: Not a directory"),
        ):
            ended = await asyncio.wait_for(provgate("demo", *arguments), WAIT_S)
            assert ended.code == WRONG_USE, ended
            assert said in ended.err


async def test_a_worker_for_a_target_that_is_not_in_the_file_does_not_start(tmp_path: Path) -> None:
    """Named wrongly, it could never serve anything; what there is is said."""
    config = tmp_path / "provgate.toml"
    await asyncio.to_thread(config.write_text, '[targets.alpha]\nconnector = "observe"\n')

    ended = await provgate("worker", "--config", str(config), "--target", "alhpa")

    assert ended.code == WRONG_USE
    assert "targets.alhpa: is not configured; there are: alpha" in ended.err


async def test_worker_becomes_the_worker_process(tmp_path: Path, nats_server: NatsServer) -> None:
    """`provgate worker` replaces itself, so that a signal reaches the worker and its exit code is the command's."""
    config = tmp_path / "provgate.toml"
    await asyncio.to_thread(
        config.write_text, f'[nats]\nurl = "{nats_server.url}"\n[targets.alpha]\nconnector = "observe"\n'
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli", "worker", "--config", str(config), "--target", "alpha"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(WAIT_S):
            line = await process.stderr.readline()
        assert json.loads(line)["process"] == "worker"
        command = await asyncio.to_thread(Path(f"/proc/{process.pid}/cmdline").read_bytes)
        assert b"workers" in command.split(b"\0")
    finally:
        os.kill(process.pid, signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == FINE
