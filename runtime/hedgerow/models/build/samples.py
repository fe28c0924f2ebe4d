"""Samples: typical inputs of a model, each a complete input of a session.

A sample has every input, including `constants` and hidden state, with the model's smallest batch: one row, or as many as
the model is fixed to.
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


def from_files(paths: Sequence[Path], signature: Signature, limit: int) -> list[Sample]:
    """Read samples from .npz files (arrays by input), .npy files (the only input), and folders of them.

    An array is one sample, with or without its batch axis, or several, stacked along it.

    Args:
        limit: largest number of samples.
    Raises:
        ConfigError: a path does not exist, or has no samples.
        ModelMismatch: an array does not fit the model.
        BadArrays: a file cannot be read.
    """
    files = [file for path in paths for file in _files(path)]
    samples: list[Sample] = []
    for file in files:
        samples += islice(_samples(file, signature), limit - len(samples))
        if len(samples) >= limit:
            break
    return samples


def from_requests(requests: Sequence[Mapping[str, Array]], signature: Signature) -> list[Sample]:
    """Return the requests that stages made to a model as samples."""
    return [_complete(request, signature, "the pipeline") for request in requests]


def noise(signature: Signature, shapes: Mapping[str, Sequence[int]], count: int) -> list[Sample]:
    """Return random samples, which show only whether a model computes the same everywhere.

    Raises: ModelMismatch: an axis besides the batch is dynamic, and `shapes` does not set its size.
    """
    return [random_batch(signature, signature.fixed or 1, shapes, seed) for seed in range(count)]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(entry for entry in path.iterdir() if entry.suffix in SUFFIXES)
        if not found:
            raise ConfigError(
                f"The folder {path} has no .npz or .npy files",
                remedy="Save inputs with `numpy.savez`, or pass `--config NODE.yaml`, whose stages turn frames into inputs.",
            )
        return found
    if not path.is_file():
        raise ConfigError(f"Samples not found: {path}", remedy="Pass .npz or .npy files, or a folder of them.")
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"{path} is not an array file",
            remedy="Pass .npz or .npy files; or `--config NODE.yaml`, whose stages turn pictures and sound into arrays.",
        )
    return [path]


def _samples(file: Path, signature: Signature) -> Iterator[Sample]:
    state = signature.zero_state()
    required = [spec for spec in signature.inputs if spec.name not in state]
    if file.suffix == ".npy":
        array = read_array(file)
        if len(required) != 1:
            names = ", ".join(spec.name for spec in required)
            raise ModelMismatch(
                f"{file} has one array, but the model takes {names}", remedy="Save them by name with `numpy.savez`."
            )
        arrays = {required[0].name: array}
    else:
        arrays = read_arrays(file)
    known = {spec.name for spec in signature.inputs}
    if unknown := arrays.keys() - known - signature.constants.keys():
        raise ModelMismatch(
            f"{file} has {sorted(unknown)[0]!r}, which is not an input; the model takes {', '.join(sorted(known))}",
            remedy="Name arrays like inputs: `numpy.savez(FILE, NAME=array)`.",
        )
    specs = [spec for spec in signature.inputs if spec.name in arrays or spec.name not in state]
    rows = []
    for spec in specs:
        if spec.name not in arrays:
            raise ModelMismatch(
                f"{file} has no {spec.name}; it has {', '.join(sorted(arrays)) or 'nothing'}",
                remedy=f"Add it to the file: the model takes {spec}.",
            )
        array, axis = arrays[spec.name], signature.axes[spec.name]
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
        yield _complete({**state, **row}, signature, str(file))


def _complete(request: Mapping[str, Array], signature: Signature, where: str) -> Sample:
    """Check a request, pad it to the rows that the model is fixed to, and add constants."""
    try:
        signature.admit(dict(request))
    except ModelMismatch as error:
        raise ModelMismatch(f"A sample from {where} does not fit: {error}", remedy=error.remedy) from error
    padded = {name: np.ascontiguousarray(array) for name, array in request.items()}
    if signature.fixed is not None:
        for name, axis in signature.axes.items():
            if axis is not None and padded[name].shape[axis] < signature.fixed:
                last = np.take(padded[name], [-1], axis)
                missing = signature.fixed - padded[name].shape[axis]
                padded[name] = np.concatenate([padded[name], *[last] * missing], axis)
    return {**padded, **signature.constants}
