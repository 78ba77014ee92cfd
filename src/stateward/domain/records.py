"""What the parts of the control plane tell each other: one set of types for rows, bus, journal and API (ADR 0004)."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from stateward.domain.locks import ActorKind, OperationClass
from stateward.domain.networks import Port, PortAddress
from stateward.domain.seeds import Seed, SeedFacts
from stateward.domain.shutdown import Ending, Rung, ShutdownPlan
from stateward.domain.states import Cause, Observed, TaskState, VmState, deviation
from stateward.domain.steps import Step


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks for something, as the audit trail keeps it."""

    kind: ActorKind
    user_id: str
    project_id: str
    request_id: str


class FlavorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The flavor as it was when the instance was made; memory in MiB, disks in GiB, swap in MiB."""

    id: str
    name: str
    vcpus: int
    ram: int
    disk: int
    ephemeral: int = 0
    swap: int = 0
    extra_specs: dict[str, str] = {}


class ImageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The image as it was when the instance was made."""

    id: str
    disk_format: str
    properties: dict[str, str] = {}

    @property
    def kernel(self) -> str | None:
        """The image of the kernel it is booted by, by id; None where it is booted by its own loader."""
        return self.properties.get("kernel_id")

    @property
    def ramdisk(self) -> str | None:
        """The image of the RAM disk that goes with the kernel, by id."""
        return None if self.kernel is None else self.properties.get("ramdisk_id")


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why an instance is in ERROR, or why its last operation did not finish."""

    code: int
    message: str
    #: Seconds since the epoch.
    created: float


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation makes of an instance besides its state; applied to the record when it succeeded.

    Kept with the operation, so that one that is overtaken or fails leaves no trace in the record.
    """

    flavor: FlavorFacts | None = None
    image: ImageFacts | None = None
    #: What the disk is made from where that is not the instance's image; not applied to the record.
    disk_from: ImageFacts | None = None
    #: The image to rescue with.
    rescue: ImageFacts | None = None
    #: The image of the image store that the disk is put into, by id.
    snapshot: str | None = None
    #: File systems are frozen through the guest's agent while the disk is copied.
    quiesce: bool = False
    #: createBackup: its type, and how many images of that type are kept.
    backup_type: str | None = None
    rotation: int | None = None
    #: Of a guest that is adopted: the vm state it was seen in before.
    found: VmState | None = None


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One row of ``instances``: intent, record and observation side by side, each written by its owner only."""

    id: str
    #: Counts up over all instances; Nova's ``instance-0000000a`` is made of it.
    number: int
    project_id: str
    user_id: str
    name: str
    description: str | None
    hostname: str
    host: str
    zone: str
    flavor: FlavorFacts
    image: ImageFacts
    key_name: str | None
    user_data: str | None
    metadata: dict[str, str]
    tags: tuple[str, ...]
    seed: SeedFacts
    ports: tuple[Port, ...]
    reservation_id: str
    #: Seconds since the epoch, all of them.
    created_at: float
    updated_at: float
    launched_at: float | None
    terminated_at: float | None
    # --- the record
    vm_state: VmState
    task_state: TaskState | None
    #: Counts every admitted operation; a worker with an older one may not act (B3).
    fence: int
    operation_id: str | None
    fault: Fault | None
    #: While it is resized, or deleted since: the flavor before, and the vm state a confirm or revert ends in.
    old_flavor: FlavorFacts | None
    was: VmState | None
    #: The image it is rescued with.
    rescue: ImageFacts | None
    #: The image of the image store that keeps its disk while it is shelved.
    shelved_image: ImageFacts | None
    # --- the locks' union
    owner_blocks: OperationClass
    admin_blocks: OperationClass
    hold_blocks: OperationClass
    #: A hold keeps the guest off, and not only as it is.
    kept_off: bool
    locked_by: str | None
    locked_reason: str | None
    # --- the observation
    observed: Observed
    cause: Cause
    observed_seq: int
    #: Since when it is seen so, in seconds since the epoch by the control plane's clock.
    observed_at: float | None
    #: What its ports were last seen to be reached by; of a guest that is off, what it had.
    addresses: tuple[PortAddress, ...]
    addresses_seq: int
    # --- its placement
    #: The server group it was made in; the group may be gone.
    group_id: str | None = None
    #: What its maker told the scheduler.
    hints: dict[str, Any] | None = None
    #: When its vm state began, where that was before it was written (seconds since the epoch).
    state_since: float | None = None
    #: The hypervisor's name for a guest that was adopted, whose definition and disks are not ours; None: it was made
    #: here.
    adopted_as: str | None = None
    #: The deviation that a person was told of last, for as long as it has not passed (R15).
    alerted: str | None = None

    @property
    def domain_name(self) -> str:
        """The hypervisor's name for it; of what was made here in Nova's form."""
        return self.adopted_as or f"instance-{self.number:08x}"

    @property
    def locked(self) -> bool:
        """Whether anything locks it."""
        return self.locked_by is not None

    @property
    def deviation(self) -> str:
        """What is recorded of it and what was seen, as an alert of it is told once."""
        return deviation(self.vm_state, self.observed, self.cause)

    @property
    def held(self) -> bool:
        """Whether a hold is on it (R6)."""
        return bool(self.hold_blocks)


class OperationState(enum.StrEnum):
    """How far an operation has come; all but the first two are final."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    #: Its wait for the guest was ended by a person; the instance stays as it was (B4).
    CANCELLED = "cancelled"


UNFINISHED = (OperationState.ACCEPTED, OperationState.RUNNING)


class WaitsFor(enum.StrEnum):
    """What an operation waits for when it is not working itself."""

    GUEST = "guest"
    HYPERVISOR = "hypervisor"


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far an agent is with an operation (B4).

    ``seq`` rises over all lives of the agent, so a smaller one is never news after a larger one.
    """

    seq: int
    #: The step under way, the ``number``-th ``of`` so many, counted from 1.
    step: Step
    number: int
    of: int
    #: None while it works.
    waits_for: WaitsFor | None = None
    #: When the guest's time is up; None while it is given none. Seconds since the epoch, all of them.
    deadline: float | None = None
    #: When the guest was first asked to shut down, also by an agent killed since; None: it was not asked.
    signalled_at: float | None = None
    #: How it was asked last; None until that is known.
    rung: Rung | None = None
    #: When the agent said so.
    at: float


class ProgressReport(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's word on how far it is; the latest replaces those before it."""

    operation_id: str
    progress: Progress


class Command(enum.StrEnum):
    """What can be told to an operation that runs (B4)."""

    #: The guest gets more time.
    EXTEND = "extend"
    #: The guest's time is over now, and its power is taken.
    ESCALATE = "escalate"
    #: The wait ends and the instance stays as it is.
    CANCEL = "cancel"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A command on its way to an agent; each operation's orders are counted, and the latest stands."""

    operation_id: str
    instance_id: str
    #: From 1.
    number: int
    command: Command
    #: For ``EXTEND``: what the guest gets in all, in seconds from when it was first asked.
    seconds: int | None = None


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One row of ``operations``: an admitted action, which is also Nova's instance action."""

    id: str
    instance_id: str
    action: str
    actor_kind: ActorKind
    user_id: str
    project_id: str
    request_id: str
    fence: int
    host: str
    state: OperationState
    started_at: float
    finished_at: float | None
    message: str | None
    params: dict[str, Any]
    #: The last that its agent said; None until it said something.
    progress: Progress | None = None
    #: The last order that was given to it (B4).
    order: Order | None = None

    @property
    def actor(self) -> Actor:
        """Who asked for it, for what is done in its course."""
        return Actor(
            kind=self.actor_kind,
            user_id=self.user_id,
            project_id=self.project_id,
            request_id=self.request_id,
        )


class GuestSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All an agent needs to make an instance's guest from nothing."""

    instance_id: str
    domain_name: str
    display_name: str
    project_id: str
    vcpus: int
    #: MiB.
    memory: int
    #: GiB; 0 takes the image's own size.
    disk: int
    image: ImageFacts
    #: The image to boot from instead, with the disk attached as the second one; None: it boots from its disk.
    rescue: ImageFacts | None = None
    #: GiB of a second, empty disk; 0 for none.
    ephemeral: int = 0
    #: MiB of a disk to swap to; 0 for none.
    swap: int = 0
    ports: tuple[Port, ...] = ()
    #: None when there is nothing to tell the guest.
    seed: Seed | None = None
    #: It was there before: its definition and its disks are its owner's, and are neither written nor deleted.
    adopted: bool = False


class Dispatch(msgspec.Struct, frozen=True, kw_only=True):
    """An operation on its way to an agent; self-contained, because agents have no database."""

    operation_id: str
    instance_id: str
    action: str
    fence: int
    steps: tuple[Step, ...]
    guest: GuestSpec
    shutdown: ShutdownPlan | None
    #: For the steps that copy the disk: the image to hand it to, and whether file systems are frozen meanwhile.
    snapshot: str | None = None
    quiesce: bool = False


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent saw of one guest.

    ``seq`` was taken before the hypervisor was asked, so a smaller one is never news after a larger one.
    """

    instance_id: str
    observed: Observed
    cause: Cause
    seq: int
    #: Seconds since the epoch, by the agent's clock; what is kept is by the control plane's (``arbiter.arrival``).
    at: float


class Outcome(enum.StrEnum):
    """How an agent finished with an operation."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's answer to a dispatch; sent until it is taken."""

    operation_id: str
    instance_id: str
    fence: int
    outcome: Outcome
    #: For people: what went wrong and what to do.
    message: str | None
    #: None when the hypervisor could not be asked.
    observation: Observation | None
    #: For people: whether a guest went off by itself, was forced, or was not asked; None where no step asked one.
    shutdown: str | None = None
    #: The same for ``settle``; None where no step shut a guest down, or it was overtaken.
    ending: Ending | None = None
    #: The step that could not be done; those before it were.
    failed_at: Step | None = None
    #: The machine's boot as the operation ended, and a number as an observation's.
    boot_id: str = ""
    seq: int = 0


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """All that an agent says of its guests while nothing changes: one small message for each look at everything.

    Equal digests of one host are of equal guests in equal states, in the same boot of the machine.
    """

    host: str
    #: Taken before the hypervisor was asked, as an observation's.
    seq: int
    #: How many guests there are.
    count: int
    digest: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A batch of observations from one host; ``complete`` when it names every guest there."""

    host: str
    complete: bool
    observations: tuple[Observation, ...]
    #: Of the question; a guest that a complete report does not name is missing as of it.
    seq: int
    #: Seconds since the epoch.
    at: float
    #: The machine's boot that all of it was seen in.
    boot_id: str = ""
    #: What a tally says of the same guests; only a complete report has one.
    digest: str = ""


class HostReport(msgspec.Struct, frozen=True, kw_only=True):
    """A host's heartbeat: what it is and whether its hypervisor answers. Memory in MiB, disk in GiB."""

    host: str
    driver: str
    hypervisor_type: str
    hypervisor_version: int
    reachable: bool
    detail: str
    vcpus: int
    memory: int
    disk: int
    disk_used: int
    running: int
    cpu_info: str
    at: float
    #: Another one after each boot of the machine; empty where the driver cannot tell (R14).
    boot_id: str = ""
    #: Larger in each heartbeat than in all before it, whatever the agent's clock does; 0: ``at`` has to do.
    seq: int = 0

    @property
    def number(self) -> int:
        """By which a heartbeat is newer than another of its host."""
        return self.seq or int(self.at * 1000)


class AddressReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the guests of one host are reached by, for those whose addresses changed, or for all that run."""

    host: str
    #: By the instance's id; an empty tuple says that a guest that runs has none.
    addresses: dict[str, tuple[PortAddress, ...]]
    #: Taken before the hypervisor was asked, as an observation's.
    seq: int


class ConsoleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Ask an agent for the end of a guest's console log."""

    instance_id: str
    #: None: all that is kept.
    lines: int | None


class ConsoleReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a ``ConsoleRequest``; ``error`` instead of output when there is none."""

    output: str = ""
    error: str | None = None
