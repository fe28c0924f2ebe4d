"""Failures of stages, with the traceback that leads to the line at fault."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import structlog

from hedgerow.errors import HedgerowError, text_of

log = structlog.get_logger(__name__)

_LONGEST_TRACEBACK: Final = 8_000
"""Most characters of a traceback in a dead letter and in the log."""
_MOST_CALLS: Final = 20
_OUR_FILES: Final = tuple(
    str(Path(__file__).parents[2] / name)
    for name in ("pipeline/chain/chain.py", "pipeline/chain/returned.py", "stage.py")
)


class StageFailed(HedgerowError):
    """A stage raised something other than FrameError, or returned something else than frames: a bug in the stage."""

    code = "stage-failed"

    def __init__(self, stage: str, cause: BaseException) -> None:
        super().__init__(
            f"Stage {stage} raised {type(cause).__name__}: {text_of(cause)}",
            remedy=f"Fix the stage; `hedgerow plugin show {stage}` names the package.",
        )
        self.__cause__ = cause
        self.traceback = _traceback(cause)


class CircuitOpen(HedgerowError):
    """A stage keeps failing, so its circuit breaker is open."""

    code = "circuit-open"

    def __init__(self, stage: str, failures: int) -> None:
        super().__init__(
            f"Stage {stage} failed {failures} times in a row and is skipped for now",
            remedy="Earlier dead letters have the cause; the stage is tried again automatically.",
        )


def log_failure(pipeline: str, stage: str, failure: HedgerowError) -> None:
    """Log a failure of a stage. Its kind is the stage, the type of the error and its place."""
    cause = _cause(failure)
    fields: dict[str, Any] = {"exception": failure.traceback} if failure.traceback else {}
    log.error(
        "stage-failed",
        pipeline=pipeline,
        stage=stage,
        type=type(cause).__name__,
        place=_place(cause.__traceback__),
        error=text_of(failure),
        **fields,
    )


def log_no_columns(stage: str, error: BaseException) -> None:
    """Log that a stage raised in `process_batch`, so that its frames were processed one by one, which takes longer."""
    log.warning(
        "stage-columns-failed",
        stage=stage,
        type=type(error).__name__,
        place=_place(error.__traceback__),
        error=text_of(error),
        remedy="Fix its process_batch(), or let it raise Irregular for batches that it does not take.",
    )


def without_text(failure: HedgerowError) -> str:
    """Return an error's type and place only: its text may quote the frame, and events leave the site."""
    cause = _cause(failure)
    place = _place(cause.__traceback__)
    return f"{type(cause).__name__}{f' in {place}' if place else ''}; the log and the dead letters have its text"


def _cause(failure: HedgerowError) -> BaseException:
    return failure.__cause__ if isinstance(failure, StageFailed) and failure.__cause__ is not None else failure


def _place(trace: TracebackType | None) -> str:
    """Return where an error was raised: `module.py:12`."""
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    if trace.tb_frame.f_code.co_filename in _OUR_FILES:
        return "its return value"
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


def _traceback(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in _OUR_FILES:
        trace = trace.tb_next
    if trace is None:
        return ""
    try:
        # A negative limit keeps the last calls.
        told = traceback.TracebackException(
            type(error), error, trace, limit=-_MOST_CALLS, max_group_width=8, max_group_depth=4
        )
        text = "".join(told.format())
    except BaseException as problem:  # noqa: BLE001 - the error is a plugin's, so anything in it may raise
        return f"(no traceback: {type(problem).__name__})"
    if len(text) > _LONGEST_TRACEBACK:
        half = _LONGEST_TRACEBACK // 2
        text = f"{text[:half]}\n[…]\n{text[-half:]}"
    return text
