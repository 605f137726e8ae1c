"""The parser of `provgate`: the command, its groups, the options many share; the modules `cli_…` add the commands."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter


def _default(value: Any) -> str | None:
    """What help says of an option that is left out; nothing where that means nothing."""
    return None if value in (None, False, "", ()) else str(value)


app = App(
    name="provgate",
    default_parameter=Parameter(show_default=_default),
    help="Provisioning gateway: SCIM from Microsoft Entra ID in, events on NATS, accounts at your products.",
    help_format="plaintext",
    help_epilogue=(
        "Start here: provgate demo (everything on this machine, with emulated products), provgate status.\n"
        "Exit codes: 0 fine, 1 not fine, 2 used or configured wrongly, 3 gateway, worker or product not reachable, "
        "4 token refused."
    ),
    version=lambda: importlib.import_module("importlib.metadata").version("provgate"),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)


def _group(name: str, help_text: str) -> App:
    group = App(name=name, help=help_text)
    app.command(group)
    return group


events_commands = _group("events", "The live stream of events and outcomes.")
dead_commands = _group("dead", "Dead letters: list, look at, send again, give up.")
held_commands = _group("held", "Changes that a safety brake holds back: list, approve.")
user_commands = _group("user", "One person: what was asked, what became of it, what comes next.")
key_commands = _group("key", "Access keys for Entra: make, list, revoke.")
client_commands = _group("client", "Client secrets for Entra's OAuth client credentials: make, list, revoke.")
mail_commands = _group("mail", "Mails to operators: whether they get through, which there were, a test, another try.")
auth_commands = _group("auth", "Refused sign-ins: list, and why one was refused.")
connector_commands = _group(
    "connector", "Connectors: list, settings kept at a product; for authors: begin a new one, try its promises."
)
notes_commands = _group("notes", "What is noted about people and groups: who is not invited, what has no mapping.")
target_commands = _group("target", "Targets: list, look at, pause, resume, probe.")
entra_commands = _group("entra", "The emulated Entra: record what it sends, send a recording to another target.")

TargetName = Annotated[str, Parameter(help="Name of the target.")]
OnlyTarget = Annotated[str | None, Parameter(help="Only this target.")]
ResourceIds = Annotated[str, Parameter(help="Ids of resources.")]
Reason = Annotated[str, Parameter(help="Why, for the record.")]
ConfigFile = Annotated[Path, Parameter(help="The configuration file.")]
CsvFile = Annotated[Path | None, Parameter(help="Write all lines to this file.")]
AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Answer in JSON, for machines.")]
