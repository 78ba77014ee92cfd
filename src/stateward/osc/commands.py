"""Commands of the plugin; the API is the one behind the command ``stateward``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from osc_lib.command import command

from stateward.cli.lock import BLOCKS, COLUMNS, let_go, row
from stateward.osc.plugin import Native

#: What ``openstack`` shows of a lock.
Shown = tuple[Sequence[str], Iterable[Sequence[Any]]]


def _client(app: Any) -> Native:
    """Return what asks Stateward's own API; the client's manager has it by the plugin's name."""
    client: Native = app.client_manager.stateward
    return client


def _instance(app: Any, name: str) -> str:
    """Return the id of a server of a name or an id; raises what the SDK raises when there is none."""
    found: str = app.client_manager.compute.find_server(name, ignore_missing=False).id
    return found


class _ServerLister(command.Lister):
    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("server", metavar="<server>", help="Server (name or ID)")
        return parser


class ListLocks(_ServerLister):
    """List the locks of a server, those that it has from its project too."""

    def take_action(self, parsed_args: argparse.Namespace) -> Shown:
        """Ask, and return columns and rows."""
        path = f"/instances/{_instance(self.app, parsed_args.server)}/locks"
        return COLUMNS, [row(each) for each in _client(self.app).native("GET", path)["locks"]]


class AddLock(_ServerLister):
    """Place a lock on a server, beside those that are there."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Add what a lock can be."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--name", help="Its name, unique among your own (default: a new one)")
        parser.add_argument(
            "--block",
            choices=BLOCKS,
            action="append",
            help="What it blocks (default: all; repeat for several)",
        )
        parser.add_argument("--reason", help="Why; it is shown to who is refused")
        parser.add_argument("--expires", metavar="<time>", help="When it ends by itself (ISO 8601)")
        parser.add_argument("--sealed", action="store_true", help="Only the provider can release it")
        parser.add_argument("--overtake", action="store_true", help="End what is being done to the server")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Shown:
        """Ask, and return columns and the one row."""
        body: dict[str, Any] = {
            name: value
            for name, value in (
                ("name", parsed_args.name),
                ("blocks", parsed_args.block),
                ("reason", parsed_args.reason),
                ("expires_at", parsed_args.expires),
                ("sealed", parsed_args.sealed or None),
                ("overtake", parsed_args.overtake or None),
            )
            if value is not None
        }
        path = f"/instances/{_instance(self.app, parsed_args.server)}/locks"
        return COLUMNS, [row(_client(self.app).native("POST", path, body)["lock"])]


class _Releasing(command.Command):
    kind = "locks"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("server", metavar="<server>", help="Server (name or ID)")
        parser.add_argument("lock", metavar=f"<{self.kind[:-1]}>", help="Its name or ID")
        parser.add_argument("--reason", help="Why")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        path = f"/instances/{_instance(self.app, parsed_args.server)}"
        client = _client(self.app)
        let_go(client, path, parsed_args.lock, parsed_args.reason, kind=self.kind)


class ReleaseLock(_Releasing):
    """Release one lock of a server; the others hold on."""


class ReleaseHold(_Releasing):
    """Release a hold; the guest stays as it is."""

    kind = "holds"


class PlaceHold(_ServerLister):
    """Hold a server: off, and kept off, whoever asks."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Add what a hold can be."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--reason", required=True, help="Why; it is shown to who is refused")
        parser.add_argument("--ticket", help="The provider's own reference")
        parser.add_argument("--name", help="Its name (default: a new one)")
        parser.add_argument(
            "--shutdown",
            choices=("clean", "forced", "suspend", "none"),
            default="clean",
            help="How the guest goes off (default: clean); none leaves it as it is",
        )
        parser.add_argument("--timeout", type=int, metavar="<seconds>", help="What the guest gets for that")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Shown:
        """Ask, and return columns and the one row."""
        names = ("reason", "ticket", "name", "shutdown", "timeout")
        body = {name: value for name in names if (value := getattr(parsed_args, name)) is not None}
        path = f"/instances/{_instance(self.app, parsed_args.server)}/holds"
        return COLUMNS, [row(_client(self.app).native("POST", path, body)["hold"])]


class Explain(_ServerLister):
    """Say what would come of the usual actions on a server, or of one, and who blocks it."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Add the one action."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--action", help="Only this action; it is not done")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Shown:
        """Ask, and return columns and rows."""
        path = f"/instances/{_instance(self.app, parsed_args.server)}"
        client = _client(self.app)
        if parsed_args.action is None:
            found = client.native("GET", f"{path}/explain")["actions"]
        else:
            found = [client.native("POST", f"{path}/dry-run", {"action": parsed_args.action})]
        return ("Action", "Comes to", "Because"), [
            (each["action"], each["foreseen"], each["why"]) for each in found
        ]
