"""Manifests: canonical bytes, one digest, and nothing that leads out of the bundle."""

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
    """As a manifest's bytes have to be, so that it is refused for what it says."""
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS)


def test_what_was_read_and_written_again_has_the_same_digest() -> None:
    once = Manifest.model_validate(manifest())

    again = read_manifest(once.encode(), once.digest)

    assert again == once
    assert again.encode() == once.encode()
    assert once.digest == f"sha256:{hashlib.sha256(once.encode()).hexdigest()}"


def test_another_manifest_than_the_one_that_was_meant_is_refused() -> None:
    meant = Manifest.model_validate(manifest())
    other = Manifest.model_validate(manifest(version="1.0.1"))

    with pytest.raises(BadManifest, match="not sha256"):
        read_manifest(other.encode(), meant.digest)


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
def test_what_does_not_hold_together_is_refused(changes: dict[str, Any]) -> None:
    assert read_manifest(canonical(manifest())).name == "door"
    with pytest.raises(BadManifest) as refused:
        read_manifest(canonical(manifest(**changes)))

    assert refused.value.remedy


def test_chunks_must_make_up_their_file() -> None:
    bad = manifest()
    bad["variants"][0]["files"][0]["size"] = 4

    with pytest.raises(BadManifest, match="chunks"):
        read_manifest(canonical(bad))


def test_a_manifest_without_end_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(BadManifest, match="more than"):
        read_manifest(bytes(LARGEST_MANIFEST + 1))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_refused(content: bytes) -> None:
    with suppress(BadManifest):
        read_manifest(content)


LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
ANYTHING = st.recursive(
    LEAVES, lambda inside: st.lists(inside, max_size=2) | st.dictionaries(st.text(), inside, max_size=2)
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a document, from the top."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inside for place in places(one, (*path, key)))]


@given(st.data())
def test_a_manifest_with_anything_anywhere_is_read_or_refused(data: st.DataObject) -> None:
    """And what is read can be written."""
    whole = orjson.loads(Manifest.model_validate(manifest(labels=["a"], parameters={"p": [1]})).encode())
    *above, last = data.draw(st.sampled_from(places(whole)[1:]))
    where = whole
    for key in above:
        where = where[key]
    where[last] = data.draw(ANYTHING)

    with suppress(BadManifest):
        read_manifest(canonical(whole)).encode()
