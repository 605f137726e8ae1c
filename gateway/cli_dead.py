"""The commands `provgate dead` and `provgate held`: what waits for a person, and sending, giving up or approving it."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from gateway.cli_app import OnlyTarget, Reason, ResourceIds, dead_commands, held_commands
from gateway.cli_client import FINE, HERE, WRONG_USE, Access, Api, Failure, segment
from gateway.cli_moving import PAGE_MAX, REASON_ABOVE, chosen_of, move_all, these
from gateway.cli_printing import show


@dead_commands.command(
    name="list", help_epilogue="Examples:\n  provgate dead list\n  provgate dead list --cause unknown_role"
)
def dead_list(
    *,
    target: OnlyTarget = None,
    cause: Annotated[str | None, Parameter(help="Only this cause; shows the dead letters one by one.")] = None,
    limit: Annotated[int, Parameter(help=f"How many to list, at most {PAGE_MAX}.")] = 100,
    access: Access = HERE,
) -> int:
    """Dead letters, grouped by cause, with what to do about each."""
    answer = Api(access).get("/dead", target=target, cause=cause, limit=limit)
    _show_stuck(access, answer, cause, "dead letter", "No dead letters.")
    return FINE


@dead_commands.command(name="show", help_epilogue="Example:\n  provgate dead show 2819c223-7f76-453a-919d-413861904646")
def dead_show(
    id_: Annotated[str, Parameter(name="ID", help="Id of the resource.")], /, *, access: Access = HERE
) -> int:
    """One dead letter: both halves, every attempt, and why."""
    answer = Api(access).get(f"/resources/{segment(id_)}")
    show(access, answer, lambda terminal: terminal.resource(answer, answer["at"]))
    return FINE


@dead_commands.command(
    help_epilogue="Examples:\n  provgate dead redrive 2819c223-7f76-453a-919d-413861904646\n"
    "  provgate dead redrive --cause unknown_role --rate 5/s\n  provgate dead redrive --all --target sofa --dry-run"
)
def redrive(
    *ids: ResourceIds,
    cause: Annotated[
        str | None, Parameter(help="All of this cause, as `dead list` prints it, or its first word.")
    ] = None,
    everything: Annotated[bool, Parameter(name="--all", negative=(), help="All; together with --target.")] = False,
    target: OnlyTarget = None,
    rate: Annotated[str | None, Parameter(help="At most so many a second, e.g. 5/s.")] = None,
    dry_run: Annotated[bool, Parameter(negative=(), help="Only say what would be sent again.")] = False,
    reason: Annotated[str, Parameter(help=f"Why, for the record; required above {REASON_ABOVE}.")] = "",
    access: Access = HERE,
) -> int:
    """Send dead letters again, as a new generation of what Entra asked last."""
    api = Api(access)
    if everything and target is None:
        raise Failure("--all needs --target: name the target whose dead letters are to be sent again", WRONG_USE)
    chosen = chosen_of(api, "/dead", ids, cause=cause, everything=everything, target=target)
    return move_all(
        api, "/dead/redrive", chosen, rate=rate, dry_run=dry_run, reason=reason, did="sent again", what="dead letter"
    )


@dead_commands.command(
    help_epilogue='Example:\n  provgate dead discard 2819c223-7f76-453a-919d-413861904646 --reason "left the company"'
)
def discard(
    *ids: ResourceIds,
    reason: Reason,
    access: Access = HERE,
) -> int:
    """Give dead letters up: what SCIM shows stays the last confirmed state until Entra writes again."""
    if not reason.strip():
        raise Failure("--reason must say why", WRONG_USE)
    if not ids:
        raise Failure("name the resources to give up; see: provgate dead list", WRONG_USE)
    return move_all(Api(access), "/dead/discard", these(ids), reason=reason, did="given up", what="dead letter")


@held_commands.command(name="list", help_epilogue="Example:\n  provgate held list --target talkdesk-eu")
def held_list(
    *,
    target: OnlyTarget = None,
    cause: Annotated[str | None, Parameter(help="Only this kind of change; shows them one by one.")] = None,
    limit: Annotated[int, Parameter(help=f"How many to list, at most {PAGE_MAX}.")] = 100,
    access: Access = HERE,
) -> int:
    """Changes that wait for your approval because there were unusually many deletions or deactivations."""
    answer = Api(access).get("/held", target=target, cause=cause, limit=limit)
    _show_stuck(access, answer, cause, "held change", "Nothing is held.")
    return FINE


@held_commands.command(
    help_epilogue="Examples:\n  provgate held approve 2819c223-7f76-453a-919d-413861904646\n"
    '  provgate held approve --target talkdesk-eu --reason "announced by HR" --rate 2/s'
)
def approve(
    *ids: ResourceIds,
    target: Annotated[str | None, Parameter(help="Everything held of this target.")] = None,
    rate: Annotated[str | None, Parameter(help="At most so many a second, e.g. 5/s.")] = None,
    dry_run: Annotated[bool, Parameter(negative=(), help="Only say what would be let go.")] = False,
    reason: Annotated[str, Parameter(help=f"Why, for the record; required above {REASON_ABOVE}.")] = "",
    access: Access = HERE,
) -> int:
    """Let held changes go on."""
    api = Api(access)
    chosen = chosen_of(api, "/held", ids, cause=None, everything=target is not None, target=target)
    return move_all(
        api, "/held/approve", chosen, rate=rate, dry_run=dry_run, reason=reason, did="approved", what="held change"
    )


def _show_stuck(access: Access, answer: Any, cause: str | None, what: str, empty: str) -> None:
    def render(terminal: Any) -> Any:
        if cause is not None and answer["items"]:
            return terminal.several(
                [terminal.causes(answer, answer["at"], what=what, empty=empty), terminal.items(answer, answer["at"])]
            )
        return terminal.causes(answer, answer["at"], what=what, empty=empty)

    show(access, answer, render)
