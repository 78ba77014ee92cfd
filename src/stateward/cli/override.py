"""``stateward override``: break the glass, from the command line."""

from __future__ import annotations

from typing import Any

import click

from stateward.cli.client import Client, in_path
from stateward.cli.command import as_json, command
from stateward.cli.group import Group
from stateward.cli.lock import lock_named
from stateward.cli.times import Duration, to_second
from stateward.cli.words import table, write

_COLUMNS = ("ID", "Lock", "User", "Good", "Operations left", "Expires", "Approved by", "Reason")


@click.group(cls=Group)
def override() -> None:
    """Pass one lock that binds administrators too; it is recorded.

    SERVER is a name or an id.
    """


_server = click.argument("server")


@override.command()
@_server
@click.argument("name", metavar="LOCK")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is kept in the audit trail.")
@click.option("--operations", type=click.IntRange(1, 100), help="For so many operations.  [default: 1]")
@click.option(
    "--for", "seconds", type=Duration(), metavar="TIME", help="For so long, as 15m or 2h; 1d at most."
)
@command
def ask(
    client: Client,
    form: str,
    /,
    *,
    server: str,
    name: str,
    reason: str,
    operations: int | None,
    seconds: int | None,
) -> bool:
    """Have leave to pass LOCK (its name, its id or the beginning of that), for your own requests."""
    if operations is not None and seconds is not None:
        raise click.UsageError("Say --operations or --for, not both.")
    path = f"/instances/{client.server(server)}"
    body: dict[str, object] = {"lock": lock_named(client, path, name, inherited=True)["id"], "reason": reason}
    body |= {"operations": operations} if operations is not None else {}
    body |= {"seconds": seconds} if seconds is not None else {}
    _show(client.native("POST", f"{path}/overrides", body), form)
    return True


@override.command("list")
@_server
@command
def list_(client: Client, form: str, /, *, server: str) -> bool:
    """List who was given leave to pass a server's locks."""
    found = client.native("GET", f"/instances/{client.server(server)}/overrides")["overrides"]
    if form == "json":
        as_json(found)
    else:
        write(table(_COLUMNS, map(_row, found)))
    return True


@override.command()
@click.argument("name", metavar="OVERRIDE")
@command
def approve(client: Client, form: str, /, *, name: str) -> bool:
    """Agree, as the second administrator, to an override (its id)."""
    _show(client.native("POST", f"/overrides/{in_path(name)}/approve"), form)
    return True


def _show(found: dict[str, Any], form: str) -> None:
    if form == "json":
        as_json(found)
    else:
        write(table(_COLUMNS, [_row(found)]))


def _row(found: dict[str, Any]) -> tuple[object, ...]:
    return (
        found["id"],
        found["lock"],
        found["user_id"],
        "yes" if found["good"] else "no",
        found["operations_left"],
        to_second(found["expires_at"]),
        found["approved_by"] or ("awaited" if found["needs_approval"] else "not needed"),
        found["reason"],
    )
