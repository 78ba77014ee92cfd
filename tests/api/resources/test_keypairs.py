"""Key pairs: importing, generating up to 2.91, whose they are, and what is no key."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stateward.api.compute import ssh_keys
from stateward.store import keypairs
from tests.api.resources.conftest import Answer, Api
from tests.rows import NOW


def _string(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def ssh(name: str, *parts: bytes, says: str | None = None) -> str:
    blob = _string((says or name).encode(), *parts)
    return f"{name} {base64.b64encode(blob).decode()} me@home"


ED25519 = ssh("ssh-ed25519", b"k" * 32)
RSA = ssh("ssh-rsa", b"\x01\x00\x01", b"n" * 257)
FINGERPRINT = hashlib.md5(_string(b"ssh-ed25519", b"k" * 32)).hexdigest()
COLONS = ":".join(FINGERPRINT[at : at + 2] for at in range(0, 32, 2))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True)


async def keep(
    api: Api, name: str = "mine", *, v: str | None = None, by: str = "member", **more: Any
) -> Answer:
    body = {"keypair": {"name": name, "public_key": ED25519} | more}
    return await api("POST", "/os-keypairs", body, by=by, v=v)


async def test_an_imported_key_is_shown_by_version(api: Api) -> None:
    made = await keep(api)
    brief = {"name": "mine", "public_key": ED25519, "fingerprint": COLONS}
    assert (made.status, made.body) == (200, {"keypair": brief | {"user_id": "id-of-member"}})
    typed = brief | {"type": "ssh"}
    second = await keep(api, "second", v="2")
    assert second.status == 201
    assert second.body == {"keypair": typed | {"name": "second", "user_id": "id-of-member"}}
    assert (await api("GET", "/os-keypairs")).body["keypairs"][0] == {"keypair": brief}
    assert (await api("GET", "/os-keypairs", v="2")).body["keypairs"][0] == {"keypair": typed}
    shown = await api("GET", "/os-keypairs/mine", v="2")
    number = shown.body["keypair"].pop("id")
    assert isinstance(number, int)
    assert shown.body["keypair"] == typed | {
        "user_id": "id-of-member",
        "created_at": "2023-11-14T22:13:20.000000",
        "updated_at": None,
        "deleted": False,
        "deleted_at": None,
    }
    found = await api.database.read(lambda connection: keypairs.get(connection, "id-of-member", "mine"))
    assert found is not None
    assert (found.public_key, found.created_at) == (ED25519, NOW)


async def test_a_name_is_unique_among_a_users(api: Api) -> None:
    answers = await asyncio.gather(*(keep(api) for _ in range(4)))
    assert sorted(answer.status for answer in answers) == [200, 409, 409, 409]
    refused = next(answer for answer in answers if answer.status == 409)
    assert refused.message == "Key pair 'mine' already exists."
    assert (await keep(api, by="stranger")).status == 200


async def test_a_deleted_key_is_gone(api: Api) -> None:
    for version, status in (("1", 202), ("2", 204), ("latest", 204)):
        await keep(api)
        gone = await api("DELETE", "/os-keypairs/mine", v=version)
        assert (gone.status, gone.body) == (status, None)
        for method in ("GET", "DELETE"):
            missing = await api(method, "/os-keypairs/mine")
            assert missing.status == 404
            assert missing.message == "Keypair mine not found for user id-of-member"


async def test_only_an_admin_names_another_user(api: Api) -> None:
    await keep(api)
    for method, path, rule in (
        ("GET", "/os-keypairs", "index"),
        ("GET", "/os-keypairs/mine", "show"),
        ("DELETE", "/os-keypairs/mine", "delete"),
    ):
        refused = await api(method, f"{path}?user_id=id-of-member", by="stranger", v="10")
        assert refused.status == 403
        assert refused.message == f"Policy doesn't allow os_compute_api:os-keypairs:{rule} to be performed."
    assert (await keep(api, by="stranger", v="10", user_id="id-of-member")).status == 403
    assert (await keep(api, by="admin", v="9", user_id="id-of-member")).status == 400
    made = await keep(api, "second", by="admin", v="10", user_id="id-of-member")
    assert made.body["keypair"]["user_id"] == "id-of-member"
    query = "?user_id=id-of-member"
    listed = await api("GET", f"/os-keypairs{query}", by="admin", v="10")
    assert [each["keypair"]["name"] for each in listed.body["keypairs"]] == ["mine", "second"]
    # Before 2.10 the parameter means nothing.
    assert (await api("GET", f"/os-keypairs{query}", by="admin", v="9")).body == {"keypairs": []}
    assert (await api("DELETE", f"/os-keypairs/second{query}", by="admin", v="10")).status == 204
    assert (await api("GET", "/os-keypairs/second")).status == 404


async def test_lists_have_pages_from_2_35_on(api: Api) -> None:
    for name in "gfedcba":
        await keep(api, name)
    everything = await api("GET", "/os-keypairs?limit=1", v="34")
    assert [each["keypair"]["name"] for each in everything.body["keypairs"]] == list("abcdefg")
    seen = ""
    path = "/os-keypairs?limit=3"
    while path:
        answer = await api("GET", path, v="35")
        seen += "".join(each["keypair"]["name"] for each in answer.body["keypairs"])
        links = answer.body.get("keypairs_links", [{"href": ""}])
        path = links[0]["href"].removeprefix("http://cloud/compute/v2.1")
    assert seen == "abcdefg"
    refused = await api("GET", "/os-keypairs?marker=none", v="35")
    assert (refused.status, refused.message) == (400, "Marker none could not be found.")
    assert (await api("GET", "/os-keypairs?colour=red", v="75")).status == 400


async def test_up_to_2_91_a_pair_is_generated(api: Api, tmp_path: Path) -> None:
    made = await api("POST", "/os-keypairs", {"keypair": {"name": "new"}}, v="91")
    assert made.status == 201
    pair = made.body["keypair"]
    private = tmp_path / "key"
    private.write_text(pair["private_key"])
    private.chmod(0o600)
    derived = run("ssh-keygen", "-y", "-f", str(private))
    assert derived.stdout.split()[:2] == pair["public_key"].split()[:2]
    shown = await api("GET", "/os-keypairs/new", v="91")
    assert shown.body["keypair"]["fingerprint"] == pair["fingerprint"]
    assert "private_key" not in shown.body["keypair"]
    refused = await api("POST", "/os-keypairs", {"keypair": {"name": "newer"}}, v="92")
    assert (refused.status, "'public_key' is a required property" in refused.message) == (400, True)


async def test_without_ssh_keygen_it_says_what_to_do(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    refused = await api("POST", "/os-keypairs", {"keypair": {"name": "new"}})
    assert refused.status == 503
    assert refused.message.endswith("Import a public key instead.")


async def test_names_may_hold_more_from_2_92_on(api: Api) -> None:
    for version in ("2", "91"):
        refused = await keep(api, "me@home.example", v=version)
        assert (refused.status, refused.message) == (
            400,
            "Keypair data is invalid: Keypair name contains unsafe characters",
        )
    assert (await keep(api, "me@home.example", v="92")).status == 201
    assert (await keep(api, "a-b_c d", v="2")).status == 201


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "x" * 256},
        {"name": " x"},
        {"name": "x/y"},
        {"name": "x\n"},
        {"name": None},
        {"public_key": None},
        {"public_key": 5},
        {"type": "dsa"},
        {"user_id": "x" * 65},
        {"user_id": "a\u0000b"},
        {"unknown": 1},
    ],
)
async def test_a_bad_key_pair_is_refused(api: Api, changes: dict[str, Any]) -> None:
    body = {"keypair": {"name": "mine", "public_key": ED25519} | changes}
    refused = await api("POST", "/os-keypairs", body, by="admin", v="10")
    assert refused.status == 400
    assert refused.message


async def test_a_type_is_of_2_2(api: Api) -> None:
    assert (await keep(api, type="ssh")).status == 400


@pytest.mark.parametrize("kind", [("rsa", "2048"), ("ecdsa", "256"), ("ecdsa", "521"), ("ed25519", "256")])
def test_the_fingerprint_is_ssh_keygens(kind: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "key"
    run("ssh-keygen", "-q", "-t", kind[0], "-b", kind[1], "-N", "", "-f", str(path))
    listed = run("ssh-keygen", "-lEmd5", "-f", str(path)).stdout
    key = path.with_suffix(".pub").read_text()
    for written in (key, key.strip(), " ".join(key.split()[:2])):
        assert f"MD5:{ssh_keys.fingerprint(written, 'ssh')} " in listed


def test_a_hardware_key_has_one_too() -> None:
    key = ssh("sk-ssh-ed25519@openssh.com", b"k" * 32, b"ssh:")
    assert len(ssh_keys.fingerprint(key, "ssh")) == len(COLONS)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "ssh-rsa",
        "ssh-rsa !!!",
        "ssh-rsa AAAA",
        "ssh-unknown " + RSA.split()[1],
        "ssh-ed25519 " + RSA.split()[1],
        ssh("ssh-ed25519", b"k" * 31),
        ssh("ssh-ed25519"),
        ssh("ssh-rsa", b"e", b"n", b"more"),
        "ssh-ed25519 " + base64.b64encode(_string(b"ssh-ed25519", b"k" * 32)[:-1]).decode(),
        ED25519 + "\n" + RSA,
        "command=x " + ED25519,
    ],
)
async def test_what_is_no_key_is_refused(api: Api, key: str) -> None:
    refused = await keep(api, public_key=key)
    assert (refused.status, refused.message) == (
        400,
        "Keypair data is invalid: failed to generate fingerprint",
    )


async def test_certificates_can_be_imported_and_not_generated(api: Api, tmp_path: Path) -> None:
    certificate = tmp_path / "c.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ed25519",
        "-nodes",
        "-subj",
        "/CN=x",
        "-keyout",
        "/dev/null",
    ]
    run(*command, "-out", str(certificate))
    pem = certificate.read_text()
    made = await keep(api, v="2", type="x509", public_key=pem)
    digest = hashlib.sha1(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    assert made.status == 201
    assert made.body["keypair"]["type"] == "x509"
    assert made.body["keypair"]["fingerprint"].replace(":", "") == digest
    for bad in ("x", ED25519, pem.replace("M", "N"), pem[:100]):
        assert (await keep(api, "bad", v="2", type="x509", public_key=bad)).status == 400
    generated = await api("POST", "/os-keypairs", {"keypair": {"name": "new", "type": "x509"}}, v="2")
    assert generated.status == 400
