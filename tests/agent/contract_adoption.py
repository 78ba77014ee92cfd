"""The part of the driver contract that is about guests that somebody else made, as tests (``contract.py``)."""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec
import pytest

from stateward.agent.driver import DriverError, GuestMissing
from stateward.domain.states import Observed
from stateward.domain.strangers import Stranger
from tests.agent.contract import MISSING, RUNNING, Rig


class ByHand(Protocol):
    """An operator who makes guests without Stateward."""

    def make(self, *, autostart: bool = False, transient: bool = False) -> str:
        """Make a guest that runs, and return its id; where it can be said, it starts anew when it goes off."""
        ...

    def is_as_made(self, guest: str, *, autostart: bool) -> bool:
        """Say whether the hypervisor has of a guest, besides its state, what it was made with, and nothing of ours."""
        ...

    def life(self, guest: str) -> object:
        """Return what is another one after each boot of a guest."""
        ...


async def _stranger(rig: Rig, guest: str) -> Stranger | None:
    return next((each for each in await rig.driver.strangers(frozenset()) if each.id == guest), None)


@pytest.mark.asyncio
class AdoptionContract:
    """What every driver does; subclass it in a module with the fixtures ``rig`` and ``by_hand``."""

    async def test_strangers_are_described(self, rig: Rig, by_hand: ByHand) -> None:
        """What an instance needs is told of those who are not known; making them ours is no driver's decision."""
        ours = await rig.running()
        guest = by_hand.make(autostart=True)
        found = await _stranger(rig, guest)
        assert found is not None
        assert (found.vcpus, found.memory, found.observed) == (1, 64, Observed.RUNNING)
        assert (found.autostart, found.transient, found.mark, found.fence) == (True, False, None, 0)
        assert found.name
        assert [disk.device for disk in found.disks] == ["vda"]
        assert await rig.state(guest) == MISSING
        everybody = {each.id: each for each in await rig.driver.strangers(frozenset())}
        assert everybody[ours].mark is not None
        known = await rig.driver.strangers(frozenset({ours, guest}))
        assert {each.id for each in known} == set(everybody) - {ours, guest}

    async def test_what_is_not_ours_is_not_touched(self, rig: Rig, by_hand: ByHand) -> None:
        """By its id alone nobody gets at somebody else's guest."""
        guest = by_hand.make()
        life = by_hand.life(guest)
        await rig.driver.power_off(guest)
        await rig.driver.request_shutdown(guest)
        await rig.driver.mark_fence(guest, 5)
        await rig.driver.release(guest)
        with pytest.raises(GuestMissing):
            await rig.driver.pause(guest)
        assert by_hand.life(guest) == life
        assert by_hand.is_as_made(guest, autostart=False)

    async def test_adopted_and_given_back_while_it_runs(self, rig: Rig, by_hand: ByHand) -> None:
        """It runs on through both, each of which may be repeated, and is in the end what it was."""
        guest = by_hand.make(autostart=True)
        life = by_hand.life(guest)
        spec = msgspec.structs.replace(rig.spec(), instance_id=guest)
        for fence in (3, 4):
            await rig.driver.adopt(spec)
            await rig.driver.mark_fence(guest, fence)
        assert await rig.state(guest) == RUNNING
        assert (await rig.driver.get(guest)).fence == 4
        found = await _stranger(rig, guest)
        assert found is not None
        assert found.mark is not None
        assert (found.mark.project_id, found.mark.fence, found.autostart) == (spec.project_id, 4, False)
        for _ in range(2):
            await rig.driver.release(guest)
        assert await rig.state(guest) == MISSING
        assert by_hand.life(guest) == life
        assert by_hand.is_as_made(guest, autostart=True)

    async def test_an_adopted_one_is_handled_like_any_other(self, rig: Rig, by_hand: ByHand) -> None:
        """All that its definition and disks are not needed for; off, it stays off, and can be given back off."""
        guest = by_hand.make()
        await rig.driver.adopt(msgspec.structs.replace(rig.spec(), instance_id=guest))
        await rig.driver.pause(guest)
        assert (await rig.driver.get(guest)).observed is Observed.PAUSED
        await rig.driver.unpause(guest)
        await rig.driver.save_memory(guest)
        assert (await rig.driver.get(guest)).observed is Observed.SUSPENDED
        await rig.driver.restore_memory(guest)
        assert await rig.state(guest) == RUNNING
        await rig.driver.power_off(guest)
        assert (await rig.driver.get(guest)).observed is Observed.SHUTOFF
        with pytest.raises(DriverError, match="adopted"):
            await rig.driver.remove(guest)
        await rig.driver.power_on(guest)
        assert await rig.state(guest) == RUNNING
        await rig.driver.power_off(guest)
        await rig.driver.release(guest)
        found = await _stranger(rig, guest)
        assert found is not None
        assert (found.observed, found.mark) == (Observed.SHUTOFF, None)
        assert by_hand.is_as_made(guest, autostart=False)

    async def test_a_saved_one_is_adopted_and_given_back_saved(self, rig: Rig, by_hand: ByHand) -> None:
        """Its memory is started from afterwards, and it is whose it was then."""
        guest = by_hand.make()
        spec = msgspec.structs.replace(rig.spec(), instance_id=guest)
        await rig.driver.adopt(spec)
        await rig.driver.save_memory(guest)
        await rig.driver.release(guest)
        assert await rig.state(guest) == MISSING
        await rig.driver.adopt(spec)
        await rig.driver.restore_memory(guest)
        assert await rig.state(guest) == RUNNING
        await rig.driver.release(guest)
        assert by_hand.is_as_made(guest, autostart=False)

    async def test_one_that_would_be_forgotten_stays(self, rig: Rig, by_hand: ByHand) -> None:
        """Adopted, a guest is still there when it is off."""
        guest = by_hand.make(transient=True)
        life = by_hand.life(guest)
        found = await _stranger(rig, guest)
        assert found is not None
        assert found.transient
        await rig.driver.adopt(msgspec.structs.replace(rig.spec(), instance_id=guest))
        assert by_hand.life(guest) == life
        await rig.driver.power_off(guest)
        assert (await rig.driver.get(guest)).observed is Observed.SHUTOFF

    async def test_who_is_not_there_is_not_adopted(self, rig: Rig) -> None:
        """There is nothing to mark; and nothing to give back, which is no error."""
        spec = rig.spec()
        with pytest.raises(GuestMissing):
            await rig.driver.adopt(spec)
        await rig.driver.release(spec.instance_id)

    async def test_what_was_made_here_is_not_given_back(self, rig: Rig) -> None:
        """Its disk is ours, and would stay behind without anybody."""
        guest = await rig.running()
        with pytest.raises(DriverError, match="not adopted"):
            await rig.driver.release(guest)
        assert await rig.state(guest) == RUNNING

    async def test_two_adopt_at_once(self, rig: Rig, by_hand: ByHand) -> None:
        """One guest comes of it, which is given back as it was."""
        guest = by_hand.make(autostart=True)
        spec = msgspec.structs.replace(rig.spec(), instance_id=guest)
        await asyncio.gather(rig.driver.adopt(spec), rig.driver.adopt(spec))
        assert [each.instance_id for each in await rig.driver.list()] == [guest]
        await rig.driver.release(guest)
        assert by_hand.is_as_made(guest, autostart=True)
