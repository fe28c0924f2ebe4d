"""What is different between two bundles, and what a node that has one must fetch to have the other."""

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
    """A thing that is different. `before` or `after` is None where it was or is not there."""

    what: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class GoldenChange:
    """What a variant makes of golden inputs that both have.

    Attributes:
        output: the tensor that is furthest off.
        off: how far, in tolerances of the variant before.
        detail: that in words.
    """

    variant: str
    case: int
    output: str
    off: float
    detail: str


@dataclass(frozen=True, slots=True)
class Moved:
    """How a tensor's values are distributed, before and after.

    Attributes:
        shift: population stability index; less than 0.1 is no change, more than 0.25 is one. None: there are no bins.
    """

    tensor: str
    mean: tuple[float, float]
    deviation: tuple[float, float]
    range: tuple[tuple[float, float], tuple[float, float]]
    shift: float | None


@dataclass(frozen=True, slots=True)
class Download:
    """What has to come.

    Attributes:
        variant: to serve which, golden cases included; None: the whole bundle.
        bytes: in chunks that are not there.
        of: bytes of all its files.
    """

    variant: str | None
    bytes: int
    of: int


@dataclass(slots=True)
class BundleDiff:
    """All that is different.

    Attributes:
        same: whether it is the very same bundle.
        changes: in what manifests say.
        golden: what variants of one name make of the same inputs.
        golden_shared: golden inputs that both have; of the others nothing can be said.
        moved: tensors whose statistics both have.
        fetch: for the whole, then for each variant.
    """

    same: bool
    changes: list[Change] = field(default_factory=list)
    golden: list[GoldenChange] = field(default_factory=list)
    golden_shared: int = 0
    moved: list[Moved] = field(default_factory=list)
    fetch: list[Download] = field(default_factory=list)


def difference(before: Bundle, after: Bundle) -> BundleDiff:
    """Compare two bundles; nothing is run.

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
    """What two manifests say differently, but for golden cases and statistics."""
    mine, other = (one.model_dump(exclude=_NOT_COMPARED) for one in (old, new))
    for key in mine:
        yield from _walk(key, mine[key], other[key])
    for kind, ours, theirs in (("input", old.inputs, new.inputs), ("output", old.outputs, new.outputs)):
        yield from _walk(kind, {one.name: _said(one) for one in ours}, {one.name: _said(one) for one in theirs})
    yield from _walk("variant", _variants(old), _variants(new))
    if [one.name for one in old.variants] != (order := [one.name for one in new.variants]) and sorted(order) == sorted(
        one.name for one in old.variants
    ):
        yield Change("order of variants", [one.name for one in old.variants], order)


def to_fetch(old: Manifest, new: Manifest) -> Iterator[Download]:
    """What a node that has all of a bundle must fetch for another."""
    there = {chunk.digest for file in old.files() for chunk in file.chunks}
    yield _fetch(None, there, new.files())
    for variant in new.variants:
        yield _fetch(variant.name, there, new.files_for(variant))


def _fetch(variant: str | None, there: set[str], files: Sequence[File]) -> Download:
    each = {file.digest: file for file in files}.values()
    missing = {chunk.digest: chunk.size for file in each for chunk in file.chunks if chunk.digest not in there}
    return Download(variant, sum(missing.values()), sum(file.size for file in each))


def _walk(what: str, before: Any, after: Any) -> Iterator[Change]:
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in [*before, *(key for key in after if key not in before)]:
            yield from _walk(f"{what}.{key}", before.get(key), after.get(key))
        return
    if what == "labels":  # hundreds of them; what is interesting is which are others
        for index in range(max(len(before), len(after))):
            one, two = (each[index] if index < len(each) else None for each in (before, after))
            if one != two:
                yield Change(f"labels.{index}", one, two)
        return
    yield Change(what, before, after)


def _said(tensor: Tensor) -> str:
    return f"{tensor.dtype}[{', '.join('?' if dim is None else str(dim) for dim in tensor.shape)}]"


def _variants(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {variant.name: _variant(variant) for variant in manifest.variants}


def _variant(variant: Variant) -> dict[str, Any]:
    said = variant.model_dump(exclude={"name", "files"})
    return {**said, "bytes": sum(file.size for file in variant.files)}


def _shared(old: Sequence[GoldenCase], new: Sequence[GoldenCase]) -> Iterator[tuple[int, GoldenCase, GoldenCase]]:
    """Golden cases of the same inputs, and the number of the later one."""
    known = {case.inputs.digest: case for case in old}
    for number, case in enumerate(new, 1):
        if (same := known.get(case.inputs.digest)) is not None:
            yield number, same, case


def _golden(before: Bundle, after: Bundle, number: int, one: GoldenCase, two: GoldenCase) -> Iterator[GoldenChange]:
    for variant in before.manifest.variants:
        name = variant.name
        if name not in one.outputs or name not in two.outputs or one.outputs[name].digest == two.outputs[name].digest:
            continue
        right, got = read_arrays(before.path(one.outputs[name])), read_arrays(after.path(two.outputs[name]))
        worst = ("", -1.0, "")
        for output, array in right.items():
            if output in got:
                off, detail = compare(array, got[output], variant.tolerance.of(output))
                worst = max(worst, (output, off, detail), key=lambda each: each[1])
        if worst[0]:
            yield GoldenChange(name, number, *worst)


def _moved(old: Baseline | None, new: Baseline | None) -> Iterator[Moved]:
    if old is None or new is None:
        return
    for ours, theirs in ((old.inputs, new.inputs), (old.outputs, new.outputs)):
        for name, one in ours.items():
            two = theirs.get(name)
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
