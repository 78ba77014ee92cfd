"""``Idempotency-Key``: a request that is sent again with its key gets the answer of the first time.

What is refused is not kept: a request that changed nothing may be tried again with the same key. A key belongs to its
user, and to a request's method, address, version, project and body, byte for byte.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.responses import Response

from stateward.clock import Clock
from stateward.domain.errors import Invalid
from stateward.operations.idempotency import Keyed, Replayed
from stateward.store import idempotency
from stateward.store.engine import Database
from stateward.store.idempotency import Kept, Ticket

HEADER: Final = "idempotency-key"
_REPLAYED: Final = "idempotency-replayed"
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


def ticket_of(user_id: str, key: str, *request: str | bytes) -> Ticket:
    """Make the ticket of a request.

    Args:
        user_id: whose request it is.
        key: the header's value.
        request: everything by which it differs from other requests, in a fixed order.

    Raises:
        Invalid: the key is not 1 to 255 visible ASCII characters.
    """
    if not _KEY.fullmatch(key):
        raise Invalid(
            "Invalid input for header Idempotency-Key: it must be 1 to 255 visible ASCII characters."
        )
    digest = hashlib.sha256()
    for part in request:
        raw = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        # With its length before it, no two lists of parts are alike.
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return Ticket(user_id=user_id, key=key, fingerprint=digest.hexdigest())


class Once:
    """One request that is done once."""

    def __init__(self, database: Database, clock: Clock, ticket: Ticket) -> None:
        """Keep the ports and the ticket."""
        self._database = database
        self._clock = clock
        self._ticket = ticket

    async def run(self, handler: Callable[[], Awaitable[Response]]) -> Response:
        """Return the answer that is kept, or else the handler's.

        The look comes first because what the handler checks may have changed since; the claim inside the handler's
        transaction is what counts.

        Raises:
            KeyReused: the key is another request's.
        """
        kept = await self._database.read(
            lambda connection: idempotency.find(connection, self._ticket, self._clock.now())
        )
        if kept is None:
            try:
                return await handler()
            except Replayed as replayed:
                kept = replayed.kept
        return Response(kept.body, kept.status, {**kept.headers, _REPLAYED: "true"})

    async def amend(self, answer: Response) -> None:
        """Keep the whole answer where more is known of it than when it was made inside the transaction.

        Killed before, the one that was made there is given again.
        """
        kept = _kept(answer)
        await self._database.write(lambda connection: idempotency.keep(connection, self._ticket, kept))

    def database(self, answer: Callable[[Any], Response]) -> Database:
        """Return the database that the handler's one write must go through.

        Args:
            answer: makes the request's answer of what the write results in; called inside its transaction.
        """
        return Keyed(self._database, self._clock, self._ticket, lambda result: _kept(answer(result)))


def _kept(response: Response) -> Kept:
    headers = {name: value for name, value in response.headers.items() if name != "content-length"}
    return Kept(status=response.status_code, headers=headers, body=bytes(response.body))
