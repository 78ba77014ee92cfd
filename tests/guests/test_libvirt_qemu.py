"""The libvirt driver on real QEMU guests: the contract, and what only real guests and a real libvirtd do."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest
from msgspec.structs import replace

from stateward.agent.driver import DriverError, HypervisorUnavailable
from stateward.agent.libvirt import driver as libvirt_driver, guests, xml
from stateward.agent.libvirt.access import runs_unmodified
from stateward.agent.libvirt.daemons import LibvirtPlace, own, stop_own
from stateward.agent.libvirt.driver import LibvirtDriver
from stateward.agent.libvirt.host import Accelerator
from stateward.agent.libvirt.pidfile import end
from stateward.domain.shutdown import Rung
from stateward.domain.states import Cause, Observed
from tests.agent.contract import PRESSED, RUNNING, SUSPENDED, UP, Changes, DriverContract, Rig
from tests.agent.contract_disks import DiskContract
from tests.guests.conftest import NewSpec, TinyImages

pytestmark = pytest.mark.guests

#: Seconds within which the calls of a guest must come back while another one hangs: before libvirt itself gives up
#: what waits for a guest (30 s), however busy the machine is.
BESIDE = 20.0

#: Dumps at most until one is seen: who watches has to be given the processor within a moment of it.
DUMPS = 10

IGNORED_ACPI = "stateward.acpi=ignore"


class TestContract(DriverContract):
    """The contract on real guests."""


class TestDisks(DiskContract):
    """What it says of disks."""


async def start(rig: Rig, new_spec: NewSpec, *arguments: str) -> str:
    """Make a guest with words for its kernel, and wait until it is up."""
    spec = new_spec(*arguments)
    await rig.driver.prepare_disk(spec)
    await rig.driver.define(spec)
    await rig.driver.power_on(spec.instance_id)
    await rig.console_says(spec.instance_id, UP)
    return spec.instance_id


async def agent_connected(operator: libvirt.virConnect, instance_id: str) -> None:
    """Wait until libvirt knows that the guest holds its end of the agent's channel."""
    domain = operator.lookupByUUIDString(instance_id)
    async with asyncio.timeout(Rig.patience):
        while not xml.agent_connected(domain.XMLDesc()):  # noqa: ASYNC110 - libvirt has no event for it
            await asyncio.sleep(0.02)


def process_of(folder: Path, instance_id: str) -> int:
    """Return the QEMU process of a guest of the tests' own libvirtd."""
    pid_file = folder / "host" / "run" / "qemu" / f"instance-{instance_id[:8]}.pid"
    return int(pid_file.read_text(encoding="ascii"))


@pytest.mark.asyncio
async def test_the_power_button_reaches_the_guest_and_its_console_says_so(rig: Rig) -> None:
    instance_id = await rig.ready()
    await rig.driver.request_shutdown(instance_id)
    assert (await rig.until(instance_id, Observed.SHUTOFF)).cause is Cause.GUEST
    for line in (PRESSED, "stateward-guest: shutting down", "stateward-guest: powered off"):
        assert await rig.said(instance_id, line) == 1


@pytest.mark.asyncio
async def test_a_guest_that_ignores_its_power_button_stays_on(rig: Rig, new_spec: NewSpec) -> None:
    instance_id = await start(rig, new_spec, IGNORED_ACPI)
    await rig.driver.request_shutdown(instance_id)
    await rig.console_says(instance_id, PRESSED)
    assert await rig.state(instance_id) == RUNNING


@pytest.mark.asyncio
async def test_a_guest_that_powers_itself_off_is_told_by_an_event(rig: Rig, new_spec: NewSpec) -> None:
    instance_id = await start(rig, new_spec, "stateward.poweroff_after=0")
    assert (await rig.until(instance_id, Observed.SHUTOFF)).cause is Cause.GUEST


@pytest.mark.asyncio
async def test_a_guest_whose_kernel_panics_has_crashed(rig: Rig, new_spec: NewSpec) -> None:
    instance_id = await start(rig, new_spec, "stateward.panic_after=0")
    assert (await rig.until(instance_id, Observed.SHUTOFF)).cause is Cause.CRASHED


@pytest.mark.asyncio
async def test_a_killed_qemu_is_no_shutdown_of_the_guests_own(rig: Rig, folder: Path) -> None:
    instance_id = await rig.running()
    os.kill(process_of(folder, instance_id), signal.SIGKILL)
    # libvirt waits, in steps of 0.2 s, until the host has buried the process.
    assert (await rig.until(instance_id, Observed.SHUTOFF)).cause is Cause.CRASHED


@pytest.mark.asyncio
async def test_an_agent_that_answers_is_asked_instead_of_the_button(
    rig: Rig, new_spec: NewSpec, operator: libvirt.virConnect, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How soon it answers is the machine's affair here; that a silent one is not waited for is said by the next test.
    monkeypatch.setattr(libvirt_driver, "_AGENT_SECONDS", Rig.patience)
    instance_id = await start(rig, new_spec, "stateward.agent=answer", IGNORED_ACPI)
    await agent_connected(operator, instance_id)
    assert await rig.driver.request_shutdown(instance_id) is Rung.AGENT
    assert (await rig.until(instance_id, Observed.SHUTOFF)).cause is Cause.GUEST
    assert await rig.said(instance_id, "stateward-guest: agent asked to shut down") == 1
    assert await rig.said(instance_id, PRESSED) == 0


@pytest.mark.asyncio
async def test_an_agent_that_does_not_answer_is_waited_for_once_and_not_to_the_end(
    rig: Rig, new_spec: NewSpec, operator: libvirt.virConnect, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance_id = await start(rig, new_spec, "stateward.agent=mute", IGNORED_ACPI)
    await agent_connected(operator, instance_id)
    asked: list[str] = []
    ask, over = guests.ask_agent, threading.Event()

    def never_answered(connection: libvirt.virConnect, instance_id: str) -> None:
        asked.append(instance_id)
        try:
            ask(connection, instance_id)
        finally:
            # libvirt gives the question up in the end; here not before the test has seen what is done meanwhile.
            over.wait()

    monkeypatch.setattr(guests, "ask_agent", never_answered)
    began = asyncio.get_running_loop().time()
    try:
        assert await rig.driver.request_shutdown(instance_id) is Rung.POWER_BUTTON
        assert asyncio.get_running_loop().time() - began >= 2
        await rig.console_says(instance_id, PRESSED)
        # The first question is still open; the second press neither waits for it nor asks again.
        assert await rig.driver.request_shutdown(instance_id) is Rung.POWER_BUTTON
        await rig.console_says(instance_id, PRESSED, times=2)
    finally:
        over.set()
    assert asked == [instance_id]


@pytest.mark.asyncio
async def test_what_is_done_behind_our_back_is_told(rig: Rig, operator: libvirt.virConnect) -> None:
    """By an event: the driver looks at nothing by itself. ``test_behind_our_back`` measures how fast (B8)."""
    instance_id = await rig.running()
    await rig.driver.list()
    domain = operator.lookupByUUIDString(instance_id)
    steps: tuple[tuple[Callable[[], int], tuple[Observed, Cause]], ...] = (
        (domain.suspend, (Observed.PAUSED, Cause.OPERATOR)),
        (domain.resume, RUNNING),
        (domain.managedSave, SUSPENDED),
        (domain.create, RUNNING),
        (domain.destroy, (Observed.SHUTOFF, Cause.DESTROYED)),
        (domain.create, RUNNING),
    )
    for step, state in steps:
        count = len(rig.changes.seen)
        await asyncio.to_thread(step)
        async with asyncio.timeout(rig.patience):
            while True:
                seen = len(rig.changes.seen)
                # As "look at all" where the event of its definition came late: it is not known then.
                told = not {instance_id, None}.isdisjoint(rig.changes.seen[count:])
                if told and await rig.state(instance_id) == state:
                    break
                await rig.changes.after(seen)


@pytest.mark.asyncio
async def test_a_restored_guest_goes_on_where_it_was(rig: Rig) -> None:
    instance_id = await rig.ready()
    await rig.driver.save_memory(instance_id)
    await rig.driver.restore_memory(instance_id)
    await rig.driver.request_shutdown(instance_id)
    await rig.until(instance_id, Observed.SHUTOFF)
    assert await rig.said(instance_id, UP) == 1
    assert await rig.said(instance_id, PRESSED) == 1


@pytest.mark.asyncio
async def test_a_memory_in_a_file_of_somebody_s_is_not_one_that_was_removed(
    rig: Rig, operator: libvirt.virConnect, folder: Path
) -> None:
    """After either libvirt says the same of the guest: off by a save, and no memory there."""
    instance_id = await rig.running()
    domain, file = operator.lookupByUUIDString(instance_id), folder / f"memory-{instance_id}"

    async def seen() -> set[tuple[Observed, Cause]]:
        (listed,) = [each for each in await rig.driver.list() if each.instance_id == instance_id]
        return {await rig.state(instance_id), (listed.observed, listed.cause)}

    for _ in range(2):
        await asyncio.to_thread(domain.save, str(file))
        assert await seen() == {(Observed.SHUTOFF, Cause.SAVED)}
        await asyncio.to_thread(operator.restore, str(file))
        assert await seen() == {RUNNING}
        # What libvirt keeps is removed by somebody, or by us.
        await asyncio.to_thread(domain.managedSave)
        assert await seen() == {SUSPENDED}
        domain.managedSaveRemove()
        assert await seen() == {(Observed.SHUTOFF, Cause.OTHER)}
        await rig.driver.power_on(instance_id)
        assert await seen() == {RUNNING}
        await asyncio.to_thread(domain.managedSave)
        await rig.driver.discard_memory(instance_id)
        assert await seen() == {(Observed.SHUTOFF, Cause.OTHER)}
        await rig.driver.power_on(instance_id)
        assert await seen() == {RUNNING}
    file.unlink()


@pytest.mark.asyncio
async def test_a_guest_that_is_dumped_is_halted_for_a_while(
    rig: Rig, operator: libvirt.virConnect, place: LibvirtPlace, folder: Path
) -> None:
    """It is being written to a file, which nobody may fight."""
    instance_id = await rig.running()
    domain, file = operator.lookupByUUIDString(instance_id), folder / f"dump-{instance_id}"
    process = process_of(folder, instance_id)

    def halted(ready: threading.Event, over: threading.Event) -> bool:
        """Stop QEMU while it dumps; False when that was over too soon."""
        watcher = libvirt.open(place.uri)
        try:
            watched = watcher.lookupByUUIDString(instance_id)
            ready.set()
            while watched.state()[0] != libvirt.VIR_DOMAIN_PAUSED:
                if over.is_set():
                    return False
            # It takes a moment only, which lasts while QEMU itself stands still.
            os.kill(process, signal.SIGSTOP)
            return watched.state()[0] == libvirt.VIR_DOMAIN_PAUSED
        finally:
            watcher.close()

    async def seen() -> bool:
        """Dump, and look at the guest meanwhile; False when it was not stopped in time for that."""
        ready, over = threading.Event(), threading.Event()
        seeing = asyncio.create_task(asyncio.to_thread(halted, ready, over))
        await asyncio.to_thread(ready.wait)
        dumping = asyncio.create_task(asyncio.to_thread(domain.coreDump, str(file), 0))
        dumping.add_done_callback(lambda _: over.set())
        stopped = await seeing
        try:
            if stopped:
                assert await rig.state(instance_id) == (Observed.PAUSED, Cause.SAVED)
        finally:
            os.kill(process, signal.SIGCONT)
            await dumping
        assert await rig.state(instance_id) == RUNNING
        file.unlink()
        return stopped

    for _ in range(DUMPS):
        if await seen():
            return
    pytest.fail(f"no look at the guest fell into one of {DUMPS} dumps")


@pytest.mark.asyncio
async def test_a_disk_keeps_what_the_guest_wrote(rig: Rig) -> None:
    instance_id = await rig.ready()
    await rig.driver.power_off(instance_id)
    await rig.driver.power_on(instance_id)
    await rig.console_says(instance_id, "stateward-guest: boot 2")


@pytest.mark.asyncio
async def test_a_guest_that_hangs_holds_up_no_other(rig: Rig, folder: Path) -> None:
    stuck, other = await rig.running(), await rig.running()
    process = process_of(folder, stuck)
    os.kill(process, signal.SIGSTOP)
    saving = asyncio.create_task(rig.driver.save_memory(stuck))
    try:
        for _ in range(3):
            async with asyncio.timeout(BESIDE):
                await rig.driver.pause(other)
                await rig.driver.unpause(other)
                assert await rig.state(other) == RUNNING
                await rig.driver.list()
        assert not saving.done()
    finally:
        os.kill(process, signal.SIGCONT)
        await saving
    assert await rig.state(stuck) == SUSPENDED


@pytest.mark.asyncio
async def test_a_save_that_somebody_else_began_counts(
    rig: Rig, place: LibvirtPlace, folder: Path, images: TinyImages, tmp_path: Path
) -> None:
    """An agent was killed while libvirt saved; the next one asks for the same, and has it when the first one ends."""
    instance_id = await rig.running()
    process = process_of(folder, instance_id)
    later = LibvirtDriver(uri=place.uri, folder=tmp_path, images=images)
    await later.open(Changes())
    # Both wait for QEMU, the second for its turn.
    os.kill(process, signal.SIGSTOP)
    try:
        first = asyncio.create_task(rig.driver.save_memory(instance_id))
        await asyncio.sleep(0.2)
        second = asyncio.create_task(later.save_memory(instance_id))
        await asyncio.sleep(0.2)
    finally:
        os.kill(process, signal.SIGCONT)
    await asyncio.gather(first, second)
    assert await rig.state(instance_id) == SUSPENDED
    await later.close()


@pytest.mark.asyncio
async def test_guests_live_through_a_restart_of_libvirtd(rig: Rig, place: LibvirtPlace, folder: Path) -> None:
    running, killed, saved = [await rig.running() for _ in range(3)]
    await rig.driver.mark_fence(running, 4)
    await rig.driver.save_memory(saved)
    lost = asyncio.Event()

    async def ask() -> None:
        while not lost.is_set():
            try:
                await rig.driver.list()
            except HypervisorUnavailable:
                lost.set()

    asking = asyncio.create_task(ask())
    now = await own(folder / "host")
    # Until it is gone: who looked at once would find it still there, and start none.
    await end(now.started[1], signal.SIGKILL)
    async with asyncio.timeout(rig.patience):
        await lost.wait()
    await asking
    os.kill(process_of(folder, killed), signal.SIGKILL)
    count = len(rig.changes.seen)
    assert (await own(folder / "host")).uri == place.uri
    async with asyncio.timeout(rig.patience):
        while None not in rig.changes.seen[count:]:
            await rig.changes.after(len(rig.changes.seen))
    assert await rig.state(running) == RUNNING
    assert (await rig.driver.get(running)).fence == 4
    assert await rig.state(saved) == SUSPENDED
    # libvirtd looks after each guest's process only when it answers already, and tells what it found.
    assert (await rig.until(killed, Observed.SHUTOFF)).cause is Cause.CRASHED
    await rig.driver.power_off(running)
    # Whose doing that was is libvirtd's to say, which may still be finding its guests and then takes it for its own.
    assert (await rig.state(running))[0] is Observed.SHUTOFF


@pytest.mark.asyncio
async def test_a_libvirtd_of_its_own_sees_its_own_guests_only(
    rig: Rig, folder: Path, images: TinyImages, new_spec: NewSpec, tmp_path: Path
) -> None:
    here = await rig.running()
    place = await own(folder / "second")
    driver = LibvirtDriver(uri=place.uri, folder=tmp_path / "second", images=images)
    await driver.open(Changes())
    try:
        there = Rig(driver=driver, changes=Changes(), spec=new_spec)
        instance_id = await there.running()
        assert await there.state(here) == (Observed.MISSING, Cause.OTHER)
        assert await rig.state(instance_id) == (Observed.MISSING, Cause.OTHER)
    finally:
        await driver.close()
        await stop_own(folder / "second")
    assert await rig.state(here) == RUNNING


@pytest.mark.asyncio
async def test_qemu_can_run_as_the_owner_of_the_data_folder(
    place: LibvirtPlace, folder: Path, images: TinyImages, new_spec: NewSpec
) -> None:
    # Not under pytest's folders: they are root's alone, and every session that starts makes them so again.
    private = folder / "private"
    private.mkdir(mode=0o700)
    os.chown(private, 65534, 65534)
    # libvirt refuses a file to a second user while a guest of the first has it: these are nobody else's.
    store = folder / "private-images"
    store.mkdir()
    changes = Changes()
    driver = LibvirtDriver(
        uri=place.uri, folder=private, images=TinyImages(images.files, store), run_as="+65534:+65534"
    )
    await driver.open(changes)
    rig = Rig(driver=driver, changes=changes, spec=new_spec)
    instance_id = await rig.ready()
    assert Path(f"/proc/{process_of(folder, instance_id)}").stat().st_uid == 65534
    await driver.save_memory(instance_id)
    await driver.restore_memory(instance_id)
    await driver.snapshot(replace(new_spec(), instance_id=instance_id), "copy", quiesce=False)
    await driver.request_shutdown(instance_id)
    await rig.until(instance_id, Observed.SHUTOFF)
    await driver.remove(instance_id)
    await driver.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("accelerator", [Accelerator.TCG])
async def test_guests_boot_without_hardware_support(rig: Rig, operator: libvirt.virConnect) -> None:
    instance_id = await rig.ready()
    assert "<domain type='qemu'" in operator.lookupByUUIDString(instance_id).XMLDesc()


@pytest.mark.asyncio
@pytest.mark.parametrize("accelerator", [Accelerator.KVM])
async def test_kvm_is_used_or_refused_as_libvirt_says(rig: Rig, operator: libvirt.virConnect) -> None:
    """A guest boots where the processor has virtualization; a KVM without it runs none that is not made for it."""
    try:
        operator.getDomainCapabilities(None, None, None, "kvm")
    except libvirt.libvirtError:
        with pytest.raises(DriverError, match="/dev/kvm"):
            await rig.defined()
        return
    instance_id = await (rig.ready() if runs_unmodified() else rig.defined())
    assert "<domain type='kvm'" in operator.lookupByUUIDString(instance_id).XMLDesc()
