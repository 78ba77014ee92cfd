"""Rows that only the control plane itself asks for: what the arbiter restores, and what time brings about."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from stateward.domain.actions.row import DELETE, LIVING, START, Action, Exempt, Policy, Role
from stateward.domain.states import Observed, TaskState, VmState
from stateward.domain.steps import Step

SYSTEM: Final = Policy("stateward:arbiter", Role.SYSTEM)
KEEPS_RECORD: Final = Exempt("it brings the guest back to the record, which is what a lock protects")
_ANOTHER_COPY: Final = Exempt(
    "it is done to a copy on another host; the instance and its own guest are not touched"
)
_SECOND_HALF: Final = Exempt("it ends what was admitted before: without it the instance would be on no host")

#: What makes a guest of a copy on its new host.
_ARRIVES: Final = (
    Step.DISCARD_STALE_DISK,
    Step.PREPARE_DISK,
    Step.DROP_KEPT_DISK,
    Step.KEEP_DISK,
    Step.GROW_DISK,
    Step.DEFINE,
)

ITS_OWN: Final[tuple[Action, ...]] = (
    Action(
        name="adopt",
        when=LIVING,
        guard=Exempt("it writes down what the guest did itself; the guest is not touched"),
        policy=SYSTEM,
        by_verdict=True,
        says="Let the record follow the guest, as the arbiter's table says.",
    ),
    Action(
        name="restore_start",
        when=frozenset({VmState.ACTIVE}),
        pending=TaskState.POWERING_ON,
        becomes=VmState.ACTIVE,
        wants=Observed.RUNNING,
        guard=KEEPS_RECORD,
        policy=SYSTEM,
        by_verdict=True,
        steps=(Step.DEFINE, Step.POWER_ON),
        says="Start the guest of an active instance that went off though nobody asked for it.",
    ),
    Action(
        name="restore_resume",
        when=frozenset({VmState.ACTIVE}),
        pending=TaskState.RESUMING,
        becomes=VmState.ACTIVE,
        wants=Observed.RUNNING,
        guard=KEEPS_RECORD,
        policy=SYSTEM,
        by_verdict=True,
        steps=(Step.RESTORE_MEMORY,),
        says="Resume an active instance that was saved behind our back.",
    ),
    Action(
        name="restore_unpause",
        when=frozenset({VmState.ACTIVE}),
        pending=TaskState.UNPAUSING,
        becomes=VmState.ACTIVE,
        wants=Observed.RUNNING,
        guard=KEEPS_RECORD,
        policy=SYSTEM,
        by_verdict=True,
        steps=(Step.UNPAUSE,),
        says="Let an active instance run on that was paused behind our back.",
    ),
    Action(
        name="restore_pause",
        when=frozenset({VmState.PAUSED}),
        pending=TaskState.PAUSING,
        becomes=VmState.PAUSED,
        wants=Observed.PAUSED,
        guard=KEEPS_RECORD,
        policy=SYSTEM,
        by_verdict=True,
        steps=(Step.PAUSE,),
        says="Pause an instance again that was let run behind our back.",
    ),
    Action(
        name="restore_paused",
        when=frozenset({VmState.PAUSED}),
        pending=TaskState.POWERING_ON,
        becomes=VmState.PAUSED,
        wants=Observed.PAUSED,
        guard=KEEPS_RECORD,
        policy=SYSTEM,
        by_verdict=True,
        steps=(Step.DEFINE, Step.POWER_ON, Step.PAUSE),
        says="Start the guest of a paused instance that went off, and pause it: only where a policy says so.",
    ),
    Action(
        name="restore_stop",
        when=frozenset({VmState.STOPPED}),
        pending=TaskState.POWERING_OFF,
        becomes=VmState.STOPPED,
        wants=Observed.SHUTOFF,
        guard=KEEPS_RECORD,
        policy=SYSTEM,
        by_verdict=True,
        steps=(Step.SHUT_DOWN, Step.POWER_OFF, Step.DISCARD_MEMORY),
        says="Shut a stopped instance down again that was started behind our back.",
    ),
    Action(
        name="restore_off",
        when=frozenset(
            # The last two where a hold keeps the guest off.
            {VmState.STOPPED, VmState.SHELVED, VmState.SOFT_DELETED, VmState.RESIZED, VmState.ERROR}
        ),
        pending=TaskState.POWERING_OFF,
        wants=Observed.SHUTOFF,
        guard=KEEPS_RECORD,
        policy=SYSTEM,
        by_verdict=True,
        steps=(Step.POWER_OFF, Step.DISCARD_MEMORY),
        says="Take the power of an instance that shall be off and was started behind our back.",
    ),
    Action(
        name="restore_held",
        when=frozenset({VmState.ACTIVE, VmState.PAUSED, VmState.RESCUED}),
        pending=TaskState.POWERING_OFF,
        becomes=VmState.STOPPED,
        wants=Observed.SHUTOFF,
        guard=KEEPS_RECORD,
        policy=SYSTEM,
        by_verdict=True,
        steps=(Step.TAKE_BACK, Step.POWER_OFF, Step.DISCARD_MEMORY),
        says="Take the power of an instance that is still on because its hold failed to have it off.",
    ),
    Action(
        name="restore_held",
        label="saved",
        when=frozenset({VmState.ACTIVE, VmState.PAUSED}),
        pending=TaskState.SUSPENDING,
        becomes=VmState.SUSPENDED,
        wants=Observed.SUSPENDED,
        guard=KEEPS_RECORD,
        policy=SYSTEM,
        by_verdict=True,
        steps=(Step.TAKE_BACK, Step.SAVE_IF_ON),
        says="Save the memory of one whose hold failed to do that, and take its power: never the power alone.",
    ),
    Action(
        name="restore_suspend",
        when=frozenset({VmState.SUSPENDED}),
        pending=TaskState.SUSPENDING,
        becomes=VmState.SUSPENDED,
        wants=Observed.SUSPENDED,
        guard=KEEPS_RECORD,
        policy=SYSTEM,
        by_verdict=True,
        steps=(Step.SAVE_MEMORY,),
        says="Save an instance's memory again that was resumed behind our back.",
    ),
    Action(
        name="reap",
        when=frozenset({VmState.DELETED}),
        becomes=VmState.DELETED,
        without_host=True,
        wants=Observed.MISSING,
        guard=KEEPS_RECORD,
        policy=SYSTEM,
        by_verdict=True,
        steps=(Step.POWER_OFF, Step.DISCARD_MEMORY, Step.REMOVE),
        says="Remove the guest of a deleted instance that was found on a host.",
    ),
    Action(
        name="reap",
        label="adopted",
        when=frozenset({VmState.DELETED}),
        becomes=VmState.DELETED,
        without_host=True,
        wants=Observed.MISSING,
        guard=KEEPS_RECORD,
        policy=SYSTEM,
        by_verdict=True,
        steps=(Step.RELEASE,),
        says="Take the mark off the guest of a deleted instance that was adopted, and leave it as it is: it is its "
        "owner's.",
    ),
    Action(
        name="remove_stray",
        when=frozenset(VmState),
        elsewhere=True,
        wants=Observed.MISSING,
        guard=_ANOTHER_COPY,
        policy=SYSTEM,
        by_verdict=True,
        steps=(Step.POWER_OFF, Step.DISCARD_MEMORY, Step.REMOVE),
        says="Remove an older copy of an instance from a host that is not its own.",
    ),
    Action(
        name="halt_stray",
        when=frozenset(VmState),
        elsewhere=True,
        wants=Observed.PAUSED,
        guard=_ANOTHER_COPY,
        policy=SYSTEM,
        by_verdict=True,
        steps=(Step.PAUSE,),
        says="Halt a copy of an instance on a host that is not its own, of which nobody knows which is right.",
    ),
    Action(
        name="release_stray",
        when=frozenset({VmState.DELETED}),
        elsewhere=True,
        wants=Observed.MISSING,
        guard=_ANOTHER_COPY,
        policy=SYSTEM,
        by_verdict=True,
        steps=(Step.RELEASE,),
        says="The same where its owner has it on another host now.",
    ),
    Action(
        name="restore_rescue",
        when=frozenset({VmState.RESCUED}),
        pending=TaskState.RESCUING,
        becomes=VmState.RESCUED,
        wants=Observed.RUNNING,
        guard=KEEPS_RECORD,
        policy=SYSTEM,
        by_verdict=True,
        steps=(Step.POWER_OFF, Step.DISCARD_MEMORY, Step.DEFINE_RESCUE, Step.POWER_ON),
        says="Boot the rescue system again of an instance being rescued that went off.",
    ),
    Action(
        name="restore_offloaded",
        when=frozenset({VmState.SHELVED_OFFLOADED}),
        pending=TaskState.SHELVING_OFFLOADING,
        becomes=VmState.SHELVED_OFFLOADED,
        wants=Observed.MISSING,
        guard=KEEPS_RECORD,
        policy=SYSTEM,
        by_verdict=True,
        steps=(Step.POWER_OFF, Step.DISCARD_MEMORY, Step.REMOVE),
        says="Remove what is left on a host of an instance that is kept as an image.",
    ),
    Action(
        name="reclaim",
        when=frozenset({VmState.SOFT_DELETED}),
        pending=TaskState.DELETING,
        becomes=VmState.DELETED,
        without_host=True,
        wants=Observed.MISSING,
        guard=DELETE,
        policy=SYSTEM,
        steps=(Step.POWER_OFF, Step.DISCARD_MEMORY, Step.REMOVE),
        says="Remove an instance whose time to be restored has passed; a lock keeps it.",
    ),
    Action(
        name="arrive",
        when=frozenset({VmState.SHELVED_OFFLOADED}),
        places=True,
        pending=TaskState.RESIZE_FINISH,
        becomes=VmState.RESIZED,
        comes_from=VmState.ACTIVE,
        wants=Observed.RUNNING,
        undo="restore_offloaded",
        guard=_SECOND_HALF,
        policy=SYSTEM,
        steps=(*_ARRIVES, Step.POWER_ON),
        says="The second half of a move: make the guest on its new host and start it. Without one it stays an image.",
    ),
    Action(
        name="arrive",
        label="stopped",
        when=frozenset({VmState.SHELVED_OFFLOADED}),
        places=True,
        pending=TaskState.RESIZE_FINISH,
        becomes=VmState.RESIZED,
        comes_from=VmState.STOPPED,
        wants=Observed.SHUTOFF,
        undo="restore_offloaded",
        guard=_SECOND_HALF,
        policy=SYSTEM,
        steps=_ARRIVES,
        says="The same of an instance that was stopped.",
    ),
)


def _after_boot(restores: str, *, says: str, **other: Any) -> Action:
    """Make the row by which a guest is started again after its host has booted, of the one that restores it.

    It starts a guest that nobody misses in a running host: so what blocks a start blocks it, and it is no sign of a
    guest that will not stay.
    """
    (row,) = (row for row in ITS_OWN if row.name == restores)
    name = restores.replace("restore_", "boot_")
    return msgspec.structs.replace(row, name=name, guard=START, says=says, **other)


BOOTS: Final[tuple[Action, ...]] = (
    _after_boot(
        "restore_start", says="Start the guest of an active instance again after its host has booted."
    ),
    _after_boot(
        "restore_start",
        label="resized",
        when=frozenset({VmState.RESIZED}),
        was=VmState.ACTIVE,
        becomes=None,
        says="The same of one whose resize is not confirmed yet.",
    ),
    _after_boot(
        "restore_resume", says="Resume an active instance whose memory its host has saved as it went down."
    ),
    _after_boot(
        "restore_paused", says="Start a paused instance again after its host has booted, and pause it."
    ),
    _after_boot("restore_rescue", says="Boot the rescue system again after the host has booted."),
)
