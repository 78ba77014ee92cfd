"""What the bodies of lifecycle actions want, worked out for admission; and how their answers look.

Everything here is looked up before the action is admitted and changes nothing; whether the action fits the
instance is the table's business alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from stateward.api.compute import moving
from stateward.api.compute.call import OPERATION_HEADER, Call, empty, reply
from stateward.api.compute.server_create import (
    check_hostname,
    check_user_data,
    display_name,
    find_flavor,
    find_image,
    find_key,
)
from stateward.api.compute.servers_seen import find
from stateward.api.compute.views import detail, host_status
from stateward.api.locking import wish_of
from stateward.domain import bodies
from stateward.domain.actions import BY_KEY, Action, Policy, Role
from stateward.domain.errors import Invalid, Refusal, Refused
from stateward.domain.records import Target
from stateward.operations.admission import Admitted
from stateward.operations.preparing import NOTHING, ImageWanted, Wanted
from stateward.store import hosts
from stateward.store.images import Image

_IMAGE_ID_IN_BODY, _USER_DATA_IN_BODY = 45, 57
#: From here on the answer to ``evacuate`` has no password.
_NO_PASSWORD = 14
_MIGRATE_TO_HOST: Final = Policy("os_compute_api:os-migrate-server:migrate:host", Role.ADMIN)
_TO_HOST: Final = Policy("os_compute_api:os-shelve:unshelve_to_host", Role.ADMIN)


async def wanted_of(call: Call, name: str, options: Any) -> Wanted:
    """Return what the body of an action wants besides the action.

    Args:
        call: the request.
        name: the action's.
        options: its decoded body.

    Raises:
        Invalid: the body names something that is not there, or that does not go together.
        Forbidden: it asks for what the caller may not.
    """
    look = _LOOKS.get(name)
    return NOTHING if look is None else await look(call, options)


async def _rescue(call: Call, options: bodies.Rescue | None) -> Wanted:
    if options is None or options.rescue_image_ref is None:
        return NOTHING
    reference = options.rescue_image_ref
    image = await call.services.database.read(lambda connection: find_image(connection, call, reference))
    return Wanted(target=Target(rescue=image.facts))


async def _resize(call: Call, options: bodies.Resize) -> Wanted:
    flavor = await call.services.database.read(
        lambda connection: find_flavor(connection, call, str(options.flavorRef))
    )
    return Wanted(target=Target(flavor=flavor))


async def _rebuild(call: Call, options: Any) -> Wanted:
    changes = _changes_of_rebuild(call, options)
    seed: dict[str, Any] = {}
    if options.adminPass is not None:
        seed["password"] = await call.services.identity.passwords.hash_for_guest(options.adminPass)

    def look(connection: sa.Connection) -> Image:
        if "key_name" in changes:
            name = changes["key_name"]
            seed["public_key"] = None if name is None else find_key(connection, call, name)
        return find_image(connection, call, options.imageRef)

    image = await call.services.database.read(look)
    return Wanted(target=Target(image=image.facts), changes=changes, seed=seed, must_fit=image)


def _changes_of_rebuild(call: Call, options: Any) -> dict[str, Any]:
    """Return the columns that a rebuild changes besides the image."""
    if getattr(options, "personality", None):
        raise Invalid("Files cannot be put into a guest: give the server user data instead.")
    changes: dict[str, Any] = {}
    if options.name is not None:
        changes["name"] = display_name(call, options.name)
    if options.metadata is not None:
        changes["metadata"] = options.metadata
    hostname = getattr(options, "hostname", None)
    if hostname is not None:
        check_hostname(call, hostname)
        changes["hostname"] = hostname
    for member in ("description", "key_name", "user_data"):
        value = getattr(options, member, msgspec.UNSET)
        if value is not msgspec.UNSET:
            changes[member] = value
    if changes.get("user_data") is not None:
        check_user_data(changes["user_data"])
    return changes


async def _create_image(call: Call, options: bodies.CreateImage) -> Wanted:
    del call
    return Wanted(image=ImageWanted(name=options.name, properties=options.metadata))


async def _create_backup(call: Call, options: bodies.CreateBackup) -> Wanted:
    del call
    kind = {"image_type": "backup", "backup_type": options.backup_type}
    return Wanted(
        target=Target(backup_type=options.backup_type, rotation=int(options.rotation)),
        image=ImageWanted(name=options.name, properties={**options.metadata, **kind}),
    )


async def _unshelve(call: Call, options: Any) -> Wanted:
    if not isinstance(options, bodies.Unshelve77 | bodies.Unshelve91):
        return NOTHING
    host = getattr(options, "host", msgspec.UNSET)
    zone = options.availability_zone
    if host is not msgspec.UNSET:
        call.allow(_TO_HOST)
    known = await call.services.database.read(hosts.every)
    if host is not msgspec.UNSET and host not in {each.name for each in known}:
        raise Invalid(f"Compute host {host} could not be found.")
    if isinstance(zone, str) and zone not in {each.zone for each in known}:
        raise Invalid("The requested availability zone is not available")
    return Wanted(zone=zone if isinstance(zone, str) else None, host=None if host is msgspec.UNSET else host)


async def _migrate(call: Call, options: Any) -> Wanted:
    host = options.host if isinstance(options, bodies.Migrate56) else None
    if host is None:
        return NOTHING
    call.allow(_MIGRATE_TO_HOST)
    known = await call.services.database.read(hosts.every)
    if host not in {each.name for each in known}:
        raise Invalid(f"Compute host {host} could not be found.")
    return Wanted(host=host)


async def admit(
    call: Call,
    rows: tuple[Action, ...],
    instance_id: str,
    *,
    wanted: Wanted,
    options: Any,
    answer: Callable[[Admitted], Response],
) -> Admitted:
    """Admit an action; a resize that its own host has no room for goes to another host.

    Args:
        call: the request.
        rows: the action's, that the body picked.
        instance_id: which instance.
        wanted: what the body wants, from ``wanted_of``.
        options: the body, decoded.
        answer: makes the request's answer.

    Raises:
        Refused: it is not admitted.
    """

    async def one_of(rows: tuple[Action, ...]) -> Admitted:
        return await call.admission(answer).admit(
            rows, instance_id, call.actor, body=options, wanted=wanted, project_id=call.visible_project
        )

    if rows[0].evacuates is not None:
        rows = moving.evacuating(call, rows)
    try:
        return await one_of(rows)
    except Refused as refused:
        if refused.refusal is Refusal.DISK_IS_THERE:
            anew = await moving.made_anew(call, rows, options)
            if not anew:
                raise
            return await one_of(anew)
        if refused.refusal is Refusal.NO_VALID_HOST and rows[0].name == "migrate":
            # Nova's status for it.
            raise Invalid(str(refused)) from None
        if refused.refusal is not Refusal.NO_VALID_HOST or rows[0].name != "resize":
            raise
    return await one_of((BY_KEY["resize_away"], BY_KEY["resize_away_stopped"]))


async def _with_lock(call: Call, options: bodies.ShutdownOptions | bodies.SuspendOptions | None) -> Wanted:
    """Read the lock that is to be placed with a stop or a suspend (R7)."""
    if options is None or options.lock is None:
        return NOTHING
    call.allow(BY_KEY["lock"].policy)
    instance = await find(call, call.path["id"])
    return Wanted(lock=wish_of(options.lock, call.actor, instance.project_id))


_LOOKS: Final[dict[str, Callable[[Call, Any], Awaitable[Wanted]]]] = {
    "stop": _with_lock,
    "suspend": _with_lock,
    "rescue": _rescue,
    "resize": _resize,
    "rebuild": _rebuild,
    "createImage": _create_image,
    "createBackup": _create_backup,
    "unshelve": _unshelve,
    "migrate": _migrate,
    "evacuate": moving.evacuate,
}


async def answer_of(call: Call, action: Action, options: Any) -> Callable[[Admitted], Response]:
    """Return how an admitted operation is answered, as Nova 34 does: mostly with 202 and nothing."""
    password = getattr(options, "adminPass", None) or secrets.token_urlsafe(9)
    status = await host_status(call) if action.name == "rebuild" else {}

    def answer(admitted: Admitted) -> Response:
        headers = {OPERATION_HEADER: admitted.operation.id}
        match action.name:
            case "rescue":
                return reply({"adminPass": password}, 200, headers)
            case "rebuild":
                server = detail(call, admitted.instance, status, single=True) | {"adminPass": password}
                if call.minor >= _USER_DATA_IN_BODY:
                    server["user_data"] = admitted.instance.user_data
                location = f"{call.root}/servers/{admitted.instance.id}"
                return reply({"server": server}, 202, headers | {"location": location})
            case "evacuate" if call.minor < _NO_PASSWORD:
                return reply({"adminPass": password}, 200, headers)
            case "evacuate":
                return empty(200, headers)
            case "createImage" | "createBackup":
                return _with_image(call, admitted.operation.params["target"]["snapshot"], headers)
            case _:
                return empty(204 if action.name == "confirmResize" else 202, headers)

    return answer


def _with_image(call: Call, image_id: str, headers: dict[str, str]) -> Response:
    if call.minor >= _IMAGE_ID_IN_BODY:
        return reply({"image_id": image_id}, 202, headers)
    base = call.root.rsplit("/compute/", 1)[0]
    return empty(202, headers | {"location": f"{base}/image/v2/images/{image_id}"})
