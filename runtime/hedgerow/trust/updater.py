"""tuf's client with a replaceable clock, and with files that survive a power cut and are written together at the end, for which
tuf has no hooks.

This is the only module that reaches into tuf's `Updater`; `tests/trust/test_updater.py` notices when tuf changes there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tuf.api.exceptions import ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Root, Signed, TargetFile, Targets, Timestamp
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.updater import Updater

from hedgerow.pki.files import make_folder, write
from hedgerow.trust.documents import TufFetcher
from hedgerow.trust.roles import TOP

_LIMITS: Final = UpdaterConfig(
    max_root_rotations=1024,
    root_max_length=512_000,
    timestamp_max_length=16_384,
    snapshot_max_length=2_000_000,
    targets_max_length=16_000_000,
)

_KEPT_MANIFESTS: Final = 64

_LAST_MOMENT: Final = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
"""Largest representable time: a clock, or a forged signing time, may exceed the calendar."""

Judge = Callable[[Root, Timestamp | None], float]
"""Returns the time in Unix seconds at which expiry is judged, from the root and the last valid timestamp."""


class JudgedUpdater(Updater):
    """tuf's client, for one refresh. Accepted metadata stays in memory until `store`, so that nobody waits for a source.

    Attributes:
        fetcher: fetches the documents; holds the last one.
    """

    def __init__(self, folder: Path, root: bytes, fetcher: TufFetcher, judge: Judge) -> None:
        """Start from a root.

        Raises:
            RepositoryError: `root` is not one.
            PkiError: the folder cannot be written.
        """
        make_folder(folder / "metadata" / "root_history")
        make_folder(folder / "manifests")
        self.fetcher = fetcher
        self._judge = judge
        self._accepted: dict[str, bytes] = {}  # by path, in the order of acceptance
        self._manifests = folder / "manifests"
        super().__init__(
            metadata_dir=str(folder / "metadata"),
            metadata_base_url="metadata/",
            target_dir=str(folder / "manifests"),
            target_base_url="targets/",
            fetcher=fetcher,
            config=replace(_LIMITS),
            bootstrap=root,
        )

    @property
    def judged_at(self) -> datetime:
        """The time at which expiry is judged."""
        return self._trusted_set.reference_time

    @property
    def root(self) -> Root:
        """The newest root."""
        return self._trusted_set.root

    @property
    def timestamp(self) -> Timestamp:
        """The newest timestamp."""
        return self._trusted_set.timestamp

    def trusted(self, role: str) -> Signed | None:
        """Return the trusted metadata of a role; None: none yet."""
        return self._trusted_set.get(role)

    def delegators(self, role: str) -> list[Root | Targets]:
        """Return the metadata that names a role's keys: the role must be correctly signed for each of them."""
        if role in TOP:
            return [self.root]
        owners = [each for each in self._trusted_set if isinstance(each, Targets) and each.delegations]
        return [each for each in owners if each.delegations and role in (each.delegations.roles or {})]

    def _load_timestamp(self) -> None:
        """Set the time of judgement, now that the root is final and before anything expires by it.

        Metadata after the timestamp is also judged by the timestamp's signing time.
        """
        self._settle_time(self._timestamp_before())
        if self.root.is_expired(self.judged_at):
            raise ExpiredMetadataError("root is expired")
        super()._load_timestamp()
        self._settle_time(self.timestamp)

    def _settle_time(self, timestamp: Timestamp | None) -> None:
        moment = self._judge(self.root, timestamp)
        self._trusted_set.reference_time = datetime.fromtimestamp(min(max(moment, 0.0), _LAST_MOMENT), UTC)

    def _timestamp_before(self) -> Timestamp | None:
        """Return the last accepted timestamp, if the root still names its key."""
        try:
            known = Metadata[Timestamp].from_bytes(self._load_local_metadata(Timestamp.type))
            self.root.verify_delegate(Timestamp.type, known.signed_bytes, known.signatures)
        except (OSError, RepositoryError):
            return None
        return known.signed if isinstance(known.signed, Timestamp) else None

    def store(self) -> None:
        """Write what was accepted, so that it survives a power cut: without it, rollbacks would go unnoticed.

        Raises: OSError, PkiError: it cannot be written.
        """
        for filename, data in self._accepted.items():
            write(Path(filename), data)
        self._accepted.clear()
        super()._update_root_symlink()

    def content(self, target: TargetFile) -> bytes:
        """Return the content of a target, from disk or from the source. Raises: as tuf's `download_target`."""
        if (cached := self.find_cached_target(target)) is not None:
            content = Path(cached).read_bytes()
            target.verify_length_and_hashes(content)
            return content
        arriving = self._manifests / f".{threading.get_ident()}"  # another thread may fetch the same one
        content = Path(self.download_target(target, str(arriving))).read_bytes()
        target.verify_length_and_hashes(content)
        arriving.replace(self._generate_target_file_path(target))
        return content

    def forget_old_manifests(self) -> None:
        """Keep the manifests used last; the others can be fetched again. Raises: OSError: the folder cannot be read."""
        files = [file for file in self._manifests.iterdir() if file.is_file()]
        files.sort(key=lambda file: file.stat().st_mtime, reverse=True)
        for file in files[_KEPT_MANIFESTS:]:
            file.unlink(missing_ok=True)

    def _load_local_metadata(self, rolename: str) -> bytes:
        path = str(Path(self._dir) / f"{quote(rolename, '')}.json")
        return self._accepted.get(path) or super()._load_local_metadata(rolename)

    def _persist_file(self, filename: str, data: bytes) -> None:
        self._accepted[filename] = data

    def _update_root_symlink(self) -> None:
        """Leave it to `store`."""
