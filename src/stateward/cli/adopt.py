"""``stateward adopt``: bring guests that hosts have already under management."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

import click

from stateward.cli.client import Client, Operation
from stateward.cli.command import as_json, command
from stateward.cli.words import printable, table, write

_COLUMNS: Final = (
    "Host",
    "Guest",
    "ID",
    "Server",
    "Project",
    "State",
    "vCPUs",
    "Memory",
    "Disk",
    "Comes to",
    "Because",
)

#: Guests of one request: each is one transaction, which keeps others waiting.
_AT_ONCE: Final = 100


@click.command()
@click.option("--host", metavar="HOST", help="Only the guests of this host.  [default: of all hosts]")
@click.option("--name", metavar="PATTERN", help="Only those whose host calls them so, as 'web-*'.")
@click.option(
    "--project",
    metavar="PROJECT",
    help="Whose they become.  [default: as before, or as Nova wrote; else yours]",
)
@click.option("--lock", metavar="REASON", help="Lock them from their first moment, for this reason.")
@click.option("--again", is_flag=True, help="Also those that bear Stateward's mark: their record was lost.")
@click.option("--dry-run", is_flag=True, help="Only say what would come of it.")
@command
def adopt(
    client: Client,
    form: str,
    /,
    *,
    host: str | None,
    name: str | None,
    project: str | None,
    dry_run: bool,
    **more: Any,
) -> bool:
    """Make guests that hosts have already servers, as they are; what runs is not touched.

    For administrators. The status is 0 if all that were meant are servers then, or with --dry-run would be.
    """
    meant = {key: value for key, value in (("host", host), ("name", name)) if value is not None}
    found = client.native("GET", f"/strangers?{urlencode(meant)}")
    chosen: dict[str, list[str]] = {}
    for each in found["strangers"]:
        chosen.setdefault(each["host"], []).append(each["id"])
    body = {"dry_run": dry_run, **{key: value for key, value in more.items() if value}}
    if project is not None:
        body["project"] = client.project(project)
    answers = [
        client.native("POST", "/adoptions", body | {"host": at, "domains": guests[first : first + _AT_ONCE]})
        for at, guests in chosen.items()
        for first in range(0, len(guests), _AT_ONCE)
    ]
    for guest in (guest for answer in answers for guest in answer["guests"]):
        if guest["operation"] is not None:
            guest["operation"] = _ended(client, guest["operation"])
    if form == "json":
        as_json({"hosts": answers, "unasked": found["unasked"]})
    else:
        _tell(answers, found, named=name is not None)
    if name is not None and not answers and not found["known"]:
        click.echo(f"stateward: No guest is named {name!r} by its host.", err=True)
        return False
    return not found["unasked"] and all(_good(guest) for answer in answers for guest in answer["guests"])


def _ended(client: Client, operation: Operation) -> Operation:
    """Follow an operation to its end."""
    for last in client.follow(operation["id"]):
        operation = last
    return operation


def _good(guest: dict[str, Any]) -> bool:
    operation = guest["operation"]
    return guest["outcome"] != "refused" and (operation is None or operation["state"] == "succeeded")


def _tell(answers: list[dict[str, Any]], found: dict[str, Any], *, named: bool) -> None:
    rows = [_row(answer["host"], guest) for answer in answers for guest in answer["guests"]]
    if rows:
        write(table(_COLUMNS, rows))
    elif found["known"] or not named:
        click.echo("There is no such guest that is not a server already.")
    for each in found["unasked"]:
        click.echo(f"{printable(each['host'])} could not be asked: {printable(each['why'])}", err=True)


def _row(host: str, guest: dict[str, Any]) -> tuple[object, ...]:
    operation = guest["operation"]
    return (
        host,
        guest["domain"],
        guest["id"],
        guest["name"],
        guest["project_id"],
        guest["becomes"],
        guest["vcpus"],
        f"{guest['memory']} MiB",
        f"{guest['disk']} GiB",
        guest["outcome"] if operation is None else operation["state"],
        guest["why"] if operation is None else operation["message"],
    )
