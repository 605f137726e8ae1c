"""What the command line prints for people: tables and sentences out of the operators' API, readable at 100 columns.

Everything from outside is plain text to the terminal: no markup is interpreted, no control character gets through.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gateway.explanations import counted, duration, moment
from schemas.plans import NOT_SENT

WIDTH_WITHOUT_TERMINAL = 100
KEY_SOON_DAYS = 60
KEY_URGENT_DAYS = 14
NAME_WHOLE_CHARS_MAX = 16
"""Longer names of targets may be folded in a narrow terminal."""
"""A target's name is folded beyond this when the table would not fit otherwise."""
IDS_SHOWN_MAX = 5
"""Ids under one cause; the rest are counted."""

_LIGHTS = {"green": "green", "yellow": "yellow", "red": "red", "grey": "bright_black"}
_STATUS = {"True": "green", "False": "red", "Unknown": "yellow"}
_LEVELS = {"ok": "green", "warning": "yellow", "error": "red"}
_RESULTS = {"applied": "green", "rejected": "red", "poison": "red", "misconfigured": "red"}


def console(*, stderr: bool = False) -> Console:
    """A console on standard output (or error); 100 columns wide when it is not a terminal and nobody said otherwise."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDTH_WITHOUT_TERMINAL
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def plain(value: Any, style: str = "") -> Text:
    """Text from outside, with control characters made harmless."""
    text = "" if value is None else str(value)
    return Text("".join(char if char.isprintable() or char == "\n" else "�" for char in text), style=style)


COMPARISONS_SHOWN_MAX = 5


def ago(at: float | None, now: float) -> str:
    """`12 min ago`, or a dash when it never was."""
    if not at:
        return "-"
    return f"{duration(now - at)} ago" if at <= now else f"in {duration(at - now)}"


def _table(*columns: str, right: Iterable[str] = (), whole: Iterable[str] = (), gap: int = 2) -> Table:
    """A table; `right`: numbers, aligned; `whole`: columns whose cells are never folded."""
    table = Table(
        box=SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), pad_edge=False, header_style="bold", show_edge=False, expand=False
    )
    numbers, unbroken = set(right), set(whole)
    for name in columns:
        if name in numbers:
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold", no_wrap=name in unbroken)
    return table


def _row(table: Table, *cells: Any) -> None:
    table.add_row(*(cell if isinstance(cell, (Text, Group)) else plain(cell) for cell in cells))


# ---- status and targets


def status(answer: Mapping[str, Any]) -> RenderableType:
    """The sentence, a line per target, and what waits and why."""
    now = answer["at"]
    parts: list[RenderableType] = [plain(answer["sentence"], "bold green" if answer["fine"] else "bold")]
    parts += [*_overload(answer.get("overload"), now), *_refused_config(answer.get("config_problems", ()))]
    parts += [*_mail_trouble(answer.get("mail")), Text("")]
    if answer["targets"]:
        parts.append(target_lines(answer["targets"], now))
    for target in answer["targets"]:
        if target.get("shadow"):
            said = f"{target['name']} is in shadow mode: changes are rehearsed, and nothing is written at the product."
            parts.append(Text.assemble("\n", plain(said, "magenta")))
            parts.append(
                Padding(plain(f"See what it would do: provgate shadow {target['name']}", "cyan"), (0, 0, 0, 2))
            )
        for problem in target["problems"]:
            parts.append(Text.assemble("\n", plain(f"{target['name']} {problem['phrase']}.")))
            parts.append(Padding(plain(problem["remedy"], "cyan"), (0, 0, 0, 2)))
    for target in answer["targets"]:
        report = target.get("reconcile")
        if report and report["state"] not in ("good", "repaired"):
            sentence = f"{target['name']}: {reconcile_sentence(report, now)}"
            parts.append(Text.assemble("\n", plain(sentence, "yellow" if report["state"] == "held" else "")))
            parts.append(Padding(plain(f"provgate reconcile {target['name']} --last", "cyan"), (0, 0, 0, 2)))
    due = sorted((t["reconcile_next_at"], t["name"]) for t in answer["targets"] if t.get("reconcile_next_at"))
    if due:
        said = ", ".join(f"{name} {ago(at, now) if at > now else 'now'}" for at, name in due[:COMPARISONS_SHOWN_MAX])
        parts.append(Text.assemble("\n", plain(f"Compared with its product next: {said}.", "bright_black")))
    for target in answer.get("left_over", ()):
        parts.append(Text.assemble("\n", plain(target["sentence"], "yellow" if target["waiting"] else "")))
    if answer["waiting"]:
        parts += [Text("\nWhat waits, and why", style="bold"), waiting(answer["waiting"], now)]
    return Group(*parts)


def _refused_config(problems: Sequence[str]) -> list[Text]:
    """What keeps the configuration file from counting; nothing when it does."""
    if not problems:
        return []
    first = plain(
        "The configuration file has mistakes; what it said before is in force until they are corrected.", "yellow"
    )
    return [first, *(plain(f"  {problem}") for problem in problems)]


def _overload(overload: Mapping[str, Any] | None, now: float) -> list[Text]:
    """What is left out for want of time, and why; nothing when all is served."""
    if not overload or not overload["step"]:
        return []
    load = overload["load"]
    refused = sum(overload["refused"].values())
    return [
        plain(f"Too much to do since {ago(overload['since'], now)}: left out are {overload['leaves_out']}.", "yellow"),
        plain(
            f"  The event loop is {load['lag_s']:.2f} s late, {load['jobs_waiting']:,} changes wait for the store, "
            f"{load['requests']:,} requests are in work; {refused:,} were refused so far."
        ),
    ]


def _mail_trouble(health: Mapping[str, Any] | None) -> list[Text]:
    """Only when operators cannot be told."""
    return [] if not health or health["fine"] else [plain(health["sentence"], "yellow")]


def target_lines(targets: Sequence[Mapping[str, Any]], now: float) -> Table:
    """A line per target."""
    numbers = ("Applied", "Waiting", "Blocked", "Held", "Dead")
    # All of it has to fit eighty columns: how long the oldest waits stands below how many do, and keys are a column only
    # when somebody has to do something about one.
    keys = ("Key",) if any(_wants_key(target["key_days_left"]) for target in targets) else ()
    columns = ("", "Target", "Worker", "Circuit", *numbers, "Last", *keys)
    table = _table(*columns, right=numbers, whole=("Worker", "Circuit", "Last", "Key"), gap=1)
    longest = max((len(target["name"]) for target in targets), default=0)
    table.columns[1].min_width = min(longest, NAME_WHOLE_CHARS_MAX)
    for target in targets:
        counts = target["counts"]
        shown = [Text(f"{counts['applied']:,}")]
        shown += [_alarm(counts[name]) for name in ("waiting", "blocked", "held", "dead")]
        if target["oldest_waiting_s"] is not None:
            shown[1].append(f"\n{duration(target['oldest_waiting_s'])}", style="bright_black")
        _row(
            table,
            Text("●", style=_LIGHTS[target["light"]]),
            Group(plain(target["name"], "bold"), *_connector(target), *_shadow_mark(target)),
            _workers(target),
            _circuit(target, now),
            *shown,
            _last(target["last_outcome"], now),
            *([_key_days(target["key_days_left"])] if keys else []),
        )
    return table


def _connector(target: Mapping[str, Any]) -> list[Text]:
    """Only where the name of the target does not say it already."""
    return [] if target["connector"] == target["name"] else [plain(target["connector"], "bright_black")]


def _shadow_mark(target: Mapping[str, Any]) -> list[Text]:
    return [Text("shadow mode", style="bold magenta")] if target.get("shadow") else []


def _alarm(count: int) -> Text:
    return Text(f"{count:,}", style="yellow" if count else "bright_black")


def _workers(target: Mapping[str, Any]) -> Text:
    if not target["enabled"]:
        return Text("off", style="bright_black")
    count = len(target["workers"])
    return Text(str(count), style="green") if count else Text("none", style="red")


def _circuit(target: Mapping[str, Any], now: float) -> Text:
    if target["paused_by"]:
        return Text("paused", style="yellow")
    circuit = target["circuit"]
    if circuit["state"] == "closed":
        return Text("closed", style="green")
    text = Text(circuit["state"], style="red")
    text.append(f"\n{duration(now - circuit['since'])}")
    if circuit["next_probe_at"]:
        text.append(f"\nprobe in\n{duration(circuit['next_probe_at'] - now)}", style="bright_black")
    return text


def _last(outcome: Mapping[str, Any] | None, now: float) -> Text:
    if outcome is None:
        return Text("-", style="bright_black")
    if outcome["result"] == "applied":  # one line a target while all is well
        return Text(ago(outcome["at"], now), style="green")
    return Text.assemble(
        plain(outcome["result"], _RESULTS.get(outcome["result"], "")), "\n", (ago(outcome["at"], now), "bright_black")
    )


def _wants_key(days: int | None) -> bool:
    return days is None or days <= KEY_SOON_DAYS


def _key_days(days: int | None) -> Text:
    if days is None:
        return Text("none", style="yellow")
    return Text("ended" if days < 0 else f"{days} d", style="yellow" if days <= KEY_URGENT_DAYS else "")


def waiting(groups: Sequence[Mapping[str, Any]], now: float) -> Table:
    """What waits, grouped by cause."""
    table = _table("Target", "Changes", "Oldest", "Next", "Why", right=("Changes",))
    for group in groups:
        oldest = "-" if group["oldest_s"] is None else duration(group["oldest_s"])
        nxt = ago(group["next_at"], now) if group["next_at"] and group["next_at"] > now else "-"
        _row(table, group["target"], f"{group['count']:,}", oldest, nxt, group["message"])
    return table


def _credential_fact(days: int | None) -> list[tuple[str, str]]:
    """Only of products whose credential is known to end."""
    if days is None:
        return []
    return [("Credential", f"ended {counted(-days, 'day')} ago" if days < 0 else f"ends in {counted(days, 'day')}")]


def target(view: Mapping[str, Any], now: float) -> RenderableType:
    """One target with everything that is known of it."""
    lines = _table("", "")
    lines.show_header = False
    circuit = view["circuit"]
    facts = [
        ("Title", view["title"] or view["name"]),
        ("Connector", view["connector"]),
        ("Tenant URL", view["tenant_url"]),
        ("Workers", ", ".join(view["workers"]) or "none"),
        ("Circuit", circuit["state"] if circuit["state"] == "closed" else f"{circuit['state']}: {circuit['reason']}"),
        ("Shadow mode", "yes: nothing is written at the product" if view.get("shadow") else "no"),
        ("Paused", f"by {view['paused_by']}: {view['paused_reason']}" if view["paused_by"] else "no"),
        ("Window", view["window"]),
        ("In flight", view["in_flight"]),
        ("Resources", ", ".join(f"{count:,} {state}" for state, count in view["states"].items() if count) or "none"),
        ("Oldest waiting", "-" if view["oldest_waiting_s"] is None else duration(view["oldest_waiting_s"])),
        ("Reconciled", reconcile_sentence(view["reconcile"], now) if view.get("reconcile") else "never"),
        ("Next comparison", ago(view.get("reconcile_next_at"), now)),
        ("Entra called", ago(view.get("last_request_at"), now)),
        ("Product called", ago(view.get("last_call_at"), now)),
        (
            "Last outcome",
            "-" if (last := view["last_outcome"]) is None else f"{last['result']}, {ago(last['at'], now)}",
        ),
        ("Signs in by", ", ".join(view["auth"])),
        ("Key", "none" if view["key_days_left"] is None else f"ends in {counted(view['key_days_left'], 'day')}"),
        *_credential_fact(view.get("credential_days_left")),
    ]
    for name, value in facts:
        _row(lines, plain(name, "bright_black"), value)
    parts: list[RenderableType] = [
        Text.assemble(("● ", _LIGHTS[view["light"]]), plain(view["name"], "bold")),
        Padding(lines, (0, 0, 0, 2)),
    ]
    for problem in view["problems"]:
        parts.append(plain(f"{view['name']} {problem['phrase']}."))
        parts.append(Padding(plain(problem["remedy"], "cyan"), (0, 0, 0, 2)))
    return Group(*parts)


# ---- mails to operators


def mail_status(answer: Mapping[str, Any]) -> RenderableType:
    """Whether mails get through, and who is told about what."""
    if not answer["configured"]:
        return plain("Nobody is told by mail: there is no [mail] in the configuration file.", "yellow")
    now, health, box = answer["at"], answer["health"], answer["outbox"]
    lines = _table("", "")
    lines.show_header = False
    facts = [
        ("Server", f"{answer['server']} ({'not encrypted' if answer['tls'] == 'none' else answer['tls']})"),
        ("Sender", answer["sender"]),
        ("Told", ", ".join(answer["to"])),
        *((f"Told of {name}", ", ".join(addresses)) for name, addresses in answer["targets"].items()),
        ("Waiting", f"{box['waiting']:,}{', the oldest: ' + ago(box['oldest_at'], now) if box['waiting'] else ''}"),
        ("Given up", f"{box['failed']:,}"),
        ("Last sent", ago(box["last_sent_at"], now)),
    ]
    for name, value in facts:
        _row(lines, plain(name, "bright_black"), value)
    fine = "Mails get through." if box["last_sent_at"] else "Nothing is wrong; nothing was sent yet: provgate mail test"
    sentence = plain(health["sentence"], "yellow") if health["sentence"] else plain(fine, "bold green")
    return Group(sentence, Padding(lines, (1, 0, 0, 2)))


def mails(answer: Mapping[str, Any]) -> RenderableType:
    """The newest mails first."""
    if not answer["mails"]:
        return plain("No mails.")
    now = answer["at"]
    table = _table("When", "To", "What", "State", whole=("When",))
    for mail in answer["mails"]:
        style = {"sent": "green", "waiting": "yellow"}.get(mail["state"], "red")
        state = [plain(mail["state"], style)]
        if mail["error"]:
            state.append(plain(mail["error"]))
        if mail["next_at"]:
            state.append(plain(f"again {ago(mail['next_at'], now)}", "bright_black"))
        _row(table, ago(mail["created_at"], now), mail["recipient"], mail["subject"], Group(*state))
    return Group(plain(f"{counted(answer['total'], 'mail')}.", "bold"), Text(""), table)


def mail_tested(answer: Mapping[str, Any]) -> RenderableType:
    """What the server said to each test mail."""
    table = _table("To", "Outcome", whole=("To",))
    for one in answer["tested"]:
        text = "taken by the server" if one["outcome"] == "sent" else one["detail"] or one["outcome"]
        _row(table, one["recipient"], plain(text, "green" if one["outcome"] == "sent" else "red"))
    return table


# ---- dead letters and held changes


def causes(answer: Mapping[str, Any], now: float, *, what: str, empty: str) -> RenderableType:
    """Groups of alike dead letters or held changes, and what to do about each."""
    if not answer["causes"]:
        return plain(empty)
    table = _table("Count", "Target", "Cause, and what to do", "Oldest", right=("Count",))
    ids: dict[tuple[str, str], list[str]] = {}
    for item in answer["items"]:
        ids.setdefault((item["target"], item["cause"]), []).append(item["id"])
    for group in answer["causes"]:
        here = ids.get((group["target"], group["cause"]), [])
        shown = "\n".join(here[:IDS_SHOWN_MAX])
        more = group["count"] - min(len(here), IDS_SHOWN_MAX)
        cell: list[RenderableType] = [plain(group["cause"], "bold")]
        if group["message"]:
            cell.append(plain(group["message"]))
        if group["suggestion"]:
            cell.append(plain(group["suggestion"], "cyan"))
        if shown:
            cell.append(plain(shown + (f"\nand {more:,} more" if more > 0 else ""), "bright_black"))
        cell.append(Text(""))
        _row(table, f"{group['count']:,}", group["target"], Group(*cell), ago(group["first_at"], now))
    total = answer["total"]
    return Group(plain(f"{counted(total, what)}.", "bold"), Text(""), table)


def items(answer: Mapping[str, Any], now: float) -> RenderableType:
    """Dead letters or held changes one by one."""
    alike = len({item["message"] for item in answer["items"]}) == 1  # then it stands above, once
    columns = ("Id", "Target", "Who", "Change", "Since", *(() if alike else ("Reason",)))
    table = _table(*columns, whole=("Id",))
    for item in answer["items"]:
        reason = () if alike else (item["message"] or item["cause"],)
        _row(table, item["id"], item["target"], item["label"], item["change"], ago(item["at"], now), *reason)
    return table


# ---- one resource


def resource(view: Mapping[str, Any], now: float) -> RenderableType:
    """Both halves, conditions, history and what comes next."""
    title = Text.assemble(
        plain(f"{view['kind'].capitalize()} "),
        plain(view["id"], "bold"),
        plain(f" of {view['target']}: "),
        plain(view["state"], "green" if view["state"] in ("applied", "gone") else "yellow"),
    )
    link = view["account_id"] or "none yet"
    facts = plain(
        f"generation {view['generation']} asked, {view['settled_generation']} settled, "
        f"{view['acknowledged']} acknowledged; account {link}"
    )
    parts: list[RenderableType] = [title, Padding(facts, (0, 0, 0, 2))]
    if view["reason"]:
        parts.append(Padding(plain(view["reason"]["message"] or view["reason"]["code"], "yellow"), (0, 0, 0, 2)))
    if view.get("notes"):
        parts.append(Padding(plain(f"noted: {', '.join(view['notes'])}"), (0, 0, 0, 2)))
    step = view["next"]
    when = f" ({moment(step['at'])})" if step["at"] else ""
    parts.append(Padding(Text.assemble(("Next: ", "bold"), plain(f"{step['message']}{when}")), (0, 0, 0, 2)))
    if step["command"]:
        parts.append(Padding(plain(step["command"], "cyan"), (0, 0, 0, 8)))
    parts += [Text("\nConditions", style="bold"), _conditions(view["conditions"], now)]
    parts += [Text("\nAsked and confirmed", style="bold"), _halves(view["values"])]
    if view["masked"]:
        parts.append(plain("Values are masked; --show-values shows them, and that is recorded.", "bright_black"))
    parts += [Text("\nHistory, newest first", style="bold"), _history(view["history"], now)]
    return Group(*parts)


def _conditions(conditions: Sequence[Mapping[str, Any]], now: float) -> Table:
    table = _table("Condition", "Status", "Gen.", "Reason", "Since", right=("Gen.",))
    for condition in conditions:
        why: RenderableType = plain(condition["reason"])
        if condition["message"]:
            why = Group(why, plain(condition["message"], "bright_black"))
        _row(
            table,
            condition["type"],
            Text(condition["status"], style=_STATUS[condition["status"]]),
            condition["observed_generation"],
            why,
            ago(condition["since"], now),
        )
    return table


def _halves(values: Sequence[Mapping[str, Any]]) -> RenderableType:
    if not values:
        return plain("no attributes")
    table = _table("Attribute", "Asked", "Confirmed")
    for value in values:
        style = "" if value["asked"] == value["confirmed"] else "yellow"
        halves = [
            Text("-", style="bright_black") if half is None else plain(half, style)
            for half in (value["asked"], value["confirmed"])
        ]
        _row(table, value["path"], *halves)
    return table


def _history(history: Sequence[Mapping[str, Any]], now: float) -> Table:
    table = _table("When", "Gen.", "What", right=("Gen.",))
    for entry in history:
        cell: list[RenderableType] = []
        if entry["what"] == "asked":
            names = ", ".join(entry["changed"])
            cell.append(plain(f"{entry['actor']} asked: {entry['change']}" + (f" ({names})" if names else ""), "bold"))
            if entry["outcome"]:
                cell.append(plain(f"outcome: {entry['outcome']}"))
        else:
            style = _RESULTS.get(entry["result"], "yellow")
            cell.append(plain(f"delivery {entry['fence']}.{entry['delivery']}: {entry['result']}", style))
            if entry["message"]:
                cell.append(plain(entry["message"]))
            remarks = entry.get("remarks") or {}
            cell += [plain(text, "yellow") for text in remarks.get("warnings", ())]
            if remarks.get("ignored"):
                cell.append(plain(f"ignored, the product cannot hold it: {', '.join(remarks['ignored'])}", "yellow"))
            cell += [plain(_step(step), "bright_black") for step in entry["steps"]]
        _row(table, ago(entry["at"], now), entry["generation"], Group(*cell))
    return table


def _step(step: Mapping[str, Any]) -> str:
    if step.get("error") == NOT_SENT:
        return f"{step['method']} {step['path']} -> not sent (shadow mode) {step.get('sent', '')}".rstrip()
    said = step.get("error") or step.get("status") or "no answer"
    return f"{step['method']} {step['path']} -> {said}, {step.get('ms', 0.0):.0f} ms"


# ---- keys, checks, live events


def keys(answer: Mapping[str, Any], now: float) -> RenderableType:
    """The keys of all targets; never a key itself."""
    return _key_table(answer["keys"], "No key; make one with: provgate key new TARGET", now)


def clients(answer: Mapping[str, Any], now: float) -> RenderableType:
    """The client secrets of all targets; never a secret itself."""
    return _key_table(answer["clients"], "No client secret; make one with: provgate client new TARGET", now)


def _key_table(rows: Sequence[Mapping[str, Any]], empty: str, now: float) -> RenderableType:
    if not rows:
        return plain(empty)
    table = _table("Id", "Target", "Label", "State", "Made", "Ends", "Last used")
    for key in rows:
        state = key["state"]
        style = "green" if state == "live" else "bright_black"
        _row(
            table,
            key["id"],
            key["target"],
            key["label"],
            Text(state, style=style),
            ago(key["created_at"], now),
            ago(key["expires_at"], now),
            ago(key["last_used_at"], now),
        )
    return table


def new_client(answer: Mapping[str, Any]) -> RenderableType:
    """The client secret, once, with everything else Entra asks for, each on a line of its own."""
    return Group(
        plain(f"A client secret for {answer['target']}, shown this once; it ends {moment(answer['expires_at'])[:10]}."),
        plain("Enter these in Entra under Provisioning > Admin Credentials, OAuth2 client credentials:\n"),
        Text.assemble("  Tenant URL         ", plain(answer["tenant_url"], "bold")),
        Text.assemble("  Token Endpoint     ", plain(answer["token_endpoint"], "bold")),
        Text.assemble("  Client Identifier  ", plain(answer["client_id"], "bold")),
        Text.assemble("  Client Secret      ", plain(answer["client_secret"], "bold")),
    )


_CHECK_STYLES = {"passed": "green", "failed": "bold red"}


def refusals(answer: Mapping[str, Any], now: float) -> RenderableType:
    """The latest refused sign-ins, one a line."""
    if not answer["refusals"]:
        return plain("No sign-in was refused since this gateway started.")
    table = _table("Id", "When", "Target", "Where", "Cause")
    for refused in answer["refusals"]:
        _row(table, refused["id"], ago(refused["at"], now), refused["target"], refused["place"], refused["cause"])
    return table


def refusal(answer: Mapping[str, Any], now: float) -> RenderableType:
    """One refused sign-in, check by check."""
    table = _table("Check", "Expected", "Received", "")
    for check in answer["checks"]:
        style = _CHECK_STYLES.get(check["verdict"], "bright_black")
        _row(table, check["name"], check["expected"], check["received"], Text(check["verdict"], style=style))
    where = "the token endpoint" if answer["place"] == "token" else "the Tenant URL"
    when = ago(answer["at"], now)
    return Group(plain(f"Refused {when} at {where} of {answer['target']}: {answer['cause']}.\n"), table)


def new_key(answer: Mapping[str, Any]) -> RenderableType:
    """The key, once, with the Tenant URL; on lines of their own, so that they can be copied."""
    return Group(
        plain(f"A key for {answer['target']}, shown this once; it ends {moment(answer['expires_at'])[:10]}."),
        plain("Enter both in Entra under Provisioning > Admin Credentials:\n"),
        Text.assemble("  Tenant URL    ", plain(answer["tenant_url"], "bold")),
        Text.assemble("  Secret Token  ", plain(answer["key"], "bold")),
    )


def findings(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """What `check` found."""
    table = _table("", "Where", "What")
    for finding in found:
        cell: list[RenderableType] = [plain(finding["message"])]
        if finding.get("remedy"):
            cell.append(plain(finding["remedy"], "cyan"))
        level = str(finding["level"])
        _row(table, Text(level, style=_LEVELS.get(level, "")), finding["where"], Group(*cell))
    return table


def live_line(event: Mapping[str, Any]) -> Text:
    """One event or outcome of the live stream."""
    at = _clock(event.get("at"))
    kind = event.get("kind", "event")
    if kind == "skipped":
        return Text.assemble(
            (at, "bright_black"), plain(f"  {event.get('count')} not shown: they came too fast", "yellow")
        )
    line = Text.assemble((at, "bright_black"), "  ", plain(f"{event.get('target', ''):<16} "))
    if kind == "outcome":
        result = str(event.get("result", ""))
        line.append_text(plain(f"{result:<13}", _RESULTS.get(result, "yellow")))
    else:
        line.append_text(plain(f"{event.get('change', kind)!s:<13}", "cyan"))
    line.append_text(plain(f"{event.get('resource', '')} "))
    line.append_text(plain(f"g{event.get('generation', '?')} f{event.get('fence', '?')}", "bright_black"))
    names = event.get("changed") or ()
    if names:
        line.append_text(plain("  " + ", ".join(str(name) for name in names), "bright_black"))
    if event.get("code"):
        line.append_text(plain(f"  {event['code']} {event.get('attribute') or ''}", "yellow"))
    return line


def _clock(at: Any) -> str:
    """Time of day here, of epoch seconds or an RFC 3339 time; of now when there is none."""
    try:
        when = datetime.fromisoformat(at.replace("Z", "+00:00")) if isinstance(at, str) else datetime.fromtimestamp(at)
    except (ValueError, TypeError, OverflowError):
        when = datetime.now()
    return when.astimezone().strftime("%H:%M:%S")


# ---- settings that a product keeps


def configuration(view: Mapping[str, Any], *, writing: bool = False) -> RenderableType:
    """What differs from what is needed, and what was changed just now. `writing`: it is about to be written anyway."""
    changed, differing = view["changed"], view["differences"]
    parts: list[RenderableType] = []
    for rows, head in ((changed, "Written"), (differing, "Differs")):
        if rows:
            table = _table("Setting", "Was" if rows is changed else "Is", "Is" if rows is changed else "Must be")
            for row in rows:
                _row(table, row["path"], _setting(row["held"]), _setting(row["wanted"]))
            parts += [Text(f"{head} at {view['product']} for {view['target']}", style="bold"), table]
    if view["fine"]:
        again = "Read again: " if changed else ""
        parts.append(plain(f"{again}all settings are as they must be.".capitalize(), "green"))
    elif not changed and not writing:
        parts.append(plain(f"Write it with: provgate connector configure {view['target']} --write", "yellow"))
    return Group(*parts)


def _setting(value: Any) -> str:
    return "-" if value is None else _compact(value)


# ---- plans and shadow mode


_WOULD = {
    "create": ("green", "would be made"),
    "update": ("green", "would be changed"),
    "enable": ("green", "would be switched on"),
    "disable": ("yellow", "would be switched off"),
    "delete": ("yellow", "would be removed"),
    "adopt": ("green", "would be linked"),
    "nothing": ("bright_black", "nothing to do"),
    "wait": ("yellow", "would wait"),
    "refuse": ("red", "would be refused"),
    "unknown": ("red", "not known"),
}


def plan(view: Mapping[str, Any]) -> RenderableType:
    """What would be done for one user or group: the verdict, the normalized account, the calls in order, and remarks."""
    who = f"{view['kind']} {view['resource']}" if view["resource"] else f"a {view['kind']} that is not stored"
    style, verdict = _WOULD[view["would"]]
    head = Text.assemble(plain(f"{view['target']}, {who}: "), plain(verdict, f"bold {style}"))
    parts: list[RenderableType] = [head, Padding(plain(view["sentence"]), (0, 0, 0, 2), expand=False)]
    if not view["due"] and (view["calls"] or view["account"]) and view["would"] != "unknown":
        said = "All that Entra asked for is applied; this is what applying it again would do."
        parts.append(Padding(plain(said, "bright_black"), (0, 0, 0, 2), expand=False))
    if view["shadow"]:
        parts.append(
            Padding(
                plain("The target is in shadow mode, so nothing is sent anyway.", "magenta"), (0, 0, 0, 2), expand=False
            )
        )
    refused = view["refusal"]
    if refused:
        parts.append(
            Padding(
                plain(f"Entra sees: {refused['status']} {refused['scim_type'] or ''}".rstrip(), "red"),
                (1, 0, 0, 0),
                expand=False,
            )
        )
        parts.append(Padding(plain(refused["detail"], "red"), (0, 0, 0, 2), expand=False))
    if view["adopts"]:
        parts.append(Padding(plain(f"Links the existing account {view['adopts']}."), (1, 0, 0, 0), expand=False))
    if isinstance(view["account"], Mapping) and view["account"]:
        table = _table("Attribute", "Value")
        for name, value in _flat(view["account"]):
            _row(table, name, _compact(value))
        parts += [Text("\nNormalized account", style="bold"), table]
    if view["calls"]:
        where = f" to {view['base_url']}" if view["base_url"] else ""
        parts.append(plain(f"\nCalls{where}, in order; none was sent", "bold"))
        parts += [_would_call(number, call) for number, call in enumerate(view["calls"], start=1)]
    if view["left_out"]:
        parts.append(plain(f"and {counted(view['left_out'], 'call')} more, left out of this answer", "bright_black"))
    if view["ignored"]:
        parts.append(plain(f"\nIgnored, because the product cannot hold it: {', '.join(view['ignored'])}", "yellow"))
    parts += [plain(f"\n{text}", "yellow") for text in view["warnings"]]
    if view["reads"]:
        parts.append(
            plain(
                f"\n{counted(len(view['reads']), 'call')} that only read {'was' if len(view['reads']) == 1 else 'were'} "
                "really made for this plan.",
                "bright_black",
            )
        )
    if view["masked"]:
        parts.append(plain("Values are masked; --show-values shows them, and that is recorded.", "bright_black"))
    return Group(*parts)


def _flat(account: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The attributes of an account that hold something, those within others by their whole path."""
    for name, value in account.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        elif value not in (None, "", []):
            yield f"{above}{name}", value


def _compact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _would_call(number: int, call: Mapping[str, Any]) -> RenderableType:
    """One call as it would go out: method and address, headers, body."""
    url = call["url"]
    if call["query"]:
        url += "?" + "&".join(f"{name}={value}" for name, value in call["query"].items())
    lines: list[RenderableType] = [Text.assemble(plain(f"{call['method']} {url}", "bold"), overflow="fold")]
    if call["same"]:
        lines.append(plain("changes nothing: the product holds all of this", "green"))
    lines += [plain(f"{name}: {value}", "bright_black") for name, value in call["headers"].items()]
    if call["body"] is not None:
        body = plain(json.dumps(call["body"], ensure_ascii=False, indent=2))
        body.overflow = "fold"
        lines.append(body)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True, width=3)
    table.add_column(overflow="fold")
    table.add_row(Text(str(number)), Group(*lines))
    return Padding(table, (0 if number == 1 else 1, 0, 0, 0), expand=False)


def shadow(view: Mapping[str, Any]) -> RenderableType:
    """What shadow mode has recorded: how often each call, then every change with its calls."""
    now = view["at"]
    left = (
        f"{counted(view['under_way'], 'delivery', 'deliveries')} that went out before shadow mode began "
        f"{'is' if view['under_way'] == 1 else 'are'} still out, and given up before the next call; "
        "one whose answer is on its way may have written."
    )
    begun: list[RenderableType] = [plain(left, "yellow")] if view["under_way"] else []
    if not view["total"]:
        said = "is in shadow mode; nothing has come yet." if view["shadow"] else "is not in shadow mode."
        return Group(plain(f"{view['target']} {said}"), *begun)
    head = (
        f"{view['target']}: {counted(view['total'], 'change')} rehearsed, {view['refused']:,} of them would be refused."
    )
    parts: list[RenderableType] = [plain(head, "bold"), *begun]
    if not view["shadow"]:
        parts.append(plain("Shadow mode is over: these are being delivered now.", "yellow"))
    if view["calls"]:
        counts = _table("Times", "Call", right=("Times",))
        for call in view["calls"]:
            _row(counts, f"{call['count']:,}", f"{call['method']} {call['path']}")
        parts += [Text(""), counts]
    for item in view["items"]:
        head_line = plain(f"{item['change']} of {item['kind']} {item['label']}", "bold")
        lines: list[RenderableType] = [
            plain(f"{item['id']}, {ago(item['at'], now)}", "bright_black"),
            plain(item["message"], "red" if item["refused"] else ""),
        ]
        lines += [
            plain(f"{call['method']} {call['path']} {call.get('sent', '')}".rstrip(), "bright_black")
            for call in item["calls"]
        ]
        parts += [Text(""), head_line, Padding(Group(*lines), (0, 0, 0, 2), expand=False)]
    more = view["total"] - len(view["items"])
    if more > 0:
        parts.append(plain(f"\nand {counted(more, 'change')} rehearsed before them; --limit N shows more", "cyan"))
    return Group(*parts)


def several(parts: Sequence[RenderableType]) -> RenderableType:
    """Things below each other, with an empty line between."""
    spaced: list[RenderableType] = []
    for part in parts:
        spaced += [Text(""), part] if spaced else [part]
    return Group(*spaced)


# ---- comparisons

_MATCH_WORDS = {
    "matched": ("green", "one account each; Entra takes it over"),
    "create": ("", "no account yet; the first cycle makes one"),
    "conflict": ("red", "would collide; settle these before the first cycle"),
    "refused": ("red", "the product would not take this user"),
    "orphan": ("yellow", "an account nobody of Entra answers to; it is left alone"),
}
_DIFFERENCE_WORDS = {
    "missing": ("red", "the account is not there any more"),
    "drifted": ("yellow", "changed at the product"),
    "reactivated": ("red", "switched on by hand although deactivated in Entra"),
    "double": ("yellow", "a second account answers to the same user"),
    "refused": ("yellow", "the product would not take the present wish any more"),
    "unknown": ("bright_black", "an account nobody here has; it is left alone"),
    "group_missing": ("red", "the group is not there any more"),
    "group_drifted": ("yellow", "changed at the product"),
    "group_members": ("red", "members are missing, or Entra did not put them in"),
    "group_strangers": (
        "bright_black",
        "members that are left alone: unknown here, or in a group that was there before",
    ),
    "group_double": ("yellow", "a second group answers to the same one"),
    "group_refused": ("yellow", "the product would not take the present wish any more"),
    "group_unknown": ("bright_black", "a group nobody here has; it is left alone"),
}
_CODE_WORDS = {
    "several_accounts": "more than one account answers to this user",
    "several_users": "more than one user answers to this account",
    "linked_elsewhere": "the account carries the externalId of somebody else",
    "exists_under_other_address": "an account has the person's other address",
    "not_adopted": "there is an account, and the target does not take accounts over",
    "second_account": "its user is linked to another account",
    "deleted_here": "of a user that was deleted here",
}
"""What the codes of gateway/comparison.py mean to a reader; the counts above and the CSV keep the code."""


def match(view: Mapping[str, Any], some: Sequence[Mapping[str, Any]]) -> RenderableType:
    """What the first cycle would come to: counts, causes, and the first lines of each class."""
    progress = view["progress"]
    head = plain(f"{view['target']}: {progress['accounts']:,} accounts, {progress['users']:,} users.\n", "bold")
    return Group(head, _classes(view, _MATCH_WORDS), *_lines(some, view["counts"], _MATCH_WORDS))


def reconciled(report: Mapping[str, Any], some: Sequence[Mapping[str, Any]], now: float) -> RenderableType:
    """The last comparison of a target."""
    head = f"{report['target']}: {reconcile_sentence(report, now)}"
    parts: list[RenderableType] = [plain(head, "bold green" if report["state"] in ("good", "repaired") else "bold")]
    if report["message"]:
        parts.append(plain(report["message"], "cyan"))
    if report["counts"]:
        shown = {
            name: words
            for name, words in _DIFFERENCE_WORDS.items()
            if report["counts"].get(name) or not name.startswith("group_")
        }
        parts += [Text(""), _classes(report, shown), *_lines(some, report["counts"], _DIFFERENCE_WORDS)]
    return Group(*parts)


def reconcile_sentence(report: Mapping[str, Any], now: float) -> str:
    """One sentence about a comparison: when, how many, what came of it."""
    when = ago(report["ended_at"], now)
    if report["state"] == "failed":
        return f"compared {when}, without a result ({report['code']})."
    size = f"{report['compared']:,} of its users with {report['listed']:,} accounts"
    if report["groups"] or report["groups_listed"]:
        members = counted(report["memberships"], "member")
        size += f", {report['groups']:,} of its groups ({members}) with {report['groups_listed']:,} there"
    total = sum(report["counts"].values())
    if not total:
        return f"compared {when}, {size}: nothing differs{', as far as it was compared' if report['code'] else ''}."
    ends = {
        "held": "the repair waits for an approval",
        "refused": "the repair was refused",
        "repairing": "being applied again",
        "repaired": f"{report['repaired']:,} given back to be applied again",
    }
    return f"compared {when}, {size}: {counted(total, 'difference')}, {ends.get(report['state'], 'reported only')}."


def runs(view: Mapping[str, Any]) -> RenderableType:
    """Comparisons of a target, the newest first, and when the next one begins."""
    now = view["at"]
    if not view["runs"]:
        return plain(f"{view['target']} was never compared.")
    table = _table(
        "When", "Took", "Mode", "Ended", "Users", "Groups", "Differences", "Repaired", "By", right=("Users",)
    )
    for run in view["runs"]:
        took = "-" if run["state"] == "running" else duration(run["ended_at"] - run["started_at"])
        ended = f"{run['state']} ({run['code']})" if run["code"] else run["state"]
        style = {"good": "green", "repaired": "green", "failed": "red", "held": "yellow"}.get(run["state"], "")
        _row(
            table,
            ago(run["started_at"], now),
            took,
            run["mode"],
            plain(ended, style),
            f"{run['compared']:,}",
            f"{run['groups']:,}",
            f"{sum(run['counts'].values()):,}",
            f"{run['repaired']:,}",
            run["actor"],
        )
    return Group(table, plain(f"Next by itself: {ago(view['next_at'], now)}", "bright_black"))


def notes(view: Mapping[str, Any], some: Sequence[Mapping[str, Any]]) -> RenderableType:
    """What deliveries noted about the resources of a target: kinds, counts, and the first lines of each."""
    if not view["kinds"]:
        return plain(f"Deliveries of {view['target']} note nothing about resources.")
    table = _table("Note", "Count", "What it means", right=("Count",))
    for kind in view["kinds"]:
        cell = [plain(kind["title"] or kind["code"])]
        if kind["done"] and kind["count"]:
            cell.append(plain(f"When that is done: provgate notes done {view['target']} {kind['code']} ID...", "cyan"))
        style = "yellow" if kind["done"] and kind["count"] else "" if kind["count"] else "bright_black"
        _row(table, plain(kind["code"], style), f"{kind['count']:,}", Group(*cell))
    parts: list[RenderableType] = [plain(f"{view['target']}\n", "bold"), table]
    for code in view["counts"]:
        lines = [line for line in some if line["class"] == code]
        if lines:
            parts += [plain(f"\n{code}", "bold"), _noted(lines, view["at"])]
    more = sum(view["counts"].values()) - len(some)
    if some and more > 0:
        said = f"and {counted(more, 'line')} more; --first N shows more of each kind, --csv FILE writes all"
        parts.append(plain(said, "cyan"))
    return Group(*parts)


def _noted(lines: Sequence[Mapping[str, Any]], now: float) -> Table:
    """Resources with one kind of note. Ids stand below each other: they are copied, and two of them fit no line."""
    table = _table("Who", "Last", "Times", right=("Times",), whole=("Last",))
    for line in lines:
        ids = (("id", line["resource"]), ("about", line["code"]), ("account", line["account_id"]))
        cells = [plain(line["label"]), *(plain(f"{what:8}{id_}", "bright_black") for what, id_ in ids if id_)]
        _row(table, Group(*cells), ago(line["last_at"], now), f"{line['times']:,}")
    return table


def _classes(counted_: Mapping[str, Any], words: Mapping[str, tuple[str, str]]) -> Table:
    table = _table("Class", "Count", "What it means, and why", right=("Count",))
    for name, (style, meaning) in words.items():
        count = counted_["counts"].get(name, 0)
        causes = {k.partition(".")[2]: v for k, v in counted_["codes"].items() if k.startswith(f"{name}.")}
        why = ", ".join(f"{code} {many:,}" for code, many in sorted(causes.items(), key=lambda one: -one[1]))
        cell: list[RenderableType] = [plain(meaning), *([plain(why, "bright_black")] if why else [])]
        _row(table, plain(name, style if count else "bright_black"), f"{count:,}", Group(*cell))
    return table


def _lines(
    some: Sequence[Mapping[str, Any]], counts: Mapping[str, int], words: Mapping[str, Any]
) -> list[RenderableType]:
    """The first lines, in the order of the classes above them, and how many there are beyond."""
    if not some:
        return []
    order = {name: place for place, name in enumerate(words)}
    table = _table("Class", "Who", "Cause, or what differs")
    for line in sorted(some, key=lambda line: order.get(line["class"], len(order))):
        why = line["message"] or " ".join(
            filter(None, (_CODE_WORDS.get(line["code"], line["code"]), ", ".join(line["attributes"])))
        )
        here = "group" if line["class"].startswith("group_") else "user"
        ids = [f"{what} {id_}" for what, id_ in ((here, line["resource"]), ("account", line["account_id"])) if id_]
        who = [plain(line["label"])] if line["label"] else []
        _row(table, line["class"], Group(*who, *(plain(text, "bright_black") for text in ids)), why)
    more = sum(counts.values()) - len(some)
    rest = [
        plain(f"and {counted(more, 'line')} more; --first N shows more of each class, --csv FILE writes all", "cyan")
    ]
    return [Text(""), table, *(rest if more > 0 else [])]
