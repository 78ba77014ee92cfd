"""The instances' rows, and the one guarded UPDATE through which everything changes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import msgspec
import sqlalchemy as sa

from stateward.domain.admit import Condition, Test
from stateward.domain.locks import ALL_CLASSES, OperationClass
from stateward.domain.records import Instance
from stateward.domain.states import ENDED, Cause, Observed, TaskState, VmState
from stateward.store.boots import AWAITS
from stateward.store.tables import HOSTS, INSTANCES

_COLUMNS = INSTANCES.c
_VM_STATES = {state.value: state for state in VmState}
_TASK_STATES = {state.value: state for state in TaskState}
_OBSERVED = {observed.value: observed for observed in Observed}
_CAUSES = {cause.value: cause for cause in Cause}
_CLASSES = {number: OperationClass(number) for number in range(int(ALL_CLASSES) + 1)}
_BY_ID = sa.select(INSTANCES).where(_COLUMNS.id == sa.bindparam("b_id"))


def instance_of(row: sa.Row[Any]) -> Instance:
    """Make the record of a row that holds all columns of the table, in the table's order.

    Unpacked and looked up instead of fetched by name and called: a list of a hundred makes a hundred of these.
    """
    (
        number,
        instance_id,
        project_id,
        user_id,
        name,
        description,
        hostname,
        host,
        zone,
        flavor,
        image,
        key_name,
        user_data,
        metadata,
        tags,
        seed,
        ports,
        reservation_id,
        created_at,
        updated_at,
        launched_at,
        terminated_at,
        vm_state,
        task_state,
        fence,
        operation_id,
        fault,
        old_flavor,
        was,
        rescue,
        shelved_image,
        owner_blocks,
        admin_blocks,
        hold_blocks,
        kept_off,
        locked_by,
        locked_reason,
        observed,
        cause,
        observed_seq,
        observed_at,
        addresses,
        addresses_seq,
        group_id,
        hints,
        state_since,
        adopted_as,
        alerted,
    ) = cast("tuple[Any, ...]", row)
    return Instance(
        id=instance_id,
        number=number,
        project_id=project_id,
        user_id=user_id,
        name=name,
        description=description,
        hostname=hostname,
        host=host,
        zone=zone,
        flavor=flavor,
        image=image,
        key_name=key_name,
        user_data=user_data,
        metadata=metadata,
        tags=tags,
        seed=seed,
        ports=ports,
        reservation_id=reservation_id,
        created_at=created_at,
        updated_at=updated_at,
        launched_at=launched_at,
        terminated_at=terminated_at,
        vm_state=_VM_STATES[vm_state],
        task_state=None if task_state is None else _TASK_STATES[task_state],
        fence=fence,
        operation_id=operation_id,
        fault=fault,
        old_flavor=old_flavor,
        was=None if was is None else _VM_STATES[was],
        rescue=rescue,
        shelved_image=shelved_image,
        owner_blocks=_CLASSES[owner_blocks],
        admin_blocks=_CLASSES[admin_blocks],
        hold_blocks=_CLASSES[hold_blocks],
        kept_off=bool(kept_off),
        locked_by=locked_by,
        locked_reason=locked_reason,
        observed=_OBSERVED[observed],
        cause=_CAUSES[cause],
        observed_seq=observed_seq,
        observed_at=observed_at,
        addresses=addresses,
        addresses_seq=addresses_seq,
        group_id=group_id,
        hints=hints,
        state_since=state_since,
        adopted_as=adopted_as,
        alerted=alerted,
    )


def get(connection: sa.Connection, instance_id: str) -> Instance | None:
    """Return one instance, deleted or not; None when there never was one of this id."""
    row = connection.execute(_BY_ID, {"b_id": instance_id}).one_or_none()
    return None if row is None else instance_of(row)


def on_host(connection: sa.Connection, host: str) -> list[Instance]:
    """Hold the rows of a host's living instances until the transaction ends, and return them, the oldest first."""
    rows = connection.execute(
        sa.select(INSTANCES)
        .where(_COLUMNS.host == host, _COLUMNS.vm_state != VmState.DELETED.value)
        .order_by(_COLUMNS.id)
        .with_for_update()
    )
    return sorted((instance_of(row) for row in rows), key=lambda instance: instance.number)


def hold(connection: sa.Connection, instance_id: str) -> Instance | None:
    """Hold an instance's row until the transaction ends, and return it; None when there is no such instance."""
    statement = (
        sa.update(INSTANCES)
        .where(_COLUMNS.id == instance_id)
        .values(updated_at=_COLUMNS.updated_at)
        .returning(INSTANCES)
    )
    row = connection.execute(statement).one_or_none()
    return None if row is None else instance_of(row)


def project_of(connection: sa.Connection, instance_id: str) -> str | None:
    """Return the project of an instance, which never changes; None when there is no such instance."""
    return connection.execute(sa.select(_COLUMNS.project_id).where(_COLUMNS.id == instance_id)).scalar()


def insert(connection: sa.Connection, values: Mapping[str, Any]) -> Instance:
    """Insert a row and return it with the number it was given."""
    row = connection.execute(sa.insert(INSTANCES).values(**values).returning(INSTANCES)).one()
    return instance_of(row)


@cache
def _guarded(checks: tuple[Condition, ...], columns: tuple[str, ...], bump_fence: bool) -> sa.Update:  # noqa: FBT001 (a cache key)
    """Build the UPDATE of a kind of change once: there are as many as rows in the action table."""
    clauses: list[sa.ColumnElement[bool]] = [_COLUMNS.id == sa.bindparam("b_id")]
    for number, condition in enumerate(checks):
        column = _COLUMNS[condition.column]
        match condition.test, condition.value:
            case Test.IN, frozenset() as allowed:
                clauses.append(_one_of(column, allowed))
            case Test.NULL_OR_IN, frozenset() as allowed:
                clauses.append(sa.or_(column.is_(None), _one_of(column, allowed)))
            case Test.NO_BITS, int() as mask:
                clauses.append(column.bitwise_and(sa.literal_column(str(mask))) == sa.literal_column("0"))
            case Test.DIFFERS, int() | str():
                clauses.append(column.is_distinct_from(sa.bindparam(f"c_{number}")))
            case Test.NOT_NULL, _:
                clauses.append(column.is_not(None))
            case Test.EQUALS, int() | str():
                clauses.append(column == sa.bindparam(f"c_{number}"))
            case Test.JUDGED, _:
                frozen = sa.select(HOSTS.c.name).where(HOSTS.c.name == column, HOSTS.c.frozen.is_not(None))
                clauses.append(sa.not_(frozen.exists()))
                clauses.append(sa.not_(AWAITS))
            case _:
                msg = f"condition {condition} compares {condition.test} with the wrong kind of value"
                raise TypeError(msg)
    values: dict[str, Any] = {name: sa.bindparam(f"v_{name}", type_=_COLUMNS[name].type) for name in columns}
    if bump_fence:
        values["fence"] = _COLUMNS.fence + sa.literal_column("1")
    return sa.update(INSTANCES).where(*clauses).values(**values).returning(INSTANCES)


def _one_of(column: sa.Column[Any], words: frozenset[str]) -> sa.ColumnElement[bool]:
    """Compare with words of the tables; they are part of the statement, or each execution would bind them anew."""
    return sa.or_(sa.false(), *(column == sa.literal_column(f"'{word}'") for word in sorted(words)))


def guarded_update(
    connection: sa.Connection,
    instance_id: str,
    checks: tuple[Condition, ...],
    changes: Mapping[str, Any],
    *,
    bump_fence: bool = False,
) -> Instance | None:
    """Change an instance's row if it meets the conditions, in one statement (ADR 0002).

    Returns:
        The row as it is now; None when there is no such row or it does not meet a condition.
    """
    parameters: dict[str, Any] = {"b_id": instance_id}
    shape: list[Condition] = []
    for number, condition in enumerate(checks):
        if condition.test in {Test.EQUALS, Test.DIFFERS}:
            # The value is a parameter, not a part of the statement, or each fence would make a new statement.
            parameters[f"c_{number}"] = condition.value
            shape.append(msgspec.structs.replace(condition, value=0))
        else:
            shape.append(condition)
    parameters.update({f"v_{name}": value for name, value in changes.items()})
    statement = _guarded(tuple(shape), tuple(sorted(changes)), bump_fence)
    row = connection.execute(statement, parameters).one_or_none()
    return None if row is None else instance_of(row)


_KINDS = {
    "vm_state": VmState,
    "was": VmState,
    "observed": Observed,
    "cause": Cause,
    "owner_blocks": OperationClass,
    "admin_blocks": OperationClass,
    "hold_blocks": OperationClass,
}


@cache
def _plain(columns: tuple[str, ...]) -> sa.Update:
    values = {name: sa.bindparam(f"v_{name}", type_=_COLUMNS[name].type) for name in columns}
    return sa.update(INSTANCES).where(_COLUMNS.id == sa.bindparam("b_id")).values(values)


def change_held(connection: sa.Connection, held: Instance, changes: Mapping[str, Any]) -> Instance:
    """Change the row that this transaction's guarded UPDATE holds, and return it as it is then.

    Nobody else can change it before the commit, so it need not be read again.
    """
    parameters = {"b_id": held.id, **{f"v_{name}": value for name, value in changes.items()}}
    connection.execute(_plain(tuple(sorted(changes))), parameters)
    typed = {
        name: _KINDS[name](value) if name in _KINDS and value is not None else value
        for name, value in changes.items()
    }
    return msgspec.structs.replace(held, **typed)


def living_on(connection: sa.Connection, image_id: str) -> list[str]:
    """Return the instances that are kept as this image, by id."""
    statement = sa.select(_COLUMNS.id).where(
        _packed_id(_COLUMNS.shelved_image, image_id), _COLUMNS.vm_state != VmState.DELETED.value
    )
    return list(connection.execute(statement).scalars())


def touch_project(
    connection: sa.Connection, project_id: str, tag: str | None, now: float
) -> dict[str, tuple[str, ...]]:
    """Hold the rows of a project's living instances, or of those with a tag, and return their tags by id."""
    clauses = [_COLUMNS.project_id == project_id, _COLUMNS.vm_state != VmState.DELETED.value]
    if tag is not None:
        clauses.append(_has_tag(tag))
    # First in the order in which everybody holds several rows; an UPDATE takes them as it finds them.
    connection.execute(sa.select(_COLUMNS.id).where(*clauses).order_by(_COLUMNS.id).with_for_update())
    statement = (
        sa.update(INSTANCES).where(*clauses).values(updated_at=now).returning(_COLUMNS.id, _COLUMNS.tags)
    )
    return {row.id: row.tags for row in connection.execute(statement)}


#: Instances that a refusal names at most.
_NAMED = 10


def blocked(connection: sa.Connection, project_id: str, classes: OperationClass) -> list[str]:
    """Return some living instances of a project that a lock of any kind blocks against classes, by id, oldest first."""
    mask: sa.ColumnElement[int] = sa.literal_column(str(int(classes)))
    columns = (_COLUMNS.owner_blocks, _COLUMNS.admin_blocks, _COLUMNS.hold_blocks)
    statement = (
        sa.select(_COLUMNS.id)
        .where(
            _COLUMNS.project_id == project_id,
            _COLUMNS.vm_state != VmState.DELETED.value,
            sa.or_(*(column.bitwise_and(mask) != sa.literal_column("0") for column in columns)),
        )
        .order_by(_COLUMNS.number)
        .limit(_NAMED)
    )
    return list(connection.execute(statement).scalars())


def write_locks(connection: sa.Connection, columns: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the locks' union into rows that this transaction holds, by their ids."""
    if not columns:
        return
    names = tuple(sorted(next(iter(columns.values()))))
    parameters = [
        {"b_id": instance_id, **{f"v_{name}": values[name] for name in names}}
        for instance_id, values in columns.items()
    ]
    connection.execute(_plain(names), parameters)


def ended_before(connection: sa.Connection, state: VmState, before: float) -> list[tuple[str, int]]:
    """Return the instances in a state that were ended by a time, oldest first, as (id, fence).

    Args:
        connection: where to look.
        state: the vm state they are in.
        before: seconds since the epoch.
    """
    rows = connection.execute(
        sa.select(_COLUMNS.id, _COLUMNS.fence)
        .where(
            _COLUMNS.vm_state == state.value, _COLUMNS.task_state.is_(None), _COLUMNS.terminated_at <= before
        )
        .order_by(_COLUMNS.terminated_at)
    )
    return [(row.id, row.fence) for row in rows]


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What to list: every given field narrows the list. Times are seconds since the epoch."""

    project_id: str | None = None
    user_id: str | None = None
    vm_states: frozenset[VmState] | None = None
    task_states: frozenset[TaskState] | None = None
    #: True: only deleted ones, also those that can be restored; False: only living ones; None: both.
    deleted: bool | None = False
    locked: bool | None = None
    locked_by: str | None = None
    #: A regular expression, as in Nova; a plain word finds itself anywhere in the name.
    name: str | None = None
    host: str | None = None
    zone: str | None = None
    key_name: str | None = None
    reservation_id: str | None = None
    image_id: str | None = None
    flavor_id: str | None = None
    hostname: str | None = None
    ids: frozenset[str] | None = None
    #: The beginning of one of its addresses.
    address: str | None = None
    changed_since: float | None = None
    changed_before: float | None = None
    created_at: float | None = None
    tags_all: frozenset[str] = frozenset()
    tags_any: frozenset[str] = frozenset()
    not_tags_all: frozenset[str] = frozenset()
    not_tags_any: frozenset[str] = frozenset()
    #: (column, descending) pairs; number is added last, which makes the order total.
    sort: tuple[tuple[str, bool], ...] = (("created_at", True),)
    limit: int | None = None
    #: The id after which the page begins.
    marker: str | None = None


_EQUAL_FIELDS = (
    "project_id",
    "user_id",
    "locked_by",
    "host",
    "zone",
    "key_name",
    "reservation_id",
    "hostname",
    "created_at",
)


def page(connection: sa.Connection, query: Query) -> list[Instance]:
    """Return a page of instances.

    Raises:
        LookupError: the marker names no instance; the argument is the marker.
    """
    statement = sa.select(INSTANCES).where(*_clauses(query))
    order = [*query.sort, ("number", query.sort[-1][1] if query.sort else True)]
    if query.marker is not None:
        marker = connection.execute(_BY_ID, {"b_id": query.marker}).one_or_none()
        if marker is None:
            raise LookupError(query.marker)
        statement = statement.where(_after(order, marker))
    for name, descending in order:
        column = _sort_column(name)
        statement = statement.order_by(column.desc() if descending else column.asc())
    if query.limit is not None:
        statement = statement.limit(query.limit)
    return [instance_of(row) for row in connection.execute(statement)]


def _sort_column(name: str) -> sa.ColumnElement[Any]:
    """Give a column that has no nulls, so that both databases sort it alike and a marker can be compared."""
    column = _COLUMNS[name]
    if not column.nullable:
        return column
    return sa.func.coalesce(column, "" if isinstance(column.type, sa.String | sa.Text) else -1)


def _after(order: Sequence[tuple[str, bool]], marker: sa.Row[Any]) -> sa.ColumnElement[bool]:
    """Say "comes after the marker" for a sort of several columns, each in its own direction."""
    alternatives: list[sa.ColumnElement[bool]] = []
    equal: list[sa.ColumnElement[bool]] = []
    for name, descending in order:
        column = _sort_column(name)
        value = getattr(marker, name)
        if value is None:
            value = "" if isinstance(_COLUMNS[name].type, sa.String | sa.Text) else -1
        alternatives.append(sa.and_(*equal, column < value if descending else column > value))
        equal.append(column == value)
    return sa.or_(*alternatives)


def _clauses(query: Query) -> list[sa.ColumnElement[bool]]:
    clauses: list[sa.ColumnElement[bool]] = [
        _COLUMNS[name] == value for name in _EQUAL_FIELDS if (value := getattr(query, name)) is not None
    ]
    for name, allowed in (
        ("vm_state", query.vm_states),
        ("task_state", query.task_states),
        ("id", query.ids),
    ):
        if allowed is not None:
            clauses.append(_COLUMNS[name].in_(sorted(allowed)))
    if query.deleted is not None:
        deleted = _COLUMNS.vm_state.in_(sorted(ENDED))
        clauses.append(deleted if query.deleted else sa.not_(deleted))
    if query.locked is not None:
        clauses.append(_COLUMNS.locked_by.is_not(None) if query.locked else _COLUMNS.locked_by.is_(None))
    if query.name is not None:
        clauses.append(_COLUMNS.name.regexp_match(query.name))
    if query.changed_since is not None:
        clauses.append(_COLUMNS.updated_at >= query.changed_since)
    if query.changed_before is not None:
        clauses.append(_COLUMNS.updated_at <= query.changed_before)
    if query.image_id is not None:
        clauses.append(_packed_id(_COLUMNS.image, query.image_id))
    if query.flavor_id is not None:
        clauses.append(_packed_id(_COLUMNS.flavor, query.flavor_id))
    clauses.extend(_address_clauses(query))
    clauses.extend(_tag_clauses(query))
    return clauses


def _address_clauses(query: Query) -> list[sa.ColumnElement[bool]]:
    if query.address is None:
        return []
    # Not LIKE, whose signs an address of a request may have. The value's last quote is left out: it is a beginning.
    begin = f'"address":{msgspec.json.encode(query.address).decode()[:-1]}'
    text = sa.cast(_COLUMNS.addresses, sa.Text)
    return [sa.func.replace(text, begin, "") != text]


def _tag_clauses(query: Query) -> list[sa.ColumnElement[bool]]:
    clauses = [_has_tag(tag) for tag in sorted(query.tags_all)]
    if query.tags_any:
        clauses.append(sa.or_(*(_has_tag(tag) for tag in sorted(query.tags_any))))
    if query.not_tags_all:
        clauses.append(sa.not_(sa.and_(*(_has_tag(tag) for tag in sorted(query.not_tags_all)))))
    if query.not_tags_any:
        clauses.append(sa.not_(sa.or_(*(_has_tag(tag) for tag in sorted(query.not_tags_any)))))
    return clauses


def _has_tag(tag: str) -> sa.ColumnElement[bool]:
    # Not LIKE, which on SQLite does not know capitals from small letters.
    tags = sa.cast(_COLUMNS.tags, sa.Text)
    return sa.func.replace(tags, msgspec.json.encode(tag).decode(), "") != tags


def _packed_id(column: sa.Column[Any], value: str) -> sa.ColumnElement[bool]:
    """Match the id of a packed struct, its first member: further inside, other things may be called so too."""
    text = f'{{"id":{msgspec.json.encode(value).decode()}'
    return sa.func.substr(sa.cast(column, sa.Text), 1, len(text)) == text
