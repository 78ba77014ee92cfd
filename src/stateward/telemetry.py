"""Logs: one line an event on standard error, readable on a terminal and JSON elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

import structlog


def configure(*, verbose: bool, stream: TextIO | None = None) -> None:
    """Send structlog's and the standard library's logs to standard error.

    Colours only on a terminal, and not where NO_COLOR is set.
    """
    out = stream or sys.stderr
    terminal = out.isatty()
    level = logging.DEBUG if verbose else logging.INFO
    renderer: structlog.typing.Processor = (
        # Plain: the renderer's own tracebacks show the local variables, and so passwords and tokens.
        structlog.dev.ConsoleRenderer(
            colors=not os.environ.get("NO_COLOR"), exception_formatter=structlog.dev.plain_traceback
        )
        if terminal
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if terminal else [structlog.processors.format_exc_info]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(stream=out, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
