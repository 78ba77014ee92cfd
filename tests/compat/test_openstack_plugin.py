"""The plugin of the real ``openstack`` command: locks, holds and explanations beside the client's own commands."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.compat.clients import OpenStack, openstack
from tests.compat.test_openstack_client import until
from tests.harness import ROOT
from tests.process import Served, serving

pytestmark = pytest.mark.slow

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve with one simulated host."""
    with serving(tmp_path_factory.mktemp("served") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Have the client find the entry points of pyproject.toml, whether or not this package was installed since."""
    folder = tmp_path_factory.mktemp("plugin")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    about = folder / f"{project['name']}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups: dict[str, dict[str, str]] = project["entry-points"]
    (about / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
            for group, points in groups.items()
        )
    )
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    # What the client remembers of installed packages is not to be found by others.
    return {"PYTHONPATH": os.pathsep.join(path), "XDG_CACHE_HOME": str(folder / "cache")}


@pytest.fixture(scope="module")
def admin(served: Served, environment: Mapping[str, str]) -> Iterator[OpenStack]:
    """Be the provider's staff."""
    with openstack(served, "stateward-admin", environment) as client:
        yield client


@pytest.fixture(scope="module")
def member(served: Served, environment: Mapping[str, str]) -> Iterator[OpenStack]:
    """Be a customer."""
    with openstack(served, "stateward", environment) as client:
        yield client


@pytest.fixture(scope="module")
def web(admin: OpenStack, member: OpenStack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give a running server named ``web``; return its id."""
    path = tmp_path_factory.mktemp("image") / "image"
    path.write_bytes(b"an image")
    admin("image create --disk-format qcow2 --container-format bare --public --file", str(path), "guest")
    server: str = member.json("server create --image guest --flavor tiny --network none web")["id"]
    until(member, server, "ACTIVE")
    return server


def test_the_client_s_own_lock_and_unlock(member: OpenStack, web: str) -> None:
    """Are as without the plugin, and their lock is one of the list."""
    member("server lock --reason", "billing db", "web")
    (lock,) = member.json("server lock list web")
    assert (lock["Kind"], lock["Name"], lock["Blocks"], lock["Reason"]) == ("owner", "", "all", "billing db")
    assert re.fullmatch(TIME, lock["Placed"])
    assert member.json("server show -c locked web") == {"locked": True}
    member("server unlock", web)
    assert member.json("server lock list web") == []


def test_locks_of_a_server(member: OpenStack, admin: OpenStack, web: str) -> None:
    """Stacked, by the server's name or id, and by an admin of another project; released one by one."""
    made = member.json(
        "server lock add web --name nightly --block delete --block stop --expires 2h --reason", "Backups."
    )
    assert (made["kind"], made["name"], made["blocks"]) == ("owner", "nightly", ["delete", "stop"])
    assert (made["in_flight"], made["confirmed"], made["ticket"]) == (None, None, None)
    theirs = admin.json("server lock add web --reason Unpaid. --ticket T-9")
    assert (theirs["kind"], theirs["ticket"]) == ("admin", "T-9")
    listed = member("server lock list", web)
    assert "| the provider " in listed
    assert made["id"] in listed
    assert "T-9" not in listed
    refused = member.refused("server lock release web", theirs["id"])
    assert (
        refused == f"{theirs['name']} ({theirs['id'][:8]}) is not yours to release: the provider placed it.\n"
    )
    assert member.refused("server lock release web nosuch").startswith(
        "There is no lock 'nosuch' there; there are: "
    )
    says = f"Instance {web} is locked. It was locked by the provider at "
    assert says in member.refused("server stop web")
    admin("server lock release web", theirs["id"], "--reason", "Paid.")
    member("server lock release web nightly")
    assert member.json("server lock list web") == []


def test_a_hold(member: OpenStack, admin: OpenStack, web: str) -> None:
    """Off, and not started by anybody, until it is released."""
    held = admin.json("server hold place web --name case --ticket T-1 --reason", "Case 7.")
    assert (held["kind"], held["off"], held["confirmed"]) == ("hold", True, True)
    until(admin, web, "SHUTOFF")
    for client in (member, admin):
        assert "by the provider (a hold) at " in client.refused("server start", web)
    explained: list[dict[str, Any]] = member.json("server explain web")
    (start,) = (each for each in explained if each["Action"] == "start")
    assert start["Comes to"] == "blocked"
    assert "Case 7." in start["Because"]
    (stop,) = member.json("server explain web --action os-stop")
    assert stop["Comes to"] == "blocked"
    assert member.refused("server hold place web --reason no").startswith(
        "Policy doesn't allow stateward:holds:place to be performed."
    )
    admin("server hold release web case")
    member("server start web")
    until(member, web, "ACTIVE")


def test_what_is_written_wrongly(member: OpenStack, web: str) -> None:
    """Ends with 2; what is refused ends with 1 and a sentence."""
    wrong = member.run("server", "lock", "add", "web", "--expires", "soon")
    assert (wrong.status, wrong.out) == (2, "")
    assert "argument --expires: 'soon' is no time: write a duration, as 90m, 2h or 1d12h" in wrong.err
    assert member.run("server", "hold", "place", "web").status == 2
    assert member.refused("server lock list nosuch") == "There is no server that is named 'nosuch'.\n"
    assert member.refused("server explain web --action fly").startswith(
        "There is no action 'fly'; there are: "
    )
