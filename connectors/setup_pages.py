"""The printed parts of the setup pages: `python -m connectors.docs` puts them into `setup/<product>.md`.

A page is written by hand for one reader, the Entra admin; what is the same for all products, and the mapping, which comes from
the spec, stands between `<!-- printed: NAME -->` and `<!-- end -->` and is made here. A test fails when it is stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from connectors import registry
from schemas.specs import Attribute, Spec

FOLDER = Path(__file__).with_name("setup")

_ENTERPRISE = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
DEFAULT_MAPPING: dict[str, str] = {
    "userName": "userPrincipalName",
    "active": 'Switch([IsSoftDeleted], , "False", "True", "True", "False")',
    "displayName": "displayName",
    "title": "jobTitle",
    'emails[type eq "work"].value': "mail",
    "preferredLanguage": "preferredLanguage",
    "name.givenName": "givenName",
    "name.familyName": "surname",
    "name.formatted": 'Join(" ", [givenName], [surname])',
    'addresses[type eq "work"].formatted': "physicalDeliveryOfficeName",
    'addresses[type eq "work"].streetAddress': "streetAddress",
    'addresses[type eq "work"].locality': "city",
    'addresses[type eq "work"].region': "state",
    'addresses[type eq "work"].postalCode': "postalCode",
    'addresses[type eq "work"].country': "country",
    'phoneNumbers[type eq "work"].value': "telephoneNumber",
    'phoneNumbers[type eq "mobile"].value': "mobile",
    'phoneNumbers[type eq "fax"].value': "facsimileTelephoneNumber",
    "externalId": "mailNickname",
    f"{_ENTERPRISE}:employeeNumber": "employeeId",
    f"{_ENTERPRISE}:department": "department",
    f"{_ENTERPRISE}:manager": "manager",
}
"""What Entra maps in a new application of one's own: SCIM attribute -> source, in the portal's order."""

_IDS = re.compile(r" ?\([TBMLS]\d[^)]*\)|\b[TBMLS]\d{1,2}\b")
"""Numbers of requirements, which mean nothing to the reader of a page."""
_BLOCK = re.compile(r"(<!-- printed: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


SIGNED_BY_ENTRA = frozenset(("telemessage",))
"""Products whose guide leaves the Secret token blank: Entra signs every request itself, and no key has to be made (M2)."""


def pages() -> list[Path]:
    """All setup pages."""
    return sorted(FOLDER.glob("*.md"))


def with_printed(name: str, page: str) -> str:
    """A page with its printed parts made anew.

    Args:
        name: the connector.

    Raises:
        ValueError: the page asks for a part that does not exist, or a part has no end.
    """
    if page.count("<!-- printed: ") != len(_BLOCK.findall(page)):
        raise ValueError(f"setup/{name}.md: a printed part has no end")

    def made(match: re.Match[str]) -> str:
        if match[2] not in PARTS:
            raise ValueError(f"setup/{name}.md: there is no part {match[2]}; there are {', '.join(PARTS)}")
        return f"{match[1]}\n{PARTS[match[2]](registry.load(name).spec)}\n\n{match[4]}"

    return _BLOCK.sub(made, page)


def kind(source: str) -> str:
    """What the portal calls a mapping of this source: Direct, Expression or Constant."""
    if source.startswith("Constant,"):
        return "Constant or Direct"
    if source.startswith("Constant"):
        return "Constant"
    return "Expression" if source.endswith(")") else "Direct"


def rows(spec: Spec) -> list[tuple[Attribute, str]]:
    """The attributes to map with what to do to get there from the default mapping, in its order, new ones last."""
    held = {attribute.path: attribute for attribute in spec.attributes}
    found = [(held[path], _step(held[path], source)) for path, source in DEFAULT_MAPPING.items() if path in held]
    return found + [(attribute, "add") for path, attribute in held.items() if path not in DEFAULT_MAPPING]


def superfluous(spec: Spec) -> list[str]:
    """The rows of the default mapping to delete, by target attribute."""
    held = {attribute.path for attribute in spec.attributes}
    return [] if spec.any_attribute else [path for path in DEFAULT_MAPPING if path not in held]


def _step(attribute: Attribute, default: str) -> str:
    if attribute.source in ("", default):
        return "keep"
    return "change or keep: both do the same" if attribute.path == "active" else "change"


def product(spec: Spec) -> str:
    """What the pages call a product; one that the operator declares has no name of its own here."""
    return "the product" if spec.name in ("scim", "rest") else spec.title


def _application(spec: Spec) -> str:
    example = "Helpdesk" if product(spec) != spec.title else spec.title
    return (
        "1. In the Entra admin center open **Enterprise applications** > **New application** > **Create your own application**.\n"
        "   You need the role Application Administrator.\n"
        f"2. Name it after the product, for example *{example} by Provgate*, and choose *Integrate any other application you\n"
        "   don't find in the gallery (Non-gallery)*. **Create**.\n"
        "3. One target of Provgate is one application. Whoever has two accounts at the product makes two of each."
    )


def _connection(spec: Spec) -> str:
    signed = spec.name in SIGNED_BY_ENTRA
    first = (
        '1. Section 2 says `auth = ["entra"]` and names your tenant: there is no key to make or to renew.\n'
        if signed
        else "1. Have the operator run `provgate key new TARGET`. It prints the Tenant URL, and the key this once only.\n"
    )
    secret = (
        "4. **Secret token**: leave it **blank**. Entra then signs every request itself, and the gateway takes what your tenant\n"
        "   has signed, nobody else's.\n"
        if signed
        else "4. **Secret token**: the key. Where the portal asks for an authentication method first: *Bearer authentication*.\n"
    )
    never = "" if spec.name == "observe" else f" It is never the address of {product(spec)} itself."
    return (
        f"{first}"
        "2. In the application open **Provisioning** > **New configuration** (older portals: **Get started**, mode\n"
        "   *Automatic*).\n"
        "3. **Tenant URL**: `https://HOST/scim/v2/TARGET`. HOST is where your gateway is published, TARGET the name of the\n"
        f"   target in section {_target_section(spec)}.{never}\n"
        f"{secret}"
        "5. **Test connection**. Entra asks for somebody with a random name and expects an empty list. Only when it succeeds,\n"
        "   **Create** (or **Save**). Nothing is provisioned yet. When it fails, the message ends with an id: give it to the\n"
        "   operator, to whom `provgate auth explain ID` says why."
    )


def _target_section(spec: Spec) -> str:
    page = (FOLDER / f"{spec.name}.md").read_text(encoding="utf-8")
    found = re.search(r"^## (\d+)\. The target at Provgate$", page, re.MULTILINE)
    if found is None:
        raise ValueError(f"setup/{spec.name}.md: there is no section The target at Provgate")
    return found[1]


def _mapping(spec: Spec) -> str:
    lines = [
        "Open **Provisioning** > **Attribute mapping** > **Provision Microsoft Entra ID Users**. This is all that may be left:",
        "",
        "| target attribute | type | source, constant or expression | do | match | remark |",
        "|---|---|---|---|---|---|",
    ]
    for attribute, step in rows(spec):
        source = attribute.source or DEFAULT_MAPPING.get(attribute.path, "")
        type_, source = kind(source), _source(source)
        match = "1" if attribute.path == "userName" else ""
        remark = "; ".join(
            part for part in ("required" if attribute.required else "", _IDS.sub("", attribute.note)) if part
        )
        cells = (f"`{attribute.path}`", type_, source, step, match, remark)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += [
        "",
        "*change*: click the row, set type and source as they stand here, **OK**.",
        *(_ADD if any(step == "add" for _, step in rows(spec)) else ()),
        "**Match objects using this attribute** is *Yes*, precedence 1, for `userName` alone. When all rows are done, **Save**",
        "at the top; Entra then begins with a full cycle, which does no harm.",
    ]
    gone = superfluous(spec)
    if gone:
        lines += [
            "",
            f"Delete the other rows of the default mapping: {', '.join(f'`{path}`' for path in gone)}.",
            "A row that is left does no harm: its values are kept and shown to Entra, never sent to the product, and named as",
            "ignored by `provgate plan` and `provgate check`.",
        ]
    if spec.groups_step:
        lines += ["", spec.groups_step]
    elif spec.has_groups:
        lines += [
            "",
            "Open **Provision Microsoft Entra ID Groups**, leave it enabled, and leave its three rows: `displayName` from",
            "displayName (match 1), `externalId` from objectId, `members` from members.",
        ]
    return "\n".join(lines)


_ADD = (
    "*add*: **Add New Mapping** at the foot. A target attribute that is not offered there goes into Entra's list first, by its",
    "full name, type *String*: **Show advanced options** > **Edit attribute list for customappsso**, **Save**, reload the page.",
)


def _source(source: str) -> str:
    if not source:
        return "any attribute that holds it"
    if source.startswith("Constant,"):
        return "the text itself, or an attribute that holds it"
    if source.startswith("Constant"):
        return source.removeprefix("Constant").lstrip(": ") or "a text"
    return f"`{source}`"


def _start(spec: Spec) -> str:
    groups = " For a group, choose its members as well, five at most." if spec.has_groups else ""
    return (
        "1. **Users and groups** > **Add user/group**: whom you assign here is provisioned, and nobody else.\n"
        "2. **Provisioning** > **Settings** > **Scope**: *Sync only assigned users and groups*.\n"
        f"3. **Provision on demand** for one person. The answer of {product(spec)} itself stands in the result.{groups}\n"
        "4. **Start provisioning** (older portals: **Provisioning Status** On, **Save**). The first cycle takes a while; later\n"
        "   ones come about every 40 minutes. Nobody can change that interval; *Provision on demand* does not wait for it.\n"
        "   You may stop and start at any time, and full cycles again do no harm.\n"
        "5. **Provisioning logs** show every person: *Success* when Provgate has taken the change for good; in the row, under\n"
        "   *Troubleshooting & Recommendations*, the sentence of a refusal. What became of it at the product says\n"
        "   `provgate user show WHO`. **Overview** shows when the last cycle ended and how many people are provisioned.\n"
        "6. If you want: under **Settings**, an address that is notified of failures, and *Prevent accidental deletion*."
    )


def _check(spec: Spec) -> str:
    lists = "list_accounts" in spec.capabilities
    match = "provgate match TARGET --file users.csv    # before the first cycle: who is there already, what collides\n"
    exported = "`users.csv` is what **Users** > **Download users** in Entra gives.\n"
    return (
        "The operator's side, in this order:\n\n"
        "```console\n"
        "provgate check                            # file, credentials, product, NATS, keys; mistakes with their remedy\n"
        f"{match if lists else ''}"
        "provgate plan TARGET ada@contoso.example  # what the product would be sent for one person; nothing is written\n"
        "provgate status TARGET                    # what waits, and for what\n"
        "```\n\n"
        f"{exported if lists else ''}"
        "With `shadow = true` at the target all of Entra's writes are rehearsed and none is sent; `provgate shadow TARGET`\n"
        "lists them."
    )


def _errors(spec: Spec) -> str:
    lines = [
        "Entra's provisioning log shows the whole answer; its `detail` is written for you.",
        "",
        "| in the log | means | do |",
        "|---|---|---|",
        *(f"| {' | '.join(cells)} |" for cells in (*_ERRORS, _refused(spec))),
        f"| Success, but nothing at {product(spec)} | accepted, on its way | `provgate user show WHO` says what it waits for |",
    ]
    return "\n".join(lines)


def _refused(spec: Spec) -> tuple[str, str, str]:
    if spec.name in SIGNED_BY_ENTRA:
        means = "the token is of another tenant, or the target takes keys only"
        return (
            "401, *InvalidCredentials*",
            means,
            "`provgate auth explain ID` with the id of the answer; then section 2",
        )
    todo = "`provgate auth explain ID` with the id of the answer, then `provgate key new TARGET`"
    return ("401, *InvalidCredentials*", "the key is wrong or has ended", todo)


def _undo(spec: Spec) -> str:
    there, gone = product(spec), "deleted" if spec.on_delete == "delete" else "switched off for good"
    shut_out = (
        'With `auth = ["key"]` at the target Entra\nis shut out within seconds.'
        if spec.name in SIGNED_BY_ENTRA
        else "`provgate key revoke ID` shuts Entra out within\nseconds."
    )
    again = "a new account" if spec.on_delete == "delete" else "the same account, when they are created again"
    lines = [
        f"| in Entra | at {there} | the way back |",
        "|---|---|---|",
        "| somebody is unassigned, out of scope, disabled, or under *Deleted users* | the account is switched off |"
        " assign or restore them: the same account is switched on |",
        f"| somebody is gone from *Deleted users*, 30 days later or by hand | the account is {gone}, unless `on_delete` at the"
        f" target says otherwise | {again} |",
        "| somebody is unassigned first and deleted later | the account stays switched off: Entra tells nobody of the deletion |"
        f" remove it at {there} by hand |",
        *(
            [
                "| a group is unassigned or deleted | the group is removed, its people stay | assign it again: a new group |"
            ]
            if spec.has_groups
            else []
        ),
        "| **Stop provisioning** | nothing; a cycle that runs is finished first | **Start provisioning** goes on from there |",
        "| the application is deleted | nothing; all accounts stay as they are | a new application finds everybody by their"
        " login |",
    ]
    return (
        "\n".join(lines) + "\n\n"
        'The operator can halt it without Entra: `provgate target pause TARGET --reason "..."`. Entra is still answered, and\n'
        "what it sends waits until `provgate target resume TARGET`. Unusually many deactivations and deletions wait by\n"
        f"themselves until somebody has looked at them (`provgate held list`). {shut_out}"
    )


_ERRORS = (
    (
        "400 `invalidValue`",
        "the value cannot go there; `detail` names attribute and remedy",
        "correct value or mapping, then provision on demand",
    ),
    ("409 `uniqueness`", "somebody else has that name, here or at the product", "`detail` says who is in the way"),
    ("429, 503", "too much at once, or not confirmed yet", "nothing; Entra comes back by itself"),
    ("404, *InvalidAnchor*", "the user was removed from the gateway", "**Restart provisioning**"),
)

PARTS: dict[str, Callable[[Spec], str]] = {
    "application": _application,
    "connection": _connection,
    "mapping": _mapping,
    "start": _start,
    "check": _check,
    "errors": _errors,
    "undo": _undo,
}
