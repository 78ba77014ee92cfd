"""``stateward policy``: which policies there are, who decides for a server, and what would be done in a case."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click
import msgspec

from stateward.cli.client import Client, Failed
from stateward.cli.command import as_json, command, lazily
from stateward.cli.group import Group
from stateward.cli.words import printable, table, write
from stateward.domain.errors import Invalid
from stateward.domain.states import Cause, Observed, VmState
from stateward.domain.trials import Trial, try_out
from stateward.domain.verdicts import Stray
from stateward.settings import BadSettings, load

_OUTCOME = ("Cause", "Verdict", "Then", "Decided by", "Why")


@click.group(cls=Group)
def policy() -> None:
    """Say what the arbiter does, and by which rule (docs/policies.md)."""


@policy.command("list")
@command
def list_(client: Client, form: str, /) -> bool:
    """List the policies by which the arbiter's verdicts are changed."""
    found = client.native("GET", "/policies")
    if form == "json":
        as_json(found)
        return True
    write(
        table(
            ("Name", "Rules", "Chosen by", "Owners may", "Says"),
            (
                (each["name"], len(each["rules"]), _chosen_by(each), _yes(each["selectable"]), each["says"])
                for each in found["policies"]
            ),
        )
    )
    return True


@policy.command()
@click.argument("server")
@command
def explain(client: Client, form: str, /, *, server: str) -> bool:
    """Say which policies count for SERVER (a name or an id), what they change, and what follows now.

    Ends with status 1 when one that is named is not followed.
    """
    found = client.native("GET", f"/instances/{client.server(server)}/policy")
    good = all(each["followed"] for each in found["chosen"])
    if form == "json":
        as_json(found)
        return good
    now = found["now"]
    click.echo(
        f"{printable(found['name'])} is recorded as {found['vm_state']} and was seen {found['observed']}."
    )
    click.echo(f"{now['verdict']}, by {now['decided_by']}: {now['says']}")
    _listed(
        "Policies, the one that goes first at the top; what none of them says the table decides",
        ("Layer", "Policy", "Followed"),
        [
            (each["layer"], each["policy"], "yes" if each["followed"] else f"no: {each['why']}")
            for each in found["chosen"]
        ],
    )
    _listed(
        f"What they change while it is recorded as {found['vm_state']}",
        ("Seen", *_OUTCOME),
        [(each["observed"], *_row(each)) for each in found["changes"]],
    )
    loop = found["crash_loop"]
    click.echo(
        f"\nBrought back {loop['recent']} times within the last {loop['seconds']:g} s; after {loop['restores']} it is "
        "left alone, in error."
        + ("" if not loop["wait"] else f" Before the next time there are {loop['wait']:g} s.")
    )
    return good


def _listed(what: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    click.echo(f"\n{what}:" if rows else f"\n{what}: none.")
    if rows:
        write(table(columns, rows))


def _choice(kind: Iterable[str]) -> click.Choice[str]:
    return click.Choice([str(each) for each in kind])


@policy.command()
@click.option("--expected", required=True, type=_choice(VmState), help="The recorded vm state.")
@click.option("--observed", required=True, type=_choice(Observed), help="What is seen of the guest.")
@click.option("--cause", type=_choice(Cause), help="Why it is so; without it each is tried.")
@click.option("--locked", is_flag=True, help="It is locked.")
@click.option("--held", is_flag=True, help="A hold is on it.")
@click.option("--kept-off", is_flag=True, help="A hold keeps it off.")
@click.option(
    "--copy",
    type=_choice(Stray),
    help="Of a copy on another host (--observed duplicate): which.  [default: running]",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME",
    help="As if the server named it; of several the first goes first.",
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Follow the policies of this file of settings, which may be empty, and ask no server.",
)
@lazily("table", "json")
def simulate(
    client: Callable[[], Client],
    form: str,
    /,
    *,
    expected: str,
    observed: str,
    cause: str | None,
    locked: bool,
    held: bool,
    kept_off: bool,
    copy: str | None,
    policies: tuple[str, ...],
    config: Path | None,
) -> bool:
    """Say what the arbiter would do in a case, and by which rule; nothing is done.

    The server is asked, which needs credentials of an administrator's. With --config neither is needed; of an empty
    file (--config /dev/null) it says what the table does without any policy.
    """
    trial = Trial(
        expected=VmState(expected),
        observed=Observed(observed),
        cause=None if cause is None else Cause(cause),
        locked=locked,
        held=held,
        kept_off=kept_off,
        copy=None if copy is None else Stray(copy),
        policies=policies,
    )
    found = _asked(client(), trial) if config is None else _by_file(config, trial)
    if form == "json":
        as_json(found)
    else:
        write(table(_OUTCOME, map(_row, found["outcomes"])))
    return True


def _asked(client: Client, trial: Trial) -> dict[str, Any]:
    said: list[tuple[str, str]] = [("policy", name) for name in trial.policies]
    for name, value in msgspec.to_builtins(trial).items():
        if name != "policies" and value is not None:
            said.append((name, str(value).lower() if isinstance(value, bool) else value))
    found: dict[str, Any] = client.native("GET", f"/policies/simulate?{urlencode(said)}")
    return found


def _by_file(config: Path, trial: Trial) -> dict[str, Any]:
    try:
        outcomes = try_out(load(config, os.environ).made_policies(), trial)
    except (BadSettings, Invalid) as error:
        raise Failed(str(error)) from None
    return {"trial": msgspec.to_builtins(trial), "outcomes": msgspec.to_builtins(outcomes)}


def _row(each: dict[str, Any]) -> tuple[object, ...]:
    causes = "any" if len(each["causes"]) == len(Cause) else ", ".join(each["causes"])
    return (
        causes,
        each["verdict"],
        each["action"] or each["becomes"] or "",
        each["decided_by"],
        each["says"],
    )


def _chosen_by(each: dict[str, Any]) -> str:
    words = ["default"] if each["default"] else []
    words += [f"host {host}" for host in each["hosts"] or ()]
    words += [f"project {project}" for project in each["projects"] or ()]
    return ", ".join(words)


def _yes(value: object) -> str:
    return "yes" if value else "no"
