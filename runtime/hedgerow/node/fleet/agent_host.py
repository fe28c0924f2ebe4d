"""The node, as its agent sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hedgerow.node.fleet.labels import backends_in_use, device_labels, own_labels
from hedgerow.node.link.announcer import Announcer
from hedgerow.node.pipelines.live_config import LiveConfig
from hedgerow.node.pipelines.overlay import Overlay
from hedgerow.node.pipelines.pipelines import Pipelines
from hedgerow.telemetry.clock import Clock
from hedgerow.topics import Channel
from hedgerow.wire.fleet import Reported


class AgentHost:
    """What the agent asks of the node that it works for.

    Args:
        config: the node's, which the agent lays an overlay over.
        pipelines: of the node.
        announcer: publishes what the agent says.
        clock: whether the machine's clock can be trusted.
        cores: cores the node owns.
    """

    def __init__(
        self, config: LiveConfig, pipelines: Pipelines, announcer: Announcer, clock: Clock, cores: int
    ) -> None:
        self._config = config
        self._pipelines = pipelines
        self._announcer = announcer
        self._clock = clock
        self._cores = cores

    @property
    def address(self) -> str:
        """Of the node."""
        return str(self._announcer.address)

    @property
    def session(self) -> str:
        """Names this run of the node."""
        return self._announcer.session

    def labels(self) -> dict[str, str]:
        """The labels of the machine and of the node's file; blocks, since drivers are asked."""
        file = self._config.file
        devices = device_labels(backends_in_use(file.models))
        return own_labels(self._announcer.address, self._cores) | devices | file.node.labels

    @property
    def models(self) -> Mapping[str, str]:
        """Every model of the node's file, and the path it gives."""
        return {name: model.path for name, model in self._config.file.models.items()}

    @property
    def pipelines(self) -> frozenset[str]:
        """Every pipeline of the node's file."""
        return frozenset(self._config.file.pipelines)

    @property
    def overlay(self) -> Overlay:
        """What the region changes about the pipelines."""
        return self._config.overlay

    def restore_overlay(self, overlay: Overlay) -> None:
        """Take up the overlay of an earlier run, before pipelines start; one that does not fit any more is dropped."""
        self._config.restore_overlay(overlay)

    async def set_overlay(self, overlay: Overlay) -> None:
        """Put another overlay into force. Raises: HedgerowError: it cannot be; nothing has changed."""
        await self._config.set_overlay(overlay)

    @property
    def clock_doubtful(self) -> bool:
        """Whether the clock may be wrong."""
        return self._clock.doubtful

    def states(self) -> dict[str, str]:
        """The state of every pipeline."""
        return self._pipelines.states()

    def publish(self, reported: Reported) -> None:
        """Send a report to the region."""
        self._announcer.publish(Channel.REPORTED, reported.encode(), qos=1, retain=True)

    def event(self, kind: str, detail: dict[str, Any]) -> None:
        """Publish something that happened."""
        self._announcer.event(kind, detail)
