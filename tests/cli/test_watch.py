"""Watching, without a server: what is told, over breaks of the stream, and what never reaches a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest

from stateward.cli.client import Client, Operation, Unreachable
from stateward.cli.watch import watch
from stateward.cli.words import printable


def operation(state: str, **members: Any) -> Operation:
    """Make an operation as the server sends it."""
    final = state not in {"accepted", "running"}
    return {
        "id": "i",
        "action": "stop",
        "instance_name": "web",
        "state": state,
        "final": final,
        "started_at": "2026-01-01T00:00:00.000000Z",
        "finished_at": "2026-01-01T00:00:21.300000Z" if final else None,
        "message": None,
        "progress": None,
        "order": None,
        "shutdown": None,
    } | members


class Broken:
    """A client whose streams end as they are told."""

    def __init__(self, *streams: Sequence[Operation | Exception]) -> None:
        self._streams = list(streams)

    def follow(self, _operation_id: str) -> Iterator[Operation]:
        """Give the next stream."""
        for each in self._streams.pop(0):
            if isinstance(each, Exception):
                raise each
            yield each


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let waits pass at once, and the clock with them."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(waits))
    return waits


def test_a_server_that_comes_back(waited: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """Its stream begins with what is so then; who watches is told once that it was away."""
    client = Broken(
        [operation("accepted"), Unreachable("gone")],
        [Unreachable("gone")],
        [],
        [operation("running"), operation("succeeded", message="it went off")],
    )
    assert watch(cast("Client", client), "i")["state"] == "succeeded"
    written = capsys.readouterr()
    assert written.out.splitlines() == [
        "stop of web: waits for its host",
        "stop of web: waits for its host",
        "stop of web succeeded after 21.3 s: it went off",
    ]
    assert written.err == ("stateward: the server does not answer; the operation goes on, and so does this\n")
    assert waited == [0.5] * 3


def test_a_server_that_does_not_come_back(waited: list[float]) -> None:
    """It is given two minutes."""
    client = Broken([operation("accepted")], *([Unreachable("gone")] for _ in range(1000)))
    with pytest.raises(Unreachable, match="gone"):
        watch(cast("Client", client), "i")
    assert 120 < sum(waited) < 121


def test_what_acts_on_terminals() -> None:
    """A guest's words reach people, and never their terminal's controls."""
    assert printable("a\x1b[2Jb\r\x07\u202ec é") == "a\ufffd[2Jb\ufffd\ufffd\ufffdc é"
    assert printable(None) == ""
