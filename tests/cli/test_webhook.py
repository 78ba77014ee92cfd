"""``stateward webhook`` and ``stateward event`` against a served Stateward: what is nothing is refused, and named."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import click.testing
import msgspec
import pytest
import pytest_asyncio

from stateward.cli.main import main
from tests.harness import ServerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Ran(msgspec.Struct, frozen=True):
    """What a command did."""

    status: int
    out: str
    err: str


class Cloud:
    """A served Stateward, and the command line of its administrator."""

    def __init__(self, served: ServerProcess) -> None:
        self.environment = {
            **{name: "" for name in os.environ if name.startswith("OS_")},
            "OS_CLIENT_CONFIG_FILE": str(served.data / "clouds.yaml"),
            "OS_CLOUD": "stateward-admin",
        }

    def run(self, *words: str) -> Ran:
        """Run a command to its end, in this process."""
        done = click.testing.CliRunner(env=self.environment).invoke(main, words, prog_name="stateward")
        assert done.exception is None or isinstance(done.exception, SystemExit), (words, done.exception)
        return Ran(done.exit_code, done.stdout, done.stderr)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cloud(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    """Serve, with a webhook ``pager`` that is told nothing that happens here."""
    async with ServerProcess(tmp_path_factory.mktemp("served")) as server:
        await server.hasten_logins()
        cloud = Cloud(server)
        made = cloud.run("webhook", "add", "pager", "https://example.invalid/hook", "--type", "lock.*")
        assert (made.status, made.err) == (0, "")
        yield cloud
        await server.stop()
        assert server.faults() == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("webhook", "show", "pager/dead-letters"), "Webhook pager/dead-letters could not be found."),
        (("webhook", "show", ".."), "Webhook .. could not be found."),
        (("webhook", "delete", ""), "Webhook  could not be found."),
        (("webhook", "show", "nope"), "Webhook nope could not be found."),
        (("webhook", "add", "x", "https://example.org/", "--host", "nope"), "Host nope could not be found."),
        (
            ("webhook", "redeliver", "pager", "5", "6"),
            "Webhook pager has no dead letter 5, 6; nothing is delivered again.",
        ),
        (("event", "list", "--host", "nope"), "Host nope could not be found."),
        (("event", "watch", "--host", "nope"), "Host nope could not be found."),
    ],
)
async def test_what_is_nothing(cloud: Cloud, words: tuple[str, ...], says: str) -> None:
    """It is named, with status 1."""
    assert cloud.run(*words) == Ran(1, "", f"stateward: {says}\n")


async def test_a_name_with_a_slash(cloud: Cloud) -> None:
    """No webhook is called so."""
    ran = cloud.run("webhook", "add", "a/b", "https://example.org/")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (
        "stateward: The request's body cannot be used: `name` must be letters, digits, '.', '_' and '-', "
        "with a letter or a digit first.\n"
    )


async def test_a_number_that_no_letter_has(cloud: Cloud) -> None:
    """It is a mistake in the command line."""
    ran = cloud.run("webhook", "redeliver", "pager", "99999999999999999999999")
    assert ran.status == 2
    assert "is not in the range" in ran.err


async def test_a_change_of_nothing(cloud: Cloud) -> None:
    """It is a mistake in the command line: nothing was changed."""
    ran = cloud.run("webhook", "set", "pager")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.endswith("Error: Say what to change: --url, --type, --enable or --disable.\n")


async def test_logins_are_shown_when_asked_for(cloud: Cloud) -> None:
    """Each command is one."""
    plain = cloud.run("event", "list")
    assert plain.status == 0
    assert "identity.login" not in plain.out
    assert "webhook.changed" in plain.out
    head, *rows = cloud.run("event", "list", "--type", "identity.*").out.splitlines()
    assert head.split() == ["Time", "Event", "About", "By", "Says"]
    assert rows
    assert all("identity.login" in row for row in rows)


async def test_a_place_that_is_to_come(cloud: Cloud) -> None:
    """A list refuses it as the stream does."""
    for what in ("list", "watch"):
        ran = cloud.run("event", what, "--after", "999999999999999999")
        assert (ran.status, ran.out) == (1, "")
        assert "There is no event 999999999999999999.9 yet" in ran.err
