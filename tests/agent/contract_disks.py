"""What the driver contract says of disks, as tests: every driver passes them all; see ``contract``.

Bytes are looked at where there are some, by each driver's own tests.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable

import pytest
from msgspec.structs import replace

from stateward.agent.driver import Driver, DriverError, GuestMissing
from stateward.domain.records import GuestSpec
from stateward.domain.states import Observed
from tests.agent.contract import DESTROYED, MISSING, PAUSED, RUNNING, SUSPENDED, Rig

Call = Callable[[Driver, GuestSpec, str], Awaitable[None]]

#: What is no error where nothing is there: a spec nobody used, and the id of an image nobody made.
NEEDS_NOTHING: dict[str, Call] = {
    "return_disk": lambda driver, spec, _: driver.return_disk(spec.instance_id),
    "drop_kept_disk": lambda driver, spec, _: driver.drop_kept_disk(spec.instance_id, 2),
    "discard_disk": lambda driver, spec, _: driver.discard_disk(spec.instance_id),
    "discard_stale_disk": lambda driver, spec, _: driver.discard_stale_disk(spec),
    "discard_rescue_disk": lambda driver, spec, _: driver.discard_rescue_disk(spec.instance_id),
    "discard_snapshot": lambda driver, _, image: driver.discard_snapshot(image),
}
NEEDS_A_DISK: dict[str, Call] = {
    "keep_disk": lambda driver, spec, _: driver.keep_disk(spec.instance_id, 1),
    "grow_disk": lambda driver, spec, _: driver.grow_disk(spec),
    "snapshot": lambda driver, spec, image: driver.snapshot(spec, image, quiesce=False),
}
#: What touches a disk that must not be in use.
NEEDS_IT_OFF: dict[str, Call] = {
    "keep_disk": lambda driver, spec, _: driver.keep_disk(spec.instance_id, 1),
    "grow_disk": lambda driver, spec, _: driver.grow_disk(replace(spec, disk=spec.disk + 1)),
    "discard_disk": lambda driver, spec, _: driver.discard_disk(spec.instance_id),
    "discard_stale_disk": lambda driver, spec, _: driver.discard_stale_disk(of_another_image(spec)),
    "discard_rescue_disk": lambda driver, spec, _: driver.discard_rescue_disk(spec.instance_id),
}


def of_another_image(spec: GuestSpec) -> GuestSpec:
    """Make a spec of the same instance that is made from another image, which nobody made."""
    return replace(spec, image=replace(spec.image, id=str(uuid.uuid4())))


async def defined(rig: Rig) -> GuestSpec:
    """Make a guest that is off."""
    spec = rig.spec()
    await rig.driver.prepare_disk(spec)
    await rig.driver.define(spec)
    return spec


async def boots(rig: Rig, spec: GuestSpec) -> None:
    """Define a guest and have it on for a moment."""
    await rig.driver.define(spec)
    await rig.driver.power_on(spec.instance_id)
    assert await rig.state(spec.instance_id) == RUNNING
    await rig.driver.power_off(spec.instance_id)


@pytest.mark.asyncio
class DiskContract:
    """What every driver does with disks; subclass it in a test module that has a fixture ``rig``."""

    @pytest.mark.parametrize("name", NEEDS_NOTHING)
    async def test_what_is_so_without_a_disk_is_no_error(self, rig: Rig, name: str) -> None:
        """Returned, dropped and discarded is what nothing already is."""
        spec = rig.spec()
        await NEEDS_NOTHING[name](rig.driver, spec, str(uuid.uuid4()))
        assert await rig.state(spec.instance_id) == MISSING

    @pytest.mark.parametrize("name", NEEDS_A_DISK)
    async def test_what_needs_a_disk_says_that_there_is_none(self, rig: Rig, name: str) -> None:
        """In a sentence, and not as if it were the guest that is missing."""
        with pytest.raises(DriverError, match="not there") as refusal:
            await NEEDS_A_DISK[name](rig.driver, replace(rig.spec(), disk=1), str(uuid.uuid4()))
        assert not isinstance(refusal.value, GuestMissing)

    @pytest.mark.parametrize("name", NEEDS_IT_OFF)
    async def test_a_disk_in_use_is_not_touched(self, rig: Rig, name: str) -> None:
        """Neither of a running guest nor of a paused one, and nothing is changed."""
        spec = await defined(rig)
        await rig.driver.power_on(spec.instance_id)
        with pytest.raises(DriverError, match=" is "):
            await NEEDS_IT_OFF[name](rig.driver, spec, "")
        assert await rig.state(spec.instance_id) == RUNNING
        await rig.driver.pause(spec.instance_id)
        with pytest.raises(DriverError, match=" is "):
            await NEEDS_IT_OFF[name](rig.driver, spec, "")
        assert await rig.state(spec.instance_id) == PAUSED

    async def test_a_kept_disk_comes_back(self, rig: Rig) -> None:
        """Over each call made twice, and a disk that grew or was made anew meanwhile; the guest boots after."""
        spec = await defined(rig)
        for _ in range(2):
            await rig.driver.keep_disk(spec.instance_id, 1)
        await rig.driver.grow_disk(replace(spec, disk=spec.disk + 1))
        await rig.driver.discard_disk(spec.instance_id)
        for _ in range(2):
            await rig.driver.return_disk(spec.instance_id)
        await boots(rig, spec)

    async def test_what_is_kept_does_not_matter_to_a_guest_that_is_on(self, rig: Rig) -> None:
        """Kept already, it is so; dropped, the disk in use stays."""
        spec = await defined(rig)
        await rig.driver.keep_disk(spec.instance_id, 1)
        await rig.driver.power_on(spec.instance_id)
        await rig.driver.keep_disk(spec.instance_id, 1)
        with pytest.raises(DriverError, match=" is "):
            await rig.driver.return_disk(spec.instance_id)
        for _ in range(2):
            await rig.driver.drop_kept_disk(spec.instance_id, 2)
        await rig.driver.return_disk(spec.instance_id)
        assert await rig.state(spec.instance_id) == RUNNING

    async def test_an_operation_knows_the_disk_that_it_kept(self, rig: Rig) -> None:
        """Dropping before it keeps, and keeping, done again later leave its own, though the guest is on by then."""
        spec = await defined(rig)
        await rig.driver.keep_disk(spec.instance_id, 1)
        await rig.driver.grow_disk(replace(spec, disk=1))
        for _ in range(2):
            await rig.driver.drop_kept_disk(spec.instance_id, 2)
            await rig.driver.keep_disk(spec.instance_id, 2)
            await rig.driver.grow_disk(replace(spec, disk=2))
            await rig.driver.power_on(spec.instance_id)
        # Another operation's is not its own; a later one's is not its to drop.
        with pytest.raises(DriverError, match=" is "):
            await rig.driver.keep_disk(spec.instance_id, 3)
        await rig.driver.drop_kept_disk(spec.instance_id, 1)
        await rig.driver.power_off(spec.instance_id)
        await rig.driver.return_disk(spec.instance_id)
        await rig.driver.power_on(spec.instance_id)
        # It has the size that it had when it was kept: on, it cannot be made larger.
        await rig.driver.grow_disk(replace(spec, disk=1))
        with pytest.raises(DriverError, match=" is "):
            await rig.driver.grow_disk(replace(spec, disk=2))

    async def test_a_disk_grows_and_never_shrinks(self, rig: Rig) -> None:
        """Wanting less, or what is there, changes nothing, whether the guest is on or off."""
        spec = await defined(rig)
        for disk in (2, 2, 1, 0):
            await rig.driver.grow_disk(replace(spec, disk=disk))
        await rig.driver.power_on(spec.instance_id)
        await rig.driver.grow_disk(replace(spec, disk=2))
        with pytest.raises(DriverError, match=" is "):
            await rig.driver.grow_disk(replace(spec, disk=3))

    @pytest.mark.parametrize("step", ["check_image", "check_rescue_image"])
    async def test_an_image_is_looked_at_while_the_guest_runs(self, rig: Rig, step: str) -> None:
        """Good or not there, nothing happens to the guest; and there need not be one."""
        spec = await defined(rig)
        spec = replace(spec, rescue=spec.image)
        await rig.driver.power_on(spec.instance_id)
        missing = replace(spec.image, id=str(uuid.uuid4()))
        no_image = replace(spec, **{"image" if step == "check_image" else "rescue": missing})
        for wanted in (spec, replace(rig.spec(), rescue=spec.image)):
            for _ in range(2):
                await getattr(rig.driver, step)(wanted)
        with pytest.raises(DriverError, match="no image"):
            await getattr(rig.driver, step)(no_image)
        assert await rig.state(spec.instance_id) == RUNNING

    async def test_an_image_to_rescue_with_must_be_named(self, rig: Rig) -> None:
        """Said before anything is shut down for it."""
        with pytest.raises(DriverError, match="no image to rescue it with"):
            await rig.driver.check_rescue_image(rig.spec())

    async def test_a_discarded_disk_is_made_anew(self, rig: Rig) -> None:
        """Without one the guest is not defined; the guest itself stays known."""
        spec = await defined(rig)
        for _ in range(2):
            await rig.driver.discard_disk(spec.instance_id)
        assert (await rig.state(spec.instance_id))[0] is Observed.SHUTOFF
        with pytest.raises(DriverError, match="not there"):
            await rig.driver.define(spec)
        await rig.driver.prepare_disk(spec)
        await boots(rig, spec)

    async def test_a_disk_of_another_image_is_discarded(self, rig: Rig) -> None:
        """One of the same image stays, whatever was done with it: the guest may have written to it since."""
        spec = await defined(rig)
        await rig.driver.keep_disk(spec.instance_id, 1)
        await rig.driver.grow_disk(replace(spec, disk=spec.disk + 1))
        await rig.driver.power_on(spec.instance_id)
        await rig.driver.discard_stale_disk(spec)
        assert await rig.state(spec.instance_id) == RUNNING
        await rig.driver.power_off(spec.instance_id)
        await rig.driver.discard_stale_disk(spec)
        await rig.driver.define(spec)
        image_id = str(uuid.uuid4())
        await rig.driver.snapshot(spec, image_id, quiesce=False)
        await rig.driver.publish_snapshot(image_id)
        copy = replace(spec, image=replace(spec.image, id=image_id, disk_format="qcow2"))
        for _ in range(2):
            await rig.driver.discard_stale_disk(copy)
            with pytest.raises(DriverError, match="not there"):
                await rig.driver.define(copy)
        await rig.driver.prepare_disk(copy)
        await rig.driver.discard_stale_disk(copy)
        await boots(rig, copy)

    async def test_rescue_and_back(self, rig: Rig) -> None:
        """A guest boots from its rescue disk, and from its own again when that is gone."""
        spec = await defined(rig)
        rescued = replace(spec, rescue=spec.image)
        with pytest.raises(DriverError, match="not there"):
            await rig.driver.define(rescued)
        with pytest.raises(DriverError, match="no image"):
            await rig.driver.prepare_rescue_disk(spec)
        for _ in range(2):
            await rig.driver.prepare_rescue_disk(rescued)
        await rig.driver.define(rescued)
        await boots(rig, rescued)
        await rig.driver.define(spec)
        for _ in range(2):
            await rig.driver.discard_rescue_disk(spec.instance_id)
        with pytest.raises(DriverError, match="not there"):
            await rig.driver.define(rescued)
        await boots(rig, spec)

    @pytest.mark.parametrize("saved", [False, True], ids=["off", "suspended"])
    async def test_a_snapshot_becomes_an_image_that_boots(self, rig: Rig, saved: bool) -> None:  # noqa: FBT001 (a parameter)
        """Of a guest without power; each call may be repeated, and an image that has its data keeps them."""
        spec, image_id = await defined(rig), str(uuid.uuid4())
        if saved:
            await rig.driver.power_on(spec.instance_id)
            await rig.driver.save_memory(spec.instance_id)
        before = await rig.state(spec.instance_id)
        for _ in range(2):
            await rig.driver.snapshot(spec, image_id, quiesce=True)
        for _ in range(2):
            await rig.driver.publish_snapshot(image_id)
        await rig.driver.discard_snapshot(image_id)
        assert await rig.state(spec.instance_id) == before
        await self._boots_from(rig, image_id)

    @pytest.mark.parametrize("state", [RUNNING, PAUSED], ids=["running", "paused"])
    async def test_a_guest_that_is_on_is_copied_where_that_can_be(
        self, rig: Rig, state: tuple[Observed, object]
    ) -> None:
        """It stays as it is; a driver that cannot says so, and nothing comes of it."""
        spec, image_id = await defined(rig), str(uuid.uuid4())
        await rig.driver.power_on(spec.instance_id)
        if state == PAUSED:
            await rig.driver.pause(spec.instance_id)
        if not rig.driver.capabilities.live_snapshot:
            with pytest.raises(DriverError, match="is on"):
                await rig.driver.snapshot(spec, image_id, quiesce=False)
            with pytest.raises(DriverError):
                await rig.driver.publish_snapshot(image_id)
            return
        for _ in range(2):
            await rig.driver.snapshot(spec, image_id, quiesce=False)
            assert await rig.state(spec.instance_id) == state
        await rig.driver.publish_snapshot(image_id)
        await self._boots_from(rig, image_id)

    async def test_nobody_freezes_a_guest_without_an_agent(self, rig: Rig) -> None:
        """Said in a sentence; nothing comes of it, and the guest runs on."""
        spec, image_id = await defined(rig), str(uuid.uuid4())
        await rig.driver.power_on(spec.instance_id)
        with pytest.raises(DriverError, match="agent" if rig.driver.capabilities.live_snapshot else "is on"):
            await rig.driver.snapshot(spec, image_id, quiesce=True)
        with pytest.raises(DriverError):
            await rig.driver.publish_snapshot(image_id)
        assert await rig.state(spec.instance_id) == RUNNING

    async def test_a_discarded_snapshot_is_published_no_more(self, rig: Rig) -> None:
        """The image store is told of nothing that is not there."""
        spec, image_id = await defined(rig), str(uuid.uuid4())
        await rig.driver.snapshot(spec, image_id, quiesce=False)
        for _ in range(2):
            await rig.driver.discard_snapshot(image_id)
        with pytest.raises(DriverError):
            await rig.driver.publish_snapshot(image_id)

    async def test_a_removed_instance_leaves_its_snapshot(self, rig: Rig) -> None:
        """A copy is an image to be; neither a kept disk nor a rescue disk stays, though."""
        spec, image_id = await defined(rig), str(uuid.uuid4())
        await rig.driver.prepare_rescue_disk(replace(spec, rescue=spec.image))
        await rig.driver.keep_disk(spec.instance_id, 1)
        await rig.driver.snapshot(spec, image_id, quiesce=False)
        await rig.driver.power_on(spec.instance_id)
        await rig.driver.power_off(spec.instance_id)
        assert await rig.state(spec.instance_id) == DESTROYED
        await rig.driver.remove(spec.instance_id)
        await rig.driver.publish_snapshot(image_id)
        await rig.driver.prepare_disk(spec)
        with pytest.raises(DriverError, match="not there"):
            await rig.driver.define(replace(spec, rescue=spec.image))
        await rig.driver.return_disk(spec.instance_id)
        await boots(rig, spec)

    async def test_a_suspended_guest_keeps_its_memory_over_a_snapshot(self, rig: Rig) -> None:
        """Its disk is read and nothing else."""
        spec, image_id = await defined(rig), str(uuid.uuid4())
        await rig.driver.power_on(spec.instance_id)
        await rig.driver.save_memory(spec.instance_id)
        await rig.driver.snapshot(spec, image_id, quiesce=False)
        assert await rig.state(spec.instance_id) == SUSPENDED
        await rig.driver.restore_memory(spec.instance_id)
        assert await rig.state(spec.instance_id) == RUNNING

    @staticmethod
    async def _boots_from(rig: Rig, image_id: str) -> None:
        spec = rig.spec()
        image = replace(spec.image, id=image_id, disk_format="qcow2")
        spec = replace(spec, image=image)
        await rig.driver.prepare_disk(spec)
        await boots(rig, spec)
