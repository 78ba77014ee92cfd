"""Whatever happens: random scripts of outside events, requests, kills and faults of messages, and what must hold.

After quiet, every record is as its hypervisor has it, nothing is in flight, and nothing has power that a hold keeps
off, or that was off when it was locked against starting. At no time has an instance power on two hosts, and no call
of a hypervisor goes against a lock. What fails is printed as a script for ``stateward simulate``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings, strategies as st

from stateward.agent.simulated import SimulatedHypervisor
from stateward.agent.simulated.guests import powered
from stateward.domain.actions import BY_KEY, Exempt
from stateward.domain.locks import ActorKind, LockKind, OperationClass
from stateward.domain.records import Instance
from stateward.domain.states import Observed, VmState
from stateward.domain.verdicts import Kind
from stateward.simulation.engine import play
from stateward.simulation.script import parse
from stateward.simulation.world import World
from stateward.store import instances, locks, operations

#: How many scripts; more by hand than in every run.
EXAMPLES: Final = int(os.environ.get("STATEWARD_TEST_SCRIPTS", "60"))

HEAD: Final = """\
host h1..h3 shared=yes
settings:
  [death]
  silence = 10
  probe = ["probe", "{host}"]
  fence = ["fence", "{host}"]
  evacuate = "auto"
instance a on h1 guest.shutdown=2
instance b on h1 paused guest.acpi=ignore image.os_shutdown_timeout=8
instance c on h2 suspended
instance d on h2 stopped
"""
#: Everything is mended, and time is given to come to rest.
TAIL: Final = (
    *("database is back", "server starts"),
    *(
        f"{what} {host} {back}"
        for host in ("h1", "h2")
        for what, back in (
            ("host", "comes back"),
            ("network of", "is back"),
            ("messages of", "come as they should"),
            ("events of", "come again"),
            ("libvirtd of", "starts"),
            ("libvirtd of", "takes 10ms for each call"),
            ("libvirtd of", "lists all of its guests"),
            ("agent of", "starts"),
        )
    ),
    *(f"operator ends the maintenance of {host}" for host in ("h1", "h2")),
)
#: Seconds from the mending to the end: more than a guest's time, a relist, and every back-off.
REST: Final = 200

WHICH: Final = st.sampled_from(["a", "b", "c", "d", "a,b", "*"])
HOST: Final = st.sampled_from(["h1", "h2"])


def phrases() -> st.SearchStrategy[str]:
    """Choose an event."""

    def of(template: str, **parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.fixed_dictionaries(parts).map(lambda values: template.format(**values))

    behind = st.sampled_from(
        [
            *("guest {} crashes", "guest {} crashes and stays there", "guest {} powers itself off"),
            *("guest {} halts on a full disk", "guest {} falls asleep", "virsh destroy {}", "virsh start {}"),
            *("virsh suspend {}", "virsh resume {}", "virsh managedsave {}", "virsh shutdown {}"),
            "virsh undefine {}",
        ]
    )
    customer = st.sampled_from(
        [
            *(
                "starts {}",
                "stops {}",
                "stops {} within 3s or save",
                "force-stops {}",
                "reboots {} within 3s",
            ),
            *("hard-reboots {}", "pauses {}", "unpauses {}", "suspends {}", "resumes {}", "rescues {} "),
            *(
                "unrescues {}",
                "locks {}",
                "unlocks {}",
                "cancels the shutdown of {}",
                "locks {} against start",
            ),
        ]
    )
    operator = st.sampled_from(
        [
            "holds {}",
            "holds {} by forced",
            "holds {} by suspend",
            "holds {} by none",
            "releases {}",
            "locks {}",
        ]
    )
    return st.one_of(
        st.tuples(behind, WHICH).map(lambda pair: pair[0].format(pair[1])),
        st.tuples(customer, WHICH).map(lambda pair: f"customer {pair[0].format(pair[1])}".strip()),
        st.tuples(operator, WHICH).map(lambda pair: f"operator {pair[0].format(pair[1])}"),
        of("customer deletes {which}", which=st.sampled_from(["a", "d"])),
        of("libvirtd of {host} {what}", host=HOST, what=st.sampled_from(["stops", "starts"])),
        of(
            "libvirtd of {host} lists {what} of its guests",
            host=HOST,
            what=st.sampled_from(["half", "none", "all"]),
        ),
        of("operator maintains {host} for {time}", host=HOST, time=st.sampled_from(["10s", "10m"])),
        of("operator ends the maintenance of {host}", host=HOST),
        of("libvirtd of {host} takes {time} for each call", host=HOST, time=st.sampled_from(["10ms", "1s"])),
        of(
            "libvirtd of {host} fails its next {call}: as the dice say",
            host=HOST,
            call=st.sampled_from(["power on", "power off", "pause", "save memory", "get", "list", "define"]),
        ),
        of("network of {host} {what}", host=HOST, what=st.sampled_from(["is cut", "is back"])),
        of(
            "messages of {host} {what}",
            host=HOST,
            what=st.sampled_from(
                ["come twice", "come in any order within 4s", "take 2s", "come as they should"]
            ),
        ),
        of("events of {host} {what}", host=HOST, what=st.sampled_from(["are lost", "come again"])),
        of("agent of {host} {what}", host=HOST, what=st.sampled_from(["is killed", "starts"])),
        of("clock of {host} jumps {offset}", host=HOST, offset=st.sampled_from(["+1h", "-1h"])),
        of("host {host} {what}", host=HOST, what=st.sampled_from(["dies", "comes back"])),
        of("operator confirms that {host} is dead", host=HOST),
        of("fence of {host} {what}", host=HOST, what=st.sampled_from(["fails", "works"])),
        of("host {host} reboots in {time}", host=HOST, time=st.sampled_from(["2s", "20s"])),
        st.sampled_from(["server is killed", "server starts", "server is killed for 3s"]),
        st.sampled_from(["database is away", "database is back"]),
    )


@st.composite
def scripts(draw: st.DrawFn) -> str:
    """Make a script of up to thirty events, seconds or no time apart."""
    at, lines = 0.0, [HEAD]
    for pause, event in draw(
        st.lists(st.tuples(st.sampled_from([0.0, 0.015, 0.1, 1.0, 7.0]), phrases()), min_size=3, max_size=30)
    ):
        at += pause
        lines.append(f"at {1 + at:.3f}s {event}\n")
    # After the last host that reboots is up.
    mended = at + 30
    lines += [f"at {mended:.3f}s {event}\n" for event in TAIL]
    return "".join([*lines, f"until {mended + REST:.3f}s\n"])


class Watch:
    """Watches a simulation for what must never be."""

    #: Calls that let a guest run, and those that change it at all.
    STARTS: Final = frozenset({"power_on", "unpause", "restore_memory"})
    CHANGES: Final = STARTS | {"power_off", "pause", "save_memory", "discard_memory", "request_shutdown"}

    def __init__(self) -> None:
        self.wrong: list[str] = []
        #: By lock and instance: the instance's fence when it was locked against starting and was off, by its record
        #: and in truth. Of what is in error a person decides.
        self._locked_off: dict[tuple[str, str], int] = {}
        self._locks: set[str] = set()

    async def begin(self, world: World) -> None:
        """Watch from now on."""
        for host in world.hosts.values():
            self._watch(world, host.name, host.hypervisor)
        write = world.database.write

        async def noted(work: Any) -> Any:
            result = await write(work)
            await self._note(world)
            return result

        setattr(world.database, "write", noted)  # noqa: B010 (as below)

    async def _note(self, world: World) -> None:
        """Note which locks have come, and what was off then."""
        ids = list(world.log.names)

        def look(connection: sa.Connection) -> list[tuple[str, Instance]]:
            new = [
                (lock.id, each)
                for each, stack in locks.of_several(connection, ids).items()
                for lock in stack
                if lock.id not in self._locks and lock.blocks & OperationClass.START
            ]
            rows = [(lock_id, instances.get(connection, each)) for lock_id, each in new]
            return [(lock_id, row) for lock_id, row in rows if row is not None]

        for lock_id, row in await world.database.look(look):
            self._locks.add(lock_id)
            off = row.vm_state in {VmState.STOPPED, VmState.SUSPENDED} and row.task_state is None
            if off and not _on(world, row.id):
                self._locked_off[lock_id, row.id] = row.fence

    def _watch(self, world: World, name: str, hypervisor: SimulatedHypervisor) -> None:
        witness, call = hypervisor.witness, hypervisor.call

        def seen(before: Any, after: Any) -> None:
            witness(before, after)
            others = [each for each in world.hosts.values() if each.hypervisor is not hypervisor]
            homes = [each.name for each in others if powered(each.hypervisor.guest(after.id))]
            if powered(after) and homes:
                self.wrong.append(f"{world.log.names.get(after.id)} has power on {name} and {homes}")

        async def checked(method: str, instance_id: str | None, act: Callable[[], Any]) -> Any:
            if instance_id is not None and method in self.CHANGES:
                await self._check(world, name, method, instance_id)
            return await call(method, instance_id, act)

        hypervisor.witness = seen
        setattr(hypervisor, "call", checked)  # noqa: B010 (to the checkers, a method is no variable)

    async def _check(self, world: World, host: str, method: str, instance_id: str) -> None:
        """Compare a call that begins with the locks that hold."""
        row: Instance | None = await world.database.look(
            lambda connection: instances.get(connection, instance_id)
        )
        under_way = await world.database.look(
            lambda connection: operations.unfinished(connection, instance_id)
        )
        if row is None:
            return
        if row.host != host and method not in self.STARTS:
            # A host is rid of what was made anew elsewhere while it was dead.
            return
        if not under_way:
            self.wrong.append(f"{method} of {row.name} without an operation")
            return
        action = BY_KEY[under_way[0].action]
        if row.held and action.name != "hold" and method in self.STARTS:
            self.wrong.append(f"{method} of {row.name}, which is held, by {under_way[0].action}")
        stack = await world.database.look(
            lambda connection: locks.of_instance(connection, instance_id, row.project_id, row.tags)
        )
        for lock in stack:
            blocks = not isinstance(action.guard, Exempt) and bool(lock.blocks & action.guard)
            binds = lock.kind is LockKind.HOLD or under_way[0].actor_kind is not ActorKind.ADMIN
            if blocks and binds and lock.placed_at < under_way[0].started_at:
                self.wrong.append(
                    f"{method} of {row.name} by {under_way[0].action}, admitted under {lock.name}"
                )

    async def end(self, world: World) -> None:
        """Compare all accounts, when everything has come to rest."""
        for name in ("a", "b", "c", "d"):
            row = await world.instance(name)
            guest = world.hosts[row.host].hypervisor.guest(row.id)
            really = Observed.MISSING if guest.spec is None else guest.observed
            if row.task_state is not None:
                self.wrong.append(f"{name} is still {row.task_state}")
            if row.observed is not really:
                self.wrong.append(f"{name} was seen {row.observed} and is {really}")
            await self._compare_with_locks(world, row)
            verdict = world.plane.policies.judge(row)
            if verdict.kind in {Kind.ADOPT, Kind.RESTORE}:
                self.wrong.append(f"{name} is {row.vm_state}, and its guest {really}: {verdict.says}")

    async def _compare_with_locks(self, world: World, row: Instance) -> None:
        """Tell what has power against a lock, whatever the arbiter thinks of it."""
        on = _on(world, row.id)
        if row.kept_off and on:
            self.wrong.append(f"{row.name} is held off and has power on {on}")
        stack = await world.database.look(lambda connection: locks.of_several(connection, [row.id]))
        done = await world.database.look(lambda connection: operations.of_instance(connection, row.id))
        for lock in stack.get(row.id, ()):
            fence = self._locked_off.get((lock.id, row.id))
            if fence is None or any(each.fence > fence and BY_KEY[each.action].lets_run for each in done):
                continue
            if on:
                self.wrong.append(f"{row.name} was off when it was locked, and has power on {on}")


def _on(world: World, instance_id: str) -> list[str]:
    """Return the hosts on which an instance has power."""
    return [each.name for each in world.hosts.values() if powered(each.hypervisor.guest(instance_id))]


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(scripts())
def test_whatever_happens(text: str) -> None:
    watch = Watch()
    log = play(parse(text), begin=watch.begin, end=watch.end)
    assert watch.wrong == [], "\n".join([text, *log])
