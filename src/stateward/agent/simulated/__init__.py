"""A driver whose guests are simulated: they shut down after a while, ignore the request, or crash.

``guests`` says what happens to a guest and ``behaviour`` what it does by itself, ``file`` keeps them,
``hypervisor`` lets time pass and acts behind the driver's back, ``faults`` disturbs the driver's calls and
``driver`` is the contract. ``python -m`` with this package acts behind the back of another process.
"""

from __future__ import annotations

from stateward.agent.simulated.driver import SimulatedDriver
from stateward.agent.simulated.faults import Call, Hang
from stateward.agent.simulated.hypervisor import LARGE, HostSize, SimulatedHypervisor

__all__ = ["LARGE", "Call", "Hang", "HostSize", "SimulatedDriver", "SimulatedHypervisor"]
