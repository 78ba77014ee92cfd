"""Settings: defaults, a TOML file, then the environment; checked once at start and frozen.

``STATEWARD_SHUTDOWN__DEFAULT=30`` sets ``default`` in the table ``[shutdown]``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from stateward.domain.evacuation import Wish
from stateward.domain.networks import Network, NetworkKind
from stateward.domain.policies import BadPolicy, CrashLoop, Policies, Policy, check
from stateward.domain.shutdown import DEFAULT_CAP_SECONDS, DEFAULT_SECONDS, AtDeadline
from stateward.domain.sweeps import SweepLimits

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Amount = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


#: Where Linux names the boot that the machine is in.
BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")


_BMC_ADDRESS: Final = re.compile(
    r"(https?|ipmi)://([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\])(:(?P<port>[0-9]{1,5}))?/?"
)
_LAST_PORT: Final = 65535

_LOOP: Final = CrashLoop()
_SWEEP: Final = SweepLimits()


class BadSettings(Exception):
    """A setting cannot be used; ``str()`` names it and says what it must be."""


class ShutdownSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[shutdown]``: what guests get to shut down, in seconds, and what is done at the end of that."""

    default: Annotated[int, msgspec.Meta(ge=0)] = DEFAULT_SECONDS
    cap: Annotated[int, msgspec.Meta(ge=0)] = DEFAULT_CAP_SECONDS
    at_deadline: AtDeadline = AtDeadline.FORCE
    #: What anybody may choose; ``force`` always may.
    choices: frozenset[AtDeadline] = frozenset(AtDeadline)


class AgentSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[agent]``: how often agents look at everything and say that they live, in seconds; and their patience."""

    relist: Seconds = 10.0
    heartbeat: Seconds = 5.0
    #: After so long without a heartbeat a host counts as down.
    patience: Seconds = 15.0
    #: What the limits on a hypervisor's calls are multiplied by, for hosts whose disks are slow.
    limits: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class ArbiterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[arbiter]``: a guest that had to be brought back ``restores`` times within ``seconds`` is in a crash loop."""

    restores: Annotated[int, msgspec.Meta(ge=1)] = _LOOP.restores
    seconds: Seconds = _LOOP.seconds
    #: Seconds before the second restore, and what they are multiplied by before each further one.
    pause: Annotated[float, msgspec.Meta(ge=0)] = _LOOP.pause
    factor: Annotated[float, msgspec.Meta(ge=1)] = _LOOP.factor


class BreakerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[breaker]``: how many instances of a host may change at once until that must be confirmed (B5)."""

    #: More than so many, and more than so many percent of the host's, are a sweep.
    instances: Annotated[int, msgspec.Meta(ge=1)] = _SWEEP.instances
    percent: Annotated[float, msgspec.Meta(ge=0, le=100)] = _SWEEP.percent
    #: Seconds over which changes are counted together, and that a verdict waits for others.
    window: Seconds = _SWEEP.window
    pause: Annotated[float, msgspec.Meta(ge=0)] = _SWEEP.pause


class PoliciesSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[policies]``: where policies are chosen, by their names in ``[policy.NAME]`` (R13)."""

    default: str | None = None
    #: What owners may choose, by their instances' metadata and their images' properties.
    selectable: frozenset[str] = frozenset()
    #: By the project's id.
    projects: dict[str, str] = {}


class EventSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[events]``: what is told to the outside (docs/events.md)."""

    #: CloudEvents' ``source``: tells this installation's events from another's.
    source: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] = "/stateward"


class DeathSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[death]``: when a silent host is dead, how that is made sure, and what becomes of its instances; in seconds."""

    #: Without a heartbeat for so long a host is suspect: nothing of it is judged.
    silence: Seconds = 30.0
    #: More hosts than this silent at once, or more than this share of all: no host is declared dead.
    many: Annotated[int, msgspec.Meta(ge=1)] = 3
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    #: The folder, on storage that all hosts share, where agents renew their leases; and for how long one is good.
    lease: str | None = None
    lease_seconds: Seconds = 60.0
    #: A program that says whether a host lives: status 0 for yes, 1 for no. ``{host}`` is replaced by its name.
    probe: tuple[str, ...] = ()
    probe_timeout: Seconds = 30.0
    #: A program that takes a host's power; status 0 says that it is done.
    fence: tuple[str, ...] = ()
    fence_timeout: Seconds = 120.0
    #: ``ask``: an evacuation is only planned, and somebody approves it; ``auto``: nobody has to.
    evacuate: Literal["ask", "auto"] = "ask"
    #: What is wished for instances whose metadata, image, flavor, project and host say nothing.
    wish: Wish = Wish.EVACUATE
    #: By project's id.
    projects: dict[str, Wish] = {}
    #: So many instances of a host at a time, and so many a minute; of drains too.
    parallel: Annotated[int, msgspec.Meta(ge=1)] = 4
    per_minute: Annotated[float, msgspec.Meta(gt=0)] = 30.0


class BootSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[boot]``: how the instances of a host that has booted are started again; times in seconds."""

    #: So many at once.
    parallel: Annotated[int, msgspec.Meta(ge=1)] = 4
    #: Between the last of a priority and the first of the next lower one.
    delay: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    #: So long one that is still being started holds up lower priorities.
    patience: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    #: Of an instance that names none (``stateward:boot_priority``).
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0


class MetricsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[metrics]``: who may scrape ``/metrics``."""

    #: This machine may, without a token.
    local: bool = False


class WebhookSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[webhooks]``: how events are delivered; times in seconds."""

    #: Attempts of one event, until it is a dead letter; the pause between them doubles from the first to the longest.
    attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 10
    first_pause: Seconds = 1.0
    longest_pause: Seconds = 300.0
    #: Seconds an attempt may take.
    timeout: Seconds = 10.0
    #: A webhook to which nothing could be delivered for so long is disabled.
    disable_after: Seconds = 5 * 24 * 3600.0
    #: Deliveries at a time at most; as many more to webhooks that did not take their last one.
    at_once: Annotated[int, msgspec.Meta(ge=1, le=100)] = 8
    #: Addresses that are not of the internet may be posted to.
    private_addresses: bool = False


class ReclaimSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[reclaim]``: how long a deleted instance can be restored, in seconds; 0, as in Nova: not at all."""

    interval: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class LockSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[locks]``: of locks that expire, and of breaking the glass."""

    #: Seconds before a lock expires in which that is told.
    warning: Annotated[float, msgspec.Meta(ge=0)] = 3600.0
    #: An admin passes a hold only when a second one agrees.
    second_admin: bool = False


class ShelveSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[shelve]``: whether what is shelved leaves its host at once, as in Nova, or when an admin says so."""

    offload: bool = True


class TokenSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[token]``: how long a login lasts, in seconds."""

    lifetime: Annotated[int, msgspec.Meta(ge=60)] = 24 * 3600


class PlacementSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[placement]``: how full hosts may get; the defaults are those of Nova 34. Memory in MiB, disk in GiB."""

    #: How often each may be given away.
    cpu_ratio: Annotated[float, msgspec.Meta(gt=0)] = 4.0
    memory_ratio: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    disk_ratio: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    #: Kept for each host itself, before the ratios.
    reserved_vcpus: Amount = 0
    reserved_memory: Amount = 512
    reserved_disk: Amount = 0


class ConsoleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[console]``: interactive serial consoles in browsers and programs."""

    #: Seconds within which the address of a console must be used.
    token_seconds: Annotated[int, msgspec.Meta(ge=1)] = 600
    #: Names of web servers, besides this one, whose pages may connect to consoles.
    allowed_origins: tuple[str, ...] = ()


class BmcSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[host.bmc]``: a host's baseboard management controller, which knows of its power and takes it."""

    #: ``https://…`` or ``http://…`` for Redfish, ``ipmi://…`` for IPMI over LAN, with the port where it is another.
    address: str
    user: str
    #: The file in which its password is.
    password_file: str
    #: The file of the certificate of the controller, or of who signed it; None: of those whom the system trusts.
    certificate: str | None = None
    #: False: whoever answers at the address is believed.
    verify: bool = True
    #: The machine's, as its controller says it: with this a wrong address does not take another machine's power.
    uuid: UUID | None = None


class HostSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[[host]]``: one agent of this server. Names are unique; the default is one named after the machine."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
    driver: Literal["libvirt", "simulated"] = "libvirt"
    #: libvirt's; None finds or starts one.
    uri: str | None = None
    zone: str = "nova"
    #: The folder of its instances is on storage that all hosts so marked share.
    shared: bool = False
    #: None: the programs of ``[death]``, or the operator, take its power.
    bmc: BmcSettings | None = None
    #: What becomes of its instances when it dies; None: as ``[death]`` says.
    evacuate: Wish | None = None
    #: How guests are run: ``auto`` takes KVM where QEMU may use it.
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    #: What its guests get to shut down, in seconds, and what is done then; None: as ``[shutdown]`` says.
    shutdown_timeout: Annotated[int, msgspec.Meta(ge=0)] | None = None
    shutdown_at_deadline: AtDeadline | None = None
    #: The policy of its instances (R13).
    policy: str | None = None
    #: How many of its instances may change at once; None: as ``[breaker]`` says (B5).
    sweep_instances: Annotated[int, msgspec.Meta(ge=1)] | None = None
    sweep_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    #: What names the boot of the machine; another word there says that it has rebooted.
    boot_id_file: str = str(BOOT_ID_FILE)
    #: What a simulated host says it has; None: plenty. Memory in MiB, disk in GiB.
    vcpus: Amount | None = None
    memory: Amount | None = None
    disk: Amount | None = None


class NetworkSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[[network]]``: a network that instances can be put on. Names are unique; its id follows from its name."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
    kind: Literal["auto", "nat", "bridge", "user"] = "nat"
    #: libvirt's name of the network, or the host's of the bridge; None: libvirt's ``default``.
    source: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)] | None = None

    def made(self) -> Network:
        """Return the network as instances are put on it."""
        source = "" if self.kind == "user" else self.source or "default"
        return Network(name=self.name, kind=NetworkKind(self.kind), source=source)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings."""

    #: SQLAlchemy's; None: SQLite in the data folder.
    database: str | None = None
    #: Where clients reach the server, for its catalog; None: as each request's Host header says.
    public_url: str | None = None
    shutdown: ShutdownSettings = ShutdownSettings()
    agent: AgentSettings = AgentSettings()
    arbiter: ArbiterSettings = ArbiterSettings()
    breaker: BreakerSettings = BreakerSettings()
    events: EventSettings = EventSettings()
    boot: BootSettings = BootSettings()
    webhooks: WebhookSettings = WebhookSettings()
    metrics: MetricsSettings = MetricsSettings()
    death: DeathSettings = DeathSettings()
    reclaim: ReclaimSettings = ReclaimSettings()
    locks: LockSettings = LockSettings()
    shelve: ShelveSettings = ShelveSettings()
    token: TokenSettings = TokenSettings()
    placement: PlacementSettings = PlacementSettings()
    console: ConsoleSettings = ConsoleSettings()
    policies: PoliciesSettings = PoliciesSettings()
    policy: dict[str, Policy] = {}
    host: tuple[HostSettings, ...] = ()
    network: tuple[NetworkSettings, ...] = (NetworkSettings(name="default", kind="auto"),)

    def made_policies(self) -> Policies:
        """Return the policies as the arbiter follows them."""
        said = self.arbiter
        return Policies(
            named=self.policy,
            default=self.policies.default,
            hosts={host.name: host.policy for host in self.host if host.policy is not None},
            projects=self.policies.projects,
            selectable=self.policies.selectable,
            crash_loop=CrashLoop(
                restores=said.restores, seconds=said.seconds, pause=said.pause, factor=said.factor
            ),
        )


def load(path: Path | None, environment: Mapping[str, str]) -> Settings:
    """Read the settings.

    Raises:
        BadSettings: the file cannot be read, or a value is not what it must be.
    """
    raw = {} if path is None else tables_of(path)
    for name, value in environment.items():
        table, separator, key = name.removeprefix("STATEWARD_").lower().partition("__")
        if name.startswith("STATEWARD_") and separator:
            known = raw.setdefault(table, {})
            if not isinstance(known, dict):
                raise BadSettings(
                    f"The settings cannot be used: {name} sets a key of {table}, which is no table."
                )
            known[key] = value
    return of_tables(raw)


def tables_of(path: Path) -> dict[str, Any]:
    """Return the tables of a settings file as they are written.

    Raises:
        BadSettings: it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise BadSettings(f"The settings file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise BadSettings(f"The settings file {path} is not TOML: it is not written in UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise BadSettings(f"The settings file {path} is not TOML: {error}") from None


def of_tables(raw: dict[str, Any]) -> Settings:
    """Check tables of settings.

    Raises:
        BadSettings: a value is not what it must be.
    """
    try:
        settings = msgspec.convert(raw, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise BadSettings(f"The settings cannot be used: {error}") from None
    _check_together(settings)
    return settings


def _check_together(settings: Settings) -> None:
    """Refuse what is wrong only together with something else."""
    shutdown = settings.shutdown
    if shutdown.at_deadline not in shutdown.choices | {AtDeadline.FORCE}:
        raise BadSettings(
            f"The settings cannot be used: shutdown.at_deadline is {shutdown.at_deadline.value}, "
            "which shutdown.choices does not name."
        )
    for what, names in (
        ("hosts", [host.name for host in settings.host]),
        ("networks", [network.name for network in settings.network]),
    ):
        if len(names) != len(set(names)):
            raise BadSettings(
                f"The settings cannot be used: two {what} have one name: {', '.join(sorted(names))}"
            )
    for network in settings.network:
        if network.name in {"none", "auto"}:
            raise BadSettings(
                f"The settings cannot be used: no network can be called {network.name}, which clients ask for "
                "when they want none, or any."
            )
        if network.kind == "bridge" and network.source is None:
            raise BadSettings(
                f"The settings cannot be used: the network {network.name} names no bridge; set its source."
            )
    _check_hosts(settings.host)
    _check_death(settings.death, settings.agent.heartbeat)
    try:
        check(settings.made_policies())
    except BadPolicy as error:
        raise BadSettings(f"The settings cannot be used: {error}") from None


def _check_death(death: DeathSettings, heartbeat: float) -> None:
    """Refuse a lease that is lost between two renewals, which come with heartbeats: a host that lives is dead then."""
    if death.lease is not None and death.lease_seconds < 2 * heartbeat:
        raise BadSettings(
            f"The settings cannot be used: death.lease_seconds is {death.lease_seconds:g}, which is not twice "
            f"agent.heartbeat ({heartbeat:g}), with which leases are renewed: a host that lives would lose its lease."
        )


def _is_bmc_address(text: str) -> bool:
    found = _BMC_ADDRESS.fullmatch(text)
    return found is not None and (found["port"] is None or 0 < int(found["port"]) <= _LAST_PORT)


def _check_hosts(hosts: tuple[HostSettings, ...]) -> None:
    for host in hosts:
        if host.bmc is not None and not _is_bmc_address(host.bmc.address):
            raise BadSettings(
                f"The settings cannot be used: the bmc of host {host.name} has the address {host.bmc.address!r}; "
                "it must be like https://ADDRESS or http://ADDRESS for Redfish, or ipmi://ADDRESS."
            )
        if host.driver != "simulated" and (host.vcpus, host.memory, host.disk) != (None, None, None):
            raise BadSettings(
                f"The settings cannot be used: host {host.name} has vcpus, memory or disk, which only simulated "
                "hosts are told; others find out themselves."
            )
