"""Fixtures shared by tests of several areas."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from hedgerow.frame import Array
from hedgerow.models.bundle.arrays import write_arrays
from hedgerow.models.bundle.chunks import describe_file
from hedgerow.models.bundle.distributions import Accumulator
from hedgerow.models.bundle.manifest import (
    Baseline,
    Distribution,
    File,
    GoldenCase,
    Manifest,
    Needs,
    Tensor,
    Tolerance,
    Variant,
)
from hedgerow.models.bundle.model_file import digest
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.wire.fleet import ModelRef

OnnxFile = Callable[..., Path]


@pytest.fixture
def onnx_file(tmp_path: Path) -> OnnxFile:
    """Return a function that writes a small ONNX model.

    For example: `onnx_file("(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }")`.
    """

    def write(body: str, *, name: str = "model.onnx", domains: str = "", **metadata: str) -> Path:
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17{domains}]>\ngraph {body}')
        for key, value in metadata.items():
            model.metadata_props.add(key=key, value=value)
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return write


MakeVersion = Callable[..., ModelVersion]


@pytest.fixture
def make_version(tmp_path: Path) -> MakeVersion:
    """Return a function that creates a model version on disk: see `version_maker`."""
    return version_maker(tmp_path)


def version_maker(target: Path) -> MakeVersion:
    """Return a function that creates a model version on disk: `make_version("(float[N,3] x) => …", version="1.1.0")`.

    The model may be text or a parsed model. Its golden outputs and baseline are computed by ONNX Runtime from random
    inputs, using `golden_body` instead of the model if given.
    """

    def make(
        body: str | onnx.ModelProto,
        version: str = "1.0.0",
        *,
        name: str = "door",
        golden_body: str | onnx.ModelProto | None = None,
        samples: dict[str, Array] | None = None,
        baseline: bool = False,
        memory_bytes: int = 0,
        tolerance: Tolerance | None = None,
        parameters: dict[str, Any] | None = None,
        domains: str = "",
        **serving: Any,
    ) -> ModelVersion:
        folder = target / "bundles" / f"{name}-{version}"
        (folder / "variants/onnx").mkdir(parents=True)
        (folder / "golden/onnx").mkdir(parents=True)
        path = folder / "variants/onnx/model.onnx"
        onnx.save(_parsed(body, domains), path)
        inputs = samples or {"x": np.random.default_rng(0).random((16, 3), np.float32)}
        session = onnxruntime.InferenceSession(_parsed(golden_body or body, domains).SerializeToString())
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, inputs), strict=True))
        write_arrays(folder / "golden/0.inputs.npz", inputs)
        write_arrays(folder / "golden/onnx/0.outputs.npz", outputs)
        manifest = Manifest(
            schema="hedgerow.model/1",
            name=name,
            version=version,
            inputs=tuple(Tensor(name=k, dtype=str(a.dtype), shape=(None, *a.shape[1:])) for k, a in inputs.items()),
            outputs=tuple(Tensor(name=k, dtype=str(a.dtype), shape=(None, *a.shape[1:])) for k, a in outputs.items()),
            parameters=parameters or {},
            serving=serving,
            variants=(
                Variant(
                    name="onnx",
                    format="onnx",
                    precision="fp32",
                    files=(_file(folder, path),),
                    model_digest=digest(path),
                    needs=Needs(backends=("onnxruntime",), memory_bytes=memory_bytes),
                    tolerance=tolerance or Tolerance(),
                ),
            ),
            golden=(
                GoldenCase(
                    inputs=_file(folder, folder / "golden/0.inputs.npz"),
                    outputs={"onnx": _file(folder, folder / "golden/onnx/0.outputs.npz")},
                ),
            ),
            baseline=Baseline(
                samples=len(next(iter(inputs.values()))),
                inputs={key: _distribution(array) for key, array in inputs.items()},
                outputs={key: _distribution(array) for key, array in outputs.items()},
            )
            if baseline
            else None,
        )
        (folder / "manifest.json").write_bytes(manifest.encode())
        ref = ModelRef(name=name, version=version, digest=manifest.digest)
        return ModelVersion(name, ref, manifest, manifest.variants[0], folder)

    return make


def _parsed(body: str | onnx.ModelProto, domains: str = "") -> onnx.ModelProto:
    if isinstance(body, onnx.ModelProto):
        return body
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17{domains}]>\ngraph {body}')


def _file(folder: Path, path: Path) -> File:
    return describe_file(path, path.relative_to(folder).as_posix())


def _distribution(array: Array) -> Distribution:
    accumulator = Accumulator()
    accumulator.add(array)
    return accumulator.distribution()


_LABEL = "line 3+4"
_SOFTHSM = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
)


@pytest.fixture(scope="session")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a SoftHSM token with a P-256 key in slot 2, PIN 1234; the module reads its location on first use."""
    module = next((path for path in _SOFTHSM if Path(path).exists()), None)
    if module is None:
        pytest.skip("SoftHSM is not installed: apt-get install softhsm2")
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(pem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(folder / "softhsm2.conf"))
        patch.setenv("PYKCS11LIB", module)
        tool = ["softhsm2-util", "--module", module]
        subprocess.run(
            [*tool, "--init-token", "--free", "--label", _LABEL, "--pin", "1234", "--so-pin", "0000"],
            check=True, capture_output=True,
        )  # fmt: skip
        subprocess.run(
            [*tool, "--import", str(folder / "key.pem"), "--token", _LABEL, "--label", "root", "--id", "02", "--pin", "1234"],
            check=True, capture_output=True,
        )  # fmt: skip
        yield f"hsm:2?label={_LABEL}"
