"""The guests of two machines of which one, alpha, is declared dead; what was planned for them, and what came of it."""

from __future__ import annotations

import time

from stateward.domain.evacuation import MoveState, PlanKind, PlanState
from stateward.domain.hosts import Condition
from stateward.domain.states import Observed
from stateward.store import host_plans
from stateward.store.host_plans import KeptPlan
from tests.crash.real import real_guests
from tests.guests.pair import ADMIN, Pair


class Tale:
    """The guests of a pair, and what became of their hosts."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        #: Instances' ids by their names.
        self.ids: dict[str, str] = {}
        #: And libvirt's names of their guests.
        self.domains: dict[str, str] = {}
        self._began = time.time()

    async def make(self, name: str, host: str, *words: str) -> str:
        """Make one that runs."""
        instance_id = self.ids[name] = await self.pair.make(name, host, *words)
        self.domains[name] = f"instance-{(await self.pair.row(instance_id)).number:08x}"
        return instance_id

    async def there(self) -> dict[str, dict[str, Observed]]:
        """Return which hypervisor has which guest, as what, by virsh's account."""
        found = {name: await real_guests(side.machine.uri) for name, side in self.pair.sides.items()}
        return {
            name: {host: guests[each] for host, guests in found.items() if each in guests}
            for name, each in self.ids.items()
        }

    def memory(self) -> list[str]:
        """Return the memories that are saved on alpha."""
        folder = self.pair.sides["alpha"].machine.home / "lib" / "qemu" / "save"
        return sorted(path.name for path in folder.iterdir())

    def log(self, host: str, name: str) -> str:
        """Return what libvirt and QEMU wrote of a guest on a host."""
        log = self.pair.sides[host].machine.home / "log" / "qemu" / f"{self.domains[name]}.log"
        return log.read_text(errors="replace")

    def starts(self, name: str) -> int:
        """Return how often a guest was started on alpha, or was to be."""
        return sum(": starting up " in line for line in self.log("alpha", name).splitlines())

    async def locked_out(self, host: str, name: str) -> None:
        """Wait until QEMU says of a guest that its disk is in use; libvirt's own error may not quote that."""

        async def look() -> bool | None:
            return True if 'Failed to get "write" lock' in self.log(host, name) else None

        await self.pair.until(look)

    async def plan(self) -> KeptPlan | None:
        """Return the newest plan for the dead host."""
        return await self.pair.look(lambda c: host_plans.of_host(c, "alpha", PlanKind.EVACUATE))

    async def planned(self) -> KeptPlan:
        """Wait until there is a plan, and return it."""
        return await self.pair.until(self.plan)

    async def carry_out(self, plan: KeptPlan) -> None:
        """Approve a plan, and wait until it is over."""

        async def over() -> bool | None:
            found = await self.plan()
            return True if found is not None and found.state is PlanState.DONE else None

        await self.pair.plane.hosts.approve(plan.host, plan.id, ADMIN, then=lambda _connection, _plan: None)
        await self.pair.until(over)

    async def moves(self, plan: KeptPlan) -> dict[str, tuple[str | None, str | None, MoveState]]:
        """Return a plan's lines by their guests' names: the action, where to, and what came of it."""
        moves = await self.pair.look(lambda connection: host_plans.moves(connection, plan.id))
        return {each.name: (each.action, each.to_host, each.state) for each in moves}

    async def lives(self) -> list[tuple[float, str, str]]:
        """Return what became of alpha, oldest first: seconds since the tale began, what, and why."""
        return [
            (at - self._began, action, detail["says"])
            for at, action, detail in await self.pair.trail("host")
            if detail["host"] == "alpha" and action is not None and action in set(Condition)
        ]

    def fenced(self) -> list[tuple[float, str, set[str]]]:
        """Return what the fence wrote down: seconds since the tale began, the host, and whom it killed."""
        lines = (line.split() for line in (self.pair.folder / "fence.log").read_text().splitlines())
        return [(float(at) - self._began, host, set(killed)) for at, host, *killed in lines]
