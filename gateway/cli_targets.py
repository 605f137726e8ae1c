"""The commands `provgate key`, `client`, `auth` and `target`: who may sign in, who could not, and the products behind."""

from __future__ import annotations

import time
from typing import Annotated

from cyclopts import Parameter

from gateway.cli_app import (
    OnlyTarget,
    Reason,
    TargetName,
    auth_commands,
    client_commands,
    key_commands,
    target_commands,
)
from gateway.cli_client import FINE, HERE, NOT_FINE, WRONG_USE, Access, Api, Failure, segment
from gateway.cli_moving import PAGE_MAX
from gateway.cli_printing import say, show


@key_commands.command(help_epilogue='Example:\n  provgate key new talkdesk-eu --days 365 --label "Entra, production"')
def new(
    target: TargetName,
    /,
    *,
    days: Annotated[int, Parameter(help="How long it lives, 90 to 730 days.")] = 365,
    label: Annotated[str, Parameter(help="What you call it.")] = "",
    access: Access = HERE,
) -> int:
    """Make a key for Entra. It is shown this once; two may live at a time, so that one can be replaced without a gap."""
    answer = Api(access).post("/keys", {"target": target, "days": days, "label": label})
    show(access, answer, lambda terminal: terminal.new_key(answer))
    return FINE


@key_commands.command(name="list", help_epilogue="Example:\n  provgate key list talkdesk-eu")
def key_list(target: OnlyTarget = None, /, *, access: Access = HERE) -> int:
    """The keys, when they end and when they were last used."""
    answer = Api(access).get("/keys", target=target)
    show(access, answer, lambda terminal: terminal.keys(answer, answer["at"]))
    return FINE


@key_commands.command(help_epilogue="Example:\n  provgate key revoke 4fGh2kQ9aB")
def revoke(
    id_: Annotated[str, Parameter(name="ID", help="Id of the key, see: provgate key list")],
    /,
    *,
    reason: Reason = "",
    access: Access = HERE,
) -> int:
    """End a key now; it opens nothing any more within seconds."""
    answer = Api(access).post(f"/keys/{segment(id_)}/revoke", {"reason": reason})
    say(access, answer, f"Key {answer['id']} of {answer['target']} is revoked.")
    return FINE


@client_commands.command(
    name="new", help_epilogue='Example:\n  provgate client new talkdesk-eu --days 730 --label "Entra, production"'
)
def client_new(
    target: TargetName,
    /,
    *,
    days: Annotated[int, Parameter(help="How long it lives, 90 to 1095 days.")] = 730,
    label: Annotated[str, Parameter(help="What you call it.")] = "",
    access: Access = HERE,
) -> int:
    """Make a client secret for Entra. It is shown this once; two may live at a time, so one can be replaced without a gap."""
    answer = Api(access).post("/clients", {"target": target, "days": days, "label": label})
    show(access, answer, lambda terminal: terminal.new_client(answer))
    return FINE


@client_commands.command(name="list", help_epilogue="Example:\n  provgate client list talkdesk-eu")
def client_list(target: OnlyTarget = None, /, *, access: Access = HERE) -> int:
    """The client secrets, when they end and when they were last used."""
    answer = Api(access).get("/clients", target=target)
    show(access, answer, lambda terminal: terminal.clients(answer, answer["at"]))
    return FINE


@client_commands.command(name="revoke", help_epilogue="Example:\n  provgate client revoke 4fGh2kQ9aB")
def client_revoke(
    id_: Annotated[str, Parameter(name="ID", help="Id of the client secret, see: provgate client list")],
    /,
    *,
    reason: Reason = "",
    access: Access = HERE,
) -> int:
    """End a client secret and all tokens bought with it; they open nothing any more within seconds."""
    answer = Api(access).post(f"/clients/{segment(id_)}/revoke", {"reason": reason})
    say(access, answer, f"Client secret {answer['id']} of {answer['target']} is revoked, and its tokens with it.")
    return FINE


@auth_commands.command(name="list", help_epilogue="Example:\n  provgate auth list --target talkdesk-eu")
def auth_list(
    *,
    target: Annotated[str | None, Parameter(help="Only this target; `unknown` for those that are none.")] = None,
    limit: Annotated[int, Parameter(help=f"How many to list, at most {PAGE_MAX}.")] = 20,
    access: Access = HERE,
) -> int:
    """The latest refused sign-ins."""
    answer = Api(access).get("/auth/refusals", target=target, limit=limit)
    show(access, answer, lambda terminal: terminal.refusals(answer, answer["at"]))
    return FINE


@auth_commands.command(help_epilogue="Example:\n  provgate auth explain 5f0c6e1d9ab2c3d4")
def explain(
    id_: Annotated[str, Parameter(name="ID", help="The id in the 401 that Entra shows.")], /, *, access: Access = HERE
) -> int:
    """Why a sign-in was refused: every check with what was expected and what came."""
    answer = Api(access).get(f"/auth/refusals/{segment(id_)}")
    show(access, answer, lambda terminal: terminal.refusal(answer, time.time()))
    return FINE


@target_commands.command(name="list", help_epilogue="Example:\n  provgate target list")
def target_list(*, access: Access = HERE) -> int:
    """All targets with their state."""
    answer = Api(access).get("/targets")
    show(access, answer, lambda terminal: terminal.target_lines(answer["targets"], answer["at"]))
    return FINE


@target_commands.command(name="show", help_epilogue="Example:\n  provgate target show talkdesk-eu")
def target_show(name: TargetName, /, *, access: Access = HERE) -> int:
    """One target: workers, circuit, counts, keys, what waits."""
    answer = Api(access).get(f"/targets/{segment(name)}")
    show(access, answer, lambda terminal: terminal.target(answer["target"], answer["at"]))
    return FINE


@target_commands.command(
    help_epilogue='Example:\n  provgate target pause talkdesk-eu --reason "maintenance at the product"'
)
def pause(
    name: TargetName,
    /,
    *,
    reason: Annotated[str, Parameter(help="Why; shown in the status.")],
    access: Access = HERE,
) -> int:
    """Send nothing to a target until it is resumed. Entra is still answered; changes wait."""
    if not reason.strip():
        raise Failure("--reason must say why", WRONG_USE)
    answer = Api(access).post(f"/targets/{segment(name)}/pause", {"reason": reason})
    say(access, answer, f"{name} is paused. Changes wait and are not lost. Go on with: provgate target resume {name}")
    return FINE


@target_commands.command(help_epilogue="Example:\n  provgate target resume talkdesk-eu")
def resume(
    name: TargetName,
    /,
    *,
    reason: Reason = "",
    access: Access = HERE,
) -> int:
    """Go on sending to a paused target."""
    answer = Api(access).post(f"/targets/{segment(name)}/resume", {"reason": reason})
    say(access, answer, f"{name} goes on." if answer["changed"] else f"{name} was not paused.")
    return FINE


@target_commands.command(help_epilogue="Example:\n  provgate target probe talkdesk-eu")
def probe(name: TargetName, /, *, access: Access = HERE) -> int:
    """Ask a worker to check the product now, and try again at once when its circuit is open."""
    answer = Api(access).post(f"/targets/{segment(name)}/probe", {})
    say(access, answer, f"{name}: {answer['message']}")
    return FINE if answer["ok"] else NOT_FINE
