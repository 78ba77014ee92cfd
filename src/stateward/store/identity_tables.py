"""The schema of the embedded identity service: who there is, what they may do, and which tokens were revoked.

Everything else a user or project carries (an e-mail address, a customer number) is kept in ``extra`` as it came,
as Keystone does.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from stateward.store.tables import METADATA, Packed

DOMAINS: Final = sa.Table(
    "identity_domains",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("enabled", sa.Boolean, nullable=False),
)

PROJECTS: Final = sa.Table(
    "identity_projects",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("domain_id", sa.String(64), sa.ForeignKey("identity_domains.id"), nullable=False),
    #: Null: the domain itself is the parent.
    sa.Column("parent_id", sa.String(64), sa.ForeignKey("identity_projects.id")),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("enabled", sa.Boolean, nullable=False),
    #: Neither changed nor deleted until this is taken back.
    sa.Column("immutable", sa.Boolean, nullable=False),
    sa.Column("tags", Packed(tuple[str, ...]), nullable=False),
    sa.Column("extra", Packed(dict[str, Any]), nullable=False),
    sa.UniqueConstraint("domain_id", "name"),
    sa.Index(None, "parent_id"),
)

USERS: Final = sa.Table(
    "identity_users",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("domain_id", sa.String(64), sa.ForeignKey("identity_domains.id"), nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("enabled", sa.Boolean, nullable=False),
    #: bcrypt's; null: nobody can log in with a password.
    sa.Column("password", sa.String(128)),
    #: Counts password changes and disablings; a token is good only with the number it was issued under, whatever
    #: the clocks say.
    sa.Column("epoch", sa.Integer, nullable=False, default=0),
    #: Not a foreign key: as in Keystone, it is only a wish, looked at when a login names no project.
    sa.Column("default_project_id", sa.String(64)),
    sa.Column("extra", Packed(dict[str, Any]), nullable=False),
    sa.UniqueConstraint("domain_id", "name"),
)

ROLES: Final = sa.Table(
    "identity_roles",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(255), nullable=False, unique=True),
    sa.Column("description", sa.Text),
    sa.Column("immutable", sa.Boolean, nullable=False),
    sa.Column("extra", Packed(dict[str, Any]), nullable=False),
)

GRANTS: Final = sa.Table(
    "identity_grants",
    METADATA,
    sa.Column(
        "user_id", sa.String(64), sa.ForeignKey("identity_users.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column(
        "project_id",
        sa.String(64),
        sa.ForeignKey("identity_projects.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column(
        "role_id", sa.String(64), sa.ForeignKey("identity_roles.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Index(None, "project_id"),
    sa.Index(None, "role_id"),
)

APPLICATION_CREDENTIALS: Final = sa.Table(
    "identity_application_credentials",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column(
        "user_id", sa.String(64), sa.ForeignKey("identity_users.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column(
        "project_id", sa.String(64), sa.ForeignKey("identity_projects.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("description", sa.Text),
    sa.Column("secret", sa.String(128), nullable=False),
    #: Names of roles; what the user has lost since does not count.
    sa.Column("roles", Packed(tuple[str, ...]), nullable=False),
    #: May be used to make and delete application credentials.
    sa.Column("unrestricted", sa.Boolean, nullable=False),
    #: Seconds since the epoch; null: never.
    sa.Column("expires_at", sa.Double),
    sa.UniqueConstraint("user_id", "name"),
    sa.Index(None, "project_id"),
)

REVOKED: Final = sa.Table(
    "identity_revoked_tokens",
    METADATA,
    sa.Column("audit_id", sa.String(64), primary_key=True),
    #: When the token would have expired: the row is of no use after it.
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Index(None, "expires_at"),
)

#: One row, whose number every change of the tables above counts up in its own transaction: how a process that
#: remembers verified tokens notices what another process changed.
GENERATION: Final = sa.Table(
    "identity_generation",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.BigInteger, nullable=False),
)
