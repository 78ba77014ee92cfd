"""Weighing: what a report comes to, when it is compared with the rows."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from stateward.domain.hosts import Frozen
from stateward.domain.policies import Policies
from stateward.domain.records import Instance, Observation, Report
from stateward.domain.states import Cause, Observed, why
from stateward.domain.sweeps import Signal
from stateward.domain.verdicts import Kind
from stateward.store import hosts, observations
from stateward.store.sweeps import of_host as sweep_of

#: Verdicts by which nothing follows from what was seen.
_NOTHING = frozenset({Kind.AGREE, Kind.IGNORE})

#: The same of what a person was told of: an alert is due until that is in its row, whoever was killed meanwhile and
#: whatever was frozen. Of a sweep it counts while that lasts.
_TOLD = _NOTHING | {Kind.ALERT}

#: What has a guest off again; of one that is off, as it may be after all, it takes nothing.
_OFF_AGAIN = frozenset({"restore_held", "restore_off", "restore_suspend"})

_by_seq = operator.attrgetter("seq")


class Known:
    """What is known of a host in this life of the process."""

    def __init__(self) -> None:
        """Begin with nothing."""
        #: Everything was looked at as of this number; 0: not yet.
        self.floor = 0
        #: By which a tally says that everything is as judged last; None: that is not known.
        self.digest: str | None = None
        #: Everything was judged in this life of the process.
        self.judged = False
        #: Counts what makes the digest unknown.
        self.doubts = 0
        #: The latest observations taken note of since ``floor``, by instance; rows keep only those that were news.
        self.seen: dict[str, int] = {}
        #: Instances that are left as they are, with what they were judged by: what is the same is not judged again.
        self.left: dict[str, tuple[object, ...]] = {}
        #: When reports were received first that could not be kept and will be delivered again, by their numbers.
        self.came: dict[int, float] = {}
        self.asking = False
        #: Something came while it was asked that the answer may not have in it.
        self.again = False
        #: What a second look last said of its sweep, which is told once.
        self.told: Signal | None = None
        #: When a second look last confirmed a sweep, by the event loop's time.
        self.confirmed_at: float | None = None

    def doubt(self) -> None:
        """Have the next tally compared anew."""
        self.digest = None
        self.doubts += 1

    def judge(self, instance: Instance, *, left: bool) -> None:
        """Note that an instance was judged, and whether it is ``left`` as it is."""
        if left:
            self.left[instance.id] = _judged_by(instance)
        else:
            self.left.pop(instance.id, None)

    def rise(self, seq: int) -> None:
        """Note that everything was looked at as of a number."""
        self.floor = max(self.floor, seq)
        if self.seen:
            self.seen = {each: newest for each, newest in self.seen.items() if newest > self.floor}

    def last(self, instance_id: str) -> int:
        """Return the number as of which an instance was looked at last."""
        return max(self.floor, self.seen.get(instance_id, 0))


class Weighed(msgspec.Struct, kw_only=True):
    """What a report comes to."""

    #: What changes a row, or is still to be acted on.
    news: list[Observation] = msgspec.field(default_factory=list[Observation])
    #: Those of them that something follows from.
    claims: list[Observation] = msgspec.field(default_factory=list[Observation])
    #: Those of the claims that change a row, by instance: the others were let through before.
    changing: list[str] = msgspec.field(default_factory=list[str])
    #: Those of the claims that are of a sweep: they change a row, did a moment ago, or were of it before.
    swept: list[Observation] = msgspec.field(default_factory=list[Observation])
    #: Instances that the table does nothing about and that were told of in another life, in which policies may have
    #: been others.
    again: list[str] = msgspec.field(default_factory=list[str])
    #: Living instances of the host.
    total: int = 0
    frozen: Frozen | None
    #: The machine has booted, and what is said of its guests is of that boot, or late (R14).
    booted: bool
    #: What was seen of guests whose records name another host.
    strays: list[Observation] = msgspec.field(default_factory=list[Observation])
    #: Those of the claims that wait for no others: what a lock keeps off is on (R6, R7).
    urgent: set[str] = msgspec.field(default_factory=set[str])

    @property
    def harmless(self) -> list[Observation]:
        """The news that nothing follows from."""
        claimed = {each.instance_id for each in self.claims}
        return [each for each in self.news if each.instance_id not in claimed]


def weigh(
    connection: sa.Connection, report: Report, known: Known, suspects: frozenset[str], policies: Policies
) -> Weighed:
    """Compare a report with the rows; a steady host's comes to nothing, and writes nothing.

    Args:
        connection: where to look.
        report: by our clock.
        known: of its host.
        suspects: instances that changed a moment ago.
        policies: by which something may follow where the table says nothing.
    """
    host = report.host
    # Of two looks at one guest, of which the first one was slow, the later one counts.
    named = {each.instance_id: each for each in sorted(report.observations, key=_by_seq)}
    rows = observations.seen_on(connection, host) if report.complete else []
    living = {row.id for row in rows}
    others = [instance_id for instance_id in named if instance_id not in living]
    if others:
        # Deleted ones whose guest is still there, or after a report of a few: those few.
        rows += observations.seen_by_id(connection, others)
    frozen, boots = hosts.frozen(connection, host), hosts.boots_of(connection, host)
    sweep = sweep_of(connection, host) if frozen is Frozen.SWEEP else None
    first = {} if sweep is None else {each.instance_id: each for each in sweep.observations}
    suspects |= first.keys()
    found = Weighed(frozen=frozen, booted=boots is not None and _booted(boots, report.boot_id))
    for row in rows:
        seen = _seen(row, named.get(row.id), report)
        if row.host != host and seen.observed not in {Observed.MISSING, Observed.UNKNOWN}:
            found.strays.append(seen)
        # Each host counts by itself.
        if row.host == host and seen.seq > max(row.observed_seq, known.last(row.id)):
            suspect = row.id in suspects
            _add(found, row, _as_first(seen, first.get(row.id)), policies, suspect=suspect, known=known)
    found.total = (
        len(living) if report.complete or not found.claims else observations.living(connection, host)
    )
    return found


def _booted(boots: hosts.Boots, boot_id: str) -> bool:
    # Of a host whose agent cannot tell its boot nobody knows that it has booted.
    return boots.waits or bool(boots.latest and boot_id and boots.latest != boot_id)


def _as_first(seen: Observation, first: Observation | None) -> Observation:
    """What a sweep has said all along is so since it said it first, whenever that is believed."""
    if first is None or (first.observed, first.cause) != (seen.observed, seen.cause):
        return seen
    return msgspec.structs.replace(seen, at=min(first.at, seen.at))


def _add(
    found: Weighed,
    row: observations.Seen,
    seen: Observation,
    policies: Policies,
    *,
    suspect: bool,
    known: Known,
) -> None:
    """Add what one guest's row comes to."""
    changed = (row.observed, row.cause) != (seen.observed, seen.cause)
    # What an operation in flight brings about is no deviation.
    idle = row.task_state is None
    same = not changed and not suspect
    told = row.told and same
    left = same and known.left.get(row.id) == _judged_by(row)
    follows = idle and not left and _follows(row, seen, policies, told=told)
    if changed or follows:
        found.news.append(seen)
    if follows:
        found.claims.append(seen)
        if changed:
            found.changing.append(row.id)
        if changed or suspect:
            found.swept.append(seen)
        if row.locked_by is not None and row.verdict(seen.observed, seen.cause).action in _OFF_AGAIN:
            found.urgent.add(row.id)
    elif idle and told and not known.judged and policies.may_act(row.vm_state, seen.observed, seen.cause):
        found.again.append(row.id)


def _judged_by(row: observations.Seen | Instance) -> tuple[object, ...]:
    """Return what an instance is judged by; its policy is left out, since it is judged at once where that changes."""
    return (
        row.vm_state,
        row.observed,
        row.cause,
        row.locked_by is not None,
        bool(row.hold_blocks),
        row.kept_off,
    )


def _seen(row: observations.Seen, seen: Observation | None, report: Report) -> Observation:
    """Return what a report says of an instance, as of what was known of it before; what it does not name is missing."""
    if seen is None:
        return Observation(
            instance_id=row.id, observed=Observed.MISSING, cause=Cause.OTHER, seq=report.seq, at=report.at
        )
    cause = why((row.observed, row.cause), (seen.observed, seen.cause))
    return seen if cause is seen.cause else msgspec.structs.replace(seen, cause=cause)


def still_due(
    connection: sa.Connection, ids: Sequence[str], policies: Policies, at: float
) -> list[Observation]:
    """Return what was seen of those of these instances of whom something is still to follow from that.

    Args:
        connection: where to look.
        ids: instances of whom nothing new was seen.
        policies: by which something may follow where the table says nothing.
        at: seconds since the epoch; these columns do not say when each was seen.
    """
    found: list[Observation] = []
    for row in observations.seen_by_id(connection, ids):
        seen = Observation(
            instance_id=row.id, observed=row.observed, cause=row.cause, seq=row.observed_seq, at=at
        )
        if row.task_state is None and _follows(row, seen, policies, told=False):
            found.append(seen)
    return found


def _follows(row: observations.Seen, seen: Observation, policies: Policies, *, told: bool) -> bool:
    """Say whether anything follows from what was seen of an instance.

    Whose policy counts is not in these columns: what one of them could change is judged by the whole row. Where a
    person was told of the same, that was done: the policies left it at that.
    """
    kind = row.verdict(seen.observed, seen.cause).kind
    if told:
        return kind not in _TOLD
    return kind not in _NOTHING or policies.may_act(row.vm_state, seen.observed, seen.cause)
