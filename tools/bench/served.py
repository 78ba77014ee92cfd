"""A server of one's own for a measurement: started on a free port, with a token, stopped at the end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

_PASSWORD = re.compile(r"username: demo\n\s+password: \"([^\"]*)\"")


class Served:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], data: Path, address: str, ready: float) -> None:
        """Log in as the member of project demo."""
        self.process = process
        self.data = data
        self.address = address
        self.port = int(address.rpartition(":")[2])
        #: Seconds from the start of the process to its ready line.
        self.ready = ready
        self.token = self._log_in()

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Ask the Compute API and return its decoded answer; raises ``HTTPError`` for a refusal."""
        return self.ask(method, f"/compute/v2.1{path}", body)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Ask any of the APIs by its whole path."""
        return self._ask(method, path, None if body is None else json.dumps(body).encode())[0]

    def upload(self, path: str, content: bytes) -> None:
        """Send bytes."""
        self._ask("PUT", path, content, "application/octet-stream")

    def resident(self) -> float:
        """Return the memory the process holds, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024 / 1e6

    def images(self) -> dict[str, str]:
        """Return the images' ids by name."""
        return {image["name"]: image["id"] for image in self.ask("GET", "/image/v2/images")["images"]}

    def _ask(
        self, method: str, path: str, body: bytes | None, kind: str = "application/json"
    ) -> tuple[Any, dict[str, str]]:
        request = urllib.request.Request(  # noqa: S310 (our own server's address)
            f"{self.address}{path}",
            method=method,
            data=body,
            headers={
                "X-Auth-Token": getattr(self, "token", ""),
                "OpenStack-API-Version": "compute 2.104",
                "Content-Type": kind,
            },
        )
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            raw = answer.read()
            return (json.loads(raw) if raw else None), dict(answer.headers)

    def _log_in(self) -> str:
        found = _PASSWORD.search((self.data / "clouds.yaml").read_text())
        assert found is not None
        user = {"name": "demo", "domain": {"id": "default"}, "password": found[1]}
        body = {
            "auth": {
                "identity": {"methods": ["password"], "password": {"user": user}},
                "scope": {"project": {"name": "demo", "domain": {"id": "default"}}},
            }
        }
        headers = self._ask("POST", "/identity/v3/auth/tokens", json.dumps(body).encode())[1]
        return next(value for name, value in headers.items() if name.lower() == "x-subject-token")


@contextlib.contextmanager
def serve(data: Path, *arguments: str) -> Generator[Served]:
    """Run a server until the end of the block."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("stateward")),
            "serve",
            "--data",
            str(data),
            "--listen",
            "127.0.0.1:0",
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=(data.parent / f"{data.name}.log").open("a"),
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"ready on (\S+)", line)
        if found is None:
            process.wait()
            log = (data.parent / f"{data.name}.log").read_text()[-2000:]
            raise SystemExit(f"the server did not start: {line}\n{log}")
        yield Served(process, data, found[1], time.perf_counter() - began)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
