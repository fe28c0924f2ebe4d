"""Publishes `reported`: what the node runs, and the progress of its desired document."""

from __future__ import annotations

import time
from typing import Any, Final

import structlog

from hedgerow.models.serving.pool import BUNDLE
from hedgerow.node.fleet.agent_host import AgentHost
from hedgerow.node.fleet.model_provider import ModelProvider
from hedgerow.node.swap.outcome import OnStep
from hedgerow.node.swap.swaps import Swaps
from hedgerow.topics import Channel
from hedgerow.wire.fleet import Reported

log = structlog.get_logger(__name__)

_PROGRESS_EVERY_S: Final = 1.0
"""Shortest time between reports of progress; a new step is reported at once."""


class Reporter:
    """Publishes a report whenever it changes.

    Args:
        host: publishes the report, and provides the states of pipelines.
        provider: provides the size of the model store.
        swaps: provides the serving versions.
    """

    def __init__(self, host: AgentHost, provider: ModelProvider, swaps: Swaps) -> None:
        self._host = host
        self._provider = provider
        self._swaps = swaps
        self._report = Reported(node=str(host.announcer.address), session=host.announcer.session, at=time.time())
        self._published: dict[str, Any] = {}
        self._published_at = 0.0

    @property
    def report(self) -> Reported:
        """The current report."""
        return self._report

    def step(self, stage: str, model: str, progress: float | None = None) -> None:
        """Report the current step."""
        step = f"{stage} {model}".strip()
        new = step != self._report.step
        if new:
            log.info("desired-step", step=stage, model=model or None)
        self.update(step=step, progress=progress, force=new)

    def steps_of(self, model: str) -> OnStep:
        """Return a function that reports steps of this model."""
        return lambda stage, progress: self.step(stage, model, progress)

    def update(self, *, force: bool = False, **fields: Any) -> None:
        """Change fields of the report, and publish it if it changed; progress alone is rate-limited.

        Args:
            force: publish it in any case.
            fields: fields of `Reported`. Models, pipelines, quarantine and store are filled in.
        """
        report = self._report = self._report.model_copy(update=fields)
        urgent = force or any(name != "progress" for name in fields)
        now = time.monotonic()
        if not urgent and now - self._published_at < _PROGRESS_EVERY_S:
            return
        report = report.model_copy(
            update={
                "configured": self._configured(),
                "models": self._swaps.serving(),
                "pipelines": self._host.pipelines.states(),
                "signed_pipelines": None if (signed := self._host.config.signed) is None else signed.ref,
                "quarantined": self._swaps.quarantined(),
                "store_bytes": self._provider.used_bytes,
                "store_max_bytes": self._provider.max_bytes,
            }
        )
        content = _without_counts(report)
        if not force and content == self._published:
            return
        self._published, self._published_at = content, now
        report = report.model_copy(update={"at": time.time()})
        self._host.announcer.publish(Channel.REPORTED, report.encode(), qos=1, retain=True)

    def _configured(self) -> dict[str, str]:
        models = self._host.pipelines.config.models.items()
        return {
            name: model.path.removeprefix(BUNDLE) if model.path.startswith(BUNDLE) else "" for name, model in models
        }


def _without_counts(report: Reported) -> dict[str, Any]:
    """Return a report without fields that change all the time; `results` becomes whether there are any."""
    fields = report.model_dump(exclude={"at", "store_bytes"})
    for model in fields["models"].values():
        model["results"] = model["results"] > 0
    return fields
