"""What verbs share that sign: options, each declared once, and what these come to."""

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

Where = Annotated[Path, typer.Option("--repository", metavar="DIR", help="The repository's folder.")]
OnlineKey = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Key for snapshot and timestamp; DIR.online.pem beside the folder, if left out."),
]
SigningKeys = Annotated[
    list[str] | None,
    typer.Option("--key", metavar="KEY", help="Sign with it: a file, or hsm:ID?label=TOKEN. May be given many times."),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Passphrases (or a PIN), one a line: each is tried. Else they are asked for."),
]
NewKeys = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY", help="A key that is to count: NAME.pub, or hsm:ID?label=TOKEN. May be given many times."
    ),
]
Threshold = Annotated[int | None, typer.Option(help="How many of its keys must sign; as it is, if left out.", min=1)]


class Work(NamedTuple):
    """What a verb works with.

    Attributes:
        there: the repository.
        secrets: how to come by passphrases and PINs.
        json: whether to answer in JSON.
    """

    there: Repository
    secrets: Secrets
    json: bool


def _work(
    repository: Where = Path("models"),
    online_key: OnlineKey = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> Work:
    secrets = secrets_of(passphrase_file)
    return Work(open_repository(repository, online_key, secrets), secrets, json)


on_repository = with_options(_work)
"""Gives a verb the options of all verbs that work on a repository."""


def open_repository(folder: Path, online_key: Path | None, secrets: Secrets) -> Repository:
    """The repository in a folder."""
    from hedgerow.trust.repository import Repository

    return Repository.open(folder, online_key, secrets=secrets)


def signers_of(names: Sequence[str] | None, secrets: Secrets) -> list[Signer]:
    """Keys to sign with."""
    from hedgerow.trust.keys import open_signer

    if not names:
        raise typer.BadParameter("say with which key to sign: --key")
    return [open_signer(name, secrets) for name in names]


def secrets_of(file: Path | None, *more: str | None) -> Secrets:
    """How to come by passphrases and PINs: these, a file, the environment, a person."""
    from hedgerow.trust.keys import Secrets

    found = Secrets.gather(file, _ask)
    return Secrets([*(word for word in more if word), *found.known], found.pins, found.ask)


def new_passphrase(secrets: Secrets, what: str) -> str:
    """A passphrase for a new key: the first that was given, else one that is typed twice."""
    return secrets.known[0] if secrets.known else _ask(f"New passphrase of {what}", confirm=True)


def _ask(words: str, *, confirm: bool = False) -> str:
    from hedgerow.trust.errors import KeyUnusable

    try:
        said: str = typer.prompt(words, hide_input=True, confirmation_prompt=confirm, err=True)
    except typer.Abort as error:
        raise KeyUnusable(
            f"Nobody typed this: {words[0].lower()}{words[1:]}",
            remedy="Type it, or give it with --passphrase-file or HEDGEROW_TRUST_PASSPHRASE (HEDGEROW_TRUST_PIN).",
        ) from error
    return said
