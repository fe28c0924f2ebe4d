"""Swaps a model's version while frames flow, and rolls back automatically.

    load ─▶ golden ─▶ shadow ─▶ split ─▶ switch ─▶ probation ─▶ kept
      └────────┴─────────┴────────┴────────┴──────────┴──▶ rolled back: the previous version serves

Rules:
- One swap at a time. However a swap ends, even if cancelled, exactly one verified version serves afterwards.
- The previous version stays loaded until the new one is kept.
- A step that may crash the process is recorded on disk first (`models/monitor/quarantine.py`).
- Pipelines with workers get new workers at the switch, and are observed there during `probation`. They have no shadow and
  no split.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Literal, TypeVar

import structlog

from hedgerow import tasks
from hedgerow.errors import CommandError, HedgerowError
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.monitor.canary_analysis import CRASHED
from hedgerow.models.monitor.quarantine import QuarantineLog
from hedgerow.models.serving.pool import BUNDLE, ModelPool
from hedgerow.models.serving.served_model import ServedModel
from hedgerow.node.pipelines.worker_pipelines import WorkerPipelines
from hedgerow.node.swap.outcome import OnStep, SwapOutcome, SwapRefused
from hedgerow.node.swap.swap_steps import SwapSteps
from hedgerow.wire.fleet import Quarantined, ReportedModel, SwapPolicy

log = structlog.get_logger(__name__)

T = TypeVar("T")

_JUDGE_EVERY_S: Final = 0.25


class Swaps:
    """Swaps the versions of a node's models.

    Args:
        pool: models in this process.
        workers: models in worker processes.
        quarantine: records on disk which versions are in quarantine, and which are being swapped.
        on_event: called with each event's kind and detail.
    """

    def __init__(
        self,
        pool: ModelPool,
        workers: WorkerPipelines,
        quarantine: QuarantineLog,
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._pool = pool
        self._workers = workers
        self._quarantine = quarantine
        self._on_event = on_event
        self._lock = asyncio.Lock()
        self._stages: dict[str, Literal["split", "probation"]] = {}
        self._previous: dict[str, ModelVersion | None] = {}
        for each in quarantine.newly_quarantined:
            on_event("model-quarantined", each.model_dump(exclude_none=True))

    async def swap_to(
        self, candidate: ModelVersion, policy: SwapPolicy, on_step: OnStep, on_kept: Callable[[], None] = lambda: None
    ) -> SwapOutcome:
        """Swap to an installed and verified version.

        If cancelled, the previous version keeps serving, or serves again; unless the version was just being kept.

        Args:
            candidate: the version.
            policy: how to swap.
            on_step: called at each step.
            on_kept: (in a thread) records that it was kept; called even if the caller is cancelled meanwhile.
        Returns: whether the version was kept, and why not.
        """
        async with self._lock:
            return await self._swap(candidate.name, candidate, policy, on_step, on_kept)

    async def swap_to_file(
        self, name: str, policy: SwapPolicy, on_step: OnStep, on_kept: Callable[[], None] = lambda: None
    ) -> SwapOutcome:
        """Swap to the file in the node's own configuration, since the region no longer names a version.

        If cancelled, the previous version keeps serving, or serves again; unless the file was just being kept.

        Args:
            name: the model's name in the configuration.
            policy, on_step, on_kept: see `swap_to`.
        Returns: whether the file was kept, and why not.
        """
        async with self._lock:
            if name not in self._pool.assigned():
                await _in_thread(on_kept)
                return SwapOutcome(kept=True)
            configs = [slot.config for slot in self._pool.slots(name)]
            if (in_workers := self._workers.config_of(name)) is not None:
                configs.append(in_workers)
            if any(config.path.startswith(BUNDLE) for config in configs):
                return SwapOutcome(
                    False,
                    "no-own-file",
                    f"Model {name} has no file in the node's configuration; its version keeps serving",
                    "Set its `path:` in the node's configuration to a file, or name a version in the rollout.",
                )
            if not configs:
                self._pool.assign(name, None)
                await _in_thread(on_kept)
                return SwapOutcome(kept=True)
            return await self._swap(name, None, policy, on_step, on_kept)

    async def withdraw(self, name: str, on_kept: Callable[[], None]) -> SwapOutcome:
        """Give up the region's version of a model that has no file of its own and that no pipeline needs.

        Args:
            name: the model's name in the configuration.
            on_kept: see `swap_to`.
        Returns: whether it was given up, and why not.
        """
        async with self._lock:
            if users := self.users().get(name):
                return SwapOutcome(
                    False,
                    "model-needed",
                    f"{', '.join(sorted(users))} began to use {name} meanwhile",
                    "Send the document again.",
                )
            self._pool.assign(name, None)
            self._previous.pop(name, None)
            await _in_thread(on_kept)
            return SwapOutcome(kept=True)

    def assigned(self) -> frozenset[str]:
        """Return the models of which the region has given a version."""
        return frozenset(self._pool.assigned())

    def users(self) -> dict[str, set[str]]:
        """Return the running pipelines by the model that they need."""
        return self._workers.users()

    def restore(self, name: str, candidate: ModelVersion) -> None:
        """Serve a version kept in an earlier run. Call it before pipelines are built."""
        self._pool.assign(name, candidate)

    def serving(self) -> dict[str, ReportedModel]:
        """Return the serving versions by the model's name in the configuration, even before their pipelines run."""
        infos = [*(slot.info() for slot in self._pool.slots()), *self._workers.models()]
        return {info.name: self._reported(info) for info in infos}

    def previous(self, name: str) -> ModelVersion | None:
        """Return the version that served before the current one, if it came from a bundle."""
        return self._previous.get(name)

    def quarantined(self) -> list[Quarantined]:
        """Return the versions in quarantine."""
        return self._quarantine.quarantined()

    async def release(self, digest: str) -> None:
        """Release a version from quarantine. Raises: CommandError: a swap is in progress."""
        if self._lock.locked():
            raise CommandError(
                "A model version is being swapped",
                code="busy",
                remedy="Retry when it is kept or rolled back.",
            )
        async with self._lock:
            await asyncio.to_thread(self._quarantine.release, digest)

    def _reported(self, info: ServedModel) -> ReportedModel:
        previous = self._previous.get(info.name)
        ref = previous.ref if previous is not None else None
        return info.as_reported(self._stages.get(info.name, "kept"), ref)

    async def _swap(
        self,
        name: str,
        candidate: ModelVersion | None,
        policy: SwapPolicy,
        on_step: OnStep,
        on_kept: Callable[[], None],
    ) -> SwapOutcome:
        version = str(candidate.ref) if candidate is not None else f"the file of {name}"
        steps = SwapSteps(self._pool, name, candidate, policy, self._workers.config_of(name))
        refusal: SwapRefused | None = None
        try:
            refusal = await self._refusal(steps, policy, on_step)
            if refusal is None:
                await tasks.run_to_end(self._keep(steps, on_kept), "keeping a version")
        finally:
            await tasks.run_to_end(self._end(steps, version, refusal), "end of a swap")
        if refusal is not None:
            return SwapOutcome(
                False, refusal.code, str(refusal), refusal.remedy, served=steps.served, measures=steps.measures
            )
        return SwapOutcome(kept=True, served=True, measures=steps.measures)

    async def _refusal(self, steps: SwapSteps, policy: SwapPolicy, on_step: OnStep) -> SwapRefused | None:
        """Take every step of a swap, up to keeping the version. Returns: why it is refused; None: it passed."""
        try:
            await self._take_steps(steps, policy, on_step)
        except SwapRefused as refusal:
            return refusal
        except HedgerowError as error:
            return SwapRefused(error.code, str(error), error.remedy)
        return None

    async def _take_steps(self, steps: SwapSteps, policy: SwapPolicy, on_step: OnStep) -> None:
        """Take every step of a swap, up to keeping the version.

        Raises: SwapRefused, HedgerowError: a step failed.
        """
        candidate, name = steps.candidate, steps.name
        if candidate is not None and (record := self._quarantine.find(candidate.ref.digest)) is not None:
            raise SwapRefused(
                "quarantined",
                f"It is in quarantine: {record.reason}",
                f"Build another version, or release this one: `hedgerow command NODE release digest={candidate.ref.digest}`.",
            )
        steps.check_memory(self._workers.processes(name))
        self._workers.observe(name)
        on_step("load", None)
        await self._run(candidate, "load", steps.load)
        on_step("golden", None)
        await self._run(candidate, "golden", steps.run_golden)
        if policy.shadow_s and steps.start_shadow():
            await self._observe(steps, "shadow", policy.shadow_s, on_step)
            await _in_thread(steps.stop_shadow)
        await self._run(candidate, "switch", lambda: None)  # from here on it serves live frames
        if policy.split_percent and policy.split_s and steps.start_split():
            self._stages[name] = "split"
            await self._observe(steps, "split", policy.split_s, on_step)
        on_step("switch", None)
        steps.promote()
        self._stages[name] = "probation"
        if await self._workers.activate(name):
            steps.served = True
        if steps.served:
            await self._observe(steps, "probation", policy.probation_s, on_step)

    async def _keep(self, steps: SwapSteps, on_kept: Callable[[], None]) -> None:
        self._previous[steps.name] = steps.previous
        await asyncio.to_thread(steps.keep)
        await asyncio.to_thread(on_kept)

    async def _end(self, steps: SwapSteps, version: str, refusal: SwapRefused | None) -> None:
        """Let exactly one version serve, and report which."""
        name, candidate = steps.name, steps.candidate
        try:
            if not steps.kept:
                await self._roll_back(steps)
        finally:
            self._stages.pop(name, None)
            self._workers.observe(None)
        if steps.kept:
            self._on_event("model-kept", {"model": name, "version": version, "measures": steps.measures})
        elif refusal is not None:
            self._report_refused(version, steps, refusal)
        if candidate is not None:
            crashed = str(refusal) if refusal is not None and refusal.code == CRASHED else ""
            end_trial = partial(self._quarantine.end_trial, candidate, passed=steps.kept, crashed=crashed)
            if (record := await asyncio.to_thread(end_trial)) is not None:
                self._on_event("model-quarantined", record.model_dump(exclude_none=True))

    async def _observe(self, steps: SwapSteps, step: str, period_s: float, on_step: OnStep) -> None:
        """Observe a version until it passes a step.

        Raises: SwapRefused: it does not pass.
        """
        started = time.monotonic()
        while True:
            elapsed_s = time.monotonic() - started
            on_step(step, min(1.0, elapsed_s / period_s) if period_s else 1.0)
            observations = self._workers.observations()
            verdict = await _in_thread(partial(steps.judge, step, elapsed_s, period_s, observations))
            if verdict.action == "keep":
                return
            if verdict.action == "roll-back":
                raise SwapRefused(
                    verdict.code,
                    verdict.reason,
                    "Compare the `measures` in the event with the swap policy, then fix the model or change the limit.",
                )
            await asyncio.sleep(min(_JUDGE_EVERY_S, max(0.01, period_s - elapsed_s)))

    async def _run(self, candidate: ModelVersion | None, step: str, work: Callable[[], None]) -> None:
        """Run a step in a thread. It may crash the process, so it is recorded on disk first."""

        def recorded() -> None:
            if candidate is not None:
                self._quarantine.start_trial(candidate, step)
            work()

        await _in_thread(recorded)

    async def _roll_back(self, steps: SwapSteps) -> None:
        """Let the previous version serve, and free the new one. Must run to its end."""
        try:
            await self._restore(steps.name, asyncio.to_thread(steps.roll_back))
        finally:
            if await self._restore(steps.name, self._workers.activate(steps.name)):
                steps.served = True

    async def _restore(self, name: str, work: Awaitable[T]) -> T | None:
        try:
            return await work
        except HedgerowError as error:
            detail = {"model": name, "version": "the previous one", "error": str(error)}
            log.error("model-not-restored", **detail, remedy=error.remedy)
            self._on_event("model-not-restored", detail)
            return None

    def _report_refused(self, version: str, steps: SwapSteps, refusal: SwapRefused) -> None:
        kind = "model-rolled-back" if steps.served else "model-refused"
        detail = {"model": steps.name, "version": version, "code": refusal.code, "reason": str(refusal)}
        log.warning(kind, **detail, remedy=refusal.remedy)
        self._on_event(kind, {**detail, "measures": steps.measures})


async def _in_thread(work: Callable[[], T]) -> T:
    """Run a function in a thread, to its end: native code cannot be interrupted, nor may it overlap the next step."""
    return await tasks.in_thread(work, "step of a swap")
