"""``POST /servers``: what a request may ask for, by microversion, and what is not there yet."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from typing import Annotated, Any, Final, Literal

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from stateward.api.compute.call import Call, convert, reply
from stateward.api.compute.networks import NO_NETWORK
from stateward.api.compute.views import links
from stateward.domain.actions import Policy, Role
from stateward.domain.errors import Invalid
from stateward.domain.records import FlavorFacts, ImageFacts
from stateward.operations.creation import NewInstance, create
from stateward.store import flavors, images, keypairs

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Text = Annotated[str, msgspec.Meta(max_length=255)]
Tag = Annotated[str, msgspec.Meta(min_length=1, max_length=60, pattern="^[^,/]*$")]
Metadata = dict[Annotated[str, msgspec.Meta(min_length=1, max_length=255)], Text]
Count = Annotated[int, msgspec.Meta(ge=1, le=1000)]

#: Bytes of user data, encoded, at most: Nova's limit.
_USER_DATA: Final = 65535
_HOSTNAME: Final = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$")
_FORCED_HOST: Final = Policy("os_compute_api:servers:create:forced_host", Role.ADMIN)
_NETWORKS_REQUIRED, _HOSTNAME_SINCE, _DESCRIPTION, _TAGS, _HOST = 37, 90, 19, 52, 74


class ServerBody(msgspec.Struct, frozen=True, kw_only=True):
    """The members of ``server`` that are understood; what is passed over is listed in docs/compatibility.md."""

    name: Name
    flavorRef: str | int  # noqa: N815 (Nova's name)
    imageRef: str | None = None  # noqa: N815 (Nova's name)
    networks: list[dict[str, Any]] | Literal["none", "auto"] | None = None
    metadata: Metadata = {}
    key_name: Name | None = None
    user_data: str | None = None
    availability_zone: Name | None = None
    min_count: Count | str | None = None
    max_count: Count | str | None = None
    adminPass: str | None = None  # noqa: N815 (Nova's name)
    description: Text | None = None
    tags: Annotated[list[Tag], msgspec.Meta(max_length=50)] = []
    hostname: str | None = None
    host: str | None = None
    hypervisor_hostname: str | None = None
    block_device_mapping: list[Any] = []
    block_device_mapping_v2: list[dict[str, Any]] = []
    return_reservation_id: bool | str = False


async def create_server(call: Call) -> Response:
    """Admit one or several new servers (202)."""
    body = await call.json()
    if "server" not in body:
        raise Invalid("'server' is a required property")
    wanted = _checked(call, body["server"])
    low, high = _counts(wanted)
    new = await _new_instance(call, wanted)
    reservation = f"r-{secrets.token_hex(4)}"
    first = None
    for number in range(1, high + 1):
        each = new if high == 1 else _numbered(new, number)
        admitted = await create(
            call.services.admission,
            each,
            call.actor,
            patience=call.services.host_patience,
            reservation_id=reservation,
        )
        first = first or admitted.instance
    if first is None:
        msg = f"between {low} and {high} servers were asked for and none was made"
        raise RuntimeError(msg)
    if wanted.return_reservation_id in {True, "true", "True"}:
        return reply({"reservation_id": reservation}, 202)
    server = {
        "id": first.id,
        "links": links(call, "servers", first.id),
        "OS-DCF:diskConfig": "MANUAL",
        "security_groups": [{"name": "default"}],
        "adminPass": wanted.adminPass or secrets.token_urlsafe(9),
    }
    return reply({"server": server}, 202, {"location": f"{call.root}/servers/{first.id}"})


def _check_members(call: Call, raw: object) -> None:
    """Refuse what lacks a member that the microversion requires, or has one that came later."""
    required = ["name", "flavorRef", *(["networks"] if call.minor >= _NETWORKS_REQUIRED else [])]
    if isinstance(raw, dict):
        for name in required:
            if name not in raw:
                raise Invalid(
                    f"Invalid input for field/attribute server. Value: {raw}. '{name}' is a required property"
                )
        since = {
            "description": _DESCRIPTION,
            "tags": _TAGS,
            "hostname": _HOSTNAME_SINCE,
            "host": _HOST,
            "hypervisor_hostname": _HOST,
        }
        early = [name for name, minor in since.items() if name in raw and call.minor < minor]
        if early:
            raise Invalid(
                f"Invalid input for field/attribute server. Value: {raw}. Additional properties are not allowed "
                f"('{early[0]}' was unexpected)"
            )


def _checked(call: Call, raw: object) -> ServerBody:
    _check_members(call, raw)
    wanted: ServerBody = convert(raw, ServerBody, "server")
    _check_disks(wanted)
    _check_networks(wanted)
    if wanted.hostname is not None and not _HOSTNAME.match(wanted.hostname):
        raise Invalid(
            f"Invalid input for field/attribute hostname. Value: {wanted.hostname}. "
            f"'{wanted.hostname}' is not a host name"
        )
    if wanted.user_data is not None:
        _check_user_data(wanted.user_data)
    return wanted


def _check_disks(wanted: ServerBody) -> None:
    """Refuse volumes; the ``openstack`` client also describes the image's own disk, which is what is made anyway."""
    own = all(
        disk.get("source_type") == "image"
        and disk.get("destination_type") == "local"
        and disk.get("boot_index") in {0, "0"}
        and disk.get("uuid") == wanted.imageRef
        for disk in wanted.block_device_mapping_v2
    )
    if wanted.block_device_mapping or not own:
        raise Invalid("Volumes are not supported: boot from an image by imageRef.")
    if not wanted.imageRef:
        raise Invalid("Invalid imageRef provided: name the image to boot from.")


def _check_networks(wanted: ServerBody) -> None:
    for network in wanted.networks if isinstance(wanted.networks, list) else []:
        identifier = network.get("uuid") or network.get("port")
        if identifier != NO_NETWORK:
            raise Invalid(f'Network {identifier} could not be found. Ask for none: "networks": "none".')


def _check_user_data(text: str) -> None:
    if len(text) > _USER_DATA:
        raise Invalid(
            f"User data too large. User data must be no larger than {_USER_DATA} bytes once base64 encoded."
        )
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Invalid("Userdata content needs to be valid base 64.") from None


def _counts(wanted: ServerBody) -> tuple[int, int]:
    numbers: dict[str, int] = {}
    for name, value in (("min_count", wanted.min_count), ("max_count", wanted.max_count)):
        if isinstance(value, str):
            if not value.isdecimal() or not int(value):
                raise Invalid(
                    f"Invalid input for field/attribute {name}. Value: {value}. '{value}' is not a count"
                )
            numbers[name] = int(value)
        elif value is not None:
            numbers[name] = value
    low = numbers.get("min_count", 1)
    high = numbers.get("max_count", low)
    if low > high:
        raise Invalid("min_count must be <= max_count")
    return low, high


async def _new_instance(call: Call, wanted: ServerBody) -> NewInstance:
    flavor, image = await call.services.database.read(lambda connection: _look_up(connection, call, wanted))
    zone, host = wanted.availability_zone, wanted.host or wanted.hypervisor_hostname
    if zone is not None and zone.count(":"):
        zone, host = zone.split(":")[:2]
    if host is not None:
        call.allow(_FORCED_HOST)
    return NewInstance(
        project_id=call.project_id,
        user_id=call.token.user_id,
        name=wanted.name.strip(),
        hostname=wanted.hostname or _host_name(wanted.name),
        description=wanted.description if call.minor >= _DESCRIPTION else wanted.name,
        flavor=flavor,
        image=image,
        key_name=wanted.key_name,
        user_data=wanted.user_data,
        metadata=wanted.metadata,
        tags=tuple(sorted(set(wanted.tags))),
        zone=zone,
        host=host,
    )


def _look_up(connection: sa.Connection, call: Call, wanted: ServerBody) -> tuple[FlavorFacts, ImageFacts]:
    flavor = flavors.get(connection, str(wanted.flavorRef))
    if flavor is None:
        raise Invalid(f"Flavor {wanted.flavorRef} could not be found.")
    image = images.get_visible(connection, wanted.imageRef or "", call.project_id, call.token.is_admin)
    if image is None:
        raise Invalid("Can not find requested image")
    if image.status != "active":
        raise Invalid(f"Image {image.id} is not active.")
    if wanted.key_name is not None and keypairs.get(connection, call.token.user_id, wanted.key_name) is None:
        raise Invalid("Invalid key_name provided.")
    if flavor.ram < image.min_ram:
        raise Invalid("Flavor's memory is too small for requested image.")
    if flavor.disk and flavor.disk < image.min_disk:
        raise Invalid("Flavor's disk is too small for requested image.")
    facts = ImageFacts(id=image.id, disk_format=image.disk_format or "raw", properties=image.properties)
    return flavor, facts


def _host_name(name: str) -> str:
    """Make a host name of a display name, as Nova does; ``server`` when nothing of it is left."""
    text = re.sub(r"[ _]", "-", name.strip().lower())
    text = re.sub(r"[^a-z0-9.-]", "", text).strip(".-")[:63]
    return text or "server"


def _numbered(new: NewInstance, number: int) -> NewInstance:
    return msgspec.structs.replace(new, name=f"{new.name}-{number}", hostname=f"{new.hostname}-{number}")
