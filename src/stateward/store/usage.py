"""What a project's living instances take up: the sum of their flavors."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import sqlalchemy as sa

from stateward.domain.records import FlavorFacts
from stateward.domain.states import VmState
from stateward.store import server_groups
from stateward.store.tables import INSTANCES

_COLUMNS = INSTANCES.c
_LIVING = _COLUMNS.vm_state != VmState.DELETED.value


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What instances take up, whether they run or not, and how many groups there are; memory in MiB."""

    instances: int = 0
    cores: int = 0
    ram: int = 0
    server_groups: int = 0


def of_project(connection: sa.Connection, project_id: str) -> Usage:
    """Sum up a project's living instances, those that no host would take included."""
    # Grouped by the flavor as it is kept: there are few of those, however many instances.
    rows = connection.execute(
        sa.select(_COLUMNS.flavor, sa.func.count())
        .where(_COLUMNS.project_id == project_id, _LIVING)
        .group_by(_COLUMNS.flavor)
    )
    total = _sum((flavor, count) for flavor, count in rows)
    return msgspec.structs.replace(total, server_groups=server_groups.count(connection, project_id))


def _sum(counted: Iterable[tuple[FlavorFacts, int]]) -> Usage:
    total = Usage()
    for flavor, count in counted:
        total = Usage(
            instances=total.instances + count,
            cores=total.cores + flavor.vcpus * count,
            ram=total.ram + flavor.ram * count,
        )
    return total
