"""Signed pipelines on the node: verified, kept on disk, and unpacked for their stages.

    pipelines/<digest>.json   the document, written only after its signatures were verified
    pipelines/<digest>/       its files

Another run of the node starts with them without the region, as with models.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import structlog

from hedgerow import disk
from hedgerow.errors import HedgerowError
from hedgerow.models.bundle.manifest import digest_of
from hedgerow.node.pipelines.live_config import SignedPipelines
from hedgerow.pipeline.pipelines_document import PipelinesDocument, read_pipelines
from hedgerow.wire.fleet import ModelRef

log = structlog.get_logger(__name__)

_KEPT: Final = 2
"""Documents that stay on disk: the current one and the one before."""


class PipelinesFolder:
    """Verified documents in a folder. Its methods block.

    Args:
        folder: created when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, content: bytes, ref: ModelRef) -> SignedPipelines:
        """Store a verified document and its files.

        Raises:
            BadPipelines: its owner has signed something that is not valid here.
            OSError: it cannot be written.
        """
        document = read_pipelines(content)
        folder = self._unpack(document, ref)
        disk.replace(self._folder / f"{_hex(ref)}.json", content)
        self._forget_others(ref)
        return SignedPipelines(ref, document.pipelines, folder)

    def restore(self, ref: ModelRef) -> SignedPipelines | None:
        """Return an earlier run's document; None: it is not there, or damaged."""
        try:
            content = (self._folder / f"{_hex(ref)}.json").read_bytes()
            if digest_of(content) != ref.digest:
                raise OSError("its content does not match its digest")
            document = read_pipelines(content)
            return SignedPipelines(ref, document.pipelines, self._unpack(document, ref))
        except FileNotFoundError:
            return None
        except (OSError, HedgerowError) as error:
            log.warning("signed-pipelines-unreadable", pipelines=str(ref), error=str(error))
            return None

    def _unpack(self, document: PipelinesDocument, ref: ModelRef) -> Path:
        """Write the files; those that are there already are written again, as they may be damaged."""
        folder = self._folder / _hex(ref)
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in document.contents().items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            disk.replace(folder / path, content)
        return folder

    def _forget_others(self, ref: ModelRef) -> None:
        stored = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in stored[_KEPT:]:
            if path.stem != _hex(ref):
                path.unlink(missing_ok=True)
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)


def _hex(ref: ModelRef) -> str:
    return ref.digest.removeprefix("sha256:")
