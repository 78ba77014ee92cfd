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


def downgrade() -> None:
    with op.batch_alter_table("hosts") as batch:
        for name in ("frozen_detail", "frozen_at", "frozen", "boot_id"):
            batch.drop_column(name)
