"""Builds the next desired document of a node. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from hedgerow.topics import Address
from hedgerow.wire.fleet import Desired, ModelRef, Reported, SwapPolicy
from hedgerow.wire.ranges import MAX_LEAD


def next_document(
    document: Desired | None,
    node: Address,
    reported: Reported | None,
    now: float,
    *,
    models: Mapping[str, ModelRef | None] | None = None,
    withdraw: Collection[str] = (),
    labels: Mapping[str, str | None] | None = None,
    swap: SwapPolicy | None = None,
    signed_pipelines: tuple[ModelRef | None] | None = None,
    rollout: str | None = None,
    floor: int = 0,
) -> Desired:
    """Return the next document: the last one with changes, and a generation that the node accepts.

    It is higher than any the node has seen. A node that claims one far beyond ours did not get it from us: the document then
    keeps to our own numbers, and names the node's in `supersedes`.

    Args:
        document: the last one; None: there is none yet.
        node: its address.
        reported: the node's report; its generation is higher than ours if our store was lost.
        now: Unix seconds.
        models, labels: changes; a value of None removes the entry.
        withdraw: those of the models that are not to serve any more; without it, a removed one may stay.
        swap: the swap policy; None: unchanged.
        signed_pipelines: the pipelines to run, or None in a tuple to run none; None: unchanged.
        rollout: the rollout that causes the change; None: an operator.
        floor: generations up to this one may have been given before the store was restored from a backup.
    """
    last = max(floor, document.generation if document is not None else 0)
    seen = reported.generation if reported is not None else 0
    changes: dict[str, Any] = {"node": str(node), "at": now, "rollout": rollout, **_generation(last, seen)}
    base = document if document is not None else Desired(node=str(node), generation=1, at=now)
    if models is not None:
        changes["models"] = _merged(base.models, models)
        changes["withdrawn"] = sorted((set(base.withdrawn) - models.keys()) | set(withdraw))
    if labels is not None:
        changes["labels"] = _merged(base.labels, labels)
    if swap is not None:
        changes["swap"] = SwapPolicy.model_validate(swap.model_dump())
    if signed_pipelines is not None:
        (changes["signed_pipelines"],) = signed_pipelines
    return base.model_copy(update=changes)


def before(
    document: Desired | None, reported: Reported | None, models: Mapping[str, Any]
) -> dict[str, ModelRef | None]:
    """Return the versions to roll back to: those desired so far, otherwise those reported."""
    known: dict[str, ModelRef | None] = {}
    for name in models:
        ref = None if document is None else document.models.get(name)
        serving = None if reported is None else reported.models.get(name)
        known[name] = ref if ref is not None else serving.model if serving is not None else None
    return known


def immediate(swap: SwapPolicy) -> SwapPolicy:
    """Return a policy for rolling back: a version that served before needs no canary analysis."""
    return SwapPolicy(probation_s=0, min_frames=0, memory=swap.memory, timeout_s=swap.timeout_s)


def _generation(last: int, seen: int) -> dict[str, Any]:
    if seen - last > MAX_LEAD:
        return {"generation": last + 1, "supersedes": seen}
    return {"generation": max(last, seen) + 1, "supersedes": None}


def _merged(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**old, **changes}.items() if value is not None}
