"""Networks: what a new server may ask for, what is shown of it, and the little of Neutron that clients need."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import bcrypt
import msgspec
import pytest
import pytest_asyncio

from stateward.domain.networks import NO_NETWORK, Network, NetworkKind, ports_of
from stateward.settings import NetworkSettings
from tests.cloud import Answer, Cloud, running_cloud

pytestmark = pytest.mark.asyncio(loop_scope="module")

ONE = Network(name="one", kind=NetworkKind.NAT, source="default")
TWO = Network(name="two", kind=NetworkKind.BRIDGE, source="br0")
NOBODY = "11111111-2222-3333-4444-555555555555"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKoJyzmcbHPjjlF3iU1p37hWJ5zLKbwLQ6Mz+a8pVs8E me@here"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def cloud(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    """Run a server with two networks."""
    networks = (NetworkSettings(name="one"), NetworkSettings(name="two", kind="bridge", source="br0"))
    async with running_cloud(tmp_path_factory.mktemp("networks") / "data", networks=networks) as cloud:
        yield cloud


async def create(cloud: Cloud, networks: Any, *, minor: int = 104, **members: Any) -> Answer:
    """Ask for a server on networks; UNSET says nothing of them."""
    server = {"name": "web", "imageRef": cloud.image, "flavorRef": "1", **members}
    if networks is not msgspec.UNSET:
        server["networks"] = networks
    return await cloud.ask("member", "POST", "/servers", {"server": server}, microversion=f"2.{minor}")


async def made(cloud: Cloud, networks: Any, **members: Any) -> str:
    """Make a server and return its id."""
    answer = await create(cloud, networks, **members)
    assert answer.status == 202, answer.body
    server: str = answer.body["server"]["id"]
    await cloud.settled(server)
    return server


async def neutron(cloud: Cloud, path: str, who: str = "member", method: str = "GET") -> Answer:
    """Ask the network service."""
    return await cloud.ask(who, method, path, api="/network/v2.0")


async def addressed(cloud: Cloud, server: str, count: int) -> dict[str, Any]:
    """Wait until a server shows so many addresses."""
    async with asyncio.timeout(20):
        while True:
            answer = await cloud.ask("member", "GET", f"/servers/{server}", microversion="2.104")
            shown: dict[str, Any] = answer.body["server"]["addresses"]
            if sum(map(len, shown.values())) == count:
                return shown
            await asyncio.sleep(0.05)


async def test_a_server_shows_its_ports_and_their_addresses_everywhere_alike(cloud: Cloud) -> None:
    server = await made(cloud, [{"uuid": ONE.id}, {"uuid": TWO.id}])
    ports = ports_of(server, [ONE, TWO])
    shown = await addressed(cloud, server, 2)
    addresses = {label: found[0]["addr"] for label, found in shown.items()}
    assert shown == {
        port.network: [
            {
                "version": 4,
                "addr": addresses[port.network],
                "OS-EXT-IPS:type": "fixed",
                "OS-EXT-IPS-MAC:mac_addr": port.mac,
            }
        ]
        for port in ports
    }
    assert len(set(addresses.values())) == 2
    plain = {label: [{"version": 4, "addr": address}] for label, address in addresses.items()}
    ips = await cloud.ask("member", "GET", f"/servers/{server}/ips")
    assert (ips.status, ips.body) == (200, {"addresses": plain})
    of_one = await cloud.ask("member", "GET", f"/servers/{server}/ips/one")
    assert (of_one.status, of_one.body) == (200, {"one": plain["one"]})
    of_none = await cloud.ask("member", "GET", f"/servers/{server}/ips/three")
    assert of_none.fault == (404, "itemNotFound", "Instance is not a member of specified network")

    subnets = {each["network_id"]: each["id"] for each in (await neutron(cloud, "/subnets")).body["subnets"]}
    interfaces = (await cloud.ask("member", "GET", f"/servers/{server}/os-interface")).body
    expected = [
        {
            "port_state": "ACTIVE",
            "port_id": port.id,
            "net_id": port.network_id,
            "mac_addr": port.mac,
            "fixed_ips": [{"subnet_id": subnets[port.network_id], "ip_address": addresses[port.network]}],
        }
        for port in ports
    ]
    assert interfaces == {"interfaceAttachments": expected}
    one = await cloud.ask(
        "member", "GET", f"/servers/{server}/os-interface/{ports[0].id}", microversion="2.70"
    )
    assert one.body == {"interfaceAttachment": expected[0] | {"tag": None}}
    listed = (await neutron(cloud, f"/ports?device_id={server}")).body["ports"]
    assert [(each["id"], each["mac_address"], each["fixed_ips"], each["status"]) for each in listed] == [
        (each["port_id"], each["mac_addr"], each["fixed_ips"], "ACTIVE") for each in expected
    ]
    assert (await neutron(cloud, f"/ports/{ports[1].id}")).body["port"] == listed[1]

    address = addresses["one"]
    for pattern, found in (
        (address, [server]),
        (f"^{address[:-1]}", [server]),
        ("10.999", []),
        ("0.0.0.1", []),
    ):
        answer = await cloud.ask("member", "GET", f"/servers?ip={pattern}")
        assert [each["id"] for each in answer.body["servers"]] == found, pattern


async def test_a_port_is_shown_to_its_project_and_to_admins(cloud: Cloud) -> None:
    server = await made(cloud, [{"uuid": ONE.id}])
    (port,) = ports_of(server, [ONE])
    seen = {
        who: [each["id"] for each in (await neutron(cloud, f"/ports?device_id={server}", who)).body["ports"]]
        for who in ("member", "othertenant", "admin")
    }
    assert seen == {"member": [port.id], "othertenant": [], "admin": [port.id]}
    assert (await neutron(cloud, f"/ports/{port.id}", "othertenant")).status == 404
    interfaces = await cloud.ask("othertenant", "GET", f"/servers/{server}/os-interface")
    assert interfaces.fault == (404, "itemNotFound", f"Instance {server} could not be found.")


async def test_a_server_without_a_network_has_no_ports(cloud: Cloud) -> None:
    for networks in ("none", [{"uuid": NO_NETWORK}]):
        server = await made(cloud, networks)
        answer = await cloud.ask("member", "GET", f"/servers/{server}/os-interface")
        assert answer.body == {"interfaceAttachments": []}


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ([{"uuid": NOBODY}], f"Network {NOBODY} could not be found."),
        ([{"port": NOBODY}], "Ports are made with their servers and cannot be named beforehand"),
        ([{"uuid": ONE.id, "fixed_ip": "10.0.0.7"}], "An address cannot be asked for"),
        ([{"uuid": ONE.id, "tag": "t"}], "Tagged ports are not supported"),
        ([{"uuid": ONE.id, "speed": 1}], "Invalid input for field/attribute networks."),
        ([{"uuid": 7}], "Invalid input for field/attribute networks."),
        ([dict[str, str]()], "Invalid input for field/attribute networks."),
        ([{"uuid": ONE.id}] * 9, "A server has at most 8 ports."),
    ],
)
async def test_what_cannot_be_had_is_refused(cloud: Cloud, networks: Any, message: str) -> None:
    status, kind, said = (await create(cloud, networks)).fault
    assert (status, kind) == (400, "badRequest")
    assert said.startswith(message)


async def test_which_network_auto_means_must_be_plain(cloud: Cloud) -> None:
    ambiguous = (
        409,
        "conflictingRequest",
        "Multiple possible networks found, use a Network ID to be more specific.",
    )
    assert (await create(cloud, "auto")).fault == ambiguous
    assert (await create(cloud, msgspec.UNSET, minor=1)).fault == ambiguous


async def test_the_only_network_is_what_auto_means(tmp_path: Path) -> None:
    """Without any setting there is one."""
    async with running_cloud(tmp_path / "data") as cloud:
        (network,) = (await neutron(cloud, "/networks")).body["networks"]
        assert network["name"] == "default"
        for networks, minor in (("auto", 104), (msgspec.UNSET, 1)):
            server = (await create(cloud, networks, minor=minor)).body["server"]["id"]
            await cloud.settled(server)
            shown = await cloud.ask("member", "GET", f"/servers/{server}/os-interface")
            assert [each["net_id"] for each in shown.body["interfaceAttachments"]] == [network["id"]]


async def test_security_groups_but_the_default_are_refused(cloud: Cloud) -> None:
    assert (await create(cloud, "none", security_groups=[{"name": "default"}])).status == 202
    status, _, said = (await create(cloud, "none", security_groups=[{"name": "web"}])).fault
    assert (status, said.partition(":")[0]) == (400, "Security group web could not be found")


async def test_the_ports_of_a_server_stay_as_they_are(cloud: Cloud) -> None:
    server = await made(cloud, "none")
    refused = (
        400,
        "badRequest",
        "A server keeps the ports it was made with: make a new one on the networks you need.",
    )
    path = f"/servers/{server}/os-interface"
    assert (await cloud.ask("member", "POST", path, {"interfaceAttachment": {}})).fault == refused
    assert (await cloud.ask("member", "DELETE", f"{path}/{NOBODY}")).fault == refused
    assert (await cloud.ask("reader", "POST", path, {})).status == 403


async def test_networks_are_found_by_name_and_id(cloud: Cloud) -> None:
    async def found(query: str) -> list[str]:
        answer = await neutron(cloud, f"/networks?{query}")
        return [each["name"] for each in answer.body["networks"]]

    assert await found("") == ["one", "two"]
    assert await found("name=two") == ["two"]
    assert await found("name=none") == ["none"]
    assert await found(f"id={ONE.id}&fields=name") == ["one"]
    assert await found("name=three") == []
    assert await found("shared=true&name=one") == ["one"]
    assert (await neutron(cloud, f"/networks/{NO_NETWORK}")).body["network"]["name"] == "none"
    assert (await neutron(cloud, "/networks/one")).status == 404
    old = (await cloud.ask("member", "GET", "/os-networks")).body["networks"]
    assert [(each["id"], each["label"]) for each in old] == [
        (ONE.id, "one"),
        (TWO.id, "two"),
        (NO_NETWORK, "none"),
    ]


async def test_the_network_service_is_for_reading_and_for_users(cloud: Cloud) -> None:
    for path, method in (("/networks", "POST"), ("/ports", "POST"), (f"/networks/{ONE.id}", "DELETE")):
        answer = await neutron(cloud, path, method=method)
        assert (answer.status, answer.body["error"]["message"].split(" by ")[0]) == (
            400,
            "Networks are set up",
        )
    for name in ("routers", "floatingips", "security-groups", "extensions"):
        assert (await neutron(cloud, f"/{name}")).body == {name.replace("-", "_"): []}
        assert (await neutron(cloud, f"/{name}/x")).status == 404
    assert (await neutron(cloud, "/quotas/x")).body["quota"]["port"] == -1
    assert (await neutron(cloud, "/agents")).status == 404
    for path in ("/networks", "/ports", "/subnets", "/routers", ""):
        assert (await cloud.send("GET", f"/network/v2.0{path}")).status == 401
    versions = await cloud.send("GET", "/network/")
    assert [each["id"] for each in versions.body["versions"]] == ["v2.0"]


async def test_a_guest_is_told_the_key_as_it_was_and_a_password_only_as_its_hash(cloud: Cloud) -> None:
    keypair = {"keypair": {"name": "k", "public_key": KEY}}
    assert (await cloud.ask("member", "POST", "/os-keypairs", keypair)).status == 200
    script = base64.b64encode(b"#!/bin/sh\n").decode()
    server = await made(
        cloud,
        [{"uuid": ONE.id}],
        key_name="k",
        adminPass="very secret",
        user_data=script,
        config_drive=True,
        metadata={"role": "db"},
    )
    assert (await cloud.ask("member", "DELETE", "/os-keypairs/k")).status == 202
    shown = (await cloud.ask("member", "GET", f"/servers/{server}")).body["server"]
    assert (shown["config_drive"], shown["key_name"]) == ("True", "k")
    spec = cloud.hypervisor.guest(server).spec
    assert spec is not None
    assert spec.seed is not None
    assert (spec.seed.hostname, spec.seed.public_keys, spec.seed.user_data, spec.seed.metadata) == (
        "web",
        (KEY,),
        script,
        {"role": "db"},
    )
    assert spec.seed.password is not None
    assert spec.seed.password.startswith("$2a$")
    assert bcrypt.checkpw(b"very secret", spec.seed.password.encode())
    assert spec.ports == ports_of(server, [ONE])
    # A restart of the guest tells it the same, though the key pair is gone.
    reboot = {"reboot": {"type": "HARD"}}
    assert (await cloud.ask("member", "POST", f"/servers/{server}/action", reboot)).status == 202
    await cloud.settled(server)
    again = cloud.hypervisor.guest(server).spec
    assert again is not None
    assert (again.seed, again.ports) == (spec.seed, spec.ports)


async def test_a_generated_password_is_nobodys_way_in(cloud: Cloud) -> None:
    server = await made(cloud, "none")
    spec = cloud.hypervisor.guest(server).spec
    assert spec is not None
    assert spec.seed is None


async def test_a_password_that_guests_could_not_read_is_refused(cloud: Cloud) -> None:
    answer = await create(cloud, "none", adminPass="x" * 73)
    assert answer.fault == (400, "badRequest", "adminPass has at most 72 bytes, and no NUL character.")


async def test_no_settings_with_names_that_mean_two_things(tmp_path: Path) -> None:
    from stateward.settings import BadSettings, load

    for text, says in (
        ('[[network]]\nname = "a"\n[[network]]\nname = "a"', "two networks have one name"),
        ('[[network]]\nname = "none"', "no network can be called none"),
        ('[[network]]\nname = "a"\nkind = "bridge"', "the network a names no bridge"),
        ('[[network]]\nname = "a"\nkind = "vlan"', "Invalid enum value 'vlan'"),
    ):
        path = tmp_path / "settings.toml"
        path.write_text(text)
        with pytest.raises(BadSettings, match=says):
            load(path, {})
    path.write_text("network = []")
    assert load(path, {}).network == ()
