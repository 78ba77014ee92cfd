"""The blocking calls that the agent inside a guest answers (qemu-guest-agent), each within a limit of seconds.

libvirt waits for an agent's answer for ever unless it is told otherwise, and meanwhile lets nobody else ask. The
limit is the domain's and lasts while it is on, so it is set before each question.
"""

from __future__ import annotations

from typing import Final

import libvirt

from stateward.agent.driver import AgentSilent, DriverError, NoAgent
from stateward.agent.libvirt import guests, xml
from stateward.domain.states import Observed

#: Seconds an agent has for one answer.
LIMIT_SECONDS: Final = 5


def reachable(connection: libvirt.virConnect, instance_id: str) -> libvirt.virDomain:
    """Return the domain of a running guest whose agent holds its channel, with the limit set.

    Raises:
        GuestMissing, DriverError: it does not run.
        NoAgent: nobody holds the channel.
    """
    domain = guests.require(connection, instance_id)
    now, _ = guests.look(domain)
    if now is not Observed.RUNNING:
        raise DriverError(f"The guest is {now.value}: only in a running one can an agent answer.")
    if connection.getType() == "TEST":
        raise DriverError("libvirt's test driver has no agents inside its guests.")
    if not xml.agent_connected(domain.XMLDesc()):
        raise NoAgent
    domain.agentSetResponseTimeout(LIMIT_SECONDS)
    return domain


def set_password(connection: libvirt.virConnect, instance_id: str, user: str, password: str) -> None:
    """Have the agent set a user's password."""
    domain = reachable(connection, instance_id)
    try:
        domain.setUserPassword(user, password)
    except libvirt.libvirtError as error:
        told = _told(error)
        if told is None:
            raise
        raise told from error


def _told(error: libvirt.libvirtError) -> DriverError | None:
    """Make of libvirt's error what people are to read; None for one that is not about the agent."""
    if error.get_error_code() == libvirt.VIR_ERR_AGENT_UNRESPONSIVE:
        return AgentSilent(LIMIT_SECONDS)
    # libvirt has no code of its own for what an agent refuses.
    if error.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR:
        return DriverError(f"The agent inside the guest refused: {error.get_error_message()}")
    return None
