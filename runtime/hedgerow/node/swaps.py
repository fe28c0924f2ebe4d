"""How a node goes over to another version of a model while frames flow, and comes back by itself.

    load ─▶ golden ─▶ shadow ─▶ split ─▶ switch ─▶ probation ─▶ kept
      └────────┴─────────┴────────┴────────┴──────────┴──▶ the version before serves (on)

Rules:
- One at a time. Whatever happens, also when it is cancelled, one verified version serves afterwards.
- The version before stays loaded until the new one is kept.
- What may bring the process down is noted on disk before it is done (`models/trials.py`).
- Pipelines with workers go over at the switch, to other workers, and are watched on probation there. They have no shadow
  and no split.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar

import structlog

from hedgerow.config import ModelConfig
from hedgerow.errors import CommandError, HedgerowError
from hedgerow.models.candidate import Candidate
from hedgerow.models.conduct import Conduct
from hedgerow.models.pool import BUNDLE, ModelPool
from hedgerow.models.probation import CRASHED
from hedgerow.models.served_model import ServedModel
from hedgerow.models.trials import Trials
from hedgerow.node.trial import Refused, SlotTrial
from hedgerow.wire.fleet import Quarantined, ReportedModel, SwapPolicy

log = structlog.get_logger(__name__)

T = TypeVar("T")

OnStep = Callable[[str, float | None], None]
"""Told of each step and its progress, 0..1 or unknown."""

LOOK_EVERY_S: Final = 0.25
"""How often a version on trial is judged."""


@dataclass(frozen=True, slots=True)
class SwapOutcome:
    """What came of going over to a version.

    Attributes:
        kept: whether it serves from now on.
        code: why not, kebab-case; empty if it does.
        reason: that as a sentence.
        remedy: what to do about it.
        served: whether live results came from it before it was taken back.
        measures: what was measured: of the last trial, and `gap_s`, seconds in which nothing served.
    """

    kept: bool
    code: str = ""
    reason: str = ""
    remedy: str = ""
    served: bool = False
    measures: Mapping[str, Any] = field(default_factory=dict)


class Elsewhere(Protocol):
    """Pipelines whose models are not in this process: those with workers."""

    def infos(self) -> list[ServedModel]:
        """Their models."""
        ...

    def said_of(self, name: str) -> ModelConfig | None:
        """What the node's file says of a model that some of them use; None: none does."""
        ...

    def processes(self, name: str) -> int:
        """How many processes have a model loaded."""
        ...

    def watch(self, name: str | None) -> None:
        """Watch what a model does there from now on, until another is watched, or none."""
        ...

    def conducts(self) -> list[tuple[Conduct, Conduct]]:
        """For each pipeline that has gone over since: how the version before behaved, and how the present one does."""
        ...

    async def go_over(self, name: str) -> int:
        """Let those that use a model go over to the version it is assigned, if they do not run that already.

        Returns: how many have gone over.
        Raises: HedgerowError: one cannot; all go on as they were.
        """
        ...


class _Nowhere:
    """There are no such pipelines."""

    def infos(self) -> list[ServedModel]:
        return []

    def said_of(self, name: str) -> ModelConfig | None:
        return None

    def processes(self, name: str) -> int:
        return 0

    def watch(self, name: str | None) -> None:
        pass

    def conducts(self) -> list[tuple[Conduct, Conduct]]:
        return []

    async def go_over(self, name: str) -> int:
        return 0


class Swaps:
    """Takes the models of a node from version to version.

    Args:
        pool: where they serve.
        state_dir: folder for what must outlive the process.
        on_event: told what operators should know.
        elsewhere: pipelines whose models are not in the pool.
        max_crashes: crashes of a version on trial that put it into quarantine.
    """

    def __init__(
        self,
        pool: ModelPool,
        state_dir: Path,
        on_event: Callable[[str, dict[str, Any]], None],
        elsewhere: Elsewhere | None = None,
        max_crashes: int = 1,
    ) -> None:
        self._pool = pool
        self._on_event = on_event
        self._elsewhere = elsewhere or _Nowhere()
        self._trials = Trials(state_dir / "trials", max_crashes)
        self._turn = asyncio.Lock()
        self._stages: dict[str, Literal["split", "probation"]] = {}
        self._previous: dict[str, Candidate | None] = {}
        for each in self._trials.fresh:
            on_event("model-quarantined", each.model_dump(exclude_none=True))

    async def go_over(self, candidate: Candidate, policy: SwapPolicy, on_step: OnStep) -> SwapOutcome:
        """Go over to a version that lies checked on this node's disk.

        Cancelling it leaves, or puts back, the version that served before.

        Returns: whether it was kept, and why not.
        """
        async with self._turn:
            return await self._go_over(candidate.name, candidate, policy, on_step)

    async def go_back_to_file(self, name: str, policy: SwapPolicy, on_step: OnStep) -> SwapOutcome:
        """Go over to the file that the node's own configuration names: the region no longer says which version."""
        async with self._turn:
            if name not in self._pool.assigned():
                return SwapOutcome(kept=True)
            said = [slot.config for slot in self._pool.slots(name)]
            if (abroad := self._elsewhere.said_of(name)) is not None:
                said.append(abroad)
            if any(config.path.startswith(BUNDLE) for config in said):
                return SwapOutcome(
                    False,
                    "no-own-file",
                    f"Model {name} has no file of this node's own; what served goes on",
                    "Give it a `path:` to a file in the node's configuration, or let the region name a version.",
                )
            if not said:
                self._pool.assign(name, None)
                return SwapOutcome(kept=True)
            return await self._go_over(name, None, policy, on_step)

    def restore(self, name: str, candidate: Candidate) -> None:
        """Let a version serve that served before the node was started; before pipelines are built."""
        self._pool.assign(name, candidate)

    def serving(self) -> dict[str, ReportedModel]:
        """What serves, by the model's name in the configuration; it is what results say, not what was asked for."""
        infos = [*(slot.info() for slot in self._pool.slots()), *self._elsewhere.infos()]
        return {info.name: self._reported(info) for info in infos}

    def previous(self, name: str) -> Candidate | None:
        """The version that served before the one that does, if it was one of a bundle's."""
        return self._previous.get(name)

    def quarantined(self) -> list[Quarantined]:
        """Versions that this node does not try again."""
        return self._trials.quarantined()

    async def release(self, digest: str) -> None:
        """Let a version out of quarantine. Raises: CommandError: another version is on trial just now."""
        if self._turn.locked():
            raise CommandError(
                "A version of a model is on trial just now",
                code="busy",
                remedy="Ask again when it is kept or taken back.",
            )
        async with self._turn:
            await asyncio.to_thread(self._trials.release, digest)

    def _reported(self, info: ServedModel) -> ReportedModel:
        previous = self._previous.get(info.name)
        ref = previous.ref if previous is not None else None
        return info.as_reported(self._stages.get(info.name, "kept"), ref)

    async def _go_over(
        self, name: str, candidate: Candidate | None, policy: SwapPolicy, on_step: OnStep
    ) -> SwapOutcome:
        what = str(candidate.ref) if candidate is not None else f"the file of {name}"
        trial = SlotTrial(self._pool, name, candidate, policy, self._elsewhere.said_of(name))
        crashed = ""
        try:
            await self._take(trial, policy, on_step)
        except Refused as refusal:
            await self._undo(trial)
            crashed = str(refusal) if refusal.code == CRASHED else ""
            return self._refused(name, what, trial, refusal)
        except HedgerowError as error:
            await self._undo(trial)
            return self._refused(name, what, trial, Refused(error.code, str(error), error.remedy))
        except BaseException:
            await self._undo(trial)
            raise
        finally:
            self._stages.pop(name, None)
            self._elsewhere.watch(None)
            if candidate is not None:
                held = await _whole(partial(self._trials.leave, candidate, passed=trial.kept, crashed=crashed))
                if held is not None:
                    self._on_event("model-quarantined", held.model_dump(exclude_none=True))
        self._on_event("model-kept", {"model": name, "version": what, "measures": trial.measures})
        return SwapOutcome(kept=True, served=True, measures=trial.measures)

    async def _take(self, trial: SlotTrial, policy: SwapPolicy, on_step: OnStep) -> None:
        """Take a version all the way.

        Raises: Refused, HedgerowError: a guard has stopped it.
        """
        candidate, name = trial.candidate, trial.name
        if candidate is not None and (held := self._trials.why_not(candidate.ref.digest)) is not None:
            raise Refused("quarantined", f"It is in quarantine: {held.reason}", "Build it anew, or release it.")
        trial.check_memory(self._elsewhere.processes(name))
        self._elsewhere.watch(name)
        await self._enter(candidate, "load")
        on_step("load", None)
        await _whole(trial.load)
        await self._enter(candidate, "golden")
        on_step("golden", None)
        await _whole(trial.try_golden)
        if policy.shadow_s and trial.begin_shadow():
            await self._watch(trial, "shadow", policy.shadow_s, on_step)
            await _whole(trial.end_shadow)
        await self._enter(candidate, "switch")
        if policy.split_percent and policy.split_s and trial.begin_split():
            self._stages[name] = "split"
            await self._watch(trial, "split", policy.split_s, on_step)
        on_step("switch", None)
        before = self._pool.assigned().get(name)
        trial.switch()
        self._stages[name] = "probation"
        if await self._elsewhere.go_over(name):
            trial.served = True
        if trial.served:
            await self._watch(trial, "probation", policy.probation_s, on_step)
        self._previous[name] = before
        await _whole(trial.keep)

    async def _watch(self, trial: SlotTrial, step: str, period_s: float, on_step: OnStep) -> None:
        """Watch a version until it may go on.

        Raises: Refused: it may not.
        """
        began = time.monotonic()
        while True:
            elapsed_s = time.monotonic() - began
            on_step(step, min(1.0, elapsed_s / period_s) if period_s else 1.0)
            verdict = await asyncio.to_thread(trial.judge, step, elapsed_s, period_s, self._elsewhere.conducts())
            if verdict.act == "keep":
                return
            if verdict.act == "take-back":
                raise Refused(verdict.code, verdict.reason, "Look at its measures, and mend the model.")
            await asyncio.sleep(min(LOOK_EVERY_S, max(0.01, period_s - elapsed_s)))

    async def _enter(self, candidate: Candidate | None, step: str) -> None:
        if candidate is not None:
            await asyncio.to_thread(self._trials.enter, candidate, step)

    async def _undo(self, trial: SlotTrial) -> None:
        """Let the version before serve, and free the new one."""
        try:
            await self._restore(trial.name, asyncio.to_thread(trial.undo))
        finally:
            if await self._restore(trial.name, self._elsewhere.go_over(trial.name)):
                trial.served = True

    async def _restore(self, name: str, work: Awaitable[T]) -> T | None:
        try:
            return await _to_the_end(work)
        except HedgerowError as error:
            detail = {"model": name, "version": "the one before", "error": str(error)}
            log.error("model-not-restored", **detail, remedy=error.remedy)
            self._on_event("model-not-restored", detail)
            return None

    def _refused(self, name: str, what: str, trial: SlotTrial, refusal: Refused) -> SwapOutcome:
        kind = "model-rolled-back" if trial.served else "model-refused"
        detail = {"model": name, "version": what, "code": refusal.code, "reason": str(refusal)}
        log.warning(kind, **detail, remedy=refusal.remedy)
        self._on_event(kind, {**detail, "measures": trial.measures})
        return SwapOutcome(
            False, refusal.code, str(refusal), refusal.remedy, served=trial.served, measures=trial.measures
        )


async def _whole(work: Callable[[], T]) -> T:
    """Do something in a thread, to its end: native code cannot be stopped half-way."""
    return await _to_the_end(asyncio.to_thread(work))


async def _to_the_end(work: Awaitable[T]) -> T:
    """Wait until something is done; being cancelled waits for it too."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        with suppress(Exception):  # it is of no interest any more, and has been seen to
            task.result()
        raise cancelled
    return task.result()
