"""A node's agent: takes what the region wants, gets there step by step, and says how far it is.

    desired ─▶ admit ─▶ reconcile ─▶ verify, fetch, install ─▶ go over ─▶ keep ─▶ reported

Rules:
- One document at a time. A newer one ends the work on the older, wherever that is; what was serving serves on.
- What was kept serves from the first moment of the next run, with no network and nobody asked.
- A region that is away is waited for; everything else that goes wrong is reported and ends the document.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog
from pydantic import ValidationError

from hedgerow.errors import BusError, HedgerowError, internal
from hedgerow.node.fleet.reconcile import (
    Admission,
    DesiredError,
    Fetch,
    GoBack,
    GoOver,
    Overlay,
    Overlie,
    Recheck,
    Running,
    Step,
    admit,
    reconcile,
)
from hedgerow.node.fleet.state import KeptModel, Memory
from hedgerow.wire.fleet import Desired, JobState, ModelRef, Reported
from hedgerow.wire.messages import ErrorBody

if TYPE_CHECKING:
    from hedgerow.bus.message import Message
    from hedgerow.node.fleet.agent_host import Host
    from hedgerow.node.fleet.model_source import Supply
    from hedgerow.node.swap.swaps import SwapOutcome, Swaps
    from hedgerow.topics import Address

log = structlog.get_logger(__name__)

LARGEST_DESIRED: Final = 256 << 10
_AGAIN_S: Final = (1.0, 30.0)
"""Pause before the region is asked again: the first, and the longest."""
_TELL_EVERY_S: Final = 1.0
"""Progress is not told more often; a new step is told at once."""
_LOOK_EVERY_S: Final = 2.0
"""How often an idle node looks whether what it has to say of its models has changed."""


class Agent:
    """Gets a node to run what it should.

    Args:
        address: of the node.
        session: this run of it.
        host: the node.
        memory: what it remembers.
        supply: where versions come from.
        swaps: lets versions serve.
    """

    def __init__(
        self,
        address: Address,
        session: str,
        host: Host,
        memory: Memory,
        supply: Supply,
        swaps: Swaps,
    ) -> None:
        self._address = str(address)
        self._session = session
        self._host = host
        self._memory = memory
        self._supply = supply
        self._swaps = swaps
        self._own_labels: dict[str, str] = {}
        self._wanted: Desired | None = memory.desired()
        self._kept = memory.kept()
        self._overlay: Overlay = {}
        self._wake = asyncio.Event()
        self._told_at = 0.0
        self._told: dict[str, Any] = {}
        self._report = Reported(node=self._address, session=session, at=time.time())
        self.counts = {"taken": 0, "refused": 0}

    # What the node asks of it

    @property
    def labels(self) -> dict[str, str]:
        """All labels of the node: the machine's, its file's, the region's."""
        return self._own_labels | (self._wanted.labels if self._wanted is not None else {})

    def restore(self) -> Overlay:
        """Let what was kept serve again; blocks. To be called before pipelines are built.

        Returns: what is different about pipelines.
        """
        self._own_labels = self._host.labels()
        for model, kept in list(self._kept.items()):
            if model not in self._host.models:
                continue
            for ref, variant in ((kept.ref, kept.variant), (kept.previous, kept.previous_variant)):
                if ref is None or ref.digest in self._quarantined():
                    continue
                try:
                    self._swaps.restore(model, self._supply.undamaged(model, ref, variant))
                    break
                except HedgerowError as error:
                    log.warning("model-not-restored", model=model, version=str(ref), error=str(error))
                    self._host.event("model-not-restored", {"model": model, "version": str(ref), "error": str(error)})
        self._protect()
        if self._wanted is not None:
            self._overlay = self._wanted.pipelines
        return self._overlay

    def refuse_overlay(self) -> None:
        """The node could not start with the overlay; it is tried again, and told of, when the document is."""
        self._overlay = {}

    def take(self, message: Message) -> None:
        """A document came."""
        desired = self._read(message)
        if desired is None:
            return
        in_hand = 0 if self._wanted is None else self._wanted.generation
        admission = admit(
            desired, self._address, in_hand, time.time(), clock_doubtful=self._host.clock_doubtful
        )  # fmt: skip
        if admission is Admission.TAKE:
            self.counts["taken"] += 1
            self._wanted = desired
            self._wake.set()
            return
        if admission is Admission.KNOWN:
            return
        self._refused(admission.value, f"generation {desired.generation}, and {in_hand} is in hand")
        if admission is Admission.EXPIRED:
            error = DesiredError(
                f"Generation {desired.generation} expired before it came here",
                code=admission.value,
                remedy="Make a new one; if the node was not away for long, compare the clocks.",
            )
            self._tell(generation=desired.generation, state="rejected", step="", error=ErrorBody.of(error))

    def try_again(self) -> None:
        """Carry the document in hand out anew: something that stood in its way is gone."""
        if self._wanted is not None:
            self._wake.set()

    async def run(self) -> None:
        """Carry documents out until cancelled."""
        self._tell(force=True)
        work: asyncio.Task[None] | None = None
        if self._wanted is not None:
            self._wake.set()
        try:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), _LOOK_EVERY_S)
                if not self._wake.is_set():
                    if work is None or work.done():
                        self._tell()
                    continue
                self._wake.clear()
                await _end(work)
                assert self._wanted is not None  # noqa: S101 - whoever wakes it has set one
                work = asyncio.create_task(self._carry_out(self._wanted), name="desired")
        finally:
            await _end(work)

    # Carrying out

    async def _carry_out(self, desired: Desired) -> None:
        """Take every step, and say what came of it. Raises only CancelledError: a newer document is there."""
        self._tell(
            generation=desired.generation, state="in-progress", step="", progress=None, error=None, rolled_back=[]
        )
        state: JobState = "succeeded"
        failure: HedgerowError | None = None
        try:
            await asyncio.to_thread(self._memory.keep_desired, desired)
            async with asyncio.timeout(desired.swap.timeout_s):
                for step in reconcile(desired, self._running()):
                    await self._take_step(step, desired)
        except TimeoutError:
            state = "timed-out"
            failure = DesiredError(
                f"Generation {desired.generation} was not done within {desired.swap.timeout_s:g} s; it was at: "
                f"{self._report.step or 'the beginning'}",
                code="timed-out",
                remedy="Look at the link to the region, or give it more time (`timeout_s`).",
            )
        except DesiredError as error:
            state, failure = "rejected", error
        except HedgerowError as error:
            state, failure = "failed", error
        except Exception as error:
            log.exception("desired-failed", generation=desired.generation)
            state, failure = "failed", internal(error)
        if failure is not None:
            detail = {"generation": desired.generation, "code": failure.code, "error": str(failure)}
            log.warning("desired-not-carried-out", **detail, remedy=failure.remedy)
            self._host.event("desired-not-carried-out", detail)
        body = None if failure is None else ErrorBody.of(failure)
        self._tell(state=state, step="", progress=None, error=body, force=True)

    async def _take_step(self, step: Step, desired: Desired) -> None:
        match step:
            case Fetch(model, ref):
                tell = partial(self._step, model=model)
                await self._until_there(lambda: self._supply.fetch(ref, self.labels, tell))
            case Recheck(model, ref):
                self._step("verify", model)
                await self._supply.recheck(ref, self.labels)
            case GoOver(model, ref):
                await self._go_over(model, ref, desired)
            case GoBack(model):
                outcome = await self._swaps.go_back_to_file(
                    model, desired.swap, lambda stage, progress: self._step(stage, model, progress)
                )
                if not outcome.kept:
                    raise DesiredNotKept(f"{model}: its own file does not serve: {outcome.reason}", outcome)
                self._kept.pop(model, None)
                await self._remember()
            case Overlie(pipelines):
                self._step("pipelines", "")
                await self._host.overlay(pipelines)
                self._overlay = pipelines

    async def _until_there(self, attempt: Callable[[], Any]) -> None:
        """Try until the region, or the broker, can be reached."""
        pause_s = _AGAIN_S[0]
        while True:
            try:
                await attempt()
            except BusError as error:
                log.info("region-away", error=str(error), again_s=round(pause_s, 1))
                self._tell(error=ErrorBody.of(error))
            else:
                return
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _AGAIN_S[1])

    async def _go_over(self, model: str, ref: ModelRef, desired: Desired) -> None:
        candidate = await asyncio.to_thread(self._supply.candidate, model, ref)
        before = self._swaps.serving().get(model)
        previous = None if before is None else before.model
        await asyncio.to_thread(self._protect, ref)
        outcome = await self._swaps.go_over(
            candidate, desired.swap, lambda stage, progress: self._step(stage, model, progress)
        )
        if not outcome.kept:
            await asyncio.to_thread(self._protect)
            if outcome.served:
                self._tell(rolled_back=[*self._report.rolled_back, model])
            what = f"{ref}" if ref.name == model else f"{model}: {ref}"
            raise DesiredNotKept(f"{what} was taken back: {outcome.reason}", outcome)
        old = self._kept.get(model)
        self._kept[model] = KeptModel(
            ref=ref,
            variant=candidate.variant.name,
            previous=previous,
            previous_variant=old.variant if old is not None and old.ref == previous else None,
        )
        await self._remember()

    async def _remember(self) -> None:
        await asyncio.to_thread(self._protect)
        await asyncio.to_thread(self._memory.keep_models, self._kept)

    def _protect(self, *also: ModelRef) -> None:
        """Keep the store from evicting what serves and what would serve if that were taken back."""
        refs = [kept.ref for kept in self._kept.values()]
        refs += [kept.previous for kept in self._kept.values() if kept.previous is not None]
        self._supply.protect({ref.digest for ref in [*refs, *also]})

    def _running(self) -> Running:
        serving = {name: report.model for name, report in self._swaps.serving().items() if report.model is not None}
        return Running(
            models=self._host.models,
            serving=serving,
            installed=frozenset(self._supply.installed()),
            quarantined=self._quarantined(),
            pipelines=self._host.pipelines,
            overlay=self._overlay,
        )

    def _quarantined(self) -> dict[str, Any]:
        return {each.digest: each for each in self._swaps.quarantined()}

    # Telling

    def _step(self, stage: str, model: str, progress: float | None = None) -> None:
        """What is being done now."""
        step = f"{stage} {model}".strip()
        new = step != self._report.step
        if new:
            log.info("desired-step", step=stage, model=model or None)
        self._tell(step=step, progress=progress, force=new)

    def _tell(self, *, force: bool = False, **said: Any) -> None:
        """Publish a report, if there is something new to say and it is not too soon."""
        report = self._report = self._report.model_copy(update=said)
        urgent = force or any(name != "progress" for name in said)
        now = time.monotonic()
        if not urgent and now - self._told_at < _TELL_EVERY_S:
            return
        report = report.model_copy(
            update={
                "models": self._swaps.serving(),
                "pipelines": self._host.states(),
                "quarantined": self._swaps.quarantined(),
                "labels": self.labels,
                "store_bytes": self._supply.used_bytes,
                "store_max_bytes": self._supply.max_bytes,
            }
        )
        telling = _without_counts(report)
        if not force and telling == self._told:
            return
        self._told, self._told_at = telling, now
        self._host.publish(report.model_copy(update={"at": time.time()}))

    def _read(self, message: Message) -> Desired | None:
        if message.oversized is not None or message.malformed is not None or not message.payload:
            if message.payload or message.oversized:  # an empty one only takes back what the broker had kept
                self._refused("unreadable", message.malformed or f"{message.oversized} bytes")
            return None
        try:
            return Desired.model_validate_json(bytes(message.payload))
        except ValidationError as error:
            first = error.errors()[0]
            self._refused("unreadable", f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:300])
            return None

    def _refused(self, reason: str, detail: str) -> None:
        self.counts["refused"] += 1
        log.warning("desired-refused", reason=reason, detail=detail)
        self._host.event("desired-refused", {"reason": reason, "detail": detail})


class DesiredNotKept(HedgerowError):
    """A version did not pass what it had to pass on this node."""

    def __init__(self, message: str, outcome: SwapOutcome) -> None:
        super().__init__(message, remedy=outcome.remedy or "Mend the model, and send another version.")
        self.code = outcome.code


async def _end(work: asyncio.Task[None] | None) -> None:
    if work is not None:
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work


def _without_counts(report: Reported) -> dict[str, Any]:
    """A report but for what changes all the time; whether a model has served at all is in it."""
    said = report.model_dump(exclude={"at", "store_bytes"})
    for model in said["models"].values():
        model["results"] = model["results"] > 0
    return said
