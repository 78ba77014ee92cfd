"""Locks that are stacked, expire, are sealed and are inherited; and leave to pass those that bind admins."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_OLD = sa.table(
    "locks",
    *(
        sa.column(name)
        for name in ("id", "instance_id", "kind", "name", "holder", "reason", "blocks", "placed_at")
    ),
)


def upgrade() -> None:
    # Not in a batch: of a column with a default Alembic makes a new table on SQLite, and drops the one that rows of
    # others refer to.
    op.add_column("instances", sa.Column("kept_off", sa.Boolean(), server_default=sa.false(), nullable=False))
    # Made anew: its unique constraint is another, and PostgreSQL does not have two tables with indexes of one name.
    kept = [dict(row) for row in op.get_bind().execute(sa.select(_OLD)).mappings()]
    op.drop_table("locks")
    locks = op.create_table(
        "locks",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("instance_id", sa.String(length=36), nullable=True),
        sa.Column("project_id", sa.String(length=64), nullable=True),
        sa.Column("tag", sa.String(length=60), nullable=True),
        sa.Column("scope", sa.String(length=160), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=255), nullable=True),
        sa.Column("ticket", sa.String(length=255), nullable=True),
        sa.Column("blocks", sa.Integer(), nullable=False),
        sa.Column("placed_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("warned_at", sa.Double(), nullable=True),
        sa.Column("sealed", sa.Boolean(), nullable=False),
        sa.Column("off", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["instance_id"], ["instances.id"], name=op.f("fk_locks_instance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_locks")),
        sa.UniqueConstraint("scope", "kind", "holder", "name", name=op.f("uq_locks_scope_kind_holder_name")),
    )
    for column in ("instance_id", "project_id", "expires_at"):
        op.create_index(op.f(f"ix_locks_{column}"), "locks", [column])
    if kept:
        new = {"sealed": False, "off": False}
        op.bulk_insert(locks, [{**row, **new, "scope": f"instance {row['instance_id']}"} for row in kept])
    op.create_table(
        "overrides",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("instance_id", sa.String(length=36), nullable=False),
        sa.Column("lock_id", sa.String(length=36), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=255), nullable=False),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("left", sa.Integer(), nullable=True),
        sa.Column("approved_by", sa.String(length=64), nullable=True),
        sa.Column("approved_at", sa.Double(), nullable=True),
        sa.Column("needs_approval", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["instance_id"], ["instances.id"], name=op.f("fk_overrides_instance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_overrides")),
    )
    op.create_index(op.f("ix_overrides_instance_id"), "overrides", ["instance_id"])


def downgrade() -> None:
    msg = "Stacked locks do not fit into the schema before them; restore a backup instead."
    raise NotImplementedError(msg)
