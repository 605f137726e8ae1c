"""The command `provgate`: everything an operator does, over the operators' API, and the ways to start the processes.

Exit codes: 0 fine; 1 the answer is "not fine"; 2 used or configured wrongly; 3 the gateway, or for plans and reports a worker
or the product, cannot be reached; 4 refused.

Each command imports what it needs when it runs; help needs nothing but the parser.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from gateway.access import ACCESS_FILE
from schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

FINE, NOT_FINE, WRONG_USE, UNREACHABLE, REFUSED = 0, 1, 2, 3, 4
INTERRUPTED = 130
"""Ctrl-C in the middle of something, as shells count it."""

URL_VARIABLE = "PROVGATE_OPERATOR_URL"
TOKEN_VARIABLE = "PROVGATE_OPERATOR_TOKEN"  # noqa: S105 the name of a variable
DATA_FOLDER = "provgate-data"
CONFIG_FILE = "provgate.toml"

CALL_WAIT_S = 30.0
HAND_IN_WAIT_S = 120.0
"""Users that are handed in are normalized by a worker, which may have to load names for it, and is asked more than once."""
STREAM_SILENCE_MAX_S = 60.0
"""The API sends a sign of life more often than this; a stream that is silent for longer is dead."""
ANSWER_BYTES_MAX = 32 * 1024 * 1024
PAGE_MAX = 500
BATCH_MAX = 100
"""Changes moved by one call; more than one call shows a progress bar."""
BULK_MAX = 100_000
SKIPPED_SHOWN_MAX = 20
LOOK_EVERY_S = 0.3
USERS_PER_ORDER_MAX = 200
ORDER_CHARS_MAX = 200_000
"""Users handed in by one call: as many as the API takes, and well below the longest order."""
REASON_ABOVE = 100
"""Moving more than this at once needs a reason in words (security requirement S13)."""


class Failure(Exception):
    """The command ends here: a sentence for standard error, and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


# ---- options every operator command has


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Access:
    """Where the gateway is and how answers are printed."""

    url: Annotated[str | None, Parameter(help=f"Address of the operators' API; also {URL_VARIABLE}.")] = None
    token: Annotated[str | None, Parameter(help=f"Operator token; better in {TOKEN_VARIABLE} or a file.")] = None
    data: Annotated[Path | None, Parameter(help=f"Folder of a running gateway that holds {ACCESS_FILE}.")] = None
    config: Annotated[Path | None, Parameter(help=f"Configuration file; {ACCESS_FILE} is looked for beside it.")] = None
    as_json: Annotated[bool, Parameter(name="--json", negative=(), help="Answer in JSON, for machines.")] = False


HERE = Access()


def _default(value: Any) -> str | None:
    """What help says of an option that is left out; nothing where that means nothing."""
    return None if value in (None, False, "", ()) else str(value)


_app = App(
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
    _app.command(group)
    return group


_events = _group("events", "The live stream of events and outcomes.")
_dead = _group("dead", "Dead letters: list, look at, send again, give up.")
_held = _group("held", "Changes that a safety brake holds back: list, approve.")
_user = _group("user", "One person: what was asked, what became of it, what comes next.")
_key = _group("key", "Access keys for Entra: make, list, revoke.")
_client = _group("client", "Client secrets for Entra's OAuth client credentials: make, list, revoke.")
_mail = _group("mail", "Mails to operators: whether they get through, which there were, a test, another try.")
_auth = _group("auth", "Refused sign-ins: list, and why one was refused.")
_connector = _group(
    "connector", "Connectors: list, settings kept at a product; for authors: begin a new one, try its promises."
)
_notes = _group("notes", "What is noted about people and groups: who is not invited, what has no mapping.")
_target = _group("target", "Targets: list, look at, pause, resume, probe.")
_entra = _group("entra", "The emulated Entra: record what it sends, send a recording to another target.")


# ---- status and live events


@_app.command(
    help_epilogue="Examples:\n  provgate status\n  provgate status talkdesk-eu --json\n  provgate status --exit-code"
)
def status(
    target: Annotated[str | None, Parameter(help="Only this target.")] = None,
    /,
    *,
    exit_code: Annotated[bool, Parameter(negative=(), help="End with 1 when something is wrong.")] = False,
    access: Access = HERE,
) -> int:
    """Say in one sentence what is wrong, then how each target is, and what waits and why."""
    answer = Api(access).get("/status", target=target)
    _show(access, answer, lambda terminal: terminal.status(answer))
    return NOT_FINE if exit_code and not answer["fine"] else FINE


@_events.command(help_epilogue="Examples:\n  provgate events tail\n  provgate events tail --target talkdesk-eu --json")
def tail(
    *,
    target: Annotated[str | None, Parameter(help="Only this target.")] = None,
    count: Annotated[int | None, Parameter(help="End after so many; without it, with Ctrl-C.")] = None,
    access: Access = HERE,
) -> int:
    """Follow events and outcomes as they happen: ids and names of attributes, never values."""
    terminal = None if access.as_json else _terminal()
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


# ---- dead letters and held changes


@_dead.command(name="list", help_epilogue="Examples:\n  provgate dead list\n  provgate dead list --cause unknown_role")
def dead_list(
    *,
    target: Annotated[str | None, Parameter(help="Only this target.")] = None,
    cause: Annotated[str | None, Parameter(help="Only this cause; shows the dead letters one by one.")] = None,
    limit: Annotated[int, Parameter(help=f"How many to list, at most {PAGE_MAX}.")] = 100,
    access: Access = HERE,
) -> int:
    """Dead letters, grouped by cause, with what to do about each."""
    answer = Api(access).get("/dead", target=target, cause=cause, limit=limit)
    _show_stuck(access, answer, cause, "dead letter", "No dead letters.")
    return FINE


@_dead.command(name="show", help_epilogue="Example:\n  provgate dead show 2819c223-7f76-453a-919d-413861904646")
def dead_show(id_: Annotated[str, Parameter(help="Id of the resource.")], /, *, access: Access = HERE) -> int:
    """One dead letter: both halves, every attempt, and why."""
    answer = Api(access).get(f"/resources/{_segment(id_)}")
    _show(access, answer, lambda terminal: terminal.resource(answer, answer["at"]))
    return FINE


@_dead.command(
    help_epilogue="Examples:\n  provgate dead redrive 2819c223-7f76-453a-919d-413861904646\n"
    "  provgate dead redrive --cause unknown_role --rate 5/s\n  provgate dead redrive --all --target sofa --dry-run"
)
def redrive(
    *ids: Annotated[str, Parameter(help="Ids of resources.")],
    cause: Annotated[
        str | None, Parameter(help="All of this cause, as `dead list` prints it, or its first word.")
    ] = None,
    everything: Annotated[bool, Parameter(name="--all", negative=(), help="All; together with --target.")] = False,
    target: Annotated[str | None, Parameter(help="Only this target.")] = None,
    rate: Annotated[str | None, Parameter(help="At most so many a second, e.g. 5/s.")] = None,
    dry_run: Annotated[bool, Parameter(negative=(), help="Only say what would be sent again.")] = False,
    reason: Annotated[str, Parameter(help=f"Why, for the record; required above {REASON_ABOVE}.")] = "",
    access: Access = HERE,
) -> int:
    """Send dead letters again, as a new generation of what Entra asked last."""
    api = Api(access)
    if everything and target is None:
        raise Failure("--all needs --target: name the target whose dead letters are to be sent again", WRONG_USE)
    chosen = _chosen(api, "/dead", ids, cause=cause, everything=everything, target=target)
    return _move_all(
        api, "/dead/redrive", chosen, rate=rate, dry_run=dry_run, reason=reason, did="sent again", what="dead letter"
    )


@_dead.command(
    help_epilogue='Example:\n  provgate dead discard 2819c223-7f76-453a-919d-413861904646 --reason "left the company"'
)
def discard(
    *ids: Annotated[str, Parameter(help="Ids of resources.")],
    reason: Annotated[str, Parameter(help="Why, for the record.")],
    access: Access = HERE,
) -> int:
    """Give dead letters up: what SCIM shows stays the last confirmed state until Entra writes again."""
    if not reason.strip():
        raise Failure("--reason must say why", WRONG_USE)
    if not ids:
        raise Failure("name the resources to give up; see: provgate dead list", WRONG_USE)
    return _move_all(Api(access), "/dead/discard", _these(ids), reason=reason, did="given up", what="dead letter")


@_held.command(name="list", help_epilogue="Example:\n  provgate held list --target talkdesk-eu")
def held_list(
    *,
    target: Annotated[str | None, Parameter(help="Only this target.")] = None,
    cause: Annotated[str | None, Parameter(help="Only this kind of change; shows them one by one.")] = None,
    limit: Annotated[int, Parameter(help=f"How many to list, at most {PAGE_MAX}.")] = 100,
    access: Access = HERE,
) -> int:
    """Changes that wait for your approval because there were unusually many deletions or deactivations."""
    answer = Api(access).get("/held", target=target, cause=cause, limit=limit)
    _show_stuck(access, answer, cause, "held change", "Nothing is held.")
    return FINE


@_held.command(
    help_epilogue="Examples:\n  provgate held approve 2819c223-7f76-453a-919d-413861904646\n"
    '  provgate held approve --target talkdesk-eu --reason "announced by HR" --rate 2/s'
)
def approve(
    *ids: Annotated[str, Parameter(help="Ids of resources.")],
    target: Annotated[str | None, Parameter(help="Everything held of this target.")] = None,
    rate: Annotated[str | None, Parameter(help="At most so many a second, e.g. 5/s.")] = None,
    dry_run: Annotated[bool, Parameter(negative=(), help="Only say what would be let go.")] = False,
    reason: Annotated[str, Parameter(help=f"Why, for the record; required above {REASON_ABOVE}.")] = "",
    access: Access = HERE,
) -> int:
    """Let held changes go on."""
    api = Api(access)
    chosen = _chosen(api, "/held", ids, cause=None, everything=target is not None, target=target)
    return _move_all(
        api, "/held/approve", chosen, rate=rate, dry_run=dry_run, reason=reason, did="approved", what="held change"
    )


# ---- one person


@_user.command(
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

    _show(access, answer, render)
    return FINE


# ---- keys and targets


@_key.command(help_epilogue='Example:\n  provgate key new talkdesk-eu --days 365 --label "Entra, production"')
def new(
    target: Annotated[str, Parameter(help="Name of the target.")],
    /,
    *,
    days: Annotated[int, Parameter(help="How long it lives, 90 to 730 days.")] = 365,
    label: Annotated[str, Parameter(help="What you call it.")] = "",
    access: Access = HERE,
) -> int:
    """Make a key for Entra. It is shown this once; two may live at a time, so that one can be replaced without a gap."""
    answer = Api(access).post("/keys", {"target": target, "days": days, "label": label})
    _show(access, answer, lambda terminal: terminal.new_key(answer))
    return FINE


@_key.command(name="list", help_epilogue="Example:\n  provgate key list talkdesk-eu")
def key_list(
    target: Annotated[str | None, Parameter(help="Only this target.")] = None, /, *, access: Access = HERE
) -> int:
    """The keys, when they end and when they were last used."""
    answer = Api(access).get("/keys", target=target)
    _show(access, answer, lambda terminal: terminal.keys(answer, answer["at"]))
    return FINE


@_key.command(help_epilogue="Example:\n  provgate key revoke 4fGh2kQ9aB")
def revoke(
    id_: Annotated[str, Parameter(help="Id of the key, see: provgate key list")],
    /,
    *,
    reason: Annotated[str, Parameter(help="Why, for the record.")] = "",
    access: Access = HERE,
) -> int:
    """End a key now; it opens nothing any more within seconds."""
    answer = Api(access).post(f"/keys/{_segment(id_)}/revoke", {"reason": reason})
    _say(access, answer, f"Key {answer['id']} of {answer['target']} is revoked.")
    return FINE


@_client.command(
    name="new", help_epilogue='Example:\n  provgate client new talkdesk-eu --days 730 --label "Entra, production"'
)
def client_new(
    target: Annotated[str, Parameter(help="Name of the target.")],
    /,
    *,
    days: Annotated[int, Parameter(help="How long it lives, 90 to 1095 days.")] = 730,
    label: Annotated[str, Parameter(help="What you call it.")] = "",
    access: Access = HERE,
) -> int:
    """Make a client secret for Entra. It is shown this once; two may live at a time, so one can be replaced without a gap."""
    answer = Api(access).post("/clients", {"target": target, "days": days, "label": label})
    _show(access, answer, lambda terminal: terminal.new_client(answer))
    return FINE


@_client.command(name="list", help_epilogue="Example:\n  provgate client list talkdesk-eu")
def client_list(
    target: Annotated[str | None, Parameter(help="Only this target.")] = None, /, *, access: Access = HERE
) -> int:
    """The client secrets, when they end and when they were last used."""
    answer = Api(access).get("/clients", target=target)
    _show(access, answer, lambda terminal: terminal.clients(answer, answer["at"]))
    return FINE


@_client.command(name="revoke", help_epilogue="Example:\n  provgate client revoke 4fGh2kQ9aB")
def client_revoke(
    id_: Annotated[str, Parameter(help="Id of the client secret, see: provgate client list")],
    /,
    *,
    reason: Annotated[str, Parameter(help="Why, for the record.")] = "",
    access: Access = HERE,
) -> int:
    """End a client secret and all tokens bought with it; they open nothing any more within seconds."""
    answer = Api(access).post(f"/clients/{_segment(id_)}/revoke", {"reason": reason})
    _say(access, answer, f"Client secret {answer['id']} of {answer['target']} is revoked, and its tokens with it.")
    return FINE


@_auth.command(name="list", help_epilogue="Example:\n  provgate auth list --target talkdesk-eu")
def auth_list(
    *,
    target: Annotated[str | None, Parameter(help="Only this target; `unknown` for those that are none.")] = None,
    limit: Annotated[int, Parameter(help=f"How many to list, at most {PAGE_MAX}.")] = 20,
    access: Access = HERE,
) -> int:
    """The latest refused sign-ins."""
    answer = Api(access).get("/auth/refusals", target=target, limit=limit)
    _show(access, answer, lambda terminal: terminal.refusals(answer, answer["at"]))
    return FINE


@_auth.command(help_epilogue="Example:\n  provgate auth explain 5f0c6e1d9ab2c3d4")
def explain(
    id_: Annotated[str, Parameter(help="The id in the 401 that Entra shows.")], /, *, access: Access = HERE
) -> int:
    """Why a sign-in was refused: every check with what was expected and what came."""
    answer = Api(access).get(f"/auth/refusals/{_segment(id_)}")
    _show(access, answer, lambda terminal: terminal.refusal(answer, time.time()))
    return FINE


@_target.command(name="list", help_epilogue="Example:\n  provgate target list")
def target_list(*, access: Access = HERE) -> int:
    """All targets with their state."""
    answer = Api(access).get("/targets")
    _show(access, answer, lambda terminal: terminal.target_lines(answer["targets"], answer["at"]))
    return FINE


@_target.command(name="show", help_epilogue="Example:\n  provgate target show talkdesk-eu")
def target_show(name: Annotated[str, Parameter(help="Name of the target.")], /, *, access: Access = HERE) -> int:
    """One target: workers, circuit, counts, keys, what waits."""
    answer = Api(access).get(f"/targets/{_segment(name)}")
    _show(access, answer, lambda terminal: terminal.target(answer["target"], answer["at"]))
    return FINE


@_target.command(help_epilogue='Example:\n  provgate target pause talkdesk-eu --reason "maintenance at the product"')
def pause(
    name: Annotated[str, Parameter(help="Name of the target.")],
    /,
    *,
    reason: Annotated[str, Parameter(help="Why; shown in the status.")],
    access: Access = HERE,
) -> int:
    """Send nothing to a target until it is resumed. Entra is still answered; changes wait."""
    if not reason.strip():
        raise Failure("--reason must say why", WRONG_USE)
    answer = Api(access).post(f"/targets/{_segment(name)}/pause", {"reason": reason})
    _say(access, answer, f"{name} is paused. Changes wait and are not lost. Go on with: provgate target resume {name}")
    return FINE


@_target.command(help_epilogue="Example:\n  provgate target resume talkdesk-eu")
def resume(
    name: Annotated[str, Parameter(help="Name of the target.")],
    /,
    *,
    reason: Annotated[str, Parameter(help="Why, for the record.")] = "",
    access: Access = HERE,
) -> int:
    """Go on sending to a paused target."""
    answer = Api(access).post(f"/targets/{_segment(name)}/resume", {"reason": reason})
    _say(access, answer, f"{name} goes on." if answer["changed"] else f"{name} was not paused.")
    return FINE


@_target.command(help_epilogue="Example:\n  provgate target probe talkdesk-eu")
def probe(name: Annotated[str, Parameter(help="Name of the target.")], /, *, access: Access = HERE) -> int:
    """Ask a worker to check the product now, and try again at once when its circuit is open."""
    answer = Api(access).post(f"/targets/{_segment(name)}/probe", {})
    _say(access, answer, f"{name}: {answer['message']}")
    return FINE if answer["ok"] else NOT_FINE


# ---- plans and shadow mode


@_app.command(
    help_epilogue="Examples:\n  provgate plan talkdesk-eu ada@contoso.example\n"
    "  provgate plan talkdesk-eu ada@contoso.example --inactive\n"
    "  provgate plan sofa Sales --group --delete\n"
    "  provgate plan sofa --file user.json --json\n\n"
    "Exit codes: 0 it would go well, 1 it would be refused, 2 used wrongly or nobody of that name, "
    "3 the gateway, a worker or the product does not answer."
)
def plan(
    target: Annotated[str, Parameter(help="Name of the target.")],
    who: Annotated[
        str | None,
        Parameter(help="Any id of a stored user or group: resource id, userName, displayName, externalId."),
    ] = None,
    /,
    *,
    file: Annotated[Path | None, Parameter(help="A SCIM user or group in JSON, in place of a stored one.")] = None,
    group: Annotated[
        bool, Parameter(negative=(), help="Only a group is meant, where a user has the same name.")
    ] = False,
    delete: Annotated[bool, Parameter(negative=(), help="Plan the deletion.")] = False,
    inactive: Annotated[bool, Parameter(negative=(), help="Plan the deactivation of a user.")] = False,
    show_values: Annotated[bool, Parameter(negative=(), help="Do not mask values; this is recorded.")] = False,
    reason: Annotated[str, Parameter(help="Why values are shown, for the record.")] = "",
    access: Access = HERE,
) -> int:
    """Print the calls the product would get for one user or group, members included; nothing is written there."""
    if (who is None) == (file is None):
        raise Failure("name either a stored user or group, or a document with --file", WRONG_USE)
    if delete and inactive:
        raise Failure("--delete and --inactive exclude each other", WRONG_USE)
    order: dict[str, Any] = {
        "who": who,
        "group": group,
        "delete": delete,
        "inactive": inactive,
        "show_values": show_values,
        "reason": reason,
    }
    if file is not None:
        order["document"] = _document_in(file)
    with _spinning(access, "A worker rehearses it"):
        answer = Api(access).post(f"/targets/{_segment(target)}/plan", order)
    _show(access, answer, lambda terminal: terminal.plan(answer))
    return {"refuse": NOT_FINE, "unknown": UNREACHABLE}.get(answer["would"], FINE)


def _document_in(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as exc:
        raise Failure(f"{path} cannot be read: {exc.strerror}", WRONG_USE) from exc
    except ValueError as exc:
        raise Failure(f"{path} is not JSON: {exc}", WRONG_USE) from exc
    if not isinstance(document, dict):
        raise Failure(f"{path} must hold one SCIM user or group", WRONG_USE)
    return document


@_app.command(help_epilogue="Example:\n  provgate shadow talkdesk-eu")
def shadow(
    target: Annotated[str, Parameter(help="Name of the target.")],
    /,
    *,
    limit: Annotated[int, Parameter(help=f"How many changes to list, at most {PAGE_MAX}.")] = 50,
    access: Access = HERE,
) -> int:
    """What shadow mode has recorded for a target: every rehearsed change with the calls that were not sent, masked."""
    answer = Api(access).get(f"/targets/{_segment(target)}/shadow", limit=limit)
    _show(access, answer, lambda terminal: terminal.shadow(answer))
    return FINE


# ---- comparing products with Entra


@_app.command(
    name="match",
    help_epilogue="Examples:\n  provgate match bobs --file exportUsers.csv --csv report.csv\n"
    "  provgate match talkdesk-eu\n  provgate match telemessage --file users.json --map userName=mobilePhone --json\n\n"
    "Exit codes: 0 nothing collides, 1 there are conflicts or refusals, 2 used wrongly or a file that cannot be compared, "
    "3 the gateway, a worker or the product does not answer.",
)
def match_accounts(
    target: Annotated[str, Parameter(help="Name of the target.")],
    /,
    *,
    file: Annotated[
        Path | None, Parameter(help="Users exported from Entra, CSV or JSON; the stored ones without it.")
    ] = None,
    map_: Annotated[
        tuple[str, ...],
        Parameter(name="--map", negative=(), help="SCIM path=attribute in the export; may be repeated. userName=mail"),
    ] = (),
    csv: Annotated[Path | None, Parameter(help="Write all lines to this file.")] = None,
    first: Annotated[int, Parameter(help="How many lines of each class are shown.")] = 5,
    show_values: Annotated[bool, Parameter(negative=(), help="Do not mask user names; this is recorded.")] = False,
    access: Access = HERE,
) -> int:
    """Before the first cycle: who is there already, who would be made, what would collide, whom nobody in Entra is."""
    sources = dict(_pair(one) for one in map_)
    if file is not None and not file.is_file():
        raise Failure(f"{file} is no file; export the users from Entra first", WRONG_USE)
    if sources and file is None:
        raise Failure("--map says what a --file is; the stored users are mapped by Entra already", WRONG_USE)
    api = Api(access)
    begun = api.post(f"/targets/{_segment(target)}/match", {"handed_in": file is not None})
    path = f"/matches/{_segment(begun['id'])}"
    left_out = ""
    with _watching(access) as watch:
        if file is not None:
            left_out = _hand_in(api, path, begun, file, sources, watch)
            api.post(f"{path}/start", {})
        while (view := api.get(path))["state"] == "running":
            watch(view)
            time.sleep(LOOK_EVERY_S)
    if view["state"] != "done":
        raise Failure(f"no report: {view['message'].rstrip('.')}. Run it again when that is mended.", UNREACHABLE)
    if left_out:
        print(left_out, file=sys.stderr)
    shown = {"show_values": "true"} if show_values else {}

    def lines(class_: str | None = None, most: int | None = None) -> Iterator[Any]:
        return _pages(api, f"{path}/findings", class_=class_, most=most, **shown)

    _report(access, view, view["counts"], lines, csv, first, lambda terminal, some: terminal.match(view, some))
    return NOT_FINE if view["counts"].get("conflict") or view["counts"].get("refused") else FINE


def _hand_in(
    api: Api, path: str, begun: Any, file: Path, mapped: Mapping[str, str], watch: Callable[[Any], None]
) -> str:
    """Look through the whole file first, then hand its users in; what of it is not compared, for a person."""
    from gateway.report_files import UnreadableExport, examine, read_users

    def noticed(count: int) -> None:
        watch({"progress": {"stage": "reading the file", "users": count}})

    try:
        seen = examine(file, {**begun["sources"], **mapped}, {*begun["needed"], *mapped}, noticed)
        users = (user for place, user in enumerate(read_users(file)) if place not in seen.repeats)
        for batch in _batches(users):
            view = api.post(f"{path}/users", {"users": batch, "sources": mapped}, wait_s=HAND_IN_WAIT_S)
            watch({"progress": {**view["progress"], "stage": "users", "of": seen.users}})
    except UnreadableExport as exc:
        api.delete(path)
        raise Failure(str(exc), WRONG_USE) from exc
    except OSError as exc:
        api.delete(path)
        raise Failure(f"{file} cannot be read: {exc.strerror}", WRONG_USE) from exc
    said = []
    if seen.repeats:
        said.append(f"{_count(len(seen.repeats), 'line')} of {file.name} that only repeat another one left out.")
    if seen.absent:
        said.append(f"{file.name} has no column for {', '.join(seen.absent)}: not compared.")
    return "\n".join(said)


@_app.command(
    help_epilogue="Examples:\n  provgate reconcile talkdesk-eu\n  provgate reconcile talkdesk-eu --repair\n"
    '  provgate reconcile talkdesk-eu --repair --approve --reason "roles were renamed on purpose"\n'
    '  provgate reconcile talkdesk-eu --refuse --reason "the product is being migrated"\n'
    "  provgate reconcile talkdesk-eu --last --csv differences.csv\n  provgate reconcile talkdesk-eu --runs\n\n"
    "Ends with 0 when nothing differs or all of it was repaired, 1 when something differs, is held or failed, 2 for wrong use."
)
def reconcile(
    target: Annotated[str, Parameter(help="Name of the target.")],
    /,
    *,
    repair: Annotated[bool, Parameter(negative=(), help="Have what differs applied again.")] = False,
    approve: Annotated[bool, Parameter(negative=(), help="However many differ; with --repair and --reason.")] = False,
    refuse: Annotated[bool, Parameter(negative=(), help="Say no to a repair that is held; with --reason.")] = False,
    last: Annotated[bool, Parameter(negative=(), help="Only show the last report.")] = False,
    runs: Annotated[
        bool, Parameter(negative=(), help="Only list the last runs, and when the next one is due.")
    ] = False,
    csv: Annotated[Path | None, Parameter(help="Write all lines to this file.")] = None,
    first: Annotated[int, Parameter(help="How many lines of each class are shown.")] = 5,
    reason: Annotated[str, Parameter(help="Why, for the record.")] = "",
    access: Access = HERE,
) -> int:
    """Compare a product's accounts and groups with what was applied: missing, drifted, switched on by hand, double, unknown."""
    if sum((last, runs, refuse, repair)) > 1:
        raise Failure("--last and --runs show, --repair and --refuse act; name one of them", WRONG_USE)
    if refuse and not reason.strip():
        raise Failure("--refuse needs --reason TEXT", WRONG_USE)
    if approve and not (repair and reason.strip()):
        raise Failure("--approve goes with --repair, and needs --reason TEXT", WRONG_USE)
    api = Api(access)
    path = f"/targets/{_segment(target)}/reconcile"
    if runs:
        _show(access, seen := api.get(f"{path}/runs"), lambda terminal: terminal.runs(seen))
        return FINE
    if refuse:
        view = api.post(f"{path}/refuse", {"reason": reason})
    elif last:
        view = api.get(path)
    else:
        run = api.post(path, {"repair": repair, "approve": approve, "reason": reason})
        with _watching(access) as watch:
            while (view := api.get(path, run_id=run["run_id"]))["running"] and view["run_id"] == run["run_id"]:
                watch(view)
                time.sleep(LOOK_EVERY_S)
    report = view["report"]
    if report is None:
        raise Failure(f"{target} was never compared; begin with: provgate reconcile {target}", NOT_FINE)

    def lines(class_: str | None = None, most: int | None = None) -> Iterator[Any]:
        return _pages(api, f"{path}/findings", class_=class_, most=most)

    at = view["at"]
    _report(
        access, view, report["counts"], lines, csv, first, lambda terminal, some: terminal.reconciled(report, some, at)
    )
    return FINE if report["state"] in ("good", "repaired") else NOT_FINE


@_notes.command(
    name="list",
    help_epilogue="Examples:\n  provgate notes list bobs\n"
    "  provgate notes list bobs --code not_invited --show-values --csv uninvited.csv\n"
    "  provgate notes list sofa --code no_mapping --json",
)
def notes_list(
    target: Annotated[str, Parameter(help="Name of the target.")],
    /,
    *,
    code: Annotated[str | None, Parameter(help="Only notes of this kind.")] = None,
    csv: Annotated[Path | None, Parameter(help="Write all lines to this file.")] = None,
    first: Annotated[int, Parameter(help="How many lines of each kind are shown.")] = 20,
    show_values: Annotated[bool, Parameter(negative=(), help="Do not mask user names; this is recorded.")] = False,
    access: Access = HERE,
) -> int:
    """What deliveries noted about people and groups that are applied, e.g. who is provisioned and not invited."""
    api, path = Api(access), f"/targets/{_segment(target)}/notes"
    view = api.get(path)
    if code is not None:
        kinds = [kind for kind in view["kinds"] if kind["code"] == code]
        if not kinds:
            known = ", ".join(kind["code"] for kind in view["kinds"]) or "none"
            raise Failure(f"{target} has no notes of the kind {code}; there are: {known}", WRONG_USE)
        view = {**view, "kinds": kinds, "counts": {code: kinds[0]["count"]}}
    shown = {"show_values": "true"} if show_values else {}

    def lines(class_: str | None = None, most: int | None = None) -> Iterator[Any]:
        for kind in [class_] if class_ is not None else view["counts"]:
            yield from _pages(api, f"{path}/findings", class_=kind, most=most, **shown)

    _report(access, view, view["counts"], lines, csv, first, lambda terminal, some: terminal.notes(view, some))
    return FINE


@_notes.command(
    name="done",
    help_epilogue="Examples:\n  provgate notes done bobs not_invited 2819c223-7f76-453a-919d-413861904646\n"
    '  provgate notes done bobs not_invited --all --reason "invited on the platform, ticket 4711"',
)
def notes_done(
    target: Annotated[str, Parameter(help="Name of the target.")],
    code: Annotated[str, Parameter(help="Kind of note, as listed.")],
    /,
    *ids: Annotated[str, Parameter(help="Ids of resources, as listed.")],
    everything: Annotated[bool, Parameter(name="--all", negative=(), help="All that have this note.")] = False,
    reason: Annotated[str, Parameter(help="What was done, for the record.")] = "",
    access: Access = HERE,
) -> int:
    """You have dealt with these outside, e.g. sent the invitations: they leave the list, and no delivery does it again."""
    if bool(ids) == everything:
        raise Failure("name either ids or --all", WRONG_USE)
    api, path = Api(access), f"/targets/{_segment(target)}/notes"
    total = api.get(path)["counts"].get(code, 0)

    def pages() -> Iterator[Sequence[str]]:
        yield [line["resource"] for line in _pages(api, f"{path}/findings", class_=code, most=BULK_MAX)]

    chosen = Choice(total, pages()) if everything else _these(ids)
    return _move_all(api, f"{path}/{_segment(code)}/done", chosen, reason=reason, did="marked as done", what="note")


def _pair(text: str) -> tuple[str, str]:
    path, equals, source = text.rpartition("=")
    if not equals or not path or not source:
        raise Failure(f"--map {text}: write SCIM path=attribute, e.g. userName=mail", WRONG_USE)
    return path, source


def _batches(users: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Users in orders that are neither too many nor too long."""
    batch: list[dict[str, Any]] = []
    size = 0
    for user in users:
        length = len(json.dumps(user))
        if batch and (len(batch) >= USERS_PER_ORDER_MAX or size + length > ORDER_CHARS_MAX):
            yield batch
            batch, size = [], 0
        batch.append(user)
        size += length
    if batch:
        yield batch


def _pages(api: Api, path: str, *, class_: str | None, most: int | None, **more: Any) -> Iterator[Any]:
    """Lines of a report, a page at a time."""
    after, left = 0, most
    while left is None or left > 0:
        limit = PAGE_MAX if left is None else min(PAGE_MAX, left)
        found = api.get(path, class_=class_, after=after, limit=limit, **more)["findings"]
        yield from found
        if len(found) < limit:
            return
        after = found[-1]["n"]
        left = None if left is None else left - len(found)


def _report(
    access: Access,
    view: Any,
    counts: Mapping[str, int],
    lines: Callable[..., Iterator[Any]],
    csv: Path | None,
    first: int,
    render: Callable[[Any, Sequence[Any]], Any],
) -> None:
    """Print a report: all of it as JSON, line by line, or a table of the first lines; and write all of it to a file."""
    from gateway.report_files import write_csv

    if csv is not None:
        try:
            written = write_csv(csv, lines())
        except OSError as exc:
            raise Failure(f"{csv} cannot be written: {exc.strerror}", WRONG_USE) from exc
    if access.as_json:
        head = json.dumps(view, ensure_ascii=False)
        sys.stdout.write(f'{head[:-1]}, "findings": [')
        for number, line in enumerate(lines()):
            sys.stdout.write(("," if number else "") + "\n" + json.dumps(line, ensure_ascii=False))
        print("]}")
        return
    some = [line for class_ in counts for line in (lines(class_, first) if first > 0 else ())]
    _show(access, view, lambda terminal: render(terminal, some))
    if csv is not None:
        print(f"\n{_count(written, 'line')} written to {csv}.")


def _seen(progress: Mapping[str, Any]) -> str:
    """How far a comparison is, for its bar."""
    parts = [f"{progress.get('accounts', 0):,} accounts", f"{progress.get('users', 0):,} users"]
    parts += [f"{progress[name]:,} {name}" for name in ("groups", "members") if progress.get(name)]
    return ", ".join(parts)


@contextmanager
def _watching(access: Access) -> Iterator[Callable[[Any], None]]:
    """A bar on standard error that follows the `progress` of the answers it is given."""
    if access.as_json:
        yield lambda view: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[seen]}"), TimeElapsedColumn())
    console = _terminal().console(stderr=True)
    waited = ""
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None, seen="")

        def watch(view: Any) -> None:
            nonlocal waited
            progress = view.get("progress") or {}
            if progress.get("waiting", "") not in ("", waited):
                waited = progress["waiting"]
                console.print(_terminal().plain(waited, "yellow"))
            done = progress.get("users", 0)
            bar.update(
                task,
                description=progress.get("stage", ""),
                completed=done,
                total=progress.get("of") or None,
                seen=_seen(progress),
            )

        yield watch


# ---- mails to operators


@_mail.command(name="status", help_epilogue="Examples:\n  provgate mail status\n  provgate mail status --json")
def mail_status(*, access: Access = HERE) -> int:
    """Say whether mails get through, by which server, and who is told about what; ends with 1 when they do not."""
    answer = Api(access).get("/mail")
    _show(access, answer, lambda terminal: terminal.mail_status(answer))
    return FINE if answer["configured"] and answer["health"]["fine"] else NOT_FINE


@_mail.command(name="list", help_epilogue="Examples:\n  provgate mail list\n  provgate mail list --state failed --json")
def mail_list(
    *,
    state: Annotated[str | None, Parameter(help="Only those: waiting, sent or failed.")] = None,
    limit: Annotated[int, Parameter(help=f"How many to list, at most {PAGE_MAX}.")] = 50,
    access: Access = HERE,
) -> int:
    """The newest mails: what waits in the outbox, what was sent in the last 30 days, what was given up and why."""
    answer = Api(access).get("/mail/list", in_state=state, limit=limit)
    _show(access, answer, lambda terminal: terminal.mails(answer))
    return FINE


@_mail.command(name="test", help_epilogue="Examples:\n  provgate mail test\n  provgate mail test --to ops@example.com")
def mail_test(
    *,
    to: Annotated[str, Parameter(help="Only to this address; without it, to everybody who is told anything.")] = "",
    access: Access = HERE,
) -> int:
    """Send a test mail now, and print what the mail server says to it; this is recorded."""
    api = Api(access)
    with _spinning(access, "Talking to the mail server"):
        answer = api.post("/mail/test", {"to": to})
    _show(access, answer, lambda terminal: terminal.mail_tested(answer))
    return FINE if answer["fine"] else NOT_FINE


@_mail.command(name="retry", help_epilogue="Example:\n  provgate mail retry")
def mail_retry(*, reason: Annotated[str, Parameter(help="Why, for the record.")] = "", access: Access = HERE) -> int:
    """Try every mail again that was given up, e.g. after an address was corrected at the mail server."""
    answer = Api(access).post("/mail/retry", {"reason": reason})
    _say(access, answer, f"{_count(answer['retried'], 'mail')} will be tried again.")
    return FINE


# ---- checking


@_app.command(help_epilogue="Examples:\n  provgate check\n  provgate check --config /etc/provgate/provgate.toml --json")
def check(
    *,
    config: Annotated[Path, Parameter(help="The configuration file.")] = Path(CONFIG_FILE),
    as_json: Annotated[bool, Parameter(name="--json", negative=(), help="Answer in JSON, for machines.")] = False,
) -> int:
    """Check everything before it is needed: the file, the products' settings and credentials, NATS, the store, the keys."""
    from msgspec.structs import asdict

    from gateway.checks import run_checks

    found = [asdict(finding) for finding in run_checks(config)]
    errors = sum(finding["level"] == "error" for finding in found)
    if as_json:
        print(json.dumps({"ok": not errors, "findings": found}, ensure_ascii=False))
    else:
        terminal = _terminal()
        out = terminal.console()
        out.print(terminal.findings(found))
        out.print(f"\n{terminal.counted(errors, 'error')}." if errors else "\nNothing is wrong.")
    return NOT_FINE if errors else FINE


# ---- the processes
#
# One console script starts them all, although the gateway may import neither the workers nor what deploys them: hence by name,
# and only when such a command runs.


@_app.command(help_epilogue="Example:\n  provgate up --config provgate.toml")
def up(*, config: Annotated[Path, Parameter(help="The configuration file.")] = Path(CONFIG_FILE)) -> int:
    """Run everything on this machine: gateway, workers and, when the file says so, a nats-server. Ends with Ctrl-C."""
    return _started(importlib.import_module("deploy.local").up(config=_existing(config)))


@_app.command(
    help_epilogue="Examples:\n  provgate demo\n  provgate demo --port 9000 --data ./demo --ready-file ready.json --no-cycle"
)
def demo(
    *,
    port: Annotated[int, Parameter(help="Port of the Tenant URLs; 0 takes a free one.")] = 8080,
    data: Annotated[Path | None, Parameter(help="Folder for the data; a temporary one without it.")] = None,
    ready_file: Annotated[Path | None, Parameter(help="Written as JSON when everything answers.")] = None,
    cycle: Annotated[bool, Parameter(help="Run a provisioning cycle of the emulated Entra.")] = True,
) -> int:
    """Run everything with emulated products and an emulated Entra. Ends with Ctrl-C."""
    run = importlib.import_module("deploy.demo").demo
    return _started(run(port=port, data=data, ready_file=ready_file, cycle=cycle))


@_app.command(help_epilogue="Example:\n  provgate gateway --config provgate.toml")
def gateway(*, config: Annotated[Path, Parameter(help="The configuration file.")] = Path(CONFIG_FILE)) -> int:
    """Run a gateway: SCIM for Entra, the store, the dispatcher, the operators' API."""
    path = _existing(config)
    from gateway.keys import KeyProblem
    from gateway.writer import StoreError

    try:
        return _started(importlib.import_module("gateway.__main__").run(config=path, pretty=sys.stderr.isatty()))
    except (KeyProblem, StoreError) as exc:  # both say what is wrong and what to do, and name no secret
        raise Failure(str(exc), WRONG_USE) from exc


@_app.command(
    help_epilogue="Examples:\n  provgate worker\n  provgate worker --config provgate.toml --target talkdesk-eu"
)
def worker(
    *,
    config: Annotated[Path, Parameter(help="The configuration file.")] = Path(CONFIG_FILE),
    target: Annotated[tuple[str, ...], Parameter(negative=(), help="Serve only this; may be repeated.")] = (),
) -> int:
    """Run a worker: it applies events to the products it serves."""
    # in place of this process: signals go to the worker itself, and nothing of the gateway stays in its memory
    os.execv(sys.executable, [sys.executable, "-m", "workers", "--config", str(_existing(config)), *target])  # noqa: S606


# ---- the emulated Entra


@_entra.command(
    help_epilogue="Examples:\n"
    "  provgate entra record cycle.jsonl --tenant-url http://127.0.0.1:8080/scim/v2/observe --token-file key\n"
    "  provgate entra record cycle.jsonl --tenant-url ... --token-file key --mapping talkdesk --people 100 --dialect flag"
)
def record(
    file: Annotated[Path, Parameter(help="JSON lines; must not exist. Holds the emulated people, and no credentials.")],
    /,
    *,
    tenant_url: Annotated[str, Parameter(help="The target's SCIM address.")],
    token_file: Annotated[Path, Parameter(help="File with the target's key, or with the client secret.")],
    mapping: Annotated[str, Parameter(help="observe, telemessage or talkdesk.")] = "observe",
    people: Annotated[int, Parameter(help="How many people the directory has.")] = 20,
    groups: Annotated[int | None, Parameter(help="How many groups; two for observe, none for the others.")] = None,
    dialect: Annotated[str, Parameter(help="Form of PATCH: legacy or flag.")] = "legacy",
    changes: Annotated[bool, Parameter(help="After the initial cycle, cycles with every kind of change.")] = True,
    seed: Annotated[int, Parameter(help="Decides who the people are.")] = 1,
    token_endpoint: Annotated[str | None, Parameter(help="Sign in with OAuth client credentials there.")] = None,
    client_id: Annotated[str, Parameter(help="Client identifier for the token endpoint.")] = "",
    as_json: Annotated[bool, Parameter(name="--json", negative=(), help="Answer in JSON, for machines.")] = False,
) -> int:
    """Run provisioning cycles of the emulated Entra against a target, and record every request with its answer."""
    if dialect not in ("legacy", "flag"):
        raise Failure(f"--dialect {dialect}: must be legacy or flag", WRONG_USE)
    return _started(
        importlib.import_module("deploy.recordings").record(
            file,
            tenant_url=tenant_url,
            token_file=token_file,
            mapping=mapping,
            people=people,
            groups=groups,
            dialect=dialect,
            changes=changes,
            seed=seed,
            token_endpoint=token_endpoint,
            client_id=client_id,
            as_json=as_json,
        )
    )


@_entra.command(
    help_epilogue="Examples:\n"
    "  provgate entra replay cycle.jsonl --tenant-url http://127.0.0.1:8080/scim/v2/observe-2 --token-file key\n"
    "  provgate entra replay cycle.jsonl --tenant-url ... --token-file key --rate 25/s --json"
)
def replay(
    file: Annotated[Path, Parameter(help="A recording, made by: provgate entra record")],
    /,
    *,
    tenant_url: Annotated[str, Parameter(help="The SCIM address to send it to; best one that holds nothing yet.")],
    token_file: Annotated[Path, Parameter(help="File with that target's key.")],
    rate: Annotated[str | None, Parameter(help="At most so many requests a second, e.g. 25/s.")] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), help="Answer in JSON, for machines.")] = False,
) -> int:
    """Send a recording to another target and show where its answers differ, apart from ids, times and versions."""
    per_s = _rate(rate)
    run = importlib.import_module("deploy.recordings").replay_file
    return _started(run(file, tenant_url=tenant_url, token_file=token_file, rate=per_s, as_json=as_json))


def _existing(config: Path) -> Path:
    if not config.is_file():
        raise Failure(f"{config} is no file; name the configuration file with --config", WRONG_USE)
    return config


def _started(result: Any) -> int:
    return result if isinstance(result, int) else FINE


# ---- connectors, for their authors


def _kit() -> Any:
    """The authors' kit; it belongs to the connectors, which the gateway does not know."""
    return importlib.import_module("connectors.testing.command")


AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Answer in JSON, for machines.")]


@_connector.command(name="list", help_epilogue="Example:\n  provgate connector list")
def connector_list(*, as_json: AsJson = False) -> int:
    """Every connector that can be named in a configuration."""
    return _started(_kit().listed(as_json=as_json))


@_connector.command(
    name="new",
    help_epilogue="Examples:\n  provgate connector new toy\n  provgate connector new toy --folder ./provgate-toy",
)
def connector_new(
    name: Annotated[str, Parameter(help="What configurations will call it.")],
    /,
    *,
    folder: Annotated[Path | None, Parameter(help="Begin a package of its own there, found by entry points.")] = None,
    as_json: AsJson = False,
) -> int:
    """Write a connector, an emulator, a test and a page of notes that already pass."""
    return _started(_kit().new(name, folder=folder, as_json=as_json))


@_connector.command(
    name="test",
    help_epilogue="Examples:\n  provgate connector test talkdesk\n  provgate connector test toy lost_answer rename\n"
    "  provgate connector test toy --json",
)
def connector_test(
    name: Annotated[str, Parameter(help="The connector, see: provgate connector list")],
    /,
    *promises: Annotated[str, Parameter(help="Only these promises; without any, all of them.")],
    as_json: AsJson = False,
) -> int:
    """Try every promise of a connector against its emulated product, which misbehaves. Ends with 1 when one is broken."""
    from schemas import logs

    kit = _kit()
    logs.configure("connector test", level="debug", stream=kit.PresentStderr())
    with logs.at_level("warning"):  # the table says what happened; calls one by one would bury it
        return _started(kit.try_connector(name, promises, as_json=as_json))


@_connector.command(
    name="emulate",
    help_epilogue="Examples:\n  provgate connector emulate toy\n  provgate connector emulate toy --port 18090 > toy.toml",
)
def connector_emulate(
    name: Annotated[str, Parameter(help="The connector, see: provgate connector list")],
    /,
    *,
    port: Annotated[int, Parameter(help="Where it answers; 0 takes a free one.")] = 0,
) -> int:
    """Keep a connector's emulated product running on this machine, and print a target for the configuration file.

    For authors who want to see their connector under a gateway. Ends with Ctrl-C; what the product held is forgotten.
    """
    return _started(_kit().emulate(name, port=port))


@_connector.command(
    help_epilogue="Examples:\n  provgate connector configure babelforce\n"
    '  provgate connector configure babelforce --write --yes --reason "first setup"'
)
def configure(
    target: Annotated[str, Parameter(help="Name of the target.")],
    /,
    *,
    write: Annotated[bool, Parameter(negative=(), help="Write what differs, after showing it and asking.")] = False,
    yes: Annotated[bool, Parameter(negative=(), help="Do not ask.")] = False,
    reason: Annotated[str, Parameter(help="Why, for the record.")] = "",
    access: Access = HERE,
) -> int:
    """Settings that a product keeps and only its interface can change: show what differs from what is needed, or write it.

    A worker reads them with the target's credential. Ends with 1 when something differs (still).
    """
    api, path = Api(access), f"/targets/{_segment(target)}/configuration"
    asks = write and not yes
    if asks and (access.as_json or not sys.stdin.isatty()):
        raise Failure("--write asks before it writes; where nobody can answer, say --yes", WRONG_USE)
    with _spinning(access, "A worker reads them"):
        answer = api.get(path)
    if not write or answer["fine"]:
        _show(access, answer, lambda terminal: terminal.configuration(answer))
        return FINE if answer["fine"] else NOT_FINE
    if not access.as_json:
        _show(access, answer, lambda terminal: terminal.configuration(answer, writing=True))
    if asks and input(f"Write these settings at {answer['product']}? [y/N] ").strip().casefold() not in ("y", "yes"):
        print("Nothing was written.")
        return NOT_FINE
    with _spinning(access, "A worker writes them"):
        written = api.post(path, {"version": answer["version"], "reason": reason})
    _show(access, written, lambda terminal: terminal.configuration(written))
    return FINE if written["fine"] else NOT_FINE


# ---- choosing and moving many


@dataclass(frozen=True)
class Choice:
    """The resources a command is about: how many there are, and their ids page by page.

    The next page is asked for when the one before was moved; what was on a page once never comes again, so a resource that fails
    again meanwhile is not moved twice.
    """

    total: int
    pages: Iterator[Sequence[str]]


def _chosen(
    api: Api, path: str, ids: Sequence[str], *, cause: str | None, everything: bool, target: str | None
) -> Choice:
    if ids:
        if cause or everything:
            raise Failure("name either ids or a selection (--cause, --all, --target), not both", WRONG_USE)
        return _these(ids)
    if not cause and not everything:
        raise Failure("say which: ids, --cause, or --target", WRONG_USE)
    first = api.get(path, target=target, cause=cause, limit=PAGE_MAX)

    def pages() -> Iterator[Sequence[str]]:
        seen: set[str] = set()
        page = first
        while len(seen) < BULK_MAX:
            fresh = [item["id"] for item in page["items"] if item["id"] not in seen]
            if not fresh:
                return
            seen.update(fresh)
            yield fresh
            page = api.get(path, target=target, cause=cause, limit=PAGE_MAX)

    return Choice(first["total"], pages())


def _these(ids: Sequence[str]) -> Choice:
    unique = list(dict.fromkeys(ids))
    return Choice(len(unique), iter([unique]))


def _move_all(
    api: Api,
    path: str,
    chosen: Choice,
    *,
    reason: str,
    did: str,
    what: str,
    rate: str | None = None,
    dry_run: bool = False,
) -> int:
    """Move resources in batches, at most `rate` a second; not all moved = the answer is "not fine"."""
    per_s = _rate(rate)
    if dry_run:
        ids = list(next(chosen.pages, ()))
        text = f"{_count(chosen.total, what)} would be {did}."
        _say(api.access, {"dry_run": True, "total": chosen.total, "ids": ids}, text)
        return FINE
    if chosen.total > REASON_ABOVE and not reason.strip():
        raise Failure(f"{chosen.total} at once need a reason, for the record: --reason TEXT", WRONG_USE)
    done: list[str] = []
    skipped: list[dict[str, str]] = []
    size = BATCH_MAX if per_s is None else max(1, min(BATCH_MAX, math.floor(per_s)))
    with _progress(api.access, chosen.total, size) as advance:
        free_at = 0.0
        for page in chosen.pages:
            for at in range(0, len(page), size):
                batch = list(page[at : at + size])
                time.sleep(max(0.0, free_at - time.monotonic()))
                free_at = time.monotonic() + (len(batch) / per_s if per_s else 0.0)
                answer = api.post(path, {"ids": batch, "reason": reason})
                done += answer["done"]
                skipped += answer["skipped"]
                advance(len(batch))
    text = f"{_count(len(done), what)} {did}."
    for entry in skipped[:SKIPPED_SHOWN_MAX]:
        text += f"\nNot {did}: {entry['id']}: {entry['why']}"
    if len(skipped) > SKIPPED_SHOWN_MAX:
        text += f"\nNot {did}: {len(skipped) - SKIPPED_SHOWN_MAX:,} more; --json names them all"
    _say(api.access, {"done": done, "skipped": skipped}, text)
    return NOT_FINE if skipped else FINE


@contextmanager
def _progress(access: Access, total: int, size: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error when there is more than one batch to move."""
    if total <= size or access.as_json:
        yield lambda count: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_terminal().console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _spinning(access: Access, text: str) -> Iterator[None]:
    """A sign of life on standard error while one answer takes its time; only for people."""
    if access.as_json or not sys.stderr.isatty():
        yield
        return
    with _terminal().console(stderr=True).status(f"{text}…"):
        yield


def _rate(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        per_s = float(text.removesuffix("/s"))
    except ValueError:
        per_s = math.nan
    if not 0.01 <= per_s <= 10_000:
        raise Failure(f"--rate {text}: must be a number a second, such as 5/s", WRONG_USE)
    return per_s


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


# ---- printing


def _terminal() -> Any:
    """The module that draws tables; it brings rich, which is not needed for JSON."""
    return importlib.import_module("gateway.terminal")


def _show(access: Access, answer: Any, render: Callable[[Any], Any]) -> None:
    if access.as_json:
        print(json.dumps(answer, ensure_ascii=False))
        return
    terminal = _terminal()
    terminal.console().print(render(terminal))


def _show_stuck(access: Access, answer: Any, cause: str | None, what: str, empty: str) -> None:
    def render(terminal: Any) -> Any:
        if cause is not None and answer["items"]:
            return terminal.several(
                [terminal.causes(answer, answer["at"], what=what, empty=empty), terminal.items(answer, answer["at"])]
            )
        return terminal.causes(answer, answer["at"], what=what, empty=empty)

    _show(access, answer, render)


def _say(access: Access, answer: Any, text: str) -> None:
    print(json.dumps(answer, ensure_ascii=False) if access.as_json else text)


# ---- the way to the gateway


def _read_access_file(path: Path) -> tuple[str, str] | None:
    try:
        if path.stat().st_mode & 0o077:
            raise Failure(f"{path} is accessible to others; chmod 600 it", WRONG_USE)
        held = json.loads(path.read_text(encoding="utf-8"))
        return str(held["url"]), str(held["token"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise Failure(
            f"{path} cannot be used: {type(exc).__name__}; start the gateway anew to get a fresh one", WRONG_USE
        ) from exc


def _resolve(access: Access) -> tuple[str, str]:
    """Address and token: from the options, the named folder or file, the environment, or what lies nearby."""
    url = access.url or os.environ.get(URL_VARIABLE)
    token = access.token or os.environ.get(TOKEN_VARIABLE)
    named = access.data is not None or access.config is not None
    if not named and url and token:
        return url, token
    for path in _access_files(access):
        held = _read_access_file(path)
        if held is not None and (access.url is None or access.url.rstrip("/") == held[0].rstrip("/")):
            return held[0], access.token or held[1]
    config = access.config or (Path(CONFIG_FILE) if Path(CONFIG_FILE).is_file() else None)
    if config is not None and not (url and token):
        from_file = _from_config(config)
        url, token = url or from_file[0], token or from_file[1]
    if not token:
        raise Failure(
            f"no operator token: set {TOKEN_VARIABLE}, or name the gateway's folder with --data "
            f"(`provgate up` and `provgate demo` leave {ACCESS_FILE} there)",
            WRONG_USE,
        )
    return url or "http://127.0.0.1:8081", token


def _access_files(access: Access) -> list[Path]:
    if access.data is not None:
        return [access.data / ACCESS_FILE]
    if access.config is not None:
        return [access.config.parent / ACCESS_FILE, access.config.parent / DATA_FOLDER / ACCESS_FILE]
    return [Path(DATA_FOLDER) / ACCESS_FILE, Path(ACCESS_FILE)]


def _from_config(path: Path) -> tuple[str | None, str | None]:
    from gateway.checks import revealed
    from schemas.config import load

    settings = load(path).gateway
    token = revealed(settings.operator_token, path.resolve().parent) if settings.operator_token else None
    host = "127.0.0.1" if settings.operator_host in ("0.0.0.0", "::") else settings.operator_host  # noqa: S104 compared only
    return f"http://{host}:{settings.operator_port}", token


def _segment(text: str) -> str:
    from urllib.parse import quote

    if not text or text in (".", ".."):
        raise Failure("an id must not be empty", WRONG_USE)
    return quote(text, safe="")


class Api:
    """The operators' API of one gateway. Every method ends the command with a sentence when it cannot have its answer."""

    def __init__(self, access: Access) -> None:
        from urllib.parse import urlsplit

        self.access = access
        self.url, self._token = _resolve(access)
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Failure(f"{self.url}: the address of the operators' API looks like http://127.0.0.1:8081", WRONG_USE)
        if not self._token.isascii() or not self._token.isprintable():
            raise Failure("the operator token holds characters that no token has", WRONG_USE)
        self._https = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/")

    def get(self, path: str, **params: Any) -> Any:
        """The answer to a question."""
        return self._call("GET", path, params, None)

    def post(self, path: str, body: Mapping[str, Any], *, wait_s: float = CALL_WAIT_S) -> Any:
        """The answer to an order."""
        return self._call("POST", path, {}, body, wait_s)

    def delete(self, path: str) -> None:
        """Have something forgotten."""
        connection, _ = self._open("DELETE", path, {}, None, CALL_WAIT_S)
        connection.close()

    def stream(self, path: str, **params: Any) -> Iterator[Any]:
        """The documents of a Server-Sent Events stream, until it ends."""
        connection, response = self._open("GET", path, params, None, STREAM_SILENCE_MAX_S)
        try:
            data: list[str] = []
            for raw in self._lines(response):
                line = raw.decode("utf-8", errors="replace").rstrip("\r\n")
                if line.startswith("data:"):
                    data.append(line[5:].lstrip())
                elif not line and data:
                    yield json.loads("\n".join(data))
                    data = []
        finally:
            connection.close()

    def _lines(self, response: HTTPResponse) -> Iterator[bytes]:
        from http.client import HTTPException

        try:
            while line := response.readline(ANSWER_BYTES_MAX):
                yield line
        except (OSError, HTTPException) as exc:
            raise self._away(exc) from exc

    def _call(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any],
        body: Mapping[str, Any] | None,
        wait_s: float = CALL_WAIT_S,
    ) -> Any:
        from http.client import HTTPException

        connection, response = self._open(method, path, params, body, wait_s)
        try:
            return json.loads(response.read(ANSWER_BYTES_MAX))
        except (OSError, HTTPException) as exc:
            raise self._away(exc) from exc
        except ValueError as exc:
            raise Failure(f"{self.url} answers, but not as an operators' API does", UNREACHABLE) from exc
        finally:
            connection.close()

    def _open(
        self, method: str, path: str, params: Mapping[str, Any], body: Mapping[str, Any] | None, wait_s: float
    ) -> tuple[HTTPConnection, HTTPResponse]:
        from http.client import HTTPConnection, HTTPException, HTTPSConnection
        from urllib.parse import urlencode

        query = urlencode({name: value for name, value in params.items() if value is not None})
        kind = HTTPSConnection if self._https else HTTPConnection
        connection = kind(self._host, self._port, timeout=wait_s)
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json, text/event-stream"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            target = f"{self._prefix}/api/v1{path}" + (f"?{query}" if query else "")
            connection.request(method, target, None if body is None else json.dumps(body).encode(), headers)
            response = connection.getresponse()
        except (OSError, HTTPException) as exc:
            connection.close()
            raise self._away(exc) from exc
        if response.status >= 400:
            try:
                raise self._refused(response)
            finally:
                connection.close()
        return connection, response

    def _away(self, exc: Exception) -> Failure:
        why = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        return Failure(
            f"the gateway at {self.url} cannot be reached ({why}); is it running? See: provgate up --help", UNREACHABLE
        )

    def _refused(self, response: HTTPResponse) -> Failure:
        try:
            said = str(json.loads(response.read(ANSWER_BYTES_MAX))["error"])
        except (OSError, ValueError, KeyError, TypeError):
            said = f"{self.url} answered {response.status}, and not as an operators' API does; {ACCESS_FILE} holds its address"
        if response.status in (401, 403):
            return Failure(said, REFUSED)
        return Failure(said, UNREACHABLE if response.status >= 500 else WRONG_USE)


# ---- the entry


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    if "--help" in tokens or "-h" in tokens:
        _name_arguments(_words(tokens))
    try:
        result = _app(tokens)
        return result if isinstance(result, int) else FINE
    except Failure as failure:
        _complain(failure.message, tokens)
        return failure.code
    except ConfigurationError as exc:
        _complain(str(exc), tokens)
        return WRONG_USE
    except CycloptsError as exc:
        _complain(f"{exc}\nSee: provgate {' '.join([*_words(tokens), '--help'])}", tokens)
        return WRONG_USE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `provgate ... | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE


def _words(tokens: Sequence[str]) -> list[str]:
    """The command's words as far as they are known, without the arguments."""
    words: list[str] = []
    app = _app
    for token in tokens:
        if token.startswith("-") or token not in app:
            break
        words.append(token)
        app = app[token]
    return words


def _name_arguments(words: Sequence[str]) -> None:
    """Have the usage line of a command name what may be left out; the parser itself only writes [ARGS]."""
    from inspect import Parameter as Given
    from inspect import signature

    from cyclopts.help import format_usage

    app = _app
    for word in words:
        app = app[word]
    if app.default_command is None:
        return
    named = []
    for given in signature(app.default_command).parameters.values():
        name = given.name.rstrip("_").upper().replace("_", "-")
        if given.kind is Given.VAR_POSITIONAL:
            named.append(f"[{name}...]")
        elif given.kind is Given.POSITIONAL_ONLY and given.default is not Given.empty:
            named.append(f"[{name}]")
    line = format_usage(_app, words).plain.strip()
    app.usage = "Usage: " + line.replace("[ARGS...]", " ".join(named)).replace("[ARGS]", " ".join(named))


def _complain(message: str, tokens: Sequence[str]) -> None:
    text = json.dumps({"error": message}, ensure_ascii=False) if "--json" in tokens else f"provgate: {message}"
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
