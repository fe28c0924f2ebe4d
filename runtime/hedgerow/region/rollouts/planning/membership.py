"""Membership of nodes in rollouts: labels, conflicts, later joins, and superseded tasks. Pure.

Who a node is, and so at which site, comes from its topic, which the brokers' access lists confine; a label that it reports
cannot say otherwise. Nor can a label of the region's hide one of the node's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from hedgerow.labels import Labels
from hedgerow.region.rollouts.planning.state import Phase, Rollout, Task
from hedgerow.topics import Address
from hedgerow.wire.fleet import ModelRef, Reported

SUPERSEDED: Final = "superseded"
"""Code of a task that a later rollout has replaced."""
PINNED: Final = "pinned"
"""Code of a task on a node where an operator has pinned the model."""
FORGOTTEN: Final = "forgotten"
"""Code of a task on a node that an operator has forgotten."""


def own_labels(reported: Labels, of_region: Labels) -> dict[str, str]:
    """Return the labels of the node's own among those it reports: older nodes report the region's too."""
    return {key: value for key, value in reported.items() if of_region.get(key) != value}


def effective_labels(node: Address, reported: Labels, of_region: Labels) -> dict[str, str]:
    """Return the labels by which rollouts select a node.

    Args:
        node: its address.
        reported: labels that it reports.
        of_region: labels that the region sets.
    """
    return {**of_region, **reported, "region": node.region, "site": node.site, "node": node.node}


def relevant(newest_first: Iterable[Rollout]) -> list[Rollout]:
    """Return the rollouts that still matter: those in progress, and those that new and late nodes may join."""
    found: list[Rollout] = []
    covered: set[tuple[str, frozenset[str]]] = set()
    for rollout in newest_first:
        if rollout.phase in (Phase.FAILED, Phase.CANCELED):
            continue
        key = (str(rollout.plan.selector), frozenset(rollout.models))
        if rollout.phase is not Phase.SUCCEEDED or key not in covered:
            found.append(rollout)
        if rollout.phase is Phase.SUCCEEDED:
            covered.add(key)
    return found


def conflict(nodes: Collection[Address], others: Iterable[Rollout]) -> str | None:
    """Return why a rollout cannot start beside those in progress; None: it can.

    A node is in one rollout at a time, even if they change different models: if the node turns bad, the cause must be clear.
    """
    requested = set(nodes)
    for other in others:
        both = [] if other.phase.ended else sorted(node for node in requested & other.tasks.keys() if _has(other, node))
        if both:
            shown = ", ".join(map(str, both[:3])) + (f" and {len(both) - 3} more" if len(both) > 3 else "")
            return f"{other.name} is {other.phase} and includes {shown}"
    return None


def why_unfit(models: Mapping[str, ModelRef | None], reported: Reported | None) -> str:
    """Return why a node cannot serve these versions, by the models that its file names; "" if it can, or does not say."""
    configured = None if reported is None else reported.configured
    if configured is None:
        return ""
    for name, ref in sorted(models.items()):
        if ref is None:  # any node can be without it
            continue
        if name not in configured:
            return f"its file has no model {name}; it has {', '.join(sorted(configured)) or 'none'}"
        if configured[name] not in ("", ref.name):
            return f"its model {name} takes versions of {configured[name]}, not of {ref.name}"
    return ""


def joins(
    node: Address, labels: Labels, pinned: Collection[str], reported: Reported | None, rollouts: Sequence[Rollout]
) -> list[Rollout]:
    """Return the rollouts that a node joins, because it is new, has new labels, or its last rollout did not succeed.

    For each model, that is the newest rollout that selects the node and has not failed. A node joins only one in progress.

    Args:
        node: its address.
        labels: its labels.
        pinned: models that rollouts leave alone on this node.
        reported: its report; a rollout of models that its file does not name passes it by.
        rollouts: newest first.
    """
    found: list[Rollout] = []
    if any(not other.phase.ended and node in other.tasks and _has(other, node) for other in rollouts):
        return found
    decided = set(pinned)
    for rollout in rollouts:
        if rollout.phase in (Phase.FAILED, Phase.CANCELED) or not rollout.plan.selector.matches(labels):
            continue
        task = rollout.tasks.get(node)
        free = not decided & rollout.models.keys()
        decided |= rollout.models.keys()
        if not free or rollout.phase is Phase.ROLLING_BACK or why_unfit(rollout.models, reported):
            continue
        if task is None or (task.state == "removed" and task.code in (SUPERSEDED, PINNED, FORGOTTEN)):
            found.append(rollout)
            if not rollout.phase.ended:
                break
    return found


def superseded(
    rollout: Rollout, models: Collection[str], nodes: Iterable[Address], *, also_in_progress: bool = False
) -> list[Address]:
    """Return the nodes whose tasks in a rollout become pointless when they get other versions of these models.

    Args:
        rollout: the rollout.
        models, nodes: what gets other versions.
        also_in_progress: whether to include tasks of a rollout that has not ended.
    """
    if not (rollout.phase.ended or also_in_progress) or not rollout.models.keys() & set(models):
        return []
    return [node for node in nodes if (task := rollout.tasks.get(node)) is not None and _unsettled(task, rollout)]


def _has(rollout: Rollout, node: Address) -> bool:
    return rollout.tasks[node].state != "removed"


def _unsettled(task: Task, rollout: Rollout) -> bool:
    if task.state == "succeeded":
        return not rollout.phase.ended
    return (
        task.state in ("queued", "in-progress") or task.rollback == "asked" or (task.failed and task.rollback == "no")
    )
