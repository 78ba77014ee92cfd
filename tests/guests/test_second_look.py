"""What a second look finds of real guests: processes, definitions, and what another connection says (B5)."""

from __future__ import annotations

import pytest

from stateward.domain.states import Observed
from stateward.domain.sweeps import Signal, Trace, signal
from tests.agent.contract import Rig
from tests.guests.conftest import NewSpec
from tests.guests.test_libvirt_qemu import start

pytestmark = pytest.mark.guests


async def test_a_second_look(rig: Rig, new_spec: NewSpec) -> None:
    """On, off and gone: each is told for certain, and confirms what is true and nothing else."""
    instance_id = await start(rig, new_spec)

    async def trace() -> Trace:
        return (await rig.driver.second_look((instance_id,)))[instance_id]

    on = await trace()
    assert on == Trace(process=True, defined=True, seen=Observed.RUNNING)
    await rig.driver.power_off(instance_id)
    off = await trace()
    assert off == Trace(process=False, defined=True, seen=Observed.SHUTOFF)
    await rig.driver.remove(instance_id)
    gone = await trace()
    assert gone == Trace(process=False, defined=False, seen=Observed.MISSING)
    for true, found in ((Observed.RUNNING, on), (Observed.SHUTOFF, off), (Observed.MISSING, gone)):
        says = {
            each: signal([(each, found)]) for each in (Observed.RUNNING, Observed.SHUTOFF, Observed.MISSING)
        }
        assert [each for each, word in says.items() if word is Signal.CONFIRMED] == [true]
        assert list(says.values()).count(Signal.CONTRADICTED) == 2
