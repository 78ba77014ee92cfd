"""What the control plane asks an agent while a request waits, and the answer; nothing of either is kept.

A question goes straight over the bus and never through the database, the outbox or a journal: it may hold a secret.
"""

from __future__ import annotations

import enum

import msgspec

from stateward.domain.diagnostics import Diagnostics
from stateward.domain.records import Report
from stateward.domain.strangers import Stranger
from stateward.domain.sweeps import Trace


class SetPassword(msgspec.Struct, frozen=True, kw_only=True, tag="set-password"):
    """Have the agent inside a guest set a user's password."""

    instance_id: str
    user: str
    password: str

    def __repr__(self) -> str:
        """Leave the password out, wherever this is written."""
        return f"SetPassword(instance_id={self.instance_id!r}, user={self.user!r})"


class Measure(msgspec.Struct, frozen=True, kw_only=True, tag="measure"):
    """Measure a guest."""

    instance_id: str


class Overtaken(msgspec.Struct, frozen=True, kw_only=True, tag="overtaken"):
    """Answer when nothing that is older than a fence acts on an instance any more (B1)."""

    instance_id: str
    fence: int


class WhoElse(msgspec.Struct, frozen=True, kw_only=True, tag="who-else"):
    """Describe the guests on the host that are none of these; by id."""

    known: tuple[str, ...]


class Inventory(msgspec.Struct, frozen=True, kw_only=True, tag="inventory"):
    """Look at every guest of the host now.

    ``above`` is the largest number that an observation of this host is known by: the answer's is larger, also where the
    agent lost its journal and its clock was set back.
    """

    above: int


class SecondLook(msgspec.Struct, frozen=True, kw_only=True, tag="second-look"):
    """Look for traces of guests past the way in which they are listed (B5)."""

    instance_ids: tuple[str, ...]


class Leaves(enum.StrEnum):
    """What is left of a guest that has to leave a host."""

    #: All of it, without power.
    OFF = "off"
    #: Its disk: another host has it too.
    DISK = "disk"
    NOTHING = "nothing"


class Expel(msgspec.Struct, frozen=True, kw_only=True, tag="expel"):
    """Take a guest's power that was made anew elsewhere, and remove it; nothing older than the fence may act on it."""

    instance_id: str
    fence: int
    leaves: Leaves


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent that starts is told."""

    #: The instances that it must not act on by anything older than a fence.
    overtaken: dict[str, int]
    #: The largest number that is known of what its host told: one that has lost count goes on above it.
    above: int = 0


Question = SetPassword | Measure | Overtaken | WhoElse | Inventory | SecondLook | Expel


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a question."""

    #: For people: why it could not be done, and what to do.
    error: str | None = None
    #: The hypervisor could not be asked; it may be back soon.
    unavailable: bool = False
    diagnostics: Diagnostics | None = None
    strangers: tuple[Stranger, ...] = ()
    #: Complete.
    report: Report | None = None
    #: By the instance's id.
    traces: dict[str, Trace] = {}
