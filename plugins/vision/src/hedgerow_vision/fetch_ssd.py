"""Fetches an object detector: SSD MobileNetV2 on Open Images, 23 classes.

    python -m hedgerow_vision.fetch_ssd models/

The npm package `@mediapipe/objectron` (Apache-2.0, Google) contains model and labels in one asset file, whose index is
in a loader script. This extracts both, verifies their digests and writes `ssd_mobilenetv2_oidv4.tflite` and
`ssd_mobilenetv2_oidv4.txt`. Valid files are not fetched again. Needs npm.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from hedgerow import HedgerowError, disk

PACKAGE: Final = "@mediapipe/objectron@0.4.1675468480"
TARBALL_SHA256: Final = "fc3e37b326b05e8f596099c90b3e0931b05a56cd3160b9ac450b621794bac94c"
ASSETS: Final = "package/objectron_solution_packed_assets.data"
LOADER: Final = "package/objectron_solution_packed_assets_loader.js"
PARTS: Final = {
    "ssd_mobilenetv2_oidv4.tflite": (
        "object_detection_ssd_mobilenetv2_oidv4_fp16.tflite",
        "d0a5255bf8c4f5a0bc4240741a76c41d5e939f7655078f945f50ab53a9375da6",
    ),
    "ssd_mobilenetv2_oidv4.txt": (
        "object_detection_oidv4_labelmap.txt",
        "c148336a65f673013609a923fdcbdeec0f49df935045029c3746a3828a0e80e0",
    ),
}
"""File to write: its name in the package, and its SHA-256."""


class FetchFailed(HedgerowError):
    """The detector cannot be fetched, or its digest is wrong."""

    code = "fetch-failed"


def fetch_ssd(folder: Path) -> Path:
    """Fetch the detector into a folder.

    Returns: the model's path; the labels are beside it, as `.txt`.
    Raises: FetchFailed: npm is missing or fails, or a digest is wrong.
    """
    model = folder / "ssd_mobilenetv2_oidv4.tflite"
    if all(_has_digest(folder / name, digest) for name, (_, digest) in PARTS.items()):
        return model
    with tempfile.TemporaryDirectory() as scratch:
        tarball = _pack(Path(scratch))
        with tarfile.open(tarball) as archive:
            loader, assets = _member(archive, LOADER), _member(archive, ASSETS)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (inside, digest) in PARTS.items():
        content = extract(loader.decode(), assets, inside)
        if hashlib.sha256(content).hexdigest() != digest:
            raise FetchFailed(
                f"{inside} in {PACKAGE} does not match its known digest",
                remedy="Do not use it; report it to the maintainers.",
            )
        disk.replace(folder / name, content)
    return model


def extract(loader: str, assets: bytes, name: str) -> bytes:
    """Extract one file from packed assets.

    Args:
        loader: the script with the index, `"files": [{"filename": …, "start": …, "end": …}]`.
        assets: the asset file.
        name: of the file, without its folder.
    Raises: FetchFailed: the index does not list it.
    """
    index = re.search(r'"files":\s*(\[\{.*?\}\])', loader, re.DOTALL)
    for entry in json.loads(index[1]) if index else []:
        if entry["filename"].rpartition("/")[2] == name:
            return assets[entry["start"] : entry["end"]]
    raise FetchFailed(f"{PACKAGE} does not contain {name}", remedy="Report it to the maintainers.")


def _pack(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise FetchFailed("npm is not installed", remedy="`apt-get install npm` as root, or do without this model.")
    completed = subprocess.run(  # noqa: S603 - a fixed command with no outside input
        [npm, "pack", PACKAGE, "--ignore-scripts", "--loglevel=error", "--fetch-retry-mintimeout=1000", "--fetch-retry-factor=2"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    tarballs = list(folder.glob("*.tgz"))
    if completed.returncode or len(tarballs) != 1:
        reason = completed.stderr.strip().partition("\n")[0] or f"exit code {completed.returncode}"
        raise FetchFailed(
            f"npm pack {PACKAGE} failed: {reason}", remedy="Check the network and npm's registry; try again."
        )
    if not _has_digest(tarballs[0], TARBALL_SHA256):
        raise FetchFailed(
            f"{PACKAGE} does not match its known digest", remedy="Do not use it; report it to the maintainers."
        )
    return tarballs[0]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    if member is None:
        raise FetchFailed(f"{PACKAGE} does not contain {name}", remedy="Report it to the maintainers.")
    return member.read()


def _has_digest(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Fetch SSD MobileNetV2 (Open Images, 23 classes) from npm.")
    parser.add_argument("folder", type=Path, help="where to write the model and its labels")
    arguments = parser.parse_args()
    try:
        model = fetch_ssd(arguments.folder)
    except HedgerowError as error:
        parser.exit(1, f"{error.explain()}\n")
    sys.stdout.write(f"{model}\n")


if __name__ == "__main__":
    main()
