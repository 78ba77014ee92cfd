"""Addresses of interactive consoles: ``POST /servers/{id}/remote-consoles``, and the actions that it replaced in 2.6.

There are serial ones; every other kind is refused as Nova refuses what is not switched on.
"""

from __future__ import annotations

from typing import Any, Final, Literal
from urllib.parse import urlencode

import msgspec
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute.call import Call, Endpoint, reply
from stateward.api.compute.servers_seen import find
from stateward.api.compute.services import Services
from stateward.api.console import PATH
from stateward.domain import admit
from stateward.domain.actions import BY_KEY
from stateward.domain.bodies import SerialConsole, SpiceConsole, VncConsole
from stateward.domain.errors import Invalid, Refusal, Refused

_ROW: Final = BY_KEY["get_serial_console"]
_SINCE, _MKS, _SPICE_DIRECT = 6, 8, 99


class RemoteConsole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A kind of console, from 2.6."""

    protocol: Literal["vnc", "spice", "rdp", "serial"]
    type: Literal["novnc", "xvpvnc", "spice-html5", "rdp-html5", "serial"]


class RemoteConsoleMks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same, from 2.8."""

    protocol: Literal["vnc", "spice", "rdp", "serial", "mks"]
    type: Literal["novnc", "xvpvnc", "spice-html5", "rdp-html5", "serial", "webmks"]


class RemoteConsoleDirect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same, from 2.99."""

    protocol: Literal["vnc", "spice", "rdp", "serial", "mks"]
    type: Literal["novnc", "xvpvnc", "spice-html5", "spice-direct", "rdp-html5", "serial", "webmks"]


async def create(call: Call) -> Response:
    """Give a new address."""
    kind: Any = RemoteConsole
    if call.minor >= _SPICE_DIRECT:
        kind = RemoteConsoleDirect
    elif call.minor >= _MKS:
        kind = RemoteConsoleMks
    wanted = await call.member("remote_console", kind)
    is_serial = wanted.protocol == wanted.type == "serial"
    url = await _url(call, call.path["id"], wanted.type, is_serial=is_serial)
    return reply({"remote_console": {"protocol": wanted.protocol, "type": wanted.type, "url": url}})


async def serial(call: Call, instance_id: str, options: SerialConsole) -> Response:
    """Give a new address, as before 2.6."""
    url = await _url(call, instance_id, options.type, is_serial=True)
    return reply({"console": {"type": options.type, "url": url}})


async def unavailable(call: Call, instance_id: str, options: VncConsole | SpiceConsole) -> Response:
    """Refuse a kind that no guest has."""
    await _url(call, instance_id, options.type, is_serial=False)
    raise AssertionError(options.type)


async def _url(call: Call, instance_id: str, kind: str, *, is_serial: bool) -> str:
    """Return an address by which whoever has it can use the console, for a while.

    Raises:
        Refused: there is no such instance, or it is on no host, or being deleted.
        Invalid: there are no consoles of this kind.
    """
    instance = await find(call, instance_id)
    refused = admit.explain(admit.conditions(_ROW, call.actor.kind), _ROW, instance)
    if refused is not None:
        raise refused
    if not instance.host:
        raise Refused(Refusal.NO_HOST, instance_id=instance.id)
    access = call.services.consoles
    if not is_serial or access is None:
        raise Invalid(f"Unavailable console type {kind}.")
    base = call.root.rsplit("/compute/", 1)[0]
    scheme, rest = base.split("://", 1)
    token = access.tokens.issue(instance.id)
    return f"{'wss' if scheme == 'https' else 'ws'}://{rest}{PATH}?{urlencode({'token': token})}"


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the one route."""
    return [
        Route(
            "/servers/{id}/remote-consoles",
            Endpoint(services, create, policy=_ROW.policy, since=_SINCE, legacy=legacy),
            methods=["POST"],
        )
    ]
