"""One target as a worker serves it: the connector with its HTTP client, its limits, its names, and what presence says of it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from connectors.contract import Connector, CredentialEnd, Delivery, HasDirectory, WatchesCredential
from connectors.registry import CallsNobody, build, decode_settings
from connectors.rehearsal import rehearsing_connector
from schemas.config import Secret, TargetSettings
from schemas.errors import ConfigurationError
from schemas.logs import logger
from schemas.specs import Spec
from workers.delivery import NotOurs
from workers.limits import CallLimit, NameCache
from workers.ownership import Slots
from workers.presence import TargetPresence, digest

CREDENTIAL_WARN_DAYS = (30, 14, 7, 1, 0)
"""Days before a credential's end at which the log says so once each; 0 is the end itself."""
DAY_S = 86_400.0


class Calls(Struct):
    """How many calls to products were made, repeats and token requests included."""

    calls: int = 0


_counted: ContextVar[Calls | None] = ContextVar("counted", default=None)


@contextmanager
def counting_calls() -> Iterator[Calls]:
    """Count the calls to products that are made within, by this task and those it starts."""
    counted = Calls()
    before = _counted.set(counted)
    try:
        yield counted
    finally:
        _counted.reset(before)


class Served:
    """A target whose events this worker takes.

    Attributes:
        name: the target.
        concurrency: how many deliveries run at once here.
        window: how many events the gateway may have in flight for it.
        now: epoch seconds.
        ends: nothing more is called: deliveries at work are given up before their next call.
        called_at: when the product was called last; 0 when not since the start.
    """

    def __init__(
        self,
        name: str,
        configured: TargetSettings,
        base: Path,
        *,
        concurrency_max: int,
        before_call: Callable[[CallLimit], Awaitable[None]],
        now: Callable[[], float] = time.time,
    ) -> None:
        problems: list[str] = []
        settings = decode_settings(configured.connector, configured.settings, f"targets.{name}.settings", problems)
        if settings is None:
            raise ConfigurationError(name, problems or [f"targets.{name}.settings: cannot be read"])
        self.name = name
        self.now = now
        self.ends = False
        self.called_at = 0.0
        self.configured = configured
        self.settings: Struct = rebased(settings, base)
        self.window = configured.window
        self._digest = digest(name, configured.connector, self.settings)
        self.limit = CallLimit(None)

        async def hook(ctx: Delivery | None) -> None:
            await before_call(self.limit)
            if self.ends:
                raise NotOurs  # shadow mode has begun: no further call of a delivery that began before
            self.called_at = self.now()
            counted = _counted.get()
            if counted is not None:
                counted.calls += 1

        self.connector, self._http = build(configured.connector, self.settings, before_call=hook, paced=False)
        self._spec = self.connector.spec_for(self.settings)
        self.limit = CallLimit(self.spec.rate_limit)
        self.directory = NameCache(self.connector.load_directory if isinstance(self.connector, HasDirectory) else None)
        self.concurrency = min(concurrency_max, self.spec.concurrency_max)
        self.slots = Slots(self.concurrency)
        self._shadow: Connector[Any, Any] | None = None
        self._warned: tuple[float, int] | None = None

    def succeed(self, held: Served) -> None:
        """Take the place of the same target as it was configured before: both share the product's limit while they overlap."""
        if held.spec.rate_limit == self.spec.rate_limit:
            self.limit = held.limit
        held.ends = self.configured.shadow and not held.configured.shadow
        self._warned = held._warned

    def rehearsing(self) -> Connector[Any, Any]:
        """A new connector that calls through the same client and sends nothing that writes; close it after use."""
        return rehearsing_connector(type(self.connector), self.settings, self._http or CallsNobody())

    def shadow(self) -> Connector[Any, Any]:
        """The one that rehearses all deliveries of shadow mode, so that what it remembers of the product is read once."""
        if self._shadow is None:
            self._shadow = self.rehearsing()
        return self._shadow

    @property
    def base_url(self) -> str:
        """Where the product's calls go; "" when nobody is called."""
        return self._http.base_url if self._http is not None else ""

    @property
    def spec(self) -> Spec:
        """What the connector declares for this target."""
        return self._spec

    def presence(self) -> TargetPresence:
        """What the others are told; a credential that changed on disk shows in the digest."""
        problems: tuple[str, ...] = ()
        try:
            self._digest = digest(self.name, self.configured.connector, self.settings)
        except ConfigurationError as exc:
            problems = tuple(f"targets.{self.name}: {exc.source} {problem}" for problem in exc.problems)
        return TargetPresence(
            connector=self.configured.connector,
            serving=True,
            spec=self.spec,
            digest=self._digest,
            problems=problems,
            credential=self._credential(),
        )

    def _credential(self) -> CredentialEnd | None:
        """When the product's credential ends; each step of CREDENTIAL_WARN_DAYS is logged once per credential."""
        if not isinstance(self.connector, WatchesCredential):
            return None
        try:
            end = self.connector.credential_end()
        except Exception as exc:  # a connector may fail in any way; the presence of all other targets must not
            logger().error("credential.unknown", target=self.name, error=type(exc).__name__)
            return None
        left_days = (end.ends_at - self.now()) / DAY_S
        step = min((days for days in CREDENTIAL_WARN_DAYS if left_days <= days), default=None)
        if step is None:
            self._warned = None
        elif self._warned != (end.ends_at, step):
            self._warned = (end.ends_at, step)
            logger().warning(
                "credential.ending" if step else "credential.ended",
                target=self.name,
                what=end.what,
                days_left=int(left_days // 1),
                step_days=step,
                remedy=end.remedy,
            )
        return end

    async def close(self) -> None:
        """Release the connector and its connections."""
        if self._shadow is not None:
            await self._shadow.close()
        await self.connector.close()
        if self._http is not None:
            await self._http.close()


def rebased(value: Any, base: Path) -> Any:
    """Settings whose secret files with a relative path are looked for beside the configuration file."""
    if isinstance(value, Secret):
        return Secret(file=str(base / value.file)) if value.file is not None else value
    if isinstance(value, Struct):
        parts = {name: getattr(value, name) for name in value.__struct_fields__}
        changed = {name: new for name, part in parts.items() if (new := rebased(part, base)) is not part}
        return msgspec.structs.replace(value, **changed) if changed else value
    if isinstance(value, Mapping):
        return {name: rebased(part, base) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(rebased(part, base) for part in value)
    return value
