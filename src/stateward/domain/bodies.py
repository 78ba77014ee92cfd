"""The bodies of actions, as types; what they refuse, the API explains in Nova's words."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from stateward.domain.shutdown import DEFAULT_CAP_SECONDS

Timeout = Annotated[int, msgspec.Meta(ge=0, le=DEFAULT_CAP_SECONDS)]


class ShutdownRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a request may say of its guest's clean shutdown (R9); the base of the bodies that may."""

    #: Seconds the guest gets before its time is up; 0 asks it nothing.
    timeout: Timeout | None = None
    #: What is done then; the values of ``shutdown.AtDeadline``, spelt out for Nova's sentence about others.
    at_deadline: Literal["force", "fail", "save"] | None = None


class ShutdownOptions(ShutdownRequest, frozen=True, kw_only=True):
    """How a guest is shut down: ``{"force": true}``, ``{"timeout": 30, "at_deadline": "fail"}``, or nothing.

    Nova 34 takes any value here and ignores it, so unknown keys are passed over.
    """

    #: Take the power: at once, or at the end of ``timeout`` when that is given too.
    force: bool = False


class RebootOptions(ShutdownRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nova's reboot body; ``timeout`` and ``at_deadline`` are ours and count for SOFT."""

    #: In capitals once it is read, however it was written.
    type: Literal["HARD", "Hard", "hard", "SOFT", "Soft", "soft"]

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


class SerialConsole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``os-getSerialConsole``."""

    type: Literal["serial"]


class VncConsole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``os-getVNCConsole``."""

    type: Literal["novnc", "xvpvnc"]


class SpiceConsole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``os-getSPICEConsole``."""

    type: Literal["spice-html5"]


class ChangePassword(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``changePassword``.

    Nova takes any text. What a guest could never use is refused here: nothing, which would let anybody in, more than
    the 511 bytes that Linux's crypt takes, and a second line, which would be another user's.
    """

    adminPass: Annotated[str, msgspec.Meta(min_length=1, max_length=511, pattern=r"\A[^\r\n]*\Z")]  # noqa: N815 (Nova's name)

    def __repr__(self) -> str:
        """Leave the password out, wherever this is written."""
        return "ChangePassword()"
