"""Public keys: whether a text is one, its fingerprint, and making a new pair."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import ssl
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from stateward.domain.errors import HostUnavailable, Invalid

#: How many strings an SSH key of each kind consists of, its name being the first (RFC 4253, 5656, 8709).
_PARTS: Final = {
    "ssh-rsa": 3,
    "ssh-dss": 5,
    "ssh-ed25519": 2,
    "ecdsa-sha2-nistp256": 3,
    "ecdsa-sha2-nistp384": 3,
    "ecdsa-sha2-nistp521": 3,
    "sk-ssh-ed25519@openssh.com": 3,
    "sk-ecdsa-sha2-nistp256@openssh.com": 4,
}
_ED25519_BYTES: Final = 32
#: Seconds; it takes milliseconds.
_PATIENCE: Final = 10.0


def fingerprint(public_key: str, kind: str) -> str:
    """Return a public key's fingerprint as Nova shows it.

    Args:
        public_key: one line in OpenSSH's format, or a certificate in PEM.
        kind: ``ssh`` or ``x509``.

    Raises:
        Invalid: it is not such a key.
    """
    digest = _certificate(public_key) if kind == "x509" else _ssh(public_key)
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


def _ssh(public_key: str) -> str:
    try:
        name, encoded, *_comment = public_key.strip().split(" ")
        blob = base64.b64decode(encoded, validate=True)
        parts = _strings(blob)
        # More than one line would be more than one key in an authorized_keys file.
        good = public_key.strip().isprintable() and parts[0] == name.encode() and len(parts) == _PARTS[name]
    except (ValueError, LookupError):
        good, blob, parts = False, b"", []
    if not good or (parts[0] == b"ssh-ed25519" and len(parts[1]) != _ED25519_BYTES):
        raise _invalid("failed to generate fingerprint")
    return hashlib.md5(blob, usedforsecurity=False).hexdigest()


def _strings(blob: bytes) -> list[bytes]:
    """Split what SSH writes as strings that are each preceded by their length.

    Raises:
        ValueError: it is cut short.
    """
    parts: list[bytes] = []
    at = 0
    while at < len(blob):
        begin = at + 4
        at = begin + int.from_bytes(blob[at:begin], "big")
        if at > len(blob) or begin > len(blob):
            raise ValueError("cut short")
        parts.append(blob[begin:at])
    return parts


def _certificate(pem: str) -> str:
    try:
        der = ssl.PEM_cert_to_DER_cert(pem)
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
    except (ValueError, binascii.Error, ssl.SSLError):
        raise _invalid("failed to generate X509 fingerprint. Error message: it is no certificate") from None
    return hashlib.sha1(der, usedforsecurity=False).hexdigest()


def _invalid(reason: str) -> Invalid:
    return Invalid(f"Keypair data is invalid: {reason}")


async def generate() -> tuple[str, str]:
    """Make a new Ed25519 pair: the private key in OpenSSH's format, and the public key.

    Raises:
        HostUnavailable: the machine has no ``ssh-keygen``, or it failed.
    """
    return await asyncio.to_thread(_generate)


def _generate() -> tuple[str, str]:
    # The folder can be read by its owner only, and is gone before the answer is sent.
    with tempfile.TemporaryDirectory(prefix="stateward-key-") as folder:
        path = Path(folder) / "key"
        command = [
            "ssh-keygen",
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-C",
            "Generated-by-Stateward",
            "-f",
            str(path),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_PATIENCE)
        except (OSError, subprocess.SubprocessError) as error:
            raise HostUnavailable(
                f"No key pair can be generated: ssh-keygen failed ({error}). Import a public key instead."
            ) from None
        return path.read_text(), path.with_suffix(".pub").read_text()
