"""``stateward webhook``: where events are sent to."""

from __future__ import annotations

import re
from typing import Any, Final

import click

from stateward.cli.client import Client, NoSuch
from stateward.cli.command import as_json, command
from stateward.cli.group import Group
from stateward.cli.times import Duration, to_second
from stateward.cli.words import table, write
from stateward.domain.webhooks import NAME

_COLUMNS: Final = ("Name", "Address", "Events", "Enabled", "Delivered", "Dead letters", "Trouble")


@click.group(cls=Group)
def webhook() -> None:
    """Have events sent somewhere, signed as Standard Webhooks says; for administrators (docs/telling.md).

    WEBHOOK is a webhook's name or id.
    """


_named = click.argument("name", metavar="WEBHOOK")


@webhook.command()
@click.argument("name")
@click.argument("url")
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="TYPE",
    help="Only this type, as alert or 'lock.*'; several times.",
)
@click.option("--server", metavar="NAME", help="Only events of this server.")
@click.option("--project", metavar="NAME", help="Only events of this project's servers.")
@click.option("--host", metavar="NAME", help="Only events of this host.")
@click.option(
    "--customer", is_flag=True, help="Send what the project's members are told, not what the operator is."
)
@click.option(
    "--as",
    "how",
    type=click.Choice(["cloudevents", "nova"]),
    default="cloudevents",
    show_default=True,
    help="The format.",
)
@click.option("--secret", metavar="WHSEC", help="Sign with this secret, not a new one.")
@command
def add(
    client: Client,
    form: str,
    /,
    *,
    name: str,
    url: str,
    types: tuple[str, ...],
    server: str | None,
    project: str | None,
    host: str | None,
    customer: bool,
    how: str,
    secret: str | None,
) -> bool:
    """Have events sent to URL; prints the secret, this once."""
    body: dict[str, Any] = {"name": name, "url": url, "format": how, "types": types, "customer": customer}
    given = {
        "instance": None if server is None else client.server(server),
        "project": None if project is None else client.project(project),
        "host": host,
        "secret": secret,
    }
    made = client.native(
        "POST", "/webhooks", body | {key: value for key, value in given.items() if value is not None}
    )
    _shown(made, form)
    return True


@webhook.command("list")
@command
def list_(client: Client, form: str, /) -> bool:
    """List webhooks."""
    found = client.native("GET", "/webhooks")["webhooks"]
    if form == "json":
        as_json(found)
    else:
        write(table(_COLUMNS, map(_row, found)))
    return True


@webhook.command()
@_named
@command
def show(client: Client, form: str, /, name: str) -> bool:
    """Show a webhook."""
    _shown(client.native("GET", _path(name)), form)
    return True


@webhook.command("set")
@_named
@click.option("--url", help="Its address.")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Only these types from now on.")
@click.option(
    "--enable/--disable",
    "enabled",
    default=None,
    help="Whether it is told; what it missed comes when it is again.",
)
@command
def set_(
    client: Client, form: str, /, name: str, *, url: str | None, types: tuple[str, ...], enabled: bool | None
) -> bool:
    """Change a webhook, or enable it again."""
    changes: dict[str, Any] = {"url": url, "types": types or None, "enabled": enabled}
    body = {key: value for key, value in changes.items() if value is not None}
    if not body:
        raise click.UsageError("Say what to change: --url, --type, --enable or --disable.")
    _shown(client.native("PATCH", _path(name), body), form)
    return True


@webhook.command()
@_named
@command
def test(client: Client, form: str, /, name: str) -> bool:
    """Send a webhook something now; the status is 1 if it was not taken."""
    done = client.native("POST", _path(name, "test"), {})
    if form == "json":
        as_json(done)
    else:
        click.echo(f"Webhook {name} took it.")
    return True


@webhook.command()
@_named
@click.option(
    "--overlap", type=Duration(), default="1d", show_default=True, help="How long the old secret signs too."
)
@command
def rotate(client: Client, form: str, /, name: str, *, overlap: int) -> bool:
    """Give a webhook a new secret; prints it, this once."""
    _shown(client.native("POST", _path(name, "rotate"), {"overlap": overlap}), form)
    return True


@webhook.command()
@_named
@command
def delete(client: Client, _form: str, /, name: str) -> bool:
    """Delete a webhook and its dead letters."""
    client.native("DELETE", _path(name))
    return True


@webhook.command("dead-letters")
@_named
@command
def dead_letters(client: Client, form: str, /, name: str) -> bool:
    """List what could not be delivered."""
    found = client.native("GET", _path(name, "dead-letters"))["letters"]
    if form == "json":
        as_json(found)
    else:
        rows = (
            (each["number"], each["event"], each["type"], to_second(each["failed_at"]), each["error"])
            for each in found
        )
        write(table(("Number", "Event", "Type", "Failed", "Says"), rows))
    return True


@webhook.command()
@_named
@click.argument("letters", type=click.IntRange(1, 2**63 - 1), nargs=-1)
@command
def redeliver(client: Client, form: str, /, name: str, letters: tuple[int, ...]) -> bool:
    """Deliver dead letters again: those with these numbers, or all. One that is not there: none, and status 1."""
    done = client.native("POST", _path(name, "redeliver"), {"letters": letters or None})
    if form == "json":
        as_json(done)
    else:
        click.echo(f"{done['letters']} dead letters are delivered again.")
    return True


def _path(name: str, what: str = "") -> str:
    """Return the address of a webhook, or of something of it.

    Raises:
        NoSuch: no webhook can be called so; the server would take it for another address.
    """
    if not re.fullmatch(NAME, name):
        raise NoSuch(f"Webhook {name} could not be found.")
    return f"/webhooks/{name}" + (f"/{what}" if what else "")


def _shown(found: dict[str, Any], form: str) -> None:
    if form == "json":
        as_json(found)
        return
    rows: list[tuple[str, object]] = [
        (name, ", ".join(map(str, value)) if name == "types" else value) for name, value in found.items()
    ]
    write(table(("Field", "Value"), [(name, value) for name, value in rows if value not in {None, ""}]))


def _row(found: dict[str, Any]) -> tuple[object, ...]:
    return (
        found["name"],
        found["url"],
        ", ".join(found["types"]) or "all",
        "yes" if found["enabled"] else "no",
        found["delivered"],
        found["dead_letters"],
        found["disabled_reason"] or found["last_error"],
    )
