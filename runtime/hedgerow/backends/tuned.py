"""Stored results of `hedgerow tune`: the best settings for a model on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Choice:
    """The best settings found.

    Attributes:
        backend: name of the backend.
        streams: concurrent inferences.
        threads: threads per inference.
        max_batch: most rows in a batch.
        rows_per_s: measured rows per second.
    """

    backend: str
    streams: int
    threads: int
    max_batch: int
    rows_per_s: float


def machine(cores: int) -> str:
    """Return what a measurement is valid for: the processor's model and the number of cores the node may use."""
    return f"{_processor()}, {cores} cores"


def load(state_dir: Path, digest: str, device: str, cores: int) -> Choice | None:
    """Return the choice stored for a model on this machine; None: it has not been tuned here."""
    try:
        stored = json.loads(_file(state_dir, digest, device, cores).read_bytes())
        return Choice(**stored["choice"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # missing, or written by another version


def save(state_dir: Path, digest: str, device: str, cores: int, choice: Choice, **about: Any) -> Path:
    """Store a choice atomically.

    Args:
        about: further fields, for human readers.
    Returns: the file.
    """
    file = _file(state_dir, digest, device, cores)
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"choice": asdict(choice), "digest": digest, "machine": machine(cores), **about}, indent=2)
    handle, draft = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".json")
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        Path(draft).replace(file)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    return file


def _file(state_dir: Path, digest: str, device: str, cores: int) -> Path:
    place = hashlib.sha256(f"{machine(cores)}, {device.upper()}".encode()).hexdigest()[:12]
    return state_dir / "tuned" / f"{digest.rpartition(':')[2][:32]}-{place}.json"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    # x86 has `model name`; ARM boards have `Model`, or only the core's part number.
    found = re.search(r"^(?:model name|Model|CPU part)\s*:\s*(.+)$", text, re.MULTILINE)
    return f"{platform.machine()} {found[1].strip()}" if found else platform.machine()
