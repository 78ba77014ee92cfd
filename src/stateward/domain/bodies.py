"""The bodies of actions, as types; what they refuse, the API explains in Nova's words."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from stateward.domain.shutdown import DEFAULT_CAP_SECONDS

Timeout = Annotated[int, msgspec.Meta(ge=0, le=DEFAULT_CAP_SECONDS)]


class ShutdownOptions(msgspec.Struct, frozen=True):
    """How a guest is shut down: ``{"force": true}``, ``{"timeout": 30}`` or both (R9).

    Nova 34 takes any value here and ignores it, so unknown keys are passed over.
    """

    #: Take the power: at once, or at the end of ``timeout`` when that is given too.
    force: bool = False
    #: Seconds the guest gets before its power is taken; 0 asks it nothing.
    timeout: Timeout | None = None


class RebootOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nova's reboot body; ``timeout`` (seconds) is ours and counts for SOFT."""

    #: In capitals once it is read, however it was written.
    type: Literal["HARD", "Hard", "hard", "SOFT", "Soft", "soft"]
    timeout: Timeout | None = None

    def __post_init__(self) -> None:
        """Bring the type to the spelling by which a row of the table is picked."""
        msgspec.structs.force_setattr(self, "type", self.type.upper())


class LockOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``lock`` from 2.73."""

    locked_reason: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | msgspec.UnsetType = (
        msgspec.UNSET
    )


class ResetState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``os-resetState``."""

    state: Literal["active", "error"]


class ConsoleOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``os-getConsoleOutput``; ``length`` in lines, -1 or none for all."""

    length: Annotated[int, msgspec.Meta(ge=-1)] | str | None = None
