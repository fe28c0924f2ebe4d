"""Where a model serves: one slot for every pipeline that names the model.

Rules:
- A slot batches what waits, across streams and pipelines; nothing waits for a batch to fill.
- A request that cannot run fails alone: if a batch fails, its requests run again one at a time.
- Many a model says that it takes batches and does not: it was exported with a reshape to one frame, or gives a list of
  boxes without saying whose. So two frames of the first batch are run alone as well, and batches end if that disagrees.
- `SlotInfo` says what *is*: the backend, the device and the digest that serve, not those that were asked for.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hedgerow.config import ModelConfig
from hedgerow.errors import HedgerowError, InferenceError, ModelMismatch
from hedgerow.frame import Array
from hedgerow.models import batching
from hedgerow.models.combine import Combiner, Ticket
from hedgerow.models.fit import Fit
from hedgerow.models.load import Loaded, load
from hedgerow.models.source import Source, resolve


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """What a slot is and what it has done.

    Attributes:
        name: the model's name in the configuration.
        path: its file.
        digest: `sha256:…` of its file.
        backend: what runs it, and that library's version.
        device: where it runs, as the backend names it.
        device_asked: where it was to run.
        degraded: why it does not run there; None: it does.
        passed_over: why backends that come first were not taken, by name.
        streams: inferences at the same time.
        threads: threads one inference may use.
        max_batch: most rows in a batch; 1: the model takes no batches.
        unbatched: why batches ended although the model says that it takes them; None: they did not.
        inputs, outputs: as text, `name: dtype[shape]`.
        inferences: runs of the backend so far.
        frames: rows they took in.
        failures: requests that failed.
        batches: how many runs had how many rows.
        busy_s: seconds spent in the backend, all streams together.
    """

    name: str
    path: str
    digest: str
    backend: str
    backend_version: str
    device: str
    device_asked: str
    degraded: str | None
    passed_over: Mapping[str, str]
    streams: int
    threads: int
    max_batch: int
    unbatched: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    inferences: int
    frames: int
    failures: int
    batches: Mapping[int, int]
    busy_s: float


class Slot:
    """A loaded model that serves many callers; a `stage.ModelHandle`.

    Attributes:
        inputs: what a caller must give; `constants` are left out, hidden state is not.
        outputs: what comes back.
        state: hidden state, input name → output name.
        batch_axis: axis batches are stacked on, of the inputs and outputs where it is not 0.
    """

    def __init__(self, name: str, source: Source, config: ModelConfig, loaded: Loaded) -> None:
        session = loaded.session
        fit = Fit(name, config, session.inputs, session.outputs)
        self.name = name
        self.inputs = fit.inputs
        self.outputs = session.outputs
        self.state: Mapping[str, str] = config.state
        self.batch_axis: Mapping[str, int] = config.batch_axis
        self.metadata = session.metadata
        self._fit = fit
        self._source = source
        self._device_asked = config.device
        self._loaded = loaded
        self._session = session
        self._sizes = (fit.fixed,) if fit.fixed is not None else session.batch_sizes if fit.batches else ()
        self._combiner = Combiner(self._run, streams=session.streams, limit=fit.limit(loaded.max_batch))
        self._lock = threading.Lock()
        self._unbatched: str | None = None
        self._proven = False
        self._failures = 0
        self._busy_s = 0.0
        self._batches: Counter[int] = Counter()

    def infer(self, requests: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Run the model on every request; see `ModelHandle.infer`."""
        outcomes = self.infer_each(requests)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return outcomes  # type: ignore[return-value] # none is an exception

    def infer_each(self, requests: Sequence[Mapping[str, Array]]) -> list[dict[str, Array] | HedgerowError]:
        """Run the model on every request; see `ModelHandle.infer_each`."""
        admit = self._fit.admit
        outcomes: list[Any] = []
        for request in requests:
            try:
                outcomes.append(Ticket(*admit(request), request))
            except ModelMismatch as error:
                outcomes.append(error)
        self._combiner.submit([ticket for ticket in outcomes if ticket.__class__ is Ticket])
        return [ticket.result if ticket.__class__ is Ticket else ticket for ticket in outcomes]

    def zero_state(self) -> dict[str, Array]:
        """Hidden state of a stream that has just begun, by input name."""
        return self._fit.zero_state()

    def info(self) -> SlotInfo:
        """What the slot is and what it has done so far."""
        session, loaded = self._session, self._loaded
        with self._lock:
            batches, busy_s, failures = dict(sorted(self._batches.items())), self._busy_s, self._failures
        return SlotInfo(
            name=self.name,
            path=str(self._source.path),
            digest=self._source.digest,
            backend=session.backend,
            backend_version=loaded.version,
            device=session.device,
            device_asked=self._device_asked,
            degraded=loaded.degraded,
            passed_over=loaded.passed_over,
            streams=session.streams,
            threads=loaded.threads,
            max_batch=self._combiner.portion.limit,
            unbatched=self._unbatched,
            inputs=tuple(str(spec) for spec in session.inputs),
            outputs=tuple(str(spec) for spec in session.outputs),
            inferences=sum(batches.values()),
            frames=sum(rows * count for rows, count in batches.items()),
            failures=failures,
            batches=batches,
            busy_s=busy_s,
        )

    def close(self) -> None:
        """Free the model."""
        self._session.close()

    def _run(self, tickets: list[Ticket]) -> None:
        """Run one batch, and one at a time if it fails. Every ticket gets a result."""
        try:
            if len(tickets) == 1:
                tickets[0].result = self._run_alone(tickets[0])
                return
            try:
                results = self._infer(tickets)
            except Exception as error:  # noqa: BLE001 - whatever it is, it may concern one request alone
                for ticket in tickets:
                    ticket.result = self._run_alone(ticket)
                if not any(isinstance(ticket.result, Exception) for ticket in tickets):
                    self._end_batches(f"a batch of {len(tickets)} failed and its requests alone did not: {error}")
                return
            for ticket, result in zip(tickets, results, strict=True):
                ticket.result = result
            if not self._proven:
                self._prove(tickets)
        except BaseException as error:  # an interrupt: the other callers must not wait for ever
            for ticket in tickets:
                ticket.result = ticket.result or _failed(self.name, error)
            raise

    def _run_alone(self, ticket: Ticket) -> dict[str, Array] | HedgerowError:
        try:
            return self._infer([ticket])[0]
        except Exception as error:  # noqa: BLE001 - no caller may be left without an answer
            with self._lock:
                self._failures += 1
            return error if isinstance(error, HedgerowError) else _failed(self.name, error)

    def _prove(self, tickets: list[Ticket]) -> None:
        """Compare the ends of the first batch with the same requests run alone; run all alone if they disagree."""
        if all(_agrees(ticket.result, self._run_alone(ticket)) for ticket in (tickets[0], tickets[-1])):
            self._proven = True
            return
        for ticket in tickets:
            ticket.result = self._run_alone(ticket)
        self._end_batches(f"in a batch of {len(tickets)} a request gets other outputs than alone")

    def _end_batches(self, why: str) -> None:
        self._unbatched = why
        self._combiner.portion.limit = 1

    def _infer(self, tickets: list[Ticket]) -> list[dict[str, Array]]:
        fit = self._fit
        rows = [ticket.rows for ticket in tickets]
        total = sum(rows)
        padded = next((size for size in self._sizes if size >= total), total)
        batch = batching.stack([ticket.request for ticket in tickets], fit.axes, padded - total)
        batch.update(fit.constants)
        began = time.perf_counter()
        outputs = self._session.run(batch)
        took = time.perf_counter() - began
        with self._lock:
            self._busy_s += took
            self._batches[total] += 1
        if len(tickets) == 1 and padded == total:
            return [outputs]
        return batching.split(outputs, fit.output_axes, rows, padded)


def _agrees(batched: dict[str, Array], alone: dict[str, Array] | HedgerowError) -> bool:
    return isinstance(alone, dict) and batching.alike(alone, batched)


def _failed(model: str, error: BaseException) -> InferenceError:
    return InferenceError(
        f"Model {model} failed: {type(error).__name__}: {error}",
        remedy="Try it alone with `hedgerow tune`; `batch_axis` or `max_batch: 1` may mend it.",
    )


class _Place:
    """A slot's place in the pool: one caller loads it while the others wait."""

    __slots__ = ("lock", "slot", "uses")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.slot: Slot | None = None
        self.uses = 0


class ModelPool:
    """The slots of a node. Thread-safe.

    Args:
        cores: cores the node owns; models share them.
        state_dir: folder for compiled and tuned models; None: nothing is kept.
    """

    def __init__(self, cores: int, state_dir: Path | None = None) -> None:
        self._cores = cores
        self._state_dir = state_dir
        self._lock = threading.Lock()
        self._places: dict[Hashable, _Place] = {}

    def acquire(self, name: str, config: ModelConfig, base_dir: Path) -> Slot:
        """The slot for a model; the same one for the same file and settings. Give it back with `release`.

        Args:
            base_dir: what a relative path in the configuration is relative to.
        Raises: ConfigError, ModelError: it cannot be loaded, or does not fit its configuration.
        """
        source = resolve(config.path, base_dir)
        key = (source, config.model_dump_json(exclude={"path"}))
        with self._lock:
            place = self._places.setdefault(key, _Place())
            place.uses += 1
        try:
            with place.lock:
                if place.slot is None:
                    place.slot = self._load(name, source, config)
                return place.slot
        except BaseException:
            self._leave(key, place)
            raise

    def release(self, slot: Slot) -> None:
        """Give a slot back; the model is freed when nobody holds it any more."""
        with self._lock:
            found = next((item for item in self._places.items() if item[1].slot is slot), None)
        if found is not None:
            self._leave(*found)

    def slots(self) -> tuple[Slot, ...]:
        """The slots that serve now."""
        with self._lock:
            return tuple(place.slot for place in self._places.values() if place.slot is not None)

    def close(self) -> None:
        """Free every model, whoever holds it."""
        with self._lock:
            places, self._places = list(self._places.values()), {}
        for place in places:
            if place.slot is not None:
                place.slot.close()

    def _load(self, name: str, source: Source, config: ModelConfig) -> Slot:
        loaded = load(source, config, self._cores, self._state_dir)
        try:
            return Slot(name, source, config, loaded)
        except BaseException:
            loaded.session.close()
            raise

    def _leave(self, key: Hashable, place: _Place) -> None:
        with self._lock:
            place.uses -= 1
            if place.uses or self._places.get(key) is not place:
                return
            del self._places[key]
        if place.slot is not None:
            place.slot.close()
