"""Chunks make up their file, and versions of a file share the chunks they have in common."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.models.bundle import model_file
from hedgerow.models.bundle.chunks import CHUNK_BYTES, chunk_file, describe_file, first_cut, pieces
from hedgerow.models.bundle.manifest import digest_of


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def test_chunks_make_up_their_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(noise(3_000_000))

    whole = b"".join(pieces(path))
    file = describe_file(path, "variants/v/file")

    assert whole == path.read_bytes()
    assert file.chunks == chunk_file(path)
    assert [chunk.digest for chunk in file.chunks] == [digest_of(piece) for piece in pieces(path)]
    assert file.digest == f"sha256:{hashlib.sha256(whole).hexdigest()}"
    assert all(CHUNK_BYTES // 4 < chunk.size <= CHUNK_BYTES for chunk in file.chunks[:-1])


def test_an_empty_file_has_no_chunks(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert chunk_file(tmp_path / "file") == ()


@given(st.binary(max_size=400), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_a_cut_is_within_bounds_and_depends_on_no_byte_beyond_the_largest_chunk(
    tail: bytes, parts: int, seed: int
) -> None:
    content = noise(parts * 70_000, seed) + tail

    size = first_cut(content)

    assert 0 <= size <= min(len(content), CHUNK_BYTES)
    assert size or not content
    assert size == first_cut(content[:CHUNK_BYTES])
    if size < len(content):
        assert size > CHUNK_BYTES // 4


def test_a_run_of_one_byte_is_stored_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4_000_000))

    assert len({chunk.digest for chunk in chunk_file(tmp_path / "file")}) <= 2


def test_versions_of_a_real_model_share_chunks_although_all_bytes_have_moved(tmp_path: Path) -> None:
    """The exporter's name comes before the weights; fixed boundaries would share nothing."""
    first = model_file.resolve("package:silero_vad/data/silero_vad.onnx", Path()).path
    model = onnx.load(first)
    model.producer_version += ".1"
    second = tmp_path / "second.onnx"
    second.write_bytes(model.SerializeToString())
    original = tmp_path / "first.onnx"
    original.write_bytes(onnx.load(first).SerializeToString())

    before = {chunk.digest for chunk in chunk_file(original)}
    shared = sum(chunk.size for chunk in chunk_file(second) if chunk.digest in before)

    assert shared > 0.8 * second.stat().st_size
