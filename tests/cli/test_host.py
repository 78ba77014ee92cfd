"""``stateward host`` against a served Stateward with two simulated hosts."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import click.testing
import msgspec
import pytest
import pytest_asyncio

from stateward.cli.main import main
from tests.harness import Admin, ServerProcess
from tests.wires import accepted

pytestmark = pytest.mark.asyncio(loop_scope="module")

_CONFIG = """
[death]
per_minute = 6000
[[host]]
name = "alpha"
driver = "simulated"
[[host]]
name = "beta"
driver = "simulated"
[host.bmc]
address = "https://127.0.0.1:1"
user = "stateward"
password_file = "/nowhere/password"
"""


class Ran(msgspec.Struct, frozen=True):
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it wrote, which must be JSON; and nothing was complained of."""
        assert (self.status, self.err) == (0, ""), self
        return msgspec.json.decode(self.out)


class Cloud:
    """A served Stateward, and the command line of the provider's people."""

    def __init__(self, served: ServerProcess, admin: Admin) -> None:
        self.admin = admin
        self.environment = {
            "OS_CLIENT_CONFIG_FILE": str(served.data / "clouds.yaml"),
            **{name: "" for name in os.environ if name.startswith("OS_")},
        }

    def run(self, *words: str, cloud: str = "stateward-admin") -> Ran:
        """Run ``stateward host`` to its end, in this process."""
        runner = click.testing.CliRunner(env=self.environment | {"OS_CLOUD": cloud})
        done = runner.invoke(main, ("host", *words), prog_name="stateward")
        assert done.exception is None or isinstance(done.exception, SystemExit), (words, done.exception)
        return Ran(done.exit_code, done.stdout, done.stderr)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cloud(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    """Serve, with a server ``web`` on ``alpha``."""
    folder = tmp_path_factory.mktemp("served")
    config = folder / "stateward.toml"
    config.write_text(_CONFIG)
    async with ServerProcess(folder, ("--config", str(config))) as server:
        await server.hasten_logins()
        admin = Admin(server, await server.log_in("admin"))
        await admin.hosts_up()
        await admin.make_flavor("one", ram=64)
        image = await admin.make_image("plain", {})
        body = {
            "name": "web",
            "imageRef": image,
            "flavorRef": "one",
            "networks": "none",
            "availability_zone": "nova:alpha",
        }
        made = await admin.ask("POST", "/compute/v2.1/servers", {"server": body})
        assert made.status == 202, made
        await admin.settled(seconds=30)
        yield Cloud(server, admin)
        await server.stop()
        assert server.faults() == []


async def test_looking(cloud: Cloud) -> None:
    """As tables for people and as JSON for programs."""
    found = cloud.run("list", "-f", "json").json
    assert [(each["name"], each["condition"], each["instances"]) for each in found] == [
        ("alpha", "up", {"active": 1}),
        ("beta", "up", {}),
    ]
    table = cloud.run("list")
    assert (table.status, table.err) == (0, "")
    assert table.out.splitlines()[0].split() == [
        "Host",
        "Zone",
        "Condition",
        "Heard",
        "Enabled",
        "Judged",
        "Instances",
        "vCPUs",
        "Memory",
        "Disk",
    ]
    assert "alpha" in cloud.run("show", "alpha").out
    missing = cloud.run("show", "gamma")
    assert (missing.status, missing.err) == (1, "stateward: Host gamma could not be found.\n")
    refused = cloud.run("list", cloud="stateward")
    assert refused.status == 1
    assert "Policy doesn't allow stateward:hosts:read" in refused.err


async def test_a_host_that_is_not_there(cloud: Cloud) -> None:
    """It is said by every command, whose status is 1 then."""
    for words in (
        ("show", "gamma"),
        ("power", "gamma"),
        ("enable", "gamma"),
        ("disable", "gamma"),
        ("maintenance", "gamma", "--reason", "Fans", "--until", "1h"),
        ("maintenance", "gamma", "--end"),
        ("confirm", "gamma"),
        ("confirm", "gamma", "--dead"),
        ("fence", "gamma", "--done"),
        ("evacuate", "gamma"),
        ("evacuate", "gamma", "--plan"),
        ("evacuate", "gamma", "--cancel"),
        ("evacuate", "gamma", "--approve", "x"),
        ("drain", "gamma"),
        ("drain", "gamma", "--plan"),
        ("drain", "gamma", "--status"),
        ("drain", "gamma", "--cancel"),
    ):
        missing = cloud.run(*words)
        says = "stateward: Host gamma could not be found.\n"
        assert (missing.status, missing.out, missing.err) == (1, "", says), words


async def test_what_is_no_name(cloud: Cloud) -> None:
    """A slash would lead to what is below another host."""
    for words in (
        ("show", "alpha/evacuation"),
        ("enable", "../hosts/alpha"),
        ("show", ""),
        ("show", ".."),
        ("evacuate", "alpha", "--approve", "x/approve"),
    ):
        refused = cloud.run(*words)
        assert (refused.status, refused.out) == (2, ""), words
        assert refused.err.splitlines()[-1].startswith("Error: "), refused.err
        assert "is no name" in refused.err


async def test_what_does_not_go_together(cloud: Cloud) -> None:
    """Of two things that are to be done neither is."""
    for words, says in (
        (
            ("evacuate", "alpha", "--plan", "--cancel"),
            "--cancel and --plan do not go together; each goes alone.",
        ),
        (("evacuate", "alpha", "--cancel", "--approve", "x"), "--approve and --cancel do not go together"),
        (("evacuate", "alpha", "--plan", "--wait"), "--wait goes with --approve."),
        (("drain", "alpha", "--plan", "--cancel"), "--cancel and --plan do not go together"),
        (("drain", "alpha", "--status", "--plan"), "--plan and --status do not go together"),
        (("drain", "alpha", "--cancel", "--migrate"), "--migrate goes alone, or with --plan or --wait."),
        (("drain", "alpha", "--cancel", "--wait"), "--wait goes without --plan and --cancel."),
    ):
        refused = cloud.run(*words)
        assert (refused.status, refused.out) == (2, ""), words
        assert refused.err.splitlines()[-1].startswith(f"Error: {says}"), refused.err
    assert cloud.run("show", "alpha", "-f", "json").json["enabled"] is True


async def test_enabling_and_maintaining(cloud: Cloud) -> None:
    """What is said is shown, and can be taken back."""
    assert (
        cloud.run("disable", "beta", "--reason", "New fans", "-f", "json").json["disabled_reason"]
        == "New fans"
    )
    assert cloud.run("enable", "beta", "-f", "json").json["enabled"] is True
    shown = cloud.run("maintenance", "beta", "--reason", "New fans", "--until", "1h", "-f", "json").json
    assert (shown["frozen"]["why"], shown["frozen"]["says"]) == ("maintenance", "New fans")
    assert shown["maintenance_until"] is not None
    shown = cloud.run("maintenance", "beta", "--end", "-f", "json").json
    assert (shown["frozen"], shown["maintenance_until"]) == (None, None)
    assert cloud.run("maintenance", "beta").status == 2


async def test_what_is_not_so(cloud: Cloud) -> None:
    """A host that is up is neither dead nor fenced, and nothing of it is evacuated; a plan may be looked at."""
    for words, says in (
        (("confirm", "--dead", "alpha"), "Host alpha is up; that can be said only of one that is suspect."),
        (("fence", "--done", "alpha"), "Host alpha is up; that can be said only of one that is dead."),
    ):
        refused = cloud.run(*words)
        assert (refused.status, refused.err) == (1, f"stateward: {says}\n")
    plan = cloud.run("evacuate", "alpha", "--plan", "-f", "json").json
    assert [(move["name"], move["action"], move["says"]) for move in plan["moves"]] == [
        ("web", None, "its disk is on that host")
    ]
    assert cloud.run("evacuate", "alpha", "-f", "json").json == plan
    refused = cloud.run("evacuate", "alpha", "--approve", plan["id"])
    assert refused.status == 1
    assert refused.err.startswith("stateward: Host alpha is up, not fenced")
    assert cloud.run("evacuate", "alpha", "--cancel").status == 0
    assert cloud.run("evacuate", "alpha", "-f", "json").json["state"] == "cancelled"


async def test_asking_for_the_power(cloud: Cloud) -> None:
    """Of a host that has a management controller; that it cannot be asked is no error, and its status is."""
    none = cloud.run("power", "alpha")
    says = "stateward: No management controller of host alpha is known; name it in its [host.bmc].\n"
    assert (none.status, none.out, none.err) == (1, "", says)
    missing = cloud.run("power", "gamma")
    assert (missing.status, missing.err) == (1, "stateward: Host gamma could not be found.\n")
    unknown = cloud.run("power", "beta", "-f", "json")
    assert (unknown.status, unknown.err) == (1, "")
    assert msgspec.json.decode(unknown.out) == {
        "power": "unknown",
        "says": "The password of its management controller cannot be read from /nowhere/password: "
        "No such file or directory.",
    }


async def test_draining(cloud: Cloud) -> None:
    """By carrying to the other host what can leave, and back by a shutdown, each followed to its end."""
    planned = cloud.run("drain", "alpha", "--migrate", "--plan", "-f", "json").json
    assert [(move["action"], move["to"]) for move in planned["moves"]] == [("migrate", "beta")]
    drained = cloud.run("drain", "alpha", "--migrate", "--wait")
    assert drained.status == 0, drained
    assert "web: done" in drained.err
    shown = cloud.run("show", "alpha", "-f", "json").json
    assert (shown["enabled"], shown["instances"]) == (False, {})
    assert cloud.run("show", "beta", "-f", "json").json["instances"] == {"active": 1}
    drained = cloud.run("drain", "beta", "--wait")
    assert drained.status == 0, drained
    assert cloud.run("show", "beta", "-f", "json").json["instances"] == {"stopped": 1}
    assert cloud.run("drain", "beta", "--status", "-f", "json").json["state"] == "done"


async def test_a_drain_that_leaves_something_on(cloud: Cloud) -> None:
    """It is done, and the host is not empty: that is said, and the status is 1."""
    assert cloud.run("enable", "beta").status == 0
    (server,) = (await cloud.admin.ask("GET", "/compute/v2.1/servers")).body["servers"]
    path = f"/compute/v2.1/servers/{server['id']}/action"
    for wire in ("os-start", "rescue"):
        assert (await cloud.admin.ask("POST", path, {wire: None})).status == accepted(wire)
        await cloud.admin.settled(seconds=30.0)
    drained = cloud.run("drain", "beta", "--wait")
    assert drained.status == 1
    says = "stateward: beta is not empty: still on, or not known to be off: web"
    assert drained.err.splitlines()[-1] == says
    assert "an instance that is rescued cannot be asked to shut down" in drained.out
