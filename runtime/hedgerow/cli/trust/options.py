"""Options shared by verbs that sign, and the repository, signers and passphrases built from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from hedgerow.cli.base.options import Json, with_options

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

    from hedgerow.trust.keys import Secrets
    from hedgerow.trust.repository import Repository

RepositoryFolder = Annotated[Path, typer.Option("--repository", metavar="DIR", help="The repository's folder.")]
OnlineKey = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Key for snapshot and timestamp; by default DIR.online.pem beside the repository's folder."
    ),
]
SigningKeys = Annotated[
    list[str] | None,
    typer.Option("--key", metavar="KEY", help="Key to sign with: a file, or hsm:ID?label=TOKEN. Repeatable."),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Passphrases (or a PIN) to try, one per line; else HEDGEROW_TRUST_PASSPHRASE, or a prompt."
    ),
]
NewKeys = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY", help="A key to make valid: NAME.pub, or hsm:ID?label=TOKEN. Repeatable."),
]
Threshold = Annotated[
    int | None, typer.Option(help="How many of the role's keys must sign; unchanged by default.", min=1)
]


class RepositoryOptions(NamedTuple):
    """An opened repository, and the options shared by verbs that change it.

    Attributes:
        secrets: source of passphrases and PINs.
        json: whether to print JSON.
    """

    repository: Repository
    secrets: Secrets
    json: bool


def _repository_options(
    repository: RepositoryFolder = Path("models"),
    online_key: OnlineKey = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> RepositoryOptions:
    secrets = secrets_of(passphrase_file)
    return RepositoryOptions(open_repository(repository, online_key, secrets), secrets, json)


on_repository = with_options(_repository_options)
"""Adds the options shared by verbs that change a repository."""


def open_repository(folder: Path, online_key: Path | None, secrets: Secrets) -> Repository:
    """Open the repository in a folder."""
    from hedgerow.trust.repository import Repository

    return Repository.open(folder, online_key, secrets=secrets)


def signers_of(names: Sequence[str] | None, secrets: Secrets) -> list[Signer]:
    """Open the keys to sign with. Raises: typer.BadParameter: there are none."""
    from hedgerow.trust.keys import open_signer

    if not names:
        raise typer.BadParameter("name the key to sign with: --key")
    return [open_signer(name, secrets) for name in names]


def secrets_of(file: Path | None, *passphrases: str | None) -> Secrets:
    """Return passphrases and PINs to try: these, a file's, the environment's, then a prompt."""
    from hedgerow.trust.keys import Secrets

    found = Secrets.gather(file, _prompt)
    return Secrets([*filter(None, passphrases), *found.known], found.pins, found.ask)


def new_passphrase(secrets: Secrets, what: str) -> str:
    """Return a passphrase for a new key: the first known one, else one typed twice."""
    return secrets.known[0] if secrets.known else _prompt(f"New passphrase of {what}", confirm=True)


def _prompt(prompt: str, *, confirm: bool = False) -> str:
    from hedgerow.trust.errors import KeyUnusable

    try:
        typed: str = typer.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True)
    except typer.Abort as error:
        raise KeyUnusable(
            f"No input for the prompt: {prompt[0].lower()}{prompt[1:]}",
            remedy="Type it, or set --passphrase-file or HEDGEROW_TRUST_PASSPHRASE (HEDGEROW_TRUST_PIN for a PIN).",
        ) from error
    return typed
