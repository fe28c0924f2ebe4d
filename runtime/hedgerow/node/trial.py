"""A version on its way through the slots of a model: each step of a swap, and the way back. For one thread at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hedgerow.backends.background import low_priority
from hedgerow.config import ModelConfig
from hedgerow.errors import HedgerowError, ModelError
from hedgerow.models.bundle.golden import check_golden
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.monitor.canary_analysis import CanaryVerdict, Measures, judge
from hedgerow.models.monitor.compatible import IncompatibleVersion, misfits
from hedgerow.models.monitor.observations import Observations, measure
from hedgerow.models.serving.engine import Engine
from hedgerow.models.serving.observer import Observer
from hedgerow.models.serving.pool import BUNDLE, ModelPool
from hedgerow.models.serving.shadow import Shadow
from hedgerow.models.serving.slot import Slot
from hedgerow.models.serving.warmup import rehearse
from hedgerow.models.session.memory import free_bytes, resident_bytes
from hedgerow.wire.fleet import SwapPolicy

_HEAD_ROOM: Final = 1.1
"""Times what a version needs that has to be free, since nobody measured it here."""

_DRAIN_S: Final = 30.0
"""Longest wait for lists that run on a version that no longer serves; a stage may hang in one."""


class Refused(ModelError):
    """A guard has stopped a version."""

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code


@dataclass(slots=True)
class _Place:
    """One slot of the model, and what is to serve there."""

    slot: Slot
    old: Engine | None
    new: Engine | None = None
    watch: Observer | None = None
    shadow: Shadow | None = None
    before: Observer | None = None
    unloaded: bool = False


class SlotTrial:
    """A version's way through all slots of its model in this process; mostly there is one.

    Args:
        pool: where the slots are.
        name: the model's in the configuration.
        candidate: the version; None: the file that the configuration names.
        policy: how to go over.
        abroad: what the node's file says of the model, if workers have it.
    Attributes:
        served: whether it has ever served, here or in workers.
        kept: whether it is there to stay.
        measures: what has been measured of it.
    """

    def __init__(
        self,
        pool: ModelPool,
        name: str,
        candidate: ModelVersion | None,
        policy: SwapPolicy,
        abroad: ModelConfig | None = None,
    ) -> None:
        self.name = name
        self.candidate = candidate
        self.served = False
        self.kept = False
        self.measures: dict[str, Any] = {}
        self._pool = pool
        self._policy = policy
        self._abroad = abroad
        self._places = [_Place(slot, slot.serving) for slot in pool.slots(name)]
        self._before = pool.assigned().get(name)
        self._alone: Engine | None = None
        self._gap = False
        self._gap_began = 0.0
        self._switched = False
        self._resident = 0

    def check_memory(self, workers: int = 0) -> None:
        """See whether old and new fit into memory together; if not, there is a gap or a refusal.

        Args:
            workers: processes that load it as well.
        Raises: Refused: they do not, and the policy is to refuse it then.
        """
        if self.candidate is None:
            return
        copies = max(1, bool(self._places) + workers)
        need, free = int(self.candidate.variant.needs.memory_bytes * _HEAD_ROOM) * copies, free_bytes()
        if free is None or need <= free:
            return
        short = f"{self.candidate.ref} needs {need:,} bytes beside the version that serves, and {free:,} are free"
        if self._policy.memory == "refuse" or not any(place.old for place in self._places):
            remedy = "Free memory, choose a smaller variant, or set `memory: brief-gap` in the swap policy."
            raise Refused("no-memory", short, remedy)
        if workers:
            why = f"a gap would not do, since {workers} workers load it too, beside those that have the version before"
            raise Refused("no-memory", f"{short}; {why}", "Free memory, or have fewer workers.")
        if any(place.slot.never_waits for place in self._places):
            why = "a gap cannot be, since a pipeline with `lanes: 0` uses it, whose event loop would wait for itself"
            raise Refused("no-memory", f"{short}; {why}", "Free memory, or give that pipeline a lane.")
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
        for place in self._places:
            self._check_bundle(place.slot.config)
            if place.old is not None:
                place.before = Observer(place.old)
            place.new = self._pool.open(self.name, place.slot.config, place.slot.base_dir, self.candidate)
            if place.old is not None:
                why = misfits(place.old, place.new)
                if why:
                    raise IncompatibleVersion(self.name, str(place.new), why)
                place.new.carry_on_state(place.old)
        if not self._places and self.candidate is not None:  # nobody uses it now; whether it works is seen all the same
            config = self._abroad or ModelConfig(path=f"{BUNDLE}{self.candidate.ref.name}")
            self._check_bundle(config)
            self._alone = self._pool.open(self.name, config, Path(), self.candidate)

    def try_golden(self) -> None:
        """Warm it up and see whether it computes here what it computed where it was built.

        Raises: Refused: it does not.
        """
        if self._gap:
            self._try_golden()
            return
        with low_priority():
            self._try_golden()

    def _try_golden(self) -> None:
        sizes = {rows for place in self._places if place.old is not None for rows in place.old.recent_s()}
        for engine in self._new():
            if self.candidate is not None:
                outcome = check_golden(
                    engine.run_batch, self.candidate.folder, self.candidate.manifest, self.candidate.variant
                )
                self.measures["golden_worst"] = outcome.worst
                if not outcome.passed:
                    raise Refused(
                        "golden-failed",
                        f"On this device it does not give what it should: {outcome.detail}",
                        "Build a variant for this device, or widen its tolerance if the difference does no harm.",
                    )
            rehearse(engine, sizes)
        self._close_alone()

    def begin_shadow(self) -> bool:
        """Let it run on live frames unheard. Returns: whether anything serves that it could run beside."""
        for place in self._places:
            if place.new is not None and place.slot.serving is not None:
                place.shadow = Shadow(place.slot.serving, place.new)
        return any(place.shadow for place in self._places)

    def end_shadow(self) -> None:
        """Let it no longer run on live frames unheard."""
        for place in self._places:
            if place.shadow is not None:
                place.shadow.end()
                place.shadow = None

    def begin_split(self) -> bool:
        """Let it serve some of the streams. Returns: whether anything serves the others."""
        self._begin_watch()
        for place in self._places:
            if place.new is not None and place.slot.serving is not None:
                place.slot.split(place.new, self._policy.split_percent)
                self.served = True
        return self.served

    def switch(self) -> None:
        """Let it serve all streams."""
        self._begin_watch()
        self._switched = True
        for place in self._places:
            if place.new is not None:
                place.slot.switch(place.new)
                self.served = True
        self._end_gap()
        self._pool.assign(self.name, self.candidate)

    def judge(
        self, step: str, elapsed_s: float, period_s: float, abroad: Iterable[tuple[Observations, Observations]] = ()
    ) -> CanaryVerdict:
        """Decide on it.

        Args:
            abroad: for all workers of each pipeline, how the version before behaved there, and how this one does.
        """
        measured = self._measure(elapsed_s, abroad)
        self.measures = {**self.measures, **measured.as_dict(), "step": step}
        return judge(self._policy, measured, period_s)

    def keep(self) -> None:
        """Free the version before."""
        self.kept = True
        for place in self._places:
            self._end_watches(place)
            if place.old is not None:
                with low_priority():
                    place.slot.retire(place.old, _DRAIN_S)
            if place.slot.closed and place.new is not None:
                place.new.close()

    def undo(self) -> None:
        """Let the version before serve again, and free this one.

        Raises: HedgerowError: the version before had to be unloaded and cannot be loaded again. Frames that need it are
            dead-lettered.
        """
        if self.kept:
            return
        failure: HedgerowError | None = None
        self.end_shadow()
        if self._switched:
            self._pool.assign(self.name, self._before)
        for place in self._places:
            place.slot.end_split()
            if place.old is not None and place.slot.serving is not place.old:
                if place.unloaded and place.new is not None:  # there is no room for both
                    self._gap_began = self._gap_began or time.monotonic()
                    place.slot.begin_gap()
                    place.slot.retire(place.new, _DRAIN_S)
                try:
                    self._put_back(place, place.old)
                except HedgerowError as error:
                    place.slot.switch(place.old)  # closed: who asks it is told so, and does not wait for ever
                    failure = error
            self._end_watches(place)
            if place.new is not None:
                place.slot.retire(place.new, _DRAIN_S)
        self._close_alone()
        self._end_gap()
        if failure is not None:
            raise failure

    def _put_back(self, place: _Place, old: Engine) -> None:
        if place.new is not None and place.new.state_token is old.state_token:
            old.state_token = object()  # a version that is not trusted has written to the streams' hidden state
        if place.unloaded:
            again = self._pool.open(self.name, place.slot.config, place.slot.base_dir, self._before)
            again.state_token = old.state_token
            old = again
        place.slot.switch(old)

    def _begin_gap(self) -> None:
        self._gap_began = time.monotonic()
        for place in self._places:
            old = place.slot.begin_gap()
            if old is None:
                continue
            if not place.slot.drained(old, _DRAIN_S):
                raise Refused(
                    "busy",
                    f"Frames still ran on the version that serves {_DRAIN_S:g} s after it was to be unloaded",
                    "A stage hangs, or takes very long: look at the node's health.",
                )
            old.close()
            place.unloaded = True

    def _end_gap(self) -> None:
        if self._gap_began:
            gap_s = self.measures.get("gap_s", 0.0) + time.monotonic() - self._gap_began
            self.measures["gap_s"] = round(gap_s, 3)
            self._gap_began = 0.0

    def _begin_watch(self) -> None:
        if self._resident == 0:
            self._resident = resident_bytes()
        for place in self._places:
            if place.new is not None and place.watch is None:
                place.watch = Observer(place.new)

    def _end_watches(self, place: _Place) -> None:
        for watch in (place.watch, place.before):
            if watch is not None:
                watch.end()

    def _close_alone(self) -> None:
        if self._alone is not None:
            self._alone.close()
            self._alone = None

    def _new(self) -> list[Engine]:
        engines = [place.new for place in self._places if place.new is not None]
        return engines if self._alone is None else [*engines, self._alone]

    def _check_bundle(self, config: ModelConfig) -> None:
        wanted = config.path.removeprefix(BUNDLE)
        if self.candidate is not None and config.path.startswith(BUNDLE) and wanted != self.candidate.ref.name:
            raise Refused(
                "wrong-bundle",
                f"Model {self.name} is to be {config.path}; {self.candidate.ref} is another model",
                f"Name a version of {wanted}, or mend the node's `path:`.",
            )

    def _measure(self, elapsed_s: float, abroad: Iterable[tuple[Observations, Observations]]) -> Measures:
        conducts = list(abroad)
        compared = disagreed = 0
        for place in self._places:
            shadow = place.shadow
            watch = shadow.watch if shadow is not None else place.watch
            if watch is None:
                continue
            new = watch.conduct()
            if shadow is not None:
                frames, failures = max(new.frames, shadow.compared), new.failures + shadow.failed
                new = replace(new, frames=frames, failures=failures, recent_s={})
                compared += shadow.compared
                disagreed += shadow.disagreed
                self.measures["shed"] = shadow.shed
            conducts.append((place.before.conduct() if place.before is not None else Observations(), new))
        growth = resident_bytes() - self._resident if self._resident else 0
        return replace(measure(elapsed_s, conducts, growth), compared=compared, disagreed=disagreed)
