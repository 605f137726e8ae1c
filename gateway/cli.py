"""The command `provgate`: everything an operator does, over the operators' API, and the ways to start the processes.

Here are the first commands a person types, and the entry; all others lie in the modules `cli_…`. Each command imports what it
needs when it runs; help needs nothing but the parser.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import CycloptsError, MissingArgumentError, Parameter, UnusedCliTokensError

from gateway import cli_connectors, cli_dead, cli_processes, cli_reports, cli_targets  # noqa: F401 they add their commands
from gateway.cli_app import AsJson, ConfigFile, OnlyTarget, Reason, app, events_commands, mail_commands, user_commands
from gateway.cli_client import CONFIG_FILE, FINE, HERE, NOT_FINE, UNREACHABLE, WRONG_USE, Access, Api, Failure
from gateway.cli_moving import PAGE_MAX
from gateway.cli_printing import counted, loaded_terminal, say, show, spinning
from schemas.errors import ConfigurationError

INTERRUPTED = 130
"""Ctrl-C in the middle of something, as shells count it."""

# ---- status and live events


@app.command(
    help_epilogue="Examples:\n  provgate status\n  provgate status talkdesk-eu --json\n  provgate status --exit-code"
)
def status(
    target: OnlyTarget = None,
    /,
    *,
    exit_code: Annotated[bool, Parameter(negative=(), help="End with 1 when something is wrong.")] = False,
    access: Access = HERE,
) -> int:
    """Say in one sentence what is wrong, then how each target is, and what waits and why."""
    answer = Api(access).get("/status", target=target)
    show(access, answer, lambda terminal: terminal.status(answer))
    return NOT_FINE if exit_code and not answer["fine"] else FINE


@events_commands.command(
    help_epilogue="Examples:\n  provgate events tail\n  provgate events tail --target talkdesk-eu --json"
)
def tail(
    *,
    target: OnlyTarget = None,
    count: Annotated[int | None, Parameter(help="End after so many; without it, with Ctrl-C.")] = None,
    access: Access = HERE,
) -> int:
    """Follow events and outcomes as they happen: ids and names of attributes, never values."""
    terminal = None if access.as_json else loaded_terminal()
    try:
        for seen, event in enumerate(Api(access).stream("/events/stream", target=target), start=1):
            if terminal is None:
                print(json.dumps(event, ensure_ascii=False), flush=True)
            else:
                terminal.console().print(terminal.live_line(event), soft_wrap=True)
            if count is not None and seen >= count:
                return FINE
    except KeyboardInterrupt:  # the usual way to stop looking
        return FINE
    raise Failure("the gateway ended the live stream", UNREACHABLE)


# ---- one person


@user_commands.command(
    name="show",
    help_epilogue="Examples:\n  provgate user show ada@contoso.example\n"
    "  provgate user show 2819c223-7f76-453a-919d-413861904646 --show-values",
)
def user_show(
    who: Annotated[str, Parameter(help="Any id: resource id, userName, externalId, or the account's id.")],
    /,
    *,
    target: Annotated[str | None, Parameter(help="Only at this target.")] = None,
    show_values: Annotated[bool, Parameter(negative=(), help="Do not mask values; this is recorded.")] = False,
    reason: Annotated[str, Parameter(help="Why values are shown, for the record.")] = "",
    access: Access = HERE,
) -> int:
    """What was asked, what became of it, every attempt, and what comes next."""
    body = {"who": who, "target": target, "show_values": show_values, "reason": reason}
    answer = Api(access).post("/resources/find", body)
    if not answer["found"]:
        if access.as_json:
            print(json.dumps(answer, ensure_ascii=False))
        else:
            print("Nobody is known by that id. Spelled fully? Ids, userName, externalId and account ids are found.")
        return NOT_FINE

    def render(terminal: Any) -> Any:
        return terminal.several([terminal.resource(view, answer["at"]) for view in answer["found"]])

    show(access, answer, render)
    return FINE


# ---- mails to operators


@mail_commands.command(name="status", help_epilogue="Examples:\n  provgate mail status\n  provgate mail status --json")
def mail_status(*, access: Access = HERE) -> int:
    """Say whether mails get through, by which server, and who is told about what; ends with 1 when they do not."""
    answer = Api(access).get("/mail")
    show(access, answer, lambda terminal: terminal.mail_status(answer))
    return FINE if answer["configured"] and answer["health"]["fine"] else NOT_FINE


@mail_commands.command(
    name="list", help_epilogue="Examples:\n  provgate mail list\n  provgate mail list --state failed --json"
)
def mail_list(
    *,
    state: Annotated[str | None, Parameter(help="Only those: waiting, sent or failed.")] = None,
    limit: Annotated[int, Parameter(help=f"How many to list, at most {PAGE_MAX}.")] = 50,
    access: Access = HERE,
) -> int:
    """The newest mails: what waits in the outbox, what was sent in the last 30 days, what was given up and why."""
    answer = Api(access).get("/mail/list", in_state=state, limit=limit)
    show(access, answer, lambda terminal: terminal.mails(answer))
    return FINE


@mail_commands.command(
    name="test", help_epilogue="Examples:\n  provgate mail test\n  provgate mail test --to ops@example.com"
)
def mail_test(
    *,
    to: Annotated[str, Parameter(help="Only to this address; without it, to everybody who is told anything.")] = "",
    access: Access = HERE,
) -> int:
    """Send a test mail now, and print what the mail server says to it; this is recorded."""
    api = Api(access)
    with spinning(access, "Talking to the mail server"):
        answer = api.post("/mail/test", {"to": to})
    show(access, answer, lambda terminal: terminal.mail_tested(answer))
    return FINE if answer["fine"] else NOT_FINE


@mail_commands.command(name="retry", help_epilogue="Example:\n  provgate mail retry")
def mail_retry(*, reason: Reason = "", access: Access = HERE) -> int:
    """Try every mail again that was given up, e.g. after an address was corrected at the mail server."""
    answer = Api(access).post("/mail/retry", {"reason": reason})
    say(access, answer, f"{counted(answer['retried'], 'mail')} will be tried again.")
    return FINE


# ---- checking


@app.command(help_epilogue="Examples:\n  provgate check\n  provgate check --config /etc/provgate/provgate.toml --json")
def check(
    *,
    config: ConfigFile = Path(CONFIG_FILE),
    as_json: AsJson = False,
) -> int:
    """Check everything before it is needed: the file, the products' settings and credentials, NATS, the store, the keys."""
    from msgspec.structs import asdict

    from gateway.checks import run_checks

    found = [asdict(finding) for finding in run_checks(config)]
    errors = sum(finding["level"] == "error" for finding in found)
    if as_json:
        print(json.dumps({"ok": not errors, "findings": found}, ensure_ascii=False))
    else:
        terminal = loaded_terminal()
        out = terminal.console()
        out.print(terminal.findings(found))
        out.print(f"\n{terminal.counted(errors, 'error')}." if errors else "\nNothing is wrong.")
    return NOT_FINE if errors else FINE


# ---- the entry


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    if "--help" in tokens or "-h" in tokens:
        _name_arguments(_words(tokens))
    try:
        result = app(tokens)
        return result if isinstance(result, int) else FINE
    except Failure as failure:
        _complain(failure.message, tokens)
        return failure.code
    except ConfigurationError as exc:
        _complain(str(exc), tokens)
        return WRONG_USE
    except CycloptsError as exc:
        words = _words(tokens)
        _complain(f"{_misused(exc, words, tokens)}\nSee: provgate {' '.join([*words, '--help'])}", tokens)
        return WRONG_USE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `provgate ... | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE


def _misused(exc: CycloptsError, words: Sequence[str], tokens: Sequence[str]) -> str:
    """What is wrong with a command line, in the words of the help where the parser has only its own."""
    command = " ".join(words)
    if isinstance(exc, UnusedCliTokensError):
        return f"{command} does not take {' '.join(exc.unused_tokens or ())!r}"
    if isinstance(exc, MissingArgumentError) and exc.argument is not None:
        argument = exc.argument
        if not any(token.partition("=")[0] in argument.names for token in tokens):
            return f"{command} needs {argument.name}: {argument.parameter.help or 'see its help'}"
    return str(exc)


def _words(tokens: Sequence[str]) -> list[str]:
    """The command's words as far as they are known, without the arguments."""
    words: list[str] = []
    group = app
    for token in tokens:
        if token.startswith("-") or token not in group:
            break
        words.append(token)
        group = group[token]
    return words


def _name_arguments(words: Sequence[str]) -> None:
    """Have the usage line of a command name what may be left out; the parser itself only writes [ARGS]."""
    from inspect import Parameter as Given
    from inspect import signature

    from cyclopts.help import format_usage

    command = app
    for word in words:
        command = command[word]
    if command.default_command is None:
        return
    named = []
    for given in signature(command.default_command).parameters.values():
        name = given.name.rstrip("_").upper().replace("_", "-")
        if given.kind is Given.VAR_POSITIONAL:
            named.append(f"[{name}...]")
        elif given.kind is Given.POSITIONAL_ONLY and given.default is not Given.empty:
            named.append(f"[{name}]")
    line = format_usage(app, words).plain.strip()
    command.usage = "Usage: " + line.replace("[ARGS...]", " ".join(named)).replace("[ARGS]", " ".join(named))


def _complain(message: str, tokens: Sequence[str]) -> None:
    text = json.dumps({"error": message}, ensure_ascii=False) if "--json" in tokens else f"provgate: {message}"
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
