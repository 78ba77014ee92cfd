"""The command, what it says of scripts that cannot be played, and that the same script gives the same log."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from stateward.cli.main import main
from stateward.simulation.engine import PHRASES, play
from stateward.simulation.loop import NothingLeft, run
from stateward.simulation.script import BadScript, parse, seconds_of, with_expected
from tests.harness import ROOT

DOC = ROOT / "docs" / "simulate.md"
SCRIPT = "host h1\ninstance web1 on h1\nat 10s guest web1 powers itself off\nuntil 20s\n"
LOG = [
    "   10.000  > guest web1 powers itself off",
    "   10.000  h1: guest web1: shutoff (guest)",
    (
        "   10.010  web1: verdict adopt, active but shutoff (guest): "
        "The guest shut itself down; it is recorded as stopped."
    ),
    "   10.010  web1: is stopped",
    "   20.000  = web1: stopped on h1; guest shutoff (guest) on h1",
]


def simulate(*words: str | Path) -> tuple[int, str, str]:
    """Run the command in this process."""
    done = CliRunner().invoke(main, ["simulate", *map(str, words)])
    return done.exit_code, done.stdout, done.stderr


def test_a_script_without_expectations(tmp_path: Path) -> None:
    """Its log is printed, and that is all."""
    path = tmp_path / "a"
    path.write_text(SCRIPT)
    assert simulate(path) == (0, "\n".join(LOG) + "\n", "")
    assert path.read_text() == SCRIPT


def test_what_is_written_is_expected(tmp_path: Path) -> None:
    """``--write`` puts the log into the file; a change then is a difference, and writing again mends that."""
    path = tmp_path / "a"
    path.write_text(SCRIPT)
    assert simulate(path, "--write")[0] == 0
    assert path.read_text() == SCRIPT + "\nexpect:\n" + "".join(f"  {line}\n" for line in LOG)
    assert simulate(path)[0] == 0
    path.write_text(path.read_text().replace("at 10s", "at 9s"))
    status, out, _ = simulate(path)
    assert status == 1
    assert "-10.010  web1: is stopped\n" in out
    assert "+9.010  web1: is stopped\n" in out
    assert " 20.000  = web1: stopped on h1; guest shutoff (guest) on h1\n" in out
    assert simulate(path, "--write")[0] == 0
    assert simulate(path)[0] == 0


def test_a_mark_of_the_byte_order(tmp_path: Path) -> None:
    """Some editors begin a file with one; it means nothing."""
    path = tmp_path / "a"
    path.write_text(SCRIPT, encoding="utf-8-sig")
    assert simulate(path) == (0, "\n".join(LOG) + "\n", "")


def test_a_server_s_settings(tmp_path: Path) -> None:
    """A policy of a settings file counts; what the script says is laid over it."""
    settings = tmp_path / "settings.toml"
    settings.write_text(
        '[policies]\ndefault = "on"\n[[policy.on.rule]]\nexpected = "active"\nobserved = "shutoff"\n'
        'verdict = "restore"\n'
    )
    path = tmp_path / "a"
    path.write_text(SCRIPT)
    assert "20.000  = web1: active on h1; guest running on h1\n" in simulate(path, "--config", settings)[1]
    path.write_text(SCRIPT + "settings:\n  [arbiter]\n  restores = 0\n")
    status, out, err = simulate(path, "--config", settings)
    assert (status, out) == (2, "")
    assert err.startswith(f"stateward: {path}, line 5: The settings cannot be used: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "There is no host: begin with a line like 'host h1'."),
        (
            "hots h1",
            (
                "line 1: 'hots' begins no line; a line begins with host, instance, first, at or until, or is "
                "'settings:' or 'expect:'."
            ),
        ),
        ("host h1\nhost h1", "line 2: There are two hosts h1."),
        ("host h1..h100000000", "line 1: A script has 100 hosts at most."),
        ("host h1..h60\nhost g1..g60", "line 2: A script has 100 hosts at most."),
        ("host h9..h1", "line 1: 'h9..h1' names nothing: it ends before it begins."),
        ("host h1\ninstance a1..a1001", "line 2: A script has 1000 instances at most."),
        ("host h1\ninstance a1..a600\ninstance b1..b600", "line 3: A script has 1000 instances at most."),
        ("host h1 memory=1000000001", "line 1: memory is 1000000000 at most."),
        (f"host h1 memory={'9' * 5000}", "line 1: memory is 1000000000 at most."),
        (
            "host h1\nat 99999999999999h host h1 dies",
            "line 2: With one host a simulation lasts 10080m at most.",
        ),
        ("host h1..h100\nuntil 101m", "line 2: With 100 hosts a simulation lasts 100m at most."),
        (f"host h1\nuntil {'9' * 400}h", "line 2: With one host a simulation lasts 10080m at most."),
        ("host h1\nat 1s clock of h1 jumps +8785h", "line 2: '+8785h' is too long; 8784h is the most."),
        (
            "host h1\nuntil 10s\nat 9s host h1 dies\nat 10100ms host h1 comes back",
            "line 4: It happens after the end, which line 2 says.",
        ),
        ("host h1\nuntil 10s\nuntil 20s", "line 3: Line 2 says already when it ends."),
        (
            "host h1\ninstance a guest.shutdown=abc",
            "line 2: guest.shutdown is a number of seconds, not 'abc'.",
        ),
        ("host h1\ninstance a guest.boot=-5", "line 2: guest.boot is a number of seconds, not '-5'."),
        ("host h1\ninstance a guest.acpi=obey", "line 2: guest.acpi is ignore, not 'obey'."),
        ("host h1\ninstance a guest.agent=yes", "line 2: guest.agent is answer or mute, not 'yes'."),
        (
            "host h1\ninstance a guest.typo=1",
            (
                "line 2: There is no guest.typo; there are guest.shutdown, guest.boot, guest.poweroff_after, "
                "guest.panic_after, guest.acpi, guest.agent."
            ),
        ),
        ("host h1 cpus=3", "line 1: A host has no cpus; it has vcpus, memory, disk, zone and shared."),
        ("host h1 vcpus=many", "line 1: vcpus is a whole number, not 'many'."),
        (
            'settings:\n  [[host]]\n  name = "h7"\n  policy = "x"\nhost h1',
            "line 1: There is no host h7: declare it by 'host h7'.",
        ),
        (
            'settings:\n  [[host]]\n  policy = "x"\nhost h1',
            "line 1: The settings cannot be used: Object missing required field `name` - at `$.host[0]`",
        ),
        (
            'settings:\n  [host]\n  name = "h1"\nhost h1',
            "line 1: The settings cannot be used: Expected `array`, got `object` - at `$.host`",
        ),
        (
            'settings:\n  host = ["h1"]\nhost h1',
            "line 1: The settings cannot be used: Expected `object`, got `str` - at `$.host[0]`",
        ),
        ("host h1\ninstance a on h2", "line 2: There is no host h2: declare it by 'host h2'."),
        ("host h1\ninstance a\ninstance a", "line 3: There are two instances a."),
        ("host h1\n\ninstance 3", "line 3: '3' is no name; write web1, or w1..w20 for twenty."),
        ("host h1\nat soon guest a crashes", "line 2: 'soon' is no time; write 10s, 1m30s or 500ms."),
        ("host h1\nat 3s", "line 2: It says when, and not what: for example 'at 10s guest web1 crashes'."),
        (
            "host h1\nat 3s guest a crashes",
            "line 2: There is no instance a: declare it by 'instance a on HOST'.",
        ),
        ("host h1\nat 3s host h2 dies", "line 2: There is no host h2: declare it by 'host h2'."),
        (
            "host h1\n  instance a",
            "line 2: 'instance a' is indented, which only the lines under 'settings:' and 'expect:' are.",
        ),
        ("host h1\nexpect:\n\nexpect:", "line 4: There is a second 'expect:'; one block says all."),
        (
            "host h1\nat 1s host h1 naps",
            (
                "line 2: 'host h1 naps' is not understood. What begins so is one of:\n  host {host} dies\n"
                "  host {host} comes back\n  host {host} reboots in {time}"
            ),
        ),
        (
            "host h1 vcpus=1\ninstance a on h1 vcpus=9",
            "line 2: There is no room for a: No valid host was found. There are not enough hosts available.",
        ),
        (
            "host h1\ninstance a on h1 shelved",
            "line 2: Nothing is shelved while shelve.offload is true; set it otherwise.",
        ),
    ],
)
def test_a_script_that_cannot_be_played(tmp_path: Path, text: str, message: str) -> None:
    """The line is named, and what to write; nothing is guessed."""
    path = tmp_path / "a"
    path.write_text(text)
    status, out, err = simulate(path)
    assert (status, out) == (2, "")
    assert err.startswith(f"stateward: {path}, {message}")


def test_a_state_that_is_none() -> None:
    with pytest.raises(BadScript, match="line 2: No instance is 'asleep'; it is one of active, stopped, "):
        parse("host h1\ninstance a on h1 asleep")


def test_nothing_that_begins_so() -> None:
    with pytest.raises(
        BadScript, match="line 2: Nothing that happens begins with 'pigs'; it begins with a, "
    ):
        play(parse("host h1\nat 1s pigs fly"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert simulate(tmp_path / "a") == (2, "", f"stateward: {tmp_path / 'a'}: No such file or directory\n")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("1m30s", 90), ("1h", 3600), ("500ms", 0.5), ("1.5s", 1.5), ("", None), ("5", None)],
)
def test_times(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


def test_the_docs_name_every_phrase() -> None:
    """And their example is what is seen."""
    text = DOC.read_text(encoding="utf-8")
    assert {
        phrase.pattern for phrase in PHRASES if f"- `{phrase.pattern}`  \n  {phrase.says}\n" not in text
    } == set()
    example = re.findall(r"```\n(.*?)```\n", text, re.DOTALL)[0]
    script = parse(example)
    assert with_expected(example, play(script)) == example


@pytest.mark.slow
def test_the_same_log_in_every_process(tmp_path: Path) -> None:
    """Whatever order Python's sets have there: ids, dice and time are a script's own."""
    path = tmp_path / "a"
    path.write_text(
        "host h1\nhost h2\ninstance w1..w12\nfirst messages of h1 come in any order within 5s\n"
        "first messages of h2 come twice\nat 5s guest w* crashes\nat 20s host h1 reboots in 9s\n"
        "at 30s customer stops w3,w4,w5\nat 31s server is killed for 4s\nuntil 3m\n"
    )
    logs = [
        subprocess.run(
            [sys.executable, "-c", "from stateward.cli.main import main; main()", "simulate", str(path)],
            capture_output=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert logs[0] == logs[1]
    assert len(logs[0].splitlines()) > 30


def test_waiting_for_what_cannot_come_is_an_error() -> None:
    """A simulation that hangs says so."""
    import asyncio

    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(NothingLeft):
        run(wait(), seed=1)
