"""What the operator was told of an instance: an alert is due until that is in its row.

What was told before is not known: what still deviates is told once more.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("instances", sa.Column("alerted", sa.String(length=64), nullable=True))


def downgrade() -> None:
    op.drop_column("instances", "alerted")
