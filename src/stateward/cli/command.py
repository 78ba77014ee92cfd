"""What all commands that ask a server have in common: the cloud, the format, and how they fail."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

import click

from stateward.cli.client import Client, Failed
from stateward.cli.credentials import NoCredentials, find_cloud

P = ParamSpec("P")

#: What a shell gives a program that is interrupted.
_INTERRUPTED = 130


def command(function: Callable[Concatenate[Client, str, P], bool]) -> Callable[P, None]:
    """Give a command its client and its format, a table or JSON; False ends it with status 1."""
    return command_in("table", "json")(function)


def command_in(
    *formats: str,
) -> Callable[[Callable[Concatenate[Client, str, P], bool]], Callable[P, None]]:
    """Give a command its client and its format, one of these, the first by default; False ends it with status 1."""

    def made(function: Callable[Concatenate[Client, str, P], bool]) -> Callable[P, None]:
        @wraps(function)
        def with_client(
            client: Callable[[], Client], form: str, /, *args: P.args, **options: P.kwargs
        ) -> bool:
            return function(client(), form, *args, **options)

        return lazily(*formats)(with_client)

    return made


def lazily(
    *formats: str,
) -> Callable[[Callable[Concatenate[Callable[[], Client], str, P], bool]], Callable[P, None]]:
    """Give a command its format, and what makes its client, which needs a cloud; see ``command_in``."""

    def made(function: Callable[Concatenate[Callable[[], Client], str, P], bool]) -> Callable[P, None]:

        @click.option("--os-cloud", metavar="NAME", help="The cloud of clouds.yaml.  [default: $OS_CLOUD]")
        @click.option(
            "-f", "--format", "form", type=click.Choice(formats), default=formats[0], show_default=True
        )
        @wraps(function)
        def run(*args: P.args, **options: P.kwargs) -> None:
            os_cloud, form = options.pop("os_cloud"), options.pop("form")

            def client() -> Client:
                return Client(find_cloud(None if os_cloud is None else str(os_cloud), os.environ))

            try:
                good = function(client, str(form), *args, **options)
            except NoCredentials as error:
                raise click.UsageError(str(error)) from None
            except Failed as error:
                click.echo(f"stateward: {error}", err=True)
                sys.exit(1)
            except KeyboardInterrupt:
                click.echo("stateward: the operation goes on", err=True)
                sys.exit(_INTERRUPTED)
            if not good:
                sys.exit(1)

        return run

    return made


def as_json(value: object) -> None:
    """Write a value for programs."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=not sys.stdout.isatty()))
