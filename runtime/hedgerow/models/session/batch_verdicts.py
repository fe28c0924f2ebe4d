"""Stored outcomes of batch trials, so that a model whose trials take long is tried once per device, not at each start."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from hedgerow.config import ModelConfig
from hedgerow.frame import Array
from hedgerow.models.bundle.arrays import read_arrays
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.session.batch_trial import try_batches
from hedgerow.models.session.load import Loaded
from hedgerow.models.session.signature import Signature

SLOW_S: Final = 0.5
"""Trials that take less are not worth a file."""

MOST: Final = 64
"""Number of outcomes to store; older ones are deleted."""

_GOLDEN: Final = 3
"""Number of golden cases whose inputs are used."""

_TRIALS: Final = 1  # to be raised when trials change


def try_batches_once(
    loaded: Loaded,
    digest: str,
    config: ModelConfig,
    signature: Signature,
    version: ModelVersion | None,
    state_dir: Path | None,
) -> None:
    """Like `try_batches`, unless the outcome for this model, backend, device and configuration is stored.

    Args:
        digest: digest of the model's files.
        version: the version, whose golden inputs are used; None: a file named in the node's configuration.
        state_dir: the node's state folder; None: store nothing.
    """
    path = _path(state_dir, loaded, digest, config) if state_dir is not None else None
    if path is not None and (stored := _read(path)) is not None:
        why, all_rows = stored
        if why is not None and all_rows:
            signature.require_all_rows(why)
        else:
            signature.unbatched = why
        return
    claimed, started = signature.batches, time.perf_counter()
    try_batches(loaded.session, signature, _golden_frames(version, signature) if version is not None else ())
    if path is not None and time.perf_counter() - started >= SLOW_S:
        with suppress(OSError):  # a full disk costs another trial
            _write(path, signature.unbatched, claimed and not signature.batches)


def _golden_frames(version: ModelVersion, signature: Signature) -> list[dict[str, Array]]:
    """Return frames of a version's golden inputs, all of the same shapes."""
    frames: list[dict[str, Array]] = []
    for case in version.manifest.golden[:_GOLDEN]:
        arrays = read_arrays(version.folder / case.inputs.path)
        if all(spec.name in arrays and arrays[spec.name].ndim == len(spec.shape) for spec in signature.inputs):
            axes = [(spec.name, signature.axes[spec.name]) for spec in signature.inputs]
            frames += [
                {name: arrays[name] if axis is None else arrays[name].take([row], axis) for name, axis in axes}
                for row in (0, -1)
            ]
    shapes = [{name: array.shape for name, array in frame.items()} for frame in frames]
    return [frame for frame, shape in zip(frames, shapes, strict=True) if shape == shapes[0]]


def _path(state_dir: Path, loaded: Loaded, digest: str, config: ModelConfig) -> Path:
    session = loaded.session
    about = (_TRIALS, digest, session.backend, loaded.version, session.device, config.model_dump(mode="json"))
    return state_dir / "batching" / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]}.json"


def _read(path: Path) -> tuple[str | None, bool] | None:
    try:
        stored = json.loads(path.read_bytes())
        why, all_rows = stored["unbatched"], stored["all_rows"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or damaged by a power cut
    return (why, bool(all_rows)) if why is None or isinstance(why, str) else None


def _write(path: Path, why: str | None, all_rows: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.stem}.{os.getpid()}")  # workers load the same model at once
    draft.write_text(json.dumps({"unbatched": why, "all_rows": all_rows}))
    draft.replace(path)
    stored = sorted(path.parent.iterdir(), key=lambda one: one.stat().st_mtime, reverse=True)
    for old in stored[MOST:]:
        old.unlink(missing_ok=True)
