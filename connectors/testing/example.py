"""Lantern: people with a name and one role, over a REST API.

Documented: where each rule of this product comes from, e.g. a page of its manual. Assumed: what nobody says and you decided.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from connectors.contract import Connector, Delivery, Directory, Endpoint, Expected, Finding, Found, Identity
from connectors.http import Bearer, address_problem
from connectors.scim import as_text, checked_id, ignored_paths, texts
from schemas.config import Secret
from schemas.errors import Gone, NormalizationError, Unavailable
from schemas.events import identity, split_identity
from schemas.resources import User
from schemas.specs import Attribute, RateLimit, Spec

TITLE = "Lantern"


class Settings(Struct, frozen=True, kw_only=True):
    """One account at Lantern."""

    base_url: Annotated[str, Meta(description="address of the product's API")]
    token: Annotated[Secret, Meta(description="bearer token, as a reference")]
    on_delete: Literal["delete", "deactivate"] = "delete"
    allow_loopback: bool = False

    def __post_init__(self) -> None:
        problem = address_problem(self.base_url, allow_loopback=self.allow_loopback)
        if problem:
            raise ValueError(f"base_url {problem}")


class Account(Struct, frozen=True, kw_only=True):
    """What Lantern shall hold. UNSET means that Entra says nothing: what the product holds is kept."""

    email: str
    active: bool
    name: str | UnsetType = UNSET
    role: str | UnsetType = UNSET

    def fields(self) -> dict[str, Any]:
        """As the product spells them, without what nobody sent."""
        wanted = {"email": self.email, "active": self.active, "name": self.name, "role": self.role}
        return {field: value for field, value in wanted.items() if value is not UNSET}


class Lantern(Connector[Settings, Account]):
    """People of one account."""

    spec = Spec(
        name="lantern",
        title=TITLE,
        attributes=(
            Attribute("userName", "email", required=True, source="mail", note="an e-mail address"),
            Attribute("active", "active", type="boolean", source="Not([IsSoftDeleted])"),
            Attribute("displayName", "name", source="displayName"),
            Attribute("roles", "role", type="complex", multi_valued=True, note="one existing role"),
        ),
        groups_step=f"{TITLE} has no groups: switch group provisioning off in Entra.",
        rate_limit=RateLimit(calls=10, per_s=1.0),
        capabilities=("list_accounts", "directory"),
        support="assumed",
        pitfalls=("Roles must exist in Lantern before they are given.",),
    )
    settings_type = Settings

    @classmethod
    def endpoint(cls, settings: Settings) -> Endpoint | None:
        """The configured address with a static bearer token."""
        return Endpoint(base_url=settings.base_url, auth=Bearer(settings.token), allow_loopback=settings.allow_loopback)

    def normalize(self, user: User, directory: Directory) -> Account:
        """Raises NormalizationError `bad_email` or `unknown_role`."""
        email = user.user_name.strip().lower()
        if email.count("@") != 1 or email.startswith("@") or email.endswith("@"):
            raise NormalizationError(
                f"userName must be an e-mail address ({TITLE}). Map userName from mail.",
                code="bad_email",
                attribute="userName",
            )
        role: str | UnsetType = UNSET
        given = texts(user.roles)
        if given:
            known = [entry if isinstance(entry, str) else str(entry["name"]) for entry in directory.names("role")]
            role = _role(given[0], known)
        return Account(email=email, active=user.is_active, name=as_text(user.display_name) or UNSET, role=role)

    def account_keys(self, account: Account) -> tuple[str, ...]:
        """The address in lower case."""
        return (account.email,)

    def ignored(self, user: User) -> tuple[str, ...]:
        """Everything the declaration does not name."""
        return ignored_paths(user, self.spec)

    async def check(self) -> list[Finding]:
        """Address and token."""
        await self.http.request("GET", "/v1/roles")
        return [Finding(level="ok", code="reachable", message=f"{TITLE} accepts the token.")]

    async def load_directory(self) -> dict[str, list[dict[str, Any]]]:
        """The roles."""
        body = _object(await self.http.request("GET", "/v1/roles"))
        return {"role": [{"name": str(name), "active": True} for name in body.get("roles", [])]}

    async def find(self, account: Account | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """By address. An identity that is none matches nothing."""
        asked: dict[str, Identity] = {}
        for name in identities:
            attribute, value = split_identity(name)
            if attribute == "userName" and value:
                asked.setdefault(value, name)
        if account is not None:
            asked.setdefault(account.email, identities[0] if identities else identity("userName", account.email))
        found = []
        for email, name in asked.items():
            body = _object(await self.http.request("GET", "/v1/people", ctx=ctx, query={"email": email}))
            same = [held for held in _people(body) if str(held.get("email", "")).lower() == email]
            found += [Found(account_id=_id(held), identity=name) for held in same]
        return found

    async def create(self, account: Account, ctx: Delivery) -> str:
        """POST; an address that turns out to be taken is looked up and linked next."""
        answer = await self.http.request("POST", "/v1/people", ctx=ctx, json=account.fields(), expect=(409,))
        if answer.status == 409:
            raise Unavailable(
                f"{TITLE} holds a person with this address already; they are looked up and linked next",
                code="already_there",
                ambiguous=True,
            )
        return _id(_object(answer, write=True))

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        """PATCH leaves alone what is not sent, so nothing has to be read before."""
        await self.http.request(
            "PATCH", "/v1/people/{id}", ctx=ctx, parts={"id": account_id}, json=account.fields(), idempotent=True
        )

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        """The product's delete, or deactivation where the settings say so; one that is gone is fine."""
        method = "DELETE" if self.settings.on_delete == "delete" else "PATCH"
        body = None if method == "DELETE" else {"active": False}
        try:
            await self.http.request(
                method, "/v1/people/{id}", ctx=ctx, parts={"id": account_id}, json=body, idempotent=True
            )
        except Gone:
            return

    async def list_accounts(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """One page of people; the product names the next one."""
        answer = await self.http.request("GET", "/v1/people", query={"cursor": cursor} if cursor else None)
        body = _object(answer)
        page = [
            {
                "account_id": _id(held),
                "identities": (identity("userName", str(held.get("email", ""))),),
                "active": held.get("active") is not False,
                "values": {"displayName": held.get("name") or None},
            }
            for held in _people(body)
        ]
        following = body.get("next")
        return page, str(following) if following else None

    def expected(self, account: Account) -> Expected:
        """What the list shows of a normalized account; reconciliation compares the two."""
        values = {} if account.name is UNSET else {"displayName": account.name}
        return Expected(identities=(identity("userName", account.email),), values=values)


def _role(given: str, known: Sequence[str]) -> str:
    """The product's spelling of a role. An unknown one is refused by name; its code makes the worker load the names first."""
    for name in known:
        if name.casefold() == given.strip().casefold():
            return name
    near = difflib.get_close_matches(given, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise NormalizationError(
        f"role {given!r} does not exist in {TITLE}{hint} Create it there or correct the app role in Entra.",
        code="unknown_role",
        attribute="roles",
        names=[given],
    )


def _object(answer: Any, *, write: bool = False) -> Mapping[str, Any]:
    if not isinstance(answer.body, dict):
        raise Unavailable(f"{TITLE} answered {answer.status} without an object", code="malformed", ambiguous=write)
    return answer.body


def _people(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    people = body.get("people")
    if not isinstance(people, list) or not all(isinstance(held, dict) for held in people):
        raise Unavailable(f"{TITLE} answered without a list of people", code="malformed")
    return people


def _id(held: Mapping[str, Any]) -> str:
    return checked_id(held.get("id"), f"{TITLE} answered with a person")
