"""A real guest, as somebody with the ``openstack`` command has it: on a network, with a key and user data."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Final

import pytest

from stateward.agent.libvirt.daemons import LibvirtPlace
from stateward.domain.networks import Network
from tests.compat.clients import OpenStack, openstack
from tests.process import serving

pytestmark = [pytest.mark.guests, pytest.mark.slow, pytest.mark.timeout(600)]

#: Seconds that a guest, on processors in software, may take to come up and get its address.
PATIENCE: Final = 120
SCRIPT: Final = "#!/bin/sh\necho said by the user of $(hostname)\n"


def shown(client: OpenStack, words: str, pattern: str) -> re.Match[str]:
    """Run a command until what it prints has something in it; asking takes long enough to need no pause."""
    deadline = time.monotonic() + PATIENCE
    while True:
        said = client(words)
        found = re.search(pattern, said, re.MULTILINE)
        if found is not None:
            return found
        assert time.monotonic() < deadline, said


def test_a_guest_has_the_address_that_is_shown_the_key_and_the_user_data(
    place: LibvirtPlace, network: Network, folder: Path
) -> None:
    """And its network is asked for by name, at the little Neutron there is."""
    key, script, settings = folder / "key", folder / "script.sh", folder / "settings.toml"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me@here", "-f", key], check=True)
    script.write_text(SCRIPT)
    settings.write_text(
        f'[[host]]\nname = "one"\nuri = "{place.uri}"\n[[network]]\nname = "lab"\nsource = "{network.source}"\n'
    )
    words = ("--config", str(settings), "--test-guest")
    with serving(folder / "served", *words) as served, openstack(served, "stateward") as client:
        client("keypair create --public-key", f"{key}.pub", "k")
        client(
            "server create --image tiny-guest --flavor tiny --network lab --key-name k --user-data",
            *(str(script), "--wait", "web"),
        )
        shown(client, "console log show web", "^stateward-guest: user data ended with 0")
        said = client("console log show web").splitlines()
        (address,) = [line.rpartition(" ")[2] for line in said if line.startswith("stateward-guest: address")]
        assert f"stateward-guest: ssh key {Path(f'{key}.pub').read_text().strip()}" in said
        assert "said by the user of web" in said
        listed = shown(client, "server list -f value -c Networks", r"'lab': \['(?P<address>[0-9.]+)'\]")
        assert listed["address"] == address
        client("server delete --wait web")
