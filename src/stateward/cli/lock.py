"""``stateward lock``: locks on servers and projects, from the command line."""

from __future__ import annotations

from typing import Any, Protocol
from urllib.parse import urlencode

import click

from stateward.cli.client import Client, Failed
from stateward.cli.command import as_json, command
from stateward.cli.words import table, write

#: The words for what a lock blocks.
BLOCKS = ("all", "power", "stop", "start", "delete", "change")
COLUMNS = ("ID", "Kind", "Name", "Blocks", "Holder", "Placed", "Expires", "Reason", "From")


@click.group()
def lock() -> None:
    """Lock servers against what should not happen to them.

    Any number of locks may hold at once; releasing one never frees another. SERVER is a name or an id.
    """


_server = click.argument("server")
_project = click.option("--project", metavar="ID", help="All servers of a project, those made later too.")
_reason = click.option("--reason", metavar="TEXT", help="Why; it is shown to who is refused.")


@lock.command("add")
@click.argument("server", required=False)
@_project
@click.option("--tag", metavar="TAG", help="With --project: only its servers with this tag.")
@click.option("--name", metavar="NAME", help="Its name, unique among your own.  [default: a new one]")
@click.option("--block", type=click.Choice(BLOCKS), multiple=True, help="What it blocks.  [default: all]")
@click.option("--expires", metavar="TIME", help="When it ends by itself (ISO 8601).")
@click.option("--kind", type=click.Choice(["owner", "admin"]), help="Whose it is.  [default: by who asks]")
@click.option("--sealed", is_flag=True, help="Only the provider can release it.")
@click.option("--overtake", is_flag=True, help="End what is being done to the server.")
@click.option("--ticket", metavar="TEXT", help="The provider's own reference.")
@_reason
@command
def add(
    client: Client,
    form: str,
    /,
    *,
    server: str | None,
    project: str | None,
    tag: str | None,
    block: tuple[str, ...],
    expires: str | None,
    sealed: bool,
    overtake: bool,
    **more: str | None,
) -> bool:
    """Place a lock on a server, or on a project's servers."""
    body: dict[str, Any] = {name: value for name, value in more.items() if value is not None}
    body |= {"blocks": list(block)} if block else {}
    body |= {"expires_at": expires} if expires is not None else {}
    body |= {"sealed": True} if sealed else {}
    if (server is None) == (project is None):
        raise click.UsageError("Name a server, or a project with --project.")
    if server is not None:
        if tag is not None:
            raise click.UsageError("--tag goes with --project.")
        body |= {"overtake": True} if overtake else {}
        made = client.native("POST", f"/instances/{client.server(server)}/locks", body)
    else:
        if overtake:
            raise click.UsageError("--overtake is for one server.")
        body |= {"tag": tag} if tag is not None else {}
        made = client.native("POST", f"/projects/{project}/locks", body)
    if form == "json":
        as_json(made)
        return True
    write(table(COLUMNS, [row(made["lock"])]))
    in_flight = made.get("in_flight")
    if in_flight is not None:
        click.echo(f"Already admitted, and going on: {in_flight['action']} ({in_flight['id']}).", err=True)
    if "instances" in made:
        click.echo(f"{len(made['instances'])} servers have it now.", err=True)
    return True


@lock.command("list")
@click.argument("server", required=False)
@_project
@command
def list_(client: Client, form: str, /, *, server: str | None, project: str | None) -> bool:
    """List the locks of a server, those it has from its project too, or a project's."""
    if (server is None) == (project is None):
        raise click.UsageError("Name a server, or a project with --project.")
    path = f"/projects/{project}" if server is None else f"/instances/{client.server(server)}"
    found = client.native("GET", f"{path}/locks")["locks"]
    if form == "json":
        as_json(found)
    else:
        write(table(COLUMNS, map(row, found)))
    return True


@lock.command()
@click.argument("server", required=False)
@click.argument("name", metavar="LOCK")
@_project
@_reason
@command
def release(
    client: Client, form: str, /, *, server: str | None, name: str, project: str | None, reason: str | None
) -> bool:
    """Release one lock, by its id or its name; the others hold on."""
    if (server is None) == (project is None):
        raise click.UsageError("Name a server and a lock, or a lock with --project.")
    path = f"/projects/{project}" if server is None else f"/instances/{client.server(server)}"
    gone = let_go(client, path, name, reason)
    if form == "json":
        as_json(gone)
    return True


class Asks(Protocol):
    """What asks the server."""

    def native(self, method: str, path: str, body: object = None) -> Any:
        """Ask Stateward's own API."""


def let_go(client: Asks, path: str, name: str, reason: str | None, *, kind: str = "locks") -> dict[str, Any]:
    """Release the lock of an id or a name, and return what it was.

    Raises:
        Failed: there is none, or several of the name.
    """
    found = [
        each
        for each in client.native("GET", f"{path}/locks")["locks"]
        if name in {each["id"], each["name"]} and (not each["inherited"] or path.startswith("/projects/"))
    ]
    if len(found) != 1:
        many = "several locks" if found else "no lock of its own"
        raise Failed(
            f"There is {many} named {name!r} there; 'stateward lock list' shows them with their ids."
        )
    query = "" if reason is None else f"?{urlencode({'reason': reason})}"
    client.native("DELETE", f"{path}/{kind}/{found[0]['id']}{query}")
    return dict(found[0])


def row(found: dict[str, Any]) -> tuple[object, ...]:
    """Return the cells of a lock."""
    where = "" if not found["inherited"] else f"project {found['project_id']}"
    return (
        found["id"],
        found["kind"] + (" (sealed)" if found["sealed"] else ""),
        found["name"],
        ", ".join(found["blocks"]),
        found["holder"] or "the provider",
        found["placed_at"],
        found["expires_at"],
        found["reason"],
        where if found["tag"] is None else f"{where} tag {found['tag']}",
    )
