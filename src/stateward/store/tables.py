"""The schema of what the control plane knows: instances, locks, operations, audit, outbox and hosts.

Other resources keep their tables in modules of their own (``identity_tables`` …) on the same ``METADATA``, so
that Alembic compares one schema. Times are seconds since the epoch, as floats.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import sqlalchemy as sa

from stateward.domain.networks import Port, PortAddress
from stateward.domain.records import Fault, FlavorFacts, ImageFacts, Observation, Order, Progress
from stateward.domain.seeds import SeedFacts

METADATA: Final = sa.MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


#: Counts rows that come for as long as the installation lives; SQLite's INTEGER has 64 bits by itself.
COUNTER: Final = sa.BigInteger().with_variant(sa.Integer, "sqlite")


class Packed(sa.types.TypeDecorator[Any]):
    """A msgspec type kept as JSON text: readable with any SQL tool, and checked when it is read."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, kind: Any) -> None:
        """Keep a decoder of the kind."""
        super().__init__()
        self.kind = kind
        self._decode = msgspec.json.Decoder(kind).decode
        self._encode = msgspec.json.Encoder(order="deterministic").encode

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        """Encode for the database."""
        return None if value is None else self._encode(value).decode()

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Any:
        """Decode from the database."""
        return None if value is None else self._decode(value)

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Any:
        """Decode without SQLAlchemy's wrapper around ``process_result_value``: rows have five such columns."""
        decode = self._decode

        def process(value: Any) -> Any:
            return None if value is None else decode(value)

        return process


INSTANCES: Final = sa.Table(
    "instances",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(36), nullable=False, unique=True),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("user_id", sa.String(64), nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("description", sa.String(255)),
    sa.Column("hostname", sa.String(255), nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("zone", sa.String(255), nullable=False),
    sa.Column("flavor", Packed(FlavorFacts), nullable=False),
    sa.Column("image", Packed(ImageFacts), nullable=False),
    sa.Column("key_name", sa.String(255)),
    sa.Column("user_data", sa.Text),
    sa.Column("metadata", Packed(dict[str, str]), nullable=False),
    sa.Column("tags", Packed(tuple[str, ...]), nullable=False),
    sa.Column("seed", Packed(SeedFacts), nullable=False, default=SeedFacts()),
    sa.Column("ports", Packed(tuple[Port, ...]), nullable=False, default=()),
    sa.Column("reservation_id", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("launched_at", sa.Double),
    sa.Column("terminated_at", sa.Double),
    sa.Column("vm_state", sa.String(32), nullable=False),
    sa.Column("task_state", sa.String(32)),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("operation_id", sa.String(36)),
    sa.Column("fault", Packed(Fault)),
    sa.Column("old_flavor", Packed(FlavorFacts)),
    sa.Column("was", sa.String(32)),
    sa.Column("rescue", Packed(ImageFacts)),
    sa.Column("shelved_image", Packed(ImageFacts)),
    sa.Column("owner_blocks", sa.Integer, nullable=False, default=0),
    sa.Column("admin_blocks", sa.Integer, nullable=False, default=0),
    sa.Column("hold_blocks", sa.Integer, nullable=False, default=0),
    sa.Column("kept_off", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("locked_by", sa.String(16)),
    sa.Column("locked_reason", sa.String(255)),
    sa.Column("observed", sa.String(16), nullable=False),
    sa.Column("cause", sa.String(16), nullable=False),
    sa.Column("observed_seq", sa.BigInteger, nullable=False, default=0),
    sa.Column("observed_at", sa.Double),
    sa.Column("addresses", Packed(tuple[PortAddress, ...]), nullable=False, default=()),
    sa.Column("addresses_seq", sa.BigInteger, nullable=False, default=0),
    #: The server group it was made in; the group may be gone.
    sa.Column("group_id", sa.String(36)),
    #: What its maker told the scheduler; null: nothing.
    sa.Column("hints", Packed(dict[str, Any])),
    #: When its vm state began, where that was before it was written: what an agent saw is adopted as of then.
    sa.Column("state_since", sa.Double),
    #: Its host's name for a guest that was adopted; null: it was made here.
    sa.Column("adopted_as", sa.String(255)),
    #: The deviation that a person was told of last; null: of none, or it has passed.
    sa.Column("alerted", sa.String(64)),
    # B3 as a constraint: a task state belongs to an operation, and a deleted instance has neither.
    sa.CheckConstraint("task_state IS NULL OR operation_id IS NOT NULL", name="task_has_operation"),
    sa.Index(None, "project_id", "created_at"),
    sa.Index(None, "host", "vm_state"),
    sa.Index(None, "updated_at"),
    sa.Index(None, "group_id"),
)

#: What each instance was, from when to when (R16). Triggers on ``instances`` write it, and nothing else does.
STATE_INTERVALS: Final = sa.Table(
    "state_intervals",
    METADATA,
    sa.Column("number", COUNTER, primary_key=True, autoincrement=True),
    sa.Column("instance_id", sa.String(36), sa.ForeignKey("instances.id"), nullable=False),
    #: ``recorded``: a vm state. ``observed``: what its host saw of the guest.
    sa.Column("kind", sa.String(8), nullable=False),
    sa.Column("state", sa.String(32), nullable=False),
    sa.Column("began", sa.Double, nullable=False),
    #: Null: it is so now.
    sa.Column("ended", sa.Double),
    sa.CheckConstraint("ended >= began", name="forwards"),
    sa.Index(None, "instance_id", "kind", "number"),
    # Nothing is in two states at once.
    sa.Index(
        "uq_state_intervals_open",
        "instance_id",
        "kind",
        unique=True,
        sqlite_where=sa.text("ended IS NULL"),
        postgresql_where=sa.text("ended IS NULL"),
    ),
)

LOCKS: Final = sa.Table(
    "locks",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    #: Null for a lock that a project's instances inherit.
    sa.Column("instance_id", sa.String(36), sa.ForeignKey("instances.id"), index=True),
    sa.Column("project_id", sa.String(64), index=True),
    sa.Column("tag", sa.String(60)),
    #: ``Lock.scope``, by which it is unique: nulls are equal to nothing.
    sa.Column("scope", sa.String(160), nullable=False),
    sa.Column("kind", sa.String(8), nullable=False),
    #: Nova's ``lock`` places the unnamed one.
    sa.Column("name", sa.String(64), nullable=False, default=""),
    sa.Column("holder", sa.String(64), nullable=False),
    sa.Column("reason", sa.String(255)),
    sa.Column("ticket", sa.String(255)),
    sa.Column("blocks", sa.Integer, nullable=False),
    sa.Column("placed_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, index=True),
    sa.Column("warned_at", sa.Double),
    sa.Column("sealed", sa.Boolean, nullable=False, default=False),
    sa.Column("off", sa.Boolean, nullable=False, default=False),
    sa.UniqueConstraint("scope", "kind", "holder", "name"),
)

#: Break-glass: an admin's leave to pass a lock that binds admins.
OVERRIDES: Final = sa.Table(
    "overrides",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("instance_id", sa.String(36), sa.ForeignKey("instances.id"), nullable=False, index=True),
    #: No foreign key: what was passed is to be known after the lock is gone.
    sa.Column("lock_id", sa.String(36), nullable=False),
    sa.Column("user_id", sa.String(64), nullable=False),
    sa.Column("reason", sa.String(255), nullable=False),
    sa.Column("asked_at", sa.Double, nullable=False),
    #: Null: for so many operations, however long that takes.
    sa.Column("expires_at", sa.Double),
    #: Operations it is still good for; null: as many as come before it expires.
    sa.Column("left", sa.Integer),
    #: Null until a second admin agrees, where that is needed.
    sa.Column("approved_by", sa.String(64)),
    sa.Column("approved_at", sa.Double),
    sa.Column("needs_approval", sa.Boolean, nullable=False),
)

OPERATIONS: Final = sa.Table(
    "operations",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("instance_id", sa.String(36), sa.ForeignKey("instances.id"), nullable=False),
    #: A key of the action table.
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("actor_kind", sa.String(8), nullable=False),
    sa.Column("user_id", sa.String(64), nullable=False),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("finished_at", sa.Double),
    sa.Column("message", sa.Text),
    sa.Column("params", Packed(dict[str, Any]), nullable=False),
    #: What the agent said last, and the number by which it is written only forwards.
    sa.Column("progress", Packed(Progress)),
    sa.Column("progress_seq", sa.BigInteger, nullable=False, default=0),
    #: What it was told last, and how many orders it was given.
    sa.Column("standing_order", Packed(Order)),
    sa.Column("order_number", sa.Integer, nullable=False, default=0),
    sa.Index(None, "instance_id", "started_at"),
    sa.Index(None, "started_at"),
    # Recovery and superseding look for the few that are unfinished among the many that are not.
    sa.Index(
        "ix_operations_unfinished",
        "instance_id",
        sqlite_where=sa.text("finished_at IS NULL"),
        postgresql_where=sa.text("finished_at IS NULL"),
    ),
)


def _said() -> tuple[sa.Column[Any], ...]:
    """Return the columns with what an audit record says."""
    return (
        sa.Column("at", sa.Double, nullable=False),
        #: ``admitted``, ``refused``, ``ordered``, ``finished``, ``verdict``, ``lock_expired`` …
        sa.Column("event", sa.String(32), nullable=False),
        sa.Column("instance_id", sa.String(36)),
        sa.Column("operation_id", sa.String(36)),
        sa.Column("action", sa.String(64)),
        sa.Column("actor_kind", sa.String(8), nullable=False),
        sa.Column("user_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("detail", Packed(dict[str, Any]), nullable=False),
    )


#: The trail. Triggers refuse UPDATE and DELETE.
AUDIT: Final = sa.Table(
    "audit",
    METADATA,
    #: Without gaps, from 1.
    sa.Column("number", COUNTER, primary_key=True, autoincrement=False),
    *_said(),
    #: The chain's (``domain/audit``).
    sa.Column("hash", sa.String(64), nullable=False),
)

#: On PostgreSQL: records that were committed and are not chained yet (``store/sealing``). Triggers refuse UPDATE, and
#: DELETE of what is not in the trail. On SQLite records are chained in the transaction, and nothing is ever here.
AUDIT_UNSEALED: Final = sa.Table(
    "audit_unsealed",
    METADATA,
    #: In the order of the inserts; with gaps, and commits may come in another order.
    sa.Column("arrival", COUNTER, primary_key=True, autoincrement=True),
    *_said(),
)

#: One row: the number and hash of the last record, updated in the transaction that chains records.
AUDIT_HEAD: Final = sa.Table(
    "audit_head",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.CheckConstraint("id = 1", name="only_one"),
)

OUTBOX: Final = sa.Table(
    "outbox",
    METADATA,
    sa.Column("number", COUNTER, primary_key=True, autoincrement=True),
    sa.Column("subject", sa.String(255), nullable=False),
    sa.Column("message_id", sa.String(64), nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
)

HOSTS: Final = sa.Table(
    "hosts",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(36), nullable=False, unique=True),
    sa.Column("name", sa.String(255), nullable=False, unique=True),
    sa.Column("zone", sa.String(255), nullable=False),
    #: The last ``HostReport``; null until the host was heard of for the first time.
    sa.Column("report", sa.Text),
    sa.Column("seen_at", sa.Double),
    sa.Column("enabled", sa.Boolean, nullable=False, default=True),
    sa.Column("disabled_reason", sa.String(255)),
    sa.Column("forced_down", sa.Boolean, nullable=False, default=False),
    # The sums of the rows in ``claims``, and how many there are; memory in MiB, disk in GiB.
    sa.Column("claimed_vcpus", sa.Integer, nullable=False, server_default="0"),
    sa.Column("claimed_memory", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("claimed_disk", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("claims", sa.Integer, nullable=False, server_default="0"),
    #: The boot of the machine that its instances were last judged in; null until the agent has told one.
    sa.Column("boot_id", sa.String(64)),
    #: Why its instances are not judged now, a word of ``Frozen``; since when; and for people. Null: they are.
    sa.Column("frozen", sa.String(16)),
    sa.Column("frozen_at", sa.Double),
    sa.Column("frozen_detail", sa.Text),
    #: Whether it can be used, a word of ``Condition``; since when; and for people.
    sa.Column("condition", sa.String(16), nullable=False, server_default="up"),
    sa.Column("condition_at", sa.Double),
    sa.Column("condition_detail", sa.Text),
    #: The number of the last heartbeat: rises over all lives of the agent, and asks no clock.
    sa.Column("heard_seq", sa.BigInteger, nullable=False, server_default="0"),
    #: The folder of its instances is on storage that all hosts so marked share.
    sa.Column("shared", sa.Boolean, nullable=False, server_default=sa.false()),
    #: When a maintenance ends by itself; null: it is in none.
    sa.Column("maintenance_until", sa.Double),
    #: The latest boot that the agent has told, the number it was told with, and when; its instances are judged in it
    #: once ``boot_id`` says the same.
    sa.Column("booted_id", sa.String(64)),
    sa.Column("booted_seq", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("booted_at", sa.Double),
)

#: The plan of a host's boot: which instances are started again, and how far that is (R14).
BOOT_TURNS: Final = sa.Table(
    "boot_turns",
    METADATA,
    sa.Column("instance_id", sa.String(36), sa.ForeignKey("instances.id"), primary_key=True),
    sa.Column("host", sa.String(255), nullable=False, index=True),
    sa.Column("boot_id", sa.String(64), nullable=False),
    #: It counts for as long as the instance has this one.
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    #: A word of ``TurnState``.
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("operation_id", sa.String(36)),
    sa.Column("began_at", sa.Double),
    sa.Column("ended_at", sa.Double),
    sa.Column("outcome", sa.String(16)),
    sa.Column("says", sa.Text, nullable=False),
)

#: What would change too many instances of a host at once, and is not believed yet (B5); at most one of each host.
SWEEPS: Final = sa.Table(
    "sweeps",
    METADATA,
    sa.Column("host", sa.String(255), primary_key=True),
    #: What the host says of the instances that it would change.
    sa.Column("observations", Packed(tuple[Observation, ...]), nullable=False),
    #: How many living instances the host has.
    sa.Column("total", sa.Integer, nullable=False),
)
