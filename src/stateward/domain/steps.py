"""The steps an operation is made of.

Every step says "make it so" and may be repeated: its effect on a guest that is already so is nothing. That is
what lets a killed agent simply run the unfinished step again (B3).
"""

from __future__ import annotations

import enum
from typing import Final


class Step(enum.StrEnum):
    """What an agent can do to a guest; the function of the same name is in ``stateward.agent.steps``."""

    PREPARE_DISK = "prepare_disk"
    DEFINE = "define"
    POWER_ON = "power_on"
    SHUT_DOWN = "shut_down"
    POWER_OFF = "power_off"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    SAVE_MEMORY = "save_memory"
    RESTORE_MEMORY = "restore_memory"
    DISCARD_MEMORY = "discard_memory"
    INJECT_NMI = "inject_nmi"
    REMOVE = "remove"


STEP_SAYS: Final[dict[Step, str]] = {
    Step.PREPARE_DISK: "Make the instance's disk over its image, unless it is there.",
    Step.DEFINE: "Tell the hypervisor of the guest, autostart and restart-on-crash off.",
    Step.POWER_ON: "Start the guest, unless it runs.",
    Step.SHUT_DOWN: "Ask the guest to shut down and wait for it, up to the time it is given; then do what was chosen.",
    Step.POWER_OFF: "Take the power away, unless it is off.",
    Step.PAUSE: "Halt the guest's processors.",
    Step.UNPAUSE: "Let the guest's processors run.",
    Step.SAVE_MEMORY: "Write the guest's memory to disk and take the power.",
    Step.RESTORE_MEMORY: "Start the guest from its saved memory.",
    Step.DISCARD_MEMORY: "Throw a saved memory away, so that the next start is a boot.",
    Step.INJECT_NMI: "Raise a non-maskable interrupt; killed right after it, the agent raises it again.",
    Step.REMOVE: "Make the hypervisor forget the guest and delete its disk.",
}
