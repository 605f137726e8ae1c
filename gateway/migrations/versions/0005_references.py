"""Who made a linked account, and the trace context of the newest wish."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of accounts linked before, nobody knows who made them."""
    op.add_column("resource", sa.Column("account_created", sa.Boolean(), nullable=True))
    op.add_column("resource", sa.Column("traceparent", sa.String(), nullable=True))
