"""Metadata of a repository in a folder: a file for each version, and the timestamp.

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
    """Reads the signed metadata of a repository.

    Attributes:
        folder: the repository.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def metadata(self) -> Path:
        """Folder of the metadata."""
        return self.folder / "metadata"

    def root(self) -> Metadata[Root]:
        """Return the newest root in the chain from the first. Raises: BadRepository: the chain is broken."""
        current = self.read("1.root", Root)
        while (self.metadata / f"{current.signed.version + 1}.root.json").exists():
            following = self.read(f"{current.signed.version + 1}.root", Root)
            try:
                for judge in (current.signed, following.signed):
                    judge.verify_delegate("root", following.signed_bytes, following.signatures)
            except RepositoryError as error:
                raise BadRepository(
                    f"{self.metadata}/{following.signed.version}.root.json does not follow from the previous root: {error}",
                    remedy="Restore it from a copy; nodes refuse it as it is.",
                ) from error
            current = following
        return current

    def timestamp(self) -> Metadata[Timestamp] | None:
        """Return the timestamp that nodes see; None: there is none yet."""
        return self.read("timestamp", Timestamp) if (self.metadata / "timestamp.json").exists() else None

    def snapshot(self) -> Metadata[Snapshot] | None:
        """Return the snapshot that nodes see; None: there is none yet."""
        timestamp = self.timestamp()
        return self.read(f"{timestamp.signed.snapshot_meta.version}.snapshot", Snapshot) if timestamp else None

    def targets(self) -> Metadata[Targets]:
        """Return the newest correctly signed list of owners. Raises: BadRepository: there is none."""
        newest = self.newest("targets", self.root().signed)
        if newest is None:
            raise BadRepository(
                f"{self.metadata} has no list of owners signed with the current keys",
                remedy="Sign it with them: `hedgerow trust renew targets --key KEY`.",
            )
        return newest

    def last_targets(self) -> Metadata[Targets]:
        """Return the newest list of owners, even if only replaced targets keys have signed it."""
        newest = self.newest("targets", self.root().signed)
        return newest or self.read(f"{self.latest_version('targets')}.targets", Targets)

    def to_renew(self) -> list[str]:
        """Return roles that have signed metadata, but none that is valid with their current keys."""
        root = self.root().signed
        targets = self.newest("targets", root)
        if targets is None:
            return ["targets"]
        owners = (targets.signed.delegations.roles or {}) if targets.signed.delegations else {}
        return [owner for owner in owners if self.latest_version(owner) and self.newest(owner, targets.signed) is None]

    def owners(self) -> dict[str, DelegatedRole]:
        """Return the owners and what they may sign."""
        delegations = self.last_targets().signed.delegations
        return dict(delegations.roles or {}) if delegations else {}

    def newest(self, role: str, delegator: Root | Targets) -> Metadata[Targets] | None:
        """Return the newest correctly signed metadata of targets or an owner; nodes may not see it yet."""
        snapshot = self.snapshot()
        seen = snapshot.signed.meta.get(f"{role}.json") if snapshot else None
        found: Metadata[Targets] | None = None
        version = seen.version if seen else 1
        while (self.metadata / f"{version}.{role}.json").exists():
            try:
                metadata = self.read(f"{version}.{role}", Targets)
                delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
            except (RepositoryError, BadRepository):
                # Not an error yet: the owner's key may have changed, or a file be half copied. Later versions may be valid.
                pass
            else:
                if metadata.signed.version == version:
                    found = metadata
            version += 1
        return found

    def latest_version(self, role: str) -> int:
        """Return the highest version that nodes may have seen or that has a file; 0: none."""
        snapshot = self.snapshot()
        seen = snapshot.signed.meta.get(f"{role}.json") if snapshot else None
        version = seen.version if seen else 0
        while (self.metadata / f"{version + 1}.{role}.json").exists():
            version += 1
        return version

    def read(self, name: str, kind: type[SomeSigned]) -> Metadata[SomeSigned]:
        """Read a metadata file. Raises: BadRepository: it is not metadata of that kind."""
        path = self.metadata / f"{name}.json"
        try:
            metadata: Metadata[SomeSigned] = Metadata.from_bytes(read(path))
        except DeserializationError as error:
            raise BadRepository(f"{path} is not metadata", remedy="Restore it from a copy.") from error
        if not isinstance(metadata.signed, kind):
            raise BadRepository(f"{path} holds {metadata.signed.type}", remedy="Restore it from a copy.")
        return metadata

    def meta(self, role: str, version: int) -> MetaFile:
        """Return the length and digest of a version, for a snapshot or timestamp."""
        return MetaFile.from_data(version, read(self.metadata / f"{version}.{role}.json"), ["sha256"])
