"""Which networks a new server is put on, as its request says, and what of a server's ports is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from stateward.api.compute.call import Call
from stateward.api.wording import short
from stateward.domain.errors import Conflict, Invalid
from stateward.domain.networks import MOST_PORTS, NO_NETWORK, Network
from stateward.domain.records import Instance
from stateward.domain.states import VmState

#: The first minor number in which a request must say which networks it wants.
_REQUIRED: Final = 37
_KNOWN: Final = frozenset({"uuid", "port", "fixed_ip", "tag"})

Wanted = list[dict[str, Any]] | Literal["none", "auto"] | None


def check_security_groups(groups: Sequence[dict[str, Any]]) -> None:
    """Refuse every group but the one that each project of Nova's has, which lets everything through here.

    Raises:
        Invalid: it is another.
    """
    for group in groups:
        if group.get("name") != "default":
            raise Invalid(
                f"Security group {short(str(group.get('name')))} could not be found: there are no security "
                "groups but 'default', which filters nothing. Filter inside the guest, or on its network."
            )


def choose(call: Call, wanted: Wanted) -> tuple[Network, ...]:
    """Return the networks that a request asks for, in its order.

    Raises:
        Invalid: one of them is not there, or it asks for more than a network.
        Conflict: ``auto`` could mean several of them (Nova's rule and words).
    """
    known = call.services.networks
    if wanted == "none":
        return ()
    if wanted == "auto" or (wanted is None and call.minor < _REQUIRED) or wanted == []:
        if len(known) > 1:
            raise Conflict("Multiple possible networks found, use a Network ID to be more specific.")
        return known
    by_id = {network.id: network for network in known}
    found: list[Network] = []
    for each in wanted or ():
        identifier = _identifier(each)
        if identifier == NO_NETWORK:
            continue
        if identifier not in by_id:
            raise Invalid(f"Network {short(identifier)} could not be found.")
        found.append(by_id[identifier])
    if len(found) > MOST_PORTS:
        raise Invalid(f"A server has at most {MOST_PORTS} ports.")
    return tuple(found)


def _identifier(wanted: dict[str, Any]) -> str:
    strange = sorted(set(wanted) - _KNOWN)
    if strange:
        raise Invalid(
            f"Invalid input for field/attribute networks. Value: {short(str(wanted))}. Additional properties "
            f"are not allowed ('{short(strange[0])}' was unexpected)"
        )
    if wanted.get("port") is not None and wanted.get("port") != NO_NETWORK:
        raise Invalid(
            "Ports are made with their servers and cannot be named beforehand: ask for a network by its uuid."
        )
    if wanted.get("fixed_ip") is not None:
        raise Invalid(
            "An address cannot be asked for: the network gives them out, and the server shows which it has."
        )
    if wanted.get("tag") is not None:
        raise Invalid("Tagged ports are not supported: leave out the tag.")
    identifier = wanted.get("uuid") or wanted.get("port")
    if not isinstance(identifier, str):
        raise Invalid(
            f"Invalid input for field/attribute networks. Value: {short(str(wanted))}. 'uuid' is required"
        )
    return identifier


def addresses(instance: Instance, *, whole: bool) -> dict[str, list[dict[str, Any]]]:
    """Show what a server is reached by, by the names of its networks; ``whole`` as a server's own view does."""
    shown: dict[str, list[dict[str, Any]]] = {}
    if not instance.addresses or instance.vm_state is VmState.DELETED:
        return shown
    labels = {port.mac: port.network for port in instance.ports}
    for each in instance.addresses:
        one: dict[str, Any] = {"version": each.version, "addr": each.address}
        if whole:
            one |= {"OS-EXT-IPS:type": "fixed", "OS-EXT-IPS-MAC:mac_addr": each.mac}
        shown.setdefault(labels.get(each.mac, ""), []).append(one)
    return shown
