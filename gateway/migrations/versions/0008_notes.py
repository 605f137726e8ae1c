"""What deliveries noted about resources: who was invited, which groups have no mapping."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "note",
        *(sa.Column(name, sa.String(), nullable=False) for name in ("resource_id", "code", "target")),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("message", "subject", "noted_by")),
        sa.Column("first_at", sa.Float(), nullable=False),
        sa.Column("last_at", sa.Float(), nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("resource_id", "code", name="pk_note"),
        sa.ForeignKeyConstraint(
            ["resource_id"], ["resource.id"], name="fk_note_resource_id_resource", ondelete="CASCADE"
        ),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_note_target_code_resource_id", "note", ["target", "code", "resource_id"])
