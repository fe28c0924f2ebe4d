"""Changes that wait for signatures of absent key holders: `staged/VERSION.ROLE.json`.

Rules:
- A change with enough signatures is valid at once; otherwise it is staged, and valid as soon as it has enough.
- One change per role at a time: a second would build on one that is not valid yet, or silently replace it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Root
from tuf.api.serialization import DeserializationError

from hedgerow.pki.files import make_folder, read, write
from hedgerow.trust.errors import BadRepository, NotAllowed
from hedgerow.trust.repository import Repository
from hedgerow.trust.roles import name_of


@dataclass(frozen=True, slots=True)
class StagedChange:
    """Outcome of a change.

    Attributes:
        role, version: of the new metadata.
        missing: signatures it still needs; 0: it is valid.
        waits_for: names of the keys that could sign.
        live: whether nodes see it; else it waits for signatures, for the roles in `to_renew`, or for the online key.
        to_renew: roles whose keys have changed and whose metadata is invalid until they sign it again.
    """

    role: str
    version: int
    missing: int = 0
    waits_for: tuple[str, ...] = ()
    live: bool = True
    to_renew: tuple[str, ...] = ()


def staged(repository: Repository) -> list[Path]:
    """Return the files that wait for signatures."""
    return sorted((repository.folder / "staged").glob("*.*.json"))


def sign_staged(repository: Repository, signers: Sequence[Signer]) -> list[StagedChange]:
    """Sign staged changes with those of the keys they wait for.

    Raises:
        NotAllowed: no change waits for any of these keys.
        BadRepository: a change cannot be read, or is outdated.
    """
    steps = []
    with repository.changing():
        for path in staged(repository):
            metadata = read_staged(path)
            _require_next(repository, path, metadata)
            waits = missing_signatures(repository, metadata)[1]
            usable = [signer for signer in signers if signer.public_key.keyid in waits]
            for signer in usable:
                metadata.sign(signer, append=True)
            if usable:
                steps.append(settle(repository, metadata))
    if not steps:
        raise NotAllowed(
            "No change waits for a signature by these keys",
            remedy="`hedgerow trust status` shows staged changes and the keys they wait for.",
        )
    return steps


def read_staged(path: Path) -> Metadata[Any]:
    """Read a staged change. Raises: BadRepository: it is not metadata."""
    try:
        return Metadata.from_bytes(read(path))
    except DeserializationError as error:
        raise BadRepository(f"{path} is not metadata", remedy="Remove it, and make the change again.") from error


def missing_signatures(repository: Repository, metadata: Metadata[Any]) -> tuple[int, dict[str, str]]:
    """Return how many signatures staged metadata needs, and the keys that could sign: id → name."""
    role, root = metadata.signed.type, repository.root().signed
    judges: list[Root] = [root, metadata.signed] if isinstance(metadata.signed, Root) else [root]
    missing, waits_for = 0, dict[str, str]()
    for judge in judges:
        found = judge.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
        if not found.verified:
            missing = max(missing, found.missing)
            waits_for |= {keyid: name_of(key) for keyid, key in found.unsigned.items()}
    return missing, waits_for


def require_nothing_staged(repository: Repository, role: str) -> None:
    """Raises: BadRepository: a change of that role is staged already."""
    for path in staged(repository):
        if path.name.endswith(f".{role}.json"):
            raise BadRepository(
                f"A change of {role} waits for signatures already: {path}",
                remedy="Sign it first (`hedgerow trust sign`), or remove that file to drop the change.",
            )


def settle(repository: Repository, metadata: Metadata[Any]) -> StagedChange:
    """Install metadata that has enough signatures; otherwise stage it."""
    role, version = metadata.signed.type, metadata.signed.version
    aside = repository.folder / "staged" / f"{version}.{role}.json"
    missing, waits_for = missing_signatures(repository, metadata)
    if missing:
        make_folder(aside.parent)
        write(aside, metadata.to_bytes())
        return StagedChange(role, version, missing, tuple(sorted(waits_for.values())), live=False)
    repository.put(role, metadata)
    aside.unlink(missing_ok=True)
    to_renew = tuple(repository.to_renew())
    return StagedChange(role, version, live="targets" not in to_renew and make_visible(repository), to_renew=to_renew)


def make_visible(repository: Repository) -> bool:
    """Make signed metadata visible to nodes if the online key is here. Returns: whether they see it."""
    if not repository.has_online_key:
        return False
    try:
        repository.include_signed()
    except NotAllowed:  # an old or foreign key: the holder of the right one does it
        return False
    return True


def _require_next(repository: Repository, path: Path, metadata: Metadata[Any]) -> None:
    """Raises: BadRepository: another change has become valid since this one was staged."""
    role, version = metadata.signed.type, metadata.signed.version
    latest = repository.root().signed.version if role == "root" else repository.latest_version(role)
    if version != latest + 1:
        raise BadRepository(
            f"{path} is outdated: {role} {latest} is valid already",
            remedy="Remove that file, and make the change again if it is still wanted.",
        )
