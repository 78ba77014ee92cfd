"""Tokens: what a verified one says, and how the ones given out are sealed.

A token is a few signed fields, so that giving one out writes nothing. It names its user and project and never
their roles: those are read when it is verified.
"""

from __future__ import annotations

import hashlib

import msgspec
from itsdangerous import BadSignature, Signer
from itsdangerous.encoding import base64_decode, base64_encode
from itsdangerous.exc import BadData

from stateward.api.faults import Unauthorized
from stateward.domain.locks import ActorKind
from stateward.domain.records import Actor


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token that is good now: who holds it, for which project, and what they may do there."""

    user_id: str
    user_name: str
    #: None: the token is for no project, and good only to ask for another.
    project_id: str | None
    project_name: str | None
    #: With those that others imply.
    roles: frozenset[str]
    #: Has the role admin on the token's project, whichever that is.
    is_admin: bool
    #: Seconds since the epoch, both.
    issued_at: float
    expires_at: float
    audit_id: str
    methods: tuple[str, ...] = ("password",)
    user_domain_id: str = "default"
    user_domain_name: str = "Default"
    project_domain_id: str | None = None
    project_domain_name: str | None = None
    #: Set for a token that an application credential was exchanged for.
    application_credential_id: str | None = None
    #: The user's, when it was issued.
    epoch: int = 0

    @property
    def is_member(self) -> bool:
        """May change what belongs to the project."""
        return "member" in self.roles

    @property
    def is_reader(self) -> bool:
        """May see what belongs to the project."""
        return "reader" in self.roles

    def actor(self, request_id: str) -> Actor:
        """Return its holder as the audit trail names them; which locks bind them follows from its kind."""
        return Actor(
            kind=ActorKind.ADMIN if self.is_admin else ActorKind.MEMBER,
            user_id=self.user_id,
            project_id=self.project_id or "",
            request_id=request_id,
        )


class Claims(msgspec.Struct, frozen=True, array_like=True):
    """What is in a token, signed; an array, so that names do not lengthen it."""

    user_id: str
    project_id: str | None
    issued_at: float
    expires_at: float
    audit_id: str
    #: The user's epoch when it was issued: a changed password ends it.
    epoch: int
    methods: tuple[str, ...]
    application_credential_id: str | None


class Seal:
    """Signs claims and checks signatures."""

    def __init__(self, secret: bytes) -> None:
        """Sign with a secret; whoever has it can make any token."""
        self._signer = Signer(
            secret, salt=b"stateward token", key_derivation="hmac", digest_method=hashlib.sha256
        )

    def close(self, claims: Claims) -> str:
        """Make a token that is safe in headers and addresses."""
        return self._signer.sign(base64_encode(msgspec.msgpack.encode(claims))).decode("ascii")

    def open(self, token: str) -> Claims:
        """Return what a token says; nothing is known yet of whether it still counts.

        Raises:
            Unauthorized: it was not made with this secret, or not at all.
        """
        try:
            return _DECODER.decode(base64_decode(self._signer.unsign(token)))
        except (BadSignature, BadData, msgspec.DecodeError, UnicodeError):
            raise Unauthorized("The token was not issued by this service.") from None


_DECODER = msgspec.msgpack.Decoder(Claims)
