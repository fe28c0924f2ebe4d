"""Publishes `reported`: what a node runs, and how far it is with what it should run."""

from __future__ import annotations

import time
from typing import Any, Final

import structlog

from hedgerow.node.fleet.agent_host import AgentHost
from hedgerow.node.fleet.model_source import ModelSource
from hedgerow.node.swap.outcome import OnStep
from hedgerow.node.swap.swaps import Swaps
from hedgerow.topics import Channel
from hedgerow.wire.fleet import Reported

log = structlog.get_logger(__name__)

_PROGRESS_EVERY_S: Final = 1.0
"""Progress is not published more often; a new step is published at once."""


class Reporter:
    """Publishes a report whenever there is something new in it.

    Args:
        host: publishes them, and knows the pipelines.
        source: knows the model store.
        swaps: knows which versions serve.
    """

    def __init__(self, host: AgentHost, source: ModelSource, swaps: Swaps) -> None:
        self._host = host
        self._source = source
        self._swaps = swaps
        self._report = Reported(node=str(host.announcer.address), session=host.announcer.session, at=time.time())
        self._published: dict[str, Any] = {}
        self._published_at = 0.0

    @property
    def report(self) -> Reported:
        """The report as it is now."""
        return self._report

    def step(self, stage: str, model: str, progress: float | None = None) -> None:
        """Report what is being done now."""
        step = f"{stage} {model}".strip()
        new = step != self._report.step
        if new:
            log.info("desired-step", step=stage, model=model or None)
        self.update(step=step, progress=progress, force=new)

    def steps_of(self, model: str) -> OnStep:
        """Reports the steps of a model; handed to what takes them."""
        return lambda stage, progress: self.step(stage, model, progress)

    def update(self, *, force: bool = False, **fields: Any) -> None:
        """Change fields of the report, and publish it if there is something new in it and it is not too soon.

        Args:
            force: publish it in any case.
            fields: of `Reported`; those that the node's parts know are filled in.
        """
        report = self._report = self._report.model_copy(update=fields)
        urgent = force or any(name != "progress" for name in fields)
        now = time.monotonic()
        if not urgent and now - self._published_at < _PROGRESS_EVERY_S:
            return
        report = report.model_copy(
            update={
                "models": self._swaps.serving(),
                "pipelines": self._host.pipelines.states(),
                "quarantined": self._swaps.quarantined(),
                "store_bytes": self._source.used_bytes,
                "store_max_bytes": self._source.max_bytes,
            }
        )
        news = _without_counts(report)
        if not force and news == self._published:
            return
        self._published, self._published_at = news, now
        report = report.model_copy(update={"at": time.time()})
        self._host.announcer.publish(Channel.REPORTED, report.encode(), qos=1, retain=True)


def _without_counts(report: Reported) -> dict[str, Any]:
    """A report without what changes all the time; whether a model has served at all stays in it."""
    fields = report.model_dump(exclude={"at", "store_bytes"})
    for model in fields["models"].values():
        model["results"] = model["results"] > 0
    return fields
