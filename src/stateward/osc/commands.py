"""Commands of the plugin; the API is the one behind the command ``stateward``."""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from osc_lib.cli.format_columns import ListColumn
from osc_lib.command import command

from stateward.cli.lock import BLOCKS, COLUMNS, UNCONFIRMED, let_go, row
from stateward.cli.times import moment
from stateward.osc.plugin import Native

#: What ``openstack`` shows: columns, and rows of them or one.
Shown = tuple[Sequence[str], Iterable[Any]]


class _OnServer(command.Command):
    """A command about one server."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("server", metavar="<server>", help="Server (name or ID)")
        return parser

    def client(self) -> Native:
        """Return what asks Stateward's own API; the client's manager has it by the plugin's name."""
        manager: Any = self.app.client_manager
        client: Native = manager.stateward
        return client

    def path(self, parsed_args: argparse.Namespace) -> str:
        """Return the path of the server that was named."""
        return f"/instances/{self.client().server(parsed_args.server)}"


class ListLocks(_OnServer, command.Lister):
    """List the locks of a server, those that it has from its project too."""

    def take_action(self, parsed_args: argparse.Namespace) -> Shown:
        """Ask, and return columns and rows."""
        found = self.client().native("GET", f"{self.path(parsed_args)}/locks")["locks"]
        return COLUMNS, [_row(each) for each in found]


class AddLock(_OnServer, command.ShowOne):
    """Place a lock on a server, beside those that are there."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Add what a lock can be."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--name", metavar="<name>", help="Its name, unique among your own (default: a new one)"
        )
        parser.add_argument(
            "--block",
            choices=BLOCKS,
            action="append",
            help="What it blocks (default: all; repeat for several)",
        )
        parser.add_argument("--reason", metavar="<text>", help="Why; it is shown to who is refused")
        parser.add_argument(
            "--expires",
            metavar="<time>",
            type=_moment,
            help="When it ends by itself: after 90m, 2h or 3d, or at a time (ISO 8601; UTC without a zone)",
        )
        parser.add_argument("--kind", choices=("owner", "admin"), help="Whose it is (default: by who asks)")
        parser.add_argument("--sealed", action="store_true", help="Only the provider can release it")
        parser.add_argument("--overtake", action="store_true", help="End what is being done to the server")
        parser.add_argument("--ticket", metavar="<text>", help="The provider's own reference")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Shown:
        """Ask, and return names and values."""
        said: dict[str, Any] = {
            "name": parsed_args.name,
            "blocks": parsed_args.block,
            "reason": parsed_args.reason,
            "expires_at": parsed_args.expires,
            "kind": parsed_args.kind,
            "sealed": parsed_args.sealed or None,
            "overtake": parsed_args.overtake or None,
            "ticket": parsed_args.ticket,
        }
        body = {name: value for name, value in said.items() if value is not None}
        made = self.client().native("POST", f"{self.path(parsed_args)}/locks", body)
        if made["confirmed"] is False:
            self.log.warning(UNCONFIRMED)
        flying = made["in_flight"]
        return _fields(
            made["lock"],
            in_flight=None if flying is None else f"{flying['action']} ({flying['id']})",
            confirmed=made["confirmed"],
        )


class _Releasing(_OnServer):
    kind = "locks"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("lock", metavar=f"<{self.kind[:-1]}>", help="Its name or ID")
        parser.add_argument("--reason", metavar="<text>", help="Why; it is kept in the audit trail")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        let_go(self.client(), self.path(parsed_args), parsed_args.lock, parsed_args.reason, kind=self.kind)


class ReleaseLock(_Releasing):
    """Release one lock of a server; the others hold on."""


class ReleaseHold(_Releasing):
    """Release a hold; the guest stays as it is."""

    kind = "holds"


class PlaceHold(_OnServer, command.ShowOne):
    """Hold a server: off, and kept off, whoever asks."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Add what a hold can be."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--reason", metavar="<text>", required=True, help="Why; it is shown to who is refused"
        )
        parser.add_argument("--ticket", metavar="<text>", help="The provider's own reference")
        parser.add_argument("--name", metavar="<name>", help="Its name (default: a new one)")
        parser.add_argument(
            "--shutdown",
            choices=("clean", "forced", "suspend", "none"),
            default="clean",
            help="How the guest goes off (default: clean); none leaves it as it is",
        )
        parser.add_argument("--timeout", type=int, metavar="<seconds>", help="What the guest gets for that")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Shown:
        """Ask, and return names and values."""
        names = ("reason", "ticket", "name", "shutdown", "timeout")
        body = {name: value for name in names if (value := getattr(parsed_args, name)) is not None}
        made = self.client().native("POST", f"{self.path(parsed_args)}/holds", body)
        if not made["confirmed"]:
            self.log.warning(UNCONFIRMED)
        return _fields(made["hold"], operation_id=made["operation"]["id"], confirmed=made["confirmed"])


class Explain(_OnServer, command.Lister):
    """Say what would come of the usual actions on a server, or of one, and who blocks it."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Add the one action."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--action", metavar="<name>", help="Only this action; it is not done")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Shown:
        """Ask, and return columns and rows."""
        path = self.path(parsed_args)
        if parsed_args.action is None:
            found = self.client().native("GET", f"{path}/explain")["actions"]
        else:
            found = [self.client().native("POST", f"{path}/dry-run", {"action": parsed_args.action})]
        return ("Action", "Comes to", "Because"), [
            (each["action"], each["foreseen"], each["why"]) for each in found
        ]


def _moment(text: str) -> str:
    """Read a duration or a time for argparse.

    Raises:
        ArgumentTypeError: it is neither.
    """
    try:
        return moment(text, dt.datetime.now(dt.UTC))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _row(lock: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the cells of a lock, with its whole id: this client's users expect that."""
    return (lock["id"], *row(dict(lock))[1:])


def _fields(lock: Mapping[str, Any], **more: object) -> Shown:
    """Return what the API says of a lock, and more."""
    shown = {**lock, "blocks": ListColumn(lock["blocks"]), **more}
    return tuple(shown), tuple(shown.values())
