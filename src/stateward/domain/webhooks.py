"""Webhooks: what each is told, how its messages are signed (Standard Webhooks 1.0), when they are tried again."""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
from typing import Final

import msgspec

from stateward.domain.errors import Invalid
from stateward.domain.events import Filter, Place, Reader

#: How webhooks may be called, as a regular expression: what can be a part of an address as it is.
NAME: Final = "[A-Za-z0-9][A-Za-z0-9._-]*"
#: What secrets begin with, as the standard has it.
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 (what every secret begins with)
#: Bytes of a secret, by the standard.
SECRET_BYTES: Final = 32
#: By what a webhook is told, as far as it can be changed: who changes one of these means it of the very next message.
TERMS: Final = ("enabled", "url", "types", "secret", "old_secret", "old_secret_until")
#: The part by which pauses are longer or shorter.
_SPREAD: Final = 0.2


class Format(enum.StrEnum):
    """How a webhook is told."""

    CLOUDEVENTS = "cloudevents"
    NOVA = "nova"


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """Where events are sent to, and how far that got. Times are seconds since the epoch."""

    id: str
    name: str
    url: str
    format: Format
    types: tuple[str, ...]
    instance_id: str | None
    project_id: str | None
    host: str | None
    #: Told what the project's members are told, not what the operator is.
    customer: bool
    secret: str
    #: The one before, which signs beside the new one for a while.
    old_secret: str | None
    old_secret_until: float | None
    enabled: bool
    disabled_reason: str | None
    #: All before this was delivered or given up.
    reached: Place
    #: Since when nothing could be delivered; None: the last attempt was good.
    failing_since: float | None
    #: Of the event after ``reached``.
    attempts: int
    next_try_at: float | None
    last_error: str | None
    delivered: int
    created_at: float

    @property
    def terms(self) -> tuple[object, ...]:
        """What of ``TERMS`` it has."""
        return tuple(getattr(self, name) for name in TERMS)

    @property
    def wanted(self) -> Filter:
        """What it is to be told."""
        return Filter(
            types=self.types, instance_id=self.instance_id, project_id=self.project_id, host=self.host
        )

    @property
    def reader(self) -> Reader:
        """As whom it is told."""
        return Reader(project_id=self.project_id if self.customer else None)

    def secrets(self, now: float) -> tuple[str, ...]:
        """Return the secrets that sign now."""
        old = self.old_secret
        if old is None or (self.old_secret_until or 0.0) <= now:
            return (self.secret,)
        return (self.secret, old)


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """An event that could not be delivered and is kept for somebody to have it tried again."""

    number: int
    webhook_id: str
    place: Place
    type: str
    attempts: int
    failed_at: float
    error: str
    #: It is to be delivered now.
    due: bool


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how long deliveries are tried, in seconds."""

    #: Of one event, until it is a dead letter.
    attempts: int = 10
    first_pause: float = 1.0
    longest_pause: float = 300.0
    #: A webhook to which nothing could be delivered for so long is disabled.
    disable_after: float = 5 * 86_400.0

    def pause(self, attempts: int) -> float:
        """Return the seconds to wait after so many failed attempts: each time twice as long, up to the longest."""
        return min(self.first_pause * float(2 ** min(attempts - 1, 30)), self.longest_pause)

    def spread(self, attempts: int, jitter: float) -> float:
        """Return such a pause, up to a fifth longer or shorter; ``jitter`` is from 0 to 1."""
        return self.pause(attempts) * (1.0 - _SPREAD + 2 * _SPREAD * jitter)

    def waits(self, next_try_at: float | None, now: float) -> bool:
        """Say whether an attempt is later; one that is later than any pause is not: the clock was set back."""
        return next_try_at is not None and now < next_try_at <= now + self.longest_pause * (1.0 + _SPREAD)


def message_id(place: Place) -> str:
    """Return the id of an event's message: the same each time it is sent."""
    return f"evt_{place.number}_{place.part}"


def check_secret(text: str) -> str:
    """Return a secret that somebody brings along.

    Raises:
        Invalid: it is not as the standard has it.
    """
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not text.startswith(SECRET_PREFIX) or not 24 <= len(key) <= 64:  # noqa: PLR2004 (the standard's)
        raise Invalid("A secret is 'whsec_' and 24 to 64 bytes in base64.")
    return text


def sign(secrets: tuple[str, ...], identifier: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of a message: one signature for each secret.

    Args:
        secrets: as ``check_secret`` returns them.
        identifier: of the message.
        timestamp: seconds since the epoch.
        body: what is sent.
    """
    signed = b"%s.%d.%s" % (identifier.encode(), timestamp, body)
    signatures: list[str] = []
    for secret in secrets:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
        digest = hmac.new(key, signed, hashlib.sha256).digest()
        signatures.append("v1," + base64.b64encode(digest).decode())
    return {
        "webhook-id": identifier,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }
