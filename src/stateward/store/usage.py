"""What living instances take up, by project and by host: the sum of their flavors."""

from __future__ import annotations

from collections import defaultdict

import msgspec
import sqlalchemy as sa

from stateward.domain.states import VmState
from stateward.store.tables import INSTANCES

_COLUMNS = INSTANCES.c
_LIVING = _COLUMNS.vm_state != VmState.DELETED.value


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a project's instances take up; memory in MiB."""

    instances: int
    cores: int
    ram: int


def of_project(connection: sa.Connection, project_id: str) -> Usage:
    """Sum up a project's living instances, those that no host would take included."""
    # Grouped by the flavor as it is kept: there are few of those, however many instances.
    rows = connection.execute(
        sa.select(_COLUMNS.flavor, sa.func.count())
        .where(_COLUMNS.project_id == project_id, _LIVING)
        .group_by(_COLUMNS.flavor)
    ).all()
    return Usage(
        instances=sum(count for _flavor, count in rows),
        cores=sum(flavor.vcpus * count for flavor, count in rows),
        ram=sum(flavor.ram * count for flavor, count in rows),
    )


def cores_by_host(connection: sa.Connection) -> dict[str, int]:
    """Return how many virtual processors each host's living instances have; hosts without any are left out."""
    rows = connection.execute(
        sa.select(_COLUMNS.host, _COLUMNS.flavor, sa.func.count())
        .where(_LIVING)
        .group_by(_COLUMNS.host, _COLUMNS.flavor)
    )
    cores: defaultdict[str, int] = defaultdict(int)
    for host, flavor, count in rows:
        cores[host] += flavor.vcpus * count
    return dict(cores)
