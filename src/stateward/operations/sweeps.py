"""Sweeps: a host's word that would change too many instances at once is kept aside until it is confirmed (B5).

Each of these is one transaction, with the freeze as its condition: what is confirmed is what was kept, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import sqlalchemy as sa

from stateward.domain.hosts import Frozen
from stateward.domain.records import Actor, Observation
from stateward.domain.sweeps import Signal
from stateward.store import hosts, observations, operations, sweeps

#: What follows from a signal, for people.
_SAYS = {
    Signal.CONTRADICTED: "A second look at the host contradicts it.",
    Signal.UNCLEAR: "A second look at the host could not tell.",
}


def hold(
    connection: sa.Connection,
    host: str,
    claims: Sequence[Observation],
    *,
    total: int,
    actor: Actor,
    now: float,
    before: int = 0,
    told: bool = False,
) -> bool:
    """Judge nothing of a host, and keep what it says; tell the operator, once for each sweep.

    Args:
        connection: in a transaction.
        host: whose.
        claims: what it says of the instances that it would change.
        total: how many living instances it has.
        actor: the control plane.
        now: seconds since the epoch.
        before: instances that changed a moment ago, were let, and count as well.
        told: the operator knows already that the host is being swept.

    Returns:
        False when the host's instances are not judged for another reason; nothing is kept then.
    """
    says = _so_far(claims, total, before)
    fresh = hosts.freeze(connection, host, Frozen.SWEEP, says, now)
    if not keep(connection, host, claims, total=total, before=before):
        return False
    if fresh and not told:
        says = f"{says} Nothing is changed until that is confirmed."
        sweep = sweeps.Sweep(observations=tuple(claims), total=total)
        _tell(connection, host, sweep, actor=actor, now=now, says=says)
    return True


def keep(
    connection: sa.Connection, host: str, claims: Sequence[Observation], *, total: int, before: int
) -> bool:
    """Keep what a host says now of a sweep that is not believed yet; see ``hold``.

    Returns:
        False when the host is not frozen for that any more: what was confirmed meanwhile is not to be confirmed again.
    """
    if not hosts.still_frozen(connection, host, Frozen.SWEEP, _so_far(claims, total, before)):
        return False
    sweeps.put(connection, host, claims, total)
    return True


def doubted(connection: sa.Connection, host: str, signal: Signal, *, actor: Actor, now: float) -> bool:
    """Tell the operator that a second look does not confirm a host's sweep; False when it is over already."""
    sweep = sweeps.of_host(connection, host)
    if sweep is None:
        return False
    says = (
        f"{_says(sweep.observations, sweep.total)} {_SAYS[signal]} Look at the host, and confirm with "
        f"'stateward host confirm {host}' if it is true."
    )
    if not hosts.still_frozen(connection, host, Frozen.SWEEP, says):
        return False
    _tell(connection, host, sweep, actor=actor, now=now, says=says, signal=signal)
    return True


class NotLookedAt(Exception):
    """What a second look was at is not what is kept any more."""


def believe(
    connection: sa.Connection,
    host: str,
    *,
    actor: Actor,
    now: float,
    by: str,
    claims: Sequence[Observation] | None = None,
) -> list[str] | None:
    """Take what a host said for true, as it was kept, and judge its instances again.

    Args:
        connection: in a transaction.
        host: whose.
        actor: who confirms it.
        now: seconds since the epoch.
        by: ``second-look`` or ``operator``, for the record.
        claims: only if it is these that were kept; None: whatever was.

    Returns:
        The living instances of the host, which are all to be judged; None when there is no sweep to confirm.

    Raises:
        NotLookedAt: other claims are kept; nothing may be written.
    """
    if not hosts.thaw(connection, host, Frozen.SWEEP):
        return None
    # Now nobody else changes it: who does has the host's row.
    sweep = sweeps.of_host(connection, host)
    found = () if sweep is None else sweep.observations
    if claims is not None and found != tuple(claims):
        raise NotLookedAt
    for each in found:
        observations.observe(connection, each, host=host)
    detail: dict[str, object] = {"by": by, "instances": len(found)}
    return _over(connection, host, "sweep_confirmed", actor=actor, now=now, detail=detail)


def passed(connection: sa.Connection, host: str, *, actor: Actor, now: float) -> list[str] | None:
    """Judge a host's instances again because it does not say any more what was not believed; see ``believe``."""
    if not hosts.thaw(connection, host, Frozen.SWEEP):
        return None
    return _over(connection, host, "sweep_passed", actor=actor, now=now, detail={})


def _over(
    connection: sa.Connection, host: str, event: str, *, actor: Actor, now: float, detail: dict[str, object]
) -> list[str]:
    sweeps.drop(connection, host)
    operations.record(
        connection,
        at=now,
        event=event,
        actor=actor,
        instance_id=None,
        action="sweep",
        detail={"host": host} | detail,
    )
    return [each.id for each in observations.seen_on(connection, host)]


def _tell(
    connection: sa.Connection,
    host: str,
    sweep: sweeps.Sweep,
    *,
    actor: Actor,
    now: float,
    says: str,
    signal: Signal | None = None,
) -> None:
    operations.alert(
        connection,
        says,
        at=now,
        actor=actor,
        action="sweep",
        detail={
            "host": host,
            "instances": len(sweep.observations),
            "of": sweep.total,
            "observed": _counted(sweep.observations),
            "second_look": None if signal is None else signal.value,
        },
    )


def _counted(claims: Sequence[Observation]) -> dict[str, int]:
    return dict(sorted(Counter(each.observed.value for each in claims).items()))


def _says(claims: Sequence[Observation], total: int) -> str:
    seen = ", ".join(f"{count} {observed}" for observed, count in _counted(claims).items())
    return f"{len(claims)} of {total} instances would change at once ({seen})."


def _so_far(claims: Sequence[Observation], total: int, before: int) -> str:
    says = _says(claims, total)
    return f"{says} {before} more did a moment ago." if before else says
