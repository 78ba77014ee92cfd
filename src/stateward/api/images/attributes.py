"""An image's attributes: what a body may say of them, how a patch changes them, and how they are shown.

Whatever is not an attribute of Glance's own is an additional property: a string, kept as it came.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from stateward.api.faults import ApiFault
from stateward.api.http import convert
from stateward.domain.errors import Conflict, Invalid
from stateward.store.images import Image

Visibility = Literal["public", "community", "shared", "private"]
DiskFormat = Literal[
    "ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso", "ploop", "luks"
]
ContainerFormat = Literal["ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed"]
Tag = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
#: What the database's column holds.
Amount = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]

_PropertyName = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_PropertyValue = Annotated[str, msgspec.Meta(max_length=65_535)]
_Properties = dict[_PropertyName, _PropertyValue]

#: Additional properties of one image at most; Glance's default.
_MOST_PROPERTIES: Final = 128
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
#: Shown, and never set by a client.
_READ_ONLY: Final = frozenset(
    {
        "checksum",
        "created_at",
        "direct_url",
        "file",
        "os_hash_algo",
        "os_hash_value",
        "schema",
        "self",
        "size",
        "status",
        "stores",
        "updated_at",
        "virtual_size",
    }
)
#: Of Glance, and not of this service.
_REFUSED: Final = frozenset({"locations"})


class Attributes(msgspec.Struct):
    """The attributes that clients set."""

    name: Annotated[str, msgspec.Meta(max_length=255)] | UnsetType | None = UNSET
    owner: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | UnsetType | None = UNSET
    visibility: Visibility | UnsetType = UNSET
    disk_format: DiskFormat | UnsetType | None = UNSET
    container_format: ContainerFormat | UnsetType | None = UNSET
    min_disk: Amount | UnsetType = UNSET
    min_ram: Amount | UnsetType = UNSET
    protected: bool | UnsetType = UNSET
    hidden: bool | UnsetType = msgspec.field(name="os_hidden", default=UNSET)
    tags: Annotated[list[Tag], msgspec.Meta(max_length=128)] | UnsetType = UNSET


_SETTABLE: Final = frozenset(field.encode_name for field in msgspec.structs.fields(Attributes))


class New(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks for in a new image."""

    #: None: any.
    id: str | None
    values: dict[str, Any]
    properties: dict[str, str]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of a patch."""

    op: Literal["add", "replace", "remove"]
    path: str
    value: Any = None


def read_new(body: dict[str, Any]) -> New:
    """Read the body of a request for a new image.

    Raises:
        Invalid: something has the wrong type or form.
        ApiFault: something cannot be set (403).
    """
    image_id = body.get("id")
    if image_id is not None and not (isinstance(image_id, str) and _UUID.fullmatch(image_id)):
        raise Invalid("Invalid input: an image's id must be a UUID in lower case.")
    for name in body:
        _refuse_read_only(name)
    settable = {name: value for name, value in body.items() if name in _SETTABLE}
    properties = {name: value for name, value in body.items() if name not in _SETTABLE and name != "id"}
    return New(id=image_id, values=_values(settable), properties=_checked(properties))


def patched(image: Image, changes: list[Change]) -> Image:
    """Return an image with the changes of a patch, in their order; nothing of it is kept if one is wrong.

    Raises:
        Invalid: a change has the wrong type or form.
        ApiFault: it is of something that cannot be set or removed (403).
        Conflict: it replaces or removes a property that is not there.
    """
    settable: dict[str, Any] = {}
    properties = dict(image.properties)
    for change in changes:
        name = _attribute(change.path)
        _refuse_read_only(name)
        if name == "id":
            raise ApiFault(403, "Attribute 'id' is read-only.")
        if name in _SETTABLE:
            if change.op == "remove":
                raise ApiFault(403, f"Attribute '{name}' cannot be removed.")
            settable[name] = change.value
            continue
        if change.op != "add" and name not in properties:
            raise Conflict(f"Property {name} does not exist.")
        if change.op == "remove":
            del properties[name]
        else:
            properties[name] = change.value
    values = _values(settable)
    if image.status != "queued":
        for name in ("disk_format", "container_format"):
            if name in values and values[name] != getattr(image, name):
                raise ApiFault(403, f"Attribute {name} can be only replaced for a queued image.")
    return msgspec.structs.replace(image, **values, properties=_checked(properties))


def view(image: Image) -> dict[str, Any]:
    """Say what a client sees of an image."""
    address = f"/v2/images/{image.id}"
    return {
        **image.properties,
        "id": image.id,
        "name": image.name,
        "status": image.status,
        "visibility": image.visibility,
        "owner": image.owner,
        "size": image.size,
        "virtual_size": None,
        "checksum": image.checksum,
        "os_hash_algo": None if image.hash_value is None else "sha512",
        "os_hash_value": image.hash_value,
        "disk_format": image.disk_format,
        "container_format": image.container_format,
        "min_disk": image.min_disk,
        "min_ram": image.min_ram,
        "protected": image.protected,
        "os_hidden": image.hidden,
        "tags": image.tags,
        "created_at": moment(image.created_at),
        "updated_at": moment(image.updated_at),
        "self": address,
        "file": f"{address}/file",
        "schema": "/v2/schemas/image",
    }


def moment(seconds: float) -> str:
    """Write a time (seconds since the epoch) as Glance does, in whole seconds."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _values(settable: dict[str, Any]) -> dict[str, Any]:
    """Check attributes and name them as the record does."""
    attributes = convert(settable, Attributes)
    values = {
        name: value
        for name in attributes.__struct_fields__
        if (value := getattr(attributes, name)) is not UNSET
    }
    if "tags" in values:
        values["tags"] = tuple(sorted(set(values["tags"])))
    return values


def _checked(properties: dict[str, Any]) -> dict[str, str]:
    checked = convert(properties, _Properties)
    if len(checked) > _MOST_PROPERTIES:
        raise ApiFault(413, f"The limit of {_MOST_PROPERTIES} additional properties of an image is exceeded.")
    return checked


def _refuse_read_only(name: str) -> None:
    if name in _READ_ONLY or name.startswith("os_glance"):
        raise ApiFault(403, f"Attribute '{name}' is read-only.")
    if name in _REFUSED:
        raise ApiFault(403, f"Attribute '{name}' is not supported: images are uploaded.")


def _attribute(path: str) -> str:
    """Return the attribute that a JSON pointer of one step names.

    Raises:
        Invalid: it is none.
    """
    if not path.startswith("/") or "/" in path[1:] or len(path) == 1:
        raise Invalid(f"Invalid JSON pointer {path!r}: it must be '/' and the name of an attribute.")
    return path[1:].replace("~1", "/").replace("~0", "~")
