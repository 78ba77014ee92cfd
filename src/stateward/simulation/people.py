"""Phrases about what customers and operators ask of the control plane."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from stateward.domain.actions import BY_KEY, Action
from stateward.domain.bodies import Hold, RebootOptions, ShutdownOptions
from stateward.domain.errors import Conflict, Forbidden, HostUnavailable, Invalid, NotFound, Refused
from stateward.domain.locks import ActorKind, LockKind, classes_of
from stateward.domain.records import Actor, Instance, Target
from stateward.domain.states import VmState
from stateward.operations.preparing import NOTHING, Wanted
from stateward.operations.stacking import LockWish
from stateward.simulation.phrases import Given, Phrase
from stateward.simulation.world import World
from stateward.store import locks, operations
from stateward.store.engine import StoreUnavailable

#: The rows of the table of actions that a word means: those that begin in different states go together.
_VERBS: Final[dict[str, tuple[str, ...]]] = {
    "starts": ("start",),
    "stops": ("stop",),
    "force-stops": ("stop_force",),
    "reboots": ("reboot_soft",),
    "hard-reboots": ("reboot_hard",),
    "pauses": ("pause",),
    "unpauses": ("unpause",),
    "suspends": ("suspend",),
    "resumes": ("resume",),
    "deletes": ("delete",),
    "soft-deletes": ("delete_soft",),
    "restores": ("restore",),
    "rescues": ("rescue",),
    "unrescues": ("unrescue",),
    "shelves": ("shelve",),
    "offloads": ("shelveOffload",),
    "unshelves": ("unshelve", "unshelve_offloaded"),
    "resizes": ("resize", "resize_stopped"),
    "confirms the resize of": ("confirmResize", "confirmResize_stopped"),
    "reverts the resize of": ("revertResize", "revertResize_stopped"),
    "migrates": ("migrate", "migrate_stopped"),
}
_KINDS: Final = {"customer": ActorKind.MEMBER, "operator": ActorKind.ADMIN}
_REFUSALS: Final = (Refused, Forbidden, NotFound, Invalid, Conflict, HostUnavailable, StoreUnavailable)


async def ask(world: World, given: Given, each: Callable[[Instance, Actor], Awaitable[object]]) -> None:
    """Ask for something for each instance that is named; what is refused is said."""
    for name in given.which:
        try:
            instance = await world.instance(name)
            await each(instance, world.actor(_KINDS[given.who], instance.project_id))
        except _REFUSALS as error:
            world.log.say(f"refused to the {given.who}: {error}", subject=name)


def _seen(given: Given, instance: Instance) -> str | None:
    return instance.project_id if given.who == "customer" else None


async def operate(
    world: World, instance: Instance, actor: Actor, rows: tuple[Action, ...], given: Given
) -> None:
    """Admit an operation of one of several rows, with what the words after it say."""
    await world.plane.admission.admit(
        rows,
        instance.id,
        actor,
        body=_body(rows[0], given),
        wanted=_wanted(rows[0], instance),
        project_id=_seen(given, instance),
    )


def _body(row: Action, given: Given) -> object:
    options: dict[str, Any] = {}
    if given.seconds is not None:
        options["timeout"] = int(given.seconds)
    if given.word:
        options["at_deadline"] = given.word
    if row.wire == "os-stop":
        return ShutdownOptions(force=row.variant == ("force", True), **options)
    return RebootOptions(type="SOFT", **options) if row.name == "reboot" and options else None


def _wanted(row: Action, instance: Instance) -> Wanted:
    if row.name != "resize":
        return NOTHING
    flavor = msgspec.structs.replace(
        instance.flavor, id=f"{instance.flavor.id}+", name="larger", ram=instance.flavor.ram * 2
    )
    return Wanted(target=Target(flavor=flavor))


async def _does(world: World, given: Given) -> None:
    rows = tuple(BY_KEY[key] for key in _VERBS[given.verb])
    await ask(world, given, lambda instance, actor: operate(world, instance, actor, rows, given))


async def _locks(world: World, given: Given) -> None:
    admin = given.who == "operator"

    def wish() -> LockWish:
        named = bool(given.text) or given.seconds is not None
        return LockWish(
            kind=LockKind.ADMIN if admin else LockKind.OWNER,
            holder=given.who,
            name="script" if named else "",
            blocks=classes_of(given.text.split(",") if given.text else ("all",)),
            expires_at=None if given.seconds is None else world.clock.now() + given.seconds,
            sealed=given.verb == "seals",
        )

    await ask(
        world,
        given,
        lambda instance, actor: world.plane.locking.place(
            instance.id, actor, wish(), overtake=False, project_id=_seen(given, instance)
        ),
    )


async def _unlocks(world: World, given: Given) -> None:
    await ask(
        world,
        given,
        lambda instance, actor: world.plane.immediate.unlock(
            instance.id, actor, project_id=_seen(given, instance)
        ),
    )


async def _holds(world: World, given: Given) -> None:
    hold = msgspec.convert({"reason": "script", "shutdown": given.verb or "clean"}, Hold)
    await ask(world, given, lambda instance, actor: world.plane.locking.hold(instance.id, actor, hold))


async def _releases(world: World, given: Given) -> None:
    async def release(instance: Instance, actor: Actor) -> None:
        found = await world.database.read(
            lambda connection: locks.of_instance(connection, instance.id, instance.project_id, instance.tags)
        )
        for lock in found[:1] if given.verb else found:
            await world.plane.locking.release(instance.id, lock.id, actor, reason=None, project_id=None)

    await ask(world, given, release)


async def _resets(world: World, given: Given) -> None:
    await ask(
        world,
        given,
        lambda instance, actor: world.plane.immediate.reset_state(instance.id, actor, to=VmState(given.verb)),
    )


async def _controls(world: World, given: Given) -> None:
    async def control(instance: Instance, actor: Actor) -> None:
        found = await world.database.read(lambda connection: operations.unfinished(connection, instance.id))
        if not found:
            raise NotFound("nothing is under way")
        control, operation_id, project = world.plane.control, found[0].id, _seen(given, instance)
        if given.seconds is not None:
            await control.extend(operation_id, actor, seconds=int(given.seconds), project_id=project)
        elif given.verb == "cancels":
            await control.cancel(operation_id, actor, project_id=project)
        else:
            await control.escalate(operation_id, actor, project_id=project)

    await ask(world, given, control)


_SHUTDOWN: Final = "[ within {time}][ or (fail|save)]"


PEOPLE: Final[tuple[Phrase, ...]] = (
    Phrase(
        f"{{who}} ({'|'.join(_VERBS)}) {{which}}{_SHUTDOWN}",
        _does,
        "Ask for an operation; a stop or a reboot may say how long the guest gets, and what is done then.",
    ),
    Phrase(
        "{who} (locks|seals) {which}[ against {text}]",
        _locks,
        "Lock; against start, stop, delete, change or all.",
    ),
    Phrase("{who} (locks) {which} for {time}", _locks, "Lock, for a time."),
    Phrase("{who} unlocks {which}", _unlocks, "Take the unnamed lock away."),
    Phrase("operator holds {which}[ by (clean|forced|suspend|none)]", _holds, "A legal hold."),
    Phrase(
        "operator releases[ (one lock of)] {which}",
        _releases,
        "Take its locks away, holds too; or the oldest.",
    ),
    Phrase("operator resets {which} to (active|error)", _resets, "Set the record."),
    Phrase("{who} (cancels|escalates) the shutdown of {which}", _controls, "Tell a running operation."),
    Phrase("{who} gives {which} {time} to shut down", _controls, "The same."),
)
