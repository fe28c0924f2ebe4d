"""The node, as its agent sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from hedgerow.node.fleet.reconcile import Overlay
from hedgerow.wire.fleet import Reported


class Host(Protocol):
    """What the agent asks of the node it works for."""

    def labels(self) -> dict[str, str]:
        """What the machine and the node's file say; blocks, since drivers are asked."""
        ...

    @property
    def models(self) -> Mapping[str, str]:
        """Every model of the node's file, and the path it gives."""
        ...

    @property
    def pipelines(self) -> frozenset[str]:
        """Every pipeline of the node's file."""
        ...

    @property
    def clock_doubtful(self) -> bool:
        """Whether the clock may be wrong."""
        ...

    async def overlay(self, pipelines: Overlay) -> None:
        """Put what is different about pipelines into force. Raises: HedgerowError: it cannot be; nothing has changed."""
        ...

    def states(self) -> dict[str, str]:
        """How each pipeline is."""
        ...

    def publish(self, reported: Reported) -> None:
        """Tell the region."""
        ...

    def event(self, kind: str, detail: dict[str, Any]) -> None:
        """Tell of something that happened."""
        ...
