"""TeleMessage: archived users, known by their mobile number, each under one company manager.

Assumed: the REST contract, modelled on the vendor's public SOAP objects; the archiver's real interface is not public.
Documented: the number in full international form, digits only; displayName is the company manager's name, not the person's;
unregistering suspends, and a deleted number cannot be registered again; a change of number is a call of its own, because the
archive hangs on the user.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import phonenumbers
from msgspec import UNSET, Meta, Struct, UnsetType
from phonenumbers import PhoneMetadata, PhoneNumberType, ValidationResult

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
from connectors.http import Bearer, address_problem, already_there, clean, error_of
from connectors.scim import checked_id, held_text, ignored_paths, kept_text, spoken_of
from schemas.config import Secret
from schemas.errors import Blocked, Conflict, Gone, Misconfigured, NormalizationError, Rejected, Unavailable
from schemas.events import identity, split_identity
from schemas.resources import User
from schemas.specs import Attribute, RateLimit, Spec

TITLE = "TeleMessage"
RAW_CHARS_MAX = 200
DIGITS_MIN = 7
IMAGINED_PAGES_MAX = 10
"""Pages of users a rehearsal looks through for the account it is about."""
DIGITS_MAX = 15
"""ITU-T E.164 section 6: fifteen digits at most, country code included."""
OVERRIDES_MAX = 10_000
APPROVAL_MAX_S = 86_400.0
"""The product works requests off once a day; one that is older needs a person."""

GUID = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"

Extension = Literal["reject", "drop"]
Code = Literal["missing", "not_a_number", "extension", "no_country", "impossible"]

_DIGITS_ONLY = re.compile(rf"[0-9]{{{DIGITS_MIN},{DIGITS_MAX}}}")
_ALLOWED = re.compile(r"[0-9\s+\-.()/]*")
_PLUS = re.compile(r"\s*\(?\s*\+")
_BRACKETED_ZERO = re.compile(r"\(\s*0\s*\)")
_EXTENSION = re.compile(
    r"[\s,;]*(?:;\s*ext\s*=|(?<![a-z])(?:extension|extn?\.?|x)|#)[\s:.]*[0-9]{1,11}\s*$", re.IGNORECASE
)
_MOBILE_TYPES = frozenset({PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE_OR_MOBILE})

_SAID: dict[Code, str] = {
    "missing": "is blank",
    "not_a_number": "is not a telephone number",
    "extension": "has an extension",
    "no_country": "has no country code, and no default_region is set",
    "impossible": "has too few or too many digits for its country, or no country code",
}


def normalize_mobile(
    raw: Any,
    default_region: str | None = None,
    extension: Extension = "reject",
    overrides: Mapping[str, str] | None = None,
) -> str:
    """A mobile number as TeleMessage wants it: country code and national number, digits only (M10-M16).

    Plausibility is checked, assignment is not (M15). Normalizing a result again with the same settings changes nothing; a number
    for which that cannot be promised, because its digits read differently in the default region, is refused.

    Args:
        raw: what Entra holds in `mobile`.
        default_region: ISO 3166 code of the country whose national numbers are understood.
        extension: what to do with an extension such as `ext. 45`.
        overrides: raw value -> digits, for numbers the rules read wrongly (M16).

    Raises:
        NormalizationError: code `missing`, `not_a_number`, `extension`, `no_country` or `impossible`; never shows the number.
    """
    region = default_region.upper() if default_region else None
    digits = _normalized(raw, region, extension, overrides or {})
    try:
        again = _normalized(digits, region, extension, overrides or {})
    except NormalizationError:
        again = ""
    if again != digits:
        raise _refused("impossible", str(raw), f"is a number of another kind in {region}; add it to overrides")
    return digits


def _normalized(raw: Any, region: str | None, extension: Extension, overrides: Mapping[str, str]) -> str:
    if raw is None:
        raise _refused("missing", "")
    if isinstance(raw, bool) or not isinstance(raw, (str, int)):
        raise _refused("not_a_number", "")
    given = str(raw) if not isinstance(raw, int) or abs(raw) < 10**DIGITS_MAX else "-"
    if given in overrides.values():
        return _checked(given, given)
    override = overrides.get(given, overrides.get(given.strip()))
    if override is not None:
        return _checked(override, given)
    if len(given) > RAW_CHARS_MAX:
        raise _refused("not_a_number", given)
    text = _ascii(given)
    if not text:
        raise _refused("missing", given)
    if text[:4].casefold() == "tel:":
        text = text[4:].strip()
    tail = _EXTENSION.search(text)
    if tail is not None:
        if extension == "reject":
            raise _refused("extension", given)
        text = text[: tail.start()].strip()
    if not _ALLOWED.fullmatch(text) or not re.search(r"[0-9]", text):
        raise _refused("not_a_number", given)
    has_plus = _PLUS.match(text) is not None
    if text.count("+") > (1 if has_plus else 0):
        raise _refused("not_a_number", given)
    number = _international(text) if has_plus else _without_plus(text, region, given)
    if number is None:
        raise _refused("impossible", given)
    digits = _e164(number)
    return _checked(overrides.get(digits, digits), given)


def _without_plus(text: str, region: str | None, given: str) -> phonenumbers.PhoneNumber | None:
    """Rules 5 to 7: exit codes, one leading zero, bare digits."""
    digits = _digits(text)
    as_international = _international(text)
    for rest, certain in _after_exit_code(text, digits, region):
        # An exit code that does not begin with 0 may also be the begin of a number that is international already.
        if certain or as_international is None or not phonenumbers.is_valid_number(as_international):
            number = _international(rest)
            if number is not None:
                return number
    if digits.startswith("00"):
        return None
    if digits.startswith("0"):
        if region is None:
            raise _refused("no_country", given)
        return _possible(digits, region)
    as_national = _possible(digits, region) if region is not None else None
    if as_international is None or as_national is None:
        return as_international or as_national
    if _e164(as_international) == _e164(as_national):
        return as_international
    national_mobile = (
        phonenumbers.is_valid_number(as_national) and phonenumbers.number_type(as_national) in _MOBILE_TYPES
    )
    if national_mobile and not phonenumbers.is_valid_number(as_international):
        return as_national
    return as_international


def _after_exit_code(text: str, digits: str, region: str | None) -> list[tuple[str, bool]]:
    """What follows the region's own exit code, then what follows 00; with whether it can be nothing else."""
    found: list[tuple[str, bool]] = []
    metadata = PhoneMetadata.metadata_for_region(region, None) if region is not None else None
    prefix = metadata.international_prefix if metadata is not None else None
    if prefix and (opened := re.match(prefix, digits)):
        found.append((_behind(text, opened.end()), digits.startswith("0")))
    if digits.startswith("00"):
        found.append((_behind(text, 2), True))
    return found


def _behind(text: str, count: int) -> str:
    """The text after its first `count` digits; punctuation stays, because a bracketed zero still has to be seen."""
    for index, char in enumerate(text):
        if count == 0:
            return text[index:]
        count -= char.isdigit()
    return ""


def _international(text: str) -> phonenumbers.PhoneNumber | None:
    """The number read as country code and rest. A bracketed zero may or may not belong to it: the first valid reading wins."""
    readings = [_BRACKETED_ZERO.sub(" ", text), text] if _BRACKETED_ZERO.search(text) else [text]
    possible = [number for number in (_possible(f"+{_digits(one)}", None) for one in readings) if number is not None]
    return next(
        (number for number in possible if phonenumbers.is_valid_number(number)), possible[0] if possible else None
    )


def _possible(text: str, region: str | None) -> phonenumbers.PhoneNumber | None:
    """Parsed, when its length fits its country exactly; numbers that can be dialled locally only do not count."""
    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return None
    if phonenumbers.is_possible_number_with_reason(number) != ValidationResult.IS_POSSIBLE:
        return None
    return number if _DIGITS_ONLY.fullmatch(_e164(number)) else None


def _e164(number: phonenumbers.PhoneNumber) -> str:
    """Country code and national number. Only this format keeps the zero of an Italian landline (M14)."""
    return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)).removeprefix("+")


def _ascii(text: str) -> str:
    """Without invisible characters, with plain digits, dashes and blanks."""
    visible = "".join(char for char in text if unicodedata.category(char) != "Cf")
    folded = []
    for char in unicodedata.normalize("NFKC", visible):
        digit = unicodedata.decimal(char, None)
        if digit is not None:
            folded.append(str(digit))
        elif unicodedata.category(char) == "Pd" or char == "\u2212":
            folded.append("-")
        else:
            folded.append(char)
    return "".join(folded).strip()


def _digits(text: str) -> str:
    return re.sub(r"[^0-9]", "", text)


def _checked(digits: str, given: str) -> str:
    if _DIGITS_ONLY.fullmatch(digits) is None:
        raise _refused("impossible", given)
    return digits


def is_region(code: str) -> bool:
    """Whether a text is an ISO 3166 code of a country with telephone numbers, in capitals."""
    return code in phonenumbers.SUPPORTED_REGIONS


def is_assigned(digits: str) -> bool:
    """Whether a normalized number lies in a range that is known to be given out; refusing others would be wrong (M15)."""
    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(f"+{digits}")))
    except phonenumbers.NumberParseException:
        return False


def masked(number: str) -> str:
    """A number as logs and messages may show it: the country code, where it has one, and the last two digits (rule A10)."""
    text = _ascii(number[:RAW_CHARS_MAX])
    digits = _digits(text)
    if len(digits) < 6:
        return "…"
    plus = "+" if text.startswith("+") else ""
    codes = (digits[:length] for length in (1, 2, 3))
    known = (code for code in codes if int(code) in phonenumbers.COUNTRY_CODE_TO_REGION_CODE)
    country = "" if digits.startswith("0") else next(known, "")
    return f"{plus}{country} … {digits[-2:]}" if country else f"… {digits[-2:]}"


def _refused(code: Code, given: str, said: str = "") -> NormalizationError:
    shown = "" if code == "missing" else f" '{masked(given)}'"
    return NormalizationError(
        f"userName must be the mobile number in full international form, digits only ({TITLE}); the value{shown} "
        f"{said or _SAID[code]}. Map userName from mobile and correct the number in Entra.",
        code=code,
        attribute="userName",
    )


class Settings(Struct, frozen=True, kw_only=True):
    """One company manager at TeleMessage (M19: several managers are several targets)."""

    base_url: Annotated[str, Meta(description="address of TeleMessage's provisioning interface")]
    token: Annotated[Secret, Meta(description="bearer token from TeleMessage, as a reference")]
    manager_name: Annotated[
        str, Meta(min_length=1, description="the company manager's name exactly as set up at TeleMessage (M18)")
    ]
    entra_tenant_id: Annotated[
        Annotated[str, Meta(pattern=GUID)] | None,
        Meta(
            description="the tenant the account manager has approved (M1); `provgate check` compares it with entra.tenant"
        ),
    ] = None
    default_region: Annotated[str | None, Meta(description="ISO country code for numbers without country code")] = None
    extension: Annotated[Extension, Meta(description="a number with an extension, e.g. `ext. 45`")] = "reject"
    overrides: Annotated[
        dict[str, str],
        Meta(description="number as it stands in Entra -> its digits, where the rules read it wrongly (M16)"),
    ] = {}
    on_delete: Annotated[
        Literal["deactivate", "delete"], Meta(description="what a SCIM DELETE does; a deleted number stays reserved")
    ] = "deactivate"
    send_welcome: Annotated[bool, Meta(description="whether TeleMessage welcomes new users")] = False
    allow_loopback: Annotated[bool, Meta(description="for emulators: permits http to this machine")] = False

    def __post_init__(self) -> None:
        problem = address_problem(self.base_url, allow_loopback=self.allow_loopback)
        if problem:
            raise ValueError(f"base_url {problem}")
        if self.default_region is not None and self.default_region not in phonenumbers.SUPPORTED_REGIONS:
            raise ValueError(f"default_region {self.default_region!r} is not an ISO country code such as GB")
        if len(self.overrides) > OVERRIDES_MAX:
            raise ValueError(f"overrides has more than {OVERRIDES_MAX} entries")
        for raw, digits in self.overrides.items():
            if _DIGITS_ONLY.fullmatch(digits) is None:
                raise ValueError(
                    f"overrides: the value for '{masked(raw)}' must be {DIGITS_MIN} to {DIGITS_MAX} digits"
                )
            if self.overrides.get(digits, digits) != digits:
                raise ValueError(f"overrides: the value for '{masked(raw)}' is overridden itself")


class Account(Struct, frozen=True, kw_only=True):
    """What TeleMessage shall hold. A name or e-mail that nobody sent is UNSET and kept; one that was removed is ""."""

    number: str
    active: bool
    first_name: str | UnsetType = UNSET
    last_name: str | UnsetType = UNSET
    email: str | UnsetType = UNSET
    warnings: tuple[str, ...] = ()

    def person(self) -> dict[str, str]:
        """Names and e-mail as the product spells them, without what nobody sent."""
        fields = {"firstName": self.first_name, "lastName": self.last_name, "email": self.email}
        return {name: value for name, value in fields.items() if isinstance(value, str)}

    def is_called(self, held: Mapping[str, Any]) -> bool:
        """Whether a user of the product has this number in both places."""
        return str(held.get("mobilePhone", "")) == str(held.get("userName", "")) == self.number


class TeleMessage(Connector[Settings, Account]):
    """Users of one company manager."""

    spec = Spec(
        name="telemessage",
        title=TITLE,
        attributes=(
            Attribute(
                "userName",
                "mobilePhone",
                required=True,
                source="mobile",
                note="full international number, matching precedence 1 (M9, M10)",
            ),
            Attribute("active", "status", type="boolean", source="Not([IsSoftDeleted])", note="M17"),
            Attribute(
                "displayName",
                "manager",
                source="Constant: the company manager's name",
                note="not the person's name (M18)",
            ),
            Attribute('emails[type eq "work"].value', "email", source="mail", note="M20"),
            Attribute("name.givenName", "firstName", source="givenName", note="M21"),
            Attribute("name.familyName", "lastName", source="surname", note="M22"),
            Attribute("externalId", "", source="mobile", note="kept by the gateway only (M23)"),
        ),
        groups_step=f"{TITLE} has no groups: switch group provisioning off in Entra (Provision Microsoft Entra ID Groups: No).",
        rate_limit=RateLimit(calls=10, per_s=1.0),
        concurrency_max=8,
        on_delete="deactivate",
        capabilities=("list_accounts", "idempotency_keys", "approval", "normalizes_identity"),
        settle_s=300.0,
        support="assumed",
        pitfalls=(
            "A deleted number can never be registered again; therefore a deletion suspends unless on_delete says otherwise.",
            "When the mobile number changes in Entra, userName and externalId change together; only the gateway's id stays.",
            "displayName is a constant: the company manager's name. One Entra application per manager.",
        ),
    )
    settings_type = Settings

    @classmethod
    def endpoint(cls, settings: Settings) -> Endpoint | None:
        """The configured address with a static bearer token."""
        return Endpoint(base_url=settings.base_url, auth=Bearer(settings.token), allow_loopback=settings.allow_loopback)

    def __init__(self, settings: Settings, http: VendorHttp) -> None:
        super().__init__(settings, http)
        self._manager = settings.manager_name

    def normalize(self, user: User, directory: Directory) -> Account:
        """M9-M23. Raises NormalizationError for the number's five codes and `wrong_manager`."""
        number = self._number(user.user_name)
        warnings: list[str] = []
        if isinstance(user.display_name, str) and user.display_name.strip():
            if user.display_name.strip() != self._manager:
                raise NormalizationError(
                    "displayName must be the company manager's name as a constant (TeleMessage), and it is not the name this "
                    "target is for. Map displayName as Constant with the name in this target's manager_name; another "
                    "manager needs a target and an Entra application of its own.",
                    code="wrong_manager",
                    attribute="displayName",
                )
        else:
            warnings.append("displayName is not mapped; the manager of this target's settings is used.")
        if not is_assigned(number):
            warnings.append(f"The number {masked(number)} is possible but not assigned as far as is known.")
        first_name, last_name = kept_text(user.name.given_name), kept_text(user.name.family_name)
        if not first_name and not last_name:
            warnings.append(f"Both names are empty; {TITLE} shows the number as first name.")
        return Account(
            number=number,
            active=user.is_active,
            first_name=first_name,
            last_name=last_name,
            email=_email(user),
            warnings=tuple(warnings),
        )

    def account_keys(self, account: Account) -> tuple[str, ...]:
        """The digits, so that a filter finds the user by any spelling of the number (A1)."""
        return (account.number,)

    def ignored(self, user: User) -> tuple[str, ...]:
        """Everything beyond the seven attributes of M8."""
        return ignored_paths(user, self.spec)

    async def check(self) -> list[Finding]:
        """Address, token, and whether the manager exists (M18)."""
        answer = await self.http.request("GET", "/v1/managers")
        rows = answer.body.get("managers", []) if isinstance(answer.body, dict) else []
        names = [str(row.get("name", "")) for row in rows if isinstance(row, dict)]
        findings = [Finding(level="ok", code="reachable", message=f"{TITLE} accepts the token.")]
        if self._manager not in names:
            twin = next((name for name in names if name.casefold().split() == self._manager.casefold().split()), None)
            hint = f"; did you mean {twin!r}?" if twin else f"; it knows {len(names)}"
            findings.append(
                Finding(
                    level="error",
                    code="unknown_manager",
                    message=f"{TITLE} has no company manager {self._manager!r}{hint}. Correct manager_name, letter by letter.",
                )
            )
        if self.settings.default_region is None:
            findings.append(
                Finding(
                    level="warning",
                    code="no_default_region",
                    message="Without default_region every number in Entra needs its country code.",
                )
            )
        if self.settings.on_delete == "delete":
            findings.append(
                Finding(
                    level="warning",
                    code="delete_reserves",
                    message='on_delete = "delete" makes numbers unusable for ever; "deactivate" suspends.',
                )
            )
        return findings

    async def find(self, account: Account | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """By number. An identity that is no number matches nothing (0.2)."""
        asked: dict[str, Identity] = {}
        for name in identities:
            attribute, value = split_identity(name)
            if attribute != "userName":
                continue
            try:
                asked.setdefault(self._number(value), name)
            except NormalizationError:
                continue
        if account is not None:
            first = identities[0] if identities else identity("userName", account.number)
            asked.setdefault(account.number, first)
        found = []
        for number, name in asked.items():
            held = await self._look_up(number, ctx)
            if held is not None:
                found.append(Found(account_id=_id(held), identity=name, conflict=self._conflict(held)))
        return found

    async def create(self, account: Account, ctx: Delivery) -> str:
        """POST with an idempotency key; a number that turns out to be taken is looked up and judged."""
        ctx.warnings.extend(account.warnings)
        wish = {
            "userName": account.number,
            "mobilePhone": account.number,
            **{name: value for name, value in account.person().items() if value},
            "manager": self._manager,
            "status": _status(account.active),
            "sendWelcome": self.settings.send_welcome,
        }
        path = "/v1/users"
        answer = await self.http.request(
            "POST",
            path,
            ctx=ctx,
            json=wish,
            headers=_once(ctx, "create"),
            expect=(400, 409),
            idempotent=bool(ctx.idempotency_key),
        )
        if answer.status == 409:
            await self._taken(account.number, answer, ctx)
        self._refused(answer, "POST", path)
        held = _user_of(answer, "POST", path)
        account_id = _id(held)
        if not account.active and held["status"] != "suspended":  # once approved, a pending user would be let in
            held = await self._put_status(account_id, False, ctx)
        self._await_approval(held, account_id, account)
        return account_id

    async def update(self, account_id: str, account: Account, ctx: Delivery) -> None:
        """A suspension goes first; then the number, so that a refused one changes nothing else; then names and e-mail.

        There is no reading by id, and the list may lag, so what it said is held against the answer to each write.
        """
        ctx.warnings.extend(account.warnings)
        person = account.person()
        if account.active:
            held = await self._look_up(account.number, ctx) or {}
        else:
            held = await self._put_status(account_id, False, ctx)
        if str(held.get("id")) != account_id or not account.is_called(held):
            held = await self._put_number(account_id, account.number, ctx)
        if person:
            held = await self._put_person(account_id, person, ctx)
        elif account.active:
            held = await self._put_status(account_id, True, ctx)
        if not account.is_called(held):
            held = await self._put_number(account_id, account.number, ctx)
        if account.active and held.get("status") == "suspended":
            held = await self._put_status(account_id, True, ctx)
        self._await_approval(held, account_id, account)

    async def delete(self, account_id: str, ctx: Delivery) -> None:
        """Suspend, because deleting reserves the number for ever; or delete, where the settings say so."""
        if self.settings.on_delete == "delete":
            await self.http.request(
                "DELETE", "/v1/users/{id}", ctx=ctx, parts={"id": account_id}, expect=(404, 410), idempotent=True
            )
            return
        try:
            await self._put_status(account_id, False, ctx)
        except Gone:
            return

    async def list_accounts(self, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """One page of this manager's users."""
        path = "/v1/users"
        query = {"manager": self._manager, **({"cursor": cursor} if cursor else {})}
        answer = await self.http.request("GET", path, query=query)
        users = _users_of(answer, path)
        page = [
            {
                "account_id": _id(user),
                "identities": (identity("userName", str(user.get("mobilePhone", ""))),),
                "active": None if user.get("status") == "pending" else user.get("status") == "active",
                "values": _shown(user),
            }
            for user in users
        ]
        following = answer.body.get("next")
        return page, str(following) if following else None

    def expected(self, account: Account) -> Expected:
        """The number, names and e-mail; without both names the product shows the number as first name."""
        values = spoken_of(
            {
                "name.givenName": account.first_name,
                "name.familyName": account.last_name,
                'emails[type eq "work"].value': account.email,
            }
        )
        if not values.get("name.givenName") and not values.get("name.familyName"):
            values.pop("name.givenName", None)
        return Expected(
            identities=(identity("userName", account.number),), values={"userName": account.number, **values}
        )

    async def imagine(self, write: Write, made_id: str, held: Held, ctx: Delivery | None) -> Imagined | None:
        """For rehearsals: every answer is the whole user, of whom there is no reading by id."""
        sent = write.body if isinstance(write.body, dict) else {}
        known = "/v1/users/{id}"
        if (write.method, write.path) == ("POST", "/v1/users"):
            made = {**sent, "id": made_id}
            return Imagined(201, made, held=((known, {"id": made_id}, made),))
        account_id = write.parts.get("id")
        if account_id is None or write.method == "DELETE":
            return None
        user = held(known, {"id": account_id}) or await self._listed(account_id)
        if user is None and ctx is not None:
            ctx.warnings.append(f"{TITLE} could not be asked what it holds, so every step that may be needed is shown.")
        shown = {"id": account_id, "status": "suspended", **(user or {}), **sent}
        return Imagined(200, shown, held=((known, {"id": account_id}, shown),))

    async def _listed(self, account_id: str) -> dict[str, Any] | None:
        """A user from the first IMAGINED_PAGES_MAX pages of the list, which may lag some minutes."""
        path, cursor = "/v1/users", None
        for _ in range(IMAGINED_PAGES_MAX):
            query = {"manager": self._manager, **({"cursor": cursor} if cursor else {})}
            answer = await self.http.request("GET", path, query=query)
            users = _users_of(answer, path)
            found = next((user for user in users if str(user.get("id")) == account_id), None)
            cursor = answer.body.get("next")
            if found is not None or not cursor:
                return found
        return None

    # Steps ------------------------------------------------------------------------------------------------------------

    def _number(self, raw: Any) -> str:
        return normalize_mobile(raw, self.settings.default_region, self.settings.extension, self.settings.overrides)

    async def _look_up(self, number: str, ctx: Delivery) -> dict[str, Any] | None:
        path = "/v1/users"
        users = _users_of(await self.http.request("GET", path, ctx=ctx, query={"mobilePhone": number}), path)
        return next((user for user in users if str(user.get("mobilePhone")) == number), None)

    def _conflict(self, held: Mapping[str, Any]) -> str:
        if held.get("manager") == self._manager:
            return ""
        return (
            f"This number belongs to a user of another company manager at {TITLE}{_named(held.get('id'))}; ask the account "
            "manager to move it."
        )

    async def _taken(self, number: str, answer: VendorResponse, ctx: Delivery) -> None:
        """Why a number cannot be created. Always raises."""
        _raise_if_reserved(answer, number)
        held = await self._look_up(number, ctx)
        if held is not None and (conflict := self._conflict(held)):
            raise Conflict(conflict, code="other_manager", attribute="userName")
        raise already_there(TITLE, f"a user with the number {masked(number)}")

    async def _put_person(self, account_id: str, person: Mapping[str, str], ctx: Delivery) -> dict[str, Any]:
        path = "/v1/users/{id}"
        answer = await self.http.request(
            "PATCH", path, ctx=ctx, parts={"id": account_id}, json=dict(person), expect=(400,), idempotent=True
        )
        self._refused(answer, "PATCH", path)
        return _user_of(answer, "PATCH", path)

    async def _put_number(self, account_id: str, number: str, ctx: Delivery) -> dict[str, Any]:
        """The user stays the same, so the archive stays with them; never delete and create."""
        path = "/v1/users/{id}/login"
        answer = await self.http.request(
            "POST",
            path,
            ctx=ctx,
            parts={"id": account_id},
            json={"userName": number, "mobilePhone": number},
            headers=_once(ctx, "login"),
            expect=(400, 409),
            idempotent=True,
        )
        if answer.status == 409:
            _raise_if_reserved(answer, number)
            holder = answer.body.get("userId") if isinstance(answer.body, dict) else None
            raise Conflict(
                f"The number {masked(number)} belongs to another user at {TITLE}{_named(holder)}; free it there or correct "
                "mobile in Entra.",
                code="number_taken",
                attribute="userName",
            )
        self._refused(answer, "POST", path)
        return _user_of(answer, "POST", path)

    async def _put_status(self, account_id: str, active: bool, ctx: Delivery) -> dict[str, Any]:
        path = "/v1/users/{id}/status"
        answer = await self.http.request(
            "POST",
            path,
            ctx=ctx,
            parts={"id": account_id},
            json={"status": _status(active)},
            headers=_once(ctx, f"status-{_status(active)}"),
            idempotent=True,
        )
        return _user_of(answer, "POST", path)

    def _refused(self, answer: VendorResponse, method: str, path: str) -> None:
        """Raise for a 400: the manager is configuration, everything else is the person's data."""
        if answer.status < 300:
            return
        body = answer.body if isinstance(answer.body, dict) else {}
        field = str(body.get("field", ""))
        error = error_of(TITLE, method, path, answer)
        if field == "manager" or str(body.get("code", "")).upper() == "UNKNOWN_MANAGER":
            raise Misconfigured(
                f"{TITLE} does not know the company manager of this target; correct manager_name, letter by letter.",
                code="unknown_manager",
            )
        attribute = _ATTRIBUTE_OF.get(field)
        raise Rejected(f"{error.message}. Correct {attribute or 'the value'} in Entra.", attribute=attribute)

    def _await_approval(self, held: Mapping[str, Any], account_id: str, account: Account) -> None:
        if account.active and held.get("status") == "pending":
            raise Blocked(
                f"{TITLE} has taken the request and approves it in its daily run",
                on="approval",
                code="pending",
                wait_max_s=APPROVAL_MAX_S,
                account_id=account_id,
                observed_active=False,
            )


_ATTRIBUTE_OF = {
    "userName": "userName",
    "mobilePhone": "userName",
    "firstName": "name.givenName",
    "lastName": "name.familyName",
    "email": 'emails[type eq "work"].value',
    "status": "active",
}


def _shown(user: Mapping[str, Any]) -> dict[str, str | None]:
    """What the list shows of the managed attributes."""
    return {
        "userName": held_text(user.get("mobilePhone")),
        "name.givenName": held_text(user.get("firstName")),
        "name.familyName": held_text(user.get("lastName")),
        'emails[type eq "work"].value': held_text(user.get("email")),
    }


def _email(user: User) -> str | UnsetType:
    for entry in user.emails:
        if isinstance(entry.type, str) and entry.type.casefold() == "work":
            return kept_text(entry.value)
    return UNSET


def _status(active: bool) -> str:
    return "active" if active else "suspended"


def _once(ctx: Delivery, step: str) -> dict[str, str]:
    """One key per step: the product replays the first answer for a repeated key, whatever the call."""
    return {"Idempotency-Key": f"{ctx.idempotency_key}:{step}"} if ctx.idempotency_key else {}


def _named(account_id: Any) -> str:
    """The holder of a number by the product's id, unless that id looks like a personal value."""
    return f" ({account_id})" if account_id and clean(account_id) == account_id else ""


def _raise_if_reserved(answer: VendorResponse, number: str) -> None:
    if isinstance(answer.body, dict) and answer.body.get("reserved") is True:
        raise Rejected(
            f"The number {masked(number)} was deleted at {TITLE} and stays reserved; ask the account manager to free it.",
            code="number_reserved",
            attribute="userName",
        )


def _users_of(answer: VendorResponse, path: str) -> list[dict[str, Any]]:
    users = answer.body.get("users") if isinstance(answer.body, dict) else None
    if not isinstance(users, list) or not all(isinstance(user, dict) for user in users):
        raise Unavailable(f"{TITLE} answered GET {path} without a list of users", code="malformed")
    return users


def _user_of(answer: VendorResponse, method: str, path: str) -> dict[str, Any]:
    if not isinstance(answer.body, dict) or not isinstance(answer.body.get("status"), str):
        raise Unavailable(
            f"{TITLE} answered {answer.status} to {method} {path} without a user", code="malformed", ambiguous=True
        )
    return answer.body


def _id(held: Mapping[str, Any]) -> str:
    return checked_id(held.get("id"), f"{TITLE} answered with a user")
