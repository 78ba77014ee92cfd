"""The bodies of actions, as types; what they refuse, the API explains in Nova's words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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
    lock: LockWanted | None = None


class LockWanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A lock to be placed with what is asked, in one request: ``{"suspend": {"lock": {}}}`` (R7)."""

    #: Unnamed, it is the lock that ``unlock`` releases.
    name: Annotated[str, msgspec.Meta(max_length=64)] = ""
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | None = None
    ticket: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | None = None
    #: Names of ``CLASS_SETS``.
    blocks: tuple[str, ...] = ("all",)
    #: ISO 8601, UTC without a zone.
    expires_at: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    sealed: bool = False


class SuspendOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a guest is suspended; Nova 34 takes any value here and ignores it, so unknown keys are passed over."""

    lock: LockWanted | None = None


class Hold(ShutdownRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A legal hold (R6). Whatever an image or its owner says of deadlines, at this one the power is taken."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    ticket: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | None = None
    name: Annotated[str, msgspec.Meta(max_length=64)] = ""
    #: How the guest goes off; ``none`` leaves it as it is.
    shutdown: Literal["clean", "forced", "suspend", "none"] = "clean"
    at_deadline: Literal["force"] = "force"


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


Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Text = Annotated[str, msgspec.Meta(max_length=255)]
Metadata = dict[Name, Text]
Secret = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_Disk = Literal["AUTO", "MANUAL"] | None


class Rescue(ShutdownRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``rescue``; without an image the instance's own is booted from a fresh disk, as in Nova 34."""

    rescue_image_ref: Name | None = None
    adminPass: Secret | None = None  # noqa: N815 (Nova's name)


class Resize(ShutdownRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``resize``."""

    flavorRef: str | int  # noqa: N815 (Nova's name)
    diskConfig: _Disk = msgspec.field(name="OS-DCF:diskConfig", default=None)  # noqa: N815


class _Rebuild(ShutdownRequest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a rebuild may say in every microversion."""

    imageRef: Name  # noqa: N815 (Nova's name)
    adminPass: Secret | None = None  # noqa: N815 (Nova's name)
    name: Name | None = None
    metadata: Metadata | None = None
    preserve_ephemeral: bool | None = None
    accessIPv4: str | None = None  # noqa: N815 (Nova's name)
    accessIPv6: str | None = None  # noqa: N815 (Nova's name)
    diskConfig: _Disk = msgspec.field(name="OS-DCF:diskConfig", default=None)  # noqa: N815


class Rebuild1(_Rebuild, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Up to 2.18; files could be put into the guest, which is not done here."""

    personality: list[object] | None = None


class Rebuild19(Rebuild1, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """With a description."""

    description: Text | msgspec.UnsetType | None = msgspec.UNSET


class Rebuild54(Rebuild19, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """With another key, or none."""

    key_name: Name | msgspec.UnsetType | None = msgspec.UNSET


class Rebuild57(_Rebuild, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """With other user data, or none, instead of files."""

    description: Text | msgspec.UnsetType | None = msgspec.UNSET
    key_name: Name | msgspec.UnsetType | None = msgspec.UNSET
    user_data: str | msgspec.UnsetType | None = msgspec.UNSET


class Rebuild63(Rebuild57, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """With certificates for signed images, which are not looked at here."""

    trusted_image_certificates: list[str] | None = None


class Rebuild90(Rebuild63, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """With another hostname."""

    hostname: str | None = None


#: The body of ``rebuild`` by microversion.
REBUILD: tuple[tuple[int, type], ...] = (
    (1, Rebuild1),
    (19, Rebuild19),
    (54, Rebuild54),
    (57, Rebuild57),
    (63, Rebuild63),
    (90, Rebuild90),
)


class Unshelve77(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``unshelve`` from 2.77, when it is not null."""

    availability_zone: Name


class Unshelve91(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From 2.91 the zone can be given up, and an admin can name the host."""

    availability_zone: Name | msgspec.UnsetType | None = msgspec.UNSET
    host: Name | msgspec.UnsetType = msgspec.UNSET


#: The body of ``unshelve`` by microversion.
UNSHELVE: tuple[tuple[int, object], ...] = ((1, Any), (77, Unshelve77 | None), (91, Unshelve91 | None))


#: Nova takes a yes or no in words as well.
YesOrNo = (
    bool | Literal["true", "True", "TRUE", "false", "False", "FALSE", "1", "0", "yes", "no", "on", "off"]
)
Host = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9\-._]{1,255}$")]


class Migrate56(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``migrate`` from 2.56, when it is not null."""

    host: Host | None = None


#: The body of ``migrate`` by microversion.
MIGRATE: tuple[tuple[int, object], ...] = ((1, Any), (56, Migrate56 | None))


class LiveMigrate1(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``os-migrateLive`` up to 2.24."""

    host: Host | None
    block_migration: YesOrNo
    disk_over_commit: YesOrNo


class LiveMigrate25(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From 2.25, and again from 2.68."""

    host: Host | None
    block_migration: YesOrNo | Literal["auto"]


class LiveMigrate30(LiveMigrate25, frozen=True, forbid_unknown_fields=True):
    """From 2.30 to 2.67 the scheduler could be passed over."""

    force: YesOrNo = False


#: The body of ``os-migrateLive`` by microversion.
LIVE_MIGRATE: tuple[tuple[int, object], ...] = (
    (1, LiveMigrate1),
    (25, LiveMigrate25),
    (30, LiveMigrate30),
    (68, LiveMigrate25),
)


class Evacuate14(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of ``evacuate`` from 2.14, and again from 2.68."""

    host: Host | None = None
    adminPass: Secret | None = None  # noqa: N815 (Nova's name)


class Evacuate1(Evacuate14, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Up to 2.13."""

    onSharedStorage: YesOrNo  # noqa: N815 (Nova's name)


class Evacuate29(Evacuate14, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """From 2.29 to 2.67 the scheduler could be passed over."""

    force: YesOrNo = False


#: The body of ``evacuate`` by microversion.
EVACUATE: tuple[tuple[int, object], ...] = (
    (1, Evacuate1),
    (14, Evacuate14),
    (29, Evacuate29),
    (68, Evacuate14),
)


class CreateImage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``createImage``."""

    name: Name
    metadata: Metadata = {}


class CreateBackup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``createBackup``; ``rotation`` images of ``backup_type`` are kept, none with 0."""

    name: Name
    backup_type: Name
    rotation: (
        Annotated[int, msgspec.Meta(ge=0, le=999_999_999)]
        | Annotated[str, msgspec.Meta(pattern="^[0-9]{1,9}$")]
    )
    metadata: Metadata = {}
