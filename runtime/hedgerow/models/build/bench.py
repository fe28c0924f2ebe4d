"""How fast the variants of a bundle are on this machine: each in its ways, by `tune`'s measurements, fed with golden inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from hedgerow import backends
from hedgerow.backends.tune import Tuning, tune
from hedgerow.errors import HedgerowError
from hedgerow.frame import Array
from hedgerow.models.build.verify import serving_config, ways
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
    """A variant on one device.

    Attributes:
        tuning: what was measured; None: nothing could be.
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
    """Measure a variant, on each device that it names and that is here.

    Args:
        cores: cores to use.
        seconds: time for all measurements; loading comes on top.
        max_batch: largest batch to try.
        progress: told what part of the time is over, 0..1.
    Raises: BadArrays: a golden file cannot be read.
    """
    found: dict[str, DeviceBenchmark] = {}
    able: dict[str, list[str]] = {}
    for way in ways(variant):
        of_device = found.setdefault(way.device, DeviceBenchmark(variant.name, way.device))
        if way.why_not is None:
            able.setdefault(way.device, []).append(way.backend)
        else:
            of_device.not_run[way.backend] = way.why_not
    for number, (device, names) in enumerate(able.items()):
        begun = number / len(able)

        def told(done: float, begun: float = begun) -> None:
            if progress is not None:
                progress(begun + done / len(able))

        try:
            found[device].tuning = _measure(
                bundle, variant, device, names, cores=cores, seconds=seconds / len(able), most=max_batch, progress=told
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
    most: int,
    progress: Callable[[float], None],
) -> Tuning:
    way = next(way for way in ways(variant) if way.device == device and way.backend == names[0])
    config = serving_config(bundle, variant, way)
    source = ModelFile(bundle.path(variant.files[0]), variant.model_digest)
    fit = load_signature(source, config)
    cases = [case for case in bundle.manifest.golden if variant.name in case.outputs]
    inputs = read_arrays(bundle.path(cases[0].inputs)) if cases else None

    def feed(rows: int) -> Mapping[str, Array]:
        return random_batch(fit, rows, {}) if inputs is None else stacked(fit, inputs, rows)

    rows = [fit.fixed or 1] if fit.fixed or not fit.batches else [count for count in BATCHES if count <= most]
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


def stacked(fit: Signature, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """A batch of one sample, again and again.

    Args:
        inputs: of one sample, its rows along the batch axis; constants may be among them.
        rows: how many there are to be, where the model leaves that open.
    """
    batch = dict(fit.constants)
    for spec in fit.inputs:
        array, axis = inputs[spec.name], fit.axes[spec.name]
        if axis is not None and spec.shape[axis] != array.shape[axis]:
            array = np.take(array, np.arange(rows) % array.shape[axis], axis)
        batch[spec.name] = np.ascontiguousarray(array)
    return batch
