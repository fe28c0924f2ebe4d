"""A node's configuration with what a region wants different about its pipelines. Pure."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from hedgerow.config import NodeConfig, PipelineConfig
from hedgerow.configfile import explain, merge
from hedgerow.node.fleet.reconcile import DesiredError, Overlay


def overlaid(config: NodeConfig, overlay: Overlay) -> NodeConfig:
    """A configuration with an overlay: mappings are merged, anything else is replaced, null takes away.

    Args:
        config: as the node's file says.
        overlay: by pipeline; None: it does not run.
    Raises: DesiredError: what comes out is no pipeline; the message says where and why.
    """
    pipelines = dict(config.pipelines)
    for name, changes in overlay.items():
        if changes is None:
            pipelines.pop(name, None)
            continue
        document: dict[str, Any] = pipelines[name].model_dump(exclude_unset=True) if name in pipelines else {}
        merge(document, changes)
        try:
            pipelines[name] = PipelineConfig.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, [name, *first["loc"]]))
            message, remedy = explain(first)
            raise DesiredError(f"pipelines.{where}: {message}", code="bad-pipeline", remedy=remedy) from error
    return config.model_copy(update={"pipelines": pipelines})
