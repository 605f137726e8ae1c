"""Since when a wish waits for something that may not take for ever, apart from since when its product fails."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Waits that have begun begin again: how long they have lasted was not kept apart."""
    op.add_column("resource", sa.Column("awaited_since", sa.Float(), nullable=True))
