"""``stateward explain``: why a server is as it is, and what can be done to it."""

from __future__ import annotations

from typing import Any

import click

from stateward.cli.client import Client
from stateward.cli.command import as_json, command
from stateward.cli.lock import COLUMNS, called, row
from stateward.cli.times import to_second
from stateward.cli.words import printable, table, write


@click.command()
@click.argument("server")
@click.option("--action", metavar="NAME", help="Only say what would come of this action; it is not done.")
@command
def explain(client: Client, form: str, /, *, server: str, action: str | None) -> bool:
    """Say why SERVER (a name or an id) is as it is, who locks it, and what would come of the usual actions.

    With --action the status is 0 if the action would be allowed, or changes nothing.
    """
    path = f"/instances/{client.server(server)}"
    if action is not None:
        found = client.native("POST", f"{path}/dry-run", {"action": action})
        if form == "json":
            as_json(found)
        else:
            click.echo(
                f"{action}: {found['foreseen']}" + (f": {printable(found['why'])}" if found["why"] else "")
            )
        return bool(found["foreseen"] != "blocked")
    found = client.native("GET", f"{path}/explain")
    if form == "json":
        as_json(found)
        return True
    task = f", {found['task_state']}" if found["task_state"] else ""
    click.echo(f"{printable(found['name'])} is {found['vm_state']}{task}.")
    if found["fault"]:
        click.echo(f"Fault: {printable(found['fault'])}")
    seen = found["seen"]
    click.echo(f"Its host saw it {seen['observed']} ({seen['cause']}). {seen['verdict']}")
    if found["locks"]:
        click.echo("\nLocks:")
        write(table(COLUMNS, map(row, found["locks"])))
    click.echo("\nWhat could be done now:")
    write(
        table(
            ("Action", "Comes to", "Because"),
            ((each["action"], each["foreseen"], _because(each)) for each in found["actions"]),
        )
    )
    click.echo("\nWhat made it so, newest first:")
    write(
        table(
            ("At", "Action", "State", "By", "Says"),
            (
                (to_second(each["at"]), each["action"], each["state"], each["actor"]["kind"], each["message"])
                for each in found["causes"]
            ),
        )
    )
    return True


def _because(forecast: dict[str, Any]) -> str:
    """Say why an action would be refused; the locks themselves are listed above."""
    blocking = ", ".join(called(lock) for lock in forecast["blocked_by"])
    return f"locked: {blocking}" if blocking else str(forecast["why"])
