"""Second signals and fences: who is believed, how often somebody is asked, and what the plugins make of programs."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from stateward.agent.lease import Lease, LeaseFile
from stateward.arbiter.deaths import DeathRules, Deaths
from stateward.arbiter.rid import Returning
from stateward.arbiter.witnesses import (
    CommandFence,
    CommandWitness,
    Evidence,
    FenceFailed,
    LeaseWitness,
    Means,
    Word,
)
from stateward.bus.memory import MemoryBus
from stateward.bus.port import questions_subject
from stateward.domain.hosts import Condition, Event, Frozen
from stateward.domain.questions import Answer, Expel, Leaves
from stateward.domain.states import Observed
from stateward.operations.lives import heard_again
from stateward.store import hosts, strays
from stateward.store.engine import Database
from tests.arbiter.test_reports import Overtaking
from tests.operations.desk import Desk
from tests.rows import NOW


class Says:
    """A witness that says what it is told to, or fails."""

    def __init__(self, word: Word | None) -> None:
        self.word = word
        self.asked = 0

    async def ask(self, host: str, since: float) -> Evidence:
        """Say it."""
        del host, since
        self.asked += 1
        if self.word is None:
            msg = "no answer"
            raise ZeroDivisionError(msg)
        return Evidence(word=self.word, says=f"It says {self.word}.")


class Switch:
    """A fence that fails so many times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.pulled = 0

    async def fence(self, host: str) -> str:
        """Take the power."""
        self.pulled += 1
        if self.pulled <= self.failures:
            raise FenceFailed(f"The switch of {host} is stuck.")
        return "The switch was pulled."


async def silent(desk: Desk, deaths: Deaths) -> None:
    """Have host ``h`` of two fall silent."""
    await desk.add_host("h")
    await desk.add_host("g")
    await deaths.look()
    for number in range(5):
        await asyncio.sleep(10.0)
        await desk.add_host("g", at=desk.clock.at + number + 1)
        await deaths.look()


async def condition(desk: Desk) -> Condition:
    host = await desk.database.read(lambda connection: hosts.named(connection, "h"))
    assert host is not None
    return host.condition


@pytest.mark.asyncio
@pytest.mark.looptime
@pytest.mark.parametrize(
    ("words", "becomes"),
    [
        ((), Condition.SUSPECT),
        ((Word.UNKNOWN,), Condition.SUSPECT),
        ((None,), Condition.SUSPECT),
        ((Word.DEAD,), Condition.DEAD),
        ((Word.UNKNOWN, Word.DEAD), Condition.DEAD),
        ((Word.DEAD, Word.ALIVE), Condition.SUSPECT),
        ((None, Word.DEAD), Condition.DEAD),
    ],
)
async def test_who_is_believed(
    inline_database: Database, words: tuple[Word | None, ...], becomes: Condition
) -> None:
    """One that says that the host lives is enough against all others; one that cannot tell says nothing."""
    desk = Desk(inline_database)
    said = Means(witnesses=tuple(Says(word) for word in words))
    deaths = Deaths(desk.admission, MemoryBus(), DeathRules(), means=lambda _host: said)
    await silent(desk, deaths)
    assert await condition(desk) is becomes
    alerts = [detail["says"] for event, _action, detail in await desk.audit() if event == "alert"]
    assert len(alerts) == 1


@pytest.mark.asyncio
@pytest.mark.looptime
async def test_a_host_that_was_forced_down(inline_database: Database) -> None:
    """That an operator said so to Nova confirms the silence; it fences nobody."""
    desk = Desk(inline_database)
    deaths = Deaths(desk.admission, MemoryBus(), DeathRules())
    host_id = await desk.add_host("h")
    await desk.database.write(lambda connection: hosts.change(connection, host_id, {"forced_down": True}))
    await silent(desk, deaths)
    assert await condition(desk) is Condition.DEAD


@pytest.mark.asyncio
@pytest.mark.looptime
async def test_a_fence_that_fails_is_tried_again(inline_database: Database) -> None:
    """Less and less often, and told once; a host is fenced only when the fence says so."""
    desk = Desk(inline_database)
    switch = Switch(failures=2)
    means = Means(witnesses=(Says(Word.DEAD),), fence=switch)
    deaths = Deaths(desk.admission, MemoryBus(), DeathRules(), means=lambda _host: means)
    await silent(desk, deaths)
    assert (await condition(desk), switch.pulled) == (Condition.DEAD, 1)
    await asyncio.sleep(15.0)
    await deaths.look()
    await deaths.look()
    assert (await condition(desk), switch.pulled) == (Condition.DEAD, 2)
    await asyncio.sleep(30.0)
    await deaths.look()
    assert (await condition(desk), switch.pulled) == (Condition.FENCED, 3)
    await deaths.look()
    alerts = [detail["says"] for event, _action, detail in await desk.audit() if event == "alert"]
    assert alerts == [
        "Host h is dead and could not be fenced: The switch of h is stuck.",
        alerts[1],
    ]
    assert alerts[1].startswith("Host h is fenced. 0 of its 0 instances can be evacuated")


@pytest.mark.asyncio
@pytest.mark.looptime
async def test_a_fence_that_fails_for_weeks(inline_database: Database) -> None:
    """It is tried every ten minutes for as long as that lasts."""
    desk = Desk(inline_database)
    switch = Switch(failures=10**6)
    means = Means(witnesses=(Says(Word.DEAD),), fence=switch)
    deaths = Deaths(desk.admission, MemoryBus(), DeathRules(), means=lambda _host: means)
    await silent(desk, deaths)
    for number in range(1100):
        await asyncio.sleep(600.0)
        await desk.add_host("g", at=desk.clock.at + 100 + number)
        await deaths.look()
    pulled = switch.pulled
    await deaths.look()
    assert (switch.pulled, pulled) == (pulled, 1101)


class Late:
    """A witness that is asked for so long that the host is heard of meanwhile."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    async def ask(self, host: str, since: float) -> Evidence:
        """Have it heard of, and say that it is dead."""
        del since

        def heard(connection: sa.Connection) -> None:
            heard_again(connection, host, "It was heard of again.", self.desk.clock.at)

        await self.desk.database.write(heard)
        return Evidence(word=Word.DEAD, says="It is dead.")


@pytest.mark.asyncio
@pytest.mark.looptime
async def test_a_host_that_was_heard_of_meanwhile_is_not_told_to_be_dead(inline_database: Database) -> None:
    """What is told is what was written, and in the same transaction."""
    desk = Desk(inline_database)
    means = Means(witnesses=(Late(desk),))
    deaths = Deaths(desk.admission, MemoryBus(), DeathRules(), means=lambda _host: means)
    await silent(desk, deaths)
    assert await condition(desk) is Condition.UP
    assert [detail["says"] for event, _action, detail in await desk.audit() if event == "alert"] == []


class Heard(Overtaking):
    """A database in which a host is heard of between a look at it and what follows from that."""

    async def overtake(self) -> None:
        """Have it heard of."""
        await self._database.write(lambda connection: heard_again(connection, "h", "It is back.", NOW + 2.0))


@pytest.mark.parametrize("meanwhile", [False, True])
async def test_a_host_that_was_heard_of_meanwhile_is_not_frozen(
    database: Database, *, meanwhile: bool
) -> None:
    """It was thawed by that heartbeat, if there was anything to thaw; nobody would do it again."""
    desk = Desk(database)
    await desk.add_host("h")
    # Silent and judged, as a version before this one left a host that had booted.
    await database.write(lambda connection: hosts.become(connection, "h", Event.SILENT, "It is.", NOW + 1.0))
    desk.database = Heard(database) if meanwhile else database
    desk.open(offload=True)
    await Deaths(desk.admission, MemoryBus(), DeathRules()).look()
    (host,) = await database.read(hosts.every)
    assert (host.condition, host.frozen, host.frozen_at) == (
        (Condition.UP, None, None) if meanwhile else (Condition.SUSPECT, Frozen.SILENT, NOW + 1.0)
    )


@pytest.mark.asyncio
@pytest.mark.looptime
async def test_a_maintained_host_may_be_silent(inline_database: Database) -> None:
    """Nobody is asked about it, and nothing becomes of it."""
    desk = Desk(inline_database)
    witness = Says(Word.DEAD)
    means = Means(witnesses=(witness,))
    deaths = Deaths(desk.admission, MemoryBus(), DeathRules(), means=lambda _host: means)
    await desk.add_host("h")
    now = desk.clock.at
    await desk.database.write(lambda c: hosts.maintain(c, "h", "New disks.", now + 3600.0, now))
    await silent(desk, deaths)
    assert (await condition(desk), witness.asked) == (Condition.UP, 0)
    assert await desk.database.write(lambda c: hosts.end_maintenance(c, "h")) is True
    await deaths.look()
    assert (await condition(desk), witness.asked) == (Condition.UP, 0)
    await asyncio.sleep(31.0)
    await desk.add_host("g", at=desk.clock.at + 100)
    await deaths.look()
    assert await condition(desk) is Condition.DEAD


class Seconds:
    """Counts seconds as it is told to."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


async def test_a_lease(tmp_path: Path) -> None:
    """Renewed, its host lives; not renewed for its time, it is dead; nothing follows from one that is not there."""
    time = Seconds()
    witness = LeaseWitness(tmp_path, 60.0, time)
    assert (await witness.ask("h", 1.0)).word is Word.UNKNOWN
    lease = LeaseFile(tmp_path, "h", seconds=1.0, boot_id=lambda: "b", counter=lambda: 1)
    lease.renew(Lease(host="h", boot_id="b", counter=1))
    found: list[Word] = []
    for at, counter in ((0.0, 1), (30.0, 1), (40.0, 2), (99.0, 2), (100.0, 2), (101.0, 3)):
        time.at = at
        lease.renew(Lease(host="h", boot_id="b", counter=counter))
        found.append((await witness.ask("h", 1.0)).word)
    assert found == [Word.UNKNOWN, Word.UNKNOWN, Word.ALIVE, Word.UNKNOWN, Word.DEAD, Word.ALIVE]
    # Another silence: what was seen in the one before says nothing.
    assert (await witness.ask("h", 2.0)).word is Word.UNKNOWN


async def test_storage_that_was_away(tmp_path: Path) -> None:
    """Nor could the host reach it: its time begins anew, though the lease is what it was before."""
    time = Seconds()
    witness = LeaseWitness(tmp_path, 60.0, time)
    file = tmp_path / "h.lease"
    file.write_bytes(b"1")
    found: list[Word] = []
    for at, there in ((0.0, True), (30.0, False), (90.0, True), (140.0, True), (151.0, True)):
        time.at = at
        file.write_bytes(b"1") if there else file.unlink()
        found.append((await witness.ask("h", 1.0)).word)
    assert found == [Word.UNKNOWN] * 4 + [Word.DEAD]


async def test_storage_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing follows from it, and it keeps one thread, however often it is asked for."""
    monkeypatch.setattr("stateward.arbiter.witnesses._READ_SECONDS", 0.05)
    witness = LeaseWitness(tmp_path, 60.0)
    file = tmp_path / "h.lease"
    # Who opens it waits for somebody who writes.
    os.mkfifo(file)
    before = set(threading.enumerate())
    asked = [await witness.ask("h", 1.0) for _ in range(3)]
    assert (
        asked
        == [Evidence(word=Word.UNKNOWN, says=f"Its lease cannot be read: {tmp_path} does not answer.")] * 3
    )
    # Of others' some may have ended meanwhile.
    assert len(set(threading.enumerate()) - before) == 1
    with file.open("wb"):
        pass
    # What was read in the end counts, and the next one is read anew.
    assert (await witness.ask("h", 1.0)).says == "Whether it renews its lease is known in 60 s."
    file.unlink()
    file.write_bytes(b"another")
    assert (await witness.ask("h", 1.0)).word is Word.ALIVE


class Stuck:
    """A host that returns, one of whose guests does not give its power up."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Leaves]] = []
        self.stuck = "s1"

    async def answer(self, payload: bytes) -> bytes:
        """Take the power of all but one."""
        question = msgspec.json.decode(payload, type=Expel)
        self.asked.append((question.instance_id, question.leaves))
        return msgspec.json.encode(Answer(error="No." if question.instance_id == self.stuck else None))


async def test_one_that_keeps_its_power_leaves_it_to_no_other(inline_database: Database) -> None:
    """Each of them may have a disk open that is in use elsewhere; nothing is removed before all are off."""
    desk, bus, host = Desk(inline_database), MemoryBus(), Stuck()
    await bus.answer(questions_subject("h"), host.answer)
    await desk.add_host("h")
    await desk.add_host("g")
    uncertain = await desk.add(host="g", observed=Observed.MISSING)

    def note(connection: sa.Connection) -> None:
        for number, instance_id in enumerate(("s1", uncertain, "s2")):
            strays.note(connection, "h", instance_id, 1, NOW + number)

    await desk.database.write(note)
    returning = Returning(desk.database, bus)
    assert await returning.rid("h") is False
    assert host.asked == [("s1", Leaves.OFF), (uncertain, Leaves.OFF), ("s2", Leaves.OFF)]
    host.stuck = ""
    host.asked.clear()
    # One of which the other copy is not certain is kept, and leaves the others nothing to wait for.
    assert await returning.rid("h") is False
    assert host.asked[3:] == [("s1", Leaves.NOTHING), ("s2", Leaves.NOTHING)]
    left = await desk.database.read(lambda connection: strays.on(connection, "h"))
    assert [each.instance_id for each in left] == [uncertain]


async def test_a_lease_is_renewed_after_a_fault_of_ours(tmp_path: Path) -> None:
    """A machine that has no thread left for a moment, say, is not declared dead for that later."""
    renewed, tries = asyncio.Event(), itertools.count()

    async def blocking(call: Callable[[], None]) -> None:
        if next(tries) == 0:
            raise RuntimeError
        call()
        renewed.set()

    lease = LeaseFile(tmp_path, "h", seconds=0.01, boot_id=lambda: "b", counter=lambda: 1, blocking=blocking)
    running = asyncio.create_task(lease.run())
    async with asyncio.timeout(10):
        await renewed.wait()
    running.cancel()
    assert (tmp_path / "h.lease").exists()


async def test_a_lease_is_renewed(tmp_path: Path) -> None:
    """For as long as the agent lives, also after storage that could not be written to."""
    counts = iter(range(1, 100))
    folder = tmp_path / "leases"
    lease = LeaseFile(folder, "h", seconds=0.01, boot_id=lambda: "b", counter=lambda: next(counts))
    running = asyncio.create_task(lease.run())
    await asyncio.sleep(0.05)
    folder.mkdir()
    seen: set[bytes] = set()
    for _ in range(1000):
        await asyncio.sleep(0.01)
        if (folder / "h.lease").exists():
            seen.add((folder / "h.lease").read_bytes())
        if len(seen) > 1:
            break
    running.cancel()
    assert len(seen) > 1


def script(body: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import os, sys, time; {body}", "{host}")


@pytest.mark.parametrize(
    ("body", "seconds", "word", "says"),
    [
        ("print('pong', sys.argv[1])", 60.0, Word.ALIVE, "The probe reaches it. It says: pong alpha"),
        (
            "print(os.environ['STATEWARD_HOST']); sys.exit(1)",
            60.0,
            Word.DEAD,
            "The probe says that it is dead. It says: alpha",
        ),
        ("sys.exit(2)", 60.0, Word.UNKNOWN, "The probe cannot tell (status 2)."),
        (
            "time.sleep(60)",
            2.0,
            Word.UNKNOWN,
            "The probe cannot tell (it cannot be run, or took too long). It says: It was ended after 2 s.",
        ),
    ],
)
async def test_a_probe(body: str, seconds: float, word: Word, says: str) -> None:
    """By its status; one that hangs is ended."""
    evidence = await CommandWitness(script(body), seconds).ask("alpha", 0.0)
    assert (evidence.word, evidence.says) == (word, says)


_LEAVES = "import subprocess; subprocess.Popen(['sleep', '8'], start_new_session=True); "


@pytest.mark.parametrize(
    ("ends", "seconds", "word"), [("sys.exit(1)", 20.0, Word.DEAD), ("time.sleep(60)", 2.0, Word.UNKNOWN)]
)
async def test_a_program_that_leaves_something_running(ends: str, seconds: float, word: Word) -> None:
    """What holds that on which it wrote, and is out of reach, keeps nobody: when it has ended as when it hangs."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert (await CommandWitness(script(_LEAVES + ends), seconds).ask("alpha", 0.0)).word is word
    assert loop.time() - began < 7.0


async def test_a_program_that_is_not_there() -> None:
    """It says nothing, and fences nobody."""
    assert (await CommandWitness(("/nowhere/probe",), 1.0).ask("h", 0.0)).word is Word.UNKNOWN
    with pytest.raises(FenceFailed, match="it cannot be run"):
        await CommandFence(("/nowhere/fence",), 1.0).fence("h")


async def test_a_fence_program() -> None:
    """Only status 0 says that the power is gone."""
    assert await CommandFence(script("print('off')"), 10.0).fence("h") == (
        "The fence program took its power. It says: off"
    )
    with pytest.raises(FenceFailed, match=r"The fence program failed \(status 3\)"):
        await CommandFence(script("sys.exit(3)"), 10.0).fence("h")
