"""The node's agent: applies desired documents step by step, and reports progress.

    desired ─▶ admit ─▶ reconcile ─▶ verify, fetch, install ─▶ swap ─▶ keep ─▶ reported

Rules:
- One document at a time. A newer one cancels the work on the older at any step; the serving versions keep serving.
- Versions that were kept serve from the start of the next run, without network or region.
- While the region is unreachable, the agent retries. Any other error is reported and ends the document.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog
from pydantic import ValidationError

from hedgerow import tasks
from hedgerow.errors import BusError, HedgerowError, internal
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.node.fleet.agent_host import AgentHost
from hedgerow.node.fleet.labels import node_labels
from hedgerow.node.fleet.model_provider import ModelProvider
from hedgerow.node.fleet.reconcile import (
    Admission,
    ChangePipelines,
    DesiredError,
    FetchPipelines,
    FetchVersion,
    Running,
    Step,
    SwapToFile,
    SwapVersion,
    VerifyAgain,
    WithdrawModel,
    admit,
    reconcile,
)
from hedgerow.node.fleet.reporter import Reporter
from hedgerow.node.fleet.state import AgentState, KeptModel
from hedgerow.node.pipelines.adjustments import AdjustmentRefused
from hedgerow.node.pipelines.live_config import SignedPipelines
from hedgerow.node.pipelines.overlay import OverlayError
from hedgerow.node.swap.outcome import SwapOutcome
from hedgerow.node.swap.swaps import Swaps
from hedgerow.wire.fleet import Desired, JobState, ModelRef
from hedgerow.wire.messages import ErrorBody

if TYPE_CHECKING:
    from hedgerow.bus.message import Message

log = structlog.get_logger(__name__)

T = TypeVar("T")

_RETRY_S: Final = (1.0, 30.0)
"""Shortest and longest pause before retrying an unreachable region."""
_CHECK_EVERY_S: Final = 2.0
"""How often an idle agent checks for changes to report."""


class Agent:
    """Applies desired documents to a node.

    Args:
        host: the node.
        state: stores the document and the kept versions on disk.
        provider: verifies, fetches and stores versions.
        swaps: swaps the versions that serve.
    Attributes:
        counts: number of documents taken and refused, and of those taken that were not carried out.
    """

    def __init__(self, host: AgentHost, state: AgentState, provider: ModelProvider, swaps: Swaps) -> None:
        self.counts = {"taken": 0, "refused": 0, "not-carried-out": 0}
        self._host = host
        self._state = state
        self._provider = provider
        self._swaps = swaps
        self._reporter = Reporter(host, provider, swaps)
        self._own_labels: dict[str, str] = {}
        self._desired: Desired | None = state.desired()
        self._kept = state.models()
        self._fetched: SignedPipelines | None = None
        self._wake = asyncio.Event()

    # Called by the node

    async def restore(self) -> None:
        """Restore kept versions and the overlay. Call it before pipelines are built."""
        for failure in await _in_thread(self._restore):
            self._host.announcer.event("model-not-restored", failure)
        if (desired := self._desired) is not None:
            ref = desired.signed_pipelines
            signed = None if ref is None else await _in_thread(partial(self._provider.pipelines, ref))
            self._host.config.restore_overlay(desired.pipelines, signed)

    def receive(self, message: Message) -> None:
        """Accept a document, or refuse it."""
        desired = self._read(message)
        if desired is None:
            return
        address = str(self._host.announcer.address)
        current = 0 if self._desired is None else self._desired.generation
        admission = admit(desired, address, current, time.time(), clock_doubtful=self._host.clock.doubtful)
        if admission is Admission.ACCEPT:
            self.counts["taken"] += 1
            self._desired = desired
            self._wake.set()
            return
        if admission is Admission.KNOWN:
            return
        self._refuse(
            admission.value, f"generation {desired.generation} for {desired.node}; the current generation is {current}"
        )
        if admission is Admission.EXPIRED:
            error = DesiredError(
                f"Generation {desired.generation} expired before it arrived",
                code=admission.value,
                remedy="Send a new one. If the node was not offline for long, compare the clocks of node and region.",
            )
            self._reporter.update(generation=desired.generation, state="rejected", step="", error=ErrorBody.of(error))

    def retry(self) -> None:
        """Apply the current document again, e.g. after a release from quarantine."""
        if self._desired is not None:
            self._wake.set()

    async def run(self) -> None:
        """Apply documents until cancelled."""
        self._reporter.update(labels=self._own_labels, force=True)
        work: list[asyncio.Task[None]] = []
        if self._desired is not None:
            self._wake.set()
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_CHECK_EVERY_S):
                        await self._wake.wait()
                if not self._wake.is_set():
                    if all(task.done() for task in work):
                        self._reporter.update()
                    continue
                await tasks.cancel(*work)
                self._wake.clear()
                assert self._desired is not None  # noqa: S101 - set before the event
                work = [tasks.start(self._apply(self._desired), "desired document")]
        finally:
            await tasks.cancel(*work)

    # Applying a document

    async def _apply(self, desired: Desired) -> None:
        """Take every step, and report the result. Raises only CancelledError."""
        self._reporter.update(
            generation=desired.generation,
            state="in-progress",
            step="",
            progress=None,
            error=None,
            rolled_back=[],
            labels=self._own_labels,
        )
        state: JobState = "succeeded"
        failure: HedgerowError | None = None
        try:
            installed = await _in_thread(partial(self._save_desired, desired))
            self._fetched = None
            async with asyncio.timeout(desired.swap.timeout_s):
                steps = reconcile(desired, self._running(installed))
                self._host.config.check_overlay(desired.pipelines)
                for step in steps:
                    await self._take_step(step, desired)
        except TimeoutError:
            state = "timed-out"
            failure = DesiredError(
                f"Generation {desired.generation} timed out after {desired.swap.timeout_s:g} s, at step: "
                f"{self._reporter.report.step or 'none'}",
                code="timed-out",
                remedy="Check the link to the region, or increase `timeout_s`.",
            )
        except (DesiredError, OverlayError, AdjustmentRefused) as error:
            state, failure = "rejected", error
        except HedgerowError as error:
            state, failure = "failed", error
        except Exception as error:
            log.exception("desired-failed", generation=desired.generation)
            state, failure = "failed", internal(error)
        if failure is not None:
            self.counts["not-carried-out"] += 1
            detail: dict[str, Any] = {"generation": desired.generation, "code": failure.code}
            log.warning("desired-not-carried-out", **detail, error=str(failure), remedy=failure.remedy)
            self._host.announcer.event("desired-not-carried-out", {**detail, "error": failure})
        body = None if failure is None else ErrorBody.of(failure)
        self._reporter.update(state=state, step="", progress=None, error=body, force=True)

    async def _take_step(self, step: Step, desired: Desired) -> None:
        match step:
            case FetchVersion(model, ref):
                await self._retry_until_reachable(
                    lambda: self._provider.fetch(ref, self._own_labels, self._reporter.steps_of(model))
                )
            case VerifyAgain(model, ref):
                self._reporter.step("verify", model)
                await self._provider.verify_again(ref, self._own_labels)
            case SwapVersion(model, ref):
                await self._swap(model, ref, desired)
            case SwapToFile(model):
                await self._swap_to_file(model, desired)
            case WithdrawModel(model):
                await self._withdraw(model)
            case FetchPipelines(ref):
                await self._retry_until_reachable(partial(self._fetch_pipelines, ref))
            case ChangePipelines(overlay, signed):
                self._reporter.step("pipelines", "")
                fetched = self._fetched if self._fetched is not None else self._host.config.signed
                await self._host.config.set_overlay(overlay, None if signed is None else fetched)

    async def _fetch_pipelines(self, ref: ModelRef) -> None:
        self._reporter.step("verify", "pipelines")
        self._fetched = await self._provider.fetch_pipelines(ref, self._own_labels)

    async def _retry_until_reachable(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Retry until the region and the broker are reachable."""
        pause_s = _RETRY_S[0]
        while True:
            try:
                await attempt()
            except BusError as error:
                log.info("region-away", error=str(error), retry_s=round(pause_s, 1))
                self._reporter.update(error=ErrorBody.of(error))
            else:
                return
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _RETRY_S[1])

    async def _swap(self, model: str, ref: ModelRef, desired: Desired) -> None:
        candidate = await _in_thread(partial(self._prepare, model, ref))
        serving = self._swaps.serving().get(model)
        previous = None if serving is None else serving.model
        old = self._kept.get(model)
        kept = KeptModel(
            ref=ref,
            variant=candidate.variant.name,
            previous=previous,
            previous_variant=old.variant if old is not None and old.ref == previous else None,
        )
        on_kept = partial(self._save_kept, model, kept)
        outcome = await self._swaps.swap_to(candidate, desired.swap, self._reporter.steps_of(model), on_kept)
        if not outcome.kept:
            await _in_thread(self._protect)
            if outcome.served:
                self._reporter.update(rolled_back=[*self._reporter.report.rolled_back, model])
            what = f"{ref}" if ref.name == model else f"{model}: {ref}"
            raise VersionNotKept(f"{what} was rolled back: {outcome.reason}", outcome)

    async def _swap_to_file(self, model: str, desired: Desired) -> None:
        on_kept = partial(self._save_kept, model, None)
        outcome = await self._swaps.swap_to_file(model, desired.swap, self._reporter.steps_of(model), on_kept)
        if not outcome.kept:
            raise VersionNotKept(f"{model}: its own file was not kept: {outcome.reason}", outcome)

    async def _withdraw(self, model: str) -> None:
        self._reporter.step("withdraw", model)
        outcome = await self._swaps.withdraw(model, partial(self._save_kept, model, None))
        if not outcome.kept:
            raise VersionNotKept(outcome.reason, outcome)

    def _running(self, installed: Iterable[str]) -> Running:
        file = self._host.config.file
        serving = {name: report.model for name, report in self._swaps.serving().items() if report.model is not None}
        return Running(
            models={name: model.path for name, model in file.models.items()},
            serving=serving,
            installed=frozenset(installed),
            quarantined=self._quarantined(),
            pipelines=frozenset(file.pipelines),
            overlay=self._host.config.overlay,
            labels=self._own_labels,
            signed=None if (signed := self._host.config.signed) is None else signed.ref,
            accepts_signed=file.remote.signed_pipelines,
            users=self._swaps.users(),
            assigned=self._swaps.assigned() | self._kept.keys(),
        )

    def _quarantined(self) -> dict[str, Any]:
        return {each.digest: each for each in self._swaps.quarantined()}

    # In a thread

    def _restore(self) -> list[dict[str, Any]]:
        """Restore kept versions. Returns: the detail of an event for each that cannot be restored."""
        file = self._host.config.file
        self._own_labels = node_labels(self._host.announcer.address, self._host.cores, file)
        failures = []
        for model, kept in list(self._kept.items()):
            if model not in file.models:
                continue
            for ref, variant in ((kept.ref, kept.variant), (kept.previous, kept.previous_variant)):
                if ref is None or ref.digest in self._quarantined():
                    continue
                try:
                    self._swaps.restore(model, self._provider.intact(model, ref, variant))
                    break
                except HedgerowError as error:
                    failures.append({"model": model, "version": str(ref), "error": error})
                    log.warning("model-not-restored", model=model, version=str(ref), error=str(error))
        self._protect()
        return failures

    def _save_desired(self, desired: Desired) -> Iterable[str]:
        """Save a document before applying it. Returns: digests of the versions in the store."""
        self._state.save_desired(desired)
        return self._provider.installed()

    def _prepare(self, model: str, ref: ModelRef) -> ModelVersion:
        candidate = self._provider.candidate(model, ref)
        self._protect(ref)
        return candidate

    def _save_kept(self, model: str, kept: KeptModel | None) -> None:
        """Save that a model's version was kept, or for None, that the node's own file was."""
        if kept is None:
            self._kept.pop(model, None)
        else:
            self._kept[model] = kept
        self._protect()
        self._state.save_models(self._kept)

    def _protect(self, *also: ModelRef) -> None:
        """Protect the serving versions, and those a rollback would return to, from eviction."""
        refs = [kept.ref for kept in self._kept.values()]
        refs += [kept.previous for kept in self._kept.values() if kept.previous is not None]
        self._provider.protect({ref.digest for ref in [*refs, *also]})

    # Receiving a document

    def _read(self, message: Message) -> Desired | None:
        if message.oversized is not None or message.malformed is not None or not message.payload:
            if message.payload or message.oversized:  # an empty payload only clears the retained message
                self._refuse("unreadable", message.malformed or f"too large: {message.oversized:,} bytes")
            return None
        try:
            return Desired.model_validate_json(bytes(message.payload))
        except ValidationError as error:
            first = error.errors()[0]
            self._refuse("unreadable", f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:300])
            return None

    def _refuse(self, reason: str, detail: str) -> None:
        self.counts["refused"] += 1
        self._host.announcer.warn("desired-refused", {"reason": reason, "detail": detail})


class VersionNotKept(HedgerowError):
    """A version did not pass its swap on this node."""

    def __init__(self, message: str, outcome: SwapOutcome) -> None:
        super().__init__(message, remedy=outcome.remedy or "Fix the model, and send another version.")
        self.code = outcome.code


async def _in_thread(work: Callable[[], T]) -> T:
    """Run a function in a thread, to its end: what it writes must not come after what the next document writes."""
    return await tasks.in_thread(work, "desired document")
