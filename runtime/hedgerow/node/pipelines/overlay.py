"""A node's configuration with what a region changes about its pipelines. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from pydantic import ValidationError

from hedgerow.config import NodeConfig, PipelineConfig
from hedgerow.configfile import explain, merge
from hedgerow.errors import HedgerowError

Overlay: TypeAlias = Mapping[str, Mapping[str, Any] | None]
"""By pipeline: what differs from the node's file; None: the pipeline does not run."""


class OverlayError(HedgerowError):
    """An overlay makes an invalid pipeline."""

    code = "bad-pipeline"


def overlaid(config: NodeConfig, overlay: Overlay) -> NodeConfig:
    """A configuration with an overlay: mappings are merged, anything else is replaced, null removes.

    Args:
        config: as the node's file says.
        overlay: what differs from it.
    Raises: OverlayError: the result is not a valid pipeline; the message says where and why.
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
            raise OverlayError(f"pipelines.{where}: {message}", remedy=remedy) from error
    return config.model_copy(update={"pipelines": pipelines})
