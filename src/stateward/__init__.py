"""Stateward: a compute control plane that guards every change of a virtual machine's state."""

from __future__ import annotations

from typing import Final

__all__ = ["__version__"]

__version__: Final = "0.1.0"
