"""What telling keeps: webhooks, what could not be delivered to them, and the totals that metrics show."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from stateward.domain.tallies import Tally
from stateward.store.tables import COUNTER, METADATA, Packed

WEBHOOKS: Final = sa.Table(
    "webhooks",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("format", sa.String(16), nullable=False),
    sa.Column("types", Packed(tuple[str, ...]), nullable=False),
    sa.Column("instance_id", sa.String(36)),
    sa.Column("project_id", sa.String(64)),
    sa.Column("host", sa.String(255)),
    sa.Column("customer", sa.Boolean, nullable=False),
    sa.Column("secret", sa.String(128), nullable=False),
    sa.Column("old_secret", sa.String(128)),
    sa.Column("old_secret_until", sa.Double),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("disabled_reason", sa.Text),
    #: The place of the last event that was delivered or given up.
    sa.Column("reached_number", sa.BigInteger, nullable=False),
    sa.Column("reached_part", sa.Integer, nullable=False),
    sa.Column("failing_since", sa.Double),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("next_try_at", sa.Double),
    sa.Column("last_error", sa.Text),
    sa.Column("delivered", sa.BigInteger, nullable=False, default=0),
    sa.Column("created_at", sa.Double, nullable=False),
)

#: Dead letters; what they say is in the trail.
WEBHOOK_LETTERS: Final = sa.Table(
    "webhook_letters",
    METADATA,
    sa.Column("number", COUNTER, primary_key=True, autoincrement=True),
    sa.Column("webhook_id", sa.String(36), sa.ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    sa.Column("event_number", sa.BigInteger, nullable=False),
    sa.Column("event_part", sa.Integer, nullable=False),
    sa.Column("type", sa.String(64), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("failed_at", sa.Double, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("due", sa.Boolean, nullable=False, default=False),
    sa.UniqueConstraint("webhook_id", "event_number", "event_part"),
)

#: One row, from the first scrape on: what was counted of the trail, and up to which record.
TALLIES: Final = sa.Table(
    "tallies",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("counted", Packed(Tally), nullable=False),
    sa.CheckConstraint("id = 1", name="only_one"),
)
