"""What locks refused is in the audit trail, once each; what states refused is not."""

from __future__ import annotations

import pytest

from stateward.domain.actions import BY_KEY
from stateward.domain.errors import Forbidden, Refused
from stateward.domain.locks import ALL_CLASSES, ActorKind
from stateward.domain.records import Instance
from stateward.operations.asking import Asking
from tests.operations.desk import Desk
from tests.rows import actor

HELD = {"hold_blocks": int(ALL_CLASSES), "locked_by": "admin"}


async def test_a_hold_refuses_the_provider_too(desk: Desk) -> None:
    """With several rows of one action it is still one refusal."""
    instance_id = await desk.add(**HELD)
    with pytest.raises(Refused):
        await desk.admission.admit(
            (BY_KEY["stop"], BY_KEY["stop_force"]), instance_id, actor(ActorKind.ADMIN)
        )
    assert await desk.audit() == [("refused", "stop", {"why": f"Instance {instance_id} is locked"})]


async def test_immediate_actions(desk: Desk) -> None:
    """A change of metadata, and a member's unlock of the provider's lock."""
    instance_id = await desk.add()
    await desk.immediate.lock(instance_id, actor(ActorKind.ADMIN, project="q"), reason=None, project_id=None)
    with pytest.raises(Refused):
        await desk.immediate.change(
            BY_KEY["update_metadata"], instance_id, actor(), lambda _instance: {"name": "x"}, project_id="p"
        )
    with pytest.raises(Forbidden):
        await desk.immediate.unlock(instance_id, actor(), project_id="p")
    admitted, changed, unlocked = await desk.audit()
    assert admitted[:2] == ("admitted", "lock")
    why = f"Instance {instance_id} is locked. It was locked by the provider at 2023-11-14T22:13:20Z."
    assert changed == ("refused", "update_metadata", {"why": why})
    assert unlocked == (
        "refused",
        "unlock",
        {"why": "Policy doesn't allow os_compute_api:os-lock-server:unlock:unlock_override to be performed."},
    )


async def test_questions(desk: Desk) -> None:
    """They are refused as everything else is, and the guest is not asked."""
    instance_id = await desk.add(**HELD)

    async def question(_instance: Instance) -> None:
        raise AssertionError

    with pytest.raises(Refused):
        await Asking(desk.admission).ask(
            BY_KEY["changePassword"], instance_id, actor(), question, project_id="p"
        )
    assert await desk.audit() == [("refused", "changePassword", {"why": f"Instance {instance_id} is locked"})]


async def test_what_is_not_recorded(desk: Desk) -> None:
    """A state's refusal, another project's question, and what the control plane asks again every minute."""
    stopped = await desk.add(vm_state="stopped")
    locked = await desk.add(vm_state="soft-delete", **HELD)
    with pytest.raises(Refused):
        await desk.admit("stop", stopped)
    with pytest.raises(Refused):
        await desk.admit("stop", locked, project_id="other")
    with pytest.raises(Refused):
        await desk.admit("reclaim", locked, ActorKind.SYSTEM)
    assert await desk.audit() == []
