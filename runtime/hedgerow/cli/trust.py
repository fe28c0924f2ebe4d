"""`hedgerow trust`: who may sign which models, and what nodes believe."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from hedgerow.cli.console import Json, on_terminal, plural, print_columns, print_json

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

    from hedgerow.trust.ceremony import Step
    from hedgerow.trust.keys import Secrets
    from hedgerow.trust.repository import Repository
    from hedgerow.trust.status import RepositoryStatus

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
    from hedgerow.trust import ceremony
    from hedgerow.trust.keys import TOKEN, make_key, open_signer, read_public
    from hedgerow.trust.repository import Repository, online_key_of

    online = online_key or online_key_of(repository)
    made = [] if root_key else [keys / f"root-{number}.pem" for number in range(1, root_keys + 1)]
    made += [] if targets_key else [keys / "targets.pem"]
    if dry_run:
        _say_plan(repository, [*made, *([] if online.exists() else [online])], threshold, json=json)
        return
    secrets = secrets_of(passphrase_file)
    if made:
        word = None if no_passphrase else _new_passphrase(secrets, "the new keys")
        for path in made:
            make_key(path, word)
        secrets = secrets_of(passphrase_file, word)
    if not online.exists():
        make_key(online, None)
    roots = root_key or [str(path) for path in made if path.name != "targets.pem"]
    targets = targets_key or [str(keys / "targets.pem")]
    signers = [
        open_signer(name, secrets) for name in [*roots, *targets] if name.startswith(TOKEN) or not name.endswith(".pub")
    ]
    there = Repository(repository, online, secrets=secrets)
    ceremony.begin(
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

    made = make_key(file, None if no_passphrase else _new_passphrase(secrets_of(passphrase_file), str(file)))
    if json:
        print_json({"key": str(file), "public_key": str(public_half(file)), "id": made.keyid})
        return
    typer.echo(f"Made {file}, a secret, and {public_half(file)}, to be given away. Its id is {made.keyid[:8]}….")


def add(
    owner: Annotated[str, typer.Argument(metavar="OWNER", help="A person, team or supplier who makes models.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A model it may sign, or a pattern such as 'vision-*'. May be given many times."
        ),
    ] = None,
    public_key: NewKeys = None,
    threshold: Threshold = None,
    key: SigningKeys = None,
    repository: Where = Path("models"),
    online_key: OnlineKey = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Let an owner sign models; signed by the targets role's key.

    Examples:
      hedgerow trust add vision-team --model door-state --model 'vision-*' --public-key vision-team.pub --key keys/targets.pem
      hedgerow trust add vision-team --model gate-state --key keys/targets.pem
    """
    from hedgerow.trust import ceremony
    from hedgerow.trust.keys import read_public

    secrets = secrets_of(passphrase_file)
    there = open_repository(repository, online_key, secrets)
    step = ceremony.add_owner(
        there,
        owner,
        models=model or (),
        keys=[read_public(name, secrets) for name in public_key or ()],
        threshold=threshold,
        signers=signers_of(key, secrets),
    )
    _say_step(step, f"{owner} may sign", json=json)


def remove(
    owner: Annotated[str, typer.Argument(metavar="OWNER")],
    key: SigningKeys = None,
    repository: Where = Path("models"),
    online_key: OnlineKey = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Let nothing count any more that an owner has signed; signed by the targets role's key.

    Examples:
      hedgerow trust remove vision-team --key keys/targets.pem

    Nodes take none of its models from then on. Those that serve one go on: a rollout puts another in its place.
    """
    from hedgerow.trust import ceremony

    secrets = secrets_of(passphrase_file)
    there = open_repository(repository, online_key, secrets)
    _say_step(ceremony.remove_owner(there, owner, signers_of(key, secrets)), f"{owner} may sign no more", json=json)


def rotate(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="root, targets, online or an owner.")],
    new_key: NewKeys = None,
    old_key: Annotated[
        list[str] | None, typer.Option(metavar="NAME|ID", help="A key that counts no longer. May be given many times.")
    ] = None,
    threshold: Threshold = None,
    key: SigningKeys = None,
    repository: Where = Path("models"),
    online_key: OnlineKey = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Exchange keys of a role: the root signs for root, targets and online, the targets role for owners.

    Examples:
      hedgerow trust rotate root --old-key root-1 --new-key dora.pub --key root-2.pem --key root-3.pem
      hedgerow trust rotate online --old-key models.online --new-key new.pub --online-key new.pem --key root-1.pem --key root-2.pem
      hedgerow trust rotate vision-team --old-key vision-team --new-key vision-2.pub --key keys/targets.pem

    Where not enough keys are at hand, the change waits in the repository: `hedgerow trust sign` adds to it. A root is signed
    by enough of the old keys and of the new, so that nodes can go over from any earlier one.
    """
    from hedgerow.trust import ceremony
    from hedgerow.trust.keys import read_public
    from hedgerow.trust.roles import ONLINE

    secrets = secrets_of(passphrase_file)
    there = open_repository(repository, online_key, secrets)
    new, signers = [read_public(name, secrets) for name in new_key or ()], signers_of(key, secrets)
    if role in ("root", "targets", "online"):
        roles = ONLINE if role == "online" else (role,)
        step = ceremony.rotate(there, roles, new=new, old=old_key or (), threshold=threshold, signers=signers)
    else:
        step = ceremony.rotate_owner(there, role, new=new, old=old_key or (), threshold=threshold, signers=signers)
    _say_step(step, f"Keys of {role} are changed", json=json)
    if role == "online" and online_key is not None and step.live and not json:
        typer.echo(f"Give {online_key} to the region's service in the place of the old one.")


def sign(
    key: SigningKeys = None,
    repository: Where = Path("models"),
    online_key: OnlineKey = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Sign changes that wait for signatures.

    Examples:
      hedgerow trust status
      hedgerow trust sign --key root-2.pem
    """
    from hedgerow.trust import ceremony

    secrets = secrets_of(passphrase_file)
    there = open_repository(repository, online_key, secrets)
    steps = ceremony.sign_staged(there, signers_of(key, secrets))
    if json:
        print_json(steps)
        return
    for step in steps:
        _say_step(step, f"Signed {step.role} {step.version}", json=False)


def renew(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="root, targets or an owner.")],
    key: SigningKeys = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[/VERSION]", help="Let this no longer count. May be given many times."),
    ] = None,
    repository: Where = Path("models"),
    online_key: OnlineKey = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Sign anew what a role has signed, so that it counts for longer, or with its new keys; or withdraw versions.

    Examples:
      hedgerow trust renew vision-team --key vision-team.pem
      hedgerow trust renew vision-team --drop door-state/1.3.0 --key vision-team.pem
      hedgerow trust renew root --key root-1.pem --key root-2.pem
    """
    from hedgerow.trust import ceremony

    secrets = secrets_of(passphrase_file)
    there, signers = open_repository(repository, online_key, secrets), signers_of(key, secrets)
    dropped = {name.rstrip("/") for name in drop or ()}

    def keep(path: str) -> bool:
        name, version = path.split("/")[:2]
        return not dropped & {name, f"{name}/{version}"}

    if dropped and role in ("root", "targets"):
        raise typer.BadParameter("--drop is for owners: only they sign models")
    step = (
        ceremony.rotate(there, (), signers=signers)
        if role == "root"
        else ceremony.renew(there, role, signers, keep=keep)
    )
    _say_step(step, f"Signed {role} anew", json=json)


def refresh(
    repository: Where = Path("models"),
    online_key: OnlineKey = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Let nodes see what was signed, and that it is the newest.

    Examples:
      hedgerow trust refresh
      hedgerow trust refresh --repository /srv/models --json

    The region's service does this by itself. It needs the online key alone, and does nothing where nothing is due.
    """
    there = open_repository(repository, online_key, secrets_of(passphrase_file))
    changed = there.refresh_timestamp()
    timestamp = there.timestamp()
    ends = timestamp.signed.expires if timestamp else None
    if json:
        print_json({"changed": changed, "timestamp": timestamp.signed.version if timestamp else None, "expires": ends})
        return
    typer.echo(f"{'Refreshed' if changed else 'Nothing was due'}; nodes believe it until {ends:%Y-%m-%d %H:%M} UTC.")


def status(
    repository: Where = Path("models"),
    explain: Annotated[bool, typer.Option("--explain", help="Say what each role is for.")] = False,
    json: Json = False,
) -> None:
    """Show who may sign what, how long it counts, what is published and what waits.

    Examples:
      hedgerow trust status
      hedgerow trust status --explain
      hedgerow trust status --repository /srv/models --json

    Exits with 1 if nodes refuse something of it.
    """
    from hedgerow.trust.repository import Repository
    from hedgerow.trust.roles import EXPLANATIONS
    from hedgerow.trust.status import look

    now = time.time()
    seen = look(Repository.open(repository), now)
    if json:
        print_json({**_plain(seen), "problems": seen.problems})
    else:
        if explain:
            _explain(EXPLANATIONS)
        _print_status(seen, now)
    if seen.problems:
        raise typer.Exit(1)


def _plain(seen: RepositoryStatus) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(seen)


def _print_status(seen: RepositoryStatus, now: float) -> None:
    rows = [("ROLE", "SIGNED BY", "VERSION", "COUNTS")]
    for role in seen.roles:
        keys = f"{role.threshold} of {', '.join(key.name for key in role.keys)}"
        rows.append((role.role, keys, str(role.version or "-"), _told(role.problem, role.expires_at, now)))
    print_columns(rows)
    models = [
        (one.name, one.version, role.role, one.selector or "all nodes", one.digest[:19] + "…")
        for role in seen.roles
        for one in role.published
    ]
    if models:
        typer.echo()
        print_columns([("MODEL", "VERSION", "OWNER", "FOR", "DIGEST"), *models])
    for waiting in seen.staged:
        typer.echo(
            f"\n{waiting.role} {waiting.version} waits for {plural(waiting.missing, 'signature')} "
            f"of {', '.join(waiting.waits_for)}: hedgerow trust sign --key KEY"
        )
    for role_name in seen.unseen:
        typer.echo(
            f"\nNodes do not see yet what {role_name} has signed: hedgerow trust refresh, where the online key is."
        )


def _told(problem: str | None, expires_at: float | None, now: float) -> str:
    if problem:
        return typer.style(problem, fg="red", bold=True) if on_terminal() else f"{problem} !"
    if expires_at is None:
        return "signed nothing yet"
    return (
        f"until {datetime.fromtimestamp(expires_at, UTC):%Y-%m-%d}, {plural(int((expires_at - now) // 86_400), 'day')}"
    )


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
    _explain(EXPLANATIONS)
    typer.echo(
        f"Would make the repository {repository}, whose root needs {plural(threshold, 'signature')}, and these keys:"
    )
    for path in made:
        typer.echo(f"  {path}")


def _explain(explanations: Mapping[str, str]) -> None:
    for role, text in explanations.items():
        first, *rest = textwrap.wrap(text, 98)
        typer.echo(f"{role:<10} {first}")
        for line in rest:
            typer.echo(f"{'':<10} {line}")
    typer.echo()


def _say_step(step: Step, done: str, *, json: bool) -> None:
    if json:
        print_json(step)
        return
    if step.missing:
        typer.echo(
            f"{step.role} {step.version} waits for {plural(step.missing, 'more signature')}, of {', '.join(step.waits_for)}:\n"
            "  hedgerow trust sign --key KEY"
        )
        return
    typer.echo(f"{done} ({step.role} {step.version}).")
    if not step.live:
        typer.echo(
            "Nodes see it after `hedgerow trust refresh`, where the online key is; the region's service does that."
        )


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

    found = Secrets.here(file, _ask)
    return Secrets([*(word for word in more if word), *found.known], found.pins, found.ask)


def _ask(words: str, *, confirm: bool = False) -> str:
    from hedgerow.trust.errors import KeyUnusable

    try:
        said: str = typer.prompt(words, hide_input=True, confirmation_prompt=confirm, err=True)
    except click.Abort as error:
        raise KeyUnusable(
            f"Nobody typed this: {words[0].lower()}{words[1:]}",
            remedy="Type it, or give it with --passphrase-file or HEDGEROW_TRUST_PASSPHRASE (HEDGEROW_TRUST_PIN).",
        ) from error
    return said


def _new_passphrase(secrets: Secrets, what: str) -> str:
    return secrets.known[0] if secrets.known else _ask(f"New passphrase of {what}", confirm=True)
