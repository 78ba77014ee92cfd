"""``stateward lock``: locks on servers and projects, from the command line."""

from __future__ import annotations

from typing import Any, Protocol
from urllib.parse import urlencode

import click

from stateward.cli.client import Client, Failed, NoSuch, NotAllowed
from stateward.cli.command import as_json, command
from stateward.cli.group import Group
from stateward.cli.times import Moment, to_second
from stateward.cli.words import printable, table, write

#: The words for what a lock blocks.
BLOCKS = ("all", "power", "stop", "start", "delete", "change")
COLUMNS = ("ID", "Kind", "Name", "Blocks", "Holder", "Placed", "Expires", "Reason", "From")
#: Of an id in a table for people: its beginning names it.
_SHORT = 8


@click.group(cls=Group)
def lock() -> None:
    """Lock servers against what should not happen to them.

    Any number of locks may hold at once; releasing one never frees another. SERVER is a name or an id.
    """


_project = click.option(
    "--project", metavar="PROJECT", help="All servers of a project (a name or an id), those made later too."
)
_reason = click.option("--reason", metavar="TEXT", help="Why; it is shown to who is refused.")


@lock.command("add")
@click.argument("server", required=False)
@_project
@click.option("--tag", metavar="TAG", help="With --project: only its servers with this tag.")
@click.option("--name", metavar="NAME", help="Its name, unique among your own.  [default: a new one]")
@click.option(
    "--block",
    type=click.Choice(BLOCKS),
    multiple=True,
    help="What it blocks; several times for several.  [default: all]",
)
@click.option(
    "--expires",
    type=Moment(),
    metavar="TIME",
    help="When it ends by itself: after 90m, 2h or 3d, or at a time (ISO 8601; UTC without a zone).",
)
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
    if server is not None and tag is not None:
        raise click.UsageError("--tag goes with --project.")
    if project is not None and overtake:
        raise click.UsageError("--overtake is for one server.")
    body |= {"tag": tag} if tag is not None else {}
    body |= {"overtake": True} if overtake else {}
    made = client.native("POST", f"{_place(client, server, project)}/locks", body)
    if form == "json":
        as_json(made)
        return True
    write(table(COLUMNS, [row(made["lock"])]))
    in_flight = made.get("in_flight")
    if in_flight is not None:
        click.echo(f"Already admitted, and going on: {in_flight['action']} ({in_flight['id']}).", err=True)
    if made.get("confirmed") is False:
        click.echo(UNCONFIRMED, err=True)
    if "instances" in made:
        click.echo(f"Servers of the project that have it now: {len(made['instances'])}.")
    return True


#: What is said when a host has not answered in time.
UNCONFIRMED = (
    "It is placed, but the server's host has not confirmed yet that what it was doing has ended: the host may be "
    "down or very busy."
)


@lock.command("list")
@click.argument("server", required=False)
@_project
@command
def list_(client: Client, form: str, /, *, server: str | None, project: str | None) -> bool:
    """List the locks of a server, those it has from its project too, or a project's."""
    if (server is None) == (project is None):
        raise click.UsageError("Name a server, or a project with --project.")
    found = client.native("GET", f"{_place(client, server, project)}/locks")["locks"]
    if form == "json":
        as_json(found)
    else:
        write(table(COLUMNS, map(row, found)))
    return True


@lock.command()
@click.argument("names", nargs=-1, metavar="[SERVER] LOCK")
@_project
@click.option("--reason", metavar="TEXT", help="Why; it is kept in the audit trail.")
@command
def release(
    client: Client, form: str, /, *, names: tuple[str, ...], project: str | None, reason: str | None
) -> bool:
    """Release one lock, by its name, its id or the beginning of that; the others hold on."""
    if len(names) != (2 if project is None else 1):
        raise click.UsageError("Name a server and a lock, or with --project a lock alone.")
    *server, name = names
    gone = let_go(client, _place(client, server[0] if server else None, project), name, reason)
    say_gone(gone, form)
    return True


def _place(client: Client, server: str | None, project: str | None) -> str:
    """Return the path of what a lock is on: a server, or else a project."""
    if server is not None:
        return f"/instances/{client.server(server)}"
    return f"/projects/{client.project(project or '')}"


class Asks(Protocol):
    """What asks the server."""

    def native(self, method: str, path: str, body: object = None) -> Any:
        """Ask Stateward's own API."""


def lock_named(client: Asks, path: str, name: str, *, inherited: bool) -> dict[str, Any]:
    """Return the lock of an id, the beginning of one, or a name.

    Args:
        client: asks.
        path: of the instance or the project.
        name: which lock.
        inherited: those that come from a project count too.

    Raises:
        Failed: there is none, or there are several.
    """
    locks: list[dict[str, Any]] = client.native("GET", f"{path}/locks")["locks"]
    there = [each for each in locks if inherited or not each["inherited"]]
    found = [each for each in there if name in {each["id"], each["name"]}] or [
        each for each in there if len(name) >= _SHORT and each["id"].startswith(name)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise Failed(
            f"Several locks are named {name!r}; use an id: {', '.join(each['id'] for each in found)}."
        )
    if any(name in {each["id"], each["name"]} or each["id"].startswith(name) for each in locks):
        raise NoSuch(f"The server has the lock {name!r} from its project; it is released there (--project).")
    known = ", ".join(called(each) for each in there)
    raise NoSuch(f"There is no lock {name!r} there; there {f'are: {known}' if known else 'is none'}.")


def let_go(client: Asks, path: str, name: str, reason: str | None, *, kind: str = "locks") -> dict[str, Any]:
    """Release the lock of an id or a name, and return what it was.

    Raises:
        Failed: there is none, or several of the name, or it is not the caller's to release.
    """
    lock = lock_named(client, path, name, inherited=path.startswith("/projects/"))
    if kind == "holds" and lock["kind"] != "hold":
        raise Failed(f"{called(lock)} is no hold but a lock; release it as one.")
    query = "" if reason is None else f"?{urlencode({'reason': reason})}"
    try:
        client.native("DELETE", f"{path}/{kind}/{lock['id']}{query}")
    except NotAllowed:
        raise NotAllowed(f"{called(lock)} is not yours to release: {_whose(lock)}.") from None
    return lock


def _whose(lock: dict[str, Any]) -> str:
    if lock["kind"] != "owner":
        return "the provider placed it"
    return "it is sealed, only the provider can" if lock["sealed"] else "only its holder and the provider can"


def called(lock: dict[str, Any]) -> str:
    """Name a lock for people."""
    return (
        f"{lock['name']} ({lock['id'][:_SHORT]})"
        if lock["name"]
        else f"the unnamed one ({lock['id'][:_SHORT]})"
    )


def say_gone(gone: dict[str, Any], form: str) -> None:
    """Say that a lock was released."""
    if form == "json":
        as_json(gone)
    else:
        click.echo(f"Released: {printable(called(gone))}.")


def row(found: dict[str, Any]) -> tuple[object, ...]:
    """Return the cells of a lock, for people."""
    where = "" if not found["inherited"] else f"project {found['project_id']}"
    return (
        found["id"][:_SHORT],
        found["kind"] + (" (sealed)" if found["sealed"] else ""),
        found["name"],
        ", ".join(found["blocks"]),
        found["holder"] or "the provider",
        to_second(found["placed_at"]),
        to_second(found["expires_at"]),
        found["reason"],
        where if found["tag"] is None else f"{where} tag {found['tag']}",
    )
