"""Logging: readable lines on a terminal, JSON otherwise."""

from __future__ import annotations

import logging
import sys
from typing import Literal

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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _console_renderer() -> structlog.typing.Processor:
    if supports_color(sys.stderr):
        return structlog.dev.ConsoleRenderer(colors=True)
    # The default traceback formatter uses colors even with `colors=False`.
    return structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
