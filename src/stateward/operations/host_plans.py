"""Plans for hosts: made of what is there, kept, and approved. What they come to is done by ``host_moves``."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from stateward.domain import evacuation
from stateward.domain.actions import BY_KEY
from stateward.domain.errors import Conflict, NotFound
from stateward.domain.evacuation import Evacuee, Plan, PlanKind, PlanState, Said, Wish, said, wish_of
from stateward.domain.hosts import Condition
from stateward.domain.locks import BINDS, ActorKind, LockKind, OperationClass
from stateward.domain.placement import Group, Rules, need_of
from stateward.domain.records import Actor, Instance
from stateward.operations.placing import candidate_of, group_of
from stateward.store import host_plans, hosts, instances, operations
from stateward.store.host_plans import KeptPlan
from stateward.store.hosts import Host
from stateward.store.instances import Query

#: What the rows that a plan can name do, by which locks block them.
_GUARDS: Final[Mapping[str, OperationClass]] = {name: row.guarded for name, row in BY_KEY.items()}


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator says of evacuating; instances, images and flavors say it themselves."""

    default: Wish = Wish.EVACUATE
    #: By project's id, and by host's name.
    projects: Mapping[str, Wish] = {}
    hosts: Mapping[str, Wish] = {}

    def of(self, instance: Instance) -> tuple[Wish, str]:
        """Return what is wished for an instance, and which layer says so."""
        return wish_of(
            (
                said("metadata", instance.metadata),
                Said(origin="project", wish=self.projects.get(instance.project_id)),
                said("image", instance.image.properties),
                said("flavor", instance.flavor.extra_specs),
                Said(origin="host", wish=self.hosts.get(instance.host)),
                Said(origin="default", wish=self.default),
            )
        )


NO_WISHES: Final = Wishes()


def preview(
    connection: sa.Connection,
    host: Host,
    kind: PlanKind,
    *,
    rules: Rules,
    wishes: Wishes,
    now: float,
    migrate: bool = False,
) -> Plan:
    """Plan for a host as it is now; nothing is kept."""
    candidates = [candidate_of(each, rules, now) for each in hosts.every(connection)]
    found = instances.page(connection, Query(host=host.name, deleted=None, sort=(("number", False),)))
    evacuees = [_evacuee(each, wishes) for each in found if each.vm_state.value != "deleted"]
    groups: dict[str, Group] = {}
    for group_id in sorted({each.group_id for each in evacuees if each.group_id is not None}):
        group = group_of(connection, group_id, None, host.name)
        if group is not None:
            groups[group_id] = group
    if kind is PlanKind.DRAIN:
        return evacuation.drain(
            host.name, evacuees, candidates, migrate=migrate, guards=_GUARDS, groups=groups
        )
    return evacuation.evacuation(
        host.name, evacuees, candidates, shared=host.shared, guards=_GUARDS, groups=groups
    )


#: In a plan's detail: since when its host was in its condition when the plan was made.
SINCE: Final = "since"
#: Seconds by which a plan is at least newer than the one before it.
_AFTER: Final = 0.001


def is_of(plan: KeptPlan, host: Host) -> bool:
    """Say whether a plan was made since its host is in its condition."""
    if SINCE in plan.detail:
        return bool(plan.detail[SINCE] == host.condition_at)
    # Made by a version that did not note it.
    return plan.made_at >= (host.condition_at or 0.0)


def keep(
    connection: sa.Connection,
    plan: Plan,
    kind: PlanKind,
    actor: Actor,
    *,
    now: float,
    detail: Mapping[str, Any],
    approved: bool = False,
) -> KeptPlan:
    """Keep a plan in the stead of those of its kind that nobody has approved.

    Raises:
        Conflict: one that was approved is not over.
    """
    last = host_plans.of_host(connection, plan.host, kind)
    if last is not None and last.state is PlanState.APPROVED:
        raise Conflict(f"Plan {last.id} for host {plan.host} is not over yet.")
    host_plans.cancel(connection, plan.host, kind, now, approved=False)
    host = hosts.named(connection, plan.host)
    kept = KeptPlan(
        id=str(uuid.uuid4()),
        host=plan.host,
        kind=kind,
        state=PlanState.APPROVED if approved else PlanState.PLANNED,
        # The newest is the last one made, also after a clock that was set back.
        made_at=now if last is None else max(now, last.made_at + _AFTER),
        made_by=actor.user_id,
        approved_at=now if approved else None,
        approved_by=actor.user_id if approved else None,
        detail={**detail, SINCE: None if host is None else host.condition_at},
    )
    host_plans.insert(connection, kept, plan.moves)
    operations.record(
        connection,
        at=now,
        event="host",
        actor=actor,
        instance_id=None,
        action="plan",
        detail={"host": plan.host, "plan": kept.id, "kind": kind.value} | counts(plan),
    )
    return kept


def approve(connection: sa.Connection, host: str, plan_id: str, actor: Actor, now: float) -> KeptPlan:
    """Approve an evacuation: its lines are admitted one by one from now on.

    Raises:
        NotFound: there is no such plan for this host.
        Conflict: it is approved already, or over, or the host is not fenced.
    """
    plan = host_plans.get(connection, plan_id)
    if plan is None or plan.host != host:
        raise NotFound(f"Plan {plan_id} could not be found.")
    if plan.kind is PlanKind.EVACUATE and hosts.hold_fenced(connection, host) is None:
        found = hosts.named(connection, host)
        condition = Condition.UP if found is None else found.condition
        raise Conflict(
            f"Host {host} is {condition}, not fenced: nothing of it may be started elsewhere. "
            "See `stateward host fence`."
        )
    if not host_plans.approve(connection, plan_id, actor.user_id, now):
        raise Conflict(f"Plan {plan_id} is {plan.state}; only one that waits for it can be approved.")
    operations.record(
        connection,
        at=now,
        event="host",
        actor=actor,
        instance_id=None,
        action="approve",
        detail={"host": host, "plan": plan_id},
    )
    return msgspec.structs.replace(plan, state=PlanState.APPROVED, approved_at=now, approved_by=actor.user_id)


def counts(plan: Plan) -> dict[str, Any]:
    """Return how many lines of a plan say what, for people."""
    left: defaultdict[str, int] = defaultdict(int)
    for move in plan.moves:
        if move.action is None:
            left[move.says] += 1
    return {"acts": len(plan.acting), "left": dict(left)}


def _evacuee(instance: Instance, wishes: Wishes) -> Evacuee:
    wish, origin = wishes.of(instance)
    blocks = OperationClass(0)
    for kind, column in _BLOCKS.items():
        if ActorKind.SYSTEM in BINDS[kind]:
            blocks |= getattr(instance, column)
    return Evacuee(
        id=instance.id,
        name=instance.name,
        project_id=instance.project_id,
        vm_state=instance.vm_state,
        task_state=instance.task_state,
        need=need_of(instance.flavor),
        zone=instance.zone,
        group_id=instance.group_id,
        wish=wish,
        wish_from=origin,
        adopted=instance.adopted_as is not None,
        blocks=blocks,
    )


_BLOCKS: Final = {
    LockKind.OWNER: "owner_blocks",
    LockKind.ADMIN: "admin_blocks",
    LockKind.HOLD: "hold_blocks",
}
