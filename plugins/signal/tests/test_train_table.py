"""Training on real labelled readings of a space shuttle (Statlog Shuttle, shipped by the package river)."""

from __future__ import annotations

from pathlib import Path

import pytest

from hedgerow.errors import ModelNotFound
from hedgerow.models.bundle.model_file import resolve
from hedgerow.testing import frame, run_pipeline
from hedgerow_signal.train import to_onnx
from hedgerow_signal.train_table import fit_and_evaluate, read_table


@pytest.fixture(scope="module")
def shuttle() -> Path:
    try:
        return resolve("package:river/datasets/shuttle.csv.gz", Path()).path
    except ModelNotFound as error:
        pytest.skip(f"{error}: {error.remedy}")


def test_most_anomalies_are_found_with_few_false_alarms(shuttle: Path) -> None:
    """Evaluated on held-out rows."""
    _, values, anomalous = read_table(shuttle, "anomaly")

    _, metrics = fit_and_evaluate(values, anomalous)

    assert metrics["recall"] > 0.8
    assert metrics["false_alarms"] < 0.005


def test_the_label_is_added_to_the_result(shuttle: Path, tmp_path: Path) -> None:
    _, values, anomalous = read_table(shuttle, "anomaly")
    model, _ = fit_and_evaluate(values, anomalous)
    path = tmp_path / "shuttle.onnx"
    path.write_bytes(to_onnx(model, {"hedgerow.threshold": str(model.threshold)}))
    stages = [
        {"parse": {"field": "readings", "dtype": "float32"}},
        {"infer": {"model": "shuttle"}},
        {"anomaly": {"model": "shuttle", "label": "truth"}},
    ]
    rows = [
        frame(f'{{"readings": {row.tolist()}, "truth": {int(odd)}}}', content_type="application/json")
        for row, odd in zip(values[-200:], anomalous[-200:], strict=True)
    ]

    results = run_pipeline(stages, rows, models={"shuttle": str(path)}).results

    assert [result["label"] for result in results] == anomalous[-200:].astype(int).tolist()
    assert sum(result["anomalous"] == bool(result["label"]) for result in results) > 190


def test_a_table_without_the_label_column_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("a,b\n1,2\n")

    with pytest.raises(ValueError, match="no column 'anomaly'; its columns are a, b"):
        read_table(table, "anomaly")
