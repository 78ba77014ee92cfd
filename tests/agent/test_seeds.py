"""What a guest is told of itself, read back from the image with the library and as cloud-init reads its YAML."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import yaml
from hypothesis import given, strategies as st
from pycdlib.pycdlib import PyCdlib

from stateward.agent import seeds
from stateward.domain.networks import Network, NetworkKind, ports_of
from stateward.domain.seeds import Seed, SeedFacts, seed_of

ID = "5a7d1f0e-3b7c-4d53-9a52-0d9b1f6f0001"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA me@here"
PORTS = ports_of(ID, [Network(name=name, kind=NetworkKind.NAT, source=name) for name in ("one", "two")])
PLAIN = Seed(hostname="web", zone="nova")


def names_in(iso: PyCdlib, **root: str) -> list[str]:
    """Return the names of an image's files; it has no folders."""
    walk = cast("Iterable[tuple[str, list[str], list[str]]]", iso.walk(**root))  # pyright: ignore[reportUnknownMemberType]
    ((_, folders, files),) = walk
    assert folders == []
    return sorted(files)


def read(image: bytes) -> dict[str, bytes]:
    """Return the files of an image by their Rock Ridge names; their Joliet names must be the same."""
    iso = PyCdlib()
    iso.open_fp(io.BytesIO(image))
    assert iso.pvd.volume_identifier.decode().rstrip() == "cidata"
    found: dict[str, bytes] = {}
    names = names_in(iso, rr_path="/")
    assert names_in(iso, joliet_path="/") == names
    for name in names:
        rock_ridge, joliet = io.BytesIO(), io.BytesIO()
        iso.get_file_from_iso_fp(rock_ridge, rr_path=f"/{name}")
        iso.get_file_from_iso_fp(joliet, joliet_path=f"/{name}")
        assert rock_ridge.getvalue() == joliet.getvalue()
        found[name] = rock_ridge.getvalue()
    iso.close()
    return found


def told(seed: Seed, name: str) -> Any:
    """Return a document as cloud-init reads it."""
    return yaml.safe_load(read(seeds.image(seeds.documents(ID, seed, PORTS)))[name])


def test_a_guest_is_told_its_names_its_keys_and_its_metadata() -> None:
    seed = msgspec.structs.replace(PLAIN, public_keys=(KEY,), metadata={"role": "db"})
    assert told(seed, "meta-data") == {
        "instance-id": ID,
        "local-hostname": "web",
        "availability-zone": "nova",
        "public-keys": [KEY],
        "meta": {"role": "db"},
    }


def test_each_port_is_named_by_its_address() -> None:
    assert told(PLAIN, "network-config") == {
        "version": 2,
        "ethernets": {
            f"port{index}": {"match": {"macaddress": port.mac}, "dhcp4": True, "dhcp6": False}
            for index, port in enumerate(PORTS)
        },
    }


def test_user_data_is_what_the_user_sent_byte_by_byte() -> None:
    raw = b"#!/bin/sh\r\n\xff\x00"
    seed = msgspec.structs.replace(PLAIN, user_data=base64.b64encode(raw).decode())
    assert read(seeds.image(seeds.documents(ID, seed, ())))["user-data"] == raw


def test_without_user_data_and_ports_there_is_no_more_than_cloud_init_needs() -> None:
    files = read(seeds.image(seeds.documents(ID, PLAIN, ())))
    assert (set(files), files["user-data"]) == ({"meta-data", "user-data"}, b"#cloud-config\n{}\n")


def test_a_password_is_told_beside_the_users_own_data() -> None:
    hashed = "$2a$10$abcdefghijklmnopqrstuv"
    seed = msgspec.structs.replace(
        PLAIN, password=hashed, user_data=base64.b64encode(b"#!/bin/sh\n").decode()
    )
    files = read(seeds.image(seeds.documents(ID, seed, ())))
    assert files["vendor-data"].startswith(b"#cloud-config\n")
    assert yaml.safe_load(files["vendor-data"]) == {"password": hashed, "chpasswd": {"expire": False}}
    assert hashed.encode() not in files["user-data"]


@given(st.dictionaries(st.text(min_size=1, max_size=9), st.text(max_size=9), max_size=3))
def test_any_text_is_read_back_as_it_was(metadata: dict[str, str]) -> None:
    seed = msgspec.structs.replace(PLAIN, metadata=metadata)
    document = seeds.documents(ID, seed, ())["meta-data"]
    assert yaml.safe_load(document)["meta"] == metadata


def test_an_image_is_told_from_those_of_other_seeds(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    files = seeds.documents(ID, PLAIN, PORTS)
    assert not seeds.is_of(path, files)
    path.write_bytes(seeds.image(files))
    assert seeds.is_of(path, files)
    for other in (
        seeds.documents(ID, msgspec.structs.replace(PLAIN, hostname="web2"), PORTS),
        seeds.documents(ID, PLAIN, PORTS[:1]),
    ):
        assert not seeds.is_of(path, other)
    path.write_bytes(b"cut short")
    assert not seeds.is_of(path, files)


@pytest.mark.parametrize(
    ("facts", "user_data", "metadata", "connected"),
    [
        (SeedFacts(public_key=KEY), None, {}, False),
        (SeedFacts(password="$2a$"), None, {}, False),
        (SeedFacts(config_drive=True), None, {}, False),
        (SeedFacts(), "IyEK", {}, False),
        (SeedFacts(), None, {"a": "b"}, False),
        (SeedFacts(), None, {}, True),
    ],
)
def test_whoever_has_something_to_be_told_gets_a_seed(
    *, facts: SeedFacts, user_data: str | None, metadata: dict[str, str], connected: bool
) -> None:
    assert seed_of(
        facts, hostname="web", zone="z", user_data=user_data, metadata=metadata, connected=connected
    ) == Seed(
        hostname="web",
        zone="z",
        public_keys=(KEY,) if facts.public_key else (),
        password=facts.password,
        user_data=user_data,
        metadata=metadata,
    )


def test_whoever_has_nothing_to_be_told_gets_none() -> None:
    nothing = seed_of(SeedFacts(), hostname="web", zone="z", user_data=None, metadata={}, connected=False)
    assert nothing is None
