"""The schema of the embedded image service; the images' data are files in a folder, named by the id."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from stateward.store.tables import METADATA

IMAGES: Final = sa.Table(
    "images",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(255)),
    #: The project; null for an image that came with the installation.
    sa.Column("owner", sa.String(64)),
    #: ``public``, ``community``, ``shared`` or ``private``.
    sa.Column("visibility", sa.String(16), nullable=False),
    #: ``queued``, ``saving`` or ``active``.
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("disk_format", sa.String(16)),
    sa.Column("container_format", sa.String(16)),
    #: GiB and MiB that a flavor must have.
    sa.Column("min_disk", sa.Integer, nullable=False),
    sa.Column("min_ram", sa.Integer, nullable=False),
    sa.Column("protected", sa.Boolean, nullable=False),
    sa.Column("hidden", sa.Boolean, nullable=False),
    #: Bytes, MD5 and SHA-512 in hexadecimal; null until the data are there.
    sa.Column("size", sa.BigInteger),
    sa.Column("checksum", sa.String(32)),
    sa.Column("hash_value", sa.String(128)),
    #: Names the upload under way, so that one that was given up cannot finish another's.
    sa.Column("upload", sa.String(36)),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.CheckConstraint("status <> 'active' OR size IS NOT NULL", name="active_has_data"),
    sa.CheckConstraint("(status = 'saving') = (upload IS NOT NULL)", name="saving_has_upload"),
    sa.Index(None, "created_at"),
    sa.Index(None, "owner"),
)

#: Every id that an image ever had: written with the image, and never deleted. Hosts keep an image's bytes under its id
#: for as long as an instance needs them, and an upload may outlive its image: an id must not come to mean others.
IMAGE_IDS: Final = sa.Table(
    "image_ids",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
)

IMAGE_PROPERTIES: Final = sa.Table(
    "image_properties",
    METADATA,
    sa.Column("image_id", sa.String(36), sa.ForeignKey("images.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

IMAGE_TAGS: Final = sa.Table(
    "image_tags",
    METADATA,
    sa.Column("image_id", sa.String(36), sa.ForeignKey("images.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("tag", sa.String(255), primary_key=True),
)

#: The projects a shared image is shared with.
IMAGE_MEMBERS: Final = sa.Table(
    "image_members",
    METADATA,
    sa.Column("image_id", sa.String(36), sa.ForeignKey("images.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("member", sa.String(64), primary_key=True),
    #: ``pending``, ``accepted`` or ``rejected``: whether the image shows up in the member's lists.
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Index(None, "member"),
)
