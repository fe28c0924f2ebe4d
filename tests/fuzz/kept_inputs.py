"""The inputs that are kept: those that reach code no other reaches, in a ZIP file per target, and those that once failed.

corpus/TARGET.zip      found by fuzzing and minimised; named by their digests
failed/TARGET/NAME     inputs that once failed; the name says what they were
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
MOST_BYTES: Final = 24_000
"""Largest size of a target's ZIP file."""

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


def kept(target: str) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of a target's kept inputs, those that once failed first."""
    for path in sorted((HERE / "failed" / target).glob("*")):
        yield path.name, path.read_bytes()
    archive = HERE / "corpus" / f"{target}.zip"
    if archive.exists():
        with zipfile.ZipFile(archive) as file:
            for name in file.namelist():
                yield name, file.read(name)


def keep(target: str, inputs: Iterable[bytes]) -> int:
    """Keep these inputs, the shortest first, as far as they fit. Returns: how many are kept."""
    archive = HERE / "corpus" / f"{target}.zip"
    archive.parent.mkdir(exist_ok=True)
    count = size = 0
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for content in sorted(set(inputs), key=lambda each: (len(each), each)):
            entry = zipfile.ZipInfo(hashlib.sha256(content).hexdigest()[:12], _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, content)
            size = file.fp.tell() + 100 * count if file.fp else 0  # the directory at the end has some 60 bytes an entry
            count += 1
            if size > MOST_BYTES:
                break
    return count
