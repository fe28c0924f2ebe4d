"""Verification of a bundle on disk: every file that does not match the manifest is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hedgerow.models.bundle import model_file
from hedgerow.models.bundle.chunks import describe_file
from hedgerow.models.bundle.folder import BadBundle, Bundle
from hedgerow.models.bundle.manifest import BadManifest, GoldenCase, Manifest, Needs, Variant

NEEDS = Needs(backends=("onnxruntime",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle with two variants and a golden case of one of them, none of which can be run."""
    for name, content in {
        "one/m.onnx": b"one",
        "two/m.onnx": b"two" * 200_000,
        "golden/in": b"x",
        "golden/out": b"y",
    }.items():
        path = tmp_path / "bundle" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    folder = tmp_path / "bundle"

    def described(name: str) -> Variant:
        file = describe_file(folder / name / "m.onnx", f"{name}/m.onnx")
        digest = model_file.digest(folder / name / "m.onnx")
        return Variant(name=name, format="onnx", precision="fp32", files=(file,), model_digest=digest, needs=NEEDS)

    case = GoldenCase(
        inputs=describe_file(folder / "golden/in", "golden/in"),
        outputs={"two": describe_file(folder / "golden/out", "golden/out")},
    )
    variants = (described("one"), described("two"))
    manifest = Manifest(name="door", version="1.2.3", inputs=(), outputs=(), variants=variants, golden=(case,))
    (folder / "manifest.json").write_bytes(manifest.encode())
    return folder


def test_an_intact_bundle_passes(folder: Path) -> None:
    bundle = Bundle.open(folder)
    checked: list[int] = []

    bundle.verify(progress=checked.append)

    assert bundle.digest == bundle.manifest.digest
    assert sum(checked) == sum(file.size for file in bundle.manifest.files())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


@pytest.mark.parametrize("damage", [truncate, flip, extend, Path.unlink])
@pytest.mark.parametrize("name", ["two/m.onnx", "golden/out"])
def test_a_file_that_does_not_match_the_manifest_is_named(
    folder: Path, damage: Callable[[Path], None], name: str
) -> None:
    damage(folder / name)

    with pytest.raises(BadBundle, match=name) as refused:
        Bundle.open(folder).verify()

    assert refused.value.remedy


def test_a_node_checks_only_what_it_has_fetched(folder: Path) -> None:
    """It fetches one variant and its golden cases."""
    (folder / "one/m.onnx").unlink()

    Bundle.open(folder).verify("two")
    with pytest.raises(BadBundle, match=r"one/m\.onnx"):
        Bundle.open(folder).verify("one")
    with pytest.raises(BadManifest, match="three"):
        Bundle.open(folder).verify("three")


@pytest.mark.parametrize("variant", [None, "one"])
def test_unlisted_weights_beside_a_model_are_found(folder: Path, variant: str | None) -> None:
    """ONNX Runtime would load them as the model's weights."""
    (folder / "one/m.onnx.data").write_bytes(b"other weights")

    with pytest.raises(BadBundle, match="one"):
        Bundle.open(folder).verify(variant)


def test_an_unlisted_file_is_found(folder: Path) -> None:
    (folder / "golden/more").touch()

    with pytest.raises(BadBundle, match="golden/more is not in the manifest"):
        Bundle.open(folder).verify()


def test_a_manifest_with_another_digest_is_refused(folder: Path) -> None:
    with pytest.raises(BadManifest, match="not sha256"):
        Bundle.open(folder, digest=f"sha256:{0:064}")


@pytest.mark.parametrize(("exists", "message"), [(True, "has no manifest.json"), (False, "nowhere does not exist")])
def test_a_folder_that_is_not_a_bundle_is_refused(tmp_path: Path, exists: bool, message: str) -> None:
    with pytest.raises(BadBundle, match=message) as refused:
        Bundle.open(tmp_path if exists else tmp_path / "nowhere")

    assert "hedgerow model build" in refused.value.remedy
