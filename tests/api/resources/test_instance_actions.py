"""Nova's view of operations: each end of one has a result."""

from __future__ import annotations

from stateward.api.compute import instance_actions
from stateward.domain.records import UNFINISHED, OperationState


def test_each_end_of_an_operation_has_a_result_of_its_own() -> None:
    """Also one that a person cancelled; what is not finished has none, as in Nova."""
    results: dict[OperationState, str] = vars(instance_actions)["_RESULT"]
    assert set(results) == set(OperationState) - set(UNFINISHED)
    assert len(set(results.values())) == len(results)
    assert results[OperationState.CANCELLED] == "Cancelled"
