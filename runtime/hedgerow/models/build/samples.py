"""Samples: what a model meets in use, as one-frame inputs of a session.

A sample has every input, `constants` and hidden state among them, with as many rows as the model takes at least: one, or
as many as it is fixed to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from hedgerow.errors import ConfigError, ModelMismatch
from hedgerow.frame import Array
from hedgerow.models.bundle.arrays import read_array, read_arrays
from hedgerow.models.session.random_inputs import random_batch
from hedgerow.models.session.signature import Signature

Sample = Mapping[str, Array]

SUFFIXES: Final = frozenset({".npz", ".npy"})


def from_files(paths: Sequence[Path], fit: Signature, most: int) -> list[Sample]:
    """Samples from .npz files (arrays by input), .npy files (of the only input), and folders of them.

    An array may be one sample, with or without its batch axis, or many, stacked along it.

    Raises:
        ConfigError: a path is not there, or holds none.
        ModelMismatch: arrays do not fit the model.
        BadArrays: a file cannot be read.
    """
    files = [file for path in paths for file in _files(path)]
    samples: list[Sample] = []
    for file in files:
        samples += islice(_samples(file, fit), most - len(samples))
        if len(samples) >= most:
            break
    return samples


def from_requests(requests: Sequence[Mapping[str, Array]], fit: Signature) -> list[Sample]:
    """Samples from what stages asked of a model."""
    return [_whole(request, fit, "the pipeline") for request in requests]


def noise(fit: Signature, shapes: Mapping[str, Sequence[int]], count: int) -> list[Sample]:
    """Samples that mean nothing: they show whether a model computes the same everywhere, and no more.

    Raises: ModelMismatch: the model is open beyond the batch, and no shape is given.
    """
    return [random_batch(fit, fit.fixed or 1, shapes, seed) for seed in range(count)]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(entry for entry in path.iterdir() if entry.suffix in SUFFIXES)
        if not found:
            raise ConfigError(
                f"The folder {path} has no .npz or .npy files",
                remedy="Save inputs with `numpy.savez`, or give `--config NODE.yaml` whose stages make them of frames.",
            )
        return found
    if not path.is_file():
        raise ConfigError(f"There are no samples {path}", remedy="Give .npz or .npy files, or a folder of them.")
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"{path} holds no arrays",
            remedy="Give .npz or .npy files; or `--config NODE.yaml`, whose stages make arrays of pictures and sound.",
        )
    return [path]


def _samples(file: Path, fit: Signature) -> Iterator[Sample]:
    state = fit.zero_state()
    wanted = [spec for spec in fit.inputs if spec.name not in state]
    if file.suffix == ".npy":
        array = read_array(file)
        if len(wanted) != 1:
            names = ", ".join(spec.name for spec in wanted)
            raise ModelMismatch(
                f"{file} holds one array, and the model takes {names}", remedy="Save them by name with `numpy.savez`."
            )
        arrays = {wanted[0].name: array}
    else:
        arrays = read_arrays(file)
    known = {spec.name for spec in fit.inputs}
    if unknown := arrays.keys() - known - fit.constants.keys():
        raise ModelMismatch(
            f"{file} has {sorted(unknown)[0]!r}, which is no input; the model takes {', '.join(sorted(known))}",
            remedy="Save arrays by the names of inputs: `numpy.savez(FILE, NAME=array)`.",
        )
    specs = [spec for spec in fit.inputs if spec.name in arrays or spec.name not in state]
    rows = []
    for spec in specs:
        if spec.name not in arrays:
            raise ModelMismatch(
                f"{file} has no {spec.name}; it has {', '.join(sorted(arrays)) or 'nothing'}",
                remedy=f"Save it too: the model takes {spec}.",
            )
        array, axis = arrays[spec.name], fit.axes[spec.name]
        if axis is not None and array.ndim == len(spec.shape) - 1:
            array = np.expand_dims(array, axis)
        if axis is None or array.ndim != len(spec.shape):
            rows.append([array])
        else:
            rows.append([np.take(array, [row], axis) for row in range(array.shape[axis])])
    count = max(map(len, rows))
    for number in range(count):
        row = {
            spec.name: each[0 if len(each) == 1 else number] if number < len(each) or len(each) == 1 else each[-1]
            for spec, each in zip(specs, rows, strict=True)
        }
        yield _whole({**state, **row}, fit, str(file))


def _whole(request: Mapping[str, Array], fit: Signature, where: str) -> Sample:
    """A request with its constants, checked, and padded to the rows that the model is fixed to."""
    try:
        fit.admit(dict(request))
    except ModelMismatch as error:
        raise ModelMismatch(f"A sample from {where} does not fit: {error}", remedy=error.remedy) from error
    whole = {name: np.ascontiguousarray(array) for name, array in request.items()}
    if fit.fixed is not None:
        for name, axis in fit.axes.items():
            if axis is not None and whole[name].shape[axis] < fit.fixed:
                last = np.take(whole[name], [-1], axis)
                missing = fit.fixed - whole[name].shape[axis]
                whole[name] = np.concatenate([whole[name], *[last] * missing], axis)
    return {**whole, **fit.constants}
