"""Groups that are sent again when a target's settings treat them differently: a row of a membership map came or went.

The gateway does not know what a connector's settings mean, so it asks a worker, group by group, whether what was made of it is
still what is wanted. That needs no memory of earlier settings: it is asked when a worker says that its settings changed, some
times afterwards, because a worker with the old ones may still be there to answer, and now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from gateway.comparison import Ask
from gateway.dispatch import Clock, Dispatcher
from gateway.ledger import Ledger
from gateway.lifecycle import DEAD_STATES, Row, make_dirty
from gateway.store import Store
from schemas.config import TargetSettings
from schemas.grouping import GROUPS_PER_QUESTION_MAX, SORT_S, GroupsSorted, StoredGroup
from schemas.logs import logger
from schemas.specs import Spec

CAPABILITY = "group_maps"
AGAIN_FOR_S = 600.0
"""How long after a change the groups are looked at again and again."""
ANYWAY_EVERY_S = 3_600.0
ANSWER_MARGIN_S = 2.0
PAGES_MAX = 5_000

log = logger()


class Regrouping:
    """Finds stored groups that are to be sent again, and gives them back to the engine.

    Args:
        targets: settings of the configured targets by name.
        ask: puts a question to a worker.
        spec_of: the declaration of a target's connector, None while it was never seen.
        serves: whether a worker serves a target now.
    """

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        clock: Clock,
        targets: Callable[[], Mapping[str, TargetSettings]],
        ask: Ask,
        spec_of: Callable[[str], Spec | None],
        serves: Callable[[str], bool],
    ) -> None:
        self.store = store
        self.dispatcher = dispatcher
        self.clock = clock
        self.targets = targets
        self.ask = ask
        self.spec_of = spec_of
        self.serves = serves
        self._changed_at: dict[str, float] = {}
        self._looked_at: dict[str, float] = {}

    async def changed(self, target: str) -> int:
        """A worker says that the settings of a target are others than before: look now, and some times more."""
        self._changed_at[target] = self.clock.now()
        return await self.look(target)

    async def look_around(self) -> None:
        """Called every minute: all targets whose settings changed lately, and the others now and then."""
        now = self.clock.now()
        for name in self.targets():
            lately = now - self._changed_at.get(name, float("-inf")) <= AGAIN_FOR_S
            if lately or now - self._looked_at.get(name, float("-inf")) >= ANYWAY_EVERY_S:
                await self.look(name)

    async def look(self, target: str) -> int:
        """Ask about every group of a target; how many are sent again. 0, too, when nobody could answer: it is asked later."""
        spec, settings = self.spec_of(target), self.targets().get(target)
        if spec is None or CAPABILITY not in spec.capabilities or settings is None or not settings.enabled:
            return 0
        if not self.serves(target):
            return 0
        after = sent_again = 0
        for _ in range(PAGES_MAX):
            found = await self.store.read_slow(
                lambda reader, after=after: reader.groups_after(target, after, GROUPS_PER_QUESTION_MAX)  # type: ignore[misc]
            )
            if not found:
                break
            changed = await self._changed_of(target, [row for _, row in found])
            if changed is None:
                return sent_again
            if changed:
                sent_again += await self.store.run(self._send_again(target, changed))
            after = found[-1][0]
        self._looked_at[target] = self.clock.now()
        if sent_again:
            log.info("groups.sent_again", target=target, groups=sent_again)
            self.dispatcher.kick(target)
        return sent_again

    async def _changed_of(self, target: str, rows: Sequence[Row]) -> dict[str, str] | None:
        """Of these groups those to be sent again, with what was made of them; None when no worker said."""
        groups = [_stored(row) for row in rows if row.account_id is not None]
        question = {"do": "sort_groups", "groups": [msgspec.to_builtins(one) for one in groups]}
        reply = await self.ask(target, question, SORT_S + ANSWER_MARGIN_S)
        if reply is None:
            return None
        try:
            answer = msgspec.json.decode(reply, type=GroupsSorted)
        except msgspec.DecodeError:  # a worker of another version
            return None
        if not answer.ok:
            return None
        return {one.id: one.account_id for one in groups if one.id in answer.changed}

    def _send_again(self, target: str, changed: Mapping[str, str]) -> Callable[[Ledger], int]:
        def job(ledger: Ledger) -> int:
            now, count = self.clock.now(), 0
            for resource, account_id in changed.items():
                row = ledger.row(resource)
                if row is None or row.account_id != account_id or row.deleted or row.dirty or row.state in DEAD_STATES:
                    continue
                make_dirty(row, now)
                ledger.save(row)
                count += 1
            if count:
                ledger.audit(
                    at=now,
                    actor="system",
                    action="groups.sent_again",
                    target=target,
                    subject=target,
                    detail={"groups": count},
                )
            return count

        return job


class _Called(msgspec.Struct):
    displayName: str = ""
    externalId: str | None = None


_called = msgspec.json.Decoder(_Called)


def _stored(row: Row) -> StoredGroup:
    try:
        called = _called.decode(row.document)
    except msgspec.DecodeError:
        called = _Called()
    return StoredGroup(
        id=row.id,
        account_id=row.account_id or "",
        display_name=called.displayName,
        external_id=called.externalId or "",
    )
