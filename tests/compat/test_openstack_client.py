"""The ``openstack`` command and openstacksdk, unmodified, against a server of its own process."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import openstack as sdk
import pytest
from openstack import exceptions
from openstack.config import OpenStackConfig
from openstack.connection import Connection
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.compat.clients import OpenStack, openstack
from tests.process import PROGRAMS, Served, serving

pytestmark = [
    pytest.mark.slow,
    # The SDK's own, about its next release.
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve with one simulated host."""
    with serving(tmp_path_factory.mktemp("served") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def admin(served: Served) -> Iterator[OpenStack]:
    """Be the provider's staff."""
    with openstack(served, "stateward-admin") as client:
        yield client


@pytest.fixture(scope="module")
def member(served: Served) -> Iterator[OpenStack]:
    """Be a customer."""
    with openstack(served, "stateward") as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def image(admin: OpenStack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Upload an image for everybody."""
    path = tmp_path_factory.mktemp("image") / "image"
    path.write_bytes(b"an image")
    made: dict[str, Any] = admin.json(
        "image create --disk-format qcow2 --container-format bare --public --file", str(path), "guest"
    )
    return made


@pytest.fixture
def web(member: OpenStack) -> Iterator[str]:
    """Give a running server, gone at the end; return its id."""
    made = member.json("server create --image guest --flavor tiny --network none web")
    server: str = made["id"]
    until(member, server, "ACTIVE")
    yield server
    assert member.run("server", "delete", "--wait", server).status == 0


def until(client: OpenStack, server: str, status: str) -> None:
    """Ask until a server has a status and nothing is in flight; asking takes long enough to need no pause."""
    seen = ""
    for _ in range(200):
        shown = client.json("server show -c status -c OS-EXT-STS:task_state", server)
        seen = shown["status"]
        if seen == status and shown["OS-EXT-STS:task_state"] is None:
            return
    raise AssertionError(f"server {server} is {seen} and not {status}")


def refusal(error: str) -> str:
    """Return the API's own sentence in what the client prints of a refusal."""
    return error.strip().rpartition("/action, ")[2]


def test_the_command_as_it_is_installed(served: Served) -> None:
    """The console script itself finds the server by ``clouds.yaml`` and lists nothing."""
    line = [str(PROGRAMS / "openstack"), "--os-cloud", "stateward", "server", "list", "-f", "json"]
    done = subprocess.run(line, capture_output=True, text=True, env=served.environment, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_server_is_created_listed_and_deleted(member: OpenStack, image: dict[str, Any]) -> None:
    """A server is there when ``--wait`` returns, shown by what it was made of, and gone when it is deleted."""
    made = member.json(
        "server create --image guest --flavor small --network none --property a=b --tag t1 --wait",
        *("--description", "of a test", "one"),
    )
    shown = member.json("server show one")
    assert (made["id"], made["status"], shown["status"]) == (shown["id"], "ACTIVE", "ACTIVE")
    assert shown["image"] == f"guest ({image['id']})"
    assert shown["flavor"]["original_name"] == "small"
    assert (shown["properties"], shown["tags"], shown["description"]) == ({"a": "b"}, ["t1"], "of a test")
    assert (shown["locked"], shown["locked_reason"]) == (False, None)
    assert "OS-EXT-SRV-ATTR:host" not in {name for name, value in shown.items() if value}
    (listed,) = member.json("server list --long")
    assert (listed["ID"], listed["Name"], listed["Status"], listed["Power State"]) == (
        made["id"],
        "one",
        "ACTIVE",
        1,
    )
    member("server delete --wait one")
    assert member.json("server list") == []
    assert member.refused("server show one") == "No Server found for one\n"


def test_a_locked_server_is_left_alone(member: OpenStack, admin: OpenStack, web: str) -> None:
    """The owner's lock stops the owner's mistakes; the provider's cannot be taken away by the owner."""
    member("server lock --reason", "billing db", "web")
    assert member.json("server show -c locked -c locked_reason web") == {
        "locked": True,
        "locked_reason": "billing db",
    }
    locked = re.compile(rf"Instance {web} is locked\. It was locked by user \w+ at [0-9TZ:-]+: billing db")
    assert locked.fullmatch(refusal(member.refused("server stop web")))
    assert locked.fullmatch(refusal(member.refused("server reboot --hard web")))
    assert locked.search(member.refused("server delete web"))
    assert [each["Name"] for each in member.json("server list --locked")] == ["web"]
    assert member.json("server list --unlocked") == []
    member("server unlock web")

    admin("server lock --reason fraud", web)
    assert member.json("server show -c locked_reason web") == {"locked_reason": "fraud"}
    assert (
        refusal(member.refused("server unlock web"))
        == "Policy doesn't allow os_compute_api:os-lock-server:unlock:unlock_override to be performed."
    )
    admin("server unlock", web)
    assert member.json("server show -c locked web") == {"locked": False}


def test_a_server_goes_through_its_states(member: OpenStack, web: str) -> None:
    """Every action that the client has a command for arrives in the state it is for."""
    for command, status in (
        ("server stop", "SHUTOFF"),
        ("server start", "ACTIVE"),
        ("server pause", "PAUSED"),
        ("server unpause", "ACTIVE"),
        ("server suspend", "SUSPENDED"),
        ("server resume", "ACTIVE"),
        ("server reboot --soft", "ACTIVE"),
        ("server reboot --hard", "ACTIVE"),
    ):
        member(command, web)
        until(member, web, status)
    events = member.json("server event list --long", web)
    assert [event["Action"] for event in events] == [
        *["reboot", "reboot", "resume", "suspend", "unpause", "pause", "start", "stop", "create"]
    ]
    shown = member.json("server event show", web, events[-2]["Request ID"])
    (step,) = shown["events"]
    assert (shown["action"], step["event"], step["result"]) == ("stop", "compute_stop_instance", "Success")
    refused = member.refused("server start", web)
    assert refusal(refused) == f"Cannot 'start' instance {web} while it is in vm_state active"
    log = member("console log show --lines 1", web)
    assert log.splitlines() == ["stateward-guest: up"]


def test_names_properties_and_tags(member: OpenStack, web: str) -> None:
    """What a server is called is changed without touching its guest."""
    member("server set --name web2 --property tier=gold --property os_shutdown_timeout=300 --tag a", web)
    shown = member.json("server show -c name -c properties -c tags web2")
    assert shown == {
        "name": "web2",
        "properties": {"os_shutdown_timeout": "300", "tier": "gold"},
        "tags": ["a"],
    }
    member("server unset --property tier --tag a web2")
    shown = member.json("server show -c properties -c tags web2")
    assert shown == {"properties": {"os_shutdown_timeout": "300"}, "tags": []}
    assert [each["Name"] for each in member.json("server list --name ^web")] == ["web2"]


def test_an_admin_sets_a_state(admin: OpenStack, member: OpenStack, web: str) -> None:
    """``--state`` is for admins, and what it says is compared with the guest."""
    assert "Policy doesn't allow os_compute_api:os-admin-actions:reset_state" in member.refused(
        "server set --auto-approve --state error", web
    )
    admin("server set --auto-approve --state error", web)
    until(member, web, "ERROR")
    admin("server set --auto-approve --state active", web)
    until(member, web, "ACTIVE")


def test_flavors(admin: OpenStack, member: OpenStack) -> None:
    """An admin makes a flavor; everybody sees it, and what is said of it."""
    admin("flavor create --id big --ram 1024 --vcpus 4 --disk 10 --property hw:cpu_policy=shared big")
    shown = member.json("flavor show big")
    assert (shown["ram"], shown["vcpus"], shown["disk"]) == (1024, 4, 10)
    assert [each["Name"] for each in member.json("flavor list")] == ["big", "medium", "small", "tiny"]
    assert "Policy doesn't allow os_compute_api:os-flavor-manage:create" in member.refused(
        "flavor create --ram 1 --vcpus 1 --disk 1 mine"
    )
    admin("flavor delete big")
    assert [each["Name"] for each in member.json("flavor list")] == ["medium", "small", "tiny"]


def test_key_pairs(member: OpenStack) -> None:
    """The client makes a key and the server keeps its public half."""
    assert member("keypair create mine").startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert [each["Name"] for each in member.json("keypair list")] == ["mine"]
    member("keypair delete mine")
    assert member.json("keypair list") == []


def test_server_groups(member: OpenStack, admin: OpenStack) -> None:
    """A group is made, listed, shown with its server, and deleted; the second server finds no other host."""
    made = member.json("server group create --policy anti-affinity --rule max_server_per_host=1 apart")
    assert (made["name"], made["policy"], made["members"]) == ("apart", "anti-affinity", [])
    assert member.json("server group list") == [
        {"ID": made["id"], "Name": "apart", "Policy": "anti-affinity"}
    ]
    create = f"server create --image guest --flavor tiny --network none --hint group={made['id']}"
    first = member.json(f"{create} first")["id"]
    until(member, first, "ACTIVE")
    second = member.json(f"{create} second")["id"]
    until(member, second, "ERROR")
    shown = member.json("server show", second)
    assert shown["fault"]["message"] == "No valid host was found. There are not enough hosts available."
    assert (shown["server_groups"], shown["scheduler_hints"]) == ([made["id"]], {"group": made["id"]})
    assert member.json("server group show apart")["members"] == [first, second]
    member("server delete --wait", first, second)
    assert [each["ID"] for each in admin.json("server group list --all-projects")] == [made["id"]]
    member("server group delete apart")
    assert member.json("server group list") == []
    missing = made["id"]
    assert f"Instance group {missing} could not be found." in member.refused(f"{create} third")


def test_what_operators_look_at(admin: OpenStack, member: OpenStack) -> None:
    """Zones are for everybody; hosts are for the provider's staff."""
    assert member.json("availability zone list") == [{"Zone Name": "nova", "Zone Status": "available"}]
    (hypervisor,) = admin.json("hypervisor list")
    assert (hypervisor["Hypervisor Type"], hypervisor["State"]) == ("simulated", "up")
    (service,) = admin.json("compute service list")
    assert (service["Binary"], service["Status"], service["State"]) == ("nova-compute", "enabled", "up")
    assert "Policy doesn't allow os_compute_api:os-hypervisors:list" in member.refused("hypervisor list")
    limits = {each["Name"]: each["Value"] for each in member.json("limits show --absolute")}
    assert limits["instances_used"] == 0


def test_people(served: Served, admin: OpenStack) -> None:
    """A project, a user and a role make somebody who can log in and list their servers."""
    admin("project create lab")
    admin("user create --password", "a password", "ann")
    admin("role add --project lab --user ann member")
    assert [
        (each["Role"], each["User"], each["Project"])
        for each in admin.json("role assignment list --names --project lab")
    ] == [("member", "ann@Default", "lab@Default")]
    ann = sdk.connect(
        auth_url=f"{served.address}/identity/v3",
        username="ann",
        password="a password",
        project_name="lab",
        user_domain_name="Default",
        project_domain_name="Default",
        load_yaml_config=False,
        load_envvars=False,
    )
    assert list(ann.compute.servers()) == []
    ann.close()


def test_a_console_is_typed_at(member: OpenStack, web: str) -> None:
    """By the address that the client is given, with any program that speaks websockets."""
    shown = member.json("console url show --serial", web)
    assert (shown["protocol"], shown["type"]) == ("serial", "serial")
    with connect(shown["url"], subprotocols=[Subprotocol("binary")]) as socket:
        assert socket.subprotocol == "binary"
        socket.send(b"hello\n")
        assert socket.recv(timeout=10) == b"stateward-guest: console: hello\r\n"
        member("server pause", web)
        member("server unpause", web)
        member("server stop", web)
        assert b"shutting down" in b"".join(map(as_bytes, socket))
        assert (socket.close_code, socket.close_reason) == (1001, "The guest is off.")
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{shown['url']}x")
    assert refused.value.response.status_code == 403
    assert refusal_of(refused.value.response.body) == "The token is not one of a console of this cloud."
    until(member, web, "SHUTOFF")
    ran = member.run("console", "url", "show", "--novnc", web)
    assert ran.status == 1
    assert "Unavailable console type novnc." in ran.err


def as_bytes(message: str | bytes) -> bytes:
    """Return a message that must be of bytes."""
    assert isinstance(message, bytes)
    return message


def refusal_of(body: bytes | bytearray | None) -> str:
    """Return the sentence of a fault."""
    (fault,) = json.loads(body or b"").values()
    return str(fault["message"])


@pytest.fixture
def cloud(served: Served) -> Iterator[Connection]:
    """Give a connection of openstacksdk for the customer."""
    clouds = OpenStackConfig(config_files=[str(served.data / "clouds.yaml")], load_envvars=False)
    connection = Connection(config=clouds.get_one(cloud="stateward"))
    yield connection
    connection.close()


def test_the_sdk(cloud: Connection) -> None:
    """openstacksdk's own calls for servers work: create, wait, find, metadata, lock, act, delete."""
    compute = cloud.compute
    image = cloud.image.find_image("guest")
    flavor = compute.find_flavor("tiny")
    assert image is not None
    assert flavor is not None
    made = compute.create_server(name="two", image_id=image.id, flavor_id=flavor.id, networks="none")
    server = compute.wait_for_server(made, interval=0.1, wait=60)
    assert (server.status, server.vm_state, server.is_locked) == ("ACTIVE", "active", False)
    found = compute.find_server("two", ignore_missing=False)
    assert found.id == server.id
    assert [each.name for each in compute.servers(details=False)] == ["two"]

    compute.set_server_metadata(server, tier="gold")
    assert compute.get_server_metadata(server).metadata == {"tier": "gold"}
    compute.delete_server_metadata(server, ["tier"])
    assert compute.get_server_metadata(server).metadata == {}

    compute.lock_server(server, locked_reason="billing")
    locked = compute.get_server(server.id)
    assert (locked.is_locked, locked.locked_reason) == (True, "billing")
    with pytest.raises(exceptions.ConflictException, match=f"Instance {server.id} is locked"):
        compute.stop_server(server)
    compute.unlock_server(server)

    for act, status in (
        (compute.stop_server, "SHUTOFF"),
        (compute.start_server, "ACTIVE"),
        (compute.pause_server, "PAUSED"),
        (compute.unpause_server, "ACTIVE"),
        (compute.suspend_server, "SUSPENDED"),
        (compute.resume_server, "ACTIVE"),
    ):
        act(server)
        compute.wait_for_server(server, status=status, interval=0.1, wait=60)
    assert [action.action for action in compute.server_actions(server)][:2] == ["resume", "suspend"]
    compute.delete_server(server)
    compute.wait_for_delete(server, interval=0.1, wait=60)


def test_the_old_version_shows_who_locked(
    served: Served, cloud: Connection, member: OpenStack, admin: OpenStack, web: str
) -> None:
    """``/v2`` shows ``locked`` and ``locked_by``, and lists the extension that says so; ``/v2.1`` never names who."""
    base = f"{served.address}/compute"
    legacy = f"{base}/v2/{cloud.current_project_id}"

    def shown() -> tuple[bool, str | None]:
        server = cloud.session.get(f"{legacy}/servers/{web}").json()["server"]
        return server["locked"], server["locked_by"]

    assert shown() == (False, None)
    member("server lock", web)
    assert shown() == (True, "owner")
    admin("server lock", web)
    assert shown() == (True, "admin")
    admin("server unlock", web)
    assert shown() == (True, "owner")
    member("server unlock", web)
    aliases = {each["alias"] for each in cloud.session.get(f"{legacy}/extensions").json()["extensions"]}
    assert "os-server-locked-status" in aliases
    headers = {"OpenStack-API-Version": "compute 2.104"}
    server = cloud.session.get(f"{base}/v2.1/servers/{web}", headers=headers).json()["server"]
    assert "locked_by" not in server
