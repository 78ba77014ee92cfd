"""The embedded identity service: gives tokens out, verifies them on every request, and takes them back at once.

Verifying is on the path of each request to any API, so verified tokens are remembered. What is remembered counts
only as long as nothing in the directory has changed: every change goes through ``Identity.change``, which counts
a generation in its own transaction and forgets all tokens when that is durable. Another process's change is
noticed by looking at the generation once a second.
"""

from __future__ import annotations

import secrets
from typing import Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from stateward.api.faults import Unauthorized
from stateward.api.identity.passwords import Passwords
from stateward.api.identity.tokens import Claims, Seal, Token
from stateward.clock import Clock
from stateward.store import identity_standing, operations
from stateward.store.engine import Database, Work
from stateward.store.identity import count_change, generation
from stateward.store.identity_standing import Standing
from stateward.store.rows import is_duplicate

T = TypeVar("T")

#: Seconds for which a change that another process made may go unnoticed.
_TRUST_SECONDS: Final = 1.0
#: Tokens remembered at most; a login for every request would otherwise fill the memory.
_REMEMBERED: Final = 20_000


class Identity:
    """Who is asking, and what they may do."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        secret: bytes,
        *,
        token_seconds: float = 3600.0,
        passwords: Passwords | None = None,
    ) -> None:
        """Serve the users of a database.

        Args:
            database: with the identity tables in it.
            clock: tells when tokens expire.
            secret: signs the tokens; the same for all processes of a deployment, and kept over restarts if tokens
                are to outlive them.
            token_seconds: how long a token is good.
            passwords: hashes them; tests hand in a cheaper one.
        """
        self.database = database
        self.clock = clock
        self.passwords = passwords or Passwords()
        self._seal = Seal(secret)
        self._token_seconds = token_seconds
        self._known: dict[str, Token] = {}
        #: The generation that what is remembered belongs to, and when that was last looked at.
        self._generation = -1
        self._looked_at = float("-inf")

    async def verify(self, token: str) -> Token:
        """Return what a token says, if it is good now.

        Raises:
            Unauthorized: it is not; the sentence says why.
            StoreUnavailable: that cannot be known now.
        """
        now = self.clock.now()
        # A clock set back must not make what is remembered trusted for longer.
        if not 0 <= now - self._looked_at < _TRUST_SECONDS:
            await self._look_for_changes(now)
        known = self._known.get(token)
        if known is not None and known.expires_at > now:
            return known
        return await self._examine(token, now)

    async def issue(
        self,
        *,
        user_id: str,
        project_id: str | None,
        epoch: int,
        methods: tuple[str, ...],
        expires_by: float | None = None,
        application_credential_id: str | None = None,
    ) -> tuple[str, Token]:
        """Give a token to a user who has proved who they are.

        Args:
            user_id: the user.
            project_id: what the token is for; None for nothing in particular.
            epoch: the user's, as it was when they proved it.
            methods: how they did.
            expires_by: seconds since the epoch when the token must end at the latest.
            application_credential_id: what they proved it with, if it was one.

        Raises:
            Unauthorized: the user may not have a token, or not for this project.
        """
        now = self.clock.now()
        expires_at = now + self._token_seconds
        claims = Claims(
            user_id=user_id,
            project_id=project_id,
            issued_at=now,
            expires_at=expires_at if expires_by is None else min(expires_at, expires_by),
            audit_id=secrets.token_urlsafe(16),
            epoch=epoch,
            methods=methods,
            application_credential_id=application_credential_id,
        )
        sealed = self._seal.close(claims)
        return sealed, await self.verify(sealed)

    async def record_login(self, token: Token, request_id: str) -> None:
        """Put an administrator's login into the audit trail, before the token is handed out (B7).

        Raises:
            StoreUnavailable: it cannot be recorded; then there must be no login.
        """
        await self.database.write(
            lambda connection: operations.record(
                connection,
                at=token.issued_at,
                event="login",
                actor=token.actor(request_id),
                instance_id=None,
                detail={"methods": token.methods, "token": token.audit_id},
            )
        )

    async def revoke(self, token: Token) -> None:
        """Make a token worthless, at once and in every process."""
        now = self.clock.now()
        await self.change(
            lambda connection: identity_standing.revoke(connection, token.audit_id, token.expires_at, now)
        )

    async def change(self, work: Work[T]) -> T:
        """Change the directory; when this returns, no token counts for more than the directory says.

        Raises:
            StoreUnavailable: nothing was changed.
        """

        def counted(connection: sa.Connection) -> tuple[T, int]:
            result = work(connection)
            count_change(connection)
            return result, generation(connection)

        result, number = await self.database.write(counted)
        self._known.clear()
        self._generation = max(self._generation, number)
        return result

    async def is_bootstrapped(self) -> bool:
        """Tell whether the first-start data are there, so that passwords need be made only once."""
        return await self.database.read(identity_standing.is_bootstrapped)

    async def bootstrap(self, *, admin_password: str, demo_password: str) -> bool:
        """Write the first-start data; False when they were there, and then nothing is touched.

        There are then the domain ``Default``, the roles admin, member and reader, and the users ``admin`` (admin
        of the project ``admin``) and ``demo`` (member of the project ``demo``).
        """
        if await self.is_bootstrapped():
            return False
        hashes = {
            "admin": await self.passwords.hash(admin_password),
            "demo": await self.passwords.hash(demo_password),
        }
        try:
            await self.change(lambda connection: identity_standing.bootstrap(connection, hashes))
        except IntegrityError as error:
            # Another process did it between the look and the write.
            if is_duplicate(error):
                return False
            raise
        return True

    def close(self) -> None:
        """Let go of the threads."""
        self.passwords.close()

    async def _look_for_changes(self, now: float) -> None:
        number = await self.database.read(generation)
        if number != self._generation:
            self._known.clear()
            # Never down: this may have been read before a change that is answered by now, and an examination read
            # then must not be remembered. A database that went back (a standby took over) only has every token
            # examined each time until it has caught up.
            self._generation = max(self._generation, number)
        self._looked_at = now

    async def _examine(self, token: str, now: float) -> Token:
        claims = self._seal.open(token)
        if claims.expires_at <= now:
            raise Unauthorized("The token has expired.")
        credential = claims.application_credential_id

        def look(
            connection: sa.Connection,
        ) -> tuple[int, Standing | None, bool, frozenset[str] | None]:
            # The generation first: a change that comes in between then makes the rest not be remembered.
            return (
                generation(connection),
                identity_standing.standing(connection, claims.user_id, claims.project_id),
                identity_standing.is_revoked(connection, claims.audit_id),
                None
                if credential is None
                else identity_standing.credential_roles(connection, credential, now),
            )

        number, standing, revoked, limited_to = await self.database.read(look)
        if revoked:
            raise Unauthorized("The token was revoked.")
        if credential is not None and limited_to is None:
            raise Unauthorized("The application credential is gone or has expired.")
        verified = _judge(claims, standing, limited_to)
        if number == self._generation:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[token] = verified
        return verified


def _judge(claims: Claims, standing: Standing | None, limited_to: frozenset[str] | None) -> Token:
    """Compare what a token says with how things stand.

    Raises:
        Unauthorized: it is not good any more.
    """
    if standing is None:
        raise Unauthorized("The token's user or project does not exist.")
    if not standing.user_enabled:
        raise Unauthorized("The token's user is disabled.")
    if standing.epoch != claims.epoch:
        raise Unauthorized("The user's password was changed after the token was issued.")
    if not standing.project_enabled:
        raise Unauthorized(f"The project {claims.project_id} is disabled.")
    roles = standing.roles if limited_to is None else standing.roles & identity_standing.implied(limited_to)
    if claims.project_id is not None and not roles:
        raise Unauthorized(f"User {claims.user_id} has no access to project {claims.project_id}.")
    return Token(
        user_id=claims.user_id,
        user_name=standing.user_name,
        user_domain_id=standing.user_domain_id,
        user_domain_name=standing.user_domain_name,
        project_id=claims.project_id,
        project_name=standing.project_name,
        project_domain_id=standing.project_domain_id,
        project_domain_name=standing.project_domain_name,
        roles=roles,
        is_admin="admin" in roles,
        issued_at=claims.issued_at,
        expires_at=claims.expires_at,
        audit_id=claims.audit_id,
        methods=claims.methods,
        application_credential_id=claims.application_credential_id,
        epoch=claims.epoch,
    )
