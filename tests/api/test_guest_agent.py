"""What is asked of a guest while a request waits: passwords, diagnostics, and the interrupt by which it dumps."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import looptime
import pytest
import pytest_asyncio
import sqlalchemy as sa

from stateward.domain.actions import BY_KEY
from stateward.domain.bodies import ChangePassword
from stateward.domain.locks import ActorKind
from stateward.domain.questions import SetPassword
from stateward.domain.records import Instance, OperationState
from stateward.domain.states import VmState
from stateward.operations.asking import Asking, end_lost
from stateward.store.engine import Database, StoreUnavailable
from stateward.store.tables import AUDIT, METADATA
from tests.api.cloud_in_process import Cloud
from tests.rows import actor
from tests.stack import FailingDatabase, Stack

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

SECRET = "correct horse battery"
ANSWERS, MUTE = "stateward.agent=answer", "stateward.agent=mute"


@pytest_asyncio.fixture
async def cloud(inline_database: Database, swift_folder: Path) -> AsyncIterator[Cloud]:
    """Give a running cloud of one simulated host."""
    stack = Stack(inline_database, swift_folder, None)
    with looptime.enabled(strict=True):
        await stack.start()
    yield Cloud(stack)
    with looptime.enabled(strict=True):
        await stack.stop()


async def audit(cloud: Cloud, instance_id: str, action: str) -> list[tuple[str, object]]:
    """Return the audit trail's events of an action with what they tell, oldest first."""
    query = sa.select(AUDIT.c.event, AUDIT.c.detail).where(
        AUDIT.c.instance_id == instance_id, AUDIT.c.action == action
    )
    await cloud.stack.database.seal()
    rows = await cloud.stack.database.read(
        lambda connection: connection.execute(query.order_by(AUDIT.c.number)).all()
    )
    return [(row.event, row.detail) for row in rows]


async def test_a_password_reaches_the_guest_and_nothing_else(
    cloud: Cloud, swift_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The guest has it; database, journal and logs have only that it was done."""
    instance_id = await cloud.stack.create(ANSWERS)
    answer = await cloud.act(instance_id, "changePassword", {"adminPass": SECRET})
    assert (answer.status, answer.body) == (202, None)
    guest = cloud.stack.hypervisor.guest(instance_id)
    assert guest.passwords == {"root": hashlib.sha256(SECRET.encode()).hexdigest()}
    operation = (await cloud.stack.operations(instance_id))[-1]
    assert answer.headers["x-stateward-operation"] == operation.id
    assert (operation.action, operation.state, operation.message, operation.params) == (
        "changePassword",
        OperationState.SUCCEEDED,
        None,
        {},
    )
    assert await audit(cloud, instance_id, "changePassword") == [
        ("admitted", {}),
        ("finished", {"outcome": "succeeded", "message": None}),
    ]
    rows = await cloud.stack.database.read(
        lambda connection: [
            repr(connection.execute(sa.select(table)).all()) for table in METADATA.sorted_tables
        ]
    )
    kept = "".join(rows).encode() + b"".join(each.read_bytes() for each in swift_folder.glob("*.db*"))
    assert instance_id.encode() in kept
    assert instance_id.encode() in kept
    assert SECRET.encode() not in kept
    assert SECRET not in "".join(capfd.readouterr())


async def test_no_text_of_a_password_is_made() -> None:
    """Whoever writes a body or a question into a log or a traceback writes no password."""
    assert SECRET not in repr(ChangePassword(adminPass=SECRET))
    assert SECRET not in repr(SetPassword(instance_id="i", user="root", password=SECRET))


@pytest.mark.parametrize(
    ("properties", "user"),
    [
        ({}, "root"),
        ({"os_type": "windows"}, "Administrator"),
        ({"os_type": "windows", "os_admin_user": "boss"}, "boss"),
    ],
)
async def test_the_image_says_whose_password_it_is(
    cloud: Cloud, properties: dict[str, str], user: str
) -> None:
    """As Nova's image properties do."""
    instance_id = await cloud.stack.create(ANSWERS, **properties)
    assert (await cloud.act(instance_id, "changePassword", {"adminPass": SECRET})).status == 202
    assert set(cloud.stack.hypervisor.guest(instance_id).passwords) == {user}


@pytest.mark.parametrize(
    ("words", "sentence", "seconds"),
    [
        (
            "",
            "No agent answers inside the guest. Install qemu-guest-agent in it, start it, and ask again.",
            0,
        ),
        (
            MUTE,
            (
                "The agent inside the guest did not answer within 5 s. "
                "Look at qemu-guest-agent in the guest, restart it, and ask again."
            ),
            5,
        ),
    ],
    ids=["none", "mute"],
)
async def test_without_an_answer_it_is_a_conflict(
    cloud: Cloud, words: str, sentence: str, seconds: float
) -> None:
    """Within seconds, told in the operation as well, and the instance is as it was."""
    instance_id = await cloud.stack.create(words)
    began = asyncio.get_running_loop().time()
    answer = await cloud.act(instance_id, "changePassword", {"adminPass": SECRET})
    assert asyncio.get_running_loop().time() - began == pytest.approx(seconds, abs=0.1)
    assert (answer.status, answer.message) == (409, sentence)
    operation = (await cloud.stack.operations(instance_id))[-1]
    assert (operation.state, operation.message) == (OperationState.FAILED, sentence)
    assert (await audit(cloud, instance_id, "changePassword"))[-1] == (
        "finished",
        {"outcome": "failed", "message": sentence},
    )
    instance = await cloud.stack.instance(instance_id)
    assert (instance.vm_state, instance.task_state, instance.fault) == (VmState.ACTIVE, None, None)


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        (
            None,
            400,
            "Invalid input for field/attribute changePassword. Value: None. None is not of type 'object'",
        ),
        (
            {},
            400,
            "Invalid input for field/attribute changePassword. Value: {}. 'adminPass' is a required property",
        ),
        (
            {"adminPass": 7},
            400,
            "Invalid input for field/attribute adminPass. Value: 7. 7 is not of type 'string'",
        ),
        (
            {"adminPass": ""},
            400,
            "Invalid input for field/attribute adminPass. Value: . '' should be non-empty",
        ),
        (
            {"adminPass": "x" * 512},
            400,
            f"Invalid input for field/attribute adminPass. Value: {'x' * 512}. '{'x' * 512}' is too long",
        ),
        ({"adminPass": "x" * 1024 * 1024}, 413, "The request's body is larger than 1048576 bytes."),
        (
            {"adminPass": "a\nroot:b"},
            400,
            (
                "Invalid input for field/attribute adminPass. Value: a\nroot:b. "
                r"'a\nroot:b' does not match '\\A[^\\r\\n]*\\Z'"
            ),
        ),
        (
            {"adminPass": "a", "user": "b"},
            400,
            (
                "Invalid input for field/attribute changePassword. Value: {'adminPass': 'a', 'user': 'b'}. "
                "Additional properties are not allowed ('user' was unexpected)"
            ),
        ),
    ],
    ids=["null", "none", "number", "empty", "long", "1 MiB", "two lines", "more"],
)
async def test_a_bad_password_is_refused(cloud: Cloud, options: object, status: int, sentence: str) -> None:
    """Before anything is admitted."""
    instance_id = await cloud.stack.create(ANSWERS)
    before = len(await cloud.stack.operations(instance_id))
    answer = await cloud.act(instance_id, "changePassword", options)
    assert (answer.status, answer.message) == (status, sentence)
    assert len(await cloud.stack.operations(instance_id)) == before
    assert cloud.stack.hypervisor.guest(instance_id).passwords == {}


async def test_lock_and_state_are_in_the_way(cloud: Cloud) -> None:
    """As for every row of the table, the guest is not asked then."""
    instance_id = await cloud.stack.create(ANSWERS)
    await cloud.stack.immediate.lock(instance_id, actor(), reason=None, project_id=None)
    answer = await cloud.act(instance_id, "changePassword", {"adminPass": SECRET})
    why = "It was locked by user a member at 2023-11-14T22:13:20Z."
    assert (answer.status, answer.message) == (409, f"Instance {instance_id} is locked. {why}")
    await cloud.stack.immediate.unlock(instance_id, actor(), project_id=None)
    await cloud.stack.do("pause", instance_id)
    answer = await cloud.act(instance_id, "changePassword", {"adminPass": SECRET})
    assert answer.status == 409
    assert answer.message == f"Cannot 'changePassword' instance {instance_id} while it is in vm_state paused"
    assert (await cloud.act(instance_id, "changePassword", {"adminPass": SECRET}, by="reader")).status == 403
    assert (
        await cloud.act(instance_id, "changePassword", {"adminPass": SECRET}, by="stranger")
    ).status == 404
    assert cloud.stack.hypervisor.guest(instance_id).passwords == {}


async def test_a_host_that_is_away_is_unavailable(cloud: Cloud) -> None:
    """Not a conflict: the same question may be answered later."""
    instance_id = await cloud.stack.create(ANSWERS)
    cloud.stack.hypervisor.unavailable()
    answer = await cloud.act(instance_id, "changePassword", {"adminPass": SECRET})
    assert (answer.status, answer.message) == (503, "The simulated hypervisor does not answer.")
    cloud.stack.hypervisor.available()
    assert (await cloud.act(instance_id, "changePassword", {"adminPass": SECRET})).status == 202


async def test_a_question_lost_with_its_process_is_ended_by_the_next(cloud: Cloud) -> None:
    """It is never sent to an agent, which would make a success of it, and it says that nothing is known."""
    stack = cloud.stack
    instance_id = await stack.create(ANSWERS)
    asked = asyncio.Event()

    async def never(_instance: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    row = BY_KEY["changePassword"]
    former = Asking(stack.admission)
    asking = asyncio.create_task(former.ask(row, instance_id, actor(), never, project_id=None))
    await asked.wait()
    await former.stop()
    await asyncio.gather(asking, return_exceptions=True)
    assert (await stack.operations(instance_id))[-1].state is OperationState.RUNNING
    assert await end_lost(stack.admission) == 1
    operation = (await stack.operations(instance_id))[-1]
    assert (operation.state, operation.message) == (
        OperationState.FAILED,
        "The server was ended before the guest's answer came, so it is not known whether it was done. Ask again.",
    )
    assert await end_lost(stack.admission) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (ANSWERS, None),
        (
            "",
            "No agent answers inside the guest. Install qemu-guest-agent in it, start it, and ask again.",
        ),
    ],
    ids=["answered", "not answered"],
)
async def test_an_end_that_cannot_be_written_is_written_later(
    cloud: Cloud, words: str, message: str | None
) -> None:
    """The caller is told at once that it is not known; the operation says what came of it, and since when."""
    instance_id = await cloud.stack.create(words)
    await asyncio.sleep(1)
    answered = cloud.stack.clock.now()
    cloud.stack.database.fails(3, after=1)
    answer = await cloud.act(instance_id, "changePassword", {"adminPass": SECRET})
    assert answer.status == 503
    assert (await cloud.stack.operations(instance_id))[-1].state is OperationState.RUNNING
    # The host's own reports and heartbeats take their share of what fails.
    await asyncio.sleep(10)
    operation = (await cloud.stack.operations(instance_id))[-1]
    assert (operation.state, operation.message, operation.finished_at) == (
        OperationState.SUCCEEDED if message is None else OperationState.FAILED,
        message,
        answered,
    )
    assert [event for event, _ in await audit(cloud, instance_id, "changePassword")] == [
        "admitted",
        "finished",
    ]


async def test_a_database_that_stays_away_is_tried_once_a_second(cloud: Cloud) -> None:
    """Until the server ends, which does not wait for it."""
    instance_id = await cloud.stack.create(ANSWERS)
    away = FailingDatabase(cloud.stack.database)
    away.fails(10**9, after=1)
    asking = Asking(cloud.stack.admission.on(away))

    async def answers(_instance: Instance) -> None:
        """Answer."""

    row = BY_KEY["changePassword"]
    with pytest.raises(StoreUnavailable):
        await asking.ask(row, instance_id, actor(), answers, project_id=None)
    before = away.writes
    await asyncio.sleep(60.5)
    assert away.writes - before == 60
    await asking.stop()
    await asyncio.sleep(60)
    assert away.writes - before == 60


async def test_who_asks_may_go_away(cloud: Cloud) -> None:
    """A client that hangs up ends its request, not the question."""
    stack = cloud.stack
    instance_id = await stack.create(ANSWERS)
    asked, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(_instance: Instance) -> None:
        asked.set()
        await goes_on.wait()

    row = BY_KEY["changePassword"]
    asking = asyncio.create_task(stack.asking.ask(row, instance_id, actor(), slow, project_id=None))
    await asked.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert asking.cancelled()
    goes_on.set()
    await asyncio.sleep(1)
    assert (await stack.history(instance_id))[-1] == "changePassword succeeded"


async def test_an_interrupt_reaches_the_guest(cloud: Cloud) -> None:
    """From 2.17 on; the record stays as it is, also in ERROR with its fault."""
    instance_id = await cloud.stack.create()
    assert (await cloud.act(instance_id, "trigger_crash_dump", v=16)).status == 404
    assert (await cloud.act(instance_id, "trigger_crash_dump", {}, v=17)).status == 400
    answer = await cloud.act(instance_id, "trigger_crash_dump", v=17)
    assert answer.status == 202
    await cloud.stack.idle(instance_id)
    assert await cloud.stack.history(instance_id) == ["create succeeded", "trigger_crash_dump succeeded"]
    console = cloud.stack.hypervisor.guest(instance_id).console
    assert console[-1] == "Uhhuh. NMI received for unknown reason 20 on CPU 0."
    await cloud.stack.immediate.reset_state(instance_id, actor(ActorKind.ADMIN), to=VmState.ERROR)
    assert (await cloud.act(instance_id, "trigger_crash_dump", v=17)).status == 202
    assert (await cloud.stack.idle(instance_id)).vm_state is VmState.ERROR


async def test_diagnostics_are_the_admins(cloud: Cloud) -> None:
    """Flat before 2.48, in one form since; only of a guest that runs."""
    instance_id = await cloud.stack.create()
    path = f"/servers/{instance_id}/diagnostics"
    assert (await cloud("GET", path)).status == 403
    flat = await cloud("GET", path, by="admin", v=47)
    assert (flat.status, flat.body) == (
        200,
        {
            "cpu0_time": 0,
            "memory": 65536,
            "memory-used": 65536,
            "vda_read": 0,
            "vda_read_req": 0,
            "vda_write": 0,
            "vda_write_req": 0,
            "vda_errors": 0,
        },
    )
    await asyncio.sleep(100)
    found = await cloud("GET", path, by="admin", v=48)
    assert found.status == 200
    assert found.body.pop("uptime") == 100
    assert found.body == {
        "state": "running",
        "driver": "simulated",
        "hypervisor": "simulated",
        "hypervisor_os": None,
        "config_drive": False,
        "num_cpus": 1,
        "num_disks": 1,
        "num_nics": 0,
        "memory_details": {"maximum": 64, "used": 64},
        "cpu_details": [{"id": 0, "time": 0, "utilisation": None}],
        "disk_details": [
            {
                "read_bytes": 0,
                "read_requests": 0,
                "write_bytes": 0,
                "write_requests": 0,
                "errors_count": 0,
            }
        ],
        "nic_details": [],
    }
    await cloud.stack.do("stop_force", instance_id)
    off = await cloud("GET", path, by="admin", v=48)
    assert (off.status, off.message) == (
        409,
        f"Cannot 'get_diagnostics' instance {instance_id} while it is in power state shutdown",
    )
    assert (await cloud("GET", "/servers/none/diagnostics", by="admin")).status == 404
