"""``stateward release``: give an adopted server's guest back."""

from __future__ import annotations

import click

from stateward.cli.client import Client
from stateward.cli.command import command
from stateward.cli.watch import watch


@click.command()
@click.argument("server")
@command
def release(client: Client, form: str, /, *, server: str) -> bool:
    """Give the guest of an adopted SERVER (a name or an id) back, as it is; if it runs, it runs on.

    For administrators. The server is gone then; the guest and its disks stay on the host. A locked server is not
    released, and one that was not adopted is deleted instead.
    """
    told = client.native("POST", f"/instances/{client.server(server)}/release", {})
    return bool(watch(client, told["id"], as_json=form == "json")["state"] == "succeeded")
