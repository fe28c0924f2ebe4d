"""Logging: readable lines on a terminal, JSON otherwise."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import Literal, TextIO, cast

import structlog

from hedgerow.telemetry.structlog_import import human_readable
from hedgerow.terminal import supports_color

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(level: str = "info", format: Literal["auto", "console", "json"] = "auto") -> None:
    """Set up structlog for the process. Lines go to standard error; standard output is for results."""
    for_humans = human_readable(format)
    renderer = _console_renderer() if for_humans else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if for_humans else "iso", utc=not for_humans),
            structlog.processors.StackInfoRenderer(),
            *([] if for_humans else [structlog.processors.format_exc_info]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Tolerant())),
        cache_logger_on_first_use=False,
    )


class _Tolerant:
    """Standard error as it is now. If nobody reads it any more, or its disk is full, lines are lost but nothing fails."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: it is closed
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def _console_renderer() -> structlog.typing.Processor:
    if supports_color(sys.stderr):
        return structlog.dev.ConsoleRenderer(colors=True)
    # The default traceback formatter uses colors even with `colors=False`.
    return structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
