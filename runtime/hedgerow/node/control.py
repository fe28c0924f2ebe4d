"""The interface of the node to its command handlers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from hedgerow.config import NodeConfig
from hedgerow.errors import HedgerowError
from hedgerow.node.swap.swaps import Swaps
from hedgerow.pipeline.runner import PipelineRunner
from hedgerow.wire.messages import Health


class NodeControl(Protocol):
    """What command handlers use of the node; implemented by `Node`."""

    @property
    def session(self) -> str:
        """ID of this run of the node."""
        ...

    @property
    def cores(self) -> int:
        """Number of cores the node owns."""
        ...

    @property
    def config(self) -> NodeConfig:
        """The current configuration."""
        ...

    @property
    def runners(self) -> Mapping[str, PipelineRunner]:
        """Running pipelines by name."""
        ...

    @property
    def failures(self) -> Mapping[str, HedgerowError]:
        """Errors of failed pipelines by name."""
        ...

    @property
    def swaps(self) -> Swaps:
        """Swaps model versions."""
        ...

    @property
    def probe_port(self) -> int | None:
        """Port of metrics and probes; None if they are off."""
        ...

    def health(self) -> Health:
        """Return a current health report."""
        ...

    async def reload(self) -> dict[str, list[str]]:
        """Read the node's file again. Raises: HedgerowError: it is invalid."""
        ...

    async def adjust(self, pipeline: str, changes: Mapping[str, Any]) -> dict[str, list[str]]:
        """Change settings of a pipeline. Raises: HedgerowError: they may not be changed so from outside."""
        ...

    def require_may_stop(self, pipelines: Iterable[str]) -> None:
        """Raises: HedgerowError: one of these pipelines has to keep running."""
        ...

    async def release(self, digest: str) -> None:
        """Release a version from quarantine. Raises: CommandError: a swap is in progress."""
        ...

    def stop(self) -> None:
        """Start to drain, then stop."""
        ...
