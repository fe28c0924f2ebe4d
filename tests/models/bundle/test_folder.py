"""A bundle on the disk is what its manifest says, or the file that is not is named."""

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
    """A bundle with two variants and a golden case of one of them. Nothing in it is run."""
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


def test_a_whole_bundle_is_sound(folder: Path) -> None:
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


@pytest.mark.parametrize("harm", [truncate, flip, extend, Path.unlink])
@pytest.mark.parametrize("name", ["two/m.onnx", "golden/out"])
def test_a_file_that_is_not_what_the_manifest_says_is_named(
    folder: Path, harm: Callable[[Path], None], name: str
) -> None:
    harm(folder / name)

    with pytest.raises(BadBundle, match=name) as refused:
        Bundle.open(folder).verify()

    assert refused.value.remedy


def test_a_node_checks_what_it_has_fetched(folder: Path) -> None:
    """It fetches one variant and its golden cases."""
    (folder / "one/m.onnx").unlink()

    Bundle.open(folder).verify("two")
    with pytest.raises(BadBundle, match=r"one/m\.onnx"):
        Bundle.open(folder).verify("one")
    with pytest.raises(BadManifest, match="three"):
        Bundle.open(folder).verify("three")


@pytest.mark.parametrize("variant", [None, "one"])
def test_weights_put_beside_a_model_are_found(folder: Path, variant: str | None) -> None:
    """ONNX Runtime would read them as the model's own."""
    (folder / "one/m.onnx.data").write_bytes(b"other weights")

    with pytest.raises(BadBundle, match="one"):
        Bundle.open(folder).verify(variant)


def test_a_file_that_nobody_listed_is_found(folder: Path) -> None:
    (folder / "golden/more").touch()

    with pytest.raises(BadBundle, match="golden/more is not in the manifest"):
        Bundle.open(folder).verify()


def test_another_manifest_than_the_one_that_is_meant_is_refused(folder: Path) -> None:
    with pytest.raises(BadManifest, match="not sha256"):
        Bundle.open(folder, digest=f"sha256:{0:064}")


@pytest.mark.parametrize(("there", "says"), [(True, "has no manifest.json"), (False, "no folder")])
def test_what_is_no_bundle_is_said_to_be_none(tmp_path: Path, there: bool, says: str) -> None:
    with pytest.raises(BadBundle, match=says) as refused:
        Bundle.open(tmp_path if there else tmp_path / "nowhere")

    assert "hedgerow model build" in refused.value.remedy
