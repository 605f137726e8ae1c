"""What a promise is tried on: a product, its connector, and the gateway's part played by hand.

`Conformance` is what an author says about a product; it is inherited from `connectors.testing.conformance`, where it has become a
test per promise. `Bench` holds one emulated product with the connector as a worker would build it, and `Row` one resource as the
gateway keeps it: events go out, outcomes come back, what was found is linked and sent again.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import secrets
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import Struct
from ulid import ULID

from connectors import registry
from connectors.contract import Connector, Delivery, HasDirectory
from connectors.http import HttpClient
from connectors.testing.harness import Emulator, running
from schemas.config import decode
from schemas.errors import ConfigurationError, ConnectorError
from schemas.events import Outcome, ProvisioningEvent, identity
from schemas.states import Change, Result
from workers.delivery import NotOurs, deliver
from workers.limits import NameCache

CALL_S = 5.0
"""Longest call in a trial; shorter than in a worker, so that a connector that hangs is seen soon."""
PROMISE_S_MAX = 30.0
DELIVERIES_MAX = 12
"""After so many deliveries of one wish it is said that the connector never comes to an end."""
AMBIGUOUS_WAIT_S = 15.0
"""The product's time before it is asked again after an ambiguous end (delivery rule R9), on the emulator's clock."""
LATER_S = 60.0
READS = ("GET", "HEAD")
CALLS_SHOWN_MAX = 12
DELIVERIES_SHOWN_MAX = 6
_STEPS = (
    *("normalize", "account_keys", "ignored", "expected", "check", "find", "create", "update", "delete"),
    *("load_directory", "list_accounts", "find_group", "put_group", "change_members", "delete_group"),
)
"""Methods of the contract; where one raises what none may is kept with its place in the author's file."""


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


# The bench: a product, its connector, and the gateway's part ----------------------------------------------------------


class Bench:
    """One product with its connector, as a worker would build it, and everything that came out of it.

    Attributes:
        emulator: the product; None for a connector that calls nobody.
        connector: built from the trial's settings.
        outcomes: every outcome of every delivery.
        raised: where the connector raised what no connector may.
    """

    def __init__(self, trial: Conformance, emulator: Emulator | None, url: str, folder: Path, call_s: float) -> None:
        self.trial = trial
        self.emulator = emulator
        self.secret_file = folder / "credential"
        self.write_secret()
        self.kind = trial.connector_type or registry.load(trial.connector)
        self.outcomes: list[Outcome] = []
        self.raised: list[str] = []
        self.rows = 0
        self._url, self._call_s = url, call_s
        self._build({})

    def _build(self, changes: Mapping[str, Any]) -> None:
        kind, problems = self.kind, list[str]()
        table = {**self.trial.settings(self._url, str(self.secret_file)), **changes}
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
                call_s=self._call_s,
            )
        self.connector = kind(settings, self.http or registry.CallsNobody())
        for name in _STEPS:
            if hasattr(self.connector, name):
                setattr(self.connector, name, self._watched(name, getattr(self.connector, name)))
        self.directory = NameCache(self.connector.load_directory if isinstance(self.connector, HasDirectory) else None)

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
                await bench._close()

    async def _close(self) -> None:
        await self.connector.close()
        if self.http is not None:
            await self.http.close()

    async def reconfigure(self, **changes: Any) -> None:
        """The same product with a connector built from changed settings, as after an edit of the configuration file."""
        await self._close()
        self._build(changes)

    def _watched(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        """A step of the connector that keeps where it raised what it may not; the worker keeps the type only."""

        @functools.wraps(step)
        def plain(*args: Any, **named: Any) -> Any:
            try:
                return step(*args, **named)
            except Exception as exc:
                self._note(name, exc)
                raise

        @functools.wraps(step)
        async def awaited(*args: Any, **named: Any) -> Any:
            try:
                return await step(*args, **named)
            except Exception as exc:
                self._note(name, exc)
                raise

        return awaited if inspect.iscoroutinefunction(step) else plain

    def _note(self, name: str, exc: Exception) -> None:
        if isinstance(exc, (ConnectorError, NotOurs)):
            return
        frames = traceback.extract_tb(exc.__traceback__)
        own = [frame for frame in frames if frame.filename == inspect.getfile(self.kind)] or frames
        place = f"{Path(own[-1].filename).name} line {own[-1].lineno}: {own[-1].line}"
        self.raised.append(f"{name} raised {type(exc).__name__}: {exc} ({place})")

    def record(self) -> tuple[str, ...]:
        """The newest calls the product received and what it answered, oldest first; for who looks for a mistake."""
        if self.emulator is None:
            return ()
        calls = self.emulator.recorded()[-CALLS_SHOWN_MAX:]
        return tuple(
            call_said(call)
            + f" -> {call['status'] or 'no answer'}"
            + (f", made to fail: {call['fault']}" if call["fault"] else "")
            for call in calls
        )

    def history(self) -> tuple[str, ...]:
        """What the newest deliveries came to, oldest first."""
        first = max(0, len(self.outcomes) - DELIVERIES_SHOWN_MAX)
        return tuple(f"delivery {at}: {said(one)}" for at, one in enumerate(self.outcomes[first:], first + 1))

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
        return [call for call in self.product.recorded(since) if call["method"] not in READS]

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

    async def deliver(
        self, *, again: bool = False, read_only: bool = False, by: Connector[Any, Any] | None = None
    ) -> Outcome:
        """One delivery of the present wish.

        Args:
            again: the broker's redelivery of the one before: same event, same fence.
            read_only: only look (delivery rule R2).
            by: another connector than the bench's, e.g. one that rehearses.
        """
        if not again:
            self.fence += 1
        self.deliveries += by is None
        event = msgspec.structs.replace(self.event(), read_only=read_only)
        self.possible |= set(event.identities)
        ctx = Delivery(
            deadline=time.monotonic() + PROMISE_S_MAX,
            created_by_us=event.created_by_us,
            accounts=dict(event.accounts),
        )
        outcome = await deliver(
            event,
            delivery=2 if again else 1,
            connector=by or self.bench.connector,
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
            told = outcome.reason.message if outcome.reason else "the connector broke its contract"
            raise Broken(self.bench.raised[-1] if self.bench.raised else told)
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

    async def look_only(self) -> Outcome:
        """A delivery that only looks and writes nothing (delivery rule R2), as the gateway sends before it decides."""
        return await self.deliver(read_only=True)

    async def settle(self) -> Outcome:
        """Deliver until the wish is settled, with the gateway's waits on the product's clock."""
        for _ in range(DELIVERIES_MAX):
            outcome = await self.deliver()
            if self.fold(outcome):
                return outcome
            if self.bench.emulator is not None:
                self.bench.emulator.advance(AMBIGUOUS_WAIT_S)
        raise Broken(f"not settled after {DELIVERIES_MAX} deliveries; the last one said {said(outcome)}")

    async def applied(self) -> Outcome:
        """Settle, and be applied."""
        outcome = await self.settle()
        if outcome.result is not Result.APPLIED:
            raise Broken(f"expected to be applied, but: {said(outcome)}")
        return outcome

    def _names(self) -> tuple[str, ...]:
        paths = self.bench.spec.identity if self.kind == "user" else ("displayName",)
        values = {path: self.document.get(path) for path in paths}
        return tuple(identity(path, value) for path, value in values.items() if isinstance(value, str) and value)


def call_said(call: Mapping[str, Any]) -> str:
    """A recorded call for people: method, path and query."""
    return f"{call['method']} {call['path']}" + (f"?{call['query']}" if call["query"] else "")


def said(outcome: Outcome) -> str:
    """An outcome for people: its result, and why."""
    return f"{outcome.result}" + (f" ({outcome.reason.code}: {outcome.reason.message})" if outcome.reason else "")


def expect(outcome: Outcome, *results: Result) -> None:
    """Raise Broken unless the outcome is one of these."""
    if outcome.result not in results:
        raise Broken(f"expected {' or '.join(results)}, but: {said(outcome)}")


def same(before: str | None, after: str | None) -> None:
    """Raise Broken unless these are the same account."""
    if before != after:
        raise Broken(f"the account changed from {before!r} to {after!r}")
