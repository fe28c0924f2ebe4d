"""`hedgerow trust init` and `key`: create a repository and keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hedgerow.cli.base.console import echo, plural, print_json
from hedgerow.cli.base.options import Json
from hedgerow.cli.trust.options import OnlineKey, PassphraseFile, RepositoryFolder, new_passphrase, secrets_of
from hedgerow.cli.trust.status import print_roles


def init(
    repository: RepositoryFolder = Path("models"),
    keys: Annotated[Path, typer.Option(metavar="DIR", help="Folder for new private keys.")] = Path("keys"),
    root_keys: Annotated[int, typer.Option(help="Number of root keys to create.", min=1)] = 3,
    threshold: Annotated[int, typer.Option(help="Number of root keys that must sign.", min=1)] = 2,
    root_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Use this root key instead: NAME.pem, NAME.pub or hsm:… Repeatable."),
    ] = None,
    targets_key: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Use this key for the targets role instead. Repeatable.")
    ] = None,
    online_key: OnlineKey = None,
    passphrase_file: PassphraseFile = None,
    no_passphrase: Annotated[
        bool, typer.Option("--no-passphrase", help="Leave new keys unencrypted: for tests.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be created, and its purpose.")
    ] = False,
    json: Json = False,
) -> None:
    """Create a repository of models: its keys, and the root of trust for nodes.

    Examples:
      hedgerow trust init --dry-run
      hedgerow trust init --repository models --keys keys
      hedgerow trust init --root-key anna.pem --root-key bo.pem --root-key carl.pub --threshold 2
      hedgerow trust init --root-key 'hsm:2?label=anna' --root-key bo.pem

    All new keys get the same passphrase, except the online key, which has none because a service uses it. For a passphrase
    per holder, let each holder create a key first: `hedgerow trust key`.
    """
    from hedgerow.trust import key_ceremony
    from hedgerow.trust.keys import make_key, open_signer, read_public
    from hedgerow.trust.repository import Repository, online_key_of

    online = online_key or online_key_of(repository)
    new = [] if root_key else [keys / f"root-{number}.pem" for number in range(1, root_keys + 1)]
    new += [] if targets_key else [keys / "targets.pem"]
    roots = root_key or [str(path) for path in new if path.name != "targets.pem"]
    targets = targets_key or [str(keys / "targets.pem")]
    _check_enough(roots, threshold)
    if dry_run:
        _print_plan(repository, [*new, *([] if online.exists() else [online])], threshold, json=json)
        return
    Repository(repository, online).require_absent()
    secrets = secrets_of(passphrase_file)
    if new:
        passphrase = None if no_passphrase else new_passphrase(secrets, "the new keys")
        for path in new:
            make_key(path, passphrase)
        secrets = secrets_of(passphrase_file, passphrase)
    if not online.exists():
        make_key(online, None)
    signers = [open_signer(name, secrets) for name in [*roots, *targets] if _is_private(name)]
    created = Repository(repository, online, secrets=secrets)
    key_ceremony.create(
        created,
        root_keys=[read_public(name, secrets) for name in roots],
        root_threshold=threshold,
        targets_keys=[read_public(name, secrets) for name in targets],
        online_key=read_public(str(online)),
        signers=signers,
    )
    root = created.metadata / "1.root.json"
    if json:
        print_json(
            {
                "repository": str(repository),
                "root": str(root),
                "made": [str(path) for path in new],
                "online_key": str(online),
            }
        )
        return
    echo(f"Created the repository {repository}. Give nodes {root} as `fleet: root_file`.")
    if new:
        echo(
            f"Move {', '.join(str(path) for path in new)} off this machine now, each to its holder: see\n"
            "docs/operator/trust.md. They are needed again to add or remove owners, and to change keys."
        )
    echo(f"Keep {online} with the region's service. Next: hedgerow trust add OWNER --model NAME --public-key KEY")


def key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="NAME.pem; NAME.pub is created beside it.")],
    passphrase_file: PassphraseFile = None,
    no_passphrase: Annotated[bool, typer.Option("--no-passphrase", help="Leave it unencrypted.")] = False,
    json: Json = False,
) -> None:
    """Create a signing key, for an owner or a root key holder.

    Examples:
      hedgerow trust key anna.pem
      hedgerow trust key vision-team.pem --passphrase-file vision-team.pass

    Keep NAME.pem secret; hand out NAME.pub.
    """
    from hedgerow.trust.keys import make_key, public_half

    new = make_key(file, None if no_passphrase else new_passphrase(secrets_of(passphrase_file), str(file)))
    if json:
        print_json({"key": str(file), "public_key": str(public_half(file)), "id": new.keyid})
        return
    echo(f"Created {file} (secret) and {public_half(file)} (to hand out), with id {new.keyid[:8]}….")


def _print_plan(repository: Path, keys: Sequence[Path], threshold: int, *, json: bool) -> None:
    from hedgerow.trust.roles import EXPLANATIONS, LIFETIMES

    if json:
        days = {role: life.days for role, life in LIFETIMES.items()}
        print_json(
            {
                "repository": str(repository),
                "would_make": [str(path) for path in keys],
                "roles": EXPLANATIONS,
                "days": days,
            }
        )
        return
    print_roles()
    echo(
        f"Would create the repository {repository}, whose root needs {plural(threshold, 'signature')}, and these keys:"
    )
    for path in keys:
        echo(f"  {path}")


def _is_private(name: str) -> bool:
    return not name.endswith(".pub")


def _check_enough(roots: Sequence[str], threshold: int) -> None:
    private = sum(map(_is_private, roots))
    if threshold > len(roots):
        raise typer.BadParameter(f"--threshold {threshold} exceeds the number of root keys, {len(roots)}")
    if private < threshold:
        raise typer.BadParameter(
            f"{threshold} root keys must sign, but only {private} can sign here: pass more of them as NAME.pem or hsm:…"
        )
