"""``/v1/policies`` and an instance's policy: who decides, and what would be done (R13)."""

from __future__ import annotations

import urllib.parse
from typing import Any, Final

import msgspec
import pytest

from stateward.domain.policies import CrashLoop, Loop, Policies, Policy, Rule
from stateward.domain.states import Cause, Observed, VmState
from stateward.domain.verdicts import Kind
from stateward.store.engine import Database
from tests.api.native.bench import Api
from tests.rows import FLAVOR

A: Final = VmState.ACTIVE
POLICIES: Final = Policies(
    named={
        "careful": Policy(
            says="A person looks first.",
            rule=(Rule(expected=A, observed=Observed.CRASHED, verdict=Kind.ALERT),),
            crash_loop=Loop(restores=3),
        ),
        "leave-off": Policy(
            rule=(
                Rule(expected=A, observed=Observed.SHUTOFF, cause=Cause.HOST, verdict=Kind.ADOPT),
                Rule(expected=A, observed=Observed.DUPLICATE, verdict=Kind.ALERT),
            )
        ),
        "strict": Policy(),
    },
    default="careful",
    hosts={"h": "strict"},
    projects={"another": "strict"},
    selectable=frozenset({"leave-off"}),
    crash_loop=CrashLoop(restores=5, seconds=100, pause=1, factor=2),
)


@pytest.fixture
def ruled(inline_database: Database) -> Api:
    """Give an API of a deployment with policies."""
    return Api(inline_database, policies=POLICIES)


async def test_the_list(ruled: Api) -> None:
    """Says what each changes; which hosts and projects have it only admins are told."""
    answer = await ruled("GET", "/v1/policies", by="admin")
    assert answer.status == 200
    assert answer.body["crash_loop"] == {"restores": 5, "seconds": 100.0, "pause": 1.0, "factor": 2.0}
    careful, leave_off, strict = answer.body["policies"]
    assert careful == {
        "name": "careful",
        "says": "A person looks first.",
        "rules": [
            {"expected": "active", "observed": "crashed", "cause": None, "verdict": "alert", "action": None}
        ],
        "crash_loop": {"restores": 3},
        "selectable": False,
        "default": True,
        "hosts": [],
        "projects": [],
    }
    assert (leave_off["selectable"], leave_off["default"]) == (True, False)
    assert (strict["hosts"], strict["projects"]) == (["h"], ["another"])
    seen = (await ruled("GET", "/v1/policies")).body["policies"]
    assert [(each["hosts"], each["projects"]) for each in seen] == [(None, None)] * 3


async def test_who_decides_for_an_instance(ruled: Api) -> None:
    """Layer by layer, what is not followed and why, what they change, and what follows now."""
    instance_id = await ruled.desk.add(
        observed=Observed.SHUTOFF.value,
        cause=Cause.HOST.value,
        metadata={"stateward:policy": "leave-off"},
        flavor={**_builtins(FLAVOR), "extra_specs": {"stateward:policy": "none"}},
    )
    answer = await ruled("GET", f"/v1/instances/{instance_id}/policy")
    assert answer.status == 200
    said = answer.body
    assert said["chosen"] == [
        {"layer": "instance", "policy": "leave-off", "followed": True, "why": None},
        {"layer": "flavor", "policy": "none", "followed": False, "why": "There is no policy called none."},
        {"layer": "host", "policy": "strict", "followed": True, "why": None},
        {"layer": "default", "policy": "careful", "followed": True, "why": None},
    ]
    assert said["now"] == {
        "causes": ["host"],
        "verdict": "adopt",
        "action": None,
        "becomes": "stopped",
        "decided_by": "policy leave-off (instance), rule 1",
        "says": "Recorded as active and seen shutoff; by policy leave-off (instance), rule 1, it is recorded as "
        "stopped.",
    }
    changes = [
        (each["observed"], len(each["causes"]), each["verdict"], each["decided_by"])
        for each in said["changes"]
    ]
    assert changes == [
        ("shutoff", 1, "adopt", "policy leave-off (instance), rule 1"),
        ("crashed", len(Cause), "alert", "policy careful (default), rule 1"),
        ("duplicate", len(Cause), "alert", "policy leave-off (instance), rule 2"),
    ]
    loop = {"restores": 3, "seconds": 100.0, "pause": 1.0, "factor": 2.0, "recent": 0, "wait": 0.0}
    assert said["crash_loop"] == loop
    explained = (await ruled("GET", f"/v1/instances/{instance_id}/explain")).body["seen"]
    assert (explained["verdict"], explained["decided_by"]) == (said["now"]["says"], said["now"]["decided_by"])
    assert (await ruled("GET", f"/v1/instances/{instance_id}/policy", by="stranger")).status == 404


def _builtins(value: Any) -> dict[str, Any]:

    found: dict[str, Any] = msgspec.to_builtins(value)
    return found


def asked(**said: Any) -> str:
    return f"/v1/policies/simulate?{urllib.parse.urlencode(said, doseq=True)}"


async def test_a_case(ruled: Api) -> None:
    """By each cause, those together for which the same follows."""
    answer = await ruled("GET", asked(expected="active", observed="shutoff", policy=["strict", "leave-off"]))
    assert answer.status == 200
    assert answer.body["trial"]["policies"] == ["strict", "leave-off"]
    found = {tuple(each["causes"]): each for each in answer.body["outcomes"]}
    assert sorted(cause for causes in found for cause in causes) == sorted(Cause)
    assert found["guest",]["becomes"] == "stopped"
    assert found["host",]["decided_by"] == "policy leave-off (instance), rule 1"
    assert found["migration",]["verdict"] == "alert"
    # Without a policy that is named the default one counts.
    answer = await ruled("GET", asked(expected="active", observed="crashed", cause="crashed"))
    (only,) = answer.body["outcomes"]
    assert (only["verdict"], only["decided_by"]) == ("alert", "policy careful (default), rule 1")
    answer = await ruled("GET", asked(expected="active", observed="crashed", cause="crashed", held="true"))
    (only,) = answer.body["outcomes"]
    assert (only["verdict"], only["becomes"], only["decided_by"]) == ("adopt", "stopped", "table")
    answer = await ruled("GET", asked(expected="stopped", observed="running", locked="true"))
    (only,) = answer.body["outcomes"]
    assert only["action"] == "restore_off"
    answer = await ruled("GET", asked(expected="active", observed="duplicate", copy="older"))
    (only,) = answer.body["outcomes"]
    assert only["action"] == "remove_stray"


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"observed": "running"}, "The query parameter expected is needed."),
        ({"expected": "active"}, "The query parameter observed is needed."),
        (
            {"expected": "on", "observed": "running"},
            (
                "'on' is no vm state; there are: building, active, paused, suspended, stopped, rescued, resized, "
                "shelved, shelved_offloaded, soft-delete, error, deleted."
            ),
        ),
        (
            {"expected": "active", "observed": "running", "copy": "new"},
            "'new' is no copy; there are: older, older-running, running, resting.",
        ),
        (
            {"expected": "active", "observed": "running", "locked": "yes"},
            "The query parameter locked is 'yes'; it is true or false.",
        ),
        (
            {"expected": "active", "observed": "running", "policy": "nope"},
            "There is no policy called nope. There are: careful, leave-off, strict.",
        ),
        (
            {"expected": "active", "observed": "running", "color": "red"},
            (
                "The query parameter 'color' is not known here; known are: expected, observed, cause, locked, held, "
                "kept_off, copy, policy."
            ),
        ),
    ],
)
async def test_a_case_that_is_none(ruled: Api, query: dict[str, str], says: str) -> None:
    """Is refused with what can be said."""
    answer = await ruled("GET", asked(**query))
    assert (answer.status, answer.detail) == (400, says)
