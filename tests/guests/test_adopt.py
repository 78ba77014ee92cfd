"""A guest that somebody made with libvirt's own tools: adopted, used and given back, and what it notices of that.

One story, because a boot on processors in software takes seconds. The process of its machine is what shows whether it
was touched: its number and the moment it was started.
"""

from __future__ import annotations

import shutil
import time
import uuid
from pathlib import Path
from typing import Any, Final

import click.testing
import libvirt
import pytest

from stateward.agent.libvirt.daemons import LibvirtPlace
from stateward.cli.main import main
from stateward.guest.build import MEMORY, TINY_GUEST_PROPERTIES
from tests.guests.conftest import TinyImages
from tests.harness import Admin, ServerProcess, until

pytestmark = [pytest.mark.guests, pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(300)]

PATIENCE: Final = 120.0
UP: Final = "stateward-guest: up"
ASKED: Final = "stateward-guest: power button pressed"

#: As an operator writes it: it starts anew whatever ends it, and Nova has written into it.
DOMAIN: Final = """
<domain type='qemu'>
  <name>{name}</name><uuid>{id}</uuid>
  <metadata>
    <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
      <nova:name>shop</nova:name><nova:flavor name="m1.nano"/>
      <nova:owner><nova:user uuid="nobody">u</nova:user><nova:project uuid="nothing">p</nova:project></nova:owner>
    </nova:instance>
  </metadata>
  <memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
  <os><type>hvm</type><kernel>{kernel}</kernel><initrd>{ramdisk}</initrd><cmdline>{words}</cmdline></os>
  <features><acpi/><apic/></features>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>restart</on_crash>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/>
      <target dev='vda' bus='virtio'/></disk>
    <serial type='pty'><log file='{log}' append='on'/></serial>
  </devices>
</domain>"""


class Theirs:
    """The guest, as its owner has it."""

    def __init__(self, operator: libvirt.virConnect, images: TinyImages, folder: Path) -> None:
        self.id = str(uuid.uuid4())
        self.name = f"theirs-{self.id[:8]}"
        self._operator = operator
        folder.mkdir()
        folder.chmod(0o777)
        self.log = folder / "console.log"
        self.disk = folder / "disk.qcow2"
        files = {"kernel": images.files.kernel, "ramdisk": images.files.ramdisk, "disk": images.files.disk}
        for name, file in files.items():
            shutil.copyfile(file, folder / (self.disk.name if name == "disk" else name))
        for file in folder.iterdir():
            file.chmod(0o666)
        definition = DOMAIN.format(
            name=self.name,
            id=self.id,
            memory=MEMORY,
            kernel=folder / "kernel",
            ramdisk=folder / "ramdisk",
            disk=self.disk,
            log=self.log,
            words=TINY_GUEST_PROPERTIES["os_command_line"],
        )
        domain = operator.defineXML(definition)
        domain.setAutostart(1)
        domain.create()

    @property
    def domain(self) -> libvirt.virDomain:
        """The domain."""
        return self._operator.lookupByUUIDString(self.id)

    def said(self, line: str) -> int:
        """Return how many times its console has said a line."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return sum(each.strip() == line for each in text.splitlines())

    async def says(self, line: str, times: int) -> None:
        """Wait until its console has said a line so many times."""

        async def look() -> bool | None:
            return True if self.said(line) >= times else None

        await until(look, seconds=PATIENCE, says=lambda: f"not {times} times {line!r}")

    def process(self) -> tuple[int, int]:
        """Return the number of its machine's process, and when that was started, in ticks since the host's boot."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if b"qemu-system" in words[0] and self.id.encode() in words:
                    stat = (folder / "stat").read_text().rpartition(")")[2].split()
                    return int(folder.name), int(stat[19])
            except OSError:
                continue
        raise AssertionError("its machine has no process")

    def is_as_made(self) -> bool:
        """Say whether nothing of ours is left, as it runs and as it is defined."""
        texts = (self.domain.XMLDesc(), self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        return self.domain.autostart() == 1 and all(
            "stateward.dev" not in text and "<on_crash>restart</on_crash>" in text for text in texts
        )

    def defined_again(self, definition: str) -> None:
        """Define it as it once was, and start it, in one go: as it runs it is seen with what is in that."""
        self._operator.defineXML(definition).create()

    def remove(self) -> None:
        """Take it away."""
        if self.domain.isActive():
            self.domain.destroy()
        self.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)


def command(server: ServerProcess, *words: str) -> str:
    """Run ``stateward`` as the administrator, and return what it wrote."""
    environment = {
        "OS_CLIENT_CONFIG_FILE": str(server.data / "clouds.yaml"),
        "OS_CLOUD": "stateward-admin",
    }
    done = click.testing.CliRunner(env=environment).invoke(main, words, prog_name="stateward")
    assert done.exit_code == 0, done.output
    return done.stdout


async def test_adopted_used_and_given_back(
    place: LibvirtPlace, operator: libvirt.virConnect, images: TinyImages, tmp_path: Path
) -> None:
    """It runs through being adopted and given back; it is asked to shut down like any other, and boots its own disk."""
    began = time.monotonic()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path("/") and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o111)
    theirs = Theirs(operator, images, tmp_path / "theirs")
    try:
        config = tmp_path / "settings.toml"
        config.write_text(f'[placement]\nreserved_memory = 0\n[[host]]\nname = "one"\nuri = "{place.uri}"\n')
        async with ServerProcess(tmp_path, ("--config", str(config))) as server:
            await _story(server, theirs)
            await server.stop()
            assert server.faults() == []
    finally:
        theirs.remove()
    print(f"\nadopted, used and given back in {time.monotonic() - began:.1f} s")  # noqa: T201


async def _story(server: ServerProcess, theirs: Theirs) -> None:
    admin = Admin(server, await server.log_in("admin"))
    await admin.hosts_up()
    await theirs.says(UP, 1)
    process = theirs.process()
    command(server, "adopt", "--name", theirs.name)
    shown = await _becomes(admin, theirs.id, "ACTIVE")
    assert (shown["name"], shown["flavor"]["original_name"], shown["image"]) == ("shop", "m1.nano", "")
    assert shown["OS-EXT-SRV-ATTR:instance_name"] == theirs.name
    assert theirs.process() == process
    texts = (theirs.domain.XMLDesc(), theirs.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    kept = theirs.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    assert all(
        "stateward.dev" in text and "<on_crash>destroy</on_crash>" in text and "nova:instance" in text
        for text in texts
    )
    assert theirs.domain.autostart() == 0
    assert (theirs.said(UP), theirs.said(ASKED)) == (1, 0)

    await _act(admin, theirs.id, "os-stop")
    await _becomes(admin, theirs.id, "SHUTOFF")
    assert (theirs.said(ASKED), theirs.domain.isActive()) == (1, 0)
    await _act(admin, theirs.id, "os-start")
    await _becomes(admin, theirs.id, "ACTIVE")
    await theirs.says(UP, 2)

    # Its memory is saved with our mark in it, and must not come back with it when it is given back meanwhile.
    await _act(admin, theirs.id, "suspend")
    await _becomes(admin, theirs.id, "SUSPENDED")
    command(server, "release", theirs.id)
    assert theirs.is_as_made()
    theirs.domain.create()
    assert theirs.is_as_made()
    process = theirs.process()
    command(server, "adopt", "--name", theirs.name)
    await _becomes(admin, theirs.id, "ACTIVE")

    command(server, "release", theirs.id)
    assert theirs.is_as_made()
    assert theirs.process() == process
    assert theirs.disk.exists()
    assert (theirs.said(UP), theirs.said(ASKED)) == (2, 1)
    assert (await admin.ask("GET", f"/compute/v2.1/servers/{theirs.id}")).status == 404

    # Its owner has kept the definition of when it was a server, mark and all: it is theirs nevertheless, and runs on.
    theirs.domain.destroy()
    theirs.defined_again(kept)
    process = theirs.process()

    async def given_back() -> bool | None:
        return True if theirs.is_as_made() else None

    await until(given_back, seconds=PATIENCE, says=admin.server.tail)
    await theirs.says(UP, 3)
    assert theirs.process() == process
    assert theirs.said(ASKED) == 1


async def _act(admin: Admin, server_id: str, action: str) -> None:
    answer = await admin.ask("POST", f"/compute/v2.1/servers/{server_id}/action", {action: None})
    assert answer.status == 202, answer


async def _becomes(admin: Admin, server_id: str, status: str) -> dict[str, Any]:
    """Wait until nothing is in flight; the server is then so."""
    last = dict[str, Any]()

    async def look() -> dict[str, Any] | None:
        answer = await admin.ask(
            "GET", f"/compute/v2.1/servers/{server_id}", openstack_api_version="compute 2.47"
        )
        last.update(answer.body.get("server", {}))
        return last if last.get("OS-EXT-STS:task_state", "") is None else None

    server = await until(look, seconds=PATIENCE, says=lambda: f"{last}\n{admin.server.tail()}")
    assert (server["status"], server.get("fault")) == (status, None), server
    return server
