"""The part of sushy that is used."""

import enum

from sushy.auth import AuthBase

class ResetType(enum.Enum):
    FORCE_OFF = "ForceOff"

class PowerState(enum.Enum):
    ON = "On"
    OFF = "Off"

class System:
    uuid: str | None
    power_state: PowerState | None
    def refresh(self, force: bool = True) -> None: ...
    def reset_system(self, value: ResetType) -> None: ...

class SystemCollection:
    def get_members(self) -> list[System]: ...

class Sushy:
    def __init__(
        self,
        base_url: str,
        *,
        auth: AuthBase,
        verify: bool | str,
        server_side_retries: int,
        server_side_retries_delay: int,
        connect_timeout: float,
        read_timeout: float,
    ) -> None: ...
    def get_system_collection(self) -> SystemCollection: ...
