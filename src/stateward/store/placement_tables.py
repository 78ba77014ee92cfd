"""The schema of where instances are: what each has claimed on which host, and server groups."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from stateward.store.tables import METADATA

#: What instances have claimed; the sums by host are columns of ``hosts``, written in the same transactions.
CLAIMS: Final = sa.Table(
    "claims",
    METADATA,
    # No foreign key: room is claimed before the new instance's row is written.
    sa.Column("instance_id", sa.String(36), primary_key=True),
    #: ``home`` or ``move``: an instance that is being resized holds both.
    sa.Column("purpose", sa.String(8), primary_key=True),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("vcpus", sa.Integer, nullable=False),
    #: MiB.
    sa.Column("memory", sa.BigInteger, nullable=False),
    #: GiB.
    sa.Column("disk", sa.BigInteger, nullable=False),
)

SERVER_GROUPS: Final = sa.Table(
    "server_groups",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(36), nullable=False, unique=True),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("user_id", sa.String(64), nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("policy", sa.String(32), nullable=False),
    #: Nova's rule ``max_server_per_host``; null: none was given.
    sa.Column("most_per_host", sa.Integer),
    sa.Index(None, "project_id"),
)
