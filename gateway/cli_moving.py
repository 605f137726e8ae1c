"""Many resources at once: which ones a command is about, and moving them in batches that people and machines can follow."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gateway.cli_client import FINE, NOT_FINE, WRONG_USE, Api, Failure
from gateway.cli_printing import counted, progress, say

PAGE_MAX = 500
BATCH_MAX = 100
"""Changes moved by one call; more than one call shows a progress bar."""
BULK_MAX = 100_000
SKIPPED_SHOWN_MAX = 20
REASON_ABOVE = 100
"""Moving more than this at once needs a reason in words (security requirement S13)."""


@dataclass(frozen=True)
class Choice:
    """The resources a command is about: how many there are, and their ids page by page.

    The next page is asked for when the one before was moved; what was on a page once never comes again, so a resource that fails
    again meanwhile is not moved twice.
    """

    total: int
    pages: Iterator[Sequence[str]]


def chosen_of(
    api: Api, path: str, ids: Sequence[str], *, cause: str | None, everything: bool, target: str | None
) -> Choice:
    """The named resources, or all that a list of the API has of a cause or a target. Raises Failure for neither or both."""
    if ids:
        if cause or everything:
            raise Failure("name either ids or a selection (--cause, --all, --target), not both", WRONG_USE)
        return these(ids)
    if not cause and not everything:
        raise Failure("say which: ids, --cause, or --target", WRONG_USE)
    first = api.get(path, target=target, cause=cause, limit=PAGE_MAX)

    def pages() -> Iterator[Sequence[str]]:
        seen: set[str] = set()
        page = first
        while len(seen) < BULK_MAX:
            fresh = [item["id"] for item in page["items"] if item["id"] not in seen]
            if not fresh:
                return
            seen.update(fresh)
            yield fresh
            page = api.get(path, target=target, cause=cause, limit=PAGE_MAX)

    return Choice(first["total"], pages())


def these(ids: Sequence[str]) -> Choice:
    """The named resources, each once."""
    unique = list(dict.fromkeys(ids))
    return Choice(len(unique), iter([unique]))


def move_all(
    api: Api,
    path: str,
    chosen: Choice,
    *,
    reason: str,
    did: str,
    what: str,
    rate: str | None = None,
    dry_run: bool = False,
) -> int:
    """Move resources in batches, at most `rate` a second; not all moved = the answer is "not fine"."""
    per_s = rate_of(rate)
    if dry_run:
        ids = list(next(chosen.pages, ()))
        text = f"{counted(chosen.total, what)} would be {did}."
        say(api.access, {"dry_run": True, "total": chosen.total, "ids": ids}, text)
        return FINE
    if chosen.total > REASON_ABOVE and not reason.strip():
        raise Failure(f"{chosen.total} at once need a reason, for the record: --reason TEXT", WRONG_USE)
    done: list[str] = []
    skipped: list[dict[str, str]] = []
    size = BATCH_MAX if per_s is None else max(1, min(BATCH_MAX, math.floor(per_s)))
    with progress(api.access, chosen.total, size) as advance:
        free_at = 0.0
        for page in chosen.pages:
            for at in range(0, len(page), size):
                batch = list(page[at : at + size])
                time.sleep(max(0.0, free_at - time.monotonic()))
                free_at = time.monotonic() + (len(batch) / per_s if per_s else 0.0)
                answer = api.post(path, {"ids": batch, "reason": reason})
                done += answer["done"]
                skipped += answer["skipped"]
                advance(len(batch))
    text = f"{counted(len(done), what)} {did}."
    for entry in skipped[:SKIPPED_SHOWN_MAX]:
        text += f"\nNot {did}: {entry['id']}: {entry['why']}"
    if len(skipped) > SKIPPED_SHOWN_MAX:
        text += f"\nNot {did}: {len(skipped) - SKIPPED_SHOWN_MAX:,} more; --json names them all"
    say(api.access, {"done": done, "skipped": skipped}, text)
    return NOT_FINE if skipped else FINE


def rate_of(text: str | None) -> float | None:
    """How many a second `--rate` allows; None is no limit. Raises Failure for what is no rate."""
    if text is None:
        return None
    try:
        per_s = float(text.removesuffix("/s"))
    except ValueError:
        per_s = math.nan
    if not 0.01 <= per_s <= 10_000:
        raise Failure(f"--rate {text}: must be a number a second, such as 5/s", WRONG_USE)
    return per_s
