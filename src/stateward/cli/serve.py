"""``stateward serve``: the whole server in one process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType

import click
import msgspec
import uvicorn
import uvloop

from stateward.server import CannotStart, Server
from stateward.settings import BadSettings, HostSettings, Settings, load
from stateward.telemetry import configure

#: Seconds that requests under way have to finish when the server stops.
_GRACE = 5


class _Uvicorn(uvicorn.Server):
    """Uvicorn, which leaves signals to us: it would end the process before the agents are down."""

    def __init__(
        self, config: uvicorn.Config, on_ready: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self.on_ready = on_ready
        self.on_end = on_end

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.on_end()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True


def _address(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, int]:
    host, separator, port = value.rpartition(":")
    host = host.strip("[]")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:  # noqa: PLR2004 (the largest port)
        raise click.BadParameter(f"{value!r} is not ADDRESS:PORT, for example 127.0.0.1:8774")
    return host, int(port)


@click.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".stateward"),
    show_default=True,
    help="The folder with everything the server keeps.",
)
@click.option(
    "--listen",
    callback=_address,
    default="127.0.0.1:8774",
    show_default=True,
    metavar="ADDR:PORT",
    help="Where it is served; port 0 takes a free one.",
)
@click.option(
    "--driver",
    type=click.Choice(["libvirt", "simulated"]),
    help="The one host's driver; [[host]] tables in the settings file name several.  [default: libvirt]",
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A TOML file of settings (docs/settings.md).",
)
@click.option(
    "--test-guest", is_flag=True, help="Build the small test guest and register it as image tiny-guest."
)
@click.option(
    "--test-guest-agent",
    is_flag=True,
    help="The same, and register it as image tiny-guest-agent too, with Debian's qemu-guest-agent in it.",
)
@click.option("--verbose", is_flag=True, help="Log more.")
def serve(
    data: Path,
    listen: tuple[str, int],
    driver: str | None,
    config: Path | None,
    *,
    test_guest: bool,
    test_guest_agent: bool,
    verbose: bool,
) -> None:
    """Serve the API, keep the instances and drive this machine's hypervisor, in one process."""
    configure(verbose=verbose)
    try:
        settings = load(config, os.environ)
        if driver is not None:
            settings = _with_driver(settings, driver)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(
                _serve(
                    data,
                    listen,
                    settings,
                    test_guest=test_guest or test_guest_agent,
                    test_guest_agent=test_guest_agent,
                )
            )
    except (CannotStart, BadSettings) as error:
        click.echo(f"stateward: {error}", err=True)
        sys.exit(1)


def _with_driver(settings: Settings, driver: str) -> Settings:
    if settings.host:
        msg = "--driver and [[host]] tables in the settings contradict each other: use one of them"
        raise BadSettings(msg)
    from stateward.server import machine_name  # noqa: PLC0415 (only then)

    host = msgspec.convert({"name": machine_name(), "driver": driver}, HostSettings)
    return msgspec.structs.replace(settings, host=(host,))


async def _serve(
    data: Path, listen: tuple[str, int], settings: Settings, *, test_guest: bool, test_guest_agent: bool
) -> None:
    began = time.monotonic()
    server = Server(data=data, listen=listen, settings=settings, progress=_progress)
    await server.start()
    try:
        if test_guest:
            await server.register_test_guest(agent=test_guest_agent)
        config = uvicorn.Config(
            server.app,
            http="httptools",
            ws="websockets-sansio",
            # Of what is typed at a console at once.
            ws_max_size=64 * 1024,
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            # Longer than clients pause between two questions, or one would find its connection closed mid-air.
            timeout_keep_alive=75,
            timeout_graceful_shutdown=_GRACE,
        )
        web = _Uvicorn(
            config, lambda: _tell_ready(server, data, time.monotonic() - began), server.changes.close
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, web.handle_exit, number, None)
        overtaken = asyncio.create_task(_end_when_overtaken(server, web), name="overtaken")
        await web.serve(sockets=[server.socket] if server.socket is not None else None)
        overtaken.cancel()
        if server.overtaken.is_set():
            raise CannotStart("Another server has taken the database while it was away; this one has ended.")
    finally:
        await server.stop()


async def _end_when_overtaken(server: Server, web: _Uvicorn) -> None:
    await server.overtaken.wait()
    web.should_exit = True


def _tell_ready(server: Server, data: Path, seconds: float) -> None:
    click.echo(
        f"stateward is ready on {server.address} after {seconds:.1f} s; "
        f"clients: export OS_CLIENT_CONFIG_FILE={data.resolve() / 'clouds.yaml'}"
    )
    sys.stdout.flush()


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"==> {text}", err=True)
