"""What the arbiter keeps of hosts: whether their instances are judged, and the boot they were last judged in."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


#: What triggers on ``instances`` write into ``state_intervals`` (R16): whoever changes a state, by whatever statement,
#: ends an interval and begins the next, in the same transaction. An interval begins where the one before ended, also
#: when a clock went back or an agent's is not ours.
_RECORDED_AT: Final = (
    "CASE WHEN NEW.state_since IS NOT OLD.state_since AND NEW.state_since < NEW.updated_at "
    "THEN NEW.state_since ELSE NEW.updated_at END"
)
_OBSERVED_AT: Final = (
    "CASE WHEN NEW.observed_at IS NOT NULL AND NEW.observed_at IS NOT OLD.observed_at "
    "THEN NEW.observed_at ELSE NEW.updated_at END"
)


def _ends(kind: str, at: str) -> str:
    return (
        f"UPDATE state_intervals SET ended = max(began, {at}) "  # noqa: S608 (constants)
        f"WHERE instance_id = NEW.id AND kind = '{kind}' AND ended IS NULL;"
    )


def _begins(kind: str, column: str, at: str) -> str:
    # The last one's, not the greatest: an instance may have had thousands.
    before = (
        f"SELECT ended FROM state_intervals WHERE instance_id = NEW.id AND kind = '{kind}' "  # noqa: S608 (constants)
        "ORDER BY number DESC LIMIT 1"
    )
    return (
        "INSERT INTO state_intervals (instance_id, kind, state, began) "
        f"SELECT NEW.id, '{kind}', NEW.{column}, max({at}, coalesce(({before}), 0)) "
        "WHERE NEW.vm_state <> 'deleted';"
    )


_SQLITE: Final = (
    (
        "CREATE TRIGGER instances_begin AFTER INSERT ON instances BEGIN "
        f"{_begins('recorded', 'vm_state', 'NEW.updated_at')} "
        f"{_begins('observed', 'observed', 'NEW.updated_at')} END"
    ),
    (
        "CREATE TRIGGER instances_recorded AFTER UPDATE OF vm_state ON instances "
        "WHEN NEW.vm_state <> OLD.vm_state BEGIN "
        f"{_ends('recorded', _RECORDED_AT)} {_begins('recorded', 'vm_state', _RECORDED_AT)} END"
    ),
    (
        "CREATE TRIGGER instances_deleted AFTER UPDATE OF vm_state ON instances "
        f"WHEN NEW.vm_state = 'deleted' BEGIN {_ends('observed', 'NEW.updated_at')} END"
    ),
    # A deleted guest that is adopted again: what is seen of it begins anew, also where that is the same.
    (
        "CREATE TRIGGER instances_revived AFTER UPDATE OF vm_state ON instances "
        "WHEN OLD.vm_state = 'deleted' AND NEW.vm_state <> OLD.vm_state AND NEW.observed = OLD.observed "
        f"BEGIN {_begins('observed', 'observed', 'NEW.updated_at')} END"
    ),
    (
        "CREATE TRIGGER instances_observed AFTER UPDATE OF observed ON instances "
        "WHEN NEW.observed <> OLD.observed BEGIN "
        f"{_ends('observed', _OBSERVED_AT)} {_begins('observed', 'observed', _OBSERVED_AT)} END"
    ),
)
_POSTGRESQL: Final = (
    (
        "CREATE FUNCTION instances_begin(id text, kind text, state text, at double precision, lives boolean) "
        "RETURNS void LANGUAGE plpgsql AS $$ DECLARE last double precision; BEGIN "
        "UPDATE state_intervals AS it SET ended = greatest(it.began, $4) "
        "WHERE it.instance_id = $1 AND it.kind = $2 AND it.ended IS NULL RETURNING it.ended INTO last; "
        "IF last IS NULL THEN SELECT it.ended INTO last FROM state_intervals AS it "
        "WHERE it.instance_id = $1 AND it.kind = $2 ORDER BY it.number DESC LIMIT 1; END IF; "
        "IF $5 THEN INSERT INTO state_intervals (instance_id, kind, state, began) "
        "VALUES ($1, $2, $3, greatest($4, last)); END IF; END $$"
    ),
    (
        "CREATE FUNCTION instances_changed() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE "
        "lives boolean := NEW.vm_state <> 'deleted'; BEGIN "
        "IF TG_OP = 'INSERT' THEN "
        "PERFORM instances_begin(NEW.id, 'recorded', NEW.vm_state, NEW.updated_at, lives); "
        "PERFORM instances_begin(NEW.id, 'observed', NEW.observed, NEW.updated_at, lives); "
        "RETURN NULL; END IF; "
        "IF NEW.vm_state <> OLD.vm_state THEN "
        "PERFORM instances_begin(NEW.id, 'recorded', NEW.vm_state, CASE "
        "WHEN NEW.state_since IS DISTINCT FROM OLD.state_since AND NEW.state_since < NEW.updated_at "
        "THEN NEW.state_since ELSE NEW.updated_at END, lives); END IF; "
        "IF NEW.observed <> OLD.observed OR NOT lives OR OLD.vm_state = 'deleted' THEN "
        "PERFORM instances_begin(NEW.id, 'observed', NEW.observed, CASE WHEN lives AND NEW.observed_at IS NOT NULL "
        "AND NEW.observed_at IS DISTINCT FROM OLD.observed_at "
        "THEN NEW.observed_at ELSE NEW.updated_at END, lives); END IF; "
        "RETURN NULL; END $$"
    ),
    (
        "CREATE TRIGGER instances_began AFTER INSERT ON instances "
        "FOR EACH ROW EXECUTE FUNCTION instances_changed()"
    ),
    (
        "CREATE TRIGGER instances_changed AFTER UPDATE OF vm_state, observed ON instances FOR EACH ROW "
        "WHEN (NEW.vm_state <> OLD.vm_state OR NEW.observed <> OLD.observed) "
        "EXECUTE FUNCTION instances_changed()"
    ),
)
_OF_THOSE_THAT_ARE: Final = (
    "INSERT INTO state_intervals (instance_id, kind, state, began) "
    "SELECT id, 'recorded', vm_state, updated_at FROM instances WHERE vm_state <> 'deleted' "
    "UNION ALL SELECT id, 'observed', observed, coalesce(observed_at, updated_at) FROM instances "
    "WHERE vm_state <> 'deleted'"
)


def _state_intervals() -> None:
    op.add_column("instances", sa.Column("state_since", sa.Double(), nullable=True))
    op.create_table(
        "state_intervals",
        sa.Column(
            "number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("instance_id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("began", sa.Double(), nullable=False),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.CheckConstraint("ended >= began", name=op.f("ck_state_intervals_forwards")),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["instances.id"], name=op.f("fk_state_intervals_instance_id")
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_state_intervals")),
    )
    with op.batch_alter_table("state_intervals") as batch:
        batch.create_index(
            batch.f("ix_state_intervals_instance_id_state_intervals_kind_state_intervals_number"),
            ["instance_id", "kind", "number"],
        )
        batch.create_index(
            "uq_state_intervals_open",
            ["instance_id", "kind"],
            unique=True,
            sqlite_where=sa.text("ended IS NULL"),
            postgresql_where=sa.text("ended IS NULL"),
        )
    op.execute(_OF_THOSE_THAT_ARE)
    postgresql = op.get_bind().dialect.name == "postgresql"
    for statement in _POSTGRESQL if postgresql else _SQLITE:
        op.execute(statement)


def _webhooks() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("format", sa.String(length=16), nullable=False),
        sa.Column("types", sa.Text(), nullable=False),
        sa.Column("instance_id", sa.String(length=36), nullable=True),
        sa.Column("project_id", sa.String(length=64), nullable=True),
        sa.Column("host", sa.String(length=255), nullable=True),
        sa.Column("customer", sa.Boolean(), nullable=False),
        sa.Column("secret", sa.String(length=128), nullable=False),
        sa.Column("old_secret", sa.String(length=128), nullable=True),
        sa.Column("old_secret_until", sa.Double(), nullable=True),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("reached_number", sa.BigInteger(), nullable=False),
        sa.Column("reached_part", sa.Integer(), nullable=False),
        sa.Column("failing_since", sa.Double(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_try_at", sa.Double(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("delivered", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
        sa.UniqueConstraint("name", name=op.f("uq_webhooks_name")),
    )
    op.create_table(
        "webhook_letters",
        sa.Column(
            "number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("webhook_id", sa.String(length=36), nullable=False),
        sa.Column("event_number", sa.BigInteger(), nullable=False),
        sa.Column("event_part", sa.Integer(), nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("failed_at", sa.Double(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("due", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["webhook_id"],
            ["webhooks.id"],
            name=op.f("fk_webhook_letters_webhook_id_webhooks"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_webhook_letters")),
        sa.UniqueConstraint(
            "webhook_id",
            "event_number",
            "event_part",
            name=op.f("uq_webhook_letters_webhook_id_event_number_event_part"),
        ),
    )
    op.create_table(
        "tallies",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("counted", sa.Text(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_tallies_only_one")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tallies")),
    )


def upgrade() -> None:
    # Not in batches: a new table would be made of columns with defaults on SQLite (0002).
    op.add_column("instances", sa.Column("adopted_as", sa.String(length=255), nullable=True))
    for column in (
        sa.Column("boot_id", sa.String(length=64), nullable=True),
        sa.Column("frozen", sa.String(length=16), nullable=True),
        sa.Column("frozen_at", sa.Double(), nullable=True),
        sa.Column("frozen_detail", sa.Text(), nullable=True),
        sa.Column("condition", sa.String(length=16), nullable=False, server_default="up"),
        sa.Column("condition_at", sa.Double(), nullable=True),
        sa.Column("condition_detail", sa.Text(), nullable=True),
        sa.Column("heard_seq", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("shared", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("maintenance_until", sa.Double(), nullable=True),
        sa.Column("booted_id", sa.String(length=64), nullable=True),
        sa.Column("booted_seq", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("booted_at", sa.Double(), nullable=True),
    ):
        op.add_column("hosts", column)
    op.create_table(
        "sweeps",
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("observations", sa.Text(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("host", name=op.f("pk_sweeps")),
    )
    _hosts_that_die()
    _boots()
    _webhooks()
    _state_intervals()


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


def _boots() -> None:
    op.create_table(
        "boot_turns",
        sa.Column("instance_id", sa.String(length=36), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("operation_id", sa.String(length=36), nullable=True),
        sa.Column("began_at", sa.Double(), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("says", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["instance_id"], ["instances.id"], name=op.f("fk_boot_turns_instance_id")),
        sa.PrimaryKeyConstraint("instance_id", name=op.f("pk_boot_turns")),
    )
    op.create_index(op.f("ix_boot_turns_host"), "boot_turns", ["host"])


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for name in ("instances_began", "instances_changed"):
            op.execute(f"DROP TRIGGER {name} ON instances")
        op.execute("DROP FUNCTION instances_changed")
        op.execute("DROP FUNCTION instances_begin")
    else:
        for name in (
            "instances_begin",
            "instances_recorded",
            "instances_deleted",
            "instances_revived",
            "instances_observed",
        ):
            op.execute(f"DROP TRIGGER {name}")
    op.drop_table("state_intervals")
    op.drop_column("instances", "state_since")
    for name in (
        "tallies",
        "webhook_letters",
        "webhooks",
        "boot_turns",
        "host_moves",
        "host_plans",
        "strays",
    ):
        op.drop_table(name)
    op.drop_column("instances", "adopted_as")
    op.drop_table("sweeps")
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
        op.drop_column("hosts", name)
