"""A process that fetches a real model is killed at random, again and again, until it has it whole; then that serves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import sysconfig
from pathlib import Path
from random import Random

import numpy as np
import onnxruntime
import pytest
from tests.blobs.conftest import Estate, made_manifest, noise
from tests.blobs.servers import Authority, FolderServer

from hedgerow.models.bundle.manifest import digest_of
from hedgerow.testing import processes

MODELS = Path(sysconfig.get_path("purelib")) / "rapidocr_onnxruntime" / "models"
SMALL, LARGE = MODELS / "ch_ppocr_mobile_v2.0_cls_infer.onnx", MODELS / "ch_PP-OCRv4_rec_infer.onnx"
CHUNK = 64 << 10


class Process:
    """The process, with what it said."""

    def __init__(self, *arguments: str) -> None:
        script = Path(__file__).with_name("fetching.py")
        self.process = processes.start(
            [sys.executable, "-u", str(script), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def lives(self, seconds: float) -> str | None:
        """Let it fetch for so long and kill it. Returns: what it said of the whole, if it was there first."""
        assert self.process.stdout is not None
        said = ""
        while "fetching" not in said:  # its log comes before
            said = self.process.stdout.readline()
            assert said, "it ended by itself"
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
        rest = self.process.stdout.read()
        self.process.wait()
        return next((line for line in rest.splitlines() if line.startswith("whole")), None)


def serves_as(model: Path, original: Path) -> bool:
    """Whether a real session gives with one file what it gives with the other."""
    inputs = np.random.default_rng(1).random((2, 3, 48, 192), np.float32)
    ours, theirs = (onnxruntime.InferenceSession(path).run(None, {"x": inputs}) for path in (model, original))
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def kill_until_whole(estate: Estate, model: Path, *, bytes_per_s: float, longest_s: float, least: int) -> None:
    """Kill a process that fetches until it has the model; begin anew until that were enough kills."""
    file = estate.repository.add("model.onnx", model.read_bytes(), CHUNK)
    manifest = estate.folder / "manifest.json"
    manifest.write_bytes(made_manifest([file]))
    estate.wan.throttle(bytes_per_s)
    random, kills, rounds = Random(1), 0, 0
    while kills < least:
        rounds += 1
        before, lives = estate.wan_bytes, 1
        arguments = [estate.lower.url, "n1", str(estate.folder / f"store-{rounds}"), str(manifest)]
        while (said := Process(*arguments).lives(random.uniform(0, longest_s))) is None:
            lives += 1
        kills += lives - 1
        bundle = Path(said.split()[2])
        assert digest_of((bundle / "model.onnx").read_bytes()) == file.digest
        assert serves_as(bundle / "model.onnx", model)
        # What was under way at a kill is lost, and each life begins with a few chunks at once.
        assert estate.wan_bytes - before <= 1.05 * file.size + lives * 6 * CHUNK
    print(f"{kills} kills, {rounds} times whole")


async def test_a_fetch_killed_at_random_ends_with_a_working_model(estate: Estate) -> None:
    """As the next, a few times."""
    async with estate.served():
        await asyncio.to_thread(kill_until_whole, estate, SMALL, bytes_per_s=600_000, longest_s=2.0, least=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_fetch_killed_a_hundred_times_ends_with_a_working_model(estate: Estate) -> None:
    """Full size of the one before."""
    async with estate.served():
        await asyncio.to_thread(kill_until_whole, estate, LARGE, bytes_per_s=300_000, longest_s=1.2, least=100)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("source", ["region", "https"])
async def test_memory_does_not_grow_with_the_model_size(estate: Estate, tmp_path: Path, source: str) -> None:
    """200 MB take what 2 MB take, and a few chunks."""
    largest = []
    async with estate.served():
        for size in (2 << 20, 200 << 20):
            file = estate.repository.add("model.onnx", noise(size, size), 256 << 10)
            manifest = tmp_path / f"{size}.json"
            manifest.write_bytes(made_manifest([file]))
            authority = Authority(tmp_path)
            with FolderServer(estate.repository.folder, authority) as server:
                more = [server.url, str(authority.file)] if source == "https" else []
                arguments = [estate.lower.url, "n1", str(tmp_path / f"store-{size}"), str(manifest), *more]
                said = await asyncio.to_thread(Process(*arguments).lives, 500)
            assert said is not None
            largest.append(int(said.split()[1]))

    print(largest)
    assert largest[1] - largest[0] < 24 << 10
