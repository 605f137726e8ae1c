"""A product that is one file: observe, with every change written down and every account found again by whoever asks.

Named in a target as `observe_journalled`, through the entry points any connector author would use.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from connectors.contract import Delivery, Found, Identity, VendorHttp
from connectors.observe import Observe
from schemas.events import identity
from schemas.resources import User


class Settings(Struct, frozen=True, kw_only=True):
    """Where the changes are written."""

    journal: str


class Journalled(Observe):
    """Observe whose memory outlives it."""

    spec = msgspec.structs.replace(Observe.spec, name="observe_journalled", resources=("User",), capabilities=())
    settings_type = Settings  # type: ignore[assignment]

    def __init__(self, settings: Settings, http: VendorHttp) -> None:
        super().__init__(settings, http)  # type: ignore[arg-type]
        self.journal = Path(settings.journal)

    async def find(self, account: User | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """Whoever is there under one of these names."""
        living: dict[str, str] = {}
        for line in read(self.journal):
            if line["op"] == "delete":
                living.pop(line["account"], None)
            else:
                living[line["account"]] = identity("userName", line["name"])
        return [Found(account, name) for account, name in living.items() if name in identities]

    async def create(self, account: User, ctx: Delivery) -> str:
        """Made anew at every call, so that a second call would show."""
        made = f"account-{len(read(self.journal))}"
        self._write("create", made, account)
        return made

    async def update(self, account_id: str, account: User, ctx: Delivery) -> None:
        """Written down."""
        self._write("update", account_id, account)

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        """Written down."""
        self._write("delete", account_id, None)

    def _write(self, op: str, account_id: str, account: User | None) -> None:
        line = {"op": op, "account": account_id}
        if account is not None:
            line |= {"name": account.user_name, "version": account.name.family_name if account.name else ""}
        with self.journal.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read(journal: Path) -> list[dict[str, Any]]:
    """Every change, oldest first."""
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


def install(folder: Path) -> None:
    """Make it known to any Python that has `folder` on its path, as an installed package would."""
    package = folder / "provgate_journalled_connector-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: provgate-journalled-connector\nVersion: 1\n")
    (package / "entry_points.txt").write_text(
        "[provgate.connectors]\nobserve_journalled = tests.faults.journalled:Journalled\n"
    )
