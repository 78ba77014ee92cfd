"""``stateward audit``: check, export and publish the audit trail, beside a running server or without one."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

import click
import msgspec
from rich.console import Console
from rich.progress import Progress

from stateward.cli.group import Group
from stateward.domain.audit import Check, Head, exported
from stateward.settings import BadSettings, load
from stateward.store.audit_trail import CannotRead, Trail, reading
from stateward.store.engine import StoreUnavailable, open_database

T = TypeVar("T")

#: Exit statuses: the trail is not whole; nothing can be said.
_BROKEN = 1
_CANNOT = 2
#: Records between two moves of the progress bar.
_STRIDE = 1000


@click.group(cls=Group)
def audit() -> None:
    """Check, export and publish the audit trail.

    Works on the database itself, so it needs no running server; one may run meanwhile.
    """


def _where(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where the trail is."""
    for option in (
        click.option("--database", metavar="URL", help="SQLAlchemy's address of the database, instead."),
        click.option(
            "--config",
            type=click.Path(dir_okay=False, path_type=Path),
            help="The server's file of settings, which may name a database.",
        ),
        click.option(
            "--data",
            type=click.Path(path_type=Path),
            default=Path(".stateward"),
            show_default=True,
            help="The server's data folder.",
        ),
    ):
        command = option(command)
    return command


@audit.command()
@_where
@click.option(
    "--head",
    "published",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file that `head --write` wrote: what it names must be in the trail.",
)
def verify(data: Path, config: Path | None, database: str | None, published: Path | None) -> None:
    """Find every record that was changed, removed or put in another's place.

    Ends with status 0 when the trail is whole, 1 when it is not, 2 when it cannot be read.
    """
    with _trail(data, config, database) as trail:
        check = Check([] if published is None else [_read_head(published)])
        for record in _shown(trail.records(), trail.count, "checking the audit trail"):
            check.follow(record)
        flaws = check.end(trail.head())
        waiting = trail.unsealed()
    for flaw in flaws:
        click.echo(flaw.says)
    if waiting:
        click.echo(
            f"{_counted(waiting)} not sealed yet: a running server does it within a second, else the next one, or "
            "stateward audit seal."
        )
    if flaws:
        click.echo(f"The audit trail is NOT whole: {_counted(check.seen)} looked at.")
        sys.exit(_BROKEN)
    click.echo(f"The audit trail is whole: {_counted(check.seen)}, head {check.head.hash}.")


@audit.command()
@_where
def seal(data: Path, config: Path | None, database: str | None) -> None:
    """Chain the records that a killed server left unsealed, before another one does: on PostgreSQL."""
    with _trail(data, config, database) as trail:
        waiting = trail.unsealed()
    if waiting:
        try:
            asyncio.run(_seal(_url(data, config, database)))
        except StoreUnavailable as error:
            _give_up(str(error))
    click.echo(f"{_counted(waiting)} sealed.")


async def _seal(url: str) -> None:
    opened = open_database(url)
    try:
        await opened.seal()
    finally:
        await opened.close()


@audit.command()
@_where
@click.option(
    "--since",
    metavar="NUMBER|TIME",
    help="From this record on, or from the first of this time or later (2026-01-31T12:00, UTC).",
)
@click.option(
    "-o",
    "--output",
    type=click.File("wb", atomic=True),
    default="-",
    help="Write to this file, which is complete or not there.",
)
def export(
    data: Path, config: Path | None, database: str | None, since: str | None, output: IO[bytes]
) -> None:
    """Write the trail as JSON lines; each can be checked by itself and with the one before it."""
    number, at = _since(since)
    with _trail(data, config, database) as trail:
        first = number if at is None else trail.first_since(at)
        previous = trail.hash_before(first)
        for record in _shown(trail.records(first), lambda: trail.count(first), "exporting the audit trail"):
            output.write(exported(previous, record))
            previous = record.hash


@audit.command()
@_where
@click.option(
    "--write",
    "target",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it to this file, which is replaced in one step.",
)
def head(data: Path, config: Path | None, database: str | None, target: Path | None) -> None:
    """Show the number and hash of the last record: all that is needed to prove later what came before it."""
    with _trail(data, config, database) as trail:
        found = trail.head()
    if found is None:
        _give_up("The head that is kept beside the audit trail is missing: see stateward audit verify.")
    line = msgspec.json.encode(found) + b"\n"
    if target is None:
        click.echo(line, nl=False)
    else:
        _replace(target, line)


@contextmanager
def _trail(data: Path, config: Path | None, database: str | None) -> Generator[Trail]:
    try:
        with reading(_url(data, config, database)) as trail:
            yield trail
    except CannotRead as error:
        _give_up(str(error))


def _url(data: Path, config: Path | None, database: str | None) -> str:
    try:
        url = database or load(config, os.environ).database
    except BadSettings as error:
        _give_up(str(error))
    if url is not None:
        return url
    if not data.is_dir():
        _give_up(f"There is no data folder {data}. Name one with --data.")
    file = data / "stateward.db"
    if not file.is_file():
        _give_up(f"There is no database in the data folder {data}: no server has run on it.")
    return f"sqlite:///{file}"


def _give_up(message: str) -> NoReturn:
    click.echo(f"stateward: {message}", err=True)
    sys.exit(_CANNOT)


def _read_head(path: Path) -> Head:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Head)
    except OSError as error:
        _give_up(f"The file {path} cannot be read: {error.strerror}.")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _give_up(f"The file {path} is not one that stateward audit head wrote: {error}.")


def _replace(path: Path, content: bytes) -> None:
    """Put a file in another's place, durably: readers see the old one or the new one whole."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        _give_up(f"The file {path} cannot be written: {error.strerror}.")


def _since(text: str | None) -> tuple[int, float | None]:
    """Return the first number wanted, and the time that it is to be found by instead, if it was a time."""
    if text is None:
        return 1, None
    if text.isascii() and text.isdigit() and len(text) < 19:  # noqa: PLR2004 (what 64 bits hold)
        return int(text), None
    try:
        moment = dt.datetime.fromisoformat(text)
        return 1, (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()
    except (ValueError, OverflowError):
        message = f"{text!r} is neither a record's number nor a time like 2026-01-31T12:00"
        raise click.BadParameter(message, param_hint="--since") from None


def _shown(each: Iterable[T], count: Callable[[], int], what: str) -> Iterator[T]:
    """Go through something; on a terminal with a bar that says how far it is."""
    if not sys.stderr.isatty():
        yield from each
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=count())
        for number, item in enumerate(each, start=1):
            if number % _STRIDE == 0:
                progress.update(task, completed=number)
            yield item


def _counted(number: int) -> str:
    return "1 record" if number == 1 else f"{number} records"
