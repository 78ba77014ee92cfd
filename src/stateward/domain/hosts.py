"""What is known of hosts, beyond what they say of themselves."""

from __future__ import annotations

import enum


class Frozen(enum.StrEnum):
    """Why no instance of a host is judged for now."""

    #: A sweep would have changed too many of them at once (B5).
    SWEEP = "sweep"
    #: The machine has booted, and its inventory is not known whole yet (R14).
    BOOT = "boot"
    #: It is not heard of.
    SILENT = "silent"
    #: An operator said so: it is maintained.
    MAINTENANCE = "maintenance"
