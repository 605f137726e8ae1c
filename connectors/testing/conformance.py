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
import secrets
import tempfile
import time
import unittest
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import Struct
from ulid import ULID

from connectors import registry
from connectors.contract import Connector, Delivery, HasDirectory, ListsAccounts, PutsGroups
from connectors.http import HttpClient
from connectors.testing.harness import Emulator, running
from schemas.config import decode
from schemas.errors import ConfigurationError, ConnectorError, Misconfigured
from schemas.events import Outcome, ProvisioningEvent, encode, identity
from schemas.states import Change, Result
from workers.delivery import deliver
from workers.limits import NameCache

CALL_S = 5.0
"""Longest call in a trial; shorter than in a worker, so that a connector that hangs is seen soon."""
SLOW_CALL_S = 0.2
SLOW_ANSWER_S = 0.45
DELIVERIES_MAX = 12
"""After so many deliveries of one wish it is said that the connector never comes to an end."""
AMBIGUOUS_WAIT_S = 15.0
"""The product's time before it is asked again after an ambiguous end (delivery rule R9), on the emulator's clock."""
LAG_S = 5.0
RETRY_AFTER_S = 7
RETRY_AFTER_DATE_S = 40
EFFECT_WAIT_S = 5.0
PROMISE_S_MAX = 30.0
PAGES_MAX = 100
LATER_S = 60.0

TEXT = 'Zoë Åsa O\'Łukasz "李" 🙂 <b>&amp;</b>'
"""Accents, an apostrophe, quotes, another script, a character beyond 16 bits, and what a careless page would interpret."""
STRANGE_ROLE = "No Such Role 7"

_READS = ("GET", "HEAD")
_HTML = "<!doctype html><html><body><h1>Please sign in</h1></body></html>"


class Broken(AssertionError):
    """The promise is not kept; the message says what was seen."""


class NotApplicable(Exception):
    """The promise cannot be asked of this connector; the message says why."""


class Seen(Struct, frozen=True):
    """One account as the product holds it.

    Args:
        account_id: the product's id, as the connector gives it.
        key: what the product knows the person by.
        active: whether the person may use the product.
        texts: names and other texts it holds.
    """

    account_id: str
    key: str
    active: bool = True
    texts: tuple[str, ...] = ()


class SeenGroup(Struct, frozen=True):
    """One group as the product holds it: its id, name, and the account ids of its members."""

    group_id: str
    name: str
    members: frozenset[str] = frozenset()


class Verdict(Struct, frozen=True, omit_defaults=True):
    """What became of one promise.

    Args:
        promise: its name, e.g. `lost_answer`.
        says: the promise in a sentence.
        verdict: `kept`, `broken`, or `not applicable`.
        figure: what was measured.
        detail: what was seen when broken, or why it does not apply.
        took_s: seconds.
    """

    promise: str
    says: str
    verdict: Literal["kept", "broken", "not applicable"]
    figure: str = ""
    detail: str = ""
    took_s: float = 0.0


Try = Callable[["Bench"], Awaitable[str]]


class Promise(Struct, frozen=True):
    """One promise: `try_it` returns the figure, or raises `Broken` or `NotApplicable`.

    `calls` tells that it is about calls to a product, which a connector that calls nobody cannot break; `call_s` is the longest
    call.
    """

    name: str
    says: str
    try_it: Try
    calls: bool = True
    call_s: float = CALL_S


PROMISES: dict[str, Promise] = {}


def promise(says: str, *, calls: bool = True, call_s: float = CALL_S) -> Callable[[Try], Try]:
    """Make a function the definition of a promise; its name is the promise's."""

    def made(try_it: Try) -> Try:
        name: str = try_it.__name__
        PROMISES[name] = Promise(name, says, try_it, calls, call_s)
        return try_it

    return made


WITHOUT_GROUPS: Mapping[str, str] = {
    "group": "the product has no groups that may be written",
    "group_lost_answer": "the product has no groups that may be written",
}
"""For `Conformance.not_applicable` of such products."""


# What an author says about a product ----------------------------------------------------------------------------------


class Conformance:
    """How one product is started, asked and read. Inherit it, name the class `Test...`, and every promise is a test of it.

    Attributes:
        connector: the name in the registry.
        connector_type: the class itself, instead of the name.
        create_call: method and path (a regular expression from the start of the path) of the call that makes an account.
        create_group_call: the same for the call that makes a group.
        page_size: how many accounts the product lists on one page.
        rename: `same` when a new login keeps the account, `refused` when the product cannot rename.
        deleted_stays: the product itself keeps what it was told to delete, as an inactive account.
        not_applicable: promise -> why it cannot be asked of this product.
    """

    connector: ClassVar[str] = ""
    connector_type: ClassVar[type[Connector[Any, Any]] | None] = None
    create_call: ClassVar[tuple[str, str]] = ("POST", "")
    create_group_call: ClassVar[tuple[str, str]] = ("POST", "")
    page_size: ClassVar[int] = 100
    rename: ClassVar[Literal["same", "refused"]] = "same"
    deleted_stays: ClassVar[bool] = False
    not_applicable: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in cls.not_applicable:  # a promise that cannot be asked is no test that passes
            setattr(cls, f"test_{name}", None)

    @functools.cached_property
    def credential(self) -> str:
        """What the product takes as credential now."""
        return f"trial-{secrets.token_hex(16)}"

    def emulator(self) -> Emulator | None:
        """A new product without a limit on calls, which takes `self.credential`; None for a connector that calls nobody."""
        raise NotImplementedError

    def settings(self, url: str, secret: str) -> dict[str, Any]:
        """The settings table for a product at `url`; `secret` is the path of the file that holds the credential."""
        raise NotImplementedError

    def user(self, number: int, *, text: str = "Ada Example", active: bool = True) -> dict[str, Any]:
        """The SCIM document of a person; another number is another person. `text` goes where the product keeps a name."""
        raise NotImplementedError

    def renamed(self, number: int, to: int) -> dict[str, Any]:
        """The same person under the login of another number."""
        return {**self.user(number), "userName": self.user(to)["userName"]}

    def with_unknown_role(self, user: dict[str, Any], role: str) -> dict[str, Any] | None:
        """The person with a role, team or the like that the product does not have; None when it has no such names."""
        return None

    def accounts(self, bench: Bench) -> list[Seen]:
        """What the product holds now, deleted accounts left out; read from the product, not through the connector."""
        raise NotImplementedError

    def group(self, number: int, *, name: str) -> dict[str, Any]:
        """The SCIM document of a group without its members; another number is another group."""
        return {"displayName": name, "externalId": f"00000000-0000-4000-a000-{number:012d}"}

    def groups(self, bench: Bench) -> list[SeenGroup]:
        """The groups the product holds now; for products whose groups may be written."""
        raise NotApplicable(f"{type(self).__name__} does not say how groups are read (groups)")

    def revoke(self, bench: Bench, *, revoked: bool) -> None:
        """Take the credential away, or give it back."""
        bench.product.revoke_token(revoked=revoked)

    def replace_credential(self, bench: Bench) -> None:
        """The product gives a new credential out and refuses the old one; the file holds the new one."""
        self.credential = f"trial-{secrets.token_hex(16)}"
        bench.product.revoke_token(revoked=False, token=self.credential)
        bench.write_secret()

    def lose_accounts(self, bench: Bench) -> None:
        """Somebody removes every account at the product itself."""
        bench.product.reset()

    def secrets(self) -> list[str]:
        """Every credential that must not show anywhere."""
        return [self.credential]


async def try_promise(trial: Conformance, name: str) -> Verdict:
    """Try one promise against a new product."""
    asked = PROMISES[name]
    started = time.monotonic()

    def verdict(said: Literal["kept", "broken", "not applicable"], figure: str = "", detail: str = "") -> Verdict:
        took_s = round(time.monotonic() - started, 3)
        return Verdict(name, asked.says, said, figure, detail, took_s)

    if name in trial.not_applicable:
        return verdict("not applicable", detail=trial.not_applicable[name])
    try:
        async with asyncio.timeout(PROMISE_S_MAX), Bench.open(trial, call_s=asked.call_s) as bench:
            if bench.emulator is None and asked.calls:
                raise NotApplicable("calls nobody")
            figure = await asked.try_it(bench)
            bench.no_violation()
            return verdict("kept", figure)
    except NotApplicable as why:
        return verdict("not applicable", detail=str(why))
    except Broken as seen:
        return verdict("broken", detail=str(seen))
    except TimeoutError:
        return verdict("broken", detail=f"no end within {PROMISE_S_MAX:g} s")
    except ConnectorError as exc:
        return verdict("broken", detail=f"{type(exc).__name__} ({exc.code}) where none was expected: {exc.message}")
    except ConfigurationError:
        raise  # the trial itself is set up wrongly
    except Exception as exc:
        return verdict("broken", detail=f"raised {type(exc).__name__}, which no connector may: {exc}")


async def try_all(trial: Conformance, seen: Callable[[Verdict], None] = lambda verdict: None) -> list[Verdict]:
    """Try every promise, one after the other; `seen` hears each verdict as it comes."""
    found = []
    for name in PROMISES:
        verdict = await try_promise(trial, name)
        seen(verdict)
        found.append(verdict)
    return found


def _as_test(name: str, says: str) -> Callable[[Conformance], None]:
    def test(self: Conformance) -> None:
        verdict = asyncio.run(try_promise(self, name))
        if verdict.verdict == "not applicable":
            raise unittest.SkipTest(verdict.detail)
        assert verdict.verdict != "broken", f"{says}: {verdict.detail}"

    test.__name__ = f"test_{name}"
    test.__doc__ = f"{says}."
    return test


# The bench: a product, its connector, and the gateway's part ----------------------------------------------------------


class Bench:
    """One product with its connector, as a worker would build it, and everything that came out of it.

    Attributes:
        emulator: the product; None for a connector that calls nobody.
        connector: built from the trial's settings.
        outcomes: every outcome of every delivery.
    """

    def __init__(self, trial: Conformance, emulator: Emulator | None, url: str, folder: Path, call_s: float) -> None:
        self.trial = trial
        self.emulator = emulator
        self.secret_file = folder / "credential"
        self.write_secret()
        kind = trial.connector_type or registry.load(trial.connector)
        problems: list[str] = []
        table = trial.settings(url, str(self.secret_file))
        settings = decode(table, kind.settings_type, path="settings", problems=problems, product=kind.spec.title)
        if settings is None or problems:
            raise ConfigurationError(f"the trial of {kind.spec.name}", problems or ["settings cannot be read"])
        endpoint, self.spec = kind.endpoint(settings), kind.spec_for(settings)
        self.http: HttpClient | None = None
        if endpoint is not None:
            self.http = HttpClient(
                endpoint.base_url,
                product=self.spec.title,
                auth=endpoint.auth,
                allow_loopback=endpoint.allow_loopback,
                concurrency_max=self.spec.concurrency_max,
                call_s=call_s,
            )
        self.connector = kind(settings, self.http or registry.CallsNobody())
        self.directory = NameCache(self.connector.load_directory if isinstance(self.connector, HasDirectory) else None)
        self.outcomes: list[Outcome] = []
        self.rows = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, trial: Conformance, *, call_s: float = CALL_S) -> AsyncIterator[Bench]:
        """Start the product, build the connector; both end with the block."""
        async with contextlib.AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="provgate-trial-")))
            emulator = trial.emulator()
            url = await stack.enter_async_context(running(emulator)) if emulator is not None else ""
            if emulator is not None:
                emulator.advance(LATER_S)  # so that reads that lag still see what was there from the start
            bench = cls(trial, emulator, url, folder, call_s)
            try:
                yield bench
            finally:
                await bench.connector.close()
                if bench.http is not None:
                    await bench.http.close()

    @property
    def product(self) -> Emulator:
        """The emulator, for promises about calls."""
        if self.emulator is None:
            raise NotApplicable("calls nobody")
        return self.emulator

    @property
    def on_delete(self) -> str:
        """What a SCIM DELETE comes to with these settings."""
        return str(getattr(self.connector.settings, "on_delete", self.spec.on_delete))

    def write_secret(self) -> None:
        """Put the trial's present credential where the settings point."""
        self.secret_file.write_text(self.trial.credential, encoding="utf-8")
        self.secret_file.chmod(0o600)

    def row(self, number: int = 1, **options: Any) -> Row:
        """A person nobody has delivered yet."""
        return Row(self, self.trial.user(number, **options))

    def accounts(self) -> list[Seen]:
        """What the product holds."""
        return self.trial.accounts(self)

    def only(self, row: Row, *, count: int = 1) -> Seen:
        """The account of a row, when the product holds just `count` in all."""
        held = self.accounts()
        if len(held) != count:
            raise Broken(f"the product holds {len(held)} accounts, not {count}")
        mine = [one for one in held if one.account_id == row.account_id]
        if not mine:
            raise Broken(f"the linked account {row.account_id!r} is none of those the product holds")
        return mine[0]

    def writes(self, since: int = 0) -> list[dict[str, Any]]:
        """Writing calls the product received, whatever became of them, after a `mark`."""
        return [call for call in self.product.recorded(since) if call["method"] not in _READS]

    def mark(self) -> int:
        """A moment in the product's record."""
        recorded = self.product.recorded()
        return int(recorded[-1]["seq"]) if recorded else 0

    def on_create(self, kind: Any, **options: Any) -> int:
        """Arm a fault for the call that makes an account."""
        method, path = self.trial.create_call
        return self.product.fault(kind, method=method, path=path, **options)

    def no_violation(self) -> None:
        """Raise when the product saw something that no correct client does."""
        if self.emulator is not None and self.emulator.violations:
            first = self.emulator.violations[0]
            raise Broken(
                f"the product complains: {first['detail']} ({first['code']}, {first['method']} {first['path']})"
            )


class _Ours:
    """A delivery that stays ours to the end."""

    def check(self) -> None:
        """Nothing takes it away here."""


class Row:
    """One resource as the gateway keeps it: what is asked, the link, and what earlier deliveries may have done."""

    def __init__(self, bench: Bench, document: dict[str, Any], kind: Literal["user", "group"] = "user") -> None:
        bench.rows += 1
        self.bench = bench
        self.kind = kind
        self.resource = f"00000000-0000-4000-9000-{bench.rows:012d}"
        self.account_id: str | None = None
        self.created_by_us: bool | None = None
        self.document = document
        self.deleted = False
        self.change = Change.CREATE
        self.generation = 1
        self.fence = 0
        self.look = False
        self.possible: set[str] = set()
        self.deliveries = 0
        self._event_id = str(ULID())
        self._settled = self._names()

    def wish(self, document: Mapping[str, Any], change: Change = Change.UPDATE) -> None:
        """Ask for something else."""
        self.document = dict(document)
        self.change = change
        self.generation += 1
        self._event_id = str(ULID())

    def wish_deleted(self) -> None:
        """Ask for the end of it."""
        self.deleted = True
        self.change = Change.DELETE
        self.generation += 1
        self._event_id = str(ULID())

    def event(self) -> ProvisioningEvent:
        """The present wish as it goes out."""
        names = self._names()
        return ProvisioningEvent(
            id=self._event_id,
            target="trial",
            connector=self.bench.spec.name,
            kind=self.kind,
            resource=self.resource,
            generation=self.generation,
            fence=self.fence,
            change=self.change,
            document=msgspec.Raw(b"{}" if self.deleted else msgspec.json.encode(self.document)),
            deleted=self.deleted,
            account_id=self.account_id,
            look=self.look,
            identities=() if self.deleted else names,
            lookup=tuple(sorted({*names, *self._settled, *self.possible})),
            created_by_us=self.created_by_us,
        )

    async def deliver(self, *, again: bool = False) -> Outcome:
        """One delivery of the present wish; `again` is the broker's redelivery of the one before: same event, same fence."""
        if not again:
            self.fence += 1
        self.deliveries += 1
        event = self.event()
        self.possible |= set(event.identities)
        ctx = Delivery(
            deadline=time.monotonic() + PROMISE_S_MAX,
            created_by_us=event.created_by_us,
            accounts=dict(event.accounts),
        )
        outcome = await deliver(
            event,
            delivery=2 if again else 1,
            connector=self.bench.connector,
            directory=self.bench.directory,
            owned=_Ours(),
            new_id=lambda: str(ULID()),
            clock=time.time,
            ctx=ctx,
        )
        if outcome is None:
            raise Broken("the delivery ended without an outcome")
        self.bench.outcomes.append(outcome)
        if outcome.result is Result.POISON:
            raise Broken(outcome.reason.message if outcome.reason else "the connector broke its contract")
        return outcome

    def fold(self, outcome: Outcome) -> bool:
        """What the gateway does with an outcome. True when the wish is settled: applied, or refused for good."""
        match outcome.result:
            case Result.APPLIED:
                if outcome.created:
                    self.created_by_us = True
                self.account_id = None if self.deleted else outcome.account_id
                self.look = False
                self.possible.clear()
                self._settled = self._names()
                return True
            case Result.FOUND if outcome.sightings:
                self.account_id = outcome.sightings[0].account_id
                self.created_by_us = None
            case Result.REJECTED if outcome.reason is None or outcome.reason.code != "conflict":
                return True
            case _:
                if outcome.account_id is not None:
                    self.account_id = outcome.account_id
                elif outcome.result is Result.RETRY and self.account_id is not None and outcome.ambiguous:
                    self.account_id = None  # the linked account is gone: looked up anew
        self.look = True
        return False

    async def settle(self) -> Outcome:
        """Deliver until the wish is settled, with the gateway's waits on the product's clock."""
        for _ in range(DELIVERIES_MAX):
            outcome = await self.deliver()
            if self.fold(outcome):
                return outcome
            if self.bench.emulator is not None:
                self.bench.emulator.advance(AMBIGUOUS_WAIT_S)
        raise Broken(f"not settled after {DELIVERIES_MAX} deliveries; the last one said {_said(outcome)}")

    async def applied(self) -> Outcome:
        """Settle, and be applied."""
        outcome = await self.settle()
        if outcome.result is not Result.APPLIED:
            raise Broken(f"expected to be applied, but: {_said(outcome)}")
        return outcome

    def _names(self) -> tuple[str, ...]:
        paths = self.bench.spec.identity if self.kind == "user" else ("displayName",)
        values = {path: self.document.get(path) for path in paths}
        return tuple(identity(path, value) for path, value in values.items() if isinstance(value, str) and value)


def _said(outcome: Outcome) -> str:
    return f"{outcome.result}" + (f" ({outcome.reason.code}: {outcome.reason.message})" if outcome.reason else "")


def _expect(outcome: Outcome, *results: Result) -> None:
    if outcome.result not in results:
        raise Broken(f"expected {' or '.join(results)}, but: {_said(outcome)}")


def _same(before: str | None, after: str | None) -> None:
    if before != after:
        raise Broken(f"the account changed from {before!r} to {after!r}")


# The promises ---------------------------------------------------------------------------------------------------------


@promise("The same create delivered again leaves one account with the same id", calls=False)
async def idempotent_create(bench: Bench) -> str:
    """Vendor rule A3; the broker delivers at least once."""
    row = bench.row()
    first = await row.deliver()
    _expect(first, Result.APPLIED)
    again = await row.deliver(again=True)
    _expect(again, Result.APPLIED, Result.FOUND)
    seen = again.account_id if again.result is Result.APPLIED else again.sightings[0].account_id
    _same(first.account_id, seen)
    row.fold(first)
    bench.only(row)
    return "2 deliveries, 1 account"


@promise("An account that exists already is found and reported, not written on and not made twice")
async def existing_account(bench: Bench) -> str:
    """Delivery rule R4: what was merely found is linked by the gateway first."""
    owner = bench.row()
    await owner.applied()
    before, mark = bench.only(owner), bench.mark()
    other = bench.row()
    outcome = await other.deliver()
    _expect(outcome, Result.FOUND)
    if writes := bench.writes(mark):
        raise Broken(f"{len(writes)} writing calls before the account was linked, first {_call(writes[0])}")
    if [one.account_id for one in outcome.sightings] != [before.account_id]:
        raise Broken("the account that was found is not the one the product holds")
    other.fold(outcome)
    await other.applied()
    _same(before.account_id, other.account_id)
    bench.only(other)
    return "found, 0 writes before the link"


@promise("A create whose answer was lost leaves one account, linked")
async def lost_answer(bench: Bench) -> str:
    """Vendor rule A3: the product wrote, and nobody heard."""
    return await _survives(bench, "drop_response", times=1)


@promise("A connection reset before the effect leaves one account in the end")
async def reset_before(bench: Bench) -> str:
    """Nothing was written: it has to be sent again."""
    return await _survives(bench, "reset", times=1)


@promise("A connection reset after the effect leaves one account in the end")
async def reset_after(bench: Bench) -> str:
    """It was written: it must not be sent again."""
    return await _survives(bench, "reset", times=1, when="after")


@promise("A slow answer that has its effect after we gave up leaves one account", call_s=SLOW_CALL_S)
async def slow_answer(bench: Bench) -> str:
    """A timeout says nothing about what the product does later."""
    row = bench.row()
    bench.on_create("slow", delay_s=SLOW_ANSWER_S, times=1)
    for _ in range(DELIVERIES_MAX):
        first = await row.deliver()
        _expect(first, Result.RETRY)
        if first.ambiguous or not first.steps or first.steps[-1].method not in _READS:
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


@promise("A truncated answer is neither success nor failure: one account in the end")
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


@promise("A web page instead of an answer is never success")
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


@promise("A burst of server errors ends in one account")
async def server_errors(bench: Bench) -> str:
    """500, 502, 503 and 504 to whatever comes first, then to the create, the last one after its effect."""
    row = bench.row()
    for status in (500, 502, 503, 504):
        bench.product.fault("status", status=status, times=1)
    for status in (503, 502):
        bench.on_create("status", status=status, times=1)
    bench.on_create("status", status=504, times=1, when="after")
    first = await row.deliver()
    _expect(first, Result.RETRY)
    row.fold(first)
    await row.applied()
    bench.only(row)
    return f"7 errors, {row.deliveries} deliveries, 1 account"


@promise("429 with Retry-After in seconds is obeyed and uses up no attempt")
async def rate_limit_in_seconds(bench: Bench) -> str:
    """Vendor rule A11; RFC 9110 section 10.2.3."""
    waits = [await _limited(bench, number, RETRY_AFTER_S, RETRY_AFTER_S) for number in (1, 2)]
    return f"asked {RETRY_AFTER_S} s, waits {min(waits):.1f} s"


@promise("429 with Retry-After as a date is obeyed and uses up no attempt")
async def rate_limit_as_date(bench: Bench) -> str:
    """Vendor rule A11; RFC 9110 section 10.2.3."""
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=RETRY_AFTER_DATE_S), usegmt=True)
    waits = [await _limited(bench, number, moment, RETRY_AFTER_DATE_S) for number in (1, 2)]
    return f"asked {RETRY_AFTER_DATE_S} s, waits {min(waits):.1f} s"


@promise("An update delivered again changes nothing more, and makes no account", calls=False)
async def redelivery(bench: Bench) -> str:
    """The broker delivers at least once; the connector is told that it may have acted."""
    row = bench.row()
    await row.applied()
    made = row.account_id
    row.wish(bench.trial.user(1, text="Ada Changed"))
    first = await row.deliver()
    _expect(first, Result.APPLIED)
    held = bench.only(row)
    for _ in range(2):
        again = await row.deliver(again=True)
        _expect(again, Result.APPLIED)
        _same(made, again.account_id)
        if bench.only(row) != held:
            raise Broken("a redelivery changed what the product holds")
    return "3 deliveries, 1 account, same values"


@promise("Reads that lag behind writes lead to no second account")
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
    _same(made, quick.account_id)
    bench.only(quick, count=2)
    return f"{LAG_S:g} s of lag, {lost.deliveries + quick.deliveries} deliveries, 2 accounts for 2 people"


@promise("The list of accounts is complete, whatever its pages")
async def paging(bench: Bench) -> str:
    """For reconciliation and the match report: every account once, and a cursor that comes to an end."""
    if not isinstance(bench.connector, ListsAccounts):
        raise NotApplicable("lists no accounts")
    count = 2 * bench.trial.page_size + 1
    rows = [bench.row(number + 1) for number in range(count)]
    for row in rows:
        await row.applied()
    bench.product.advance(AMBIGUOUS_WAIT_S)
    listed: list[str] = []
    cursor: str | None = None
    pages = 0
    while pages < PAGES_MAX:
        pages += 1
        page, following = await bench.connector.list_accounts(cursor)
        listed += [str(entry["account_id"]) for entry in page]
        if following is None:
            break
        if following == cursor:
            raise Broken("the cursor does not advance")
        cursor = following
    else:
        raise Broken(f"no end after {PAGES_MAX} pages")
    missing = {row.account_id for row in rows} - set(listed)
    if missing:
        raise Broken(f"{len(missing)} of {count} accounts are not listed")
    if len(listed) != len(set(listed)):
        raise Broken("an account is listed twice")
    return f"{count} accounts on {pages} page{'s' if pages > 1 else ''}"


@promise("Active false deactivates and never deletes; active true brings the same account back")
async def disable_and_enable(bench: Bench) -> str:
    """Vendor rule A7."""
    row = bench.row()
    await row.applied()
    made = row.account_id
    for active in (False, True):
        row.wish(bench.trial.user(1, active=active), Change.ACTIVATE if active else Change.DEACTIVATE)
        await row.applied()
        _same(made, row.account_id)
        if bench.only(row).active is not active:
            raise Broken(f"active {str(active).lower()} was applied, but the product shows the opposite")
        again = await row.deliver(again=True)
        _expect(again, Result.APPLIED)
    return "off and on, same account"


@promise("A deletion does what the settings say, to that account only, and may be repeated")
async def delete(bench: Bench) -> str:
    """Vendor rules A6 and A7: not found is done; a neighbour is untouched."""
    row, neighbour = bench.row(1), bench.row(2)
    await row.applied()
    await neighbour.applied()
    kept = bench.only(neighbour, count=2)
    mine = row.account_id
    row.wish_deleted()
    first = await row.deliver()
    _expect(first, Result.APPLIED)
    for _ in range(2):
        _expect(await row.deliver(again=True), Result.APPLIED)
    held = {one.account_id: one for one in bench.accounts()}
    if held.get(kept.account_id) != kept:
        raise Broken("the deletion touched an account that is not the person's")
    stays = bench.on_delete == "deactivate" or bench.trial.deleted_stays
    if not stays and mine in held:
        raise Broken("the account is still there")
    if stays and (mine not in held or held[mine].active):
        raise Broken("the account was to be deactivated, and is not")
    return f"{bench.on_delete}d, 3 deliveries, neighbour untouched"


@promise("An account that somebody removed at the product is made again, and its deletion is done")
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


@promise("A new login keeps the account, or is refused with a reason and without any change")
async def rename(bench: Bench) -> str:
    """The archive, the history and the licence hang on the account."""
    row = bench.row()
    await row.applied()
    before = bench.only(row)
    row.wish(bench.trial.renamed(1, 7))
    if bench.trial.rename == "refused":
        outcome = await row.settle()
        _expect(outcome, Result.REJECTED)
        if outcome.reason is None or outcome.reason.attribute is None:
            raise Broken("the refusal does not name the attribute")
        if bench.accounts() != [before]:
            raise Broken("the refused rename changed something")
        return f"refused: {outcome.reason.code}"
    await row.applied()
    _same(before.account_id, row.account_id)
    if bench.only(row).key == before.key:
        raise Broken("applied, but the product still knows the person by the old login")
    return "new login, same account"


@promise("Names in any script arrive letter by letter")
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


@promise("An unknown role is refused by name before anything is written")
async def unknown_role(bench: Bench) -> str:
    """Vendor rule A2: all or nothing, and the sentence is what the Entra admin reads."""
    document = bench.trial.with_unknown_role(bench.trial.user(1), STRANGE_ROLE)
    if document is None:
        raise NotApplicable("the product has no roles or teams by name")
    mark = bench.mark()
    row = Row(bench, document)
    outcome = await row.deliver()
    _expect(outcome, Result.REJECTED)
    reason = outcome.reason
    if reason is None or not any(STRANGE_ROLE in text for text in (reason.message, *reason.names)):
        raise Broken("the refusal does not name the role")
    if not reason.attribute:
        raise Broken("the refusal does not name the attribute")
    if bench.writes(mark) or bench.accounts():
        raise Broken("something was written all the same")
    return f"{reason.code}, 0 writes"


@promise("A revoked credential stops the target and loses nothing")
async def revoked_credential(bench: Bench) -> str:
    """Vendor rule A9: an outcome of its own, which opens the circuit; nobody's data are to blame."""
    row = bench.row()
    bench.trial.revoke(bench, revoked=True)
    outcome = await row.deliver()
    _expect(outcome, Result.MISCONFIGURED)
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


@promise("A credential that ends in the middle of a change stops it; a new one in its file takes effect by itself")
async def expired_credential(bench: Bench) -> str:
    """The look-up is still answered, the write is not."""
    row = bench.row()
    fault = bench.on_create("auth")
    outcome = await row.deliver()
    _expect(outcome, Result.MISCONFIGURED)
    row.fold(outcome)
    if bench.accounts():
        raise Broken("an account was made with a credential that was refused")
    bench.product.clear_faults(fault)
    bench.trial.replace_credential(bench)
    await row.applied()
    bench.only(row)
    return "misconfigured, then applied with the new credential, nothing restarted"


@promise("The check of a well set up target finds no error and writes nothing")
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


@promise("A group is made once, renamed in place, its members come and go, and its end leaves the people")
async def group(bench: Bench) -> str:
    """Members travel as differences, and a difference applied twice is the same once."""
    people = await _two_members(bench)
    row = _group_row(bench, 1, "Readers", add=people)
    first = await row.deliver()
    _expect(first, Result.APPLIED)
    held = SeenGroup(str(first.account_id), "Readers", frozenset(people))
    for _ in range(2):
        if bench.trial.groups(bench) != [held]:
            raise Broken(f"expected one group with two members, the product holds {bench.trial.groups(bench)}")
        again = await row.deliver(again=True)
        _expect(again, Result.APPLIED, Result.FOUND)
    row.fold(first)
    row.wish(_group_document(bench, 1, "Readers and Writers", remove=people[:1]))
    await row.applied()
    for _ in range(2):
        wanted = SeenGroup(held.group_id, "Readers and Writers", frozenset(people[1:]))
        if bench.trial.groups(bench) != [wanted]:
            raise Broken(f"expected the group under its new name with one member, not {bench.trial.groups(bench)}")
        _expect(await row.deliver(again=True), Result.APPLIED)
    before = bench.accounts()
    row.wish_deleted()
    await row.applied()
    _expect(await row.deliver(again=True), Result.APPLIED)
    if bench.trial.groups(bench):
        raise Broken("the group is still there")
    if bench.accounts() != before:
        raise Broken("the end of the group changed its people")
    return "2 members in, 1 out, renamed, deleted; people untouched"


@promise("A group whose create was not answered is one group with all its members in the end")
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


@promise("No credential shows in any outcome, finding, error, log line or print")
async def no_secret(bench: Bench) -> str:
    """Vendor rule A10: after good and bad deliveries of every kind, everything that came out is searched."""
    shown: list[str] = []
    with _everything_said() as said:
        await bench.row(1).applied()
        for kind, options in (
            ("auth", {}),
            (
                "status",
                {"status": 400, "body": {"message": f"Bad header Authorization: Bearer {bench.trial.credential}"}},
            ),
            ("status", {"status": 503}),
            ("rate_limit", {"retry_after": RETRY_AFTER_S}),
            ("html", {}),
            ("drop_response", {}),
            ("truncate", {}),
        ):
            row = bench.row(2 + len(bench.outcomes))
            bench.product.clear_faults()
            bench.on_create(kind, times=1, **options)
            row.fold(await row.deliver())
        bench.product.clear_faults()
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
        _expect(first, Result.RETRY)
        row.fold(first)
        bench.product.advance(AMBIGUOUS_WAIT_S)
        await row.applied()
    bench.only(row)
    return f"{row.deliveries} deliver{'y' if row.deliveries == 1 else 'ies'}, 1 account"


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
    _expect(outcome, Result.RETRY, Result.FOUND)
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
    _expect(outcome, Result.RETRY)
    if writes := bench.writes(mark):
        raise Broken(f"the look-up could not be read, and yet {_call(writes[0])}")
    row.fold(outcome)
    bench.product.clear_faults(fault)
    await row.applied()
    _same(owner.account_id, row.account_id)
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
    _expect(outcome, Result.RATE_LIMITED)
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
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            yield lambda: [out.getvalue()]
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def _call(call: Mapping[str, Any]) -> str:
    return f"{call['method']} {call['path']}"


for _promise in PROMISES.values():
    setattr(Conformance, f"test_{_promise.name}", _as_test(_promise.name, _promise.says))
