"""The contract of a connector.

The worker owns the order of work (`workers/delivery.py`: normalize, look up, report what was found, write, record); a connector
only says how its product does each step, so no author can forget to look before creating.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, Protocol, TypedDict, TypeVar, Unpack, runtime_checkable

from msgspec import Struct

from schemas.configured import Difference as Difference
from schemas.events import Identity as Identity
from schemas.events import Note, Step
from schemas.resources import Group, User
from schemas.specs import Spec

Settings = TypeVar("Settings", bound=Struct)
Account = TypeVar("Account")


class Found(Struct, frozen=True, omit_defaults=True):
    """An account seen at the product.

    Args:
        account_id: the product's own id, stable for the account's life.
        identity: which of the asked identities it answers to.
        conflict: why this account must not be adopted for the asked user (a sentence), or "" when it may be.
    """

    account_id: str
    identity: Identity
    conflict: str = ""


class Finding(Struct, frozen=True, omit_defaults=True):
    """One result of `check()`.

    Args:
        level: `ok`, `warning` (works, but look at it) or `error` (cannot work).
        code: stable snake_case name.
        message: what, about what, what to do.
    """

    level: Literal["ok", "warning", "error"]
    code: str
    message: str


class Delivery(Struct, kw_only=True):
    """What a connector's writing steps are told about the delivery they serve.

    Args:
        attempt: which delivery of this fence this is (1 = first).
        ambiguous: an earlier delivery may have acted.
        deadline: monotonic time after which no new call starts.
        idempotency_key: equal for all redeliveries of this event; goes out where a product knows such a header.
        steps: every call, recorded by `connectors/http.py`.
        warnings: remarks for the Entra admin that do not stop the change.
        accounts: accounts of the resources this wish refers to (the manager, a group's members), by resource id here.
        unresolved: what `resolve` was asked for in vain.
        created_by_us: whether the linked account was created by a delivery of ours; None when nobody knows, e.g. because the
            answer to a create was lost and the account was found afterwards.
        traceparent, tracestate: W3C trace context; `connectors/http.py` sends it along with every call.
        notes: codes of what earlier deliveries of this resource noted; see `note`.
        noted: what this one notes.
        not_told: the product is deliberately not told of this wish; the delivery ends as applied, `ignored` (rule A13).
    """

    attempt: int = 1
    ambiguous: bool = False
    deadline: float = 0.0
    idempotency_key: str = ""
    steps: list[Step] = []
    warnings: list[str] = []
    accounts: dict[str, str] = {}
    unresolved: list[str] = []
    created_by_us: bool | None = None
    traceparent: str = ""
    tracestate: str = ""
    notes: frozenset[str] = frozenset()
    noted: list[Note] = []
    not_told: bool = False

    def has_note(self, code: str) -> bool:
        """Whether something is noted of this resource, by an earlier delivery or by this one."""
        return next((one.holds for one in reversed(self.noted) if one.code == code), code in self.notes)

    def note(self, code: str, message: str = "", *, subject: str = "") -> None:
        """Have something kept with the resource: every later delivery of it is told, and operators can list it.

        It is kept with the outcome of this delivery, whatever that is: also when the next step fails.
        """
        self.noted.append(Note(code=code, message=message, subject=subject))

    def unnote(self, code: str) -> None:
        """What was noted is not so any more."""
        if self.has_note(code):
            self.noted.append(Note(code=code, holds=False))

    def resolve(self, resource_id: str) -> str | None:
        """The product's account id of another resource of this target, such as a manager.

        None: it has no account yet. Apply everything else and return; the gateway sends the user again once there is one, and
        says meanwhile what it waits for (vendor rule W of reference attributes).
        """
        account_id = self.accounts.get(resource_id)
        if account_id is None and resource_id not in self.unresolved:
            self.unresolved.append(resource_id)
        return account_id


class Directory(Protocol):
    """Names that exist at the product (roles, teams, groups), cached by the worker.

    On a miss the worker refreshes once, at most once a minute, and asks `normalize` again.
    """

    def names(self, kind: str) -> Sequence[Mapping[str, Any] | str]:
        """All known names of a kind (`role`, `team`); entries are names or `{"name", "active"}`. Empty when unknown."""


class Auth(Protocol):
    """How calls to a product are signed; ready-made ones are in `connectors/http.py`."""

    def connect(self, sibling: Callable[[str], VendorHttp]) -> None:
        """Called once, before the first call. `sibling` opens a client for another host, e.g. the one that issues tokens."""

    async def headers(self, ctx: Delivery | None) -> Mapping[str, str]:
        """Headers for the next call. Raises what `VendorHttp.request` raises."""

    async def renew(self, ctx: Delivery | None) -> bool:
        """After a 401: get a new credential if there is one; True when the call is worth one repeat."""


class Endpoint(Struct, frozen=True):
    """Where a product is and how calls to it are signed; `connectors/http.py` builds the client from it.

    Args:
        base_url: scheme, host, optional port and path prefix; the only host that is ever called with these credentials.
        auth: None for products without credentials.
        allow_loopback: for emulators: permits http to 127.0.0.1, ::1 and localhost.
        body_bytes_max: longest answer that is read, for products with larger lists; 0 leaves it to `connectors/http.py`,
            which has the last word.
    """

    base_url: str
    auth: Auth | None = None
    allow_loopback: bool = False
    body_bytes_max: int = 0


class Connector(Generic[Settings, Account]):
    """One product.

    A connector is built once per target with its settings and an HTTP client that carries the product's limits. All methods but
    `normalize` may call the product, through that client only. Everything they raise is of the tree in `schemas/errors.py`.
    """

    spec: ClassVar[Spec]
    settings_type: ClassVar[type[Struct]]
    reading_calls: frozenset[tuple[str, str]] = frozenset()
    """Calls that change nothing although they are no GET, e.g. `("POST", "/users/search")`: a rehearsal sends them, too."""
    example: ClassVar[str] = ""
    """A target in TOML as an operator writes it; printed into the page, and read by a test."""

    def __init__(self, settings: Settings, http: VendorHttp) -> None:
        self.settings = settings
        self.http = http

    @classmethod
    def spec_for(cls, settings: Settings) -> Spec:
        """The declaration of one target; differs from `spec` where the settings say what the product is (limit, attributes)."""
        return cls.spec

    @classmethod
    def endpoint(cls, settings: Settings) -> Endpoint | None:
        """Where the product is, read from the settings without any call; None for a connector that calls nobody.

        Raises:
            ConfigurationError: a secret cannot be read.
        """
        raise NotImplementedError

    def normalize(self, user: User, directory: Directory) -> Account:
        """What the product shall hold for this user. Pure: no call, no clock, no randomness.

        Raises:
            NormalizationError: the product would refuse; names attribute, value's problem and remedy.
        """
        raise NotImplementedError

    def account_keys(self, account: Account) -> tuple[str, ...]:
        """The product's natural keys of a normalized account, for filters that spell a value differently (rule A1)."""
        return ()

    def ignored(self, user: User) -> tuple[str, ...]:
        """SCIM paths present in the wish that the product cannot hold (rule A8)."""
        return ()

    async def check(self) -> list[Finding]:
        """Address, credentials, rights and setup mistakes; writes nothing.

        Raises:
            Misconfigured: credentials or rights are wrong.
            Unavailable: the product does not answer.
        """
        raise NotImplementedError

    async def find(self, account: Account | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """Accounts that answer to any of the identities; reads only.

        Args:
            account: the normalized wish when one is about to be created (its own natural keys are looked up too, and reported
                under the first identity); None when only looking.
            identities: what the person is or was called, `connectors.contract.Identity`; take them apart with
                `schemas.events.split_identity`. One that cannot be normalized matches nothing.

        Returns:
            One entry per account and identity; empty when nobody is there. An answer that cannot be read is no empty one.

        Raises:
            Unavailable, RateLimited, Misconfigured: as `self.http` raised them.
        """
        raise NotImplementedError

    async def create(self, account: Account, ctx: Delivery) -> str:
        """Create the account. Called only after `find` came back empty; may be called again if the answer was lost.

        Returns:
            The account's native id, stable for the account's life.

        Raises:
            Rejected, Conflict, Unavailable, RateLimited, Misconfigured, Blocked: see `schemas/errors.py`.
        """
        raise NotImplementedError

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        """Bring a linked account to the wish: read, merge, write where the product replaces everything (rule A4).

        Raises:
            Gone: the account does not exist any more. Others as `create`.
        """
        raise NotImplementedError

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        """Delete, or deactivate where the product or the settings say so; an account that is gone is fine (rule A6).

        Raises:
            Unavailable, RateLimited, Misconfigured, Blocked: as `create`; never Gone.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Release what the connector holds besides its HTTP client."""


class Call(TypedDict, total=False):
    """What a call may carry beside its method and path; the keywords of `VendorHttp.request`.

    Args:
        ctx: the delivery; without it there is no step, no trace and no deadline, so only calls of no delivery go without.
        parts: values of the path's template, encoded whole.
        query: encoded whole; never recorded.
        json: body as JSON.
        form: body as a form, instead of JSON.
        headers: besides those of the signature; a `Content-Type` here wins.
        expect: statuses above 299 that are an answer here, not an error.
        idempotent: may be repeated within this call; GET and HEAD are unless told otherwise.
    """

    ctx: Delivery | None
    parts: Mapping[str, str] | None
    query: Mapping[str, str] | None
    json: Any
    form: Mapping[str, str] | None
    headers: Mapping[str, str] | None
    expect: Sequence[int]
    idempotent: bool | None


class VendorHttp(Protocol):
    """The one way out to a product (`connectors/http.py`); a dry run gives a client that records and sends nothing."""

    async def request(self, method: str, path: str, **call: Unpack[Call]) -> VendorResponse:
        """Send one call and record it as a step of its delivery.

        Args:
            path: template below the base URL, e.g. `/Users/{id}`; only the template is recorded and shown.
            call: see `Call`.

        Raises:
            Rejected, Conflict, Gone, Misconfigured, RateLimited: by the answer's status, see `connectors/http.py`.
            Unavailable: no answer; `ambiguous` when a write may have taken effect.
            ConnectorBug: the template and its parts do not fit.
        """


class VendorResponse(Struct, frozen=True):
    """A product's answer: status, parsed JSON body (None when empty) and headers with lower-case names."""

    status: int
    body: Any
    headers: dict[str, str]


Held = Callable[[str, Mapping[str, str]], Any]
"""Path template and parts -> the last known body there."""


class Write(Struct, frozen=True):
    """One writing call a rehearsal did not send (`connectors/rehearsal.py`): method, path template, its parts, and the body."""

    method: str
    path: str
    parts: Mapping[str, str] = {}
    body: Any = None


class Imagined(Struct, frozen=True):
    """What a product would have answered to a call that was not sent.

    Args:
        body: of the answer.
        held: what reading would show from then on, as (path template, parts, body); body None for what is gone.
    """

    status: int
    body: Any = None
    held: tuple[tuple[str, Mapping[str, str], Any], ...] = ()


@runtime_checkable
class Imagines(Protocol):
    """A product whose answers to writes do not simply repeat what was sent; only rehearsals ask."""

    async def imagine(self, write: Write, made_id: str, held: Held, ctx: Delivery | None) -> Imagined | None:
        """The likely answer; None leaves the guess to the rehearsal. May read through the client.

        Args:
            made_id: the id to give to what would be created.
            held: what this rehearsal knows of an address, from reading it or from an earlier `Imagined`; None when nothing.
        """


@runtime_checkable
class HasConfiguration(Protocol):
    """A product that keeps settings for provisioning which only its interface can change; an operator reads and writes them."""

    async def read_configuration(self) -> dict[str, Any]:
        """What the product holds.

        Raises:
            Rejected: this target needs none of it, and why. Others as `check`.
        """

    def compare_configuration(self, held: Any) -> list[Difference]:
        """Where that differs from what it must be; empty when nothing has to be written. Pure."""

    async def write_configuration(self) -> dict[str, Any]:
        """Make it so, and read it again. Safe to repeat."""


class CredentialEnd(Struct, frozen=True, kw_only=True):
    """When the credential a product gave us ends.

    Args:
        what: what it is called at the product, e.g. `Sofa access key`.
        ends_at: epoch seconds.
        remedy: what a person does about it.
    """

    what: str
    ends_at: float
    remedy: str


@runtime_checkable
class WatchesCredential(Protocol):
    """A product whose credential ends on a known day; workers and operators are warned before."""

    def credential_end(self) -> CredentialEnd:
        """Of the one that lasts longest. Pure: reads the settings only, because it is asked every few seconds."""


@runtime_checkable
class KeepsAlive(Protocol):
    """A product whose credential dies when nobody uses it; workers use it in time. Capability `keep_alive`."""

    def keep_alive_s(self) -> float:
        """Longest time without a call; 0 when the credential of these settings needs no care. Pure.

        At most half of what the product allows, so that a call that did not get through can be made again.
        """

    async def keep_alive(self) -> None:
        """One cheap call that reads and counts as use. Raises as `check`."""


@runtime_checkable
class HasDirectory(Protocol):
    """A product whose roles, teams or groups can be listed by name."""

    async def load_directory(self) -> dict[str, list[dict[str, Any]]]:
        """Names by kind, each `{"name", "active"}`."""


@runtime_checkable
class ListsAccounts(Protocol):
    """A product whose accounts can be listed, for reconciliation and the match report."""

    async def list_accounts(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """One page of accounts and the next cursor, None at the end.

        Each is `{"account_id", "identities", "active"}`; `active` None: it is on its way at the product, do not compare it.
        May also have `owner`, the externalId it carries ("" for none), and `values`: what the product holds of the managed
        attributes by SCIM path, in the form of `Expected.values`. A page may be of any size; the worker divides long ones.

        Raises:
            Unavailable: the list broke off before its end; half a list must not look like a whole one.
        """


class Expected(Struct, frozen=True, kw_only=True):
    """What the list of accounts shows of a user whose account is as wished.

    Args:
        identities: any of which says that an account is this user's, in the spelling of `list_accounts`.
        elsewhere: identities that would mean the same person under another name: a create would make a duplicate.
        owner: the externalId the account carries; an account that carries another one is somebody else's.
        values: managed attributes by SCIM path; None where nothing shall be held; what Entra does not speak of has no key.
    """

    identities: tuple[Identity, ...]
    elsewhere: tuple[Identity, ...] = ()
    owner: str = ""
    values: dict[str, Any] = {}


@runtime_checkable
class ComparesAccounts(Protocol):
    """A product whose list shows enough to tell whether an account is as wished, without a read per user."""

    def expected(self, account: Any) -> Expected:
        """What the list will show of a normalized account. Pure: no call, no clock."""


@runtime_checkable
class SortsGroups(Protocol):
    """A product that is told of some groups only, as its settings say; capability `group_maps`.

    When the settings change, stored groups for which this does not hold any more are sent again.
    """

    def group_stands(self, group: Group, group_id: str) -> bool:
        """Whether what was made of a stored group is what the settings want of it now. Pure: no call, no clock.

        Args:
            group_id: what `put_group` returned for it.
        """


@runtime_checkable
class ListsGroups(Protocol):
    """A product whose groups can be compared with what Entra wishes; capability `list_groups`."""

    async def list_groups(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """One page of groups, best without their members, and the next cursor, None at the end.

        Each is `{"account_id", "identities", "owner", "values"}` as in `list_accounts`. Raises as `list_accounts`.
        """

    def expected_group(self, group: Group) -> Expected | None:
        """What that list shows of a group that is as wished; None for one the product is not told about. Pure."""

    async def list_members(self, group_id: str, cursor: str | None) -> tuple[list[str], str | None]:
        """Account ids of a group's members, all at once or page by page.

        Raises:
            Gone: there is no such group any more.
            Unavailable: the list broke off before its end.
        """


@runtime_checkable
class PutsGroups(Protocol):
    """A product whose groups may be written."""

    async def find_group(self, group: Group | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """Groups that answer to any of the identities, or to this group's own natural keys; reads only."""

    async def put_group(self, group_id: str | None, group: Group, ctx: Delivery) -> str:
        """Create the group (`group_id` None, called only after `find_group` came back empty) or rename it; its id.

        Raises:
            Gone: the group of this id does not exist any more. Others as `Connector.create`.
        """

    async def change_members(self, group_id: str, add: Sequence[str], remove: Sequence[str], ctx: Delivery) -> None:
        """Add and remove members by account id; both are sets and safe to repeat."""

    async def delete_group(self, group_id: str, ctx: Delivery) -> None:
        """Remove the group, never its users."""
