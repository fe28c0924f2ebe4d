"""Trains a model on a labelled table of readings: `python -m hedgerow_signal.train_table OUT.onnx TABLE.csv`.

The table has a header, columns of numbers, and a label column that is 0 for normal rows. The model is fitted to the
normal rows of the first half, its threshold is set on those of the third quarter, and it is evaluated on the last
quarter. The method is that of `train`. Needs `hedgerow-signal[train]`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hedgerow import disk
from hedgerow_signal.metadata import PREFIX
from hedgerow_signal.train import Model, fit, to_onnx


def read_table(path: Path, label: str) -> tuple[list[str], NDArray[np.float32], NDArray[np.bool_]]:
    """Read a labelled table, .csv or .csv.gz.

    Returns: names of the columns, values (rows, columns), which rows are anomalous (rows,).
    Raises: ValueError: the label column is missing, or a cell is not a number.
    """
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    if label not in header:
        raise ValueError(f"{path} has no column {label!r}; its columns are {', '.join(header)}")
    values = np.array(rows, dtype=np.float32)
    column = header.index(label)
    names = [name for name in header if name != label]
    return names, np.delete(values, column, axis=1), values[:, column] != 0


def fit_and_evaluate(values: NDArray[np.float32], anomalous: NDArray[np.bool_]) -> tuple[Model, dict[str, float]]:
    """Fit a model to the normal rows and evaluate it on the last quarter.

    Returns: the model; `recall`, the share of anomalous rows found, and `false_alarms`, the share of normal rows
        reported as anomalous.
    """
    half, last = len(values) // 2, len(values) * 3 // 4
    model = fit(values[:half][~anomalous[:half]], values[half:last][~anomalous[half:last]])
    found = model.score(values[last:]) > model.threshold
    truth = anomalous[last:]
    return model, {"recall": float(found[truth].mean()), "false_alarms": float(found[~truth].mean())}


def main() -> None:
    """Write the model to the file named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m hedgerow_signal.train_table",
        description="Train a model of the normal rows of a labelled table and write it as ONNX.",
    )
    parser.add_argument("out", type=Path, metavar="OUT.onnx")
    parser.add_argument("table", type=Path, metavar="TABLE.csv", help="labelled readings, .csv or .csv.gz")
    parser.add_argument("--label", default="anomaly", help="column that is 0 for normal rows (default: anomaly)")
    args = parser.parse_args()
    names, values, anomalous = read_table(args.table, args.label)
    model, metrics = fit_and_evaluate(values, anomalous)
    metadata = {
        "threshold": f"{model.threshold:.4f}",
        "features": json.dumps(names),
        "method": "Mahalanobis distance from normal rows, per root of the number of columns",
        "trained_on": f"normal rows of the first half of {args.table.name}",
        **{key: f"{share:.4f}" for key, share in metrics.items()},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    disk.replace(args.out, to_onnx(model, {PREFIX + key: value for key, value in metadata.items()}))
    summary = ", ".join(f"{key.replace('_', ' ')} {share:.1%}" for key, share in metrics.items())
    sys.stdout.write(f"{args.out}: trained on {args.table.name}; on held-out rows: {summary}\n")


if __name__ == "__main__":
    main()
