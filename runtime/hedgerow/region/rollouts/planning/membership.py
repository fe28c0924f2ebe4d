"""Which rollouts a node belongs in: those that would collide, and those that nodes join later. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from hedgerow.labels import Labels
from hedgerow.region.rollouts.planning.state import Phase, Rollout, Task
from hedgerow.topics import Address

SUPERSEDED: Final = "superseded"
"""Code of a task that a later rollout has made pointless."""
PINNED: Final = "pinned"
"""Code of a task on a node where a person has said what it is to serve."""


def relevant(newest_first: Iterable[Rollout]) -> list[Rollout]:
    """The rollouts that matter still: those under way, and what new and late nodes are to get."""
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
    """Why a rollout cannot begin beside those that are under way; None: it can.

    A node is in one at a time, also where they bring different models: if it does badly, it has to be clear why.
    """
    wanted = set(nodes)
    for other in others:
        both = [] if other.phase.ended else sorted(node for node in wanted & other.tasks.keys() if _has(other, node))
        if both:
            shown = ", ".join(map(str, both[:3])) + (f" and {len(both) - 3} more" if len(both) > 3 else "")
            return f"{other.name} is {other.phase} and has {shown}, too"
    return None


def joins(node: Address, labels: Labels, pinned: Collection[str], rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts that a node is to join since it is new, or has new labels, or what it was part of came to nothing.

    For each model that is the newest one that chooses it and has not failed. A node is in one that is under way at a time.

    Args:
        pinned: models that rollouts leave alone on this node.
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
        if not free or rollout.phase is Phase.ROLLING_BACK:
            continue
        if task is None or (task.state == "removed" and task.code in (SUPERSEDED, PINNED)):
            found.append(rollout)
            if not rollout.phase.ended:
                break
    return found


def superseded(
    rollout: Rollout, models: Collection[str], nodes: Iterable[Address], *, also_under_way: bool = False
) -> list[Address]:
    """The nodes whose part in a rollout is pointless when they are given other versions of these models.

    Args:
        also_under_way: whether that holds for one that has not ended, too.
    """
    if not (rollout.phase.ended or also_under_way) or not rollout.models.keys() & set(models):
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
