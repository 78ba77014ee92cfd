"""The whole server in one process: every role, composed of the same parts that run apart.

Starting puts things up in the order of their needs; stopping takes them down in reverse. Nothing is lost by being
killed in between: what was accepted is in the database, and what an agent has begun is in its journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from stateward.agent.agent import Agent
from stateward.agent.driver import Driver, DriverError, ImageFiles
from stateward.api.app import build
from stateward.api.compute.services import Services
from stateward.api.console import ConsoleAccess, ConsoleTokens
from stateward.api.faults import ApiFault
from stateward.api.identity import Identity
from stateward.api.images import Images
from stateward.bus.console import Consoles, LocalConsoles
from stateward.bus.memory import MemoryBus
from stateward.clock import SystemClock
from stateward.clouds import write_clouds
from stateward.domain.errors import Conflict, NotFound
from stateward.domain.webhooks import Patience
from stateward.guest import agent as guest_agent, build as guest
from stateward.guest.apt import GuestBuildError
from stateward.operations.changes import Changes
from stateward.operations.courier import Courier, bodies
from stateward.operations.posting import HttpPost
from stateward.operations.webhooks import Webhooks
from stateward.plane import Plane, new_agent
from stateward.private import make_private, write_private
from stateward.settings import HostSettings, Settings
from stateward.store import flavors, hosts
from stateward.store.engine import Database, StoreUnavailable, open_database
from stateward.store.schema import NewerSchema, migrate
from stateward.store.sole import DatabaseTaken, sole

log = structlog.get_logger()

#: Tells a person what is being done.
Progress = Callable[[str], None]


class LocalImages:
    """The image store's files, for agents on the same machine."""

    def __init__(self, images: Images) -> None:
        """Take the files from an image store of this process."""
        self._images = images

    async def path(self, image_id: str) -> Path:
        """Return the file of an image.

        Raises:
            DriverError: it has none.
        """
        try:
            return await self._images.path(image_id)
        except (NotFound, StoreUnavailable) as error:
            raise DriverError(str(error)) from None

    async def store(self, image_id: str, path: Path) -> None:
        """Make a file the data of a queued image, unless it has them.

        Raises:
            DriverError: it cannot be; the file is kept.
        """
        try:
            await self._images.take(image_id, path)
        except (NotFound, Conflict, StoreUnavailable, ApiFault) as error:
            raise DriverError(str(error)) from None


class CannotStart(Exception):
    """The server cannot be started; ``str()`` says why and what to do."""


class Server:
    """One process's server on one data folder."""

    def __init__(
        self, *, data: Path, listen: tuple[str, int], settings: Settings, progress: Progress
    ) -> None:
        """Prepare; nothing is touched yet."""
        self._data = data
        self._listen = listen
        self._settings = msgspec.structs.replace(
            settings, host=settings.host or (HostSettings(name=machine_name()),)
        )
        self._progress = progress
        self._undo = contextlib.AsyncExitStack()
        self._agents: list[Agent] = []
        self.app: Any = None
        #: Closed before the last requests are waited for: those who follow operations would never end.
        self.changes = Changes()
        self.socket: socket.socket | None = None
        #: Set when another server has taken the database: this one must end.
        self.overtaken = asyncio.Event()

    async def start(self) -> None:
        """Put everything up; on return requests can be served.

        Raises:
            CannotStart: with what to do about it; whatever was put up is down again.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Take everything down, the newest first; guests run on."""
        await self._undo.aclose()

    async def _start(self) -> None:
        self._take_folder()
        self.socket = self._bind()
        self._undo.callback(self.socket.close)
        clock = SystemClock()
        database = await self._open_database()
        secret = self._secret()
        identity = Identity(database, clock, secret, token_seconds=self._settings.token.lifetime)
        images = Images(database, self._data / "images", clock)
        await images.start()
        self._undo.callback(identity.close)
        bus = MemoryBus()
        self._undo.push_async_callback(bus.close)
        consoles = LocalConsoles()
        plane = Plane(
            database=database,
            bus=bus,
            clock=clock,
            settings=self._settings,
            changes=self.changes,
            forget_images=images.forget,
        )
        post = HttpPost(
            seconds=self._settings.webhooks.timeout, private=self._settings.webhooks.private_addresses
        )
        self._undo.push_async_callback(post.close)
        origin = self._settings.events.source
        services = Services(
            database=database,
            identity=identity,
            admission=plane.admission,
            asking=plane.asking,
            immediate=plane.immediate,
            expiring=plane.expiry.wake,
            second_admin=self._settings.locks.second_admin,
            control=plane.control,
            changes=self.changes,
            bus=bus,
            clock=clock,
            consoles=ConsoleAccess(
                tokens=ConsoleTokens(secret, clock, seconds=self._settings.console.token_seconds),
                ports=consoles,
                database=database,
                allowed_origins=frozenset(self._settings.console.allowed_origins),
            ),
            public_url=self._settings.public_url,
            host_patience=self._settings.agent.patience,
            networks=tuple(network.made() for network in self._settings.network),
            reclaims=self._settings.reclaim.interval > 0,
            policies=plane.policies,
            event_source=origin,
            metrics_local=self._settings.metrics.local,
            webhooks=Webhooks(database, clock, post, origin),
            host_actions=plane.hosts,
        )
        await self._first_start(identity, database)
        self._undo.push_async_callback(plane.stop)
        await plane.start()
        for host in self._settings.host:
            await self._start_agent(host, database, bus, consoles, LocalImages(images))
        courier = self._courier(database, clock, post)
        self._undo.push_async_callback(courier.stop)
        await courier.start()
        self.images = images
        self.app = build(services, images, self._ready(database, clock))

    def _courier(self, database: Database, clock: SystemClock, post: HttpPost) -> Courier:
        said = self._settings.webhooks
        patience = Patience(
            attempts=said.attempts,
            first_pause=said.first_pause,
            longest_pause=said.longest_pause,
            disable_after=said.disable_after,
        )
        body = bodies(self._settings.events.source)
        return Courier(database, clock, self.changes, post, body, patience=patience, at_once=said.at_once)

    def _take_folder(self) -> None:
        """Make the data folder this process's own: two servers on one folder would fight over its guests."""
        try:
            self._data.mkdir(parents=True, exist_ok=True, mode=0o711)
            descriptor = os.open(self._data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise CannotStart(
                f"The data folder {self._data} cannot be used: {error.strerror}. Name another with --data."
            ) from None
        self._undo.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CannotStart(
                f"Another server is running on the data folder {self._data}. Stop it, or name another with --data."
            ) from None

    def _bind(self) -> socket.socket:
        host, port = self._listen
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
            bound.listen(1024)
        except OSError as error:
            bound.close()
            raise CannotStart(
                f"Cannot listen on {host}:{port}: {error.strerror}. Name another address with --listen."
            ) from None
        bound.setblocking(False)  # noqa: FBT003 (the socket's own interface)
        return bound

    async def _open_database(self) -> Database:
        url = self._settings.database
        if url is None:
            # The folder can be passed through, for QEMU: what is in it must protect itself.
            path = self._data / "stateward.db"
            make_private(path)
            url = f"sqlite:///{path}"
        try:
            mine = sole(url)
            self._undo.push_async_callback(mine.release)
            await mine.take(self.overtaken.set)
            database = open_database(url)
            self._undo.push_async_callback(database.close)
            if await migrate(database):
                self._progress("the database is set up")
        except DatabaseTaken:
            raise CannotStart(
                f"Another server is running on the database {_shown(url)}. Stop it, or name another in the setting "
                "database; one whose machine has gone lets go of it within a minute."
            ) from None
        except (StoreUnavailable, NewerSchema) as error:
            raise CannotStart(
                f"{_one_line(error)} Check the setting database, and that it is running."
            ) from None
        except DBAPIError as error:
            raise CannotStart(
                f"The database {_shown(url)} cannot be used: {_one_line(error.orig)} Check the setting database."
            ) from None
        except (ArgumentError, ImportError) as error:
            raise CannotStart(
                f"The setting database is not an address that can be used: {_one_line(error)} "
                "It is like sqlite:////folder/file.db or postgresql+psycopg://user@host/name."
            ) from None
        return database

    def _secret(self) -> bytes:
        """Return the key that tokens are signed with; made at the first start."""
        path = self._data / "secret"
        if not path.exists():
            write_private(path, secrets.token_urlsafe(48))
        return path.read_text().strip().encode()

    async def _first_start(self, identity: Identity, database: Database) -> None:
        """Make the first users and flavors, and the file by which clients find the server."""
        if not await identity.is_bootstrapped():
            passwords = {"admin": secrets.token_urlsafe(18), "demo": secrets.token_urlsafe(18)}
            # The file first: killed before the users are there, the next start makes both anew.
            write_clouds(self._data, self.address, passwords)
            await identity.bootstrap(admin_password=passwords["admin"], demo_password=passwords["demo"])
            self._progress("users admin and demo are made")
        else:
            write_clouds(self._data, self.address, None)
        await database.write(flavors.register_defaults)

    @property
    def address(self) -> str:
        """Where clients reach the server, without a slash at the end."""
        host, port = self.socket.getsockname()[:2] if self.socket is not None else self._listen
        if host in {"0.0.0.0", "::"}:  # noqa: S104 (read, not bound)
            host = "127.0.0.1"
        return self._settings.public_url or f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def _start_agent(
        self, host: HostSettings, database: Database, bus: MemoryBus, consoles: Consoles, images: ImageFiles
    ) -> None:
        folder = self._own(host)
        folder.mkdir(parents=True, exist_ok=True)
        await database.write(
            lambda connection: hosts.register(connection, host.name, host.zone, shared=host.shared)
        )
        # What all hosts so marked share has to be mounted there; a simulated host's guests are in its memory.
        shared = host.shared and host.driver != "simulated"
        driver = await self._driver(host, self._data / "shared" if shared else folder, images)
        make_private(folder / "journal.db")
        agent = new_agent(
            host.name,
            driver=driver,
            bus=bus,
            consoles=consoles,
            clock=SystemClock(),
            journal=folder / "journal.db",
            settings=self._settings,
        )
        await agent.start()
        self._agents.append(agent)
        self._undo.push_async_callback(agent.stop)

    def _own(self, host: HostSettings) -> Path:
        """Return the folder of what is a host's alone, whether or not it shares its disks."""
        return self._data / "hosts" / host.name

    async def _driver(self, host: HostSettings, folder: Path, images: ImageFiles) -> Driver:
        if host.driver == "simulated":
            from stateward.agent.simulated import LARGE, SimulatedDriver, SimulatedHypervisor  # noqa: PLC0415 (only if used)

            told = {"vcpus": host.vcpus, "memory": host.memory, "disk": host.disk}
            size = msgspec.structs.replace(
                LARGE, **{name: value for name, value in told.items() if value is not None}
            )
            hypervisor = SimulatedHypervisor(folder=folder, size=size)
            self._undo.callback(hypervisor.close)
            return SimulatedDriver(hypervisor, images=images)
        from stateward.agent.libvirt import daemons  # noqa: PLC0415 (only if used)
        from stateward.agent.libvirt.driver import LibvirtDriver  # noqa: PLC0415
        from stateward.agent.libvirt.host import Accelerator  # noqa: PLC0415
        from stateward.agent.libvirt.pidfile import DaemonError  # noqa: PLC0415

        try:
            place = await daemons.ensure(host.uri, self._data, self._progress)
        except DaemonError as error:
            raise CannotStart(str(error)) from None
        if host.uri is None:
            self._undo.push_async_callback(daemons.stop, self._data, self._progress)
            keeping = asyncio.create_task(daemons.keep(self._data), name="libvirt's daemons")
            self._undo.push_async_callback(_cancelled, keeping)
        return LibvirtDriver(
            uri=place.uri,
            folder=folder,
            images=images,
            run_as=place.run_as,
            accelerator=Accelerator(host.accelerator),
            boot_id_file=Path(host.boot_id_file),
            own=self._own(host),
        )

    async def register_test_guest(self, *, agent: bool) -> None:
        """Build the test guest, unless it is there, and register its images; without it the server runs as well.

        Args:
            agent: register another one, ``tiny-guest-agent``, that has Debian's qemu-guest-agent.
        """
        cache = self._data / "cache"
        try:
            files = await guest.build(cache, self._progress)
            ramdisks = {"tiny-guest": (files.ramdisk, guest.TINY_GUEST_PROPERTIES)}
            if agent:
                path = await guest_agent.build_ramdisk(cache, self._progress)
                ramdisks["tiny-guest-agent"] = (path, guest_agent.AGENT_GUEST_PROPERTIES)
        except GuestBuildError as error:
            log.warning("the test guest is not available", error=str(error))
            return
        kernel = await self.images.register_local("tiny-guest-kernel", files.kernel, disk_format="aki")
        for name, (path, properties) in ramdisks.items():
            ramdisk = await self.images.register_local(f"{name}-ramdisk", path, disk_format="ari")
            await self.images.register_local(
                name,
                files.disk,
                disk_format="qcow2",
                properties={**properties, "kernel_id": kernel, "ramdisk_id": ramdisk},
            )

    def _ready(
        self, database: Database, clock: SystemClock
    ) -> Callable[[], Awaitable[tuple[bool, dict[str, object]]]]:
        async def ready() -> tuple[bool, dict[str, object]]:
            try:
                found = await database.read(hosts.every)
            except StoreUnavailable as error:
                return False, {"database": str(error), "hosts": {}}
            now = clock.now()
            words: dict[str, object] = {}
            for host in found:
                if not host.up(now, self._settings.agent.patience):
                    words[host.name] = "not heard of"
                elif host.report is not None and not host.report.reachable:
                    words[host.name] = host.report.detail
                else:
                    words[host.name] = "up"
            return "up" in words.values(), {"database": "up", "hosts": words}

        return ready


async def _cancelled(task: asyncio.Task[None]) -> None:
    """End a task."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _one_line(error: object) -> str:
    """Write what an error says in one line that ends with a full stop."""
    return " ".join(str(error).split()).rstrip(".?") + "."


def _shown(url: str) -> str:
    """Write a database's address without its password."""
    return make_url(url).render_as_string(hide_password=True)


def machine_name() -> str:
    """Return the name of this machine, without its domain: the default host's name."""
    name = socket.gethostname().split(".")[0]
    return name or "localhost"
