"""Creates a model repository for tests and demos: real metadata and signatures, keys without passphrase."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import Signer

from hedgerow.trust import key_ceremony
from hedgerow.trust.keys import Secrets, make_key, open_signer, public_half, read_public
from hedgerow.trust.repository import Repository


@dataclass(frozen=True)
class TestRepository:
    """A repository and its keys.

    Attributes:
        repository: the repository; nodes read its folder.
        owner: signs models: `repository.publish(bundle, owner)`.
        root: root metadata for nodes.
        keys: folder with the private keys, without passphrases.
    """

    __test__ = False

    repository: Repository
    owner: Signer
    root: bytes
    keys: Path


def make_repository(
    folder: Path,
    models: Sequence[str] = ("*",),
    *,
    pipelines: Sequence[str] = (),
    clock: Callable[[], float] = time.time,
) -> TestRepository:
    """Create a repository with one owner.

    Args:
        folder: folder to create; the keys are created next to it, in `FOLDER.keys`.
        models: names or patterns of models that the owner may sign.
        pipelines: names or patterns of pipelines that the owner may sign.
        clock: source of the current time, Unix seconds.
    """
    keys = folder.with_name(f"{folder.name}.keys")
    repository = Repository(folder, clock=clock)
    for name in ("root-1", "root-2", "targets", "owner"):
        make_key(keys / f"{name}.pem", None)
    make_key(repository.online_key, None)
    roots = [str(keys / f"root-{number}.pem") for number in (1, 2)]
    signers = {name: open_signer(name, Secrets()) for name in (*roots, str(keys / "targets.pem"))}
    key_ceremony.create(
        repository,
        root_keys=[read_public(name) for name in roots],
        root_threshold=2,
        targets_keys=[read_public(str(keys / "targets.pem"))],
        online_key=read_public(str(public_half(repository.online_key))),
        signers=list(signers.values()),
    )
    key_ceremony.add_owner(
        repository,
        "owner",
        models=models,
        pipelines=pipelines,
        keys=[read_public(str(keys / "owner.pem"))],
        signers=[signers[str(keys / "targets.pem")]],
    )
    root = (repository.metadata / "1.root.json").read_bytes()
    return TestRepository(repository, open_signer(str(keys / "owner.pem"), Secrets()), root, keys)
