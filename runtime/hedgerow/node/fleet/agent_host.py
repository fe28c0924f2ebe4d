"""The parts of a node that its agent uses."""

from __future__ import annotations

from dataclasses import dataclass

from hedgerow.node.link.announcer import Announcer
from hedgerow.node.pipelines.live_config import LiveConfig
from hedgerow.node.pipelines.pipelines import Pipelines
from hedgerow.telemetry.clock import Clock


@dataclass(frozen=True, slots=True)
class AgentHost:
    """The node that an agent runs on.

    Attributes:
        config: the node's configuration; the agent lays an overlay over it.
        pipelines: the node's pipelines.
        announcer: publishes the agent's reports and events.
        clock: tells whether the machine's clock can be trusted.
        cores: number of cores the node owns.
    """

    config: LiveConfig
    pipelines: Pipelines
    announcer: Announcer
    clock: Clock
    cores: int
