"""REST: any product with plain calls for its users, and for its groups if it has some, described in TOML alone.

`rest_settings.py` says what can be declared, `rest_calls.py` makes the calls, `rest_groups.py` keeps groups; here the users are
kept: values take the product's form, accounts are found, made, changed, switched and removed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import UNSET, Struct, UnsetType

from connectors.contract import (
    Connector,
    Delivery,
    Directory,
    Endpoint,
    Expected,
    Finding,
    Found,
    Held,
    Identity,
    Imagined,
    VendorHttp,
    VendorResponse,
    Write,
)
from connectors.declared import MANAGER, did_you_mean, read
from connectors.http import already_there
from connectors.rest_calls import RestCalls
from connectors.rest_groups import RestGroups, last_part
from connectors.rest_settings import (
    CONCURRENCY,
    DEPTH_MAX,
    METHODS,
    TITLE,
    Binding,
    CallName,
    Lookup,
    Pick,
    Settings,
    States,
    at,
    equal,
    has,
    place,
    put,
    text_of,
)
from connectors.scanned import Key, Row, Scanned
from connectors.scim import checked_id, ignored_paths, texts
from connectors.transforms import said, transformed
from schemas.errors import Conflict, ConnectorError, Gone, Misconfigured, NormalizationError, Rejected, Unavailable
from schemas.events import identity, split_identity
from schemas.resources import Group, User
from schemas.specs import Attribute, Spec

VALUES_SHOWN_MAX = 10
NOBODY = "provgate-check-nobody"
"""Looked up by `check` where accounts cannot be listed."""


class Account(Struct, frozen=True, kw_only=True):
    """What the product shall hold.

    Args:
        fields: field -> value, constants included; None, "" or a list where Entra cleared it.
        creating: field -> value for new accounts only, where Entra says nothing.
        fixed: SCIM path -> value of fields that are never changed afterwards.
        keys: SCIM path of `identity` -> the product's value.
        active: whether the user shall be switched on; None when Entra does not say.
        manager: the manager's id at this gateway; None when there shall be none, UNSET when nobody says.
        roles: those that are given by calls of their own, as the product names them; UNSET when nobody says.
    """

    fields: dict[str, Any]
    creating: dict[str, Any]
    fixed: dict[str, Any]
    keys: dict[str, str]
    active: bool | None
    external_id: str = ""
    manager: str | UnsetType | None = UNSET
    roles: tuple[Any, ...] | UnsetType = UNSET


class GenericRest(Connector[Settings, Account]):
    """Users, and groups, of any product with plain REST calls."""

    spec = Spec(
        name="rest",
        title=TITLE,
        attributes=(
            Attribute(
                "userName", "as declared", required=True, note="the table attributes of the settings says the rest"
            ),
        ),
        groups_step=(
            "Where the table groups is not declared, switch group provisioning off in Entra (group mapping Disabled); roles can "
            "be declared as an attribute."
        ),
        concurrency_max=CONCURRENCY,
        capabilities=("list_accounts",),
        pitfalls=(
            "What stands in braces in a path is encoded whole; nothing else of a user ever gets into an address.",
            "Without endpoints.read every update sends all declared fields, and cannot tell what differs.",
            "scan = true reads all accounts to find one, at most every 30 s while nothing is in doubt: small products only.",
            "An attribute of identity that is not a plain one (userName, externalId, …) is not kept in order by the gateway.",
            "The manager's field gets the product's own id; a user whose manager has no account there yet is sent again later.",
            "Without the table active a user that is switched off in Entra is refused, never silently left on.",
        ),
    )
    settings_type = Settings
    example: ClassVar[str] = """[targets.crm]
connector = "rest"
title = "CRM"

[targets.crm.settings]
title = "CRM"
base_url = "https://crm.example.com/api/v1"
auth = { way = "header", header = "X-Api-Key", scheme = "", token = { env = "CRM_KEY" } }
rate_limit = { calls = 10, per_s = 1.0 }
update = "partial"
on_delete = "deactivate"
active = { way = "field", field = "status", on = "enabled", off = "disabled" }
constants = { "source" = "entra" }
message = "error.message"

[targets.crm.settings.endpoints]
list = { path = "/users", items = "data" }
find = { path = "/users", items = "data" }
read = { path = "/users/{id}", item = "data" }
create = { path = "/users", item = "data", expect = [201] }
update = { path = "/users/{id}", item = "data" }

[targets.crm.settings.paging]
way = "page"
parameter = "page"
size_parameter = "per_page"
size = 50
total = "meta.total"

[targets.crm.settings.identity]
userName = { parameter = "login" }

[targets.crm.settings.attributes]
userName = { field = "login", required = true, transforms = ["lower"] }
externalId = { field = "external_id" }
"name.givenName" = { field = "name.first", required = true }
"name.familyName" = { field = "name.last", required = true }
'emails[type eq "work"].value' = { field = "contact.email", transforms = ["email"] }
'phoneNumbers[type eq "mobile"].value' = { field = "contact.mobile", transforms = ["mobile_plus"], region = "GB" }
userType = { field = "plan", default = "basic", values = { Employee = "full", Guest = "basic" } }
roles = { field = "roles", many = "list" }

[[targets.crm.settings.errors]]
status = [409, 422]
field = "error.code"
equals = ["login_taken"]
means = "conflict"
attribute = "userName"

[[targets.crm.settings.errors]]
status = [402]
means = "blocked"
on = "licence"
remedy = "Buy a seat or free one."
"""

    @classmethod
    def spec_for(cls, settings: Settings) -> Spec:
        """Title, limit and attributes as the settings say."""
        bound = tuple(
            Attribute(
                path,
                binding.field,
                required=binding.required,
                multi_valued=path == "roles",
                note=", ".join(binding.transforms),
            )
            for path, binding in settings.attributes.items()
        )
        states = settings.active
        shown = (Attribute("active", states.field or "calls of its own", type="boolean"),) if states is not None else ()
        plain = tuple(path for path in settings.identity if re.fullmatch(r"[A-Za-z.]+", path))
        changed = any(
            set(settings.attributes[path].transforms) - {"lower"} or settings.attributes[path].values
            for path in settings.identity
        )
        groups = settings.groups
        shows_members = groups is not None and bool(groups.members.field or groups.endpoints.members is not None)
        return msgspec.structs.replace(
            cls.spec,
            title=settings.title,
            resources=("User",) if groups is None else ("User", "Group"),
            attributes=(*bound, *shown),
            identity=plain or ("userName",),
            groups_step=(
                f"{settings.title} takes no groups: switch group provisioning off in Entra (group mapping Disabled)."
                if groups is None
                else ""
            ),
            rate_limit=settings.rate_limit.limit() if settings.rate_limit is not None else None,
            concurrency_max=settings.concurrency_max,
            on_delete=settings.on_delete,
            capabilities=(
                *(("groups",) if groups is not None else ()),
                *(("list_accounts",) if settings.endpoints.list is not None else ()),
                *(
                    ("list_groups",)
                    if groups is not None and groups.endpoints.list is not None and shows_members
                    else ()
                ),
                *(("normalizes_identity",) if changed else ()),
                *(("idempotency_keys",) if settings.idempotency_header else ()),
            ),
        )

    @classmethod
    def endpoint(cls, settings: Settings) -> Endpoint | None:
        """The configured address."""
        return Endpoint(
            base_url=settings.base_url,
            auth=settings.auth.auth(),
            allow_loopback=settings.allow_loopback,
            body_bytes_max=settings.body_bytes_max,
        )

    def __new__(cls, settings: Settings, http: VendorHttp) -> GenericRest:
        """With groups where they are declared; a connector that has no groups has none of their methods."""
        wanted = GenericRestWithGroups if settings.groups is not None and cls is GenericRest else cls
        return super().__new__(wanted)

    def __init__(self, settings: Settings, http: VendorHttp) -> None:
        super().__init__(settings, http)
        self.title = settings.title
        self._spec = self.spec_for(settings)
        self.calls = RestCalls(settings, http)
        self.reading_calls = self.calls.searches
        self._scanned = Scanned()
        self._groups = RestGroups(self.calls, settings.groups, self._member_id) if settings.groups is not None else None

    # The contract -----------------------------------------------------------------------------------------------------

    def normalize(self, user: User, directory: Directory) -> Account:
        """Every declared attribute in the product's form. Raises NormalizationError with the codes of vendor page 0.6."""
        settings = self.settings
        fields: dict[str, Any] = {}
        creating: dict[str, Any] = {}
        fixed: dict[str, Any] = {}
        keys: dict[str, str] = {}
        manager: str | UnsetType | None = UNSET
        roles: tuple[Any, ...] | UnsetType = UNSET
        for path, binding in settings.attributes.items():
            if path == MANAGER:
                manager = read(user, path)
                continue
            value = self._bound(path, binding, read(user, path))
            if binding.through == "calls":
                roles = roles if value is UNSET else tuple(value or ())
                continue
            if value is UNSET and binding.default is not None:
                creating[binding.field] = binding.default
            if value is UNSET:
                continue
            if binding.write == "create":
                fixed[path] = value
            else:
                fields[binding.field] = value
            if path in settings.identity and value not in (None, ""):
                keys[path] = text_of(value)
        fields.update(settings.constants)
        active = None if user.active is UNSET else user.active
        if settings.active is None and active is False:
            raise NormalizationError(
                f"{self.title} has no way to switch a user off that this target knows of (active), so this user would stay on. "
                "Delete the user there, or declare how it is done.",
                code="cannot_deactivate",
                attribute="active",
            )
        if active is None and settings.on_delete == "deactivate":
            active = True  # an account that a deletion switched off is wished again
        external = settings.attributes.get("externalId")
        external_id = fields.get(external.field, fixed.get("externalId")) if external is not None else None
        return Account(
            fields=fields,
            creating=creating,
            fixed=fixed,
            keys=keys,
            active=active,
            external_id=text_of(external_id) if external_id is not None else "",
            manager=manager,
            roles=roles,
        )

    def account_keys(self, account: Account) -> tuple[str, ...]:
        """What the account is found by there."""
        return tuple(account.keys.values())

    def ignored(self, user: User) -> tuple[str, ...]:
        """Everything that is not declared."""
        return ignored_paths(user, self._spec)

    async def check(self) -> list[Finding]:
        """Address and credentials, and whether accounts show the declared fields. Writes nothing."""
        settings = self.settings
        if settings.endpoints.list is None:
            lookup = next(iter(settings.identity.values()))
            await self._asked_for_nobody(lookup)
            return [
                Finding(level="ok", code="reachable", message=f"{self.title} accepts the credentials."),
                *(await self._groups.findings() if self._groups is not None else ()),
                Finding(
                    level="warning",
                    code="cannot_list",
                    message=f"{self.title} cannot be listed (endpoints.list), so accounts there are never compared with Entra.",
                ),
            ]
        rows, _ = await self.calls.page("list", None, "", id_field=settings.id)
        findings = [
            Finding(
                level="ok",
                code="reachable",
                message=f"{self.title} accepts the credentials; {len(rows)} accounts are on the first page.",
            )
        ]
        findings += self._shape_findings(rows)
        findings += await self._known_findings(rows)
        if self._groups is not None:
            findings += await self._groups.findings()
        for path, lookup in settings.identity.items():
            if not lookup.scan and await self._asked_for_nobody(lookup):
                by = repr(lookup.parameter) if lookup.parameter else "what identity says"
                findings.append(
                    Finding(
                        level="error",
                        code="parameter_ignored",
                        message=f"{self.title} answers a look-up of nobody by {by} with accounts: it does not look at this "
                        f"parameter. Correct identity.{path}, or set scan = true there.",
                    )
                )
        return findings

    async def find(self, account: Account | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """By the attributes of `identity`. An identity that cannot be put into the product's form matches nothing (0.2)."""
        return await self._find(account, identities, ctx, fresh=account is None or ctx.ambiguous or ctx.attempt > 1)

    async def _find(
        self, account: Account | None, identities: Sequence[Identity], ctx: Delivery, *, fresh: bool = True
    ) -> list[Found]:
        asked: dict[tuple[str, str], Identity] = {}
        if account is not None:
            for path, key in account.keys.items():
                asked[path, key] = identities[0] if identities else identity(path, key)
        for name in identities:
            path, value = split_identity(name)
            key = self._key(path, value)
            if key:
                mine = account is not None and account.keys.get(path, "").casefold() == key.casefold()
                asked[path, account.keys[path] if account is not None and mine else key] = name
        found: dict[str, Found] = {}
        for (path, key), name in asked.items():
            for held in await self._found_by(path, key, ctx, fresh=fresh):
                account_id = self._id(held, "listed an account")
                found.setdefault(
                    account_id, Found(account_id=account_id, identity=name, conflict=self._foreign(held, account))
                )
        return list(found.values())

    async def create(self, account: Account, ctx: Delivery) -> str:
        """Make the account, then switch it as wished and give it its roles where that takes calls of their own."""
        states = self.settings.active
        fixed = {self.settings.attributes[path].field: value for path, value in account.fixed.items()}
        fields = {**account.creating, **fixed, **self._fields(account, ctx)}
        wanted = account.active is not False
        if states is not None and states.way == "field":
            fields[states.field] = states.on if wanted else states.off
        sent = {field: value for field, value in fields.items() if value not in (None, "", [])}
        with self._scanned.in_doubt():
            try:
                answer = await self.calls.send("create", ctx, fields=sent)
            except Conflict as exc:
                await self._taken(account, exc, ctx)
                raise
            account_id = await self._made(account, answer, ctx)
            self._enter(account_id, account)
        if states is not None:
            await self._after_create(states, account_id, answer, ctx, wanted=wanted)
        await self._give(account_id, account, ctx, is_new=True)
        return account_id

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        """What differs, or everything merged (A4). A deactivation by a call goes first, an activation last."""
        with self._scanned.in_doubt(account_id):
            await self._update(account_id, account, ctx)
            self._enter(account_id, account)

    async def _update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        states = self.settings.active
        held = await self._read(account_id, ctx) if self.settings.endpoints.read is not None else None
        self._compare_fixed(held, account, ctx)
        by_calls = states is not None and states.way == "calls"
        switch = self._switch_needed(held, account.active) if by_calls else None
        fields = self._fields(account, ctx)
        if states is not None and states.way == "field" and self._switch_needed(held, account.active) is not None:
            fields[states.field] = states.on if account.active else states.off
        if switch is False:
            await self._switch(account_id, ctx, on=False)
        await self._write(account_id, held, fields, ctx)
        await self._give(account_id, account, ctx)
        if switch is True:
            await self._switch(account_id, ctx, on=True)

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        """The product's delete, or deactivation where the settings say so; one that is gone is fine."""
        with self._scanned.in_doubt():
            try:
                if self.settings.on_delete == "deactivate" or self.settings.off_before_delete:
                    await self._off(account_id, ctx)
                if self.settings.on_delete == "deactivate":
                    return
                await self.calls.send("delete", ctx, values={"id": account_id})
            except Gone:
                pass
        self._scanned.wrote(account_id, None)

    async def _off(self, account_id: str, ctx: Delivery) -> None:
        states = self.settings.active
        assert states is not None, "refused by the settings"
        held = await self._read(account_id, ctx) if self.settings.endpoints.read is not None else None
        if self._switch_needed(held, False) is None:
            return
        if states.way == "field":
            await self._write(account_id, held, {states.field: states.off}, ctx)
        else:
            await self._switch(account_id, ctx, on=False)

    async def _give(self, account_id: str, account: Account, ctx: Delivery, *, is_new: bool = False) -> None:
        """Roles that come and go by calls: what is missing is given, and what is too many is taken.

        Where the settings name the product's roles one by one (values), others are nobody's business here.
        """
        if account.roles is UNSET:
            return
        binding = self.settings.attributes["roles"]
        held: dict[str, Any] = {}
        try:
            async for one in self.calls.all("roles", ctx, values={"id": account_id}, id_field=binding.field):
                value = at(one, binding.field) if isinstance(one, Mapping) else one
                held[text_of(value)] = value
        except Gone:
            if not is_new:
                raise
        wanted = {text_of(role): role for role in account.roles}
        ours = {text_of(role) for role in binding.values.values()} if binding.other != "keep" else set()
        for name, role in held.items():
            if name not in wanted and (not ours or name in ours):
                try:
                    await self.calls.send("revoke", ctx, values={"id": account_id, "role": role})
                except Gone:
                    continue
        for name, role in wanted.items():
            if name not in held:
                with contextlib.suppress(Conflict):  # held already: reads may lag behind
                    await self.calls.send("grant", ctx, values={"id": account_id, "role": role})

    async def list_accounts(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """One page of accounts."""
        if self.settings.endpoints.list is None:
            raise Rejected(f"{self.title} cannot be listed: its target has no endpoints.list.", code="cannot_list")
        rows, following = await self.calls.page("list", None, cursor or "", id_field=self.settings.id)
        states = self.settings.active
        page = []
        for held in rows:
            names = [
                identity(path, text_of(value))
                for path in self.settings.identity
                if (value := at(held, self.settings.attributes[path].field)) not in (None, "")
            ]
            external = self.settings.attributes.get("externalId")
            page.append(
                {
                    "account_id": self._id(held, "listed an account"),
                    "identities": tuple(names),
                    "active": True
                    if states is None
                    else states.means(at(held, states.field))
                    if states.field
                    else None,
                    "owner": text_of(at(held, external.field) or "") if external is not None else "",
                    "values": {
                        path: _comparable(
                            binding.unlisted(at(held, binding.field)), exact=path not in self.settings.identity
                        )
                        for path, binding in self._compared().items()
                        if has(held, binding.field)
                    },
                }
            )
        return page, following or None

    def expected(self, account: Account) -> Expected:
        """Every declared attribute in the product's form, but the manager; lists may show fewer fields than accounts have."""
        values = {}
        for path, binding in self._compared().items():
            value = account.fixed.get(path, account.fields.get(binding.field, UNSET))
            if value is not UNSET:
                values[path] = _comparable(binding.unlisted(value), exact=path not in self.settings.identity)
        return Expected(
            identities=tuple(identity(path, key) for path, key in account.keys.items()),
            owner=account.external_id if self.settings.foreign == "refuse" else "",
            values=values,
        )

    def _compared(self) -> dict[str, Binding]:
        bound = self.settings.attributes.items()
        return {path: binding for path, binding in bound if path != MANAGER and binding.through == "field"}

    # Rehearsing -------------------------------------------------------------------------------------------------------

    async def imagine(self, write: Write, made_id: str, held: Held, ctx: Delivery | None) -> Imagined | None:
        """For rehearsals: the declared status, and the account or group where an answer is declared to show it."""
        for name, call in self.calls.calls.items():
            if name in METHODS and call.path == write.path and call.method_of(name) == write.method:
                return self._imagined(name, write, made_id, held)
        return None

    def _imagined(self, name: CallName, write: Write, made_id: str, held: Held) -> Imagined | None:
        call = self.calls.calls[name]
        creates = name in ("create", "group_create")
        status = next((one for one in call.expect if one < 300), 201 if creates else 200)
        if name in ("delete", "group_delete"):
            return Imagined(status) if call.expect else None
        if name in ("grant", "revoke", "member_add", "member_remove"):
            return Imagined(status)
        read = self.calls.calls.get("group_read" if name.startswith("group_") else "read")
        account_id = made_id if creates else write.parts.get("id", "")
        by_path = read is not None and read.names == read.in_path
        made: dict[str, Any] = {}
        if not creates and by_path and read is not None and account_id:
            known = at(held(read.path, {"id": account_id}), read.item)
            made = dict(known) if isinstance(known, Mapping) else {}
        states = self.settings.active
        if name in ("activate", "deactivate"):
            if states is not None and states.field:
                put(made, states.field, states.on if name == "activate" else states.off)
        elif isinstance(write.body, Mapping):
            made = {**made, **((at(write.body, call.wrap) if call.wrap else write.body) or {})}
        groups = self.settings.groups
        id_field = self.settings.id
        if name.startswith("group_") and groups is not None:
            id_field = groups.id or id_field
        if account_id:
            put(made, id_field, account_id)
        answer: dict[str, Any] = {}
        shown: dict[str, Any] = {}
        if call.item:
            put(answer, call.item, made)
        if read is not None and read.item:
            put(shown, read.item, made)
        there = ((read.path, {"id": account_id}, shown or made),) if read is not None and by_path and account_id else ()
        if call.id:
            put(answer if call.item else made, call.id, account_id)
        return Imagined(status, answer or made, held=there)

    # Values -----------------------------------------------------------------------------------------------------------

    def _bound(self, path: str, binding: Binding, raw: Any) -> Any:
        """A wish's value in the product's form: UNSET when nothing is sent, None, "" or [] when it was cleared."""
        if raw is UNSET:
            if binding.required:
                raise self._refused(path, "missing")
            return UNSET
        values = self._several(path, binding, raw)
        made = [one for value in values if (one := self._one(path, binding, value)) is not UNSET]
        if not made:
            if binding.required:
                raise self._refused(path, "missing")
            return _cleared(binding)
        if binding.through == "calls":
            return list(dict.fromkeys(made))
        if binding.many == "list":
            return binding.listed(dict.fromkeys(made))
        if binding.many == "joined":
            return binding.separator.join(dict.fromkeys(text_of(one) for one in made))
        return made[0]

    def _several(self, path: str, binding: Binding, raw: Any) -> list[Any]:
        if path == "roles" or binding.many != "one" or isinstance(raw, (list, tuple, Mapping)):
            return [one.strip() for one in texts(raw)]
        if isinstance(raw, str):
            return [raw.strip()] if raw.strip() else []
        return [] if raw is None else [raw]

    def _one(self, path: str, binding: Binding, value: Any) -> Any:
        """One value after the named steps and the table of values; UNSET when it is dropped."""
        try:
            for name in binding.transforms:
                value = transformed(name, value, region=binding.region, extension=binding.extension)
        except NormalizationError as exc:
            raise self._refused(path, exc.code) from None
        if binding.values:
            key = text_of(value)
            mapped = binding.values.get(key, next((v for k, v in binding.values.items() if equal(k, key)), None))
            if mapped is not None:
                return mapped
            if binding.other == "drop":
                return UNSET
            if binding.other == "reject":
                known = ", ".join(list(binding.values)[:VALUES_SHOWN_MAX])
                shown = (
                    repr(key) if path == "roles" else "this value"
                )  # a role is nobody's secret; any other value may be
                hint = did_you_mean(key, binding.values) or "."
                raise NormalizationError(
                    f"{path}: {shown} has no counterpart in {self.title}{hint} Known are {known}. Correct the mapping in Entra, "
                    "or values in this target's settings.",
                    code="unknown_value",
                    attribute=path,
                    names=[key] if path == "roles" else (),
                )
        return UNSET if value == "" else value

    def _key(self, path: str, value: str) -> str:
        """A folded identity as the product spells it; "" when it is none."""
        if path not in self.settings.identity or not value:
            return ""
        try:
            made = self._bound(path, self.settings.attributes[path], value)
        except NormalizationError:
            return ""
        return "" if made in (UNSET, None) else text_of(made)

    def _refused(self, path: str, code: str) -> NormalizationError:
        if code == "missing":
            sentence = f"{path} is required by {self.title} and is blank or not mapped. Map it and fill it in Entra."
        else:
            sentence = f"{path} {said(code)} ({self.title}). Correct the value or its mapping in Entra."
        return NormalizationError(sentence, code=code, attribute=path)

    # Finding -----------------------------------------------------------------------------------------------------------

    def _id(self, held: Mapping[str, Any], what: str) -> str:
        return self._checked(at(held, self.settings.id), f"{self.title} {what}")

    def _checked(self, value: Any, sentence: str) -> str:
        """An account's id, also where an address stands for it."""
        if self.settings.id_form == "address" and isinstance(value, str):
            value = unquote(urlsplit(value).path.rstrip("/").rpartition("/")[2])
        return checked_id(value, sentence)

    def _member_id(self, entry: Any, field: str) -> str:
        value = at(entry, field) if field and isinstance(entry, Mapping) else entry
        return self._checked(value, f"{self.title} listed a member")

    async def _found_by(self, path: str, key: str, ctx: Delivery | None, *, fresh: bool = True) -> list[dict[str, Any]]:
        """Accounts whose field equals the key; compared again here, so that no stranger is handed out."""
        lookup = self.settings.identity[path]
        field = self.settings.attributes[path].field
        shown = False
        wanted = self._spelled(path, key)
        if lookup.scan:
            found = await self._scanned.find([(path, wanted)], lambda: self._scan(ctx), fresh=fresh)
            return found[path, wanted]
        hits = 0

        def fits(held: Mapping[str, Any]) -> bool:
            nonlocal shown, hits
            shown, hits = shown or has(held, field), hits + 1
            return self._spelled(path, at(held, field)) == wanted

        rows = await self.calls.asked("find", lookup, key, ctx, fits=fits, id_field=self.settings.id)
        if hits and not shown:
            raise self._blind(path, field)
        return rows

    def _spelled(self, path: str, value: Any) -> str:
        shown = "" if value is None or isinstance(value, (dict, list)) else text_of(value)
        return shown if self.settings.identity[path].exact else shown.casefold()

    async def _scan(self, ctx: Delivery | None) -> AsyncIterator[Row]:
        """All accounts, as small as a look-up needs them. Raises Misconfigured when none shows what it is known by."""
        unseen = {path for path, lookup in self.settings.identity.items() if lookup.scan}
        count = 0
        async for held in self.calls.all("list", ctx, id_field=self.settings.id):
            count += 1
            unseen -= {path for path in unseen if has(held, self.settings.attributes[path].field)}
            yield self._row(held)
        if count and unseen:
            path = min(unseen)
            raise self._blind(path, self.settings.attributes[path].field)

    def _row(self, held: Mapping[str, Any]) -> Row:
        settings = self.settings
        small: dict[str, Any] = {}
        keys: list[Key] = []
        for path, lookup in settings.identity.items():
            value = at(held, settings.attributes[path].field)
            if lookup.scan and value not in (None, ""):
                keys.append((path, self._spelled(path, value)))
        external = settings.attributes.get("externalId")
        bound = (settings.attributes[path].field for path in settings.identity)
        for field in (settings.id, *bound, *((external.field,) if external is not None else ())):
            if (value := at(held, field)) is not None:
                put(small, field, value)
        return Row(self._id(held, "listed an account"), tuple(keys), small)

    def _enter(self, account_id: str, account: Account) -> None:
        """What we wrote is known to the next look-ups without reading everything again."""
        made: dict[str, Any] = {}
        external = self.settings.attributes.get("externalId")
        if external is not None and account.external_id:
            put(made, external.field, account.external_id)
        for path, key in account.keys.items():
            put(made, self.settings.attributes[path].field, key)
        put(made, self.settings.id, account_id)
        self._scanned.wrote(account_id, self._row(made))

    def _blind(self, path: str, field: str) -> Misconfigured:
        return Misconfigured(
            f"{self.title} finds accounts by {path}, but shows no field {field!r} by which they could be told apart; correct "
            "the settings, or let find ask for complete accounts (endpoints.find.query).",
            code="no_identity_field",
        )

    async def _asked_for_nobody(self, lookup: Lookup) -> bool:
        """Whether the product shows somebody under a name that nobody has."""
        shown = False

        def fits(held: Mapping[str, Any]) -> bool:
            nonlocal shown
            shown = True
            return True

        try:
            await self.calls.asked("find", lookup, NOBODY, None, fits=fits, id_field=self.settings.id)
        except Rejected:  # a name of a wrong form
            return False
        return shown

    async def _known_findings(self, rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
        """Whether an account that is listed can be read, and is found by what it is known by."""
        findings: list[Finding] = []
        known = next((held for held in rows if at(held, self.settings.id) is not None), None)
        if known is None:
            return findings
        if self.settings.endpoints.read is not None:
            try:
                await self._read(self._id(known, "listed an account"), Delivery())
            except (Rejected, Gone, Unavailable) as exc:
                message = (
                    f"An account of {self.title} that is listed cannot be read: {exc.message}. Correct endpoints.read."
                )
                findings.append(Finding(level="error", code="cannot_read", message=message))
        for path, lookup in self.settings.identity.items():
            value = at(known, self.settings.attributes[path].field)
            if lookup.scan or value in (None, "") or isinstance(value, (dict, list)):
                continue
            try:
                found = bool(await self._found_by(path, text_of(value), None))
            except ConnectorError as exc:
                found, why = False, f": {exc.message}"
            else:
                why = ""
            if not found:
                message = f"{self.title} does not find an account it lists by {path}{why}. Correct identity.{path}."
                findings.append(Finding(level="error", code="not_found_again", message=message))
        return findings

    def _shape_findings(self, rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
        """Declared fields that no account shows."""
        findings: list[Finding] = []
        if not rows:
            return findings
        if all(at(held, self.settings.id) is None for held in rows):
            findings.append(
                Finding(
                    level="error",
                    code="no_id",
                    message=f"No account of {self.title} has an id at {self.settings.id!r}; correct id or endpoints.list.items.",
                )
            )
        for path, binding in self.settings.attributes.items():
            if binding.through == "field" and all(not has(held, binding.field) for held in rows):
                known = did_you_mean(binding.field, _fields_of(rows[0]))
                wanted = path in self.settings.identity
                findings.append(
                    Finding(
                        level="error" if wanted else "warning",
                        code="no_identity" if wanted else "unknown_field",
                        message=f"No account of {self.title} shows the field {binding.field!r} of {path}{known}",
                    )
                )
        states = self.settings.active
        if states is not None and states.field and all(states.means(at(held, states.field)) is None for held in rows):
            findings.append(
                Finding(
                    level="error",
                    code="unknown_state",
                    message=f"No account of {self.title} shows {states.on!r} or {states.off!r} at {states.field!r}; "
                    "correct active.",
                )
            )
        return findings

    def _foreign(self, held: Mapping[str, Any], account: Account | None) -> str:
        """Why an account found under our name is not ours: it carries another externalId."""
        binding = self.settings.attributes.get("externalId")
        if account is None or binding is None or self.settings.foreign == "adopt" or not account.external_id:
            return ""
        theirs = at(held, binding.field)
        if theirs in (None, "") or text_of(theirs).casefold() == account.external_id.casefold():
            return ""
        return (
            f"An account of this name exists in {self.title} and carries another externalId; remove it there, clear its "
            f'{binding.field}, or set foreign = "adopt" for this target.'
        )

    # Writing ----------------------------------------------------------------------------------------------------------

    async def _read(self, account_id: str, ctx: Delivery) -> dict[str, Any]:
        answer = await self.calls.send("read", ctx, values={"id": account_id})
        return self.calls.one("read", answer)

    def _fields(self, account: Account, ctx: Delivery) -> dict[str, Any]:
        """What is sent, the manager by the product's id; one without an account there is left out and waited for."""
        if account.manager is UNSET:
            return dict(account.fields)
        binding = self.settings.attributes[MANAGER]
        resolved = ctx.resolve(account.manager) if account.manager else None
        if account.manager and resolved is None:
            return dict(account.fields)
        value = resolved if account.manager else _cleared(binding)
        if isinstance(value, str) and "integer" in binding.transforms:
            value = self._one(MANAGER, binding, value)
        return {**account.fields, **({} if value is UNSET else {binding.field: value})}

    def _compare_fixed(self, held: Mapping[str, Any] | None, account: Account, ctx: Delivery) -> None:
        """Fields that never change: a new name there is refused, anything else is told."""
        for path, value in account.fixed.items():
            field = self.settings.attributes[path].field
            if held is None or _same(at(held, field), value):
                continue
            if path in self.settings.identity and not equal(at(held, field), value):
                raise Rejected(
                    f"{self.title} cannot change {field} of an account (write = create), so this user cannot be renamed there. "
                    "Take the old name back in Entra, or delete the account.",
                    code="cannot_rename",
                    attribute=path,
                )
            ctx.warnings.append(f"{path} is set for new accounts only; {self.title} keeps another value.")

    async def _write(
        self, account_id: str, held: Mapping[str, Any] | None, fields: Mapping[str, Any], ctx: Delivery
    ) -> None:
        """Send fields: those that differ, or everything that is held with them put in."""
        changed = {field: value for field, value in fields.items() if held is None or not _same(at(held, field), value)}
        if not changed:
            return
        for field in [one for one in changed if place(one) in {place(drop) for drop in self.settings.read_only}]:
            changed.pop(field)
        values = {"id": account_id}
        if self.settings.update == "json_patch" and held is not None:
            answer = await self.calls.send("update", ctx, values=values, operations=_operations(held, changed))
        elif self.settings.update == "replace" and held is not None:
            whole = deepcopy(dict(held))
            for field, value in changed.items():
                put(whole, field, value)
            answer = await self.calls.send("update", ctx, values=values, whole=self._writable(whole))
        else:
            whole = _with_siblings(held, changed, whole=self.settings.nested == "whole")
            answer = await self.calls.send("update", ctx, values=values, whole=self._writable(whole))
        states = self.settings.active
        if states is not None and states.way == "field" and _same(changed.get(states.field), states.off):
            self._check_off("update", answer)

    def _writable(self, whole: dict[str, Any]) -> dict[str, Any]:
        for field in self.settings.read_only:
            _drop(whole, field)
        return whole

    async def _switch(self, account_id: str, ctx: Delivery, *, on: bool) -> None:
        name: CallName = "activate" if on else "deactivate"
        answer = await self.calls.send(name, ctx, values={"id": account_id})
        if not on:
            self._check_off(name, answer)

    def _switch_needed(self, held: Mapping[str, Any] | None, wanted: bool | None) -> bool | None:
        """Which way to switch: True on, False off, None not at all."""
        states = self.settings.active
        if wanted is None or states is None:
            return None
        if held is not None and states.field and states.means(at(held, states.field)) is wanted:
            return None
        return wanted

    def _check_off(self, name: CallName, answer: VendorResponse) -> None:
        """A product that answers success and leaves the account switched on must not be believed."""
        states = self.settings.active
        held = self.calls.item(name, answer)
        if states is None or not states.field or held is None:
            return
        if states.means(at(held, states.field)) is True:
            raise Rejected(
                f"{self.title} answered success but still shows the account as switched on ({states.field}). Correct active in "
                "this target's settings, or ask the product's support.",
                code="not_deactivated",
                attribute="active",
            )

    async def _made(self, account: Account, answer: VendorResponse, ctx: Delivery) -> str:
        """The new account's id, from where the settings say it is."""
        sentence = f"{self.title} answered {answer.status} to create"
        call = self.settings.endpoints.create
        told = at(answer.body, call.id) if call.id else at(self.calls.item("create", answer), self.settings.id)
        there = last_part(answer)
        if self.settings.id_from == "location" and there is not None:
            return checked_id(there, sentence)
        if told is not None:  # also where the settings do not count on it
            return self._checked(told, sentence)
        if self.settings.id_from == "answer" and (there is None or self.settings.endpoints.read is None):
            return checked_id(None, sentence)
        if self.settings.id_from == "answer":
            return checked_id(there, sentence)
        found = await self._find(account, (), ctx)
        if len(found) != 1:
            raise Unavailable(
                f"{sentence}, but does not show the account yet; it is looked at again",
                code="not_shown",
                ambiguous=True,
            )
        return found[0].account_id

    async def _after_create(
        self, states: States, account_id: str, answer: VendorResponse, ctx: Delivery, *, wanted: bool
    ) -> None:
        """Some products switch every new account on, or off, whatever was asked."""
        held = self.calls.item("create", answer)
        shown = states.means(at(held, states.field)) if held is not None and states.field else None
        if states.way == "calls":
            if not wanted and shown is not False:
                await self._switch(account_id, ctx, on=False)
            elif wanted and shown is False:
                await self._switch(account_id, ctx, on=True)
        elif not wanted and shown is True:
            full = await self._read(account_id, ctx) if self.settings.endpoints.read is not None else held
            await self._write(account_id, full, {states.field: states.off}, ctx)

    async def _taken(self, account: Account, refused: Conflict, ctx: Delivery) -> None:
        """Why an account cannot be created. An account that was merely found is linked by the gateway (R4)."""
        found = await self._find(account, (), ctx)
        foreign = next((one.conflict for one in found if one.conflict), "")
        if foreign:
            raise Conflict(foreign, code="account_of_another", attribute=refused.attribute)
        if found:
            raise already_there(self.title, "this account") from None


class GenericRestWithGroups(GenericRest):
    """The same for a product whose groups are declared."""

    @property
    def kept_groups(self) -> RestGroups:
        """The part that keeps them."""
        assert self._groups is not None, "made for declared groups only"
        return self._groups

    async def list_groups(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """One page of groups."""
        return await self.kept_groups.listed(cursor)

    def expected_group(self, group: Group) -> Expected | None:
        """Name, and the field for Entra's id where there is one."""
        return self.kept_groups.expected(group)

    async def list_members(self, group_id: str, cursor: str | None) -> tuple[list[str], str | None]:
        """Whom a group holds, page by page."""
        return await self.kept_groups.members(group_id, cursor)

    async def find_group(self, group: Group | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """By name."""
        return await self.kept_groups.find(group, identities, ctx)

    async def put_group(self, group_id: str | None, group: Group, ctx: Delivery) -> str:
        """Create without members, or write what differs."""
        return await self.kept_groups.put(group_id, group, ctx)

    async def change_members(self, group_id: str, add: Sequence[str], remove: Sequence[str], ctx: Delivery) -> None:
        """What differs, by calls or as a whole list."""
        await self.kept_groups.change_members(group_id, add, remove, ctx)

    async def delete_group(self, group_id: str, ctx: Delivery) -> None:
        """The group only; its users stay."""
        await self.kept_groups.delete(group_id, ctx)


def _with_siblings(held: Mapping[str, Any] | None, changed: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
    """Changed fields, and what a product would lose without them.

    Of a list that changes in part everything is sent, and with `whole` of an object too, since products may replace it whole.
    """
    sent: dict[str, Any] = {}
    for field, value in changed.items():
        parts = place(field)
        depth = next((number for number, part in enumerate(parts) if isinstance(part, Pick)), 0)
        around = _pointer([str(part) for part in (parts[:1] if whole and len(parts) > 1 else parts[:depth])])
        there = at(held, around) if around and held is not None else None
        if isinstance(there, (Mapping, list)) and not has(sent, around):
            put(sent, around, deepcopy(there))
        put(sent, field, value)
    return sent


def _operations(held: Mapping[str, Any], changed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What turns the held account into the wished one (RFC 6902); a list that changes in part is replaced as a whole."""
    operations: list[dict[str, Any]] = []
    merged = deepcopy(dict(held))
    for field, value in changed.items():
        put(merged, field, value)
    seen: set[str] = set()
    for field in changed:
        parts = place(field)
        depth = next((number for number, part in enumerate(parts) if isinstance(part, Pick)), len(parts))
        names = [str(part) for part in parts[:depth]]
        while len(names) > 1 and not isinstance(at(held, _pointer(names[:-1])), Mapping):
            names.pop()  # an object that is not there is added as a whole
        pointer = _pointer(names)
        if pointer in seen:
            continue
        seen.add(pointer)
        whole = at(merged, pointer)
        if has(held, pointer):
            operations.append({"op": "replace", "path": pointer, "value": whole})
        elif whole not in (None, []):
            operations.append({"op": "add", "path": pointer, "value": whole})
    return operations


def _pointer(names: Sequence[str]) -> str:
    return "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in names)


def _drop(body: dict[str, Any], field: str) -> None:
    *way, last = place(field)
    inner: Any = body
    for part in way:
        if isinstance(part, Pick):
            entries = inner if isinstance(inner, list) else []
            inner = next(
                (one for one in entries if isinstance(one, dict) and equal(one.get(part.key), part.value)), None
            )
        else:
            inner = inner.get(part) if isinstance(inner, dict) else None
    if isinstance(inner, dict):
        inner.pop(str(last), None)


def _same(held: Any, wanted: Any) -> bool:
    """Whether the product holds a value already; no value and an empty one are the same, letter case counts."""
    empty: tuple[Any, ...] = (None, "", [])
    if wanted in empty or held in empty:
        return wanted in empty and held in empty
    if isinstance(wanted, list):
        return isinstance(held, list) and sorted(map(text_of, held)) == sorted(map(text_of, wanted))
    return not isinstance(held, (dict, list)) and text_of(held) == text_of(wanted)


def _comparable(value: Any, *, exact: bool) -> Any:
    """A value in the form in which lists and wishes are compared."""
    if isinstance(value, list):
        return sorted(text_of(one) for one in value if not isinstance(one, (dict, list))) or None
    if value in (None, "") or isinstance(value, dict):
        return None
    return text_of(value) if exact else text_of(value).casefold()


def _cleared(binding: Binding) -> Any:
    if binding.cleared == "keep":
        return UNSET
    if binding.many == "list":
        return []
    return "" if binding.cleared == "empty" or binding.many == "joined" else None


def _fields_of(held: Mapping[str, Any], outer: str = "", depth: int = 0) -> Iterable[str]:
    for name, value in held.items():
        yield f"{outer}{name}"
        if isinstance(value, Mapping) and depth < DEPTH_MAX:
            yield from _fields_of(value, f"{outer}{name}.", depth + 1)


__all__ = ["Account", "GenericRest", "Settings"]
