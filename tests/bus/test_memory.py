"""The bus inside one process keeps the port's promises, and with ``Disorder`` no better ones."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from stateward.bus.memory import Disorder, MemoryBus
from stateward.bus.port import NobodyAnswered

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


def now() -> float:
    return asyncio.get_running_loop().time()


class Receiver:
    """Takes messages, and fails with the first few of them."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.taken: list[bytes] = []
        self.at: list[float] = []

    async def __call__(self, payload: bytes) -> None:
        """Take one."""
        self.at.append(now())
        if self.failures:
            self.failures -= 1
            raise ZeroDivisionError
        self.taken.append(payload)


async def send(bus: MemoryBus, subject: str, *payloads: bytes) -> None:
    for payload in payloads:
        await bus.publish(subject, payload, message_id=payload.decode())


async def test_a_message_reaches_its_subject() -> None:
    """And no other."""
    bus, ours, others = MemoryBus(), Receiver(), Receiver()
    await bus.subscribe("ours", ours)
    await bus.subscribe("others", others)
    await send(bus, "ours", b"a", b"b")
    await asyncio.sleep(1)
    assert (ours.taken, others.taken) == ([b"a", b"b"], [])
    await bus.close()


async def test_messages_wait_for_who_takes_them() -> None:
    """What was published before anybody subscribed is not lost, and is delivered once."""
    bus, receiver = MemoryBus(), Receiver()
    await send(bus, "s", b"a", b"b")
    await bus.subscribe("s", receiver)
    await send(bus, "s", b"c")
    await asyncio.sleep(1)
    assert receiver.taken == [b"a", b"b", b"c"]
    await bus.close()


async def test_a_message_comes_again_until_it_was_handled() -> None:
    """A handler that raises has not taken it."""
    bus, receiver = MemoryBus(), Receiver(failures=3)
    await bus.subscribe("s", receiver)
    await send(bus, "s", b"a")
    await asyncio.sleep(10)
    assert receiver.taken == [b"a"]
    assert [at - receiver.at[0] for at in receiver.at] == pytest.approx([0, 0.2, 0.4, 0.6], abs=0.001)
    await bus.close()


async def test_one_that_fails_holds_nobody_up() -> None:
    """Others are handled meanwhile."""
    bus, receiver = MemoryBus(), Receiver(failures=1)
    await bus.subscribe("s", receiver)
    await send(bus, "s", b"a", b"b", b"c")
    await asyncio.sleep(1)
    assert receiver.taken == [b"b", b"c", b"a"]
    await bus.close()


async def test_messages_are_handled_side_by_side() -> None:
    """A handler that takes its time does not keep the next message waiting."""
    bus, running = MemoryBus(), 0
    together = asyncio.Event()

    async def slow(_payload: bytes) -> None:
        nonlocal running
        running += 1
        if running == 3:
            together.set()
        await together.wait()

    await bus.subscribe("s", slow)
    await send(bus, "s", b"a", b"b", b"c")
    async with asyncio.timeout(1):
        await together.wait()
    await bus.close()


async def test_publishing_does_not_wait_for_the_handler() -> None:
    """Who publishes has done its part when the bus has the message."""
    bus, begin = MemoryBus(), now()

    async def slow(_payload: bytes) -> None:
        await asyncio.sleep(100)

    await bus.subscribe("s", slow)
    await send(bus, "s", b"a")
    assert now() - begin < 0.001
    await bus.close()


async def test_a_new_subscriber_takes_the_place_of_the_old() -> None:
    """As an agent that was started again does."""
    bus, old, new = MemoryBus(), Receiver(), Receiver()
    await bus.subscribe("s", old)
    await bus.subscribe("s", new)
    await send(bus, "s", b"a")
    await asyncio.sleep(1)
    assert (old.taken, new.taken) == ([], [b"a"])
    await bus.close()


async def test_a_question_is_answered() -> None:
    """By whoever answers its subject."""
    bus = MemoryBus()

    async def answer(payload: bytes) -> bytes:
        return payload + b"!"

    await bus.answer("q", answer)
    assert await bus.ask("q", b"hello", timeout=1) == b"hello!"
    await bus.close()


async def test_an_answerer_that_fails_has_not_answered() -> None:
    """What went wrong with it is its own: an agent that asked while the database was away asks again."""
    bus = MemoryBus()

    async def fails(_payload: bytes) -> bytes:
        raise RuntimeError("the database is away")

    await bus.answer("q", fails)
    with pytest.raises(NobodyAnswered, match=r"^q$"):
        await bus.ask("q", b"", timeout=1)
    await bus.close()


async def test_nobody_answers() -> None:
    """At once when nobody is there, and after the timeout when somebody is too slow."""
    bus, begin = MemoryBus(), now()

    async def slow(_payload: bytes) -> bytes:
        await asyncio.sleep(100)
        return b""

    with pytest.raises(NobodyAnswered, match=r"^q$"):
        await bus.ask("q", b"", timeout=5)
    assert now() - begin < 0.001
    await bus.answer("q", slow)
    with pytest.raises(NobodyAnswered, match=r"^q$"):
        await bus.ask("q", b"", timeout=5)
    assert now() - begin == pytest.approx(5, abs=0.001)
    await bus.close()


async def test_closing_ends_everything() -> None:
    """Handlers under way are over, redeliveries too, and nothing more is taken."""
    bus, receiver = MemoryBus(), Receiver(failures=99)
    ended = asyncio.Event()

    async def slow(_payload: bytes) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.set()

    await bus.subscribe("slow", slow)
    await bus.subscribe("failing", receiver)
    await send(bus, "slow", b"a")
    await send(bus, "failing", b"b")
    await asyncio.sleep(1)
    await bus.close()
    assert ended.is_set()
    tries = len(receiver.at)
    await asyncio.sleep(10)
    assert len(receiver.at) == tries
    with pytest.raises(RuntimeError, match="the bus is closed"):
        await send(bus, "slow", b"c")


# ---- disorder


async def disordered(disorder: Disorder | None, count: int = 200) -> list[bytes]:
    bus, receiver = MemoryBus(disorder), Receiver()
    await bus.subscribe("s", receiver)
    await send(bus, "s", *(f"{n}".encode() for n in range(count)))
    await asyncio.sleep(1)
    await bus.close()
    return receiver.taken


async def test_disorder_doubles_and_reorders_and_loses_nothing() -> None:
    """It does what the port allows, and really does it."""
    taken = await disordered(Disorder(seed=1))
    counts = Counter(taken)
    assert set(counts) == {f"{n}".encode() for n in range(200)}
    assert set(counts.values()) == {1, 2}
    assert taken != sorted(taken, key=int)


async def test_disorder_is_the_same_every_time() -> None:
    """From its seed; another seed is another disorder."""
    first = await disordered(Disorder(seed=1))
    assert await disordered(Disorder(seed=1)) == first
    assert await disordered(Disorder(seed=2)) != first


async def test_disorder_can_be_complete() -> None:
    """Everything twice, everything late, nothing later than the longest."""
    begin = now()
    taken = await disordered(Disorder(seed=1, duplicate=1, delay=1, longest=0.5))
    assert set(Counter(taken).values()) == {2}
    assert now() - begin < 1.001


async def test_without_disorder_there_is_none() -> None:
    """Once each, in order."""
    assert await disordered(None) == [f"{n}".encode() for n in range(200)]
