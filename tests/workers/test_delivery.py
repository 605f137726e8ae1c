"""The order of work of one delivery (`workers/delivery.py`), against a product that keeps state; no broker, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from connectors.contract import Delivery, Found
from schemas.errors import (
    Blocked,
    Conflict,
    ConnectorError,
    Gone,
    Misconfigured,
    NormalizationError,
    RateLimited,
    Rejected,
    Unavailable,
)
from schemas.events import Outcome, Step, identity, split_identity
from schemas.resources import Group, User, text
from schemas.states import Change, Result
from tests.workers.conftest import an_event
from workers.delivery import NotOurs, deliver

ADA = "userName:ada"
BOB = "userName:bob"


class Product:
    """Accounts and a journal of (step, what). `fails` raises once, before the step has its effect, or after it with `late`."""

    def __init__(self) -> None:
        self.accounts: dict[str, dict[str, Any]] = {}
        self.journal: list[tuple[str, Any]] = []
        self.contexts: list[Delivery] = []
        self.fails: dict[str, Exception] = {}
        self.late: dict[str, Exception] = {}
        self.conflict = ""
        self.new_id: str | None = None

    def _enter(self, step: str, what: Any, ctx: Delivery | None = None) -> None:
        self.journal.append((step, what))
        if ctx is not None:
            self.contexts.append(ctx)
        if step in self.fails:
            raise self.fails.pop(step)

    def _leave(self, step: str) -> None:
        if step in self.late:
            raise self.late.pop(step)

    def normalize(self, user: User, directory: Any) -> dict[str, Any]:
        self._enter("normalize", user.user_name)
        title = text(user.title)
        if title and title not in directory.names("role"):
            raise NormalizationError(f"there is no role {title}", code="unknown_role", attribute="title", names=[title])
        return {"name": user.user_name.casefold(), "title": title}

    def account_keys(self, account: Any) -> tuple[str, ...]:
        return (account["name"],)

    def ignored(self, user: User) -> tuple[str, ...]:
        return ("nickName",) if isinstance(user.nick_name, str) else ()

    async def find(self, account: Any, identities: Sequence[str], ctx: Delivery) -> list[Found]:
        self._enter("find", (account is not None, tuple(identities)), ctx)
        names = {split_identity(name)[1]: name for name in identities}
        return [
            Found(account_id=account_id, identity=names[held.get("name", "")], conflict=self.conflict)
            for account_id, held in self.accounts.items()
            if held.get("name", "") in names
        ]

    async def create(self, account: Any, ctx: Delivery) -> str:
        self._enter("create", account["name"], ctx)
        account_id = f"a{len(self.accounts) + 1}" if self.new_id is None else self.new_id
        self.accounts[account_id] = dict(account)
        ctx.steps.append(Step(method="POST", path="/accounts", status=201))
        self._leave("create")
        return account_id

    async def update(self, account_id: str, account: Any, ctx: Delivery) -> None:
        self._enter("update", account_id, ctx)
        if account_id not in self.accounts:
            raise Gone("the account is not there any more")
        self.accounts[account_id] = dict(account)
        self._leave("update")

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        self._enter("delete", account_id, ctx)
        self.accounts.pop(account_id, None)
        self._leave("delete")

    @property
    def steps(self) -> list[str]:
        """The names of the steps in order."""
        return [step for step, _ in self.journal]


class GroupProduct(Product):
    """A product whose groups may be written."""

    async def find_group(self, group: Group | None, identities: Sequence[str], ctx: Delivery) -> list[Found]:
        return await self.find(group and {"name": group.display_name.casefold()}, identities, ctx)

    async def put_group(self, group_id: str | None, group: Group, ctx: Delivery) -> str:
        self._enter("put_group", group_id, ctx)
        made = group_id or "g1"
        self.accounts[made] = {"name": group.display_name.casefold()}
        return made

    async def change_members(self, group_id: str, add: Sequence[str], remove: Sequence[str], ctx: Delivery) -> None:
        self._enter("change_members", (group_id, tuple(add), tuple(remove)), ctx)

    async def delete_group(self, group_id: str, ctx: Delivery) -> None:
        self._enter("delete_group", group_id, ctx)
        self.accounts.pop(group_id, None)


class Roles:
    """A directory that learns one more role when it is refreshed."""

    def __init__(self, known: Sequence[str] = (), learns: str = "") -> None:
        self.known = list(known)
        self.learns = learns
        self.refreshes = 0

    def names(self, kind: str) -> Sequence[Mapping[str, Any] | str]:
        return self.known

    async def refresh(self) -> bool:
        self.refreshes += 1
        if self.learns:
            self.known.append(self.learns)
        return bool(self.learns)


class Owner:
    """Ownership that ends after so many checks."""

    def __init__(self, checks: int = 1_000) -> None:
        self.left = checks

    def check(self) -> None:
        if self.left <= 0:
            raise NotOurs
        self.left -= 1


@pytest.fixture
def product() -> GroupProduct:
    """An empty product."""
    return GroupProduct()


async def run(
    product: Product,
    *,
    delivery: int = 1,
    owned: Owner | None = None,
    directory: Roles | None = None,
    resource: str = "ada",
    **fields: Any,
) -> Outcome | None:
    """Deliver one event about the user `ada`."""
    fields.setdefault("name", resource)
    return await deliver(
        an_event(resource, **fields),
        delivery=delivery,
        connector=product,
        directory=directory or Roles(),
        owned=owned or Owner(),
        new_id=lambda: "outcome-1",
        clock=lambda: 1000.0,
        worker="w1",
    )


async def told(product: Product, **arguments: Any) -> Outcome:
    """The same, where an outcome is expected."""
    outcome = await run(product, **arguments)
    assert outcome is not None
    return outcome


# ---- looking before writing


async def test_a_create_looks_before_it_creates(product: Product) -> None:
    """No author can forget it: normalize, find by all identities with the wish's own keys, create."""
    outcome = await told(product)

    assert product.journal == [("normalize", "ada"), ("find", (True, (ADA,))), ("create", "ada")]
    assert (outcome.result, outcome.account_id, outcome.created) == (Result.APPLIED, "a1", True)
    assert outcome.account_keys == ("ada",)


async def test_R4_an_account_that_was_merely_found_is_reported_and_not_written_on(product: Product) -> None:
    """R4: the gateway links it first and sends again with the link."""
    product.accounts["a7"] = {"name": "ada", "title": "theirs"}

    outcome = await told(product)

    assert outcome.result is Result.FOUND
    assert [(seen.account_id, seen.identity) for seen in outcome.sightings] == [("a7", ADA)]
    assert (outcome.account_id, outcome.created) == (None, False)
    assert product.accounts == {"a7": {"name": "ada", "title": "theirs"}}


async def test_R4_a_deletion_does_not_delete_what_it_merely_found(product: Product) -> None:
    """R4: without a link, an account under the person's name is reported and left alone."""
    product.accounts["a7"] = {"name": "ada"}

    outcome = await told(product, deleted=True, change=Change.DELETE, lookup=(ADA,))

    assert outcome.result is Result.FOUND
    assert product.accounts == {"a7": {"name": "ada"}}
    assert "delete" not in product.steps


async def test_an_account_that_must_not_be_adopted_is_a_conflict_in_the_connectors_words(product: Product) -> None:
    """Vendor requirement: a found account with a conflict is for a person to decide."""
    product.accounts["a7"] = {"name": "ada"}
    product.conflict = "This account belongs to another tenant."

    outcome = await told(product)

    assert outcome.result is Result.REJECTED
    assert outcome.reason is not None
    assert (outcome.reason.message, outcome.reason.scim_type) == (product.conflict, "uniqueness")
    assert outcome.sightings == ()


async def test_a_linked_account_is_updated_without_looking(product: Product) -> None:
    """A link is certain: one call."""
    product.accounts["a1"] = {"name": "ada"}

    outcome = await told(product, account_id="a1", change=Change.UPDATE)

    assert product.steps == ["normalize", "update"]
    assert (outcome.result, outcome.account_id, outcome.created) == (Result.APPLIED, "a1", False)


async def test_a_linked_account_that_is_gone_is_looked_for_and_made_again(product: Product) -> None:
    """Failure class gone: 404 on update means re-create, after looking."""
    outcome = await told(product, account_id="a9", change=Change.UPDATE)

    assert product.steps == ["normalize", "update", "find", "create"]
    assert (outcome.result, outcome.account_id, outcome.created) == (Result.APPLIED, "a1", True)


async def test_a_linked_account_that_is_gone_and_found_under_another_id_is_reported(product: Product) -> None:
    """R4 holds after a 404 as well."""
    product.accounts["a2"] = {"name": "ada"}

    outcome = await told(product, account_id="a9", change=Change.UPDATE)

    assert outcome.result is Result.FOUND
    assert product.steps == ["normalize", "update", "find"]


# ---- doubt


async def test_R3_identities_an_earlier_delivery_may_have_created_are_looked_up(product: Product) -> None:
    """R3: the create looks for the wished name and for every name in doubt, in one step."""
    product.accounts["a7"] = {"name": "bob"}

    outcome = await told(product, lookup=(ADA, BOB))

    assert product.journal[1] == ("find", (True, (ADA, BOB)))
    assert outcome.result is Result.FOUND
    assert outcome.sightings[0].identity == BOB


async def test_R3_an_update_in_doubt_reports_a_double_and_writes_on_its_own_account_only(product: Product) -> None:
    """R3: another account under a name in doubt is a sighting; the linked one is brought to the wish."""
    product.accounts = {"a1": {"name": "ada"}, "a2": {"name": "bob"}}

    outcome = await told(product, account_id="a1", look=True, lookup=(ADA, BOB), change=Change.UPDATE)

    assert outcome.result is Result.APPLIED
    assert [seen.account_id for seen in outcome.sightings] == ["a2"]
    assert product.accounts["a2"] == {"name": "bob"}
    assert outcome.looked


async def test_R2_a_read_only_delivery_says_what_is_there_and_writes_nothing(product: Product) -> None:
    """R2: a blocked row of uncertain identity is first read; the wish is not even normalized."""
    product.accounts["a7"] = {"name": "bob"}

    outcome = await told(product, read_only=True, lookup=(BOB,), document={"nothing": "of a user"})

    assert outcome.result is Result.SEEN
    assert [(seen.account_id, seen.identity) for seen in outcome.sightings] == [("a7", BOB)]
    assert product.journal == [("find", (False, (BOB,)))]


async def test_R3_identities_of_others_are_looked_at_and_never_touched(product: Product) -> None:
    """R3: what others hold by now is reported; the create goes its own way."""
    product.accounts["a7"] = {"name": "bob"}

    outcome = await told(product, watch=(BOB,))

    assert (outcome.result, outcome.created) == (Result.APPLIED, True)
    assert [seen.account_id for seen in outcome.watched] == ["a7"]
    assert outcome.sightings == ()
    assert product.accounts["a7"] == {"name": "bob"}


async def test_strays_of_this_very_resource_become_its_account_or_are_removed(product: Product) -> None:
    """An account a stale delivery made is ours: the first is taken for the link, the others go."""
    product.accounts = {"a1": {"name": "ada"}, "a2": {"name": "ada"}}

    outcome = await told(product, strays=("a1", "a2"))

    assert (outcome.result, outcome.account_id) == (Result.APPLIED, "a1")
    assert list(product.accounts) == ["a1"]
    assert product.steps == ["normalize", "delete", "update"]


async def test_a_redelivery_is_ambiguous_and_carries_the_same_key(product: Product) -> None:
    """Rule T4: an earlier delivery may have acted; the idempotency key names event and fence, not the delivery."""
    first = await told(product, resource="ada")
    again = await told(product, resource="ada", delivery=2)

    assert (first.looked, again.looked) == (False, True)
    assert {ctx.idempotency_key for ctx in product.contexts} == {"event-ada-1"}
    assert again.delivery == 2


# ---- deletion


async def test_a_deletion_removes_the_linked_account_and_every_stray_once(product: Product) -> None:
    """Rule T8: by the ids the resource owns; nothing is looked for when nothing is in doubt."""
    product.accounts = {"a1": {}, "a2": {}, "a3": {}}

    outcome = await told(
        product, deleted=True, change=Change.DELETE, account_id="a1", strays=("a2", "a1"), lookup=(ADA,)
    )

    assert [what for step, what in product.journal if step == "delete"] == ["a1", "a2"]
    assert (outcome.result, outcome.account_id, outcome.deleted) == (Result.APPLIED, None, True)
    assert product.steps == ["delete", "delete"]


async def test_a_deletion_in_doubt_reports_what_is_left_under_its_names(product: Product) -> None:
    """An account that an earlier delivery may have made is reported, so that the next delivery owns it."""
    product.accounts = {"a1": {"name": "ada"}, "a2": {"name": "bob"}}

    outcome = await told(product, deleted=True, account_id="a1", look=True, lookup=(ADA, BOB))

    assert outcome.result is Result.FOUND
    assert [seen.account_id for seen in outcome.sightings] == ["a2"]
    assert list(product.accounts) == ["a2"]


# ---- refusals


async def test_what_our_own_rules_refuse_reaches_nobody(product: Product) -> None:
    """Vendor requirement 0.6: normalize comes before the first call; the reason names attribute and offenders."""
    outcome = await told(product, document={"userName": "ada", "title": "Wizard"}, look=True)

    assert product.steps == ["normalize"]
    assert (outcome.result, outcome.ambiguous) == (Result.REJECTED, False)
    assert outcome.reason is not None
    assert (outcome.reason.code, outcome.reason.attribute, outcome.reason.names) == (
        "unknown_role",
        "title",
        ("Wizard",),
    )


async def test_an_unknown_name_is_final_only_after_one_refresh(product: Product) -> None:
    """A role made a minute ago is not refused; the directory is asked once."""
    roles = Roles(learns="Wizard")

    outcome = await told(product, document={"userName": "ada", "title": "Wizard"}, directory=roles)

    assert outcome.result is Result.APPLIED
    assert roles.refreshes == 1
    assert product.steps == ["normalize", "normalize", "find", "create"]


class Renamed(Roles):
    """A directory whose role was spelled anew, or removed, at the product since it was loaded."""

    def __init__(self, now: Sequence[str]) -> None:
        super().__init__(["wizard"])
        self.now = now

    async def refresh(self) -> bool:
        self.refreshes += 1
        first, self.known = self.known != list(self.now), list(self.now)
        return first


class Spelled(GroupProduct):
    """A product that wants its names to the letter and a connector that knows them by the directory."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role

    def normalize(self, user: User, directory: Any) -> dict[str, Any]:
        self._enter("normalize", user.user_name)
        wanted = text(user.title)
        exact = [name for name in directory.names("role") if name.casefold() == wanted.casefold()]
        if not exact:
            raise NormalizationError(f"there is no role {wanted}", code="unknown_role", attribute="title")
        return {"name": user.user_name.casefold(), "title": exact[0]}

    def _enter(self, step: str, what: Any, ctx: Delivery | None = None) -> None:
        super()._enter(step, what, ctx)
        if step == "create" and self.sent != self.role:
            raise Rejected("no such role", code="unknown_role", attribute="title")

    async def create(self, account: Any, ctx: Delivery) -> str:
        self.sent = account["title"]
        return await super().create(account, ctx)


async def test_a_name_the_product_spells_anew_is_sent_as_it_is_now() -> None:
    """Vendor page 1.4: a refused name is final only after one refresh; a directory never expires by itself."""
    product, roles = Spelled("Wizard"), Renamed(["Wizard"])

    outcome = await told(product, document={"userName": "ada", "title": "WIZARD"}, directory=roles)

    assert outcome.result is Result.APPLIED
    assert [held["title"] for held in product.accounts.values()] == ["Wizard"]
    assert product.steps == ["normalize", "find", "create", "normalize", "find", "create"]


@pytest.mark.parametrize(
    ("now", "message", "creates"), [(["Sorcerer"], "there is no role", 1), (["wizard"], "no such role", 1)]
)
async def test_a_name_that_is_gone_or_refused_all_the_same_is_final_after_one_refresh(
    now: list[str], message: str, creates: int
) -> None:
    """Vendor page 1.4: P after one catalogue refresh; nothing is tried for ever."""
    product, roles = Spelled("Wizard"), Renamed(now)

    outcome = await told(product, document={"userName": "ada", "title": "wizard"}, directory=roles)

    assert outcome.result is Result.REJECTED
    assert outcome.reason is not None
    assert outcome.reason.code == "unknown_role"
    assert message in outcome.reason.message
    assert roles.refreshes == 1
    assert product.steps.count("create") == creates
    assert not outcome.ambiguous


async def test_ignored_attributes_are_named(product: Product) -> None:
    """Rule A8: what the product cannot hold is said, not swallowed."""
    outcome = await told(product, document={"userName": "ada", "nickName": "Countess"})

    assert outcome.ignored == ("nickName",)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Rejected("no", code="refused", attribute="title"), {"result": Result.REJECTED}),
        (Conflict("taken"), {"result": Result.REJECTED}),
        (Unavailable("down", retry_after_s=7.0), {"result": Result.RETRY, "retry_after_s": 7.0, "ambiguous": False}),
        (Unavailable("lost", ambiguous=True), {"result": Result.RETRY, "ambiguous": True}),
        (RateLimited("slow", retry_after_s=3.0), {"result": Result.RATE_LIMITED, "retry_after_s": 3.0}),
        (Misconfigured("key expired"), {"result": Result.MISCONFIGURED}),
        (
            Blocked("no licence", on="licence", retry_after_s=60.0, account_id="a5", observed_active=False),
            {"result": Result.BLOCKED, "blocked_on": "licence", "account_id": "a5", "observed_active": False},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ConnectorError) else "",
)
async def test_what_a_product_says_decides_what_happens_next(
    product: Product, error: ConnectorError, expected: dict[str, Any]
) -> None:
    """Each class of failure has its own result, with the connector's own sentence."""
    product.fails["create"] = error

    outcome = await told(product)

    assert {name: getattr(outcome, name) for name in expected} == expected
    assert outcome.reason is not None
    assert (outcome.reason.message, outcome.reason.code) == (error.message, error.code)


async def test_what_is_awaited_before_any_write_makes_no_name_certain(product: Product) -> None:
    """R2: the product knows the account by its old name as long as nothing was sent; with an account id the gateway would not."""
    product.accounts["a1"] = {"name": "ada"}
    product.fails["normalize"] = Blocked("a name could not be looked up", on="the product's names")

    outcome = await told(product, document={"userName": "bob"}, account_id="a1")

    assert (outcome.result, outcome.account_id, outcome.ambiguous) == (Result.BLOCKED, None, False)


async def test_a_failure_after_a_write_that_succeeded_is_ambiguous(product: Product) -> None:
    """The product has changed, so the next delivery looks first, whatever the failure was."""
    product.late["create"] = Rejected("the second half was refused")

    outcome = await told(product)

    assert (outcome.result, outcome.ambiguous) == (Result.REJECTED, True)


async def test_an_account_that_vanishes_twice_is_tried_again_later(product: Product) -> None:
    """Gone in answer to a create is nobody's fault and not final."""
    product.fails["create"] = Gone("not there")

    outcome = await told(product)

    assert (outcome.result, outcome.ambiguous, outcome.account_id) == (Result.RETRY, True, None)


async def test_a_connector_that_raises_anything_else_is_named_without_its_text(product: Product) -> None:
    """Poison: the text of a stray exception may carry a person's values; its type is enough for the author."""
    product.fails["create"] = ValueError("ada@contoso.example is odd")

    outcome = await told(product)

    assert outcome.result is Result.POISON
    assert outcome.reason is not None
    assert "ValueError" in outcome.reason.message
    assert "contoso" not in outcome.reason.message
    assert outcome.ambiguous


async def test_a_create_without_an_id_is_the_connectors_mistake(product: Product) -> None:
    """The contract asks for the account's native id."""
    product.new_id = ""

    outcome = await told(product)

    assert outcome.result is Result.POISON
    assert outcome.reason is not None
    assert outcome.reason.code == "no_account_id"
    assert outcome.ambiguous


async def test_a_document_that_is_no_user_is_poison_and_reaches_nobody(product: Product) -> None:
    """Bad data: no call, and never a success."""
    outcome = await told(product, document={"userName": ["not", "a", "name"]})

    assert outcome.result is Result.POISON
    assert outcome.reason is not None
    assert outcome.reason.code == "unreadable_event"
    assert product.journal == []


# ---- ownership


async def test_R7_a_delivery_that_is_not_ours_makes_no_call_and_says_nothing(product: Product) -> None:
    """R7: the check stands before the first call; nothing was done, so nothing is told."""
    assert await run(product, owned=Owner(0)) is None
    assert product.steps == ["normalize"]


@pytest.mark.parametrize("checks", range(8))
async def test_R7_no_step_begins_after_ownership_was_lost(product: Product, checks: int) -> None:
    """R7: at whatever check the delivery ends, the step behind it does not happen; R8: what was written before is told."""
    product.accounts = {"a1": {"name": "ada"}, "a2": {}, "a3": {}}

    class Ending(Owner):
        def check(self) -> None:
            product.journal.append(("check" if self.left else "lost", None))
            super().check()

    outcome = await run(
        product, owned=Ending(checks), account_id="a1", look=True, lookup=(BOB,), watch=(BOB,), strays=("a2", "a3")
    )

    wrote = {"delete", "update"} & set(product.steps)
    if checks < 6:
        assert product.steps[-1] == "lost"
        assert (outcome.result if outcome else None) == (Result.GAVE_UP if wrote else None)
    else:
        assert product.steps[-1] == "update"
        assert outcome is not None
        assert outcome.result is Result.APPLIED


async def test_R8_a_delivery_lost_inside_a_write_reports_that_it_may_have_written(product: Product) -> None:
    """R8: lost between two calls of `create`; without the id nobody can be linked, but the row becomes doubtful."""
    product.late["create"] = NotOurs()

    outcome = await told(product)

    assert (outcome.result, outcome.account_id, outcome.created) == (Result.GAVE_UP, None, False)
    assert [step.method for step in outcome.steps] == ["POST"]


async def test_R8_a_report_never_names_an_account_the_delivery_did_not_create(product: Product) -> None:
    """R8: an id in a report may become the link of a row, so only a created one is told."""
    product.accounts["a1"] = {"name": "ada"}
    product.late["update"] = NotOurs()

    outcome = await told(product, account_id="a1", change=Change.UPDATE)

    assert (outcome.result, outcome.account_id) == (Result.GAVE_UP, None)


# ---- groups


def a_group(**fields: Any) -> dict[str, Any]:
    """Fields of an event about the group Staff."""
    document = {
        "displayName": "Staff",
        "add": [{"id": "u1", "account_id": "a1"}, {"id": "u2"}],
        "remove": [{"id": "u3", "account_id": "a3"}],
    }
    return {"kind": "group", "document": document, "identities": (identity("displayName", "Staff"),), **fields}


async def test_a_group_is_looked_for_made_and_given_its_members_by_difference(product: GroupProduct) -> None:
    """Rule T12: members are a set; those without an account yet are left out of this step."""
    outcome = await told(product, **a_group())

    assert product.journal == [
        ("find", (True, ("displayName:staff",))),
        ("put_group", None),
        ("change_members", ("g1", ("a1",), ("a3",))),
    ]
    assert (outcome.result, outcome.account_id, outcome.created) == (Result.APPLIED, "g1", True)


async def test_a_linked_group_is_renamed_and_deleted_by_its_id(product: GroupProduct) -> None:
    """The order of work of users holds for groups."""
    product.accounts["g1"] = {"name": "staff"}

    await told(product, **a_group(account_id="g1", change=Change.UPDATE))
    deleted = await told(product, **a_group(account_id="g1", deleted=True, change=Change.DELETE))

    assert product.steps == ["put_group", "change_members", "delete_group"]
    assert deleted.result is Result.APPLIED
    assert product.accounts == {}


async def test_R4_a_group_that_was_merely_found_is_reported(product: GroupProduct) -> None:
    """R4 knows no difference between users and groups."""
    product.accounts["g7"] = {"name": "staff"}

    outcome = await told(product, **a_group())

    assert outcome.result is Result.FOUND
    assert product.steps == ["find"]


async def test_a_product_without_groups_refuses_them_with_the_remedy() -> None:
    """The Entra admin reads what to do in the provisioning log."""
    product = Product()

    outcome = await told(product, **a_group())

    assert outcome.result is Result.REJECTED
    assert outcome.reason is not None
    assert outcome.reason.code == "no_groups"
    assert product.journal == []


async def test_the_outcome_names_the_delivery_it_belongs_to(product: Product) -> None:
    """Rule T5: event, fence, generation, delivery and worker decide in the gateway whether it settles anything."""
    outcome = await told(product, generation=4, fence=7, id="event-x", delivery=3)

    assert (
        msgspec.structs.asdict(outcome).items()
        >= {
            "id": "outcome-1",
            "event_id": "event-x",
            "generation": 4,
            "fence": 7,
            "delivery": 3,
            "worker": "w1",
            "target": "shelf",
            "kind": "user",
            "resource": "ada",
            "started_at": 1000.0,
            "ended_at": 1000.0,
        }.items()
    )
