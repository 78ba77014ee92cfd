"""``stateward lock``, ``hold``, ``override`` and ``explain`` against a served Stateward with a simulated host."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import pty
import re
from collections.abc import AsyncIterator
from typing import Any

import click.testing
import msgspec
import pytest
import pytest_asyncio

from stateward.cli.main import main
from stateward.cli.times import duration, moment
from tests.harness import STATEWARD, Admin, ServerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOWHERE = "11111111-1111-1111-1111-111111111111"
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


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
    """A served Stateward, and the command line of its people."""

    def __init__(self, served: ServerProcess, admin: Admin, member: Admin) -> None:
        self.admin = admin
        self.member = member
        self.servers: dict[str, str] = {}
        self.environment = {
            "OS_CLIENT_CONFIG_FILE": str(served.data / "clouds.yaml"),
            **{name: "" for name in os.environ if name.startswith("OS_")},
        }

    def run(self, *words: str, cloud: str = "stateward") -> Ran:
        """Run a command to its end, in this process."""
        runner = click.testing.CliRunner(env=self.environment | {"OS_CLOUD": cloud})
        done = runner.invoke(main, words, prog_name="stateward")
        assert done.exception is None or isinstance(done.exception, SystemExit), words
        return Ran(done.exit_code, done.stdout, done.stderr)

    def provider(self, *words: str) -> Ran:
        """Run a command as the provider's staff."""
        return self.run(*words, cloud="stateward-admin")

    async def make(self, name: str, image: str, *, who: Admin | None = None) -> None:
        """Make a server of the member's, or of somebody else's."""
        body = {"name": name, "imageRef": image, "flavorRef": "one", "networks": "none"}
        made = await (who or self.member).ask("POST", "/compute/v2.1/servers", {"server": body})
        assert made.status == 202, made
        self.servers[name] = made.body["server"]["id"]

    async def act(self, name: str, body: Any, *, who: Admin | None = None) -> Any:
        """Ask for an action of the Compute API, and return the status and what it says."""
        path = f"/compute/v2.1/servers/{self.servers[name]}/action"
        answer = await (who or self.member).ask("POST", path, body)
        return answer.status, next(iter(answer.body.values()))["message"] if answer.raw else None

    def free(self, *names: str) -> None:
        """Take every lock of servers away."""
        for name in names:
            for lock in self.provider("lock", "list", self.servers[name], "-f", "json").json:
                assert self.provider("lock", "release", self.servers[name], lock["id"]).status == 0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    """Serve, with servers ``web``, ``stubborn`` and one of two named ``twin`` of the member's."""
    async with ServerProcess(tmp_path_factory.mktemp("served")) as server:
        await server.hasten_logins()
        admin = Admin(server, await server.log_in("admin"))
        cloud = Cloud(server, admin, Admin(server, await server.log_in("demo")))
        await admin.hosts_up()
        await admin.make_flavor("one", ram=64)
        image = await admin.make_image("plain", {})
        await cloud.make("web", image)
        await cloud.make(
            "stubborn", await admin.make_image("stubborn", {"os_command_line": "stateward.acpi=ignore"})
        )
        await cloud.make("twin", image)
        cloud.servers["the member's twin"] = cloud.servers["twin"]
        await cloud.make("twin", image, who=admin)
        await admin.settled(seconds=30)
        yield cloud
        await server.stop()
        assert server.faults() == []


@pytest_asyncio.fixture(loop_scope="module")
async def cloud(served: Cloud) -> AsyncIterator[Cloud]:
    """Give the cloud, and leave its servers without locks."""
    yield served
    served.free("web", "stubborn")


async def test_a_lock_is_placed_shown_and_released(cloud: Cloud) -> None:
    """By the server's name or id; tables are to the second, JSON has all; the start of a lock's id names it."""
    words = ("--name", "nightly", "--block", "delete", "--block", "stop", "--reason", "Backups.")
    made = cloud.run("lock", "add", "web", *words, "--expires", "2h", "-f", "json").json
    lock = made["lock"]
    assert (lock["kind"], lock["name"], lock["blocks"], lock["reason"]) == (
        "owner",
        "nightly",
        ["delete", "stop"],
        "Backups.",
    )
    lasts = dt.datetime.fromisoformat(lock["expires_at"]) - dt.datetime.fromisoformat(lock["placed_at"])
    assert 7000 < lasts.total_seconds() <= 7200
    assert (made["in_flight"], made["confirmed"]) == (None, None)
    assert cloud.run("lock", "list", cloud.servers["web"], "-f", "json").json == [lock]

    listed = cloud.run("lock", "list", "web")
    assert (listed.status, listed.err) == (0, "")
    head, line = listed.out.splitlines()
    assert head.split() == ["ID", "Kind", "Name", "Blocks", "Holder", "Placed", "Expires", "Reason", "From"]
    row = rf"{lock['id'][:8]} +owner +nightly +delete, stop +{lock['holder']} +{TIME} +{TIME} +Backups\.$"
    assert re.fullmatch(row, line)

    released = cloud.run("lock", "release", "web", lock["id"][:8])
    assert released == Ran(0, f"Released: nightly ({lock['id'][:8]}).\n", "")
    assert cloud.run("lock", "list", "web", "-f", "json").json == []
    gone = cloud.run("lock", "release", "web", "nightly")
    assert gone == Ran(1, "", "stateward: There is no lock 'nightly' there; there is none.\n")


async def test_a_lock_tells_what_is_in_flight(cloud: Cloud) -> None:
    """It goes on, and is named on the error stream; ``--overtake`` ends it (B1)."""
    assert await cloud.act("stubborn", {"os-stop": None}) == (202, None)
    placed = cloud.run("lock", "add", "stubborn", "--name", "late")
    (operation,) = cloud.run(
        "operation", "list", "--server", "stubborn", "--action", "stop", "-f", "json"
    ).json
    assert placed.status == 0
    assert placed.err == f"Already admitted, and going on: stop ({operation['id']}).\n"
    made = cloud.run("lock", "add", "stubborn", "--name", "now", "--overtake", "-f", "json").json
    assert (made["in_flight"], made["confirmed"]) == (None, True)
    assert cloud.run("operation", "show", operation["id"], "-f", "json").json["state"] == "superseded"
    # Both blocked the stop; the guest that ignores it is on.
    assert (await cloud.admin.settled(seconds=30))[cloud.servers["stubborn"]]["status"] == "ACTIVE"


async def test_a_project_is_locked(cloud: Cloud) -> None:
    """By its name or its id; its servers have it, and it is released where it was placed."""
    placed = cloud.run("lock", "add", "--project", "demo", "--name", "freeze", "--block", "delete")
    assert placed.status == 0
    assert placed.out.splitlines()[-1] == "Servers of the project that have it now: 3."
    project = cloud.member.login.project
    assert f" project {project}" in cloud.run("lock", "list", "web").out
    assert cloud.provider("explain", "web", "--action", "delete") == Ran(0, "delete: allowed\n", "")
    refused = cloud.run("explain", "web", "--action", "delete", "-f", "json")
    assert refused.status == 1
    assert [each["name"] for each in msgspec.json.decode(refused.out)["blocked_by"]] == ["freeze"]
    there = cloud.run("lock", "release", "web", "freeze")
    says = "The server has the lock 'freeze' from its project; it is released there (--project)."
    assert there == Ran(1, "", f"stateward: {says}\n")
    tagged = ("--project", project, "--tag", "db", "--name", "db")
    assert "Servers of the project that have it now: 0." in cloud.provider("lock", "add", *tagged).out
    names = [each["name"] for each in cloud.run("lock", "list", "--project", "demo", "-f", "json").json]
    assert names == ["freeze", "db"]
    for name, who in (("freeze", cloud.run), ("db", cloud.provider)):
        gone = who("lock", "release", "--project", "demo", name)
        assert (gone.status, gone.err) == (0, "")
    assert cloud.run("lock", "list", "--project", project, "-f", "json").json == []


async def test_whose_lock_it_is(cloud: Cloud) -> None:
    """A customer is told why a lock is not theirs to release, and not who of the provider's placed it (R4, R5)."""
    cloud.run("lock", "add", "web", "--name", "mine", "--sealed")
    lock = cloud.provider("lock", "add", "web", "--reason", "Unpaid.", "--ticket", "T-9", "-f", "json").json[
        "lock"
    ]
    assert (lock["kind"], lock["ticket"]) == ("admin", "T-9")
    (seen,) = (
        each for each in cloud.run("lock", "list", "web", "-f", "json").json if each["kind"] == "admin"
    )
    assert (seen["reason"], seen["ticket"], seen["holder"]) == ("Unpaid.", None, None)
    shown = cloud.run("lock", "list", "web").out
    assert "owner (sealed)" in shown
    assert "the provider" in shown
    for name, why in (
        ("mine", "it is sealed, only the provider can"),
        (lock["id"], "the provider placed it"),
    ):
        ran = cloud.run("lock", "release", "web", name)
        assert (ran.status, ran.out) == (1, "")
        assert re.fullmatch(rf"stateward: \S+ \(\w{{8}}\) is not yours to release: {why}\.\n", ran.err), ran
    assert cloud.provider("lock", "release", "web", "mine").status == 0


async def test_a_hold(cloud: Cloud) -> None:
    """Off and kept off, whoever asks, until it is released; the refusal says what a customer may know (R6)."""
    words = ("--name", "case", "--reason", "Case 7.", "--ticket", "T-1", "--shutdown", "forced")
    held = cloud.provider("hold", "place", "web", *words, "--wait")
    assert (held.status, held.err) == (0, "")
    assert re.search(rf"^\w{{8}} +hold +case +all +\w+ +{TIME} +Case 7\.$", held.out, re.MULTILINE)
    assert re.search(r"^hold_forced of web succeeded after \d+\.\d s: Case 7\.$", held.out, re.MULTILINE)
    assert (await cloud.admin.servers())[cloud.servers["web"]]["status"] == "SHUTOFF"
    says = rf"Instance {cloud.servers['web']} is locked\. It was locked by the provider \(a hold\) at {TIME}: Case 7\."
    for who in (cloud.member, cloud.admin):
        status, message = await cloud.act("web", {"os-start": None}, who=who)
        assert status == 409
        assert re.fullmatch(says, message)
    foreseen = cloud.run("explain", "web", "--action", "start")
    assert (foreseen.status, foreseen.err) == (1, "")
    assert re.fullmatch(rf"start: blocked: {says}\n", foreseen.out)
    explained = cloud.run("explain", "web")
    assert (explained.status, explained.err) == (0, "")
    assert explained.out.startswith("web is stopped.\nIts host saw it shutoff")
    assert re.search(r"^start +blocked +locked: case \(\w{8}\)$", explained.out, re.MULTILINE)
    assert re.search(rf"^{TIME} +hold\S* +succeeded +admin", explained.out, re.MULTILINE)
    refused = cloud.run("lock", "release", "web", "case")
    assert refused.err.endswith(" is not yours to release: the provider placed it.\n")
    cloud.run("lock", "add", "web", "--name", "mine")
    no_hold = cloud.provider("hold", "release", "web", "mine")
    assert no_hold.err.endswith(" is no hold but a lock; release it as one.\n")
    assert cloud.provider("hold", "release", "web", "case", "--reason", "Closed.").out.startswith(
        "Released: case ("
    )
    assert (await cloud.admin.servers())[cloud.servers["web"]]["status"] == "SHUTOFF"


async def test_the_glass_is_broken(cloud: Cloud) -> None:
    """By an admin who names the hold and says why, for one operation; then it holds again (R6)."""
    assert (
        cloud.provider("hold", "place", "web", "--reason", "Case 8.", "--name", "case", "--wait").status == 0
    )
    asked = cloud.provider("override", "ask", "web", "case", "--reason", "Court order 5.", "-f", "json").json
    assert (asked["good"], asked["operations_left"], asked["expires_at"]) == (True, 1, None)
    listed = cloud.provider("override", "list", "web")
    assert re.search(
        rf"^{asked['id']} +\S+ +\S+ +yes +1 +not needed +Court order 5\.$", listed.out, re.MULTILINE
    )
    approved = cloud.provider("override", "approve", asked["id"])
    says = f"Override {asked['id']} cannot be approved: it needs no second administrator."
    assert approved == Ran(1, "", f"stateward: {says}\n")
    assert cloud.provider("explain", "web", "--action", "start").status == 0
    path = f"/compute/v2.1/servers/{cloud.servers['web']}/metadata"
    noted = [await cloud.admin.ask("POST", path, {"metadata": {"case": "8"}}) for _ in range(2)]
    assert [answer.status for answer in noted] == [200, 409]
    assert " yes " not in cloud.provider("override", "list", "web").out
    timed = cloud.provider("override", "ask", "web", "case", "--reason", "More.", "--for", "15m").out
    assert re.search(rf" yes +{TIME} +not needed +More\.$", timed, re.MULTILINE)
    assert len(cloud.provider("override", "list", "web", "-f", "json").json) == 2


async def test_servers_are_named_wherever_they_are(cloud: Cloud) -> None:
    """An admin names a customer's server; of two with one name none is taken, and both are told."""
    assert cloud.provider("lock", "list", "web", "-f", "json").json == []
    both = cloud.provider("lock", "list", "twin")
    assert (both.status, both.out) == (1, "")
    assert both.err.startswith("stateward: Several servers are named 'twin'; use an id: ")
    for project, name in (
        (cloud.member.login.project, "the member's twin"),
        (cloud.admin.login.project, "twin"),
    ):
        assert f"{cloud.servers[name]} (project {project})" in both.err
    # The member sees one.
    assert (
        cloud.run("explain", "twin", "-f", "json").json["instance_id"] == cloud.servers["the member's twin"]
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("lock add", "Name a server, or a project with --project."),
        ("lock add web --project demo", "Name a server, or a project with --project."),
        ("lock add web --tag db", "--tag goes with --project."),
        ("lock add --project demo --overtake", "--overtake is for one server."),
        ("lock add web --block nothing", "Invalid value for '--block': 'nothing' is not one of "),
        (
            "lock add web --expires soon",
            "Invalid value for '--expires': 'soon' is no time: write a duration, as ",
        ),
        ("lock release web", "Name a server and a lock, or with --project a lock alone."),
        ("lock release web a --project demo", "Name a server and a lock, or with --project a lock alone."),
        ("hold place web", "Missing option '--reason'."),
        (
            "hold place web --reason a --shutdown soft",
            "Invalid value for '--shutdown': 'soft' is not one of ",
        ),
        ("override ask web a --reason b --for 15", "Invalid value for '--for': '15' is no duration: "),
        ("override ask web a --reason b --for 1h --operations 2", "Say --operations or --for, not both."),
        ("explain", "Missing argument 'SERVER'."),
    ],
)
async def test_what_is_written_wrongly(cloud: Cloud, words: str, says: str) -> None:
    """Ends with 2, before anything is asked."""
    ran = cloud.run(*words.split())
    assert (ran.status, ran.out) == (2, "")
    assert f"Error: {says}" in ran.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("lock add nosuch", "There is no server that is named 'nosuch'."),
        (f"lock list {NOWHERE}", f"Instance {NOWHERE} could not be found."),
        ("lock add --project nosuch", "There is no project that is named 'nosuch'."),
        (
            "lock add web --expires 2020-01-01",
            "The lock would expire in the past; give a later time, or none.",
        ),
        ("lock add web --kind admin", "Policy doesn't allow stateward:locks:place:admin to be performed."),
        ("hold place web --reason a", "Policy doesn't allow stateward:holds:place to be performed."),
        ("override list web", "Policy doesn't allow stateward:overrides:ask to be performed."),
        ("explain web --action fly", "There is no action 'fly'; there are: "),
    ],
)
async def test_what_is_refused(cloud: Cloud, words: str, says: str) -> None:
    """Ends with 1, and one sentence on the error stream."""
    ran = cloud.run(*words.split())
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith(f"stateward: {says}")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("time", ["soon", "9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00"])
async def test_times_that_are_none(cloud: Cloud, time: str) -> None:
    """Are refused by the API too, also those that could be read and never be shown."""
    answer = await cloud.member.ask(
        "POST", f"/v1/instances/{cloud.servers['web']}/locks", {"expires_at": time}
    )
    says = f"Invalid input for field/attribute expires_at. Value: {time}. It must be a time of ISO 8601, as "
    assert answer.status == 400
    assert answer.body["detail"] == f"{says}2030-01-31T18:00:00Z."


async def test_projects_that_are_not_there(cloud: Cloud) -> None:
    """Are told to an admin too, by name and by id: nothing is locked by a slip."""
    for name, says in (
        ("nosuch", "There is no project that is named 'nosuch'."),
        (NOWHERE.replace("-", ""), f"Could not find project: {NOWHERE.replace('-', '')}."),
    ):
        assert cloud.provider("lock", "add", "--project", name) == Ran(1, "", f"stateward: {says}\n")


@pytest.mark.parametrize("plain", [False, True])
async def test_colours_are_for_terminals(cloud: Cloud, *, plain: bool) -> None:
    """And not for those who do not want them (NO_COLOR)."""
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
    environment = kept | cloud.environment | {"OS_CLOUD": "stateward", "TERM": "xterm-256color"}
    process = await asyncio.create_subprocess_exec(
        *(*STATEWARD, "explain", "web"),
        stdout=theirs,
        stderr=asyncio.subprocess.PIPE,
        env=environment | ({"NO_COLOR": "1"} if plain else {}),
    )
    os.close(theirs)
    drawn = await asyncio.to_thread(_read, ours)
    _out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"succeeded" in drawn
    assert (re.search(rb"\x1b\[[0-9;]*3[0-9]", drawn) is None) is plain
    assert b"\x1b" not in cloud.run("explain", "web").out.encode()


def _read(terminal: int) -> bytes:
    """Read until the other end is closed, which Linux tells by an error."""
    read = b""
    try:
        while more := os.read(terminal, 4096):
            read += more
    except OSError:
        os.close(terminal)
    return read


async def test_durations() -> None:
    """As people write them."""
    assert [duration(text) for text in ("90s", "15m", "2h", "3d", "1w", "1d12h")] == [
        *[90, 900, 7200, 259_200, 604_800, 129_600]
    ]
    assert moment("90m", NOW) == "2026-01-01T01:30:00Z"
    assert moment("2026-01-31T18:00", NOW) == "2026-01-31T18:00:00Z"
    assert moment("2026-01-31T18:00+02:00", NOW) == "2026-01-31T16:00:00Z"
    for text in ("", "h", "2 h", "-2h", "1h30", "99999999w", "9999-12-31T23:59:59-01:00", "soon"):
        with pytest.raises(
            ValueError, match="is no time: write a duration, as 90m, 2h or 1d12h, or a time of ISO"
        ):
            moment(text, NOW)


async def test_who_decides_for_a_server(cloud: Cloud) -> None:
    """With no policies that is the table; one that the owner names in vain is told, with status 1."""
    assert cloud.run("policy", "list", "-f", "json").json["policies"] == []
    said = cloud.run("policy", "explain", "web", "-f", "json").json
    assert (said["chosen"], said["changes"], said["now"]["decided_by"]) == ([], [], "table")
    shown = cloud.run("policy", "explain", "web")
    assert (shown.status, shown.err) == (0, "")
    assert "agree, by table: The guest is as recorded." in shown.out
    assert "what none of them says the table decides: none.\n" in shown.out
    assert ": none.\n\nBrought back 0 times" in shown.out
    path = f"/compute/v2.1/servers/{cloud.servers['web']}/metadata"
    named = await cloud.member.ask("POST", path, {"metadata": {"stateward:policy": "mine"}})
    assert named.status == 200
    shown = cloud.run("policy", "explain", "web")
    assert shown.status == 1
    assert "instance  mine    no: There is no policy called mine." in shown.out
    assert (await cloud.member.ask("DELETE", f"{path}/stateward:policy")).status == 204
    tried = cloud.run(
        "policy", "simulate", "--expected", "stopped", "--observed", "running", "--locked", "-f", "json"
    ).json
    assert [each["action"] for each in tried["outcomes"]] == ["restore_off"]
