"""The steps of a swap in this process, on all slots of a model, and their rollback."""

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

_HEADROOM: Final = 1.1
"""Factor on a version's memory, which was measured on another machine."""

_DRAIN_S: Final = 30.0
"""Longest wait for lists of frames on a version that no longer serves; a stage may hang."""


@dataclass(slots=True)
class _SlotSwap:
    """A slot of the model with its old and its new engine, and what observes them."""

    slot: Slot
    old: Engine | None
    new: Engine | None = None
    new_observer: Observer | None = None
    old_observer: Observer | None = None
    shadow: Shadow | None = None
    unloaded: bool = False


class SwapSteps:
    """Swaps a version in all slots of its model, usually one. Its methods must not run concurrently.

    Args:
        pool: the node's models.
        name: the model's name in the configuration.
        candidate: the new version; None: the file in the configuration.
        policy: the swap policy.
        worker_config: the model's configuration, if workers run it.
    Attributes:
        served: whether the version served live frames, here or in workers.
        kept: whether the version was kept.
        measures: measures so far.
        previous: the version assigned before; None: the file in the configuration.
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
        self.previous = pool.assigned().get(name)
        self._unattached: Engine | None = None
        self._gap = False
        self._gap_started = 0.0
        self._promoted = False
        self._resident_before = 0

    def check_memory(self, workers: int = 0) -> None:
        """Check whether both versions fit into memory; if not, plan a gap, or refuse.

        Args:
            workers: number of worker processes that load the version too.
        Raises: SwapRefused: they do not fit, and a gap is not allowed or not possible.
        """
        if self.candidate is None:
            return
        copies = max(1, bool(self._slot_swaps) + workers)
        need, free = int(self.candidate.variant.needs.memory_bytes * _HEADROOM) * copies, free_bytes()
        if free is None or need <= free:
            return
        short = f"{self.candidate.ref} needs {need:,} bytes beside the serving version, but only {free:,} are free"
        if self._policy.memory == "refuse" or not any(swap.old for swap in self._slot_swaps):
            remedy = "Free memory, choose a smaller variant, or set `memory: brief-gap` in the swap policy."
            raise SwapRefused("no-memory", short, remedy)
        if workers:
            why = f"`memory: brief-gap` does not help, since {workers} new workers load it while the old ones run"
            raise SwapRefused("no-memory", f"{short}; {why}", "Free memory, or use fewer workers.")
        if any(swap.slot.never_waits for swap in self._slot_swaps):
            why = (
                "`memory: brief-gap` is not possible, since a pipeline with `lanes: 0` uses it: "
                "the event loop would wait for itself"
            )
            raise SwapRefused("no-memory", f"{short}; {why}", "Free memory, or set `lanes: 1` for that pipeline.")
        self._gap = True

    def load(self) -> None:
        """Load the version at low priority while the old one serves, or, in a gap, after unloading the old one.

        Raises: HedgerowError: it cannot be loaded, or is incompatible with the old one.
        """
        if self._gap:
            self._start_gap()
            self._load()
            return
        with low_priority():
            self._load()

    def _load(self) -> None:
        for swap in self._slot_swaps:
            self._check_bundle(swap.slot.config)
            if swap.old is not None:
                swap.old_observer = Observer(swap.old)
            swap.new = self._pool.open(self.name, swap.slot.config, swap.slot.base_dir, self.candidate)
            if swap.old is not None:
                why = incompatibilities(swap.old, swap.new)
                if why:
                    raise IncompatibleVersion(self.name, str(swap.new), why)
                swap.new.inherit_state(swap.old)
        if not self._slot_swaps and self.candidate is not None:  # no pipeline here uses it now; test it anyway
            config = self._worker_config or ModelConfig(path=f"{BUNDLE}{self.candidate.ref.name}")
            self._check_bundle(config)
            self._unattached = self._pool.open(self.name, config, Path(), self.candidate)

    def run_golden(self) -> None:
        """Check the version's golden cases on this device, and warm it up.

        Raises: SwapRefused: an output is out of tolerance.
        """
        if self._gap:
            self._run_golden()
            return
        with low_priority():
            self._run_golden()

    def _run_golden(self) -> None:
        sizes = {rows for swap in self._slot_swaps if swap.old is not None for rows in swap.old.recent_s()}
        for engine in self._new_engines():
            if self.candidate is not None:
                outcome = check_golden(
                    engine.run_batch, self.candidate.folder, self.candidate.manifest, self.candidate.variant
                )
                self.measures["golden_worst"] = outcome.worst
                if not outcome.passed:
                    raise SwapRefused(
                        "golden-failed",
                        f"Its golden cases fail on this device: {outcome.detail}",
                        "Build a variant for this device, or increase its tolerance if the difference is harmless.",
                    )
            prepare(engine, sizes)
        self._close_unattached()

    def start_shadow(self) -> bool:
        """Run the version on live frames without publishing. Returns: whether a version serves to compare with."""
        for swap in self._slot_swaps:
            if swap.new is not None and swap.slot.serving is not None:
                swap.shadow = Shadow(swap.slot.serving, swap.new)
        return any(swap.shadow for swap in self._slot_swaps)

    def stop_shadow(self) -> None:
        """Stop the shadow."""
        for swap in self._slot_swaps:
            if swap.shadow is not None:
                swap.shadow.stop()
                swap.shadow = None

    def start_split(self) -> bool:
        """Let the version serve a share of the streams. Returns: whether a version serves the others."""
        self._start_observers()
        for swap in self._slot_swaps:
            if swap.new is not None and swap.slot.serving is not None:
                swap.slot.split(swap.new, self._policy.split_percent)
                self.served = True
        return self.served

    def promote(self) -> None:
        """Let the version serve all streams."""
        self._start_observers()
        self._promoted = True
        for swap in self._slot_swaps:
            if swap.new is not None:
                swap.slot.promote(swap.new)
                self.served = True
        self._end_gap()
        self._pool.assign(self.name, self.candidate)

    def judge(
        self, step: str, elapsed_s: float, period_s: float, in_workers: Iterable[tuple[Observations, Observations]] = ()
    ) -> CanaryVerdict:
        """Decide whether the version passes a step.

        Args:
            in_workers: observations of the old and the new version, for each pipeline with workers.
        """
        measured = self._measure(elapsed_s, in_workers)
        self.measures = {**self.measures, **measured.as_dict(), "step": step}
        return judge(self._policy, measured, period_s)

    def keep(self) -> None:
        """Keep the version, and free the old one."""
        self.kept = True
        for swap in self._slot_swaps:
            self._stop_observers(swap)
            if swap.old is not None:
                with low_priority():
                    swap.slot.retire(swap.old, _DRAIN_S)
            if swap.slot.closed and swap.new is not None:
                swap.new.close()

    def roll_back(self) -> None:
        """Let the old version serve again, and free the new one.

        Raises: HedgerowError: the old version had been unloaded and cannot be loaded again. Frames that need it are
            dead-lettered.
        """
        if self.kept:
            return
        failure: HedgerowError | None = None
        self.stop_shadow()
        if self._promoted:
            self._pool.assign(self.name, self.previous)
        for swap in self._slot_swaps:
            swap.slot.end_split()
            if swap.old is not None and swap.slot.serving is not swap.old:
                if swap.unloaded and swap.new is not None:  # there is not enough memory for both
                    self._gap_started = self._gap_started or time.monotonic()
                    swap.slot.start_gap()
                    swap.slot.retire(swap.new, _DRAIN_S)
                try:
                    self._restore(swap, swap.old)
                except HedgerowError as error:
                    swap.slot.promote(swap.old)  # it is closed, so callers get an error instead of waiting forever
                    failure = error
            self._stop_observers(swap)
            if swap.new is not None:
                swap.slot.retire(swap.new, _DRAIN_S)
        self._close_unattached()
        self._end_gap()
        if failure is not None:
            raise failure

    def _restore(self, swap: _SlotSwap, old: Engine) -> None:
        if swap.new is not None and swap.new.state_token is old.state_token:
            old.state_token = object()  # the rejected version has changed the streams' hidden state
        if swap.unloaded:
            reloaded = self._pool.open(self.name, swap.slot.config, swap.slot.base_dir, self.previous)
            reloaded.state_token = old.state_token
            old = reloaded
        swap.slot.promote(old)

    def _start_gap(self) -> None:
        self._gap_started = time.monotonic()
        for swap in self._slot_swaps:
            old = swap.slot.start_gap()
            if old is None:
                continue
            if not swap.slot.wait_until_idle(old, _DRAIN_S):
                raise SwapRefused(
                    "busy",
                    f"Frames still ran on the old version {_DRAIN_S:g} s after new frames were held back",
                    "Check the node's health: a stage hangs or is very slow.",
                )
            old.close()
            swap.unloaded = True

    def _end_gap(self) -> None:
        if self._gap_started:
            gap_s = self.measures.get("gap_s", 0.0) + time.monotonic() - self._gap_started
            self.measures["gap_s"] = round(gap_s, 3)
            self._gap_started = 0.0

    def _start_observers(self) -> None:
        if self._resident_before == 0:
            self._resident_before = resident_bytes()
        for swap in self._slot_swaps:
            if swap.new is not None and swap.new_observer is None:
                swap.new_observer = Observer(swap.new)

    def _stop_observers(self, swap: _SlotSwap) -> None:
        for observer in (swap.new_observer, swap.old_observer):
            if observer is not None:
                observer.stop()

    def _close_unattached(self) -> None:
        if self._unattached is not None:
            self._unattached.close()
            self._unattached = None

    def _new_engines(self) -> list[Engine]:
        engines = [swap.new for swap in self._slot_swaps if swap.new is not None]
        return engines if self._unattached is None else [*engines, self._unattached]

    def _check_bundle(self, config: ModelConfig) -> None:
        bundle = config.path.removeprefix(BUNDLE)
        if self.candidate is not None and config.path.startswith(BUNDLE) and bundle != self.candidate.ref.name:
            raise SwapRefused(
                "wrong-bundle",
                f"Model {self.name} has the path {config.path}, but the new version is {self.candidate.ref}",
                f"Name a version of {bundle}, or correct `path:` in the node's file.",
            )

    def _measure(self, elapsed_s: float, in_workers: Iterable[tuple[Observations, Observations]]) -> Measures:
        observations = list(in_workers)
        compared = disagreed = 0
        for swap in self._slot_swaps:
            shadow = swap.shadow
            observer = shadow.observer if shadow is not None else swap.new_observer
            if observer is None:
                continue
            new = observer.observations()
            if shadow is not None:
                frames, failures = max(new.frames, shadow.compared), new.failures + shadow.failed
                new = replace(new, frames=frames, failures=failures, recent_s={})
                compared += shadow.compared
                disagreed += shadow.disagreed
                self.measures["shed"] = shadow.shed
            observations.append(
                (swap.old_observer.observations() if swap.old_observer is not None else Observations(), new)
            )
        growth = resident_bytes() - self._resident_before if self._resident_before else 0
        return replace(measure(elapsed_s, observations, growth), compared=compared, disagreed=disagreed)
