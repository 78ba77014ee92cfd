"""A verdict on a copy is written only where what it was found by is still so (R14): else the last good one may go."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import pytest
import sqlalchemy as sa

from stateward.arbiter.strays import Strays
from stateward.domain.locks import ALL_CLASSES
from stateward.domain.policies import NO_POLICIES
from stateward.domain.records import Observation
from stateward.domain.states import Cause, Observed, VmState
from stateward.domain.verdicts import Verdict
from stateward.operations.admission import Admission, ShutdownDefaults
from stateward.store import operations
from stateward.store.engine import Database
from stateward.store.tables import AUDIT, AUDIT_UNSEALED
from tests.arbiter.test_passed import Changing, trace
from tests.arbiter.test_reports import add, row_of
from tests.arbiter.test_strays import made
from tests.rows import NOW, SetClock


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A copy on ``g`` of an instance on ``h``, and what is written of that between the look and the write."""

    #: The copy, as it is seen.
    seen: Observed
    #: The instance was on ``g`` before.
    older: bool = True
    #: As the instance is recorded.
    recorded: Mapping[str, Any] = {}
    then: Mapping[str, Any]
    #: What is done about the copy where nothing is written between.
    does: str
    #: What is done by the next look, after it was.
    does_next: str | None
    #: What the record says then.
    becomes: VmState = VmState.ACTIVE


HELD: Final = {"hold_blocks": int(ALL_CLASSES), "locked_by": "admin"}
MISSING: Final = {"observed": "missing", "observed_seq": 7}

CASES: Final[Mapping[str, Case]] = {
    "its own guest is gone, and the copy would be removed": Case(
        seen=Observed.SHUTOFF, then=MISSING, does="remove_stray", does_next=None
    ),
    "its own guest was migrated away, and the copy would be removed": Case(
        seen=Observed.SHUTOFF,
        then={"observed": "shutoff", "cause": "migration", "observed_seq": 7},
        does="remove_stray",
        does_next=None,
    ),
    "it is held, and the copy would be removed": Case(
        seen=Observed.SHUTOFF, then=HELD, does="remove_stray", does_next=None
    ),
    "its own guest is gone, and the copy would be halted as an older one": Case(
        seen=Observed.RUNNING,
        then=MISSING,
        does="halt_stray",
        does_next="halt_stray",
        becomes=VmState.ERROR,
    ),
    "the record followed its guest": Case(
        seen=Observed.RUNNING,
        older=False,
        then={"vm_state": "stopped", "observed": "shutoff", "observed_seq": 7},
        does="halt_stray",
        does_next="halt_stray",
        becomes=VmState.ERROR,
    ),
    "the record is not in error any more": Case(
        seen=Observed.RUNNING,
        older=False,
        recorded={"vm_state": "error"},
        then={"vm_state": "active"},
        does="halt_stray",
        does_next="halt_stray",
        becomes=VmState.ERROR,
    ),
}


class Armed(Changing):
    """One that changes the rows after the next read alone, and only once it is armed."""

    armed = False

    async def overtake(self) -> None:
        if self.armed:
            self.armed = False
            await super().overtake()


class Copy:
    """A copy that has been there for long enough, judged when a test says so."""

    def __init__(self, database: Database, case: Case) -> None:
        self.database = Armed(database, case.then)
        self._case = case
        self._strays = Strays(
            Admission(self.database, SetClock(), ShutdownDefaults(), lambda: None), NO_POLICIES
        )
        self.instance_id = ""

    async def settle(self) -> None:
        """Record the instance, and have the copy seen before."""
        self.instance_id = await add(self.database, **self._case.recorded)
        await self._done("h", 5)
        if self._case.older:
            await self._done("g", 4)
        if self._case.seen is Observed.SHUTOFF:
            await self.judge()

    async def _done(self, host: str, fence: int) -> None:
        operation = made(self.instance_id, host, fence)
        await self.database.write(lambda connection: operations.insert(connection, operation))

    async def judge(self) -> Verdict | None:
        seen = Observation(
            instance_id=self.instance_id, observed=self._case.seen, cause=Cause.OTHER, seq=1, at=NOW
        )
        return await self._strays.judge("g", seen)

    async def asked(self) -> list[str]:
        """What was asked of ``g`` about the copy."""
        found = await self.database.read(
            functools.partial(operations.of_instance, instance_id=self.instance_id)
        )
        return [each.action for each in found if each.action.endswith("_stray")]

    async def told(self) -> list[Mapping[str, Any]]:
        """The verdicts in the audit trail."""

        def look(connection: sa.Connection) -> list[Mapping[str, Any]]:
            return [
                detail
                for table in (AUDIT, AUDIT_UNSEALED)
                for detail in connection.execute(sa.select(table.c.detail).where(table.c.event == "verdict"))
                .scalars()
                .all()
            ]

        return await self.database.read(look)


@pytest.fixture(autouse=True)
def _settled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stateward.arbiter.strays._SETTLE_SECONDS", 0.0)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_a_verdict_about_what_has_passed_is_not_written(database: Database, case: Case) -> None:
    """Neither to the record nor to the copy; the next look judges what is so then, and says what that was."""
    copy = Copy(database, case)
    await copy.settle()
    copy.database.armed = True
    await copy.judge()
    assert await trace(database) == copy.database.left
    assert await copy.told() == []
    before = (await row_of(database, copy.instance_id)).vm_state
    await copy.judge()
    assert await copy.asked() == ([] if case.does_next is None else [case.does_next])
    assert (await row_of(database, copy.instance_id)).vm_state is case.becomes
    assert [each["expected"] for each in await copy.told()] == [before]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_it_is_written_where_nothing_came_between(database: Database, case: Case) -> None:
    """Or the test above would say nothing."""
    copy = Copy(database, case)
    await copy.settle()
    await copy.judge()
    assert await copy.asked() == [case.does]
