"""Engine: a loaded model version that runs requests.

Rules:
- An engine batches waiting requests across streams and pipelines; no request waits for a batch to fill.
- A request that cannot run fails alone: if a batch fails, its requests run again one at a time.
- Frames share a batch only if trials while the model loads have proven that it can be split (`batch_trial.py`).
- `ServedModel` reports the backend, device and digest *in use*, not the requested ones.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from hedgerow.backends.base import BoundRequest
from hedgerow.config import ModelConfig
from hedgerow.errors import HedgerowError, InferenceError, ModelMismatch, ModelUnreadable
from hedgerow.frame import Array
from hedgerow.models.bundle.metadata import metadata_of
from hedgerow.models.bundle.model_file import ModelFile, digest, resolve
from hedgerow.models.bundle.version import DamagedModel, ModelVersion
from hedgerow.models.monitor.drift import DriftMonitor, DriftReport
from hedgerow.models.serving.served_model import ServedModel
from hedgerow.models.session import batching
from hedgerow.models.session.batch_verdicts import try_batches_once
from hedgerow.models.session.combiner import Combiner, Ticket
from hedgerow.models.session.load import Loaded, load, with_state
from hedgerow.models.session.signature import Signature

log = structlog.get_logger(__name__)

_RECENT: Final = 64
"""Number of batches per size whose times are stored."""

_CARRIES_OVER: Final = "carries-over"


class RequestObserver(Protocol):
    """Observes the batches of an engine. Called in the threads that run them, concurrently; must not raise."""

    def __call__(self, batch: Mapping[str, Array], outputs: Mapping[str, Array], rows: int, took_s: float) -> None:
        """Observe a batch that has run.

        Args:
            batch: its inputs, including constants and hidden state.
            outputs: its outputs. Like the inputs, they may be overwritten after this call.
            rows: number of frames; further rows are padding.
            took_s: time in the backend.
        """
        ...


class Engine:
    """A loaded model that serves many callers.

    Args:
        name: the model's name in the configuration.
        source: the model's file.
        config: how to run it.
        loaded: the session.
        signature: the model's signature.
        model_version: the version; None: a file named in the node's configuration.
    Attributes:
        inputs: inputs that callers provide: includes hidden state, but not `constants`.
        outputs: outputs that callers receive.
        state: hidden state, input name → output name.
        batch_axis: batch axis of inputs and outputs, where it is not 0.
        state_token: identifies its hidden state: state stored with another token belongs to another version.
        active_lists: number of frame lists that run on it; counted by its slot.
        since: when it started to serve, Unix seconds.
        observers: observers of its batches.
    """

    def __init__(
        self,
        name: str,
        source: ModelFile,
        config: ModelConfig,
        loaded: Loaded,
        signature: Signature,
        model_version: ModelVersion | None = None,
    ) -> None:
        session = loaded.session
        self.name = name
        self.source = source
        self.config = config
        self.model_version = model_version
        self.inputs = signature.inputs
        self.outputs = session.outputs
        self.state: Mapping[str, str] = config.state
        self.batch_axis: Mapping[str, int] = config.batch_axis
        overrides = metadata_of(model_version.manifest) if model_version is not None else {}
        self.metadata: Mapping[str, str] = {**session.metadata, **overrides}
        self.state_token = object()
        self.active_lists = 0
        self.since = time.time()
        baseline = model_version.manifest.baseline if model_version is not None else None
        self._drift_monitor = DriftMonitor(baseline, signature) if baseline is not None else None
        self.observers: tuple[RequestObserver, ...] = () if self._drift_monitor is None else (self._drift_monitor,)
        self._signature = signature
        self._loaded = loaded
        self._session = session
        self._unbatched = signature.unbatched
        limit = signature.limit(loaded.max_batch)
        self._sizes = (signature.fixed,) if signature.fixed is not None else session.batch_sizes if limit > 1 else ()
        self._combiner = Combiner(self._run, streams=session.streams, limit=limit)
        self._lock = threading.Lock()
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

    def infer_batch(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model on rows of several frames as one request; see `ModelHandle.infer_batch`."""
        signature, axes = self._signature, self._signature.axes
        rows = signature.rows(inputs)
        if self.max_batch == 1:  # an output may have other rows than one for a frame
            raise ModelMismatch(
                f"Model {self.name} takes no batches", remedy="Run its requests one by one: `infer_each`."
            )
        limit = self._combiner.batch_size_policy.max_rows(rows)
        requests = [inputs] if rows <= limit else batching.parts(inputs, axes, limit)
        tickets = [Ticket(*signature.admit(request), request, retried=True) for request in requests]
        self._combiner.submit(tickets)
        for ticket in tickets:
            if ticket.result.__class__ is not dict:
                raise ticket.result
        if len(tickets) == 1:
            result: dict[str, Array] = tickets[0].result
            return result
        return batching.join([ticket.result for ticket in tickets], signature.output_axes)

    def run_batch(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch directly, without batching or counting it, to test the model.

        Args:
            batch: every input, including constants and hidden state.
        Raises: InferenceError: the backend failed.
        """
        return self._session.run(batch)

    def zero_state(self) -> dict[str, Array]:
        """Return the initial hidden state of a stream, by input name."""
        return self._signature.zero_state()

    def inherit_state(self, other: Engine) -> None:
        """Continue with another version's hidden state, if this version's manifest allows it and shapes agree."""
        declared = self.model_version.manifest.parameters.get("state") if self.model_version is not None else None
        mine, theirs = self.zero_state(), other.zero_state()
        same = mine.keys() == theirs.keys() and all(
            mine[key].shape == theirs[key].shape and mine[key].dtype == theirs[key].dtype for key in mine
        )
        if declared == _CARRIES_OVER and same:
            self.state_token = other.state_token

    @property
    def max_batch(self) -> int:
        """Most rows in a batch."""
        return self._combiner.batch_size_policy.limit

    @property
    def signature(self) -> Signature:
        """The model's signature, with its configuration applied."""
        return self._signature

    def recent_s(self) -> dict[int, tuple[float, ...]]:
        """Return the seconds that the backend took for recent batches, by rows."""
        with self._lock:
            return {rows: tuple(times) for rows, times in self._recent_s.items()}

    def reset_statistics(self) -> None:
        """Discard all statistics, after a warm-up."""
        with self._lock:
            self._recent_s.clear()
            self._batches.clear()
            self._busy_s, self._failures = 0.0, 0
        if self._drift_monitor is not None:
            self._drift_monitor.reset()

    def info(self) -> ServedModel:
        """Return what serves, and its statistics."""
        session, loaded, version = self._session, self._loaded, self.model_version
        drift = self._drift_monitor.report() if self._drift_monitor is not None else DriftReport()
        with self._lock:
            batches, busy_s, failures = dict(sorted(self._batches.items())), self._busy_s, self._failures
        return ServedModel(
            name=self.name,
            path=str(self.source.path),
            digest=self.source.digest,
            version=version.ref.version if version is not None else None,
            bundle=version.ref.digest if version is not None else None,
            bundle_name=version.ref.name if version is not None else None,
            variant=version.variant.name if version is not None else None,
            since=self.since,
            backend=session.backend,
            backend_version=loaded.version,
            device=session.device,
            device_asked=self.config.device,
            degraded=loaded.degraded,
            passed_over=loaded.passed_over,
            streams=session.streams,
            threads=loaded.threads,
            max_batch=self.max_batch,
            unbatched=self._unbatched,
            inputs=tuple(str(spec) for spec in session.inputs),
            outputs=tuple(str(spec) for spec in session.outputs),
            inferences=sum(batches.values()),
            frames=sum(rows * count for rows, count in batches.items()),
            failures=failures,
            batches=batches,
            busy_s=busy_s,
            looked_at=drift.looked_at,
            not_finite=drift.not_finite,
            drift=drift.drift,
            input_drift=drift.input_drift,
        )

    def close(self) -> None:
        """Free the model."""
        self.observers = ()
        self._session.close()

    def _run(self, tickets: list[Ticket]) -> None:
        """Run one batch, or its requests one at a time if it fails. Every ticket gets a result."""
        try:
            if len(tickets) == 1:
                tickets[0].result = self._run_alone(tickets[0])
                return
            try:
                results = self._infer(tickets)
            except Exception as error:  # noqa: BLE001 - a single request may be the cause
                for ticket in tickets:
                    ticket.result = self._run_alone(ticket)
                if not any(isinstance(ticket.result, Exception) for ticket in tickets):
                    self._stop_batching(f"a batch of {len(tickets)} failed, but its requests succeed alone: {error}")
                return
            for ticket, result in zip(tickets, results, strict=True):
                ticket.result = result
        except BaseException as error:  # interrupted: other callers must not wait for ever
            for ticket in tickets:
                ticket.result = ticket.result or _failed(self.name, error)
            raise

    def _run_alone(self, ticket: Ticket) -> dict[str, Array] | HedgerowError:
        try:
            return self._infer([ticket])[0]
        except Exception as error:  # noqa: BLE001 - every caller needs a result
            if not ticket.retried:
                with self._lock:
                    self._failures += 1
            return error if isinstance(error, HedgerowError) else _failed(self.name, error)

    def _stop_batching(self, why: str) -> None:
        self._unbatched = why
        self._combiner.batch_size_policy.limit = 1

    def _infer(self, tickets: list[Ticket]) -> list[dict[str, Array]]:
        signature = self._signature
        rows = [ticket.rows for ticket in tickets]
        total = sum(rows)
        padded = next((size for size in self._sizes if size >= total), total)
        requests = [ticket.request for ticket in tickets]
        # A request without a key may have other rows than one.
        bound = self._session.bound(padded) if tickets[0].key is not None else None
        if bound is not None:
            outputs = self._run_bound(bound, requests, total)
        else:
            batch = batching.stack(requests, signature.axes, padded - total)
            batch.update(signature.constants)
            started = time.perf_counter()
            outputs = self._session.run(batch)
            self._record(batch, outputs, total, time.perf_counter() - started)
        if len(tickets) == 1 and padded == total:
            return [outputs]
        return batching.split(outputs, signature.output_axes, rows, padded)

    def _run_bound(self, bound: BoundRequest, requests: Sequence[Mapping[str, Array]], total: int) -> dict[str, Array]:
        """Run one batch in a request with arrays of its own. Returns: copies, since its next run overwrites them."""
        try:
            batching.fill(bound.inputs, requests, self._signature.axes)
            for name, value in self._signature.constants.items():
                bound.inputs[name][...] = value
            started = time.perf_counter()
            bound.run()
            took_s = time.perf_counter() - started
            outputs = {name: array.copy() for name, array in bound.outputs.items()}
            self._record(bound.inputs, bound.outputs, total, took_s)
            return outputs
        finally:
            bound.release()

    def _record(self, batch: Mapping[str, Array], outputs: Mapping[str, Array], rows: int, took_s: float) -> None:
        """Count a batch that has run, and show it to the observers."""
        with self._lock:
            self._busy_s += took_s
            self._batches[rows] += 1
            recent = self._recent_s.get(rows)
            if recent is None:
                recent = self._recent_s[rows] = deque(maxlen=_RECENT)
            recent.append(took_s)
        for observe in self.observers:
            observe(batch, outputs, rows, took_s)


def open_engine(
    name: str,
    config: ModelConfig,
    base_dir: Path,
    cores: int,
    state_dir: Path | None,
    version: ModelVersion | None = None,
) -> Engine:
    """Load a model.

    Args:
        name: the model's name in the configuration.
        config: the model's settings in the node's file.
        base_dir: folder that relative paths are relative to.
        cores: number of cores the node may use.
        state_dir: folder for compiled and tuned models; None: store nothing.
        version: the version to load; None: the file named in the configuration.
    Raises:
        DamagedModel: the file does not match the version's manifest.
        ConfigError, ModelError: it cannot be loaded, or does not match its configuration.
    """
    if version is not None:
        config = version.config(config)
    source = resolve(config.path, base_dir)
    if version is not None and source.digest != version.variant.model_digest:
        raise DamagedModel(version, source.digest)
    loaded = load(source, config, cores, state_dir)
    session = loaded.session
    config = with_state(config, session)
    try:
        if digest(source.path) != source.digest:
            raise ModelUnreadable(
                f"Model {name}: {source.path} changed while it was loaded",
                remedy="Replace a model's files by renaming new ones, then reload.",
            )
        signature = Signature(name, config, session.inputs, session.outputs)
        if signature.fixed is not None or signature.limit(loaded.max_batch) > 1:
            try_batches_once(loaded, source.digest, config, signature, version, state_dir)
        if signature.unbatched is not None:
            log.warning(
                "model-not-batched",
                model=name,
                path=str(source.path),
                backend=session.backend,
                why=signature.unbatched,
            )
        return Engine(name, source, config, loaded, signature, version)
    except BaseException:
        loaded.session.close()
        raise


def _failed(model: str, error: BaseException) -> InferenceError:
    return InferenceError(
        f"Model {model} failed: {type(error).__name__}: {error}",
        remedy="Test the model with `hedgerow tune`; setting `batch_axis` or `max_batch: 1` may help.",
    )
