"""Events in few words, for people."""

from __future__ import annotations

from typing import Any

import pytest

from stateward.cli.event import line


def event(kind: str, action: str | None, **detail: Any) -> dict[str, Any]:
    return {
        "type": f"org.stateward.{kind}",
        "time": "2030-01-01T00:00:00.123456Z",
        "data": {
            "action": action,
            "actor": {"kind": "member"},
            "detail": detail,
            "instance": {"name": "web\x1b1"},
        },
    }


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (event("instance.state-changed", "stop", **{"from": "active", "to": "stopped"}), "active -> stopped"),
        (event("instance.state-changed", "create", **{"from": None, "to": "building"}), "new -> building"),
        (event("operation.accepted", "create", to="building"), "create"),
        (event("operation.finished", "stop", outcome="failed", message="No."), "stop: failed: No."),
        (event("lock.placed", "lock", lock={"name": "", "reason": "Mine."}), "lock: Mine."),
    ],
)
def test_a_line(found: dict[str, Any], says: str) -> None:
    """And nothing in it acts on a terminal."""
    kind = found["type"].removeprefix("org.stateward.")
    assert line(found) == f"2030-01-01T00:00:00.123Z  {kind}  web\N{REPLACEMENT CHARACTER}1  member  {says}"
