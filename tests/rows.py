"""Rows and records for tests: everything a test does not speak of has a plain value."""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy as sa

from stateward.domain.locks import ActorKind, OperationClass
from stateward.domain.records import Actor, FlavorFacts, ImageFacts, Instance
from stateward.domain.seeds import SeedFacts
from stateward.domain.states import Cause, Observed, VmState
from stateward.store import instances

#: The time at which every test begins, in seconds since the epoch.
NOW = 1_700_000_000.0

FLAVOR = FlavorFacts(id="1", name="small", vcpus=1, ram=128, disk=1)
IMAGE = ImageFacts(id="image", disk_format="qcow2")


class SetClock:
    """A wall clock that is set by hand."""

    def __init__(self) -> None:
        self.at = NOW

    def now(self) -> float:
        """Return seconds since the epoch."""
        return self.at


def actor(kind: ActorKind = ActorKind.MEMBER, *, project: str = "p", request: str = "req-1") -> Actor:
    """Make who asks; a member or an admin of the instance's own project unless another is named."""
    return Actor(kind=kind, user_id=f"a {kind}", project_id=project, request_id=request)


def values(**changes: Any) -> dict[str, Any]:
    """Return the columns of a new row: an active instance on host ``h``, of project ``p``."""
    row: dict[str, Any] = {
        "metadata": dict[str, str](),
        "id": str(uuid.uuid4()),
        "project_id": "p",
        "user_id": "u",
        "name": "web",
        "description": None,
        "hostname": "web",
        "host": "h",
        "zone": "nova",
        "flavor": FLAVOR,
        "image": IMAGE,
        "key_name": None,
        "user_data": None,
        "tags": (),
        "reservation_id": "r",
        "created_at": NOW,
        "updated_at": NOW,
        "vm_state": VmState.ACTIVE.value,
        "task_state": None,
        "operation_id": None,
        "fence": 1,
        "observed": Observed.RUNNING.value,
        "cause": Cause.OTHER.value,
    } | changes
    if row["task_state"] is not None and row["operation_id"] is None:
        row["operation_id"] = "an operation"
    return row


def insert(connection: sa.Connection, **changes: Any) -> Instance:
    """Insert a row and return its record."""
    return instances.insert(connection, values(**changes))


def instance(**changes: Any) -> Instance:
    """Make a record without a database."""
    record: dict[str, Any] = {
        "number": 1,
        "launched_at": None,
        "old_flavor": None,
        "was": None,
        "rescue": None,
        "shelved_image": None,
        "terminated_at": None,
        "fault": None,
        "owner_blocks": OperationClass(0),
        "admin_blocks": OperationClass(0),
        "hold_blocks": OperationClass(0),
        "locked_by": None,
        "locked_reason": None,
        "observed_seq": 0,
        "observed_at": None,
        "seed": SeedFacts(),
        "ports": (),
        "addresses": (),
        "kept_off": False,
        "addresses_seq": 0,
    }
    record |= values(**changes)
    record["vm_state"] = VmState(record["vm_state"])
    record["observed"] = Observed(record["observed"])
    record["cause"] = Cause(record["cause"])
    return Instance(**record)
