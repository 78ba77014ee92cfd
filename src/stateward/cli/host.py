"""``stateward host``: the hosts, and what the operator says of them."""

from __future__ import annotations

import time
from typing import Any

import click

from stateward.cli.client import Client, in_path
from stateward.cli.command import as_json, command
from stateward.cli.group import Group
from stateward.cli.times import Moment, to_second
from stateward.cli.words import printable, table, write

#: Seconds between two looks at a plan.
_LOOK_SECONDS = 0.5
PLAN_COLUMNS = ("ID", "Server", "Was", "Action", "To", "State", "Says")
COLUMNS = ("Host", "Zone", "Condition", "Heard", "Enabled", "Judged", "Instances", "vCPUs", "Memory", "Disk")


@click.group(cls=Group)
def host() -> None:
    """Look at the hosts, and say what is to be done with them; for administrators."""


_named = click.argument("name", metavar="HOST")
_why = click.option("--reason", metavar="TEXT", help="From where you know; it is kept in the audit trail.")


@host.command("list")
@command
def list_(client: Client, form: str, /) -> bool:
    """List the hosts."""
    found = client.native("GET", "/hosts")["hosts"]
    if form == "json":
        as_json(found)
    else:
        write(table(COLUMNS, map(row, found)))
    return True


@host.command()
@_named
@command
def show(client: Client, form: str, /, name: str) -> bool:
    """Show a host."""
    shown(client.native("GET", path(name)), form)
    return True


@host.command()
@_named
@command
def power(client: Client, form: str, /, name: str) -> bool:
    """Ask a host's management controller whether it has power; the status is 1 when it cannot be asked."""
    found = client.native("GET", path(name, "power"))
    if form == "json":
        as_json(found)
    else:
        write(table(("Power", "Says"), [(found["power"], found["says"])]))
    return bool(found["power"] != "unknown")


@host.command()
@_named
@command
def enable(client: Client, form: str, /, name: str) -> bool:
    """Let new servers be placed on a host again."""
    shown(client.native("POST", path(name, "enable"), {}), form)
    return True


@host.command()
@_named
@click.option("--reason", metavar="TEXT", help="Why; it is shown with the host.")
@command
def disable(client: Client, form: str, /, name: str, *, reason: str | None) -> bool:
    """Give a host no new servers; those that are there stay as they are."""
    shown(client.native("POST", path(name, "disable"), {} if reason is None else {"reason": reason}), form)
    return True


@host.command()
@_named
@click.option("--reason", metavar="TEXT", help="Why; needed to begin one.")
@click.option(
    "--until", type=Moment(), metavar="TIME", help="When it ends by itself: after 90m or 2h, or at a time."
)
@click.option("--end", is_flag=True, help="End it now.")
@command
def maintenance(
    client: Client, form: str, /, name: str, *, reason: str | None, until: str | None, end: bool
) -> bool:
    """Work on a host: nothing of it is judged, and nothing placed there, until a time."""
    if end and (reason is not None or until is not None):
        raise click.UsageError("--end goes alone.")
    if not end and (reason is None or until is None):
        raise click.UsageError("Give --reason and --until, or --end.")
    if end:
        shown(client.native("DELETE", path(name, "maintenance")), form)
    else:
        shown(client.native("POST", path(name, "maintenance"), {"reason": reason, "until": until}), form)
    return True


@host.command()
@_named
@click.option("--dead", is_flag=True, help="The host is silent, and you know that it is dead.")
@_why
@command
def confirm(client: Client, form: str, /, name: str, *, dead: bool, reason: str | None) -> bool:
    """Say that what was found of a host is true: that so many of its servers changed, or --dead."""
    shown(client.native("POST", path(name, "dead" if dead else "confirm"), _said(reason)), form)
    return True


@host.command()
@_named
@click.option(
    "--done", is_flag=True, required=True, help="You took its power, and nothing runs there any more."
)
@_why
@command
def fence(client: Client, form: str, /, name: str, *, done: bool, reason: str | None) -> bool:
    """Say that a dead host has no power; only then its servers can be started elsewhere."""
    del done
    shown(client.native("POST", path(name, "fenced"), _said(reason)), form)
    return True


@host.command()
@_named
@click.option("--plan", is_flag=True, help="Plan it, and show the plan; nothing else is done.")
@click.option("--approve", metavar="PLAN", help="Carry this plan out.")
@click.option("--cancel", is_flag=True, help="Give up what was planned; what was begun goes on.")
@click.option("--wait", is_flag=True, help="With --approve: follow it to its end.")
@command
def evacuate(
    client: Client, form: str, /, name: str, *, plan: bool, approve: str | None, cancel: bool, wait: bool
) -> bool:
    """Start a fenced host's servers on others: plan it, look at the plan, and approve it. Alone: show the plan."""
    _one_of({"--plan": plan, "--approve": approve is not None, "--cancel": cancel})
    if approve is None and wait:
        raise click.UsageError("--wait goes with --approve.")
    if cancel:
        shown(client.native("DELETE", path(name, "evacuation")), form)
        return True
    if approve is not None:
        planned(client.native("POST", path(name, "evacuation", in_path(approve), "approve"), {}), form)
        return _kept(follow_plan(client, path(name, "evacuation"), form)) if wait else True
    place = path(name, "evacuation")
    planned(client.native("POST", place, {}) if plan else client.native("GET", place), form)
    return True


@host.command()
@_named
@click.option("--migrate", is_flag=True, help="Carry to other hosts what can leave; the rest is shut down.")
@click.option("--plan", is_flag=True, help="Show what would be done; nothing is done.")
@click.option("--status", is_flag=True, help="Show how far it is.")
@click.option("--cancel", is_flag=True, help="Give it up; what was begun goes on.")
@click.option("--wait", is_flag=True, help="Follow it to its end; the status is 1 if servers are left on.")
@command
def drain(client: Client, form: str, /, name: str, *, migrate: bool, wait: bool, **what: bool) -> bool:
    """Empty a host of servers that are on: disable it, and shut them down or carry them to other hosts."""
    _one_of({f"--{word}": said for word, said in what.items()})
    if migrate and (what["status"] or what["cancel"]):
        raise click.UsageError("--migrate goes alone, or with --plan or --wait.")
    if wait and (what["plan"] or what["cancel"]):
        raise click.UsageError("--wait goes without --plan and --cancel.")
    place = path(name, "drain")
    if what["cancel"]:
        shown(client.native("DELETE", place), form)
        return True
    if what["status"]:
        planned(client.native("GET", place), form)
    else:
        body = {"how": "migrate" if migrate else "stop", "plan": what["plan"]}
        planned(client.native("POST", place, body), form)
    if not wait:
        return True
    plan = follow_plan(client, place, form)
    on = [move["name"] for move in plan["moves"] if move["on"] and move["state"] != "done"]
    if on:
        click.echo(
            printable(f"stateward: {name} is not empty: still on, or not known to be off: {', '.join(on)}"),
            err=True,
        )
    return _kept(plan) and not on


def _one_of(said: dict[str, bool]) -> None:
    """Refuse two options of which each says what is to be done."""
    given = sorted(name for name, is_given in said.items() if is_given)
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} do not go together; each goes alone.")


def follow_plan(client: Client, place: str, form: str) -> dict[str, Any]:
    """Follow a plan to its end, and return it."""
    told: dict[int, str] = {}
    while True:
        plan: dict[str, Any] = client.native("GET", place)
        for move in plan["moves"]:
            if told.get(move["number"]) != move["state"] and form != "json":
                click.echo(_line(move), err=True)
            told[move["number"]] = move["state"]
        if plan["state"] not in {"planned", "approved"}:
            break
        time.sleep(_LOOK_SECONDS)
    planned(plan, form)
    return plan


def _kept(plan: dict[str, Any]) -> bool:
    """Say whether all that a plan was to do was done."""
    return all(move["state"] in {"done", "left"} for move in plan["moves"])


def _line(move: dict[str, Any]) -> str:
    more = move["message"] or (move["says"] if move["state"] == "left" else "")
    return printable(f"{move['name']}: {move['state']}" + (f": {more}" if more else ""))


def planned(plan: dict[str, Any], form: str) -> None:
    """Write a plan."""
    if form == "json":
        as_json(plan)
        return
    write(table(PLAN_COLUMNS, map(_plan_row, plan["moves"])))
    acts = sum(move["action"] is not None for move in plan["moves"])
    click.echo(
        f"Plan {plan['id']} to {plan['kind']} {plan['host']} is {plan['state']}: "
        f"{acts} of {len(plan['moves'])} servers."
    )


def _plan_row(move: dict[str, Any]) -> tuple[object, ...]:
    return (
        move["instance_id"],
        move["name"],
        move["vm_state"],
        move["action"] or "-",
        move["to"] or "-",
        move["state"],
        move["message"] or move["says"],
    )


def _said(reason: str | None) -> dict[str, str]:
    return {} if reason is None else {"reason": reason}


def path(name: str, *words: str) -> str:
    """Return the path of a host, or of something of it."""
    return "/".join(("/hosts", in_path(name), *words))


def shown(found: dict[str, Any], form: str) -> None:
    """Write a host."""
    if form == "json":
        as_json(found)
    else:
        write(table(("Field", "Value"), fields(found)))


def row(found: dict[str, Any]) -> tuple[object, ...]:
    """Return the cells of a list."""
    return (
        found["name"],
        found["zone"],
        found["condition"],
        "yes" if found["heard"] else "no",
        "yes" if found["enabled"] else "no",
        "yes" if found["frozen"] is None else f"no: {found['frozen']['why']}",
        sum(found["instances"].values()),
        *(_used(found, what) for what in ("vcpus", "memory", "disk")),
    )


def _used(found: dict[str, Any], what: str) -> str:
    capacity = found["capacity"]
    return f"{found['claimed'][what]} of {'?' if capacity is None else capacity[what]}"


def fields(found: dict[str, Any]) -> list[tuple[str, object]]:
    """Return everything of one host, by name."""
    frozen, hypervisor = found["frozen"], found["hypervisor"]
    shown: list[tuple[str, object]] = [
        ("name", found["name"]),
        ("zone", found["zone"]),
        ("condition", found["condition"]),
        ("which means", found["condition_means"]),
        ("since", to_second(found["condition_since"])),
        ("because", found["condition_says"]),
        ("heard of", to_second(found["seen_at"]) or "never"),
        ("enabled", "yes" if found["enabled"] else "no"),
        ("disabled because", found["disabled_reason"]),
        ("forced down", "yes" if found["forced_down"] else None),
        ("maintenance until", to_second(found["maintenance_until"])),
        ("shared disks", "yes" if found["shared"] else "no"),
    ]
    if frozen is not None:
        shown.append(
            ("not judged", f"{frozen['why']} since {to_second(frozen['since'])}: {frozen['says'] or ''}")
        )
    if hypervisor is not None:
        answers = "answers" if hypervisor["reachable"] else f"does not answer: {hypervisor['says']}"
        shown += [
            ("hypervisor", f"{hypervisor['type']} ({hypervisor['driver']}), {answers}"),
            ("boot", hypervisor["boot_id"] or None),
        ]
    shown += [(name, _used(found, what)) for name, what in _ROOM]
    shown.append(
        ("instances", ", ".join(f"{count} {state}" for state, count in found["instances"].items()) or "none")
    )
    return [(name, value) for name, value in shown if value is not None]


_ROOM = (("vcpus", "vcpus"), ("memory (MiB)", "memory"), ("disk (GiB)", "disk"))
