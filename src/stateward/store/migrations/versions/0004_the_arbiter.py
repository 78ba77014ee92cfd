"""What the arbiter keeps of hosts: whether their instances are judged, and the boot they were last judged in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("hosts") as batch:
        batch.add_column(sa.Column("boot_id", sa.String(length=64), nullable=True))
        batch.add_column(sa.Column("frozen", sa.String(length=16), nullable=True))
        batch.add_column(sa.Column("frozen_at", sa.Double(), nullable=True))
        batch.add_column(sa.Column("frozen_detail", sa.Text(), nullable=True))
        batch.add_column(
            sa.Column("condition", sa.String(length=16), nullable=False, server_default=sa.text("'up'"))
        )
        batch.add_column(sa.Column("condition_at", sa.Double(), nullable=True))
        batch.add_column(sa.Column("condition_detail", sa.Text(), nullable=True))
        batch.add_column(sa.Column("heard_seq", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
        batch.add_column(sa.Column("shared", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch.add_column(sa.Column("maintenance_until", sa.Double(), nullable=True))
        batch.add_column(sa.Column("booted_id", sa.String(length=64), nullable=True))
        batch.add_column(sa.Column("booted_seq", sa.BigInteger(), nullable=False, server_default="0"))
        batch.add_column(sa.Column("booted_at", sa.Double(), nullable=True))
    _hosts_that_die()


def _hosts_that_die() -> None:
    op.create_table(
        "strays",
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("instance_id", sa.String(length=36), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("host", "instance_id", name=op.f("pk_strays")),
    )
    op.create_table(
        "host_plans",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("made_at", sa.Double(), nullable=False),
        sa.Column("made_by", sa.String(length=64), nullable=False),
        sa.Column("approved_at", sa.Double(), nullable=True),
        sa.Column("approved_by", sa.String(length=64), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_host_plans")),
    )
    op.create_index(op.f("ix_host_plans_host"), "host_plans", ["host"])
    op.create_index(op.f("ix_host_plans_state"), "host_plans", ["state"])
    op.create_table(
        "host_moves",
        sa.Column("plan_id", sa.String(length=36), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("instance_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("vm_state", sa.String(length=32), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=True),
        sa.Column("to_host", sa.String(length=255), nullable=True),
        sa.Column("says", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("operation_id", sa.String(length=36), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["plan_id"], ["host_plans.id"], name=op.f("fk_host_moves_plan_id_host_plans")
        ),
        sa.PrimaryKeyConstraint("plan_id", "number", name=op.f("pk_host_moves")),
    )


def downgrade() -> None:
    for name in ("host_moves", "host_plans", "strays"):
        op.drop_table(name)
    with op.batch_alter_table("hosts") as batch:
        for name in (
            "maintenance_until",
            "shared",
            "heard_seq",
            "condition_detail",
            "condition_at",
            "condition",
            "booted_at",
            "booted_seq",
            "booted_id",
            "frozen_detail",
            "frozen_at",
            "frozen",
            "boot_id",
        ):
            batch.drop_column(name)
