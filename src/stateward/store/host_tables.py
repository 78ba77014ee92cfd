"""The schema of what is done about hosts: plans, their lines, and what a host that returns has to be rid of."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from stateward.store.tables import METADATA, Packed

#: A guest that an instance has left behind on a host that was fenced: one is made elsewhere in its stead.
STRAYS: Final = sa.Table(
    "strays",
    METADATA,
    sa.Column("host", sa.String(255), primary_key=True),
    # No foreign key: a purged instance's guest is to be removed all the same.
    sa.Column("instance_id", sa.String(36), primary_key=True),
    #: The evacuation's: nothing older may act on the instance there.
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)

#: What is to become of a host's instances. ``state`` is a word of ``PlanState``.
HOST_PLANS: Final = sa.Table(
    "host_plans",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("host", sa.String(255), nullable=False, index=True),
    #: ``evacuate`` or ``drain``.
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("made_at", sa.Double, nullable=False),
    sa.Column("made_by", sa.String(64), nullable=False),
    sa.Column("approved_at", sa.Double),
    sa.Column("approved_by", sa.String(64)),
    sa.Column("ended_at", sa.Double),
    #: Why, and how: for people.
    sa.Column("detail", Packed(dict[str, Any]), nullable=False),
)

#: A plan's lines. ``state`` is a word of ``MoveState``.
HOST_MOVES: Final = sa.Table(
    "host_moves",
    METADATA,
    sa.Column("plan_id", sa.String(36), sa.ForeignKey("host_plans.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("instance_id", sa.String(36), nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("vm_state", sa.String(32), nullable=False),
    #: A key of the action table; null: it is left.
    sa.Column("action", sa.String(64)),
    sa.Column("to_host", sa.String(255)),
    sa.Column("says", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("operation_id", sa.String(36)),
    sa.Column("message", sa.Text),
)
