"""A test of the suite of promises itself: connectors with a planted bug each, and the promise that has to catch it.

All bugs are planted into the example that new connectors start from, which keeps every promise (`test_conformance.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from connectors.bobs_business import BobsBusiness
from connectors.contract import Delivery, Directory, Expected, Found, Identity
from connectors.rehearsal import RehearsalHttp
from connectors.testing import shipped
from connectors.testing.conformance import PROMISES, WITHOUT_GROUPS, try_all, try_promise
from connectors.testing.example import TITLE, Account, Lantern
from connectors.testing.example_emulator import LanternEmulator
from connectors.testing.example_trial import TestLantern as ExampleTrial
from schemas.errors import Blocked, ConnectorError, Gone, Misconfigured, NormalizationError, RateLimited, Unavailable
from schemas.resources import Group, User


class CreatesWithoutLooking(Lantern):
    """Leaves the search to the product's own refusal."""

    async def find(self, account: Account | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        return []


class WritesOnWhatItFound(Lantern):
    """Takes an account over before the gateway has linked it."""

    async def find(self, account: Account | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        found = await super().find(account, identities, ctx)
        if account is not None:
            for one in found:
                await self.update(one.account_id, account, ctx)
        return found


class IgnoresRetryAfter(Lantern):
    """Tries again at once when told to wait."""

    async def create(self, account: Account, ctx: Delivery) -> str:
        try:
            return await super().create(account, ctx)
        except RateLimited:
            return await super().create(account, ctx)


class CallsALimitAnOutage(Lantern):
    """Passes 429 on without the wait the product asked for."""

    async def create(self, account: Account, ctx: Delivery) -> str:
        try:
            return await super().create(account, ctx)
        except RateLimited as exc:
            raise Unavailable(exc.message) from exc


class PrintsTheToken(Lantern):
    """Leaves a line of debugging behind."""

    async def create(self, account: Account, ctx: Delivery) -> str:
        print(f"POST with {self.settings.token.reveal()}")
        return await super().create(account, ctx)


class ReportsTheToken(Lantern):
    """Explains a refusal with all it knows."""

    async def create(self, account: Account, ctx: Delivery) -> str:
        try:
            return await super().create(account, ctx)
        except ConnectorError as exc:
            exc.message = f"{exc.message} (token {self.settings.token.reveal()})"
            raise


class TreatsHtmlAsSuccess(Lantern):
    """Takes any 2xx for done."""

    async def create(self, account: Account, ctx: Delivery) -> str:
        try:
            return await super().create(account, ctx)
        except Unavailable as exc:
            if exc.code == "malformed":
                return "unknown"
            raise


class TakesTheUnreadableForNobody(Lantern):
    """A list that cannot be read is an empty list."""

    async def find(self, account: Account | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        try:
            return await super().find(account, identities, ctx)
        except Unavailable:
            return []


class DeletesAStranger(Lantern):
    """Deletes whoever is listed first."""

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        page, _ = await self.list_accounts(None)
        for held in page[:2]:
            await super().delete(held["account_id"], ctx)


class FailsOnWhatIsGone(Lantern):
    """Wants to delete something that is there."""

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        await self.http.request("DELETE", "/v1/people/{id}", ctx=ctx, parts={"id": account_id})


class LosesUnicode(Lantern):
    """Sends plain letters."""

    def normalize(self, user: User, directory: Directory) -> Account:
        account = super().normalize(user, directory)
        name = account.name.encode("ascii", "replace").decode() if isinstance(account.name, str) else account.name
        return msgspec.structs.replace(account, name=name)


class ListsTheFirstPage(Lantern):
    """Believes that a list has one page."""

    async def list_accounts(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        page, _ = await super().list_accounts(cursor)
        return page, None


class ListsForEver(Lantern):
    """Starts every page at the beginning."""

    async def list_accounts(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        return await super().list_accounts(None)


class RecreatesOnALostAnswer(Lantern):
    """Is sure that what was not answered was not done."""

    async def find(self, account: Account | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        return [] if ctx.ambiguous else await super().find(account, identities, ctx)


class RetriesWritesByItself(Lantern):
    """Repeats a create that is not safe to repeat."""

    async def create(self, account: Account, ctx: Delivery) -> str:
        for _ in range(3):
            try:
                return await super().create(account, ctx)
            except Unavailable:
                continue
        raise Unavailable("tried three times")


class HidesThatItMayHaveActed(Lantern):
    """Reports every timeout as if nothing had been sent."""

    async def create(self, account: Account, ctx: Delivery) -> str:
        try:
            return await super().create(account, ctx)
        except Unavailable as exc:
            raise Unavailable(exc.message, code=exc.code) from exc


class Swallows401(Lantern):
    """Goes on without the right to."""

    async def find(self, account: Account | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        try:
            return await super().find(account, identities, ctx)
        except Misconfigured:
            return []

    async def create(self, account: Account, ctx: Delivery) -> str:
        try:
            return await super().create(account, ctx)
        except Misconfigured:
            return "later"


class BlamesThePersonFor401(Lantern):
    """Rejects the person's data because the key is refused."""

    async def create(self, account: Account, ctx: Delivery) -> str:
        try:
            return await super().create(account, ctx)
        except Misconfigured as exc:
            raise NormalizationError(exc.message) from exc


class DisablesByDeleting(Lantern):
    """Who may not work here need not be here."""

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        if account.active:
            await super().update(account_id, account, ctx)
        else:
            await self.delete(account_id, ctx)


class RenamesByRecreating(Lantern):
    """A new login is a new person."""

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        if not await self.find(account, (), ctx):
            await self.delete(account_id, ctx)
            await self.create(account, ctx)
            return
        await super().update(account_id, account, ctx)


class SwallowsGone(Lantern):
    """Updates what is not there, with success."""

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        try:
            await super().update(account_id, account, ctx)
        except Gone:
            return


class DropsUnknownRoles(Lantern):
    """Leaves out a role it does not know."""

    def normalize(self, user: User, directory: Directory) -> Account:
        try:
            return super().normalize(user, directory)
        except NormalizationError:
            return super().normalize(msgspec.structs.replace(user, roles=()), directory)


class ChecksNothing(Lantern):
    """Says that all is well without asking."""

    async def check(self) -> list[Any]:
        return []


class MakesAnotherOnRedelivery(Lantern):
    """Answers an update with a new account."""

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        if ctx.attempt > 1:
            await self.create(msgspec.structs.replace(account, email=f"again.{account.email}"), ctx)
        await super().update(account_id, account, ctx)


class RaisesWhatNobodyKnows(Lantern):
    """Trips over an answer it did not expect."""

    async def create(self, account: Account, ctx: Delivery) -> str:
        try:
            return await super().create(account, ctx)
        except Unavailable as exc:
            raise KeyError("id") from exc


class HidesWhatItCan(Lantern):
    """Lists accounts, and says so nowhere: nobody ever asks."""

    spec = msgspec.structs.replace(Lantern.spec, capabilities=("directory",))


class DeclaresTooFast(Lantern):
    """Would be refused by the product as soon as there is work."""

    spec = msgspec.structs.replace(Lantern.spec, rate_limit=None)


class TripsOverABlankName(Lantern):
    """Everybody has a first name."""

    def normalize(self, user: User, directory: Directory) -> Account:
        account = super().normalize(user, directory)
        return msgspec.structs.replace(account, name=user.display_name.split()[0]) if user.display_name else account


class NormalizesDifferentlyEachTime(Lantern):
    """Looks at more than the wish."""

    calls = 0

    def normalize(self, user: User, directory: Directory) -> Account:
        self.calls += 1
        return msgspec.structs.replace(super().normalize(user, directory), name=f"{user.display_name} {self.calls}")


class LeavesRefusingToTheProduct(Lantern):
    """Sends whatever comes."""

    def normalize(self, user: User, directory: Directory) -> Account:
        return Account(email=user.user_name, active=user.is_active)


class BlanksWhatIsNotSent(Lantern):
    """What nobody speaks of is empty."""

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        await super().update(account_id, msgspec.structs.replace(account, name=account.name or ""), ctx)


class IgnoresSilently(Lantern):
    """Why trouble anybody with what does not fit?"""

    def ignored(self, user: User) -> tuple[str, ...]:
        return ()


class FindsOnlyWhoIsWished(Lantern):
    """Looks for the account, never for an identity."""

    async def find(self, account: Account | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        return await super().find(account, identities, ctx) if account is not None else []


class WritesWhileLooking(Lantern):
    """Notes at the product that somebody looked."""

    async def find(self, account: Account | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        found = await super().find(account, identities, ctx)
        for one in found:
            await self.http.request("PATCH", "/v1/people/{id}", ctx=ctx, parts={"id": one.account_id}, json={})
        return found


class CallsAWriteReading(Lantern):
    """A rehearsal of it is none."""

    reading_calls = frozenset({("POST", "/v1/people")})


class RehearsesSomethingElse(Lantern):
    """Shows something other than it does when it is serious."""

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        if isinstance(self.http, RehearsalHttp):
            await self.delete(account_id, ctx)
        await super().update(account_id, account, ctx)


class ForgetsTheDelivery(Lantern):
    """Calls without deadline, trace and record."""

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        await self.http.request("PATCH", "/v1/people/{id}", parts={"id": account_id}, json=account.fields())


class PutsTheIdIntoThePath(Lantern):
    """Trusts that an id is harmless."""

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        await self.http.request("PATCH", f"/v1/people/{account_id}", ctx=ctx, json=account.fields())


class RemembersThePerson(Lantern):
    """Keeps on itself what belongs to one delivery."""

    async def create(self, account: Account, ctx: Delivery) -> str:
        self.account = account
        await self.load_directory()
        return await super().create(self.account, ctx)


class WritesOnWhoHasTheLogin(Lantern):
    """The login says who it is."""

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        for holder in await self.find(account, (), ctx):
            account_id = holder.account_id
        await super().update(account_id, account, ctx)


class EndsABrokenList(Lantern):
    """No more pages is no more pages."""

    async def list_accounts(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        try:
            return await super().list_accounts(cursor)
        except Unavailable:
            return [], None


class AlwaysDeletes(Lantern):
    """Knows better than the settings."""

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        try:
            await self.http.request("DELETE", "/v1/people/{id}", ctx=ctx, parts={"id": account_id}, idempotent=True)
        except Gone:
            return


class ExpectsAnotherSpelling(Lantern):
    """Finds everybody drifted, for ever."""

    def expected(self, account: Account) -> Expected:
        return msgspec.structs.replace(super().expected(account), values={"displayName": str(account.name).upper()})


class LogsThePerson(Lantern):
    """Leaves a line of debugging behind."""

    async def create(self, account: Account, ctx: Delivery) -> str:
        logging.getLogger("lantern").info("making %s", account.email)
        return await super().create(account, ctx)


PLANTED: list[tuple[type[Lantern], str, bool]] = [
    (CreatesWithoutLooking, "existing_account", True),
    (CreatesWithoutLooking, "existing_account", False),
    (WritesOnWhatItFound, "existing_account", True),
    (IgnoresRetryAfter, "rate_limit_in_seconds", True),
    (IgnoresRetryAfter, "rate_limit_as_date", True),
    (CallsALimitAnOutage, "rate_limit_in_seconds", True),
    (PrintsTheToken, "no_secret", True),
    (ReportsTheToken, "no_secret", True),
    (TreatsHtmlAsSuccess, "html_answer", True),
    (TreatsHtmlAsSuccess, "truncated_answer", True),
    (TakesTheUnreadableForNobody, "truncated_answer", True),
    (TakesTheUnreadableForNobody, "html_answer", True),
    (DeletesAStranger, "delete", True),
    (FailsOnWhatIsGone, "delete", True),
    (LosesUnicode, "unicode", True),
    (ListsTheFirstPage, "paging", True),
    (ListsForEver, "paging", True),
    (RecreatesOnALostAnswer, "lost_answer", False),
    (RecreatesOnALostAnswer, "idempotent_create", False),
    (RecreatesOnALostAnswer, "lagging_reads", False),
    (RetriesWritesByItself, "reset_after", False),
    (RetriesWritesByItself, "lost_answer", False),
    (HidesThatItMayHaveActed, "slow_answer", True),
    (Swallows401, "revoked_credential", True),
    (BlamesThePersonFor401, "expired_credential", True),
    (DisablesByDeleting, "disable_and_enable", True),
    (RenamesByRecreating, "rename", True),
    (SwallowsGone, "vanished_account", True),
    (DropsUnknownRoles, "unknown_role", True),
    (ChecksNothing, "check", True),
    (MakesAnotherOnRedelivery, "redelivery", True),
    (RaisesWhatNobodyKnows, "server_errors", True),
    (RaisesWhatNobodyKnows, "reset_before", True),
    (HidesWhatItCan, "declaration", True),
    (DeclaresTooFast, "declaration", True),
    (TripsOverABlankName, "odd_values", True),
    (NormalizesDifferentlyEachTime, "odd_values", True),
    (LeavesRefusingToTheProduct, "required_attributes", True),
    (BlanksWhatIsNotSent, "not_sent_is_kept", True),
    (IgnoresSilently, "ignored_attribute", True),
    (FindsOnlyWhoIsWished, "looks_only", True),
    (WritesWhileLooking, "looks_only", True),
    (CallsAWriteReading, "rehearsal", True),
    (RehearsesSomethingElse, "rehearsal", True),
    (ForgetsTheDelivery, "steps", True),
    (PutsTheIdIntoThePath, "steps", True),
    (RemembersThePerson, "side_by_side", True),
    (WritesOnWhoHasTheLogin, "taken_login", True),
    (EndsABrokenList, "broken_list", True),
    (AlwaysDeletes, "other_deletion", True),
    (ExpectsAnotherSpelling, "comparison", True),
    (LogsThePerson, "no_person", True),
]
"""The connector, the promise it breaks, and whether the product refuses a second account of one address."""


@pytest.mark.parametrize(
    ("planted", "promise", "unique"),
    PLANTED,
    ids=[f"{planted.__name__}-{promise}{'' if unique else '-not-unique'}" for planted, promise, unique in PLANTED],
)
def test_a_planted_bug_is_caught_by_the_promise_it_breaks(planted: type[Lantern], promise: str, unique: bool) -> None:
    """The suite would be worth nothing if it passed these; the example without the bug keeps the very same promise."""

    class Trial(ExampleTrial):
        connector_type = planted

        def emulator(self) -> LanternEmulator:
            emulator = super().emulator()
            emulator.set(unique=unique)
            return emulator

    class Control(Trial):
        connector_type = Lantern

    broken = asyncio.run(try_promise(Trial(), promise))
    kept = asyncio.run(try_promise(Control(), promise))

    assert broken.verdict == "broken"
    assert broken.detail
    assert broken.remedy
    assert kept.verdict == "kept", kept.detail


class TakesItsTime(Lantern):
    """Rightly says that an account is accepted and not made yet; who looks later finds it."""

    async def create(self, account: Account, ctx: Delivery) -> str:
        await super().create(account, ctx)
        raise Blocked(f"{TITLE} is making the account; it is looked up later", on="creation", retry_after_s=5.0)


def test_a_product_that_makes_accounts_later_keeps_every_promise_too() -> None:
    """202 is an answer: nothing in the suite takes a correct connector for a broken one because it has to wait."""

    class Trial(ExampleTrial):
        connector_type = TakesItsTime

    verdicts = asyncio.run(try_all(Trial()))

    assert {one.promise: one.detail for one in verdicts if one.verdict == "broken"} == {}
    assert {one.promise for one in verdicts if one.verdict == "not applicable"} == set(WITHOUT_GROUPS)


class NeverTakesMembersOut(BobsBusiness):
    """Only ever adds members."""

    async def change_members(self, group_id: str, add: Sequence[str], remove: Sequence[str], ctx: Delivery) -> None:
        await super().change_members(group_id, add, (), ctx)


class DeletesThePeopleToo(BobsBusiness):
    """A group that is gone needs no members."""

    async def delete_group(self, group_id: str, ctx: Delivery) -> None:
        held = await self.scim.read(group_id, ctx, kind="Groups") if ctx.attempt == 1 else {}
        for member in held.get("members", ()):
            await self.delete(member["value"], ctx)
        await super().delete_group(group_id, ctx)


class RenamesAGroupByRecreating(BobsBusiness):
    """A new name is a new group."""

    async def put_group(self, group_id: str | None, group: Group, ctx: Delivery) -> str:
        if group_id is not None:
            held = await self.scim.read(group_id, ctx, kind="Groups")
            if held["displayName"] != group.display_name:
                await self.delete_group(group_id, ctx)
                group_id = None
        return await super().put_group(group_id, group, ctx)


class NeverLooksForGroups(BobsBusiness):
    """Makes a group whenever one is wished."""

    async def find_group(self, group: Group | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        return []


class ListsSomeOfTheMembers(BobsBusiness):
    """Shows the members that fit on a page."""

    async def list_members(self, group_id: str, cursor: str | None) -> tuple[list[str], str | None]:
        members, _ = await super().list_members(group_id, cursor)
        return members[:1], None


PLANTED_IN_GROUPS: list[tuple[type[BobsBusiness], str]] = [
    (NeverTakesMembersOut, "group"),
    (DeletesThePeopleToo, "group"),
    (RenamesAGroupByRecreating, "group"),
    (NeverLooksForGroups, "group_lost_answer"),
    (ListsSomeOfTheMembers, "group_list"),
]


@pytest.mark.parametrize(("planted", "promise"), PLANTED_IN_GROUPS)
def test_a_bug_planted_into_groups_is_caught_as_well(planted: type[BobsBusiness], promise: str) -> None:
    """The example has no groups, so these sit in a shipped connector, which keeps the very same promise."""

    class Trial(shipped.BobsBusiness):
        connector_type = planted

    broken = asyncio.run(try_promise(Trial(), promise))
    kept = asyncio.run(try_promise(shipped.BobsBusiness(), promise))

    assert broken.verdict == "broken"
    assert broken.detail
    assert kept.verdict == "kept", kept.detail


def test_every_promise_is_broken_by_a_planted_bug() -> None:
    """A promise that no bug can break is no promise."""
    broken = {promise for _, promise, _ in PLANTED} | {promise for _, promise in PLANTED_IN_GROUPS}

    assert len({planted for planted, _, _ in PLANTED}) >= 20
    assert broken == set(PROMISES)
