"""What every connector promises, tried against an emulated product that misbehaves.

Each promise is a function that plays the gateway's part with the worker's own order of work (`workers/delivery.py`): events go
out, outcomes come back, what was found is linked and sent again, what may have been done is looked for first. So a connector
passes only if it keeps its promises in the product, not just when its methods are called nicely.

An author inherits `Conformance` once and says how the product is started and read; every promise becomes a test of that class.
Nothing here needs a test runner: `provgate connector test NAME` runs the same functions and prints a table.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import logging
import re
import time
import typing
import unittest
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Literal
from urllib.parse import unquote

import msgspec
from msgspec import Struct

from connectors.contract import (
    ComparesAccounts,
    Expected,
    HasConfiguration,
    HasDirectory,
    KeepsAlive,
    ListsAccounts,
    ListsGroups,
    PutsGroups,
    SortsGroups,
    WatchesCredential,
)
from connectors.rehearsal import Rehearsal, rehearsing, rehearsing_connector
from connectors.testing.bench import AMBIGUOUS_WAIT_S as AMBIGUOUS_WAIT_S
from connectors.testing.bench import CALL_S, DELIVERIES_MAX, PROMISE_S_MAX, READS, Row, call_said, expect, same
from connectors.testing.bench import Bench as Bench
from connectors.testing.bench import Broken as Broken
from connectors.testing.bench import Conformance as Conformance
from connectors.testing.bench import NotApplicable as NotApplicable
from connectors.testing.bench import Seen as Seen
from connectors.testing.bench import SeenGroup as SeenGroup
from schemas import logs
from schemas.errors import ConfigurationError, ConnectorError, Misconfigured, NormalizationError
from schemas.events import Step, encode
from schemas.resources import User
from schemas.states import Change, Result

SLOW_CALL_S = 0.2
SLOW_ANSWER_S = 0.45
LAG_S = 5.0
RETRY_AFTER_S = 7
RETRY_AFTER_DATE_S = 40
EFFECT_WAIT_S = 5.0
PAGES_MAX = 100
SIDE_BY_SIDE = 6
SIDE_BY_SIDE_MS = 5.0
"""Latency of every call while several people are delivered at once, so that their calls really overlap."""

TEXT = 'Zoë Åsa O\'Łukasz "李" 🙂 <b>&amp;</b>'
"""Accents, an apostrophe, quotes, another script, a character beyond 16 bits, and what a careless page would interpret."""
STRANGE_ROLE = "No Such Role 7"
KEPT = "Ada Kept"
SHORT_CHARS = 6
"""Shorter texts of a person say nothing about whom they belong to, and stand in any log."""
ODD: tuple[Any, ...] = (
    *(
        "",
        " ",
        "x" * 5_000,
        "\x00",
        "\u202e\u200b",
        "@",
        "+",
        "🙂",
        '{"value":',
        "[[[[",
        "-1",
        "1e400",
        "../..",
    ),
    *(
        None,
        True,
        0,
        -1,
        1e308,
        [],
        {},
        [None],
        [""],
        [[]],
        {"value": None},
        [{"value": ""}],
        [{"value": {"value": []}}],
    ),
)
"""What an attribute may hold although nobody thought of it."""
CAPABILITIES: Mapping[str, tuple[Any, str]] = {
    "list_accounts": (ListsAccounts, "list_accounts"),
    "directory": (HasDirectory, "load_directory"),
    "groups": (PutsGroups, "find_group, put_group, change_members and delete_group"),
    "configuration": (HasConfiguration, "read_configuration, compare_configuration and write_configuration"),
    "list_groups": (ListsGroups, "list_groups, expected_group and list_members"),
    "group_maps": (SortsGroups, "group_stands"),
    "key_watch": (WatchesCredential, "credential_end"),
    "keep_alive": (KeepsAlive, "keep_alive_s and keep_alive"),
}
"""What `Spec.capabilities` has to name of the optional parts of the contract, and the methods that make each."""

UNKNOWN_ATTRIBUTE = "urn:example:params:scim:schemas:extension:trial:2.0:User"
_PATH_PARTS = re.compile(r"[/?&=]")
_HTML = "<!doctype html><html><body><h1>Please sign in</h1></body></html>"


class Verdict(Struct, frozen=True, omit_defaults=True):
    """What became of one promise.

    Args:
        promise: its name, e.g. `lost_answer`.
        says: the promise in a sentence.
        verdict: `kept`, `broken`, or `not applicable`.
        figure: what was measured.
        detail: what was seen when broken, or why it does not apply.
        remedy: what to do about a broken one.
        deliveries: what the newest deliveries came to, when broken.
        calls: the newest calls the product received, when broken.
        took_s: seconds.
    """

    promise: str
    says: str
    verdict: Literal["kept", "broken", "not applicable"]
    figure: str = ""
    detail: str = ""
    remedy: str = ""
    deliveries: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    took_s: float = 0.0


Try = Callable[["Bench"], Awaitable[str]]


class Promise(Struct, frozen=True):
    """One promise.

    Args:
        name: of the function that tries it.
        says: the promise in a sentence.
        remedy: what an author does whose connector breaks it.
        try_it: returns the figure, or raises `Broken` or `NotApplicable`.
        calls: it is about calls to a product, which a connector that calls nobody cannot break.
        call_s: the longest call, in seconds.
    """

    name: str
    says: str
    remedy: str
    try_it: Try
    calls: bool = True
    call_s: float = CALL_S


PROMISES: dict[str, Promise] = {}


def promise(says: str, remedy: str, *, calls: bool = True, call_s: float = CALL_S) -> Callable[[Try], Try]:
    """Make a function the definition of a promise; its name is the promise's. The arguments are those of `Promise`."""

    def made(try_it: Try) -> Try:
        name: str = try_it.__name__
        PROMISES[name] = Promise(name, says, remedy, try_it, calls, call_s)
        return try_it

    return made


WITHOUT_GROUPS: Mapping[str, str] = {
    "group": "the product has no groups that may be written",
    "group_lost_answer": "the product has no groups that may be written",
    "group_list": "the product has no groups that may be written",
}
"""For `Conformance.not_applicable` of such products."""


async def try_promise(trial: Conformance, name: str) -> Verdict:
    """Try one promise against a new product.

    Raises:
        ConfigurationError: the trial itself is set up wrongly.
    """
    asked = PROMISES[name]
    started = time.monotonic()
    bench: Bench | None = None

    def took_s() -> float:
        return round(time.monotonic() - started, 3)

    def broken(detail: str) -> Verdict:
        deliveries, calls = (bench.history(), bench.record()) if bench is not None else ((), ())
        return Verdict(name, asked.says, "broken", "", detail, asked.remedy, deliveries, calls, took_s())

    def inapplicable(why: str) -> Verdict:
        return Verdict(name, asked.says, "not applicable", detail=why, took_s=took_s())

    unknown = sorted(set(trial.not_applicable) - set(PROMISES))
    if unknown:
        raise ConfigurationError(type(trial).__name__, [f"not_applicable: {one}: not a promise" for one in unknown])
    if name in trial.not_applicable:
        return inapplicable(trial.not_applicable[name])
    try:
        async with asyncio.timeout(PROMISE_S_MAX), Bench.open(trial, call_s=asked.call_s) as bench:
            if bench.emulator is None and asked.calls:
                raise NotApplicable("calls nobody")
            figure = await asked.try_it(bench)
            bench.no_violation()
            return Verdict(name, asked.says, "kept", figure, took_s=took_s())
    except NotApplicable as why:
        return inapplicable(str(why))
    except Broken as seen:
        return broken(str(seen))
    except TimeoutError:
        return broken(f"no end within {PROMISE_S_MAX:g} s")
    except ConnectorError as exc:
        return broken(f"{type(exc).__name__} ({exc.code}) where none was expected: {exc.message}")
    except ConfigurationError:
        raise
    except Exception as exc:
        raised = bench.raised[-1] if bench is not None and bench.raised else f"{type(exc).__name__}: {exc}"
        return broken(f"raised what no connector may: {raised}")


async def try_all(
    trial: Conformance, seen: Callable[[Verdict], None] = lambda verdict: None, *, names: Sequence[str] = ()
) -> list[Verdict]:
    """Try every promise, or those named, one after the other; `seen` hears each verdict as it comes."""
    found = []
    for name in names or PROMISES:
        verdict = await try_promise(trial, name)
        seen(verdict)
        found.append(verdict)
    return found


def told(verdict: Verdict) -> str:
    """A broken promise for its author: what was promised, what was seen, what led there, what to do."""
    lines = [f"{verdict.promise}: {verdict.says}.", f"Seen: {verdict.detail}", f"To do: {verdict.remedy}"]
    lines += ["Deliveries:", *(f"  {one}" for one in verdict.deliveries)] if verdict.deliveries else []
    lines += ["Calls the product received:", *(f"  {one}" for one in verdict.calls)] if verdict.calls else []
    return "\n".join(lines)


def _as_test(name: str, says: str) -> Callable[[Conformance], None]:
    def test(self: Conformance) -> None:
        verdict = asyncio.run(try_promise(self, name))
        if verdict.verdict == "not applicable":
            raise unittest.SkipTest(verdict.detail)
        assert verdict.verdict != "broken", told(verdict)

    test.__name__ = f"test_{name}"
    test.__doc__ = f"{says}."
    return test


# The promises ---------------------------------------------------------------------------------------------------------


@promise(
    "The same create delivered again leaves one account with the same id",
    "let `find` return the account that the first delivery made; it is asked before every create.",
    calls=False,
)
async def idempotent_create(bench: Bench) -> str:
    """Vendor rule A3; the broker delivers at least once."""
    row = bench.row()
    first = await row.deliver()
    expect(first, Result.APPLIED, Result.BLOCKED)  # blocked: the product takes its time, and says so
    again = await row.deliver(again=True)
    if first.result is Result.BLOCKED:
        expect(again, Result.APPLIED, Result.FOUND, Result.BLOCKED, Result.RETRY)
        row.fold(first)
        await row.applied()
        bench.only(row)
        return f"{row.deliveries} deliveries, 1 account that the product took its time to make"
    expect(again, Result.APPLIED, Result.FOUND)
    seen = again.account_id if again.result is Result.APPLIED else again.sightings[0].account_id
    same(first.account_id, seen)
    row.fold(first)
    bench.only(row)
    return "2 deliveries, 1 account"


@promise(
    "An account that exists already is found and reported, not written on and not made twice",
    "let `find` answer for the natural key of the normalized account, and write nothing in it.",
)
async def existing_account(bench: Bench) -> str:
    """Delivery rule R4: what was merely found is linked by the gateway first."""
    owner = bench.row()
    await owner.applied()
    before, mark = bench.only(owner), bench.mark()
    other = bench.row()
    outcome = await other.deliver()
    expect(outcome, Result.FOUND)
    if writes := bench.writes(mark):
        raise Broken(f"{len(writes)} writing calls before the account was linked, first {call_said(writes[0])}")
    if [one.account_id for one in outcome.sightings] != [before.account_id]:
        raise Broken("the account that was found is not the one the product holds")
    other.fold(outcome)
    await other.applied()
    same(before.account_id, other.account_id)
    bench.only(other)
    return "found, 0 writes before the link"


@promise(
    "A create whose answer was lost leaves one account, linked",
    "never repeat a create by yourself: let the error of `self.http` pass, and let `find` see the account next time.",
)
async def lost_answer(bench: Bench) -> str:
    """Vendor rule A3: the product wrote, and nobody heard."""
    return await _survives(bench, "drop_response", times=1)


@promise(
    "A connection reset before the effect leaves one account in the end",
    "let the error of `self.http` pass as it is; the delivery comes again and looks first.",
)
async def reset_before(bench: Bench) -> str:
    """Nothing was written: it has to be sent again."""
    return await _survives(bench, "reset", times=1)


@promise(
    "A connection reset after the effect leaves one account in the end",
    "never repeat a create by yourself: let the error of `self.http` pass, and let `find` see the account next time.",
)
async def reset_after(bench: Bench) -> str:
    """It was written: it must not be sent again."""
    return await _survives(bench, "reset", times=1, when="after")


@promise(
    "A slow answer that has its effect after we gave up leaves one account",
    "let the error of `self.http` pass as it is: it carries `ambiguous`, and the next delivery looks first.",
    call_s=SLOW_CALL_S,
)
async def slow_answer(bench: Bench) -> str:
    """A timeout says nothing about what the product does later."""
    row = bench.row()
    bench.on_create("slow", delay_s=SLOW_ANSWER_S, times=1)
    for _ in range(DELIVERIES_MAX):
        first = await row.deliver()
        expect(first, Result.RETRY)
        if first.ambiguous or not first.steps or first.steps[-1].method not in READS:
            break
        row.fold(first)  # on a busy machine a look-up may take too long as well
    if not first.ambiguous:
        raise Broken("a write that timed out was not reported as ambiguous")
    await _until(lambda: len(bench.accounts()) == 1, "the slow call never had its effect")
    row.fold(first)
    bench.product.advance(AMBIGUOUS_WAIT_S)
    await row.applied()
    bench.only(row)
    return f"gave up after {SLOW_CALL_S:g} s, {row.deliveries} deliveries, 1 account"


@promise(
    "A truncated answer is neither success nor failure: one account in the end",
    "check the shape of every answer before you use it; raise Unavailable, with ambiguous=True after a write.",
)
async def truncated_answer(bench: Bench) -> str:
    """Half a JSON document, to the write and to a read, with a length that tells and with one that lies."""
    deliveries = 0
    for number, honest_length in ((1, False), (2, True)):
        row = bench.row(number)
        bench.on_create("truncate", times=1, honest_length=honest_length)
        await _not_applied(row)
        await row.applied()
        bench.only(row, count=number)
        deliveries += row.deliveries
    for number, honest_length in ((3, False), (4, True)):
        await _unreadable_look_up(bench, number, "truncate", honest_length=honest_length)
    return f"2 writes, 2 look-ups, {deliveries} deliveries of the writes, 4 accounts for 4 people"


@promise(
    "A web page instead of an answer is never success",
    "check the shape of every answer before you use it; raise Unavailable, with ambiguous=True after a write.",
)
async def html_answer(bench: Bench) -> str:
    """A proxy's error page, and a sign-in page that comes with 200."""
    row = bench.row()
    bench.on_create("html", times=1)
    await _not_applied(row)
    sign_in: dict[str, Any] = {"status": 200, "body": _HTML, "headers": {"Content-Type": "text/html"}}
    bench.on_create("status", times=1, **sign_in)
    await _not_applied(row)
    if bench.accounts():
        raise Broken("an account exists although every create was answered by a web page")
    await row.applied()
    bench.only(row)
    await _unreadable_look_up(bench, 2, "status", **sign_in)
    return f"3 pages, {row.deliveries} deliveries, 2 accounts for 2 people"


@promise(
    "A burst of server errors ends in one account",
    "let the errors of `self.http` pass; they are not the person's fault and come again.",
)
async def server_errors(bench: Bench) -> str:
    """500, 502, 503 and 504 to whatever comes first, then to the create, the last one after its effect."""
    row = bench.row()
    for status in (500, 502, 503, 504):
        bench.product.fault("status", status=status, times=1)
    for status in (503, 502):
        bench.on_create("status", status=status, times=1)
    bench.on_create("status", status=504, times=1, when="after")
    first = await row.deliver()
    expect(first, Result.RETRY)
    row.fold(first)
    await row.applied()
    bench.only(row)
    return f"7 errors, {row.deliveries} deliveries, 1 account"


@promise(
    "429 with Retry-After in seconds is obeyed and uses up no attempt",
    "let RateLimited of `self.http` pass at once; it carries the wait, and the whole target observes it.",
)
async def rate_limit_in_seconds(bench: Bench) -> str:
    """Vendor rule A11; RFC 9110 section 10.2.3."""
    waits = [await _limited(bench, number, RETRY_AFTER_S, RETRY_AFTER_S) for number in (1, 2)]
    return f"asked {RETRY_AFTER_S} s, waits {min(waits):.1f} s"


@promise(
    "429 with Retry-After as a date is obeyed and uses up no attempt",
    "let RateLimited of `self.http` pass at once; it carries the wait, and the whole target observes it.",
)
async def rate_limit_as_date(bench: Bench) -> str:
    """Vendor rule A11; RFC 9110 section 10.2.3."""
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=RETRY_AFTER_DATE_S), usegmt=True)
    waits = [await _limited(bench, number, moment, RETRY_AFTER_DATE_S) for number in (1, 2)]
    return f"asked {RETRY_AFTER_DATE_S} s, waits {min(waits):.1f} s"


@promise(
    "An update delivered again changes nothing more, and makes no account",
    "make `update` set values rather than add to them, and make no account in it.",
    calls=False,
)
async def redelivery(bench: Bench) -> str:
    """The broker delivers at least once; the connector is told that it may have acted."""
    row = bench.row()
    await row.applied()
    made = row.account_id
    row.wish(bench.trial.user(1, text="Ada Changed"))
    first = await row.deliver()
    expect(first, Result.APPLIED)
    held = bench.only(row)
    for _ in range(2):
        again = await row.deliver(again=True)
        expect(again, Result.APPLIED)
        same(made, again.account_id)
        if bench.only(row) != held:
            raise Broken("a redelivery changed what the product holds")
    return "3 deliveries, 1 account, same values"


@promise(
    "Reads that lag behind writes lead to no second account",
    "do not conclude from a read that a write was not done; after 409, raise Unavailable with ambiguous=True.",
)
async def lagging_reads(bench: Bench) -> str:
    """The answer to a create was lost and is not seen yet; and a change right after a create that is not seen yet."""
    lost = bench.row()
    bench.on_create("drop_response", times=1)
    bench.product.fault("stale_read", method="GET", lag_s=LAG_S)
    await lost.applied()
    bench.only(lost)
    quick = bench.row(2)
    await quick.applied()
    made = quick.account_id
    quick.wish(bench.trial.user(2, text="Ada Quick"))
    await quick.applied()
    same(made, quick.account_id)
    bench.only(quick, count=2)
    return f"{LAG_S:g} s of lag, {lost.deliveries + quick.deliveries} deliveries, 2 accounts for 2 people"


@promise(
    "The list of accounts is complete, whatever its pages",
    "return one page with the cursor of the next one, and None only after the last page.",
)
async def paging(bench: Bench) -> str:
    """For reconciliation and the match report: every account once, and a cursor that comes to an end."""
    connector = bench.connector
    if not isinstance(connector, ListsAccounts):
        raise NotApplicable("lists no accounts")
    count = 2 * bench.trial.page_size + 1
    rows = [bench.row(number + 1) for number in range(count)]
    for row in rows:
        await row.applied()
    bench.product.advance(AMBIGUOUS_WAIT_S)
    pages = 0

    async def page_of(cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        nonlocal pages
        pages += 1
        page, following = await connector.list_accounts(cursor)
        return page, following

    listed = [str(entry["account_id"]) for entry in await _whole(page_of)]
    missing = {row.account_id for row in rows} - set(listed)
    if missing:
        raise Broken(f"{len(missing)} of {count} accounts are not listed")
    if len(listed) != len(set(listed)):
        raise Broken("an account is listed twice")
    return f"{count} accounts on {pages} page{'s' if pages > 1 else ''}"


@promise(
    "Active false deactivates and never deletes; active true brings the same account back",
    "map `user.is_active` to the product's state in `update`, and never delete there.",
)
async def disable_and_enable(bench: Bench) -> str:
    """Vendor rule A7."""
    row = bench.row()
    await row.applied()
    made = row.account_id
    for active in (False, True):
        row.wish(bench.trial.user(1, active=active), Change.ACTIVATE if active else Change.DEACTIVATE)
        await row.applied()
        same(made, row.account_id)
        if bench.only(row).active is not active:
            raise Broken(f"active {str(active).lower()} was applied, but the product shows the opposite")
        again = await row.deliver(again=True)
        expect(again, Result.APPLIED)
    return "off and on, same account"


@promise(
    "A deletion does what the settings say, to that account only, and may be repeated",
    "call the product for `account_id` only, take Gone for done, and obey `settings.on_delete`.",
)
async def delete(bench: Bench) -> str:
    """Vendor rules A6 and A7: not found is done; a neighbour is untouched."""
    row, neighbour = bench.row(1), bench.row(2)
    await row.applied()
    await neighbour.applied()
    kept = bench.only(neighbour, count=2)
    mine = row.account_id
    row.wish_deleted()
    first = await row.deliver()
    expect(first, Result.APPLIED)
    for _ in range(2):
        expect(await row.deliver(again=True), Result.APPLIED)
    held = {one.account_id: one for one in bench.accounts()}
    _deleted_as_set(bench, held, mine, kept)
    return f"{bench.on_delete}d, 3 deliveries, neighbour untouched"


@promise(
    "An account that somebody removed at the product is made again, and its deletion is done",
    "let Gone pass in `update`, and take it for done in `delete`.",
)
async def vanished_account(bench: Bench) -> str:
    """Vendor rule A6: not found on update means look, then create; not found on delete means done."""
    row, leaver = bench.row(1), bench.row(2)
    await row.applied()
    await leaver.applied()
    bench.trial.lose_accounts(bench)
    if bench.accounts():
        raise NotApplicable("the product cannot be emptied")
    row.wish(bench.trial.user(1, text="Ada Again"))
    await row.applied()
    bench.only(row)
    leaver.wish_deleted()
    await leaver.applied()
    bench.only(row)
    return f"made again after {row.deliveries - 1} deliver{'y' if row.deliveries == 2 else 'ies'}, deletion done"


@promise(
    "A new login keeps the account, or is refused with a reason and without any change",
    "send the new login to the same id; where the product cannot, raise Rejected naming the attribute before any write.",
)
async def rename(bench: Bench) -> str:
    """The archive, the history and the licence hang on the account."""
    row = bench.row()
    await row.applied()
    before = bench.only(row)
    row.wish(bench.trial.renamed(1, 7))
    if bench.trial.rename == "refused":
        outcome = await row.settle()
        expect(outcome, Result.REJECTED)
        if outcome.reason is None or outcome.reason.attribute is None:
            raise Broken("the refusal does not name the attribute")
        if bench.accounts() != [before]:
            raise Broken("the refused rename changed something")
        return f"refused: {outcome.reason.code}"
    await row.applied()
    same(before.account_id, row.account_id)
    if bench.only(row).key == before.key:
        raise Broken("applied, but the product still knows the person by the old login")
    return "new login, same account"


@promise(
    "Names in any script arrive letter by letter",
    "pass texts on as they are; JSON and `parts` need no escaping of yours.",
)
async def unicode(bench: Bench) -> str:
    """On create and on update."""
    row = bench.row(1, text=TEXT)
    await row.applied()
    if TEXT not in bench.only(row).texts:
        raise Broken(f"created with {TEXT!r}, the product holds {bench.only(row).texts!r}")
    changed = TEXT[::-1]
    row.wish(bench.trial.user(1, text=changed))
    await row.applied()
    if changed not in bench.only(row).texts:
        raise Broken(f"changed to {changed!r}, the product holds {bench.only(row).texts!r}")
    return f"{len(TEXT)} characters, {len(TEXT.encode())} bytes"


@promise(
    "An unknown role is refused by name before anything is written",
    "raise NormalizationError in `normalize` with a code that begins with unknown_, the attribute and the names.",
)
async def unknown_role(bench: Bench) -> str:
    """Vendor rule A2: all or nothing, and the sentence is what the Entra admin reads."""
    document = bench.trial.with_unknown_role(bench.trial.user(1), STRANGE_ROLE)
    if document is None:
        raise NotApplicable("the product has no roles or teams by name")
    mark = bench.mark()
    row = Row(bench, document)
    outcome = await row.deliver()
    expect(outcome, Result.REJECTED)
    reason = outcome.reason
    if reason is None or not any(STRANGE_ROLE in text for text in (reason.message, *reason.names)):
        raise Broken("the refusal does not name the role")
    if not reason.attribute:
        raise Broken("the refusal does not name the attribute")
    if bench.writes(mark) or bench.accounts():
        raise Broken("something was written all the same")
    return f"{reason.code}, 0 writes"


@promise(
    "A revoked credential stops the target and loses nothing",
    "let Misconfigured of `self.http` pass, in `check` too, and make a call that needs the credential in `check`.",
)
async def revoked_credential(bench: Bench) -> str:
    """Vendor rule A9: an outcome of its own, which opens the circuit; nobody's data are to blame."""
    row = bench.row()
    bench.trial.revoke(bench, revoked=True)
    outcome = await row.deliver()
    expect(outcome, Result.MISCONFIGURED)
    row.fold(outcome)
    try:
        await bench.connector.check()
    except Misconfigured:
        pass
    else:
        raise Broken("check() is content with a credential that is refused")
    bench.trial.revoke(bench, revoked=False)
    await row.applied()
    bench.only(row)
    await bench.connector.check()
    return f"misconfigured, then applied on delivery {row.deliveries}"


@promise(
    "A credential that ends in the middle of a change stops it; a new one in its file takes effect by itself",
    "let Misconfigured of `self.http` pass, and read the secret again after a 401, as the ready-made signatures do.",
)
async def expired_credential(bench: Bench) -> str:
    """The look-up is still answered, the write is not."""
    row = bench.row()
    fault = bench.on_create("auth")
    outcome = await row.deliver()
    expect(outcome, Result.MISCONFIGURED)
    row.fold(outcome)
    if bench.accounts():
        raise Broken("an account was made with a credential that was refused")
    bench.product.clear_faults(fault)
    bench.trial.replace_credential(bench)
    await row.applied()
    bench.only(row)
    return "misconfigured, then applied with the new credential, nothing restarted"


@promise(
    "The check of a well set up target finds no error and writes nothing",
    "return a finding for what is well, too, and only read.",
)
async def check(bench: Bench) -> str:
    """Vendor rule A12."""
    before = bench.accounts() if bench.emulator is not None else []
    mark = bench.mark()
    findings = await bench.connector.check()
    if not findings:
        raise Broken("check() found nothing, not even that all is well")
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        raise Broken(f"check() finds an error: {errors[0].message}")
    if bench.accounts() != before or any(not call["path"].endswith("/token") for call in bench.writes(mark)):
        raise Broken("check() wrote something")
    return f"{len(findings)} finding{'s' if len(findings) > 1 else ''}, 0 writes"


@promise(
    "What the connector declares is what it can do",
    "correct `spec`: the gateway asks only for what stands there, and docs, checks and refusals are printed from it.",
    calls=False,
)
async def declaration(bench: Bench) -> str:
    """House style 2: a part that is not declared is never asked for, one that is declared in vain fails for somebody else."""
    spec, kind, connector = bench.spec, bench.kind, bench.connector
    wrong = []
    if bench.trial.connector and spec.name != bench.trial.connector:
        wrong.append(f"spec.name is {spec.name!r}, and the connector is known as {bench.trial.connector!r}")
    for capability, (part, method) in CAPABILITIES.items():
        if isinstance(connector, part) and capability not in {*spec.capabilities, *kind.spec.capabilities}:
            wrong.append(f"it has {method}, and spec.capabilities does not name {capability!r}")
        if capability in spec.capabilities and not isinstance(connector, part):
            wrong.append(f"spec.capabilities names {capability!r}, and there is no {method}")
    if spec.has_groups != ("groups" in spec.capabilities):
        wrong.append("spec.resources names Group if and only if spec.capabilities names 'groups'")
    if not spec.has_groups and not spec.groups_step:
        wrong.append("spec.groups_step does not say what the Entra admin does about groups")
    paths = [attribute.path for attribute in spec.attributes]
    wrong += [f"spec.attributes names {path} twice" for path in sorted({one for one in paths if paths.count(one) > 1})]
    if not spec.any_attribute:
        wrong += [
            f"spec.identity names {one}, which spec.attributes does not" for one in set(spec.identity) - set(paths)
        ]
        if not any(attribute.required for attribute in spec.attributes):
            wrong.append("spec.attributes has none that is required: by what is a person known?")
    limit, takes_per_s = spec.rate_limit, type(bench.emulator).rate_per_s if bench.emulator is not None else 0.0
    if takes_per_s and (limit is None or limit.calls / limit.per_s > takes_per_s):
        wrong.append(
            f"spec.rate_limit allows more than the {takes_per_s:g} calls per second the emulated product takes"
        )
    if isinstance(connector, WatchesCredential):
        end = connector.credential_end()
        if not (end.what and end.remedy and end.ends_at > 0):
            wrong.append("credential_end() does not say what ends, when, and what to do")
    if wrong:
        raise Broken("; ".join(wrong))
    return f"{len(paths)} attributes, {len(spec.capabilities)} optional parts"


@promise(
    "No value crashes normalization: it is taken, or refused by its attribute; the same wish gives the same account",
    "refuse in `normalize` with NormalizationError naming the attribute; use no clock, no randomness and no call there.",
    calls=False,
)
async def odd_values(bench: Bench) -> str:
    """Empty, long and foreign values in every attribute the person has; Entra sends what the directory holds."""
    plain = bench.trial.user(1)
    mark = bench.mark() if bench.emulator is not None else 0
    asked = refused = 0
    for path, document in _with_odd_values(plain):
        try:
            wish = User.from_document(document)
        except msgspec.ValidationError:
            continue  # never reaches a connector: the gateway stores no such document
        asked += 1
        try:
            accounts = [bench.connector.normalize(wish, bench.directory) for _ in range(2)]
            [bench.connector.account_keys(account) for account in accounts]
            bench.connector.ignored(wish)
        except NormalizationError as exc:
            refused += 1
            if not exc.attribute:
                raise Broken(f"the refusal of an odd value in {path} names no attribute: {exc.message}") from None
            continue
        except Exception as exc:
            raise Broken(f"an odd value in {path}: {bench.raised[-1] if bench.raised else repr(exc)}") from None
        if accounts[0] != accounts[1]:
            raise Broken(f"the same wish with an odd value in {path} is normalized to two different accounts")
    if bench.emulator is not None and bench.product.recorded(mark):
        raise Broken("normalize made a call")
    return f"{asked} odd people, {refused} refused by attribute"


@promise(
    "Who lacks a required attribute is refused by its name before the first call",
    "check in `normalize` every attribute that `spec.attributes` calls required, and raise NormalizationError naming it.",
)
async def required_attributes(bench: Bench) -> str:
    """Vendor rule A1: Entra shows the sentence word for word."""
    asked = [one.path for one in bench.spec.attributes if one.required]
    tried = 0
    for path in asked:
        for document in _without(bench.trial.user(1), path):
            mark = bench.mark()
            outcome = await Row(bench, document).deliver()
            expect(outcome, Result.REJECTED)
            if calls := bench.product.recorded(mark):
                raise Broken(f"a person without {path} is refused only after {call_said(calls[0])}")
            if outcome.reason is None or not outcome.reason.attribute:
                raise Broken(f"a person without {path} is refused, and no attribute is named")
            tried += 1
    if not tried:
        raise NotApplicable("no attribute of the trial's person is required")
    return f"{tried} of {len(asked)} required attribute{'s' if len(asked) > 1 else ''} left out, 0 calls"


@promise(
    "What Entra does not send is kept as the product holds it",
    "send only what is not UNSET; where an update replaces everything, read the account and merge first.",
)
async def not_sent_is_kept(bench: Bench) -> str:
    """Vendor rule A4: an attribute without a mapping belongs to the product's own administrators."""
    row = bench.row(1, text=KEPT)
    await row.applied()
    before = bench.only(row)
    if KEPT not in before.texts:
        raise NotApplicable("the product shows no text of the person (see accounts in the trial)")
    document = _without_text(bench.trial.user(1, text=KEPT), KEPT)
    if _refused(bench, document):
        raise NotApplicable("the text is required")
    row.wish(document)
    await row.applied()
    if bench.only(row).texts != before.texts:
        raise Broken(f"the update did not speak of {KEPT!r}, and the product now holds {bench.only(row).texts!r}")
    return "update without the text, text kept"


@promise(
    "What the product cannot hold is named as ignored, and the rest is applied",
    "return `ignored_paths(user, self.spec)` in `ignored`.",
    calls=False,
)
async def ignored_attribute(bench: Bench) -> str:
    """Vendor rule A8: loss is never silent."""
    if bench.spec.any_attribute:
        raise NotApplicable("takes attributes of any name")
    row = Row(bench, {**bench.trial.user(1), UNKNOWN_ATTRIBUTE: {"shoeSize": "43"}})
    outcome = await row.applied()
    if not any(path.startswith(UNKNOWN_ATTRIBUTE) for path in outcome.ignored):
        raise Broken(f"shoeSize is ignored silently; named are: {', '.join(outcome.ignored) or 'none'}")
    bench.only(row)
    return f"{len(outcome.ignored)} named"


@promise(
    "A delivery that only looks writes nothing, and finds who is there",
    "write nothing in `find`, and let it answer without an account, by the identities alone.",
)
async def looks_only(bench: Bench) -> str:
    """Delivery rule R2: whose account is this, and what is it called? An identity that is nobody's finds nobody."""
    owner, nobody = bench.row(1), bench.row(2)
    await owner.applied()
    bench.product.advance(AMBIGUOUS_WAIT_S)
    mark = bench.mark()
    seen = [await row.look_only() for row in (owner, nobody)]
    for outcome in seen:
        expect(outcome, Result.SEEN)
    if writes := bench.writes(mark):
        raise Broken(f"it wrote while looking: {call_said(writes[0])}")
    if [one.account_id for one in seen[0].sightings] != [owner.account_id]:
        raise Broken("the account was not found by the person's identities")
    if seen[1].sightings:
        raise Broken("somebody was found under the identities of a person who is not there")
    return "1 found, 1 not there, 0 writes"


@promise(
    "A rehearsal sends nothing that writes, and begins with the very call that is made then",
    "list in `reading_calls` only what changes nothing; where the product's answers say more than was sent, write `imagine`.",
)
async def rehearsal(bench: Bench) -> str:
    """`provgate plan` and shadow mode: an operator relies on them before anything happens."""
    assert bench.http is not None
    row = bench.row(1)
    connector = rehearsing_connector(bench.kind, bench.connector.settings, bench.http)
    calls = 0
    for wish in (None, bench.trial.user(1, text="Ada Rehearsed"), {}):
        if wish is not None:
            row.wish(wish) if wish else row.wish_deleted()
        before, mark = bench.accounts(), bench.mark()
        with rehearsing(Rehearsal()) as planned:
            outcome = await row.deliver(by=connector)
        expect(outcome, Result.APPLIED, Result.BLOCKED)
        row.fence -= 1
        sent = [call for call in bench.writes(mark) if not call["path"].endswith("/token")]
        if sent or bench.accounts() != before:
            raise Broken(f"a rehearsal really sent {call_said(sent[0]) if sent else 'something that writes'}")
        made = [(step.method, step.path) for step in await _steps_until_applied(row) if step.method not in READS]
        wanted = [(call.method, call.path) for call in planned.calls]
        if wanted[:1] != made[:1]:
            raise Broken(f"rehearsed was {_listed(wanted)}, and made was {_listed(made)}")
        calls += len(wanted)
    return f"create, change and deletion, {calls} call{'s' if calls != 1 else ''} shown, 0 sent"


@promise(
    "Every call of a delivery is a step of its outcome, named without ids, logins or values",
    "pass ctx=ctx with every call, write paths as templates, and put ids and values into parts and query.",
)
async def steps(bench: Bench) -> str:
    """Deadline, trace context, idempotency key and history hang on `ctx`; ids in a path would be neither encoded nor masked."""
    await bench.row(1).applied()  # tokens and names are loaded once, and belong to no delivery
    row, count = bench.row(2), 0
    for wish in (None, bench.trial.user(2, text="Ada Stepped"), {}):
        if wish is not None:
            row.wish(wish) if wish else row.wish_deleted()
        told, mark = [row.account_id, *row.document.values()], bench.mark()
        recorded = await _steps_until_applied(row)
        told += [row.account_id, *row.document.values()]
        calls = [call for call in bench.product.recorded(mark) if not call["path"].endswith("/token")]
        if len(calls) > len(recorded):
            raise Broken(f"{len(calls)} calls, and {len(recorded)} steps: a call was made without ctx")
        for step in recorded:
            for part in map(unquote, _PATH_PARTS.split(step.path)):
                if part and any(part == one for one in told):
                    raise Broken(f"the path {step.path!r} holds {part!r}; it belongs into parts or query")
        count += len(recorded)
    return f"{count} steps for create, change and deletion"


@promise(
    "People delivered side by side get their own accounts and their own values",
    "keep nothing about a person on `self`: one connector serves many deliveries at the same time.",
)
async def side_by_side(bench: Bench) -> str:
    """A worker delivers as many people at once as the target's window allows."""
    rows = [bench.row(number + 1, text=f"Ada Number {number + 1}") for number in range(SIDE_BY_SIDE)]
    bench.product.set(delay_ms=SIDE_BY_SIDE_MS)
    for round_ in ("Number", "Changed"):
        for number, row in enumerate(rows, 1):
            if round_ == "Changed":
                row.wish(bench.trial.user(number, text=f"Ada Changed {number}"))
        await asyncio.gather(*(row.applied() for row in rows))
        for number, row in enumerate(rows, 1):
            held = bench.only(row, count=SIDE_BY_SIDE)
            if held.texts and not any(text == f"Ada {round_} {number}" for text in held.texts):
                raise Broken(f"the account of Ada {round_} {number} holds {held.texts!r}")
    return f"{SIDE_BY_SIDE} people at once, made and changed"


@promise(
    "A login that somebody else holds is refused or waits, and neither account changes",
    "raise Conflict, or let the product's refusal pass; never write on the account that was found under the new login.",
)
async def taken_login(bench: Bench) -> str:
    """A rename onto a neighbour must not merge two people."""
    row, neighbour = bench.row(1, text="Ada One"), bench.row(2, text="Ada Two")
    await row.applied()
    await neighbour.applied()
    before = sorted(bench.accounts(), key=lambda one: one.account_id)
    row.wish(bench.trial.renamed(1, 2))
    outcome = await row.deliver()
    after = sorted(bench.accounts(), key=lambda one: one.account_id)
    if [one.account_id for one in after] != [one.account_id for one in before]:
        raise Broken("an account was made or removed")
    if outcome.result is Result.APPLIED:
        if len({one.key for one in after}) < len(after):
            raise NotApplicable("the emulated product lets two accounts have one login")
        raise Broken("applied, but the product does not show the new login")
    if {(one.account_id, one.key) for one in after} != {(one.account_id, one.key) for one in before}:
        raise Broken("not applied, but a login changed")
    if next(one for one in after if one.account_id == neighbour.account_id) not in before:
        raise Broken("the account that holds the login was written on")
    return f"{outcome.result}" + (f": {outcome.reason.code}" if outcome.reason else "")


@promise(
    "A list that breaks off is an error, never a shorter list",
    "let the error of `self.http` pass in `list_accounts`, and check the shape of every page.",
)
async def broken_list(bench: Bench) -> str:
    """Reconciliation would take the missing ones for removed."""
    if not isinstance(bench.connector, ListsAccounts):
        raise NotApplicable("lists no accounts")
    count = 2 * bench.trial.page_size + 1
    for number in range(count):
        await bench.row(number + 1).applied()
    bench.product.advance(AMBIGUOUS_WAIT_S)
    sign_in: dict[str, Any] = {"status": 200, "body": _HTML, "headers": {"Content-Type": "text/html"}}
    kinds: tuple[tuple[Any, dict[str, Any]], ...] = (
        ("status", {"status": 503}),
        ("status", sign_in),
        ("status", {"status": 200, "body": {}}),
        ("truncate", {"honest_length": True}),
    )
    for kind, options in kinds:
        fault = bench.product.fault(kind, skip=1, method="GET", **options)
        listed, cursor = 0, None
        try:
            for _ in range(PAGES_MAX):
                page, cursor = await bench.connector.list_accounts(cursor)
                listed += len(page)
                if cursor is None:
                    break
        except ConnectorError:
            pass
        else:
            if listed < count:
                raise Broken(
                    f"the next page was {options or kind}, and the list ended with {listed} of {count} as if whole"
                )
            raise NotApplicable("the whole list is one call")
        bench.product.clear_faults(fault)
    return f"{len(kinds)} ways to break off, {len(kinds)} errors"


@promise(
    "The other setting of on_delete is obeyed, too",
    "read `settings.on_delete` in `delete`, or leave the setting out.",
)
async def other_deletion(bench: Bench) -> str:
    """Vendor rule A7: an operator decides whether leavers are deleted or deactivated."""
    ways = _choices(bench.kind.settings_type, "on_delete")
    others = [way for way in ways if way in ("delete", "deactivate") and way != bench.on_delete]
    if not others:
        raise NotApplicable("there is no such setting")
    await bench.reconfigure(on_delete=others[0])
    row, neighbour = bench.row(1), bench.row(2)
    await row.applied()
    await neighbour.applied()
    kept, mine = bench.only(neighbour, count=2), row.account_id
    row.wish_deleted()
    await row.applied()
    held = {one.account_id: one for one in bench.accounts()}
    _deleted_as_set(bench, held, mine, kept)
    return f"{bench.on_delete}d, neighbour untouched"


@promise(
    "A group is made once, renamed in place, its members come and go, and its end leaves the people",
    "find groups by name, rename by id, send members as differences, and delete nobody with the group.",
)
async def group(bench: Bench) -> str:
    """Members travel as differences, and a difference applied twice is the same once."""
    people = await _two_members(bench)
    row = _group_row(bench, 1, "Readers", add=people)
    first = await row.deliver()
    expect(first, Result.APPLIED)
    held = SeenGroup(str(first.account_id), "Readers", frozenset(people))
    for _ in range(2):
        if bench.trial.groups(bench) != [held]:
            raise Broken(f"expected one group with two members, the product holds {bench.trial.groups(bench)}")
        again = await row.deliver(again=True)
        expect(again, Result.APPLIED, Result.FOUND)
    row.fold(first)
    row.wish(_group_document(bench, 1, "Readers and Writers", remove=people[:1]))
    await row.applied()
    for _ in range(2):
        wanted = SeenGroup(held.group_id, "Readers and Writers", frozenset(people[1:]))
        if bench.trial.groups(bench) != [wanted]:
            raise Broken(f"expected the group under its new name with one member, not {bench.trial.groups(bench)}")
        expect(await row.deliver(again=True), Result.APPLIED)
    before = bench.accounts()
    row.wish_deleted()
    await row.applied()
    expect(await row.deliver(again=True), Result.APPLIED)
    if bench.trial.groups(bench):
        raise Broken("the group is still there")
    if bench.accounts() != before:
        raise Broken("the end of the group changed its people")
    return "2 members in, 1 out, renamed, deleted; people untouched"


@promise(
    "A group whose create was not answered is one group with all its members in the end",
    "let `find_group` answer for the group's own name, and `change_members` be safe to repeat.",
)
async def group_lost_answer(bench: Bench) -> str:
    """The product made it, and nobody heard."""
    people = await _two_members(bench)
    row = _group_row(bench, 1, "Readers", add=people)
    method, path = bench.trial.create_group_call
    bench.product.fault("drop_response", method=method, path=path, times=1)
    await row.applied()
    held = SeenGroup(str(row.account_id), "Readers", frozenset(people))
    if bench.trial.groups(bench) != [held]:
        raise Broken(f"expected one linked group with two members, the product holds {bench.trial.groups(bench)}")
    return f"{row.deliveries} deliveries, 1 group, 2 members"


@promise(
    "What the list shows of an account that is as wished is what `expected` says of it",
    "let `expected` and `list_accounts` spell identities, owner and values alike; what Entra does not send has no key.",
)
async def comparison(bench: Bench) -> str:
    """Otherwise reconciliation would find everybody drifted, and repair for ever."""
    connector = bench.connector
    if not (isinstance(connector, ListsAccounts) and isinstance(connector, ComparesAccounts)):
        raise NotApplicable("compares no accounts")
    rows = [bench.row(1, text=TEXT), bench.row(2), bench.row(3, active=False)]
    for row in rows:
        await row.applied()
    bench.product.advance(AMBIGUOUS_WAIT_S)
    held = {str(entry["account_id"]): entry for entry in await _whole(connector.list_accounts)}
    values = 0
    for row in rows:
        wish = User.from_document(row.document)
        wanted = connector.expected(connector.normalize(wish, bench.directory))
        entry = held.get(str(row.account_id))
        if entry is None and not wish.is_active:
            continue  # never let in where a product makes no account for who is switched off
        values += _compared(entry, wanted)
        if entry is not None and entry["active"] not in (wish.is_active, None):
            raise Broken(f"active is {wish.is_active}, and the list shows {entry['active']}")
    return f"{len(rows)} accounts, {values} values alike"


@promise(
    "Groups and their members are listed whole, and are found as wished",
    "list every group once, all its members, and spell in `expected_group` as `list_groups` does.",
)
async def group_list(bench: Bench) -> str:
    """For the reconciliation of groups: who is not listed would be taken for removed."""
    connector = bench.connector
    if not isinstance(connector, ListsGroups):
        raise NotApplicable("lists no groups")
    people = await _two_members(bench)
    made = [
        (_group_row(bench, 1, "Readers", add=people), people),
        (_group_row(bench, 2, TEXT, add=people[:1]), people[:1]),
    ]
    made.append((_group_row(bench, 3, "Nobody", add=()), []))
    for row, _ in made:
        await row.applied()
    bench.product.advance(AMBIGUOUS_WAIT_S)
    listed = await _whole(connector.list_groups)
    held = {str(entry["account_id"]): entry for entry in listed}
    if len(held) < len(listed):
        raise Broken("a group is listed twice")
    for row, members in made:
        if (wanted := connector.expected_group(row.event().group())) is not None:
            _compared(held.get(str(row.account_id)), wanted)
        seen = await _whole(functools.partial(connector.list_members, str(row.account_id)))
        if sorted(seen) != sorted(members):
            raise Broken(f"a group of {len(members)} members is listed with {len(seen)}")
    return f"{len(made)} groups, {len(people) + 1} memberships"


@promise(
    "No credential shows in any outcome, finding, error, log line or print",
    "never put a setting of type Secret, a header or an answer's raw text into a message, a log line or a print.",
)
async def no_secret(bench: Bench) -> str:
    """Vendor rule A10: after good and bad deliveries of every kind, everything that came out is searched."""
    shown: list[str] = []
    with _everything_said() as said:
        await _all_kinds_of_deliveries(bench)
        bench.trial.revoke(bench, revoked=True)
        try:
            await bench.connector.check()
        except ConnectorError as exc:
            shown += [str(exc), repr(exc), *map(str, exc.names)]
        bench.trial.revoke(bench, revoked=False)
        shown += [finding.message for finding in await bench.connector.check()]
    shown += [encode(outcome).decode() for outcome in bench.outcomes]
    shown += [repr(bench.connector.settings), *said()]
    for text in shown:
        for secret in bench.trial.secrets():
            if secret in text:
                at = text.index(secret)
                raise Broken(f"the credential shows: …{text[max(0, at - 60) : at]}[credential]")
    return f"{sum(map(len, shown)):,} characters searched"


@promise(
    "No person's login or name shows in a log line or print",
    "log ids of this gateway, codes and counts only; what a person may read belongs into an error or a finding.",
)
async def no_person(bench: Bench) -> str:
    """Logs are kept long and read by many; the history of a person is where their values are, masked."""
    with _everything_said() as said:
        rows = await _all_kinds_of_deliveries(bench)
        rows[0].wish(bench.trial.user(1, text="Ada Searched"))
        await rows[0].applied()
        rows[0].wish_deleted()
        await rows[0].applied()
    values = {value for row in rows for value in _texts(row.document) if len(value) > SHORT_CHARS}
    for text in said():
        for value in values:
            if value in text:
                line = next(one for one in text.splitlines() if value in one)
                raise Broken(f"a log line or print shows a person: {line.replace(value, '[value]')[:200]}")
    return f"{len(values)} values of {len(rows)} people, {sum(map(len, said())):,} characters searched"


# Parts of promises ----------------------------------------------------------------------------------------------------


async def _survives(bench: Bench, kind: str, **options: Any) -> str:
    """A fault on the create: not applied at first, one linked account in the end."""
    row = bench.row()
    bench.on_create(kind, **options)
    first = await row.deliver()
    if (
        first.result is Result.APPLIED
    ):  # it may have been repeated under an idempotency key; then it is one account all the same
        row.fold(first)
    else:
        expect(first, Result.RETRY)
        row.fold(first)
        bench.product.advance(AMBIGUOUS_WAIT_S)
        await row.applied()
    bench.only(row)
    return f"{row.deliveries} deliver{'y' if row.deliveries == 1 else 'ies'}, 1 account"


def _deleted_as_set(bench: Bench, held: Mapping[str, Seen], mine: str | None, kept: Seen) -> None:
    if held.get(kept.account_id) != kept:
        raise Broken("the deletion touched an account that is not the person's")
    stays = bench.on_delete == "deactivate" or bench.trial.deleted_stays
    if not stays and mine in held:
        raise Broken("the account is still there")
    if stays and (mine not in held or held[str(mine)].active):
        raise Broken("the account was to be deactivated, and is not")


def _with_odd_values(plain: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The person once for every attribute and odd value."""
    for name, held in plain.items():
        for odd in ODD:
            yield name, {**plain, name: odd}
            if isinstance(held, dict):
                yield from ((f"{name}.{inner}", {**plain, name: {**held, inner: odd}}) for inner in held)
            elif isinstance(held, list):
                yield name, {**plain, name: [odd]}
                yield from (
                    (f"{name}[{at}].{inner}", {**plain, name: [*held[:at], {**entry, inner: odd}, *held[at + 1 :]]})
                    for at, entry in enumerate(held)
                    if isinstance(entry, dict)
                    for inner in entry
                )


def _without(document: Mapping[str, Any], path: str) -> Iterator[dict[str, Any]]:
    """The person without one attribute of a declaration, e.g. `name.givenName`, `emails[type eq "work"].value`, `urn:…:x`."""
    urn, _, last = path.rpartition(":")
    if urn:
        held = document.get(urn)
        if isinstance(held, dict) and last in held:
            yield {**document, urn: {name: value for name, value in held.items() if name != last}}
        return
    name, _, inner = path.partition("[")[0].partition(".")
    if name not in document:
        return
    if inner and isinstance(document[name], dict):
        if inner in document[name]:
            yield {**document, name: {key: value for key, value in document[name].items() if key != inner}}
    elif name == "userName":
        yield {**document, name: ""}  # Entra cannot leave it out, a mapping can make it empty
    else:
        yield {key: value for key, value in document.items() if key != name}


def _without_text(document: Any, text: str) -> Any:
    """A document without the leaves that hold a text, and without what is empty then."""
    if isinstance(document, dict):
        left = {name: _without_text(value, text) for name, value in document.items() if value != text}
        return {name: value for name, value in left.items() if value not in ({}, [])}
    if isinstance(document, list):
        return [_without_text(value, text) for value in document if value != text]
    return document


def _refused(bench: Bench, document: dict[str, Any]) -> bool:
    try:
        bench.connector.normalize(User.from_document(document), bench.directory)
    except NormalizationError as exc:
        return not exc.code.startswith("unknown_")
    return False


def _choices(settings_type: type[Struct], name: str) -> tuple[str, ...]:
    """The values a setting can have that is one of some texts; empty when there is no such setting."""
    kind = next((field.type for field in msgspec.structs.fields(settings_type) if field.encode_name == name), None)
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def _listed(calls: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{method} {path}" for method, path in calls) or "no call"


async def _steps_until_applied(row: Row) -> list[Step]:
    """Every call of every delivery until the wish is applied."""
    first = len(row.bench.outcomes)
    await row.applied()
    return [step for outcome in row.bench.outcomes[first:] for step in outcome.steps]


async def _whole(page_of: Callable[[str | None], Awaitable[tuple[Sequence[Any], str | None]]]) -> list[Any]:
    """All pages of a list."""
    found: list[Any] = []
    cursor: str | None = None
    for _ in range(PAGES_MAX):
        page, following = await page_of(cursor)
        found += page
        if following is None:
            return found
        if following == cursor:
            raise Broken("the cursor does not advance")
        cursor = following
    raise Broken(f"no end after {PAGES_MAX} pages")


def _compared(entry: Mapping[str, Any] | None, wanted: Expected) -> int:
    """Raise Broken unless a listed entry is as expected; how many values were compared."""
    if entry is None:
        raise Broken("it is as wished, and not listed")
    if not set(wanted.identities) & set(entry["identities"]):
        raise Broken(f"expected under {', '.join(wanted.identities)}, listed under {', '.join(entry['identities'])}")
    if wanted.owner and entry.get("owner") and entry["owner"] != wanted.owner:
        raise Broken(f"expected the owner {wanted.owner!r}, the list shows {entry['owner']!r}")
    shown = entry.get("values", {})
    for path, value in wanted.values.items():
        if path not in shown or shown[path] != value:
            raise Broken(f"{path} is as wished, expected as {value!r}, and listed as {shown.get(path, 'nothing')!r}")
    return len(wanted.values)


async def _all_kinds_of_deliveries(bench: Bench) -> list[Row]:
    """One that goes well, and one for every way in which a create can go wrong."""
    rows = [bench.row(1)]
    await rows[0].applied()
    echo = f"Bad header Authorization: Bearer {bench.trial.credential}"
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("auth", {}),
        ("status", {"status": 400, "body": {"message": echo}}),
        ("status", {"status": 503}),
        ("rate_limit", {"retry_after": RETRY_AFTER_S}),
        ("html", {}),
        ("drop_response", {}),
        ("truncate", {}),
    )
    for kind, options in kinds:
        row = bench.row(2 + len(bench.outcomes))
        bench.product.clear_faults()
        bench.on_create(kind, times=1, **options)
        row.fold(await row.deliver())
        rows.append(row)
    bench.product.clear_faults()
    return rows


def _texts(document: Any) -> Iterator[str]:
    """Every text in a document."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, (dict, list)):
        for value in document.values() if isinstance(document, dict) else document:
            yield from _texts(value)


async def _two_members(bench: Bench) -> list[str]:
    if not isinstance(bench.connector, PutsGroups):
        raise NotApplicable("the product has no groups that may be written")
    rows = [bench.row(number) for number in (1, 2)]
    for row in rows:
        await row.applied()
    return [str(row.account_id) for row in rows]


def _group_document(
    bench: Bench, number: int, name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()
) -> dict[str, Any]:
    """A group with its difference of members, as an event carries it."""
    difference = {
        way: [{"id": f"member-of-{one}", "kind": "user", "account_id": one} for one in ids]
        for way, ids in (("add", add), ("remove", remove))
    }
    return {**bench.trial.group(number, name=name), **difference}


def _group_row(bench: Bench, number: int, name: str, *, add: Sequence[str]) -> Row:
    return Row(bench, _group_document(bench, number, name, add=add), "group")


async def _not_applied(row: Row) -> None:
    outcome = await row.deliver()
    expect(outcome, Result.RETRY, Result.FOUND)
    row.fold(outcome)
    row.bench.product.advance(AMBIGUOUS_WAIT_S)


async def _unreadable_look_up(bench: Bench, number: int, kind: str, **options: Any) -> None:
    """What cannot be read is not "nobody": the person has an account, and nothing is written until it was seen."""
    owner = bench.row(number)
    await owner.applied()
    row = bench.row(number)
    fault = bench.product.fault(kind, method="GET", **options)  # type: ignore[arg-type]
    mark = bench.mark()
    outcome = await row.deliver()
    # A connector that keeps a list for a short while may know the account without a call.
    expect(outcome, Result.RETRY if bench.product.recorded(mark) else Result.FOUND)
    if writes := bench.writes(mark):
        raise Broken(f"the look-up could not be read, and yet {call_said(writes[0])}")
    row.fold(outcome)
    bench.product.clear_faults(fault)
    await row.applied()
    same(owner.account_id, row.account_id)
    bench.only(row, count=number)


async def _limited(bench: Bench, number: int, retry_after: int | str, wanted_s: float) -> float:
    """A 429, first to whatever is called first, then to the create: one such call, the wait is passed on, then it is applied."""
    row = bench.row(number)
    options: dict[str, Any] = {"retry_after": retry_after, "times": 1}
    if number == 1:
        bench.product.fault("rate_limit", **options)
    else:
        bench.on_create("rate_limit", **options)
    mark = bench.mark()
    outcome = await row.deliver()
    expect(outcome, Result.RATE_LIMITED)
    calls = bench.product.recorded(mark)
    behind = len(calls) - 1 - next(at for at, call in enumerate(calls) if call["status"] == 429)
    if behind:
        raise Broken(f"{behind} more calls after the product said 429")
    waits_s = outcome.retry_after_s
    if waits_s is None or not wanted_s - 3 <= waits_s <= wanted_s + 1:
        raise Broken(f"the product asked for {wanted_s:g} s, the outcome says {waits_s}")
    row.fold(outcome)
    await row.applied()
    bench.only(row, count=number)
    return waits_s


async def _until(holds: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + EFFECT_WAIT_S
    while not holds():
        if time.monotonic() > end:
            raise Broken(otherwise)
        await asyncio.sleep(0.02)


@contextlib.contextmanager
def _everything_said() -> Iterator[Callable[[], Sequence[str]]]:
    """What is printed and logged in the block, however it is done."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), logs.at_level("debug"):
            yield lambda: [out.getvalue()]
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


for _promise in PROMISES.values():
    setattr(Conformance, f"test_{_promise.name}", _as_test(_promise.name, _promise.says))
