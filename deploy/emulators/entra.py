"""Behave like Microsoft Entra ID's provisioning service: a SCIM client, with the directory behind it.

Four parts, in this order: `Directory` (people, groups and what happens to them), `Mapping` (Entra's expressions and
where their values go), `ProvisioningJob` (cycles, on-demand runs, escrow, quarantine, log and journal) and `load_cycle`
(the same requests without the thinking, for benchmarks). How it signs in stands in `entra_sign_in`. The command line
stands at the end:

    python -m deploy.emulators.entra cycle --tenant-url URL --token-file FILE --mapping talkdesk --users 20

Follows what Microsoft documents about the service (entra-docs: identity/app-provisioning, and the compatibility,
quarantine and on-demand pages there) and what was recorded on the wire. Where that is silent a comment says
"undocumented", and the choice is a named constant or an argument.
"""

import asyncio
import itertools
import random
import re
import sys
import time
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from collections.abc import Mapping as AbstractMapping
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, cast
from urllib.parse import quote, quote_plus, urlsplit

import aiohttp
import httptools
import msgspec
from yarl import URL

from deploy.emulators.entra_sign_in import (
    CREDENTIALS_UNAVAILABLE,
    Bearer,
    ClientCredentials,
    Credentials,
    SecretToken,
    SignInFailed,
    TokenAnswer,
)

CORE_USER = "urn:ietf:params:scim:schemas:core:2.0:User"
CORE_GROUP = "urn:ietf:params:scim:schemas:core:2.0:Group"
MICROSOFT_GROUP = "http://schemas.microsoft.com/2006/11/ResourceManagement/ADSCIM/2.0/Group"
ENTERPRISE_USER = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
TALKDESK_USER = "urn:ietf:params:scim:schemas:extension:talkdesk:2.0:User"
PATCH_OP = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
LIST_RESPONSE = "urn:ietf:params:scim:api:messages:2.0:ListResponse"
SCIM_ERROR = "urn:ietf:params:scim:api:messages:2.0:Error"
APP_ROLE_TYPE = "WindowsAzureActiveDirectoryRole"
SINGLE_ROLE = 'roles[primary eq "True"].value'
GUEST_MARK = "#EXT#"
FLAG = "aadOptscim062020"

QUARANTINE_INTERVAL_S = 86_400.0  # documented as "about once a day"
QUARANTINE_DISABLES_AFTER_S = 28 * 86_400.0
QUARANTINE_FAILURES_MIN = 5_000
QUARANTINE_FAILURE_SHARE = 0.40
QUARANTINE_FAILURES_MAX = 40_000
QUARANTINE_FAILURES_ABSOLUTE = 60_000
REQUEST_TIMEOUT_S = 30.0  # undocumented
CONNECT_TIMEOUT_S = 10.0  # undocumented
MEMBERS_PER_PATCH = 20  # undocumented: one and many were seen
MEMBERS_ON_DEMAND_MAX = 5
KEEP_ALIVE_S = 300.0  # the probe is seen during cycles too; how often is undocumented
DISCOVERY_PAGE = 100  # undocumented; the published validation asks for pages of 5
REPEATS_MAX = 1  # how often a request that was too slow is sent again within a run; the number is undocumented
EXCHANGES_MAX = 100_000  # recorded requests kept; older ones fall out
FAILURES_PRINTED_MAX = 20  # failures the command line prints in full

WITHOUT_MEMBERS = "excludedAttributes=members"
SERVICE_INCOMPATIBLE = "SystemForCrossDomainIdentityManagementServiceIncompatible"

Clock = Callable[[], float]
Progress = Callable[[int, int], None]
Dialect = Literal["legacy", "flag"]
ManagerShape = Literal["string", "object", "reference"]
SingleRoleShape = Literal["filtered", "published"]
JsonObject = dict[str, Any]
Touched = TypeVar("Touched", "Person", "Group")


class ManualClock:
    """A clock that only moves when told to, so that 28 days of escrow take no time.

    Args:
        now_s: seconds since the epoch at the start.
    """

    def __init__(self, now_s: float = 1_767_225_600.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Move forward by `seconds`."""
        self.now_s += seconds


# ------------------------------------------------------------------------------------------------- the directory


class AppRole(msgspec.Struct, frozen=True, rename="camel"):
    """A role that the application declares and that people are given."""

    id: str
    value: str
    display_name: str

    @classmethod
    def named(cls, value: str) -> Self:
        """The role of that value; the id follows from it, and the display name is the value."""
        return cls(str(uuid.uuid5(uuid.NAMESPACE_OID, value)), value, value)


class Person(msgspec.Struct, kw_only=True, rename="camel"):
    """One user of the directory, under Entra's own attribute names (`userPrincipalName`, `givenName`, …)."""

    object_id: str
    user_principal_name: str
    mail: str | None = None
    mail_nickname: str | None = None
    mobile: str | None = None
    telephone_number: str | None = None
    facsimile_telephone_number: str | None = None
    display_name: str | None = None
    given_name: str | None = None
    surname: str | None = None
    job_title: str | None = None
    department: str | None = None
    employee_id: str | None = None
    preferred_language: str | None = None
    physical_delivery_office_name: str | None = None
    street_address: str | None = None
    city: str | None = None
    state: str | None = None
    postal_code: str | None = None
    country: str | None = None
    manager: str | None = None
    """Object id of the manager."""
    account_enabled: bool = True
    assigned: bool = True
    """Assigned to the enterprise application, which is the scope of the job."""
    soft_deleted: bool = False
    hard_deleted: bool = False
    app_role_assignments: list[str | AppRole] = msgspec.field(default_factory=list)
    """The app roles given to the user, in full or by value."""
    extension: dict[str, str] = msgspec.field(default_factory=dict)
    """Further attributes by their directory name, e.g. `extensionAttribute1`."""

    @property
    def roles(self) -> tuple[AppRole, ...]:
        """The app roles given to the user, in full."""
        return tuple(AppRole.named(role) if isinstance(role, str) else role for role in self.app_role_assignments)

    @property
    def is_soft_deleted(self) -> bool:
        """Entra's `IsSoftDeleted`: unassigned, deleted, or the account is switched off."""
        return not self.assigned or self.soft_deleted or self.hard_deleted or not self.account_enabled

    @property
    def in_scope(self) -> bool:
        """Still looked after by the job; a disabled account is, an unassigned or deleted one is not."""
        return self.assigned and not self.soft_deleted and not self.hard_deleted

    def attribute(self, name: str) -> object:
        """The value behind `[name]` in an expression.

        Raises:
            ValueError: the directory has no such attribute.
        """
        if name == "IsSoftDeleted":
            return self.is_soft_deleted
        if name == "userPrincipalName":  # of guests; whoever wants the mark maps originalUserPrincipalName
            return self.user_principal_name.replace(GUEST_MARK, "")
        if name == "originalUserPrincipalName":
            return self.user_principal_name
        if name in PERSON_ATTRIBUTES:
            return getattr(self, PERSON_ATTRIBUTES[name])
        if name in self.extension:
            return self.extension[name]
        if name.startswith("extension"):
            return None
        raise ValueError(f"the directory has no attribute {name!r}")


class Group(msgspec.Struct, kw_only=True, rename="camel"):
    """One group of the directory."""

    object_id: str
    display_name: str
    members: list[str] = msgspec.field(default_factory=list)
    """Object ids of people and of other groups; only direct members are ever sent."""
    assigned: bool = True
    """Assigned to the enterprise application, which is the scope of the job."""
    deleted: bool = False

    @property
    def in_scope(self) -> bool:
        """Still looked after by the job."""
        return self.assigned and not self.deleted


PERSON_ATTRIBUTES = {field.encode_name: field.name for field in msgspec.structs.fields(Person)}
STATE_FIELDS = {"object_id", "account_enabled", "assigned", "soft_deleted", "hard_deleted"}


class Directory:
    """Entra's own side: the people and groups, and a change number for each so that a cycle can ask what is new.

    Args:
        people: who is there at the start.
        groups: which groups are there at the start.
    """

    def __init__(self, people: Iterable[Person] = (), groups: Iterable[Group] = ()) -> None:
        self.people: dict[str, Person] = {}
        self.groups: dict[str, Group] = {}
        self.sequence = 0
        self._changed: dict[str, int] = {}
        for person in people:
            self.add(person)
        for group in groups:
            self.add_group(group)

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, who: Person | str) -> Person:
        return self.people[who.object_id if isinstance(who, Person) else who]

    def add(self, person: Person) -> Person:
        """Put a new person into the directory.

        Raises:
            ValueError: the object id is taken.
        """
        if person.object_id in self.people or person.object_id in self.groups:
            raise ValueError(f"object id {person.object_id} is taken")
        self.people[person.object_id] = person
        return self._touch(person)

    def set(self, who: Person | str, **attributes: Any) -> Person:
        """Change attributes by their field names; a name that is not a field goes to the extension attributes.

        Raises:
            ValueError: the attribute has a verb of its own (`assign`, `disable`, …).
        """
        person = self[who]
        if refused := STATE_FIELDS & attributes.keys():
            raise ValueError(f"{', '.join(sorted(refused))}: use assign, enable, disable, soft_delete or hard_delete")
        for name, value in attributes.items():
            if name in Person.__struct_fields__:
                setattr(person, name, value)
            elif value is None:
                person.extension.pop(name, None)
            else:
                person.extension[name] = value
        return self._touch(person)

    def rename(self, who: Person | str, user_principal_name: str) -> Person:
        """Give the person another userPrincipalName."""
        return self.set(who, user_principal_name=user_principal_name)

    def assign(self, who: Person | str) -> Person:
        """Assign the person to the application: into scope."""
        return self._state(who, assigned=True)

    def unassign(self, who: Person | str) -> Person:
        """Take the assignment away: out of scope."""
        return self._state(who, assigned=False)

    def enable(self, who: Person | str) -> Person:
        """Switch the account on."""
        return self._state(who, account_enabled=True)

    def disable(self, who: Person | str) -> Person:
        """Switch the account off; the person stays assigned."""
        return self._state(who, account_enabled=False)

    def soft_delete(self, who: Person | str) -> Person:
        """Delete the person; for 30 days `restore` brings them back, assignment included."""
        return self._state(who, soft_deleted=True)

    def hard_delete(self, who: Person | str) -> Person:
        """Purge the person for good."""
        return self._state(who, soft_deleted=True, hard_deleted=True)

    def restore(self, who: Person | str) -> Person:
        """Bring a soft-deleted person back.

        Raises:
            ValueError: the person was purged.
        """
        if self[who].hard_deleted:
            raise ValueError("a purged person cannot be restored")
        return self._state(who, soft_deleted=False)

    def add_group(self, group: Group) -> Group:
        """Put a new group into the directory.

        Raises:
            ValueError: the object id is taken.
        """
        if group.object_id in self.people or group.object_id in self.groups:
            raise ValueError(f"object id {group.object_id} is taken")
        self.groups[group.object_id] = group
        return self._touch(group)

    def group(self, which: Group | str) -> Group:
        """A group by its object id."""
        return self.groups[which if isinstance(which, str) else which.object_id]

    def rename_group(self, which: Group | str, display_name: str) -> Group:
        """Give the group another displayName."""
        group = self.group(which)
        group.display_name = display_name
        return self._touch(group)

    def add_members(self, which: Group | str, *members: Person | Group | str) -> Group:
        """Make people or groups direct members."""
        group = self.group(which)
        group.members = list(dict.fromkeys((*group.members, *map(_object_id, members))))
        return self._touch(group)

    def remove_members(self, which: Group | str, *members: Person | Group | str) -> Group:
        """Take members out."""
        group = self.group(which)
        gone = set(map(_object_id, members))
        group.members = [member for member in group.members if member not in gone]
        return self._touch(group)

    def assign_group(self, which: Group | str) -> Group:
        """Assign the group to the application: into scope."""
        group = self.group(which)
        group.assigned = True
        return self._touch(group)

    def unassign_group(self, which: Group | str) -> Group:
        """Take the assignment away: out of scope; its members are handled on their own."""
        group = self.group(which)
        group.assigned = False
        return self._touch(group)

    def delete_group(self, which: Group | str) -> Group:
        """Delete the group."""
        group = self.group(which)
        group.deleted = True
        return self._touch(group)

    def changed_since(self, watermark: int) -> list[str]:
        """Object ids of people changed after `watermark`, oldest change first."""
        return self._changed_in(self.people, watermark)

    def groups_changed_since(self, watermark: int) -> list[str]:
        """Object ids of groups changed after `watermark`, oldest change first."""
        return self._changed_in(self.groups, watermark)

    def _changed_in(self, objects: AbstractMapping[str, Person | Group], watermark: int) -> list[str]:
        changed = [
            (sequence, object_id)
            for object_id, sequence in self._changed.items()
            if sequence > watermark and object_id in objects
        ]
        return [object_id for _, object_id in sorted(changed)]

    def _state(self, who: Person | str, **fields: bool) -> Person:
        person = self[who]
        for name, value in fields.items():
            setattr(person, name, value)
        return self._touch(person)

    def _touch(self, what: Touched) -> Touched:
        self.sequence += 1
        self._changed[what.object_id] = self.sequence
        return what


def _object_id(what: Person | Group | str) -> str:
    return what if isinstance(what, str) else what.object_id


# Area codes of the North American plan; 555-0100 to 555-0199 are set aside for fiction in each of them.
_AREA_CODES = tuple(
    f"{first}{second}{third}"
    for first, second, third in itertools.product("23456789", "012345678", "0123456789")
    if not second == third == "1"
)
MOBILES_MAX = 100 * len(_AREA_CODES)


def make_people(
    count: int,
    seed: int = 1,
    *,
    prefix: str = "user",
    app_roles: Sequence[str] = ("Agent", "Supervisor"),
    teams: Sequence[str] = (),
    managers: bool = True,
) -> list[Person]:
    """Make synthetic people: "User 0001" and so on, addresses under example domains, fictional phone numbers.

    Args:
        count: how many; beyond `MOBILES_MAX` people have no mobile number, because the fictional range ends there.
        seed: decides the object ids; the same seed gives the same people again.
        prefix: start of every name, to keep several populations apart at one server.
        app_roles: one of them is given to each person in turn.
        teams: one of them becomes each person's `extensionAttribute1`, in turn; none when empty.
        managers: every tenth person leads the nine that follow, and the first leads the leaders.
    """
    chance = random.Random(f"{seed}:{prefix}")
    width = max(4, len(str(count)))
    people: list[Person] = []
    for index in range(count):
        number = f"{index + 1:0{width}d}"
        nickname = f"{prefix}{number}".lower()
        leader = None if index == 0 else people[0 if index % 10 == 0 else index - index % 10].object_id
        line = f"1{_AREA_CODES[index // 100]}55501{index % 100:02d}" if index < MOBILES_MAX else None
        people.append(
            Person(
                object_id=str(uuid.UUID(int=chance.getrandbits(128), version=4)),
                user_principal_name=f"{nickname}@contoso.example",
                mail=f"{nickname}@example.com",
                mail_nickname=nickname,
                mobile=line,
                display_name=f"{prefix.capitalize()} {number}",
                given_name=prefix.capitalize(),
                surname=f"Number {number}",
                job_title=f"Position {1 + index % 7}",
                department=f"Department {1 + index % 5:02d}",
                employee_id=f"E{number}",
                preferred_language="en-GB",
                physical_delivery_office_name=f"Office {1 + index % 12}",
                street_address=f"{1 + index % 90} Example Street",
                city="Example City",
                postal_code=f"{10_000 + index % 90_000}",
                country="CH",
                manager=leader if managers else None,
                app_role_assignments=[app_roles[index % len(app_roles)]] if app_roles else [],
                extension={"extensionAttribute1": teams[index % len(teams)]} if teams else {},
            )
        )
    return people


def make_groups(people: Sequence[Person], count: int, seed: int = 1, *, prefix: str = "Group") -> list[Group]:
    """Make synthetic groups: "Group 1" and so on; every person is in one of them, in turn.

    Args:
        people: the members.
        count: how many groups.
        seed: decides the object ids.
        prefix: start of every name.
    """
    chance = random.Random(f"{seed}:{prefix}:groups")
    return [
        Group(
            object_id=str(uuid.UUID(int=chance.getrandbits(128), version=4)),
            display_name=f"{prefix} {index + 1}",
            members=[person.object_id for person in people[index::count]],
        )
        for index in range(count)
    ]


# ------------------------------------------------------------------------------------------------- expressions


class Attribute(msgspec.Struct, frozen=True):
    """`[name]`: the value of a directory attribute."""

    name: str


class Constant(msgspec.Struct, frozen=True):
    """`"text"`."""

    text: str


class Call(msgspec.Struct, frozen=True):
    """`Function(argument, , argument)`; an argument left out is None."""

    function: str
    arguments: tuple["Expression | None", ...]


Expression = Attribute | Constant | Call

_TOKEN = re.compile(r'\s*(?:\[(?P<attribute>\w+)\]|"(?P<text>(?:[^"\\]|\\.)*)"|(?P<name>\w+)|(?P<mark>[(),]))')
_SEVERAL_ROLES = {"AppRoleAssignmentsComplex": False, "AssertiveAppRoleAssignmentsComplex": True}
"""By function, whether roles that were taken away in Entra disappear at the target too."""
_FUNCTIONS = {"Switch", "Not", "Join", "SingleAppRoleAssignment", *_SEVERAL_ROLES}


@lru_cache(maxsize=1_024)
def parse_expression(source: str) -> Expression:
    """Parse a mapping source: an attribute name, a quoted constant, or an expression as the portal shows it.

    Raises:
        ValueError: the text is no expression, or names a function this program does not know.
    """
    tokens: list[tuple[str, str]] = []
    position = 0
    text = source.strip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None or found.lastgroup is None:
            raise ValueError(f"cannot read expression {source!r} at {position}")
        tokens.append((found.lastgroup, found[found.lastgroup]))
        position = found.end()
        while position < len(text) and text[position].isspace():
            position += 1
    parsed, rest = _parse(tokens, 0, source)
    if rest != len(tokens):
        raise ValueError(f"expression {source!r} goes on after its end")
    return parsed


def _parse(tokens: list[tuple[str, str]], at: int, source: str) -> tuple[Expression, int]:
    if at >= len(tokens):
        raise ValueError(f"expression {source!r} ends too early")
    kind, text = tokens[at]
    if kind == "attribute":
        return Attribute(text), at + 1
    if kind == "text":
        return Constant(re.sub(r"\\(.)", r"\1", text)), at + 1
    if kind != "name":
        raise ValueError(f"expression {source!r}: {text!r} is out of place")
    if at + 1 >= len(tokens) or tokens[at + 1] != ("mark", "("):
        if len(tokens) == 1:
            return Attribute(text), at + 1
        raise ValueError(f"expression {source!r}: {text!r} is out of place")
    if text not in _FUNCTIONS:
        raise ValueError(f"expression {source!r}: function {text} is not known here")
    return _parse_arguments(text, tokens, at + 2, source)


def _parse_arguments(function: str, tokens: list[tuple[str, str]], at: int, source: str) -> tuple[Expression, int]:
    arguments: list[Expression | None] = []
    current: Expression | None = None
    while at < len(tokens):
        if tokens[at] in (("mark", ","), ("mark", ")")):
            arguments.append(current)
            if tokens[at][1] == ")":
                return Call(function, tuple(arguments)), at + 1
            current = None
            at += 1
        elif current is None:
            current, at = _parse(tokens, at, source)
        else:
            raise ValueError(f"expression {source!r}: a comma is missing")
    raise ValueError(f"expression {source!r}: a bracket is missing")


def evaluate(expression: Expression | None, person: Person) -> str | None:
    """Compute an expression for one person; None stands for an empty value, booleans come out as "True" or "False".

    Raises:
        ValueError: an attribute the directory does not have, wrong arguments, or an expression for several roles.
    """
    match expression:
        case None:
            return None
        case Constant(text):
            return text or None
        case Attribute(name):
            return _as_text(person.attribute(name))
        case Call("Not", (argument,)):
            value = evaluate(argument, person)
            return None if value is None else str(value.lower() != "true")
        case Call("Switch", (subject, default, *pairs)) if len(pairs) % 2 == 0:
            value = (evaluate(subject, person) or "").lower()
            for key, result in zip(pairs[::2], pairs[1::2], strict=True):
                if (evaluate(key, person) or "").lower() == value:
                    return evaluate(result, person)
            return evaluate(default, person)
        case Call("Join", (separator, *parts)):
            values = [value for part in parts if (value := evaluate(part, person))]
            return (evaluate(separator, person) or "").join(values) or None
        case Call("SingleAppRoleAssignment", (Attribute("appRoleAssignments"),)):
            # With several roles assigned the service does not promise which one is sent.
            return person.roles[0].value if person.roles else None
        case _:
            raise ValueError(f"{expression.function}: wrong arguments")


class Roles(msgspec.Struct, frozen=True):
    """The value of an expression that gives several roles."""

    roles: tuple[AppRole, ...]
    assertive: bool
    """Roles that were taken away in Entra disappear at the target; otherwise they stay there."""

    def posted(self) -> list[JsonObject]:
        """As a POST carries them; one form says `displayName`, the other `display`."""
        shown = "display" if self.assertive else "displayName"
        return [
            {"primary": False, "type": APP_ROLE_TYPE, shown: role.display_name, "value": role.value}
            for role in self.roles
        ]

    def held_by(self, entries: Any) -> bool:
        """Whether a target that shows these entries has nothing to be told."""
        there, wanted = role_values(entries), {role.value for role in self.roles}
        return there == wanted if self.assertive else wanted <= there

    def operation(self, dialect: Dialect) -> JsonObject:
        """The PATCH operation; a change sends all of them (undocumented for the additive form)."""
        if self.assertive:
            return {"op": "replace", "path": "roles", "value": self.posted()}
        if dialect == "flag":
            return {"op": "add", "path": "roles", "value": self.posted()}
        return {"op": "Add", "path": "roles", "value": [{"value": _role_text(role)} for role in self.roles]}


Value = str | Roles
"""What a row of a mapping gives for one person."""


def role_values(entries: Any) -> set[str]:
    """The roles' values in a target's `roles`, also those that stand there as a JSON document in a string."""
    values: set[str] = set()
    for entry in entries if isinstance(entries, list) else []:
        value = _member(entry, "value")
        if isinstance(value, str) and value.startswith("{"):
            with suppress(msgspec.MsgspecError):
                value = msgspec.json.decode(value, type=AppRole).value
        if isinstance(value, str):
            values.add(value)
    return values


def _role_text(role: AppRole) -> str:
    return msgspec.json.encode(role).decode()


def _as_text(value: object) -> str | None:
    if value is None or value == "" or value == []:
        return None
    return str(value)


# ------------------------------------------------------------------------------------------------- SCIM paths


class ScimPath(msgspec.Struct, frozen=True):
    """A mapping target taken apart: `emails[type eq "work"].value` is attribute, selector (name, value) and sub."""

    schema: str | None
    attribute: str
    selector: tuple[str, str] | None
    sub: str | None


_PATH = re.compile(
    r"(?:(?P<schema>urn:.+):)?(?P<attribute>[A-Za-z$][\w$-]*)"
    r'(?:\[(?P<by>\w+)\s+eq\s+"(?P<which>[^"]*)"\])?(?:\.(?P<sub>[A-Za-z$][\w$-]*))?'
)


@lru_cache(maxsize=1_024)
def parse_path(path: str) -> ScimPath:
    """Take a SCIM path apart.

    Raises:
        ValueError: not one of the forms Entra's mapping page allows.
    """
    found = _PATH.fullmatch(path)
    if found is None:
        raise ValueError(f"not a SCIM path: {path!r}")
    selector = (found["by"], found["which"]) if found["by"] else None
    return ScimPath(found["schema"], found["attribute"], selector, found["sub"])


def held(resource: AbstractMapping[str, Any], path: str) -> Any:
    """What a resource holds at a path; None when nothing is there. Attribute names are compared ignoring case."""
    parsed = parse_path(path)
    node: Any = resource
    if parsed.schema is not None:
        node = _member(node, parsed.schema)
    node = _member(node, parsed.attribute)
    if parsed.selector is not None:
        by, which = parsed.selector
        entries = node if isinstance(node, list) else []
        node = next((entry for entry in entries if same(_member(entry, by), which)), None)
    return node if parsed.sub is None else _member(node, parsed.sub)


def _member(node: Any, name: str) -> Any:
    if not isinstance(node, dict):
        return None
    if name in node:
        return node[name]
    return next((value for key, value in node.items() if key.lower() == name.lower()), None)


def place(document: JsonObject, path: str, value: Any) -> None:
    """Write a value into a document that is being built for POST; entries of one selector share one object."""
    parsed = parse_path(path)
    node = document
    if parsed.schema is not None:
        node = node.setdefault(parsed.schema, {})
    if parsed.selector is not None:
        by, which = parsed.selector
        entries: list[JsonObject] = node.setdefault(parsed.attribute, [])
        entry = next((entry for entry in entries if same(entry.get(by), which)), None)
        if entry is None:
            if by == "primary":
                entry = {"primary": True, "type": APP_ROLE_TYPE} if parsed.attribute == "roles" else {"primary": True}
            else:
                entry = {"primary": True, by: which} if which == "work" else {by: which}
            entries.append(entry)
        entry[parsed.sub or "value"] = value
    elif parsed.sub is not None:
        node.setdefault(parsed.attribute, {})[parsed.sub] = value
    else:
        node[parsed.attribute] = value


def same(one: object, other: object) -> bool:
    """Whether two values are equal for Entra; a boolean equals its text in any letter case."""
    if isinstance(one, bool) or isinstance(other, bool):
        return str(one).lower() == str(other).lower()
    return one == other


# ------------------------------------------------------------------------------------------------- mappings


class AttributeMapping(msgspec.Struct, frozen=True):
    """One row of the mapping page."""

    source: str
    """`mail`, `"a constant"`, or an expression such as `Not([IsSoftDeleted])`."""
    path: str
    """The SCIM path that receives the value."""
    matching: int = 0
    """Matching precedence, 1 first; 0 when the row does not match."""
    default: str | None = None
    """Default value if null; documented to count on create only."""
    only_on_create: bool = False
    boolean: bool = False
    """Declared Boolean at the target: POST then carries a JSON boolean instead of "True" or "False"."""

    @property
    def is_reference(self) -> bool:
        """Manager: written in a later request, once both objects exist."""
        return self.source in ("manager", "[manager]")

    @property
    def takes_roles(self) -> bool:
        """Comes from the app roles given to the user."""
        return "appRoleAssignments" in self.source

    def value(self, person: Person) -> Value | None:
        """What the row gives for one person; None for an empty value."""
        match parse_expression(self.source):
            case Call(function, (Attribute("appRoleAssignments"),)) if function in _SEVERAL_ROLES:
                return Roles(person.roles, _SEVERAL_ROLES[function]) if person.roles else None
            case expression:
                return evaluate(expression, person)


class Mapping(msgspec.Struct, frozen=True):
    """What is sent where, for users of one application.

    Raises:
        ValueError: unreadable expression or path, or no matching attribute.
    """

    name: str
    attributes: tuple[AttributeMapping, ...]

    def __post_init__(self) -> None:
        for row in self.attributes:
            parse_expression(row.source)
            parse_path(row.path)
        if not self.matching:
            raise ValueError(f"mapping {self.name} has no matching attribute")

    @property
    def matching(self) -> tuple[AttributeMapping, ...]:
        """The matching rows in order of precedence."""
        return tuple(sorted((row for row in self.attributes if row.matching), key=lambda row: row.matching))

    @property
    def reference(self) -> AttributeMapping | None:
        """The manager row, if mapped."""
        return next((row for row in self.attributes if row.is_reference), None)

    @property
    def has_active(self) -> bool:
        """Without `active`, leaving means DELETE."""
        return any(row.path == "active" for row in self.attributes)

    def values(self, person: Person, *, creating: bool = False, roles: bool = True) -> dict[str, Value]:
        """The mapped values by SCIM path, in the order of the rows; empty ones are left out, references too."""
        values: dict[str, Value] = {}
        for row in self.attributes:
            if row.is_reference or (row.only_on_create and not creating) or (row.takes_roles and not roles):
                continue
            value = row.value(person)
            if value is None and creating:
                value = row.default
            if value is not None:
                values[row.path] = value
        return values

    def document(self, values: AbstractMapping[str, Value], dialect: Dialect) -> JsonObject:
        """The body of a POST. Custom extension URNs are not listed in `schemas`; that is how Entra does it."""
        booleans = {row.path for row in self.attributes if row.boolean}
        schemas = [CORE_USER]
        if any(row.path.startswith(ENTERPRISE_USER) for row in self.attributes):
            schemas.append(ENTERPRISE_USER)
        document: JsonObject = {"schemas": schemas}
        for path, value in values.items():
            if isinstance(value, Roles):
                place(document, path, value.posted())
                continue
            typed = path in booleans or (path == "active" and dialect == "flag")
            place(document, path, as_boolean(value) if typed else value)
        document["meta"] = {"resourceType": "User"}
        document.setdefault("roles", [])
        return document


def as_boolean(value: str) -> bool:
    """Read "True" or "False" in any letter case.

    Raises:
        ValueError: anything else.
    """
    if value.lower() not in ("true", "false"):
        raise ValueError(f"not a boolean: {value!r}")
    return value.lower() == "true"


SWITCH_ACTIVE = 'Switch([IsSoftDeleted], , "False", "True", "True", "False")'

# The default of a non-gallery application, in the portal's order.
DEFAULT = Mapping(
    "default",
    (
        AttributeMapping("userPrincipalName", "userName", matching=1),
        AttributeMapping(SWITCH_ACTIVE, "active", boolean=True),
        AttributeMapping("displayName", "displayName"),
        AttributeMapping("jobTitle", "title"),
        AttributeMapping("mail", 'emails[type eq "work"].value'),
        AttributeMapping("preferredLanguage", "preferredLanguage"),
        AttributeMapping("givenName", "name.givenName"),
        AttributeMapping("surname", "name.familyName"),
        AttributeMapping('Join(" ", [givenName], [surname])', "name.formatted"),
        AttributeMapping("physicalDeliveryOfficeName", 'addresses[type eq "work"].formatted'),
        AttributeMapping("streetAddress", 'addresses[type eq "work"].streetAddress'),
        AttributeMapping("city", 'addresses[type eq "work"].locality'),
        AttributeMapping("state", 'addresses[type eq "work"].region'),
        AttributeMapping("postalCode", 'addresses[type eq "work"].postalCode'),
        AttributeMapping("country", 'addresses[type eq "work"].country'),
        AttributeMapping("telephoneNumber", 'phoneNumbers[type eq "work"].value'),
        AttributeMapping("mobile", 'phoneNumbers[type eq "mobile"].value'),
        AttributeMapping("facsimileTelephoneNumber", 'phoneNumbers[type eq "fax"].value'),
        AttributeMapping("mailNickname", "externalId"),
        AttributeMapping("employeeId", f"{ENTERPRISE_USER}:employeeNumber"),
        AttributeMapping("department", f"{ENTERPRISE_USER}:department"),
        AttributeMapping("manager", f"{ENTERPRISE_USER}:manager"),
    ),
)
OBSERVE = Mapping("observe", DEFAULT.attributes)


def telemessage(manager_name: str = "Company Manager") -> Mapping:
    """The seven rows of TeleMessage's guide (vendors M8-M23); the mobile number is both key and externalId.

    Args:
        manager_name: the constant that names the company manager exactly as the product knows it (M18).
    """
    return Mapping(
        "telemessage",
        (
            AttributeMapping("mobile", "userName", matching=1),
            AttributeMapping("Not([IsSoftDeleted])", "active"),
            AttributeMapping(msgspec.json.encode(manager_name).decode(), "displayName"),
            AttributeMapping("mail", 'emails[type eq "work"].value'),
            AttributeMapping("givenName", "name.givenName"),
            AttributeMapping("surname", "name.familyName"),
            AttributeMapping("mobile", "externalId"),
        ),
    )


TELEMESSAGE = telemessage()

# Talkdesk's guide (vendors T6-T17): role from the app role, team from an extension attribute.
TALKDESK = Mapping(
    "talkdesk",
    (
        AttributeMapping("userPrincipalName", "userName", matching=1),
        AttributeMapping("givenName", "name.givenName"),
        AttributeMapping("surname", "name.familyName"),
        AttributeMapping(SWITCH_ACTIVE, "active"),
        AttributeMapping("objectId", "externalId"),
        AttributeMapping("SingleAppRoleAssignment([appRoleAssignments])", f"{TALKDESK_USER}:rolesString"),
        AttributeMapping("[extensionAttribute1]", f"{TALKDESK_USER}:teamsString"),
    ),
)

# babelforce (vendors B8-B18): the login is the mail address, all app roles are sent together.
BABELFORCE = Mapping(
    "babelforce",
    (
        AttributeMapping("mail", "userName", matching=1),
        AttributeMapping("Not([IsSoftDeleted])", "active"),
        AttributeMapping("displayName", "displayName"),
        AttributeMapping("AssertiveAppRoleAssignmentsComplex([appRoleAssignments])", "roles"),
    ),
)

# Bob's Business (vendors L8-L11): the address on the platform is the user principal name.
BOBS_BUSINESS = Mapping(
    "bobs_business",
    (
        AttributeMapping("userPrincipalName", "userName", matching=1),
        AttributeMapping("Not([IsSoftDeleted])", "active"),
        AttributeMapping("displayName", "displayName"),
        AttributeMapping("givenName", "name.givenName"),
        AttributeMapping("surname", "name.familyName"),
        AttributeMapping("mail", 'emails[type eq "work"].value'),
        AttributeMapping("objectId", "externalId"),
    ),
)

# Sofa (vendors S18-S25): what its guide leaves of the default mapping, with the object id as externalId.
SOFA = Mapping(
    "sofa",
    (
        AttributeMapping("userPrincipalName", "userName", matching=1),
        AttributeMapping("Not([IsSoftDeleted])", "active"),
        AttributeMapping("displayName", "displayName"),
        AttributeMapping("jobTitle", "title"),
        AttributeMapping("mail", 'emails[type eq "work"].value'),
        AttributeMapping("givenName", "name.givenName"),
        AttributeMapping("surname", "name.familyName"),
        AttributeMapping("telephoneNumber", 'phoneNumbers[type eq "work"].value'),
        AttributeMapping("mobile", 'phoneNumbers[type eq "mobile"].value'),
        AttributeMapping("objectId", "externalId"),
        AttributeMapping("employeeId", f"{ENTERPRISE_USER}:employeeNumber"),
        AttributeMapping("department", f"{ENTERPRISE_USER}:department"),
        AttributeMapping("manager", f"{ENTERPRISE_USER}:manager"),
    ),
)

MAPPINGS = {mapping.name: mapping for mapping in (OBSERVE, TELEMESSAGE, TALKDESK, BABELFORCE, BOBS_BUSINESS, SOFA)}


# ------------------------------------------------------------------------------------------------- wire forms


class Change(msgspec.Struct, frozen=True):
    """One difference between the wish and what the target holds."""

    path: str
    value: Value
    before: Any = None
    role: AppRole | None = None
    """The one role that is meant, where it is sent in the published form instead of by its filtered path."""


def differences(
    values: AbstractMapping[str, Value], resource: AbstractMapping[str, Any], single: AppRole | None = None
) -> list[Change]:
    """What must change so that `resource` holds `values`, in mapping order.

    Args:
        single: the one role, when it is to be sent in the published form.
    """
    changes: list[Change] = []
    for path, value in values.items():
        role = single if path == SINGLE_ROLE else None
        before = held(resource, "roles" if role is not None else path)
        if isinstance(value, Roles):
            there = value.held_by(before)
        elif role is not None:
            there = value in role_values(before)
        else:
            there = same(before, value)
        if not there:
            changes.append(Change(path, value, before, role))
    return changes


def patch_body(changes: Sequence[Change], dialect: Dialect) -> JsonObject:
    """The PatchOp message for these changes, in the form of the dialect."""
    operations = _legacy_operations(changes) if dialect == "legacy" else _flag_operations(changes)
    return {"schemas": [PATCH_OP], "Operations": operations}


def _role_operation(change: Change, dialect: Dialect) -> JsonObject | None:
    """The operation of a change that is about whole roles; None for any other."""
    if isinstance(change.value, Roles):
        return change.value.operation(dialect)
    if change.role is None:
        return None
    if dialect == "flag":  # with the flag a PATCH of roles looks like the POST
        posted = {"primary": True, "type": APP_ROLE_TYPE, "value": change.role.value}
        return {"op": "add", "path": "roles", "value": [posted]}
    return {"op": "Add", "path": "roles", "value": [{"value": _role_text(change.role)}]}


def _legacy_operations(changes: Sequence[Change]) -> list[JsonObject]:
    operations: list[JsonObject] = []
    for change in changes:
        if (whole := _role_operation(change, "legacy")) is not None:
            operations.append(whole)
            continue
        enabling = change.path == "active" and same(change.value, "True")  # seen as Add even where a value stands
        op = "Add" if change.before is None or enabling else "Replace"
        operations.append({"op": op, "path": change.path, "value": change.value})
    return operations


def _flag_operations(changes: Sequence[Change]) -> list[JsonObject]:
    operations: list[JsonObject] = []
    shared: list[Change] = []
    for change in changes:
        if (whole := _role_operation(change, "flag")) is not None:
            operations.append(whole)
        elif change.path == "active":
            operations.append({"op": "replace", "path": "active", "value": as_boolean(str(change.value))})
        elif parse_path(change.path).selector is not None:
            op = "add" if change.before is None else "replace"
            operations.append({"op": op, "path": change.path, "value": change.value})
        else:
            shared.append(change)
    if len(shared) == 1 and shared[0].before is None:
        operations.append({"op": "add", "path": shared[0].path, "value": shared[0].value})
    elif shared:
        operations.append({"op": "replace", "value": {change.path: change.value for change in shared}})
    return operations


def group_document(group: Group) -> JsonObject:
    """The body of a group's POST: always without members, which follow, and with a second schema of Microsoft's own."""
    return {
        "schemas": [CORE_GROUP, MICROSOFT_GROUP],
        "externalId": group.object_id,
        "displayName": group.display_name,
        "meta": {"resourceType": "Group"},
    }


def members_body(add: Sequence[str], remove: Sequence[str], dialect: Dialect) -> JsonObject:
    """The PatchOp message that puts these target ids into a group and takes those out of it."""
    operations: list[JsonObject] = []
    if add:
        op = "Add" if dialect == "legacy" else "add"
        operations.append({"op": op, "path": "members", "value": [{"$ref": None, "value": member} for member in add]})
    if remove and dialect == "legacy":
        gone = [{"$ref": None, "value": member} for member in remove]
        operations.append({"op": "Remove", "path": "members", "value": gone})
    elif remove:
        operations += [{"op": "remove", "path": f'members[value eq "{member}"]'} for member in remove]
    return {"schemas": [PATCH_OP], "Operations": operations}


def filter_query(path: str, value: str) -> str:
    """`filter=userName+eq+%22a%40b%22`, encoded as seen on the wire.

    How quotes and backslashes inside a value are written is undocumented; they are escaped as in a JSON string.
    """
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return "filter=" + quote_plus(f'{path} eq "{escaped}"')


# ------------------------------------------------------------------------------------------------- records


Operation = Literal[
    "token",
    "probe_users",
    "probe_groups",
    "probe_user_by_id",
    "probe_group_by_id",
    "schemas",
    "discover",
    "match_hit",
    "match_miss",
    "match",
    "read",
    "create",
    "update",
    "disable",
    "enable",
    "delete",
    "reference",
    "match_group",
    "read_group",
    "create_group",
    "update_group",
    "delete_group",
    "members",
]
Action = Literal["Create", "Update", "Disable", "Enable", "Delete", "Reference", "Other"]
Status = Literal["Success", "Failure", "Skipped"]


class Exchange(msgspec.Struct, frozen=True):
    """One request and its answer, without the credentials. `status` is 0 when no answer came."""

    time_s: float
    operation: Operation
    object_id: str
    method: str
    target: str
    """Path and query as sent."""
    request_body: str
    status: int
    response_body: str
    elapsed_s: float
    error: str
    request_headers: dict[str, str] = {}
    """As sent, but for Authorization."""


class LogEntry(msgspec.Struct, frozen=True):
    """One line of the provisioning log, as an Entra admin reads it."""

    time_s: float
    cycle: int
    """Number of the run; 0 for runs on demand."""
    object_id: str
    source_name: str
    target_id: str
    action: Action
    status: Status
    status_code: int
    """Of the deciding answer; 0 when none came."""
    error_code: str = ""
    message: str = ""
    response_body: str = ""
    """The complete answer, for failures."""
    modified: tuple[tuple[str, Any, Any], ...] = ()
    """Path, old value, new value."""
    kind: Literal["user", "group"] = "user"


class Acknowledged(msgspec.Struct, frozen=True):
    """A write and what was asked by it: the document of a POST, the message of a PATCH, None for a DELETE."""

    object_id: str
    operation: Operation
    wished: JsonObject | None
    target_id: str
    time_s: float
    status: int
    """0 when no answer came."""


class FinalWish(msgspec.Struct):
    """All that was acknowledged for one person, put together: what must hold in the end."""

    target_id: str
    values: dict[str, Value]
    """By SCIM path; `active` is "True" or "False"."""
    deleted: bool = False


class FinalGroup(msgspec.Struct):
    """All that was acknowledged for one group, put together: what must hold in the end."""

    target_id: str
    display_name: str
    members: set[str] = msgspec.field(default_factory=set)
    """Target ids."""
    deleted: bool = False


class GroupLink(msgspec.Struct):
    """What the service remembers about a group at the target; it never reads members back."""

    target_id: str
    members: dict[str, str] = msgspec.field(default_factory=dict)
    """Target ids of the members that were sent and acknowledged, by object id."""
    unresolved: set[str] = msgspec.field(default_factory=set)
    """Object ids of members that are not at the target yet."""
    resend: bool = False
    """After a restart: everybody is sent once more."""


class Link(msgspec.Struct):
    """What the service remembers about a person at the target."""

    target_id: str
    active: bool
    managed: bool = True
    """False after an unassignment: no DELETE follows any more."""


class EscrowPolicy(msgspec.Struct, frozen=True):
    """When a failed object is tried again. The documented rules stand side by side and are joined here."""

    steps_s: tuple[float, ...] = (0.0, 6 * 3600.0, 12 * 3600.0, 24 * 3600.0)
    """Earliest next attempt after the first failure; 0 = the next cycle."""
    then_every_s: float = 86_400.0
    give_up_after_s: float = 28 * 86_400.0


EVERY_CYCLE = EscrowPolicy(steps_s=(), then_every_s=0.0)


class Escrow(msgspec.Struct):
    """A failed object waiting for its next attempt."""

    first_failed_s: float
    attempts: int
    next_try_s: float
    error_code: str
    reference: bool = False


class Quarantine(msgspec.Struct):
    """Why the job stands still, and until when."""

    reason: str
    message: str
    since_s: float
    next_run_s: float


class ConnectionTest(msgspec.Struct, frozen=True):
    """Outcome of Test Connection."""

    ok: bool
    status_code: int = 0
    error_code: str = ""
    message: str = ""
    response_body: str = ""


class CycleReport(msgspec.Struct):
    """What one run came to."""

    kind: Literal["initial", "incremental"]
    number: int
    ran: bool = True
    """False when the job stands in quarantine and its next run is not due."""
    created: int = 0
    updated: int = 0
    disabled: int = 0
    enabled: int = 0
    deleted: int = 0
    references: int = 0
    groups_created: int = 0
    groups_updated: int = 0
    groups_deleted: int = 0
    memberships: int = 0
    """Members put into groups or taken out of them."""
    skipped: int = 0
    failed: int = 0
    failed_references: int = 0
    escrowed: int = 0
    """Objects waiting for another attempt after the run."""
    quarantined: str = ""
    elapsed_s: float = 0.0
    entries: list[LogEntry] = msgspec.field(default_factory=list)

    @property
    def state(self) -> Literal["Succeeded", "Failed", "EntryLevelErrors"]:
        """The run's state as Graph shows it."""
        if self.quarantined or not self.ran:
            return "Failed"
        return "EntryLevelErrors" if self.failed or self.failed_references else "Succeeded"


_GROUP_COUNTER: dict[str, str] = {
    "Create": "groups_created",
    "Update": "groups_updated",
    "Delete": "groups_deleted",
    "Reference": "memberships",
}
_COUNTER: dict[str, str] = {
    "Create": "created",
    "Update": "updated",
    "Disable": "disabled",
    "Enable": "enabled",
    "Delete": "deleted",
    "Reference": "references",
}


# ------------------------------------------------------------------------------------------------- the wire


class Answer(msgspec.Struct, frozen=True):
    """What came back; `status` 0 and `error` say that nothing usable did."""

    status: int
    body: bytes
    error: str = ""
    detail: str = ""
    headers: dict[str, str] = {}
    """Of the request, but for Authorization."""
    credentials_refused: bool = False
    """Nothing was sent, because the token endpoint said no."""

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def document(self) -> JsonObject | None:
        """The JSON object in the body, or None."""
        try:
            decoded = msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return decoded if isinstance(decoded, dict) else None

    @property
    def is_scim_error(self) -> bool:
        """Whether the body is an error as RFC 7644 section 3.12 has it; `detail` is optional."""
        document = self.document()
        schemas = document.get("schemas") if document is not None else None
        return isinstance(schemas, list) and SCIM_ERROR in schemas


def error_code_of(answer: Answer, *, query: bool = False) -> str:
    """The provisioning log's error code for an answer. The service's full table is not public."""
    if answer.error:
        return answer.error
    if answer.status == 404:
        return SERVICE_INCOMPATIBLE if query else "InvalidAnchor"
    named = {
        401: "InvalidCredentials",
        403: "InsufficientRights",
        409: "EntryConflict",
        422: "UnprocessableEntity",
        429: "TooManyRequests",
        501: "NotImplemented",
    }
    if answer.status in named:
        return named[answer.status]
    return "InternalServerError" if answer.status >= 500 else SERVICE_INCOMPATIBLE


class _Failed(Exception):
    """Ends the work on one object; becomes a Failure in the log."""

    def __init__(self, error_code: str, message: str, answer: Answer | None = None) -> None:
        super().__init__(error_code)
        self.error_code = error_code
        self.message = message
        self.answer = answer or Answer(0, b"")
        self.reference = False


class TenantUrl(msgspec.Struct, frozen=True):
    """The address an admin pastes, taken apart: `https://host/scim?aadOptscim062020` chooses the dialect too."""

    base: str
    flagged: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Accepts a trailing slash.

        Raises:
            ValueError: no http or https address.
        """
        parts = urlsplit(text.strip())
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError("a tenant URL starts with http:// or https:// and names a host")
        return cls(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", FLAG.lower() in parts.query.lower())


class _Wire:
    """Sends requests the way the service does: no User-Agent, no Accept, no redirects."""

    def __init__(self, base: str, connections: int, timeout_s: float) -> None:
        self.base = base
        self._connections = connections
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def send(self, method: str, target: str, body: bytes | None, token: str) -> tuple[Answer, float]:
        """The answer, and the seconds until its last byte (or until giving up)."""
        headers = {} if body is None else {"Content-Type": "application/scim+json; charset=utf-8"}
        started = time.perf_counter()
        answer = await self._send(method, self.base + target, body, headers, f"Bearer {token}")
        return answer, time.perf_counter() - started

    async def ask_for_token(self, address: str, headers: dict[str, str], form: bytes) -> tuple[Answer, float]:
        """The token endpoint's answer to a form."""
        shown = {name: value for name, value in headers.items() if name != "Authorization"}
        started = time.perf_counter()
        answer = await self._send("POST", address, form, shown, headers.get("Authorization", ""))
        return answer, time.perf_counter() - started

    async def _send(
        self, method: str, address: str, body: bytes | None, headers: dict[str, str], authorization: str
    ) -> Answer:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections),
                timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=CONNECT_TIMEOUT_S),
                skip_auto_headers=("User-Agent", "Accept"),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        sent = {**headers, "Authorization": authorization} if authorization else headers
        url = URL(address, encoded=True)
        try:
            async with self._session.request(method, url, data=body, headers=sent, allow_redirects=False) as response:
                return Answer(response.status, await response.read(), headers=headers)
        except TimeoutError:
            return Answer(0, b"", "Timeout", headers=headers)
        except (aiohttp.ClientError, OSError) as refused:
            # Only the kind: texts of these errors may quote the address.
            return Answer(0, b"", "WebException", type(refused).__name__, headers)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


# ------------------------------------------------------------------------------------------------- the job


class ProvisioningJob:
    """One enterprise application's provisioning job: it keeps a target like the directory says.

    Use as an async context manager, or call `aclose`. Nothing runs by itself: call `initial_cycle`, then
    `incremental_cycle` as often as wanted, with a `ManualClock` in between if time matters.

    Args:
        tenant_url: the target's SCIM address; the compatibility flag in its query chooses the flagged dialect.
        token: the secret token, or another of the credentials an admin may enter. Never recorded.
        directory: the people and groups.
        mapping: what is sent where.
        dialect: form of PATCH; on-demand runs always use the legacy form.
        connections: objects worked on at the same time (undocumented at the service).
        clock: seconds since the epoch; decides escrow and quarantine times.
        seed: makes the probes' random values repeatable.
        request_timeout_s: when an answer counts as too slow.
        repeats_max: how often a request that was too slow is sent again within the run.
        escrow: when failed objects are tried again.
        deletion_threshold: more leavers than this in one run are held back; None switches the check off.
        skip_out_of_scope_deletions: do nothing for people who were merely unassigned.
        manager_shape: how references are written; all three were seen.
        provision_groups: whether groups are provisioned too (Mappings > Provision Groups > Enabled).
        members_per_patch: how many members one PATCH of a group carries at most.
        probe_groups: ask the groups endpoint in Test Connection too, as seen even for user-only applications.
        probe_by_id: ask for a random user and group by id as well, the older form of Test Connection.
        keep_alive_s: during a cycle the probe is sent this often; None for never.
        sync_all: the scope "Sync all users and groups": assignment does not count, and app roles are never sent.
        single_role: how a PATCH carries the role of `SingleAppRoleAssignment`; both were seen.
        on_exchange: is given every request with its answer, without credentials, as it ends.
    """

    def __init__(
        self,
        tenant_url: str,
        token: str | Credentials,
        directory: Directory,
        mapping: Mapping = DEFAULT,
        dialect: Dialect = "legacy",
        connections: int = 1,
        *,
        clock: Clock = time.time,
        seed: int = 1,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        repeats_max: int = REPEATS_MAX,
        escrow: EscrowPolicy | None = None,
        deletion_threshold: int | None = None,
        skip_out_of_scope_deletions: bool = False,
        manager_shape: ManagerShape = "string",
        provision_groups: bool = True,
        members_per_patch: int = MEMBERS_PER_PATCH,
        probe_groups: bool = True,
        probe_by_id: bool = False,
        keep_alive_s: float | None = KEEP_ALIVE_S,
        sync_all: bool = False,
        single_role: SingleRoleShape = "filtered",
        on_exchange: Callable[[Exchange], None] | None = None,
    ) -> None:
        address = TenantUrl.parse(tenant_url)
        self.directory = directory
        self.mapping = mapping
        self.dialect: Dialect = "flag" if address.flagged else dialect
        self.connections = connections
        self.links: dict[str, Link] = {}
        self.group_links: dict[str, GroupLink] = {}
        self.escrow: dict[str, Escrow] = {}
        self.quarantine: Quarantine | None = None
        self.watermark = -1
        self.log: list[LogEntry] = []
        self.exchanges: deque[Exchange] = deque(maxlen=EXCHANGES_MAX)
        self.latencies: dict[Operation, list[float]] = {}
        self.acknowledged: list[Acknowledged] = []
        self.unacknowledged: list[Acknowledged] = []
        """Writes that got no 2xx; those with status 0 may have been applied all the same."""
        self.final_wishes: dict[str, FinalWish] = {}
        self.final_groups: dict[str, FinalGroup] = {}
        self.notices: list[str] = []
        """The mails an admin got: one for every quarantine."""
        self.stopped = False
        self.clock = clock
        self._base = address.base
        self._wire = _Wire(address.base, connections, request_timeout_s)
        credentials = SecretToken(token) if isinstance(token, str) else token
        self.bearer = Bearer(credentials, self._ask_for_token, clock)
        self._chance = random.Random(seed)
        self._repeats_max = repeats_max
        self._policy = escrow or EscrowPolicy()
        self._deletion_threshold = deletion_threshold
        self._deletions_allowed = False
        self._skip_out_of_scope_deletions = skip_out_of_scope_deletions
        self._manager_shape: ManagerShape = manager_shape
        self._probe_groups = probe_groups
        self._probe_by_id = probe_by_id
        self._keep_alive_s = keep_alive_s
        self._probed_s = 0.0
        self._sync_all = sync_all
        self._single_role: SingleRoleShape = single_role
        self._on_exchange = on_exchange
        self._provision_groups = provision_groups
        self._members_per_patch = members_per_patch
        self._cycles = 0
        self._cycle = 0
        self._managers_held: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._wire.close()

    # --- what an admin can do

    async def test_connection(self) -> ConnectionTest:
        """Test Connection: a token first where one is bought, then both endpoints are asked for something that does not exist.

        200 with an empty list is right; asked by id, 404 with a SCIM error is.
        """
        self.bearer.forget()
        probes: list[tuple[Operation, str]] = [("probe_users", self._users_probe())]
        if self._probe_groups:
            probes.append(("probe_groups", self._groups_probe()))
        for operation, target in probes:
            failed = self._probe_verdict(await self._ask(operation, "", "GET", target))
            if failed is not None:
                return failed
        by_id: list[tuple[Operation, str]] = []
        if self._probe_by_id:
            by_id = [("probe_user_by_id", _by_id(self._random_guid()))]
            by_id += [("probe_group_by_id", _group_by_id(self._random_guid()))] if self._probe_groups else []
        for operation, target in by_id:
            answer = await self._ask(operation, "", "GET", target)
            if answer.status != 404 or not answer.is_scim_error:
                return self._refused(answer, "the answer for an unknown id is not 404 with a SCIM error")
        return ConnectionTest(ok=True, status_code=200)

    async def read_schemas(self) -> ConnectionTest:
        """What happens when the mapping page is saved: `GET /Schemas`, which must be a list without nulls."""
        answer = await self._ask("schemas", "", "GET", "/Schemas")
        document = answer.document()
        if answer.status != 200 or document is None or not isinstance(document.get("Resources"), list):
            return self._refused(answer, "the schemas could not be read")
        if _holds_null(document):
            return self._refused(answer, "the schemas contain null")
        return ConnectionTest(ok=True, status_code=200)

    async def discover_accounts(self, page: int = DISCOVERY_PAGE) -> list[JsonObject]:
        """Account discovery: all users of the target, listed page by page (RFC 7644 section 3.4.2.4).

        Raises:
            ValueError: an answer was no page, or its `startIndex` is not the one asked for.
        """
        found: list[JsonObject] = []
        while True:
            start = len(found) + 1
            answer = await self._ask("discover", "", "GET", f"/Users?startIndex={start}&count={page}")
            document = answer.document() or {}
            resources = _found(answer)
            if resources is None or document.get("startIndex") != start:
                raise ValueError(f"the answer for startIndex {start} is no page of it")
            found += resources
            if not resources or len(found) >= document.get("totalResults", 0):
                return found

    def change_mapping(self, mapping: Mapping) -> None:
        """Save another mapping: the next cycle is an initial one; links are kept."""
        self.mapping = mapping
        self.watermark = -1

    def stop(self) -> None:
        """Stop provisioning: a running cycle is finished, and none begins until `start`."""
        self.stopped = True

    def start(self) -> None:
        """Start provisioning again, from where it stopped."""
        self.stopped = False

    @property
    def disabled(self) -> bool:
        """Four weeks in quarantine end the job, until it is restarted."""
        standing = self.quarantine
        return standing is not None and self.clock() - standing.since_s >= QUARANTINE_DISABLES_AFTER_S

    def restart(self, *, full: bool = False) -> None:
        """Restart provisioning: the next cycle is an initial one, escrow and quarantine are cleared, memberships are sent again.

        Args:
            full: forget the links too (Graph's `resetScope: Full`).
        """
        self.watermark = -1
        self.escrow.clear()
        self.quarantine = None
        for link in self.group_links.values():
            link.resend = True
        if full:
            self.links.clear()
            self.group_links.clear()

    def delete_connection(self, who: Person | str) -> None:
        """Forget the link of one person, which is the remedy for `InvalidAnchor`."""
        self.links.pop(self.directory[who].object_id, None)

    def allow_deletions(self) -> None:
        """Approve the leavers that were held back; the next cycle sends them."""
        self._deletions_allowed = True
        if self.quarantine is not None and self.quarantine.reason == "TooManyDeletes":
            self.quarantine = None

    async def initial_cycle(self, on_progress: Progress | None = None) -> CycleReport:
        """Go through everybody: match, create or link, send differences; then groups, then references and memberships.

        Args:
            on_progress: called with (done, total) after every object.
        """
        return await self._run("initial", on_progress)

    async def incremental_cycle(self, on_progress: Progress | None = None) -> CycleReport:
        """Go through what changed since the last cycle, and through escrow that is due.

        The first call makes an initial cycle. In quarantine nothing runs until a day has passed.
        """
        return await self._run("initial" if self.watermark < 0 else "incremental", on_progress)

    async def provision_on_demand(self, who: Person | str) -> LogEntry:
        """One person at once: probe, match query, POST or PATCH, as recorded; no read by id, no roles, no references.

        Always the legacy dialect. People who are disabled or deleted in the directory are skipped.
        """
        person = self._person(who.object_id if isinstance(who, Person) else who)
        self._cycle = 0
        try:
            probe = await self._ask("probe_users", "", "GET", self._users_probe())
            failed = self._probe_verdict(probe)
            if failed is not None:
                raise _Failed(failed.error_code, failed.message, probe)
            if person.is_soft_deleted:
                return self._note(person, "Other", "Skipped", message="disabled or deleted in the directory")
            resource = await self._match(person)
            values = self.mapping.values(person, creating=resource is None, roles=False)
            if resource is None:
                return await self._create(person, values, "legacy")
            link = self._link(person, resource)
            return await self._update(person, link, differences(values, resource), "legacy")
        except _Failed as failure:
            return self._fail(person, failure)

    # --- cycles

    async def _run(self, kind: Literal["initial", "incremental"], on_progress: Progress | None) -> CycleReport:
        started = time.perf_counter()
        self._cycles += 1
        self._cycle = self._cycles
        report = CycleReport(kind, self._cycle)
        standing = self.quarantine
        if self.stopped or not await self._may_run():
            report.ran = False
            return self._close_report(report, len(self.log), started)
        first_entry = len(self.log)
        self._probed_s = self.clock()
        self._managers_held.clear()
        upto = self.directory.sequence
        object_ids = self._due(kind)
        done = itertools.count(1)

        async def provision(object_id: str) -> None:
            await self._provision(self._person(object_id), initial=kind == "initial")
            if on_progress is not None:
                on_progress(next(done), len(object_ids))

        if not self._too_many_leavers(object_ids):
            # The order of the service: users, groups, references.
            groups = self._due_groups(kind)
            await self._in_lanes(object_ids, provision)
            await self._in_lanes(groups, partial(self._provision_group, initial=kind == "initial"))
            await self._in_lanes(object_ids, self._refer)
            await self._in_lanes(self._with_resolved(groups), self._fill_group)
        if self.quarantine is None:
            self.watermark = upto
            self._check_failure_rate(self.log[first_entry:])
            self._deletions_allowed = False
        if standing is not None:
            self._judge_trial(standing, self.log[first_entry:])
        return self._close_report(report, first_entry, started)

    def _judge_trial(self, standing: Quarantine, entries: Sequence[LogEntry]) -> None:
        """The run of a job in quarantine: one success lifts it; failures alone prolong it, and nobody is told again."""
        succeeded = any(entry.status == "Success" for entry in entries)
        failed = any(entry.status == "Failure" for entry in entries)
        if succeeded or (self.quarantine is None and not failed):
            return
        reason, message = standing.reason, standing.message
        if self.quarantine is not None:
            reason, message = self.quarantine.reason, self.quarantine.message
            self.notices.pop()
        self.quarantine = Quarantine(reason, message, standing.since_s, self.clock() + QUARANTINE_INTERVAL_S)

    async def _may_run(self) -> bool:
        """In quarantine: only when due, and only when the probe says that the cause is gone."""
        standing = self.quarantine
        if standing is None:
            return True
        now = self.clock()
        if standing.reason == "TooManyDeletes" or now < standing.next_run_s:
            return False
        if self.disabled:
            return False
        test = await self.test_connection()
        if not test.ok:
            self.quarantine = msgspec.structs.replace(standing, next_run_s=now + QUARANTINE_INTERVAL_S)
            return False
        self.quarantine = None
        return True

    def _due(self, kind: Literal["initial", "incremental"]) -> list[str]:
        if kind == "initial":
            return [object_id for object_id in self.directory.people if self._concerns(self._person(object_id))]
        now = self.clock()
        for object_id, waiting in list(self.escrow.items()):
            if now - waiting.first_failed_s >= self._policy.give_up_after_s:
                del self.escrow[object_id]
                what = self.directory.people.get(object_id) or self.directory.groups[object_id]
                self._note(what, "Other", "Skipped", message="dropped from escrow")
        retried = [object_id for object_id in self._retried() if object_id in self.directory.people]
        return list(dict.fromkeys([*self.directory.changed_since(self.watermark), *retried]))

    def _retried(self) -> list[str]:
        now = self.clock()
        return [object_id for object_id, waiting in self.escrow.items() if waiting.next_try_s <= now]

    def _due_groups(self, kind: Literal["initial", "incremental"]) -> list[str]:
        groups = self.directory.groups
        if not self._provision_groups:
            return []
        if kind == "initial":
            there = self.group_links
            return [object_id for object_id, group in groups.items() if self._has(group) or object_id in there]
        retried = [object_id for object_id in self._retried() if object_id in groups]
        return list(dict.fromkeys([*self.directory.groups_changed_since(self.watermark), *retried]))

    def _with_resolved(self, groups: Sequence[str]) -> list[str]:
        """These groups, and others one of whose members has come to the target meanwhile (undocumented)."""
        there = self.links.keys() | self.group_links.keys()
        waiting = [object_id for object_id, link in self.group_links.items() if link.unresolved & there]
        return list(dict.fromkeys([*groups, *(waiting if self._provision_groups else ())]))

    def _concerns(self, person: Person) -> bool:
        return person.in_scope or person.object_id in self.links

    def _person(self, object_id: str) -> Person:
        """The person as the job sees them: with "Sync all users and groups" everybody counts as assigned."""
        person = self.directory[object_id]
        if self._sync_all and not person.assigned:
            return msgspec.structs.replace(person, assigned=True)
        return person

    def _has(self, group: Group) -> bool:
        """Whether the group is in scope."""
        return group.in_scope or (self._sync_all and not group.deleted)

    def _values(self, person: Person, *, creating: bool = False) -> dict[str, Value]:
        return self.mapping.values(person, creating=creating, roles=not self._sync_all)

    def _changes(self, person: Person, resource: JsonObject) -> list[Change]:
        """The differences that a cycle sends for a person."""
        single = person.roles[0] if self._single_role == "published" and person.roles else None
        return differences(self._values(person), resource, single)

    async def _keep_alive(self) -> None:
        """Send the probe again in a long cycle; credentials or an endpoint that are gone stop the job."""
        if self._keep_alive_s is None or self.clock() - self._probed_s < self._keep_alive_s:
            return
        self._probed_s = self.clock()
        answer = await self._ask("probe_users", "", "GET", self._users_probe())
        if self._probe_verdict(answer) is not None:
            self._trouble(answer, query=True)

    async def _in_lanes(self, object_ids: Sequence[str], work: Callable[[str], Awaitable[None]]) -> None:
        """Work through the objects, `connections` at a time; a quarantine stops every lane after its object."""
        waiting = iter(object_ids)

        async def lane() -> None:
            for object_id in waiting:
                if self.quarantine is None:
                    await self._keep_alive()
                if self.quarantine is not None:
                    return
                await work(object_id)

        async with asyncio.TaskGroup() as lanes:
            for _ in range(self.connections):
                lanes.create_task(lane())

    def _too_many_leavers(self, object_ids: Sequence[str]) -> bool:
        if self._deletion_threshold is None or self._deletions_allowed:
            return False
        leavers = 0
        for object_id in object_ids:
            link = self.links.get(object_id)
            if link is None or not link.managed:
                continue
            person = self._person(object_id)
            leavers += person.hard_deleted or (not person.in_scope and link.active)
        if leavers > self._deletion_threshold:
            self._stand_still("TooManyDeletes", f"{leavers} leavers, allowed are {self._deletion_threshold}")
            return True
        return False

    def _check_failure_rate(self, entries: Sequence[LogEntry]) -> None:
        """The documented thresholds; references count towards the absolute one only."""
        every = sum(entry.status == "Failure" for entry in entries)
        failures = sum(entry.status == "Failure" and entry.action != "Reference" for entry in entries)
        if every < QUARANTINE_FAILURES_MIN:
            return
        if (
            failures / len(entries) > QUARANTINE_FAILURE_SHARE
            or failures > QUARANTINE_FAILURES_MAX
            or every >= QUARANTINE_FAILURES_ABSOLUTE
        ):
            self._stand_still("EncounteredEscrowProportionThreshold", f"{every} objects failed")

    def _stand_still(self, reason: str, message: str) -> None:
        now = self.clock()
        if self.quarantine is None:
            self.notices.append(f"The job is in quarantine: {reason} ({message})")
        since = self.quarantine.since_s if self.quarantine is not None else now
        self.quarantine = Quarantine(reason, message, since, now + QUARANTINE_INTERVAL_S)

    def _close_report(self, report: CycleReport, first_entry: int, started: float) -> CycleReport:
        report.entries = self.log[first_entry:]
        for entry in report.entries:
            if entry.status == "Success" and entry.kind == "group":
                counter = _GROUP_COUNTER[entry.action]
                by = len(entry.modified) if counter == "memberships" else 1
                setattr(report, counter, getattr(report, counter) + by)
            elif entry.status == "Success":
                counter = _COUNTER[entry.action]
                setattr(report, counter, getattr(report, counter) + 1)
            elif entry.status == "Skipped":
                report.skipped += 1
            elif entry.action == "Reference":
                report.failed_references += 1
            else:
                report.failed += 1
        report.escrowed = len(self.escrow)
        report.quarantined = self.quarantine.reason if self.quarantine is not None else ""
        report.elapsed_s = time.perf_counter() - started
        return report

    # --- one object

    async def _provision(self, person: Person, *, initial: bool) -> None:
        try:
            await self._bring_about(person, initial=initial)
        except _Failed as failure:
            self._fail(person, failure)
        else:
            waiting = self.escrow.get(person.object_id)
            if waiting is not None and not waiting.reference:
                del self.escrow[person.object_id]

    async def _bring_about(self, person: Person, *, initial: bool) -> LogEntry:
        link = self.links.get(person.object_id)
        if link is None:
            return await self._first_time(person)
        if person.hard_deleted:
            if link.managed:
                return await self._delete(person, link)
            return self._note(person, "Other", "Skipped", link.target_id, message="not managed since it left the scope")
        if not person.in_scope or (person.is_soft_deleted and not self.mapping.has_active):
            return await self._leave(person, link)
        if not link.managed or (not link.active and not person.is_soft_deleted):
            return await self._come_back(person, link)
        resource = await self._read(person, link)
        if resource is None and initial:  # a restart finds lost objects again, or creates them
            del self.links[person.object_id]
            return await self._first_time(person)
        return await self._compare(person, link, resource)

    async def _first_time(self, person: Person) -> LogEntry:
        """Nothing known about this person yet."""
        if not person.in_scope:
            return self._note(person, "Other", "Skipped", message="out of scope and never provisioned")
        resource = await self._match(person)
        if resource is not None:
            return await self._compare(person, self._link(person, resource), resource)
        if person.is_soft_deleted:
            return self._note(person, "Other", "Skipped", message="disabled and never provisioned")
        return await self._create(person, self._values(person, creating=True), self.dialect)

    async def _leave(self, person: Person, link: Link) -> LogEntry:
        """Unassigned or deleted: switch off, or delete where nothing can be switched off."""
        unassigned = not person.assigned
        if not link.managed or (unassigned and self._skip_out_of_scope_deletions):
            link.managed = link.managed and not unassigned
            return self._note(person, "Other", "Skipped", link.target_id, message="out of scope")
        if not self.mapping.has_active:
            return await self._delete(person, link)
        resource = await self._read(person, link)
        if resource is None:
            raise self._lost()
        changes = differences({"active": "False"}, resource)
        entry = await self._update(person, link, changes, self.dialect)
        link.active = False
        link.managed = not unassigned
        return entry

    async def _come_back(self, person: Person, link: Link) -> LogEntry:
        """Restored, enabled or assigned again: match first, then the remembered id, then create."""
        resource = await self._match(person)
        if resource is not None:
            return await self._compare(person, self._link(person, resource), resource)
        resource = await self._read(person, link)  # undocumented: the name changed while the person was away
        if resource is None:
            del self.links[person.object_id]
            return await self._first_time(person)
        link.managed = True
        return await self._compare(person, link, resource)

    async def _compare(self, person: Person, link: Link, resource: JsonObject | None) -> LogEntry:
        if resource is None:
            raise self._lost()
        reference = self.mapping.reference
        if reference is not None:
            self._managers_held[person.object_id] = _manager_of(resource, reference.path)
        entry = await self._update(person, link, self._changes(person, resource), self.dialect)
        # What was not sent because the target already showed it counts as acknowledged: nobody asks for it again.
        self._wish(person, link).values.update(self._values(person))
        return entry

    async def _match(self, person: Person) -> JsonObject | None:
        """Ask by each matching attribute in turn and stop at the first hit."""
        asked = False
        for row in self.mapping.matching:
            value = evaluate(parse_expression(row.source), person)
            if value is None:
                continue
            asked = True
            target = f"/Users?{filter_query(row.path, value)}"
            resource = self._single(await self._ask(_match_name, person.object_id, "GET", target))
            if resource is not None:
                return resource
        if not asked:
            raise _Failed("MissingValues", "no matching attribute has a value")
        return None

    def _single(self, answer: Answer) -> JsonObject | None:
        """The one object a query found, or None."""
        found = _found(answer)
        if found is None:
            raise self._trouble(answer, "the answer to the query is no list", query=True)
        if len(found) > 1:
            raise _Failed("DuplicateTargetEntries", f"{len(found)} objects match", answer)
        if not found:
            return None
        if not isinstance(found[0], dict) or not isinstance(found[0].get("id"), str):
            raise _Failed(SERVICE_INCOMPATIBLE, "the object found has no id", answer)
        return found[0]

    async def _read(self, person: Person, link: Link) -> JsonObject | None:
        """The object by its remembered id; None when the target answers 404."""
        answer = await self._ask("read", person.object_id, "GET", _by_id(link.target_id))
        if self._is_gone(answer):
            return None
        document = answer.document()
        if answer.status != 200 or document is None:
            raise self._trouble(answer)
        return document

    def _is_gone(self, answer: Answer) -> bool:
        """404 by id says so, when the answer is a SCIM error; anything else that says 404 is no SCIM server.

        Raises:
            _Failed: the answer is not a SCIM error.
        """
        if answer.status != 404:
            return False
        if not answer.is_scim_error:
            raise _Failed(SERVICE_INCOMPATIBLE, "the 404 is no SCIM error", answer)
        return True

    async def _create(self, person: Person, values: dict[str, Value], dialect: Dialect) -> LogEntry:
        wished = self.mapping.document(values, dialect)
        answer = await self._ask("create", person.object_id, "POST", "/Users", wished)
        document = answer.document() or {}
        target_id = document.get("id")
        good = answer.status in (200, 201) and isinstance(target_id, str) and target_id != ""
        self._journal(good, person, "create", wished, target_id if isinstance(target_id, str) else "", answer)
        if not good:
            raise self._trouble(answer, "the answer to the creation has no id")
        assert isinstance(target_id, str)
        self.links[person.object_id] = Link(target_id, active=True)
        self._managers_held[person.object_id] = ""
        self.final_wishes[person.object_id] = FinalWish(target_id, dict(values))
        modified = tuple((path, None, value) for path, value in values.items())
        return self._note(person, "Create", "Success", target_id, answer, modified=modified)

    async def _update(self, person: Person, link: Link, changes: Sequence[Change], dialect: Dialect) -> LogEntry:
        if not changes:
            link.active = not person.is_soft_deleted
            return self._note(person, "Other", "Skipped", link.target_id, message="EntrySynchronizationSkipped")
        switched = next((change.value for change in changes if change.path == "active"), None)
        operation: Operation = "update"
        if switched is not None:
            operation = "enable" if as_boolean(str(switched)) else "disable"
        action: Action = "Update" if switched is None else ("Enable" if operation == "enable" else "Disable")
        answer = await self._patch(person, link, operation, patch_body(changes, dialect))
        link.active = not person.is_soft_deleted
        wish = self._wish(person, link)
        wish.values.update((change.path, change.value) for change in changes)
        modified = tuple((change.path, change.before, change.value) for change in changes)
        return self._note(person, action, "Success", link.target_id, answer, modified=modified)

    async def _delete(self, person: Person, link: Link) -> LogEntry:
        answer = await self._ask("delete", person.object_id, "DELETE", _by_id(link.target_id))
        good = answer.status in (200, 204, 404)  # 404: nothing is left to delete (undocumented)
        self._journal(good, person, "delete", None, link.target_id, answer)
        if not good:
            raise self._trouble(answer)
        self.links.pop(person.object_id, None)
        self._wish(person, link).deleted = True
        return self._note(person, "Delete", "Success", link.target_id, answer)

    async def _patch(self, person: Person, link: Link, operation: Operation, wished: JsonObject) -> Answer:
        answer = await self._ask(operation, person.object_id, "PATCH", _by_id(link.target_id), wished)
        good = answer.status in (200, 204)
        self._journal(good, person, operation, wished, link.target_id, answer)
        if not good:
            raise self._trouble(answer)
        return answer

    async def _refer(self, object_id: str) -> None:
        """Write the manager, if both sides exist and the target holds another one."""
        person = self._person(object_id)
        try:
            await self._set_manager(person)
        except _Failed as failure:
            failure.reference = True
            self._fail(person, failure)
        else:
            waiting = self.escrow.get(object_id)
            if waiting is not None and waiting.reference:
                del self.escrow[object_id]

    async def _set_manager(self, person: Person) -> None:
        row = self.mapping.reference
        link = self.links.get(person.object_id)
        before = self._managers_held.get(person.object_id)
        if row is None or link is None or before is None or person.is_soft_deleted:
            return
        wanted = ""
        manager = self._person(person.manager) if person.manager in self.directory.people else None
        if manager is not None:
            manager_link = self.links.get(manager.object_id)
            if manager_link is None:
                if not manager.in_scope:  # documented: not made good later, until a restart
                    return
                raise _Failed("UnresolvedReference", "the manager has not been provisioned")
            wanted = manager_link.target_id
        if wanted == before:
            return
        answer = await self._patch(person, link, "reference", self._reference_body(row.path, wanted, before))
        self._wish(person, link).values[row.path] = wanted
        modified = ((row.path, before or None, wanted),)
        self._note(person, "Reference", "Success", link.target_id, answer, modified=modified)

    def _reference_body(self, path: str, wanted: str, before: str) -> JsonObject:
        value: Any = wanted
        if self._manager_shape == "object" or (self._manager_shape == "reference" and not wanted):
            value = {"value": wanted}
        elif self._manager_shape == "reference":
            path = "manager"
            value = [{"$ref": f"{self._base}/Users/{quote(wanted, safe='')}", "value": wanted}]
        if self.dialect == "flag" and self._manager_shape != "reference":
            return {"schemas": [PATCH_OP], "Operations": [{"op": "replace", "value": {path: value}}]}
        op = "Replace" if before else "Add"
        operation = {"op": op.lower() if self.dialect == "flag" else op, "path": path, "value": value}
        return {"schemas": [PATCH_OP], "Operations": [operation]}

    # --- groups

    async def provision_group_on_demand(
        self, which: Group | str, members: Sequence[Person | str] = ()
    ) -> list[LogEntry]:
        """One group at once with a few of its members: probe, match query, POST or PATCH, then the members chosen.

        Members that are not known at the target yet are provisioned first (undocumented). Always the legacy dialect.

        Raises:
            ValueError: more than MEMBERS_ON_DEMAND_MAX members, or somebody who is not in the group.
        """
        group = self.directory.group(which)
        chosen = list(dict.fromkeys(map(_object_id, members)))
        if len(chosen) > MEMBERS_ON_DEMAND_MAX:
            raise ValueError(f"at most {MEMBERS_ON_DEMAND_MAX} members can be chosen on demand")
        if strangers := [member for member in chosen if member not in group.members]:
            raise ValueError(f"not in the group: {', '.join(strangers)}")
        entries = [await self.provision_on_demand(member) for member in chosen if member not in self.links]
        self._cycle = 0
        try:
            probe = await self._ask("probe_groups", "", "GET", self._groups_probe())
            failed = self._probe_verdict(probe)
            if failed is not None:
                raise _Failed(failed.error_code, failed.message, probe)
            if not self._has(group):
                return [*entries, self._note(group, "Other", "Skipped", message="deleted or not assigned")]
            resource = await self._match_group(group)
            known = self.group_links.get(group.object_id)
            if resource is None and known is not None:  # undocumented: it was renamed since, the id is remembered
                resource = await self._read_group(group, known)
            if resource is None:
                entries.append(await self._create_group(group))
            else:
                link = self.group_links.setdefault(group.object_id, GroupLink(resource["id"]))
                entries.append(await self._update_group(group, link, resource, "legacy"))
            link = self.group_links[group.object_id]
            add = {member: self.links[member].target_id for member in chosen if member in self.links}
            if add:
                entries.append(await self._send_members(group, link, add, {}, "legacy"))
        except _Failed as failure:
            entries.append(self._fail_group(group, failure))
        return entries

    async def _provision_group(self, object_id: str, *, initial: bool) -> None:
        group = self.directory.groups[object_id]
        try:
            await self._bring_group_about(group, initial=initial)
        except _Failed as failure:
            self._fail_group(group, failure)
        else:
            waiting = self.escrow.get(object_id)
            if waiting is not None and not waiting.reference:
                del self.escrow[object_id]

    async def _bring_group_about(self, group: Group, *, initial: bool) -> LogEntry:
        link = self.group_links.get(group.object_id)
        if not self._has(group):
            if link is None:
                return self._note(group, "Other", "Skipped", message="out of scope and never provisioned")
            return await self._delete_group(group, link)
        if link is not None:
            held = await self._read_group(group, link)
            if held is not None:
                return await self._update_group(group, link, held, self.dialect)
            if not initial:
                raise self._lost()
            del self.group_links[group.object_id]  # a restart finds lost groups again, or creates them
        resource = await self._match_group(group)
        if resource is None:
            return await self._create_group(group)
        link = self.group_links[group.object_id] = GroupLink(resource["id"])
        return await self._update_group(group, link, resource, self.dialect)

    async def _read_group(self, group: Group, link: GroupLink) -> JsonObject | None:
        """The group by its remembered id, without members; None when the target answers 404."""
        answer = await self._ask("read_group", group.object_id, "GET", _group_by_id(link.target_id, WITHOUT_MEMBERS))
        if self._is_gone(answer):
            return None
        document = answer.document()
        if answer.status != 200 or document is None:
            raise self._trouble(answer)
        return document

    async def _match_group(self, group: Group) -> JsonObject | None:
        query = filter_query("displayName", group.display_name)
        answer = await self._ask("match_group", group.object_id, "GET", f"/Groups?{WITHOUT_MEMBERS}&{query}")
        return self._single(answer)

    async def _create_group(self, group: Group) -> LogEntry:
        wished = group_document(group)
        answer = await self._ask("create_group", group.object_id, "POST", "/Groups", wished)
        target_id = (answer.document() or {}).get("id")
        good = answer.status in (200, 201) and isinstance(target_id, str) and target_id != ""
        self._journal(good, group, "create_group", wished, target_id if isinstance(target_id, str) else "", answer)
        if not good:
            raise self._trouble(answer, "the answer to the creation has no id")
        assert isinstance(target_id, str)
        self.group_links[group.object_id] = GroupLink(target_id)
        self.final_groups[group.object_id] = FinalGroup(target_id, group.display_name)
        modified = (("displayName", None, group.display_name), ("externalId", None, group.object_id))
        return self._note(group, "Create", "Success", target_id, answer, modified=modified)

    async def _update_group(self, group: Group, link: GroupLink, resource: JsonObject, dialect: Dialect) -> LogEntry:
        wish = self._group_wish(group, link)
        changes = differences({"displayName": group.display_name, "externalId": group.object_id}, resource)
        if not changes:
            wish.display_name = group.display_name
            return self._note(group, "Other", "Skipped", link.target_id, message="EntrySynchronizationSkipped")
        answer = await self._patch_group(group, link, "update_group", patch_body(changes, dialect))
        wish.display_name = group.display_name
        modified = tuple((change.path, change.before, change.value) for change in changes)
        return self._note(group, "Update", "Success", link.target_id, answer, modified=modified)

    async def _delete_group(self, group: Group, link: GroupLink) -> LogEntry:
        answer = await self._ask("delete_group", group.object_id, "DELETE", _group_by_id(link.target_id))
        good = answer.status in (200, 204, 404)  # 404: nothing is left to delete (undocumented)
        self._journal(good, group, "delete_group", None, link.target_id, answer)
        if not good:
            raise self._trouble(answer)
        del self.group_links[group.object_id]
        wish = self._group_wish(group, link)
        wish.deleted = True
        wish.members.clear()
        return self._note(group, "Delete", "Success", link.target_id, answer)

    async def _fill_group(self, object_id: str) -> None:
        """Send the differences between the members of the directory and those sent so far, in pieces."""
        group, link = self.directory.groups[object_id], self.group_links.get(object_id)
        if link is None or not self._has(group):
            return
        add: dict[str, str] = {}
        link.unresolved.clear()
        for member in group.members:
            at_target = self.links.get(member) or self.group_links.get(member)
            if at_target is None:
                link.unresolved.add(member)
            elif link.resend or link.members.get(member) != at_target.target_id:
                add[member] = at_target.target_id
        remove: dict[str, str] = {}
        for member, target_id in list(link.members.items()):
            if member not in self.links and member not in self.group_links:
                del link.members[member]  # deleted at the target, and gone from its groups with that
                self._group_wish(group, link).members.discard(target_id)
            elif member not in group.members:
                remove[member] = target_id
        try:
            steps = [(member, True) for member in add] + [(member, False) for member in remove]
            for start in range(0, len(steps), self._members_per_patch):
                piece = steps[start : start + self._members_per_patch]
                await self._send_members(
                    group,
                    link,
                    {member: add[member] for member, adding in piece if adding},
                    {member: remove[member] for member, adding in piece if not adding},
                    self.dialect,
                )
        except _Failed as failure:
            failure.reference = True
            self._fail_group(group, failure)
        else:
            link.resend = False
            waiting = self.escrow.get(object_id)
            if waiting is not None and waiting.reference:
                del self.escrow[object_id]

    async def _send_members(
        self, group: Group, link: GroupLink, add: dict[str, str], remove: dict[str, str], dialect: Dialect
    ) -> LogEntry:
        body = members_body(list(add.values()), list(remove.values()), dialect)
        answer = await self._patch_group(group, link, "members", body)
        link.members |= add
        for member in remove:
            link.members.pop(member, None)
        wish = self._group_wish(group, link)
        wish.members |= set(add.values())
        wish.members -= set(remove.values())
        modified: list[tuple[str, Any, Any]] = [("members", None, target_id) for target_id in add.values()]
        modified += [("members", target_id, None) for target_id in remove.values()]
        return self._note(group, "Reference", "Success", link.target_id, answer, modified=tuple(modified))

    async def _patch_group(self, group: Group, link: GroupLink, operation: Operation, wished: JsonObject) -> Answer:
        answer = await self._ask(operation, group.object_id, "PATCH", _group_by_id(link.target_id), wished)
        good = answer.status in (200, 204)
        self._journal(good, group, operation, wished, link.target_id, answer)
        if not good:
            raise self._trouble(answer)
        return answer

    def _group_wish(self, group: Group, link: GroupLink) -> FinalGroup:
        wish = self.final_groups.get(group.object_id)
        if wish is None or wish.target_id != link.target_id:
            wish = self.final_groups[group.object_id] = FinalGroup(link.target_id, group.display_name)
        return wish

    def _fail_group(self, group: Group, failure: _Failed) -> LogEntry:
        self._put_in_escrow(group.object_id, failure)
        link = self.group_links.get(group.object_id)
        action: Action = "Reference" if failure.reference else "Update"
        if not failure.reference and (link is None or not self._has(group)):
            action = "Create" if link is None else "Delete"
        return self._note(
            group,
            action,
            "Failure",
            link.target_id if link is not None else "",
            failure.answer,
            error_code=failure.error_code,
            message=failure.message,
        )

    # --- bookkeeping

    def _link(self, person: Person, resource: JsonObject) -> Link:
        link = Link(resource["id"], active=not same(held(resource, "active"), "False"))
        self.links[person.object_id] = link
        return link

    def _wish(self, person: Person, link: Link) -> FinalWish:
        wish = self.final_wishes.setdefault(person.object_id, FinalWish(link.target_id, {}))
        wish.target_id = link.target_id
        return wish

    def _lost(self) -> _Failed:
        return _Failed("InvalidAnchor", "the object is gone at the target", Answer(404, b""))

    def _users_probe(self) -> str:
        """Recorded: the matching attribute eq a random GUID, no paging parameters."""
        return f"/Users?{filter_query(self.mapping.matching[0].path, self._random_guid())}"

    def _groups_probe(self) -> str:
        return f"/Groups?{WITHOUT_MEMBERS}&{filter_query('displayName', self._random_guid())}"

    def _trouble(self, answer: Answer, otherwise: str = "", *, query: bool = False) -> _Failed:
        """Turn an unusable answer into a failure; wrong credentials and a missing endpoint stop the job."""
        code = error_code_of(answer, query=query)
        message = f"StatusCode: {answer.status}" if answer.status else answer.detail or code
        if otherwise and 200 <= answer.status < 300:
            message = otherwise
        if answer.status == 401 or answer.credentials_refused or (query and answer.status == 404):
            self._stand_still("EncounteredQuarantineException", code)
        return _Failed(code, message, answer)

    def _probe_verdict(self, answer: Answer) -> ConnectionTest | None:
        """None when the probe's answer is right."""
        document = answer.document() or {}
        listed = isinstance(document.get("schemas"), list) and LIST_RESPONSE in document["schemas"]
        if answer.status == 200 and listed and document.get("totalResults") == 0 and _found(answer) == []:
            return None
        if answer.status in (401, 403, 404):
            message = "the credentials or the address are wrong"
            if answer.status == 404:  # recorded: the one code wraps the other
                message += f": {SERVICE_INCOMPATIBLE}"
            return self._refused(answer, message, code="InvalidCredentials")
        return self._refused(answer, "the answer is not an empty list")

    def _refused(self, answer: Answer, message: str, code: str = "") -> ConnectionTest:
        code = code or error_code_of(answer, query=True)
        if answer.error:
            message = answer.detail or answer.error
        return ConnectionTest(False, answer.status, code, message, answer.text)

    def _put_in_escrow(self, object_id: str, failure: _Failed) -> None:
        now = self.clock()
        waiting = self.escrow.get(object_id)
        if waiting is None:
            waiting = Escrow(now, 0, now, failure.error_code)
            self.escrow[object_id] = waiting
        waiting.attempts += 1
        waiting.error_code = failure.error_code
        waiting.reference = failure.reference
        steps = self._policy.steps_s
        if waiting.attempts <= len(steps):
            waiting.next_try_s = waiting.first_failed_s + steps[waiting.attempts - 1]
        else:
            waiting.next_try_s = now + self._policy.then_every_s

    def _fail(self, person: Person, failure: _Failed) -> LogEntry:
        self._put_in_escrow(person.object_id, failure)
        link = self.links.get(person.object_id)
        return self._note(
            person,
            _aim(person, link, failure),
            "Failure",
            link.target_id if link is not None else "",
            failure.answer,
            error_code=failure.error_code,
            message=failure.message,
        )

    def _note(
        self,
        what: Person | Group,
        action: Action,
        status: Status,
        target_id: str = "",
        answer: Answer | None = None,
        *,
        error_code: str = "",
        message: str = "",
        modified: tuple[tuple[str, Any, Any], ...] = (),
    ) -> LogEntry:
        entry = LogEntry(
            time_s=self.clock(),
            cycle=self._cycle,
            object_id=what.object_id,
            source_name=what.display_name if isinstance(what, Group) else what.user_principal_name,
            target_id=target_id,
            action=action,
            status=status,
            status_code=answer.status if answer is not None else 0,
            error_code=error_code,
            message=message,
            response_body=answer.text if answer is not None and status == "Failure" else "",
            modified=modified,
            kind="group" if isinstance(what, Group) else "user",
        )
        self.log.append(entry)
        return entry

    def _journal(
        self,
        good: bool,
        what: Person | Group,
        operation: Operation,
        wished: JsonObject | None,
        target_id: str,
        answer: Answer,
    ) -> None:
        book = self.acknowledged if good else self.unacknowledged
        book.append(Acknowledged(what.object_id, operation, wished, target_id, self.clock(), answer.status))

    async def _ask(
        self,
        operation: Operation | Callable[[Answer], Operation],
        object_id: str,
        method: str,
        target: str,
        wished: JsonObject | None = None,
    ) -> Answer:
        """Send one request, again when it was too slow, and record every attempt.

        Args:
            operation: its name, or what finds the name in the answer.
        """
        body = None if wished is None else msgspec.json.encode(wished)
        repeats_left, renewals_left = self._repeats_max, 1
        while True:
            time_s = self.clock()
            try:
                token = await self.bearer.current()
            except SignInFailed as failed:
                return _without_token(failed)
            answer, elapsed_s = await self._wire.send(method, target, body, token)
            name = operation(answer) if callable(operation) else operation
            path = urlsplit(self._base).path + target
            self._record(time_s, name, object_id, method, path, body, answer, elapsed_s)
            if answer.status == 401 and renewals_left:
                renewals_left -= 1
                try:
                    if await self.bearer.renewed(token) is not None:
                        continue
                except SignInFailed as failed:
                    return _without_token(failed)
            if answer.error != "Timeout" or not repeats_left:
                return answer
            repeats_left -= 1
            if method != "GET":
                self.unacknowledged.append(Acknowledged(object_id, name, wished, "", time_s, 0))

    async def _ask_for_token(self, address: str, headers: dict[str, str], form: bytes) -> TokenAnswer:
        time_s = self.clock()
        answer, elapsed_s = await self._wire.ask_for_token(address, headers, form)
        token = _token_in(answer)  # it is not known to the bearer yet, and must not be in the record
        shown = msgspec.structs.replace(answer, body=answer.body.replace(token, b"***")) if token else answer
        self._record(time_s, "token", "", "POST", urlsplit(address).path, form, shown, elapsed_s)
        return TokenAnswer(answer.status, answer.body, answer.error or answer.detail)

    def _record(
        self,
        time_s: float,
        operation: Operation,
        object_id: str,
        method: str,
        target: str,
        body: bytes | None,
        answer: Answer,
        elapsed_s: float,
    ) -> None:
        self.latencies.setdefault(operation, []).append(elapsed_s)
        exchange = Exchange(
            time_s,
            operation,
            object_id,
            method,
            target,
            self.bearer.masked((body or b"").decode()),
            answer.status,
            self.bearer.masked(answer.text),
            elapsed_s,
            answer.error,
            answer.headers,
        )
        self.exchanges.append(exchange)
        if self._on_exchange is not None:
            self._on_exchange(exchange)

    def _random_guid(self) -> str:
        return str(uuid.UUID(int=self._chance.getrandbits(128), version=4))


def _without_token(failed: SignInFailed) -> Answer:
    """In place of an answer: nothing was sent, because there is no token."""
    status, body = failed.answer.status, failed.answer.body
    body = b"" if status == 200 else body  # an answer that is no token may hold one all the same
    return Answer(0, body, CREDENTIALS_UNAVAILABLE, failed.message, {}, failed.refused)


class _Token(msgspec.Struct):
    access_token: str


def _token_in(answer: Answer) -> bytes:
    try:
        return msgspec.json.decode(answer.body, type=_Token).access_token.encode()
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return b""


def _aim(person: Person, link: Link | None, failure: _Failed) -> Action:
    """What the failed work was about."""
    if failure.reference:
        return "Reference"
    if person.is_soft_deleted:
        return "Delete" if person.hard_deleted else "Disable"
    return "Create" if link is None else "Update"


def _found(answer: Answer) -> list[Any] | None:
    """The resources of a ListResponse; None when it is not one. An empty one may leave `Resources` out (RFC 7644)."""
    document = answer.document() if answer.status == 200 else None
    if document is None:
        return None
    found = document.get("Resources", [] if document.get("totalResults") == 0 else None)
    return found if isinstance(found, list) else None


def _match_name(answer: Answer) -> Operation:
    found = _found(answer)
    if found is None:
        return "match"
    return "match_hit" if found else "match_miss"


def _by_id(target_id: str) -> str:
    return f"/Users/{quote(target_id, safe='')}"


def _group_by_id(target_id: str, query: str = "") -> str:
    return f"/Groups/{quote(target_id, safe='')}" + (f"?{query}" if query else "")


def _manager_of(resource: JsonObject, path: str) -> str:
    """The manager's id in any form a target may answer with; "" when there is none."""
    value = held(resource, path)
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("value")
    return value if isinstance(value, str) else ""


def _holds_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_null(member) for member in value.values())
    if isinstance(value, list):
        return any(_holds_null(member) for member in value)
    return value is None


# ------------------------------------------------------------------------------------------------- load


LoadStep = Literal["match_miss", "create", "match_hit", "update", "read", "disable"]
LOAD_STEPS: tuple[LoadStep, ...] = ("match_miss", "create", "match_hit", "update", "read", "disable")
LOAD_OPERATIONS_MAX = 4


class LoadResult(msgspec.Struct):
    """What a load run measured."""

    users: int
    connections: int
    elapsed_s: float
    latencies: dict[LoadStep, list[float]]
    """Seconds per step, answered requests only, in order of completion."""
    refused: dict[LoadStep, dict[int, int]]
    """Unexpected answers by status; 0 counts requests without an answer."""

    @property
    def requests(self) -> int:
        """Answered requests."""
        return sum(len(seconds) for seconds in self.latencies.values())

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.elapsed_s if self.elapsed_s else 0.0

    def quantile(self, step: LoadStep, share: float) -> float:
        """Seconds that `share` (0 to 1) of the step's requests stayed within; 0 when there were none."""
        ordered = sorted(self.latencies[step])
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class _Lane(asyncio.Protocol):
    """One keep-alive HTTP/1.1 connection, one request at a time: the least a client can do."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None
        self._body: list[bytes] = []

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: bytes, wait_max_s: float) -> asyncio.Future[tuple[int, bytes]]:
        """Send; the future brings status and body, or a ConnectionError or TimeoutError."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        self._waiting = waiting
        self._body.clear()
        assert self._transport is not None
        bound = loop.call_later(wait_max_s, self._end, TimeoutError())
        waiting.add_done_callback(lambda _: bound.cancel())
        self._transport.write(request)
        return waiting

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports are of no asyncio class

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end(ConnectionError("not an HTTP answer"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ConnectionResetError())

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if not self._parser.should_keep_alive():
            self.close()
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result((status, b"".join(self._body)))

    def _end(self, error: OSError) -> None:
        waiting, self._waiting = self._waiting, None
        self.close()
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)


class _LoadedPerson(msgspec.Struct, frozen=True):
    """Everything that can be prepared before the clock starts."""

    query: bytes
    create: bytes
    update: bytes
    disable: bytes


async def load_cycle(
    tenant_url: str,
    token: str,
    users: int,
    connections: int = 1,
    *,
    mapping: Mapping = DEFAULT,
    seed: int = 1,
    prefix: str = "load",
    app_roles: Sequence[str] = ("Agent", "Supervisor"),
    dialect: Dialect = "legacy",
    requests_per_s: float | None = None,
    request_timeout_s: float = REQUEST_TIMEOUT_S,
    on_progress: Progress | None = None,
) -> LoadResult:
    """Run one life per user as fast as the server answers: query without a hit, POST, query with a hit, PATCH with
    four operations, GET, PATCH `active` "False". All bodies are made beforehand.

    Args:
        tenant_url: SCIM address; the flag in its query chooses the flagged dialect.
        token: the secret token.
        users: how many lives; they must not exist yet at the target, so vary `seed` or `prefix` between runs.
        connections: lives at the same time, each on a connection of its own.
        requests_per_s: pace of all connections together; None for as fast as possible.
        on_progress: called with (done, total) after every user.

    Raises:
        ValueError: the mapping has no `active`, so the last step cannot be made.
    """
    address = TenantUrl.parse(tenant_url)
    form: Dialect = "flag" if address.flagged else dialect
    if not mapping.has_active:
        raise ValueError(f"mapping {mapping.name} has no active")
    # The seed belongs to the name: a server that kept an earlier run's people must not find them again.
    people = make_people(users, seed, prefix=f"{prefix}{seed}x", app_roles=app_roles, managers=False)
    prepared = [_prepare(person, mapping, form) for person in people]
    parts = urlsplit(address.base)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    latencies: dict[LoadStep, list[float]] = {step: [] for step in LOAD_STEPS}
    refused: dict[LoadStep, Counter[int]] = {step: Counter() for step in LOAD_STEPS}
    base = parts.path.encode()
    head = f" HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {token}\r\n".encode()
    loop = asyncio.get_running_loop()
    connect = partial(loop.create_connection, _Lane, parts.hostname, port, ssl=parts.scheme == "https" or None)
    waiting = iter(prepared)
    done = itertools.count(1)
    slots = itertools.count()

    def request(method: bytes, target: bytes, body: bytes | None = None) -> bytes:
        if body is None:
            return method + b" " + base + target + head + b"\r\n"
        length = b"Content-Type: application/scim+json; charset=utf-8\r\nContent-Length: %d\r\n\r\n" % len(body)
        return method + b" " + base + target + head + length + body

    async def run_lane() -> None:
        lane: _Lane | None = None

        async def ask(step: LoadStep, wire: bytes, *good: int) -> bytes | None:
            nonlocal lane
            if requests_per_s is not None:
                due = started + next(slots) / requests_per_s
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
            try:
                if lane is None or not lane.usable:
                    async with asyncio.timeout(CONNECT_TIMEOUT_S):
                        _, lane = await connect()
                sent = time.perf_counter()
                status, body = await lane.ask(wire, request_timeout_s)
            except OSError:  # TimeoutError is one
                refused[step][0] += 1
                return None
            latencies[step].append(time.perf_counter() - sent)
            if status in good:
                return body
            refused[step][status] += 1
            return None

        for life in waiting:
            await ask("match_miss", request(b"GET", life.query), 200)
            created = await ask("create", request(b"POST", b"/Users", life.create), 200, 201)
            target_id = _id_in(created)
            if target_id is not None:
                by_id = _by_id(target_id).encode()
                await ask("match_hit", request(b"GET", life.query), 200)
                await ask("update", request(b"PATCH", by_id, life.update), 200, 204)
                await ask("read", request(b"GET", by_id), 200)
                await ask("disable", request(b"PATCH", by_id, life.disable), 200, 204)
            if on_progress is not None:
                on_progress(next(done), users)
        if lane is not None:
            lane.close()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as lanes:
        for _ in range(connections):
            lanes.create_task(run_lane())
    elapsed_s = time.perf_counter() - started
    counted = {step: dict(counter) for step, counter in refused.items() if counter}
    return LoadResult(users, connections, elapsed_s, latencies, counted)


class _Identified(msgspec.Struct):
    id: str


_identified = msgspec.json.Decoder(_Identified)


def _id_in(body: bytes | None) -> str | None:
    if body is None:
        return None
    try:
        return _identified.decode(body).id
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _prepare(person: Person, mapping: Mapping, dialect: Dialect) -> _LoadedPerson:
    values = mapping.values(person, creating=True)
    row = mapping.matching[0]
    later = msgspec.structs.replace(
        person,
        display_name=f"{person.display_name} B",
        given_name=f"{person.given_name} B",
        surname=f"{person.surname} B",
        job_title=f"{person.job_title} B",
        mail=(person.mail or "").replace("@", ".b@"),
        department=f"{person.department} B",
    )
    fixed = {row.path for row in mapping.matching} | {"active"}
    patched = [
        Change(path, value, values.get(path)) for path, value in mapping.values(later).items() if path not in fixed
    ]
    # Changed values first; a mapping with few rows fills up with values that stay as they are.
    patched.sort(key=lambda change: change.value == change.before)
    return _LoadedPerson(
        query=f"/Users?{filter_query(row.path, str(values[row.path]))}".encode(),
        create=msgspec.json.encode(mapping.document(values, dialect)),
        update=msgspec.json.encode(patch_body(patched[:LOAD_OPERATIONS_MAX], dialect)),
        disable=msgspec.json.encode(patch_body([Change("active", "False", "True")], dialect)),
    )


# ------------------------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: `cycle` for a provisioning cycle, `load` for a benchmark run."""
    from cyclopts import App

    app = App(name="entra", help="Behave like Entra's provisioning service towards a SCIM server.")
    app.command(cycle)
    app.command(load)
    sys.exit(app(arguments, result_action="return_value"))


def cycle(
    *,
    tenant_url: str,
    token_file: Path,
    mapping: Literal["observe", "telemessage", "talkdesk"] = "observe",
    users: int = 20,
    groups: int = 0,
    dialect: Dialect = "legacy",
    connections: int = 1,
    seed: int = 1,
    manager_name: str = "Company Manager",
    token_endpoint: str | None = None,
    client_id: str = "",
    json: bool = False,
) -> int:
    """Test the connection, then run an initial cycle and print what happened.

    The same seed gives the same people, so a second run finds them and has nothing to do.

    Parameters
    ----------
    tenant_url
        The target's SCIM address.
    token_file
        File that holds the secret token, or the client secret.
    mapping
        Attribute mapping of the product.
    users
        How many people the directory has.
    groups
        How many groups it has; everybody is in one of them.
    dialect
        Form of PATCH.
    connections
        People worked on at the same time.
    seed
        Decides who the people are.
    manager_name
        TeleMessage only: the company manager's name.
    token_endpoint
        Sign in with OAuth client credentials there instead of with a secret token.
    client_id
        Client identifier, together with the token endpoint.
    json
        Print JSON instead of a table.

    Returns
    -------
    int
        Exit code: 0 when nothing failed, 1 otherwise.
    """
    chosen = telemessage(manager_name) if mapping == "telemessage" else MAPPINGS[mapping]
    secret = token_file.read_text().strip()
    token: Credentials = SecretToken(secret)
    if token_endpoint is not None:
        token = ClientCredentials(token_endpoint=token_endpoint, client_id=client_id, client_secret=secret)
    people = make_people(users, seed)
    directory = Directory(people, make_groups(people, groups, seed))

    async def run() -> tuple[ConnectionTest, CycleReport | None]:
        async with ProvisioningJob(tenant_url, token, directory, chosen, dialect, connections, seed=seed) as job:
            test = await job.test_connection()
            if not test.ok:
                return test, None
            with _progress("Initial cycle", shown=not json) as step:
                return test, await job.initial_cycle(step)

    test, report = asyncio.run(run())
    if json:
        shown = {"connection": test, "cycle": report}
        print(msgspec.json.format(msgspec.json.encode(shown)).decode())
    elif report is None:
        _print_connection(test)
    else:
        _print_cycle(report)
    return 0 if report is not None and not report.failed and not report.failed_references else 1


def load(
    *,
    tenant_url: str,
    token_file: Path,
    mapping: Literal["observe", "telemessage", "talkdesk"] = "observe",
    users: int = 200,
    dialect: Dialect = "legacy",
    connections: int = 8,
    requests_per_s: float | None = None,
    seed: int = 1,
    json: bool = False,
) -> int:
    """Measure the server: six requests per user, latencies by step.

    Parameters
    ----------
    tenant_url
        The target's SCIM address.
    token_file
        File that holds the secret token.
    mapping
        Attribute mapping of the product.
    users
        How many new people to run through; the seed must be new as well.
    dialect
        Form of PATCH.
    connections
        Connections at the same time.
    requests_per_s
        Pace; as fast as possible when left out.
    seed
        Decides who the people are.
    json
        Print JSON instead of a table.

    Returns
    -------
    int
        Exit code: 0 when every answer was as expected, 1 otherwise.
    """
    token = token_file.read_text().strip()

    async def run() -> LoadResult:
        with _progress("Load", shown=not json) as step:
            return await load_cycle(
                tenant_url,
                token,
                users,
                connections,
                mapping=MAPPINGS[mapping],
                seed=seed,
                dialect=dialect,
                requests_per_s=requests_per_s,
                on_progress=step,
            )

    result = asyncio.run(run())
    if json:
        summary = {
            "users": result.users,
            "connections": result.connections,
            "elapsed_s": result.elapsed_s,
            "requests_per_s": result.requests_per_s,
            "refused": result.refused,
            "steps": {
                step: {
                    "count": len(result.latencies[step]),
                    "p50_s": result.quantile(step, 0.50),
                    "p99_s": result.quantile(step, 0.99),
                    "max_s": result.quantile(step, 1.0),
                }
                for step in LOAD_STEPS
            },
        }
        print(msgspec.json.format(msgspec.json.encode(summary)).decode())
    else:
        _print_load(result)
    return 1 if result.refused else 0


@contextmanager
def _progress(title: str, *, shown: bool) -> Iterator[Progress]:
    """A bar on stderr while something long runs."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True, disable=not shown) as bars:
        task = bars.add_task(title, total=None)

        def step(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        yield step


def _print_connection(test: ConnectionTest) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    console.print(Text(f"Test Connection failed: {test.error_code} ({test.message})", style="red"))
    if test.response_body:
        console.print(Text(f"StatusCode {test.status_code}. Web Response:\n{test.response_body}"))


def _print_cycle(report: CycleReport) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(title=f"Provisioning cycle ({report.kind}), {report.elapsed_s:.2f} s")
    table.add_column("Action")
    table.add_column("Success", justify="right", style="green")
    table.add_column("Skipped", justify="right")
    table.add_column("Failure", justify="right", style="red")
    counts = Counter((entry.kind, entry.action, entry.status) for entry in report.entries)
    titles: dict[Literal["user", "group"], str] = {"user": "", "group": "Group: "}
    actions: tuple[Action, ...] = ("Create", "Update", "Disable", "Enable", "Delete", "Reference", "Other")
    statuses: tuple[Status, ...] = ("Success", "Skipped", "Failure")
    for kind, title in titles.items():
        for action in actions:
            row = [counts[kind, action, status] for status in statuses]
            if any(row):
                table.add_row(title + action, *(str(count) if count else "" for count in row))
    table.add_section()
    totals = [sum(entry.status == status for entry in report.entries) for status in ("Success", "Skipped", "Failure")]
    table.add_row("All", *(str(total) for total in totals))
    console.print(table)
    failures = [entry for entry in report.entries if entry.status == "Failure"]
    for entry in failures[:FAILURES_PRINTED_MAX]:
        text = f"{entry.source_name}: {entry.action} failed, {entry.error_code} ({entry.message})."
        console.print(Text(f"{text} Web Response: {entry.response_body}" if entry.response_body else text))
    if len(failures) > FAILURES_PRINTED_MAX:
        console.print(f"and {len(failures) - FAILURES_PRINTED_MAX} more failures")
    if report.quarantined:
        console.print(Text(f"The job is in quarantine: {report.quarantined}", style="red"))


def _print_load(result: LoadResult) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{result.users} users, {result.connections} connections: {result.requests_per_s:,.0f} requests/s"
    table = Table(title=title)
    for heading in ("Step", "Requests", "Unexpected", "p50 ms", "p99 ms", "max ms"):
        table.add_column(heading, justify="left" if heading == "Step" else "right")
    for step in LOAD_STEPS:
        unexpected = ", ".join(f"{count} x {status}" for status, count in result.refused.get(step, {}).items())
        times = (f"{result.quantile(step, share) * 1000:.1f}" for share in (0.50, 0.99, 1.0))
        table.add_row(step, str(len(result.latencies[step])), unexpected, *times)
    Console().print(table)


if __name__ == "__main__":
    main()
