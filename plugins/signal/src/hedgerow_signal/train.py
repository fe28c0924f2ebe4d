"""Trains a small model of healthy vibration: `python -m hedgerow_signal.train OUT.onnx`.

The training data is generated (`hedgerow_signal.generate`), not recorded: the model demonstrates the stages and knows
no real machine. For a machine of yours, call `fit` with the features of its healthy windows, and write the model with
`to_onnx`.

The score is the Mahalanobis distance from healthy windows (P. C. Mahalanobis, 1936; R. De Maesschalck, D. Jouan-Rimbaud
and D. L. Massart, "The Mahalanobis distance", Chemom. Intell. Lab. Syst. 50(1), 2000). It accounts for features that
vary together with speed and load, so those alone raise no alarm. Needs the extra `hedgerow-signal[train]`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hedgerow import disk
from hedgerow_signal.features import features, names
from hedgerow_signal.generate import RATE, Condition, Machine
from hedgerow_signal.metadata import PREFIX

WINDOW: Final = 2048
EDGES_HZ: Final = (5.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0, 2560.0, 3840.0, 6400.0)
_OPSET: Final = 15
_QUANTILE: Final = 0.999
_MARGIN: Final = 1.25


@dataclass(frozen=True, slots=True)
class Model:
    """Statistics of healthy windows.

    Attributes:
        mean, std: of each feature, (features,).
        whiten: (features, features); standardised features @ whiten are uncorrelated, with variance 1.
        threshold: scores above this are anomalous.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    whiten: NDArray[np.float64]
    threshold: float

    def score(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return how far windows are from healthy ones; healthy windows score about 1.

        Args:
            rows: features of windows, (n, features).
        Returns: (n,), the Mahalanobis distance divided by the square root of the number of features.
        """
        scores: NDArray[np.float64] = np.sqrt(np.mean(np.square((rows - self.mean) / self.std @ self.whiten), axis=1))
        return scores


def fit(healthy: NDArray[np.float32], calibration: NDArray[np.float32]) -> Model:
    """Fit a model to healthy windows.

    Args:
        healthy: features to train on, (n, features), n well above the number of features.
        calibration: features of other healthy windows, which set the threshold, (m, features).
    """
    mean = healthy.mean(axis=0, dtype=np.float64)
    std = np.maximum(healthy.std(axis=0, dtype=np.float64), 1e-3)
    correlation = np.cov((healthy - mean) / std, rowvar=False)
    # Shrinkage: directions in which healthy windows hardly vary must not amplify noise.
    correlation = 0.98 * correlation + 0.02 * np.eye(len(mean))
    whiten = np.linalg.inv(np.linalg.cholesky(correlation)).T
    unset = Model(mean, std, whiten, threshold=np.inf)
    threshold = _MARGIN * float(np.quantile(unset.score(calibration), _QUANTILE))
    return Model(mean, std, whiten, threshold)


def generated(
    seed: int, *, machines: int, windows: int, condition: Condition = "healthy", severity: float = 1.0
) -> NDArray[np.float32]:
    """Return the features of generated windows: (machines x windows, features)."""
    series = [
        Machine(1000 * seed + number, condition, severity).vibrate(windows * WINDOW) for number in range(machines)
    ]
    return features(np.stack(series).reshape(-1, WINDOW), RATE, EDGES_HZ)


def to_onnx(model: Model, metadata: Mapping[str, str]) -> bytes:
    """Export a model: `features` float32 (batch, features) → `score` (batch, 1), `deviations` (batch, features).

    Deviations are distances from the mean, in standard deviations.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    count = len(model.mean)

    def constant(name: str, value: NDArray[np.float64]) -> onnx.TensorProto:
        return numpy_helper.from_array(value.astype(np.float32), name)

    def info(name: str, columns: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", columns])

    graph = helper.make_graph(
        [
            helper.make_node("Sub", ["features", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "std"], ["deviations"]),
            helper.make_node("MatMul", ["deviations", "whiten"], ["white"]),
            helper.make_node("Mul", ["white", "white"], ["squares"]),
            helper.make_node("ReduceMean", ["squares"], ["mean_square"], axes=[1], keepdims=1),
            helper.make_node("Sqrt", ["mean_square"], ["score"]),
        ],
        "healthy-vibration",
        [info("features", count)],
        [info("score", 1), info("deviations", count)],
        [constant("mean", model.mean), constant("std", model.std), constant("whiten", model.whiten)],
    )
    exported = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8, producer_name="hedgerow-signal"
    )
    helper.set_model_props(exported, dict(metadata))
    onnx.checker.check_model(exported)
    return bytes(exported.SerializeToString(deterministic=True))


def train(seed: int) -> bytes:
    """Train on generated machines; the same seed gives the same bytes."""
    model = fit(generated(seed, machines=48, windows=40), generated(seed + 1, machines=24, windows=40))
    metadata = {
        "threshold": f"{model.threshold:.4f}",
        "features": json.dumps(names(EDGES_HZ)),
        "edges_hz": json.dumps(EDGES_HZ),
        "scale": "db",
        "rate": str(RATE),
        "window": str(WINDOW),
        "method": "Mahalanobis distance from healthy windows, per root of the number of features",
        "trained_on": "GENERATED vibration of 48 healthy machines (hedgerow_signal.generate); not recorded",
        "seed": str(seed),
    }
    return to_onnx(model, {PREFIX + key: value for key, value in metadata.items()})


def main() -> None:
    """Write the model to the file named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m hedgerow_signal.train",
        description="Train a small model of healthy vibration on generated (not recorded) data and write it as ONNX.",
    )
    parser.add_argument("out", type=Path, metavar="OUT.onnx")
    parser.add_argument("--seed", type=int, default=7, help="which machines to generate (default: 7)")
    args = parser.parse_args()
    model = train(args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    disk.replace(args.out, model)
    sys.stdout.write(f"{args.out}: {len(model)} bytes, trained on generated data, seed {args.seed}\n")


if __name__ == "__main__":
    main()
