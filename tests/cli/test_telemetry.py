"""What is logged, and what never is."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterator

import pytest
import structlog

from stateward.telemetry import configure


class Stream(io.StringIO):
    """Standard error, as a terminal or not."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def _fail(password: str) -> None:
    assert password
    raise ValueError("it failed")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_traceback_has_no_local_variables(*, terminal: bool) -> None:
    """They hold what people sent: passwords, tokens, whole requests."""
    stream = Stream(terminal=terminal)
    configure(verbose=False, stream=stream)
    # Not in one piece in this file either, whose lines a traceback has.
    secret = str(uuid.UUID(int=2))
    try:
        _fail(secret)
    except ValueError:
        structlog.get_logger().exception("a request failed", request="req-1")
    said = stream.getvalue()
    assert "a request failed" in said
    assert "ValueError: it failed" in said
    assert "in _fail" in said
    assert secret not in said


def test_a_line_is_json_where_no_person_reads_it() -> None:
    stream = Stream(terminal=False)
    configure(verbose=False, stream=stream)
    structlog.get_logger().debug("left out")
    structlog.get_logger().info("verdict", instance="a")
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {"event": "verdict", "instance": "a", "level": "info"}
