"""Checks that a model version can replace another in stages that are already set up. Pure.

Stages read a model's inputs and outputs only when they are set up: names, types, sizes, batch axes. These must stay valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from hedgerow.backends.base import TensorSpec
from hedgerow.errors import ModelError
from hedgerow.stage import ModelSignature


class IncompatibleVersion(ModelError):
    """A model version does not fit the stages that would use it."""

    code = "incompatible-version"

    def __init__(self, model: str, version: str, why: Iterable[str]) -> None:
        super().__init__(
            f"{version} does not fit the pipelines that use model {model}: {'; '.join(why)}",
            remedy="Change the pipelines in the same step: `pipelines:` in the rollout, or in the desired document.",
        )


def incompatibilities(old: ModelSignature, new: ModelSignature) -> list[str]:
    """Return why stages set up for one version cannot use another; empty: they can.

    A fixed dimension of an input may become dynamic, a dynamic one of an output fixed. Hidden state may have other sizes,
    since it starts at zero again.
    """
    why = []
    if dict(old.state) != dict(new.state):
        why.append(f"its hidden state is {_describe_state(new.state)}, was {_describe_state(old.state)}")
    why += _differing("input", old.inputs, new.inputs, old, new, hidden=old.state.keys())
    inputs = {spec.name for spec in new.inputs}
    why += [f"it has no input {spec.name}" for spec in old.inputs if spec.name not in inputs]
    known = {spec.name for spec in old.inputs}
    why += [
        f"it has the new input {spec}, which stages do not provide" for spec in new.inputs if spec.name not in known
    ]
    outputs = {spec.name for spec in new.outputs}
    why += [f"it has no output {spec.name}" for spec in old.outputs if spec.name not in outputs]
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
            yield f"its {kind} {was.name} has batch axis {other}, was {axis}"
        elif was.dtype != now.dtype or (was.name not in hidden and not _accepts(kind, was, now, axis)):
            yield f"its {kind} is {now}, was {was}"


def _accepts(kind: str, was: TensorSpec, now: TensorSpec, axis: int) -> bool:
    """Return whether arrays that fitted one tensor fit another; the batch axis is left to the slot."""
    if kind == "output" and not (was.shape and now.shape):  # a backend did not know the shape
        return True
    if len(was.shape) != len(now.shape):
        return False
    for place, (before, after) in enumerate(zip(was.shape, now.shape, strict=True)):
        wider = after if kind == "input" else before
        if place != axis and before != after and wider is not None:
            return False
    return True


def _describe_state(state: Mapping[str, str]) -> str:
    return ", ".join(f"{key} → {value}" for key, value in state.items()) or "none"
