"""Real guests that are told of themselves, are on a network, and have their flavor's disks."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import libvirt
import msgspec
import pytest

from stateward.agent.driver import DriverError
from stateward.agent.libvirt.daemons import LibvirtPlace
from stateward.domain.networks import Network, NetworkKind, ports_of
from stateward.domain.records import GuestSpec
from stateward.domain.seeds import Seed
from tests.agent.contract import UP, Rig

pytestmark = [pytest.mark.guests, pytest.mark.asyncio]

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA me@here"
SCRIPT = b"#!/bin/sh\necho said by the user of $(hostname)\nexit 3\n"


async def boot(rig: Rig, spec: GuestSpec) -> None:
    """Make a guest and start it."""
    await rig.driver.prepare_disk(spec)
    await rig.driver.define(spec)
    await rig.driver.power_on(spec.instance_id)


async def console(rig: Rig, instance_id: str) -> list[str]:
    """Return what a guest said."""
    return (await rig.driver.console(instance_id)).decode(errors="replace").splitlines()


async def test_a_guest_reads_what_it_is_told_and_has_the_address_that_is_shown(rig: Rig) -> None:
    """Its network is started for it; its disks have their sizes, and the root disk is the flavor's."""
    spec = rig.full_spec()
    seed = Seed(hostname="web", zone="nova", public_keys=(KEY,), user_data=base64.b64encode(SCRIPT).decode())
    await boot(rig, msgspec.structs.replace(spec, disk=1, seed=seed))
    instance_id = spec.instance_id
    await rig.console_says(instance_id, "stateward-guest: user data ended with 3")
    said = await console(rig, instance_id)
    for line in (
        *("stateward-guest: disk vda 1024 MiB", "stateward-guest: disk vdb 1024 MiB"),
        *("stateward-guest: disk vdc 8 MiB", "stateward-guest: hostname web"),
        *(f"stateward-guest: ssh key {KEY}", "said by the user of web"),
    ):
        assert said.count(line) == 1, (line, said)
    assert await uptimes(rig, instance_id) == []
    (address,) = (await rig.driver.addresses())[instance_id]
    assert address.mac == spec.ports[0].mac
    assert f"stateward-guest: address {address.address}" in said


async def test_a_guest_keeps_its_address_and_its_disks_over_a_hard_reboot(rig: Rig, tmp_path: Path) -> None:
    """The definition is made anew; the card is the same, and what was told anew is read."""
    spec = rig.full_spec()
    instance_id = spec.instance_id
    assert spec.seed is not None
    seed = msgspec.structs.replace(spec.seed, user_data=base64.b64encode(b"#!/bin/sh\n").decode())
    await boot(rig, msgspec.structs.replace(spec, seed=seed))
    await rig.console_says(instance_id, "stateward-guest: user data ended with 0")
    first = (await rig.driver.addresses())[instance_id]
    await rig.driver.power_off(instance_id)
    swap = tmp_path / "instances" / instance_id / "swap.raw"
    made = swap.stat().st_ino
    await rig.driver.define(
        msgspec.structs.replace(spec, seed=msgspec.structs.replace(seed, hostname="web2"))
    )
    await rig.driver.power_on(instance_id)
    await rig.console_says(instance_id, f"stateward-guest: address {first[0].address}", times=2)
    assert "stateward-guest: hostname web2" in await console(rig, instance_id)
    assert (await rig.driver.addresses())[instance_id] == first
    assert swap.stat().st_ino == made


async def test_a_guest_on_a_network_that_was_stopped_starts_it(
    rig: Rig, network: Network, operator: libvirt.virConnect
) -> None:
    """A restart of the host stops networks, and a guest that is off must come on all the same."""
    spec = rig.full_spec()
    await boot(rig, spec)
    await rig.driver.power_off(spec.instance_id)
    operator.networkLookupByName(network.source).destroy()
    await rig.driver.power_on(spec.instance_id)
    assert operator.networkLookupByName(network.source).isActive()


async def test_a_guest_on_qemus_own_network_has_an_address_and_needs_nothing(rig: Rig) -> None:
    """Also where libvirt's network was wanted if it can be had, and cannot."""
    spec = rig.full_spec()
    wanted = Network(name="default", kind=NetworkKind.AUTO, source="no-such-network")
    await boot(rig, msgspec.structs.replace(spec, ports=ports_of(spec.instance_id, [wanted])))
    await rig.console_says(spec.instance_id, "stateward-guest: address 10.0.2.15")
    assert await rig.driver.addresses() == {}


async def test_a_network_that_is_not_there_is_named(rig: Rig, place: LibvirtPlace) -> None:
    """With what to do about it."""
    spec = rig.full_spec()
    wanted = Network(name="lab", kind=NetworkKind.NAT, source="no-such-network")
    spec = msgspec.structs.replace(spec, ports=ports_of(spec.instance_id, [wanted]))
    await rig.driver.prepare_disk(spec)
    with pytest.raises(DriverError, match=r"libvirt has no network no-such-network\. Define it"):
        await rig.driver.define(spec)


async def test_a_guest_says_how_long_it_has_been_up_only_when_it_is_told_to(rig: Rig) -> None:
    """For tests of what a guest goes on with."""
    spec = rig.spec()
    properties = dict(spec.image.properties)
    properties["os_command_line"] += " stateward.uptime=1"
    image = msgspec.structs.replace(spec.image, properties=properties)
    await boot(rig, msgspec.structs.replace(spec, image=image))
    await rig.console_says(spec.instance_id, UP)
    async with asyncio.timeout(rig.patience):
        while len(await uptimes(rig, spec.instance_id)) < 3:  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.1)
    seen = await uptimes(rig, spec.instance_id)
    assert seen == sorted(set(seen))


async def uptimes(rig: Rig, instance_id: str) -> list[int]:
    """Return the seconds that a guest said it had been up."""
    begin = "stateward-guest: uptime "
    return [
        int(line.removeprefix(begin)) for line in await console(rig, instance_id) if line.startswith(begin)
    ]
