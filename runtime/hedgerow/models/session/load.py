"""Loads a model: chooses backend, device, streams and threads from its configuration and opens a session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hedgerow import backends
from hedgerow.backends import cache, tuned
from hedgerow.backends.base import Backend, Session, SessionOptions, input_fixed_to_one
from hedgerow.config import ModelConfig
from hedgerow.errors import BackendMissing, ConfigError, DeviceMissing, HedgerowError, ModelUnreadable
from hedgerow.models.bundle.model_file import ModelFile
from hedgerow.models.session.batch_trial import try_batches
from hedgerow.models.session.signature import Signature

DEFAULT_MAX_BATCH = 16


@dataclass(frozen=True, slots=True)
class Loaded:
    """A session, and the choices made to open it.

    Attributes:
        session: the loaded model.
        version: version of the backend's library.
        threads: threads per inference.
        max_batch: most rows in a batch.
        degraded: why it does not run on the requested device; None: it does.
        passed_over: why preferred backends were not used, by name.
    """

    session: Session
    version: str
    threads: int
    max_batch: int
    degraded: str | None
    passed_over: dict[str, str]


def load(source: ModelFile, config: ModelConfig, cores: int, state_dir: Path | None) -> Loaded:
    """Load a model with the best backend that can open it, on the requested device.

    Args:
        cores: number of cores the node may use.
        state_dir: folder for compiled and tuned models; None: use and store none.
    Raises:
        BackendMissing: the requested backend, or any that opens such files, is not installed.
        DeviceMissing: this machine does not have the device, and `if_device_missing` is `fail`.
        ModelUnreadable: no backend can read the file.
        ConfigError: a backend rejects an option, or cannot open the batch axis.
    """
    choice = tuned.load(state_dir, source.digest, config.device, cores) if state_dir is not None else None
    candidates = backends.candidates(source.path, config.backend)
    if choice is not None:  # a stable sort: the tuned backend comes first, others keep their order
        candidates = tuple(sorted(candidates, key=lambda backend: backend.name != choice.backend))
    passed_over: dict[str, str] = {}
    without_device: list[tuple[Backend, DeviceMissing]] = []
    first: HedgerowError | None = None
    for backend in candidates:
        try:
            return _open(backend, source, config, config.device, cores, state_dir, choice, None, passed_over)
        except DeviceMissing as error:
            without_device.append((backend, error))
            passed_over[backend.name] = str(error)
            first = first or error
        except (BackendMissing, ModelUnreadable, ConfigError) as error:
            passed_over[backend.name] = str(error)
            # A missing library is a less useful error than another backend's failure.
            first = error if first is None or isinstance(first, BackendMissing) else first
    if not without_device:
        raise _summary(first, passed_over)
    if config.if_device_missing == "degrade":
        for backend, missing in without_device:
            degraded = f"{missing}; running on the CPU"
            try:
                return _open(backend, source, config, "CPU", cores, state_dir, None, degraded, passed_over)
            except (ModelUnreadable, ConfigError) as unreadable:
                passed_over[backend.name] = str(unreadable)
                first = unreadable
        raise _summary(first, passed_over)
    available = "; ".join(f"{backend.name} has {', '.join(backend.devices())}" for backend, _ in without_device)
    raise DeviceMissing(
        f"No device {config.device} on this machine for {source.path.name}: {available}",
        remedy="Set `device:` to one of these, install the driver, or set `if_device_missing: degrade` to run on the CPU.",
    ) from without_device[0][1]


def batch_axes(config: ModelConfig) -> dict[str, int | None]:
    """Return the batch axes for `SessionOptions`."""
    return {**config.batch_axis, **dict.fromkeys(config.constants)}


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """Return the batch sizes to compile for: 1, 2, 3, 4, 6, 8, 12, 16 … up to the largest.

    On average, padding to these adds at most a third.
    """
    sizes = {max_batch}
    step = 1
    while step < max_batch:
        sizes |= {step, step * 3 // 2}
        step *= 2
    return tuple(sorted(size for size in sizes if size <= max_batch))


def load_signature(source: ModelFile, config: ModelConfig) -> Signature:
    """Return a model's signature, using the first backend that can open it, after trials of its batches.

    Raises: ConfigError, ModelError: no backend can, or the configuration does not match the model.
    """
    session = load(source, config, 1, None).session
    try:
        signature = Signature(source.path.name, with_state(config, session), session.inputs, session.outputs)
        try_batches(session, signature)
        return signature
    finally:
        session.close()


def with_state(config: ModelConfig, session: Session) -> ModelConfig:
    """Return a model's configuration with the state that its backend has made explicit."""
    return config.model_copy(update={"state": {**session.state, **config.state}}) if session.state else config


def _open(
    backend: Backend,
    source: ModelFile,
    config: ModelConfig,
    device: str,
    cores: int,
    state_dir: Path | None,
    choice: tuned.Choice | None,
    degraded: str | None,
    passed_over: dict[str, str],
) -> Loaded:
    version = backend.version
    if choice is not None and choice.backend != backend.name:
        choice = None
    streams = config.streams or (choice.streams if choice else 1)
    threads = config.threads or (choice.threads if choice and not config.streams else max(1, cores // streams))
    max_batch = config.max_batch or (choice.max_batch if choice else DEFAULT_MAX_BATCH)
    folder = cache.folder(state_dir, source.digest) if state_dir is not None else None
    axes = batch_axes(config)
    sizes = batch_sizes(max_batch) if config.static_batches else ()
    options = SessionOptions(device, threads, streams, config.options, axes, config.open_batch, sizes, folder)
    session = backend.open(source.path, options)
    if config.open_batch and choice is None and (name := input_fixed_to_one(session.inputs, axes)) is not None:
        session.close()
        raise ConfigError(
            f"{backend.name} cannot make the batch axis of {name} dynamic, which {source.path.name} fixes to 1",
            remedy="Use `backend: openvino`, export the model with a dynamic batch axis, or remove `open_batch`.",
        )
    if folder is not None:
        cache.mark_used(folder)
    return Loaded(session, version, threads, max_batch, degraded, passed_over)


def _summary(first: HedgerowError | None, passed_over: dict[str, str]) -> HedgerowError:
    assert first is not None  # noqa: S101 - every candidate that fails leaves an error
    if len(passed_over) < 2:
        return first
    return type(first)("; ".join(passed_over.values()), remedy=first.remedy)
