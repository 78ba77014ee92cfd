"""Guests that a hypervisor has and Stateward does not look after: what must be known of one to adopt it."""

from __future__ import annotations

from typing import Final

import msgspec

from stateward.domain.records import FlavorFacts, ImageFacts
from stateward.domain.states import Cause, Observed, VmState

_GIB: Final = 1024**3

#: The name of the flavor of a guest that nobody gave one.
ADOPTED: Final = "adopted"

#: An adopted guest's disk was made of no image of ours; Nova shows the same of a server that boots from a volume.
NO_IMAGE: Final = ImageFacts(id="", disk_format="")

#: What is recorded of a guest that was found so. A wreck that is kept in memory is for a person to look at.
STATE_OF: Final[dict[Observed, VmState]] = {
    Observed.RUNNING: VmState.ACTIVE,
    Observed.PAUSED: VmState.PAUSED,
    Observed.SUSPENDED: VmState.SUSPENDED,
    Observed.SHUTOFF: VmState.STOPPED,
    Observed.CRASHED: VmState.ERROR,
}


class StrangerDisk(msgspec.Struct, frozen=True, kw_only=True):
    """One of its disks."""

    #: What the guest finds it as.
    device: str
    #: Where its bytes are; '' where that cannot be said.
    source: str
    #: Bytes that the guest sees; None where the hypervisor cannot tell.
    size: int | None


class StrangerCard(msgspec.Struct, frozen=True, kw_only=True):
    """One of its network interfaces."""

    mac: str
    #: The kind of connection and what it is to, in the hypervisor's words.
    kind: str
    source: str


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Stateward's own mark: it was looked after by a Stateward whose record of it is not here."""

    project_id: str
    fence: int


class NovaFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What Nova wrote into the guest's definition; None where it did not."""

    name: str | None = None
    project_id: str | None = None
    user_id: str | None = None
    flavor: str | None = None


class Stranger(msgspec.Struct, frozen=True, kw_only=True):
    """One guest."""

    #: Its own id, which becomes its instance's.
    id: str
    #: Its own name, which it keeps.
    name: str
    vcpus: int
    #: MiB.
    memory: int
    disks: tuple[StrangerDisk, ...]
    cards: tuple[StrangerCard, ...]
    observed: Observed
    cause: Cause
    autostart: bool
    #: The hypervisor forgets it when it goes off.
    transient: bool
    #: The highest fence that is known of it on its host; 0 when none is.
    fence: int = 0
    mark: Mark | None = None
    nova: NovaFacts | None = None

    def flavor(self) -> FlavorFacts:
        """Return the flavor that it amounts to; its disks in whole GiB, rounded up."""
        size = sum(disk.size or 0 for disk in self.disks)
        name = (self.nova.flavor if self.nova is not None else None) or ADOPTED
        return FlavorFacts(
            id=ADOPTED, name=name, vcpus=self.vcpus, ram=self.memory, disk=(size + _GIB - 1) // _GIB
        )
