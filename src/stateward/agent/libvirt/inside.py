"""The blocking calls that the agent inside a guest answers (qemu-guest-agent), each within a limit of seconds.

libvirt waits for an agent's answer for ever unless it is told otherwise, and meanwhile lets nobody else ask. The
limit is the domain's and lasts while it is on, so it is set before each question.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Final

import libvirt

from stateward.agent.driver import AgentSilent, DriverError, NoAgent
from stateward.agent.libvirt import guests, xml
from stateward.domain.states import Observed

#: Seconds an agent has for one answer.
LIMIT_SECONDS: Final = 5

#: Seconds an agent has to freeze file systems, which write back what they hold first.
FREEZE_SECONDS: Final = 20

#: How a guest is that has forgotten what was frozen in it; one that is suspended has not.
_THAWED: Final = frozenset({Observed.SHUTOFF, Observed.CRASHED, Observed.MISSING})


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
    with _answered():
        domain.setUserPassword(user, password)


def freeze(connection: libvirt.virConnect, instance_id: str) -> None:
    """Have the agent freeze all file systems, in which nothing changes then until they are thawed.

    Raises:
        AgentSilent, DriverError: they may be frozen all the same, or become it later.
    """
    domain = reachable(connection, instance_id)
    domain.agentSetResponseTimeout(FREEZE_SECONDS)
    with _answered(FREEZE_SECONDS):
        domain.fsFreeze()


def thaw(connection: libvirt.virConnect, instance_id: str) -> None:
    """Have the agent thaw all file systems; in a guest that is off none is frozen any more.

    Raises:
        AgentSilent, DriverError: they may be frozen still.
    """
    if guests.get(connection, instance_id).observed in _THAWED:
        return
    domain = reachable(connection, instance_id)
    with _answered():
        domain.fsThaw()


@contextlib.contextmanager
def _answered(limit: int = LIMIT_SECONDS) -> Generator[None]:
    """Make of libvirt's error what people are to read; one that is not about the agent stays as it is."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_AGENT_UNRESPONSIVE:
            raise AgentSilent(limit) from error
        # libvirt has no code of its own for what an agent refuses.
        if error.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR:
            raise DriverError(f"The agent inside the guest refused: {error.get_error_message()}") from error
        raise
