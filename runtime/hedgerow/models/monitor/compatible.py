"""Whether a version of a model can take another's place in stages that are set up already. Pure.

Stages look at a model's inputs and outputs when they are set up, and never again: names, types, sizes, batch axes. What
they have seen must stay true.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from hedgerow.backends.base import TensorSpec
from hedgerow.errors import ModelError
from hedgerow.stage import ModelSignature


class IncompatibleVersion(ModelError):
    """A version of a model does not fit the stages that would use it."""

    code = "incompatible-version"

    def __init__(self, model: str, version: str, why: Iterable[str]) -> None:
        super().__init__(
            f"Model {model} cannot go over to {version} as its pipelines are: {'; '.join(why)}",
            remedy="Change the pipeline along with it: `pipelines:` of the same desired document, or of the rollout.",
        )


def incompatibilities(old: ModelSignature, new: ModelSignature) -> list[str]:
    """Why stages that were set up for one version cannot use another; empty if they can.

    An input may become more open and an output more exact. Hidden state may have other sizes: it begins at zero again.
    """
    why = []
    if dict(old.state) != dict(new.state):
        why.append(f"its hidden state is {_moves(new.state)}, it was {_moves(old.state)}")
    why += _differing("input", old.inputs, new.inputs, old, new, hidden=old.state.keys())
    there = {spec.name for spec in new.inputs}
    why += [f"it has no input {spec.name}" for spec in old.inputs if spec.name not in there]
    known = {spec.name for spec in old.inputs}
    why += [f"it takes {spec}, which nobody gives it" for spec in new.inputs if spec.name not in known]
    there = {spec.name for spec in new.outputs}
    why += [f"it has no output {spec.name}" for spec in old.outputs if spec.name not in there]
    why += _differing("output", old.outputs, new.outputs, old, new, hidden=old.state.values())
    return why


def _differing(
    kind: str,
    before: Iterable[TensorSpec],
    after: Iterable[TensorSpec],
    old: ModelSignature,
    new: ModelSignature,
    hidden: Iterable[str],
) -> Iterator[str]:
    by_name = {spec.name: spec for spec in after}
    hidden = set(hidden)
    for was in before:
        now = by_name.get(was.name)
        if now is None:
            continue
        axis, other = old.batch_axis.get(was.name, 0), new.batch_axis.get(was.name, 0)
        if axis != other and was.shape:
            yield f"its {kind} {was.name} is stacked on axis {other}, it was {axis}"
        elif was.dtype != now.dtype or (was.name not in hidden and not _takes(kind, was, now, axis)):
            yield f"its {kind} is {now}, it was {was}"


def _takes(kind: str, was: TensorSpec, now: TensorSpec, axis: int) -> bool:
    """Whether what fitted one tensor fits another; the batch axis is the slot's business."""
    if kind == "output" and not (was.shape and now.shape):  # a backend that does not know says nothing
        return True
    if len(was.shape) != len(now.shape):
        return False
    for place, (before, after) in enumerate(zip(was.shape, now.shape, strict=True)):
        open_end = after if kind == "input" else before
        if place != axis and before != after and open_end is not None:
            return False
    return True


def _moves(state: Mapping[str, str]) -> str:
    return ", ".join(f"{key} → {value}" for key, value in state.items()) or "none"
