"""The libvirt driver on real QEMU guests."""

from __future__ import annotations

import pytest

from tests.agent.contract import DriverContract

pytestmark = pytest.mark.guests


class TestContract(DriverContract):
    """The contract on real guests."""
