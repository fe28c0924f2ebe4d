"""The metadata of a repository, as it lies in a folder: each version a file of its own, and the timestamp.

metadata/1.root.json … timestamp.json
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Metadata, MetaFile, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from hedgerow.pki.files import read
from hedgerow.trust.errors import BadRepository

SomeSigned = TypeVar("SomeSigned", Root, Targets, Snapshot, Timestamp)


class SignedFolder:
    """What the roles of a repository have said.

    Attributes:
        folder: the repository.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def metadata(self) -> Path:
        """Where metadata is."""
        return self.folder / "metadata"

    def root(self) -> Metadata[Root]:
        """The newest root that follows from the first. Raises: BadRepository: the chain is broken."""
        current = self.read("1.root", Root)
        while (self.metadata / f"{current.signed.version + 1}.root.json").exists():
            following = self.read(f"{current.signed.version + 1}.root", Root)
            try:
                for judge in (current.signed, following.signed):
                    judge.verify_delegate("root", following.signed_bytes, following.signatures)
            except RepositoryError as error:
                raise BadRepository(
                    f"{self.metadata}/{following.signed.version}.root.json does not follow the one before: {error}",
                    remedy="Restore it from a copy; nodes refuse it as it is.",
                ) from error
            current = following
        return current

    def timestamp(self) -> Metadata[Timestamp] | None:
        """What nodes see; None: nothing yet."""
        return self.read("timestamp", Timestamp) if (self.metadata / "timestamp.json").exists() else None

    def snapshot(self) -> Metadata[Snapshot] | None:
        """The snapshot that nodes see."""
        timestamp = self.timestamp()
        return self.read(f"{timestamp.signed.snapshot_meta.version}.snapshot", Snapshot) if timestamp else None

    def targets(self) -> Metadata[Targets]:
        """The newest list of owners that is signed as it must be. Raises: BadRepository: there is none."""
        newest = self.newest("targets", self.root().signed)
        if newest is None:
            raise BadRepository(
                f"{self.metadata} has no list of owners that the keys which count now have signed",
                remedy="Sign it with these: `hedgerow trust renew targets --key KEY`.",
            )
        return newest

    def last_targets(self) -> Metadata[Targets]:
        """The newest list of owners; if the targets role's keys have changed, that of the old ones: to be signed anew."""
        newest = self.newest("targets", self.root().signed)
        return newest or self.read(f"{self.latest_version('targets')}.targets", Targets)

    def to_renew(self) -> list[str]:
        """Roles that have signed something of which nothing counts with the keys they have now."""
        root = self.root().signed
        targets = self.newest("targets", root)
        if targets is None:
            return ["targets"]
        owners = (targets.signed.delegations.roles or {}) if targets.signed.delegations else {}
        return [owner for owner in owners if self.latest_version(owner) and self.newest(owner, targets.signed) is None]

    def owners(self) -> dict[str, DelegatedRole]:
        """Owners and what they may sign."""
        delegations = self.last_targets().signed.delegations
        return dict(delegations.roles or {}) if delegations else {}

    def newest(self, role: str, delegator: Root | Targets) -> Metadata[Targets] | None:
        """The newest metadata of targets or of an owner that is signed as it must be; nodes may not see it yet."""
        snapshot = self.snapshot()
        seen = snapshot.signed.meta.get(f"{role}.json") if snapshot else None
        found: Metadata[Targets] | None = None
        version = seen.version if seen else 1
        while (self.metadata / f"{version}.{role}.json").exists():
            try:
                metadata = self.read(f"{version}.{role}", Targets)
                delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
            except (RepositoryError, BadRepository):
                # Not for us to judge alone: an owner's key may have changed, a file be half copied. What follows may count.
                pass
            else:
                if metadata.signed.version == version:
                    found = metadata
            version += 1
        return found

    def latest_version(self, role: str) -> int:
        """The highest version that nodes may have seen, or that lies there signed; 0: none."""
        snapshot = self.snapshot()
        seen = snapshot.signed.meta.get(f"{role}.json") if snapshot else None
        version = seen.version if seen else 0
        while (self.metadata / f"{version + 1}.{role}.json").exists():
            version += 1
        return version

    def read(self, name: str, kind: type[SomeSigned]) -> Metadata[SomeSigned]:
        """A file of metadata. Raises: BadRepository: it is none of that kind."""
        path = self.metadata / f"{name}.json"
        try:
            metadata: Metadata[SomeSigned] = Metadata.from_bytes(read(path))
        except DeserializationError as error:
            raise BadRepository(f"{path} is no metadata", remedy="Restore it from a copy.") from error
        if not isinstance(metadata.signed, kind):
            raise BadRepository(f"{path} holds {metadata.signed.type}", remedy="Restore it from a copy.")
        return metadata

    def meta(self, role: str, version: int) -> MetaFile:
        """What a snapshot or timestamp says of a version: its length and digest."""
        return MetaFile.from_data(version, read(self.metadata / f"{version}.{role}.json"), ["sha256"])
