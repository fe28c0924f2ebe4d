"""Differences between two bundles, and the download needed to get from one to the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from hedgerow.models.bundle.arrays import read_arrays
from hedgerow.models.bundle.distributions import rebinned, shift
from hedgerow.models.bundle.folder import Bundle
from hedgerow.models.bundle.golden import compare
from hedgerow.models.bundle.manifest import Baseline, File, GoldenCase, Manifest, Tensor, Variant

_NOT_COMPARED: Final = {"inputs", "outputs", "variants", "golden", "baseline", "schema_"}


@dataclass(frozen=True, slots=True)
class Change:
    """A field that differs. None: it does not exist in that bundle."""

    what: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class GoldenChange:
    """How a variant's outputs differ for golden inputs that both bundles have.

    Attributes:
        output: the tensor that differs most.
        off: its deviation, in tolerances of the old variant.
        detail: the deviation in words.
    """

    variant: str
    case: int
    output: str
    off: float
    detail: str


@dataclass(frozen=True, slots=True)
class Moved:
    """Distribution of a tensor's values, before and after.

    Attributes:
        shift: population stability index; less than 0.1 is no change, more than 0.25 is one. None: not binned.
    """

    tensor: str
    mean: tuple[float, float]
    deviation: tuple[float, float]
    range: tuple[tuple[float, float], tuple[float, float]]
    shift: float | None


@dataclass(frozen=True, slots=True)
class Download:
    """Size of a download.

    Attributes:
        variant: the variant to serve, golden cases included; None: the whole bundle.
        bytes: size of missing chunks.
        of: size of all files.
    """

    variant: str | None
    bytes: int
    of: int


@dataclass(slots=True)
class BundleDiff:
    """Differences between two bundles.

    Attributes:
        same: whether both are the same bundle.
        changes: manifest fields that differ.
        golden: differing outputs of variants with the same name, for the same inputs.
        golden_shared: number of golden inputs that both bundles have; others cannot be compared.
        moved: tensors with different statistics.
        fetch: downloads for the whole bundle, then for each variant.
    """

    same: bool
    changes: list[Change] = field(default_factory=list)
    golden: list[GoldenChange] = field(default_factory=list)
    golden_shared: int = 0
    moved: list[Moved] = field(default_factory=list)
    fetch: list[Download] = field(default_factory=list)


def difference(before: Bundle, after: Bundle) -> BundleDiff:
    """Compare two bundles without running them.

    Raises: BadArrays: a golden file cannot be read.
    """
    old, new = before.manifest, after.manifest
    found = BundleDiff(before.digest == after.digest)
    found.fetch = list(to_fetch(old, new))
    if found.same:
        return found
    found.changes = list(changes(old, new))
    shared = list(_shared(old.golden, new.golden))
    found.golden_shared = len(shared)
    found.golden = [change for number, one, two in shared for change in _golden(before, after, number, one, two)]
    found.moved = list(_moved(old.baseline, new.baseline))
    return found


def changes(old: Manifest, new: Manifest) -> Iterator[Change]:
    """Yield the fields in which two manifests differ, without golden cases and statistics."""
    before, after = (one.model_dump(exclude=_NOT_COMPARED) for one in (old, new))
    for key in before:
        yield from _walk(key, before[key], after[key])
    for kind, olds, news in (("input", old.inputs, new.inputs), ("output", old.outputs, new.outputs)):
        yield from _walk(kind, {one.name: _type(one) for one in olds}, {one.name: _type(one) for one in news})
    yield from _walk("variant", _variants(old), _variants(new))
    if [one.name for one in old.variants] != (order := [one.name for one in new.variants]) and sorted(order) == sorted(
        one.name for one in old.variants
    ):
        yield Change("order of variants", [one.name for one in old.variants], order)


def to_fetch(old: Manifest, new: Manifest) -> Iterator[Download]:
    """Yield what a node that has all of one bundle must download for another."""
    present = {chunk.digest for file in old.files() for chunk in file.chunks}
    yield _download(None, present, new.files())
    for variant in new.variants:
        yield _download(variant.name, present, new.files_for(variant))


def _download(variant: str | None, present: set[str], files: Sequence[File]) -> Download:
    each = {file.digest: file for file in files}.values()
    missing = {chunk.digest: chunk.size for file in each for chunk in file.chunks if chunk.digest not in present}
    return Download(variant, sum(missing.values()), sum(file.size for file in each))


def _walk(what: str, before: Any, after: Any) -> Iterator[Change]:
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in [*before, *(key for key in after if key not in before)]:
            yield from _walk(f"{what}.{key}", before.get(key), after.get(key))
        return
    if what == "labels":  # there may be hundreds; only those that differ are of interest
        for index in range(max(len(before), len(after))):
            one, two = (each[index] if index < len(each) else None for each in (before, after))
            if one != two:
                yield Change(f"labels.{index}", one, two)
        return
    yield Change(what, before, after)


def _type(tensor: Tensor) -> str:
    return f"{tensor.dtype}[{', '.join('?' if dim is None else str(dim) for dim in tensor.shape)}]"


def _variants(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {variant.name: _variant(variant) for variant in manifest.variants}


def _variant(variant: Variant) -> dict[str, Any]:
    fields = variant.model_dump(exclude={"name", "files"})
    return {**fields, "bytes": sum(file.size for file in variant.files)}


def _shared(old: Sequence[GoldenCase], new: Sequence[GoldenCase]) -> Iterator[tuple[int, GoldenCase, GoldenCase]]:
    """Yield golden cases with the same inputs, and the number of the new one."""
    known = {case.inputs.digest: case for case in old}
    for number, case in enumerate(new, 1):
        if (same := known.get(case.inputs.digest)) is not None:
            yield number, same, case


def _golden(before: Bundle, after: Bundle, number: int, one: GoldenCase, two: GoldenCase) -> Iterator[GoldenChange]:
    for variant in before.manifest.variants:
        name = variant.name
        if name not in one.outputs or name not in two.outputs or one.outputs[name].digest == two.outputs[name].digest:
            continue
        expected, actual = read_arrays(before.path(one.outputs[name])), read_arrays(after.path(two.outputs[name]))
        worst = ("", -1.0, "")
        for output, array in expected.items():
            if output in actual:
                off, detail = compare(array, actual[output], variant.tolerance.of(output))
                worst = max(worst, (output, off, detail), key=lambda each: each[1])
        if worst[0]:
            yield GoldenChange(name, number, *worst)


def _moved(old: Baseline | None, new: Baseline | None) -> Iterator[Moved]:
    if old is None or new is None:
        return
    for olds, news in ((old.inputs, new.inputs), (old.outputs, new.outputs)):
        for name, one in olds.items():
            two = news.get(name)
            if two is None or one == two:
                continue
            moved = None
            if one.edges and two.edges:
                moved = shift(one, np.round(rebinned(two, one.edges)).astype(int).tolist())
            yield Moved(
                name,
                (one.mean, two.mean),
                (one.deviation, two.deviation),
                ((one.minimum, one.maximum), (two.minimum, two.maximum)),
                moved,
            )
