"""A connector alone with its emulated product: built as a worker builds it, without gateway, broker and store.

`Repeating` is as much of a gateway as one resource needs; what needs the engine itself is in `driven.py` and `chain.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from connectors import registry
from connectors.contract import Connector
from deploy.emulators.harness import Emulator, running
from schemas.errors import Blocked, Gone, Misconfigured, RateLimited, Rejected, Unavailable
from schemas.events import Outcome, ProvisioningEvent
from schemas.states import Change, Result
from workers.delivery import deliver

E = TypeVar("E", bound=Emulator)
SENDS_MAX = 5
FAULTS: list[tuple[dict[str, Any], type[Exception], bool]] = [
    ({"kind": "status", "status": 503}, Unavailable, False),
    ({"kind": "status", "status": 504}, Unavailable, True),
    ({"kind": "html"}, Unavailable, False),
    ({"kind": "reset"}, Unavailable, True),
    ({"kind": "truncate"}, Unavailable, True),
    ({"kind": "drop_response"}, Unavailable, True),
    ({"kind": "auth"}, Misconfigured, False),
    ({"kind": "status", "status": 403}, Misconfigured, False),
]
"""What any product does at times, the error it becomes, and whether the write may have happened all the same."""


class Known:
    """A worker's directory of a product's names that is never refreshed; without an argument it knows nothing."""

    def __init__(self, names: Mapping[str, Sequence[Any]] | None = None) -> None:
        self._names = names or {}

    def names(self, kind: str) -> Sequence[Mapping[str, Any] | str]:
        """See `connectors.contract.Directory`."""
        return self._names.get(kind, ())

    async def refresh(self) -> bool:
        """Nothing new is learned."""
        return False


class StaysOurs:
    """A delivery that nobody takes over."""

    def check(self) -> None:
        """Nothing to object."""


def secret_file(file: Path, value: str) -> Path:
    """A credential as connectors want to find it: in a file that only its owner reads."""
    file.write_text(value, encoding="utf-8")
    file.chmod(0o600)
    return file


def decoded(connector: str, table: Mapping[str, Any]) -> Any:
    """The settings of a connector as TOML gives them; nothing may be wrong with them."""
    problems: list[str] = []
    made = registry.decode_settings(connector, dict(table), "settings", problems)
    assert not problems, problems
    return made


def problems_of(connector: str, table: Mapping[str, Any]) -> list[str]:
    """What is wrong with settings."""
    problems: list[str] = []
    assert registry.decode_settings(connector, dict(table), "settings", problems) is None
    return problems


@contextlib.asynccontextmanager
async def built(connector: str, table: Mapping[str, Any], *, paced: bool = False) -> AsyncIterator[Any]:
    """The connector as a worker builds it, with connections of its own; `paced`: with the product's rate limit."""
    made, http = registry.build(connector, decoded(connector, table), paced=paced)
    assert http is not None
    try:
        yield made
    finally:
        await made.close()
        await http.close()


@contextlib.asynccontextmanager
async def correctly_used(emulator: E) -> AsyncIterator[tuple[E, str]]:
    """A running product and its address; whatever no correct client does fails the test."""
    async with running(emulator) as url:
        yield emulator, url
    assert not emulator.violations, list(emulator.violations)


async def refusal(awaitable: Awaitable[Any], *secrets: str) -> Any:
    """The connector error of a step that must fail, and that tells none of the secrets."""
    with pytest.raises((Rejected, Gone, Blocked, Misconfigured, RateLimited, Unavailable)) as caught:
        await awaitable
    assert not [secret for secret in secrets if secret in str(caught.value)]
    return caught.value


def users(emulator: Emulator) -> list[dict[str, Any]]:
    """The accounts a product holds."""
    return list(emulator.state()["users"].values())


def fail_writes(emulator: Emulator, fault: Mapping[str, Any]) -> None:
    """Every POST from now on fails like this, see `FAULTS`."""
    options = dict(fault)
    emulator.fault(options.pop("kind"), method="POST", **options)


def effects(emulator: Emulator) -> list[str]:
    """What was really written, in order."""
    return [effect["op"] for effect in emulator.journal.effects()]


class Repeating:
    """As much of the gateway as one resource needs: it links what was found and sends again (delivery rules R4 and R9).

    Args:
        correlated_by: SCIM paths of the attributes that are sent as identities.
    """

    def __init__(self, connector: Connector[Any, Any], *correlated_by: str) -> None:
        self.connector = connector
        self.correlated_by = correlated_by or ("userName",)
        self.account_id: str | None = None
        self.created_by_us: bool | None = None
        self.ambiguous = False
        self.sent = 0
        self.notes: set[str] = set()

    async def send(self, document: Mapping[str, Any], *, deleted: bool = False) -> Outcome:
        """One delivery."""
        self.sent += 1
        names = [(path, document[path]) for path in self.correlated_by]
        outcome = await deliver(
            ProvisioningEvent(
                id="01J0000000000000000000000A",
                target="t",
                connector=self.connector.spec.name,
                kind="user",
                resource="r1",
                generation=1,
                fence=self.sent,
                change=Change.DELETE if deleted else Change.UPDATE,
                document=msgspec.Raw(msgspec.json.encode(document)),
                deleted=deleted,
                account_id=self.account_id,
                created_by_us=self.created_by_us,
                notes=tuple(sorted(self.notes)),
                look=self.ambiguous,
                identities=tuple(f"{path}:{name.casefold()}" for path, name in names),
            ),
            delivery=1,
            connector=self.connector,
            directory=Known(),
            owned=StaysOurs(),
            new_id=lambda: "x",
            clock=lambda: 0.0,
        )
        assert outcome is not None
        for one in outcome.notes:
            (self.notes.add if one.holds else self.notes.discard)(one.code)
        doubt = self.ambiguous or outcome.ambiguous or outcome.result is Result.FOUND
        self.ambiguous = doubt and outcome.result is not Result.APPLIED  # R9: cleared by a settle only
        self.account_id = outcome.account_id or self.account_id
        if outcome.created:
            self.created_by_us = True
        if outcome.result is Result.FOUND:
            self.account_id = outcome.sightings[0].account_id
            self.created_by_us = None if outcome.looked else False
        return outcome

    async def settle(self, document: Mapping[str, Any], *, deleted: bool = False) -> Outcome:
        """Deliveries until one is applied or refused, at most `SENDS_MAX`."""
        for _ in range(SENDS_MAX):
            outcome = await self.send(document, deleted=deleted)
            if outcome.result in (Result.APPLIED, Result.REJECTED, Result.BLOCKED):
                break
        return outcome
