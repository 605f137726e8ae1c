"""Groups in a reconciliation: what is found about them and their members, what is repaired, and what never is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.emulators.scim_service import Resource
from gateway import reports_store as kept
from gateway.lifecycle import Row
from gateway.patch import MemberChange
from gateway.store import Store, Transaction
from schemas.states import State
from tests.conftest import NatsServer
from tests.gateway.compared import TARGET, Compared, compared
from tests.gateway.test_store import location, postgres, postgres_url, store  # noqa: F401 - fixtures


class Groups:
    """The groups of a product that is compared."""

    def __init__(self, here: Compared) -> None:
        self.here = here

    def rows(self) -> dict[str, dict[str, Any]]:
        """The product's groups by name."""
        return {group["displayName"]: group for group in self.here.product.tables.rows["groups"].values()}

    def members(self, name: str) -> set[str]:
        """Addresses of a group's members at the product."""
        users = self.here.product.tables.rows["users"]
        return {users[one]["userName"].partition("@")[0] for one in self.rows()[name]["members"]}

    def change(self, name: str, **fields: Any) -> None:
        """Somebody changes a group by hand."""
        group = self.rows()[name]
        self.here.product.control("by hand", self.here.product.put(self._resource(), {**group, **fields}, group))

    def put_in(self, name: str, *addresses: str) -> None:
        """Somebody puts people into a group by hand."""
        ids = [self.here.accounts()[f"{one}@contoso.example"]["id"] for one in addresses]
        self.change(name, members=[*self.rows()[name]["members"], *ids])

    def put_out(self, name: str, *addresses: str) -> None:
        """Somebody takes people out of a group by hand."""
        ids = [self.here.accounts()[f"{one}@contoso.example"]["id"] for one in addresses]
        self.change(name, members=[one for one in self.rows()[name]["members"] if one not in ids])

    def remove(self, name: str) -> None:
        """Somebody deletes a group by hand."""
        self.here.product.control("by hand", self.here.product.drop(self._resource(), self.rows()[name]))

    def _resource(self) -> Resource:
        return next(one for one in self.here.product.scim_resources if one.table == "groups")

    async def created(self, name: str, *members: str) -> str:
        """Entra creates a group with members, and it is applied; the id of the resource."""
        document = {"displayName": name, "externalId": f"object-{name.casefold()}"}
        change = [MemberChange("add", members)] if members else []
        answer = await self.here.gateway.intake.create(TARGET, "group", document, members=change)
        assert answer.row is not None, answer.error
        await self.here.is_in(answer.row.id, State.APPLIED)
        return answer.row.id


async def test_memberships_are_opened_again_as_they_were_seen(store: Store) -> None:  # noqa: F811 - the fixture
    """On both engines: missing ones are to be added, strangers to be removed, and what changed meanwhile stays as it is."""

    def seen(ledger: Transaction) -> None:
        for name, kind in (("g", "group"), ("a", "user"), ("b", "user"), ("c", "user"), ("d", "user")):
            ledger.save(Row(id=name, target="t", kind=kind, account_id=f"at-{name}", document=b'{"userName":"x"}'))
        ledger.change_members("g", [MemberChange("add", ("a", "b", "c"))])
        ledger.settle_members("g", ["a", "b"], [], anew=False)
        kept.reopen_members(ledger, "g", ["b", "c", "d"], ["a", "d"])

    await store.run(seen)

    members = await store.read_slow(lambda reader: kept.members_after(reader, "t", "g", ""))
    assert [(one.member, one.account_id, one.firm) for one in members] == [
        ("a", "at-a", True),
        ("b", "at-b", False),
        ("c", "at-c", False),
        ("d", "at-d", False),
    ]
    steps = await store.run(lambda ledger: ledger.member_steps(ledger.row("g")))
    assert [one.id for one in steps.add] == ["b", "c"]
    assert [one.id for one in steps.remove] == ["d"], "a is wished by now"


async def test_groups_and_members_are_compared_and_mended_by_the_engine(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Missing and renamed groups, members out and in by hand; strangers stay (L15), as does a group that was there before."""
    async with compared(tmp_path, nats_server, reconcile="held_count_min = 1\nheld_share = 0.2") as here:
        groups = Groups(here)
        here.product.seed({"users": [{"userName": "stranger@contoso.example"}]})
        here.product.seed({"groups": [{"displayName": "Theirs", "members": []}, {"displayName": "Nobodys"}]})
        ids = {name: await here.created(name) for name in ("ada", "bea", "cyd")}
        off = await here.created("dan", active=False)
        sales = await groups.created("Sales", ids["ada"], ids["bea"], off)
        press = await groups.created("Press", ids["ada"])
        board = await groups.created("Board", *ids.values())
        theirs = await groups.created("Theirs", ids["ada"])
        good, _ = await here.reconciled()
        assert good.counts == {"unknown": 1, "group_unknown": 1}
        assert (good.groups, good.groups_listed, good.memberships) == (4, 5, 8)

        groups.put_out("Sales", "bea", "dan")
        groups.put_in("Sales", "cyd", "stranger")
        groups.change("Press", displayName="Press!")
        groups.remove("Board")
        groups.put_in("Theirs", "bea")
        before = len(here.writes())
        told, findings = await here.reconciled()

        assert len(here.writes()) == before, "a report writes nothing"
        found = {(one.class_, one.resource): one for one in findings if one.class_.startswith("group_")}
        assert sorted(found) == sorted(
            {
                ("group_members", sales),
                ("group_strangers", sales),
                ("group_drifted", press),
                ("group_missing", board),
                ("group_strangers", theirs),
                ("group_unknown", ""),
            }
        )
        assert found["group_members", sales].code == "missing_and_extra_members"
        assert found["group_members", sales].message == "1 of 3 missing, 1 too many", "dan is inactive, and not missed"
        assert (found["group_strangers", sales].code, found["group_strangers", theirs].code) == (
            "unknown",
            "not_from_here",
        )
        assert found["group_drifted", press].attributes == ("displayName",)
        assert told.member_differences == 2
        assert not [one for one in findings if one.label in ("Sales", "Press", "Board")]

        generation, fence = (await here.row(sales)).generation, (await here.row(theirs)).fence
        held, _ = await here.reconciled(repair=True)
        assert (held.state, held.repaired) == ("held", 0)
        assert held.message.startswith("3 of 4 groups and 2 of 5 memberships would be applied again")
        repaired, _ = await here.reconciled(repair=True, approved=True, reason="somebody tidied up by hand")
        assert (repaired.state, repaired.repaired) == ("repaired", 3)
        for group in (sales, press, board, theirs):
            await here.is_in(group, State.APPLIED)
        assert groups.members("Sales") == {"ada", "bea", "stranger"}
        assert groups.members("Press") == {"ada"}
        assert groups.members("Board") == {"ada", "bea", "cyd"}
        assert groups.members("Theirs") == {"ada", "bea"}
        assert (await here.row(sales)).generation == generation, "no new wish was made up"
        assert (await here.row(theirs)).fence == fence, "what is only reported was not sent again"

        here.product.fault("status", method="GET", status=403, path="/scim/v2/Groups", times=3)
        forbidden, _ = await here.reconciled()
        here.product.clear_faults()
        assert (forbidden.state, forbidden.counts) == ("differs", {"unknown": 1}), "users are compared all the same"
        assert forbidden.code
        assert forbidden.message.startswith("Groups were not compared")

        healed, _ = await here.reconciled()
        assert healed.counts == {"unknown": 1, "group_strangers": 2, "group_unknown": 1}
        lines = (await here.typed("reconcile", TARGET, "--runs")).out
        assert "repaired" in lines
        assert "Next by itself: in" in lines
