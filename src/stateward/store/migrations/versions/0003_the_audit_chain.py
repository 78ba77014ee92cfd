"""The audit trail is chained: each record carries the hash of all before it, and the database refuses to change one."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import sqlalchemy as sa
from alembic import op

from stateward.domain.audit import GENESIS, Entry, link

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SAID: Final = (
    "at, event, instance_id, operation_id, action, actor_kind, user_id, project_id, request_id, detail"
)
#: The head moves only forwards.
_SQLITE: Final = (
    (
        "CREATE TRIGGER audit_update BEFORE UPDATE ON audit "
        "BEGIN SELECT RAISE(ABORT, 'The audit trail is append-only.'); END"
    ),
    (
        "CREATE TRIGGER audit_delete BEFORE DELETE ON audit "
        "BEGIN SELECT RAISE(ABORT, 'The audit trail is append-only.'); END"
    ),
    # INSERT OR REPLACE deletes without a DELETE trigger.
    (
        "CREATE TRIGGER audit_replace BEFORE INSERT ON audit "
        "WHEN EXISTS (SELECT 1 FROM audit WHERE number = NEW.number) "
        "BEGIN SELECT RAISE(ABORT, 'The audit trail is append-only.'); END"
    ),
    (
        "CREATE TRIGGER audit_head_update BEFORE UPDATE ON audit_head WHEN NEW.number <= OLD.number "
        "BEGIN SELECT RAISE(ABORT, 'The audit trail is append-only.'); END"
    ),
    (
        "CREATE TRIGGER audit_head_delete BEFORE DELETE ON audit_head "
        "BEGIN SELECT RAISE(ABORT, 'The audit trail is append-only.'); END"
    ),
    (
        "CREATE TRIGGER audit_head_replace BEFORE INSERT ON audit_head "
        "WHEN EXISTS (SELECT 1 FROM audit_head) BEGIN SELECT RAISE(ABORT, 'The audit trail is append-only.'); END"
    ),
    (
        "CREATE TRIGGER audit_unsealed_insert BEFORE INSERT ON audit_unsealed "
        "BEGIN SELECT RAISE(ABORT, 'The audit trail is chained at once on SQLite.'); END"
    ),
)
_POSTGRESQL: Final = (
    (
        "CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'The audit trail is append-only.' USING ERRCODE = 'restrict_violation'; END $$"
    ),
    (
        "CREATE TRIGGER audit_change BEFORE UPDATE OR DELETE ON audit "
        "FOR EACH ROW EXECUTE FUNCTION audit_refuse()"
    ),
    (
        "CREATE TRIGGER audit_truncate BEFORE TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()"
    ),
    (
        "CREATE TRIGGER audit_head_update BEFORE UPDATE ON audit_head "
        "FOR EACH ROW WHEN (NEW.number <= OLD.number) EXECUTE FUNCTION audit_refuse()"
    ),
    (
        "CREATE TRIGGER audit_head_delete BEFORE DELETE ON audit_head "
        "FOR EACH ROW EXECUTE FUNCTION audit_refuse()"
    ),
    (
        "CREATE TRIGGER audit_head_truncate BEFORE TRUNCATE ON audit_head "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()"
    ),
    (
        "CREATE TRIGGER audit_unsealed_change BEFORE UPDATE ON audit_unsealed "
        "FOR EACH ROW EXECUTE FUNCTION audit_refuse()"
    ),
    (
        "CREATE TRIGGER audit_unsealed_truncate BEFORE TRUNCATE ON audit_unsealed "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()"
    ),
    (
        "CREATE TRIGGER audit_unsealed_delete AFTER DELETE ON audit_unsealed "
        "REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse_unsealed()"
    ),
)
#: What goes must be, word for word, the end of the trail; with the trail's schema, because a temporary table of that
#: name would be found first.
_REFUSE_UNSEALED: Final = (
    "CREATE FUNCTION audit_refuse_unsealed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "  # noqa: S608 (constants)
    f"IF EXISTS (SELECT {_SAID} FROM gone EXCEPT ALL SELECT {_SAID} FROM SCHEMA.audit "
    "WHERE number > (SELECT max(number) FROM SCHEMA.audit) - (SELECT count(*) FROM gone)) "
    "THEN RAISE EXCEPTION 'The audit trail is append-only.' USING ERRCODE = 'restrict_violation'; END IF; "
    "RETURN NULL; END $$"
)


def _said() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("at", sa.Double[float](), nullable=False),
        sa.Column("event", sa.String(length=32), nullable=False),
        sa.Column("instance_id", sa.String(length=36), nullable=True),
        sa.Column("operation_id", sa.String(length=36), nullable=True),
        sa.Column("action", sa.String(length=64), nullable=True),
        sa.Column("actor_kind", sa.String(length=8), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
    )


def upgrade() -> None:
    kept = op.get_bind().execute(sa.text(f"SELECT {_SAID} FROM audit ORDER BY number")).all()  # noqa: S608 (constants)
    op.drop_table("audit")
    trail = op.create_table(
        "audit",
        sa.Column(
            "number",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        *_said(),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit")),
    )
    op.create_table(
        "audit_unsealed",
        sa.Column(
            "arrival",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        *_said(),
        sa.PrimaryKeyConstraint("arrival", name=op.f("pk_audit_unsealed")),
    )
    head = op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_audit_head_only_one")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_head")),
    )
    # What was recorded before is chained as it is found; from now on nobody can change it unseen.
    number, digest = 0, GENESIS
    for number, row in enumerate(kept, start=1):
        said = row._asdict()
        digest = link(digest, number, Entry(**(said | {"detail": msgspec.Raw(row.detail.encode())})))
        op.get_bind().execute(sa.insert(trail).values(number=number, **said, hash=digest))
    op.bulk_insert(head, [{"id": 1, "number": number, "hash": digest}])
    statements: tuple[str, ...] = _SQLITE
    if op.get_bind().dialect.name == "postgresql":
        schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
        statements = (_REFUSE_UNSEALED.replace("SCHEMA.", f"{schema}."), *_POSTGRESQL)
    for statement in statements:
        op.execute(statement)


def downgrade() -> None:
    msg = "A chained audit trail is not taken apart; restore a backup instead."
    raise NotImplementedError(msg)
