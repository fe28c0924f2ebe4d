"""Checks the chains of a configuration without a frame: sets up each pipeline's stages and compares what they declare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hedgerow.backends.cores import cores
from hedgerow.config import NodeConfig
from hedgerow.errors import BackendMissing, DeviceMissing, HedgerowError
from hedgerow.models.serving.pool import ModelNotAssigned, ModelPool
from hedgerow.pipeline.chain.build import PipelineContext, set_up
from hedgerow.pipeline.chain.chain import Chain, ChainStep
from hedgerow.pipeline.chain.specs import RECEIVED, futile_setting, output_spec

_ELSEWHERE = (ModelNotAssigned, BackendMissing, DeviceMissing)
"""Errors that say nothing about the file: the model or the device is not on this machine."""


class ChainFinding(NamedTuple):
    """The result of checking a pipeline's chain.

    Attributes:
        pipeline: name of the pipeline.
        position: position of the stage that `error` is about.
        error: why the stage cannot be set up or used; None: the chain is sound.
        is_problem: whether the configuration is wrong; else the chain could be checked only up to `position`.
    """

    pipeline: str
    position: int = 0
    error: HedgerowError | None = None
    is_problem: bool = False


def check_chains(config: NodeConfig, base_dir: Path) -> Iterator[ChainFinding]:
    """Check every pipeline's chain; loads its models, and frees them before the next.

    Args:
        base_dir: folder that relative paths start from.
    """
    for name in config.pipelines:
        pool = ModelPool(cores=config.node.threads or cores())  # no folder: a check leaves no files behind
        try:
            yield _check(config, name, PipelineContext(name, config.models, base_dir, pool))
        finally:
            pool.close()


def _check(config: NodeConfig, name: str, context: PipelineContext) -> ChainFinding:
    incoming, steps = RECEIVED, list[ChainStep]()
    try:
        for position, entry in enumerate(config.pipelines[name].stages):
            try:
                steps.append(set_up(entry, context))
                incoming = output_spec(steps[-1], incoming)
            except HedgerowError as error:
                return ChainFinding(name, position, error, not isinstance(error, _ELSEWHERE))
        if (futile := futile_setting(config.pipelines[name], steps)) is not None:
            return ChainFinding(name, *futile, is_problem=True)
        return ChainFinding(name)
    finally:
        Chain(steps).close()
        context.release()
