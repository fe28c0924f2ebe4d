"""Evidence from running samples through a model and its variants: golden outputs, tolerances, statistics, accuracy loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from hedgerow.frame import Array
from hedgerow.models.build.formats import Form
from hedgerow.models.build.quantisation_loss import AccuracyLoss, ToleranceEstimator
from hedgerow.models.build.samples import Sample
from hedgerow.models.build.smoke_test import SmokeTest
from hedgerow.models.bundle.arrays import write_arrays
from hedgerow.models.bundle.chunks import describe_file
from hedgerow.models.bundle.distributions import Accumulator
from hedgerow.models.bundle.manifest import Baseline, Distribution, GoldenCase, Tolerance

Progress = Callable[[str, float], None]
"""Called with a description of the current step and the share of it that is done, 0..1."""

Golden = dict[int, dict[str, dict[str, Array]]]
"""Outputs of the samples that become golden cases, by sample, variant and tensor."""

_GOLDEN_BYTES: Final = 8 << 20
"""Largest total size of golden inputs, uncompressed; there is always at least one case."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Results of running the samples.

    Attributes:
        golden: outputs of the samples that become golden cases.
        tolerances: how far outputs may differ on other devices, by variant.
        losses: how much accuracy each variant loses, compared with the original model.
        inputs, outputs: distributions of values by tensor, without hidden tensors.
    """

    golden: Golden
    tolerances: Mapping[str, Tolerance]
    losses: Mapping[str, dict[str, float]]
    inputs: Mapping[str, Distribution]
    outputs: Mapping[str, Distribution]

    def baseline(self, samples: int) -> Baseline:
        """Return the distributions as a manifest's baseline."""
        return Baseline(samples=samples, inputs=dict(self.inputs), outputs=dict(self.outputs))


def gather(
    model: SmokeTest,
    smoke_tests: Mapping[str, SmokeTest],
    forms: Sequence[Form],
    samples: Sequence[Sample],
    *,
    hidden: frozenset[str],
    labels: int,
    cases: int,
    tolerance: Tolerance | None,
    progress: Progress,
) -> Evidence:
    """Run samples through the original model and each variant.

    Args:
        model: the original model. A variant that is a plain copy has the same smoke test.
        smoke_tests: smoke tests by variant.
        hidden: tensors without statistics: hidden state, constants.
        labels: number of classes.
        cases: number of golden cases.
        tolerance: the author's tolerance; None: estimate it from the samples.
    Raises: ModelUnreadable: no backend on this machine can run a variant.
    """
    inputs: dict[str, Accumulator] = {}
    outputs: dict[str, Accumulator] = {}
    estimators = {form.name: ToleranceEstimator(form.precision) for form in forms}
    losses = {form.name: AccuracyLoss(labels) for form in forms}
    chosen = _spread_evenly(samples, cases)
    golden: Golden = {}
    for number, sample in enumerate(samples):
        progress("Evaluating the variants", number / len(samples))
        original, original_elsewhere = model.run(sample)
        visible = {name: array for name, array in original.items() if name not in hidden}
        for accumulators, arrays in ((inputs, sample), (outputs, visible)):
            for name, array in arrays.items():
                if name not in hidden:
                    accumulators.setdefault(name, Accumulator()).add(array)
        for form in forms:
            smoke_test = smoke_tests[form.name]
            actual, elsewhere = (original, original_elsewhere) if smoke_test is model else smoke_test.run(sample)
            estimators[form.name].add_backends(actual, elsewhere)
            estimators[form.name].add_precision(original, actual)
            losses[form.name].add(visible, actual)
            if number in chosen:
                golden.setdefault(number, {})[form.name] = actual
    tolerances = {name: tolerance or estimator.tolerance() for name, estimator in estimators.items()}
    output_distributions = {
        name: each.distribution(max(tolerance.of(name).absolute for tolerance in tolerances.values()))
        for name, each in outputs.items()
    }
    return Evidence(
        golden,
        tolerances,
        {name: loss.report(output_distributions) for name, loss in losses.items()},
        {name: each.distribution() for name, each in inputs.items()},
        output_distributions,
    )


def write_golden(draft: Path, samples: Sequence[Sample], golden: Golden) -> tuple[GoldenCase, ...]:
    """Write golden cases into a bundle's draft."""
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
    """Choose the samples that become golden cases: the first, the last, and some between."""
    size = max(1, sum(array.nbytes for array in samples[0].values()))
    count = min(count, len(samples), max(1, _GOLDEN_BYTES // size))
    return set(np.linspace(0, len(samples) - 1, count).round().astype(int).tolist()) if count else set()
