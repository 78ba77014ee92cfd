"""Whether a stream may go on: it must not outlive, or do more than, the token that opened it."""

from __future__ import annotations

import asyncio
from typing import Final

from stateward.api.faults import Unauthorized
from stateward.api.native.call import Call
from stateward.store.engine import StoreUnavailable

#: Seconds between two looks at a stream's token, however much is said on it.
_PERIOD: Final = 5.0


class Leave:
    """A stream's leave to go on, from when it was opened."""

    def __init__(self, call: Call) -> None:
        """Begin with the token of a call, which was looked at just now."""
        self._call = call
        self._clock = asyncio.get_running_loop().time
        self._checked = self._clock()

    async def lasts(self) -> bool:
        """Say whether the stream may go on; asks only when that is due.

        What is told depends on the roles and the project, so a token whose holder's roles changed ends it too: whoever
        comes again is told what is theirs now.
        """
        if self._clock() - self._checked < _PERIOD:
            return True
        was = self._call.token
        try:
            token = await self._call.services.identity.verify(self._call.request.headers["x-auth-token"])
        except (Unauthorized, StoreUnavailable):
            return False
        self._checked = self._clock()
        return (token.roles, token.is_admin, token.project_id) == (was.roles, was.is_admin, was.project_id)
