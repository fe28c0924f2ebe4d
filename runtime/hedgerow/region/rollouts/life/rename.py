"""Gives a node another name or site. Its row keeps its id, so all that refers to it follows; see `store/life` for its former address."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hedgerow.errors import CommandError
from hedgerow.region.enrolment.store import EnrolmentStore
from hedgerow.region.rollouts.fleet import Fleet
from hedgerow.region.rollouts.operation import Operation
from hedgerow.region.store.life.identity import aliases, forgotten_nodes, lock_changes, move_node
from hedgerow.topics import Address, is_name


def rename(operation: Operation) -> Any:
    """Give a node the name and site that the request has. A second time, only say that it has them."""
    fleet, args = operation.fleet, operation.request.args
    if (present := _already(operation)) is not None:
        return _reply(*present, operation, already=True)
    old = operation.node
    new = old._replace(site=args.get("site") or old.site, node=args.get("name") or old.node)
    if new == old:
        return _reply(old, new, operation, already=True)
    if not operation.dry_run:
        operation.require_reason()
        lock_changes(fleet.database)
    _check(fleet, old, new, new_site=bool(args.get("new_site")))
    reply = _reply(old, new, operation, already=False)
    if operation.dry_run:
        return reply
    by, now, row = operation.by, operation.now, fleet.observed.ids[old]
    move_node(fleet.database, row, old, new, now)
    EnrolmentStore(fleet.database).move_place(old.site, old.node, new.site, new.node)
    fleet.reload()
    given = {}
    if new in fleet.desired:
        desired = fleet.next_desired(new, now, rollout=fleet.desired[new].document.rollout)
        fleet.save_desired({new: desired})
        given = {str(new): desired.document.generation}
    _go_on(fleet, new, now)
    fleet.store.audit(by, "node-renamed", now, node=str(new), was=str(old), given=given)
    return reply


def _already(operation: Operation) -> tuple[Address, Address] | None:
    """Return both addresses if the node has been renamed to what is asked for: this command may be repeated."""
    fleet, args = operation.fleet, operation.request.args
    rows = {row: address for address, row in fleet.observed.ids.items()}
    for former, alias in aliases(fleet.database).items():
        wanted = former._replace(site=args.get("site") or former.site, node=args.get("name") or former.node)
        if (
            operation.named in (str(former), f"{former.site}/{former.node}", former.node)
            and rows.get(alias.node) == wanted
        ):
            return former, wanted
    return None


def _check(fleet: Fleet, old: Address, new: Address, *, new_site: bool) -> None:
    """Raises: CommandError: a node cannot have this address."""
    if not (is_name(new.site) and is_name(new.node)) or new.node == "broker":
        raise CommandError(
            f"{new.site}/{new.node} is not an address for a node",
            code="bad-name",
            remedy="Use 1 to 64 of `A-Z a-z 0-9 . _ -`, starting with a letter or digit; `broker` is reserved.",
        )
    if new in fleet.observed.ids:
        raise CommandError(
            f"There is a node {new} already",
            code="name-in-use",
            remedy="Choose another name. To swap two names, rename one to a third, and bring its machine up under that, first.",
        )
    if (gone := forgotten_nodes(fleet.database).get(new)) is not None:
        raise CommandError(
            f"{new} was forgotten {gone.because}; its history is kept under this name",
            code="forgotten-name",
            remedy="Choose another name. If it is that node that is back: `hedgerow node admit`.",
        )
    if new.node in EnrolmentStore(fleet.database).taken(new.site):
        raise CommandError(
            f"A machine was approved for {new}, and has not been heard of yet",
            code="name-in-use",
            remedy="Choose another name, or take the place from it: `hedgerow node pending --all`, `hedgerow node reject`.",
        )
    alias = aliases(fleet.database).get(new)
    if alias is not None and not alias.seen and alias.node != fleet.observed.ids[old]:
        holder = next(address for address, row in fleet.observed.ids.items() if row == alias.node)
        raise CommandError(
            f"{holder} was {new} before, and may still run under that name: it has not reported under its present one",
            code="name-in-use",
            remedy=f"Bring {holder} up with its new configuration first; `hedgerow node show` says when it has reported.",
        )
    at_site = sum(node.site == new.site for node in fleet.observed.ids)
    if not at_site and not new_site:
        raise CommandError(
            f"No node of a site {new.site} is known",
            code="unknown-site",
            remedy="Check the name with `hedgerow region status`. If the site is new: `--new-site`.",
        )
    if new.site != old.site and at_site >= fleet.config.quotas.nodes:
        raise CommandError(
            f"{new.site} has {at_site} nodes, its quota",
            code="too-many-nodes",
            remedy="Forget nodes that are gone, or raise `quotas: {nodes}` in the region's configuration.",
        )


def _go_on(fleet: Fleet, node: Address, now: float) -> None:
    """Let rollouts go on without waiting for a node that has to come up under its new address first."""
    for stored in list(fleet.rollouts.values()):
        task = stored.rollout.tasks.get(node)
        if task is not None and task.state == "in-progress" and not stored.rollout.phase.ended:
            tasks = {**stored.rollout.tasks, node: replace(task, late=True, assigned_at=now)}
            fleet.save_rollout(replace(stored, rollout=replace(stored.rollout, tasks=tasks)), stored)


def _reply(old: Address, new: Address, operation: Operation, *, already: bool) -> dict[str, Any]:
    alias = aliases(operation.fleet.database).get(old)
    seen = already and alias is not None and alias.seen
    return {"node": str(new), "was": str(old), "dry_run": operation.dry_run, "already": already, "seen": seen}
