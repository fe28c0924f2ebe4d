"""Benchmark of a bundle's variants on this machine: `tune` on every device and backend, with golden inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from hedgerow import backends
from hedgerow.backends.tune import Tuning, tune
from hedgerow.errors import HedgerowError
from hedgerow.frame import Array
from hedgerow.models.build.verify import device_choices, serving_config
from hedgerow.models.bundle.arrays import read_arrays
from hedgerow.models.bundle.folder import Bundle
from hedgerow.models.bundle.manifest import Variant
from hedgerow.models.bundle.model_file import ModelFile
from hedgerow.models.session.load import batch_axes, load_signature
from hedgerow.models.session.random_inputs import random_batch
from hedgerow.models.session.signature import Signature

BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)


@dataclass(slots=True)
class DeviceBenchmark:
    """Measurements of a variant on one device.

    Attributes:
        tuning: the measurements; None: the variant could not be run.
        not_run: why a backend was not measured, by name.
    """

    variant: str
    device: str
    tuning: Tuning | None = None
    not_run: dict[str, str] = field(default_factory=dict)


def bench(
    bundle: Bundle,
    variant: Variant,
    *,
    cores: int,
    seconds: float,
    max_batch: int = BATCHES[-1],
    progress: Callable[[float], None] | None = None,
) -> list[DeviceBenchmark]:
    """Measure a variant on every device it names that this machine has.

    Args:
        cores: cores to use.
        seconds: time for all measurements, loading not included.
        max_batch: largest batch to try.
        progress: called with the share of the time that has passed, 0..1.
    Raises: BadArrays: a golden file cannot be read.
    """
    found: dict[str, DeviceBenchmark] = {}
    runnable: dict[str, list[str]] = {}
    for choice in device_choices(variant):
        benchmark = found.setdefault(choice.device, DeviceBenchmark(variant.name, choice.device))
        if choice.problem is None:
            runnable.setdefault(choice.device, []).append(choice.backend)
        else:
            benchmark.not_run[choice.backend] = choice.problem
    for number, (device, names) in enumerate(runnable.items()):
        start = number / len(runnable)

        def report(share: float, start: float = start) -> None:
            if progress is not None:
                progress(start + share / len(runnable))

        try:
            found[device].tuning = _measure(
                bundle,
                variant,
                device,
                names,
                cores=cores,
                seconds=seconds / len(runnable),
                max_batch=max_batch,
                progress=report,
            )
        except HedgerowError as error:
            found[device].not_run |= dict.fromkeys(names, str(error))
    return list(found.values())


def _measure(
    bundle: Bundle,
    variant: Variant,
    device: str,
    names: list[str],
    *,
    cores: int,
    seconds: float,
    max_batch: int,
    progress: Callable[[float], None],
) -> Tuning:
    choices = device_choices(variant)
    choice = next(one for one in choices if one.device == device and one.backend == names[0])
    config = serving_config(bundle, variant, choice)
    source = ModelFile(bundle.path(variant.files[0]), variant.model_digest)
    signature = load_signature(source, config)
    cases = [case for case in bundle.manifest.golden if variant.name in case.outputs]
    inputs = read_arrays(bundle.path(cases[0].inputs)) if cases else None

    def feed(rows: int) -> Mapping[str, Array]:
        return random_batch(signature, rows, {}) if inputs is None else _repeat(signature, inputs, rows)

    rows = [signature.fixed] if signature.fixed else [rows for rows in BATCHES if rows <= signature.limit(max_batch)]
    return tune(
        source.path,
        [backends.get(name) for name in names],
        feed,
        rows,
        cores=cores,
        device=device,
        batch_axes=batch_axes(config),
        open_batch=config.open_batch,
        seconds=seconds,
        progress=progress,
    )


def _repeat(signature: Signature, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """Return a batch that repeats the rows of one sample.

    Args:
        inputs: arrays of the sample, with its rows along the batch axis; may include constants.
        rows: rows of the batch, where the model leaves the batch axis dynamic.
    """
    batch = dict(signature.constants)
    for spec in signature.inputs:
        array, axis = inputs[spec.name], signature.axes[spec.name]
        if axis is not None and spec.shape[axis] != array.shape[axis]:
            array = np.take(array, np.arange(rows) % array.shape[axis], axis)
        batch[spec.name] = np.ascontiguousarray(array)
    return batch
