"""What ``stateward serve`` cannot do it says in one line, and ends; never with a traceback."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from stateward.cli.main import main
from tests.process import command, serving

SIMULATED = ("--driver", "simulated", "--listen", "127.0.0.1:0")


def run(*words: str | Path, **environment: str) -> tuple[int, str, str]:
    """Run the command to its end; return its status and what it wrote to both streams."""
    done = subprocess.run(
        command(*words), capture_output=True, text=True, check=False, timeout=60, env=os.environ | environment
    )
    return done.returncode, done.stdout, done.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """Another program's port is named, with what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = run("serve", "--data", tmp_path, "--listen", address, "--driver", "simulated")
    message = f"stateward: Cannot listen on {address}: Address already in use. Name another address with --listen.\n"
    assert refused == (1, "", message)


def test_an_address_that_is_not_this_machines(tmp_path: Path) -> None:
    """An address that this machine does not have is named."""
    refused = run("serve", "--data", tmp_path, "--listen", "192.0.2.1:8774", "--driver", "simulated")
    message = (
        "stateward: Cannot listen on 192.0.2.1:8774: Cannot assign requested address. "
        "Name another address with --listen.\n"
    )
    assert refused == (1, "", message)


def test_a_host_name_that_is_not_known(tmp_path: Path) -> None:
    """A name that stands for no address is named."""
    status, out, err = run(
        "serve", "--data", tmp_path, "--listen", "nosuch.invalid:1", "--driver", "simulated"
    )
    assert (status, out) == (1, "")
    assert err.startswith("stateward: Cannot listen on nosuch.invalid:1: ")
    assert err.count("\n") == 1


def test_a_data_folder_in_use(tmp_path: Path) -> None:
    """Two servers on one folder would fight over its guests."""
    with serving(tmp_path / "data"):
        refused = run("serve", "--data", tmp_path / "data", *SIMULATED)
    message = (
        f"stateward: Another server is running on the data folder {tmp_path / 'data'}. "
        "Stop it, or name another with --data.\n"
    )
    assert refused == (1, "", message)


def test_a_database_in_use(tmp_path: Path, bare_url: sa.URL) -> None:
    """A server's agents hear nothing of what another one dispatches, and what is told would be told twice."""
    config, address = tmp_path / "config", bare_url.render_as_string(hide_password=False)
    config.write_text(f'database = "{address}"\n[[host]]\nname = "h"\ndriver = "simulated"\n')
    begin = ("serve", "--config", config, "--listen", "127.0.0.1:0")
    with serving(tmp_path / "data", "--config", str(config)):
        refused = run(*begin, "--data", tmp_path / "other")
    message = (
        f"stateward: Another server is running on the database {address}. Stop it, or name another in the setting "
        "database; one whose machine has gone lets go of it within a minute.\n"
    )
    assert refused == (1, "", message)
    with serving(tmp_path / "other", "--config", str(config)):
        pass


def test_a_data_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """A folder below a file can be nobody's; root meets no other refusal."""
    (tmp_path / "file").write_text("")
    refused = run("serve", "--data", tmp_path / "file" / "data", *SIMULATED)
    message = (
        f"stateward: The data folder {tmp_path / 'file' / 'data'} cannot be used: Not a directory. "
        "Name another with --data.\n"
    )
    assert refused == (1, "", message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shutdown = [", "is not TOML: "),
        ("\udcff", "is not TOML: it is not written in UTF-8."),
        ("nosuch = 1", "The settings cannot be used: Object contains unknown field `nosuch`"),
        ("shutdown = 5", "The settings cannot be used: Expected `object`, got `int` - at `$.shutdown`"),
        (
            "[shutdown]\ndefault = -1",
            "The settings cannot be used: Expected `int` >= 0 - at `$.shutdown.default`",
        ),
        (
            '[shutdown]\nat_deadline = "sleep"',
            "The settings cannot be used: Invalid enum value 'sleep' - at `$.shutdown.at_deadline`",
        ),
        (
            '[shutdown]\nat_deadline = "save"\nchoices = ["fail"]',
            "The settings cannot be used: shutdown.at_deadline is save, which shutdown.choices does not name.",
        ),
        (
            '[[host]]\nname = "a"\n[[host]]\nname = "a"',
            "The settings cannot be used: two hosts have one name: a, a",
        ),
        (
            '[agent]\nheartbeat = 30\n[death]\nlease = "/leases"\nlease_seconds = 59',
            "The settings cannot be used: death.lease_seconds is 59, which is not twice agent.heartbeat (30), with ",
        ),
        (
            '[[host]]\nname = "a"',
            "--driver and [[host]] tables in the settings contradict each other: use one of them",
        ),
        (
            'database = "nosuch://"',
            "The setting database is not an address that can be used: Can't load plugin: ",
        ),
        (
            'database = "x"',
            "The setting database is not an address that can be used: Could not parse SQLAlchemy URL",
        ),
        (
            'database = "sqlite:////nosuch/folder/file.db"',
            "The database sqlite:////nosuch/folder/file.db cannot be used: unable to open database file.",
        ),
        (
            'database = "postgresql+psycopg://nobody:secret@127.0.0.1:1/x?connect_timeout=2"',
            "port 1 failed: Connection refused",
        ),
    ],
)
def test_settings_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    """A bad settings file is refused in one line that names the setting."""
    path = tmp_path / "settings.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    status, out, err = run("serve", "--data", tmp_path / "data", *SIMULATED, "--config", path)
    assert (status, out) == (1, "")
    assert err.startswith("stateward: ")
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert "secret" not in err


def test_a_table_of_the_environment_that_is_none(tmp_path: Path) -> None:
    """A file and the environment may contradict each other; then the variable is named."""
    path = tmp_path / "settings.toml"
    path.write_text("shutdown = 5")
    refused = run("serve", "--data", tmp_path, *SIMULATED, "--config", path, STATEWARD_SHUTDOWN__DEFAULT="5")
    message = (
        "stateward: The settings cannot be used: "
        "STATEWARD_SHUTDOWN__DEFAULT sets a key of shutdown, which is no table.\n"
    )
    assert refused == (1, "", message)


def test_a_database_that_is_none(tmp_path: Path) -> None:
    """A damaged database is named, not written over."""
    (tmp_path / "stateward.db").write_text("no database " * 1000)
    refused = run("serve", "--data", tmp_path, *SIMULATED)
    message = (
        f"stateward: The database sqlite:///{tmp_path / 'stateward.db'} cannot be used: file is not a database. "
        "Check the setting database.\n"
    )
    assert refused == (1, "", message)


def test_a_settings_file_that_is_not_there(tmp_path: Path) -> None:
    """The file is named."""
    path = tmp_path / "nosuch.toml"
    refused = run("serve", "--data", tmp_path, *SIMULATED, "--config", path)
    message = f"stateward: The settings file {path} cannot be read: No such file or directory.\n"
    assert refused == (1, "", message)


def test_a_setting_of_the_environment(tmp_path: Path) -> None:
    """The environment's settings are checked as the file's are."""
    refused = run("serve", "--data", tmp_path, *SIMULATED, STATEWARD_SHUTDOWN__DEFAULT="soon")
    message = "stateward: The settings cannot be used: Expected `int`, got `str` - at `$.shutdown.default`\n"
    assert refused == (1, "", message)


@pytest.mark.parametrize(
    "address", ["", "8774", "localhost", ":8774", "localhost:", "a:b", "a:99999", "a:-1", "a:\u00b2"]
)
def test_an_address_that_is_none(tmp_path: Path, address: str) -> None:
    """What is not ADDRESS:PORT is a mistake in the command line, with an example of how it is written."""
    refused = CliRunner().invoke(main, ["serve", "--data", str(tmp_path), "--listen", address])
    assert (refused.exit_code, refused.stdout) == (2, "")
    expected = f"{address!r} is not ADDRESS:PORT, for example 127.0.0.1:8774"
    assert " ".join(refused.stderr.split()).endswith(expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nosuch"], "No such command 'nosuch'."),
        (["serve", "--nosuch"], "No such option '--nosuch'."),
        (
            ["serve", "--driver", "xen"],
            "Invalid value for '--driver': 'xen' is not one of 'libvirt', 'simulated'.",
        ),
    ],
)
def test_a_mistake_in_the_command_line(words: list[str], message: str) -> None:
    """A mistake in the command line is status 2, with the usage."""
    status, out, err = run(*words)
    assert (status, out, err.splitlines()[-1]) == (2, "", f"Error: {message}")
