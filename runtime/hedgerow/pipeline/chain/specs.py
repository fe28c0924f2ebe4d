"""Passes the declarations of a chain's stages from one to the next: what each takes, gets and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from hedgerow import plugins
from hedgerow.config import PipelineConfig
from hedgerow.errors import HedgerowError, StageMismatch
from hedgerow.pipeline.chain.chain import ChainStep
from hedgerow.stage import FrameSpec
from hedgerow.wire.codec import ENVELOPE, mime, stated_meta

UNKNOWN: Final = FrameSpec()
"""Frames of which nothing is known, for example of a test."""

RECEIVED: Final = FrameSpec(array=None, tensors={}, meta={"rate": None, "channels": None}, more_meta=False)
"""Frames as they are received: a payload, and what the sender may state in its content type."""


def output_spec(step: ChainStep, incoming: FrameSpec) -> FrameSpec:
    """Return what a stage declares to give; see `Stage.output_spec`.

    Raises: HedgerowError: the stage does not take what it would get, or its declaration fails.
    """
    name = step.name
    if not _declares(type(step.stage)):
        return UNKNOWN
    remedy = f"Fix its output_spec(); `hedgerow plugin show {name}` names the package."
    try:
        with plugins.as_plugin_error(f"Stage {name} cannot be checked", remedy=remedy, keep=HedgerowError):
            outgoing: Any = step.stage.output_spec(incoming)
            if not isinstance(outgoing, FrameSpec):
                raise TypeError(f"it returned a {type(outgoing).__name__}, not a FrameSpec")
    except StageMismatch as error:
        raise StageMismatch(error.takes, error.gets, remedy=error.remedy, stage=name) from error
    return outgoing


def unused_setting(config: PipelineConfig, steps: Sequence[ChainStep]) -> tuple[int, StageMismatch] | None:
    """Find a setting that only applies to frames that then die: `pcm16: {rate: 8000}` before a stage that takes 16 kHz.

    Frames whose sender states another rate or content type pass, so it is no reason to refuse the chain.

    Returns: the position of the stage that cannot use such frames, and why.
    """
    content_type = mime(config.content_type or "")
    stated = {name: float(value) for name, value in stated_meta(config.content_type or "").items() if value.isdecimal()}
    incoming = replace(
        RECEIVED,
        meta={**RECEIVED.meta, **stated},
        content_type=None if content_type in ("", ENVELOPE) else content_type,
        unstated=True,
    )
    for position, step in enumerate(steps):
        try:
            incoming = output_spec(step, incoming)
        except StageMismatch as error:
            gets = f"{error.gets}, unless the sender states otherwise"
            return position, StageMismatch(error.takes, gets, remedy=error.remedy, stage=step.name)
    return None


def _declares(stage_type: type) -> bool:
    """Return whether a declaration is that of the code that runs: a subclass may process frames in its own way."""
    for base in stage_type.__mro__:
        if "output_spec" in vars(base):
            return True
        if "process" in vars(base) or "process_many" in vars(base):
            return False
    return False
