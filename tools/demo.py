"""The main job, shown on real guests with the real ``openstack`` client; every step is checked.

    python -m tools.demo [--uri LIBVIRT-URI]

Starts a server of its own in a temporary folder, on a libvirt of its own when run by root, so nothing of the
machine's is touched. Exit status 0 only when everything held.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from stateward.agent.libvirt import daemons

_BIN = Path(sys.executable).parent
#: Seconds until a thing that should happen soon counts as not happening.
_PATIENCE = 90.0


class Failed(Exception):
    """A step did not hold; ``str()`` says what was seen instead."""


class Story:
    """The server, its clients and the steps."""

    def __init__(self, data: Path, uri: str) -> None:
        """Keep where things are."""
        self.uri = uri
        self.data = data
        self.step = 0
        self.began = time.monotonic()
        self.environment = os.environ | {
            "OS_CLIENT_CONFIG_FILE": str(data / "clouds.yaml"),
            "PYTHONWARNINGS": "ignore",
            "NO_COLOR": "1",
        }

    def holds(self, what: str) -> None:
        """Say that a step held."""
        self.step += 1
        print(f"  ok {self.step:2}  {what}   ({time.monotonic() - self.began:.0f} s)", flush=True)

    def openstack(self, *arguments: str, cloud: str = "stateward", refused: str | None = None) -> str:
        """Run the client; with ``refused`` it must fail and say that.

        Raises:
            Failed: it did not end as it must.
        """
        command = [str(_BIN / "openstack"), "--os-cloud", cloud, *arguments]
        print(f"     $ openstack --os-cloud {cloud} {' '.join(arguments)}", flush=True)
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=_PATIENCE * 2
        )
        if refused is None and done.returncode:
            raise Failed(f"exit status {done.returncode}: {done.stderr.strip()}")
        if refused is not None and (not done.returncode or refused not in done.stderr):
            raise Failed(f"a refusal with {refused!r} was due; exit status {done.returncode}: {done.stderr}")
        return done.stdout

    def show(self, name: str, cloud: str = "stateward") -> dict[str, Any]:
        """Return a server as the client shows it."""
        shown: dict[str, Any] = json.loads(self.openstack("server", "show", name, "-f", "json", cloud=cloud))
        return shown

    def status(self, name: str, status: str) -> None:
        """Wait until a server has a status and no task."""
        api = _Api(self)
        api.until(
            name,
            lambda server: server["status"] == status and server["OS-EXT-STS:task_state"] is None,
            status,
        )

    def virsh(self, *arguments: str) -> str:
        """Run virsh on the same libvirt."""
        print(f"     $ virsh {' '.join(arguments)}", flush=True)
        return self.quiet_virsh(*arguments)

    def quiet_virsh(self, *arguments: str) -> str:
        """Run virsh without saying so."""
        done = subprocess.run(
            ["virsh", "-q", "-c", self.uri, *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Failed(f"virsh {arguments[0]}: {done.stderr.strip()}")
        return done.stdout.strip()

    def console(self, name: str, wanted: str, times: int = 1) -> None:
        """Wait until the guest's console says something for the n-th time."""
        api = _Api(self)
        text = ""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            text = api.post(name, {"os-getConsoleOutput": {}})["output"]
            if text.count(wanted) >= times:
                return
            time.sleep(0.1)
        raise Failed(f"the console of {name} does not say {wanted!r} {times} times; it says:\n{text[-2000:]}")


class _Api:
    """The same server by HTTP, for what is waited for; the client takes seconds to start."""

    def __init__(self, story: Story) -> None:
        import openstack  # noqa: PLC0415 (takes a second, and is not needed to show the usage)

        os.environ["OS_CLIENT_CONFIG_FILE"] = story.environment["OS_CLIENT_CONFIG_FILE"]
        self._compute: Any = openstack.connect(cloud="stateward-admin").compute

    def until(self, name: str, good: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        server: dict[str, Any] = {}
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            server = self.get(name)
            if good(server):
                return server
            time.sleep(0.02)
        raise Failed(
            f"{name} did not become {what}; it is {server.get('status')}, {server.get('OS-EXT-STS:task_state')}"
        )

    def get(self, name: str) -> dict[str, Any]:
        listed = self._compute.get(f"/servers/detail?all_tenants=1&name=^{name}$").json()["servers"]
        found: dict[str, Any] = listed[0]
        return found

    def post(self, name: str, body: dict[str, Any]) -> Any:
        answer = self._compute.post(f"/servers/{self.get(name)['id']}/action", json=body)
        if answer.status_code >= 400:
            raise Failed(f"{body} was answered {answer.status_code}: {answer.text}")
        return answer.json() if answer.text else None


def tell(story: Story) -> None:
    """Tell it."""
    domain = _boots(story)
    _locks(story, domain)
    _admin(story)
    _behind_our_back(story, domain)
    _ignores(story)
    story.openstack("server", "delete", "web1")
    deadline = time.monotonic() + _PATIENCE
    while story.quiet_virsh("list", "--all", "--name") and time.monotonic() < deadline:
        time.sleep(0.1)
    if story.quiet_virsh("list", "--all", "--name"):
        raise Failed("a deleted server's domain is still there")
    story.holds("deleted servers leave no domain behind")


def _boots(story: Story) -> str:
    print("\nA server is made, and a Linux boots.")
    made = story.openstack(
        "server", "create", "--image", "tiny-guest", "--flavor", "tiny", "--network", "none", "web1",
        "--wait", "-f", "json",
    )  # fmt: skip
    if json.loads(made)["status"] != "ACTIVE":
        raise Failed(f"it is {json.loads(made)['status']}")
    story.holds("server create --wait ends with ACTIVE")
    domain = str(_Api(story).get("web1")["OS-EXT-SRV-ATTR:instance_name"])
    if domain not in story.virsh("list", "--name"):
        raise Failed("virsh list does not show the domain")
    story.holds(f"virsh list shows {domain}")
    story.console("web1", "stateward-guest: up")
    story.holds("its console log shows a Linux that booted")
    return domain


def _locks(story: Story, domain: str) -> None:
    print("\nLocked stays locked.")
    story.openstack("server", "lock", "--reason", "billing db", "web1")
    story.openstack("server", "stop", "web1", refused="409")
    story.openstack("server", "delete", "web1", refused="409")
    if story.virsh("domstate", domain) != "running":
        raise Failed("the domain does not run any more")
    story.holds("stop and delete of a locked server are refused (409), and the domain still runs")
    shown = json.loads(
        story.openstack("server", "show", "web1", "-c", "locked", "-c", "locked_reason", "-f", "json")
    )
    if shown != {"locked": True, "locked_reason": "billing db"}:
        raise Failed(f"server show says {shown}")
    story.holds("server show tells the lock and its reason")
    print("\nStopping is clean.")
    story.openstack("server", "unlock", "web1")
    story.openstack("server", "stop", "web1")
    story.status("web1", "SHUTOFF")
    for line in ("power button pressed", "powered off"):
        story.console("web1", f"stateward-guest: {line}")
    story.holds("unlocked it stops, and its console shows that it shut itself down on the power button")


def _admin(story: Story) -> None:
    print("\nThe provider's lock is not the owner's to take.")
    # By its id: as with Nova, an admin's client looks for names in the admin's own project.
    identifier = str(_Api(story).get("web1")["id"])
    story.openstack("server", "lock", identifier, cloud="stateward-admin")
    story.openstack("server", "unlock", "web1", refused="403")
    story.openstack("server", "unlock", identifier, cloud="stateward-admin")
    story.openstack("server", "start", "web1")
    story.status("web1", "ACTIVE")
    story.holds("the owner's unlock is refused (403), the admin's is not, and then it starts")


def _behind_our_back(story: Story, domain: str) -> None:
    print("\nThe state is true, whoever changes it.")
    api = _Api(story)
    story.console("web1", "stateward-guest: up", 2)
    began = time.monotonic()
    story.virsh("destroy", domain)
    api.until("web1", lambda server: server["OS-EXT-STS:power_state"] == 1 and server["status"] == "ACTIVE"
              and server["OS-EXT-STS:task_state"] is None and story.quiet_virsh("domstate", domain) == "running",
              "running again")  # fmt: skip
    seconds = time.monotonic() - began
    if seconds > 5:
        raise Failed(f"it took {seconds:.1f} s: that was a poll")
    events = story.openstack("server", "event", "list", "web1", "-f", "value")
    if "restore_start" not in events:
        raise Failed(f"server event list does not tell it: {events}")
    story.holds(
        f"destroyed behind the API's back it runs again after {seconds:.1f} s, and server event list tells it"
    )
    story.console("web1", "stateward-guest: up", 3)
    story.openstack("server", "stop", "web1")
    story.status("web1", "SHUTOFF")
    story.openstack("server", "lock", "web1")
    began = time.monotonic()
    story.virsh("start", domain)
    deadline = time.monotonic() + _PATIENCE
    while story.quiet_virsh("domstate", domain) != "shut off" and time.monotonic() < deadline:
        time.sleep(0.02)
    seconds = time.monotonic() - began
    story.status("web1", "SHUTOFF")
    story.openstack("server", "unlock", "web1")
    story.holds(f"locked and stopped, started behind the API's back: off again after {seconds:.1f} s")


def _ignores(story: Story) -> None:
    print("\nA guest that ignores its power button has the time its image says, and no more.")
    images = {
        image["Name"]: image["ID"] for image in json.loads(story.openstack("image", "list", "-f", "json"))
    }
    shown = json.loads(story.openstack("image", "show", "tiny-guest", "-f", "json"))
    line = shown["properties"]["os_command_line"] + " stateward.acpi=ignore"
    disk = story.data / "cache" / "tiny-guest" / "disk.qcow2"
    story.openstack(
        "image", "create", "stubborn", "--file", str(disk), "--disk-format", "qcow2", "--public",
        "--property", f"kernel_id={images['tiny-guest-kernel']}",
        "--property", f"ramdisk_id={images['tiny-guest-ramdisk']}",
        "--property", f"os_command_line={line}", "--property", "os_shutdown_timeout=5",
        cloud="stateward-admin",
    )  # fmt: skip
    story.openstack(
        "server", "create", "--image", "stubborn", "--flavor", "tiny", "--network", "none", "web2", "--wait"
    )
    story.console("web2", "stateward-guest: up")
    api = _Api(story)
    began = time.monotonic()
    api.post("web2", {"os-stop": None})
    api.until("web2", lambda server: server["status"] == "SHUTOFF", "SHUTOFF")
    seconds = time.monotonic() - began
    if not 5 <= seconds < 10:
        raise Failed(f"it was off after {seconds:.1f} s")
    story.console("web2", "stateward-guest: power button pressed")
    story.holds(f"asked, it ignored it, and was off after {seconds:.1f} s")
    story.openstack("server", "delete", "web2")


async def _libvirt(folder: Path, uri: str | None) -> str:
    if uri is not None:
        return uri
    if os.geteuid() == 0:
        return (await daemons.own(folder)).uri
    return (await daemons.ensure(None, folder, print)).uri


def main() -> None:
    """Run the story on a server of its own."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument("--uri", help="use this libvirt and not one of its own")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="stateward-demo-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        uri = asyncio.run(_libvirt(home / "v", options.uri))
        config = home / "settings.toml"
        config.write_text(f'[[host]]\nname = "demo"\ndriver = "libvirt"\nuri = "{uri}"\n')
        data = home / "data"
        print("Starting a server; the first time its guest is built from Debian's packages.", flush=True)
        process = subprocess.Popen(
            [str(_BIN / "stateward"), "serve", "--data", str(data), "--listen", "127.0.0.1:0",
             "--config", str(config), "--test-guest"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not re.search(r"ready on", line):
                _give_up("the server did not start")
            tell(Story(data, uri))
        except Failed as failed:
            _give_up(str(failed))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)
            if options.uri is None and os.geteuid() == 0:
                asyncio.run(daemons.stop_own(home / "v"))
    print(f"\nEverything held, in {time.monotonic() - began:.0f} s.")


def _give_up(why: str) -> NoReturn:
    print(f"\nFAILED: {why}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
