"""`hedgerow trust init` and `key`: a repository and its keys come to be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hedgerow.cli.base.console import plural, print_json
from hedgerow.cli.base.options import Json
from hedgerow.cli.trust.options import OnlineKey, PassphraseFile, Where, new_passphrase, secrets_of
from hedgerow.cli.trust.status import print_roles


def init(
    repository: Where = Path("models"),
    keys: Annotated[Path, typer.Option(metavar="DIR", help="Where new private keys go.")] = Path("keys"),
    root_keys: Annotated[int, typer.Option(help="How many keys of the root to make.", min=1)] = 3,
    threshold: Annotated[int, typer.Option(help="How many of them must sign.", min=1)] = 2,
    root_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Take this key for the root instead: NAME.pem, NAME.pub or hsm:…"),
    ] = None,
    targets_key: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Take this key for the targets role instead.")
    ] = None,
    online_key: OnlineKey = None,
    passphrase_file: PassphraseFile = None,
    no_passphrase: Annotated[bool, typer.Option("--no-passphrase", help="New keys have none: for tests.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be made, and what for; make nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Begin a repository of models: make keys, and the root that nodes are given.

    Examples:
      hedgerow trust init --dry-run
      hedgerow trust init --repository models --keys keys
      hedgerow trust init --root-key anna.pem --root-key bo.pem --root-key carl.pub --threshold 2
      hedgerow trust init --root-key 'hsm:2?label=anna' --root-key bo.pem

    All keys that it makes get the same passphrase, but for the online key, which has none: a service uses it. Where each
    holder is to have a word of his own, let them make keys first: `hedgerow trust key`.
    """
    from hedgerow.trust import key_ceremony
    from hedgerow.trust.keys import make_key, open_signer, read_public
    from hedgerow.trust.repository import Repository, online_key_of

    online = online_key or online_key_of(repository)
    made = [] if root_key else [keys / f"root-{number}.pem" for number in range(1, root_keys + 1)]
    made += [] if targets_key else [keys / "targets.pem"]
    roots = root_key or [str(path) for path in made if path.name != "targets.pem"]
    targets = targets_key or [str(keys / "targets.pem")]
    _check_enough(roots, threshold)
    if dry_run:
        _say_plan(repository, [*made, *([] if online.exists() else [online])], threshold, json=json)
        return
    there = Repository(repository, online)
    there.require_absent()
    secrets = secrets_of(passphrase_file)
    if made:
        word = None if no_passphrase else new_passphrase(secrets, "the new keys")
        for path in made:
            make_key(path, word)
        secrets = secrets_of(passphrase_file, word)
    if not online.exists():
        make_key(online, None)
    signers = [open_signer(name, secrets) for name in [*roots, *targets] if _signs(name)]
    there = Repository(repository, online, secrets=secrets)
    key_ceremony.create(
        there,
        root_keys=[read_public(name, secrets) for name in roots],
        root_threshold=threshold,
        targets_keys=[read_public(name, secrets) for name in targets],
        online_key=read_public(str(online)),
        signers=signers,
    )
    root = there.metadata / "1.root.json"
    if json:
        print_json(
            {
                "repository": str(repository),
                "root": str(root),
                "made": [str(path) for path in made],
                "online_key": str(online),
            }
        )
        return
    typer.echo(f"Made the repository {repository}. Give nodes {root}, as `fleet: root_file`.")
    if made:
        typer.echo(
            f"Take {', '.join(str(path) for path in made)} off this machine now, each to whom it belongs: see\n"
            "docs/operator/trust.md. They are needed again when owners come and go, or keys change."
        )
    typer.echo(
        f"{online} stays with the region's service. Next: hedgerow trust add OWNER --model NAME --public-key KEY"
    )


def key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="NAME.pem; NAME.pub comes to be beside it.")],
    passphrase_file: PassphraseFile = None,
    no_passphrase: Annotated[bool, typer.Option("--no-passphrase", help="It has none.")] = False,
    json: Json = False,
) -> None:
    """Make a key to sign with, for an owner or a holder of the root.

    Examples:
      hedgerow trust key anna.pem
      hedgerow trust key vision-team.pem --passphrase-file word.txt

    Keep NAME.pem; give away NAME.pub.
    """
    from hedgerow.trust.keys import make_key, public_half

    made = make_key(file, None if no_passphrase else new_passphrase(secrets_of(passphrase_file), str(file)))
    if json:
        print_json({"key": str(file), "public_key": str(public_half(file)), "id": made.keyid})
        return
    typer.echo(f"Made {file}, a secret, and {public_half(file)}, to be given away. Its id is {made.keyid[:8]}….")


def _say_plan(repository: Path, made: Sequence[Path], threshold: int, *, json: bool) -> None:
    from hedgerow.trust.roles import EXPLANATIONS, LIFETIMES

    if json:
        days = {role: life.days for role, life in LIFETIMES.items()}
        print_json(
            {
                "repository": str(repository),
                "would_make": [str(path) for path in made],
                "roles": EXPLANATIONS,
                "days": days,
            }
        )
        return
    print_roles()
    typer.echo(
        f"Would make the repository {repository}, whose root needs {plural(threshold, 'signature')}, and these keys:"
    )
    for path in made:
        typer.echo(f"  {path}")


def _signs(name: str) -> bool:
    """Whether a key can sign here: all but public halves can."""
    return not name.endswith(".pub")


def _check_enough(roots: Sequence[str], threshold: int) -> None:
    """Before any key is made."""
    able = sum(map(_signs, roots))
    if threshold > len(roots):
        raise typer.BadParameter(f"--threshold {threshold} is more than the {plural(len(roots), 'key')} of the root")
    if able < threshold:
        raise typer.BadParameter(
            f"{threshold} of the root's keys must sign, and {able} can: give more of them as NAME.pem or hsm:…"
        )
