"""Random sequences of what Entra does to groups, against the ingress and a model of a dictionary of sets (hypothesis)."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import uuid
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.gateway.scim_listener import Answer, GroupShelf, Listener, listening

WAIT_S = 30.0
PEOPLE = 4
STRANGERS = ("nobody-1", "nobody-2")
T = TypeVar("T")

person = st.integers(0, PEOPLE - 1)
some = st.lists(st.integers(0, PEOPLE + len(STRANGERS) - 1), max_size=5)
"""Members by number; the last ones are ids of nobody."""
upper = st.booleans()


class Loop:
    """An event loop in a thread, for a state machine that knows nothing of one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], wait_s: float | None = WAIT_S) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(wait_s)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()


class GroupsOfEntra(RuleBasedStateMachine):
    """One group and four people; the model is the name, the set of members, and who is active."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.stack = contextlib.AsyncExitStack()
        self.folder = tempfile.TemporaryDirectory(prefix="groups-")
        self.shelf = GroupShelf()
        self.scim: Listener = self.loop.run(
            self.stack.enter_async_context(listening(Path(self.folder.name), shelf=self.shelf))
        )
        self.people: list[str] = []
        self.group = ""
        self.name = ""
        self.members: set[str] = set()
        self.version = ""

    def teardown(self) -> None:
        self.loop.run(self.stack.aclose())
        self.loop.close()
        self.folder.cleanup()

    # ---- talking to it

    def ids(self, numbers: list[int]) -> list[str]:
        return [(*self.people, *STRANGERS)[number] for number in numbers]

    def new_person(self) -> str:
        return str(self.loop.run(self.scim.user(f"{uuid.uuid4().hex}@contoso.example"))["id"])

    def patch(self, *operations: dict[str, Any]) -> Answer:
        answer = self.loop.run(self.scim.patch(f"/Groups/{self.group}", *operations))
        assert (answer.status, answer.raw) == (204, b""), answer.body
        return answer

    async def found(self, question: str) -> list[str]:
        quoted = "".join(f"%{byte:02X}" for byte in question.encode())
        answer = await self.scim.get(f"/Groups?filter={quoted}&attributes=id")
        assert answer.status == 200, answer.body
        return [resource["id"] for resource in answer.body["Resources"]]

    # ---- what Entra does

    @initialize(first=some)
    def begin(self, first: list[int]) -> None:
        self.people = [self.new_person() for _ in range(PEOPLE)]
        self.create(first)

    def create(self, first: list[int]) -> None:
        self.name = f"Sales {uuid.uuid4().hex}"
        made = self.loop.run(self.scim.group(self.name, *self.ids(first)))
        self.group, self.members = made["id"], set(self.ids(first))

    @rule(numbers=some, capital=upper)
    def add(self, numbers: list[int], capital: bool) -> None:
        members = [{"$ref": None, "value": member} for member in self.ids(numbers)]
        self.patch({"op": "Add" if capital else "add", "path": "members", "value": members})
        self.members |= set(self.ids(numbers))

    @rule(number=person)
    def add_as_text(self, number: int) -> None:
        self.patch({"op": "add", "path": "members", "value": self.people[number]})
        self.members.add(self.people[number])

    @rule(numbers=some)
    def remove_by_list(self, numbers: list[int]) -> None:
        members = [{"$ref": None, "value": member} for member in self.ids(numbers)]
        self.patch({"op": "Remove", "path": "members", "value": members})
        self.members -= set(self.ids(numbers))

    @rule(numbers=some.filter(bool))
    def remove_by_filter(self, numbers: list[int]) -> None:
        self.patch(*({"op": "remove", "path": f'members[value eq "{member}"]'} for member in self.ids(numbers)))
        self.members -= set(self.ids(numbers))

    @rule()
    def remove_all(self) -> None:
        self.patch({"op": "remove", "path": "members"})
        self.members = set()

    @rule(numbers=some, with_path=upper)
    def replace(self, numbers: list[int], with_path: bool) -> None:
        members = [{"value": member} for member in self.ids(numbers)]
        if with_path:
            self.patch({"op": "replace", "path": "members", "value": members})
        else:
            self.patch({"op": "replace", "value": {"members": members}})
        self.members = set(self.ids(numbers))

    @rule(gone=some, come=some)
    def mixed(self, gone: list[int], come: list[int]) -> None:
        self.name = f"Sales {uuid.uuid4().hex}"
        self.patch(
            {"op": "Add", "path": "members", "value": [{"value": member} for member in self.ids(come)]},
            {"op": "Replace", "path": "displayName", "value": self.name},
            {"op": "Remove", "path": "members", "value": [{"value": member} for member in self.ids(gone)]},
        )
        self.members = (self.members | set(self.ids(come))) - set(self.ids(gone))

    @rule(numbers=some)
    def put(self, numbers: list[int]) -> None:
        body = {"displayName": self.name, "members": [{"value": member} for member in self.ids(numbers)]}
        answer = self.loop.run(self.scim.send("PUT", f"/Groups/{self.group}", json=body))
        assert answer.status == 200, answer.body
        self.members = set(self.ids(numbers))

    @rule(number=person, active=upper)
    def switch(self, number: int, active: bool) -> None:
        operation = {"op": "Replace", "path": "active", "value": str(active)}
        answer = self.loop.run(self.scim.patch(f"/Users/{self.people[number]}", operation))
        assert answer.status == 200

    @rule(first=some)
    def delete_and_create(self, first: list[int]) -> None:
        answer = self.loop.run(self.scim.send("DELETE", f"/Groups/{self.group}"))
        assert answer.status == 204
        self.create(first)

    @precondition(lambda self: self.members)
    @rule()
    def repeat_what_is_there(self) -> None:
        before = self.loop.run(self.scim.get(f"/Groups/{self.group}"))
        members = [{"value": member} for member in sorted(self.members)]
        answer = self.patch({"op": "Add", "path": "members", "value": members})
        assert answer.headers["etag"] == before.headers["etag"]

    # ---- what must hold after every step

    @invariant()
    def what_is_read_is_what_was_asked(self) -> None:
        answer = self.loop.run(self.scim.get(f"/Groups/{self.group}"))
        assert answer.status == 200
        shown = [member["value"] for member in answer.body.get("members", ())]
        assert len(shown) == len(set(shown))
        assert set(shown) == self.members
        assert answer.body["displayName"] == self.name

    @invariant()
    def membership_questions_agree(self) -> None:
        everybody = (*self.people, *STRANGERS)
        asked = [f'id eq "{self.group}" and members eq "{member}"' for member in everybody]
        asked += [f'members.value eq "{member}"' for member in everybody]
        expected = [[self.group] if member in self.members else [] for member in everybody]

        async def answers() -> list[list[str]]:
            return await asyncio.gather(*map(self.found, asked))

        assert self.loop.run(answers()) == expected * 2

    @invariant()
    def the_product_has_everybody_who_has_an_account(self) -> None:
        rows = self.loop.run(
            self.scim.store.read(lambda reader: {each: reader.row(each) for each in (self.group, *self.people)})
        )
        accounts = {each: row.account_id for each, row in rows.items() if row is not None}
        name, held = self.shelf.groups[str(accounts[self.group])]
        assert name == self.name
        assert held == {accounts[member] for member in self.members if member in self.people}


GroupsOfEntra.TestCase.settings = settings(
    max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
TestGroupsOfEntra = GroupsOfEntra.TestCase
"""RFC 7644 section 3.5.2: after every request the answers, the questions and the product agree with a set of members."""
