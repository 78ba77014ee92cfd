"""Refusals and faults: a closed set, one sentence each.

The API turns them into status codes in one place (``stateward.api.faults``); nothing below it knows HTTP.
"""

from __future__ import annotations

import enum


class Refusal(enum.StrEnum):
    """Why an action was not admitted; each member's value is the template of its sentence."""

    NOT_FOUND = "Instance {instance_id} could not be found."
    WRONG_VM_STATE = "Cannot '{action}' instance {instance_id} while it is in vm_state {vm_state}"
    WRONG_TASK_STATE = "Cannot '{action}' instance {instance_id} while it is in task_state {task_state}"
    LOCKED = "Instance {instance_id} is locked"
    ADOPTED = "Cannot '{action}' instance {instance_id}: it was adopted, and its definition and disks are its owner's"
    NOT_ADOPTED = "Cannot '{action}' instance {instance_id}: it was made here, not adopted; it can be deleted"
    NO_HOST = "Instance {instance_id} is not ready"
    NOT_FENCED = (
        "Instance {instance_id} cannot be evacuated: its host {host} is not fenced. Only the instances of a host whose "
        "power was taken may be started elsewhere"
    )
    DISK_IS_THERE = (
        "Instance {instance_id} cannot be evacuated: its disk is on the dead host {host}, and what is in it would be "
        "lost"
    )
    NO_VALID_HOST = "No valid host was found. There are not enough hosts available."
    OVERTAKEN = (
        "Cannot '{action}' instance {instance_id}: another request changed it at the same moment; try again"
    )
    FROZEN = "Cannot '{action}' instance {instance_id}: no instance of its host is judged now"


class Refused(Exception):
    """An action was not admitted; ``refusal`` says why and ``str()`` is the sentence for people."""

    def __init__(self, refusal: Refusal, *, says: str = "", **facts: object) -> None:
        """Keep the refusal and the facts its sentence needs; ``says`` is said after it."""
        self.refusal = refusal
        self.facts = facts
        sentence = refusal.value.format_map(facts)
        super().__init__(f"{sentence}. {says}" if says else sentence)


class Forbidden(Exception):
    """The actor may not do this; ``str()`` is the policy rule that says so."""

    @property
    def sentence(self) -> str:
        """The refusal as people are told it, in Nova's words."""
        return f"Policy doesn't allow {self} to be performed."


class NotFound(Exception):
    """A thing named by the request does not exist for this actor; ``str()`` is the sentence."""


class Invalid(Exception):
    """A request cannot be carried out as it is written; ``str()`` says what to change."""


class Conflict(Exception):
    """A request contradicts what exists; ``str()`` says with what."""


class Kept(Conflict):
    """Something besides an instance is kept by a lock: a copy of its disk, or its project (R1, R6)."""


class HostUnavailable(Exception):
    """No host, or not the host needed, can serve the request now; ``str()`` says which and why."""
