"""Questions to a worker about one of its targets, asked by the gateway over plain NATS (request and reply).

`{"do": "probe"}`                          -> `{"ok", "code", "message", "findings"}`
`{"do": "identities", "document": {...}}`  -> `{"ok", "account_keys"}`
`{"do": "refresh"}`                        -> `{"ok", "code", "message"}`
`{"do": "plan", "event": {...}}`           -> `schemas.plans.Planned`: what would be called
`{"do": "list", "cursor": "..."}`          -> `schemas.comparison.Listing`: one part of the accounts, or groups (`kind`)
`{"do": "members", "group": "..."}`        -> `schemas.comparison.Members`: one part of a group's members
`{"do": "expect", "documents": [...]}`     -> `schemas.comparison.Expectations`: how users, or groups, would show in that list
`{"do": "sort_groups", "groups": [...]}`   -> `schemas.grouping.GroupsSorted`: which of them the settings treat differently now
`{"do": "configuration"}`                  -> `schemas.configured.Configured`: settings the product keeps, compared
`{"do": "configure", "version": "..."}`    -> the same, written first if the product still holds what was looked at
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec
from msgspec import Struct
from ulid import ULID

from connectors.contract import Finding
from schemas.errors import ConnectorError
from schemas.events import decode_event
from schemas.grouping import StoredGroup
from schemas.plans import PLAN_S, Planned
from schemas.resources import User
from workers.configuring import configuration
from workers.grouping import sort_groups
from workers.listing import expectations, list_accounts, list_members
from workers.rehearsals import plan
from workers.targets import Served

PROBE_S = 10.0
"""Longest check of a target; the same bound holds for a refresh of its names."""
FINDINGS_MAX = 50


class Question(Struct, frozen=True):
    """What is asked. `document`: a SCIM user, for `identities`. `event`: an event as it would be sent, for `plan`.

    `cursor`: where the part begins, for `list` and `members`. `group`: whose members. `documents`: SCIM users or groups, for
    `expect`. `version`: what was seen, for `configure`.
    """

    do: Literal[
        "probe",
        "identities",
        "refresh",
        "plan",
        "list",
        "members",
        "expect",
        "sort_groups",
        "configuration",
        "configure",
    ]
    document: dict[str, Any] = {}
    event: msgspec.Raw = msgspec.Raw(b"{}")
    show_values: bool = False
    kind: Literal["user", "group"] = "user"
    cursor: str = ""
    group: str = ""
    documents: tuple[dict[str, Any], ...] = ()
    groups: tuple[StoredGroup, ...] = ()
    version: str = ""


class Answer(Struct, frozen=True, kw_only=True):
    """What a worker says. `code` and `message` name the first error, else the first warning."""

    ok: bool
    code: str = ""
    message: str = ""
    findings: tuple[Finding, ...] = ()
    account_keys: tuple[str, ...] = ()


_QUESTION = msgspec.json.Decoder(Question)


def not_served(target: str) -> bytes:
    """The answer to any question about a target that is not served here any more."""
    return msgspec.json.encode(Answer(ok=False, code="not_served", message=f"This worker does not serve {target} now."))


async def answer(served: Served, body: bytes) -> bytes:
    """Answer one question. Never raises: what goes wrong is the answer."""
    try:
        question = _QUESTION.decode(body)
    except msgspec.DecodeError:
        return msgspec.json.encode(Answer(ok=False, code="bad_question", message="This is not a question to a worker."))
    match question.do:
        case "probe":
            reply = await probe(served)
        case "refresh":
            reply = await _refresh(served)
        case "plan":
            return msgspec.json.encode(await _plan(served, question))
        case "list":
            return msgspec.json.encode(await list_accounts(served, question.cursor, question.kind))
        case "members":
            return msgspec.json.encode(await list_members(served, question.group, question.cursor))
        case "expect":
            return msgspec.json.encode(await expectations(served, question.documents, question.kind))
        case "sort_groups":
            return msgspec.json.encode(sort_groups(served, question.groups))
        case "configuration":
            return msgspec.json.encode(await configuration(served))
        case "configure":
            return msgspec.json.encode(await configuration(served, write=True, version=question.version))
        case _:
            reply = _identities(served, question.document)
    return msgspec.json.encode(reply)


async def probe(served: Served) -> Answer:
    """The connector's own check, within PROBE_S. A probe that went well forgives an earlier failure to load names."""
    try:
        async with asyncio.timeout(PROBE_S):
            findings = await served.connector.check()
    except TimeoutError:
        return Answer(ok=False, code="timeout", message=f"The check took longer than {PROBE_S:.0f} s.")
    except ConnectorError as exc:
        return Answer(ok=False, code=exc.code, message=exc.message)
    except Exception as exc:
        return Answer(ok=False, code="connector_bug", message=f"The check raised {type(exc).__name__}.")
    served.directory.forgive()
    ranked = sorted(findings, key=lambda finding: ("error", "warning", "ok").index(finding.level))
    first = ranked[0] if ranked else Finding(level="ok", code="ok", message="")
    return Answer(
        ok=first.level != "error", code=first.code, message=first.message, findings=tuple(ranked[:FINDINGS_MAX])
    )


async def _plan(served: Served, question: Question) -> Planned:
    """What this worker would do with an event, within PLAN_S; sends nothing that writes."""
    try:
        event = decode_event(bytes(question.event))
        async with asyncio.timeout(PLAN_S):
            return await plan(event, served, show_values=question.show_values, new_id=lambda: str(ULID()))
    except msgspec.DecodeError:
        return Planned(ok=False, code="bad_question", message="This is not an event that could be rehearsed.")
    except TimeoutError:
        return Planned(ok=False, code="timeout", message=f"The rehearsal took longer than {PLAN_S:.0f} s.")
    except Exception as exc:
        return Planned(ok=False, code="connector_bug", message=f"The rehearsal raised {type(exc).__name__}.")


async def _refresh(served: Served) -> Answer:
    try:
        async with asyncio.timeout(PROBE_S):
            loaded = await served.directory.refresh(now=True)
    except TimeoutError:
        return Answer(ok=False, code="timeout", message=f"Loading the names took longer than {PROBE_S:.0f} s.")
    except ConnectorError as exc:
        return Answer(ok=False, code=exc.code, message=exc.message)
    except Exception as exc:
        return Answer(ok=False, code="connector_bug", message=f"Loading the names raised {type(exc).__name__}.")
    return Answer(ok=True, code="" if loaded else "no_directory")


def _identities(served: Served, document: dict[str, Any]) -> Answer:
    """The product's own natural keys of a user, for filters that spell a value differently; none when it does not fit."""
    try:
        account = served.connector.normalize(User.from_document(document), served.directory)
        return Answer(ok=True, account_keys=tuple(served.connector.account_keys(account)))
    except (ConnectorError, msgspec.ValidationError):
        return Answer(ok=True)
    except Exception as exc:
        return Answer(ok=False, code="connector_bug", message=f"normalize raised {type(exc).__name__}.")
