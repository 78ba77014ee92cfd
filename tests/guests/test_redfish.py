"""A real machine's power by Redfish: a QEMU of the tests' libvirtd, behind the emulated controller of sushy-tools."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import bcrypt
import libvirt
import msgspec
import pytest
import pytest_asyncio

from stateward.agent.libvirt.daemons import LibvirtPlace
from stateward.arbiter.bmc import Bmc
from stateward.arbiter.witnesses import Evidence, FenceFailed, Word
from stateward.domain.hosts import Power
from stateward.settings import BmcSettings
from tests.harness import until
from tests.process import PROGRAMS

pytestmark = [pytest.mark.asyncio, pytest.mark.guests, pytest.mark.slow, pytest.mark.timeout(180)]

_MACHINE: Final = """
<domain type='qemu'><name>{name}</name><uuid>{name}</uuid><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64'>hvm</type></os></domain>"""


class Machine:
    """A domain that plays a host, and the controller that reaches it."""

    def __init__(self, domain: libvirt.virDomain, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.domain = domain
        self.folder = folder
        self.address = f"https://127.0.0.1:{self.port}"

    def bmc(self, **changes: Any) -> Bmc:
        """Return what reaches it, with these changes of what lets one in."""
        said = BmcSettings(
            address=self.address,
            user="stateward",
            password_file=str(self.folder / "password"),
            certificate=str(self.folder / "certificate.pem"),
            uuid=uuid.UUID(self.domain.UUIDString()),
        )
        return Bmc(msgspec.structs.replace(said, **changes), look_seconds=60.0, off_seconds=60.0)

    def runs(self) -> bool:
        """Say whether its QEMU does."""
        return bool(self.domain.isActive())


def configure(machine: Machine, uri: str) -> Path:
    """Write what the controller needs: who it is, who is let in, and the libvirt of its machine."""
    folder = machine.folder
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-noenc",
                "-days",
                "2",
                "-subj",
                "/CN=controller",
            ),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")),
        ],
        check=True,
        capture_output=True,
    )
    (folder / "password").write_text("secret\n")
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    (folder / "users").write_text(f"stateward:{hashed}\n")
    settings = {
        "SUSHY_EMULATOR_LISTEN_IP": "127.0.0.1",
        "SUSHY_EMULATOR_LISTEN_PORT": machine.port,
        "SUSHY_EMULATOR_SSL_CERT": str(folder / "certificate.pem"),
        "SUSHY_EMULATOR_SSL_KEY": str(folder / "key.pem"),
        "SUSHY_EMULATOR_AUTH_FILE": str(folder / "users"),
        "SUSHY_EMULATOR_LIBVIRT_URI": uri,
        "SUSHY_EMULATOR_STATE_DIR": str(folder),
    }
    file = folder / "controller.conf"
    file.write_text("".join(f"{name} = {value!r}\n" for name, value in settings.items()))
    return file


@pytest.fixture
def domain(place: LibvirtPlace) -> Iterator[libvirt.virDomain]:
    """Give a domain that runs; no system is in it."""
    connection = libvirt.open(place.uri)
    found = connection.createXML(_MACHINE.format(name=uuid.uuid4()))
    # What is only created is gone once it is off, and its controller would know no such machine.
    connection.defineXML(found.XMLDesc())
    yield found
    with contextlib.suppress(libvirt.libvirtError):
        found.destroy()
    found.undefineFlags(0)
    connection.close()


@pytest_asyncio.fixture
async def machine(domain: libvirt.virDomain, place: LibvirtPlace, tmp_path: Path) -> AsyncIterator[Machine]:
    """Give a machine that has power, and a controller that answers."""
    made = Machine(domain, tmp_path)
    file = configure(made, place.uri)
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(PROGRAMS / "sushy-emulator"), "--config", str(file), stdout=log, stderr=log
        )
    try:
        trusted = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
        await until(lambda: answers(made, trusted), seconds=60.0, says=(tmp_path / "log").read_text)
        yield made
    finally:
        process.kill()
        await process.wait()


async def answers(machine: Machine, trusted: ssl.SSLContext) -> bool | None:
    """Say whether the controller takes connections yet."""
    try:
        _reader, writer = await asyncio.open_connection("127.0.0.1", machine.port, ssl=trusted)
    except OSError:
        return None
    writer.close()
    await writer.wait_closed()
    return True


async def test_the_power_is_taken(machine: Machine) -> None:
    """Its QEMU is gone when the fence returns; before that, nobody who is not let in has taken anything."""
    says = f"Its management controller at {machine.address}"
    other = uuid.UUID(int=1)
    refusals: list[str] = []
    (machine.folder / "guess").write_text("guess")
    for changes in (
        {"password_file": str(machine.folder / "guess")},
        {"certificate": None},
        {"uuid": other},
    ):
        with pytest.raises(FenceFailed) as refused:
            await machine.bmc(**changes).fence("h")
        refusals.append(str(refused.value).removeprefix(says))
    assert refusals[0] == (
        " cannot be asked: it does not let the user in: name and password are wrong, or the rights too few."
    )
    assert refusals[1] == (
        " cannot be asked: its certificate is not trusted (self-signed certificate); "
        "name the file of it, or of who signed it, as certificate."
    )
    assert refusals[2].startswith(" cannot be asked: it manages [")
    assert refusals[2].endswith(f"], and not {other}.")
    assert machine.runs()
    assert await machine.bmc().ask("h", 1.0) == Evidence(
        word=Word.UNKNOWN, says=f"{says} says that its power is on."
    )
    assert (
        await machine.bmc(certificate=None, verify=False).fence("h") == f"{says} says that its power is off."
    )
    assert not machine.runs()
    assert await machine.bmc().fence("h") == f"{says} says that its power is off."
    assert await machine.bmc().ask("h", 2.0) == Evidence(
        word=Word.DEAD, says=f"{says} says that its power is off."
    )
    assert (await machine.bmc().power()).power is Power.OFF
