"""The last reconciliation of each target, and leases for what one gateway does at a time."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(), nullable=False) for name in names]


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "lease",
        *_texts("name", "holder"),
        sa.Column("until", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_lease"),
    )
    op.create_table(
        "reconcile_report",
        *_texts("target", "id", "state", "mode"),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in ("compared", "listed", "size", "repaired")),
        *_texts("counts", "codes", "code", "message"),
        sa.PrimaryKeyConstraint("target", name="pk_reconcile_report"),
    )
    op.create_table(
        "reconcile_finding",
        *_texts("target"),
        sa.Column("n", sa.Integer(), nullable=False),
        *_texts("class_name", "code", "resource", "account_id", "label", "attributes", "message"),
        sa.PrimaryKeyConstraint("target", "n", name="pk_reconcile_finding"),
        sqlite_with_rowid=False,
    )
