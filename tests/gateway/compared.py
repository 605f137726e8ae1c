"""A whole gateway and a worker in this process, with a real nats-server and a product that is emulated over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from deploy.emulators.bobs_business import BobsBusinessEmulator
from deploy.emulators.harness import running
from gateway.access import ACCESS_FILE
from gateway.app import Gateway
from gateway.comparison import Ask
from gateway.dispatch import Clock
from gateway.lifecycle import Row
from gateway.reconcile import Reconciler
from gateway.reports_store import Report, kept_findings, last_report
from gateway.spool import Finding
from schemas.config import Configuration, parse
from schemas.config_file import ConfigurationFile
from schemas.specs import Spec
from schemas.states import State
from tests.conftest import NatsServer, free_port
from tests.gateway.operated import Ended, _typed
from tests.gateway.stand_ins import write_blank_store
from tests.waiting import until
from workers.app import Worker
from workers.limits import CallLimit

TARGET = "bobs"
WAIT_S = 20.0
_LOG_LINE = re.compile(r"(?:\x1b\[\d*m)*\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^\n]*\n")


class LongDays:
    """A clock that a test sets; waiting takes no time and is written down."""

    def __init__(self) -> None:
        self.added_s = 0.0
        self.slept: list[float] = []

    def now(self) -> float:
        return time.time() + self.added_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class Compared(Struct):
    """What a test sees of it."""

    folder: Path
    gateway: Gateway
    worker: Worker
    product: BobsBusinessEmulator

    def url(self) -> str:
        """Address of the operators' listener."""
        return str(json.loads((self.folder / ACCESS_FILE).read_text())["url"])

    def accounts(self) -> dict[str, dict[str, Any]]:
        """The product's accounts by address."""
        return {user["userName"]: user for user in self.product.tables.rows["users"].values()}

    def change(self, address: str, **fields: Any) -> None:
        """Somebody changes an account by hand."""
        user = self.accounts()[address]
        self.product.control("by hand", [("users", user["id"], {**user, **fields})])

    def remove(self, address: str) -> None:
        """Somebody deletes an account by hand."""
        user = self.accounts()[address]
        resource = self.product.scim_resources[0]
        self.product.control("by hand", self.product.drop(resource, user))

    def writes(self) -> list[dict[str, Any]]:
        """Calls that change something at the product."""
        return [call for call in self.product.recorded() if call["method"] not in ("GET", "HEAD")]

    async def created(self, name: str, **more: Any) -> str:
        """Entra creates a user, and it is applied; the id of the resource."""
        document = {
            "userName": f"{name}@contoso.example",
            "externalId": f"object-{name}",
            "active": True,
            "name": {"givenName": name.title(), "familyName": "Lovelace"},
            **more,
        }
        answer = await self.gateway.intake.create(TARGET, "user", document)
        assert answer.row is not None, answer.error
        await self.is_in(answer.row.id, State.APPLIED)
        return answer.row.id

    async def row(self, resource: str) -> Row:
        """A resource as it is stored."""
        found = await self.gateway.store.read(lambda reader: reader.row(resource))
        assert found is not None
        return found

    async def is_in(self, resource: str, state: State) -> Row:
        """Wait until a resource rests in a state."""

        async def there() -> Row | None:
            row = await self.row(resource)
            return row if row.state is state and row.in_flight is None and not row.dirty else None

        return await until(there, f"{resource} is {state.value}")  # type: ignore[no-any-return]

    async def typed(self, *arguments: str) -> Ended:
        """A command of an operator."""
        ended = await asyncio.to_thread(_typed, (*arguments, "--data", str(self.folder)))
        ended.out = _LOG_LINE.sub("", ended.out)  # the gateway logs to the same standard output, being in this process
        return ended

    async def said(self, *arguments: str, code: int | None = None) -> Any:
        """The JSON answer of a command."""
        ended = await self.typed(*arguments, "--json")
        assert code is None or ended.code == code, (ended.code, ended.out, ended.err)
        return json.loads(ended.out)

    def another(
        self, clock: Clock, ask: Ask | None = None, spec_of: Callable[[str], Spec | None] | None = None
    ) -> Reconciler:
        """The comparisons of another gateway process that has the same store and bus, and a clock of its own.

        Args:
            ask: what it hears of the workers, to let something happen in between.
        """
        parts = self.gateway
        return Reconciler(
            parts.store,
            parts.dispatcher,
            clock,
            lambda: parts.targets,
            ask or parts.bus.ask,
            spec_of or parts.presences.spec,
            parts.presences.serves,
            parts.spawn,
        )

    async def reconciled(self, by: Reconciler | None = None, **order: Any) -> tuple[Report, list[Finding]]:
        """A comparison from its begin to its end without rests, and what it found."""
        by = by or self.another(LongDays())
        run = by.start(TARGET, repair=order.pop("repair", False), **order)
        await until(lambda: run.report is not None and TARGET not in by.running, "the report")
        assert run.report is not None
        return run.report, await self.findings()

    async def findings(self) -> list[Finding]:
        """The kept differences of the last report."""
        return await self.gateway.store.read_slow(lambda reader: kept_findings(reader, TARGET))

    async def report(self) -> Report | None:
        """The kept report."""
        return await self.gateway.store.read_slow(lambda reader: last_report(reader, TARGET))


def a_configuration(
    nats: str, product: str, secret: Path, *, reconcile: str = "", more: str = "", settings: str = ""
) -> Configuration:
    """One target; its own rate limit stays, the product's is lifted. Its lists show at once what was written."""
    settles = f"settle_s = 0.0\n{reconcile}"
    return parse(
        f'[gateway]\nport = {free_port()}\noperator_port = {free_port()}\n[nats]\nurl = "{nats}"\n'
        f'[targets.{TARGET}]\nconnector = "bobs_business"\ntitle = "Learning"\n{more}\n'
        f"[targets.{TARGET}.reconcile]\n{reconcile if 'settle_s' in reconcile else settles}\n"
        f'[targets.{TARGET}.settings]\ntenant_url = "{product}/scim/v2"\napi_key = {{ file = "{secret}" }}\n'
        f"allow_loopback = true\n{settings}\n"
    )


@contextlib.asynccontextmanager
async def compared(
    folder: Path, nats: NatsServer, *, reconcile: str = "", more: str = "", settings: str = "", worker: bool = True
) -> AsyncIterator[Compared]:
    """Start everything, wait until it works, and end it."""
    product = BobsBusinessEmulator()
    product.set(rate_per_s=0)
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 a moment, in a test
    secret = folder / "secret"
    secret.write_text(f"demo-token-{product.name}")
    secret.chmod(0o600)
    await write_blank_store(folder / "provgate.sqlite3")
    source = folder / "provgate.toml"
    source.write_text("")
    loop = asyncio.get_running_loop()
    async with running(product) as url:
        config = a_configuration(nats.url, url, secret, reconcile=reconcile, more=more, settings=settings)
        gateway = Gateway(config, ConfigurationFile(source))
        serving = asyncio.create_task(gateway.run())
        at_work = Worker(config, folder)
        working = asyncio.create_task(at_work.run()) if worker else None
        try:
            await until((folder / ACCESS_FILE).exists, "the gateway listens")
            if worker:
                await until(at_work.serving.is_set, "the worker serves")
                at_work.served[TARGET].limit = CallLimit(None)  # the product's own is lifted, too
                await until(lambda: gateway.presences.serves(TARGET), "the gateway knows the worker")
            yield Compared(folder, gateway, at_work, product)
        finally:
            gateway.stopping.set()
            at_work.stop()
            await asyncio.gather(serving, *([working] if working else []), return_exceptions=True)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
