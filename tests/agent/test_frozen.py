"""Guests whose file systems are frozen for a moment: whatever happens, none stays so."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from stateward.agent.driver import DriverError, NoAgent
from stateward.agent.libvirt.frozen import RETRY_SECONDS, Freezer

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


class Guest:
    """One guest's agent: what it was asked, and what becomes of that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.frozen = False
        #: Seconds it takes to freeze.
        self.takes = 0.0
        #: How often it fails to thaw.
        self.stuck = 0
        self.fault: Exception = DriverError("It does not answer.")
        self.agent = True
        self.refuses = False

    def freezer(self) -> Freezer:
        """Make what an agent on the host's side has; another one is that of its next life."""
        return Freezer(self.folder, reach=self._reach, freeze=self._freeze, thaw=self._thaw)

    async def _reach(self, _: str) -> None:
        if not self.agent:
            raise NoAgent

    async def _freeze(self, _: str) -> None:
        self.asked.append("freeze")
        await asyncio.sleep(self.takes)
        self.frozen = True
        if self.refuses:
            msg = "The answer was lost."
            raise DriverError(msg)

    async def _thaw(self, _: str) -> None:
        self.asked.append("thaw")
        if self.stuck:
            self.stuck -= 1
            raise self.fault
        self.frozen = False

    def stands(self) -> bool:
        """Say whether its file systems are frozen."""
        return self.frozen

    def marks(self) -> list[str]:
        """Return the marks there are."""
        return [mark.name for mark in self.folder.iterdir()] if self.folder.exists() else []


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    """Give a guest with an agent."""
    return Guest(tmp_path / "frozen")


async def test_a_guest_is_frozen_for_the_moment_and_thawed_after(guest: Guest) -> None:
    async with guest.freezer().frozen("a"):
        assert guest.stands()
        assert guest.marks() == ["a"]
    assert guest.asked == ["freeze", "thaw"]
    assert guest.marks() == []


async def test_where_nobody_is_there_nobody_is_asked(guest: Guest) -> None:
    guest.agent = False
    with pytest.raises(NoAgent):
        async with guest.freezer().frozen("a"):
            pytest.fail("nobody froze it")
    assert (guest.asked, guest.marks()) == ([], [])


async def test_what_fails_while_it_is_frozen_thaws_it(guest: Guest) -> None:
    async def fail() -> None:
        async with guest.freezer().frozen("a"):
            msg = "The disk is full."
            raise DriverError(msg)

    with pytest.raises(DriverError, match="disk is full"):
        await fail()
    assert not guest.stands()
    assert guest.marks() == []


async def test_a_freeze_whose_answer_is_lost_is_thawed(guest: Guest) -> None:
    guest.refuses = True
    with pytest.raises(DriverError, match="answer was lost"):
        async with guest.freezer().frozen("a"):
            pytest.fail("nobody knows")
    assert not guest.stands()
    assert guest.marks() == []


async def test_cancelled_while_it_freezes_it_is_thawed_after_that(guest: Guest) -> None:
    guest.takes = 5.0

    async def freeze() -> None:
        async with guest.freezer().frozen("a"):
            pytest.fail("it was cancelled before")

    task = asyncio.create_task(freeze())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.get_running_loop().time() == pytest.approx(5, abs=0.1)
    assert guest.asked == ["freeze", "thaw"]
    assert not guest.stands()
    assert guest.marks() == []


async def test_a_guest_that_does_not_thaw_is_asked_until_it_does(guest: Guest) -> None:
    guest.stuck = 3
    freezer = guest.freezer()
    async with freezer.frozen("a"):
        pass
    assert guest.stands()
    await asyncio.sleep(3.5 * RETRY_SECONDS)
    assert not guest.stands()
    assert guest.asked == ["freeze", "thaw", "thaw", "thaw", "thaw"]
    assert guest.marks() == []
    await freezer.stop()


async def test_what_a_killed_agent_left_frozen_is_thawed_by_the_next(guest: Guest) -> None:
    guest.folder.mkdir()
    (guest.folder / "a").touch()
    guest.frozen = True
    freezer = guest.freezer()
    freezer.start()
    await asyncio.sleep(0.1)
    assert not guest.stands()
    assert guest.marks() == []
    await freezer.stop()


async def test_repeated_after_a_kill_it_is_thawed_first(guest: Guest) -> None:
    guest.folder.mkdir()
    (guest.folder / "a").touch()
    async with guest.freezer().frozen("a"):
        pass
    assert guest.asked == ["thaw", "freeze", "thaw"]


async def test_nobody_thaws_what_another_holds_frozen(guest: Guest) -> None:
    guest.stuck = 1
    freezer = guest.freezer()
    async with freezer.frozen("a"):
        pass
    async with freezer.frozen("a"):
        await asyncio.sleep(2 * RETRY_SECONDS)
        assert guest.stands()
    await asyncio.sleep(2 * RETRY_SECONDS)
    assert not guest.stands()
    assert guest.marks() == []
    await freezer.stop()


async def test_stopped_it_leaves_the_mark_to_the_next(guest: Guest) -> None:
    guest.stuck = 100
    freezer = guest.freezer()
    async with freezer.frozen("a"):
        pass
    await freezer.stop()
    asked = len(guest.asked)
    await asyncio.sleep(3 * RETRY_SECONDS)
    assert len(guest.asked) == asked
    assert guest.marks() == ["a"]


async def test_whatever_thawing_fails_by_it_is_tried_again(guest: Guest) -> None:
    """No thread to ask by, say: the guest would stay frozen for as long as the agent lives."""
    guest.stuck, guest.fault = 2, RuntimeError("can't start new thread")
    freezer = guest.freezer()
    async with freezer.frozen("a"):
        pass
    assert guest.stands()
    await asyncio.sleep(2.5 * RETRY_SECONDS)
    assert not guest.stands()
    assert guest.asked == ["freeze", "thaw", "thaw", "thaw"]
    await freezer.stop()


async def test_marks_that_cannot_be_read_are_read_again(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file to be had, say."""
    guest.folder.mkdir()
    (guest.folder / "a").touch()
    guest.frozen = True
    fails, read = [OSError(errno.EMFILE, "Too many open files")], Path.iterdir

    def listed(folder: Path) -> Iterator[Path]:
        if fails:
            raise fails.pop()
        return read(folder)

    monkeypatch.setattr(Path, "iterdir", listed)
    freezer = guest.freezer()
    freezer.start()
    await asyncio.sleep(1.5 * RETRY_SECONDS)
    assert fails == []
    assert not guest.stands()
    assert guest.marks() == []
    await freezer.stop()
