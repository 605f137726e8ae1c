"""Mails to operators: what needs a person, and the outbox."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(), nullable=False) for name in names]


def _numbers(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.Integer(), nullable=False) for name in names]


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "alert",
        *_texts("target", "cause"),
        sa.Column("opened_at", sa.Float(), nullable=False),
        sa.Column("gone_at", sa.Float(), nullable=True),
        sa.Column("over_at", sa.Float(), nullable=True),
        *_numbers("count", "level"),
        sa.Column("told_at", sa.Float(), nullable=True),
        *_numbers("told_count", "told_level"),
        *_texts("text"),
        sa.PrimaryKeyConstraint("target", "cause", name="pk_alert"),
    )
    op.create_table(
        "mail",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        *_texts("notice"),
        *_numbers("copy_number"),
        *_texts("message_id", "target", "kind", "recipient", "subject", "body"),
        sa.Column("created_at", sa.Float(), nullable=False),
        *_texts("state"),
        *_numbers("attempts"),
        sa.Column("next_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        *_texts("holder", "error"),
        sa.PrimaryKeyConstraint("seq", name="pk_mail"),
        sqlite_autoincrement=True,
    )
    waiting = sa.text("state = 'waiting'")
    op.create_index("ix_mail_due", "mail", ["next_at"], sqlite_where=waiting, postgresql_where=waiting)
    op.create_index("ix_mail_target", "mail", ["target", "created_at"])
    op.create_index("ix_mail_created", "mail", ["created_at"])
