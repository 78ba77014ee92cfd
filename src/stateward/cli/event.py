"""``stateward event``: what happens, listed and followed from the command line."""

from __future__ import annotations

import json
import time
from typing import Any, Final, cast

import click

from stateward.cli.client import Client, Unreachable
from stateward.cli.command import as_json, command
from stateward.cli.group import Group
from stateward.cli.words import printable, table, write
from stateward.domain.events import EVENT_TYPES, PREFIX

#: Seconds between two attempts to reach a server that does not answer.
_AGAIN: Final = 1.0
#: Seconds after which a server that does not answer is given up.
_PATIENCE: Final = 60.0
_COLUMNS: Final = ("Time", "Event", "About", "By", "Says")
#: What is asked for when nothing is: each command logs in, and would be told of that before all else.
SHOWN: Final = tuple(
    dict.fromkeys(
        f"{kind}.*" if dot else kind
        for kind, dot, _name in (row.name.partition(".") for row in EVENT_TYPES)
        if kind != "identity"
    )
)


@click.group(cls=Group)
def event() -> None:
    """Look at what happens: states, operations, locks, verdicts, alerts (docs/events.md)."""


_type = click.option(
    "--type",
    "types",
    multiple=True,
    metavar="TYPE",
    help="Only this type, as alert or 'lock.*'; several times for several.  [default: all but 'identity.*']",
)
_server = click.option("--server", metavar="NAME", help="Only those of this server.")
_project = click.option(
    "--project", metavar="NAME", help="Only those of this project's servers; for administrators."
)
_host = click.option("--host", metavar="NAME", help="Only those of this host; for administrators.")


@event.command("list")
@_type
@_server
@_project
@_host
@click.option("--after", metavar="ID", help="Those after the event with this id.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@command
def list_(
    client: Client,
    form: str,
    /,
    *,
    types: tuple[str, ...],
    server: str | None,
    project: str | None,
    host: str | None,
    after: str | None,
    limit: int,
) -> bool:
    """List the newest events, oldest first."""
    found = client.events(**_filters(client, types, server, project, host), after=after, limit=str(limit))
    if form == "json":
        as_json(found)
    else:
        write(table(_COLUMNS, map(_row, found)))
    return True


@event.command()
@_type
@_server
@_project
@_host
@click.option("--after", metavar="ID", help="Begin after the event with this id, not now.")
@command
def watch(
    client: Client,
    form: str,
    /,
    *,
    types: tuple[str, ...],
    server: str | None,
    project: str | None,
    host: str | None,
    after: str | None,
) -> bool:
    """Follow events as they happen, one a line, over restarts of the server; end it with Ctrl-C."""
    filters = _filters(client, types, server, project, host)
    place, heard, told = after, time.monotonic(), False
    while True:
        try:
            for reached, found in client.follow_events(place, **filters):
                place, heard, told = reached, time.monotonic(), False
                if found is not None:
                    click.echo(json.dumps(found) if form == "json" else line(found))
        except KeyboardInterrupt:
            return True
        except Unreachable:
            if time.monotonic() - heard > _PATIENCE:
                raise
        if not told:
            click.echo("stateward: the server does not answer; this goes on, and nothing is lost", err=True)
            told = True
        time.sleep(_AGAIN)


def _filters(
    client: Client, types: tuple[str, ...], server: str | None, project: str | None, host: str | None
) -> dict[str, str | tuple[str, ...] | None]:
    return {
        "type": types or SHOWN,
        "instance": None if server is None else client.server(server),
        "project": None if project is None else client.project(project),
        "host": host,
    }


def line(found: dict[str, Any]) -> str:
    """Write an event in one line."""
    return "  ".join(printable(cell) for cell in _row(found) if cell)


def _row(found: dict[str, Any]) -> tuple[str, ...]:
    data = found["data"]
    return (
        found["time"][:23] + "Z",
        found["type"].removeprefix(PREFIX),
        _about(found),
        str(data["actor"]["kind"]),
        _says(found),
    )


def _about(found: dict[str, Any]) -> str:
    """Name what an event is about: a server, a host, several hosts, a webhook, a project's servers."""
    data: dict[str, Any] = found["data"]
    detail: dict[str, Any] = data["detail"]
    if "instance" in data or "subject" in found:
        return str(data.get("instance", {}).get("name") or found.get("subject", ""))
    # A project's lock is about all that has it.
    scope = _lock(detail).get("scope")
    named = detail.get("hosts") or [detail.get("host") or detail.get("webhook") or scope or ""]
    return ", ".join(map(str, named))


def _says(found: dict[str, Any]) -> str:
    """Say in few words what happened."""
    data: dict[str, Any] = found["data"]
    detail: dict[str, Any] = data["detail"]
    kind = found["type"].removeprefix(PREFIX)
    if kind == "instance.state-changed":
        return f"{detail['from'] or 'new'} -> {detail['to']}"
    if kind == "host.booted":
        return f"{detail['instances']} instances, {detail['plan']['start']} to start"
    if kind == "host.restarted":
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in detail["outcomes"].items())
        return f"{outcomes or 'nothing to start'}, after {detail['seconds']:g} s"
    words = [str(data["action"] or "")]
    words += [_words(detail[name]) for name in _TOLD if detail.get(name)]
    lock = _lock(detail)
    words += [str(lock[name]) for name in ("name", "reason") if lock.get(name)]
    # A hold's operation has its reason too.
    return ": ".join(filter(None, dict.fromkeys(words)))


def _lock(detail: dict[str, Any]) -> dict[str, Any]:
    """Return what an event says of a lock; one that names it by its id alone says nothing."""
    told = detail.get("lock")
    return cast("dict[str, Any]", told) if isinstance(told, dict) else {}


def _words(told: object) -> str:
    """Write what a detail says; why no host was good is said of each."""
    if isinstance(told, dict):
        return ", ".join(f"{name}: {why}" for name, why in cast("dict[str, Any]", told).items())
    return str(told)


#: Members of a detail that are words for people.
_TOLD: Final = ("outcome", "message", "says", "why", "reason")
