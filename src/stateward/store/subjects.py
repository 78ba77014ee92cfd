"""What somebody wants to be told about must be there: a name that is nothing would be silent for ever."""

from __future__ import annotations

import sqlalchemy as sa

from stateward.domain.errors import NotFound
from stateward.domain.events import Filter, Reader
from stateward.store import hosts, instances
from stateward.store.identity_tables import PROJECTS
from stateward.store.tables import INSTANCES


def check(connection: sa.Connection, wanted: Filter, reader: Reader) -> None:
    """See that there is, or was, what a filter names, for this reader.

    Raises:
        NotFound: there never was; the sentence has the name.
    """
    if wanted.host is not None and hosts.named(connection, wanted.host) is None:
        raise NotFound(f"Host {wanted.host} could not be found.")
    if wanted.project_id is not None and not _is_project(connection, wanted.project_id):
        raise NotFound(f"Project {wanted.project_id} could not be found.")
    if wanted.instance_id is not None:
        owner = instances.project_of(connection, wanted.instance_id)
        if owner is None or reader.project_id not in {None, owner}:
            raise NotFound(f"Instance {wanted.instance_id} could not be found.")
        if wanted.project_id not in {None, owner}:
            raise NotFound(f"Project {wanted.project_id} has no instance {wanted.instance_id}.")


def _is_project(connection: sa.Connection, project_id: str) -> bool:
    """Say whether there is a project, or was one that had instances: its events are still told."""
    known = sa.select(PROJECTS.c.id).where(PROJECTS.c.id == project_id)
    had = sa.select(INSTANCES.c.id).where(INSTANCES.c.project_id == project_id)
    return bool(connection.execute(sa.select(sa.or_(known.exists(), had.exists()))).scalar_one())
