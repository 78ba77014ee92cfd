"""The seed a guest reads at its first start: a small CD image as cloud-init's NoCloud data source finds it.

What it holds is YAML, written as JSON, which is YAML too as long as some characters are escaped. The same seed
does not give the same bytes, because the library notes the time: ``is_of`` tells whose an image is by a digest
that the image carries.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
from pycdlib.pycdlib import PyCdlib

from stateward.domain.networks import Port
from stateward.domain.seeds import Seed

#: The name of the volume, by which cloud-init finds it among a guest's disks.
LABEL: Final = "cidata"

#: What JSON lets stand as it is and YAML does not.
_NOT_IN_YAML: Final = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")

#: cloud-init reads a file without these words as text that it does not know what to do with.
_CLOUD_CONFIG: Final = "#cloud-config\n"

#: Where an ISO 9660 image has its primary volume descriptor, and where in that the application's own words are.
_DESCRIPTOR_AT, _WORDS_AT, _WORDS_LENGTH = 16 * 2048, 574, 128


def documents(instance_id: str, seed: Seed, ports: Iterable[Port]) -> dict[str, bytes]:
    """Return the files of a seed, by their names."""
    about: dict[str, Any] = {
        "instance-id": instance_id,
        "local-hostname": seed.hostname,
        "availability-zone": seed.zone,
        "public-keys": seed.public_keys,
        "meta": seed.metadata,
    }
    files = {"meta-data": _yaml(about).encode()}
    files["user-data"] = (
        base64.b64decode(seed.user_data) if seed.user_data else f"{_CLOUD_CONFIG}{{}}\n".encode()
    )
    if seed.password is not None:
        # Not in the user's own data, which may be of any kind; cloud-init reads both.
        access = {"password": seed.password, "chpasswd": {"expire": False}}
        files["vendor-data"] = (_CLOUD_CONFIG + _yaml(access)).encode()
    cards = {
        f"port{index}": {"match": {"macaddress": port.mac}, "dhcp4": True, "dhcp6": False}
        for index, port in enumerate(ports)
    }
    if cards:
        files["network-config"] = _yaml({"version": 2, "ethernets": cards}).encode()
    return files


def _yaml(content: object) -> str:
    text = json.dumps(content, ensure_ascii=False, indent=1)
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def digest(files: dict[str, bytes]) -> str:
    """Return what tells a seed from others."""
    return hashlib.sha256(msgspec.msgpack.encode(files, order="deterministic")).hexdigest()


def image(files: dict[str, bytes]) -> bytes:
    """Return the CD image of a seed; it has both kinds of long names, for guests that read only one."""
    iso = PyCdlib()
    iso.new(
        interchange_level=3,
        vol_ident=LABEL,
        app_ident_str=digest(files),
        rock_ridge="1.09",
        joliet=3,
    )
    for number, (name, content) in enumerate(sorted(files.items())):
        iso.add_fp(
            io.BytesIO(content),
            len(content),
            f"/F{number}.;1",
            rr_name=name,
            joliet_path=f"/{name}",
            file_mode=0o100400,
        )
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()


def is_of(path: Path, files: dict[str, bytes]) -> bool:
    """Say whether a file is the image of a seed; one that is not there is not."""
    try:
        with path.open("rb") as file:
            file.seek(_DESCRIPTOR_AT + _WORDS_AT)
            words = file.read(_WORDS_LENGTH)
    except FileNotFoundError:
        return False
    return words.decode(errors="replace").rstrip() == digest(files)
