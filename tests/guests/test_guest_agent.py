"""Debian's qemu-guest-agent in a real guest, and one that never answers."""

from __future__ import annotations

import asyncio
import hashlib

import libvirt
import pytest

from stateward.agent.driver import AgentSilent, DriverError
from stateward.agent.libvirt import driver, inside
from stateward.domain.records import GuestSpec
from stateward.domain.states import Cause, Observed
from tests.agent.contract import Rig
from tests.guests.conftest import NewSpec

pytestmark = [pytest.mark.guests, pytest.mark.asyncio]

#: Questions to an agent that never answers: so many in a row during which all else is done, of so many at most.
TWICE, ROUNDS = 2, 6


async def boot(rig: Rig, spec: GuestSpec) -> str:
    """Bring a guest up."""
    await rig.driver.prepare_disk(spec)
    await rig.driver.define(spec)
    await rig.driver.power_on(spec.instance_id)
    await rig.console_says(spec.instance_id, "stateward-guest: up")
    return spec.instance_id


async def test_debians_agent_does_what_it_is_asked(
    rig: Rig, agent_spec: GuestSpec, operator: libvirt.virConnect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A password is set, one of nobody's refused; file systems are frozen and thawed; it shuts the guest down."""
    # How soon it answers is the machine's affair here.
    monkeypatch.setattr(inside, "LIMIT_SECONDS", 60)
    monkeypatch.setattr(driver, "_AGENT_SECONDS", 60.0)
    instance_id = await boot(rig, agent_spec)
    password = "correct horse: battery"
    await rig.driver.set_password(instance_id, "root", password)
    digest = hashlib.sha256(password.encode()).hexdigest()
    await rig.console_says(instance_id, f"stateward-guest: password of root set, SHA-256 {digest}")
    with pytest.raises(DriverError, match="The agent inside the guest refused") as refusal:
        await rig.driver.set_password(instance_id, "nobody", "opensesame")
    assert "opensesame" not in str(refusal.value)
    assert password.encode() not in await rig.driver.console(instance_id)

    domain = operator.lookupByUUIDString(instance_id)
    addresses = await asyncio.to_thread(
        domain.interfaceAddresses, libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT
    )
    assert "lo" in addresses
    assert await asyncio.to_thread(domain.fsFreeze) == 1
    await rig.console_says(instance_id, "stateward-guest: file systems: freeze")
    assert await asyncio.to_thread(domain.fsThaw) == 1
    await rig.console_says(instance_id, "stateward-guest: file systems: thaw")

    await rig.driver.request_shutdown(instance_id)
    assert (await rig.until(instance_id, Observed.SHUTOFF)).cause is Cause.GUEST
    assert await rig.said(instance_id, "stateward-guest: agent asked to shut down") == 1
    assert await rig.said(instance_id, "stateward-guest: power button pressed") == 0


async def test_a_mute_agent_holds_nobody_up(rig: Rig, new_spec: NewSpec) -> None:
    """It holds its channel and never answers: that is told within seconds, every time, and nothing else waits."""
    instance_id = await boot(rig, new_spec("stateward.agent=mute"))
    in_a_row = 0
    for _ in range(ROUNDS):
        asking = asyncio.create_task(rig.driver.set_password(instance_id, "root", "secret"))
        await asyncio.sleep(0.5)
        assert (await rig.driver.diagnostics(instance_id)).state is Observed.RUNNING
        await rig.driver.pause(instance_id)
        await rig.driver.unpause(instance_id)
        # They went before it. libvirt gives it up after 5 s, whatever limit it is told, and a machine that stalls may
        # not come to all of this in that time; who waits for the agent does not come to it any time.
        in_a_row = 0 if asking.done() else in_a_row + 1
        async with asyncio.timeout(rig.patience):
            with pytest.raises(AgentSilent):
                await asking
        if in_a_row == TWICE:
            break
    assert in_a_row == TWICE
    await rig.driver.power_off(instance_id)
    assert await rig.state(instance_id) == (Observed.SHUTOFF, Cause.DESTROYED)
