"""`hedgerow trust`: who may sign which models; changes that are signed with keys kept off the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hedgerow.cli.base.console import plural, print_json
from hedgerow.cli.trust.options import NewKeys, SigningKeys, Threshold, Work, on_repository, signers_of

if TYPE_CHECKING:
    from hedgerow.trust.staged_metadata import StagedChange


@on_repository
def add(
    work: Work,
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
) -> None:
    """Let an owner sign models; signed by the targets role's key.

    Examples:
      hedgerow trust add vision-team --model door-state --model 'vision-*' --public-key vision-team.pub --key keys/targets.pem
      hedgerow trust add vision-team --model gate-state --key keys/targets.pem
    """
    from hedgerow.trust import key_ceremony
    from hedgerow.trust.keys import read_public

    step = key_ceremony.add_owner(
        work.there,
        owner,
        models=model or (),
        keys=[read_public(name, work.secrets) for name in public_key or ()],
        threshold=threshold,
        signers=signers_of(key, work.secrets),
    )
    _say_step(step, f"{owner} may sign", json=work.json)


@on_repository
def remove(work: Work, owner: Annotated[str, typer.Argument(metavar="OWNER")], key: SigningKeys = None) -> None:
    """Let nothing count any more that an owner has signed; signed by the targets role's key.

    Examples:
      hedgerow trust remove vision-team --key keys/targets.pem

    Nodes take none of its models from then on. Those that serve one go on: a rollout puts another in its place.
    """
    from hedgerow.trust import key_ceremony

    step = key_ceremony.remove_owner(work.there, owner, signers_of(key, work.secrets))
    _say_step(step, f"{owner} may sign no more", json=work.json)


@on_repository
def rotate(
    work: Work,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="root, targets, online or an owner.")],
    new_key: NewKeys = None,
    old_key: Annotated[
        list[str] | None, typer.Option(metavar="NAME|ID", help="A key that counts no longer. May be given many times.")
    ] = None,
    threshold: Threshold = None,
    key: SigningKeys = None,
) -> None:
    """Exchange keys of a role: the root signs for root, targets and online, the targets role for owners.

    Examples:
      hedgerow trust rotate root --old-key root-1 --new-key dora.pub --key root-2.pem --key root-3.pem
      hedgerow trust rotate targets --old-key targets --new-key t2.pub --key root-1.pem --key root-2.pem --key t2.pem
      hedgerow trust rotate online --old-key models.online --new-key new.pub --online-key new.pem --key root-1.pem --key root-2.pem
      hedgerow trust rotate vision-team --old-key vision-team --new-key vision-2.pub --key keys/targets.pem

    Where not enough keys are at hand, the change waits in the repository: `hedgerow trust sign` adds to it. A root is signed
    by enough of the old keys and of the new, so that nodes can go over from any earlier one. What a role has signed with keys
    that count no longer has to be signed anew: `hedgerow trust renew`.
    """
    from hedgerow.trust import key_ceremony
    from hedgerow.trust.keys import read_public
    from hedgerow.trust.roles import ONLINE

    new, signers = [read_public(name, work.secrets) for name in new_key or ()], signers_of(key, work.secrets)
    if role in ("root", "targets", "online"):
        roles = ONLINE if role == "online" else (role,)
        step = key_ceremony.rotate(work.there, roles, new=new, old=old_key or (), threshold=threshold, signers=signers)
    else:
        step = key_ceremony.rotate_owner(
            work.there, role, new=new, old=old_key or (), threshold=threshold, signers=signers
        )
    _say_step(step, f"Keys of {role} are changed", json=work.json)
    if role == "online" and step.live and not work.json:
        typer.echo(f"Give {work.there.online_key} to the region's service in the place of the old one.")


@on_repository
def sign(work: Work, key: SigningKeys = None) -> None:
    """Sign changes that wait for signatures.

    Examples:
      hedgerow trust status
      hedgerow trust sign --key root-2.pem
    """
    from hedgerow.trust.staged_metadata import sign_staged

    steps = sign_staged(work.there, signers_of(key, work.secrets))
    if work.json:
        print_json(steps)
        return
    for step in steps:
        _say_step(step, f"Signed {step.role} {step.version}", json=False)


@on_repository
def renew(
    work: Work,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="root, targets or an owner.")],
    key: SigningKeys = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[/VERSION]", help="Let this no longer count. May be given many times."),
    ] = None,
) -> None:
    """Sign anew what a role has signed, so that it counts for longer, or with its new keys; or withdraw versions.

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
    signers = signers_of(key, work.secrets)
    step = (
        key_ceremony.rotate(work.there, (), signers=signers)
        if role == "root"
        else key_ceremony.renew(work.there, role, signers, keep=keep)
    )
    _say_step(step, f"Signed {role} anew", json=work.json)


def _say_step(step: StagedChange, done: str, *, json: bool) -> None:
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
    for role in step.to_renew:
        typer.echo(
            f"What {role} has signed counts no more until its new keys sign it: hedgerow trust renew {role} --key KEY"
        )
    if not step.live and "targets" not in step.to_renew:
        typer.echo(
            "Nodes see it after `hedgerow trust refresh`, where the online key is; the region's service does that."
        )
