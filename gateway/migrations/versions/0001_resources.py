"""Resources and what became of them; targets and streams."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def where(condition: str) -> dict[str, Any]:
    """The condition of a partial index, for both engines."""
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    """Create the tables of the engine."""
    op.create_table(
        "resource",
        sa.Column("seq", SEQUENCE, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("acknowledged", sa.Integer(), nullable=False),
        sa.Column("event_id", sa.String(), nullable=False),
        sa.Column("change", sa.String(), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("modified_at", sa.Float(), nullable=False),
        sa.Column("veiled", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("settled_generation", sa.Integer(), nullable=False),
        sa.Column("settled_at", sa.Float(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=True),
        sa.Column("observed_active", sa.Boolean(), nullable=True),
        sa.Column("blocked_on", sa.String(), nullable=True),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("in_flight", sa.Integer(), nullable=True),
        sa.Column("published", sa.Boolean(), nullable=False),
        sa.Column("delivery", sa.Integer(), nullable=False),
        sa.Column("looked", sa.Boolean(), nullable=False),
        sa.Column("heard_at", sa.Float(), nullable=False),
        sa.Column("dirty", sa.Boolean(), nullable=False),
        sa.Column("ambiguous", sa.Boolean(), nullable=False),
        sa.Column("read_back", sa.Boolean(), nullable=False),
        sa.Column("read_back_at", sa.Float(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("poisoned", sa.Integer(), nullable=False),
        sa.Column("first_failed_at", sa.Float(), nullable=True),
        sa.Column("next_at", sa.Float(), nullable=False),
        sa.Column("due_at", sa.Float(), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("visible", sa.Boolean(), nullable=False),
        sa.Column("has_trail", sa.Boolean(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=True),
        sa.Column("account_key", sa.String(), nullable=True),
        sa.Column("user_name_key", sa.String(), nullable=True),
        sa.Column("external_id_key", sa.String(), nullable=True),
        sa.Column("work_email_key", sa.String(), nullable=True),
        sa.Column("display_name_key", sa.String(), nullable=True),
        sa.Column("changed", sa.String(), nullable=True),
        sa.Column("identities", sa.String(), nullable=True),
        sa.Column("settled_identities", sa.String(), nullable=True),
        sa.Column("account_keys", sa.String(), nullable=True),
        sa.Column("issue", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("doubts", sa.String(), nullable=True),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("settled_document", sa.LargeBinary(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("seq", name="pk_resource"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_resource_account_key", "resource", ["target", "kind", "account_key"], **where("account_key IS NOT NULL")
    )
    op.create_index("ix_resource_dead", "resource", ["target", "fingerprint", "settled_at"], **where("state = 'dead'"))
    op.create_index(
        "ix_resource_display_name",
        "resource",
        ["target", "kind", "display_name_key"],
        **where("display_name_key IS NOT NULL"),
    )
    op.create_index(
        "ix_resource_due", "resource", ["target", "priority", "due_at", "seq"], **where("due_at IS NOT NULL")
    )
    op.create_index("ix_resource_in_flight", "resource", ["target"], **where("in_flight IS NOT NULL"))
    op.create_index("ix_resource_listing", "resource", ["target", "kind", "visible", "seq"])
    op.create_index("ix_resource_read_back", "resource", ["read_back_at"], **where("read_back_at IS NOT NULL"))
    op.create_index("ix_resource_state", "resource", ["target", "state", "settled_at"])
    op.create_index("ix_resource_trail", "resource", ["seq"], **where("has_trail"))
    op.create_index("ix_resource_waiting", "resource", ["target", "modified_at"], **where("due_at IS NOT NULL"))
    op.create_index(
        "ix_resource_work_email",
        "resource",
        ["target", "kind", "work_email_key"],
        **where("work_email_key IS NOT NULL"),
    )
    op.create_index(
        "uq_resource_account",
        "resource",
        ["target", "kind", "account_id"],
        unique=True,
        **where("account_id IS NOT NULL"),
    )
    op.create_index(
        "uq_resource_external_id",
        "resource",
        ["target", "kind", "external_id_key"],
        unique=True,
        **where("external_id_key IS NOT NULL"),
    )
    op.create_index("uq_resource_id", "resource", ["id"], unique=True)
    op.create_index(
        "uq_resource_user_name",
        "resource",
        ["target", "kind", "user_name_key"],
        unique=True,
        **where("user_name_key IS NOT NULL"),
    )
    op.create_table(
        "identity",
        sa.Column("resource_id", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("wished", sa.Boolean(), nullable=False),
        sa.Column("held", sa.Boolean(), nullable=False),
        sa.Column("trail", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["resource_id"], ["resource.id"], name="fk_identity_resource_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("resource_id", "value", name="pk_identity"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_identity_value", "identity", ["target", "kind", "value"])
    op.create_table(
        "event",
        sa.Column("seq", SEQUENCE, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("resource_id", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("change", sa.String(), nullable=False),
        sa.Column("takes_away", sa.Boolean(), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("outcome_at", sa.Float(), nullable=True),
        sa.Column("changed", sa.String(), nullable=True),
        sa.Column("identities", sa.String(), nullable=True),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_event"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_event_created", "event", ["created_at"])
    op.create_index("ix_event_open", "event", ["resource_id", "generation"], **where("outcome IS NULL"))
    op.create_index("ix_event_taken_away", "event", ["target", "created_at"], **where("takes_away"))
    op.create_index("uq_event_generation", "event", ["resource_id", "generation"], unique=True)
    op.create_index("uq_event_id", "event", ["id"], unique=True)
    op.create_table(
        "attempt",
        sa.Column("seq", SEQUENCE, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("resource_id", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("delivery", sa.Integer(), nullable=False),
        sa.Column("result", sa.String(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=False),
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column("code", sa.String(), nullable=True),
        sa.Column("fingerprint", sa.String(), nullable=True),
        sa.Column("account_id", sa.String(), nullable=True),
        sa.Column("message", sa.String(), nullable=True),
        sa.Column("steps", sa.String(), nullable=True),
        sa.Column("remarks", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("seq", name="pk_attempt"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_attempt_resource", "attempt", ["resource_id", "ended_at"])
    op.create_index("ix_attempt_target", "attempt", ["target", "ended_at"])
    op.create_index("uq_attempt_id", "attempt", ["id"], unique=True)
    op.create_table(
        "target",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("paused_by", sa.String(), nullable=True),
        sa.Column("paused_reason", sa.String(), nullable=False),
        sa.Column("circuit", sa.String(), nullable=False),
        sa.Column("circuit_reason", sa.String(), nullable=False),
        sa.Column("opened_at", sa.Float(), nullable=False),
        sa.Column("next_probe_at", sa.Float(), nullable=False),
        sa.Column("probe_wait_s", sa.Float(), nullable=False),
        sa.Column("closed_at", sa.Float(), nullable=False),
        sa.Column("rest_until", sa.Float(), nullable=False),
        sa.Column("settings_digest", sa.String(), nullable=True),
        sa.Column("seen_at", sa.Float(), nullable=True),
        sa.Column("spec", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_target"),
    )
    op.create_table(
        "stream",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_stream"),
    )
