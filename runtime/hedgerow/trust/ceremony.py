"""What is done with the keys that are kept off the network: begin, let owners come and go, exchange keys.

What needs more signatures than there are keys at hand is staged in the repository; others sign it there, and it counts as
soon as there are enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Role, Root, Targets
from tuf.api.serialization import DeserializationError

from hedgerow.pki.files import make_folder, read, write
from hedgerow.topics import is_name
from hedgerow.trust.errors import BadRepository, NotAllowed
from hedgerow.trust.repository import Repository
from hedgerow.trust.roles import TOP, name_of, patterns


@dataclass(frozen=True, slots=True)
class Step:
    """What a change has come to.

    Attributes:
        role, version: the metadata that was made.
        missing: signatures it still needs; 0: it counts.
        waits_for: names of keys that could give them.
        live: whether nodes see it; else it waits for signatures, or for whoever has the online key.
    """

    role: str
    version: int
    missing: int = 0
    waits_for: tuple[str, ...] = ()
    live: bool = True


def begin(
    repository: Repository,
    *,
    root_keys: Sequence[Key],
    root_threshold: int,
    targets_keys: Sequence[Key],
    targets_threshold: int = 1,
    online_key: Key,
    signers: Sequence[Signer],
) -> None:
    """Make a repository.

    Args:
        signers: enough of the root's and of the targets' keys, to sign with.
    Raises:
        BadRepository: there is one, or a threshold cannot be met.
        NotAllowed: too few signers.
    """
    if (repository.metadata / "1.root.json").exists():
        raise BadRepository(
            f"{repository.folder} is a repository already", remedy="See it with `hedgerow trust status`."
        )
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
    _demand(root, "root", signed_root)
    _demand(root, "targets", targets)
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
    models: Sequence[str],
    keys: Sequence[Key] = (),
    threshold: int | None = None,
    signers: Sequence[Signer],
) -> Step:
    """Let an owner sign models; an owner that is there may sign these too, with these keys too.

    Raises: BadRepository: the name or the threshold will not do, or a model is another owner's.
    """
    if not is_name(owner) or owner in TOP or owner == "online":
        raise BadRepository(f"{owner!r} is no name for an owner", remedy="Use letters, digits, `-`, `_` and `.`.")

    def change(targets: Targets) -> None:
        roles = _owners(targets)
        there = roles.get(owner)
        paths = sorted({*(there.paths or () if there else ()), *patterns(models)})
        for other in roles.values():
            if other.name != owner and (model := _shared(paths, other)):
                raise BadRepository(
                    f"{model} is {other.name}'s",
                    remedy=f"Give it another name, or `hedgerow trust remove {other.name}`.",
                )
        needed = threshold or (there.threshold if there else 1)
        roles[owner] = DelegatedRole(owner, list(there.keyids) if there else [], needed, terminating=True, paths=paths)
        for key in keys:
            targets.add_key(key, owner)
        _check_threshold(owner, needed, len(roles[owner].keyids))

    return _change_targets(repository, change, signers)


def remove_owner(repository: Repository, owner: str, signers: Sequence[Signer]) -> Step:
    """Let nothing count any more that an owner signs or has signed; what serves on nodes serves on.

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
) -> Step:
    """Exchange keys of an owner.

    Args:
        old: names of keys that count no longer, or beginnings of their ids.
    Raises: BadRepository: there is no such owner or key, or the threshold will not do.
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
) -> Step:
    """Exchange keys of top-level roles; without any, the root is signed anew and counts longer.

    Args:
        roles: `root`, `targets`, or both of `snapshot` and `timestamp`.
        old: names of keys that count no longer, or beginnings of their ids.
        signers: keys of the root: enough of the old ones and of the new.
    """
    with repository.changing():
        root = repository.root().signed
        for role in roles:
            for keyid in _found(old, [root.get_key(keyid) for keyid in root.roles[role].keyids]):
                root.revoke_key(keyid, role)
            for key in new:
                root.add_key(key, role)
            root.roles[role].threshold = threshold or root.roles[role].threshold
            _check_threshold(role, root.roles[role].threshold, len(root.roles[role].keyids))
        root.version += 1
        return _settle(repository, repository.sign(root, "root", signers))


def renew(
    repository: Repository, role: str, signers: Sequence[Signer], *, keep: Callable[[str], bool] = lambda _: True
) -> Step:
    """Sign anew what an owner or the targets role has signed, so that it counts longer, or with other keys.

    Args:
        keep: whether a target is to count on.
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
        _demand(targets, role, metadata)
        repository.put(role, metadata)
        return Step(role, signed.version, live=_show(repository))


def staged(repository: Repository) -> list[Path]:
    """What waits for signatures."""
    return sorted((repository.folder / "staged").glob("*.*.json"))


def sign_staged(repository: Repository, signers: Sequence[Signer]) -> list[Step]:
    """Sign what waits for signatures, with those keys that it waits for.

    Raises: NotAllowed: it waits for none of these keys.
    """
    steps = []
    with repository.changing():
        for path in staged(repository):
            metadata = read_staged(path)
            waits = missing_signatures(repository, metadata)[1]
            usable = [signer for signer in signers if signer.public_key.keyid in waits]
            for signer in usable:
                metadata.sign(signer, append=True)
            if usable:
                steps.append(_settle(repository, metadata))
    if not steps:
        raise NotAllowed(
            "Nothing waits for a signature of these keys",
            remedy="See what waits, and for whom: `hedgerow trust status`.",
        )
    return steps


def read_staged(path: Path) -> Metadata[Any]:
    """What waits for signatures. Raises: BadRepository: it is none."""
    try:
        return Metadata.from_bytes(read(path))
    except DeserializationError as error:
        raise BadRepository(f"{path} is no metadata", remedy="Remove it, and make the change again.") from error


def missing_signatures(repository: Repository, metadata: Metadata[Any]) -> tuple[int, dict[str, str]]:
    """How many signatures staged metadata needs, and the keys that could give them: id → name."""
    role, root = metadata.signed.type, repository.root().signed
    judges: list[Root] = [root, metadata.signed] if isinstance(metadata.signed, Root) else [root]
    missing, waits_for = 0, dict[str, str]()
    for judge in judges:
        found = judge.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
        if not found.verified:
            missing = max(missing, found.missing)
            waits_for |= {keyid: name_of(key) for keyid, key in found.unsigned.items()}
    return missing, waits_for


def _change_targets(repository: Repository, change: Callable[[Targets], None], signers: Sequence[Signer]) -> Step:
    with repository.changing():
        targets = repository.targets().signed
        change(targets)
        targets.version = repository.latest_version("targets") + 1
        return _settle(repository, repository.sign(targets, "targets", signers))


def _settle(repository: Repository, metadata: Metadata[Any]) -> Step:
    """Let metadata count if it is signed enough; else stage it."""
    role, version = metadata.signed.type, metadata.signed.version
    aside = repository.folder / "staged" / f"{version}.{role}.json"
    missing, waits_for = missing_signatures(repository, metadata)
    if missing:
        make_folder(aside.parent)
        write(aside, metadata.to_bytes())
        return Step(role, version, missing, tuple(sorted(waits_for.values())), live=False)
    repository.put(role, metadata)
    aside.unlink(missing_ok=True)
    return Step(role, version, live=_show(repository))


def _show(repository: Repository) -> bool:
    """Let nodes see it, if the online key is here."""
    if not repository.has_online_key:
        return False
    repository.take_in()
    return True


def _demand(delegator: Root | Targets, role: str, metadata: Metadata[Any]) -> None:
    found = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    if not found.verified:
        raise NotAllowed(
            f"{role} needs {found.threshold} signatures, and the keys given make {len(found.signed)}",
            remedy="Give more of its keys.",
        )


def _of(keys: Sequence[Key], signers: Sequence[Signer]) -> list[Signer]:
    ids = {key.keyid for key in keys}
    return [signer for signer in signers if signer.public_key.keyid in ids]


def _owners(targets: Targets) -> dict[str, DelegatedRole]:
    if targets.delegations is None or targets.delegations.roles is None:
        raise BadRepository("targets.json delegates in a way that `hedgerow trust` does not write")
    return targets.delegations.roles


def _owner(targets: Targets, owner: str) -> DelegatedRole:
    roles = _owners(targets)
    if owner not in roles:
        raise BadRepository(f"There is no owner {owner!r}", remedy=f"There are: {', '.join(sorted(roles)) or 'none'}.")
    return roles[owner]


def _found(wanted: Sequence[str], keys: Sequence[Key]) -> list[str]:
    found = []
    for one in wanted:
        matching = [key.keyid for key in keys if name_of(key) == one or key.keyid.startswith(one)]
        if len(matching) != 1:
            raise BadRepository(
                f"{one!r} is {'no key' if not matching else 'more than one key'} of that role",
                remedy=f"Its keys: {', '.join(f'{name_of(key)} ({key.keyid[:8]})' for key in keys)}.",
            )
        found += matching
    return found


def _shared(paths: Sequence[str], other: DelegatedRole) -> str | None:
    for pattern in other.paths or ():
        for path in paths:
            model, theirs = path.partition("/")[0], pattern.partition("/")[0]
            mine = DelegatedRole("mine", [], 1, True, paths=[path])
            if other.is_delegated_path(f"{model.replace('*', 'x')}/1/manifest.json") or mine.is_delegated_path(
                f"{theirs.replace('*', 'x')}/1/manifest.json"
            ):
                return model
    return None


def _check_threshold(role: str, threshold: int, keys: int) -> None:
    if not 1 <= threshold <= keys:
        raise BadRepository(
            f"{role} would need {threshold} signatures of {keys} keys", remedy="Give more keys, or a lower threshold."
        )
