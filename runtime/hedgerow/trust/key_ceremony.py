"""Operations with the offline keys: create a repository, add and remove owners, rotate keys.

A change that needs more signatures than the given keys can make is staged in the repository (`trust.staged_metadata`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Role, Root, Targets

from hedgerow.pki.files import make_folder
from hedgerow.topics import is_name
from hedgerow.trust.errors import BadRepository, NotAllowed
from hedgerow.trust.repository import Repository
from hedgerow.trust.roles import TOP, name_of, patterns
from hedgerow.trust.staged_metadata import StagedChange, make_visible, require_nothing_staged, settle


def create(
    repository: Repository,
    *,
    root_keys: Sequence[Key],
    root_threshold: int,
    targets_keys: Sequence[Key],
    targets_threshold: int = 1,
    online_key: Key,
    signers: Sequence[Signer],
) -> None:
    """Create a repository.

    Args:
        signers: enough of the root's and of the targets' keys.
    Raises:
        BadRepository: it exists already, or a threshold cannot be met.
        NotAllowed: too few signers.
    """
    repository.require_absent()
    _check_threshold("root", root_threshold, len({key.keyid for key in root_keys}))
    _check_threshold("targets", targets_threshold, len({key.keyid for key in targets_keys}))
    root = Root(
        version=1,
        consistent_snapshot=True,
        roles={
            "root": Role([], root_threshold),
            "targets": Role([], targets_threshold),
            "snapshot": Role([], 1),
            "timestamp": Role([], 1),
        },
    )
    for role, keys in {
        "root": root_keys,
        "targets": targets_keys,
        "snapshot": [online_key],
        "timestamp": [online_key],
    }.items():
        for key in keys:
            root.add_key(key, role)
    signed_root = repository.sign(root, "root", _of(root_keys, signers))
    targets = repository.sign(
        Targets(version=1, delegations=Delegations({}, {})), "targets", _of(targets_keys, signers)
    )
    _require_signed(root, "root", signed_root)
    _require_signed(root, "targets", targets)
    make_folder(repository.metadata)
    with repository.changing():
        repository.put("targets", targets)
        repository.put("root", signed_root)
    if repository.has_online_key:
        repository.refresh_timestamp()


def add_owner(
    repository: Repository,
    owner: str,
    *,
    models: Sequence[str] = (),
    pipelines: Sequence[str] = (),
    keys: Sequence[Key] = (),
    threshold: int | None = None,
    signers: Sequence[Signer],
) -> StagedChange:
    """Add an owner; for an existing owner, add these models, pipelines and keys.

    Args:
        models, pipelines: names or patterns of what the owner may sign. Signed pipelines can do more on a node than models.
    Raises: BadRepository: the name or the threshold is invalid, or a model is another owner's.
    """
    if not is_name(owner) or owner in TOP or owner == "online":
        raise BadRepository(
            f"{owner!r} is not a valid owner name",
            remedy="Use 1 to 64 of `A-Z a-z 0-9 . _ -`, starting with a letter or digit, but no role's name, such as `root`.",
        )

    def change(targets: Targets) -> None:
        roles = _owners(targets)
        there = roles.get(owner)
        if there is None and not models and not pipelines:
            raise BadRepository(f"{owner} is new and has no models", remedy="Name at least one: `--model NAME`.")
        paths = sorted({*(there.paths or () if there else ()), *patterns(models, pipelines)})
        for other in roles.values():
            if other.name != owner and (model := _shared(paths, other)):
                raise BadRepository(
                    f"{model} belongs to {other.name}",
                    remedy=f"Choose another name, or `hedgerow trust remove {other.name}`.",
                )
        needed = threshold or (there.threshold if there else 1)
        roles[owner] = DelegatedRole(owner, list(there.keyids) if there else [], needed, terminating=True, paths=paths)
        for key in keys:
            targets.add_key(key, owner)
        _check_threshold(owner, needed, len(roles[owner].keyids))

    return _change_targets(repository, change, signers)


def remove_owner(repository: Repository, owner: str, signers: Sequence[Signer]) -> StagedChange:
    """Remove an owner and invalidate all it has signed; nodes that serve its versions keep serving.

    Raises: BadRepository: there is no such owner.
    """

    def change(targets: Targets) -> None:
        for keyid in list(_owner(targets, owner).keyids):
            targets.revoke_key(keyid, owner)
        del _owners(targets)[owner]

    return _change_targets(repository, change, signers)


def rotate_owner(
    repository: Repository,
    owner: str,
    *,
    new: Sequence[Key] = (),
    old: Sequence[str] = (),
    threshold: int | None = None,
    signers: Sequence[Signer],
) -> StagedChange:
    """Rotate keys of an owner.

    Args:
        old: keys to remove, by name or by the beginning of their id.
    Raises: BadRepository: there is no such owner or key, or the threshold is invalid.
    """

    def change(targets: Targets) -> None:
        role = _owner(targets, owner)
        for keyid in _found(old, [targets.get_key(keyid) for keyid in role.keyids]):
            targets.revoke_key(keyid, owner)
        for key in new:
            targets.add_key(key, owner)
        role.threshold = threshold or role.threshold
        _check_threshold(owner, role.threshold, len(role.keyids))

    return _change_targets(repository, change, signers)


def rotate(
    repository: Repository,
    roles: Sequence[str],
    *,
    new: Sequence[Key] = (),
    old: Sequence[str] = (),
    threshold: int | None = None,
    signers: Sequence[Signer],
) -> StagedChange:
    """Rotate keys of top-level roles; with no roles, only renew the root.

    Args:
        roles: `root`, `targets`, or both of `snapshot` and `timestamp`.
        old: keys to remove, by name or by the beginning of their id.
        signers: root keys: enough of the old and of the new ones. For `targets`, enough of its new keys too; otherwise the
            list of owners must be signed again afterwards (`renew`).
    Raises: BadRepository: there is no such key, the threshold is invalid, or another change waits for signatures.
    """
    with repository.changing():
        require_nothing_staged(repository, "root")
        root = repository.root().signed
        counting = {*root.roles["root"].keyids}
        for role in roles:
            for keyid in _found(old, [root.get_key(keyid) for keyid in root.roles[role].keyids]):
                root.revoke_key(keyid, role)
            for key in new:
                root.add_key(key, role)
            root.roles[role].threshold = threshold or root.roles[role].threshold
            _check_threshold(role, root.roles[role].threshold, len(root.roles[role].keyids))
        root.version += 1
        counting |= {*root.roles["root"].keyids}
        signed = repository.sign(root, "root", [one for one in signers if one.public_key.keyid in counting])
        step = settle(repository, signed)
        if "targets" not in step.to_renew:
            return step
        return _renew_targets(repository, root, signers) or step


def renew(
    repository: Repository, role: str, signers: Sequence[Signer], *, keep: Callable[[str], bool] = lambda _: True
) -> StagedChange:
    """Sign the metadata of an owner or of the targets role again, to extend its life or to use other keys.

    Args:
        keep: whether a target path stays.
    """
    if role == "targets":
        return _change_targets(repository, lambda _: None, signers)
    with repository.changing():
        targets = repository.targets().signed
        delegated, version = _owner(targets, role), repository.latest_version(role)
        signed = repository.read(f"{version}.{role}", Targets).signed if version else Targets(version=0)
        signed.targets = {path: target for path, target in signed.targets.items() if keep(path)}
        signed.version = version + 1
        metadata = repository.sign(signed, role, [one for one in signers if one.public_key.keyid in delegated.keyids])
        _require_signed(targets, role, metadata)
        repository.put(role, metadata)
        return StagedChange(role, signed.version, live=make_visible(repository))


def _change_targets(
    repository: Repository, change: Callable[[Targets], None], signers: Sequence[Signer]
) -> StagedChange:
    with repository.changing():
        require_nothing_staged(repository, "targets")
        targets = repository.last_targets().signed
        change(targets)
        targets.version = repository.latest_version("targets") + 1
        keys = repository.root().signed.roles["targets"].keyids
        usable = [one for one in signers if one.public_key.keyid in keys]
        if not usable:
            raise NotAllowed(
                "None of the given keys may sign the list of owners",
                remedy="Sign with the targets role's key: `hedgerow trust status` names it.",
            )
        return settle(repository, repository.sign(targets, "targets", usable))


def _renew_targets(repository: Repository, root: Root, signers: Sequence[Signer]) -> StagedChange | None:
    """Sign the list of owners with the keys a new root names. Returns: None if too few of them are given."""
    usable = [one for one in signers if one.public_key.keyid in root.roles["targets"].keyids]
    if len(usable) < root.roles["targets"].threshold:
        return None
    targets = repository.last_targets().signed
    targets.version = repository.latest_version("targets") + 1
    return settle(repository, repository.sign(targets, "targets", usable))


def _require_signed(delegator: Root | Targets, role: str, metadata: Metadata[Any]) -> None:
    found = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    if not found.verified:
        raise NotAllowed(
            f"{role} needs {found.threshold} signatures, but the given keys provide only {len(found.signed)}",
            remedy="Give more of the role's keys with --key.",
        )


def _of(keys: Sequence[Key], signers: Sequence[Signer]) -> list[Signer]:
    ids = {key.keyid for key in keys}
    return [signer for signer in signers if signer.public_key.keyid in ids]


def _owners(targets: Targets) -> dict[str, DelegatedRole]:
    if targets.delegations is None or targets.delegations.roles is None:
        raise BadRepository(
            "targets.json has delegations that `hedgerow trust` did not write",
            remedy="Restore it from a copy: only `hedgerow trust` may change it.",
        )
    return targets.delegations.roles


def _owner(targets: Targets, owner: str) -> DelegatedRole:
    roles = _owners(targets)
    if owner not in roles:
        raise BadRepository(
            f"There is no owner {owner!r}",
            remedy=f"Use one of the owners: {', '.join(sorted(roles))}."
            if roles
            else "Add one with `hedgerow trust add`.",
        )
    return roles[owner]


def _found(wanted: Sequence[str], keys: Sequence[Key]) -> list[str]:
    found = []
    for one in wanted:
        matching = [key.keyid for key in keys if name_of(key) == one or key.keyid.startswith(one)]
        if len(matching) != 1:
            raise BadRepository(
                f"{one!r} matches {'no key' if not matching else 'more than one key'} of that role",
                remedy=f"Name one of its keys: {', '.join(f'{name_of(key)} ({key.keyid[:8]})' for key in keys)}.",
            )
        found += matching
    return found


def _shared(paths: Sequence[str], other: DelegatedRole) -> str | None:
    for pattern in other.paths or ():
        for path in paths:
            mine = DelegatedRole("mine", [], 1, True, paths=[path])
            if other.is_delegated_path(path.replace("*", "x")) or mine.is_delegated_path(pattern.replace("*", "x")):
                return path.partition("/")[0]
    return None


def _check_threshold(role: str, threshold: int, keys: int) -> None:
    if not 1 <= threshold <= keys:
        raise BadRepository(
            f"{role} cannot require {threshold} signatures from {keys} keys",
            remedy="Give more keys, or a lower threshold.",
        )
