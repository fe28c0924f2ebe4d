"""Learn what is normal in a table of real readings: `python -m hedgerow_signal.train_table OUT.onnx TABLE.csv`.

The table has a heading, columns of numbers, and one column that says which rows are anomalous (anything but 0). The
model learns from the normal rows of the first half alone, sets its threshold by those of the third quarter, and is
judged by the last quarter, which it has not seen. The method is that of `train`. Needs `hedgerow-signal[train]`.
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
    Raises: ValueError: it has no such column, or a cell is no number.
    """
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        heading, *rows = csv.reader(file)
    if label not in heading:
        raise ValueError(f"{path} has no column {label!r} (it has {', '.join(heading)})")
    values = np.array(rows, dtype=np.float32)
    column = heading.index(label)
    names = [name for name in heading if name != label]
    return names, np.delete(values, column, axis=1), values[:, column] != 0


def learn(values: NDArray[np.float32], anomalous: NDArray[np.bool_]) -> tuple[Model, dict[str, float]]:
    """Learn from the normal rows; judge by the last quarter.

    Returns: the model; `recall`, the share of anomalous rows it finds, and `false_alarms`, the share of normal rows it
        takes for anomalous.
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
        description="Learn what is normal in a labelled table of readings and write it as ONNX.",
    )
    parser.add_argument("out", type=Path, metavar="OUT.onnx")
    parser.add_argument("table", type=Path, metavar="TABLE.csv", help="readings; .gz is unpacked")
    parser.add_argument("--label", default="anomaly", help="column that is 0 for normal rows (default: anomaly)")
    args = parser.parse_args()
    names, values, anomalous = read_table(args.table, args.label)
    model, judged = learn(values, anomalous)
    facts = {
        "threshold": f"{model.threshold:.4f}",
        "features": json.dumps(names),
        "method": "Mahalanobis distance from normal rows, per root of the number of columns",
        "trained_on": f"normal rows of the first half of {args.table.name}",
        **{key: f"{share:.4f}" for key, share in judged.items()},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    disk.replace(args.out, to_onnx(model, {PREFIX + key: value for key, value in facts.items()}))
    told = ", ".join(f"{key.replace('_', ' ')} {share:.1%}" for key, share in judged.items())
    sys.stdout.write(f"{args.out}: learnt from {args.table.name}; on rows it has not seen: {told}\n")


if __name__ == "__main__":
    main()
