"""tuf's client, with what it leaves no hook for: another clock than the machine's, and files that survive a power cut.

This is the only module that reaches into tuf's `Updater`; `tests/trust/test_updater.py` notices when tuf changes there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tuf.api.exceptions import ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Root, Signed, Targets, Timestamp
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

_LAST_MOMENT: Final = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
"""A clock, or a thief's signature, may say what no calendar has."""

Judge = Callable[[Root, Timestamp | None], float]
"""The time, Unix seconds, by which metadata is judged: given the root, and the timestamp that was good before."""


class JudgedUpdater(Updater):
    """tuf's client, for one refresh.

    Attributes:
        fetcher: where documents came from; it knows the last.
    """

    def __init__(self, folder: Path, root: bytes, fetcher: TufFetcher, judge: Judge) -> None:
        """Begin at a root.

        Raises:
            RepositoryError: `root` is none.
            PkiError: the folder cannot be written.
        """
        make_folder(folder / "metadata" / "root_history")
        make_folder(folder / "manifests")
        self.fetcher = fetcher
        self._judge = judge
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
        """The time by which metadata is judged."""
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
        """What is believed of a role; None: nothing yet."""
        return self._trusted_set.get(role)

    def delegators(self, role: str) -> list[Root | Targets]:
        """Who say whose keys count for a role: it has to be signed for each who leads to it."""
        if role in TOP:
            return [self.root]
        owners = [each for each in self._trusted_set if isinstance(each, Targets) and each.delegations]
        return [each for each in owners if each.delegations and role in (each.delegations.roles or {})]

    def _load_timestamp(self) -> None:
        """The root is final from here on, so the time can be settled, before anything is judged by it.

        What comes after the timestamp is judged by when that was signed too.
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
        """What this node believed last, if the root still lets its key count."""
        try:
            known = Metadata[Timestamp].from_bytes(self._load_local_metadata(Timestamp.type))
            self.root.verify_delegate(Timestamp.type, known.signed_bytes, known.signatures)
        except (OSError, RepositoryError):
            return None
        return known.signed if isinstance(known.signed, Timestamp) else None

    def _persist_file(self, filename: str, data: bytes) -> None:
        """Rollbacks are noticed by what is kept here, so it has to be there after a power cut."""
        write(Path(filename), data)
