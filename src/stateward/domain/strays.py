"""Copies of an instance on another host than its record's: which of the two is the instance, as far as is certain.

Every operation that an instance was ever given has a fence, and a host. What was done on the record's host after
everything that was done on the other makes the copy there the older one (B3, R14). Nothing else is a proof: a guest
that somebody migrated by hand, or brought back from a backup, may be the only good one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from stateward.domain.actions import BY_KEY
from stateward.domain.records import UNFINISHED, Instance, Observation, Operation, OperationState
from stateward.domain.states import ON_NO_HOST, Cause, Observed
from stateward.domain.verdicts import Stray

#: Seen as these, the record's own guest is not known to be there.
_NOT_THERE: Final = frozenset({Observed.MISSING, Observed.UNKNOWN, Observed.DUPLICATE})


def stray_of(
    instance: Instance, host: str, observation: Observation, history: Iterable[Operation], *, shared: bool
) -> Stray | None:
    """Say what a guest seen on a host is, when the instance's record names another host.

    Args:
        instance: its row.
        host: where the guest was seen.
        observation: as what.
        history: all operations of the instance, in any order.
        shared: the host's disks are other hosts' too: one that is removed there could be the instance's own.

    Returns:
        None when it is no copy, or an operation is under way there.
    """
    if host == instance.host or observation.observed in _NOT_THERE:
        return None
    worked = [each for each in history if _makes_it_so(each)]
    there = [each for each in worked if each.host == host]
    if any(each.state in UNFINISHED for each in there):
        return None
    runs = observation.observed is Observed.RUNNING
    if there and _is_newer(instance, worked, than=max(each.fence for each in there)):
        if runs:
            return Stray.OLDER_RUNNING
        return Stray.RESTING if shared else Stray.OLDER
    return Stray.RUNNING if runs else Stray.RESTING


def _makes_it_so(operation: Operation) -> bool:
    """Whether an operation was done to the instance's own guest."""
    action = BY_KEY.get(operation.action)
    return action is not None and action.is_operation and not action.elsewhere


def _is_newer(instance: Instance, worked: list[Operation], *, than: int) -> bool:
    """Whether what the record says was brought about after a fence."""
    done = [each for each in worked if each.state is OperationState.SUCCEEDED]
    # A hold keeps every copy that there is of its instance (R6), and what was adopted is its owner's to remove.
    if instance.held or instance.adopted_as is not None:
        return False
    if instance.vm_state in ON_NO_HOST:
        return any(each.fence >= than and BY_KEY[each.action].becomes in ON_NO_HOST for each in done)
    there = instance.observed not in _NOT_THERE and instance.cause is not Cause.MIGRATION
    return there and any(each.fence > than and each.host == instance.host for each in done)
