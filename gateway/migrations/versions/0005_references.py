"""Who manages whom, who made a linked account, and the trace context of the newest wish."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ROWS_MAX = 1_000
"""Users read at a time."""


def upgrade() -> None:
    """Of accounts linked before, nobody knows who made them."""
    op.add_column("resource", sa.Column("account_created", sa.Boolean(), nullable=True))
    op.add_column("resource", sa.Column("traceparent", sa.String(), nullable=True))
    op.add_column("resource", sa.Column("manager", sa.String(), nullable=True))
    resource = sa.table("resource", sa.column("seq"), sa.column("kind"), sa.column("document"), sa.column("manager"))
    connection = op.get_bind()
    after = 0
    while True:
        users = sa.select(resource.c.seq, resource.c.document).where(resource.c.kind == "user", resource.c.seq > after)
        found = connection.execute(users.order_by(resource.c.seq).limit(ROWS_MAX)).all()
        for seq, document in found:
            after = seq
            manager = _manager_of(bytes(document))
            if manager:
                connection.execute(sa.update(resource).where(resource.c.seq == seq).values(manager=manager))
        if len(found) < ROWS_MAX:
            break
    op.create_index(
        "ix_resource_manager",
        "resource",
        ["manager"],
        sqlite_where=sa.text("manager IS NOT NULL"),
        postgresql_where=sa.text("manager IS NOT NULL"),
    )


def _manager_of(document: bytes) -> str | None:
    if b'"manager"' not in document:
        return None
    enterprise = json.loads(document).get("urn:ietf:params:scim:schemas:extension:enterprise:2.0:User")
    manager = enterprise.get("manager") if isinstance(enterprise, dict) else None
    value = manager.get("value") if isinstance(manager, dict) else None
    return value if isinstance(value, str) and value else None
