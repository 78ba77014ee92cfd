"""Events in few words, for people."""

from __future__ import annotations

from typing import Any

import pytest

from stateward.cli.event import SHOWN, line
from stateward.domain.events import EVENT_TYPES, types_of


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
        (
            event("hold.placed", "hold_clean", why="Case 7", lock={"name": "case7", "reason": "Case 7"}),
            "hold_clean: Case 7: case7",
        ),
        (
            event("operation.accepted", "create", why={"alpha": "it is maintained", "beta": "it is full"}),
            "create: alpha: it is maintained, beta: it is full",
        ),
        (event("override.asked", None, lock="the lock's id", reason="Court order."), "Court order."),
    ],
)
def test_a_line(found: dict[str, Any], says: str) -> None:
    """And nothing in it acts on a terminal."""
    kind = found["type"].removeprefix("org.stateward.")
    assert line(found) == f"2030-01-01T00:00:00.123Z  {kind}  web\N{REPLACEMENT CHARACTER}1  member  {says}"


def test_every_type_is_shown_but_logins() -> None:
    """Unless it is asked for others."""
    shown = types_of(SHOWN)
    left = [
        row.name for row in EVENT_TYPES if not any(row.type.startswith(each.rstrip("*")) for each in shown)
    ]
    assert left == ["identity.login"]


def host_event(kind: str, action: str | None, **detail: Any) -> dict[str, Any]:
    return {
        "type": f"org.stateward.{kind}",
        "time": "2030-01-01T00:00:00.123456Z",
        "data": {"action": action, "actor": {"kind": "system"}, "detail": detail},
    }


@pytest.mark.parametrize(
    ("found", "about", "says"),
    [
        (
            host_event("host.booted", None, host="alpha", instances=4, plan={"start": 3, "leave": 1}),
            "alpha",
            "4 instances, 3 to start",
        ),
        (
            host_event(
                "host.restarted", None, host="alpha", outcomes={"succeeded": 2, "failed": 1}, seconds=12.5
            ),
            "alpha",
            "2 succeeded, 1 failed, after 12.5 s",
        ),
        (
            host_event("host.restarted", None, host="alpha", outcomes={}, seconds=0.0),
            "alpha",
            "nothing to start, after 0 s",
        ),
        (host_event("alert", "host", says="Dead.", host="alpha"), "alpha", "host: Dead."),
        (host_event("alert", "host", says="Many.", hosts=["a", "b"]), "a, b", "host: Many."),
        (host_event("host.changed", "disable", host="alpha", reason="Disk."), "alpha", "disable: Disk."),
        (
            host_event("lock.placed", None, lock={"name": "databases", "scope": "project p tag db"}),
            "project p tag db",
            "databases",
        ),
        (host_event("webhook.changed", "add", webhook="pager", url="u"), "pager", "add"),
    ],
)
def test_a_line_of_a_host(found: dict[str, Any], about: str, says: str) -> None:
    """It names the host, and says what became of it."""
    kind = found["type"].removeprefix("org.stateward.")
    assert line(found) == f"2030-01-01T00:00:00.123Z  {kind}  {about}  system  {says}"
