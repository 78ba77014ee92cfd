"""The ids that images ever had: none is given out twice.

Of images that were deleted before, those are known that an instance was made from: their bytes may be on its host.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    table = op.create_table(
        "image_ids",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image_ids")),
    )
    connection = op.get_bind()
    ids = set(connection.execute(sa.text("SELECT id FROM images")).scalars())
    for row in connection.execute(sa.text("SELECT image, rescue, shelved_image FROM instances")):
        for packed in row:
            ids.update(_named(packed))
    if ids:
        connection.execute(sa.insert(table), [{"id": each} for each in sorted(ids)])


def downgrade() -> None:
    op.drop_table("image_ids")


def _named(packed: str | None) -> Iterator[str]:
    """Yield the images that an instance's image needs; its properties may be any text."""
    if packed is None:
        return
    facts = json.loads(packed)
    properties = facts.get("properties", {})
    for each in (facts["id"], properties.get("kernel_id"), properties.get("ramdisk_id")):
        if each is not None and _is_id(each):
            yield each


def _is_id(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
