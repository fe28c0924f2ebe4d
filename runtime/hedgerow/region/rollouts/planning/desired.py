"""Desired documents: how a change makes the next one of a node. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hedgerow.topics import Address
from hedgerow.wire.fleet import Desired, ModelRef, Reported, SwapPolicy


def next_document(
    document: Desired | None,
    node: Address,
    reported: Reported | None,
    now: float,
    *,
    models: Mapping[str, ModelRef | None] | None = None,
    labels: Mapping[str, str | None] | None = None,
    swap: SwapPolicy | None = None,
    rollout: str | None = None,
) -> Desired:
    """The next document of a node: the last one with some changes, and a higher generation than it has ever seen.

    Args:
        document: the last one; None: it has none yet.
        reported: what it reported; its generation is higher than ours where our store was lost.
        models, labels: changes; None for what is to go.
        swap: how to go over; None: as before.
        rollout: on whose behalf; None: a person's.
    """
    last = document.generation if document is not None else 0
    seen = reported.generation if reported is not None else 0
    changes: dict[str, Any] = {"generation": max(last, seen) + 1, "at": now, "rollout": rollout}
    base = document if document is not None else Desired(node=str(node), generation=1, at=now)
    if models is not None:
        changes["models"] = _merged(base.models, models)
    if labels is not None:
        changes["labels"] = _merged(base.labels, labels)
    if swap is not None:
        changes["swap"] = SwapPolicy.model_validate(swap.model_dump())
    return base.model_copy(update=changes)


def before(
    document: Desired | None, reported: Reported | None, models: Mapping[str, Any]
) -> dict[str, ModelRef | None]:
    """What a node is to serve of these models, so that it can be put back: as it was told, else as it does."""
    known: dict[str, ModelRef | None] = {}
    for name in models:
        ref = None if document is None else document.models.get(name)
        serving = None if reported is None else reported.models.get(name)
        known[name] = ref if ref is not None else serving.model if serving is not None else None
    return known


def at_once(swap: SwapPolicy) -> SwapPolicy:
    """How to go back: what served before needs no trial."""
    return SwapPolicy(probation_s=0, min_frames=0, memory=swap.memory, timeout_s=swap.timeout_s)


def _merged(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**old, **changes}.items() if value is not None}
