"""A process that fetches a real model is killed at random until the model is complete; it must then work."""

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
from tests.blobs.conftest import Testbed, manifest_of, noise
from tests.blobs.servers import Authority, FolderServer

from hedgerow.models.bundle.manifest import digest_of
from hedgerow.testing import processes

MODELS = Path(sysconfig.get_path("purelib")) / "rapidocr_onnxruntime" / "models"
SMALL, LARGE = MODELS / "ch_ppocr_mobile_v2.0_cls_infer.onnx", MODELS / "ch_PP-OCRv4_rec_infer.onnx"
CHUNK = 64 << 10


class Process:
    """The fetching process."""

    def __init__(self, *arguments: str) -> None:
        script = Path(__file__).with_name("fetching.py")
        self.process = processes.start(
            [sys.executable, "-u", str(script), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run_for(self, seconds: float) -> str | None:
        """Let it fetch for some time, then kill it. Returns: its `installed` line, if it finished first."""
        assert self.process.stdout is not None
        line = ""
        while "fetching" not in line:  # log lines come before
            line = self.process.stdout.readline()
            assert line, "the process ended by itself"
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
        rest = self.process.stdout.read()
        self.process.wait()
        return next((each for each in rest.splitlines() if each.startswith("installed")), None)


def same_output(model: Path, original: Path) -> bool:
    """Return whether real sessions give the same output for both files."""
    inputs = np.random.default_rng(1).random((2, 3, 48, 192), np.float32)
    ours, theirs = (onnxruntime.InferenceSession(path).run(None, {"x": inputs}) for path in (model, original))
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def kill_until_whole(testbed: Testbed, model: Path, *, bytes_per_s: float, longest_s: float, least: int) -> None:
    """Kill a fetching process until it has the model; repeat with a new store until `least` kills."""
    file = testbed.repository.add("model.onnx", model.read_bytes(), CHUNK)
    manifest = testbed.folder / "manifest.json"
    manifest.write_bytes(manifest_of([file]))
    testbed.wan.throttle(bytes_per_s)
    random, kills, rounds = Random(1), 0, 0
    while kills < least:
        rounds += 1
        before, runs = testbed.wan_bytes, 1
        arguments = [testbed.lower.url, "n1", str(testbed.folder / f"store-{rounds}"), str(manifest)]
        while (line := Process(*arguments).run_for(random.uniform(0, longest_s))) is None:
            runs += 1
        kills += runs - 1
        bundle = Path(line.split()[2])
        assert digest_of((bundle / "model.onnx").read_bytes()) == file.digest
        assert same_output(bundle / "model.onnx", model)
        # Chunks in flight at a kill are lost, and each run starts with a few chunks at once.
        assert testbed.wan_bytes - before <= 1.05 * file.size + runs * 6 * CHUNK
    print(f"{kills} kills, {rounds} complete fetches")


async def test_a_fetch_killed_at_random_ends_with_a_working_model(testbed: Testbed) -> None:
    """Short form of the next test."""
    async with testbed.served():
        await asyncio.to_thread(kill_until_whole, testbed, SMALL, bytes_per_s=600_000, longest_s=2.0, least=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_fetch_killed_a_hundred_times_ends_with_a_working_model(testbed: Testbed) -> None:
    """Full size of the previous test."""
    async with testbed.served():
        await asyncio.to_thread(kill_until_whole, testbed, LARGE, bytes_per_s=300_000, longest_s=1.2, least=100)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("source", ["region", "https"])
async def test_memory_does_not_grow_with_the_model_size(testbed: Testbed, tmp_path: Path, source: str) -> None:
    """A model of 200 MB takes as much memory as one of 2 MB, plus a few chunks."""
    largest = []
    async with testbed.served():
        for size in (2 << 20, 200 << 20):
            file = testbed.repository.add("model.onnx", noise(size, size), 256 << 10)
            manifest = tmp_path / f"{size}.json"
            manifest.write_bytes(manifest_of([file]))
            authority = Authority(tmp_path)
            with FolderServer(testbed.repository.folder, authority) as server:
                more = [server.url, str(authority.file)] if source == "https" else []
                arguments = [testbed.lower.url, "n1", str(tmp_path / f"store-{size}"), str(manifest), *more]
                line = await asyncio.to_thread(Process(*arguments).run_for, 500)
            assert line is not None
            largest.append(int(line.split()[1]))

    print(largest)
    assert largest[1] - largest[0] < 24 << 10
