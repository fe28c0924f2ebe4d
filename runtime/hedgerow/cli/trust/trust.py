"""`hedgerow trust`: manage owners and keys; changes are signed with offline keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hedgerow.cli.base.console import echo, plural, print_json
from hedgerow.cli.trust.options import NewKeys, RepositoryOptions, SigningKeys, Threshold, on_repository, signers_of

if TYPE_CHECKING:
    from hedgerow.trust.staged_metadata import StagedChange


@on_repository
def add(
    options: RepositoryOptions,
    owner: Annotated[str, typer.Argument(metavar="OWNER", help="A person, team or supplier who makes models.")],
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A model it may sign, or a pattern such as 'vision-*'. Repeatable."),
    ] = None,
    pipelines: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Pipelines it may sign, or a pattern. They decide what nodes subscribe to and run. Repeatable.",
        ),
    ] = None,
    public_key: NewKeys = None,
    threshold: Threshold = None,
    key: SigningKeys = None,
) -> None:
    """Let an owner sign models, or pipelines. Signed with the targets key.

    Examples:
      hedgerow trust add vision-team --model door-state --model 'vision-*' --public-key vision-team.pub --key keys/targets.pem
      hedgerow trust add vision-team --model gate-state --key keys/targets.pem
    """
    from hedgerow.trust import key_ceremony
    from hedgerow.trust.keys import read_public

    change = key_ceremony.add_owner(
        options.repository,
        owner,
        models=model or (),
        pipelines=pipelines or (),
        keys=[read_public(name, options.secrets) for name in public_key or ()],
        threshold=threshold,
        signers=signers_of(key, options.secrets),
    )
    what = " and ".join(["models"] * bool(model or not pipelines) + ["pipelines"] * bool(pipelines))
    _print_change(change, f"{owner} may sign {what}", json=options.json)


@on_repository
def remove(
    options: RepositoryOptions,
    owner: Annotated[str, typer.Argument(metavar="OWNER", help="The owner to remove.")],
    key: SigningKeys = None,
) -> None:
    """Remove an owner and invalidate everything it has signed. Signed with the targets key.

    Examples:
      hedgerow trust remove vision-team --key keys/targets.pem

    From then on nodes accept none of its models. Nodes that serve one keep serving it until a rollout replaces it.
    """
    from hedgerow.trust import key_ceremony

    change = key_ceremony.remove_owner(options.repository, owner, signers_of(key, options.secrets))
    _print_change(change, f"Removed {owner}", json=options.json)


@on_repository
def rotate(
    options: RepositoryOptions,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="root, targets, online or an owner.")],
    new_key: NewKeys = None,
    old_key: Annotated[
        list[str] | None, typer.Option(metavar="NAME|ID", help="A key to make invalid. Repeatable.")
    ] = None,
    threshold: Threshold = None,
    key: SigningKeys = None,
) -> None:
    """Replace keys of a role. The root signs for root, targets and online; the targets role signs for owners.

    Examples:
      hedgerow trust rotate root --old-key root-1 --new-key dora.pub --key root-2.pem --key root-3.pem
      hedgerow trust rotate targets --old-key targets --new-key t2.pub --key root-1.pem --key root-2.pem --key t2.pem
      hedgerow trust rotate online --old-key models.online --new-key new.pub --online-key new.pem --key root-1.pem --key root-2.pem
      hedgerow trust rotate vision-team --old-key vision-team --new-key vision-2.pub --key keys/targets.pem

    If too few keys are at hand, the change waits in the repository; `hedgerow trust sign` adds signatures. A new root needs
    enough signatures from both the old and the new keys, so that nodes can update from any earlier root. Metadata signed
    with keys that are now invalid must be signed again: `hedgerow trust renew`.
    """
    from hedgerow.trust import key_ceremony
    from hedgerow.trust.keys import read_public
    from hedgerow.trust.roles import ONLINE

    repository, secrets = options.repository, options.secrets
    new, signers = [read_public(name, secrets) for name in new_key or ()], signers_of(key, secrets)
    if role in ("root", "targets", "online"):
        roles = ONLINE if role == "online" else (role,)
        change = key_ceremony.rotate(
            repository, roles, new=new, old=old_key or (), threshold=threshold, signers=signers
        )
    else:
        change = key_ceremony.rotate_owner(
            repository, role, new=new, old=old_key or (), threshold=threshold, signers=signers
        )
    _print_change(change, f"Changed the keys of {role}", json=options.json)
    if role == "online" and change.live and not options.json:
        echo(f"Replace the online key of the region's service with {repository.online_key}.")


@on_repository
def sign(options: RepositoryOptions, key: SigningKeys = None) -> None:
    """Sign changes that wait for signatures.

    Examples:
      hedgerow trust status
      hedgerow trust sign --key root-2.pem
    """
    from hedgerow.trust.staged_metadata import sign_staged

    changes = sign_staged(options.repository, signers_of(key, options.secrets))
    if options.json:
        print_json(changes)
        return
    for change in changes:
        _print_change(change, f"Signed {change.role}", json=False)


@on_repository
def renew(
    options: RepositoryOptions,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="root, targets or an owner.")],
    key: SigningKeys = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[/VERSION]", help="Withdraw this model or version. Repeatable."),
    ] = None,
) -> None:
    """Sign a role's metadata again: to extend its validity, to use new keys, or to withdraw versions.

    Examples:
      hedgerow trust renew vision-team --key vision-team.pem
      hedgerow trust renew vision-team --drop door-state/1.3.0 --key vision-team.pem
      hedgerow trust renew root --key root-1.pem --key root-2.pem
    """
    from hedgerow.trust import key_ceremony

    dropped = {name.rstrip("/") for name in drop or ()}

    def keep(path: str) -> bool:
        name, version = path.split("/")[:2]
        return not dropped & {name, f"{name}/{version}"}

    if dropped and role in ("root", "targets"):
        raise typer.BadParameter("--drop is for owners: only they sign models")
    signers = signers_of(key, options.secrets)
    change = (
        key_ceremony.rotate(options.repository, (), signers=signers)
        if role == "root"
        else key_ceremony.renew(options.repository, role, signers, keep=keep)
    )
    _print_change(change, f"Signed {role} again", json=options.json)


def _print_change(change: StagedChange, done: str, *, json: bool) -> None:
    if json:
        print_json(change)
        return
    if change.missing:
        echo(
            f"{change.role} {change.version} waits for {plural(change.missing, 'more signature')} "
            f"from {', '.join(change.waits_for)}:\n"
            "  hedgerow trust sign --key KEY"
        )
        return
    echo(f"{done} ({change.role} {change.version}).")
    for role in change.to_renew:
        echo(f"Metadata of {role} is invalid until its new keys sign it: hedgerow trust renew {role} --key KEY")
    if not change.live and "targets" not in change.to_renew:
        echo(
            "Nodes see it once the region's service has refreshed the timestamp, or after `hedgerow trust refresh` there."
        )
