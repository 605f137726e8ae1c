"""What a gateway and a worker say to each other about a change that is only rehearsed: an operator's plan, and shadow mode.

The worker rehearses and says which calls it would make; the gateway shows them. `connectors/rehearsal.py` records the calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from schemas.events import Reason, Step
from schemas.masking import mask_body, mask_id

PLAN_S = 20.0
"""Longest rehearsal for an operator, in a worker."""
PLAN_WAIT_S = 25.0
"""How long the gateway waits for it; the command line waits a little longer still."""
PLAN_BYTES_MAX = 600 * 1024
"""Longest answer, below what the bus carries in one message; what is beyond is counted."""
NOT_SENT = "not_sent"
"""What a step that a rehearsal did not send shows in place of an error."""
SENT_CHARS_MAX = 2_000
"""How much of a body is kept with a step."""


class WouldCall(Struct, frozen=True):
    """One call that would be made.

    Args:
        path: the template, e.g. `/Users/{id}`.
        url: the same with its parts filled in, below the product's base URL.
        body: the document, JSON or form.
        headers: those the connector gave itself, without secrets; the credential is added later and never seen here.
        same: the product shows already what this call would make of it.
    """

    method: str
    path: str
    url: str
    query: Mapping[str, str] = {}
    body: Any = None
    headers: Mapping[str, str] = {}
    same: bool = False

    def masked(self, documents: Sequence[Any] = ()) -> WouldCall:
        """The same without a person's values; `documents` are the person's own."""
        parts = [mask_id(part, documents) for part in self.url.split("/")]
        return msgspec.structs.replace(
            self,
            url="/".join(parts),
            query={name: str(mask_body(value)) for name, value in self.query.items()},
            body=mask_body(self.body),
        )

    def step(self, documents: Sequence[Any] = ()) -> Step:
        """As it stands in a resource's history: masked, cut, and marked as not sent."""
        shown = self.masked(documents)
        text = "" if shown.body is None else msgspec.json.encode(shown.body, enc_hook=str).decode()
        if len(text) > SENT_CHARS_MAX:
            text = f"{text[: SENT_CHARS_MAX - 1]}…"
        return Step(method=self.method, path=self.path, error=NOT_SENT, sent=text)


class Planned(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A worker's answer to an operator's plan.

    Args:
        ok: the plan could be made; whether it would go well says `result`.
        result: what the delivery would come to, in the worker's word.
        account: the normalized account, in the connector's own shape; None when it was refused.
        base_url: of the product; the calls' addresses are below it. "" for one that nobody calls.
        reads: calls that were really made.
        calls: calls that would be made, in order; `left_out` counts those that did not fit.
        created: they would make a new account.
        adopts: the existing account that would be linked first, as it is shown; `adopts_id` is its real id, for the gateway.
        adopt: the target's policy about existing accounts, as the worker knows it.
        seen: existing accounts of that name.
        blocked_on: what the change would wait for after its calls.
    """

    ok: bool
    code: str = ""
    message: str = ""
    result: str = ""
    reason: Reason | None = None
    account: Any = None
    base_url: str = ""
    account_keys: tuple[str, ...] = ()
    reads: tuple[Step, ...] = ()
    calls: tuple[WouldCall, ...] = ()
    left_out: int = 0
    created: bool = False
    adopts: str | None = None
    adopts_id: str | None = None
    adopt: str = "always"
    seen: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    blocked_on: str | None = None
    masked: bool = True
