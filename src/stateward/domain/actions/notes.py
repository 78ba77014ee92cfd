"""Rows that change what is written of an instance, or read it; no agent works on them."""

from __future__ import annotations

from typing import Any, Final

from stateward.domain import bodies
from stateward.domain.actions.row import (
    ANY_TASK,
    CHANGE,
    LIVING,
    SETTLED,
    Action,
    Exempt,
    Policy,
    Role,
    admin,
    member,
)
from stateward.domain.states import TaskState, VmState
from stateward.domain.steps import Step

_STACKED: Final = Exempt("a lock can be placed over a lock (R5)")
_PLACE: Final = Policy("stateward:locks:place", Role.MEMBER)

NOTES: Final[tuple[Action, ...]] = (
    Action(
        name="lock",
        wire="lock",
        body=((1, Any), (73, bodies.LockOptions | None)),
        when=LIVING,
        over=ANY_TASK,
        guard=Exempt("a lock can be placed over a lock (R5)"),
        policy=member("os-lock-server:lock"),
        says="Place the owner's lock, or the provider's when an admin of another project asks.",
    ),
    Action(
        name="unlock",
        wire="unlock",
        when=LIVING,
        over=ANY_TASK,
        guard=Exempt("whose lock it takes is decided by who asks (R3, R5)"),
        policy=member("os-lock-server:unlock"),
        says="Take a lock away: the owner's, or for an admin the provider's first.",
    ),
    Action(
        name="place_lock",
        when=LIVING,
        over=ANY_TASK,
        guard=_STACKED,
        policy=_PLACE,
        says="Place a lock beside those that are there; what is in flight is finished.",
    ),
    Action(
        name="place_lock",
        label="overtaking",
        when=LIVING,
        over=ANY_TASK,
        without_host=True,
        guard=_STACKED,
        policy=_PLACE,
        steps=(Step.STAND_DOWN,),
        says="Place a lock beside those that are there, and end what is in flight.",
    ),
    Action(
        name="release_lock",
        when=LIVING,
        over=ANY_TASK,
        guard=Exempt("whether it may go is decided by whose it is (R4-R6)"),
        policy=Policy("stateward:locks:release", Role.MEMBER),
        says="Take one lock away; the others hold on.",
    ),
    Action(
        name="reset_state",
        wire="os-resetState",
        body=((1, bodies.ResetState),),
        when=LIVING,
        over=ANY_TASK,
        guard=Exempt("an admin corrects the record; the guest is not touched (Nova 34 does not guard it)"),
        policy=admin("os-admin-actions:reset_state"),
        says="Set the record to active or error and end whatever is in flight; the arbiter then compares.",
    ),
    Action(
        name="getConsoleOutput",
        wire="os-getConsoleOutput",
        body=((1, bodies.ConsoleOutput | None),),
        when=LIVING,
        over=ANY_TASK,
        guard=Exempt("reading has no side effect (R8)"),
        policy=member("os-console-output"),
        says="Read the end of the guest's console log.",
    ),
    *(
        Action(
            name=name,
            wire=wire,
            until=5,
            body=((1, body),),
            when=LIVING,
            over=ANY_TASK - {TaskState.DELETING},
            guard=Exempt(
                "reading and typing change no state of the instance's (R8); Nova 34 does not guard it"
            ),
            policy=member("os-remote-consoles"),
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
        policy=member("os-admin-password"),
        says="Have the agent inside the guest set the administrator's password; asked at once and kept nowhere.",
    ),
    Action(
        name="update",
        when=LIVING,
        over=ANY_TASK,
        guard=Exempt("a name is not a state; Nova 34 does not guard it"),
        policy=member("servers:update"),
        says="Change name, description or hostname.",
    ),
    Action(
        name="update_metadata",
        when=SETTLED,
        over=ANY_TASK,
        guard=CHANGE,
        policy=member("server-metadata:update"),
        says="Set metadata items.",
    ),
    Action(
        name="delete_metadata",
        when=SETTLED,
        over=ANY_TASK,
        guard=CHANGE,
        policy=member("server-metadata:delete"),
        says="Remove a metadata item.",
    ),
    Action(
        name="update_tags",
        when=SETTLED,
        over=ANY_TASK,
        guard=Exempt("tags are labels; Nova 34 does not guard them"),
        policy=member("os-server-tags:update"),
        since=26,
        says="Set or remove tags.",
    ),
)
