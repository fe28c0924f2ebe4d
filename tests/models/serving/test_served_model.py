"""Representations of the model that serves: in health, reports, results, and another process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hedgerow.config import ModelConfig
from hedgerow.models.serving.pool import ModelPool
from hedgerow.models.serving.served_model import ServedModel
from hedgerow.wire.fleet import ModelRef

BUNDLE = "sha256:" + "b" * 64


@pytest.fixture
def own_file(onnx_file: Callable[..., Path]) -> ServedModel:
    """A model from a file named in the node's configuration."""
    pool = ModelPool(cores=1)
    path = onnx_file("(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }")
    served = pool.acquire("door", ModelConfig(path=str(path)), Path()).info()
    pool.close()
    return served


def test_a_file_from_the_configuration_is_identified_by_its_digest_everywhere(own_file: ServedModel) -> None:
    health, reported, lineage = own_file.as_health(), own_file.as_reported("kept", None), own_file.as_lineage()

    assert health.digest == reported.file_digest == lineage["digest"] == own_file.digest
    assert health.backend == reported.backend == lineage["backend"] == own_file.backend
    assert health.device == reported.device == lineage["device"] == own_file.device
    assert (own_file.ref, health.version, reported.model) == (None, None, None)
    assert "version" not in lineage


def test_a_bundles_version_is_reported_with_the_bundles_name(own_file: ServedModel) -> None:
    served = replace(own_file, version="2.0.0", bundle=BUNDLE, bundle_name="faces", variant="onnx-fp16", frames=7)
    before = ModelRef(name="faces", version="1.0.0", digest=BUNDLE)

    reported = served.as_reported("probation", before)

    assert reported.model == served.ref == ModelRef(name="faces", version="2.0.0", digest=BUNDLE)
    assert (reported.variant, reported.results, reported.stage) == ("onnx-fp16", 7, "probation")
    assert reported.previous == before
    assert (served.as_health().version, served.as_health().bundle) == ("2.0.0", BUNDLE)
    assert (served.as_lineage()["name"], served.as_lineage()["version"]) == ("door", "2.0.0")


def test_conversion_to_plain_values_and_back_changes_nothing(own_file: ServedModel) -> None:
    assert ServedModel.from_dict(own_file.as_dict()) == own_file
