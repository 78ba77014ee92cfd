"""THE TABLE: everything that can be done to an instance, one row each (R2).

Nothing else names an action. The guarded UPDATE, the admission's explanation, the route, the policy, the agent's
steps, the docs (``docs/actions.md``), the state diagram and the derived tests are all made from these rows.
``docs/adding-an-action.md`` says how to add one.

Facts about Nova are of Nova 34 (Compute API 2.104).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from stateward.domain import bodies
from stateward.domain.locks import OperationClass
from stateward.domain.states import Observed, TaskState, VmState
from stateward.domain.steps import Step

START, STOP, DELETE, CHANGE = OperationClass


class Exempt(msgspec.Struct, frozen=True):
    """No lock blocks the action, and this is why."""

    reason: str


class Role(enum.StrEnum):
    """The least a caller must be, within the server's project; an admin may do all of it anywhere."""

    READER = "reader"
    MEMBER = "member"
    ADMIN = "admin"
    #: Only the control plane itself: no request can name the action.
    SYSTEM = "system"


class Policy(msgspec.Struct, frozen=True):
    """Nova's rule name, shown when it refuses, and the default role."""

    rule: str
    role: Role


class OnFailure(enum.StrEnum):
    """What the record says after an operation that could not finish; the fault is kept either way."""

    #: The vm state stays; the arbiter then compares it with what is there.
    KEEP = "keep"
    ERROR = "error"


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One row. ``guard`` has no default on purpose: leaving it out is a type error (R2)."""

    #: Nova's name for the instance action and in its refusals.
    name: str
    #: The key in the body of ``POST /servers/{id}/action``; None where the API has another way in, or none.
    wire: str | None = None
    #: The (field, value) of the body that picks this row among those of one wire name.
    variant: tuple[str, Any] | None = None
    #: The first microversion that has it, as its minor number.
    since: int = 1
    #: The last microversion that has it; None when all later ones do.
    until: int | None = None
    #: The type a body must have, by the minor microversion from which it holds, in rising order.
    body: tuple[tuple[int, Any], ...] = ((1, Any),)
    #: The vm states it is admitted in.
    when: frozenset[VmState]
    #: Task states it is admitted over, besides none. For an operation (a row with steps or ``pending``) that
    #: means overtaking what is in flight: the fence goes up and the other ends as superseded.
    over: frozenset[TaskState] = frozenset()
    pending: TaskState | None = None
    becomes: VmState | None = None
    #: The vm state when the guest's memory was saved at its deadline instead of its power taken (R9). None where
    #: that cannot be chosen, because the action goes on with a guest that is off.
    if_saved: VmState | None = None
    #: What the guest must be seen as for the result to be true; the arbiter restores towards it.
    wants: Observed | None = None
    guard: OperationClass | Exempt
    policy: Policy
    steps: tuple[Step, ...] = ()
    on_failure: OnFailure = OnFailure.KEEP
    #: One sentence for the docs.
    says: str

    @property
    def is_operation(self) -> bool:
        """Whether an agent works on it; the rest is done when it is admitted."""
        return bool(self.steps)

    @property
    def guarded(self) -> OperationClass:
        """The operation classes that locks can block it by; none when exempt."""
        return OperationClass(0) if isinstance(self.guard, Exempt) else self.guard


_LIVING: Final = frozenset(VmState) - {VmState.DELETED}
_ANY_TASK: Final = frozenset(TaskState)
_COMPUTE: Final = "os_compute_api:"


def _member(rule: str) -> Policy:
    return Policy(_COMPUTE + rule, Role.MEMBER)


_SYSTEM: Final = Policy("stateward:arbiter", Role.SYSTEM)
_KEEPS_RECORD: Final = Exempt("it brings the guest back to the record, which is what a lock protects")

CREATE: Final = Action(
    name="create",
    when=frozenset(),
    pending=TaskState.SPAWNING,
    becomes=VmState.ACTIVE,
    wants=Observed.RUNNING,
    guard=Exempt("there is nothing to lock before it"),
    policy=_member("servers:create"),
    steps=(Step.PREPARE_DISK, Step.DEFINE, Step.POWER_ON),
    on_failure=OnFailure.ERROR,
    says="Make an instance from an image and a flavor, and start it.",
)

ACTIONS: Final[tuple[Action, ...]] = (
    CREATE,
    Action(
        name="delete",
        when=_LIVING,
        over=_ANY_TASK - {TaskState.DELETING},
        pending=TaskState.DELETING,
        becomes=VmState.DELETED,
        wants=Observed.MISSING,
        guard=DELETE,
        policy=_member("servers:delete"),
        steps=(Step.SHUT_DOWN, Step.POWER_OFF, Step.DISCARD_MEMORY, Step.REMOVE),
        on_failure=OnFailure.ERROR,
        says="Shut the guest down, then remove it and its disk. Overtakes whatever is in flight.",
    ),
    Action(
        name="forceDelete",
        wire="forceDelete",
        when=_LIVING,
        over=_ANY_TASK,
        pending=TaskState.DELETING,
        becomes=VmState.DELETED,
        wants=Observed.MISSING,
        guard=DELETE,
        policy=_member("os-deferred-delete:force"),
        steps=(Step.POWER_OFF, Step.DISCARD_MEMORY, Step.REMOVE),
        on_failure=OnFailure.ERROR,
        says="Remove the guest and its disk without asking it to shut down; escalates a delete that waits.",
    ),
    Action(
        name="start",
        wire="os-start",
        when=frozenset({VmState.STOPPED}),
        pending=TaskState.POWERING_ON,
        becomes=VmState.ACTIVE,
        wants=Observed.RUNNING,
        guard=START,
        policy=_member("servers:start"),
        steps=(Step.POWER_ON,),
        says="Start a stopped instance.",
    ),
    Action(
        name="stop",
        wire="os-stop",
        variant=("force", False),
        body=((1, bodies.ShutdownOptions | None),),
        when=frozenset({VmState.ACTIVE, VmState.ERROR}),
        pending=TaskState.POWERING_OFF,
        becomes=VmState.STOPPED,
        if_saved=VmState.SUSPENDED,
        wants=Observed.SHUTOFF,
        guard=STOP,
        policy=_member("servers:stop"),
        steps=(Step.SHUT_DOWN, Step.POWER_OFF),
        says="Ask the guest to shut down, wait up to the time it is given, then take the power.",
    ),
    Action(
        name="stop",
        wire="os-stop",
        variant=("force", True),
        body=((1, bodies.ShutdownOptions | None),),
        when=frozenset({VmState.ACTIVE, VmState.ERROR}),
        over=frozenset({TaskState.POWERING_OFF}),
        pending=TaskState.POWERING_OFF,
        becomes=VmState.STOPPED,
        wants=Observed.SHUTOFF,
        guard=STOP,
        policy=_member("servers:stop"),
        steps=(Step.SHUT_DOWN, Step.POWER_OFF),
        says="Take the power: at once, or after `timeout` seconds. Escalates a clean stop that waits.",
    ),
    Action(
        name="reboot",
        wire="reboot",
        variant=("type", "SOFT"),
        body=((1, bodies.RebootOptions),),
        when=frozenset({VmState.ACTIVE}),
        pending=TaskState.REBOOTING,
        becomes=VmState.ACTIVE,
        wants=Observed.RUNNING,
        guard=START | STOP,
        policy=_member("servers:reboot"),
        steps=(Step.SHUT_DOWN, Step.POWER_OFF, Step.POWER_ON),
        says="Ask the guest to shut down, then start it again; forced at the end of the time it is given.",
    ),
    Action(
        name="reboot",
        wire="reboot",
        variant=("type", "HARD"),
        body=((1, bodies.RebootOptions),),
        when=frozenset({VmState.ACTIVE, VmState.STOPPED, VmState.PAUSED, VmState.SUSPENDED, VmState.ERROR}),
        over=frozenset(
            {
                TaskState.REBOOTING,
                TaskState.REBOOTING_HARD,
                TaskState.PAUSING,
                TaskState.UNPAUSING,
                TaskState.SUSPENDING,
                TaskState.RESUMING,
            }
        ),
        pending=TaskState.REBOOTING_HARD,
        becomes=VmState.ACTIVE,
        wants=Observed.RUNNING,
        guard=START | STOP,
        policy=_member("servers:reboot"),
        steps=(Step.POWER_OFF, Step.DISCARD_MEMORY, Step.DEFINE, Step.POWER_ON),
        says="Take the power and start the guest anew, whatever it was doing.",
    ),
    Action(
        name="pause",
        wire="pause",
        when=frozenset({VmState.ACTIVE}),
        pending=TaskState.PAUSING,
        becomes=VmState.PAUSED,
        wants=Observed.PAUSED,
        guard=STOP,
        policy=_member("os-pause-server:pause"),
        steps=(Step.PAUSE,),
        says="Halt the guest's processors; it stays in the host's memory.",
    ),
    Action(
        name="unpause",
        wire="unpause",
        when=frozenset({VmState.PAUSED}),
        pending=TaskState.UNPAUSING,
        becomes=VmState.ACTIVE,
        wants=Observed.RUNNING,
        guard=START,
        policy=_member("os-pause-server:unpause"),
        steps=(Step.UNPAUSE,),
        says="Let a paused guest run on.",
    ),
    Action(
        name="suspend",
        wire="suspend",
        when=frozenset({VmState.ACTIVE}),
        pending=TaskState.SUSPENDING,
        becomes=VmState.SUSPENDED,
        wants=Observed.SUSPENDED,
        guard=STOP,
        policy=_member("os-suspend-server:suspend"),
        steps=(Step.SAVE_MEMORY,),
        says="Save the guest's memory to disk and take the power.",
    ),
    Action(
        name="resume",
        wire="resume",
        when=frozenset({VmState.SUSPENDED}),
        pending=TaskState.RESUMING,
        becomes=VmState.ACTIVE,
        wants=Observed.RUNNING,
        guard=START,
        policy=_member("os-suspend-server:resume"),
        steps=(Step.RESTORE_MEMORY,),
        says="Start a suspended guest from its saved memory.",
    ),
    Action(
        name="lock",
        wire="lock",
        body=((1, Any), (73, bodies.LockOptions | None)),
        when=_LIVING,
        over=_ANY_TASK,
        guard=Exempt("a lock can be placed over a lock (R5)"),
        policy=_member("os-lock-server:lock"),
        says="Place the owner's lock, or the provider's when an admin of another project asks.",
    ),
    Action(
        name="unlock",
        wire="unlock",
        when=_LIVING,
        over=_ANY_TASK,
        guard=Exempt("whose lock it takes is decided by who asks (R3, R5)"),
        policy=_member("os-lock-server:unlock"),
        says="Take a lock away: the owner's, or for an admin the provider's first.",
    ),
    Action(
        name="reset_state",
        wire="os-resetState",
        body=((1, bodies.ResetState),),
        when=_LIVING,
        over=_ANY_TASK,
        guard=Exempt("an admin corrects the record; the guest is not touched (Nova 34 does not guard it)"),
        policy=Policy(_COMPUTE + "os-admin-actions:reset_state", Role.ADMIN),
        says="Set the record to active or error and end whatever is in flight; the arbiter then compares.",
    ),
    Action(
        name="getConsoleOutput",
        wire="os-getConsoleOutput",
        body=((1, bodies.ConsoleOutput | None),),
        when=_LIVING,
        over=_ANY_TASK,
        guard=Exempt("reading has no side effect (R8)"),
        policy=_member("os-console-output"),
        says="Read the end of the guest's console log.",
    ),
    *(
        Action(
            name=name,
            wire=wire,
            until=5,
            body=((1, body),),
            when=_LIVING,
            over=_ANY_TASK - {TaskState.DELETING},
            guard=Exempt(
                "reading and typing change no state of the instance's (R8); Nova 34 does not guard it"
            ),
            policy=_member("os-remote-consoles"),
            says=says,
        )
        for name, wire, body, says in (
            (
                "get_serial_console",
                "os-getSerialConsole",
                bodies.SerialConsole,
                "Give an address with a token for the guest's serial console.",
            ),
            ("get_vnc_console", "os-getVNCConsole", bodies.VncConsole, "Refused: no guest has a screen."),
            (
                "get_spice_console",
                "os-getSPICEConsole",
                bodies.SpiceConsole,
                "Refused: no guest has a screen.",
            ),
        )
    ),
    Action(
        name="changePassword",
        wire="changePassword",
        body=((1, bodies.ChangePassword),),
        when=frozenset({VmState.ACTIVE}),
        guard=CHANGE,
        policy=_member("os-admin-password"),
        says="Have the agent inside the guest set the administrator's password; asked at once and kept nowhere.",
    ),
    Action(
        name="trigger_crash_dump",
        wire="trigger_crash_dump",
        since=17,
        body=((17, None),),
        when=frozenset({VmState.ACTIVE, VmState.PAUSED, VmState.ERROR}),
        guard=CHANGE,
        policy=_member("servers:trigger_crash_dump"),
        steps=(Step.INJECT_NMI,),
        says="Raise a non-maskable interrupt, by which a guest that is set up for it dumps its memory.",
    ),
    Action(
        name="update",
        when=_LIVING,
        over=_ANY_TASK,
        guard=Exempt("a name is not a state; Nova 34 does not guard it"),
        policy=_member("servers:update"),
        says="Change name, description or hostname.",
    ),
    Action(
        name="update_metadata",
        when=frozenset({VmState.ACTIVE, VmState.PAUSED, VmState.SUSPENDED, VmState.STOPPED}),
        over=_ANY_TASK,
        guard=CHANGE,
        policy=_member("server-metadata:update"),
        says="Set metadata items.",
    ),
    Action(
        name="delete_metadata",
        when=frozenset({VmState.ACTIVE, VmState.PAUSED, VmState.SUSPENDED, VmState.STOPPED}),
        over=_ANY_TASK,
        guard=CHANGE,
        policy=_member("server-metadata:delete"),
        says="Remove a metadata item.",
    ),
    Action(
        name="update_tags",
        when=frozenset({VmState.ACTIVE, VmState.PAUSED, VmState.SUSPENDED, VmState.STOPPED}),
        over=_ANY_TASK,
        guard=Exempt("tags are labels; Nova 34 does not guard them"),
        policy=_member("os-server-tags:update"),
        since=26,
        says="Set or remove tags.",
    ),
    Action(
        name="adopt",
        when=_LIVING,
        guard=Exempt("it writes down what the guest did itself; the guest is not touched"),
        policy=_SYSTEM,
        says="Let the record follow the guest, as the arbiter's table says.",
    ),
    Action(
        name="restore_start",
        when=frozenset({VmState.ACTIVE}),
        pending=TaskState.POWERING_ON,
        becomes=VmState.ACTIVE,
        wants=Observed.RUNNING,
        guard=_KEEPS_RECORD,
        policy=_SYSTEM,
        steps=(Step.DEFINE, Step.POWER_ON),
        says="Start the guest of an active instance that went off though nobody asked for it.",
    ),
    Action(
        name="restore_resume",
        when=frozenset({VmState.ACTIVE}),
        pending=TaskState.RESUMING,
        becomes=VmState.ACTIVE,
        wants=Observed.RUNNING,
        guard=_KEEPS_RECORD,
        policy=_SYSTEM,
        steps=(Step.RESTORE_MEMORY,),
        says="Resume an active instance that was saved behind our back.",
    ),
    Action(
        name="restore_unpause",
        when=frozenset({VmState.ACTIVE}),
        pending=TaskState.UNPAUSING,
        becomes=VmState.ACTIVE,
        wants=Observed.RUNNING,
        guard=_KEEPS_RECORD,
        policy=_SYSTEM,
        steps=(Step.UNPAUSE,),
        says="Let an active instance run on that was paused behind our back.",
    ),
    Action(
        name="restore_pause",
        when=frozenset({VmState.PAUSED}),
        pending=TaskState.PAUSING,
        becomes=VmState.PAUSED,
        wants=Observed.PAUSED,
        guard=_KEEPS_RECORD,
        policy=_SYSTEM,
        steps=(Step.PAUSE,),
        says="Pause an instance again that was let run behind our back.",
    ),
    Action(
        name="restore_stop",
        when=frozenset({VmState.STOPPED}),
        pending=TaskState.POWERING_OFF,
        becomes=VmState.STOPPED,
        wants=Observed.SHUTOFF,
        guard=_KEEPS_RECORD,
        policy=_SYSTEM,
        steps=(Step.SHUT_DOWN, Step.POWER_OFF, Step.DISCARD_MEMORY),
        says="Shut a stopped instance down again that was started behind our back.",
    ),
    Action(
        name="restore_off",
        when=frozenset({VmState.STOPPED}),
        pending=TaskState.POWERING_OFF,
        becomes=VmState.STOPPED,
        wants=Observed.SHUTOFF,
        guard=_KEEPS_RECORD,
        policy=_SYSTEM,
        steps=(Step.POWER_OFF, Step.DISCARD_MEMORY),
        says="Take the power of a stopped and locked instance that was started behind our back.",
    ),
    Action(
        name="restore_suspend",
        when=frozenset({VmState.SUSPENDED}),
        pending=TaskState.SUSPENDING,
        becomes=VmState.SUSPENDED,
        wants=Observed.SUSPENDED,
        guard=_KEEPS_RECORD,
        policy=_SYSTEM,
        steps=(Step.SAVE_MEMORY,),
        says="Save an instance's memory again that was resumed behind our back.",
    ),
    Action(
        name="reap",
        when=frozenset({VmState.DELETED}),
        becomes=VmState.DELETED,
        wants=Observed.MISSING,
        guard=_KEEPS_RECORD,
        policy=_SYSTEM,
        steps=(Step.POWER_OFF, Step.DISCARD_MEMORY, Step.REMOVE),
        says="Remove the guest of a deleted instance that was found on a host.",
    ),
)


def restores() -> frozenset[str]:
    """Return the keys of the rows by which the arbiter brings guests back to the record."""
    return frozenset(
        key(row) for row in ACTIONS if row.policy is _SYSTEM and row.is_operation and row.pending
    )


def key(action: Action) -> str:
    """Return the name that is unique to a row: the action's, with its variant."""
    if action.variant is None or action.variant[1] is False:
        return action.name
    value = action.variant[1]
    return f"{action.name}_{'force' if value is True else str(value).lower()}"


BY_KEY: Final[dict[str, Action]] = {key(action): action for action in ACTIONS}


def of_wire(wire: str) -> tuple[Action, ...]:
    """Return the rows a request's body key can mean; empty when there is no such action."""
    return tuple(action for action in ACTIONS if action.wire == wire)


def pick(rows: tuple[Action, ...], body: object) -> Action:
    """Choose among the rows of one wire name by the decoded body."""
    for row in rows:
        if row.variant is None or getattr(body, row.variant[0], False) == row.variant[1]:
            return row
    msg = f"no row of {rows[0].wire} matches {body!r}"
    raise LookupError(msg)


def body_type(action: Action, minor: int) -> Any:
    """Return the type a body must have at a microversion's minor number."""
    return [kind for since, kind in action.body if since <= minor][-1]


def pending_owners() -> Iterator[tuple[TaskState, str]]:
    """Yield each task state with the rows that set it, for the docs and the totality test."""
    for action in ACTIONS:
        if action.pending is not None:
            yield action.pending, key(action)
