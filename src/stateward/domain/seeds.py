"""What a new guest is told of itself: its names, who may get in, and its user's own words.

The record keeps what a request said of it (``SeedFacts``); an agent is sent the whole (``Seed``) and makes of it
what the guest can read.
"""

from __future__ import annotations

import msgspec


class SeedFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a request for the guest's first start."""

    #: The text of the key pair's public key as it was then; None without one, or with one that is not for ssh.
    public_key: str | None = None
    #: Hashed in the form of ``crypt(3)``; None unless the request itself named a password.
    password: str | None = None
    #: Whether the request asked for a drive with it, which it then gets in any case.
    config_drive: bool = False


class Seed(msgspec.Struct, frozen=True, kw_only=True):
    """All that a guest is told."""

    hostname: str
    zone: str
    public_keys: tuple[str, ...] = ()
    #: Hashed in the form of ``crypt(3)``.
    password: str | None = None
    #: Encoded in base 64, as it came.
    user_data: str | None = None
    metadata: dict[str, str] = {}


def seed_of(
    facts: SeedFacts,
    *,
    hostname: str,
    zone: str,
    user_data: str | None,
    metadata: dict[str, str],
    connected: bool,
) -> Seed | None:
    """Return what a guest is told; None when there is nothing that it would not be without it.

    Args:
        facts: what is kept for it.
        hostname: the guest's name for itself.
        zone: where it is.
        user_data: in base 64.
        metadata: its user's keys and values.
        connected: whether it has a port; it is then told how to bring that up.
    """
    if not (facts != SeedFacts() or user_data or metadata or connected):
        return None
    return Seed(
        hostname=hostname,
        zone=zone,
        public_keys=(facts.public_key,) if facts.public_key else (),
        password=facts.password,
        user_data=user_data,
        metadata=metadata,
    )
