"""Malicious or damaged bundles, models and recipes: each is refused with a message, without blocking or filling memory."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.examples import examples

from hedgerow.configfile import BadConfigFile
from hedgerow.errors import ModelMismatch, ModelUnreadable
from hedgerow.models.build.gguf import read_header
from hedgerow.models.build.recipe import read_recipe
from hedgerow.models.build.verify import verify_golden
from hedgerow.models.bundle.arrays import BadArrays, read_array, read_arrays, write_arrays
from hedgerow.models.bundle.chunks import describe_file
from hedgerow.models.bundle.folder import BadBundle, Bundle
from hedgerow.models.bundle.manifest import BadManifest, File, Manifest, read_manifest
from hedgerow.models.bundle.model_file import ModelFile, digest
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.session.load import load_signature
from hedgerow.text import visible

DOUBLE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"


@pytest.fixture
def candidate(make_version: Callable[..., ModelVersion]) -> ModelVersion:
    return make_version(DOUBLE, baseline=True)


def rewritten(candidate: ModelVersion, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a changed manifest, encoded canonically."""
    content = orjson.loads(candidate.manifest.encode())
    change(content)
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS)


def variant(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["variants"][0]
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: variant(m)["files"][0].update(path="../../etc/cron.d/x"), "inside the bundle"),
        (lambda m: variant(m)["files"][0].update(path="/etc/cron.d/x"), "inside the bundle"),
        (lambda m: variant(m)["files"][0].update(path="a\x1b[2Jb"), "printable characters"),
        (lambda m: variant(m)["files"][0].update(path="a" * 300), "too long for file systems"),
        (lambda m: variant(m)["files"][0].update(path="golden"), "both a file and a folder"),
        (lambda m: variant(m)["files"][0].update(size=10**15), "chunks"),
        (lambda m: variant(m)["needs"].update(memory_bytes=10**19), "memory_bytes"),
        (lambda m: variant(m)["needs"].update(memory_bytes=10**30), "JSON"),
        (lambda m: variant(m)["tolerance"].update(relative=1e9), "tolerance.relative"),
        (lambda m: m["inputs"][0].update(dtype="float31"), "inputs.0.dtype"),
        (lambda m: m["inputs"][0].update(shape=[10**12, 10**12]), "inputs.0.shape"),
        (lambda m: m["inputs"][0].update(shape=[1] * 1000), "inputs.0.shape"),
        (lambda m: m["golden"].extend(m["golden"] * 100), "golden"),
        (lambda m: m["baseline"]["outputs"]["y"].update(counts=[1]), "bin"),
        (lambda m: m["baseline"]["outputs"]["y"]["edges"].reverse(), "edges"),
        (lambda m: m["serving"].update(options={"ep.context_file_path": "/etc/x"}), "options"),
        (lambda m: m["serving"].update(path="/etc/x"), "must not have a `path`"),
    ],
)
def test_a_manifest_with_impossible_values_is_refused(
    candidate: ModelVersion, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    assert read_manifest(rewritten(candidate, lambda _: None)) == candidate.manifest

    try:
        content = rewritten(candidate, change)
    except orjson.JSONEncodeError:  # a number that orjson cannot encode, but other libraries can
        content = candidate.manifest.encode().replace(b'"memory_bytes":0', b'"memory_bytes":1' + b"0" * 30)
    with pytest.raises(BadManifest, match=message):
        read_manifest(content)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999", b"-1e999"])
def test_a_tolerance_that_passes_everything_is_refused(candidate: ModelVersion, number: bytes) -> None:
    content = candidate.manifest.encode()
    assert b'"absolute":0.0001' in content

    with pytest.raises(BadManifest):
        read_manifest(content.replace(b'"absolute":0.0001', b'"absolute":' + number))


@pytest.mark.parametrize(
    "content",
    [
        b'{"a":' * 100_000,
        b"[" * 1_000_000,
        b'{"name":"a","name":"b"}',
        b"\xff\xfe",
        b'{"a": 1}',
        b"",
        b"null",
    ],
    ids=["deep", "deeper", "twice", "no-text", "spaces", "empty", "null"],
)
def test_json_that_readers_could_interpret_differently_is_refused(content: bytes) -> None:
    """So is JSON that would overflow a reader's stack."""
    with pytest.raises(BadManifest):
        read_manifest(content)


def test_a_duplicate_key_is_refused(candidate: ModelVersion) -> None:
    content = candidate.manifest.encode()

    with pytest.raises(BadManifest):
        read_manifest(content.replace(b'"name":"door"', b'"name":"door","name":"other"'))


def link(path: Path) -> None:
    target = path.with_name("target")
    path.rename(target)
    path.symlink_to(target)


def link_folder(path: Path) -> None:
    outside = path.parents[3] / "outside"
    path.parent.rename(outside)
    path.parent.symlink_to(outside)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("replace", [link, link_folder, pipe, folder])
def test_only_regular_files_are_read(candidate: ModelVersion, replace: Callable[[Path], None]) -> None:
    """A link may lead out of the bundle, and reading a pipe may block for ever."""
    replace(candidate.path)

    problems = list(Bundle.open(candidate.folder).problems())

    assert "variants/onnx/model.onnx" in str(problems[0])


def test_a_manifest_that_is_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")

    with pytest.raises(BadBundle, match="not a regular file"):
        Bundle.open(tmp_path)


def test_wrong_chunk_digests_are_found(candidate: ModelVersion) -> None:
    """The file itself is intact, but no node could fetch it."""

    def swap(manifest: dict[str, Any]) -> None:
        variant(manifest)["files"][0]["chunks"][0]["digest"] = f"sha256:{0:064}"

    (candidate.folder / "manifest.json").write_bytes(rewritten(candidate, swap))

    (problem,) = Bundle.open(candidate.folder).problems()

    assert "its chunk 1 of 1 does not match the manifest" in str(problem)


# Golden files


def npy(array: np.ndarray[Any, Any], shape: str | None = None, descr: str | None = None) -> bytes:
    """Return an array in .npy format, optionally with another shape or type in its header."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0))
    content = stream.getvalue()
    for before, after in ((f"{array.shape}", shape), (f"'{array.dtype.str}'", descr)):
        if after is not None:
            assert before.encode() in content
            grown = content.replace(before.encode(), after.encode())
            surplus = len(grown) - len(content)
            content = grown.replace(b" " * surplus + b"\n", b"\n", 1) if surplus > 0 else grown
    return content


@pytest.mark.parametrize(
    ("shape", "descr"),
    [
        ("(1000000000000,)", None),
        ("(-3,)", None),
        ("(3, 1000000000000, 0)", None),
        (None, "'|O'"),
        (None, "'<U4'"),
        (None, "'<q9'"),
    ],
    ids=str,
)
def test_an_array_with_a_forged_header_is_refused_before_memory_is_allocated(
    tmp_path: Path, shape: str | None, descr: str | None
) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("x.npy", npy(np.zeros(3, np.float32), shape, descr))

    (tmp_path / "x.npy").write_bytes(npy(np.zeros(3, np.float32), shape, descr))

    with pytest.raises(BadArrays):
        read_arrays(tmp_path / "x.npz")
    with pytest.raises(BadArrays):
        read_array(tmp_path / "x.npy")


def test_a_decompression_bomb_is_refused_by_its_stated_size(tmp_path: Path) -> None:
    """Two gigabytes of zeros fit into two megabytes."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name in "ab":
            with file.open(f"{name}.npy", "w") as stream:
                stream.write(bytes(1 << 16))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    for at in (found for found in range(len(content) - 4) if content[found : found + 4] == b"PK\x01\x02"):
        content[at + 24 : at + 28] = struct.pack("<I", 1 << 30)
    (tmp_path / "x.npz").write_bytes(content)

    with pytest.raises(BadArrays, match="unpacks to 2,147,483,648 bytes"):
        read_arrays(tmp_path / "x.npz")


@settings(max_examples=examples(60))
@given(st.data())
def test_damaged_arrays_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    write_arrays(path, {"x": np.arange(12, dtype=np.float32).reshape(3, 4), "y": np.array(True)})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)

    with suppress(BadArrays):
        read_arrays(path)


def with_golden(candidate: ModelVersion, inputs: dict[str, Any], outputs: dict[str, Any] | None = None) -> Bundle:
    """Replace a bundle's golden arrays, and list them in its manifest."""

    def described(path: str) -> dict[str, Any]:
        file: File = describe_file(candidate.folder / path, path)
        found: dict[str, Any] = file.model_dump()
        return found

    write_arrays(candidate.folder / "golden/0.inputs.npz", inputs)
    if outputs is not None:
        write_arrays(candidate.folder / "golden/onnx/0.outputs.npz", outputs)

    def change(manifest: dict[str, Any]) -> None:
        (case,) = manifest["golden"]
        case["inputs"] = described("golden/0.inputs.npz")
        case["outputs"]["onnx"] = described("golden/onnx/0.outputs.npz")

    (candidate.folder / "manifest.json").write_bytes(rewritten(candidate, change))
    bundle = Bundle.open(candidate.folder)
    bundle.verify()
    return bundle


X = np.random.default_rng(0).random((16, 3), np.float32)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": X.astype(np.float64)}, "the model takes x: float32"),
        ({"x": X[:, :2]}, "the model takes x: float32"),
        ({"z": X}, "the golden inputs have nothing"),
        ({"x": X, "more": X}, "more, which is not an input"),
        ({}, "the golden inputs have nothing"),
    ],
    ids=["dtype", "shape", "name", "more", "none"],
)
def test_golden_inputs_that_do_not_fit_fail(candidate: ModelVersion, inputs: dict[str, Any], message: str) -> None:
    """Some backends would convert them, so something else would be compared."""
    bundle = with_golden(candidate, inputs)

    (outcome,) = verify_golden(bundle, bundle.manifest.variants[0])

    assert outcome.state == "failed"
    assert message in outcome.detail


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_golden_outputs_of_nan_or_infinity_do_not_match_numbers(candidate: ModelVersion, number: float) -> None:
    bundle = with_golden(candidate, {"x": X}, {"y": np.full((16, 3), number, np.float32)})

    (outcome,) = verify_golden(bundle, bundle.manifest.variants[0])

    assert outcome.state == "failed"


def test_golden_cases_without_outputs_fail(candidate: ModelVersion) -> None:
    """Cases must have every output of the model."""
    bundle = with_golden(candidate, {"x": X}, {})

    (outcome,) = verify_golden(bundle, bundle.manifest.variants[0])

    assert outcome.state == "failed"
    assert "has no expected values for y" in outcome.detail


def test_a_manifest_with_other_tensors_than_the_model_fails(candidate: ModelVersion) -> None:
    """Stages would be built for tensors that do not exist."""
    content = rewritten(candidate, lambda manifest: manifest["outputs"][0].update(dtype="int64"))
    (candidate.folder / "manifest.json").write_bytes(content)
    bundle = Bundle.open(candidate.folder)

    (outcome,) = verify_golden(bundle, bundle.manifest.variants[0])

    assert outcome.state == "failed"
    assert "the manifest lists the outputs {'y': 'int64'}, but the model has" in outcome.detail


# Models


def test_a_model_of_impossible_size_is_refused_before_memory_is_allocated(onnx_file: Callable[..., Path]) -> None:
    from hedgerow.config import ModelConfig

    path = onnx_file("(float[1000000,1000000,1000] x) => (float[1000000,1000000,1000] y) { y = Add(x, x) }")

    with pytest.raises(ModelMismatch, match="would have 4,000,000,000,000,000 bytes"):
        load_signature(ModelFile(path, digest(path)), ModelConfig(path=str(path)))


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "weights/../../secret.bin"])
def test_weights_outside_a_bundle_are_not_read(candidate: ModelVersion, location: str) -> None:
    """An ONNX file may name an external file with its weights."""
    (candidate.folder.parent / "secret.bin").write_bytes(bytes(64))
    (candidate.path.parent.parent / "secret.bin").write_bytes(bytes(64))
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        "graph (float[N,3] x) => (float[N,3] y) <float[3] w = {1,2,3}> { y = Add(x, w) }"
    )
    (weights,) = model.graph.initializer
    weights.ClearField("float_data")
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "12")):
        weights.external_data.add(key=key, value=value)
    candidate.path.write_bytes(model.SerializeToString())

    def change(manifest: dict[str, Any]) -> None:
        file = describe_file(candidate.path, "variants/onnx/model.onnx")
        variant(manifest).update(files=[file.model_dump()], model_digest=digest(candidate.path))
        variant(manifest)["needs"]["backends"] = ["onnxruntime", "openvino"]

    (candidate.folder / "manifest.json").write_bytes(rewritten(candidate, change))
    bundle = Bundle.open(candidate.folder)

    assert {outcome.state for outcome in verify_golden(bundle, bundle.manifest.variants[0])} == {"failed"}


# GGUF


def gguf(*, version: int = 3, keys: bytes | None = None, count: int = 1, tensors: bytes = b"", many: int = 0) -> bytes:
    if keys is None:
        keys = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    return b"GGUF" + struct.pack("<IQQ", version, many, count) + keys + tensors


def text(value: str, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value.encode()


def tensor(dims: tuple[int, ...] = (32, 2), kind: int = 0, offset: int = 0) -> bytes:
    return text("w") + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    return text("k") + struct.pack("<IIQ", 9, kind, count) + content


def test_the_header_of_a_gguf_file_is_read(tmp_path: Path) -> None:
    content = gguf(tensors=tensor(), many=1)
    path = tmp_path / "m.gguf"
    path.write_bytes(content + bytes(-len(content) % 32 + 32 * 2 * 4))

    header = read_header(path)

    assert header.tensors == 1
    assert header.metadata == {"general.architecture": "llama"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGML" + bytes(20), "does not start with GGUF"),
        (gguf()[:-3], "truncated"),
        (gguf(version=1), "version 1"),
        (gguf(count=1 << 60), "keys"),
        (gguf(many=1 << 60), "tensors"),
        (gguf(many=1), "truncated"),
        (gguf(keys=text("k", 1 << 62)), "a string has"),
        (gguf(keys=text("k" * 3, 1 << 20)), "truncated"),
        (gguf(keys=text("k") + struct.pack("<I", 99)), "unknown type 99"),
        (gguf(keys=array(0, 1 << 60)), "a list has"),
        (gguf(keys=array(12, 1 << 20)), "beyond the end of the file"),
        (gguf(keys=array(8, 1, struct.pack("<Q", 1 << 63))), "beyond the end of the file"),
        (gguf(keys=array(9, 1)), "unsupported type 9"),
        (gguf(keys=text("general.alignment") + struct.pack("<II", 4, 0)), "alignment"),
        (gguf(keys=b"\x01" + bytes(7) + b"\xff" + struct.pack("<I", 0) + b"a"), "utf-8"),
        (gguf(tensors=tensor((1 << 40, 1 << 40)), many=1), "would end at byte"),
        (gguf(tensors=tensor((1,) * 9), many=1), "9 dimensions"),
        (gguf(tensors=tensor((1,), offset=1 << 63), many=1), "would end at byte"),
    ],
)
def test_an_invalid_gguf_header_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)

    with pytest.raises(ModelUnreadable, match=message):
        read_header(path)


@given(st.binary(max_size=120), st.integers(0, 1 << 64), st.integers(0, 1 << 64))
def test_arbitrary_bytes_after_the_magic_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, tensors: int, keys: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors % (1 << 64), keys % (1 << 64) % 5) + content)

    with suppress(ModelUnreadable):
        read_header(path)


# Recipes, and terminal output


def test_a_recipe_of_nested_references_is_refused(tmp_path: Path) -> None:
    """A few hundred bytes of references to references would expand to gigabytes."""
    path = tmp_path / "model.yaml"
    lists = [f"  a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]" for number in range(1, 12)]
    path.write_text("\n".join(["name: door", "parameters:", "  a0: &a0 [x]", *lists]))

    with pytest.raises(BadConfigFile, match="references"):
        read_recipe(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, {"deep": [{"x": float("-inf")}]}], ids=str)
def test_parameters_that_json_cannot_hold_are_refused(candidate: ModelVersion, value: object) -> None:
    """They would be read back as something else."""
    fields = {**candidate.manifest.model_dump(by_alias=True), "parameters": {"p": value}}

    with pytest.raises(ValueError, match="parameters"):
        Manifest.model_validate(fields)


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert visible("plain, \N{GREEK SMALL LETTER MU}m") == "plain, \N{GREEK SMALL LETTER MU}m"
    assert visible("a\x1b[2J\x07b\u202ec") == "a\\x1b[2J\\x07b\\u202ec"
