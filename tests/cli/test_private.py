"""What a server keeps is its own to read."""

from __future__ import annotations

import stat
from pathlib import Path

from tests.harness import ServerProcess


async def test_nobody_else_reads_what_a_server_keeps(tmp_path: Path) -> None:
    """Its folder can be passed through, for QEMU; databases, journal, secret and passwords are for its user only."""
    async with ServerProcess(tmp_path) as server:
        files = [*server.data.glob("stateward.db*"), *server.data.glob("hosts/*/journal.db*")]
        files += [server.data / "secret", server.data / "clouds.yaml"]
        assert len(files) == 8
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}
        assert set(modes.values()) == {0o600}, modes
        await server.stop()
