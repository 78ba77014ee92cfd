"""``stateward usage``: how long servers were in which state, for billing (R16)."""

from __future__ import annotations

import csv
import io
from typing import Any, Final
from urllib.parse import urlencode

import click

from stateward.cli.client import Client
from stateward.cli.command import as_json, command_in
from stateward.cli.words import table, write

_TOTALS: Final = ("Server", "ID", "Project", "Kind", "State", "Seconds")
_INTERVALS: Final = ("Server", "ID", "Project", "Kind", "State", "Began", "Ended")
_KINDS: Final = ("recorded", "observed")


@click.command()
@click.option("--project", metavar="NAME", help="Only this project's servers; for administrators.")
@click.option("--server", metavar="NAME", help="Only this server.")
@click.option(
    "--from", "begin", metavar="TIME", help="From this time on (ISO 8601).  [default: the month's begin]"
)
@click.option("--to", "end", metavar="TIME", help="Up to this time (ISO 8601).  [default: now]")
@click.option("--intervals", is_flag=True, help="Each state's exact begin and end, instead of sums.")
@click.option("--observed", is_flag=True, help="Also what hosts saw of the guests, beside what was recorded.")
@command_in("table", "json", "csv")
def usage(
    client: Client,
    form: str,
    /,
    *,
    project: str | None,
    server: str | None,
    begin: str | None,
    end: str | None,
    intervals: bool,
    observed: bool,
) -> bool:
    """Say how long each server was in which state, in seconds."""
    query = {
        "project": None if project is None else client.project(project),
        "instance": None if server is None else client.server(server),
        "from": begin,
        "to": end,
        "intervals": "true" if intervals else None,
    }
    found = _all(client, {name: value for name, value in query.items() if value is not None})
    if form == "json":
        as_json(found)
        return True
    kinds = _KINDS if observed else _KINDS[:1]
    columns = _INTERVALS if intervals else _TOTALS
    rows = [row for each in found for kind in kinds for row in _rows(each, kind, exact=intervals)]
    if form == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([[name.lower() for name in columns], *rows])
        click.echo(text.getvalue(), nl=False)
    else:
        write(table(columns, rows))
    return True


def _all(client: Client, query: dict[str, str]) -> list[dict[str, Any]]:
    """Return every page."""
    found: list[dict[str, Any]] = []
    path = f"/usage?{urlencode(query)}"
    while True:
        page: dict[str, Any] = client.native("GET", path)
        found += page["instances"]
        following: str | None = page["links"]["next"]
        if following is None:
            return found
        path = f"/usage?{following.partition('?')[2]}"


def _rows(used: dict[str, Any], kind: str, *, exact: bool) -> list[tuple[object, ...]]:
    who = (used["instance_name"], used["instance_id"], used["project_id"], kind)
    if exact:
        return [(*who, each["state"], each["began"], each["ended"]) for each in used[f"{kind}_intervals"]]
    return [(*who, state, f"{seconds:.3f}") for state, seconds in used[kind].items()]
