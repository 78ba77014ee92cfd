"""The steps' functions: one for each member of ``Step``, made of driver calls and, for ``shut_down``, waiting.

A step is given a ``Work`` that knows the operation, and lets it wait for the guest in a way that a newer
operation, or an order to this one, interrupts at once. It never looks at the record: agents have no database.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import msgspec

from stateward.agent.driver import Driver, GuestMissing
from stateward.agent.ladder import shut_down
from stateward.agent.work import Work, look
from stateward.domain.records import GuestSpec
from stateward.domain.states import Observed
from stateward.domain.steps import Step


async def prepare_disk(work: Work) -> None:
    """Make the disk, unless it is there; an adopted guest has its own."""
    if work.dispatch.guest.adopted:
        return
    await work.driver.prepare_disk(work.dispatch.guest)


async def define(work: Work) -> None:
    """Make the guest known, to boot from its own disk, and mark it with the fence from its first moment.

    The definition of an adopted one is its owner's: it is marked as ours, should somebody have taken the mark off.
    """
    if work.dispatch.guest.adopted:
        await adopt(work)
        return
    await work.driver.define(msgspec.structs.replace(work.dispatch.guest, rescue=None))
    await work.driver.mark_fence(work.dispatch.instance_id, work.dispatch.fence)


async def take_back(work: Work) -> None:
    """Have an adopted guest be ours, whatever was done about that before; one that has gone is no error."""
    if work.dispatch.guest.adopted:
        with contextlib.suppress(GuestMissing):
            await adopt(work)


async def adopt(work: Work) -> None:
    """Mark somebody else's guest as ours, with the fence."""
    await work.driver.adopt(work.dispatch.guest)
    await work.driver.mark_fence(work.dispatch.instance_id, work.dispatch.fence)


async def remove(work: Work) -> None:
    """Leave nothing of the guest; an adopted one is given back, with the disks that it came with."""
    if work.dispatch.guest.adopted:
        await work.driver.release(work.dispatch.instance_id)
    else:
        await work.driver.remove(work.dispatch.instance_id)


async def define_rescue(work: Work) -> None:
    """Define the guest so that it boots from the rescue disk, and mark it with the fence."""
    await work.driver.define(work.dispatch.guest)
    await work.driver.mark_fence(work.dispatch.instance_id, work.dispatch.fence)


async def snapshot(work: Work) -> None:
    """Copy the disk into a file named after the image it is for."""
    await work.driver.snapshot(work.dispatch.guest, _image(work), quiesce=work.dispatch.quiesce)


async def publish_snapshot(work: Work) -> None:
    """Hand the copy to the image store."""
    await work.driver.publish_snapshot(_image(work))


async def save_if_on(work: Work) -> None:
    """Write the guest's memory to disk, if it has any: what was overtaken may have thrown it away."""
    guest = await look(work)
    if guest.observed in {Observed.RUNNING, Observed.PAUSED, Observed.CRASHED}:
        await work.driver.save_memory(work.dispatch.instance_id)


async def stand_down(work: Work) -> None:
    """Do nothing: that the step is reached says that nothing older acts on the instance."""


def _image(work: Work) -> str:
    if work.dispatch.snapshot is None:
        msg = f"operation {work.dispatch.operation_id} copies a disk and names no image"
        raise ValueError(msg)
    return work.dispatch.snapshot


async def return_kept_disk(work: Work) -> None:
    """Put the disk back as it was before the operation."""
    await work.driver.return_disk(work.dispatch.instance_id)


async def leave_rescue(work: Work) -> None:
    """Have the guest boot from its own disk again, and delete the rescue disk."""
    await work.driver.define(msgspec.structs.replace(work.dispatch.guest, rescue=None))
    await work.driver.discard_rescue_disk(work.dispatch.instance_id)


async def discard_copy(work: Work) -> None:
    """Delete the copy that becomes no image."""
    await work.driver.discard_snapshot(_image(work))


async def power_on(work: Work) -> None:
    """Start the guest; one that crashed, or hangs halted, is switched off first so that it can be."""
    guest = await look(work)
    if guest.observed in {Observed.CRASHED, Observed.PAUSED}:
        await work.driver.power_off(work.dispatch.instance_id)
    await work.driver.power_on(work.dispatch.instance_id)


def _simple(call: Callable[[Driver, str], Awaitable[None]]) -> Callable[[Work], Awaitable[None]]:
    async def run(work: Work) -> None:
        await call(work.driver, work.dispatch.instance_id)

    return run


def _with_fence(call: Callable[[Driver, str, int], Awaitable[None]]) -> Callable[[Work], Awaitable[None]]:
    async def run(work: Work) -> None:
        await call(work.driver, work.dispatch.instance_id, work.dispatch.fence)

    return run


def _with_spec(call: Callable[[Driver, GuestSpec], Awaitable[None]]) -> Callable[[Work], Awaitable[None]]:
    async def run(work: Work) -> None:
        await call(work.driver, work.dispatch.guest)

    return run


STEPS: dict[Step, Callable[[Work], Awaitable[None]]] = {
    Step.CHECK_IMAGE: _with_spec(lambda driver, spec: driver.check_image(spec)),
    Step.CHECK_RESCUE_IMAGE: _with_spec(lambda driver, spec: driver.check_rescue_image(spec)),
    Step.PREPARE_DISK: prepare_disk,
    Step.DEFINE: define,
    Step.POWER_ON: power_on,
    Step.SHUT_DOWN: shut_down,
    Step.POWER_OFF: _simple(lambda driver, instance_id: driver.power_off(instance_id)),
    Step.PAUSE: _simple(lambda driver, instance_id: driver.pause(instance_id)),
    Step.UNPAUSE: _simple(lambda driver, instance_id: driver.unpause(instance_id)),
    Step.SAVE_MEMORY: _simple(lambda driver, instance_id: driver.save_memory(instance_id)),
    Step.SAVE_IF_ON: save_if_on,
    Step.RESTORE_MEMORY: _simple(lambda driver, instance_id: driver.restore_memory(instance_id)),
    Step.DISCARD_MEMORY: _simple(lambda driver, instance_id: driver.discard_memory(instance_id)),
    Step.INJECT_NMI: _simple(lambda driver, instance_id: driver.inject_nmi(instance_id)),
    Step.REMOVE: remove,
    Step.DISCARD_DISK: _simple(lambda driver, instance_id: driver.discard_disk(instance_id)),
    Step.DISCARD_STALE_DISK: _with_spec(lambda driver, spec: driver.discard_stale_disk(spec)),
    Step.KEEP_DISK: _with_fence(lambda driver, instance_id, fence: driver.keep_disk(instance_id, fence)),
    Step.RETURN_DISK: _simple(lambda driver, instance_id: driver.return_disk(instance_id)),
    Step.DROP_KEPT_DISK: _with_fence(
        lambda driver, instance_id, fence: driver.drop_kept_disk(instance_id, fence)
    ),
    Step.GROW_DISK: _with_spec(lambda driver, spec: driver.grow_disk(spec)),
    Step.PREPARE_RESCUE_DISK: _with_spec(lambda driver, spec: driver.prepare_rescue_disk(spec)),
    Step.DEFINE_RESCUE: define_rescue,
    Step.DISCARD_RESCUE_DISK: _simple(lambda driver, instance_id: driver.discard_rescue_disk(instance_id)),
    Step.SNAPSHOT: snapshot,
    Step.PUBLISH_SNAPSHOT: publish_snapshot,
    Step.STAND_DOWN: stand_down,
    Step.ADOPT: adopt,
    Step.TAKE_BACK: take_back,
    Step.RELEASE: _simple(lambda driver, instance_id: driver.release(instance_id)),
}

#: What takes a step back whose operation failed, so that it leaves nothing behind; each does nothing when the step did
#: nothing. A kept disk is the failed operation's own: its steps drop an older one first.
UNDO: dict[Step, Callable[[Work], Awaitable[None]]] = {
    Step.KEEP_DISK: return_kept_disk,
    Step.PREPARE_RESCUE_DISK: leave_rescue,
    Step.SNAPSHOT: discard_copy,
}
