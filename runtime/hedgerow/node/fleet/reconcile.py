"""Admits desired documents and computes the steps to apply them: desired × running → steps. Pure.

Rules:
- A document is accepted or refused as a whole, before its first step.
- Labels that the region sets only select nodes for rollouts. Signatures count the node's own, so a document that sets one of
  those to another value is refused.
- A version that already serves is left alone, so applying a document again changes nothing.
- Models change before pipelines, so a changed pipeline finds its new model; signed pipelines are verified before either.
- A model that the document does not name returns to the file in the node's configuration; one without a file
  (`bundle:NAME`) keeps its serving version, unless it is withdrawn: then it is unloaded, last, if no pipeline needs it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from typing import TypeAlias

from hedgerow.errors import HedgerowError
from hedgerow.models.serving.pool import BUNDLE
from hedgerow.node.pipelines.overlay import Overlay
from hedgerow.wire.fleet import Desired, ModelRef, Quarantined


class DesiredError(HedgerowError):
    """A desired document cannot be applied."""

    code = "bad-desired"

    def __init__(self, message: str, *, code: str, remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code


class Admission(StrEnum):
    """What to do with a received document."""

    ACCEPT = "accept"
    KNOWN = "known"
    """The current generation, received again."""
    OLD = "old-generation"
    STRAY = "another-node"
    EXPIRED = "expired"


def admit(desired: Desired, address: str, generation: int, now: float, *, clock_doubtful: bool) -> Admission:
    """Decide whether to accept a document.

    Args:
        address: this node's address.
        generation: the current document's generation; 0: none.
        now: Unix seconds.
        clock_doubtful: whether `now` may be wrong; if so, no document counts as expired.
    """
    if desired.node != address:
        return Admission.STRAY
    if desired.generation == generation:
        return Admission.KNOWN
    if desired.generation < generation and desired.supersedes != generation:
        return Admission.OLD
    if desired.expires_at is not None and desired.expires_at < now and not clock_doubtful:
        return Admission.EXPIRED
    return Admission.ACCEPT


@dataclass(frozen=True, slots=True)
class Running:
    """What a node runs.

    Attributes:
        models: models in the node's file: name → path.
        serving: model → serving version; a model that is missing here serves its own file, or nothing yet.
        installed: digests of complete and verified bundles on disk.
        quarantined: quarantined versions by digest.
        pipelines: pipelines in the node's file.
        overlay: the current overlay: `pipelines` of an earlier document.
        labels: the node's own labels: the machine's and those in its file.
        signed: the signed pipelines that run; None: none.
        accepts_signed: whether the node's file allows signed pipelines.
        users: running pipelines by the model that they need.
        assigned: models of which the region has given a version, also if none of it serves.
    """

    models: Mapping[str, str]
    serving: Mapping[str, ModelRef] = field(default_factory=dict)
    installed: frozenset[str] = frozenset()
    quarantined: Mapping[str, Quarantined] = field(default_factory=dict)
    pipelines: frozenset[str] = frozenset()
    overlay: Overlay = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    signed: ModelRef | None = None
    accepts_signed: bool = False
    users: Mapping[str, Collection[str]] = field(default_factory=dict)
    assigned: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class FetchVersion:
    """Verify a version and fetch it."""

    model: str
    ref: ModelRef


@dataclass(frozen=True, slots=True)
class VerifyAgain:
    """Verify an installed version again."""

    model: str
    ref: ModelRef


@dataclass(frozen=True, slots=True)
class SwapVersion:
    """Swap to a version."""

    model: str
    ref: ModelRef


@dataclass(frozen=True, slots=True)
class SwapToFile:
    """Swap to the file that the node's own configuration names."""

    model: str


@dataclass(frozen=True, slots=True)
class WithdrawModel:
    """Unload a model that has no file in the node's own configuration, and that no pipeline needs."""

    model: str


@dataclass(frozen=True, slots=True)
class FetchPipelines:
    """Verify signed pipelines and store them."""

    ref: ModelRef


@dataclass(frozen=True, slots=True)
class ChangePipelines:
    """Put another overlay into force, and other signed pipelines."""

    pipelines: Overlay
    signed: ModelRef | None = None


Step: TypeAlias = (
    FetchPipelines | FetchVersion | VerifyAgain | SwapVersion | SwapToFile | ChangePipelines | WithdrawModel
)


def reconcile(desired: Desired, running: Running) -> list[Step]:
    """Return the steps from the running state to the desired one.

    Raises: DesiredError: the document names an unknown model or pipeline, or a version that is in quarantine here, or it
        changes a label of the node's own. None of it is applied.
    """
    _check(desired, running)
    steps: list[Step] = []
    signed = desired.signed_pipelines
    if signed is not None and signed != running.signed:
        steps.append(FetchPipelines(signed))
    for model, ref in sorted(desired.models.items()):
        serving = running.serving.get(model)
        if serving is not None and serving.digest == ref.digest:
            continue
        installed = ref.digest in running.installed
        steps += [VerifyAgain(model, ref) if installed else FetchVersion(model, ref), SwapVersion(model, ref)]
    steps += [
        SwapToFile(model)
        for model in sorted(running.serving.keys() - desired.models.keys())
        if model in running.models and not running.models[model].startswith(BUNDLE)
    ]
    if dict(desired.pipelines) != dict(running.overlay) or signed != running.signed:
        steps.append(ChangePipelines(desired.pipelines, signed))
    steps += [WithdrawModel(model) for model in _to_unload(desired, running)]
    return steps


def _to_unload(desired: Desired, running: Running) -> list[str]:
    """Return the withdrawn models to unload: those with a file of the node's own go back to it instead."""
    withdrawn = set(desired.withdrawn) & running.assigned - desired.models.keys()
    return sorted(model for model in withdrawn if running.models.get(model, BUNDLE).startswith(BUNDLE))


def _check(desired: Desired, running: Running) -> None:
    for model in _to_unload(desired, running):
        gone = {pipeline for pipeline, changes in desired.pipelines.items() if changes is None}
        if users := sorted(set(running.users.get(model, ())) - gone):
            raise DesiredError(
                f"Model {model} cannot be withdrawn: {', '.join(users)} {'needs' if len(users) == 1 else 'need'} it, and the node's "
                "file names no other",
                code="model-needed",
                remedy=f"Take {', '.join(users)} out of the node's file first, or give the model a `path:` to a file of its own.",
            )
    for key, value in desired.labels.items():
        if (own := running.labels.get(key, value)) != value:
            raise DesiredError(
                f"The region sets the label {key} to {value!r}, but the node's own is {own!r}",
                code="label-collision",
                remedy=f"Remove it: `hedgerow node label {desired.node} {key}-`. Use another key for rollouts, or change the "
                "node's file.",
            )
    for model, ref in desired.models.items():
        if model not in running.models:
            near = next(iter(get_close_matches(model, running.models)), None)
            models = ", ".join(sorted(running.models)) or "none"
            raise DesiredError(
                f"The node's file has no model {model!r} to serve {ref}",
                code="unknown-model",
                remedy=f"Did you mean {near!r}?"
                if near
                else f"Its models: {models}. Add {model!r} to the node's file.",
            )
        if (quarantined := running.quarantined.get(ref.digest)) is not None:
            raise DesiredError(
                f"{ref} is in quarantine here: {quarantined.reason}",
                code="quarantined",
                remedy=f"Send another version. If the model is not at fault: `hedgerow command {desired.node} release "
                f"digest={ref.digest}`.",
            )
        path = running.models[model]
        if path.startswith(BUNDLE) and path.removeprefix(BUNDLE) != ref.name:
            raise DesiredError(
                f"Model {model!r} has the path {path} in the node's file, but the document names {ref}",
                code="another-bundle",
                remedy=f"Send a version of {path.removeprefix(BUNDLE)}, or change `path:` in the node's file.",
            )
    if desired.signed_pipelines is not None and not running.accepts_signed:
        raise DesiredError(
            f"The node's file does not allow signed pipelines such as {desired.signed_pipelines}",
            code="signed-pipelines-off",
            remedy="Set `remote: {signed_pipelines: true}` in the node's file, and `reload`; it says what that allows.",
        )
    for pipeline, changes in desired.pipelines.items():
        if pipeline not in running.pipelines and (changes is None or "subscribe" not in changes):
            raise DesiredError(
                f"The node's file has no pipeline {pipeline!r} to change",
                code="unknown-pipeline",
                remedy=f"Its pipelines: {', '.join(sorted(running.pipelines)) or 'none'}. A new one needs `subscribe` and "
                "`stages`.",
            )
