"""What can go wrong at a product, grouped by what happens next.

ConnectorError
├── Rejected             the product will never take this: dead letter, or 400/409 while Entra waits
│   ├── NormalizationError   refused by us before any call; nothing was written
│   └── Conflict             another account holds the natural key (409 uniqueness)
├── Unavailable          worth trying again; `ambiguous` when the product may have acted all the same
├── RateLimited          wait; uses up no attempt; concerns the whole target
├── Misconfigured        nothing can succeed until an operator acts: the target's circuit opens
├── Blocked              waits for a named thing: manager, member, licence, approval, role
├── Gone                 the account we hold a link to does not exist any more
└── ConnectorBug         the connector broke its contract (poison: at most 5 attempts)
"""

from __future__ import annotations

from collections.abc import Sequence


class ConnectorError(Exception):
    """Base of everything a connector may raise.

    Args:
        message: one sentence for a person: what happened, to what, what to do. Never a secret, never a full phone number.
        code: short snake_case name, stable; part of the fingerprint by which operators see one cause once.
        attribute: SCIM path the problem belongs to, or None.
        names: the offending names, if the problem is about names (roles, teams, groups).
    """

    code = "error"

    def __init__(
        self, message: str, *, code: str | None = None, attribute: str | None = None, names: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.attribute = attribute
        self.names = tuple(names)


class Rejected(ConnectorError):
    """The product will never take this value; retrying the same would fail the same."""

    code = "rejected"
    scim_type = "invalidValue"


class NormalizationError(Rejected):
    """Refused by our own pure rules before the first call, so nothing was written anywhere.

    `names` lists all offending names of the reported code (vendor requirement 0.6).
    """

    code = "bad_value"


class Conflict(Rejected):
    """Another account, which must not be adopted, holds the natural key."""

    code = "conflict"
    scim_type = "uniqueness"


class Unavailable(ConnectorError):
    """Worth retrying. `ambiguous`: the request may have taken effect, so look before writing again."""

    code = "unavailable"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        attribute: str | None = None,
        names: Sequence[str] = (),
        ambiguous: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, code=code, attribute=attribute, names=names)
        self.ambiguous = ambiguous
        self.retry_after_s = retry_after_s


class RateLimited(ConnectorError):
    """The product asked us to slow down. `retry_after_s` is a lower bound when the product named one."""

    code = "rate_limited"

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class Misconfigured(ConnectorError):
    """Credentials, rights or settings are wrong for every resource of the target, not for one person's data."""

    code = "misconfigured"


class Blocked(ConnectorError):
    """Waits for a named thing and is applied by itself when that thing appears.

    Args:
        on: what is awaited, e.g. `role:Wizard`, `licence`, `approval`.
        retry_after_s: when to look again; None leaves it to the gateway (growing intervals).
        wait_max_s: after so long the change is a dead letter; None waits for ever.
        account_id: the account, when it exists already although not yet as wished.
        observed_active: what the product shows as `active` when that differs from the wish.
    """

    code = "blocked"

    def __init__(
        self,
        message: str,
        *,
        on: str,
        code: str | None = None,
        attribute: str | None = None,
        names: Sequence[str] = (),
        retry_after_s: float | None = None,
        wait_max_s: float | None = None,
        account_id: str | None = None,
        observed_active: bool | None = None,
    ) -> None:
        super().__init__(message, code=code, attribute=attribute, names=names)
        self.on = on
        self.retry_after_s = retry_after_s
        self.wait_max_s = wait_max_s
        self.account_id = account_id
        self.observed_active = observed_active


class Gone(ConnectorError):
    """The account of a link is not there any more (404 on update).

    Args:
        replaced_by: the account that was made in its place just now, and is as wished already.
    """

    code = "gone"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        attribute: str | None = None,
        names: Sequence[str] = (),
        replaced_by: str | None = None,
    ) -> None:
        super().__init__(message, code=code, attribute=attribute, names=names)
        self.replaced_by = replaced_by


class ConnectorBug(ConnectorError):
    """The connector broke its contract, or raised something that is none of the above."""

    code = "connector_bug"


class ConfigurationError(Exception):
    """All mistakes of a configuration file at once, path first.

    Attributes:
        source: the file's name.
        problems: one sentence each, beginning with the setting's path.
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = len(self.problems)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{source}: {count} problem{'' if count == 1 else 's'}\n{lines}")
