"""``stateward adopt`` and ``release`` against a served Stateward, whose simulated host somebody else uses too."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import click.testing
import msgspec
import pytest
import pytest_asyncio

from stateward.agent.simulated import SimulatedHypervisor
from stateward.cli.main import main
from stateward.domain.records import GuestSpec, ImageFacts
from tests.harness import Admin, ServerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Cloud:
    """A served Stateward, its administrator's command line, and who makes guests by hand on its host."""

    def __init__(self, served: ServerProcess, hypervisor: SimulatedHypervisor) -> None:
        self.hypervisor = hypervisor
        self.environment = {
            **{name: "" for name in os.environ if name.startswith("OS_")},
            "OS_CLIENT_CONFIG_FILE": str(served.data / "clouds.yaml"),
            "OS_CLOUD": "stateward-admin",
        }

    def run(self, *words: str) -> tuple[int, str, str]:
        """Run a command to its end, in this process; return its status and what it wrote."""
        runner = click.testing.CliRunner(env=self.environment)
        done = runner.invoke(main, words, prog_name="stateward")
        assert done.exception is None or isinstance(done.exception, SystemExit), words
        return done.exit_code, done.stdout, done.stderr

    def make(self, name: str) -> str:
        """Make a guest by hand, which runs, and return its id."""
        guest = GuestSpec(
            instance_id=str(uuid.uuid4()),
            domain_name=name,
            display_name="",
            project_id="",
            vcpus=2,
            memory=96,
            disk=3,
            image=ImageFacts(id="theirs", disk_format="raw"),
        )
        self.hypervisor.make(guest)
        return guest.instance_id


def _folder(data: Path) -> Path:
    (found,) = data.glob("hosts/*/guests.sqlite")
    return found.parent


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cloud(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    """Serve one simulated host."""
    async with ServerProcess(tmp_path_factory.mktemp("served")) as server:
        await server.hasten_logins()
        await Admin(server, await server.log_in("admin")).hosts_up()
        hypervisor = SimulatedHypervisor(_folder(server.data))
        yield Cloud(server, hypervisor)
        hypervisor.close()
        await server.stop()
        assert server.faults() == []


async def test_adopted_and_given_back(cloud: Cloud) -> None:
    """A dry run changes nothing; a pattern chooses; all of it is said in a table, and as JSON; it runs throughout."""
    web, other = cloud.make("web-1"), cloud.make("other")
    run = cloud.hypervisor.guest(web).run
    status, out, err = cloud.run("adopt", "--dry-run", "--name", "web-*")
    assert (status, err) == (0, "")
    head, line = out.splitlines()
    assert head.split()[:4] == ["Host", "Guest", "ID", "Server"]
    assert line.split()[1:4] == ["web-1", web, "web-1"]
    assert line.split()[5:] == ["active", "2", "96", "MiB", "3", "GiB", "adopted"]
    assert cloud.run("adopt", "--dry-run", "--name", "web-*")[1] == out

    status, out, err = cloud.run(
        "adopt", "--name", "web-*", "--project", "demo", "--lock", "Mine.", "-f", "json"
    )
    assert (status, err) == (0, "")
    (host,) = msgspec.json.decode(out)["hosts"]
    (guest,) = host["guests"]
    assert (guest["id"], guest["outcome"], guest["operation"]["state"]) == (web, "adopted", "succeeded")
    assert cloud.hypervisor.guest(web).run == run
    assert cloud.run("adopt", "--name", "web-*")[:2] == (
        0,
        "There is no such guest that is not a server already.\n",
    )
    assert cloud.hypervisor.guest(other).fence == 0

    status, out, err = cloud.run("release", "web-1")
    assert (status, out) == (1, "")
    assert "is locked" in err
    (lock,) = msgspec.json.decode(cloud.run("lock", "list", "web-1", "-f", "json")[1])
    assert cloud.run("lock", "release", "web-1", lock["id"])[0] == 0
    status, out, err = cloud.run("release", "web-1")
    assert (status, err) == (0, "")
    assert "release_guest of web-1 succeeded after" in out
    left = cloud.hypervisor.guest(web)
    assert (left.run, left.fence) == (run, 0)
    status, out, err = cloud.run("release", "web-1")
    assert (status, out, err) == (1, "", "stateward: There is no server that is named 'web-1'.\n")


async def test_what_is_refused(cloud: Cloud) -> None:
    """With a sentence, and status 1."""
    cloud.make("strange")
    assert cloud.run("adopt", "--host", "nowhere") == (
        1,
        "",
        "stateward: Host 'nowhere' could not be found.\n",
    )
    for form in ("table", "json"):
        status, out, err = cloud.run("adopt", "--name", "typo*", "-f", form)
        assert (status, err) == (1, "stateward: No guest is named 'typo*' by its host.\n")
        assert out == "" if form == "table" else msgspec.json.decode(out) == {"hosts": [], "unasked": []}
    status, out, err = cloud.run("adopt", "--name", "strange", "--project", "nothing")
    assert (status, out, err) == (1, "", "stateward: There is no project that is named 'nothing'.\n")
