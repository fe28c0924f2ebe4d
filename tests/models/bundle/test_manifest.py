"""Manifests: canonical bytes with one digest, and refusal of invalid ones and of paths outside the bundle."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.models.bundle.manifest import LARGEST_MANIFEST, BadManifest, Manifest, digest_of, read_manifest

DIGEST = digest_of(b"x")


def manifest(**changes: Any) -> dict[str, Any]:
    file = {"path": "variants/v/m.onnx", "size": 3, "digest": DIGEST, "chunks": [{"digest": DIGEST, "size": 3}]}
    variant = {"name": "v", "format": "onnx", "precision": "fp32", "files": [file], "model_digest": DIGEST}
    variant["needs"] = {"backends": ["onnxruntime"]}
    return {"name": "door", "version": "1.0.0", "inputs": [], "outputs": [], "variants": [variant], **changes}


def canonical(content: dict[str, Any]) -> bytes:
    """Encode a document canonically, so that it is refused for its content."""
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS)


def test_reading_and_encoding_a_manifest_keeps_its_digest() -> None:
    original = Manifest.model_validate(manifest())

    decoded = read_manifest(original.encode(), original.digest)

    assert decoded == original
    assert decoded.encode() == original.encode()
    assert original.digest == f"sha256:{hashlib.sha256(original.encode()).hexdigest()}"


def test_a_manifest_with_another_digest_is_refused() -> None:
    expected = Manifest.model_validate(manifest())
    other = Manifest.model_validate(manifest(version="1.0.1"))

    with pytest.raises(BadManifest, match="not sha256"):
        read_manifest(other.encode(), expected.digest)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../up", "a/../../b", "a\\b", "", ".", "a//b", "a/", "./a", "manifest.json", "a\0b"]
)
def test_a_path_that_leads_out_of_the_bundle_is_refused(path: str) -> None:
    bad = manifest()
    bad["variants"][0]["files"][0]["path"] = path

    with pytest.raises(BadManifest):
        read_manifest(canonical(bad))


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": "hedgerow.model/2"},
        {"version": "1.0"},
        {"name": "no name"},
        {"variants": []},
        {"serving": {"path": "/elsewhere"}},
        {"serving": {"no-such-setting": 1}},
        {"surprise": True},
    ],
    ids=str,
)
def test_an_invalid_manifest_is_refused(changes: dict[str, Any]) -> None:
    assert read_manifest(canonical(manifest())).name == "door"
    with pytest.raises(BadManifest) as refused:
        read_manifest(canonical(manifest(**changes)))

    assert refused.value.remedy


def test_chunks_must_make_up_their_file() -> None:
    bad = manifest()
    bad["variants"][0]["files"][0]["size"] = 4

    with pytest.raises(BadManifest, match="chunks"):
        read_manifest(canonical(bad))


def test_a_manifest_that_is_too_large_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(BadManifest, match="more than"):
        read_manifest(bytes(LARGEST_MANIFEST + 1))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_refused(content: bytes) -> None:
    with suppress(BadManifest):
        read_manifest(content)


LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
ANYTHING = st.recursive(
    LEAVES, lambda inside: st.lists(inside, max_size=2) | st.dictionaries(st.text(), inside, max_size=2)
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the paths of all values in a document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, one in inside for inner in paths(one, (*path, key)))]


@given(st.data())
def test_a_manifest_with_any_value_anywhere_is_read_or_refused(data: st.DataObject) -> None:
    """A manifest that is read can also be encoded."""
    document = orjson.loads(Manifest.model_validate(manifest(labels=["a"], parameters={"p": [1]})).encode())
    *parents, last = data.draw(st.sampled_from(paths(document)[1:]))
    parent = document
    for key in parents:
        parent = parent[key]
    parent[last] = data.draw(ANYTHING)

    with suppress(BadManifest):
        read_manifest(canonical(document)).encode()
