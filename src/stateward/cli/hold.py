"""``stateward hold``: legal holds, from the command line."""

from __future__ import annotations

import click

from stateward.cli.client import Client
from stateward.cli.command import as_json, command
from stateward.cli.group import Group
from stateward.cli.lock import COLUMNS, UNCONFIRMED, let_go, row, say_gone
from stateward.cli.watch import watch as follow
from stateward.cli.words import table, title, write


@click.group(cls=Group)
def hold() -> None:
    """Hold servers: off, and kept off, whoever asks; for administrators.

    SERVER is a name or an id.
    """


_server = click.argument("server")


@hold.command()
@_server
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is shown to who is refused.")
@click.option("--ticket", metavar="TEXT", help="The provider's own reference.")
@click.option("--name", metavar="NAME", help="Its name.  [default: a new one]")
@click.option(
    "--shutdown",
    type=click.Choice(["clean", "forced", "suspend", "none"]),
    default="clean",
    show_default=True,
    help="How the guest goes off; none leaves it as it is.",
)
@click.option(
    "--timeout", type=click.IntRange(min=0), metavar="SECONDS", help="What the guest gets for that."
)
@click.option("--wait", is_flag=True, help="Follow it until the guest is off.")
@command
def place(
    client: Client, form: str, /, *, server: str, wait: bool, timeout: int | None, **more: str | None
) -> bool:
    """Place a hold; what is being done to the server is overtaken."""
    body: dict[str, object] = {name: value for name, value in more.items() if value is not None}
    if timeout is not None:
        body["timeout"] = timeout
    made = client.native("POST", f"/instances/{client.server(server)}/holds", body)
    operation = made["operation"]
    if form == "json" and not wait:
        as_json(made)
    elif form != "json":
        write(table(COLUMNS, [row(made["hold"])]))
    if not made["confirmed"]:
        click.echo(UNCONFIRMED, err=True)
    if not wait:
        if form != "json" and not operation["final"]:
            click.echo(f"{title(operation)} goes on: stateward operation watch {operation['id']}", err=True)
        return True
    return bool(follow(client, operation["id"], as_json=form == "json")["state"] == "succeeded")


@hold.command()
@_server
@click.argument("name", metavar="HOLD")
@click.option("--reason", metavar="TEXT", help="Why; it is kept in the audit trail.")
@command
def release(client: Client, form: str, /, *, server: str, name: str, reason: str | None) -> bool:
    """Release a hold, by its name, its id or the beginning of that; the guest stays as it is."""
    gone = let_go(client, f"/instances/{client.server(server)}", name, reason, kind="holds")
    say_gone(gone, form)
    return True
