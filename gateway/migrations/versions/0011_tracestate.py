"""What tracing systems of others keep along with the trace context of the newest wish."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of wishes made before, nobody knows."""
    op.add_column("resource", sa.Column("tracestate", sa.String(), nullable=True))
