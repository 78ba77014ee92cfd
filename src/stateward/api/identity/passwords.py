"""Passwords: hashed with bcrypt in threads of their own, because one check takes about 50 milliseconds of CPU."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import bcrypt

from stateward.domain.errors import Invalid

#: bcrypt's cost: 2 ** 10 rounds.
_ROUNDS: Final = 10
#: Checked when there is no user of the name, so that the time of an answer does not tell which names exist.
#: Nobody knows a password for it.
_NOBODY: Final = "$2b$10$cnUhNLw0U9IoouwUwFa3TekPJQ8whEIrXCc/CXuxuz69d4iUsHQFq"


#: Bytes of a password that bcrypt reads.
_LONGEST: Final = 72


class Passwords:
    """Hashes and checks passwords, a few at a time: a flood of logins waits here and leaves CPUs to the rest."""

    def __init__(self, *, rounds: int = _ROUNDS, threads: int = 2) -> None:
        """Make the threads.

        Args:
            rounds: bcrypt's cost for new hashes, as a power of two.
            threads: checks at the same time.
        """
        self._rounds = rounds
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="passwords")

    async def hash(self, password: str) -> str:
        """Return the hash to keep of a password."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._hash, password)

    async def hash_for_guest(self, password: str) -> str:
        """Return the hash of a password as guests know it: bcrypt's first form, which all of them read.

        Raises:
            Invalid: it is longer than the 72 bytes that bcrypt reads, or has a NUL character.
        """
        raw = password.encode("utf-8", "surrogatepass")
        if len(raw) > _LONGEST or b"\0" in raw:
            raise Invalid(f"adminPass has at most {_LONGEST} bytes, and no NUL character.")
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._hash_for_guest, raw)

    async def matches(self, password: str, hashed: str | None) -> bool:
        """Tell whether a password is the one of a hash; it takes as long when there is no hash."""
        check = asyncio.get_running_loop().run_in_executor(
            self._threads, bcrypt.checkpw, _condensed(password), (hashed or _NOBODY).encode()
        )
        return await check and hashed is not None

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False)

    def _hash_for_guest(self, raw: bytes) -> str:
        return bcrypt.hashpw(raw, bcrypt.gensalt(self._rounds, prefix=b"2a")).decode()

    def _hash(self, password: str) -> str:
        return bcrypt.hashpw(_condensed(password), bcrypt.gensalt(self._rounds)).decode()


def _condensed(password: str) -> bytes:
    """Bring a password of any length to fewer than the 72 bytes bcrypt takes, without NUL bytes."""
    return base64.b64encode(hashlib.sha256(password.encode("utf-8", "surrogatepass")).digest())
