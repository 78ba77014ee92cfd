"""A server is killed around the commit of a request with a key; the request is sent again, and was done once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import Admin, NoAnswer, ServerProcess

#: Ends the process by signal 9 in the middle of a keyed write: before its commit, or between that and the answer.
_PROGRAM = """
import os, signal, sys
from stateward.cli.main import main
from stateward.operations.idempotency import Keyed
write, when = Keyed.write, sys.argv.pop(1)
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
async def killed(self, work):
    if when == "before":
        answer = self._answer
        self._answer = lambda result: (answer(result), kill())
    result = await write(self, work)
    kill()
Keyed.write = killed
main()
"""


@pytest.mark.parametrize("when", ["before", "after"])
async def test_killed_around_the_commit(tmp_path: Path, when: str) -> None:
    """Before it, nothing had happened; after it, the second request gets the first one's operation."""
    arguments = ("--driver", "simulated")
    program = (sys.executable, "-c", _PROGRAM, when)
    body = {"server": {"name": "keyed", "imageRef": "", "flavorRef": "tiny-one", "networks": "none"}}
    async with ServerProcess(tmp_path, arguments, program=program) as server:
        admin = Admin(server, await server.log_in("admin"))
        await admin.hosts_up()
        body["server"]["imageRef"] = await admin.make_image("image", {})
        await admin.make_flavor("tiny-one", ram=64)
        with pytest.raises(NoAnswer):
            await admin.ask("POST", "/compute/v2.1/servers", body, idempotency_key="k")
        await server.killed()
    async with ServerProcess(tmp_path, arguments) as server:
        admin = Admin(server, admin.login)
        await admin.hosts_up()
        made = await admin.settled(seconds=30)
        assert len(made) == (1 if when == "after" else 0)
        again = await admin.ask("POST", "/compute/v2.1/servers", body, idempotency_key="k")
        assert again.status == 202, again
        assert again.headers.get("idempotency-replayed") == ("true" if when == "after" else None)
        if when == "after":
            assert set(made) == {again.body["server"]["id"]}
        assert set(await admin.settled(seconds=30)) == {again.body["server"]["id"]}
        await server.stop()
        assert server.faults() == []
