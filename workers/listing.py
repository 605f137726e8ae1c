"""The accounts of a target, listed for the gateway in bounded parts, and how wished users would show in that list.

A product may serve everything in one answer; a message on the bus may not be that long. So a page is divided here, and what is
left of it is kept for a moment. A worker that does not have it asks the product again: the cursor says all that is needed.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
from msgspec import Struct

from connectors.contract import ComparesAccounts, ListsAccounts
from schemas.comparison import (
    ACCOUNTS_PER_ANSWER_MAX,
    ANSWER_BYTES_MAX,
    DOCUMENTS_PER_QUESTION_MAX,
    EXPECT_S,
    LIST_S,
    Expectations,
    ExpectedUser,
    ListedAccount,
    Listing,
)
from schemas.errors import ConnectorError, NormalizationError, RateLimited, Unavailable
from schemas.events import identity
from schemas.resources import User
from workers.targets import Served

KEPT_S = 60.0
"""What is left of a divided page is forgotten after this; it would be old, and it costs memory."""
BREATH_EVERY = 20
"""Users normalized before others get their turn in the event loop."""
DIGEST_BYTES = 6

_json = msgspec.json.Encoder(order="deterministic")


class _Page(Struct):
    """A page of the product that did not fit into one answer."""

    cursor: str
    rows: list[dict[str, Any]]
    following: str | None
    until: float
    forgetting: asyncio.TimerHandle | None = None


_kept: WeakKeyDictionary[Served, _Page] = WeakKeyDictionary()


async def list_accounts(served: Served, cursor: str) -> Listing:
    """One part of the list. Never raises: what goes wrong is the answer.

    Args:
        cursor: "" for the beginning, else what the part before said.
    """
    if not isinstance(served.connector, ListsAccounts):
        return Listing(ok=False, code="cannot_list", message=f"{served.spec.title} cannot list its accounts.")
    skipped, _, theirs = cursor.partition(":") if cursor else ("0", "", "")
    if not skipped.isdigit():
        return Listing(ok=False, code="bad_cursor", message="This is not where a part of a list begins.")
    try:
        async with asyncio.timeout(LIST_S):
            page, calls = await _page(served, theirs)
    except TimeoutError:
        return Listing(
            ok=False, code="timeout", message=f"Listing the accounts took longer than {LIST_S:.0f} s.", again=True
        )
    except ConnectorError as exc:
        again = isinstance(exc, (Unavailable, RateLimited)) and exc.code != "incomplete_list"
        wait_s = exc.retry_after_s or 0.0 if isinstance(exc, (Unavailable, RateLimited)) else 0.0
        return Listing(ok=False, code=exc.code, message=exc.message, again=again, retry_after_s=wait_s)
    except Exception as exc:  # a connector may fail in any way; the text may hold anything
        return Listing(ok=False, code="connector_bug", message=f"Listing the accounts raised {type(exc).__name__}.")
    return _part(page, int(skipped), calls)


async def _page(served: Served, cursor: str) -> tuple[_Page, int]:
    """A page of the product, and how many calls it took."""
    held = _kept.get(served)
    now = time.monotonic()
    if held is not None and held.cursor == cursor and now < held.until:
        return held, 0
    before = _kept.pop(served, None)
    if before is not None and before.forgetting is not None:
        before.forgetting.cancel()  # the timer holds the page, and a fast list would leave a minute's worth of pages behind
    del held, before
    connector: Any = served.connector
    rows, following = await connector.list_accounts(cursor or None)
    page = _Page(cursor, rows, following, time.monotonic() + KEPT_S)
    if len(rows) > ACCOUNTS_PER_ANSWER_MAX:
        _kept[served] = page
        page.forgetting = asyncio.get_running_loop().call_later(KEPT_S, _forget, served, page)
    return page, 1


def _forget(served: Served, page: _Page) -> None:
    if _kept.get(served) is page:
        del _kept[served]


def _part(page: _Page, skipped: int, calls: int) -> Listing:
    accounts: list[ListedAccount] = []
    room = ANSWER_BYTES_MAX
    for row in page.rows[skipped : skipped + ACCOUNTS_PER_ANSWER_MAX]:
        try:
            account = _listed(row)
        except (KeyError, TypeError, ValueError) as exc:
            return Listing(
                ok=False, code="connector_bug", message=f"A listed account cannot be read ({type(exc).__name__})."
            )
        room -= len(_json.encode(account))
        if room < 0 and accounts:
            break
        accounts.append(account)
    at = skipped + len(accounts)
    following: str | None
    if at < len(page.rows):
        following = f"{at}:{page.cursor}"
    else:
        following = None if page.following is None else f"0:{page.following}"
        if page.following is not None and page.following == page.cursor:
            return Listing(
                ok=False, code="connector_bug", message="The list does not get on: the next page is this page."
            )
    return Listing(ok=True, accounts=tuple(accounts), cursor=following, calls=calls)


def _listed(row: Mapping[str, Any]) -> ListedAccount:
    active = row["active"]
    return ListedAccount(
        account_id=str(row["account_id"]),
        identities=tuple(row["identities"]),
        active=None if active is None else bool(active),
        owner=str(row.get("owner") or "").strip().casefold(),
        digests=_digests(row.get("values") or {}),
    )


async def expectations(served: Served, documents: Sequence[Mapping[str, Any]]) -> Expectations:
    """How these users would show in the list, in their order. Never raises."""
    if len(documents) > DOCUMENTS_PER_QUESTION_MAX:
        return Expectations(ok=False, code="too_many", message=f"At most {DOCUMENTS_PER_QUESTION_MAX} users at a time.")
    users: list[ExpectedUser] = []
    try:
        async with asyncio.timeout(EXPECT_S):
            for number, document in enumerate(documents):
                if number % BREATH_EVERY == 0:
                    await asyncio.sleep(0)
                users.append(await _expected(served, document))
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


def _digests(values: Mapping[str, Any]) -> dict[str, str]:
    return {path: digest(value) for path, value in values.items()}


def digest(value: Any) -> str:
    """Equal for equal values; tells nobody what the value is unless they know it already."""
    return hashlib.blake2b(_json.encode(value), digest_size=DIGEST_BYTES).hexdigest()
