"""``stateward host``: the hosts, and what the operator says of them."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from stateward.cli.client import Client
from stateward.cli.command import as_json, command
from stateward.cli.times import to_second
from stateward.cli.words import table, write

COLUMNS = ("Host", "Zone", "Condition", "Heard", "Enabled", "Judged", "Instances", "vCPUs", "Memory", "Disk")


@click.group()
def host() -> None:
    """Look at the hosts, and say what is to be done with them; for administrators."""


_named = click.argument("name", metavar="HOST")


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


def path(name: str, *words: str) -> str:
    """Return the path of a host, or of something of it."""
    return "/".join(("/hosts", quote(name, safe=""), *words))


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
