"""A version of a model, loaded: what runs requests.

Rules:
- An engine batches what waits, across streams and pipelines; nothing waits for a batch to fill.
- A request that cannot run fails alone: if a batch fails, its requests run again one at a time.
- Many a model says that it takes batches and does not: it was exported with a reshape to one frame, or gives a list of
  boxes without saying whose. So two frames of the first batch are run alone as well, and batches end if that disagrees.
- `ServedModel` says what *is*: the backend, the device and the digest that serve, not those that were asked for.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from hedgerow.config import ModelConfig
from hedgerow.errors import HedgerowError, InferenceError, ModelMismatch
from hedgerow.frame import Array
from hedgerow.models.bundle.metadata import metadata_of
from hedgerow.models.bundle.model_file import ModelFile, resolve
from hedgerow.models.bundle.version import DamagedModel, ModelVersion
from hedgerow.models.monitor.drift import DriftMonitor, DriftReport
from hedgerow.models.serving.served_model import ServedModel
from hedgerow.models.session import batching
from hedgerow.models.session.combiner import Combiner, Ticket
from hedgerow.models.session.load import Loaded, load
from hedgerow.models.session.signature import Signature

_RECENT: Final = 64
"""Batches of each size whose times are kept."""

_CARRIES_OVER: Final = "carries-over"


class RequestObserver(Protocol):
    """Looks at the batches of an engine. Called in the threads that run them, several at once; must not raise."""

    def __call__(self, batch: Mapping[str, Array], outputs: Mapping[str, Array], rows: int, took_s: float) -> None:
        """See one batch that ran.

        Args:
            batch: what went in, constants and hidden state among it; it may be written to again afterwards.
            outputs: what came out.
            rows: how many frames are in it; what is more is padding.
            took_s: how long the backend took.
        """
        ...


class Engine:
    """A loaded model that serves many callers.

    Args:
        name: the model's name in the configuration.
        source: the file.
        config: how to run it.
        loaded: the session.
        candidate: the version it is; None: a file of the node's own.
    Attributes:
        inputs: what a caller must give; `constants` are left out, hidden state is not.
        outputs: what comes back.
        state: hidden state, input name → output name.
        batch_axis: axis batches are stacked on, of the inputs and outputs where it is not 0.
        state_token: hidden state that was kept under another one is not this version's.
        lists: lists of frames that run on it now; its slot counts them.
        since: Unix seconds since which it serves.
        observers: what its batches are shown to.
    """

    def __init__(
        self, name: str, source: ModelFile, config: ModelConfig, loaded: Loaded, candidate: ModelVersion | None = None
    ) -> None:
        session = loaded.session
        signature = Signature(name, config, session.inputs, session.outputs)
        self.name = name
        self.source = source
        self.config = config
        self.model_version = candidate
        self.inputs = signature.inputs
        self.outputs = session.outputs
        self.state: Mapping[str, str] = config.state
        self.batch_axis: Mapping[str, int] = config.batch_axis
        said = metadata_of(candidate.manifest) if candidate is not None else {}
        self.metadata: Mapping[str, str] = {**session.metadata, **said}
        self.state_token = object()
        self.lists = 0
        self.since = time.time()
        baseline = candidate.manifest.baseline if candidate is not None else None
        self._drift_monitor = DriftMonitor(baseline, signature) if baseline is not None else None
        self.observers: tuple[RequestObserver, ...] = () if self._drift_monitor is None else (self._drift_monitor,)
        self._signature = signature
        self._loaded = loaded
        self._session = session
        self._sizes = (
            (signature.fixed,) if signature.fixed is not None else session.batch_sizes if signature.batches else ()
        )
        self._combiner = Combiner(self._run, streams=session.streams, limit=signature.limit(loaded.max_batch))
        self._lock = threading.Lock()
        self._unbatched: str | None = None
        self._proven = False
        self._failures = 0
        self._busy_s = 0.0
        self._batches: Counter[int] = Counter()
        self._recent_s: dict[int, deque[float]] = {}

    def __str__(self) -> str:
        return str(self.model_version.ref) if self.model_version is not None else self.source.path.name

    def infer_each(self, requests: Sequence[Mapping[str, Array]]) -> list[dict[str, Array] | HedgerowError]:
        """Run the model on every request; see `ModelHandle.infer_each`."""
        admit = self._signature.admit
        outcomes: list[Any] = []
        for request in requests:
            try:
                outcomes.append(Ticket(*admit(request), request))
            except ModelMismatch as error:
                outcomes.append(error)
        self._combiner.submit([ticket for ticket in outcomes if ticket.__class__ is Ticket])
        return [ticket.result if ticket.__class__ is Ticket else ticket for ticket in outcomes]

    def run_batch(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch as it is, with nobody else's requests, uncounted: for trying the model.

        Args:
            batch: every input, constants and hidden state among them.
        Raises: InferenceError: the backend failed.
        """
        return self._session.run(batch)

    def zero_state(self) -> dict[str, Array]:
        """Hidden state of a stream that has just begun, by input name."""
        return self._signature.zero_state()

    def inherit_state(self, other: Engine) -> None:
        """Go on with the hidden state of the version before, if this one's manifest says that it can and shapes agree."""
        said = self.model_version.manifest.parameters.get("state") if self.model_version is not None else None
        mine, theirs = self.zero_state(), other.zero_state()
        alike = mine.keys() == theirs.keys() and all(
            mine[key].shape == theirs[key].shape and mine[key].dtype == theirs[key].dtype for key in mine
        )
        if said == _CARRIES_OVER and alike:
            self.state_token = other.state_token

    @property
    def signature(self) -> Signature:
        """Its signature, seen through its configuration."""
        return self._signature

    def recent_s(self) -> dict[int, tuple[float, ...]]:
        """Seconds that the backend took for its last batches, by rows."""
        with self._lock:
            return {rows: tuple(times) for rows, times in self._recent_s.items()}

    def forget(self) -> None:
        """Forget what it has done so far: it was a rehearsal."""
        with self._lock:
            self._recent_s.clear()
            self._batches.clear()
            self._busy_s, self._failures = 0.0, 0
        if self._drift_monitor is not None:
            self._drift_monitor.reset()

    def info(self) -> ServedModel:
        """What it is and what it has done so far."""
        session, loaded, candidate = self._session, self._loaded, self.model_version
        seen = self._drift_monitor.report() if self._drift_monitor is not None else DriftReport()
        with self._lock:
            batches, busy_s, failures = dict(sorted(self._batches.items())), self._busy_s, self._failures
        return ServedModel(
            name=self.name,
            path=str(self.source.path),
            digest=self.source.digest,
            version=candidate.ref.version if candidate is not None else None,
            bundle=candidate.ref.digest if candidate is not None else None,
            bundle_name=candidate.ref.name if candidate is not None else None,
            variant=candidate.variant.name if candidate is not None else None,
            since=self.since,
            backend=session.backend,
            backend_version=loaded.version,
            device=session.device,
            device_asked=self.config.device,
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
            looked_at=seen.looked_at,
            not_finite=seen.not_finite,
            drift=seen.drift,
            input_drift=seen.input_drift,
        )

    def close(self) -> None:
        """Free the model."""
        self.observers = ()
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
        signature = self._signature
        rows = [ticket.rows for ticket in tickets]
        total = sum(rows)
        padded = next((size for size in self._sizes if size >= total), total)
        batch = batching.stack([ticket.request for ticket in tickets], signature.axes, padded - total)
        batch.update(signature.constants)
        began = time.perf_counter()
        outputs = self._session.run(batch)
        took = time.perf_counter() - began
        with self._lock:
            self._busy_s += took
            self._batches[total] += 1
            recent = self._recent_s.get(total)
            if recent is None:
                recent = self._recent_s[total] = deque(maxlen=_RECENT)
            recent.append(took)
        for observe in self.observers:
            observe(batch, outputs, total, took)
        if len(tickets) == 1 and padded == total:
            return [outputs]
        return batching.split(outputs, signature.output_axes, rows, padded)


def open_engine(
    name: str,
    config: ModelConfig,
    base_dir: Path,
    cores: int,
    state_dir: Path | None,
    candidate: ModelVersion | None = None,
) -> Engine:
    """Load a model.

    Args:
        name: in the configuration.
        config: what the node's file says of it.
        base_dir: what a relative path in it is relative to.
        cores: cores the node owns.
        state_dir: folder for compiled and tuned models; None: nothing is kept.
        candidate: the version to load; None: the file that the configuration names.
    Raises:
        DamagedModel: the file is not the version's.
        ConfigError, ModelError: it cannot be loaded, or does not fit its configuration.
    """
    if candidate is not None:
        config = candidate.config(config)
    source = resolve(config.path, base_dir)
    if candidate is not None and source.digest != candidate.variant.model_digest:
        raise DamagedModel(candidate, source.digest)
    loaded = load(source, config, cores, state_dir)
    try:
        return Engine(name, source, config, loaded, candidate)
    except BaseException:
        loaded.session.close()
        raise


def _agrees(batched: dict[str, Array], alone: dict[str, Array] | HedgerowError) -> bool:
    return isinstance(alone, dict) and batching.alike(alone, batched)


def _failed(model: str, error: BaseException) -> InferenceError:
    return InferenceError(
        f"Model {model} failed: {type(error).__name__}: {error}",
        remedy="Try it alone with `hedgerow tune`; `batch_axis` or `max_batch: 1` may mend it.",
    )
