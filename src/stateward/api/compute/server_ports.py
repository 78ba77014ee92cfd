"""``/servers/{id}/ips`` and ``/servers/{id}/os-interface``: what a server is connected to, to be read only."""

from __future__ import annotations

from typing import Any, Final, NoReturn

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute.call import Call, Endpoint, Handler, reply
from stateward.api.compute.server_networks import addresses
from stateward.api.compute.servers_seen import find
from stateward.api.compute.services import Services
from stateward.domain.actions import Policy, Role
from stateward.domain.errors import Invalid, NotFound
from stateward.domain.networks import Port, subnet_id
from stateward.domain.records import Instance
from stateward.domain.states import Observed

_IPS: Final = "os_compute_api:ips:"
_INTERFACES: Final = "os_compute_api:os-attach-interfaces:"
#: The first minor number in which an interface shows its tag.
_TAG: Final = 70


async def ips(call: Call) -> Response:
    """List a server's addresses by network."""
    instance = await find(call, call.path["id"])
    return reply({"addresses": addresses(instance, whole=False)})


async def ips_of_network(call: Call) -> Response:
    """List a server's addresses on one network."""
    shown = addresses(await find(call, call.path["id"]), whole=False)
    label = call.path["label"]
    if label not in shown:
        raise NotFound("Instance is not a member of specified network")
    return reply({label: shown[label]})


async def interfaces(call: Call) -> Response:
    """List a server's ports."""
    instance = await find(call, call.path["id"])
    return reply({"interfaceAttachments": [_interface(call, instance, port) for port in instance.ports]})


async def interface(call: Call) -> Response:
    """Show a server's port."""
    instance = await find(call, call.path["id"])
    for port in instance.ports:
        if port.id == call.path["port"]:
            return reply({"interfaceAttachment": _interface(call, instance, port)})
    raise NotFound(f"No interface {call.path['port']} is attached to instance {instance.id}.")


async def refuse(call: Call) -> NoReturn:
    """Refuse to attach or detach."""
    await find(call, call.path["id"])
    raise Invalid("A server keeps the ports it was made with: make a new one on the networks you need.")


def _interface(call: Call, instance: Instance, port: Port) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "port_state": "ACTIVE" if instance.observed is Observed.RUNNING else "DOWN",
        "port_id": port.id,
        "net_id": port.network_id,
        "mac_addr": port.mac,
        "fixed_ips": [
            {"subnet_id": subnet_id(port.network_id), "ip_address": each.address}
            for each in instance.addresses
            if each.mac == port.mac
        ],
    }
    if call.minor >= _TAG:
        shown["tag"] = None
    return shown


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the routes."""

    def at(path: str, method: str, handler: Handler, rule: str, role: Role) -> Route:
        endpoint = Endpoint(services, handler, policy=Policy(rule, role), legacy=legacy)
        return Route(f"/servers/{{id}}{path}", endpoint, methods=[method])

    return [
        at("/ips", "GET", ips, f"{_IPS}index", Role.READER),
        at("/ips/{label}", "GET", ips_of_network, f"{_IPS}show", Role.READER),
        at("/os-interface", "GET", interfaces, f"{_INTERFACES}list", Role.READER),
        at("/os-interface", "POST", refuse, f"{_INTERFACES}create", Role.MEMBER),
        at("/os-interface/{port}", "GET", interface, f"{_INTERFACES}show", Role.READER),
        at("/os-interface/{port}", "DELETE", refuse, f"{_INTERFACES}delete", Role.MEMBER),
    ]
