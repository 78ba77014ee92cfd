"""The driver contract on libvirt: QEMU and KVM, and libvirt's own test driver."""

from __future__ import annotations

import asyncio
import builtins
import json
import shutil
from collections.abc import Callable, Mapping, Sequence, Set as AbstractSet
from pathlib import Path
from typing import Any, Final, TypeVar

import libvirt
import msgspec

from stateward.agent.driver import (
    AgentSilent,
    Capabilities,
    Changed,
    DriverError,
    Guest,
    HostFacts,
    ImageFiles,
)
from stateward.agent.libvirt import adoption, figures, guests, inside, networks, traces, xml
from stateward.agent.libvirt.connection import Change, Connection, Lane
from stateward.agent.libvirt.console import LibvirtConsole, LibvirtConsoles
from stateward.agent.libvirt.disk_calls import DiskCalls
from stateward.agent.libvirt.host import Accelerator, describe
from stateward.agent.libvirt.kernel_log import KernelLog
from stateward.agent.libvirt.memories import Memories
from stateward.agent.libvirt.states import observed
from stateward.domain.diagnostics import Diagnostics
from stateward.domain.networks import PortAddress, mac_of
from stateward.domain.records import GuestSpec
from stateward.domain.shutdown import Rung
from stateward.domain.states import Cause
from stateward.domain.strangers import Stranger
from stateward.domain.sweeps import Trace
from stateward.settings import BOOT_ID_FILE
from stateward.threads import on_thread

T = TypeVar("T")

_GIB: Final = 1024**3

#: Seconds that an agent inside a guest has to answer a request before the power button is pressed as well.
_AGENT_SECONDS: Final = 2.0

#: Seconds beyond libvirt's own limit after which a call that asks an agent is not waited for any longer.
_GRACE_SECONDS: Final = 2.0


class LibvirtDriver(DiskCalls):
    """Guests of one libvirtd.

    Args:
        uri: libvirt's name for the hypervisor, ``qemu:///system`` or the like.
        folder: the host's data folder; instances' disks and consoles are under it. Hosts may share it.
        own: the folder of what is this host's alone; ``folder`` where that is not shared.
        images: where images come from.
        run_as: ``+UID:+GID`` that QEMU runs as where libvirt's own user cannot reach ``folder``.
        accelerator: how guests are run; KVM where it is usable unless told otherwise.
        boot_id_file: where the machine's kernel names its boot.
    """

    name = "libvirt"

    def __init__(
        self,
        *,
        uri: str,
        folder: Path,
        images: ImageFiles,
        run_as: str | None = None,
        accelerator: Accelerator = Accelerator.AUTO,
        boot_id_file: Path = BOOT_ID_FILE,
        own: Path | None = None,
    ) -> None:
        real = not uri.startswith("test:")
        capabilities = Capabilities(
            acpi_shutdown=True,
            agent_shutdown=real,
            pause=True,
            suspend=True,
            console_log=real,
            console_stream=real,
            set_password=real,
            inject_nmi=True,
            live_snapshot=real,
            events=True,
        )
        self._boot_id_file = boot_id_file
        self._folder = folder.absolute()
        self._run_as = run_as
        self._accelerator = accelerator
        super().__init__(
            Connection(uri, self._on_change),
            self._folder,
            images,
            capabilities,
            own=self._folder if own is None else own.absolute(),
        )
        self._changed: Changed | None = None
        self._host: xml.Host | None = None
        #: What is known of each domain's metadata, by uuid; None for domains that are not ours. Asking libvirt
        #: anew at each list would be one call per domain.
        self._known: dict[bytes, xml.Identity | None] = {}
        #: A domain was off when all were listed last.
        self._some_off = True
        #: The guests that ran in the last list, by their ids: of a thousand that still do nothing is said anew.
        self._steady: dict[bytes, _Steady] = {}
        #: Counts the events that made some of that untrue.
        self._definitions = 0
        #: Requests to agents inside guests that were not answered yet.
        self._asked: dict[str, asyncio.Task[None]] = {}
        self._consoles = LibvirtConsoles(self._connection)
        self._kernel = KernelLog()
        self._memories = Memories()

    async def open(self, changed: Changed) -> None:
        """Connect; see the contract."""
        self._changed = changed
        self._kernel.open()
        await self._connection.open()
        self._freezer.start()

    async def close(self) -> None:
        """Disconnect; guests run on."""
        self._changed = None
        await self._consoles.close()
        await self._freezer.stop()
        await self._connection.close()
        self._kernel.close()

    async def facts(self) -> HostFacts:
        """Describe the host; the disk is the file system that the data folder is on."""
        self._folder.mkdir(parents=True, exist_ok=True)
        disk = await on_thread(shutil.disk_usage, self._folder)
        return await self._look(lambda connection: _facts(connection, disk.total, disk.used))

    def boot_id(self) -> str:
        """Read what the kernel says; a machine without such a file tells of no boots."""
        try:
            return self._boot_id_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return ""

    async def list(self) -> builtins.list[Guest]:
        """Return all our guests by one bulk call, and a second one for saved memories when a guest is off."""
        epoch = self._definitions
        found, learned = await self._look(self._list)
        self._learn(learned, epoch)
        return found

    async def get(self, instance_id: str) -> Guest:
        """Return one guest."""
        return await self._look(lambda connection: self._get(connection, instance_id))

    async def strangers(self, known: AbstractSet[str]) -> builtins.list[Stranger]:
        """Describe the domains that are none of the known ones, each by calls of its own."""
        return await self._look(lambda connection: adoption.strangers(connection, known))

    async def adopt(self, spec: GuestSpec) -> None:
        """Mark the domain; the definition that it has stays."""
        epoch = self._definitions
        stored = await self._act(lambda connection: adoption.adopt(connection, spec))
        self._kept(spec.instance_id, stored, epoch)

    async def release(self, instance_id: str) -> None:
        """Put back what the domain was, and take the mark off it."""
        epoch = self._definitions
        await self._act(lambda connection: adoption.release(connection, instance_id))
        self._kept(instance_id, None, epoch)

    async def second_look(self, instance_ids: Sequence[str]) -> dict[str, Trace]:
        """Look for QEMU's processes, for definitions on the disk, and by a connection made for this alone.

        libvirt's test driver has nothing of this: there it can tell nothing.
        """
        uri = self._connection.uri
        if uri.startswith("test:"):
            return {}
        found = await on_thread(traces.find, frozenset(instance_ids), uri)
        try:
            seen = await self._connection.once(lambda connection: traces.ask(connection, instance_ids))
        except DriverError:
            # The connection there was has answered; that no other is to be had says nothing of any guest.
            seen = {}
        return {each: msgspec.structs.replace(found[each], seen=seen.get(each)) for each in instance_ids}

    async def mark_fence(self, instance_id: str, fence: int) -> None:
        """Store a fence in the domain's metadata; a lower one than is stored changes nothing.

        libvirt lets nothing change a domain while its memory is saved, so during that this waits.
        """
        epoch = self._definitions
        marked = await self._act(lambda connection: guests.mark_fence(connection, instance_id, fence))
        if marked is not None:
            self._kept(instance_id, marked, epoch)

    async def define(self, spec: GuestSpec) -> None:
        """Define the domain; the fence stored with it is kept."""
        await self._disks.write_seed(spec)
        files = self._disks.files(spec)

        def call(connection: libvirt.virConnect) -> None:
            if self._host is None:
                self._host = describe(connection, self._accelerator, self._run_as)
            fence = guests.stored_fence(connection, spec.instance_id)
            name = guests.name_for(connection, spec.instance_id, spec.domain_name)
            connected = networks.connect(connection, spec.ports)
            definition = xml.domain_xml(spec, files, self._host, name=name, fence=fence, networks=connected)
            guests.define(connection, definition)

        await self._act(call)

    async def power_on(self, instance_id: str) -> None:
        """Boot; refused while there is a saved memory, which ``discard_memory`` deletes."""
        await self._act(lambda connection: guests.power_on(connection, instance_id))

    async def request_shutdown(self, instance_id: str, *, by_agent: bool = True) -> Rung | None:
        """Ask the agent inside when it holds its channel, and press the power button when it does not answer.

        A request still unanswered from before is not waited for again: the button is pressed at once.
        """
        if by_agent and self.capabilities.agent_shutdown and instance_id not in self._asked:
            answers = await self._look(lambda connection: guests.agent_answers(connection, instance_id))
            if answers and await self._ask_agent(instance_id):
                return Rung.AGENT
        pressed = await self._act(lambda connection: guests.button(connection, instance_id))
        return Rung.POWER_BUTTON if pressed else None

    async def power_off(self, instance_id: str) -> None:
        """Take the power."""
        await self._act(lambda connection: guests.power_off(connection, instance_id))

    async def pause(self, instance_id: str) -> None:
        """Halt."""
        await self._act(lambda connection: guests.pause(connection, instance_id))

    async def unpause(self, instance_id: str) -> None:
        """Let run."""
        await self._act(lambda connection: guests.unpause(connection, instance_id))

    async def save_memory(self, instance_id: str) -> None:
        """Save, which takes as long as writing the guest's memory does."""
        await self._save(lambda connection: guests.save_memory(connection, instance_id))

    async def restore_memory(self, instance_id: str) -> None:
        """Start from the saved memory, which takes as long as reading it does."""
        await self._save(lambda connection: guests.restore_memory(connection, instance_id))

    async def discard_memory(self, instance_id: str) -> None:
        """Delete a saved memory."""

        def discard(connection: libvirt.virConnect) -> None:
            # That there is one to be deleted is known then, also where no list has told of it.
            self._get(connection, instance_id)
            guests.discard_memory(connection, instance_id)

        await self._act(discard)

    async def remove(self, instance_id: str) -> None:
        """Undefine the domain, then delete its files: repeated after a kill in between, it deletes the rest."""
        await self._act(lambda connection: guests.forget(connection, instance_id))
        await self._disks.remove(instance_id)

    async def forget(self, instance_id: str) -> None:
        """Undefine the domain alone."""
        await self._act(lambda connection: guests.forget(connection, instance_id))

    async def console(self, instance_id: str) -> bytes:
        """Return the console log's end."""
        return await on_thread(self._disks.console, instance_id)

    async def open_console(self, instance_id: str) -> LibvirtConsole:
        """Connect to the serial console."""
        if not self.capabilities.console_stream:
            raise DriverError("libvirt's test driver has no consoles to connect to.")
        return await self._consoles.open(instance_id)

    async def set_password(self, instance_id: str, user: str, password: str) -> None:
        """Have the agent inside set a password; an agent still busy with an older question counts as silent."""
        try:
            async with asyncio.timeout(inside.LIMIT_SECONDS + _GRACE_SECONDS):
                await self._connection.run(
                    Lane.ASK, lambda connection: inside.set_password(connection, instance_id, user, password)
                )
        except TimeoutError:
            raise AgentSilent(inside.LIMIT_SECONDS + _GRACE_SECONDS) from None

    async def inject_nmi(self, instance_id: str) -> None:
        """Interrupt."""
        await self._act(lambda connection: guests.inject_nmi(connection, instance_id))

    async def diagnostics(self, instance_id: str) -> Diagnostics:
        """Measure, by one call for all the guest's figures."""
        return await self._look(lambda connection: figures.measure(connection, instance_id))

    async def addresses(self) -> dict[str, tuple[PortAddress, ...]]:
        """Return what running guests were given, by one call for the guests and one for each of their networks."""
        epoch = self._definitions
        found, learned = await self._look(self._addresses)
        self._learn(learned, epoch)
        return found

    async def _look(self, call: Callable[[libvirt.virConnect], T]) -> T:
        return await self._connection.run(Lane.LOOK, call)

    async def _act(self, call: Callable[[libvirt.virConnect], T]) -> T:
        return await self._connection.run(Lane.ACT, call)

    async def _save(self, call: Callable[[libvirt.virConnect], T]) -> T:
        return await self._connection.run(Lane.SAVE, call)

    def _get(self, connection: libvirt.virConnect, instance_id: str) -> Guest:
        found = guests.get(connection, instance_id)
        cause = self._memories.cause(_key(instance_id), found.observed, found.cause)
        found = msgspec.structs.replace(found, cause=cause)
        domain = guests.lookup(connection, instance_id) if self._kernel.matters(found.cause) else None
        if domain is None:
            return found
        cause = self._kernel.cause(domain.name(), found.observed, found.cause)
        return msgspec.structs.replace(found, cause=cause)

    def _list(
        self, connection: libvirt.virConnect
    ) -> tuple[builtins.list[Guest], dict[bytes, xml.Identity | None]]:
        """List, and return what was learned of domains not known before.

        The saved memories are asked for first: a guest restored after that is seen to be on. One saved after
        that is the only one seen off by a save that has no image, and is looked at again. While none was off in the
        list before they are not asked for, unless one is now: then all is asked again in that order.
        """
        saved = set[bytes]()
        stats: builtins.list[tuple[libvirt.virDomain, dict[str, Any]]] = []
        if not self._some_off:
            stats = connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE)
            self._some_off = any(stat["state.state"] == libvirt.VIR_DOMAIN_SHUTOFF for _, stat in stats)
        if self._some_off:
            with_memory = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)
            saved = {domain.UUID() for domain in with_memory}
            stats = connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE)
            self._some_off = any(stat["state.state"] == libvirt.VIR_DOMAIN_SHUTOFF for _, stat in stats)
        learned: dict[bytes, xml.Identity | None] = {}
        found: builtins.list[Guest] = []
        known, steady = self._known, dict[bytes, _Steady]()
        before = {} if self._kernel.matters(Cause.OTHER) else self._steady
        for domain, stat in stats:
            uuid = domain.UUID()
            ours = known.get(uuid, _UNKNOWN)
            if ours is _UNKNOWN:
                ours = learned[uuid] = guests.identity(domain)
            if ours is None:
                continue
            state, reason = stat["state.state"], stat["state.reason"]
            same = before.get(uuid)
            if same is not None and same[0] == state and same[1] == reason and same[2] is ours:
                steady[uuid] = same
                found.append(same[3])
                continue
            if (state, reason) == guests.OFF_BY_A_SAVE and uuid not in saved:
                now, cause = guests.look(domain)
            else:
                now, cause = observed(state, reason, saved=uuid in saved)
            cause = self._memories.cause(uuid, now, cause)
            if self._kernel.matters(cause):
                cause = self._kernel.cause(domain.name(), now, cause)
            guest = Guest(instance_id=ours.instance_id, observed=now, cause=cause, fence=ours.fence)
            if state == libvirt.VIR_DOMAIN_RUNNING:
                # Of these nothing else has a say: neither a saved memory, nor the kernel.
                steady[uuid] = (state, reason, ours, guest)
            found.append(guest)
        self._steady = steady
        return found, learned

    def _addresses(
        self, connection: libvirt.virConnect
    ) -> tuple[dict[str, tuple[PortAddress, ...]], dict[bytes, xml.Identity | None]]:
        learned: dict[bytes, xml.Identity | None] = {}
        connected: builtins.list[xml.Identity] = []
        known = self._known
        for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            uuid = domain.UUID()
            ours = known.get(uuid, _UNKNOWN)
            if ours is _UNKNOWN:
                ours = learned[uuid] = guests.identity(domain)
            if ours is not None and any(ours.networks):
                connected.append(ours)
        names = {name for ours in connected for name in ours.networks if name}
        leases = {name: networks.leases(connection, name) for name in sorted(names)}
        return {ours.instance_id: _given(ours, leases) for ours in connected}, learned

    def _kept(self, instance_id: str, identity: xml.Identity | None, epoch: int) -> None:
        """Know what was stored with a domain, unless a domain was redefined since: the next list reads it anew then.

        Either way it goes before what a list that is under way learns, which may be older.
        """
        if epoch == self._definitions:
            self._known[_key(instance_id)] = identity
        else:
            self._definitions += 1
            self._known.pop(_key(instance_id), None)

    def _learn(self, learned: dict[bytes, xml.Identity | None], epoch: int) -> None:
        """Keep what was learned, unless a domain was redefined since: it may not be true of that one."""
        if learned and epoch == self._definitions:
            self._known = learned | self._known

    async def _ask_agent(self, instance_id: str) -> bool:
        """Ask an agent; False when it did not answer within its time, or refused."""
        task = asyncio.create_task(
            self._connection.run(Lane.ASK, lambda connection: guests.ask_agent(connection, instance_id)),
            name=f"ask-agent-{instance_id}",
        )
        self._asked[instance_id] = task
        task.add_done_callback(lambda _: self._asked.pop(instance_id, None))
        try:
            done, _ = await asyncio.wait({task}, timeout=_AGENT_SECONDS)
            return bool(done) and task.exception() is None
        finally:
            # Its late failure is nobody's news: the button was pressed.
            task.add_done_callback(_retrieve)

    def _on_change(self, uuid: str | None, change: Change) -> None:
        if uuid is None:
            self._known = {}
            self._host = None
        known = self._known.get(_key(uuid), _UNKNOWN) if uuid is not None else _UNKNOWN
        if change is Change.DEFINITION:
            self._definitions += 1
            if uuid is not None:
                self._known.pop(_key(uuid), None)
        elif known is None:
            return
        if self._changed is not None:
            # Of a domain that is not known it cannot be said here whether it is ours.
            self._changed(known.instance_id or None if known is not None else None)


#: Stands for a domain that nothing is known of yet; None stands for one that is not ours.
_UNKNOWN: Final = xml.Identity(instance_id="", project_id="", fence=0)

#: A guest's state, its reason, what is kept with it, and what is said of it.
_Steady = tuple[int, int, xml.Identity, Guest]


def _given(ours: xml.Identity, leases: Mapping[str, Mapping[str, Sequence[str]]]) -> tuple[PortAddress, ...]:
    macs = ((name, mac_of(ours.instance_id, index)) for index, name in enumerate(ours.networks) if name)
    return tuple(
        PortAddress(mac=mac, address=address) for name, mac in macs for address in leases[name].get(mac, ())
    )


def _key(uuid: str) -> bytes:
    return bytes.fromhex(uuid.replace("-", ""))


def _retrieve(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


def _facts(connection: libvirt.virConnect, disk: int, disk_used: int) -> HostFacts:
    # Not from libvirt's capabilities: asked for the first time, those start each QEMU there is, for seconds.
    arch, memory, vcpus, _, _, sockets, cores, threads = connection.getInfo()
    topology = {"sockets": sockets, "cores": cores, "threads": threads}
    return HostFacts(
        hypervisor_type=connection.getType(),
        hypervisor_version=connection.getVersion(),
        vcpus=vcpus,
        memory=memory,
        disk=disk // _GIB,
        disk_used=disk_used // _GIB,
        cpu_info=json.dumps({"arch": arch, "topology": topology}),
    )
