"""``stateward operation``: what is done to servers, looked at and controlled from the command line."""

from __future__ import annotations

from typing import Any

import click

from stateward.cli.client import Client
from stateward.cli.command import as_json, command
from stateward.cli.group import Group
from stateward.cli.watch import watch as follow
from stateward.cli.words import COLUMNS, fields, order, row, table, title, write


@click.group(cls=Group)
def operation() -> None:
    """Look at what is done to servers, and control it while it waits for a guest.

    OPERATION is an operation's id, or the name or id of a server: then its running operation, else its newest.
    """


_wait = click.option("--wait", is_flag=True, help="Follow the operation to its end.")
_named = click.argument("name", metavar="OPERATION")


@operation.command("list")
@click.option("--server", metavar="NAME", help="Only those on this server.")
@click.option("--state", multiple=True, help="Only those in this state; several times for several.")
@click.option("--action", multiple=True, help="Only this action; several times for several.")
@click.option("--project", metavar="ID", help="Only those on this project's servers; for administrators.")
@click.option("--since", metavar="TIME", help="Only those begun or finished since then (ISO 8601).")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@command
def list_(
    client: Client,
    form: str,
    /,
    *,
    server: str | None,
    state: tuple[str, ...],
    action: tuple[str, ...],
    project: str | None,
    since: str | None,
    limit: int,
) -> bool:
    """List operations, newest first."""
    found = client.operations(
        instance=None if server is None else client.server(server),
        state=state,
        action=action,
        project=project,
        since=since,
        limit=str(limit),
    )
    if form == "json":
        as_json(found)
    else:
        write(table(COLUMNS, map(row, found)))
    return True


@operation.command()
@_named
@command
def show(client: Client, form: str, /, name: str) -> bool:
    """Show an operation."""
    _show(client.operation(name), form)
    return True


@operation.command("watch")
@_named
@command
def watch(client: Client, form: str, /, name: str) -> bool:
    """Follow an operation to its end; the status is 0 if it succeeded."""
    return _follow(client, client.operation(name)["id"], form, "succeeded")


@operation.command()
@_named
@click.argument("seconds", type=click.IntRange(min=1))
@_wait
@command
def extend(client: Client, form: str, /, name: str, seconds: int, *, wait: bool) -> bool:
    """Give the guest SECONDS to shut down, in all, from when it was first asked."""
    told = client.order(client.operation(name)["id"], "extend", seconds=seconds)
    return _told(client, told, form, wait=wait, wanted="succeeded")


@operation.command()
@_named
@_wait
@command
def cancel(client: Client, form: str, /, name: str, *, wait: bool) -> bool:
    """Stop waiting for the guest, and leave the server as it is."""
    told = client.order(client.operation(name)["id"], "cancel")
    return _told(client, told, form, wait=wait, wanted="cancelled")


@operation.command()
@_named
@_wait
@command
def escalate(client: Client, form: str, /, name: str, *, wait: bool) -> bool:
    """Take the guest's power now."""
    told = client.order(client.operation(name)["id"], "escalate")
    return _told(client, told, form, wait=wait, wanted="succeeded")


def _told(client: Client, told: dict[str, Any], form: str, *, wait: bool, wanted: str) -> bool:
    if wait and form == "json":
        return _follow(client, told["id"], form, wanted)
    if form == "json":
        as_json(told)
    else:
        said = f"was told to {order(told)}" if told["order"] else "is so already"
        click.echo(" ".join(filter(None, (f"{title(told)} {said}.", told["notice"]))))
    return _follow(client, told["id"], form, wanted) if wait else True


def _follow(client: Client, operation_id: str, form: str, wanted: str) -> bool:
    return bool(follow(client, operation_id, as_json=form == "json")["state"] == wanted)


def _show(found: dict[str, Any], form: str) -> None:
    if form == "json":
        as_json(found)
    else:
        write(table(("Field", "Value"), fields(found)))
