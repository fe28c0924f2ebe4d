"""Metadata of model files and manifests, as builds and stages read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.backends.convert import to_openvino
from hedgerow.config import ModelConfig
from hedgerow.models.bundle.manifest import Manifest
from hedgerow.models.bundle.metadata import metadata_of, read_metadata
from hedgerow.models.bundle.model_file import ModelFile, digest
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.serving.pool import ModelPool
from hedgerow.models.session.load import load

DOUBLE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"names": "{0: 'person', 1: 'bicycle'}", "task": "detect"}, {"labels": ("person", "bicycle")}),
        ({"character": "a\nb"}, {"labels": ("a", "b")}),
        ({"hedgerow.version": "1.2.0", "author": "Works team"}, {"version": "1.2.0", "author": "Works team"}),
        ({"license": "MIT"}, {"licence": "MIT"}),
        ({"license": "AGPL-3.0 License (https://ultralytics.com/license)"}, {}),
        ({"hedgerow.threshold": "0.5"}, {"parameters": {"threshold": 0.5}}),
        ({"names": "__import__('os').abort()"}, {"labels": ("__import__('os').abort()",)}),
    ],
    ids=["ultralytics", "paddle", "ours", "licence", "no-licence", "parameter", "code"],
)
def test_the_metadata_of_common_exporters_is_read(metadata: dict[str, str], expected: dict[str, Any]) -> None:
    assert expected.items() <= read_metadata(metadata).items()


@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), VALUES, max_size=4), st.lists(st.text(min_size=1))
)
def test_a_manifests_metadata_is_read_back_unchanged(parameters: dict[str, Any], labels: list[str]) -> None:
    reserved = {"name", "version", "description", "licence", "author", "training_data", "labels"}
    parameters = {key: value for key, value in parameters.items() if key not in reserved}
    manifest = Manifest.model_construct(parameters=json.loads(json.dumps(parameters)), labels=tuple(labels))

    fields = read_metadata(metadata_of(manifest))

    assert fields.get("parameters", {}) == manifest.parameters
    assert fields.get("labels", ()) == manifest.labels


def test_a_manifests_parameters_override_the_files_metadata(make_version: Callable[..., ModelVersion]) -> None:
    candidate = make_version(DOUBLE, parameters={"threshold": 0.7, "scale": "db"})
    pool = ModelPool(cores=1)
    engine = pool.open("door", ModelConfig(path="bundle:door"), Path(), candidate)

    assert engine.metadata["hedgerow.threshold"] == "0.7"
    assert engine.metadata["hedgerow.scale"] == "db"
    engine.close()


def test_conversion_keeps_a_models_metadata(onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    """Stages read thresholds and labels from it, whichever variant a node runs."""
    path = onnx_file(DOUBLE, **{"hedgerow.threshold": "0.5", "names": "{0: 'a', 1: 'b'}"})
    to_openvino(path, tmp_path / "m.xml", half=False)

    session = load(
        ModelFile(tmp_path / "m.xml", digest(tmp_path / "m.xml")), ModelConfig(path="m.xml"), 1, None
    ).session

    assert session.metadata["hedgerow.threshold"] == "0.5"
    assert session.metadata["names"] == "{0: 'a', 1: 'b'}"
    session.close()
