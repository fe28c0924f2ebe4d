"""What samples show of a model and its variants: golden cases, tolerances, statistics, and what lower precision costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from hedgerow.frame import Array
from hedgerow.models.build.formats import Form
from hedgerow.models.build.quantisation_loss import Cost, Spread
from hedgerow.models.build.samples import Sample
from hedgerow.models.build.smoke_test import SmokeTest
from hedgerow.models.bundle.arrays import write_arrays
from hedgerow.models.bundle.chunks import describe_file
from hedgerow.models.bundle.distributions import Accumulator
from hedgerow.models.bundle.manifest import Baseline, Distribution, GoldenCase, Tolerance

Progress = Callable[[str, float], None]
"""Told what is being done, and what part of that is done, 0..1."""

Golden = dict[int, dict[str, dict[str, Array]]]
"""Outputs of the samples that become golden cases: by sample, variant and tensor."""

_GOLDEN_BYTES: Final = 8 << 20
"""Bytes of golden inputs, before they are packed; at least one case is kept."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen.

    Attributes:
        golden: outputs of those samples that become golden cases.
        tolerances: how far outputs may be off elsewhere, by variant.
        costs: what each variant costs against the model as it was given.
        inputs, outputs: how values are distributed, by tensor; hidden ones are left out.
    """

    golden: Golden
    tolerances: Mapping[str, Tolerance]
    costs: Mapping[str, dict[str, float]]
    inputs: Mapping[str, Distribution]
    outputs: Mapping[str, Distribution]

    def baseline(self, samples: int) -> Baseline:
        """That, as a manifest has it."""
        return Baseline(samples=samples, inputs=dict(self.inputs), outputs=dict(self.outputs))


def gather(
    model: SmokeTest,
    trials: Mapping[str, SmokeTest],
    forms: Sequence[Form],
    samples: Sequence[Sample],
    *,
    hidden: frozenset[str],
    labels: int,
    cases: int,
    tolerance: Tolerance | None,
    progress: Progress,
) -> Evidence:
    """Run samples through the model as it was given, and through each variant.

    Args:
        model: as it was given. A variant that was only copied has the same trial.
        hidden: tensors that nobody looks at: hidden state, constants.
        labels: how many classes there are.
        cases: golden cases to make.
        tolerance: what counts whatever is seen; None: it is found.
    Raises: ModelUnreadable: nothing here can run a variant.
    """
    inputs: dict[str, Accumulator] = {}
    outputs: dict[str, Accumulator] = {}
    spreads = {form.name: Spread(form.precision) for form in forms}
    costs = {form.name: Cost(labels) for form in forms}
    chosen = _spread_evenly(samples, cases)
    golden: Golden = {}
    for number, sample in enumerate(samples):
        progress("Trying the variants", number / len(samples))
        right, beside = model.run(sample)
        own = {name: array for name, array in right.items() if name not in hidden}
        for gathered, arrays in ((inputs, sample), (outputs, own)):
            for name, array in arrays.items():
                if name not in hidden:
                    gathered.setdefault(name, Accumulator()).add(array)
        for form in forms:
            trial = trials[form.name]
            got, others = (right, beside) if trial is model else trial.run(sample)
            spreads[form.name].between(got, others)
            spreads[form.name].within(right, got)
            costs[form.name].add(own, got)
            if number in chosen:
                golden.setdefault(number, {})[form.name] = got
    tolerances = {name: tolerance or spread.tolerance() for name, spread in spreads.items()}
    spread_out = {
        name: each.distribution(max(tolerance.of(name).absolute for tolerance in tolerances.values()))
        for name, each in outputs.items()
    }
    return Evidence(
        golden,
        tolerances,
        {name: cost.report(spread_out) for name, cost in costs.items()},
        {name: each.distribution() for name, each in inputs.items()},
        spread_out,
    )


def write_golden(draft: Path, samples: Sequence[Sample], golden: Golden) -> tuple[GoldenCase, ...]:
    """Write golden cases into a bundle."""
    return tuple(_case(draft, number, samples[at], golden[at]) for number, at in enumerate(sorted(golden)))


def _case(draft: Path, number: int, sample: Sample, outputs: Mapping[str, Mapping[str, Array]]) -> GoldenCase:
    inputs = f"golden/{number}.inputs.npz"
    write_arrays(draft / inputs, sample)
    described = {}
    for name, arrays in outputs.items():
        path = f"golden/{name}/{number}.outputs.npz"
        write_arrays(draft / path, arrays)
        described[name] = describe_file(draft / path, path)
    return GoldenCase(inputs=describe_file(draft / inputs, inputs), outputs=described)


def _spread_evenly(samples: Sequence[Sample], count: int) -> set[int]:
    """Which samples become golden cases: the first, the last, and some between."""
    size = max(1, sum(array.nbytes for array in samples[0].values()))
    count = min(count, len(samples), max(1, _GOLDEN_BYTES // size))
    return set(np.linspace(0, len(samples) - 1, count).round().astype(int).tolist()) if count else set()
