"""What a connector says about itself: the one declaration from which docs, /Schemas, the console and `check` are printed."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

AttributeType = Literal["string", "boolean", "integer", "complex", "reference"]


class Attribute(Struct, frozen=True, omit_defaults=True):
    """One SCIM attribute a product can hold.

    Args:
        path: SCIM path, e.g. `name.givenName` or `urn:…:User:rolesString`.
        field: what the product calls it.
        required: the product refuses accounts without it.
        note: one remark for the Entra admin's mapping table.
        source: the Entra source or expression to map from.
        type: of its values, for /Schemas.
        multi_valued: it is a list.
    """

    path: str
    field: str = ""
    required: bool = False
    note: str = ""
    source: str = ""
    type: AttributeType = "string"
    multi_valued: bool = False


class RateLimit(Struct, frozen=True):
    """The product's own limit: `calls` in any `per_s` seconds, shared by all workers of the target."""

    calls: int
    per_s: float = 1.0


class NoteKind(Struct, frozen=True, omit_defaults=True):
    """Something deliveries of this connector note about resources (`schemas.events.Note`).

    Args:
        code: as noted.
        title: the heading of the list, e.g. `provisioned and not invited`.
        done: the code that is noted in its place when a person has dealt with it; "" when there is nothing to deal with.
    """

    code: str
    title: str
    done: str = ""


class Spec(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A connector's declaration.

    Args:
        name: the connector's name in the configuration.
        title: the product's name as people write it.
        resources: `User`, and `Group` when the product's groups may be written.
        attributes: the attributes that are applied; all others are kept, returned to Entra, and reported as ignored.
        identity: SCIM paths by which the product recognises an account; the gateway keeps their order (delivery rule R2).
        groups_step: what the Entra admin has to do when there are no groups, printed in the refusal of group writes.
        rate_limit: None when the product names none.
        concurrency_max: how many calls to the product may run at once per worker.
        on_delete: what a SCIM DELETE does there unless configured otherwise.
        capabilities: optional parts of the contract this connector has, by the names in `connectors/README.md`; what is not
            named here is never asked for.
        settle_s: how long after a write the product's lists may still show what was before it.
        rights_settle_s: for how long the product may refuse a right that was given just now; only then a refusal is an alert.
        support: `documented` when built from the vendor's public interface, `assumed` when the contract is ours.
        pitfalls: what an admin should know beforehand, a sentence each.
        notes: what its deliveries note about resources, for operators to list.
        any_attribute: takes attributes of any name, and ignores none.
    """

    name: str
    title: str
    resources: tuple[str, ...] = ("User",)
    attributes: tuple[Attribute, ...] = ()
    identity: tuple[str, ...] = ("userName",)
    groups_step: str = ""
    rate_limit: RateLimit | None = None
    concurrency_max: int = 8
    on_delete: Literal["delete", "deactivate"] = "delete"
    capabilities: tuple[str, ...] = ()
    settle_s: float = 15.0
    rights_settle_s: float = 0.0
    support: Literal["documented", "assumed"] = "documented"
    pitfalls: tuple[str, ...] = ()
    notes: tuple[NoteKind, ...] = ()
    any_attribute: bool = False

    @property
    def has_groups(self) -> bool:
        """Whether groups may be written at this product."""
        return "Group" in self.resources
