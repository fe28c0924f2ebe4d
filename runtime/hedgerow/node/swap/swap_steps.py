"""The steps of a swap in this process: a version on its way through the slots of a model, and back."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hedgerow.backends.background import low_priority
from hedgerow.config import ModelConfig
from hedgerow.errors import HedgerowError
from hedgerow.models.bundle.golden import check_golden
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.monitor.canary_analysis import CanaryVerdict, Measures, judge
from hedgerow.models.monitor.compatible import IncompatibleVersion, incompatibilities
from hedgerow.models.monitor.observations import Observations, measure
from hedgerow.models.serving.engine import Engine
from hedgerow.models.serving.observer import Observer
from hedgerow.models.serving.pool import BUNDLE, ModelPool
from hedgerow.models.serving.shadow import Shadow
from hedgerow.models.serving.slot import Slot
from hedgerow.models.serving.warmup import prepare
from hedgerow.models.session.memory import free_bytes, resident_bytes
from hedgerow.node.swap.outcome import SwapRefused
from hedgerow.wire.fleet import SwapPolicy

_HEAD_ROOM: Final = 1.1
"""Factor on the memory that a version needs: it was measured on another machine."""

_DRAIN_S: Final = 30.0
"""Longest wait for lists that run on a version that no longer serves; a stage may hang in one."""


@dataclass(slots=True)
class _SlotSwap:
    """One slot of the model, the engine that served there and the one that is to."""

    slot: Slot
    old: Engine | None
    new: Engine | None = None
    watch: Observer | None = None
    shadow: Shadow | None = None
    before: Observer | None = None
    unloaded: bool = False


class SwapSteps:
    """Takes a version through all slots of its model; mostly there is one. Its methods are for one thread at a time.

    Args:
        pool: has the slots.
        name: the model's in the configuration.
        candidate: the version; None: the file that the configuration names.
        policy: how to swap.
        worker_config: the model's configuration, if workers run it.
    Attributes:
        served: whether the version has ever served, here or in workers.
        kept: whether it is there to stay.
        measures: what has been measured of it.
    """

    def __init__(
        self,
        pool: ModelPool,
        name: str,
        candidate: ModelVersion | None,
        policy: SwapPolicy,
        worker_config: ModelConfig | None = None,
    ) -> None:
        self.name = name
        self.candidate = candidate
        self.served = False
        self.kept = False
        self.measures: dict[str, Any] = {}
        self._pool = pool
        self._policy = policy
        self._worker_config = worker_config
        self._slot_swaps = [_SlotSwap(slot, slot.serving) for slot in pool.slots(name)]
        self._before = pool.assigned().get(name)
        self._alone: Engine | None = None
        self._gap = False
        self._gap_began = 0.0
        self._switched = False
        self._resident = 0

    def check_memory(self, workers: int = 0) -> None:
        """Check whether old and new fit into memory together; if not, there is a gap or a refusal.

        Args:
            workers: worker processes that load the version too.
        Raises: SwapRefused: they do not, and the policy is to refuse it then.
        """
        if self.candidate is None:
            return
        copies = max(1, bool(self._slot_swaps) + workers)
        need, free = int(self.candidate.variant.needs.memory_bytes * _HEAD_ROOM) * copies, free_bytes()
        if free is None or need <= free:
            return
        short = f"{self.candidate.ref} needs {need:,} bytes beside the version that serves, and {free:,} are free"
        if self._policy.memory == "refuse" or not any(swap.old for swap in self._slot_swaps):
            remedy = "Free memory, choose a smaller variant, or set `memory: brief-gap` in the swap policy."
            raise SwapRefused("no-memory", short, remedy)
        if workers:
            why = f"a gap would not do, since {workers} workers load it too, beside those that have the version before"
            raise SwapRefused("no-memory", f"{short}; {why}", "Free memory, or have fewer workers.")
        if any(swap.slot.never_waits for swap in self._slot_swaps):
            why = "a gap cannot be, since a pipeline with `lanes: 0` uses it, whose event loop would wait for itself"
            raise SwapRefused("no-memory", f"{short}; {why}", "Free memory, or give that pipeline a lane.")
        self._gap = True

    def load(self) -> None:
        """Load it beside what serves and at low priority, or, in a gap, after that has been unloaded.

        Raises: HedgerowError: it cannot be loaded, or does not fit what its stages know of the model.
        """
        if self._gap:
            self._begin_gap()
            self._load()
            return
        with low_priority():
            self._load()

    def _load(self) -> None:
        for swap in self._slot_swaps:
            self._check_bundle(swap.slot.config)
            if swap.old is not None:
                swap.before = Observer(swap.old)
            swap.new = self._pool.open(self.name, swap.slot.config, swap.slot.base_dir, self.candidate)
            if swap.old is not None:
                why = incompatibilities(swap.old, swap.new)
                if why:
                    raise IncompatibleVersion(self.name, str(swap.new), why)
                swap.new.inherit_state(swap.old)
        if not self._slot_swaps and self.candidate is not None:  # no pipeline uses it now; it is tried all the same
            config = self._worker_config or ModelConfig(path=f"{BUNDLE}{self.candidate.ref.name}")
            self._check_bundle(config)
            self._alone = self._pool.open(self.name, config, Path(), self.candidate)

    def run_golden(self) -> None:
        """Check that it computes here what it computed where it was built, and warm it up.

        Raises: SwapRefused: it does not.
        """
        if self._gap:
            self._run_golden()
            return
        with low_priority():
            self._run_golden()

    def _run_golden(self) -> None:
        sizes = {rows for swap in self._slot_swaps if swap.old is not None for rows in swap.old.recent_s()}
        for engine in self._new():
            if self.candidate is not None:
                outcome = check_golden(
                    engine.run_batch, self.candidate.folder, self.candidate.manifest, self.candidate.variant
                )
                self.measures["golden_worst"] = outcome.worst
                if not outcome.passed:
                    raise SwapRefused(
                        "golden-failed",
                        f"On this device it does not give what it should: {outcome.detail}",
                        "Build a variant for this device, or widen its tolerance if the difference does no harm.",
                    )
            prepare(engine, sizes)
        self._close_alone()

    def start_shadow(self) -> bool:
        """Run it on live frames, without results. Returns: whether anything serves that it could run beside."""
        for swap in self._slot_swaps:
            if swap.new is not None and swap.slot.serving is not None:
                swap.shadow = Shadow(swap.slot.serving, swap.new)
        return any(swap.shadow for swap in self._slot_swaps)

    def stop_shadow(self) -> None:
        """Stop running it as a shadow."""
        for swap in self._slot_swaps:
            if swap.shadow is not None:
                swap.shadow.stop()
                swap.shadow = None

    def start_split(self) -> bool:
        """Let it serve some of the streams. Returns: whether anything serves the others."""
        self._start_watches()
        for swap in self._slot_swaps:
            if swap.new is not None and swap.slot.serving is not None:
                swap.slot.split(swap.new, self._policy.split_percent)
                self.served = True
        return self.served

    def promote(self) -> None:
        """Let it serve all streams."""
        self._start_watches()
        self._switched = True
        for swap in self._slot_swaps:
            if swap.new is not None:
                swap.slot.promote(swap.new)
                self.served = True
        self._end_gap()
        self._pool.assign(self.name, self.candidate)

    def judge(
        self, step: str, elapsed_s: float, period_s: float, in_workers: Iterable[tuple[Observations, Observations]] = ()
    ) -> CanaryVerdict:
        """Decide whether it may take the next step.

        Args:
            in_workers: by pipeline with workers, what was seen of the version before, and of this one.
        """
        measured = self._measure(elapsed_s, in_workers)
        self.measures = {**self.measures, **measured.as_dict(), "step": step}
        return judge(self._policy, measured, period_s)

    def keep(self) -> None:
        """Free the version before."""
        self.kept = True
        for swap in self._slot_swaps:
            self._stop_watches(swap)
            if swap.old is not None:
                with low_priority():
                    swap.slot.retire(swap.old, _DRAIN_S)
            if swap.slot.closed and swap.new is not None:
                swap.new.close()

    def roll_back(self) -> None:
        """Let the version before serve again, and free this one.

        Raises: HedgerowError: the version before had to be unloaded and cannot be loaded again. Frames that need it are
            dead-lettered.
        """
        if self.kept:
            return
        failure: HedgerowError | None = None
        self.stop_shadow()
        if self._switched:
            self._pool.assign(self.name, self._before)
        for swap in self._slot_swaps:
            swap.slot.end_split()
            if swap.old is not None and swap.slot.serving is not swap.old:
                if swap.unloaded and swap.new is not None:  # there is no room for both
                    self._gap_began = self._gap_began or time.monotonic()
                    swap.slot.start_gap()
                    swap.slot.retire(swap.new, _DRAIN_S)
                try:
                    self._restore(swap, swap.old)
                except HedgerowError as error:
                    swap.slot.promote(swap.old)  # closed: callers get an error and do not wait for ever
                    failure = error
            self._stop_watches(swap)
            if swap.new is not None:
                swap.slot.retire(swap.new, _DRAIN_S)
        self._close_alone()
        self._end_gap()
        if failure is not None:
            raise failure

    def _restore(self, swap: _SlotSwap, old: Engine) -> None:
        if swap.new is not None and swap.new.state_token is old.state_token:
            old.state_token = object()  # the refused version has written to the streams' hidden state
        if swap.unloaded:
            again = self._pool.open(self.name, swap.slot.config, swap.slot.base_dir, self._before)
            again.state_token = old.state_token
            old = again
        swap.slot.promote(old)

    def _begin_gap(self) -> None:
        self._gap_began = time.monotonic()
        for swap in self._slot_swaps:
            old = swap.slot.start_gap()
            if old is None:
                continue
            if not swap.slot.wait_until_idle(old, _DRAIN_S):
                raise SwapRefused(
                    "busy",
                    f"Frames still ran on the version that serves {_DRAIN_S:g} s after it was to be unloaded",
                    "A stage hangs, or takes very long: look at the node's health.",
                )
            old.close()
            swap.unloaded = True

    def _end_gap(self) -> None:
        if self._gap_began:
            gap_s = self.measures.get("gap_s", 0.0) + time.monotonic() - self._gap_began
            self.measures["gap_s"] = round(gap_s, 3)
            self._gap_began = 0.0

    def _start_watches(self) -> None:
        if self._resident == 0:
            self._resident = resident_bytes()
        for swap in self._slot_swaps:
            if swap.new is not None and swap.watch is None:
                swap.watch = Observer(swap.new)

    def _stop_watches(self, swap: _SlotSwap) -> None:
        for watch in (swap.watch, swap.before):
            if watch is not None:
                watch.stop()

    def _close_alone(self) -> None:
        if self._alone is not None:
            self._alone.close()
            self._alone = None

    def _new(self) -> list[Engine]:
        engines = [swap.new for swap in self._slot_swaps if swap.new is not None]
        return engines if self._alone is None else [*engines, self._alone]

    def _check_bundle(self, config: ModelConfig) -> None:
        wanted = config.path.removeprefix(BUNDLE)
        if self.candidate is not None and config.path.startswith(BUNDLE) and wanted != self.candidate.ref.name:
            raise SwapRefused(
                "wrong-bundle",
                f"Model {self.name} is to be {config.path}; {self.candidate.ref} is another model",
                f"Name a version of {wanted}, or correct `path:` in the node's file.",
            )

    def _measure(self, elapsed_s: float, in_workers: Iterable[tuple[Observations, Observations]]) -> Measures:
        observed = list(in_workers)
        compared = disagreed = 0
        for swap in self._slot_swaps:
            shadow = swap.shadow
            watch = shadow.observer if shadow is not None else swap.watch
            if watch is None:
                continue
            new = watch.observations()
            if shadow is not None:
                frames, failures = max(new.frames, shadow.compared), new.failures + shadow.failed
                new = replace(new, frames=frames, failures=failures, recent_s={})
                compared += shadow.compared
                disagreed += shadow.disagreed
                self.measures["shed"] = shadow.shed
            observed.append((swap.before.observations() if swap.before is not None else Observations(), new))
        growth = resident_bytes() - self._resident if self._resident else 0
        return replace(measure(elapsed_s, observed, growth), compared=compared, disagreed=disagreed)
