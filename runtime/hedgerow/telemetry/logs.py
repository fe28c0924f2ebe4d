"""Logging: readable lines on a terminal, JSON otherwise. Warnings and errors that repeat are counted, not written."""

from __future__ import annotations

import logging
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from io import StringIO
from typing import Any, Literal, TextIO

import structlog

from hedgerow.telemetry.structlog_import import human_readable
from hedgerow.telemetry.throttle import Throttle, kind_of
from hedgerow.terminal import supports_color
from hedgerow.text import visible, visible_lines

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_WRITING = threading.Lock()
_repeats: Throttle[tuple[str, dict[str, Any]]] = Throttle()


def configure(level: str = "info", format: Literal["auto", "console", "json"] = "auto") -> None:
    """Set up structlog for the process. Lines go to standard error; standard output is for results."""
    _repeats.clear()
    root = logging.getLogger()
    if not any(isinstance(handler, _Forwarder) for handler in root.handlers):
        root.addHandler(_Forwarder(logging.WARNING))
    for_humans = human_readable(format)
    renderer = _console_renderer() if for_humans else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _throttled,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if for_humans else "iso", utc=not for_humans),
            structlog.processors.StackInfoRenderer(),
            _visible_fields if for_humans else structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=partial(_Lines, sys.stderr),
        cache_logger_on_first_use=False,
    )


class _Lines:
    """Writes lines to a file. A log that cannot be written, because its pipe is closed, must not stop the service."""

    def __init__(self, file: TextIO, *_: object) -> None:
        self._file = file

    def msg(self, line: str) -> None:
        with suppress(OSError, ValueError), _WRITING:
            print(line, file=self._file, flush=True)

    debug = info = warning = error = critical = msg


class _Forwarder(logging.Handler):
    """Forwards what libraries log, asyncio above all, so that it has the same format and is throttled too."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record as one of ours."""
        if not structlog.is_configured():  # only where a test has undone `configure`: lines would go to standard output
            return
        log = structlog.get_logger(record.name)
        write, kind = (
            (log.error, "library-error") if record.levelno >= logging.ERROR else (log.warning, "library-warning")
        )
        error = record.exc_info[1] if record.exc_info else None
        try:
            write(kind, library=record.name, message=record.getMessage(), exc_info=error)
        except Exception:  # noqa: BLE001 - a line that cannot be formatted must not stop what it reports on
            self.handleError(record)


def report_repeats(*, final: bool = False) -> None:
    """Write a line for each kind of warning or error of which some were held back for a minute.

    Call it every few seconds, and with `final` before the process ends. `times` is how many the line stands for.
    """
    log = structlog.get_logger(__name__)
    for (level, line), times in _repeats.due(time.monotonic(), final=final):
        getattr(log, level)(**line, times=times)


def _throttled(_logger: object, method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Hold back warnings and errors that repeat; a line with `times` has been through a throttle."""
    if method not in ("warning", "error", "critical") or "times" in line:
        return line
    kept = {name: value for name, value in line.items() if name not in ("exc_info", "stack_info")}
    error = sys.exception() if line.get("exc_info") is True else line.get("exc_info")
    place = {"place": _place(error)} if isinstance(error, BaseException) else {}
    name = str(line["event"])
    times = _repeats.admit(kind_of(name, {**kept, **place}), (method, {**kept, **place}), time.monotonic())
    if times is None:
        raise structlog.DropEvent
    if times > 1:
        line["times"] = times
    return line


def _place(error: BaseException) -> str:
    """Return the type of an exception and where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f" {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return f"{type(error).__name__}{where}"


def _visible_fields(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Show what could control the terminal: fields come from sensors, too. The renderer formats what is no text by `repr`."""
    return {visible(name): visible(value) if isinstance(value, str) else value for name, value in line.items()}


def _traceback(out: TextIO, error: structlog.typing.ExcInfo) -> None:
    """Write a traceback likewise; its messages may quote a frame."""
    plain = StringIO()
    structlog.dev.plain_traceback(plain, error)
    out.write(visible_lines(plain.getvalue()))


def _console_renderer() -> structlog.typing.Processor:
    return structlog.dev.ConsoleRenderer(colors=supports_color(sys.stderr), exception_formatter=_traceback)
