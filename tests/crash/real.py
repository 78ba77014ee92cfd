"""Real guests: virsh's account of them, and the image that they are made from."""

from __future__ import annotations

import asyncio
import re
from typing import Final

from stateward.domain.states import Observed
from stateward.guest.build import TINY_GUEST_PROPERTIES, GuestFiles
from tests.harness import Admin

#: virsh's words, of guests that nobody is doing anything to.
_SAYS: Final = {
    "running": Observed.RUNNING,
    # Its power is being taken.
    "in shutdown": Observed.RUNNING,
    "paused": Observed.PAUSED,
    "shut off": Observed.SHUTOFF,
    "saved": Observed.SUSPENDED,
    "crashed": Observed.CRASHED,
}
_ROW: Final = re.compile(r"^ *(?:-|\d+) +(?P<name>instance-\S+) +(?P<state>\S.*?) *$", re.MULTILINE)


async def virsh(uri: str, *arguments: str) -> str:
    """Run virsh and return what it says."""
    process = await asyncio.create_subprocess_exec(
        "virsh", "--connect", uri, *arguments, stdout=asyncio.subprocess.PIPE
    )
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    return said


async def real_guests(uri: str) -> dict[str, Observed]:
    """Return the account of virsh, by the guests' ids."""
    guests = dict[str, Observed]()
    for row in _ROW.finditer(await virsh(uri, "list", "--all", "--managed-save")):
        guests[(await virsh(uri, "domuuid", row["name"])).strip()] = _SAYS[row["state"]]
    return guests


async def tiny_image(admin: Admin, files: GuestFiles, *, shutdown: int, words: str = "") -> str:
    """Make the tiny guest's image, and return its id.

    Args:
        admin: makes it.
        files: of the guest.
        shutdown: seconds that its guests get to shut down.
        words: more of them for its kernel's command line.
    """
    kernel = await admin.make_image("kernel", {}, data=files.kernel.read_bytes())
    ramdisk = await admin.make_image("ramdisk", {}, data=files.ramdisk.read_bytes())
    properties = {
        "os_command_line": " ".join((TINY_GUEST_PROPERTIES["os_command_line"], *words.split())),
        "kernel_id": kernel,
        "ramdisk_id": ramdisk,
        "os_shutdown_timeout": str(shutdown),
    }
    return await admin.make_image("tiny", properties, kind="qcow2", data=files.disk.read_bytes())
