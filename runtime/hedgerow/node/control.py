"""What commands ask of the node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from hedgerow.config import NodeConfig
from hedgerow.errors import HedgerowError
from hedgerow.node.swap.swaps import Swaps
from hedgerow.pipeline.runner import PipelineRunner
from hedgerow.wire.messages import Health


class NodeControl(Protocol):
    """The node, as its commands see it; `Node` is one."""

    @property
    def session(self) -> str:
        """Names this run of the node."""
        ...

    @property
    def cores(self) -> int:
        """Cores that it owns."""
        ...

    @property
    def config(self) -> NodeConfig:
        """The configuration in force."""
        ...

    @property
    def runners(self) -> Mapping[str, PipelineRunner]:
        """The pipelines that run, by name."""
        ...

    @property
    def failures(self) -> Mapping[str, HedgerowError]:
        """Why other pipelines do not run, by name."""
        ...

    @property
    def swaps(self) -> Swaps:
        """Swaps versions of its models."""
        ...

    @property
    def probe_port(self) -> int | None:
        """Port of the metrics and probes; None if they are off."""
        ...

    def health(self) -> Health:
        """A health report of now."""
        ...

    async def reload(self, text: str | None = None) -> dict[str, list[str]]:
        """Put a new configuration into force; None: the node's file. Raises: HedgerowError: it cannot be used."""
        ...

    async def release(self, digest: str) -> None:
        """Release a version from quarantine. Raises: CommandError: a swap is under way."""
        ...

    def stop(self) -> None:
        """Drain and stop."""
        ...
