"""A machine that can lose its power: a libvirtd of a test's own, its guests, and the word for the boot it is in."""

from __future__ import annotations

import base64
import shutil
import signal
import sqlite3
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from stateward.agent.libvirt.daemons import own, stop_own
from stateward.agent.libvirt.pidfile import end
from tests.harness import Admin, Answer, ServerProcess, until
from tests.wires import accepted

#: Seconds that a loaded machine may take for anything.
LONG: Final = 120.0


class Machine:
    """A folder with its libvirtd and the file that names its boot."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "host"
        self.boot_id_file = folder / "boot_id"
        self.uri = ""

    async def boot(self) -> None:
        """Come up: another boot, with nothing running but libvirtd."""
        self.boot_id_file.write_text(f"{uuid.uuid4()}\n")
        self.uri = (await own(self.home)).uri

    async def lose_power(self) -> None:
        """Have every process of it gone at once, and what was in its memory."""
        await self.stop_libvirtd()
        await stop_own(self.home)
        # A tmpfs on any real machine.
        shutil.rmtree(self.home / "run")

    async def stop_libvirtd(self) -> None:
        """Kill libvirtd, and wait until it is gone, or who starts one would find it still there; its guests run on."""
        _log, libvirtd = (await own(self.home)).started
        await end(libvirtd, signal.SIGKILL)

    async def start_libvirtd(self) -> None:
        """Start it again."""
        await own(self.home)

    async def end(self) -> None:
        """Leave nothing of it."""
        await stop_own(self.home)

    def process_of(self, domain: str) -> int:
        """Return the process of a guest."""
        return int((self.home / "run" / "qemu" / f"{domain}.pid").read_text())

    def settings(self, more: str = "") -> str:
        """Return the settings of a server on it."""
        return (
            f"network = []\n{more}\n[placement]\nreserved_memory = 0\nmemory_ratio = 16.0\ncpu_ratio = 64.0\n"
            f'[[host]]\nname = "one"\nuri = "{self.uri}"\nboot_id_file = "{self.boot_id_file}"\n'
        )


class Cloud:
    """What a test does to servers as the cloud's admin."""

    def __init__(self, server: ServerProcess, admin: Admin, image: str) -> None:
        self.server = server
        self.admin = admin
        self.image = image
        #: Servers' ids by their names.
        self.ids: dict[str, str] = {}

    async def make(self, *names: str, metadata: Mapping[str, str] = {}, script: bytes | None = None) -> None:
        """Make servers, which run then, and run a script as their users' data at each boot."""
        for name in names:
            body = {"name": name, "imageRef": self.image, "flavorRef": "smallest", "networks": "none"}
            if script is not None:
                body["user_data"] = base64.b64encode(script).decode()
            made = await self.admin.ask(
                "POST", "/compute/v2.1/servers", {"server": body | {"metadata": dict(metadata)}}
            )
            assert made.status == 202, made
            self.ids[name] = made.body["server"]["id"]
        servers = await self.admin.settled(seconds=LONG)
        faults = [servers[self.ids[name]].get("fault") for name in names]
        assert not any(faults), faults

    async def act(self, name: str, action: str, body: Any = None) -> Answer:
        """Ask for an action that is admitted."""
        path = f"/compute/v2.1/servers/{self.ids[name]}/action"
        answer = await self.admin.ask("POST", path, {action: body})
        assert answer.status == accepted(action), answer
        return answer

    async def states(self) -> dict[str, str]:
        """Return the recorded state of each server, once nothing is in flight."""
        servers = await self.admin.settled(seconds=LONG)
        return {name: servers[each]["OS-EXT-STS:vm_state"] for name, each in self.ids.items()}

    async def become(self, wanted: Mapping[str, str]) -> None:
        """Wait until the record says so."""
        last: dict[str, str] = {}

        async def look() -> bool | None:
            last.update(await self.states())
            return True if last == wanted else None

        await until(look, seconds=LONG, says=lambda: f"{last} and not {wanted}\n{self.server.tail()}")

    async def operations(self, name: str) -> list[dict[str, Any]]:
        """Return what was done to a server, newest first."""
        answer = await self.admin.ask("GET", f"/v1/operations?instance={self.ids[name]}")
        assert answer.status == 200, answer
        found: list[dict[str, Any]] = answer.body["operations"]
        return found

    async def explained(self, name: str) -> dict[str, Any]:
        """Return why a server is as it is."""
        answer = await self.admin.ask("GET", f"/v1/instances/{self.ids[name]}/explain")
        assert answer.status == 200, answer
        found: dict[str, Any] = answer.body
        return found

    def trail(self, event: str, name: str | None = None) -> list[dict[str, Any]]:
        """Return the details of audit records, oldest first, each with its time as ``recorded_at``."""
        where, values = "event = ?", [event]
        if name is not None:
            where, values = "event = ? AND instance_id = ?", [event, self.ids[name]]
        connection = sqlite3.connect(self.server.data / "stateward.db")
        try:
            rows = connection.execute(
                f"SELECT at, detail FROM audit WHERE {where} ORDER BY number",
                values,
            ).fetchall()
        finally:
            connection.close()
        return [msgspec.json.decode(detail) | {"recorded_at": at} for at, detail in rows]


def table(title: str, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Lay a table out for people."""
    widths = [max(len(row[place]) for row in (heads, *rows)) for place in range(len(heads))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in (heads, *rows)
    ]
    return "\n".join(("", title, *(line.rstrip() for line in lines), ""))
