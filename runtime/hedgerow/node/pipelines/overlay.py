"""Overlays: a region's changes to a node's pipelines, merged into its configuration. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from pydantic import ValidationError

from hedgerow.config import NodeConfig, PipelineConfig
from hedgerow.configfile import explain, merge
from hedgerow.errors import HedgerowError

Overlay: TypeAlias = Mapping[str, Mapping[str, Any] | None]
"""Changes to the node's file by pipeline; None: do not run the pipeline."""


class OverlayError(HedgerowError):
    """An overlay results in an invalid pipeline."""

    code = "bad-pipeline"


def overlaid(config: NodeConfig, overlay: Overlay) -> NodeConfig:
    """Return a configuration with an overlay applied: mappings are merged, null removes a key, other values replace.

    Args:
        config: the node's file.
        overlay: the changes.
    Raises: OverlayError: a resulting pipeline is invalid.
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
