"""A repository of models: signed metadata, manifests, and the chunks they list.

    metadata/1.root.json … timestamp.json     the roles' metadata, a file for each version
    targets/NAME/VERSION/HASH.manifest.json   the manifest of a version
    targets/NAME/VERSION/HASH.pipelines.json  signed pipelines, with their files
    blobs/sha256/ab/HEX                       chunks
    staged/3.root.json                        changes that need further signatures

Rules:
- A file is written aside, synced and renamed. Files are complete before anything refers to them: chunks, manifest,
  owner's metadata, snapshot; the timestamp last. So a publish that is killed midway has changed nothing that a node
  sees, and can be repeated.
- Publishing needs only the owner's key: nodes see the version once a holder of the online key includes it in a snapshot.
  The online key is never in the repository's folder, because that folder is handed out.
- A version is published once. Publishing it again changes nothing; different content is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Metadata, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from hedgerow.labels import Selector
from hedgerow.models.bundle.manifest import MANIFEST, PIPELINES, digest_of, read_manifest
from hedgerow.pki.files import locked, make_folder, read, write
from hedgerow.trust.chunks import put_chunks
from hedgerow.trust.errors import BadRepository, NotAllowed, VersionPublished
from hedgerow.trust.keys import Secrets, open_signer
from hedgerow.trust.metadata import SignedFolder
from hedgerow.trust.roles import REFRESH_EVERY, custom, lifetime, selector_of, signed_at, stamp, target_path

Clock = Callable[[], float]


class Publishable(Protocol):
    """A bundle, as far as publishing needs it."""

    @property
    def folder(self) -> Path:
        """Folder of its manifest and files."""
        ...


@dataclass(frozen=True, slots=True)
class Published:
    """Outcome of publishing.

    Attributes:
        owner: who signed.
        path: of the target.
        digest: identifies the bundle; rollouts name it.
        selector: the nodes it is for; empty: all.
        chunks, bytes: how many were added; the others existed.
        changed: whether the owner's metadata changed.
        live: whether nodes see it; else the online key must include it first.
    """

    name: str
    version: str
    digest: str
    owner: str
    path: str
    selector: str
    chunks: int
    bytes: int
    changed: bool
    live: bool


class Repository(SignedFolder):
    """A repository in a folder.

    Attributes:
        online_key: file of the key for snapshot and timestamp; need not exist.
    """

    def __init__(
        self, folder: Path, online_key: Path | None = None, *, secrets: Secrets | None = None, clock: Clock = time.time
    ) -> None:
        super().__init__(folder)
        self.online_key = online_key or online_key_of(folder)
        self._secrets = secrets
        self._clock = clock

    @classmethod
    def open(
        cls, folder: Path, online_key: Path | None = None, *, secrets: Secrets | None = None, clock: Clock = time.time
    ) -> Repository:
        """Open the repository in a folder.

        Raises: BadRepository: there is none.
        """
        repository = cls(folder, online_key, secrets=secrets, clock=clock)
        if not (repository.metadata / "1.root.json").exists():
            raise BadRepository(f"{folder} is not a repository: it has no metadata/1.root.json")
        return repository

    def require_absent(self) -> None:
        """Raises: BadRepository: there is one already."""
        if (self.metadata / "1.root.json").exists():
            raise BadRepository(f"{self.folder} is a repository already", remedy="`hedgerow trust status` shows it.")

    @property
    def has_online_key(self) -> bool:
        """Whether signed metadata can be made visible to nodes from here."""
        return self.online_key.exists()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Lock the repository against other changes."""
        with locked(self.folder):
            yield

    def sign(self, signed: Signed, role: str, signers: Sequence[Signer]) -> Metadata[Any]:
        """Sign metadata that is valid from now on."""
        stamp(signed, role, self._clock())
        metadata: Metadata[Any] = Metadata(signed)
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata

    def put(self, role: str, metadata: Metadata[Any]) -> None:
        """Write a version of a role's metadata, except the timestamp's."""
        write(self.metadata / f"{metadata.signed.version}.{role}.json", metadata.to_bytes())

    def publish(
        self,
        bundle: Publishable,
        signer: Signer | Sequence[Signer],
        selector: Selector | None = None,
        *,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Published:
        """Publish a version of a model.

        Args:
            signer: the owner's key, or several if the owner's threshold requires it.
            selector: the nodes it is for; None: all.
            progress: called with the number of bytes just processed.
        Raises:
            NotAllowed: the keys may not sign for that model.
            VersionPublished: it exists with other content.
            BadManifest: the bundle's manifest cannot be used.
            BadRepository: a file of the bundle does not match its manifest.
        """
        content = read(bundle.folder / MANIFEST)
        manifest = read_manifest(content)
        path = target_path(manifest.name, manifest.version)
        return self._publish(
            path, content, signer, selector, lambda: put_chunks(self.folder, bundle.folder, manifest, progress)
        )

    def publish_pipelines(
        self,
        name: str,
        version: str,
        content: bytes,
        signer: Signer | Sequence[Signer],
        selector: Selector | None = None,
    ) -> Published:
        """Publish a version of pipelines: a `PipelinesDocument`; other arguments and errors as for `publish`."""
        return self._publish(target_path(name, version, PIPELINES), content, signer, selector, lambda: (0, 0))

    def _publish(
        self,
        path: str,
        content: bytes,
        signer: Signer | Sequence[Signer],
        selector: Selector | None,
        put: Callable[[], tuple[int, int]],
    ) -> Published:
        signers, selector = [signer] if isinstance(signer, Signer) else list(signer), selector or Selector()
        directory, _, file = path.rpartition("/")
        name, _, version = directory.partition("/")
        with self.changing():
            targets = self.targets().signed
            owner = self._owner_of(path, targets, signers)
            newest = self.newest(owner.name, targets)
            if newest is None and self.latest_version(owner.name):
                raise NotAllowed(
                    f"{owner.name} signed its versions with keys it no longer has",
                    remedy=f"Sign the ones to keep again first: `hedgerow trust renew {owner.name} --key KEY`.",
                )
            signed = newest.signed if newest else Targets()
            target = TargetFile.from_data(path, content, ["sha256"])
            target.unrecognized_fields["custom"] = custom(selector)
            there = signed.targets.get(path)
            if there is not None and there.hashes != target.hashes:
                raise VersionPublished(
                    f"{name} {version} is published as sha256:{there.hashes.get('sha256')}; this is "
                    f"{digest_of(content)}"
                )
            chunks, size = put()
            make_folder(self.folder / "targets" / directory)
            write(self.folder / "targets" / directory / f"{target.hashes['sha256']}.{file}", content)
            changed = there is None or str(selector_of(there)) != str(selector)
            if changed:
                signed.targets[path] = target
                signed.version = self.latest_version(owner.name) + 1
                self.put(owner.name, self.sign(signed, owner.name, signers))
            live = self.has_online_key
            if live:
                self.include_signed()
        return Published(
            name=name,
            version=version,
            digest=digest_of(content),
            owner=owner.name,
            path=path,
            selector=str(selector),
            chunks=chunks,
            bytes=size,
            changed=changed,
            live=live,
        )

    def refresh_timestamp(self, now: float | None = None) -> bool:
        """Include what owners have signed, and sign the timestamp if that was not done today.

        Args:
            now: Unix seconds; None: read the clock.
        Returns: whether there was anything to do.
        Raises:
            NotAllowed: the online key is missing, or is not the one the root names.
            KeyUnusable: it cannot be read.
            BadRepository: the clock is behind the time at which the last timestamp was signed: nodes would refuse the new one.
        """
        with self.changing():
            return self.include_signed(now)

    def include_signed(self, now: float | None = None) -> bool:
        """Do the same as `refresh_timestamp`, for a caller that holds the lock."""
        now = self._clock() if now is None else now
        root, targets = self.root().signed, self.targets()
        seen_timestamp, seen_snapshot = self.timestamp(), self.snapshot()
        last = (
            signed_at(seen_timestamp.signed)
            if seen_timestamp and _verified(seen_timestamp, "timestamp", root)
            else None
        )
        if last is not None and now < last - 60:
            raise BadRepository(
                f"The clock is {last - now:,.0f} s behind the time at which the last timestamp was signed",
                remedy="Set this machine's clock. If it was ahead then, rotate the online key: see docs/operator/trust.md.",
            )
        meta = dict(seen_snapshot.signed.meta) if seen_snapshot else {}  # nodes refuse a snapshot that omits a role
        meta["targets.json"] = self.meta("targets", targets.signed.version)
        for owner in self.owners():
            newest = self.newest(owner, targets.signed)
            if newest is not None:
                meta[f"{owner}.json"] = self.meta(owner, newest.signed.version)
        snapshot_counts = seen_snapshot is not None and _counts(seen_snapshot, "snapshot", root, now)
        timestamp_counts = seen_timestamp is not None and _counts(seen_timestamp, "timestamp", root, now)
        if seen_snapshot is not None and snapshot_counts and meta == seen_snapshot.signed.meta:
            if timestamp_counts:
                return False
            version = seen_snapshot.signed.version
        else:
            version = seen_snapshot.signed.version + 1 if seen_snapshot else 1
            self.put("snapshot", self._sign_online(Snapshot(version=version, meta=meta), "snapshot", now))
        timestamp = Timestamp(
            version=seen_timestamp.signed.version + 1 if seen_timestamp else 1,
            snapshot_meta=self.meta("snapshot", version),
        )
        write(self.metadata / "timestamp.json", self._sign_online(timestamp, "timestamp", now).to_bytes())
        return True

    def _sign_online(self, signed: Signed, role: str, now: float) -> Metadata[Any]:
        if not self.has_online_key:
            raise NotAllowed(
                f"The online key {self.online_key} does not exist here",
                remedy="Run this where the key is, or name it: `--online-key FILE`.",
            )
        signer = open_signer(str(self.online_key), self._secrets or Secrets.gather())
        if signer.public_key.keyid not in self.root().signed.roles[role].keyids:
            raise NotAllowed(
                f"{self.online_key} is not the key that the root names for the {role}",
                remedy="Use the right online key, or rotate it: `hedgerow trust rotate online`.",
            )
        stamp(signed, role, now)
        metadata: Metadata[Any] = Metadata(signed)
        metadata.sign(signer)
        return metadata

    def _owner_of(self, path: str, targets: Targets, signers: Sequence[Signer]) -> DelegatedRole:
        keys = {signer.public_key.keyid for signer in signers}
        roles = (targets.delegations.roles or {}) if targets.delegations else {}
        name = path.partition("/")[0]
        for role in roles.values():
            if not role.is_delegated_path(path):
                continue
            given = keys & set(role.keyids)
            if len(given) >= role.threshold:
                return role
            raise NotAllowed(
                f"{name} belongs to {role.name}, and only {len(given)} of the {role.threshold} keys needed were given",
                remedy=f"Sign with {role.name}'s key, or change the model's owner: `hedgerow trust add`.",
            )
        raise NotAllowed(
            f"{name} has no owner yet",
            remedy=f"Add one: `hedgerow trust add OWNER --{_OPTIONS[path.rpartition('/')[2]]} {name} --public-key …`.",
        )


_OPTIONS: Final = {MANIFEST: "model", PIPELINES: "pipelines"}


def online_key_of(folder: Path) -> Path:
    """Default path of a repository's online key: next to its folder, never in it."""
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    return folder.with_name(f"{folder.name}.online.pem")


def _counts(metadata: Metadata[Snapshot] | Metadata[Timestamp], role: str, root: Root, now: float) -> bool:
    """Whether it is still fresh: signed with the root's key today, or for a snapshot within half its life."""
    at = signed_at(metadata.signed)
    rest = REFRESH_EVERY if role == "timestamp" else lifetime(role) / 2
    return _verified(metadata, role, root) and at is not None and now < at + rest.total_seconds()


def _verified(metadata: Metadata[Snapshot] | Metadata[Timestamp], role: str, root: Root) -> bool:
    try:
        root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except RepositoryError:
        return False
    return True
