"""Status of a repository: roles, expiry, published versions and staged changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Key, Root, Targets

from hedgerow.models.bundle.manifest import PIPELINES
from hedgerow.trust.repository import Repository
from hedgerow.trust.roles import models_of, name_of, pipelines_of, selector_of
from hedgerow.trust.staged_metadata import missing_signatures, read_staged, staged


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """A valid key."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """A published version."""

    name: str
    version: str
    digest: str
    selector: str


@dataclass(frozen=True, slots=True)
class RoleStatus:
    """A role.

    Attributes:
        threshold: how many of its keys must sign.
        version: of its newest metadata; 0: it has signed nothing yet.
        expires_at: when that expires, Unix seconds.
        models: what an owner may sign.
        published: the versions it has signed.
        problem: why nodes refuse its metadata; None: they do not.
        pipelines: the pipelines an owner may sign.
        published_pipelines: those it has signed.
    """

    role: str
    keys: tuple[KeyStatus, ...]
    threshold: int
    version: int
    expires_at: float | None
    models: tuple[str, ...] = ()
    published: tuple[TargetStatus, ...] = ()
    problem: str | None = None
    pipelines: tuple[str, ...] = ()
    published_pipelines: tuple[TargetStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class StagedStatus:
    """A change that waits for signatures."""

    role: str
    version: int
    missing: int
    waits_for: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RepositoryStatus:
    """A repository.

    Attributes:
        roles: the four top-level roles, then the owners.
        online_key: whether it exists here.
        unseen: roles whose newest metadata nodes do not see yet, because the online key must include it.
    """

    folder: str
    roles: tuple[RoleStatus, ...]
    staged: tuple[StagedStatus, ...]
    online_key: bool
    unseen: tuple[str, ...]

    @property
    def problems(self) -> list[str]:
        """Roles whose metadata nodes refuse, each with the reason."""
        return [f"{role.role}: {role.problem}" for role in self.roles if role.problem]


def read_status(repository: Repository, now: float) -> RepositoryStatus:
    """Return the status of a repository.

    Raises: BadRepository: something in it cannot be read.
    """
    root, targets = repository.root(), repository.last_targets()
    snapshot, timestamp = repository.snapshot(), repository.timestamp()
    roles = []
    for role, metadata in (("root", root), ("targets", targets), ("snapshot", snapshot), ("timestamp", timestamp)):
        definition = root.signed.roles[role]
        problem = "nothing is signed yet" if metadata is None else None
        if metadata is not None:
            try:
                root.signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
            except RepositoryError:
                verb = "renew targets" if role == "targets" else "refresh"
                problem = f"it was signed with keys it no longer has; run `hedgerow trust {verb}`"
        expires = metadata.signed.expires.timestamp() if metadata else None
        roles.append(
            RoleStatus(
                role,
                _keys(root.signed, definition.keyids),
                definition.threshold,
                metadata.signed.version if metadata else 0,
                expires,
                problem=problem or _expired(expires, now),
            )
        )
    roles += [_owner(repository, targets.signed, owner, now) for owner in repository.owners().values()]
    seen = snapshot.signed.meta if snapshot else {}
    return RepositoryStatus(
        folder=str(repository.folder),
        roles=tuple(roles),
        staged=tuple(_staged(repository)),
        online_key=repository.has_online_key,
        unseen=tuple(
            role.role
            for role in roles
            if role.role not in ("root", "snapshot", "timestamp")
            and role.version
            and (f"{role.role}.json" not in seen or seen[f"{role.role}.json"].version < role.version)
        ),
    )


def _owner(repository: Repository, targets: Targets, owner: DelegatedRole, now: float) -> RoleStatus:
    newest = repository.newest(owner.name, targets)
    problem, latest = None, repository.latest_version(owner.name)
    if newest is None and latest:
        problem = f"it was signed with keys it no longer has; run `hedgerow trust renew {owner.name}`"
    elif newest is not None and latest > newest.signed.version:
        problem = f"{latest}.{owner.name}.json is invalid: damaged, or signed by other keys"
    expires = newest.signed.expires.timestamp() if newest else None
    published: list[TargetStatus] = []
    pipelines: list[TargetStatus] = []
    for path, target in sorted(newest.signed.targets.items()) if newest else ():
        name, version, file = path.split("/")
        found = TargetStatus(name, version, f"sha256:{target.hashes.get('sha256')}", str(selector_of(target)))
        (pipelines if file == PIPELINES else published).append(found)
    return RoleStatus(
        owner.name,
        _keys(targets, owner.keyids),
        owner.threshold,
        newest.signed.version if newest else 0,
        expires,
        tuple(models_of(owner)),
        tuple(published),
        problem or _expired(expires, now),
        tuple(pipelines_of(owner)),
        tuple(pipelines),
    )


def _staged(repository: Repository) -> list[StagedStatus]:
    found = []
    for path in staged(repository):
        metadata = read_staged(path)
        missing, waits_for = missing_signatures(repository, metadata)
        found.append(
            StagedStatus(metadata.signed.type, metadata.signed.version, missing, tuple(sorted(waits_for.values())))
        )
    return found


def _keys(delegator: Root | Targets, keyids: Sequence[str]) -> tuple[KeyStatus, ...]:
    keys: list[Key] = [delegator.get_key(keyid) for keyid in keyids]
    return tuple(KeyStatus(key.keyid, name_of(key)) for key in keys)


def _expired(expires: float | None, now: float) -> str | None:
    return "it has expired; sign it again" if expires is not None and expires <= now else None
