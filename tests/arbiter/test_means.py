"""What the settings make of witnesses and fences, host by host."""

from __future__ import annotations

from pathlib import Path

import pytest

from stateward.arbiter.bmc import Bmc
from stateward.arbiter.witnesses import CommandWitness, LeaseWitness
from stateward.plane import management_controllers, means
from stateward.settings import BadSettings, load

_BMC = '[host.bmc]\naddress = "{address}"\nuser = "u"\npassword_file = "/p"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text)
    return path


def test_each_host_has_its_own(tmp_path: Path) -> None:
    """A lease and a probe are for all; a controller is for its host; with neither that nor a program nobody fences."""
    hosts = f'[[host]]\nname = "a"\n{_BMC.format(address="ipmi://10.0.0.1")}[[host]]\nname = "b"\n'
    for death, of_all, fenced in (
        ("", [], [True, False]),
        (
            '[death]\nlease = "/l"\nprobe = ["p"]\nfence = ["f"]\n',
            [LeaseWitness, CommandWitness],
            [True, True],
        ),
    ):
        settings = load(write(tmp_path, death + hosts), {})
        of = means(settings, management_controllers(settings))
        assert [type(each) for each in of("a").witnesses] == [*of_all, Bmc]
        assert [type(each) for each in of("b").witnesses] == of_all
        assert [of(name).fence is not None for name in ("a", "b")] == fenced


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "ftp://10.0.0.1",
        "https://user@10.0.0.1",
        "https://",
        "ipmi://10.0.0.1/x",
        "https://a:b",
        "ipmi://a:99999",
        "ipmi://a:0",
    ],
)
def test_an_address_that_cannot_be_one(tmp_path: Path, address: str) -> None:
    """It is said which host's, and what it must be like."""
    text = f'[[host]]\nname = "a"\n{_BMC.format(address=address)}'
    with pytest.raises(
        BadSettings, match=r"the bmc of host a has the address .*must be like https://ADDRESS"
    ):
        load(write(tmp_path, text), {})


@pytest.mark.parametrize(
    "address", ["https://10.0.0.1:8443/", "http://bmc-1.example", "ipmi://[fd00::1]:6230"]
)
def test_an_address(tmp_path: Path, address: str) -> None:
    """With a port, and without; of each kind."""
    settings = load(write(tmp_path, f'[[host]]\nname = "a"\n{_BMC.format(address=address)}'), {})
    assert set(management_controllers(settings)) == {"a"}
