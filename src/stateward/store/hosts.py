"""Hosts: what each agent last said of itself, and what the operator said of it."""

from __future__ import annotations

import uuid
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from stateward.domain.hosts import FROZEN_SAYS, TRANSITIONS, Condition, Event, Frozen
from stateward.domain.placement import NOTHING, Room
from stateward.domain.records import HostReport
from stateward.domain.states import VmState
from stateward.store import sweeps
from stateward.store.rows import insert_new
from stateward.store.tables import HOSTS, INSTANCES

_COLUMNS = HOSTS.c
_EVERY = sa.select(HOSTS).order_by(_COLUMNS.name)
_FROZEN = sa.select(_COLUMNS.frozen).where(_COLUMNS.name == sa.bindparam("b_name"))


_WHY_FROZEN = sa.select(_COLUMNS.frozen_detail).where(
    _COLUMNS.name == sa.bindparam("b_name"), _COLUMNS.frozen.is_not(None)
)
_BOOTS = sa.select(_COLUMNS.boot_id, _COLUMNS.booted_id).where(_COLUMNS.name == sa.bindparam("b_name"))

_decode_report = msgspec.json.Decoder(HostReport).decode


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """One host; ``report`` is None until it was heard of."""

    id: str
    number: int
    name: str
    zone: str
    report: HostReport | None
    #: Seconds since the epoch.
    seen_at: float | None
    enabled: bool
    disabled_reason: str | None
    forced_down: bool
    #: What instances hold there, and how many claims that is.
    claimed: Room = NOTHING
    claims: int = 0
    #: The boot of the machine that its instances were last judged in.
    boot_id: str | None = None
    #: Why its instances are not judged now; None: they are.
    frozen: Frozen | None = None
    frozen_at: float | None = None
    frozen_detail: str | None = None
    #: Whether it can be used, since when, and for people.
    condition: Condition = Condition.UP
    condition_at: float | None = None
    condition_detail: str | None = None
    #: Of its last heartbeat.
    heard_seq: int = 0
    #: The folder of its instances is on storage that all hosts so marked share.
    shared: bool = False
    #: When its maintenance ends by itself; None: it is in none.
    maintenance_until: float | None = None
    #: The latest boot that its agent told of, and when it was noted.
    booted_id: str | None = None
    booted_at: float | None = None

    def up(self, now: float, patience: float) -> bool:
        """Whether it was heard of within ``patience`` seconds and nobody said it is down."""
        return self.seen_at is not None and now - self.seen_at <= patience and not self.forced_down


class Boots(msgspec.Struct, frozen=True):
    """Which boots are known of a host."""

    #: That its instances were last judged in.
    judged: str | None
    #: The latest.
    latest: str | None

    @property
    def waits(self) -> bool:
        """Whether they are still to be judged in the latest: its inventory counts, frozen for other reasons or not."""
        return self.judged != self.latest


def _host_of(row: sa.Row[Any]) -> Host:
    return Host(
        id=row.id,
        number=row.number,
        name=row.name,
        zone=row.zone,
        report=None if row.report is None else _decode_report(row.report),
        seen_at=row.seen_at,
        enabled=row.enabled,
        disabled_reason=row.disabled_reason,
        forced_down=row.forced_down,
        claimed=Room(vcpus=row.claimed_vcpus, memory=row.claimed_memory, disk=row.claimed_disk),
        claims=row.claims,
        boot_id=row.boot_id,
        frozen=None if row.frozen is None else Frozen(row.frozen),
        frozen_at=row.frozen_at,
        frozen_detail=row.frozen_detail,
        condition=Condition(row.condition),
        condition_at=row.condition_at,
        condition_detail=row.condition_detail,
        heard_seq=row.heard_seq,
        shared=bool(row.shared),
        maintenance_until=row.maintenance_until,
        booted_id=row.booted_id,
        booted_at=row.booted_at,
    )


def every(connection: sa.Connection) -> list[Host]:
    """Return all hosts by name."""
    return [_host_of(row) for row in connection.execute(_EVERY)]


class Pulse(msgspec.Struct, frozen=True, kw_only=True):
    """What the watch over hosts' lives reads of each; far cheaper than the whole row."""

    name: str
    heard_seq: int
    condition: Condition
    #: Since when it is in its condition.
    since: float | None
    frozen: Frozen | None
    forced_down: bool

    @property
    def maintained(self) -> bool:
        """Whether it is maintained: nobody wonders that it is silent."""
        return self.frozen is Frozen.MAINTENANCE


_PULSES = sa.select(
    _COLUMNS.name,
    _COLUMNS.heard_seq,
    _COLUMNS.condition,
    _COLUMNS.condition_at,
    _COLUMNS.frozen,
    _COLUMNS.forced_down,
).order_by(_COLUMNS.name)
_CONDITIONS = {each.value: each for each in Condition}


def pulses(connection: sa.Connection) -> list[Pulse]:
    """Return of every host whether it lives, by name."""
    return [
        Pulse(
            name=name,
            heard_seq=seq,
            condition=_CONDITIONS[condition],
            since=at,
            frozen=None if why is None else Frozen(why),
            forced_down=forced,
        )
        for name, seq, condition, at, why, forced in connection.execute(_PULSES)
    ]


def named(connection: sa.Connection, name: str) -> Host | None:
    """Return the host of a name; None when there is none."""
    row = connection.execute(sa.select(HOSTS).where(_COLUMNS.name == name)).one_or_none()
    return None if row is None else _host_of(row)


def census(connection: sa.Connection, name: str | None = None) -> dict[str, dict[str, int]]:
    """Count the living instances of each host, or of one, by their vm state."""
    where = [] if name is None else [INSTANCES.c.host == name]
    rows = connection.execute(
        sa.select(INSTANCES.c.host, INSTANCES.c.vm_state, sa.func.count())
        .where(INSTANCES.c.vm_state != VmState.DELETED.value, INSTANCES.c.host != "", *where)
        .group_by(INSTANCES.c.host, INSTANCES.c.vm_state)
        .order_by(INSTANCES.c.host, INSTANCES.c.vm_state)
    )
    found: dict[str, dict[str, int]] = {}
    for host, state, count in rows:
        found.setdefault(host, {})[state] = count
    return found


def register(connection: sa.Connection, name: str, zone: str, *, shared: bool = False) -> None:
    """Make a host known, unless it is; where its instances' disks are is as the settings say now."""
    insert_new(
        connection,
        HOSTS,
        {"id": str(uuid.uuid4()), "name": name, "zone": zone, "enabled": True, "forced_down": False},
    )
    connection.execute(
        sa.update(HOSTS).where(_COLUMNS.name == name, _COLUMNS.shared != shared).values(shared=shared)
    )


def heard(connection: sa.Connection, report: HostReport, now: float | None = None) -> Condition | None:
    """Keep a heartbeat, and return in which condition its host is.

    None, and nothing is changed, when it is older than the last, or of no host that is known.

    Args:
        connection: in a transaction.
        report: what the host says; by its number, not its time, it is newer than the last.
        now: when it was received, which alone says how long the host is silent; None: when the host says.
    """
    found = connection.execute(
        sa.update(HOSTS)
        .where(_COLUMNS.name == report.host, _COLUMNS.heard_seq < report.number)
        .values(
            report=msgspec.json.encode(report).decode(),
            seen_at=report.at if now is None else now,
            heard_seq=report.number,
        )
        .returning(_COLUMNS.condition)
    ).scalar_one_or_none()
    return None if found is None else Condition(found)


def change(connection: sa.Connection, host_id: str, changes: dict[str, Any]) -> bool:
    """Change what the operator says of a host; False when there is none of this id."""
    return connection.execute(sa.update(HOSTS).where(_COLUMNS.id == host_id).values(**changes)).rowcount == 1


def frozen(connection: sa.Connection, name: str) -> Frozen | None:
    """Say why a host's instances are not judged now; None: they are, or there is no such host."""
    found = connection.execute(_FROZEN, {"b_name": name}).scalar()
    return None if found is None else Frozen(found)


def why_frozen(connection: sa.Connection, name: str) -> str | None:
    """Say for people why a host's instances are not judged now; None: they are, or there is no such host."""
    return connection.execute(_WHY_FROZEN, {"b_name": name}).scalar()


def freeze(connection: sa.Connection, name: str, why: Frozen, detail: str, now: float) -> bool:
    """Have a host's instances judged no more; False when that is so already, for whatever reason."""
    return (
        connection.execute(
            sa.update(HOSTS)
            .where(_COLUMNS.name == name, _COLUMNS.frozen.is_(None))
            .values(frozen=why.value, frozen_at=now, frozen_detail=detail)
        ).rowcount
        == 1
    )


def freeze_down(connection: sa.Connection, name: str) -> None:
    """Have the instances of a host that is not up judged no more, as ``thaw`` would leave them, if they are now.

    Whether it is up is in the statement: one that came back since it was looked at has been thawed already, and nobody
    would do that again.
    """
    connection.execute(
        sa.update(HOSTS)
        .where(_COLUMNS.name == name, _COLUMNS.frozen.is_(None), _COLUMNS.condition != Condition.UP.value)
        .values(
            frozen=Frozen.SILENT.value,
            frozen_at=_COLUMNS.condition_at,
            frozen_detail=_COLUMNS.condition_detail,
        )
    )


def still_frozen(connection: sa.Connection, name: str, why: Frozen, detail: str) -> bool:
    """Say anew what a host is frozen for; False when it is not frozen for this reason (any more)."""
    return (
        connection.execute(
            sa.update(HOSTS)
            .where(_COLUMNS.name == name, _COLUMNS.frozen == why.value)
            .values(frozen_detail=detail)
        ).rowcount
        == 1
    )


def thaw(connection: sa.Connection, name: str, why: Frozen) -> bool:
    """Have a host's instances judged again; False when they were not frozen for this reason.

    A host that is not up stays frozen, as silent, until it is; where the machine has booted meanwhile they are not
    judged yet either, for that reason then (R14).
    """
    down = _COLUMNS.condition != Condition.UP.value
    pending = _COLUMNS.booted_id != _COLUMNS.boot_id
    return (
        connection.execute(
            sa.update(HOSTS)
            .where(_COLUMNS.name == name, _COLUMNS.frozen == why.value)
            .values(
                frozen=sa.case((down, Frozen.SILENT.value), (pending, Frozen.BOOT.value)),
                frozen_at=sa.case((down, _COLUMNS.condition_at), (pending, _COLUMNS.booted_at)),
                frozen_detail=sa.case((down, _COLUMNS.condition_detail), (pending, BOOTED)),
            )
        ).rowcount
        == 1
    )


def maintain(connection: sa.Connection, name: str, reason: str, until: float, now: float) -> bool:
    """Maintain a host until some time: nothing of it is judged, whatever else it was not judged for; False: no host.

    A sweep is forgotten: what the host says after the maintenance is weighed anew.
    """
    sweeps.drop(connection, name)
    changed = connection.execute(
        sa.update(HOSTS)
        .where(_COLUMNS.name == name)
        .values(frozen=Frozen.MAINTENANCE.value, frozen_at=now, frozen_detail=reason, maintenance_until=until)
    )
    return changed.rowcount == 1


def maintained(connection: sa.Connection) -> list[tuple[str, float]]:
    """Return the hosts that are maintained and until when, the first to end first."""
    rows = connection.execute(
        sa.select(_COLUMNS.name, _COLUMNS.maintenance_until)
        .where(_COLUMNS.maintenance_until.is_not(None))
        .order_by(_COLUMNS.maintenance_until, _COLUMNS.name)
    )
    return [(row.name, row.maintenance_until) for row in rows]


def end_maintenance(connection: sa.Connection, name: str, *, until: float | None = None) -> bool:
    """End a host's maintenance; False when it is in none, or ``until`` is not when it ends any more."""
    clauses: list[sa.ColumnElement[bool]] = [_COLUMNS.maintenance_until.is_not(None)]
    if until is not None:
        clauses.append(_COLUMNS.maintenance_until == until)
    changed = connection.execute(
        sa.update(HOSTS).where(_COLUMNS.name == name, *clauses).values(maintenance_until=None)
    )
    if changed.rowcount != 1:
        return False
    thaw(connection, name, Frozen.MAINTENANCE)
    return True


def hold_fenced(connection: sa.Connection, name: str) -> Host | None:
    """Hold a host's row until the transaction ends, if it is fenced, and return it; None when it is not.

    Who takes instances off it does so under this: a host that comes back waits for it, and then hears of them.
    """
    row = connection.execute(
        sa.update(HOSTS)
        .where(_COLUMNS.name == name, _COLUMNS.condition == Condition.FENCED.value)
        .values(condition=_COLUMNS.condition)
        .returning(HOSTS)
    ).one_or_none()
    return None if row is None else _host_of(row)


def become(
    connection: sa.Connection,
    name: str,
    event: Event,
    detail: str,
    now: float,
    *,
    seq: int | None = None,
    since: float | None = None,
) -> Condition | None:
    """Have an event change a host's condition, as the table of transitions says; return what it is then.

    Args:
        connection: in a transaction.
        name: the host's.
        event: what became of it.
        detail: why, for people.
        now: seconds since the epoch.
        seq: only if this is still the number of its last heartbeat.
        since: only if it is still the condition that it became at this time.

    Returns:
        None when the table has no row for the condition that the host is in, or there is no such host.
    """
    for row in TRANSITIONS:
        if row.event is not event:
            continue
        changed = connection.execute(
            sa.update(HOSTS)
            .where(
                _COLUMNS.name == name,
                _COLUMNS.condition.in_(sorted(row.when)),
                *([] if seq is None else [_COLUMNS.heard_seq == seq]),
                *([] if since is None else [_COLUMNS.condition_at == since]),
            )
            .values(condition=row.becomes.value, condition_at=now, condition_detail=detail)
        )
        if changed.rowcount == 1:
            return row.becomes
    return None


#: What is told of a host that has booted, until its inventory is judged.
BOOTED: Final = FROZEN_SAYS[Frozen.BOOT]


def note_boot(connection: sa.Connection, name: str, boot_id: str, seq: int, now: float) -> bool:
    """Take note of a host's boot, and have its instances judged no more until its inventory is known (R14).

    Args:
        connection: where to write.
        name: the host's.
        boot_id: as its agent told it; empty: it cannot tell.
        seq: the number it was told with. What was told of an older boot can come late, and changes nothing.
        now: seconds since the epoch.

    Returns:
        Whether it was news. The first boot that is ever told of a host is none.
    """
    if not boot_id:
        return False
    mine = _COLUMNS.name == name
    first = (
        sa.update(HOSTS)
        .where(mine, _COLUMNS.boot_id.is_(None))
        .values(boot_id=boot_id, booted_id=boot_id, booted_seq=seq, booted_at=now)
    )
    if connection.execute(first).rowcount == 1:
        return False
    # A boot explains a sweep: whatever ran is off. The other reasons stand until whoever gave them takes them back.
    ends = sa.or_(_COLUMNS.frozen.is_(None), _COLUMNS.frozen == Frozen.SWEEP.value)
    return (
        connection.execute(
            sa.update(HOSTS)
            .where(mine, _COLUMNS.booted_id != boot_id, _COLUMNS.booted_seq < seq)
            .values(
                booted_id=boot_id,
                booted_seq=seq,
                booted_at=now,
                frozen=sa.case((ends, Frozen.BOOT.value), else_=_COLUMNS.frozen),
                frozen_at=sa.case((ends, now), else_=_COLUMNS.frozen_at),
                frozen_detail=sa.case((ends, BOOTED), else_=_COLUMNS.frozen_detail),
            )
        ).rowcount
        == 1
    )


def judged_in(connection: sa.Connection, name: str, boot_id: str) -> bool:
    """Have a host's instances judged again, in this boot; False when it is not this boot that they wait for.

    One's that is not up, too: what the boot explains is written in this transaction, and then ``freeze_down`` is due.
    """
    return (
        connection.execute(
            sa.update(HOSTS)
            .where(_COLUMNS.name == name, _COLUMNS.frozen == Frozen.BOOT.value, _COLUMNS.booted_id == boot_id)
            .values(boot_id=boot_id, frozen=None, frozen_at=None, frozen_detail=None)
        ).rowcount
        == 1
    )


def boots_of(connection: sa.Connection, name: str) -> Boots | None:
    """Return which boots are known of a host; None when there is no such host."""
    row = connection.execute(_BOOTS, {"b_name": name}).one_or_none()
    return None if row is None else Boots(row.boot_id, row.booted_id)
