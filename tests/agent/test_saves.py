"""A save that finds another one under way, as a killed agent's: libvirt lets it wait for half a minute only."""

from __future__ import annotations

from typing import cast

import libvirt
import pytest

from stateward.agent.libvirt import guests

SAVING = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_SAVE]
RUNNING = [libvirt.VIR_DOMAIN_RUNNING, 1]
SAVED = [libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SAVED]


class Refusal(libvirt.libvirtError):
    """libvirt's, with its number."""

    def __init__(self, code: int) -> None:
        self._code = code
        super().__init__("refused")

    def get_error_code(self) -> int:
        return self._code

    def get_error_message(self) -> str:
        return "refused"


class Domain:
    """What a look finds, one after the other, and how a save ends that is asked for."""

    def __init__(self, states: list[list[int]], refusals: list[int]) -> None:
        self._states = states
        self._refusals = refusals

    def state(self) -> list[int]:
        return self._states.pop(0)

    def hasManagedSaveImage(self) -> int:  # noqa: N802 - libvirt's name
        return 1

    def managedSave(self, _flags: int) -> int:  # noqa: N802 - libvirt's name
        raise Refusal(self._refusals.pop(0))

    @property
    def over(self) -> bool:
        """Whether everything was asked for."""
        return not self._states and not self._refusals


def save(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    def require(*_: object) -> Domain:
        return domain

    monkeypatch.setattr(guests, "require", require)
    guests.save_memory(cast("libvirt.virConnect", None), "a")


def test_it_waits_for_its_turn_for_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice in vain; then the other one has ended, which libvirt tells as an error."""
    timeout, invalid = libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_OPERATION_INVALID
    states = [RUNNING, SAVING, SAVING, SAVING, SAVING, SAVED]
    domain = Domain(states, [timeout, timeout, invalid])
    save(domain, monkeypatch)
    assert domain.over


@pytest.mark.parametrize(
    ("code", "after"),
    [(libvirt.VIR_ERR_OPERATION_TIMEOUT, RUNNING), (libvirt.VIR_ERR_OPERATION_INVALID, SAVING)],
)
def test_any_other_refusal_is_told(monkeypatch: pytest.MonkeyPatch, code: int, after: list[int]) -> None:
    """Nobody saves it, or libvirt did not say that it is somebody else's turn."""
    domain = Domain([RUNNING, after], [code])
    with pytest.raises(Refusal):
        save(domain, monkeypatch)
    assert domain.over
