"""A product's accounts beside what Entra wishes: taken in part by part, then sorted into classes.

Two reports come of it. Before the first cycle (`match`):

    matched      exactly one account is this user's and may be linked
    create       nobody there answers to this user
    conflict     several_accounts, several_users, linked_elsewhere, exists_under_other_address, not_adopted
    refused      the product would not take this user; the code and the attribute say why
    orphan       an account no user of Entra answers to; `second_account`: its user is linked to another one

and afterwards (`reconcile`), about users at rest only:

    missing      the linked account is not there any more
    drifted      managed attributes differ (their names are said, never their values)
    reactivated  wished inactive, and active at the product: somebody switched it on by hand
    double       a second account answers to the same user
    refused      the product would not take the present wish any more
    unknown      an account nobody here has; `deleted_here` when a user that was deleted here wrote its externalId

The same about groups has `group_` in front, and adds:

    group_members    members are missing (`missing_members`), or Entra did not put them in (`extra_members`), or both
    group_strangers  members that are only reported: unknown here, or in a group that was there before us

Nothing here writes anything, at the product or in the store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

import msgspec
from msgspec import Struct

from gateway.explanations import mask_message
from gateway.spool import AccountRow, Spool, Wished, WishRow
from schemas.comparison import (
    DOCUMENTS_PER_QUESTION_MAX,
    EXPECT_S,
    LIST_S,
    Expectations,
    ExpectedUser,
    Listing,
)

TRIES_MAX = 6
TRIES_FIRST_MAX = 3
"""While somebody looks on and nothing has come yet: a product or worker that is away is said to be after seconds."""
HURRY_S = 10.0
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 60.0
ANSWER_MARGIN_S = 5.0
PARTS_MAX = 200_000
"""Parts of one list; whoever has more repeats itself."""
NOTHING_NEW_MAX = 20
"""Parts in a row that show nobody new: the list goes round in circles."""
MATCH_CLASSES = ("matched", "create", "conflict", "refused", "orphan")
OF_GROUPS = "group_"
DIFFERENCES = (
    *("missing", "drifted", "reactivated", "double", "refused", "unknown"),
    *("group_missing", "group_drifted", "group_members", "group_strangers", "group_double", "group_refused"),
    "group_unknown",
)
REPAIRABLE = ("missing", "drifted", "reactivated")
GROUPS_REPAIRABLE = ("group_members", "group_missing", "group_drifted")
"""What a repair asks the engine to look at again; a group's members first, because that is one delivery with the rest of it."""

T = TypeVar("T")
Kind = Literal["user", "group"]


class Ask(Protocol):
    """A question to any worker of a target; None when nobody answered in time."""

    def __call__(self, target: str, question: Mapping[str, Any], wait_s: float) -> Awaitable[bytes | None]: ...


Pace = Callable[[int], Awaitable[None]]
"""Called after a part, with the calls to be made up for before the next; raises `ComparisonFailed` when it is time to stop."""


class ComparisonFailed(Exception):
    """No report came of it; the sentence says why.

    Args:
        code: stable snake_case name.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Progress(Struct):
    """How far a comparison is. `of`: users and groups there are in all, 0 while it is not known. `members`: of groups, read.

    `waiting`: what failed and is tried again, and when; "" while all goes well.
    """

    stage: str = "starting"
    accounts: int = 0
    users: int = 0
    of: int = 0
    groups: int = 0
    members: int = 0
    waiting: str = ""


class Wish(Struct, frozen=True, kw_only=True):
    """A user to be compared. `document`: a SCIM user."""

    id: str
    label: str
    document: Any
    wished: Wished = "compare"
    account_id: str | None = None
    inactive_known: bool = False


async def take_accounts(
    spool: Spool,
    ask: Ask,
    target: str,
    progress: Progress,
    pace: Pace,
    sleep: Callable[[float], Awaitable[None]],
    kind: Kind = "user",
    *,
    hurried: bool = False,
) -> None:
    """List everything into the spool.

    Args:
        hurried: the first part is not asked for as often as the others, because somebody waits for the answer.

    Raises:
        ComparisonFailed: the list could not be had as a whole.
    """
    progress.stage = "listing" if kind == "user" else "groups"
    cursor, nothing_new = "", 0
    for _ in range(PARTS_MAX):
        question = {"do": "list", "kind": kind, "cursor": cursor}
        at_first = hurried and not cursor
        part = await asked(ask, target, question, LIST_S, Listing, sleep, progress=progress, hurried=at_first)
        new = await asyncio.to_thread(spool.add_accounts, part.accounts)
        if kind == "user":
            progress.accounts += new
        else:
            progress.groups += new
        await pace(part.calls if part.cursor is not None else 0)
        if part.cursor is None:
            return
        nothing_new = 0 if new else nothing_new + 1
        if part.cursor == cursor or nothing_new >= NOTHING_NEW_MAX:
            raise ComparisonFailed(
                "endless_list", "The list shows the same again and again; nothing was concluded from it."
            )
        cursor = part.cursor
    raise ComparisonFailed(
        "endless_list", f"The list has more than {PARTS_MAX:,} parts; nothing was concluded from it."
    )


async def take_wishes(
    spool: Spool,
    ask: Ask,
    target: str,
    progress: Progress,
    wishes: AsyncIterator[Sequence[Wish]],
    sleep: Callable[[float], Awaitable[None]],
    kind: Kind = "user",
    *,
    hurried: bool = False,
) -> None:
    """Have a worker normalize the users, or groups, and take them into the spool.

    Raises:
        ComparisonFailed: no worker could.
    """
    progress.stage = "users" if kind == "user" else "groups"
    async for several in wishes:
        for at in range(0, len(several), DOCUMENTS_PER_QUESTION_MAX):
            some = several[at : at + DOCUMENTS_PER_QUESTION_MAX]
            await take_users(spool, ask, target, some, sleep, kind, progress=progress, hurried=hurried)
            progress.users += len(several[at : at + DOCUMENTS_PER_QUESTION_MAX])


async def take_users(
    spool: Spool,
    ask: Ask,
    target: str,
    wishes: Sequence[Wish],
    sleep: Callable[[float], Awaitable[None]],
    kind: Kind = "user",
    *,
    progress: Progress | None = None,
    hurried: bool = False,
) -> None:
    """Take in at most DOCUMENTS_PER_QUESTION_MAX users or groups. Raises as `take_wishes`."""
    users = await _expected(ask, target, wishes, sleep, kind, progress, hurried)
    rows: list[tuple[str, str, Wished, str | None, bool, ExpectedUser]] = [
        (wish.id, wish.label, wish.wished if user.told else "moving", wish.account_id, wish.inactive_known, user)
        for wish, user in zip(wishes, users, strict=True)
    ]
    await asyncio.to_thread(spool.add_wishes, rows)


QUESTION_BYTES_MAX = 512 * 1024


async def _expected(
    ask: Ask,
    target: str,
    wishes: Sequence[Wish],
    sleep: Callable[[float], Awaitable[None]],
    kind: Kind,
    progress: Progress | None,
    hurried: bool,
) -> list[ExpectedUser]:
    documents = [msgspec.Raw(msgspec.json.encode(wish.document)) for wish in wishes]
    question = {"do": "expect", "kind": kind, "documents": documents}
    if sum(len(bytes(document)) for document in documents) > QUESTION_BYTES_MAX and len(wishes) > 1:
        half = len(wishes) // 2
        return [
            *await _expected(ask, target, wishes[:half], sleep, kind, progress, hurried),
            *await _expected(ask, target, wishes[half:], sleep, kind, progress, hurried),
        ]
    answer = await asked(ask, target, question, EXPECT_S, Expectations, sleep, progress=progress, hurried=hurried)
    if len(answer.users) != len(wishes):
        raise ComparisonFailed("bad_answer", "A worker answered for other users than it was asked about.")
    return list(answer.users)


async def asked(
    ask: Ask,
    target: str,
    question: Mapping[str, Any],
    wait_s: float,
    type_: type[T],
    sleep: Callable[[float], Awaitable[None]],
    *,
    progress: Progress | None = None,
    hurried: bool = False,
) -> T:
    """A worker's answer, asked for again while that may help; meanwhile `progress` says what is waited for.

    Args:
        hurried: somebody waits for it: at most TRIES_FIRST_MAX tries, and none that begins after HURRY_S.

    Raises:
        ComparisonFailed: there is none, or it is a refusal.
    """
    code, message = "no_answer", "No worker answered; is one running that serves this target?"
    tries_max, begun = TRIES_FIRST_MAX if hurried else TRIES_MAX, time.monotonic()
    for attempt in range(tries_max):
        reply = await ask(target, question, wait_s + ANSWER_MARGIN_S)
        wait = min(RETRY_MAX_S, RETRY_FIRST_S * 2**attempt)
        if reply is not None:
            try:
                answer: Any = msgspec.json.decode(reply, type=type_)
            except msgspec.DecodeError:
                raise ComparisonFailed(
                    "bad_answer", "A worker's answer cannot be read; is it of this version?"
                ) from None
            if answer.ok:
                if progress is not None:
                    progress.waiting = ""
                return answer  # type: ignore[no-any-return]
            code, message = answer.code, answer.message
            if not answer.again:
                raise ComparisonFailed(code, message)
            wait = max(wait, min(RETRY_MAX_S, getattr(answer, "retry_after_s", 0.0)))
        if hurried and time.monotonic() - begun > HURRY_S:
            break
        if attempt + 1 < tries_max:
            if progress is not None:
                said = mask_message(message).rstrip(".")
                progress.waiting = f"{said}. Tried again in {wait:.0f} s ({attempt + 2} of {tries_max})."
            await sleep(wait)
    raise ComparisonFailed(code, message)


# ---- before the first cycle


def sort_match(spool: Spool, *, adopt: bool) -> None:
    """Write the report of a match into the spool.

    Args:
        adopt: whether this target links accounts it finds.
    """
    spool.pair_up()

    def work() -> None:
        for wish in spool.wishes():
            if wish.wished != "gone":
                _match(spool, wish, adopt)
        for account in spool.untouched():
            code = "second_account" if spool.rivals(account.n, 0) else ""
            spool.say("orphan", code=code, accounts=(account.id,), label=account.label)

    spool.at_once(work)


def _match(spool: Spool, wish: WishRow, adopt: bool) -> None:
    about: dict[str, Any] = {"resource": wish.id, "label": wish.label}
    if wish.code:
        attributes = (wish.attribute,) if wish.attribute else ()
        spool.say("refused", code=wish.code, attributes=attributes, message=wish.message, **about)
        return
    held = spool.accounts_of(wish.n)
    if not held:
        others = spool.elsewhere(wish.n)
        if others:
            spool.touch(*(one.n for one in others))
            ids = [one.id for one in others]
            spool.say("conflict", code="exists_under_other_address", accounts=ids, **about)
        else:
            spool.say("create", **about)
        return
    linked = wish.account_id is not None and held[0].id == wish.account_id
    if linked:
        held = held[:1]  # another one that answers to the same user is nobody's
    spool.touch(*(one.n for one in held))
    ids = [one.id for one in held]
    if len(held) > 1:
        spool.say("conflict", code="several_accounts", accounts=ids, **about)
        return
    if not linked:
        rivals = spool.rivals(held[0].n, wish.n)
        code = ""
        if rivals:
            code = "several_users"
        elif held[0].owner and held[0].owner != wish.owner:
            code = "linked_elsewhere"
        elif not adopt:
            code = "not_adopted"
        if code:
            spool.say("conflict", code=code, accounts=ids, **about)
            return
    spool.say("matched", accounts=ids, attributes=differing(wish, held[0]), **about)


def differing(wish: WishRow, account: AccountRow) -> list[str]:
    """Managed attributes in which an account is not as wished; one that the list does not show is not compared."""
    paths = [path for path, digest in wish.digests.items() if account.digests.get(path, digest) != digest]
    if account.active is not None and account.active is not wish.active and not (wish.inactive_known and wish.active):
        paths.append("active")
    return sorted(paths)


# ---- afterwards


def sort_differences(spool: Spool, of: str = "") -> int:
    """Write the report of a reconciliation into the spool; how many users were compared.

    Args:
        of: what stands in front of the names of the classes, OF_GROUPS for groups.
    """
    spool.pair_up()

    def work() -> int:
        compared = sum(_difference(spool, wish, of) for wish in spool.wishes() if wish.wished != "gone")
        for account in spool.untouched():
            leavers = spool.leavers(account.n)
            if leavers and account.active is False:
                continue  # of a user that was deleted here, which leaves an inactive account where settings or product say so
            left = [wish for wish in leavers if wish.owner and wish.owner == account.owner]
            code = "deleted_here" if left else ""
            spool.say(
                f"{of}unknown",
                code=code,
                resource=left[0].id if left else "",
                accounts=(account.id,),
                label=account.label,
            )
        return compared

    return int(spool.at_once(work))


def _difference(spool: Spool, wish: WishRow, of: str) -> bool:
    held = spool.accounts_of(wish.n)
    linked = next((one for one in held if one.id == wish.account_id), None)
    if wish.wished == "moving":
        spool.touch(*(one.n for one in held))
        return False
    about: dict[str, Any] = {"resource": wish.id, "label": wish.label}
    ids = [wish.account_id] if wish.account_id else []
    mine = [one for one in held if one is linked or not _has_another(spool, one, wish)]
    spool.touch(*(one.n for one in mine))
    if wish.code:
        attributes = (wish.attribute,) if wish.attribute else ()
        spool.say(f"{of}refused", code=wish.code, accounts=ids, attributes=attributes, message=wish.message, **about)
        return True
    for one in mine:
        if one is not linked and linked is not None:
            spool.say(f"{of}double", accounts=(wish.account_id or "", one.id), **about)
    if linked is None:
        if wish.active and wish.account_id:  # an account that is gone and shall let nobody in needs no repair
            spool.say(f"{of}missing", accounts=ids, **about)
        return True
    paths = differing(wish, linked)
    if "active" in paths and not wish.active:
        spool.say(f"{of}reactivated", accounts=ids, attributes=paths, **about)
    elif paths:
        spool.say(f"{of}drifted", accounts=ids, attributes=paths, **about)
    return True


def _has_another(spool: Spool, account: AccountRow, wish: WishRow) -> bool:
    """Whether an account that answers to a user is linked to another one."""
    return any(linked == account.id for _, linked in spool.rivals(account.n, wish.n))
