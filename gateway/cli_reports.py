"""The commands `provgate plan`, `shadow`, `match`, `reconcile` and `notes`: what would be written, and what differs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from gateway.cli_app import CsvFile, Reason, TargetName, app, notes_commands
from gateway.cli_client import FINE, HERE, NOT_FINE, UNREACHABLE, WRONG_USE, Access, Api, Failure, segment
from gateway.cli_moving import BULK_MAX, PAGE_MAX, Choice, move_all, these
from gateway.cli_printing import counted, show, spinning, watching

HAND_IN_WAIT_S = 120.0
"""Users that are handed in are normalized by a worker, which may have to load names for it, and is asked more than once."""
LOOK_EVERY_S = 0.3
USERS_PER_ORDER_MAX = 200
ORDER_CHARS_MAX = 200_000
"""Users handed in by one call: as many as the API takes, and well below the longest order."""


@app.command(
    help_epilogue="Examples:\n  provgate plan talkdesk-eu ada@contoso.example\n"
    "  provgate plan talkdesk-eu ada@contoso.example --inactive\n"
    "  provgate plan sofa Sales --group --delete\n"
    "  provgate plan sofa --file user.json --json\n\n"
    "Exit codes: 0 it would go well, 1 it would be refused, 2 used wrongly or nobody of that name, "
    "3 the gateway, a worker or the product does not answer."
)
def plan(
    target: TargetName,
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
    with spinning(access, "A worker rehearses it"):
        answer = Api(access).post(f"/targets/{segment(target)}/plan", order)
    show(access, answer, lambda terminal: terminal.plan(answer))
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


@app.command(help_epilogue="Example:\n  provgate shadow talkdesk-eu")
def shadow(
    target: TargetName,
    /,
    *,
    limit: Annotated[int, Parameter(help=f"How many changes to list, at most {PAGE_MAX}.")] = 50,
    access: Access = HERE,
) -> int:
    """What shadow mode has recorded for a target: every rehearsed change with the calls that were not sent, masked."""
    answer = Api(access).get(f"/targets/{segment(target)}/shadow", limit=limit)
    show(access, answer, lambda terminal: terminal.shadow(answer))
    return FINE


# ---- comparing products with Entra


@app.command(
    name="match",
    help_epilogue="Examples:\n  provgate match bobs --file exportUsers.csv --csv report.csv\n"
    "  provgate match talkdesk-eu\n  provgate match telemessage --file users.json --map userName=mobilePhone --json\n\n"
    "Exit codes: 0 nothing collides, 1 there are conflicts or refusals, 2 used wrongly or a file that cannot be compared, "
    "3 the gateway, a worker or the product does not answer.",
)
def match_accounts(
    target: TargetName,
    /,
    *,
    file: Annotated[
        Path | None, Parameter(help="Users exported from Entra, CSV or JSON; the stored ones without it.")
    ] = None,
    map_: Annotated[
        tuple[str, ...],
        Parameter(name="--map", negative=(), help="SCIM path=attribute in the export; may be repeated. userName=mail"),
    ] = (),
    csv: CsvFile = None,
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
    begun = api.post(f"/targets/{segment(target)}/match", {"handed_in": file is not None})
    path = f"/matches/{segment(begun['id'])}"
    left_out = ""
    with watching(access) as watch:
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
        said.append(f"{counted(len(seen.repeats), 'line')} of {file.name} that only repeat another one left out.")
    if seen.absent:
        said.append(f"{file.name} has no column for {', '.join(seen.absent)}: not compared.")
    return "\n".join(said)


@app.command(
    help_epilogue="Examples:\n  provgate reconcile talkdesk-eu\n  provgate reconcile talkdesk-eu --repair\n"
    '  provgate reconcile talkdesk-eu --repair --approve --reason "roles were renamed on purpose"\n'
    '  provgate reconcile talkdesk-eu --refuse --reason "the product is being migrated"\n'
    "  provgate reconcile talkdesk-eu --last --csv differences.csv\n  provgate reconcile talkdesk-eu --runs\n\n"
    "Ends with 0 when nothing differs or all of it was repaired, 1 when something differs, is held or failed, 2 for wrong use."
)
def reconcile(
    target: TargetName,
    /,
    *,
    repair: Annotated[bool, Parameter(negative=(), help="Have what differs applied again.")] = False,
    approve: Annotated[bool, Parameter(negative=(), help="However many differ; with --repair and --reason.")] = False,
    refuse: Annotated[bool, Parameter(negative=(), help="Say no to a repair that is held; with --reason.")] = False,
    last: Annotated[bool, Parameter(negative=(), help="Only show the last report.")] = False,
    runs: Annotated[
        bool, Parameter(negative=(), help="Only list the last runs, and when the next one is due.")
    ] = False,
    csv: CsvFile = None,
    first: Annotated[int, Parameter(help="How many lines of each class are shown.")] = 5,
    reason: Reason = "",
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
    path = f"/targets/{segment(target)}/reconcile"
    if runs:
        show(access, seen := api.get(f"{path}/runs"), lambda terminal: terminal.runs(seen))
        return FINE
    if refuse:
        view = api.post(f"{path}/refuse", {"reason": reason})
    elif last:
        view = api.get(path)
    else:
        run = api.post(path, {"repair": repair, "approve": approve, "reason": reason})
        with watching(access) as watch:
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


@notes_commands.command(
    name="list",
    help_epilogue="Examples:\n  provgate notes list bobs\n"
    "  provgate notes list bobs --code not_invited --show-values --csv uninvited.csv\n"
    "  provgate notes list sofa --code no_mapping --json",
)
def notes_list(
    target: TargetName,
    /,
    *,
    code: Annotated[str | None, Parameter(help="Only notes of this kind.")] = None,
    csv: CsvFile = None,
    first: Annotated[int, Parameter(help="How many lines of each kind are shown.")] = 20,
    show_values: Annotated[bool, Parameter(negative=(), help="Do not mask user names; this is recorded.")] = False,
    access: Access = HERE,
) -> int:
    """What deliveries noted about people and groups that are applied, e.g. who is provisioned and not invited."""
    api, path = Api(access), f"/targets/{segment(target)}/notes"
    view = api.get(path)
    if code is not None:
        kinds = _noted(target, view, code)
        view = {**view, "kinds": kinds, "counts": {code: kinds[0]["count"]}}
    shown = {"show_values": "true"} if show_values else {}

    def lines(class_: str | None = None, most: int | None = None) -> Iterator[Any]:
        for kind in [class_] if class_ is not None else view["counts"]:
            yield from _pages(api, f"{path}/findings", class_=kind, most=most, **shown)

    _report(access, view, view["counts"], lines, csv, first, lambda terminal, some: terminal.notes(view, some))
    return FINE


@notes_commands.command(
    name="done",
    help_epilogue="Examples:\n  provgate notes done bobs not_invited 2819c223-7f76-453a-919d-413861904646\n"
    '  provgate notes done bobs not_invited --all --reason "invited on the platform, ticket 4711"',
)
def notes_done(
    target: TargetName,
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
    api, path = Api(access), f"/targets/{segment(target)}/notes"
    view = api.get(path)
    _noted(target, view, code)
    total = view["counts"].get(code, 0)

    def pages() -> Iterator[Sequence[str]]:
        yield [line["resource"] for line in _pages(api, f"{path}/findings", class_=code, most=BULK_MAX)]

    chosen = Choice(total, pages()) if everything else these(ids)
    return move_all(api, f"{path}/{segment(code)}/done", chosen, reason=reason, did="marked as done", what="note")


def _noted(target: str, view: Mapping[str, Any], code: str) -> list[Any]:
    kinds = [kind for kind in view["kinds"] if kind["code"] == code]
    if not kinds:
        known = ", ".join(kind["code"] for kind in view["kinds"]) or "none"
        raise Failure(f"{target} has no notes of the kind {code}; there are: {known}", WRONG_USE)
    return kinds


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
    show(access, view, lambda terminal: render(terminal, some))
    if csv is not None:
        print(f"\n{counted(written, 'line')} written to {csv}.")
