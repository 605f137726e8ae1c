"""Observe: a target that calls nobody. It accepts users and groups of any shape and records them in memory.

The first target of anyone who wants to see what Entra sends, and the one that protocol suites run against.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Sequence

from msgspec import Struct

from connectors.contract import Connector, Delivery, Directory, Endpoint, Finding, Found, Identity, VendorHttp
from connectors.scim import supplied_paths
from schemas.events import identity
from schemas.resources import Group, User
from schemas.specs import Spec

SIGHTS_MAX = 1_000


class Settings(Struct, frozen=True, kw_only=True):
    """Observe has nothing to set."""


class Sight(Struct, frozen=True):
    """One change that arrived.

    Args:
        act: `create`, `update`, `delete`, `put_group`, `change_members` or `delete_group`.
        account_id: whose.
        resource: the wish, or None for acts that carry none.
        paths: SCIM paths that carried a value.
    """

    act: str
    account_id: str
    resource: User | Group | None = None
    paths: tuple[str, ...] = ()


class Observe(Connector[Settings, User]):
    """Records what it is told: the newest SIGHTS_MAX changes in `sights`, all of them in `counts`."""

    spec = Spec(
        name="observe",
        title="Observe",
        resources=("User", "Group"),
        any_attribute=True,
        concurrency_max=64,
        capabilities=("groups",),
        pitfalls=("What arrived is forgotten when the worker ends; the gateway's history keeps it.",),
    )
    settings_type = Settings

    def __init__(self, settings: Settings, http: VendorHttp) -> None:
        super().__init__(settings, http)
        self.sights: deque[Sight] = deque(maxlen=SIGHTS_MAX)
        self.counts: Counter[str] = Counter()

    @classmethod
    def endpoint(cls, settings: Settings) -> Endpoint | None:
        """Nowhere."""
        return None

    def normalize(self, user: User, directory: Directory) -> User:
        """Everything is accepted as it is."""
        return user

    async def check(self) -> list[Finding]:
        """Always well."""
        return [Finding(level="ok", code="no_product", message="Observe calls nobody; every change is accepted.")]

    async def find(self, account: User | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """Nothing, always.

        There is no store behind this target that could hold an account the gateway does not know. What a worker remembers is
        no evidence either: the next worker would not remember it, and the answer must not depend on who serves.
        """
        return []

    async def create(self, account: User, ctx: Delivery) -> str:
        """The id follows from the delivery, so a redelivery answers with the same one."""
        account_id = _made_id(ctx.idempotency_key or identity("userName", account.user_name))
        self._see("create", account_id, account, tuple(supplied_paths(account)))
        return account_id

    async def update(self, account_id: str, account: User, ctx: Delivery) -> None:
        """Recorded; an account is never gone here."""
        self._see("update", account_id, account, tuple(supplied_paths(account)))

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        """Recorded."""
        self._see("delete", account_id)

    async def find_group(self, group: Group | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """Nothing, for the reasons of `find`."""
        return []

    async def put_group(self, group_id: str | None, group: Group, ctx: Delivery) -> str:
        """Recorded; a new one gets an id that follows from the delivery."""
        made = group_id or _made_id(ctx.idempotency_key or identity("displayName", group.display_name))
        self._see("put_group", made, group)
        return made

    async def change_members(self, group_id: str, add: Sequence[str], remove: Sequence[str], ctx: Delivery) -> None:
        """Recorded by number of members."""
        self._see("change_members", group_id)
        self.counts["members_added"] += len(add)
        self.counts["members_removed"] += len(remove)

    async def delete_group(self, group_id: str, ctx: Delivery) -> None:
        """Recorded."""
        self._see("delete_group", group_id)

    def _see(
        self, act: str, account_id: str, resource: User | Group | None = None, paths: tuple[str, ...] = ()
    ) -> None:
        self.counts[act] += 1
        self.sights.append(Sight(act=act, account_id=account_id, resource=resource, paths=paths))


def _made_id(key: str) -> str:
    return f"obs-{hashlib.sha256(key.encode()).hexdigest()[:24]}"
