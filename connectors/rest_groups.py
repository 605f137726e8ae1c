"""Groups of a declared product: found by name, made, renamed, and their members changed by difference.

Members come and go by calls of their own, one by one or several at once, or as a field that is written as a whole. Where the
product can show whom a group holds, only what differs is sent; where it cannot, adding and removing are taken for safe to repeat.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from connectors.contract import Delivery, Expected, Finding, Found, Identity, VendorResponse
from connectors.rest_calls import RestCalls
from connectors.rest_settings import Groups, at, equal, put, text_of
from connectors.scanned import Row, Scanned
from connectors.scim import checked_id, unknown_members
from schemas.errors import Conflict, Gone, Misconfigured, Rejected, Unavailable
from schemas.events import identity, split_identity
from schemas.resources import Group, text

NAME = "displayName"


class RestGroups:
    """The groups of one target.

    Args:
        account_id: reads the id of an account out of an entry of a list of members.
    """

    def __init__(self, calls: RestCalls, groups: Groups, account_id: Callable[[Any, str], str]) -> None:
        self.calls = calls
        self.groups = groups
        self.title = calls.title
        self._id_field = groups.id or calls.settings.id
        self._account_id = account_id
        self._scanned = Scanned()

    # Comparing --------------------------------------------------------------------------------------------------------

    async def listed(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """As `ListsGroups.list_groups`. Raises Rejected where the product's groups cannot be listed."""
        if self.groups.endpoints.list is None:
            raise Rejected(
                f"{self.title} cannot list its groups: its target has no groups.endpoints.list.", code="cannot_list"
            )
        rows, following = await self.calls.page("group_list", None, cursor or "", id_field=self._id_field)
        page = []
        for held in rows:
            name, owner = self._name(held), self._owner(held)
            values = {NAME: name or None} | ({"externalId": owner.casefold() or None} if self._is_owned(held) else {})
            page.append(
                {
                    "account_id": self._id(held),
                    "identities": (identity(NAME, name),),
                    "active": True,
                    "owner": owner,
                    "values": values,
                }
            )
        return page, following or None

    def expected(self, group: Group) -> Expected:
        """As `ListsGroups.expected_group`."""
        name, ours = group.display_name.strip(), self._ours(group)
        values: dict[str, Any] = {NAME: name or None} | ({"externalId": ours.casefold()} if ours else {})
        owner = ours if self.calls.settings.foreign == "refuse" else ""
        return Expected(identities=(identity(NAME, name),), owner=owner, values=values)

    async def members(self, group_id: str, cursor: str | None) -> tuple[list[str], str | None]:
        """As `ListsGroups.list_members`. Raises Rejected where the product does not show whom a group holds."""
        if self.groups.members.field:
            return list(self._entries(await self._read(group_id, None))), None
        if self.groups.endpoints.members is None:
            raise Rejected(
                f"{self.title} does not show whom a group holds: its target has no groups.endpoints.members.",
                code="cannot_list",
            )
        values = {"id": group_id}
        rows, following = await self.calls.page(
            "members", None, cursor or "", values=values, id_field=self.groups.members.id
        )
        return [self._member(one) for one in rows], following or None

    async def findings(self) -> list[Finding]:
        """What `check` says about groups: the declared fields are compared with what groups show."""
        if self.groups.endpoints.list is None:
            return []
        found: list[Finding] = []

        def find(level: Literal["ok", "warning", "error"], code: str, message: str) -> None:
            found.append(Finding(level=level, code=code, message=message))

        rows, _ = await self.calls.page("group_list", None, "", id_field=self._id_field)
        if rows and all(at(held, self._id_field) is None for held in rows):
            find(
                "error", "no_group_id", f"No group of {self.title} has an id at {self._id_field!r}; correct groups.id."
            )
            return found
        if rows and all(not self._name(held) for held in rows):
            message = f"No group of {self.title} shows the field {self.groups.name!r}; correct groups.name."
            find("error", "no_group_name", message)
        if rows and (self.groups.members.field or self.groups.endpoints.members is not None):
            try:
                await self.members(self._id(rows[0]), None)
            except (Gone, Misconfigured, Rejected, Unavailable) as exc:
                find("error", "no_members", f"{exc.message}. Correct groups.members or groups.endpoints.")
        return found

    # Finding ----------------------------------------------------------------------------------------------------------

    async def find(self, group: Group | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """As `PutsGroups.find_group`.

        Raises:
            Conflict: several groups carry the name of a group that is about to be made.
        """
        asked: dict[str, tuple[str, Identity]] = {}
        for name in identities:
            attribute, value = split_identity(name)
            if attribute == NAME and value:
                asked[value.casefold()] = (value, name)
        if group is not None:
            shown = group.display_name.strip()
            asked[shown.casefold()] = (shown, identities[0] if identities else identity(NAME, shown))
        found: dict[str, Found] = {}
        fresh = group is None or ctx.ambiguous or ctx.attempt > 1
        for spelling, name in asked.values():
            rows = await self._found_by(spelling, ctx, fresh=fresh)
            ours = self._ours(group) if group is not None else ""
            is_wish = group is not None and spelling == group.display_name.strip()
            if is_wish and len(rows) > 1 and not any(ours and equal(self._owner(held), ours) for held in rows):
                raise Conflict(
                    f"{self.title} has {len(rows)} groups of this name; rename or remove one there.",
                    code="duplicate_groups",
                    attribute=NAME,
                )
            for held in rows:
                group_id = self._id(held)
                found.setdefault(
                    group_id, Found(account_id=group_id, identity=name, conflict=self._foreign(held, ours))
                )
        return list(found.values())

    async def _found_by(self, name: str, ctx: Delivery | None, *, fresh: bool) -> list[dict[str, Any]]:
        lookup = self.groups.lookup
        wanted = name if lookup.exact else name.casefold()

        def fits(held: Mapping[str, Any]) -> bool:
            shown = self._name(held)
            return (shown if lookup.exact else shown.casefold()) == wanted

        if not lookup.scan:
            return await self.calls.asked("group_find", lookup, name, ctx, fits=fits, id_field=self._id_field)

        async def load() -> AsyncIterator[Row]:
            async for held in self.calls.all("group_list", ctx, id_field=self._id_field):
                yield self._row(held)

        key = (NAME, wanted)
        return (await self._scanned.find([key], load, fresh=fresh))[key]

    def _row(self, held: Mapping[str, Any]) -> Row:
        small: dict[str, Any] = {}
        for field in filter(None, (self._id_field, self.groups.name, self.groups.external_id)):
            if (value := at(held, field)) is not None:
                put(small, field, value)
        name = self._name(held)
        return Row(self._id(held), ((NAME, name if self.groups.lookup.exact else name.casefold()),), small)

    # Writing ----------------------------------------------------------------------------------------------------------

    async def put(self, group_id: str | None, group: Group, ctx: Delivery) -> str:
        """As `PutsGroups.put_group`."""
        wish: dict[str, Any] = {self.groups.name: group.display_name.strip()}
        if ours := self._ours(group):
            wish[self.groups.external_id] = ours
        if group_id is None:
            return await self._create(group, wish, ctx)
        held = await self._read(group_id, ctx) if self.groups.endpoints.read is not None else None
        changed = {field: value for field, value in wish.items() if held is None or not _same(at(held, field), value)}
        if changed and self.groups.endpoints.update is None:
            if held is None or not _same(at(held, self.groups.name), wish[self.groups.name]):
                ctx.warnings.append(f"{self.title} cannot rename groups (groups.endpoints.update); the old name stays.")
        elif changed:
            self._scanned.forget()
            await self._write(group_id, held, changed, ctx)
        return group_id

    async def _create(self, group: Group, wish: Mapping[str, Any], ctx: Delivery) -> str:
        self._scanned.forget()
        answer = await self.calls.send("group_create", ctx, fields={**self.groups.constants, **wish})
        call = self.groups.endpoints.create
        told = at(answer.body, call.id) if call.id else at(self.calls.item("group_create", answer), self._id_field)
        if told is None:
            told = last_part(answer)
        if told is None:
            rows = await self._found_by(group.display_name.strip(), ctx, fresh=True)
            told = at(rows[0], self._id_field) if len(rows) == 1 else None
        return checked_id(told, f"{self.title} answered {answer.status} to the making of a group")

    async def _write(
        self, group_id: str, held: Mapping[str, Any] | None, changed: Mapping[str, Any], ctx: Delivery
    ) -> None:
        values = {"id": group_id}
        if self.calls.settings.update == "replace" and held is not None:
            whole = dict(held)
            for field, value in changed.items():
                put(whole, field, value)
            await self.calls.send("group_update", ctx, values=values, whole=whole)
        else:
            await self.calls.send("group_update", ctx, values=values, fields=changed)

    async def delete(self, group_id: str, ctx: Delivery) -> None:
        """As `PutsGroups.delete_group`; one that is gone is fine."""
        self._scanned.wrote(group_id, None)
        try:
            await self.calls.send("group_delete", ctx, values={"id": group_id})
        except Gone:
            return

    # Members ----------------------------------------------------------------------------------------------------------

    async def change_members(self, group_id: str, add: Sequence[str], remove: Sequence[str], ctx: Delivery) -> None:
        """As `PutsGroups.change_members`.

        Raises:
            Blocked: members the product does not know; all others are added first.
        """
        if not add and not remove:
            return
        if self.groups.members.field:
            unknown = await self._change_field(group_id, add, remove, ctx)
        else:
            held = await self._held_members(group_id, ctx)
            leaving = dict.fromkeys(one for one in remove if held is None or one in held)
            coming = dict.fromkeys(one for one in add if held is None or one not in held)
            await self._remove(group_id, list(leaving), held or {}, ctx)
            unknown = await self._add(group_id, list(coming), ctx)
        if unknown:
            raise unknown_members(self.title, group_id, unknown)

    async def _held_members(self, group_id: str, ctx: Delivery) -> dict[str, Any] | None:
        """Account id -> the membership's own id; None where the product does not show whom a group holds."""
        if self.groups.endpoints.members is None:
            return None
        held = {}
        members = self.groups.members
        async for one in self.calls.all("members", ctx, values={"id": group_id}, id_field=members.membership):
            held[self._member(one)] = at(one, members.membership) if members.membership else None
        return held

    async def _remove(self, group_id: str, leaving: list[str], held: Mapping[str, Any], ctx: Delivery) -> None:
        call = self.groups.endpoints.remove
        assert call is not None, "refused by the settings"
        if "members" in call.names:
            for chunk in self._chunks(leaving):
                try:
                    await self.calls.send("member_remove", ctx, values={"id": group_id, "members": chunk})
                except Gone:  # one of them is in the group no more; the others still have to go
                    for one in chunk if len(chunk) > 1 else ():
                        with contextlib.suppress(Gone):
                            await self.calls.send("member_remove", ctx, values={"id": group_id, "members": [one]})
            return
        for one in leaving:
            membership = {"membership": held.get(one)} if "membership" in call.names else {}
            try:
                await self.calls.send("member_remove", ctx, values={"id": group_id, "member": one, **membership})
            except Gone:  # whoever is not in the group is out of it
                continue

    async def _add(self, group_id: str, coming: list[str], ctx: Delivery) -> list[str]:
        """Who is not known there; of several in one call, one stranger refuses all."""
        call = self.groups.endpoints.add
        assert call is not None, "refused by the settings"
        if "members" not in call.names:
            return [one for one in coming if not await self._added(group_id, one, {"member": one}, ctx)]
        unknown: list[str] = []
        for chunk in self._chunks(coming):
            try:
                await self.calls.send("member_add", ctx, values={"id": group_id, "members": chunk})
            except (Rejected, Gone):
                unknown += [one for one in chunk if not await self._added(group_id, one, {"members": [one]}, ctx)]
        return unknown

    async def _added(self, group_id: str, member: str, values: Mapping[str, Any], ctx: Delivery) -> bool:
        """False when the product does not know the member. Raises when it refuses for another reason."""
        try:
            await self.calls.send("member_add", ctx, values={"id": group_id, **values})
        except Conflict:  # a member already
            return True
        except (Rejected, Gone):
            if await self._is_there(member, ctx):
                raise
            return False
        return True

    async def _is_there(self, member: str, ctx: Delivery) -> bool:
        if self.calls.settings.endpoints.read is None:
            return True
        try:
            await self.calls.send("read", ctx, values={"id": member})
        except Gone:
            return False
        return True

    async def _change_field(self, group_id: str, add: Sequence[str], remove: Sequence[str], ctx: Delivery) -> list[str]:
        """The list with those who come and without those who go; entries of those who stay are sent as they were."""
        held = await self._read(group_id, ctx)
        entries = self._entries(held)
        gone = set(remove)
        kept = [entry for one, entry in entries.items() if one not in gone]
        coming = [one for one in dict.fromkeys(add) if one not in entries and one not in gone]
        if not coming and len(kept) == len(entries):
            return []
        field = self.groups.members.field
        try:
            await self._write(group_id, held, {field: [*kept, *map(self._entry, coming)]}, ctx)
        except Rejected:
            unknown = [one for one in coming if not await self._is_there(one, ctx)]
            if not unknown:
                raise
            known = [self._entry(one) for one in coming if one not in unknown]
            await self._write(group_id, held, {field: [*kept, *known]}, ctx)
            return unknown
        return []

    def _entries(self, held: Mapping[str, Any]) -> dict[str, Any]:
        entries = at(held, self.groups.members.field)
        return {self._member(one): one for one in entries} if isinstance(entries, list) else {}

    def _entry(self, member: str) -> Any:
        members = self.groups.members
        value: Any = int(member) if members.numbers and member.isdecimal() else member
        if not members.id:
            return value
        entry: dict[str, Any] = {}
        put(entry, members.id, value)
        return entry

    def _member(self, entry: Any) -> str:
        return self._account_id(entry, self.groups.members.id)

    def _chunks(self, ids: Sequence[str]) -> Iterable[list[str]]:
        size = self.groups.members.per_call
        return (list(ids[at_ : at_ + size]) for at_ in range(0, len(ids), size))

    # One group --------------------------------------------------------------------------------------------------------

    async def _read(self, group_id: str, ctx: Delivery | None) -> dict[str, Any]:
        answer = await self.calls.send("group_read", ctx, values={"id": group_id})
        return self.calls.one("group_read", answer)

    def _id(self, held: Mapping[str, Any]) -> str:
        return checked_id(at(held, self._id_field), f"{self.title} listed a group")

    def _name(self, held: Mapping[str, Any]) -> str:
        value = at(held, self.groups.name)
        return "" if value is None or isinstance(value, (dict, list)) else text_of(value).strip()

    def _owner(self, held: Mapping[str, Any]) -> str:
        value = at(held, self.groups.external_id) if self.groups.external_id else None
        return "" if value is None or isinstance(value, (dict, list)) else text_of(value)

    def _is_owned(self, held: Mapping[str, Any]) -> bool:
        return bool(self.groups.external_id) and at(held, self.groups.external_id) is not None

    def _ours(self, group: Group) -> str:
        return text(group.external_id).strip() if self.groups.external_id else ""

    def _foreign(self, held: Mapping[str, Any], ours: str) -> str:
        theirs = self._owner(held)
        if self.calls.settings.foreign == "adopt" or not theirs or not ours or equal(theirs, ours):
            return ""
        return f"A group of this name exists in {self.title} and belongs to another group of Entra; rename one of them."


def last_part(answer: VendorResponse) -> str | None:
    """The id at the end of the header Location; None when there is none."""
    return unquote(urlsplit(answer.headers.get("location", "")).path.rstrip("/").rpartition("/")[2]) or None


def _same(held: Any, wanted: Any) -> bool:
    return held is not None and not isinstance(held, (dict, list)) and text_of(held) == text_of(wanted)
