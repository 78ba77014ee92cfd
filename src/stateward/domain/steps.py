"""The steps an operation is made of.

Every step says "make it so" and may be repeated: its effect on a guest that is already so is nothing. That is
what lets a killed agent simply run the unfinished step again (B3).
"""

from __future__ import annotations

import enum
from typing import Final


class Step(enum.StrEnum):
    """What an agent can do to a guest; the function of the same name is in ``stateward.agent.steps``."""

    CHECK_IMAGE = "check_image"
    CHECK_RESCUE_IMAGE = "check_rescue_image"
    PREPARE_DISK = "prepare_disk"
    DEFINE = "define"
    POWER_ON = "power_on"
    SHUT_DOWN = "shut_down"
    POWER_OFF = "power_off"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    SAVE_MEMORY = "save_memory"
    SAVE_IF_ON = "save_if_on"
    RESTORE_MEMORY = "restore_memory"
    DISCARD_MEMORY = "discard_memory"
    INJECT_NMI = "inject_nmi"
    REMOVE = "remove"
    DISCARD_DISK = "discard_disk"
    DISCARD_STALE_DISK = "discard_stale_disk"
    KEEP_DISK = "keep_disk"
    RETURN_DISK = "return_disk"
    DROP_KEPT_DISK = "drop_kept_disk"
    GROW_DISK = "grow_disk"
    PREPARE_RESCUE_DISK = "prepare_rescue_disk"
    DEFINE_RESCUE = "define_rescue"
    DISCARD_RESCUE_DISK = "discard_rescue_disk"
    SNAPSHOT = "snapshot"
    PUBLISH_SNAPSHOT = "publish_snapshot"
    STAND_DOWN = "stand_down"
    ADOPT = "adopt"
    TAKE_BACK = "take_back"
    RELEASE = "release"


#: What changes nothing of an instance: an operation that fails there leaves it as it was. Besides ``TAKE_BACK`` only
#: these may come before a guest is asked to shut down.
LOOKS: Final = frozenset({Step.CHECK_IMAGE, Step.CHECK_RESCUE_IMAGE})

#: What has a guest run that did not.
LETS_RUN: Final = frozenset({Step.POWER_ON, Step.UNPAUSE, Step.RESTORE_MEMORY})

#: What writes or reads a disk, or a definition, that is the instance's own: of an adopted guest they are its owner's.
NEEDS_OWN: Final = frozenset(
    {
        Step.CHECK_IMAGE,
        Step.CHECK_RESCUE_IMAGE,
        Step.DISCARD_DISK,
        Step.DISCARD_STALE_DISK,
        Step.KEEP_DISK,
        Step.RETURN_DISK,
        Step.GROW_DISK,
        Step.PREPARE_RESCUE_DISK,
        Step.DEFINE_RESCUE,
        Step.SNAPSHOT,
    }
)

STEP_SAYS: Final[dict[Step, str]] = {
    Step.CHECK_IMAGE: "Fetch the image, and see that the disk can be made over it; nothing else is touched.",
    Step.CHECK_RESCUE_IMAGE: "The same with the image to rescue with.",
    Step.PREPARE_DISK: "Make the instance's disk over its image, unless it is there; an adopted one has its own.",
    Step.DEFINE: "Tell the hypervisor of the guest, autostart and restart-on-crash off; an adopted one is marked anew.",
    Step.POWER_ON: "Start the guest, unless it runs.",
    Step.SHUT_DOWN: "Ask the guest to shut down and wait for it, up to the time it is given; then do what was chosen.",
    Step.POWER_OFF: "Take the power away, unless it is off.",
    Step.PAUSE: "Halt the guest's processors.",
    Step.UNPAUSE: "Let the guest's processors run.",
    Step.SAVE_MEMORY: "Write the guest's memory to disk and take the power.",
    Step.SAVE_IF_ON: "The same, unless there is no memory to write: then the guest stays off.",
    Step.RESTORE_MEMORY: "Start the guest from its saved memory.",
    Step.DISCARD_MEMORY: "Throw a saved memory away, so that the next start is a boot.",
    Step.INJECT_NMI: "Raise a non-maskable interrupt; killed right after it, the agent raises it again.",
    Step.REMOVE: "Make the hypervisor forget the guest and delete its disk; an adopted one is given back instead.",
    Step.DISCARD_DISK: "Delete the instance's disk, so that it is made anew.",
    Step.DISCARD_STALE_DISK: "Delete a disk that is not over the image to make it from, as one left of an older copy.",
    Step.KEEP_DISK: "Copy the disk aside as it is, unless this operation did; its fence is stored with it.",
    Step.RETURN_DISK: "Put the disk that was kept back in its place, if one is kept.",
    Step.DROP_KEPT_DISK: "Delete the disk that an operation before this one kept, if one is kept.",
    Step.GROW_DISK: "Make the disk as large as the flavor says; it never shrinks.",
    Step.PREPARE_RESCUE_DISK: "Make a disk over the rescue image, unless it is there.",
    Step.DEFINE_RESCUE: "Define the guest to boot from the rescue disk, its own disk as the second.",
    Step.DISCARD_RESCUE_DISK: "Delete the rescue disk, if it is there.",
    Step.SNAPSHOT: "Copy the disk as it is at one moment into a file.",
    Step.STAND_DOWN: "Do nothing; what an older operation was doing has ended.",
    Step.ADOPT: "Mark somebody else's guest as adopted, autostart and restart-on-crash off; it runs on.",
    Step.TAKE_BACK: "Mark an adopted guest again that is being given back, or was not marked yet; any other is left.",
    Step.RELEASE: "Take the mark off an adopted guest and put back what it was; it runs on.",
    Step.PUBLISH_SNAPSHOT: "Hand that file to the image store, and delete it.",
}
