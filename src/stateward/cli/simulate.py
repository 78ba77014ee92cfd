"""``stateward simulate``: play a script on a simulated cluster, and compare the log with what the script expects."""

from __future__ import annotations

import difflib
import logging
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import structlog

from stateward.settings import BadSettings, tables_of
from stateward.simulation.engine import play
from stateward.simulation.script import BadScript, parse, with_expected
from stateward.telemetry import configure

_DIFFERENT: Final = 1
_BAD_SCRIPT: Final = 2


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A settings file, as of serve; what the script itself sets is laid over it.",
)
@click.option("--write", is_flag=True, help="Write the log into the script as what it expects.")
@click.option("--verbose", is_flag=True, help="Show the server's own log too, on standard error.")
def simulate(file: Path, config: Path | None, *, write: bool, verbose: bool) -> None:
    """Play a script on a simulated cluster in virtual time, and print what happens (docs/simulate.md).

    Ends with status 0 when that is what the script expects, 1 when it is not, 2 when the script cannot be played.
    """
    if verbose:
        configure(verbose=True)
    else:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        # Some editors begin a file with a mark of its byte order.
        text = file.read_text(encoding="utf-8-sig")
        tables: dict[str, Any] = {} if config is None else tables_of(config)
        script = parse(text, tables)
        seen = play(script)
        if write:
            file.write_text(with_expected(text, seen), encoding="utf-8")
    except OSError as error:
        _give_up(f"{file}: {error.strerror}")
    except UnicodeDecodeError:
        _give_up(f"{file} is not written in UTF-8")
    except BadScript as error:
        _give_up(f"{file}, {error}")
    except BadSettings as error:
        _give_up(str(error))
    if write or script.expected is None:
        click.echo("\n".join(seen))
        return
    differences = different(script.expected, seen)
    if not differences:
        click.echo("\n".join(seen))
        return
    click.echo("\n".join(differences))
    sys.exit(_DIFFERENT)


def different(expected: tuple[str, ...], seen: list[str]) -> list[str]:
    """Return how a log differs from what was expected, for people; nothing when it does not."""
    stripped = [line.strip() for line in seen]
    return list(difflib.unified_diff(expected, stripped, "expected", "seen", lineterm="", n=2))


def _give_up(message: str) -> NoReturn:
    click.echo(f"stateward: {message}", err=True)
    sys.exit(_BAD_SCRIPT)
