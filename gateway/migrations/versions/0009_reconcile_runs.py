"""Every reconciliation is kept for a while, also one that is under way or broke off, and says what it came to about groups."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_KEPT = "target, id, state, mode, started_at, ended_at, compared, listed, size, repaired, counts, codes, code, message"


def upgrade() -> None:
    """The last reports become the first runs."""

    def texts(*names: str) -> list[sa.Column[str]]:
        return [sa.Column(name, sa.String(), nullable=False) for name in names]

    def numbers(*names: str) -> list[sa.Column[int]]:
        return [sa.Column(name, sa.Integer(), nullable=False) for name in names]

    op.create_table(
        "reconcile_run",
        *texts("target", "id", "state", "mode", "actor", "reason"),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=False),
        *numbers("compared", "listed", "size", "repaired"),
        *numbers("groups", "groups_listed", "groups_size", "memberships", "member_differences"),
        *texts("counts", "codes", "code", "message"),
        sa.PrimaryKeyConstraint("target", "id", name="pk_reconcile_run"),
    )
    op.create_index("ix_reconcile_run_started_at", "reconcile_run", ["target", "started_at"])
    op.execute(
        f"INSERT INTO reconcile_run({_KEPT}, actor, reason, groups, groups_listed, groups_size, memberships, "  # noqa: S608
        f"member_differences) SELECT {_KEPT}, 'system', '', 0, 0, 0, 0, 0 FROM reconcile_report"
    )
    op.drop_table("reconcile_report")
