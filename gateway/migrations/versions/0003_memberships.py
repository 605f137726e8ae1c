"""Members of groups, as rows."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table, and the column that says a group has more to send."""
    op.create_table(
        "membership",
        sa.Column("group_id", sa.String(), nullable=False),
        sa.Column("member", sa.String(), nullable=False),
        sa.Column("wished", sa.Boolean(), nullable=False),
        sa.Column("settled", sa.Boolean(), nullable=False),
        sa.Column("uncertain", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"], ["resource.id"], name="fk_membership_group_id_resource", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("group_id", "member", name="pk_membership"),
        sqlite_with_rowid=False,
    )
    is_open = sa.text("wished != settled OR uncertain")
    unwished = sa.text("NOT wished")
    op.create_index(
        "ix_membership_open", "membership", ["group_id", "member"], sqlite_where=is_open, postgresql_where=is_open
    )
    op.create_index(
        "ix_membership_unwished", "membership", ["group_id", "member"], sqlite_where=unwished, postgresql_where=unwished
    )
    op.create_index("ix_membership_member", "membership", ["member"])
    op.add_column("resource", sa.Column("unfinished", sa.Boolean(), nullable=False, server_default=sa.false()))
