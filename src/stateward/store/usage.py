"""What living instances take up, by project and by host: the sum of their flavors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec
import sqlalchemy as sa

from stateward.domain.records import FlavorFacts
from stateward.domain.states import VmState
from stateward.store.tables import INSTANCES

_COLUMNS = INSTANCES.c
_LIVING = _COLUMNS.vm_state != VmState.DELETED.value


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What instances take up, whether they run or not; memory in MiB."""

    instances: int = 0
    cores: int = 0
    ram: int = 0


def of_project(connection: sa.Connection, project_id: str) -> Usage:
    """Sum up a project's living instances, those that no host would take included."""
    # Grouped by the flavor as it is kept: there are few of those, however many instances.
    rows = connection.execute(
        sa.select(_COLUMNS.flavor, sa.func.count())
        .where(_COLUMNS.project_id == project_id, _LIVING)
        .group_by(_COLUMNS.flavor)
    )
    return _sum((flavor, count) for flavor, count in rows)


def by_host(connection: sa.Connection) -> dict[str, Usage]:
    """Sum up each host's living instances; hosts without any are left out."""
    rows = connection.execute(
        sa.select(_COLUMNS.host, _COLUMNS.flavor, sa.func.count())
        .where(_LIVING)
        .group_by(_COLUMNS.host, _COLUMNS.flavor)
    )
    flavors: defaultdict[str, list[tuple[FlavorFacts, int]]] = defaultdict(list)
    for host, flavor, count in rows:
        flavors[host].append((flavor, count))
    return {host: _sum(counted) for host, counted in flavors.items()}


def _sum(counted: Iterable[tuple[FlavorFacts, int]]) -> Usage:
    total = Usage()
    for flavor, count in counted:
        total = Usage(
            instances=total.instances + count,
            cores=total.cores + flavor.vcpus * count,
            ram=total.ram + flavor.ram * count,
        )
    return total
