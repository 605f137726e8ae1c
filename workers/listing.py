"""The accounts and groups of a target, listed for the gateway in bounded parts, and how wished ones would show in that list.

A product may serve everything in one answer; a message on the bus may not be that long. So a page is divided here, and what is
left of it is kept for a moment. A worker that does not have it asks the product again: the cursor says all that is needed.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import msgspec
from msgspec import Struct

from connectors.contract import ComparesAccounts, ListsAccounts, ListsGroups
from schemas.comparison import (
    ACCOUNTS_PER_ANSWER_MAX,
    ANSWER_BYTES_MAX,
    DOCUMENTS_PER_QUESTION_MAX,
    EXPECT_S,
    LIST_S,
    MEMBERS_PER_ANSWER_MAX,
    Expectations,
    ExpectedUser,
    ListedAccount,
    Listing,
    Members,
)
from schemas.errors import ConnectorError, Gone, NormalizationError, RateLimited, Unavailable
from schemas.events import identity
from schemas.resources import Group, User
from workers.targets import Served, counting_calls

Kind = Literal["user", "group"]

KEPT_S = 60.0
"""What is left of a divided page is forgotten after this; it would be old, and it costs memory."""
BREATH_EVERY = 20
"""Users normalized before others get their turn in the event loop."""
DIGEST_BYTES = 6

_json = msgspec.json.Encoder(order="deterministic")


class _Page(Struct):
    """A page of the product that did not fit into one answer. `of`: what it is a page of."""

    of: str
    cursor: str
    rows: Sequence[Any]
    following: str | None
    until: float
    forgetting: asyncio.TimerHandle | None = None


_kept: WeakKeyDictionary[Served, _Page] = WeakKeyDictionary()


class _Refused(Exception):
    """Why there is no part of a list; the facts of the answer."""

    def __init__(
        self, code: str, message: str, *, again: bool = False, wait_s: float = 0.0, gone: bool = False
    ) -> None:
        super().__init__(message)
        self.facts: dict[str, Any] = {"code": code, "message": message, "again": again, "retry_after_s": wait_s}
        self.gone = gone


async def list_accounts(served: Served, cursor: str, kind: Kind = "user") -> Listing:
    """One part of the list of accounts, or of groups. Never raises: what goes wrong is the answer.

    Args:
        cursor: "" for the beginning, else what the part before said.
    """
    connector: Any = served.connector
    lists: Callable[[str | None], Awaitable[tuple[Sequence[Any], str | None]]]
    try:
        if kind == "user" and isinstance(connector, ListsAccounts):
            lists = connector.list_accounts
        elif kind == "group" and isinstance(connector, ListsGroups):
            lists = connector.list_groups
        else:
            raise _Refused("cannot_list", f"{served.spec.title} cannot list its {_PLURAL[kind]}.")
        page, skipped, calls = await _page(served, kind, lists, cursor, ACCOUNTS_PER_ANSWER_MAX)
        accounts = _accounts(page.rows[skipped : skipped + ACCOUNTS_PER_ANSWER_MAX])
        following = _following(page, skipped + len(accounts))
    except _Refused as exc:
        return Listing(ok=False, **exc.facts)
    return Listing(ok=True, accounts=accounts, cursor=following, calls=calls)


async def list_members(served: Served, group_id: str, cursor: str) -> Members:
    """One part of a group's members. Never raises."""
    connector: Any = served.connector
    try:
        if not isinstance(connector, ListsGroups):
            raise _Refused("cannot_list", f"{served.spec.title} cannot list its groups.")

        async def lists(theirs: str | None) -> tuple[Sequence[Any], str | None]:
            return await connector.list_members(group_id, theirs)

        page, skipped, calls = await _page(served, f"members {group_id}", lists, cursor, MEMBERS_PER_ANSWER_MAX)
        members: list[str] = []
        room = ANSWER_BYTES_MAX
        for one in page.rows[skipped : skipped + MEMBERS_PER_ANSWER_MAX]:
            room -= len(_json.encode(str(one))) + 1
            if room < 0 and members:
                break
            members.append(str(one))
        following = _following(page, skipped + len(members))
    except _Refused as exc:
        return Members(ok=exc.gone, gone=exc.gone, **exc.facts)
    return Members(ok=True, members=tuple(members), cursor=following, calls=calls)


_PLURAL: dict[Kind, str] = {"user": "accounts", "group": "groups"}


async def _page(
    served: Served,
    of: str,
    lists: Callable[[str | None], Awaitable[tuple[Sequence[Any], str | None]]],
    cursor: str,
    rows_max: int,
) -> tuple[_Page, int, int]:
    """A page of the product, how many of its rows were told before, and how many calls it took. Raises: _Refused."""
    skipped, _, theirs = cursor.partition(":") if cursor else ("0", "", "")
    if not skipped.isdigit():
        raise _Refused("bad_cursor", "This is not where a part of a list begins.")
    held = _kept.get(served)
    if held is not None and (held.of, held.cursor) == (of, theirs) and time.monotonic() < held.until:
        return held, int(skipped), 0
    before = _kept.pop(served, None)
    if before is not None and before.forgetting is not None:
        before.forgetting.cancel()  # the timer holds the page, and a fast list would leave a minute's worth of pages behind
    del held, before
    try:
        with counting_calls() as counted:
            async with asyncio.timeout(LIST_S):
                rows, following = await lists(theirs or None)
    except TimeoutError:
        raise _Refused("timeout", f"Listing took longer than {LIST_S:.0f} s.", again=True) from None
    except ConnectorError as exc:
        again = isinstance(exc, (Unavailable, RateLimited)) and exc.code != "incomplete_list"
        wait_s = exc.retry_after_s or 0.0 if isinstance(exc, (Unavailable, RateLimited)) else 0.0
        raise _Refused(exc.code, exc.message, again=again, wait_s=wait_s, gone=isinstance(exc, Gone)) from None
    except Exception as exc:  # a connector may fail in any way; the text may hold anything
        raise _Refused("connector_bug", f"Listing raised {type(exc).__name__}.") from None
    page = _Page(of, theirs, rows, following, time.monotonic() + KEPT_S)
    if len(rows) > rows_max:
        _kept[served] = page
        page.forgetting = asyncio.get_running_loop().call_later(KEPT_S, _forget, served, page)
    return page, int(skipped), counted.calls


def _forget(served: Served, page: _Page) -> None:
    if _kept.get(served) is page:
        del _kept[served]


def _accounts(rows: Sequence[Mapping[str, Any]]) -> tuple[ListedAccount, ...]:
    """As many of these rows as fit into one answer."""
    accounts: list[ListedAccount] = []
    room = ANSWER_BYTES_MAX
    for row in rows:
        try:
            account = _listed(row)
        except (KeyError, TypeError, ValueError) as exc:
            raise _Refused("connector_bug", f"What was listed cannot be read ({type(exc).__name__}).") from None
        room -= len(_json.encode(account))
        if room < 0 and accounts:
            break
        accounts.append(account)
    return tuple(accounts)


def _following(page: _Page, at: int) -> str | None:
    """Where the next part begins."""
    if at < len(page.rows):
        return f"{at}:{page.cursor}"
    if page.following is not None and page.following == page.cursor:
        raise _Refused("connector_bug", "The list does not get on: the next page is this page.")
    return None if page.following is None else f"0:{page.following}"


def _listed(row: Mapping[str, Any]) -> ListedAccount:
    active = row["active"]
    return ListedAccount(
        account_id=str(row["account_id"]),
        identities=tuple(row["identities"]),
        active=None if active is None else bool(active),
        owner=str(row.get("owner") or "").strip().casefold(),
        digests=_digests(row.get("values") or {}),
    )


async def expectations(served: Served, documents: Sequence[Mapping[str, Any]], kind: Kind = "user") -> Expectations:
    """How these users, or groups, would show in the list, in their order. Never raises."""
    if len(documents) > DOCUMENTS_PER_QUESTION_MAX:
        return Expectations(ok=False, code="too_many", message=f"At most {DOCUMENTS_PER_QUESTION_MAX} at a time.")
    users: list[ExpectedUser] = []
    try:
        async with asyncio.timeout(EXPECT_S):
            for number, document in enumerate(documents):
                if number % BREATH_EVERY == 0:
                    await asyncio.sleep(0)
                users.append(await _expected(served, document) if kind == "user" else _expected_group(served, document))
    except TimeoutError:
        return Expectations(
            ok=False, code="timeout", message=f"Normalizing took longer than {EXPECT_S:.0f} s.", again=True
        )
    except ConnectorError as exc:  # the names could not be loaded; without them nobody can say that one does not exist
        again = isinstance(exc, (Unavailable, RateLimited))
        return Expectations(ok=False, code=exc.code, message=exc.message, again=again)
    return Expectations(ok=True, users=tuple(users))


async def _expected(served: Served, document: Mapping[str, Any]) -> ExpectedUser:
    connector = served.connector
    try:
        user = User.from_document(dict(document))
        try:
            account = connector.normalize(user, served.directory)
        except NormalizationError as exc:
            if not exc.code.startswith("unknown_") or not await served.directory.refresh():
                raise
            account = connector.normalize(user, served.directory)
        if isinstance(connector, ComparesAccounts):
            seen = connector.expected(account)
            return ExpectedUser(
                identities=seen.identities,
                elsewhere=seen.elsewhere,
                owner=seen.owner.strip().casefold(),
                active=user.is_active,
                digests=_digests(seen.values),
            )
    except NormalizationError as exc:
        return ExpectedUser(code=exc.code, message=exc.message, attribute=exc.attribute)
    except msgspec.ValidationError:
        return ExpectedUser(
            code="unreadable_user", message="userName is missing, or an attribute has a type it cannot have."
        )
    except ConnectorError:
        raise
    except Exception as exc:  # the connector broke its contract for this user; the others go on
        return ExpectedUser(code="connector_bug", message=f"normalize raised {type(exc).__name__}.")
    values = {"userName": user.user_name, "externalId": user.external_id, "displayName": user.display_name}
    named = {path: value for path, value in values.items() if isinstance(value, str) and value.strip()}
    own = [identity(path, named[path]) for path in served.spec.identity if path in named]
    own += [identity("userName", key) for key in connector.account_keys(account)]
    owner = named.get("externalId", "").strip().casefold()
    return ExpectedUser(identities=tuple(dict.fromkeys(own)), owner=owner, active=user.is_active)


def _expected_group(served: Served, document: Mapping[str, Any]) -> ExpectedUser:
    connector: Any = served.connector
    try:
        seen = connector.expected_group(Group.from_document(dict(document)))
    except NormalizationError as exc:
        return ExpectedUser(code=exc.code, message=exc.message, attribute=exc.attribute)
    except msgspec.ValidationError:
        return ExpectedUser(
            code="unreadable_group", message="displayName is missing, or an attribute has a type it cannot have."
        )
    except Exception as exc:  # the connector broke its contract for this group; the others go on
        return ExpectedUser(code="connector_bug", message=f"expected_group raised {type(exc).__name__}.")
    if seen is None:
        return ExpectedUser(told=False)
    owner = seen.owner.strip().casefold()
    return ExpectedUser(
        identities=seen.identities, elsewhere=seen.elsewhere, owner=owner, digests=_digests(seen.values)
    )


def _digests(values: Mapping[str, Any]) -> dict[str, str]:
    return {path: digest(value) for path, value in values.items()}


def digest(value: Any) -> str:
    """Equal for equal values; tells nobody what the value is unless they know it already."""
    return hashlib.blake2b(_json.encode(value), digest_size=DIGEST_BYTES).hexdigest()
