"""Checks the chains of a configuration without a frame: sets up each pipeline's stages and compares what they declare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hedgerow.backends.cores import cores
from hedgerow.config import NodeConfig
from hedgerow.errors import BackendMissing, HedgerowError
from hedgerow.models.serving.pool import ModelNotAssigned, ModelPool
from hedgerow.pipeline.chain.build import PipelineContext, set_up
from hedgerow.pipeline.chain.chain import Chain, ChainStep
from hedgerow.pipeline.chain.specs import RECEIVED, output_spec, unused_setting

_ELSEWHERE = (ModelNotAssigned, BackendMissing)
"""Errors that say nothing about the file: the model or its backend is not on this machine."""


class ChainFinding(NamedTuple):
    """The result of checking a pipeline's chain.

    Attributes:
        pipeline: name of the pipeline.
        position: position of the stage that `error` is about.
        error: why the stage cannot be set up or used; None: the chain is sound.
        is_problem: whether the configuration is wrong; else the chain could be checked only up to `position`.
        remedy: what to do about it; "" if nothing.
    """

    pipeline: str
    position: int = 0
    error: HedgerowError | None = None
    is_problem: bool = False
    remedy: str = ""


def check_chains(config: NodeConfig, base_dir: Path) -> Iterator[ChainFinding]:
    """Check every pipeline's chain; loads its models, and frees them before the next.

    Args:
        base_dir: folder that relative paths start from.
    """
    # A model has the same inputs on every device, and another machine may check the file.
    models = {name: each.model_copy(update={"if_device_missing": "degrade"}) for name, each in config.models.items()}
    for name in config.pipelines:
        pool = ModelPool(cores=config.node.threads or cores())  # no folder: a check leaves no files behind
        try:
            yield _check(config, name, PipelineContext(name, models, base_dir, pool, config.pipelines[name].folder))
        finally:
            pool.close()


def _check(config: NodeConfig, name: str, context: PipelineContext) -> ChainFinding:
    incoming, steps = RECEIVED, list[ChainStep]()
    try:
        for position, entry in enumerate(config.pipelines[name].stages):
            try:
                steps.append(set_up(entry, context))
                incoming = output_spec(steps[-1], incoming)
            except _ELSEWHERE as error:
                return ChainFinding(name, position, error, remedy=_elsewhere_remedy(error))
            except HedgerowError as error:
                return ChainFinding(name, position, error, is_problem=True, remedy=error.remedy)
        if (unused := unused_setting(config.pipelines[name], steps)) is not None:
            return ChainFinding(name, *unused, is_problem=True, remedy=unused[1].remedy)
        return ChainFinding(name)
    finally:
        Chain(steps).close()
        context.release()


def _elsewhere_remedy(error: HedgerowError) -> str:
    if isinstance(error, ModelNotAssigned):
        return "Nothing to do: the node checks the rest when the region assigns a version."
    return f"Check the file on the node. {error.remedy}"
