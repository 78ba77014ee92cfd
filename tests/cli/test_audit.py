"""``stateward audit``: what it finds, what it writes, and what it cannot read."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from stateward.cli.main import main
from stateward.domain.locks import ActorKind
from stateward.store import operations
from stateward.store.engine import open_database
from stateward.store.schema import HEAD
from tests import postgres
from tests.process import command, serving
from tests.rows import NOW, actor

ADR = Path(__file__).parents[2] / "docs/adr/0015-the-audit-trail.md"


def run(*words: str | Path) -> Result:
    """Run ``stateward audit``."""
    return CliRunner().invoke(main, ["audit", *map(str, words)])


def fill(url: sa.URL, count: int, at_once: int = 1000) -> None:
    """Append records, a second apart."""

    async def write() -> None:
        database = open_database(url.render_as_string(hide_password=False))
        for first in range(0, count, at_once):

            def work(connection: sa.Connection, first: int = first) -> None:
                for number in range(first, min(first + at_once, count)):
                    operations.record(
                        connection,
                        at=NOW + number,
                        event="admitted",
                        actor=actor(ActorKind.MEMBER),
                        instance_id="5d3fa2c8-1f0e-4c3f-9e57-3a4b1f1d2c3e",
                        operation_id="7c1e4d90-5a52-4f0b-8c11-9c0d8e7f6a5b",
                        action=f"é {number}",
                        detail={"shutdown": {"seconds": 60, "origin": "default"}},
                    )

            await database.write(work)
        await database.close()

    asyncio.run(write())


@pytest.fixture
def data(sqlite_url: sa.URL) -> Path:
    """Give a data folder with a trail of five records."""
    assert sqlite_url.database is not None
    fill(sqlite_url, 5)
    return Path(sqlite_url.database).parent


def spoil(data: Path, *statements: str) -> None:
    """Change the trail as somebody does who may do everything."""
    with sqlite3.connect(data / "stateward.db") as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_a_whole_trail(data: Path) -> None:
    """It says how long it is, and its head; an empty one is whole too."""
    done = run("verify", "--data", data)
    assert done.exit_code == 0, done.output
    assert re.fullmatch(r"The audit trail is whole: 5 records, head [0-9a-f]{64}\.\n", done.output)


def test_on_both_databases(database_url: sa.URL) -> None:
    """By an address; nothing yet, and then something."""
    url = database_url.render_as_string(hide_password=False)
    done = run("verify", "--database", url)
    assert (done.exit_code, done.output) == (0, f"The audit trail is whole: 0 records, head {'0' * 64}.\n")
    fill(database_url, 3)
    done = run("verify", "--database", url)
    assert (done.exit_code, "3 records" in done.output) == (0, True)
    lines = run("export", "--database", url).output.splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2, 3]
    assert json.loads(run("head", "--database", url).output)["number"] == 3


def test_what_is_not_sealed_yet(postgres_server: postgres.Postgres) -> None:
    """Is told beside what is whole, is in no export, and can be sealed when no server does it."""
    with postgres_server.database() as database:
        url = database.render_as_string(hide_password=False)
        fill(database, 3)
        engine = sa.create_engine(database, poolclass=sa.NullPool)
        for _turn in range(2):
            with engine.begin() as connection:
                connection.execute(
                    sa.text(
                        "INSERT INTO audit_unsealed (at, event, actor_kind, user_id, project_id, request_id, detail) "
                        "SELECT at, event, actor_kind, user_id, project_id, request_id, detail FROM audit LIMIT 1"
                    )
                )
        done = run("verify", "--database", url)
        first, last = done.output.splitlines()
        assert (done.exit_code, last.startswith("The audit trail is whole: 3 records, head ")) == (0, True)
        assert first.startswith("2 records not sealed yet: ")
        assert len(run("export", "--database", url).output.splitlines()) == 3
        assert (run("seal", "--database", url).output, run("seal", "--database", url).output) == (
            "2 records sealed.\n",
            "0 records sealed.\n",
        )
        assert run("verify", "--database", url).output.startswith(
            "The audit trail is whole: 5 records, head "
        )
        with engine.begin() as connection:
            connection.execute(
                sa.text(
                    "INSERT INTO audit SELECT 6, at, event, instance_id, operation_id, action, "
                    "actor_kind, user_id, project_id, request_id, detail, hash FROM audit WHERE number = 5"
                )
            )
            connection.execute(
                sa.text(
                    "INSERT INTO audit_unsealed (at, event, actor_kind, user_id, project_id, request_id, detail) "
                    "SELECT at, event, actor_kind, user_id, project_id, request_id, detail FROM audit LIMIT 1"
                )
            )
        refused = run("seal", "--database", url)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert refused.stderr.startswith("stateward: The audit trail has records past its head: ")
        assert refused.stderr.count("\n") == 1


def test_nothing_is_ever_unsealed_on_sqlite(data: Path) -> None:
    """It is chained in the transaction; the database takes nothing else."""
    assert run("seal", "--data", data).output == "0 records sealed.\n"
    with (
        sqlite3.connect(data / "stateward.db") as connection,
        pytest.raises(sqlite3.IntegrityError, match="at once"),
    ):
        connection.execute("INSERT INTO audit_unsealed VALUES (1, 1, '', '', '', '', '', '', '', '', '')")
    connection.close()


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        (
            "UPDATE audit SET detail = '{}' WHERE number = 3",
            "Record 3 was changed: it is not what was written.",
        ),
        (
            "UPDATE audit SET at = at + 1 WHERE number = 1",
            "Record 1 was changed: it is not what was written.",
        ),
        (
            "UPDATE audit SET user_id = x'ff' WHERE number = 5",
            "Record 5 was changed: it is not what was written.",
        ),
        ("UPDATE audit SET detail = NULL WHERE number = 2", "NOT NULL"),
        ("DELETE FROM audit WHERE number = 2", "Record 2 is missing; record 3 cannot be checked without."),
        ("DELETE FROM audit WHERE number > 3", "Records 4 to 5 are missing at the end."),
        ("DELETE FROM audit_head", "The head that is kept beside the trail is missing."),
    ],
)
def test_what_is_wrong_is_named(data: Path, statement: str, says: str) -> None:
    """With the record's number, and status 1."""
    if says == "NOT NULL":
        with pytest.raises(sqlite3.IntegrityError, match=says):
            spoil(data, statement)
        return
    spoil(data, statement)
    done = run("verify", "--data", data)
    assert done.exit_code == 1
    first, last = done.output.splitlines()
    assert first == says
    assert last.startswith("The audit trail is NOT whole: ")


def test_records_that_changed_places(data: Path) -> None:
    """Both are named."""
    spoil(
        data,
        "UPDATE audit SET number = -1 WHERE number = 2",
        "UPDATE audit SET number = 2 WHERE number = 4",
        "UPDATE audit SET number = 4 WHERE number = -1",
    )
    done = run("verify", "--data", data)
    assert done.exit_code == 1
    assert done.output.splitlines()[:2] == [
        "Record 2 is out of order: it was record 4.",
        "Record 4 is out of order: it was record 2.",
    ]


def test_a_cut_that_is_covered_up_is_found_by_the_published_head(data: Path, tmp_path: Path) -> None:
    """The database alone looks whole; the file from before knows better."""
    file = tmp_path / "head.json"
    assert run("head", "--data", data, "--write", file).exit_code == 0
    assert run("verify", "--data", data, "--head", file).exit_code == 0
    spoil(
        data,
        "DELETE FROM audit WHERE number > 3",
        "UPDATE audit_head SET number = 3, hash = (SELECT hash FROM audit WHERE number = 3)",
    )
    assert run("verify", "--data", data).exit_code == 0
    done = run("verify", "--data", data, "--head", file)
    assert done.exit_code == 1
    assert done.output.splitlines()[0] == "Record 5 was published as the trail's head, and is missing."


def test_a_head_is_published_in_one_step(data: Path, tmp_path: Path) -> None:
    """The same line as is shown; the old file is replaced, and nothing else is left."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "head").write_text("old")
    assert run("head", "--data", data, "--write", folder / "head").output == ""
    shown = run("head", "--data", data).output
    assert (folder / "head").read_text() == shown
    assert set(json.loads(shown)) == {"number", "hash"}
    assert [each.name for each in folder.iterdir()] == ["head"]
    refused = run("head", "--data", data, "--write", tmp_path / "no" / "head")
    assert refused.exit_code == 2
    assert (
        refused.stderr
        == f"stateward: The file {tmp_path}/no/head cannot be written: No such file or directory.\n"
    )


def test_an_export_is_chained(data: Path, tmp_path: Path) -> None:
    """From a number or a time on, to a file or to standard output, each line with the hash before it."""
    whole = run("export", "--data", data).output.splitlines()
    assert [json.loads(line)["number"] for line in whole] == [1, 2, 3, 4, 5]
    for before, after in itertools.pairwise(whole):
        assert json.loads(after)["previous"] == json.loads(before)["hash"]
    assert run("export", "--data", data, "--since", "4").output.splitlines() == whole[3:]
    assert run("export", "--data", data, "--since", "2023-11-14T22:13:22Z").output.splitlines() == whole[2:]
    assert run("export", "--data", data, "--since", "2023-11-14T22:13:22").output.splitlines() == whole[2:]
    assert run("export", "--data", data, "--since", "2999-01-01").output == ""
    assert run("export", "--data", data, "--since", "6").output == ""
    assert run("export", "--data", data, "-o", tmp_path / "out").output == ""
    assert (tmp_path / "out").read_text().splitlines() == whole


def test_an_outsider_can_check_an_export(data: Path, tmp_path: Path) -> None:
    """With the program that the ADR prints, and nothing of ours."""
    found = re.search(r"```python\n(.*?)```", ADR.read_text(), re.DOTALL)
    assert found is not None
    export = tmp_path / "trail.jsonl"
    run("export", "--data", data, "-o", export)

    def checked() -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", found[1], export], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    last = json.loads(export.read_text().splitlines()[-1])["hash"]
    assert checked() == (0, f"5 {last}\n")
    export.write_text(export.read_text().replace('"é 3"', '"é 4"'))
    assert checked() == (1, "record 4 is not what was written\n")


def test_what_cannot_be_read(data: Path, tmp_path: Path) -> None:
    """One line that says what is wrong, and status 2: not to be mistaken for a trail that is whole or broken."""
    nothing = tmp_path / "nothing"
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "text"
    text.mkdir()
    (text / "stateward.db").write_text("This is no database. " * 100)
    other = tmp_path / "other"
    other.mkdir()
    sqlite3.connect(other / "stateward.db").executescript("CREATE TABLE x (y)").connection.close()
    settings = tmp_path / "settings.toml"
    settings.write_text('database = "nosuch://"')
    (tmp_path / "head").write_text("{}")
    cases: list[tuple[list[str | Path], str]] = [
        (["--data", nothing], f"There is no data folder {nothing}. Name one with --data."),
        (
            ["--data", text / "stateward.db"],
            f"There is no data folder {text}/stateward.db. Name one with --data.",
        ),
        (["--data", empty], f"There is no database in the data folder {empty}: no server has run on it."),
        (
            ["--data", text],
            f"The database sqlite:///{text}/stateward.db cannot be read: file is not a database.",
        ),
        (["--data", other], f"The database sqlite:///{other}/stateward.db is not one of Stateward's."),
        (["--database", "x"], "That is not the address of a database: Could not parse SQLAlchemy URL from "),
        (
            ["--database", f"sqlite:///{nothing}"],
            f"The database sqlite:///{nothing} cannot be read: unable to open",
        ),
        (["--config", settings], "That is not the address of a database: Can't load plugin: "),
        (["--config", nothing], f"The settings file {nothing} cannot be read: No such file or directory."),
        (
            ["--database", "postgresql+psycopg://u:secret@127.0.0.1:1/x?connect_timeout=2"],
            "Connection refused",
        ),
        (
            ["--data", data, "--head", nothing],
            f"The file {nothing} cannot be read: No such file or directory.",
        ),
        (
            ["--data", data, "--head", tmp_path / "head"],
            f"The file {tmp_path}/head is not one that stateward audit",
        ),
    ]
    for words, says in cases:
        done = run("verify", *words)
        assert (done.exit_code, done.stdout) == (2, ""), (words, done.output)
        assert done.stderr.startswith("stateward: "), done.stderr
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
        assert "secret" not in done.stderr
    assert not nothing.exists()
    refused = run("export", "--data", data, "--since", "yesterday")
    assert refused.exit_code == 2
    assert "'yesterday' is neither a record's number nor a time" in refused.stderr
    for beyond in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        assert run("export", "--data", data, "--since", beyond).exit_code == 0


def test_other_schemas(data: Path) -> None:
    """A newer or older Stateward's database is not judged by the rules of this one."""
    spoil(data, "ALTER TABLE audit DROP COLUMN hash")
    done = run("verify", "--data", data)
    assert (done.exit_code, "is of an older Stateward, whose audit trail has no hashes." in done.stderr) == (
        2,
        True,
    )
    spoil(data, "UPDATE alembic_version SET version_num = '9999'")
    done = run("verify", "--data", data)
    assert (
        done.exit_code,
        f"has the schema of another Stateward (9999; this one's is {HEAD})." in done.stderr,
    ) == (
        2,
        True,
    )


def test_beside_a_running_server(tmp_path: Path) -> None:
    """An administrator's login is seen at once, while the server goes on."""
    with serving(tmp_path / "data") as server:
        environment = server.environment | {"OS_CLOUD": "stateward-admin"}
        line = command("operation", "show", "11111111-1111-1111-1111-111111111111")
        asked = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert "There is no operation" in asked.stderr
        line = command("audit", "verify", "--data", server.data)
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("The audit trail is whole: 1 record, head ")
    assert run("verify", "--data", tmp_path / "data").output == done.stdout


def test_a_hundred_thousand_records(sqlite_url: sa.URL) -> None:
    """They are verified within 2 seconds of processor time; the best of three counts."""
    fill(sqlite_url, 100_000, 10_000)

    def seconds() -> float:
        began = time.process_time()
        done = run("verify", "--database", sqlite_url.render_as_string())
        took = time.process_time() - began
        assert done.exit_code == 0
        assert "100000 records" in done.output
        return took

    assert min(seconds() for _ in range(3)) < 2


def test_a_bar_on_a_terminal(data: Path) -> None:
    """What takes long says how far it is, where somebody looks."""
    leader, follower = os.openpty()
    with subprocess.Popen(
        command("audit", "verify", "--data", str(data)), stdout=subprocess.PIPE, stderr=follower
    ) as process:
        out, _none = process.communicate(timeout=60)
    seen = os.read(leader, 65536).decode()
    os.close(follower)
    os.close(leader)
    assert process.returncode == 0
    assert out.startswith(b"The audit trail is whole: 5 records")
    assert "checking the audit trail" in seen
