"""Whether the user that QEMU runs as gets at a file, by the mode bits of the file and of the folders above it."""

from __future__ import annotations

import contextlib
import grp
import os
import platform
import pwd
import re
import stat
from pathlib import Path
from typing import Final

KVM: Final = Path("/dev/kvm")
X86: Final = frozenset({"x86_64", "i686"})

_CPUINFO: Final = Path("/proc/cpuinfo")

_READ, _WRITE, _PASS = 4, 2, 1


class User:
    """A user as libvirt names it in a label.

    Args:
        label: ``+UID:+GID``.
    """

    def __init__(self, label: str) -> None:
        self._uid, gid = (int(part.lstrip("+")) for part in label.split(":"))
        self._gid = gid
        self._groups = {gid}
        # A user without a name has no other groups.
        with contextlib.suppress(KeyError):
            self._groups.update(os.getgrouplist(pwd.getpwuid(self._uid).pw_name, gid))

    def may_use(self, device: Path) -> bool:
        """Say whether the user may read and write a device."""
        try:
            return self._may(device.stat(), _READ | _WRITE)
        except OSError:
            return False

    def can_reach(self, folder: Path) -> bool:
        """Say whether the user may pass through a folder and all above it."""
        folder = folder.resolve()
        return all(self._may(each.stat(), _PASS) for each in (folder, *folder.parents))

    def __str__(self) -> str:
        user, group = str(self._uid), str(self._gid)
        with contextlib.suppress(KeyError):
            user = pwd.getpwuid(self._uid).pw_name
        with contextlib.suppress(KeyError):
            group = grp.getgrgid(self._gid).gr_name
        return f"{user}:{group}"

    def _may(self, facts: os.stat_result, wanted: int) -> bool:
        if self._uid == 0:
            return True
        mode = stat.S_IMODE(facts.st_mode)
        if facts.st_uid == self._uid:
            mode >>= 6
        elif facts.st_gid in self._groups:
            mode >>= 3
        return mode & wanted == wanted


def runs_unmodified() -> bool:
    """Say whether this host's KVM runs guests as they are.

    On x86 that takes the processor's own virtualization. A KVM without it is a paravirtual one for guests made
    for it, and any other crawls there, if it boots at all.
    """
    if platform.machine() not in X86:
        return True
    flags = re.search(r"^flags\s*:(.*)$", _CPUINFO.read_text(encoding="utf-8"), re.MULTILINE)
    return flags is not None and not {"vmx", "svm"}.isdisjoint(flags.group(1).split())
