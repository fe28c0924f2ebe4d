"""Memory a variant takes: measured once per file and machine, then cached."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hedgerow.backends import memory
from hedgerow.config import ModelConfig
from hedgerow.frame import Array
from hedgerow.models.bundle.arrays import write_arrays
from hedgerow.models.bundle.manifest import digest_of
from hedgerow.models.bundle.model_file import digest
from hedgerow.models.session.load import batch_axes


def footprint(path: Path, backend: str, config: ModelConfig, sample: Mapping[str, Array], state_dir: Path) -> int:
    """Return the bytes that a session adds to a process, rounded so that repeated measurements agree.

    Args:
        sample: inputs of one run.
        state_dir: folder that caches measurements.
    Raises: InferenceError: the measuring process failed.
    """
    settings = {"batch_axes": batch_axes(config), "open_batch": config.open_batch, "vendor": config.options}
    shapes = {name: [str(array.dtype), *array.shape] for name, array in sample.items()}
    key = json.dumps([digest(path), backend, package_version(backend), settings, shapes], sort_keys=True)
    cached = state_dir / "measured" / f"{digest_of(key.encode()).partition(':')[2][:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads(cached.read_bytes())["memory_bytes"])
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "inputs.npz")
        write_arrays(inputs, sample)
        size = memory.measure(path, backend, "CPU", settings, inputs)
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_text(json.dumps({"memory_bytes": size, "model": path.name, "backend": backend}) + "\n")
    return size


def package_version(package: str) -> str:
    """Return the version of a package; empty: it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
