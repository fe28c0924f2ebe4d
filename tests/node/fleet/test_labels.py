"""Labels of a node, and what they import."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

import pytest

from hedgerow import backends
from hedgerow.config import ModelConfig
from hedgerow.labels import check_labels
from hedgerow.node.fleet.labels import backends_in_use, device_labels, own_labels
from hedgerow.testing import processes
from hedgerow.topics import Address

HERE = Address("north", "shop-1", "gateway")


def test_own_labels_name_installed_backends_without_loading_them() -> None:
    code = """
import json, sys
from hedgerow.node.fleet.labels import own_labels
from hedgerow.topics import Address
labels = own_labels(Address("north", "shop-1", "gateway"), 4)
print(json.dumps([labels, [name for name in ("onnxruntime", "openvino") if name in sys.modules]]))
"""
    done = processes.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    labels, loaded = json.loads(done.stdout)

    assert loaded == []
    assert labels["cores"] == "4"
    assert labels["backend/onnxruntime"] == version("onnxruntime")
    assert labels["backend/openvino"].startswith(version("openvino"))


def test_own_and_device_labels_are_valid() -> None:
    check_labels(own_labels(HERE, 4) | device_labels(["onnxruntime", "openvino"]))


def test_devices_are_those_of_backends_in_use() -> None:
    assert device_labels([]) == {}
    assert device_labels(["onnxruntime"]) == {"device/cpu": ""}
    assert device_labels(["no-such-backend"]) == {}


@pytest.mark.parametrize(
    ("models", "used"),
    [
        ({}, set()),
        ({"a": {"path": "a.onnx"}}, {"onnxruntime"}),
        ({"a": {"path": "a.xml"}}, {"openvino"}),
        ({"a": {"path": "a.onnx", "backend": "openvino"}, "b": {"path": "b.onnx"}}, {"onnxruntime", "openvino"}),
        ({"a": {"path": "bundle:door"}}, {"onnxruntime"}),
        ({"a": {"path": "bundle:door", "backend": "openvino"}}, {"openvino"}),
    ],
)
def test_backends_in_use_are_found_in_the_nodes_file(models: dict[str, dict[str, str]], used: set[str]) -> None:
    assert backends_in_use({name: ModelConfig.model_validate(fields) for name, fields in models.items()}) == used


def test_devices_are_looked_up_on_access() -> None:
    here = backends.LocalDevices()

    assert list(here) == ["onnxruntime", "openvino"]
    assert len(here) == 2
    assert "CPU" in here["onnxruntime"]
    with pytest.raises(KeyError):
        here["no-such-backend"]
