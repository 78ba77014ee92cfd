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


def downgrade() -> None:
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
