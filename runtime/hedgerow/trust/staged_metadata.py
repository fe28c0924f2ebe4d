"""Changes that wait for signatures, because not all holders of keys are at one table: `staged/VERSION.ROLE.json`.

Rules:
- What is signed enough counts at once; what is not is staged, and counts as soon as it is.
- One change of a role at a time: a second would be built on what does not count yet, or do away with the first unseen.
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
    """What a change has come to.

    Attributes:
        role, version: the metadata that was made.
        missing: signatures it still needs; 0: it counts.
        waits_for: names of keys that could give them.
        live: whether nodes see it; else it waits for signatures, for those named next, or for whoever has the online key.
        to_renew: roles whose keys have changed, so that what they have signed counts no more until they sign it anew.
    """

    role: str
    version: int
    missing: int = 0
    waits_for: tuple[str, ...] = ()
    live: bool = True
    to_renew: tuple[str, ...] = ()


def staged(repository: Repository) -> list[Path]:
    """What waits for signatures."""
    return sorted((repository.folder / "staged").glob("*.*.json"))


def sign_staged(repository: Repository, signers: Sequence[Signer]) -> list[StagedChange]:
    """Sign what waits for signatures, with those keys that it waits for.

    Raises:
        NotAllowed: it waits for none of these keys.
        BadRepository: it cannot be read, or another change has overtaken it.
    """
    steps = []
    with repository.changing():
        for path in staged(repository):
            metadata = read_staged(path)
            _demand_next(repository, path, metadata)
            waits = missing_signatures(repository, metadata)[1]
            usable = [signer for signer in signers if signer.public_key.keyid in waits]
            for signer in usable:
                metadata.sign(signer, append=True)
            if usable:
                steps.append(settle(repository, metadata))
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


def nothing_staged(repository: Repository, role: str) -> None:
    """Raises: BadRepository: a change of that role waits already."""
    for path in staged(repository):
        if path.name.endswith(f".{role}.json"):
            raise BadRepository(
                f"A change of {role} waits for signatures already: {path}",
                remedy="Sign it first (`hedgerow trust sign`), or remove that file if it is not to be.",
            )


def settle(repository: Repository, metadata: Metadata[Any]) -> StagedChange:
    """Let metadata count if it is signed enough; else stage it."""
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
    return StagedChange(role, version, live="targets" not in to_renew and show(repository), to_renew=to_renew)


def show(repository: Repository) -> bool:
    """Let nodes see what is signed, if the online key is here. Returns: whether they do."""
    if not repository.has_online_key:
        return False
    try:
        repository.take_in()
    except NotAllowed:  # it is the old one, or another's: who has the right one does it
        return False
    return True


def _demand_next(repository: Repository, path: Path, metadata: Metadata[Any]) -> None:
    """Raises: BadRepository: another change has come to count since this one was staged."""
    role, version = metadata.signed.type, metadata.signed.version
    latest = repository.root().signed.version if role == "root" else repository.latest_version(role)
    if version != latest + 1:
        raise BadRepository(
            f"{path} is overtaken: {role} {latest} counts already",
            remedy="Remove that file, and make the change again if it is still wanted.",
        )
