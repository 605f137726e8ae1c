"""Says in time that an access key or client secret will end (security requirement S1).

An expired secret makes Entra stop the whole job, and nobody looks at a gateway that works. So each of 30, 14, 7 and 1 days before
the end, and at the end, is written to the log once as `key.expiring` or `key.expired`, where alerts are made of it; the metric
`provgate_key_expires_timestamp_seconds` tells the same to whoever computes alerts of numbers. Every key counts for itself: a new
one that was never entered in Entra does not save the old one, which Entra goes on using.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gateway.keys import Keys, KeyWarning, expiry_warnings, kind_of
from gateway.records import KeyRecord
from schemas.config import TargetSettings
from schemas.logs import logger

LOOK_EVERY_S = 3600.0
"""A threshold is noticed this late at most."""

log = logger()


class ExpiryWatch:
    """Looks at the keys of the configured targets from time to time.

    Args:
        keys: the keys of all targets.
        targets: settings of the configured targets by name.
        now: epoch seconds.
    """

    def __init__(
        self, keys: Keys, targets: Callable[[], Mapping[str, TargetSettings]], now: Callable[[], float]
    ) -> None:
        self._keys = keys
        self._targets = targets
        self._now = now
        self._said: dict[str, int] = {}

    async def look(self) -> list[KeyWarning]:
        """Log whatever reached its next threshold since the last look, once each; a restart says it once again.

        Raises:
            StoreError: the keys cannot be read.
        """
        targets = self._targets()
        rows = {row.id: row for row in await self._keys.listed() if takes_secret(targets.get(row.target), row)}
        due = [
            warning
            for warning in expiry_warnings(rows.values(), self._now())
            if self._said.get(warning.key_id) != warning.threshold
        ]
        for warning in due:
            _say(warning, rows[warning.key_id].last_used_at)
            self._said[warning.key_id] = warning.threshold
        for gone in self._said.keys() - rows.keys():
            del self._said[gone]
        return due


def takes_secret(settings: TargetSettings | None, row: KeyRecord) -> bool:
    """Whether this key or secret could be used at all: its target is configured and signs in this way."""
    if settings is None:
        return False
    return ("oauth" if kind_of(row) == "client" else "key") in settings.auth


def _say(warning: KeyWarning, last_used_at: float | None) -> None:
    says = log.error if warning.threshold == 0 else log.warning
    says(
        "key.expired" if warning.threshold == 0 else "key.expiring",
        target=warning.target,
        kind=warning.kind,
        key=warning.key_id,
        days_left=warning.days_left,
        threshold_days=warning.threshold,
        used=last_used_at is not None,
        remedy=f"provgate {warning.kind} new {warning.target}",
    )
