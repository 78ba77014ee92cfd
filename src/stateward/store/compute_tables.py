"""The schema of what instances are made with: flavors and key pairs.

An instance keeps a copy of its flavor, so nothing refers to a flavor's row but what belongs to it alone.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from stateward.store.tables import METADATA, Packed

FLAVORS: Final = sa.Table(
    "flavors",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    #: Nova's ``flavorid``: what clients name it by; any text.
    sa.Column("id", sa.String(255), nullable=False, unique=True),
    sa.Column("name", sa.String(255), nullable=False, unique=True),
    sa.Column("description", sa.Text),
    sa.Column("vcpus", sa.Integer, nullable=False),
    #: MiB.
    sa.Column("ram", sa.Integer, nullable=False),
    #: GiB; 0 takes the image's own size.
    sa.Column("disk", sa.Integer, nullable=False),
    #: GiB.
    sa.Column("ephemeral", sa.Integer, nullable=False),
    #: MiB.
    sa.Column("swap", sa.Integer, nullable=False),
    sa.Column("rxtx_factor", sa.Double, nullable=False),
    #: False: only for the projects in ``flavor_access``, and admins.
    sa.Column("public", sa.Boolean, nullable=False),
    #: Read and written with the row's lock: a change of one key must not lose another's.
    sa.Column("extra_specs", Packed(dict[str, str]), nullable=False),
)

FLAVOR_ACCESS: Final = sa.Table(
    "flavor_access",
    METADATA,
    sa.Column("flavor", sa.Integer, sa.ForeignKey("flavors.number", ondelete="CASCADE"), primary_key=True),
    sa.Column("project_id", sa.String(255), primary_key=True),
)

KEYPAIRS: Final = sa.Table(
    "keypairs",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("user_id", sa.String(64), nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    #: ``ssh`` or ``x509``.
    sa.Column("type", sa.String(8), nullable=False),
    sa.Column("public_key", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.String(255), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.UniqueConstraint("user_id", "name"),
)
