"""What the Compute API's handlers use: the ports, handed in once when the server is composed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache

import msgspec

from stateward.api.console import ConsoleAccess
from stateward.api.identity import Identity
from stateward.bus.port import Bus
from stateward.clock import Clock
from stateward.domain.networks import Network
from stateward.domain.policies import NO_POLICIES, Policies
from stateward.operations.admission import Admission
from stateward.operations.asking import Asking
from stateward.operations.changes import Changes
from stateward.operations.control import Control
from stateward.operations.hosts import Hosts
from stateward.operations.immediate import Immediate
from stateward.operations.locking import Locking
from stateward.operations.overriding import Overriding
from stateward.operations.webhooks import Webhooks
from stateward.store.engine import Database


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """The ports and settings of the Compute API."""

    database: Database
    identity: Identity
    admission: Admission
    asking: Asking
    immediate: Immediate
    control: Control
    changes: Changes
    bus: Bus
    clock: Clock
    #: None: no serial consoles are offered.
    consoles: ConsoleAccess | None = None
    #: Where clients reach the server, without a slash at the end; None: as each request's Host header says.
    public_url: str | None = None
    #: Seconds after which a host that was not heard of counts as down.
    host_patience: float = 15.0
    #: The networks that servers can be put on; ``auto`` is the first.
    networks: tuple[Network, ...] = ()
    #: Deleted instances are kept for a while (``[reclaim]``).
    reclaims: bool = False
    #: Called when a lock was placed that expires.
    expiring: Callable[[], None] = lambda: None
    #: A hold is passed only when a second admin agrees (``[locks]``).
    second_admin: bool = False
    #: What the arbiter follows besides its table (``[policies]``).
    policies: Policies = NO_POLICIES
    #: The ``source`` of what is told to the outside (``[events]``).
    event_source: str = "/stateward"
    #: ``/metrics`` answers this machine without a token (``[metrics]``).
    metrics_local: bool = False
    #: None: none can be made here.
    webhooks: Webhooks | None = None
    #: What acts on hosts, as the settings say; None: as they say by default.
    host_actions: Hosts | None = None
    #: Servers of one page at most.
    max_limit: int = 1000

    @property
    def locking(self) -> Locking:
        """What places and releases locks."""
        return Locking(self.admission, self.immediate, self.expiring)

    @property
    def overriding(self) -> Overriding:
        """What gives leave to pass locks."""
        return Overriding(self.admission, second_admin=self.second_admin)

    @property
    def hosts(self) -> Hosts:
        """What acts on hosts."""
        return self.host_actions or Hosts(self.admission)

    def root(self, scheme: str, host: str, *, legacy: bool) -> str:
        """Return the address of the API as the client reaches it, without a slash at the end."""
        base = f"{scheme}://{host}" if self.public_url is None else self.public_url
        return f"{base}/compute/v2" if legacy else f"{base}/compute/v2.1"


@lru_cache(4096)
def host_id(project_id: str, host: str) -> str:
    """Return Nova's ``hostId``: tells instances on one host from others without naming it; '' without a host."""
    return hashlib.sha224(f"{project_id}{host}".encode()).hexdigest() if host else ""
