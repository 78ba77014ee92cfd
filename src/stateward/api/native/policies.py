"""``/v1/policies`` and ``/v1/instances/{id}/policy``: what the arbiter would do, and who decides that (R13)."""

from __future__ import annotations

from typing import Final

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from stateward.api.native.call import Call, Resource, reply
from stateward.api.native.locks import find_instance
from stateward.domain.actions import Policy, Role, restores
from stateward.domain.errors import Invalid
from stateward.domain.policies import CrashLoop, Policies, Rule
from stateward.domain.records import Instance, Operation
from stateward.domain.states import Cause, Observed, VmState
from stateward.domain.trials import Outcome, Trial, outcome, try_out, word
from stateward.domain.verdicts import Layer, Stray
from stateward.store import operations

_READ: Final = Policy("stateward:policies:read", Role.READER)
#: How a query says yes and no.
_FLAGS: Final = {"true": True, "false": False}


class PolicyView(msgspec.Struct, frozen=True, kw_only=True):
    """One policy, as the operator wrote it."""

    name: str
    says: str
    #: Of those that match the first counts.
    rules: tuple[Rule, ...]
    #: What of the bounds of restoring it sets.
    crash_loop: dict[str, float]
    #: Owners may choose it.
    selectable: bool
    #: It is the default.
    default: bool
    #: Who else it was chosen for; null: only admins are told.
    hosts: list[str] | None
    projects: list[str] | None


class PoliciesView(msgspec.Struct, frozen=True, kw_only=True):
    """All policies by name, and the bounds of restoring where none sets them."""

    policies: list[PolicyView]
    crash_loop: CrashLoop


class ChosenView(msgspec.Struct, frozen=True, kw_only=True):
    """A policy that a layer names."""

    layer: Layer
    policy: str
    followed: bool
    #: Why it is not.
    why: str | None


class CellView(Outcome, frozen=True, kw_only=True):
    """What is done in a case that a policy has changed."""

    observed: Observed


class LoopView(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of restoring, and how near to them the instance is; times in seconds."""

    restores: int
    seconds: float
    pause: float
    factor: float
    #: Restores within the last so many seconds.
    recent: int
    #: Seconds to wait after the last one before there is another; null: there is none any more.
    wait: float | None


class InstancePolicyView(msgspec.Struct, frozen=True, kw_only=True):
    """Who decides for an instance, and what."""

    instance_id: str
    name: str
    #: The one that goes first at the front; what none of them says the table decides.
    chosen: list[ChosenView]
    vm_state: VmState
    observed: Observed
    #: What follows from what was seen last.
    now: Outcome
    #: What its policies change, of the state that it is recorded in.
    changes: list[CellView]
    crash_loop: LoopView


class TrialView(msgspec.Struct, frozen=True, kw_only=True):
    """A case, and what would follow."""

    trial: Trial
    outcomes: list[Outcome]


async def _list(call: Call) -> Response:
    policies, admin = call.services.policies, call.token.is_admin
    return reply(
        PoliciesView(
            policies=[_policy_view(policies, name, admin=admin) for name in sorted(policies.named)],
            crash_loop=policies.crash_loop,
        )
    )


def _policy_view(policies: Policies, name: str, *, admin: bool) -> PolicyView:
    policy = policies.named[name]
    said = msgspec.structs.asdict(policy.crash_loop)
    return PolicyView(
        name=name,
        says=policy.says,
        rules=policy.rule,
        crash_loop={bound: value for bound, value in said.items() if value is not None},
        selectable=name in policies.selectable,
        default=name == policies.default,
        hosts=sorted(host for host, named in policies.hosts.items() if named == name) if admin else None,
        projects=(
            sorted(project for project, named in policies.projects.items() if named == name)
            if admin
            else None
        ),
    )


async def _of_instance(call: Call) -> Response:
    instance = await find_instance(call, call.request.path_params["id"])
    policies, now = call.services.policies, call.services.clock.now()
    loop = policies.crash_loop_of(instance)

    def look(connection: sa.Connection) -> list[Operation]:
        return operations.since(connection, instance.id, restores(), loop.seconds, now)

    tries = len(await call.services.database.read(look))
    return reply(
        InstancePolicyView(
            instance_id=instance.id,
            name=instance.name,
            chosen=[
                ChosenView(
                    layer=each.layer, policy=each.policy, followed=each.refused is None, why=each.refused
                )
                for each in policies.chosen(instance)
            ],
            vm_state=instance.vm_state,
            observed=instance.observed,
            now=outcome(policies.judge(instance), (instance.cause,)),
            changes=_changes(policies, instance),
            crash_loop=LoopView(
                **msgspec.structs.asdict(loop),
                recent=tries,
                wait=None if tries >= loop.restores else loop.wait(tries),
            ),
        )
    )


def _changes(policies: Policies, instance: Instance) -> list[CellView]:
    found: list[CellView] = []
    for observed in Observed:
        by_rule: dict[Outcome, list[Cause]] = {}
        for cause in Cause:
            seen = msgspec.structs.replace(instance, task_state=None, observed=observed, cause=cause)
            verdict = (
                policies.judge_stray(seen, Stray.OLDER)
                if observed is Observed.DUPLICATE
                else policies.judge(seen)
            )
            if verdict.by is not None:
                by_rule.setdefault(outcome(verdict, ()), []).append(cause)
        found += [
            CellView(
                observed=observed,
                causes=tuple(causes),
                verdict=each.verdict,
                action=each.action,
                becomes=each.becomes,
                decided_by=each.decided_by,
                says=each.says,
            )
            for each, causes in by_rule.items()
        ]
    return found


async def _simulate(call: Call) -> Response:
    said = call.request.query_params
    for name in ("expected", "observed"):
        if name not in said:
            raise Invalid(f"The query parameter {name} is needed.")
    trial = Trial(
        expected=word(VmState, said["expected"], "vm state"),
        observed=word(Observed, said["observed"], "observation"),
        cause=word(Cause, said["cause"], "cause") if "cause" in said else None,
        locked=_flag(call, "locked"),
        held=_flag(call, "held"),
        kept_off=_flag(call, "kept_off"),
        copy=word(Stray, said["copy"], "copy") if "copy" in said else None,
        policies=tuple(said.getlist("policy")),
    )
    return reply(TrialView(trial=trial, outcomes=try_out(call.services.policies, trial)))


def _flag(call: Call, name: str) -> bool:
    value = call.request.query_params.get(name, "false")
    if value not in _FLAGS:
        raise Invalid(f"The query parameter {name} is {value!r}; it is true or false.")
    return _FLAGS[value]


#: By path, below ``/v1``.
RESOURCES: Final[dict[str, dict[str, Resource]]] = {
    "/policies": {
        "GET": Resource(
            handler=_list,
            summary="List the policies by which the arbiter's verdicts are changed.",
            policy=_READ,
            answer=PoliciesView,
        )
    },
    "/policies/simulate": {
        "GET": Resource(
            handler=_simulate,
            summary="Say what the arbiter would do in a case, and by which rule.",
            policy=_READ,
            answer=TrialView,
            query={
                "expected": "The recorded vm state.",
                "observed": "What is seen of the guest.",
                "cause": "Why it is so; without it each cause is tried.",
                "locked": "true: it is locked.",
                "held": "true: a hold is on it.",
                "kept_off": "true: a hold keeps it off.",
                "copy": "Of a copy on another host (observed duplicate): "
                "older, older-running, running (without it), resting.",
                "policy": "As if the instance named this policy; may be given several times, the first goes first.",
            },
        )
    },
    "/instances/{id}/policy": {
        "GET": Resource(
            handler=_of_instance,
            summary="Say which policies count for an instance, what they change, and what follows now.",
            policy=_READ,
            answer=InstancePolicyView,
        )
    },
}
