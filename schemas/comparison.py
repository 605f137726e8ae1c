"""What a gateway and a worker say to each other to compare a product's accounts and groups with what Entra wishes.

Values never travel: a managed attribute is a short digest of the normalized value, made by the worker on both sides, so that a
difference can be named without being shown.
"""

from __future__ import annotations

from msgspec import Struct

ACCOUNTS_PER_ANSWER_MAX = 500
ANSWER_BYTES_MAX = 512 * 1024
"""Below what a bus carries in one message by default, with room for its headers."""
MEMBERS_PER_ANSWER_MAX = 5_000
DOCUMENTS_PER_QUESTION_MAX = 200
LIST_S = 40.0
"""Longest time a worker takes for one page, waiting for the product's rate limit included."""
EXPECT_S = 20.0
"""Longest time a worker takes to normalize the users of one question; loading names included."""


class ListedAccount(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One account, or group, as the product lists it.

    Args:
        active: None while it is on its way at the product, e.g. waits for approval: not to be compared.
        owner: the externalId it carries, folded; "" for none.
        digests: managed attributes the list shows, by SCIM path.
    """

    account_id: str
    identities: tuple[str, ...] = ()
    active: bool | None = None
    owner: str = ""
    digests: dict[str, str] = {}


class Listing(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One bounded part of the list.

    Args:
        again: it failed in a way that may pass; ask for the same part again.
        cursor: where the next part begins; None at the end.
        calls: calls to the product this answer took.
    """

    ok: bool
    code: str = ""
    message: str = ""
    again: bool = False
    retry_after_s: float = 0.0
    accounts: tuple[ListedAccount, ...] = ()
    cursor: str | None = None
    calls: int = 0


class ExpectedUser(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How an account that is as a user is wished shows in the list; or why there can be none (`code`).

    Args:
        told: whether the product holds it at all; False for a group that is acknowledged and not forwarded.
        identities: any of them says that an account is this user's.
        elsewhere: an account under one of them is perhaps the same person under another name.
        owner: the externalId such an account carries, folded.
        digests: managed attributes Entra speaks of, by SCIM path.
        attribute: SCIM path the refusal is about.
    """

    told: bool = True
    identities: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    owner: str = ""
    active: bool = True
    digests: dict[str, str] = {}
    code: str = ""
    message: str = ""
    attribute: str | None = None


class Expectations(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Answers to the users of one question, in their order."""

    ok: bool
    code: str = ""
    message: str = ""
    again: bool = False
    users: tuple[ExpectedUser, ...] = ()


class Members(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One bounded part of a group's members, by account id. `gone`: the group is not there any more; others as `Listing`."""

    ok: bool
    code: str = ""
    message: str = ""
    again: bool = False
    retry_after_s: float = 0.0
    gone: bool = False
    members: tuple[str, ...] = ()
    cursor: str | None = None
    calls: int = 0
