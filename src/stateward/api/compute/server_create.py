"""``POST /servers``: what a request may ask for, by microversion, and what is not there yet."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
import unicodedata
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from stateward.api.compute.call import OPERATION_HEADER, Call, convert, reply
from stateward.api.compute.hints import LOCK, Hints, hints_of
from stateward.api.compute.server_networks import check_security_groups, choose
from stateward.api.compute.views import links
from stateward.api.locking import wish_of
from stateward.api.wording import short
from stateward.domain.actions import BY_KEY, Policy, Role
from stateward.domain.bodies import LockWanted
from stateward.domain.errors import Invalid
from stateward.domain.records import FlavorFacts, ImageFacts
from stateward.domain.seeds import SeedFacts
from stateward.operations.admission import Admitted
from stateward.operations.creation import NewInstance, create_several
from stateward.operations.placing import Place
from stateward.operations.preparing import check_fits
from stateward.operations.stacking import LockWish
from stateward.store import flavors, hosts, images, keypairs, server_groups
from stateward.store.images import Image

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Text = Annotated[str, msgspec.Meta(max_length=255)]
Tag = Annotated[str, msgspec.Meta(min_length=1, max_length=60, pattern="^[^,/]*$")]
Metadata = dict[Annotated[str, msgspec.Meta(min_length=1, max_length=255)], Text]
#: A number, or one in a string, as Nova takes it.
Count = Annotated[int, msgspec.Meta(ge=1)] | Annotated[str, msgspec.Meta(pattern="^[1-9][0-9]{0,8}$")]
#: Nova's words for yes and no.
_YES = Literal["True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes"]
_NO = Literal["False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no"]
YesOrNo = bool | _YES | _NO
Address = Annotated[str, msgspec.Meta(max_length=64)] | None

#: Bytes of user data, encoded, at most: Nova's limit.
_USER_DATA: Final = 65535
_LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_FORCED_HOST: Final = Policy("os_compute_api:servers:create:forced_host", Role.ADMIN)
_NETWORKS_REQUIRED, _HOSTNAME_SINCE, _DESCRIPTION, _TAGS, _HOST = 37, 90, 19, 52, 74
_CERTIFICATES, _NO_PERSONALITY, _DOMAIN = 63, 57, 94
#: Servers that one request may ask for.
_MOST_AT_ONCE: Final = 1000
_LONGEST_HOSTNAME: Final = 255


class ServerBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The members of ``server`` that are understood; what is passed over is listed in docs/compatibility.md."""

    name: Name
    flavorRef: str | int  # noqa: N815 (Nova's name)
    imageRef: str | None = None  # noqa: N815 (Nova's name)
    networks: list[dict[str, Any]] | Literal["none", "auto"] | None = None
    metadata: Metadata = {}
    key_name: Name | None = None
    user_data: str | None = None
    availability_zone: Name | None = None
    min_count: Count | None = None
    max_count: Count | None = None
    adminPass: str | None = None  # noqa: N815 (Nova's name)
    description: Text | None = None
    tags: Annotated[list[Tag], msgspec.Meta(max_length=50)] = []
    hostname: str | None = None
    #: Placed as the server is made, so that there is no moment without it.
    lock: LockWanted | None = msgspec.field(name=LOCK, default=None)
    host: str | None = None
    hypervisor_hostname: str | None = None
    block_device_mapping: list[Any] = []
    block_device_mapping_v2: list[dict[str, Any]] = []
    return_reservation_id: YesOrNo = False
    # What follows is passed over, or asks for what is the case anyway.
    diskConfig: Literal["AUTO", "MANUAL"] | None = msgspec.field(name="OS-DCF:diskConfig", default=None)  # noqa: N815
    accessIPv4: Address = None  # noqa: N815 (Nova's name)
    accessIPv6: Address = None  # noqa: N815 (Nova's name)
    config_drive: YesOrNo | Literal[""] | None = None
    security_groups: list[dict[str, Any]] = []
    personality: list[Any] = []
    trusted_image_certificates: list[Any] | None = None


async def create_server(call: Call) -> Response:
    """Admit one or several new servers (202)."""
    body = await call.json()
    if "server" not in body:
        raise Invalid("'server' is a required property")
    wanted = _checked(call, body["server"])
    low, high = _counts(wanted)
    new = await _new_instance(call, wanted, hints_of(body))
    reservation = f"r-{secrets.token_hex(4)}"
    password = wanted.adminPass or secrets.token_urlsafe(9)

    def answer(made: list[Admitted]) -> Response:
        if wanted.return_reservation_id in {True, *get_args(_YES)}:
            return reply({"reservation_id": reservation}, 202)
        first = made[0].instance
        server = {
            "id": first.id,
            "links": links(call, "servers", first.id),
            "OS-DCF:diskConfig": "MANUAL",
            "security_groups": [{"name": "default"}],
            "adminPass": password,
        }
        headers = {"location": f"{call.root}/servers/{first.id}", OPERATION_HEADER: made[0].operation.id}
        return reply({"server": server}, 202, headers)

    return answer(
        await create_several(
            call.admission(answer), new, call.actor, least=low, most=high, reservation_id=reservation
        )
    )


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
            "trusted_image_certificates": _CERTIFICATES,
        }
        early = [name for name, minor in since.items() if name in raw and call.minor < minor]
        if "personality" in raw and call.minor >= _NO_PERSONALITY:
            early.append("personality")
        if early:
            raise Invalid(
                f"Invalid input for field/attribute server. Value: {raw}. Additional properties are not allowed "
                f"('{early[0]}' was unexpected)"
            )


def _checked(call: Call, raw: object) -> ServerBody:
    _check_members(call, raw)
    wanted: ServerBody = convert(raw, ServerBody, "server")
    _check_disks(wanted)
    check_security_groups(wanted.security_groups)
    if wanted.hostname is not None:
        check_hostname(call, wanted.hostname)
    if wanted.user_data is not None:
        check_user_data(wanted.user_data)
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


def check_user_data(text: str) -> None:
    """Refuse user data that are too large, or not in base 64.

    Raises:
        Invalid: they are.
    """
    if len(text) > _USER_DATA:
        raise Invalid(
            f"User data too large. User data must be no larger than {_USER_DATA} bytes once base64 encoded."
        )
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Invalid("Userdata content needs to be valid base 64.") from None


def _counts(wanted: ServerBody) -> tuple[int, int]:
    low = int(wanted.min_count or 1)
    high = int(wanted.max_count or low)
    if low > high:
        raise Invalid("min_count must be <= max_count")
    if high > _MOST_AT_ONCE:
        raise Invalid(f"At most {_MOST_AT_ONCE} servers are created at once.")
    return low, high


async def _new_instance(call: Call, wanted: ServerBody, hints: Hints) -> NewInstance:
    zone, host = wanted.availability_zone, wanted.host or wanted.hypervisor_hostname
    if zone is not None and zone.count(":"):
        zone, host = zone.split(":")[:2]
    if host is not None:
        call.allow(_FORCED_HOST)
    name = display_name(call, wanted.name)

    def look(connection: sa.Connection) -> tuple[FlavorFacts, ImageFacts, str | None]:
        _check_place(connection, zone, host)
        _check_group(connection, call, hints.group)
        return _look_up(connection, call, wanted)

    flavor, image, public_key = await call.services.database.read(look)
    return NewInstance(
        project_id=call.project_id,
        user_id=call.token.user_id,
        name=name,
        hostname=wanted.hostname or host_name(name),
        description=wanted.description if call.minor >= _DESCRIPTION else name,
        flavor=flavor,
        image=image,
        networks=choose(call, wanted.networks),
        seed=SeedFacts(
            public_key=public_key,
            password=await call.services.identity.passwords.hash_for_guest(wanted.adminPass)
            if wanted.adminPass
            else None,
            config_drive=wanted.config_drive in {True, *get_args(_YES)},
        ),
        key_name=wanted.key_name,
        user_data=wanted.user_data,
        metadata=wanted.metadata,
        tags=tuple(sorted(set(wanted.tags))),
        place=Place(
            zone=zone or None,
            host=host or None,
            group_id=hints.group,
            with_any=hints.same_host,
            with_none=hints.different_host,
        ),
        lock=_lock(call, wanted, hints),
        hints=hints.given,
    )


def _lock(call: Call, wanted: ServerBody, hints: Hints) -> LockWish | None:
    """Return the lock that the servers have from their first moment."""
    asked = wanted.lock or (LockWanted(blocks=hints.lock) if hints.lock else None)
    if asked is None:
        return None
    call.allow(BY_KEY["lock"].policy)
    return wish_of(asked, call.actor, call.project_id)


def check_hostname(call: Call, text: str) -> None:
    """Refuse what is no host name; from 2.94 it may have its domain after it.

    Raises:
        Invalid: it is none.
    """
    labels = text.split(".") if call.minor >= _DOMAIN else [text]
    if len(text) > _LONGEST_HOSTNAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise Invalid(
            f"Invalid input for field/attribute hostname. Value: {short(text)}. "
            f"'{short(text)}' is not a host name"
        )


def display_name(call: Call, name: str) -> str:
    """Return a server's name; only ``/v2`` takes one with spaces around it, and cuts them off.

    Raises:
        Invalid: it has spaces around it, or characters that cannot be seen.
    """
    cut = name.strip()
    kinds = {unicodedata.category(character) for character in cut}
    hidden = any(kind[0] == "C" or kind in {"Zl", "Zp"} for kind in kinds)
    if not cut or hidden or (cut != name and not call.legacy):
        raise Invalid(
            "An invalid 'name' value was provided. The name must be: printable characters. "
            "Can not start or end with whitespace."
        )
    return cut


def _check_place(connection: sa.Connection, zone: str | None, host: str | None) -> None:
    """Refuse a zone or host that is not there, which no waiting would help; one that is down is another matter."""
    if zone is None and host is None:
        return
    known = hosts.every(connection)
    if host is not None and host not in {each.name for each in known}:
        raise Invalid(f"Compute host {host} could not be found.")
    if zone and zone not in {each.zone for each in known}:
        raise Invalid("The requested availability zone is not available")


def _check_group(connection: sa.Connection, call: Call, group_id: str | None) -> None:
    """Refuse a server group that is not there, or is another project's (Nova 34 would take that one)."""
    if group_id is not None and server_groups.get(connection, group_id, call.visible_project) is None:
        raise Invalid(f"Instance group {group_id} could not be found.")


def _look_up(
    connection: sa.Connection, call: Call, wanted: ServerBody
) -> tuple[FlavorFacts, ImageFacts, str | None]:
    flavor = find_flavor(connection, call, str(wanted.flavorRef))
    image = find_image(connection, call, wanted.imageRef or "")
    public_key = None if wanted.key_name is None else find_key(connection, call, wanted.key_name)
    check_fits(flavor, image)
    return flavor, image.facts, public_key


def find_flavor(connection: sa.Connection, call: Call, reference: str) -> FlavorFacts:
    """Return a flavor that the caller may use.

    Raises:
        Invalid: there is none.
    """
    flavor = flavors.get(connection, reference, project_id=None if call.token.is_admin else call.project_id)
    if flavor is None:
        raise Invalid(f"Flavor {reference} could not be found.")
    return flavor


def find_image(connection: sa.Connection, call: Call, reference: str) -> Image:
    """Return an image that the caller may use and that has its data, as has what it is booted by.

    Raises:
        Invalid: there is none; or it names a kernel or RAM disk that the caller may not use, and would see by it.
    """
    image = images.get_visible(connection, reference, call.project_id, call.token.is_admin)
    if image is None:
        raise Invalid("Can not find requested image")
    if image.status != "active":
        raise Invalid(f"Image {image.id} is not active.")
    for other in (image.facts.kernel, image.facts.ramdisk):
        if other is not None:
            boots = images.get_visible(connection, other, call.project_id, call.token.is_admin)
            if boots is None or boots.status != "active":
                raise Invalid(f"Image {short(other)} could not be found.")
    return image


def find_key(connection: sa.Connection, call: Call, name: str) -> str | None:
    """Return the text of a key of the caller's, as it is now; None for one that is not for ssh.

    Raises:
        Invalid: there is none of the name.
    """
    pair = keypairs.get(connection, call.token.user_id, name)
    if pair is None:
        raise Invalid("Invalid key_name provided.")
    return pair.public_key.strip() if pair.type == "ssh" else None


def host_name(name: str) -> str:
    """Make a host name of a display name, as Nova does; ``server`` when nothing of it is left."""
    text = re.sub(r"[ _]", "-", name.strip().lower())
    text = re.sub(r"[^a-z0-9.-]", "", text).strip(".-")[:63]
    return text or "server"
